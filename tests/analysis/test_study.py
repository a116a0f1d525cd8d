"""Verdicts of the studies on constructed predictions, and answers saved and restored."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from house import ROOT
from tables import first, judge, measured, predictions

from clsprobe.aggregate import Aggregate
from clsprobe.analysis import stats
from clsprobe.analysis.answer import Answer, Exhibit, correct_answers
from clsprobe.analysis.verdict import Part, Verdict, warn_of_few_texts
from clsprobe.order import Order
from clsprobe.poolings import Poolings
from clsprobe.positions import Positions
from clsprobe.probes.errors import InputError
from clsprobe.run import Run


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


@pytest.mark.parametrize(("mean", "outcome"), [(0.95, "no"), (0.9, "no"), (0.89, "undecided"), (0.7, "yes")])
def test_poolings_asks_whether_mean_is_inferior(mean, outcome):
    verdict = judge(Poolings(), make_predictions(0.9, mean))
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
    verdict = judge(Positions(), rows)
    assert verdict.outcome == "no"
    assert verdict.label == "described"  # why is no yes-or-no question
    assert verdict.sentence.startswith(
        "On made: label, token[1] (layer 3) is worse than [CLS] (layer 3) by 20.0 points"
    )


def test_run_judges_cls_against_every_baseline():
    assert judge(Run(), make_predictions(0.9, 0.5)).outcome == "yes"
    assert judge(Run(), make_predictions(0.6, 0.9, bag=0.6)).outcome == "undecided"
    assert judge(Run(), make_predictions(0.5, 0.9, bag=0.7)).outcome == "no"


def test_the_untrained_encoder_is_compared_with_the_same_probe():
    rows = predictions(
        {("none", 3, "cls"): (first(0.8), first(0.8)), ("untrained", 3, "cls"): (first(0.6), first(0.6))}
    )
    other_probe = rows.assign(probe="other:Probe")
    other_probe.loc[other_probe.control == "untrained", "predicted"] = other_probe.label  # always right
    verdict = judge(Run(probes="logistic,other:Probe"), pd.concat([rows, other_probe]))
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
        "file:made:label": "no",
        "file:other:label": "yes",
    }
    assert verdict.outcome == "mixed"
    assert verdict.sentence.startswith(
        "Mixed: of 2 tasks yes on 1 (other: label), no on 1 (made: label). Mean pooling minus [CLS], "
    )


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
    assert judge(Aggregate(), make_predictions(cls, mean, bag=bag)).outcome == outcome


@pytest.mark.parametrize(("flat", "outcome"), [(0.8, "no"), (0.52, "undecided"), (0.3, "yes")])
def test_order_asks_whether_flattening_destroys_it(flat, outcome):
    rows = predictions(
        {
            ("none", 2, "cls"): (first(0.9), first(0.9)),
            ("none", 2, "flatten_projected"): (first(flat), first(flat)),
            ("none", 2, "flatten"): (first(0.95), first(0.95)),  # more capacity: not judged
            ("bag_of_words", -1, "none"): (first(0.5), first(0.5)),
            ("untrained", 2, "cls"): (first(0.99), first(0.99)),  # it sees order, so it is not a baseline
        }
    )
    assert judge(Order(), rows).outcome == outcome
    for exhibit in Order().show(measured(predictions=rows), "file:made:label"):
        exhibit.draw()


def of_one_class(share: float, task: str = "file:made:label") -> pd.DataFrame:
    """[CLS] predicts one class, which `share` of the test texts have; a bag of words was the better one on dev."""
    n = 400
    of_class = np.arange(n) < share * n
    rows = predictions(
        {
            ("none", 3, "cls"): (first(0.6), of_class),
            ("none", 3, "mean"): (first(0.6), of_class),
            ("bag_of_words", -1, "none"): (first(0.7), first(0.5)),
        },
        task=task,
    )
    label = np.where(of_class, "a", "b")
    test = rows.split == "test"
    correct = (rows.label == rows.predicted)[test].to_numpy()
    rows.loc[test, "label"] = np.tile(label, 3)
    rows.loc[test, "predicted"] = np.where(correct, rows.label[test], np.where(rows.label[test] == "a", "b", "a"))
    return rows


def test_a_readout_of_one_class_gets_no_yes():
    """As on a shifted test set: better than the baseline that dev chose, but not than the class itself."""
    rows = of_one_class(0.7)
    assert rows[(rows.split == "test") & (rows.readout == "cls")].predicted.nunique() == 1
    assert (
        stats.paired_difference(
            stats.correctness(rows, control="none", readout="cls"), stats.correctness(rows, control="bag_of_words")
        )[1]
        > 0.1
    )  # what dev's baseline alone would say
    for study in (Run(), Aggregate(), Poolings()):
        verdict = judge(study, rows)
        assert verdict.outcome == "undecided"
        assert "On made: label, [CLS] (layer 3) predicts one class for all 400 test texts." in verdict.warnings


def test_the_best_class_of_test_is_a_baseline():
    rows = make_predictions(0.72, 0.7, bag=0.5)
    test = rows.split == "test"
    rows.loc[test & (rows.row < 1280), "label"] = "a"  # 70 % and more are of one class
    parts = {part.name: part for part in judge(Run(), rows).comparisons}
    share = (rows[test].drop_duplicates("row").label == "a").mean()
    right = (rows.label == rows.predicted)[test & (rows.readout == "cls")].mean()
    assert parts["the best single class"].effect == pytest.approx(right - share)


def test_a_task_that_a_baseline_solves_by_construction_is_left_out():
    rows = pd.concat([make_predictions(0.9, 0.9), make_predictions(0.9, 0.9, task="file:other:label")])
    tables = measured(predictions=rows)
    tables = dataclasses.replace(tables, facts={**tables.facts, "solved": {"file:other:label": ["bag_of_words"]}})
    answer = Aggregate().answer(tables)
    assert answer.verdict.outcome == "yes"
    assert answer.verdict.parts["file:other:label"].label == "left out"
    reason = "by construction other: label asks for what the baseline bag of words reads"
    assert answer.verdict.parts["file:other:label"].sentence == f"Left out: {reason}."
    assert Poolings().answer(tables).verdict.parts["file:other:label"].label == "no"  # compares readouts only


def test_order_leaves_out_a_task_that_is_solved_without_it():
    rows = predictions(
        {
            ("none", 2, "cls"): (first(0.9), first(0.9)),
            ("none", 2, "flatten_projected"): (first(0.99), first(0.99)),
            ("bag_of_words", -1, "none"): (first(0.8), first(0.8)),
        }
    )
    verdict = judge(Order(), rows)
    assert verdict.label == "left out"
    assert verdict.sentence == "Left out: bag of words solves made: label without order (0.800)."


def test_untrained_encoders_are_a_mean_of_three_or_as_drawn():
    cells = {("none", 3, "cls"): (first(0.9), first(0.9)), ("untrained", 3, "cls"): (first(0.6), first(0.6))}
    for seeds, name in ((1, "untrained encoder (as drawn)"), (3, "untrained encoder (mean of 3 draws)")):
        rows = pd.concat([predictions(cells, seed=seed) for seed in range(seeds)], ignore_index=True)
        assert any(part.name.startswith(name) for part in judge(Run(), rows).comparisons)


def test_layers_that_dev_cannot_tell_apart_are_all_named():
    cells = {
        ("none", layer, "cls"): (first(dev, 150), first(test))
        for layer, dev, test in ((1, 0.9, 0.8), (2, 0.5, 0.5), (4, 0.9, 0.82), (5, 0.907, 0.85), (6, 0.9, 0.9))
    }
    rows = predictions(cells | {("none", 3, "mean"): (first(0.9, 150), first(0.9))})
    verdict = judge(Poolings(), rows)
    assert verdict.sentence.startswith(
        "No: on made: label, mean pooling (layer 3) is better than [CLS] (layers 1, 4 to 6) by 5.0 points (2"
    )
    assert "; 0.0 to 10.0 over these layers)" in verdict.sentence


def test_few_test_texts_are_said_first():
    rows = predictions({("none", 3, name): (first(0.9, 40), first(0.9, 40)) for name in ("cls", "mean")})
    (warning,) = judge(Poolings(), rows).warnings
    assert warning == "Only 40 test texts on made: label: every figure may be far from what more texts would give."
    assert warn_of_few_texts(1) == ("Only 1 test text: every figure may be far from what more texts would give.",)


def test_vectors_of_a_file_are_called_by_its_name():
    rows = predictions(
        {("none", 1, "vector"): (first(0.9), first(0.9)), ("majority", -1, "none"): (first(0.5), first(0.5))}
    )
    tables = measured(predictions=rows.assign(model="v.npy"))
    tables = dataclasses.replace(tables, facts={**tables.facts, "model": {"model": "v.npy"}})
    answer = Run(vectors="v.npy").answer(tables)
    assert answer.question == "What do the vectors of v.npy know?"
    assert answer.verdict.sentence.startswith(
        "On made: label, the vector in v.npy gets 0.900 of the test texts right, more"
    )
    assert "layer 1" not in answer.verdict.sentence


def test_what_is_undecided_comes_with_the_command_that_decides():
    rows = make_predictions(0.9, 0.89, task="grammar:tense")
    answer = Poolings(task="grammar:tense", layers="3").answer(measured(predictions=rows))
    needed, command = re.fullmatch(
        r"About ([\d,]+) test texts could .* Try: (clsprobe .*)", answer.verdict.advice
    ).groups()
    size = int(re.search(r"tense:(\d+)", command)[1])
    assert command == f"clsprobe poolings --task grammar:tense:{size} --layers 3 --out out/poolings-more"
    assert size / 3 == pytest.approx(int(needed.replace(",", "")) / 400 * 1000, rel=0.1)
    of_file = Poolings(task="file:a.csv", max_texts=100).answer(measured(predictions=make_predictions(0.9, 0.89)))
    assert "If the source has so many, try: clsprobe poolings --task file:a.csv --max-texts" in of_file.verdict.advice
    own = Poolings(task="file:a.csv").answer(measured(predictions=make_predictions(0.9, 0.89)))
    assert own.verdict.advice.endswith("Add texts to the source, and run the same command with --overwrite.")


def test_the_answers_of_a_run_are_corrected_for_their_number():
    tables = measured(predictions=make_predictions(0.9, 0.9, bag=0.872))
    answers = correct_answers({"a": Aggregate().answer(tables), "b": Poolings().answer(tables)})
    p = [answer.verdict.p for answer in answers.values()]
    assert [answer.p for answer in answers.values()] == pytest.approx(stats_of_holm(p))
    assert all(answer.answers == 2 for answer in answers.values())


def test_an_answer_that_decides_nothing_is_not_among_those_that_are_corrected_for():
    tables = measured(predictions=make_predictions(0.9, 0.9))
    tables = dataclasses.replace(tables, facts={**tables.facts, "solved": {"file:made:label": ["length"]}})
    answers = correct_answers({"a": Aggregate().answer(tables), "b": Poolings().answer(tables)})
    assert [answer.answers for answer in answers.values()] == [1, 1]
    assert np.isnan(answers["a"].p)
    assert answers["b"].p == answers["b"].verdict.p


def stats_of_holm(p: list[float]) -> list[float]:
    smaller, larger = sorted(p)
    adjusted = {smaller: min(2 * smaller, 1), larger: max(min(2 * smaller, 1), larger)}
    return [adjusted[value] for value in p]


@pytest.mark.parametrize("study", [Positions, Poolings, Aggregate])
def test_judging_and_showing_are_pure(study):
    rows = make_predictions(0.9, 0.8)
    before = rows.copy()
    first_verdict, exhibits = judge(study(), rows), study().show(measured(predictions=rows), "file:made:label")
    assert judge(study(), rows) == first_verdict
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
        judge(study, rows),
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


def test_an_answer_is_saved_with_what_its_intervals_are_about(tmp_path):
    """JSON has neither NaN nor infinity: both are restored as "unknown", and the sentences are what they were."""
    estimate = stats.Difference(0.01, 0.01, {"texts": 1e-6, "training": 1e-4}, {"texts": 99.0, "training": 10.0})
    parts = [Part.of("a rival", estimate), Part("bits", 0.02, *(-np.inf, np.inf), 0.0, 1.0, 1.0, *(-np.inf, np.inf))]
    verdict = Verdict.of(
        parts[:1], lambda *_: "it is open", interval_of="other training texts", texts=9, training_texts=7
    )
    verdict = dataclasses.replace(verdict, comparisons=(*parts, Part("unknown", *[np.nan] * 3, 0.0, 1.0, 1.0)))
    assert (verdict.needed, np.isfinite(verdict.times_needed)) == (np.inf, True)
    answer = Answer("Q?", "C", verdict, ())
    answer.save(tmp_path / "a.json")
    assert not re.search("NaN|Infinity", (tmp_path / "a.json").read_text(encoding="utf-8"))
    restored = Answer.load(tmp_path / "a.json").verdict
    same = ("sentence", "interval_of", "texts", "training_texts", "times_needed", "advice", "warnings")
    assert [getattr(restored, name) for name in same] == [getattr(verdict, name) for name in same]
    assert np.isnan(restored.needed)
    for part, saved in zip(verdict.comparisons, restored.comparisons, strict=True):
        for name in ("effect", "low", "high", "low_of_fits", "high_of_fits", "p_yes", "p_no"):
            value = getattr(part, name)
            np.testing.assert_equal(getattr(saved, name), value if np.isfinite(value) else np.nan)


def test_an_answer_without_these_fields_loads(tmp_path):
    """As the version before wrote it."""
    answer = Poolings().answer(measured(predictions=make_predictions(0.9, 0.89)))
    answer.save(path := tmp_path / "poolings.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    for name in ("interval_of", "training_texts", "times_needed"):
        del content["verdict"][name]
    for part in content["verdict"]["comparisons"]:
        del part["low_of_fits"], part["high_of_fits"]
    path.write_text(json.dumps(content), encoding="utf-8")
    restored = Answer.load(path)
    assert restored.verdict.sentence == answer.verdict.sentence
    assert (restored.verdict.interval_of, restored.verdict.training_texts) == ("", 0)
    assert np.isnan([restored.verdict.times_needed, restored.verdict.comparisons[0].low_of_fits]).all()
    assert "<p>95 % intervals" not in restored._repr_html_()


def test_a_notebook_says_what_the_intervals_are_about():
    answer = Poolings().answer(measured(predictions=make_predictions(0.9, 0.7)))
    remark = "<p>95 % intervals are about these probes as they were fitted, over the test texts.</p>"
    assert remark in answer._repr_html_()


def test_a_notebook_escapes_data():
    hostile = "<script>alert(1)</script>"
    table = pd.DataFrame({"name": [hostile], "effect": [0.1], "low": [0.0], "high": [0.2], "outcome": ["yes"]})
    exhibit = Exhibit(hostile, table, "differences", {"margin": 0.02, "metric": "accuracy"})
    answer = Answer(
        hostile, hostile, Verdict("yes", hostile, 0.1, 0.0, 0.2, warnings=(hostile,), advice=hostile), (exhibit,)
    )
    assert "<script" not in answer._repr_html_()


def test_drawing_a_table_without_a_plot_is_an_error():
    with pytest.raises(ValueError, match="without a plot"):
        Exhibit("numbers", pd.DataFrame({"a": np.arange(3)})).draw()


def test_answering_needs_no_torch():
    code = (
        "import sys\nsys.path.insert(0, 'tests/support')\nfrom tables import *\n"
        "from clsprobe.poolings import Poolings\nfrom clsprobe.run import Run\n"
        "cells = {('none', 3, r): (first(s), first(s)) for r, s in (('cls', .9), ('mean', .8))}\n"
        "t = predictions(cells | {('majority', -1, 'none'): (first(.5), first(.5))})\n"
        "b = pd.DataFrame(columns=['task', 'row', 'phrase', 'label', 'texts', 'of_label'])\n"
        "Poolings().answer(measured(predictions=t))\njudge(Run(), t)\n"
        "Run().note(measured(predictions=t, boilerplate=b))\n"
        "sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_figure_that_cannot_be_drawn_leaves_the_answer_in_a_notebook():
    exhibit = Exhibit("A <caption>.", pd.DataFrame({"layer": [0]}), "curves")
    answer = Answer("Is it seen?", "", Verdict.unjudged("Not <judged>"), (exhibit,))
    page = answer._repr_html_()
    assert "Is it seen?" in page
    assert "Cannot be drawn: ValueError: curves: the table lacks" in page
    assert "A &lt;caption&gt;." in page
