"""How rows of texts and labels are read, and how a message writes an option down: as a flag, or as an argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from clsprobe.probes.errors import quote


@dataclass(frozen=True)
class RowOptions:
    """The options that every source of rows has. A subclass says which columns hold texts, and how options are written.

    label_column: empty to load texts without labels. split_column: holds train, dev or test. group_column: rows that
    share a value stay on one side of a split. target: what labels are, by default classes. drop_empty,
    drop_missing_labels: leave rows without a text or label out. missing_labels: labels that stand for none; rows with
    one are left out. min_class: classes with fewer rows are left out later (`Task.without_rare`). merge_labels:
    spellings of one class become its most frequent one. replace_invalid: write U+FFFD for what no text can hold.
    vectors: a file with a vector for every row.
    """

    label_column: tuple[str, ...] = ("label",)
    split_column: str | None = None
    group_column: str | None = None
    target: Literal["class", "number"] | None = None
    drop_empty: bool = False
    drop_missing_labels: bool = False
    missing_labels: tuple[str, ...] = ()
    min_class: int | None = None
    merge_labels: bool = False
    replace_invalid: bool = False
    vectors: str | None = None

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The text column, or the two columns of text pairs; empty for vectors without texts."""
        raise NotImplementedError

    def flag(self, name: str, value: Any = None) -> str:
        """How whoever gives the rows writes an option, in a message. value: of the option; ... for any."""
        raise NotImplementedError

    def title(self, column: str) -> str:
        """What a message calls a column."""
        return f"column {quote(column)}"


def write_flag(name: str, value: Any = None) -> str:
    """An option of the command line, such as ``--missing-labels nan,NA``."""
    flag = f"--{name.replace('_', '-')}"
    if value is None or value is True or value is ...:
        return flag
    return f"{flag} {','.join(value) if isinstance(value, tuple) else value}"


def write_argument(name: str, value: Any = None) -> str:
    """An argument in Python, such as ``missing_labels=('nan', 'NA')``."""
    if value is None:
        return name
    return f"{name}=..." if value is ... else f"{name}={value!r}"
