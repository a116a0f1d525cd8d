"""A measured run is never lost: what cannot be judged, shown or drawn is said on the page, and all else is there."""

from __future__ import annotations

import html
import json
import os
import sys

import numpy as np
import pandas as pd
import pytest
from commands import call
from safetensors.numpy import save_file
from tables import first, judge, measured, predictions

from clsprobe import execution
from clsprobe.aggregate import Aggregate
from clsprobe.analysis.answer import Answer, Exhibit
from clsprobe.analysis.fine_tuning.tables import results_of
from clsprobe.analysis.plots import PLOTS
from clsprobe.analysis.plots.style import DEFINED
from clsprobe.analysis.registers import further_studies
from clsprobe.analysis.verdict import MissingEvidence, Verdict
from clsprobe.poolings import Poolings
from clsprobe.probes.errors import InputError
from clsprobe.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")

N = 200
SIDES = ["train"] * 120 + ["dev"] * 40 + ["test"] * 40
OF_CELL = """
import numpy as np
from sklearn.linear_model import LogisticRegression


class Probe(LogisticRegression):
    def fit(self, X, y):
        if {condition}:
            raise ZeroDivisionError("no")
        return super().fit(X, y)
"""


def write_table(path, side_without_words=None):
    """A word of every text stands in ten texts of train and more, but on the named side in no other text."""
    rows = []
    for i, side in enumerate(SIDES):
        word = f"{'abcdefghij'[i % 10]}film"
        if side == side_without_words:
            word = f"{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10 % 10]}kino"
        rows.append(f"{'the ' * (1 + i // 30)}{word}{' the' * (i % 2)},{'good' if i % 2 else 'bad'},{side}\n")
    path.write_text("text,label,split\n" + "".join(rows))
    return path


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A table and vectors of two readouts, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(
        "clsprobe.analysis.sweep.measure.compute_umap", lambda vectors, seed: (vectors[:, :2], 1.0)
    )  # slow, and of no interest here
    write_table(tmp_path / "d.csv")
    random = np.random.default_rng(0)
    cells = {"cls": random.normal(size=(N, 4)), "mean": random.normal(size=(N, 4)) + 100}
    save_file({f"layer.01/{name}": cell.astype(np.float32) for name, cell in cells.items()}, tmp_path / "v.safetensors")
    return tmp_path


def run(*more, table="d.csv"):
    arguments = ("--task", f"file:{table}", "--vectors", "v.safetensors", "--text-column", "text")
    return call("run", *arguments, "--split-column", "split", "--allow-overlap", "--out", "out", "--quiet", *more)


def read_run():
    with open("out/run.json", encoding="utf-8") as file:
        return json.load(file)


def read_page():
    with open("out/report.html", encoding="utf-8") as file:
        return html.unescape(file.read())


def note_of_control_task(side):
    return f"d: label: no selectivity, since no text on {side} holds exactly one word of the control task's list."


def test_a_control_without_labels_on_test(inputs):
    write_table(inputs / "d.csv", "test")
    assert run() == 0
    page = read_page()
    assert note_of_control_task("test") in page
    assert "control task (word types)" not in page
    assert read_run()["failed"] == []


def fail(folder, monkeypatch, condition):
    (folder / "failing_in_cells.py").write_text(OF_CELL.format(condition=condition))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("failing_in_cells", None)
    return "--probes", "failing_in_cells:Probe"


def test_a_probe_that_fails_in_every_cell(inputs, monkeypatch, capsys):
    assert run(*fail(inputs, monkeypatch, "True")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --probes: probe 'failing_in_cells:Probe' failed on layer 1, ")
    assert error.count("\n") == 1
    content = read_run()
    assert content["finished"]
    assert content["verdicts"] == dict.fromkeys(["run", "aggregate", "poolings"], "undecided")
    assert set(content["answers"].values()) == {"Not answered on d: label: no probe could be fitted in any cell."}
    assert "majority" in set(pd.read_parquet("out/results.parquet").control)
    page = read_page()
    assert page.count("Not answered on d: label: no probe could be fitted in any cell.") == 6  # index and answers
    assert "What was measured on test." in page
    assert ">nan<" not in page.lower()


# ----------------------------------------------------------------------------------------------------- in memory


def answers_in_memory(**settings):
    """The answers to all questions of `clsprobe run`, by name, and the failures."""
    columns = {"text_column": "text", "split_column": "split"}
    study = Run(task="file:d.csv", vectors="v.safetensors", allow_overlap=True, **columns, **settings)
    result = study.run(others=further_studies(type(study)))
    return result.answers, [sentence for sentence, _ in result.failures]


def test_a_control_without_labels_on_dev(inputs):
    write_table(inputs / "d.csv", "dev")
    answers, failures = answers_in_memory()
    assert not failures
    assert [note for note in answers["run"].notes if note_of_control_task("dev") in note]
    assert all(answer.verdict.is_judged for answer in answers.values())


@pytest.mark.parametrize("cells", ["mean", "cls"])
def test_cells_in_which_the_probe_failed(inputs, monkeypatch, cells):
    """Without cls the best of all cells is judged; the questions that compare both say that they cannot be answered."""
    _, name = fail(inputs, monkeypatch, "X.mean() > 50" if cells == "mean" else "X.mean() < 50")
    answers, failures = answers_in_memory(probes=name)
    assert {name: answer.verdict.is_judged for name, answer in answers.items()} == {
        "run": True,
        "aggregate": False,
        "poolings": False,
    }
    because = f"Not answered on d: label: there are no predictions of {cells} on dev and test."
    assert answers["poolings"].verdict.sentence == because
    assert because in failures
    where = f"probe 'failing_in_cells:Probe' failed on layer 1, {cells} (file:d:label)"
    assert failures[0].startswith(f"{where}: ZeroDivisionError")


def break_off(*_, **__):
    raise ZeroDivisionError("no")


def test_a_detail_that_fails_leaves_the_sweep(inputs, monkeypatch):
    monkeypatch.setattr("clsprobe.analysis.sweep.measure.compute_umap", break_off)
    answers, failures = answers_in_memory()
    assert failures == ["the maps of file:d:label failed: ZeroDivisionError: no"]
    assert failures[0] in answers["run"].notes
    assert answers["run"].verdict.is_judged
    too_few = "40 test texts with exactly one word of the control task's list are too few (100 are needed)"
    assert f"d: label: no selectivity, since {too_few}." in answers["run"].notes


@pytest.mark.parametrize("part", ["judge", "show", "note"])
def test_a_question_that_cannot_be_answered_leaves_the_others(monkeypatch, part):
    cells = {("none", 3, name): (first(0.9), first(0.9)) for name in ("cls", "mean")}
    table = predictions(cells | {("majority", -1, "none"): (first(0.5), first(0.5))})
    monkeypatch.setattr(Poolings, part, break_off)
    monkeypatch.setattr(
        Aggregate,
        "measure",
        lambda _: measured(predictions=table, results=results_of(table, {"file:made:label": 1}, ())),
    )
    result = Aggregate().run(others=[Poolings])
    assert result.answers["aggregate"].verdict.is_judged
    poolings = result.answers["poolings"]
    assert poolings.verdict.is_judged == (part != "judge")
    ((sentence, error),) = result.failures
    assert poolings.failures == {sentence: error}
    assert sentence.endswith("ZeroDivisionError: no.")
    assert sentence in (poolings.verdict.sentence, *poolings.notes)
    assert poolings.exhibits
    assert isinstance(error, ZeroDivisionError)


def test_a_figure_that_cannot_be_drawn_is_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(DEFINED, PLOTS.built_in["curves"], break_off)
    table = predictions({("none", 3, name): (first(0.9), first(0.9)) for name in ("cls", "mean")})
    monkeypatch.setattr(Poolings, "measure", lambda *_: measured(predictions=table))
    monkeypatch.setattr(Poolings, "contents", lambda _: {})
    monkeypatch.setattr(Poolings, "prepare", lambda _: [])
    with pytest.raises(InputError) as caught:
        execution.execute("poolings", Poolings(), str(tmp_path / "out"), overwrite=False, dry=False)
    what = "A figure of poolings cannot be drawn: ZeroDivisionError: no"
    assert str(caught.value) == f"{tmp_path / 'out'}: {what}. The rest is in the report."
    assert isinstance(caught.value.__cause__, ZeroDivisionError)  # for --debug
    answer = Answer.load(tmp_path / "out" / "answers" / "poolings.json")
    assert [exhibit.plot for exhibit in answer.exhibits] == ["differences", None]
    assert len(answer.exhibits[1].table)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["failed"] == [f"{what}."]


def test_a_cell_that_failed_under_one_seed_is_not_compared():
    """Its texts are not those of the others."""
    cells = {("none", 3, name): (first(0.9), first(0.9)) for name in ("cls", "mean")}
    cells |= {("none", 2, "mean"): (first(1.0), first(1.0)), ("majority", -1, "none"): (first(0.5), first(0.5))}
    table = pd.concat([predictions(cells), predictions(cells, seed=1)], ignore_index=True)
    failed = table[(table.seed == 0) | (table.layer != 2)]
    assert "mean pooling (layer 2) is better than [CLS] (layer 3) by 10.0 points" in judge(Poolings(), table).sentence
    assert "mean pooling (layer 3) minus [CLS] (layer 3) is 0.0 points" in judge(Poolings(), failed).sentence
    with pytest.raises(MissingEvidence, match="no predictions of mean"):
        judge(Poolings(), table[(table.seed == 0) | (table.readout != "mean")])
    with pytest.raises(MissingEvidence, match="failed in every cell under one of the seeds"):
        judge(Run(), table[(table.seed == 0) | (table.control != "none")])


def test_a_task_without_an_answer_leaves_the_other_tasks():
    good = predictions({("none", 3, name): (first(0.9), first(0.9)) for name in ("cls", "mean")})
    bad = good[(good.readout == "cls")].assign(task="file:other:label")
    answer = Poolings().answer(measured(predictions=pd.concat([good, bad])))
    assert {task: part.is_judged for task, part in answer.verdict.parts.items()} == {
        "file:made:label": True,
        "file:other:label": False,
    }
    assert answer.verdict.sentence.startswith(
        "Undecided: of 2 tasks no on 1 (made: label), not answered on 1 (other: label). Mean pooling minus [CLS], "
    )
    assert list(answer.failures) == ["Not answered on other: label: there are no predictions of mean on dev and test."]


def test_no_task_is_answered():
    verdicts = {name: Verdict.unjudged("Not answered.") for name in ("a:a", "b:b")}
    assert Verdict.over(verdicts).sentence == "Undecided: of 2 tasks not answered on 2 (a, b)."
    assert not Verdict.over(verdicts).is_judged


def test_a_question_whose_table_is_missing_says_so():
    answer = Aggregate().answer(measured(other=pd.DataFrame({"task": ["file:made:label"]})))
    assert answer.verdict.sentence == "Not answered on made: label: the table predictions was not measured."


def test_a_missing_effect_survives_the_disk(tmp_path):
    Answer("Q?", "C", Verdict.unjudged("Not answered."), (Exhibit("x", pd.DataFrame({"a": [1]})),)).save(
        tmp_path / "a.json"
    )
    text = (tmp_path / "a.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["verdict"]["effect"] is None
    assert not Answer.load(tmp_path / "a.json").verdict.is_judged
    assert "nan" not in Answer.load(tmp_path / "a.json")._repr_html_()


def test_what_is_missing_is_an_error_of_its_own():
    rows = predictions({("none", 3, "cls"): (first(0.9), first(0.9))})
    with pytest.raises(MissingEvidence, match="no predictions of any baseline on dev and test"):
        judge(Run(), rows)


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names there are Unicode")
def test_names_of_files_that_are_not_utf_8(inputs, capfd):
    name = os.fsdecode(b"caf\xe9")
    for suffix in (".csv", ".safetensors"):
        (inputs / f"{'d' if suffix == '.csv' else 'v'}{suffix}").rename(inputs / f"{name}{suffix}")
    vectors = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
    np.save(inputs / f"{name}.npy", vectors)
    out = f"out-{name}"
    arguments = ("--task", f"file:{name}.csv", "--vectors", f"{name}.npy", "--allow-overlap", "--out", out, "--quiet")
    assert call("run", *arguments) == 0
    assert capfd.readouterr().out == "out-caf\\udce9/report.html\n"
    assert call("report", out, "--out", f"{name}.html") == 0
    assert call("export", out, "--out", f"{name}-exported.csv") == 0
    assert "caf\\udce9" in (inputs / f"{name}.html").read_text(encoding="utf-8")
    content = json.loads((inputs / out / "run.json").read_text(encoding="utf-8"))
    assert content["settings"]["task"] == [f"file:{name}.csv"]
    assert [*content["rows"]] == ["file:caf\\udce9:label"]
    assert set(pd.read_csv(inputs / f"{name}-exported.csv").model) == {"caf\\udce9.npy"}
    # and it is resumed
    (inputs / out / "run.json").write_text(json.dumps(content | {"finished": False}), encoding="utf-8")
    assert call("run", *arguments) == 0
