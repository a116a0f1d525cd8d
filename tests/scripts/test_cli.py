"""The command: every mistake is one line and exit code 2, at once; and a whole run, small, from end to end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from commands import call

from clsprobe.analysis.registers import STUDIES, load_study
from clsprobe.analysis.table import check_results


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "d.csv"
    sizes = ("small", "big")
    rows = [f"the {sizes[i % 2]} house number {i} is here,{i % 2}" for i in range(200)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="a CUDA device is here")
def test_a_device_that_is_absent_is_refused(capsys):
    assert call("run", "--device", "cuda") == 2
    assert capsys.readouterr().err == "error: --device cuda: no CUDA device here. Use --device cpu.\n"


def test_mistakes_and_help_import_no_torch_and_answer_at_once(table):
    code = (
        "import sys\nfrom clsprobe.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as exit: sys.exit(9 if {'torch', 'sklearn', 'umap'} & set(sys.modules) else exit.code)\n"
    )
    for arguments, expected in (
        (["--help"], 0),
        (["run", "--help"], 0),
        (["list", "readouts"], 0),
        (["run", "--task", f"file:{table}", "--label-column", "lable"], 2),
        (["run", "--task", f"file:{table}", "--probes", "nope"], 2),
        (["run", "--task", f"file:{table}", "--layers", "99"], 2),
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == expected, (arguments, done.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--readouts", "cls,token[40]"], r"token\[40\]: 50 of 50 texts are shorter\. Leave this readout out"),
        (
            ["--max-length", "5"],
            r"d\.csv:3: the text has 9 tokens, and 5 is the limit \(likewise lines .*Pass --long-rows truncate or drop",
        ),
    ],
)
def test_what_only_the_tokenizer_sees_leaves_nothing_behind(arguments, message, table, tmp_path, capsys):
    out = tmp_path / "out"
    command = ("run", "--task", f"file:{table}", "--layers", "0", "--max-texts", "50", "--quiet")
    assert call(*command, *arguments, "--out", out) == 2
    assert re.fullmatch(rf"error: {message}.*\n", capsys.readouterr().err)
    assert not out.exists()


def test_dashes_and_underscores_are_the_same(table, capsys):
    assert call("run", "--task", f"file:{table}", "--label_column", "label", "--max_texts=50", "--dry_run") == 0
    assert "file:d:label: 50 texts, 2 classes" in capsys.readouterr().out


def test_every_study_is_a_sub_command_with_its_fields_as_flags(capsys):
    for name in STUDIES.built_in:
        assert call(name, "--help") == 0
        help_text = capsys.readouterr().out
        assert all("--" + field.replace("_", "-") in help_text for field in load_study(name).model_fields)


def test_lists(capsys):
    for what, expected in (
        ("models", "all-MiniLM-L6-v2"), ("tasks", "grammar:tense"), ("readouts", "token[K]"),
        ("probes", "Multinomial logistic regression"), ("studies", "Is mean pooling inferior to [CLS]?"),
        ("sources", "Universal Dependencies"), ("plots", "token_strips"), ("readouts", "flatten_projected"),
        ("readouts", "cat(A,B)"),
    ):  # fmt: skip
        assert call("list", what) == 0
        assert expected in capsys.readouterr().out


SMALL = ("--layers", "0,6", "--readouts", "cls,mean,token1", "--max-texts", "200")


def test_a_run_from_a_table_to_a_page(table, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("run", "--task", f"file:{table}", *SMALL, "--out", out, "--quiet") == 0
    assert capsys.readouterr().out == f"{out}/report.html\n"
    run = json.loads((out / "run.json").read_text())
    assert run["finished"]
    assert run["failed"] == []
    assert run["rows"]["file:d:label"]["rows"] == 200
    results = check_results(pd.read_parquet(out / "results.parquet"))
    assert set(results.control) == {
        "none", "shuffled", "untrained", "majority", "length", "bag_of_words", "layer0_mean"
    }  # fmt: skip
    predictions = pd.read_parquet(out / "predictions.parquet")
    key = ["control", "layer", "readout", "probe", "seed", "split"]
    correct = (predictions.label.astype(str) == predictions.predicted.astype(str)).groupby(
        [predictions[name] for name in key], observed=True
    )
    accuracy = results[results.metric == "accuracy"].set_index(key).value
    assert (correct.mean() - accuracy).abs().max() < 1e-9
    page = (out / "report.html").read_text()
    assert "What does the [CLS] vector know" in page
    assert "Self-check: layer-0 [CLS]" in page
    assert "equals the majority rate" in page

    assert call("run", "--task", f"file:{table}", *SMALL, "--out", out) == 2
    assert "holds a finished run. Pass --overwrite" in capsys.readouterr().err
    assert call("report", out, "--out", tmp_path / "again.html") == 0
    assert call("export", out, "--format", "latex") == 0
    assert r"\begin{tabular}" in capsys.readouterr().out
    assert call("export", out, "--out", tmp_path / "t.csv") == 0
    assert len(pd.read_csv(tmp_path / "t.csv")) == len(results)

    # the same run, interrupted after its measurement, is resumed without measuring again
    facts = {name: run[name] for name in ("rows", "read", "model", "versions")}
    tables = ["results", "predictions", "projection", "disagreements", "learning", "information"]
    measured = {"tables": tables, "facts": facts, "notes": ["kept"], "failures": []}
    (out / "run.json").write_text(json.dumps({**run, "finished": False, "measured": measured}))
    before = (out / "results.parquet").stat().st_mtime_ns
    assert call("run", "--task", f"file:{table}", *SMALL, "--out", out, "--quiet") == 0
    assert (out / "results.parquet").stat().st_mtime_ns == before
    assert json.loads((out / "run.json").read_text())["finished"]


def test_a_probe_of_ones_own_by_its_class(table, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("from sklearn.naive_bayes import GaussianNB\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    arguments = ("--layers", "6", "--readouts", "cls,mean", "--probes", "logistic,mine:GaussianNB")
    assert call("run", "--task", f"file:{table}", *arguments, "--out", tmp_path / "out", "--quiet") == 0
    assert set(pd.read_parquet(tmp_path / "out" / "results.parquet").probe) == {"logistic", "mine:GaussianNB", "none"}


def test_a_probe_that_fails_spoils_its_cells_only(table, tmp_path, monkeypatch, capsys):
    (tmp_path / "faulty.py").write_text(
        "from sklearn.base import BaseEstimator, ClassifierMixin\n"
        "class Faulty(ClassifierMixin, BaseEstimator):\n"
        "    def fit(self, X, y): raise ZeroDivisionError('no')\n"
        "    def predict(self, X): return X\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    arguments = ("--layers", "6", "--readouts", "cls,mean", "--probes", "logistic,faulty:Faulty")
    assert call("run", "--task", f"file:{table}", *arguments, "--out", tmp_path / "out", "--quiet") == 2
    assert "ZeroDivisionError: no" in capsys.readouterr().err
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["finished"]
    assert len(run["failed"]) == 4  # two cells, trained and untrained
    assert "ZeroDivisionError" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "clsprobe", "run", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("encoding"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    message = f"stopped; the same command goes on: clsprobe run --out {tmp_path / 'out'}"
    assert errors.strip().splitlines()[-1] == message
    assert "Traceback" not in errors


INTERRUPTED = """
import os, signal, sys
from clsprobe.__main__ import main

class Interrupt:
    def find_spec(name, *_):
        if name == "clsprobe.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt)
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_while_the_command_is_imported_prints_nothing():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
