"""Fine-tuning: is the trainer as fast as a bare loop, and what is gained by texts of like length in a batch?

    python benchmarks/train.py        (or: make bench)

1. Training throughput beside a bare PyTorch loop over the same batches: the same model, optimiser, clipping and
   precision, without our hooks, checks and log. Goal: 0.9 x or more.
2. The same trainer on batches in random order, every one padded to its longest text. Goal: 1.4 x or more.
3. What the precision gains, and two trainings side by side, one a thread, against one after another on all threads.

Everything in one run, each side in turn, the faster of `TURNS`. Texts are TREC's from $CLSPROBE_DATA, default
../shared/data, else built-in sentences.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from clsprobe import load_encoder
from clsprobe.probes.encoders.devices import has_bfloat16
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.training import fine_tune as training

DATA = Path(os.environ.get("CLSPROBE_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data").resolve()
TEXTS, TURNS = 512, 3
RECIPE = training.Recipe(rate=1e-4, epochs=1)


def read() -> tuple[list[str], np.ndarray]:
    """Texts and codes."""
    path = DATA / "trec" / "train.tsv"
    if path.exists():
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        drawn = np.random.default_rng(0).permutation(len(rows))[:TEXTS]
        return [rows[i][2] for i in drawn], np.unique([rows[i][0] for i in drawn], return_inverse=True)[1]
    from clsprobe.analysis.sources import SourceOptions, load

    task = load("grammar:tense", SourceOptions()).tasks[0]
    return list(task.texts[:TEXTS]), np.unique(task.y[:TEXTS], return_inverse=True)[1]


def ours(encoder: Encoder, texts: list[str], y: np.ndarray, dtype: str) -> float:
    """Seconds of one epoch from the first step to the last, dev left out."""
    steps = sum(map(len, training.schedule(encoder, texts, RECIPE)))
    at: list[float] = []
    training.fine_tune(
        encoder, "cls", texts, y, RECIPE, dev=(texts[:8], y[:8]), dtype=dtype,
        watched=(0, steps - 1), watch=lambda *_: at.append(time.perf_counter()),
    )  # fmt: skip
    return at[1] - at[0]


def bare(encoder: Encoder, texts: list[str], y: np.ndarray, dtype: str) -> float:
    """The same epoch, nothing but PyTorch; its batches are padded beforehand."""
    model = deepcopy(encoder.model).requires_grad_(True)
    if dtype != "float32" and encoder.device.type == "cpu":
        model.set_attn_implementation("eager")
    head = nn.Linear(encoder.description.dim, int(y.max()) + 1, device=encoder.device)
    parameters = [*model.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=RECIPE.rate, weight_decay=RECIPE.decay, fused=True)
    rows = encoder.tokenize(texts)
    ready = []
    for chosen in training.schedule(encoder, texts, RECIPE)[0]:
        batch = encoder.batch([rows[int(i)] for i in chosen])
        ready.append((batch.ids, batch.real.long(), torch.from_numpy(y[chosen]).to(encoder.device)))
    start = time.perf_counter()
    for ids, mask, codes in ready[:-1]:
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
        functional.cross_entropy(head(hidden.float()), codes).backward()
        nn.utils.clip_grad_norm_(parameters, RECIPE.clip)
        optimiser.step()
        optimiser.zero_grad()
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def unsorted(encoder: Encoder, texts: list[str], y: np.ndarray, dtype: str) -> float:
    """Our trainer on batches as they come."""
    kept = training.batches

    def drawn(lengths: np.ndarray, size: int, seed: int, epoch: int, *, equal: bool = False) -> list[np.ndarray]:
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
        return [order[at : at + size] for at in range(0, len(order), size)]

    training.batches = drawn
    try:
        return ours(encoder, texts, y, dtype)
    finally:
        training.batches = kept


def both(encoder: Encoder, texts: list[str], y: np.ndarray, dtype: str) -> float:
    """Two epochs of two trainings side by side, half the threads each; seconds of one."""
    threads = torch.get_num_threads()
    alone = partial(torch.set_num_threads, max(1, threads // 2))
    start = time.perf_counter()
    with ThreadPoolExecutor(2, initializer=alone) as pool:
        list(pool.map(lambda _: ours(encoder, texts, y, dtype), range(2)))
    torch.set_num_threads(threads)
    return (time.perf_counter() - start) / 2


def main() -> int:
    """Print the table; the exit code says whether the goals are met."""
    encoder = load_encoder()
    texts, y = read()
    dtype = "bfloat16" if has_bfloat16("auto") else "float32"
    tokens = int(encoder.tokenize(texts).lengths.sum())
    sides: dict[str, Callable[[], float]] = {
        f"ours, {dtype}": lambda: ours(encoder, texts, y, dtype),
        f"a bare loop, {dtype}": lambda: bare(encoder, texts, y, dtype),
        f"ours, unsorted, {dtype}": lambda: unsorted(encoder, texts, y, dtype),
    }
    if dtype != "float32":
        sides["ours, float32"] = lambda: ours(encoder, texts, y, "float32")
    if torch.get_num_threads() > 1 and encoder.device.type == "cpu":
        sides["two side by side"] = lambda: both(encoder, texts, y, dtype)
    seconds = dict.fromkeys(sides, np.inf)
    for _ in range(TURNS):
        for name, side in sides.items():
            seconds[name] = min(seconds[name], side())
    print(
        f"{len(texts)} texts of {tokens / len(texts):.1f} tokens, {torch.get_num_threads()} threads, {encoder.device}"
    )
    for name, taken in seconds.items():
        print(f"  {name:<28} {tokens / taken:8,.0f} tokens/s")
    first, loop, drawn, *_ = seconds.values()
    print(
        f"against a bare loop: {loop / first:.2f} x (goal 0.90); against unsorted batches: {drawn / first:.2f} x (1.40)"
    )
    return 0 if loop / first >= 0.9 and drawn / first >= 1.4 else 1


if __name__ == "__main__":
    sys.exit(main())
