"""The contract of a study, for its author's tests: `check_study`.

1. The worlds: measurements of which one knows how the question is to be answered. Those of a study over the layer x
   readout sweep are planted here, in `sweep.planting`; any other study comes with worlds of its own.
2. Each world is judged twice, once from tables that were saved and loaded, and once beside another task: the verdict is
   the same, and nothing else has changed.
3. The sentences are read: the outcome comes first, it rests on an interval and not on an estimate, "better" and "worse"
   are what the table of predictions says, and yes and no say different things.
4. One measurement is answered in full: evidence and notes are pure as well, and an answer that was saved is loaded and
   drawn again.

Every violation is an AssertionError that says what is wrong and how to fix it.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import patch

from clsprobe.analysis.answer import Answer, Exhibit
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.plots import can_draw
from clsprobe.analysis.study import Study
from clsprobe.analysis.verdict import TAIL, Verdict, holm
from clsprobe.probes.randomness import forbid_global_randomness

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

DECISIVE = {"yes", "no"}
RIVAL = "made:rival:label"  # the task beside which a world is judged again
WORSE = r"inferior|worse|lower|less|lose|loses|destroy|destroys|harm|harms|hurt|hurts"
BETTER = r"superior|better|higher|more|improve|improves|help|helps|beat|beats"
NO_WORSE = r"(?<!whether )(?<!not )(?<!certain )\b(no worse|not worse|as good|as well|as much|not inferior)\b"


def check_study(
    study: Study, measured: Measured | None = None, *, worlds: Mapping[str, Measured] | None = None
) -> None:
    """Raise AssertionError if a study breaks the contract that runs, pages and readers rely on.

    `judge`, `show` and `note` are pure functions of what was measured, and give the same from tables that were saved;
    a saved answer can be loaded and drawn. What a sentence says agrees with its outcome, its outcome with its question,
    and both with the tables.

    measured: a real measurement, `study.run().measured`; without one the evidence is shown of a world. worlds: outcome
    ("yes", "no", "undecided" ...) -> a measurement for which that is the right answer to the question or, where the
    question is open, to the claim. A study over the sweep can have them from `analysis.sweep.planting.plant_sweep`;
    without `worlds` such a study is judged on sweeps of all kinds, among which every outcome must come up. Whether yes
    and no have been mixed up is then known only as far as the words of the question tell.
    """
    from clsprobe.analysis.sweep.planting import plant_worlds
    from clsprobe.analysis.sweep.study import SweepStudy

    _check_declared(study)
    assert worlds or isinstance(study, SweepStudy), (
        "there is nothing to judge: pass worlds={'yes': measured, 'no': measured, 'undecided': measured}, tables made "
        "so that each is the right answer"
    )
    verdicts: list[Verdict] = []
    every_world: list[Measured] = []
    for name, world in worlds.items() if worlds else plant_worlds(study.readouts):  # type: ignore[attr-defined]
        what = f"the world '{name}'"
        is_first = worlds or not verdicts  # of the planted ones the first stands for all
        verdict = _judge(study, world, what) if is_first else _attempt(partial(study.verdict, world), what)
        verdicts.append(verdict)
        every_world.append(world)
        assert not worlds or verdict.outcome == name, (
            f"the world '{name}' is answered with {verdict.outcome} ({verdict.sentence!r}): compare the question with "
            "the direction of the claim; Verdict.of(..., turned=True) answers a question whose yes is that the claim "
            "fails"
        )
        _check_sentences(study, verdict, world)
    _check_outcomes(study, verdicts, planted=not worlds)
    _check_other_tasks(study, every_world, verdicts)
    if measured is not None:
        _check_sentences(study, _judge(study, measured, "the measurement"), measured)
    elif missing := sorted(set(study.tables) - set(every_world[0].tables)):
        raise AssertionError(
            f"the evidence may need the tables {', '.join(missing)}, which the worlds lack: pass what the study itself "
            "measures, as in check_study(study, study.run().measured)"
        )
    _check_answer(study, measured or every_world[0])


def _check_declared(study: Study) -> None:
    assert isinstance(study, Study), (
        f"{study!r} is no study: derive its class from clsprobe.Study (or SweepStudy), and pass an instance"
    )
    question = getattr(study, "question", None)
    assert isinstance(question, str) and question.endswith("?"), (  # noqa: PT018
        f"the question {question!r} is printed above the answer and asks nothing: set `question: ClassVar[str]` to a "
        "question in the words of whoever asks, with its question mark"
    )
    assert isinstance(getattr(study, "margin", 0.0), int | float), (
        f"the margin is {study.margin!r}, not a number: declare it in units of the metric (0.02 is 2 points)"
    )
    try:
        json.dumps(study.settings())
    except (TypeError, ValueError) as error:
        fault = f"the settings are no JSON ({error}): give fields plain types, and paths as text"
        raise AssertionError(fault) from error


# ------------------------------------------------------------------------------------------------------ pure functions


@contextmanager
def _forbid_effects(measured: Measured, what: str) -> Iterator[None]:
    """Raise AssertionError if a block changes tables or facts, moves a global random state or opens a file to write."""
    tables = {name: table.copy(deep=True) for name, table in measured.tables.items()}
    facts, written = json.dumps(measured.facts, default=str), []
    is_light = "torch" not in sys.modules

    def watch(original: Callable[..., Any]) -> Callable[..., Any]:
        def open_file(path: Any, mode: Any = "r", *others: Any, **more: Any) -> Any:
            writes = mode & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(mode, int) else set(mode) & set("wax+")
            if writes and not str(path).startswith("/dev/"):
                written.append(str(path))
            return original(path, mode, *others, **more)

        return open_file

    opened = [(builtins, "open"), (io, "open"), (os, "open")]
    with forbid_global_randomness():
        patches = [patch.object(module, name, watch(getattr(module, name))) for module, name in opened]
        for one_patch in patches:
            one_patch.start()
        try:
            yield
        finally:
            for one_patch in patches:
                one_patch.stop()
    assert not written, f"{what} writes the file {written[0]}: return what is to be saved; only `measure` gets a folder"
    for name, before in tables.items():
        after = measured.tables.get(name)
        assert after is not None and list(after.columns) == list(before.columns) and after.equals(before), (  # noqa: PT018
            f"{what} alters the table {name}, which the next question reads too: begin with rows = measured.rows(...) "
            "and make new tables, as in rows.assign(...)"
        )
    assert json.dumps(measured.facts, default=str) == facts, (
        f"{what} alters the facts of the measurement: make a new dictionary instead"
    )
    assert not is_light or "torch" not in sys.modules, (
        f"{what} imports torch, and answering needs no model: import it in `measure`, and draw from tables"
    )


def _attempt(call: Callable[[], T], what: str) -> T:
    try:
        return call()
    except Exception as error:  # the author's code may raise anything
        raise AssertionError(
            f"{what} cannot be judged: {type(error).__name__}: {error}; `judge` reads measured.tables and "
            "measured.facts alone, and raises MissingEvidence with a clause that says what is missing"
        ) from error


def _judge(study: Study, measured: Measured, what: str) -> Verdict:
    """The verdict over all tasks: the same twice, and from what was saved."""
    with _forbid_effects(measured, "`judge`"):
        verdict = _attempt(lambda: study.verdict(measured), what)
    assert isinstance(verdict, Verdict), (
        f"`judge` gives {type(verdict).__name__}, not a verdict: return Verdict.of(parts, say), or "
        "Verdict.described(...)"
    )
    again = _attempt(lambda: study.verdict(measured), what)
    assert repr(again) == repr(verdict), (
        "judging the same tables twice gives two verdicts: seed what is random, and keep nothing between two calls"
    )
    with TemporaryDirectory() as folder:
        loaded = _save_and_load(measured, Path(folder))
    from_files = _attempt(lambda: study.verdict(loaded), f"{what}, saved and loaded,")
    assert repr(from_files) == repr(verdict), (
        f"tables that were saved and loaded give another verdict ({from_files.sentence!r}, not {verdict.sentence!r}): "
        "depend on their columns only, not on an index, an order of categories, an object's identity or what `measure` "
        "has left in the study"
    )
    return verdict


def _save_and_load(measured: Measured, folder: Path) -> Measured:
    """The measurement as a run writes it: tables as Parquet, facts and notes as JSON."""
    from clsprobe.analysis.table import read_table
    from clsprobe.probes.files import write_parquet

    tables = {}
    for name, table in measured.tables.items():
        try:
            write_parquet(folder / f"{name}.parquet", table)
        except Exception as error:  # Arrow raises many types
            raise AssertionError(
                f"the table {name} cannot be saved as Parquet ({error}): use columns of numbers, text and booleans"
            ) from error
        tables[name] = read_table(folder / f"{name}.parquet")
    try:
        facts, notes = json.loads(json.dumps([dict(measured.facts), list(measured.notes)]))
    except (TypeError, ValueError) as error:
        raise AssertionError(
            f"the facts or notes of the measurement are no JSON ({error}): use text, numbers, lists and dictionaries"
        ) from error
    return Measured(tables, facts, notes, list(measured.failures))


def _check_other_tasks(study: Study, worlds: Sequence[Measured], verdicts: Sequence[Verdict]) -> None:
    """Judge the tasks of two worlds with different verdicts together: each task says what it says alone."""
    import pandas as pd

    own = next((i for i, verdict in enumerate(verdicts) if not verdict.parts), None)
    if own is None or any("task" not in table for table in worlds[own].tables.values()):
        return  # a measurement of one task has no other
    other = next((i for i, v in enumerate(verdicts) if not v.parts and v.sentence != verdicts[own].sentence), None)
    if other is None:
        return
    (task,) = worlds[own].tasks
    tables = {
        name: pd.concat([table.astype({"task": str}), worlds[other].tables[name].assign(task=RIVAL)], ignore_index=True)
        for name, table in worlds[own].tables.items()
        if name in worlds[other].tables
    }
    facts = {**worlds[own].facts, "rows": {task: {}, RIVAL: {}}}
    united = _attempt(lambda: study.verdict(replace(worlds[own], tables=tables, facts=facts)), "a task beside another")
    assert repr(united.parts[task]) == repr(verdicts[own]), (
        f"beside the rows of another task the same task is judged otherwise ({united.parts[task].sentence!r}): `judge` "
        "is about one task; read measured.rows(table, task), and not measured.tables"
    )


# ----------------------------------------------------------------------------------------------------------- sentences


def _check_sentences(study: Study, verdict: Verdict, measured: Measured) -> None:
    for task in measured.tasks:
        _check_sentence(study, verdict.parts.get(task, verdict), measured, task)


def _check_sentence(study: Study, verdict: Verdict, measured: Measured, task: str) -> None:
    """What is said of one task: about the outcome, the interval, the margin and the tables."""
    sentence, outcome = verdict.sentence, verdict.outcome
    assert sentence[:1].isupper() and sentence.rstrip().endswith((".", "!")), (  # noqa: PT018
        f"{sentence!r} is no sentence: `say` gives a clause without an end, to which Verdict.of adds the outcome and a "
        "stop"
    )
    leads = [word for word in ("Yes", "No", "Undecided") if re.match(rf"{word}\b", sentence)]
    if verdict.is_counted and verdict.is_judged and not verdict.is_open:
        assert leads == [outcome.capitalize()], (
            f"the verdict is {outcome}, and its sentence begins otherwise: {sentence!r}; let Verdict.of put the "
            "outcome before the clause"
        )
    else:
        assert not leads, (
            f"the question is open or decides nothing here, and the sentence says {leads}: {sentence!r}; begin with "
            "what was measured"
        )
    if outcome in DECISIVE:
        _check_certainty(study, verdict)
    _check_words(study, verdict, measured, task)


def _check_certainty(study: Study, verdict: Verdict) -> None:
    """A yes or no rests on certain comparisons with declared thresholds, and its sentence gives the effect."""
    outcome, sentence = verdict.outcome, verdict.sentence
    p = verdict.p_yes if outcome == "yes" else verdict.p_no
    assert p < TAIL and verdict.comparisons, (  # noqa: PT018
        f"the verdict is {outcome} with a one-sided p of {p:.3g}, which allows no {outcome}: make parts of effects "
        "with their intervals (Part.of) and join them by Verdict.of, which says yes where every interval is above its "
        "threshold"
    )
    assert _direction(verdict), (
        f"the verdict is {outcome} ({sentence!r}), and no comparison is certain: do not judge by the estimate; an "
        "effect counts where its whole interval lies on one side of the threshold"
    )
    declared = {0.0, study.margin, -study.margin}
    thresholds = {part.threshold for part in verdict.comparisons}
    assert all(any(abs(t - d) < 1e-9 for d in declared) for t in thresholds), (
        f"the thresholds {sorted(thresholds)} are not the declared margin ({study.margin}), 0 or its opposite: compare "
        "with the margin that was declared before measuring"
    )
    assert verdict.low <= verdict.effect <= verdict.high, (
        f"the effect {verdict.effect:.3g} lies outside of its interval ({verdict.low:.3g} to {verdict.high:.3g}): take "
        "all three from one estimate"
    )
    numbers = [abs(float(number)) for number in re.findall(r"\d+(?:\.\d+)?", sentence)]
    size = abs(verdict.effect)
    assert any(abs(n - 100 * size) < 0.06 or abs(n - size) < 0.006 for n in numbers), (
        f"the sentence {sentence!r} does not give the effect that decides ({verdict.effect:+.3f}): print it with its "
        "interval, by clsprobe.analysis.verdict.difference_in_words"
    )
    if re.search(NO_WORSE, sentence):
        assert verdict.low > -study.margin or verdict.high < study.margin, (
            f"{sentence!r} says that one is as good as the other, and the interval reaches beyond the margin on both "
            "sides: say so only where the whole interval lies inside the margin"
        )


def _direction(verdict: Verdict) -> str:
    """ "straight" where yes means that the comparisons hold, "turned" that one fails; "" if neither is certain."""
    if max(part.p_yes for part in verdict.comparisons) < TAIL:
        return "straight" if verdict.outcome == "yes" else "turned"
    if min(holm([part.p_no for part in verdict.comparisons])) < TAIL:
        return "straight" if verdict.outcome == "no" else "turned"
    return ""


def _check_outcomes(study: Study, verdicts: Sequence[Verdict], *, planted: bool) -> None:
    """All outcomes come up, one direction throughout, and yes and no in different words."""
    parts = [part for verdict in verdicts for part in (verdict.parts.values() or (verdict,))]
    counted = [part for part in parts if part.is_counted]
    outcomes = {part.outcome for part in counted}
    if not any(part.is_claim for part in counted):
        return  # a description, which states nothing that could be wrong
    assert getattr(study, "claim", "").strip(), (
        "the study tests a claim that it does not state: set `claim: ClassVar[str]` to what a yes means"
    )
    missing = {"undecided"} - outcomes or ({"yes", "no"} - outcomes if planted else set())
    assert not missing and outcomes & DECISIVE, (  # noqa: PT018
        f"no world is answered with {' and no with '.join(sorted(missing or DECISIVE))} (only with "
        f"{', '.join(sorted(outcomes))}), so that nobody knows what it would look like: pass worlds in which it is the "
        "right answer, and an estimate that is uncertain for the undecided one"
    )
    directions = {_direction(part): part for part in counted if part.outcome in DECISIVE}
    assert len(directions) < 2, (
        "yes means that the claim holds in one world and that it fails in another "
        f"({' and '.join(repr(part.sentence) for part in directions.values())}): judge by Verdict.of alone, always "
        "with the same `turned`"
    )
    said = {outcome: {_strip(part) for part in counted if part.outcome == outcome} for outcome in sorted(outcomes)}
    for sentence in said.get("yes", set()) & said.get("no", set()):
        raise AssertionError(
            f"after yes and after no the sentence is the same but for its numbers ({sentence!r}): say which side is "
            "better, by clsprobe.analysis.verdict.difference_in_words"
        )


def _strip(verdict: Verdict) -> str:
    """The words of a sentence, without the outcome before it and the digits in it."""
    return re.sub(r"[\d.,]+", "#", re.sub(r"^(Yes|No|Undecided): ", "", verdict.sentence))


def _check_words(study: Study, verdict: Verdict, measured: Measured, task: str) -> None:
    """Compare "a is better than b" with the accuracies of a and b, and with the question where that names both."""
    accuracies = _read_accuracies(measured, task)
    if not accuracies:
        return
    name = "|".join(re.escape(name) for name in sorted(accuracies, key=len, reverse=True))
    side, word = rf"(?<!\w)(?:{name})(?![\w\[])", "better|worse|more|less|higher|lower"
    pattern = rf"(?P<a>{side})(?P<between>[^:;]*?)\b(?P<word>{word}) than (?P<b>{side}|every baseline)"
    for match in re.finditer(pattern, verdict.sentence):
        a, between, word, b = (match[part] for part in ("a", "between", "word", "b"))
        if re.search(rf"\b(no|not|never|neither|nor|certainly)\b|{side}", between):
            continue
        sign = 1 if word in ("better", "more", "higher") else -1
        own = [sign * value for value in accuracies[a]]
        baselines = [min(sign * v for v in values) for key, values in accuracies.items() if key.startswith("baseline ")]
        others = [max(baselines)] if b == "every baseline" and baselines else [sign * v for v in accuracies.get(b, [])]
        assert not others or max(own) > min(others), (
            f"{verdict.sentence!r} says that {a} is {word} than {b}, and the table of predictions says the opposite: "
            "`effect` is a minus b; name the sides in this order, by clsprobe.analysis.verdict.difference_in_words"
        )
        if verdict.outcome in DECISIVE and not verdict.is_open and b in accuracies:
            _check_question(study, verdict, a, sign, b)


def _check_question(study: Study, verdict: Verdict, a: str, sign: int, b: str) -> None:
    """To "Is a inferior to b?" a yes cannot be followed by "a is better than b", nor a no by "a is worse"."""
    question = study.question.lower()
    places = [question.find(side.lower().split(" ")[0]) for side in (a, b)]
    asked = [direction for direction, words in ((-1, WORSE), (1, BETTER)) if re.search(rf"\b({words})\b", question)]
    if min(places) < 0 or len(asked) != 1:
        return
    said = sign if places[0] < places[1] else -sign  # of the side that the question names first
    assert (said == asked[0]) == (verdict.outcome == "yes"), (
        f"to the question {study.question!r} the answer is {verdict.sentence!r}: turn the outcome round "
        "(Verdict.of(..., turned=True)), or the comparison"
    )


def _read_accuracies(measured: Measured, task: str) -> dict[str, list[float]]:
    """Name in a sentence -> accuracies on test at every layer; baselines under their control's name as well."""
    from clsprobe.analysis.sweep.scores import CONTROL_NAMES
    from clsprobe.analysis.sweep.wording import READOUT_NAMES
    from clsprobe.analysis.table import PREDICTIONS

    predictions = measured.tables.get("predictions")
    if predictions is None or not {*PREDICTIONS} <= {*predictions.columns}:
        return {}
    rows = predictions[(predictions.task == task) & (predictions.split == "test")]
    if rows.empty or rows.label.isna().all():  # numbers have no accuracy
        return {}
    right = (rows.label.astype(str) == rows.predicted.astype(str)).astype(float)
    values = right.groupby([rows[column].astype(str) for column in ("control", "readout", "layer")]).mean()
    accuracies: dict[str, list[float]] = {}
    for (control, readout, _), value in values.items():
        names = [readout, READOUT_NAMES.get(readout, readout)]
        if control != "none":
            names = [CONTROL_NAMES.get(control, control), f"baseline {control}"]
        for name in dict.fromkeys(names):
            accuracies.setdefault(name, []).append(float(value))
    return accuracies


# ------------------------------------------------------------------------------------------------------- whole answers


def _check_answer(study: Study, measured: Measured) -> None:
    """The whole answer: the same twice, from saved tables, and after it was saved itself."""
    with _forbid_effects(measured, "`show` or `note`"):
        answer = study.answer(measured)
    for sentence, error in answer.failures.items():
        raise AssertionError(
            f"a part of the answer is missing ({sentence}): `show` and `note` read measured.tables and measured.facts "
            "alone, and get along with every task that `judge` can judge"
        ) from error
    assert answer.exhibits, (
        "the answer has no evidence: let `show` return an Exhibit(caption, table, plot) for every task, with rows"
    )
    _compare_answers(answer, study.answer(measured), "the same tables", "seed what is random, and keep no state")
    for exhibit in answer.exhibits:
        assert exhibit.plot is None or can_draw(exhibit.plot), (
            f"there is no plot '{exhibit.plot}', which the exhibit {exhibit.caption[:60]!r} names: register it "
            "(clsprobe.analysis.plots), or name one that is"
        )
    with TemporaryDirectory() as name:
        folder = Path(name)
        loaded = _save_and_load(measured, folder)
        mend = "depend on the columns of the tables only, not on an index or on what `measure` has left in the study"
        _compare_answers(answer, study.answer(loaded), "tables that were saved and loaded", mend)
        try:
            answer.save(folder / "answer.json")
            restored = Answer.load(folder / "answer.json")
        except Exception as error:  # whatever an exhibit holds
            raise AssertionError(
                f"the answer cannot be saved and loaded ({type(error).__name__}: {error}): let exhibits hold tables of "
                "numbers and text, and arguments that JSON knows"
            ) from error
    mend = "use columns of numbers and text, and arguments that JSON knows (lists, not tuples; text keys)"
    _compare_answers(answer, restored, "an answer that was saved and loaded", mend)
    for exhibit in restored.exhibits:
        if exhibit.plot is not None:
            try:
                exhibit.draw()
            except Exception as error:  # whatever a plot raises
                raise AssertionError(
                    f"the exhibit {exhibit.caption[:60]!r} cannot be drawn ({type(error).__name__}: {error}): give "
                    "the plot the columns and arguments that it needs"
                ) from error


def _compare_answers(before: Answer, after: Answer, of: str, mend: str) -> None:
    def contents(answer: Answer) -> list[Any]:
        exhibits = [(e.caption, e.plot, dict(e.arguments), e.section) for e in answer.exhibits]
        return [answer.headline.sentence, *answer.headline.warnings, *answer.notes, *exhibits]

    differing = [(a, b) for a, b in zip(contents(before), contents(after), strict=False) if a != b]
    assert not differing and len(before.exhibits) == len(after.exhibits), (  # noqa: PT018
        f"{of} give another answer ({differing[:1]}): {mend}"
    )
    for a, b in zip(before.exhibits, after.exhibits, strict=True):
        difference = _find_difference(a, b)
        assert not difference, f"{of} give another table for the exhibit {a.caption[:60]!r} ({difference}): {mend}"


def _find_difference(a: Exhibit, b: Exhibit) -> str:
    """What differs between the tables of two exhibits, "" where they are the same."""
    import pandas as pd

    def plain(table: pd.DataFrame) -> pd.DataFrame:
        categories = table.select_dtypes("category").columns
        return table.astype(dict.fromkeys(categories, object)).reset_index(drop=True)

    try:
        pd.testing.assert_frame_equal(plain(a.table), plain(b.table), check_dtype=False, check_names=False)
    except AssertionError as error:
        return " ".join(str(error).split())
    return ""
