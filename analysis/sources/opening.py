"""Opens a file of rows for its reader: a regular file or standard input, unpacked, and checked to be what its name says.

1. `DataFile` is a file with the side of the split that it is. `Source` is one that is open, with what to read of it.
2. `open_source` opens it, detects a content that contradicts the suffix (xlsx, UTF-16 ...), and checks at the end that
   the file did not change while it was read.
3. `open_text` decodes text, and `bound_lines` refuses a line that no text has.

Imports nothing beyond the standard library until a file needs it.
"""

from __future__ import annotations

import codecs
import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import BinaryIO

from clsprobe.analysis.sources import SourceOptions, packed
from clsprobe.probes.errors import InputError, did_you_mean, quote
from clsprobe.probes.files import open_file, read_error, spool_stream
from clsprobe.probes.tasks.rows import ALIASES, Findings, check_columns

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".parq", ".pq", ".arrow")
BINARY = (".parquet", ".parq", ".pq", ".arrow")  # with a compression of their own
LONGEST = 1 << 24  # characters of a line, a cell or a record: three times the complete works of Shakespeare
TOO_LONG = "No encoder reads such a text: cut it, or leave it out"
SIDE_COLUMNS = ("split", "set", "fold", "part", "partition", "subset")  # names that a column of sides often has

MAGIC = (  # first bytes, kind of file, remedy
    (b"\x1f\x8b", "a gzip file", "Unpack it with gunzip"),
    (b"BZh", "a bzip2 file", "Unpack it with bunzip2"),
    (b"\xfd7zXZ\x00", "an xz file", "Unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", "Unpack it with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "Unpack it with 7z x"),
    (b"PK\x03\x04", "a zip archive", "Unpack it with unzip"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Office file", "Open it there and save it as CSV UTF-8"),
    (b"PAR1", "a Parquet file", "Rename it to .parquet"),
    (b"ARROW1", "an Arrow or Feather file with an index", "Write it again as Parquet"),
    (b"%PDF", "a PDF file", "Extract its table to a CSV file"),
    (b"SQLite format 3\x00", "an SQLite database", "Export the table as CSV"),
    (b"\x89PNG", "a PNG image", "Give a file of texts"),
    (b"\xff\xd8\xff", "a JPEG image", "Give a file of texts"),
    (b"version https://git-lfs", "a Git LFS pointer, not the data", "Fetch the data with git lfs pull"),
    (b"<!doctype html", "a web page", "Download the file itself, not the page about it"),
    (b"<html", "a web page", "Download the file itself, not the page about it"),
)
BYTE_ORDER_MARKS = (  # UTF-32 before UTF-16, whose little-endian mark is a prefix of UTF-32's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
NOT_FILES = {"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape"}  # not codecs of text files
ENCODINGS = ("utf-8", "utf-16", "utf-16-le", "latin-1", "cp1252", "cp1251", "shift_jis", "gb18030", "euc-kr")


class Stdin:
    """Standard input in place of a path. The constructor reads it to its end; the rows can be read once.

    suffix: the format, as a file suffix. Raises InputError if there is no input.
    """

    name, stem = "<stdin>", "stdin"

    def __init__(self, suffix: str) -> None:
        mend = "Pipe rows into the command, as in cat reviews.csv | clsprobe run --task file:-"
        if sys.stdin is None or sys.stdin.closed:
            raise InputError(self.name, "is closed", mend)
        if sys.stdin.isatty():
            raise InputError(self.name, "is a terminal, and no rows come from it", mend)
        self.suffix = suffix
        self.file = spool_stream(sys.stdin.buffer)
        if not self.file.read(1):
            self.file.close()
            raise InputError(self.name, "is empty, or was read by a task before this one", mend)


def split_suffix(name: str) -> tuple[str, str]:
    """The stem of a file's name and the suffix that says its format: ("reviews", ".csv") of Reviews.CSV.gz."""
    path = PurePath(name)
    inner = PurePath(path.stem)
    if path.suffix.lower() in packed.SUFFIXES and inner.suffix.lower() in SUFFIXES and inner.suffix.lower() not in BINARY:
        path = inner
    return path.stem, path.suffix.lower()


@dataclass(frozen=True)
class DataFile:
    """A file of rows. side: of the split that it is, None if it is not one side. name: in error messages."""

    path: Path | Stdin
    side: str | None
    name: str

    @property
    def suffix(self) -> str:
        """The suffix that says the format, in lower case."""
        return self.path.suffix if isinstance(self.path, Stdin) else split_suffix(self.path.name)[1]

    @property
    def is_separated(self) -> bool:
        """Whether it is a .csv or .tsv file."""
        return self.suffix in (".csv", ".tsv")


@dataclass
class Source:
    """The input of a reader: the open file, its first bytes, the columns to read (texts first), the problems so far.

    size: of the file on disk, in bytes. side: as in `DataFile`.
    """

    file: BinaryIO
    head: bytes
    size: int
    side: str | None
    columns: Sequence[str]
    options: SourceOptions
    findings: Findings
    side_column: str | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        """The name of the file in error messages."""
        return self.findings.name

    def select(self, header: Sequence[str]) -> list[str]:
        """The columns of the file whose cells a reader gives: those to read, and one that seems to hold a split.

        A name matches a column that has it, else one that has it but for spaces around it. Raises InputError.
        """
        names = self.match(header)
        check_columns(header, names[: len(self.columns)], self.name, self.options)
        return names

    def match(self, header: Sequence[str]) -> list[str]:
        """Like `select`, where columns that are not in this header may still come."""
        names = [self._match(column, header) for column in self.columns]
        if self.side is None and self.options.split_column is None:
            candidates = (column for column in header if column.strip().lower() in SIDE_COLUMNS)
            self.side_column = next((c for c in candidates if header.count(c) == 1 and c not in names), None)
        return [*names, self.side_column] if self.side_column else names

    def _match(self, column: str, header: Sequence[str]) -> str:
        matches = [name for name in header if name.strip() == column.strip()]
        if column in header or not matches:
            return column
        if len(matches) > 1:
            what = f"{' and '.join(map(quote, matches))} are both {quote(column.strip())} but for spaces"
            raise InputError(self.name, what, "Rename one of them")
        self.findings.notes.append(f"{self.name}: column {quote(column)} is {quote(matches[0])} in the header")
        return matches[0]

    def note_sides(self, rows: Iterable[tuple[int, Sequence[str | None]]]) -> Iterator[tuple[int, Sequence[str | None]]]:
        """The rows without the cell of a column that seems to hold a split, and a note where it holds nothing else."""
        width, sides = len(self.columns), Counter[str]()
        is_split = True
        for number, cells in rows:
            if len(cells) > width:
                if is_split:
                    side = ALIASES.get((cells[width] or "").strip().lower())
                    is_split = side is not None
                    sides[side or ""] += 1
                cells = cells[:width]
            yield number, cells
        if is_split and "train" in sides and len(sides) > 1:
            counts = ", ".join(f"{side} ({sides[side]:,})" for side in ("train", "dev", "test") if side in sides)
            what = f"column {quote(str(self.side_column))} holds {counts} and is not used as the split"
            mend = self.options.flag("split_column", str(self.side_column).strip())
            self.findings.notes.append(f"{self.name}: {what}; {mend} uses it")


# ---------------------------------------------------------------------------------------------------------------- files


@contextmanager
def open_source(
    data_file: DataFile, columns: Sequence[str], options: SourceOptions, findings: Findings
) -> Iterator[Source]:
    """A file for its reader. Raises InputError if it is of another type or changes meanwhile."""
    path = data_file.path

    def start(file: BinaryIO) -> Source:
        size = file.seek(0, io.SEEK_END)
        content = file if data_file.suffix in BINARY else packed.unpack(file, findings.name)
        content.seek(0)
        head = content.read(4096)
        content.seek(0)
        _check_type(data_file, findings.name, head)
        return Source(content, head, size, data_file.side, columns, options, findings)

    if isinstance(path, Stdin):
        with path.file as file:
            yield start(file)
        return
    try:
        with open_file(path) as file:
            yield start(file)
    except OSError as error:
        raise read_error(findings.name, error) from None


def _check_type(data_file: DataFile, name: str, head: bytes) -> None:
    """Raise InputError if the first bytes of a file contradict its suffix."""
    if not head:
        raise InputError(name, "file is empty")
    suffix, start = data_file.suffix, head.removeprefix(codecs.BOM_UTF8).lstrip()[:64]
    if isinstance(data_file.path, Stdin):
        for other, magic in ((".parquet", b"PAR1"), (".jsonl", b'{"')):
            if suffix != other and not (suffix == ".json" and other == ".jsonl") and start.startswith(magic):
                what = f"looks like {other}, and is read as {suffix}"
                raise InputError(name, what, f"Say so: --task file:-{other}")
    is_parquet = suffix in BINARY and suffix != ".arrow"
    if is_parquet and head.startswith(b"PAR1"):
        return
    if head.startswith(b"PK\x03\x04") and (b"[Content_Types].xml" in head or b"xl/" in head):
        raise InputError(name, "is an Excel or Office file, whatever its name", "Save it as CSV UTF-8 from there")
    if head[257:262] == b"ustar":
        raise InputError(name, "is a tar archive, whatever its name", "Unpack it with tar -xf")
    for magic, what, mend in MAGIC:
        if head.startswith(magic) or (magic[:1] in b"<v" and start.lower().startswith(magic)):
            raise InputError(name, f"is {what}, whatever its name", mend)
    if suffix in BINARY and not (suffix == ".arrow" and head.startswith(b"\xff\xff\xff\xff")):
        is_text = not head.translate(None, bytes(range(32, 256)) + b"\t\r\n")
        mend = "It looks like text: rename it to .csv, .tsv or .jsonl" if is_text else "Was the download cut?"
        kind = "a Parquet file (it does not start with PAR1)" if is_parquet else "a stream of Arrow tables"
        raise InputError(name, f"not {kind}", mend)


# ----------------------------------------------------------------------------------------------------------------- text


@contextmanager
def open_text(source: Source, newline: str | None) -> Iterator[io.TextIOWrapper]:
    """The text of a file, without byte-order mark. Raises InputError with the line that cannot be decoded."""
    encoding, start = _detect_encoding(source.head, source.options.encoding, source.name)
    source.file.seek(start)
    lines = io.TextIOWrapper(source.file, encoding, newline=newline)
    try:
        yield lines
    except UnicodeError:
        source.file.seek(start)
        raise _decoding_error(source.file, encoding, source.name) from None
    finally:
        lines.detach()


def _detect_encoding(head: bytes, encoding: str, name: str) -> tuple[str, int]:
    """The codec of a file and the offset of its text: that of --encoding, refined by a byte-order mark."""
    try:
        codec = codecs.lookup(encoding)
        if not getattr(codec, "_is_text_encoding", True) or codec.name in NOT_FILES:
            raise LookupError
    except (LookupError, ValueError):
        guess = did_you_mean(encoding, ENCODINGS)
        hint = f"Did you mean '{guess}'?" if guess else f"Common ones: {', '.join(ENCODINGS)}"
        raise InputError("--encoding", f"unknown encoding {quote(encoding)}", hint) from None
    for mark, exact in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            family = "utf-8" if exact == "utf-8" else exact[:6]
            if not codec.name.startswith(family):
                what = f"starts with a {family.upper()} byte-order mark, so it is not {codec.name}"
                raise InputError(name, what, f"Pass --encoding {family}")
            return exact, len(mark)
    for first, exact in ((1, "utf-16-le"), (0, "utf-16-be")):  # ASCII in UTF-16: every other byte is zero
        if codec.name == "utf-8" and len(head) >= 8 and not any(head[first:40:2]) and all(head[1 - first : 40 : 2]):
            raise InputError(name, "looks like UTF-16 without a byte-order mark", f"Pass --encoding {exact}")
    return codec.name, 0


def _decoding_error(file: BinaryIO, encoding: str, name: str) -> InputError:
    """The error for a file with another encoding. Decodes it again to find the line."""
    title = encoding.upper()
    byte_decoder = codecs.getincrementaldecoder(encoding)()
    decoder, line, ascii_so_far = io.IncrementalNewlineDecoder(byte_decoder, translate=True), 1, True
    block = b"x"
    try:
        while block:
            block = file.read(1 << 16)
            decoded = decoder.decode(block, final=not block)
            line, ascii_so_far = line + decoded.count("\n"), ascii_so_far and decoded.isascii()
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(encoding, "replace")
        line += len(before.replace("\r\n", "\n").replace("\r", "\n").split("\n")) - 1
        byte = error.object[error.start : error.start + 1]
        what = f"not {title} (byte 0x{byte.hex().upper()})" if byte else f"not {title} (its last character is cut)"
        if encoding != "utf-8":
            return InputError(f"{name}:{line}", what, "Pass the encoding it was written in as --encoding")
        if not (ascii_so_far and before.isascii()):  # valid UTF-8 so far: a damaged byte, not another encoding
            return InputError(f"{name}:{line}", what, "The text before it is UTF-8: mend this line")
        try:
            (error.object[error.start :]).decode("cp1252")
            guess = "cp1252"
        except UnicodeDecodeError:
            guess = "latin-1"
        return InputError(f"{name}:{line}", what, f"Looks like {guess}: pass --encoding {guess} or convert the file")
    except UnicodeError:
        pass  # UTF-16 or UTF-32 without byte-order mark
    mend = f"Pass --encoding {encoding}-le, or the one it was written in"
    return InputError(name, f"not {title}: no byte-order mark", mend)


def bound_lines(stream: io.TextIOBase, name: str) -> Iterator[str]:
    """The lines of a text with their ends. Raises InputError for a line of more than `LONGEST` characters."""
    for number, line in enumerate(iter(partial(stream.readline, LONGEST + 1), ""), 1):
        if len(line) > LONGEST:
            raise InputError(f"{name}:{number}", f"a line of more than {LONGEST:,} characters", TOO_LONG)
        yield line
