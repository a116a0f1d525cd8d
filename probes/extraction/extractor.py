"""Hidden states of every layer, reduced to readouts while the encoder runs.

1. `plan` sorts texts by length and fills batches to a token budget: a pure function of the lengths. Where padding
   leaks, a batch holds texts of one length only. Pairs of texts and single ones have batches of their own.
2. `Extractor` takes the texts a window at a time: while one window runs, the next is tokenized. The batches of a window
   make shards of about `SHARD` bytes; while one is read, the last is written. All readouts are read inside hooks
   (`probes.encoders.tap`): only they are kept, never the activations, and no more than two windows and four shards
   are in memory.
3. On a CPU, batches run side by side, each on one thread: threads that share a small product wait for each other. The
   bits of a vector depend on its batch alone, not on the number of cores.
4. Shards that a cache holds are not made again: that is all there is to resuming, and to sharing a cache.
5. A batch that does not fit in memory is halved, down to one row.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import platform
import secrets
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.layers import check_layers, parse_layers
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.encoders.tap import evaluating, module_name, tap
from clsprobe.probes.encoders.tokenizing import Rows
from clsprobe.probes.errors import InputError, named_rows
from clsprobe.probes.extraction.readouts import DEFAULT, Normed, Readout, parse, within
from clsprobe.probes.extraction.states import States, name_of
from clsprobe.probes.extraction.store import Memory, Store

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

WINDOW = 4_096  # texts that are tokenized and sorted together
SHARD = 32 << 20  # bytes of vectors in a file
BUDGET = {"cpu": 1_024, "cuda": 32_768, "mps": 8_192}  # tokens in a batch: on a CPU, what its caches hold
MUCH = 0.05  # of a cell's spread: half precision that moves it by more is told
COMPARED = 32  # texts on which half precision is compared with float32


def plan(lengths: np.ndarray, max_tokens: int, *, equal: bool = False, max_rows: int | None = None) -> list[np.ndarray]:
    """Batches of row numbers: longest texts first, each batch filled until rows x longest reaches `max_tokens`.

    lengths: (text,) tokens. equal: a batch holds texts of one length only, so that nothing is padded. max_rows: in a
    batch at most. Ties keep the order of the texts, so equal lengths give equal plans. A text longer than the budget
    has a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    batches, start = [], 0
    while start < len(order):
        longest = int(ordered[start])
        size = min(max(1, max_tokens // max(1, longest)), max_rows or len(order))
        if equal:
            size = min(size, int(np.searchsorted(-ordered, -longest, side="right")) - start)
        batches.append(order[start : start + size])
        start += size
    return batches


class Extractor:
    """Texts in, `States` out.

    readouts: names or Readouts; the default ones are those of `DEFAULT` that the model has. layers: "all", layer
    numbers (0 = embedding output), or what `parse_layers` reads. max_tokens_per_batch: padded tokens in a batch,
    default by device. max_length: longest input in tokens, special ones included, at most the model's own limit.
    long_rows: what happens to longer texts: "error", or "truncate" them, keeping the special tokens. cache: a folder
    (`store.usable_folder`) where the vectors are kept and found again; without one they stay in memory. Where padding
    leaks (`self_check`), texts are batched by equal length. Raises InputError for a layer or readout that the model
    lacks.
    """

    def __init__(
        self,
        encoder: Encoder,
        readouts: Sequence[str | Readout] = DEFAULT,
        *,
        layers: str | Sequence[int] = "all",
        max_tokens_per_batch: int | None = None,
        max_length: int | None = None,
        long_rows: Literal["truncate", "error"] = "error",
        cache: Path | None = None,
    ) -> None:
        self.encoder = encoder
        if isinstance(layers, str):
            layers = parse_layers(layers, encoder.description)
        self.last = len(encoder.points) - 1
        self.layers = check_layers(layers, self.last)
        self.max_tokens_per_batch = max_tokens_per_batch or BUDGET[encoder.device.type]
        limit = encoder.description.max_length
        self.max_length = limit if max_length is None else min(max_length, limit)
        self.long_rows = long_rows
        self.cache = cache
        added = encoder.tokenize([""])[0].ids
        if self.max_length <= len(added):
            special = f"{len(added)} special tokens leave no room for text"
            raise InputError(f"--max-length {self.max_length}", special, f"Pass {len(added) + 1} or more")
        lacking = {name for name, token in (("cls", encoder.cls_id), ("sep", encoder.sep_id)) if token not in added}
        self.readouts = parse(name for name in readouts if tuple(readouts) != DEFAULT or name not in lacking)
        self._check_readouts(lacking)
        self.leaks = bool(encoder.adapter.leaks or encoder.checked.get("leaks"))
        self._cells = [  # (layer, readout, its number), layers first
            (layer, readout, number)
            for layer in self.layers
            for number, readout in enumerate(self.readouts)
            if layer == self.last or not readout.of_last
        ]
        self._widths = [readout.width(encoder.description.dim) for _, readout, _ in self._cells]
        self._row_bytes = sum(self._widths) * 4
        self._running = threading.local()  # the batch of a thread: its ids, its vectors, the layers read so far
        self._stopped = threading.Event()

    def _check_readouts(self, lacking: set[str]) -> None:
        encoder = self.encoder
        for readout in self.readouts:
            if missing := [part.name for part in within(readout) if part.name in lacking]:
                others = ", ".join(other for other in DEFAULT if other not in lacking)
                what = f"the tokenizer of {encoder.name} adds no {missing[0]} token"
                raise InputError("--readouts", what, f"Choose among {others}")
            if isinstance(readout, Normed) and encoder.norm is None:
                told = f"'{readout.name}': no norm follows the last layer of {encoder.name}"
                raise InputError("--readouts", told, f"Use {readout.of.name}")
        for readout in filter(lambda readout: readout.of_last, self.readouts):
            needed = range(self.last - readout.depth + 1, self.last + 1)
            if needed[0] < 0:
                raise InputError("--readouts", f"'{readout.name}' reads more layers than there are", "Name fewer")
            if unread := ", ".join(str(layer) for layer in needed if layer not in self.layers):
                told = f"'{readout.name}' is read at layer {self.last} only"
                told += f", from layers {needed[0]} to {self.last}" if readout.depth > 1 else ""
                raise InputError("--readouts", told, f"Add {unread} to --layers")

    def __call__(self, texts: Sequence[str]) -> States:
        """Encode every text once, or take from the cache what is there.

        Raises InputError for texts too long, vectors that are not finite, a text too large for the memory, a full disk.
        """
        kept: Store | Memory = Memory()
        made_of = {} if self.cache is None else self._made_of(texts)
        new = self.cache is None or not Store.place(self.cache, made_of).exists()
        if new:
            self._look_for_long(texts)  # before a folder is made
        if self.cache is not None:
            kept = Store(self.cache, made_of, name=self.encoder.name, size=self._row_bytes * len(texts))
        rows = kept.rows
        if rows is None or not all(kept.has(number) for number in np.unique(rows.shard)):
            if not new:
                self._look_for_long(texts)
            rows = self._fill(kept, texts)
        if self.long_rows == "error" and (rows.tokens > self.max_length).any():
            self._refuse_long(rows.tokens.to_numpy())
        numbers = range(int(rows.shard.max()) + 1 if len(rows) else 0)
        return States(
            texts,
            tuple(self.layers),
            tuple(readout.name for readout in self.readouts),
            self.encoder.description.dim,
            [kept.shard(number) for number in numbers],
            rows,
            self.max_length,
            self._source() | self._found(kept),
            self.last,
        )

    # ------------------------------------------------------------------------------------------------------ all texts

    def _fill(self, kept: Store | Memory, texts: Sequence[str]) -> pd.DataFrame:
        """Make every shard that is not there, and wait for those that other processes make; where every text is."""
        facts: dict[str, Any] = {}
        if self.encoder.dtype != torch.float32 and len(texts):
            facts["deviation"] = self._deviation([texts[i] for i in range(min(COMPARED, len(texts)))])
        label = "untrained" if self.encoder.untrained is not None else "encoding"
        with (
            tqdm(total=len(texts), desc=label, unit=" texts", delay=1, disable=None, leave=False) as bar,
            evaluating(self.encoder.model),
            tap(self.encoder, self._keep, self.layers),
        ):
            try:
                while waiting := self._pass(kept, texts, facts, bar):
                    while not all(kept.has(number) or kept.free(number) for number in waiting):
                        time.sleep(0.2)
                    bar.reset()
            finally:
                kept.close()
        rows = kept.rows
        assert rows is not None
        return rows

    def _pass(self, kept: Store | Memory, texts: Sequence[str], facts: dict[str, Any], bar: tqdm) -> list[int]:
        """Go through all texts once; returns the shards that another process is at work on."""
        import pandas as pd

        table, waiting, number = [], [], 0
        unknown = np.zeros(2, np.int64)  # unknown tokens, content tokens
        coming: list[tuple[int, Shard]] = []  # begun, in order; two at most, so that no core waits for a shard to end
        writing: list[Future[None]] = []

        def write(most: int) -> None:
            while len(coming) > most:
                made, (tensors, halved) = coming[0][0], self._finished(coming[0][1], bar)
                for one in writing:
                    one.result()  # its error is ours; and one shard waits to be written at most
                writing[:] = [writer.submit(kept.add, made, tensors, halved)]
                del coming[0]

        with ThreadPoolExecutor(1) as writer, self._workers() as pool:
            for start, rows in self._windows(texts):
                unknown += self._unknown(rows)
                where = {name: np.empty(len(rows), np.int32) for name in ("shard", "at")}
                for batches in self._shards(rows):
                    chosen = np.concatenate(batches)
                    where["shard"][chosen], where["at"][chosen] = number, np.arange(len(chosen))
                    if kept.has(number):
                        bar.update(len(chosen))
                    elif kept.begin(number):
                        coming.append((number, self._shard(pool, rows, batches, start)))
                        write(1)
                    else:
                        waiting.append(number)
                    number += 1
                table.append(pd.DataFrame(where | {"tokens": rows.full, "ids": rows.digests()}))
            write(0)
            for one in writing:
                one.result()
        if not waiting:
            empty = pd.DataFrame({"shard": [], "at": [], "tokens": [], "ids": []}, dtype=np.int64)
            told = facts | {"unknown": unknown.tolist()}
            kept.finish(pd.concat(table, ignore_index=True) if table else empty, told)
        return waiting

    def _windows(self, texts: Sequence[str]) -> Iterator[tuple[int, Rows]]:
        """The first text of every window, and its tokens; the next window is tokenized meanwhile."""

        def tokenize(start: int) -> Rows:
            some = [texts[i] for i in range(start, min(start + WINDOW, len(texts)))]
            return self.encoder.tokenize(some, self.max_length)

        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(tokenize, 0)
            for start in range(0, len(texts), WINDOW):
                rows = coming.result()
                if start + WINDOW < len(texts):
                    coming = pool.submit(tokenize, start + WINDOW)
                yield start, rows

    def _shards(self, rows: Rows) -> Iterator[list[np.ndarray]]:
        """The batches of every shard of a window."""
        most = max(1, SHARD // self._row_bytes)
        shard: list[np.ndarray] = []
        for batch in self._batches(rows, self.max_tokens_per_batch, most):
            if shard and sum(map(len, shard)) + len(batch) > most:
                yield shard
                shard = []
            shard.append(batch)
        if shard:
            yield shard

    def _batches(self, rows: Rows, max_tokens: int, max_rows: int | None = None) -> Iterator[np.ndarray]:
        """The batches of rows, single texts first: some models tell token types of 0 from none."""
        for kind in (False, True):
            alike = np.flatnonzero(rows.paired == kind)
            for batch in plan(rows.lengths[alike], max_tokens, equal=self.leaks, max_rows=max_rows):
                yield alike[batch]

    def _look_for_long(self, texts: Sequence[str]) -> None:
        """Refuse texts that are too long before the first one is run: a text has no more tokens than bytes."""
        if self.long_rows != "error":
            return
        maybe = [i for i in range(len(texts)) if len(texts[i].encode("utf-8", "surrogatepass")) > self.max_length - 2]
        lengths = np.zeros(len(texts), np.int64)
        for start in range(0, len(maybe), WINDOW):
            some = maybe[start : start + WINDOW]
            lengths[some] = self.encoder.tokenize([texts[i] for i in some]).full
        if (lengths > self.max_length).any():
            self._refuse_long(lengths)

    def _refuse_long(self, lengths: np.ndarray) -> None:
        long = np.flatnonzero(lengths > self.max_length)
        found = f"longest {lengths.max():,}; rows {named_rows(long, 5)}"
        raise InputError(
            "--long-rows error",
            f"{len(long):,} texts exceed {self.max_length} tokens ({found})",
            "Pass --long-rows truncate or drop",
        )

    def _unknown(self, rows: Rows) -> tuple[int, int]:
        """Unknown tokens and content tokens; refused where most are unknown."""
        unk = getattr(self.encoder.tokenizer, "unk_token_id", None)
        content = int((~rows.special).sum())
        missed = int(((rows.ids == unk) & ~rows.special).sum()) if unk is not None else 0
        if missed > content / 2:
            raise InputError(
                self.encoder.name,
                f"{missed / content:.0%} of the tokens are unknown to it",
                "Use a model of this language",
            )
        return missed, content

    def _found(self, kept: Store | Memory) -> dict[str, Any]:
        """What encoding has shown, for `States.source`; what a user should know of it is a warning too."""
        missed, content = kept.facts["unknown"]
        moved = {cell: share for cell, share in kept.facts.get("deviation", {}).items() if share > MUCH}
        if missed > content / 20:
            warnings.warn(f"{self.encoder.name}: {missed / content:.0%} of the tokens are unknown to it", stacklevel=3)
        if moved:
            worst = max(moved, key=moved.__getitem__)
            warnings.warn(
                f"{_plain(self.encoder.dtype)} moves {len(moved)} of {len(self._cells)} cells by more than {MUCH:.0%} "
                f"of their spread over the texts (most, {worst}: {moved[worst]:.0%}); read these in float32",
                stacklevel=3,
            )
        if isinstance(kept, Store) and kept.damaged:
            told = f"damaged or missing, and made again: {', '.join(kept.damaged[:3])}"
            more = f" and {len(kept.damaged) - 3} more files" if len(kept.damaged) > 3 else ""
            warnings.warn(f"{kept.folder}: {told}{more}; what was there is kept as *.corrupt", stacklevel=3)
        return {"unknown tokens": missed, "batches halved": kept.halved, "moved by half precision": moved}

    def _deviation(self, texts: list[str]) -> dict[str, float]:
        """How far half precision moves every cell: root mean square, over the cell's standard deviation over texts."""
        encoder, rows = self.encoder, self.encoder.tokenize(texts, self.max_length)
        exact = load_encoder(
            encoder.description, device=encoder.device.type, dtype="float32", untrained=encoder.untrained
        )
        reference = Extractor(exact, self.readouts, layers=self.layers, max_length=self.max_length)
        batches = list(self._batches(rows, BUDGET["cpu"]))
        both = []
        for one in (self, reference):
            with evaluating(one.encoder.model), tap(one.encoder, one._keep, one.layers):
                read = [one._read(rows, batch, 0)[0] for batch in batches]
                both.append([np.concatenate(cell).astype(np.float64) for cell in zip(*read, strict=True)])
        found = {}
        for (layer, readout, _), a, b in zip(self._cells, *both, strict=True):
            there = ~np.isnan(b).any(1)
            spread = np.sqrt(b[there].var(0).mean()) if there.any() else 0.0
            if spread > 1e-6 * np.abs(b[there]).max(initial=0):  # layer-0 [CLS] is one vector for every text
                found[f"layer {layer} {readout.name}"] = round(float(np.sqrt(((a - b)[there] ** 2).mean()) / spread), 4)
        return found

    # ------------------------------------------------------------------------------------------------------ one shard

    @contextmanager
    def _workers(self) -> Iterator[ThreadPoolExecutor]:
        """Threads that run batches. Left by an error, they stop at the next layer."""
        side_by_side = self.encoder.device.type == "cpu" and not self.encoder.adapter.before
        threads = torch.get_num_threads()
        alone = partial(torch.set_num_threads, 1 if side_by_side else threads)
        self._stopped.clear()
        try:
            with ThreadPoolExecutor(threads if side_by_side else 1, initializer=alone) as pool:
                try:
                    yield pool
                except BaseException:
                    self._stopped.set()
                    pool.shutdown(cancel_futures=True)
                    raise
        finally:
            torch.set_num_threads(threads)

    def _shard(self, pool: ThreadPoolExecutor, rows: Rows, batches: list[np.ndarray], start: int) -> Shard:
        """A shard under way. start: the first text of the window."""
        ends = np.cumsum([len(batch) for batch in batches])
        size = int(ends[-1]) * sum(self._widths)
        memory = mmap(-1, max(1, 4 * size))  # goes back to the system when freed; malloc might keep it
        values = self._by_cell(np.frombuffer(memory, np.float32, size), int(ends[-1]))
        present = np.empty((ends[-1], len(self.readouts)), np.uint8)

        def read(batch: np.ndarray, end: int) -> tuple[int, int]:
            here = slice(end - len(batch), end)
            found, present[here], halved = self._read(rows, batch, start)
            for cell, vectors in zip(values, found, strict=True):
                cell[here] = vectors
            return len(batch), halved

        return Shard(values, present, [pool.submit(read, *each) for each in zip(batches, ends, strict=True)])

    def _by_cell(self, flat: Any, rows: int) -> list[Any]:
        """(row, width) of every cell, views into one array or tensor."""
        ends = np.cumsum([rows * width for width in self._widths])
        return [flat[end - rows * w : end].reshape(rows, w) for end, w in zip(ends, self._widths, strict=True)]

    def _finished(self, shard: Shard, bar: tqdm) -> tuple[dict[str, np.ndarray], int]:
        """The tensors of a shard once its batches have run, and how many of these were halved."""
        halved = 0
        for future in shard.futures:
            count, more = future.result()
            halved += more
            bar.update(count)
        named = {name_of(layer, readout.name): shard.values[i] for i, (layer, readout, _) in enumerate(self._cells)}
        return named | {"present": shard.present}, halved

    def _read(self, rows: Rows, batch: np.ndarray, start: int) -> tuple[list[np.ndarray], np.ndarray, int]:
        """Vectors (row, width) of every cell and present (row, readout) of a batch; halved where it does not fit
        in memory."""
        try:
            return *self._run(rows, batch, start), 0
        except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not _out_of_memory(error):
                raise
        if len(batch) == 1:
            long = f"{rows.lengths[batch[0]]:,} tokens do not fit in memory"
            raise InputError(f"row {start + batch[0]:,}", long, "Pass --max-length, or --long-rows drop with it")
        if self.encoder.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(batch) // 2
        parts = [self._read(rows, half, start) for half in (batch[:middle], batch[middle:])]
        values, present, halved = zip(*parts, strict=True)
        return [np.concatenate(cell) for cell in zip(*values, strict=True)], np.concatenate(present), 1 + sum(halved)

    def _run(self, rows: Rows, chosen: np.ndarray, start: int) -> tuple[list[np.ndarray], np.ndarray]:
        encoder, now = self.encoder, self._running
        now.batch, now.layers = encoder.batch([rows[i] for i in chosen]), []
        flat = torch.empty(len(chosen) * sum(self._widths), device=encoder.device)
        now.vectors = self._by_cell(flat, len(chosen))
        present = torch.stack([readout.present(now.batch) for readout in self.readouts], 1).cpu().numpy()
        with suppress(_Enough):
            encoder.forward(now.batch)
        if now.layers != self.layers:
            raise RuntimeError(f"{type(encoder.model).__name__} ran layers {now.layers}, expected {self.layers}")
        values = self._by_cell(flat.cpu().numpy(), len(chosen))
        for (layer, readout, number), cell in zip(self._cells, values, strict=True):  # lower layers first
            absent = ~present[:, number]
            cell[absent] = np.nan
            bad = chosen[~np.isfinite(cell).all(1) & ~absent]
            if len(bad):
                self._refuse_non_finite(layer, start + int(bad.min()), readout)
        return values, present

    def _keep(self, layer: int, hidden: Tensor) -> None:
        """Read all readouts of a layer of the batch that this thread runs."""
        encoder, now = self.encoder, self._running
        now.layers.append(layer)
        after = encoder.norm(hidden) if layer == self.last and encoder.norm and self._normed else hidden
        for (at, readout, _), vectors in zip(self._cells, now.vectors, strict=True):
            if 0 <= at - layer < readout.depth:
                part = vectors.unflatten(1, (readout.depth, -1))[:, layer - at - 1]  # the cell's own layer is the last
                part[:] = readout.read(after if isinstance(readout, Normed) else hidden, now.batch)
        if self._stopped.is_set() or layer == self.layers[-1] != self.last:
            raise _Enough  # nobody asked for the layers above

    @property
    def _normed(self) -> bool:
        return any(isinstance(readout, Normed) for readout in self.readouts)

    def _refuse_non_finite(self, layer: int, row: int, readout: Readout) -> None:
        encoder = self.encoder
        module = module_name(encoder.points[layer]) if layer else "the embeddings"
        overflow = f"{_plain(encoder.dtype)} may overflow: use --dtype float32"
        raise InputError(
            f"layer {layer}",
            f"non-finite hidden states from row {row:,} ({module}, read as {readout.name})",
            "The weights hold NaN, inf or huge numbers: use others" if encoder.dtype == torch.float32 else overflow,
        )

    # ----------------------------------------------------------------------------------------------- what it depends on

    def _made_of(self, texts: Sequence[str]) -> dict[str, Any]:
        """Everything the vectors depend on."""
        total = sha256()
        for i in range(len(texts)):
            coded = texts[i].encode("utf-8", "surrogatepass")
            total.update(len(coded).to_bytes(8, "little") + coded)
        source = self._source()
        same = ("digest", "control", "seed", "device", "dtype", "attention", "max_length")
        return {name: source[name] for name in same} | {
            "texts": {"count": len(texts), "digest": total.hexdigest()},
            "layers": self.layers,
            "readouts": [[readout.name, _code(readout)] for readout in self.readouts],  # "present" is in their order
            "code": _own_code(),
            "plan": [
                f"{self.max_tokens_per_batch} tokens" + (" of one length" if self.leaks else ""),
                f"windows of {WINDOW}",
                f"shards of {SHARD} bytes",
            ],
            "versions": source["versions"],
        }

    def _source(self) -> dict[str, Any]:
        encoder = self.encoder
        packages = ("torch", "transformers", "tokenizers", "numpy")
        device = encoder.device.type
        return {
            "model": encoder.name,
            "control": "none" if encoder.untrained is None else "untrained",
            "seed": encoder.untrained,
            "digest": encoder.description.digest,
            "revision": encoder.description.revision,
            "architecture": type(encoder.model).__name__,
            "device": f"cuda ({torch.cuda.get_device_name()})" if device == "cuda" else device,
            "dtype": _plain(encoder.dtype),
            "attention": getattr(encoder.model.config, "_attn_implementation", None),
            "max_length": self.max_length,
            "max_tokens_per_batch": self.max_tokens_per_batch,
            "batched": "by equal length" if self.leaks else "by length, padded",
            "self_check": encoder.checked,
            "versions": {p: importlib.metadata.version(p) for p in packages} | {"python": platform.python_version()},
        }


@dataclass(frozen=True, eq=False)
class Shard:
    """Vectors (row, width) of every cell and present (row, readout) of a shard, filled by its batches as they run."""

    values: list[np.ndarray]
    present: np.ndarray
    futures: list[Future[tuple[int, int]]]


class _Enough(Exception):
    """The highest layer asked for has been read, or nobody waits for it any more."""


def _out_of_memory(error: BaseException) -> bool:
    told = isinstance(error, MemoryError | torch.OutOfMemoryError)
    words = "can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED"
    return told or any(some in str(error) for some in words)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def _own_code() -> str:
    """A digest of what reads hidden states here: another version of it may read them otherwise."""
    encoders = [f"encoders/{name}.py" for name in ("adapters", "encoder", "loading", "tap", "tokenizing")]
    files = [*encoders, "extraction/extractor.py", "extraction/readouts.py"]
    return sha256(b"".join((Path(__file__).parents[1] / file).read_bytes() for file in files)).hexdigest()


def _code(readout: Readout) -> str:
    """What a readout of others does: the files that its classes stand in, and what its constructor left in it.

    Where a class has no file, as one that was typed in, or holds what cannot be told, it is another every time. Empty
    for a readout of the house: its code is that of `_own_code`, and its name tells everything else.
    """
    import joblib

    total, own = sha256(), True
    for part in within(readout):
        kinds = [
            kind
            for kind in type(part).__mro__
            if kind.__module__ not in ("abc", "builtins", "clsprobe.probes.extraction.readouts")
        ]
        own = own and not kinds
        try:
            for kind in kinds:
                total.update(Path(inspect.getfile(kind)).read_bytes())
            total.update(joblib.hash(vars(part)).encode() if kinds else b"")
        except Exception:  # whatever pickling says of an object that was not made for it
            total.update(secrets.token_bytes())
    return "" if own else total.hexdigest()
