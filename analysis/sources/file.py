"""``file:PATH``: tasks out of a .csv, .tsv, .jsonl or .parquet file, or a folder with train, dev and test files.

``file:-`` reads CSV from standard input, ``file:-.tsv``, ``file:-.jsonl`` and ``file:-.parquet`` what they say.

1. `_find` says which files, and which side of the split each is.
2. `_Gathered` takes the rows in, file by file: texts, labels, sides and groups go into packed arrays, never into a
   list of Python strings; rows that are wrong are named, rows that may be left out are counted.
3. `_Gathered.loaded` makes one task per label column, after the checks that need all rows.

With --vectors every row keeps its number, over all files, and there may be no texts: a row's name stands for its text.
"""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from clsprobe.analysis.sources import Loaded, SourceOptions
from clsprobe.analysis.sources.tables import READERS, Findings, Stdin, Texts, read, shown
from clsprobe.probes.errors import InputError, did_you_mean, named_rows
from clsprobe.probes.tasks.task import PAIRED, Task, pair

SIDES = ("train", "dev", "test")
ALIASES = {
    **dict.fromkeys(("train", "tr"), "train"),
    **dict.fromkeys(("dev", "valid", "validation", "val", "va"), "dev"),
    **dict.fromkeys(("test", "te"), "test"),
}
LONGEST_LABEL = 1000  # characters; more is a text, and would take 4 bytes times the longest label for every row
MANY_NUMBERS = 10  # distinct labels with fractions that are still taken for classes, such as half stars


def load(rest: str, options: SourceOptions) -> Loaded:
    """The tasks of a file or a folder, one for each label column."""
    _check_columns(options)
    path, files = _find(rest)
    if isinstance(path, Path) and path.is_dir() and options.split_column:
        raise InputError("--split-column", f"{rest} is a folder, split by its files already", "Leave the flag out")
    gathered = _Gathered(options)
    for side, file in files:
        gathered.take_in(file, side)
    return gathered.loaded(path)


def _check_columns(options: SourceOptions) -> None:
    for flag, columns in (
        ("--label-column", options.label_column),
        ("--split-column", (options.split_column,)),
        ("--group-column", (options.group_column,) if len(options.text_columns) == 1 else ()),
    ):
        if taken := [name for name in options.text_columns if name in columns]:
            raise InputError(flag, f"{shown(taken[0])} is the text column already", "Name another column")
    if double := [name for name, times in Counter(options.label_column).items() if times > 1]:
        raise InputError("--label-column", f"{shown(double[0])} is named twice", "Name each column once")
    for flag, column in (("--split-column", options.split_column), ("--group-column", options.group_column)):
        if column in options.label_column:
            raise InputError(flag, f"{shown(column)} is a label column already", "Name another column")


# ----------------------------------------------------------------------------------------------------------------- find


def _find(rest: str) -> tuple[Path | Stdin, Sequence[tuple[str | None, Path | Stdin]]]:
    """The path of a SPEC and its files with their sides (None: the file is not one side of a split)."""
    if not rest:
        raise InputError("--task", "no path after 'file:'", "Name a file, as in file:reviews.csv")
    if rest in ("-", *(f"-{suffix}" for suffix in READERS)):  # a file of that name is ./-.csv
        stdin = Stdin(rest[1:] or ".csv")
        return stdin, [(None, stdin)]
    try:
        path = Path(rest).expanduser()
        path.stat()
        names = sorted(entry.name for entry in os.scandir(path)) if path.is_dir() else []
    except FileNotFoundError:
        raise _not_found(rest) from None
    except (OSError, ValueError, RuntimeError) as error:  # no permission, a name too long, a NUL in it, no home for ~
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(shown(rest, 200)[1:-1], f"cannot be read ({reason.lower()})") from None
    if path.is_dir():
        return path, _sides(path, names)
    if path.suffix.lower() not in READERS:
        what = f"unknown kind of file '{path.suffix}'" if path.suffix else "a file without a suffix"
        raise InputError(path.name, what, f"Known: {', '.join(READERS)}. Convert the file, or give it its right name")
    return path, [(None, path)]


def _not_found(rest: str) -> InputError:
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
    return InputError(rest, what, f"Did you mean {guess}?" if guess else "")


def _sides(folder: Path, names: Sequence[str]) -> list[tuple[str | None, Path]]:
    """The train, dev and test files of a folder, in this order."""
    found: dict[str, Path] = {}
    for name in names:
        path = folder / name
        side = ALIASES.get(path.stem.lower())
        if side is None or path.suffix.lower() not in READERS:
            continue
        if side in found:
            what = f"{found[side].name} and {name} are both {side} files"
            raise InputError(str(folder), what, "Move one of them away")
        found[side] = path
    if "train" in found and len(found) > 1:
        return [(side, found[side]) for side in SIDES if side in found]
    tables = [name for name in names if Path(name).suffix.lower() in READERS]
    held = f"It holds {', '.join(tables[:10])}" if tables else f"It holds no {', '.join(READERS)} file"
    lacking = "train file" if "train" not in found else "test file"
    mend = f"{held}. Name its files train, dev and test, or give one file"
    raise InputError(str(folder), f"the folder has no {lacking}", mend)


# --------------------------------------------------------------------------------------------------------------- gather


class _Wrong(Exception):
    """A cell that keeps its row out of the task: kind (what is counted together), what is wrong, how to mend it."""


class _Codes:
    """A column of strings as integer codes of its distinct values, in the order of their first row."""

    def __init__(self) -> None:
        self.codes, self._known = array("i"), dict[str, int]()

    def append(self, value: str) -> None:
        self.codes.append(self._known.setdefault(value, len(self._known)))

    def values(self) -> list[str]:
        return list(self._known)

    def array(self) -> np.ndarray:
        names = self.values()
        plain = np.array(names)
        if plain.tolist() != names:  # numpy's fixed-width strings lose a NUL at the end
            plain = np.array(names, dtype=object)
        return plain[np.frombuffer(self.codes, np.intc)]


class _Gathered:
    """The rows of one file or folder, packed as they come."""

    def __init__(self, options: SourceOptions) -> None:
        self.options = options
        self.texts, self.sides, self.groups = Texts(), array("b"), _Codes()
        self.numbers = array("q")  # with --vectors: which row of all that were read each is, from 0
        self.run_rows, self.run_lines = (
            array("q"),
            array("q"),
        )  # rows that do not stand on the line after the last row's
        self.labels: list[_Codes | array[float]] = [
            array("d") if options.target == "number" else _Codes() for _ in options.label_column
        ]
        self.rows, self.replaced, self.left_out, self.notes = 0, 0, Counter[str](), list[str]()
        self.files: list[tuple[str, int]] = []  # the name of each file and its first row

    def take_in(self, path: Path | Stdin, side: str | None) -> None:
        """Add the rows of a file; raises what is wrong with it, naming up to ten rows."""
        options, findings, named = self.options, Findings(path), self.options.text_columns
        split, grouped, columns = options.split_column, options.group_column, options.label_column
        fixed = -1 if side is None else SIDES.index(side)
        drop = {"empty text": options.drop_empty, "missing label": options.drop_missing_labels}
        wanted = [*named, *columns, *(column for column in (split, grouped) if column)]
        told = named if len(named) != 1 else ("",)
        self.files.append((path.name, len(self.texts)))
        expected = -1
        for line, cells in read(path, wanted, options, findings):
            self.rows += 1
            written, cells = cells[: len(named)], cells[len(named) :]
            try:
                texts = [self._text(cell, each) for cell, each in zip(written, told, strict=True)]
                labels = [self._label(cell, column) for cell, column in zip(cells, columns, strict=False)]
                code = self._side(cells[len(columns)], split) if split else fixed
                group = self._string(cells[-1], grouped, "missing group") if grouped else ""
            except _Wrong as wrong:
                kind, what, mend = wrong.args
                if drop.get(kind):
                    self.left_out[kind] += 1
                else:
                    findings.problem(line, what, mend, what if kind in drop else kind)
                continue
            if line != expected:
                self.run_rows.append(len(self.texts))
                self.run_lines.append(line)
            expected = line + 1
            self.texts.append(pair(*texts) if len(texts) > 1 else texts[0] if texts else f"row {self.rows}")
            if options.vectors:
                self.numbers.append(self.rows - 1)
            for store, label in zip(self.labels, labels, strict=True):
                store.append(label)  # type: ignore[arg-type]
            self.sides.append(code)
            if grouped:
                self.groups.append(group)
        findings.check()
        self.notes += findings.notes

    def _text(self, cell: str | None, column: str) -> str:
        """A text, or one of a pair: column names which."""
        text = self._string(cell, column, "empty text", "--drop-empty")
        if (at := text.find(PAIRED)) < 0:
            return text
        if self.options.replace_invalid:
            self.replaced += 1
            return text.replace(PAIRED, "\ufffd")
        what = f"{f'column {shown(column)}' if column else 'text'} has U+FDD0, which is no character, at character"
        raise _Wrong("no character", f"{what} {at + 1}", "Remove it or pass --replace-invalid")

    def _string(self, cell: str | None, column: str | None, kind: str, flag: str = "") -> str:
        """A cell that must hold something that can be written as UTF-8."""
        name = f"column {shown(column)}" if column else "text"
        if not cell or cell.isspace():
            raise _Wrong(kind, f"{name} is empty", f"Fill it in, or pass {flag}" if flag else "Fill it in")
        try:
            cell.encode()
        except UnicodeEncodeError as error:
            if self.options.replace_invalid:
                self.replaced += 1
                return re.sub("[\ud800-\udfff]", "\ufffd", cell)
            what = f"{name} has an unpaired surrogate (U+{ord(cell[error.start]):X}) at character {error.start + 1}"
            raise _Wrong(f"surrogate {name}", what, "Remove it or pass --replace-invalid") from None
        return cell

    def _label(self, cell: str | None, column: str) -> str | float:
        label = self._string(cell, column, "missing label", "--drop-missing-labels")
        if self.options.target == "number":
            if not isfinite(number := _number(label)):
                what = f"column {shown(column)} holds {shown(label)}, not a finite number"
                raise _Wrong(f"number {column}", what, "Mend it, or leave --target number out to predict classes")
            return number
        if len(label) > LONGEST_LABEL:
            what = f"column {shown(column)} holds {len(label):,} characters, more than a label has"
            raise _Wrong(f"long {column}", what, "Name the column of the labels with --label-column")
        return label

    def _side(self, cell: str | None, column: str) -> int:
        value = self._string(cell, column, "missing split")
        if side := ALIASES.get(value.strip().lower()):
            return SIDES.index(side)
        guess = did_you_mean(value, ALIASES)
        mend = f"{f'Did you mean {guess}? ' if guess else ''}Known: train, dev, test"
        raise _Wrong("split", f"column {shown(column)} holds {shown(value)}, no side of a split", mend)

    # ------------------------------------------------------------------------------------------------ all rows at once

    def loaded(self, path: Path | Stdin) -> Loaded:
        """The tasks, once all files are in; `path` names them."""
        folder = isinstance(path, Path) and path.is_dir()
        stem = os.path.basename(os.path.abspath(str(path))) if folder else path.stem
        if not len(self.texts):
            reasons = ", ".join(f"{rows:,} {reason}" for reason, rows in self.left_out.items())
            raise InputError(path.name, f"no rows are left ({reasons})", "Fill in what is missing")
        if self.replaced:
            self.notes.append(f"{self.replaced:,} cells held what no text can hold, replaced by U+FFFD")
        split = self._split(path)
        groups = np.frombuffer(self.groups.codes, np.intc) if self.options.group_column else None
        texts, tasks = self.texts.finish(), []
        numbers = np.frombuffer(self.numbers, np.int64) if self.options.vectors else None
        more: Any = {"split": split, "groups": groups, "rows": numbers, "textless": not self.options.text_columns}
        for column, store in zip(self.options.label_column, self.labels, strict=True):
            name = f"file:{stem}:{column}"
            if isinstance(store, array):
                tasks.append(Task(name, texts, np.frombuffer(store), "number", **more))
                continue
            self._check_classes(path, column, store, split)
            tasks.append(Task(name, texts, store.array(), "class", **more))
        if not tasks:
            tasks.append(Task(f"file:{stem}:texts", texts, np.zeros(len(texts)), "number", **more))
        digest = path.digest if isinstance(path, Stdin) else None
        return Loaded(tasks, self.rows, dict(self.left_out), self.notes, digest)

    def _split(self, path: Path | Stdin) -> np.ndarray | None:
        codes = np.frombuffer(self.sides, np.int8)
        present = {SIDES[code] for code in set(codes.tolist()) if code >= 0}
        if not present:
            return None
        if "train" not in present or len(present) == 1:
            lacking = "test" if "train" in present else "train"
            column = f" in column {shown(self.options.split_column)}" if self.options.split_column else ""
            raise InputError(path.name, f"no {lacking} rows{column}", "A split has at least train and test")
        if "test" not in present:
            self.notes.append("there are no test rows: dev serves as test, and a tenth of train as dev")
            return np.array(["train", "test", "test"])[codes]
        return np.array(SIDES)[codes]

    def _check_classes(self, path: Path | Stdin, column: str, store: _Codes, split: np.ndarray | None) -> None:
        """What only all labels together can show: one class, classes that are numbers, labels that train never saw."""
        codes, values = np.frombuffer(store.codes, np.intc), store.values()
        many = len(values) > MANY_NUMBERS or 2 * len(values) > len(codes)
        if many and self.options.target is None and _fractions(values):
            what = f"column {shown(column)} holds numbers with fractions ({len(values):,} distinct)"
            raise InputError(path.name, what, "Pass --target number, or --target class to make each a class")
        train = np.ones(len(codes), bool) if split is None else split == "train"
        seen = np.unique(codes[train])
        if len(seen) == 1:
            name = path.name if split is None or self.options.split_column else self.files[0][0]
            what = f"column {shown(column)} has one class ({shown(values[seen[0]])}, {train.sum():,} rows)"
            raise InputError(name, f"{what}; a probe needs two")
        if len({value.strip() for value in values}) < len(values):
            self.notes.append(f"column {shown(column)}: some classes differ only by spaces around them")
        if len(unseen := np.flatnonzero(~np.isin(codes, seen))):
            first, others = codes[unseen[0]], len(np.unique(codes[unseen])) - 1
            name, lines = self._place(unseen[codes[unseen] == first])
            sides = "the train rows" if self.options.split_column else self.files[0][0]
            what = (
                f"label {shown(values[first])} of column {shown(column)} is not in {sides} (lines {named_rows(lines)}"
            )
            what += f"; {others:,} more labels likewise)" if others else ")"
            raise InputError(f"{name}:{lines[0]}", what, "Remove these rows, or add such rows to train")

    def _place(self, rows: np.ndarray) -> tuple[str, list[int]]:
        """The file that holds the first of these rows, and the lines of those of them that it holds."""
        name, start = [file for file in self.files if file[1] <= rows[0]][-1]
        end = min((first for _, first in self.files if first > start), default=len(self.texts))
        return name, [self._line(row) for row in rows[rows < end].tolist()]

    def _line(self, row: int) -> int:
        run = bisect_right(self.run_rows, row) - 1
        return self.run_lines[run] + row - self.run_rows[run]


def _fractions(values: Sequence[str]) -> bool:
    """Whether all of them are numbers and not all of these are whole."""
    numbers = [_number(value) for value in values]
    return all(map(isfinite, numbers)) and not all(map(float.is_integer, numbers))


def _number(text: str) -> float:
    """The number that a cell holds; NaN where it holds none (1_000 is none)."""
    try:
        return float("nan" if "_" in text else text)
    except ValueError:
        return float("nan")
