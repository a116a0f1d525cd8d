"""From a table to an answer: `Study`.

1. A `Study` asks one question. Its fields are its settings (and its flags on the command line).
2. `measure` is its only slow step and returns `Measured` tables; `judge` and `show` are pure functions of these, for
   one task at a time. Uniting tasks, ordering exhibits and resuming are written once, here and in `analysis.folder`.
3. `run` measures and answers; its `Result` is looked at, saved, or made a page of.
4. A question that the measurement cannot answer for a task (`MissingEvidence`, or any error of `judge`, `show` and
   `note`) costs that part of its answer only, which says so: what was measured is never lost.

Imports neither torch nor scikit-learn.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from clsprobe.analysis.answer import Answer, Exhibit, correct_answers
from clsprobe.analysis.contents import own_contents, plugin_contents
from clsprobe.analysis.folder import RunFolder
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.registers import STUDIES, further_studies
from clsprobe.analysis.result import Result, open_folder
from clsprobe.analysis.settings import describe_invalid
from clsprobe.analysis.verdict import MissingEvidence, Outcome, Verdict, describe_need, short
from clsprobe.probes.errors import InputError, describe_error, printable
from clsprobe.probes.plugins import PluginError, contain, undo_changes

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


class Study(BaseModel, ABC):
    """One question about an encoder. Its fields are the flags of a command: that of its name among `STUDIES`, or of
    ``package.module:Name``.

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
    aliases: ClassVar[tuple[str, ...]] = ()  # other names of its command, for a study of clsprobe's own
    further: ClassVar[tuple[str, ...]] = ()  # commands of other studies that its measurement can answer
    judged: ClassVar[str] = "predictions"  # the table that holds rows of every task which `judge` can judge
    tables: ClassVar[tuple[str, ...]] = ()  # the tables that `measure` returns

    @model_validator(mode="wrap")
    @classmethod
    def _check_values(cls, values: Any, handler: Callable[[Any], Self]) -> Self:
        """Raise InputError that names the setting for the first value that does not fit."""
        try:
            return handler(values)
        except ValidationError as error:
            raise describe_invalid(cls, error) from None

    def __repr_args__(self) -> Iterable[tuple[str, Any]]:
        """The settings that differ from their defaults, for a short `repr`."""
        return [(name, value) for name, value in self if value != type(self).model_fields[name].default]

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
    def command(cls) -> str:
        """The name of its command, "fine-tuning" for FineTuning; ``package.module:Name`` where none is registered."""
        return STUDIES.name_of(cls)

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
                with contain(), undo_changes():  # the study may be of another package
                    return part()
            except PluginError as failure:  # the measurement must not be lost to any error
                error = failure.__cause__ if isinstance(failure.__cause__, Exception) else failure
                reason = str(error if isinstance(error, MissingEvidence) else failure)
            except InputError as refusal:
                error, reason = refusal, describe_error(refusal)
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

            sentences.append(advise(self, self.command(), decidable))
        return " ".join(sentences)

    def _show_task(self, measured: Measured, task: str) -> list[Exhibit]:
        self._check_judged(measured, task)
        return self.show(measured, task)

    def _check_judged(self, measured: Measured, task: str) -> None:
        """Raise MissingEvidence for a task without rows in the table `judged`."""
        if measured.rows(self.judged, task).empty:
            raise MissingEvidence(f"nothing of it is in the table {self.judged}")

    def choose_cells(self, measured: Measured) -> pd.DataFrame:
        """The cells that dev chose (`Result.chosen`); empty for a study that chooses none."""
        import pandas as pd

        return pd.DataFrame()

    def run(
        self,
        folder: RunFolder | Path | str | None = None,
        *,
        overwrite: bool = False,
        others: Sequence[type[Study]] | None = None,
    ) -> Result:
        """Measure and answer, in memory or into the folder of a run.

        folder: where everything is written, page included; the same call goes on with a run that was interrupted.
        overwrite: replaces a finished run there. others: further studies that the same measurement answers, by default
        those of `further`.
        Raises InputError for anything the user can fix.
        """
        if others is None:
            others = further_studies(type(self))
        if isinstance(folder, (str, Path)):
            folder = open_folder(self, folder, overwrite=overwrite)
        if folder is None:
            contents: Mapping[str, str] = self.contents()  # before it is measured
            measured = self.measure()
        else:
            measured = folder.measure(self, others)
            contents = folder.contents
        kinds = [kind for kind in (type(self), *others) if kind.can_judge(measured)] or [type(self)]
        studies = [self if kind is type(self) else kind.sharing(self) for kind in kinds]
        without_notes = replace(measured, notes=())  # notes on the whole measurement stand in the first answer only
        answers = correct_answers({s.name(): s.answer(without_notes if i else measured) for i, s in enumerate(studies)})
        tasks = ", ".join(filter(None, map(short, measured.tasks)))
        title = f"{measured.facts['model']['model']} on {tasks}" if tasks else None
        result = Result(self, answers, measured, contents, title)
        return result if folder is None else result.write(folder)


def _show_results(measured: Measured, task: str) -> list[Exhibit]:
    """The numbers that were measured on the test texts of a task, where its evidence cannot be shown."""
    results = measured.tables.get("results")
    if results is None:
        return []
    numbers = results[(results.task == task) & (results.split == "test")]
    return [Exhibit("What was measured on test.", numbers.reset_index(drop=True))]


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
