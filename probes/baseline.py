"""Baselines: predictions without reading a layer. Each is one more cell of the results table.

majority         the class frequencies of train, nothing else
length           logistic regression on the numbers of characters and words, and their logarithms
bag_of_words     TF-IDF of single words and logistic regression, the strength chosen on dev
                 a pair has separate counts for both texts, because the second one alone often predicts the label
                 (Gururangan et al. 2018, https://aclanthology.org/N18-2017)
layer0_mean      the mean of the embeddings that enter the first block: words without context

For numbers, `majority` is the mean of train, and the others are ridge regressions on the same features.

The fifth baseline, the untrained encoder, is a `States` of its own and is not defined here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clsprobe.probes.base import STRENGTHS, Predictions, predict_each
from clsprobe.probes.linear import LogisticProbe, RidgeProbe
from clsprobe.probes.tasks.texts import parts

WEAK_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # TF-IDF rows have length 1 and need weaker penalties than STRENGTHS
RIDGE_STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # 1 / alpha of scikit-learn's Ridge on the same rows

Baseline = Callable[[Sequence[str], np.ndarray, np.ndarray, np.ndarray], Predictions]


def majority(texts: Sequence[str], y: np.ndarray, train: np.ndarray, dev: np.ndarray) -> Predictions:
    """The class frequencies of train, or the mean of its numbers. Axes as `bag_of_words`."""
    if y.dtype.kind == "f":
        return Predictions(np.full((1, 1, len(texts)), y[train].mean()), None, np.ones((1, 1), bool), {})
    frequency = np.bincount(y[train], minlength=y.max() + 1) / len(train)
    with np.errstate(divide="ignore"):
        bits = np.tile(np.log2(frequency), (1, 1, len(texts), 1))
    return Predictions(bits.argmax(-1), bits, np.ones((1, 1), bool), {})


def length(texts: Sequence[str], y: np.ndarray, train: np.ndarray, dev: np.ndarray) -> Predictions:
    """The length of the text, in characters and words. Axes as `bag_of_words`."""
    return predict_from_features(count_lengths(texts), y, train, dev)


def count_lengths(texts: Sequence[str]) -> np.ndarray:
    """(text, feature) the numbers of characters and words, and their logarithms; of a pair those of either text."""
    counts = np.array([[n for part in parts(text) for n in (len(part), len(part.split()))] for text in texts], float)
    return np.hstack([counts, np.log1p(counts)])


def bag_of_words(texts: Sequence[str], y: np.ndarray, train: np.ndarray, dev: np.ndarray) -> Predictions:
    """The words of the text, regardless of order.

    texts: (text,). y: (text,) codes or numbers. train, dev: row indices. Predicts every text: codes (1, 1, text).
    On a single thread: the products of sparse rows are so short that several would only wait for each other.
    """
    from scipy.sparse import hstack
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from threadpoolctl import threadpool_limits

    bags = []
    for documents in zip(*map(parts, texts), strict=True):
        vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b|[^\w\s]", sublinear_tf=True)
        vectorizer.fit([documents[i] for i in train])
        bags.append(vectorizer.transform(documents))
    X = hstack(bags, format="csr")
    if y.dtype.kind == "f":
        predictions = [Ridge(1 / C).fit(X[train], y[train]).predict(X) for C in RIDGE_STRENGTHS]
        best_numbers = min(predictions, key=lambda numbers: ((numbers - y)[dev] ** 2).sum())
        return Predictions(best_numbers[None, None], None, np.ones((1, 1), bool), {})
    best, fewest = None, np.inf
    for strength in WEAK_STRENGTHS:
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)  # the row is flagged instead
            fitted = LogisticRegression(C=strength, max_iter=1000).fit(X[train], y[train])
        nats = -_log_proba(fitted, X[dev])[np.arange(len(dev)), np.searchsorted(fitted.classes_, y[dev])]
        if nats.mean() >= fewest:
            break  # as the path of the linear probe ends (solver.py): weaker penalties take longest
        best, fewest = fitted, nats.mean()
    assert best is not None
    bits = np.full((1, 1, len(texts), y.max() + 1), -np.inf)
    bits[0, 0][:, best.classes_] = _log_proba(best, X) / np.log(2)
    return Predictions(bits.argmax(-1), bits, np.array([[best.n_iter_.max() < best.max_iter]]), {})


def _log_proba(fitted: Any, X: Any) -> np.ndarray:
    """(text, class) nats. `predict_log_proba` takes the logarithm of a probability, which of a sure text is 0."""
    from scipy.special import log_expit, log_softmax

    logits = fitted.decision_function(X)
    return np.stack([log_expit(-logits), log_expit(logits)], 1) if logits.ndim == 1 else log_softmax(logits, 1)


def predict_from_features(X: np.ndarray, y: np.ndarray, train: np.ndarray, dev: np.ndarray) -> Predictions:
    """The logistic or ridge probe on features X (text, dim), as on a cell. Predicts every text: codes (1, 1, text)."""
    probe = RidgeProbe() if y.dtype.kind == "f" else LogisticProbe()
    return predict_each(
        probe, X[None, train], y[train, None], X[None], dev=(X[None, dev], y[dev, None]), strengths=STRENGTHS
    )


BASELINES: dict[str, Baseline] = {"majority": majority, "length": length, "bag_of_words": bag_of_words}
