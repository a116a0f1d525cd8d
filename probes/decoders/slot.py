"""The token at every position: a linear map per slot into the space of the encoder's token embeddings.

The logit of a token in a slot is its embedding times the mapped vector, plus a bias for its frequency in the slot. A
slot counts only for texts that reach it, and the end of a text is one of its classes: the product over slots is a
distribution over all texts, without a language model. The maps start at 0 and the biases at smoothed log frequencies:
every cell starts as the blind decoder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clsprobe.probes.decoders.base import END, Decoder, Pace, compute_digest, train_parameters

PACE = Pace(rate=2e-3, batch=128, rounds=30)
WIDTH = 64  # principal components of the embeddings
SMOOTH = 20.0  # weight, in tokens, of the frequencies over all slots in those of one slot
MAX_TEXTS = 2048  # at once, outside of training
LOGITS = 1 << 22  # of several cells, in memory at once


class SlotDecoder(Decoder):
    """A token for every position.

    Fitted: parameters_ "map" (cell + 1, slot + 1, dim, width) and "bias" (cell + 1, slot + 1, token + 1), where the
    last token is the end; table_ (token + 1, width) the fixed embeddings.
    """

    def _train(
        self, X: Tensor, codes: Tensor, X_dev: Tensor, codes_dev: Tensor, table: np.ndarray | None, path: Path | None
    ) -> None:
        self.table_ = _make_embeddings(table, len(self.tokens_), self.random_state).to(X.device)
        size, width = self.table_.shape
        slots = codes.shape[1]
        targets = torch.where(codes == END, size - 1, codes)  # unseen and beyond stay negative
        counts = torch.zeros(slots, size, device=X.device)
        for slot in range(slots):
            slot_targets = targets[:, slot]
            counts[slot] = torch.bincount(slot_targets[slot_targets >= 0], minlength=size)
        shares = (counts.sum(0) + 0.5) / (counts.sum() + 0.5 * size)
        log_shares = ((counts + SMOOTH * shares) / (counts.sum(1, keepdim=True) + SMOOTH)).log()
        biases = log_shares.repeat(len(X), 1, 1)
        self.parameters_ = {"map": X.new_zeros(len(X), slots, self.dim_, width), "bias": biases}
        weight, bias = self.parameters_.values()
        weight.grad, bias.grad = weight_grad, bias_grad = torch.zeros_like(weight), torch.zeros_like(bias)
        cells_per_part = max(1, LOGITS // (PACE.batch * size))
        parts = [slice(start, start + cells_per_part) for start in range(0, len(X), cells_per_part)]

        def autocast() -> torch.autocast:
            return torch.autocast(X.device.type, torch.bfloat16, enabled=self.bfloat16_)

        def compute_gradients(batch: Tensor, step: int) -> None:
            batch_targets = targets[batch]
            for slot in range(slots):
                rows = (batch_targets[:, slot] >= 0).nonzero()[:, 0]
                order = torch.arange(len(rows), device=rows.device)
                for cells in parts:
                    x = X[cells, batch[rows]]
                    with autocast():
                        G = (x @ weight[cells, slot] @ self.table_.T).float()
                    G = G.add_(bias[cells, slot, None]).softmax(2)
                    G[:, order, batch_targets[rows, slot]] -= 1
                    G /= len(batch)
                    with autocast():
                        weight_grad[cells, slot] = (x.mT @ (G @ self.table_)).float()
                    bias_grad[cells, slot] = G.sum(1)

        def measure_dev_nats() -> Tensor:
            return torch.from_numpy(self._bits(X_dev, np.arange(len(X)), codes_dev).sum((1, 2)))

        settings = PACE, self.random_state, X, codes, X_dev, codes_dev, self.table_
        digest = compute_digest("slot", *settings) if path else ""
        with torch.no_grad():
            train_parameters(
                self.parameters_, compute_gradients, measure_dev_nats, len(codes), PACE,
                seed=self.random_state, description="slot decoder", path=path, digest=digest,
            )  # fmt: skip

    def _logits(self, x: Tensor, cell: int, slot: int) -> Tensor:
        weight, bias = self.parameters_.values()
        return torch.addmm(bias[cell, slot], x @ weight[cell, slot], self.table_.T)

    @torch.no_grad()
    def _bits(self, X: Tensor, cells: np.ndarray, codes: Tensor) -> np.ndarray:
        targets = torch.where(codes == END, len(self.table_) - 1, codes)
        bits = np.zeros((len(X), *codes.shape))
        for slot in range(codes.shape[1]):
            rows = (targets[:, slot] >= 0).nonzero()[:, 0]
            for part in rows.split(MAX_TEXTS):
                for cell, x in zip(range(len(X)), X, strict=True):
                    nats = self._logits(x[part], int(cells[cell]), slot).log_softmax(1)
                    target_nats = nats.gather(1, targets[part, slot][:, None])[:, 0]
                    bits[cell, part.cpu().numpy(), slot] = -target_nats.double().cpu().numpy() / np.log(2)
        return bits

    @torch.no_grad()
    def _generate(self, X: Tensor, cells: np.ndarray) -> list[list[np.ndarray]]:
        end, slots = len(self.table_) - 1, self.slots_
        codes = np.full((len(X), X.shape[1], slots + 1), end)
        for slot in range(slots):
            for start in range(0, X.shape[1], MAX_TEXTS):
                for cell, x in enumerate(X):
                    best = self._logits(x[start : start + MAX_TEXTS], int(cells[cell]), slot).argmax(1)
                    codes[cell, start : start + MAX_TEXTS, slot] = best.cpu().numpy()
        return [[text[: int((text == end).argmax())] for text in cell] for cell in codes]


def _make_embeddings(embeddings: np.ndarray | None, tokens: int, seed: int) -> Tensor:
    """(token + 1, width) fixed embeddings, the end last, in a dimension of its own.

    embeddings: of the encoder; the result has their principal components, with unit variance over all coordinates.
    Without them tokens are one-hot, or random if there are more than WIDTH.
    """
    if embeddings is not None:
        centred = embeddings.astype(np.float64) - embeddings.mean(0)
        spread, directions = np.linalg.eigh(centred.T @ centred)
        components = centred @ directions[:, spread.argsort()[::-1][:WIDTH]]
        components /= max(components.std(), 1e-12)
    elif tokens <= WIDTH:
        components = np.eye(tokens) * np.sqrt(tokens)
    else:
        components = np.random.default_rng(seed).standard_normal((tokens, WIDTH))
    embeddings = np.zeros((tokens + 1, components.shape[1] + 1))
    embeddings[:-1, :-1] = components
    embeddings[-1, -1] = np.sqrt(components.shape[1])
    return torch.from_numpy((embeddings / np.sqrt(components.shape[1])).astype(np.float32))
