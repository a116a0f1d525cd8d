"""Shared by the benchmarks: where the data lie, timing, commands in a process of their own, peak memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

DATA = Path(os.environ.get("CLSPROBE_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data").resolve()
OUT = Path("out") / "bench"  # the runs stay there for inspection


class Stopwatch:
    """Wall-clock and processor seconds of a `with` block, work that is queued on a CUDA device included."""

    seconds = processor = 0.0

    def __enter__(self) -> Stopwatch:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds, self.processor = time.perf_counter() - self._start[0], time.process_time() - self._start[1]


def measure_seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    with Stopwatch() as watch:
        call()
    return watch.seconds


def run_clsprobe(*arguments: str) -> float:
    """Seconds that a command takes in a process of its own."""
    command = [sys.executable, "-m", "clsprobe", *arguments, "--quiet"]
    return measure_seconds(lambda: subprocess.run(command, check=True, capture_output=True))


def run_again(*arguments: str) -> list[float]:
    """The numbers that the running benchmark prints when it is started again with these arguments."""
    done = subprocess.run([sys.executable, sys.argv[0], *arguments], capture_output=True, text=True, check=True)
    return list(map(float, done.stdout.split()))


def peak_memory() -> int:
    """Peak resident bytes of this process, on Linux. getrusage would count the parent's too."""
    match = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) * 1024
