"""What the decoders share: vectors of many cells in, tokens out, and the same decoder without a vector beside it.

1. `Decoder.fit` restricts the vocabulary to the tokens of train and standardises every cell on train.
2. One more cell is trained with the others whose vectors are all 0: the *blind* decoder, which has learned what can be
   known of a text that was not seen. `blind_bits` less `bits` is what a vector tells, a V-information (Xu et al. 2020).
3. `train` is Adam (Kingma & Ba 2015) in rounds. A cell keeps the parameters that had the fewest dev nats, the start
   included; a round in which no cell gains halves the step, `PATIENCE` of them in a row end it. Every round can be
   gone on from: what has been reached is kept in a file.
4. A cell that is not better on dev than the blind one, by more than chance would make it, reads its vectors no more: it
   *is* the blind decoder. What was learned from noise would otherwise cost bits on every text, and look like a finding.

Bits of different decoders are not comparable: bag and slot take every token for independent of the others, so that one
bit that chooses between two texts gains as many bits as they differ in tokens. Only the sequence decoder's gain
estimates information.
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
from clsprobe.probes.errors import InputError, named_rows
from clsprobe.probes.linear import _moments
from clsprobe.probes.training.checkpoint import Checkpoint, Saved

TokenIds = Sequence[np.ndarray]
"""(text,) arrays of token ids, special tokens left out."""

PATIENCE = 2  # rounds without a gain
GAIN = 1e-4  # of the dev nats: the least that counts as one
SURE = 1.645  # standard errors that the dev gain of a cell that reads its vectors lies above 0: one in 20 by chance
FEWEST, MOST = 30, 80  # steps in a round
LARGE = 1 << 18  # tokens x dimensions from which on products in bfloat16 are faster
OFTEN = 30.0  # seconds between two checkpoints
END, UNSEEN, BEYOND = -1, -2, -3  # codes that are no tokens: the end of a text, a token train lacks, past the end


class Decoder(ABC):
    """Tokens from one vector, for many cells at once.

    slots: tokens of the longest text that it can write; None: of the longest in train. random_state: seeds what is
    drawn. device: where it is trained.

    Fitted: tokens_ (token,) the ids of the vocabulary, rising; slots_; mean_, scale_ (cell, dim); reads_ (cell,) False
    where the vectors tell nothing on dev and the blind decoder stands in; numbers_ (cell,) and blind_, which of those
    trained is whose; half_ whether it learned in bfloat16: large ones do, where the hardware can.
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
        keep: Path | None = None,
    ) -> Self:
        """Train a decoder for every cell, and the blind one, until `dev` has the fewest bits.

        vectors: (cell, text, dim). embeddings: (token id, e) the encoder's own, where a decoder ties to them. keep: a
        file for what has been reached; where it holds an unfinished training of the same, that is gone on with.
        Raises InputError where vectors and texts do not fit each other, or nothing can be learned of the texts.
        """
        self.slots_ = self.slots or max([1, *map(len, token_ids)])
        self.numbers_, self.blind_, self.dim_ = np.arange(len(vectors)), len(vectors), vectors.shape[-1]
        self._check(vectors, token_ids)
        self._check(*dev)
        self.tokens_ = vocabulary(token_ids)
        self.mean_, self.scale_ = _moments(np.ascontiguousarray(vectors, np.float32))
        self.reads_ = np.ones(len(vectors), bool)
        self.half_ = len(self.tokens_) * self.dim_ >= LARGE and has_bfloat16(torch.device(self.device).type)
        if embeddings is not None and len(embeddings) <= self.tokens_[-1]:
            raise InputError(
                "embeddings", f"{len(embeddings):,} rows, and token ids up to {self.tokens_[-1]:,}", "Use the encoder's"
            )
        table = None if embeddings is None else np.asarray(embeddings, np.float32)[self.tokens_]
        self._train(self._ready(vectors), self.codes(token_ids), self._ready(dev[0]), self.codes(dev[1]), table, keep)
        gained = self.blind_bits(dev[1]) - self.bits(*dev)  # (cell, text)
        error = gained.std(1, ddof=1) / math.sqrt(gained.shape[1]) if gained.shape[1] > 1 else np.inf
        self.reads_ = gained.mean(1) > SURE * error
        return self

    def cell(self, number: int) -> Self:
        """The decoder of a single cell, which reads vectors (1, text, dim)."""
        one, here = copy(self), slice(number, number + 1)
        one.numbers_, one.reads_ = self.numbers_[here], self.reads_[here]
        one.mean_, one.scale_ = self.mean_[here], self.scale_[here]
        return one

    @abstractmethod
    def _train(
        self, X: Tensor, codes: Tensor, X_dev: Tensor, codes_dev: Tensor, table: np.ndarray | None, keep: Path | None
    ) -> None:
        """Learn from X (cell + 1, text, dim), the last cell all 0, and codes (text, slot + 1) as `codes` makes them.

        table: (token, e) embeddings of the vocabulary.
        """

    @abstractmethod
    def _bits(self, X: Tensor, cells: np.ndarray, codes: Tensor) -> np.ndarray:
        """(cell, text, slot + 1) bits of every token and end, 0 where there is none; X (cell, text, dim) is read by
        the decoders numbered `cells`. A decoder without order tells (cell, text, 1)."""

    @abstractmethod
    def _generate(self, X: Tensor, cells: np.ndarray) -> list[list[np.ndarray]]:
        """cell -> text -> codes of the tokens written."""

    # ------------------------------------------------------------------------------------------------------- reading

    def bits(self, vectors: np.ndarray, token_ids: TokenIds) -> np.ndarray:
        """(cell, text) bits of every text, given its vector: tokens of the vocabulary, and where the text ends."""
        return self.bits_by_slot(vectors, token_ids).sum(2)

    def bits_by_slot(self, vectors: np.ndarray, token_ids: TokenIds) -> np.ndarray:
        """(cell, text, slot + 1) the same token by token, given those before it; the slot past the last has the end.

        0 for tokens that train lacks, and past the end. Of a decoder without order the third axis has one slot.
        """
        self._check(vectors, token_ids)
        return self._bits(*self._read(vectors), self.codes(token_ids))

    def blind_bits(self, token_ids: TokenIds) -> np.ndarray:
        """(text,) bits of every text for the blind decoder."""
        return self.blind_bits_by_slot(token_ids).sum(1)

    def blind_bits_by_slot(self, token_ids: TokenIds) -> np.ndarray:
        """(text, slot + 1) bits of every token for the blind decoder."""
        nothing = torch.zeros(1, len(token_ids), self.dim_, device=self.device)
        return self._bits(nothing, np.array([self.blind_]), self.codes(token_ids))[0]

    def generate(self, vectors: np.ndarray) -> list[list[np.ndarray]]:
        """cell -> text -> token ids: what the decoder takes the text for."""
        return [[self.tokens_[text] for text in cell] for cell in self._generate(*self._read(vectors))]

    def candidates(self, vectors: np.ndarray, *, beams: int) -> list[list[list[np.ndarray]]]:
        """cell -> text -> the likeliest texts as token ids, best first; a single one where the decoder has no beams."""
        pairs = zip(*self._read(vectors), strict=True)
        told = [self._candidates(x, int(number), beams) for x, number in pairs]
        return [[[self.tokens_[one] for one in every] for every in cell] for cell in told]

    def _candidates(self, x: Tensor, number: int, beams: int) -> list[list[np.ndarray]]:
        """text -> codes of the likeliest texts, for x (text, dim) and the decoder `number`."""
        return [[told] for told in self._generate(x[None], np.array([number]))[0]]

    def blind_text(self, *, beams: int) -> np.ndarray:
        """The token ids that the blind decoder writes, whatever the text is."""
        nothing = torch.zeros(1, self.dim_, device=self.device)
        return self.tokens_[self._candidates(nothing, self.blind_, beams)[0][0]]

    def _read(self, vectors: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Standardised vectors (cell, text, dim), and the decoder of each: the blind one where they tell nothing."""
        X = self._ready(vectors)[:-1]
        X[torch.from_numpy(~self.reads_)] = 0
        return X, np.where(self.reads_, self.numbers_, self.blind_)

    def _ready(self, vectors: np.ndarray) -> Tensor:
        """(cell + 1, text, dim) standardised, with zeros at the end for the blind decoder."""
        X = np.zeros((len(vectors) + 1, *vectors.shape[1:]), np.float32)
        np.subtract(vectors, self.mean_[:, None], out=X[:-1])
        X[:-1] /= self.scale_[:, None]
        return torch.from_numpy(X).to(self.device)

    def codes(self, token_ids: TokenIds) -> Tensor:
        """(text, slot + 1) places in the vocabulary; END after the last token, BEYOND after that, UNSEEN where train
        lacks a token."""
        lengths = np.array([len(ids) for ids in token_ids], np.int64)
        codes = np.full((len(lengths), self.slots_ + 1), BEYOND, np.int64)
        slots = np.arange(self.slots_ + 1)
        codes[slots == lengths[:, None]] = END
        if lengths.sum():
            flat = np.concatenate(list(token_ids))
            place = np.searchsorted(self.tokens_, flat).clip(max=len(self.tokens_) - 1)
            codes[slots < lengths[:, None]] = np.where(self.tokens_[place] == flat, place, UNSEEN)
        return torch.from_numpy(codes).to(self.device)

    def _check(self, vectors: np.ndarray, token_ids: TokenIds) -> None:
        if vectors.ndim != 3 or vectors.shape[1] != len(token_ids):
            shape = "x".join(map(str, vectors.shape))
            what = f"vectors of shape {shape} for {len(token_ids):,} texts"
            raise InputError("vectors", what, "Give (cell, text, dim), one vector for every text")
        if (vectors.shape[0], vectors.shape[2]) != (len(self.numbers_), self.dim_):
            fitted = f"it was fitted on {len(self.numbers_)} of {self.dim_}"
            what = f"{vectors.shape[0]} cells of {vectors.shape[2]} dimensions, and {fitted}"
            raise InputError("vectors", what, "Use vectors of the same encoder")
        if not np.isfinite(vectors).all():
            bad = np.flatnonzero(~np.isfinite(vectors).all((0, 2)))
            raise InputError("vectors", f"not finite in rows {named_rows(bad)}", "Leave these texts out")
        long = [row for row, ids in enumerate(token_ids) if len(ids) > self.slots_]
        if long:
            most = max(len(token_ids[row]) for row in long)
            what = (
                f"{len(long):,} texts are longer than {self.slots_} tokens (longest {most}; rows {named_rows(long, 5)})"
            )
            raise InputError("--slots", what, "Give more slots, or leave these texts out")


def vocabulary(token_ids: TokenIds) -> np.ndarray:
    """The different tokens of some texts, rising. Raises InputError where there are fewer than two."""
    tokens = np.unique(np.concatenate([*token_ids, np.zeros(0, np.int64)])).astype(np.int64)
    if len(tokens) < 2:
        found = f"a vocabulary of {len(tokens)} token" + "s" * (len(tokens) != 1)
        raise InputError("texts", found, "A decoder needs two different ones at least")
    return tokens


# ------------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Pace:
    """How a decoder is trained. rate: the length of the first steps. batch: texts a step, at most; rounds: at most. A
    round is a pass over the texts of `FEWEST` steps or more, or `MOST` steps of a longer one."""

    rate: float
    batch: int
    rounds: int


def train(
    parameters: Mapping[str, Tensor],
    slope: Callable[[Tensor, int], None],
    judge: Callable[[], Tensor],
    texts: int,
    pace: Pace,
    *,
    seed: int,
    told: str,
    keep: Path | None = None,
    made_of: str = "",
    slower: Mapping[str, float] = MappingProxyType({}),
) -> Tensor:
    """Train the parameters in place and leave them where the dev nats were fewest; these, (cell,).

    parameters: (cell, ...) each, or of a single decoder. slope: leaves the gradient of a batch, rows (text,) and
    the number of the step, in `.grad`. judge: (cell,) dev nats. told: what the progress bar says. keep, made_of: a file
    to go on from, and what it must have been made of. slower: parameter -> the share of a step that it takes.
    """
    best = judge().double()
    cells, least = len(best), GAIN * best.abs()
    size = max(1, min(pace.batch, texts // FEWEST))
    steps = min(texts // size, MOST)
    device = best.device
    shares = {name: slower.get(name, 1.0) for name in parameters}
    groups = [
        {"params": [parameters[name] for name in parameters if shares[name] == share], "share": share}
        for share in sorted(set(shares.values()))
    ]
    optimiser = torch.optim.AdamW(groups, pace.rate, weight_decay=0.0, fused=True)
    kept = {name: value.detach().clone() for name, value in parameters.items()}
    start, waited, rate = 0, 0, pace.rate
    checkpoint = None if keep is None else Checkpoint(keep, made_of)
    if checkpoint is not None and (reached := _read(checkpoint, parameters, optimiser)) is not None:
        number_text, waited_text, rate_text = reached.facts["reached"].split()
        start, waited, rate = int(number_text), int(waited_text), float(rate_text)
        kept = {name: reached.tensors.get(f"kept.{name}", value).clone() for name, value in parameters.items()}
        best = reached.tensors["best"].to(device)
    saved = time.monotonic()
    with tqdm(total=pace.rounds, initial=start, desc=told, unit=" rounds", delay=2, disable=None, leave=False) as bar:
        for number in range(start, pace.rounds):
            if waited >= PATIENCE:
                break
            for group in optimiser.param_groups:
                group["lr"] = rate * group["share"]
            for step in range(number * steps, (number + 1) * steps):
                slope(_batch(texts, step, size, seed).to(device), step)
                optimiser.step()
            nats = judge().double()
            gained = nats < best - least
            best = torch.where(gained, nats, best)
            for name, value in parameters.items():
                kept[name].view(cells, -1)[gained] = value.detach().view(cells, -1)[gained]
            waited, rate = (0, rate) if gained.any() else (waited + 1, rate / 2)
            bar.update()
            if checkpoint is not None and time.monotonic() - saved > OFTEN:
                more = {f"kept.{name}": value for name, value in kept.items()} | {"best": best}
                facts = {"reached": f"{number + 1} {waited} {rate!r}"}
                checkpoint.write((number + 1) * steps, parameters, optimiser, facts, more)
                saved = time.monotonic()
        bar.total = bar.n  # it may end before
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(kept[name])
    if checkpoint is not None:
        facts = {"reached": f"{pace.rounds} {waited} {rate!r}"}
        checkpoint.write(pace.rounds * steps, parameters, None, facts, {"best": best})
    return best


def _read(checkpoint: Checkpoint, parameters: Mapping[str, Tensor], optimiser: torch.optim.AdamW) -> Saved | None:
    """What has been reached of the same training; None where the file is not there, torn or of another one."""
    try:
        return checkpoint.read(parameters, optimiser)
    except InputError:
        return None


def _batch(texts: int, step: int, size: int, seed: int) -> Tensor:
    """Rows of one step: the texts in one random order after another, the same whenever it is asked for."""
    a_pass = texts // size
    order = torch.randperm(texts, generator=torch.Generator().manual_seed(seed * 100_003 + step // a_pass))
    at = step % a_pass * size
    return order[at : at + size]


def digest_of(*parts: Any) -> str:
    """SHA-256 of what a training depends on: arrays by their bytes, anything else by how it is written."""
    total = sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous().numpy()
        total.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
        total.update(b"\0")
    return total.hexdigest()
