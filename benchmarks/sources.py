"""How long it takes to read tasks from real text, and to run a whole treebank.

    python benchmarks/sources.py        (or: make bench)

1. The ten tasks of a treebank (Universal Dependencies, English Web Treebank), seconds.
2. A table of 1,000,000 rows (a temporary CSV), seconds and peak resident memory of a process of its own, on Linux.
3. Finding near copies among 20,000 random texts, and among 5,000 that differ only in a number, seconds.
4. `clsprobe run --task conllu:...:all` on the embedded model: ten tasks, every layer, eight readouts, wall clock.

The treebank is read from $CLSPROBE_DATA, default ../shared/data; without it, 1 and 4 are skipped.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from harness import DATA, Stopwatch, measure_seconds, peak_memory, run_again, run_clsprobe

from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.probes.tasks.duplicates import group_near_copies

ROWS = 1_000_000
WORDS = "The rather long sentence of row {} says about as much as a review does, and its label is drawn by hand."


def read_treebank(folder: Path) -> None:
    """Print part 1."""
    with Stopwatch() as watch:
        tasks = load(f"conllu:{folder}:all", SourceOptions()).tasks
    texts = len({text for task in tasks for text in task.texts})
    print(f"treebank  {len(tasks)} tasks, {texts:,} distinct texts  {watch.seconds:5.1f} s (at most 20)", flush=True)


def read_table(path: str) -> None:
    """Read a table, and print the seconds and the peak memory of this process."""
    with Stopwatch() as watch:
        (task,) = load(f"file:{path}", SourceOptions()).tasks
    assert len(task.texts) == ROWS
    print(watch.seconds, peak_memory())


def measure_table() -> None:
    """Print part 2."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with path.open("w", encoding="utf-8") as file:
            file.write("text,label\n")
            file.writelines(f'"{WORDS.format(i)}",{"ab"[i % 2]}\n' for i in range(ROWS))
        size = path.stat().st_size / 1e6
        seconds, peak = run_again(str(path))
    result = f"{seconds:5.1f} s (at most 30)  {peak / 1e6:.0f} MB at its peak (at most 300)"
    print(f"CSV       {ROWS:,} rows, {size:.0f} MB  {result}", flush=True)


def measure_copies() -> None:
    """Print part 3."""
    letters = np.random.default_rng(3).choice([*"abcdefghijklmnopqrstuvwxyz "], (20_000, 80))
    similar = [f"the film that we saw on the evening of day {i} was long" for i in range(5_000)]
    for kind, texts in (("random", ["".join(row) for row in letters]), ("alike", similar)):
        seconds = measure_seconds(lambda texts=texts: group_near_copies(texts))
        print(f"near copies  {len(texts):,} texts, {kind}  {seconds:5.1f} s (at most 5)", flush=True)


def run_treebank(folder: Path) -> None:
    """Print part 4."""
    with tempfile.TemporaryDirectory() as out:
        task = ("--task", f"conllu:{folder}:all")
        seconds = run_clsprobe("run", *task, "--out", f"{out}/run", "--cache", f"{out}/cache")
    print(f"whole run  {seconds / 60:5.1f} min (at most 15)", flush=True)


if __name__ == "__main__" and sys.argv[1:]:
    read_table(sys.argv[1])
elif __name__ == "__main__":
    if sys.platform == "linux":
        measure_table()
    measure_copies()
    if (folder := DATA / "ud_english_ewt").is_dir():
        read_treebank(folder)
        run_treebank(folder)
    else:
        print(f"no treebank in {DATA}: set CLSPROBE_DATA")
