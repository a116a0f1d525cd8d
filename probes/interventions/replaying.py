"""Texts recorded batch by batch, so that changed passes can continue from any layer of the intact pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.tap import evaluating
from clsprobe.probes.encoders.tokenizing import Rows
from clsprobe.probes.extraction.extractor import BUDGET, plan_batches
from clsprobe.probes.interventions.changes import check_changes
from clsprobe.probes.interventions.passes import RecordedPass, record_passes

T = TypeVar("T")
CHUNK = 256 << 20  # bytes of hidden states in memory at once


@dataclass(frozen=True, eq=False)
class Chunk:
    """Texts recorded batch by batch, as many as fit into `CHUNK` bytes of hidden states.

    rows: the text indices of every batch.
    """

    rows: list[np.ndarray]
    recorded: list[RecordedPass]
    _pool: ThreadPoolExecutor

    def map(self, function: Callable[[int, RecordedPass], T]) -> list[T]:
        """``function(number, recorded)`` for every batch; in parallel on a CPU."""
        return list(self._pool.map(function, range(len(self.recorded)), self.recorded))


@contextmanager
def replay(
    encoder: Encoder, texts: Sequence[str], until: int, *, max_length: int | None = None
) -> Iterator[Iterator[Chunk]]:
    """Within the block, an iterator of chunks: the texts, run up to layer `until`.

    max_length: tokens to which texts are truncated, by default the encoder's limit. Texts of similar length share a
    batch, of equal length if padding leaks; on a CPU every batch has a thread. Raises InputError like `check_changes`.
    """
    check_changes(encoder)
    rows = encoder.tokenize(texts, max_length or encoder.description.max_length)
    leaks = bool(encoder.adapter.leaks or encoder.checked.get("leaks"))
    batches: list[np.ndarray] = []
    for paired in (False, True):  # single texts have no token types
        same_kind = np.flatnonzero(rows.paired == paired)
        batches += [
            same_kind[part] for part in plan_batches(rows.lengths[same_kind], BUDGET[encoder.device.type], equal=leaks)
        ]

    def chunks() -> Iterator[Chunk]:
        waiting = list(batches)
        while waiting:
            taken = [waiting.pop(0)]
            space = CHUNK - _count_bytes(rows, taken[0], encoder, until)
            while waiting and (space := space - _count_bytes(rows, waiting[0], encoder, until)) >= 0:
                taken.append(waiting.pop(0))
            with record_passes(encoder, until) as record:
                recorded = list(pool.map(lambda batch: record(encoder.batch([rows[i] for i in batch])), taken))
            yield Chunk(taken, recorded, pool)

    threads = torch.get_num_threads()
    on_cpu = encoder.device.type == "cpu"
    set_threads = partial(torch.set_num_threads, 1 if on_cpu else threads)
    try:
        with evaluating(encoder.model), ThreadPoolExecutor(threads if on_cpu else 1, initializer=set_threads) as pool:
            yield chunks()
    finally:
        torch.set_num_threads(threads)


def _count_bytes(rows: Rows, batch: np.ndarray, encoder: Encoder, until: int) -> int:
    """Bytes of the hidden states of a recorded batch."""
    tokens = len(batch) * int(rows.lengths[batch].max())
    return tokens * encoder.description.dim * (until + 1) * encoder.dtype.itemsize
