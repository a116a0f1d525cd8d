"""Sentences of known labels to train on."""

from __future__ import annotations

import numpy as np

WORDS = ("cat", "dog", "bird", "house", "tree", "red", "blue", "runs")


def sentences(n: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts of 3 to 12 words, and whether the last one is among the first half of the words."""
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice(WORDS, random.integers(3, 13))) for _ in range(n)]
    return texts, np.array([WORDS.index(text.split()[-1]) % 2 for text in texts])


TRAIN, DEV = sentences(96), sentences(48, seed=1)
