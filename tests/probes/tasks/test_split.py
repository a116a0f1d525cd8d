"""`probes.tasks.split`: no text is on two sides, proportions are kept, row order does not matter, seeds do."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.probes.errors import InputError
from clsprobe.probes.tasks.split import sample_task, split
from clsprobe.probes.tasks.task import Task


def make_task(n: int = 300, classes: int = 3, **changes: object) -> Task:
    labels = np.array([f"class {i % classes}" for i in range(n)])
    return replace(Task("made:label", [text(i) for i in range(n)], labels), **changes)  # type: ignore[arg-type]


def text(number: int) -> str:
    """A text that resembles no other."""
    return hashlib.sha256(str(number).encode()).hexdigest()[:30]


def count_sides(task: Task, **flags: object) -> dict[str, int]:
    return dict(Counter(split(task, **flags).side.tolist()))  # type: ignore[arg-type]


def make_sides(*counts: int) -> np.ndarray:
    return np.repeat(["train", "dev", "test"], counts)


# --------------------------------------------------------------------------------------------------------------- carved


def test_carved_split_is_70_10_20_in_every_class() -> None:
    task = make_task(1000, 4)
    side = split(task).side
    for label in np.unique(task.y):
        counts = Counter(side[task.y == label].tolist())
        assert abs(counts["train"] - 175) <= 3
        assert abs(counts["dev"] - 25) <= 3
        assert abs(counts["test"] - 50) <= 3


def test_row_order_does_not_change_the_side_of_a_text() -> None:
    task = make_task(207, 5, groups=np.arange(207) // 3)
    order = np.random.default_rng(0).permutation(207)
    groups = np.array([f"g{g}" for g in task.groups[order]])  # type: ignore[index]
    permuted = Task(task.name, [task.texts[i] for i in order], task.y[order], groups=groups)
    assert (split(permuted).side == split(task).side[order]).all()


def test_seed_changes_carved_sides_only() -> None:
    task = make_task()
    assert (split(task, seed=3).side == split(task, seed=3).side).all()
    assert (split(task, seed=3).side != split(task, seed=4).side).any()
    with_sides = replace(task, split=make_sides(200, 40, 60))
    assert (split(with_sides, seed=3).side == with_sides.split).all()
    assert (split(with_sides, seed=-4).side == with_sides.split).all()
    no_dev = replace(task, split=make_sides(240, 0, 60))
    first, second = split(no_dev, seed=0).side, split(no_dev, seed=1).side
    assert (first != second).any()
    assert ((first == "test") == (second == "test")).all()
    assert (first == "dev").sum() == 24


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 300), st.sampled_from("ab"), st.integers(0, 150)), min_size=60, max_size=120))
def test_copies_and_groups_are_on_one_side(rows: list[tuple[int, str, int]]) -> None:
    texts, labels, groups = zip(*rows, strict=True)
    task = Task("made:label", [text(i).upper() for i in texts], np.array(labels), groups=np.array(groups))
    try:
        side = split(task).side
    except InputError:  # hypothesis may tie all rows together
        event("refused")
        return
    for tied in (np.array(texts), np.array(groups)):
        for value in np.unique(tied):
            assert len(set(side[tied == value])) == 1
    for label in set(labels):
        assert set(side[task.y == label]) == {"train", "dev", "test"}


def test_texts_that_differ_in_case_or_spaces_are_copies() -> None:
    dresses = ["Straße  eins", "STRASSE EINS", "strasse\teins ", "strasse\u00a0eins"]
    task = make_task(200)
    task = replace(task, texts=[*task.texts, *dresses], y=np.append(task.y, ["class 0"] * 4))
    result = split(task)
    assert len(set(result.side[-4:])) == 1
    assert result.notes == ["3 rows repeat an earlier text (rows 202, 203, 204)"]


def test_few_large_groups_reach_every_side() -> None:
    task = make_task(500, 2, groups=np.arange(500) % 5)
    assert set(count_sides(task)) == {"train", "dev", "test"}


def test_three_texts_of_a_class_are_enough_and_two_are_not() -> None:
    task = make_task(100, 2)
    rare = replace(task, y=np.where(np.arange(100) < 3, "rare", task.y))
    assert set(split(rare).side[:3]) == {"train", "dev", "test"}
    rarer = replace(task, y=np.where(np.arange(100) < 2, "rare", task.y))
    with pytest.raises(
        InputError, match=r"made:label: a class too small for every side: 'rare' \(train 1, dev \d, test"
    ):
        split(rarer)


def test_numbers_have_no_classes() -> None:
    task = Task("made:score", make_task().texts, np.linspace(0, 1, 300), "number")
    assert count_sides(task) == {"train": 210, "dev": 30, "test": 60}
    with pytest.raises(InputError, match="2 different texts are too few for train, dev, test"):
        split(replace(task, texts=["a", "b"], y=np.array([0.1, 0.2])))


# ----------------------------------------------------------------------------------------------- the source's own sides


def test_test_is_kept_and_copies_of_it_are_left_out() -> None:
    texts = [f"t{i}" for i in range(100)]
    texts[3], texts[4], texts[65], texts[7] = "T99", "t98", "t97", "t66"  # train, train, dev of test; train of dev
    task = make_task(100, 2, texts=texts, split=make_sides(60, 10, 30))
    result = split(task)
    assert result.left_out == {
        "dev copies of a test text": 1,
        "train copies of a test text": 2,
        "train copies of a dev text": 1,
    }
    assert [i for i in range(100) if not result.side[i]] == [3, 4, 7, 65]
    assert (result.side[70:] == "test").all()
    overlapping = split(task, allow_overlap=True)
    assert overlapping.left_out == {}
    assert (overlapping.side == task.split).all()


def test_train_rows_of_a_group_in_test_are_left_out() -> None:
    groups = np.arange(100)
    groups[5] = groups[99]
    result = split(make_task(100, 2, groups=groups, split=make_sides(60, 10, 30)))
    assert result.left_out == {"train rows of a group in test": 1}
    assert result.side[5] == ""


def test_test_texts_in_train_are_an_error_unless_allowed() -> None:
    texts = [f"t{i % 50}" for i in range(100)]
    task = make_task(100, 2, texts=texts, split=make_sides(50, 0, 50))
    with pytest.raises(InputError, match=r"made:label: train and test share 50 of 50 texts\. .*--allow-overlap"):
        split(task)
    assert count_sides(task, allow_overlap=True) == {"train": 45, "dev": 5, "test": 50}


def test_dev_that_consists_of_test_texts_is_carved_from_train() -> None:
    texts = [text(i) for i in range(80)] + [text(i).upper() for i in range(60, 80)]
    task = make_task(100, 2, texts=texts, split=make_sides(60, 20, 20))
    assert split(task).left_out == {"dev copies of a test text": 20}
    assert count_sides(task) == {"train": 54, "dev": 6, "test": 20, "": 20}
    assert count_sides(task, allow_overlap=True) == {"train": 60, "dev": 20, "test": 20}
    result = split(replace(task, split=make_sides(60, 19, 21)))
    assert result.left_out == {"dev copies of a test text": 19}
    assert Counter(result.side.tolist()) == {"train": 54, "dev": 6, "test": 21, "": 19}
    assert result.notes[-1] == "no dev of its own: 6 train texts serve as dev"


def test_dev_never_takes_the_last_text_of_a_class() -> None:
    task = make_task(100, 2, split=make_sides(80, 0, 20))
    for seed in range(20):
        rare = replace(task, y=np.where(np.arange(100) == 7, "rare", task.y))
        assert split(rare, seed=seed).side[7] == "train"


def test_a_label_that_train_lacks_is_an_error() -> None:
    task = make_task(100, 2, split=make_sides(70, 0, 30))
    task.y[[90, 95]] = "new"
    with pytest.raises(InputError, match=r"made:label: label 'new' stands in test \(rows 91, 96\) but not in train"):
        split(task)


def test_a_single_class_is_an_error() -> None:
    with pytest.raises(InputError, match=r"one class \('class 0', 300 rows\); a probe needs two"):
        split(make_task(classes=1))


def test_labels_that_identify_rows_are_an_error() -> None:
    task = make_task(300)
    with pytest.raises(InputError, match=r"made:label: 300 classes in 300 rows: these labels name rows"):
        split(replace(task, y=np.array([f"id {i}" for i in range(300)])))
    with pytest.raises(InputError, match="151 classes in 300 rows"):
        split(replace(task, y=np.array([f"id {i % 151}" for i in range(300)])))
    split(replace(task, y=np.array([f"class {i % 50}" for i in range(300)])))


def test_a_text_with_two_labels_is_noted() -> None:
    task = make_task(300, 2)
    texts = list(task.texts)
    texts[7], texts[12], texts[20] = texts[8].upper(), texts[14], texts[22]  # only 7 and 8 differ in label
    assert "2 rows hold a text that has another label elsewhere (rows 8, 9)" in split(replace(task, texts=texts)).notes
    assert not any("another label" in note for note in split(task).notes)
    numbers = Task("made:score", texts, np.linspace(0, 1, 300), "number")
    assert not any("another label" in note for note in split(numbers).notes)


def test_a_class_that_a_side_lacks_is_noted() -> None:
    task = make_task(100, 2, split=make_sides(70, 10, 20))
    task.y[[0, 1]] = "rare"
    assert split(task).notes == [
        "1 of 3 classes have no test text: 'rare'",
        "1 of 3 classes have no dev text: 'rare'",
    ]


def test_no_texts() -> None:
    with pytest.raises(InputError, match="no texts"):
        split(Task("made:label", [], np.array([], dtype=str)))


def test_trec(data_folder: Path) -> None:
    coarse, fine = load(f"file:{data_folder / 'trec'}", SourceOptions(label_column=("coarse", "fine"))).tasks
    train = {text for text, side in zip(coarse.texts, coarse.split, strict=True) if side == "train"}  # type: ignore[arg-type]
    test = {text for text, side in zip(coarse.texts, coarse.split, strict=True) if side == "test"}  # type: ignore[arg-type]
    assert (len(train), len(train & test)) == (5381, 10)
    result = split(coarse)
    # 11 rows of 10 texts; and "the 3rd president", where test asks for the 23rd
    assert result.left_out == {"train copies of a test text": 11, "train near copies of a test text": 1}
    assert Counter(result.side.tolist()) == {"train": 4895, "dev": 545, "test": 500, "": 12}
    assert result.notes[:3] == [
        "83 rows repeat an earlier text (train.tsv lines 371, 466, 729, 743, 1,077, 1,363, 1,392, 1,537, 1,598, 1,728 "
        "and 62 more; test.tsv lines 52, 74, 189, 253, 278, 314, 322, 331, 380, 415 and 1 more)",
        "2 rows hold a text that has another label elsewhere (train.tsv line 1,195; test.tsv line 253)",
        "17 rows nearly repeat an earlier text (train.tsv lines 1,653, 3,149, 3,172, 3,578, 3,585, 3,599, 3,861, "
        "4,298, 4,416, 4,425 and 6 more; test.tsv line 208)",
    ]
    assert set(fine.y[split(fine).side == "train"]) == set(fine.y)


# ---------------------------------------------------------------------------------------------------------- near copies


def make_near_copy(original: str) -> str:
    """A near copy: the last of thirty characters differs, and so one of 26 grams."""
    return original[:-1] + ("x" if original[-1] != "x" else "y")


def make_pairs(n: int) -> list[str]:
    """n texts, then a near copy of each."""
    return [text(i) for i in range(n)] + [make_near_copy(text(i)) for i in range(n)]


def test_near_copies_are_on_one_carved_side() -> None:
    task = make_task(400, 2, texts=make_pairs(200), y=np.tile(["a", "b"], 200))
    for seed in range(3):
        result = split(task, seed=seed)
        assert (result.side[:200] == result.side[200:]).all()
        assert set(result.side) == {"train", "dev", "test"}
    assert result.notes[0].startswith("200 rows nearly repeat an earlier text (rows 201, 202, ")
    free = split(task, allow_overlap=True)
    assert (free.side[:200] != free.side[200:]).any()
    assert free.notes == []


def test_near_copies_of_a_test_text_are_left_out() -> None:
    texts = [text(i) for i in range(100)]
    texts[3], texts[65] = make_near_copy(texts[99]), make_near_copy(texts[98])
    texts[7], texts[97] = texts[96], make_near_copy(texts[96])  # a copy and a near copy of test
    result = split(make_task(100, 2, texts=texts, split=make_sides(60, 10, 30)))
    assert result.left_out == {
        "dev near copies of a test text": 1,
        "train copies of a test text": 1,
        "train near copies of a test text": 1,
    }
    assert (result.side[70:] == "test").all()
    assert split(make_task(100, 2, texts=texts, split=make_sides(60, 10, 30)), allow_overlap=True).left_out == {}


def test_a_test_side_of_near_copies_is_an_error() -> None:
    texts = [
        *(text(i) for i in range(60)),
        *(make_near_copy(text(i)) for i in range(20)),
        *(text(i) for i in range(60, 80)),
    ]
    task = make_task(100, 2, texts=texts, split=make_sides(60, 0, 40))
    with pytest.raises(
        InputError, match=r"share 20 of 40 texts, 20 of them but for small differences\. .*--allow-over"
    ):
        split(task)
    assert Counter(split(task, allow_overlap=True).side.tolist()) == {"train": 54, "dev": 6, "test": 40}


def test_texts_of_a_template_are_not_copies() -> None:
    """Texts that differ in a number only: too many for one side, so they are noted and distributed."""
    texts = [f"a warm and moving film that, to the joy of all, runs for {i} minutes" for i in range(150)]
    texts += [text(i) for i in range(150)]
    task = make_task(300, 2, texts=texts)
    result = split(task)
    assert Counter(result.side.tolist()) == {"train": 210, "dev": 30, "test": 60}
    assert set(result.side[:150]) == {"train", "dev", "test"}
    (note,) = result.notes
    assert note.startswith("150 rows differ so little from so many others that they are no copies (rows 1, 2, 3, ")
    with_sides = split(replace(task, split=np.tile(["train", "train", "test"], 100)))
    assert with_sides.left_out == {}
    assert with_sides.notes[0] == note


def test_near_copies_grouped_by_the_source_are_not_noted() -> None:
    """Such as a corrupted sentence and its original: they stay together, without a note."""
    task = make_task(
        400, 2, texts=make_pairs(200), y=np.repeat(["as it was", "changed"], 200), groups=np.tile(np.arange(200), 2)
    )
    result = split(task)
    assert (result.side[:200] == result.side[200:]).all()
    assert result.notes == []


def test_near_copies_are_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task()
    split(task)
    monkeypatch.setattr(
        "clsprobe.probes.tasks.duplicates.group_near_copies", lambda texts: pytest.fail("searched again")
    )
    split(task, seed=1)


def test_near_copies_inflate_a_naive_split_and_not_ours() -> None:
    """Near copies share random labels: a nearest neighbour reads them on a naive split, and not on ours."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.neighbors import KNeighborsClassifier

    draw = np.random.default_rng(0)
    noise = np.tile(draw.choice(["a", "b"], 500), 2)
    task = Task("made:noise", make_pairs(500), noise)
    X = CountVectorizer(analyzer="char", ngram_range=(3, 3)).fit_transform(task.texts)

    def score_neighbour(side: np.ndarray) -> float:
        train, test = side == "train", side == "test"
        return KNeighborsClassifier(1).fit(X[train], noise[train]).score(X[test], noise[test])

    naive = draw.permutation(np.repeat(["train", "dev", "test"], [700, 100, 200]))
    assert score_neighbour(naive) > 0.75
    assert abs(score_neighbour(split(task).side) - 0.5) < 0.1


# ------------------------------------------------------------------------------------------------------ the same tokens


def test_texts_of_the_same_tokens_are_copies() -> None:
    tokens = [str(i).encode() for i in range(100)]
    tokens[5] = tokens[99]
    with_sides = split(make_task(100, 2, split=make_sides(60, 10, 30)), tokens=tokens)
    assert with_sides.left_out == {"train copies, to the encoder, of a test text": 1}
    assert with_sides.notes == [
        "1 row repeats an earlier text as far as the encoder can see (row 100)",
        "1 row of train left out: copies, to the encoder, of a test text (row 6)",
    ]
    carved = split(make_task(200, 2), tokens=np.arange(200) // 4)
    assert all(len(set(carved.side[i : i + 4])) == 1 for i in range(0, 200, 4))
    with pytest.raises(InputError, match="share 40 of 40 texts, 40 of them but for small differences"):
        split(make_task(100, 2, split=make_sides(60, 0, 40)), tokens=np.arange(100) % 50)


# ----------------------------------------------------------------------------------------------------- every row counts

rows_of_a_task = st.lists(
    st.tuples(
        st.integers(0, 80), st.sampled_from([str, str.upper, make_near_copy]), st.sampled_from("ab"),
        st.integers(0, 200), st.integers(0, 100), st.sampled_from(["train", "train", "train", "dev", "test"]),
    ),
    min_size=40, max_size=100,
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(rows_of_a_task, st.booleans(), st.booleans(), st.booleans())
def test_every_row_is_used_or_counted_as_left_out(
    rows: list[tuple], with_sides: bool, with_groups: bool, with_tokens: bool
) -> None:
    numbers, dresses, labels, groups, tokens, fixed_sides = zip(*rows, strict=True)
    task = Task(
        "made:label",
        [dress(text(number)) for number, dress in zip(numbers, dresses, strict=True)],
        np.array(labels),
        split=np.array(fixed_sides) if with_sides else None,
        groups=np.array(groups) if with_groups else None,
    )
    try:
        result = split(task, tokens=tokens if with_tokens else None)
    except InputError:
        event("refused")
        return
    event("split")
    assert len(result.side) == len(task.texts)
    assert set(result.side) - {""} == {"train", "dev", "test"}
    assert sum(result.left_out.values()) == (result.side == "").sum()
    # Tied rows are on one side; the test rows of the source stay in test.
    for same in (
        np.array(numbers),
        *([np.array(groups)] if with_groups else []),
        *([np.array(tokens)] if with_tokens else []),
    ):
        for value in np.unique(same):
            assert len(set(result.side[same == value]) - {""}) <= 1
    if with_sides:
        assert (result.side[task.split == "test"] == "test").all()


# -------------------------------------------------------------------------------------------------------------- samples


def test_a_sample_keeps_proportions_and_order() -> None:
    task = make_task(1000, 4, split=make_sides(600, 100, 300))
    sample = sample_task(task, 100, seed=0)
    assert Counter(sample.split.tolist()) == {"train": 60, "dev": 10, "test": 30}  # type: ignore[union-attr]
    assert set(Counter(sample.y.tolist()).values()) <= {24, 25, 26}
    row_indices = [task.texts.index(text) for text in sample.texts]
    assert row_indices == sorted(row_indices)
    assert [str(task.y[i]) for i in row_indices] == sample.y.tolist()
    assert (
        list(sample_task(task, 100, seed=1).texts) != list(sample.texts) == list(sample_task(task, 100, seed=0).texts)
    )
    assert sample_task(task, 1000, seed=0) is task


@pytest.mark.parametrize("n", [1, 2, 3, 50, 299])
def test_a_sample_has_at_most_n_texts(n: int) -> None:
    assert len(sample_task(make_task(), n, seed=0).texts) == n
    assert len(sample_task(make_task(split=make_sides(200, 40, 60)), n, seed=0).texts) <= n


def test_a_sample_keeps_every_label_in_train(data_folder: Path) -> None:
    fine = load(f"file:{data_folder / 'trec'}", SourceOptions(label_column=("fine",))).tasks[0]
    split(sample_task(fine, 300, seed=0))


def test_a_sample_is_solved_by_what_solves_the_task() -> None:
    assert sample_task(make_task(solved_by=("length",)), 50, seed=0).solved_by == ("length",)
