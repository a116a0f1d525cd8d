"""How many bits the labels cost someone who may use a probe: the online code and V-information. Everything is in bits.

`OnlineCode` (Voita & Titov 2020; prequential coding after Dawid 1984) transmits the labels of train block by block:

1. The texts are shuffled once. The blocks end at 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.25, 12.5, 25, 50 and 100 % of them;
   the first has at least two texts a class, and blocks that this leaves empty are dropped.
2. The first block costs log2 K a label. Every further one costs what a probe says that was trained from scratch on all
   texts before it, its strength chosen on dev, down to one at which nothing but the class frequencies remains.
3. A class that no text before had is no surprise without end: with n texts coded each such class has Laplace's
   1 / (n + K), and the probe shares out the rest. Otherwise the probe speaks alone.
4. The same probes on a set of other texts are a learning curve.

`v_information` (Xu et al. 2020) is what X takes off the bits of labels not seen: H(Y | nothing) - H(Y | X), and with
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
    """What the probes of a code say of other texts, those that have a label in this set, in their order.

    n: (fit,) texts trained on. right: (cell, fit, text) 1 where the label was predicted, else 0. costs: (cell, fit,
    text) bits of the label. NaN where the probe failed.
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
        """(cell, fit) per text."""
        return self.costs.mean(2)


@dataclass(frozen=True, eq=False)
class Code:
    """The online code of one label set.

    ends: (block,) labels sent when each block is. lengths: (cell, block) bits of each, NaN where the probe failed.
    uniform: bits without a probe, N log2 K. converged: (cell,) whether all fits were. failures: cell -> what the probe
    raised. curve: on the evaluated texts, where there are any.
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
        """(cell,) how many times shorter than the uniform code."""
        return self.uniform / self.codelength


@dataclass(frozen=True)
class OnlineCode:
    """The online code with a probe; seed: moves the order of the texts.

    ``OnlineCode(probe)(X, y, dev=...)`` gives a `Code` for every label set.
    """

    probe: BaseEstimator
    seed: int = 0

    def __call__(
        self, X: np.ndarray, y: np.ndarray, *, dev: Labelled, evaluated: Labelled | None = None
    ) -> tuple[Code, ...]:
        """Send y (text, label set) to someone who has X (cell, text, dim); -1 = no label, nothing to send.

        dev: the texts on which strengths are chosen. evaluated: the texts of the curve, which takes a fit on all of
        train besides. Raises ValueError where a set has fewer than two classes, an evaluated text one that no text of
        train has, or the probe no probabilities.
        """
        if evaluated:
            _check_classes(y, evaluated[1])
        order = np.random.default_rng([self.seed, 0xC0DE]).permutation(len(y))
        alike: dict[tuple[bytes, tuple[int, ...]], list[int]] = {}  # label sets with the same blocks share their fits
        for s, labels in enumerate(y.T):
            classes = np.unique(labels[labels >= 0])
            if len(classes) < 2:
                raise ValueError(f"label set {s} has {len(classes)} classes; a code needs two")
            ends = block_ends(int((labels >= 0).sum()), len(classes))
            alike.setdefault(((labels >= 0).tobytes(), ends), []).append(s)
        codes: dict[int, Code] = {}
        for (_, ends), sets in alike.items():
            rows = order[y[order, sets[0]] >= 0]
            other = evaluated and (evaluated[0], evaluated[1][:, sets])
            sent = self._send((X[:, rows], y[rows][:, sets]), ends, (dev[0], dev[1][:, sets]), other)
            codes.update(zip(sets, sent, strict=True))
        return tuple(codes[s] for s in range(y.shape[1]))

    def _send(self, train: Labelled, ends: Sequence[int], dev: Labelled, evaluated: Labelled | None) -> list[Code]:
        """The codes of label sets that every text has a label in. train: in the order that it is sent."""
        X, y = train
        others, labels = evaluated or (X[:, :0], y[:0])
        fits = ends if evaluated else ends[:-1]
        classes = [np.unique(column) for column in y.T]
        uniform = np.log2([len(known) for known in classes])
        lengths = np.full((y.shape[1], len(X), len(ends)), ends[0] * uniform[:, None, None])
        curves = np.empty((2, y.shape[1], len(X), len(fits), len(labels)))  # right and costs
        converged, failures = np.ones((len(X), y.shape[1]), bool), {}
        for fit, end in enumerate(fits):
            until = ends[min(fit + 1, len(ends) - 1)]
            unseen = np.concatenate([X[:, end:until], others], 1)
            told = _fit(self.probe, X[:, :end], y[:end], unseen, dev, classes)
            right, costs = _judge(told, np.concatenate([y[end:until], labels]))
            if end < until:
                lengths[..., fit + 1] = costs[..., : until - end].sum(2)
            curves[:, :, :, fit] = right[..., until - end :], costs[..., until - end :]
            converged &= told.converged
            failures.update(told.failures)
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
    """How many of the texts are sent when each block is."""
    ends = [min(max(round(ENDS[0] * texts), 2 * classes), texts)]
    for share in ENDS[1:]:
        if (end := round(share * texts)) > ends[-1]:
            ends.append(end)
    return tuple(ends)


def _fit(
    probe: BaseEstimator, X: np.ndarray, y: np.ndarray, unseen: np.ndarray, dev: Labelled, classes: Sequence[np.ndarray]
) -> Predictions:
    """What a probe trained on X and y says, with something left for those of the `classes` of each set not in y."""
    seen = [np.unique(labels) for labels in y.T]
    shape = len(X), y.shape[1], unseen.shape[1], 1 + max(int(known.max()) for known in classes)
    bits, converged, failures = np.full(shape, -np.inf), np.ones(shape[:2], bool), {}
    if several := [s for s, own in enumerate(seen) if len(own) > 1]:
        # codes without a gap; dev texts of a class that no probe can know yet would rule out all strengths alike
        labels, choosing = (
            np.stack([np.where(np.isin(k[:, s], seen[s]), np.searchsorted(seen[s], k[:, s]), -1) for s in several], 1)
            for k in (y, dev[1])
        )
        told = predict_each(probe, X, labels, unseen, dev=(dev[0], choosing), strengths=STRENGTHS)
        found = _probabilities(probe, told, int(labels.max()) + 1)
        for at, s in enumerate(several):
            bits[:, s][..., seen[s]] = found[:, at, :, : len(seen[s])]
        converged[:, several], failures = told.converged, told.failures
    for s, (known, own) in enumerate(zip(classes, seen, strict=True)):
        if len(own) == 1:
            bits[:, s, :, own[0]] = 0
        if new := np.setdiff1d(known, own).tolist():
            bits[:, s] += np.log2(1 - len(new) / (len(y) + len(known)))
            bits[:, s, :, new] = -np.log2(len(y) + len(known))
    bits[list(failures)] = np.nan
    return Predictions(bits.argmax(-1), bits, converged, failures)


def _probabilities(probe: BaseEstimator, told: Predictions, classes: int) -> np.ndarray:
    """(cell, label set, text, class) bits, NaN where the probe failed, or ValueError where it gives none."""
    if told.log2_proba is not None:
        return told.log2_proba
    if len(told.failures) < len(told.codes):
        raise ValueError(f"{type(probe).__name__} gives no probabilities, and without them nothing can be told in bits")
    return np.full((*told.codes.shape, classes), np.nan)


def _check_classes(y: np.ndarray, labels: np.ndarray) -> None:
    """Raise ValueError where a set of labels (text, label set) has a class that it has not in train's y."""
    for s, (own, met) in enumerate(zip(y.T, labels.T, strict=True)):
        if strange := sorted(set(met[met >= 0].tolist()) - set(own.tolist())):
            raise ValueError(f"label set {s}: no train text has class {strange[0]}")


def _judge(told: Predictions, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(label set, cell, text): 1 where the label in y (text, label set) was predicted and 0 elsewhere; its bits.

    NaN in a cell that failed; without meaning where a text has no label.
    """
    labels = y.T[None, ..., None].clip(min=0)  # (1, label set, text, 1)
    costs = -np.take_along_axis(told.log2_proba, labels, -1)[..., 0].astype(np.float64)
    right = np.where(np.isnan(costs), np.nan, told.codes == labels[..., 0])
    return right.swapaxes(0, 1), costs.swapaxes(0, 1)


@dataclass(frozen=True, eq=False)
class Information:
    """What X tells of one label set's labels, over the texts that have one, in their order.

    before, after: (cell, text) bits that a label costs without X and with it; `before` has one row where it does not
    depend on the cell. NaN where the probe failed. converged: (cell,). failures: cell -> what was raised.
    """

    before: np.ndarray
    after: np.ndarray
    converged: np.ndarray
    failures: dict[int, str]

    @property
    def terms(self) -> np.ndarray:
        """(cell, text) bits that X takes off, the pointwise V-information (Ethayarajh et al. 2022): resample these."""
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
) -> tuple[Information, ...]:
    """What X (cell, text, dim) tells a probe of y (text, label set), for every label set.

    dev: the texts on which strengths are chosen. evaluated: the texts whose labels are told. given: B (text, dim) of
    train, dev and evaluated, which X is added to; it is compared with B and zeros, so that both probes are alike.
    Without it nothing is known but the class frequencies of train. Raises ValueError where an evaluated text has a
    class that no train text has, or the probe has no probabilities.
    """
    unseen, labels = evaluated
    _check_classes(y, labels)

    def told(X: np.ndarray, X_dev: np.ndarray, unseen: np.ndarray) -> Predictions:
        found = predict_each(probe, X, y, unseen, dev=(X_dev, dev[1]), strengths=STRENGTHS)
        return replace(found, log2_proba=_probabilities(probe, found, int(y.max()) + 1))

    parts = X, dev[0], unseen
    if given is None:
        after, before = told(*parts), _frequencies(y, len(labels))
    else:
        after = told(*(_beside(B, part) for B, part in zip(given, parts, strict=True)))
        before = told(*(_beside(B, np.zeros_like(part[:1])) for B, part in zip(given, parts, strict=True)))
    of_before, of_after = (_judge(each, labels)[1] for each in (before, after))  # (label set, cell, text)
    failures = dict.fromkeys(range(len(X)), before.failures[0]) if before.failures else after.failures
    converged = after.converged & before.converged
    known = labels.T >= 0
    return tuple(
        Information(of_before[s][:, known[s]], of_after[s][:, known[s]], converged[:, s], failures)
        for s in range(y.shape[1])
    )


def _beside(B: np.ndarray, X: np.ndarray) -> np.ndarray:
    """B (text, dim) before every cell of X (cell, text, dim)."""
    return np.concatenate([np.broadcast_to(B.astype(X.dtype, copy=False), (len(X), *B.shape)), X], 2)


def _frequencies(y: np.ndarray, texts: int) -> Predictions:
    """The class frequencies of every set, said of every text."""
    counts = (y.T[..., None] == np.arange(y.max() + 1)).sum(1)
    with np.errstate(divide="ignore"):
        bits = np.log2(counts / counts.sum(1, keepdims=True))
    told = np.broadcast_to(bits[None, :, None], (1, len(bits), texts, bits.shape[1]))
    return Predictions(told.argmax(-1), told, np.ones((1, len(bits)), bool), {})
