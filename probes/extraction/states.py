"""`States`: the vectors of texts, given out cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from clsprobe.probes.extraction.readouts import of_last

if TYPE_CHECKING:
    import pandas as pd


Tensors = Mapping[str, np.ndarray]


def name_of(layer: int, readout: str) -> str:
    """The tensor of a cell in a shard."""
    return f"layer.{layer:02d}/{readout}"


@dataclass(frozen=True, eq=False)
class States:
    """Vectors of every text at every (layer, readout), float32, never all in memory where they lie on disk.

    texts: (text,) what was encoded. shards: each maps the name of a cell to (row, dim), "present" to (row, readout).
    where: one row a text: the `shard` it lies in and `at` which row, its length in `tokens` before any cut, and `ids`,
    a digest of the token ids that the encoder saw. limit: the longest input in tokens. source: model, control ("none"
    or "untrained"), seed of untrained weights, digests, versions, the self-check. last: the model's last layer; only it
    has ``+norm`` readouts.
    """

    texts: Sequence[str] = field(repr=False)
    layers: tuple[int, ...]
    readouts: tuple[str, ...]
    dim: int
    shards: Sequence[Tensors] = field(repr=False)
    where: pd.DataFrame = field(repr=False)
    limit: int
    source: dict[str, Any]
    last: int = 0

    def cell(self, layer: int, readout: str, rows: np.ndarray | None = None) -> np.ndarray:
        """(text, dim) float32 of all texts in their order, or of some `rows`; NaN where a text lacks the readout.

        Raises KeyError for a cell that was not read.
        """
        if (layer, readout) not in self.cells:
            raise KeyError(f"no cell ({layer}, {readout!r}); layers {self.layers}, readouts {self.readouts}")
        return self._gathered(name_of(layer, readout), rows)

    def width(self, readout: str) -> int:
        """Numbers in a vector of this readout."""
        if readout not in self._widths:
            layer = self.last if of_last(readout) else self.layers[0]
            self._widths[readout] = self.cell(layer, readout, np.arange(min(1, len(self)))).shape[1]
        return self._widths[readout]

    def _gathered(self, name: str, rows: np.ndarray | None = None) -> np.ndarray:
        """A tensor of the shards in the order of the texts."""
        shard, at = (self.where[column].to_numpy()[slice(None) if rows is None else rows] for column in ("shard", "at"))
        found: np.ndarray | None = None
        for number in np.unique(shard):
            here, tensor = np.flatnonzero(shard == number), self.shards[number][name]
            if found is None:
                found = np.empty((len(shard), *tensor.shape[1:]), tensor.dtype)
            found[here] = tensor[at[here]]
        return np.empty((0, self.dim), np.float32) if found is None else found

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """(text,) where each of `texts` stands among the encoded ones. Raises KeyError for one that was not encoded."""
        return np.array([self._index[text] for text in texts], np.int64)

    @cached_property
    def present(self) -> np.ndarray:
        """(readout, text) False where a text is too short for a readout; its vector is NaN there."""
        return self._gathered("present").T.astype(bool) if len(self) else np.ones((len(self.readouts), 0), bool)

    @property
    def truncated(self) -> np.ndarray:
        """The rows that were cut to the longest input."""
        return np.flatnonzero(self.where.tokens > self.limit)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self.texts)}

    @cached_property
    def _widths(self) -> dict[str, int]:
        return {}

    @cached_property
    def cells(self) -> list[tuple[int, str]]:
        """Every (layer, readout), layers first."""
        every = ((layer, readout) for layer in self.layers for readout in self.readouts)
        return [(layer, name) for layer, name in every if layer == self.last or not of_last(name)]

    def __len__(self) -> int:
        return len(self.where)
