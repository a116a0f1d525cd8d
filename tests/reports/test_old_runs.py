"""Runs of clsprobe 0.1.0 still open: their answers load and draw, their page and tables can be made again.

tests/data/runs_of_0_1 was written by that version: `run`, `geometry` and `formation` on the built-in sentences, without
figures, vectors and predictions.
"""

from __future__ import annotations

import json
import shutil

import pytest
from commands import call
from house import ROOT

from clsprobe.analysis.answer import Answer
from clsprobe.cli import main
from clsprobe.probes.errors import InputError
from clsprobe.reports.page import render_page

RUNS = sorted((ROOT / "tests" / "data" / "runs_of_0_1").iterdir())


@pytest.mark.parametrize("path", [path for run in RUNS for path in run.glob("answers/*.json")], ids=lambda p: p.stem)
def test_every_exhibit_of_an_old_answer_draws(path):
    answer = Answer.load(path)
    assert answer.question.endswith("?")
    assert {exhibit.plot for exhibit in answer.exhibits if exhibit.plot}
    for exhibit in answer.exhibits:
        if exhibit.plot:
            assert exhibit.draw().axes


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_page_of_an_old_run_is_made_again(run, tmp_path, capsys):
    page = tmp_path / "page.html"
    with pytest.raises(SystemExit) as exit:
        main(["report", str(run), "--out", str(page)])
    assert exit.value.code == 0
    text = page.read_text(encoding="utf-8")
    for path in run.glob("answers/*.json"):
        assert Answer.load(path).question.replace("'", "&#39;") in text


def test_the_results_of_an_old_run_are_exported(capsys):
    run = next(run for run in RUNS if run.name == "run")
    for format in ("csv", "latex"):
        with pytest.raises(SystemExit) as exit:
            main(["export", str(run), "--format", format])
        assert exit.value.code == 0
        assert "grammar" in capsys.readouterr().out


def test_a_page_is_made_of_the_answers_that_a_run_lists(tmp_path):
    run, page = tmp_path / "run", tmp_path / "page.html"
    shutil.copytree(next(run for run in RUNS if run.name == "geometry"), run)
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(content | {"files": ["answers/geometry.json"]}), encoding="utf-8")
    (run / "answers" / "draft.json").write_text("mine")
    assert call("report", run, "--out", page) == 0
    assert "What kind of space is it?" in page.read_text(encoding="utf-8")


def read_poolings(folder, **verdict):
    """The answer `poolings` of an old run, with other values in its verdict."""
    for path in (ROOT / "tests" / "data" / "runs_of_0_1" / "run" / "answers").glob("poolings.*"):
        shutil.copy(path, folder / path.name)
    content = json.loads((folder / "poolings.json").read_text(encoding="utf-8"))
    content["verdict"] |= verdict
    (folder / "poolings.json").write_text(json.dumps(content), encoding="utf-8")
    return Answer.load(folder / "poolings.json")


def test_an_old_answer_over_several_tasks_has_no_interval(tmp_path):
    task = {"outcome": "yes", "because": "On a, mean is better.", "effect": 0.2, "low": 0.1, "high": 0.3, "parts": {}}
    answer = read_poolings(tmp_path, outcome="yes", because="Of 2 tasks: yes on 2.", parts={"x:a": task, "x:b": task})
    assert answer.verdict.sentence.endswith("It was found: yes. Of 2 tasks: yes on 2.")
    assert "Random-effects mean" not in render_page({"poolings": answer})


@pytest.mark.parametrize("parts", [None, [], 3])
def test_an_old_answer_whose_tasks_are_damaged_is_refused(tmp_path, parts):
    with pytest.raises(InputError, match=r"verdict\.parts"):
        read_poolings(tmp_path, parts=parts)
