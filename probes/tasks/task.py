"""A probing task: texts, one label each, and their split.

A `Task` is plain data. Sources (analysis/sources) make tasks, `probes.tasks.split` splits them, the sweep measures.

A pair of texts (premise and hypothesis) is one string too: `pair` joins them with `PAIRED`. Whatever stores texts thus
stores pairs: packed arrays, dictionaries, digests, caches. Only code that looks inside a text splits it (`parts`): the
encoder, the baselines, the search for duplicates, the page. `PAIRED` is a Unicode noncharacter, reserved for internal
use, which no text may contain; sources reject it. A subclass of str would be lost in an Arrow array, and would equal
the same words in one text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from clsprobe.probes.errors import InputError, escape_surrogates

PAIRED = "\ufdd0"


def pair(first: str, second: str) -> str:
    """Two texts as one string, which an encoder tokenizes with its tokenizer's template for pairs."""
    return first + PAIRED + second


def parts(text: str) -> list[str]:
    """The texts in a string: the string itself, or both texts of a pair."""
    return text.split(PAIRED)


def readable(text: str) -> str:
    """A text for display: a double bar separates the texts of a pair."""
    return " ‖ ".join(parts(text))


def check_texts(texts: Sequence[str]) -> None:
    """Raise InputError for one text instead of several (a sequence of characters), and for an item that is no text."""
    if isinstance(texts, str | bytes):
        raise InputError("texts", "is one text, not a list of texts", "Pass [text]")
    for row in range(len(texts)):
        if not isinstance(texts[row], str):
            what = f"row {row:,} holds {type(texts[row]).__name__}, not a text"
            raise InputError("texts", what, "Leave such rows out, or make texts of them")


@dataclass(frozen=True, eq=False)
class Task:
    """A label set to be predicted from every cell of an encoder.

    name: ``SOURCE:STEM:LABEL`` ("file:trec:coarse"), never a path; bytes of a file's name that are not UTF-8 are
    escaped.
    texts: (text,) in the order of the source; a pair of texts is one string (`pair`).
    y: (text,) strings for kind "class", float64 for kind "number".
    split: (text,) "train" | "dev" | "test" if the source fixes it, else None.
    groups: (text,) rows that share a value stay on one side of a split, or None.
    rows: (text,) row index in the source, counting rows left out, if vectors belong to rows, else None.
    textless: there are labels only; the texts are names of rows ("row 17").
    solved_by: the baselines that solve the task by construction ("length" where the label is the length of the text),
    named as in `probes.baseline`. A verdict that compares with one of them leaves the task out.
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

    def __post_init__(self) -> None:
        if isinstance(self.texts, str):
            check_texts(self.texts)
        object.__setattr__(self, "name", escape_surrogates(self.name))
        for name, value in {"y": self.y, "split": self.split, "groups": self.groups, "rows": self.rows}.items():
            if value is not None and len(value) != len(self.texts):
                raise ValueError(f"Task {self.name!r}: {name} has {len(value)} rows, texts has {len(self.texts)}")
        if self.split is not None and (unknown := set(self.split) - {"train", "dev", "test"}):
            raise ValueError(
                f"Task {self.name!r}: split holds {sorted(unknown)}; only 'train', 'dev' and 'test' are known"
            )

    @property
    def label(self) -> str:
        """The last part of the name, which identifies the label set."""
        return self.name.rsplit(":", 1)[-1]
