"""The facts about a measurement."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from cells import states, task

from clsprobe.analysis.encoding import collect_facts


def test_the_tasks_that_a_baseline_solves_are_a_fact():
    tasks = [task(name="hand:made:free"), replace(task(name="hand:made:length"), solved_by=("length",))]
    inputs = SimpleNamespace(tasks=tasks, corpus=SimpleNamespace(rows={}))
    made = states(tasks)
    made.source["versions"] = {}
    facts = collect_facts(SimpleNamespace(long_rows="truncate"), inputs, made, {})
    assert facts["solved"] == {"hand:made:length": ["length"]}
