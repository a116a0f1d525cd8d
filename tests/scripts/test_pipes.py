"""A pipe in the place of any file that is read is one line of error, and nothing waits for its writer.

The twins, regular files in all these places, are what the other tests of the commands read.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import answers
import models
import numpy as np
import pytest
from commands import call
from outside import within_deadline

from clsprobe.probes import hub

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return models.save("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture
def desk(model, tmp_path, monkeypatch) -> Path:
    """A folder with a model, its copy in a hub's cache, a finished run, a table, vectors and a configuration."""
    shutil.copytree(model, tmp_path / "m")
    home = tmp_path / "hub" / "models--org--name"
    shutil.copytree(model, home / "snapshots" / COMMIT)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    (tmp_path / "run" / "answers").mkdir(parents=True)
    answers.answer().save(tmp_path / "run" / "answers" / "run.json")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"digest": "0", "finished": True}))
    (tmp_path / "d.csv").write_text("text,label\na,x\nb,y\n")
    np.save(tmp_path / "v.npy", np.ones((2, 3), np.float32))
    (tmp_path / "run.yaml").write_text("layers: 0\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUN = ("run", "--task", "file:d.csv", "--out", "out")
READ = {
    **{f"m/{name}": (*RUN, "--model", "./m") for name in ("config.json", "tokenizer.json", "tokenizer_config.json")},
    **{f"m/{name}": (*RUN, "--model", "./m") for name in ("model.safetensors", "vocab.txt", "modules.json")},
    "m/model.safetensors.index.json": (*RUN, "--model", "./m"),
    "hub/models--org--name/refs/main": (*RUN, "--model", "org/name"),
    f"hub/models--org--name/snapshots/{COMMIT}/vocab.txt": (*RUN, "--model", "org/name"),
    "d.csv": RUN,
    "v.npy": (*RUN, "--vectors", "v.npy"),
    "run.yaml": (*RUN, "--config", "run.yaml"),
    "run/run.json": ("report", "run"),
    "run/answers/run.json": ("report", "run"),
    "run/answers/run.01.parquet": ("report", "run"),
    "run/results.parquet": ("export", "run"),
    "out/run.json": ("run", "--task", "grammar:tense:60", "--out", "out"),
}


@pytest.mark.parametrize("name", READ)
def test_a_pipe_is_an_error_of_one_line(desk, capsys, name):
    path = desk / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    assert within_deadline(lambda: call(*READ[name]), path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert path.name in error
    assert "not a regular file" in error


def test_what_an_index_names_is_no_pipe(desk, capsys):
    index = {"metadata": {}, "weight_map": {"pooler.dense.bias": "sub/pipe.safetensors"}}
    (desk / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    (desk / "m" / "sub").mkdir()
    os.mkfifo(desk / "m" / "sub" / "pipe.safetensors")
    assert within_deadline(lambda: call(*RUN, "--model", "./m"), desk / "m" / "sub" / "pipe.safetensors") == 2
    assert "./m/sub/pipe.safetensors: not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["../../../../m", "", "main", "\xff"])
def test_a_cache_of_the_hub_that_names_no_commit(desk, capsys, content):
    """Its name would be that of a folder."""
    (desk / "hub" / "models--org--name" / "refs" / "main").write_text(content)
    assert call(*RUN, "--model", "org/name") == 2
    assert "refs/main: holds no commit. Remove it" in capsys.readouterr().err


@pytest.mark.parametrize("table", ["../../d.parquet", "/etc/passwd", "..", "", "run.json", "sub/run.01.parquet"])
def test_an_answer_names_tables_beside_it(desk, capsys, table):
    path = desk / "run" / "answers" / "run.json"
    content = json.loads(path.read_text())
    content["exhibits"][0]["table"] = table
    path.write_text(json.dumps(content))
    assert call("report", "run") == 2
    assert f"run.json: names {json.dumps(table)}, which is no table beside it. Run" in capsys.readouterr().err
