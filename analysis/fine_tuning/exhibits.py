"""The exhibits of fine-tuning, one task at a time. Every function is pure: rows of tables in, exhibits out."""

from __future__ import annotations

import pandas as pd

from clsprobe.analysis.answer import Exhibit
from clsprobe.analysis.fine_tuning.tables import (
    RATE,
    accuracies,
    compare_with_cls,
    cross_tokens_and_positions,
    learning_curves,
    sensitivity,
)
from clsprobe.analysis.sweep.exhibits import DIFFERENCES, MORE, NO_WORSE, differences_exhibit

CANNOT = (
    "What this cannot show: fine-tuning moves every weight, so it tells what a position can be made to hold, not what "
    "it held; the frozen probe beside it tells that. Names with @first and @last tell a token from its position: "
    "[CLS], a token that the encoder has never seen (new) or a copy of a word (token[1]) has the first position or the "
    "one behind the last, and every other token keeps its own. But neither is free of pre-training: [CLS] has had the "
    "first position, and the first position [CLS], in every text that the encoder has seen. One task and one encoder "
    "are no law: one that was trained through mean pooling, as the embedded one, starts nearer to some readouts."
)


def fine_tuning_exhibits(rows: pd.DataFrame, steps: pd.DataFrame, margin: float) -> list[Exhibit]:
    """The differences from [CLS], tokens by positions, fine-tuned and frozen accuracies, accuracy by learning rate,
    learning curves."""
    compared = compare_with_cls(rows, margin)
    crossed, contrasts = cross_tokens_and_positions(rows)
    return [
        differences_exhibit(
            f"Fine-tuned from each readout, accuracy minus that from [CLS] ({compared.of_cls.iloc[0]:.3f}), over the "
            f"same test texts and seeds, which are crossed; the rate of each is chosen on dev. The 95 % intervals hold "
            f"for all single tokens at once (Bonferroni), and for all poolings. Shaded: the margin of "
            f"{100 * margin:.0f} points. No worse, worse: than [CLS], by the margin, each corrected for the number of "
            f"single tokens or poolings (Holm). That all of them are no worse needs no correction: it may be clear "
            f"where some of them alone are undecided.",
            compared[DIFFERENCES],
            NO_WORSE,
            margin=margin,
            metric="accuracy",
        ),
        Exhibit(
            "Is it the token or its position? Test accuracy, fine-tuned from [CLS], from a token that the encoder has "
            "never seen, or from a copy of the first word, with the first position or with the one behind the last. "
            "All other tokens are the same and keep their positions: what differs within a row is the position, within "
            "a column the token.",
            crossed,
        ),
        differences_exhibit(
            "The same as differences: what the position changes for each token, and what the token changes at each "
            "position, over the same test texts and seeds. The 95 % intervals hold for all of them at once "
            "(Bonferroni).",
            contrasts,
            MORE,
            margin=margin,
            metric="accuracy",
        ),
        Exhibit(
            "Every readout, fine-tuned and frozen (a linear probe on the last layer of the encoder as it was): test "
            "accuracy, mean over seeds; edge, whether the chosen rate is the smallest or largest that was trained; "
            "seeds, their standard deviation; p_no_worse and p_worse, small where it is no worse than [CLS], or worse, "
            "by the margin; one-sided, corrected for the number of single tokens or poolings (Holm).",
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
