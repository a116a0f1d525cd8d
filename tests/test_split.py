"""`probes.split`: no text is on two sides, proportions and labels are kept, order does not matter, seeds do."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from analysis.sources import SourceOptions, load
from probes.errors import InputError
from probes.split import split, take
from probes.task import Task


def made(n: int = 300, classes: int = 3, **changes: object) -> Task:
    labels = np.array([f"class {i % classes}" for i in range(n)])
    return replace(Task("made:label", [f"text number {i}" for i in range(n)], labels), **changes)  # type: ignore[arg-type]


def sides(task: Task, **flags: object) -> dict[str, int]:
    return dict(Counter(split(task, **flags).side.tolist()))  # type: ignore[arg-type]


def fixed(*counts: int) -> np.ndarray:
    return np.repeat(["train", "dev", "test"], counts)


# --------------------------------------------------------------------------------------------------------------- carved


def test_carved_split_is_70_10_20_in_every_class() -> None:
    task = made(1000, 4)
    side = split(task).side
    for label in np.unique(task.y):
        counts = Counter(side[task.y == label].tolist())
        assert abs(counts["train"] - 175) <= 3
        assert abs(counts["dev"] - 25) <= 3
        assert abs(counts["test"] - 50) <= 3


def test_row_order_does_not_move_a_text() -> None:
    task = made(207, 5, groups=np.arange(207) // 3)
    order = np.random.default_rng(0).permutation(207)
    groups = np.array([f"g{g}" for g in task.groups[order]])  # type: ignore[index]
    other = Task(task.name, [task.texts[i] for i in order], task.y[order], groups=groups)
    assert (split(other).side == split(task).side[order]).all()


def test_seed_moves_carved_sides_only() -> None:
    task = made()
    assert (split(task, seed=3).side == split(task, seed=3).side).all()
    assert (split(task, seed=3).side != split(task, seed=4).side).any()
    whole = replace(task, split=fixed(200, 40, 60))
    assert (split(whole, seed=3).side == whole.split).all()
    assert (split(whole, seed=-4).side == whole.split).all()
    no_dev = replace(task, split=fixed(240, 0, 60))
    one, two = split(no_dev, seed=0).side, split(no_dev, seed=1).side
    assert (one != two).any()
    assert ((one == "test") == (two == "test")).all()
    assert (one == "dev").sum() == 24


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 300), st.sampled_from("ab"), st.integers(0, 150)), min_size=60, max_size=120))
def test_neither_copies_nor_groups_straddle(rows: list[tuple[int, str, int]]) -> None:
    texts, labels, groups = zip(*rows, strict=True)
    task = Task("made:label", [f"Text {i}" for i in texts], np.array(labels), groups=np.array(groups))
    try:
        side = split(task).side
    except InputError:  # hypothesis likes to tie everything to everything
        event("refused")
        return
    for tied in (np.array(texts), np.array(groups)):
        for value in np.unique(tied):
            assert len(set(side[tied == value])) == 1
    for label in set(labels):
        assert set(side[task.y == label]) == {"train", "dev", "test"}


def test_same_text_in_another_dress_is_a_copy() -> None:
    dresses = ["Straße  eins", "STRASSE EINS", "strasse\teins ", "strasse\u00a0eins"]
    task = made(200)
    task = replace(task, texts=[*task.texts, *dresses], y=np.append(task.y, ["class 0"] * 4))
    found = split(task)
    assert len(set(found.side[-4:])) == 1
    assert found.notes == ["3 rows repeat an earlier text (rows 202, 203, 204)"]


def test_few_large_groups_reach_every_side() -> None:
    task = made(500, 2, groups=np.arange(500) % 5)
    assert set(sides(task)) == {"train", "dev", "test"}


def test_three_texts_of_a_class_are_enough_and_two_are_not() -> None:
    task = made(100, 2)
    rare = replace(task, y=np.where(np.arange(100) < 3, "rare", task.y))
    assert set(split(rare).side[:3]) == {"train", "dev", "test"}
    rarer = replace(task, y=np.where(np.arange(100) < 2, "rare", task.y))
    with pytest.raises(
        InputError, match=r"made:label: a class too small for every side: 'rare' \(train 1, dev \d, test"
    ):
        split(rarer)


def test_numbers_have_no_classes() -> None:
    task = Task("made:score", made().texts, np.linspace(0, 1, 300), "number")
    assert sides(task) == {"train": 210, "dev": 30, "test": 60}
    with pytest.raises(InputError, match="2 different texts are too few for train, dev, test"):
        split(replace(task, texts=["a", "b"], y=np.array([0.1, 0.2])))


# ----------------------------------------------------------------------------------------------- the source's own sides


def test_test_stays_whole_and_copies_leave() -> None:
    texts = [f"t{i}" for i in range(100)]
    texts[3], texts[4], texts[65], texts[7] = "T99", "t98", "t97", "t66"  # train, train, dev of test; train of dev
    task = made(100, 2, texts=texts, split=fixed(60, 10, 30))
    found = split(task)
    assert found.left_out == {
        "dev copies of a test text": 1,
        "train copies of a test text": 2,
        "train copies of a dev text": 1,
    }
    assert [i for i in range(100) if not found.side[i]] == [3, 4, 7, 65]
    assert (found.side[70:] == "test").all()
    kept = split(task, allow_overlap=True)
    assert kept.left_out == {}
    assert (kept.side == task.split).all()


def test_rows_of_a_group_in_test_leave_train() -> None:
    groups = np.arange(100)
    groups[5] = groups[99]
    found = split(made(100, 2, groups=groups, split=fixed(60, 10, 30)))
    assert found.left_out == {"train rows of a group in test": 1}
    assert found.side[5] == ""


def test_test_that_stands_in_train_is_refused_unless_wanted() -> None:
    texts = [f"t{i % 50}" for i in range(100)]
    task = made(100, 2, texts=texts, split=fixed(50, 0, 50))
    with pytest.raises(InputError, match=r"made:label: train and test share 50 of 50 texts\. .*--allow-overlap"):
        split(task)
    assert sides(task, allow_overlap=True) == {"train": 45, "dev": 5, "test": 50}


def test_dev_that_is_test_is_carved_anew() -> None:
    texts = [f"t{i}" for i in range(80)] + [f"t{i}" for i in range(60, 80)]
    found = split(made(100, 2, texts=texts, split=fixed(60, 20, 20)))
    assert Counter(found.side.tolist()) == {"train": 54, "dev": 6, "test": 20, "": 20}


def test_dev_never_takes_the_last_text_of_a_class() -> None:
    task = made(100, 2, split=fixed(80, 0, 20))
    for seed in range(20):
        rare = replace(task, y=np.where(np.arange(100) == 7, "rare", task.y))
        assert split(rare, seed=seed).side[7] == "train"


def test_label_that_train_never_saw() -> None:
    task = made(100, 2, split=fixed(70, 0, 30))
    task.y[[90, 95]] = "new"
    with pytest.raises(InputError, match=r"made:label: label 'new' stands in test \(rows 91, 96\) but not in train"):
        split(task)


def test_one_class_is_none() -> None:
    with pytest.raises(InputError, match=r"one class \('class 0', 300 rows\); a probe needs two"):
        split(made(classes=1))


def test_no_texts() -> None:
    with pytest.raises(InputError, match="no texts"):
        split(Task("made:label", [], np.array([], dtype=str)))


def test_trec(data_folder: Path) -> None:
    coarse, fine = load(f"file:{data_folder / 'trec'}", SourceOptions(label_column=("coarse", "fine"))).tasks
    train = {text for text, side in zip(coarse.texts, coarse.split, strict=True) if side == "train"}  # type: ignore[arg-type]
    test = {text for text, side in zip(coarse.texts, coarse.split, strict=True) if side == "test"}  # type: ignore[arg-type]
    assert (len(train), len(train & test)) == (5381, 10)
    start = time.perf_counter()
    found = split(coarse)
    assert time.perf_counter() - start < 1
    assert found.left_out == {"train copies of a test text": 11}  # 11 rows of 10 texts
    assert Counter(found.side.tolist()) == {"train": 4896, "dev": 545, "test": 500, "": 11}
    assert set(fine.y[split(fine).side == "train"]) == set(fine.y)


# ----------------------------------------------------------------------------------------------------------------- take


def test_take_keeps_proportions_and_order() -> None:
    task = made(1000, 4, split=fixed(600, 100, 300))
    some = take(task, 100, seed=0)
    assert Counter(some.split.tolist()) == {"train": 60, "dev": 10, "test": 30}  # type: ignore[union-attr]
    assert set(Counter(some.y.tolist()).values()) <= {24, 25, 26}
    places = [task.texts.index(text) for text in some.texts]
    assert places == sorted(places)
    assert [str(task.y[i]) for i in places] == some.y.tolist()
    assert list(take(task, 100, seed=1).texts) != list(some.texts) == list(take(task, 100, seed=0).texts)
    assert take(task, 1000, seed=0) is task


@pytest.mark.parametrize("n", [1, 2, 3, 50, 299])
def test_take_takes_no_more(n: int) -> None:
    assert len(take(made(), n, seed=0).texts) == n
    assert len(take(made(split=fixed(200, 40, 60)), n, seed=0).texts) <= n


def test_take_leaves_no_label_without_train(data_folder: Path) -> None:
    fine = load(f"file:{data_folder / 'trec'}", SourceOptions(label_column=("fine",))).tasks[0]
    split(take(fine, 300, seed=0))
