"""--config: text stays text, and every mistake has its line."""

from __future__ import annotations

from clsprobe.config import read_config
from clsprobe.flags import make_study
from clsprobe.run import Run

KNOWN = list(Run.model_fields)


def read(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_config(path, KNOWN)


def test_values_stay_text_and_know_their_line(tmp_path):
    text = "# mine\nmodel: no\nlayers: 012\nreadouts: [cls, mean]\nlabel-column:\n  - a\n  - b\n"
    values, places = read(tmp_path, text)
    assert values == {"model": "no", "layers": "012", "readouts": ["cls", "mean"], "label_column": ["a", "b"]}
    assert places["layers"] == "run.yaml:3 layers"


def test_an_empty_file_says_nothing(tmp_path):
    assert read(tmp_path, "# nothing yet\n") == ({}, {})


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 7\nlayers: 0,1\nlong-rows: drop\n")
    study = make_study(Run, {"layers": "2"}, str(tmp_path / "run.yaml"))
    assert (study.seed, study.layers, study.long_rows, study.seeds) == (7, "2", "drop", 1)
