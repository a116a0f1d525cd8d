"""Which tokens stand in a text: one linear map to a yes or no for every token of the vocabulary. Order is ignored.

The map starts at 0 and the biases at the tokens' log odds in train, so that every cell starts as the blind decoder.
Gradients are written out: all cells of a step are one batched product each way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clsprobe.probes.decoders.base import Decoder, Pace, digest_of, train

PACE = Pace(rate=5e-3, batch=128, rounds=30)
AT_ONCE = 1 << 22  # logits that are held at once where nothing is learned
CUTOFFS = np.linspace(0.02, 0.7, 35)


class BagDecoder(Decoder):
    """The set of tokens of a text.

    Fitted: parameters_ "map" (cell + 1, dim, token) and "bias" (cell + 1, token), the last the blind decoder's;
    cutoffs_ (cell + 1,) the probability from which on a token is written, the one with the best F1 on dev.
    """

    def _train(
        self, X: Tensor, codes: Tensor, X_dev: Tensor, codes_dev: Tensor, table: np.ndarray | None, keep: Path | None
    ) -> None:
        rows, tokens = _present(codes)
        size = len(self.tokens_)
        counts = torch.bincount(tokens, minlength=size).double()
        odds = ((counts + 0.5) / (len(codes) - counts + 0.5)).log().float()
        self.parameters_ = {
            "map": X.new_zeros(len(X), self.dim_, size),
            "bias": odds.repeat(len(X), 1),
        }
        weight, bias = self.parameters_.values()
        starts = torch.searchsorted(rows, torch.arange(len(codes) + 1, device=rows.device))

        def slope(batch: Tensor, step: int) -> None:
            x = X[:, batch]
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half_):
                G = (x @ weight).float().add_(bias[:, None]).sigmoid_()  # (cell, text, token)
            sizes = starts[batch + 1] - starts[batch]
            where = torch.repeat_interleave(torch.arange(len(batch), device=batch.device), sizes)
            first = torch.repeat_interleave(starts[batch] - sizes.cumsum(0) + sizes, sizes)
            G[:, where, tokens[first + torch.arange(len(where), device=batch.device)]] -= 1
            G /= len(batch)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half_):
                weight.grad = (x.mT @ G).float()
            bias.grad = G.sum(1)

        def judge() -> Tensor:
            return torch.from_numpy(self._bits(X_dev, np.arange(len(X)), codes_dev).sum((1, 2)))

        made_of = digest_of("bag", PACE, self.random_state, X, codes, X_dev, codes_dev) if keep else ""
        with torch.no_grad():
            train(
                self.parameters_, slope, judge, len(codes), PACE,
                seed=self.random_state, told="bag decoder", keep=keep, made_of=made_of,
            )  # fmt: skip
        self.cutoffs_ = self._best_cutoffs(X_dev, codes_dev)

    def _logits(self, X: Tensor, cells: np.ndarray, text: slice) -> Tensor:
        weight, bias = self.parameters_.values()
        return torch.stack([bias[c] + x[text] @ weight[c] for x, c in zip(X, cells, strict=True)])

    def _parts(self, texts: int, cells: int) -> list[slice]:
        size = max(1, AT_ONCE // (cells * len(self.tokens_)))
        return [slice(at, min(at + size, texts)) for at in range(0, texts, size)]

    @torch.no_grad()
    def _bits(self, X: Tensor, cells: np.ndarray, codes: Tensor) -> np.ndarray:
        found = np.empty((len(X), len(codes), 1))
        for part in self._parts(len(codes), len(X)):
            Z = self._logits(X, cells, part)
            rows, tokens = _present(codes[part])
            own = Z.new_zeros(Z.shape[:2], dtype=torch.float64)
            own.index_add_(1, rows, Z[:, rows, tokens].double())
            nats = torch.nn.functional.softplus(Z).sum(2, dtype=torch.float64) - own
            found[:, part, 0] = nats.cpu().numpy() / np.log(2)
        return found

    @torch.no_grad()
    def _best_cutoffs(self, X: Tensor, codes: Tensor) -> np.ndarray:
        """(cell + 1,) the cut-off with the best mean F1 of the token multiset over the texts."""
        truth = (codes >= 0).sum(1)  # (text,) tokens, repeated ones as often as they stand there
        score = np.zeros((len(X), len(CUTOFFS)))
        limits = torch.from_numpy(CUTOFFS).float().logit().to(X.device)
        for part in self._parts(len(codes), len(X)):
            Z = self._logits(X, np.arange(len(X)), part)
            rows, tokens = _present(codes[part])
            own = Z[:, rows, tokens]  # (cell, present)
            for i, limit in enumerate(limits):
                told = (limit < Z).sum(2)  # (cell, text)
                hits = torch.zeros_like(told).index_add_(1, rows, (own > limit).long())
                score[:, i] += (2 * hits / (told + truth[part]).clamp(min=1)).sum(1).cpu().numpy()
        return CUTOFFS[score.argmax(1)]

    @torch.no_grad()
    def _generate(self, X: Tensor, cells: np.ndarray) -> list[list[np.ndarray]]:
        found: list[list[np.ndarray]] = [[] for _ in X]
        limits = np.log(self.cutoffs_ / (1 - self.cutoffs_))
        for part in self._parts(X.shape[1], len(X)):
            for cell, Z in enumerate(self._logits(X, cells, part)):
                for z in Z:
                    told = (z > limits[cells[cell]]).nonzero()[:, 0]
                    found[cell].append(told[z[told].argsort(descending=True)].cpu().numpy())
        return found


def _present(codes: Tensor) -> tuple[Tensor, Tensor]:
    """(present,) rows, rising, and tokens: each token of each text once."""
    rows, slots = (codes >= 0).nonzero(as_tuple=True)
    pairs = torch.unique(torch.stack([rows, codes[rows, slots]], 1), dim=0)
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
