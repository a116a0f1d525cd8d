"""How does [CLS] learn?

    clsprobe trajectory --checkpoints ./step-0,./step-1000,./step-5000 --task file:reviews.csv

Several models, checkpoints of one training in order, are probed at every layer on the same texts: what each layer gains
and loses, and how far it moves. `clsprobe fine-tuning` answers the question for its own training.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from clsprobe.analysis.answer import Exhibit
from clsprobe.analysis.contents import model_contents
from clsprobe.analysis.corpus import Corpus, check_classes, read_corpus
from clsprobe.analysis.fine_tuning.checkpoints import describe_checkpoints
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.settings import Names, ReadingSettings, Specs, TaskSettings
from clsprobe.analysis.study import Study, counted
from clsprobe.analysis.verdict import MissingEvidence, Outcome, Part, Verdict, points, short, warn_of_few_texts
from clsprobe.probes.encoders.describing import Description
from clsprobe.probes.encoders.devices import check_device
from clsprobe.probes.tasks.split import split

if TYPE_CHECKING:
    from clsprobe.analysis.folder import RunFolder

CANNOT = (
    "CKA compares the similarities of texts to each other: 1 where they are what they were at the start, whatever the "
    "turning and scaling. A probe that gains says that a label is easier to read off, not that it was unknown before."
)


class Trajectory(ReadingSettings, TaskSettings, Study):
    """What do the layers gain and lose during training?"""

    question: ClassVar[str] = "How does [CLS] learn?"
    claim: ClassVar[str] = "At the end, a linear probe on [CLS] at the last layer tells more than at the start"
    margin: ClassVar[float] = 0.0
    opening: ClassVar[str] = "What a linear probe on the last layer gains from the start of the training to its end"
    statements: ClassVar[Mapping[Outcome, str]] = {"yes": "a gain", "no": "a loss", "undecided": "no certain change"}
    judged: ClassVar[str] = "trajectory"
    tables: ClassVar[tuple[str, ...]] = ("trajectory", "rows")

    task: Specs = Field(("grammar:tense",), description="SPEC of a task: grammar:tense, file:PATH ...; repeatable")
    checkpoints: Names = Field((), description="the models, in their order: two or more folders or hub names")
    train_texts: int = Field(2000, ge=32, le=10**9, description="at most so many training texts, half as many of dev")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="moves carved splits, and which texts are taken")

    @cached_property
    def corpus(self) -> Corpus:
        """Tasks and checkpoints, checked. Raises InputError; imports no torch."""
        check_device(self.device)
        corpus = read_corpus(self, seed=self.seed, encoder=next(iter(self.models.values())))
        check_classes(corpus.tasks)
        for task in corpus.tasks:
            split(task, seed=self.seed, allow_overlap=self.allow_overlap)
        return corpus

    @cached_property
    def models(self) -> dict[str, Description]:
        """The descriptions of the checkpoints, by name. Raises InputError."""
        return describe_checkpoints(self.checkpoints)

    def contents(self) -> dict[str, str]:
        """Digests of data, checkpoints and code."""
        return super().contents() | self.corpus.contents | model_contents(self.models.values())

    def prepare(self) -> list[str]:
        """Read and check the inputs; describe the run."""
        tasks = [f"{task.name}: {len(task.texts):,} texts, {len(set(task.y))} classes" for task in self.corpus.tasks]
        return [*tasks, f"{counted(len(self.checkpoints), 'checkpoint')}, probed at every layer"]

    def measure(self, folder: RunFolder | None = None) -> Measured:
        """Probe every checkpoint."""
        from clsprobe.analysis.fine_tuning.measure import measure_checkpoints

        return measure_checkpoints(self, self.corpus, self.models, self.train_texts)

    def judge(self, measured: Measured, task: str) -> Verdict:
        """[CLS] (mean if there is none) at the last layer, last checkpoint minus first, on the same test texts."""
        rows = measured.rows(self.judged, task)
        readout, name = ("cls", "[CLS]") if (rows.readout == "cls").any() else ("mean", "mean")
        cells = rows[(rows.readout == readout) & (rows.layer == rows.layer.max())].sort_values("order")
        if cells.empty:
            raise MissingEvidence("neither [CLS] nor mean was probed")
        start, end = cells.iloc[0], cells.iloc[-1]
        task = short(rows.task.iloc[0])
        part = Part.from_interval(f"{name} at the start", end.gain, end.gain_low, end.gain_high, self.margin)

        def say(outcome: Outcome, part: Part) -> str:
            if outcome == "yes":
                what = f"is easier to read at the end of the training than at the start, by {_format_points(part)}"
            elif outcome == "no":
                what = f"is harder to read at the end of the training than at the start, by {_format_points(part, -1)}"
            else:
                change = f"{points(part.effect, True)} points, {points(part.low, True)} to {points(part.high, True)}"
                what = (
                    f"is not certainly easier or harder to read at the end of the training than at the start ({change})"
                )
            return (
                f"on {task}, the label {what}, by a linear probe on {name} of layer {end.layer}: it gets "
                f"{start.value:.3f} of the test texts right at the start and {end.value:.3f} at the end; the CKA of "
                f"{name} with its start is {end.cka:.2f} (1: unchanged but for rotation and scale)"
            )

        brief = f"{task} {points(part.effect, True)} points ({points(part.low, True)} to {points(part.high, True)})"
        warnings = warn_of_few_texts(int(end.texts), task)
        about = "these probes as they were fitted, over the test texts"
        return Verdict.of(
            [part], say, is_open=True, brief=brief, texts=int(end.texts), warnings=warnings, interval_of=about
        )

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """The layers over the checkpoints, for every readout."""
        from clsprobe.analysis.fine_tuning.exhibits import trajectory_exhibits

        return trajectory_exhibits(measured.rows("trajectory", task))

    def note(self, measured: Measured) -> list[str]:
        """What CKA and a probe's gain say."""
        return [CANNOT]


def _format_points(part: Part, sign: int = 1) -> str:
    low, high = sorted((sign * part.low, sign * part.high))
    return f"{points(sign * part.effect)} points ({points(low)} to {points(high)})"


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["trajectory"])
