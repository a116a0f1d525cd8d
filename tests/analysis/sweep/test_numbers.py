"""Tasks whose labels are numbers: sweep, controls, intervals, verdicts, the command and its page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import models
import numpy as np
import pandas as pd
import pytest
import simulations
from cells import distinct_texts
from commands import call
from scipy.stats import spearmanr
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import Ridge
from tables import judge, measured
from vectors import make_states

from clsprobe.aggregate import Aggregate
from clsprobe.analysis import stats
from clsprobe.analysis.sweep import choose
from clsprobe.analysis.sweep.exhibits import grid_exhibits
from clsprobe.analysis.sweep.grid import check_layer0, describe_rows, split_task, sweep
from clsprobe.analysis.sweep.scores import TaskScores
from clsprobe.analysis.table import KEY, NUMBERS, PREDICTIONS, check_predictions, concat_categories, to_latex
from clsprobe.poolings import Poolings
from clsprobe.probes import metric
from clsprobe.probes.base import STRENGTHS
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.states import tensor_name
from clsprobe.probes.linear import LogisticProbe, RidgeProbe
from clsprobe.probes.tasks.control import has_label, word_type, word_type_texts
from clsprobe.probes.tasks.split import split
from clsprobe.probes.tasks.task import Task
from clsprobe.run import Run

PROBES = {"logistic": LogisticProbe(), "ridge": RidgeProbe()}
RIDGE = {"ridge": RidgeProbe()}
SOURCE = {"model": "synthetic", "control": "none", "seed": None}
SMALL = (120, 40, 80)  # train, dev, test


def make_data(counts=SMALL, *, R2=0.5, dim=4, seed=0, name="hand:made:number"):
    """A task of Gaussian numbers and States where only one cell, layer 1 mean, is informative: its first coordinate
    explains R2 of the variance. Layer-0 cls is one vector."""
    random, n = np.random.default_rng([seed, 9]), sum(counts)
    texts = distinct_texts(n, seed, name)
    values = random.normal(size=(2, 2, n, dim)).astype(np.float32)
    values[0, 0] = values[0, 0, :1]
    y = 5 + 3 * (np.sqrt(R2) * values[1, 1, :, 0] + np.sqrt(1 - R2) * random.normal(size=n))
    task = Task(name, texts, y.astype(np.float64), "number", np.repeat(["train", "dev", "test"], counts))
    return task, make_states(texts, ("cls", "mean"), values, SOURCE)


def value(results, metric="r2", split="test", **where):
    chosen = (results.metric == metric) & (results.split == split)
    for column, expected in where.items():
        chosen &= results[column] == expected
    (score,) = results[chosen].value
    return score


# ---------------------------------------------------------------------------------------------------- planted numbers


@pytest.mark.parametrize("R2", [0.2, 0.8])
def test_scores_of_gaussian_numbers_match_their_closed_forms(R2):
    """R2 is that of the population, Spearman's correlation is 6 / pi asin(rho / 2); both within 3.5 SE."""
    n = 6000
    task, states = make_data((6000, 500, n), R2=R2)
    results = sweep([task], states, RIDGE, controls=("shuffled",))
    cell = {"layer": 1, "readout": "mean"}
    rho = np.sqrt(R2)
    assert abs(value(results, control="none", **cell) - R2) < 3.5 * 2 * rho * (1 - R2) / np.sqrt(n)
    correlation = 6 / np.pi * np.arcsin(rho / 2)
    assert abs(value(results, "spearman", control="none", **cell) - correlation) < 3.5 * (1 - R2) * 1.2 / np.sqrt(n)
    for chance_cell in ({"control": "none", "layer": 1, "readout": "cls"}, {"control": "shuffled", **cell}):
        assert -0.01 < value(results, **chance_cell) < 0.003
        assert abs(value(results, "spearman", **chance_cell)) < 4.5 / np.sqrt(n)


def test_noise_explains_nothing_on_average():
    values = []
    for seed in range(20):
        task, states = make_data(R2=0, seed=seed)
        results = sweep([task], states, RIDGE, controls=())
        values.append(value(results, control="none", layer=1, readout="mean"))
    assert -0.1 < np.mean(values) < 0  # below 0: fitting noise makes predictions worse


def test_a_cell_is_read_like_ridge_of_scikit_learn():
    task, states = make_data()
    results = sweep([task], states, RIDGE, controls=())
    X, sides = states.cell(1, "mean").astype(np.float64), task.split
    train, dev, test = (sides == side for side in ("train", "dev", "test"))
    Z = (X - X[train].mean(0)) / X[train].std(0)
    fits = [Ridge(1 / C).fit(Z[train], task.y[train]) for C in STRENGTHS]
    best = min(fits, key=lambda fit: ((fit.predict(Z[dev]) - task.y[dev]) ** 2).mean())
    where = {"control": "none", "layer": 1, "readout": "mean"}
    assert value(results, **where) == pytest.approx(best.score(Z[test], task.y[test]), abs=1e-5)
    expected = spearmanr(best.predict(Z[test]), task.y[test]).statistic
    assert value(results, "spearman", **where) == pytest.approx(expected, abs=1e-3)


def test_the_mean_of_train_is_a_baseline_and_equals_layer_0_cls():
    task, states = make_data()
    results = sweep([task], states, RIDGE)
    train, test = (task.y[task.split == side] for side in ("train", "test"))
    expected = 1 - ((test - train.mean()) ** 2).mean() / test.var()
    assert value(results, control="majority") == pytest.approx(expected)
    assert value(results, "spearman", control="majority") == 0
    (sentence,) = check_layer0(results)
    assert "equals that of the mean of train" in sentence
    states.shards[0][tensor_name(0, "cls")][:] = states.cell(1, "mean")
    (sentence,) = check_layer0(sweep([task], states, RIDGE))
    assert "DIFFERS FROM that of the mean of train" in sentence


def test_baselines_of_length_and_words_read_what_depends_on_them():
    random, n = np.random.default_rng(0), sum(SMALL)
    weight = {"pink": 1.0, "blue": 2.0, "teal": 3.0, "grey": 4.0, "gold": 5.0}  # all of one length
    words = random.choice([*weight], size=(n, 2))
    filler = [" ".join(random.choice([*"abcdefghijk"], size=random.integers(0, 60))) for _ in range(n)]
    texts = [f"w{i:03d} {a} {b} {rest}".strip() for i, ((a, b), rest) in enumerate(zip(words, filler, strict=True))]
    sides = np.repeat(["train", "dev", "test"], SMALL)
    long = Task("hand:made:length", texts, np.array([len(t.split()) for t in texts], float), "number", sides)
    hue = Task("hand:made:hue", texts, np.array([weight[a] + weight[b] for a, b in words]), "number", sides)
    states = make_states(texts, ("cls",), random.normal(size=(1, 1, n, 3)).astype(np.float32), SOURCE)
    results = sweep([long, hue], states, RIDGE, controls=())
    assert value(results, task=long.name, control="length") > 0.999
    assert value(results, task=hue.name, control="bag_of_words") > 0.8
    assert value(results, task=hue.name, control="length") < 0.2
    assert set(results[results.control.isin(["length", "bag_of_words"])].probe) == {"ridge"}


# ----------------------------------------------------------------------------------- numbers and classes side by side


@pytest.fixture(scope="module")
def mixed():
    """A task of numbers and one of classes on the same texts, two seeds: tasks, States, results and predictions."""
    task, states = make_data()
    classes = Task("hand:made:class", task.texts, np.where(task.y > 5, "high", "low"), "class", task.split)
    untrained = dataclasses.replace(states, source=SOURCE | {"control": "untrained", "seed": 0})
    blocks = []
    results = sweep([classes, task], [states, untrained], PROBES, seeds=(0, 1), on_predictions=blocks.append)
    return classes, task, states, results, blocks


def test_each_task_is_read_by_suitable_probes(mixed):
    classes, task, _, results, _ = mixed
    for a_task, probe, metrics in (
        (classes, "logistic", {"accuracy", "macro_f1", "bits"}),
        (task, "ridge", {"r2", "spearman"}),
    ):
        rows = results[results.task == a_task.name]
        assert set(rows.probe) == {"none", probe}
        assert set(rows.metric) == metrics
        assert set(rows.control) >= {"none", "shuffled", "untrained", "majority", "bag_of_words", "layer0_mean"}


def test_predictions_of_numbers_join_the_table(mixed):
    _, task, _, results, blocks = mixed
    predictions = check_predictions(concat_categories(blocks))
    assert tuple(predictions.columns) == (*PREDICTIONS, *NUMBERS)
    numbers = predictions[predictions.task == task.name]
    assert stats.of_numbers(numbers)
    assert numbers[["label", "predicted", "log2_probability"]].isna().to_numpy().all()
    assert predictions[predictions.task != task.name][[*NUMBERS]].isna().to_numpy().all()
    scored = numbers.assign(score=stats.scores(numbers)).groupby(list(KEY[:-1]), observed=True).score.mean()
    table = results[results.metric == "r2"].set_index(list(KEY[:-1])).value
    assert len(table) == len(scored)
    assert scored.loc[table.index].to_numpy() == pytest.approx(table.to_numpy())
    real = numbers[~numbers.control.isin(["shuffled", "word_type"])]
    assert (real.number.to_numpy() == task.y[real.row]).all()


def test_a_task_of_numbers_does_not_change_results_of_classes(mixed, tmp_path):
    classes, _, states, results, blocks = mixed
    untrained = dataclasses.replace(states, source=SOURCE | {"control": "untrained", "seed": 0})
    blocks_alone = []
    expected = sweep(
        [classes], [states, untrained], {"logistic": LogisticProbe()}, seeds=(0, 1), on_predictions=blocks_alone.append
    )
    assert all(tuple(block.columns) == PREDICTIONS for block in blocks_alone)
    pd.testing.assert_frame_equal(results[results.task == classes.name], expected)
    predictions = concat_categories(blocks)
    predictions = predictions[predictions.task == classes.name]
    assert (stats.scores(predictions) == stats.scores(concat_categories(blocks_alone))).all()


@pytest.mark.parametrize("selection", [slice(None), slice(-3, None)], ids=["with classes", "numbers only"])
def test_predictions_survive_parquet(mixed, tmp_path, selection):
    from clsprobe.probes.files import write_parquet

    predictions = concat_categories(mixed[-1][selection])
    write_parquet(tmp_path / "p.parquet", predictions)
    loaded = pd.read_parquet(tmp_path / "p.parquet")
    assert tuple(loaded.columns) == tuple(predictions.columns)
    assert (stats.scores(loaded) == stats.scores(predictions)).all()
    plain = [loaded[c].astype(object).where(loaded[c].notna(), None).tolist() for c in ("label", "predicted")]
    assert plain == [
        predictions[c].astype(object).where(predictions[c].notna(), None).tolist() for c in ("label", "predicted")
    ]


def test_a_table_for_a_paper_has_both(mixed):
    latex = to_latex(mixed[3])
    assert r"logistic probe: test accuracy in \%" in latex or "logistic probe: test accuracy in %" in latex
    assert "ridge probe: test R2" in latex


def test_rows_are_described_without_classes():
    task, states = make_data()
    counts = describe_rows(split_task(task, states, 0))
    assert counts == {"rows": 240, "train": 120, "dev": 40, "test": 80, "different numbers": 240}


def test_any_regressor_is_a_probe():
    task, states = make_data()
    results = sweep([task], states, {"mean": DummyRegressor()}, controls=())
    mean_of_train = value(results, control="majority")
    assert value(results, control="none", layer=1, readout="mean") == pytest.approx(mean_of_train, abs=1e-6)


def test_a_regressor_that_fails_in_a_cell_leaves_the_others():
    class Fails(RidgeProbe):
        def fit_cells(self, X, y, **options):
            if (X[..., 0] > 50).any():
                raise ValueError("too large for me")
            return super().fit_cells(X, y, **options)

    task, states = make_data()
    sound = sweep([task], states, {"ridge": Fails()})
    states.shards[0][tensor_name(1, "mean")][:] += 100
    failures = []
    results = sweep([task], states, {"ridge": Fails()}, on_failure=failures.append)
    assert failures == ["probe 'ridge' failed on layer 1, mean (hand:made:number): ValueError: too large for me"]
    failed = (sound.layer == 1) & (sound.readout == "mean")
    pd.testing.assert_frame_equal(results, sound[~failed].reset_index(drop=True))


# ----------------------------------------------------------------------------------------------------------- controls


def test_the_control_task_gives_word_types_numbers_of_train():
    random = np.random.default_rng(0)
    texts = [f"the {''.join(random.choice(list('ab'), 3))} house" for _ in range(300)]
    y, side = random.normal(size=300) - 9, np.repeat(["train", "dev", "test"], 100)
    labels = word_type(texts, y, side, 0)
    known = has_label(labels)
    assert labels.dtype == np.float64
    assert 0 < known.sum() < 300
    assert set(labels[known]) <= set(y[:100])
    codes = np.unique(y, return_inverse=True)[1]
    assert (has_label(word_type(texts, codes, side, 0)) == known).all()
    real = word_type_texts(texts, y, side, 0)
    assert np.array_equal(real, np.where(known, y, np.nan), equal_nan=True)


# ---------------------------------------------------------------------------------------------------------- intervals


def test_skill_is_r2_per_text_with_the_spread_of_the_bootstrap():
    true, predicted = simulations._numbers("lengths", np.random.default_rng(0), (3, 800), 0.6)
    true = true[0]
    skill = stats.skill(predicted, true)
    assert skill.mean(1) == pytest.approx(metric.r2(predicted, true, np.ones((1, 800)))[:, 0])
    predicted[:, :] = 0.6 * true + 5 + np.random.default_rng(1).normal(size=predicted.shape) * 3
    replicates = stats.bootstrap(lambda counts: metric.r2(predicted, true, counts), 800)
    assert stats.skill(predicted, true).std(1) / np.sqrt(800) == pytest.approx(replicates.std(1), rel=0.06)
    assert (stats.skill(predicted, np.full(800, 3.0)) == 0).all()


def test_number_intervals_hold_their_values():
    random = np.random.default_rng(0)
    true = random.integers(5, size=60).astype(float)
    predicted = random.normal(size=(4, 60))
    predicted[0], predicted[1], predicted[2] = true, -9 * true, 2.0
    intervals = stats.number_intervals(predicted, true)
    for low, high in ((intervals[name][1], intervals[name][2]) for name in intervals):
        assert (high <= 1).all()
        assert (low <= high).all()
    assert intervals["r2"][0][0] == 1
    assert intervals["spearman"][0][:2] == pytest.approx([1, -1], abs=1e-12)
    assert intervals["spearman"][0][2] == 0  # constant predictions have no order


@pytest.mark.parametrize("R2", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("kind", simulations.NUMBERS[:3])
def test_intervals_of_r2_have_nominal_coverage(kind, R2):
    assert 0.925 <= simulations.r2(kind, 200, R2) <= 0.97


@pytest.mark.parametrize("kind", simulations.NUMBERS[:3])
def test_intervals_of_spearman_have_nominal_coverage(kind):
    assert 0.93 <= simulations.spearman(kind, 200, 0.5, simulations=1000) <= 0.975


def test_an_interval_without_the_variance_of_the_sample_would_not_cover():
    """The wrong version uses 1 - error^2 / variance only, whose mean is R2 too."""
    true, predicted = simulations._numbers("Gaussian", np.random.default_rng(0), (1000, 200), 0.1)
    plain = 1 - (predicted - true) ** 2 / true.var(1, keepdims=True)
    truth = simulations._truth("Gaussian", 0.1)[0]
    assert simulations.covered(stats.mean_interval(plain), truth) > 0.985  # far too wide
    assert 0.93 < simulations.covered(stats.mean_interval(stats.skill(predicted, true)), truth) < 0.97


def test_paired_differences_of_r2_have_nominal_coverage():
    assert 0.935 <= simulations.r2_difference("Gaussian", 200, 0.9, 0.6) <= 0.965


@pytest.mark.long
@pytest.mark.parametrize("n", simulations.SIZES)
@pytest.mark.parametrize("kind", simulations.NUMBERS[:3])
def test_intervals_of_numbers_cover_at_every_size(kind, n):
    for R2 in (0.02, 0.5, 0.9):
        assert 0.925 <= simulations.r2(kind, n, R2) <= 0.97
        assert 0.93 <= simulations.spearman(kind, n, R2) <= 0.985


# -------------------------------------------------------------------------------------------------- choices, verdicts


def make_predictions(skills, *, n=300, seed=0):
    """Predictions with a given R2: (control, layer, readout) -> R2 on dev and test; errors are independent."""
    parts = []
    for number, ((control, layer, readout), skill_of_sides) in enumerate(skills.items()):
        for side, R2 in zip(("dev", "test"), skill_of_sides, strict=True):
            true = np.random.default_rng([seed, side == "test"]).normal(size=n)
            error = np.random.default_rng([seed, number, side == "test"]).normal(size=n)
            error *= np.sqrt((1 - R2) * true.var() / (error**2).mean())
            parts.append(pd.DataFrame({
                "model": "made", "task": "file:made:length", "control": control, "layer": layer, "readout": readout,
                "probe": "none" if control == "majority" else "ridge", "seed": 0, "split": side,
                "row": np.arange(n) + 1000 * (side == "test"), "label": None, "predicted": None,
                "log2_probability": np.nan, "number": true, "predicted_number": true + error,
            }))  # fmt: skip
    return check_predictions(pd.concat(parts, ignore_index=True)[[*PREDICTIONS, *NUMBERS]])


def make_table(cls=0.8, mean=0.8, bag=0.5):
    return make_predictions(
        {
            ("none", 2, "cls"): (cls - 0.1, 0.99),
            ("none", 3, "cls"): (cls, cls),
            ("none", 2, "mean"): (mean - 0.1, 0.9),
            ("none", 3, "mean"): (mean, mean),
            ("majority", -1, "none"): (0.0, 0.0),
            ("bag_of_words", -1, "none"): (bag, bag),
        }
    )


def test_the_layer_is_chosen_by_r2_on_dev():
    chosen = TaskScores(make_table()).choose("cls")
    assert (chosen.layer, chosen.metric) == (3, "R2")
    assert (chosen.dev, chosen.test) == (pytest.approx(0.8), pytest.approx(0.8))
    assert 0.7 < chosen.low < 0.8 < chosen.high < 0.87
    assert "mean of train" in set(choose.list_baselines(TaskScores(make_table())).name)


@pytest.mark.parametrize(("cls", "bag", "outcome"), [(0.8, 0.5, "yes"), (0.8, 0.8, "undecided"), (0.4, 0.8, "no")])
def test_run_judges_numbers_by_their_r2(cls, bag, outcome):
    verdict = judge(Run(), make_table(cls, bag=bag))
    assert verdict.outcome == outcome
    assert verdict.effect == pytest.approx(cls - bag)
    assert verdict.low < verdict.effect < verdict.high
    assert f"3) explains {cls:.3f}" in verdict.sentence
    assert "of the variance of the test texts' numbers" in verdict.sentence
    assert "points of R2" in verdict.sentence
    assert "the mean of the test numbers" in {part.name for part in verdict.comparisons}


@pytest.mark.parametrize(("mean", "outcome"), [(0.95, "no"), (0.5, "yes")])
def test_readouts_are_compared_on_numbers_too(mean, outcome):
    rows = make_table(0.8, mean)
    assert judge(Poolings(), rows).outcome == outcome
    tables, task = measured(predictions=rows), rows.task.iloc[0]
    differences, curves = Poolings().show(tables, task)
    assert differences.arguments["metric"] == curves.arguments["metric"] == "R2"
    assert differences.caption.startswith("R2 of each readout minus that of [CLS] (layer 3), which is 0.800")
    assert judge(Aggregate(), rows).outcome == outcome  # worse than the mean, or better
    assert {
        exhibit.arguments["metric"] for exhibit in Aggregate().show(measured(predictions=rows), rows.task.iloc[0])
    } == {"R2"}


def test_the_page_of_numbers_draws():
    for exhibit in grid_exhibits(TaskScores(make_table())):
        if exhibit.plot:
            assert exhibit.arguments["metric"] == "R2"
            exhibit.draw()
        else:
            assert list(exhibit.table) == ["numbers", "texts", "true", "predicted", "off"]
            assert exhibit.table.texts.sum() == 300
            assert exhibit.table.true.is_monotonic_increasing


def test_a_summary_has_r2_spearman_gain_and_selectivity(mixed):
    _, task, _, results, blocks = mixed
    rows = choose.judged_rows(concat_categories(blocks).query("task == @task.name"), Run().probes)
    summary = choose.summary(rows, results).set_index("readout")
    best = summary.loc["mean"]
    assert (summary.index[0], best.layer) == ("mean", 1)
    seeds = results[(results.task == task.name) & (results.control == "none") & (results.layer == 1)]
    expected = seeds[(seeds.readout == "mean") & (seeds.split == "test")].groupby("metric").value.mean()
    assert (best.r2, best.spearman) == (pytest.approx(expected.r2), pytest.approx(expected.spearman))
    assert best["gain low"] < best.gain < best["gain high"]
    assert {"bits", "accuracy", "p"}.isdisjoint(summary.columns)


def test_bands_are_quantiles_with_names():
    assert set(choose.bands(np.array([1.0, 1, 1, 1]))) == {"1"}
    numbers = np.arange(100.0)
    names = choose.bands(numbers, 4)
    assert len(set(names)) == 4
    assert names[0].startswith("0 to 2")


# ------------------------------------------------------------------------------------------------------------- errors


def test_constant_numbers_are_an_error():
    task, states = make_data()
    for side in ("train", "dev", "test"):
        flat = dataclasses.replace(task, y=np.where(task.split == side, 3.0, task.y))
        for reject in (split, lambda a_task: sweep([a_task], states, RIDGE)):
            with pytest.raises(InputError, match=f"all numbers of {side} are the same \\(3\\); a probe needs two"):
                reject(flat)


@pytest.mark.parametrize("invalid", [np.nan, np.inf])
def test_a_task_has_finite_numbers_only(invalid):
    task, _ = make_data()
    y = task.y.copy()
    y[[3, 7]] = invalid
    with pytest.raises(InputError, match="y holds no finite number in rows 3, 7"):
        dataclasses.replace(task, y=y)


def test_a_task_that_no_probe_reads_is_an_error():
    task, states = make_data()
    classes = Task("hand:made:class", task.texts, np.where(task.y > 5, "a", "b"), "class", task.split)
    with pytest.raises(
        InputError, match=r"has numbers, which logistic cannot read\. Add a probe that does, such as ridge"
    ):
        sweep([task], states, {"logistic": LogisticProbe()})
    with pytest.raises(
        InputError, match=r"has classes, which ridge cannot read\. Add a probe that does, such as logistic"
    ):
        sweep([task, classes], states, RIDGE)


# -------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, and a table of texts with half their length and whether they have a dog."""
    path = tmp_path_factory.mktemp("numbers")
    models.save("bert", path / "model")
    random = np.random.default_rng(0)
    words = [word for word in models.WORDS if word.isalpha() and word not in ("sep", "cls", "s")]
    texts = list(dict.fromkeys(" ".join(random.choice(words, random.integers(3, 15))) for _ in range(260)))
    rows = [f"{text},{len(text.split()) / 2},{'ab'['dog' in text]}" for text in texts]
    (path / "d.csv").write_text("\n".join(["text,half,dog", *rows]) + "\n")
    return path


def arguments(folder: Path, *flags: object) -> tuple[object, ...]:
    return ("run", "--task", f"file:{folder}/d.csv", "--label-column", "half", "--target", "number",
            "--model", folder / "model", "--readouts", "cls,mean", *flags)  # fmt: skip


def test_numbers_from_a_table_to_a_page(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(*arguments(folder, "--dry-run")) == 0
    assert "numbers from 1.5 to 7" in capsys.readouterr().out
    assert call(*arguments(folder, "--out", out, "--quiet")) == 0
    run = json.loads((out / "run.json").read_text())
    assert run["finished"]
    assert run["failed"] == []
    assert set(run["verdicts"]) == {"run", "aggregate", "poolings"}
    results = pd.read_parquet(out / "results.parquet")
    assert set(results.metric) == {"r2", "spearman"}
    assert set(results.probe) == {"ridge", "none"}
    assert value(results, control="length") > 0.99
    predictions = check_predictions(pd.read_parquet(out / "predictions.parquet"))
    cell = predictions[(predictions.control == "none") & (predictions.layer == 1) & (predictions.readout == "mean")]
    cell = cell[cell.split == "test"]
    expected = metric.r2(cell.predicted_number.to_numpy()[None], cell.number.to_numpy(), np.ones((1, len(cell))))
    assert value(results, control="none", layer=1, readout="mean") == pytest.approx(expected[0, 0])
    page = (out / "report.html").read_text()
    for phrase in (
        "Test R2 of a linear probe",
        "mean of train",
        "equals that of the mean of train",
        "explains",
        "spearman",
    ):
        assert phrase in page
    assert "Test accuracy" not in page
    capsys.readouterr()
    assert call("report", out, "--out", tmp_path / "again.html") == 0
    assert "Test R2" in (tmp_path / "again.html").read_text()
    assert call("export", out, "--format", "latex") == 0
    assert "ridge probe: test R2" in capsys.readouterr().out
    assert call("export", out, "--out", tmp_path / "t.csv") == 0
    assert len(pd.read_csv(tmp_path / "t.csv")) == len(results)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--probes", "logistic"], "has numbers, which logistic cannot read. Add a probe that does, such as ridge."),
        (["--target", "class", "--label-column", "dog", "--probes", "ridge"], "has classes, which ridge cannot read."),
        (["--readouts", "attention"], "learns its pooling from classes, and file:d:half has numbers."),
    ],
)
def test_conflicting_flags_are_an_error_before_anything_is_encoded(folder, flags, sentence, tmp_path, capsys):
    assert call(*arguments(folder), *flags, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("study", ["formation", "fine_tuning"])
def test_a_study_of_classes_rejects_numbers(folder, study, tmp_path, capsys):
    assert call(study, *arguments(folder)[1:], "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith("error: file:d:half: holds numbers, and this study reads classes.")
    assert not (tmp_path / "out").exists()
