"""The study of formation: its verdict on tables made by hand, its flags, and one small run from end to end."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from tables import judge, measured

from clsprobe.analysis.formation.knockout import EVERYTHING, INTACT, KEY, PREDICTIONS, Window, measure_agreement
from clsprobe.formation import Formation
from clsprobe.probes.errors import InputError


def predictions(layer, *, intact=0.9, off=0.5, lower=0.9, upper=0.5, n=400, task="file:made:label"):
    """What a fixed probe of [CLS] said after the cuts that the verdict is about; texts that are right are nested."""
    half = max(1, layer // 2)
    shares = {
        INTACT: intact,
        Window(EVERYTHING, 1, half): lower,
        Window(EVERYTHING, layer - half + 1, layer): upper,
        Window(EVERYTHING, 1, layer): off,
    }
    parts = []
    for cut, share in shares.items():
        key = dict(zip(KEY, (*cut, layer, "cls"), strict=True))
        rows = {"row": np.arange(n), "label": "a", "predicted": np.where(np.arange(n) < share * n, "a", "b")}
        parts.append(pd.DataFrame({"task": task, **key, "seed": 0, **rows}))
    return pd.concat(parts, ignore_index=True)[list(PREDICTIONS)]


USED = "this says where the edges are used, not where nothing could be read any more."


@pytest.mark.parametrize(
    ("layer", "below", "above"), [(2, "layer 1", "layer 2"), (5, "layers 1 to 2", "layers 4 to 5")]
)
@pytest.mark.parametrize(
    ("values", "outcome", "statement"),
    [
        ({"lower": 0.9, "upper": 0.5}, "yes", "depends more on {taken} in {above} than in {below}:"),
        ({"lower": 0.6, "upper": 0.85}, "no", "depends more on {taken} in {below} than in {above}:"),
        ({"lower": 0.8, "upper": 0.8}, "no", "depends as much on {taken} in {below} as in {above}:"),
        ({"lower": 0.8, "upper": 0.82}, "no", "depends no more on {taken} in {above} than in {below}:"),
        ({"lower": 0.8, "upper": 0.77}, "undecided", "it is not certain whether more in {above} or in {below}:"),
    ],
    ids=["late", "early", "alike", "not late", "uncertain"],
)  # fmt: skip
def test_the_answer_says_in_which_half_cutting_costs_more(layer, below, above, values, outcome, statement):
    verdict = judge(Formation(), predictions(layer, **values, n=1000))
    assert verdict.outcome == outcome
    assert verdict.label == "described"
    taken = "what [CLS] takes from the other tokens"
    assert statement.format(taken=taken, above=above, below=below) in verdict.sentence
    assert sum(what in verdict.sentence for what in (" depends more ", " as much ", " no more ", " not certain ")) == 1
    assert (
        f"it gets 0.900 of the test texts right, {values['lower']:.3f} where [CLS] is cut off in {below}, "
        in verdict.sentence
    )
    assert f"{values['upper']:.3f} in {above}, 0.500 in layers 1 to {layer};" in verdict.sentence
    assert verdict.sentence.endswith(USED)
    assert verdict.effect == pytest.approx(values["lower"] - values["upper"], abs=0.005)
    costlier = above if verdict.effect >= 0 else below
    assert f"the cut in {costlier} costs {100 * abs(verdict.effect):.1f} points (" in verdict.sentence
    assert verdict.low <= verdict.effect <= verdict.high


def test_where_there_is_nothing_to_lose_no_half_is_named():
    verdict = judge(Formation(), predictions(4, intact=0.51, off=0.5, lower=0.5, upper=0.51))
    assert "it cannot be said in which layers [CLS] gathers what its probe at layer 4 reads" in verdict.sentence
    assert "0.510 of the test texts right, and 0.500 where [CLS] is cut off" in verdict.sentence
    assert not verdict.is_claim


def test_a_single_layer_has_no_halves():
    verdict = judge(Formation(), predictions(1, upper=0.5, lower=0.5))
    assert "dev reads [CLS] at layer 1, which has no lower and no upper half below it" in verdict.sentence
    assert "0.900 of the test texts right, and 0.500 where [CLS] is cut off there" in verdict.sentence
    assert not verdict.is_claim


def test_few_test_texts_are_warned_of():
    (warning,) = judge(Formation(), predictions(4, n=40)).warnings
    assert warning.startswith("Only 40 test texts on made: label")
    assert not judge(Formation(), predictions(4, n=50)).warnings


def test_a_cut_off_cls_that_still_tells_texts_apart_is_not_passed_over():
    table = predictions(4)
    assert "still tells texts apart" in Formation().note(measured(knockout=table))[0]
    whole = (table["first"] == 1) & (table["last"] == 4)
    table = table.assign(predicted=table.predicted.mask(whole, "b"))
    assert "one class of all texts" in Formation().note(measured(knockout=table))[0]


def test_tasks_that_disagree_are_listed():
    both = [predictions(4, task="file:a:x"), predictions(4, lower=0.5, upper=0.9, task="file:b:y")]
    verdict = Formation().verdict(measured(knockout=pd.concat(both)))
    assert verdict.outcome == "mixed"
    assert {part.outcome for part in verdict.parts.values()} == {"yes", "no"}
    assert ": a: x +40.0 points (" in verdict.sentence
    assert verdict.sentence.startswith("More in the upper half on a: x; no more in the upper half on b: y. ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"readouts": "mean"}, "--readouts: this study is about cls"),
        ({"readouts": "cls,flatten"}, "--readouts: 'flatten' is no vector of a single layer"),
        ({"readouts": "cls,cls+norm"}, "--readouts: 'cls+norm' is no vector of a single layer"),
    ],
)
def test_what_cannot_be_asked_is_told(settings, message):
    with pytest.raises(InputError) as caught:
        Formation(**settings)
    assert str(caught.value).startswith(message)


def test_agreement_is_the_rank_correlation_of_the_profiles():
    random = np.random.default_rng(0)
    rising = np.arange(6.0) + random.normal(size=(300, 6))
    partial = np.where(np.arange(300)[:, None] < 100, rising, np.nan)
    table = measure_agreement(
        {"a": rising, "b": partial, "c": -rising, "flat": np.ones((300, 6)), "noise": random.normal(size=(300, 6))}
    )
    correlations = table.set_index(["one", "other"])
    assert correlations.correlation["a", "b"] == pytest.approx(1)
    assert correlations.low["a", "b"] > 0.8
    assert correlations.correlation["a", "c"] == pytest.approx(-1)
    assert tuple(correlations.loc[("a", "flat"), ["correlation", "low", "high"]]) == (0, 0, 0)
    assert correlations.low["a", "noise"] < 0 < correlations.high["a", "noise"]
    assert ((correlations.low <= correlations.correlation) & (correlations.correlation <= correlations.high)).all()


def test_a_small_run_goes_on_where_it_was_stopped_and_finds_what_was_planted(tmp_path, monkeypatch):
    import planted_transformer as planted

    from clsprobe.analysis.study import Answer
    from clsprobe.cli import main
    from clsprobe.probes.encoders.loading import load_encoder

    folder = planted.save_model(tmp_path / "model")
    encoder = load_encoder(str(folder), device="cpu")
    planted.plant_copy(encoder, 4, noise=0.02)
    encoder.model.save_pretrained(folder)
    task = planted.make_task(0, count=200)
    pd.DataFrame({"text": task.texts, "label": task.y}).to_csv(tmp_path / "third.csv", index=False)
    out, table = tmp_path / "run", tmp_path / "third.csv"

    def run():
        flags = ["--model", str(folder), "--task", f"file:{table}", "--device", "cpu", "--allow-overlap", "--quiet"]
        with pytest.raises(SystemExit) as stopped:
            main(["formation", *flags, "--out", str(out)])
        return stopped.value.code

    with monkeypatch.context() as patch:
        patch.setattr(Formation, "judge", _interrupted)
        assert run() == 130
    monkeypatch.setattr(Formation, "measure", _interrupted)  # it is not measured again
    assert run() == 0
    answer = Answer.load(out / "answers" / "formation.json")
    assert answer.verdict.outcome == "yes"
    assert "the other tokens in layers 3 to 4 than in layers 1 to 2" in answer.headline.sentence
    assert {exhibit.plot for exhibit in answer.exhibits} >= {"heatmap", "differences", "curves"}
    assert "one class of all texts" in answer.notes[0]
    assert (out / "report.html").stat().st_size > 10_000
    costs = next(exhibit.table for exhibit in answer.exhibits if exhibit.plot == "differences").set_index("name")
    assert costs.outcome["[CLS] from the words, layer 4"] == "yes"
    assert (costs.effect[[f"[CLS] from the words, layer {layer}" for layer in (1, 2, 3)]].abs() < 0.1).all()


def _interrupted(*_):
    raise KeyboardInterrupt
