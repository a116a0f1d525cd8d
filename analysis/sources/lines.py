"""Line-based text files, compressed or not: find the path of a SPEC and read its numbered lines.

`find_path` finds the file or folder; `read_lines` streams it and raises an InputError with the physical line for
invalid bytes. Imports only the standard library, and pyarrow for Zstandard.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

from clsprobe.analysis.sources.opening import BYTE_ORDER_MARKS, MAGIC, bound_lines
from clsprobe.analysis.sources.packed import unpack
from clsprobe.probes.errors import InputError, did_you_mean
from clsprobe.probes.files import open_file, read_error
from clsprobe.probes.tasks.texts import PAIRED


def find_path(rest: str, example: str) -> Path:
    """The file or folder that a SPEC names. Raises InputError; `example` is a valid SPEC for its message."""
    if not rest:
        raise InputError("--task", "no path is named", f"Name one, as in {example}")
    path = Path(rest)
    try:
        path = path.expanduser()
        path.stat()
        return path
    except FileNotFoundError:
        missing = path
        while not missing.parent.exists():
            missing = missing.parent
        what = "no such file or folder" if missing == path else f"no such folder {missing}"
        guess = did_you_mean(missing.name, sorted(os.listdir(missing.parent)))
        raise InputError(rest, what, f"Did you mean {guess}?" if guess else "Check the path") from None
    except (OSError, ValueError, RuntimeError) as error:  # no permission, a name too long, a NUL in it, no home for ~
        raise read_error(rest[:200], error, "Check the path") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file with their numbers from 1, without line ends and byte-order mark.

    Raises InputError for another type of file, invalid UTF-8, a damaged compressed file, and a file that changes meanwhile.
    """
    name, number = path.name, 0
    try:
        with open_file(path) as file:
            content = unpack(file, name)
            head = content.read(64)
            content.seek(0)
            _check_type(name, head)
            # Invalid bytes become lone surrogates, which valid UTF-8 cannot contain, so that their line is known.
            stream = io.TextIOWrapper(content, "utf-8-sig", errors="surrogateescape")
            for number, line in enumerate(bound_lines(stream, name), 1):
                if not line.isascii():
                    _check_line(f"{name}:{number}", line)
                yield number, line.removesuffix("\n")
    except OSError as error:
        raise read_error(name, error) from None
    if not number:
        raise InputError(name, "file is empty")


def _check_type(name: str, head: bytes) -> None:
    """Raise InputError if the first bytes of a file show that it is not UTF-8 text."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if head.startswith(mark) and encoding != "utf-8":
            raise InputError(name, f"starts with a {encoding[:6].upper()} byte-order mark", "Convert it to UTF-8")
    for magic, what, mend in MAGIC:
        if head.lower().startswith(magic.lower()):
            raise InputError(name, f"is {what}, whatever its name", mend)


def _check_line(where: str, line: str) -> None:
    try:
        line.encode()
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) - 0xDC00
        raise InputError(where, f"not UTF-8 (byte 0x{byte:02X})", "Convert the file to UTF-8") from None
    if PAIRED in line:
        raise InputError(where, "holds U+FDD0, which is no character", "Remove it")
