"""A run on disk: what is refused, what is resumed, what is measured anew, what an overwritten run removes."""

from __future__ import annotations

import json
import logging
import os
import shutil

import pandas as pd
import pytest
from house import ROOT

from clsprobe.analysis.folder import RunFolder, read_run
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.study import Study
from clsprobe.probes.errors import InputError

TABLE = pd.DataFrame({"a": [1, 2]})
HALF = "0123456789abcdef.safetensors"  # the name of an intermediate result
SETTINGS = {"seed": 0}


class Run(Study):
    """Like the study of this name, but what it reads is `data`, and it counts how often it measures."""

    data: str = "first"
    tables = ("results", "projection")

    def contents(self):
        return {"code": "same", "file:d.csv": self.data}

    def measure(self, folder):
        MEASURED.append(self.data)
        folder.begin()
        (folder.make_work_folder() / HALF).write_bytes(b"x")
        return Measured({"results": TABLE, "projection": TABLE}, {"rows": {}}, notes=[self.data])

    def judge(self, measured, task):
        raise NotImplementedError

    def show(self, measured, task):
        raise NotImplementedError


MEASURED: list[str] = []


@pytest.fixture(autouse=True)
def nothing_measured_before():
    MEASURED.clear()


class OnlyResults(Run):
    """A study with one table."""

    tables = ("results",)

    def measure(self, folder):
        return Measured({"results": TABLE}, {"rows": {}})


def finished(path):
    folder = RunFolder(path, "run", SETTINGS)
    folder.measure(Run())
    for name in ("answers/run.json", "answers/run.00.parquet", "figures/run.00.svg", "report.html"):
        folder.path_of(name).write_bytes(b"ours")
    folder.finish({"rows": {}})
    return folder


def overwrite(path, settings=None):
    folder = RunFolder(path, "run", settings or {"seed": 1}, overwrite=True)
    folder.measure(OnlyResults())
    folder.finish({})


def files_in(path):
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()}


def test_nothing_is_created_before_begin(tmp_path):
    RunFolder(tmp_path / "out", "run", {})
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_refused_without_overwrite(tmp_path):
    finished(tmp_path / "out")
    with pytest.raises(InputError, match=r"holds a finished run\. Pass --overwrite"):
        RunFolder(tmp_path / "out", "run", {"seed": 0})
    RunFolder(tmp_path / "out", "run", {"seed": 1}, overwrite=True)


def test_an_unfinished_run_goes_on_with_the_same_settings_only(tmp_path):
    RunFolder(tmp_path, "run", {"seed": 0}).measure(Run())
    again = RunFolder(tmp_path, "run", {"seed": 0}).measure(Run())
    assert MEASURED == ["first"]
    assert again.notes == ["first"]
    pd.testing.assert_frame_equal(again.tables["results"], TABLE)
    assert not (tmp_path / "trainings").exists()
    with pytest.raises(InputError, match="unfinished run with other settings"):
        RunFolder(tmp_path, "run", {"seed": 1})
    with pytest.raises(InputError, match="unfinished run with other settings"):
        RunFolder(tmp_path, "positions", {"seed": 0})
    RunFolder(tmp_path, "run", {"seed": 0}, overwrite=True).measure(Run())
    assert MEASURED == ["first", "first"]


class Stopped(Run):
    """A study that is stopped after it has saved an intermediate result."""

    def measure(self, folder):
        super().measure(folder)
        raise KeyboardInterrupt


def stop(path):
    with pytest.raises(KeyboardInterrupt):
        RunFolder(path, "run", SETTINGS).measure(Stopped())
    assert (path / "trainings" / HALF).exists()  # for the next start to go on with


def test_a_run_stopped_while_it_was_measured_is_measured_again(tmp_path):
    stop(tmp_path)
    RunFolder(tmp_path, "run", SETTINGS).measure(Run())
    assert MEASURED == ["first", "first"]
    assert not (tmp_path / "trainings").exists()


# ------------------------------------------------------------------------------------------------ other contents


@pytest.mark.parametrize("data", ["first", "second"])
def test_a_measurement_is_resumed_from_the_same_contents_only(tmp_path, caplog, data):
    caplog.set_level(logging.INFO, "clsprobe")
    RunFolder(tmp_path, "run", SETTINGS).measure(Run())
    again = RunFolder(tmp_path, "run", SETTINGS).measure(Run(data=data))
    assert again.notes == [data]
    assert (["first"] if data == "first" else ["first", "second"]) == MEASURED
    lines = [message for message in caplog.messages if "changed" in message]
    assert lines == ([] if data == "first" else ["measuring anew: changed since this run was begun: file:d.csv"])


def test_intermediate_results_and_weights_of_other_contents_are_removed(tmp_path):
    class Looking(Run):
        def measure(self, folder):
            folder.begin()
            LOOKED.append(files_in(folder.path))
            return super().measure(folder)

    LOOKED = []
    for data, again in (("first", False), ("second", False), ("first", True), ("second", True)):
        shutil.rmtree(tmp_path, ignore_errors=True)
        stop(tmp_path)
        folder = RunFolder(tmp_path, "run", SETTINGS)
        folder.path_of("weights/bag.safetensors").write_bytes(b"x")
        content = json.loads((tmp_path / "run.json").read_text()) | {"contents": Run().contents()}
        (tmp_path / "run.json").write_text(json.dumps(content))
        RunFolder(tmp_path, "run", SETTINGS, overwrite=again).measure(Looking(data=data))
    same, other = {"run.json", f"trainings/{HALF}", "weights/bag.safetensors"}, {"run.json"}
    assert [same, other, same, other] == LOOKED


def test_an_unfinished_run_that_did_not_record_what_it_read_is_measured_anew(tmp_path, caplog):
    caplog.set_level(logging.INFO, "clsprobe")
    RunFolder(tmp_path, "run", SETTINGS).measure(Run())
    content = json.loads((tmp_path / "run.json").read_text())
    del content["contents"], content["files"]
    (tmp_path / "run.json").write_text(json.dumps(content))
    RunFolder(tmp_path, "run", SETTINGS).measure(Run())
    assert MEASURED == ["first", "first"]
    assert "measuring anew: it was begun by a version of clsprobe that did not record what it read" in caplog.messages


def test_the_digest_of_a_run_covers_its_contents(tmp_path):
    digests = []
    for data in ("first", "first", "second"):
        shutil.rmtree(tmp_path, ignore_errors=True)
        folder = RunFolder(tmp_path, "run", SETTINGS)
        folder.measure(Run(data=data))
        digests.append(json.loads((tmp_path / "run.json").read_text())["digest"])
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    "measured",
    [{"tables": ["../../secret"]}, {"tables": "results"}, {"tables": ["results"], "facts": []}, []],
    ids=["a name elsewhere", "no list", "no facts", "no object"],
)
def test_a_run_json_that_describes_no_measurement_is_refused(tmp_path, measured):
    RunFolder(tmp_path, "run", SETTINGS).measure(Run())
    content = json.loads((tmp_path / "run.json").read_text())
    content["measured"] = content["measured"] | measured if measured else measured
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"is not what a clsprobe command writes.*--overwrite"):
        RunFolder(tmp_path, "run", SETTINGS).measure(Run())
    RunFolder(tmp_path, "run", SETTINGS, overwrite=True).measure(Run())


# ------------------------------------------------------------------------------------------------ only our own files


def test_an_overwritten_run_leaves_nothing_behind(tmp_path):
    finished(tmp_path)
    overwrite(tmp_path)
    assert files_in(tmp_path) == {"run.json", "results.parquet"}


def test_files_of_somebody_else_survive_an_overwritten_run(tmp_path):
    finished(tmp_path)
    mine = {
        "figures/mine.svg", "tables/mine.parquet", "answers/draft.json", "weights/mine.safetensors", "thesis.tex",
        "figures/old/run.00.svg", "answers/other.00.parquet", "trainings/notes.txt",
    }  # fmt: skip
    for name in mine:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    overwrite(tmp_path)
    assert files_in(tmp_path) == {"run.json", "results.parquet"} | mine
    assert {(tmp_path / name).read_text() for name in mine} == {"mine"}


@pytest.mark.parametrize(
    "name", ["report.html", "tables/projection.parquet", "answers/run.json", "figures", "trainings"]
)
@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_stands_in_the_way_is_refused_before_work_begins(tmp_path, name, kind):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = RunFolder(run, "run", SETTINGS)
    folder.begin()
    (run / name).parent.mkdir(exist_ok=True)
    if kind == "folder":
        (run / name / "mine").mkdir(parents=True)
    elif kind == "file":
        (run / name).write_text("mine")
    else:
        (run / name).symlink_to(elsewhere)
    before = files_in(run)
    harmless = kind == "folder" and name in ("figures", "trainings")
    for again in (False, True):
        if harmless:
            RunFolder(run, "run", SETTINGS, overwrite=again).measure(Run())
            assert (run / name / "mine").is_dir()
            continue
        with pytest.raises(InputError, match="Move it away, or name another --out"):
            RunFolder(run, "run", SETTINGS, overwrite=again).measure(Run())
        assert MEASURED == []
        assert files_in(run) == before


@pytest.mark.parametrize(
    "name",
    ["../precious", "/etc/precious", "figures/../../precious", "..\\precious", "figures/link/precious.00.svg",
     "thesis.tex", "figures", "", "answers/.", "answers/..", 7, None, "weights/../../precious.safetensors"],
)  # fmt: skip
def test_a_run_json_cannot_direct_a_removal_elsewhere(tmp_path, name):
    run = tmp_path / "run"
    finished(run)
    for precious in (tmp_path / "precious", tmp_path / "precious.safetensors", run / "thesis.tex"):
        precious.write_text("mine")
    content = json.loads((run / "run.json").read_text())
    content["files"] = [*content["files"], name, str(tmp_path / "precious")]
    (run / "run.json").write_text(json.dumps(content))
    overwrite(run)
    assert files_in(run) == {"run.json", "results.parquet", "thesis.tex"}
    assert {path.name for path in tmp_path.iterdir()} == {"run", "precious", "precious.safetensors"}


@pytest.mark.parametrize("folder", ["figures", "weights", "trainings"])
def test_a_removal_follows_no_link(tmp_path, folder):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    listed = {"figures": "figures/run.00.svg", "weights": "weights/bag.safetensors", "trainings": f"trainings/{HALF}"}
    name = listed[folder]
    (elsewhere / name.partition("/")[2]).write_text("mine")
    finished(run)
    if folder == "weights":
        content = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(content | {"files": [*content["files"], name]}))
    shutil.rmtree(run / folder, ignore_errors=True)
    (run / folder).symlink_to(elsewhere)
    replacing = RunFolder(run, "run", {"seed": 1}, overwrite=True)
    replacing.begin()
    replacing.finish({})
    assert [path.read_text() for path in elsewhere.iterdir()] == ["mine"]


def test_a_file_that_became_a_link_is_not_replaced(tmp_path):
    run = tmp_path / "run"
    finished(run)
    (tmp_path / "mine").write_text("mine")
    (run / "report.html").unlink()
    (run / "report.html").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="is not of this run"):
        overwrite(run)
    assert (run / "report.html").read_text() == "mine"


@pytest.mark.parametrize("name", ["run", "geometry", "formation"])
def test_of_a_run_that_lists_no_files_those_that_its_version_wrote_are_removed(tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(ROOT / "tests" / "data" / "runs_of_0_1" / name, run)
    written = files_in(run)
    for more in ("tables/projection.parquet", f"figures/{name}.00.svg", "report.html"):
        (run / more).parent.mkdir(exist_ok=True)
        (run / more).write_text("written by that version")
    mine = {"figures/plot.svg", "tables/mine.parquet", "answers/essay.json", "notes.txt", "weights/my.safetensors"}
    for more in mine:
        (run / more).parent.mkdir(exist_ok=True)
        (run / more).write_text("mine")
    assert len(written) > 5
    overwrite(run)
    left = mine | {"run.json", "results.parquet"}
    assert files_in(run) == left | ({"tables/projection.parquet"} if name == "formation" else set())


def test_a_run_killed_while_it_was_written_leaves_nothing_behind_in_the_end(tmp_path):
    """Every file is listed before it is written."""
    folder = RunFolder(tmp_path, "run", SETTINGS)
    folder.measure(Run())
    folder.reserve(["answers/run.json", "answers/run.00.parquet", "figures/run.00.svg"])
    (tmp_path / "figures" / "run.00.svg").write_text("ours")  # killed here
    overwrite(tmp_path)
    assert files_in(tmp_path) == {"run.json", "results.parquet"}


def test_weights_of_a_finished_measurement_stay(tmp_path):
    class Learning(Run):
        def measure(self, folder):
            folder.begin()
            folder.path_of("weights/bag.safetensors").write_bytes(b"x")
            return Measured({"results": TABLE}, {"rows": {}})

    RunFolder(tmp_path, "run", SETTINGS).measure(Learning())
    again = RunFolder(tmp_path, "run", SETTINGS)
    again.measure(Learning())
    again.finish({})
    assert files_in(tmp_path) == {"run.json", "results.parquet", "weights/bag.safetensors"}


def test_run_json_says_what_is_needed_to_judge_the_run(tmp_path):
    finished(tmp_path)
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["finished"] is True
    assert content["settings"] == {"seed": 0}
    assert read_run(tmp_path) == content
    assert read_run(tmp_path / "nowhere") is None


def test_other_people_s_folders_and_files_are_left_alone(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_bytes(b"x")
    for path, message in (
        ("file", "is a file"),
        ("file/below", "is a file"),
        ("folder", "exists and holds no run"),
    ):
        for overwrite in (False, True):
            with pytest.raises(InputError, match=message):
                RunFolder(tmp_path / path, "run", {}, overwrite=overwrite)
    assert (tmp_path / "folder" / "thesis.tex").read_bytes() == b"x"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="no permission"):
        RunFolder(tmp_path / "out", "run", {})
