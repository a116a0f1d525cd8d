"""Baselines: what can be told without reading a layer. Each stands in the table as one more cell.

majority         the class frequencies of train, nothing else
length           logistic regression on the numbers of characters and words, and their logarithms
bag_of_words     TF-IDF of single words and logistic regression, the strength chosen on dev
                 of a pair both texts are counted, each by itself: labels often show in the second one alone
                 (Gururangan et al. 2018, https://aclanthology.org/N18-2017)
layer0_mean      the mean of the embeddings that enter the first block: words without context

Where the labels are numbers, `majority` is the mean of train, and the others are ridge regressions on the same.

The untrained encoder, the fifth of them, is another `States` and needs nothing here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from clsprobe.probes.base import STRENGTHS, Predictions, predict_each
from clsprobe.probes.linear import LogisticProbe, RidgeProbe
from clsprobe.probes.tasks.task import parts

WEAK_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # TF-IDF rows have length 1: they want weaker penalties than STRENGTHS
RIDGE_STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # 1 / alpha of scikit-learn's Ridge on the same rows

Baseline = Callable[[Sequence[str], np.ndarray, np.ndarray, np.ndarray], Predictions]


def majority(texts: Sequence[str], y: np.ndarray, train: np.ndarray, dev: np.ndarray) -> Predictions:
    """The class frequencies of train, or its mean: an intercept without a feature. Axes as `bag_of_words`."""
    if y.dtype.kind == "f":
        return Predictions(np.full((1, 1, len(texts)), y[train].mean()), None, np.ones((1, 1), bool), {})
    frequency = np.bincount(y[train], minlength=y.max() + 1) / len(train)
    with np.errstate(divide="ignore"):
        bits = np.tile(np.log2(frequency), (1, 1, len(texts), 1))
    return Predictions(bits.argmax(-1), bits, np.ones((1, 1), bool), {})


def length(texts: Sequence[str], y: np.ndarray, train: np.ndarray, dev: np.ndarray) -> Predictions:
    """How long the text is, in characters and words. Axes as `bag_of_words`."""
    counts = np.array([[n for part in parts(text) for n in (len(part), len(part.split()))] for text in texts], float)
    return on_features(np.hstack([counts, np.log1p(counts)]), y, train, dev)


def bag_of_words(texts: Sequence[str], y: np.ndarray, train: np.ndarray, dev: np.ndarray) -> Predictions:
    """Which words the text holds, in no order.

    texts: (text,). y: (text,) codes or numbers. train, dev: rows. Predicts every text: codes (1, 1, text).
    """
    from scipy.sparse import hstack
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge

    bags = []
    for each in zip(*map(parts, texts), strict=True):
        words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b|[^\w\s]", sublinear_tf=True)
        words.fit([each[i] for i in train])
        bags.append(words.transform(each))
    everything = hstack(bags, format="csr")
    seen = everything[train]
    if y.dtype.kind == "f":
        told = [Ridge(1 / C).fit(seen, y[train]).predict(everything) for C in RIDGE_STRENGTHS]
        kept = min(told, key=lambda numbers: ((numbers - y)[dev] ** 2).sum())
        return Predictions(kept[None, None], None, np.ones((1, 1), bool), {})
    best, fewest = None, np.inf
    for strength in WEAK_STRENGTHS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the row is flagged instead
            fitted = LogisticRegression(C=strength, max_iter=1000).fit(seen, y[train])
        told = -fitted.predict_log_proba(everything[dev])[np.arange(len(dev)), np.searchsorted(fitted.classes_, y[dev])]
        if told.mean() < fewest:
            best, fewest = fitted, told.mean()
    assert best is not None
    bits = np.full((1, 1, len(texts), y.max() + 1), -np.inf)
    bits[0, 0][:, best.classes_] = best.predict_log_proba(everything) / np.log(2)
    return Predictions(bits.argmax(-1), bits, np.array([[best.n_iter_.max() < best.max_iter]]), {})


def on_features(X: np.ndarray, y: np.ndarray, train: np.ndarray, dev: np.ndarray) -> Predictions:
    """The logistic probe or ridge on ready features X (text, dim), as on a cell. Predicts every text: (1, 1, text)."""
    probe = RidgeProbe() if y.dtype.kind == "f" else LogisticProbe()
    return predict_each(
        probe, X[None, train], y[train, None], X[None], dev=(X[None, dev], y[dev, None]), strengths=STRENGTHS
    )


BASELINES: dict[str, Baseline] = {"majority": majority, "length": length, "bag_of_words": bag_of_words}
