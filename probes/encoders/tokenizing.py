"""Tokenized texts: packed rows of ids, and the padded batches that an encoder runs.

1. `Rows` holds the ids of many texts end to end, `Row` those of one text; `Encoder.tokenize` returns them.
2. `Batch` knows, per row, which tokens are real, special or content.

This module does not import torch.
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

    ids: (token,). special: (token,) True on added tokens. seed: `text_seed` of the text. types: (token,) which text of
    a pair each token belongs to, None for a single text.
    """

    ids: np.ndarray
    special: np.ndarray
    seed: int
    types: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Rows(Sequence[Row]):
    """Tokenized texts, packed end to end: a few bytes per token instead of hundreds per text.

    ids, special, types: (token,) of all texts. paired: (text,) True for a pair. seeds, lengths: (text,).
    full_lengths: (text,) lengths before truncation.
    """

    ids: np.ndarray
    special: np.ndarray
    types: np.ndarray
    paired: np.ndarray
    seeds: np.ndarray
    lengths: np.ndarray
    full_lengths: np.ndarray

    @classmethod
    def empty(cls) -> Rows:
        """Rows of no texts."""
        int32, int8, int64, boolean = (np.zeros(0, dtype) for dtype in (np.int32, np.int8, np.int64, bool))
        return cls(int32, boolean, int8, boolean, int64, int32, int32)

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """The texts of all parts, in order."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def with_truncated(self, indices: np.ndarray, truncated: Rows) -> Rows:
        """The same texts, those at `indices` replaced by `truncated`; `full_lengths` stay."""
        lengths = self.lengths.copy()
        lengths[indices] = truncated.lengths
        ends = self._ends
        keep = np.ones(len(self.ids), bool)
        for i in indices:
            keep[ends[i] - self.lengths[i] + lengths[i] : ends[i]] = False
        packed = {name: getattr(self, name)[keep] for name in ("ids", "special", "types")}
        starts = np.cumsum(lengths) - lengths
        for start, end, length in zip(starts[indices], truncated._ends, truncated.lengths, strict=True):
            for name, values in packed.items():
                values[start : start + length] = getattr(truncated, name)[end - length : end]
        return replace(self, **packed, lengths=lengths)

    def with_special(self, prefix: np.ndarray) -> Rows:
        """The same texts, the content tokens that each begins with marked as special as far as they are those of
        `prefix`: its last one may have become part of the token after it ("query: " and "film" share ": film")."""
        starts = self._ends - self.lengths

        def count(mask: np.ndarray) -> np.ndarray:
            """True tokens up to and with each token, within its text."""
            total = np.concatenate([[0], np.cumsum(mask)])
            return total[1:] - np.repeat(total[starts], self.lengths)

        content = ~self.special
        number = count(content)
        expected = np.append(prefix, -1)[np.clip(number - 1, 0, len(prefix))]  # -1 beyond the prefix
        return replace(self, special=self.special | (count(content & (self.ids != expected)) == 0))

    def digests(self) -> np.ndarray:
        """(text,) a 64-bit digest of the ids of each text: equal for texts that the encoder cannot distinguish."""
        digests = (blake2b(row.ids.tobytes(), digest_size=8).digest() for row in self)
        return np.fromiter((int.from_bytes(d, "little", signed=True) for d in digests), np.int64, len(self))

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.lengths)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        tokens = slice(self._ends[i] - self.lengths[i], self._ends[i])
        types = self.types[tokens] if self.paired[i] else None
        return Row(self.ids[tokens], self.special[tokens], int(self.seeds[i]), types)

    def __len__(self) -> int:
        return len(self.lengths)


class _Position(Protocol):
    """A readout of one token of every text (probes.extraction.readouts.Position)."""

    name: str

    def position(self, batch: Batch) -> Tensor:
        """(batch,) index of the token, -1 where the text has none."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Token ids and the masks that give the positions in them.

    ids: (batch, token) integers. real: (batch, token) True where a token belongs to the text, False on padding.
    special: (batch, token) True on tokens that the tokenizer added ([CLS], [SEP]). seeds: (batch,) integers, a stable
    hash of each text. cls_id, sep_id: the tokenizer's, None where it has none. types: (batch, token) which text of a
    pair a token belongs to, None where no row is a pair or the model takes no token types. positions: (batch, token)
    position ids, None for those that the model itself gives.
    """

    ids: Tensor
    real: Tensor
    special: Tensor
    seeds: Tensor
    cls_id: int | None
    sep_id: int | None
    types: Tensor | None = None
    positions: Tensor | None = None

    @cached_property
    def content(self) -> Tensor:
        """(batch, token) True on real tokens that are not special."""
        return self.real & ~self.special

    @cached_property
    def lengths(self) -> Tensor:
        """(batch,) number of real tokens, special ones included."""
        return self.real.sum(1)

    @cached_property
    def padded(self) -> bool:
        """Whether any row has padding."""
        return not bool(self.real.all())

    @cached_property
    def _positions(self) -> dict[str, Tensor]:
        return {}

    def position_of(self, readout: _Position) -> Tensor:
        """(batch,) the position of a readout, cached for all layers (equal names are equal readouts)."""
        if readout.name not in self._positions:
            self._positions[readout.name] = readout.position(self)
        return self._positions[readout.name]

    def nth(self, mask: Tensor, n: Tensor) -> Tensor:
        """(batch,) the position of the n-th (from 1) True in every row of `mask`, -1 where there are fewer."""
        is_nth = mask & (mask.cumsum(1) == n[:, None])
        return is_nth.float().argmax(1).where(is_nth.any(1), -1)


def text_seed(text: str) -> int:
    """A stable 62-bit hash of a text; `hash()` changes with every process."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 2
