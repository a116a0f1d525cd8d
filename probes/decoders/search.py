"""Search for the text: beam search, re-ranking and correction by encoding the candidates.

1. `beam_search`: the likeliest texts of an autoregressive model.
2. `choose_nearest`: the candidate whose own vector is closest to the target. The likeliest text is a candidate, so the
   cosine cannot fall; nor can the number of exact matches, as long as tokenizing a decoded text returns its tokens and
   so the target's vector (not with [UNK]: callers do not re-rank such texts).
3. `correct_texts`: rounds that change single words, encode the variants and keep the closest (after vec2text, Morris et
   al. 2023, whose corrector is a trained model).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]
Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts -> their vectors (text, dim) at the decoded layer and readout."""

AT_ONCE = 256  # texts whose beams are extended together


def beam_search(
    predict_next: Predict, texts: int, *, beams: int, slots: int, end: int, device: torch.device
) -> list[list[np.ndarray]]:
    """text -> the likeliest sequences of codes without the end, best first, `beams` at most.

    predict_next: text indices (beam,) and codes so far (beam, slot) -> log probabilities (beam, code). Texts are
    truncated after `slots` tokens.
    """
    results: list[list[np.ndarray]] = []
    for start in range(0, texts, AT_ONCE):
        rows = torch.arange(start, min(start + AT_ONCE, texts), device=device)
        results += _search_batch(predict_next, rows, beams, slots, end)
    return results


def _search_batch(predict_next: Predict, rows: Tensor, beams: int, slots: int, end: int) -> list[list[np.ndarray]]:
    count, device = len(rows), rows.device
    codes = torch.zeros(count, 1, 0, dtype=torch.int64, device=device)  # (text, beam, slot)
    score = torch.zeros(count, 1, device=device)
    ended = torch.zeros(count, 1, dtype=torch.bool, device=device)
    for _ in range(slots):
        width = codes.shape[1]
        active = ~ended.flatten()
        if not active.any():
            break
        active_rows = rows.repeat_interleave(width)[active]
        log_probabilities = torch.full((count * width, end + 1), -torch.inf, device=device)
        log_probabilities[active] = predict_next(active_rows, codes.flatten(0, 1)[active])
        log_probabilities[~active, end] = 0  # finished texts do not change
        sums = (score.flatten()[:, None] + log_probabilities).view(count, -1)
        score, index = sums.topk(min(beams, sums.shape[1]), 1)
        parent, token = index // (end + 1), index % (end + 1)
        codes = torch.cat([codes.gather(1, parent[..., None].expand(-1, -1, codes.shape[2])), token[..., None]], 2)
        ended = token == end
    codes = torch.cat([codes, torch.full((*codes.shape[:2], 1), end, device=device)], 2)
    results = []
    for text, scores in zip(codes.cpu().numpy(), score.cpu().numpy(), strict=True):
        results.append([beam[: int((beam == end).argmax())] for beam in text[np.isfinite(scores)]])
    return results


@dataclass(frozen=True, eq=False)
class SearchResult:
    """One text per target. texts: (text,). cosine: (text,) between the text's own vector and the target."""

    texts: list[str]
    cosine: np.ndarray


def choose_nearest(candidates: Sequence[Sequence[str]], targets: np.ndarray, encode: Encode) -> SearchResult:
    """For every target, the candidate whose vector has the largest cosine with it; the first in case of ties.

    candidates: per target, at least one. targets: (text, dim).
    """
    distinct = list(dict.fromkeys(text for texts_of_row in candidates for text in texts_of_row))
    index_of = {text: i for i, text in enumerate(distinct)}
    vectors = _normalise(encode(distinct))
    unit_targets = _normalise(targets)
    chosen, cosine = [], np.empty(len(candidates))
    for row, texts_of_row in enumerate(candidates):
        cosines = vectors[[index_of[text] for text in texts_of_row]] @ unit_targets[row]
        cosines = np.nan_to_num(cosines, nan=-2)  # a text too short for the readout has no vector
        best = int(cosines.argmax())
        chosen.append(texts_of_row[best])
        cosine[row] = cosines[best]
    return SearchResult(chosen, cosine)


def correct_texts(
    result: SearchResult,
    targets: np.ndarray,
    encode: Encode,
    mutate: Callable[[int, str, np.random.Generator], list[str]],
    *,
    rounds: int,
    seed: int = 0,
) -> SearchResult:
    """Rounds of mutation that keep the closest of a text and its variants. The cosine never falls.

    mutate: row, text, random generator -> variants of the text.
    """
    for number in range(rounds):
        random = np.random.default_rng([seed, number])
        variants = [[text, *mutate(row, text, random)] for row, text in enumerate(result.texts)]
        result = choose_nearest(variants, targets, encode)
    return result


def _normalise(vectors: np.ndarray) -> np.ndarray:
    double = vectors.astype(np.float64)
    return double / np.maximum(np.linalg.norm(double, axis=1, keepdims=True), 1e-300)
