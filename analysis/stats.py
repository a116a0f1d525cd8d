"""Intervals, tests and corrections, all from tables and arrays.

1. `intervals`: accuracy, macro-F1 and bits of many cells with their 95 % intervals, each in closed form: `wilson` for a
   proportion, `macro_f1` by smoothed counts and the delta method, `skewed` for a mean of losses. `number_intervals`:
   the same for R2 and Spearman's correlation of numbers. docs/statistics.md has their measured coverage.
2. `bootstrap`: the replicates of any other metric, in blocks of bounded memory, the same numbers every time.
3. `best_layers`: the layer of every readout, chosen on dev.
4. `paired_difference`: two readouts over the same test texts; seeds and texts are crossed, not nested. `difference_p`
   and `equivalence_p` are the tests that this interval decides, `difference_intervals` one seed of many cells at once.
5. Many comparisons: `holm` over a few, `max_t` over the cells of a grid (`above_chance`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq

from clsprobe.analysis.table import KEY, NUMBERS
from clsprobe.probes import metric

DRAWS = 2000
LEVEL = 0.95
LEAST = 1e-100  # a smaller p is 0: the quantiles of t with 3 degrees of freedom are -inf at 1e-300 in scipy
BLOCK = 64 << 20  # bytes of resamplings handed over at once
Z = float(stats.norm.ppf((1 + LEVEL) / 2))

CELL = ["model", "task", "layer", "readout", "probe", "seed"]  # what names a cell of one control

Interval = tuple[np.ndarray, np.ndarray]  # low, high


def intervals(
    codes: np.ndarray, labels: np.ndarray, log2_probability: np.ndarray | None = None
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Metric -> value, low, high, each (cell,), with low <= value <= high.

    codes: (cell, text) predicted. labels: (text,). log2_probability: (cell, text) of each text's own label; without it
    there are no bits. Bits are infinite, their interval too, where a label was held impossible.
    """
    once = np.ones((1, len(labels)))
    right = metric.accuracy(codes, labels, once)[:, 0]
    found = {
        "accuracy": (right, *wilson(right, len(labels))),
        "macro_f1": (metric.macro_f1(codes, labels, once)[:, 0], *macro_f1(codes, labels)),
    }
    if log2_probability is not None:
        low, high = skewed(-log2_probability)
        found["bits"] = (metric.bits(log2_probability, once)[:, 0], low.clip(0), high)
    return {
        what: (value, np.minimum(low, value), np.maximum(high, value)) for what, (value, low, high) in found.items()
    }


def number_intervals(told: np.ndarray, numbers: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Metric of numbers -> value, low, high, each (cell,), with low <= value <= high.

    told: (cell, text) predicted. numbers: (text,) true. R2: `skewed` over the texts' parts in it (`skill`). Spearman's
    correlation: on Fisher's scale, with the variance (1 + r^2 / 2) / (n - 3) of Bonett & Wright (2000).
    """
    once = np.ones((1, len(numbers)))
    r2, order = (measure(told, numbers, once)[:, 0] for measure in (metric.r2, metric.spearman))
    angle = np.arctanh(order.clip(-1 + 1e-12, 1 - 1e-12))
    half = Z * np.sqrt((1 + order**2 / 2) / max(len(numbers) - 3, 1))
    found = {
        "r2": (r2, *skewed(skill(told, numbers))),
        "spearman": (order, np.tanh(angle - half), np.tanh(angle + half)),
    }
    return {
        what: (value, np.minimum(low, value), np.maximum(high, value).clip(max=1))
        for what, (value, low, high) in found.items()
    }


def skill(told: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(..., text) every text's part in R2: their mean is R2, and their spread that of R2 from sample to sample.

    told: (..., text) predicted, numbers: (..., text) true. 1 - error^2 / variance, plus what the text itself does to
    the variance that its sample is measured by: R2 and its influence function (Hampel 1974). Numbers without variance
    have no skill, 0.
    """
    centred = (numbers - numbers.mean(-1, keepdims=True)) ** 2
    variance = centred.mean(-1, keepdims=True)
    some = variance > 0
    missed, far = ((part / np.where(some, variance, 1)) for part in ((told - numbers) ** 2, centred))
    return np.where(some, 1 - missed + missed.mean(-1, keepdims=True) * (far - 1), 0)


def wilson(share: np.ndarray, n: int) -> Interval:
    """The 95 % interval of a proportion of n independent texts (Wilson 1927)."""
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * np.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return np.minimum(centre - half, share).clip(0, 1), np.maximum(centre + half, share).clip(0, 1)


def skewed(values: np.ndarray) -> Interval:
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

    F1 of a class is 2 J / (1 + J), where J is the share of hits among the texts that are of the class or taken for it.
    Z^2 / 2 hits and as many misses, shared out among the classes, are added to these counts (Agresti & Coull 1998;
    Price & Bonett 2004), or a rare class that was always right would seem certain; the bias of the curved 2 J / (1 + J)
    is taken off; the variance of the mean is that of the delta method (Takahashi et al. 2022), in which an error counts
    against two classes at once; the interval is symmetric on the angular scale (Anscombe 1948). We put them together.
    """
    classes, own = np.unique(labels, return_inverse=True)  # macro-F1 is over the classes among the labels
    at = np.searchsorted(classes, codes).clip(max=len(classes) - 1)
    at = np.where(classes[at] == codes, at, len(classes))  # the last place: any other class
    cells, width = len(codes), len(classes) + 1

    def counts(where: np.ndarray) -> np.ndarray:
        flat = (np.arange(cells)[:, None] * width + at)[where]
        return np.bincount(flat, minlength=cells * width).reshape(cells, width)[:, :-1]

    right = at == own
    hits, taken = counts(right), counts(np.ones_like(right))
    added = Z * Z / 2 / len(classes)
    missed = np.bincount(own) + taken - 2 * hits + added
    hits = hits + added
    either = hits + missed
    J = hits / either
    f1 = 2 * J / (1 + J)
    centre = (f1 + 2 * J * (1 - J) / (1 + J) ** 3 / either).mean(1).clip(0, 1)

    pull = f1 / (hits + either)  # how much an error that touches the class moves its F1
    variance = (((2 - 2 * f1) / (hits + either)) ** 2 * hits + pull**2 * missed).sum(1)
    pull = np.pad(pull, ((0, 0), (0, 1)))
    variance += 2 * (~right * pull[:, own] * np.take_along_axis(pull, at, 1)).sum(1)
    angle = np.arcsin(np.sqrt(centre))
    half = Z * np.sqrt(variance) / len(classes) / (2 * np.sqrt(np.maximum(centre * (1 - centre), 1e-12)))
    low, high = (np.sin((angle + sign * half).clip(0, np.pi / 2)) ** 2 for sign in (-1, 1))
    return low, high


@lru_cache(maxsize=2)  # a sweep asks for those of dev and of test again and again
def resamplings(n: int, *, first: int = 0, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """(draw, text) how often each of n texts is drawn when n are drawn with replacement; read-only.

    Draw i is the same whichever block of draws it is asked for in.
    """
    counts = np.empty((draws, n), np.float32)
    for i, one in enumerate(counts, first):
        one[:] = np.bincount(np.random.default_rng([seed, i]).integers(n, size=n), minlength=n)
    counts.setflags(write=False)
    return counts


def bootstrap(measure: Callable[[np.ndarray], np.ndarray], n: int, *, seed: int = 0) -> np.ndarray:
    """(..., draw) the replicates of a metric over n texts, for `percentile`.

    measure: weights (draw, text) -> (..., draw), as those of `probes.metric`. It gets `BLOCK` bytes of weights at a
    time, and the draws do not depend on how many that are.
    """
    at_once = max(1, BLOCK // (4 * n))
    blocks = ((first, min(at_once, DRAWS - first)) for first in range(0, DRAWS, at_once))
    return np.concatenate([measure(resamplings(n, first=at, draws=some, seed=seed)) for at, some in blocks], -1)


def percentile(replicates: np.ndarray) -> Interval:
    """The 95 % percentile interval along the last axis, (..., draw) -> low, high."""
    finite = np.where(np.isfinite(replicates), replicates, np.inf)
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=-1, method="nearest")
    return low, high


def best_layers(predictions: pd.DataFrame, control: str = "none") -> pd.DataFrame:
    """For every task and readout the layer with the best dev accuracy (then the fewest dev bits, then the lowest).

    Where seeds carve sides of their own, a dev text that another seed tests on has no say, as long as others are left.
    Returns columns task, readout, probe, layer, dev (accuracy, or R2 of numbers; mean over seeds), best first within a
    task.
    """
    of = predictions[predictions.control == control]
    rows = of[of.split == "dev"]
    if of.seed.nunique() > 1:
        tested, asked = (pd.MultiIndex.from_frame(some[["task", "row"]]) for some in (of[of.split == "test"], rows))
        unseen = ~asked.isin(tested)
        left = rows.task.astype(str).isin(set(rows.task[unseen].astype(str)))
        rows = rows[unseen | ~left]
    scored = (
        rows.assign(dev=scores(rows), bits=-rows.log2_probability)
        .groupby(["task", "readout", "probe", "layer"], observed=True)[["dev", "bits"]]
        .mean()
        .reset_index()
        .sort_values(["dev", "bits", "layer"], ascending=[False, True, True], kind="stable")
        .drop_duplicates(["task", "readout", "probe"])
        .drop(columns="bits")
    )
    return scored.sort_values("task", kind="stable").reset_index(drop=True)


def right(predictions: pd.DataFrame) -> pd.Series:
    """(row of the table,) True where the predicted class is the label's."""
    label, predicted = predictions.label, predictions.predicted
    if isinstance(label.dtype, pd.CategoricalDtype) and label.dtype == predicted.dtype and not label.cat.ordered:
        return label == predicted
    return label.astype(str) == predicted.astype(str)


def of_numbers(predictions: pd.DataFrame) -> bool:
    """Whether these predictions are numbers. predictions: those of one task."""
    return NUMBERS[0] in predictions and bool(predictions[NUMBERS[0]].notna().any())


def scores(predictions: pd.DataFrame) -> pd.Series:
    """(row of the table,) a text's part in the score of its cell, their mean: whether it is right, or `skill`."""
    found = right(predictions).to_numpy(float)
    if of_numbers(predictions):
        at = np.flatnonzero(predictions[NUMBERS[0]].notna())
        true, told = (predictions[column].to_numpy()[at] for column in NUMBERS)
        for cell in predictions.iloc[at].groupby(list(KEY[:-1]), observed=True, sort=False).indices.values():
            found[at[cell]] = skill(told[cell], true[cell])
    return pd.Series(found, predictions.index)


def correct(predictions: pd.DataFrame, **where: object) -> pd.DataFrame:
    """(seed, row) True where the test prediction of one cell is right, NaN where the seed did not test the row; of
    numbers their `skill`.

    where: column = value, e.g. ``task=..., control="none", layer=5, readout="cls", probe="logistic"``. Raises
    ValueError where that is not one cell.
    """
    chosen = predictions.split == "test"
    for column, value in where.items():
        chosen &= predictions[column] == value
    rows = predictions[chosen]
    if rows.empty or rows.duplicated(["seed", "row"]).any():
        raise ValueError(f"{'no' if rows.empty else 'more than one'} cell of the predictions has {where}")
    return scores(rows).set_axis(pd.MultiIndex.from_frame(rows[["seed", "row"]])).unstack("row")


def paired_difference(a: pd.DataFrame, b: pd.DataFrame, *, shares: bool = True) -> tuple[float, float, float]:
    """Mean of a - b over the same texts, with its 95 % interval. a, b: (seed, row) as `correct` gives them. shares:
    whether they lie within 0..1; else they are any numbers, and the interval of one seed is that of Student.

    One seed: the adjusted interval for paired proportions of Bonett & Price (2012). More: seeds and texts are crossed
    factors (Owen 2007), so the variance of the mean is that over texts plus that over seeds, and each of the two asks
    for the t of its own degrees of freedom (Cochran & Cox 1950): with two or three seeds Satterthwaite's degrees, which
    are estimated as well, cover as little as 0.88. Raises ValueError where a and b were not measured on the same texts.
    """
    effect, centre, variance, freedom = _difference(a, b, shares)
    half = _reach((1 - LEVEL) / 2, variance, freedom)
    return effect, centre - half, centre + half


def difference_p(a: pd.DataFrame, b: pd.DataFrame, *, shares: bool = True) -> float:
    """The two-sided p of "a and b are equally good": below 0.05 just where `paired_difference` leaves out 0."""
    _, centre, variance, freedom = _difference(a, b, shares)
    return 2 * _tail(abs(centre), variance, freedom)


def equivalence_p(a: pd.DataFrame, b: pd.DataFrame, margin: float) -> float:
    """The p of "a and b differ by `margin` or more" (two one-sided tests, Schuirmann 1987).

    Below 0.025 just where the whole interval of `paired_difference` lies inside the margin.
    """
    _, centre, variance, freedom = _difference(a, b, shares=True)
    return _tail(margin - abs(centre), variance, freedom)


def inferiority_p(a: pd.DataFrame, b: pd.DataFrame, margin: float) -> float:
    """The p of "a is worse than b by no more than `margin`" (one-sided): small where a is clearly worse than that."""
    _, centre, variance, freedom = _difference(a, b, shares=True)
    return _tail(-margin - centre, variance, freedom)


def _difference(a: pd.DataFrame, b: pd.DataFrame, shares: bool) -> tuple[float, float, np.ndarray, np.ndarray]:
    """The mean of a - b; the centre of its interval; the variances of that over texts and over seeds, their freedom.

    Bonett & Price add two texts to shares, one that a alone gets right and one that b alone does; else ten texts
    without a difference would prove that there is none.
    """
    if not (a.index.equals(b.index) and a.columns.equals(b.columns) and (a.isna() == b.isna()).to_numpy().all()):
        raise ValueError("a paired difference needs both sides measured on the same texts and seeds")
    difference = (a - b).to_numpy()
    seeds, texts = difference.shape
    total, seen = np.nansum(difference, 0), (~np.isnan(difference)).sum(0)  # (text,)
    added = seen.mean() if shares else 0.0  # a text counts as often as seeds tested it
    everything = seen.sum() + 2 * added
    centre = total.sum() / everything
    over_texts = (((total - centre * seen) ** 2).sum() + 2 * added**2 * (1 + centre**2)) / everything**2
    variance, freedom = [over_texts], [texts + 1 if shares else max(texts - 1, 1)]
    if seeds > 1:
        variance.append(np.nanmean(difference, 1).var(ddof=1) / seeds)
        freedom.append(seeds - 1)
    return float(total.sum() / seen.sum()), float(centre), np.array(variance), np.array(freedom)


def _reach(tail: float, variance: np.ndarray, freedom: np.ndarray) -> float:
    """How far from its centre an estimate with these variances goes with probability `tail` on one side."""
    return float(variance @ stats.t.isf(tail, freedom) / np.sqrt(variance.sum()))


def _tail(distance: float, variance: np.ndarray, freedom: np.ndarray) -> float:
    """The inverse of `_reach`."""
    if distance < 0:
        return 1 - _tail(-distance, variance, freedom)
    if _reach(LEAST, variance, freedom) <= distance:
        return 0.0
    log = brentq(lambda q: _reach(np.exp(q), variance, freedom) - distance, np.log(LEAST), np.log(0.5))
    return float(np.exp(log))


def difference_intervals(a: np.ndarray, b: np.ndarray, *, shares: bool) -> Interval:
    """The 95 % intervals of mean(a) - mean(b), each (cell,), of one seed.

    a, b: (cell, text), NaN where a text does not count on that side; the means may be over different texts, of which
    those that they share are paired. shares: values within 0..1, in the way of `paired_difference`; else any values, by
    `skewed`.
    """
    parts = []
    for side in (a, b):
        counts = ~np.isnan(side)
        with np.errstate(invalid="ignore"):  # infinite bits have an infinite interval
            mean = np.nanmean(side, 1, keepdims=True)
            parts.append((mean, np.where(counts, side - mean, 0) * side.shape[1] / counts.sum(1, keepdims=True)))
    (mean_a, pull_a), (mean_b, pull_b) = parts
    values = mean_a - mean_b + pull_a - pull_b  # (cell, text) a - b itself where both sides count every text
    if not shares:
        return skewed(values)
    n = values.shape[1] + 2
    centre = values.sum(1) / n
    error = np.sqrt((((values - centre[:, None]) ** 2).sum(1) + 2 * (1 + centre**2)) / n) / np.sqrt(n)
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * error
    return centre - half, centre + half


def holm(p: np.ndarray) -> np.ndarray:
    """p values adjusted for their number by Holm's step-down (1979): below 0.05, one false one in 20 families."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.asarray(p, float)[order] * np.arange(len(p), 0, -1)).clip(max=1)
    adjusted = np.empty(len(p))
    adjusted[order] = stepped
    return adjusted


def max_t(codes: np.ndarray, labels: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which of many cells tell more than chance: corrected p (cell,), and the accuracy (cell,) above which p <= 0.05.

    codes: (cell, text) predicted, labels: (text,). The labels are permuted over the texts, jointly for all cells and
    with the predictions as they are (Westfall & Young 1993): cells that err together are not paid for twice. Each
    cell's accuracy is taken in standard deviations from its mean under permutation, both in closed form (Hoeffding
    1951); one that always says the same has neither chance nor p to be above it. The null is that labels and
    predictions are independent, so a cell may pass that is below the majority rate.
    """
    n = len(labels)
    classes = np.unique(labels)
    own = np.array([(labels == k).mean() for k in classes])
    told = np.stack([(codes == k).mean(1) for k in classes], 1)  # (cell, class)
    mean = told @ own
    deviation = np.sqrt((mean - told @ own**2 - told**2 @ own + mean**2).clip(0) / max(n - 1, 1))
    moves = deviation > 1e-9
    scale = np.where(moves, deviation, np.inf)
    random, largest = np.random.default_rng(seed), np.empty(draws)
    for draw in range(draws):
        right = np.count_nonzero(codes == random.permutation(labels), axis=1) / n
        largest[draw] = ((right - mean) / scale).max()
    largest.sort()
    observed = ((codes == labels).mean(1) - mean) / scale
    # how many draws reach it; a hair's breadth lower, since equal counts must be equal
    reached = draws - np.searchsorted(largest, observed - 1e-9)
    p = np.where(moves, (1 + reached) / (1 + draws), 1.0)
    may_reach = int(round((1 - LEVEL) * (1 + draws), 9)) - 1
    return p, np.where(moves, mean + deviation * largest[draws - 1 - may_reach], 1.0)


def above_chance(predictions: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Every test cell's accuracy with its p corrected for all cells of the same task and seed, by `max_t`.

    Columns model, task, layer, readout, probe, seed, value, p, threshold (the accuracy above which p <= 0.05). Raises
    ValueError where the cells of a task were not measured on the same texts.
    """
    parts = []
    rows = predictions[(predictions.split == "test") & (predictions.control == "none")]
    for _, one in rows.groupby(["model", "task", "seed"], observed=True, sort=False):
        told = one.assign(label=one.label.astype(str), predicted=one.predicted.astype(str))
        labels = told.drop_duplicates("row").set_index("row").label
        cells = told.set_index([*CELL, "row"]).predicted.unstack("row")
        if cells.isna().to_numpy().any():
            raise ValueError("a correction over cells needs all of them measured on the same texts")
        codes = pd.factorize(np.vstack([labels[cells.columns], cells]).ravel())[0].reshape(-1, cells.shape[1])
        p, threshold = max_t(codes[1:], codes[0], seed=seed)
        found = cells.index.to_frame(index=False)
        parts.append(found.assign(value=(codes[1:] == codes[0]).mean(1), p=p, threshold=threshold))
    return pd.concat(parts, ignore_index=True)


def accuracies(predictions: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Accuracy of every group, or R2 of every cell: columns `by`, value (mean over seeds), low, high (Wilson, texts of
    one seed; of R2 the mean ends), count.

    predictions: those of one task. by: names a cell where they are numbers.
    """
    grouped = predictions.assign(value=scores(predictions)).groupby([*by, "seed"], observed=True, sort=False).value
    per_seed = grouped.agg(["mean", "size"])
    if numbers := of_numbers(predictions):
        per_seed["low"], per_seed["high"] = np.transpose([skewed(one.to_numpy()) for _, one in grouped])
    table = per_seed.groupby(by, observed=True, sort=False).mean().reset_index()
    table = table.rename(columns={"mean": "value", "size": "count"})
    if not numbers:
        table["low"], table["high"] = wilson(table.value.to_numpy(), table["count"].to_numpy())
    return table[[*by, "value", "low", "high", "count"]]
