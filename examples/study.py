"""A study of your own: is max pooling as good as mean pooling?

A study of the layer x readout sweep has its settings, its measurement, its page and its command; it adds a question,
the margin that is declared beforehand, the comparison, and what is shown. From the folder of this file:
clsprobe study:MaxPooling --task file:reviews.csv
"""

from typing import ClassVar

from pydantic import Field

from clsprobe import Verdict, check_study
from clsprobe.analysis.settings import Names
from clsprobe.analysis.sweep.exhibits import curves_exhibit
from clsprobe.analysis.sweep.planting import plant_sweep
from clsprobe.analysis.sweep.study import SweepStudy
from clsprobe.analysis.sweep.wording import describe_interval, name_cell
from clsprobe.analysis.verdict import difference_in_words


class MaxPooling(SweepStudy):
    """Is the maximum over all tokens as good as their mean?"""

    question: ClassVar[str] = "Is max pooling as good as mean pooling?"
    claim: ClassVar[str] = (
        "Max pooling tells as much about the label as mean pooling does (less by no more than 2 points)"
    )
    margin: ClassVar[float] = 0.02

    readouts: Names = Field(("max", "mean"), description="max and mean; others are shown beside them")

    @classmethod
    def comparable(cls, readouts):
        """Whether the readouts that are compared are among these."""
        return {"max", "mean"} <= set(readouts)

    def judge(self, measured, task):
        """Max minus mean, each at the layer that dev chooses: yes where the whole interval is above the margin."""
        scores = self.read_scores(measured, task)
        maximum, mean = scores.choose("max"), scores.choose("mean")

        def say(outcome, part):
            compared = difference_in_words(name_cell(scores, maximum), name_cell(scores, mean), part, unit=scores.unit)
            return f"on {scores.task}, {compared}"

        part = scores.compare(maximum, mean, threshold=-self.margin)
        return Verdict.of([part], say, interval_of=describe_interval(scores, maximum, mean), texts=scores.texts)

    def show(self, measured, task):
        """Both over the layers, with the baselines."""
        scores = self.read_scores(measured, task)
        return [curves_exhibit(scores, ["max", "mean"], scores.choose("max"))]


if __name__ == "__main__":
    accuracies = {"yes": (0.85, 0.7), "no": (0.7, 0.85), "undecided": (0.7, 0.72)}  # of max and of mean, made up
    worlds = {outcome: plant_sweep({"max": a, "mean": b}) for outcome, (a, b) in accuracies.items()}
    check_study(MaxPooling(), worlds=worlds)
    print(*(MaxPooling().verdict(world).sentence for world in worlds.values()), sep="\n")
