"""Every row of a file is used, or left out for a reason that is counted: in run.json and on the page."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import models
import pandas as pd
import pytest

from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.cli import main
from clsprobe.probes.tasks.duplicates import normalise
from clsprobe.probes.tasks.split import split

pytestmark = pytest.mark.usefixtures("one_thread")

THINGS = ["the cat", "a dog", "the bird", "a big tree", "the red house", "dogs"]
DEEDS = ["sees the dog", "runs", "sleeps on the tree", "sleeps in the house", "sees a bird", "runs on the house"]


def sentences() -> list[tuple[str, str]]:
    """Thirty-six texts that a small model knows every word of, and their labels."""
    return [(f"{thing} {deed}", "runs" if "run" in deed else "rests") for thing in THINGS for deed in DEEDS]


def dirty(folder: Path, name: str) -> tuple[str, list[str], int]:
    """A SPEC with faults of its own, the flags that it needs, and how many rows it has."""
    good = [f"{text},{label}" for text, label in sentences()]
    twice = [good[0], f"{sentences()[0][0].upper()},{sentences()[0][1]}"]
    bad, last = [" ,runs", "lost,", *twice, ",rests"], good[-2:]
    new = ["dogs sees the tree,rests", "a cat runs in,runs", "a bird sleeps in the big house,rests"]
    parts = {"train": [*good, *bad, *last], "test": [*last, *new]} if name == "folder" else {"d": [*good, *bad]}
    for part, rows in parts.items():
        (folder / f"{part}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    flags = ["--drop-empty", "--drop-missing-labels", *(["--max-texts", "30"] if name == "sampled" else [])]
    spec = f"file:{folder}" if name == "folder" else f"file:{folder}/d.csv"
    return spec, flags, sum(map(len, parts.values()))


def left_out(counts: dict[str, Any]) -> int:
    return sum(n for name, n in counts.items() if name.startswith("left out: "))


def check_table(table: pd.DataFrame, folder: Path, counts: dict[str, Any]) -> None:
    """Every line below the headers stands in the table once, with its side or the reason that the counts have."""
    lines = {(path.name, n) for path in folder.iterdir() for n in range(2, len(path.read_text().splitlines()) + 1)}
    assert sorted(zip(table.source, table.number, strict=True)) == sorted(lines)
    assert ((table.side == "") == (table.reason != "")).all()
    for reason, n in table.reason[table.reason != ""].value_counts().items():
        assert counts[f"left out: {reason}"] == n
    for side in ("train", "dev", "test"):
        assert (table.side == side).sum() == counts[side]
    for source, number, reason in table[["source", "number", "reason"]].itertuples(index=False):
        text, _, label = (folder / source).read_text().splitlines()[number - 1].rpartition(",")
        assert (reason == "empty text") == (not text.strip())
        assert (reason == "missing label") == (bool(text.strip()) and not label)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return models.save("bert", tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("name", ["file", "sampled", "folder"])
def test_rows_in_are_rows_used_and_rows_left_out(name, model, tmp_path) -> None:
    (tmp_path / "data").mkdir()
    spec, flags, rows = dirty(tmp_path / "data", name)
    command = ["run", "--task", spec, *flags, "--model", str(model), "--layers", "0,3", "--readouts", "cls,token2"]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--out", str(tmp_path / "out"), "--quiet"])
    assert stop.value.code == 0
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    (read,), ((task, counts),) = run["read"].values(), run["rows"].items()
    assert read["rows"] == rows
    assert read["rows"] - left_out(read) == counts["rows"]
    assert counts["rows"] - left_out(counts) == sum(counts[side] for side in ("train", "dev", "test"))
    assert left_out(read) == 3
    expected = {
        "file": "",
        "sampled": "left out: beyond --max-texts",
        "folder": "left out: train copies of a test text",
    }
    assert expected[name] in {"", *counts}

    table = pd.read_parquet(tmp_path / "out" / "tables" / "rows.parquet")
    check_table(table, tmp_path / "data", {**read, **counts})
    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    side_of_row = table[table.row >= 0].set_index("row").side
    assert (predictions.split.astype(str) == side_of_row[predictions.row].astype(str).to_numpy()).all()

    page = html.unescape(re.sub(r"<[^>]+>", " ", (tmp_path / "out" / "report.html").read_text()))
    for spec_or_task, spec_counts in ((spec, read), (task, counts)):
        for reason, n in spec_counts.items():
            assert re.search(rf"{re.escape(f'{spec_or_task}: {reason}')}\s+{n}\b", page), reason


def test_what_is_wrong_with_rows_is_counted_and_named(tmp_path) -> None:
    spec, _, _ = dirty(tmp_path, "folder")
    loaded = load(spec, SourceOptions(drop_empty=True, drop_missing_labels=True))
    assert loaded.left_out == {"empty text": 2, "missing label": 1}
    parted = split(loaded.tasks[0])
    assert parted.left_out["train copies of a test text"] == 4
    assert "4 rows of train left out: copies of a test text (train.csv lines 36, 37, 43, 44)" in parted.notes
    assert sum(parted.left_out.values()) == (parted.side == "").sum()


def test_the_real_thing(data_folder: Path) -> None:
    """TREC: ten texts of test stand in train as well, in eleven rows, and each of these is named."""
    task = load(f"file:{data_folder / 'trec'}", SourceOptions(label_column=("coarse",))).tasks[0]
    sides = dict[str, list[tuple[int, str]]]()
    for row, (text, side) in enumerate(zip(task.texts, task.split, strict=True), 1):  # type: ignore[arg-type]
        sides.setdefault(side, []).append((row, normalise(text)))
    assert task.located.locate(0) == "train.tsv:2"  # the header is line 1
    test = {text for _, text in sides["test"]}
    shared = [row for row, text in sides["train"] if text in test]
    assert len({task.texts[row - 1] for row in shared} & {task.texts[row - 1] for row, _ in sides["test"]}) == 10
    parted = split(task)
    (note,) = (text for text in parted.notes if "left out: copies of a test text" in text)
    assert note.startswith("11 rows of train left out")
    assert [int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", note.partition("(")[2])][:10] == [
        row + 1 for row in shared[:10]
    ]
    assert parted.notes[0].startswith("83 rows repeat an earlier text (train.tsv lines 371, 466")
