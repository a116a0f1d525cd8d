"""How long `clsprobe geometry` takes, and how near its dimension and its intervals come to the truth.

    python benchmarks/geometry.py        (or: make bench)

1. The command without arguments, wall clock.
2. Measuring one cell of 384 dimensions, by number of texts: once through a stream, and once over pairs of a sample.
3. TwoNN on spheres: mean estimate and how often its interval holds it, beside the interval that takes texts for
   independent. The mean cosine: how often its interval holds the truth, for few and many texts.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from scipy.stats import norm

from clsprobe.analysis.geometry.measures import KEPT, Pairs, cka, dimension, nearest, shape

OUT = Path("out") / "bench"
SETS = 300  # simulated data sets of a figure


def command() -> None:
    """Time the study on the embedded encoder and the built-in sentences."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "clsprobe", "geometry", "--out", str(OUT / "geometry"), "--overwrite", "--quiet"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    print(f"clsprobe geometry             {time.perf_counter() - start:7.1f} s   (at most 300)")


def cell() -> None:
    """Time the parts of one cell."""
    for n in (2_000, 20_000):
        x = np.random.default_rng(0).normal(size=(n, 384)).astype(np.float32)
        start = time.perf_counter()
        shape(x[at : at + 4096] for at in range(0, n, 4096))
        print(f"  stream of {n:6,} texts      {time.perf_counter() - start:7.2f} s a cell")
    start = time.perf_counter()
    pairs = Pairs.of(x[:2000].astype(np.float64))
    dimension(pairs)
    nearest(pairs, 10)
    cka([x[:2000]])
    print(f"  pairs of 2,000 texts        {time.perf_counter() - start:7.2f} s a cell")


def simulated() -> None:
    """Print coverage, in data whose truth is known."""
    print(
        f"TwoNN on a sphere, {SETS} data sets: mean estimate, coverage of the truth, the same if texts were independent"
    )
    for d, n in ((2, 200), (2, 1000), (5, 500), (10, 500)):
        found = []
        for seed in range(SETS):
            x = np.random.default_rng(seed).normal(size=(n, d + 1))
            found.append(dimension(Pairs.of(x / np.linalg.norm(x, axis=1, keepdims=True))))
        value, low, high = np.array(found).T
        alone = np.abs(np.log(value / d)) <= norm.ppf(0.975) / np.sqrt(KEPT * n)
        held = ((low <= d) & (d <= high)).mean()
        print(f"  d = {d:2} n = {n:4}   {value.mean():6.2f}   {held:.3f}   {alone.mean():.3f}")
    print(f"mean cosine, {SETS} data sets: coverage")
    for offset in (0.5, 2.0):
        many = np.random.default_rng(99).normal(size=(400_000, 8))
        many[:, 0] += offset
        truth = (np.mean(many / np.linalg.norm(many, axis=1, keepdims=True), 0) ** 2).sum()
        for n in (50, 200, 500):
            held = 0
            for seed in range(SETS):
                x = np.random.default_rng(seed).normal(size=(n, 8))
                x[:, 0] += offset
                low, high = np.nanquantile(shape([x], seed=seed).replicates, [0.025, 0.975])
                held += low <= truth <= high
            print(f"  cosine {truth:.3f} n = {n:3}   {held / SETS:.3f}")


if __name__ == "__main__":
    command()
    cell()
    simulated()
