"""How long an import, the help and an error take, none of which needs a model.

    python benchmarks/errors.py        (or: make bench)

Wall-clock and processor seconds of a process of its own: `import clsprobe`, `clsprobe --help`, and the first row of
every section of tests/support/bad_inputs.yaml that is refused.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUPPORT = Path(__file__).resolve().parents[1] / "tests" / "support"
sys.path.insert(0, str(SUPPORT))

import models  # noqa: E402
from inputs import ROWS, command, lay_out  # noqa: E402


def measure_process(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Wall clock and processor time of a Python process, the best of three."""
    timings = []
    for _ in range(3):
        start, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=False)
        after = os.times()
        processor = after.children_user + after.children_system - before.children_user - before.children_system
        timings.append((time.perf_counter() - start, processor))
    return min(timings)


def report(name: str, arguments: list[str], folder: Path) -> None:
    """Print both times of a process."""
    wall, processor = measure_process(arguments, folder)
    print(f"{name:14} {wall:5.2f} s, of the processor {processor:5.2f} s (at most 1)", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["CLSPROBE_HOME"] = str(folder / "cache")
        report("import", ["-c", "import clsprobe"], folder)
        report("--help", ["-m", "clsprobe", "--help"], folder)
        model = models.save("bert", folder / "bert")
        for section, rows in ROWS.items():
            row = next((row for row in rows if "says" in row and not row.get("heavy")), None)
            if row is not None:
                (folder / section).mkdir()
                lay_out(row, folder / section, model)
                report(section, ["-m", "clsprobe", *command(row)], folder / section)
