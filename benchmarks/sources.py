"""How long tasks take to be made of real text, and a run over a whole treebank.

    python benchmarks/sources.py        (or: make bench)

1. The ten tasks of a treebank (Universal Dependencies, English Web Treebank), seconds.
2. A table of 1,000,000 rows (CSV, written for the purpose), seconds and peak resident memory of a process of its own.
3. The near copies among 20,000 random texts, and among 5,000 that differ in a number only, seconds.
4. `clsprobe run --task conllu:...:all` on the embedded model: ten tasks, every layer, eight readouts, wall clock.

The treebank is looked for in $CLSPROBE_DATA, default ../shared/data; 1 and 4 are left out without it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.probes.tasks.duplicates import near

DATA = Path(os.environ.get("CLSPROBE_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data").resolve()
ROWS = 1_000_000
WORDS = "The rather long sentence of row {} says about as much as a review does, and its label is drawn by hand."


def treebank(folder: Path) -> None:
    """Print part 1."""
    start = time.perf_counter()
    tasks = load(f"conllu:{folder}:all", SourceOptions()).tasks
    seconds = time.perf_counter() - start
    texts = len({text for task in tasks for text in task.texts})
    print(f"treebank  {len(tasks)} tasks, {texts:,} distinct texts  {seconds:5.1f} s (at most 20)", flush=True)


def read(path: str) -> None:
    """Read a table, and print seconds and this process's peak resident bytes."""
    start = time.perf_counter()
    (task,) = load(f"file:{path}", SourceOptions()).tasks
    seconds = time.perf_counter() - start
    assert len(task.texts) == ROWS
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())  # getrusage's is the parent's too
    assert peak
    print(seconds, int(peak[1]) * 1024)


def table() -> None:
    """Print part 2, on Linux."""
    if sys.platform != "linux":
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with path.open("w", encoding="utf-8") as file:
            file.write("text,label\n")
            file.writelines(f'"{WORDS.format(i)}",{"ab"[i % 2]}\n' for i in range(ROWS))
        size = path.stat().st_size / 1e6
        done = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, text=True, check=True)
    seconds, peak = map(float, done.stdout.split())
    told = f"{seconds:5.1f} s (at most 30)  {peak / 1e6:.0f} MB at its peak (at most 300)"
    print(f"CSV       {ROWS:,} rows, {size:.0f} MB  {told}", flush=True)


def copies() -> None:
    """Print part 3."""
    letters = np.random.default_rng(3).choice([*"abcdefghijklmnopqrstuvwxyz "], (20_000, 80))
    template = [f"the film that we saw on the evening of day {i} was long" for i in range(5_000)]
    for kind, texts in (("random", ["".join(row) for row in letters]), ("alike", template)):
        start = time.perf_counter()
        near(texts)
        print(
            f"near copies  {len(texts):,} texts, {kind}  {time.perf_counter() - start:5.1f} s (at most 5)", flush=True
        )


def whole(folder: Path) -> None:
    """Print part 4."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "clsprobe", "run", "--task", f"conllu:{folder}:all", "--quiet"]
        start = time.perf_counter()
        subprocess.run([*command, "--out", f"{out}/run", "--cache", f"{out}/cache"], check=True, capture_output=True)
    print(f"whole run  {(time.perf_counter() - start) / 60:5.1f} min (at most 15)", flush=True)


if __name__ == "__main__" and sys.argv[1:]:
    read(sys.argv[1])
elif __name__ == "__main__":
    table()
    copies()
    if (ewt := DATA / "ud_english_ewt").is_dir():
        treebank(ewt)
        whole(ewt)
    else:
        print(f"no treebank in {DATA}: set CLSPROBE_DATA")
