"""Is [CLS] an aggregate of the sentence?

    clsprobe aggregate --task file:reviews.csv

An aggregate would hold what the words say together: more than a bag of words, the length or an untrained encoder do,
and no less than the mean over all tokens. [CLS] is compared with each of them on the same test texts, at the layers
that dev chooses: yes if all comparisons hold, no if one fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from clsprobe.analysis.answer import Exhibit
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.settings import Names
from clsprobe.analysis.sweep.plan import BASELINES
from clsprobe.analysis.sweep.study import SweepStudy, read_readouts
from clsprobe.analysis.verdict import Outcome, Part, Verdict, difference_in_words, points

if TYPE_CHECKING:
    import pandas as pd

    from clsprobe.analysis.sweep.scores import TaskScores


class Aggregate(SweepStudy):
    """Does [CLS] hold more than the baselines and no less than the mean?"""

    question: ClassVar[str] = "Is [CLS] really an aggregate of the whole sequence?"
    claim: ClassVar[str] = (
        "[CLS] tells more about the label than every baseline does, and no less than mean pooling (by 2 points)"
    )
    margin: ClassVar[float] = 0.02
    opening: ClassVar[str] = "[CLS] minus mean pooling, and minus its closest baseline, in points"
    rivals: ClassVar[tuple[str, ...]] = BASELINES

    readouts: Names = Field(("cls", "mean"), description="cls and mean; others are shown beside them")

    @classmethod
    def comparable(cls, readouts: Sequence[str]) -> bool:
        """[CLS], and mean: an aggregate by construction."""
        return {"cls", "mean"} <= set(readouts)

    def judge(self, measured: Measured, task: str) -> Verdict:
        """[CLS] minus every baseline, and minus the mean within the margin."""
        from clsprobe.analysis.sweep import wording

        scores = self.read_scores(measured, task)
        cls, mean, task = scores.choose("cls"), scores.choose("mean"), scores.task
        name, parts = wording.name_cell(scores, cls), scores.compare_with_baselines(cls)
        one_class = wording.describe_constant(scores, cls)
        against_mean, limit = scores.compare(cls, mean, threshold=-self.margin), f"{100 * self.margin:.0f} points"

        def say(outcome: Outcome, part: Part) -> str:
            is_of_mean = part.name == against_mean.name
            rival, over = part.name, wording.range_over_baseline(scores, cls, part)
            if is_of_mean:
                rival, over = wording.name_cell(scores, mean), wording.range_over_layers(scores, cls, mean)
            compared = difference_in_words(name, rival, part, over, unit=scores.unit)
            if outcome == "yes":
                better = (
                    f"better than {wording.describe_baselines(scores)}, and than mean pooling or within {limit} of it"
                )
                return f"on {task}, [CLS] is {better}; the closest comparison: {compared}"
            if outcome == "no":
                return f"on {task}, {compared}{f', more than the {limit} allowed' if is_of_mean else ''}"
            if one_class:
                return f"on {task}, {one_class}: no comparison with {rival} can hold"
            doubt = f"which may be within the {limit} allowed" if is_of_mean else "which may be chance"
            return f"on {task}, {compared}, {doubt}"

        return Verdict.of(
            [*parts, against_mean],
            say,
            brief=f"{task} {points(against_mean.effect, True)} and {points(min(part.effect for part in parts), True)}",
            interval_of=wording.describe_interval(scores, cls, mean),
            texts=scores.texts,
            training_texts=scores.refits.training_texts,
            warnings=wording.list_warnings(scores, cls, mean, surface=True),
        )

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """[CLS] of every layer against the closest baseline and against mean, and the curves."""
        from clsprobe.analysis.sweep import wording
        from clsprobe.analysis.sweep.exhibits import curves_exhibit, differences_exhibit

        scores = self.read_scores(measured, task)
        cls = scores.choose("cls")
        by_layer = differences_exhibit(
            f"[CLS] of every layer, over the same test texts: its {cls.metric} minus that of the baseline which it "
            f"exceeds least, and minus that of the mean of the same layer, with 95 % intervals of "
            f"{wording.OF_FITS}. The margin of "
            f"{100 * self.margin:.0f} points, shaded, is for the mean.",
            self._compare_layers(scores),
            {"yes": "holds", "no": "fails", "undecided": "undecided"},
            margin=self.margin,
            metric=cls.metric,
        )
        return [by_layer, curves_exhibit(scores, read_readouts(scores.rows), cls)]

    def note(self, measured: Measured) -> list[str]:
        """What the comparison shows, and what it cannot."""
        return [
            "What this shows: whether more can be read off [CLS] than off the words one by one, and as much as off "
            "their mean. What it cannot show: that [CLS] holds the whole sequence. A property that sits on one word, "
            "such as a tense or a number, is read just as well where only that word has come through."
        ]

    def _compare_layers(self, scores: TaskScores) -> pd.DataFrame:
        """Columns `DIFFERENCES`: [CLS] of every layer against both rivals."""
        import pandas as pd

        from clsprobe.analysis.sweep.exhibits import DIFFERENCES, difference_row

        words = {"yes": "holds", "no": "fails", "undecided": "undecided"}
        rows, best, differences = scores.rows, scores.choose("cls"), []
        for layer in sorted(rows[(rows.control == "none") & (rows.readout == "cls")].layer.unique()):
            cls, mean = (
                replace(best, where={**best.where, "layer": int(layer), "readout": name}, name=name, chosen_from=())
                for name in ("cls", "mean")
            )
            parts = [max(scores.compare_with_baselines(cls), key=lambda part: part.p_yes)]
            if scores.has(mean.where):  # else the probe failed there
                parts.append(scores.compare(cls, mean, threshold=-self.margin))
            differences += [difference_row(f"layer {layer} minus {part.name}", part, words) for part in parts]
        return pd.DataFrame(differences, columns=DIFFERENCES)


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["aggregate"])
