"""The linear probes, over all cells at once: logistic regression for classes (solver.py), ridge regression for numbers.

Every cell is standardised on its own training texts, so that one strength means the same in every cell. The strength is
kept per cell and label set, the one with the fewest bits on dev, or the smallest squared error; the probe is not
refitted on dev.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin

from clsprobe.probes.base import CellProbe
from clsprobe.probes.solver import Solution, solve


class LogisticProbe(ClassifierMixin, CellProbe):
    """Multinomial logistic regression on standardised features; `C` is scikit-learn's inverse strength.

    class_weight: as scikit-learn means it, "balanced" (each label set by its own classes) or a weight for every class,
    by its label; by its code where codes are all there is (`fit_cells`). A class that is not named has weight 1.

    Fitted: mean_, scale_ (cell, dim); coef_ (cell, label set, class, dim) and intercept_ (cell, label set, class) on
    the standardised features, -inf for a class without training texts; strength_ (cell, label set) the C kept;
    converged_ (cell, label set).
    """

    def __init__(self, C: float = 1.0, *, class_weight: str | Mapping[Any, float] | None = None) -> None:
        self.C = C
        self.class_weight = class_weight

    def fit_cells(
        self,
        X: np.ndarray,
        y: np.ndarray,
        *,
        dev: tuple[np.ndarray, np.ndarray] | None = None,
        strengths: Sequence[float] | None = None,
        sample_weight: np.ndarray | None = None,
    ) -> Self:
        """Fit C, or with `dev` and `strengths` keep the strength with the fewest dev bits (per cell and label set)."""
        grid = torch.tensor([self.C] if strengths is None or dev is None else list(strengths), dtype=torch.float64)
        self.mean_, self.scale_ = _moments(X, sample_weight)
        weight = torch.as_tensor(self._weights(y, sample_weight))
        codes, seen = torch.as_tensor(np.array(y)), None
        if len(grid) > 1 and dev is not None:
            seen = self._standardised(dev[0]), torch.as_tensor(np.array(dev[1]))
        found = solve(self._standardised(X), codes, grid, weight=weight, dev=seen)
        if seen:
            kept = _fewest_bits(found, *seen)
        else:
            kept = torch.zeros(found.converged.shape[:2], dtype=torch.int64)
        cell, label_set = torch.meshgrid(*map(torch.arange, kept.shape), indexing="ij")
        self.coef_ = found.coef[cell, label_set, kept].numpy()
        self.intercept_ = found.intercept[cell, label_set, kept].numpy()
        self.strength_ = grid[kept].numpy()
        self.converged_ = found.converged[cell, label_set, kept].numpy()
        return self

    def log_proba_cells(self, X: np.ndarray) -> np.ndarray:
        """(cell, text, dim) -> (cell, label set, text, class), nats."""
        Z = self._standardised(X)[:, None] @ torch.from_numpy(self.coef_).mT
        return (Z + torch.from_numpy(self.intercept_)[:, :, None]).log_softmax(-1).numpy()

    def _weights(self, y: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray:
        """(text, label set): what every text counts for."""
        weights = np.ones(y.shape)
        if sample_weight is not None:
            weights *= sample_weight[:, None]
        if self.class_weight is not None:
            labels = getattr(self, "classes_", np.arange(y.max() + 1)).tolist()  # `fit` has seen labels
            for own, codes in zip(weights.T, y.T, strict=True):
                known = codes >= 0
                if self.class_weight == "balanced":
                    total = np.bincount(codes[known], own[known], len(labels))  # (class,)
                    factor = total.sum() / np.maximum(total, 1e-300) / (total > 0).sum()
                elif isinstance(self.class_weight, str):
                    raise ValueError(f'class_weight is "balanced" or a mapping, not {self.class_weight!r}')
                else:
                    if strange := set(self.class_weight) - set(labels):
                        raise ValueError(f"class_weight names {sorted(strange, key=str)}, the classes are {labels}")
                    factor = np.array([self.class_weight.get(label, 1.0) for label in labels])
                own[known] *= factor[codes[known]]
        return weights

    def _standardised(self, X: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(_standardised(X, self.mean_, self.scale_))


def _fewest_bits(found: Solution, X: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(cell, label set): the index of the strength with the smallest cross-entropy on dev, X standardised."""
    Z = X[:, None, None] @ found.coef.mT + found.intercept[..., None, :]
    nats = Z.log_softmax(-1)  # (cell, label set, strength, text, class)
    codes = y.T  # (label set, text)
    own = nats.gather(-1, codes.clamp(min=0)[None, :, None, :, None].expand(*nats.shape[:-1], 1))[..., 0]
    total = (own * (codes >= 0)[None, :, None]).sum(-1, dtype=torch.float64)
    return total.masked_fill(found.loss.isinf(), -torch.inf).argmax(-1)


class RidgeProbe(RegressorMixin, CellProbe):
    """Least squares with an L2 penalty on standardised features, for numbers; 1 / C is the `alpha` of scikit-learn's
    Ridge.

    Fitted: mean_, scale_ (cell, dim); coef_ (cell, label set, dim) and intercept_ (cell, label set) on the standardised
    features; strength_ (cell, label set) the C kept.
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
        """Fit C, or with `dev` and `strengths` keep the strength with the smallest mean squared error on dev (per cell
        and label set). y: (text, label set) numbers, NaN = no label. Raises ValueError for a set without any."""
        grid = np.array([self.C] if strengths is None or dev is None else list(strengths), np.float64)
        if (empty := np.isnan(y).all(0)).any():
            raise ValueError(f"label set {empty.argmax()} has no label to learn from")
        self.mean_, self.scale_ = _moments(X, sample_weight)
        weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
        shape = len(X), y.shape[1]
        self.coef_, self.intercept_, self.strength_ = np.empty((*shape, X.shape[2])), np.empty(shape), np.empty(shape)
        for cell, features in enumerate(_standardised(X, self.mean_, self.scale_)):
            coef, intercept = _ridge(features.astype(np.float64), y, weight, grid)
            kept = np.zeros(y.shape[1], np.int64)
            if len(grid) > 1 and dev is not None:
                ready = _standardised(dev[0][cell : cell + 1], *self._moments_of(cell))[0]
                told = ready @ coef.swapaxes(1, 2) + intercept[:, None]  # (label set, text, strength)
                kept = np.nansum((told - dev[1].T[..., None]) ** 2, 1).argmin(1)
            each = np.arange(y.shape[1])
            self.coef_[cell], self.intercept_[cell] = coef[each, kept], intercept[each, kept]
            self.strength_[cell] = grid[kept]
        return self

    def predict_cells(self, X: np.ndarray) -> np.ndarray:
        """(cell, text, dim) -> (cell, label set, text) numbers."""
        return self.coef_ @ _standardised(X, self.mean_, self.scale_).swapaxes(1, 2) + self.intercept_[..., None]

    def _moments_of(self, cell: int) -> tuple[np.ndarray, np.ndarray]:
        return self.mean_[cell : cell + 1], self.scale_[cell : cell + 1]


def _ridge(X: np.ndarray, y: np.ndarray, weight: np.ndarray, strengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """coef (label set, strength, dim) and intercept (label set, strength) of one cell, X (text, dim).

    With X and y centred on their weighted means, the optimum at 1/C is V (L + 1/C)^-1 V' X'Wy, where X'WX = V L V' does
    not know C (Hoerl & Kennard 1970): label sets that have labels for the same texts share it, as do all strengths.
    """
    coef = np.empty((y.shape[1], len(strengths), X.shape[1]))
    intercept = np.empty(coef.shape[:2])
    known, group = np.unique(~np.isnan(y), axis=1, return_inverse=True)
    for g, rows in enumerate(known.T):
        sets = np.flatnonzero(group == g)
        w, features, labels = weight[rows, None], X[rows], y[np.ix_(rows, sets)]
        centre, level = (np.average(a, 0, w[:, 0]) for a in (features, labels))
        features = features - centre
        spread, V = np.linalg.eigh(features.T @ (w * features))
        along = V.T @ (features.T @ (w * (labels - level)))  # (dim, label set)
        scaled = along.T[:, None] / (np.maximum(spread, 0) + 1 / strengths[:, None])  # (label set, strength, dim)
        coef[sets] = scaled @ V.T
        intercept[sets] = level[:, None] - coef[sets] @ centre
    return coef, intercept


def _standardised(X: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(cell, text, dim) with every cell's own mean and scale (cell, dim)."""
    features = np.subtract(X, mean[:, None], dtype=mean.dtype)
    features /= scale[:, None]
    return features


def _moments(X: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (cell, dim) over the texts, summed in float64 and kept in the precision of X.

    A coordinate that varies by no more than rounding does (layer-0 [CLS] is one vector for every text) has scale 1:
    dividing by its standard deviation would blow rounding up to a feature.
    """
    mean, scale = np.empty((2, len(X), X.shape[2]), X.dtype)
    for cell, features in enumerate(X):
        wide = features.astype(np.float64)
        centre = np.average(wide, 0, weight)
        deviation = np.sqrt(np.average((wide - centre) ** 2, 0, weight))
        rounding = (8 * np.finfo(X.dtype).eps + len(wide) * np.finfo(wide.dtype).eps) * np.abs(wide).max(0)
        mean[cell], scale[cell] = centre, np.where(deviation <= rounding, 1, deviation)
    return mean, scale
