"""The base of the decoders: vectors of many cells in, tokens out, with a blind decoder as the reference.

1. `Decoder.fit` restricts the vocabulary to the tokens of train and standardises every cell on train.
2. One more cell, whose vectors are all 0, is trained with the others: the *blind* decoder, a model of the texts without
   any input. `blind_bits` minus `bits` is the information in a vector, a V-information (Xu et al. 2020).
3. `train_parameters` is Adam (Kingma & Ba 2015) in rounds. A cell keeps its parameters with the fewest dev nats, the
   initial ones included. A round in which no cell improves halves the learning rate; `PATIENCE` such rounds in a row
   end the training. A checkpoint file allows an interrupted training to continue from its last round.
4. The gate: the blind decoder replaces every cell whose gain over it on dev is not significant. Otherwise a fit to
   noise would cost bits on every text, and look like a finding. The gain of such a cell is 0 by this rule and no
   measurement: the vectors may hold what more training texts, or another decoder, would read.

Bits of different decoders are not comparable: bag and slot treat tokens as independent, so that a single bit that
selects one of two texts gains as many bits as the texts differ in tokens. Only the sequence decoder's gain estimates
information.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from clsprobe.probes.encoders.devices import has_bfloat16
from clsprobe.probes.errors import InputError, format_rows
from clsprobe.probes.linear import _moments
from clsprobe.probes.training.checkpoint import Checkpoint, SavedTraining

TokenIds = Sequence[np.ndarray]
"""(text,) arrays of token ids, without special tokens."""

PATIENCE = 2  # rounds without a gain
GAIN = 1e-4  # share of the dev nats: the smallest gain that counts
SURE = 1.645  # standard errors above 0 that the dev gain of a cell must reach: 5 % by chance
FEWEST, MOST = 30, 80  # steps in a round
LARGE = 1 << 18  # tokens x dimensions above which bfloat16 products are faster
OFTEN = 30.0  # seconds between two checkpoints
END, UNSEEN, BEYOND = -1, -2, -3  # codes: end of a text, token not in train, past the end


class Decoder(ABC):
    """Tokens from one vector, for many cells at once.

    slots: tokens of the longest text that it can write; None: of the longest in train. random_state: seed of all random
    draws. device: a torch device.

    Fitted: tokens_ (token,) the ids of the vocabulary, rising; slots_; mean_, scale_ (cell, dim); informative_ (cell,)
    False where the vectors gain nothing on dev and the blind decoder is used, so that their gain is 0 by rule;
    decoder_indices_ (cell,) and
    blind_index_, indices of the trained decoders; bfloat16_ whether it was trained in bfloat16, if large and supported.
    """

    def __init__(self, *, slots: int | None = None, random_state: int = 0, device: str = "cpu") -> None:
        self.slots = slots
        self.random_state = random_state
        self.device = device

    def fit(
        self,
        vectors: np.ndarray,
        token_ids: TokenIds,
        *,
        dev: tuple[np.ndarray, TokenIds],
        embeddings: np.ndarray | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Train a decoder for every cell, and the blind one, to the fewest bits on `dev`.

        vectors: (cell, text, dim). embeddings: (token id, e) the encoder's, for decoders with tied embeddings.
        checkpoint: a file for the state of training, from which an interrupted training with the same inputs
        continues. Raises InputError for vectors and texts that do not match, or a vocabulary of fewer than two tokens.
        """
        self.slots_ = self.slots or max([1, *map(len, token_ids)])
        self.decoder_indices_, self.blind_index_, self.dim_ = np.arange(len(vectors)), len(vectors), vectors.shape[-1]
        self._check(vectors, token_ids)
        self._check(*dev)
        self.tokens_ = vocabulary(token_ids)
        self.mean_, self.scale_ = _moments(np.ascontiguousarray(vectors, np.float32))
        self.informative_ = np.ones(len(vectors), bool)
        self.bfloat16_ = len(self.tokens_) * self.dim_ >= LARGE and has_bfloat16(torch.device(self.device).type)
        if embeddings is not None and len(embeddings) <= self.tokens_[-1]:
            raise InputError(
                "embeddings", f"{len(embeddings):,} rows, and token ids up to {self.tokens_[-1]:,}", "Use the encoder's"
            )
        table = None if embeddings is None else np.asarray(embeddings, np.float32)[self.tokens_]
        train, dev_data = ((self._scale(X), self.codes(ids)) for X, ids in ((vectors, token_ids), dev))
        self._train(*train, *dev_data, table, checkpoint)
        gains = self.blind_bits(dev[1]) - self.bits(*dev)  # (cell, text)
        error = gains.std(1, ddof=1) / math.sqrt(gains.shape[1]) if gains.shape[1] > 1 else np.inf
        self.informative_ = gains.mean(1) > SURE * error
        return self

    def checkpoints(self, path: Path, cells: int) -> list[Path]:
        """The files that `fit` writes for so many cells where its `checkpoint` is `path`."""
        return [path]

    def cell(self, number: int) -> Self:
        """The decoder of a single cell, for vectors (1, text, dim)."""
        decoder, part = copy(self), slice(number, number + 1)
        decoder.decoder_indices_, decoder.informative_ = self.decoder_indices_[part], self.informative_[part]
        decoder.mean_, decoder.scale_ = self.mean_[part], self.scale_[part]
        return decoder

    @abstractmethod
    def _train(
        self, X: Tensor, codes: Tensor, X_dev: Tensor, codes_dev: Tensor, table: np.ndarray | None, path: Path | None
    ) -> None:
        """Learn from X (cell + 1, text, dim), the last cell all 0, and codes (text, slot + 1) as `codes` makes them.

        table: (token, e) embeddings of the vocabulary.
        """

    @abstractmethod
    def _bits(self, X: Tensor, cells: np.ndarray, codes: Tensor) -> np.ndarray:
        """(cell, text, slot + 1) bits of every token and end, 0 where there is none, for X (cell, text, dim) and the
        decoders with indices `cells`. (cell, text, 1) for a decoder without order."""

    @abstractmethod
    def _generate(self, X: Tensor, cells: np.ndarray) -> list[list[np.ndarray]]:
        """cell -> text -> codes of the tokens written."""

    # ------------------------------------------------------------------------------------------------------- reading

    def bits(self, vectors: np.ndarray, token_ids: TokenIds) -> np.ndarray:
        """(cell, text) bits of every text given its vector: of its tokens in the vocabulary, and of its end."""
        return self.bits_by_slot(vectors, token_ids).sum(2)

    def bits_by_slot(self, vectors: np.ndarray, token_ids: TokenIds) -> np.ndarray:
        """(cell, text, slot + 1) bits of every token given those before it; the slot after the last is the end's.

        0 for tokens that are not in train, and past the end. The third axis of a decoder without order has length 1.
        """
        self._check(vectors, token_ids)
        return self._bits(*self._standardise(vectors), self.codes(token_ids))

    def blind_bits(self, token_ids: TokenIds) -> np.ndarray:
        """(text,) bits of every text for the blind decoder."""
        return self.blind_bits_by_slot(token_ids).sum(1)

    def blind_bits_by_slot(self, token_ids: TokenIds) -> np.ndarray:
        """(text, slot + 1) bits of every token for the blind decoder."""
        nothing = torch.zeros(1, len(token_ids), self.dim_, device=self.device)
        return self._bits(nothing, np.array([self.blind_index_]), self.codes(token_ids))[0]

    def generate(self, vectors: np.ndarray) -> list[list[np.ndarray]]:
        """cell -> text -> token ids, greedily decoded."""
        return [[self.tokens_[text] for text in cell] for cell in self._generate(*self._standardise(vectors))]

    def candidates(self, vectors: np.ndarray, *, beams: int) -> list[list[list[np.ndarray]]]:
        """cell -> text -> the likeliest texts as token ids, best first; one text for decoders without beam search."""
        pairs = zip(*self._standardise(vectors), strict=True)
        codes = [self._candidates(x, int(number), beams) for x, number in pairs]
        return [[[self.tokens_[text] for text in beams_of_text] for beams_of_text in cell] for cell in codes]

    def _candidates(self, x: Tensor, number: int, beams: int) -> list[list[np.ndarray]]:
        """text -> codes of the likeliest texts, for x (text, dim) and the decoder with index `number`."""
        return [[text] for text in self._generate(x[None], np.array([number]))[0]]

    def blind_text(self, *, beams: int) -> np.ndarray:
        """The token ids that the blind decoder writes for every text."""
        nothing = torch.zeros(1, self.dim_, device=self.device)
        return self.tokens_[self._candidates(nothing, self.blind_index_, beams)[0][0]]

    def _standardise(self, vectors: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Standardised vectors (cell, text, dim), and the decoder index of each, the blind one if uninformative."""
        X = self._scale(vectors)[:-1]
        X[torch.from_numpy(~self.informative_)] = 0
        return X, np.where(self.informative_, self.decoder_indices_, self.blind_index_)

    def _scale(self, vectors: np.ndarray) -> Tensor:
        """(cell + 1, text, dim) standardised, with a last cell of zeros for the blind decoder."""
        X = np.zeros((len(vectors) + 1, *vectors.shape[1:]), np.float32)
        np.subtract(vectors, self.mean_[:, None], out=X[:-1])
        X[:-1] /= self.scale_[:, None]
        return torch.from_numpy(X).to(self.device)

    def codes(self, token_ids: TokenIds) -> Tensor:
        """(text, slot + 1) indices into the vocabulary; END after the last token, then BEYOND; UNSEEN for tokens not in
        train."""
        lengths = np.array([len(ids) for ids in token_ids], np.int64)
        codes = np.full((len(lengths), self.slots_ + 1), BEYOND, np.int64)
        slots = np.arange(self.slots_ + 1)
        codes[slots == lengths[:, None]] = END
        if lengths.sum():
            all_ids = np.concatenate(list(token_ids))
            index = np.searchsorted(self.tokens_, all_ids).clip(max=len(self.tokens_) - 1)
            codes[slots < lengths[:, None]] = np.where(self.tokens_[index] == all_ids, index, UNSEEN)
        return torch.from_numpy(codes).to(self.device)

    def _check(self, vectors: np.ndarray, token_ids: TokenIds) -> None:
        if vectors.ndim != 3 or vectors.shape[1] != len(token_ids):
            shape = "x".join(map(str, vectors.shape))
            what = f"vectors of shape {shape} for {len(token_ids):,} texts"
            raise InputError("vectors", what, "Give (cell, text, dim), one vector for every text")
        if (vectors.shape[0], vectors.shape[2]) != (len(self.decoder_indices_), self.dim_):
            fitted = f"it was fitted on {len(self.decoder_indices_)} of {self.dim_}"
            what = f"{vectors.shape[0]} cells of {vectors.shape[2]} dimensions, and {fitted}"
            raise InputError("vectors", what, "Use vectors of the same encoder")
        if not np.isfinite(vectors).all():
            rows = np.flatnonzero(~np.isfinite(vectors).all((0, 2)))
            raise InputError("vectors", f"not finite in rows {format_rows(rows)}", "Leave these texts out")
        too_long = [row for row, ids in enumerate(token_ids) if len(ids) > self.slots_]
        if too_long:
            longest = max(len(token_ids[row]) for row in too_long)
            what = (
                f"{len(too_long):,} texts are longer than {self.slots_} tokens "
                f"(longest {longest}; rows {format_rows(too_long, 5)})"
            )
            raise InputError("--slots", what, "Give more slots, or leave these texts out")


def vocabulary(token_ids: TokenIds) -> np.ndarray:
    """The sorted distinct tokens of texts. Raises InputError for fewer than two."""
    tokens = np.unique(np.concatenate([*token_ids, np.zeros(0, np.int64)])).astype(np.int64)
    if len(tokens) < 2:
        what = f"a vocabulary of {len(tokens)} token" + "s" * (len(tokens) != 1)
        raise InputError("texts", what, "A decoder needs two different ones at least")
    return tokens


# ------------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Pace:
    """How a decoder is trained. rate: the initial learning rate. batch: the largest batch size. rounds: the maximum.
    A round is a pass over the texts, of `FEWEST` to `MOST` steps."""

    rate: float
    batch: int
    rounds: int


def train_parameters(
    parameters: Mapping[str, Tensor],
    compute_gradients: Callable[[Tensor, int], None],
    measure_dev_nats: Callable[[], Tensor],
    texts: int,
    pace: Pace,
    *,
    seed: int,
    description: str,
    path: Path | None = None,
    digest: str = "",
    rate_shares: Mapping[str, float] = MappingProxyType({}),
) -> Tensor:
    """Train the parameters in place to the fewest dev nats, and return these (cell,).

    parameters: (cell, ...) each, or of a single decoder. compute_gradients: writes `.grad` for the rows (text,) of a
    batch and the number of the step. measure_dev_nats: returns (cell,). description: of the progress bar.
    path, digest: a file to continue from, and the digest of the inputs that it must have. rate_shares:
    parameter -> the share of the learning rate for it.
    """
    best = measure_dev_nats().double()
    cells, min_gain = len(best), GAIN * best.abs()
    batch_size = max(1, min(pace.batch, texts // FEWEST))
    steps = min(texts // batch_size, MOST)
    device = best.device
    shares = {name: rate_shares.get(name, 1.0) for name in parameters}
    groups = [
        {"params": [parameters[name] for name in parameters if shares[name] == share], "share": share}
        for share in sorted(set(shares.values()))
    ]
    optimiser = torch.optim.AdamW(groups, pace.rate, weight_decay=0.0, fused=True)
    best_parameters = {name: value.detach().clone() for name, value in parameters.items()}
    start, idle_rounds, rate = 0, 0, pace.rate
    checkpoint = None if path is None else Checkpoint(path, digest)
    if checkpoint is not None and (saved_state := _read_checkpoint(checkpoint, parameters, optimiser)) is not None:
        round_text, idle_text, rate_text = saved_state.facts["reached"].split()
        start, idle_rounds, rate = int(round_text), int(idle_text), float(rate_text)
        for name, value in parameters.items():
            best_parameters[name] = saved_state.tensors.get(f"kept.{name}", value).clone()
        best = saved_state.tensors["best"].to(device)
    saved_at = time.monotonic()
    most = pace.rounds
    with tqdm(total=most, initial=start, desc=description, unit=" rounds", delay=2, disable=None, leave=False) as bar:
        for number in range(start, most):
            if idle_rounds >= PATIENCE:
                break
            for group in optimiser.param_groups:
                group["lr"] = rate * group["share"]
            for step in range(number * steps, (number + 1) * steps):
                compute_gradients(_draw_batch(texts, step, batch_size, seed).to(device), step)
                optimiser.step()
            nats = measure_dev_nats().double()
            improved = nats < best - min_gain
            best = torch.where(improved, nats, best)
            for name, value in parameters.items():
                best_parameters[name].view(cells, -1)[improved] = value.detach().view(cells, -1)[improved]
            idle_rounds, rate = (0, rate) if improved.any() else (idle_rounds + 1, rate / 2)
            bar.update()
            if checkpoint is not None and time.monotonic() - saved_at > OFTEN:
                tensors = {f"kept.{name}": value for name, value in best_parameters.items()} | {"best": best}
                facts = {"reached": f"{number + 1} {idle_rounds} {rate!r}"}
                checkpoint.write((number + 1) * steps, parameters, optimiser, facts, tensors)
                saved_at = time.monotonic()
        bar.total = bar.n  # training may end early
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(best_parameters[name])
    if checkpoint is not None:
        facts = {"reached": f"{pace.rounds} {idle_rounds} {rate!r}"}
        checkpoint.write(pace.rounds * steps, parameters, None, facts, {"best": best})
    return best


def _read_checkpoint(
    checkpoint: Checkpoint, parameters: Mapping[str, Tensor], optimiser: torch.optim.AdamW
) -> SavedTraining | None:
    """The saved state of the same training; None if the file is missing, damaged or of another training."""
    try:
        return checkpoint.read(parameters, optimiser)
    except InputError:
        return None


def _draw_batch(texts: int, step: int, size: int, seed: int) -> Tensor:
    """The rows of one step, from a random order of the texts per pass; deterministic in `step` and `seed`."""
    steps_per_pass = texts // size
    order = torch.randperm(texts, generator=torch.Generator().manual_seed(seed * 100_003 + step // steps_per_pass))
    start = step % steps_per_pass * size
    return order[start : start + size]


def compute_digest(*parts: Any) -> str:
    """SHA-256 of the inputs of a training: arrays by their bytes, anything else by its repr."""
    total = sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous().numpy()
        total.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
        total.update(b"\0")
    return total.hexdigest()
