"""Why the first token? What can be read from the others?

    clsprobe positions --task file:reviews.csv

Every single position is probed at every layer. The layer of each and the best position other than [CLS] are chosen on
dev. The answer is the paired difference between that position and [CLS] on the same test texts: what can be read where,
not why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from clsprobe.analysis.settings import Names
from clsprobe.analysis.study import Exhibit, Measured, short
from clsprobe.analysis.sweep.study import SweepStudy, read_readouts
from clsprobe.analysis.verdict import MissingEvidence, Outcome, Part, Verdict, difference_in_words, points

if TYPE_CHECKING:
    import pandas as pd

POSITIONS = ("cls", "sep", "token[1]", "token[2]", "token[-1]", "random")


class Positions(SweepStudy):
    """Does another single position tell as much as [CLS]?"""

    question: ClassVar[str] = "Why the first token? What can be read from the others?"
    claim: ClassVar[str] = (
        "Another position, chosen on dev, tells as much about the label as [CLS] does (less by no more than 2 points)"
    )
    margin: ClassVar[float] = 0.02
    opening: ClassVar[str] = "The best other position on dev, compared with [CLS]"
    statements: ClassVar[Mapping[Outcome, str]] = {
        "yes": "it tells as much as [CLS] (within 2 points)",
        "no": "it tells less than [CLS] (by more than 2 points)",
        "undecided": "it is undecided whether it tells as much",
    }

    readouts: Names = Field(POSITIONS, description="the positions to compare: cls and at least one other")

    @classmethod
    def comparable(cls, readouts: Sequence[str]) -> bool:
        """[CLS] and another position."""
        return "cls" in readouts and len(other_positions(readouts)) > 0

    def judge(self, rows: pd.DataFrame) -> Verdict:
        """The other position that is best on dev, minus [CLS]."""
        from clsprobe.analysis.sweep import choose

        rows = self.judged_rows(rows)
        rivals = [choose.choose_layer(rows, name) for name in other_positions(read_readouts(rows))]
        if not rivals:
            raise MissingEvidence("there are no predictions of a readout to compare with cls")
        cls, best = choose.choose_layer(rows, "cls"), max(rivals, key=lambda cell: cell.dev)
        task, margin = short(rows.task.iloc[0]), f"{100 * self.margin:.0f} points"
        name_of_best, name_of_cls = choose.name_cell(rows, best), choose.name_cell(rows, cls)
        more = choose.effect_over_layers(rows, best, cls)
        meanings = {
            "yes": f"it tells as much as [CLS], or more (within the margin of {margin})",
            "no": f"no other position that was read tells as much as [CLS] (within {margin})",
            "undecided": f"it may tell less by more than {margin}, or not",
        }

        def say(outcome: Outcome, part: Part) -> str:
            compared = difference_in_words(name_of_best, name_of_cls, part, more=more)
            return f"on {task}, of the other positions {compared}: {meanings[outcome]}"

        part = choose.make_part(rows, best, cls, threshold=-self.margin)
        return Verdict.of(
            [part],
            say,
            is_open=True,
            brief=f"{task} {name_of_best} {points(part.effect, True)} points",
            estimand=f"{best.readout} minus cls in {cls.metric}",
            texts=choose.count_texts(rows),
            warnings=choose.list_warnings(rows, cls, best),
        )

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """The differences of all positions from [CLS], and the curves."""
        from clsprobe.analysis.sweep.exhibits import comparison_exhibits

        rows = self.judged_rows(measured.rows("predictions", task))
        return comparison_exhibits(rows, other_positions(read_readouts(rows)), self.margin)

    def note(self, measured: Measured) -> list[str]:
        """What the positions are, and what reading them cannot show."""
        return [
            "Reading an encoder whose [CLS] has always stood first shows what each position holds, not why it does: "
            "`clsprobe fine-tuning` moves the token and the place.",
            "token[1] is the first piece of the first word, token[-1] the last piece before the separator; random is "
            "one piece of each text, the same at every layer. A word's position also holds the word itself: compare "
            "layer 0.",
        ]


def other_positions(readouts: Sequence[str]) -> list[str]:
    """The readouts that are single positions other than [CLS]."""
    return [name for name in readouts if name in ("sep", "random") or name.startswith("token[")]


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["positions"])
