"""Lists, data frames and datasets in memory as rows, which pass the guards that files pass.

1. `read_lists`, `read_frame` and `read_dataset` find the columns. Whatever has values in an order is a column: lists,
   arrays, tensors, Series (by position, never by index), generators (read once).
2. `_text_cells` and `value_cells` turn values into cells as the readers of JSONL and Parquet do: "NA" and "01" stay,
   True is "true", 1 is "1", whole floats lose their ".0", with a note; None, NaN, NA and NaT are missing.
3. A `RowCollector` checks the rows. They are counted from 0, as ``df.iloc`` and lists count them.

Nothing is imported to recognise a value: pandas, datasets and torch are known by what their objects can do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import count
from typing import Any, Literal, TypedDict

import numpy as np

from clsprobe.probes.errors import InputError, quote, unknown
from clsprobe.probes.tasks.options import RowOptions, write_argument
from clsprobe.probes.tasks.rows import ALIASES, SIDES, CheckedRows, Findings, RowCollector, check_columns, name_classes
from clsprobe.probes.tasks.texts import ArrowTexts, check_texts

PLACE = "{name} row {number}"  # where a message finds a row
BATCH = 4096  # rows of a dataset that are read at once


class RowRules(TypedDict, total=False):
    """How rows in memory are checked: the same rules, under the same names, as those of files on the command line.

    target: "class" or "number"; by default labels are classes. drop_empty: leave rows without a text out.
    drop_missing_labels: leave rows without a label out. missing_labels: labels that stand for none, such as ("nan",
    "NA"); rows with one are left out. min_class: classes with fewer rows, or train rows where the split is given, are
    left out. merge_labels: labels that differ only by case, by spaces or in how a number is
    written are one class. replace_invalid: write U+FFFD for what no text can hold.
    """

    target: Literal["class", "number"] | None
    drop_empty: bool
    drop_missing_labels: bool
    missing_labels: str | Sequence[str]
    min_class: int | None
    merge_labels: bool
    replace_invalid: bool


def read_lists(texts: Any, labels: Any, split: Any, groups: Any, name: str, rules: RowRules) -> CheckedRows:
    """The rows of lists, one label per text; a text is a string or a pair of them. Raises InputError."""
    for argument, values in (("texts", texts), ("labels", labels), ("split", split), ("groups", groups)):
        if hasattr(values, "columns") or _is_dataset(values):
            method = "from_dataset" if _is_dataset(values) else "from_frame"
            mend = f"Use Task.{method}(data, text=..., label=...), which takes columns by name"
            raise InputError(argument, f"is a table ({type(values).__name__}), not a list", mend)
    columns = {"text": list_values(texts, "texts"), "label": list_values(labels, "labels")}
    columns |= {
        column: list_values(values, argument)
        for column, argument, values in (("split", "split", split), ("group", "groups", groups))
        if values is not None
    }
    for column, argument in (("label", "labels"), ("split", "split"), ("group", "groups")):
        if column in columns and len(columns[column]) != len(columns["text"]):
            what = f"has {len(columns[column]):,} values, texts has {len(columns['text']):,}"
            raise InputError(argument, what, "Give one for every text, in their order")
    findings = Findings(name, "row", PLACE)
    text_columns: tuple[str, ...] = ("text",)
    first = next((plain for value in columns["text"] if (plain := _plain(value)) is not None), None)
    if isinstance(first, list | tuple):
        text_columns = ("first text", "second text")
        columns |= dict(zip(text_columns, _split_pairs(columns.pop("text"), findings), strict=True))
    options = _ListOptions(
        text_columns=text_columns,
        split_column=None if split is None else "split",
        group_column=None if groups is None else "group",
        **_check_rules(rules),
    )
    collector = RowCollector(options)
    _add(collector, [columns[column] for column in collector.columns], findings)
    return collector.finish(name)


def read_frame(
    frame: Any, text: Any, label: Any, split: str | None, groups: str | None, name: str, rules: RowRules
) -> CheckedRows:
    """The rows of a pandas DataFrame, or of what has its columns and items. Raises InputError."""
    if not hasattr(frame, "columns") or hasattr(frame, "column_names"):
        mend = "Pass a DataFrame, as pandas.DataFrame({'text': texts, 'label': labels})"
        if _is_dataset(frame):
            mend = "Use Task.from_dataset(data, text=..., label=...)"
        elif hasattr(frame, "to_pandas"):
            mend = "Pass table.to_pandas()"
        raise InputError("Task.from_frame", f"{type(frame).__name__} is not a DataFrame", mend)
    keys = {str(key): key for key in frame.columns}
    header = [str(key) for key in frame.columns]
    collector = RowCollector(_column_options(header, text, label, split, groups, rules))
    check_columns(header, collector.columns, name, collector.options)
    values = [list_values(frame[keys[column]], column) for column in collector.columns]
    _add(collector, values, Findings(name, "row", PLACE))
    return collector.finish(name)


def read_dataset(
    dataset: Any, text: Any, label: Any, split: str | None, groups: str | None, name: str, rules: RowRules
) -> CheckedRows:
    """The rows of a Dataset of the library `datasets`, or of a dictionary with one for each side. Raises InputError."""
    parts = _dataset_parts(dataset, name)
    if len(parts) > 1 and split is not None:
        raise InputError("split", f"{name} is split by its parts already", "Leave the argument out")
    header = list(parts[0][2].column_names)
    collector = RowCollector(_column_options(header, text, label, split, groups, rules))
    for side, title, part in parts:
        findings, columns = Findings(title, "row", PLACE), collector.columns
        check_columns(list(part.column_names), columns, title, collector.options)
        class_names = {
            column: feature.names
            for column, feature in (part.features or {}).items()
            if column in columns[len(collector.options.text_columns) :] and type(feature).__name__ == "ClassLabel"
        }
        _add(collector, [_DatasetColumn(part, column) for column in columns], findings, side, class_names)
    return collector.finish(name)


# ---------------------------------------------------------------------------------------------------- options, columns


@dataclass(frozen=True)
class _ColumnOptions(RowOptions):
    """Options of rows whose columns have names."""

    text_columns: tuple[str, ...] = ("text",)

    def flag(self, name: str, value: Any = None) -> str:
        arguments = {"text_column": "text", "label_column": "label", "split_column": "split", "group_column": "groups"}
        return write_argument(arguments.get(name, name), value)


@dataclass(frozen=True)
class _ListOptions(_ColumnOptions):
    """Options of rows that are given as lists."""

    def flag(self, name: str, value: Any = None) -> str:
        arguments = {"text_column": "texts", "label_column": "labels"}
        return super().flag(name, value) if name not in arguments else write_argument(arguments[name], value)

    def title(self, column: str) -> str:
        return column


def _check_rules(rules: RowRules) -> dict[str, Any]:
    """The rules as fields of `RowOptions`; one missing label may be a string. Raises InputError."""
    fields: dict[str, Any] = dict(rules)
    if unknown_names := [name for name in fields if name not in RowRules.__annotations__]:
        known = (*RowRules.__annotations__, "split", "groups", "name")
        raise unknown("Task", "argument", unknown_names[0], known)
    if (target := fields.get("target")) not in (None, "class", "number"):
        raise unknown("target", "kind of labels", str(target), ("class", "number"))
    least = fields.get("min_class")
    if least is not None and (isinstance(least, bool) or not isinstance(least, int) or least < 1):
        raise InputError("min_class", f"{least!r} is no number of rows", "Pass a whole number from 1, or None")
    names = fields.get("missing_labels", ())
    names = [names] if isinstance(names, str) or not isinstance(names, Iterable) else names
    cells = [_write_value(plain) for value in names if (plain := _plain(value)) is not None]
    fields["missing_labels"] = tuple(cell for cell in cells if cell is not None)
    return fields


def _column_options(
    header: Sequence[str], text: Any, label: Any, split: Any, groups: Any, rules: RowRules
) -> _ColumnOptions:
    """The options of a table with this header. text: one column or two, or "a,b" where no column has this name."""
    names = [text]
    if isinstance(text, list | tuple):
        names = list(text)
    elif isinstance(text, str) and text not in header and "," in text:
        names = [name.strip() for name in text.split(",")]
    if not 1 <= len(names) <= 2:
        mend = "Name one, or two for pairs, as in text=('premise', 'hypothesis')"
        raise InputError("text", f"{quote(str(text))} is neither one column nor two", mend)
    text_columns = tuple(_column_name("text", column) for column in names)
    if len(set(text_columns)) < len(text_columns):
        raise InputError("text", f"{quote(text_columns[0])} is named twice", "Name another second column")
    if isinstance(label, list | tuple):
        if len(label) != 1:
            mend = "A task has one label: make a task for each column"
            raise InputError("label", f"names {len(label)} columns", mend)
        (label,) = label
    return _ColumnOptions(
        text_columns=text_columns,
        label_column=(_column_name("label", label),),
        split_column=None if split is None else _column_name("split", split),
        group_column=None if groups is None else _column_name("groups", groups),
        **_check_rules(rules),
    )


def _column_name(argument: str, column: Any) -> str:
    """The name of a column as a string; a number is one too. Raises InputError."""
    if isinstance(column, str | int) and not isinstance(column, bool):
        return str(column)
    what = f"is {type(column).__name__}, not the name of a column"
    raise InputError(argument, what, "Name a column; values in a list go to Task.from_lists")


def _is_dataset(value: Any) -> bool:
    """Whether a value is a Dataset of the library `datasets`, or a stream of one."""
    return hasattr(value, "column_names") and hasattr(value, "select_columns")


def _dataset_parts(dataset: Any, name: str) -> list[tuple[str | None, str, Any]]:
    """The side, the name in messages and the rows of each part of a dataset, train first. Raises InputError."""
    parts = {str(part): rows for part, rows in dataset.items()} if isinstance(dataset, Mapping) else {"": dataset}
    titles = {part: f"{name}[{part!r}]" if part else name for part in parts}
    for part, rows in parts.items():
        if not _is_dataset(rows):
            mend = "Use Task.from_frame for a DataFrame, Task.from_lists for lists"
            raise InputError(titles[part], f"{type(rows).__name__} is not a Dataset of the library datasets", mend)
        if not hasattr(rows, "__len__"):
            mend = "Read rows first, as in datasets.Dataset.from_list(list(ds.take(1000)), features=ds.features)"
            raise InputError(titles[part], "is a stream (IterableDataset), whose rows are not in memory", mend)
    if len(parts) == 1:
        return [(None, titles[part], rows) for part, rows in parts.items()]
    sides = {part: ALIASES.get(part.lower()) for part in parts}
    mend = "Pass those that make it, as in {part: ds[part] for part in ('train', 'test')}"
    if others := [part for part, side in sides.items() if side is None]:
        raise InputError(name, f"part {quote(others[0])} is no side of a split (train, validation, test)", mend)
    if "train" not in sides.values() or len(set(sides.values())) < len(sides):
        what = f"{', '.join(map(quote, parts))} are not one train part with a test part, a dev part or both"
        raise InputError(name, what, mend)
    return [(side, titles[part], parts[part]) for side in SIDES for part in parts if sides[part] == side]


class _DatasetColumn:
    """The values of a column of a dataset, read in batches, as often as they are iterated."""

    def __init__(self, dataset: Any, column: str) -> None:
        self._rows, self._column = dataset.select_columns([column]).with_format(None), column

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self._rows), BATCH):
            yield from self._rows[start : start + BATCH][self._column]

    def __len__(self) -> int:
        return len(self._rows)


# ------------------------------------------------------------------------------------------------------ values to cells


def as_texts(texts: Any) -> Sequence[str]:
    """Texts as a sequence of strings: those of a list, an array, a Series (by position) or a generator.

    Those in Arrow stay there, unread. Raises InputError for one string, and for an item that is no text.
    """
    if isinstance(texts, ArrowTexts):
        return texts
    if not isinstance(texts, str | bytes | list | tuple):
        texts = list_values(texts, "texts")
    check_texts(texts)
    return texts


def list_values(values: Any, argument: str) -> Sequence[Any]:
    """Values that have an order, as Python's own where a library can tell. Raises InputError."""
    has_order = hasattr(values, "__iter__") and not isinstance(values, str | bytes | Mapping | set | frozenset)
    if not has_order or hasattr(values, "columns") or getattr(values, "shape", None) == ():
        kind = "one string" if isinstance(values, str) else None if values is None else type(values).__name__
        raise InputError(argument, f"is {kind}, not a list", "Pass a list with one value per text")
    if isinstance(values, np.ndarray) and values.dtype.kind in "mM":  # `tolist` makes numbers of some times
        return list(values)
    return values.tolist() if hasattr(values, "tolist") else list(values)


def value_cells(values: Iterable[Any], title: str, findings: Findings, *, whole: bool) -> Iterator[str | None]:
    """Labels, sides or groups as cells, row by row. whole: floats are whole numbers, and written without ".0".

    Values that are not single ones are added to `findings`.
    """
    for row, value in enumerate(values):
        plain = _plain(value)
        if type(plain) is str or plain is None:
            yield plain
            continue
        cell = _write_value(plain, whole)
        if cell is None:
            findings.add(row, f"{title} holds {_describe(plain)}", _mend_value(plain))
        yield cell


def are_whole(values: Iterable[Any]) -> bool:
    """Whether there are floats, and all are whole: class codes become floats where a value is missing."""
    floats = [plain for value in values if isinstance(plain := _plain(value), float)]
    return bool(floats) and all(map(float.is_integer, floats))


def _text_cells(values: Iterable[Any], title: str, findings: Findings) -> Iterator[str | None]:
    """Texts as cells. What is no string is added to `findings`."""
    for row, value in enumerate(values):
        plain = _plain(value)
        if not (plain is None or isinstance(plain, str | bytes)) or (cell := _write_value(plain)) is None:
            if plain is not None:
                mend = _DECODE if isinstance(plain, bytes) else "Leave such rows out, or make strings of them"
                findings.add(row, f"{title} holds {_describe(plain, 'a string')}", mend)
            cell = None
        yield cell


def _split_pairs(values: Iterable[Any], findings: Findings) -> tuple[list[Any], list[Any]]:
    """The first and the second text of every pair. What is no pair is added to `findings`."""
    firsts, seconds = list[Any](), list[Any]()
    for row, value in enumerate(values):
        plain, texts = _plain(value), (None, None)
        if isinstance(plain, list | tuple) and len(plain) == 2:
            texts = (plain[0], plain[1])
        elif plain is not None:
            what = f"a list of {len(plain):,}" if isinstance(plain, list | tuple) else type(plain).__name__
            mend = "A pair is two strings; join the tokens of a text with ' '.join(tokens)"
            findings.add(row, f"texts holds {what}, not a pair as in other rows", mend, "pair")
        firsts.append(texts[0])
        seconds.append(texts[1])
    return firsts, seconds


def _add(
    collector: RowCollector,
    columns: Sequence[Any],
    findings: Findings,
    side: str | None = None,
    class_names: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Give the rows of a table to the collector. columns: the values of each of the collector's columns."""
    options = collector.options
    if not len(columns[0]):
        raise InputError(findings.name, "has no rows", "Give some")
    cells = []
    for n, (column, values) in enumerate(zip(collector.columns, columns, strict=True)):
        title = options.title(column)
        if n < len(options.text_columns):
            cells.append(_text_cells(values, title, findings))
            continue
        if whole := options.target != "number" and are_whole(values):
            note = f"{findings.name}: {title} holds whole numbers as floats; its classes are written without .0"
            findings.notes.append(note)
        cells.append(value_cells(values, title, findings, whole=whole))
    rows = zip(count(), zip(*cells, strict=True), strict=False)
    named_rows = name_classes(rows, class_names, collector.columns, findings) if class_names else rows
    collector.add(named_rows, findings, side)


def _plain(value: Any) -> Any:
    """A value as one of Python's own types; None where there is none (None, NaN, and pandas' NA and NaT)."""
    if type(value) is str or value is None:
        return value
    if isinstance(value, Enum):
        value = value.value
    if hasattr(value, "tolist") and not isinstance(value, np.datetime64 | np.timedelta64):  # a scalar, array or tensor
        value = value.tolist()
    if type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    return value


def _write_value(plain: Any, whole: bool = False) -> str | None:
    """A plain value as a cell, as the reader of Parquet writes it; None for what is not one value."""
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if isinstance(plain, str):
        return str.__str__(plain)  # of a subclass too, which may print itself in another way
    if isinstance(plain, bytes):
        try:
            return plain.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return None
    if isinstance(plain, int):
        return int.__repr__(plain)
    if isinstance(plain, float):
        return str(int(plain)) if whole else float.__repr__(plain)
    if isinstance(plain, Decimal | date | time | timedelta):
        return str(plain)
    return None


def _describe(plain: Any, expected: str = "one value") -> str:
    """What a cell holds that no cell can hold."""
    if isinstance(plain, bytes):
        return "bytes that are not UTF-8"
    names = {bool: "true or false", int: "a number", float: "a number", Decimal: "a number"}
    names |= {list: "a list", tuple: "a tuple", dict: "a dictionary"}
    name = names.get(type(plain), f"a value of type {type(plain).__name__}")
    return f"{name}, not {expected if type(plain) in names or expected != 'one value' else 'a string or a number'}"


def _mend_value(plain: Any) -> str:
    if isinstance(plain, bytes):
        return _DECODE
    if isinstance(plain, list | tuple):
        return "Give one value for each row, as labels.ravel() or, for one-hot vectors, labels.argmax(axis=1) does"
    return "Make strings of them, as in [str(value) for value in values]"


_DECODE = "Decode them first, as in value.decode('cp1252')"
