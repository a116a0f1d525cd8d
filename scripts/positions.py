"""Why the first token? What can be read from the others?

    clsprobe positions --task file:reviews.csv

Every single position is probed at every layer. The layer of each and the best position other than [CLS] are chosen on
dev. The answer is the paired difference between that position and [CLS] on the same test texts: what can be read where,
not why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from clsprobe.analysis.answer import Exhibit
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.settings import Names
from clsprobe.analysis.sweep.study import SweepStudy, read_readouts
from clsprobe.analysis.verdict import MissingEvidence, Outcome, Part, Verdict, difference_in_words, points

POSITIONS = ("cls", "sep", "token[1]", "token[2]", "token[-1]", "random")


class Positions(SweepStudy):
    """Does another single position tell as much as [CLS]?"""

    question: ClassVar[str] = "Why the first token? What can be read from the others?"
    claim: ClassVar[str] = (
        "Another position, chosen on dev, tells as much about the label as [CLS] does (less by no more than 2 points)"
    )
    margin: ClassVar[float] = 0.02
    opening: ClassVar[str] = "The other position that is best on dev, minus [CLS], in points"
    statements: ClassVar[Mapping[Outcome, str]] = {
        "yes": "the best other position tells as much as [CLS] (within 2 points)",
        "no": "the best other position tells less than [CLS] (by more than 2 points)",
        "undecided": "not certain whether the best other position tells as much",
    }

    readouts: Names = Field(POSITIONS, description="the positions to compare: cls and at least one other")

    @classmethod
    def comparable(cls, readouts: Sequence[str]) -> bool:
        """[CLS] and another position."""
        return "cls" in readouts and len(other_positions(readouts)) > 0

    def judge(self, measured: Measured, task: str) -> Verdict:
        """The other position that is best on dev, minus [CLS]."""
        from clsprobe.analysis.sweep import wording

        scores = self.read_scores(measured, task)
        rivals = [scores.choose(name) for name in other_positions(read_readouts(scores.rows))]
        if not rivals:
            raise MissingEvidence("there are no predictions of a readout to compare with cls")
        cls, best = scores.choose("cls"), max(rivals, key=lambda cell: cell.dev)
        best = replace(best, chosen_from=tuple(cell.readout for cell in rivals))
        task, margin = scores.task, f"{100 * self.margin:.0f} points"
        name_of_best, name_of_cls = wording.name_cell(scores, best), wording.name_cell(scores, cls)
        over = wording.range_over_layers(scores, best, cls)
        meanings = {
            "yes": f"this other position, the best on dev, tells as much as [CLS] (within {margin})",
            "no": f"this other position, the best on dev, tells less than [CLS] (by more than {margin})",
            "undecided": wording.describe_constant(scores, best, cls)
            or "it is not certain that this other position, the best on dev, tells as much",
        }

        def say(outcome: Outcome, part: Part) -> str:
            compared = difference_in_words(name_of_best, name_of_cls, part, over, unit=scores.unit)
            return f"on {task}, {compared}: {meanings[outcome]}"

        part = scores.compare(best, cls, threshold=-self.margin)
        return Verdict.of(
            [part],
            say,
            is_open=True,
            brief=f"{task} {name_of_best} {points(part.effect, True)}",
            estimand=f"{best.readout} minus cls in {cls.metric}",
            interval_of=wording.describe_interval(scores, cls, best),
            texts=scores.texts,
            training_texts=scores.refits.training_texts,
            warnings=wording.list_warnings(scores, cls, best),
        )

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """The differences of all positions from [CLS], and the curves."""
        from clsprobe.analysis.sweep.exhibits import comparison_exhibits

        scores = self.read_scores(measured, task)
        return comparison_exhibits(scores, other_positions(read_readouts(scores.rows)), self.margin)

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
