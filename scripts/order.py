"""Does flattening destroy order? Which readouts keep it?

    clsprobe order --task grammar:word_order

1. The tasks cannot be solved without word order: a bag of words is at chance.
2. Every readout is probed at every layer: [CLS], mean and max, a learned pooling (attention), all tokens concatenated
   (flatten), and these after a fixed random projection to the size of one vector, so that capacity is matched. Layer 0
   shows what the readout itself does to order, before any block has mixed the words.
3. A readout keeps order if it tells more than the best order-blind baseline, at the layer chosen on dev, on the same
   test texts. The verdict is about the flattened tokens at matched capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from clsprobe.analysis.settings import Names, Specs
from clsprobe.analysis.study import Exhibit, Measured, Verdict, short
from clsprobe.analysis.sweep.study import SweepStudy, read_readouts

if TYPE_CHECKING:
    import pandas as pd

    from clsprobe.analysis.sweep.choose import ChosenCell

ORDER_BLIND = ("majority", "length", "bag_of_words", "layer0_mean")
FLATTENED = ("flatten_projected", "flatten")  # the first of them that was read is judged


class Order(SweepStudy):
    """Which readouts keep word order?"""

    question: ClassVar[str] = "Does flattening destroy order? Which readouts keep it?"
    claim: ClassVar[str] = (
        "Flattened tokens keep word order: projected to the size of one vector, they tell more of it than the best "
        "baseline that sees no order"
    )
    margin: ClassVar[float] = 0.0
    untrained: ClassVar[bool] = False  # an untrained encoder sees order too

    task: Specs = Field(
        ("grammar:bigram_shift:2400", "grammar:word_order:2400"),
        description="SPEC of a task that only order solves; repeatable",
    )
    layers: str = Field("0,2,4,6", description="all, 0,3,6 or 1-12; 0 is the embedding output")
    readouts: Names = Field(
        ("cls", "mean", "max", "attention", "flatten", "flatten_projected"), description="what to compare"
    )

    @classmethod
    def comparable(cls, readouts: Sequence[str]) -> bool:
        """[CLS] and the flattened tokens."""
        return "cls" in readouts and any(name in readouts for name in FLATTENED)

    def judge(self, rows: pd.DataFrame) -> Verdict:
        """The flattened tokens minus the best order-blind baseline, both chosen on dev."""
        from clsprobe.analysis.sweep.choose import choose_layer

        rows = self.judged_rows(rows)
        flattened = [name for name in FLATTENED if name in read_readouts(rows)]
        return self._judge_cell(rows, choose_layer(rows, flattened[0] if flattened else FLATTENED[0]))

    def _judge_cell(self, rows: pd.DataFrame, cell: ChosenCell) -> Verdict:
        """One cell minus the best order-blind baseline."""
        from clsprobe.analysis.sweep.choose import best_baseline, difference

        blind = best_baseline(rows, ORDER_BLIND)
        because = (
            f"On {short(rows.task.iloc[0])}, {cell.statement}, the best baseline without order ({blind.name}) "
            f"{blind.test:.3f}."
        )
        return Verdict.decide(because, *difference(rows, cell.where, blind.where), threshold=self.margin)

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """The difference of each readout from the baseline, at its best layer and at layer 0, and the curves."""
        from clsprobe.analysis.sweep.choose import choose_layer
        from clsprobe.analysis.sweep.exhibits import curves_exhibit

        rows = self.judged_rows(measured.rows("predictions", task))
        comparisons = [
            ("at the layer that dev chooses", rows),
            ("at layer 0, before any block has mixed the words", rows[rows.layer <= 0]),
        ]
        exhibits = []
        for where, subset in comparisons:
            cells = [choose_layer(subset, readout) for readout in read_readouts(subset)]
            if not cells:
                continue
            exhibits.append(
                Exhibit(
                    f"Who keeps order, {where}: {cells[0].metric} minus that of the best baseline that sees none, over "
                    f"the same test texts, with 95 % intervals.",
                    self._compare_cells(subset, cells),
                    "differences",
                    {"margin": self.margin, "metric": cells[0].metric},
                )
            )
        return [*exhibits, curves_exhibit(rows, read_readouts(rows), choose_layer(rows, None))]

    def _compare_cells(self, rows: pd.DataFrame, cells: list[ChosenCell]) -> pd.DataFrame:
        import pandas as pd

        verdicts = [(cell.name, self._judge_cell(rows, cell)) for cell in cells]
        differences = [(name, v.effect, v.low, v.high, v.outcome) for name, v in verdicts]
        return pd.DataFrame(differences, columns=["name", "effect", "low", "high", "outcome"])

    def note(self, measured: Measured) -> list[str]:
        """What the readouts can and cannot show."""
        return [
            "Flatten keeps order by construction: a word's place is its index. It has as many numbers as 32 "
            "tokens, the projection as many as one.",
            "Above layer 0 every token has seen its neighbours, so that a mean of tokens may tell of order, though "
            "averaging forgets it. Layer 0 shows the readout alone.",
        ]


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["order"])
