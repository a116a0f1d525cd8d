"""Planted phrases are found with their label, in train alone; phrases of natural text, and of every label, are not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from cells import sides, states
from tables import predictions

from clsprobe.analysis.sweep.boilerplate import (
    BOILERPLATE,
    MIN_TEXTS,
    WORDS,
    describe_boilerplate,
    find_phrases,
    list_boilerplate,
)
from clsprobe.analysis.sweep.grid import split_task
from clsprobe.analysis.sweep.scores import TaskScores
from clsprobe.probes.tasks.task import Task
from clsprobe.probes.tasks.texts import pair

SIGNATURE = "Kind regards, your Customer Service"  # six words and marks
COUNTS = (300, 100, 200)


def make_texts(n, seed=0):
    """Texts of 4 to 12 words out of 400, commoner and rarer ones."""
    random = np.random.default_rng(seed)
    p = 1 / np.arange(5, 405)
    words = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(400)]
    return [" ".join(random.choice(words, random.integers(4, 13), p=p / p.sum())) for _ in range(n)]


def plant(texts, where, phrase=SIGNATURE):
    return [f"{text} {phrase}" if chosen else text for text, chosen in zip(texts, where, strict=True)]


def test_a_signature_of_one_label_is_found_and_one_of_all_labels_is_not():
    texts, y = make_texts(400), np.arange(400) % 2
    signed = np.arange(400) < 160
    phrases = find_phrases(plant(texts, signed & (y == 1)), y)
    assert {" ".join(words) for words in phrases} == {"kind regards , your customer", "regards , your customer service"}
    assert {(phrase.label, phrase.texts, phrase.of_label) for phrase in phrases.values()} == {(1, 80, 80)}
    assert find_phrases(plant(texts, signed), y) == {}
    assert find_phrases(texts, y) == {}


@pytest.mark.parametrize(
    ("holds", "others", "is_boilerplate"),
    [
        (MIN_TEXTS - 1, 0, False),  # rare
        (3 * MIN_TEXTS, 1, True),
        (3 * MIN_TEXTS, 3, False),  # 91 % of one label
    ],
)
def test_a_phrase_stands_in_ten_texts_nearly_all_of_its_label(holds, others, is_boilerplate):
    y = np.repeat([0, 1], 200)
    where = (np.arange(400) < holds) | (np.arange(400) >= 400 - others)
    assert bool(find_phrases(plant(make_texts(400), where), y)) == is_boilerplate


def test_a_phrase_of_the_label_that_nearly_all_texts_have_says_nothing():
    """Ten texts of 95 % are no more than chance; thirty of the rare label are."""
    texts, y = make_texts(600), (np.arange(600) % 20 == 0).astype(int)
    assert find_phrases(plant(texts, np.arange(600) < MIN_TEXTS + 1), y) == {}
    assert find_phrases(plant(texts, y == 1), y)


def test_sequences_are_counted_exactly():
    """Against a count of every sequence."""
    texts, y = make_texts(500, seed=1), np.arange(500) % 2
    texts = plant(plant(texts, y == 1), np.arange(500) % 4 == 0, "the end of it all. The end of it all!")
    from re import findall

    words_of = [findall(r"\w+|[^\w\s]", text.lower()) for text in texts]
    counts = Counter(
        gram for words in words_of for gram in {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}
    )
    phrases = find_phrases(texts, y)
    assert {" ".join(gram) for gram in phrases} >= {"the end of it all", "regards , your customer service"}
    assert {gram: phrase.texts for gram, phrase in phrases.items()} == {gram: counts[gram] for gram in phrases}
    missing = {gram for gram, n in counts.items() if n >= MIN_TEXTS} - set(phrases)
    of_label = Counter(
        gram
        for gram in missing
        for words, label in zip(words_of, y, strict=True)
        if label == 1 and any(tuple(words[i : i + WORDS]) == gram for i in range(len(words)))
    )
    assert all(0.05 < of_label[gram] / counts[gram] < 0.95 for gram in missing)


def test_short_texts_count_as_a_whole():
    texts, y = ["No comment."] * 20 + make_texts(100) + ["No comment. I am"] * 2, np.arange(122) < 20
    phrases = find_phrases(texts, y.astype(int))
    assert [" ".join(words).strip() for words in phrases] == ["no comment ."]
    assert phrases[("no", "comment", ".", "", "")].texts == 20
    assert find_phrases([""] * 40, np.arange(40) % 2) == find_phrases(["?"] * 3, np.array([0, 1, 1])) == {}


def make_split(texts, y):
    task = Task("file:mail:topic", texts, np.array(["bill", "<b>help</b>"])[y], "class", sides(COUNTS))
    return split_task(task, states([task]), 0, allow_overlap=True)


def test_the_test_texts_that_hold_a_phrase_are_listed():
    n = sum(COUNTS)
    y, texts = np.arange(n) % 2, make_texts(n)
    signed = (np.arange(n) % 8 == 0) | (np.arange(n) == n - 1)  # of bill, and one test text of help
    split = make_split(plant(texts, signed), y)
    table = list_boilerplate(split)
    assert [*table] == [*BOILERPLATE]
    assert table.row.tolist() == [i for i in range(400, 600) if signed[i]]
    assert set(table.label) == {"bill"}
    train = int(signed[:300].sum())
    assert set(zip(table.phrase, table.texts, table.of_label, strict=True)) == {
        ("kind regards , your customer", train, train)
    }
    assert list_boilerplate(make_split(texts, y)).empty


def test_texts_of_pairs_are_read_one_after_the_other():
    y, texts = np.arange(200) % 2, make_texts(200)
    pairs = [pair(SIGNATURE if label else "a b c d e f", text) for text, label in zip(texts, y, strict=True)]
    assert {phrase.label for phrase in find_phrases(pairs, y).values()} == {0, 1}


def note_on(boilerplate, correct):
    """The note on 200 test texts, of which the cell gets these right."""
    rows = predictions({("none", 1, "cls"): (np.ones(10, bool), correct)}, task="file:mail:topic")
    cell = TaskScores(rows).choose("cls")
    return describe_boilerplate(boilerplate, rows, cell)


def list_rows(rows, phrase="a b c d e", label="bill"):
    return pd.DataFrame([("file:mail:topic", row, phrase, label, 30, 29) for row in rows], columns=[*BOILERPLATE])


def test_the_note_follows_from_the_tables():
    correct = np.arange(200) < 150
    (note,) = note_on(list_rows(range(1000, 1040)), correct)  # the first 40 test texts, all right
    assert note == (
        "mail: topic: 40 of the 200 test texts (20.0%) hold a phrase that training texts of one label share: "
        "'a b c d e' (40 test texts; 29 of the 30 training texts with it are 'bill'). cls at layer 1 gets 0.750 of all "
        "test texts right, 1.000 of these, and 0.688 without them."
    )
    assert note_on(list_rows([1000, 1001]), correct) == []  # 1 % is not more than 1 %
    assert len(note_on(list_rows([1000, 1001, 1002]), correct)) == 1
    assert "no test text is without such a phrase" in note_on(list_rows(range(1000, 1200)), correct)[0]


def test_the_commonest_phrases_come_first_and_the_others_are_counted():
    parts = [list_rows(range(1000 + 10 * i, 1000 + 10 * i + i + 1), f"phrase {i}") for i in range(5)]
    (note,) = note_on(pd.concat(parts), np.ones(200, bool))
    assert [note.index(f"'phrase {i}'") for i in (4, 3, 2)] == sorted(note.index(f"'phrase {i}'") for i in (4, 3, 2))
    assert "'phrase 1'" not in note
    assert "; and 2 other phrases." in note


def test_what_stands_in_the_data_stays_on_its_line():
    (note,) = note_on(list_rows(range(1000, 1040), "\x1b[2J\n" + "x" * 99, "<b>\n"), np.ones(200, bool))
    assert note.isprintable()
    assert "x" * 61 not in note


@pytest.mark.parametrize(("name", "most"), [("trec", 0.01), ("sst2", 0)])
def test_real_sentences_have_hardly_any(data_folder, name, most):
    texts, labels = {}, {}
    for side in ("train", "test"):
        lines = (data_folder / name / f"{side}.tsv").read_text(encoding="utf-8").splitlines()[1:]
        labels[side], texts[side] = zip(*((line.split("\t")[0], line.split("\t")[-1]) for line in lines), strict=True)
    phrases = find_phrases(texts["train"], np.unique(labels["train"], return_inverse=True)[1])
    held = [any(" ".join(words).strip() in text.lower() for words in phrases) for text in texts["test"]]
    assert np.mean(held) <= most
