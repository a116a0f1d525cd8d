"""Completeness and selectivity: counted by hand, at their limits, and with the broken twins that they must notice."""

from __future__ import annotations

import numpy as np
import pytest

from clsprobe.analysis.formation.reliability import (
    completeness,
    fit_independent_probe,
    halve_train,
    label_properties,
    mean_share,
    measure_reliability,
    selectivity,
    total_variation,
)
from clsprobe.analysis.sweep.grid import SplitTask
from clsprobe.probes.tasks.task import Task

pytestmark = pytest.mark.usefixtures("one_thread")


def test_total_variation_is_half_the_absolute_differences():
    p, q = np.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]]), np.array([[0.2, 0.3, 0.5], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(total_variation(p, q), [0.3, 1.0])
    np.testing.assert_allclose(total_variation(p, p), 0)
    largest = max((p - q)[0, list(event)].sum() for event in ([0], [1], [2], [0, 1], [0, 2], [1, 2]))
    assert total_variation(p, q)[0] == pytest.approx(largest), "the largest difference over events"


def test_completeness_is_counted_by_hand():
    after = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    np.testing.assert_allclose(completeness(after, np.array([0.6, 0.4])), [0.7, 0.9, 0.6])
    twins = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # the other value with probability 1
    np.testing.assert_allclose(completeness(after, twins), [0.1, 0.5, 0.2])


def test_selectivity_is_a_share_of_the_largest_change():
    before = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    after = np.array([[0.45, 0.55], [0.5, 0.5], [1.0, 0.0]])
    np.testing.assert_allclose(selectivity(before, after), [1 - 0.45 / 0.9, 1.0, 1 - 0.8 / 0.8])


@pytest.mark.parametrize("seed", range(5))
def test_no_change_is_larger_than_the_normaliser(seed):
    random = np.random.default_rng(seed)
    before, after = random.dirichlet([0.3] * 4, size=(2, 500))
    vertices = np.eye(4)[before.argmin(1)]
    np.testing.assert_allclose(selectivity(before, vertices), 0, atol=1e-12)
    assert (selectivity(before, after) >= selectivity(before, vertices)).all()


def test_a_mean_of_shares_stays_a_share():
    values = np.array([1.0] * 99 + [0.9])
    mean, low, high = mean_share(values)
    assert low < mean == values.mean() < high <= 1
    assert mean_share(np.ones(5)) == (1, 1, 1)


# ------------------------------------------------------------------------------------------------ an erased direction

DIM = 16


def make_vectors(seed, count):
    """Two properties along two directions at right angles, and codes of both."""
    random = np.random.default_rng(seed)
    codes = random.integers(2, size=(2, count))
    X = random.normal(size=(count, DIM))
    X[:, :2] += 3 * (codes.T - 0.5)
    return X, {"erased": codes[0], "other": codes[1]}


def remove(X, directions):
    return X - X @ directions @ directions.T


def test_completeness_and_selectivity_at_their_limits():
    """The property's own direction: complete and selective. A random one: as intact. Everything: not selective."""
    sides = (make_vectors(seed, count) for seed, count in enumerate((3000, 1000, 1000)))
    (X, y), (X_dev, y_dev), (X_test, labels) = sides
    probe = fit_independent_probe(X[None], y, X_dev[None], y_dev)
    basis = np.eye(DIM)
    changed = {
        "intact": X_test,
        "own": remove(X_test, basis[:, :1]),
        "other": remove(X_test, basis[:, 1:2]),
        "random": remove(X_test, basis[:, 7:8]),
        "everything": np.zeros_like(X_test),
    }
    before = probe.probabilities(X_test[None])
    complete, selective = {}, {}
    for name, vectors in changed.items():
        after = probe.probabilities(vectors[None])
        complete[name] = completeness(after["erased"][0], probe.priors["erased"]).mean()
        selective[name] = selectivity(before["other"][0], after["other"][0]).mean()
    assert complete["intact"] < 0.6
    assert complete["own"] > 0.8
    assert selective["own"] > 0.95
    assert complete["other"] == pytest.approx(complete["intact"], abs=0.05), "the broken twin: another direction"
    assert selective["other"] < 0.6
    assert complete["random"] == pytest.approx(complete["intact"], abs=0.05)
    assert selective["random"] > 0.95
    assert complete["everything"] > 0.8
    assert selective["everything"] < 0.6
    assert selective["intact"] == 1
    for name, after in before.items():  # calibrated: as certain as right
        assert after[0].max(1).mean() == pytest.approx((after[0].argmax(1) == labels[name]).mean(), abs=0.03)


def test_properties_have_classes_of_their_own():
    X, y = make_vectors(0, 120)
    cells = np.stack([X[:, :4], X[:, 4:8]])
    y["thirds"] = np.arange(120) % 3
    y["erased"] = np.where(np.arange(120) < 40, -1, y["erased"])  # without a label
    unseen = {name: np.roll(codes, 1) + (np.arange(120) == 0) * 9 for name, codes in y.items()}  # and new classes
    probe = fit_independent_probe(cells, y, cells, unseen)
    probabilities = probe.probabilities(cells)
    shapes = {name: values.shape for name, values in probabilities.items()}
    assert shapes == {"erased": (2, 120, 2), "other": (2, 120, 2), "thirds": (2, 120, 3)}
    for values in probabilities.values():
        np.testing.assert_allclose(values.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(probe.priors["erased"], np.bincount(y["erased"][40:]) / 80)


def make_split(texts, labels, groups, sides):
    task = Task("made:halves:label", texts, np.asarray(labels).astype(str))
    classes, y = np.unique(task.y, return_inverse=True)
    rows = np.arange(len(y))
    return SplitTask(task, rows, rows, sides, groups, y, classes, {}, [])


def test_halves_share_no_group_and_have_every_class():
    groups = np.arange(90) // 2
    labels = np.repeat([0, 1, 2], [54, 30, 6])
    sides = np.where(groups % 10 == 9, "test", "train")
    split = make_split([f"text {i}" for i in range(90)], labels, groups, sides)
    for seed in range(5):
        for_erasers, for_probes = halve_train(split, seed)
        assert sorted([*for_erasers, *for_probes]) == split.rows_of("train").tolist()
        assert not {*groups[for_erasers]} & {*groups[for_probes]}
        assert len({*split.y[for_erasers]}) == len({*split.y[for_probes]}) == 3
        assert abs(len(for_erasers) - len(for_probes)) <= 6  # a group more of each of three classes
    assert halve_train(split, 0)[0].tolist() != halve_train(split, 1)[0].tolist()


def test_other_properties_are_the_length_and_what_labels_the_texts_of_every_side():
    texts = [" ".join(["word"] * (1 + i % 9) + [str(i)]) for i in range(90)]
    sides = np.where(np.arange(90) < 50, "train", np.where(np.arange(90) < 70, "dev", "test"))
    split = make_split(texts, np.arange(90) % 2, np.arange(90), sides)
    number = {text: "odd" if i % 2 else "even" for i, text in enumerate(texts) if i % 5}
    properties = label_properties(
        split,
        {
            "number": number,
            "of train alone": dict.fromkeys(texts[:50], "a") | {texts[0]: "b"},
            "of one class": dict.fromkeys(texts, "a"),
        },
    )
    assert list(properties) == ["length", "number"]
    assert properties["length"].tolist()[:9] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert properties["number"].tolist()[:7] == [-1, 1, 0, 1, 0, -1, 0]


def test_only_properties_that_are_read_are_judged():
    random = np.random.default_rng(0)
    codes = {
        "erased": random.integers(2, size=400),
        "read": random.integers(3, size=400),
        "noise": random.integers(2, size=400),
    }
    before = {name: 0.8 * np.eye(k)[codes[name]] + 0.2 / k for name, k in (("erased", 2), ("read", 3))}
    before["noise"] = np.eye(2)[random.integers(2, size=400)]
    after = {"erased": np.full((400, 2), 0.5), "read": before["read"], "noise": 1 - before["noise"]}
    row = measure_reliability(before, after, np.array([0.5, 0.5]), codes)
    assert row["completeness"] == row["selectivity"] == row["reliability"] == pytest.approx(1)
    assert row["others"] == "read"
    assert row["accuracy"] == 1
    intact = measure_reliability(before, before, np.array([0.5, 0.5]), codes)
    assert intact["completeness"] == pytest.approx(0.6)
    assert intact["reliability"] == pytest.approx(2 * 0.6 / 1.6)
    codes["read"] = random.integers(3, size=400)
    unread = measure_reliability(before, after, np.array([0.5, 0.5]), codes)
    assert np.isnan(unread["selectivity"])
    assert np.isnan(unread["reliability"])
    codes["erased"] = random.integers(2, size=400)
    assert np.isnan(measure_reliability(before, after, np.array([0.5, 0.5]), codes)["completeness"])
