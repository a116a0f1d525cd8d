"""What kind of space is it?

    clsprobe geometry --model ./my-bert --task file:reviews.csv

1. Labels are not needed: they only colour the maps. The texts are those that every readout can read, without copies.
2. Every cell is measured (analysis.geometry.measures): how similar the directions of different texts are, compared with
   two random tokens of that layer; how many directions they use; how long they are; which cells they resemble.
3. The verdict is about one number: how much wider [CLS] of different texts is spread than the mean of their tokens, at
   the last layer read, from which sentence vectors are usually taken. Its interval is a paired bootstrap.
4. Maps show [CLS] and mean of that layer, by UMAP and by PCA. They are no evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from clsprobe.analysis.corpus import Inputs, read_inputs
from clsprobe.analysis.settings import FileOfVectors, LabelSettings, Names, Specs, VectorSettings
from clsprobe.analysis.study import Exhibit, Measured, Study, counted, short
from clsprobe.analysis.sweep.maps import SMALLEST
from clsprobe.analysis.verdict import MissingEvidence, Verdict
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import parse_readouts

if TYPE_CHECKING:
    import pandas as pd

    from clsprobe.analysis.folder import RunFolder

PER_TOKEN = ("flatten", "attention")  # a vector for every token, not one for the text


class Geometry(VectorSettings, FileOfVectors, LabelSettings, Study):
    """What is the geometry of every cell, and is [CLS] spread as widely as the mean?"""

    question: ClassVar[str] = "What kind of space is it?"
    claim: ClassVar[str] = (
        "[CLS] of different texts is spread at least as widely as the mean of their tokens: the mean cosine of two "
        "texts is higher by no more than 0.05"
    )
    margin: ClassVar[float] = 0.05
    judged: ClassVar[str] = "measured"
    tables: ClassVar[tuple[str, ...]] = ("measured", "projection")

    task: Specs = Field(("grammar:tense:2000",), description="SPEC of a task, whose texts are read; repeatable")
    readouts: Names = Field(
        ("cls", "sep", "token[1]", "token[-1]", "random", "mean", "max"),
        description="what to read at every layer: cls, mean, and what to see beside them",
    )
    at: int | None = Field(
        None, ge=0, le=1000, description="the layer that is judged and drawn [default: the last one that is read]"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="moves --max-texts, what is drawn at random, the maps")

    def model_post_init(self, context: Any) -> None:
        """Raise InputError without cls and mean, or for a readout that is no single vector."""
        names = [readout.name for readout in parse_readouts(self.readouts)]
        if not self.vectors and not self.comparable(names):
            raise InputError("--readouts", "this study compares cls with mean", "Name cls and mean")
        if per_token := [name for name in names if name.partition("[")[0] in PER_TOKEN]:
            raise InputError("--readouts", f"'{per_token[0]}' is no single vector of a text", "Leave it out")

    @staticmethod
    def comparable(readouts: Sequence[str]) -> bool:
        """Both sides of the claim are among the readouts."""
        return {"cls", "mean"} <= set(readouts)

    @cached_property
    def inputs(self) -> Inputs:
        """Texts and encoder, checked. Raises InputError; imports no torch."""
        inputs = read_inputs(self, seed=self.seed, comparable=self.comparable)
        for task in inputs.tasks:
            if len(task.texts) < SMALLEST:
                what = f"holds {counted(len(task.texts), 'text')}, too few"
                raise InputError(task.name, what, f"Give {SMALLEST} or more")
        if self.at is not None and self.at not in inputs.layers:
            layers = ", ".join(map(str, inputs.layers))
            raise InputError(f"--at {self.at}", "this layer is not read", f"Name one of {layers}")
        return inputs

    def contents(self) -> dict[str, str]:
        """Digests of data, encoder or vectors, and code."""
        return super().contents() | self.inputs.contents

    def prepare(self) -> list[str]:
        """Read and check the inputs; describe the run."""
        from clsprobe.analysis.sweep.plan import describe_sweep

        return describe_sweep(self.inputs)

    def measure(self, folder: RunFolder | None = None) -> Measured:
        """The tables measured (analysis.geometry.measures) and projection (the maps), of all tasks."""
        from clsprobe.analysis.geometry.measure import measure_geometry

        return measure_geometry(self, self.inputs, map_layer=self.at)

    def judge(self, rows: pd.DataFrame) -> Verdict:
        """Cosine of the means minus cosine of [CLS]: yes if its interval lies above -margin, no if below."""
        layer = self._layer(rows)
        cells = rows[rows.layer == layer]
        if missing := sorted({"cls", "mean"} - set(cells[cells.measure == "self_similarity"].readout)):
            raise MissingEvidence(f"{' and '.join(missing)} was not measured at layer {layer}")
        cosine, coordinate = (
            cells[cells.measure == name].set_index("readout").value for name in ("self_similarity", "coordinate")
        )
        difference = cells[(cells.measure == "difference") & (cells.readout == "mean")].iloc[0]
        tokens = f"; two random tokens have {cosine['random']:.3f}" if "random" in cosine else ""
        because = (
            f"On {short(rows.task.iloc[0])}, layer {layer}, [CLS] of two texts has a mean cosine of "
            f"{cosine['cls']:.3f}, of which one single coordinate brings {coordinate['cls']:.3f}; their mean has "
            f"{cosine['mean']:.3f}, of which one brings {coordinate['mean']:.3f}{tokens}."
        )
        return Verdict.described(because, difference.value, difference.low, difference.high)

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """The judged difference at every layer, the measures over the layers, the similarity of cells, the maps."""
        from clsprobe.analysis.geometry import exhibits

        rows = measured.rows("measured", task)
        layer = self._layer(rows)
        return [
            *exhibits.difference_exhibits(rows, self.margin),
            *exhibits.measure_exhibits(rows, layer),
            *exhibits.pair_exhibits(rows, layer),
            *exhibits.map_exhibits(measured.rows("projection", task)),
        ]

    def _layer(self, rows: pd.DataFrame) -> int:
        """The layer that is judged."""
        return int(rows.layer.max()) if self.at is None else self.at


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["geometry"])
