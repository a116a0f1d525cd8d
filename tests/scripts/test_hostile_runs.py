"""Runs and caches that an enemy, a bad disk or a careless copy has left: each ends in time, with its line.

The cases are data, tests/support/hostile_runs.yaml.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import resource
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from commands import call
from deadline import deadline
from hostile import CASES, damage
from outside import tree

from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.store import Store
from clsprobe.probes.files import Lock, spool_stream, write_parquet, write_text
from clsprobe.probes.training.checkpoint import Checkpoint

RUN = ["run", "--vectors", "v.npy", "--task", "file:d.csv", "--split-column", "side", "--out", "out"]
COMMANDS = {
    "report": ["report", "out", "--out", "r.html"],
    "export": ["export", "out"],
    "resume": RUN,
    "overwrite": [*RUN, "--overwrite"],
}
IDS = [f"{case['of']}: {'; '.join(f'{k} {v}' for k, v in case['files'].items())}"[:90] for case in CASES]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within the block, no file of this process grows beyond so many bytes, as after ``ulimit -f``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `finished`, `unfinished` and `cache`, to be copied.

    The first was finished after a limit on the size of files had stopped it, with the line in `limited.txt`.
    """
    folder = tmp_path_factory.mktemp("originals")
    vectors = np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32)
    rows = [f"{'ab'[int(v > 0)]},{('train', 'dev', 'test')[i % 3]}\n" for i, v in enumerate(vectors[:, 0])]
    desk = folder / "unfinished"
    desk.mkdir()
    np.save(desk / "v.npy", vectors)
    (desk / "d.csv").write_text("label,side\n" + "".join(rows))
    (desk / "keep").mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(desk)
        with patch("clsprobe.analysis.result.Result.write", side_effect=KeyboardInterrupt):
            assert call(*RUN) == 130
        shutil.copytree(desk, folder / "finished")
        patched.chdir(folder / "finished")
        with largest_file(20_000), redirect_stderr(io.StringIO()) as errors:
            assert call(*RUN) == 2
        (folder / "limited.txt").write_text(errors.getvalue())
        assert not [*folder.rglob("*.tmp")]
        assert call(*RUN) == 0  # the measurement was not lost
    make_store(folder / "cache" / "cache")
    return folder


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_hostile_folder_ends_with_its_line(
    case: dict[str, Any], originals: Path, desk: Path, capfd: pytest.CaptureFixture
) -> None:
    shutil.copytree(originals / case["of"], desk, dirs_exist_ok=True)
    damage(case, desk)
    command = case["command"]
    before = tree(desk)
    with deadline(), warnings.catch_warnings():
        warnings.simplefilter("default")
        code = call(*COMMANDS.get(command, command) if isinstance(command, str) else command)
    output = capfd.readouterr()
    if case.get("gives"):
        assert code == 0, output.err
        assert re.search(case["says"], output.out), output.out
    else:
        assert code == 2, output.out
        line = output.err.removeprefix("error: ").removesuffix("\n")
        assert "\n" not in line
        assert re.search(case["says"], line), line
    after = tree(desk)
    if not case.get("loses"):
        for made in {"r.html", "."}:
            before.pop(made, None)
            after.pop(made, None)
        assert after == before
    if "--overwrite" in output.err:  # what the line advises gets past it
        assert call(*RUN, "--overwrite", "--dry-run") == 0


# ---------------------------------------------------------------------------------------- what no folder can set up


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_limit_on_the_size_of_files_names_the_file(originals: Path, desk: Path, capfd: pytest.CaptureFixture) -> None:
    mend = "file too large. Raise the limit on the size of files (ulimit -f), and run again.\n"
    assert re.fullmatch(rf"error: out/[\w./]+: {re.escape(mend)}", (originals / "limited.txt").read_text())
    shutil.copytree(originals / "finished", desk, dirs_exist_ok=True)
    with largest_file(20_000):
        assert call("report", "out", "--out", "r.html") == 2
    assert capfd.readouterr().err.endswith(f"error: r.html: {mend}")
    assert not (desk / "r.html").exists()


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x" * 100),
        lambda path: write_parquet(path, pd.DataFrame({"x": [0.5]})),
        lambda path: Lock(path).take(),
        lambda path: Checkpoint(path, "key").write(1, {"w": torch.ones(9)}, None, {}),
        lambda path: make_store(path.parent),
        lambda path: spool_stream(io.BytesIO(b"x" * 100)),
    ],
    ids=["text", "table", "lock", "checkpoint", "store", "standard input"],
)
def test_every_writer_names_its_file(write: Callable[[Path], object], tmp_path: Path) -> None:
    with largest_file(10), pytest.raises((OSError, InputError)) as caught:
        write(tmp_path / "file")
    where = caught.value.where if isinstance(caught.value, InputError) else caught.value.filename
    assert str(where).removeprefix("--cache ").startswith((str(tmp_path), tempfile.gettempdir()))
    assert ".tmp" not in str(where)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]


def make_store(cache: Path) -> Store:
    """A whole store of three texts."""
    store = Store(cache, {"texts": {"count": 3}, "readouts": {}, "layers": [1]}, name="m", size=1)
    store.begin(0)
    store.add(0, {"layer.01/cls": np.ones((3, 2), np.float32), "present": np.ones((3, 1), np.uint8)}, 0)
    store.finish(pd.DataFrame({"shard": [0, 0, 0], "at": [0, 1, 2], "tokens": [5, 5, 5], "ids": [7, 8, 9]}), {})
    store.close()
    return store


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_an_error_of_the_disk_names_the_file_and_a_remedy(
    number: int, desk: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", fail)
    monkeypatch.setattr("clsprobe.listing._list_plots", lambda: write_text("run.json", "x"))
    assert call("list", "plots") == 2
    line = capfd.readouterr().err
    assert re.fullmatch(rf"error: run\.json: {os.strerror(number).lower()}\. [A-Z].+ and run again\.\n", line)
    assert not [*desk.iterdir()]


def test_many_damaged_shards_take_no_time_each_for_the_others(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    store, count = make_store(tmp_path), 2000
    entry = {"rows": 1, "bytes": 10, "sha256": "0" * 64}
    entries = {f"shard-{i:05d}.safetensors": entry for i in range(count)}
    with deadline():
        store._update_entries(lambda _: entries)
        assert call("cache", "verify", "--cache", tmp_path) == 2
    output = capfd.readouterr()
    assert f"and {count - 10:,} more" in output.out
    assert f"{count:,} files are damaged or missing" in output.err


@pytest.mark.parametrize("seconds", [-100_000, 100_000], ids=["of the past", "of the future"])
def test_a_lock_that_nobody_can_have_touched_is_broken(seconds: float, tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    path.write_text(json.dumps({"here": "another machine", "process": 1}))
    assert not Lock(path).take()
    os.utime(path, (time.time() + seconds,) * 2)
    lock = Lock(path)
    assert lock.take()
    lock.release()


@pytest.mark.parametrize(
    "owner", ["", "[]", "{}", '{"here": 1, "process": "x"}', "[" * 9999, '{"here": "", "process": 1e999}']
)
def test_a_lock_of_an_unknown_owner_is_waited_for(owner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.lock"
    path.write_text(owner)
    monkeypatch.setattr("clsprobe.probes.files.STALE", 0.05)
    lock = Lock(path)
    assert not lock.take()
    time.sleep(0.1)
    assert lock.take()
    lock.release()
