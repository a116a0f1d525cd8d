"""Linear probes, over all cells at once: logistic regression for classes (solver.py), ridge regression for numbers.

Every cell is standardised on its own training texts, so that a strength means the same in every cell. The strength is
chosen per cell and label set, by the fewest bits or the smallest squared error on dev; the probe is not refitted on
dev.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin

from clsprobe.probes.base import CellProbe
from clsprobe.probes.solver import TOLERANCE, Solution, solve

BLOCK = 2_048  # texts that are in memory in float64 at once


class LogisticProbe(ClassifierMixin, CellProbe):
    """Multinomial logistic regression on standardised features; `C` is scikit-learn's inverse strength.

    class_weight: as in scikit-learn, "balanced" (within each label set) or a mapping from class to weight; the class is
    its label, or its code with `fit_cells`. Classes that are not in the mapping have weight 1. tol: the loss at which a
    fit ends is within about this share of the smallest one (`probes.solver`).

    Fitted: mean_, scale_ (cell, dim); coef_ (cell, label set, class, dim) and intercept_ (cell, label set, class) for
    the standardised features, -inf for a class without training texts; strength_ (cell, label set) the chosen C;
    converged_ (cell, label set).
    """

    def __init__(
        self, C: float = 1.0, *, class_weight: str | Mapping[Any, float] | None = None, tol: float = TOLERANCE
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.tol = tol

    def fit_cells(
        self,
        X: np.ndarray,
        y: np.ndarray,
        *,
        dev: tuple[np.ndarray, np.ndarray] | None = None,
        strengths: Sequence[float] | None = None,
        sample_weight: np.ndarray | None = None,
    ) -> Self:
        """Fit at C or, with `dev` and `strengths`, at the strength with the fewest dev bits per cell and label set."""
        grid = torch.tensor([self.C] if strengths is None or dev is None else list(strengths), dtype=torch.float64)
        self.mean_, self.scale_ = _moments(X, sample_weight)
        weight = torch.as_tensor(self._weights(y, sample_weight))
        codes, standardised_dev = torch.as_tensor(np.array(y)), None
        if len(grid) > 1 and dev is not None:
            y_dev = _mask_untaught(torch.as_tensor(np.array(dev[1])), codes, weight)
            standardised_dev = self._standardised(dev[0]), y_dev
        solution = solve(self._standardised(X), codes, grid, weight=weight, dev=standardised_dev, tol=self.tol)
        if standardised_dev:
            chosen = _choose_strength(solution, *standardised_dev)
        else:
            chosen = torch.zeros(solution.converged.shape[:2], dtype=torch.int64)
        cell, label_set = torch.meshgrid(*map(torch.arange, chosen.shape), indexing="ij")
        self.coef_ = solution.coef[cell, label_set, chosen].numpy()
        self.intercept_ = solution.intercept[cell, label_set, chosen].numpy()
        self.strength_ = grid[chosen].numpy()
        self.converged_ = solution.converged[cell, label_set, chosen].numpy()
        return self

    def log_proba_cells(self, X: np.ndarray) -> np.ndarray:
        """(cell, text, dim) -> (cell, label set, text, class), nats."""
        log_proba = []
        for features, coef, intercept in zip(self._standardised(X), self.coef_, self.intercept_, strict=True):
            # the label sets side by side: a product broadcast over them would copy the features for each
            logits = (features @ torch.from_numpy(coef).flatten(0, 1).mT).view(len(features), *intercept.shape)
            log_proba.append((logits + torch.from_numpy(intercept)).log_softmax(-1).transpose(0, 1))
        return torch.stack(log_proba).numpy()

    def _weights(self, y: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray:
        """(text, label set): the weight of every text."""
        weights = np.ones(y.shape)
        if sample_weight is not None:
            weights *= sample_weight[:, None]
        if self.class_weight is not None:
            labels = getattr(self, "classes_", np.arange(y.max() + 1)).tolist()  # `fit` has seen labels
            for weights_of_set, codes in zip(weights.T, y.T, strict=True):
                known = codes >= 0
                if self.class_weight == "balanced":
                    class_weights = np.bincount(codes[known], weights_of_set[known], len(labels))  # (class,)
                    factor = class_weights.sum() / np.maximum(class_weights, 1e-300) / (class_weights > 0).sum()
                elif isinstance(self.class_weight, str):
                    raise ValueError(f'class_weight is "balanced" or a mapping, not {self.class_weight!r}')
                else:
                    if unknown := set(self.class_weight) - set(labels):
                        raise ValueError(f"class_weight names {sorted(unknown, key=str)}, the classes are {labels}")
                    factor = np.array([self.class_weight.get(label, 1.0) for label in labels])
                weights_of_set[known] *= factor[codes[known]]
        return weights

    def _standardised(self, X: np.ndarray) -> _StandardisedCells:
        return _StandardisedCells(X, self.mean_, self.scale_)


class _StandardisedCells(Sequence[torch.Tensor]):
    """The cells of X (cell, text, dim) as tensors, each standardised when it is read: one at a time is in memory."""

    def __init__(self, X: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> None:
        self._X, self._mean, self._scale = X, mean, scale

    def __len__(self) -> int:
        return len(self._X)

    def __getitem__(self, cell: Any) -> Any:
        if not 0 <= cell < len(self):
            raise IndexError(cell)
        chosen = slice(cell, cell + 1)
        return torch.from_numpy(_standardised(self._X[chosen], self._mean[chosen], self._scale[chosen])[0])


def _mask_untaught(y_dev: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(dev text, label set) the codes of dev, -1 for a class without training texts in the label set: it is impossible
    at every strength, and would leave nothing to choose by. y, weight: (text, label set)."""
    taught = y.masked_fill(weight <= 0, -1)
    pairs = zip(y_dev.T, taught.T, strict=True)
    return torch.stack([codes.masked_fill(~torch.isin(codes, known), -1) for codes, known in pairs], 1)


def _choose_strength(solution: Solution, X: _StandardisedCells, y: torch.Tensor) -> torch.Tensor:
    """(cell, label set): the index of the strength with the smallest cross-entropy on dev, X standardised."""
    codes = y.T[:, None, None]  # (label set, 1, 1, text)
    total = torch.empty(solution.loss.shape, dtype=torch.float64)
    for cell, features in enumerate(X):  # a product over all cells would copy X for every label set and strength
        Z = solution.coef[cell] @ features.mT + solution.intercept[cell][..., None]
        nats = Z.log_softmax(-2)  # (label set, strength, class, text)
        own = nats.gather(-2, codes.clamp(min=0).expand(*nats.shape[:2], 1, -1))
        own = own.where(codes >= 0, 0)  # class 0 may be impossible, and 0 times infinity is no number
        total[cell] = own.sum((-2, -1), dtype=torch.float64)
    return total.masked_fill(solution.loss.isinf(), -torch.inf).argmax(-1)


class RidgeProbe(RegressorMixin, CellProbe):
    """Least squares with an L2 penalty on standardised features, for numbers; 1 / C is the `alpha` of scikit-learn's
    Ridge.

    Fitted: mean_, scale_ (cell, dim); coef_ (cell, label set, dim) and intercept_ (cell, label set) for standardised
    features; strength_ (cell, label set) the chosen C.
    """

    def __init__(self, C: float = 1.0) -> None:
        self.C = C

    def fit_cells(
        self,
        X: np.ndarray,
        y: np.ndarray,
        *,
        dev: tuple[np.ndarray, np.ndarray] | None = None,
        strengths: Sequence[float] | None = None,
        sample_weight: np.ndarray | None = None,
    ) -> Self:
        """Fit at C or, with `dev` and `strengths`, at the strength with the smallest mean squared error on dev per cell
        and label set. y: (text, label set) numbers, NaN = no label. Raises ValueError for a set without labels."""
        grid = np.array([self.C] if strengths is None or dev is None else list(strengths), np.float64)
        if (empty := np.isnan(y).all(0)).any():
            raise ValueError(f"label set {empty.argmax()} has no label to learn from")
        self.mean_, self.scale_ = _moments(X, sample_weight)
        weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
        shape = len(X), y.shape[1]
        self.coef_, self.intercept_, self.strength_ = np.empty((*shape, X.shape[2])), np.empty(shape), np.empty(shape)
        for cell in range(len(X)):
            features = _standardised(X[cell : cell + 1], *self._moments_of(cell))[0]
            coef, intercept = _ridge(features.astype(np.float64), y, weight, grid)
            chosen = np.zeros(y.shape[1], np.int64)
            if len(grid) > 1 and dev is not None:
                dev_features = _standardised(dev[0][cell : cell + 1], *self._moments_of(cell))[0]
                predictions = dev_features @ coef.swapaxes(1, 2) + intercept[:, None]  # (label set, text, strength)
                chosen = np.nansum((predictions - dev[1].T[..., None]) ** 2, 1).argmin(1)
            label_sets = np.arange(y.shape[1])
            self.coef_[cell], self.intercept_[cell] = coef[label_sets, chosen], intercept[label_sets, chosen]
            self.strength_[cell] = grid[chosen]
        return self

    def predict_cells(self, X: np.ndarray) -> np.ndarray:
        """(cell, text, dim) -> (cell, label set, text) numbers."""
        return self.coef_ @ _standardised(X, self.mean_, self.scale_).swapaxes(1, 2) + self.intercept_[..., None]

    def _moments_of(self, cell: int) -> tuple[np.ndarray, np.ndarray]:
        return self.mean_[cell : cell + 1], self.scale_[cell : cell + 1]


def _ridge(X: np.ndarray, y: np.ndarray, weight: np.ndarray, strengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """coef (label set, strength, dim) and intercept (label set, strength) of one cell, X (text, dim).

    With X and y centred on their weighted means, the optimum at 1/C is V (L + 1/C)^-1 V' X'Wy, where X'WX = V L V' does
    not depend on C (Hoerl & Kennard 1970). All strengths share it, and all label sets with labels for the same texts.
    """
    coef = np.empty((y.shape[1], len(strengths), X.shape[1]))
    intercept = np.empty(coef.shape[:2])
    known, groups = np.unique(~np.isnan(y), axis=1, return_inverse=True)
    for group, rows in enumerate(known.T):
        label_sets = np.flatnonzero(groups == group)
        w, features, labels = weight[rows, None], X[rows], y[np.ix_(rows, label_sets)]
        centre, level = (np.average(a, 0, w[:, 0]) for a in (features, labels))
        features = features - centre
        eigenvalues, V = np.linalg.eigh(features.T @ (w * features))
        along = V.T @ (features.T @ (w * (labels - level)))  # (dim, label set)
        scaled = along.T[:, None] / (np.maximum(eigenvalues, 0) + 1 / strengths[:, None])  # (label set, strength, dim)
        coef[label_sets] = scaled @ V.T
        intercept[label_sets] = level[:, None] - coef[label_sets] @ centre
    return coef, intercept


def _standardised(X: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(cell, text, dim) standardised by mean and scale (cell, dim)."""
    features = np.subtract(X, mean[:, None], dtype=mean.dtype)
    features /= scale[:, None]
    return features


def _moments(X: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (cell, dim) over the texts, summed in float64 and kept in the precision of X.

    A coordinate that varies no more than rounding errors do (layer-0 [CLS] is one vector for every text) has scale 1:
    dividing by its standard deviation would turn rounding errors into a feature.
    """
    mean, scale = np.empty((2, len(X), X.shape[2]), X.dtype)
    weight = np.ones(X.shape[1]) if weight is None else np.asarray(weight, np.float64)
    for cell, features in enumerate(X):
        centre = _weighted_sum(features, weight) / weight.sum()
        deviation = np.sqrt(_weighted_sum(features, weight, centre) / weight.sum())
        largest = np.maximum(features.max(0), -features.min(0)).astype(np.float64)
        rounding = (8 * np.finfo(X.dtype).eps + len(features) * np.finfo(np.float64).eps) * largest
        mean[cell], scale[cell] = centre, np.where(deviation <= rounding, 1, deviation)
    return mean, scale


def _weighted_sum(features: np.ndarray, weight: np.ndarray, centre: np.ndarray | None = None) -> np.ndarray:
    """(dim,) float64: the weighted sum of features (text, dim), or of their squared distances from `centre`; of a block
    of texts after another, since all of them in float64 would take three times the memory."""
    total = np.zeros(features.shape[1])
    for start in range(0, len(features), BLOCK):
        block = features[start : start + BLOCK].astype(np.float64)
        if centre is not None:
            block -= centre
            block *= block
        total += weight[start : start + BLOCK] @ block
    return total
