"""Texts: single ones, pairs in one string, and many in one buffer.

A pair of texts (premise and hypothesis) is one string too: `pair` joins them with `PAIRED`. Whatever stores texts thus
stores pairs: packed arrays, dictionaries, digests, caches. Only code that looks inside a text splits it (`parts`): the
encoder, the baselines, the search for duplicates, the page. `PAIRED` is a Unicode noncharacter, reserved for internal
use, which no text may contain; sources reject it. A subclass of str would be lost in an Arrow array, and would equal
the same words in one text.

`Texts` packs strings into one buffer; `ArrowTexts` is the read-only sequence over it.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, SupportsIndex, overload

from clsprobe.probes.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

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
            mend = "Leave such rows out, or make texts of them"
            if isinstance(texts[row], tuple | list) and len(texts[row]) == 2:
                mend = "Pairs go through Task.from_lists, whose .texts are read"
            raise InputError("texts", what, mend)


class Texts:
    """A growing list of strings in one UTF-8 buffer. A million strings take their bytes plus 8 MB."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        """Add one text. Raises UnicodeEncodeError, and adds nothing, for an unpaired surrogate."""
        self._bytes += text.encode()
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def finish(self) -> ArrowTexts:
        """The texts as a read-only sequence over the same memory. Do not append afterwards."""
        import pyarrow as pa

        ends, text = pa.py_buffer(self._ends), pa.py_buffer(self._bytes)
        return ArrowTexts(pa.LargeStringArray.from_buffers(len(self), ends, text))


class ArrowTexts(Sequence[str]):
    """A `Sequence[str]` over an Arrow string array. Python strings are made on access."""

    def __init__(self, array: pa.Array) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> ArrowTexts: ...
    def __getitem__(self, index: SupportsIndex | slice) -> str | ArrowTexts:
        if isinstance(index, slice):
            return ArrowTexts(self.array[index])
        return self.array[operator.index(index)].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 4096):
            yield from self.array[start : start + 4096].to_pylist()

    def __repr__(self) -> str:
        return f"<ArrowTexts: {len(self):,} texts>"
