"""Knockout of every window: how long it takes, and how much the shared passes save.

    python benchmarks/knockout.py [SENTENCES]        (or: make bench; 1,000 unless said otherwise)

1. [CLS] of the embedded encoder is cut off in all 21 windows of its 6 layers, over the built-in sentences; then also
   everywhere but in these windows.
2. The same with hooks on whole passes, one pass per window, over a tenth of the sentences, scaled up.
3. The largest difference between the vectors of both, which should be the same.
"""

from __future__ import annotations

import sys

import numpy as np
from harness import Stopwatch

from clsprobe.analysis.formation.cuts import EVERYTHING, INTACT, ONLY, list_windows
from clsprobe.analysis.formation.knockout import compute_cut_vectors, make_plan
from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.interventions.changes import check_changes, knockout
from clsprobe.probes.tasks.split import sample_task


def main(count: int = 1000) -> None:
    """Print seconds and the largest difference."""
    texts = list(sample_task(load("grammar:tense", SourceOptions()).tasks[0], count, seed=0).texts)
    encoder = load_encoder(device="cpu")
    check_changes(encoder)
    cuts = list_windows([EVERYTHING], 6)
    with Stopwatch() as watch:
        plans = {cut: make_plan(cut, 6) for cut in [INTACT, *cuts]}
        shared = compute_cut_vectors(encoder, texts, [*plans.values()], ["cls"])
    print(
        f"{len(cuts)} windows of 6 layers, {len(texts):,} sentences   {watch.seconds:7.1f} s   (at most 180 for 1,000)"
    )
    print(f"  processor time                         {watch.processor:7.1f} s")
    with Stopwatch() as watch:
        both = {make_plan(window, 6) for window in [INTACT, *cuts, *list_windows([ONLY], 6)]}
        compute_cut_vectors(encoder, texts, [*both], ["cls"])
    print(f"  and open in these windows alone        {watch.seconds:7.1f} s   ({len(both)} different passes)")

    subset = texts[: max(len(texts) // 10, 1)]
    difference = 0.0
    with Stopwatch() as watch:
        for cut in cuts:
            with knockout(encoder, cut.edges, range(cut.first, cut.last + 1)):
                vectors = Extractor(encoder, ["cls"], layers=[6])(subset).cell(6, "cls")
            difference = max(difference, float(np.abs(vectors - shared[plans[cut]]["cls"][: len(subset)]).max()))
    seconds = watch.seconds * len(texts) / len(subset)
    scale = float(np.abs(shared[plans[INTACT]]["cls"]).max())
    print(f"  one whole pass a window                {seconds:7.1f} s   (from {len(subset):,} sentences)")
    print(f"  largest difference between the two     {difference / scale:7.0e}   of the largest number")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
