"""What a user may give, row by row of bad_inputs.yaml, and the one line that answers it.

A row says which files there are, which command is given, and the line on stderr: whole, or a regular expression where
it starts with ^. Every row is a command run in this process with torch, transformers, scikit-learn and umap out of
reach: it leaves with exit code 2, one line on stderr, nothing on stdout, within a second, and not one file changed. A
row with `gives` is accepted, and says what must come out.
"""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import pytest
from inputs import ROWS, lay_out

from analysis.sources import SourceOptions, load
from clsprobe.cli import main, make_study
from clsprobe.run import Run

HEAVY = ("torch", "transformers", "sklearn", "umap", "captum", "seaborn")
PARTS = [(f"{section} {n}", row) for section, rows in ROWS.items() for n, row in enumerate(rows, 1)]
REFUSED = [pytest.param(row, id=name) for name, row in PARTS if "says" in row]
ACCEPTED = [pytest.param(row, id=name) for name, row in PARTS if "gives" in row]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A whole BERT; look, but do not touch."""
    return models.save("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder to stand in, a cache and a hub that do not exist yet, and a log that goes to stderr as for a user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLSPROBE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def too_long(*_: object) -> None:
        raise TimeoutError("the command hangs")

    before = signal.signal(signal.SIGALRM, too_long)
    yield tmp_path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def command(row: dict[str, Any]) -> list[str]:
    """The words of the row's command: `args`; or a run on `task`, by default the first of its files, and `flags`."""
    if "args" in row:
        return list(row["args"])
    task = row.get("task", "grammar:tense" if row.get("model") else f"file:{next(iter(row.get('files', 'x')))}")
    return ["run", "--task", task, *(["--model", "./m"] if row.get("model") else []), *row.get("flags", ())]


def everything(folder: Path) -> dict[str, Any]:
    """What lies in a folder: name -> content and time of every file."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {
        name: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for name, path in found.items()
    }


def call(*arguments: str) -> int:
    """The exit code of the command, run in this process; an error after half a minute."""
    signal.alarm(30)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    signal.alarm(0)
    return int(stop.value.code or 0)


@pytest.mark.parametrize("row", REFUSED)
def test_a_bad_input_is_one_line_and_nothing_else(row, desk, model, monkeypatch, capfd) -> None:
    lay_out(row, desk, model)
    before = everything(desk)
    if not row.get("heavy"):
        for name in HEAVY:
            monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    start = time.process_time()
    code = call(*command(row))
    seconds = time.process_time() - start
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: "), said.err
    assert said.err.count("\n") == 1
    line = said.err.removeprefix("error: ").removesuffix("\n")
    assert line.isprintable()
    assert "Traceback" not in line
    if row["says"].startswith("^"):
        assert re.search(row["says"], line), line
    else:
        assert line == row["says"]
    assert code == row.get("exit", 2)
    assert everything(desk) == before
    assert row.get("heavy") or seconds < 1


@pytest.mark.parametrize("row", ACCEPTED)
def test_an_odd_input_that_is_good_is_taken_as_it_is(row, desk, model, monkeypatch, capfd) -> None:
    lay_out(row, desk, model)
    before = everything(desk)
    for name in HEAVY:
        monkeypatch.setitem(sys.modules, name, None)
    words = command(row)
    assert call(*words, "--dry-run") == 0
    said = capfd.readouterr()
    assert said.err == ""
    given, expected = row.get("options", {}), row["gives"]
    study = make_study(Run, {"task": words[2], **given})
    options = SourceOptions(**{name: getattr(study, name) for name in SourceOptions.__dataclass_fields__})
    loaded = load(words[2], options)
    (task,) = loaded.tasks
    for text, label in expected.get("rows", ()):
        assert [y for t, y in zip(task.texts, task.y.tolist(), strict=True) if t == text] == [label]
    assert len(task.texts) == expected["texts"]
    assert loaded.rows == expected["texts"] + sum(loaded.left_out.values())
    assert loaded.left_out == expected.get("left out", {})
    assert len(loaded.notes) == len(expected.get("notes", ()))
    for note, wanted in zip(loaded.notes, expected.get("notes", ()), strict=True):
        assert re.search(wanted, note)
    assert everything(desk) == before
