"""What is printed follows from what is saved: every sentence is written anew from the tables, without the studies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tables
from derived import STUDIES, derive_answer, derive_headlines
from worlds import READ, WORLDS, answer_in_words, draw_tables, judge

from clsprobe.aggregate import Aggregate
from clsprobe.analysis import stats
from clsprobe.analysis.answer import correct_answers
from clsprobe.analysis.sweep.refits import Refits
from clsprobe.analysis.table import concat_categories
from clsprobe.poolings import Poolings
from clsprobe.positions import Positions
from clsprobe.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = WORLDS | READ


@pytest.mark.parametrize("name", ALL)
def test_every_sentence_follows_from_the_tables(name):
    measured, verdict = judge(name)
    expected = derive_answer(ALL[name].study.name(), measured.tables, measured.facts)
    assert verdict.sentence == expected.sentence
    assert {task: verdict.parts.get(task, verdict).sentence for task in measured.tasks} == {
        task: part.sentence for task, part in expected.tasks.items()
    }
    assert (verdict.warnings, verdict.advice) == (expected.warnings, expected.advice)
    assert verdict.interval_of == expected.interval_of
    for task, part in expected.tasks.items():
        comparisons = verdict.parts.get(task, verdict).comparisons
        assert [list_numbers(comparison) for comparison in comparisons] == [derive_numbers(p) for p in part.parts]


def list_numbers(part):
    """The numbers of a comparison."""
    ends = part.low, part.high, part.low_of_fits, part.high_of_fits
    return pytest.approx((part.effect, *ends, part.p_yes, part.p_no), abs=1e-6, nan_ok=True)


def derive_numbers(part):
    """The same, as they follow from the tables."""
    return part.effect.value, *part.effect.ends(), *part.effect.of_fits.ends(), part.p_yes, part.p_no


COMPARE, OF, TRAINING = stats.compare, Refits.of, stats.training_variance


def double(halves, groups=None):
    """The variance with half of the training texts."""
    return 2 * TRAINING(halves, groups)


def keep_interaction(halves, groups=None):
    """The sampling errors of single texts among the variance of training."""
    return float(((halves[:, 0] - halves[:, 1]).mean(-1) ** 2).mean() / 4)


def compare_texts(*sides, groups=None, **more):
    """Texts of a group as if they were independent."""
    return COMPARE(*sides, **more)


def compare_with_many(*sides, **more):
    """The variance of training as if it were known from many halvings."""
    difference = COMPARE(*sides, **more)
    return replace(difference, freedom={**difference.freedom, "training": 1000})


def refit_first(self, control, readouts):
    """A half reads the first of the readouts, whatever its dev says."""
    return OF(self, control, readouts[:1])


BROKEN = [
    (stats, "training_variance", double),
    (stats, "training_variance", keep_interaction),
    (stats, "compare", compare_texts),
    (stats, "compare", compare_with_many),
    (Refits, "of", refit_first),
]


@pytest.mark.parametrize(("where", "name", "twin"), BROKEN)
def test_a_fault_in_the_variance_of_training_would_be_seen(where, name, twin, monkeypatch):
    """Broken twins: the interval of a sentence, of several readouts and groups of test texts, is another."""
    world = "positions: other training texts on two of three tasks"
    measured, _ = judge(world)
    expected = derive_answer("positions", measured.tables, measured.facts).tasks
    monkeypatch.setattr(where, name, twin)
    parts = answer_in_words(READ[world].study, measured).verdict.parts
    of_training = list(measured.tasks)[:2]
    assert any(parts[task].sentence != expected[task].sentence for task in of_training)
    assert parts[measured.tasks[2]].sentence == expected[measured.tasks[2]].sentence  # it has no refits


@pytest.mark.parametrize(("accuracy", "doubted"), [(0.78, "run"), (0.8, "aggregate")])
def test_the_headlines_of_a_page_follow_from_the_tables(accuracy, doubted):
    """Four answers from one measurement, one of which stands only by itself."""
    random, accuracies = np.random.default_rng(7), {"cls": accuracy, "mean": 0.8, "sep": 0.8}
    cells = {("bag_of_words", -1, "none"): 0.75}
    cells |= {("none", layer, name): value for layer in (2, 3) for name, value in accuracies.items()}
    blocks = [draw_tables(cells, random, task=f"file:{name}:label")["predictions"] for name in "ab"]
    measured = tables.measured(predictions=concat_categories(blocks))
    studies = Run(), Aggregate(), Poolings(), Positions()
    answers = correct_answers({study.name(): answer_in_words(study, measured) for study in studies})
    expected = {name: derive_answer(name, measured.tables, measured.facts) for name in answers}
    headlines = derive_headlines(expected)
    assert {name: answer.headline.sentence for name, answer in answers.items()} == headlines
    assert [name for name in answers if headlines[name] != expected[name].sentence] == [doubted]


def test_every_study_can_be_derived():
    assert {world.study.name() for world in ALL.values()} == set(STUDIES)
