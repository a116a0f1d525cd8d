"""Procedures refitted on halves of train and dev: what is divided, what a half may see, and what the table holds."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import cells
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression

from clsprobe.analysis import stats
from clsprobe.analysis.sweep import halving
from clsprobe.analysis.sweep import measure as measure_module
from clsprobe.analysis.sweep.grid import split_task, sweep
from clsprobe.analysis.sweep.refits import ANY, HALVES, HALVINGS, REFITS, Refits
from clsprobe.analysis.sweep.scores import TaskScores
from clsprobe.analysis.table import concat_categories
from clsprobe.probes.base import STRENGTHS
from clsprobe.probes.linear import LogisticProbe, RidgeProbe

pytestmark = pytest.mark.usefixtures("one_thread")


def measure(task, states, probe=None, *, seed=0):
    """The task's split, its scores as measured, and its refits."""
    probe = probe or LogisticProbe()
    every_state = states if isinstance(states, list) else [states]
    blocks = []
    sweep([task], every_state, {"probe": probe}, seeds=[seed], controls=(), on_predictions=blocks.append)
    split, scores = split_task(task, every_state[0], seed), TaskScores(concat_categories(blocks))
    return split, scores, halving.refit_halves(split, every_state, probe, scores, seed=seed)


@pytest.fixture(scope="module")
def planted():
    """A task of 200 + 80 + 100 texts, which cls of layer 1 tells better than mean does."""
    task = cells.task((200, 80, 100))
    states = cells.states([task], layers=3)
    for layer, number, distance in ((1, 0, 2.5), (1, 1, 1.0), (2, 1, 1.2)):
        cells.plant(cells.cell(states, layer, number), task, distance)
    return task, states, measure(task, states)


def test_halves_are_complementary_and_divide_groups_as_a_whole_and_classes_evenly():
    group = np.arange(450) // 3
    task = replace(cells.task((300, 90, 60)), groups=group, y=np.array(list("abc"))[group % 3])
    split = split_task(task, cells.states([task]), 0)
    halves = halving.draw_halves(split)
    assert halves.shape == (HALVINGS, 450)
    assert (halves[:, split.rows_of("test")] == -1).all()
    for side in ("train", "dev"):
        rows = split.rows_of(side)
        sizes = np.stack([(halves[:, rows] == half).sum(1) for half in (0, 1)])
        assert (sizes.sum(0) == len(rows)).all()
        assert np.ptp(sizes, 0).max() <= 9  # of three strata, each may have a group more
        for half in halves:
            assert all(len(set(part)) == 1 for part in pd.Series(half[rows]).groupby(split.group[rows]).unique())
            labels = [np.bincount(split.y[rows][half[rows] == part], minlength=3) for part in (0, 1)]
            assert np.ptp(labels, 0).max() <= 9
    assert len({half.tobytes() for half in halves}) == HALVINGS
    assert not (halving.draw_halves(split, seed=1) == halves).all()
    np.testing.assert_array_equal(halving.draw_halves(split), halves)


def test_a_half_is_what_a_probe_of_its_texts_alone_gives(planted):
    """scikit-learn, half by half: strength by dev bits, layer by dev accuracy, both on the half's own dev."""
    _, states, (split, scores, table) = planted
    halves = halving.draw_halves(split)
    train, dev, test = map(split.rows_of, ("train", "dev", "test"))
    rows = table[(table.control == "none") & (table.readout == "mean")]
    refitted = rows[rows.measure == "test"].set_index("row").loc[split.row_indices[test], [*HALVES]].to_numpy()
    layers = [layer for layer, _ in halving.list_candidates(scores, "mean")]
    assert len(layers) > 1
    for column in (0, 1, 7):
        half, part = divmod(column, 2)
        own_train, own_dev = (side[halves[half, side] == part] for side in (train, dev))
        best = (-1.0, 0.0, None)
        for layer in layers:
            X = states.cell(layer, "mean")[split.state_rows].astype(float)
            X = (X - X[train].mean(0)) / X[train].std(0)
            fits = [LogisticRegression(C=C, tol=1e-10, max_iter=5000).fit(X[own_train], split.y[own_train])
                    for C in STRENGTHS]  # fmt: skip
            bits = [
                -fit.predict_log_proba(X[own_dev])[np.arange(len(own_dev)), split.y[own_dev]].mean() for fit in fits
            ]
            fit = fits[int(np.argmin(bits))]
            found = (fit.score(X[own_dev], split.y[own_dev]), -min(bits), fit.predict(X[test]) == split.y[test])
            best = max(best, found, key=lambda part: part[:2])
        assert (refitted[:, column] == best[2]).mean() > 0.98  # a text on the boundary may fall on either side
        assert rows[rows.measure == "dev"][HALVES[column]].item() == pytest.approx(best[0], abs=0.026)


def test_test_texts_decide_nothing(planted):
    task, _, (_, _, table) = planted
    states = cells.states([task], layers=3)
    for layer, number, distance in ((1, 0, 2.5), (1, 1, 1.0), (2, 1, 1.2)):
        vectors = cells.cell(states, layer, number)
        cells.plant(vectors, task, distance)
        vectors[task.split == "test"] = 1e3
    y = np.where(task.split == "test", task.y[::-1], task.y)
    _, _, poisoned = measure(replace(task, y=y), states)
    on_dev = (table.measure != "test") & (table.control == "none")
    pd.testing.assert_frame_equal(table[on_dev], poisoned[on_dev])


def test_the_table_has_every_procedure(planted):
    task, states, _ = planted
    untrained = cells.states([task], layers=3, seed=5, control="untrained", weights=0)
    _, scores, table = measure(task, [states, untrained])
    assert tuple(table.columns) == REFITS
    procedures = {("none", "cls"), ("none", "mean"), ("untrained", ANY), ("majority", "none"), ("length", "none"),
                  ("bag_of_words", "none"), ("layer0_mean", "mean")}  # fmt: skip
    assert set(zip(table.control, table.readout, strict=True)) == procedures
    assert (table.groupby(["control", "readout"]).size() == 2 + 100).all()
    assert (table.n_train == 200).all()
    scores = TaskScores(scores.rows, table)
    for part in scores.compare_with_baselines(scores.choose("cls")):
        assert "training" in part.estimate.variance
        assert part.high - part.low >= part.high_of_fits - part.low_of_fits


def test_the_difference_of_procedures_has_the_variance_of_training(planted):
    *_, (_, scores, table) = planted
    refitted, fitted = TaskScores(scores.rows, table), scores
    cls, mean = (refitted.choose(name) for name in ("cls", "mean"))
    difference, of_fits = refitted.difference(cls, mean), fitted.difference(cls, mean)
    halves = refitted.halves(cls) - refitted.halves(mean)
    assert difference.variance["training"] == stats.training_variance(halves, refitted.refits.groups)
    assert any(part.estimate.variance["training"] > 0 for part in refitted.compare_with_baselines(mean))
    assert difference.of_fits.interval() == of_fits.interval()
    assert difference.effect == of_fits.effect
    named = replace(mean, chosen_from=())
    assert refitted.difference(cls, named).interval() == refitted.difference(cls, named).of_fits.interval()


def test_a_procedure_that_chooses_among_readouts_reads_on_every_half_the_one_that_its_dev_prefers():
    rows = []
    for readout, on_dev, bits, right in (
        ("sep", 0.5, 0.9, 0.0),
        ("random", 0.7, 0.9, 1.0),
        ("token[1]", 0.7, 0.8, 0.5),
    ):
        for measure_name, row, value in (("dev", -1, on_dev), ("dev bits", -1, bits), ("test", 3, right)):
            values = dict.fromkeys(HALVES, value)
            if measure_name == "dev" and readout == "sep":
                values["half 4"] = 0.9  # only there the best
            rows.append({"task": "t", "seed": 0, "control": "none", "readout": readout, "n_train": 10,
                         "measure": measure_name, "row": row, "group": 0, **values})  # fmt: skip
    refits = Refits(pd.DataFrame(rows)[[*REFITS]], np.array([0]), np.array([3]))
    halves = refits.of("none", ("sep", "random", "token[1]")).ravel()
    assert halves[4] == 0.0
    assert (np.delete(halves, 4) == 0.5).all()  # of two that are as often right, the one with fewer bits
    assert refits.of("none", ("sep", "max")) is None


class Breaks(ClassifierMixin, BaseEstimator):
    """A plug-in that cannot be fitted on fewer than 150 texts."""

    def fit(self, X, y):
        if len(X) < 150:
            raise RuntimeError("too few")
        self.classes_, self.model_ = np.unique(y), LogisticRegression().fit(X, y)
        return self

    def predict(self, X):
        return self.model_.predict(X)


def test_a_probe_that_fails_on_a_half_leaves_the_interval_of_the_fitted_probes(planted):
    task, states, _ = planted
    _, scores, table = measure(task, states, Breaks())
    assert "none" not in set(table.control)
    scores = TaskScores(scores.rows, table)
    difference = scores.difference(scores.choose("cls"), scores.choose("mean"))
    assert "training" not in difference.variance


def test_numbers_are_refitted_too():
    task = cells.task((120, 60, 60))
    states = cells.states([task])
    numbers = np.random.default_rng(0).normal(size=240)
    cells.cell(states, 1, 0)[:, 0] += 2 * numbers
    task = replace(task, y=numbers, kind="number")
    _, scores, table = measure(task, states, RidgeProbe())
    scores = TaskScores(scores.rows, table)
    difference = scores.difference(scores.choose("cls"), scores.choose("mean"))
    assert difference.effect > 0.5
    assert difference.variance["training"] > 0
    cls = table[(table.readout == "cls") & (table.measure == "test")][[*HALVES]].to_numpy().mean(0)
    assert (cls > 0.5).all()


@pytest.mark.parametrize("rare", ["0 rare", "z rare"])  # the first class, and the last
def test_a_class_that_a_half_lacks_does_not_choose_its_layer(rare):
    task = cells.task((60, 40, 20), classes=2)
    labels = task.y.astype("<U9")
    labels[[0, 60, 100]] = rare  # a text of every side
    task = replace(task, y=labels)
    states = cells.states([task], layers=2)
    cells.plant(cells.cell(states, 1, 0), task, 3.0)
    _, _, table = measure(task, states)
    fitted = table[(table.control == "none") & (table.readout == "cls")].set_index("measure")[[*HALVES]]
    assert (fitted.loc["dev bits"] < 1.5).all()  # and not infinite where dev has a text of the class, and train none
    assert (fitted.loc["dev"] > 0.6).all()


def test_a_side_of_one_group_cannot_be_divided():
    task = replace(cells.task(), groups=np.where(cells.sides(cells.SMALL) == "dev", 1000, np.arange(150)))
    *_, table = measure(task, cells.states([task]))
    assert table.empty
    assert tuple(table.columns) == REFITS


def test_texts_of_one_group_on_test_are_not_independent():
    task = cells.task((100, 40, 60))
    states = cells.states([task])
    cells.plant(cells.cell(states, 1, 0), task, 1.5)
    grouped = replace(task, groups=np.arange(200) // 4)
    estimates = []
    for one in (task, grouped):
        _, scores, table = measure(one, states)
        scores = TaskScores(scores.rows, table)
        estimates.append(scores.difference(scores.choose("cls"), scores.choose("mean")))
    single, clustered = estimates
    assert clustered.effect == single.effect
    assert clustered.freedom["texts"] == 15 - 1
    assert single.freedom["texts"] == 60 + 1


def test_refits_that_fail_cost_no_sweep(monkeypatch, planted):
    """The sweep is there without them, and the failures say why."""

    def fail(*arguments, **options):
        raise RuntimeError("no halves")

    task, states, (_, scores, _) = planted
    settings = SimpleNamespace(probes=("probe",), every_seed=(0,), allow_overlap=False)
    monkeypatch.setattr(measure_module, "refit_halves", fail)
    monkeypatch.setattr(measure_module, "find_probe", lambda name: LogisticProbe())
    failures = []
    table, notes = measure_module._refit(settings, SimpleNamespace(tasks=[task]), [states], scores.rows, None, failures)
    assert table.empty
    assert not notes
    assert failures == [f"the refits of {task.name} failed: RuntimeError: no halves"]
