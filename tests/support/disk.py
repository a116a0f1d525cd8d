"""Simulate a disk that fails, and one that loses data that was not flushed.

1. `Disk` intercepts the calls of a run that change files below a folder: it records them, lets one fail, and skips real
   flushes, which are slow.
2. `Record` replays the calls up to a power failure. Flushed data survives. Any part of the rest may survive: names that
   were created, renamed or removed since their folder was flushed, and content written since its file was flushed,
   which may be lost, truncated, or partly zero.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np


@dataclass(frozen=True)
class Call:
    """One call that changes the disk. path: the file; for a rename, its new name."""

    what: str
    path: Path
    source: Path | None = None
    content: bytes = b""

    @property
    def kind(self) -> str:
        """The call and the kind of file: "fsync .manifest.json.tmp"."""
        name = self.path.name
        for pattern, plain in (
            (r"\.[0-9a-f]{8}-\d+-[0-9a-f]{8}(?=\.tmp)", ""),
            (r"[0-9a-f]{32}", "KEY"),
            (r"\d{5}", "N"),
        ):
            name = re.sub(pattern, plain, name)
        return f"{self.what} {name}"


class Disk:
    """Within the block, the files below `root` are watched.

    fail: the kind of the failing call, the number of calls of that kind that succeed before, and the error. A failing
    write has written half of its content.
    """

    def __init__(self, root: Path, fail: tuple[str, int, BaseException] | None = None) -> None:
        self.root, self.calls, self.failed = root, list[Call](), False
        self._fail, self._counts, self._lock = fail, Counter[str](), threading.Lock()
        self._paths: dict[int, Path] = {}  # descriptor -> open file
        self._stack = ExitStack()

    def __enter__(self) -> Disk:
        open_file = Path.open
        real = {name: getattr(os, name) for name in ("open", "close", "fsync", "replace")}

        def opened(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
            if not set(mode) & set("wxa") or not self._watches(path):
                return open_file(path, mode, *rest, **more)
            if not path.exists():
                self._called(Call("open", path))
            return _File(self, path, open_file(path, mode, *rest, **more))

        def record(what: str, must_exist: bool) -> Any:
            """A recorded call, unless it fails by itself because the name exists or does not."""
            function = getattr(os, what)

            def call(path: Any, *rest: Any, **more: Any) -> Any:
                if self._watches(path) and os.path.lexists(path) == must_exist:
                    self._called(Call(what, Path(path)))
                return function(path, *rest, **more)

            return call

        def replace(source: Any, target: Any) -> None:
            if self._watches(target):
                self._called(Call("replace", Path(target), Path(source)))
            real["replace"](source, target)

        def open_folder(path: Any, *rest: Any, **more: Any) -> int:
            descriptor = real["open"](path, *rest, **more)
            if self._watches(path) or path == self.root:
                self._paths[descriptor] = Path(path)
            return descriptor

        def close(descriptor: int) -> None:
            self._paths.pop(descriptor, None)
            real["close"](descriptor)

        def fsync(descriptor: int) -> None:
            if descriptor in self._paths:
                self._called(Call("fsync", self._paths[descriptor]))

        replacements = {
            "unlink": record("unlink", True),
            "utime": record("utime", True),
            "mkdir": record("mkdir", False),
        }
        replacements |= {"replace": replace, "open": open_folder, "close": close, "fsync": fsync}
        self._stack.enter_context(patch.object(Path, "open", opened))
        for name, function in replacements.items():
            self._stack.enter_context(patch.object(os, name, function))
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def _watches(self, path: Any) -> bool:
        return isinstance(path, str | Path) and self.root in Path(path).parents

    def _called(self, call: Call) -> None:
        with self._lock:
            self.calls.append(call)
            self._counts[call.kind] += 1
            if self._fail and (call.kind, self._counts[call.kind] - 1) == self._fail[:2]:
                self.failed = True
                raise self._fail[2]


class _File:
    """A file that records its calls on the disk."""

    def __init__(self, disk: Disk, path: Path, file: Any) -> None:
        self._disk, self._path, self._file = disk, path, file
        disk._paths[file.fileno()] = path

    def write(self, content: Any) -> int:
        try:
            data = content.encode() if isinstance(content, str) else bytes(content)
            self._disk._called(Call("write", self._path, content=data))
        except BaseException:
            self._file.write(content[: len(content) // 2])
            raise
        return self._file.write(content)

    def flush(self) -> None:
        self._disk._called(Call("flush", self._path))
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        if not self._file.closed:
            self._disk._paths.pop(self._file.fileno(), None)
        self._file.close()

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


# ----------------------------------------------------------------------------------------------------- the power fails


@dataclass
class _Inode:
    """The content of a file under any name, and how many of its bytes have been flushed."""

    content: bytearray = field(default_factory=bytearray)
    flushed: int = 0


@dataclass(frozen=True)
class _Moment:
    """The disk between two calls. names: flushed names. loose: the changes of names that are not flushed, in order.

    length, flushed: of every inode.
    """

    names: dict[Path, int]
    loose: tuple[tuple[Path | None, Path | None, int], ...]  # (old name, new name, inode)
    length: tuple[int, ...]
    flushed: tuple[int, ...]


class Record:
    """The moments of a run. `cut` draws the disk after a power failure at one of them."""

    def __init__(self, calls: Sequence[Call], root: Path) -> None:
        self.root = root
        self.inodes: list[_Inode] = []
        self.moments: list[_Moment] = []
        self.versions: dict[Path, list[int]] = {}  # name -> the inodes that were renamed to it
        live: dict[Path, int] = {}
        names: dict[Path, int] = {}
        loose: list[tuple[Path | None, Path | None, int]] = []
        self.folders = {root}
        for call in calls:
            path = call.path
            if call.what in ("open", "mkdir"):
                self.folders |= {path} if call.what == "mkdir" else set()
                self.inodes.append(_Inode())
                live[path] = len(self.inodes) - 1
                loose.append((None, path, live[path]))
            elif call.what == "write":
                self.inodes[live[path]].content += call.content
            elif call.what == "replace" and call.source is not None:
                live[path] = live.pop(call.source)
                loose.append((call.source, path, live[path]))
                self.versions.setdefault(path, []).append(live[path])
            elif call.what == "unlink":
                loose.append((path, None, live.pop(path)))
            elif call.what == "fsync" and path in self.folders:
                flushed_now = [change for change in loose if path in [name.parent for name in change[:2] if name]]
                names = _changed(names, flushed_now)
                loose = [change for change in loose if change not in flushed_now]
            elif call.what == "fsync":
                self.inodes[live[path]].flushed = len(self.inodes[live[path]].content)
            lengths = [(len(inode.content), inode.flushed) for inode in self.inodes]
            length, flushed = zip(*lengths, strict=True) if lengths else ((), ())
            self.moments.append(_Moment(names, tuple(loose), length, flushed))

    def cut(self, rng: np.random.Generator) -> tuple[int, dict[Path, int]]:
        """The index of a moment, and the names that survive a power failure at it, with their inodes."""
        index = int(rng.integers(len(self.moments)))
        moment = self.moments[index]
        likely = rng.choice([0.0, 0.5, 1.0])
        happened = rng.random(len(moment.loose)) < likely
        names = _changed(moment.names, [c for c, yes in zip(moment.loose, happened, strict=True) if yes])
        if lost := self.folders - names.keys() - {self.root}:
            names = {name: inode for name, inode in names.items() if not lost.intersection(name.parents)}
        return index, names

    def content(self, index: int, inode: int, rng: np.random.Generator) -> bytes:
        """The content of a file after a power failure at a moment."""
        length, flushed = self.moments[index].length[inode], self.moments[index].flushed[inode]
        whole = bytes(self.inodes[inode].content[:length])
        if length == flushed:
            return whole
        truncated = whole[: int(rng.integers(flushed, length + 1))]
        how = rng.integers(4)
        if how == 0:
            return whole[:flushed]  # lost
        if how == 1:
            return truncated
        if how == 2:
            return truncated + bytes(length - len(truncated))  # the full length, with zeros
        return whole


def _changed(names: dict[Path, int], changes: Sequence[tuple[Path | None, Path | None, int]]) -> dict[Path, int]:
    names = dict(names)
    for old, new, inode in changes:
        if old is not None:
            names.pop(old, None)
        if new is not None:
            names[new] = inode
    return names
