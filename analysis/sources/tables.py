"""Read rows from CSV, TSV, JSONL and Parquet files. Any file yields either all its rows or one InputError.

1. `read_rows` opens a regular file or standard input (`Stdin`), detects a content that contradicts the suffix (gzip,
   xlsx, UTF-16 ...), streams ``(line, cells)`` of the selected columns, and checks at the end that the file did not
   change while it was read.
2. `.tsv` is quoted or not as its whole content says (quoting.py), `.csv` is, and --quoting overrides both. Numbers of
   classes become the names that a Parquet file or a dataset_info.json carries for them.

pandas is not used: it turns NA into missing, merges the labels 01, 1 and 1.0, shifts columns on an unquoted comma, and
merges rows of an unquoted TSV that start with a quote. Everything beyond numpy and the standard library is imported on
first use.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import operator
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from clsprobe.analysis.sources import SourceOptions
from clsprobe.analysis.sources.quoting import QuoteCounts
from clsprobe.probes.errors import InputError, did_you_mean, quote
from clsprobe.probes.files import open_file, read_content, read_error, spool_stream
from clsprobe.probes.tasks.rows import Findings, Row, check_columns, name_classes

if TYPE_CHECKING:
    import pyarrow as pa

Reader = Callable[["Source"], Iterator[Row]]  # the first line of every record and its selected cells

MAGIC = (  # first bytes, kind of file, remedy
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


def read_rows(path: Path | Stdin, columns: Sequence[str], options: SourceOptions, findings: Findings) -> Iterator[Row]:
    """Yield every row of a file: the physical line on which it starts (in Parquet: its number, from 1) and its cells.

    columns: the columns to read, text columns first. Problems of single rows go to `findings`. Raises InputError.
    """
    with _open_unchanged(path) as (file, head):
        source = Source(file, head, columns, options, findings)
        class_names = _find_class_names(path, source)
        rows = READERS[path.suffix.lower()](source)
        yield from name_classes(rows, class_names, columns, findings) if class_names else rows


@dataclass(frozen=True)
class Source:
    """The input of a reader: the open file, its first bytes, the columns to read (texts first), the problems so far."""

    file: BinaryIO
    head: bytes
    columns: Sequence[str]
    options: SourceOptions
    findings: Findings

    @property
    def name(self) -> str:
        """The name of the file in error messages."""
        return self.findings.name


# ---------------------------------------------------------------------------------------------------------------- files


@contextmanager
def _open_unchanged(path: Path | Stdin) -> Iterator[tuple[BinaryIO, bytes]]:
    """The open file and its first bytes. Raises InputError if it is of another type or changes meanwhile."""
    if isinstance(path, Stdin):
        with path.file as file:
            yield file, _read_head(path, file)
        return
    try:
        with open_file(path) as file:
            yield file, _read_head(path, file)
    except OSError as error:
        raise read_error(path.name, error) from None


def _read_head(path: Path | Stdin, file: BinaryIO) -> bytes:
    """The first bytes of a file, checked to match its suffix."""
    file.seek(0)
    head = file.read(4096)
    file.seek(0)
    if isinstance(path, Stdin):
        for suffix, magic in ((".parquet", b"PAR1"), (".jsonl", b'{"')):
            if path.suffix != suffix and head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(magic):
                what = f"looks like {suffix}, and is read as {path.suffix}"
                raise InputError(path.name, what, f"Say so: --task file:-{suffix}")
    _check_type(path, head)
    return head


def _check_type(path: Path | Stdin, head: bytes) -> None:
    """Raise InputError if the first bytes of a file contradict its suffix."""
    if not head:
        raise InputError(path.name, "file is empty")
    parquet = path.suffix.lower() == ".parquet"
    if parquet and head.startswith(b"PAR1"):
        return
    if head.startswith(b"PK\x03\x04") and (b"[Content_Types].xml" in head or b"xl/" in head):
        raise InputError(path.name, "is an Excel or Office file, whatever its name", "Save it as CSV UTF-8 from there")
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:64]
    for magic, what, mend in MAGIC:
        if head.startswith(magic) or (magic[:1] in b"<v" and start.lower().startswith(magic)):
            raise InputError(path.name, f"is {what}, whatever its name", mend)
    if parquet:
        is_text = not head.translate(None, bytes(range(32, 256)) + b"\t\r\n")
        mend = "It looks like text: rename it to .csv, .tsv or .jsonl" if is_text else "Was the download cut?"
        raise InputError(path.name, "not a Parquet file (it does not start with PAR1)", mend)


# -------------------------------------------------------------------------------------------------------- class names


def _find_class_names(path: Path | Stdin, source: Source) -> dict[str, list[str]]:
    """Label column -> the names of its classes by number, as the library `datasets` writes them.

    They stand in the schema of a Parquet file, else in a dataset_info.json beside the file, which a note mentions.
    """
    names: dict[str, list[str]] = {}
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        with suppress(Exception):  # a damaged file, of which the reader says more
            metadata = pq.read_schema(source.file).metadata or {}
            names = _class_names(json.loads(metadata.get(b"huggingface", b"{}")).get("info"), source)
        source.file.seek(0)
    if isinstance(path, Path) and not names and (neighbour := path.with_name("dataset_info.json")).is_file():
        with suppress(OSError, ValueError, RecursionError):  # other programs may call a file so
            names = _class_names(json.loads(read_content(neighbour)), source)
        if names:
            columns = " and ".join(map(quote, names))
            note = f"{path.name}: the class names of column {columns} are those of dataset_info.json beside it"
            source.findings.notes.append(note)
    return names


def _class_names(info: Any, source: Source) -> dict[str, list[str]]:
    """The class names of the columns to read, but for texts. info: a dataset_info.json, or what is in its place."""
    features = info.get("features") if isinstance(info, dict) else None
    names = {}
    for column in set(source.columns).difference(source.options.text_columns):
        feature = features.get(column) if isinstance(features, dict) else None
        classes = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
        if isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes):
            names[column] = classes
    return names


# ------------------------------------------------------------------------------------------------------- lines of text


@contextmanager
def _open_text(source: Source, newline: str | None) -> Iterator[io.TextIOWrapper]:
    """The lines of a text file, without byte-order mark. Raises InputError with the line that cannot be decoded."""
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


def _read_csv(source: Source) -> Iterator[Row]:
    yield from _read_separated(source, _parse_separator(source.options.sep))


def _parse_separator(sep: str | None) -> str:
    if sep is None:
        return ","
    sep = {"\\t": "\t", "tab": "\t"}.get(sep, sep)
    if len(sep) != 1 or sep in '"\r\n\0' or not (sep.isprintable() or sep == "\t"):
        raise InputError("--sep", f"{quote(sep)} cannot separate columns", "One character such as ; or | or \\t")
    return sep


def _read_tsv(source: Source) -> Iterator[Row]:
    if source.options.sep not in (None, "\t", "\\t", "tab"):
        raise InputError("--sep", f"{source.name} is separated by tabs", "Rename it to .csv, or leave --sep out")
    yield from _read_separated(source, "\t")


def _read_separated(source: Source, separator: str) -> Iterator[Row]:
    quoting = source.options.quoting
    if quoting == "auto":  # what is separated by tabs may be quoted or not; everything else is CSV
        quoting = _detect_quoting(source, separator) if separator == "\t" else "csv"
    yield from (_read_quoted if quoting == "csv" else _read_unquoted)(source, separator)


def _detect_quoting(source: Source, separator: str) -> Literal["csv", "none"]:
    """How the cells of a file are written, with a note if it could be read the other way too."""
    source.file.seek(0)
    if not any(b'"' in block for block in iter(lambda: source.file.read(1 << 20), b"")):
        return "none"
    with _open_text(source, newline="") as lines:
        counts = QuoteCounts.count(lines, separator)
    cells = f"{counts.quoted:,} cell{'s' if counts.quoted != 1 else ''}"
    if counts.is_quoted:
        note = f"the quotes around {cells} are quoting and not read as text; --quoting none reads them as text"
        source.findings.notes.append(f"{source.name}: {note}")
        return "csv"
    if counts.quoted and not counts.broken:
        note = f"the quotes around {cells} are read as text; --quoting csv reads them as quoting"
        source.findings.notes.append(f"{source.name}: {note}")
    return "none"


def _read_unquoted(source: Source, separator: str) -> Iterator[Row]:
    """Every line is a row, and every quote part of a cell."""
    mend = "A text must not hold a tab" if separator == "\t" else "A text must not hold the separator"
    if source.options.quoting == "none":
        mend += ", unless cells are quoted: then leave --quoting none out"
    with _open_text(source, newline=None) as lines:
        records = ((n, _split_line(line, separator)) for n, line in enumerate(lines, 1))
        yield from _select_cells(records, source, separator, mend)


def _split_line(line: str, separator: str) -> list[str]:
    return [] if line == "\n" else line.removesuffix("\n").split(separator)


def _read_quoted(source: Source, separator: str) -> Iterator[Row]:
    """Quotes may enclose a cell, which may then hold separators, line breaks, and quotes that are doubled."""

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
            if _fits_unquoted(source, separator):
                mend += ", or pass --quoting none if quotes belong to the texts"
            raise InputError(f"{source.name}:{start}", what, mend) from None

    limit = csv.field_size_limit(2**31 - 1)
    try:
        with _open_text(source, newline="") as lines:
            mend = "Put quotes around a text that holds the separator"
            yield from _select_cells(records(lines), source, separator, mend)
    finally:
        csv.field_size_limit(limit)


def _fits_unquoted(source: Source, separator: str) -> bool:
    """Whether the file can be read without quoting: every line has the fields of a header with the columns."""
    try:
        with _open_text(source, newline=None) as lines:
            records = (cells for line in lines if (cells := _split_line(line, separator)))
            header = next(records, [])
            return set(source.columns) <= set(header) and all(len(cells) == len(header) for cells in records)
    except InputError:  # a line that cannot be decoded
        return False


def _select_cells(records: Iterator[tuple[int, list[str]]], source: Source, separator: str, mend: str) -> Iterator[Row]:
    """The selected cells of records with a header. Blank lines ([]) are skipped."""
    name, columns = source.name, source.columns
    header = next((cells for _, cells in records if cells), None)
    if header is None:
        raise InputError(name, "file is empty")
    if len(header) == 1 and (others := [c for c in ";\t|," if c != separator and c in header[0]]):
        other = "\\t" if others[0] == "\t" else others[0]
        ask = "Rename it to .csv and pass" if separator == "\t" else "Pass"
        raise InputError(name, f"one column {quote(header[0])}. Separated by '{other}'?", f"{ask} --sep '{other}'")
    check_columns(header, columns, name, source.options)
    width, positions = len(header), [header.index(column) for column in columns]
    select = operator.itemgetter(*positions) if len(positions) > 1 else lambda cells: (cells[positions[0]],)
    rows, longer = 0, 0  # with one field more than the header
    for line, cells in records:
        rows += bool(cells)
        if len(cells) == width:
            yield line, select(cells)
        elif not cells:
            continue
        else:
            fields = f"{len(cells)} field{'s' if len(cells) > 1 else ''}"
            hint = mend if len(cells) > width else ""
            longer += len(cells) == width + 1
            source.findings.add(line, f"{fields}, header has {width}", hint, kind="fields")
    if not rows:
        raise InputError(name, "has a header but no rows")
    if longer == rows > 1:
        what = f"the header has {width} fields, and every row one more"
        raise InputError(name, what, "Name the first column in the header too (in R: col.names = NA)")


# ---------------------------------------------------------------------------------------------------------------- JSONL


class _Number(str):
    """A JSON number as written in the file: 1, 1.0 and 1e0 are three labels."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        raise ValueError("one object has a key twice")
    return cells


def _read_jsonl(source: Source) -> Iterator[Row]:
    decode = json.JSONDecoder(
        parse_int=_Number,
        parse_float=_Number,
        parse_constant=lambda name: None if name == "NaN" else _Number(name),
        object_pairs_hook=_unique_keys,
    ).decode
    columns, findings, texts = source.columns, source.findings, source.options.text_columns
    unseen, keys = set(columns), dict[str, None]()  # columns not found so far; all keys found so far
    pending: list[Row] = []  # the rows until every column was found
    rows = 0
    with _open_text(source, newline=None) as lines:
        for number, line in enumerate(lines, 1):
            if not (line := line.strip(" \t\r\n")):
                continue
            rows += 1
            if rows == 1 and line.startswith("["):
                raise InputError(f"{source.name}:{number}", "an array, not one object per line", "Try jq -c '.[]'")
            try:
                cells = decode(line)
            except (ValueError, RecursionError) as error:
                findings.add(number, f"not valid JSON ({_describe_error(error)})", kind="json")
                continue
            if not isinstance(cells, dict):
                mend = 'Each line is an object such as {"text": "...", "label": "..."}'
                findings.add(number, "not a JSON object", mend)
                continue
            row = number, [_json_cell(cells.get(c), c, c in texts, number, findings) for c in columns]
            if not unseen:
                yield row
                continue
            pending.append(row)
            keys.update(dict.fromkeys(cells))
            unseen -= cells.keys()
            if not unseen:
                yield from pending
            elif len(pending) == 1000:
                break
    if not rows:
        raise InputError(source.name, "file is empty")
    if unseen:
        findings.raise_problems()  # broken lines explain a missing column better
        check_columns(list(keys), columns, source.name, source.options)


def _describe_error(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    reason = (
        error.msg.replace("Expecting value", "expected a value").replace("Expecting", "expected").removesuffix(" at")
    )
    return f"{reason[0].lower()}{reason[1:]} at column {error.colno}"


def _json_cell(value: Any, column: str, is_text: bool, line: int, findings: Findings) -> str | None:
    """A JSON value as a cell: strings unchanged, numbers and booleans as their JSON text, null as None."""
    if type(value) is str or value is None:
        return value
    if not isinstance(value, list | dict):
        cell = str(value) if isinstance(value, _Number) else json.dumps(value)
        if not is_text:
            return cell
    what = {_Number: "a number", bool: "true or false", list: "a list", dict: "an object"}[type(value)]
    findings.add(line, f"column {quote(column)} holds {what}, not {'a string' if is_text else 'one value'}")
    return None


# -------------------------------------------------------------------------------------------------------------- Parquet


def _read_parquet(source: Source) -> Iterator[Row]:
    import pyarrow.parquet as pq

    name, columns = source.name, source.columns
    source.file.seek(0, os.SEEK_END)
    source.file.seek(-min(4, source.file.tell()), os.SEEK_END)
    if len(source.head) < 12 or source.file.read() != b"PAR1":
        raise InputError(name, "not a complete Parquet file (footer missing); was the download cut?")
    row = 0
    try:
        parquet = pq.ParquetFile(source.file)
        check_columns(parquet.schema_arrow.names, columns, name, source.options)
        texts = source.options.text_columns
        whole = {column for column in columns if _holds_whole_numbers(parquet, column, column in texts, source)}
        for batch in parquet.iter_batches(8192, columns=list(dict.fromkeys(columns))):
            cells = [_arrow_cells(batch.column(c), c in whole, c, row, source.findings) for c in columns]
            for values in zip(*cells, strict=True):
                row += 1
                yield row, values
    except (InputError, GeneratorExit):
        raise
    except Exception as error:  # Arrow raises many types of errors for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(name, f"damaged Parquet file ({reason})", "Write or download it again") from None
    if not row:
        raise InputError(name, "has columns but no rows")


def _holds_whole_numbers(parquet: Any, column: str, is_text: bool, source: Source) -> bool:
    """Whether a float column holds whole numbers only: class codes become floats when a value is missing.

    Raises InputError for a column type that is not supported.
    """
    from pyarrow import types

    dtype = parquet.schema_arrow.field(column).type
    dtype = dtype.value_type if types.is_dictionary(dtype) else dtype
    if types.is_nested(dtype) or (is_text and not _is_text_type(dtype)):
        what = f"column {quote(column)} holds {quote(str(dtype))}, not {'text' if is_text else 'one value'}"
        raise InputError(source.name, what, "Name another column")
    if not types.is_floating(dtype) or source.options.target == "number":
        return False
    for batch in parquet.iter_batches(65536, columns=[column]):
        values = np.asarray(batch.column(column).to_pylist(), float)
        values = values[~np.isnan(values)]
        if not (np.isfinite(values) & (values == np.floor(values))).all():
            return False
    note = f"{source.name}: column {quote(column)} holds whole numbers as floats; its classes are written without .0"
    source.findings.notes.append(note)
    return True


def _is_text_type(dtype: pa.DataType) -> bool:
    from pyarrow import types

    predicates = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(is_type(dtype) for is_type in predicates)


def _arrow_cells(column: pa.Array, whole: bool, name: str, start: int, findings: Findings) -> list[str | None]:
    """A batch of one column as cells. Checks UTF-8, which Arrow does not. start: rows before the batch."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not _is_text_type(column.type):
        return [_value_cell(value, whole) for value in column.to_pylist()]
    cells: list[str | None] = []
    for row, value in enumerate(column.cast(pa.large_binary()).to_pylist(), start + 1):
        try:
            cells.append(None if value is None else value.decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            what = f"column {quote(name)} is not UTF-8 (byte 0x{byte:02X})"
            findings.add(row, what, "Write the file again", kind=f"utf-8 {name}")
            cells.append(None)
    return cells


def _value_cell(value: Any, whole: bool) -> str | None:
    if value is None or value != value:  # None or NaN
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value) if whole else value)


READERS: dict[str, Reader] = {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
