"""How fast does the sequence decoder learn, against what this machine can multiply?

    python benchmarks/decode.py        (or: make bench)

1. A step of training: the products of its forward and backward pass, counted in closed form, over all the time that it
   takes, attention, softmax, dropout and Adam included. Vocabulary and lengths: those of real sentences of up to 20.
2. The limit: the rate that plain products of these very shapes reach in the same run. Once all in float32, once all in
   bfloat16; medians of `TIMES`.

What the decoders get back of real text is a command of its own: docs/reconstruct.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from clsprobe.probes.decoders.sequence import SequenceDecoder

TOKENS, DIM, SLOTS = 13_000, 384, 20
TIMES = 5


def seconds(work: Callable[[], object]) -> float:
    """The median of some runs, after one that is not timed."""
    found = []
    for _ in range(TIMES + 1):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return statistics.median(found[1:])


def shapes_of(decoder: SequenceDecoder, texts: int, places: int) -> list[tuple[int, int, int]]:
    """(rows, from, to) of every product of a forward pass over so many texts and, in all of them, places."""
    w = decoder.width
    block = [(places, w, 3 * w), (places, w, w), (places, w, 4 * w), (places, 4 * w, w)]
    return [(texts, DIM, (SLOTS + 1) * w), *block * decoder.depth, (places, w, TOKENS + 1)]


def throughput(half: bool) -> tuple[float, float]:
    """Operations per second of a training step, and of its products alone."""
    random = np.random.default_rng(0)
    decoder = SequenceDecoder()
    decoder.slots_, decoder.dim_, decoder.half_, decoder.tokens_ = SLOTS, DIM, half, np.arange(TOKENS)
    texts = decoder.pace.batch
    codes = decoder.codes([random.integers(0, TOKENS, n) for n in random.integers(4, SLOTS + 1, texts)])
    decoder.writer_ = decoder._writer(None, codes)
    optimiser = torch.optim.AdamW(decoder.writer_.parameters(), weight_decay=0.0, fused=True)
    x = torch.randn(texts, DIM)

    def step() -> None:
        decoder._slope(x, codes, 0)
        optimiser.step()

    kind, limit = torch.bfloat16 if half else torch.float32, 0.0
    shapes = shapes_of(decoder, texts, int((codes >= -1).sum()))
    for a, b, c in shapes:
        A, B, C = (torch.randn(*shape).to(kind) for shape in ((a, b), (b, c), (a, c)))
        for left, right in ((A, B), (C, B.T), (A.T, C)):
            limit += seconds(lambda left=left, right=right: left @ right)  # type: ignore[misc]
    work = sum(6 * a * b * c for a, b, c in shapes)
    return work / seconds(step), work / limit


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads, {TOKENS:,} tokens, texts of 4 to {SLOTS} tokens")
    for name, half, aim in (("float32", False, 0.55), ("bfloat16", True, 0.30)):
        rate, limit = throughput(half)
        told = f"{rate / 1e9:.0f} of {limit / 1e9:.0f} Gflop/s, {rate / limit:.0%} of the limit (aim {aim:.0%})"
        print(f"{name}: a step of training reaches {told}")
