"""How fast is the training of the sequence decoder, compared with the matrix products of this machine?

    python benchmarks/decode.py        (or: make bench)

1. A training step: the operations of its matrix products, forward and backward, over its whole time, with attention,
   softmax, dropout and Adam. Vocabulary and lengths are those of real sentences of up to 20 tokens.
2. The limit: the rate of plain products of the same shapes in the same run. In float32 and in bfloat16; medians of
   `TIMES`.

How well the decoders reconstruct real text: docs/reconstruct.md.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from harness import measure_seconds

from clsprobe.probes.decoders.sequence import SequenceDecoder

TOKENS, DIM, SLOTS = 13_000, 384, 20
TIMES = 5


def median_seconds(call: Callable[[], object]) -> float:
    """The median of `TIMES` calls, after one that is not counted."""
    return median([measure_seconds(call) for _ in range(TIMES + 1)][1:])


def list_shapes(decoder: SequenceDecoder, texts: int, tokens: int) -> list[tuple[int, int, int]]:
    """(rows, inputs, outputs) of every product of a forward pass over so many texts with so many tokens in all."""
    w = decoder.width
    block = [(tokens, w, 3 * w), (tokens, w, w), (tokens, w, 4 * w), (tokens, 4 * w, w)]
    return [(texts, DIM, (SLOTS + 1) * w), *block * decoder.depth, (tokens, w, TOKENS + 1)]


def measure_throughput(half: bool) -> tuple[float, float]:
    """Operations per second of a training step, and of its products alone; half: in bfloat16."""
    random = np.random.default_rng(0)
    decoder = SequenceDecoder()
    decoder.slots_, decoder.dim_, decoder.bfloat16_, decoder.tokens_ = SLOTS, DIM, half, np.arange(TOKENS)
    texts = decoder.pace.batch
    codes = decoder.codes([random.integers(0, TOKENS, n) for n in random.integers(4, SLOTS + 1, texts)])
    decoder.writer_ = decoder._make_writer(None, codes)
    optimiser = torch.optim.AdamW(decoder.writer_.parameters(), weight_decay=0.0, fused=True)
    x = torch.randn(texts, DIM)

    def step() -> None:
        decoder._compute_gradients(x, codes, 0)
        optimiser.step()

    dtype, seconds = torch.bfloat16 if half else torch.float32, 0.0
    shapes = list_shapes(decoder, texts, int((codes >= -1).sum()))
    for a, b, c in shapes:
        A, B, C = (torch.randn(*shape).to(dtype) for shape in ((a, b), (b, c), (a, c)))
        for left, right in ((A, B), (C, B.T), (A.T, C)):
            seconds += median_seconds(lambda left=left, right=right: left @ right)  # type: ignore[misc]
    operations = sum(6 * a * b * c for a, b, c in shapes)
    return operations / median_seconds(step), operations / seconds


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads, {TOKENS:,} tokens, texts of 4 to {SLOTS} tokens")
    for name, half, goal in (("float32", False, 0.55), ("bfloat16", True, 0.30)):
        rate, limit = measure_throughput(half)
        result = f"{rate / 1e9:.0f} of {limit / 1e9:.0f} Gflop/s, {rate / limit:.0%} of the limit (aim {goal:.0%})"
        print(f"{name}: a step of training reaches {result}")
