"""Tokenized texts: packed rows of ids, and the padded batches that an encoder runs.

1. `Rows` holds the ids of many texts end to end, `Row` is one of them; `Encoder.tokenize` makes them.
2. `Batch` knows, per row, which tokens are real, which are special, and where the content is.

No torch here: `Batch` is given its tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Row:
    """One tokenized text.

    ids: (token,). special: (token,) True on added tokens. seed: `text_seed` of the text. types: (token,) of a pair,
    which text each belongs to.
    """

    ids: np.ndarray
    special: np.ndarray
    seed: int
    types: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Rows(Sequence[Row]):
    """Tokenized texts, packed end to end: a few bytes a token, where lists of small arrays take hundreds a text.

    ids, special, types: (token,) of all texts. paired: (text,) whether it is a pair. seeds, lengths: (text,).
    full: (text,) lengths before any cut.
    """

    ids: np.ndarray
    special: np.ndarray
    types: np.ndarray
    paired: np.ndarray
    seeds: np.ndarray
    lengths: np.ndarray
    full: np.ndarray

    @classmethod
    def empty(cls) -> Rows:
        """No text."""
        none = np.zeros(0, np.int32)
        truth = none.astype(bool)
        return cls(none, truth, none.astype(np.int8), truth, none.astype(np.int64), none, none)

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """The texts of all parts, in order."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def with_cut(self, which: np.ndarray, cut: Rows) -> Rows:
        """The same texts, those of `which` in the form `cut`; `full` stays."""
        lengths = self.lengths.copy()
        lengths[which] = cut.lengths
        ends = self._ends
        keep = np.ones(len(self.ids), bool)
        for i in which:
            keep[ends[i] - self.lengths[i] + lengths[i] : ends[i]] = False
        packed = {name: getattr(self, name)[keep] for name in ("ids", "special", "types")}
        starts, cut_ends = np.cumsum(lengths) - lengths, cut._ends
        for start, end, n in zip(starts[which], cut_ends, cut.lengths, strict=True):
            for name, values in packed.items():
                values[start : start + n] = getattr(cut, name)[end - n : end]
        return replace(self, **packed, lengths=lengths)

    def digests(self) -> np.ndarray:
        """(text,) a 64-bit digest of the ids of each: equal for texts that the encoder cannot tell apart."""
        coded = (blake2b(row.ids.tobytes(), digest_size=8).digest() for row in self)
        return np.fromiter((int.from_bytes(each, "little", signed=True) for each in coded), np.int64, len(self))

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.lengths)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        part = slice(self._ends[i] - self.lengths[i], self._ends[i])
        types = self.types[part] if self.paired[i] else None
        return Row(self.ids[part], self.special[part], int(self.seeds[i]), types)

    def __len__(self) -> int:
        return len(self.lengths)


class _Position(Protocol):
    """A readout that stands at one token of every text (probes.extraction.readouts.Position)."""

    name: str

    def position(self, batch: Batch) -> Tensor:
        """(batch,) index of the token, -1 where the text has none."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Token ids with what is needed to find positions in them.

    ids: (batch, token) integers. real: (batch, token) True where a token belongs to the text, False on padding.
    special: (batch, token) True on tokens that the tokenizer added ([CLS], [SEP]). seeds: (batch,) integers, a stable
    hash of each text. cls_id, sep_id: the tokenizer's, None where it has none. types: (batch, token) which text of a
    pair a token belongs to, None where no row is a pair or the model is not told.
    """

    ids: Tensor
    real: Tensor
    special: Tensor
    seeds: Tensor
    cls_id: int | None
    sep_id: int | None
    types: Tensor | None = None

    @cached_property
    def content(self) -> Tensor:
        """(batch, token) True on real tokens that are not special."""
        return self.real & ~self.special

    @cached_property
    def lengths(self) -> Tensor:
        """(batch,) real tokens, special ones included."""
        return self.real.sum(1)

    @cached_property
    def padded(self) -> bool:
        """Whether any row has padding."""
        return not bool(self.real.all())

    @cached_property
    def _positions(self) -> dict[str, Tensor]:
        return {}

    def position_of(self, readout: _Position) -> Tensor:
        """(batch,) where a readout stands, found once for all layers (equal names are equal readouts)."""
        if readout.name not in self._positions:
            self._positions[readout.name] = readout.position(self)
        return self._positions[readout.name]

    def nth(self, of: Tensor, n: Tensor) -> Tensor:
        """(batch,) the position of the n-th (from 1) True of every row of `of`, -1 where there are fewer."""
        hit = of & (of.cumsum(1) == n[:, None])
        return hit.float().argmax(1).where(hit.any(1), -1)


def text_seed(text: str) -> int:
    """A stable 62-bit hash of a text; `hash()` changes with every process."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 2
