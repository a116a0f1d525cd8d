"""The exhibits of the formation study, one task at a time. Pure: table rows in, exhibits out."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.formation import erasure
from clsprobe.analysis.formation.knockout import EVERYTHING, INTACT, compute_effects
from clsprobe.analysis.study import Exhibit
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


PLACES = {"cls": "[CLS]", "content": "words", "": "nothing"}  # tokens, as a reader calls them; others by their names
ERASED = {"none": "intact", "leace": "LEACE"}  # kinds of erasure; the random directions go by their own names


def erasure_exhibits(erased: pd.DataFrame, leakage: pd.DataFrame, reliability: pd.DataFrame) -> list[Exhibit]:
    """What is left of an erased property in its place and at the end, and how reliable the erasures are.

    Rows of one task each: the tables of `erasure.measure_erasure`. Where there are several seeds, leakage and
    reliability are those of the first.
    """
    left, reliable = (table[table.seed == table.seed.min()] for table in (leakage, reliability))
    read_at = erased["read at"].iloc[0]
    labels = erased[erased.seed == erased.seed.min()].drop_duplicates("row").label
    majority = labels.value_counts().max() / len(labels)
    drawn = left[left.kind.isin(ERASED)]
    names = drawn.tokens.replace(PLACES) + ", " + drawn.kind.map(ERASED) + ": " + drawn.probe
    at_end = erasure.compute_effects(erased)
    others = sorted({name for names in reliable.others for name in names.split(", ") if name})
    return [
        Exhibit(
            "What is left of the property where LEACE erased it, from [CLS] or from the words of one layer: test "
            "accuracy of a linear and of an MLP probe, each trained on the erased vectors, and of the same probes on "
            "intact ones; with 95 % intervals. LEACE removes what a linear probe can read, and no more: what the MLP "
            "reads beyond the linear probe was never erased. The erasers are fitted on one half of train and the "
            "probes trained on the other; on an eraser's own texts nothing linear is left by construction, on others "
            "its errors are. A probe shows the least that is left: another may read more.",
            drawn.assign(readout=names)[["readout", "layer", "value", "low", "high"]],
            "curves",
            {"metric": "accuracy", "baselines": {"most frequent class": majority}},
        ),
        Exhibit(
            "The same for random directions, as many as it takes to remove the same variance as LEACE, or the same "
            "number as LEACE removes; moved: the share of the variance of the vectors that was removed.",
            _spread_probes(left),
        ),
        Exhibit(
            f"The network run on from the erased vectors: what probes of [CLS] at layer {read_at} read, test accuracy "
            "and its change from the same probe without erasure; beyond: minus random directions of the same "
            "variance; with 95 % intervals. The linear and the MLP probe are trained again on the vectors of the "
            "erased network. The fixed probe was trained on intact vectors: its change is the shift of the vectors, "
            "and no sign of what they hold. Where the probes that are trained again lose more than with random "
            "directions, something that they read has come through what was erased. Where they lose nothing, the "
            "property may have been left in its place, as the MLP shows above, or be held by other tokens as well: "
            "it does not follow that it was gathered again.",
            _name_places(at_end).drop(columns=["task"]),
        ),
        Exhibit(
            "How reliable the erasures are, as an MLP sees them that was trained on intact vectors of texts on which "
            "no eraser was fitted. Completeness: 1 where it gives every text the shares of the classes in train, as "
            "if it knew nothing of the text. Selectivity: 1 where it says of other properties "
            f"({', '.join(others) or 'none that it reads'}) exactly what it said before. Reliability: their harmonic "
            "mean. Intact vectors are not at 0, because the MLP is not certain of every text: compare with them, and "
            "with random directions. Empty: what the MLP does not read on intact vectors better than the most "
            "frequent class. Its place: the vectors that were erased; the end: [CLS] at "
            f"layer {read_at}, after the network has run on.",
            _name_places(reliable).drop(columns=["task", "seed"]),
        ),
    ]


def _name_places(table: pd.DataFrame) -> pd.DataFrame:
    """kind, tokens and layer as a reader calls them: the columns erased and kind."""
    places = table.tokens.replace(PLACES) + table.layer.map(", layer {}".format).where(table.tokens != "", "")
    named = table.drop(columns=["tokens", "layer"]).assign(kind=table.kind.replace(ERASED))
    named.insert(0, "erased", places)
    return named


def _spread_probes(leakage: pd.DataFrame) -> pd.DataFrame:
    """One row per erasure, with the accuracy of every probe and its interval."""
    key, numbers = ["erased", "kind", "moved"], ["value", "low", "high"]
    parts = [
        rows.set_index(key)[numbers].rename(columns=lambda name, probe=probe: f"{probe} {name}".removesuffix(" value"))
        for probe, rows in _name_places(leakage).groupby("probe", sort=False)
    ]
    return pd.concat(parts, axis=1).reset_index()


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
