"""Controls: label sets that show what a score means. A control is one more label set, measured like the real one.

`shuffled` permutes the labels within every side of the split: what chance looks like with this probe and this many
texts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Control = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def shuffled(y: np.ndarray, side: np.ndarray, seed: int) -> np.ndarray:
    """Codes y (text,) permuted within every side (text,); the balance of classes stays."""
    random = np.random.default_rng([seed, 0x5F])
    drawn = y.copy()
    for name in np.unique(side):
        rows = np.flatnonzero(side == name)
        drawn[rows] = y[random.permutation(rows)]
    return drawn


CONTROLS: dict[str, Control] = {"shuffled": shuffled}
