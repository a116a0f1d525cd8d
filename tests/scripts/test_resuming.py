"""A run that was killed after it was measured is resumed to the result of a fresh one, whatever changed meanwhile."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from itertools import product

import models
import numpy as np
import pandas as pd
import pytest
from commands import call
from safetensors.numpy import load_file, save_file

from clsprobe.analysis import contents
from clsprobe.analysis.fine_tuning import measure
from clsprobe.analysis.result import Result
from clsprobe.fine_tuning import FineTuning
from clsprobe.formation import Formation
from clsprobe.geometry import Geometry
from clsprobe.poolings import Poolings
from clsprobe.probes.encoders import loading
from clsprobe.probes.errors import InputError
from clsprobe.reconstruct import Reconstruct
from clsprobe.run import Run
from clsprobe.trajectory import Trajectory

pytestmark = pytest.mark.usefixtures("one_thread")

N = 120
LABELS = np.arange(N) % 2
TEXTS = [" ".join(words) for words in product(["cat", "dog", "bird", "tree", "house"], repeat=3)][:N]
PROBE = """
from sklearn.linear_model import LogisticRegression
from {helper} import STRENGTH


class Mine(LogisticRegression):
    def __init__(self):
        super().__init__(C=STRENGTH)
"""


def write_table(path, labels=LABELS, texts=TEXTS):
    path.write_text("text,label\n" + "".join(f"{text},{'ab'[k]}\n" for text, k in zip(texts, labels, strict=True)))
    return path


def write_vectors(path, labels=LABELS):
    random = np.random.default_rng(0)
    cells = {f"layer.01/{name}": random.normal(size=(N, 4)) + 2 * labels[:, None] for name in ("cls", "mean")}
    save_file({name: vectors.astype(np.float32) for name, vectors in cells.items()}, path)
    return path


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A table, its vectors, a model with weights and a probe in a folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    write_table(tmp_path / "d.csv")
    write_vectors(tmp_path / "v.safetensors")
    return tmp_path


def kill_after_measuring(monkeypatch, *arguments):
    """Start a run that is killed once its measurement is complete."""

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Result, "write", kill)
        assert call(*arguments) == 130


def check_resumed(monkeypatch, folder, change, *arguments, measured_anew):
    """Kill a run, change an input, resume the run and compare its measurement with that of a fresh one."""
    kill_after_measuring(monkeypatch, *arguments, "--out", folder / "out")
    before = (folder / "out" / "results.parquet").stat().st_mtime_ns
    change()
    for name in ("out", "fresh"):
        kill_after_measuring(monkeypatch, *arguments, "--out", folder / name)
    assert ((folder / "out" / "results.parquet").stat().st_mtime_ns != before) == measured_anew
    for name in ("results.parquet", "predictions.parquet"):
        resumed, fresh = (pd.read_parquet(folder / run / name) for run in ("out", "fresh"))
        pd.testing.assert_frame_equal(resumed, fresh)
    resumed, fresh = (json.loads((folder / run / "run.json").read_text()) for run in ("out", "fresh"))
    assert resumed == fresh


OF_VECTORS = ("poolings", "--task", "file:d.csv", "--vectors", "v.safetensors", "--quiet")
PERMUTED = np.random.default_rng(1).permutation(LABELS)


def add_column(path):
    path.write_text("".join(f"{line},more\n" for line in path.read_text().splitlines()))


@pytest.mark.parametrize("labels", [PERMUTED, LABELS], ids=["other labels", "the same labels"])
def test_a_resumed_run_is_that_of_the_files_as_they_are(inputs, monkeypatch, labels):
    anew = labels is PERMUTED
    check_resumed(
        monkeypatch, inputs, lambda: write_table(inputs / "d.csv", labels), *OF_VECTORS, measured_anew=anew
    )  # fmt: skip


def test_only_what_is_read_counts(inputs):
    def read():
        return Poolings(task="file:d.csv", vectors="v.safetensors").contents()

    before = read()
    add_column(inputs / "d.csv")
    assert read() == before
    write_vectors(inputs / "v.safetensors")
    assert read() == before
    write_vectors(inputs / "v.safetensors", PERMUTED)
    assert [name for name, digest in read().items() if digest != before[name]] == ["v.safetensors"]


def write_probe(folder, helper, strength):
    (folder / f"{helper}.py").write_text(f"STRENGTH = {strength}\n")
    (folder / "probe.py").write_text(PROBE.format(helper=helper))
    for module in ("probe", helper):
        sys.modules.pop(module, None)
    importlib.invalidate_caches()


@pytest.mark.parametrize("strength", [1e-6, 1.0])
def test_a_probe_of_ones_own_is_its_source_and_what_it_imports(inputs, monkeypatch, strength):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # whose date is to the second
    write_probe(inputs, "of_probe", 1.0)
    check_resumed(
        monkeypatch, inputs, lambda: write_probe(inputs, "of_probe", strength), *OF_VECTORS, "--probes", "probe:Mine",
        measured_anew=strength != 1.0,
    )  # fmt: skip


def perturb(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: value + 0.1 for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def test_weights_that_changed_are_measured_anew(inputs, monkeypatch):
    model = models.save("bert", inputs / "bert", layers=1)
    readouts = ("--layers", "1", "--readouts", "cls,flatten_projected")
    arguments = ("order", "--task", "file:d.csv", "--model", model, *readouts, "--quiet")
    check_resumed(monkeypatch, inputs, lambda: perturb(model), *arguments, measured_anew=True)


@pytest.mark.parametrize("study", [Run, Poolings, Geometry, Formation, FineTuning, Trajectory, Reconstruct])
def test_every_study_knows_what_it_reads(inputs, study):
    first, second = (models.save("bert", inputs / name, layers=1) for name in ("first", "second"))
    models.save("bert", inputs / "writer", layers=1)
    perturb(second)
    names = {"task": "file:d.csv", "model": str(first), "probes": "probe:Mine", "decoder": str(inputs / "writer")}
    names |= {"checkpoints": f"{first},{second}"} if study in (FineTuning, Trajectory) else {}
    settings = {name: value for name, value in names.items() if name in study.model_fields}
    write_probe(inputs, "of_probe", 1.0)
    changes = {
        "file:d.csv": lambda: write_table(inputs / "d.csv", PERMUTED, TEXTS[::-1]),
        f"model {first}": lambda: perturb(first),
    }
    if "checkpoints" in settings:
        changes[f"model {second}"] = lambda: perturb(second)
    if "decoder" in settings:
        changes[f"model {inputs / 'writer'}"] = lambda: perturb(inputs / "writer")
    if "probes" in settings:
        changes["probe probe:Mine"] = lambda: write_probe(inputs, "of_probe", 2.0)
    before = study(**settings).contents()
    assert study(**settings).contents() == before
    assert {"clsprobe", "torch", "numpy"} <= before.keys()
    for name, change in changes.items():
        change()
        after = study(**settings).contents()
        assert [key for key in before if before[key] != after[key]] == [name]
        before = after


def test_another_version_of_clsprobe_is_another_content(monkeypatch, tmp_path):
    contents.own_contents.cache_clear()
    before = contents.own_contents()
    probes = sys.modules["clsprobe.probes"]
    copied = shutil.copytree(probes.__path__[0], tmp_path / "probes")
    monkeypatch.setattr(probes, "__path__", [str(copied)])
    contents.own_contents.cache_clear()
    assert contents.own_contents() == before
    (copied / "linear.py").write_text("# another\n")
    contents.own_contents.cache_clear()
    assert contents.own_contents()["clsprobe"] != before["clsprobe"]
    contents.own_contents.cache_clear()


def test_weights_that_change_while_they_are_read_are_refused(inputs, monkeypatch):
    model = models.save("bert", inputs / "bert", layers=1)
    check = loading._refuse_foreign_weights

    def change_meanwhile(*loaded):
        perturb(model)
        check(*loaded)

    loading.load_encoder(str(model))
    monkeypatch.setattr(loading, "_refuse_foreign_weights", change_meanwhile)
    with pytest.raises(InputError, match="changed while being read"):
        loading.load_encoder(str(model))


def test_vectors_that_change_within_their_file_are_refused(inputs):
    """Also where its size and date stay the same."""
    study = Poolings(task="file:d.csv", vectors="v.safetensors")
    assert study.contents()
    study.inputs.vectors.check_unchanged()
    status = (inputs / "v.safetensors").stat()
    with (inputs / "v.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    os.utime(inputs / "v.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(InputError, match="changed while being read"):
        study.measure()


def test_trainings_are_resumed_with_the_same_contents_only(inputs, monkeypatch):
    """Killed after one training; then the labels change."""
    model = models.save("bert", inputs / "bert", layers=1)
    arguments = (
        "fine-tuning", "--task", "file:d.csv", "--model", model, "--readouts", "cls,mean", "--rates", "1e-3", "--seeds",
        "1", "--epochs", "1", "--train-texts", "32", "--device", "cpu", "--dtype", "float32", "--allow-overlap",
        "--quiet",
    )  # fmt: skip
    trained, train = [], measure.fine_tune

    def break_off(encoder, readout, *rest, **more):
        if len(trained) == 1:
            trained.append("stopped")
            raise KeyboardInterrupt
        trained.append(readout)
        return train(encoder, readout, *rest, **more)

    monkeypatch.setattr(measure, "MOMENTS", (0.0, 1.0))
    monkeypatch.setattr(measure, "fine_tune", break_off)
    assert call(*arguments, "--out", "out") == 130
    assert len([*(inputs / "out" / "trainings").iterdir()]) == 2
    monkeypatch.setattr(measure, "fine_tune", train)
    write_table(inputs / "d.csv", PERMUTED)
    for folder in ("out", "fresh"):
        kill_after_measuring(monkeypatch, *arguments, "--out", folder)
    for name in ("predictions.parquet", "tables/steps.parquet"):
        resumed, fresh = (pd.read_parquet(inputs / folder / name) for folder in ("out", "fresh"))
        pd.testing.assert_frame_equal(resumed, fresh)
