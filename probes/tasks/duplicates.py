"""Texts that are one text: the same, nearly the same, or the same to an encoder.

1. The same: equal after NFKC, casefolding and collapsing white space (`hashes`); pairs where both of their texts are.
2. Nearly the same: at least 0.8 of all their character 5-grams are common to both (Jaccard), or a chain of such texts
   links them (`near`). MinHash (Broder 1997) in 20 bands of 5 proposes pairs: one at 0.8 is missed once in 2,800 times.
   A pair that is proposed is taken only where its exact Jaccard says so.
3. The same to an encoder: whatever keys the caller has, such as digests of token ids. `tied` puts all of it together.

Characters, not words: a word 5-gram sees hardly anything in texts of ten words. Of TREC's questions 17 pairs are alike
by characters and 1 by words; of the bigram-shift pairs of the built-in grammar half and one in a hundred.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Sequence
from hashlib import blake2b

import numpy as np
from tqdm import tqdm

from clsprobe.probes.tasks.task import PAIRED, parts

GRAM = 5  # characters
ALIKE = 0.8  # Jaccard from which two texts are nearly the same
BANDS, ROWS = 20, 5  # of the signature; alike texts agree in all rows of some band
WINDOW = 8  # neighbours within a bucket that are compared: a template of n texts takes n comparisons, not n squared
CHUNK = 1 << 20  # characters that are hashed at once


def plain(text: str) -> str:
    """The text without what does not make it another one: NFKC, casefolded, white space collapsed."""
    folded = (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()
    return PAIRED.join(" ".join(part.split()) for part in parts(folded))


def hashes(texts: Iterable[str], seed: int) -> np.ndarray:
    """(text,) uint64, equal for the same text and in an order that the seed decides."""
    key = str(seed).encode()
    found = bytearray()
    for text in texts:
        found += blake2b(plain(text).encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
    return np.frombuffer(found, np.uint64)


def tied(*keys: Sequence[Hashable] | np.ndarray | None) -> np.ndarray:
    """(row,) the group of each row, from 0: rows that share a value of any of the keys, and what that chains together.

    keys: (row,) hashable values each; None ties nothing.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    present = [key for key in keys if key is not None]
    firsts = []
    for key in present:
        known: dict[object, int] = {}
        values = key.tolist() if isinstance(key, np.ndarray) else key
        firsts.append([known.setdefault(value, row) for row, value in enumerate(values)])
    links = np.array(firsts, np.int64)
    rows = np.broadcast_to(np.arange(links.shape[1]), links.shape)
    shape = (links.shape[1],) * 2
    return connected_components(coo_array((np.ones(links.size, bool), (rows.ravel(), links.ravel())), shape), False)[1]


def near(texts: Sequence[str]) -> np.ndarray:
    """(text,) the group of each text, from 0: texts that are the same or nearly so, or linked by such. Deterministic.

    20,000 sentences take less than a second, 20,000 that differ in a number only a few seconds.
    """
    distinct: dict[str, int] = {}
    code = np.array([distinct.setdefault(plain(text), len(distinct)) for text in texts], np.int64)
    found = list(distinct)
    if len(found) < 2:
        return code
    root = list(range(len(found)))

    def top(one: int) -> int:
        while root[one] != one:
            root[one] = one = root[root[one]]
        return one

    for one, other in _proposed(found):
        first, second = sorted((top(one), top(other)))
        if first != second and jaccard(found[one], found[other]) >= ALIKE:
            root[second] = first
    return np.array([top(one) for one in range(len(root))], np.int64)[code]


def jaccard(one: str, other: str) -> float:
    """The share of their character 5-grams that two texts have in common; a shorter text is one gram."""
    grams, others = ({text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))} for text in (one, other))
    return len(grams & others) / len(grams | others)


def _proposed(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs of texts that share a band; of a large bucket, the nearest neighbours in order."""
    chunks = list(_chunks(texts))
    with tqdm(chunks, desc="looking for near copies", delay=2, disable=None, leave=False) as bar:
        bands = np.concatenate([_bands(texts[start:stop]) for start, stop in bar])
    pairs = []
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        for step in range(1, WINDOW + 1):
            same = band[order[step:]] == band[order[:-step]]
            if not same.any():
                break
            pairs.append(np.stack([order[:-step][same], order[step:][same]], 1))
    if pairs:
        yield from map(tuple, np.unique(np.concatenate(pairs), axis=0).tolist())


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    start = size = 0
    for row, text in enumerate(texts):
        if size > CHUNK:
            yield start, row
            start, size = row, 0
        size += len(text)
    yield start, len(texts)


def _bands(texts: Sequence[str]) -> np.ndarray:
    """(text, band) uint32: a hash of the 5 minima in each band."""
    padded = [text.ljust(GRAM, "\0") for text in texts]
    characters = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    lengths = np.array([len(text) for text in padded])
    draw = np.random.default_rng(0)
    odd = draw.integers(0, 1 << 63, GRAM + BANDS * ROWS + ROWS, np.uint64) * np.uint64(2) + np.uint64(1)
    whole = sum(characters[i : len(characters) - GRAM + 1 + i] * odd[i] for i in range(GRAM))
    inside = np.ones(len(characters), bool)  # a gram may not run over the end of its text
    ends = np.cumsum(lengths)
    for back in range(1, GRAM):
        inside[ends - back] = False
    grams = _mixed(whole[inside[: len(whole)]])
    starts = np.concatenate([[0], np.cumsum(lengths - GRAM + 1)[:-1]])
    minima = (np.minimum.reduceat(_mixed(grams * factor), starts) for factor in odd[GRAM : GRAM + BANDS * ROWS])
    bands = np.empty((len(texts), BANDS), np.uint32)
    for band in range(BANDS):
        key = sum(next(minima) * factor for factor in odd[-ROWS:])
        bands[:, band] = _mixed(key) >> np.uint64(32)
    return bands


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014), shortened: every bit of the result depends on all above it."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return values ^ (values >> np.uint64(27))
