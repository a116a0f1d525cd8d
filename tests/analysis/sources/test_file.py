"""`file:`: what good files become, however they are written, and that nothing is changed on the way."""

from __future__ import annotations

import csv
import gzip
import json
import os
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clsprobe.analysis.sources import Loaded, SourceOptions, load
from clsprobe.probes.errors import InputError
from clsprobe.probes.tasks.task import Task

ROWS = [
    ("NA", "01"),
    ("null", "1"),
    ("None", "1.0"),
    ("nan", "01"),
    ("N/A", "1"),
    ('"Quoted" from the start', "1.0"),
    ("a, comma; a semicolon | a bar", "01"),
    ("emoji 👩‍👩‍👧 and \u202ertl\u202c עברית", "1"),
    ("a 'single' quote, NUL \0, line \u2028 separator \x85", "null"),
    ("=cmd()", "null"),
]


def rows_of(task: Task) -> list[tuple[str, ...]]:
    columns = [c for c in (task.split, task.groups) if c is not None]
    return list(zip(task.texts, task.y.tolist(), *(c.tolist() for c in columns), strict=True))


def read(path: Path | str, **options: Any) -> Loaded:
    return load(f"file:{path}", SourceOptions(**options))


def write(
    path: Path, rows: Sequence[tuple[str, ...]], header: tuple[str, ...] = ("text", "label"), end: str = "\n"
) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        match path.suffix:
            case ".csv":
                writer = csv.writer(file, lineterminator=end)
                writer.writerows([header, *rows])
            case ".tsv":
                file.writelines("\t".join(row) + end for row in [header, *rows])
            case ".json":
                json.dump([dict(zip(header, row, strict=True)) for row in rows], file)
            case ".jsonl":
                file.writelines(json.dumps(dict(zip(header, row, strict=True))) + end for row in rows)
            case ".parquet":
                table = pa.table(dict(zip(header, map(list, zip(*rows, strict=True)), strict=True)))
                pq.write_table(table, path, row_group_size=3 if len(rows) < 100 else 50_000)
            case ".gz":
                plain = write(path.with_suffix(""), rows, header, end)
                path.write_bytes(gzip.compress(plain.read_bytes(), 1))
            case ".arrow":
                table = pa.table(dict(zip(header, map(list, zip(*rows, strict=True)), strict=True)))
                with pa.ipc.new_stream(path, table.schema) as stream:
                    stream.write_table(table, 3 if len(rows) < 100 else 1000)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow", ".csv.gz", ".CSV"])
def test_texts_and_labels_stay_as_they_are(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"d{suffix.lower()}", ROWS).rename(tmp_path / f"d{suffix}")
    loaded = read(path)
    assert rows_of(loaded.tasks[0]) == ROWS
    assert loaded.tasks[0].name == "file:d:label"
    assert loaded.tasks[0].kind == "class"
    assert (loaded.rows, loaded.left_out) == (10, {})
    assert [note.partition("; --")[0] for note in loaded.notes] == [
        "column 'label': classes that may stand for no label (rows in brackets): 'null' (2)",
        "column 'label': some classes differ only by spaces, case or the writing of a number (rows in brackets): "
        "'1' (3), '01' (3), '1.0' (2)",
    ]
    assert loaded.tasks[0].split is None
    assert loaded.tasks[0].groups is None


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
@pytest.mark.parametrize("tail", ["", "\n\n"], ids=["one end", "blank lines"])
def test_line_ends_and_marks_make_no_difference(tmp_path: Path, suffix: str, end: str, mark: bytes, tail: str) -> None:
    path = write(tmp_path / f"d{suffix}", ROWS, end=end)
    path.write_bytes(mark + path.read_bytes() + tail.replace("\n", end).encode())
    assert rows_of(read(path).tasks[0]) == ROWS
    path.write_bytes(path.read_bytes().rstrip(b"\r\n"))
    assert rows_of(read(path).tasks[0]) == ROWS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "gb18030"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "d.csv", ROWS)
    path.write_bytes(path.read_bytes().decode().encode(encoding))
    assert rows_of(read(path, encoding=encoding).tasks[0]) == ROWS
    path.write_bytes("text,label\ncafé,pos\nthé,neg\n".encode("cp1252"))
    assert list(read(path, encoding="cp1252").tasks[0].texts) == ["café", "thé"]


def test_csv_with_newlines_and_separators(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(b'label;x;text\r\npos;1;"two\r\nlines; and ""quotes"""\r\nneg;2;plain\r\n')
    assert rows_of(read(path, sep=";").tasks[0]) == [('two\r\nlines; and "quotes"', "pos"), ("plain", "neg")]
    path.write_bytes(b"text\tlabel\na, b\tpos\nc\tneg\n")
    for sep in ("\t", "\\t", "tab"):
        assert list(read(path, sep=sep).tasks[0].texts) == ["a, b", "c"]


def test_a_field_may_be_long(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = write(tmp_path / "d.csv", [("x" * 300_000, "a"), ("y", "b")])
    assert len(read(path).tasks[0].texts[0]) == 300_000
    assert csv.field_size_limit() == limit


def test_every_line_of_a_tsv_is_a_row(tmp_path: Path, data_folder: Path) -> None:
    path = data_folder / "sst2" / "train.tsv"
    assert read(path).rows == path.read_bytes().count(b"\n") - 1
    quotes = write(tmp_path / "d.tsv", [(f'"{i} opens', "ab"[i % 2]) for i in range(9)])
    assert read(quotes).rows == 9


def test_several_labels_are_several_tasks(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", [("a", "x", "1"), ("b", "y", "2"), ("c", "x", "")], ("text", "one", "two"))
    loaded = read(path, label_column=("one", "two"), drop_missing_labels=True)
    assert [task.name for task in loaded.tasks] == ["file:d:one", "file:d:two"]
    assert [task.y.tolist() for task in loaded.tasks] == [["x", "y"], ["1", "2"]]
    assert loaded.rows == 3
    assert loaded.left_out == {"missing label": 1}


def test_dropped_rows_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "d.csv", [("", "x"), ("a", "x"), (" ", ""), ("b", ""), ("c", "y")])
    loaded = read(path, drop_empty=True, drop_missing_labels=True)
    assert rows_of(loaded.tasks[0]) == [("a", "x"), ("c", "y")]
    assert loaded.rows == 5
    assert loaded.left_out == {"empty text": 2, "missing label": 1}


def test_json_labels_are_their_json_text(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    labels = ["1", "1.0", "1e3", "true", "false", '"1"', '"pos"', "123456789012345678901234567890"]
    path.write_text("".join(f'{{"text": "t", "label": {label}, "more": [1]}}\n' for label in labels))
    expected = ["1", "1.0", "1e3", "true", "false", "1", "pos", "123456789012345678901234567890"]
    assert read(path).tasks[0].y.tolist() == expected
    path.write_text('{"text": "a"}\n{"label": "x", "text": "b"}\n{"text": "c", "label": "y"}\n{"text": "d"}\n')
    assert rows_of(read(path, drop_missing_labels=True).tasks[0]) == [("b", "x"), ("c", "y")]


def test_surrogates_are_replaced_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a\\ud800b", "label": "x"}\n{"text": "pair \\ud83d\\ude00", "label": "y\\udfff"}\n')
    loaded = read(path, replace_invalid=True)
    assert rows_of(loaded.tasks[0]) == [("a\ufffdb", "x"), ("pair 😀", "y\ufffd")]
    assert loaded.notes == ["2 cells held what no text can hold, replaced by U+FFFD"]


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (pa.array([0.0, 1.0, 1.0]), ["0", "1", "1"]),
        (pa.array([0.5, 1.0, 0.5, 1.0, 0.5]), ["0.5", "1.0", "0.5", "1.0", "0.5"]),
        (pa.array([0, 1, 1], pa.int8()), ["0", "1", "1"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["b", "a", "b"]),
        (pa.array(["b", "a"], pa.large_string()), ["b", "a"]),
        (pa.array([b"b", b"a"]), ["b", "a"]),
    ],
)
def test_parquet_types(tmp_path: Path, labels: pa.Array, wanted: list[str]) -> None:
    pq.write_table(pa.table({"text": [f"t{i}" for i in range(len(labels))], "label": labels}), tmp_path / "d.parquet")
    loaded = read(tmp_path / "d.parquet")
    assert loaded.tasks[0].y.tolist() == wanted
    assert bool(loaded.notes) == (wanted[0] == "0" and pa.types.is_floating(labels.type))


def test_parquet_floats_with_a_gap_are_classes(tmp_path: Path) -> None:
    table = {"text": ["a", "b", "c", "d"], "label": [0.0, None, float("nan"), 1.0]}
    pq.write_table(pa.table(table), tmp_path / "d.parquet")
    loaded = read(tmp_path / "d.parquet", drop_missing_labels=True)
    assert rows_of(loaded.tasks[0]) == [("a", "0"), ("d", "1")]
    assert loaded.left_out == {"missing label": 2}
    assert "holds whole numbers as floats" in loaded.notes[0]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_numbers(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"d{suffix}", [("a", "0.25"), ("b", "-3"), ("c", "1e2")])
    task = read(path, target="number").tasks[0]
    assert task.kind == "number"
    assert task.y.dtype == np.float64
    assert task.y.tolist() == [0.25, -3, 100]
    assert read(path, target="class").tasks[0].y.tolist() == ["0.25", "-3", "1e2"]


def test_split_and_group_columns(tmp_path: Path) -> None:
    names = ["train", "TR", "valid", "va", "test", "te", "train"]
    rows = [(f"t{i}", "ab"[i % 2], name, f"g{i // 2}") for i, name in enumerate(names)]
    path = write(tmp_path / "d.csv", rows, ("text", "label", "part", "author"))
    task = read(path, split_column="part", group_column="author").tasks[0]
    assert task.split is not None
    assert task.split.tolist() == ["train", "train", "dev", "dev", "test", "test", "train"]
    assert task.groups is not None
    assert task.groups.tolist() == [0, 0, 1, 1, 2, 2, 3]


def test_a_dev_without_a_test_is_the_test(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "validation.jsonl", ROWS[:4])
    loaded = read(f"{tmp_path}/")
    assert loaded.tasks[0].name == f"file:{tmp_path.name}:label"
    assert loaded.tasks[0].split is not None
    assert Counter(loaded.tasks[0].split.tolist()) == {"train": 10, "test": 4}
    assert loaded.notes[0] == "there are no test rows: dev serves as test, and a tenth of train as dev"


def test_labels_that_differ_by_spaces_are_noted(tmp_path: Path) -> None:
    loaded = read(write(tmp_path / "d.csv", [("a", "pos"), ("b", "pos "), ("c", "neg")]))
    assert "differ only by spaces" in loaded.notes[0]


def test_odd_labels_stay_apart(tmp_path: Path) -> None:
    labels = ["a", "a\0", "_x", "$5", "x" * 500, "猫"]
    loaded = read(write(tmp_path / "d.csv", [(f"t{i}", label) for i, label in enumerate(labels)]))
    assert loaded.tasks[0].y.tolist() == labels


def test_real_texts(data_folder: Path) -> None:
    trec = read(data_folder / "trec", label_column=("coarse", "fine"))
    assert [len(set(task.y)) for task in trec.tasks] == [6, 50]
    assert trec.rows == 5952
    sst2 = read(data_folder / "sst2")
    assert sst2.tasks[0].split is not None
    assert Counter(sst2.tasks[0].split.tolist()) == {"train": 6920, "dev": 872, "test": 1821}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow", ".jsonl.gz"])
def test_memory_grows_with_the_bytes_not_the_rows(tmp_path: Path, suffix: str) -> None:
    """At most 1 MB for 10,000 rows of 40 bytes."""
    peaks = {}
    for rows in (1_000, 10_000, 20_000):  # the first one imports
        texts = [(f"a text of about forty bytes, number {i}", "ab"[i % 2]) for i in range(rows)]
        path = write(tmp_path / f"d{suffix}", texts)
        del texts
        tracemalloc.start()
        assert read(path).rows == rows
        peaks[rows] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[20_000] - peaks[10_000] < 10_000 * 100


@pytest.mark.parametrize("spec", [Path("reviews.csv"), None, ["grammar:tense"]])
def test_what_is_no_spec_is_one_clear_error(spec):
    with pytest.raises(InputError, match=r"--task: is a.* not a SPEC\. Pass a SPEC such as 'grammar:tense'"):
        load(spec)


def test_a_path_with_a_label_instead_of_its_source_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("text,label\na,b\n")
    with pytest.raises(InputError, match=r"rows\.csv is a file, and no source is named\. Write file:rows\.csv"):
        load("rows.csv:label")


def test_excels_first_line_yields_to_the_flag(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("sep=|\ntext;label\na|b;x\nc;y\n")
    assert rows_of(read(path, sep=";").tasks[0]) == [("a|b", "x"), ("c", "y")]


def test_rows_that_fill_half_of_the_memory_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "d.csv", [("x" * 100, "a"), ("y" * 100, "b"), ("z" * 100, "c")])
    assert read(path).rows == 3
    monkeypatch.setattr(os, "sysconf", lambda name: 16 if "PAGE_SIZE" in name or "PAGESIZE" in name else 26)
    with pytest.raises(
        InputError, match=r"^d\.csv:4: the rows up to here take 0 MB, more than half of the memory\. Give a"
    ):
        read(path)
