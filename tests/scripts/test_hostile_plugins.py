"""Plug-ins that misbehave, case by case of hostile_plugins.yaml: each ends with its line, and changes nothing else.

The probes run side by side, in one sweep with honest ones: what is listed as failed, and that all others have the
results of a sweep without them. Vectors come from a file, so that no encoder is needed.
"""

from __future__ import annotations

import builtins
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import models
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from commands import call
from deadline import deadline
from packages import on_path
from safetensors.numpy import save_file

from clsprobe.analysis.plots import draw
from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.probes import metric
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction import readouts
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.linear import LogisticProbe
from clsprobe.probes.plugins import PluginError, contain
from clsprobe.probes.registry import find_probe

pytestmark = [pytest.mark.usefixtures("one_thread")]

CASES: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[1] / "support" / "hostile_plugins.yaml").read_text("utf-8")
)
ROWS = 60
POOLINGS = ("poolings", "--task", "file:d.csv", "--vectors", "v.safetensors")


def cases(*sections: str) -> Any:
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=case["name"]) for section in sections for case in CASES[section]]
    )


def check_said(case: dict[str, Any], line: str) -> None:
    assert line.isprintable()
    if case["says"].startswith("^"):
        assert re.search(case["says"], line), line
    else:
        assert line == case["says"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Iterator[Path]:
    """The folder of all plug-ins, which is the current one, with labels, vectors and a model."""
    folder, before = tmp_path_factory.mktemp("desk"), Path.cwd()
    (folder / "honest.py").write_text(CASES["honest"])
    for section in CASES.keys() - {"prelude", "honest"}:
        prelude = CASES["prelude"].get("probes" if section == "hanging" else section, "")
        for case in CASES[section]:
            (folder / f"{case['name']}.py").write_text(prelude + case["source"])
    labels = np.arange(ROWS) % 2
    (folder / "d.csv").write_text("label\n" + "".join(f"{'ab'[label]}\n" for label in labels))
    random = np.random.default_rng(0)
    cells = {f"layer.01/{name}": random.normal(size=(ROWS, 4)) + labels[:, None] for name in ("cls", "mean")}
    save_file({name: vectors.astype(np.float32) for name, vectors in cells.items()}, folder / "v.safetensors")
    os.chdir(folder)
    with on_path(folder):
        yield folder
    os.chdir(before)


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """No test hangs with its plug-in. One of them sweeps over all probes."""
    with deadline(60):
        yield


def read_process() -> dict[str, Any]:
    """What a plug-in might have changed."""
    os.umask(mask := os.umask(0o077))
    return {
        "directory": os.getcwd(),
        "umask": mask,
        "environment": dict(os.environ),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.stderr.closed),
        "descriptors": [os.fstat(number).st_ino for number in (1, 2)],
        "modules": [sys.modules["json"], sys.modules["pandas"]],
        "search": [*sys.meta_path],
        "hooks": (sys.excepthook, sys.displayhook),
        "limit": sys.getrecursionlimit(),
        "functions": (metric.accuracy, LogisticProbe.fit_cells, builtins.sorted),
        "warnings": [*warnings.filters],
        "numpy": np.geterr(),
        "log": (logging.root.handlers[:], logging.getLogger("clsprobe").disabled, logging.root.manager.disable),
        "random": torch.get_rng_state().tolist() + np.random.get_state()[1].tolist(),  # noqa: NPY002
        "torch": (torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
    }


@contextmanager
def unchanged() -> Iterator[None]:
    """What the block changes in the process is a failure, named."""
    before = read_process()
    yield
    after = read_process()
    assert [name for name in before if before[name] != after[name]] == []


# -------------------------------------------------------------------------------------------------------------- probes


def run_probes(names: list[str], out: str, *flags: str) -> tuple[int, str, dict[str, Any]]:
    """The exit code of a sweep, what it prints to stdout, and its run.json."""
    with redirect_stdout(io.StringIO()) as printed:
        code = call(*POOLINGS, "--probes", ",".join(names), "--out", out, "--quiet", *flags)
    return code, printed.getvalue(), json.loads(Path(out, "run.json").read_text())


@pytest.fixture(scope="module")
def clean(desk) -> pd.DataFrame:
    """The predictions of honest probes without any other."""
    assert run_probes(["logistic", "honest:Nearest"], "clean")[:2] == (0, f"{Path('clean/report.html')}\n")
    return pd.read_parquet("clean/predictions.parquet")


@pytest.fixture(scope="module")
def swept(desk, clean) -> dict[str, Any]:
    """The run.json of a sweep in which all hostile probes stand between the honest ones."""
    hostile = [f"{case['name']}:Probe" for case in CASES["probes"]]
    with unchanged():
        code, printed, run = run_probes(["logistic", *hostile, "honest:Nearest"], "swept")
    assert code == 2
    assert printed == f"{Path('swept/report.html')}\n"
    return run


def reasons(run: dict[str, Any], case: dict[str, Any]) -> list[str]:
    """Why the cells of a probe failed."""
    pattern = rf"probe '{case['name']}:Probe' failed on layer 1, (?:cls|mean) \(file:d:label\): (.*)"
    return [match[1] for sentence in run["failed"] if (match := re.fullmatch(pattern, sentence))]


@cases("probes")
def test_a_probe_fails_by_itself_or_changes_nothing(case, swept, clean):
    table = pd.read_parquet("swept/predictions.parquet")
    rows = table[(table.probe == f"{case['name']}:Probe")]
    if "says" in case:
        assert len(reasons(swept, case)) == 2
        for line in reasons(swept, case):
            check_said(case, line)
        assert not len(rows)
    else:
        assert reasons(swept, case) == []
        honest = clean[clean.probe == "honest:Nearest"]
        pd.testing.assert_series_equal(
            rows.predicted.astype(str), honest.predicted.astype(str), check_index=False, check_names=False
        )


def test_other_probes_have_the_results_that_they_have_alone(swept, clean):
    table = pd.read_parquet("swept/predictions.parquet")
    others = table[table.probe.isin(["logistic", "honest:Nearest", "none"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, clean, check_categorical=False)
    before, after = (json.loads(Path(out, "answers/poolings.json").read_text()) for out in ("clean", "swept"))
    assert before["verdict"] == after["verdict"]
    page = Path("swept/report.html").read_text()
    assert "\x1b" not in page
    assert "SystemExit: bye" in page


def test_a_probe_that_hangs_is_a_failed_cell(desk, clean):
    with unchanged():
        hanging = [f"{case['name']}:Probe" for case in CASES["hanging"]]
        code, _, run = run_probes(["honest:Nearest", *hanging], "hanging", "--probe-timeout", "1")
    assert code == 2
    for case in CASES["hanging"]:
        assert reasons(run, case) == [case["says"]] * 2, case["name"]
    assert run["settings"]["probe_timeout"] == 1
    assert run["finished"]


# ------------------------------------------------------------------------------------------------------- other plug-ins


@cases("modules")
def test_a_module_that_cannot_be_used_is_one_line(case, desk):
    with unchanged(), pytest.raises(InputError) as caught:
        find_probe(f"{case['name']}:Name")
    assert caught.value.where == f"--probes {case['name']}:Name"
    check_said(case, str(caught.value).removeprefix(f"{caught.value.where}: "))


@cases("sources")
def test_a_source_fails_by_itself_or_changes_nothing(case, desk, capsys):
    with unchanged():
        if "says" in case:
            with pytest.raises(InputError) as caught:
                load(f"{case['name']}:load:x", SourceOptions())
            check_said(case, str(caught.value).removeprefix(f"--task {case['name']}:load: "))
        else:
            loaded = load(f"{case['name']}:load:x", SourceOptions())
            assert [len(task.texts) for task in loaded.tasks] == [40]
            assert loaded.digest == load(f"{case['name']}:load:x", SourceOptions()).digest
    assert capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def encoder(desk) -> Any:
    return load_encoder(str(models.save("bert", desk / "bert", layers=2)))


TEXTS = ["cat", "dog cat", "bird tree dog", "house cat dog tree bird", "tree"] * 4


@pytest.fixture(scope="module")
def vectors(encoder) -> np.ndarray:
    """(layer, text, dim) the means of all tokens."""
    states = Extractor(encoder, ["mean"], max_tokens_per_batch=40)(TEXTS)
    return np.stack([states.cell(layer, "mean")[:] for layer in states.layers])


@cases("readouts")
def test_a_readout_fails_by_itself_or_changes_nothing(case, encoder, vectors, monkeypatch):
    monkeypatch.setattr(readouts, "_PLUGINS", {})
    names = [f"{case['name']}:Mine", "mean"]
    with unchanged():
        if "says" in case:
            with pytest.raises(InputError) as caught:
                Extractor(encoder, names, max_tokens_per_batch=40)(TEXTS)
            check_said(case, str(caught.value).removeprefix("--readouts mine: "))
            return
        states = Extractor(encoder, names, max_tokens_per_batch=40)(TEXTS)
    for layer, expected in zip(states.layers, vectors, strict=True):
        for name in ("mine", "mean"):
            np.testing.assert_array_equal(states.cell(layer, name)[:], expected)


@cases("studies")
def test_a_study_fails_by_itself_or_changes_nothing(case, desk, clean, capsys):
    command, out = f"{case['name']}:Mine", case["name"] + "_run"
    with unchanged():
        code = call(command, *POOLINGS[1:], "--probes", "logistic,honest:Nearest", "--out", out, "--quiet")
    output = capsys.readouterr()
    run = json.loads((desk / out / "run.json").read_text())
    assert (desk / out / "report.html").exists()
    assert output.out == f"{Path(out, 'report.html')}\n"
    if "says" in case:
        assert code == 2
        (said,) = run["failed"]
        check_said(case, said)
        assert output.err == f"error: {out}: {said[:-1]}. The rest is in the report.\n"
    else:
        assert (code, run["failed"]) == (0, [])
    pd.testing.assert_frame_equal(pd.read_parquet(desk / out / "predictions.parquet"), clean)


PLOTS = """
from clsprobe.analysis.plots.style import register_plot

@register_plot("value")
def leave(table):
    raise SystemExit(3)

@register_plot("value")
def alter(table):
    table["value"] = 0
    raise ValueError("no")
"""


def test_a_plot_fails_by_itself_and_gets_a_table_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "hostile_plots.py").write_text(PLOTS)
    monkeypatch.setattr("clsprobe.analysis.plots.style.DEFINED", {})
    table = pd.DataFrame({"value": [1, 2]})
    with on_path(tmp_path), unchanged():
        import hostile_plots  # noqa: F401

        with pytest.raises(PluginError, match=r"^SystemExit: 3$"):
            draw("hostile_plots:leave", table, {})
        with pytest.raises(ValueError, match=r"^no$"):
            draw("hostile_plots:alter", table, {})
    assert table.value.tolist() == [1, 2]


# -------------------------------------------------------------------------------------------- processes of their own

COMMAND = """
import multiprocessing, os, sys, threading, time
import joblib
from clsprobe import cli
from clsprobe.probes import plugins

def goes_on():
    with plugins.contain("Mine", seconds=0.2):
        while True:
            try: time.sleep(1e6)
            except: pass

def keeps_the_lock():
    with plugins.contain("Mine", seconds=0.2):
        sum(iter(int, 1))

def leaves_a_thread():
    threading.Thread(target=time.sleep, args=(1e6,)).start()

def uses_workers():
    joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(number) for number in range(3))
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(1e6,)).start()
    print(*(process.pid for process in multiprocessing.active_children()))

def prints_in_c():
    print("before")
    with plugins.undo_changes():
        os.write(1, b"written\\n")
        os.system("echo echoed")
        sys.__stdout__.write("hidden\\n")
    os.write(1, b"after\\n")

def closes_the_streams():
    with plugins.undo_changes():
        sys.__stdout__.close()
        sys.__stderr__.close()
        os.close(0)
    print("printed")
    cli.log.info("logged")
    os.fstat(0)

plugins.PATIENCE = 0.3
cli.app.command("goes-on")(goes_on)
cli.app.command("keeps-the-lock")(keeps_the_lock)
cli.app.command("closes-the-streams")(closes_the_streams)
cli.app.command("leaves-a-thread")(leaves_a_thread)
cli.app.command("prints-in-c")(prints_in_c)
cli.app.command("uses-workers")(uses_workers)
cli.main()
"""


@pytest.mark.parametrize(
    ("name", "code", "printed", "line"),
    [
        (
            "goes-on",
            2,
            "",
            "error: --probe-timeout: Mine took longer than 0.2 s, and cannot be interrupted. "
            "Leave it out, or let it return now and then.\n",
        ),
        ("keeps-the-lock", 1, "", r"^Timeout \(0:00:00\.8.*in keeps_the_lock"),  # of faulthandler, where it is
        ("leaves-a-thread", 0, "", ""),
        ("prints-in-c", 0, "before\nafter\n", "written\nechoed\nhidden\n"),
        ("closes-the-streams", 0, "printed\n", "logged\n"),
    ],
)
def test_the_command_ends_whatever_a_plug_in_goes_on_with(name, code, printed, line):
    done = subprocess.run([sys.executable, "-c", COMMAND, name], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, printed)
    assert done.stderr == line or (line.startswith("^") and re.search(line, done.stderr, re.DOTALL))


def test_the_command_ends_with_the_processes_of_a_plug_in():
    done = subprocess.run([sys.executable, "-c", COMMAND, "uses-workers"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) == 3
    for process in map(int, done.stdout.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_an_interruption_while_a_limit_ends_skips_nothing(monkeypatch):
    set_timer = signal.setitimer

    def be_late(which: int, seconds: float, interval: float = 0) -> tuple[float, float]:
        if not seconds:
            time.sleep(0.3)
        return set_timer(which, seconds, interval)

    monkeypatch.setattr(signal, "setitimer", be_late)
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(PluginError, match=r"^took longer than 0.2 s$"), contain("Mine", seconds=0.2):
        pass
    assert signal.getsignal(signal.SIGALRM) is handler
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(timer.finished.is_set() for timer in timers)
