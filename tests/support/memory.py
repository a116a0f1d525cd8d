"""The peak memory of an extraction.

As a program, ``python memory.py MODEL '{"name": [texts, how], ...}'``: everything is loaded once, a process is forked
for each case, and a JSON object of peak resident bytes is printed. how: some of the words

* "small": windows and shards so small that 600 texts fill several of them;
* "keeping": the broken twin, which keeps every shard that it writes;
* "short": of memory: the limit leaves too little for the single batch.

The texts are generated on access, and take no memory themselves.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models

WORDS = [word for word in models.WORDS if word.isalpha()]


class Texts(Sequence[str]):
    """Texts of one to eight words."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < self.count:
            raise IndexError(i)
        return " ".join(WORDS[(i * 7 + j * (1 + i // 29)) % len(WORDS)] for j in range(1 + i % 8))


def run(encoder: Any, count: int, how: list[str]) -> None:
    """One extraction and an access to its vectors."""
    import resource

    from clsprobe.probes.extraction import extractor, store

    if "small" in how:
        extractor.WINDOW, extractor.SHARD = 256, 1 << 19
    shards, add = [], store.Store.add
    if "keeping" in how:
        store.Store.add = lambda self, *rest: (shards.append(rest), add(self, *rest))[1]  # type: ignore[func-returns-value]
    os.fsync = lambda descriptor: None
    arguments: dict[str, Any] = {}
    if "short" in how:
        arguments = {"max_tokens_per_batch": 10**6, "layers": [1], "readouts": ["cls"]}
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with tempfile.TemporaryDirectory() as cache:
        reader = extractor.Extractor(encoder, cache=Path(cache), **arguments)
        if "short" in how:
            extractor.WINDOW = count
            resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
        states = reader(Texts(count))
        if "short" in how:
            assert states.source["batches halved"] > 0
            assert abs(states.cell(1, "cls")).max() > 0
        else:
            assert states.cell(2, "mean", rows=range(0, count, count // 50)).shape == (50, models.DIM)


def peak(encoder: Any, count: int, how: str) -> int:
    """Peak resident bytes, in a separate process."""
    process = os.fork()
    if not process:
        code = 1
        try:
            run(encoder, count, how.split())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status, usage = os.wait4(process, 0)
    assert status == 0, (count, how)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch

    from clsprobe.probes.encoders.loading import load_encoder

    torch.set_num_threads(1)
    loaded = load_encoder(sys.argv[1])
    print(json.dumps({name: peak(loaded, *case) for name, case in json.loads(sys.argv[2]).items()}))
