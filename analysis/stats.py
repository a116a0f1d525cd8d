"""Intervals and differences, all from tables and arrays.

1. `resamplings`: a bootstrap over texts as a matrix of counts, so that a metric's replicates are one product.
2. `wilson` for one proportion (Wilson 1927); `percentile` for everything else.
3. `best_layers`: the layer of every readout, chosen on dev.
4. `paired_difference`: two readouts over the same test texts; seeds and texts are crossed, not nested.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

DRAWS = 2000
LEVEL = 0.95


@lru_cache(maxsize=2)  # a sweep asks for those of dev and of test again and again
def resamplings(n: int, *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """(draw, text) how often each of n texts is drawn when n are drawn with replacement; read-only."""
    random, counts = np.random.default_rng(seed), np.empty((draws, n), np.float32)
    for one in counts:
        one[:] = np.bincount(random.integers(n, size=n), minlength=n)
    counts.setflags(write=False)
    return counts


def wilson(share: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of a proportion of n independent texts (Wilson 1927)."""
    z = stats.norm.ppf((1 + LEVEL) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return np.minimum(centre - half, share).clip(0, 1), np.maximum(centre + half, share).clip(0, 1)


def percentile(replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % percentile interval along the last axis, (..., draw) -> low, high."""
    finite = np.where(np.isfinite(replicates), replicates, np.inf)
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=-1, method="nearest")
    return low, high


def best_layers(predictions: pd.DataFrame, control: str = "none") -> pd.DataFrame:
    """For every task and readout the layer with the best dev accuracy (then the fewest dev bits, then the lowest).

    Returns columns task, readout, probe, layer, dev (accuracy, mean over seeds), best first within a task.
    """
    rows = predictions[(predictions.control == control) & (predictions.split == "dev")]
    scored = (
        rows.assign(dev=_right(rows), bits=-rows.log2_probability)
        .groupby(["task", "readout", "probe", "layer"], observed=True)[["dev", "bits"]]
        .mean()
        .reset_index()
        .sort_values(["dev", "bits", "layer"], ascending=[False, True, True], kind="stable")
        .drop_duplicates(["task", "readout", "probe"])
        .drop(columns="bits")
    )
    return scored.sort_values("task", kind="stable").reset_index(drop=True)


def _right(predictions: pd.DataFrame) -> pd.Series:
    """True where the predicted class is the label's."""
    label, predicted = predictions.label, predictions.predicted
    if isinstance(label.dtype, pd.CategoricalDtype) and label.dtype == predicted.dtype and not label.cat.ordered:
        return label == predicted
    return label.astype(str) == predicted.astype(str)


def correct(predictions: pd.DataFrame, **where: object) -> pd.DataFrame:
    """(seed, row) True where the test prediction of one cell is right, NaN where the seed did not test the row.

    where: column = value, e.g. ``task=..., control="none", layer=5, readout="cls", probe="logistic"``. Raises
    ValueError where that is not one cell.
    """
    chosen = predictions.split == "test"
    for column, value in where.items():
        chosen &= predictions[column] == value
    rows = predictions[chosen]
    if rows.empty or rows.duplicated(["seed", "row"]).any():
        raise ValueError(f"{'no' if rows.empty else 'more than one'} cell of the predictions has {where}")
    return _right(rows).astype(float).set_axis(pd.MultiIndex.from_frame(rows[["seed", "row"]])).unstack("row")


def paired_difference(a: pd.DataFrame, b: pd.DataFrame, *, seed: int = 0) -> tuple[float, float, float]:
    """Mean of a - b over the same texts, with its 95 % interval. a, b: (seed, row) as `correct` gives them.

    One seed: a percentile bootstrap over texts. More: seeds and texts are crossed factors (Owen 2007), so the variance
    of the mean is that over texts (bootstrap) plus that over seeds, and the interval a t with Satterthwaite's degrees
    of freedom. Raises ValueError where a and b were not measured on the same texts.
    """
    if not (a.index.equals(b.index) and a.columns.equals(b.columns) and (a.isna() == b.isna()).to_numpy().all()):
        raise ValueError("a paired difference needs both sides measured on the same texts and seeds")
    difference = (a - b).to_numpy()
    seen = ~np.isnan(difference)
    effect = float(difference[seen].mean())
    weights = resamplings(difference.shape[1], seed=seed)
    replicates = (weights @ np.where(seen, difference, 0).sum(0)) / (weights @ seen.sum(0))
    if len(difference) == 1:
        low, high = percentile(replicates)
        return effect, float(low), float(high)
    over_texts = replicates.var()
    means = np.nanmean(difference, axis=1)
    over_seeds = means.var(ddof=1) / len(means)
    total = over_texts + over_seeds
    if total == 0:
        return effect, effect, effect
    freedom = total**2 / (over_seeds**2 / (len(means) - 1) + over_texts**2 / (difference.shape[1] - 1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(total))
    return effect, effect - half, effect + half


def accuracies(predictions: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Accuracy of every group: columns `by`, value (mean over seeds), low, high (Wilson, texts of one seed), count."""
    grouped = predictions.assign(value=_right(predictions)).groupby([*by, "seed"], observed=True, sort=False).value
    per_seed = grouped.agg(["mean", "size"]).groupby(by, observed=True, sort=False).mean().reset_index()
    table = per_seed.rename(columns={"mean": "value", "size": "count"})
    table["low"], table["high"] = wilson(table.value.to_numpy(), table["count"].to_numpy())
    return table[[*by, "value", "low", "high", "count"]]
