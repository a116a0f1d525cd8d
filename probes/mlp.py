"""The probe with one hidden layer, for classes that are not linearly separable.

All cells, label sets and strengths are trained at once (descent.py), on features standardised as in the linear probe.
The last matrix starts at 0: the probe starts as the class frequencies, and stays there if nothing is gained on dev. It
can memorise; compare it with its control (probes.tasks.control; Hewitt & Liang 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from torch import Tensor

from clsprobe.probes import descent
from clsprobe.probes.base import CellProbe
from clsprobe.probes.linear import _moments

RATE = 3e-3


class MLPProbe(ClassifierMixin, CellProbe):
    """One hidden layer of rectified linear units and a softmax.

    hidden: its width. C: the inverse strength of the penalty on both matrices, as in the linear probe. random_state:
    seeds the initial weights and the mini-batches.

    Fitted: mean_, scale_ (cell, dim); parameters_ (cell, label set, ...) tensors by name; strength_ (cell, label set)
    the chosen C; converged_ (cell, label set) whether training stopped early.
    """

    def __init__(self, hidden: int = 64, C: float = 1.0, random_state: int = 0) -> None:
        self.hidden = hidden
        self.C = C
        self.random_state = random_state

    def fit_cells(
        self,
        X: np.ndarray,
        y: np.ndarray,
        *,
        dev: tuple[np.ndarray, np.ndarray] | None = None,
        strengths: Sequence[float] | None = None,
        sample_weight: np.ndarray | None = None,
    ) -> Self:
        """Train until the loss on `dev` (or a tenth of train) stops falling, at C or at the best of `strengths`."""
        grid = torch.tensor([self.C] if strengths is None or dev is None else list(strengths), dtype=torch.float64)
        self.mean_, self.scale_ = _moments(X, sample_weight)
        features, dim = self._standardised(X), X.shape[2]
        generator = torch.Generator().manual_seed(self.random_state)
        inner = torch.randn(dim, self.hidden, generator=generator, dtype=features.dtype)
        start = {
            "inner": inner * (2 / dim) ** 0.5,  # He et al. 2015
            "threshold": features.new_zeros(self.hidden),
            "outer": features.new_zeros(self.hidden, int(y.max()) + 1),
        }
        trained = descent.train(
            _network,
            start,
            features,
            torch.as_tensor(np.array(y)),
            grid,
            generator,
            rate=RATE,
            held_out=dev and (self._standardised(dev[0]), torch.as_tensor(np.array(dev[1]))),
            weight=None if sample_weight is None else torch.as_tensor(sample_weight),
        )
        self.parameters_ = trained.parameters
        self.strength_, self.converged_ = trained.strength.numpy(), trained.converged.numpy()
        return self

    def log_proba_cells(self, X: np.ndarray) -> np.ndarray:
        """(cell, text, dim) -> (cell, label set, text, class), nats."""
        return descent.log_proba(_network, self.parameters_, self._standardised(X)).numpy()

    def _standardised(self, X: np.ndarray) -> Tensor:
        features = np.subtract(X, self.mean_[:, None], dtype=self.mean_.dtype)
        features /= self.scale_[:, None]
        return torch.from_numpy(features)


def _network(parameters: descent.Parameters, x: Tensor) -> Tensor:
    inner = parameters["inner"]  # (cell, problem, dim, hidden)
    projected = x @ inner.transpose(1, 2).flatten(2)  # one product per cell
    hidden = projected.unflatten(2, inner.shape[1::2]).transpose(1, 2) + parameters["threshold"][:, :, None]
    return hidden.relu() @ parameters["outer"]
