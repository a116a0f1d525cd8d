"""The command beside its studies: versions, completion, names with `_`, studies by their classes, wrong plug-ins."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call
from packages import on_path

import clsprobe
from clsprobe.analysis.registers import STUDIES
from clsprobe.analysis.sources.grammar import PROPERTIES
from clsprobe.listing import KINDS

STUDY = """
from typing import ClassVar
from pydantic import Field, model_validator
from clsprobe.analysis.study import Study

class Fails(Study):
    question: ClassVar[str] = "Does it fail?"
    claim: ClassVar[str] = ""
    size: int = Field(description="how large")
    wide: int = 3

    @model_validator(mode="after")
    def _check(self):
        if self.size > 5:
            raise ValueError("it is too large")
        return self

    def prepare(self):
        return [1 / 0]

    def judge(self, measured, task): ...
    def measure(self, folder=None): ...
    def show(self, measured, task): ...

class Clashes(Fails):
    out: str = "mine"
"""


def complete(capsys, monkeypatch, words: str, count: int) -> list[str]:
    """What bash completes as the last of the words, by the protocol that typer's script speaks."""
    with monkeypatch.context() as patched:
        patched.setenv("_CLSPROBE_COMPLETE", "complete_bash")
        patched.setenv("COMP_WORDS", words)
        patched.setenv("COMP_CWORD", str(count))
        assert call() == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out.split()


def test_names_flags_and_values_are_completed(capsys, monkeypatch):
    assert complete(capsys, monkeypatch, "clsprobe po", 1) == ["poolings", "positions"]
    assert {*STUDIES.built_in, "demo", "list"} <= set(complete(capsys, monkeypatch, "clsprobe ", 1))
    assert complete(capsys, monkeypatch, "clsprobe poolings --rea", 2) == ["--readouts"]
    assert complete(capsys, monkeypatch, "clsprobe poolings --readouts cls,me", 3) == ["cls,mean"]
    assert complete(capsys, monkeypatch, "clsprobe run --probes ", 3) == ["logistic", "ridge", "mlp"]
    tasks = complete(capsys, monkeypatch, "clsprobe run --task grammar:", 3)
    assert set(tasks) == {f"grammar:{name}" for name in ("demo", "all", *PROPERTIES)}
    assert complete(capsys, monkeypatch, "clsprobe list s", 2) == ["studies", "sources"]
    assert "--version" in complete(capsys, monkeypatch, "clsprobe no_such.module:Study --", 2)  # and no error


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_the_shell_is_printed(shell, capsys, monkeypatch):
    monkeypatch.setattr("typer._completion_shared._get_shell_name", lambda: shell, raising=False)
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: shell, raising=False)
    assert call("--show-completion") == 0
    assert f"_CLSPROBE_COMPLETE=complete_{shell}" in capsys.readouterr().out


def test_without_arguments_there_is_help(capsys):
    assert call() == call("--help") == 0
    alone, asked = capsys.readouterr().out.split("Usage: ")[1:]
    assert alone == asked
    assert "poolings" in alone


def test_version_says_what_is_installed_and_imports_no_torch(capsys):
    assert call("--version") == 0
    line = capsys.readouterr().out
    assert line.startswith(f"clsprobe {importlib.metadata.version('clsprobe')} (Python {sys.version_info.major}.")
    assert f"torch {importlib.metadata.version('torch')}" in line


def test_lists_help_and_versions_import_nothing_heavy():
    commands = [["--help"], ["--version"], ["poolings", "--help"], *(["list", kind] for kind in KINDS)]
    code = (
        "import sys\nfrom clsprobe.cli import main\n"
        f"for words in {commands}:\n"
        "    try: main(words)\n"
        "    except SystemExit as exit: assert not exit.code, words\n"
        "    print(words, {'torch', 'sklearn', 'pandas', 'matplotlib'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [f"{words} set()" for words in commands]


def test_studies_by_the_names_of_their_classes():
    classes = {full_name.partition(":")[2] for full_name in STUDIES.built_in.values()}
    assert classes <= set(dir(clsprobe.studies))
    for name, full_name in STUDIES.built_in.items():
        study = getattr(clsprobe.studies, full_name.partition(":")[2])
        assert f"{study.__module__}:{study.__name__}" == full_name
        assert study.command() == name
    with pytest.raises(AttributeError, match=r"there is no study 'Polings'\. Did you mean 'Poolings'\?"):
        clsprobe.studies.Polings  # noqa: B018
    stub = ast.parse(Path(clsprobe.studies.__file__).with_suffix(".pyi").read_text())
    assert {f"clsprobe.{node.module}:{alias.name}" for node in stub.body for alias in node.names} == set(
        STUDIES.built_in.values()
    )


@pytest.fixture
def desk(tmp_path, monkeypatch):
    (tmp_path / "own_studies.py").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    with on_path(tmp_path):
        yield tmp_path


FAILURES = {
    "--size 3": "clsprobe own_studies:Fails: failed (ZeroDivisionError: division by zero). --debug shows where.",
    "--size x": "--size: 'x': input should be a valid integer, unable to parse string as an integer. See --help.",
    "--size 9": "Fails: Value error, it is too large. See its settings with --help.",
    "": "--size: is missing. Give it; see --help.",
    "--siez 3": "--siez: No such option: --siez. Did you mean '--size'?",
}


@pytest.mark.parametrize(("arguments", "line"), FAILURES.items())
def test_whatever_a_study_of_ones_own_does_wrong_is_one_line(arguments, line, desk, capsys):
    assert call("own_studies:Fails", *arguments.split()) == 2
    assert capsys.readouterr().err == f"error: {line}\n"
    assert not (desk / "out").exists()


def test_a_setting_must_not_hide_a_flag_of_every_run(desk, capsys):
    assert call("own_studies:Clashes", "--help") == 2
    line = "error: clsprobe own_studies:Clashes: has a setting 'out', and --out is a flag of every run. Rename it.\n"
    assert capsys.readouterr().err == line


def test_help_of_a_study_of_ones_own(desk, capsys):
    assert call("own_studies:Fails", "--help") == 0
    text = capsys.readouterr().out
    assert "Does it fail?" in text
    assert "how large\n" in text  # no default
    assert "[default: 3]" in text
