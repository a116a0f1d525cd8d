"""Cells that dev chooses, on predictions made by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from tables import first, predictions

from clsprobe.analysis import stats
from clsprobe.analysis.sweep import choose, exhibits
from clsprobe.analysis.sweep.refits import HALVES, REFITS
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
        low, high = TaskScores(rows).difference(cell, baseline).interval()
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
    a, b = scores.choose("cls"), scores.choose(None, "majority")
    effect = stats.paired_difference(stats.correctness(rows, **a.where), stats.correctness(rows, **b.where))
    difference = scores.difference(a, b)
    assert (difference.effect, *difference.interval()) == pytest.approx(effect)


# ----------------------------------------------------------------------------------------------------------- refits


def refits(procedures, *, groups=None, rows=None):
    """The table of refits of one seed. procedures: control, readout -> dev accuracy (half,), dev bits (half,), test
    (half, text)."""
    parts = []
    for (control, readout), (dev, bits, test) in procedures.items():
        rows = np.arange(1000, 1000 + test.shape[1]) if rows is None else rows
        names = {"task": "file:made:label", "seed": 0, "control": control, "readout": readout, "n_train": 150}
        names |= {"measure": ["dev", "dev bits", *["test"] * len(rows)], "row": [-1, -1, *rows]}
        names |= {"group": [-1, -1, *(np.arange(len(rows)) if groups is None else groups)]}
        parts.append(pd.DataFrame(names).join(pd.DataFrame(np.vstack([dev, bits, test.T]), columns=[*HALVES])))
    return pd.concat(parts)[[*REFITS]]


def draw_refits(n=400, seed=0):
    """cls and mean, of which cls is best on the dev of the even halves, then mean by its bits."""
    random, even = np.random.default_rng(seed), np.arange(20) % 2 == 0
    test = {name: (random.random((20, n)) < share).astype(float) for name, share in (("cls", 0.8), ("mean", 0.9))}
    dev = {"cls": np.where(even, 0.9, 0.8), "mean": np.full(20, 0.8)}
    bits = {"cls": np.full(20, 0.5), "mean": np.full(20, 0.4)}
    procedures = {("none", name): (dev[name], bits[name], test[name]) for name in test}
    procedures |= {("majority", "none"): (np.zeros(20), np.zeros(20), np.tile(first(0.5), (20, 1)).astype(float))}
    return procedures, test, even


def test_a_half_reads_the_readout_that_is_best_on_its_own_dev():
    procedures, test, even = draw_refits()
    scores = TaskScores(table(), refits(procedures))
    cls, best, majority = scores.choose("cls"), scores.choose(None), scores.choose(None, "majority")
    assert (cls.chosen_from, best.chosen_from, majority.chosen_from) == (("cls",), ("cls", "mean"), ("none",))
    pairs = test["cls"].reshape(10, 2, 1, 400)
    np.testing.assert_array_equal(scores.halves(cls), pairs)
    chosen = np.where(even[:, None], test["cls"], test["mean"]).reshape(10, 2, 1, 400)
    np.testing.assert_array_equal(scores.halves(best), chosen)
    difference = scores.difference(best, majority)
    expected = stats.training_variance(chosen - scores.halves(majority))
    assert difference.variance["training"] == pytest.approx(expected)
    assert expected > 2 * scores.difference(cls, majority).variance["training"]


def test_a_procedure_that_was_not_refitted_is_compared_as_fitted():
    procedures, *_ = draw_refits()
    whole, without = TaskScores(table()), {key: part for key, part in procedures.items() if key[1] != "mean"}
    scores = TaskScores(table(), refits(without))
    assert scores.refits.training_texts == 150
    for a, b, training in (("cls", "majority", True), ("mean", "majority", False), ("cls", "bag_of_words", False)):
        a, b = scores.choose(a), scores.choose(None, b)
        difference = scores.difference(a, b)
        assert ("training" in difference.variance) == training
        assert difference.of_fits.interval() == pytest.approx(whole.difference(a, b).interval())
    assert scores.halves(scores.choose(None)) is None  # mean is one of those that dev chose from
    assert scores.halves(dataclasses.replace(scores.choose("cls"), chosen_from=())) is None  # a cell that was named
    best_class = scores.compare_with_baselines(scores.choose("cls"))[-1]
    assert best_class.estimate.variance["training"] > 0  # it learns nothing, and cls does
    empty = TaskScores(table(), refits(procedures)[:0])
    assert (empty.refits.training_texts, empty.halves(empty.choose("cls"))) == (0, None)


def test_a_text_without_refits_is_in_no_group_of_the_others():
    """Half of the test texts, in groups whose numbers are those of the other texts."""
    rows = np.arange(1000, 1200)
    procedures = {key: (*dev, test[:, :200]) for key, (*dev, test) in draw_refits()[0].items()}
    groups = TaskScores(table(), refits(procedures, rows=rows, groups=200 + np.arange(200) // 2)).refits.groups
    assert len(np.unique(groups)) == 100 + 200
    assert np.array_equal(groups[:200], 200 + np.arange(200) // 2)


def test_test_texts_of_one_group_count_once():
    """Two copies of every test text: the interval is that of half as many, with the t of their number."""
    right = np.random.default_rng(0).random((2, 200)) < [[0.8], [0.7]]
    cells = {("none", 1, "cls"): (first(0.8), right[0]), ("majority", -1, "none"): (first(0.5), right[1])}
    twice = {cell: (dev, np.repeat(test, 2)) for cell, (dev, test) in cells.items()}
    procedures = {
        (control, readout): (np.ones(20), np.ones(20), np.tile(test, (20, 1)).astype(float))
        for (control, _, readout), (_, test) in twice.items()
    }
    copies = TaskScores(predictions(twice), refits(procedures, groups=np.arange(400) // 2))
    part = copies.compare(copies.choose("cls"), copies.choose(None, "majority"))
    (low, high), single = (part.low, part.high), TaskScores(predictions(cells))
    once = single.compare(single.choose("cls"), single.choose(None, "majority"))
    assert high - low == pytest.approx(once.high - once.low, rel=0.02)
    assert part.estimate.freedom["texts"] == 199


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


def with_control_task(real=0.8, drawn=0.5, labelled=lambda row: row % 4 > 0):
    """Predictions of one cell, and of the control task on some of the texts: two in three of these are "a"."""
    cells = {
        ("none", 1, "cls"): (first(0.9), first(0.8)),
        ("word_type_texts", 1, "cls"): (first(0.9), first(real)),
        ("word_type", 1, "cls"): (first(0.9), first(drawn)),
    }
    rows = predictions(cells)
    return rows[(rows.control == "none") | labelled(rows.row)]


def test_selectivity_is_the_normalised_task_less_the_normalised_control_task():
    rows = with_control_task()
    (selective,) = choose.selectivity(results_of(rows), rows).itertuples()
    assert selective.value == pytest.approx((0.8 - 2 / 3) / (1 / 3) - (0.5 - 2 / 3) / (1 / 3))
    assert selective.low < selective.value < selective.high
    assert (selective.metric, selective.against) == ("accuracy", "word_type, cls at layer 1")
    assert [*choose.selectivity(results_of(rows), rows)] == [*stats.CELL, "metric", "value", "low", "high", "against"]
    every = rows.assign(label="a", predicted=np.where(rows.label == rows.predicted, "a", "b"))  # no way to go
    assert choose.selectivity(results_of(every), every).empty


def test_selectivity_counts_only_the_texts_that_both_label():
    """A class that none of the labelled training texts has: the control task labels more texts than the task."""
    rows = with_control_task()
    fewer = rows[(rows.control != "word_type_texts") | (rows.row % 8 != 1)]
    same = rows[(rows.control == "none") | (rows.row % 8 != 1)]
    over = choose.selectivity(results_of(fewer), fewer)
    assert len(over) == 1
    pd.testing.assert_frame_equal(over, choose.selectivity(results_of(same), same))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda rows: rows[rows.control == "none"], "the training texts share too few words for a control task"),
        (
            lambda rows: rows[(rows.control == "none") | (rows.split == "test")],
            "no text on dev holds exactly one word of the control task's list",
        ),
        (
            lambda rows: rows[(rows.control == "none") | (rows.row % 2000 % 5 == 1)],
            "80 test texts with exactly one word of the control task's list are too few (100 are needed)",
        ),
    ],
)
def test_without_enough_texts_of_the_control_task_there_is_no_selectivity(damage, reason):
    rows = damage(with_control_task(labelled=lambda row: row >= 0))
    results = results_of(rows).assign(n_train=lambda table: np.where(table.control == "none", 900, 200))
    assert choose.why_no_selectivity(results) == reason
    assert choose.selectivity(results, rows).empty
    summary = choose.summary(rows, results)
    assert summary[["selectivity", "selectivity low", "selectivity high"]].isna().all().all()


def test_a_split_that_keeps_words_apart_has_no_selectivity():
    rows = with_control_task(labelled=lambda row: row % 3 == 0)
    results = results_of(rows).assign(n_train=lambda table: np.where(table.control == "none", 1000, 700))
    assert choose.why_no_selectivity(results) == (
        "the words of train and test differ: 33% of the test texts hold exactly one word of the control task's list, "
        "and 70% of the training texts"
    )
    assert choose.selectivity(results, rows).empty
    together = results.assign(n_train=lambda table: np.where(table.control == "none", 1000, 600))
    assert choose.why_no_selectivity(together) is None
    assert len(choose.selectivity(together, rows)) == 1


def test_a_vector_that_knows_words_is_not_selective_and_one_that_knows_labels_is():
    """Planted: either cell tells the label; mean tells the word as well, from which the control task follows."""
    from cells import PROBES, cell, plant, sides, states, task

    from clsprobe.analysis.sweep.grid import sweep

    counts = (300, 100, 200)
    words = [a + b for a in ("bar", "dol", "fen", "gim") for b in "aeiou"]
    of_text = np.random.default_rng(0).permutation(np.arange(600) % 20)
    texts = [f"the {words[word]} is here {chr(97 + i // 26)}{chr(97 + i % 26)}" for i, word in enumerate(of_text)]
    hand_task = task(counts, texts=texts)
    made = states([hand_task], dim=24)
    for number in (0, 1):
        plant(cell(made, 1, number), hand_task, 6)
    cell(made, 1, 1)[np.arange(600), 4 + of_text] += 9
    blocks = []
    results = sweep([hand_task], made, PROBES, on_predictions=blocks.append, allow_overlap=True)
    over = choose.selectivity(results, pd.concat(blocks)).set_index(["layer", "readout"])
    assert over.low[1, "cls"] > 0.5
    assert over.high[1, "mean"] < 0.15
    scores = results[(results.metric == "accuracy") & (results.split == "test")].groupby("control").value.max()
    assert scores["word_type_bag_of_words"] > 0.98
    assert scores["word_type"] > 0.98
    assert set(results[results.control == "word_type_bag_of_words"].layer) == {-1}
    assert sides(counts).tolist().count("test") == results[results.control == "word_type_texts"].n_test.max()


def test_a_real_sweep_gives_gains():
    """Categories, as the sweep writes them, and predictions that come in parts."""
    from cells import PROBES, cell, plant, states, task

    from clsprobe.analysis.sweep.grid import sweep

    hand_task = task()
    made = states([hand_task])
    plant(cell(made, 1, 1), hand_task, 3)
    blocks = []
    results = sweep([hand_task], made, PROBES, on_predictions=blocks.append, seeds=(0, 1))
    from clsprobe.analysis.table import concat_categories

    for joined in (concat_categories(blocks), pd.concat(blocks)):
        gains = choose.gain(results, joined)
        assert len(gains) == 4 * 2 * 2
        best = gains[(gains.layer == 1) & (gains.readout == "mean") & (gains.metric == "accuracy")]
        assert (best.low > 0.1).all()
        assert gains.notna().all().all()
        assert choose.selectivity(results, joined).empty  # every text is one word, and its own
        chance = stats.above_chance(joined)
        assert (chance[(chance.layer == 1) & (chance.readout == "mean")].p < 0.01).all()


# -------------------------------------------------------------------------------------------------- several probes


def test_probes_are_compared_each_at_the_layer_that_dev_chooses_for_it():
    own = table()
    other = predictions(
        {
            ("none", 0, "cls"): (first(0.95), first(0.70)),
            ("none", 1, "cls"): (first(0.5), first(0.99)),
            ("none", 1, "max"): (first(0.6), first(0.6)),
        }
    ).assign(probe="mlp")
    rows = pd.concat([own, other], ignore_index=True)
    compared = choose.compare_probes(rows, ["logistic", "broken", "mlp"])
    shown = [(row.probe, row.readout, row.layer, row.accuracy) for row in compared.itertuples()]
    assert shown == [
        ("logistic", "cls", 1, 0.8),
        ("logistic", "mean", 1, 0.95),
        ("mlp", "cls", 0, 0.7),
        ("mlp", "max", 1, 0.6),
    ]
    assert compared.difference.isna().tolist() == [True, True, False, True]
    paired = stats.paired_difference(
        stats.correctness(rows, control="none", probe="mlp", layer=0, readout="cls"),
        stats.correctness(rows, control="none", probe="logistic", layer=1, readout="cls"),
    )
    assert tuple(compared.loc[2, ["difference", "difference low", "difference high"]]) == pytest.approx(paired)
    assert compared.bits[2] == pytest.approx(0.7 * 0.1 + 0.3 * 3.0)
    assert ((compared.low < compared.accuracy) & (compared.accuracy < compared.high)).all()


def test_one_probe_is_not_compared():
    assert exhibits.probe_exhibits(table(), ["logistic"]) == []
    assert exhibits.probe_exhibits(table(), ["logistic", "broken"]) == []
    both = pd.concat([table(), table()[lambda rows: rows.control == "none"].assign(probe="mlp")])
    (exhibit,) = exhibits.probe_exhibits(both, ["mlp", "logistic"])
    assert set(exhibit.table.probe) == {"mlp", "logistic"}
    assert "from mlp on the same readout" in exhibit.caption
    assert exhibit.table[exhibit.table.probe == "logistic"].difference.tolist() == [0, 0]
