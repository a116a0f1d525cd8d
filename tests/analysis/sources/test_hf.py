"""`hf:`: data sets out of a cache made here, the hub monkeypatched at its one entrance, and no network anywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from house import ROOT
from outside import within_deadline

from clsprobe.analysis.sources import Loaded, SourceOptions, hf, load
from clsprobe.probes.errors import InputError
from clsprobe.probes.tasks.task import Task
from clsprobe.probes.tasks.texts import parts

OLD, NEW = "a" * 40, "b" * 40
LABELLED = {"text": ["one", "two", "three", "four"], "label": [0, 1, 1, 0]}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, offline."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("clsprobe.probes.hub.hub_is_reachable", lambda: False)
    return tmp_path / "cache"


def prepare(
    cache: Path, name: str, splits: dict[str, dict[str, Any]], config: str = "default", commit: str = OLD, **kinds: Any
) -> Path:
    """A data set as `datasets` leaves it in its cache; kinds: features by column, for those that have names."""
    import datasets
    from datasets.arrow_writer import ArrowWriter
    from datasets.splits import SplitDict

    kinds = {"label": datasets.ClassLabel(names=["neg", "pos"])} | kinds
    folder = cache / name.replace("/", "___").lower() / config / "0.0.0" / commit
    folder.mkdir(parents=True)
    stem = name.rpartition("/")[2].lower()
    infos, features = SplitDict(dataset_name=stem), None
    for split, columns in splits.items():
        guessed = datasets.Dataset.from_dict(columns).features
        features = datasets.Features({c: kinds.get(c, kind) for c, kind in guessed.items()})
        data = datasets.Dataset.from_dict(columns, features=features)
        with ArrowWriter(path=str(folder / f"{stem}-{split}.arrow"), features=features) as writer:
            writer.write_table(data.data.table)
            examples, size = writer.finalize()
        infos.add(datasets.SplitInfo(split, size, examples, dataset_name=stem))
    datasets.DatasetInfo(
        features=features, splits=infos, config_name=config, dataset_name=stem, version="0.0.0"
    ).write_to_directory(str(folder))
    return folder


def read(rest: str, **options: Any) -> Loaded:
    return load(f"hf:{rest}", SourceOptions(**options))


def error(rest: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(rest, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows_of(task: Task) -> list[tuple[str, ...]]:
    columns = [c.tolist() for c in (task.split, task.groups) if c is not None]
    return list(zip(task.texts, task.y.tolist(), *columns, strict=True))


def test_splits_become_sides_and_class_labels_their_names(cache: Path) -> None:
    prepare(cache, "org/films", {"train": LABELLED, "validation": LABELLED, "test": LABELLED})
    loaded = read("org/films")
    (task,) = loaded.tasks
    rows = [("one", "neg"), ("two", "pos"), ("three", "pos"), ("four", "neg")]
    assert rows_of(task) == [(*row, side) for side in ("train", "dev", "test") for row in rows]
    assert task.name == "hf:films:label"
    assert (loaded.rows, loaded.left_out) == (12, {})
    assert loaded.notes == [f"org/films is revision {OLD}, config default"]
    assert type(task.texts[0]) is str
    assert list(task.texts[2:5]) == ["three", "four", "one"]
    assert task.texts[-1] == "four"


def test_a_name_longer_than_the_hub_allows_is_none(cache: Path) -> None:
    assert re.fullmatch("--task: 'x{100}' is no name of a data set. .*", error("x" * 5000))


def test_one_split_is_not_split(cache: Path) -> None:
    prepare(cache, "films", {"train": LABELLED})
    (task,) = read("films").tasks
    assert task.split is None
    assert len(task.texts) == 4


def test_texts_stay_mapped_in_the_cache(cache: Path) -> None:
    many = 200_000
    prepare(
        cache, "films", {"train": {"text": [f"text number {i}" for i in range(many)], "label": [0, 1] * (many // 2)}}
    )
    before = pa.total_allocated_bytes()
    loaded = read("films")
    assert len(loaded.tasks[0].texts) == many
    assert pa.total_allocated_bytes() - before < 1_000_000  # the texts alone are 3.6 MB
    assert loaded.tasks[0].texts[many - 1] == f"text number {many - 1}"


@pytest.mark.parametrize(
    ("requested", "texts", "sides"),
    [
        ("train", ["one", "two", "three", "four"], None),
        ("train[:2]", ["one", "two"], None),
        ("train[50%:]", ["three", "four"], None),
        ("train[:1]+test[1:2]", ["one", "b"], None),
        ("train[:3],test", ["one", "two", "three", "a", "b"], ["train"] * 3 + ["test"] * 2),
        ("train, validation[:1], test", ["one", "two", "three", "four", "v", "a", "b"], None),
    ],
)
def test_slices(cache: Path, requested: str, texts: list[str], sides: list[str] | None) -> None:
    more = {"validation": {"text": ["v", "w"], "label": [0, 1]}, "test": {"text": ["a", "b"], "label": [0, 1]}}
    prepare(cache, "org/films", {"train": LABELLED, **more})
    (task,) = read("org/films", split=requested).tasks
    assert list(task.texts) == texts
    if "validation" in requested:
        sides = ["train"] * 4 + ["dev"] + ["test"] * 2
    assert (task.split.tolist() if task.split is not None else None) == sides


def test_pairs_of_columns(cache: Path) -> None:
    second = {"other": ["a", "b", "", "d"], "text": ["one", "two", "three", "fo\ufdd0ur"]}
    prepare(cache, "org/pairs", {"train": LABELLED | second})
    columns = {"text_column": "text,other"}
    assert error("org/pairs", **columns).startswith("hf:org/pairs/train:4: column 'text' holds U+FDD0")
    line = error("org/pairs", **columns, split="train[:3]")
    assert line.startswith("hf:org/pairs/train[:3]:3: column 'other' is empty. Mend the data, or pass --drop-empty")
    loaded = read("org/pairs", **columns, split="train[:3]", drop_empty=True)
    assert [parts(text) for text in loaded.tasks[0].texts] == [["one", "a"], ["two", "b"]]
    assert loaded.left_out == {"empty text": 1}
    assert "Did you mean 'other'?" in error("org/pairs", text_column="text,othr")


def test_columns_of_every_type(cache: Path) -> None:
    columns = {
        "words": ["a", "b", "c", "d"],
        "stars": [1.0, 2.0, 2.0, 1.0],
        "half": [0.5, 1.0, 0.5, 1.5],
        "true": [True, False, True, False],
        "whole": [3, 4, 3, 4],
        "plain": ["NA", "01", "1", "nan"],
        "author": ["x", "y", "x", "x"],
    }
    prepare(cache, "films", {"train": columns})
    loaded = read(
        "films", text_column="words", label_column=("stars", "half", "true", "whole", "plain"), group_column="author"
    )
    assert {task.label: task.y.tolist() for task in loaded.tasks} == {
        "stars": ["1", "2", "2", "1"],
        "half": ["0.5", "1", "0.5", "1.5"],
        "true": ["true", "false", "true", "false"],
        "whole": ["3", "4", "3", "4"],
        "plain": ["NA", "01", "1", "nan"],
    }
    assert loaded.tasks[0].groups is not None
    assert loaded.tasks[0].groups.tolist() == [0, 1, 0, 0]
    assert "column 'stars' holds whole numbers as floats" in loaded.notes[1]
    assert "'NA' (1), 'nan' (1); --missing-labels NA,nan leaves" in loaded.notes[2]
    assert "'1' (1), '01' (1); --merge-labels" in loaded.notes[3]
    assert len(loaded.notes) == 4
    numbers = read("films", text_column="words", label_column=("half", "whole"), target="number").tasks
    assert [task.y.tolist() for task in numbers] == [[0.5, 1.0, 0.5, 1.5], [3.0, 4.0, 3.0, 4.0]]
    assert numbers[0].kind == "number"
    assert numbers[0].y.dtype == np.float64


def test_labels_that_may_be_meant_otherwise(cache: Path) -> None:
    columns = {
        "text": [f"t{n}" for n in range(6)],
        "grade": ["1", "1.0", "nan", "2", "2", "nan "],
        "score": ["1,5"] * 6,
    }
    prepare(cache, "films", {"train": columns})
    loaded = read("films", label_column=("grade",), missing_labels=("nan",), merge_labels=True)
    assert loaded.tasks[0].y.tolist() == ["1", "1", "2", "2"]
    assert loaded.left_out == {"label that stands for none": 2}
    assert "spellings of one class are merged into the first (rows in brackets): '1' (1) = '1.0' (1)" in loaded.notes[1]
    loaded = read("films", label_column=("score",), target="number", missing_labels=("NA",))
    assert loaded.tasks[0].y.tolist() == [1.5] * 6
    assert loaded.notes[1:] == [
        "--missing-labels: no row has the label 'NA'",
        "column 'score' is written with decimal commas: 1,5 is read as 1.5",
    ]


def test_numbers_beyond_the_class_names(cache: Path) -> None:
    folder = prepare(cache, "films", {"train": LABELLED})
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('["neg", "pos"]', '["neg"]'))
    assert error("films").startswith(
        "hf:films/train:2: column 'label' holds a number beyond its classes, 0 to 0 (likew"
    )


def test_hidden_labels_of_a_benchmark(cache: Path) -> None:
    hidden = LABELLED | {"label": [-1, -1, -1, -1]}
    prepare(cache, "org/bench", {"train": LABELLED, "validation": LABELLED, "test": hidden}, config="cola")
    loaded = read("org/bench:cola")
    (task,) = loaded.tasks
    assert task.name == "hf:bench:cola:label"
    assert task.split is not None
    assert task.split.tolist() == ["train"] * 4 + ["test"] * 4
    assert loaded.left_out == {"test has no labels": 4}
    assert loaded.notes[1:] == [
        "test is published without labels and left out",
        "there are no test rows: dev serves as test, and a tenth of train as dev",
    ]
    assert "column 'label' is empty" in error("org/bench", split="test")


def test_what_is_missing_is_named_or_left_out(cache: Path) -> None:
    gaps = {"text": ["one", "", None, "four", "five"], "label": [0, 1, 1, -1, None]}
    prepare(cache, "films", {"train": LABELLED, "test": gaps})
    assert error("films") == "hf:films/test:2: text is empty (likewise row 3). Mend the data, or pass --drop-empty."
    assert error("films", drop_empty=True) == (
        "hf:films/test:4: column 'label' is empty (likewise row 5). Mend the data, or pass --drop-missing-labels."
    )
    loaded = read("films", drop_empty=True, drop_missing_labels=True)
    assert rows_of(loaded.tasks[0])[4:] == [("one", "neg", "test")]
    assert loaded.left_out == {"empty text": 2, "missing label": 2}
    assert loaded.rows == 9 == len(loaded.tasks[0].texts) + sum(loaded.left_out.values())


def test_mistakes_in_columns_and_splits(cache: Path) -> None:
    columns = LABELLED | {"scores": [0.1 * i for i in range(4)], "lists": [[1], [2], [3], [4]]}
    prepare(cache, "org/films", {"train": columns, "unsupervised": columns})
    train = {"split": "train"}
    assert error("org/films", label_column=("lable",), **train) == (
        "hf:org/films: no column 'lable'. Columns: text, label, scores, lists. Did you mean 'label'?"
    )
    assert error("org/films", text_column="sentence", **train).endswith("lists. Name it with --text-column.")
    assert error("org/films", text_column="scores", **train).startswith("hf:org/films: column 'scores' holds 'double'")
    assert "column 'lists' holds 'list<" in error("org/films", label_column=("lists",), **train)
    assert error("org/films", split="tran") == (
        "--split: unknown split 'tran'. Did you mean 'train'? One of: train, unsupervised."
    )
    assert error("org/films", split="train[:x]").startswith("--split train[:x]: ")
    assert "corresponds to no data. As in train[:1000]" in error("org/films", split="train[:0]")
    assert error("org/films", split="train,unsupervised").startswith(
        "--split: 'train,unsupervised' is not one slice each"
    )
    assert error("org/films") == (
        "--split: splits train, unsupervised: not train with validation or test. "
        "Name what to read, such as --split train."
    )
    assert error("org/films", split_column="part").startswith("--split-column: hub data is split by name")
    assert error("org/films", target="number", **train).startswith(
        "hf:org/films/train:1: column 'label' holds no finite"
    )


def test_fractions_and_long_labels(cache: Path) -> None:
    import datasets

    many = {"text": [f"t{i}" for i in range(30)], "label": [i / 7 for i in range(30)]}
    prepare(cache, "scores", {"train": many}, label=datasets.Value("float64"))
    assert error("scores").startswith(
        "hf:scores: column 'label' holds numbers with fractions (30 distinct). Pass --target"
    )
    assert read("scores", target="number").tasks[0].y.tolist() == many["label"]
    prepare(cache, "long", {"train": {"text": ["a", "b"], "label": ["x" * 1001, "y"]}}, label=datasets.Value("string"))
    assert "holds 1,001 characters, more than a label has" in error("long")


def test_configs_and_revisions(cache: Path, tmp_path: Path) -> None:
    prepare(cache, "org/glue", {"train": LABELLED}, config="cola")
    newer = prepare(cache, "org/glue", {"train": LABELLED}, config="cola", commit=NEW)
    os.utime(newer, (time.time() + 10, time.time() + 10))
    prepare(cache, "org/glue", {"train": LABELLED}, config="sst2")
    assert error("org/glue") == "hf:org/glue: has several configs. Name one of cola, sst2, as in hf:org/glue:cola."
    assert read("org/glue:cola").notes == [f"org/glue:cola is revision {NEW}, config cola"]
    assert read(f"org/glue:cola@{OLD}").notes == [f"org/glue:cola is revision {OLD}, config cola"]
    assert read("org/glue:cola@aaaaaaa").notes == [f"org/glue:cola is revision {OLD}, config cola"]
    refs = tmp_path / "hub" / "datasets--org--glue" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(OLD)
    assert read("org/glue:cola@main").notes == [f"org/glue:cola is revision {OLD}, config cola"]
    assert error("org/glue:mrpc") == (
        "hf:org/glue:mrpc: is not in the local cache, and the hub does not answer. "
        "Cached: hf:org/glue:cola@aaaaaaa, hf:org/glue:cola@bbbbbbb, hf:org/glue:sst2@aaaaaaa."
    )
    assert error("org/glue:cola@v2").startswith("hf:org/glue:cola: is not in the local cache at v2, and the hub")


def test_names_that_are_none(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(cache, "org/films", {"train": LABELLED})
    near = "and the hub does not answer. Did you mean 'org/films' (cached)?"
    assert error("org/flims") == f"hf:org/flims: is not in the local cache, {near}"
    assert error("films").endswith(near)
    assert error("something/else") == (
        "hf:something/else: is not in the local cache, and the hub does not answer. Load it once while online."
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for path in ("./mine", "mine", "/no/such", "~/x", "../x"):
        assert error(path) == f"--task: {path} is a path, not a name on the hub. For your own files: file:{path}."
    for name in ("", "a/b/c", "no such name", "a:b:c/d@", "x\0y"):
        assert error(name).startswith(f"--task: '{name}' is no name".replace("\0", "\\x00"))


def test_a_damaged_cache(cache: Path) -> None:
    folder = prepare(cache, "films", {"train": LABELLED})
    (folder / "films-train.arrow").write_bytes(b"cut")
    assert error("films").startswith("--split train: ")
    (folder / "dataset_info.json").write_text("{")
    assert error("films").startswith("hf:films: damaged in the cache (")


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_pipe_in_the_cache(cache: Path) -> None:
    folder = prepare(cache, "films", {"train": LABELLED})
    for name in ("films-train.arrow", "dataset_info.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        message = within_deadline(lambda: error("films"), folder / name)
        assert message.startswith("hf:films: damaged in the cache (")
        assert "not a regular file" in message


def test_names_in_the_cache_are_written_as_datasets_writes_them() -> None:
    from datasets.naming import camelcase_to_snakecase

    for name in ("SetFit", "sst2", "HTMLPages", "a-B_c", "XNLI", "TrecQA", "ag_news", "Multi30k", "GLUEv2X"):
        assert hf._to_snake_case(name) == camelcase_to_snakecase(name)


# -------------------------------------------------------------------------------------------------------------- the hub


def answers(monkeypatch: pytest.MonkeyPatch, load_builder: Callable[..., Any]) -> None:
    monkeypatch.setattr("clsprobe.probes.hub.hub_is_reachable", lambda: True)
    monkeypatch.setattr("datasets.load_dataset_builder", load_builder)


def test_a_download_is_asked_for_by_name_config_and_revision(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    datasets.Dataset.from_dict(LABELLED, features=features).to_parquet(str(tmp_path / "d.parquet"))
    real, requests = datasets.load_dataset_builder, []

    def hub(name: str, config: str | None, **options: Any) -> Any:
        requests.append((name, config, options["revision"], "trust_remote_code" in options))
        return real("parquet", data_files={"train": str(tmp_path / "d.parquet")}, cache_dir=options["cache_dir"])

    answers(monkeypatch, hub)
    loaded = read("org/films:small@v1")
    assert requests == [("org/films", "small", "v1", False)]
    assert [y for _, y in rows_of(loaded.tasks[0])] == ["neg", "pos", "pos", "neg"]
    assert all(path.is_relative_to(cache) for path in cache.rglob("*.arrow"))
    assert list(cache.rglob("*.arrow"))


def test_what_is_cached_asks_nobody(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hub(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("asked")

    answers(monkeypatch, hub)
    monkeypatch.setattr("clsprobe.probes.hub.hub_is_reachable", hub)
    prepare(cache, "org/films", {"train": LABELLED})
    assert read("org/films").rows == 4


SCRIPTS = "Dataset scripts are no longer supported, but found x.py"
MISSING = "Config name is missing.\nPlease pick one among the available configs: ['cola', 'sst2']"
CODE = "needs code of its own, which is not run. Take a copy of it in Parquet."
GUESS = "unknown config 'colla'. Did you mean 'cola'? One of: cola, sst2."


@pytest.mark.parametrize(
    ("kind", "message", "words"),
    [
        ("DatasetNotFoundError", "Dataset 'org/x' doesn't exist on the Hub or cannot be", "no data set 'org/x'. Check"),
        ("DatasetNotFoundError", "Dataset 'org/x' is a gated dataset on the Hub.", "is gated. Ask for access"),
        ("DatasetNotFoundError", "Revision 'v9' doesn't exist for dataset 'org/x' on the Hub.", "has no revision 'v9'"),
        ("RuntimeError", SCRIPTS, CODE),
        ("ValueError", MISSING, GUESS),
        ("ValueError", "BuilderConfig 'colla' not found. Available: ['cola', 'sst2']", GUESS),
        ("ConnectionError", "first line\nsecond line", "could not be loaded (ConnectionError: first line). Try again."),
        ("OSError", "", "could not be loaded (OSError). Try again."),
    ],
)
def test_the_hub_says_no(cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str, message: str, words: str) -> None:
    from datasets.exceptions import DatasetNotFoundError

    kinds = {"DatasetNotFoundError": DatasetNotFoundError, "RuntimeError": RuntimeError, "ValueError": ValueError}

    def hub(*arguments: Any, **options: Any) -> Any:
        raise (kinds | {"ConnectionError": ConnectionError, "OSError": OSError})[kind](message)

    answers(monkeypatch, hub)
    line = error("org/x:colla@v9")
    assert line.startswith("hf:org/x")
    assert words in line


def test_another_revision_is_no_answer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes whatever it has in its cache where the hub fails half-way."""
    from datasets.packaged_modules.cache.cache import Cache

    prepare(cache, "org/films", {"train": LABELLED})
    answers(monkeypatch, lambda *_, **__: Cache(str(cache), "films", "default", "0.0.0", OLD, repo_id="org/films"))
    assert (
        error("org/films@v2")
        == "hf:org/films: could not be loaded (ConnectionError: the hub stopped answering). Try again."
    )


@pytest.mark.parametrize("offline", ["1", "0"])  # said to be, and found to be by asking once
def test_no_network(tmp_path: Path, offline: str) -> None:
    code = (
        "import socket, sys, time; from clsprobe.analysis.sources import load, SourceOptions\n"
        "connect, tried, slept = socket.socket.connect, [], []\n"
        "socket.socket.connect = lambda *where: (tried.append(where), connect(*where))\n"
        "time.sleep = slept.append  # the hub's own calls try again and again, and sleep in between\n"
        "try: load('hf:org/name', SourceOptions())\n"
        "except Exception as e: print(e)\n"
        "print(len(tried), len(slept), {'torch', 'datasets'} & set(sys.modules))"
    )
    env = os.environ | {
        "HF_HUB_OFFLINE": offline,
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # where nobody answers, whatever network there is
    }
    for name in ("HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE", "HF_HUB_CACHE"):
        env.pop(name, None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.stdout == (
        "hf:org/name: is not in the local cache, and the hub does not answer. Load it once while online.\n"
        f"{int(offline == '0')} 0 set()\n"
    ), done.stderr
    assert not list(tmp_path.iterdir())
