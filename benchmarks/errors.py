"""How long somebody waits for an answer that needs no model: for help, for an import, for an error.

    python benchmarks/errors.py        (or: make bench)

Wall-clock and processor seconds of a process of its own: `import clsprobe`, `clsprobe --help`, and the first row of
every section of tests/support/bad_inputs.yaml that is refused. What is loaded on the way: tests/scripts/test_inputs.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUPPORT = Path(__file__).resolve().parents[1] / "tests" / "support"
sys.path.insert(0, str(SUPPORT))  # where the rows and the models for them are made

import models  # noqa: E402
from inputs import ROWS, command, lay_out  # noqa: E402


def seconds(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Wall clock and processor time of a Python process, the best of three."""
    took = []
    for _ in range(3):
        start, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=False)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        took.append((time.perf_counter() - start, used))
    return min(took)


def main() -> None:
    """Print two figures for each."""
    told = "{:14} {:5.2f} s, of the processor {:5.2f} s (at most 1)"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        os.environ["CLSPROBE_HOME"] = str(folder / "cache")
        print(told.format("import", *seconds(["-c", "import clsprobe"], folder)), flush=True)
        print(told.format("--help", *seconds(["-m", "clsprobe", "--help"], folder)), flush=True)
        model = models.save("bert", folder / "bert")
        for section, rows in ROWS.items():
            row = next((row for row in rows if "says" in row and not row.get("heavy")), None)
            if row is not None:
                (folder / section).mkdir()
                lay_out(row, folder / section, model)
                print(told.format(section, *seconds(["-m", "clsprobe", *command(row)], folder / section)), flush=True)


if __name__ == "__main__":
    main()
