"""Rows out of CSV, TSV, JSONL and Parquet files, whatever bytes they hold: every row, or one InputError.

1. `read` opens a regular file or takes what standard input gave (`Stdin`), names what it really is when its suffix lies
   (gzip, xlsx, UTF-16 ...), streams ``(line, cells)`` of the columns asked for, and checks at the end that nobody wrote
   to the file meanwhile.
2. `Findings` gathers what is wrong with single rows, so that one error names up to ten rows of one kind.
3. `Texts` packs strings into one buffer as they come; `ArrowTexts` is the read-only sequence made of it.

pandas is not used: it turns NA into missing, makes 01, 1 and 1.0 one class, shifts columns on an unquoted comma, and
merges the TSV rows that start with a quote. Only numpy and the standard library are imported before they are needed.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import operator
import os
import stat
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, SupportsIndex, overload

import numpy as np

from clsprobe.analysis.sources import SourceOptions
from clsprobe.probes.errors import InputError, did_you_mean, named_rows
from clsprobe.probes.files import spooled

if TYPE_CHECKING:
    import pyarrow as pa

Reader = Callable[["Source"], Iterator["Row"]]
Row = tuple[int, Sequence[str | None]]  # the line on which the record starts, the cells asked for (None: no value)

MAGIC = (  # how a file begins, what that is, what to do about it
    (b"\x1f\x8b", "a gzip file", "Unpack it with gunzip"),
    (b"BZh", "a bzip2 file", "Unpack it with bunzip2"),
    (b"\xfd7zXZ\x00", "an xz file", "Unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", "Unpack it with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "Unpack it with 7z x"),
    (b"PK\x03\x04", "a zip archive", "Unpack it with unzip"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Office file", "Open it there and save it as CSV UTF-8"),
    (b"PAR1", "a Parquet file", "Rename it to .parquet"),
    (b"ARROW1", "an Arrow file", "Write it again as Parquet"),
    (b"%PDF", "a PDF file", "Extract its table to a CSV file"),
    (b"SQLite format 3\x00", "an SQLite database", "Export the table as CSV"),
    (b"\x89PNG", "a PNG image", "Give a file of texts"),
    (b"\xff\xd8\xff", "a JPEG image", "Give a file of texts"),
    (b"version https://git-lfs", "a Git LFS pointer, not the data", "Fetch the data with git lfs pull"),
    (b"<!doctype html", "a web page", "Download the file itself, not the page about it"),
    (b"<html", "a web page", "Download the file itself, not the page about it"),
)
BYTE_ORDER_MARKS = (  # the longer first: UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
NOT_FILES = {"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape"}  # codecs no text file is in
ENCODINGS = ("utf-8", "utf-16", "utf-16-le", "latin-1", "cp1252", "cp1251", "shift_jis", "gb18030", "euc-kr")


class Stdin:
    """Standard input in the place of a path: taken in to its end when it is made, and read once.

    suffix: of a file with such content. digest: SHA-256 of the content. Raises InputError where nothing comes.
    """

    name, stem = "<stdin>", "stdin"

    def __init__(self, suffix: str) -> None:
        mend = "Pipe rows into the command, as in cat reviews.csv | clsprobe run --task file:-"
        if sys.stdin is None or sys.stdin.closed:
            raise InputError(self.name, "is closed", mend)
        if sys.stdin.isatty():
            raise InputError(self.name, "is a terminal, and no rows come from it", mend)
        self.suffix = suffix
        self.file, self.digest = spooled(sys.stdin.buffer)
        if not self.file.read(1):
            self.file.close()
            raise InputError(self.name, "is empty, or was read by a task before this one", mend)


def read(path: Path | Stdin, columns: Sequence[str], options: SourceOptions, findings: Findings) -> Iterator[Row]:
    """Every row of a file: the physical line on which it starts (in Parquet: the row, from 1) and its cells.

    columns: the columns wanted, those of the texts first. Rows that cannot be read go to `findings`.
    """
    with _steady(path) as (file, head):
        yield from READERS[path.suffix.lower()](Source(file, head, columns, options, findings))


def shown(value: str, limit: int = 60) -> str:
    """A name or a cell in quotes, cut where it would flood the message."""
    return f"'{value}'" if len(value) <= limit else f"'{value[:limit]}...'"


@dataclass(frozen=True)
class Source:
    """What a reader needs: the open file, its first bytes, the columns wanted (texts first), and where problems go."""

    file: BinaryIO
    head: bytes
    columns: Sequence[str]
    options: SourceOptions
    findings: Findings

    @property
    def name(self) -> str:
        """The file as errors call it."""
        return self.findings.name


class Findings:
    """What reading one file brought up: notes, and the rows that are wrong, by kind.

    name: the file as errors call it. unit: what its numbers count ("line"; "row" in Parquet).
    """

    def __init__(self, path: Path | Stdin) -> None:
        self.name = path.name
        self.unit = "row" if path.suffix.lower() == ".parquet" else "line"
        self.notes: list[str] = []
        self._problems: dict[str, tuple[str, str, array[int]]] = {}

    def problem(self, line: int, what: str, mend: str = "", kind: str = "") -> None:
        """Remember that `line` is wrong; the first of a `kind` (by default `what` itself) words the message."""
        self._problems.setdefault(kind or what, (what, mend, array("q")))[2].append(line)

    def check(self) -> None:
        """Raise the problems of the kind that came first, if any came."""
        for what, mend, lines in self._problems.values():
            if more := lines[1:]:
                plural = "s" if len(more) > 1 else ""
                what += f" (likewise {self.unit}{plural} {named_rows(more, 9)})"
            raise InputError(f"{self.name}:{lines[0]}", what, mend)


class Texts:
    """Strings packed into one UTF-8 buffer as they come: a million short ones take their bytes plus 8 MB."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        """Add one text; UnicodeEncodeError if it has an unpaired surrogate, and then nothing is added."""
        self._bytes += text.encode()
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def finish(self) -> ArrowTexts:
        """The texts as a read-only sequence over the same memory; nothing may be appended afterwards."""
        import pyarrow as pa

        ends, text = pa.py_buffer(self._ends), pa.py_buffer(self._bytes)
        return ArrowTexts(pa.LargeStringArray.from_buffers(len(self), ends, text))


class ArrowTexts(Sequence[str]):
    """A `Sequence[str]` over an Arrow string array: Python strings exist only while someone looks at them."""

    def __init__(self, array: pa.Array) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> ArrowTexts: ...
    def __getitem__(self, index: SupportsIndex | slice) -> str | ArrowTexts:
        if isinstance(index, slice):
            return ArrowTexts(self.array[index])
        return self.array[operator.index(index)].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 4096):
            yield from self.array[start : start + 4096].to_pylist()

    def __repr__(self) -> str:
        return f"<ArrowTexts: {len(self):,} texts>"


# ---------------------------------------------------------------------------------------------------------------- files


@contextmanager
def _steady(path: Path | Stdin) -> Iterator[tuple[BinaryIO, bytes]]:
    """The open file and its first bytes; an InputError where it is no such file or somebody writes to it meanwhile."""
    name = path.name
    if isinstance(path, Stdin):
        with path.file as file:
            yield file, _begun(path, file)
        return
    try:
        before = os.stat(path)
        if not stat.S_ISREG(before.st_mode):  # opening a FIFO would wait for ever
            raise InputError(name, "not a regular file", "Save the rows to a file first")
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            try:
                yield file, _begun(path, file)
            except InputError:
                _check_same(path, before)  # a half-written file is the better explanation of what looks wrong in it
                raise
            _check_same(path, before)
    except OSError as error:
        raise InputError(name, f"cannot be read ({(error.strerror or str(error)).lower()})") from None


def _begun(path: Path | Stdin, file: BinaryIO) -> bytes:
    """The first bytes of a file, which are those of such a file."""
    file.seek(0)
    head = file.read(4096)
    file.seek(0)
    if isinstance(path, Stdin):
        for suffix, begin in ((".parquet", b"PAR1"), (".jsonl", b'{"')):
            if path.suffix != suffix and head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(begin):
                what = f"looks like {suffix}, and is read as {path.suffix}"
                raise InputError(path.name, what, f"Say so: --task file:-{suffix}")
    _check_type(path, head)
    return head


def _check_same(path: Path, before: os.stat_result) -> None:
    after = os.stat(path)
    if (after.st_size, after.st_mtime_ns, after.st_ino) != (before.st_size, before.st_mtime_ns, before.st_ino):
        raise InputError(path.name, "changed while being read", "Run again when nothing writes to it")


def _check_type(path: Path | Stdin, head: bytes) -> None:
    """Refuse a file whose first bytes say that it is not what its suffix says."""
    if not head:
        raise InputError(path.name, "file is empty")
    parquet = path.suffix.lower() == ".parquet"
    if parquet and head.startswith(b"PAR1"):
        return
    if head.startswith(b"PK\x03\x04") and (b"[Content_Types].xml" in head or b"xl/" in head):
        raise InputError(path.name, "is an Excel or Office file, whatever its name", "Save it as CSV UTF-8 from there")
    begin = head.removeprefix(codecs.BOM_UTF8).lstrip()[:64]
    for magic, what, mend in MAGIC:
        if head.startswith(magic) or (magic[:1] in b"<v" and begin.lower().startswith(magic)):
            raise InputError(path.name, f"is {what}, whatever its name", mend)
    if parquet:
        text = not head.translate(None, bytes(range(32, 256)) + b"\t\r\n")
        mend = "It looks like text: rename it to .csv, .tsv or .jsonl" if text else "Was the download cut?"
        raise InputError(path.name, "not a Parquet file (it does not start with PAR1)", mend)


# ------------------------------------------------------------------------------------------------------- lines of text


@contextmanager
def _decoded(source: Source, newline: str | None) -> Iterator[io.TextIOWrapper]:
    """The lines of a text file without its byte-order mark; InputError names the line that cannot be decoded."""
    encoding, start = _encoding(source.head, source.options.encoding, source.name)
    source.file.seek(start)
    lines = io.TextIOWrapper(source.file, encoding, newline=newline)
    try:
        yield lines
    except UnicodeError:
        source.file.seek(start)
        raise _undecodable(source.file, encoding, source.name) from None
    finally:
        lines.detach()


def _encoding(head: bytes, asked: str, name: str) -> tuple[str, int]:
    """The codec of a file and where its text starts: what --encoding says, made exact by a byte-order mark."""
    try:
        codec = codecs.lookup(asked)
        if not getattr(codec, "_is_text_encoding", True) or codec.name in NOT_FILES:
            raise LookupError
    except (LookupError, ValueError):
        guess = did_you_mean(asked, ENCODINGS)
        hint = f"Did you mean '{guess}'?" if guess else f"Common ones: {', '.join(ENCODINGS)}"
        raise InputError("--encoding", f"unknown encoding {shown(asked)}", hint) from None
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


def _undecodable(file: BinaryIO, encoding: str, name: str) -> InputError:
    """Where a file stops being text of this encoding, found by decoding it once more."""
    title = encoding.upper()
    decoder = codecs.getincrementaldecoder(encoding)()
    text, line, ascii_so_far = io.IncrementalNewlineDecoder(decoder, translate=True), 1, True
    block = b"x"
    try:
        while block:
            block = file.read(1 << 16)
            decoded = text.decode(block, final=not block)
            line, ascii_so_far = line + decoded.count("\n"), ascii_so_far and decoded.isascii()
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(encoding, "replace")
        line += len(before.replace("\r\n", "\n").replace("\r", "\n").split("\n")) - 1
        bad = error.object[error.start : error.start + 1]
        what = f"not {title} (byte 0x{bad.hex().upper()})" if bad else f"not {title} (its last character is cut)"
        if encoding != "utf-8":
            return InputError(f"{name}:{line}", what, "Pass the encoding it was written in as --encoding")
        if not (ascii_so_far and before.isascii()):  # good UTF-8 until here: a broken byte, not another encoding
            return InputError(f"{name}:{line}", what, "The text before it is UTF-8: mend this line")
        try:
            (error.object[error.start :]).decode("cp1252")
            guess = "cp1252"
        except UnicodeDecodeError:
            guess = "latin-1"
        return InputError(f"{name}:{line}", what, f"Looks like {guess}: pass --encoding {guess} or convert the file")
    except UnicodeError:
        pass  # UTF-16 and UTF-32 without their mark
    mend = f"Pass --encoding {encoding}-le, or the one it was written in"
    return InputError(name, f"not {title}: no byte-order mark", mend)


def _csv(source: Source) -> Iterator[Row]:
    def records(lines: io.TextIOWrapper) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(lines, delimiter=separator, strict=True)
        start = 1  # a quoted newline makes a record span lines
        try:
            for cells in reader:
                yield start, cells
                start = reader.line_num + 1
        except csv.Error as error:
            what, mend = f"broken quoting ({error})", 'Inside quotes, write " as ""'
            if "unexpected end of data" in str(error):
                what, mend = "a quote opens in this record and never closes", "Close it, or double it"
            raise InputError(f"{source.name}:{start}", what, mend) from None

    separator = _separator(source.options.sep)
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with _decoded(source, newline="") as lines:
            mend = "Put quotes around a text that holds the separator"
            yield from _cells(records(lines), source, separator, mend)
    finally:
        csv.field_size_limit(limit)


def _separator(sep: str | None) -> str:
    if sep is None:
        return ","
    sep = {"\\t": "\t", "tab": "\t"}.get(sep, sep)
    if len(sep) != 1 or sep in '"\r\n\0' or not (sep.isprintable() or sep == "\t"):
        raise InputError("--sep", f"{shown(sep)} cannot separate columns", "One character such as ; or | or \\t")
    return sep


def _tsv(source: Source) -> Iterator[Row]:
    if source.options.sep not in (None, "\t", "\\t", "tab"):
        raise InputError("--sep", f"{source.name} is separated by tabs", "Rename it to .csv, or leave --sep out")
    # No quoting: a sentence that starts with a quote would swallow the rows after it. One line is one row.
    with _decoded(source, newline=None) as lines:
        records = ((n, [] if line == "\n" else line.removesuffix("\n").split("\t")) for n, line in enumerate(lines, 1))
        yield from _cells(records, source, "\t", "A text must not hold a tab")


def _cells(records: Iterator[tuple[int, list[str]]], source: Source, separator: str, mend: str) -> Iterator[Row]:
    """The wanted cells of records with a header; blank lines ([]) are no records."""
    name, columns = source.name, source.columns
    header = next((cells for _, cells in records if cells), None)
    if header is None:
        raise InputError(name, "file is empty")
    if len(header) == 1 and (others := [c for c in ";\t|," if c != separator and c in header[0]]):
        other = "\\t" if others[0] == "\t" else others[0]
        ask = "Rename it to .csv and pass" if separator == "\t" else "Pass"
        raise InputError(name, f"one column {shown(header[0])}. Separated by '{other}'?", f"{ask} --sep '{other}'")
    _check_columns(header, columns, name)
    width, at, empty = len(header), [header.index(column) for column in columns], True
    pick = operator.itemgetter(*at) if len(at) > 1 else lambda cells: (cells[at[0]],)
    for line, cells in records:
        if len(cells) == width:
            yield line, pick(cells)
        elif not cells:
            continue
        else:
            fields = f"{len(cells)} field{'s' if len(cells) > 1 else ''}"
            hint = mend if len(cells) > width else ""
            source.findings.problem(line, f"{fields}, header has {width}", hint, kind="fields")
        empty = False
    if empty:
        raise InputError(name, "has a header but no rows")


def _check_columns(header: Sequence[str], columns: Sequence[str], name: str) -> None:
    if double := [c for n, c in enumerate(header) if c and c in header[:n]]:
        raise InputError(name, f"two columns are called {shown(double[0])}", "Rename one of them")
    if missing := [c for c in columns if c not in header]:
        listed = ", ".join(shown(c)[1:-1] for c in header[:20])
        listed += f" and {len(header) - 20} more" if len(header) > 20 else ""
        guesses = [g for c in missing if (g := did_you_mean(c, [h for h in header if len(h) < 200]))]
        hint = "Name it with --text-column or --label-column"
        if guesses:
            hint = f"Did you mean {' and '.join(map(shown, dict.fromkeys(guesses)))}?"
        raise InputError(name, f"no column {' and no column '.join(map(shown, missing))}", f"Columns: {listed}. {hint}")


# ---------------------------------------------------------------------------------------------------------------- JSONL


class _Number(str):
    """A JSON number as it stands in the file: 1 and 1.0 and 1e0 are three labels."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        raise ValueError("one object has a key twice")
    return cells


def _jsonl(source: Source) -> Iterator[Row]:
    decode = json.JSONDecoder(
        parse_int=_Number,
        parse_float=_Number,
        parse_constant=lambda name: None if name == "NaN" else _Number(name),
        object_pairs_hook=_object,
    ).decode
    columns, findings, texts = source.columns, source.findings, source.options.text_columns
    sought, known = set(columns), dict[str, None]()  # columns no row had yet, and the keys that rows had until then
    early: list[Row] = []  # the rows until every column was seen once
    rows = 0
    with _decoded(source, newline=None) as lines:
        for number, line in enumerate(lines, 1):
            if not (line := line.strip(" \t\r\n")):
                continue
            rows += 1
            if rows == 1 and line.startswith("["):
                raise InputError(f"{source.name}:{number}", "an array, not one object per line", "Try jq -c '.[]'")
            try:
                cells = decode(line)
            except (ValueError, RecursionError) as error:
                findings.problem(number, f"not valid JSON ({_reason(error)})", kind="json")
                continue
            if not isinstance(cells, dict):
                mend = 'Each line is an object such as {"text": "...", "label": "..."}'
                findings.problem(number, "not a JSON object", mend)
                continue
            row = number, [_plain_json(cells.get(c), c, c in texts, number, findings) for c in columns]
            if not sought:
                yield row
                continue
            early.append(row)
            known.update(dict.fromkeys(cells))
            sought -= cells.keys()
            if not sought:
                yield from early
            elif len(early) == 1000:
                break
    if not rows:
        raise InputError(source.name, "file is empty")
    if sought:
        findings.check()  # broken lines explain a missing column better
        _check_columns(list(known), columns, source.name)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    reason = (
        error.msg.replace("Expecting value", "expected a value").replace("Expecting", "expected").removesuffix(" at")
    )
    return f"{reason[0].lower()}{reason[1:]} at column {error.colno}"


def _plain_json(value: Any, column: str, text: bool, line: int, findings: Findings) -> str | None:
    """A JSON value as a cell: strings as they are, numbers and booleans as their JSON text, null as no value."""
    if type(value) is str or value is None:
        return value
    if not isinstance(value, list | dict):
        plain = str(value) if isinstance(value, _Number) else json.dumps(value)
        if not text:
            return plain
    what = {_Number: "a number", bool: "true or false", list: "a list", dict: "an object"}[type(value)]
    findings.problem(line, f"column {shown(column)} holds {what}, not {'a string' if text else 'one value'}")
    return None


# -------------------------------------------------------------------------------------------------------------- Parquet


def _parquet(source: Source) -> Iterator[Row]:
    import pyarrow.parquet as pq

    name, columns = source.name, source.columns
    source.file.seek(0, os.SEEK_END)
    source.file.seek(-min(4, source.file.tell()), os.SEEK_END)
    if len(source.head) < 12 or source.file.read() != b"PAR1":
        raise InputError(name, "not a complete Parquet file (footer missing); was the download cut?")
    row = 0
    try:
        parquet = pq.ParquetFile(source.file)
        _check_columns(parquet.schema_arrow.names, columns, name)
        texts = source.options.text_columns
        whole = {column for column in columns if _is_whole(parquet, column, column in texts, source)}
        for batch in parquet.iter_batches(8192, columns=list(dict.fromkeys(columns))):
            cells = [_plain_arrow(batch.column(c), c in whole, c, row, source.findings) for c in columns]
            for values in zip(*cells, strict=True):
                row += 1
                yield row, values
    except (InputError, GeneratorExit):
        raise
    except Exception as error:  # a damaged file may raise anything from the depths of Arrow
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(name, f"damaged Parquet file ({reason})", "Write or download it again") from None
    if not row:
        raise InputError(name, "has columns but no rows")


def _is_whole(parquet: Any, column: str, text: bool, source: Source) -> bool:
    """Whether a column of floats holds whole numbers only: classes that became floats because one value was missing.

    Refuses, on the way, a column of a type that is no cell.
    """
    from pyarrow import types

    kind = parquet.schema_arrow.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_nested(kind) or (text and not _is_text(kind)):
        what = f"column {shown(column)} holds {shown(str(kind))}, not {'text' if text else 'one value'}"
        raise InputError(source.name, what, "Name another column")
    if not types.is_floating(kind) or source.options.target == "number":
        return False
    for batch in parquet.iter_batches(65536, columns=[column]):
        values = np.asarray(batch.column(column).to_pylist(), float)
        values = values[~np.isnan(values)]
        if not (np.isfinite(values) & (values == np.floor(values))).all():
            return False
    note = f"{source.name}: column {shown(column)} holds whole numbers as floats; its classes are written without .0"
    source.findings.notes.append(note)
    return True


def _is_text(kind: pa.DataType) -> bool:
    from pyarrow import types

    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in tests)


def _plain_arrow(column: pa.Array, whole: bool, name: str, before: int, findings: Findings) -> list[str | None]:
    """A batch of one column as cells. Arrow does not check that its strings are UTF-8, so it is checked here."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not _is_text(column.type):
        return [_plain_value(value, whole) for value in column.to_pylist()]
    cells: list[str | None] = []
    for row, value in enumerate(column.cast(pa.large_binary()).to_pylist(), before + 1):
        try:
            cells.append(None if value is None else value.decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            what = f"column {shown(name)} is not UTF-8 (byte 0x{byte:02X})"
            findings.problem(row, what, "Write the file again", kind=f"utf-8 {name}")
            cells.append(None)
    return cells


def _plain_value(value: Any, whole: bool) -> str | None:
    if value is None or value != value:  # None or NaN: no value
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value) if whole else value)


READERS: dict[str, Reader] = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl, ".parquet": _parquet}
