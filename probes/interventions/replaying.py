"""Many texts, recorded batch by batch: changed passes go on from any layer of the intact one."""

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
from clsprobe.probes.extraction.extractor import BUDGET, plan
from clsprobe.probes.interventions.changes import check_changes
from clsprobe.probes.interventions.passes import Recorded, recording

T = TypeVar("T")
CHUNK = 256 << 20  # bytes of hidden states that are kept at once


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some of the texts, recorded batch by batch: as many as fit into `CHUNK` bytes of hidden states.

    rows: for every batch the numbers of its texts.
    """

    rows: list[np.ndarray]
    recorded: list[Recorded]
    _pool: ThreadPoolExecutor

    def each(self, step: Callable[[int, Recorded], T]) -> list[T]:
        """``step(number, recorded)`` of every batch, side by side on a CPU."""
        return list(self._pool.map(step, range(len(self.recorded)), self.recorded))


@contextmanager
def replay(
    encoder: Encoder, texts: Sequence[str], until: int, *, max_length: int | None = None
) -> Iterator[Iterator[Chunk]]:
    """Within the block, the texts chunk by chunk, run up to layer `until`, from which changed passes go on.

    max_length: longer texts are cut to so many tokens; default the encoder's limit. Texts of like length share a batch,
    of equal length where padding leaks; on a CPU each batch has a thread. Raises InputError as `check_changes` does.
    """
    check_changes(encoder)
    rows = encoder.tokenize(texts, max_length or encoder.description.max_length)
    leaks = bool(encoder.adapter.leaks or encoder.checked.get("leaks"))
    batches: list[np.ndarray] = []
    for paired in (False, True):  # single texts have no token types
        alike = np.flatnonzero(rows.paired == paired)
        batches += [alike[part] for part in plan(rows.lengths[alike], BUDGET[encoder.device.type], equal=leaks)]

    def chunks() -> Iterator[Chunk]:
        waiting = list(batches)
        while waiting:
            some = [waiting.pop(0)]
            room = CHUNK - _size(rows, some[0], encoder, until)
            while waiting and (room := room - _size(rows, waiting[0], encoder, until)) >= 0:
                some.append(waiting.pop(0))
            with recording(encoder, until) as record:
                recorded = list(pool.map(lambda batch: record(encoder.batch([rows[i] for i in batch])), some))
            yield Chunk(some, recorded, pool)

    threads = torch.get_num_threads()
    aside = encoder.device.type == "cpu"
    alone = partial(torch.set_num_threads, 1 if aside else threads)
    try:
        with evaluating(encoder.model), ThreadPoolExecutor(threads if aside else 1, initializer=alone) as pool:
            yield chunks()
    finally:
        torch.set_num_threads(threads)


def _size(rows: Rows, batch: np.ndarray, encoder: Encoder, until: int) -> int:
    """Bytes of a recorded batch."""
    tokens = len(batch) * int(rows.lengths[batch].max())
    return tokens * encoder.description.dim * (until + 1) * encoder.dtype.itemsize
