"""Metrics for many cells and bootstrap draws at once: accuracy, macro-F1 and bits per text for classes, R2 and
Spearman's correlation for numbers.

Each metric takes weights over the texts: a bootstrap draw is a vector of counts, and all draws are one matrix product.
"""

from __future__ import annotations

import numpy as np


def accuracy(codes: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of texts whose predicted code is the label. codes (cell, text), labels (text,), weights (draw, text) ->
    (cell, draw)."""
    return (codes == labels) @ weights.T / weights.sum(1)


def macro_f1(codes: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Unweighted mean of F1 = 2 TP / (2 TP + FP + FN) over the classes of the labels with positive weight.
    Axes as `accuracy`."""
    total, present = np.zeros((len(codes), len(weights))), np.zeros(len(weights))
    for k in np.unique(labels):
        members = labels == k
        actual = members @ weights.T  # (draw,)
        predicted = (codes == k) @ weights.T
        hits = (codes[:, members] == k) @ weights[:, members].T
        total += (actual > 0) * 2 * hits / np.maximum(predicted + actual, 1e-30)
        present += actual > 0
    return total / present


def bits(log2_probability: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Held-out cross-entropy in bits per text. log2_probability (cell, text) of each text's own label, weights
    (draw, text) -> (cell, draw). Infinite if a label has probability 0."""
    impossible = np.isneginf(log2_probability)
    finite = np.where(impossible, 0, log2_probability).astype(weights.dtype, copy=False)
    mean = -finite @ weights.T / weights.sum(1)
    return np.where(impossible @ weights.T > 0, np.inf, mean) if impossible.any() else mean


def r2(numbers: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Explained share of the labels' variance, 1 - sum w (y - predicted)^2 / sum w (y - mean)^2: 0 for predicting the
    mean of the same texts, negative for worse. numbers (cell, text), labels (text,) numbers, weights (draw, text) ->
    (cell, draw). Labels without variance: 1 if predicted exactly, else 0, as in scikit-learn."""
    wide = weights.astype(np.float64, copy=False)
    squared_error = (numbers - labels) ** 2 @ wide.T
    centred = labels - labels.mean()  # against cancellation: the mean below is that of a draw
    mean = wide @ centred / wide.sum(1)
    variance = wide @ centred**2 - wide.sum(1) * mean**2
    constant = variance <= 1e-12 * (wide @ centred**2)
    return np.where(constant, squared_error == 0, 1 - squared_error / np.where(constant, 1, variance))


def spearman(numbers: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Correlation of ranks (Spearman 1904), ties at their mean rank. Axes as `r2`.

    Texts are ranked anew in every draw, each repeated as often as its weight says. 0 if all numbers or all labels are
    equal.
    """
    wide = weights.astype(np.float64, copy=False)
    total = wide.sum(1)
    label_ranks = _centred_ranks(labels, wide)
    variance = (wide * label_ranks**2).sum(1)
    correlations = np.zeros((len(numbers), len(wide)))
    for cell, predicted in enumerate(numbers):
        ranks = _centred_ranks(predicted, wide)
        scale = np.sqrt(variance * (wide * ranks**2).sum(1))
        defined = scale > 1e-9 * total**3  # ranks differ by a half at least, or not at all
        correlations[cell] = np.where(defined, (wide * label_ranks * ranks).sum(1) / np.where(defined, scale, 1), 0)
    return correlations


def _centred_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(draw, text) the mean rank of every text's value within the draw, minus the mean of all ranks."""
    _, groups, sizes = np.unique(values, return_inverse=True, return_counts=True)
    order = np.argsort(groups, kind="stable")
    group_weights = np.add.reduceat(
        weights[:, order], np.concatenate([[0], np.cumsum(sizes)[:-1]]), axis=1
    )  # (draw, group)
    mid_ranks = np.cumsum(group_weights, 1) - group_weights / 2
    return (mid_ranks - weights.sum(1, keepdims=True) / 2)[:, groups]
