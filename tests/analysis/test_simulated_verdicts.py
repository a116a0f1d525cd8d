"""Verdicts where the truth is planted: few are wrong, and far from the threshold the right one is found."""

from __future__ import annotations

from dataclasses import replace

import pytest
from worlds import WORLDS, count_outcomes, draw

pytestmark = pytest.mark.usefixtures("one_thread")


def check(name: str, draws: int, allowed: int) -> None:
    """Each wrong outcome in at most `allowed` draws: more have a probability below 1e-4 where it comes in 2.5 %."""
    world, counts = WORLDS[name], count_outcomes(name, draws)
    for outcome in world.wrong:
        assert counts[outcome] <= allowed, f"{outcome} in {counts[outcome]} of {draws}"
    if world.right:
        assert counts[world.right] >= 0.85 * draws, f"{world.right} in {counts[world.right]} of {draws}"


@pytest.mark.parametrize("name", WORLDS)
def test_few_verdicts_are_wrong(name):
    check(name, 20, 5)


@pytest.mark.long
@pytest.mark.parametrize("name", WORLDS)
def test_few_of_many_verdicts_are_wrong(name):
    check(name, 200, 15)


def test_other_training_texts_decide_what_the_test_texts_seem_to():
    """The same draws without refits: these fitted probes differ from each other, and would say so of all of them."""
    name = "poolings: other training texts, worse by the margin"
    world, decided = WORLDS[name], []
    for number in range(10):
        measured = draw(name, number)
        predictions = replace(measured, tables={"predictions": measured.tables["predictions"]})
        whole, of_fits = (world.study.verdict(part).outcome for part in (measured, predictions))
        decided += [of_fits] if of_fits in world.wrong and whole == "undecided" else []
    assert len(decided) >= 4  # of 20 draws `check` allows 5 of either outcome


def test_every_study_that_tests_a_claim_is_simulated():
    assert {type(world.study).__name__ for world in WORLDS.values()} >= {
        "Aggregate",
        "FineTuning",
        "Formation",
        "Order",
        "Poolings",
        "Positions",
        "Reconstruct",
        "Run",
        "Trajectory",
    }
