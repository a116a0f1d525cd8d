"""The study of fine-tuning: verdicts on predictions made by hand, the two-way bootstrap, one small run of it all."""

from __future__ import annotations

import json
from dataclasses import replace

import models
import numpy as np
import pandas as pd
import pytest
from saved import read_measured
from tables import first, judge, measured, predictions
from worlds import known_worlds

from clsprobe.analysis import stats
from clsprobe.analysis.answer import Answer
from clsprobe.analysis.contract import check_study
from clsprobe.analysis.fine_tuning import measure, plan
from clsprobe.analysis.fine_tuning.plan import Plan
from clsprobe.analysis.fine_tuning.tables import (
    RATE,
    TUNED,
    check_orders,
    choose_rates,
    compare_with_cls,
    cross_tokens_and_positions,
    describe_rates,
    find_edges,
)
from clsprobe.fine_tuning import FineTuning
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.errors import InputError
from clsprobe.trajectory import Trajectory


def tuned(scores: dict[str, dict[float, list[float]]], n: int = 400) -> pd.DataFrame:
    """readout -> rate -> test accuracy of every seed (that of dev is the same), nested texts; frozen ones at 0.5."""
    parts = []
    for readout, rates in scores.items():
        for rate, shares in rates.items():
            for seed, share in enumerate(shares):
                cell = {("none", 6, readout): (first(share, n), first(share, n))}
                parts.append(predictions(cell, seed=seed).assign(probe=f"{TUNED}{rate:g}"))
        parts.append(predictions({("none", 6, readout): (first(0.5, n), first(0.5, n))}).assign(probe="frozen"))
    parts.append(predictions({("majority", -1, "none"): (first(0.4, n), first(0.4, n))}))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(
    ("token", "outcome"),
    [
        ([0.9, 0.9, 0.9], "yes"),
        ([0.895, 0.905, 0.9], "yes"),
        ([0.8, 0.81, 0.8], "no"),
        ([0.9, 0.8, 0.85], "undecided"),  # the seeds disagree
        ([0.89, 0.87, 0.89], "undecided"),
    ],
)
def test_every_other_position_has_to_be_as_good(token, outcome):
    others = {"sep": {1e-4: [0.9, 0.9, 0.9]}, "mean": {1e-4: [0.5, 0.5, 0.5]}}  # a pooling is no position
    table = tuned({"cls": {1e-4: [0.9, 0.9, 0.9]}, "token[1]": {1e-4: token}} | others)
    verdict = judge(FineTuning(), table)
    assert verdict.outcome == outcome
    assert verdict.low <= verdict.effect <= verdict.high
    assert [part.name for part in verdict.comparisons] == ["token[1]", "sep"]


def test_two_seeds_are_undecided_unless_it_is_clear():
    cls = {1e-4: [0.9, 0.9]}
    judged = [
        judge(FineTuning(), tuned({"cls": cls, "sep": {1e-4: scores}})).outcome
        for scores in ([0.9, 0.9], [0.88, 0.9], [0.6, 0.6], [0.8, 0.85])
    ]
    assert judged == ["yes", "undecided", "no", "undecided"]


def test_undecided_says_how_many_seeds_would_decide():
    """Seeds that differ by as much as these; from two to the number that is said, the interval narrows as promised."""
    study = FineTuning(task="file:d.csv", seeds=2)
    verdict = judge(study, tuned({"cls": {1e-4: [0.9, 0.9]}, "sep": {1e-4: [0.91, 0.9]}}, n=4000))
    assert verdict.outcome == "undecided"
    assert study._advise({"a": verdict}) == (
        "About 3 seeds would decide at this effect (2 were used): run it again with --seeds 3."
    )
    more = judge(study, tuned({"cls": {1e-4: [0.9] * 3}, "sep": {1e-4: [0.9113, 0.9, 0.9037]}}, n=4000))
    assert more.outcome == "yes"
    close = judge(study, tuned({"cls": {1e-4: [0.9, 0.9]}, "sep": {1e-4: [0.9, 0.859]}}))
    assert "More than 30 seeds" in study._advise({"a": close})
    assert study._advise({"a": more}) == ""


def test_one_of_many_is_easily_worse_by_chance():
    """Holm: what is clear of one readout alone is not clear of the worst of thirty."""
    cls = {1e-4: [0.9, 0.9, 0.9]}
    worse = {1e-4: [0.855, 0.85, 0.86]}
    alone = compare_with_cls(tuned({"cls": cls, "sep": worse}), FineTuning.margin)
    many = {f"token[{k}]": {1e-4: [0.9, 0.9, 0.9]} for k in range(1, 40)}
    among = compare_with_cls(tuned({"cls": cls, "sep": worse} | many), FineTuning.margin).set_index("name")
    assert alone.outcome.tolist() == ["worse"]
    assert among.outcome["sep"] == "undecided"
    assert among.p_worse["sep"] > alone.p_worse.iloc[0]
    assert among.high["sep"] - among.low["sep"] > alone.high[0] - alone.low[0]


def test_one_of_many_is_easily_no_worse_by_chance():
    """The other way round; the poolings, which are no rivals, are a family of their own."""
    cls, close = {1e-4: [0.9, 0.9, 0.9]}, {1e-4: [0.893, 0.895, 0.897]}
    poolings = {"mean": close}
    alone = compare_with_cls(tuned({"cls": cls, "sep": close} | poolings), FineTuning.margin).set_index("name")
    many = {f"token[{k}]": {1e-4: [0.9, 0.86, 0.9]} for k in range(1, 40)}
    among = compare_with_cls(tuned({"cls": cls, "sep": close} | many | poolings), FineTuning.margin).set_index("name")
    assert alone.outcome.tolist() == ["no worse", "no worse"]
    assert (among.outcome["sep"], among.outcome["mean"]) == ("undecided", "no worse")


SENTENCES = {
    "yes": "Yes: on made: label, fine-tuned, each of the 2 other positions does as well as [CLS] or better, within the "
    "margin of 2 points; the lowest is token[1]: token[1] minus [CLS] is 0.0 points (",
    "no": "No: on made: label, fine-tuned, token[1] is worse than [CLS] by 10.0 points (",
    "undecided": "Undecided: on made: label, fine-tuned, for 1 of the 2 other positions it is open whether it does as "
    "well as [CLS] or better, within the margin of 2 points; least certain is token[1]: token[1] is worse than [CLS] "
    "by 2.0 points (",
}


@pytest.mark.parametrize(("score", "outcome"), [(0.9, "yes"), (0.8, "no"), (0.88, "undecided")])
def test_the_sentence_answers_the_question_in_its_direction(score, outcome):
    others = {"token[1]": {1e-4: [score] * 3}, "sep": {1e-4: [0.9] * 3}}
    verdict = judge(FineTuning(), tuned({"cls": {1e-4: [0.9] * 3}} | others))
    assert verdict.outcome == outcome
    assert verdict.sentence.startswith(SENTENCES[outcome])


def test_better_than_cls_is_yes():
    """Whoever sees the sentence alone is not led to the opposite."""
    verdict = judge(FineTuning(), tuned({"cls": {1e-4: [0.7] * 3}, "sep": {1e-4: [0.9] * 3}}))
    assert verdict.sentence.startswith("Yes: on made: label, fine-tuned, the only other position does as well as [CLS]")
    assert "sep is better than [CLS] by 20.0 points" in verdict.sentence


def test_a_readout_that_predicts_one_class_never_works_as_well():
    """[CLS] finds 60 of the 1,200 texts of the rarer class, and sep none: worse by 1.5 points, within the margin."""
    table = tuned({"cls": {1e-4: [1.0] * 3}, "sep": {1e-4: [1.0] * 3}}, n=4000)
    text = table.row - table.groupby("split").row.transform("min")
    table["label"] = np.where(text < 2800, "a", "b")
    table["predicted"] = np.where((table.readout == "cls") & (text >= 3940), "b", "a")
    verdict = judge(FineTuning(), table)
    assert verdict.low > -FineTuning.margin
    assert verdict.outcome == "undecided"
    assert verdict.warnings == ("On made: label, sep (layer 6) predicts one class for all 4,000 test texts.",)
    table.loc[(table.readout == "sep") & (text == 3999), "predicted"] = "b"
    assert judge(FineTuning(), table).outcome == "yes"


def test_what_learned_nothing_is_no_measure_of_the_others():
    """[CLS] at the share of the commonest class: the task decides nothing, whatever the others do."""
    for score in (0.5, 0.9, 0.3):
        verdict = judge(FineTuning(), tuned({"cls": {1e-4: [0.5] * 3}, "sep": {1e-4: [score] * 3}}))
        assert verdict.label == "left out"
        assert "[CLS] fine-tuned gets 0.500 of the test texts right, not clearly more" in verdict.sentence


# --------------------------------------------------------------------------------------------- tokens and positions


def test_token_and_position_are_told_apart():
    """Planted: the position costs 20 points whatever the token, the new token 5 whatever the position."""
    places = {"cls": 0.9, "cls@last": 0.7, "new@first": 0.85, "new@last": 0.65, "token[1]@first": 0.9, "mean": 0.9}
    table, differences = cross_tokens_and_positions(tuned({name: {1e-4: [s] * 3} for name, s in places.items()}))
    assert table.set_index("token").T.round(3).to_dict("list") == {
        "[CLS]": [0.9, 0.7],
        "new token": [0.85, 0.65],
        "first word": [0.9, pytest.approx(np.nan, nan_ok=True)],
    }
    effects = differences.set_index("name").effect.round(3).to_dict()
    assert effects == {
        "[CLS]: last minus first": -0.2,
        "new token: last minus first": -0.2,
        "first: new token minus [CLS]": -0.05,
        "last: new token minus [CLS]": -0.05,
        "first: first word minus [CLS]": 0.0,
    }
    assert differences.outcome.tolist() == ["less", "less", "less", "less", "undecided"]
    for part in cross_tokens_and_positions(tuned({"cls": {1e-4: [0.9]}, "sep": {1e-4: [0.9]}})):
        assert part.empty


def test_dev_chooses_the_rate_of_each_readout():
    table = tuned({"cls": {1e-5: [0.7, 0.7], 1e-4: [0.9, 0.9]}, "sep": {1e-5: [0.8, 0.8], 1e-4: [0.6, 0.6]}})
    test = table.split == "test"
    table.loc[test, "predicted"] = "a"  # what test says chooses nothing
    assert choose_rates(table) == {"cls": f"{TUNED}0.0001", "sep": f"{TUNED}1e-05"}


def test_the_exhibits_hold_the_numbers():
    scores = {"cls": {1e-4: [0.9, 0.9], 1e-3: [0.7, 0.8]}, "sep": {1e-4: [0.88, 0.92], 1e-3: [0.8, 0.8]}}
    study, table = FineTuning(), tuned(scores)
    steps = pd.DataFrame(
        {"task": "file:made:label", "readout": "cls", "rate": 1e-4, "seed": [0, 1], "step": 1, "loss": 1.0,
         "dev": [0.5, 0.7]}
    )  # fmt: skip
    tables = measured(predictions=table, steps=steps)
    differences, crossed, contrasts, numbers, rates, curves = study.show(tables, "file:made:label")
    assert crossed.table.empty
    assert contrasts.table.empty
    assert curves.table.value.tolist() == [pytest.approx(0.6)]
    assert differences.table.name.tolist() == ["sep"]
    rows = numbers.table.set_index("readout")
    assert rows["fine-tuned"].round(3).to_dict() == pytest.approx(
        {"cls": 0.9, "sep": 0.9, "commonest class": np.nan}, nan_ok=True
    )
    assert rows.gained["cls"] == pytest.approx(0.4)
    assert rows.frozen["commonest class"] == pytest.approx(0.4)
    assert rows.seeds["sep"] == pytest.approx(np.std([0.88, 0.92], ddof=1))
    assert set(rates.table[RATE]) == {100.0, 1000.0}
    for exhibit in (differences, rates):
        exhibit.draw()
    cannot, edge, few = study.note(tables)
    assert "cannot show" in cannot
    assert edge.startswith("Dev chooses the only rate that was trained for cls (0.0001)")
    assert "Only 2 seeds" in few


# ------------------------------------------------------------------------------------------------------------- rates


PLAN = Plan(readouts=("cls",), rates=(5e-5, 2e-4), seeds=(0,), train_texts=100, epochs=1, lora=0)


def bracket(plan: Plan, best: float) -> list[float]:
    """All rates that are trained for a readout that is the better, the nearer its rate is to `best`."""
    rates = list(plan.rates)
    while beyond := plan.rates_beyond(rates, min(rates, key=lambda rate: abs(np.log(max(rate, 1e-12) / best)))):
        rates += beyond
    return sorted(rates)


@pytest.mark.parametrize(
    ("rates", "best", "trained"),
    [
        ((5e-5, 2e-4), 2e-4, [5e-5, 2e-4, 8e-4]),  # the edge is the best: one more on its side says so
        ((2e-4, 5e-5), 1e-9, [7.8125e-07, 3.125e-06, 1.25e-05, 5e-5, 2e-4]),  # not bracketed: three more
        ((5e-5, 2e-4), 1, [5e-5, 2e-4, 8e-4, 3.2e-3, 1.28e-2]),
        ((1e-4, 2e-4, 1e-3), 2e-4, [1e-4, 2e-4, 1e-3]),
        ((1e-4, 2e-4, 1e-3), 1e-4, [5e-5, 1e-4, 2e-4, 1e-3]),  # by the ratio of that end
        ((1e-4, 2e-4, 1e-3), 4e-3, [1e-4, 2e-4, 1e-3, 5e-3, 2.5e-2]),
        ((1e-4,), 1e-4, [2.5e-5, 1e-4, 4e-4]),
        ((0.3,), 1, [0.075, 0.3]),  # no rate reaches 1
        ((0, 1e-4), 1e-12, [0, 1e-4]),  # below 0 is none
        ((0, 1e-4), 1e-4, [0, 1e-4, 4e-4]),
        ((0,), 1e-4, [0]),
    ],
)
def test_rates_are_added_until_the_best_is_no_edge(rates, best, trained):
    assert bracket(replace(PLAN, rates=rates), best) == pytest.approx(trained)


def test_rates_at_an_edge_are_said():
    """The column, and a sentence; a rate that diverged bounds the others."""
    scores = {"cls": {1e-4: [0.9], 1e-3: [0.8]}, "sep": {1e-4: [0.8], 1e-3: [0.9]}, "mean": {1e-4: [0.9], 1e-3: [0.8]}}
    scores |= {"max": {0.0: [0.9], 1e-3: [0.8]}}
    table = tuned(scores)
    rates = [(name, rate, 0.5) for name, each in scores.items() for rate in each] + [("cls", 1e-5, 0.5)]
    steps = pd.DataFrame(rates, columns=["readout", "rate", "loss"]).assign(task="file:made:label", seed=0)
    assert find_edges(table, steps) == {"cls": "", "sep": "largest", "mean": "smallest", "max": ""}
    assert describe_rates(table, steps, "On made") == [
        "On made, dev chooses the largest rate that was trained for sep (0.001): a larger one may suit it better than "
        "what is shown.",
        "On made, dev chooses the smallest rate that was trained for mean (0.0001): a smaller one may suit it better "
        "than what is shown.",
    ]
    diverged = pd.concat([steps, steps.iloc[[3]].assign(rate=1e-2, loss=np.nan)])
    assert find_edges(table, diverged)["sep"] == ""
    assert describe_rates(table, diverged)[-1] == "Trainings diverged, and are left out: sep at 0.01."


def test_readouts_that_saw_other_orders_are_refused():
    steps = pd.DataFrame({"task": "t", "seed": 0, "readout": ["cls", "cls", "mean"], "order": ["a", "a", "a"]})
    check_orders(steps)
    with pytest.raises(RuntimeError, match="different orders"):
        check_orders(steps.assign(order=["a", "a", "b"]))


def test_the_study_notices_a_trainer_whose_order_depends_on_the_readout(small, tmp_path, monkeypatch):
    """The twin: the texts are shuffled anew for every readout."""
    from clsprobe.probes.training import fine_tune as training

    schedule_batches, calls = training.schedule_batches, iter(range(100))
    monkeypatch.setattr(
        training, "schedule_batches", lambda *arguments: [
            list(reversed(epoch)) if next(calls) % 2 else epoch for epoch in schedule_batches(*arguments)
        ]
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="different orders"):
        small("--out", str(tmp_path / "out"))


# ---------------------------------------------------------------------------------------- seeds and texts, crossed


def crossed_samples(random, seeds, texts, *, of_seeds, of_texts, effect=0.0):
    """(seed, text) right or wrong of two readouts that differ by `effect` on the average over seeds and texts."""
    hard = random.normal(size=texts)
    sides = []
    for shift in (effect, 0.0):
        own = of_texts * random.normal(size=texts)
        wanders = of_seeds * random.normal(size=(seeds, 1))
        p = np.clip(0.7 + shift + 0.15 * np.tanh(hard) + 0.1 * np.tanh(own) + wanders, 0.01, 0.99)
        sides.append(pd.DataFrame((random.random((seeds, texts)) < p).astype(float)))
    return sides


def covered(trials, seeds, texts, **sizes):
    random = np.random.default_rng([seeds, texts])
    hits = naive = 0
    for _ in range(trials):
        a, b = crossed_samples(random, seeds, texts, **sizes)
        _, low, high = stats.paired_difference(a, b)
        hits += low <= 0 <= high
        pooled = (a - b).to_numpy().ravel()
        half = 1.96 * pooled.std(ddof=1) / np.sqrt(len(pooled))
        naive += abs(pooled.mean()) <= half
    return hits / trials, naive / trials


@pytest.mark.parametrize(("seeds", "of_seeds"), [(2, 0.03), (3, 0.03), (5, 0.03), (3, 0.0)])
def test_the_interval_holds_the_truth(seeds, of_seeds):
    """At least as often as it says, and the one that takes seeds for texts does not."""
    hits, naive = covered(200, seeds, 300, of_seeds=of_seeds, of_texts=1.0)
    assert hits > 0.91
    if of_seeds:
        assert naive < 0.85


@pytest.mark.long
@pytest.mark.parametrize(
    ("seeds", "of_seeds", "most"), [(2, 0.03, 0.99), (3, 0.03, 0.99), (5, 0.03, 0.995), (1, 0.0, 0.97)]
)
def test_the_interval_holds_the_truth_as_often_as_it_says(seeds, of_seeds, most):
    hits, _ = covered(3000, seeds, 500, of_seeds=of_seeds, of_texts=1.0)
    assert 0.93 < hits < most


def test_p_and_interval_decide_alike():
    random = np.random.default_rng(1)
    for effect in (0.0, 0.03, 0.06, 0.1):
        a, b = crossed_samples(random, 4, 400, of_seeds=0.01, of_texts=0.5, effect=effect)
        difference = stats.compare(a.to_numpy(float), b.to_numpy(float))
        low, high = difference.interval()
        for threshold in (-0.05, 0.0, 0.05):
            assert (difference.p_above(threshold) < 0.025) == (low > threshold)
            assert (difference.p_below(threshold) < 0.025) == (high < threshold)


# ------------------------------------------------------------------------------------------------------- trajectory


def make_trajectory(gain, low, high, readout="cls"):
    columns = ["task", "readout", "layer", "order", "value", "texts", "gain", "gain_low", "gain_high", "cka"]
    rows = [("a:b:c", readout, 6, 0, 0.5, 200, 0, 0, 0, 1.0)]
    rows += [("a:b:c", readout, 6, 1, 0.5 + gain, 200, gain, low, high, 0.45)]
    rows += [
        ("a:b:c", "max", 6, 1, 0.8, 200, -gain, -high, -low, 0.5),
        ("a:b:c", readout, 5, 1, 0.8, 200, -gain, -high, -low, 0.5),
    ]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize(
    ("gain", "outcome", "what"),
    [
        ((0.3, 0.2, 0.4), "yes", "is easier to read at {moments}, by 30.0 points (20.0 to 40.0)"),
        ((-0.3, -0.4, -0.2), "no", "is harder to read at {moments}, by 30.0 points (20.0 to 40.0)"),
        (
            (0.01, -0.1, 0.12),
            "undecided",
            "is not certainly easier or harder to read at {moments} (+1.0 points, -10.0 to +12.0)",
        ),
    ],
)
def test_the_trajectory_says_what_cls_has_gained_or_lost(gain, outcome, what):
    verdict = judge(Trajectory(), make_trajectory(*gain))
    assert (verdict.outcome, verdict.label) == (outcome, "described")
    what = what.format(moments="the end of the training than at the start")
    assert verdict.sentence.startswith(f"On b: c, the label {what}, by a linear probe on [CLS] of layer 6: it gets 0.5")
    assert (
        f"right at the start and {0.5 + gain[0]:.3f} at the end; the CKA of [CLS] with its start is 0.45"
        in verdict.sentence
    )


def test_without_cls_the_trajectory_is_that_of_mean():
    sentence = judge(Trajectory(), make_trajectory(0.3, 0.2, 0.4, readout="mean")).sentence
    assert "a linear probe on mean of layer 6" in sentence
    assert "[CLS]" not in sentence


def test_attention_into_cls_is_what_the_weights_say(tmp_path):
    """Queries and keys of 0 look at all tokens alike."""
    import torch

    from clsprobe import load_encoder
    from clsprobe.analysis.formation.attention import measure_inflow

    encoder = load_encoder(str(models.save("bert", tmp_path, layers=2)), device="cpu")
    with torch.no_grad():
        for layer in encoder.model.encoder.layer[:1]:
            for part in (layer.attention.self.query, layer.attention.self.key):
                part.weight.zero_()
                part.bias.zero_()
    # 5 and 3 tokens with [CLS] and [SEP]; 3 words and 1
    received = measure_inflow(encoder, ["the cat sees", "dog"])
    assert received[1] == pytest.approx((3 / 5 + 1 / 3) / 4)
    assert set(received) == {1, 2}
    assert encoder.model.config._attn_implementation == "sdpa"


# --------------------------------------------------------------------------------------------------------- the run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    random = np.random.default_rng(0)
    words = ["cat", "dog", "bird", "house", "tree", "red", "blue", "runs", "sleeps", "big", "very"]
    texts = list(dict.fromkeys(" ".join(random.choice(words, random.integers(4, 11))) for _ in range(260)))
    labels = ["yes" if "cat" in text else "no" for text in texts]
    path = tmp_path_factory.mktemp("data") / "words.csv"
    path.write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in zip(texts, labels, strict=True)))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.save("bert", tmp_path_factory.mktemp("bert"), layers=2)


@pytest.fixture
def small(data, model, one_thread, monkeypatch):
    """The command on a small model and task, without rates beyond the planned ones; returns its exit code."""
    from clsprobe.cli import main

    monkeypatch.setattr(plan, "EXTENSIONS", 0)

    def run(*flags: str) -> int:
        rates = [] if "--rates" in flags else ["--rates", "1e-3,1e-4"]
        readouts = [] if "--readouts" in flags else ["--readouts", "cls,token1,mean,cls@last"]
        with pytest.raises(SystemExit) as ended:
            main(
                ["finetune", "--task", f"file:{data}", "--model", str(model), "--device", "cpu", *readouts,
                 "--seeds", "2", "--epochs", "1", *rates, "--quiet",
                 "--allow-overlap", "--dtype", "float32", *flags]
            )  # fmt: skip
        return ended.value.code

    return run


def trained_rates(folder) -> dict[str, set[float]]:
    """Readout -> the rates of its predictions."""
    table = pd.read_parquet(folder / "predictions.parquet")
    table = table[table.probe.str.startswith(TUNED)]
    return {name: {float(p.removeprefix(TUNED)) for p in of.probe} for name, of in table.groupby("readout")}


def test_the_whole_of_it(small, tmp_path, monkeypatch):
    """An interrupted start goes on with the trainings it lacks, and ends as one that was not interrupted.

    It is interrupted twice: among the planned trainings, and among those at rates beyond them, of which one diverges.
    """
    few = ["--readouts", "cls,token1", "--rates", "1e-3"]
    monkeypatch.setattr(measure, "MOMENTS", (0.0, 0.3, 1.0))
    monkeypatch.setattr(plan, "EXTENSIONS", 1)
    begun, stops, real = [], [], measure.fine_tune

    def train(encoder, readout, texts, y, recipe, **more):
        begun.append((readout, recipe.rate, recipe.seed))
        if len(begun) in stops:
            raise KeyboardInterrupt
        recipe = replace(recipe, rate=1e30) if (readout, recipe.rate) == ("token[1]", 4e-3) and recipe.seed else recipe
        return real(encoder, readout, texts, y, recipe, **more)

    monkeypatch.setattr(measure, "fine_tune", train)
    assert small(*few, "--out", str(tmp_path / "whole")) == 0
    whole, begun[:], stops[:] = list(begun), [], [3, 9]
    assert len(whole) == len(set(whole)) + 1 == 4 + 2 * 4 + 1  # planned, beyond, the trajectory once more
    assert [small(*few, "--out", str(tmp_path / "twice")) for _ in range(3)] == [130, 130, 0]
    assert len(begun) <= len(whole) + 4  # those that were done are not done again
    for name in ("predictions.parquet", "tables/steps.parquet"):
        tables = [pd.read_parquet(tmp_path / folder / name) for folder in ("whole", "twice")]
        pd.testing.assert_frame_equal(*tables)
    assert not (tmp_path / "twice" / "trainings").exists()
    probes = trained_rates(tmp_path / "whole")
    assert probes["cls"] == {0.001, 0.00025, 0.004}
    assert probes["token[1]"] == {0.001, 0.00025}  # that which diverged is no result

    results = pd.read_parquet(tmp_path / "whole" / "results.parquet")
    assert set(results.control) == {"none", "majority"}
    answer = Answer.load(tmp_path / "whole" / "answers" / "fine_tuning.json")
    assert "single token" in answer.claim
    assert any("Trainings diverged, and are left out: token[1] at 0.004" in note for note in answer.notes)
    along = Answer.load(tmp_path / "whole" / "answers" / "trajectory.json")
    grid = along.exhibits[0].table
    assert list(dict.fromkeys(grid.readout)) == ["0 %", "30 %", "100 %"]
    assert (tmp_path / "whole" / "report.html").stat().st_size > 10_000
    of_run = read_measured(tmp_path / "whole")
    check_study(FineTuning(), of_run, worlds=known_worlds("fine-tuning"))
    check_study(Trajectory(), of_run, worlds=known_worlds("trajectory"))
    facts = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert facts["finished"]
    start = pd.read_parquet(tmp_path / "whole" / "tables" / "trajectory.parquet")
    start = start[start.order == 0]
    assert start.gain.eq(0).all()
    assert start.cka.dropna().round(6).eq(1).all()
    assert start[(start.readout == "cls") & (start.layer == 0)].cka.isna().all()


def test_over_checkpoints(small, model, tmp_path):
    """The embedded weights, and others of the same shape; folders of one name are told apart by their paths."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    later = tmp_path / "later" / model.name
    shutil.copytree(model, later)
    weights = load_file(later / "model.safetensors")
    noise = torch.Generator().manual_seed(0)
    more = {name: one + 0.1 * torch.randn(one.shape, generator=noise) for name, one in weights.items()}
    save_file(more, later / "model.safetensors", {"format": "pt"})
    assert small("--checkpoints", f"{model},{later}", "--out", str(tmp_path / "out")) == 0
    table = pd.read_parquet(tmp_path / "out" / "tables" / "trajectory.parquet")
    assert list(dict.fromkeys(table.moment)) == [str(model), str(later)]
    moved = table[(table.moment == str(later)) & (table.readout == "mean")]
    assert (moved.cka < 0.999).any()
    assert not (tmp_path / "out" / "predictions.parquet").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--readouts", "cls,clss"], "unknown readout 'clss'"),
        (["--readouts", "cls,new@end"], "unknown readout 'new@end'"),
        (["--readouts", "mean,token1"], "compares other readouts with cls"),
        (["--readouts", "cls"], "nothing to compare"),
        (["--rates", "fast"], "no learning rate"),
        (["--rates", "1e-4,0.0001"], "given twice"),
        (["--checkpoints", "MODEL"], "no trajectory"),
        (["--checkpoints", "MODEL,OTHER"], "another architecture"),
        (["--checkpoints", "MODEL,DEEPER"], "another number of layers"),
        (["--train-texts", "31"], "does not fit"),
        (["--vectors", "v.npy"], "No such option"),
        (["--checkpoints", "MODEL,/no/such/folder"], "no such directory"),
    ],
)
def test_what_a_user_can_mend(small, model, tmp_path, capsys, flags, says):
    if "OTHER" in flags[1]:
        models.save("roberta", tmp_path / "OTHER")
    if "DEEPER" in flags[1]:
        models.save("bert", tmp_path / "DEEPER", layers=3)
    places = {"MODEL": str(model), "OTHER": str(tmp_path / "OTHER"), "DEEPER": str(tmp_path / "DEEPER")}
    given = [",".join(places.get(name, name) for name in flag.split(",")) for flag in flags]
    capsys.readouterr()
    assert small(*given, "--out", str(tmp_path / "out")) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert not (tmp_path / "out").exists()


def test_fewer_texts_than_a_batch_and_no_room_are_one_line(small, tmp_path, capsys, monkeypatch):
    from clsprobe.probes.training import checkpoint

    capsys.readouterr()
    assert small("--max-texts", "40", "--out", str(tmp_path / "few")) == 2
    assert "fewer than a batch of 32" in capsys.readouterr().err
    disk_usage = checkpoint.shutil.disk_usage
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: type("usage", (), {"free": 10})())
    few = ["--readouts", "cls,mean", "--rates", "1e-3"]
    assert small(*few, "--out", str(tmp_path / "full")) == 2
    assert "no room for checkpoints" in capsys.readouterr().err
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", disk_usage)
    assert small(*few, "--out", str(tmp_path / "full")) == 0


def test_without_arguments_it_is_quick():
    planned = FineTuning().plan
    assert (len(planned.readouts), len(planned.rates), planned.seeds, planned.train_texts) == (4, 2, [0, 1], 500)
    planned = FineTuning(task="file:trec").plan
    assert (len(planned.readouts), len(planned.rates), planned.seeds, planned.train_texts) == (10, 2, [0, 1, 2], 2000)
    assert FineTuning(task="file:trec", quick=True, seeds=4).plan.seeds == [0, 1, 2, 3]
    lines = FineTuning().prepare()
    assert any("at least 16 trainings" in line for line in lines)


def test_a_default_readout_that_the_encoder_cannot_move_is_left_out(tmp_path):
    """BART takes no position ids: named, `cls@last` is an error; by default it is left out, and a note says so."""
    encoder = load_encoder(models.save("bart", tmp_path / "MODEL"), device="cpu")
    named = Plan(["cls", "mean", "cls@last"], [1e-4], [0], 32, 1, 0)
    chosen, notes = measure._choose_readouts(encoder, named, is_default=True)
    assert chosen.readouts == ["cls", "mean"]
    (note,) = notes
    assert note.startswith("cls@last is left out: the other tokens cannot keep their positions in ")
    with pytest.raises(InputError, match="cannot keep their positions"):
        measure._choose_readouts(encoder, named, is_default=False)
