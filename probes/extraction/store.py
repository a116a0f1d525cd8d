"""Stores of vectors, in memory or on disk; `probes.extraction.states` reads them.

    CACHE/KEY/manifest.json              what the key was made of; rows, bytes and SHA-256 of every shard, and its own
    CACHE/KEY/rows.parquet               per text its shard, its row there, its length in tokens; written last
    CACHE/KEY/shard-00000.safetensors    a tensor (row, dim) for each layer and readout ("layer.07/cls"), and "present"

1. `Store` is one such folder. The key is a digest of everything the vectors depend on, so a folder is never wrong, only
   unfinished. A shard is written atomically (probes.files), then entered in the manifest; files without an entry are
   ignored. Any number of processes write shards in any order; `Lock`s keep them from computing the same one.
2. `verify` checks the digest of every file whenever a folder is opened. Files that differ are set aside and computed
   again. Nothing is unpickled. A manifest is believed only if it is of the form that `Store` writes, so that its names
   are those of our files; a link in the place of a file is damage, and one in the place of a folder is refused.
3. `make_cache_folder` chooses the folder of a cache, `list_cache` lists its keys, `purge` removes a key.
4. `Memory` holds shards without a disk.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

import numpy as np

from clsprobe.probes.errors import InputError, printable
from clsprobe.probes.extraction.states import Tensors
from clsprobe.probes.files import (
    Lock,
    UnsuitableFile,
    check_file,
    check_folder,
    file_digest,
    make_folder,
    mend_disk,
    read_content,
    read_parquet,
    remove_temporary_files,
    replacing,
    set_aside,
    touch,
    write_parquet,
    write_text,
)

if TYPE_CHECKING:
    import pandas as pd

Entries = dict[str, dict[str, Any]]  # file name -> entry of the manifest

MANIFEST, ROWS = "manifest.json", "rows.parquet"
FORMAT = 2  # of the files; part of the key
LARGEST_CACHE = 50e9  # bytes, beyond which the least recently used keys are removed
IN_USE = 3600.0  # seconds after its last use in which a folder is not removed
ENTRY = r"rows\.parquet|shard-[0-9]{5,}\.safetensors"  # names in a manifest
KEY = re.compile(r"[0-9a-f]{32}")  # names of folders and files that may be removed; anything else is the user's
OURS = re.compile(rf"((manifest\.json|{ENTRY})(\.corrupt|\.lock)?|manifest\.lock|\..*\.tmp)", re.DOTALL)


def find_cache_folder(path: Path | str | None = None) -> Path:
    """`path`, else $CLSPROBE_HOME, else $XDG_CACHE_HOME/clsprobe, else ~/.cache/clsprobe.

    Raises InputError where there is no home folder for ~.
    """
    if path is None:
        path = os.environ.get("CLSPROBE_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "clsprobe"
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user, or one without a home
        raise InputError(f"--cache {path}", "there is no such home folder", "Name another folder") from None


def make_cache_folder(path: Path | str | None = None) -> Path:
    """Make `find_cache_folder` and test it. Where that fails, warn and return a private temporary folder.

    Raises InputError where `path` is given and cannot be used, and where no folder can be used.
    """
    folder = find_cache_folder(path)
    try:
        make_folder(folder, private=True)
        check_folder(folder)
    except OSError as error:
        if _is_full(error):  # `Store` reports how much it needs
            return folder
        if path is not None:
            raise _unusable(folder, error) from None
        what = f"{folder} cannot keep vectors ({error.strerror})"
    else:
        return folder
    user = os.getuid() if hasattr(os, "getuid") else 0  # on Windows the temporary folder is private
    folder = Path(tempfile.gettempdir()) / f"clsprobe-{user}"
    try:
        if not folder.is_symlink():
            make_folder(folder, private=True)
        status = folder.lstat()
        if os.name != "nt" and (status.st_uid != user or status.st_mode & 0o77 or folder.is_symlink()):
            raise OSError(errno.EPERM, "others can reach it")
        check_folder(folder)
    except OSError as error:
        raise InputError("--cache", f"{what}, nor can {folder} ({error.strerror})", "Name another folder") from None
    message = f"{what}; they are kept in {folder}. Name another folder with --cache"
    warnings.warn(printable(message), stacklevel=2)
    return folder


class Memory:
    """The interface of `Store`, for the shards of one process in memory."""

    def __init__(self) -> None:
        self.shards: dict[int, Tensors] = {}
        self.facts: dict[str, Any] = {}
        self.rows: pd.DataFrame | None = None
        self.halved = 0

    def has(self, number: int) -> bool:
        """Whether a shard is stored."""
        return number in self.shards

    def begin(self, number: int) -> bool:
        """Always True: no other process computes shards."""
        return True

    def is_free(self, number: int) -> bool:
        """Always True: no other process computes shards."""
        return True

    def close(self) -> None:
        """Do nothing: there are no locks."""

    def add(self, number: int, tensors: Tensors, halved: int) -> None:
        """Store a shard. halved: the number of batches that were halved to fit in memory."""
        self.shards[number] = tensors
        self.halved += halved

    def shard(self, number: int) -> Tensors:
        """The tensors of a shard."""
        return self.shards[number]

    def finish(self, rows: pd.DataFrame, facts: Mapping[str, Any]) -> None:
        """Store the location of every text, once all shards are stored."""
        self.rows, self.facts = rows, dict(facts)


class Store:
    """The folder of one key in a cache.

    made_of: everything the vectors depend on, as plain JSON. name: the model, for `clsprobe cache ls`. size: expected
    bytes. Raises InputError where the folder cannot be made or is a link, and where the disk has no room.
    """

    def __init__(self, cache: Path, made_of: Mapping[str, Any], *, name: str, size: float) -> None:
        self.cache, self.made_of, self.name = cache, dict(made_of) | {"format": FORMAT}, name
        self.folder = self.locate(cache, made_of)
        self._locks: dict[int, Lock] = {}
        if self.folder.is_symlink():
            what = f"{self.folder.name} in it is a link, which is not followed"
            raise InputError(f"--cache {cache}", what, "Remove the link")
        try:
            self.damaged = verify(self.folder)
            self._manifest = read_manifest(self.folder) or {}
            self._make_room(size)
            with self._writing(size):
                make_folder(cache, private=True)
                make_folder(self.folder, private=True)
                remove_temporary_files(self.folder)
                if not self._manifest:
                    self._update_entries(dict)
        except OSError as error:
            raise _unusable(cache, error) from None

    @staticmethod
    def locate(cache: Path, made_of: Mapping[str, Any]) -> Path:
        """The folder of a key, whether or not it exists."""
        return cache / _key(dict(made_of) | {"format": FORMAT})

    @property
    def rows(self) -> pd.DataFrame | None:
        """A row per text, columns shard, at, tokens, ids; None until every shard has been written once."""
        return read_parquet(self.folder / ROWS, own=True) if ROWS in self._entries() else None

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that `finish` stored."""
        return self._manifest.get("facts", {})

    @property
    def halved(self) -> int:
        """The number of batches that were halved to fit in memory."""
        return sum(entry.get("halved", 0) for entry in self._entries().values())

    def has(self, number: int) -> bool:
        """Whether a shard is stored, by this or another process."""
        if _name(number) not in self._entries():
            self._manifest = read_manifest(self.folder) or self._manifest
        return _name(number) in self._entries()

    def begin(self, number: int) -> bool:
        """Lock a shard until `add` or `close`. Returns False where it is stored or another process computes it."""
        lock = self._locks.setdefault(number, Lock(self.folder / f"{_name(number)}.lock"))
        with self._writing(0):
            if lock.take() and not self.has(number):
                return True
        lock.release()
        return False

    def is_free(self, number: int) -> bool:
        """Whether a shard is neither stored nor being computed by another process."""
        is_free = self.begin(number)
        self._locks[number].release()
        return is_free

    def close(self) -> None:
        """Release every lock, even if Ctrl-C interrupts."""
        with ExitStack() as stack:
            for lock in self._locks.values():
                stack.callback(lock.release)

    def add(self, number: int, tensors: Tensors, halved: int) -> None:
        """Write a shard, then enter it in the manifest. halved: the number of batches halved to fit in memory.

        A shard that another process has entered meanwhile stays. Raises InputError where the disk is full.
        """
        name = _name(number)

        def add_shard(entries: Entries) -> Entries:
            if name in entries:
                return entries
            digest, size = sha256(), 0
            with replacing(self.folder / name) as file:
                for part in _serialize(tensors):
                    digest.update(part)
                    size += file.write(part)
            entry = {"rows": len(tensors["present"]), "bytes": size, "sha256": digest.hexdigest()}
            return {**entries, name: entry | ({"halved": halved} if halved else {})}

        with self._writing(sum(tensor.nbytes for tensor in tensors.values())):
            self._update_entries(add_shard)
        self._locks[number].release()

    def shard(self, number: int) -> Tensors:
        """The tensors of a shard, each read when it is accessed."""
        return _Shard(self.folder / _name(number))

    def finish(self, rows: pd.DataFrame, facts: Mapping[str, Any]) -> None:
        """Write the location of every text, which completes the folder. Raises InputError where the disk is full."""

        def add_rows(entries: Entries) -> Entries:
            write_parquet(self.folder / ROWS, rows)
            size = (self.folder / ROWS).stat().st_size
            return {**entries, ROWS: {"bytes": size, "sha256": _digest(self.folder / ROWS)}}

        with self._writing(0):
            self._update_entries(add_rows, facts=dict(facts))

    def _entries(self) -> Entries:
        return self._manifest.get("shards", {})

    def _update_entries(self, change: Callable[[Entries], Entries], **more: Any) -> None:
        fields = {"name": self.name, "made_of": self.made_of, "facts": {}} | more
        self._manifest = _update_manifest(self.folder, change, **fields)

    def _make_room(self, size: float) -> None:
        """Remove old keys from the cache. Raises InputError where the disk is too small. size: bytes of all shards."""
        if self._manifest:
            touch(self.folder / MANIFEST)
        stored = sum(entry["bytes"] for entry in self._entries().values())
        if stored >= size:
            return
        others = [entry for entry in list_cache(self.cache) if entry.folder != self.folder]
        total = size + sum(entry.bytes for entry in others)
        for entry in reversed(others):
            if total > LARGEST_CACHE and time.time() - entry.used > IN_USE and purge(entry.folder):
                total -= entry.bytes
        if size - stored > _free_bytes(self.cache):
            raise _disk_full(self.cache, size - stored, "Nothing was begun")

    @contextmanager
    def _writing(self, size: float) -> Iterator[None]:
        """Within the block, a full disk raises InputError. size: bytes that are written."""
        try:
            yield
        except OSError as error:
            if not _is_full(error):
                raise
            count = sum(name != ROWS for name in self._entries())
            raise _disk_full(self.cache, size, f"{count} shard{'s are' if count != 1 else ' is'} kept") from None


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _free_bytes(cache: Path) -> int:
    """Free bytes on the disk of the cache, which need not exist yet."""
    path = cache.absolute()
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def _disk_full(cache: Path, size: float, state: str) -> InputError:
    needs, free = (f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB" for n in (size, _free_bytes(cache)))
    what = f"disk full writing the cache (needs {needs}, {free} free). {state}"
    return InputError(f"--cache {cache}", what, "Make room (clsprobe cache purge), and run the same command to go on")


def _unusable(cache: Path, error: OSError) -> InputError:
    mend = "Name another folder" if error.errno != errno.EFBIG else mend_disk(error)
    return InputError(f"--cache {cache}", f"cannot be used ({error.strerror or error})", mend)


def _name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except OSError:
        return None


def _digest(path: Path) -> str | None:
    try:
        return file_digest(path, own=True)
    except OSError:  # missing, unreadable or a link counts as changed
        return None


def _serialize(tensors: Tensors) -> Iterator[bytes | memoryview]:
    """The parts of a safetensors file, header and data, without the two copies that the library makes."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        dtype = {"float32": "F32", "uint8": "U8"}[tensor.dtype.name]
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    yield len(encoded).to_bytes(8, "little") + encoded
    for tensor in tensors.values():
        yield tensor.reshape(-1).view(np.uint8).data


class _Shard(Mapping[str, np.ndarray]):
    """A shard file as a mapping, opened for every tensor: the pages of an open file would count as used memory.

    Raises InputError where the file was removed or damaged after the folder was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, name: str) -> np.ndarray:
        with self._open() as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        with self._open() as file:
            return iter(file.keys())

    def __len__(self) -> int:
        return len(list(iter(self)))

    @contextmanager
    def _open(self) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        with suppress(OSError):  # marks the folder as in use
            touch(self.path.parent / MANIFEST)
        try:
            check_file(self.path, own=True)
            with safe_open(self.path, framework="numpy") as file:
                yield file
        except (OSError, SafetensorError) as error:
            what = f"has been removed or damaged since it was written ({type(error).__name__})"
            raise InputError(str(self.path), what, "Run the same command again; it is made anew") from None


# ------------------------------------------------------------------------------------------------- a cache as a whole


def _update_manifest(folder: Path, change: Callable[[Entries], Entries], **fields: Any) -> dict[str, Any]:
    """Read the manifest, which other processes write too, change its entries, and write it."""
    with _lock_manifest(folder):
        current = read_manifest(folder) or {}
        manifest = {**fields, **current, **{name: value for name, value in fields.items() if value}}
        manifest["shards"] = dict(sorted(change(current.get("shards", {})).items()))
        write_text(folder / MANIFEST, json.dumps(manifest | {"sha256": _seal(manifest)}, indent=1))
        return manifest


@contextmanager
def _lock_manifest(folder: Path) -> Iterator[None]:
    """Within the block, no other process changes the manifest."""
    lock = Lock(folder / "manifest.lock")
    while not lock.take():
        time.sleep(0.01)
    try:
        yield
    finally:
        lock.release()


def _key(made_of: Mapping[str, Any]) -> str:
    """The name of the folder: a digest of `made_of`."""
    return sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def _seal(manifest: Mapping[str, Any]) -> str:
    """A digest of the manifest itself, which reveals damage."""
    return sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class CacheEntry:
    """One key of a cache.

    manifest: empty where it cannot be read. used: seconds since the epoch. is_complete: all texts are stored.
    """

    folder: Path
    manifest: dict[str, Any]
    bytes: int
    used: float
    is_complete: bool

    def summary(self) -> str:
        """One line: key, size, age, and everything the key was made of, which shows why two keys differ."""
        defaults: dict[str, Any] = {"texts": {}, "readouts": (), "layers": (), "plan": ()}
        made_of = defaults | self.manifest.get("made_of", {})
        days = (time.time() - self.used) / 86400
        parts = [self.folder.name, f"{self.bytes / 1e6:,.1f} MB", f"{days:.0f} days" if days >= 1 else "today"]
        if not self.manifest:
            return "  ".join([*parts, "without a manifest that can be read: of no use"])
        try:
            return "  ".join(map(printable, [*parts, *self._describe(made_of)]))
        except (TypeError, ValueError, AttributeError, KeyError):
            return "  ".join([*parts, "made of what this version does not know"])

    def _describe(self, made_of: dict[str, Any]) -> list[str]:
        weights = made_of.get("control", "") if made_of.get("seed") is None else f"untrained, seed {made_of['seed']}"
        return [
            "whole" if self.is_complete else "unfinished",
            f"{self.manifest.get('name')} {_shorten_digest(made_of)}"
            + ("" if weights in ("", "none") else f" ({weights})"),
            f"{made_of['texts'].get('count', 0):,} texts {_shorten_digest(made_of['texts'])}",
            f"layers {','.join(map(str, made_of['layers']))}",
            "readouts " + ", ".join(f"{name} {code[:8]}".rstrip() for name, code in dict(made_of["readouts"]).items()),
            f"{made_of.get('dtype')} on {made_of.get('device')}, {made_of.get('attention')} attention",
            f"at most {made_of.get('max_length')} tokens, batches of {', '.join(map(str, made_of['plan']))}",
            " ".join(f"{name} {version}" for name, version in made_of.get("versions", {}).items()),
            f"code {made_of.get('code', '')[:8]}, format {made_of.get('format')}",
        ]


def _shorten_digest(source: Mapping[str, Any]) -> str:
    """The first digits of a digest, enough to distinguish two."""
    return str(source.get("digest", ""))[:8]


def list_cache(cache: Path) -> list[CacheEntry]:
    """The keys of a cache, most recently used first."""
    entries = []
    for folder in cache.glob("*"):
        with suppress(OSError):  # purged meanwhile, or another user's
            if not KEY.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
                continue
            files = {path.name: path.lstat() for path in folder.iterdir()}
            if all(OURS.fullmatch(name) and S_ISREG(status.st_mode) for name, status in files.items()):
                manifest = _try_manifest(folder) or {}
                used = files.get(MANIFEST, folder.stat()).st_mtime
                size = sum(status.st_size for status in files.values())
                shards = manifest.get("shards", {})
                rows = sum(entry.get("rows", 0) for entry in shards.values())
                count = _count_texts(manifest) if ROWS in shards else None
                entries.append(CacheEntry(folder, manifest, size, used, rows == count))  # a shard may be set aside
    return sorted(entries, key=lambda entry: (-entry.used, entry.folder))


def verify(folder: Path) -> list[str]:
    """Check every file of a key against its digest and set aside those that differ. Returns their names.

    So is a table of rows that does not lead to the rows of the shards.
    """
    if folder.is_symlink() or not os.path.lexists(folder / MANIFEST):
        return []
    if (manifest := _try_manifest(folder)) is None:
        with _lock_manifest(folder):
            if is_damaged := _try_manifest(folder) is None:  # unless another process has replaced it meanwhile
                _set_aside(folder / MANIFEST)
        return [MANIFEST] if is_damaged else verify(folder)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # hashing releases the GIL
        are_sound = list(pool.map(lambda name: _is_sound(folder, name, manifest), manifest["shards"]))
    differing = [name for name, is_sound in zip(manifest["shards"], are_sound, strict=True) if not is_sound]
    removed: dict[str, None] = {}  # in their order; there may be many

    def remove_damaged(entries: Entries) -> Entries:
        """Check again under the lock: another process may have replaced the file."""
        for name in differing:
            if name in entries and not _is_sound(folder, name, manifest | {"shards": entries}):
                removed[name] = None
                _set_aside(folder / name)
        return {name: entry for name, entry in entries.items() if name not in removed}

    if differing:
        _update_manifest(folder, remove_damaged)
    return list(removed)


def _is_sound(folder: Path, name: str, manifest: dict[str, Any]) -> bool:
    """Whether a file of a key is what was written: its bytes, and of the table of rows what it leads to."""
    entry = manifest["shards"][name]
    if _size(folder / name) != entry["bytes"] or _digest(folder / name) != entry["sha256"]:
        return False
    return name != ROWS or _leads_to_shards(folder / ROWS, manifest)


def _leads_to_shards(path: Path, manifest: dict[str, Any]) -> bool:
    """Whether a table of rows numbers the shards from 0, and the rows of each of them too, as the Extractor does."""
    try:
        table = read_parquet(path, own=True)
        is_integer = all(dtype.kind == "i" for dtype in table.dtypes)
        if list(table.columns) != ["shard", "at", "tokens", "ids"] or not is_integer:
            return False
        rows = table.groupby("shard")["at"].agg(["min", "max", "size"])
        sizes = [manifest["shards"].get(_name(number), {}).get("rows") for number in range(len(rows))]
        return (
            rows.index.tolist() == [*range(len(rows))]
            and bool((rows["min"] == 0).all() and (rows["max"] == rows["size"] - 1).all())
            and all(size in (None, count) for size, count in zip(sizes, rows["size"], strict=True))
            and len(table) == rows["size"].sum() == _count_texts(manifest)
        )
    except Exception:  # Arrow raises many types for a table that it cannot read
        return False


def _count_texts(manifest: dict[str, Any]) -> Any:
    """The number of texts that a key is made of."""
    texts = manifest["made_of"].get("texts")
    return texts.get("count") if isinstance(texts, dict) else None


def _set_aside(path: Path) -> None:
    with suppress(FileNotFoundError):  # the file may be missing
        set_aside(path, ".corrupt")


def purge(folder: Path) -> bool:
    """Remove a key, unless a process is using it. The manifest goes first, so that a crash leaves no valid key.

    Returns whether the folder is gone; a link to one stays. Raises OSError without permission to remove it.
    """
    if folder.is_symlink():
        return False
    for path in folder.glob("*.lock"):
        if not (lock := Lock(path)).take():
            return False
        lock.release()
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # another process may be removing it as well
    return not folder.exists()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a key; None where it is missing or damaged. Raises OSError where it cannot be read."""
    try:
        content = json.loads(read_content(folder / MANIFEST, own=True).decode("utf-8"))
        is_valid = content.pop("sha256") == _seal(content) and _key(content["made_of"]) == folder.name
        return content if is_valid and _is_well_formed(content) else None
    except (FileNotFoundError, NotADirectoryError, UnsuitableFile):
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # damaged
        return None


def _is_well_formed(manifest: dict[str, Any]) -> bool:
    """Whether a manifest has the form that `Store` writes, whose names are used as those of files."""
    sizes = {"rows": int, "bytes": int, "sha256": str, "halved": int}
    is_plain = isinstance(manifest.get("facts"), dict) and isinstance(manifest["made_of"], dict)
    return is_plain and all(
        re.fullmatch(ENTRY, name)
        and {"bytes", "sha256"} <= entry.keys() <= sizes.keys()
        and all(type(value) is sizes[key] for key, value in entry.items())
        for name, entry in manifest["shards"].items()
    )


def _try_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        return read_manifest(folder)
    except OSError:
        return None
