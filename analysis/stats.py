"""Intervals, tests and corrections, all from tables and arrays.

1. `intervals`: accuracy, macro-F1 and bits of many cells with their 95 % intervals, each in closed form: `wilson` for a
   proportion, `macro_f1` by smoothed counts and the delta method, `mean_interval` for a mean of losses.
   `number_intervals`: the same for R2 and Spearman's correlation of numbers. Coverage: docs/statistics.md.
2. `bootstrap`: the replicates of any other metric, in blocks of bounded memory, the same numbers every time.
3. `best_layers`: the layer of every readout, chosen on dev.
4. `compare`: two readouts over the same test texts; seeds and texts are crossed, not nested, and refits on halves of
   the training texts give the variance of training (`training_variance`). Its tests agree with its interval.
   `difference_intervals`: one seed of many cells.
5. Many comparisons: `analysis.verdict.holm` over a few, `max_t` over the cells of a grid (`above_chance`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import special, stats
from scipy.optimize import brentq

from clsprobe.analysis.table import KEY, NUMBERS
from clsprobe.analysis.verdict import TAIL, MissingEvidence
from clsprobe.probes import metric

DRAWS = 2000
LEVEL = 0.95
SMALLEST_P = 1e-100  # a smaller p is 0: the quantiles of t with 3 degrees of freedom are -inf at 1e-300 in scipy
BLOCK = 64 << 20  # bytes of resamplings in memory at once
Z = float(stats.norm.ppf((1 + LEVEL) / 2))

UNPAIRED = "a paired difference needs both sides measured on the same texts and seeds"

CELL = ["model", "task", "layer", "readout", "probe", "seed"]  # the columns that identify a cell of one control

Interval = tuple[np.ndarray, np.ndarray]  # low, high
Estimate = tuple[np.ndarray, np.ndarray, np.ndarray]  # value, low, high


def intervals(codes: np.ndarray, labels: np.ndarray, log2_probability: np.ndarray | None = None) -> dict[str, Estimate]:
    """Metric -> value, low, high, each (cell,), with low <= value <= high.

    codes: (cell, text) predicted. labels: (text,). log2_probability: (cell, text) of each text's label; without it no
    bits. Bits and their interval are infinite where a label has probability 0.
    """
    unweighted = np.ones((1, len(labels)))
    accuracy = metric.accuracy(codes, labels, unweighted)[:, 0]
    measured = {
        "accuracy": (accuracy, *wilson(accuracy, len(labels))),
        "macro_f1": (metric.macro_f1(codes, labels, unweighted)[:, 0], *macro_f1(codes, labels)),
    }
    if log2_probability is not None:
        low, high = mean_interval(-log2_probability)
        measured["bits"] = (metric.bits(log2_probability, unweighted)[:, 0], low.clip(0), high)
    return {
        name: (value, np.minimum(low, value), np.maximum(high, value)) for name, (value, low, high) in measured.items()
    }


def number_intervals(predicted: np.ndarray, numbers: np.ndarray) -> dict[str, Estimate]:
    """Metric of numbers -> value, low, high, each (cell,), with low <= value <= high.

    predicted: (cell, text). numbers: (text,) true. R2: `mean_interval` over the texts' `skill`. Spearman's correlation:
    on Fisher's scale, with the variance (1 + r^2 / 2) / (n - 3) of Bonett & Wright (2000).
    """
    unweighted = np.ones((1, len(numbers)))
    r2, rho = (metric_of(predicted, numbers, unweighted)[:, 0] for metric_of in (metric.r2, metric.spearman))
    angle = np.arctanh(rho.clip(-1 + 1e-12, 1 - 1e-12))
    half_width = Z * np.sqrt((1 + rho**2 / 2) / max(len(numbers) - 3, 1))
    measured = {
        "r2": (r2, *mean_interval(skill(predicted, numbers))),
        "spearman": (rho, np.tanh(angle - half_width), np.tanh(angle + half_width)),
    }
    return {
        name: (value, np.minimum(low, value), np.maximum(high, value).clip(max=1))
        for name, (value, low, high) in measured.items()
    }


def skill(predicted: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(..., text) the contribution of every text to R2: their mean is R2, their spread gives its sampling variance.

    predicted, numbers (the true ones): (..., text). 1 - error^2 / variance, plus the text's influence on the variance
    of the sample: R2 and its influence function (Hampel 1974). 0 for numbers without variance.
    """
    squared = (numbers - numbers.mean(-1, keepdims=True)) ** 2
    variance = squared.mean(-1, keepdims=True)
    varies = variance > 0
    error, deviation = ((part / np.where(varies, variance, 1)) for part in ((predicted - numbers) ** 2, squared))
    return np.where(varies, 1 - error + error.mean(-1, keepdims=True) * (deviation - 1), 0)


def wilson(share: np.ndarray, n: int) -> Interval:
    """The 95 % interval of a proportion of n independent texts (Wilson 1927)."""
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half_width = Z / (1 + Z * Z / n) * np.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return np.minimum(centre - half_width, share).clip(0, 1), np.maximum(centre + half_width, share).clip(0, 1)


def mean_interval(values: np.ndarray) -> Interval:
    """The 95 % interval of a mean, (..., text) -> (...): a t interval with the skewness transformed away (Hall 1992).

    The losses of a good probe are nearly all small and a few large, which a symmetric interval and a percentile
    bootstrap both miss on the upper side.
    """
    n = values.shape[-1]
    mean = values.mean(-1)
    with np.errstate(invalid="ignore", divide="ignore"):  # infinite values have an infinite interval, constants none
        spread = values - mean[..., None]
        deviation = np.sqrt((spread**2).mean(-1))
        a = np.nan_to_num((spread**3).mean(-1) / deviation**3) / 3
    a = np.where(np.abs(a) < 1e-6, 1e-6, a)  # the limit at no skewness is the interval without the transformation
    t = stats.t.ppf((1 + LEVEL) / 2, max(n - 1, 1)) / np.sqrt(max(n - 1, 1))
    low, high = (
        mean - (np.cbrt(1 + 3 * a * (sign * t - a / (2 * n))) - 1) / a * np.nan_to_num(deviation) for sign in (1, -1)
    )
    return low, high


def macro_f1(codes: np.ndarray, labels: np.ndarray) -> Interval:
    """The 95 % interval of macro-F1, codes (cell, text), labels (text,) -> (cell,).

    F1 of a class is 2 J / (1 + J), where J is the share of hits among the texts that are of the class or predicted as
    it. Z^2 / 2 hits and as many misses, divided among the classes, are added to these counts (Agresti & Coull 1998;
    Price & Bonett 2004); otherwise a rare class that was always right would seem certain. The bias of the curved
    2 J / (1 + J) is subtracted. The variance of the mean is that of the delta method (Takahashi et al. 2022), in which
    an error affects two classes. The interval is symmetric on the angular scale (Anscombe 1948). Their combination is
    ours.
    """
    classes, label_indices = np.unique(labels, return_inverse=True)  # macro-F1 is over the classes among the labels
    class_indices = np.searchsorted(classes, codes).clip(max=len(classes) - 1)
    # the last index: any other class
    class_indices = np.where(classes[class_indices] == codes, class_indices, len(classes))
    cells, width = len(codes), len(classes) + 1

    def counts(mask: np.ndarray) -> np.ndarray:
        flat = (np.arange(cells)[:, None] * width + class_indices)[mask]
        return np.bincount(flat, minlength=cells * width).reshape(cells, width)[:, :-1]

    correct = class_indices == label_indices
    hits, predicted = counts(correct), counts(np.ones_like(correct))
    pseudo_count = Z * Z / 2 / len(classes)
    misses = np.bincount(label_indices) + predicted - 2 * hits + pseudo_count
    hits = hits + pseudo_count
    union = hits + misses
    J = hits / union
    f1 = 2 * J / (1 + J)
    centre = (f1 + 2 * J * (1 - J) / (1 + J) ** 3 / union).mean(1).clip(0, 1)

    influence = f1 / (hits + union)  # derivative of F1 in an error that involves the class
    variance = (((2 - 2 * f1) / (hits + union)) ** 2 * hits + influence**2 * misses).sum(1)
    influence = np.pad(influence, ((0, 0), (0, 1)))
    variance += 2 * (~correct * influence[:, label_indices] * np.take_along_axis(influence, class_indices, 1)).sum(1)
    angle = np.arcsin(np.sqrt(centre))
    half_width = Z * np.sqrt(variance) / len(classes) / (2 * np.sqrt(np.maximum(centre * (1 - centre), 1e-12)))
    low, high = (np.sin((angle + sign * half_width).clip(0, np.pi / 2)) ** 2 for sign in (-1, 1))
    return low, high


@lru_cache(maxsize=2)  # a sweep needs those of dev and of test repeatedly
def resamplings(n: int, *, first: int = 0, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """(draw, text) how often each of n texts is drawn when n are drawn with replacement; read-only.

    Draw i does not depend on the block of draws that it is requested in.
    """
    counts = np.empty((draws, n), np.float32)
    for i, draw in enumerate(counts, first):
        draw[:] = np.bincount(np.random.default_rng([seed, i]).integers(n, size=n), minlength=n)
    counts.setflags(write=False)
    return counts


def bootstrap(measure: Callable[[np.ndarray], np.ndarray], n: int, *, seed: int = 0) -> np.ndarray:
    """(..., draw) the replicates of a metric over n texts, for `percentile`.

    measure: weights (draw, text) -> (..., draw), as in `probes.metric`. It is called with `BLOCK` bytes of weights at a
    time; the draws do not depend on the size of the blocks.
    """
    block = max(1, BLOCK // (4 * n))
    blocks = ((first, min(block, DRAWS - first)) for first in range(0, DRAWS, block))
    return np.concatenate([measure(resamplings(n, first=first, draws=draws, seed=seed)) for first, draws in blocks], -1)


def percentile(replicates: np.ndarray) -> Interval:
    """The 95 % percentile interval along the last axis, (..., draw) -> low, high."""
    finite = np.where(np.isfinite(replicates), replicates, np.inf)
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=-1, method="nearest")
    return low, high


def best_layers(predictions: pd.DataFrame, control: str = "none") -> pd.DataFrame:
    """For every task and readout the layer with the best dev accuracy (then the fewest dev bits, then the lowest).

    Where seeds have splits of their own, dev texts that another seed tests on are excluded, as long as others are left.
    Returns columns task, readout, probe, layer, dev (accuracy, or R2 of numbers; mean over seeds), best first within a
    task.
    """
    chosen = predictions.control == control
    rows = predictions[chosen & (predictions.split == "dev")]
    if predictions.seed[chosen].nunique() > 1:
        test = predictions[chosen & (predictions.split == "test")]
        tested, texts = (pd.MultiIndex.from_frame(side[["task", "row"]]) for side in (test, rows))
        untested = ~texts.isin(tested)
        remain = rows.task.astype(str).isin(set(rows.task[untested].astype(str)))
        rows = rows[untested | ~remain]
    cell = ["task", "readout", "probe", "layer"]
    index, first = index_groups(rows, cell)
    sums = {"dev": np.bincount(index, scores(rows)), "bits": -np.bincount(index, rows.log2_probability)}
    scored = rows[cell].iloc[first].assign(**{name: total / np.bincount(index) for name, total in sums.items()})
    order = {"task": True, "dev": False, "bits": True, "layer": True, "readout": True, "probe": True}
    scored = scored.sort_values([*order], ascending=[*order.values()]).drop_duplicates(["task", "readout", "probe"])
    return scored[["task", "readout", "probe", "layer", "dev"]].reset_index(drop=True)


def index_groups(table: pd.DataFrame, columns: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(row of the table,) the index of its group of equal values in these columns, and (group,) the first row of each.

    As `groupby`, whose index of several columns takes far longer to make than to use.
    """
    codes = [pd.factorize(table[column])[0] for column in columns]
    numbers = np.ravel_multi_index(codes, [column.max(initial=0) + 1 for column in codes])
    _, first, index = np.unique(numbers, return_index=True, return_inverse=True)
    return index, first


def is_correct(predictions: pd.DataFrame) -> pd.Series:
    """(row of the table,) True where the predicted class is the label's."""
    label, predicted = predictions.label, predictions.predicted
    if isinstance(label.dtype, pd.CategoricalDtype) and label.dtype == predicted.dtype and not label.cat.ordered:
        return label == predicted
    return label.astype(str) == predicted.astype(str)


def of_numbers(predictions: pd.DataFrame) -> bool:
    """Whether these predictions are numbers. predictions: those of one task."""
    return NUMBERS[0] in predictions and bool(predictions[NUMBERS[0]].notna().any())


def scores(predictions: pd.DataFrame) -> pd.Series:
    """(row of the table,) 1 where correct, else 0; of numbers `skill`: the mean is the score of the cell."""
    values = is_correct(predictions).to_numpy(float)
    if of_numbers(predictions):
        positions = np.flatnonzero(predictions[NUMBERS[0]].notna())
        true, predicted = (predictions[column].to_numpy()[positions] for column in NUMBERS)
        for cell in predictions.iloc[positions].groupby(list(KEY[:-1]), observed=True, sort=False).indices.values():
            values[positions[cell]] = skill(predicted[cell], true[cell])
    return pd.Series(values, predictions.index)


def correctness(predictions: pd.DataFrame, *, split: str = "test", **where: object) -> pd.DataFrame:
    """(seed, row) True where the prediction of one cell is correct, NaN where the seed has no such row on this side; of
    numbers `skill`.

    where: column = value, e.g. ``task=..., control="none", layer=5, readout="cls", probe="logistic"``. Raises
    MissingEvidence where that is no cell, and ValueError where it is more than one.
    """
    chosen = predictions.split == split
    for column, value in where.items():
        chosen &= predictions[column] == value
    rows = predictions[chosen]
    if rows.empty:
        cell = ", ".join(f"{column} {value}" for column, value in where.items())
        raise MissingEvidence(f"no cell of the predictions on {split} has {cell}")
    if rows.duplicated(["seed", "row"]).any():
        raise ValueError(f"more than one cell of the predictions has {where}")
    return scores(rows).set_axis(pd.MultiIndex.from_frame(rows[["seed", "row"]])).unstack("row")


def tabulate_correct(predictions: pd.DataFrame) -> pd.DataFrame:
    """(seed, row) 1 where a prediction is correct, else 0. predictions: of one cell, of classes."""
    index = pd.MultiIndex.from_frame(predictions[["seed", "row"]])
    return is_correct(predictions).astype(float).set_axis(index).unstack("row")


@dataclass(frozen=True, eq=False)
class Difference:
    """The mean of a - b over the same texts, see `compare`: an `analysis.verdict.Estimate`.

    effect: the mean. centre: of its intervals, whose ends lie within `largest` of 0. variance, freedom: factor
    ("texts" of test, "seeds", "training") -> those of the mean.
    """

    effect: float
    centre: float
    variance: Mapping[str, float]
    freedom: Mapping[str, float]
    largest: float = np.inf

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return int(self.freedom.get("seeds", 0)) + 1

    @property
    def of_fits(self) -> Difference:
        """The same without the variance of training: of these probes as they were fitted."""
        variance = {factor: value for factor, value in self.variance.items() if factor != "training"}
        return replace(self, variance=variance)

    def half_width(self, tail: float = TAIL, **times: float) -> float:
        """Half the width of the interval that leaves out `tail` on either side. times: factor -> how many times as many
        texts (of test), seeds or training texts there would be."""
        variance = [value / times.get(factor, 1.0) for factor, value in self.variance.items()]
        return _half_width(tail, np.array(variance), np.array([self.freedom[factor] for factor in self.variance]))

    def interval(self, tail: float = TAIL) -> tuple[float, float]:
        """The interval that leaves out `tail` on either side."""
        half_width = self.half_width(tail)
        return max(self.centre - half_width, -self.largest), min(self.centre + half_width, self.largest)

    def times_needed(self, distance: float, tail: float, *factors: str) -> float:
        """How many times as many of these factors there have to be for half the interval to be `distance`; infinite
        where the others alone make it wider."""

        def excess(times: float) -> float:
            return self.half_width(tail, **dict.fromkeys(factors, times)) - distance

        fewest, most = 1e-9, 1e6
        if excess(most) >= 0:
            return np.inf
        return float(brentq(excess, fewest, most)) if excess(fewest) > 0 else fewest  # texts that do not differ

    def p_above(self, threshold: float) -> float:
        """The one-sided p of "a - b is not above the threshold"."""
        return self._tail_probability(self.centre - threshold)

    def p_below(self, threshold: float) -> float:
        """The one-sided p of "a - b is not below the threshold"."""
        return self._tail_probability(threshold - self.centre)

    def _tail_probability(self, distance: float) -> float:
        """The probability `tail` for which `half_width` is `distance`."""
        if distance < 0:
            return 1 - self._tail_probability(-distance)
        if not sum(self.variance.values()) > 0:
            return 0.0 if distance > 0 else 1.0
        if self.half_width(SMALLEST_P) <= distance:
            return 0.0
        log = brentq(lambda q: self.half_width(np.exp(q)) - distance, np.log(SMALLEST_P), np.log(0.5))
        return float(np.exp(log))


def compare(
    a: np.ndarray,
    b: np.ndarray,
    *,
    shares: bool = True,
    halves: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Difference:
    """The mean of a - b over the same texts. a, b: (seed, text), NaN where a seed lacks one. shares: whether all values
    lie within 0..1; otherwise the interval of one seed is Student's. halves: (halving, half, seed, text) a - b of
    probes that were fitted on half of the training texts (`training_variance`): with them the interval is that of the
    expected difference between two procedures, without them that of these fitted probes. groups: (text,) equal for
    texts that are not independent, such as those of one author (clusters, with the factor G / (G - 1) and the t of
    G - 1 degrees); None: all are.

    One seed: the adjusted interval for paired proportions of Bonett & Price (2012), who add two texts to shares, one
    that only a gets right and one that only b does; otherwise ten texts without a difference would prove that there is
    none. More: seeds and texts are crossed factors (Owen 2007), so the variance of the mean is that over texts plus
    that over seeds, and each of the two has the t of its own degrees of freedom (Cochran & Cox 1950): with two or three
    seeds Satterthwaite's degrees, which are estimated as well, cover as little as 0.88. Raises ValueError where a and b
    were not measured on the same texts.
    """
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        raise ValueError(UNPAIRED)
    difference = a - b
    seeds, texts = difference.shape
    total, counts = np.nansum(difference, 0), (~np.isnan(difference)).sum(0)  # (text,)
    pseudo_texts = counts.mean() if shares else 0.0  # a text counts as often as seeds tested it
    total_count = counts.sum() + 2 * pseudo_texts
    centre = total.sum() / total_count
    deviation = _add_within(groups, total - centre * counts)
    squares, units = (deviation**2).sum(), len(deviation)
    freedom_of_texts = units + 1 if shares else max(units - 1, 1)
    if units < texts:  # the two texts that are added are no groups
        squares, freedom_of_texts = squares * units / (units - 1), units - 1
    over_texts = (squares + 2 * pseudo_texts**2 * (1 + centre**2)) / total_count**2
    variance, freedom = {"texts": float(over_texts)}, {"texts": freedom_of_texts}
    if seeds > 1:
        variance["seeds"], freedom["seeds"] = float(np.nanmean(difference, 1).var(ddof=1) / seeds), seeds - 1
    if halves is not None:
        variance["training"], freedom["training"] = training_variance(halves, groups), len(halves)
    effect, largest = float(total.sum() / counts.sum()), 1.0 if shares else np.inf
    return Difference(effect, float(centre), variance, freedom, largest)


def training_variance(halves: np.ndarray, groups: np.ndarray | None = None) -> float:
    """The variance that other training texts would give to a mean over test texts, from complementary halvings.

    halves: (halving, half, seed, text) a score, or a difference of scores, of probes fitted on either half of the
    training texts, over the same test texts; NaN where a seed lacks a text. The squared difference of two means is
    twice the variance of a probe that is fitted on half of the texts, plus the sampling variance of the mean of the
    texts' own differences (the interaction of training and test texts), which is subtracted. Its half is the variance
    at all of the texts: the half-sample method (McCarthy 1969), or the jackknife that deletes half (Shao & Wu 1989).
    """
    between = halves[:, 0] - halves[:, 1]  # (halving, seed, text)
    difference, texts = np.nanmean(between, -1), (~np.isnan(between)).sum(-1)
    deviation = _add_within(groups, np.nan_to_num(between - difference[..., None]))
    units = max(deviation.shape[-1], 2)
    interaction = (deviation**2).sum(-1) / texts**2 * units / (units - 1)
    at_half = np.mean((difference**2 - interaction) / 2)
    return float(max(at_half, 0.0) / 2)


def _add_within(groups: np.ndarray | None, values: np.ndarray) -> np.ndarray:
    """(..., text) -> (..., group) the sums over the texts of every group.

    A single group says nothing about others: its texts count as independent, as those without groups do.
    """
    if groups is None or (groups == groups[:1]).all():
        return values
    order = np.argsort(groups, kind="stable")
    starts = np.unique(groups[order], return_index=True)[1]
    return np.add.reduceat(values[..., order], starts, axis=-1)


def _compare_tables(a: pd.DataFrame, b: pd.DataFrame, *, shares: bool = True) -> Difference:
    if not (a.index.equals(b.index) and a.columns.equals(b.columns)):
        raise ValueError(UNPAIRED)
    return compare(a.to_numpy(float), b.to_numpy(float), shares=shares)


def paired_difference(a: pd.DataFrame, b: pd.DataFrame, *, shares: bool = True) -> tuple[float, float, float]:
    """The mean of a - b with its 95 % interval, see `compare`. a, b: (seed, row), see `correctness`."""
    difference = _compare_tables(a, b, shares=shares)
    return difference.effect, *difference.interval()


def _half_width(tail: float, variance: np.ndarray, freedom: np.ndarray) -> float:
    """The half-width of an interval with these variances that leaves out `tail` on either side."""
    total = variance.sum()
    quantiles = -special.stdtrit(freedom, tail)  # of Student's t, as `stats.t.isf`, which checks much more
    return float(variance @ quantiles / np.sqrt(total)) if total > 0 else 0.0


def difference_intervals(a: np.ndarray, b: np.ndarray, *, shares: bool) -> Interval:
    """The 95 % intervals of mean(a) - mean(b), each (cell,), of one seed.

    a, b: (cell, text), NaN where a text does not count on that side; the means may be over different texts, of which
    the shared ones are paired. shares: values within 0..1, as in `paired_difference`; otherwise any values, by
    `mean_interval`.
    """
    parts = []
    for side in (a, b):
        counts = ~np.isnan(side)
        with np.errstate(invalid="ignore"):  # infinite bits have an infinite interval
            mean = np.nanmean(side, 1, keepdims=True)
            parts.append((mean, np.where(counts, side - mean, 0) * side.shape[1] / counts.sum(1, keepdims=True)))
    (mean_a, deviation_a), (mean_b, deviation_b) = parts
    values = mean_a - mean_b + deviation_a - deviation_b  # (cell, text) a - b itself where both sides count every text
    if not shares:
        return mean_interval(values)
    n = values.shape[1] + 2
    centre = values.sum(1) / n
    error = np.sqrt((((values - centre[:, None]) ** 2).sum(1) + 2 * (1 + centre**2)) / n) / np.sqrt(n)
    half_width = stats.t.ppf((1 + LEVEL) / 2, n - 1) * error
    return centre - half_width, centre + half_width


def normalised_differences(
    a: np.ndarray, b: np.ndarray, labels_a: np.ndarray, labels_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, low, high, each (cell,): the normalised accuracy of a minus that of b, over the same texts of one seed.

    a, b: (cell, text) 1 where correct, else 0. labels_a, labels_b: (text,) the true labels of each. An accuracy is
    normalised as (accuracy - majority) / (1 - majority), majority the share of the commonest label among the texts: 0
    for the best single label, 1 without a mistake. The majority is an estimate too: the variance is that of the
    influence function (delta method; Hampel 1974). The two texts that Bonett & Price (2012) add, see
    `paired_difference`, count as much as one text can. NaN where all labels of a side are the same.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        (values_a, unit_a), (values_b, unit_b) = _normalised(a, labels_a), _normalised(b, labels_b)
        values, unit = values_a - values_b, max(unit_a, unit_b)
        n = values.shape[1] + 2
        centre = values.sum(1) / n
        error = np.sqrt((((values - centre[:, None]) ** 2).sum(1) + 2 * (unit**2 + centre**2)) / n) / np.sqrt(n)
    value, half_width = values.mean(1), stats.t.ppf((1 + LEVEL) / 2, n - 1) * error
    return value, np.minimum(centre - half_width, value), np.maximum(centre + half_width, value)


def _normalised(correct: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """(cell, text) the contribution of every text to the normalised accuracy, which is their mean and whose sampling
    variance is their spread, as in `skill`; and the weight of one text in it, 1 / (1 - majority)."""
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    commonest = (codes == counts.argmax()).astype(float)
    unit = 1 / (1 - np.float64(commonest.mean()))
    accuracy = correct.mean(1, keepdims=True)
    score = 1 - (1 - accuracy) * unit
    return score + (correct - accuracy) * unit - (1 - accuracy) * unit**2 * (commonest - commonest.mean()), float(unit)


def max_t(codes: np.ndarray, labels: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which of many cells are above chance: corrected p (cell,), and the accuracy (cell,) above which p <= 0.05.

    codes: (cell, text) predicted, labels: (text,). The labels are permuted over the texts, jointly for all cells and
    with the predictions fixed (Westfall & Young 1993), so correlated cells cost less power than in Holm's correction.
    Each cell's accuracy is standardised by its mean and standard deviation under permutation, both in closed form
    (Hoeffding 1951); a cell with constant predictions has p 1. The null hypothesis is that labels and predictions are
    independent, so a cell below the majority rate may pass.
    """
    n = len(labels)
    classes = np.unique(labels)
    prior = np.array([(labels == k).mean() for k in classes])
    predicted = np.stack([(codes == k).mean(1) for k in classes], 1)  # (cell, class)
    mean = predicted @ prior
    deviation = np.sqrt((mean - predicted @ prior**2 - predicted**2 @ prior + mean**2).clip(0) / max(n - 1, 1))
    varies = deviation > 1e-9
    scale = np.where(varies, deviation, np.inf)
    random, largest = np.random.default_rng(seed), np.empty(draws)
    for draw in range(draws):
        right = np.count_nonzero(codes == random.permutation(labels), axis=1) / n
        largest[draw] = ((right - mean) / scale).max()
    largest.sort()
    observed = ((codes == labels).mean(1) - mean) / scale
    # draws that reach it, with a tolerance so that equal counts are equal
    exceeding = draws - np.searchsorted(largest, observed - 1e-9)
    p = np.where(varies, (1 + exceeding) / (1 + draws), 1.0)
    allowed = int(round((1 - LEVEL) * (1 + draws), 9)) - 1
    return p, np.where(varies, mean + deviation * largest[draws - 1 - allowed], 1.0)


def above_chance(predictions: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Every test cell's accuracy with its p corrected for all cells of the same task and seed, by `max_t`.

    Columns model, task, layer, readout, probe, seed, value, p, threshold (the accuracy above which p <= 0.05). Raises
    ValueError where the cells of a task were not measured on the same texts.
    """
    parts = []
    rows = predictions[(predictions.split == "test") & (predictions.control == "none")]
    for _, group in rows.groupby(["model", "task", "seed"], observed=True, sort=False):
        test = group.assign(label=group.label.astype(str), predicted=group.predicted.astype(str))
        labels = test.drop_duplicates("row").set_index("row").label
        cells = test.set_index([*CELL, "row"]).predicted.unstack("row")
        if cells.isna().to_numpy().any():
            raise ValueError("a correction over cells needs all of them measured on the same texts")
        codes = pd.factorize(np.vstack([labels[cells.columns], cells]).ravel())[0].reshape(-1, cells.shape[1])
        p, threshold = max_t(codes[1:], codes[0], seed=seed)
        names = cells.index.to_frame(index=False)
        parts.append(names.assign(value=(codes[1:] == codes[0]).mean(1), p=p, threshold=threshold))
    return pd.concat(parts, ignore_index=True)


def accuracies(predictions: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Accuracy of every group, or R2 of every cell: columns `by`, value (mean over seeds), low, high (Wilson, texts of
    one seed; of R2 the mean ends), count.

    predictions: those of one task. by: names a cell where they are numbers.
    """
    grouped = predictions.assign(value=scores(predictions)).groupby([*by, "seed"], observed=True, sort=False).value
    per_seed = grouped.agg(["mean", "size"])
    if numbers := of_numbers(predictions):
        per_seed["low"], per_seed["high"] = np.transpose([mean_interval(values.to_numpy()) for _, values in grouped])
    table = per_seed.groupby(by, observed=True, sort=False).mean().reset_index()
    table = table.rename(columns={"mean": "value", "size": "count"})
    if not numbers:
        table["low"], table["high"] = wilson(table.value.to_numpy(), table["count"].to_numpy())
    return table[[*by, "value", "low", "high", "count"]]
