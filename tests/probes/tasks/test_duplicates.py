"""`probes.tasks.duplicates`: near copies are those of the exact comparison of all pairs, in a fraction of the time."""

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


def make_text(draw: np.random.Generator, length: int) -> str:
    return normalise("".join(draw.choice(LETTERS, length)))


def partition(group: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(np.flatnonzero(group == value)) for value in np.unique(group)}


def compare_all_pairs(texts: list[str]) -> set[tuple[int, ...]]:
    """The groups from comparing all pairs."""
    groups = list(range(len(texts)))
    for first, second in combinations(range(len(texts)), 2):
        if jaccard(normalise(texts[first]), normalise(texts[second])) >= ALIKE:
            groups = [groups[first] if group == groups[second] else group for group in groups]
    return partition(np.array(groups))


# --------------------------------------------------------------------------------------------------------------- copies


def test_case_spaces_and_unicode_forms_are_ignored() -> None:
    assert normalise("  Straße\u00a0 eins ") == normalise("STRASSE\teins") == "strasse eins"
    assert normalise("ﬁne") == "fine"
    assert len(set(hash_texts(["One", "one ", "two"], 0))) == 2
    assert (hash_texts(["a", "b"], 0) != hash_texts(["a", "b"], 1)).all()


# ---------------------------------------------------------------------------------------------------------- near copies


def test_jaccard_by_hand() -> None:
    assert jaccard("abcdefg", "abcdefg") == 1
    assert jaccard("abcdefgh", "abcdefgx") == 3 / 5  # abcde bcdef cdefg are common, defgh and defgx are not
    assert jaccard("abc", "abc") == 1
    assert jaccard("abc", "abd") == jaccard("abcdefg", "tuvwxyz") == 0


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 59), st.sampled_from("xyz")), min_size=2, max_size=25))
def test_groups_are_those_of_all_pairs(edits: list[tuple[int, int, str]]) -> None:
    originals = [make_text(np.random.default_rng(i), 60) for i in range(6)]
    texts = [originals[i][:position] + letter + originals[i][position + 1 :] for i, position, letter in edits]
    assert partition(group_near_copies(texts)) == compare_all_pairs(texts)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=20))
def test_groups_of_arbitrary_texts_are_those_of_all_pairs(texts: list[str]) -> None:
    assert partition(group_near_copies(texts)) == compare_all_pairs(texts)


def test_lone_surrogates_and_empty_input() -> None:
    assert partition(group_near_copies(["\ud800 is no character", "\ud800 is no character!", ""])) == {(0, 1), (2,)}
    assert group_near_copies([]).tolist() == []
    assert group_near_copies(["one"]).tolist() == [0]


def make_pairs(n: int) -> tuple[list[str], np.ndarray]:
    """n pairs of texts, in consecutive rows, whose ends differ by varying amounts; and the similarity of each pair."""
    draw = np.random.default_rng(1)
    texts = []
    for _ in range(n):
        original = make_text(draw, 80)
        cut = draw.integers(1, 30)
        texts += [original, normalise(original[:-cut] + make_text(draw, cut))]
    return texts, np.array([jaccard(*texts[i : i + 2]) for i in range(0, 2 * n, 2)])


def pairs_in_one_group(texts: list[str]) -> np.ndarray:
    group = group_near_copies(texts)
    return group[::2] == group[1::2]


def test_only_planted_copies_are_found() -> None:
    texts, alike = make_pairs(3000)
    assert 500 < (alike >= ALIKE).sum() < 2500
    assert ((alike >= ALIKE) == pairs_in_one_group(texts)).mean() > 0.9995
    assert not pairs_in_one_group(texts)[alike < ALIKE].any()


@pytest.mark.parametrize(("name", "value"), [("ROWS", 25), ("BANDS", 2)])
def test_a_signature_that_is_too_strict_would_be_detected(
    monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    monkeypatch.setattr(duplicates, name, value)
    texts, alike = make_pairs(3000)
    assert ((alike >= ALIKE) == pairs_in_one_group(texts)).mean() < 0.9995


def test_the_order_of_the_texts_does_not_matter() -> None:
    texts, _ = make_pairs(300)
    order = np.random.default_rng(2).permutation(len(texts))
    inverse = np.argsort(order)
    assert partition(group_near_copies([texts[i] for i in order])[inverse]) == partition(group_near_copies(texts))


def test_the_size_of_chunks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, _ = make_pairs(300)
    group = group_near_copies(texts)
    monkeypatch.setattr(duplicates, "CHUNK", 500)
    assert (group_near_copies(texts) == group).all()


def count_pairs(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> tuple[int, int]:
    """The number of candidate pairs, and of those compared."""
    proposals, comparisons = [0], [0]

    def count_proposals(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
        for pair in candidate_pairs(texts):
            proposals[0] += 1
            yield pair

    def count_comparisons(first: str, second: str) -> float:
        comparisons[0] += 1
        return jaccard(first, second)

    candidate_pairs = duplicates._candidate_pairs
    with monkeypatch.context() as patched:
        patched.setattr(duplicates, "_candidate_pairs", count_proposals)
        patched.setattr(duplicates, "jaccard", count_comparisons)
        group_near_copies(texts)
    return proposals[0], comparisons[0]


def template(n: int) -> list[str]:
    """Texts that are all near copies, directly or through others."""
    return [f"the film that we saw on the evening of day {i} was long" for i in range(n)]


def test_a_template_is_one_group() -> None:
    assert len(set(group_near_copies(template(2_000)))) == 1


def test_the_number_of_comparisons_is_not_quadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = np.random.default_rng(3).choice(LETTERS, (5_000, 80))
    assert max(count_pairs(monkeypatch, ["".join(row) for row in letters])) < 5  # of 12 million pairs
    proposals, comparisons = count_pairs(monkeypatch, template(2_000))
    assert proposals < 50 * 2_000
    assert comparisons < 2 * 2_000
    monkeypatch.setattr(duplicates, "WINDOW", 2_000)  # the wrong version compares a whole bucket
    assert count_pairs(monkeypatch, template(400))[0] > 100 * 400


def test_groups_of_trec_are_those_of_all_pairs(data_folder: Path) -> None:
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
    assert partition(connected_components(common, directed=False)[1]) == partition(group)
    assert len(set(texts)) - len(set(group.tolist())) == 17


# ----------------------------------------------------------------------------------------------------------- group_rows


def test_ties_of_several_kinds_are_transitive() -> None:
    assert group_rows([1, 2, 1, 3]).tolist() == [0, 1, 0, 2]
    assert partition(group_rows([1, 2, 1, 3, 4], None, ["a", "b", "c", "b", "d"])) == {(0, 2), (1, 3), (4,)}
    assert partition(group_rows([1, 2, 1, 3, 4], ["a", "b", "b", "c", "d"])) == {(0, 1, 2), (3,), (4,)}
    assert partition(group_rows(np.array([b"x\0", b"y", b"x"], object), [None, 1, "1"])) == {(0,), (1,), (2,)}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_groups_are_the_finest_that_keep_all_ties(rows: list[tuple[int, int, int]]) -> None:
    group = group_rows(*zip(*rows, strict=True))
    groups = list(range(len(rows)))
    for first, second in combinations(range(len(rows)), 2):
        if any(a == b for a, b in zip(rows[first], rows[second], strict=True)):
            groups = [groups[first] if label == groups[second] else label for label in groups]
    assert partition(group) == partition(np.array(groups))
