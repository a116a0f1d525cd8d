"""Hidden states of every layer, reduced to readouts while the encoder runs.

1. `plan_batches` sorts texts by length and fills batches to a token budget: a pure function of the lengths. Where
   padding leaks, a batch holds texts of one length only. Pairs and single texts have separate batches.
2. `Extractor` processes texts in windows: while one window runs, the next is tokenized. The batches of a window form
   shards of about `SHARD` bytes; while one shard is read, the previous one is written. All readouts are read inside
   hooks (`probes.encoders.tap`): activations are never kept, and at most two windows and four shards are in memory.
3. On a CPU, batches run in parallel, each on one thread: threads that share a small product wait for each other. The
   bits of a vector then depend on its batch alone, not on the number of cores. Where a model keeps state between passes
   (BigBird) batches run one after another, on all threads, which may change the last bits.
4. Shards in a cache are not computed again: this is how extraction resumes, and how processes share a cache.
5. A batch that does not fit in memory is halved, down to one row.
"""

from __future__ import annotations

import importlib.metadata
import platform
import secrets
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.layers import check_layers, parse_layers
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.encoders.preview import check_room
from clsprobe.probes.encoders.tap import evaluating, tap
from clsprobe.probes.encoders.tokenizing import Rows
from clsprobe.probes.errors import InputError, format_rows, printable
from clsprobe.probes.extraction.reader import LayerReader, Shard, dtype_name, guard_plugin
from clsprobe.probes.extraction.readouts import (
    DEFAULT,
    Readout,
    check_readouts,
    parse_readouts,
    split_names,
    walk_readouts,
)
from clsprobe.probes.extraction.states import States
from clsprobe.probes.extraction.store import Memory, Store
from clsprobe.probes.files import read_content
from clsprobe.probes.registry import digest_source
from clsprobe.probes.tasks.memory import as_texts

if TYPE_CHECKING:
    import pandas as pd

WINDOW = 4_096  # texts that are tokenized and sorted together
SHARD = 32 << 20  # bytes of vectors in a file
BUDGET = {"cpu": 1_024, "cuda": 32_768, "mps": 8_192}  # tokens in a batch: on a CPU, those that fit its caches
LARGEST_DEVIATION = 0.05  # by half precision, as a share of a cell's spread, without a warning
COMPARED_TEXTS = 32  # on which half precision is compared with float32


def plan_batches(
    lengths: np.ndarray, max_tokens: int, *, equal: bool = False, max_rows: int | None = None
) -> list[np.ndarray]:
    """Batches of row indices: longest texts first, each batch filled until rows x longest reaches `max_tokens`.

    lengths: (text,) tokens. equal: each batch holds texts of one length, so that nothing is padded. max_rows: the
    largest batch. Ties keep the order of the texts. A text longer than `max_tokens` has a batch of its own.
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


class LongTexts(InputError):
    """The error for texts with more than `limit` tokens. lengths: (text,) of all texts; 0 stands for some short one."""

    def __init__(self, lengths: np.ndarray, limit: int) -> None:
        self.lengths, self.limit = lengths, limit
        long = np.flatnonzero(lengths > limit)
        what = f"{len(long):,} texts exceed {limit} tokens (longest {lengths.max():,}; rows {format_rows(long, 5)})"
        super().__init__("--long-rows error", what, "Pass --long-rows truncate or drop")


class Extractor:
    """Texts in, `States` out.

    readouts: names or Readouts, one Readout, or one text of names; by default those of `DEFAULT` that the model has.
    layers: "all", layer numbers (0 = embedding output), one number, or a text for `parse_layers`.
    max_tokens_per_batch: padded tokens in a batch, by default `BUDGET` of the device. max_length: the longest input in
    tokens, special ones included, at most what the model can take; by default what its files say.
    long_rows: "error" refuses longer texts, "truncate" truncates them, keeping the special tokens. cache: a folder
    (`store.make_cache_folder`) that stores the vectors; without one they stay in memory. Where padding leaks
    (`self_check`), texts are batched by equal length. Raises InputError for a layer or readout that the model lacks.
    """

    def __init__(
        self,
        encoder: Encoder,
        readouts: str | Readout | Sequence[str | Readout] = DEFAULT,
        *,
        layers: str | int | Sequence[int] = "all",
        max_tokens_per_batch: int | None = None,
        max_length: int | None = None,
        long_rows: Literal["truncate", "error"] = "error",
        cache: Path | None = None,
    ) -> None:
        self.encoder = encoder
        if isinstance(layers, str):
            layers = parse_layers(layers, encoder.description)
        self.last = len(encoder.points) - 1
        self.layers = check_layers([layers] if isinstance(layers, int | np.integer) else layers, self.last)
        self.max_tokens_per_batch = max_tokens_per_batch or BUDGET[encoder.device.type]
        self.max_length = encoder.description.limit(max_length)
        self.long_rows = long_rows
        self.cache = cache
        added = encoder.tokenize([""])[0].ids
        check_room(encoder.description, self.max_length, len(added))
        missing = {name for name, token in (("cls", encoder.cls_id), ("sep", encoder.sep_id)) if token not in added}
        names = split_names(readouts) if isinstance(readouts, str) else readouts
        names = [names] if isinstance(names, Readout) else names
        self.readouts = parse_readouts(name for name in names if tuple(names) != DEFAULT or name not in missing)
        check_readouts(
            self.readouts,
            self.layers,
            last=self.last,
            missing=missing,
            has_norm=encoder.norm is not None,
            model=encoder.name,
        )
        self.readouts = [self._bind(readout) for readout in self.readouts]
        self.leaks = bool(encoder.adapter.leaks or encoder.checked.get("leaks"))
        self._reader = LayerReader(encoder, self.readouts, self.layers)
        self._row_bytes = sum(self._reader.widths) * 4

    def _bind(self, readout: Readout) -> Readout:
        with guard_plugin(readout):
            return readout.bind(self.encoder)

    def __call__(self, texts: Sequence[str]) -> States:
        """Encode every text once, except those whose vectors are cached.

        Raises InputError for texts that are too long, vectors that are not finite, a text that does not fit in memory,
        and a full disk.
        """
        texts = as_texts(texts)
        store: Store | Memory = Memory()
        made_of = {} if self.cache is None else self._made_of(texts)
        is_new = self.cache is None or not Store.locate(self.cache, made_of).exists()
        if is_new:
            self._check_lengths(texts)  # before a folder is made
        if self.cache is not None:
            store = Store(self.cache, made_of, name=self.encoder.name, size=self._row_bytes * len(texts))
        locations = store.rows
        if locations is None or not all(store.has(number) for number in np.unique(locations.shard)):
            if not is_new:
                self._check_lengths(texts)
            locations = self._fill(store, texts)
        if self.long_rows == "error" and (locations.tokens > self.max_length).any():
            self._refuse_long(locations.tokens.to_numpy())
        numbers = range(int(locations.shard.max()) + 1 if len(locations) else 0)
        return States(
            texts,
            tuple(self.layers),
            tuple(readout.name for readout in self.readouts),
            self.encoder.description.dim,
            [store.shard(number) for number in numbers],
            locations,
            self.max_length,
            _describe_source(self)
            | self._collect_facts(store)
            | {"notes": self.encoder.notes_on(texts, locations.ids.to_numpy())},
            self.last,
        )

    # ------------------------------------------------------------------------------------------------------ all texts

    def _fill(self, store: Store | Memory, texts: Sequence[str]) -> pd.DataFrame:
        """Compute the missing shards and wait for those of other processes. Returns the location of every text."""
        facts: dict[str, Any] = {}
        if self.encoder.dtype != torch.float32 and len(texts):
            facts["deviation"] = self._measure_deviation([texts[i] for i in range(min(COMPARED_TEXTS, len(texts)))])
        label = "untrained" if self.encoder.untrained is not None else "encoding"
        with (
            tqdm(total=len(texts), desc=printable(label), unit=" texts", delay=1, disable=None, leave=False) as bar,
            evaluating(self.encoder.model),
            tap(self.encoder, self._reader.read_layer, self.layers),
        ):
            try:
                while waiting := self._run_texts(store, texts, facts, bar):
                    while not all(store.has(number) or store.is_free(number) for number in waiting):
                        time.sleep(0.2)
                    bar.reset()
            finally:
                store.close()
        locations = store.rows
        assert locations is not None
        return locations

    def _run_texts(self, store: Store | Memory, texts: Sequence[str], facts: dict[str, Any], bar: tqdm) -> list[int]:
        """Go through all texts once. Returns the shards that another process is computing."""
        import pandas as pd

        tables, waiting, number = [], [], 0
        unknown = np.zeros(2, np.int64)  # unknown tokens, content tokens
        started: list[tuple[int, Shard]] = []  # in order; two at most, so that no core waits for a shard to end
        writes: list[Future[None]] = []

        def write(remaining: int) -> None:
            while len(started) > remaining:
                first, (tensors, halved) = started[0][0], self._reader.finish_shard(started[0][1], bar)
                for future in writes:
                    future.result()  # raises its error, and lets at most one shard wait to be written
                writes[:] = [writer.submit(store.add, first, tensors, halved)]
                del started[0]

        with ThreadPoolExecutor(1) as writer, self._reader.start_workers() as pool:
            for start, rows in self._tokenize_windows(texts):
                unknown += _count_unknown(self.encoder, rows)
                locations = {name: np.empty(len(rows), np.int32) for name in ("shard", "at")}
                for batches in self._plan_shards(rows):
                    indices = np.concatenate(batches)
                    locations["shard"][indices], locations["at"][indices] = number, np.arange(len(indices))
                    if store.has(number):
                        bar.update(len(indices))
                    elif store.begin(number):
                        started.append((number, self._reader.start_shard(pool, rows, batches, start)))
                        write(1)
                    else:
                        waiting.append(number)
                    number += 1
                tables.append(pd.DataFrame(locations | {"tokens": rows.full_lengths, "ids": rows.digests()}))
            write(0)
            for future in writes:
                future.result()
        if not waiting:
            empty = pd.DataFrame({"shard": [], "at": [], "tokens": [], "ids": []}, dtype=np.int64)
            table = pd.concat(tables, ignore_index=True) if tables else empty
            store.finish(table, facts | {"unknown": unknown.tolist()})
        return waiting

    def _tokenize_windows(self, texts: Sequence[str]) -> Iterator[tuple[int, Rows]]:
        """The index of every window's first text, and its rows; the next window is tokenized meanwhile."""

        def tokenize(start: int) -> Rows:
            window = [texts[i] for i in range(start, min(start + WINDOW, len(texts)))]
            return self.encoder.tokenize(window, self.max_length)

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(tokenize, 0)
            for start in range(0, len(texts), WINDOW):
                rows = future.result()
                if start + WINDOW < len(texts):
                    future = pool.submit(tokenize, start + WINDOW)
                yield start, rows

    def _plan_shards(self, rows: Rows) -> Iterator[list[np.ndarray]]:
        """The batches of every shard of a window."""
        max_rows = max(1, SHARD // self._row_bytes)
        shard: list[np.ndarray] = []
        for batch in self._plan_rows(rows, self.max_tokens_per_batch, max_rows):
            if shard and sum(map(len, shard)) + len(batch) > max_rows:
                yield shard
                shard = []
            shard.append(batch)
        if shard:
            yield shard

    def _plan_rows(self, rows: Rows, max_tokens: int, max_rows: int | None = None) -> Iterator[np.ndarray]:
        """The batches of rows, single texts first: some models distinguish token types of 0 from none."""
        for paired in (False, True):
            alike = np.flatnonzero(rows.paired == paired)
            for batch in plan_batches(rows.lengths[alike], max_tokens, equal=self.leaks, max_rows=max_rows):
                yield alike[batch]

    def _check_lengths(self, texts: Sequence[str]) -> None:
        """Refuse texts that are too long before any is run. A text has no more tokens than bytes."""
        if self.long_rows != "error":
            return
        long = [i for i in range(len(texts)) if len(texts[i].encode("utf-8", "surrogatepass")) > self.max_length - 2]
        lengths = np.zeros(len(texts), np.int64)
        for start in range(0, len(long), WINDOW):
            window = long[start : start + WINDOW]
            lengths[window] = self.encoder.tokenize([texts[i] for i in window]).full_lengths
        if (lengths > self.max_length).any():
            self._refuse_long(lengths)

    def _refuse_long(self, lengths: np.ndarray) -> None:
        raise LongTexts(lengths, self.max_length)

    def _collect_facts(self, store: Store | Memory) -> dict[str, Any]:
        """Facts about the encoding, for `States.source`. Warns of those that affect the vectors."""
        unknown, content = store.facts["unknown"]
        moved = {cell: share for cell, share in store.facts.get("deviation", {}).items() if share > LARGEST_DEVIATION}
        if unknown > content / 20:
            warnings.warn(
                f"{printable(self.encoder.name)}: {unknown / content:.0%} of the tokens are unknown to it", stacklevel=3
            )
        if moved:
            worst = max(moved, key=moved.__getitem__)
            warnings.warn(
                f"{dtype_name(self.encoder.dtype)} moves {len(moved)} of {len(self._reader.cells)} cells by more than "
                f"{LARGEST_DEVIATION:.0%} of their spread over the texts (most, {worst}: {moved[worst]:.0%}); "
                "read these in float32",
                stacklevel=3,
            )
        if isinstance(store, Store) and store.damaged:
            names = ", ".join(store.damaged[:3])
            names += f" and {len(store.damaged) - 3} more files" if len(store.damaged) > 3 else ""
            what = f"damaged or missing, and made again: {names}; what was there is kept as *.corrupt"
            warnings.warn(printable(f"{store.folder}: {what}"), stacklevel=3)
        return {"unknown tokens": unknown, "batches halved": store.halved, "moved by half precision": moved}

    def _measure_deviation(self, texts: list[str]) -> dict[str, float]:
        """The root mean square error of half precision per cell, over the cell's standard deviation over texts."""
        encoder, rows = self.encoder, self.encoder.tokenize(texts, self.max_length)
        exact = load_encoder(
            encoder.description, device=encoder.device.type, dtype="float32", untrained=encoder.untrained
        )
        reference = Extractor(exact, self.readouts, layers=self.layers, max_length=self.max_length)
        batches = list(self._plan_rows(rows, BUDGET["cpu"]))
        cells = []
        for extractor in (self, reference):
            encoder = extractor.encoder
            with evaluating(encoder.model), tap(encoder, extractor._reader.read_layer, extractor.layers):
                vectors = [extractor._reader.read_batch(rows, batch, 0)[0] for batch in batches]
            cells.append([np.concatenate(parts).astype(np.float64) for parts in zip(*vectors, strict=True)])
        deviations = {}
        for (layer, readout, _), half, full in zip(self._reader.cells, *cells, strict=True):
            present = ~np.isnan(full).any(1)
            spread = np.sqrt(full[present].var(0).mean()) if present.any() else 0.0
            if spread > 1e-6 * np.abs(full[present]).max(initial=0):  # layer-0 [CLS] is one vector for every text
                error = np.sqrt(((half - full)[present] ** 2).mean())
                deviations[f"layer {layer} {readout.name}"] = round(float(error / spread), 4)
        return deviations

    # ------------------------------------------------------------------------------------------------------ provenance

    def _made_of(self, texts: Sequence[str]) -> dict[str, Any]:
        """Everything that the vectors depend on, of which the cache key is a digest."""
        digest = sha256()
        for i in range(len(texts)):
            encoded = texts[i].encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        source = _describe_source(self)
        names = ("digest", "control", "seed", "device", "dtype", "attention", "max_length", "prompt")
        return {name: source[name] for name in names} | {
            "texts": {"count": len(texts), "digest": digest.hexdigest()},
            "layers": self.layers,
            "readouts": [[readout.name, _digest_code(readout)] for readout in self.readouts],  # the order of "present"
            "code": _digest_own_code(),
            "plan": [
                f"{self.max_tokens_per_batch} tokens" + (" of one length" if self.leaks else ""),
                f"windows of {WINDOW}",
                f"shards of {SHARD} bytes",
            ],
            "versions": source["versions"],
        }


def _count_unknown(encoder: Encoder, rows: Rows) -> tuple[int, int]:
    """The numbers of unknown tokens and content tokens. Raises InputError where most are unknown."""
    unk_id = getattr(encoder.tokenizer, "unk_token_id", None)
    content = int((~rows.special).sum())
    unknown = int(((rows.ids == unk_id) & ~rows.special).sum()) if unk_id is not None else 0
    if unknown > content / 2:
        raise InputError(
            encoder.name,
            f"{unknown / content:.0%} of the tokens are unknown to it",
            "Use a model of this language",
        )
    return unknown, content


def _describe_source(extractor: Extractor) -> dict[str, Any]:
    """What `States.source` says of the encoder and of how it was run."""
    encoder = extractor.encoder
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
        "dtype": dtype_name(encoder.dtype),
        "attention": getattr(encoder.model.config, "_attn_implementation", None),
        "prompt": encoder.description.prompt,
        "max_length": extractor.max_length,
        "max_tokens_per_batch": extractor.max_tokens_per_batch,
        "batched": "by equal length" if extractor.leaks else "by length, padded",
        "self_check": encoder.checked,
        "versions": {p: importlib.metadata.version(p) for p in packages} | {"python": platform.python_version()},
    }


@cache
def _digest_own_code() -> str:
    """A digest of the modules that read hidden states: another version may read them differently."""
    rooms = {
        "encoders": ("adapters", "encoder", "loading", "sentence_layout", "tap", "tokenizer_files", "tokenizing"),
        "extraction": ("extractor", "pooled", "reader", "readouts"),
    }
    files = [f"{room}/{name}.py" for room, names in rooms.items() for name in names]
    return sha256(b"".join(read_content(Path(__file__).parents[1] / file) for file in files)).hexdigest()


def _digest_code(readout: Readout) -> str:
    """A digest of a custom readout: the source of its classes (`digest_source`), what they were compiled to, which may
    be of an older source or of a cell that was run before, and its attributes.

    Random where a class has no file, such as one typed at a prompt, or an attribute cannot be hashed. Empty for a
    readout of this package: `_digest_own_code` covers its code, and its name its parameters.
    """
    import joblib

    digest, is_custom = sha256(), False
    for part in walk_readouts(readout):
        modules = dict.fromkeys(base.__module__ for base in type(part).__mro__)
        custom = [name for name in modules if name not in ("abc", "builtins", "clsprobe.probes.extraction.readouts")]
        is_custom = is_custom or bool(custom)
        try:
            for name in custom:
                digest.update(digest_source(name).encode())
            for base in type(part).__mro__:
                for name, function in sorted(vars(base).items() if base.__module__ in custom else ()):
                    if code := getattr(getattr(function, "__func__", function), "__code__", None):
                        digest.update(f"{name} {_describe_compiled(code)}".encode())
            digest.update(joblib.hash(vars(part)).encode() if custom else b"")
        except Exception:  # pickling may raise anything
            digest.update(secrets.token_bytes())
    return digest.hexdigest() if is_custom else ""


def _describe_compiled(code: CodeType) -> list[Any]:
    """What a function was compiled to, without its place in a file."""
    constants = [
        _describe_compiled(constant) if isinstance(constant, CodeType)
        else sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant)
        for constant in code.co_consts
    ]  # fmt: skip
    return [code.co_code.hex(), code.co_names, code.co_varnames, constants]
