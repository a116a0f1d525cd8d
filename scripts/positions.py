"""Why the first token? What can be read from the others?

    clsprobe positions --task file:reviews.csv

Every single position is probed at every layer; dev chooses the layer of each, and the best position other than [CLS].
The verdict is the paired difference between that position and [CLS] over the same test texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from clsprobe.compare import AgainstCls
from clsprobe.run import Names

if TYPE_CHECKING:
    import pandas as pd

POSITIONS = ("cls", "sep", "token[1]", "token[2]", "token[-1]", "random")


class Positions(AgainstCls):
    """Whether another single position tells as much as [CLS]."""

    question: ClassVar[str] = "Why the first token? What can be read from the others?"
    claim: ClassVar[str] = (
        "Some other position, chosen on dev, tells as much about the text as [CLS] does (less by no more than 2 points)"
    )
    margin: ClassVar[float] = 0.02

    readouts: Names = Field(POSITIONS, description="the positions to compare: cls and at least one other")

    @classmethod
    def rivals(cls, readouts: list[str]) -> list[str]:
        """Every single position but [CLS]."""
        return [name for name in readouts if name in ("sep", "random") or name.startswith("token[")]

    @classmethod
    def shown(cls, readouts: list[str]) -> list[str]:
        """All of them."""
        return cls.rivals(readouts)

    def note(self, table: pd.DataFrame) -> list[str]:
        """What the positions are."""
        return [
            "token[1] is the first piece of the first word, token[-1] the last piece before the separator; random is "
            "one "
            "piece of each text, the same at every layer. A word's position also holds the word itself: compare layer "
            "0."
        ]


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["positions"])
