"""Effects of swaps: their intervals are honest about lemmas, and their sentences say no more than the table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from clsprobe.analysis.formation import swap_effects
from clsprobe.analysis.formation.exhibits import swap_exhibits
from clsprobe.analysis.formation.swap_effects import CLS, INTACT, OTHERS, SAME_LABEL, WHOLE, Ratios


def make_table(curve, *, lemmas=20, pairs=3, change=2.0, noise=0.1, seed=0):
    """The table of swaps whose effect follows `curve` (layer,), with noise that the sentences of a lemma share."""
    random, rows, last = np.random.default_rng(seed), [], len(curve) - 1
    shared = random.normal(size=(lemmas, len(curve))) * noise
    for pair in range(lemmas * pairs):
        lemma = f"lemma{pair % lemmas}" if lemmas > 1 else ""
        for label, twin in (("past", "present"), ("present", "past")):
            intact = -change / 2 + 0.1 * random.normal()
            key = (lemma, pair, label, twin)
            rows += [(last, INTACT, *key, intact), (last, WHOLE, *key, intact + change)]
            for layer, value in enumerate(curve):
                effect = value + shared[pair % lemmas, layer] * (0 < layer < last)
                rows.append((layer, CLS, *key, intact + change * effect))
                rows.append((layer, OTHERS, *key, intact + change * (1 - effect)))
                rows.append((layer, SAME_LABEL, *key, intact))
    table = pd.DataFrame(rows, columns=["layer", "swap", "lemma", "pair", "label", "twin_label", "log_odds"])
    return table.assign(task="grammar:tense", seed=0, **{"read at": last})[list(swap_effects.SWAPS)]


def make_reliability(table):
    """A table in which the MLP reads the tense and the length, and not the number."""
    keys = table[table.swap.isin([INTACT, WHOLE, CLS, SAME_LABEL])].drop(columns="log_odds")
    parts = [keys.assign(measure="completeness", property="tense", value=0.1 + 0.8 * (keys.swap == WHOLE))]
    for name, gain in (("tense", 0.4), ("length", 0.3), ("number", 0.0)):
        intact = keys[keys.swap == INTACT]
        parts.append(intact.assign(measure="accuracy above the majority", property=name, value=gain))
        parts += [keys.assign(measure="selectivity", property=name, value=0.9)] if name != "tense" else []
    return pd.concat(parts, ignore_index=True)


# -------------------------------------------------------------------------------------------------------- intervals


def test_without_a_denominator_the_interval_is_that_of_a_mean():
    values = np.random.default_rng(0).normal(size=(12, 1))
    estimate = Ratios(values, np.ones(12)).estimate()
    low, high = scipy_stats.t.interval(0.95, 11, values.mean(), scipy_stats.sem(values[:, 0]))
    assert [float(number[0]) for number in estimate.values()] == pytest.approx([values.mean(), low, high])


def test_differences_of_ratios_are_paired():
    shared = np.random.default_rng(1).normal(size=(15, 1))
    ratios = Ratios(np.hstack([shared, shared + 1]), np.ones(15))
    step = ratios.estimate(np.array([[-1.0], [1.0]]))
    assert [float(number[0]) for number in step.values()] == pytest.approx([1, 1, 1])
    assert np.ptp([number[0] for number in ratios.estimate().values()]) > 0.3


def test_few_lemmas_have_no_interval():
    estimate = Ratios(np.ones((4, 1)), np.ones(4)).estimate()
    assert estimate["value"] == 1
    assert np.isnan([estimate["low"], estimate["high"]]).all()


def simulate(random, *, lemmas=22):
    """(text,) lemma, change by the swap, change by the whole text: effects of lemmas vary around 0.3."""
    lemma = np.repeat(np.arange(lemmas), random.integers(2, 13, size=lemmas))
    whole = 1 + 0.4 * random.normal(size=lemmas)[lemma] + 0.5 * random.normal(size=len(lemma))
    share = 0.3 + 0.15 * random.normal(size=lemmas)[lemma]
    return lemma, share * whole + 0.2 * random.normal(size=len(lemma)), whole


def count_covered(clusters, draws):
    """The share of simulated intervals that hold 0.3. clusters: (text,) lemmas -> what is left out at a time."""
    random, covered = np.random.default_rng(7), 0
    for _ in range(draws):
        lemma, change, whole = simulate(random)
        sums = pd.DataFrame({"change": change, "whole": whole}).groupby(clusters(lemma)).sum().to_numpy()
        estimate = Ratios(sums[:, :1], sums[:, 1]).estimate()
        covered += int(estimate["low"][0] <= 0.3 <= estimate["high"][0])
    return covered / draws


def test_intervals_over_lemmas_cover():
    assert 0.92 <= count_covered(lambda lemma: lemma, 600) <= 0.98


def test_intervals_over_texts_would_not():
    """The broken twin: sentences of one lemma taken as independent."""
    assert count_covered(lambda lemma: np.arange(len(lemma)), 300) < 0.85


# --------------------------------------------------------------------------------------------------- what is concluded


def test_the_largest_rise_is_named_and_what_is_so_by_construction():
    table = make_table([0, 0.02, 0.1, 0.9, 1])
    rises = swap_effects.compute_rises(table)
    assert rises.block.tolist() == [1, 2, 3, 4]
    assert rises.largest.tolist() == [False, False, True, False]
    sentence = swap_effects.describe_swaps(table)
    assert "[CLS] of layer 2 carries 1" in sentence
    assert sentence.endswith("from the other tokens in block 3, whatever [CLS] of layer 2 holds of it")
    assert "by construction" not in sentence
    at_the_end = swap_effects.describe_swaps(make_table([0, 0, 0, 0.1, 1]))
    assert "[CLS] of layer 4 all of it by construction" in at_the_end


def test_two_blocks_that_cannot_be_told_apart_are_both_named():
    sentence = swap_effects.describe_swaps(make_table([0, 0, 0.48, 0.97, 1], noise=0.1))
    assert "in block 2 or 3, it is not certain in which, whatever [CLS] of layer 1 holds" in sentence
    assert "[CLS] of layer 1 carries" in sentence


def test_a_probe_at_layer_1_leaves_nothing_to_find():
    assert swap_effects.describe_swaps(make_table([0, 1])).endswith("at which swaps could show something")


@pytest.mark.parametrize("seed", range(5))
def test_effects_of_a_known_curve(seed):
    curve = np.array([0, 0.1, 0.4, 1])
    effects = swap_effects.compute_effects(make_table(curve, seed=seed)).set_index(["swap", "layer"])
    np.testing.assert_allclose(effects.loc[CLS].value, curve, atol=0.1)
    np.testing.assert_allclose(effects.loc[OTHERS].value, 1 - effects.loc[CLS].value)
    assert (effects.loc[SAME_LABEL].value.abs() < 1e-9).all()
    assert effects.loc[(CLS, 1), "low"] < effects.loc[(CLS, 1), "value"] < effects.loc[(CLS, 1), "high"]


def test_twins_that_the_probe_does_not_tell_apart_show_nothing():
    table = make_table([0, 0.5, 1], change=0.0)
    assert "does not certainly tell the twins of 60 minimal pairs apart" in swap_effects.describe_swaps(table)
    (exhibit,) = make_exhibits(table)
    assert exhibit.plot is None
    assert "show nothing" in exhibit.caption
    few = swap_effects.describe_swaps(make_table([0, 0.5, 1], lemmas=3))
    assert "of 9 minimal pairs of 3 lemmas apart (they differ by 2.00 nats of log-odds; fewer than 5 " in few
    assert "nan" not in few


# ----------------------------------------------------------------------------------------------------------- exhibits


def make_exhibits(table):
    return swap_exhibits(table, make_reliability(table))


def test_exhibits_draw_and_say_what_the_tables_say():
    table = make_table([0, 0.02, 0.1, 0.9, 1])
    curves, rises, reliability = make_exhibits(table)
    assert "60 minimal pairs, sentences with the labels past and present" in curves.caption
    assert "20 lemmas that the probe did not learn from" in curves.caption
    assert "0 at layer 0, where all texts have the same [CLS], and 1 at layer 4" in curves.caption
    assert set(curves.table.readout) == {"[CLS] of the twin", "all other tokens of the twin", "[CLS], same label"}
    assert "reaches 0.90" in reliability.caption
    assert reliability.caption.endswith("it does not certainly read them there: number.")
    assert set(reliability.table.readout) >= {"complete, twin", "length kept, same label"}
    assert not any("number" in name for name in reliability.table.readout)
    for exhibit in (curves, reliability):
        exhibit.draw()
    assert len(rises.table) == 4


def test_a_cls_that_differs_at_layer_0_is_said_to_differ():
    curves, *_ = make_exhibits(make_table([0.2, 0.3, 0.9, 1]))
    assert "At layer 0 the texts of this encoder differ in [CLS]." in curves.caption
    assert "0 at layer 0, where all texts" not in curves.caption


def test_pairs_without_a_lemma_are_clusters_of_their_own():
    table = make_table([0, 0.1, 1], lemmas=1, pairs=30)
    caption = make_exhibits(table)[0].caption
    assert "intervals over pairs" in caption
    assert "lemmas" not in caption


def test_nothing_has_no_sign():
    sentence = swap_effects.describe_swaps(make_table([0, -0.002, 1, 1], noise=0))
    assert "[CLS] of layer 1 carries 0 %" in sentence
    assert "-0 %" not in sentence
