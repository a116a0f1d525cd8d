"""Every file of examples/ runs, and says what it should; the notebooks are those that the files make."""

from __future__ import annotations

import ast
import re
import runpy
import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import nbformat
import pandas as pd
import pytest
from house import ROOT

from clsprobe.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = ROOT / "examples"
LONGEST = 60  # lines, less one
# example -> what it prints
EXTENSIONS = {
    "probe": "CentroidProbe finds a planted signal",
    "readout": r"layer readout .*\s+6 +mean +0\.\d+.*\s+6 +late +0\.\d+",
    "source": r"6 texts, 2 classes \('bad', 'good'\).*left_out={'empty text': 1}",
    "architecture": r"'leaks': False}\s+Layers \[0, 1, 2, 3\] of 16 dimensions",
    "control": r"first_letter +layer0_mean +none +shuffled\s+layer readout\s+0 +cls +0\.\d+ +NaN +0\.5",
    "baseline": r"last_word +-1 +none +0\.\d+",
    "decoder": r"Bits of a new text that a vector tells: cls [1-9]\d*\.\d, mean [1-9]\d*\.\d",
    "plot": "arrows.svg: accuracy of 3 readouts, from the first layer to the last, as arrows",
    "study": r"Yes: .* is better than .*\nNo: .* is worse than .*\nUndecided: ",
}
QUESTIONS = {
    "aggregate": r"Is \[CLS\] really an aggregate of the whole sequence\?.*readout +layer +test",
    "positions": r"Why the first token\?.*\bsep\b",
    "formation": r"How does \[CLS\] gather the sentence\?.*first +last",
    "reconstruct": r"get back the original sequence from \[CLS\]\?.*Bits of a text.*cls +-?\d+\.\d\s+mean ",
    "which_pooling": r"Is mean pooling inferior to \[CLS\]\?.*Does flattening destroy order\?.*flatten_projected at",
    "what_does_cls_know": r"What does the \[CLS\] vector know.*readout +cls +mean\s+layer",
    "in_memory": r"Is mean pooling inferior to \[CLS\]\?.*A page with all of it: reviews.html, 3 answers",
}
# `make notebooks`, which .ci/run calls, runs two of them, and README's own example is much the same as in_memory.
SLOW = {"formation", "reconstruct", "which_pooling", "what_does_cls_know", "in_memory"}


@pytest.fixture(autouse=True)
def registers_are_restored():
    """What an example adds to a mapping is gone after it."""
    from clsprobe.probes.baseline import BASELINES
    from clsprobe.probes.encoders.adapters import ADAPTERS
    from clsprobe.probes.tasks.control import CONTROLS

    with patch.dict(BASELINES), patch.dict(ADAPTERS), patch.dict(CONTROLS):
        yield


@pytest.fixture
def without_refits(monkeypatch):
    """The refits take most of the time, and have tests of their own."""
    from clsprobe.analysis.sweep.refits import REFITS

    nothing = pd.DataFrame(columns=[*REFITS]), []
    monkeypatch.setattr("clsprobe.analysis.sweep.measure._refit", lambda *settings: nothing)


def names(*, slow: bool) -> list:
    every = {**EXTENSIONS, **QUESTIONS}
    return [pytest.param(name, marks=[pytest.mark.long] * (name in SLOW)) for name in every if (name in SLOW) == slow]


@pytest.mark.parametrize("name", [*names(slow=False), *names(slow=True)])
def test_an_example_runs(name, tmp_path, monkeypatch, capsys, without_refits):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search((EXTENSIONS | QUESTIONS)[name], printed, re.DOTALL), printed


def test_every_example_is_run():
    files = {path.stem for path in EXAMPLES.glob("*.py")} - {"build_notebooks"}
    assert files == {*EXTENSIONS, *QUESTIONS}


@pytest.mark.parametrize("name", [*EXTENSIONS, *QUESTIONS])
def test_an_example_is_short_and_says_what_it_is(name):
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < LONGEST
    title = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    assert len(title) > 30
    if name in EXTENSIONS:
        assert re.search("of your own", title)
        recipes = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        assert f"(examples/{name}.py)" in recipes


def test_the_names_that_the_examples_give_for_the_command_line_work(tmp_path, monkeypatch, capsys):
    """Those in the docstrings, in a folder that has only these files."""
    for name in EXTENSIONS:
        shutil.copy(EXAMPLES / f"{name}.py", tmp_path)
    for text, folder in (("a fine film", "good"), ("a dull film", "bad")):
        (tmp_path / "corpus" / folder).mkdir(parents=True)
        for number in range(30):
            (tmp_path / "corpus" / folder / f"{number}.txt").write_text(f"{text}, number {number}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    commands = (
        "run --probes logistic,probe:CentroidProbe --task grammar:tense:150",
        "run --readouts cls,readout:LateTokens --task grammar:tense:150",
        "run --task source:load:corpus",
        "study:MaxPooling --task grammar:tense:150",
    )
    docstrings = " ".join(
        " ".join((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").split()) for name in EXTENSIONS
    )
    try:
        for command in commands:
            with pytest.raises(SystemExit) as ended:
                main([*command.split(), "--dry-run"])
            assert ended.value.code == 0, capsys.readouterr().err
            begins = " ".join(command.split()[:3]).removesuffix(":corpus").removesuffix(" grammar:tense:150")
            assert f"clsprobe {begins}" in docstrings
    finally:
        for name in EXTENSIONS:
            sys.modules.pop(name, None)


# ----------------------------------------------------------------------------------------------------------- notebooks


@pytest.fixture(scope="module")
def builder() -> dict:
    return runpy.run_path(str(EXAMPLES / "build_notebooks.py"))


def test_the_notebooks_are_what_the_examples_make(builder):
    files = {path.stem: path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.ipynb")}
    assert {*files} == {*builder["NAMES"]}
    for name, text in files.items():
        notebook = builder["build_notebook"]((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
        assert text == nbformat.writes(notebook) + "\n", "make notebooks"
        for cell in notebook.cells:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None


def test_cells_become_text_and_code(builder):
    text, code = "# %% [markdown]\n# ## Part\n#\n# Text.\n", "# %%\nx = 1\nprint(x)\n\n# %%\ny = f(x)\n"
    source = f'"""A title.\n\nMore.\n"""\n\n{text}\n{code}'
    title, part, first, second = builder["build_notebook"](source).cells
    assert (title.cell_type, title.source) == ("markdown", "# A title.\n\nMore.")
    assert (part.cell_type, part.source) == ("markdown", "## Part\n\nText.")
    assert (first.cell_type, first.source) == ("code", "x = 1\nx")
    assert (second.cell_type, second.source) == ("code", "y = f(x)")


def test_notebooks_are_written_next_to_their_examples(builder, tmp_path, monkeypatch):
    for name in builder["NAMES"]:
        shutil.copy(EXAMPLES / f"{name}.py", tmp_path)
    builder["main"].__globals__["HERE"] = Path(tmp_path)
    builder["main"]([])
    for name in builder["NAMES"]:
        assert (tmp_path / f"{name}.ipynb").read_bytes() == (EXAMPLES / f"{name}.ipynb").read_bytes()
