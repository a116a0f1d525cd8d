"""Where rows come from: the table (a file, a list in memory) of each, and its number there.

A reader knows that row 3 of a task stands on line 17 of reviews.csv. Whoever names a row to the user says so, and the
table `rows` of a run lists it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from clsprobe.probes.errors import escape_surrogates, format_rows


class Table:
    """A table whose rows have numbers.

    name: of the file, in messages. unit: what its numbers count, "line" or "row". form: how a message locates one.
    """

    def __init__(self, name: str, unit: str = "line", form: str = "{name}:{number}") -> None:
        self.name, self.unit, self._form = escape_surrogates(name), unit, form

    def locate(self, number: int) -> str:
        """Where a line or row is, such as reviews.csv:3."""
        return self._form.format(name=self.name, number=number)

    def list_numbers(self, numbers: Sequence[int], limit: int = 10) -> str:
        """Some of its rows as a message lists them, such as "lines 3, 5"."""
        return f"{self.unit}{'s' * (len(numbers) > 1)} {format_rows(numbers, limit)}"


@dataclass(frozen=True, eq=False)
class Places:
    """Where some rows come from.

    tables: the tables. table: (row,) the index of its table. number: (row,) its number there.
    """

    tables: Sequence[Table]
    table: np.ndarray
    number: np.ndarray

    @classmethod
    def of(cls, table: Table, number: np.ndarray) -> Self:
        """The places of rows of one table. number: (row,)."""
        return cls([table], np.zeros(len(number), np.int32), number)

    @classmethod
    def gather(cls, rows: Iterable[tuple[Table, int]]) -> Self:
        """The places of rows of several tables: the table of each, and its number there."""
        rows = list(rows)
        tables = list(dict.fromkeys(table for table, _ in rows))
        index = {table: n for n, table in enumerate(tables)}
        table = np.array([index[table] for table, _ in rows], np.int32)
        return cls(tables, table, np.array([number for _, number in rows], np.int64))

    def pair(self, row: int) -> tuple[Table, int]:
        """The table of a row, and its number there."""
        return self.tables[self.table[row]], int(self.number[row])

    def pairs(self) -> list[tuple[Table, int]]:
        """(row,) the table of each row, and its number there."""
        return [self.pair(row) for row in range(len(self))]

    def __len__(self) -> int:
        return len(self.number)

    def take(self, rows: np.ndarray) -> Self:
        """Those of these rows: indices, or a mask."""
        return type(self)(self.tables, self.table[rows], self.number[rows])

    def locate(self, row: int) -> str:
        """Where a row is, such as reviews.csv:3."""
        table, number = self.pair(row)
        return table.locate(number)

    def describe(self, rows: np.ndarray, limit: int = 10) -> str:
        """Some rows as a message lists them: "lines 3, 5" or, of several tables, "a.csv lines 3, 5; b.csv line 9"."""
        listed = []
        for index in dict.fromkeys(self.table[rows].tolist()):
            numbers = self.number[rows[self.table[rows] == index]].tolist()
            name = f"{self.tables[index].name} " if len(self.tables) > 1 else ""
            listed.append(name + self.tables[index].list_numbers(numbers, limit))
        return "; ".join(listed)


UNPLACED = Places([], np.zeros(0, np.int32), np.zeros(0, np.int64))  # of rows whose source does not say
