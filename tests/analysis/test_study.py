"""Verdicts of the studies on constructed predictions, and answers saved and restored."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from house import ROOT
from tables import first, measured, predictions

from clsprobe.aggregate import Aggregate
from clsprobe.analysis.study import Answer, Exhibit, Verdict
from clsprobe.order import Order
from clsprobe.poolings import Poolings
from clsprobe.positions import Positions
from clsprobe.probes.errors import InputError
from clsprobe.run import Run


@pytest.mark.parametrize(
    ("effect", "low", "high", "threshold", "outcome"),
    [
        (0.05, 0.01, 0.09, 0.0, "yes"),
        (0.05, -0.01, 0.09, 0.0, "undecided"),
        (-0.01, -0.015, 0.0, -0.02, "yes"),  # no worse than the margin allows
        (-0.03, -0.05, -0.01, -0.02, "undecided"),
        (-0.06, -0.08, -0.04, -0.02, "no"),
    ],
)
def test_a_verdict_depends_on_the_whole_interval(effect, low, high, threshold, outcome):
    assert Verdict.decide("", effect, low, high, threshold=threshold).outcome == outcome


def test_tasks_that_disagree_are_undecided():
    yes = Verdict("yes", "", 0.1, 0.05, 0.2)
    no = Verdict("no", "", -0.1, -0.2, -0.05)
    verdict = Verdict.over({"a": yes, "b": no})
    assert verdict.outcome == "undecided"
    assert verdict.because == "Of 2 tasks: yes on 1, no on 1."
    assert (verdict.low, verdict.high) == (-0.2, 0.2)
    assert Verdict.over({"a": yes, "b": yes}).outcome == "yes"
    assert Verdict.over({"a": no}) == no


def make_predictions(cls: float, mean: float, token: float = 0.5, bag: float = 0.6, task: str = "file:made:label"):
    return predictions(
        {
            ("none", 3, "cls"): (first(cls), first(cls)),
            ("none", 3, "mean"): (first(mean), first(mean)),
            ("none", 3, "token[1]"): (first(token), first(token)),
            ("bag_of_words", -1, "none"): (first(bag), first(bag)),
        },
        task=task,
    )


@pytest.mark.parametrize(("mean", "outcome"), [(0.9, "yes"), (0.89, "undecided"), (0.7, "no")])
def test_poolings_judges_mean_against_cls(mean, outcome):
    verdict = Poolings().judge(make_predictions(0.9, mean))
    assert verdict.outcome == outcome
    assert verdict.effect == pytest.approx(mean - 0.9)
    assert verdict.low <= verdict.effect <= verdict.high


def test_positions_judges_the_position_chosen_on_dev():
    rows = predictions(
        {
            ("none", 3, "cls"): (first(0.9), first(0.9)),
            ("none", 3, "sep"): (first(0.8), first(0.99)),
            ("none", 3, "token[1]"): (first(0.85), first(0.7)),
        }
    )
    verdict = Positions().judge(rows)
    assert verdict.outcome == "no"
    assert "token[1] at layer 3 gets 0.700" in verdict.because


def test_run_judges_cls_against_the_best_baseline():
    assert Run().judge(make_predictions(0.9, 0.5)).outcome == "yes"
    assert Run().judge(make_predictions(0.6, 0.9, bag=0.6)).outcome == "undecided"
    assert Run().judge(make_predictions(0.5, 0.9, bag=0.7)).outcome == "no"


def test_the_untrained_encoder_is_compared_with_the_same_probe():
    rows = predictions(
        {("none", 3, "cls"): (first(0.8), first(0.8)), ("untrained", 3, "cls"): (first(0.6), first(0.6))}
    )
    other_probe = rows.assign(probe="other:Probe")
    other_probe.loc[other_probe.control == "untrained", "predicted"] = other_probe.label  # always right
    verdict = Run(probes="logistic,other:Probe").judge(pd.concat([rows, other_probe]))
    assert (verdict.outcome, round(verdict.effect, 3)) == ("yes", 0.2)


def test_the_page_notes_where_the_last_layer_is_worse():
    rows = predictions(
        {
            ("none", 5, "cls"): (first(0.94), first(0.94)),
            ("none", 6, "cls"): (first(0.75), first(0.75)),
            ("majority", -1, "none"): (first(0.2), first(0.2)),
        }
    )
    (note,) = Run().note(measured(predictions=rows))
    assert "made: label: cls 0.750 at the last layer (6), 0.940 at the one that dev chooses (5)" in note
    assert Run().note(measured(predictions=rows[rows.layer < 6])) == []


def test_several_tasks_are_judged_separately():
    rows = pd.concat([make_predictions(0.9, 0.9), make_predictions(0.9, 0.7, task="file:other:label")])
    verdict = Poolings().verdict(measured(predictions=rows))
    assert {task: part.outcome for task, part in verdict.parts.items()} == {
        "file:made:label": "yes",
        "file:other:label": "no",
    }
    assert verdict.outcome == "undecided"


@pytest.mark.parametrize(
    ("cls", "mean", "bag", "outcome"),
    [
        (0.9, 0.9, 0.6, "yes"),
        (0.9, 0.9, 0.95, "no"),  # a bag of words is better
        (0.7, 0.9, 0.5, "no"),  # the mean is better
        (0.9, 0.9, 0.89, "undecided"),  # not significantly better than a bag of words
        (0.9, 0.91, 0.6, "undecided"),
    ],
)
def test_aggregate_compares_cls_with_the_baselines_and_the_mean(cls, mean, bag, outcome):
    assert Aggregate().judge(make_predictions(cls, mean, bag=bag)).outcome == outcome


@pytest.mark.parametrize(("flat", "outcome"), [(0.8, "yes"), (0.5, "undecided"), (0.3, "no")])
def test_order_compares_flattening_with_baselines_without_order(flat, outcome):
    rows = predictions(
        {
            ("none", 2, "cls"): (first(0.9), first(0.9)),
            ("none", 2, "flatten_projected"): (first(flat), first(flat)),
            ("none", 2, "flatten"): (first(0.95), first(0.95)),  # more capacity: not judged
            ("bag_of_words", -1, "none"): (first(0.5), first(0.5)),
            ("untrained", 2, "cls"): (first(0.99), first(0.99)),  # it sees order, so it is not a baseline
        }
    )
    assert Order().judge(rows).outcome == outcome
    for exhibit in Order().show(measured(predictions=rows), "file:made:label"):
        exhibit.draw()


@pytest.mark.parametrize("study", [Positions, Poolings, Aggregate])
def test_judging_and_showing_are_pure(study):
    rows = make_predictions(0.9, 0.8)
    before = rows.copy()
    first_verdict, exhibits = study().judge(rows), study().show(measured(predictions=rows), "file:made:label")
    assert study().judge(rows) == first_verdict
    pd.testing.assert_frame_equal(rows, before)
    for exhibit in exhibits:
        exhibit.draw()


def test_a_comparison_without_another_readout_is_an_error():
    with pytest.raises(InputError, match="Name cls and another one"):
        Poolings(readouts="cls,max")


def test_a_saved_answer_is_restored(tmp_path):
    rows = make_predictions(0.9, 0.8)
    study = Poolings()
    answer = Answer(
        study.question,
        study.claim,
        study.judge(rows),
        tuple(study.show(measured(predictions=rows), "file:made:label")),
        ("a note",),
        {"Settings": {"a": 1}},
    )
    answer.save(tmp_path / "poolings.json")
    restored = Answer.load(tmp_path / "poolings.json")
    assert (restored.question, restored.claim, restored.verdict, restored.notes) == (
        answer.question, answer.claim, answer.verdict, answer.notes
    )  # fmt: skip
    assert restored.settings == answer.settings
    for exhibit, loaded in zip(answer.exhibits, restored.exhibits, strict=True):
        pd.testing.assert_frame_equal(exhibit.table, loaded.table, check_dtype=False)
        loaded.draw()
    assert "Is mean pooling inferior" in restored._repr_html_()


def test_a_notebook_escapes_data():
    hostile = "<script>alert(1)</script>"
    table = pd.DataFrame({"name": [hostile], "effect": [0.1], "low": [0.0], "high": [0.2], "outcome": ["yes"]})
    exhibit = Exhibit(hostile, table, "differences", {"margin": 0.02, "metric": "accuracy"})
    answer = Answer(hostile, hostile, Verdict("yes", hostile, 0.1, 0.0, 0.2), (exhibit,))
    assert "<script" not in answer._repr_html_()


def test_drawing_a_table_without_a_plot_is_an_error():
    with pytest.raises(ValueError, match="without a plot"):
        Exhibit("numbers", pd.DataFrame({"a": np.arange(3)})).draw()


def test_judging_needs_no_torch():
    code = (
        "import sys\nsys.path.insert(0, 'tests/support')\nfrom tables import *\n"
        "from clsprobe.poolings import Poolings\n"
        "t = predictions({('none', 3, r): (first(s), first(s)) for r, s in (('cls', .9), ('mean', .8))})\n"
        "Poolings().judge(t); sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
