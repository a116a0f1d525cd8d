"""How long `clsprobe geometry` takes, and how accurate its dimension and its intervals are.

    python benchmarks/geometry.py        (or: make bench)

1. The command without arguments, wall clock.
2. One cell of 384 dimensions, by number of texts: the streamed measures, and those over the pairs of a sample.
3. TwoNN on spheres: mean estimate and coverage of its interval, compared with the interval for independent texts. The
   mean cosine and the effective rank: coverage of their intervals, for few and many texts.
"""

from __future__ import annotations

import numpy as np
from harness import OUT, Stopwatch, run_clsprobe
from scipy.stats import norm

from clsprobe.analysis.geometry.measures import GROUPS, UNCENSORED, Pairs, cka, dimension, nearest, ranks, shape

SETS = 300  # simulated data sets of a figure


def measure_cell() -> None:
    """Time the parts of one cell."""
    for n in (2_000, 20_000):
        x = np.random.default_rng(0).normal(size=(n, 384)).astype(np.float32)
        with Stopwatch() as watch:
            shape(x[i : i + 4096] for i in range(0, n, 4096))
        print(f"  stream of {n:6,} texts      {watch.seconds:7.2f} s a cell")
    with Stopwatch() as watch:
        ranks([x[:2000]], groups=GROUPS)
    print(f"  rank of 2,000 with interval {watch.seconds:7.2f} s a cell")
    with Stopwatch() as watch:
        pairs = Pairs.of(x[:2000].astype(np.float64))
        dimension(pairs)
        nearest(pairs, 10)
        cka([x[:2000]])
    print(f"  pairs of 2,000 texts        {watch.seconds:7.2f} s a cell")


def measure_coverage() -> None:
    """Print the coverage of the intervals on simulated data."""
    print(
        f"TwoNN on a sphere, {SETS} data sets: mean estimate, coverage of the truth, the same if texts were independent"
    )
    for d, n in ((2, 200), (2, 1000), (5, 500), (10, 500)):
        estimates = []
        for seed in range(SETS):
            x = np.random.default_rng(seed).normal(size=(n, d + 1))
            estimates.append(dimension(Pairs.of(x / np.linalg.norm(x, axis=1, keepdims=True))))
        value, low, high = np.array(estimates).T
        independent = np.abs(np.log(value / d)) <= norm.ppf(0.975) / np.sqrt(UNCENSORED * n)
        covered = ((low <= d) & (d <= high)).mean()
        print(f"  d = {d:2} n = {n:4}   {value.mean():6.2f}   {covered:.3f}   {independent.mean():.3f}")
    print(f"mean cosine, {SETS} data sets: coverage")
    for offset in (0.5, 2.0):
        sample = np.random.default_rng(99).normal(size=(400_000, 8))
        sample[:, 0] += offset
        truth = (np.mean(sample / np.linalg.norm(sample, axis=1, keepdims=True), 0) ** 2).sum()
        for n in (50, 200, 500):
            covered = 0
            for seed in range(SETS):
                x = np.random.default_rng(seed).normal(size=(n, 8))
                x[:, 0] += offset
                low, high = np.nanquantile(shape([x], seed=seed).replicates, [0.025, 0.975])
                covered += low <= truth <= high
            print(f"  cosine {truth:.3f} n = {n:3}   {covered / SETS:.3f}")


def measure_rank_coverage() -> None:
    """Print the coverage of the interval of the effective rank: of the mean rank of as many texts."""
    print(f"effective rank, {SETS} data sets: mean, coverage of it; rank of the whole population")
    for dim, power, n, freedom in (
        (60, 1, 50, None),
        (60, 1, 100, None),
        (60, 1, 400, None),
        (60, 1, 100, 5),
        (60, 1, 400, 5),
        (384, 2, 500, None),
    ):
        deviation = np.arange(1, dim + 1) ** (-power / 2)
        estimates = []
        for seed in range(SETS):
            random = np.random.default_rng(seed)
            x = random.normal(size=(n, dim)) * deviation
            if freedom:  # heavy tails
                x /= np.sqrt(random.chisquare(freedom, (n, 1)) / freedom)
            estimates.append(ranks([x], groups=GROUPS))
        value, low, high = np.array(estimates).T
        covered = ((low <= value.mean()) & (value.mean() <= high)).mean()
        share = deviation / deviation.sum()
        population = np.exp(-(share * np.log(share)).sum())
        tails = f"t with {freedom} degrees" if freedom else "normal"
        print(f"  {dim} dimensions, {tails}, n = {n}   {value.mean():.1f}   {covered:.3f}   {population:.1f}")


if __name__ == "__main__":
    seconds = run_clsprobe("geometry", "--out", str(OUT / "geometry"), "--overwrite")
    print(f"clsprobe geometry             {seconds:7.1f} s   (at most 300)")
    measure_cell()
    measure_coverage()
    measure_rank_coverage()
