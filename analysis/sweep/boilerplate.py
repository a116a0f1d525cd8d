"""Phrases that many texts of one label share: a signature, a header, a template. A probe may read these alone.

1. `find_phrases` lists the phrases of train: `WORDS` words or punctuation marks in a row (a shorter text as a whole),
   in at least `MIN_TEXTS` texts, nearly all (`NEARLY`) of one label, and clearly more than that label has of all texts
   (binomial test at `LEVEL`, Bonferroni over all phrases as frequent and all labels).
2. `list_boilerplate` lists the test texts that hold one.
3. `describe_boilerplate` says how many these are, and how a cell reads the other texts.

Phrases are counted word by word: k + 1 words in a row can be frequent only where the first k and the last k of them are
(Agrawal & Srikant 1994). The time is linear in the words of train, and so is the memory, a few numbers a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.study import counted
from clsprobe.analysis.sweep.scores import ChosenCell
from clsprobe.analysis.verdict import short
from clsprobe.probes.errors import printable, quote
from clsprobe.probes.tasks.duplicates import normalise
from clsprobe.probes.tasks.texts import readable

if TYPE_CHECKING:
    from clsprobe.analysis.sweep.grid import SplitTask

BOILERPLATE = ("task", "row", "phrase", "label", "texts", "of_label")  # columns of the table
WORDS = 5  # words and punctuation marks of a phrase
MIN_TEXTS = 10  # of train that hold it
NEARLY = 0.95  # of these have its label
LEVEL = 0.05
MIN_SHARE = 0.01  # of the test texts that is worth a note
LISTED = 3  # phrases in a note
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Phrase:
    """A phrase of train. label: the code of its label. texts: those that hold it. of_label: those of them with it."""

    label: int
    texts: int
    of_label: int


def find_phrases(texts: Sequence[str], y: np.ndarray) -> dict[tuple[str, ...], Phrase]:
    """The phrases of train by their words. texts: of train. y: (text,) their codes."""
    index: dict[str, int] = {}
    lengths: list[int] = []

    def read_words() -> Iterator[int]:
        for text in texts:
            words = _split_words(text)
            lengths.append(len(words))
            for word in words:
                yield index.setdefault(word, len(index))

    words = np.fromiter(read_words(), np.int64)
    text = np.repeat(np.arange(len(lengths)), lengths)
    is_last = np.append(_changes(text)[1:], True)  # (word,)
    codes = _drop_rare(words, text)  # (word,) of the sequence that begins here, -1: it is rare
    for _ in range(WORDS - 1):
        following = np.where(is_last, -1, np.append(codes[1:], -1))
        longer = np.where((codes >= 0) & (following >= 0), codes * (codes.max(initial=0) + 1) + following, -1)
        codes = _drop_rare(longer, text)
    starts = np.flatnonzero(codes >= 0)
    if not len(starts):
        return {}
    pairs = np.unique(np.stack([codes[starts], text[starts]], 1), axis=0)
    counts = np.zeros((pairs[:, 0].max() + 1, y.max() + 1), np.int64)  # (phrase, label) texts
    np.add.at(counts, (pairs[:, 0], y[pairs[:, 1]]), 1)
    first = starts[np.unique(codes[starts], return_index=True)[1]]  # (phrase,) where it begins first
    names = [*index]
    return {
        tuple(names[word] for word in words[first[i] : first[i] + WORDS]): Phrase(
            int(counts[i].argmax()), int(counts[i].sum()), int(counts[i].max())
        )
        for i in np.flatnonzero(_are_of_one_label(counts, np.bincount(y) / len(y)))
    }


def _drop_rare(codes: np.ndarray, text: np.ndarray) -> np.ndarray:
    """(word,) codes from 0 of the sequences that `MIN_TEXTS` texts hold, -1 for others. codes, text: (word,)."""
    positions = np.flatnonzero(codes >= 0)
    positions = positions[np.argsort(codes[positions], kind="stable")]  # by sequence, then by text
    begins = _changes(codes[positions])
    sequence = np.cumsum(begins) - 1
    n_texts = np.bincount(sequence[begins | _changes(text[positions])])
    frequent = n_texts >= MIN_TEXTS
    remaining = np.full_like(codes, -1)
    remaining[positions] = np.where(frequent, np.cumsum(frequent) - 1, -1)[sequence]
    return remaining


def _changes(values: np.ndarray) -> np.ndarray:
    """Whether each element differs from the one before; the first does."""
    return np.append(True, values[1:] != values[:-1])[: len(values)]


def _are_of_one_label(counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(phrase,) whether it belongs to its commonest label. counts: (phrase, label) texts. shares: (label,) of all."""
    from scipy.stats import binom

    n, most = counts.sum(1), counts.max(1)
    p = binom.sf(most - 1, n, shares[counts.argmax(1)])
    return (most >= NEARLY * n) & (p * counts.size <= LEVEL)


def _split_words(text: str) -> list[str]:
    """Words and punctuation marks, normalised; empty ones after those of a short text."""
    words = _WORD.findall(normalise(readable(text)))
    return words + [""] * (WORDS - len(words)) if words else []


def list_boilerplate(split: SplitTask) -> pd.DataFrame:
    """The test texts that hold a phrase of train, with the one of their phrases that most train texts hold.

    Columns `BOILERPLATE`: row, of the task's texts; the phrase and its label; texts, those of train that hold it;
    of_label, those of them with its label. split: of a task with classes.
    """
    phrases = find_phrases(*split.of("train"))
    rows = []
    for row in split.row_indices[split.rows_of("test")] if phrases else ():
        words = _split_words(split.task.texts[int(row)])
        held = [key for i in range(len(words) - WORDS + 1) if (key := tuple(words[i : i + WORDS])) in phrases]
        if held:
            words_of_phrase = max(held, key=lambda key: phrases[key].texts)  # the first of several
            phrase = phrases[words_of_phrase]
            label = str(split.classes[phrase.label])
            name = " ".join(filter(None, words_of_phrase))
            rows.append((split.task.name, int(row), name, label, phrase.texts, phrase.of_label))
    return pd.DataFrame(rows, columns=[*BOILERPLATE])


def describe_boilerplate(boilerplate: pd.DataFrame, rows: pd.DataFrame, cell: ChosenCell) -> list[str]:
    """A note where more than `MIN_SHARE` of the test texts hold a phrase: how many, which, and the accuracy of the cell
    with and without these texts.

    boilerplate: the rows of `list_boilerplate` of one task. rows: its predictions. cell: one that was chosen from them.
    """
    test = cell.rows(rows[(rows.split == "test") & (rows.seed == rows.seed.min())])
    holds = test.row.isin(boilerplate.row).to_numpy()
    n = int(holds.sum())
    if not n > MIN_SHARE * len(test):
        return []
    correct = stats.is_correct(test).to_numpy()
    groups = boilerplate.groupby(["phrase", "label", "texts", "of_label"], observed=True).size()
    groups = groups.reset_index(name="test texts").sort_values("test texts", ascending=False, kind="stable")
    phrases = "; ".join(
        f"{quote(group.phrase)} ({counted(group[-1], 'test text')}; {group.of_label:,} of the {group.texts:,} training "
        f"texts with it are {quote(group.label)})"
        for group in groups.head(LISTED).itertuples(index=False)
    )
    others = f"; and {counted(len(groups) - LISTED, 'other phrase')}" if len(groups) > LISTED else ""
    without = f"{correct[~holds].mean():.3f} without them" if n < len(test) else "no test text is without such a phrase"
    sentence = (
        f"{short(str(test.task.iloc[0]))}: {n:,} of the {len(test):,} test texts ({n / len(test):.1%}) hold a phrase "
        f"that training texts of one label share: {phrases}{others}. {cell.name} gets {correct.mean():.3f} of all test "
        f"texts right, {correct[holds].mean():.3f} of these, and {without}."
    )
    return [printable(sentence)]
