"""Duplicate texts: exact copies, near copies, and texts that an encoder cannot tell apart.

1. Copies are equal after NFKC, casefolding and collapsing white space (`hash_texts`); for pairs both texts must be.
2. Near copies share at least 0.8 of their character 5-grams (Jaccard), or are linked by a chain of such texts
   (`group_near_copies`). MinHash (Broder 1997) with 20 bands of 5 proposes candidate pairs and misses 1 in 2,800 at
   Jaccard 0.8. A candidate counts only if its exact Jaccard similarity does.
3. Texts that an encoder cannot tell apart have equal keys, such as digests of token ids. `group_rows` combines keys.

Characters, not words, since a text of ten words has few word 5-grams. Of TREC's questions 17 pairs are near copies by
characters and 1 by words; of the bigram-shift pairs of the built-in grammar one in two and one in a hundred.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from tqdm import tqdm

from clsprobe.probes.tasks.texts import PAIRED, parts

GRAM = 5  # characters
ALIKE = 0.8  # least Jaccard similarity of near copies
BANDS, ROWS = 20, 5  # of the signature; similar texts agree in all rows of some band
WINDOW = 8  # neighbours compared within a bucket: a template of n texts takes O(n) comparisons, not n squared
CHUNK = 1 << 17  # characters hashed at once: eight bytes of each, several times over


def normalise(text: str) -> str:
    """The text after NFKC, casefolding and collapsing white space, which make no difference between copies."""
    folded = (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()
    return PAIRED.join(" ".join(part.split()) for part in parts(folded))


def hash_texts(texts: Iterable[str], seed: int) -> np.ndarray:
    """(text,) uint64 hashes, equal for copies; their order depends on the seed."""
    key = str(seed).encode()
    digests = bytearray()
    for text in texts:
        digests += blake2b(normalise(text).encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
    return np.frombuffer(digests, np.uint64)


def group_rows(*keys: Sequence[Hashable] | np.ndarray | None) -> np.ndarray:
    """(row,) the group of each row, from 0: rows are grouped that share a value of any key, directly or by a chain.

    keys: (row,) hashable values each; None is skipped.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    known_keys = [key for key in keys if key is not None]
    first_rows = []
    for key in known_keys:
        row_by_value: dict[object, int] = {}
        values = key.tolist() if isinstance(key, np.ndarray) else key
        first_rows.append([row_by_value.setdefault(value, row) for row, value in enumerate(values)])
    links = np.array(first_rows, np.int64)
    rows = np.broadcast_to(np.arange(links.shape[1]), links.shape)
    shape = (links.shape[1],) * 2
    return connected_components(coo_array((np.ones(links.size, bool), (rows.ravel(), links.ravel())), shape), False)[1]


def group_near_copies(texts: Sequence[str]) -> np.ndarray:
    """(text,) the group of each text, from 0: copies, near copies and texts linked by them. Deterministic.

    20,000 sentences take less than a second, 20,000 that differ only in a number a few seconds.
    """
    first_rows, code = np.unique(hash_texts(texts, 0), return_index=True, return_inverse=True)[1:]
    order = np.argsort(first_rows)  # the distinct texts as they first occur
    codes = np.argsort(order)[code]
    normalised = _Normalised(texts, first_rows[order])
    if len(normalised) < 2:
        return codes
    parents = list(range(len(normalised)))

    def find_root(row: int) -> int:
        while parents[row] != row:
            parents[row] = row = parents[parents[row]]
        return row

    for first, second in _candidate_pairs(normalised):
        low, high = sorted((find_root(first), find_root(second)))
        if low != high and jaccard(normalised[first], normalised[second]) >= ALIKE:
            parents[high] = low
    return np.array([find_root(row) for row in range(len(parents))], np.int64)[codes]


class _Normalised(Sequence[str]):
    """Some rows of texts, normalised when they are read: copies of all of them would take more than the texts."""

    def __init__(self, texts: Sequence[str], rows: np.ndarray) -> None:
        self._texts, self._rows = texts, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        rows = self._rows[index]
        if isinstance(index, slice):
            return [normalise(self._texts[row]) for row in rows.tolist()]
        return normalise(self._texts[int(rows)])


def jaccard(first: str, second: str) -> float:
    """The Jaccard similarity of two texts' sets of character 5-grams; a shorter text is one gram."""
    first_grams, second_grams = (
        {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))} for text in (first, second)
    )
    return len(first_grams & second_grams) / len(first_grams | second_grams)


def _candidate_pairs(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Candidate pairs: texts that share a band; in a large bucket only the `WINDOW` next ones."""
    chunks = list(_split_chunks(texts))
    with tqdm(chunks, desc="looking for near copies", delay=2, disable=None, leave=False) as bar:
        bands = np.concatenate([_hash_bands(texts[start:stop]) for start, stop in bar])
    pairs = []
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        for step in range(1, WINDOW + 1):
            same = band[order[step:]] == band[order[:-step]]
            if not same.any():
                break
            pairs.append(np.stack([order[:-step][same], order[step:][same]], 1))
    different = np.unique(np.concatenate(pairs), axis=0) if pairs else np.empty((0, 2), np.int64)
    for start in range(0, len(different), 4096):  # as Python's numbers a few at a time: they take ten times the memory
        yield from map(tuple, different[start : start + 4096].tolist())


def _split_chunks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    start = size = 0
    for row, text in enumerate(texts):
        if size > CHUNK:
            yield start, row
            start, size = row, 0
        size += len(text)
    yield start, len(texts)


def _hash_bands(texts: Sequence[str]) -> np.ndarray:
    """(text, band) uint32: a hash of the 5 minima in each band."""
    padded = [text.ljust(GRAM, "\0") for text in texts]
    code_points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    lengths = np.array([len(text) for text in padded])
    random = np.random.default_rng(0)
    factors = random.integers(0, 1 << 63, GRAM + BANDS * ROWS + ROWS, np.uint64) * np.uint64(2) + np.uint64(1)
    gram_hashes = sum(code_points[i : len(code_points) - GRAM + 1 + i] * factors[i] for i in range(GRAM))
    inside = np.ones(len(code_points), bool)  # whether a gram that starts here ends within its text
    ends = np.cumsum(lengths)
    for offset in range(1, GRAM):
        inside[ends - offset] = False
    grams = _mix_bits(gram_hashes[inside[: len(gram_hashes)]])
    starts = np.concatenate([[0], np.cumsum(lengths - GRAM + 1)[:-1]])
    minima = (np.minimum.reduceat(_mix_bits(grams * factor), starts) for factor in factors[GRAM : GRAM + BANDS * ROWS])
    bands = np.empty((len(texts), BANDS), np.uint32)
    for band in range(BANDS):
        key = sum(next(minima) * factor for factor in factors[-ROWS:])
        bands[:, band] = _mix_bits(key) >> np.uint64(32)
    return bands


def _mix_bits(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014), shortened: every bit depends on all higher bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return values ^ (values >> np.uint64(27))
