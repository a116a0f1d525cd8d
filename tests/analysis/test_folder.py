"""A run on disk: what is refused, what is gone on with, what an overwritten run leaves."""

from __future__ import annotations

import json
import os

import pandas as pd
import pytest

from clsprobe.analysis.folder import RunFolder, read_run
from clsprobe.analysis.study import Measured
from clsprobe.probes.errors import InputError

TABLE = pd.DataFrame({"a": [1, 2]})


class Counting:
    """A study that counts how often it measures."""

    measured = 0

    def measure(self, folder):
        self.measured += 1
        folder.begin()
        (folder.make_work_folder() / "half.bin").write_bytes(b"x")
        return Measured({"results": TABLE, "projection": TABLE}, {"rows": {}}, notes=["x"])


class OnlyResults:
    """A study with one table."""

    def measure(self, folder):
        return Measured({"results": TABLE}, {"rows": {}})


def finished(path, settings=None):
    folder = RunFolder(path, "run", settings or {"seed": 0})
    folder.measure(Counting())
    folder.path_of("answers/run.json").write_bytes(b"{}")
    folder.finish({"rows": {}})
    return folder


def test_nothing_is_created_before_begin(tmp_path):
    RunFolder(tmp_path / "out", "run", {})
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_refused_without_overwrite(tmp_path):
    finished(tmp_path / "out")
    with pytest.raises(InputError, match=r"holds a finished run\. Pass --overwrite"):
        RunFolder(tmp_path / "out", "run", {"seed": 0})
    RunFolder(tmp_path / "out", "run", {"seed": 1}, overwrite=True)


def test_an_unfinished_run_goes_on_with_the_same_settings_only(tmp_path):
    study = Counting()
    RunFolder(tmp_path, "run", {"seed": 0}).measure(study)
    again = RunFolder(tmp_path, "run", {"seed": 0}).measure(study)
    assert study.measured == 1
    assert again.notes == ["x"]
    pd.testing.assert_frame_equal(again.tables["results"], TABLE)
    assert not (tmp_path / "trainings").exists()
    with pytest.raises(InputError, match="unfinished run with other settings"):
        RunFolder(tmp_path, "run", {"seed": 1})
    with pytest.raises(InputError, match="unfinished run with other settings"):
        RunFolder(tmp_path, "positions", {"seed": 0})
    RunFolder(tmp_path, "run", {"seed": 0}, overwrite=True).measure(study)
    assert study.measured == 2


def test_a_run_stopped_while_it_was_measured_is_measured_again(tmp_path):
    class Stopped(Counting):
        def measure(self, folder):
            super().measure(folder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RunFolder(tmp_path, "run", {"seed": 0}).measure(Stopped())
    assert (tmp_path / "trainings" / "half.bin").exists()  # for the next start to go on with
    study = Counting()
    RunFolder(tmp_path, "run", {"seed": 0}).measure(study)
    assert study.measured == 1
    assert not (tmp_path / "trainings").exists()


def test_an_overwritten_run_leaves_nothing_behind(tmp_path):
    finished(tmp_path)
    folder = RunFolder(tmp_path, "run", {"seed": 1}, overwrite=True)
    folder.measure(OnlyResults())
    folder.finish({})
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"run.json", "results.parquet"}


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
