"""The one place that writes anything to disk.

1. `replacing` and what is built on it: every file appears whole or not at all. It is written under a temporary name
   beside its target, flushed to the disk, renamed over the target, and the folder is flushed so that the rename itself
   survives a power cut. `tidy` removes the temporary files of writers that were killed.
2. `spooled`: a stream that can be read once as a file that can be read again and is gone when it is closed; it and
   `file_digest` tell the SHA-256 of what they read.
3. `Lock`: who is at work on a file, so that two processes share the work instead of doing it twice.
4. `try_folder`: whether a file system keeps the promises that 1 and 3 rely on; some that reach over a network do not.

Imports no torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from clsprobe.probes.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

BEAT, STALE = 2.0, 30.0  # seconds: between two signs of life, and without one
LONG = 3600.0  # seconds: what has not been touched for so long is nobody's, whatever the clocks of two machines say
TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}\.tmp", re.DOTALL)  # where, and by which process


@contextmanager
def replacing(path: Path | str) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well and leaves no trace when it does not."""
    path = Path(path)
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException:
        with suppress(OSError):  # what went wrong first is what to tell
            temporary.unlink(missing_ok=True)
        raise


def spooled(stream: BinaryIO) -> tuple[BinaryIO, str]:
    """All that a stream gives, as a file without a name, at its start, and the SHA-256 of it."""
    file, total = tempfile.TemporaryFile(), sha256()  # noqa: SIM115 - whoever reads it closes it
    try:
        while part := stream.read(1 << 20):
            total.update(part)
            file.write(part)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file, total.hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path | str, text: str) -> None:
    """Replace `path` by `text` in UTF-8, with the line ends as they are."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_parquet(path: Path | str, table: pd.DataFrame) -> None:
    """Replace `path` by `table` as Parquet (zstd), without the index."""
    words = list(table.select_dtypes(exclude="number"))  # dictionaries of numbers cost memory and seldom pay
    # given a file, pandas opens it again by its name
    content = table.to_parquet(None, index=False, compression="zstd", use_dictionary=words)
    with replacing(path) as file:
        file.write(content)


def tidy(folder: Path) -> None:
    """Remove the temporary files of a folder whose writers are gone: killed, or cut off with the power."""
    for path in folder.glob(".*.tmp"):
        named = TEMPORARY.fullmatch(path.name)
        with suppress(FileNotFoundError):  # its writer lives, and has just done with it
            if named and (_gone(named[1], int(named[2])) or time.time() - path.stat().st_mtime > LONG):
                path.unlink()


def make_folder(path: Path | str, *, private: bool = False) -> Path:
    """Create `path` and its parents, and flush every folder that received one.

    private: closed to other users; a folder that was there with something in it stays as open as it was.
    """
    path = Path(path)
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
    if private and not new and os.name != "nt" and not any(path.iterdir()):
        path.chmod(0o700)
    for folder in new:
        _flush_folder(folder.parent)
    return path


def try_folder(path: Path) -> None:
    """Raise OSError where files cannot be written, created by one process only, or replaced in one step."""
    tried = _temporary(path / "try")
    try:
        with replacing(tried) as file:
            file.write(b"old")
        with suppress(FileExistsError):
            tried.open("xb").close()
            raise OSError(errno.ENOTSUP, "Two processes can create one file there", str(path))
        with replacing(tried) as file:
            file.write(b"new")
        if tried.read_bytes() != b"new":
            raise OSError(errno.ENOTSUP, "Files cannot be replaced there", str(path))
        touch(tried)
    finally:
        with suppress(OSError):
            tried.unlink(missing_ok=True)


def set_aside(path: Path, suffix: str) -> None:
    """Rename a file that is not to be read again, keeping it to be looked at."""
    os.replace(path, path.with_name(path.name + suffix))
    _flush_folder(path.parent)


def touch(path: Path) -> None:
    """Set the time of a file to now: it has just been of use."""
    os.utime(path)


class Lock:
    """A file that says which process is at work on something, for as long as it beats.

    `take` never waits. A lock whose process is gone (on this host), or whose time has not moved for `STALE` seconds
    while this object watched, is broken. Two processes may still hold one lock after a break at the same moment, so
    what it guards must be right when done twice: it saves work, it does not keep order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[float, float] = (-1.0, 0.0)  # the lock's time, and when we first saw it, on our own clock
        self._stop: threading.Event | None = None

    def take(self) -> bool:
        """Whether the lock is ours now."""
        owner = json.dumps({"host": platform.node(), "here": _here(), "process": os.getpid()})
        for _ in range(2):  # again after a stale one is broken
            try:
                file = self.path.open("x", encoding="utf-8")
            except FileExistsError:
                if not self._stale():
                    return False
                self.path.unlink(missing_ok=True)
                continue
            self._stop = threading.Event()
            try:
                with file:
                    file.write(owner)
                threading.Thread(target=self._beat, args=(self._stop,), daemon=True).start()
                return True
            except BaseException:  # a lock that nobody holds would keep others waiting
                self.release()
                raise
        return False

    def release(self) -> None:
        """Give it up; nothing happens where it is not ours."""
        if self._stop:
            self._stop.set()
            with suppress(OSError):  # without a beat it ends by itself
                self.path.unlink(missing_ok=True)
            self._stop = None

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT):
            with suppress(OSError):
                os.utime(self.path)

    def _stale(self) -> bool:
        try:
            changed = self.path.stat().st_mtime
        except FileNotFoundError:
            return True
        with suppress(OSError, ValueError, TypeError, KeyError):  # being written, or torn: only time tells
            owner = json.loads(self.path.read_text(encoding="utf-8"))
            if _gone(owner["here"], owner["process"]):
                return True
        if changed != self._seen[0]:
            self._seen = changed, time.monotonic()
        return time.monotonic() - self._seen[1] > STALE or time.time() - changed > LONG


@cache
def _here() -> str:
    """Where a process number means what it means to us: this machine, since it was started, with what it can see."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8"))
        parts.append(os.readlink("/proc/self/ns/pid"))  # a container has its own numbers
    return sha256("".join(parts).encode()).hexdigest()[:8]


def _gone(here: str, process: int) -> bool:
    """Whether a process ran here and does no more; False where we cannot know."""
    if os.name == "nt" or here != _here():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError, TypeError):  # another user's; not a number
        return False
    return False


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_here()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _flush_folder(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder; its renames are journaled
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # open for writing only
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems do not flush folders
            raise
    finally:
        os.close(descriptor)


def read_json(path: Path, mend: str) -> Any:
    """What a JSON file holds. Raises InputError, with this mend, where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        reason = "nested too deep"
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
    raise InputError(str(path), f"cannot be read ({reason})", mend)
