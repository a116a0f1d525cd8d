"""Texts, labels and encoders in memory: the same numbers as from files, and a result to look at and to take further."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import pandas as pd
import pytest
import torch
from commands import call
from safetensors.numpy import save_file
from sklearn.neighbors import KNeighborsClassifier
from transformers import AutoModel, AutoTokenizer

import clsprobe as cp
from clsprobe.analysis.advice import advise
from clsprobe.analysis.result import Result

pytestmark = pytest.mark.usefixtures("one_thread")

ANIMALS = ["cat", "dog", "bird", "tree"]
TEXTS = [f"the {size} {colour} {animal} {verb} {'in' * (n % 2)} the house {'very ' * (n % 3)}big".replace("  ", " ")
         for n, (animal, verb, size, colour) in enumerate(
             (a, v, s, c) for a in ANIMALS for v in ("sees", "sleeps", "runs") for s in ("big", "very", "red")
             for c in ("blue", "red", "a"))]  # fmt: skip
LABELS = ["animal" if "bird" in text or "cat" in text else "other" for text in TEXTS]
SETTINGS = {"layers": [0, 3], "readouts": ["cls", "mean"]}
NAME = "<b>data</b>"
ADVICE_OF_FILES = "Add texts to the source, and run the same command with --overwrite"
SMALL = {"layers": 3, "readouts": "cls,mean"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return models.save("bert", tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def result(model) -> Result:
    return cp.probe(TEXTS, LABELS, model=str(model), **SETTINGS)


def named_task(labels) -> cp.Task:
    return cp.Task.from_lists(TEXTS, labels, name=NAME)


@pytest.fixture(scope="module")
def small(model) -> Result:
    """The quickest result, of a study with few figures."""
    return cp.studies.Poolings(task=named_task(LABELS), model=str(model), **SMALL).run()


def without(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    return table.drop(columns=[*columns]).reset_index(drop=True)


def test_the_numbers_are_those_of_the_same_rows_in_a_file(small, model, tmp_path):
    with open(tmp_path / "data.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(TEXTS, LABELS, strict=True)])
    of_file = cp.studies.Poolings(task=f"file:{tmp_path / 'data.csv'}", model=str(model), **SMALL).run()
    assert small.tables.keys() == of_file.tables.keys()
    for name, table in small.tables.items():
        names = ("task", "source", "number") if name == "rows" else ("task",)  # rows of memory are counted from 0
        expected = without(of_file.tables[name], *names)
        pd.testing.assert_frame_equal(without(table, *names), expected, check_exact=True)
    places = zip(small.tables["rows"].number, of_file.tables["rows"].number, strict=True)
    assert {in_file - in_memory for in_memory, in_file in places} == {2}
    assert str(small).replace(NAME, "data") == str(of_file).replace(
        ADVICE_OF_FILES, "Add texts, and run the study again"
    )


def test_an_encoder_in_memory_gives_the_numbers_of_its_folder(small, model):
    pair = AutoModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    of_pair = cp.studies.Poolings(task=small.study.task, model=pair, **SMALL).run()
    assert set(of_pair.results.model) == {"small (in memory)"}
    expected, actual = (without(found.results, "model") for found in (small, of_pair))
    pd.testing.assert_frame_equal(actual, expected, check_exact=True)


# ------------------------------------------------------------------------------------------------------------- results


def test_the_answers_are_those_of_the_command(result):
    assert list(result.answers) == ["run", "aggregate", "poolings"]
    assert result.answer is result.answers["run"]
    for answer in result.answers.values():
        assert answer.question in str(result)
        assert answer.headline.sentence in str(result)


def test_the_chosen_layers_have_the_best_score_on_dev(result):
    rows = result.results
    rows = rows[(rows.control == "none") & (rows.metric == "accuracy")]
    for chosen in result.chosen.itertuples():
        of_readout = rows[rows.readout == chosen.readout].set_index(["split", "layer"]).value
        assert chosen.dev == pytest.approx(of_readout["dev"].max())
        assert chosen.test == pytest.approx(of_readout["test"][chosen.layer])
        assert chosen.low <= chosen.test <= chosen.high
    assert list(result.chosen.readout) == ["cls", "mean"]
    best = result.chosen[result.chosen.best]
    assert len(best) == 1
    assert best.dev.item() == result.chosen.dev.max()


def test_it_shows_itself_in_a_notebook_and_in_a_terminal(result):
    page = result._repr_html_()
    assert page.count("<h3>") == len(result.answers)
    assert "<svg" in page
    assert repr(result).startswith("<Result: run ")
    assert len(repr(result)) < 300


def test_names_from_the_user_are_escaped(small):
    assert NAME not in small._repr_html_()
    assert NAME.replace("<", "&lt;").replace(">", "&gt;") in small._repr_html_()


def test_a_study_without_a_table_says_so(small):
    study, measured = cp.studies.Geometry(), replace(small.measured, tables={"measured": pd.DataFrame()})
    other = replace(small, study=study, measured=measured)
    with pytest.raises(cp.InputError, match=r"Geometry measures no predictions\. Its \.tables are measured"):
        len(other.predictions)
    assert other.chosen.empty


# ------------------------------------------------------------------------------------------------------------ to files


def test_it_is_saved_as_a_run_of_the_command_is(small, tmp_path, capsys):
    folder = small.save(tmp_path / "run")
    content = json.loads((folder / "run.json").read_text())
    assert content["finished"]
    assert content["command"] == "poolings"
    on_disk = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"run.json"}
    assert on_disk == set(content["files"])
    assert call("report", folder, "--out", tmp_path / "again.html") == 0
    assert call("export", folder) == 0
    assert f"memory:{NAME}:label" in capsys.readouterr().out
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "results.parquet"), small.results, check_dtype=False)
    with pytest.raises(cp.InputError, match=r"/run: holds a finished run\. Pass overwrite=True, or another folder\."):
        small.save(folder)
    small.save(folder, overwrite=True)

    assert not any(text in (folder / "run.json").read_text() for text in TEXTS)


def test_objects_are_digests_in_the_settings(small):
    (task,) = small.study.settings()["task"]
    assert task.startswith(f"memory:{NAME}:label sha256:")
    other = cp.studies.Run(task=named_task(LABELS[::-1]))
    assert other.settings()["task"] != [task]


def test_every_part_of_a_task_is_in_its_digest():
    task, rows = named_task(LABELS), range(len(TEXTS))
    parts = {"texts": TEXTS[::-1], "y": np.array(LABELS[::-1]), "split": ["train"] * 50 + ["test"] * 58}
    parts |= {"groups": np.arange(len(TEXTS)), "rows": rows, "solved_by": ("length",), "notes": ("a note",)}
    digests = {cp.studies.Run(task=replace(task, **{name: part})).settings()["task"][0] for name, part in parts.items()}
    assert len(digests | {cp.studies.Run(task=task).settings()["task"][0]}) == len(parts) + 1


def test_the_page_is_one_file(small, tmp_path):
    path = small.report(tmp_path / "page.html")
    assert small.answer.question in path.read_text(encoding="utf-8")
    assert [*tmp_path.iterdir()] == [path]
    with pytest.raises(cp.InputError, match="is a folder"):
        small.report(tmp_path)
    for name in ("none/page.html", "x" * 300 + ".html", "a\0b.html"):
        with pytest.raises(cp.InputError, match="cannot be written"):
            small.report(tmp_path / name)


def test_no_command_is_offered_that_could_not_know_the_objects(result):
    assert result.answers["poolings"].headline.outcome == "undecided"
    assert "clsprobe" not in str(result)
    limited = cp.studies.Poolings(task=named_task(LABELS), max_texts=50)
    assert advise(limited, "poolings", {"x": 2.0}) == "Raise max_texts, or add texts, and run the study again."


# ------------------------------------------------------------------------------------------------------------ resuming


def test_a_run_goes_on_with_the_same_objects_only(small, model, tmp_path, monkeypatch):
    def study(labels):
        task = named_task(labels)
        pair = AutoModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)
        return cp.studies.Poolings(task=task, model=pair, **SMALL)

    with monkeypatch.context() as patch:
        patch.setattr(Result, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            study(LABELS).run(tmp_path / "run")
    with pytest.raises(cp.InputError, match="holds an unfinished run with other settings"):
        study(LABELS[::-1]).run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(cp.studies.Poolings, "measure", lambda *_: 1 / 0)  # it is not measured again
        again = study(LABELS).run(tmp_path / "run")
    expected, actual = (without(found.results, "model") for found in (small, again))
    pd.testing.assert_frame_equal(actual, expected, check_dtype=False, check_categorical=False)
    assert str(again) == str(small)


# ------------------------------------------------------------------------------------------------------------- objects


class Second(cp.Weighted):
    name = "second"

    def weights(self, batch):
        import torch

        return torch.zeros(batch.ids.shape).index_fill_(1, torch.tensor([1]), 1.0) * batch.real


def test_probes_and_readouts_of_this_process_are_named_by_themselves(model):
    task = cp.Task.from_lists(TEXTS, LABELS)
    settings = {"task": task, "model": str(model), "layers": 3}
    study = cp.studies.Run(**settings, readouts=["cls", Second()], probes=KNeighborsClassifier(3), no_maps=True)
    found = study.run(others=[])
    assert set(found.chosen.readout) == {"cls", "second"}
    assert found.chosen.probe.str.startswith("KNeighborsClassifier#").all()
    other = cp.studies.Run(**settings, readouts=["cls", Second], probes=[KNeighborsClassifier(5), "logistic"])
    assert other.probes[0] not in study.probes
    assert other.probes[1] == "logistic"
    same = cp.studies.Run(**settings, readouts=["cls", Second()], probes=[KNeighborsClassifier(3)], no_maps=True)
    assert same.settings() == study.settings()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"taks": 1}, "Poolings: unknown setting 'taks'. Did you mean 'task'?"),
        ({"seeds": 0}, "--seeds: '0' does not fit. Give a whole number from 1 to 1000."),
        ({"task": 3}, "--task: holds an int, which is no task. Pass a SPEC"),
        ({"task": pd.DataFrame({"text": ["a"]})}, "or a Task, as from Task.from_frame."),
        ({"model": np.ones(3)}, "model: is numpy.ndarray, which is not read as an encoder."),
        ({"layers": [1, "x"]}, "--layers: 'x' is no layer or range."),
        ({"long_rows": "drp"}, "--long-rows: unknown value 'drp'. Did you mean 'drop'?"),
        ({"text_column": "x"}, "text_column: says how a source is read, and the task is in memory."),
        ({"task": [cp.Task.from_lists(TEXTS, LABELS)] * 2}, "two tasks are called 'memory:data:label'. Pass name=..."),
        ({"vectors": "vectors.safetensors"}, "memory:data:label: does not say which rows the vectors belong to."),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_clear_error(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = {f"layer.01/{name}": np.zeros((len(TEXTS), 4), np.float32) for name in ("cls", "mean")}
    save_file(cells, "vectors.safetensors")
    with pytest.raises(cp.InputError) as error:
        cp.studies.Poolings(**{"task": cp.Task.from_lists(TEXTS, LABELS)} | settings).inputs  # noqa: B018
    assert message in str(error.value)


def test_a_task_beside_texts_and_labels_is_one_clear_error():
    with pytest.raises(cp.InputError, match=r"task: is made of texts and labels here\. Leave it out, or call"):
        cp.probe(TEXTS, LABELS, task=cp.Task.from_lists(TEXTS, LABELS))


@pytest.mark.parametrize("name", dir(cp.studies))
def test_layers_and_paths_are_read_in_every_study(name, tmp_path):
    study = getattr(cp.studies, name)
    given = {"layers": [0, 3], "cache": tmp_path, "vectors": tmp_path / "vectors.npy", "decoder": tmp_path / "decoder"}
    given = {field: value for field, value in given.items() if field in study.model_fields}
    expected = {field: "0,3" if field == "layers" else str(value) for field, value in given.items()}
    assert {field: getattr(study(**given), field) for field in given} == expected


def test_a_device_of_torch_is_its_name():
    assert cp.studies.Poolings(device=torch.device("cpu")).device == "cpu"
    assert cp.load_encoder(device=torch.device("cpu")).device.type == "cpu"
    with pytest.raises(cp.InputError, match=r"unknown value 'cuda:1'\. Did you mean 'cuda'"):
        cp.studies.Poolings(device=torch.device("cuda", 1))


def test_a_task_of_one_word_has_its_name_in_the_answer(model):
    answer = cp.studies.Poolings(task=cp.Task("animals", TEXTS, LABELS), model=str(model), **SMALL).run().answer
    assert " on animals, " in answer.headline.sentence


def test_vectors_of_a_task_in_memory(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(len(TEXTS), 8)).astype(np.float32)
    vectors[:, 0] += 3 * (np.array(LABELS) == "animal")
    np.save(tmp_path / "vectors.npy", vectors)
    task = cp.Task("my:data:label", TEXTS, LABELS, rows=range(len(TEXTS)))
    found = cp.studies.Run(task=task, vectors=str(tmp_path / "vectors.npy"), no_maps=True).run()
    assert found.chosen.test.item() > 0.8


def test_a_task_in_memory_may_have_some_rows_of_the_vectors(tmp_path):
    half = len(TEXTS) // 2
    vectors = np.random.default_rng(0).normal(size=(len(TEXTS), 8)).astype(np.float32)
    vectors[half:, 0] += 5 * (np.array(LABELS[half:]) == "animal")
    np.save(tmp_path / "vectors.npy", vectors)
    settings = {"vectors": str(tmp_path / "vectors.npy"), "no_maps": True}
    rows = range(half, len(TEXTS))
    task = cp.Task("my:data:label", TEXTS[half:], LABELS[half:], rows=rows)
    assert cp.studies.Run(task=task, **settings).run().chosen.test.item() > 0.8
    beyond = replace(task, rows=np.array(rows) + 1)
    with pytest.raises(cp.InputError, match=r"holds 108 vectors, and a task names row 108\. Count its rows from 0"):
        cp.studies.Run(task=beyond, **settings).inputs  # noqa: B018


class Fails(KNeighborsClassifier):
    def fit(self, X, y):
        raise RuntimeError("no luck")


def test_a_probe_that_fails_is_named_where_the_answers_are_printed(model):
    task = cp.Task.from_lists(TEXTS, LABELS)
    found = cp.studies.Run(task=task, model=str(model), layers=3, readouts="cls", probes=Fails(), no_maps=True).run()
    assert str(found).startswith("What does the [CLS] vector know")
    last = str(found).splitlines()[-1]
    assert last.startswith("Failed: probe 'Fails#")
    assert last.endswith("RuntimeError: no luck (and 2 more).")


def test_a_study_prints_what_was_set(model):
    study = cp.studies.Poolings(task=cp.Task.from_lists(TEXTS, LABELS), layers=[5, 6])
    assert repr(study).startswith("Poolings(task=(<Task memory:data:label: 108 texts")
    assert "layers='5,6'" in repr(study)
    assert len(repr(study)) < 200
