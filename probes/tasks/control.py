"""Controls: label sets that show what a score means. A control is one more label set, measured like the real one.

shuffled     the labels permuted within every side of the split: what chance looks like with this probe and this many
             texts
word_type    the control task of Hewitt & Liang (2019) in a form of our own for sentences: labels that follow from one
             word of the text and from nothing else, so that only a probe that memorises words can tell them

How word_type is made:

1. Words are runs of letters, without case. What is a content word is told without knowing the language: types are
   ranked by how often they stand in train, and the commonest, up to half of its running words, are left out. In
   English these are some hundred types, function words and what every text of the task has.
2. The anchor of a text is one of its content words, drawn by a hash of the seed and the text. A fixed position would
   not do: most questions begin with the same few words.
3. Every type draws its label once and independently, by a hash of the seed and the type, from the labels of train. A
   text has its anchor's label where that type is the anchor of a train text too, else -1: nobody could know it.

selectivity = score on the task - score on word_type, of the same probe. Read `coverage` beside it: a language that does
not write its words apart shows as almost none.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np

Control = Callable[[Sequence[str], np.ndarray, np.ndarray, int], np.ndarray]
"""texts, their codes or numbers y (text,), side (text,) "train" | "dev" | "test", seed -> y (text,), see `labelled`."""


def shuffled(texts: Sequence[str], y: np.ndarray, side: np.ndarray, seed: int) -> np.ndarray:
    """Codes y (text,) permuted within every side (text,); the balance of classes stays."""
    random = np.random.default_rng([seed, 0x5F])
    drawn = y.copy()
    for name in np.unique(side):
        rows = np.flatnonzero(side == name)
        drawn[rows] = y[random.permutation(rows)]
    return drawn


def labelled(y: np.ndarray) -> np.ndarray:
    """Which of y have a label: codes have none at -1, numbers none at NaN."""
    return ~np.isnan(y) if y.dtype.kind == "f" else y >= 0


def word_type(texts: Sequence[str], y: np.ndarray, side: np.ndarray, seed: int) -> np.ndarray:
    """Codes (text,) that one content word of each text decides; -1 where train has no text of the same anchor.

    Numbers are drawn from those of train in the same way; NaN where there is no label.
    """
    train = side == "train"
    words = [_words(text) for text in texts]
    common = _commonest_half([word for one, here in zip(words, train, strict=True) if here for word in one])
    anchors = [_anchor(one, common, seed) for one in words]
    known = {anchor for anchor, here in zip(anchors, train, strict=True) if here and anchor is not None}
    urn = np.sort(y[train])
    label = {anchor: urn[_hash(seed, "label", anchor) % len(urn)] for anchor in known}
    none = np.nan if y.dtype.kind == "f" else -1
    return np.array([none if anchor is None else label.get(anchor, none) for anchor in anchors], y.dtype)


def coverage(codes: np.ndarray, side: np.ndarray, name: str = "test") -> tuple[float, float]:
    """How much of one side (text,) a control's codes (text,) cover, and how much of that a guess gets right.

    The first is the share of its texts that have a label; the second the share, of these, that train's commonest label
    is right on. NaN where there are none.
    """
    here, taught = codes[side == name], codes[(side == "train") & labelled(codes)]
    known = here[labelled(here)]
    labels, counts = np.unique(taught, return_counts=True)
    guess = labels[counts.argmax()] if len(taught) else -1
    return len(known) / len(here) if len(here) else np.nan, float((known == guess).mean()) if len(known) else np.nan


def _words(text: str) -> list[str]:
    """The runs of letters and their marks, casefolded."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c if unicodedata.category(c)[0] in "LM" else " " for c in plain).split()


def _commonest_half(words: Sequence[str]) -> set[str]:
    """The commonest types, as many as it takes to make up half of the words; of equals the first in the alphabet."""
    common, covered = set(), 0
    for word, count in sorted(Counter(words).items(), key=lambda item: (-item[1], item[0])):
        if 2 * covered >= len(words):
            break
        common.add(word)
        covered += count
    return common


def _anchor(words: Sequence[str], common: set[str], seed: int) -> str | None:
    content = sorted(set(words) - common)
    return content[_hash(seed, "anchor", *words) % len(content)] if content else None


def _hash(seed: int, *parts: str) -> int:
    """The same in every process, as `hash` is not."""
    return int.from_bytes(blake2b("\0".join(parts).encode(), digest_size=8, key=str(seed).encode()).digest())


CONTROLS: dict[str, Control] = {"shuffled": shuffled, "word_type": word_type}
