"""The sweep on synthetic States: planted labels are found, others are at chance, and every score has one row."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from cells import PROBES, SMALL, cell, plant, sides, states, task
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.linear_model import RidgeClassifier
from vectors import make_states, stack_cells

from clsprobe.analysis import stats
from clsprobe.analysis.sweep import grid as module
from clsprobe.analysis.sweep.grid import check_layer0, describe_rows, split_task, sweep
from clsprobe.analysis.table import COLUMNS, KEY, NO_LAYER, PREDICTIONS, check_results
from clsprobe.probes.errors import InputError
from clsprobe.probes.linear import LogisticProbe
from clsprobe.probes.tasks.task import Task


def test_texts_with_the_same_tokens_are_copies():
    hand_task = task()
    hand_states = states([hand_task])
    # the last text of test
    hand_states.locations["ids"] = np.where(
        np.arange(150) == 149, hand_states.locations.ids.iloc[0], hand_states.locations.ids
    )
    task_split = split_task(hand_task, hand_states, 0)
    assert 0 not in task_split.row_indices
    assert task_split.left_out == {"train copies, to the encoder, of a test text": 1}


def value(results, metric="accuracy", split="test", **cell_values):
    chosen = (results.metric == metric) & (results.split == split)
    for column, expected in cell_values.items():
        chosen &= results[column] == expected
    (score,) = results[chosen].value
    return score


@pytest.fixture(scope="module")
def sweep_of_two_tasks():
    """Two tasks on the same States, three seeds, untrained States for two seeds."""
    tasks = [task(classes=3, name="hand:made:three"), task(name="hand:made:two", seed=1)]
    trained = states(tasks)
    plant(cell(trained, 1, 1)[:150], tasks[0], 3)
    untrained = [states(tasks, seed=7 + s, control="untrained", weights=s) for s in (0, 1)]
    blocks = []
    results = sweep(tasks, [trained, *untrained], PROBES, seeds=(0, 1, 2), on_predictions=blocks.append)
    return tasks, results, pd.concat(blocks, ignore_index=True)


# ---------------------------------------------------------------------------------------------------------- the tables


def test_every_number_has_one_row(sweep_of_two_tasks):
    tasks, results, _ = sweep_of_two_tasks
    assert tuple(results.columns) == COLUMNS
    assert not results.duplicated(list(KEY)).any()
    assert check_results(results) is results
    assert set(results.metric) == {"accuracy", "macro_f1", "bits"}
    assert set(results.split) == {"dev", "test"}
    # 4 cells x (none, shuffled), the untrained States' in their own seed only, 4 baselines
    per_seed = results.groupby(["task", "seed", "control"]).size() / 6
    for hand_task in tasks:
        for seed in (0, 1, 2):
            counts = per_seed[hand_task.name, seed].to_dict()
            expected = {"none": 4, "shuffled": 4, "majority": 1, "length": 1, "bag_of_words": 1, "layer0_mean": 1}
            assert counts == expected | ({"untrained": 4} if seed < 2 else {})
    assert (results[results.split == "test"].n_test == 60).all()
    assert (results.n_train == 60).all()
    assert results.converged.all()
    assert ((results.low <= results.value) & (results.value <= results.high)).all()


def test_baselines_without_a_cell_have_no_layer(sweep_of_two_tasks):
    _, results, _ = sweep_of_two_tasks
    for control, layer, readout in (
        ("majority", NO_LAYER, "none"),
        ("length", NO_LAYER, "none"),
        ("bag_of_words", NO_LAYER, "none"),
        ("layer0_mean", 0, "mean"),
    ):
        rows = results[results.control == control]
        assert set(zip(rows.layer, rows.readout, strict=True)) == {(layer, readout)}


def test_predictions_join_the_table(sweep_of_two_tasks):
    tasks, results, predictions = sweep_of_two_tasks
    assert tuple(predictions.columns) == PREDICTIONS
    keys = list(KEY[:-1])
    assert not predictions.duplicated([*keys, "row"]).any()
    scored = predictions.assign(right=predictions.label.astype(str) == predictions.predicted.astype(str))
    recomputed = scored.groupby(keys, observed=True).agg(right=("right", "mean"), bits=("log2_probability", "mean"))
    for metric, column, sign in (("accuracy", "right", 1), ("bits", "bits", -1)):
        table = results[results.metric == metric].set_index(keys).value
        assert len(table) == len(recomputed)
        assert table.to_numpy() == pytest.approx(sign * recomputed.loc[table.index, column].to_numpy(), abs=1e-6)
    real = predictions[predictions.control != "shuffled"]
    y = {hand_task.name: hand_task.y for hand_task in tasks}
    side = {hand_task.name: hand_task.split for hand_task in tasks}
    for name, rows in real.groupby("task", observed=True):
        assert (rows.label.astype(str).to_numpy() == y[name][rows.row]).all()
        assert (rows.split.astype(str).to_numpy() == side[name][rows.row]).all()


def test_a_seed_changes_the_shuffle_but_not_the_convex_fit(sweep_of_two_tasks):
    _, _, predictions = sweep_of_two_tasks
    rows = predictions[(predictions.task == "hand:made:three") & (predictions.layer == 1)]
    rows_of_seed = {s: rows[rows.seed == s] for s in (0, 1)}
    probabilities = [rows_of_seed[s][rows_of_seed[s].control == "none"].log2_probability.to_numpy() for s in (0, 1)]
    labels = [rows_of_seed[s][rows_of_seed[s].control == "shuffled"].label.astype(str).tolist() for s in (0, 1)]
    assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-3)  # solved together with another shuffle
    assert labels[0] != labels[1]


def test_majority_has_the_frequencies_of_train():
    hand_task = task((60, 30, 60))
    y = np.where((np.arange(150) % 3 == 0), "a", "b")
    hand_task = Task(hand_task.name, hand_task.texts, y, "class", hand_task.split)
    results = sweep([hand_task], states([hand_task]), PROBES, controls=())
    share = (y[60 + 30 :] == "b").mean()
    assert value(results, control="majority") == pytest.approx(share)
    p = (y[:60] == "b").mean()
    assert value(results, "bits", control="majority") == pytest.approx(
        -share * np.log2(p) - (1 - share) * np.log2(1 - p)
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_layer_0_cls_is_the_majority_rate_exactly(classes):
    """Also where classes tie for the majority, and where rounding differs between texts."""
    hand_task = task(classes=classes)
    hand_states = states([hand_task], dim=48)
    cell(hand_states, 0, 0)[::5] = np.nextafter(cell(hand_states, 0, 0)[::5], np.float32(9))
    results = sweep([hand_task], hand_states, PROBES)
    assert value(results, control="none", layer=0, readout="cls") == value(results, control="majority")
    (sentence,) = check_layer0(results)
    assert "equals the majority rate" in sentence


def test_the_self_check_can_fail():
    hand_task = task()
    hand_states = states([hand_task])
    plant(cell(hand_states, 0, 0), hand_task, 4)
    (sentence,) = check_layer0(sweep([hand_task], hand_states, PROBES))
    assert "DIFFERS" in sentence


# ------------------------------------------------------------------------------------------------------- planted cells


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_cell_is_found_among_104(seed):
    check_planted_cell(seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3, 23))
def test_a_planted_cell_is_found_in_20_of_20_grids(seed):
    check_planted_cell(seed)


def check_planted_cell(seed):
    """METHODS.md: a 13 x 8 grid, d = 2 in one cell, n = 600 + 400."""
    hand_task = task((500, 100, 400), seed=seed)
    readouts = ("cls", "sep", "token[1]", "token[2]", "token[-1]", "random", "mean", "max")
    hand_states = states([hand_task], layers=13, readouts=readouts, dim=16, seed=seed)
    layer, number = np.random.default_rng(seed).integers([1, 0], [13, 8])
    plant(cell(hand_states, layer, number), hand_task, 2)
    blocks = []
    results = sweep([hand_task], hand_states, PROBES, on_predictions=blocks.append)
    best_cell = {"layer": layer, "readout": readouts[number]}
    best = stats.best_layers(pd.concat(blocks)).sort_values("dev", ascending=False).iloc[0]
    assert (best.layer, best.readout) == tuple(best_cell.values())
    assert value(results, control="none", **best_cell) > 0.78  # Phi(1) = 0.84
    chance = results[(results.control == "shuffled") & (results.metric == "accuracy") & (results.split == "test")]
    z = (chance.value - 0.5) / np.sqrt(0.25 / 400)
    assert abs(z.mean()) < 3  # the cells share their labels, so the mean varies as much as one cell
    assert z.abs().max() < 5


@pytest.mark.parametrize("d", [1.0, 2.0])
def test_accuracy_and_bits_are_the_closed_forms_of_gaussians(d):
    """x | y ~ N(+-d/2 u, I): accuracy Phi(d / 2), bits by quadrature, both within 3 SE (METHODS.md 2)."""
    hand_task = task((8_000, 1000, 4_000))
    hand_states = states([hand_task], layers=1, readouts=("mean",), dim=3)
    plant(cell(hand_states, 0, 0), hand_task, d)
    results = sweep([hand_task], hand_states, PROBES, controls=())
    n, accuracy = 4_000, norm.cdf(d / 2)
    moment = [
        quad(lambda z, k=k: norm.pdf(z) * np.logaddexp(0, -d * (d / 2 + z)) ** k, -10, 10)[0] / np.log(2) ** k
        for k in (1, 2)
    ]
    scores = value(results, control="none"), value(results, "bits", control="none")
    assert abs(scores[0] - accuracy) < 3 * np.sqrt(accuracy * (1 - accuracy) / n)
    assert abs(scores[1] - moment[0]) < 3 * np.sqrt((moment[1] - moment[0] ** 2) / n)


def test_bag_of_words_ignores_word_order():
    random = np.random.default_rng(0)
    words = np.array(["red", "blue", "green", "grey", "black"])
    n = sum(SMALL)
    pairs = np.stack([random.permutation(5)[:2] for _ in range(n)])
    filler = [f"w{i}" for i in range(n)]
    texts = [f"{f} {words[a]} {words[b]}" for f, (a, b) in zip(filler, pairs, strict=True)]
    word = np.where((pairs == 0).any(1), "yes", "no")
    order = np.where(pairs[:, 0] < pairs[:, 1], "yes", "no")
    tasks = [
        Task(f"hand:made:{name}", texts, y, "class", sides(SMALL)) for name, y in (("word", word), ("order", order))
    ]
    results = sweep(tasks, states(tasks), PROBES, controls=())
    assert value(results, task="hand:made:word", control="bag_of_words") > 0.95
    assert value(results, task="hand:made:order", control="bag_of_words") < 0.7


def test_layer0_mean_needs_its_cell():
    hand_task = task()
    assert "layer0_mean" in set(sweep([hand_task], states([hand_task]), PROBES).control)
    assert "layer0_mean" not in set(sweep([hand_task], states([hand_task], readouts=("cls", "max")), PROBES).control)


# ------------------------------------------------------------------------------------------------------ texts left out


def test_texts_too_short_for_a_readout_are_dropped_for_all_and_counted():
    hand_task = task()
    present = np.ones((2, 150), bool)
    present[1, [0, 1, 70, 149]] = False
    hand_states = states([hand_task], readouts=("cls", "token[2]"), present=present)
    cell(hand_states, 0, 1)[~present[1]] = cell(hand_states, 1, 1)[~present[1]] = np.nan
    blocks = []
    results = sweep([hand_task], hand_states, PROBES, on_predictions=blocks.append)
    assert set(results.n_train) == {58}
    assert set(results[results.split == "test"].n_test) == {59}
    assert not set(pd.concat(blocks).row) & {0, 1, 70, 149}
    task_split = split_task(hand_task, hand_states, 0)
    assert task_split.left_out == {"too short for token[2]": 4}
    assert describe_rows(task_split) == {
        "rows": 150, "train": 58, "dev": 29, "test": 59, "left out: too short for token[2]": 4, "classes": 2
    }  # fmt: skip


def test_texts_too_long_are_dropped_and_counted():
    hand_task = task()
    task_split = split_task(hand_task, states([hand_task]), 0, drop=np.array([3, 5]))
    assert task_split.left_out == {"too long": 2}
    assert not set(task_split.row_indices) & {3, 5}


def test_a_position_that_no_text_has_is_an_error():
    hand_task = task()
    present = np.array([[True] * 150, [False] * 150])
    with pytest.raises(InputError, match=r"token\[40\]: 150 of 150 texts are shorter"):
        sweep([hand_task], states([hand_task], readouts=("cls", "token[40]"), present=present), PROBES)


@pytest.mark.parametrize(("absent", "sentence"), [(slice(60, 90), "no dev text"), (slice(90, 150), "no test text")])
def test_a_side_that_loses_all_its_texts_is_an_error(absent, sentence):
    hand_task = task()
    present = np.ones((2, 150), bool)
    present[1, absent] = False
    with pytest.raises(InputError, match=sentence):
        sweep([hand_task], states([hand_task], present=present), PROBES)


def test_a_class_that_loses_all_its_train_texts_is_an_error():
    hand_task = task(classes=3)
    present = np.ones((2, 150), bool)
    present[1, :60] = hand_task.y[:60] != "b"
    with pytest.raises(InputError, match="no text left to train on for 'b'"):
        sweep([hand_task], states([hand_task], present=present), PROBES)


def test_numbers_need_a_regression_probe():
    hand_task = task()
    number = Task(hand_task.name, hand_task.texts, np.arange(150.0), "number", hand_task.split)
    with pytest.raises(InputError, match=r"has numbers, which logistic cannot read\. Add a probe that does"):
        sweep([number], states([hand_task]), PROBES)


def test_one_task_and_one_probe_may_be_given_alone():
    hand_task = task()
    hand_states = states([hand_task])
    expected = sweep([hand_task], [hand_states], PROBES, controls=["shuffled"])
    for probes in (LogisticProbe(), [LogisticProbe()], "logistic", ["logistic"], {"logistic": "logistic"}):
        pd.testing.assert_frame_equal(sweep(hand_task, hand_states, probes, controls="shuffled"), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": "grammar:tense"}, "tasks: holds a str. Load them, as in clsprobe.load"),
        ({"tasks": []}, "tasks: is empty."),
        ({"tasks": [task(), task()]}, "tasks: two are called 'hand:made:label'. Give one another name"),
        ({"states": []}, "states: is empty. Make them, as in Extractor"),
        ({"states": np.zeros((150, 4))}, "states: holds a ndarray. Make them, as in Extractor"),
        ({"probes": "logistik"}, "--probes: unknown probe 'logistik'. Did you mean 'logistic'?"),
        ({"probes": {"logistic": LogisticProbe}}, "probes: 'logistic' is the class LogisticProbe, not an estimator."),
        ({"probes": {"x": 3}}, "probes: 'x' is an int, not an estimator. Pass an instance, as in"),
        ({"seeds": 3}, r"seeds: is one number \(3\). Pass \[3\] for this seed, range\(3\) for so many"),
        ({"controls": "shufled"}, "controls: unknown control 'shufled'. Did you mean 'shuffled'?"),
    ],
)
def test_what_cannot_be_swept_is_named(arguments, message):
    with pytest.raises(InputError, match=f"^{message}"):
        sweep(**({"tasks": task(), "states": states([task()]), "probes": "logistic"} | arguments))


def test_texts_of_a_task_that_were_not_encoded_are_counted():
    with pytest.raises(InputError, match=r"^states: 150 of 150 texts were not encoded \(rows 0, 1, 2, 3, 4 and"):
        sweep(task(), states([task(name="hand:made:other")]), PROBES)


# ----------------------------------------------------------------------------------------------- probes, leaks, memory


class FailsInOneCell(LogisticProbe):
    error: type[BaseException] = ValueError

    def fit_cells(self, X, y, **options):
        if (X[..., 0] > 50).any():
            raise self.error("too large for me")
        return super().fit_cells(X, y, **options)


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_probe_that_fails_in_one_cell_is_reported_and_the_others_finish(error, monkeypatch):
    monkeypatch.setattr(FailsInOneCell, "error", error)
    hand_task = task()
    hand_states = states([hand_task])
    sound = sweep([hand_task], hand_states, PROBES)
    cell(hand_states, 1, 0)[:] += 100
    failures, blocks = [], []
    probes = {"logistic": FailsInOneCell()}
    results = sweep([hand_task], hand_states, probes, on_failure=failures.append, on_predictions=blocks.append)
    reason = f"{error.__name__}: too large for me"
    assert failures == [f"probe 'logistic' failed on layer 1, cls (hand:made:label): {reason}"]
    failed = (sound.layer == 1) & (sound.readout == "cls")
    pd.testing.assert_frame_equal(results, sound[~failed].reset_index(drop=True))
    predictions = pd.concat(blocks)
    assert not ((predictions.layer == 1) & (predictions.readout == "cls")).any()
    with pytest.raises(RuntimeError, match="too large for me"):
        sweep([hand_task], hand_states, {"logistic": FailsInOneCell()})


def test_a_probe_without_probabilities_has_no_bits():
    hand_task = task()
    blocks = []
    results = sweep([hand_task], states([hand_task]), {"ridge": RidgeClassifier()}, on_predictions=blocks.append)
    assert set(results[results.probe == "ridge"].metric) == {"accuracy", "macro_f1"}
    assert set(results[results.probe == "logistic"].control) == {"length", "bag_of_words", "layer0_mean"}
    predictions = pd.concat(blocks)
    assert predictions[predictions.probe == "ridge"].log2_probability.isna().all()


def test_test_rows_do_not_change_dev_scores():
    hand_task = task()
    hand_states, poisoned = states([hand_task]), states([hand_task])
    plant(cell(hand_states, 1, 1), hand_task, 2)
    test = hand_task.split == "test"
    for layer, number in np.ndindex(2, 2):
        vectors = cell(poisoned, layer, number)
        vectors[:] = cell(hand_states, layer, number)
        vectors[test] = 1e4 * np.random.default_rng(3).normal(size=vectors[test].shape)
    y = np.where(test, hand_task.y[::-1], hand_task.y)
    garbled = Task(hand_task.name, hand_task.texts, y, "class", hand_task.split)
    dev = [
        results[(results.split == "dev") & (results.control != "shuffled")].reset_index(drop=True)
        for results in (sweep([hand_task], hand_states, PROBES), sweep([garbled], poisoned, PROBES))
    ]
    pd.testing.assert_frame_equal(*dev, check_exact=True)


def test_cells_in_chunks_have_the_same_scores(monkeypatch):
    hand_task = task()
    hand_states = states([hand_task], layers=3)
    calls, predict_each = [], module.predict_each
    monkeypatch.setattr(module, "predict_each", lambda *a, **k: calls.append(len(a[1])) or predict_each(*a, **k))
    together = sweep([hand_task], hand_states, PROBES)
    monkeypatch.setattr(module, "CHUNK", 2 * 60 * 4 * 4)  # two cells of 60 texts x 4 dims
    chunked = sweep([hand_task], hand_states, PROBES)
    assert calls == [6, 2, 2, 2]
    order = list(KEY)
    pd.testing.assert_frame_equal(
        together.sort_values(order, ignore_index=True), chunked.sort_values(order, ignore_index=True), rtol=1e-5
    )


def test_untrained_states_may_hold_the_texts_in_another_order():
    hand_task = task()
    untrained = states([hand_task], control="untrained", weights=0, seed=5)
    reversed_states = make_states(
        untrained.texts[::-1], untrained.readouts, stack_cells(untrained)[:, :, ::-1], untrained.source
    )
    trained = states([hand_task])
    results = [sweep([hand_task], [trained, candidate], PROBES) for candidate in (untrained, reversed_states)]
    pd.testing.assert_frame_equal(*results, check_exact=False)


def test_a_control_is_scored_on_the_texts_it_labels(monkeypatch):
    hand_task = task()
    codes = np.random.default_rng(3).integers(-1, 2, 150)
    monkeypatch.setitem(module.CONTROLS, "odd", lambda texts, y, side, seed: codes)
    monkeypatch.setitem(module.CONTROLS, "none_at_all", lambda texts, y, side, seed: np.full(len(y), -1))
    blocks = []
    results = sweep(
        [hand_task], states([hand_task]), PROBES, controls=("odd", "none_at_all"), on_predictions=blocks.append
    )
    test = results[(results.split == "test") & (results.control == "odd")]
    assert set(results.control) & {"odd", "none_at_all"} == {"odd"}
    assert set(test.n_test) == {int((codes[90:] >= 0).sum())}
    assert set(test.n_train) == {int((codes[:60] >= 0).sum())}
    predictions = pd.concat(blocks)
    rows = predictions[
        (predictions.control == "odd")
        & (predictions.split == "test")
        & (predictions.layer == 1)
        & (predictions.readout == "mean")
    ]
    assert sorted(rows.row) == (90 + np.flatnonzero(codes[90:] >= 0)).tolist()
    share = (rows.label.astype(str) == rows.predicted.astype(str)).mean()
    assert value(results, control="odd", layer=1, readout="mean") == pytest.approx(share)


def test_a_readout_with_learned_pooling_has_its_own_probe():
    """The label is in a token at any position: a linear probe of the flattened tokens reads it less well."""
    rng = np.random.default_rng(0)
    hand_task = task((200, 60, 100))
    tokens = rng.normal(size=(360, 6, 4)).astype(np.float32)
    positions = rng.integers(0, 6, 360)
    tokens[np.arange(360), positions, 0] = 6  # marks the position
    tokens[np.arange(360), positions, 1] = np.where(hand_task.y == "b", 1.5, -1.5)  # the label
    flat = tokens.reshape(1, 1, 360, 24)
    attention_states = make_states(
        hand_task.texts, ("attention[6]",), flat, {"model": "m", "control": "none", "seed": None}
    )
    attention_states = dataclasses.replace(attention_states, dim=4)
    results = sweep([hand_task], attention_states, {"logistic": LogisticProbe(), "other": LogisticProbe()})
    assert value(results, control="none", layer=0, readout="attention[6]") > 0.87
    assert set(results[results.control == "none"].probe) == {"logistic"}  # once, not for every other probe
    plain = make_states(hand_task.texts, ("flatten[6]",), flat, {"model": "m", "control": "none", "seed": None})
    assert value(sweep([hand_task], plain, PROBES), control="none", layer=0, readout="flatten[6]") < 0.82
