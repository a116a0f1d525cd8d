"""Intervals against closed forms and simulation; the choice of layers; paired differences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, norm

from analysis import stats
from probes import metric


@pytest.mark.parametrize(("right", "n"), [(0, 10), (40, 50), (50, 50), (800, 1000), (1, 3)])
def test_wilson_is_that_of_scipy(right, n):
    low, high = stats.wilson(np.array(right / n), n)
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_methods_example():
    assert np.round(stats.wilson(np.array([0.8]), 50), 2).ravel().tolist() == [0.67, 0.89]


def test_resamplings_draw_n_texts_seeded_and_computed_once():
    drawn = stats.resamplings(70)
    assert drawn.shape == (stats.DRAWS, 70)
    assert (drawn.sum(1) == 70).all()
    assert drawn.mean(0) == pytest.approx(np.ones(70), abs=6 / np.sqrt(stats.DRAWS))
    assert drawn.var() == pytest.approx(1 - 1 / 70, abs=0.03)  # a binomial count of n draws at 1 / n
    assert stats.resamplings(70) is drawn
    assert not np.array_equal(stats.resamplings(70, seed=1), drawn)
    with pytest.raises(ValueError, match="read-only"):
        drawn[0, 0] = 1


def test_percentile_takes_infinite_replicates():
    replicates = np.r_[np.linspace(0, 1, 1000), np.full(1000, np.inf)]
    low, high = stats.percentile(replicates[None])
    assert 0 < low[0] < 0.1
    assert high[0] == np.inf


def test_bootstrap_intervals_cover_bits_as_they_promise():
    """Mean losses of 200 texts, skewed as bits are; the tolerance is 3 SE of the simulation and a point of bias."""
    random, simulations, n = np.random.default_rng(0), 400, 200
    losses = random.gamma(2.0, 0.5, size=(simulations, n))  # mean 1
    low, high = stats.percentile(metric.bits(-losses, stats.resamplings(n)))
    covered = ((low <= 1) & (high >= 1)).mean()
    assert abs(covered - 0.95) < 0.01 + 3 * np.sqrt(0.95 * 0.05 / simulations)


# --------------------------------------------------------------------------------------------------------- predictions


def predictions(right, *, layer=0, readout="cls", split="test", seed=0, bits=1.0, **more):
    """Predictions of one cell: 'a' is always the label."""
    n = len(right)
    constant = {"model": "m", "task": "t", "control": "none", "layer": layer, "readout": readout, "probe": "logistic"}
    columns = {"row": np.arange(n), "label": "a", "predicted": np.where(right, "a", "b"), "log2_probability": -bits}
    return pd.DataFrame(constant | {"seed": seed, "split": split} | columns | more)


def test_best_layers_are_chosen_on_dev_never_on_test():
    good, bad = np.ones(10, bool), np.arange(10) < 5
    table = pd.concat(
        [
            predictions(good, layer=1, split="dev"),
            predictions(bad, layer=1, split="test"),
            predictions(bad, layer=2, split="dev"),
            predictions(good, layer=2, split="test"),
        ]
    )
    chosen = stats.best_layers(table)
    assert chosen.to_dict("records") == [
        {"task": "t", "readout": "cls", "probe": "logistic", "layer": 1, "dev": 1.0},
    ]


def test_ties_between_layers_go_to_fewer_bits_then_to_the_lower_layer():
    half = np.arange(10) < 5
    parts = [predictions(half, layer=layer, split="dev", bits=bits) for layer, bits in ((1, 2.0), (3, 1.0), (2, 1.0))]
    assert stats.best_layers(pd.concat(parts)).layer.tolist() == [2]
    mute = [predictions(half, layer=layer, split="dev", bits=np.nan) for layer in (2, 1)]
    assert stats.best_layers(pd.concat(mute)).layer.tolist() == [1]


def test_best_layers_compare_categories_as_they_compare_strings():
    half = np.arange(10) < 5
    table = pd.concat([predictions(half, layer=1, split="dev"), predictions(~half, layer=2, split="dev")])
    as_categories = table.astype({c: pd.CategoricalDtype(["b", "a"]) for c in ("label", "predicted")})
    others = table.astype({"label": "category", "predicted": "category"})  # categories that differ
    expected = stats.best_layers(table)
    pd.testing.assert_frame_equal(stats.best_layers(as_categories), expected)
    pd.testing.assert_frame_equal(stats.best_layers(others), expected)


def test_correct_wants_exactly_one_cell():
    table = pd.concat([predictions([True, False]), predictions([True, True], layer=1)])
    assert stats.correct(table, layer=0).to_numpy().tolist() == [[1.0, 0.0]]
    with pytest.raises(ValueError, match="more than one cell"):
        stats.correct(table, readout="cls")
    with pytest.raises(ValueError, match="no cell"):
        stats.correct(table, layer=7)


def test_accuracies_are_means_over_seeds_with_intervals_over_texts():
    table = pd.concat([predictions([True] * 8 + [False] * 2), predictions([True] * 6 + [False] * 4, seed=1)])
    (row,) = stats.accuracies(table, ["layer"]).itertuples()
    low, high = stats.wilson(np.array(0.7), 10)
    assert (row.value, row.low, row.high, row.count) == pytest.approx((0.7, low, high, 10))


# -------------------------------------------------------------------------------------------------- paired differences


def frame(values, rows=None):
    return pd.DataFrame(values, columns=rows)


def test_no_difference_is_exactly_zero():
    one = frame(np.random.default_rng(0).integers(2, size=(3, 50)).astype(float))
    assert stats.paired_difference(one, one) == (0, 0, 0)
    assert stats.paired_difference(one[:1], one[:1]) == (0, 0, 0)


def test_paired_difference_has_the_interval_of_the_central_limit():
    random, n = np.random.default_rng(0), 2000
    a, b = (frame((random.random((1, n)) < p).astype(float)) for p in (0.8, 0.7))
    effect, low, high = stats.paired_difference(a, b)
    difference = (a - b).to_numpy()
    half = norm.ppf(0.975) * difference.std() / np.sqrt(n)
    assert effect == pytest.approx(difference.mean())
    assert (effect - low, high - effect) == pytest.approx((half, half), rel=0.08)


def test_seeds_and_texts_are_crossed():
    """Nested resampling (pooling seeds and texts) promises 95 % and covers far less; crossed covers at least that."""
    random, simulations, seeds, n = np.random.default_rng(0), 200, 5, 200
    crossed = nested = 0
    for _ in range(simulations):
        values = random.normal(0, 0.2, (seeds, 1)) + random.normal(0, 1, (1, n)) + random.normal(0, 0.5, (seeds, n))
        _, low, high = stats.paired_difference(frame(values), frame(np.zeros_like(values)))
        crossed += low <= 0 <= high
        nested += abs(values.mean()) <= 1.96 * values.std() / np.sqrt(values.size)
    assert crossed / simulations > 0.95 - 3 * np.sqrt(0.95 * 0.05 / simulations)
    assert nested / simulations < 0.8


def test_seeds_may_test_different_texts_but_both_sides_the_same():
    values = np.where(np.random.default_rng(0).random((3, 60)) < 0.3, np.nan, 1.0)
    effect, low, high = stats.paired_difference(frame(values), frame(values * 0.5))
    assert (effect, low, high) == pytest.approx((0.5, 0.5, 0.5))


def test_other_texts_are_refused():
    a, b = frame([[1.0, 0.0]], [3, 4]), frame([[1.0, 0.0]], [3, 5])
    with pytest.raises(ValueError, match="same texts"):
        stats.paired_difference(a, b)
    with pytest.raises(ValueError, match="same texts"):
        stats.paired_difference(a, frame([[1.0, np.nan]], [3, 4]))
