"""Whatever happens to a run, the next one equals a fresh one or is refused in one line, and touches nothing outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from house import ROOT

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks, signals and pipes")
TWINS = ("contents", "digest", "manifest", "overwrite", "pipe")


def live(folder: Path, histories: int, *more: str) -> dict[str, Any]:
    """The result of the program chaos.py."""
    program = [sys.executable, str(ROOT / "tests" / "long" / "chaos.py"), str(folder)]
    done = subprocess.run([*program, "--histories", str(histories), *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(result: dict[str, Any], histories: int) -> None:
    print(f"seed {result['seed']}: {result['ends']}")
    assert not result["faults"], f"python tests/long/chaos.py FOLDER --seed {result['seed']}: {result['faults']}"
    assert result["histories"] == histories
    assert result["ends"]["equal"] > 0


def test_random_histories(tmp_path):
    """A few of them; their seed is another one every time, and stands in the message of a failure."""
    check(live(tmp_path, 6), 6)


@pytest.mark.long
def test_many_random_histories(tmp_path):
    check(live(tmp_path, 500), 500)


@pytest.mark.long
@pytest.mark.parametrize("twin", TWINS)
def test_a_protection_that_is_undone_is_found(twin, tmp_path):
    result = live(tmp_path, 80, "--twin", twin, "--deadline", "30")
    assert result["faults"], result
