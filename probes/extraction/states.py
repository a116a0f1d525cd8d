"""`States`: the vectors of texts, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from clsprobe.probes.errors import InputError, format_rows
from clsprobe.probes.extraction.readouts import last_layer_only
from clsprobe.probes.notebook import facts_to_html

if TYPE_CHECKING:
    import pandas as pd


Tensors = Mapping[str, np.ndarray]


def tensor_name(layer: int, readout: str) -> str:
    """The name of a cell's tensor in a shard."""
    return f"layer.{layer:02d}/{readout}"


@dataclass(frozen=True, eq=False)
class States:
    """Vectors of every text at every (layer, readout), float32; vectors on disk are never all in memory.

    texts: (text,) the encoded texts. shards: each maps the name of a cell to (row, dim), "present" to (row, readout).
    locations: a row per text, its columns `shard`, `at` (the row in the shard), `tokens` (the length before truncation)
    and `ids` (a digest of its token ids). limit: the longest input in tokens. source: model, control ("none" or
    "untrained"), seed of untrained weights, digests, versions, the self-check. last: the model's last layer; only it
    has ``+norm`` readouts.
    """

    texts: Sequence[str] = field(repr=False)
    layers: tuple[int, ...]
    readouts: tuple[str, ...]
    dim: int
    shards: Sequence[Tensors] = field(repr=False)
    locations: pd.DataFrame = field(repr=False)
    limit: int
    source: dict[str, Any]
    last: int = 0

    def __repr__(self) -> str:
        layers, readouts = ",".join(map(str, self.layers)), ", ".join(self.readouts)
        return f"<States of {self.source['model']}: {len(self):,} texts, layers {layers}, readouts {readouts}>"

    def _repr_html_(self) -> str:
        control = {"none": "trained"}.get(self.source["control"], self.source["control"])
        facts = {
            "texts": f"{len(self):,}, {len(self.truncated):,} of them truncated to {self.limit:,} tokens",
            "layers": ", ".join(map(str, self.layers)),
            "readouts": ", ".join(self.readouts),
            "dimensions": f"{self.dim:,}",
            "cells": f"{len(self.cells):,}, each an array (text, dim), as in states.cell{self.cells[-1]}",
            "encoder": control,
        }
        notes = {f"note {number}": note for number, note in enumerate(self.source.get("notes", ()), 1)}
        return facts_to_html(f"States of {self.source['model']}", facts | notes)

    def cell(self, layer: int, readout: str, rows: np.ndarray | None = None) -> np.ndarray:
        """(text, dim) float32 of all texts in their order, or of `rows`; NaN where a text lacks the readout.

        Raises KeyError for a cell that was not read.
        """
        if (layer, readout) not in self.cells:
            raise KeyError(f"no cell ({layer}, {readout!r}); layers {self.layers}, readouts {self.readouts}")
        return self._gather(tensor_name(layer, readout), rows)

    def width(self, readout: str) -> int:
        """The dimension of this readout's vectors."""
        if readout not in self._widths:
            layer = self.last if last_layer_only(readout) else self.layers[0]
            self._widths[readout] = self.cell(layer, readout, np.arange(min(1, len(self)))).shape[1]
        return self._widths[readout]

    def _gather(self, name: str, rows: np.ndarray | None = None) -> np.ndarray:
        """A tensor of all shards, in the order of the texts or of `rows`."""
        selected = slice(None) if rows is None else rows
        shards, shard_rows = (self.locations[column].to_numpy()[selected] for column in ("shard", "at"))
        values: np.ndarray | None = None
        for number in np.unique(shards):
            in_shard, tensor = np.flatnonzero(shards == number), self.shards[number][name]
            if values is None:
                values = np.empty((len(shards), *tensor.shape[1:]), tensor.dtype)
            values[in_shard] = tensor[shard_rows[in_shard]]
        return np.empty((0, self.dim), np.float32) if values is None else values

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """(text,) the row of each text among the encoded ones. Raises InputError for a text that was not encoded."""
        rows = np.array([self._index.get(text, -1) for text in texts], np.int64)
        if len(missing := np.flatnonzero(rows < 0)):
            what = f"{len(missing):,} of {len(rows):,} texts were not encoded (rows {format_rows(missing, 5)})"
            raise InputError("states", what, "Encode all of them, as in states = Extractor(encoder)(task.texts)")
        return rows

    @cached_property
    def present(self) -> np.ndarray:
        """(readout, text) False where a text is too short for a readout; its vector is NaN there."""
        return self._gather("present").T.astype(bool) if len(self) else np.ones((len(self.readouts), 0), bool)

    @property
    def truncated(self) -> np.ndarray:
        """The rows of texts that were truncated."""
        return np.flatnonzero(self.locations.tokens > self.limit)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self.texts)}

    @cached_property
    def _widths(self) -> dict[str, int]:
        return {}

    @cached_property
    def cells(self) -> list[tuple[int, str]]:
        """Every (layer, readout), layers first."""
        grid = ((layer, readout) for layer in self.layers for readout in self.readouts)
        return [(layer, readout) for layer, readout in grid if layer == self.last or not last_layer_only(readout)]

    def __len__(self) -> int:
        return len(self.locations)
