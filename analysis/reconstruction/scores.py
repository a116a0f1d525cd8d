"""Scores of reconstructed texts, as tables.

1. `measure_gain`: bits per token that a vector saves against the blind decoder, with an interval over texts.
   `measure_cell_gain`: none where the gate replaced the decoder (probes/decoders/base.py).
2. `compare_texts`: overlap of token multisets, edit distance and exact matches of written texts and their originals.
3. `score_corpus`: BLEU and chrF by sacrebleu (Post 2018), with their signatures.
4. `measure_novelty`: the distance of a text from the nearest train text; it reveals a decoder that only memorises.
5. `measure_recovery`: the share of the blind decoder's errors that is corrected, with its interval.
6. `mark_differences`: two texts with their differences in brackets.

Works on texts, token ids and tables, without torch.
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

NOVEL = 0.2  # share of characters that differ: below it a text is not new
AT_ONCE = 256  # texts compared with all of train at once
BLIND = ("no input", "mean vector", "shuffled vectors")


def measure_gain(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Bits gained per token over the blind decoder, a ratio of sums, with its 95 % bootstrap interval over texts.

    rows: columns blind, bits, tokens of the texts of one cell.
    """
    saved, tokens = (rows.blind - rows.bits).to_numpy(float), rows.tokens.to_numpy(float)
    value = saved.sum() / tokens.sum()
    ratios = stats.bootstrap(lambda weights: (weights @ saved) / np.maximum(weights @ tokens, 1), len(rows))
    low, high = stats.percentile(ratios)
    return float(value), float(min(low, value)), float(max(high, value))


def measure_cell_gain(rows: pd.DataFrame) -> tuple[float, float, float]:
    """`measure_gain` of one cell and source; 0 without an interval where that is a rule and no measurement: where the
    cell is gated, and for the blind decoder itself."""
    if rows.gated.all() or (rows.source == "no input").all():
        return 0.0, float("nan"), float("nan")
    return measure_gain(rows)


def measure_gains(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """`measure_cell_gain` of every group: columns `by`, value, low, high, texts."""
    table = [
        (*(key if isinstance(key, tuple) else (key,)), *measure_cell_gain(group), len(group))
        for key, group in rows.groupby(list(by), sort=False, observed=True)
    ]
    return pd.DataFrame(table, columns=[*by, "value", "low", "high", "texts"])


def measure_mean(values: np.ndarray) -> tuple[float, float, float]:
    """A mean over texts with its 95 % interval."""
    values = np.asarray(values, float)
    means = stats.bootstrap(lambda weights: (weights @ values) / weights.sum(1), len(values))
    low, high = stats.percentile(means)
    return float(values.mean()), float(low), float(high)


def compare_texts(originals: Sequence[np.ndarray], written: Sequence[np.ndarray]) -> pd.DataFrame:
    """One row per text of token ids: precision, recall, f1 (of token multisets), likeness (1 - edit distance of the
    sequences over the longer length) and exact (0 or 1)."""
    table = []
    for original, text in zip(originals, written, strict=True):
        a, b = original.tolist(), text.tolist()
        hits = (Counter(a) & Counter(b)).total()
        precision, recall = hits / max(len(b), 1), hits / max(len(a), 1)
        f1 = 2 * hits / max(len(a) + len(b), 1)
        table.append((precision, recall, f1, Levenshtein.normalized_similarity(a, b), float(a == b)))
    return pd.DataFrame(table, columns=["precision", "recall", "f1", "likeness", "exact"])


def score_corpus(originals: Sequence[str], written: Sequence[str]) -> dict[str, float]:
    """BLEU and chrF of all texts together, in points of 100."""
    bleu, chrf = _make_scorers()
    references = [list(originals)]
    hypotheses = [text or " " for text in written]
    return {
        name: metric.corpus_score(hypotheses, references).score for name, metric in (("BLEU", bleu), ("chrF", chrf))
    }


def describe_scorers() -> list[str]:
    """The short signatures of sacrebleu's metrics; scoring an example completes them."""
    bleu, chrf = _make_scorers()
    for scorer in (bleu, chrf):
        scorer.corpus_score(["a"], [["a"]])
    return [f"BLEU {bleu.get_signature()}", f"chrF {chrf.get_signature()}"]


def _make_scorers() -> tuple[Any, Any]:
    from sacrebleu.metrics import BLEU, CHRF

    return BLEU(effective_order=False), CHRF()


def measure_novelty(texts: Sequence[str], train: Sequence[str]) -> np.ndarray:
    """(text,) edit distance in characters to the nearest train text, over the longer one's length: 0 is a copy."""
    distances = np.ones(len(texts))
    for start in range(0, len(texts), AT_ONCE):
        batch = list(texts[start : start + AT_ONCE])
        batch_distances = process.cdist(batch, list(train), scorer=Levenshtein.normalized_distance, dtype=np.float32)
        distances[start : start + AT_ONCE] = batch_distances.min(1)
    return distances


def measure_recovery(likeness: np.ndarray, blind: np.ndarray) -> tuple[float, float, float]:
    """(mean likeness - mean blind) / (1 - mean blind) over the same texts, with its 95 % interval.

    0: no better than the blind decoder. 1: the original texts.
    """

    def compute_share(weights: np.ndarray) -> np.ndarray:
        mean, blind_mean = (weights @ values / weights.sum(1) for values in (likeness, blind))
        return (mean - blind_mean) / np.maximum(1 - blind_mean, 1e-9)

    value = float(compute_share(np.ones((1, len(likeness))))[0])
    low, high = map(float, stats.percentile(stats.bootstrap(compute_share, len(likeness))))
    return value, min(low, value), max(high, value)


def mark_differences(original: str, written: str) -> tuple[str, str]:
    """Both texts, with the words that the other lacks in square brackets."""
    original_words, written_words = original.split(), written.split()
    sides: tuple[list[str], list[str]] = ([], [])
    for step in Levenshtein.opcodes(original_words, written_words):
        parts = original_words[step.src_start : step.src_end], written_words[step.dest_start : step.dest_end]
        for side, part in zip(sides, parts, strict=True):
            if part:
                words = " ".join(part)
                side.append(words if step.tag == "equal" else f"[{words}]")
    return " ".join(sides[0]), " ".join(sides[1])


def tag_characters(text: str, words: Sequence[tuple[str, str]]) -> list[str]:
    """The part of speech of every character of a text; "" between words.

    words: (word, part of speech) in the order and spelling of the text.
    """
    tags, end = [""] * len(text), 0
    for word, tag in words:
        if (start := text.find(word, end)) >= 0:
            end = start + len(word)
            tags[start:end] = [tag] * len(word)
    return tags


def bin_values(values: np.ndarray, edges: Sequence[float], names: Sequence[str]) -> pd.Categorical:
    """The name of every value's bin; bin i is edges[i] <= value < edges[i + 1]."""
    return pd.Categorical.from_codes(np.digitize(values, edges[1:-1]), categories=list(names), ordered=True)
