"""The exhibits of the formation study, one task at a time. Pure: table rows in, exhibits out."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.formation import erasure, swap_effects
from clsprobe.analysis.formation.knockout import EVERYTHING, INTACT, compute_effects
from clsprobe.analysis.study import Exhibit, Measured, short
from clsprobe.analysis.verdict import Part

EDGES = {  # as a reader calls them
    "rest->cls": "[CLS] from all others",
    "content->cls": "[CLS] from the words",
    "sep->cls": "[CLS] from [SEP]",
    "cls->content": "the words from [CLS]",
}


def knockout_exhibits(knockout: pd.DataFrame, margin: float) -> list[Exhibit]:
    """The windows in which [CLS] is cut off, and every kind of edges layer by layer, for every readout.

    knockout: rows of one task, `knockout.PREDICTIONS`.
    """
    exhibits = []
    for (layer, readout), rows in compute_effects(knockout).groupby(["layer", "readout"], sort=False):
        intact = rows[rows.edges == INTACT.edges].iloc[0]
        windows = rows[rows.edges == EVERYTHING]
        if readout == "cls":
            cut_off = windows[(windows["first"] == 1) & (windows["last"] == layer)].value.iloc[0]
            exhibits.append(
                Exhibit(
                    f"[CLS] cut off from all other tokens in a window of layers, from the layer of the row to that "
                    f"of the column: accuracy of its fixed probe at layer {layer}, with 95 % intervals. Intact: "
                    f"{intact.value:.3f}. Cut off in all of them: {cut_off:.3f}.",
                    _windows(knockout[knockout.readout == readout], windows),
                    "heatmap",
                    {"metric": "accuracy"},
                )
            )
        single = rows[(rows["first"] == rows["last"]) & (rows.edges != INTACT.edges)]
        single = single[(single.edges == EVERYTHING) | (readout == "cls")]
        names = [f"{EDGES[row.edges]}, layer {row.first}" for row in single.itertuples()]
        exhibits.append(
            Exhibit(
                f"What cutting edges in one layer costs the fixed probe of {readout} at layer {layer} "
                f"({intact.value:.3f} intact), over the same test texts, with 95 % intervals. "
                f'Shaded: the margin of {100 * margin:.0f} points. "yes": it loses more than that.',
                _losses(names, single, margin),
                "differences",
                {"margin": margin, "metric": "accuracy"},
            )
        )
    return exhibits


def _windows(rows: pd.DataFrame, windows: pd.DataFrame) -> pd.DataFrame:
    """Columns layer (the first of a window), readout (its last), value, low, high: accuracies."""
    tested = len(rows[["seed", "row"]].drop_duplicates()) // rows.seed.nunique()
    low, high = stats.wilson(windows.value.to_numpy(), tested)
    grid = windows.assign(layer=windows["first"], readout="to " + windows["last"].astype(str), low=low, high=high)
    return grid.sort_values(["last", "first"])[["layer", "readout", "value", "low", "high"]]


def _losses(names: Sequence[str], rows: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Columns name, effect, low, high, outcome: whether more is lost than the margin."""
    table = rows[["effect", "low", "high"]].reset_index(drop=True)
    ends = table.itertuples(index=False)
    outcomes = [Part.from_interval("", -e, -high, -low, margin).outcome for e, low, high in ends]
    table.insert(0, "name", list(names))
    return table.assign(outcome=outcomes)


def erasure_exhibits(erased: pd.DataFrame, leakage: pd.DataFrame, margin: float) -> list[Exhibit]:
    """What erasing costs the probe at the end, and what is left where it was erased. Rows of one task each."""
    rows = erasure.compute_effects(erased)
    names = [f"{'[CLS]' if r.tokens == 'cls' else 'words'}, layer {r.layer}: {r.kind}" for r in rows.itertuples()]
    rows_at_end = rows.rename(columns={"value": "at the end", "effect": "change"})
    left = leakage[leakage.seed == leakage.seed.min()].drop(columns=["task", "seed"])
    columns = [*left.columns[:3], "at the end", "change", "beyond", "beyond low", "beyond high"]
    return [
        Exhibit(
            "The property erased in one place by LEACE, and the network run on: what the fixed probe of [CLS] loses at "
            "the end, with 95 % intervals. Beside it random directions: of the same variance, which is the control, "
            "and of the same number.",
            _losses(names, rows, margin),
            "differences",
            {"margin": margin, "metric": "accuracy"},
        ),
        Exhibit(
            "What is left where it was erased: test accuracy of a linear probe that was trained on erased vectors; "
            "moved, the share of their variance that was taken out. Then the accuracy at the end, its change, and what "
            "of that goes beyond random directions of the same variance.",
            left.merge(rows_at_end[columns], on=columns[:3], how="left"),
        ),
    ]


def explanation_exhibits(profiles: pd.DataFrame, agreement: pd.DataFrame, tokens: pd.DataFrame) -> list[Exhibit]:
    """Knockout, attention and attribution layer by layer, how far they agree, and words in some texts. Of one task."""
    agreement = agreement.drop(columns="task")
    correlations = "; ".join(
        f"{row.other} {row.correlation:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
        for row in agreement[agreement.one == "knockout"].itertuples()
    )
    return [
        Exhibit(
            "Three kinds of evidence for where [CLS] receives, each as a share of its largest layer. Knockout: what "
            "being cut off in that layer alone costs. Attention: the weight that [CLS] gives to content tokens; value "
            "zeroing: how far it turns without their values. Attribution: by how much more than one layer below the "
            "words move [CLS] along the probe's direction. Attention and attribution are correlations; the answer is "
            f"that of the knockout. Rank correlation with it over the layers, with the 95 % interval of a bootstrap "
            f"over texts: {correlations}.",
            profiles.drop(columns="task"),
            "curves",
            {"metric": "share of the largest layer"},
        ),
        Exhibit("How far they agree: rank correlations over the layers.", agreement),
        Exhibit(
            "What every word does to the number that the probe reads of [CLS], towards the text's own label, in some "
            "test texts (integrated gradients; the baseline is a text without words).",
            tokens.drop(columns="task"),
            "token_strips",
            {"metric": "attribution"},
        ),
    ]


def swap_notes(measured: Measured) -> list[str]:
    """A sentence for every task on where the effect of swapping [CLS] between twins rises."""
    if "swaps" not in measured.tables:
        return []
    every_task = measured.tables["swaps"].groupby("task", sort=False)
    return [f"{short(str(task))}: {swap_effects.describe_swaps(swaps)}." for task, swaps in every_task]


def swap_exhibits(measured: Measured, task: str) -> list[Exhibit]:
    """What a swap of [CLS] between twins carries, layer by layer, and how complete and selective it is.

    Tables swaps and swap_reliability (`swap_effects.SWAPS`, `swap_effects.RELIABILITY`). None for a task without pairs.
    """
    if "swaps" not in measured.tables or (swaps := measured.rows("swaps", task)).empty:
        return []
    labels, unit = " and ".join(sorted(swaps.label.unique())), swap_effects.name_unit(swaps)
    unseen = f", of {swap_effects.count_clusters(swaps)} lemmas that the probe did not learn from"
    pairs = (
        f"{swaps.pair.nunique()} minimal pairs, sentences with the labels {labels} that differ only in what the label "
        f"demands{unseen if unit == 'lemmas' else ''}"
    )
    change = swap_effects.measure_change(swaps)
    if not change["low"] > 0:
        what = f"Swaps are not shown: {swap_effects.describe_swaps(swaps)}. These are the {pairs}."
        return [Exhibit(what, pd.DataFrame([change]))]
    curves = swap_effects.compute_effects(swaps).assign(readout=lambda table: table.swap.map(_SWAPS))
    start = curves.value[(curves.swap == swap_effects.CLS) & (curves.layer == 0)].abs().iloc[0]
    same_start = start < 1e-3  # 0 up to rounding
    last = int(swaps["read at"].iloc[0])
    return [
        Exhibit(
            f"Where does [CLS] receive what its probe reads? Swaps within {pairs}. In one layer, that of the axis, "
            "[CLS] of a sentence is replaced by that of its twin, and the network runs on to the probe, a fixed linear "
            f"one of [CLS] at layer {last}. Value: the share of the twins' difference that is swapped with it, of "
            f"{change['value']:.2f} nats of log-odds ({change['low']:.2f} to {change['high']:.2f}); 95 % intervals "
            f"over {unit}. What is missing from 1 at a layer, [CLS] receives from the other tokens in the blocks "
            "above. A low value does not say that [CLS] of that layer tells nothing of the label, but that the probe "
            "reads it from elsewhere. By construction the line of [CLS] is "
            f"{'0 at layer 0, where all texts have the same [CLS], and ' if same_start else ''}1 at layer {last}, and "
            "the line of all other tokens is what is left to 1. What counts is where it rises. "
            f"{'' if same_start else 'At layer 0 the texts of this encoder differ in [CLS]. '}"
            "A swap with another text of the same label should bring nothing; "
            f"at layer {last} it brings 0 on average by construction.",
            curves[["layer", "readout", "value", "low", "high"]].reset_index(drop=True),
            "curves",
            {"metric": "share of the twins' difference"},
        ),
        Exhibit(
            "The rise of the line of [CLS] in every block, with 95 % intervals that hold for all blocks at once. "
            "largest: whether it may be the largest rise.",
            swap_effects.compute_rises(swaps),
        ),
        *_swap_reliability(swap_effects.compute_reliability(measured.rows("swap_reliability", task)), last, unit),
    ]


_SWAPS = {  # as a reader calls them
    swap_effects.CLS: "[CLS] of the twin",
    swap_effects.OTHERS: "all other tokens of the twin",
    swap_effects.SAME_LABEL: "[CLS], same label",
}


def _swap_reliability(table: pd.DataFrame, last: int, unit: str) -> list[Exhibit]:
    """table: of `swap_effects.compute_reliability`."""
    complete = table[table.measure == swap_effects.COMPLETENESS].set_index("swap")
    whole, intact = (
        f"{row.value:.2f} ({row.low:.2f} to {row.high:.2f})"
        for row in (complete.loc[name] for name in (swap_effects.WHOLE, swap_effects.INTACT))
    )
    read = table[table.measure == swap_effects.ABOVE_MAJORITY]
    unread = read.property[~(read.low > 0)].tolist()
    lines = table[table.swap.isin(_SWAPS) & ~table.property.isin(unread)]
    if lines.empty:
        return []
    names = [
        f"{'complete' if row.measure == swap_effects.COMPLETENESS else f'{row.property} kept'}, "
        f"{'twin' if row.swap == swap_effects.CLS else 'same label'}"
        for row in lines.itertuples()
    ]
    left_out = f" Left out, as it does not certainly read them there: {', '.join(unread)}." if unread else ""
    return [
        Exhibit(
            f"The same swaps, as an MLP sees them that was trained on intact [CLS] of layer {last}. Completeness "
            '("complete"): 1 less the total variation between its distribution of the label and certainty of the '
            f'twin\'s; a swap of the whole text reaches {whole}, no swap {intact}. Selectivity ("kept"): how little '
            "its distribution of another property of the sentence changes, 1 if not at all. 95 % intervals over "
            f"{unit} (Canby et al. 2024).{left_out}",
            lines.assign(readout=names)[["layer", "readout", "value", "low", "high"]].reset_index(drop=True),
            "curves",
            {"metric": "completeness and selectivity"},
        )
    ]
