"""Knockout of every window: how long it takes, and how much of that the shared passes save.

    python benchmarks/knockout.py [SENTENCES]        (or: make bench; 1,000 unless said otherwise)

1. [CLS] of the embedded encoder is cut off in all 21 windows of its 6 layers, over the built-in sentences.
2. The same through the hooks on whole passes, one pass a window, over a tenth of them, scaled up.
3. Both must give the same vectors.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from clsprobe.analysis.formation.knockout import INTACT, vectors_of, windows
from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.interventions.changes import check_changes, knockout
from clsprobe.probes.tasks.split import take


def main(count: int = 1000) -> None:
    """Print seconds and the largest difference."""
    texts = list(take(load("grammar:tense", SourceOptions()).tasks[0], count, seed=0).texts)
    encoder = load_encoder(device="cpu")
    check_changes(encoder)
    cuts = windows(["rest->cls"], 6)
    start, used = time.perf_counter(), time.process_time()
    shared = vectors_of(encoder, texts, cuts, [(6, "cls")])
    took, used = time.perf_counter() - start, time.process_time() - used
    print(f"{len(cuts)} windows of 6 layers, {len(texts):,} sentences   {took:7.1f} s   (at most 180 for 1,000)")
    print(f"  processor time                         {used:7.1f} s")

    some = texts[: max(len(texts) // 10, 1)]
    start = time.perf_counter()
    apart = 0.0
    for cut in cuts:
        with knockout(encoder, cut.edges, range(cut.first, cut.last + 1)):
            whole = Extractor(encoder, ["cls"], layers=[6])(some).cell(6, "cls")
        apart = max(apart, float(np.abs(whole - shared[cut][6, "cls"][: len(some)]).max()))
    took = (time.perf_counter() - start) * len(texts) / len(some)
    scale = float(np.abs(shared[INTACT][6, "cls"]).max())
    print(f"  one whole pass a window                {took:7.1f} s   (from {len(some):,} sentences)")
    print(f"  largest difference between the two     {apart / scale:7.0e}   of the largest number")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
