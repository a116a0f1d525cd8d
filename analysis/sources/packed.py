"""Compressed files: gzip, bzip2, xz and Zstandard, recognised by their first bytes and read as streams.

1. `unpack` puts a stream of the content over the open file; nothing is unpacked to the disk.
2. `check_content_size` bounds what a small file may hold: a few kilobytes can unpack to terabytes.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from typing import Any, BinaryIO

from clsprobe.probes.errors import InputError

FREE_CONTENT = 64 << 20  # bytes that any file may hold, however small it is
LINE = 128  # bytes that a line counts beside its own: what takes time is the number of rows
HIGHEST_RATIO = 200  # of content to file beyond that; texts reach 3 to 20, and logs that repeat themselves 100


def largest_content(packed_size: int) -> int:
    """How many bytes of content a packed file of this size may have."""
    return max(FREE_CONTENT, HIGHEST_RATIO * packed_size)


def check_content_size(name: str, content_size: int, packed_size: int, mend: str) -> None:
    """Raise InputError for more content than a file of this size may have. mend: how to read it nevertheless."""
    if content_size > (largest := largest_content(packed_size)):
        what = f"is {packed_size:,} bytes and holds more than {largest >> 20:,} MB, which no real texts do"
        raise InputError(name, what, f"If it is right, {mend}")


def unpack(file: BinaryIO, name: str) -> BinaryIO:
    """The content of a compressed file as a stream that can be read again from its start; the file itself otherwise.

    name: of the file in error messages. Reading raises InputError for a damaged file and for one that unpacks to more
    than `largest_content`.
    """
    file.seek(0)
    head = file.read(10)
    file.seek(0)
    kind = next((kind for beginning, kind in _KINDS.items() if re.match(beginning, head)), None)
    return io.BufferedReader(_Content(file, name, *kind), 1 << 16) if kind else file


class _Content(io.RawIOBase):
    """What a packed file holds. Seeking back unpacks it again from the start."""

    def __init__(self, file: BinaryIO, name: str, kind: str, program: str, start: Callable[[BinaryIO], Any]):
        self._file, self._name, self._kind, self._program, self._start = file, name, kind, program, start
        self._packed_size = file.seek(0, os.SEEK_END)
        self._rewind()

    def _rewind(self) -> None:
        self._file.seek(0)
        self._stream, self._position, self._lines = self._start(self._file), 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        target = offset + (self._position if whence == os.SEEK_CUR else 0)
        if whence == os.SEEK_END:
            raise io.UnsupportedOperation("the end of a packed file is not known")
        if target < self._position:
            self._rewind()
        while self._position < target and self.read(min(1 << 16, target - self._position)):
            pass
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            content = self._stream.read(len(buffer))
        except Exception as error:  # every library has types of its own
            reason = (str(error).lower().splitlines() or [""])[0].rstrip(".")
            if isinstance(error, EOFError) or "truncated" in reason:
                what, mend = f"the {self._kind} file ends before its content does", "Was the download or the copy cut?"
            else:
                what, mend = f"damaged {self._kind} file ({reason})", "Download or pack it again"
            raise InputError(self._name, what, mend) from None
        self._position += len(content)
        self._lines += content.count(b"\n")
        mend = f"unpack it with {self._program} and give that file"
        check_content_size(self._name, self._position + LINE * self._lines, self._packed_size, mend)
        buffer[: len(content)] = content
        return len(content)


def _start_gzip(file: BinaryIO) -> Any:
    import gzip

    return gzip.GzipFile(fileobj=file, mode="rb")


def _start_bzip2(file: BinaryIO) -> Any:
    import bz2

    return bz2.BZ2File(file)


def _start_xz(file: BinaryIO) -> Any:
    import lzma

    return lzma.LZMAFile(file)


def _start_zstandard(file: BinaryIO) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(_Borrowed(file), "r"), "zstd")


class _Borrowed(io.RawIOBase):
    """A file that stays open when the library that reads it closes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


_KINDS: dict[bytes, tuple[str, str, Callable[[BinaryIO], Any]]] = {  # pattern of the first bytes -> kind, program
    b"\x1f\x8b": ("gzip", "gunzip", _start_gzip),
    b"BZh[1-9]1AY&SY": ("bzip2", "bunzip2", _start_bzip2),
    b"\xfd7zXZ\x00": ("xz", "unxz", _start_xz),
    rb"\x28\xb5\x2f\xfd": ("Zstandard", "unzstd", _start_zstandard),
}
