"""Does flattening destroy order? Which readouts keep it?

    clsprobe order --task grammar:word_order

1. The tasks cannot be solved without word order. One that a bag of words, the length or the mean of layer 0 solves by
   more than half decides nothing and is left out.
2. Every readout is probed at every layer: [CLS], mean and max, a learned pooling (attention), all tokens concatenated
   (flatten), and these after a fixed random projection to the size of one vector, so that capacity is matched. Layer 0
   shows what the readout itself does to order, before any block has mixed the words.
3. A readout keeps order if it tells more than every order-blind baseline by more than 2 points, at the layer chosen on
   dev, on the same test texts. The verdict is about the flattened tokens at matched capacity: yes, flattening destroys
   order, if they do not tell so much more than some baseline while the other readout that is best on dev does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from clsprobe.analysis.answer import Exhibit
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.settings import Layers, Names, Specs
from clsprobe.analysis.sweep.study import SweepStudy, read_readouts
from clsprobe.analysis.verdict import TAIL, Outcome, Part, Verdict, amount_in_words, points

if TYPE_CHECKING:
    import pandas as pd

    from clsprobe.analysis.sweep.scores import ChosenCell, TaskScores

ORDER_BLIND = ("majority", "length", "bag_of_words", "layer0_mean")
FLATTENED = ("flatten_projected", "flatten")  # the first of them that was read is judged
SOLVED = 0.5  # of what the commonest class leaves: a task that a baseline solves without order
WORDS = {"yes": "keeps order", "no": "no more than without order", "undecided": "undecided"}


class Order(SweepStudy):
    """Which readouts keep word order?"""

    question: ClassVar[str] = "Does flattening destroy order? Which readouts keep it?"
    claim: ClassVar[str] = (
        "Flattening destroys word order: projected to the size of one vector, flattened tokens tell no more (by 2 "
        "points) than some baseline that sees no order, where another readout tells more than all of them"
    )
    margin: ClassVar[float] = 0.02
    opening: ClassVar[str] = "Flattened tokens minus the closest baseline without order, in points"
    rivals: ClassVar[tuple[str, ...]] = ORDER_BLIND
    untrained: ClassVar[bool] = False  # an untrained encoder sees order too

    task: Specs = Field(
        ("grammar:bigram_shift:2400", "grammar:word_order:2400"),
        description="SPEC of a task that only order solves; repeatable",
    )
    layers: Layers = Field("0,2,4,6", description="all, 0,3,6 or 1-12; 0 is the embedding output")
    readouts: Names = Field(
        ("cls", "mean", "max", "attention", "flatten", "flatten_projected"), description="what to compare"
    )

    @classmethod
    def comparable(cls, readouts: Sequence[str]) -> bool:
        """[CLS] and the flattened tokens."""
        return "cls" in readouts and any(name in readouts for name in FLATTENED)

    def judge(self, measured: Measured, task: str) -> Verdict:
        """The flattened tokens minus every order-blind baseline, all chosen on dev."""
        from clsprobe.analysis.sweep import wording

        scores = self.read_scores(measured, task)
        flattened = [name for name in FLATTENED if name in read_readouts(scores.rows)]
        cell = scores.choose(flattened[0] if flattened else FLATTENED[0])
        task, name = scores.task, wording.name_cell(scores, cell)

        def say(outcome: Outcome, part: Part) -> str:
            over = wording.range_over_baseline(scores, cell, part)
            difference = amount_in_words(part, over, unit=scores.unit, signed=True)
            baselines = wording.describe_baselines(scores, ORDER_BLIND, "baseline without order")
            what = {
                "no": f"more than {baselines}: {difference} over the closest, {part.name}",
                "yes": f"{difference} over {part.name}, which sees no order: not {100 * self.margin:.0f} points more",
            }.get(outcome, f"{difference} over {part.name}, which sees no order")
            return f"on {task}, {name} {wording.describe_score(scores, cell)}, {what}"

        parts = scores.compare_with_baselines(cell, ORDER_BLIND, threshold=self.margin)
        closest = max(parts, key=lambda part: part.p_yes)
        verdict = Verdict.of(
            parts,
            say,
            turned=True,
            brief=f"{task} {points(closest.effect, True)}",
            interval_of=wording.describe_interval(scores, cell),
            texts=scores.texts,
            training_texts=scores.refits.training_texts,
            warnings=wording.list_warnings(scores, cell),
        )
        p_kept = self._test_others(scores)
        if verdict.p_yes < TAIL <= p_kept:
            what = "no more than a baseline without order, but no other readout certainly keeps order there either"
            finding = f"on {task}, {name} {wording.describe_score(scores, cell)}, {what}"
            sentence = f"Undecided: {finding}: there may be no order to destroy."
            verdict = replace(verdict, outcome="undecided", sentence=sentence)
        verdict = replace(verdict, p_yes=max(verdict.p_yes, p_kept))
        if 1 - scores.best_class_share <= self.margin:
            return verdict.left_out(
                f"on {task}, one class leaves fewer than {100 * self.margin:.0f} points to be gained"
            )
        solved = scores.surface_ceiling(ORDER_BLIND[1:], SOLVED)
        return verdict.left_out(f"{solved[0]} solves {task} without order ({solved[1]:.3f})") if solved else verdict

    def _test_others(self, scores: TaskScores) -> float:
        """The p of "the other readout that is best on dev does not keep order": without one there is no sign of any."""
        cells = [scores.choose(name) for name in read_readouts(scores.rows) if name not in FLATTENED]
        if not cells:
            return 1.0
        best = max(cells, key=lambda cell: cell.dev)
        best = replace(best, chosen_from=tuple(cell.readout for cell in cells))
        return max(part.p_yes for part in scores.compare_with_baselines(best, ORDER_BLIND, threshold=self.margin))

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """The difference of each readout from the baseline, at its best layer and at layer 0, and the curves."""
        from clsprobe.analysis.sweep import wording
        from clsprobe.analysis.sweep.exhibits import curves_exhibit, differences_exhibit
        from clsprobe.analysis.sweep.scores import TaskScores

        rows = self.judged_rows(measured.rows("predictions", task))
        comparisons = [
            ("at the layer that dev chooses", self.read_scores(measured, task)),
            ("at layer 0, before any block has mixed the words", TaskScores(rows[rows.layer <= 0])),
        ]
        exhibits = []
        for where, scores in comparisons:
            cells = [scores.choose(readout) for readout in read_readouts(scores.rows)]
            if not cells:
                continue
            exhibits.append(
                differences_exhibit(
                    f"Who keeps order, {where}: {cells[0].metric} minus that of the baseline without order which it "
                    f"exceeds least, over the same test texts, with 95 % intervals of "
                    f"{wording.describe_interval(scores, *cells)}. Shaded: the margin of "
                    f"{100 * self.margin:.0f} points, which a readout that keeps order must exceed.",
                    self._compare_cells(scores, cells),
                    WORDS,
                    margin=self.margin,
                    metric=cells[0].metric,
                )
            )
        scores = TaskScores(rows)
        return [*exhibits, curves_exhibit(scores, read_readouts(rows), scores.choose(None))]

    def _compare_cells(self, scores: TaskScores, cells: list[ChosenCell]) -> pd.DataFrame:
        import pandas as pd

        from clsprobe.analysis.sweep.exhibits import DIFFERENCES, difference_row

        differences = []
        for cell in cells:
            parts = scores.compare_with_baselines(cell, ORDER_BLIND, threshold=self.margin)
            closest = max(parts, key=lambda part: part.p_yes)
            differences.append(difference_row(f"{cell.name} minus {closest.name}", closest, WORDS))
        return pd.DataFrame(differences, columns=DIFFERENCES)

    def note(self, measured: Measured) -> list[str]:
        """What the readouts can and cannot show."""
        return [
            "Flatten keeps order by construction: a word's place is its index. It has as many numbers as 32 "
            "tokens, the projection as many as one.",
            "Above layer 0 every token has seen its neighbours, so that a mean of tokens may tell of order, though "
            "averaging forgets it. Layer 0 shows the readout alone.",
        ]


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["order"])
