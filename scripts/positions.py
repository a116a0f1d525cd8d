"""Why the first token? What can be read from the others?

    clsprobe positions --task file:reviews.csv

Every single position is probed at every layer. The layer of each and the best position other than [CLS] are chosen on
dev. The verdict is the paired difference between that position and [CLS] on the same test texts.
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

POSITIONS = ("cls", "sep", "token[1]", "token[2]", "token[-1]", "random")


class Positions(SweepStudy):
    """Does another single position tell as much as [CLS]?"""

    question: ClassVar[str] = "Why the first token? What can be read from the others?"
    claim: ClassVar[str] = (
        "Some other position, chosen on dev, tells as much about the text as [CLS] does (less by no more than 2 points)"
    )
    margin: ClassVar[float] = 0.02

    readouts: Names = Field(POSITIONS, description="the positions to compare: cls and at least one other")

    @classmethod
    def comparable(cls, readouts: Sequence[str]) -> bool:
        """[CLS] and another position."""
        return "cls" in readouts and len(other_positions(readouts)) > 0

    def judge(self, rows: pd.DataFrame) -> Verdict:
        """The other position that is best on dev, minus [CLS]."""
        from clsprobe.analysis.sweep.exhibits import judge_best_rival

        return judge_best_rival(self.judged_rows(rows), other_positions(read_readouts(rows)), self.margin)

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """The differences of all positions from [CLS], and the curves."""
        from clsprobe.analysis.sweep.exhibits import comparison_exhibits

        rows = self.judged_rows(measured.rows("predictions", task))
        return comparison_exhibits(rows, other_positions(read_readouts(rows)), self.margin)

    def note(self, measured: Measured) -> list[str]:
        """What the positions are."""
        return [
            "token[1] is the first piece of the first word, token[-1] the last piece before the separator; random is "
            "one piece of each text, the same at every layer. A word's position also holds the word itself: compare "
            "layer 0."
        ]


def other_positions(readouts: Sequence[str]) -> list[str]:
    """The readouts that are single positions other than [CLS]."""
    return [name for name in readouts if name in ("sep", "random") or name.startswith("token[")]


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["positions"])
