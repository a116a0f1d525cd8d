"""Information measures of a probe, in bits: the online code and V-information.

`OnlineCode` (Voita & Titov 2020; prequential coding after Dawid 1984) encodes the labels of train block by block:

1. The texts are shuffled once. The blocks end at 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.25, 12.5, 25, 50 and 100 % of them;
   the first has at least two texts per class, and empty blocks are dropped.
2. The first block costs log2 K per label. Every further label costs minus its log2 probability under a probe trained
   from scratch on all texts before the block, its strength chosen on dev; the strongest penalty leaves nothing but the
   class frequencies.
3. After n texts every class that none of them has gets Laplace's probability 1 / (n + K), so that its cost is finite;
   the probabilities of the probe are scaled to the rest.
4. The scores of these probes on other texts are a learning curve.

`v_information` (Xu et al. 2020) is how many bits X saves on the labels of held-out texts, H(Y) - H(Y | X), or with
`given` (Hewitt et al. 2021) H(Y | B) - H(Y | B, X). It is an estimate and may be negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.base import BaseEstimator

from clsprobe.probes import base
from clsprobe.probes.base import Predictions, predict_each

ENDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1)
STRENGTHS = (1e-7, 1e-5, *base.STRENGTHS)

Labelled = tuple[np.ndarray, np.ndarray]
"""X (cell, text, dim) and y (text, label set) integer codes, -1 = no label."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The learning curve of a code's probes, on the evaluated texts with a label in this set, in their order.

    n: (fit,) number of training texts. right: (cell, fit, text) 1 if the prediction is right, else 0. costs: (cell,
    fit, text) bits of the label. NaN if the probe failed.
    """

    n: np.ndarray
    right: np.ndarray
    costs: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        """(cell, fit)."""
        return self.right.mean(2)

    @property
    def bits(self) -> np.ndarray:
        """(cell, fit) bits per text."""
        return self.costs.mean(2)


@dataclass(frozen=True, eq=False)
class Code:
    """The online code of one label set.

    ends: (block,) number of labels sent by the end of each block. lengths: (cell, block) bits, NaN if the probe failed.
    uniform: bits of the uniform code, N log2 K. converged: (cell,) whether all fits did. failures: cell -> error
    message. curve: on the evaluated texts, or None.
    """

    ends: np.ndarray
    lengths: np.ndarray
    uniform: float
    converged: np.ndarray
    failures: dict[int, str]
    curve: Curve | None

    @property
    def codelength(self) -> np.ndarray:
        """(cell,) bits."""
        return self.lengths.sum(1)

    @property
    def compression(self) -> np.ndarray:
        """(cell,) length of the uniform code over the codelength."""
        return self.uniform / self.codelength


@dataclass(frozen=True)
class OnlineCode:
    """The online code with a probe. seed: determines the order of the texts. timeout: of a fit, see `predict_each`.

    ``OnlineCode(probe)(X, y, dev=...)`` returns a `Code` for every label set.
    """

    probe: BaseEstimator
    seed: int = 0
    timeout: float | None = None

    def __call__(
        self, X: np.ndarray, y: np.ndarray, *, dev: Labelled, evaluated: Labelled | None = None
    ) -> tuple[Code, ...]:
        """Encode y (text, label set), -1 = no label, for a receiver who has X (cell, text, dim).

        dev: the texts on which strengths are chosen. evaluated: the texts of the learning curve, which takes one more
        fit, on all of train. Raises ValueError if a label set has fewer than two classes, an evaluated text has a class
        that no train text has, or the probe gives no probabilities.
        """
        if evaluated:
            _check_classes(y, evaluated[1])
        order = np.random.default_rng([self.seed, 0xC0DE]).permutation(len(y))
        shared: dict[tuple[bytes, tuple[int, ...]], list[int]] = {}  # label sets with the same blocks share their fits
        for s, labels in enumerate(y.T):
            classes = np.unique(labels[labels >= 0])
            if len(classes) < 2:
                raise ValueError(f"label set {s} has {len(classes)} classes; a code needs two")
            ends = block_ends(int((labels >= 0).sum()), len(classes))
            shared.setdefault(((labels >= 0).tobytes(), ends), []).append(s)
        codes: dict[int, Code] = {}
        for (_, ends), sets in shared.items():
            rows = order[y[order, sets[0]] >= 0]
            evaluated_sets = evaluated and (evaluated[0], evaluated[1][:, sets])
            codes_of_sets = self._send((X[:, rows], y[rows][:, sets]), ends, (dev[0], dev[1][:, sets]), evaluated_sets)
            codes.update(zip(sets, codes_of_sets, strict=True))
        return tuple(codes[s] for s in range(y.shape[1]))

    def _send(self, train: Labelled, ends: Sequence[int], dev: Labelled, evaluated: Labelled | None) -> list[Code]:
        """The codes of label sets in which every text has a label. train: in the order in which it is sent."""
        X, y = train
        evaluated_X, labels = evaluated or (X[:, :0], y[:0])
        fits = ends if evaluated else ends[:-1]
        classes = [np.unique(column) for column in y.T]
        uniform = np.log2([len(classes_of_set) for classes_of_set in classes])
        lengths = np.full((y.shape[1], len(X), len(ends)), ends[0] * uniform[:, None, None])
        curves = np.empty((2, y.shape[1], len(X), len(fits), len(labels)))  # right and costs
        converged, failures = np.ones((len(X), y.shape[1]), bool), {}
        for fit, end in enumerate(fits):
            next_end = ends[min(fit + 1, len(ends) - 1)]
            unseen = np.concatenate([X[:, end:next_end], evaluated_X], 1)
            predictions = _fit(self.probe, X[:, :end], y[:end], unseen, dev, classes, self.timeout)
            right, costs = _score(predictions, np.concatenate([y[end:next_end], labels]))
            if end < next_end:
                lengths[..., fit + 1] = costs[..., : next_end - end].sum(2)
            curves[:, :, :, fit] = right[..., next_end - end :], costs[..., next_end - end :]
            converged &= predictions.converged
            failures.update(predictions.failures)
        return [
            Code(
                np.array(ends),
                lengths[s],
                float(len(y) * uniform[s]),
                converged[:, s],
                failures,
                Curve(np.array(fits), *curves[:, s][..., labels[:, s] >= 0]) if evaluated else None,
            )
            for s in range(y.shape[1])
        ]


def block_ends(texts: int, classes: int) -> tuple[int, ...]:
    """The number of texts sent by the end of each block."""
    ends = [min(max(round(ENDS[0] * texts), 2 * classes), texts)]
    for share in ENDS[1:]:
        if (end := round(share * texts)) > ends[-1]:
            ends.append(end)
    return tuple(ends)


def _fit(
    probe: BaseEstimator,
    X: np.ndarray,
    y: np.ndarray,
    unseen: np.ndarray,
    dev: Labelled,
    classes: Sequence[np.ndarray],
    timeout: float | None,
) -> Predictions:
    """Predictions of a probe fitted to X and y, with Laplace's probability for those of a set's `classes` not in y."""
    seen = [np.unique(labels) for labels in y.T]
    shape = len(X), y.shape[1], unseen.shape[1], 1 + max(int(known.max()) for known in classes)
    bits, converged, failures = np.full(shape, -np.inf), np.ones(shape[:2], bool), {}
    if fitted := [s for s, known in enumerate(seen) if len(known) > 1]:
        # consecutive codes; dev texts of a class not in y get no label, as they cost infinite bits at every strength
        labels, dev_labels = (
            np.stack([np.where(np.isin(k[:, s], seen[s]), np.searchsorted(seen[s], k[:, s]), -1) for s in fitted], 1)
            for k in (y, dev[1])
        )
        predictions = predict_each(
            probe, X, labels, unseen, dev=(dev[0], dev_labels), strengths=STRENGTHS, timeout=timeout
        )
        probabilities = _require_probabilities(probe, predictions, int(labels.max()) + 1)
        for i, s in enumerate(fitted):
            bits[:, s][..., seen[s]] = probabilities[:, i, :, : len(seen[s])]
        converged[:, fitted], failures = predictions.converged, predictions.failures
    for s, (known, own) in enumerate(zip(classes, seen, strict=True)):
        if len(own) == 1:
            bits[:, s, :, own[0]] = 0
        if unseen_classes := np.setdiff1d(known, own).tolist():
            bits[:, s] += np.log2(1 - len(unseen_classes) / (len(y) + len(known)))
            bits[:, s, :, unseen_classes] = -np.log2(len(y) + len(known))
    bits[list(failures)] = np.nan
    return Predictions(bits.argmax(-1), bits, converged, failures)


def _require_probabilities(probe: BaseEstimator, predictions: Predictions, classes: int) -> np.ndarray:
    """(cell, label set, text, class) bits, NaN if the probe failed. Raises ValueError if it gives no probabilities."""
    if predictions.log2_proba is not None:
        return predictions.log2_proba
    if len(predictions.failures) < len(predictions.codes):
        raise ValueError(f"{type(probe).__name__} gives no probabilities, and without them nothing can be told in bits")
    return np.full((*predictions.codes.shape, classes), np.nan)


def _check_classes(y: np.ndarray, labels: np.ndarray) -> None:
    """Raise ValueError if `labels` (text, label set) has a class that the same label set of train's y does not have."""
    for s, (train_labels, labels_of_set) in enumerate(zip(y.T, labels.T, strict=True)):
        if unknown_classes := sorted(set(labels_of_set[labels_of_set >= 0].tolist()) - set(train_labels.tolist())):
            raise ValueError(f"label set {s}: no train text has class {unknown_classes[0]}")


def _score(predictions: Predictions, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(label set, cell, text): 1 if the label in y (text, label set) was predicted, else 0; and the bits of the label.

    NaN in a cell that failed; undefined for a text without a label.
    """
    labels = y.T[None, ..., None].clip(min=0)  # (1, label set, text, 1)
    costs = -np.take_along_axis(predictions.log2_proba, labels, -1)[..., 0].astype(np.float64)
    right = np.where(np.isnan(costs), np.nan, predictions.codes == labels[..., 0])
    return right.swapaxes(0, 1), costs.swapaxes(0, 1)


@dataclass(frozen=True, eq=False)
class Information:
    """The V-information of X about one label set, over the texts with a label, in their order.

    before, after: (cell, text) bits of the label without X and with it; `before` has one row if it does not depend on
    the cell. NaN if the probe failed. converged: (cell,). failures: cell -> error message.
    """

    before: np.ndarray
    after: np.ndarray
    converged: np.ndarray
    failures: dict[int, str]

    @property
    def terms(self) -> np.ndarray:
        """(cell, text) bits that X saves, the pointwise V-information (Ethayarajh et al. 2022): resample these."""
        return self.before - self.after

    @property
    def bits(self) -> np.ndarray:
        """(cell,) V-information, the mean of the terms."""
        return self.terms.mean(1)


def v_information(
    probe: BaseEstimator,
    X: np.ndarray,
    y: np.ndarray,
    *,
    dev: Labelled,
    evaluated: Labelled,
    given: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    timeout: float | None = None,
) -> tuple[Information, ...]:
    """The V-information of X (cell, text, dim) about y (text, label set), for every label set.

    dev: the texts on which strengths are chosen. evaluated: the texts whose labels are predicted. given: B (text, dim)
    for train, dev and evaluated, to condition on: a probe on B and X is compared with one on B and zeros, so that both
    have the same size. Without it the comparison is with the class frequencies of train. timeout: of a fit, see
    `predict_each`. Raises ValueError if an evaluated text has a class that no train text has, or the probe gives no
    probabilities.
    """
    unseen, labels = evaluated
    _check_classes(y, labels)

    def predict(X: np.ndarray, X_dev: np.ndarray, unseen: np.ndarray) -> Predictions:
        p = predict_each(probe, X, y, unseen, dev=(X_dev, dev[1]), strengths=STRENGTHS, timeout=timeout)
        return replace(p, log2_proba=_require_probabilities(probe, p, int(y.max()) + 1))

    parts = X, dev[0], unseen
    if given is None:
        after, before = predict(*parts), _class_frequencies(y, len(labels))
    else:
        after = predict(*(_concatenate(B, part) for B, part in zip(given, parts, strict=True)))
        before = predict(*(_concatenate(B, np.zeros_like(part[:1])) for B, part in zip(given, parts, strict=True)))
    bits_before, bits_after = (_score(p, labels)[1] for p in (before, after))  # (label set, cell, text)
    failures = dict.fromkeys(range(len(X)), before.failures[0]) if before.failures else after.failures
    converged = after.converged & before.converged
    known = labels.T >= 0
    return tuple(
        Information(bits_before[s][:, known[s]], bits_after[s][:, known[s]], converged[:, s], failures)
        for s in range(y.shape[1])
    )


def _concatenate(B: np.ndarray, X: np.ndarray) -> np.ndarray:
    """B (text, dim) concatenated with every cell of X (cell, text, dim)."""
    return np.concatenate([np.broadcast_to(B.astype(X.dtype, copy=False), (len(X), *B.shape)), X], 2)


def _class_frequencies(y: np.ndarray, texts: int) -> Predictions:
    """The class frequencies of every label set as predictions for every text."""
    counts = (y.T[..., None] == np.arange(y.max() + 1)).sum(1)
    with np.errstate(divide="ignore"):
        bits = np.log2(counts / counts.sum(1, keepdims=True))
    log2_proba = np.broadcast_to(bits[None, :, None], (1, len(bits), texts, bits.shape[1]))
    return Predictions(log2_proba.argmax(-1), log2_proba, np.ones((1, len(bits)), bool), {})
