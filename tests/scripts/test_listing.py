"""`clsprobe list`: what reads a task in a study reads it here too."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
from commands import call

import clsprobe.analysis.sources
import clsprobe.probes.tasks
from clsprobe.analysis.settings import TaskSettings
from clsprobe.listing import list_choices

ROWS = "text;label\ncafé;x\n;y\nthree;NA\nfour;X\nfive;y\nsix;y\nseven;x\n"
OF_OTHERS = {"allow_overlap", "vectors"}  # of checks behind the reading of a source


def recommended_flags() -> dict[str, set[str]]:
    """Flag -> the modules of sources and tasks whose messages name it."""
    flags: dict[str, set[str]] = {}
    for package in (clsprobe.analysis.sources, clsprobe.probes.tasks):
        for path in Path(package.__path__[0]).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = []
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    names = [match[2:] for match in re.findall(r"--[a-z][a-z-]+", node.value)]
                elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".flag"):
                    names = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
                for name in names:
                    flags.setdefault(name.replace("-", "_"), set()).add(path.name)
    return flags


def test_every_flag_that_an_error_of_a_source_recommends_is_there():
    flags = recommended_flags()
    assert {"encoding", "sep", "quoting", "no_header", "drop_empty", "split_column", "missing_labels"} <= flags.keys()
    settings = {name: modules for name, modules in flags.items() if name in TaskSettings.model_fields}
    missing = settings.keys() - OF_OTHERS - inspect.signature(list_choices).parameters.keys()
    assert not missing, {name: flags[name] for name in missing}


def test_flags_read_as_in_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("d.csv").write_bytes(ROWS.encode("cp1252"))
    flags = ["--sep", ";", "--encoding", "cp1252", "--drop-empty", "--missing-labels", "NA", "--merge-labels"]
    assert call("list", "tasks", "--task", "d.csv", *flags) == 0
    output = capsys.readouterr().out
    assert output.startswith("file:d:label: 5 rows, 2 classes\n  x: 3\n  y: 2\n")
    assert "left out, empty text: 1\n" in output
    assert "left out, label that stands for none: 1\n" in output
    assert call("list", "tasks", "--task", "d.csv", "--task", "grammar:tense:20") == 2
    assert "--encoding cp1252" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tasks", "--sep", ";"], "--sep: says how a task is read, and no task is named. Name it with --task."),
        (["probes", "--drop-empty"], "--drop-empty: says nothing about probes. Use clsprobe list tasks."),
        (["tasks", "--task", "d.csv", "--target", "clas"], "--target: unknown value 'clas'. Did you mean 'class'?"),
    ],
)
def test_flags_that_do_not_fit(words, says, capsys):
    assert call("list", *words) == 2
    assert capsys.readouterr().err.startswith(f"error: {says}")


def test_a_flag_that_one_task_uses_is_accepted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("d.csv").write_text("text,label\nred,x\ngreen,y\nblue,x\ngrey,y\n")
    Path("d.txt").write_text(
        "".join(f"{side}\t{n % 2}\tdo n't {side} {n}\n" for side in ("tr", "va", "te") for n in range(9))
    )
    assert call("list", "tasks", "--task", "d.csv", "--task", "senteval:d.txt", "--detokenise") == 0
    assert call("list", "tasks", "--task", "d.csv", "--detokenise") == 2
    assert "--detokenise: is for senteval: tasks, and file:d.csv is none." in capsys.readouterr().err
