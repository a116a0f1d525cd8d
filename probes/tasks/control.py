"""Controls: label sets that put a score into perspective. A control is one more label set, measured like the real one.

shuffled         the labels permuted within every side of the split: the chance level of this probe with this many texts
word_type        the control task of Hewitt & Liang (2019, https://aclanthology.org/D19-1275), adapted to sentences: the
                 label depends on one word of the text and on nothing else
word_type_texts  the real labels of the texts that the control task labels

How word_type is made:

1. Words are runs of letters, casefolded. Content words are determined without knowledge of the language: the most
   frequent types of train, which make up half of its running words, are left out. In English these are about a hundred
   types, function words and words common to all texts of the task.
2. `choose_types` lists content types, from train alone, so that most of its texts hold exactly one of them. Only such
   texts have a label. Which word decides can thus be told from the text and the list: who knows the list and the labels
   of its types makes no mistake. A word drawn from each text, as in the task of single words, cannot be told.
3. The label of a type is drawn independently from the labels of train, by a hash of the seed and the type.

Selectivity compares word_type_texts with word_type, see `analysis.sweep.choose`.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np

MIN_TEXTS = 10  # of train that hold a type of the control task

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
    """Codes (text,) determined by the only listed type (`choose_types`) of each text; -1 for a text without a listed
    type, with several, or with one that is never the only one in a train text.

    Numbers are drawn from those of train in the same way; NaN = no label.
    """
    train = side == "train"
    words = [set(_split_words(text)) for text in texts]
    listed = set(choose_types([texts[i] for i in np.flatnonzero(train).tolist()]))
    types = [next(iter(held)) if len(held := listed & of_text) == 1 else None for of_text in words]
    pool = np.sort(y[train])
    labels = {
        name: pool[_stable_hash(seed, "label", name) % len(pool)]
        for name, is_train in zip(types, train, strict=True)
        if is_train and name is not None
    }
    missing = _missing(y)
    return np.array([missing if name is None else labels.get(name, missing) for name in types], y.dtype)


def word_type_texts(texts: Sequence[str], y: np.ndarray, side: np.ndarray, seed: int) -> np.ndarray:
    """The labels y (text,) of the texts that `word_type` labels; no label for the others, and for a class that none of
    these texts in train has. None at all where that control task has one label only, and is no task."""
    drawn = word_type(texts, y, side, seed)
    labelled = has_label(drawn)
    if len(np.unique(drawn[labelled & (side == "train")])) < 2:
        labelled[:] = False
    if y.dtype.kind != "f":
        labelled &= np.isin(y, y[labelled & (side == "train")])
    return np.where(labelled, y, np.array(_missing(y), y.dtype))


def choose_types(texts: Sequence[str]) -> list[str]:
    """Content types chosen so that most of the texts hold exactly one of them, in the order of choice.

    Greedily: the type is added next that at least `MIN_TEXTS` texts hold and that raises the number of texts with
    exactly one type most: texts with none that hold it, less texts with exactly one that hold it. Ties go to the first
    in alphabetical order. 100,000 sentences take a few seconds.
    """
    words = [_split_words(text) for text in texts]
    common = _find_common_types([word for of_text in words for word in of_text])
    count = Counter(word for of_text in words for word in set(of_text))
    candidates = sorted(word for word, n in count.items() if n >= MIN_TEXTS and word not in common)
    index = {word: i for i, word in enumerate(candidates)}
    types_of = [np.array(sorted({index[word] for word in of_text if word in index}), int) for of_text in words]
    texts_of: list[list[int]] = [[] for _ in candidates]
    for row, types in enumerate(types_of):
        for i in types.tolist():
            texts_of[i].append(row)
    gain = np.array([len(rows) for rows in texts_of])
    n_listed = [0] * len(texts)  # (text,) listed types that it holds
    chosen: list[int] = []
    while len(chosen) < len(candidates) and gain[best := int(gain.argmax())] > 0:
        chosen.append(best)
        for row in texts_of[best]:  # a text counts for its types as 1 with none of them listed, -1 with one, then 0
            if n_listed[row] < 2:
                gain[types_of[row]] += 1 if n_listed[row] else -2
            n_listed[row] += 1
        gain[best] = -len(texts) - 1  # and rises by less than the number of texts from now on
    return [candidates[i] for i in chosen]


class _Letters(dict[int, int]):
    """For `str.translate`: letters and their marks stay, any other character becomes a space."""

    def __missing__(self, code: int) -> int:
        self[code] = code if unicodedata.category(chr(code))[0] in "LM" else ord(" ")
        return self[code]


_LETTERS = _Letters()


def _split_words(text: str) -> list[str]:
    """The runs of letters and their marks, casefolded."""
    return unicodedata.normalize("NFKC", text).casefold().translate(_LETTERS).split()


def _find_common_types(words: Sequence[str]) -> set[str]:
    """The most frequent types that make up half of the words; ties in alphabetical order."""
    common, covered = set(), 0
    for word, count in sorted(Counter(words).items(), key=lambda item: (-item[1], item[0])):
        if 2 * covered >= len(words):
            break
        common.add(word)
        covered += count
    return common


def _missing(y: np.ndarray) -> float:
    """The value of a text without a label, among labels like y."""
    return np.nan if y.dtype.kind == "f" else -1


def _stable_hash(seed: int, *parts: str) -> int:
    """A hash that is the same in every process, unlike `hash`."""
    return int.from_bytes(blake2b("\0".join(parts).encode(), digest_size=8, key=str(seed).encode()).digest())


CONTROLS: dict[str, Control] = {
    "shuffled": shuffled,
    "word_type": word_type,
    "word_type_texts": word_type_texts,
}
