"""Is [CLS] an aggregate of the sentence?

    clsprobe aggregate --task file:reviews.csv

An aggregate would hold what the words say together: more than a bag of words, the length or an untrained encoder tell,
and no less than the mean over all tokens does. Both are asked over the same test texts, at the layers that dev chooses;
the verdict is yes where both hold, no where one fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from analysis.study import Exhibit, Verdict
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
        from analysis import stats
        from analysis.choose import best_baseline, chosen_cell

        cls = chosen_cell(rows, "cls")
        verdicts = []
        for other, threshold in ((best_baseline(rows), 0.0), (chosen_cell(rows, "mean"), -self.margin)):
            sides = (stats.correct(rows, **cell.where) for cell in (cls, other))
            because = (
                f"On {short(task)}, {cls.told} gets {cls.test:.3f} of the test texts right, {other.told} "
                f"{other.test:.3f}."
            )
            verdicts.append(Verdict.decide(because, *stats.paired_difference(*sides), threshold=threshold))
        order = ("no", "undecided", "yes")
        return min(verdicts, key=lambda verdict: order.index(verdict.outcome))

    def show(self, table: pd.DataFrame) -> tuple[Exhibit, ...]:
        """For every task [CLS] layer by layer against the best baseline and against mean, and the curves."""
        exhibits = []
        for task in table.task.unique():
            rows = self.judged(table[table.task == task])
            exhibits.append(
                Exhibit(
                    "[CLS] of every layer, over the same test texts: its accuracy minus that of the best baseline, and "
                    "minus that of the mean of the same layer, with 95 % intervals.",
                    self._by_layer(rows),
                    "differences",
                    {"margin": self.margin, "metric": "accuracy"},
                    short(task),
                )
            )
        curves = [exhibit for exhibit in super().show(table) if exhibit.plot == "curves"]
        sections = [exhibit.section for exhibit in exhibits]
        return tuple(sorted([*exhibits, *curves], key=lambda exhibit: sections.index(exhibit.section)))

    def _by_layer(self, rows: pd.DataFrame) -> pd.DataFrame:
        from analysis import stats
        from analysis.choose import best_baseline

        baseline, probe, found = best_baseline(rows), self.probes[0], []
        for layer in sorted(rows[(rows.control == "none") & (rows.readout == "cls")].layer.unique()):
            own = {"control": "none", "layer": int(layer), "readout": "cls", "probe": probe}
            rivals = ((baseline.where, baseline.told, 0.0), (own | {"readout": "mean"}, "mean", -self.margin))
            for where, told, threshold in rivals:
                told_difference = stats.paired_difference(stats.correct(rows, **own), stats.correct(rows, **where))
                outcome = Verdict.decide("", *told_difference, threshold=threshold).outcome
                found.append((f"layer {layer} minus {told}", *told_difference, outcome))
        import pandas as pd

        return pd.DataFrame(found, columns=["name", "effect", "low", "high", "outcome"])


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["aggregate"])
