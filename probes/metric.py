"""What a prediction is worth: accuracy, macro-F1 and bits per text, for many cells and many resamplings at once.

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
