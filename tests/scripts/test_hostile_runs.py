"""Runs and caches that an enemy, a bad disk or a careless copy has left: each ends in time, with its line.

The cases are data, tests/support/hostile_runs.yaml.
"""

from __future__ import annotations

import re
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from commands import call
from hostile import CASES, damage
from outside import tree

from clsprobe.probes.extraction.store import Store

PATIENCE = 120  # seconds, after which a case hangs; a usual one takes a tenth of one
RUN = ["run", "--vectors", "v.npy", "--task", "file:d.csv", "--split-column", "side", "--out", "out"]
COMMANDS = {
    "report": ["report", "out", "--out", "r.html"],
    "export": ["export", "out"],
    "resume": RUN,
    "overwrite": [*RUN, "--overwrite"],
}
IDS = [f"{case['of']}: {'; '.join(f'{k} {v}' for k, v in case['files'].items())}"[:90] for case in CASES]


@contextmanager
def deadline() -> Iterator[None]:
    """Fails within the block where it does not end, with the name of its test."""

    def fail(*_: object) -> None:
        raise TimeoutError("the command hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `finished`, `unfinished` and `cache`, to be copied."""
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
        assert call(*RUN) == 0
    cache = folder / "cache" / "cache"
    store = Store(cache, {"texts": {"count": 3}, "readouts": {}, "layers": [1]}, name="m", size=1)
    store.begin(0)
    store.add(0, {"layer.01/cls": np.ones((3, 2), np.float32), "present": np.ones((3, 1), np.uint8)}, 0)
    store.finish(pd.DataFrame({"shard": [0, 0, 0], "at": [0, 1, 2], "tokens": [5, 5, 5], "ids": [7, 8, 9]}), {})
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
