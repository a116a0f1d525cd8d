"""Answers into one self-contained HTML page.

1. `render_page` renders answers as a page: question, verdict, notes, exhibits, settings. `write_page` saves it.
2. All text from the data is escaped by jinja2, isolated in ``<bdi>``, with control characters as escapes.
3. Figures are static SVG on a white card, with the table behind them folded. One script, allowed by its hash in the
   content security policy, redraws scatters on a canvas; without it, and in print, the SVG stays.
4. The data of a scatter are JSON in a script element, read with JSON.parse and displayed with textContent.

Imports no torch and no scikit-learn; matplotlib is loaded when a figure is drawn.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from clsprobe.analysis.answer import Answer, Exhibit, correct_answers
from clsprobe.analysis.plots.points import assign_point_styles
from clsprobe.analysis.plots.style import display_text, format_signed
from clsprobe.analysis.plots.svg import render_svg
from clsprobe.analysis.verdict import Part, Verdict
from clsprobe.probes.files import write_text

ROWS = 300  # of a table on the page; the Parquet file beside the answer has all
POINTS = 5_000  # of an interactive scatter
MARKS = {"yes": "✓", "no": "✕", "mixed": "±", "undecided": "?", "left out": "–"}


def render_page(answers: Mapping[str, Answer], *, title: str | None = None) -> str:
    """The HTML page of one or several answers, by name. title: default for a single answer is its question."""
    corrected = correct_answers(answers)
    views = [_answer_view(name, answer, f"a{i}") for i, (name, answer) in enumerate(corrected.items(), 1)]
    script = _templates().get_template("scatter.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    questions = f"{len(views)} questions put to an encoder" if views else "No answers yet"
    return (
        _templates()
        .get_template("page.html.j2")
        .render(
            title=title or (views[0]["question"] if len(views) == 1 else questions),
            answers=views,
            script=Markup(script),  # ours, not the data's
            script_hash=f"sha256-{digest}",
            marks=MARKS,
        )
    )


def write_page(path: Path | str, answers: Mapping[str, Answer], *, title: str | None = None) -> None:
    """Write the page of these answers to `path`, whole or not at all."""
    write_text(path, render_page(answers, title=title))


@lru_cache(maxsize=1)
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates", encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.filters["display_text"] = display_text
    environment.filters["format_signed"] = format_signed
    environment.filters["isolate"] = _isolate
    return environment


def _isolate(value: object) -> Markup:
    """Text from the data as typed, isolated so that its writing direction does not affect its neighbours."""
    return Markup("<bdi>{}</bdi>").format(display_text(value, 1_000))


# ------------------------------------------------------------------------------------------------- what is on a page


def _answer_view(name: str, answer: Answer, identity: str) -> dict[str, Any]:
    sections: dict[str, list[dict[str, Any]]] = {}
    counts = {"Figure": 0, "Table": 0}
    for exhibit in sorted(answer.exhibits, key=lambda exhibit: bool(exhibit.section)):  # those without a section first
        kind = "Figure" if exhibit.plot else "Table"
        counts[kind] += 1
        view = _exhibit_view(exhibit, f"{identity}{kind[0].lower()}{counts[kind]}", f"{kind} {counts[kind]}")
        sections.setdefault(exhibit.section, []).append(view)
    return {
        "id": identity,
        "name": name,
        "question": display_text(answer.question),
        "claim": display_text(answer.claim),
        "verdict": answer.verdict,
        "headline": answer.headline,
        "answers": answer.answers,
        "p": answer.p,
        "comparisons": _table_view(_tabulate_parts(answer.verdict)),
        "notes": [display_text(note) for note in answer.notes],
        "sections": sections,
        "settings": {
            heading: {key: _format_value(value) for key, value in values.items()}
            for heading, values in answer.settings.items()
        },
    }


def _tabulate_parts(verdict: Verdict) -> pd.DataFrame:
    """The parts of the claim on every task, each taken alone."""

    def of_fits(part: Part) -> tuple[float, float]:
        """The interval for the probes as they were fitted, where it is another."""
        ends = part.low_of_fits, part.high_of_fits
        return (math.nan, math.nan) if ends == (part.low, part.high) else ends

    tasks = verdict.parts or {"": verdict}
    rows = [
        (task, part.name, part.effect, part.low, part.high, part.threshold, part.p_yes, part.p_no, *of_fits(part))
        for task, of_task in tasks.items()
        for part in of_task.comparisons
    ]
    columns = ["task", "compared with", "effect", "low", "high", "threshold", "p above", "p below"]
    table = pd.DataFrame(rows, columns=[*columns, "low, these probes", "high, these probes"])
    table = table if verdict.parts else table.drop(columns="task")
    return table.dropna(axis="columns", how="all") if len(table) else table


def _exhibit_view(exhibit: Exhibit, identity: str, number: str) -> dict[str, Any]:
    return {
        "id": identity,
        "number": number,
        "caption": display_text(exhibit.caption),
        "figure": Markup(render_svg(exhibit.draw(), prefix=identity)) if exhibit.plot else None,
        "points": _scatter_view(exhibit.table) if exhibit.plot == "scatter" and len(exhibit.table) else None,
        "table": _table_view(exhibit.table),
    }


def _table_view(table: pd.DataFrame) -> dict[str, Any]:
    """The first rows as text, and which columns are numbers."""
    head = table.head(ROWS)
    columns = [_format_column(head.iloc[:, i]) for i in range(head.shape[1])]
    return {
        "columns": [(str(name), is_number) for name, (is_number, _) in zip(table.columns, columns, strict=True)],
        "rows": list(zip(*(cells for _, cells in columns), strict=True)),
        "total": len(table),
    }


def _format_column(values: pd.Series) -> tuple[bool, list[str]]:
    """Whether a column is of numbers, and its cells as text; integers that pandas made floats have no decimals."""
    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        return False, [_format_value(value) for value in values]
    numbers = values.to_numpy(float, na_value=np.nan)
    finite = numbers[np.isfinite(numbers)]
    whole = (finite == np.round(finite)).all() and (pd.api.types.is_integer_dtype(values) or (abs(finite) > 1).any())
    decimals = 0 if whole else 3
    return True, [_format_number(number, decimals) for number in numbers.tolist()]


def _format_number(number: float, decimals: int) -> str:
    if not math.isfinite(number):
        return "–" if math.isnan(number) else "∞" if number > 0 else "−∞"
    if number and abs(number) < 0.5 * 10**-decimals:
        return f"{number:.1e}".replace("-", "−")
    return (f"{number:,.{decimals}f}" if abs(number) >= 10_000 else f"{number:.{decimals}f}").replace("-", "−")


def _format_value(value: object) -> str:
    """A setting or a cell of text, formatted for reading."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_format_value(inner)}" for key, inner in value.items()) or "–"
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return ", ".join(map(_format_value, value)) or "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}" if abs(int(value)) >= 10_000 else str(value)
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


# --------------------------------------------------------------------------------------------------------- scatters


def _scatter_view(table: pd.DataFrame) -> dict[str, Any]:
    """The points of a scatter for the script: coordinates on a grid of 4096, and every text once.

    Past 5,000 points a sample of the texts is drawn, the same in every panel.
    """
    styles = assign_point_styles(table["label"])
    text_ids = pd.Series(pd.factorize(table["row"] if "row" in table else table["text"])[0], index=table.index)
    drawn = table[np.isfinite(table["x"]) & np.isfinite(table["y"])]
    if len(drawn) > POINTS:
        texts = text_ids[drawn.index].unique()
        sample = np.random.default_rng(0).permutation(texts)[: max(len(texts) * POINTS // len(drawn), 1)]
        drawn = drawn[text_ids[drawn.index].isin(sample)]
    code = {label: i for i, label in enumerate(styles)}
    texts = text_ids[drawn.index].drop_duplicates()
    text_indices = {text: i for i, text in enumerate(texts)}
    panels = []
    for name, points in drawn.groupby("panel", sort=False):
        span = max(np.ptp(points["x"]), np.ptp(points["y"])) or 1.0
        x, y = ((points[axis] - (points[axis].min() + points[axis].max()) / 2) / span * 4095 for axis in ("x", "y"))
        panels.append(
            {
                "name": display_text(name, 200),
                "x": x.round().astype(int).tolist(),
                "y": y.round().astype(int).tolist(),
                "label": [code[label] for label in points["label"]],
                "text": [text_indices[text] for text in text_ids[points.index]],
            }
        )
    content = {
        "panels": panels,
        "labels": [[display_text(label, 200), style.colour, style.marker] for label, style in styles.items()],
        "texts": [display_text(text, 300) for text in table.loc[texts.index, "text"]],
    }
    return {"json": _embed_json(content), "drawn": len(drawn), "total": len(table)}


def _embed_json(content: object) -> Markup:
    """JSON that can stand inside an HTML script element: without characters that could end the element."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
