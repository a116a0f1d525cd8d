"""A disk that fails, and one that loses what was not flushed.

1. `Disk` stands between a run and the files below a folder: it records every call that changes them, lets one of them
   fail, and flushes nothing really, which is what takes the time.
2. `Record` plays the calls back up to a moment at which the power fails. What had been flushed is there. Of anything
   else, any part may be: a name that was created, renamed or removed since its folder was flushed, and content that was
   written since its file was, which may be lost, cut off, or zero in places.
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
    """One call that changes the disk. path: of what; for a rename, what it is called afterwards."""

    what: str
    path: Path
    source: Path | None = None
    content: bytes = b""

    @property
    def kind(self) -> str:
        """What it does to which sort of file: "fsync .manifest.json.tmp"."""
        name = self.path.name
        for what, plain in ((r"\.[0-9a-f]{8}-\d+-[0-9a-f]{8}(?=\.tmp)", ""), (r"[0-9a-f]{32}", "KEY"), (r"\d{5}", "N")):
            name = re.sub(what, plain, name)
        return f"{self.what} {name}"


class Disk:
    """Within the block, the files below `root` are watched.

    fail: the kind of the call that fails, how many of its kind go well before, and what it raises. A write that fails
    has written half of what it was given.
    """

    def __init__(self, root: Path, fail: tuple[str, int, BaseException] | None = None) -> None:
        self.root, self.calls, self.failed = root, list[Call](), False
        self._fail, self._seen, self._one = fail, Counter[str](), threading.Lock()
        self._at: dict[int, Path] = {}  # descriptor -> what it is open on
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

        def named(what: str, wanted: bool) -> Any:
            """A call on a name that is there, or is not, before: otherwise it fails by itself."""
            function = getattr(os, what)

            def call(path: Any, *rest: Any, **more: Any) -> Any:
                if self._watches(path) and os.path.lexists(path) == wanted:
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
                self._at[descriptor] = Path(path)
            return descriptor

        def close(descriptor: int) -> None:
            self._at.pop(descriptor, None)
            real["close"](descriptor)

        def fsync(descriptor: int) -> None:
            if descriptor in self._at:
                self._called(Call("fsync", self._at[descriptor]))

        changed = {"unlink": named("unlink", True), "utime": named("utime", True), "mkdir": named("mkdir", False)}
        changed |= {"replace": replace, "open": open_folder, "close": close, "fsync": fsync}
        self._stack.enter_context(patch.object(Path, "open", opened))
        for name, function in changed.items():
            self._stack.enter_context(patch.object(os, name, function))
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def _watches(self, path: Any) -> bool:
        return isinstance(path, str | Path) and self.root in Path(path).parents

    def _called(self, call: Call) -> None:
        with self._one:
            self.calls.append(call)
            self._seen[call.kind] += 1
            if self._fail and (call.kind, self._seen[call.kind] - 1) == self._fail[:2]:
                self.failed = True
                raise self._fail[2]


class _File:
    """A file that tells the disk what is done with it."""

    def __init__(self, disk: Disk, path: Path, file: Any) -> None:
        self._disk, self._path, self._file = disk, path, file
        disk._at[file.fileno()] = path

    def write(self, content: Any) -> int:
        try:
            told = content.encode() if isinstance(content, str) else bytes(content)
            self._disk._called(Call("write", self._path, content=told))
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
            self._disk._at.pop(self._file.fileno(), None)
        self._file.close()

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


# ----------------------------------------------------------------------------------------------------- the power fails


@dataclass
class _Inode:
    """What a file holds, whatever it is called: all that was written, and how much of it has been flushed."""

    content: bytearray = field(default_factory=bytearray)
    flushed: int = 0


@dataclass(frozen=True)
class _Moment:
    """The disk between two calls. names: those that are sure. loose: the changes of names that are not, in order.

    length, flushed: of every inode.
    """

    names: dict[Path, int]
    loose: tuple[tuple[Path | None, Path | None, int], ...]  # (name that goes, name that comes, inode)
    length: tuple[int, ...]
    flushed: tuple[int, ...]


class Record:
    """The moments of a run. `cut` draws what a power failure leaves at one of them."""

    def __init__(self, calls: Sequence[Call], root: Path) -> None:
        self.root = root
        self.inodes: list[_Inode] = []
        self.moments: list[_Moment] = []
        self.versions: dict[Path, list[int]] = {}  # of every name, the inodes that were renamed to it
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
                here = [change for change in loose if path in [name.parent for name in change[:2] if name]]
                names = _changed(names, here)
                loose = [change for change in loose if change not in here]
            elif call.what == "fsync":
                self.inodes[live[path]].flushed = len(self.inodes[live[path]].content)
            lengths = [(len(inode.content), inode.flushed) for inode in self.inodes]
            length, flushed = zip(*lengths, strict=True) if lengths else ((), ())
            self.moments.append(_Moment(names, tuple(loose), length, flushed))

    def cut(self, rng: np.random.Generator) -> tuple[int, dict[Path, int]]:
        """A moment, and the names that are there after a power failure at it, with their inodes."""
        at = int(rng.integers(len(self.moments)))
        moment = self.moments[at]
        likely = rng.choice([0.0, 0.5, 1.0])
        happened = rng.random(len(moment.loose)) < likely
        names = _changed(moment.names, [c for c, yes in zip(moment.loose, happened, strict=True) if yes])
        if lost := self.folders - names.keys() - {self.root}:
            names = {name: inode for name, inode in names.items() if not lost.intersection(name.parents)}
        return at, names

    def content(self, at: int, inode: int, rng: np.random.Generator) -> bytes:
        """What a file holds after a power failure at a moment."""
        length, flushed = self.moments[at].length[inode], self.moments[at].flushed[inode]
        whole = bytes(self.inodes[inode].content[:length])
        if length == flushed:
            return whole
        kept = whole[: int(rng.integers(flushed, length + 1))]
        how = rng.integers(4)
        if how == 0:
            return whole[:flushed]  # lost
        if how == 1:
            return kept  # cut off
        if how == 2:
            return kept + bytes(length - len(kept))  # as long as it was, with zeros
        return whole


def _changed(names: dict[Path, int], changes: Sequence[tuple[Path | None, Path | None, int]]) -> dict[Path, int]:
    names = dict(names)
    for gone, come, inode in changes:
        if gone is not None:
            names.pop(gone, None)
        if come is not None:
            names[come] = inode
    return names
