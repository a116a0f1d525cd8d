"""What a prediction is worth, for many cells and many resamplings at once: accuracy, macro-F1 and bits per text of
classes, R2 and Spearman's correlation of numbers.

Each metric is a function of weights over the texts, so that its bootstrap replicates are one matrix product: a
resampled set of texts is a vector of counts.
"""

from __future__ import annotations

import numpy as np


def accuracy(codes: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of texts whose predicted code is their label's. codes (cell, text), labels (text,), weights (draw, text)
    -> (cell, draw)."""
    return (codes == labels) @ weights.T / weights.sum(1)


def macro_f1(codes: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Unweighted mean of F1 = 2 TP / (2 TP + FP + FN) over the classes among the labels that have weight.
    Axes as `accuracy`."""
    total, present = np.zeros((len(codes), len(weights))), np.zeros(len(weights))
    for k in np.unique(labels):
        mine = labels == k
        true = mine @ weights.T  # (draw,)
        predicted = (codes == k) @ weights.T
        hit = (codes[:, mine] == k) @ weights[:, mine].T
        total += (true > 0) * 2 * hit / np.maximum(predicted + true, 1e-30)
        present += true > 0
    return total / present


def bits(log2_probability: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Held-out cross-entropy in bits per text. log2_probability (cell, text) of each text's own label, weights
    (draw, text) -> (cell, draw). Infinite where a label was held impossible."""
    impossible = np.isneginf(log2_probability)
    own = np.where(impossible, 0, log2_probability).astype(weights.dtype, copy=False)
    mean = -own @ weights.T / weights.sum(1)
    return np.where(impossible @ weights.T > 0, np.inf, mean) if impossible.any() else mean


def r2(numbers: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of the labels' variance that is explained, 1 - sum w (y - told)^2 / sum w (y - mean)^2: 0 is the mean of
    these very texts, below it is worse. numbers (cell, text), labels (text,) numbers, weights (draw, text) ->
    (cell, draw). Labels without variance: 1 where they are told exactly, else 0, as in scikit-learn."""
    wide = weights.astype(np.float64, copy=False)
    missed = (numbers - labels) ** 2 @ wide.T
    centred = labels - labels.mean()  # against cancellation: the mean below is that of a draw
    mean = wide @ centred / wide.sum(1)
    spread = wide @ centred**2 - wide.sum(1) * mean**2
    flat = spread <= 1e-12 * (wide @ centred**2)
    return np.where(flat, missed == 0, 1 - missed / np.where(flat, 1, spread))


def spearman(numbers: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Correlation of ranks (Spearman 1904), ties at their mean rank. Axes as `r2`.

    Texts are ranked anew in every draw, each standing there as often as its weight says. 0 where all numbers, or all
    labels, are the same: they tell no order.
    """
    wide = weights.astype(np.float64, copy=False)
    total = wide.sum(1)
    own = _centred_ranks(labels, wide)
    spread = (wide * own**2).sum(1)
    found = np.zeros((len(numbers), len(wide)))
    for cell, told in enumerate(numbers):
        ranks = _centred_ranks(told, wide)
        scale = np.sqrt(spread * (wide * ranks**2).sum(1))
        sound = scale > 1e-9 * total**3  # ranks differ by a half at least, or not at all
        found[cell] = np.where(sound, (wide * own * ranks).sum(1) / np.where(sound, scale, 1), 0)
    return found


def _centred_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(draw, text) the mean rank of every text's value among the drawn ones, less the mean of all ranks."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    drawn = np.add.reduceat(weights[:, order], np.concatenate([[0], np.cumsum(sizes)[:-1]]), axis=1)  # (draw, group)
    middle = np.cumsum(drawn, 1) - drawn / 2
    return (middle - weights.sum(1, keepdims=True) / 2)[:, group]
