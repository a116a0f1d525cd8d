"""From a table to an answer: Study, Exhibit, Answer.

1. A `Study` asks one question. Its fields are its settings (and its flags on the command line).
2. `measure` is its only slow step and returns `Measured` tables; `judge` and `show` are pure functions of these, for
   one task at a time. Uniting tasks, ordering exhibits and resuming are written once, here and in `analysis.folder`.
3. A `Verdict` (analysis.verdict) is the answer in a sentence, with its outcome: yes, no, mixed or undecided.
4. An `Exhibit` is a table, a caption, and the name of the plot in `analysis.plots` that draws it.
5. An `Answer` is all of these: it saves to JSON + Parquet, loads and draws again without a model. `correct_answers`
   corrects those of one page for their number; its `headline` is the verdict that is left.
6. A question that the measurement cannot answer for a task (`MissingEvidence`, or any error of `judge`, `show` and
   `note`) costs that part of its answer only, which says so: what was measured is never lost.

Imports neither torch nor scikit-learn.
"""

from __future__ import annotations

import json
import logging
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from clsprobe.analysis.contents import own_contents, plugin_contents
from clsprobe.analysis.verdict import MissingEvidence, Outcome, Part, Verdict, describe_need, holm
from clsprobe.probes.errors import InputError, printable
from clsprobe.probes.files import read_json, write_parquet, write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from clsprobe.analysis.folder import RunFolder

log = logging.getLogger("clsprobe")
T = TypeVar("T")

RERUN = "Run its command again with --overwrite"


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
        """Read an answer that `save` wrote. Raises InputError for anything else."""
        from clsprobe.analysis.table import read_table

        path = Path(path)
        try:
            saved = _Saved.model_validate(read_json(path, RERUN))
        except ValidationError as error:
            problem = error.errors()[0]
            what = f"is no answer ({'.'.join(map(str, problem['loc']))}: {problem['msg'].lower()})"
            raise InputError(str(path), what, RERUN) from None
        for part in saved.exhibits:
            if not re.fullmatch(r"[^/\\]+\.parquet", part.table):
                raise InputError(str(path), f"names {json.dumps(part.table)}, which is no table beside it", RERUN)
        exhibits = tuple(
            Exhibit(**{**dict(part), "table": read_table(path.with_name(part.table))}) for part in saved.exhibits
        )
        verdict = saved.verdict
        if saved.answer is None:  # clsprobe 0.1 judged a claim that may be the opposite of the question
            verdict = _quote_verdict(verdict, saved.claim)
        return cls(
            saved.question,
            saved.claim,
            verdict,
            exhibits,
            saved.notes,
            saved.settings,
            answers=saved.answers,
            p=math.nan if saved.p is None else saved.p,
        )

    def _repr_html_(self) -> str:
        from html import escape

        from clsprobe.analysis.plots.style import display_text
        from clsprobe.analysis.plots.svg import render_svg

        headline = self.headline
        intervals = f"95 % intervals are about {headline.interval_of}." if headline.interval_of else ""
        lines = (*headline.warnings, headline.sentence, headline.advice, intervals)
        paragraphs = [f"<p>{escape(display_text(line))}</p>" for line in lines if line]
        head = f"<h3>{escape(display_text(self.question))}</h3>{''.join(paragraphs)}"
        figures = [
            f"<figure>{render_svg(exhibit.draw(), prefix=f'n{i}')}"
            f"<figcaption>{escape(display_text(exhibit.caption))}</figcaption></figure>"
            for i, exhibit in enumerate(self.exhibits)
            if exhibit.plot
        ]
        return head + "".join(figures)


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


@dataclass(frozen=True, eq=False)
class Measured:
    """The measurement of a study.

    tables: name -> table. Those with a column `task` hold the rows of every task. facts: for run.json and the end of
    the page: "rows" (task -> counts of its rows), "read" (SPEC -> rows read), "model", "versions",
    "solved" (task -> baselines that solve it by construction).
    notes: sentences a reader should see. failures: a sentence for every plug-in that failed.
    """

    tables: Mapping[str, pd.DataFrame]
    facts: Mapping[str, Mapping[str, Any]]
    notes: Sequence[str] = ()
    failures: Sequence[str] = ()

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks, in the order of the settings."""
        return list(self.facts["rows"])

    def rows(self, table: str, task: str) -> pd.DataFrame:
        """The rows of one task in a table. Raises MissingEvidence where it was not measured."""
        if table not in self.tables:
            raise MissingEvidence(f"the table {table} was not measured")
        every_task = self.tables[table]
        return every_task[every_task.task == task] if "task" in every_task else every_task


@dataclass(frozen=True, eq=False)
class Finished:
    """The result of a run: the measurement, and the answers that follow from it, by name.

    title: of the page; None: its question.
    """

    answers: Mapping[str, Answer]
    measured: Measured
    title: str | None = None

    @property
    def failures(self) -> list[tuple[str, Exception | None]]:
        """A sentence for everything that failed, the plug-ins first, with its error where it is known."""
        failures: list[tuple[str, Exception | None]] = [(sentence, None) for sentence in self.measured.failures]
        return failures + [failure for answer in self.answers.values() for failure in answer.failures.items()]


class Study(BaseModel, ABC):
    """One question about an encoder. Subclass it in a file of scripts/: its fields become the flags of a command.

    A study is its question, its settings (groups of fields, see `analysis.settings`) and three methods: `measure`
    everything once, `judge` one task, `show` one task.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: ClassVar[str]  # the user's words
    claim: ClassVar[str]  # the statement that is tested: what "yes" means, or what an open question is answered by
    margin: ClassVar[float]  # declared before measuring
    opening: ClassVar[str] = ""  # what is listed for every one of several tasks
    statements: ClassVar[Mapping[Outcome, str]] = {}  # of an open question: outcome -> what it says of a task
    rivals: ClassVar[tuple[str, ...]] = ()  # baselines: a task that one of them solves by construction decides nothing
    aliases: ClassVar[tuple[str, ...]] = ()  # other names of its command
    judged: ClassVar[str] = "predictions"  # the table that holds rows of every task which `judge` can judge
    tables: ClassVar[tuple[str, ...]] = ()  # the tables that `measure` returns

    @abstractmethod
    def measure(self, folder: RunFolder | None = None) -> Measured:
        """The only slow step. folder: where work may be saved that a resumed run should not repeat."""

    @abstractmethod
    def judge(self, measured: Measured, task: str) -> Verdict:
        """The verdict of one task, which has rows in the table `judged`. Pure."""

    @abstractmethod
    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """The evidence of one task, the most important first. Pure."""

    def note(self, measured: Measured) -> list[str]:
        """Sentences about this question that a reader should see. Pure."""
        return []

    def prepare(self) -> list[str]:
        """Check what can be checked without a heavy library; sentences on the cost of a run.

        Raises InputError for anything the user can fix.
        """
        return []

    def settings(self) -> dict[str, Any]:
        """The values that distinguish runs of this study, as plain JSON."""
        return self.model_dump(mode="json")

    def contents(self) -> dict[str, str]:
        """Digests of everything that `measure` reads and `settings` only names: data, models, code; by name.

        A run is resumed only where all of them are what they were.
        """
        return own_contents() | plugin_contents(self)

    def displayed_settings(self) -> dict[str, Any]:
        """The settings as the page lists them."""
        return self.model_dump(mode="json")

    @classmethod
    def name(cls) -> str:
        """The name of its answer, "fine_tuning" for FineTuning."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()

    @classmethod
    def can_judge(cls, measured: Measured) -> bool:
        """Whether a measurement, possibly of another study, has the tables that this question needs."""
        return cls.judged in measured.tables

    @classmethod
    def sharing(cls, other: Study) -> Self:
        """This study with the settings that it shares with another one."""
        shared = cls.model_fields.keys() & type(other).model_fields.keys()
        return cls(**{field: getattr(other, field) for field in shared})

    def ask(self, measured: Measured) -> str:
        """The question about what was measured."""
        return self.question

    def verdict(self, measured: Measured) -> Verdict:
        """The verdict over all tasks. Raises what `judge` raises."""
        return self._unite({task: self._judge_task(measured, task) for task in measured.tasks})

    def _unite(self, parts: Mapping[str, Verdict]) -> Verdict:
        return Verdict.over(parts, opening=self.opening, statements=self.statements)

    def answer(self, measured: Measured) -> Answer:
        """The answer to the question: verdict, evidence task by task, notes, settings and facts.

        A part that fails is replaced by a sentence that says so, and is among the `failures` of the answer.
        """
        failures: dict[str, Exception] = {}

        def attempt(what: str, part: Callable[[], T]) -> T | str:
            """The part of the answer, or a sentence on why it is missing."""
            try:
                return part()
            except Exception as error:  # the measurement must not be lost to any error
                reason = str(error) if isinstance(error, MissingEvidence) else f"{type(error).__name__}: {error}"
                sentence = f"{what}: {printable(reason)}."
                failures[sentence] = error
                return sentence

        parts, exhibits, notes = {}, [], []
        for task in measured.tasks:
            where = f" on {short(task)}" if short(task) else ""
            verdict = attempt(f"Not answered{where}", partial(self._judge_task, measured, task))
            parts[task] = verdict if isinstance(verdict, Verdict) else Verdict.unjudged(verdict)
            evidence = attempt(f"The evidence{where} cannot be shown", partial(self._show_task, measured, task))
            if isinstance(evidence, str):
                notes.append(evidence)
                evidence = _show_results(measured, task)
            exhibits += [replace(exhibit, section=short(task)) for exhibit in evidence if len(exhibit.table)]
        noted = attempt("The notes on this question are missing", partial(self.note, measured))
        notes += [noted] if isinstance(noted, str) else noted
        settings = {"Settings": _format_values(self.displayed_settings()), **_group_facts(measured.facts)}
        verdict = self._unite(parts)
        return Answer(
            self.ask(measured),
            self.claim,
            replace(verdict, advice=self._advise(parts)),
            tuple(exhibits),
            (*notes, *measured.notes),
            settings,
            failures,
        )

    def _judge_task(self, measured: Measured, task: str) -> Verdict:
        self._check_judged(measured, task)
        verdict = self.judge(measured, task)
        solvers = [name for name in measured.facts.get("solved", {}).get(task, ()) if name in self.rivals]
        if not solvers:
            return verdict
        names = " and ".join(name.replace("_", " ") for name in solvers)
        return verdict.left_out(f"by construction {short(task)} asks for what the baseline {names} reads")

    def _advise(self, parts: Mapping[str, Verdict]) -> str:
        """How many texts would decide what is undecided, and the command that takes them."""
        needs = {task: describe_need(part) for task, part in parts.items() if part.is_counted}
        needs = {task: need for task, need in needs.items() if need}
        if not needs:
            return ""
        decidable = {task: parts[task].times_needed for task in needs if parts[task].is_decidable}
        sentences = list(needs.values())
        if len(parts) > 1:
            sentences = [f"{short(task)}: {need[0].lower()}{need[1:]}" for task, need in needs.items()]
        if decidable:
            from clsprobe.analysis.advice import advise

            sentences.append(advise(self, self.name().replace("_", "-"), decidable))
        return " ".join(sentences)

    def _show_task(self, measured: Measured, task: str) -> list[Exhibit]:
        self._check_judged(measured, task)
        return self.show(measured, task)

    def _check_judged(self, measured: Measured, task: str) -> None:
        """Raise MissingEvidence for a task without rows in the table `judged`."""
        if measured.rows(self.judged, task).empty:
            raise MissingEvidence(f"nothing of it is in the table {self.judged}")

    def run(self, folder: RunFolder | None = None, *, others: Sequence[type[Study]] = ()) -> Finished:
        """Measure (into a folder, or only in memory) and answer. others: studies that the same measurement answers."""
        measured = self.measure() if folder is None else folder.measure(self, others)
        kinds = [kind for kind in (type(self), *others) if kind.can_judge(measured)] or [type(self)]
        studies = [self if kind is type(self) else kind.sharing(self) for kind in kinds]
        without_notes = replace(measured, notes=())  # notes on the whole measurement stand in the first answer only
        answers = correct_answers({s.name(): s.answer(without_notes if i else measured) for i, s in enumerate(studies)})
        tasks = ", ".join(filter(None, map(short, measured.tasks)))
        return Finished(answers, measured, f"{measured.facts['model']['model']} on {tasks}" if tasks else None)


def _show_results(measured: Measured, task: str) -> list[Exhibit]:
    """The numbers that were measured on the test texts of a task, where its evidence cannot be shown."""
    results = measured.tables.get("results")
    if results is None:
        return []
    numbers = results[(results.task == task) & (results.split == "test")]
    return [Exhibit("What was measured on test.", numbers.reset_index(drop=True))]


def short(task: str) -> str:
    """A task's name as a heading: without its source ("file:trec:coarse" -> "trec: coarse")."""
    return task.partition(":")[2].replace(":", ": ")


def counted(n: int, noun: str) -> str:
    """ "1 task", "2,000 texts"."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def _group_facts(facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Facts by the headings of the page."""
    rows = {
        f"{name}: {what}": value
        for part in ("read", "rows")
        for name, counts in facts[part].items()
        for what, value in counts.items()
    }
    return {"Rows": rows, "Model": _format_values(facts["model"]), "Versions": dict(facts["versions"])}


def _format_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """One line for every value; None and False are left out."""
    return {name: _format_value(value) for name, value in values.items() if value not in (None, False)}


def _format_value(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {v:.2g}" if isinstance(v, float) else f"{name} {v}" for name, v in value.items())
    return value
