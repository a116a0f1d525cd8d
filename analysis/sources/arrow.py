"""Rows of Parquet files and of Arrow streams, which ``Dataset.save_to_disk`` writes.

1. `_Table` gives the schema and the batches of either. Texts come as dictionaries, as they are stored: a file of a
   megabyte can say one long text a million times.
2. `_slices` cuts a batch into parts whose texts fit in memory, and bounds what a small file may hold.
3. `_arrow_cells` makes cells of a part. Nothing is unpickled: unknown extension types are refused as nested types are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clsprobe.analysis.sources.opening import LONGEST, TOO_LONG, Source
from clsprobe.analysis.sources.packed import check_content_size
from clsprobe.probes.errors import InputError, quote
from clsprobe.probes.tasks.rows import Findings, Row

if TYPE_CHECKING:
    import pyarrow as pa

SLICE = 1 << 23  # bytes of text that are made strings at once
BATCH = 2048  # rows
ROW = 64  # bytes that a row counts beside its texts, as it takes time without any; a million rows of labels are free
MEND = "read it with pandas and write its rows as .jsonl"


@dataclass(frozen=True)
class _Table:
    """schema: of all columns. read: the batches of some columns, as often as it is called. content_size: the bytes of
    some columns before dictionaries are written out, and `ROW` for every row, as the file says; 0 where it does not.
    """

    schema: pa.Schema
    read: Callable[[list[str]], Iterator[pa.RecordBatch]]
    content_size: Callable[[list[str]], int]


def read_parquet_rows(source: Source) -> Iterator[Row]:
    """The rows of a Parquet file. Raises InputError."""
    source.file.seek(0, os.SEEK_END)
    source.file.seek(-min(4, source.file.tell()), os.SEEK_END)
    if len(source.head) < 12 or source.file.read() != b"PAR1":
        raise InputError(source.name, "not a complete Parquet file (footer missing); was the download cut?")
    yield from _read_rows(source, _open_parquet, "Parquet file")


def read_arrow_rows(source: Source) -> Iterator[Row]:
    """The rows of a stream of Arrow batches. Raises InputError."""
    yield from _read_rows(source, _open_stream, "Arrow file")


def read_metadata(source: Source, suffix: str) -> dict[bytes, bytes]:
    """What the schema of a Parquet or Arrow file says beside its columns. Raises Arrow's errors."""
    source.file.seek(0)
    try:
        return (_open_stream if suffix == ".arrow" else _open_parquet)(source).schema.metadata or {}
    finally:
        source.file.seek(0)


def _open_parquet(source: Source) -> _Table:
    import pyarrow.parquet as pq

    plain = pq.ParquetFile(source.file)
    schema = plain.schema_arrow
    texts = [field.name for field in schema if _is_text_type(_value_type(field.type))]
    parquet = pq.ParquetFile(source.file, read_dictionary=texts)

    def content_size(columns: list[str]) -> int:
        groups = [parquet.metadata.row_group(n) for n in range(parquet.num_row_groups)]
        chunks = (group.column(n) for group in groups for n in range(group.num_columns))
        sizes = (chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)
        return ROW * parquet.metadata.num_rows + sum(sizes)

    return _Table(schema, lambda columns: parquet.iter_batches(BATCH, columns=columns), content_size)


def _open_stream(source: Source) -> _Table:
    import pyarrow as pa

    def read(columns: list[str]) -> Iterator[pa.RecordBatch]:
        source.file.seek(0)
        rows = 0
        for batch in pa.ipc.open_stream(source.file):
            rows += batch.num_rows
            check_content_size(source.name, ROW * rows, source.size, MEND)
            selected = batch.select(columns)
            selected.validate(full=True)  # offsets of a damaged file may lead anywhere in memory
            for start in range(0, selected.num_rows, BATCH):
                yield selected.slice(start, BATCH)

    source.file.seek(0)
    return _Table(pa.ipc.open_stream(source.file).schema, read, lambda columns: 0)


def _read_rows(source: Source, open_table: Callable[[Source], _Table], kind: str) -> Iterator[Row]:
    name, row, content_size = source.name, 0, 0
    try:
        table = open_table(source)
        columns = source.select(table.schema.names)
        width, texts = len(source.columns), len(source.options.text_columns)
        if source.side_column and not _is_text_type(_value_type(table.schema.field(source.side_column).type)):
            del columns[width:]
            source.side_column = None
        names = list(dict.fromkeys(columns))
        for n, column in enumerate(columns[:width]):
            _check_column(table.schema.field(column).type, column, source, is_text=n < texts)
        check_content_size(name, table.content_size(names), source.size, MEND)
        whole = {column for column in columns[:width] if _holds_whole_numbers(table, column, source)}
        findings = [source.findings] * width + [Findings(name)]  # nobody asked for the last one
        for batch in table.read(names):
            for part, size in _slices(batch, name, row):
                content_size += size
                check_content_size(name, content_size, source.size, MEND)
                cells = [
                    _arrow_cells(part.column(column), column in whole, column, row, of_column)
                    for column, of_column in zip(columns, findings, strict=False)
                ]
                for values in zip(*cells, strict=True):
                    row += 1
                    yield row, values
    except (InputError, GeneratorExit):
        raise
    except Exception as error:  # Arrow raises many types of errors for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(name, f"damaged {kind} ({reason})", "Write or download it again") from None
    if not row:
        raise InputError(name, "has columns but no rows")


def _slices(batch: pa.RecordBatch, name: str, start: int) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Parts of a batch with their bytes of text and `ROW` bytes for every row, each at most `SLICE` or one row.

    start: rows before the batch. Raises InputError for a text that is too long.
    """
    sizes = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        sizes += _text_sizes(column)
    if len(too_long := np.flatnonzero(sizes > 4 * LONGEST)):  # UTF-8 has up to four bytes for a character
        raise InputError(f"{name}:{start + too_long[0] + 1}", f"a row of more than {LONGEST:,} characters", TOO_LONG)
    sizes += ROW
    ends = sizes.cumsum()
    first = 0
    while first < batch.num_rows:
        before = ends[first] - sizes[first]
        last = max(first + 1, int(np.searchsorted(ends, before + SLICE, side="right")))
        yield batch.slice(first, last - first), int(ends[last - 1] - before)
        first = last


def _text_sizes(column: pa.Array) -> np.ndarray:
    """(row,) the bytes of a text; 0 for other values."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not _is_text_type(_value_type(column.type)):
        return np.zeros(len(column), np.int64)
    is_dictionary = pa.types.is_dictionary(column.type)
    values = column.dictionary if is_dictionary else column
    sizes = pc.fill_null(pc.binary_length(values.cast(pa.large_binary())), 0).to_numpy().astype(np.int64)
    if not is_dictionary:
        return sizes
    indices = pc.fill_null(column.indices, -1).to_numpy()
    return np.append(sizes, 0)[indices]


def _check_column(dtype: pa.DataType, column: str, source: Source, *, is_text: bool) -> None:
    """Raise InputError for a type of column that is not supported."""
    from pyarrow import types

    dtype = _value_type(dtype)
    if types.is_nested(dtype) or isinstance(dtype, _extension_type()) or (is_text and not _is_text_type(dtype)):
        what = f"column {quote(column)} holds {quote(str(dtype))}, not {'text' if is_text else 'one value'}"
        raise InputError(source.name, what, "Name another column")


def _extension_type() -> type:
    import pyarrow as pa

    return pa.BaseExtensionType


def _holds_whole_numbers(table: _Table, column: str, source: Source) -> bool:
    """Whether a float column holds whole numbers only: class codes become floats when a value is missing."""
    from pyarrow import types

    if not types.is_floating(_value_type(table.schema.field(column).type)) or source.options.target == "number":
        return False
    for batch in table.read([column]):
        values = np.asarray(batch.column(column).to_pylist(), float)
        values = values[~np.isnan(values)]
        if not (np.isfinite(values) & (values == np.floor(values))).all():
            return False
    note = f"{source.name}: column {quote(column)} holds whole numbers as floats; its classes are written without .0"
    source.findings.notes.append(note)
    return True


def _value_type(dtype: pa.DataType) -> pa.DataType:
    """The type of the values of a column, which may be a dictionary of them."""
    from pyarrow import types

    return dtype.value_type if types.is_dictionary(dtype) else dtype


def _is_text_type(dtype: pa.DataType) -> bool:
    from pyarrow import types

    predicates = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(is_type(dtype) for is_type in predicates)


def _arrow_cells(column: pa.Array, whole: bool, name: str, start: int, findings: Findings) -> list[str | None]:
    """A part of one column as cells. Checks UTF-8, which Arrow does not. start: rows before the part."""
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
