"""What is printed follows from what is saved: every sentence is written anew from the tables, without the studies."""

from __future__ import annotations

import numpy as np
import pytest
from derived import derive_poolings_of_tasks, derive_task
from worlds import WORLDS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", WORLDS)
def test_the_sentences_of_a_world_follow_from_its_tables(name):
    world = WORLDS[name]
    measured = world.draw(np.random.default_rng(7))
    verdict = world.study.answer(measured).verdict
    for task in measured.tasks:
        expected = derive_task(world.study.name(), measured.tables, measured.facts, task)
        assert verdict.parts.get(task, verdict).sentence == expected
    if verdict.parts:
        assert verdict.sentence == derive_poolings_of_tasks(measured.tables)
