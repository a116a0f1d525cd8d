"""Does flattening destroy order? Which readouts keep it?

    clsprobe order --task grammar:word_order

1. The tasks can only be solved by who sees the order of the words: a bag of words is at chance on them.
2. Every readout is probed at every layer: [CLS], mean and max, a pooling that is learned (attention), all tokens one
   after another (flatten), and these through a fixed random projection to the size of one vector, so that capacity is
   matched. Layer 0 shows what the readout itself does to order, before any block has mixed the words.
3. A readout keeps order where it tells more than the best baseline that sees none, at the layer that dev chooses, over
   the same test texts. The verdict is about the flattened tokens at matched capacity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from clsprobe.analysis.study import Exhibit, Verdict
from clsprobe.compare import AgainstCls
from clsprobe.run import Names, Specs, short

if TYPE_CHECKING:
    import pandas as pd

    from clsprobe.analysis.sweep.choose import Chosen

BLIND = ("majority", "length", "bag_of_words", "layer0_mean")
FLAT = ("flatten_projected", "flatten")  # the first that was read is judged


class Order(AgainstCls):
    """Which readouts keep the order of the words."""

    question: ClassVar[str] = "Does flattening destroy order? Which readouts keep it?"
    claim: ClassVar[str] = (
        "Flattened tokens keep word order: projected to the size of one vector, they tell more of it than the best "
        "baseline that sees no order"
    )
    margin: ClassVar[float] = 0.0
    beside_untrained: ClassVar[bool] = False  # it sees order too

    task: Specs = Field(
        ("grammar:bigram_shift:2400", "grammar:word_order:2400"),
        description="SPEC of a task that only order solves; repeatable",
    )
    layers: str = Field("0,2,4,6", description="all, 0,3,6 or 1-12; 0 is the embedding output")
    readouts: Names = Field(
        ("cls", "mean", "max", "attention", "flatten", "flatten_projected"), description="what to compare"
    )

    @classmethod
    def rivals(cls, readouts: list[str]) -> list[str]:
        """The flattened tokens."""
        return [name for name in FLAT if name in readouts]

    @classmethod
    def shown(cls, readouts: list[str]) -> list[str]:
        """All others."""
        return [name for name in readouts if name != "cls"]

    def judge(self, table: pd.DataFrame) -> Verdict:
        """The flattened tokens minus the best order-blind baseline, both chosen on dev."""
        from clsprobe.analysis.sweep.choose import chosen_cell

        parts = {}
        for task in table.task.unique():
            rows = self.judged(table[table.task == task])
            subject = next(name for name in FLAT if name in set(rows.readout))
            parts[task] = self._kept(rows, chosen_cell(rows, subject), str(task))
        return Verdict.over(parts)

    def _kept(self, rows: pd.DataFrame, cell: Chosen, task: str) -> Verdict:
        """Whether one cell tells more than the best baseline that sees no order."""
        from clsprobe.analysis.sweep.choose import chosen_cell, difference

        found = [chosen_cell(rows, None, control) for control in BLIND if (rows.control == control).any()]
        blind = max(found, key=lambda chosen: chosen.dev)
        because = f"On {short(task)}, {cell.does}, the best baseline without order ({blind.told}) {blind.test:.3f}."
        return Verdict.decide(because, *difference(rows, cell.where, blind.where), threshold=self.margin)

    def show(self, table: pd.DataFrame) -> tuple[Exhibit, ...]:
        """For every task what each readout keeps, at its best layer and at layer 0, and the curves."""
        from clsprobe.analysis.sweep.choose import chosen_cell

        exhibits = []
        for task in table.task.unique():
            rows = self.judged(table[table.task == task])
            read = rows[rows.control == "none"]
            names = [str(name) for name in read.readout.unique()]
            places = [("at the layer that dev chooses", rows)]
            if 0 in set(read.layer):
                places.append(("at layer 0, before any block has mixed the words", rows[rows.layer <= 0]))
            for where, some in places:
                cells = [chosen_cell(some, name) for name in names]
                exhibits.append(
                    Exhibit(
                        f"Who keeps order, {where}: {cells[0].metric} minus that of the best baseline that sees none, "
                        f"over the same test texts, with 95 % intervals.",
                        self._differences(some, cells, str(task)),
                        "differences",
                        {"margin": self.margin, "metric": cells[0].metric},
                        short(task),
                    )
                )
        curves = [exhibit for exhibit in super().show(table) if exhibit.plot == "curves"]
        sections = [exhibit.section for exhibit in exhibits]
        return tuple(sorted([*exhibits, *curves], key=lambda exhibit: sections.index(exhibit.section)))

    def _differences(self, rows: pd.DataFrame, cells: list[Chosen], task: str) -> pd.DataFrame:
        import pandas as pd

        kept = [(cell.told, self._kept(rows, cell, task)) for cell in cells]
        found = [(told, verdict.effect, verdict.low, verdict.high, verdict.outcome) for told, verdict in kept]
        return pd.DataFrame(found, columns=["name", "effect", "low", "high", "outcome"])

    def note(self, table: pd.DataFrame) -> list[str]:
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
