"""The only module that writes to disk.

1. `replacing` and the functions built on it write a file completely or not at all: under a temporary name beside the
   target, flushed to disk, then renamed over the target. The folder is flushed too, so that the rename survives a power
   cut. `remove_temporary_files` removes the temporary files of writers that were killed.
2. `spool_stream` copies a stream to an anonymous file that can be read more than once. `file_digest` is a SHA-256.
3. `Lock` marks a file that a process is working on, so that two processes share the work instead of doing it twice.
4. `check_folder` tests whether a file system supports what 1 and 3 rely on; some network file systems do not.

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

from clsprobe.probes.errors import InputError, escape_surrogates

if TYPE_CHECKING:
    import pandas as pd

BEAT, STALE = 2.0, 30.0  # seconds between two heartbeats of a lock, and without one until it is stale
ABANDONED = 3600.0  # seconds without a change until a file is abandoned, more than clocks of machines differ
TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}\.tmp", re.DOTALL)  # machine, process


@contextmanager
def replacing(path: Path | str) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends, or is removed if the block raises."""
    path = Path(path)
    temporary = _temporary_path(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException:
        with suppress(OSError):  # report the first error
            temporary.unlink(missing_ok=True)
        raise


def spool_stream(stream: BinaryIO) -> BinaryIO:
    """The content of a stream as an anonymous file, positioned at its start."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        while block := stream.read(1 << 20):
            file.write(block)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path | str, text: str) -> None:
    """Replace `path` by `text` in UTF-8, with line ends unchanged.

    An unpaired surrogate, which stands for a byte in the name of a file that is not UTF-8, becomes an escape such as
    \\udce9, which JSON reads back.
    """
    with replacing(path) as file:
        file.write(escape_surrogates(text).encode())


def write_parquet(path: Path | str, table: pd.DataFrame) -> None:
    """Replace `path` by `table` as Parquet (zstd), without the index."""
    dictionary_columns = list(
        table.select_dtypes(exclude="number")
    )  # dictionaries of numbers take memory and rarely save any
    # not written to the open file: pandas would open it again by its name
    content = table.to_parquet(None, index=False, compression="zstd", use_dictionary=dictionary_columns)
    with replacing(path) as file:
        file.write(content)


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of a folder whose writers have ended, killed or by a power cut."""
    for path in folder.glob(".*.tmp"):
        match = TEMPORARY.fullmatch(path.name)
        with suppress(FileNotFoundError):  # its writer has just finished
            if match and (_process_ended(match[1], int(match[2])) or time.time() - path.stat().st_mtime > ABANDONED):
                path.unlink()


def make_folder(path: Path | str, *, private: bool = False) -> Path:
    """Create `path` and its parents, and flush every folder in which one was created.

    private: closed to other users; the mode of an existing folder that is not empty is left unchanged.
    """
    path = Path(path)
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
    if private and not created and os.name != "nt" and not any(path.iterdir()):
        path.chmod(0o700)
    for folder in created:
        _flush_folder(folder.parent)
    return path


def check_folder(path: Path) -> None:
    """Raise OSError if files cannot be written, created exclusively or replaced atomically."""
    probe = _temporary_path(path / "try")
    try:
        with replacing(probe) as file:
            file.write(b"old")
        with suppress(FileExistsError):
            probe.open("xb").close()
            raise OSError(errno.ENOTSUP, "Two processes can create one file there", str(path))
        with replacing(probe) as file:
            file.write(b"new")
        if probe.read_bytes() != b"new":
            raise OSError(errno.ENOTSUP, "Files cannot be replaced there", str(path))
        touch(probe)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def set_aside(path: Path, suffix: str) -> None:
    """Rename a file that must not be read again, and keep it for inspection."""
    os.replace(path, path.with_name(path.name + suffix))
    _flush_folder(path.parent)


def touch(path: Path) -> None:
    """Set the modification time of a file to now, to mark it as recently used."""
    os.utime(path)


class Lock:
    """A lock file that names the process that holds it and is touched every `BEAT` seconds.

    `take` never waits. It breaks a lock whose process has ended (on this host), or whose modification time has not
    changed for `STALE` seconds while this object waited. Two processes that break it at the same moment may both hold
    it, so the guarded work must be correct when done twice: the lock saves work, it is no mutual exclusion.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[float, float] = (-1.0, 0.0)  # the lock's modification time, and our clock when first seen
        self._stop: threading.Event | None = None

    def take(self) -> bool:
        """Try to take the lock, and return whether this object holds it."""
        owner = json.dumps({"host": platform.node(), "here": _machine_id(), "process": os.getpid()})
        for _ in range(2):  # a second time after breaking a stale lock
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
            except BaseException:  # others would wait for a lock that nobody holds
                self.release()
                raise
        return False

    def release(self) -> None:
        """Release the lock; does nothing if this object does not hold it."""
        if self._stop:
            self._stop.set()
            with suppress(OSError):  # without heartbeats it becomes stale
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
        with suppress(OSError, ValueError, TypeError, KeyError):  # incomplete: only its age counts
            owner = json.loads(self.path.read_text(encoding="utf-8"))
            if _process_ended(owner["here"], owner["process"]):
                return True
        if changed != self._seen[0]:
            self._seen = changed, time.monotonic()
        return time.monotonic() - self._seen[1] > STALE or time.time() - changed > ABANDONED


@cache
def _machine_id() -> str:
    """Digest of the scope in which a process number is unique: this machine since its start, and its container."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8"))
        parts.append(os.readlink("/proc/self/ns/pid"))  # a container numbers its processes itself
    return sha256("".join(parts).encode()).hexdigest()[:8]


def _process_ended(machine: str, process: int) -> bool:
    """Whether a process of this machine has ended; False if that cannot be known."""
    if os.name == "nt" or machine != _machine_id():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError, TypeError):  # another user's; not a number
        return False
    return False


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_machine_id()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _flush_folder(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder; its renames are journaled
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be written to but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems do not flush folders
            raise
    finally:
        os.close(descriptor)


def read_json(path: Path, mend: str) -> Any:
    """The content of a JSON file. Raises InputError with this `mend` if it cannot be read or parsed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        reason = "nested too deep"
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
    raise InputError(str(path), f"cannot be read ({reason})", mend)
