"""How reliable an intervention is: completeness and selectivity, as an independent probe sees them.

1. An intervention is meant to change one property of vectors: to erase it, or to set it to another value. It is judged
   by the distributions that an *independent probe* gives before and after it: an MLP, so that what is left in another
   than a linear form counts, trained on intact vectors of texts on which the intervention was not fitted
   (`halve_train`). Early stopping by the loss on dev keeps its probabilities calibrated.
2. Completeness of a text: 1 - the total variation between the distribution of the property after the intervention and
   the intended one, which is the class prior of train for an erasure and the other value with probability 1 for a swap.
3. Selectivity of a text: 1 - the total variation between the distributions of *another* property before and after, as a
   share of the largest that the distribution before allows.
4. Reliability is the harmonic mean of the two means over texts: it is high only where both are.

A probe that reads nothing gives every text the prior: completeness and selectivity are then 1 whatever is done. So both
are compared with those of intact vectors and of random changes, and other properties that the probe does not read on
intact vectors say nothing about selectivity.

The definitions: Canby, Davies, Rastogi & Hockenmaier (2024), "How Reliable are Causal Probing Interventions?",
https://arxiv.org/abs/2408.15510.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clsprobe.analysis import stats
from clsprobe.analysis.sweep.grid import SplitTask
from clsprobe.probes.mlp import MLPProbe
from clsprobe.probes.tasks.duplicates import group_rows


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Half the sum of absolute differences of distributions, (..., class) and (..., class) -> (...), from 0 to 1."""
    return np.abs(np.subtract(p, q, dtype=np.float64)).sum(-1) / 2


def completeness(after: np.ndarray, intended: np.ndarray) -> np.ndarray:
    """(..., text) how nearly the distributions after an intervention are the intended ones: 1 - their total variation.

    after: (..., text, class) probabilities of the property. intended: (class,), or (text, class) with a distribution
    for every text.
    """
    return 1 - total_variation(after, intended)


def selectivity(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(..., text) how little another property changed: 1 - the total variation, as a share of its largest value.

    before, after: (..., text, class) probabilities of at least two classes. The largest total variation from p is
    reached where its least probable class becomes certain: 1 - min p.
    """
    return 1 - total_variation(before, after) / (1 - before.min(-1).astype(np.float64))


def mean_share(values: np.ndarray) -> tuple[float, float, float]:
    """The mean over texts of shares (text,) from 0 to 1, and the ends of its 95 % interval."""
    low, high = stats.mean_interval(values)
    return float(values.mean()), max(float(low), 0.0), min(float(high), 1.0)


@dataclass(frozen=True, eq=False)
class IndependentProbe:
    """An MLP probe of several properties in several cells (`fit_independent_probe`).

    priors: property -> (class,) shares of its training texts, the intended distribution of an erasure.
    """

    mlp: MLPProbe
    priors: dict[str, np.ndarray]

    def probabilities(self, X: np.ndarray) -> dict[str, np.ndarray]:
        """property -> (cell, text, class) of vectors (cell, text, dim)."""
        log_proba = self.mlp.log_proba_cells(np.asarray(X, np.float32))
        return {
            name: np.exp(log_proba[:, label_set, :, : len(prior)])
            for label_set, (name, prior) in enumerate(self.priors.items())
        }


def fit_independent_probe(
    X: np.ndarray, y: Mapping[str, np.ndarray], X_dev: np.ndarray, y_dev: Mapping[str, np.ndarray], *, seed: int = 0
) -> IndependentProbe:
    """Train the MLP on intact vectors; the loss on dev decides when to stop.

    X: (cell, text, dim), of texts on which the intervention was not fitted. y: property -> (text,) class codes, -1
    without a label. X_dev, y_dev: the same of dev texts. seed: that of the initial weights and the mini-batches.
    """
    codes, dev_codes = (np.stack([labels[name] for name in y], 1) for labels in (y, y_dev))
    dev = np.asarray(X_dev, np.float32), dev_codes
    mlp = MLPProbe(random_state=seed).fit_cells(np.asarray(X, np.float32), codes, dev=dev)
    counts = {name: np.bincount(labels[labels >= 0]) for name, labels in y.items()}
    return IndependentProbe(mlp, {name: count / count.sum() for name, count in counts.items()})


def halve_train(split: SplitTask, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of train, as rows of the arrays of a split: one to fit interventions on, the other for probes.

    Copies of a text, and rows of a group of the task, stay in one half. Every class with two of these is in both.
    """
    train = split.rows_of("train")
    tied = None if split.task.groups is None else split.task.groups[split.row_indices[train]]
    _, first, group = np.unique(
        group_rows([split.task.texts[i] for i in split.row_indices[train].tolist()], tied),
        return_index=True,
        return_inverse=True,
    )
    order = np.lexsort((np.random.default_rng(seed).permutation(len(first)), split.y[train][first]))
    half = np.empty(len(first), np.int64)
    half[order] = np.arange(len(first)) % 2  # alternate within every class
    return train[half[group] == 0], train[half[group] == 1]
