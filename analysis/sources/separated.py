"""Rows of .csv and .tsv files.

1. The separator is that of --sep, or of Excel's first line ``sep=;``, or a comma; in a .tsv file a tab.
2. `.tsv` is quoted or not as its whole content says (quoting.py), `.csv` is, and --quoting overrides both.
3. `_select_cells` takes the columns by the header, or by number with --no-header.

pandas is not used: it turns NA into missing, merges the labels 01, 1 and 1.0, shifts columns on an unquoted comma, and
merges rows of an unquoted TSV that start with a quote.
"""

from __future__ import annotations

import csv
import operator
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Literal

from clsprobe.analysis.sources.opening import LONGEST, TOO_LONG, Source, bound_lines, open_text
from clsprobe.analysis.sources.quoting import QuoteCounts
from clsprobe.probes.errors import InputError, quote
from clsprobe.probes.tasks.labels import is_number
from clsprobe.probes.tasks.rows import Row

Record = tuple[int, list[str]]  # the first line of a row, and its cells
EXCEL_SEPARATOR = re.compile(r'"?sep=(.)"?')  # https://support.microsoft.com: a first line that Excel reads and writes
SAMPLE = 200  # rows that show whether a file has no header


def read_csv(source: Source) -> Iterator[Row]:
    """The rows of a .csv file. Raises InputError."""
    with open_text(source, newline=None) as stream:
        first_line = stream.readline(16).rstrip("\n")
    declared = EXCEL_SEPARATOR.fullmatch(first_line)
    separator = _parse_separator(source.options.sep or (declared[1] if declared else ","))
    yield from _read_separated(source, separator, skip=bool(declared))


def read_tsv(source: Source) -> Iterator[Row]:
    """The rows of a .tsv file. Raises InputError."""
    if source.options.sep not in (None, "\t", "\\t", "tab"):
        raise InputError("--sep", f"{source.name} is separated by tabs", "Rename it to .csv, or leave --sep out")
    yield from _read_separated(source, "\t", skip=False)


def _parse_separator(sep: str) -> str:
    sep = {"\\t": "\t", "tab": "\t"}.get(sep, sep)
    if len(sep) != 1 or sep in '"\r\n\0' or not (sep.isprintable() or sep == "\t"):
        raise InputError("--sep", f"{quote(sep)} cannot separate columns", "One character such as ; or | or \\t")
    return sep


def _read_separated(source: Source, separator: str, *, skip: bool) -> Iterator[Row]:
    """skip: the first line is not one of the table."""
    quoting = source.options.quoting
    if quoting == "auto":  # what is separated by tabs may be quoted or not; everything else is CSV
        quoting = _detect_quoting(source, separator, skip=skip) if separator == "\t" else "csv"
    read = _quoted_records if quoting == "csv" else _unquoted_records
    mend = "Put quotes around a text that holds the separator"
    if quoting == "none":
        mend = "A text must not hold a tab" if separator == "\t" else "A text must not hold the separator"
        if source.options.quoting == "none":
            mend += ", unless cells are quoted: then leave --quoting none out"
    with open_text(source, newline="" if quoting == "csv" else None) as stream:
        lines = bound_lines(stream, source.name)
        yield from _select_cells(read(islice(lines, skip, None), source, separator, skip), source, separator, mend)


def _detect_quoting(source: Source, separator: str, *, skip: bool) -> Literal["csv", "none"]:
    """How the cells of a file are written, with a note if it could be read the other way too."""
    source.file.seek(0)
    if not any(b'"' in block for block in iter(lambda: source.file.read(1 << 20), b"")):
        return "none"
    with open_text(source, newline="") as stream:
        lines: Iterator[str] = islice(bound_lines(stream, source.name), skip, None)
        if source.options.no_header:
            first_line = next(lines, "")
            header = separator * first_line.count(separator) + "\n"
            lines = chain([header, first_line], lines)
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


def _unquoted_records(lines: Iterator[str], source: Source, separator: str, skipped: int) -> Iterator[Record]:
    """Every line is a row, and every quote part of a cell. skipped: how many lines stand before these."""
    return ((number, _split_line(line, separator)) for number, line in enumerate(lines, 1 + skipped))


def _split_line(line: str, separator: str) -> list[str]:
    return [] if line == "\n" else line.removesuffix("\n").split(separator)


def _quoted_records(lines: Iterator[str], source: Source, separator: str, skipped: int) -> Iterator[Record]:
    """Quotes may enclose a cell, which may then hold separators, line breaks, and quotes that are doubled."""
    reader = csv.reader(lines, delimiter=separator, strict=True)
    start = 1 + skipped  # a quoted newline makes a record span lines
    limit = csv.field_size_limit(LONGEST)
    try:
        for cells in reader:
            yield start, cells
            start = reader.line_num + 1 + skipped
    except csv.Error as error:
        what, mend = f"broken quoting ({error})", 'Inside quotes, write " as ""'
        if "unexpected end of data" in str(error):
            what, mend = "a quote opens in this record and never closes", "Close it, or double it"
        elif "field limit" in str(error):
            what, mend = f"a cell of more than {LONGEST:,} characters", TOO_LONG
            if reader.line_num + skipped > start:
                what, mend = f"{what}, over several lines: does a quote open and never close?", "Close it, or double it"
        if _fits_unquoted(source, separator, skipped):
            mend += ", or pass --quoting none if quotes belong to the texts"
        raise InputError(f"{source.name}:{start}", what, mend) from None
    finally:
        csv.field_size_limit(limit)


def _fits_unquoted(source: Source, separator: str, skipped: int) -> bool:
    """Whether the file can be read without quoting: every line has the fields of a header with the columns."""
    try:
        with open_text(source, newline=None) as stream:
            lines = islice(bound_lines(stream, source.name), skipped, None)
            records = (cells for line in lines if (cells := _split_line(line, separator)))
            header = next(records, [])
            names = _numbers(len(header)) if source.options.no_header else header
            return set(source.columns) <= set(names) and all(len(cells) == len(header) for cells in records)
    except InputError:  # a line that cannot be decoded
        return False


def _numbers(width: int) -> list[str]:
    """The names of columns without a header."""
    return [str(number) for number in range(1, width + 1)]


def _select_cells(records: Iterator[Record], source: Source, separator: str, mend: str) -> Iterator[Row]:
    """The selected cells of records. Blank lines ([]) are skipped."""
    name = source.name
    records = (record for record in records if record[1])
    first = next(records, None)
    if first is None:
        raise InputError(name, "file is empty")
    header = first[1]
    if len(header) == 1 and (others := [c for c in ";\t|," if c != separator and c in header[0]]):
        other = "\\t" if others[0] == "\t" else others[0]
        ask = "Rename it to .csv and pass" if separator == "\t" else "Pass"
        raise InputError(name, f"one column {quote(header[0])}. Separated by '{other}'?", f"{ask} --sep '{other}'")
    if source.options.no_header:
        header, records = _numbers(len(header)), chain([first], records)
        source.findings.notes.append(f"{name}: read without a header, so that its first row is data")
    elif set(source.columns).isdisjoint(column.strip() for column in header):
        sample = list(islice(records, SAMPLE))
        records = chain(sample, records)
        _check_header(header, [cells for _, cells in sample], source)
    columns, width = source.select(header), len(header)
    positions = [header.index(column) for column in columns]
    select = operator.itemgetter(*positions) if len(positions) > 1 else lambda cells: (cells[positions[0]],)
    title = "the first row" if source.options.no_header else "header"
    rows, longer = 0, 0  # with one field more than the header
    for line, cells in records:
        rows += 1
        if len(cells) == width:
            yield line, select(cells)
            continue
        what = f"{len(cells)} field{'s' if len(cells) > 1 else ''}, {title} has {width}"
        longer += len(cells) == width + 1
        source.findings.add(line, what, mend if len(cells) > width else "", kind="fields")
    if not rows:
        raise InputError(name, "has a header but no rows")
    if longer == rows > 1:
        what = f"the header has {width} fields, and every row one more"
        raise InputError(name, what, "Name the first column in the header too (in R: col.names = NA)")


def _check_header(header: Sequence[str], rows: Sequence[Sequence[str]], source: Source) -> None:
    """Raise InputError if a first row without any of the columns looks like data: it has a number, or a label that
    later rows have too. The error names the columns that are most probably texts and labels.
    """
    rows = [row for row in rows if len(row) == len(header)]
    columns = list(zip(header, *rows, strict=True)) if len(rows) > 1 and len(header) > 1 else []
    lengths = [sum(map(len, cells)) for cells in columns]
    repeated = [n for n, cells in enumerate(columns) if cells[0].strip() and cells[0] in cells[1:]]
    if not repeated and not any(is_number(cells[0]) and all(map(is_number, cells)) for cells in columns):
        return
    text = max(range(len(columns)), key=lengths.__getitem__)
    others = [n for n in repeated if n != text] or [n for n in range(len(columns)) if n != text]
    label = min(others, key=lambda n: (len(set(columns[n])) < 2, len(set(columns[n]))))
    options = source.options
    flags = [
        options.flag("no_header", True),
        *([options.flag("text_column", str(text + 1))] if options.text_columns else []),
        *([options.flag("label_column", str(label + 1))] if options.label_column else []),
    ]
    what = f"the first row looks like data, not like a header: {', '.join(quote(cell, 30) for cell in header[:5])}"
    raise InputError(source.name, what, f"If so, pass {' '.join(flags)}; if not, name columns of the header")
