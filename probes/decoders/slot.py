"""Which token stands at position t: a linear map per slot into the space of the encoder's own token embeddings.

The score of a token in a slot is its embedding times what the slot's map makes of the vector, plus how common the token
is there. A slot is asked only where the text has got that far, and the end of a text is one of the answers: so the
slots' products are a distribution over all texts, and no language model. The maps start at 0 and the biases at
smoothed frequencies: every cell starts as the blind decoder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clsprobe.probes.decoders.base import END, Decoder, Pace, digest_of, train

PACE = Pace(rate=2e-3, batch=128, rounds=30)
WIDTH = 64  # principal components of the embeddings that are kept
SMOOTH = 20.0  # tokens' worth of the frequencies over all slots that those of a slot are smoothed by
AT_ONCE = 2048  # texts
LOGITS = 1 << 22  # of several cells that are held at once


class SlotDecoder(Decoder):
    """A token for every position.

    Fitted: parameters_ "map" (cell + 1, slot + 1, dim, width) and "bias" (cell + 1, slot + 1, token + 1), where the
    last token is the end; table_ (token + 1, width) the fixed embeddings.
    """

    def _train(
        self, X: Tensor, codes: Tensor, X_dev: Tensor, codes_dev: Tensor, table: np.ndarray | None, keep: Path | None
    ) -> None:
        self.table_ = _tied(table, len(self.tokens_), self.random_state).to(X.device)
        size, width = self.table_.shape
        slots = codes.shape[1]
        targets = torch.where(codes == END, size - 1, codes)  # unseen and beyond stay negative
        counts = torch.zeros(slots, size, device=X.device)
        for slot in range(slots):
            here = targets[:, slot]
            counts[slot] = torch.bincount(here[here >= 0], minlength=size)
        every = (counts.sum(0) + 0.5) / (counts.sum() + 0.5 * size)
        logs = ((counts + SMOOTH * every) / (counts.sum(1, keepdim=True) + SMOOTH)).log()
        self.parameters_ = {"map": X.new_zeros(len(X), slots, self.dim_, width), "bias": logs.repeat(len(X), 1, 1)}
        weight, bias = self.parameters_.values()
        weight.grad, bias.grad = slope_of_weight, slope_of_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        together = max(1, LOGITS // (PACE.batch * size))  # cells
        parts = [slice(at, at + together) for at in range(0, len(X), together)]

        def half() -> torch.autocast:
            return torch.autocast(X.device.type, torch.bfloat16, enabled=self.half_)

        def slope(batch: Tensor, step: int) -> None:
            some = targets[batch]
            for slot in range(slots):
                rows = (some[:, slot] >= 0).nonzero()[:, 0]
                at = torch.arange(len(rows), device=rows.device)
                for cells in parts:
                    x = X[cells, batch[rows]]
                    with half():
                        G = (x @ weight[cells, slot] @ self.table_.T).float()
                    G = G.add_(bias[cells, slot, None]).softmax(2)
                    G[:, at, some[rows, slot]] -= 1
                    G /= len(batch)
                    with half():
                        slope_of_weight[cells, slot] = (x.mT @ (G @ self.table_)).float()
                    slope_of_bias[cells, slot] = G.sum(1)

        def judge() -> Tensor:
            return torch.from_numpy(self._bits(X_dev, np.arange(len(X)), codes_dev).sum((1, 2)))

        settings = PACE, self.random_state, X, codes, X_dev, codes_dev, self.table_
        made_of = digest_of("slot", *settings) if keep else ""
        with torch.no_grad():
            train(
                self.parameters_, slope, judge, len(codes), PACE,
                seed=self.random_state, told="slot decoder", keep=keep, made_of=made_of,
            )  # fmt: skip

    def _logits(self, x: Tensor, cell: int, slot: int) -> Tensor:
        weight, bias = self.parameters_.values()
        return torch.addmm(bias[cell, slot], x @ weight[cell, slot], self.table_.T)

    @torch.no_grad()
    def _bits(self, X: Tensor, cells: np.ndarray, codes: Tensor) -> np.ndarray:
        targets = torch.where(codes == END, len(self.table_) - 1, codes)
        found = np.zeros((len(X), *codes.shape))
        for slot in range(codes.shape[1]):
            rows = (targets[:, slot] >= 0).nonzero()[:, 0]
            for some in rows.split(AT_ONCE):
                for cell, x in zip(range(len(X)), X, strict=True):
                    nats = self._logits(x[some], int(cells[cell]), slot).log_softmax(1)
                    own = nats.gather(1, targets[some, slot][:, None])[:, 0]
                    found[cell, some.cpu().numpy(), slot] = -own.double().cpu().numpy() / np.log(2)
        return found

    @torch.no_grad()
    def _generate(self, X: Tensor, cells: np.ndarray) -> list[list[np.ndarray]]:
        end, slots = len(self.table_) - 1, self.slots_
        told = np.full((len(X), X.shape[1], slots + 1), end)
        for slot in range(slots):
            for at in range(0, X.shape[1], AT_ONCE):
                for cell, x in enumerate(X):
                    best = self._logits(x[at : at + AT_ONCE], int(cells[cell]), slot).argmax(1)
                    told[cell, at : at + AT_ONCE, slot] = best.cpu().numpy()
        return [[text[: int((text == end).argmax())] for text in cell] for cell in told]


def _tied(table: np.ndarray | None, tokens: int, seed: int) -> Tensor:
    """(token + 1, width) fixed embeddings, the end last, in a dimension of its own.

    table: the encoder's; their principal components, of unit variance over all coordinates. Without one every token
    has a direction of its own, or a random one where these would be more than WIDTH.
    """
    if table is not None:
        centred = table.astype(np.float64) - table.mean(0)
        spread, directions = np.linalg.eigh(centred.T @ centred)
        chosen = centred @ directions[:, spread.argsort()[::-1][:WIDTH]]
        chosen /= max(chosen.std(), 1e-12)
    elif tokens <= WIDTH:
        chosen = np.eye(tokens) * np.sqrt(tokens)
    else:
        chosen = np.random.default_rng(seed).standard_normal((tokens, WIDTH))
    whole = np.zeros((tokens + 1, chosen.shape[1] + 1))
    whole[:-1, :-1] = chosen
    whole[-1, -1] = np.sqrt(chosen.shape[1])
    return torch.from_numpy((whole / np.sqrt(chosen.shape[1])).astype(np.float32))
