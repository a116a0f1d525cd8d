"""How much the peak memory of a command grows with the number of texts.

    python benchmarks/memory.py        (or: make bench)

The peak resident memory of a process of its own over 2,000 and over 20,000 texts, and how much a further 10,000 texts
take, on Linux: of reading and splitting (`run --dry-run`), of encoding a file for the first time and probing it (`run`,
the embedded model, three layers, two readouts), and of the same again with a tiny model of the tests, whose vectors
weigh little. Texts are ten to twenty words long, and drawn at random.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from harness import peak_memory, run_again

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

SIZES = 2_000, 20_000


def write_table(path: Path, rows: int, vocabulary: list[str]) -> None:
    """A table of random texts, half of them of either class."""
    random = np.random.default_rng(rows)
    lines = ["text,label\n"]
    for row in range(rows):
        words = random.choice(vocabulary, random.integers(10, 20)).tolist() + ["cat"] * (row % 2 and row % 3)
        lines.append(f"{' '.join(words)},{('bad', 'good')[row % 2]}\n")
    path.write_text("".join(lines))


def measure(arguments: list[str]) -> None:
    """Run a command in this process, and print its peak memory."""
    from clsprobe.cli import main
    from clsprobe.limits import return_freed_memory

    return_freed_memory()
    try:
        with redirect_stdout(sys.stderr):
            main([*arguments, "--quiet"])
    except SystemExit as stop:
        if stop.code:
            raise
    print(peak_memory())


def main() -> None:
    """Print the peaks of every command."""
    import models  # of the tests

    with tempfile.TemporaryDirectory() as folder:
        small, vocabulary = str(models.save("bert", Path(folder, "small"))), [w for w in models.WORDS if w.isalpha()]
        commands = {
            "run --dry-run": ["--dry-run"],
            "run": ["--layers", "0,3,6", "--readouts", "cls,mean"],
            f"run, width {models.DIM}": ["--model", small, "--layers", "0,2", "--readouts", "cls,mean"],
        }
        for rows in SIZES:
            write_table(Path(folder, f"{rows}.csv"), rows, vocabulary)
        for name, flags in commands.items():
            peaks = []
            for rows in SIZES:
                places = ["--cache", f"{folder}/cache", "--out", f"{folder}/{len(flags)}-{rows}", "--overwrite"]
                task = ["run", "--task", f"file:{folder}/{rows}.csv"]
                peaks.append(run_again(*task, *flags, *places)[-1] / 1e6)
            growth = (peaks[1] - peaks[0]) / (SIZES[1] - SIZES[0]) * 10_000
            print(f"{name:16} {growth:6.1f} MB per 10,000 texts ({peaks[0]:,.0f} and {peaks[1]:,.0f} MB)", flush=True)


if __name__ == "__main__":
    measure(sys.argv[1:]) if len(sys.argv) > 1 else main()
