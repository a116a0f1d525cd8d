"""A probing task: texts, one label each, and their split.

A `Task` is plain data. Sources (analysis/sources) make tasks of files; `Task.from_lists`, `Task.from_frame` and
`Task.from_dataset` make them of what is in memory, with the same guards (`probes.tasks.rows`). `probes.tasks.split`
splits them, the sweep measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self, Unpack

import numpy as np

from clsprobe.probes.errors import InputError, escape_surrogates, format_rows, printable, quote, unknown
from clsprobe.probes.notebook import escape_text
from clsprobe.probes.tasks import memory
from clsprobe.probes.tasks.memory import RowRules
from clsprobe.probes.tasks.options import write_argument, write_flag
from clsprobe.probes.tasks.places import UNPLACED, Places, Table
from clsprobe.probes.tasks.rows import SIDES, CheckedRows, Findings, StringCodes

LISTED = 10  # classes that the display of a task lists
IN_MEMORY = "memory:"  # how the names of tasks begin that no source has read


@dataclass(frozen=True, eq=False)
class Task:
    """A label set to be predicted from every cell of an encoder.

    Lists are converted to arrays. Raises InputError for fields that do not fit together.

    name: ``SOURCE:STEM:LABEL`` ("file:trec:coarse"), never a path; bytes of a file's name that are not UTF-8 are
    escaped.
    texts: (text,) in the order of the source; a pair of texts is one string (`probes.tasks.texts.pair`).
    y: (text,) strings for kind "class", finite float64 for kind "number".
    split: (text,) "train" | "dev" | "test" if the source fixes it, else None.
    groups: (text,) rows that share a value stay on one side of a split, or None.
    rows: (text,) row index in the source, counting rows left out, if vectors belong to rows, else None.
    textless: there are labels only; the texts are names of rows ("row 17").
    solved_by: the baselines that solve the task by construction ("length" where the label is the length of the text),
    named as in `probes.baseline`. A verdict that compares with one of them leaves the task out.
    left_out: reason -> rows that were left out when the task was made in memory. notes: on its rows, likewise. Those of
    a task that comes from a source are kept in its `Loaded`.
    places: (text,) where the rows come from, if that is known.
    excluded: reason -> places of rows that were left out and are known.
    """

    name: str
    texts: Sequence[str]
    y: np.ndarray
    kind: Literal["class", "number"] = "class"
    split: np.ndarray | None = None
    groups: np.ndarray | None = None
    rows: np.ndarray | None = None
    textless: bool = False
    solved_by: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    places: Places = UNPLACED
    excluded: Mapping[str, Places] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError("name", f"{self.name!r} is no name of a task", "Name it as in my:task:label")
        fields: dict[str, Any] = {"name": escape_surrogates(self.name), "texts": memory.as_texts(self.texts)}
        if self.kind not in ("class", "number"):
            raise unknown(self.name, "kind", str(self.kind), ("class", "number"))
        fields["y"] = (_as_numbers if self.kind == "number" else _as_classes)(self.y, self.name)
        if self.split is not None:
            fields["split"] = _as_sides(self.split, self.name)
        if self.groups is not None:
            fields["groups"] = _as_codes(self.groups, self.name)
        if self.rows is not None:
            fields["rows"] = _as_row_numbers(self.rows, self.name)
        for name in ("y", "split", "groups", "rows"):
            values = fields.get(name)
            if values is not None and len(values) != len(fields["texts"]):
                what = f"{name} has {len(values):,} rows, texts has {len(fields['texts']):,}"
                raise InputError(self.name, what, "Give one value for every text, in their order")
        for name in ("solved_by", "notes"):
            value = getattr(self, name)
            fields[name] = (value,) if isinstance(value, str) else tuple(value)
        fields["left_out"] = dict(self.left_out)
        if self.places.tables and len(self.places) != len(fields["texts"]):
            what = f"places has {len(self.places):,} rows, texts has {len(fields['texts']):,}"
            raise InputError(self.name, what, "Give one place for every text, in their order")
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_lists(
        cls,
        texts: Iterable[Any],
        labels: Iterable[Any],
        *,
        name: str = "data",
        split: Iterable[Any] | None = None,
        groups: Iterable[Any] | None = None,
        **rules: Unpack[RowRules],
    ) -> Self:
        """A task of texts and their labels: lists, arrays, Series (by position), tensors of labels, generators.

        The guards, and hence the texts and labels, are those of the same rows in a file (``file:``): "NA" and "01" stay
        as they are, None and NaN are missing, and an InputError names invalid rows, counted from 0.

        texts: (text,) strings, or pairs of them. name: the task is called ``memory:NAME:label``. split: (text,) train,
        dev (or validation) and test; by default they are carved. groups: (text,) rows that share a value stay on one
        side. rules: target, drop_empty, drop_missing_labels, missing_labels, min_class, merge_labels,
        replace_invalid: see `RowRules`.
        """
        rows = memory.read_lists(texts, labels, split, groups, _check_name(name), rules)
        return cls._of_rows(rows, name, rules)

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        text: str | int | Sequence[str] = "text",
        label: str | int = "label",
        *,
        name: str = "data",
        split: str | None = None,
        groups: str | None = None,
        **rules: Unpack[RowRules],
    ) -> Self:
        """A task of the rows of a pandas DataFrame, whatever its index, with the guards of a file.

        text: the column with the texts, or two for pairs: ("premise", "hypothesis"). label: the column with the labels;
        the task is called ``memory:NAME:LABEL``. split: a column with train, dev (or validation) and test; by default
        they are carved. groups: a column; rows that share a value stay on one side. rules: as in `from_lists`. Raises
        InputError.
        """
        rows = memory.read_frame(frame, text, label, split, groups, _check_name(name), rules)
        return cls._of_rows(rows, name, rules)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        text: str | Sequence[str] = "text",
        label: str = "label",
        *,
        name: str = "data",
        split: str | None = None,
        groups: str | None = None,
        **rules: Unpack[RowRules],
    ) -> Self:
        """A task of the rows of a Dataset of the library `datasets`, or of a DatasetDict, whose parts are its split.

        The numbers of a ClassLabel become its names; -1 is a missing label. Everything else is as in `from_frame`.
        """
        rows = memory.read_dataset(dataset, text, label, split, groups, _check_name(name), rules)
        return cls._of_rows(rows, name, rules)

    @classmethod
    def _of_rows(cls, rows: CheckedRows, name: str, rules: RowRules) -> Self:
        ((column, (y, kind)),) = rows.labels.items()
        task = cls(
            f"{IN_MEMORY}{name}:{column}",
            rows.texts,
            y,
            kind,
            rows.split,
            rows.groups,
            left_out=rows.left_out,
            notes=tuple(rows.notes),
            places=rows.places,
            excluded=rows.excluded,
        )
        return task.without_rare(least) if (least := rules.get("min_class")) else task

    @cached_property
    def located(self) -> Places:
        """(text,) `places`; where they are not known the numbers of the rows, in memory from 0, otherwise from 1."""
        if self.places.tables:
            return self.places
        first = 0 if self.name.startswith(IN_MEMORY) else 1
        table = Table(self.name.removeprefix(IN_MEMORY), "row", memory.PLACE)
        return Places.of(table, np.arange(first, first + len(self.texts)))

    def take(self, rows: np.ndarray) -> Self:
        """The task with these rows only. rows: indices in ascending order."""
        arrays = {
            name: value[rows] for name in ("y", "split", "groups", "rows") if (value := getattr(self, name)) is not None
        }
        return replace(self, texts=[self.texts[row] for row in rows.tolist()], places=self.located.take(rows), **arrays)

    def without_rare(self, least: int) -> Self:
        """The task without the classes of fewer than `least` rows, or train rows where the split is fixed.

        They are counted in `left_out`, and listed in `excluded`. Raises InputError where no two classes are left.
        """
        if self.kind != "class":
            return self
        classes, code = np.unique(self.y, return_inverse=True)
        counted = np.ones(len(code), bool) if self.split is None else self.split == "train"
        count = np.bincount(code[counted], minlength=len(classes))
        if (count >= least).sum() < 2:
            largest = ", ".join(f"{quote(str(classes[c]))} {count[c]:,}" for c in np.argsort(-count, kind="stable")[:3])
            what = f"{self.name} has no two classes of so many rows (its largest: {largest})"
            mend = f"Pass at most {max(np.sort(count)[-2], 1):,}" if len(count) > 1 else "Name another column of labels"
            raise InputError(self.write_option("min_class", least), what, mend)
        rare = count[code] < least
        if not rare.any():
            return self
        reason = f"of a class of fewer than {least:,} {'' if self.split is None else 'train '}rows"
        return replace(
            self.take(np.flatnonzero(~rare)),
            left_out={**self.left_out, reason: int(rare.sum())},
            excluded={**self.excluded, reason: self.located.take(rare)},
        )

    def write_option(self, name: str, value: Any) -> str:
        """An option as whoever gives this task writes it: an argument in Python, or a flag."""
        return (write_argument if self.name.startswith(IN_MEMORY) else write_flag)(name, value)

    @property
    def label(self) -> str:
        """The last part of the name, which identifies the label set."""
        return self.name.rsplit(":", 1)[-1]

    def __repr__(self) -> str:
        return f"<Task {printable(self.name)}: {len(self.texts):,} texts, {self._describe_labels(5)}, {self._sides()}>"

    def _repr_html_(self) -> str:
        """A table of classes and sides for notebooks. No text is shown; names from data are escaped."""
        side_of_row = np.full(len(self.y), "texts") if self.split is None else self.split
        sides = [side for side in ("texts", *SIDES) if np.isin(side, side_of_row)]

        def count_rows(label: str, rows: np.ndarray) -> tuple[str, ...]:
            return label, *(f"{np.count_nonzero(rows & (side_of_row == side)):,}" for side in sides)

        if self.kind == "number":
            body = [count_rows(self._describe_labels(0), np.full(len(self.y), True))]
        else:
            classes, n = np.unique(self.y, return_counts=True)
            largest = classes[np.argsort(-n, kind="stable")[:LISTED]]
            body = [count_rows(quote(str(label), 40), self.y == label) for label in largest]
            if more := len(classes) - len(largest):
                body.append(count_rows(f"{more:,} more", ~np.isin(self.y, largest)))
        rows = "".join(f"<tr>{''.join(f'<td>{escape_text(cell)}</td>' for cell in row)}</tr>" for row in body)
        header = "".join(f"<th>{cell}</th>" for cell in ("label", *sides))
        remarks = [f"{n:,} row{'s' if n != 1 else ''} left out: {reason}" for reason, n in self.left_out.items()]
        remarks += self.notes
        listed = "".join(f"<li>{escape_text(remark)}</li>" for remark in remarks)
        return (
            f"<div><b>Task</b> {escape_text(self.name)}: {len(self.texts):,} texts, {self._sides()}"
            f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"
            f"{f'<ul>{listed}</ul>' if listed else ''}</div>"
        )

    def _describe_labels(self, most: int) -> str:
        if not len(self.y):
            return "no labels"
        if self.kind == "number":
            return f"numbers from {self.y.min():g} to {self.y.max():g}"
        classes = np.unique(self.y).tolist()
        more = ", ..." if len(classes) > most else ""
        listed = ", ".join(printable(quote(label, 40)) for label in classes[:most])
        return f"{len(classes):,} class{'es' if len(classes) != 1 else ''} ({listed}{more})"

    def _sides(self) -> str:
        if self.split is None:
            return "no split of its own"
        return ", ".join(f"{n:,} {side}" for side in SIDES if (n := np.count_nonzero(self.split == side)))


# ------------------------------------------------------------------------------------------- fields, as a task has them


def _check_name(name: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise InputError("name", f"{name!r} is no name", "Pass a word, as in name='reviews'")
    return name


def _as_classes(y: Any, name: str) -> np.ndarray:
    """(text,) strings."""
    is_array = isinstance(y, np.ndarray) and y.ndim == 1
    if is_array and (y.dtype.kind == "U" or (y.dtype == object and all(isinstance(label, str) for label in y))):
        return y
    findings, values = Findings(name, "row", memory.PLACE), memory.list_values(y, f"{name}: y")
    cells = [*memory.value_cells(values, "y", findings, whole=memory.are_whole(values))]
    for row, cell in enumerate(cells):
        if cell is None:
            findings.add(
                row, "y is missing", "Leave the text out, as Task.from_lists does with drop_missing_labels=True"
            )
    findings.raise_problems()
    return StringCodes(cell for cell in cells if cell is not None).array()


def _as_numbers(y: Any, name: str) -> np.ndarray:
    """(text,) finite float64."""
    values = y if isinstance(y, np.ndarray) else memory.list_values(y, f"{name}: y")
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        row = next((row for row, value in enumerate(values) if not _is_number(value)), 0)
        raise InputError(f"{name} row {row}", "y holds no number", "Give numbers, or kind='class'") from None
    if numbers.ndim != 1:
        raise InputError(name, f"y has the shape {numbers.shape}", "Give one number for every text")
    if len(bad := np.flatnonzero(~np.isfinite(numbers))):
        raise InputError(name, f"y holds no finite number in rows {format_rows(bad)}", "Leave these texts out")
    return numbers


def _is_number(value: Any) -> bool:
    try:
        return np.ndim(np.float64(value)) == 0
    except (TypeError, ValueError):
        return False


def _as_sides(split: Any, name: str) -> np.ndarray:
    """(text,) sides of a split."""
    sides = split if isinstance(split, np.ndarray) else np.array(memory.list_values(split, f"{name}: split"), str)
    if len(others := sides[~np.isin(sides, SIDES)]):
        listed = ", ".join(map(quote, sorted({str(side) for side in others})[:5]))
        raise InputError(name, f"split holds {listed}", "Write 'train', 'dev' or 'test' for every text")
    return sides


def _as_codes(groups: Any, name: str) -> np.ndarray:
    """(text,) values that are equal within a group."""
    if isinstance(groups, np.ndarray):
        return groups
    return np.array(StringCodes(map(repr, memory.list_values(groups, f"{name}: groups"))).codes)


def _as_row_numbers(rows: Any, name: str) -> np.ndarray:
    """(text,) row indices."""
    numbers = rows if isinstance(rows, np.ndarray) else np.array(memory.list_values(rows, f"{name}: rows"))
    if len(numbers) and (numbers.dtype.kind not in "iu" or numbers.min() < 0):
        raise InputError(name, "rows holds what is no row index", "Give whole numbers from 0")
    return numbers
