"""How does [CLS] learn?

    clsprobe trajectory --checkpoints ./step-0,./step-1000,./step-5000 --task file:reviews.csv

Several models, checkpoints of one training in order, are probed at every layer on the same texts: what each layer gains
and loses, and how far it moves. `clsprobe fine-tuning` answers the question for its own training.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from clsprobe.analysis.contents import model_contents
from clsprobe.analysis.corpus import Corpus, check_classes, read_corpus
from clsprobe.analysis.fine_tuning.checkpoints import describe_checkpoints
from clsprobe.analysis.settings import Names, ReadingSettings, Specs, TaskSettings
from clsprobe.analysis.study import Exhibit, Measured, Study, counted, short
from clsprobe.analysis.verdict import MissingEvidence, Part, Verdict
from clsprobe.probes.encoders.describing import Description
from clsprobe.probes.encoders.devices import check_device
from clsprobe.probes.tasks.split import split

if TYPE_CHECKING:
    import pandas as pd

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
    judged: ClassVar[str] = "trajectory"
    tables: ClassVar[tuple[str, ...]] = ("trajectory",)

    task: Specs = Field(("grammar:tense",), description="SPEC of a task: grammar:tense, file:PATH ...; repeatable")
    checkpoints: Names = Field((), description="the models, in their order: two or more folders or hub names")
    train_texts: int = Field(2000, ge=32, le=10**9, description="at most so many training texts, half as many of dev")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="moves carved splits, and which texts are taken")

    @cached_property
    def corpus(self) -> Corpus:
        """Tasks and checkpoints, checked. Raises InputError; imports no torch."""
        check_device(self.device)
        self.models  # noqa: B018 - checked before any text is read
        corpus = read_corpus(self, seed=self.seed)
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

    def judge(self, rows: pd.DataFrame) -> Verdict:
        """[CLS] (mean if there is none) at the last layer, last checkpoint minus first, on the same test texts."""
        readout, name = ("cls", "[CLS]") if (rows.readout == "cls").any() else ("mean", "mean")
        cells = rows[(rows.readout == readout) & (rows.layer == rows.layer.max())].sort_values("order")
        if cells.empty:
            raise MissingEvidence("neither [CLS] nor mean was probed")
        start, end = cells.iloc[0], cells.iloc[-1]
        because = (
            f"On {short(rows.task.iloc[0])}, {name} at layer {end.layer} is read at {start.value:.3f} at the start and "
            f"at {end.value:.3f} at the end; its CKA with the start is {end.cka:.2f}."
        )
        part = Part.from_interval("the start", end.gain, end.gain_low, end.gain_high, self.margin)
        return Verdict.of([part], lambda outcome, part: because.removesuffix("."), is_open=True)

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """The layers over the checkpoints, for every readout."""
        from clsprobe.analysis.fine_tuning.exhibits import trajectory_exhibits

        return trajectory_exhibits(measured.rows("trajectory", task))

    def note(self, measured: Measured) -> list[str]:
        """What CKA and a probe's gain say."""
        return [CANNOT]


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["trajectory"])
