"""Controls: label sets that put a score into perspective. A control is one more label set, measured like the real one.

shuffled     the labels permuted within every side of the split: the chance level of this probe with this many texts
word_type    the control task of Hewitt & Liang (2019), adapted to sentences: the label depends on one word of the text
             and on nothing else, so that only a probe that memorises words can predict it

How word_type is made:

1. Words are runs of letters, casefolded. Content words are determined without knowledge of the language: the most
   frequent types of train, which make up half of its running words, are left out. In English these are about a hundred
   types, function words and words common to all texts of the task.
2. The anchor of a text is one of its content words, drawn by a hash of the seed and the text. A fixed position would
   not do: most questions begin with the same few words.
3. The label of a type is drawn independently from the labels of train, by a hash of the seed and the type. A text has
   the label of its anchor if that type is also the anchor of a train text, else -1: it could not be predicted.

selectivity = score on the task - score on word_type, of the same probe. Read `coverage` beside it: it is close to 0 for
a language that does not separate its words.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np

Control = Callable[[Sequence[str], np.ndarray, np.ndarray, int], np.ndarray]
"""texts, y (text,) codes or numbers, side (text,) "train" | "dev" | "test", seed -> y (text,), see `has_label`."""


def shuffled(texts: Sequence[str], y: np.ndarray, side: np.ndarray, seed: int) -> np.ndarray:
    """Codes y (text,) permuted within every side (text,); class frequencies stay the same."""
    random = np.random.default_rng([seed, 0x5F])
    permuted = y.copy()
    for part in np.unique(side):
        rows = np.flatnonzero(side == part)
        permuted[rows] = y[random.permutation(rows)]
    return permuted


def has_label(y: np.ndarray) -> np.ndarray:
    """Whether each element of y is a label: not -1 for codes, not NaN for numbers."""
    return ~np.isnan(y) if y.dtype.kind == "f" else y >= 0


def word_type(texts: Sequence[str], y: np.ndarray, side: np.ndarray, seed: int) -> np.ndarray:
    """Codes (text,) determined by one content word of each text; -1 if no train text has the same anchor.

    Numbers are drawn from those of train in the same way; NaN = no label.
    """
    train = side == "train"
    words = [_split_words(text) for text in texts]
    common = _find_common_types([word for types, taught in zip(words, train, strict=True) if taught for word in types])
    anchors = [_draw_anchor(types, common, seed) for types in words]
    known = {anchor for anchor, taught in zip(anchors, train, strict=True) if taught and anchor is not None}
    pool = np.sort(y[train])
    labels = {anchor: pool[_stable_hash(seed, "label", anchor) % len(pool)] for anchor in known}
    missing = np.nan if y.dtype.kind == "f" else -1
    return np.array([missing if anchor is None else labels.get(anchor, missing) for anchor in anchors], y.dtype)


def coverage(codes: np.ndarray, side: np.ndarray, side_name: str = "test") -> tuple[float, float]:
    """The share of a side's texts with a label in a control's codes (text,), and the majority accuracy on these.

    side: (text,). The majority class is that of train. NaN if there are no texts.
    """
    part, taught = codes[side == side_name], codes[(side == "train") & has_label(codes)]
    known = part[has_label(part)]
    labels, counts = np.unique(taught, return_counts=True)
    guess = labels[counts.argmax()] if len(taught) else -1
    return len(known) / len(part) if len(part) else np.nan, float((known == guess).mean()) if len(known) else np.nan


def _split_words(text: str) -> list[str]:
    """The runs of letters and their marks, casefolded."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c if unicodedata.category(c)[0] in "LM" else " " for c in plain).split()


def _find_common_types(words: Sequence[str]) -> set[str]:
    """The most frequent types that make up half of the words; ties in alphabetical order."""
    common, covered = set(), 0
    for word, count in sorted(Counter(words).items(), key=lambda item: (-item[1], item[0])):
        if 2 * covered >= len(words):
            break
        common.add(word)
        covered += count
    return common


def _draw_anchor(words: Sequence[str], common: set[str], seed: int) -> str | None:
    content = sorted(set(words) - common)
    return content[_stable_hash(seed, "anchor", *words) % len(content)] if content else None


def _stable_hash(seed: int, *parts: str) -> int:
    """A hash that is the same in every process, unlike `hash`."""
    return int.from_bytes(blake2b("\0".join(parts).encode(), digest_size=8, key=str(seed).encode()).digest())


CONTROLS: dict[str, Control] = {"shuffled": shuffled, "word_type": word_type}
