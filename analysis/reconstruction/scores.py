"""Texts got back from their vectors: what they are worth, as tables.

1. `gained`: bits per token that a vector takes off the blind decoder's, with an interval over texts.
2. `compared`: a text written beside its original: tokens as multisets, the sequence as a whole, and exactly.
3. `corpus`: BLEU and chrF by sacrebleu (Post 2018), with their signatures.
4. `novelty`: how far a text is from the nearest train text; a decoder that only remembers is found out by it.
5. `recovered`: what share of what the blind decoder misses is put right, with its interval.
6. `marked`: two texts with their differences in brackets.

Knows texts, token ids and tables: no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from clsprobe.analysis import stats

NOVEL = 0.2  # of the characters: a text this near to a train text is not new
AT_ONCE = 256  # texts compared with all of train together
BLIND = ("no input", "mean vector", "shuffled vectors")


def gained(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Bits gained per token over the blind decoder, and the 95 % interval: a ratio of sums, its bootstrap over texts.

    rows: columns blind, bits, tokens of the texts of one cell.
    """
    saved, tokens = (rows.blind - rows.bits).to_numpy(float), rows.tokens.to_numpy(float)
    value = saved.sum() / tokens.sum()
    told = stats.bootstrap(lambda weights: (weights @ saved) / np.maximum(weights @ tokens, 1), len(rows))
    low, high = stats.percentile(told)
    return float(value), float(min(low, value)), float(max(high, value))


def gains(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """`gained` of every group: columns `by`, value, low, high, texts."""
    found = [
        (*(key if isinstance(key, tuple) else (key,)), *gained(group), len(group))
        for key, group in rows.groupby(list(by), sort=False, observed=True)
    ]
    return pd.DataFrame(found, columns=[*by, "value", "low", "high", "texts"])


def mean_of(values: np.ndarray) -> tuple[float, float, float]:
    """A mean over texts with its 95 % interval."""
    values = np.asarray(values, float)
    told = stats.bootstrap(lambda weights: (weights @ values) / weights.sum(1), len(values))
    low, high = stats.percentile(told)
    return float(values.mean()), float(low), float(high)


def compared(originals: Sequence[np.ndarray], written: Sequence[np.ndarray]) -> pd.DataFrame:
    """One row a text, of token ids: precision, recall, f1 (multisets: a token counts as often as it stands there),
    likeness (1 - edit distance of the token sequences over the longer one's length) and exact (0 or 1)."""
    found = []
    for original, told in zip(originals, written, strict=True):
        a, b = original.tolist(), told.tolist()
        hits = (Counter(a) & Counter(b)).total()
        precision, recall = hits / max(len(b), 1), hits / max(len(a), 1)
        f1 = 2 * hits / max(len(a) + len(b), 1)
        found.append((precision, recall, f1, Levenshtein.normalized_similarity(a, b), float(a == b)))
    return pd.DataFrame(found, columns=["precision", "recall", "f1", "likeness", "exact"])


def corpus(originals: Sequence[str], written: Sequence[str]) -> dict[str, float]:
    """BLEU and chrF of all texts together, in points of 100."""
    bleu, chrf = _scorers()
    references = [list(originals)]
    told = [text or " " for text in written]
    return {"BLEU": bleu.corpus_score(told, references).score, "chrF": chrf.corpus_score(told, references).score}


def signatures() -> list[str]:
    """What sacrebleu measured with, in its own short form; complete once `corpus` was asked."""
    bleu, chrf = _scorers()
    for scorer in (bleu, chrf):
        scorer.corpus_score(["a"], [["a"]])
    return [f"BLEU {bleu.get_signature()}", f"chrF {chrf.get_signature()}"]


def _scorers() -> tuple[Any, Any]:
    from sacrebleu.metrics import BLEU, CHRF

    return BLEU(effective_order=False), CHRF()


def novelty(texts: Sequence[str], train: Sequence[str]) -> np.ndarray:
    """(text,) edit distance in characters to the nearest train text, over the longer one's length: 0 is a copy."""
    nearest = np.ones(len(texts))
    for at in range(0, len(texts), AT_ONCE):
        some = list(texts[at : at + AT_ONCE])
        far = process.cdist(some, list(train), scorer=Levenshtein.normalized_distance, dtype=np.float32)
        nearest[at : at + AT_ONCE] = far.min(1)
    return nearest


def recovered(likeness: np.ndarray, blind: np.ndarray) -> tuple[float, float, float]:
    """(mean likeness - mean blind) / (1 - mean blind) over the same texts, with its 95 % interval.

    0: what the blind decoder writes anyway. 1: the texts themselves.
    """

    def share(weights: np.ndarray) -> np.ndarray:
        own, floor = (weights @ values / weights.sum(1) for values in (likeness, blind))
        return (own - floor) / np.maximum(1 - floor, 1e-9)

    value = float(share(np.ones((1, len(likeness))))[0])
    low, high = map(float, stats.percentile(stats.bootstrap(share, len(likeness))))
    return value, min(low, value), max(high, value)


def marked(original: str, written: str) -> tuple[str, str]:
    """Both texts, what the other lacks in square brackets, word by word."""
    a, b = original.split(), written.split()
    sides: tuple[list[str], list[str]] = ([], [])
    for step in Levenshtein.opcodes(a, b):
        parts = a[step.src_start : step.src_end], b[step.dest_start : step.dest_end]
        for side, part in zip(sides, parts, strict=True):
            if part:
                told = " ".join(part)
                side.append(told if step.tag == "equal" else f"[{told}]")
    return " ".join(sides[0]), " ".join(sides[1])


def by_character(text: str, words: Sequence[tuple[str, str]]) -> list[str]:
    """The part of speech that every character of a text belongs to; "" between words.

    words: (word, part of speech) in the order of the text, spelled as there.
    """
    found, at = [""] * len(text), 0
    for word, tag in words:
        if (start := text.find(word, at)) >= 0:
            at = start + len(word)
            found[start:at] = [tag] * len(word)
    return found


def binned(values: np.ndarray, edges: Sequence[float], names: Sequence[str]) -> pd.Categorical:
    """The name of the bin of every value; bin i is edges[i] <= value < edges[i + 1]."""
    return pd.Categorical.from_codes(np.digitize(values, edges[1:-1]), categories=list(names), ordered=True)
