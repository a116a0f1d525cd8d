"""The attention probe: learned attention over the tokens of a text, trained jointly with a linear head.

1. Every cell and label set has one query q and one temperature. The tokens x_j of a text, standardised over the real
   tokens of train, are weighted by softmax_j(x_j . q / temperature), and a linear map reads their weighted mean.
2. q starts at 0: the probe starts as mean pooling. Query, temperature and map of all cells, label sets and strengths
   are trained at once (descent.py).
3. `attention_cells` returns the attention weights.
4. `make_attention_probe` makes the probe for the readouts that need it.

Its gain over a linear probe on a fixed pooling is the information that this pooling loses.
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

RATE = 1e-2


class AttentionProbe(ClassifierMixin, CellProbe):
    """Softmax regression on the mean of token vectors, weighted by a learned query.

    A row of X holds the vectors of a text's tokens one after another, (cell, text, token * dim), padded with zeros: a
    token that is all zeros is padding. dim: the size of one vector; None treats the row as one token, which makes it a
    linear probe. C: the inverse strength of the penalty on query and map. random_state: seeds the mini-batches.

    Fitted: mean_, scale_ (cell, dim); parameters_ (cell, label set, ...) tensors by name; strength_ (cell, label set)
    the chosen C; converged_ (cell, label set) whether training stopped early.
    """

    def __init__(self, dim: int | None = None, C: float = 1.0, random_state: int = 0) -> None:
        self.dim = dim
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
        """Train until the loss on `dev` (or a tenth of train) stops falling, at C or at the best of `strengths`.

        Raises ValueError if the width of X is not a multiple of `dim`.
        """
        grid = torch.tensor([self.C] if strengths is None or dev is None else list(strengths), dtype=torch.float64)
        self._moments(X, sample_weight)
        tokens = self._standardised(X)
        start = {
            "query": tokens.new_zeros(self.mean_.shape[1], 1),
            "sharpness": tokens.new_zeros(1),  # the temperature is exp(-sharpness)
            "map": tokens.new_zeros(self.mean_.shape[1], int(y.max()) + 1),
        }
        trained = descent.train(
            _network,
            start,
            tokens,
            torch.as_tensor(np.array(y)),
            grid,
            torch.Generator().manual_seed(self.random_state),
            rate=RATE,
            held_out=dev and (self._standardised(dev[0]), torch.as_tensor(np.array(dev[1]))),
            weight=None if sample_weight is None else torch.as_tensor(sample_weight),
        )
        self.parameters_ = trained.parameters
        self.strength_, self.converged_ = trained.strength.numpy(), trained.converged.numpy()
        return self

    def log_proba_cells(self, X: np.ndarray) -> np.ndarray:
        """(cell, text, token * dim) -> (cell, label set, text, class), nats."""
        return descent.log_proba(_network, self.parameters_, self._standardised(X)).numpy()

    def attention_cells(self, X: np.ndarray) -> np.ndarray:
        """(cell, text, token * dim) -> (cell, label set, text, token) attention: rows sum to 1, 0 on padding."""
        return _attention(self.parameters_, self._standardised(X)).numpy()

    def _tokens(self, X: np.ndarray) -> np.ndarray:
        """(cell, text, token, dim)."""
        dim = X.shape[2] if self.dim is None else self.dim
        if X.shape[2] % dim:
            raise ValueError(f"AttentionProbe(dim={dim}): {X.shape[2]} features are not whole tokens of {dim} numbers")
        return X.reshape(*X.shape[:2], -1, dim)

    def _moments(self, X: np.ndarray, weight: np.ndarray | None) -> None:
        """Set mean_ and scale_ (cell, dim), over the real tokens."""
        moments = []
        for tokens in self._tokens(X):
            real = (tokens != 0).any(-1)  # (text, token)
            if not real.any():
                real[:, 0] = True
            token_weights = None if weight is None else np.broadcast_to(np.asarray(weight)[:, None], real.shape)[real]
            moments.append(_moments(tokens[real][None], token_weights))
        self.mean_, self.scale_ = (np.concatenate(part) for part in zip(*moments, strict=True))

    def _standardised(self, X: np.ndarray) -> Tensor:
        """(cell, text, token, dim + 1); the last number is 1 on a real token, and all are 0 on padding."""
        tokens = self._tokens(X)
        standardised = np.zeros((*tokens.shape[:3], tokens.shape[3] + 1), self.mean_.dtype)
        real = standardised[..., -1:]
        real[...] = (tokens != 0).any(-1, keepdims=True)
        np.subtract(tokens, self.mean_[:, None, None], out=standardised[..., :-1])
        standardised[..., :-1] *= real / self.scale_[:, None, None]
        return torch.from_numpy(standardised)


def _attention(parameters: descent.Parameters, x: Tensor) -> Tensor:
    """(cell, problem, text, token)."""
    cells, texts, tokens, _ = x.shape
    query = parameters["query"][..., 0].mT  # (cell, dim, problem)
    scores = (x[..., :-1].reshape(cells, texts * tokens, -1) @ query).mT.unflatten(2, (texts, tokens))
    scores = scores * parameters["sharpness"].exp()[..., None]
    real = x[:, None, :, :, -1]
    # not -inf: a text without a token would be NaN
    return scores.masked_fill(real == 0, torch.finfo(x.dtype).min).softmax(-1) * real


def _network(parameters: descent.Parameters, x: Tensor) -> Tensor:
    pooled = torch.einsum("cpnt,cntd->cpnd", _attention(parameters, x), x[..., :-1])
    return pooled @ parameters["map"]


def make_attention_probe(readout: str, dim: int) -> AttentionProbe | None:
    """The probe that learns the pooling of a readout, or None if the readout is a single vector.

    dim: the size of one token's vector.
    """
    return AttentionProbe(dim) if readout.startswith("attention") else None
