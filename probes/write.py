"""The one place that writes anything to disk.

1. `replacing` and what is built on it: every file appears whole or not at all. It is written under a temporary name
   beside its target, flushed to the disk, renamed over the target, and the folder is flushed so that the rename itself
   survives a power cut.
2. `Lock`: who is at work on a file, so that two processes share the work instead of doing it twice.

Imports no torch.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import pandas as pd

BEAT, STALE = 2.0, 30.0  # seconds: between two signs of life, and without one


@contextmanager
def replacing(path: Path | str) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well and leaves no trace when it does not."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path | str, text: str) -> None:
    """Replace `path` by `text` in UTF-8, with the line ends as they are."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_parquet(path: Path | str, table: pd.DataFrame) -> None:
    """Replace `path` by `table` as Parquet (zstd), without the index."""
    with replacing(path) as file:
        table.to_parquet(file, index=False, compression="zstd")


def make_folder(path: Path | str, *, private: bool = False) -> Path:
    """Create `path` and its parents, and flush the parent that received it. private: closed to other users."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    if private and os.name != "nt":
        path.chmod(0o700)
    _flush_folder(path.parent)
    return path


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
        owner = json.dumps({"host": platform.node(), "process": os.getpid()})
        for _ in range(2):  # again after a stale one is broken
            with suppress(FileExistsError):
                with self.path.open("x", encoding="utf-8") as file:
                    file.write(owner)
                self._stop = threading.Event()
                threading.Thread(target=self._beat, args=(self._stop,), daemon=True).start()
                return True
            if not self._stale():
                return False
            self.path.unlink(missing_ok=True)
        return False

    def release(self) -> None:
        """Give it up; nothing happens where it is not ours."""
        if self._stop:
            self._stop.set()
            self._stop = None
            self.path.unlink(missing_ok=True)

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT):
            with suppress(OSError):
                os.utime(self.path)

    def _stale(self) -> bool:
        try:
            changed, owner = self.path.stat().st_mtime, json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return True
        except ValueError:  # being written, or torn by a power cut: only time tells
            owner = {}
        if os.name != "nt" and owner.get("host") == platform.node() and not _runs(owner.get("process")):
            return True
        if changed != self._seen[0]:
            self._seen = changed, time.monotonic()
        return time.monotonic() - self._seen[1] > STALE


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, TypeError):  # another user's; not a number
        return True
    return True


def _flush_folder(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder; its renames are journaled
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
