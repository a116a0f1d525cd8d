"""Folders of files: which files are which side; what the library `datasets` writes is read as it does."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import datasets
import pytest

from clsprobe.analysis.sources import Loaded, SourceOptions, load
from clsprobe.probes.errors import InputError

FEATURES = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})


@pytest.fixture(autouse=True)
def current_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(first: int, last: int) -> datasets.Dataset:
    rows = range(first, last)
    return datasets.Dataset.from_dict({"text": [f"film {n}" for n in rows], "label": [n % 2 for n in rows]}, FEATURES)


def read(spec: str = "file:d", **options: object) -> Loaded:
    return load(spec, SourceOptions(**options))


def write(path: str, *rows: str, header: str = "text,label") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join([header, *rows, ""]))


@pytest.mark.parametrize("shards", [1, 3])
def test_a_saved_dataset(shards):
    make(0, 60).save_to_disk("d", num_shards=shards)
    loaded = read()
    (task,) = loaded.tasks
    again = datasets.load_from_disk("d")
    assert (task.name, task.split, loaded.notes) == ("file:d:label", None, [])
    assert list(task.texts) == list(again["text"])
    assert task.y.tolist() == [FEATURES["label"].int2str(code) for code in again["label"]]


def test_a_saved_dataset_may_have_a_column_with_its_split():
    data = make(0, 8).add_column("part", ["train"] * 6 + ["test"] * 2)
    data.save_to_disk("d")
    assert read(split_column="part").tasks[0].split.tolist() == ["train"] * 6 + ["test"] * 2


def test_a_saved_dictionary():
    parts = {"test": make(40, 50), "unsupervised": make(60, 90), "train": make(0, 40), "validation": make(50, 60)}
    datasets.DatasetDict(parts).save_to_disk("d")
    loaded = read()
    assert list(loaded.tasks[0].texts) == [f"film {n}" for n in [*range(40), *range(50, 60), *range(40, 50)]]
    assert Counter(loaded.tasks[0].split.tolist()) == {"train": 40, "dev": 10, "test": 10}
    assert loaded.notes == ["not read: split unsupervised"]
    with pytest.raises(InputError, match=r"--split-column: d is a folder, split by its files already"):
        load("file:d", SourceOptions(split_column="part"))


def test_a_saved_dictionary_of_train_alone():
    datasets.DatasetDict(train=make(0, 40)).save_to_disk("d")
    loaded = read()
    assert (len(loaded.tasks[0].texts), loaded.tasks[0].split) == (40, None)
    assert loaded.notes == ["d holds train alone, which clsprobe splits itself"]


def test_the_indices_of_a_selection_are_written_out():
    make(0, 60).shuffle(seed=1).select(range(20)).save_to_disk("d")
    assert list(read().tasks[0].texts) == list(datasets.load_from_disk("d")["text"])


def test_a_hub_layout_reads_like_the_library():
    Path("d/data").mkdir(parents=True)
    for n, (first, last) in enumerate([(0, 10), (10, 15), (15, 40)]):
        make(first, last).to_parquet(f"d/data/train-{n:05}-of-00003.parquet")
    make(40, 50).to_parquet("d/data/test-00000-of-00001.parquet")
    task = read().tasks[0]
    assert list(task.texts) == [f"film {n}" for n in range(50)]
    assert task.split.tolist() == ["train"] * 40 + ["test"] * 10
    assert set(task.y) == {"bad", "good"}


def test_parts_are_in_the_order_of_their_numbers():
    for n in range(12):
        write(f"d/train-{n}-of-12.csv", f"text {n},{'xy'[n % 2]}")
    write("d/test.csv", "other,x")
    assert list(read().tasks[0].texts) == [*(f"text {n}" for n in range(12)), "other"]


def test_hidden_labels_of_a_test_side_are_left_out_with_a_flag():
    for side, data in (("train", make(0, 10)), ("validation", make(10, 15))):
        Path("d").mkdir(exist_ok=True)
        data.to_parquet(f"d/{side}-00000-of-00001.parquet")
    rows = {"text": ["hidden"] * 5, "label": [-1] * 5}
    datasets.Dataset.from_dict(rows, FEATURES).to_parquet("d/test-00000-of-00001.parquet")
    with pytest.raises(InputError, match=r"test-00000-of-00001.parquet:1: column 'label' is empty .*--drop-missing-la"):
        read()
    loaded = read(drop_missing_labels=True)
    assert loaded.left_out == {"missing label": 5}
    assert Counter(loaded.tasks[0].split.tolist()) == {"train": 10, "test": 5}


def test_errors_and_notes_name_the_files_of_a_side():
    for n in range(3):
        write(f"d/train-0000{n}-of-00003.csv", f"a{n},x", f"b{n},y", header=" text,label")
    write("d/test.csv", "c,x", "d,new", header=" text,label")
    with pytest.raises(InputError, match=r"^test.csv:3: label 'new' of column 'label' is not in the train rows"):
        read()
    write("d/test.csv", "c,x", header=" text,label")
    assert read().notes == ["train-00000-of-00003.csv and 3 more files: column 'text' is ' text' in the header"]
    for n in range(3):
        write(f"d/train-0000{n}-of-00003.csv", f"a{n},x")
    with pytest.raises(InputError, match=r"^d: column 'label' has one class \('x', 3 rows\)"):
        read()


def test_files_of_a_folder_for_each_side_are_named_with_it():
    write("d/train/0.csv", "a,x", "b,y")
    write("d/test/0.csv", "a,x,z")
    with pytest.raises(InputError, match=r"^test/0.csv:2: 3 fields"):
        read()


def test_files_in_the_readme_that_lead_out_are_not_read():
    write("outside.csv", "a,x", "b,y")
    paths = ["../outside.csv", str(Path("outside.csv").absolute()), "..\\outside.csv"]
    entries = [{"split": "train", "path": paths}, {"split": "test", "path": paths}]
    Path("d").mkdir()
    Path("d/README.md").write_text("---\n" + json.dumps({"configs": [{"data_files": entries}]}) + "\n---\n")
    with pytest.raises(InputError, match="the folder has no train file"):
        read()


@pytest.mark.parametrize("header", ["[", "a: [1", "- x", "configs: 3", "configs: [3]", "configs: [{data_files: [3]}]"])
def test_a_readme_that_says_nothing_of_files(header):
    Path("d").mkdir()
    Path("d/README.md").write_text(f"---\n{header}\n---\n")
    with pytest.raises(InputError, match="the folder has no train file"):
        read()


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("rows.csv", "file:rows:label"),
        ("./rows.csv", "file:rows:label"),
        ("./d/", "file:d:label"),
        ("d", "file:d:label"),
    ],
)
def test_a_path_alone_is_a_file_or_folder(spec, name):
    from clsprobe.run import Run

    for path in ("rows.csv", "d/train.csv", "d/test.csv"):
        write(path, "a,x", "b,y")
    assert load(spec).tasks[0].name == name
    assert Run(task=spec).model_dump(mode="json")["task"] == [f"file:{spec}"]


def test_a_source_comes_before_a_path():
    write("grammar", "a,x")
    assert load("grammar:tense:24").tasks[0].name.startswith("grammar:tense")
