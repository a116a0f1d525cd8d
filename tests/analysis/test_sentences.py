"""Whoever reads only the headline is never led to the opposite.

A reader who knows English and no statistics reads the sentences of every study: which of two sides is called better, by
how much, and what yes and no mean for the printed question. What was read is compared with the accuracies in the
tables. The same sentences with a word turned round are the broken twins, in which the reader has to find a fault.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import pandas as pd
import pytest
from derived import BEST_CLASS, BLIND, CONTROLS, NAMES
from worlds import READ, WORLDS, judge

from clsprobe.analysis.verdict import short

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = WORLDS | READ
MARGIN = 2.0  # points, of every study that has one

NUMBER = r"[+-]?\d+\.\d"
SPAN = rf"(?P<effect>{NUMBER}) points \((?P<low>{NUMBER}) to (?P<high>{NUMBER})"
READOUTS = {name: readout for readout, name in NAMES.items()}
READOUTS |= {name: name for name in ("sep", "random", "token[1]", "token[2]", "token[-1]", "flatten_projected")}
READOUTS |= {"token1": "token1", "token2": "token2"}
BASELINES = {name: control for control, name in CONTROLS.items()}
FILE, BEST = "the vector in v.npy", "the best single class"
SIDE = "|".join(
    [rf"{re.escape(name)}(?: \(layers? [\d, to]+\))?" for name in READOUTS]
    + [r"untrained encoder \([\w ]+\), \w+ at layer \d", *map(re.escape, [*BASELINES, FILE, BEST])]
)
SCORE = r"gets (?P<score>[\d.]+)(?: \([\d.]+ to [\d.]+ over these layers\))? of the test texts right,"
EVERY = r"(?P<every>every baseline(?: without order)?(?: measured \(without [^)]+\))?)"
COMPARISONS = (
    rf"(?P<a>{SIDE}) is (?P<word>better|worse) than (?P<b>{SIDE}) by {SPAN}",
    rf"(?P<a>{SIDE}) minus (?P<b>{SIDE}) is {SPAN}",
    rf"(?P<a>{SIDE}) {SCORE} (?P<word>more|less) than {EVERY}(?:, by|:) {SPAN}.*?\) over the closest, (?P<b>{SIDE})",
    rf"(?P<a>{SIDE}) {SCORE} (?P<word>more|less) than (?P<b>{SIDE}), by {SPAN}",
    rf"(?P<a>{SIDE}) {SCORE} not certainly more than (?P<b>{SIDE}): {SPAN}",
    rf"(?P<a>{SIDE}) {SCORE} {SPAN}.*?\) over (?P<b>{SIDE})",
)
TURNED = (  # words that turn a sentence round
    ("Yes: ", "No: "),
    ("No: ", "Yes: "),
    (r" is better than (?!every)", " is worse than "),
    (" is worse than ", " is better than "),
    (" more than every", " less than every"),
    (" right, less than ", " right, more than "),
    ("tells as much as", "tells less than"),
    ("tells less than", "tells as much as"),
    ("easier", "harder"),
    ("harder", "easier"),
    (r"(?<!no )later than in", "earlier than in"),
    ("earlier than in", "later than in"),
    ("In this .CLS. is no different from", "[CLS] gathers it later than in"),
    ("it no later than in", "it later than in"),
    ("Either half suffices", "Neither half suffices"),
    ("Neither half suffices", "Either half suffices"),
    ("Neither half is necessary", "Both halves are necessary"),
    ("The lower half is not necessary, and the upper half is necessary", "Neither half is necessary"),
    ("The lower half is necessary, and the upper half is not necessary", "Both halves are necessary"),
    ("The lower half suffices, and the upper half does not suffice", "Either half suffices"),
)
DIRECTION = r"\b(Yes|No|better|worse|more|less|inferior|easier|harder|late|early)\b"


# ------------------------------------------------------------------------------------------------------- the reader


def make_reader(study: str, rows: pd.DataFrame) -> Callable[[str], list[str]]:
    """A sentence about one task -> what a reader would conclude and the rows of its table do not bear out."""
    readers = {"reconstruct": read_share, "formation": read_cuts, "trajectory": read_training}
    if study in readers:
        return lambda sentence: list(readers[study](rows, sentence))
    of_table = compute_accuracies(rows)
    return lambda sentence: list(read_comparison(of_table, sentence, study))


def read_comparison(of_table: Mapping[tuple, float], sentence: str, study: str) -> Iterator[str]:
    """Two sides, in points of accuracy."""
    match = next(filter(None, (re.search(pattern, sentence) for pattern in COMPARISONS)), None)
    if match is None:
        no_more = re.search(rf"(?P<a>{SIDE}) {SCORE} no more than a baseline without order", sentence)
        best = max(value for (control, *_), value in of_table.items() if control != "none")
        if no_more and min(look_up(no_more["a"], of_table)) > best + MARGIN:
            yield no_more[0]
        if not no_more and not re.search(r"Undecided: .+ predicts one class", sentence):
            yield "nothing is compared"
        return
    said = match.groupdict()
    sign = -1 if said.get("word") in ("worse", "less") else 1
    effect, low, high = (sign * float(said[name]) for name in ("effect", "low", "high"))
    differences = [a - b for a in look_up(said["a"], of_table) for b in look_up(said["b"], of_table)]
    if not min(differences) - 0.06 <= effect <= max(differences) + 0.06:
        yield f"{effect} points, and {differences} in the table"
    if not min(low, high) <= effect <= max(low, high):
        yield "the effect lies outside of its interval"
    if said.get("word") and effect * sign < 0:
        yield "a negative number with a word of direction"
    if said.get("score") and not any(
        abs(100 * float(said["score"]) - own) < 0.06 for own in look_up(said["a"], of_table)
    ):
        yield f"a score of {said['score']}"
    if said.get("every"):
        missing = [BASELINES[name] for name in BASELINES if f"{name}," in said["every"] or f"{name})" in said["every"]]
        measured = {control for control, *_ in of_table}
        names = [*BLIND, "untrained"][: len(BLIND) if "order" in said["every"] else None]
        if sorted(missing) != sorted(name for name in names if name not in measured):
            yield f"{said['every']}, and {measured}"
    yield from read_conclusion(study, sentence, said["a"], said["b"], effect, of_table)


def read_conclusion(
    study: str, sentence: str, a: str, b: str, effect: float, of_table: Mapping[tuple, float]
) -> Iterator[str]:
    """What yes and no say of the printed question, and words that stand for them. effect: of a minus b."""
    own, lead = max(look_up(a, of_table)), sentence.partition(":")[0]
    over_baselines = [own - value for (control, *_), value in of_table.items() if control != "none"]
    if study == "poolings":  # is mean pooling inferior to [CLS]?
        holds = {"Yes": effect < -MARGIN, "No": effect > -MARGIN}
    elif study == "aggregate":  # is [CLS] an aggregate: better than every baseline, as good as the mean?
        threshold = -MARGIN if b.startswith("mean pooling") else 0.0
        holds = {"Yes": effect > threshold and min(over_baselines) > 0, "No": effect < threshold}
    elif study == "fine_tuning":  # fine-tuned from any other position, does it work as well?
        over_cls = [
            value - look_up("[CLS]", of_table)[0] for (control, *_), value in of_table.items() if control == "none"
        ]
        holds = {"Yes": min(over_cls) > -MARGIN, "No": effect < -MARGIN}
    elif study == "order":  # does flattening destroy order?
        holds = {"Yes": effect < MARGIN, "No": effect > MARGIN and min(over_baselines) > MARGIN}
    else:
        holds = {}
        if "more than every baseline" in sentence and "not certainly" not in sentence and min(over_baselines) < 0:
            yield "a baseline is better"
        if "tells as much as" in sentence and effect < -MARGIN:
            yield "it tells less"
        if "tells less than" in sentence and effect > -MARGIN:
            yield "it tells as much"
    if not holds.get(lead, lead not in ("Yes", "No")):
        yield f"{lead}, and {effect} points"


def read_share(rows: pd.DataFrame, sentence: str) -> Iterator[str]:
    """The share of the blind decoder's errors that is put right: is it possible to get back the sequence?"""
    means = rows.groupby("source").likeness.mean()
    written = means["corrected"] if "corrected" in means else means["vector"]
    share = (written - means["no input"]) / (1 - means["no input"])
    said = re.search(r"right (-?\d\.\d\d) \((-?\d\.\d\d) to (-?\d\.\d\d)\)", sentence)
    if said and not (abs(float(said[1]) - share) < 0.006 and float(said[2]) <= float(said[1]) <= float(said[3])):
        yield f"{said[1]}, and {share:.2f} in the table"
    if not said and "nothing right" not in sentence:
        yield "no share is said"
    if sentence.startswith("No") or (sentence.startswith("Yes") and share < 0.5):
        yield f"{sentence[:3]}, and a share of {share:.2f}"


HALVES = {
    "both halves are necessary": {"lower": True, "upper": True},
    "neither half is necessary": {"lower": False, "upper": False},
    "either half suffices": {"lower": True, "upper": True},
    "neither half suffices": {"lower": False, "upper": False},
}


def read_cuts(rows: pd.DataFrame, sentence: str) -> Iterator[str]:
    """What retrained probes read after cuts, which half is necessary, which suffices, and what is said of encoders
    without training."""
    right = (rows.label == rows.predicted).groupby([rows.control, rows.edges, rows["first"], rows["last"]]).mean() * 100
    last = rows.layer.iloc[0]
    intact, everywhere = right["none", "none", 0, 0], right["none", "rest->cls", 1, last]
    if not all(f"{value / 100:.3f}" in sentence for value in (intact, everywhere)):
        yield "not the accuracies intact and cut off everywhere"
    if "trained anew after every cut" not in sentence:
        return
    spans = {"lower": (1, last // 2), "upper": (last - last // 2 + 1, last)}
    costs, losses = (
        {h: intact - right["none", edges, *span] for h, span in spans.items()} for edges in ("rest->cls", "only")
    )
    for what, claimed in read_halves(sentence):
        for half, holds in claimed.items():
            held = costs[half] > MARGIN if "necessary" in what else losses[half] < MARGIN
            if held != holds:
                yield f"{what}, and {costs} and {losses} points"
    said = [float(number) for number in re.findall(r"the cut costs (-?\d+\.\d) .+? and (-?\d+\.\d) ", sentence)[0]]
    if any(abs(number - cost) > 0.06 for number, cost in zip(said, costs.values(), strict=True)):
        yield f"costs of {said}, and {costs}"
    trained, untrained = (
        right[c, "rest->cls", *spans["lower"]] - right[c, "rest->cls", *spans["upper"]] for c in ("none", "untrained")
    )
    later = trained - untrained
    effect = float(re.search(rf"a difference of ({NUMBER}) ", sentence)[1])
    if abs(effect - later) > 0.06:
        yield f"a difference of {effect}, and {later} in the table"
    holds = {
        "gathers it later": later > MARGIN,
        "gathers it earlier": later < -MARGIN,
        "gathers it no later": later < MARGIN,
        "no different": abs(later) < MARGIN,
    }
    claims = [what for what in holds if f"{what} than in" in sentence or f"{what} from" in sentence]
    if "not certain whether [CLS] gathers" not in sentence and not (claims and all(holds[what] for what in claims)):
        yield f"{claims}, and {later} points"


def read_halves(sentence: str) -> Iterator[tuple[str, dict[str, bool]]]:
    """What is said to be necessary, and what to suffice: the words, and half -> whether it is."""
    for what, claimed in HALVES.items():
        if re.search(rf"(?<!whether )\b{what}", sentence.lower()):
            yield what, claimed
    for half, word in re.findall(
        r"(?<!whether )the (lower|upper) half (is(?: not)? necessary|suffices|does not suffice)", sentence.lower()
    ):
        yield word, {half: "not" not in word}


def read_training(rows: pd.DataFrame, sentence: str) -> Iterator[str]:
    """Whether the label is easier to read at the end than at the start."""
    start, end = (rows[rows.order == order].value.iloc[0] for order in (rows.order.min(), rows.order.max()))
    scores = f"it gets {start:.3f} of the test texts right at the start and {end:.3f} at the end"
    if scores not in sentence:
        yield f"not: {scores}"
    said = re.search(r"the label is (easier|harder) .+?, by (\d+\.\d) points", sentence)
    if said and abs({"easier": 1, "harder": -1}[said[1]] * float(said[2]) - 100 * (end - start)) > 0.06:
        yield f"{said[0]}, and {100 * (end - start):+.1f}"


def compute_accuracies(rows: pd.DataFrame) -> dict[tuple, float]:
    """(control, layer, readout) -> accuracy on test in %, the best single class of test among them."""
    test = rows[rows.split == "test"]
    right = (test.label.astype(str) == test.predicted.astype(str)).astype(float) * 100
    values = right.groupby([test.control.astype(str), test.layer, test.readout.astype(str)]).mean()
    best = 100 * test.drop_duplicates("row").label.value_counts(normalize=True).max()
    return values.to_dict() | {BEST_CLASS: best}


def look_up(side: str, of_table: Mapping[tuple, float]) -> list[float]:
    """The accuracies of what a sentence calls so, over the layers that it lists."""
    name, _, listed = side.partition(" (layer")
    if name in READOUTS:
        spans = [span.split(" to ") for span in listed.strip("s )").split(", ")]
        if not listed:  # the only layer
            return [
                value
                for (control, _, readout), value in of_table.items()
                if (control, readout) == ("none", READOUTS[name])
            ]
        layers = {layer for span in spans for layer in range(int(span[0]), int(span[-1]) + 1)}
        return [of_table["none", layer, READOUTS[name]] for layer in layers]
    if side.startswith("untrained encoder"):
        readout, layer = re.search(r", (\w+) at layer (\d)", side).groups()
        return [of_table["untrained", int(layer), readout]]
    if side == BEST:
        return [of_table[BEST_CLASS]]
    control, readout = ("none", "vector") if side == FILE else (BASELINES[side], None)
    return [value for cell, value in of_table.items() if cell[0] == control and readout in (None, cell[2])]


# -------------------------------------------------------------------------------------------------------- one task


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("geometry")])
def test_the_words_of_a_task_agree_with_its_table_and_the_question(name):
    measured, verdict = judge(name)
    study = ALL[name].study
    for task in measured.tasks:
        table = "retrained" if study.name() == "formation" else study.judged
        part, rows = verdict.parts.get(task, verdict), measured.rows(table, task)
        if not part.is_judged or not part.is_counted:
            continue
        find_faults = make_reader(study.name(), rows)
        assert find_faults(part.sentence) == []
        if part.outcome == "undecided":
            assert not re.match("Yes|No", part.sentence)
            continue
        twins = [
            re.sub(word, other, part.sentence, count=1) for word, other in TURNED if re.search(word, part.sentence)
        ]
        assert twins
        for twin in twins:
            assert find_faults(twin), twin


@pytest.mark.parametrize("name", ALL)
def test_what_decides_nothing_says_so_first_or_last(name):
    measured, verdict = judge(name)
    for part in [verdict.parts.get(task, verdict) for task in measured.tasks]:
        if not part.is_counted:
            assert re.match("Left out: |[^,]+, so that this decides nothing: ", part.sentence)
            assert not re.match("Yes|No|Undecided", part.sentence)
        elif not part.is_judged:
            assert part.sentence.startswith("Not answered")
            assert not re.search(DIRECTION, part.sentence)
        if not (part.is_counted and part.is_judged):
            assert (part.outcome, part.p, part.warnings) == ("undecided", 1.0, ())
        if part.outcome == "undecided" and not part.is_open and part.is_counted and part.is_judged:
            assert part.sentence.startswith("Undecided: ")
            assert len(re.findall(r"Yes|No\b", part.sentence)) == 0


@pytest.mark.parametrize("name", [name for name in READ if name.startswith("geometry")])
def test_a_description_judges_nothing(name):
    _, verdict = judge(name)
    assert (verdict.label, verdict.is_claim) == ("described", False)
    assert not re.search(DIRECTION, verdict.sentence.replace(" more", ""))  # "and 2 more"


def test_one_class_for_all_texts_is_said_and_no_number_of_texts_is_promised():
    of_all = ["[CLS] predicts one class", "[CLS] predicts the other class", "both predict one class"]
    of_all += ["mean predicts one class", "another predicts one class"]
    for name in (name for name in ALL if name.partition(": ")[2] in of_all and not name.startswith("fine-tuning")):
        _, verdict = judge(name)
        assert verdict.outcome == "undecided"
        assert re.search(r"(\[CLS\]|mean pooling|sep) predicts? one class for all test texts", verdict.sentence)
        assert "predicts one class for all 800 test texts." in verdict.warnings[0]
        assert verdict.advice == ""


# ---------------------------------------------------------------------------------------------------- several tasks

STATEMENTS = {  # of an open question over several tasks -> what the sentence of such a task says
    "more than every baseline": "right, more than every baseline",
    "less than a baseline": "right, less than ",
    "not certainly more than every baseline": "right, not certainly more than",
    "the best other position tells as much as [CLS] (within 2 points)": "best on dev, tells as much as",
    "the best other position tells less than [CLS] (by more than 2 points)": "best on dev, tells less than",
    "not certain whether the best other position tells as much": "it is not certain that this other position",
    "later than in untrained encoders": "gathers it later than in untrained encoders",
    "no later than in untrained encoders": "gathers it earlier than in untrained encoders",
    "not certain": "cannot be said",
    "a gain": "easier to read",
    "a loss": "harder to read",
    "no certain change": "not certainly easier or harder",
    "left out:": "so that this decides nothing",
}
LEADS = {
    "yes": "Yes: ",
    "no": "No: ",
    "undecided": "Undecided: ",
    "left out": "Left out: ",
    "not answered": "Not answered",
}


@pytest.mark.parametrize("name", [name for name in ALL if "task" in name])
def test_the_words_over_several_tasks_are_those_of_the_tasks(name):
    _, verdict = judge(name)
    sentences = {short(task): part.sentence for task, part in verdict.parts.items()}
    head = verdict.sentence.partition(". ")[0]
    assert len(sentences) > 1
    if verdict.is_open:
        clauses = [clause for clause in head.split("; ") if not name.startswith("geometry")]
        for clause in clauses:
            statement, tasks = re.fullmatch(r"(.+?)(?: on|(?<=out:)) ((?:\d: label(?:, )?)+)", clause).groups()
            words = STATEMENTS[statement[0].lower() + statement[1:]]
            assert all(words in sentences[task] for task in tasks.split(", "))
    elif said := re.fullmatch(r"(Yes|No|Undecided), on (?:all (\d)|both) tasks", head):
        assert int(said[2] or 2) == len(sentences)
        assert all(sentence.startswith(f"{said[1]}: ") for sentence in sentences.values())
    else:
        lead, count, counts = re.fullmatch(r"(Yes|No|Mixed|Undecided): of (\d) tasks (.+)", head).groups()
        groups = re.findall(r"([a-z ]+?) on (\d) \(([^)]+)\)", counts)
        assert sum(int(number) for _, number, _ in groups) == int(count) == len(sentences)
        for word, number, tasks in groups:
            assert len(tasks.split(", ")) == int(number)
            assert all(sentences[task].startswith(LEADS[word.strip()]) for task in tasks.split(", "))
        found = {word.strip() for word, *_ in groups} - {"left out"}
        assert {"Mixed": {"yes", "no"} <= found, "Yes": found == {"yes"}, "No": found == {"no"}}.get(lead, True)
    for task, effect in re.findall(
        rf"(\d: label)(?: sep \(layers 2, 3\))? ({NUMBER})(?: points)?(?: \(|[;.])", verdict.sentence
    ):
        part = verdict.parts[f"file:{task.replace(': ', ':')}"]
        if part.is_counted and name.partition(":")[0] in ("poolings", "positions", "trajectory", "formation"):
            assert float(effect) == pytest.approx(100 * part.effect, abs=0.051)


# ----------------------------------------------------------------------------------------------------------- a page


@pytest.mark.parametrize("name", ALL)
def test_an_answer_that_does_not_stand_on_its_page_says_so_first(name):
    _, verdict = judge(name)
    doubted = verdict.corrected(0.2, 4)
    assert doubted.outcome == "undecided"
    assert doubted.corrected(0.2, 4) is doubted
    if verdict.outcome == "undecided":
        assert doubted is verdict
        return
    lead, _, own = doubted.sentence.partition(" By itself: ")
    assert own == verdict.sentence
    what = "ot certain among the 4 answers of this page (Holm, p = 0.2)."
    assert lead == (f"N{what}" if verdict.is_open else f"Undecided: n{what}")
    assert verdict.corrected(0.04, 4) is verdict
