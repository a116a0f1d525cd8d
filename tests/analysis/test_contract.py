"""`check_study` over the studies of a sweep, and over broken twins, each of which it has to catch.

The other studies are checked where their tests measure something: tests/scripts.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from worlds import known_worlds

from clsprobe import Exhibit, InputError, Study, Verdict, check_study
from clsprobe.aggregate import Aggregate
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.sweep.planting import plant_sweep, plant_worlds
from clsprobe.analysis.sweep.study import SweepStudy
from clsprobe.analysis.verdict import Part, difference_in_words
from clsprobe.order import Order
from clsprobe.poolings import Poolings
from clsprobe.positions import Positions

THING = object()  # which no file can hold


@pytest.mark.parametrize("study", [Aggregate(), Poolings(), Positions(), Order()], ids=lambda study: study.name())
def test_a_shipped_study_of_the_sweep_passes(study):
    worlds = known_worlds(study.name())
    assert {"yes", "no", "undecided"} <= {*worlds}
    check_study(study, plant_sweep(dict.fromkeys(study.readouts, 0.8)), worlds=worlds)


def test_a_study_of_the_sweep_needs_no_worlds():
    check_study(Poolings())


def test_a_planted_sweep_has_the_accuracies_that_were_named():
    measured = plant_sweep({"cls": 0.9, "mean": 0.6}, baselines=0.7, texts=(100, 4000))
    results = measured.tables["results"]
    test = results[(results.split == "test") & (results.metric == "accuracy")]
    values = test.groupby(["control", "readout"]).value.mean()
    assert values["none", "cls"] == pytest.approx(0.9, abs=0.03)
    assert values["none", "mean"] == pytest.approx(0.6, abs=0.03)
    assert values["bag_of_words", "none"] == pytest.approx(0.7, abs=0.03)
    rows = measured.tables["predictions"]
    assert (rows.groupby(["control", "layer", "readout"], observed=True).size() == 4100).all()
    assert {"all readouts are alike", "cls is the best"} <= {name for name, _ in plant_worlds(["cls"])}


# --------------------------------------------------------------------------------------------- broken twins of a sweep


class Writes(Poolings):
    def show(self, measured, task):
        Path("notes.txt").write_text(task)
        return super().show(measured, task)


class AltersTables(Poolings):
    def judge(self, measured, task):
        measured.tables["predictions"]["seen"] = 1
        return super().judge(measured, task)


class AltersFacts(Poolings):
    def note(self, measured):
        measured.facts["model"]["read"] = "yes"
        return super().note(measured)


class DrawsGlobally(Poolings):
    def judge(self, measured, task):
        random.random()
        return super().judge(measured, task)


class Unseeded(Poolings):
    def judge(self, measured, task):
        part = Part.from_interval("a rival", *np.sort(np.random.default_rng().normal(size=3))[[1, 0, 2]])
        return Verdict.of([part], lambda outcome, part: f"it is {part.effect:.6f}", texts=9)


class JudgesTheTableOfAllTasks(Poolings):
    def judge(self, measured, task):
        every = measured.tables["predictions"]
        own = replace(measured, tables={**measured.tables, "predictions": every.assign(task=task)})
        first = every.drop_duplicates(["control", "layer", "readout", "row"], keep="last")
        own.tables["predictions"] = first.assign(task=task)
        return super().judge(own, task)


class KeepsState(Poolings):
    def judge(self, measured, task):
        count = self.__dict__.setdefault("_count", [])
        count.append(task)
        return replace(super().judge(measured, task), brief=f"{len(count)}")


class LeadsWithTheOpposite(Poolings):
    def judge(self, measured, task):
        verdict = super().judge(measured, task)
        turned = {"yes": "no", "no": "yes"}.get(verdict.outcome, verdict.outcome)
        return replace(verdict, outcome=turned, p_yes=verdict.p_no, p_no=verdict.p_yes)


class AnswersTheOpposite(Poolings):
    """Yes where mean pooling is as good: the claim was judged, and not the question."""

    def judge(self, measured, task):
        scores = self.read_scores(measured, task)
        part = scores.compare(scores.choose("mean"), scores.choose("cls"), threshold=-self.margin)
        return Verdict.of([part], lambda outcome, part: f"on x, {difference_in_words('mean pooling', '[CLS]', part)}")


class NamesTheSidesInTheWrongOrder(Poolings):
    def judge(self, measured, task):
        scores = self.read_scores(measured, task)
        part = scores.compare(scores.choose("mean"), scores.choose("cls"), threshold=-self.margin)
        named = partial(difference_in_words, "[CLS]", "mean pooling")
        return Verdict.of([part], lambda outcome, part: f"on x, {named(part)}", turned=True)


class JudgesByTheEstimate(Poolings):
    def judge(self, measured, task):
        verdict = super().judge(measured, task)
        outcome = "yes" if verdict.effect < 0 else "no"
        return replace(verdict, outcome=outcome, sentence=f"{outcome.capitalize()}: {verdict.sentence}")


class JudgesAnotherMargin(Poolings):
    def judge(self, measured, task):
        scores = self.read_scores(measured, task)
        part = scores.compare(scores.choose("mean"), scores.choose("cls"), threshold=-0.07)
        return Verdict.of(
            [part], lambda _, part: f"on x, {difference_in_words('mean', 'cls', part)}", turned=True, texts=9
        )


class SaysNoNumber(Poolings):
    def judge(self, measured, task):
        verdict = super().judge(measured, task)
        return replace(verdict, sentence=f"{verdict.outcome.capitalize()}: so it is.")


class SaysTheSameAlways(Poolings):
    def judge(self, measured, task):
        verdict = super().judge(measured, task)
        sentence = f"{verdict.outcome.capitalize()}: they differ by {100 * abs(verdict.effect):.1f} points."
        return replace(verdict, sentence=sentence)


class NeverUndecided(Poolings):
    def judge(self, measured, task):
        verdict = super().judge(measured, task)
        if verdict.outcome != "undecided":
            return verdict
        p = {"p_yes": 0.01, "p_no": 1.0}
        return replace(verdict, outcome="yes", sentence=f"Yes: {verdict.sentence[11:]}", **p)


class NeverNo(Poolings):
    def judge(self, measured, task):
        verdict = super().judge(measured, task)
        return (
            replace(verdict, outcome="undecided", sentence="Undecided: who knows.") if verdict.p_no < 0.5 else verdict
        )


class NoSentence(Poolings):
    def judge(self, measured, task):
        return replace(super().judge(measured, task), sentence="")


class ReturnsTheOutcome(Poolings):
    def verdict(self, measured):
        return super().verdict(measured).outcome


class Raises(Poolings):
    def judge(self, measured, task):
        return super().judge(measured, measured.tables["texts"].task[0])


class ShowsNothing(Poolings):
    def show(self, measured, task):
        return []


class ShowRaises(Poolings):
    def show(self, measured, task):
        return [Exhibit("Lengths.", measured.tables["lengths"])]


class ShowsAnObject(Poolings):
    def show(self, measured, task):
        return [Exhibit("Objects.", pd.DataFrame({"cell": [THING, THING]}))]


class NamesNoPlot(Poolings):
    def show(self, measured, task):
        return [replace(super().show(measured, task)[0], plot="pie")]


class LacksAColumn(Poolings):
    def show(self, measured, task):
        exhibit = super().show(measured, task)[0]
        return [replace(exhibit, table=exhibit.table.drop(columns="effect"))]


class TuplesForArguments(Poolings):
    def show(self, measured, task):
        return [replace(super().show(measured, task)[0], plot=None, arguments={"best": (1, "cls")})]


class NotesTheNumberOfCalls(Poolings):
    def note(self, measured):
        return [f"Asked by {id(measured)}."]


class AsksNothing(Poolings):
    question = "Mean pooling is inferior."


class ClaimsNothing(Poolings):
    claim = " "


TWINS = {
    Writes: "`show` or `note` writes the file notes.txt: return what is to be saved",
    AltersTables: "`judge` alters the table predictions.*rows.assign",
    AltersFacts: "`show` or `note` alters the facts",
    DrawsGlobally: "global random state of random is moved",
    Unseeded: "twice gives two verdicts: seed what is random",
    JudgesTheTableOfAllTasks: r"beside the rows of another task .*read measured.rows\(table, task\)",
    KeepsState: "twice gives two verdicts.*keep nothing between two calls",
    LeadsWithTheOpposite: "its sentence begins otherwise.*let Verdict.of put the outcome",
    AnswersTheOpposite: r"to the question 'Is mean pooling inferior.*turned=True",
    NamesTheSidesInTheWrongOrder: "predictions says the opposite: `effect` is a minus b",
    JudgesByTheEstimate: "one-sided p of .*allows no",
    JudgesAnotherMargin: r"thresholds \[-0.07\] are not the declared margin \(0.02\)",
    SaysNoNumber: "does not give the effect that decides.*print it with its interval",
    SaysTheSameAlways: "after yes and after no the sentence is the same but for its numbers.*which side is better",
    NeverUndecided: "no comparison is certain: do not judge by the estimate",
    NeverNo: "no world is answered with no .*pass worlds",
    NoSentence: "is no sentence: `say` gives a clause",
    ReturnsTheOutcome: "gives str, not a verdict: return Verdict.of",
    Raises: "cannot be judged: KeyError: 'texts'; `judge` reads measured.tables",
    ShowsNothing: "the answer has no evidence: let `show` return an Exhibit",
    ShowRaises: "a part of the answer is missing .*KeyError: 'lengths'",
    ShowsAnObject: "the answer cannot be saved and loaded .*tables of numbers and text",
    NamesNoPlot: "there is no plot 'pie', which the exhibit .* names: register it",
    LacksAColumn: "cannot be drawn .*lacks effect",
    TuplesForArguments: r"an answer that was saved and loaded give another answer .*lists, not tuples",
    NotesTheNumberOfCalls: "saved and loaded give another answer .*depend on the columns",
    AsksNothing: "asks nothing: set `question.*with its question mark",
    ClaimsNothing: "tests a claim that it does not state: set `claim",
}


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__)
def test_a_broken_twin_is_caught(twin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match=TWINS[twin]) as caught:
        check_study(twin())
    fault, _, mend = str(caught.value).replace("\n", " ").rpartition(": ")
    assert len(fault) > 15
    assert len(mend) > 15


# --------------------------------------------------------------------------------------------- a study of its own table


class Coin(Study):
    """Sound: is a coin heavier on one side? Its own table, without a sweep."""

    question = "Does the coin fall on heads more often than on tails?"
    claim = "The share of heads is above one half"
    margin = 0.0
    judged = "throws"
    tables = ("throws",)

    def measure(self, folder=None):
        raise InputError("coin", "nobody throws it", "Throw it")

    def judge(self, measured: Measured, task: str) -> Verdict:
        heads = measured.rows("throws", task).heads.astype(float)
        effect, half = heads.mean() - 0.5, 1.96 * heads.std() / len(heads) ** 0.5
        part = Part.from_interval("one half", effect, effect - half, effect + half)
        return Verdict.of([part], self.say)

    def say(self, outcome, part):
        word = {"yes": "more", "no": "less"}.get(outcome, "not certainly more or less")
        return f"heads came up {word} often than tails, by {100 * abs(part.effect):.1f} points"

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        return [Exhibit("All throws.", measured.rows("throws", task).reset_index(drop=True))]


def throw(share: float, n: int = 400) -> Measured:
    heads = np.random.default_rng(0).permutation(np.arange(n) < share * n)
    table = pd.DataFrame({"task": "made:coin:heads", "throw": np.arange(n), "heads": heads})
    facts = {"rows": {"made:coin:heads": {}}, "read": {}, "model": {"model": "a coin"}, "versions": {}}
    return Measured({"throws": table}, facts)


WORLDS = {"yes": throw(0.8), "no": throw(0.2), "undecided": throw(0.5)}


def test_a_sound_study_with_worlds_of_its_own_passes():
    check_study(Coin(), worlds=WORLDS)
    check_study(Coin(), throw(0.6), worlds=WORLDS)


class Turned(Coin):
    def judge(self, measured, task):
        verdict = super().judge(measured, task)
        return Verdict.of(verdict.comparisons, self.say, turned=True)


class FromMemory(Coin):
    """What `measure` left in the facts, under keys that JSON does not have."""

    def judge(self, measured, task):
        if not any(isinstance(key, int) for key in measured.facts["model"]):
            raise KeyError(2)
        return super().judge(measured, task)


def with_facts(world: Measured) -> Measured:
    return replace(world, facts={**world.facts, "model": {"model": "a coin", 2: "sides"}})


def test_a_fault_in_what_is_saved_is_caught():
    with pytest.raises(AssertionError, match="'yes', saved and loaded, cannot be judged: KeyError"):
        check_study(FromMemory(), worlds={name: with_facts(world) for name, world in WORLDS.items()})
    objects = replace(throw(0.8), tables={"throws": throw(0.8).tables["throws"].assign(side=[THING] * 400)})
    with pytest.raises(AssertionError, match=r"the table throws cannot be saved as Parquet"):
        check_study(Coin(), worlds={"yes": objects})
    sets = replace(throw(0.8), facts={**throw(0.8).facts, "seen": {"sides": {"heads"}}})
    with pytest.raises(AssertionError, match=r"are no JSON .*use text, numbers"):
        check_study(Coin(), worlds={"yes": sets})


class ReadsTheIndex(Coin):
    def judge(self, measured, task):
        rows = measured.rows("throws", task)
        own = replace(measured, tables={"throws": rows.assign(heads=rows.index >= 0)})
        return super().judge(own, task)


def test_what_only_the_index_holds_is_lost():
    rows = throw(0.2).tables["throws"]
    indexed = replace(throw(0.2), tables={"throws": rows.set_index(np.where(rows.heads, rows.throw, -1))})
    with pytest.raises(AssertionError, match=r"saved and loaded give another verdict .*not on an index"):
        check_study(ReadsTheIndex(), worlds={"no": indexed})


def test_an_answer_that_needs_torch_is_caught(monkeypatch):
    """Where it was not loaded before, as after `import clsprobe`."""
    import torch

    class ImportsTorch(Coin):
        def judge(self, measured, task):
            sys.modules["torch"] = torch
            return super().judge(measured, task)

    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(AssertionError, match="`judge` imports torch, and answering needs no model"):
        check_study(ImportsTorch(), worlds=WORLDS)


def test_yes_and_no_mixed_up_are_caught():
    with pytest.raises(AssertionError, match=r"the world 'yes' is answered with no .*turned=True"):
        check_study(Turned(), worlds=WORLDS)


def test_nothing_passes_without_something_to_judge():
    with pytest.raises(AssertionError, match=r"is no study: derive its class from clsprobe.Study .* pass an instance"):
        check_study(Coin, worlds=WORLDS)
    with pytest.raises(AssertionError, match="there is nothing to judge: pass worlds="):
        check_study(Coin(), throw(0.6))
    with pytest.raises(AssertionError, match="no world is answered with undecided"):
        check_study(Coin(), worlds={"yes": throw(0.8), "no": throw(0.2)})
    with pytest.raises(AssertionError, match="no world is answered with no and no with yes"):
        check_study(Coin(), worlds={"undecided": throw(0.5)})
    with pytest.raises(AssertionError, match="the world 'undecided' is answered with yes"):
        check_study(Coin(), worlds={"yes": throw(0.8), "undecided": throw(0.9)})


def test_evidence_that_no_world_has_is_asked_for():
    class More(Poolings):
        tables = (*SweepStudy.tables, "learning")

    with pytest.raises(AssertionError, match=r"may need the tables learning.*study.run\(\).measured"):
        check_study(More())


def test_settings_that_are_no_json_are_caught():
    class Odd(Poolings):
        def settings(self):
            return {"when": {1, 2}}

    with pytest.raises(AssertionError, match="settings are no JSON"):
        check_study(Odd())
    assert json.dumps(Poolings().settings())
