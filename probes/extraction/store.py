"""Vectors of texts: where they lie, in memory or on disk; `probes.extraction.states` gives them out.

    CACHE/KEY/manifest.json              what the key was made of; rows, bytes and SHA-256 of every shard, and its own
    CACHE/KEY/rows.parquet               of every text its shard, its row there, its length in tokens; written last
    CACHE/KEY/shard-00000.safetensors    a tensor (row, dim) for each layer and readout ("layer.07/cls"), and "present"

1. `Store` is one such folder. The key is a digest of everything the vectors depend on, so a folder is never wrong, only
   unfinished. A shard is written whole (probes.files), then entered in the manifest: a shard without an entry is
   nothing. Shards are written in any order, by any number of processes; `Lock`s keep them from doing the same work.
2. `verify` reads every file against its digest whenever a folder is opened, sets aside what differs, and forgets it: it
   is made again. Nothing is unpickled, and nothing else can have changed unseen.
3. `usable_folder` is where a cache can be, `listing` what is in one, `purge` the end of a key.
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
    file_digest,
    make_folder,
    replacing,
    set_aside,
    tidy,
    touch,
    try_folder,
    write_parquet,
    write_text,
)

if TYPE_CHECKING:
    import pandas as pd

Entries = dict[str, dict[str, Any]]  # the files of a manifest

MANIFEST, ROWS = "manifest.json", "rows.parquet"
FORMAT = 2  # of the files; another number is another key
LARGEST_CACHE = 50e9  # bytes: what has not been used for longest leaves before more is added
IN_USE = 3600.0  # seconds in which a folder that was used is left alone
KEY = re.compile(r"[0-9a-f]{32}")  # the name of a folder, and what may stand in it: anything else is not ours to remove
OURS = re.compile(
    r"((manifest\.json|rows\.parquet|shard-\d+\.safetensors)(\.corrupt|\.lock)?|manifest\.lock|\..*\.tmp)", re.DOTALL
)


def cache_folder(path: Path | str | None = None) -> Path:
    """`path`, else $CLSPROBE_HOME, else $XDG_CACHE_HOME/clsprobe, else ~/.cache/clsprobe.

    Raises InputError where ~ is nowhere.
    """
    if path is None:
        path = os.environ.get("CLSPROBE_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "clsprobe"
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user, or one without a home
        raise InputError(f"--cache {path}", "there is no such home folder", "Name another folder") from None


def usable_folder(path: Path | str | None = None) -> Path:
    """`cache_folder`, made and tried; the user's own among the temporary files, with a warning, where that fails.

    Raises InputError where `path` is given and cannot be used, and where there is no folder at all.
    """
    folder = cache_folder(path)
    try:
        make_folder(folder, private=True)
        try_folder(folder)
    except OSError as error:
        if _is_full(error):  # `Store` says how much it needs
            return folder
        if path is not None:
            raise _unusable(folder, error) from None
        told = f"{folder} cannot keep vectors ({error.strerror})"
    else:
        return folder
    user = os.getuid() if hasattr(os, "getuid") else 0  # elsewhere temporary files are the user's own already
    folder = Path(tempfile.gettempdir()) / f"clsprobe-{user}"
    try:
        make_folder(folder, private=True)
        status = folder.lstat()
        if os.name != "nt" and (status.st_uid != user or status.st_mode & 0o77 or folder.is_symlink()):
            raise OSError(errno.EPERM, "others can reach it")
        try_folder(folder)
    except OSError as error:
        raise InputError("--cache", f"{told}, nor can {folder} ({error.strerror})", "Name another folder") from None
    warnings.warn(f"{told}; they are kept in {folder}. Name another folder with --cache", stacklevel=2)
    return folder


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
        self.folder = self.place(cache, made_of)
        self._locks: dict[int, Lock] = {}
        try:
            self.damaged = verify(self.folder)
            self._manifest = read_manifest(self.folder) or {}
            self._room(size)
            with self._written(size):
                make_folder(cache, private=True)
                make_folder(self.folder, private=True)
                tidy(self.folder)
                if not self._manifest:
                    self._enter(dict)
        except OSError as error:
            raise _unusable(cache, error) from None

    @staticmethod
    def place(cache: Path, made_of: Mapping[str, Any]) -> Path:
        """Where the folder of a key is, or would be."""
        return cache / _key(dict(made_of) | {"format": FORMAT})

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
        with self._written(0):
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
        """Give up every shard that was begun, also when Ctrl-C comes once more."""
        with ExitStack() as each:
            for lock in self._locks.values():
                each.callback(lock.release)

    def add(self, number: int, tensors: Tensors, halved: int) -> None:
        """Write a shard, then enter it in the manifest. halved: batches halved for want of memory.

        One that another process has entered meanwhile stays. Raises InputError where the disk is full.
        """
        name = _name(number)

        def entered(before: Entries) -> Entries:
            if name in before:
                return before
            total, size = sha256(), 0
            with replacing(self.folder / name) as file:
                for part in _safetensors(tensors):
                    total.update(part)
                    size += file.write(part)
            entry = {"rows": len(tensors["present"]), "bytes": size, "sha256": total.hexdigest()}
            return {**before, name: entry | ({"halved": halved} if halved else {})}

        with self._written(sum(tensor.nbytes for tensor in tensors.values())):
            self._enter(entered)
        self._locks[number].release()

    def shard(self, number: int) -> Tensors:
        """The tensors of a shard, each read when it is asked for."""
        return _Shard(self.folder / _name(number))

    def finish(self, rows: pd.DataFrame, facts: Mapping[str, Any]) -> None:
        """Write where every text is; the folder is whole from now on. Raises InputError where the disk is full."""

        def entered(before: Entries) -> Entries:
            write_parquet(self.folder / ROWS, rows)
            size = (self.folder / ROWS).stat().st_size
            return {**before, ROWS: {"bytes": size, "sha256": _digest(self.folder / ROWS)}}

        with self._written(0):
            self._enter(entered, facts=dict(facts))

    def _entries(self) -> Entries:
        return self._manifest.get("shards", {})

    def _enter(self, change: Callable[[Entries], Entries], **more: Any) -> None:
        described = {"name": self.name, "made_of": self.made_of, "facts": {}} | more
        self._manifest = _describe(self.folder, change, **described)

    def _room(self, size: float) -> None:
        """Make room in the cache, and see that the disk has it. size: bytes of all shards."""
        if self._manifest:
            touch(self.folder / MANIFEST)
        held = sum(entry["bytes"] for entry in self._entries().values())
        if held >= size:
            return
        others = [one for one in listing(self.cache) if one.folder != self.folder]
        total = size + sum(one.bytes for one in others)
        for one in reversed(others):
            if total > LARGEST_CACHE and time.time() - one.used > IN_USE and purge(one.folder):
                total -= one.bytes
        if size - held > _free(self.cache):
            raise _full(self.cache, size - held, "Nothing was begun")

    @contextmanager
    def _written(self, size: float) -> Iterator[None]:
        """Within the block, a full disk is an error that the user can mend. size: bytes that are written."""
        try:
            yield
        except OSError as error:
            if not _is_full(error):
                raise
            kept = sum(name != ROWS for name in self._entries())
            raise _full(self.cache, size, f"{kept} shard{'s are' if kept != 1 else ' is'} kept") from None


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _free(cache: Path) -> int:
    """Bytes free where the cache is, or will be."""
    return shutil.disk_usage(next(f for f in (cache.absolute(), *cache.absolute().parents) if f.exists())).free


def _full(cache: Path, size: float, kept: str) -> InputError:
    needs, free = (f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB" for n in (size, _free(cache)))
    what = f"disk full writing the cache (needs {needs}, {free} free). {kept}"
    return InputError(f"--cache {cache}", what, "Make room (clsprobe cache purge), and run the same command to go on")


def _unusable(cache: Path, error: OSError) -> InputError:
    return InputError(f"--cache {cache}", f"cannot be used ({error.strerror or error})", "Name another folder")


def _name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _digest(path: Path) -> str | None:
    try:
        return file_digest(path)
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
    """A shard file as a mapping. It is opened for every tensor: held open, its pages would count as our memory.

    Raises InputError where the file has gone since the folder was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, name: str) -> np.ndarray:
        with self._opened() as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        with self._opened() as file:
            return iter(file.keys())

    def __len__(self) -> int:
        return len(list(iter(self)))

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        with suppress(OSError):  # a folder that is read is in use, however long that takes
            touch(self.path.parent / MANIFEST)
        try:
            file = safe_open(self.path, framework="numpy")
        except (OSError, SafetensorError) as error:
            told = f"has been removed or damaged since it was written ({type(error).__name__})"
            raise InputError(str(self.path), told, "Run the same command again; it is made anew") from None
        with file:
            yield file


# ------------------------------------------------------------------------------------------------- a cache as a whole


def _describe(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Write the manifest anew: its entries changed, with what other processes have entered meanwhile."""
    with _alone(folder):
        before = read_manifest(folder) or {}
        manifest = {**more, **before, **{name: value for name, value in more.items() if value}}
        manifest["shards"] = dict(sorted(change(before.get("shards", {})).items()))
        write_text(folder / MANIFEST, json.dumps(manifest | {"sha256": _seal(manifest)}, indent=1))
        return manifest


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within the block, nobody else changes the manifest."""
    lock = Lock(folder / "manifest.lock")
    while not lock.take():
        time.sleep(0.01)
    try:
        yield
    finally:
        lock.release()


def _key(made_of: Mapping[str, Any]) -> str:
    """The name of the folder for what is made of this."""
    return sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def _seal(manifest: Mapping[str, Any]) -> str:
    """A digest of what a manifest says: what a flipped bit makes of it is another one."""
    return sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Listed:
    """One key of a cache.

    manifest: empty where it cannot be read. used: seconds since the epoch. whole: every text is there.
    """

    folder: Path
    manifest: dict[str, Any]
    bytes: int
    used: float
    whole: bool

    def told(self) -> str:
        """One line: key, size, age, and everything the key was made of, so that it shows why two of them differ."""
        nothing: dict[str, Any] = {"texts": {}, "readouts": (), "layers": (), "plan": ()}
        of = nothing | self.manifest.get("made_of", {})
        days = (time.time() - self.used) / 86400
        parts = [self.folder.name, f"{self.bytes / 1e6:,.1f} MB", f"{days:.0f} days" if days >= 1 else "today"]
        if not self.manifest:
            return "  ".join([*parts, "without a manifest that can be read: of no use"])
        weights = of.get("control", "") if of.get("seed") is None else f"untrained, seed {of['seed']}"
        parts += [
            "whole" if self.whole else "unfinished",
            f"{self.manifest.get('name')} {_digits(of)}" + ("" if weights in ("", "none") else f" ({weights})"),
            f"{of['texts'].get('count', 0):,} texts {_digits(of['texts'])}",
            f"layers {','.join(map(str, of['layers']))}",
            "readouts " + ", ".join(f"{name} {code[:8]}".rstrip() for name, code in dict(of["readouts"]).items()),
            f"{of.get('dtype')} on {of.get('device')}, {of.get('attention')} attention",
            f"at most {of.get('max_length')} tokens, batches of {', '.join(map(str, of['plan']))}",
            " ".join(f"{name} {version}" for name, version in of.get("versions", {}).items()),
            f"code {of.get('code', '')[:8]}, format {of.get('format')}",
        ]
        return "  ".join(map(printable, parts))


def _digits(of: Mapping[str, Any]) -> str:
    """The first digits of a digest, which are enough to tell two apart."""
    return str(of.get("digest", ""))[:8]


def listing(cache: Path) -> list[Listed]:
    """Every key of a cache, the last used first."""
    found = []
    for folder in cache.glob("*"):
        with suppress(OSError):  # purged at this moment; another user's
            if not KEY.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
                continue
            files = {path.name: path.lstat() for path in folder.iterdir()}
            if all(OURS.fullmatch(name) and S_ISREG(status.st_mode) for name, status in files.items()):
                manifest = _readable(folder) or {}
                used = files.get(MANIFEST, folder.stat()).st_mtime
                size = sum(status.st_size for status in files.values())
                shards = manifest.get("shards", {})
                rows = sum(entry.get("rows", 0) for entry in shards.values())
                whole = ROWS in shards and rows == manifest["made_of"]["texts"]["count"]  # one may have been set aside
                found.append(Listed(folder, manifest, size, used, whole))
    return sorted(found, key=lambda one: (-one.used, one.folder))


def verify(folder: Path) -> list[str]:
    """Read every file of a key against its digest; set aside those that differ. Returns their names."""
    if not (folder / MANIFEST).exists():
        return []
    if (manifest := _readable(folder)) is None:
        with _alone(folder):
            if torn := _readable(folder) is None:  # and another process has not mended it meanwhile
                _set_aside(folder / MANIFEST)
        return [MANIFEST] if torn else verify(folder)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # hashing runs beside itself
        digests = list(pool.map(lambda name: _digest(folder / name), manifest["shards"]))
    wanted = manifest["shards"].items()
    bad = [name for (name, entry), digest in zip(wanted, digests, strict=True) if digest != entry["sha256"]]
    gone: list[str] = []

    def sound(before: Entries) -> Entries:
        """Looked at once more, now that nobody writes: another process may have mended it."""
        gone[:] = [name for name in bad if name in before and _digest(folder / name) != before[name]["sha256"]]
        for name in gone:
            _set_aside(folder / name)
        return {name: entry for name, entry in before.items() if name not in gone}

    if bad:
        _describe(folder, sound)
    return gone


def _set_aside(path: Path) -> None:
    with suppress(FileNotFoundError):  # it may be what is missing
        set_aside(path, ".corrupt")


def purge(folder: Path) -> bool:
    """Remove a key, unless a process is at work on it; the manifest first, so that what a crash leaves is nothing.

    Returns whether it is gone. Raises OSError where it is not ours to remove.
    """
    for path in folder.glob("*.lock"):
        if not (lock := Lock(path)).take():
            return False
        lock.release()
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # another process may be removing it as well
    return not folder.exists()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a key; None where there is none that is sound. Raises OSError where it cannot be read."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sound = content.pop("sha256") == _seal(content) and _key(content["made_of"]) == folder.name
        return content if sound else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # not what we wrote
        return None


def _readable(folder: Path) -> dict[str, Any] | None:
    try:
        return read_manifest(folder)
    except OSError:
        return None
