"""What data is called reaches a terminal and a page as escapes: no colour, no cursor, no second line."""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from commands import call
from house import ROOT
from packages import install, on_path

from clsprobe.probes.errors import printable
from clsprobe.probes.extraction.store import Store
from clsprobe.terminal import Formatter

NAME = "a\x1b]0;t\x07\x1b[31m\x9b2Jb\x7f\x08\r\n\x85\u2028\u202e\u2066\u200b\ufeffz"
ESCAPED = printable(NAME)
LINE = NAME.replace("\n", "").replace("\r", "").replace("\x85", "").replace("\u2028", "")  # what a line may hold


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> int:
    """Call the command, with a log that goes to stderr as for a user, and warnings that are no errors."""
    with patch.object(logging.getLogger(), "handlers", []), warnings.catch_warnings():
        warnings.simplefilter("default")
        return call(*arguments)


def check_output(capfd: pytest.CaptureFixture) -> str:
    """All that was printed, of which nothing but the ends of lines is a control character."""
    output = "".join(capfd.readouterr())
    assert output.replace("\n", "").isprintable(), ascii(output)
    return output


def test_what_the_names_below_would_do(capfd: pytest.CaptureFixture) -> None:
    """The check sees every one of their characters, although click removes colours where it writes to no terminal."""
    for character in NAME.replace("a", "").replace("b", "").replace("z", ""):
        if not character.isalnum() and character not in "];[\n":
            sys.stdout.write(character)
            sys.stdout.flush()
            with pytest.raises(AssertionError):
                check_output(capfd)


COMMANDS = [
    ["run", "--task", f"file:{NAME}.csv"],
    ["run", "--task", f"conllu:{NAME}:all"],
    ["run", "--task", f"senteval:{NAME}"],
    ["run", "--task", f"{NAME}:x"],
    ["run", "--task", f"grammar:{NAME}"],
    ["run", "--task", f"hf:./{NAME}"],
    ["run", "--task", f"nothing.of:{NAME}"],
    ["run", "--model", f"./{NAME}"],
    ["run", "--model", NAME],
    ["run", "--layers", NAME],
    ["run", "--readouts", NAME],
    ["run", "--probes", NAME],
    ["run", "--seed", NAME],
    ["run", "--config", NAME],
    ["run", "--config", "d.yaml"],
    ["run", "--out", f"d.csv/{NAME}"],
    ["run", "--vectors", NAME],
    ["run", f"--{NAME}"],
    ["run", NAME],
    [NAME],
    ["run", "--task", "file:d.csv", "--text-column", "text"],
    ["run", "--task", "file:d.csv", "--text-column", LINE, "--label-column", NAME],
    ["run", "--task", "file:d.csv", "--text-column", LINE],
    ["run", "--task", "file:d.csv", "--text-column", LINE, "--label-column", "x", "--split-column", "x"],
    ["run", "--task", "file:d.csv", "--text-column", "x", "--missing-labels", NAME],
    ["run", "--task", "conllu:d.conllu:all"],
    ["check", f"./{NAME}"],
    ["report", NAME],
    ["report", "m"],
    ["export", NAME],
    ["export", "m", "--format", NAME],
    ["cache", "ls", "--cache", NAME],
    ["cache", "ls", NAME],
    ["list", NAME],
    ["list", "tasks", "--task", f"file:{NAME}"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: ascii(" ".join(arguments))[:60])
def test_an_error_is_one_line_whatever_it_names(arguments: list[str], desk: Path, capfd: pytest.CaptureFixture) -> None:
    (desk / "d.csv").write_text(f"{LINE},x\n{LINE},{LINE}\nb,{LINE}\n", encoding="utf-8")
    (desk / "d.yaml").write_text(json.dumps({NAME: 1}))
    (desk / "d.conllu").write_text(f"{LINE}\t{LINE}\n", encoding="utf-8")
    (desk / "m").mkdir()
    (desk / "m" / "run.json").write_text(json.dumps({"digest": "x", "finished": True, NAME: NAME}))
    assert run(*arguments) == 2
    output = check_output(capfd)
    assert re.fullmatch(r"error: .+\n", output), output


def test_what_is_listed_is_escaped(desk: Path, capfd: pytest.CaptureFixture) -> None:
    rows = "".join(f"text {i},{LINE}{i % 2}\n" for i in range(20))
    (desk / f"{NAME}.csv").write_text("text,label\n" + rows, encoding="utf-8")
    assert run("list", "tasks", "--task", f"file:{NAME}.csv") == 0
    output = check_output(capfd)
    assert f"file:{ESCAPED}:label: 20 rows, 2 classes\n" in output
    assert f"  {printable(LINE)}1: 10\n" in output
    for key in (NAME, "x" * 32, "0" * 32):
        (desk / "cache" / key).mkdir(parents=True)
    (desk / "cache" / ("x" * 32) / NAME).write_text("not of ours")
    Store(desk / "cache", {"texts": {"count": 1, "digest": NAME}, "dtype": NAME}, name=NAME, size=1)
    assert run("cache", "ls", "--cache", desk / "cache") == 0
    assert ESCAPED in check_output(capfd)


def test_names_of_plug_ins_are_escaped(desk: Path, capfd: pytest.CaptureFixture) -> None:
    name = LINE.replace(":", "").replace("[", "").replace("]", "")
    module = f"class Odd:\n    {LINE!a}\n"
    groups = ("probes", "readouts", "sources", "studies", "plots")
    names = {f"clsprobe.{group}": {name: "odd_one:Odd", "plain": "odd_one:Odd"} for group in groups}
    install(desk / "site", "odd-one", {"odd_one.py": module}, names)
    with on_path(desk / "site"):
        for what in ("probes", "readouts", "sources", "studies", "plots", "tasks"):
            assert run("list", what) == 0
            output = check_output(capfd)
            assert "plain" in output
            assert printable(name) in output or what == "studies"  # whose names are those of commands
        assert run("--help") == 0
        assert "of the package odd-one" in check_output(capfd)
        for arguments in (["run", "--probes", name], ["run", "--readouts", name], ["plain"], [name]):
            assert run(*arguments) == 2
            assert check_output(capfd).count("\n") == 1


def test_a_run_on_odd_names_says_and_shows_them_in_escapes(desk: Path, capfd: pytest.CaptureFixture) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(120, 3)).astype(np.float32)
    np.save(desk / f"{NAME}.npy", vectors)
    labels = [f"{LINE}{int(value > 0)}" for value in vectors[:, 0]]
    rows = "".join(f"{label},{('train', 'dev', 'test')[i % 3]}\n" for i, label in enumerate(labels))
    (desk / f"{NAME}.csv").write_text(f"{LINE},side\n{rows}", encoding="utf-8")
    arguments = ["--task", f"file:{NAME}.csv", "--vectors", f"{NAME}.npy", "--label-column", LINE]
    assert run("run", *arguments, "--split-column", "side", "--out", NAME) == 0
    output = check_output(capfd)
    assert f"What do the vectors of {ESCAPED}.npy know?\n" in output
    assert f"{ESCAPED}/report.html\n" in output
    pages = [desk / NAME / "report.html", *(desk / NAME / "figures").iterdir()]
    assert len(pages) > 1
    for page in pages:
        assert page.read_text(encoding="utf-8").replace("\n", "").replace("\t", "").isprintable()
    assert run("export", NAME, "--format", "latex") == 0


def test_the_log_and_warnings_escape_their_arguments(
    desk: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn_and_log(*_: object) -> list[object]:
        warnings.warn(f"odd: {NAME}", stacklevel=1)
        log = logging.getLogger("clsprobe")
        log.info(f"plain: {NAME}")
        log.info("argument: %s, %d and %.1f", Path(NAME), 3, 0.5)
        log.info("named: %(name)s", {"name": NAME})
        log.info("first\n%s", "second")
        return [("listed", NAME)]

    monkeypatch.setattr("clsprobe.listing._list_tasks", warn_and_log)
    assert run("list", "tasks") == 0
    assert check_output(capfd).splitlines() == [
        f"listed  {ESCAPED}", f"warning: odd: {ESCAPED}", f"plain: {ESCAPED}", f"argument: {ESCAPED}, 3 and 0.5",
        f"named: {ESCAPED}", "first", "second",
    ]  # fmt: skip


def test_a_traceback_in_the_log_is_escaped() -> None:
    try:
        raise ValueError(NAME)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed: %s", (NAME,), sys.exc_info())
    text = Formatter().format(record)
    assert text.replace("\n", "").isprintable()
    assert "Traceback" in text


def test_a_message_of_another_logger_is_escaped_with_its_arguments() -> None:
    record = logging.LogRecord("plug", logging.WARNING, "", 0, f"fit %s {NAME}", (NAME,), None)
    assert Formatter().format(record) == f"fit {ESCAPED} {ESCAPED}"


def test_nothing_else_prints() -> None:
    """`typer.echo` and `print` stand in one module; the export of a table is the other, which is data."""
    for path in sorted(ROOT.glob("scripts/*.py")):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        printing = [ast.unparse(call) for call in calls if ast.unparse(call) in ("typer.echo", "print", "typer.secho")]
        allowed = {"terminal.py": 1, "finished.py": 1}.get(path.name, 0)
        assert len(printing) == allowed, path
