"""Labels as people write them: those that may mean that there is none, spellings of one class, numbers.

Files, frames and data sets hold labels that nobody has checked. 1 and 1.0, True and true, "pos" and "pos " are classes
of their own unless they are merged; so are nan, NA and None unless they are named as missing. A note says which of them
there are.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from math import isfinite

import numpy as np

from clsprobe.probes.errors import did_you_mean, quote
from clsprobe.probes.tasks.options import RowOptions

LONGEST_LABEL = 1000  # characters; longer ones are texts, and numpy pads every label to the longest
MANY_NUMBERS = 10  # distinct labels with fractions that still count as classes, such as half stars
LISTED = 10  # labels or groups that a note lists
MISSING = frozenset(("nan", "-nan", "na", "n/a", "n.a.", "<na>", "#n/a", "#na", "none", "null", "nil", "nat"))
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+(?:[eE][+-]?\d+)?\s*")
_THOUSANDS = re.compile(r"\s*[+-]?[1-9]\d{0,2},\d{3}\s*")  # 1,234 is 1234 to some and 1.234 to others


# -------------------------------------------------------------------------------------------------------------- classes


def may_be_missing(label: str) -> bool:
    """Whether programs write this label where there is none, such as nan, NA or None."""
    return label.strip().casefold() in MISSING


def spelling_key(label: str) -> Decimal | str:
    """What all spellings of a class share: the number, or the words without case and spaces around them."""
    words = " ".join(unicodedata.normalize("NFC", label).casefold().split())
    if isfinite(parse_number(words)):
        with suppress(InvalidOperation):  # 1e-99999999999999999999, which is 0 as a float
            return Decimal(words)  # exact: two long identifiers are not equal because their floats are
    return words


def merge_spellings(counts: Mapping[str, int]) -> dict[str, str]:
    """Label -> the most frequent spelling of its class, for every label that has another. counts: label -> rows."""
    return {label: group[0] for group in _group_spellings(counts) for label in group[1:]}


def note_labels(column: str, counts: Mapping[str, int], options: RowOptions) -> list[str]:
    """What the labels of a column may hide. counts: label -> rows."""

    def listed(labels: Iterable[str], separator: str = ", ") -> str:
        labels = list(labels)
        more = f" and {len(labels) - LISTED:,} more" if len(labels) > LISTED else ""
        return separator.join(f"{quote(label)} ({counts[label]:,})" for label in labels[:LISTED]) + more

    notes, title = [], options.title(column)
    if missing := sorted(filter(may_be_missing, counts)):
        flag = options.flag("missing_labels", tuple(dict.fromkeys(label.strip() for label in missing)))
        notes.append(
            f"{title}: classes that may stand for no label (rows in brackets): {listed(missing)}; "
            f"{flag} leaves these rows out"
        )
    if groups := _group_spellings({label: n for label, n in counts.items() if label not in missing}):
        more = f"; and {len(groups) - LISTED:,} more" if len(groups) > LISTED else ""
        spellings = (
            "; ".join(listed(group, " = " if options.merge_labels else ", ") for group in groups[:LISTED]) + more
        )
        if options.merge_labels:
            notes.append(f"{title}: spellings of one class are merged into the first (rows in brackets): {spellings}")
        else:
            notes.append(
                f"{title}: some classes differ only by spaces, case or the writing of a number (rows in brackets): "
                f"{spellings}; {options.flag('merge_labels', True)} makes one class of each"
            )
    return notes


def mend_unseen(label: str, train_labels: Iterable[str], options: RowOptions) -> str:
    """What to do about a label that no train row has."""
    if may_be_missing(label):
        return f"Pass {options.flag('missing_labels', (label.strip(),))} to leave rows with it out"
    key = spelling_key(label)
    if similar := next((other for other in train_labels if spelling_key(other) == key), None):
        return f"Pass {options.flag('merge_labels', True)} to make it one class with {quote(similar)}"
    return f"Pass {options.flag('min_class', 1)} to leave such rows out, or add such rows to train"


def note_unused(options: RowOptions, used: Iterable[str], labels: Iterable[str]) -> list[str]:
    """A note for every label that stands for none and that no row has. labels: those of all rows."""
    notes, used = [], set(used)
    for name in options.missing_labels:
        if name not in used:
            guess = did_you_mean(name, labels)
            notes.append(
                f"{options.flag('missing_labels')}: no row has the label {quote(name)}"
                + (f"; did you mean {quote(guess)}?" if guess else "")
            )
    return notes


def _group_spellings(counts: Mapping[str, int]) -> list[list[str]]:
    """The labels that are spellings of one class, the most frequent first; only classes with several."""
    groups: dict[Decimal | str, list[str]] = {}
    for label in counts:
        groups.setdefault(spelling_key(label), []).append(label)
    return [
        sorted(group, key=lambda label: (-counts[label], len(label), label)) for group in groups.values() if group[1:]
    ]


# -------------------------------------------------------------------------------------------------------------- numbers


def parse_number(text: str) -> float:
    """The number in a cell, NaN if it is not one (such as 1_000, which Python would accept)."""
    try:
        return float("nan" if "_" in text else text)
    except ValueError:
        return float("nan")


def _parse_either(text: str) -> float:
    """The number in a cell, with a decimal point or a decimal comma; NaN if it is not one."""
    return parse_number(text.replace(",", ".") if _DECIMAL_COMMA.fullmatch(text) else text)


def is_number(text: str) -> bool:
    """Whether a cell is a finite number, with a decimal point or a decimal comma."""
    return isfinite(_parse_either(text))


def have_fractions(labels: Sequence[str]) -> bool:
    """Whether all labels are numbers and some of them have a fraction."""
    numbers = [_parse_either(label) for label in labels]
    return all(map(isfinite, numbers)) and not all(map(float.is_integer, numbers))


class Numbers:
    """A growing column of numbers, with decimal points or, throughout, with decimal commas."""

    def __init__(self) -> None:
        self._values, self._commas_are_decimal = array("d"), False
        self._first_comma: tuple[int, str] | None = None  # row and text
        self._first_point: tuple[int, str] | None = None

    def append(self, text: str) -> None:
        """Add a number, one that `is_number`."""
        row = len(self._values)
        self._values.append(_parse_either(text))
        if "," in text:
            self._first_comma = self._first_comma or (row, text)
            self._commas_are_decimal |= not _THOUSANDS.fullmatch(text)
        elif "." in text:
            self._first_point = self._first_point or (row, text)

    def array(self) -> np.ndarray:
        """(row,) float64, over the same memory. Do not append afterwards."""
        return np.frombuffer(self._values)

    def ambiguity(self) -> tuple[int, str, str] | None:
        """The row of a comma that may be decimal or not, what is wrong, and the mend; None if the column is clear."""
        if self._first_comma is None:
            return None
        row, text = self._first_comma
        if self._first_point is not None:
            what = f"holds {quote(text)} with a decimal comma, and {quote(self._first_point[1])} with a decimal point"
            return row, what, "Write all numbers with a point"
        if not self._commas_are_decimal:
            what = (
                f"holds {quote(text)}, which may be {text.strip().replace(',', '.')} or {text.strip().replace(',', '')}"
            )
            return row, what, "Write its numbers with a point and without a separator of thousands"
        return None

    def note(self, title: str) -> str:
        """How the numbers are written, where that is unusual; else empty."""
        if self._first_comma is None:
            return ""
        text = self._first_comma[1].strip()
        return f"{title} is written with decimal commas: {text} is read as {text.replace(',', '.')}"
