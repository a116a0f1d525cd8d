"""Is mean pooling inferior to [CLS]?

    clsprobe poolings --task file:reviews.csv

[CLS], mean and max are probed at every layer; the layer of each is chosen on dev. The verdict is the paired difference
between mean and [CLS] on the same test texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from clsprobe.analysis.settings import Names
from clsprobe.analysis.study import Exhibit, Measured, Verdict
from clsprobe.analysis.sweep.study import SweepStudy, read_readouts

if TYPE_CHECKING:
    import pandas as pd


class Poolings(SweepStudy):
    """Does mean pooling tell as much as [CLS]?"""

    question: ClassVar[str] = "Is mean pooling inferior to [CLS]?"
    claim: ClassVar[str] = "Mean pooling tells as much about the text as [CLS] does (less by no more than 2 points)"
    margin: ClassVar[float] = 0.02

    readouts: Names = Field(("cls", "mean", "max"), description="what to compare: cls, mean, and other poolings")

    @classmethod
    def comparable(cls, readouts: Sequence[str]) -> bool:
        """Both [CLS] and mean."""
        return {"cls", "mean"} <= set(readouts)

    def judge(self, rows: pd.DataFrame) -> Verdict:
        """Mean minus [CLS]; the claim is about mean alone."""
        from clsprobe.analysis.sweep.exhibits import judge_best_rival

        return judge_best_rival(self.judged_rows(rows), ["mean"], self.margin)

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """The differences of all poolings from [CLS], and the curves."""
        from clsprobe.analysis.sweep.exhibits import comparison_exhibits
        from clsprobe.probes.extraction.readouts import is_position

        rows = self.judged_rows(measured.rows("predictions", task))
        poolings = [name for name in read_readouts(rows) if not is_position(name)]
        return comparison_exhibits(rows, poolings, self.margin)

    def note(self, measured: Measured) -> list[str]:
        """What pooling means, and what the embedded model was trained for."""
        return [
            "Mean and max pool all real tokens, special ones included. A model trained through one pooling favours it."
        ]


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["poolings"])
