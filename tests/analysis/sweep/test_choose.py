"""Cells that dev chooses, on predictions made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from tables import first, predictions

from clsprobe.analysis import stats
from clsprobe.analysis.sweep import choose
from clsprobe.analysis.sweep.scores import TaskScores
from clsprobe.analysis.table import COLUMNS, KEY, check_results
from clsprobe.analysis.verdict import MissingEvidence


def table():
    return predictions(
        {
            ("none", 0, "cls"): (first(0.5), first(0.99)),  # the best of all on test, which must not choose
            ("none", 1, "cls"): (first(0.9), first(0.80)),
            ("none", 1, "mean"): (first(0.85), first(0.95)),
            ("majority", -1, "none"): (first(0.5), first(0.5)),
            ("bag_of_words", -1, "none"): (first(0.7), first(0.6)),
            ("untrained", 1, "mean"): (first(0.6), first(0.9)),
        }
    )


def test_the_layer_of_a_readout_is_chosen_on_dev():
    chosen = TaskScores(table()).choose("cls")
    assert (chosen.layer, chosen.readout, chosen.name) == (1, "cls", "cls at layer 1")
    assert (chosen.dev, chosen.test) == (0.9, 0.8)
    assert 0.75 < chosen.low < 0.8 < chosen.high < 0.85


def test_the_best_cell_of_all_is_chosen_on_dev():
    assert TaskScores(table()).choose(None).readout == "cls"


def test_baselines_are_listed_by_the_names_a_reader_knows():
    lines = choose.list_baselines(TaskScores(table()), TaskScores(table()).choose("mean"))
    assert list(lines.name) == [
        "mean at layer 1",
        "majority class",
        "bag of words",
        "untrained encoder (as drawn), mean at layer 1",
    ]
    assert lines.value.tolist() == [0.95, 0.5, 0.6, 0.9]


def test_rows_of_a_choice_are_its_own():
    rows = TaskScores(table()).choose("mean").rows(table())
    assert len(rows) == 800
    assert set(rows.readout) == {"mean"}
    with pytest.raises(MissingEvidence, match="no predictions of max on dev and test"):
        TaskScores(table()).choose("max")


def test_nothing_is_found_in_a_cell_that_only_test_favours():
    """13 x 8 cells of noise: the best on test looks good, the one that dev chooses does not."""
    random, significant, seeming = np.random.default_rng(0), 0, []
    for _ in range(5):
        cells = {
            ("none", layer, readout): (random.random(400) < 0.5, random.random(400) < 0.5)
            for layer in range(13)
            for readout in ("cls", "sep", "token[1]", "token[2]", "token[-1]", "random", "mean", "max")
        }
        rows = predictions(cells | {("majority", -1, "none"): (first(0.5), first(0.5))})
        cell, baseline = TaskScores(rows).choose(None), TaskScores(rows).choose(None, "majority")
        low, high = TaskScores(rows).difference(cell.where, baseline.where).interval()
        significant += low > 0 or high < 0
        seeming.append(stats.accuracies(rows[rows.split == "test"], ["layer", "readout"]).value.max())
    assert significant <= 1
    assert np.mean(seeming) == pytest.approx(0.563, abs=0.01)  # METHODS.md 3


def test_scores_agree_with_those_of_the_tables():
    """Several seeds with splits of their own: the same choice, score, interval and difference as from the rows."""
    random = np.random.default_rng(1)
    parts = []
    for seed in range(3):
        cells = {
            ("none", layer, name): (random.random(60) < 0.6 + layer / 20, random.random(80) < 0.7)
            for layer in range(3)
            for name in ("cls", "mean")
        }
        part = predictions(cells | {("majority", -1, "none"): (random.random(60) < 0.5, first(0.5, 80))}, seed=seed)
        parts.append(part.assign(row=(part.row + 37 * seed) % 1500))
    rows = pd.concat(parts, ignore_index=True)
    scores, best = TaskScores(rows), stats.best_layers(rows).set_index("readout")
    for name in ("cls", "mean"):
        cell = scores.choose(name)
        assert (cell.layer, cell.dev) == (best.layer[name], pytest.approx(best.dev[name]))
        expected = stats.accuracies(cell.rows(rows[rows.split == "test"]), ["readout"]).iloc[0]
        assert (cell.test, cell.low, cell.high) == pytest.approx((expected.value, expected.low, expected.high))
    a, b = scores.choose("cls").where, scores.choose(None, "majority").where
    effect = stats.paired_difference(stats.correctness(rows, **a), stats.correctness(rows, **b))
    difference = scores.difference(a, b)
    assert (difference.effect, *difference.interval()) == pytest.approx(effect)


# --------------------------------------------------------------------------------------------- gain and selectivity


def results_of(rows):
    """The results table of these predictions."""
    scores = []
    for key, cell in rows.groupby(list(KEY[:-1]), sort=False, observed=True):
        right = (cell.label == cell.predicted).mean()
        for metric, value in (("accuracy", right), ("bits", -cell.log2_probability.mean())):
            scores.append((*key, metric, value, value, value, 9, len(cell), True))
    return check_results(pd.DataFrame(scores, columns=list(COLUMNS)))


def test_gain_is_over_the_baseline_that_dev_chooses():
    rows = table()
    gains = choose.gain(results_of(rows), rows)
    assert gains.columns.tolist() == [*stats.CELL, "metric", "value", "low", "high", "against"]
    assert set(gains.against) == {"bag_of_words"}
    by_cell = gains[gains.metric == "accuracy"].set_index(["layer", "readout"])
    assert by_cell.value.to_dict() == pytest.approx({(0, "cls"): 0.39, (1, "cls"): 0.2, (1, "mean"): 0.35})
    assert ((by_cell.low < by_cell.value) & (by_cell.value < by_cell.high)).all()
    effect, low, high = stats.paired_difference(
        stats.correctness(rows, control="none", layer=1, readout="cls"), stats.correctness(rows, control="bag_of_words")
    )
    assert tuple(by_cell.loc[(1, "cls"), ["value", "low", "high"]]) == pytest.approx((effect, low, high))
    bits = gains[gains.metric == "bits"].set_index(["layer", "readout"])
    assert bits.value[1, "cls"] == pytest.approx(0.2 * 2.9)  # every text more that is right saves 2.9 bits
    assert ((bits.low < bits.value) & (bits.value < bits.high)).all()


def test_gain_without_predictions_has_no_interval():
    gains = choose.gain(results_of(table()))
    assert gains.low.isna().all()
    assert gains.value.notna().all()


def test_each_metric_and_seed_has_its_own_best_baseline():
    """In bits the one that says little for certain is the best; an untrained encoder belongs to its own probe."""
    rows = table()
    words = rows.control == "bag_of_words"
    rows.loc[words, "log2_probability"] = -4.0
    other = table().assign(seed=1)
    other = other[other.control != "bag_of_words"]
    third = table()[lambda t: t.control.isin(["none", "majority"])].assign(seed=2, probe="mlp")
    gains = choose.gain(results_of(pd.concat([rows, other, third])), pd.concat([rows, other, third]))
    against = gains.drop_duplicates(["probe", "seed", "metric"]).set_index(["seed", "metric"]).against.to_dict()
    assert against == {
        (0, "accuracy"): "bag_of_words",
        (0, "bits"): "untrained, mean at layer 1",
        (1, "accuracy"): "untrained, mean at layer 1",
        (1, "bits"): "untrained, mean at layer 1",
        (2, "accuracy"): "majority",
        (2, "bits"): "majority",
    }


def test_selectivity_is_task_less_control_in_the_same_cell():
    rows = predictions(
        {
            ("none", 1, "cls"): (first(0.9), first(0.8)),
            ("none", 1, "mean"): (first(0.9), first(0.95)),
            ("word_type", 1, "cls"): (first(0.5), first(0.5)),
            ("word_type", 1, "mean"): (first(0.5), first(0.9)),
        }
    )
    labelled = rows[(rows.control == "none") | (rows.row % 4 > 0)]  # the control labels three texts in four
    for sample in (rows, labelled):
        selectivities = choose.selectivity(results_of(sample), sample)
        by_readout = selectivities[selectivities.metric == "accuracy"].set_index("readout")
        assert by_readout.value.to_dict() == pytest.approx({"cls": 0.3, "mean": 0.05})
        assert by_readout.low["cls"] > 0.2
        assert ((by_readout.low < by_readout.value) & (by_readout.value < by_readout.high)).all()
        assert set(selectivities.against) == {"word_type, cls at layer 1", "word_type, mean at layer 1"}


def test_a_cell_without_its_control_has_no_selectivity():
    rows = predictions({("none", 1, "cls"): (first(0.9), first(0.8)), ("none", 2, "cls"): (first(0.9), first(0.8))})
    control = predictions({("shuffled", 2, "cls"): (first(0.5), first(0.5))})
    both = pd.concat([rows, control])
    assert choose.selectivity(results_of(both), both).empty
    assert set(choose.selectivity(results_of(both), both, control="shuffled").layer) == {2}


def test_a_real_sweep_gives_gains_and_selectivity():
    """Categories, as the sweep writes them, and predictions that come in parts."""
    from cells import PROBES, cell, plant, states, task

    from clsprobe.analysis.sweep.grid import sweep

    hand_task = task()
    made = states([hand_task])
    plant(cell(made, 1, 1), hand_task, 3)
    blocks = []
    results = sweep([hand_task], made, PROBES, on_predictions=blocks.append, seeds=(0, 1))
    from clsprobe.analysis.table import concat_predictions

    for joined in (concat_predictions(blocks), pd.concat(blocks)):
        gains = choose.gain(results, joined)
        assert len(gains) == 4 * 2 * 2
        best = gains[(gains.layer == 1) & (gains.readout == "mean") & (gains.metric == "accuracy")]
        assert (best.low > 0.1).all()
        assert gains.notna().all().all()
        over = choose.selectivity(results, joined, control="shuffled")
        assert len(over) == 4 * 2 * 2
        assert over.notna().all().all()
        chance = stats.above_chance(joined)
        assert (chance[(chance.layer == 1) & (chance.readout == "mean")].p < 0.01).all()
