"""Is [CLS] an aggregate of the sentence?

    clsprobe aggregate --task file:reviews.csv

An aggregate would hold what the words say together: more than a bag of words, the length or an untrained encoder tell,
and no less than the mean over all tokens does. Both are asked over the same test texts, at the layers that dev chooses;
the verdict is yes where both hold, no where one fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from clsprobe.analysis.study import Exhibit, Verdict
from clsprobe.compare import AgainstCls
from clsprobe.run import Names, short

if TYPE_CHECKING:
    import pandas as pd


class Aggregate(AgainstCls):
    """Whether [CLS] holds more than the baselines and no less than the mean."""

    question: ClassVar[str] = "Is [CLS] really an aggregate of the whole sequence?"
    claim: ClassVar[str] = (
        "[CLS] tells more about the text than the best baseline does, and no less than mean does (by 2 points)"
    )
    margin: ClassVar[float] = 0.02

    readouts: Names = Field(("cls", "mean"), description="cls and mean; others are shown beside them")

    @classmethod
    def rivals(cls, readouts: list[str]) -> list[str]:
        """Mean: an aggregate by construction."""
        return [name for name in readouts if name == "mean"]

    @classmethod
    def shown(cls, readouts: list[str]) -> list[str]:
        """All others."""
        return [name for name in readouts if name != "cls"]

    def judge(self, table: pd.DataFrame) -> Verdict:
        """Both parts, task by task; the effect is that of the part that decides."""
        parts = {}
        for task in table.task.unique():
            rows = self.judged(table[table.task == task])
            parts[task] = self._both(rows, str(task))
        return Verdict.over(parts)

    def _both(self, rows: pd.DataFrame, task: str) -> Verdict:
        from clsprobe.analysis.sweep.choose import best_baseline, chosen_cell, difference

        cls = chosen_cell(rows, "cls")
        verdicts = []
        for other, threshold in ((best_baseline(rows), 0.0), (chosen_cell(rows, "mean"), -self.margin)):
            because = f"On {short(task)}, {cls.does}, {other.told} {other.test:.3f}."
            told = difference(rows, cls.where, other.where)
            verdicts.append(Verdict.decide(because, *told, threshold=threshold))
        order = ("no", "undecided", "yes")
        return min(verdicts, key=lambda verdict: order.index(verdict.outcome))

    def show(self, table: pd.DataFrame) -> tuple[Exhibit, ...]:
        """For every task [CLS] layer by layer against the best baseline and against mean, and the curves."""
        from clsprobe.analysis.sweep.choose import chosen_cell

        exhibits = []
        for task in table.task.unique():
            rows = self.judged(table[table.task == task])
            metric = chosen_cell(rows, "cls").metric
            exhibits.append(
                Exhibit(
                    f"[CLS] of every layer, over the same test texts: its {metric} minus that of the best baseline, "
                    "and minus that of the mean of the same layer, with 95 % intervals.",
                    self._by_layer(rows),
                    "differences",
                    {"margin": self.margin, "metric": metric},
                    short(task),
                )
            )
        curves = [exhibit for exhibit in super().show(table) if exhibit.plot == "curves"]
        sections = [exhibit.section for exhibit in exhibits]
        return tuple(sorted([*exhibits, *curves], key=lambda exhibit: sections.index(exhibit.section)))

    def _by_layer(self, rows: pd.DataFrame) -> pd.DataFrame:
        from clsprobe.analysis.sweep.choose import best_baseline, difference

        baseline, probe, found = best_baseline(rows), self._judge_of(rows), []
        for layer in sorted(rows[(rows.control == "none") & (rows.readout == "cls")].layer.unique()):
            own = {"control": "none", "layer": int(layer), "readout": "cls", "probe": probe}
            rivals = ((baseline.where, baseline.told, 0.0), (own | {"readout": "mean"}, "mean", -self.margin))
            for where, told, threshold in rivals:
                effect = difference(rows, own, where)
                outcome = Verdict.decide("", *effect, threshold=threshold).outcome
                found.append((f"layer {layer} minus {told}", *effect, outcome))
        import pandas as pd

        return pd.DataFrame(found, columns=["name", "effect", "low", "high", "outcome"])


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["aggregate"])
