"""What swaps between minimal pairs show, from their table alone. Imports no torch.

1. A text's log-odds towards its twin's label rise by some amount if the whole text is exchanged for its twin. The
   *effect* of a swap is the share of this rise that the swap brings: a ratio of two means over texts.
2. `compute_effects` gives the effect of every swap at every layer, `compute_rises` its rise from layer to layer.
3. Sentences with one lemma resemble each other: intervals are those of a delete-one jackknife over lemmas, with a t of
   lemmas - 1 degrees of freedom (the CV3 of MacKinnon, Nielsen & Webb 2023, doi 10.1002/jae.2990).

Over both texts of a pair, the effect of swapping [CLS] and that of swapping all other tokens add up to 1: the [CLS] of
one text with the other tokens of its twin is the first swap in the twin and the second in the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t

from clsprobe.analysis.verdict import TAIL

INTACT, WHOLE = "none", "whole text"
CLS, OTHERS, SAME_LABEL = SWAPPED = "[CLS]", "all other tokens", "[CLS], same label"
COMPLETENESS, SELECTIVITY, ABOVE_MAJORITY = "completeness", "selectivity", "accuracy above the majority"
KEY = ("task", "layer", "swap", "read at", "seed", "pair", "lemma", "label", "twin_label")
SWAPS = (*KEY, "log_odds")
RELIABILITY = (*KEY, "measure", "property", "value")
FEWEST = 5  # lemmas below which there is no interval


@dataclass(frozen=True, eq=False)
class Ratios:
    """Ratios of sums over clusters. numerators: (cluster, ratio). denominators: (cluster,)."""

    numerators: np.ndarray
    denominators: np.ndarray

    def estimate(self, weights: np.ndarray | None = None, tail: float = TAIL) -> dict[str, np.ndarray]:
        """value, low, high (combination,) of linear combinations of the ratios, by default of each alone.

        weights: (ratio, combination). low and high are NaN for fewer than `FEWEST` clusters.
        """
        weights = np.eye(self.numerators.shape[1]) if weights is None else weights
        count, total, whole = len(self.denominators), self.numerators.sum(0), self.denominators.sum()
        value = total / whole @ weights
        if count < FEWEST:
            return {"value": value, "low": np.full_like(value, np.nan), "high": np.full_like(value, np.nan)}
        without = (total - self.numerators) / (whole - self.denominators)[:, None] @ weights
        half = t.isf(tail, count - 1) * np.sqrt((count - 1) / count * ((without - value) ** 2).sum(0))
        return {"value": value, "low": value - half, "high": value + half}


def compute_effects(swaps: pd.DataFrame) -> pd.DataFrame:
    """The effect of every swap at every layer, with its 95 % interval over lemmas.

    swaps: columns `SWAPS`, rows of one task. Columns swap, layer, value, low, high.
    """
    changes = _list_changes(swaps)
    table = changes[[*SWAPPED]].columns.to_frame(index=False)
    return table.assign(**_divide_changes(changes, [*SWAPPED]).estimate())


def compute_rises(swaps: pd.DataFrame) -> pd.DataFrame:
    """By how much the effect of swapping [CLS] rises in every block.

    swaps: columns `SWAPS`, rows of one task. Columns block, value, low, high: 95 % intervals over lemmas, simultaneous
    over the blocks (Bonferroni); largest: False where the rise is certainly smaller than that of some other block.
    """
    changes = _list_changes(swaps)
    ratios, blocks = _divide_changes(changes, [CLS]), changes[CLS].columns[1:].to_numpy()
    steps = np.diff(np.eye(len(blocks) + 1), axis=0).T  # (layer, block): 1 at the block's own layer, -1 below it
    table = pd.DataFrame({"block": blocks, **ratios.estimate(steps, TAIL / len(blocks))})
    first = steps[:, [int(table.value.argmax())]]
    lead = ratios.estimate(first - steps, TAIL / max(len(blocks) - 1, 1))
    return table.assign(largest=~(lead["low"] > 0))


def measure_change(swaps: pd.DataFrame) -> dict[str, float]:
    """value, low, high of the mean change of the log-odds between a text and its twin, with a 95 % interval.

    swaps: columns `SWAPS`, rows of one task.
    """
    by_cluster = _list_changes(swaps)[WHOLE].groupby(level="cluster")
    estimate = Ratios(by_cluster.sum().to_numpy(), by_cluster.size().to_numpy(float)).estimate()
    return {name: float(number[0]) for name, number in estimate.items()}


def compute_reliability(reliability: pd.DataFrame) -> pd.DataFrame:
    """Means over texts of what an independent probe measures, with 95 % intervals over lemmas.

    reliability: columns `RELIABILITY`, rows of one task. Columns swap, layer, measure, property, value, low, high.
    """
    table = []
    rows = reliability.dropna(subset="value")
    for key, part in rows.groupby(["swap", "layer", "measure", "property"], sort=False):
        sums = part.value.groupby(name_clusters(part.lemma, part.pair)).agg(["sum", "size"]).to_numpy(float)
        estimate = Ratios(sums[:, :1], sums[:, 1]).estimate()
        table.append((*key, *(number[0] for number in estimate.values())))
    return pd.DataFrame(table, columns=["swap", "layer", "measure", "property", "value", "low", "high"])


def describe_swaps(swaps: pd.DataFrame) -> str:
    """A clause on where the effect of swapping [CLS] rises. swaps: columns `SWAPS`, rows of one task."""
    last, pairs, change = int(swaps["read at"].iloc[0]), swaps.pair.nunique(), measure_change(swaps)
    if not change["low"] > 0:
        unit, few, missing = name_unit(swaps), "", ""
        if math.isnan(change["low"]):
            few, missing = f" of {count_clusters(swaps)} {unit}", f"; fewer than {FEWEST} {unit} give no interval"
        return (
            f"the probe of [CLS] at layer {last} does not certainly tell the twins of {pairs} minimal pairs{few} apart "
            f"(they differ by {_in_words(change, 'z.2f')} nats of log-odds{missing}), so that swaps between them show "
            "nothing"
        )
    if last == 1:
        return (
            "the probe reads [CLS] at layer 1, where a swap brings all of the difference by construction, and none at "
            "layer 0: there is no layer between them at which swaps could show something"
        )
    effects, rises = compute_effects(swaps), compute_rises(swaps)
    effects = effects[effects.swap == CLS].set_index("layer")
    blocks = rises.block[rises.largest].tolist()
    below, above = (_in_words(effects.loc[layer].to_dict(), "z.0%") for layer in (blocks[0] - 1, blocks[-1]))
    above = "all of it by construction" if blocks[-1] == last else above
    numbers = " or ".join(map(str, blocks))
    return (
        f"swapped between the twins of {pairs} minimal pairs, [CLS] of layer {blocks[0] - 1} carries {below} of their "
        f"difference as the probe at layer {last} reads it, and [CLS] of layer {blocks[-1]} {above}: the largest part "
        f"comes to [CLS] from the other tokens in block {numbers}{', it is not certain in which' if blocks[1:] else ''}"
        f"{f', whatever [CLS] of layer {blocks[0] - 1} holds of it' if blocks[0] > 1 else ''}"
    )


def name_unit(swaps: pd.DataFrame) -> str:
    """What the intervals are over: lemmas, or pairs where no single word carries the label."""
    return "lemmas" if swaps.lemma.any() else "pairs"


def count_clusters(swaps: pd.DataFrame) -> int:
    """The number of lemmas, or of pairs where no single word carries the label."""
    return len(set(name_clusters(swaps.lemma, swaps.pair)))


def _in_words(estimate: Mapping[str, float], form: str) -> str:
    """ "7 % (5 % to 9 %)", with "z" in the form and so without a minus before 0; without an interval where there is
    none, or where the value is exact by construction."""
    value, low, high = (format(estimate[name], form).replace("%", " %") for name in ("value", "low", "high"))
    return value if low in (value, "nan") and high in (value, "nan") else f"{value} ({low} to {high})"


def name_clusters(lemmas: Iterable[str], pairs: Iterable[int]) -> list[str]:
    """The lemma of every row, or its pair where no single word carries the label."""
    return [lemma or f"pair {pair}" for lemma, pair in zip(lemmas, pairs, strict=True)]


def _list_changes(swaps: pd.DataFrame) -> pd.DataFrame:
    """The change of the log-odds by every swap: rows cluster, pair, label; columns swap, layer (both sorted)."""
    table = swaps.assign(cluster=name_clusters(swaps.lemma, swaps.pair))
    log_odds = table.set_index(["cluster", "pair", "label", "swap", "layer"]).log_odds.unstack(["swap", "layer"])
    return log_odds.sub(log_odds[INTACT].iloc[:, 0], axis=0).sort_index(axis=1)


def _divide_changes(changes: pd.DataFrame, names: list[str]) -> Ratios:
    """The changes by these swaps at their layers as shares of that by the whole text. changes: of `_list_changes`."""
    sums = changes.groupby(level="cluster").sum()
    return Ratios(sums[names].to_numpy(), sums[WHOLE].to_numpy()[:, 0])
