"""The linear probe: multinomial logistic regression with an L2 penalty, over all cells at once (solver.py).

Every cell is standardised on its own training texts, so that one strength means the same in every cell. The strength is
kept per cell and label set, the one with the fewest bits on dev; the probe is not refitted on dev.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin

from probes.base import CellProbe
from probes.solver import solve


class LogisticProbe(ClassifierMixin, CellProbe):
    """Multinomial logistic regression on standardised features; `C` is scikit-learn's inverse strength.

    Fitted: mean_, scale_ (cell, dim); coef_ (cell, label set, class, dim) and intercept_ (cell, label set, class) on
    the standardised features, -inf for a class without training texts; strength_ (cell, label set) the C kept;
    converged_ (cell, label set).
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
        """Fit C, or with `dev` and `strengths` keep the strength with the fewest dev bits (per cell and label set)."""
        grid = torch.tensor([self.C] if strengths is None or dev is None else list(strengths), dtype=torch.float64)
        self.mean_, self.scale_ = _moments(X, sample_weight)
        weight = None if sample_weight is None else torch.as_tensor(sample_weight)
        found = solve(self._standardised(X), torch.as_tensor(np.array(y)), grid, weight=weight)
        if len(grid) > 1 and dev is not None:
            kept = self._fewest_bits(found.coef, found.intercept, *dev)
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

    def _standardised(self, X: np.ndarray) -> torch.Tensor:
        features = np.subtract(X, self.mean_[:, None], dtype=self.mean_.dtype)
        features /= self.scale_[:, None]
        return torch.from_numpy(features)

    def _fewest_bits(self, coef: torch.Tensor, intercept: torch.Tensor, X: np.ndarray, y: np.ndarray) -> torch.Tensor:
        """(cell, label set): the index of the strength with the smallest cross-entropy on dev."""
        Z = self._standardised(X)[:, None, None] @ coef.mT + intercept[..., None, :]
        nats = Z.log_softmax(-1)  # (cell, label set, strength, text, class)
        codes = torch.as_tensor(np.array(y)).T  # (label set, text)
        own = nats.gather(-1, codes.clamp(min=0)[None, :, None, :, None].expand(*nats.shape[:-1], 1))[..., 0]
        return (own * (codes >= 0)[None, :, None]).sum(-1, dtype=torch.float64).argmax(-1)


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
