"""The interface of a probe: one computation behind two APIs.

1. A `CellProbe` fits many cells (layer, readout) and many label sets at once. A subclass implements `fit_cells` and
   either `log_proba_cells` or `predict_cells`. scikit-learn's `fit(X, y)` and `predict(X)` follow from these, for one
   cell and one label set.
2. `predict_each` runs any probe over cells: a `CellProbe` in one call, any other scikit-learn estimator cell by cell.

The contract of a probe is in contract.py.
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

from clsprobe.probes.errors import InputError, describe_error
from clsprobe.probes.plugins import PluginError, contain

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 1e1)


def _has_probabilities(probe: CellProbe) -> bool:
    return type(probe).log_proba_cells is not CellProbe.log_proba_cells


class CellProbe(BaseEstimator, ABC):
    """A classifier or a regressor over cells. List scikit-learn's mixin first; it determines what y holds:
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
        """Fit X (cell, text, dim) to y (text, label set): integer codes, -1 = no label; for a regressor numbers, NaN =
        no label.

        dev: (X, y) with the same axes, on which a strength of regularisation may be chosen among `strengths`.
        sample_weight: (text,).
        """

    def log_proba_cells(self, X: np.ndarray) -> np.ndarray:
        """(cell, text, dim) -> (cell, label set, text, class), nats; -inf for classes that the set does not have."""
        raise NotImplementedError(f"{type(self).__name__} gives no probabilities")

    def predict_cells(self, X: np.ndarray) -> np.ndarray:
        """(cell, text, dim) -> (cell, label set, text), integer codes, or numbers for a regressor."""
        return self.log_proba_cells(X).argmax(-1)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """scikit-learn's API for one cell and one label set: X (text, dim), y (text,) any labels."""
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
        """(text, dim) -> (text,) labels, or numbers for a regressor."""
        predictions = self.predict_cells(self._cell(X))[0, 0]
        return predictions if is_regressor(self) else self.classes_[predictions]

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
    """A probe's predictions for texts it was not fitted on.

    codes: (cell, label set, text), for a regressor numbers as float64. log2_proba: (cell, label set, text, class) bits,
    None if the probe gives no probabilities. converged: (cell, label set). failures: cell -> error message of its fit;
    the codes of such a cell are -1, its numbers and bits NaN.
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
    timeout: float | None = None,
) -> Predictions:
    """Fit a clone of `probe` on every cell and label set and predict `unseen`.

    X: (cell, text, dim). y: (text, label set) integer codes, -1 = no label; floats for a regressor, NaN = no label.
    unseen: (cell, text, dim). timeout: seconds that a cell may take, None for no limit; n cells that are fitted at once
    may take n times as long. A cell fails, and no other, where the probe raises anything on it, predicts what is no
    class or number, or takes longer (`plugins.contain`). Arrays are passed read-only. Raises ValueError if y holds
    classes and the probe reads numbers, or the reverse.
    """
    expected, actual = ("numbers" if yes else "classes" for yes in (is_regressor(probe), y.dtype.kind == "f"))
    if expected != actual:
        raise ValueError(f"{type(probe).__name__} reads {expected}, and the labels are {actual}")
    X, y, unseen = _read_only(X), _read_only(y), _read_only(unseen)
    dev = dev and (_read_only(dev[0]), _read_only(dev[1]))
    together = isinstance(probe, CellProbe)
    if len(X) == 1 or together:
        fit, limit = _fit_cells if together else _fit_estimators, timeout and timeout * len(X)
        try:
            with contain(type(probe).__name__, seconds=limit):
                return fit(probe, X, y, unseen, dev, strengths)
        except (PluginError, InputError) as error:  # record it, and go on with the other cells
            if len(X) == 1:
                message = str(error) if isinstance(error, PluginError) else describe_error(error)
                shape = 1, y.shape[1], unseen.shape[1]
                codes = np.full(shape, np.nan if y.dtype.kind == "f" else -1)
                return Predictions(codes, None, np.zeros(shape[:2], bool), {0: message})
    parts = [
        predict_each(
            probe,
            X[c : c + 1],
            y,
            unseen[c : c + 1],
            dev=dev and (dev[0][c : c + 1], dev[1]),
            strengths=strengths,
            timeout=timeout,
        )
        for c in range(len(X))
    ]
    return _stack(parts, _count_classes(y))


def _count_classes(y: np.ndarray) -> int:
    """Number of classes of the codes; 0 for numbers."""
    return 0 if y.dtype.kind == "f" else int(y.max()) + 1


def _read_only(array: np.ndarray) -> np.ndarray:
    """A view that cannot be made writeable again, as that of an array can."""
    return np.asarray(array.data.toreadonly())


def _stack(parts: Sequence[Predictions], classes: int) -> Predictions:
    bits = [p.log2_proba for p in parts if p.log2_proba is not None]
    shape = parts[0].codes.shape
    blank = np.full((*shape, classes), np.nan)
    return Predictions(
        np.concatenate([p.codes for p in parts]),
        np.concatenate([blank if p.log2_proba is None else p.log2_proba for p in parts]) if bits else None,
        np.concatenate([p.converged for p in parts]),
        {cell: p.failures[0] for cell, p in enumerate(parts) if p.failures},
    )


def _fit_cells(
    probe: CellProbe,
    X: np.ndarray,
    y: np.ndarray,
    unseen: np.ndarray,
    dev: tuple[np.ndarray, np.ndarray] | None,
    strengths: Sequence[float] | None,
) -> Predictions:
    fitted = clone(probe).fit_cells(X, y, dev=dev, strengths=strengths)
    shape, classes = (len(X), y.shape[1], unseen.shape[1]), _count_classes(y)
    converged = np.array(getattr(fitted, "converged_", np.ones(shape[:2], bool)), bool)
    if converged.shape != shape[:2]:
        raise ValueError(f"has a converged_ of shape {converged.shape}, expected {shape[:2]}")
    if not _has_probabilities(probe):
        return Predictions(_check_predictions(fitted.predict_cells(unseen), shape, classes), None, converged, {})
    log_proba = _check_log_proba(fitted.log_proba_cells(unseen), (*shape, classes))
    return Predictions(log_proba.argmax(-1), log_proba / math.log(2), converged, {})


def _check_numbers(values: Any, shape: tuple[int, ...], gave: str) -> np.ndarray:
    """The values as an array. Raises ValueError where they are no real numbers of this shape."""
    values = np.asarray(values)
    if values.shape != shape:
        raise ValueError(f"{gave} of shape {values.shape}, expected {shape}")
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{gave} of type {values.dtype}, expected real numbers")
    return values


def _check_predictions(predictions: Any, shape: tuple[int, ...], classes: int) -> np.ndarray:
    """Validated predictions. Raises ValueError for a code that is no class or, without classes, a number not finite."""
    predictions = _check_numbers(predictions, shape, "predicted an array")
    if not classes:
        if not np.isfinite(predictions).all():
            raise ValueError("predicted something that is not a finite number")
        return predictions.astype(np.float64)
    if not np.isin(predictions, np.arange(classes)).all():
        raise ValueError("predicted something that is not a class it was trained on")
    return predictions.astype(np.int64)


def _check_log_proba(log_proba: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Validated log probabilities, nats. Raises ValueError for a wrong shape or probabilities that do not sum to 1."""
    log_proba = _check_numbers(log_proba, shape, "gave probabilities")
    total = np.exp(log_proba).sum(-1)
    if not np.allclose(total, 1, atol=1e-3):
        worst = total.ravel()[np.abs(total - 1).argmax()]
        raise ValueError(f"gave probabilities that sum to {worst:.4g}, expected 1")
    return log_proba


def _fit_estimators(
    probe: BaseEstimator,
    X: np.ndarray,
    y: np.ndarray,
    unseen: np.ndarray,
    dev: tuple[np.ndarray, np.ndarray] | None,
    strengths: Sequence[float] | None,
) -> Predictions:
    """An ordinary estimator takes no strengths: it is fitted as it is, without dev."""
    shape, classes = (len(X), y.shape[1], unseen.shape[1]), _count_classes(y)
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
        codes[cell, label_set] = _check_predictions(estimator.predict(unseen[cell]), shape[2:], classes)
        if bits is not None:
            classes_of_set = _check_predictions(estimator.classes_, np.shape(estimator.classes_), classes)
            if len(np.unique(classes_of_set)) < len(classes_of_set):
                raise ValueError("has one class twice among its classes_")
            proba = _check_numbers(
                estimator.predict_proba(unseen[cell]), (shape[2], len(classes_of_set)), "gave probabilities"
            )
            with np.errstate(divide="ignore"):
                log_proba = _check_log_proba(np.log(proba), proba.shape)
            bits[cell, label_set][:, classes_of_set] = log_proba / math.log(2)
    return Predictions(codes, bits, converged, {})
