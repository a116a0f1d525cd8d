"""Batches through the encoder, reduced to readouts while they run.

1. `LayerReader.start_shard` submits the batches of a shard to threads; each fills its rows of the shard.
2. `read_layer` is what the hooks call: all readouts of a layer are read inside it, and only they are kept.
3. A batch that does not fit in memory is halved, down to one row.
4. What goes wrong in a readout of another package is an InputError that names it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from mmap import mmap
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.tap import module_name
from clsprobe.probes.encoders.tokenizing import Batch, Rows
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import Readout, walk_readouts
from clsprobe.probes.extraction.states import tensor_name
from clsprobe.probes.plugins import PluginError, contain, undo_changes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Shard:
    """values: (row, width) of every cell. present: (row, readout). futures: the batches that fill these."""

    values: list[np.ndarray]
    present: np.ndarray
    futures: list[Future[tuple[int, int]]]


class LayerReader:
    """The readouts of every cell, batch by batch. cells: (layer, readout, index of the readout), lower layers first."""

    def __init__(self, encoder: Encoder, readouts: Sequence[Readout], layers: Sequence[int]) -> None:
        self.encoder, self.readouts, self.layers = encoder, readouts, list(layers)
        self.last = len(encoder.points) - 1
        self.cells = [
            (layer, readout, index)
            for layer in self.layers
            for index, readout in enumerate(readouts)
            if layer == self.last or not readout.last_layer_only
        ]
        self.widths = [_find_width(readout, encoder.description.dim) for _, readout, _ in self.cells]
        self._running = threading.local()  # of the thread: its batch, its vectors, the layers read so far
        self._stopped = threading.Event()

    @contextmanager
    def start_workers(self) -> Iterator[ThreadPoolExecutor]:
        """Threads that run batches. After an error they stop at the next layer."""
        in_parallel = self.encoder.device.type == "cpu" and not self.encoder.adapter.before
        threads = torch.get_num_threads()
        set_threads = partial(torch.set_num_threads, 1 if in_parallel else threads)
        self._stopped.clear()
        try:
            with ThreadPoolExecutor(threads if in_parallel else 1, initializer=set_threads) as pool:
                try:
                    yield pool
                except BaseException:
                    self._stopped.set()
                    pool.shutdown(cancel_futures=True)
                    raise
        finally:
            torch.set_num_threads(threads)

    def start_shard(self, pool: ThreadPoolExecutor, rows: Rows, batches: list[np.ndarray], start: int) -> Shard:
        """A shard whose batches are submitted to the pool. start: the index of the window's first text."""
        ends = np.cumsum([len(batch) for batch in batches])
        size = int(ends[-1]) * sum(self.widths)
        memory = mmap(-1, max(1, 4 * size))  # goes back to the system when freed; malloc might keep it
        values = self._split_by_cell(np.frombuffer(memory, np.float32, size), int(ends[-1]))
        present = np.empty((ends[-1], len(self.readouts)), np.uint8)

        def read(batch: np.ndarray, end: int) -> tuple[int, int]:
            in_shard = slice(end - len(batch), end)
            vectors, present[in_shard], halved = self.read_batch(rows, batch, start)
            for shard_cell, batch_cell in zip(values, vectors, strict=True):
                shard_cell[in_shard] = batch_cell
            return len(batch), halved

        return Shard(values, present, [pool.submit(read, *job) for job in zip(batches, ends, strict=True)])

    def _split_by_cell(self, flat: Any, rows: int) -> list[Any]:
        """(row, width) of every cell, views into one array or tensor."""
        ends = np.cumsum([rows * width for width in self.widths])
        return [flat[end - rows * w : end].reshape(rows, w) for end, w in zip(ends, self.widths, strict=True)]

    def finish_shard(self, shard: Shard, bar: tqdm) -> tuple[dict[str, np.ndarray], int]:
        """The tensors of a shard once its batches have run, and the number of halved batches."""
        total_halved = 0
        for future in shard.futures:
            count, halved = future.result()
            total_halved += halved
            bar.update(count)
        names = [tensor_name(layer, readout.name) for layer, readout, _ in self.cells]
        return dict(zip(names, shard.values, strict=True)) | {"present": shard.present}, total_halved

    def read_batch(self, rows: Rows, batch: np.ndarray, start: int) -> tuple[list[np.ndarray], np.ndarray, int]:
        """Vectors (row, width) of every cell, present (row, readout), and the number of halvings that memory needed."""
        try:
            return *self._run_batch(rows, batch, start), 0
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not _is_out_of_memory(error):
                raise
        if len(batch) == 1:
            what = f"{rows.lengths[batch[0]]:,} tokens do not fit in memory"
            raise InputError(f"row {start + batch[0]:,}", what, "Pass --max-length, or --long-rows drop with it")
        if self.encoder.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(batch) // 2
        parts = [self.read_batch(rows, half, start) for half in (batch[:middle], batch[middle:])]
        values, present, halved = zip(*parts, strict=True)
        return [np.concatenate(cell) for cell in zip(*values, strict=True)], np.concatenate(present), 1 + sum(halved)

    def _run_batch(self, rows: Rows, indices: np.ndarray, start: int) -> tuple[list[np.ndarray], np.ndarray]:
        encoder, running = self.encoder, self._running
        running.batch, running.layers = encoder.batch([rows[i] for i in indices]), []
        flat = torch.empty(len(indices) * sum(self.widths), device=encoder.device)
        running.vectors = self._split_by_cell(flat, len(indices))
        present = torch.stack([_find_present(readout, running.batch) for readout in self.readouts], 1).cpu().numpy()
        with suppress(_StopForward):
            encoder.forward(running.batch)
        if running.layers != self.layers:
            raise RuntimeError(f"{type(encoder.model).__name__} ran layers {running.layers}, expected {self.layers}")
        values = self._split_by_cell(flat.cpu().numpy(), len(indices))
        for (layer, readout, index), vectors in zip(self.cells, values, strict=True):  # lower layers first
            absent = ~present[:, index]
            vectors[absent] = np.nan
            bad = indices[~np.isfinite(vectors).all(1) & ~absent]
            if len(bad):
                self._refuse_non_finite(layer, start + int(bad.min()), readout)
        return values, present

    def read_layer(self, layer: int, hidden: Tensor) -> None:
        """Read all readouts of a layer, for the batch that this thread runs."""
        encoder, running = self.encoder, self._running
        running.layers.append(layer)
        normed = encoder.norm(hidden) if layer == self.last and encoder.norm and self._reads_normed else hidden
        for (cell_layer, readout, _), vectors in zip(self.cells, running.vectors, strict=True):
            if 0 <= cell_layer - layer < readout.depth:  # the cell's own layer is the last of its `depth`
                part = vectors.unflatten(1, (readout.depth, -1))[:, layer - cell_layer - 1]
                _read(readout, normed if readout.after_norm else hidden, running.batch, part)
        if self._stopped.is_set() or layer == self.layers[-1] != self.last:
            raise _StopForward  # the layers above are not needed

    @property
    def _reads_normed(self) -> bool:
        return any(readout.after_norm for readout in self.readouts)

    def _refuse_non_finite(self, layer: int, row: int, readout: Readout) -> None:
        encoder = self.encoder
        if _is_plugin(readout):
            what = f"gives numbers that are not finite for row {row:,} at layer {layer}"
            mend = "Let `present` be False for texts without the readout"
            raise InputError(f"--readouts {readout.name}", what, f"{mend}, or mend the weights")
        module = module_name(encoder.points[layer]) if layer else "the embeddings"
        overflow = f"{dtype_name(encoder.dtype)} may overflow: use --dtype float32"
        raise InputError(
            f"layer {layer}",
            f"non-finite hidden states from row {row:,} ({module}, read as {readout.name})",
            "The weights hold NaN, inf or huge numbers: use others" if encoder.dtype == torch.float32 else overflow,
        )


def _is_plugin(readout: Readout) -> bool:
    """Whether the readout, or one within it, is of another package."""
    return any(not type(part).__module__.startswith("clsprobe.") for part in walk_readouts(readout))


def _find_width(readout: Readout, dim: int) -> int:
    """The size of a readout's vectors for tokens of dimension `dim`."""
    with guard_plugin(readout):
        width = readout.width(dim)
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width gives {width!r}, expected a number from 1")
        return width


def _find_present(readout: Readout, batch: Batch) -> Tensor:
    """(batch,) whether a text has the readout."""
    with guard_plugin(readout):
        batch = _copy_batch(batch) if _is_plugin(readout) else batch
        return _check_tensor(readout.present(batch), "present", (len(batch.ids),)).bool().to(batch.ids.device)


def _read(readout: Readout, hidden: Tensor, batch: Batch, vectors: Tensor) -> None:
    """Read into `vectors`, whose shape the result must have: torch would repeat a single number.

    A readout of another package gets copies, for the layers above and other readouts need what it might write to.
    """
    with guard_plugin(readout):
        if _is_plugin(readout):
            hidden, batch = hidden.clone(), _copy_batch(batch)
        vectors[:] = _check_tensor(readout.read(hidden, batch), "read", vectors.shape)


def _copy_batch(batch: Batch) -> Batch:
    """A batch of its own: the same texts, with tensors that nothing else reads."""
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    copies: dict[str, Any] = {
        name: tensors[name].clone() for name in tensors.keys() & Batch.__dataclass_fields__.keys()
    }
    return replace(batch, **copies)


_plugins = threading.RLock()  # one thread at a time: what another one changes, `undo_changes` would take for the rule


@contextmanager
def guard_plugin(readout: Readout) -> Iterator[None]:
    """Whatever a readout of another package raises within the block, too little memory apart, as an InputError; and
    what it changes in the process is undone."""
    if not _is_plugin(readout):
        yield
        return
    try:
        with _plugins, contain(), undo_changes():
            yield
    except PluginError as error:
        if error.__cause__ is not None and _is_out_of_memory(error.__cause__):
            raise error.__cause__ from None
        what, mend = f"fails ({error})", "Mend the plug-in; clsprobe.check_readout tries it"
        raise InputError(f"--readouts {readout.name}", what, mend) from error.__cause__


def _check_tensor(result: Any, method: str, shape: tuple[int, ...]) -> Tensor:
    """The result of a method of a readout. Raises ValueError where it is no tensor of this shape."""
    if not isinstance(result, torch.Tensor) or result.shape != shape:
        kind = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise ValueError(f"{method} gives {kind}, expected a tensor of shape {tuple(shape)}")
    if result.is_complex():
        raise ValueError(f"{method} gives {result.dtype}, expected real numbers")
    return result


class _StopForward(Exception):
    """The highest layer needed has been read, or another batch has failed."""


def _is_out_of_memory(error: BaseException) -> bool:
    messages = "can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED"
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(m in str(error) for m in messages)


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")
