"""What `measure` leaves is what `judge` and `show` take: in Python a study is three calls, without the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import models
import numpy as np
import pandas as pd
import pytest

from clsprobe import studies
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.registers import STUDIES, further_studies, load_study
from clsprobe.analysis.study import Study
from clsprobe.analysis.verdict import Verdict

SMALL_TRAINING = {"train_texts": 32, "max_length": 16}
SETTINGS = {  # command -> what keeps its measurement small
    "aggregate": {"readouts": "cls,mean"},
    "fine-tuning": SMALL_TRAINING | {"epochs": 1, "readouts": "cls,mean", "rates": "1e-4", "seeds": 1},
    "formation": {},
    "geometry": {"readouts": "cls,mean,random"},
    "order": {"layers": "1", "readouts": "cls,mean,flatten_projected"},
    "poolings": {"readouts": "cls,mean"},
    "positions": {"readouts": "cls,sep"},
    "reconstruct": {"readouts": "cls", "decoders": "bag", "written": 10, "corrections": 0, "beams": 1},
    "run": {"readouts": "cls,sep,mean"},
    "trajectory": SMALL_TRAINING | {"checkpoints": "./MODEL,./OTHER"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two small encoders of random weights, and texts of their words, labelled by one of these."""
    folder = tmp_path_factory.mktemp("studies")
    for name in ("MODEL", "OTHER"):
        models.save("bert", folder / name, layers=2)
    words, rng = [word for word in models.WORDS if word.isalpha()], np.random.default_rng(0)
    texts = list(dict.fromkeys(" ".join(rng.choice(words, rng.integers(3, 9))) for _ in range(240)))
    rows = [f"{text},{'yes' if words[0] in text.split() else 'no'}" for text in texts]
    (folder / "words.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def measure(folder, one_thread):
    """A function from a command to its study and what it has measured, which is measured once."""

    @cache
    def measure(command: str) -> tuple[Study, Measured]:
        kind = load_study(command)
        settings = {"task": "file:words.csv", "device": "cpu", **SETTINGS[command]}
        settings |= {"model": "./MODEL"} if "model" in kind.model_fields else {}
        settings |= {"allow_overlap": True} if "allow_overlap" in kind.model_fields else {}
        study = kind(**settings)
        with pytest.MonkeyPatch.context() as patched:
            patched.chdir(folder)
            for module in ("sweep", "geometry"):
                plain = lambda vectors, seed: (vectors[:, :2], 1.0)  # noqa: E731
                patched.setattr(f"clsprobe.analysis.{module}.measure.compute_umap", plain)
            return study, study.measure()

    return measure


@pytest.mark.parametrize("command", SETTINGS)
def test_a_study_judges_and_shows_what_it_has_measured(command, measure):
    study, measured = measure(command)
    assert set(measured.tables) == set(study.tables)
    assert not measured.failures
    for task in measured.tasks:
        verdict = study.judge(measured, task)
        assert isinstance(verdict, Verdict)
        assert np.isnan(verdict.effect) or verdict.low <= verdict.effect <= verdict.high
        assert verdict.sentence.endswith(".")
        assert not re.search(r"\bnan\b", verdict.sentence)
        exhibits = study.show(measured, task)
        assert [exhibit.draw() for exhibit in exhibits if exhibit.plot]
    for other in further_studies(type(study)):
        assert other.can_judge(measured)
        assert other.sharing(study).verdict(measured).outcome in ("yes", "no", "undecided")
    answer = study.answer(measured)
    assert answer.exhibits
    assert not answer.failures


def lack(column: str, values: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """The tables without the rows that have one of these values in a column."""
    return lambda table: table[~table[column].isin(values)] if column in table else table


def first_texts(table: pd.DataFrame) -> pd.DataFrame:
    """One text on every side."""
    if "row" not in table or table.empty:
        return table
    return table[table.row.isin(table.groupby("split").row.min() if "split" in table else [table.row.min()])]


def first_class(table: pd.DataFrame) -> pd.DataFrame:
    """The texts of one class."""
    return table[table.label.astype(str) == str(table.label.iloc[0])] if "label" in table and len(table) else table


def last_layer(table: pd.DataFrame) -> pd.DataFrame:
    """A single layer."""
    return table[table.layer.isin([-1, table.layer.max()])] if "layer" in table and len(table) else table


CONTROL_TASK = ("word_type", "word_type_texts", "word_type_bag_of_words")
SPARSE = {  # still enough for an answer
    "one text a side, one layer": lambda table: last_layer(first_texts(table)),
    "one class": first_class,
    "a control without labels on test": lambda t: (
        t[(t.control != "word_type") | (t.split == "dev")] if {"control", "split"} <= {*t.columns} else t
    ),
    "a control without labels on dev": lambda t: (
        t[~t.control.isin(CONTROL_TASK) | (t.split == "test")] if {"control", "split"} <= {*t.columns} else t
    ),
}
LACKING = {  # too little for some question
    "nothing": lambda table: table.iloc[:0],
    "no test": lack("split", ["test"]),
    "no dev": lack("split", ["dev"]),
    "no cls": lack("readout", ["cls"]),
    "only cls": lambda table: table[table.readout.isin(["cls", "none"])] if "readout" in table else table,
    "no fitted probe": lack("control", ["none"]),
    "no baseline": lack("control", ["majority", "length", "bag_of_words", "layer0_mean", "untrained"]),
}


def damage(measured: Measured, damage_table: Callable[[pd.DataFrame], pd.DataFrame]) -> Measured:
    return replace(measured, tables={name: damage_table(table) for name, table in measured.tables.items()})


@pytest.mark.parametrize("command", SETTINGS)
def test_sparse_tables_are_answered_and_drawn(command, measure):
    study, measured = measure(command)
    for name, damage_table in SPARSE.items():
        if command == "reconstruct" and "layer" in name:
            continue  # it wrote at another layer
        answer = study.answer(damage(measured, damage_table))
        assert not answer.failures, name
        if name.startswith("one text") and command not in ("aggregate", "poolings", "positions"):  # drawn as by order
            assert all(exhibit.draw() for exhibit in answer.exhibits if exhibit.plot)


@pytest.mark.parametrize("command", SETTINGS)
def test_what_cannot_be_answered_is_said_in_a_sentence(command, measure):
    """Each answer is a verdict with an effect, or one that says what is missing; nothing raises."""
    study, measured = measure(command)
    unanswered = set()
    for name, damage_table in LACKING.items():
        answer = study.answer(damage(measured, damage_table))
        if not answer.verdict.is_judged:
            unanswered.add(name)
            assert answer.verdict.outcome == "undecided"
            assert answer.verdict.sentence.startswith("Not answered")
            assert answer.verdict.sentence in answer.failures
        assert not [what for what in answer.failures if re.search(r"Error: |StopIteration", what)], name
    assert "nothing" in unanswered


def test_a_study_runs_in_memory(folder, monkeypatch, one_thread):
    monkeypatch.chdir(folder)
    study = studies.Poolings(task="file:words.csv", model="./MODEL", device="cpu", allow_overlap=True)
    before = sorted(folder.rglob("*"))
    result = study.run()
    assert list(result.answers) == ["poolings"]
    assert result.title == "./MODEL on words: label"
    assert sorted(folder.rglob("*")) == before


def test_every_study_is_tried():
    assert set(SETTINGS) == set(STUDIES.built_in)


def test_no_study_is_made_of_another():
    kinds = [load_study(name) for name in STUDIES.built_in]
    for kind in kinds:
        assert not [base for base in kind.__mro__[1:] if base in kinds]


def test_a_probe_that_is_not_linear_is_not_refitted_and_a_note_says_so(folder, monkeypatch, one_thread):
    monkeypatch.chdir(folder)
    probe = "sklearn.naive_bayes:GaussianNB"
    study = studies.Poolings(
        task="file:words.csv", model="./MODEL", device="cpu", allow_overlap=True, probes=probe, layers="1"
    )
    result = study.run()
    assert result.measured.tables["refits"].empty
    assert any(f"{probe} is not refitted on halves" in note for note in result.measured.notes)
    assert result.answers["poolings"].verdict.interval_of == "these probes as they were fitted, over the test texts"
