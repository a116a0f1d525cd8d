"""What a probe is: one arithmetic, two entrances.

1. A `CellProbe` fits many cells (layer, readout) and many label sets at once: you write `fit_cells` and one of
   `log_proba_cells` and `predict_cells`. scikit-learn's `fit(X, y)` and `predict(X)` follow from these: one cell, one set.
2. `predict_each` runs any probe over cells: a `CellProbe` in one call, any other scikit-learn estimator cell by cell.
3. `find_probe` knows the registered probes (entry points ``clsprobe.probes``) and ``package.module:Class``.
4. `check_probe` is the contract a probe must keep; plug-in authors run it in their own tests.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from probes.errors import InputError, unknown

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 1e1)


def _has_probabilities(probe: CellProbe) -> bool:
    return type(probe).log_proba_cells is not CellProbe.log_proba_cells


class CellProbe(BaseEstimator, ABC):
    """A classifier over cells. Put a scikit-learn mixin before it: ``class Mine(ClassifierMixin, CellProbe)``."""

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

        dev: (X, y) of the same axes, on which a strength of regularisation may be chosen among `strengths`.
        """

    def log_proba_cells(self, X: np.ndarray) -> np.ndarray:
        """(cell, text, dim) -> (cell, label set, text, class), nats; -inf for classes beyond a set's own."""
        raise NotImplementedError(f"{type(self).__name__} gives no probabilities")

    def predict_cells(self, X: np.ndarray) -> np.ndarray:
        """(cell, text, dim) -> (cell, label set, text), integer codes."""
        return self.log_proba_cells(X).argmax(-1)

    def fit(self, X: Any, y: Any) -> Self:
        """scikit-learn's entrance: X (text, dim), y (text,) any labels. One cell, one label set."""
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} needs two classes; the data has one class, {self.classes_[0]!r}")
        return self.fit_cells(X[None], codes[:, None])

    def predict(self, X: Any) -> np.ndarray:
        """(text, dim) -> (text,) labels."""
        codes = self.predict_cells(self._cell(X))[0, 0]
        return self.classes_[codes]

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

    codes: (cell, label set, text). log2_proba: (cell, label set, text, class) bits, None where the probe gives no
    probabilities. converged: (cell, label set). failures: cell -> what its fit raised; its rows hold -1 and NaN.
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

    X: (cell, text, dim). y: (text, label set) integer codes, -1 = no label. unseen: (cell, text, dim). A probe that
    raises spoils its own cell only. Arrays are handed over read-only.
    """
    for array in (X, y, unseen, *(dev or ())):
        array.setflags(write=False)
    fit = _fit_together if isinstance(probe, CellProbe) else _fit_one_by_one
    try:
        return fit(probe, X, y, unseen, dev, strengths)
    except Exception as error:  # a plug-in may raise anything; it is told, and the other cells go on
        if len(X) == 1:
            shape = 1, y.shape[1], unseen.shape[1]
            told = f"{type(error).__name__}: {error}"
            return Predictions(np.full(shape, -1), None, np.zeros(shape[:2], bool), {0: told})
    alone = [
        predict_each(
            probe, X[c : c + 1], y, unseen[c : c + 1], dev=dev and (dev[0][c : c + 1], dev[1]), strengths=strengths
        )
        for c in range(len(X))
    ]
    return _stack(alone, int(y.max()) + 1)


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
    shape = len(X), y.shape[1], unseen.shape[1]
    converged = np.asarray(getattr(fitted, "converged_", np.ones(shape[:2], bool)))
    if not _has_probabilities(probe):
        return Predictions(_checked(fitted.predict_cells(unseen), shape, "predict_cells"), None, converged, {})
    nats = _checked(fitted.log_proba_cells(unseen), (*shape, int(y.max()) + 1), "log_proba_cells")
    if np.isnan(nats).any():
        raise ValueError("log_proba_cells returned NaN")
    return Predictions(nats.argmax(-1), nats / np.log(2), converged, {})


def _checked(array: np.ndarray, shape: tuple[int, ...], method: str) -> np.ndarray:
    if np.shape(array) != shape:
        raise ValueError(f"{method} returned shape {np.shape(array)}, expected {shape}")
    return array


def _fit_one_by_one(
    probe: BaseEstimator,
    X: np.ndarray,
    y: np.ndarray,
    unseen: np.ndarray,
    dev: tuple[np.ndarray, np.ndarray] | None,
    strengths: Sequence[float] | None,
) -> Predictions:
    """An ordinary estimator has no strengths of ours: it is fitted as it is, and dev is left alone."""
    shape, classes = (len(X), y.shape[1], unseen.shape[1]), int(y.max()) + 1
    codes = np.empty(shape, np.int64)
    bits = np.full((*shape, classes), -np.inf) if hasattr(probe, "predict_proba") else None
    converged = np.ones(shape[:2], bool)
    for cell, label_set in np.ndindex(*shape[:2]):
        known = y[:, label_set] >= 0
        estimator = clone(probe)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator.fit(X[cell][known], y[known, label_set])
        converged[cell, label_set] = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        codes[cell, label_set] = estimator.predict(unseen[cell])
        if bits is not None:
            with np.errstate(divide="ignore"):
                bits[cell, label_set][:, estimator.classes_] = np.log2(estimator.predict_proba(unseen[cell]))
    return Predictions(codes, bits, converged, {})


def registered() -> dict[str, str]:
    """Name -> ``package.module:Class`` of every probe that an installed package registers."""
    return {entry.name: entry.value for entry in entry_points(group="clsprobe.probes")}


def find_probe(name: str) -> BaseEstimator:
    """The probe of a registered name or of ``package.module:Class``, with its default arguments. Raises InputError."""
    path = registered().get(name, name)
    module, colon, kind = path.partition(":")
    if not colon:
        raise unknown("--probes", "probe", name, registered())
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # a probe in the user's own folder, as `python -m` would find it
    try:
        probe = getattr(importlib.import_module(module), kind)()
    except ModuleNotFoundError as error:
        raise InputError(f"--probes {name}", str(error), "Install the package, or run where the module is") from error
    except AttributeError as error:
        raise InputError(f"--probes {name}", str(error), "Name a class of that module") from error
    except Exception as error:  # a plug-in's own code
        raise InputError(
            f"--probes {name}", f"cannot be made ({type(error).__name__}: {error})", "Mend the plug-in"
        ) from error
    if not isinstance(probe, BaseEstimator):
        raise InputError(
            f"--probes {name}", "is no scikit-learn estimator", "Derive it from CellProbe or BaseEstimator"
        )
    return probe


def check_probe(probe: BaseEstimator, *, seed: int = 0) -> None:
    """Raise AssertionError where a probe breaks the contract that the sweep relies on.

    On Gaussian cells it must find a planted signal, stay at chance on labels that have none, give the same answer twice,
    not depend on test rows, leave its inputs and its own parameters alone, and leave the global random state untouched.
    """
    random = np.random.default_rng(seed)
    n, dim = 300, 6
    y = np.stack([np.arange(2 * n) % 2, random.permutation(2 * n) % 2], 1)  # the second set is independent of X
    X = random.normal(size=(3, 2 * n, dim)).astype(np.float32)
    X[1, :, 2] += 3 * y[:, 0]  # d = 3 in cell 1 only
    train, test = X[:, :n].copy(), X[:, n:].copy()
    dev = train[:, ::5].copy(), y[:n:5].copy()
    before = [a.copy() for a in (train, y, test)]
    parameters = repr(probe)
    state = np.random.get_state()[1].copy()

    def run(unseen: np.ndarray) -> Predictions:
        return predict_each(probe, train, y[:n].copy(), unseen, dev=dev, strengths=STRENGTHS)

    first, second = run(test), run(test.copy())
    assert not first.failures, f"the probe raised: {first.failures}"
    assert np.array_equal(first.codes, second.codes), "two fits on the same data differ: seed what is random"
    right = (first.codes == y[n:].T[None]).mean(-1)  # (cell, label set)
    assert right[1, 0] > 0.85, f"a planted signal (accuracy 0.93 possible) was read at {right[1, 0]:.2f}"
    null = np.delete(right.ravel(), 2)
    assert np.abs(null - 0.5).max() < 5 * 0.5 / np.sqrt(n), f"labels without signal were read at {null.max():.2f}"
    poisoned = run(np.concatenate([test, np.full_like(test, 1e6)], 1))
    assert np.array_equal(poisoned.codes[..., :n], first.codes), "other test rows change a prediction"
    assert all(np.array_equal(a, b) for a, b in zip(before, (train, y, test), strict=True)), (
        "the probe alters its inputs"
    )
    assert repr(probe) == parameters, "fitting alters the constructor's parameters"
    assert np.array_equal(np.random.get_state()[1], state), "the probe moves numpy's global random state"
