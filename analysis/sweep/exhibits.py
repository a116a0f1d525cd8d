"""The exhibits of a sweep, one task at a time. Every function is pure: rows of tables in, exhibits out.

scores: of the judged predictions of one task; rows: these predictions (`choose.judged_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.answer import Exhibit
from clsprobe.analysis.sweep.choose import (
    COMPARED_ON_ALL,
    accuracy_by_cell,
    by_number,
    compare_probes,
    list_baselines,
    summary,
)
from clsprobe.analysis.sweep.scores import ChosenCell, TaskScores
from clsprobe.analysis.sweep.wording import describe_interval, name_cell
from clsprobe.analysis.verdict import Part

DIFFERENCES = ["name", "effect", "low", "high", "outcome"]
COMPARED = [*DIFFERENCES, "dev"]
NO_WORSE = {"yes": "no worse", "no": "worse", "undecided": "undecided"}  # outcome -> its word
MORE = {"yes": "more", "no": "less", "undecided": "undecided"}
SUMMARY = (
    "Every readout at the layer that dev chooses, measured once on test; all 95 % intervals are for these probes as "
    "they were fitted. Accuracy; bits a text (fewer is better); gain over the best baseline; selectivity, the accuracy "
    "less that on the control task, in which every word type of a list has a label at random (Hewitt & Liang 2019), "
    "both on the texts with exactly one such word and as a share of the way from the commonest label (0) to no mistake "
    "(1); p that nothing is told at all, corrected for all cells of the grid (max-T)."
)
SUMMARY_OF_NUMBERS = (
    "Every readout at the layer that dev chooses, measured once on test: R2, the share of the numbers' variance that "
    "is explained, and Spearman's correlation, with 95 % intervals for these probes as they were fitted; gain in R2 "
    "over the best baseline; selectivity, R2 less that on the control task, in which every word type of a list has a "
    "number at random (Hewitt & Liang 2019), both on the texts with exactly one such word."
)
LEARNING = (
    "What more texts would teach: test accuracy by the number of training texts, with 95 % intervals for these probes "
    "as they were fitted. The layers are those that dev chooses with all of them."
)
BITS = (
    "In bits. Codelength: what the labels of train take when they are sent block by block, each with a probe trained "
    "on those before (Voita & Titov 2020); compression: how many times fewer than without a probe. V-information: the "
    "bits that a cell takes off the label of a test text (Xu et al. 2020); what it adds: off what the mean of layer 0, "
    "words without their context, leaves (Hewitt et al. 2021). 95 % intervals for these probes, over the test texts; "
    "it may be negative."
)
MAPS = (
    "UMAP of test texts, [CLS] and mean side by side, each at the layer that dev chooses; colours are labels. "
    "Neighbours mean something here; distances between clusters do not."
)


def grid_exhibits(scores: TaskScores) -> list[Exhibit]:
    """The grid, the curves and the baselines; of the chosen cell the confusion matrix and recalls.

    Numbers have R2 instead of accuracy, and the chosen cell's predictions by bands of the true numbers.
    """
    rows, subject, best = scores.rows, scores.subject, scores.choose(None)
    lines = list_baselines(scores, controls=COMPARED_ON_ALL)
    grid = accuracy_by_cell(rows)
    layer0 = " Layer 0 is what enters the first block." if (grid.layer == 0).any() else ""
    exhibits = [
        Exhibit(
            f"Test {best.metric} of a linear probe at every layer and readout, with 95 % intervals for these probes as "
            f"they were fitted; outlined, the cell that dev chooses ({best.name}).{layer0}",
            grid,
            "heatmap",
            {"metric": best.metric, "best": [best.layer, best.readout]},
        ),
        Exhibit(
            "The same over the layers, with baselines as dashed lines.",
            grid,
            "curves",
            {"metric": best.metric, "baselines": dict(zip(lines.name, lines.value, strict=True))},
        ),
        Exhibit(
            f"{subject.name} beside its baselines and controls; each chosen on dev, measured on test, those that name "
            f"the control task only on the test texts that it labels.",
            list_baselines(scores, subject),
            "intervals",
            {"metric": best.metric},
        ),
    ]
    cell = subject.rows(rows[rows.split == "test"])
    if stats.of_numbers(cell):
        caption = (
            f"What {subject.name} takes the numbers of the test texts for, band by band: their mean, the mean of what "
            f"is predicted, and how far off it is (root of the mean squared error)."
        )
        return [*exhibits, Exhibit(caption, by_number(cell))]
    counts = cell.groupby(["label", "predicted"], observed=True).size().rename("count").reset_index()
    return [
        *exhibits,
        Exhibit(
            f"What {subject.name} takes for what: test texts by their label (rows) and the predicted one (columns).",
            counts.astype({"label": str, "predicted": str}),
            "confusion",
        ),
        Exhibit(
            f"Recall of every class, {subject.name}.",
            stats.accuracies(cell.astype({"label": str}), ["label"]).rename(columns={"label": "name"}),
            "intervals",
            {"metric": "recall"},
        ),
    ]


def summary_exhibit(rows: pd.DataFrame, results: pd.DataFrame) -> Exhibit:
    """The `summary` of the readouts. results: the whole results table."""
    return Exhibit(SUMMARY_OF_NUMBERS if stats.of_numbers(rows) else SUMMARY, summary(rows, results))


def probe_exhibits(rows: pd.DataFrame, names: Sequence[str]) -> list[Exhibit]:
    """`compare_probes`, where several of the named probes read the task. rows: all of its predictions."""
    table = compare_probes(rows, names)
    if table.probe.nunique() < 2:
        return []
    judged = table.probe.iloc[0]
    score = "R2" if stats.of_numbers(rows) else "accuracy, and bits a text (fewer is better)"
    caption = (
        f"Every probe, and every readout at the layer that dev chooses for the probe: test {score}, and the difference "
        f"from {judged} on the same readout over the same test texts, with 95 % intervals for these probes as they "
        f"were fitted, not corrected for their number. All other exhibits, and the verdict, are of {judged}, the first "
        "probe that was named."
    )
    return [Exhibit(caption, table)]


def information_exhibits(learning: pd.DataFrame, information: pd.DataFrame) -> list[Exhibit]:
    """Learning curves and bits of the chosen cells of one task; none where nothing was measured."""
    if learning.empty:
        return []
    curves = learning.drop(columns="task").rename(columns={"name": "readout", "n": "training texts"})
    bits = information.drop(columns=["task", "layer", "readout", "converged"])
    along = {"metric": "accuracy", "along": "training texts", "scale": "log"}
    return [Exhibit(LEARNING, curves, "curves", along), Exhibit(BITS, bits)]


def disagreement_exhibits(disagreements: pd.DataFrame) -> list[Exhibit]:
    """Where [CLS] and mean of one task disagree, if both were read."""
    caption = "Test texts that one of [CLS] and mean gets right and the other wrong, the clearest first."
    return [Exhibit(caption, disagreements.drop(columns="task").reset_index(drop=True))] if len(disagreements) else []


def map_exhibits(projection: pd.DataFrame) -> list[Exhibit]:
    """The UMAPs of one task, if any was drawn."""
    return [Exhibit(MAPS, projection.drop(columns="task").reset_index(drop=True), "scatter")] if len(projection) else []


# ------------------------------------------------------------------------------------------ readouts against [CLS]


def compare_with_cls(scores: TaskScores, readouts: Sequence[str], margin: float) -> pd.DataFrame:
    """Each readout minus [CLS] over the same test texts, both at the layers that dev chooses.

    Columns `COMPARED`; best on dev first. outcome: whether the readout is no worse by the margin, each taken alone.
    """
    cls, compared = scores.choose("cls"), []
    for readout in readouts:
        other = scores.choose(readout)
        part = scores.compare(other, cls, threshold=-margin)
        compared.append((*difference_row(name_cell(scores, other), part, NO_WORSE), other.dev))
    table = pd.DataFrame(compared, columns=COMPARED)
    return table.sort_values("dev", ascending=False, kind="stable", ignore_index=True)


def difference_row(name: str, part: Part, words: Mapping[str, str]) -> tuple[str, float, float, float, str]:
    """A row of `DIFFERENCES`. words: outcome -> its word in the table and the figure."""
    return name, part.effect, part.low, part.high, words[part.outcome]


def differences_exhibit(caption: str, table: pd.DataFrame, words: Mapping[str, str], **arguments: Any) -> Exhibit:
    """An exhibit of differences. arguments: margin and metric of the plot."""
    return Exhibit(caption, table, "differences", {**arguments, "words": {word: name for name, word in words.items()}})


def comparison_exhibits(scores: TaskScores, readouts: Sequence[str], margin: float) -> list[Exhibit]:
    """The paired differences of the readouts from [CLS], and all of them over the layers."""
    cls = scores.choose("cls")
    of = describe_interval(scores, cls, *map(scores.choose, readouts))
    differences = differences_exhibit(
        f"{cls.metric.capitalize()} of each readout minus that of {name_cell(scores, cls)}, which is {cls.test:.3f}, "
        f"over the same test texts, with 95 % intervals of {of}; each at the layer that dev chooses, in brackets those "
        f"that dev cannot tell from it. Shaded: the margin of {100 * margin:.0f} points. No worse, worse: than [CLS], "
        "by the margin, each readout taken alone.",
        compare_with_cls(scores, readouts, margin),
        NO_WORSE,
        margin=margin,
        metric=cls.metric,
    )
    return [differences, curves_exhibit(scores, ["cls", *readouts], cls)]


def curves_exhibit(scores: TaskScores, readouts: Sequence[str], cell: ChosenCell) -> Exhibit:
    """Readouts over the layers, with the baselines; cell: one of them, for its metric."""
    lines = list_baselines(scores, controls=COMPARED_ON_ALL)
    return Exhibit(
        f"Test {cell.metric} over the layers, with 95 % bands for these probes as they were fitted, and the baselines "
        f"as dashed lines.",
        accuracy_by_cell(scores.rows, readouts),
        "curves",
        {"metric": cell.metric, "baselines": dict(zip(lines.name, lines.value, strict=True))},
    )
