"""From estimates to outcomes: parts of a claim, tasks, the answers of a page, and the words for them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from clsprobe.analysis import stats
from clsprobe.analysis.verdict import (
    NormalEstimate,
    Part,
    Verdict,
    describe_need,
    difference_in_words,
    holm,
    points,
    pool,
)


def make_part(effect: float, error: float = 0.01, threshold: float = 0.0, name: str = "a rival") -> Part:
    half = 1.96 * error
    return Part.from_interval(name, effect, effect - half, effect + half, threshold)


def judge(*parts: Part, **fields) -> Verdict:
    return Verdict.of(parts, lambda outcome, part: f"{part.name} by {points(part.effect)}", **fields)


@pytest.mark.parametrize(
    ("effect", "low", "high", "threshold", "outcome"),
    [
        (0.05, 0.01, 0.09, 0.0, "yes"),
        (0.05, -0.01, 0.09, 0.0, "undecided"),
        (-0.01, -0.015, 0.0, -0.02, "yes"),  # no worse than the margin allows
        (-0.03, -0.05, -0.01, -0.02, "undecided"),
        (-0.06, -0.08, -0.04, -0.02, "no"),
        (0.0, 0.0, 0.0, 0.0, "undecided"),  # an interval without width
        (0.1, 0.1, 0.1, 0.0, "yes"),
    ],
)
def test_a_part_depends_on_the_whole_interval(effect, low, high, threshold, outcome):
    assert Part.from_interval("", effect, low, high, threshold).outcome == outcome


def test_the_p_of_a_part_is_that_of_its_interval():
    part = make_part(0.03, 0.01, 0.005)
    assert part.p_yes == pytest.approx(scipy_stats.norm.sf(2.5), rel=1e-3)
    assert part.p_no == pytest.approx(1 - part.p_yes)
    estimate = NormalEstimate(0.03, 0.01, 0.05)
    assert estimate.interval() == pytest.approx((0.01, 0.05))
    assert estimate.interval(0.005)[0] < 0.01
    random = np.random.default_rng(0)
    a, b = (random.random((1, 300)) < share for share in (0.8, 0.7))
    difference = stats.compare(a.astype(float), b.astype(float))
    low, high = difference.interval()
    assert difference.p_above(low) == pytest.approx(0.025)
    assert difference.p_below(high) == pytest.approx(0.025)


def test_yes_needs_every_part():
    assert judge(make_part(0.05), make_part(0.03)).outcome == "yes"
    assert judge(make_part(0.05), make_part(0.01)).outcome == "undecided"
    assert judge(make_part(0.05), make_part(0.03), turned=True).outcome == "no"


def test_no_needs_one_part_that_fails_after_holm():
    fails = make_part(-0.021)  # p 0.018: enough alone
    assert judge(fails).outcome == "no"
    assert judge(fails, make_part(0.05)).outcome == "undecided"
    assert judge(make_part(-0.025), make_part(0.05)).outcome == "no"
    verdict = judge(make_part(-0.05, name="the worst"), make_part(0.05), make_part(0.05))
    assert verdict.sentence == "No: the worst by -5.0."
    assert verdict.low < -0.05 - 1.96 * 0.01  # it was chosen because it fails: simultaneous over three
    assert judge(make_part(-0.05), make_part(0.05), turned=True).outcome == "yes"


def test_the_weakest_part_is_named():
    verdict = judge(make_part(0.09, name="far"), make_part(0.05, name="close"))
    assert verdict.sentence == "Yes: close by 5.0."
    assert verdict.effect == 0.05
    assert judge(make_part(0.05), is_open=True).sentence == "A rival by 5.0."


def test_holm_is_the_step_down():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


# ------------------------------------------------------------------------------------------------------------- tasks


def unite(*effects: float, **more) -> Verdict:
    tasks = {
        f"file:{name}:label": judge(make_part(effect), estimand="mean minus cls", brief=f"{name} {effect:+}", texts=100)
        for name, effect in zip("abcde", effects, strict=False)
    }
    return Verdict.over(tasks, **more)


@pytest.mark.parametrize(
    ("effects", "outcome", "start"),
    [
        ((0.05, 0.04, 0.05), "yes", "Yes, on all 3 tasks. A +0.05; b +0.04; c +0.05."),
        ((-0.05, -0.04), "no", "No, on both tasks. "),
        ((0.05, -0.05, 0.0), "mixed", "Mixed: of 3 tasks yes on 1 (a: label), no on 1 (b: label), undecided on 1 (c: "),
        ((0.05, 0.05, 0.0), "undecided", "Undecided: of 3 tasks yes on 2 (a: label, b: label), undecided on 1 (c: lab"),
        ((0.021, -0.021, 0.0), "undecided", "Undecided: of 3 tasks yes on 1"),  # not after Holm over the tasks
    ],
)
def test_tasks_are_united(effects, outcome, start):
    verdict = unite(*effects)
    assert verdict.outcome == outcome
    assert verdict.sentence.startswith(start)
    assert verdict.p == pytest.approx(
        2 * min(verdict.p_yes, verdict.p_no, verdict.p_mixed) if verdict.outcome != "undecided" else verdict.p
    )
    assert (verdict.p < 0.05) == (outcome != "undecided")


def test_one_task_is_its_own_verdict():
    assert unite(0.05).sentence == "Yes: a rival by 5.0."


def test_a_task_that_is_left_out_does_not_count():
    tasks = {"x:a": judge(make_part(0.05)), "x:b": judge(make_part(-0.05)).left_out("length alone solves b")}
    verdict = Verdict.over(tasks)
    assert verdict.outcome == "yes"
    assert verdict.sentence == "Yes: of 2 tasks yes on 1 (a), left out on 1 (b)."
    assert tasks["x:b"].sentence == "Left out: length alone solves b."
    alone = Verdict.over({"x:b": tasks["x:b"]})
    assert (alone.outcome, alone.label, alone.p) == ("undecided", "left out", 1.0)


def test_a_task_without_an_answer_keeps_the_others_undecided():
    verdict = Verdict.over({"x:a": judge(make_part(0.05)), "x:b": Verdict.unjudged("Not answered.")})
    assert verdict.outcome == "undecided"
    assert verdict.sentence == "Undecided: of 2 tasks yes on 1 (a), not answered on 1 (b)."
    nothing = Verdict.over({"x:a": Verdict.unjudged("Not answered."), "x:b": Verdict.unjudged("Not answered.")})
    assert not nothing.is_judged


def test_an_open_question_is_answered_by_what_was_found():
    tasks = {
        f"x:{name}": judge(make_part(effect), is_open=True, brief=f"{name} {effect:.2f}")
        for name, effect in {"a": 0.05, "b": 0.0}.items()
    }
    verdict = Verdict.over(tasks, opening="Read on test", statements={"yes": "more", "undecided": "perhaps more"})
    assert verdict.sentence == "More on a; perhaps more on b. Read on test: a 0.05; b 0.00."
    assert verdict.label == "described"


def test_effects_are_averaged_only_where_they_are_of_one_kind():
    assert unite(0.05, 0.04, 0.06).effect == pytest.approx(0.05)
    assert math.isnan(unite(0.05, 0.04).effect)  # two say too little of others
    mixed = {"x:a": judge(make_part(0.05), estimand="one"), "x:b": judge(make_part(0.05), estimand="another")}
    assert math.isnan(Verdict.over(mixed | {"x:c": judge(make_part(0.05), estimand="one")}).effect)


def test_a_random_effects_mean_by_hand():
    """Three effects with standard errors of 0.1: tau^2 by DerSimonian & Laird, the interval with t of 2 degrees."""
    values, error = np.array([0.0, 0.3, 0.6]), 0.1
    mean, low, high = pool([(v, v - 1.959964 * error, v + 1.959964 * error) for v in values])
    between = ((values - 0.3) ** 2).sum() / 2 - error**2
    total = error**2 + between
    assert mean == pytest.approx(0.3)
    assert high - mean == pytest.approx(4.302653 * np.sqrt(total / 3), rel=1e-4)
    assert low == pytest.approx(0.6 - high)
    same = pool([(0.1, 0.1 - 0.196, 0.1 + 0.196)] * 4)  # no narrower than without the correction
    assert same[2] - same[0] == pytest.approx(scipy_stats.t.isf(0.025, 3) * 0.1 / 2, rel=1e-3)


@pytest.mark.parametrize("spread", [0.0, 0.03])
def test_a_random_effects_interval_covers_the_mean_of_all_tasks(spread):
    random, covered = np.random.default_rng(0), 0
    for _ in range(400):
        truths = 0.02 + spread * random.normal(size=5)
        errors = random.uniform(0.005, 0.03, 5)
        values = truths + errors * random.normal(size=5)
        _, low, high = pool([(v, v - 1.96 * e, v + 1.96 * e) for v, e in zip(values, errors, strict=True)])
        covered += low <= 0.02 <= high
    assert covered >= 0.92 * 400


# -------------------------------------------------------------------------------------------------------------- page


def test_the_answers_of_a_page_are_corrected():
    weak, open_question = judge(make_part(0.022)), judge(make_part(0.022), is_open=True)
    assert weak.outcome == "yes"
    left = weak.corrected(4 * weak.p, 4)
    assert left.outcome == "undecided"
    assert left.sentence.startswith("Undecided: not certain among the 4 answers of this page (Holm, p = 0.11). By itse")
    assert left.sentence.endswith("By itself: Yes: a rival by 2.2.")
    assert open_question.corrected(0.2, 4).sentence.startswith("Not certain among the 4 answers")
    strong = judge(make_part(0.09))
    assert strong.corrected(4 * strong.p, 4) is strong


# -------------------------------------------------------------------------------------------------------------- words


def test_the_number_of_texts_that_would_decide():
    """Half the interval is 1.96 errors, which shrink with the root of the number."""
    verdict = judge(make_part(0.01, 0.01), texts=500)
    assert verdict.needed == math.ceil(500 * 1.96**2)
    assert describe_need(verdict) == "About 1,900 test texts could decide at this effect (500 were used)."
    assert judge(make_part(0.01, 0.01, threshold=0.02), texts=500).needed == verdict.needed
    two = judge(make_part(0.01, 0.01), make_part(0.005, 0.01), texts=500)
    assert two.needed == math.ceil(500 * (1.96 * 2) ** 2)  # both must pass
    assert "More than 1,000,000 test texts" in describe_need(judge(make_part(1e-6), texts=500))
    assert describe_need(judge(make_part(0.05), texts=500)) == ""


def make_estimate(effect: float, test: float, training: float) -> stats.Difference:
    """An effect with these standard errors of the test texts and of the training texts, and a normal interval."""
    variance = {"texts": test**2, "training": training**2}
    return stats.Difference(effect, effect, variance, dict.fromkeys(variance, 1e9))


def judge_estimates(*estimates: stats.Difference, texts: int = 500, training_texts: int = 150) -> Verdict:
    parts = [Part.of("a rival", estimate) for estimate in estimates]
    return judge(*parts, texts=texts, training_texts=training_texts)


@pytest.mark.parametrize(
    ("test", "training", "texts", "sentence"),
    [
        (0.01, 0.0001, 500, "About 1,900 test texts could decide at this effect (500 were used)."),
        (
            0.008,
            0.004,
            500,
            "About 3,200 test texts could decide at this effect with 150 training texts (500 were used); about 3.1 "
            "times as many of both could (460 training and 1,500 test texts).",
        ),
        (
            0.004,
            0.01,
            500,
            "No number of test texts would decide at this effect with 150 training texts; about 4.5 times as many of "
            "both could (670 training and 2,200 test texts).",
        ),
        (
            0.0016,
            0.004994,
            5000,
            "About 12,000 test texts could decide at this effect with 150 training texts (5,000 were used); about 1.1 "
            "times as many of both could (160 training and 5,500 test texts).",
        ),
        (
            0.02,
            0.005,
            50_000,
            "Fewer than 1,000,000 test texts would not decide at this effect with 150 training texts; about 16 times "
            "as many of both could (2,400 training and 820,000 test texts).",
        ),
        (1.0, 0.1, 500, "More than 1,000,000 test texts, or more seeds, would be needed to decide at this effect."),
    ],
)
def test_the_number_of_training_texts_that_would_decide(test, training, texts, sentence):
    """Both variances shrink with the number of their texts; alone, that of the test texts leaves the other."""
    verdict = judge_estimates(make_estimate(0.01, test, training), texts=texts)
    assert verdict.times_needed == pytest.approx(1.959964**2 * (test**2 + training**2) / 0.01**2, rel=1e-4)
    left = (0.01 / 1.959964) ** 2 - training**2
    assert verdict.needed == (pytest.approx(texts * test**2 / left, rel=1e-3) if left > 0 else math.inf)
    assert describe_need(verdict) == sentence
    assert verdict.is_decidable == (not sentence.startswith("More"))


def test_every_part_counts_for_the_number_of_training_texts():
    """All have to hold, or one has to fail among all."""
    near, far = make_estimate(0.005, 0.004, 0.004), make_estimate(0.01, 0.004, 0.004)
    assert judge_estimates(near, far).times_needed == judge_estimates(near).times_needed
    fails = judge_estimates(make_estimate(-0.01, 0.004, 0.004), far)
    assert fails.times_needed == pytest.approx(scipy_stats.norm.isf(0.0125) ** 2 * 0.32, rel=1e-4)


def test_what_is_undecided_needs_more_than_was_used():
    """The centre of the interval of 20 texts is nearer to 0 than the effect, which it would seem to exclude."""
    right = np.r_[np.ones(5), np.zeros(15)]
    verdict = judge(Part.of("", stats.compare(right[None], np.zeros((1, 20)))), texts=20)
    assert verdict.outcome == "undecided"
    assert (verdict.needed, verdict.times_needed) == (21, 21 / 20)
    assert describe_need(verdict) == "About 21 test texts could decide at this effect (20 were used)."
    for texts in range(1, 30):
        assert "training" not in describe_need(judge(make_part(0.01, 0.0052), texts=texts))


def test_millions_of_training_texts_are_named_and_not_recommended():
    verdict = judge_estimates(make_estimate(0.01, 0.001, 0.01), training_texts=500_000)
    assert describe_need(verdict).endswith(
        "about 3.9 times as many of both could (1,900,000 training and 1,900 test texts)."
    )
    assert not verdict.is_decidable


def test_a_part_has_the_interval_of_its_fitted_probes_too():
    part = Part.of("", make_estimate(0.1, 0.01, 0.02))
    assert (part.low_of_fits, part.high_of_fits) == pytest.approx((0.1 - 0.0196, 0.1 + 0.0196), abs=1e-5)
    assert (part.low, part.high) == pytest.approx(
        (0.1 - 1.96 * math.sqrt(5) * 0.01, 0.1 + 1.96 * math.sqrt(5) * 0.01), abs=1e-5
    )
    same = make_part(0.1)
    assert (same.low, same.high) == (same.low_of_fits, same.high_of_fits)
    assert part.simultaneous(3).low < part.low


def test_several_tasks_say_what_the_intervals_of_each_are_about():
    tasks = {
        f"x:{name}": judge(make_part(0.05), interval_of=of)
        for name, of in zip("abcd", ("", "A", "B", "A"), strict=True)
    }
    assert Verdict.over(tasks).interval_of == "A (b, d); B (c)"
    del tasks["x:c"]
    assert Verdict.over(tasks).interval_of == "A"


def test_no_number_of_texts_decides_where_a_part_cannot_pass():
    """A readout that predicts one class has p 1, whatever its effect."""
    cannot_hold, cannot_fail = (
        dataclasses.replace(make_part(e), **{p: 1.0}) for e, p in ((0.05, "p_yes"), (-0.05, "p_no"))
    )
    for part in (cannot_hold, cannot_fail):
        verdict = judge(part, texts=500)
        assert (verdict.outcome, describe_need(verdict)) == ("undecided", "")
    both = judge(cannot_hold, make_part(-0.01, 0.01), texts=500)  # the other may still fail
    assert both.needed == judge(make_part(0.05), make_part(-0.01, 0.01), texts=500).needed
    assert judge(cannot_hold, dataclasses.replace(make_part(0.0, name="the closest"), p_yes=1.0)).sentence == (
        "Undecided: the closest by 0.0."
    )


@pytest.mark.parametrize(
    ("effect", "low", "high", "over", "words"),
    [
        (0.04, 0.001, 0.08, None, "a is better than b by 4.0 points (0.1 to 8.0)"),
        (-0.04, -0.08, -0.001, None, "a is worse than b by 4.0 points (0.1 to 8.0)"),
        (
            -0.04,
            -0.08,
            -0.001,
            (-0.1, 0.02),
            "a is worse than b by 4.0 points (0.1 to 8.0; -2.0 to 10.0 over these laye",
        ),
        (0.0004, -0.01, 0.02, None, "a minus b is 0.0 points (-1.0 to +2.0)"),
    ],
)
def test_differences_in_words(effect, low, high, over, words):
    assert difference_in_words("a", "b", Part.from_interval("", effect, low, high), over).startswith(words)
