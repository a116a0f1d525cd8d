"""How long the max-T correction over a whole grid of cells takes.

    python benchmarks/max_t.py        (or: make bench)

`max_t` over 104 cells, 2,000 texts and 6 classes: wall-clock and processor seconds.
"""

from __future__ import annotations

import numpy as np
from harness import Stopwatch

from clsprobe.analysis import stats

if __name__ == "__main__":
    random = np.random.default_rng(0)
    codes, labels = random.integers(6, size=(104, 2000)), random.integers(6, size=2000)
    with Stopwatch() as watch:
        stats.max_t(codes, labels)
    times = f"{watch.seconds:5.2f} s, of the processor {watch.processor:5.2f} s"
    print(f"max-T over 104 cells of 2,000 texts   {times} (at most 2)")
