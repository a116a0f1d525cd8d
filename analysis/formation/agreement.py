"""How far attribution agrees with what a changed word does, from its table alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from clsprobe.analysis.verdict import TAIL

FEWEST = 5  # clusters below which there is no interval


def summarise_twins(table: pd.DataFrame, clusters: Sequence[str]) -> pd.DataFrame:
    """How far the scores of the differing words agree with the change of F, with 95 % intervals over clusters.

    table: of `attribution.compare_with_twins`. clusters: (pair,), such as the lemma of the word that differs. Rows
    correlation (of Pearson), slope (of the change on the scores, least squares with an intercept) and share (the mean
    of the scores as a share of the mean change); columns value, low, high: a delete-one jackknife over clusters with a
    t of clusters - 1 degrees of freedom, NaN for fewer than `FEWEST` clusters or where a number is not defined.
    """
    scores, change = table["scores"].to_numpy(np.float64), table["change"].to_numpy(np.float64)

    def measure(rows: np.ndarray) -> np.ndarray:
        x, y = scores[rows], change[rows]
        if len(x) < 2:
            return np.full(3, np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            (var_x, cov), (_, var_y) = np.cov(x, y)
            return np.array([cov / np.sqrt(var_x * var_y), cov / var_x, x.mean() / y.mean()])

    names, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    value = measure(np.ones(len(scores), bool))
    half = np.full(3, np.nan)
    if (count := len(names)) >= FEWEST:
        without = np.stack([measure(cluster != number) for number in range(count)])
        half = stats.t.isf(TAIL, count - 1) * np.sqrt((count - 1) / count * ((without - value) ** 2).sum(0))
    low, high = value - half, value + half
    low[0], high[0] = np.maximum(low[0], -1), np.minimum(high[0], 1)
    return pd.DataFrame({"measure": ["correlation", "slope", "share"], "value": value, "low": low, "high": high})
