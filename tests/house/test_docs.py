"""The documentation runs.

In README.md, CONTRIBUTING.md and docs/*.md
  ```python     runs in a namespace and a folder of its own; ``<!-- test: skip REASON -->`` above it: not at all
  ```console, ```bash
                every line that starts with `clsprobe` names a command and flags that exist;
                ``<!-- test: run -->`` above it: the whole snippet runs, in a folder of its own
and the examples in docstrings give what they say.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

import pytest
from house import ROOT, modules

import clsprobe

PAGES = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.exists()
]
SNIPPET = re.compile(
    r"^(?:<!-- test: (?P<mark>[^\n]*?) -->\n+)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Snippet:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    code: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def snippets(page: str, text: str, *languages: str) -> list[Snippet]:
    return [
        Snippet(page, text.count("\n", 0, m.start("code")), m["language"], m["code"], m["mark"] or "")
        for m in SNIPPET.finditer(text)
        if m["language"] in languages
    ]


def all_snippets(*languages: str) -> list[Snippet]:
    return [s for path in PAGES for s in snippets(path.name, path.read_text(encoding="utf-8"), *languages)]


def commands(snippet: Snippet) -> list[list[str]]:
    """The words of every line that starts with clsprobe, a prompt before it or not, continued lines joined."""
    lines = snippet.code.replace("\\\n", " ").splitlines()
    lines = [line.removeprefix("$ ").strip() for line in lines]
    return [shlex.split(line, comments=True) for line in lines if line.split(" ")[0] == "clsprobe"]


@cache
def help_of(*words: str) -> str:
    """What `clsprobe WORDS --help` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "clsprobe", *words, "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_snippets_are_found():
    python = "<!-- test: skip no file -->\n```python\nx\n```\n"
    console = "```console\n$ clsprobe run \\\n  --task 'a b'  # why\nout\n```\n"
    first, second = snippets("page", f"a\n\n{python}\n{console}", "python", "console")
    assert (first.code, first.mark, first.line) == ("x\n", "skip no file", 4)
    assert commands(second) == [["clsprobe", "run", "--task", "a b"]]


def test_contributing_names_what_there_is():
    """Files and folders of the repository, links to them, and public names."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = "probes|analysis|reports|scripts|examples|tests|docs|benchmarks"
    paths = re.findall(rf"`((?:{folders})/[\w./]*)`", text) + re.findall(r"\]\(([\w./]+)\)", text)
    paths += re.findall(rf"python (?:-m pytest -q )?((?:{folders})/[\w./]+)", text)
    assert len(paths) > 30
    assert not [path for path in paths if not (ROOT / path).exists()]
    names = set(re.findall(r"\bclsprobe\.([A-Za-z]\w*)", text)) - {"probes", "readouts"}  # groups of entry points
    assert {"check_probe", "Weighted", "Loaded"} <= names
    # a package is an attribute only once something has imported it
    assert not [name for name in names if not hasattr(clsprobe, name) and not find_spec(f"clsprobe.{name}")]


@pytest.mark.parametrize("snippet", all_snippets("python"), ids=str)
def test_python_runs(snippet, tmp_path, monkeypatch):
    if snippet.mark.startswith("skip"):
        pytest.skip(snippet.mark.removeprefix("skip").strip())
    monkeypatch.chdir(tmp_path)
    # Blank lines before it, so that a traceback names the line of the page.
    code = compile("\n" * snippet.line + snippet.code, snippet.page, "exec")
    exec(code, {"__name__": "__snippet__"})


@pytest.mark.parametrize("snippet", [s for s in all_snippets("console", "bash") if commands(s)], ids=str)
def test_commands_and_their_flags_exist(snippet):
    for _, *words in commands(snippet):
        command = list(takewhile(lambda word: not word.startswith("-"), words))
        known = help_of(*command)
        for flag in (word.split("=")[0] for word in words if word.startswith("--")):
            assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", known), f"{' '.join(command)} has no {flag}"


@pytest.mark.parametrize("snippet", [s for s in all_snippets("console", "bash") if s.mark == "run"], ids=str)
def test_marked_commands_run(snippet, tmp_path):
    script = "\n".join(line.removeprefix("$ ") for line in snippet.code.splitlines())
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [m.name for m in modules() if ">>>" in m.path.read_text(encoding="utf-8")])
def test_docstrings_run(name):
    failed, tried = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert tried > 0
    assert failed == 0
