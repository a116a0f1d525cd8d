"""Is [CLS] an aggregate of the sentence?

    clsprobe aggregate --task file:reviews.csv

An aggregate would hold what the words say together: more than a bag of words, the length or an untrained encoder do,
and no less than the mean over all tokens. Both parts are judged on the same test texts, at the layers chosen on dev;
the verdict is yes if both hold, no if one fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from clsprobe.analysis.settings import Names
from clsprobe.analysis.study import Exhibit, Measured, Verdict, short
from clsprobe.analysis.sweep.study import SweepStudy, read_readouts

if TYPE_CHECKING:
    import pandas as pd


class Aggregate(SweepStudy):
    """Does [CLS] hold more than the baselines and no less than the mean?"""

    question: ClassVar[str] = "Is [CLS] really an aggregate of the whole sequence?"
    claim: ClassVar[str] = (
        "[CLS] tells more about the text than the best baseline does, and no less than mean does (by 2 points)"
    )
    margin: ClassVar[float] = 0.02

    readouts: Names = Field(("cls", "mean"), description="cls and mean; others are shown beside them")

    @classmethod
    def comparable(cls, readouts: Sequence[str]) -> bool:
        """[CLS], and mean: an aggregate by construction."""
        return {"cls", "mean"} <= set(readouts)

    def judge(self, rows: pd.DataFrame) -> Verdict:
        """The worse of the verdicts on both parts."""
        from clsprobe.analysis.sweep.choose import best_baseline, choose_layer, difference

        rows = self.judged_rows(rows)
        cls, verdicts = choose_layer(rows, "cls"), []
        for rival, threshold in ((best_baseline(rows), 0.0), (choose_layer(rows, "mean"), -self.margin)):
            because = f"On {short(rows.task.iloc[0])}, {cls.statement}, {rival.name} {rival.test:.3f}."
            effect = difference(rows, cls.where, rival.where)
            verdicts.append(Verdict.decide(because, *effect, threshold=threshold))
        order = ("no", "undecided", "yes")
        return min(verdicts, key=lambda verdict: order.index(verdict.outcome))

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """[CLS] of every layer against the best baseline and against mean, and the curves."""
        from clsprobe.analysis.sweep.choose import choose_layer
        from clsprobe.analysis.sweep.exhibits import curves_exhibit

        rows = self.judged_rows(measured.rows("predictions", task))
        cls = choose_layer(rows, "cls")
        by_layer = Exhibit(
            f"[CLS] of every layer, over the same test texts: its {cls.metric} minus that of the best baseline, and "
            "minus that of the mean of the same layer, with 95 % intervals.",
            self._compare_layers(rows),
            "differences",
            {"margin": self.margin, "metric": cls.metric},
        )
        return [by_layer, curves_exhibit(rows, read_readouts(rows), cls)]

    def _compare_layers(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Columns name, effect, low, high, outcome: [CLS] of every layer against both rivals."""
        import pandas as pd

        from clsprobe.analysis.sweep.choose import best_baseline, difference, has_cell, judged_probe

        baseline, probe, differences = best_baseline(rows), judged_probe(rows, self.probes), []
        for layer in sorted(rows[(rows.control == "none") & (rows.readout == "cls")].layer.unique()):
            cls = {"control": "none", "layer": int(layer), "readout": "cls", "probe": probe}
            rivals = ((baseline.where, baseline.name, 0.0), (cls | {"readout": "mean"}, "mean", -self.margin))
            for where, name, threshold in rivals:
                if not has_cell(rows, **where):
                    continue  # the probe failed there
                effect = difference(rows, cls, where)
                outcome = Verdict.decide("", *effect, threshold=threshold).outcome
                differences.append((f"layer {layer} minus {name}", *effect, outcome))
        return pd.DataFrame(differences, columns=["name", "effect", "low", "high", "outcome"])


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["aggregate"])
