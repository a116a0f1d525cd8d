"""The exhibits of fine-tuning, one task at a time. Every function is pure: rows of tables in, exhibits out."""

from __future__ import annotations

import pandas as pd

from clsprobe.analysis.fine_tuning.tables import RATE, accuracies, compare_with_cls, learning_curves, sensitivity
from clsprobe.analysis.study import Exhibit


def fine_tuning_exhibits(rows: pd.DataFrame, steps: pd.DataFrame, margin: float) -> list[Exhibit]:
    """The differences from [CLS], fine-tuned and frozen accuracies, accuracy by learning rate, learning curves."""
    compared = compare_with_cls(rows, margin)
    return [
        Exhibit(
            f"Fine-tuned from each readout, accuracy minus that from [CLS] ({compared.of_cls.iloc[0]:.3f}), over the "
            f"same test texts and seeds, which are crossed, with 95 % intervals; the rate of each is chosen on dev. "
            f'Shaded: the margin of {100 * margin:.0f} points. "yes": no worse than [CLS] by more than the margin.',
            compared[["name", "effect", "low", "high", "outcome"]],
            "differences",
            {"margin": margin, "metric": "accuracy"},
        ),
        Exhibit(
            "Every readout, fine-tuned and frozen (a linear probe on the last layer of the encoder as it was): test "
            "accuracy, mean over seeds; edge, whether the chosen rate is the smallest or largest that was trained; "
            "seeds, their standard deviation; p_equal, that it is as good as [CLS]; p_apart, that it is apart by the "
            "margin or more; both corrected for their number (Holm).",
            accuracies(rows, steps, compared),
        ),
        Exhibit(
            "What the learning rate does: test accuracy at every rate that did not diverge, mean over seeds, with 95 % "
            "intervals over the texts. Beyond the rates of all readouts lie those added where dev chose an edge.",
            sensitivity(rows),
            "curves",
            {"metric": "accuracy", "along": RATE},
        ),
        Exhibit(
            "Learning curves: dev accuracy after every epoch, by the step, mean over seeds, at the rate that dev "
            "chooses.",
            learning_curves(rows, steps),
            "curves",
            {"metric": "dev accuracy", "along": "step"},
        ),
    ]


def trajectory_exhibits(rows: pd.DataFrame) -> list[Exhibit]:
    """Layers by moments of every readout: accuracy, for [CLS] and mean also CKA, for [CLS] also attention.

    rows: of one task in the table of `Trajectory`.
    """
    exhibits = []
    for readout in rows.readout.unique():
        cells = rows[rows.readout == readout].sort_values("order")
        grid = cells.drop(columns="readout").rename(columns={"moment": "readout"})
        name = "[CLS]" if readout == "cls" else readout
        measures = [("test accuracy", f"What a linear probe reads off {name}, layer by layer over the training", "")]
        if readout in ("cls", "mean"):
            measures.append(("CKA", f"How like its start {name} still is (unbiased CKA, test texts)", "cka"))
        if readout == "cls" and cells.received.notna().any():
            caption = "How much of the words' attention goes into [CLS], in the block below each layer"
            measures.append(("attention", caption, "received"))
        for metric, caption, column in measures:
            table = grid
            if column:
                table = grid.assign(value=grid[column], low=float("nan"), high=float("nan"))
                table = table[table.value.notna()]
            columns = ["layer", "readout", "value", "low", "high"]
            exhibits.append(Exhibit(f"{caption}.", table[columns], "heatmap", {"metric": metric}))
    return exhibits
