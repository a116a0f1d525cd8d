"""Vectors of texts: where they lie, in memory or on disk, and how they are given out.

    CACHE/KEY/manifest.json              what the key was made of; rows, bytes and SHA-256 of every shard
    CACHE/KEY/rows.parquet               of every text its shard, its row there, its length in tokens; written last
    CACHE/KEY/shard-00000.safetensors    a tensor (row, dim) for each layer and readout ("layer.07/cls"), and "present"

1. `Store` is one such folder. The key is a digest of everything the vectors depend on, so a folder is never wrong, only
   unfinished. A shard is written whole (probes.write), then entered in the manifest: a shard without an entry is
   nothing. Shards are written in any order, by any number of processes; `Lock`s keep them from doing the same work.
2. `verify` reads every file against its digest whenever a folder is opened, sets aside what differs, and forgets it: it
   is made again. Nothing is unpickled, and nothing else can have changed unseen.
3. `Memory` holds shards without a disk.
4. `States` gives out cells, (text, dim) for a layer and a readout, reading no more of the shards than that.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.errors import InputError, printable
from probes.readout import Normed
from probes.write import Lock, make_folder, replacing, set_aside, touch, write_parquet, write_text

if TYPE_CHECKING:
    import pandas as pd

Tensors = Mapping[str, np.ndarray]

ROWS = "rows.parquet"
FORMAT = 1  # of the files; another number is another key
LARGEST_CACHE = 50e9  # bytes: what has not been used for longest leaves before more is added
IN_USE = 3600.0  # seconds in which a folder that was used is left alone


def cache_folder(path: Path | str | None = None) -> Path:
    """`path`, else $CLSPROBE_HOME, else $XDG_CACHE_HOME/clsprobe, else ~/.cache/clsprobe."""
    if path is not None:
        return Path(path).expanduser()
    if home := os.environ.get("CLSPROBE_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "clsprobe"


def name_of(layer: int, readout: str) -> str:
    """The tensor of a cell in a shard."""
    return f"layer.{layer:02d}/{readout}"


class Memory:
    """Shards of this process, in a dictionary; what `Store` does, without a disk."""

    def __init__(self) -> None:
        self.kept: dict[int, Tensors] = {}
        self.facts: dict[str, Any] = {}
        self.rows: pd.DataFrame | None = None
        self.halved = 0

    def has(self, number: int) -> bool:
        """Whether a shard is there."""
        return number in self.kept

    def begin(self, number: int) -> bool:
        """Whether it is ours to make: there is nobody else."""
        return True

    def free(self, number: int) -> bool:
        """Whether nobody is at work on it."""
        return True

    def close(self) -> None:
        """Nothing to give up."""

    def add(self, number: int, tensors: Tensors, halved: int) -> None:
        """Keep a shard. halved: batches halved for want of memory."""
        self.kept[number] = tensors
        self.halved += halved

    def shard(self, number: int) -> Tensors:
        """The tensors of a shard."""
        return self.kept[number]

    def finish(self, rows: pd.DataFrame, facts: Mapping[str, Any]) -> None:
        """Keep what is known once all shards are there."""
        self.rows, self.facts = rows, dict(facts)


class Store:
    """The folder of one key in a cache.

    made_of: everything the vectors depend on, plain JSON. name: what `clsprobe cache ls` calls it. bytes: about how
    many it will hold. Raises InputError where the folder cannot be made or the disk has no room.
    """

    def __init__(self, cache: Path, made_of: Mapping[str, Any], *, name: str, size: float) -> None:
        self.cache, self.made_of, self.name = cache, dict(made_of) | {"format": FORMAT}, name
        key = sha256(json.dumps(self.made_of, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = cache / key
        self._locks: dict[int, Lock] = {}
        self.damaged = verify(self.folder)
        self._manifest = read_manifest(self.folder) or {}
        self._room(size)
        try:
            make_folder(cache, private=True)
            make_folder(self.folder, private=True)
        except OSError as error:
            raise InputError(f"--cache {cache}", f"{error.strerror}", "Name another folder") from None
        if not self._manifest:
            self._enter({})

    @property
    def rows(self) -> pd.DataFrame | None:
        """One row a text, columns shard, at, tokens, ids; None until every shard has been written once."""
        import pandas as pd

        return pd.read_parquet(self.folder / ROWS) if ROWS in self._entries() else None

    @property
    def facts(self) -> dict[str, Any]:
        """What was known when it was finished."""
        return self._manifest.get("facts", {})

    @property
    def halved(self) -> int:
        """How many batches were halved for want of memory."""
        return sum(entry.get("halved", 0) for entry in self._entries().values())

    def has(self, number: int) -> bool:
        """Whether a shard is there; other processes add some too."""
        if _name(number) not in self._entries():
            self._manifest = read_manifest(self.folder) or self._manifest
        return _name(number) in self._entries()

    def begin(self, number: int) -> bool:
        """Whether a shard is ours to make, until `add` or `close`; False while another process is at work on it."""
        lock = self._locks.setdefault(number, Lock(self.folder / f"{_name(number)}.lock"))
        if lock.take() and not self.has(number):
            return True
        lock.release()
        return False

    def free(self, number: int) -> bool:
        """Whether nobody is at work on a shard any more."""
        mine = self.begin(number)
        self._locks[number].release()
        return mine

    def close(self) -> None:
        """Give up every shard that was begun."""
        for lock in self._locks.values():
            lock.release()

    def add(self, number: int, tensors: Tensors, halved: int) -> None:
        """Write a shard, then enter it in the manifest. halved: batches halved for want of memory.

        Raises InputError where the disk is full.
        """
        path, total, size = self.folder / _name(number), sha256(), 0
        try:
            with replacing(path) as file:
                for part in _safetensors(tensors):
                    total.update(part)
                    size += file.write(part)
            entry = {"rows": len(tensors["present"]), "bytes": size, "sha256": total.hexdigest()}
            self._enter({path.name: entry | ({"halved": halved} if halved else {})})
            self._locks[number].release()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            size = sum(tensor.nbytes for tensor in tensors.values())
            raise _full(self.cache, size, f"{len(self._entries())} shards are kept") from None

    def shard(self, number: int) -> Tensors:
        """The tensors of a shard, each read when it is asked for."""
        return _Shard(self.folder / _name(number))

    def finish(self, rows: pd.DataFrame, facts: Mapping[str, Any]) -> None:
        """Write where every text is; the folder is whole from now on."""
        write_parquet(self.folder / ROWS, rows)
        size = (self.folder / ROWS).stat().st_size
        self._enter({ROWS: {"bytes": size, "sha256": _digest(self.folder / ROWS)}}, facts=dict(facts))

    def _entries(self) -> dict[str, dict[str, Any]]:
        return self._manifest.get("shards", {})

    def _enter(self, new: Mapping[str, Any], **more: Any) -> None:
        described = {"name": self.name, "made_of": self.made_of, "facts": {}} | more
        self._manifest = _describe(self.folder, lambda before: {**before, **new}, **described)

    def _room(self, size: float) -> None:
        """Make room in the cache, and see that the disk has it."""
        size -= sum(entry["bytes"] for entry in self._entries().values())
        if size <= 0:
            if self._manifest:
                touch(self.folder / "manifest.json")
            return
        others = sorted((one for one in listing(self.cache) if one.folder != self.folder), key=lambda one: one.used)
        total = size + sum(one.bytes for one in others)
        for one in others:
            if total <= LARGEST_CACHE:
                break
            if time.time() - one.used > IN_USE:
                purge(one.folder)
                total -= one.bytes
        there = next(folder for folder in (self.cache.absolute(), *self.cache.absolute().parents) if folder.exists())
        if size > shutil.disk_usage(there).free:
            raise _full(self.cache, size, "Nothing was begun")


def _full(cache: Path, size: float, kept: str) -> InputError:
    there = next(folder for folder in (cache.absolute(), *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    what = f"disk full writing the cache (needs {size / 1e9:.2g} GB, {free / 1e9:.2g} GB free). {kept}"
    return InputError(f"--cache {cache}", what, "Make room (clsprobe cache purge), and run the same command to go on")


def _name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            total = sha256()
            while part := file.read(1 << 20):
                total.update(part)
        return total.hexdigest()
    except OSError:  # gone, or not to be read: as good as changed
        return None


def _safetensors(tensors: Tensors) -> Iterator[bytes | memoryview]:
    """The parts of a safetensors file (header, then the data as it lies in memory): its library copies it all twice."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        kind = {"float32": "F32", "uint8": "U8"}[tensor.dtype.name]
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    coded = json.dumps(header).encode()
    coded += b" " * (-len(coded) % 8)
    yield len(coded).to_bytes(8, "little") + coded
    for tensor in tensors.values():
        yield tensor.reshape(-1).view(np.uint8).data


class _Shard(Mapping[str, np.ndarray]):
    """A shard file as a mapping. It is opened for every tensor: held open, its pages would count as our memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, name: str) -> np.ndarray:
        from safetensors import safe_open

        with safe_open(self.path, framework="numpy") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        from safetensors import safe_open

        with safe_open(self.path, framework="numpy") as file:
            return iter(file.keys())

    def __len__(self) -> int:
        return len(list(iter(self)))


# ------------------------------------------------------------------------------------------------- a cache as a whole


def _describe(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Write the manifest anew: its entries changed, with what other processes have entered meanwhile."""
    lock = Lock(folder / "manifest.lock")
    while not lock.take():
        time.sleep(0.01)
    try:
        before = read_manifest(folder) or {}
        manifest = {**more, **before, **{name: value for name, value in more.items() if value}}
        manifest["shards"] = dict(sorted(change(before.get("shards", {})).items()))
        write_text(folder / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))
        return manifest
    finally:
        lock.release()


@dataclass(frozen=True)
class Listed:
    """One key of a cache. used: seconds since the epoch. whole: every text is there."""

    folder: Path
    manifest: dict[str, Any]
    bytes: int
    used: float
    whole: bool

    def told(self) -> str:
        """One line: key, size, age, and what the key was made of, so that two of them can be told apart."""
        of = self.manifest["made_of"]
        days = (time.time() - self.used) / 86400
        weights = of.get("control", "") if of.get("seed") is None else f"untrained, seed {of['seed']}"
        parts = [
            self.folder.name,
            f"{self.bytes / 1e6:,.1f} MB",
            f"{days:.0f} days" if days >= 1 else "today",
            "whole" if self.whole else "unfinished",
            self.manifest.get("name", "") + ("" if weights in ("", "none") else f" ({weights})"),
            f"{of.get('texts', {}).get('count', 0):,} texts",
            f"{len(of.get('layers', ()))} layers x {len(of.get('readouts', ()))} readouts",
            f"{of.get('dtype')} on {of.get('device')}",
            " ".join(f"{name} {version}" for name, version in of.get("versions", {}).items()),
        ]
        return "  ".join(map(printable, parts))


def listing(cache: Path) -> list[Listed]:
    """Every key of a cache, the last used first."""
    found = []
    for path in sorted(cache.glob("*/manifest.json")):
        if manifest := read_manifest(path.parent):
            size = sum(entry["bytes"] for entry in manifest["shards"].values())
            found.append(Listed(path.parent, manifest, size, path.stat().st_mtime, ROWS in manifest["shards"]))
    return sorted(found, key=lambda one: -one.used)


def verify(folder: Path) -> list[str]:
    """Read every file of a key against its digest; set aside those that differ. Returns their names."""
    manifest = read_manifest(folder) or {"shards": {}}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # hashing runs beside itself
        digests = list(pool.map(lambda name: _digest(folder / name), manifest["shards"]))
    wanted = manifest["shards"].items()
    bad = [name for (name, entry), digest in zip(wanted, digests, strict=True) if digest != entry["sha256"]]
    for name in bad:
        if (folder / name).exists():
            set_aside(folder / name, ".corrupt")
    if bad:
        _describe(folder, lambda before: {name: entry for name, entry in before.items() if name not in bad})
    return bad


def purge(folder: Path) -> bool:
    """Remove a key, unless a process is at work on it; the manifest first, so that what a crash leaves is nothing."""
    for path in folder.glob("*.lock"):
        if not (lock := Lock(path)).take():
            return False
        lock.release()
    (folder / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    return True


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a key; None where there is none that can be read."""
    try:
        content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(content, dict) and isinstance(content.get("shards"), dict) and "made_of" in content
    return content if known else None


# -------------------------------------------------------------------------------------------------------------- States


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
    def cells(self) -> list[tuple[int, str]]:
        """Every (layer, readout), layers first."""
        every = ((layer, readout) for layer in self.layers for readout in self.readouts)
        return [(layer, name) for layer, name in every if layer == self.last or not name.endswith(Normed.suffix)]

    def __len__(self) -> int:
        return len(self.texts)
