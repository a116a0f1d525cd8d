"""Answers into one self-contained HTML page.

1. `render` turns answers into a page: question, verdict, notes, exhibits, settings. `write_page` puts it on the disk.
2. Everything that may hold data text goes through autoescape, in `<bdi>`, with control characters as escapes.
3. Figures are static SVG on a white card, with the table behind them folded. One script, allowed by its hash in the
   content security policy, draws scatters again on a canvas; without it, and in print, the SVG stays.
4. The data of a scatter are JSON in a script element, read with JSON.parse and shown with textContent.

Knows answers only: imports no torch, no scikit-learn; matplotlib is loaded when a figure is drawn.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from clsprobe.analysis.plots.points import point_styles
from clsprobe.analysis.plots.style import shown, signed
from clsprobe.analysis.plots.svg import svg
from clsprobe.probes.files import write_text

if TYPE_CHECKING:
    from clsprobe.analysis.study import Answer, Exhibit

ROWS = 300  # of a folded table; the Parquet file beside the answer has them all
POINTS = 5_000  # of an interactive scatter
MARKS = {"yes": "✓", "no": "✕", "undecided": "?"}


def render(answers: Mapping[str, Answer], *, title: str | None = None) -> str:
    """The page of one or several answers, by name. title: of the whole; the question where there is one answer."""
    views = [_answer(name, answer, f"a{i}") for i, (name, answer) in enumerate(answers.items(), 1)]
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
    write_text(path, render(answers, title=title))


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
    environment.filters["shown"] = shown
    environment.filters["signed"] = signed
    environment.filters["data"] = _data
    return environment


def _data(value: object) -> Markup:
    """Text from the data: as typed, on its own as far as writing direction goes."""
    return Markup("<bdi>{}</bdi>").format(shown(value, 1_000))


# ------------------------------------------------------------------------------------------------- what is on a page


def _answer(name: str, answer: Answer, identity: str) -> dict[str, Any]:
    sections: dict[str, list[dict[str, Any]]] = {}
    count = {"Figure": 0, "Table": 0}
    for exhibit in sorted(answer.exhibits, key=lambda exhibit: bool(exhibit.section)):  # those of no section lead
        kind = "Figure" if exhibit.plot else "Table"
        count[kind] += 1
        view = _exhibit(exhibit, f"{identity}{kind[0].lower()}{count[kind]}", f"{kind} {count[kind]}")
        sections.setdefault(exhibit.section, []).append(view)
    return {
        "id": identity,
        "name": name,
        "question": shown(answer.question),
        "claim": shown(answer.claim),
        "verdict": answer.verdict,
        "notes": [shown(note) for note in answer.notes],
        "sections": sections,
        "settings": {
            heading: {key: _setting(value) for key, value in values.items()}
            for heading, values in answer.settings.items()
        },
    }


def _exhibit(exhibit: Exhibit, identity: str, number: str) -> dict[str, Any]:
    return {
        "id": identity,
        "number": number,
        "caption": shown(exhibit.caption),
        "figure": Markup(svg(exhibit.draw(), prefix=identity)) if exhibit.plot else None,
        "points": _points(exhibit.table) if exhibit.plot == "scatter" and len(exhibit.table) else None,
        "table": _table(exhibit.table),
    }


def _table(table: pd.DataFrame) -> dict[str, Any]:
    """The first rows as text, column by column, with the alignment of each column."""
    head = table.head(ROWS)
    columns = [_column(head.iloc[:, i]) for i in range(head.shape[1])]
    return {
        "columns": [(str(name), is_number) for name, (is_number, _) in zip(table.columns, columns, strict=True)],
        "rows": list(zip(*(cells for _, cells in columns), strict=True)),
        "total": len(table),
    }


def _column(values: pd.Series) -> tuple[bool, list[str]]:
    """Whether a column is of numbers, and its cells as text. Whole numbers that pandas made floats are whole again."""
    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        return False, [_setting(value) for value in values]
    numbers = values.to_numpy(float, na_value=np.nan)
    finite = numbers[np.isfinite(numbers)]
    whole = (finite == np.round(finite)).all() and (pd.api.types.is_integer_dtype(values) or (abs(finite) > 1).any())
    decimals = 0 if whole else 3
    return True, [_number(number, decimals) for number in numbers.tolist()]


def _number(number: float, decimals: int) -> str:
    if not math.isfinite(number):
        return "–" if math.isnan(number) else "∞" if number > 0 else "−∞"
    if number and abs(number) < 0.5 * 10**-decimals:
        return f"{number:.1e}".replace("-", "−")
    return (f"{number:,.{decimals}f}" if abs(number) >= 10_000 else f"{number:.{decimals}f}").replace("-", "−")


def _setting(value: object) -> str:
    """A setting or a cell of text as a person reads it."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_setting(inner)}" for key, inner in value.items()) or "–"
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return ", ".join(map(_setting, value)) or "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}" if abs(int(value)) >= 10_000 else str(value)
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


# --------------------------------------------------------------------------------------------------------- scatters


def _points(table: pd.DataFrame) -> dict[str, Any]:
    """The points of a scatter for the script: coordinates on a grid of 4096, every text once, the same in all panels.

    Past 5,000 points a sample of the texts is taken, the same in every panel.
    """
    looks = point_styles(table["label"])
    identity = pd.Series(pd.factorize(table["row"] if "row" in table else table["text"])[0], index=table.index)
    kept = table[np.isfinite(table["x"]) & np.isfinite(table["y"])]
    if len(kept) > POINTS:
        texts = identity[kept.index].unique()
        chosen = np.random.default_rng(0).permutation(texts)[: max(len(texts) * POINTS // len(kept), 1)]
        kept = kept[identity[kept.index].isin(chosen)]
    code = {label: i for i, label in enumerate(looks)}
    texts = identity[kept.index].drop_duplicates()
    place = {text: i for i, text in enumerate(texts)}
    panels = []
    for name, points in kept.groupby("panel", sort=False):
        unit = max(np.ptp(points["x"]), np.ptp(points["y"])) or 1.0
        x, y = ((points[axis] - (points[axis].min() + points[axis].max()) / 2) / unit * 4095 for axis in ("x", "y"))
        panels.append(
            {
                "name": shown(name, 200),
                "x": x.round().astype(int).tolist(),
                "y": y.round().astype(int).tolist(),
                "label": [code[label] for label in points["label"]],
                "text": [place[text] for text in identity[points.index]],
            }
        )
    content = {
        "panels": panels,
        "labels": [[shown(label, 200), look.colour, look.marker] for label, look in looks.items()],
        "texts": [shown(text, 300) for text in table.loc[texts.index, "text"]],
    }
    return {"json": _inert(content), "shown": len(kept), "total": len(table)}


def _inert(content: object) -> Markup:
    """JSON that no HTML parser and no script can take for anything else."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
