"""What a user may give, row by row of bad_inputs.yaml, and the one line that answers it.

A row says which files there are, which command is given, and the line on stderr: whole, or a regular expression where
it starts with ^. Every row is a command run in this process with torch, transformers, scikit-learn and umap out of
reach: it leaves with exit code 2, one line on stderr, nothing on stdout, and not one file changed. A row with `gives`
is accepted, and says what must come out. How long an error takes: benchmarks/errors.py.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import pytest
import typer
from deadline import deadline
from inputs import ROWS, command, lay_out

from clsprobe.analysis.sources import SourceOptions, load, tables
from clsprobe.cli import app, main
from clsprobe.flags import make_study
from clsprobe.probes.errors import InputError
from clsprobe.run import Run

HEAVY = ("torch", "transformers", "sklearn", "umap", "captum", "seaborn")
NOR_THESE = {"pandas", "pyarrow", "scipy", "matplotlib", "datasets", "huggingface_hub", "tokenizers"}
PARTS = [(f"{section} {n}", row) for section, rows in ROWS.items() for n, row in enumerate(rows, 1)]
REFUSED = [pytest.param(row, id=name) for name, row in PARTS if "says" in row]
ACCEPTED = [pytest.param(row, id=name) for name, row in PARTS if "gives" in row]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A whole BERT; look, but do not touch."""
    return models.save("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def parser() -> object:
    """The command line, which typer would build anew for every row."""
    return typer.main.get_command(app)


@pytest.fixture
def desk(tmp_path, parser, monkeypatch) -> Path:
    """A folder to stand in, a cache and a hub that do not exist yet, and a log that goes to stderr as for a user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLSPROBE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(typer.main, "get_command", lambda _: parser)
    return tmp_path


def snapshot(folder: Path) -> dict[str, Any]:
    """What lies in a folder: name -> content and time of every file."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {
        name: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for name, path in paths.items()
    }


@pytest.mark.parametrize("section", ["files", "encodings", "columns", "rows", "labels", "flags", "configuration"])
def test_a_process_of_its_own_loads_nothing_heavy(section, desk, model) -> None:
    """What a shell sees of the first row of a section, from nothing to the line, and what is loaded on the way."""
    row = ROWS[section][0]
    lay_out(row, desk, model)
    code = (
        "import sys\nfrom clsprobe.cli import main\n"
        "try: main(sys.argv[1:])\n"
        f"finally: print({set(HEAVY) | NOR_THESE} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *command(row)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "set()\n"), done.stderr
    assert re.fullmatch(r"error: .+\n", done.stderr)


def call(*arguments: str) -> int:
    """The exit code of the command, run in this process."""
    with deadline(), pytest.raises(SystemExit) as stop:
        main(arguments)
    return int(stop.value.code or 0)


@pytest.mark.parametrize("row", REFUSED)
def test_a_bad_input_is_one_line_and_nothing_else(row, desk, model, monkeypatch, capfd) -> None:
    lay_out(row, desk, model)
    before = snapshot(desk)
    if not row.get("heavy"):
        for name in HEAVY:
            monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    code = call(*command(row))
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: "), output.err
    assert output.err.count("\n") == 1
    line = output.err.removeprefix("error: ").removesuffix("\n")
    assert line.isprintable()
    assert "Traceback" not in line
    if row["says"].startswith("^"):
        assert re.search(row["says"], line), line
    else:
        assert line == row["says"]
    assert code == row.get("exit", 2)
    after = snapshot(desk)
    if row.get("heavy"):
        after.pop("cache", None)  # the folder itself, but nothing in it
    assert after == before
    for words in advised(line, row):
        call(*words)
        answer = capfd.readouterr().err.removeprefix("error: ")
        assert answer.partition(". ")[0] != line.partition(". ")[0], (words, answer)


def advised(line: str, row: dict[str, Any]) -> list[list[str]]:
    """The commands that a line recommends: that of the row with a flag added, or taken away; or what `then` says of it.

    A flag is recommended where it follows "pass", and is one to leave out where "leave" stands before it. A recommended
    command of a study is tried with --dry-run: what it refuses is what the run would refuse.
    """
    words, mend = command(row), line.partition(": ")[2].partition(". ")[2]
    commands = []
    if "then" in row:
        then = row["then"]
        commands = [then if isinstance(then, list) else [*words, *shlex.split(then)]] if then else []
    elif "Run its command again with" in mend:
        out = ["another"] if "with another --out" in mend else [words[-1], "--overwrite"]
        commands = [["run", "--task", "grammar:tense:36", "--out", *out]]
    else:
        for flags in re.findall(r"[Pp]ass ((?:--[a-z-]+(?: (?:'[^']*'|[^\s;,.()-][^\s;,()]*))? ?)+)", mend):
            commands.append([*words, *shlex.split(flags)])
        for flag in re.findall(r"[Ll]eave (--[a-z-]+)(?: \S+)? out", mend):
            start = words.index(flag)
            commands.append(words[:start] + words[start + 2 :])
        if not commands and re.search(r"(^|[^'])--(?!help)[a-z]", mend):
            raise AssertionError(f"nothing follows this advice; say how with `then`: {mend}")
    return [[*words, *(["--dry-run"] if words[0] == "run" else [])] for words in commands]


@pytest.mark.parametrize("row", ACCEPTED)
def test_an_odd_input_that_is_good_is_taken_as_it_is(row, desk, model, monkeypatch, capfd) -> None:
    lay_out(row, desk, model)
    before = snapshot(desk)
    for name in HEAVY:
        monkeypatch.setitem(sys.modules, name, None)
    words = command(row)
    assert call(*words, "--dry-run") == 0
    output = capfd.readouterr()
    assert output.err == ""
    settings, expected = row.get("options", {}), row["gives"]
    study = make_study(Run, {"task": words[2], **settings})
    options = SourceOptions(**{name: getattr(study, name) for name in SourceOptions.__dataclass_fields__})
    loaded = load(words[2], options)
    (task,) = loaded.tasks
    for text, label in expected.get("rows", ()):
        assert [y for t, y in zip(task.texts, task.y.tolist(), strict=True) if t == text] == [label]
    assert len(task.texts) == expected["texts"]
    assert task.texts[0] == expected.get("first", task.texts[0])
    assert loaded.rows == expected["texts"] + sum(loaded.left_out.values()) + sum(task.left_out.values())
    assert loaded.left_out == expected.get("left out", {})
    assert len(loaded.notes) == len(expected.get("notes", ()))
    for note, pattern in zip(loaded.notes, expected.get("notes", ()), strict=True):
        assert re.search(pattern, note)
    assert snapshot(desk) == before


# --------------------------------------------------------------------------------------------- what no row can set up


def refusal(spec: str) -> str:
    with pytest.raises(InputError) as caught:
        load(spec, SourceOptions())
    return str(caught.value)


def test_no_permission(desk, monkeypatch) -> None:
    def refuse(*args: object, **options: object) -> None:  # root may read everything
        raise PermissionError(13, "Permission denied")

    (desk / "d.csv").write_bytes(b"text,label\n")
    monkeypatch.setattr(os, "open", refuse)
    assert refusal("file:d.csv") == "d.csv: cannot be read (permission denied)"


def test_a_name_too_long(desk) -> None:
    for spec in ("file:" + "x" * 5000 + ".csv", "conllu:" + "x" * 5000 + ":all"):
        assert "cannot be read (file name too long)" in refusal(spec)


@pytest.mark.parametrize("content", [b"text,label\nfine,pos\n", b"text,label\nbroken\n"], ids=["good", "half-written"])
def test_file_changes_while_being_read(desk, content: bytes, monkeypatch) -> None:
    def slow(source: tables.Source) -> Any:
        yield from csv(source)
        with path.open("ab") as file:
            file.write(b"one more,pos\n")

    path = desk / "d.csv"
    path.write_bytes(content)
    csv = tables.READERS[".csv"]
    monkeypatch.setitem(tables.READERS, ".csv", slow)
    assert refusal("file:d.csv").startswith("d.csv: changed while being read")
