"""Fine-tuning: is the trainer as fast as a bare loop, and what do batches of similar length gain?

    python benchmarks/train.py        (or: make bench)

1. Training throughput compared with a bare PyTorch loop over the same batches: the same model, optimiser, clipping and
   precision, without our hooks, checks and log. Goal: 0.9 x or more.
2. The same trainer on random batches, each padded to its longest text. Goal: 1.4 x or more.
3. What the precision gains, and two concurrent trainings, one per thread, against one after another on all threads.

All sides run in turn, the fastest of `TURNS` counts. Texts are TREC's from $CLSPROBE_DATA, default ../shared/data, else
built-in sentences.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial

import numpy as np
import torch
from harness import DATA, Stopwatch
from torch import nn
from torch.nn import functional

from clsprobe import load_encoder
from clsprobe.probes.encoders.devices import has_bfloat16
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.training import fine_tune as training

TEXTS, TURNS = 512, 3
RECIPE = training.Recipe(rate=1e-4, epochs=1)


def read_texts() -> tuple[list[str], np.ndarray]:
    """Texts and the codes of their classes."""
    path = DATA / "trec" / "train.tsv"
    if path.exists():
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        sample = np.random.default_rng(0).permutation(len(rows))[:TEXTS]
        return [rows[i][2] for i in sample], np.unique([rows[i][0] for i in sample], return_inverse=True)[1]
    from clsprobe.analysis.sources import SourceOptions, load

    task = load("grammar:tense", SourceOptions()).tasks[0]
    return list(task.texts[:TEXTS]), np.unique(task.y[:TEXTS], return_inverse=True)[1]


def train(encoder: Encoder, texts: list[str], y: np.ndarray, dtype: str) -> float:
    """Seconds of one epoch from the first step to the last, without dev."""
    steps = sum(map(len, training.schedule_batches(encoder, texts, RECIPE)))
    times: list[float] = []
    training.fine_tune(
        encoder, "cls", texts, y, RECIPE, dev=(texts[:8], y[:8]), dtype=dtype,
        callback_steps=(0, steps - 1), callback=lambda *_: times.append(time.perf_counter()),
    )  # fmt: skip
    return times[1] - times[0]


def train_bare(encoder: Encoder, texts: list[str], y: np.ndarray, dtype: str) -> float:
    """Seconds of the same epoch in plain PyTorch, on batches that are padded beforehand."""
    model = deepcopy(encoder.model).requires_grad_(True)
    if dtype != "float32" and encoder.device.type == "cpu":
        model.set_attn_implementation("eager")
    head = nn.Linear(encoder.description.dim, int(y.max()) + 1, device=encoder.device)
    parameters = [*model.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=RECIPE.rate, weight_decay=RECIPE.decay, fused=True)
    rows = encoder.tokenize(texts)
    batches = []
    for indices in training.schedule_batches(encoder, texts, RECIPE)[0]:
        batch = encoder.batch([rows[int(i)] for i in indices])
        batches.append((batch.ids, batch.real.long(), torch.from_numpy(y[indices]).to(encoder.device)))
    start = time.perf_counter()
    for ids, mask, codes in batches[:-1]:
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
        functional.cross_entropy(head(hidden.float()), codes).backward()
        nn.utils.clip_grad_norm_(parameters, RECIPE.clip)
        optimiser.step()
        optimiser.zero_grad()
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def train_unsorted(encoder: Encoder, texts: list[str], y: np.ndarray, dtype: str) -> float:
    """Seconds of our trainer on random batches."""
    original = training.epoch_batches

    def shuffle(lengths: np.ndarray, size: int, seed: int, epoch: int, *, equal: bool = False) -> list[np.ndarray]:
        order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
        return [order[i : i + size] for i in range(0, len(order), size)]

    training.epoch_batches = shuffle
    try:
        return train(encoder, texts, y, dtype)
    finally:
        training.epoch_batches = original


def train_concurrently(encoder: Encoder, texts: list[str], y: np.ndarray, dtype: str) -> float:
    """Seconds per epoch of two concurrent trainings, half the threads each."""
    threads = torch.get_num_threads()
    halve_threads = partial(torch.set_num_threads, max(1, threads // 2))
    with Stopwatch() as watch, ThreadPoolExecutor(2, initializer=halve_threads) as pool:
        list(pool.map(lambda _: train(encoder, texts, y, dtype), range(2)))
    torch.set_num_threads(threads)
    return watch.seconds / 2


def main() -> int:
    """Print the table; the exit code says whether the goals are met."""
    encoder = load_encoder()
    texts, y = read_texts()
    dtype = "bfloat16" if has_bfloat16("auto") else "float32"
    tokens = int(encoder.tokenize(texts).lengths.sum())
    sides: dict[str, Callable[[], float]] = {
        f"ours, {dtype}": lambda: train(encoder, texts, y, dtype),
        f"a bare loop, {dtype}": lambda: train_bare(encoder, texts, y, dtype),
        f"ours, unsorted, {dtype}": lambda: train_unsorted(encoder, texts, y, dtype),
    }
    if dtype != "float32":
        sides["ours, float32"] = lambda: train(encoder, texts, y, "float32")
    if torch.get_num_threads() > 1 and encoder.device.type == "cpu":
        sides["two side by side"] = lambda: train_concurrently(encoder, texts, y, dtype)
    seconds = dict.fromkeys(sides, np.inf)
    for _ in range(TURNS):
        for name, side in sides.items():
            seconds[name] = min(seconds[name], side())
    length = tokens / len(texts)
    print(f"{len(texts)} texts of {length:.1f} tokens, {torch.get_num_threads()} threads, {encoder.device}")
    for name, duration in seconds.items():
        print(f"  {name:<28} {tokens / duration:8,.0f} tokens/s")
    ours, bare, unsorted, *_ = seconds.values()
    to_bare, to_unsorted = bare / ours, unsorted / ours
    print(f"against a bare loop: {to_bare:.2f} x (goal 0.90); against unsorted batches: {to_unsorted:.2f} x (1.40)")
    return 0 if to_bare >= 0.9 and to_unsorted >= 1.4 else 1


if __name__ == "__main__":
    sys.exit(main())
