"""Whether the cells of a separated file are quoted, judged by the whole file.

Two conventions share the suffix .tsv. csv, pandas, Excel and R enclose a cell in quotes where it holds a quote, a
separator or a line break, and double the quotes inside. Corpora such as CoLA and SST quote nothing: a sentence that
begins with a quote stands as it is. Either of them read as the other goes wrong in silence.

1. `_read_cells` walks through a file as CSV, in constant memory, and says of every cell how it is written.
2. `QuoteCounts.count` adds up what speaks for quoting and against it.
3. `QuoteCounts.is_quoted` decides: by a header in quotes; by the reading that gives every row as many fields as the
   header has; by the cells that only a program that quotes writes, against those that it never writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

# How a cell is written. QUOTED: enclosed in quotes. DOUBLED, SPANNING, SEPARATING, COMMA: inside is a doubled quote, a
# line break, a separator, a comma. BARE: with a quote in it, not enclosed. BROKEN: the closing quote is missing or is
# not the end of the cell. ESCAPED: likewise, as a backslash stands before that quote.
EMPTY, QUOTED, DOUBLED, SPANNING, SEPARATING, COMMA, BARE, BROKEN, ESCAPED = (1 << bit for bit in range(9))
_INSIDE_QUOTES = re.compile(r'[^"]*(?:""[^"]*)*')


@dataclass
class QuoteCounts:
    """How often the cells of a file are written in which way.

    uneven_lines, uneven_records: rows without as many fields as the first one, read line by line, and as CSV.
    doubled: quoted cells on one line with a doubled quote. spanning: quoted cells with a line break. plain: quoted
    cells with nothing inside that needs quotes, not even a comma, for which Excel sets them.
    """

    columns: int = 0
    header_is_quoted: bool = False
    uneven_lines: int = 0
    uneven_records: int = 0
    quoted: int = 0
    doubled: int = 0
    spanning: int = 0
    plain: int = 0
    bare: int = 0
    broken: int = 0
    escaped: int = 0
    commas_outside: int = 0
    wholly_quoted: set[int] = field(default_factory=set)  # the columns whose cells are all quoted, but for empty ones

    @classmethod
    def count(cls, lines: Iterable[str], separator: str) -> QuoteCounts:
        """The counts of a file. lines: with their line ends."""
        counts, width = cls(), 0
        for cells in _read_cells(counts._check_widths(lines, separator), separator):
            if not width:
                width, counts.wholly_quoted = len(cells), set(range(len(cells)))
                counts.header_is_quoted = any(cell & QUOTED for cell in cells)
                continue
            counts.uneven_records += len(cells) != width
            for column, cell in enumerate(cells):
                if cell & QUOTED:
                    counts.quoted += 1
                    counts.spanning += bool(cell & SPANNING)
                    counts.doubled += cell & (DOUBLED | SPANNING) == DOUBLED
                    counts.plain += cell == QUOTED
                    continue
                counts.bare += bool(cell & BARE)
                counts.escaped += bool(cell & ESCAPED)
                counts.broken += bool(cell & BROKEN)
                counts.commas_outside += bool(cell & COMMA)
                if not cell & EMPTY:
                    counts.wholly_quoted.discard(column)
        return counts

    def _check_widths(self, lines: Iterable[str], separator: str) -> Iterator[str]:
        """The lines, after counting their fields as they stand."""
        for line in lines:
            if line.strip("\r\n"):
                fields = line.count(separator) + 1
                self.columns = self.columns or fields
                self.uneven_lines += fields != self.columns
            yield line

    @property
    def is_quoted(self) -> bool:
        """Whether the quotes around cells are quoting rather than part of the text."""
        if self.header_is_quoted:
            return True
        if not self.broken and self.uneven_records != self.uneven_lines:
            return self.uneven_records < self.uneven_lines
        # A line break in a quoted cell cuts its row into lines that are short of fields. Where no line is, a quote that
        # opens on one line and a quote that closes on another belong to the texts.
        breaks_rows = self.columns == 1 or self.uneven_lines > 0
        pro = self.doubled + self.escaped + (self.spanning if breaks_rows else 0)
        contra = self.bare + self.broken - self.escaped + (0 if breaks_rows else self.spanning)
        if pro or contra:
            return pro > contra
        # Quotes that no cell needs: some programs quote all cells, or all strings; Excel every cell with a comma.
        return bool(self.quoted and (self.wholly_quoted or not (self.plain or self.commas_outside)))


def _read_cells(lines: Iterable[str], separator: str) -> Iterator[list[int]]:
    """How the cells of every record are written. Blank lines are skipped. A broken cell ends at the next separator."""
    cells: list[int] = []
    cell = 0  # how the cell is written that a line break cuts; 0 between records
    for line in lines:
        body = line.rstrip("\r\n")
        if not cell and '"' not in body:
            if body:
                yield [COMMA if "," in part else 0 if part else EMPTY for part in body.split(separator)]
            continue
        position = 0
        while True:
            if not cell and body.startswith('"', position):
                cell, position = QUOTED, position + 1
            if cell:
                inside = _INSIDE_QUOTES.match(body, position)
                assert inside is not None  # it matches the empty string
                for text, mark in (('""', DOUBLED), (separator, SEPARATING), (",", COMMA)):
                    cell |= mark if text in inside[0] else 0
                if inside.end() == len(body):
                    cell |= SPANNING
                    break
                position = inside.end() + 1
                if position < len(body) and not body.startswith(separator, position):
                    cell = BROKEN | ESCAPED if inside[0].endswith("\\") else BROKEN
            end = body.find(separator, position)
            end = len(body) if end < 0 else end
            if not cell:
                part = body[position:end]
                cell = (BARE if '"' in part else 0) | (COMMA if "," in part else 0) | (0 if part else EMPTY)
            cells.append(cell)
            cell, position = 0, end + 1
            if end == len(body):
                yield cells
                cells = []
                break
    if cell:
        yield [*cells, BROKEN]
