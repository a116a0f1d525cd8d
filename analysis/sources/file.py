"""``file:PATH``: tasks from a .csv, .tsv, .jsonl or .parquet file, or from a folder with train, dev and test files.

``file:-`` reads CSV from standard input; ``file:-.tsv``, ``file:-.jsonl`` and ``file:-.parquet`` read these formats.

1. `_find_files` finds the files and the side of the split that each of them is.
2. `_RowCollector` reads the rows file by file. Texts, labels, sides and groups go into packed arrays, never into a list
   of Python strings. Invalid rows are reported by line; dropped rows are counted.
3. `_RowCollector.make_tasks` runs the checks that need all rows and makes one task per label column.

With --vectors every row keeps its number, counted over all files. Texts are optional: "row N" replaces a missing one.
"""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clsprobe.analysis.sources import Loaded, SourceOptions
from clsprobe.analysis.sources.labels import (
    LONGEST_LABEL,
    MANY_NUMBERS,
    Numbers,
    have_fractions,
    is_number,
    may_be_missing,
    mend_unseen,
    merge_spellings,
    note_labels,
    note_unused,
)
from clsprobe.analysis.sources.tables import READERS, Findings, Stdin, Texts, quote, read_rows
from clsprobe.probes.errors import InputError, did_you_mean, format_rows
from clsprobe.probes.tasks.task import PAIRED, Task, pair

SIDES = ("train", "dev", "test")
ALIASES = {
    **dict.fromkeys(("train", "tr"), "train"),
    **dict.fromkeys(("dev", "valid", "validation", "val", "va"), "dev"),
    **dict.fromkeys(("test", "te"), "test"),
}


def load(rest: str, options: SourceOptions) -> Loaded:
    """Load the tasks of a file or folder, one per label column. Raises InputError."""
    _check_columns(options)
    path, files = _find_files(rest)
    if isinstance(path, Path) and path.is_dir() and options.split_column:
        raise InputError("--split-column", f"{rest} is a folder, split by its files already", "Leave the flag out")
    if options.quoting != "auto" and not any(file.suffix.lower() in (".csv", ".tsv") for _, file in files):
        what = f"is for .csv and .tsv files, and {files[0][1].name} is neither"
        raise InputError("--quoting", what, "Leave the flag out")
    collector = _RowCollector(options)
    for side, file in files:
        collector.add_file(file, side)
    return collector.make_tasks(path)


def _check_columns(options: SourceOptions) -> None:
    for flag, columns in (
        ("--label-column", options.label_column),
        ("--split-column", (options.split_column,)),
        ("--group-column", (options.group_column,) if len(options.text_columns) == 1 else ()),
    ):
        if clashes := [name for name in options.text_columns if name in columns]:
            raise InputError(flag, f"{quote(clashes[0])} is the text column already", "Name another column")
    if duplicates := [name for name, times in Counter(options.label_column).items() if times > 1]:
        raise InputError("--label-column", f"{quote(duplicates[0])} is named twice", "Name each column once")
    for flag, column in (("--split-column", options.split_column), ("--group-column", options.group_column)):
        if column in options.label_column:
            raise InputError(flag, f"{quote(column)} is a label column already", "Name another column")


# ----------------------------------------------------------------------------------------------------------------- find


def _find_files(rest: str) -> tuple[Path | Stdin, Sequence[tuple[str | None, Path | Stdin]]]:
    """The path of a SPEC and its (side, file) pairs; side None if the file is not one side of a split."""
    if not rest:
        raise InputError("--task", "no path after 'file:'", "Name a file, as in file:reviews.csv")
    if rest in ("-", *(f"-{suffix}" for suffix in READERS)):  # ./-.csv is a file of that name
        stdin = Stdin(rest[1:] or ".csv")
        return stdin, [(None, stdin)]
    try:
        path = Path(rest).expanduser()
        path.stat()
        names = sorted(entry.name for entry in os.scandir(path)) if path.is_dir() else []
    except FileNotFoundError:
        raise _not_found_error(rest) from None
    except (OSError, ValueError, RuntimeError) as error:  # no permission, a name too long, a NUL in it, no home for ~
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(quote(rest, 200)[1:-1], f"cannot be read ({reason.lower()})", "Check the path") from None
    if path.is_dir():
        return path, _split_files(path, names)
    if path.suffix.lower() not in READERS:
        what = f"unknown kind of file '{path.suffix}'" if path.suffix else "a file without a suffix"
        raise InputError(path.name, what, f"Known: {', '.join(READERS)}. Convert the file, or give it its right name")
    return path, [(None, path)]


def _not_found_error(rest: str) -> InputError:
    path = Path(rest).expanduser()
    if path.is_symlink():
        return InputError(rest, f"is a link to {os.readlink(path)}, which does not exist", "Mend the link")
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    what = "no such file or folder" if missing == path else f"no such folder {missing}"
    try:
        guess = did_you_mean(missing.name, (entry.name for entry in os.scandir(missing.parent)))
    except OSError:
        guess = None
    return InputError(rest, what, f"Did you mean {guess}?" if guess else "Check the path")


def _split_files(folder: Path, names: Sequence[str]) -> list[tuple[str | None, Path]]:
    """The train, dev and test files of a folder, in this order."""
    files: dict[str, Path] = {}
    for name in names:
        path = folder / name
        side = ALIASES.get(path.stem.lower())
        if side is None or path.suffix.lower() not in READERS:
            continue
        if side in files:
            what = f"{files[side].name} and {name} are both {side} files"
            raise InputError(str(folder), what, "Move one of them away")
        files[side] = path
    if "train" in files and len(files) > 1:
        return [(side, files[side]) for side in SIDES if side in files]
    tables = [name for name in names if Path(name).suffix.lower() in READERS]
    contents = f"It holds {', '.join(tables[:10])}" if tables else f"It holds no {', '.join(READERS)} file"
    missing = "train file" if "train" not in files else "test file"
    mend = f"{contents}. Name its files train, dev and test, or give one file"
    raise InputError(str(folder), f"the folder has no {missing}", mend)


# --------------------------------------------------------------------------------------------------------------- gather


class _BadCell(Exception):
    """A cell that invalidates its row. Arguments: the kind of problem, what is wrong, the remedy."""


class _StringCodes:
    """A column of strings as integer codes of its distinct values, numbered by first occurrence."""

    def __init__(self) -> None:
        self.codes, self._code_of_value = array("i"), dict[str, int]()

    def append(self, value: str) -> None:
        self.codes.append(self._code_of_value.setdefault(value, len(self._code_of_value)))

    def values(self) -> list[str]:
        return list(self._code_of_value)

    def counts(self) -> dict[str, int]:
        """Value -> how often it occurs."""
        occurrences = np.bincount(np.frombuffer(self.codes, np.intc))
        return dict(zip(self._code_of_value, occurrences.tolist(), strict=True))

    def replace(self, replacements: Mapping[str, str]) -> _StringCodes:
        """The same column with some values replaced by others."""
        column, values = _StringCodes(), self.values()
        for code in self.codes:
            column.append(replacements.get(values[code], values[code]))
        return column

    def array(self) -> np.ndarray:
        names = self.values()
        values = np.array(names)
        if values.tolist() != names:  # numpy's fixed-width strings lose a NUL at the end
            values = np.array(names, dtype=object)
        return values[np.frombuffer(self.codes, np.intc)]


class _RowCollector:
    """The rows of one file or folder in packed arrays."""

    def __init__(self, options: SourceOptions) -> None:
        self.options = options
        self.texts, self.sides, self.groups = Texts(), array("b"), _StringCodes()
        self.row_numbers = array("q")  # with --vectors: the number of each row among all rows read, from 0
        self.run_rows, self.run_lines = (
            array("q"),
            array("q"),
        )  # rows that do not stand on the line after the last row's
        self.labels: list[_StringCodes | Numbers] = [
            Numbers() if options.target == "number" else _StringCodes() for _ in options.label_column
        ]
        self.missing_labels = set[str]()  # those of --missing-labels that rows have
        self.rows, self.replaced, self.left_out, self.notes = 0, 0, Counter[str](), list[str]()
        self.files: list[tuple[str, int]] = []  # the name of each file and its first row

    def add_file(self, path: Path | Stdin, side: str | None) -> None:
        """Add the rows of a file. Raises InputError with up to ten invalid rows."""
        options, findings, text_columns = self.options, Findings(path), self.options.text_columns
        split_column, group_column, label_columns = options.split_column, options.group_column, options.label_column
        file_code = -1 if side is None else SIDES.index(side)
        drop = {
            "empty text": options.drop_empty,
            "missing label": options.drop_missing_labels,
            "label that stands for none": True,
        }
        columns = [*text_columns, *label_columns, *(column for column in (split_column, group_column) if column)]
        text_names = text_columns if len(text_columns) != 1 else ("",)
        self.files.append((path.name, len(self.texts)))
        next_line = -1
        for line, cells in read_rows(path, columns, options, findings):
            self.rows += 1
            text_cells, cells = cells[: len(text_columns)], cells[len(text_columns) :]
            try:
                texts = [self._check_text(cell, name) for cell, name in zip(text_cells, text_names, strict=True)]
                labels = [self._parse_label(cell, column) for cell, column in zip(cells, label_columns, strict=False)]
                code = self._parse_side(cells[len(label_columns)], split_column) if split_column else file_code
                group = self._check_string(cells[-1], group_column, "missing group") if group_column else ""
            except _BadCell as error:
                kind, what, mend = error.args
                if drop.get(kind):
                    self.left_out[kind] += 1
                else:
                    findings.add(line, what, mend, what if kind in drop else kind)
                continue
            if line != next_line:
                self.run_rows.append(len(self.texts))
                self.run_lines.append(line)
            next_line = line + 1
            self.texts.append(pair(*texts) if len(texts) > 1 else texts[0] if texts else f"row {self.rows}")
            if options.vectors:
                self.row_numbers.append(self.rows - 1)
            for column, label in zip(self.labels, labels, strict=True):
                column.append(label)
            self.sides.append(code)
            if group_column:
                self.groups.append(group)
        findings.raise_problems()
        self.notes += findings.notes

    def _check_text(self, cell: str | None, column: str) -> str:
        """A text, or one text of a pair (column: its column). Raises `_BadCell`."""
        text = self._check_string(cell, column, "empty text", "--drop-empty")
        if (position := text.find(PAIRED)) < 0:
            return text
        if self.options.replace_invalid:
            self.replaced += 1
            return text.replace(PAIRED, "\ufffd")
        what = f"{f'column {quote(column)}' if column else 'text'} has U+FDD0, which is no character, at character"
        raise _BadCell("no character", f"{what} {position + 1}", "Remove it or pass --replace-invalid")

    def _check_string(self, cell: str | None, column: str | None, kind: str, flag: str = "") -> str:
        """The cell, checked to be non-empty and valid Unicode. Raises `_BadCell`."""
        name = f"column {quote(column)}" if column else "text"
        if not cell or cell.isspace():
            raise _BadCell(kind, f"{name} is empty", f"Fill it in, or pass {flag}" if flag else "Fill it in")
        try:
            cell.encode()
        except UnicodeEncodeError as error:
            if self.options.replace_invalid:
                self.replaced += 1
                return re.sub("[\ud800-\udfff]", "\ufffd", cell)
            what = f"{name} has an unpaired surrogate (U+{ord(cell[error.start]):X}) at character {error.start + 1}"
            raise _BadCell(f"surrogate {name}", what, "Remove it or pass --replace-invalid") from None
        return cell

    def _parse_label(self, cell: str | None, column: str) -> str:
        """A class, or a number as it is written. Raises `_BadCell`."""
        label = self._check_string(cell, column, "missing label", "--drop-missing-labels")
        if (name := label.strip()) in self.options.missing_labels:
            self.missing_labels.add(name)
            raise _BadCell("label that stands for none", "", "")
        if self.options.target == "number":
            if not is_number(label):
                what = f"column {quote(column)} holds {quote(label)}, not a finite number"
                mend = "Mend it, or leave --target number out to predict classes"
                if may_be_missing(label):
                    mend = f"Pass --missing-labels {name} to leave rows with it out"
                raise _BadCell(f"number {column}", what, mend)
            return label
        if len(label) > LONGEST_LABEL:
            what = f"column {quote(column)} holds {len(label):,} characters, more than a label has"
            raise _BadCell(f"long {column}", what, "Name the column of the labels with --label-column")
        return label

    def _parse_side(self, cell: str | None, column: str) -> int:
        value = self._check_string(cell, column, "missing split")
        if side := ALIASES.get(value.strip().lower()):
            return SIDES.index(side)
        guess = did_you_mean(value, ALIASES)
        mend = f"{f'Did you mean {guess}? ' if guess else ''}Known: train, dev, test"
        raise _BadCell("split", f"column {quote(column)} holds {quote(value)}, no side of a split", mend)

    # ------------------------------------------------------------------------------------------------ all rows at once

    def make_tasks(self, path: Path | Stdin) -> Loaded:
        """The tasks, after all files were added; `path` gives them their name."""
        folder = isinstance(path, Path) and path.is_dir()
        stem = os.path.basename(os.path.abspath(str(path))) if folder else path.stem
        if not len(self.texts):
            reasons = ", ".join(f"{rows:,} {reason}" for reason, rows in self.left_out.items())
            raise InputError(path.name, f"no rows are left ({reasons})", "Fill in what is missing")
        classes = {value for column in self.labels if isinstance(column, _StringCodes) for value in column.values()}
        self.notes += note_unused(self.options.missing_labels, self.missing_labels, classes)
        if self.replaced:
            self.notes.append(f"{self.replaced:,} cells held what no text can hold, replaced by U+FFFD")
        split = self._make_split(path)
        groups = np.frombuffer(self.groups.codes, np.intc) if self.options.group_column else None
        texts, tasks = self.texts.finish(), []
        row_numbers = np.frombuffer(self.row_numbers, np.int64) if self.options.vectors else None
        shared: Any = {"split": split, "groups": groups, "rows": row_numbers, "textless": not self.options.text_columns}
        for column, labels in zip(self.options.label_column, self.labels, strict=True):
            name = f"file:{stem}:{column}"
            if isinstance(labels, Numbers):
                self._check_numbers(column, labels)
                tasks.append(Task(name, texts, labels.array(), "number", **shared))
                continue
            counts = labels.counts()
            self.notes += note_labels(column, counts, self.options.merge_labels)
            if self.options.merge_labels:
                labels = labels.replace(merge_spellings(counts))
            self._check_classes(path, column, labels, split)
            tasks.append(Task(name, texts, labels.array(), "class", **shared))
        if not tasks:
            tasks.append(Task(f"file:{stem}:texts", texts, np.zeros(len(texts)), "number", **shared))
        return Loaded(tasks, self.rows, dict(self.left_out), self.notes)

    def _make_split(self, path: Path | Stdin) -> np.ndarray | None:
        codes = np.frombuffer(self.sides, np.int8)
        present = {SIDES[code] for code in set(codes.tolist()) if code >= 0}
        if not present:
            return None
        if "train" not in present or len(present) == 1:
            missing = "test" if "train" in present else "train"
            column = f" in column {quote(self.options.split_column)}" if self.options.split_column else ""
            raise InputError(path.name, f"no {missing} rows{column}", "A split has at least train and test")
        if "test" not in present:
            self.notes.append("there are no test rows: dev serves as test, and a tenth of train as dev")
            return np.array(["train", "test", "test"])[codes]
        return np.array(SIDES)[codes]

    def _check_numbers(self, column: str, labels: Numbers) -> None:
        """Raise InputError for commas that may be decimal or not; note decimal ones."""
        if ambiguity := labels.ambiguity():
            row, what, mend = ambiguity
            name, lines = self._locate(np.array([row]))
            raise InputError(f"{name}:{lines[0]}", f"column {quote(column)} {what}", mend)
        if note := labels.note(column):
            self.notes.append(note)

    def _check_classes(self, path: Path | Stdin, column: str, labels: _StringCodes, split: np.ndarray | None) -> None:
        """Raise InputError for a single class, for numbers as classes, and for labels that are not in train."""
        codes, values = np.frombuffer(labels.codes, np.intc), labels.values()
        many_values = len(values) > MANY_NUMBERS or 2 * len(values) > len(codes)
        if many_values and self.options.target is None and have_fractions(values):
            what = f"column {quote(column)} holds numbers with fractions ({len(values):,} distinct)"
            raise InputError(path.name, what, "Pass --target number, or --target class to make each a class")
        train = np.ones(len(codes), bool) if split is None else split == "train"
        train_codes = np.unique(codes[train])
        if len(train_codes) == 1:
            name = path.name if split is None or self.options.split_column else self.files[0][0]
            what = f"column {quote(column)} has one class ({quote(values[train_codes[0]])}, {train.sum():,} rows)"
            raise InputError(name, f"{what}; a probe needs two")
        if len(unseen := np.flatnonzero(~np.isin(codes, train_codes))):
            first, others = codes[unseen[0]], len(np.unique(codes[unseen])) - 1
            name, lines = self._locate(unseen[codes[unseen] == first])
            sides = "the train rows" if self.options.split_column else self.files[0][0]
            what = (
                f"label {quote(values[first])} of column {quote(column)} is not in {sides} (lines {format_rows(lines)}"
            )
            what += f"; {others:,} more labels likewise)" if others else ")"
            mend = mend_unseen(values[first], [values[code] for code in train_codes])
            raise InputError(f"{name}:{lines[0]}", what, mend)

    def _locate(self, rows: np.ndarray) -> tuple[str, list[int]]:
        """The file of the first of these rows, and the lines of all these rows in that file."""
        name, start = [file for file in self.files if file[1] <= rows[0]][-1]
        end = min((first for _, first in self.files if first > start), default=len(self.texts))
        return name, [self._line_of_row(row) for row in rows[rows < end].tolist()]

    def _line_of_row(self, row: int) -> int:
        run = bisect_right(self.run_rows, row) - 1
        return self.run_lines[run] + row - self.run_rows[run]
