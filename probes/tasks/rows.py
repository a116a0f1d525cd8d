"""Rows of texts, labels, sides and groups, checked one by one and together. The guards of every table that is given.

1. A reader of files (analysis/sources) or of what is in memory (`memory`) gives rows: a number and its cells, each a
   string or None. `Findings` collects the problems of single rows, so that one error names up to ten rows with the same
   problem.
2. `RowCollector.add` checks the cells. Texts, labels, sides and groups go into packed arrays, never into a list of
   Python strings. Invalid rows are reported by number; dropped rows are counted.
3. `RowCollector.finish` runs the checks that need all rows.

With vectors every row keeps its number, counted over all files. Texts are optional: "row N" replaces a missing one.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from clsprobe.probes.errors import InputError, did_you_mean, format_rows, quote
from clsprobe.probes.tasks.labels import (
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
from clsprobe.probes.tasks.options import RowOptions
from clsprobe.probes.tasks.places import Places, Table
from clsprobe.probes.tasks.texts import PAIRED, ArrowTexts, Texts, pair

Row = tuple[int, Sequence[str | None]]  # the number of a row, such as its first line, and its cells (None: no value)

SIDES = ("train", "dev", "test")
ALIASES = {
    **dict.fromkeys(("train", "tr"), "train"),
    **dict.fromkeys(("dev", "valid", "validation", "val", "va"), "dev"),
    **dict.fromkeys(("test", "te"), "test"),
}


class Findings(Table):
    """Notes and problems found while reading one file or table, problems by kind."""

    def __init__(self, name: str, unit: str = "line", form: str = "{name}:{number}") -> None:
        super().__init__(name, unit, form)
        self.notes: list[str] = []
        self._problems: dict[str, tuple[str, str, array[int]]] = {}

    def add(self, number: int, what: str, mend: str = "", kind: str = "") -> None:
        """Record a problem of a line or row. The first one of a `kind` (default: `what`) provides the message."""
        self._problems.setdefault(kind or what, (what, mend, array("q")))[2].append(number)

    @property
    def problems(self) -> dict[str, tuple[InputError, array[int]]]:
        """The problems by kind, in the order in which they were recorded: an error, and the lines or rows."""
        errors = {}
        for kind, (what, mend, numbers) in self._problems.items():
            if more := numbers[1:]:
                plural = "s" if len(more) > 1 else ""
                what += f" (likewise {self.unit}{plural} {format_rows(more, 9)})"
            errors[kind] = InputError(self.locate(numbers[0]), what, mend), numbers
        return errors

    def raise_problems(self) -> None:
        """Raise InputError for the kind of problem recorded first, if any."""
        for error, _ in self.problems.values():
            raise error


def check_columns(header: Sequence[str], columns: Sequence[str], name: str, options: RowOptions) -> None:
    """Raise InputError unless a table `name` has each of these columns once. Others may be there twice."""
    if duplicates := [column for column, times in Counter(header).items() if column in columns and times > 1]:
        raise InputError(name, f"two columns are called {quote(duplicates[0])}", "Rename one of them")
    if missing := [column for column in columns if column not in header]:
        listed = ", ".join(quote(column)[1:-1] for column in header[:20])
        listed += f" and {len(header) - 20} more" if len(header) > 20 else ""
        guesses = [g for c in missing if (g := did_you_mean(c, [other for other in header if len(other) < 200]))]
        hint = f"Name it with {options.flag('text_column', ...)} or {options.flag('label_column', ...)}"
        if guesses:
            hint = f"Did you mean {' and '.join(map(quote, dict.fromkeys(guesses)))}?"
        raise InputError(name, f"no column {' and no column '.join(map(quote, missing))}", f"Columns: {listed}. {hint}")


def name_classes(
    rows: Iterable[Row], class_names: Mapping[str, Sequence[str]], columns: Sequence[str], findings: Findings
) -> Iterator[Row]:
    """The rows, with class names in place of numbers and none in place of -1; a cell that is a name already stays.

    class_names: column -> names of its classes by number. columns: those of the cells.
    """
    positions = [(n, column, class_names[column]) for n, column in enumerate(columns) if column in class_names]
    for number, row in rows:
        cells = list(row)
        for n, column, names in positions:
            cell = cells[n]
            if cell is None or not cell.strip():
                continue
            code = int(match[1]) if (match := re.fullmatch(r"\s*(-?\d{1,18})(?:\.0)?\s*", cell)) else None
            if code is not None and -1 <= code < len(names):
                cells[n] = names[code] if code >= 0 else None
            elif cell not in names:
                what = f"column {quote(column)} holds {quote(cell)}, and its classes are 0 to {len(names) - 1}"
                findings.add(number, what, "Mend the label, or the class names of the data set", f"class {column}")
        yield number, cells


class StringCodes:
    """A column of strings as integer codes of its distinct values, numbered by first occurrence."""

    def __init__(self, strings: Iterable[str] = ()) -> None:
        self.codes, self._code_of_value = array("i"), dict[str, int]()
        for value in strings:
            self.append(value)

    def append(self, value: str) -> None:
        """Add one string."""
        self.codes.append(self._code_of_value.setdefault(value, len(self._code_of_value)))

    def values(self) -> list[str]:
        """The distinct strings, in the order of their codes."""
        return list(self._code_of_value)

    def counts(self) -> dict[str, int]:
        """Value -> how often it occurs."""
        occurrences = np.bincount(np.frombuffer(self.codes, np.intc))
        return dict(zip(self._code_of_value, occurrences.tolist(), strict=True))

    def replace(self, replacements: Mapping[str, str]) -> StringCodes:
        """The same column with some values replaced by others."""
        values = self.values()
        return StringCodes(replacements.get(values[code], values[code]) for code in self.codes)

    def array(self) -> np.ndarray:
        """(row,) the strings."""
        names = self.values()
        values = np.array(names, dtype=str)
        if values.tolist() != names:  # numpy's fixed-width strings lose a NUL at the end
            values = np.array(names, dtype=object)
        return values[np.frombuffer(self.codes, np.intc)]


@dataclass(frozen=True, eq=False)
class CheckedRows:
    """What is left of some tables after all checks: the columns of tasks.

    texts: (row,). labels: label column -> (row,) labels, and the kind of the task. split, groups: (row,) or None.
    row_numbers: (row,) among all rows read, with vectors. rows: how many were read. places: of the rows. excluded:
    reason -> places of the rows that were left out.
    """

    texts: ArrowTexts
    labels: dict[str, tuple[np.ndarray, Literal["class", "number"]]]
    split: np.ndarray | None
    groups: np.ndarray | None
    row_numbers: np.ndarray | None
    rows: int
    places: Places
    excluded: dict[str, Places]
    notes: list[str]

    @property
    def left_out(self) -> dict[str, int]:
        """Reason -> rows that were left out."""
        return {reason: len(places) for reason, places in self.excluded.items()}


class _BadCell(Exception):
    """A cell that invalidates its row. Arguments: the kind of problem, what is wrong, the remedy."""


class RowCollector:
    """The rows of some tables in packed arrays. Raises InputError for columns that clash."""

    def __init__(self, options: RowOptions) -> None:
        _check_options(options)
        self.options = options
        self.texts, self.sides, self.groups = Texts(), array("b"), StringCodes()
        self.row_numbers = array("q")  # with vectors: the number of each row among all rows read, from 0
        self.numbers, self.excluded_numbers = array("q"), array("q")  # lines, of the rows and of those left out
        self.excluded_tables, self.excluded_reasons = array("i"), StringCodes()
        self.labels: list[StringCodes | Numbers] = [
            Numbers() if options.target == "number" else StringCodes() for _ in options.label_column
        ]
        self.missing_labels = set[str]()  # those of `missing_labels` that rows have
        self.rows, self.replaced, self.notes = 0, 0, list[str]()
        self.tables: list[tuple[Findings, int]] = []  # the findings of each table and its first row
        self.train_tables = list[str]()  # the names of those that are all train

    @property
    def columns(self) -> list[str]:
        """The columns of the cells of every row: texts, labels, side, group."""
        options = self.options
        others = (column for column in (options.split_column, options.group_column) if column)
        return [*options.text_columns, *options.label_column, *others]

    def add(self, rows: Iterable[Row], findings: Findings, side: str | None = None) -> None:
        """Add the rows of a table, of one side of the split. Raises InputError with up to ten invalid rows."""
        options, text_columns, label_columns = self.options, self.options.text_columns, self.options.label_column
        split_column, group_column = options.split_column, options.group_column
        table_code = -1 if side is None else SIDES.index(side)
        drop = {
            "empty text": options.drop_empty,
            "missing label": options.drop_missing_labels,
            "label that stands for none": True,
        }
        text_names = [options.title(column) for column in text_columns] if len(text_columns) != 1 else ["text"]
        self.tables.append((findings, len(self.texts)))
        if side == "train":
            self.train_tables.append(findings.name)
        for line, row in rows:
            self.rows += 1
            text_cells, cells = row[: len(text_columns)], row[len(text_columns) :]
            try:
                texts = [self._check_text(cell, name) for cell, name in zip(text_cells, text_names, strict=True)]
                labels = [self._parse_label(cell, column) for cell, column in zip(cells, label_columns, strict=False)]
                code = self._parse_side(cells[len(label_columns)], split_column) if split_column else table_code
                group = ""
                if group_column:
                    group = self._check_string(cells[-1], options.title(group_column), "missing group")
            except _BadCell as error:
                kind, what, mend = error.args
                if drop.get(kind):
                    self.excluded_numbers.append(line)
                    self.excluded_tables.append(len(self.tables) - 1)
                    self.excluded_reasons.append(kind)
                else:
                    findings.add(line, what, mend, what if kind in drop else kind)
                continue
            self.numbers.append(line)
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

    def _check_text(self, cell: str | None, title: str) -> str:
        """A text, or one text of a pair. Raises `_BadCell`."""
        text = self._check_string(cell, title, "empty text", "drop_empty")
        if (position := text.find(PAIRED)) < 0:
            return text
        if self.options.replace_invalid:
            self.replaced += 1
            return text.replace(PAIRED, "\ufffd")
        what = f"{title} has U+FDD0, which is no character, at character {position + 1}"
        raise _BadCell("no character", what, f"Remove it or pass {self.options.flag('replace_invalid', True)}")

    def _check_string(self, cell: str | None, title: str, kind: str, option: str = "") -> str:
        """The cell, checked to be non-empty and valid Unicode. option: drops such rows. Raises `_BadCell`."""
        if not cell or cell.isspace():
            mend = f"Fill it in, or pass {self.options.flag(option, True)}" if option else "Fill it in"
            raise _BadCell(kind, f"{title} is empty", mend)
        try:
            cell.encode()
        except UnicodeEncodeError as error:
            if self.options.replace_invalid:
                self.replaced += 1
                return re.sub("[\ud800-\udfff]", "\ufffd", cell)
            what = f"{title} has an unpaired surrogate (U+{ord(cell[error.start]):X}) at character {error.start + 1}"
            mend = f"Remove it or pass {self.options.flag('replace_invalid', True)}"
            raise _BadCell(f"surrogate {title}", what, mend) from None
        return cell

    def _parse_label(self, cell: str | None, column: str) -> str:
        """A class, or a number as it is written. Raises `_BadCell`."""
        options, title = self.options, self.options.title(column)
        label = self._check_string(cell, title, "missing label", "drop_missing_labels")
        if (name := label.strip()) in options.missing_labels:
            self.missing_labels.add(name)
            raise _BadCell("label that stands for none", "", "")
        if options.target == "number":
            if not is_number(label):
                mend = f"Mend it, or leave {options.flag('target', 'number')} out to predict classes"
                if may_be_missing(label):
                    mend = f"Pass {options.flag('missing_labels', (name,))} to leave rows with it out"
                raise _BadCell(f"number {column}", f"{title} holds {quote(label)}, not a finite number", mend)
            return label
        if len(label) > LONGEST_LABEL:
            what = f"{title} holds {len(label):,} characters, more than a label has"
            raise _BadCell(f"long {column}", what, f"Pass labels, not texts, as {options.flag('label_column', ...)}")
        return label

    def _parse_side(self, cell: str | None, column: str) -> int:
        title = self.options.title(column)
        value = self._check_string(cell, title, "missing split")
        if side := ALIASES.get(value.strip().lower()):
            return SIDES.index(side)
        guess = did_you_mean(value, ALIASES)
        mend = f"{f'Did you mean {guess}? ' if guess else ''}Known: train, dev, test"
        raise _BadCell("split", f"{title} holds {quote(value)}, no side of a split", mend)

    # ------------------------------------------------------------------------------------------------ all rows at once

    def finish(self, name: str) -> CheckedRows:
        """The columns, after all tables were added. name: of all of them in error messages. Raises InputError."""
        options = self.options
        if not len(self.texts):
            reasons = ", ".join(f"{len(places):,} {reason}" for reason, places in self._excluded().items())
            raise InputError(name, f"no rows are left ({reasons})", "Fill in what is missing")
        classes = {value for column in self.labels if isinstance(column, StringCodes) for value in column.values()}
        self.notes += note_unused(options, self.missing_labels, classes)
        if self.replaced:
            self.notes.append(f"{self.replaced:,} cells held what no text can hold, replaced by U+FFFD")
        split = self._make_split(name)
        labels: dict[str, tuple[np.ndarray, Literal["class", "number"]]] = {}
        for column, values in zip(options.label_column, self.labels, strict=True):
            if isinstance(values, Numbers):
                self._check_numbers(column, values)
                labels[column] = values.array(), "number"
                continue
            counts = values.counts()
            self.notes += note_labels(column, counts, options)
            if options.merge_labels:
                values = values.replace(merge_spellings(counts))
            self._check_classes(name, column, values, split)
            labels[column] = values.array(), "class"
        return CheckedRows(
            self.texts.finish(),
            labels,
            split,
            np.frombuffer(self.groups.codes, np.intc) if options.group_column else None,
            np.frombuffer(self.row_numbers, np.int64) if options.vectors else None,
            self.rows,
            self._places,
            self._excluded(),
            self.notes,
        )

    @cached_property
    def _places(self) -> Places:
        """Those of all rows. Nothing may be added afterwards."""
        starts = np.array([first for _, first in self.tables])
        table = np.searchsorted(starts, np.arange(len(self.numbers)), side="right") - 1
        return Places(
            [findings for findings, _ in self.tables], table.astype(np.int32), np.frombuffer(self.numbers, "q")
        )

    def _excluded(self) -> dict[str, Places]:
        """Reason -> places of the rows that were left out."""
        reasons = np.frombuffer(self.excluded_reasons.codes, np.intc)
        places = Places(
            [findings for findings, _ in self.tables],
            np.frombuffer(self.excluded_tables, np.intc),
            np.frombuffer(self.excluded_numbers, "q"),
        )
        return {reason: places.take(reasons == code) for code, reason in enumerate(self.excluded_reasons.values())}

    def _make_split(self, name: str) -> np.ndarray | None:
        codes = np.frombuffer(self.sides, np.int8)
        present = {SIDES[code] for code in set(codes.tolist()) if code >= 0}
        if not present:
            return None
        if "train" not in present or len(present) == 1:
            missing = "test" if "train" in present else "train"
            column = f" in {self.options.title(self.options.split_column)}" if self.options.split_column else ""
            raise InputError(name, f"no {missing} rows{column}", "A split has at least train and test")
        if "test" not in present:
            self.notes.append("there are no test rows: dev serves as test, and a tenth of train as dev")
            return np.array(["train", "test", "test"])[codes]
        return np.array(SIDES)[codes]

    def _check_numbers(self, column: str, labels: Numbers) -> None:
        """Raise InputError for commas that may be decimal or not; note decimal ones."""
        title = self.options.title(column)
        if ambiguity := labels.ambiguity():
            row, what, mend = ambiguity
            raise InputError(self._places.locate(row), f"{title} {what}", mend)
        if note := labels.note(title):
            self.notes.append(note)

    def _check_classes(self, name: str, column: str, labels: StringCodes, split: np.ndarray | None) -> None:
        """Raise InputError for a single class, for numbers as classes, and for labels that are not in train."""
        options, title = self.options, self.options.title(column)
        codes, values = np.frombuffer(labels.codes, np.intc), labels.values()
        many_values = len(values) > MANY_NUMBERS or 2 * len(values) > len(codes)
        if many_values and options.target is None and have_fractions(values):
            what = f"{title} holds numbers with fractions ({len(values):,} distinct)"
            number, classes = (options.flag("target", target) for target in ("number", "class"))
            raise InputError(name, what, f"Pass {number}, or {classes} to make each a class")
        train = np.ones(len(codes), bool) if split is None else split == "train"
        train_codes = np.unique(codes[train])
        if len(train_codes) == 1:
            where = self.train_tables[0] if len(self.train_tables) == 1 else name
            what = f"{title} has one class ({quote(values[train_codes[0]])}, {train.sum():,} rows)"
            raise InputError(where, f"{what}; a probe needs two")
        if len(unseen := np.flatnonzero(~np.isin(codes, train_codes))) and not options.min_class:
            first, others = codes[unseen[0]], len(np.unique(codes[unseen])) - 1
            rows = unseen[codes[unseen] == first]
            rows = rows[self._places.table[rows] == self._places.table[rows[0]]]  # of the first table that has any
            sides = self.train_tables[0] if len(self.train_tables) == 1 else "the train rows"
            numbers = self._places.tables[self._places.table[rows[0]]].list_numbers(self._places.number[rows])
            of_column = "" if title == "label" else f" of {title}"
            what = f"label {quote(values[first])}{of_column} is not in {sides} ({numbers}"
            what += f"; {others:,} more labels likewise)" if others else ")"
            mend = mend_unseen(values[first], [values[code] for code in train_codes], options)
            raise InputError(self._places.locate(rows[0]), what, mend)


def _check_options(options: RowOptions) -> None:
    """Raise InputError for columns that are named for two things."""
    for name, columns in (
        ("label_column", options.label_column),
        ("split_column", (options.split_column,)),
        ("group_column", (options.group_column,) if len(options.text_columns) == 1 else ()),
    ):
        if clashes := [column for column in options.text_columns if column in columns]:
            what = f"{quote(clashes[0])} is the text column already"
            raise InputError(options.flag(name), what, "Name another column")
    if duplicates := [column for column, times in Counter(options.label_column).items() if times > 1]:
        raise InputError(
            options.flag("label_column"), f"{quote(duplicates[0])} is named twice", "Name each column once"
        )
    for name in ("split_column", "group_column"):
        if (column := getattr(options, name)) in options.label_column:
            raise InputError(options.flag(name), f"{quote(column)} is a label column already", "Name another column")
