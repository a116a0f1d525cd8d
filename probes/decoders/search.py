"""Finding the text: beams, and what encoding the candidates again says of them.

1. `beam_search`: the likeliest texts of a model that is asked for one token after another.
2. `nearest`: of the candidates of a text the one whose own vector comes closest to the target. The likeliest text is
   among them, so the cosine cannot fall; nor can the number of exact matches, as long as an exact text is read as it
   was written and so has the target's vector (one with [UNK] does not: the caller leaves it alone).
3. `corrected`: rounds of changing one token, encoding the results again and keeping what comes closer (after vec2text,
   Morris et al. 2023, whose corrector is a model of its own).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Encode = Callable[[Sequence[str]], np.ndarray]
"""Texts -> (text, dim) their vectors at the layer and readout that is decoded."""

AT_ONCE = 256  # texts whose beams are extended together


def beam_search(
    follow: Callable[[Tensor, Tensor], Tensor], texts: int, *, beams: int, slots: int, end: int, device: torch.device
) -> list[list[np.ndarray]]:
    """text -> the likeliest sequences of codes without the end, best first, `beams` at most.

    follow: rows (beam,) of the texts and what they say so far (beam, slot) -> (beam, code) log probabilities. A text
    that has not ended after `slots` tokens is cut there.
    """
    found: list[list[np.ndarray]] = []
    for at in range(0, texts, AT_ONCE):
        rows = torch.arange(at, min(at + AT_ONCE, texts), device=device)
        found += _beams(follow, rows, beams, slots, end)
    return found


def _beams(
    follow: Callable[[Tensor, Tensor], Tensor], rows: Tensor, beams: int, slots: int, end: int
) -> list[list[np.ndarray]]:
    count, device = len(rows), rows.device
    told = torch.zeros(count, 1, 0, dtype=torch.int64, device=device)  # (text, beam, slot)
    score = torch.zeros(count, 1, device=device)
    ended = torch.zeros(count, 1, dtype=torch.bool, device=device)
    for _ in range(slots):
        width = told.shape[1]
        live = ~ended.flatten()
        if not live.any():
            break
        asked = rows.repeat_interleave(width)[live]
        more = torch.full((count * width, end + 1), -torch.inf, device=device)
        more[live] = follow(asked, told.flatten(0, 1)[live])
        more[~live, end] = 0  # an ended text stays as it is
        sums = (score.flatten()[:, None] + more).view(count, -1)
        score, place = sums.topk(min(beams, sums.shape[1]), 1)
        parent, token = place // (end + 1), place % (end + 1)
        told = torch.cat([told.gather(1, parent[..., None].expand(-1, -1, told.shape[2])), token[..., None]], 2)
        ended = token == end
    told = torch.cat([told, torch.full((*told.shape[:2], 1), end, device=device)], 2)
    found = []
    for text, scores in zip(told.cpu().numpy(), score.cpu().numpy(), strict=True):
        found.append([one[: int((one == end).argmax())] for one, s in zip(text, scores, strict=True) if np.isfinite(s)])
    return found


@dataclass(frozen=True, eq=False)
class Found:
    """One text for every target. texts: (text,). cosine: (text,) of its own vector with the target."""

    texts: list[str]
    cosine: np.ndarray


def nearest(candidates: Sequence[Sequence[str]], targets: np.ndarray, encode: Encode) -> Found:
    """Of every text's candidates the one whose vector has the largest cosine with the target, the first of equals.

    candidates: text -> at least one. targets: (text, dim).
    """
    every = list(dict.fromkeys(text for told in candidates for text in told))
    place = {text: i for i, text in enumerate(every)}
    vectors = _unit(encode(every))
    aims = _unit(targets)
    texts, cosine = [], np.empty(len(candidates))
    for row, told in enumerate(candidates):
        close = vectors[[place[text] for text in told]] @ aims[row]
        close = np.nan_to_num(close, nan=-2)  # a text too short for the readout has no vector
        best = int(close.argmax())
        texts.append(told[best])
        cosine[row] = close[best]
    return Found(texts, cosine)


def corrected(
    found: Found,
    targets: np.ndarray,
    encode: Encode,
    mutate: Callable[[int, str, np.random.Generator], list[str]],
    *,
    rounds: int,
    seed: int = 0,
) -> Found:
    """Rounds of mutation: of a text and its variants the one that comes closest stays. The cosine never falls.

    mutate: row, text, a generator -> variants of it.
    """
    for number in range(rounds):
        random = np.random.default_rng([seed, number])
        variants = [[text, *mutate(row, text, random)] for row, text in enumerate(found.texts)]
        found = nearest(variants, targets, encode)
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-300)
