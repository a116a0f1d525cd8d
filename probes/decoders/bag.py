"""The set of tokens in a text: one linear map to a logit for every token of the vocabulary. Order is ignored.

The map starts at 0 and the biases at the tokens' log odds in train, so that every cell starts as the blind decoder.
The gradients are explicit: a step is one batched product over all cells in each direction.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clsprobe.probes.decoders.base import Decoder, Pace, compute_digest, train_parameters

PACE = Pace(rate=5e-3, batch=128, rounds=30)
MAX_LOGITS = 1 << 22  # logits in memory at once, outside of training
CUTOFFS = np.linspace(0.02, 0.7, 35)


class BagDecoder(Decoder):
    """The set of tokens of a text.

    Fitted: parameters_ "map" (cell + 1, dim, token) and "bias" (cell + 1, token), the last the blind decoder's;
    cutoffs_ (cell + 1,) the probability above which a token is written, with the best F1 on dev.
    """

    def _train(
        self, X: Tensor, codes: Tensor, X_dev: Tensor, codes_dev: Tensor, table: np.ndarray | None, path: Path | None
    ) -> None:
        rows, tokens = _list_present(codes)
        size = len(self.tokens_)
        counts = torch.bincount(tokens, minlength=size).double()
        odds = ((counts + 0.5) / (len(codes) - counts + 0.5)).log().float()
        self.parameters_ = {
            "map": X.new_zeros(len(X), self.dim_, size),
            "bias": odds.repeat(len(X), 1),
        }
        weight, bias = self.parameters_.values()
        starts = torch.searchsorted(rows, torch.arange(len(codes) + 1, device=rows.device))

        def compute_gradients(batch: Tensor, step: int) -> None:
            x = X[:, batch]
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16_):
                G = (x @ weight).float().add_(bias[:, None]).sigmoid_()  # (cell, text, token)
            sizes = starts[batch + 1] - starts[batch]
            positions = torch.repeat_interleave(torch.arange(len(batch), device=batch.device), sizes)
            offsets = torch.repeat_interleave(starts[batch] - sizes.cumsum(0) + sizes, sizes)
            G[:, positions, tokens[offsets + torch.arange(len(positions), device=batch.device)]] -= 1
            G /= len(batch)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16_):
                weight.grad = (x.mT @ G).float()
            bias.grad = G.sum(1)

        def measure_dev_nats() -> Tensor:
            return torch.from_numpy(self._bits(X_dev, np.arange(len(X)), codes_dev).sum((1, 2)))

        digest = compute_digest("bag", PACE, self.random_state, X, codes, X_dev, codes_dev) if path else ""
        with torch.no_grad():
            train_parameters(
                self.parameters_, compute_gradients, measure_dev_nats, len(codes), PACE,
                seed=self.random_state, description="bag decoder", path=path, digest=digest,
            )  # fmt: skip
        self.cutoffs_ = self._best_cutoffs(X_dev, codes_dev)

    def _logits(self, X: Tensor, cells: np.ndarray, text: slice) -> Tensor:
        weight, bias = self.parameters_.values()
        return torch.stack([bias[c] + x[text] @ weight[c] for x, c in zip(X, cells, strict=True)])

    def _split_texts(self, texts: int, cells: int) -> list[slice]:
        size = max(1, MAX_LOGITS // (cells * len(self.tokens_)))
        return [slice(start, min(start + size, texts)) for start in range(0, texts, size)]

    @torch.no_grad()
    def _bits(self, X: Tensor, cells: np.ndarray, codes: Tensor) -> np.ndarray:
        bits = np.empty((len(X), len(codes), 1))
        for part in self._split_texts(len(codes), len(X)):
            Z = self._logits(X, cells, part)
            rows, tokens = _list_present(codes[part])
            present_logits = Z.new_zeros(Z.shape[:2], dtype=torch.float64)
            present_logits.index_add_(1, rows, Z[:, rows, tokens].double())
            nats = torch.nn.functional.softplus(Z).sum(2, dtype=torch.float64) - present_logits
            bits[:, part, 0] = nats.cpu().numpy() / np.log(2)
        return bits

    @torch.no_grad()
    def _best_cutoffs(self, X: Tensor, codes: Tensor) -> np.ndarray:
        """(cell + 1,) the cut-off with the best mean F1 of token multisets over the texts."""
        true_counts = (codes >= 0).sum(1)  # (text,) tokens, with repetitions
        score = np.zeros((len(X), len(CUTOFFS)))
        limits = torch.from_numpy(CUTOFFS).float().logit().to(X.device)
        for part in self._split_texts(len(codes), len(X)):
            Z = self._logits(X, np.arange(len(X)), part)
            rows, tokens = _list_present(codes[part])
            present_logits = Z[:, rows, tokens]  # (cell, present)
            for i, limit in enumerate(limits):
                written = (limit < Z).sum(2)  # (cell, text)
                hits = torch.zeros_like(written).index_add_(1, rows, (present_logits > limit).long())
                score[:, i] += (2 * hits / (written + true_counts[part]).clamp(min=1)).sum(1).cpu().numpy()
        return CUTOFFS[score.argmax(1)]

    @torch.no_grad()
    def _generate(self, X: Tensor, cells: np.ndarray) -> list[list[np.ndarray]]:
        texts: list[list[np.ndarray]] = [[] for _ in X]
        limits = np.log(self.cutoffs_ / (1 - self.cutoffs_))
        for part in self._split_texts(X.shape[1], len(X)):
            for cell, Z in enumerate(self._logits(X, cells, part)):
                for z in Z:
                    written = (z > limits[cells[cell]]).nonzero()[:, 0]
                    texts[cell].append(written[z[written].argsort(descending=True)].cpu().numpy())
        return texts


def _list_present(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted rows and tokens, (present,) each: every distinct token of every text."""
    rows, slots = (codes >= 0).nonzero(as_tuple=True)
    pairs = torch.unique(torch.stack([rows, codes[rows, slots]], 1), dim=0)
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
