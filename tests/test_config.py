"""--config: text stays text, and every mistake has its line."""

from __future__ import annotations

import pytest

from clsprobe.cli import make_study
from clsprobe.config import read_config
from clsprobe.run import Run
from probes.errors import InputError

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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lable_column: x", r"run.yaml:1: unknown key 'lable_column'\. Did you mean 'label_column'\?"),
        ("seed: 1\nseed: 2", "run.yaml:2: key 'seed' is given twice"),
        ("seed: 1\n\tseeds: 2", "run.yaml:2: not valid YAML"),
        ("task: &a x\nmodel: *a", "run.yaml: uses a YAML alias"),
        ("model: !!python/object/apply:os.system [ls]", "run.yaml:1 model: has the tag"),
        ("model: {a: b}", "run.yaml:1 model: is neither a value nor a list"),
        ("- a\n- b", "run.yaml:1: is no list of 'name: value' lines"),
        (b"\xff\xfe\x00", "run.yaml: cannot be read"),
        (b"x" * (2 << 20), "run.yaml: is larger than 1 MB"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message.replace("run.yaml: cannot", ".*run.yaml: cannot")):
        read(tmp_path, text)


def test_an_empty_file_says_nothing(tmp_path):
    assert read(tmp_path, "# nothing yet\n") == ({}, {})


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 7\nlayers: 0,1\nlong-rows: drop\n")
    study = make_study(Run, {"layers": "2"}, str(tmp_path / "run.yaml"))
    assert (study.seed, study.layers, study.long_rows, study.seeds) == (7, "2", "drop", 1)


def test_a_wrong_value_names_the_line_or_the_flag(tmp_path):
    (tmp_path / "run.yaml").write_text("task: grammar:tense\nseeds: many\n")
    with pytest.raises(InputError, match=r"run.yaml:2 seeds: 'many' does not fit\. Give a whole number from 1 to 1000"):
        make_study(Run, {}, str(tmp_path / "run.yaml"))
    with pytest.raises(InputError, match="--seed: '1099511627776' does not fit"):
        make_study(Run, {"seed": "1099511627776"})
