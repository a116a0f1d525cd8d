"""Is mean pooling inferior to [CLS]?

    clsprobe poolings --task file:reviews.csv

[CLS], mean and max are probed at every layer; the layer of each is chosen on dev. The verdict is the paired difference
between mean and [CLS] on the same test texts: yes if mean is worse by more than 2 points, no if it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from clsprobe.analysis.answer import Exhibit
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.settings import Names
from clsprobe.analysis.sweep.study import SweepStudy, read_readouts
from clsprobe.analysis.verdict import Outcome, Part, Verdict, difference_in_words, points


class Poolings(SweepStudy):
    """Does mean pooling tell less than [CLS]?"""

    question: ClassVar[str] = "Is mean pooling inferior to [CLS]?"
    claim: ClassVar[str] = "Mean pooling tells less about the label than [CLS] does (by more than 2 points)"
    margin: ClassVar[float] = 0.02
    opening: ClassVar[str] = "Mean pooling minus [CLS], in points"

    readouts: Names = Field(("cls", "mean", "max"), description="what to compare: cls, mean, and other poolings")

    @classmethod
    def comparable(cls, readouts: Sequence[str]) -> bool:
        """Both [CLS] and mean."""
        return {"cls", "mean"} <= set(readouts)

    def judge(self, measured: Measured, task: str) -> Verdict:
        """Mean minus [CLS]; the claim is about mean alone."""
        from clsprobe.analysis.sweep import wording

        scores = self.read_scores(measured, task)
        mean, cls, task = scores.choose("mean"), scores.choose("cls"), scores.task
        name_of_mean, name_of_cls = wording.name_cell(scores, mean), wording.name_cell(scores, cls)
        over = wording.range_over_layers(scores, mean, cls)
        limit, one_class = f"{100 * self.margin:.0f} points", wording.describe_constant(scores, mean, cls)

        def say(outcome: Outcome, part: Part) -> str:
            compared = difference_in_words(name_of_mean, name_of_cls, part, over, unit=scores.unit)
            if outcome == "no" and part.low <= 0:
                return f"on {task}, not by more than {limit}: {compared}"
            if outcome == "undecided":
                doubt = one_class or f"it may be worse by more than {limit}, or not"
                return f"on {task}, {compared}: {doubt}"
            return f"on {task}, {compared}"

        part = scores.compare(mean, cls, threshold=-self.margin)
        return Verdict.of(
            [part],
            say,
            turned=True,
            brief=f"{task} {points(part.effect, True)} ({points(part.low, True)} to {points(part.high, True)})",
            estimand=f"mean minus cls in {cls.metric}",
            interval_of=wording.describe_interval(scores, cls, mean),
            texts=scores.texts,
            training_texts=scores.refits.training_texts,
            warnings=wording.list_warnings(scores, cls, mean),
        )

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """The differences of all poolings from [CLS], and the curves."""
        from clsprobe.analysis.sweep.exhibits import comparison_exhibits
        from clsprobe.probes.extraction.readouts import is_position

        scores = self.read_scores(measured, task)
        poolings = [name for name in read_readouts(scores.rows) if not is_position(name)]
        return comparison_exhibits(scores, poolings, self.margin)

    def note(self, measured: Measured) -> list[str]:
        """What pooling means, and what the embedded model was trained for."""
        return [
            "Mean and max pool all real tokens, special ones included. A model trained through one pooling favours it."
        ]


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["poolings"])
