"""`senteval:`: probing files as they are, what is wrong with them, and sentences written as usual."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from clsprobe.analysis.sources import Loaded, SourceOptions, load
from clsprobe.analysis.sources.senteval import detokenise
from clsprobe.probes.tasks.split import split

ROWS = [
    (part, label, f"{what} number {i} is n't `` here '' , she said .")
    for part, rows in (("tr", 20), ("va", 6), ("te", 8))
    for i, (label, what) in enumerate([("PAST", f"The {part} cat"), ("PRES", f"A {part} dog")] * (rows // 2))
]


def write(path: Path, rows: list[tuple[str, ...]], end: str = "\n") -> Path:
    path.write_bytes("".join("\t".join(row) + end for row in rows).encode())
    return path


def read(path: Path | str, **options: Any) -> Loaded:
    return load(f"senteval:{path}", SourceOptions(**options))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_rows_stay_as_they_are(tmp_path: Path, end: str) -> None:
    loaded = read(write(tmp_path / "past_present.txt", ROWS, end))
    (task,) = loaded.tasks
    assert task.name == "senteval:past_present"
    assert task.split is not None
    sides = {"train": "tr", "dev": "va", "test": "te"}
    assert list(zip((sides[side] for side in task.split), task.y, task.texts, strict=True)) == ROWS
    assert (loaded.rows, loaded.left_out, loaded.notes) == (34, {}, [])
    assert loaded.classes == {
        task.name: {label: {"train": 10, "dev": 3, "test": 4} for label in ("PAST", "PRES")},
    }
    assert Counter(split(task).side.tolist()) == {"train": 20, "dev": 6, "test": 8}


def test_quotes_spaces_and_further_fields(tmp_path: Path) -> None:
    """No quoting: a sentence that opens with a quote swallows nothing; the last field is the sentence."""
    rows = [(part, label, "7", f'" {part} {label} NA') for part in ("tr", "te") for label in ("0", "00", "null")]
    path = tmp_path / "d.txt"
    path.write_bytes(gzip.compress(write(path, rows).read_bytes()))
    (task,) = read(path).tasks
    assert list(task.texts) == [row[3] for row in rows]
    assert task.y.tolist() == [row[1] for row in rows]


def test_test_identical_to_validation_is_noted(tmp_path: Path) -> None:
    test_rows = [row for row in ROWS if row[0] == "te"]
    rows = [row for row in ROWS if row[0] == "tr"] + test_rows + [("va", *row[1:]) for row in test_rows[::-1]]
    loaded = read(write(tmp_path / "d.txt", rows))
    assert loaded.notes == ["test is identical to validation (8 rows)"]
    sides = split(loaded.tasks[0])  # test stays; a part of train serves as dev
    assert sides.left_out == {"dev copies of a test text": 8}
    rows[-1] = ("va", "PAST", "another one")
    assert read(write(tmp_path / "d.txt", rows)).notes == []


def test_empty_sentences_can_be_left_out(tmp_path: Path) -> None:
    loaded = read(write(tmp_path / "d.txt", [*ROWS, ("tr", "PAST", ""), ("te", "PRES", " ")]), drop_empty=True)
    assert loaded.rows == 36
    assert loaded.left_out == {"empty text": 2}
    assert len(loaded.tasks[0].texts) == 34


def test_memory_grows_with_the_bytes(tmp_path: Path) -> None:
    import tracemalloc

    peaks = {}
    for rows in (10_000, 10_000, 40_000):
        many = [(("tr", "te")[i % 2], "ab"[i % 3 == 0], f"a sentence of about forty bytes {i}") for i in range(rows)]
        path = write(tmp_path / "d.txt", many)
        del many
        tracemalloc.start()
        assert len(read(path).tasks[0].texts) == rows
        peaks[rows] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[40_000] - peaks[10_000] < 30_000 * 100


@pytest.mark.parametrize(
    ("tokens", "written"),
    [
        ("I do n't know , she 's late .", "I don't know, she's late."),
        ("Ca n't you ? They 'll 've gone ; we 're here : now !", "Can't you? They'll've gone; we're here: now!"),
        ("`` Go , '' he said .", '"Go," he said.'),
        ('She said " no " and " yes " .', 'She said "no" and "yes".'),
        ("the boys ' room ( upstairs ) costs $ 5 or 10 %", "the boys' room (upstairs) costs $5 or 10%"),
        ("-LRB- a -RRB- -LSB- b -RSB- ...", "(a) [b]..."),
        ("It is 3.5 a.m. already", "It is 3.5 a.m. already"),
        ("Do n't 'em", "Don't 'em"),
        ("plain words", "plain words"),
        ('"', '"'),
    ],
)
def test_sentences_written_as_usual(tokens: str, written: str) -> None:
    assert detokenise(tokens) == written


def test_detokenising_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "d.txt", ROWS)
    assert read(path).tasks[0].texts[0] == "The tr cat number 0 is n't `` here '' , she said ."
    assert read(path, detokenise=True).tasks[0].texts[0] == 'The tr cat number 0 isn\'t "here", she said.'
