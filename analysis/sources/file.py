"""``file:PATH``: tasks from a .csv, .tsv, .jsonl, .json or .parquet file, or from a folder of them; docs/data.md.

``file:-`` reads CSV from standard input; ``file:-.tsv``, ``file:-.jsonl`` and ``file:-.parquet`` read these formats.

1. `folders.find_files` finds the files and the side of the split that each of them is.
2. `tables.read_rows` reads them; a `RowCollector` checks the rows, file by file, and then all of them together.
3. Each label column becomes a task.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from clsprobe.analysis.sources import Loaded, SourceOptions
from clsprobe.analysis.sources.folders import find_files
from clsprobe.analysis.sources.suffixes import BINARY
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
        cells = read_rows(file, collector.columns, options, findings)
        collector.add(memory.count(cells, findings), findings, file.side)
    collector.notes = _unite_notes(collector.notes, [file.name for file in data.files])
    rows = collector.finish(data.name)
    labels = rows.labels or {"texts": (np.zeros(len(rows.texts)), "number")}
    textless = not options.text_columns
    tasks = [
        Task(
            f"file:{data.stem}:{column}",
            rows.texts,
            y,
            kind,
            rows.split,
            rows.groups,
            rows.row_numbers,
            textless,
            places=rows.places,
        )
        for column, (y, kind) in labels.items()
    ]
    return Loaded(tasks, rows.rows, rows.left_out, rows.notes, excluded={task.name: rows.excluded for task in tasks})


def _unite_notes(notes: Iterable[str], names: Sequence[str]) -> list[str]:
    """The notes, where those that say the same of several files are one."""
    files: dict[str, list[str]] = {}
    for note in notes:
        name, _, rest = note.partition(": ")
        files.setdefault(rest if name in names else note, []).append(name if name in names else "")
    united = []
    for note, (first, *others) in files.items():
        more = f" and {len(others):,} more file{'s' if len(others) > 1 else ''}" if others else ""
        united.append(f"{first}{more}: {note}" if first else note)
    return united


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
