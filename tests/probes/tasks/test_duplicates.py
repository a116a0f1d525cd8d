"""`probes.tasks.duplicates`: near copies are those of the exact comparison of all pairs, in a fraction of its time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.probes.tasks import duplicates
from clsprobe.probes.tasks.duplicates import ALIKE, group_near_copies, group_rows, hash_texts, jaccard, normalise

LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz    "))


def written(draw: np.random.Generator, length: int) -> str:
    return normalise("".join(draw.choice(LETTERS, length)))


def parts(group: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(np.flatnonzero(group == value)) for value in np.unique(group)}


def by_all_pairs(texts: list[str]) -> set[tuple[int, ...]]:
    """The groups by comparing everything with everything."""
    of = list(range(len(texts)))
    for one, other in combinations(range(len(texts)), 2):
        if jaccard(normalise(texts[one]), normalise(texts[other])) >= ALIKE:
            of = [of[one] if each == of[other] else each for each in of]
    return parts(np.array(of))


# ------------------------------------------------------------------------------------------------------------- the same


def test_what_does_not_make_another_text() -> None:
    assert normalise("  Straße\u00a0 eins ") == normalise("STRASSE\teins") == "strasse eins"
    assert normalise("ﬁne") == "fine"
    assert len(set(hash_texts(["One", "one ", "two"], 0))) == 2
    assert (hash_texts(["a", "b"], 0) != hash_texts(["a", "b"], 1)).all()


# ----------------------------------------------------------------------------------------------------------- nearly so


def test_jaccard_by_hand() -> None:
    assert jaccard("abcdefg", "abcdefg") == 1
    assert jaccard("abcdefgh", "abcdefgx") == 3 / 5  # abcde bcdef cdefg are common, defgh and defgx are not
    assert jaccard("abc", "abc") == 1
    assert jaccard("abc", "abd") == jaccard("abcdefg", "tuvwxyz") == 0


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 59), st.sampled_from("xyz")), min_size=2, max_size=25))
def test_groups_are_those_of_all_pairs(edits: list[tuple[int, int, str]]) -> None:
    originals = [written(np.random.default_rng(i), 60) for i in range(6)]
    texts = [originals[i][:at] + letter + originals[i][at + 1 :] for i, at, letter in edits]
    assert parts(group_near_copies(texts)) == by_all_pairs(texts)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=20))
def test_any_text_will_do(texts: list[str]) -> None:
    assert parts(group_near_copies(texts)) == by_all_pairs(texts)


def test_lone_surrogates_and_nothing_at_all() -> None:
    assert parts(group_near_copies(["\ud800 is no character", "\ud800 is no character!", ""])) == {(0, 1), (2,)}
    assert group_near_copies([]).tolist() == []
    assert group_near_copies(["one"]).tolist() == [0]


def planted(n: int) -> tuple[list[str], np.ndarray]:
    """n pairs of texts, one after the other, whose ends differ more or less; and how alike the pairs are."""
    draw = np.random.default_rng(1)
    texts = []
    for _ in range(n):
        original = written(draw, 80)
        cut = draw.integers(1, 30)
        texts += [original, normalise(original[:-cut] + written(draw, cut))]
    return texts, np.array([jaccard(*texts[i : i + 2]) for i in range(0, 2 * n, 2)])


def found(texts: list[str]) -> np.ndarray:
    group = group_near_copies(texts)
    return group[::2] == group[1::2]


def test_planted_copies_are_found_and_only_those() -> None:
    texts, alike = planted(3000)
    assert 500 < (alike >= ALIKE).sum() < 2500
    assert ((alike >= ALIKE) == found(texts)).mean() > 0.9995
    assert not found(texts)[alike < ALIKE].any()


@pytest.mark.parametrize(("name", "value"), [("ROWS", 25), ("BANDS", 2)])
def test_a_signature_that_is_too_strict_would_be_seen(monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    monkeypatch.setattr(duplicates, name, value)
    texts, alike = planted(3000)
    assert ((alike >= ALIKE) == found(texts)).mean() < 0.9995


def test_the_order_of_the_texts_does_not_matter() -> None:
    texts, _ = planted(300)
    order = np.random.default_rng(2).permutation(len(texts))
    there = np.argsort(order)
    assert parts(group_near_copies([texts[i] for i in order])[there]) == parts(group_near_copies(texts))


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, _ = planted(300)
    group = group_near_copies(texts)
    monkeypatch.setattr(duplicates, "CHUNK", 500)
    assert (group_near_copies(texts) == group).all()


def counted(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> tuple[int, int]:
    """How many pairs of the texts are proposed, and how many of them are compared."""
    proposals, comparisons = [0], [0]

    def proposed(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
        for pair in inner(texts):
            proposals[0] += 1
            yield pair

    def compared(one: str, other: str) -> float:
        comparisons[0] += 1
        return jaccard(one, other)

    inner = duplicates._candidate_pairs
    with monkeypatch.context() as patched:
        patched.setattr(duplicates, "_candidate_pairs", proposed)
        patched.setattr(duplicates, "jaccard", compared)
        group_near_copies(texts)
    return proposals[0], comparisons[0]


def template(n: int) -> list[str]:
    """Texts that are all nearly the same, by way of others."""
    return [f"the film that we saw on the evening of day {i} was long" for i in range(n)]


def test_a_template_is_one_group() -> None:
    assert len(set(group_near_copies(template(2_000)))) == 1


def test_the_work_does_not_grow_with_the_square_of_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = np.random.default_rng(3).choice(LETTERS, (5_000, 80))
    assert max(counted(monkeypatch, ["".join(row) for row in letters])) < 5  # of 12 million pairs
    proposals, comparisons = counted(monkeypatch, template(2_000))
    assert proposals < 50 * 2_000
    assert comparisons < 2 * 2_000
    monkeypatch.setattr(duplicates, "WINDOW", 2_000)  # the twin that looks at the whole of a bucket
    assert counted(monkeypatch, template(400))[0] > 100 * 400


def test_trec_as_by_all_pairs(data_folder: Path) -> None:
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import CountVectorizer

    (task,) = load(f"file:{data_folder / 'trec'}", SourceOptions(label_column=("coarse",))).tasks
    texts = [normalise(text) for text in task.texts]
    grams = CountVectorizer(analyzer="char", ngram_range=(5, 5), lowercase=False, binary=True).fit_transform(texts)
    common = (grams @ grams.T).tocoo()
    sizes = np.asarray(grams.sum(1)).ravel()
    common.data = common.data / (sizes[common.row] + sizes[common.col] - common.data) >= ALIKE
    common.eliminate_zeros()
    group = group_near_copies(task.texts)
    assert parts(connected_components(common, directed=False)[1]) == parts(group)
    assert len(set(texts)) - len(set(group.tolist())) == 17


# --------------------------------------------------------------------------------------------------------- group_rows


def test_ties_of_several_kinds_chain() -> None:
    assert group_rows([1, 2, 1, 3]).tolist() == [0, 1, 0, 2]
    assert parts(group_rows([1, 2, 1, 3, 4], None, ["a", "b", "c", "b", "d"])) == {(0, 2), (1, 3), (4,)}
    assert parts(group_rows([1, 2, 1, 3, 4], ["a", "b", "b", "c", "d"])) == {(0, 1, 2), (3,), (4,)}
    assert parts(group_rows(np.array([b"x\0", b"y", b"x"], object), [None, 1, "1"])) == {(0,), (1,), (2,)}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_ties_are_the_finest_that_hold(rows: list[tuple[int, int, int]]) -> None:
    group = group_rows(*zip(*rows, strict=True))
    of = list(range(len(rows)))
    for one, other in combinations(range(len(rows)), 2):
        if any(a == b for a, b in zip(rows[one], rows[other], strict=True)):
            of = [of[one] if each == of[other] else each for each in of]
    assert parts(group) == parts(np.array(of))
