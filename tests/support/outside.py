"""What lies outside a folder of ours and must stay as it is, and a deadline for what must not wait for ever."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEADLINE = 30  # seconds


def tree(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Every path below a folder: its mode, its time, and what it holds or leads to."""
    contents = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else _read(path) if path.is_file() else None
        contents[path.relative_to(folder).as_posix()] = (status.st_mode, status.st_mtime_ns, content)
    return contents


def _read(path: Path) -> bytes | int:
    """The content of a file, or the size of one that may be larger than the memory."""
    size = path.stat().st_size
    return path.read_bytes() if size < 1 << 24 else size


def within_deadline(function: Callable[[], Any], *pipes: Path) -> Any:
    """What the function returns or raises, from a thread. Fails after `DEADLINE`, and then wakes whoever waits for a
    pipe among these paths, so that the test ends."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    while thread.is_alive():
        for pipe in filter(Path.is_fifo, pipes):
            try:
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
                outcome["waited"] = pipe
            except OSError:  # nobody waits for this one
                pass
        thread.join(0.05)
    assert "waited" not in outcome, f"it waits for {outcome.get('waited')}"
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]
