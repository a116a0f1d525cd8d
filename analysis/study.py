"""From a table to an answer: Study, Verdict, Exhibit, Answer.

1. A `Study` asks one question. Its fields are its settings (and its flags on the command line).
2. `measure` is its only slow step and returns a table; `judge` and `show` are pure functions of that table.
3. A `Verdict` says yes, no or undecided to the study's claim, with the effect and its 95 % interval.
4. An `Exhibit` is a table, a caption, and the name of the function in `analysis.plots` that draws it.
5. An `Answer` is all of these: it saves to JSON + Parquet, loads and draws again without a model.

Sees tables only: no torch, no scikit-learn.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from clsprobe.probes.errors import InputError
from clsprobe.probes.files import write_parquet, write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from clsprobe.analysis.folder import RunFolder

Outcome = Literal["yes", "no", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """What the numbers say to a claim: `effect` and its 95 % interval, in points of the metric (0.02 = 2 points).

    parts: the verdict of every task, when there are several; the overall outcome is theirs only if all agree.
    """

    outcome: Outcome
    because: str
    effect: float
    low: float
    high: float
    parts: Mapping[str, Verdict] = field(default_factory=dict)

    @classmethod
    def decide(cls, because: str, effect: float, low: float, high: float, *, threshold: float) -> Verdict:
        """Yes where the whole interval lies above the threshold, no where it lies below, undecided otherwise."""
        outcome: Outcome = "yes" if low > threshold else "no" if high < threshold else "undecided"
        return cls(outcome, because, effect, low, high)

    @classmethod
    def over(cls, parts: Mapping[str, Verdict]) -> Verdict:
        """One verdict over several tasks: theirs if all agree, else undecided. The interval spans all of theirs."""
        verdicts = list(parts.values())
        if len(verdicts) == 1:
            return verdicts[0]
        outcomes = {verdict.outcome for verdict in verdicts}
        outcome: Outcome = outcomes.pop() if len(outcomes) == 1 else "undecided"
        count = {o: sum(verdict.outcome == o for verdict in verdicts) for o in ("yes", "no", "undecided")}
        told = ", ".join(f"{o} on {n}" for o, n in count.items() if n)
        return cls(
            outcome,
            f"Of {len(verdicts)} tasks: {told}.",
            sum(verdict.effect for verdict in verdicts) / len(verdicts),
            min(verdict.low for verdict in verdicts),
            max(verdict.high for verdict in verdicts),
            dict(parts),
        )


@dataclass(frozen=True, eq=False)
class Exhibit:
    """One piece of evidence: `table` drawn by `analysis.plots.<plot>(table, **arguments)`; no plot shows the table.

    section: the heading it stands under (a task's name, say); exhibits of one section follow each other.
    """

    caption: str
    table: pd.DataFrame
    plot: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    section: str = ""

    def draw(self) -> Figure:
        """A matplotlib figure of the exhibit. Raises ValueError where the exhibit is a bare table."""
        if self.plot is None:
            raise ValueError(f"exhibit {self.caption!r} is a table without a plot")
        from clsprobe.analysis import plots

        drawing: Any = getattr(plots, self.plot, None)
        if self.plot.startswith("_") or not hasattr(drawing, "__wrapped__"):  # whatever a saved answer may name
            raise ValueError(f"there is no plot '{self.plot}'")
        return drawing(self.table, **self.arguments)


@dataclass(frozen=True, eq=False)
class Answer:
    """A question, its verdict, the evidence, and everything needed to judge how it came about.

    notes: sentences a reader should not miss (self-checks, rows left out). settings: heading -> name -> value, for the
    end of the page (settings, rows, model, versions); JSON values only.
    """

    question: str
    claim: str
    verdict: Verdict
    exhibits: tuple[Exhibit, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def save(self, path: Path | str) -> None:
        """Write `path` (JSON) and one Parquet file beside it for every exhibit, the JSON last."""
        path = Path(path)
        described = []
        for number, exhibit in enumerate(self.exhibits):
            name = f"{path.stem}.{number:02d}.parquet"
            write_parquet(path.with_name(name), exhibit.table)
            described.append(
                {
                    "caption": exhibit.caption,
                    "table": name,
                    "plot": exhibit.plot,
                    "arguments": dict(exhibit.arguments),
                    "section": exhibit.section,
                }
            )
        content = {
            "question": self.question,
            "claim": self.claim,
            "verdict": _verdict_to_json(self.verdict),
            "notes": list(self.notes),
            "settings": self.settings,
            "exhibits": described,
        }
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, path: Path | str) -> Answer:
        """Read an answer that `save` wrote; draws again without a model. Raises InputError for anything else."""
        from clsprobe.analysis.table import read_table

        path = Path(path)
        try:
            saved = _Saved.model_validate(read_json(path))
        except ValidationError as error:
            problem = error.errors()[0]
            what = f"is no answer ({'.'.join(map(str, problem['loc']))}: {problem['msg'].lower()})"
            raise InputError(str(path), what, AGAIN) from None
        exhibits = tuple(
            Exhibit(**{**dict(one), "table": read_table(path.with_name(Path(one.table).name or "table"))})
            for one in saved.exhibits
        )
        return cls(saved.question, saved.claim, saved.verdict, exhibits, saved.notes, saved.settings)

    def _repr_html_(self) -> str:
        from html import escape

        from clsprobe.analysis.plots import svg

        verdict = self.verdict
        head = (
            f"<h3>{escape(self.question)}</h3><p>{escape(self.claim)}: <b>{verdict.outcome}</b> "
            f"({verdict.effect:+.3f}, 95 % interval {verdict.low:+.3f} to {verdict.high:+.3f}). "
            f"{escape(verdict.because)}</p>"
        )
        figures = [
            f"<figure>{svg(e.draw(), prefix=f'n{i}')}<figcaption>{escape(e.caption)}</figcaption></figure>"
            for i, e in enumerate(self.exhibits)
            if e.plot
        ]
        return head + "".join(figures)


def _verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    content: dict[str, Any] = {name: getattr(verdict, name) for name in ("outcome", "because", "effect", "low", "high")}
    return content | {"parts": {task: _verdict_to_json(part) for task, part in verdict.parts.items()}}


class _SavedExhibit(BaseModel):
    caption: str
    table: str
    plot: str | None
    arguments: dict[str, Any]
    section: str


class _Saved(BaseModel):
    """What `Answer.save` writes."""

    question: str
    claim: str
    verdict: Verdict
    notes: tuple[str, ...]
    settings: dict[str, dict[str, Any]]
    exhibits: list[_SavedExhibit]


AGAIN = "Run its command again with --overwrite"


def read_json(path: Path) -> Any:
    """What a JSON file of a run holds. Raises InputError where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        reason = "nested too deep"
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
    raise InputError(str(path), f"cannot be read ({reason})", AGAIN)


@dataclass(frozen=True, eq=False)
class Finished:
    """What a study leaves: answers by name, facts for run.json, a sentence for every plug-in that failed, and what the
    page is called (the question, without a title)."""

    answers: Mapping[str, Answer]
    facts: Mapping[str, Any] = field(default_factory=dict)
    failures: Sequence[str] = ()
    title: str | None = None


class Study(BaseModel, ABC):
    """One question put to an encoder. Subclass it in a file of scripts/: its fields become the flags of a command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: ClassVar[str]  # the user's words
    claim: ClassVar[str]  # the statement that the verdict says yes or no to
    margin: ClassVar[float]  # declared before measuring
    aliases: ClassVar[tuple[str, ...]] = ()  # other names of its command

    @abstractmethod
    def measure(self) -> pd.DataFrame:
        """The table the study judges; the only slow step."""

    @abstractmethod
    def judge(self, table: pd.DataFrame) -> Verdict:
        """What the table says to the claim. Pure."""

    @abstractmethod
    def show(self, table: pd.DataFrame) -> tuple[Exhibit, ...]:
        """The evidence, the most telling first. Pure."""

    def settings(self) -> dict[str, Any]:
        """What tells one run of this study from another: plain JSON."""
        return self.model_dump(mode="json")

    def prepare(self) -> list[str]:
        """Check all that can be checked without a heavy library, and say in sentences what a run would take.

        Raises InputError for whatever the user can mend.
        """
        return []

    def run(self, folder: RunFolder) -> Finished:
        """Measure into a folder, judge, show."""
        folder.begin()
        table = self.measure()
        folder.save("measured", table)
        settings = {"Settings": self.model_dump(mode="json")}
        answer = Answer(self.question, self.claim, self.judge(table), self.show(table), settings=settings)
        return Finished({type(self).__name__.lower(): answer})
