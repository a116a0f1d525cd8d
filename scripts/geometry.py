"""What kind of space is it?

    clsprobe geometry --model ./my-bert --task file:reviews.csv

1. Labels are not needed: they only colour the maps. The texts are those that every readout can read, without copies.
2. Every cell is measured (analysis.geometry.measures): how similar the directions of different texts are, with and
   without the few coordinates that are many times as large as the others; how many directions the texts use; how long
   the vectors are; which cells they resemble.
3. The question is no yes-or-no question. The answer is a sentence about the last layer read, from which sentence
   vectors are usually taken: effective rank and mean cosine of [CLS] and of the mean, with 95 % intervals.
4. Maps show both by UMAP and by PCA. They are no evidence.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from clsprobe.analysis.answer import Exhibit
from clsprobe.analysis.corpus import Inputs, read_inputs
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.settings import FileOfVectors, LabelSettings, Names, Specs, VectorSettings
from clsprobe.analysis.study import Study, counted
from clsprobe.analysis.sweep.maps import SMALLEST
from clsprobe.analysis.verdict import MissingEvidence, Verdict, short
from clsprobe.probes.errors import InputError, escape_surrogates
from clsprobe.probes.extraction.readouts import parse_readouts

if TYPE_CHECKING:
    import pandas as pd

    from clsprobe.analysis.folder import RunFolder

PER_TOKEN = ("flatten", "attention")  # a vector for every token, not one for the text


class Geometry(VectorSettings, FileOfVectors, LabelSettings, Study):
    """What is the geometry of every cell: how many directions it uses, how narrow it is, what it resembles?"""

    question: ClassVar[str] = "What kind of space is it?"
    claim: ClassVar[str] = ""  # the answer describes
    opening: ClassVar[str] = "Effective ranks, and mean cosines of two texts without massive coordinates"
    judged: ClassVar[str] = "measured"
    tables: ClassVar[tuple[str, ...]] = ("measured", "projection", "rows")

    task: Specs = Field(("grammar:tense:2000",), description="SPEC of a task, whose texts are read; repeatable")
    readouts: Names = Field(
        ("cls", "sep", "token[1]", "token[-1]", "random", "mean", "max"),
        description="what to read at every layer; cls and mean are described in the answer",
    )
    at: int | None = Field(
        None, ge=0, le=1000, description="the layer that is described and drawn [default: the last one that is read]"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="moves --max-texts, what is drawn at random, the maps")

    def model_post_init(self, context: Any) -> None:
        """Raise InputError for a readout that is no single vector."""
        names = [readout.name for readout in parse_readouts(self.readouts)] if not self.vectors else []
        if per_token := [name for name in names if name.partition("[")[0] in PER_TOKEN]:
            raise InputError("--readouts", f"'{per_token[0]}' is no single vector of a text", "Leave it out")

    @cached_property
    def inputs(self) -> Inputs:
        """Texts and encoder, checked. Raises InputError; imports no torch."""
        inputs = read_inputs(self, seed=self.seed)
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

        return measure_geometry(self, self.inputs, layer=self.at)

    def judge(self, measured: Measured, task: str) -> Verdict:
        """Effective rank and mean cosines of the described readouts, as a sentence."""
        from clsprobe.analysis.geometry.exhibits import describe_cell, select_measure, summarise_cell
        from clsprobe.analysis.geometry.measures import choose_described

        rows = measured.rows(self.judged, task)
        layer = self._layer(rows)
        cells = rows[rows.layer == layer]
        described = choose_described(list(select_measure(cells, "self_similarity").readout.unique()))
        if not described:
            raise MissingEvidence(f"nothing was measured at layer {layer}")
        place, n = self._place(rows, layer), int(rows[rows.measure == "texts"].value.iloc[0])
        where = f"In {place} ({n:,} texts)" if self.vectors else f"On {short(rows.task.iloc[0])} ({n:,} texts, {place})"
        names = [self._names.get(readout, readout) for readout in described]
        if self.vectors and cells.readout.nunique() == 1:
            names = [""]
        clauses, briefs = (
            [describe(cells, *cell) for cell in zip(described, names, strict=True)]
            for describe in (describe_cell, summarise_cell)
        )
        brief = f"{short(rows.task.iloc[0])} {', '.join(briefs)}"
        about = "other texts of this kind, for this encoder (jackknife over the texts)"
        return Verdict.described(f"{where}: {'; '.join(clauses)}.", brief=brief, interval_of=about)

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """Cosines with and without massive coordinates, the other measures, the similarity of cells, the maps."""
        from clsprobe.analysis.geometry import exhibits

        rows = measured.rows("measured", task)
        layer = self._layer(rows)
        place = self._place(rows, layer)
        return [
            *exhibits.cosine_exhibits(rows, self._names),
            *exhibits.measure_exhibits(rows, layer, place),
            *exhibits.pair_exhibits(rows, layer, self._names, place),
            *exhibits.map_exhibits(measured.rows("projection", task)),
        ]

    def _layer(self, rows: pd.DataFrame) -> int:
        """The layer that is described."""
        return int(rows.layer.max()) if self.at is None else self.at

    @property
    def _names(self) -> dict[str, str]:
        """Readout -> how a reader calls it; a file's readouts as the file does."""
        return {} if self.vectors else {"cls": "[CLS]"}

    def _place(self, rows: pd.DataFrame, layer: int) -> str:
        """What is described, in words: a layer, or a file of vectors, whose layer is named if it has several."""
        if not self.vectors:
            return f"layer {layer}"
        name = escape_surrogates(Path(self.vectors).name)
        return name if rows[rows.layer >= 0].layer.nunique() == 1 else f"layer {layer} of {name}"


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["geometry"])
