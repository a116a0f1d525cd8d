"""What a probe is: one arithmetic, two entrances.

1. A `CellProbe` fits many cells (layer, readout) and many label sets at once: you write `fit_cells` and one of
   `log_proba_cells` and `predict_cells`. scikit-learn's `fit(X, y)` and `predict(X)` follow from these: one cell, one
   set.
2. `predict_each` runs any probe over cells: a `CellProbe` in one call, any other scikit-learn estimator cell by cell.

The contract that a probe must keep is in contract.py.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, clone, is_regressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 1e1)


def _has_probabilities(probe: CellProbe) -> bool:
    return type(probe).log_proba_cells is not CellProbe.log_proba_cells


class CellProbe(BaseEstimator, ABC):
    """A classifier or a regressor over cells. Put scikit-learn's mixin before it, which says what y holds:
    ``class Mine(ClassifierMixin, CellProbe)`` learns codes, ``class Mine(RegressorMixin, CellProbe)`` numbers.
    """

    @abstractmethod
    def fit_cells(
        self,
        X: np.ndarray,
        y: np.ndarray,
        *,
        dev: tuple[np.ndarray, np.ndarray] | None = None,
        strengths: Sequence[float] | None = None,
        sample_weight: np.ndarray | None = None,
    ) -> Self:
        """Learn from X (cell, text, dim) and y (text, label set), integer codes, -1 = no label.

        A regressor gets numbers, NaN = no label. dev: (X, y) of the same axes, on which a strength of regularisation
        may be chosen among `strengths`. sample_weight: (text,).
        """

    def log_proba_cells(self, X: np.ndarray) -> np.ndarray:
        """(cell, text, dim) -> (cell, label set, text, class), nats; -inf for classes beyond a set's own."""
        raise NotImplementedError(f"{type(self).__name__} gives no probabilities")

    def predict_cells(self, X: np.ndarray) -> np.ndarray:
        """(cell, text, dim) -> (cell, label set, text), integer codes; a regressor's numbers."""
        return self.log_proba_cells(X).argmax(-1)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """scikit-learn's entrance: X (text, dim), y (text,) any labels. One cell, one label set."""
        numbers = is_regressor(self)
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), y_numeric=numbers)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X)
        if numbers:
            return self.fit_cells(X[None], y.astype(np.float64)[:, None], sample_weight=sample_weight)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} needs two classes; the data has one class, {self.classes_[0]!r}")
        return self.fit_cells(X[None], codes[:, None], sample_weight=sample_weight)

    def predict(self, X: Any) -> np.ndarray:
        """(text, dim) -> (text,) labels; a regressor's numbers."""
        told = self.predict_cells(self._cell(X))[0, 0]
        return told if is_regressor(self) else self.classes_[told]

    @available_if(_has_probabilities)
    def predict_log_proba(self, X: Any) -> np.ndarray:
        """(text, dim) -> (text, class), nats."""
        return self.log_proba_cells(self._cell(X))[0, 0]

    @available_if(_has_probabilities)
    def predict_proba(self, X: Any) -> np.ndarray:
        """(text, dim) -> (text, class)."""
        return np.exp(self.predict_log_proba(X))

    def _cell(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return validate_data(self, X, reset=False, dtype=(np.float64, np.float32))[None]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a probe says of texts it has not seen.

    codes: (cell, label set, text), a regressor's numbers as float64. log2_proba: (cell, label set, text, class) bits,
    None where the probe gives no probabilities. converged: (cell, label set). failures: cell -> what its fit raised;
    its codes are -1, its numbers and bits NaN.
    """

    codes: np.ndarray
    log2_proba: np.ndarray | None
    converged: np.ndarray
    failures: dict[int, str]


def predict_each(
    probe: BaseEstimator,
    X: np.ndarray,
    y: np.ndarray,
    unseen: np.ndarray,
    *,
    dev: tuple[np.ndarray, np.ndarray] | None = None,
    strengths: Sequence[float] | None = None,
) -> Predictions:
    """Fit a clone of `probe` on every cell and label set and predict `unseen`.

    X: (cell, text, dim). y: (text, label set) integer codes, -1 = no label; floats for a regressor, NaN = no label.
    unseen: (cell, text, dim). A probe that raises spoils its own cell only. Arrays are handed over read-only. Raises
    ValueError where y is not of the kind that the probe reads.
    """
    reads, holds = ("numbers" if yes else "classes" for yes in (is_regressor(probe), y.dtype.kind == "f"))
    if reads != holds:
        raise ValueError(f"{type(probe).__name__} reads {reads}, and the labels are {holds}")
    X, y, unseen = _read_only(X), _read_only(y), _read_only(unseen)
    dev = dev and (_read_only(dev[0]), _read_only(dev[1]))
    fit = _fit_together if isinstance(probe, CellProbe) else _fit_one_by_one
    try:
        return fit(probe, X, y, unseen, dev, strengths)
    except Exception as error:  # a plug-in may raise anything; it is told, and the other cells go on
        if len(X) == 1:
            shape = 1, y.shape[1], unseen.shape[1]
            told = f"{type(error).__name__}: {error}"
            nothing = np.full(shape, np.nan if y.dtype.kind == "f" else -1)
            return Predictions(nothing, None, np.zeros(shape[:2], bool), {0: told})
    alone = [
        predict_each(
            probe, X[c : c + 1], y, unseen[c : c + 1], dev=dev and (dev[0][c : c + 1], dev[1]), strengths=strengths
        )
        for c in range(len(X))
    ]
    return _stack(alone, _classes(y))


def _classes(y: np.ndarray) -> int:
    """How many classes the codes have; numbers have none."""
    return 0 if y.dtype.kind == "f" else int(y.max()) + 1


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.setflags(write=False)
    return view


def _stack(parts: Sequence[Predictions], classes: int) -> Predictions:
    known = [p.log2_proba for p in parts if p.log2_proba is not None]
    shape = parts[0].codes.shape
    blank = np.full((*shape, classes), np.nan)
    return Predictions(
        np.concatenate([p.codes for p in parts]),
        np.concatenate([blank if p.log2_proba is None else p.log2_proba for p in parts]) if known else None,
        np.concatenate([p.converged for p in parts]),
        {cell: p.failures[0] for cell, p in enumerate(parts) if p.failures},
    )


def _fit_together(
    probe: CellProbe,
    X: np.ndarray,
    y: np.ndarray,
    unseen: np.ndarray,
    dev: tuple[np.ndarray, np.ndarray] | None,
    strengths: Sequence[float] | None,
) -> Predictions:
    fitted = clone(probe).fit_cells(X, y, dev=dev, strengths=strengths)
    shape, classes = (len(X), y.shape[1], unseen.shape[1]), _classes(y)
    converged = np.asarray(getattr(fitted, "converged_", np.ones(shape[:2], bool)))
    if not _has_probabilities(probe):
        return Predictions(_told(fitted.predict_cells(unseen), shape, classes), None, converged, {})
    nats = _log_proba(fitted.log_proba_cells(unseen), (*shape, classes))
    return Predictions(nats.argmax(-1), nats / math.log(2), converged, {})


def _told(told: np.ndarray, shape: tuple[int, ...], classes: int) -> np.ndarray:
    """What a probe predicted, or ValueError where that is no class; without classes, where it is no number."""
    told = np.asarray(told)
    if told.shape != shape:
        raise ValueError(f"predicted an array of shape {told.shape}, expected {shape}")
    if not classes:
        if not np.isfinite(told).all():
            raise ValueError("predicted something that is not a finite number")
        return told.astype(np.float64)
    if not np.isin(told, np.arange(classes)).all():
        raise ValueError("predicted something that is not a class it was trained on")
    return told.astype(np.int64)


def _log_proba(told: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Log probabilities in nats, or ValueError where they are none."""
    told = np.asarray(told)
    if told.shape != shape:
        raise ValueError(f"gave probabilities of shape {told.shape}, expected {shape}")
    total = np.exp(told).sum(-1)
    if not np.allclose(total, 1, atol=1e-3):
        worst = total.ravel()[np.abs(total - 1).argmax()]
        raise ValueError(f"gave probabilities that sum to {worst:.4g}, expected 1")
    return told


def _fit_one_by_one(
    probe: BaseEstimator,
    X: np.ndarray,
    y: np.ndarray,
    unseen: np.ndarray,
    dev: tuple[np.ndarray, np.ndarray] | None,
    strengths: Sequence[float] | None,
) -> Predictions:
    """An ordinary estimator has no strengths of ours: it is fitted as it is, and dev is left alone."""
    shape, classes = (len(X), y.shape[1], unseen.shape[1]), _classes(y)
    codes = np.empty(shape, np.int64 if classes else np.float64)
    bits = np.full((*shape, classes), -np.inf) if hasattr(probe, "predict_proba") else None
    converged = np.ones(shape[:2], bool)
    for cell, label_set in np.ndindex(*shape[:2]):
        known = y[:, label_set] >= 0 if classes else ~np.isnan(y[:, label_set])
        estimator = clone(probe)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator.fit(X[cell][known], y[known, label_set])
        converged[cell, label_set] = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        codes[cell, label_set] = _told(estimator.predict(unseen[cell]), shape[2:], classes)
        if bits is not None:
            own = estimator.classes_
            with np.errstate(divide="ignore"):
                nats = np.log(estimator.predict_proba(unseen[cell]))
            bits[cell, label_set][:, own] = _log_proba(nats, (shape[2], len(own))) / math.log(2)
    return Predictions(codes, bits, converged, {})
