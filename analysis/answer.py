"""Answers: a verdict with its evidence, as the page and a notebook show it.

1. An `Exhibit` is a table, a caption, and the name of the plot in `analysis.plots` that draws it.
2. An `Answer` is a question, its verdict (analysis.verdict) and its exhibits: it saves to JSON + Parquet, loads and
   draws again without a model.
3. `correct_answers` corrects those of one page for their number; the `headline` of each is the verdict that is left.

Imports neither torch nor scikit-learn, and nothing of studies: reports/ knows this module, and studies stand above it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError, field_validator

from clsprobe.analysis.verdict import Part, Verdict, holm
from clsprobe.probes.errors import InputError, describe_error, quote
from clsprobe.probes.files import file_digest, read_json, write_parquet, write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RERUN = "Run its command again with --overwrite"
LARGEST_ANSWER = (
    8 << 20
)  # bytes without its tables, of which a page can be made; one on a hundred tasks has less than one
MOST_EXHIBITS = 1000  # of an answer; those on a hundred tasks have fewer


@dataclass(frozen=True, eq=False)
class Exhibit:
    """One piece of evidence: `table` drawn by `analysis.plots.draw(plot, table, arguments)`, or shown as a table.

    section: the heading of the exhibit, such as a task's name; exhibits of one section are adjacent.
    """

    caption: str
    table: pd.DataFrame
    plot: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    section: str = ""

    def __repr__(self) -> str:
        return f"<Exhibit: {self.plot or 'table'} of {len(self.table):,} rows>"

    def draw(self) -> Figure:
        """A matplotlib figure of the exhibit. Raises ValueError where the exhibit is a bare table."""
        if self.plot is None:
            raise ValueError(f"exhibit {self.caption!r} is a table without a plot")
        from clsprobe.analysis.plots import draw

        return draw(self.plot, self.table, self.arguments)


@dataclass(frozen=True, eq=False)
class Answer:
    """A question, its verdict, the evidence, and everything needed to trace how it was reached.

    verdict: of this question alone. answers, p: how many answers a page has, and the p of the verdict adjusted for
    them (NaN where no claim was tested). notes: sentences a reader should see (self-checks, rows left out). settings:
    heading -> name -> value, for the end of the page (settings, rows, model, versions); JSON values only. failures: a
    sentence for every missing part, which is also the verdict's or a note, and its error; not saved.
    """

    question: str
    claim: str
    verdict: Verdict
    exhibits: tuple[Exhibit, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failures: Mapping[str, Exception] = field(default_factory=dict)
    answers: int = 1
    p: float = math.nan

    @property
    def headline(self) -> Verdict:
        """The verdict as it stands among the answers of its page."""
        return self.verdict.corrected(self.p, self.answers) if self.answers > 1 else self.verdict

    def save(self, path: Path | str) -> None:
        """Write `path` (JSON, last) and one Parquet file beside it for every exhibit."""
        path = Path(path)
        described = []
        for number, exhibit in enumerate(self.exhibits):
            name = f"{path.stem}.{number:02d}.parquet"
            write_parquet(path.with_name(name), exhibit.table)
            digest = file_digest(path.with_name(name))
            described.append(
                {
                    "caption": exhibit.caption,
                    "table": name,
                    "digest": digest,
                    "plot": exhibit.plot,
                    "arguments": dict(exhibit.arguments),
                    "section": exhibit.section,
                }
            )
        content = {
            "question": self.question,
            "claim": self.claim,
            "answer": self.headline.sentence,
            "verdict": _verdict_to_json(self.verdict),
            "answers": self.answers,
            "p": _or_none(self.p),
            "notes": list(self.notes),
            "settings": self.settings,
            "exhibits": described,
        }
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, path: Path | str) -> Answer:
        """Read an answer that `save` wrote. An exhibit whose plot is not registered is a table, and a note says so.

        Raises InputError for anything else.
        """
        from clsprobe.analysis.plots import can_draw
        from clsprobe.analysis.table import read_table

        path = Path(path)
        try:
            saved = _Saved.model_validate(read_json(path, RERUN, largest=LARGEST_ANSWER))
        except ValidationError as error:
            problem = error.errors()[0]
            place = quote(".".join(map(str, problem["loc"])))[1:-1]
            what = f"is no answer ({place}: {problem['msg'].lower()})"
            raise InputError(str(path), what, RERUN) from None
        for part in saved.exhibits:
            if not re.fullmatch(r"[^/\\]+\.parquet", part.table):
                raise InputError(str(path), f"names {json.dumps(part.table)}, which is no table beside it", RERUN)
        names = [part.table for part in saved.exhibits]
        if len(names) > MOST_EXHIBITS:
            raise InputError(str(path), f"has {len(names):,} exhibits, more than any answer", RERUN)
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise InputError(str(path), f"names {json.dumps(repeated)} for more than one exhibit", RERUN)
        unknown = {part.plot: None for part in saved.exhibits if part.plot and not can_draw(part.plot)}
        exhibits = tuple(
            Exhibit(
                part.caption,
                read_table(path.with_name(part.table), part.digest),
                None if part.plot in unknown else part.plot,
                {} if part.plot in unknown else part.arguments,
                part.section,
            )
            for part in saved.exhibits
        )
        lost = [f"The plot '{plot}' is of no installed package: what it drew is shown as a table." for plot in unknown]
        verdict = saved.verdict
        if saved.answer is None:  # clsprobe 0.1 judged a claim that may be the opposite of the question
            verdict = _quote_verdict(verdict, saved.claim)
        return cls(
            saved.question,
            saved.claim,
            verdict,
            exhibits,
            (*saved.notes, *lost),
            saved.settings,
            answers=saved.answers,
            p=math.nan if saved.p is None else saved.p,
        )

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self, *, figures: int | None = None) -> str:
        """The answer as HTML for a notebook. figures: at most so many; None for all."""
        from html import escape

        from clsprobe.analysis.plots.style import display_text
        from clsprobe.analysis.plots.svg import render_svg

        headline = self.headline
        intervals = f"95 % intervals are about {headline.interval_of}." if headline.interval_of else ""
        lines = (*headline.warnings, headline.sentence, headline.advice, intervals)
        paragraphs = [f"<p>{escape(display_text(line))}</p>" for line in lines if line]
        head = f"<h3>{escape(display_text(self.question))}</h3>{''.join(paragraphs)}"

        def draw(number: int, exhibit: Exhibit) -> str:
            try:
                return render_svg(exhibit.draw(), prefix=f"n{number}")
            except Exception as error:  # a notebook would show a traceback in place of the answer
                return f"<p>{escape(display_text(f'Cannot be drawn: {describe_error(error)}.'))}</p>"

        drawn = [exhibit for exhibit in self.exhibits if exhibit.plot][:figures]
        return head + "".join(
            f"<figure>{draw(number, exhibit)}<figcaption>{escape(display_text(exhibit.caption))}</figcaption></figure>"
            for number, exhibit in enumerate(drawn)
        )

    def __repr__(self) -> str:
        return f"<Answer: {self.question!r}: {self.headline.label}>"


def correct_answers(answers: Mapping[str, Answer]) -> dict[str, Answer]:
    """The answers of one page with the p of their verdicts adjusted for the number of tested claims (`holm`)."""
    tested = [name for name, answer in answers.items() if answer.verdict.is_claim]
    adjusted = dict(zip(tested, holm([answers[name].verdict.p for name in tested]), strict=True))
    return {
        name: replace(answer, answers=len(tested), p=adjusted.get(name, math.nan)) for name, answer in answers.items()
    }


def _verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    content = {name: getattr(verdict, name) for name in Verdict.__dataclass_fields__}
    for name in ("effect", "low", "high", "needed", "times_needed"):
        content[name] = _or_none(content[name])
    parts = [
        {name: getattr(part, name) for name in Part.__dataclass_fields__ if name != "estimate"}
        | {name: _or_none(getattr(part, name)) for name in ("effect", "low", "high", "low_of_fits", "high_of_fits")}
        for part in verdict.comparisons
    ]
    return content | {
        "warnings": list(verdict.warnings),
        "comparisons": parts,
        "parts": {task: _verdict_to_json(part) for task, part in verdict.parts.items()},
    }


def _or_none(number: float) -> float | None:
    """The number, or None for one that JSON lacks."""
    return float(number) if math.isfinite(number) else None


def _quote_verdict(verdict: Verdict, claim: str) -> Verdict:
    """A verdict of an older version as an open answer that quotes the claim which it judged.

    Over several tasks it had the smallest low and the largest high of all, which is no interval: left out.
    """
    if verdict.parts:
        verdict = replace(verdict, effect=math.nan, low=math.nan, high=math.nan)
    effect = (
        "" if math.isnan(verdict.effect) else f" ({verdict.effect:+.3f}, {verdict.low:+.3f} to {verdict.high:+.3f})"
    )
    sentence = f"The claim judged was: {claim}. It was found: {verdict.outcome}{effect}. {verdict.sentence}"
    parts = {task: replace(part, is_open=True) for task, part in verdict.parts.items()}
    return replace(verdict, sentence=sentence, is_open=True, parts=parts)


class _SavedExhibit(BaseModel):
    caption: str
    table: str
    digest: str | None = None  # of the file of the table; versions before it had none
    plot: str | None
    arguments: dict[str, Any]
    section: str


class _Saved(BaseModel):
    """The JSON that `Answer.save` writes."""

    @field_validator("verdict", mode="before")
    @classmethod
    def _name_sentence(cls, content: Any) -> Any:
        """clsprobe 0.1 called the sentence `because`."""
        if not isinstance(content, dict) or "because" not in content:
            return content
        parts = content.get("parts", {})
        if isinstance(parts, dict):
            parts = {task: cls._name_sentence(part) for task, part in parts.items()}
        return {**content, "sentence": content["because"], "parts": parts}

    question: str
    claim: str
    answer: str | None = None  # versions before it had none
    verdict: Verdict
    answers: int = 1
    p: float | None = None
    notes: tuple[str, ...]
    settings: dict[str, dict[str, Any]]
    exhibits: list[_SavedExhibit]
