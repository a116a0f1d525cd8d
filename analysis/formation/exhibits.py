"""The exhibits of the formation study, one task at a time. Pure: table rows in, exhibits out."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.answer import Exhibit
from clsprobe.analysis.formation import erasure_effects, swap_effects
from clsprobe.analysis.formation.agreement import summarise_twins
from clsprobe.analysis.formation.cuts import (
    DRAWS,
    EVERYTHING,
    INTACT,
    ONLY,
    RESTORED,
    Gathering,
    Window,
    compute_effects,
    split_halves,
)
from clsprobe.analysis.formation.wording import describe_writing, format_span

EDGES = {  # as a reader calls them
    "rest->cls": "[CLS] from all others",
    "content->cls": "[CLS] from the words",
    "sep->cls": "[CLS] from [SEP]",
    "cls->content": "the words from [CLS]",
}
NAN = (float("nan"),) * 3


def gathering_exhibits(gathering: Gathering, margin: float) -> list[Exhibit]:
    """What retrained probes of [CLS] read after every cut, of one task, and the same cuts in untrained encoders."""
    layer, everywhere = gathering.layer, Window(EVERYTHING, 1, gathering.layer)
    intact, cut_off = gathering.accuracy(INTACT), gathering.accuracy(everywhere)
    scale = f"{intact:.3f} intact, {cut_off:.3f} cut off in all of them"
    read = f"accuracy of a probe of [CLS] at layer {layer} that was trained anew on such vectors"
    shares = (
        "share: what is left of the difference between intact and cut off everywhere, with its 95 % interval (Fieller)"
        if gathering.share(INTACT)
        else "no share: an intact [CLS] is not certainly read better than one that is cut off everywhere"
    )
    exhibits = [
        Exhibit(
            f"Necessary? [CLS] cut off from all other tokens in a window of layers, from the layer of the row to that "
            f"of the column: {read}, with 95 % intervals; {scale}.",
            _tabulate_grid(gathering, EVERYTHING),
            "heatmap",
            {"metric": "accuracy"},
        ),
        Exhibit(
            f"Sufficient? [CLS] cut off in all layers except in a window, from the layer of the row to that of the "
            f"column: {read}, with 95 % intervals; {scale}.",
            _tabulate_grid(gathering, ONLY),
            "heatmap",
            {"metric": "accuracy"},
        ),
        Exhibit(
            f"The same, window by window: {read}, where [CLS] is cut off in the window, sees the other tokens in this "
            "window only, or is cut off everywhere and is given, in the window, what its attention wrote in the intact "
            f"pass; {scale}. costs: intact minus changed; {shares}.",
            _tabulate_windows(gathering),
        ),
    ]
    if layer > 1 and gathering.draws >= DRAWS:
        difference, trained, untrained = gathering.compare_halves()
        low, high = difference.interval()
        exhibits.append(
            Exhibit(
                f"The same cuts in {gathering.draws} untrained encoders, read at layer {layer} by probes of their own. "
                f"later: what the cut in the upper half costs minus what the one in the lower half costs. Trained "
                f"minus untrained {difference.effect:+.3f} ({low:+.3f} to {high:+.3f}), over test texts and draws; the "
                f"margin is {margin:g}.",
                _tabulate_encoders(gathering, trained, untrained),
            )
        )
    return exhibits


def shift_exhibits(knockout: pd.DataFrame, margin: float) -> list[Exhibit]:
    """How far single cuts move the vectors from those that the fixed probe was trained on, for every readout.

    knockout: rows of one task, `cuts.PREDICTIONS`.
    """
    exhibits = []
    for (layer, readout), rows in compute_effects(knockout).groupby(["layer", "readout"], sort=False):
        intact = rows[rows.edges == INTACT.edges].iloc[0]
        single = rows[(rows["first"] == rows["last"]) & (rows.edges != INTACT.edges)]
        single = single[(single.edges == EVERYTHING) | (readout == "cls")]
        table = pd.DataFrame(
            {
                "name": [f"{EDGES[row.edges]}, layer {row.first}" for row in single.itertuples()],
                "value": 0 - single.effect.to_numpy(),  # and not -0.0 where nothing is lost
                "low": 0 - single.high.to_numpy(),
                "high": 0 - single.low.to_numpy(),
            }
        )
        written = f" {describe_writing(knockout, margin)}" if readout == "cls" else ""
        exhibits.append(
            Exhibit(
                f"Shift: the accuracy that the fixed probe of {readout} at layer {layer}, trained on intact vectors "
                f"({intact.value:.3f}), loses where edges are cut in one layer, with 95 % intervals. It measures how "
                f"far the vectors move from those that it was trained on, and not what could still be read from "
                f"them.{written}",
                table,
                "intervals",
                {"metric": "shift", "reference": {"none": 0.0}},
            )
        )
    return exhibits


def _tabulate_grid(gathering: Gathering, edges: str) -> pd.DataFrame:
    """Columns layer (the first of a window), readout (its last), value, low, high: accuracies after this change."""
    windows = sorted((w for w in gathering.windows if w.edges == edges), key=lambda w: (w.last, w.first))
    values = np.array([gathering.accuracy(window) for window in windows])
    low, high = stats.wilson(values, gathering.texts_per_seed)
    columns = {"layer": [w.first for w in windows], "readout": [f"to {w.last}" for w in windows]}
    return pd.DataFrame({**columns, "value": values, "low": low, "high": high})


def _tabulate_windows(gathering: Gathering) -> pd.DataFrame:
    """A row for every change in a single block or in a half."""
    rows = []
    halves = split_halves(gathering.layer) if gathering.layer > 1 else ()
    spans = dict.fromkeys([*((block, block) for block in range(1, gathering.layer + 1)), *halves])
    for edges, what in ((EVERYTHING, "cut off in"), (ONLY, "sees only in"), (RESTORED, "restored in")):
        for window in (Window(edges, *span) for span in spans):
            if window not in gathering.windows:
                continue  # this encoder's attention cannot be restored
            loss = gathering.lose(window)
            name = f"{what} {format_span(*window[1:])}"
            rows.append(
                (name, gathering.accuracy(window), loss.effect, *loss.interval(), *(gathering.share(window) or NAN))
            )
    columns = ["change", "accuracy", "costs", "costs low", "costs high", "share", "share low", "share high"]
    return pd.DataFrame(rows, columns=columns)


def _tabulate_encoders(gathering: Gathering, trained: float, untrained: float) -> pd.DataFrame:
    """A row for the trained encoder and one for the mean of the untrained ones."""
    lower, upper = split_halves(gathering.layer)
    windows = {
        "intact": INTACT,
        f"cut off in {format_span(*lower)}": Window(EVERYTHING, *lower),
        f"cut off in {format_span(*upper)}": Window(EVERYTHING, *upper),
        f"sees only in {format_span(*lower)}": Window(ONLY, *lower),
        f"sees only in {format_span(*upper)}": Window(ONLY, *upper),
        "cut off everywhere": Window(EVERYTHING, 1, gathering.layer),
    }
    encoders = {"trained": "none", f"untrained, mean of {gathering.draws}": "untrained"}
    values = {name: [gathering.accuracy(w, control) for control in encoders.values()] for name, w in windows.items()}
    return pd.DataFrame({"encoder": [*encoders], **values, "later": [trained, untrained]})


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
    at_end = erasure_effects.compute_effects(erased)
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


def explanation_exhibits(
    profiles: pd.DataFrame, agreement: pd.DataFrame, baselines: pd.DataFrame, tokens: pd.DataFrame
) -> list[Exhibit]:
    """The fixed probe's shift, attention and attribution layer by layer, how far they agree, and words in some texts.

    Rows of one task each.
    """
    agreement = agreement.drop(columns="task")
    correlations = "; ".join(
        f"{row.other} {row.correlation:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
        for row in agreement[agreement.one == agreement.one.iloc[0]].itertuples()
    )
    complete = tokens.groupby("text").complete.first()
    texts, incomplete = len(complete), int((~complete).sum())
    return [
        Exhibit(
            "Three kinds of evidence for where the vector that the fixed probe reads is written, each as a share of "
            "its largest layer. Shift: what this probe loses where [CLS] is cut off in that layer alone. Attention: "
            "the weight that [CLS] gives to content tokens; value zeroing: how far it turns without their values. "
            "Attribution: by how much more than one layer below the words move [CLS] along the probe's direction. "
            "None of them says where [CLS] could be read: the retrained probes do. Rank correlation with the shift "
            f"over the layers, with the 95 % interval of a bootstrap over texts: {correlations}.",
            profiles.drop(columns="task"),
            "curves",
            {"metric": "share of the largest layer"},
        ),
        Exhibit("How far they agree: rank correlations over the layers.", agreement),
        Exhibit(
            "What every word does to the number that the probe reads of [CLS], towards the text's own label, in some "
            "test texts (integrated gradients; in the baseline a mask token stands for every word). The scores of a "
            "text should add up to the difference from the baseline: in "
            f"{incomplete or 'none'} of these {texts} texts they miss it by more than 1 %.",
            tokens.drop(columns="task"),
            "token_strips",
            {"metric": "attribution"},
        ),
        Exhibit(
            "How far attribution depends on its baseline, in which every word is replaced: by the mask token, as "
            "everywhere else on this page, by padding, by no embedding or by the mean of all embeddings. Rank "
            "correlation with the mask token, of the words' scores within a text (mean over the texts above) and of "
            "the layer profile (over up to 20 texts), with 95 % intervals. Far below 1, the scores say as "
            "much of the baseline as of the text. incomplete: texts whose scores miss the difference by more than 1 %.",
            baselines.drop(columns="task"),
        ),
    ]


def twin_exhibits(twins: pd.DataFrame) -> list[Exhibit]:
    """How far attribution agrees with exchanging the words that differ in minimal pairs. Rows of one task."""
    unit = "lemmas" if (twins.lemma != "").all() else "pairs"
    summary = summarise_twins(twins, swap_effects.name_clusters(twins.lemma, twins.pair))
    incomplete = int((~twins.complete).sum())
    return [
        Exhibit(
            f"Does attribution name the words that make the difference? In {len(twins)} minimal pairs a sentence is "
            "exchanged for its twin, which differs only in the words that the label demands, and the number that the "
            "probe reads changes by a known amount. Beside it the scores (integrated gradients, mask token) of the "
            "words that differ, in one text less in the other. share: what part of the mean change they make up, 1 if "
            "all of it; the rest is attributed to words that are the same in both. correlation: over the pairs. slope: "
            "by how much the number changes where these scores differ by 1. 95 % intervals over "
            f"{unit}. Pairs whose scores do not add up to the difference from the baseline: {incomplete}.",
            summary,
        )
    ]


def swap_exhibits(swaps: pd.DataFrame, reliability: pd.DataFrame) -> list[Exhibit]:
    """What a swap of [CLS] between twins carries, layer by layer, and how complete and selective it is.

    Rows of one task, columns `swap_effects.SWAPS` and `swap_effects.RELIABILITY`.
    """
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
        *_swap_reliability(swap_effects.compute_reliability(reliability), last, unit),
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
