"""A run of the extractor small enough to be interrupted everywhere: 48 texts, two windows, six shards.

As a program, ``python runs.py MODEL``, it loads everything once and forks a process for every requested run, so that a
hundred runs can be killed in the time that importing torch takes. `Forker` is its client.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import models

LAYERS, READOUTS = [0, 2], ("cls", "mean")
SIZES = {
    "WINDOW": 24,
    "SHARD": 8 * len(LAYERS) * len(READOUTS) * models.DIM * 4,
}  # for probes.extraction.extractor: 8 texts a shard
_WORDS = [word for word in models.WORDS if word.isalpha()]
TEXTS = [" ".join([_WORDS[(i + j) % len(_WORDS)] for j in range(1 + i % 9)] + ["on"] * (i // 18)) for i in range(48)]
SHARDS = 6


def encode(encoder: Any, cache: Path | None) -> Any:
    """The States of the run; `SIZES` must be set."""
    from clsprobe.probes.extraction.extractor import Extractor

    return Extractor(encoder, READOUTS, layers=LAYERS, max_tokens_per_batch=200, cache=cache)(TEXTS)


def read_files(cache: Path) -> dict[str, bytes]:
    """The contents of every file of a cache except the locks, by relative path."""
    files = (path for path in sorted(cache.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(cache).as_posix(): path.read_bytes() for path in files}


def only_folder(cache: Path) -> Path:
    """The folder of the only key."""
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


class Forker:
    """Starts runs in separate processes, which can be killed. The caller waits for each."""

    def __init__(self, model: Path, *modules: str) -> None:
        """modules: imported once, in addition to the extractor."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(model), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},  # its threads would not survive the fork
        )
        assert self._ask() == 0

    def encode(self, cache: Path, *, log: Path | None = None, pause: float = 0, careless: bool = False) -> int:
        """Start a process that encodes into `cache`. Returns its process id.

        log: a file for the numbers of the shards that it computed. pause: seconds before each is written. careless:
        disable atomic writes and verification.
        """
        return self._ask(encode=str(cache), log=log and str(log), pause=pause, careless=careless)

    def command(self, *arguments: object, errors: Path) -> int:
        """Start a process that runs the command. Returns its process id. errors: a file for its stderr."""
        return self._ask(command=[*map(str, arguments)], errors=str(errors))

    def wait(self, number: int) -> int:
        """The exit code of a process; -9 if it was killed."""
        return self._ask(wait=number)

    def close(self) -> None:
        """End the forking process."""
        self._process.communicate()

    def _ask(self, **order: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def _serve(model: str, *modules: str) -> None:
    for module in ("pandas", "pyarrow.parquet", "safetensors.numpy", "clsprobe.probes.extraction.extractor", *modules):
        import_module(module)  # once, before any fork
    import torch

    from clsprobe.probes.encoders.loading import load_encoder

    torch.set_num_threads(1)
    encoder = load_encoder(model)
    for line in sys.stdin:
        order = json.loads(line)
        answer = 0
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        elif order and (answer := os.fork()) == 0:
            _run(encoder, order)
        print(answer, flush=True)


def _run(encoder: Any, order: dict[str, Any]) -> None:
    """Run an order in the forked process, then exit."""
    code = 1
    try:
        for name, size in SIZES.items():
            setattr(import_module("clsprobe.probes.extraction.extractor"), name, size)
        if "command" in order:
            os.dup2(os.open(order["errors"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
            os.dup2(2, 1)
            sys.argv = ["clsprobe", *order["command"]]
            import_module("clsprobe.cli").main()
        else:
            _encode(encoder, order)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _encode(encoder: Any, order: dict[str, Any]) -> None:
    from clsprobe.probes import files
    from clsprobe.probes.extraction import store

    files.STALE = 0.5  # a lock created but not yet written names no process
    added, add = [], store.Store.add

    def record_add(self: store.Store, number: int, *arguments: Any) -> None:
        time.sleep(order["pause"])
        add(self, number, *arguments)
        added.append(number)

    store.Store.add = record_add  # type: ignore[method-assign]
    if order["careless"]:
        store.replacing = careless
        store.verify = lambda folder: []
        store.Store.has = lambda self, number: (self.folder / store._name(number)).exists()  # type: ignore[method-assign]
    encode(encoder, Path(order["encode"]))
    if order["log"]:
        Path(order["log"]).write_text(json.dumps(added))


class _SlowFile:
    """A file that pauses in the middle of a write."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, content: bytes) -> int:
        half = len(content) // 2
        self.file.write(content[:half])
        self.file.flush()
        time.sleep(0.05)
        self.file.write(content[half:])
        return len(content)


@contextmanager
def careless(path: Path) -> Iterator[Any]:
    """The broken twin of `probes.files.replacing`: it writes under the final name, slowly."""
    with Path(path).open("wb") as file:
        yield _SlowFile(file)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
