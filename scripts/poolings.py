"""Is mean pooling inferior to [CLS]?

    clsprobe poolings --task file:reviews.csv

[CLS], mean and max are probed at every layer; dev chooses the layer of each. The verdict is the paired difference
between mean and [CLS] over the same test texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from clsprobe.compare import AgainstCls
from clsprobe.run import Names

if TYPE_CHECKING:
    import pandas as pd


class Poolings(AgainstCls):
    """Whether mean pooling tells as much as [CLS]."""

    question: ClassVar[str] = "Is mean pooling inferior to [CLS]?"
    claim: ClassVar[str] = "Mean pooling tells as much about the text as [CLS] does (less by no more than 2 points)"
    margin: ClassVar[float] = 0.02

    readouts: Names = Field(("cls", "mean", "max"), description="what to compare: cls, mean, and other poolings")

    @classmethod
    def rivals(cls, readouts: list[str]) -> list[str]:
        """Mean: the claim is about it alone."""
        return [name for name in readouts if name == "mean"]

    @classmethod
    def shown(cls, readouts: list[str]) -> list[str]:
        """Mean and max."""
        return [name for name in readouts if name in ("mean", "max")]

    def note(self, table: pd.DataFrame) -> list[str]:
        """What pooling means, and what the embedded model was trained for."""
        return [
            "Mean and max pool all real tokens, special ones included. A model trained through one pooling favours it."
        ]


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["poolings"])
