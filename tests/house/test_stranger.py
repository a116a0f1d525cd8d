"""A package of somebody else adds a readout, a source, a probe, a study and a plot, without a change to clsprobe.

It is built as a wheel and unpacked beside the code, with its metadata. A second package cannot be imported at all.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import answers
import models
import pandas as pd
import pytest
from commands import call
from packages import install, on_path

import clsprobe
from clsprobe.analysis.answer import Answer
from clsprobe.analysis.contents import plugin_contents
from clsprobe.analysis.plots import PLOTS
from clsprobe.analysis.registers import STUDIES
from clsprobe.analysis.result import Result
from clsprobe.analysis.sources import SOURCES
from clsprobe.analysis.sweep.planting import plant_sweep
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import READOUTS, parse_readouts
from clsprobe.probes.registry import PROBES, find_probe

pytestmark = pytest.mark.usefixtures("one_thread")

REGISTERS = (PROBES, READOUTS, SOURCES, STUDIES, PLOTS)
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "stranger"
version = "2.1"

[project.entry-points."clsprobe.readouts"]
ends = "stranger.readouts:Ends"
mean = "stranger.readouts:Mean"

[project.entry-points."clsprobe.probes"]
nearest = "stranger.probes:Nearest"

[project.entry-points."clsprobe.sources"]
weather = "stranger.sources:load"

[project.entry-points."clsprobe.studies"]
both_ends = "stranger.studies:BothEnds"

[project.entry-points."clsprobe.plots"]
bars = "stranger.plots:bars"

[tool.setuptools]
packages = ["stranger"]
"""
MODULES = {
    "__init__": '"""Somebody else\'s."""\n',
    "readouts": """
from clsprobe import Readout, Weighted

class Ends(Weighted):
    name = "ends"

    def weights(self, batch):
        weights = batch.real.float() * 0
        weights[:, 0] += 0.5
        return weights + 0.5 * (batch.real.cumsum(1) == batch.lengths[:, None]) * batch.real

class Mean(Ends):
    name = "mean"

class Sum(Readout):
    name = "sum"

    def read(self, hidden, batch):
        return hidden.where(batch.real[..., None], 0).sum(1)
""",
    "probes": """
from sklearn.neighbors import NearestCentroid

class Nearest(NearestCentroid):
    pass
""",
    "sources": """
from itertools import product
import numpy as np
from clsprobe import InputError, Loaded, Task

def load(rest, options):
    if rest != "warm":
        raise InputError("--task weather", "there is no such weather", "Ask for weather:warm")
    words = ["cat", "dog", "bird", "tree"], ["runs", "sleeps", "sees"], ["red", "blue", "big"], ["dog", "house"]
    texts = [" ".join(text) for text in product(*words)]
    labels = np.array(["cold" if "blue" in text else rest for text in texts])
    return Loaded([Task(f"weather:{rest}:sky", texts, labels)], rows=len(texts))
""",
    "studies": """
from typing import ClassVar
from clsprobe import Exhibit, Verdict
from clsprobe.analysis.sweep import wording
from clsprobe.analysis.sweep.study import SweepStudy
from clsprobe.analysis.verdict import difference_in_words

class BothEnds(SweepStudy):
    question: ClassVar[str] = "Do both ends together tell more than [CLS]?"
    claim: ClassVar[str] = "The mean of both ends tells more about the label than [CLS]"
    margin: ClassVar[float] = 0.0
    untrained: ClassVar[bool] = False
    further: ClassVar[tuple[str, ...]] = ("poolings",)

    @classmethod
    def comparable(cls, readouts):
        return {"cls", "ends"} <= set(readouts)

    def judge(self, measured, task):
        scores = self.read_scores(measured, task)
        part = scores.compare(scores.choose("ends"), scores.choose("cls"))
        say = lambda outcome, part: f"on {task}, {difference_in_words('ends', '[CLS]', part)}"
        return Verdict.of([part], say, interval_of="", warnings=())

    def show(self, measured, task):
        rows = measured.rows("predictions", task).groupby("readout", observed=True).size()
        return [Exhibit("Predictions.", rows.rename("rows").reset_index(), "bars")]
""",
    "plots": """
from clsprobe.analysis.plots.style import make_axes, register_plot

@register_plot("readout", "rows")
def bars(table):
    figure, axes = make_axes(3, 2)
    axes.bar(table.readout.astype(str), table["rows"])
    figure.set_label("Drawn by a stranger.")
    return figure
""",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The wheel of the package, unpacked as it would be installed, and beside it a package that cannot be imported."""
    project, wheels, site = (tmp_path_factory.mktemp(name) for name in ("stranger", "wheels", "site"))
    (project / "pyproject.toml").write_text(PROJECT)
    (project / "stranger").mkdir()
    for name, source in MODULES.items():
        (project / "stranger" / f"{name}.py").write_text(source)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(wheels)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=project, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    wrecks = {register.group: {"wreck": "wreck:Anything"} for register in REGISTERS}
    install(site, "wreck", {"wreck.py": "raise SystemExit('the wreck of a package')\n"}, wrecks)
    return site


@pytest.fixture
def installed(site, tmp_path, monkeypatch):
    """The packages are installed, a small model lies in the current folder, and no two-dimensional map is computed."""
    models.save("bert", tmp_path / "MODEL", layers=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clsprobe.probes.extraction.readouts._PLUGINS", {})
    monkeypatch.setattr("clsprobe.analysis.sweep.measure.compute_umap", lambda vectors, seed: (vectors[:, :2], 1.0))
    with on_path(site):
        yield site


ON_WEATHER = ("--task", "weather:warm", "--model", "./MODEL", "--device", "cpu", "--layers", "1", "--quiet")
OPTIONS = (*ON_WEATHER, "--readouts", "cls,mean,ends", "--probes", "nearest", "--allow-overlap")


def test_lists_and_help_name_it_and_import_nothing_of_it(installed, capsys):
    for what, name, origin in (
        ("readouts", "ends", "stranger 2.1, stranger.readouts:Ends"),
        ("readouts", "stranger.readouts:Mean", "stranger 2.1; 'mean' is clsprobe's own"),
        ("probes", "nearest", "stranger 2.1, stranger.probes:Nearest"),
        ("sources", "weather", "stranger 2.1, stranger.sources:load"),
        ("tasks", "weather:REST", "stranger 2.1, stranger.sources:load"),
        ("plots", "bars", "stranger 2.1, stranger.plots:bars"),
    ):
        assert call("list", what) == 0
        assert [name, origin] in [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert call("--help") == 0
    assert ["both-ends", "of the package stranger 2.1"] in [
        line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()
    ]
    assert not {"stranger", "wreck"} & {name.partition(".")[0] for name in sys.modules}


def test_its_study_is_a_command_with_a_page(installed, tmp_path, capsys):
    assert call("both_ends", *OPTIONS) == 0
    assert capsys.readouterr().out == "out/both-ends/report.html\n"
    folder = tmp_path / "out" / "both-ends"
    results = pd.read_parquet(folder / "results.parquet")
    assert set(results.readout) == {"cls", "mean", "ends", "none"}
    assert "nearest" in set(results.probe)
    assert set(results.task) == {"weather:warm:sky"}
    page = (folder / "report.html").read_text()
    assert "Do both ends together tell more than [CLS]?" in page
    assert "Drawn by a stranger." in page
    assert "Is mean pooling inferior to [CLS]?" in page  # the further question
    run = json.loads((folder / "run.json").read_text())
    plugins = {"study stranger.studies:BothEnds", "readout ends", "probe nearest", "source weather"}
    assert plugins <= run["contents"].keys()
    for command in ("both-ends", "stranger.studies:BothEnds"):
        assert call(command, "--help") == 0
        assert "--readouts" in capsys.readouterr().out


def test_a_command_of_clsprobes_own_takes_what_it_adds(installed, tmp_path):
    readouts = "cls,ends,cat(cls,stranger.readouts:Sum)"
    options = ("--readouts", readouts, "--probes", "stranger.probes:Nearest", "--allow-overlap", "--dry-run")
    assert call("run", "--task", "stranger.sources:load:warm", *ON_WEATHER[2:], *options) == 0
    study = clsprobe.studies.Poolings(
        task="stranger.sources:load:warm", model="./MODEL", device="cpu", layers="1", allow_overlap=True,
        readouts="cls,mean,cat(cls,stranger.readouts:Sum)", probes="stranger.probes:Nearest",
    )  # fmt: skip
    results = study.run().measured.tables["results"]
    assert set(results.readout) == {"cls", "mean", "cat(cls,sum)", "none"}


def test_a_changed_source_is_measured_anew(installed, tmp_path, monkeypatch):
    def kill(*_):
        signal.raise_signal(signal.SIGINT)  # a KeyboardInterrupt that nobody pressed would be the study's own

    measurements = []
    arguments = ("both-ends", *OPTIONS)
    with monkeypatch.context() as patched:
        patched.setattr(Result, "write", kill)
        assert call(*arguments) == 130
    study = clsprobe.studies.BothEnds
    measure = study.measure
    monkeypatch.setattr(study, "measure", lambda *given: measurements.append(1) or measure(*given))
    with monkeypatch.context() as patched:
        patched.setattr(Result, "write", kill)
        assert call(*arguments) == 130
    assert not measurements  # resumed
    module = installed / "stranger" / "readouts.py"
    before = module.read_text()
    module.write_text(before + "# another one\n")
    assert call(*arguments) == 0
    assert measurements
    module.write_text(before)


def test_python_sees_it(installed):
    assert "BothEnds" in dir(clsprobe.studies)
    study = clsprobe.studies.BothEnds(task="weather:warm", readouts=("cls", "ends"), probes="nearest")
    assert study.command() == "both-ends"
    assert [readout.name for readout in parse_readouts(["mean", "ends", "last2(ends)"])] == [
        "mean",
        "ends",
        "last2(ends)",
    ]
    assert type(parse_readouts(["mean"])[0]).__module__.startswith("clsprobe.")
    with pytest.raises(InputError, match="its name is 'mean', which is a readout of clsprobe"):
        parse_readouts(["stranger.readouts:Mean"])
    kinds = {name.partition(" ")[0] for name in plugin_contents(study)}
    assert kinds == {"study", "probe", "readout", "source"}


def test_it_passes_the_contracts(installed):
    clsprobe.check_readout(parse_readouts(["ends"])[0])
    clsprobe.check_source(SOURCES.load("weather"), "warm")
    worlds = {
        "yes": {"ends": 0.85, "cls": 0.6},
        "no": {"ends": 0.6, "cls": 0.85},
        "undecided": {"ends": 0.7, "cls": 0.69},
    }
    worlds = {outcome: plant_sweep(accuracies) for outcome, accuracies in worlds.items()}
    clsprobe.check_study(clsprobe.studies.BothEnds(readouts=("cls", "ends")), worlds=worlds)
    clsprobe.check_probe(find_probe("nearest"))
    clsprobe.check_readout(READOUTS.make("stranger.readouts:Sum", clsprobe.Readout, "readout", ""))


def test_an_answer_draws_what_is_installed_and_imports_nothing_else(site, tmp_path, monkeypatch):
    table = pd.DataFrame({"readout": ["cls"], "rows": [3]})
    plots = {"bars": True, "stranger.plots:bars": True, "accomplice:draw": False}
    (tmp_path / "accomplice.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.chdir(tmp_path)
    answer = answers.answer()
    exhibits = tuple(clsprobe.Exhibit("Rows.", table, plot) for plot in plots)
    replace(answer, exhibits=exhibits).save(tmp_path / "answer.json")
    with on_path(site, tmp_path):
        loaded = Answer.load(tmp_path / "answer.json")
        assert [bool(exhibit.plot) for exhibit in loaded.exhibits] == list(plots.values())
        assert (
            loaded.notes[-1]
            == "The plot 'accomplice:draw' is of no installed package: what it drew is shown as a table."
        )
        assert loaded.exhibits[0].draw().get_label() == loaded.exhibits[1].draw().get_label() == "Drawn by a stranger."
        assert "accomplice" not in sys.modules
    monkeypatch.setattr("clsprobe.analysis.plots.style.DEFINED", {})
    loaded = Answer.load(tmp_path / "answer.json")  # where nobody has installed it
    assert [exhibit.plot for exhibit in loaded.exhibits] == [None] * 3
    assert len(loaded.notes) == len(answer.notes) + 3


def test_a_package_that_cannot_be_imported_breaks_nothing_else(installed, capsys):
    reason = "cannot be imported (SystemExit: the wreck of a package)"
    assert call("list", "studies") == 0
    assert f"cannot be used: wreck {reason}" in capsys.readouterr().out
    for arguments, where in (
        (("wreck", "--help"), "clsprobe wreck"),
        (("poolings", "--readouts", "cls,mean,wreck"), "--readouts wreck"),
        (("poolings", "--task", "weather:warm", "--probes", "wreck"), "--probes wreck"),
        (("poolings", "--task", "wreck:x"), "--task wreck"),
    ):
        assert call(*arguments) == 2
        assert capsys.readouterr().err == f"error: {where}: wreck {reason}. Mend the plug-in.\n"
