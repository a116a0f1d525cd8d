"""``file:PATH``: tasks from a .csv, .tsv, .jsonl, .json or .parquet file, or from a folder of them; docs/data.md.

``file:-`` reads CSV from standard input; ``file:-.tsv``, ``file:-.jsonl`` and ``file:-.parquet`` read these formats.

1. `folders.find_files` finds the files and the side of the split that each of them is.
2. `tables.read_rows` reads them; a `RowCollector` checks the rows, file by file, and then all of them together.
3. Each label column becomes a task.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np

from clsprobe.analysis.sources import Loaded, SourceOptions
from clsprobe.analysis.sources.folders import find_files
from clsprobe.analysis.sources.opening import BINARY
from clsprobe.analysis.sources.tables import read_rows
from clsprobe.probes.errors import InputError
from clsprobe.probes.tasks.rows import Findings, Row, RowCollector
from clsprobe.probes.tasks.task import Task


def load(rest: str, options: SourceOptions) -> Loaded:
    """Load the tasks of a file or folder, one per label column. Raises InputError."""
    collector = RowCollector(options)
    data = find_files(rest)
    if options.split_column and data.is_split:
        raise InputError("--split-column", f"{rest} is a folder, split by its files already", "Leave the flag out")
    for flag, is_set in (("--quoting", options.quoting != "auto"), ("--no-header", options.no_header)):
        if is_set and not any(file.is_separated for file in data.files):
            what = f"is for .csv and .tsv files, and {data.files[0].name} is neither"
            raise InputError(flag, what, "Leave the flag out")
    collector.notes += data.notes
    memory = _Memory()
    for file in data.files:
        findings = Findings(file.name, "row" if file.suffix in BINARY else "line")
        rows = memory.count(read_rows(file, collector.columns, options, findings), findings)
        collector.add(rows, findings, file.side)
    rows = collector.finish(data.name)
    labels = rows.labels or {"texts": (np.zeros(len(rows.texts)), "number")}
    textless = not options.text_columns
    tasks = [
        Task(f"file:{data.stem}:{column}", rows.texts, y, kind, rows.split, rows.groups, rows.row_numbers, textless)
        for column, (y, kind) in labels.items()
    ]
    return Loaded(tasks, rows.rows, rows.left_out, rows.notes)


class _Memory:
    """Counts the characters of rows, which stay in memory, and stops before they fill half of it."""

    def __init__(self) -> None:
        has_sizes = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
        self.limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if has_sizes else 4 << 30
        self.characters = 0

    def count(self, rows: Iterable[Row], findings: Findings) -> Iterator[Row]:
        """The rows. Raises InputError where there are too many of them, or too long ones."""
        for number, cells in rows:
            self.characters += sum(map(len, filter(None, cells)))
            if self.characters > self.limit:
                what = f"the rows up to here take {self.characters >> 20:,} MB, more than half of the memory"
                raise InputError(findings.locate(number), what, "Give a part of the rows")
            yield number, cells
