"""Every printed sentence, derived from saved tables and facts alone: nothing of clsprobe is imported.

`derive_answer` takes the name of a study with its tables and facts and says what it should print: the sentence of each
task, the one over all tasks, the warnings, and how many texts would decide. `derive_headlines` corrects the answers of
a page for their number. All of it is written anew from docs/answers.md, with intervals and tests of its own: Bonett &
Price for shares, Student's t over texts, over seeds and over halvings of the training texts, and for an interval that a
table holds the normal distribution.

To add a study: a function (rows, facts) -> `Task` in `STUDIES`, and what it lists for several tasks in `LISTED`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

NAMES = {"cls": "[CLS]", "mean": "mean pooling", "max": "max pooling", "attention": "attention pooling"}
CONTROLS = {
    "majority": "majority class",
    "length": "text length",
    "bag_of_words": "bag of words",
    "layer0_mean": "mean of layer 0",
    "untrained": "untrained encoder",
}
BLIND = ("majority", "length", "bag_of_words", "layer0_mean")
BEST_CLASS = ("best class", -1, "none")
MARGIN, LEVEL, MOST_SEEDS = 0.02, 0.025, 30
ADD_TEXTS = "Add texts to the source, and run the same command with --overwrite."
# study -> what it lists for every one of several tasks, and what it states of them where its question is open
LISTED = {
    "run": (
        "Score on test, at the layer that dev chooses",
        ("more than every baseline", "less than a baseline", "not certainly more than every baseline"),
    ),
    "aggregate": ("[CLS] minus mean pooling, and minus its closest baseline, in points", None),
    "poolings": ("Mean pooling minus [CLS], in points", None),
    "positions": (
        "The other position that is best on dev, minus [CLS], in points",
        (
            "the best other position tells as much as [CLS] (within 2 points)",
            "the best other position tells less than [CLS] (by more than 2 points)",
            "not certain whether the best other position tells as much",
        ),
    ),
    "fine_tuning": ("The lowest of the others minus [CLS]", None),
    "order": ("Flattened tokens minus the closest baseline without order, in points", None),
    "formation": (
        "What the cut in the upper half of the layers costs retrained probes of [CLS] beyond the cut in the lower "
        "half, minus the same in untrained encoders, in points",
        ("later than in untrained encoders", "no later than in untrained encoders", "not certain"),
    ),
    "trajectory": (
        "What a linear probe on the last layer gains from the start of the training to its end",
        ("a gain", "a loss", "no certain change"),
    ),
    "geometry": ("Effective ranks, and mean cosines of two texts without massive coordinates", ()),
}
Cell = tuple[str, int, str]  # control, layer, readout


class Missing(Exception):
    """The tables lack what the question needs."""


# ------------------------------------------------------------------------------------------------ effects and claims


@dataclass(frozen=True)
class Effect:
    """value: as measured. centre: of its intervals, whose squared half-widths come from test texts ("texts"), from
    "seeds" and from "training" texts."""

    value: float
    centre: float
    variances: Mapping[str, float]
    freedoms: Mapping[str, float]
    largest: float = math.inf

    def half(self, tail: float = LEVEL, **times: float) -> float:
        """Half the interval that leaves out `tail` on either side, with so many times of what times names."""
        variances = {name: value / times.get(name, 1.0) for name, value in self.variances.items()}
        weighted = sum(value * stats.t.isf(tail, self.freedoms[name]) for name, value in variances.items())
        return float(weighted / math.sqrt(sum(variances.values())))

    def times(self, distance: float, tail: float, *names: str) -> float:
        """How many times as many of these make it half the interval."""
        if self.half(tail, **dict.fromkeys(names, 1e6)) >= distance:
            return math.inf
        return optimize.brentq(lambda times: self.half(tail, **dict.fromkeys(names, times)) - distance, 1e-9, 1e6)

    @property
    def of_fits(self) -> Effect:
        """The same for these probes as they were fitted."""
        return replace(self, variances={name: v for name, v in self.variances.items() if name != "training"})

    def ends(self, tail: float = LEVEL) -> tuple[float, float]:
        return max(self.centre - self.half(tail), -self.largest), min(self.centre + self.half(tail), self.largest)

    def p(self, distance: float) -> float:
        """The tail for which the centre lies half an interval, less or more, from where it is tested."""
        if len(self.variances) == 1:
            ((name, variance),) = self.variances.items()
            return float(stats.t.sf(distance / math.sqrt(variance), self.freedoms[name]))
        if distance < 0:
            return 1 - self.p(-distance)
        if self.half(math.exp(-200)) <= distance:
            return 0.0
        return math.exp(optimize.brentq(lambda log: self.half(math.exp(log)) - distance, -200, math.log(0.5)))


def subtract(
    a: np.ndarray, b: np.ndarray, halves: np.ndarray | None = None, groups: np.ndarray | None = None
) -> Effect:
    """a - b of shares, (seed, text), over the same texts, of which two more are as far apart as can be.

    halves: (halving, half, seed, text) a - b of probes that saw half of the training texts. groups: (text,) equal for
    texts that are not independent of each other.
    """
    difference = a.astype(float) - b
    by_text, by_seed, n = difference.mean(0), difference.mean(1), difference.shape[1] + 2
    centre = by_text.sum() / n
    squares, freedom = add_squares(by_text - centre, groups), n - 1
    if (count := count_groups(by_text, groups)) < len(by_text):
        squares, freedom = squares * count / (count - 1), count - 1
    variances, freedoms = {"texts": (squares + 2 * (1 + centre**2)) / n**2}, {"texts": float(freedom)}
    if len(by_seed) > 1:
        variances["seeds"], freedoms["seeds"] = by_seed.var(ddof=1) / len(by_seed), len(by_seed) - 1
    if halves is not None:
        gaps = [first - second for pair in halves for first, second in zip(*pair, strict=True)]
        of_halves = np.mean([(gap.mean() ** 2 - vary_mean(gap, groups)) / 2 for gap in gaps])
        variances["training"], freedoms["training"] = max(float(of_halves), 0.0) / 2, len(halves)
    return Effect(difference.mean(), centre, variances, freedoms, 1.0)


def vary_mean(values: np.ndarray, groups: np.ndarray | None) -> float:
    """The sampling variance of the mean of (text,) values."""
    count = count_groups(values, groups)
    return add_squares(values - values.mean(), groups) / len(values) ** 2 * count / (count - 1)


def count_groups(values: np.ndarray, groups: np.ndarray | None) -> int:
    """The number of groups of (text,) values; of texts where all are of one group, which says nothing of others."""
    count = len(values) if groups is None else len(set(groups))
    return count if count > 1 else len(values)


def add_squares(deviations: np.ndarray, groups: np.ndarray | None) -> float:
    """The sum of the squared sums of the groups of (text,) deviations."""
    if groups is None or count_groups(deviations, groups) == len(deviations):
        return float((deviations**2).sum())
    sums: dict[Any, float] = {}
    for group, deviation in zip(groups, deviations, strict=True):
        sums[group] = sums.get(group, 0.0) + deviation
    return sum(value**2 for value in sums.values())


def read_effect(value: float, low: float, high: float) -> Effect:
    """An effect with the 95 % interval that a table holds."""
    variance = ((high - low) / 2 / 1.959963984540054) ** 2
    return Effect(value, (low + high) / 2, {"texts": variance}, {"texts": math.inf})


@dataclass(frozen=True)
class Part:
    """An effect is above a threshold. can_hold, can_fail: False where a readout predicts one class."""

    name: str
    effect: Effect
    threshold: float
    cells: tuple[Cell, ...] = ()
    can_hold: bool = True
    can_fail: bool = True

    @property
    def excess(self) -> float:
        return self.effect.value - self.threshold

    @cached_property
    def p_yes(self) -> float:
        return self.effect.p(self.effect.centre - self.threshold) if self.can_hold else 1.0

    @cached_property
    def p_no(self) -> float:
        return self.effect.p(self.threshold - self.effect.centre) if self.can_fail else 1.0

    def times(self, tail: float, *names: str) -> float:
        """How many times as many of these make half the interval as wide as the effect is away from the threshold."""
        return self.effect.times(abs(self.excess), tail, *names)


@dataclass(frozen=True)
class Task:
    """What is printed about one task, or about all. word: the outcome. p: of yes, no and mixed. need: the clause on the
    texts that would decide, and whether there may be so many. seeds: that would decide, and that were used. parts: the
    comparisons. interval_of: what their intervals are about."""

    sentence: str
    word: str = "undecided"
    p: tuple[float, float, float] = (1.0, 1.0, 1.0)
    brief: str = ""
    warnings: tuple[str, ...] = ()
    need: tuple[str, bool] | None = None
    seeds: tuple[int, int] | None = None
    is_open: bool = False
    is_claim: bool = False
    advice: str = ""
    interval_of: str = ""
    parts: tuple[Part, ...] = ()
    tasks: Mapping[str, Task] = field(default_factory=dict)

    def left_out(self, reason: str) -> Task:
        lead = f"{reason[0].upper()}{reason[1:]}, so that this decides nothing"
        finding = f"{self.sentence[0].lower()}{self.sentence[1:]}"
        sentence = f"{lead}: {finding}" if self.is_open else f"Left out: {reason}."
        return replace(
            Task(sentence, "left out", brief=self.brief, is_open=self.is_open),
            parts=self.parts,
            interval_of=self.interval_of,
        )


def judge(
    parts: Sequence[Part],
    say: Callable[[str, Part, tuple[float, float]], str],
    *,
    turned: bool = False,
    is_open: bool = False,
    texts: int = 0,
    trained: int = 0,
    **more: Any,
) -> Task:
    """Whether all parts hold; turned: whether one fails. say: (holds, fails or undecided; the part that decides; the
    ends of its interval) -> the sentence after the word. texts, trained: the numbers of test and of training texts."""
    p_holds, p_fails = max(part.p_yes for part in parts), min(min(part.p_no for part in parts) * len(parts), 1.0)
    if p_holds < LEVEL:
        state, part, tail = "holds", min(parts, key=lambda part: part.excess), LEVEL
    elif p_fails < LEVEL:
        state, part, tail = "fails", min(parts, key=lambda part: (part.p_no, part.excess)), LEVEL / len(parts)
    else:
        state, part, tail = "undecided", max(parts, key=lambda part: (part.p_yes, -part.excess)), LEVEL
    word = {"holds": "no" if turned else "yes", "fails": "yes" if turned else "no"}.get(state, state)
    clause, need = say(state, part, part.effect.ends(tail)), None
    if state == "undecided" and texts:
        alone, both = (count_times(parts, *names) for names in (("texts",), ("texts", "training")))
        need = describe_need(alone, both, texts, trained) if alone is not None else None
    sentence = f"{clause[0].upper()}{clause[1:]}." if is_open else f"{word.capitalize()}: {clause}."
    p = (p_fails, p_holds, 1.0) if turned else (p_holds, p_fails, 1.0)
    return Task(sentence, word, p, need=need, is_open=is_open, is_claim=True, parts=tuple(parts), **more)


def count_times(parts: Sequence[Part], *names: str) -> float | None:
    """How many times as many of these decide what is undecided; None where a readout that predicts one class keeps it
    so."""
    below = [part for part in parts if part.excess < 0]
    if below:  # one of them has to fail, in the interval that holds for all at once
        counts = [part.times(LEVEL / len(parts), *names) for part in below if part.can_fail]
        return min(counts) if counts else None
    # all have to hold, the one that needs most texts too
    return max(part.times(LEVEL, *names) for part in parts) if all(part.can_hold for part in parts) else None


def describe_need(alone: float, both: float, texts: int, trained: int) -> tuple[str, bool]:
    """alone: how many times as many test texts decide; both: as many test and training texts."""
    most, effect = 1_000_000, "decide at this effect"
    needed, together = (max(math.ceil(texts * x), texts + 1) if x < math.inf else x for x in (alone, both))
    if texts * both > most:
        return f"more than {most:,} test texts, or more seeds, would be needed to {effect}.", False
    test_texts = max(round_to_two_digits(needed), texts + 1) if needed < math.inf else 0
    can_be = needed <= most or trained * both <= most
    if needed < 1.1 * together:
        return f"about {test_texts:,} test texts could {effect} ({texts:,} were used).", can_be
    more = max(both, 1.1)
    training, test = (f"{round_to_two_digits(more * count):,}" for count in (trained, texts))
    factor = f"{more:.1f}" if more < 10 else f"{round_to_two_digits(more):,}"
    as_well = f"about {factor} times as many of both could ({training} training and {test} test texts)."
    with_these = f"{effect} with {trained:,} training texts"
    if needed == math.inf:
        return f"no number of test texts would {with_these}; {as_well}", can_be
    if needed > most:
        return f"fewer than {most:,} test texts would not {with_these}; {as_well}", can_be
    return f"about {test_texts:,} test texts could {with_these} ({texts:,} were used); {as_well}", can_be


def round_to_two_digits(number: float) -> int:
    unit = 10 ** max(len(str(int(number))) - 2, 0)
    return round(number / unit) * unit


# --------------------------------------------------------------------------------------------------- several answers


def shorten(task: str) -> str:
    return task.partition(":")[2].replace(":", ": ") or task


def enumerate_all(items: Sequence[str], separator: str = ", ", more: str = " ...", end: str = "") -> str:
    return separator.join(items[:6]) + (more if len(items) > 6 else end)


def unite(tasks: Mapping[str, Task], study: str) -> Task:
    """What is printed over several tasks."""
    opening, statements = LISTED.get(study, ("", None))
    counted = [task for task in tasks.values() if task.word != "left out"]
    adjusted = [min([task.p[i] for task in counted], default=1) * len(counted) for i in (0, 1)]
    p_mixed = max(adjusted) if len(counted) > 1 else 1.0
    words = {task.word if task.word != "not answered" else "undecided" for task in counted}
    word = "mixed" if p_mixed < LEVEL else words.pop() if len(words) == 1 else "undecided"
    groups = {w: [shorten(name) for name, task in tasks.items() if task.word == w] for w in
              ("yes", "no", "undecided", "left out", "not answered")}  # fmt: skip
    groups = {w: names for w, names in groups.items() if names}
    if any(task.is_open for task in tasks.values()):
        said = dict(zip(("yes", "no", "undecided"), statements or (), strict=False))
        said = {w: f"{text} on" for w, text in said.items()} | {
            "not answered": "not answered on",
            "left out": "left out:",
        }
        clauses = "; ".join(f"{said[w]} {enumerate_all(names)}" for w, names in groups.items() if w in said)
        conclusion = f"{clauses[0].upper()}{clauses[1:]}. " if clauses else ""
    elif list(groups) == [word]:
        conclusion = f"{word.capitalize()}, on {'both' if len(tasks) == 2 else f'all {len(tasks)}'} tasks. "
    else:
        counts = ", ".join(f"{w} on {len(names)} ({enumerate_all(names)})" for w, names in groups.items())
        conclusion = f"{word.capitalize()}: of {len(tasks)} tasks {counts}. "
    briefs = [task.brief for task in tasks.values() if task.brief]
    effects = enumerate_all(briefs, "; ", "; ...", ".") if briefs else ""
    effects = f"{opening}: {effects}" if opening and briefs else effects[:1].upper() + effects[1:]
    return Task(
        f"{conclusion}{effects}".strip(),
        word,
        (max((t.p[0] for t in counted), default=1.0), max((t.p[1] for t in counted), default=1.0), min(p_mixed, 1.0)),
        warnings=tuple(dict.fromkeys(warning for task in tasks.values() for warning in task.warnings)),
        is_open=any(task.is_open for task in tasks.values()),
        is_claim=any(task.is_claim for task in tasks.values()),
        interval_of=unite_intervals(tasks),
    )  # fmt: skip


def unite_intervals(tasks: Mapping[str, Task]) -> str:
    """The one clause on what the intervals are about, or every one with its tasks."""
    clauses = {task.interval_of: [] for task in tasks.values() if task.interval_of}
    for name, task in tasks.items():
        clauses.get(task.interval_of, []).append(shorten(name))
    several = [f"{clause} ({enumerate_all(names)})" for clause, names in clauses.items()]
    return "; ".join(several if len(clauses) > 1 else clauses)


def derive_answer(study: str, tables: Mapping[str, pd.DataFrame], facts: Mapping[str, Any]) -> Task:
    """What a study prints. The advice ends with the sentence for texts of a file, all of which were read."""
    tasks = {name: derive_task(study, tables, facts, name) for name in facts["rows"]}
    answer = unite(tasks, study) if len(tasks) > 1 else next(iter(tasks.values()))
    needs = {name: task.need for name, task in tasks.items() if task.need}
    clauses = [f"{shorten(name)}: {clause}" if len(tasks) > 1 else clause[0].upper() + clause[1:]
               for name, (clause, _) in needs.items()]  # fmt: skip
    clauses += [ADD_TEXTS] if any(can_be for _, can_be in needs.values()) else []
    if seeds := [task.seeds for task in tasks.values() if task.seeds]:
        count, used = (max(column) for column in zip(*seeds, strict=True))
        few = f"About {count} seeds would decide at this effect ({used} were used): run it again with --seeds {count}."
        many = f"More than {MOST_SEEDS} seeds would be needed to decide on these test texts: add texts."
        clauses.append(few if count <= MOST_SEEDS else many)
    return replace(answer, advice=" ".join(clauses), tasks=tasks)


def derive_headlines(answers: Mapping[str, Task]) -> dict[str, str]:
    """The sentences of a page: those that do not stand among all of its claims say so first."""
    p = {name: min(1.0, 2 * min(answer.p)) for name, answer in answers.items() if answer.is_claim}
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p, key=p.__getitem__)):
        largest = adjusted[name] = max(largest, min(1.0, p[name] * (len(p) - rank)))
    headlines = {}
    for name, answer in answers.items():
        what = f"not certain among the {len(p)} answers of this page (Holm, p = {adjusted.get(name, 0):.2g})"
        doubted = name in p and len(p) > 1 and answer.word in ("yes", "no", "mixed") and adjusted[name] >= 0.05
        lead = f"N{what[1:]}" if answer.is_open else f"Undecided: {what}"
        headlines[name] = f"{lead}. By itself: {answer.sentence}" if doubted else answer.sentence
    return headlines


# ------------------------------------------------------------------------------------------------------------- words


def plain(number: float) -> str:
    text = f"{round(100 * number, 6):.1f}"
    return "0.0" if float(text) == 0 else text


def signed(number: float) -> str:
    return plain(number) if plain(number) == "0.0" else f"{round(100 * number, 6):+.1f}"


def span(ends: tuple[float, float], form: Callable[[float], str] = signed) -> str:
    return f"{form(ends[0])} to {form(ends[1])}"


def describe_few(texts: int, task: str) -> tuple[str, ...]:
    few = f"Only {texts} test texts on {task}: every figure may be far from what more texts would give."
    return (few,) * (texts < 50)


# ------------------------------------------------------------------------------------------- studies over predictions


class Table:
    """The predictions of one task and probe: every seed has the same texts. refits: the scores of probes that were
    fitted on halves of the training texts, or None."""

    def __init__(self, rows: pd.DataFrame, refits: pd.DataFrame | None = None) -> None:
        self.task, self.model = shorten(str(rows.task.iloc[0])), str(rows.model.iloc[0])
        rows = rows[rows.control.isin(["none", *CONTROLS])].sort_values(["seed", "row"])
        rows = rows.astype(dict.fromkeys(("control", "readout", "split", "label", "predicted"), str))
        self.hits: dict[tuple[Cell, str], np.ndarray] = {}
        self.bits: dict[Cell, float] = {}
        self.of_one_class: set[Cell] = set()
        for (*key, side), part in rows.groupby(["control", "layer", "readout", "split"], sort=False):
            cell, seeds = (key[0], key[1], key[2]), part.seed.nunique()
            predicted, labels = (part[name].to_numpy().reshape(seeds, -1) for name in ("predicted", "label"))
            self.hits[cell, side] = predicted == labels
            if side == "dev":
                self.bits[cell] = -part.log2_probability.mean()
            else:
                names, counts = np.unique(labels[0], return_counts=True)
                self.hits[BEST_CLASS, side] = labels == names[counts.argmax()]
                if cell[0] == "none" and all(len(set(row)) == 1 for row in predicted):
                    self.of_one_class.add(cell)
        self.texts = self.hits[BEST_CLASS, "test"].shape[1]
        self.refits: dict[tuple[str, str, str], np.ndarray] = {}  # control, readout, measure -> (half, seed, ...)
        self.trained, self.groups = 0, None
        self.interval_of = "these probes as they were fitted, over the test texts"
        if refits is None or not len(refits):
            return
        refits = refits.sort_values(["seed", "row"])
        for (control, readout, measure), part in refits.groupby(["control", "readout", "measure"], observed=True):
            halves = part[[f"half {number}" for number in range(20)]].to_numpy(float).T
            self.refits[control, readout, measure] = halves.reshape(20, part.seed.nunique(), -1)
        tested = refits[refits.measure == "test"].drop_duplicates("row")
        self.groups, self.trained = tested.group.to_numpy(), int(refits.n_train.iloc[0])
        of_probe = "strength and layer" if len({cell[1] for cell in self.of("none")}) > 1 else "strength"
        self.interval_of = (
            f"the expected difference between two such probes, each trained on {self.trained:,} texts with its "
            f"{of_probe} chosen on dev"
        )

    def halves(self, cell: Cell, among: Sequence[str] = ()) -> np.ndarray | None:
        """(halving, half, seed, text) whether the probe of a half is right that reads the readout which is best on the
        dev texts of this half. among: the readouts that it may choose; only that of the cell, if none is named."""
        if cell == BEST_CLASS:
            return np.broadcast_to(self.right(cell), (10, 2, *self.right(cell).shape))
        names = among or ["any" if cell[0] == "untrained" else cell[2]]
        if any((cell[0], name, "test") not in self.refits for name in names):
            return None
        chosen = np.empty((20, *self.right(cell).shape))
        for half, seed in np.ndindex(chosen.shape[:2]):

            def rank(name: str, half: int = half, seed: int = seed) -> tuple[float, float]:
                accuracy, bits = (self.refits[cell[0], name, side][half, seed, 0] for side in ("dev", "dev bits"))
                return accuracy, -bits

            chosen[half, seed] = self.refits[cell[0], max(names, key=rank), "test"][half, seed]
        return np.stack([chosen[0::2], chosen[1::2]], 1)

    def right(self, cell: Cell, side: str = "test") -> np.ndarray:
        """(seed, text) whether it is right."""
        return self.hits[cell, side]

    def score(self, cell: Cell) -> float:
        return float(self.right(cell).mean())

    def of(self, control: str, readout: str | None = None) -> list[Cell]:
        return [cell for cell in self.bits if cell[0] == control and readout in (None, cell[2])]

    def choose(self, readout: str | None, control: str = "none") -> Cell:
        """The best on dev, then the one with the fewest bits, then the lowest layer."""
        cells = self.of(control, readout)
        if not cells:
            raise Missing(f"there are no predictions of {readout} on dev and test")
        return max(cells, key=lambda cell: (self.right(cell, "dev").mean(), -self.bits[cell], -cell[1]))

    def tied(self, cell: Cell) -> list[int]:
        """The layers that dev cannot tell from the chosen one, without those where all texts have one vector."""
        layers = [cell[1]]
        for other in self.of(cell[0], cell[2]):
            low, high = subtract(self.right(other, "dev"), self.right(cell, "dev")).ends()
            layers += [other[1]] if other != cell and low <= 0 <= high and other not in self.of_one_class else []
        return sorted(layers)

    def name(self, cell: Cell) -> str:
        if cell == BEST_CLASS:
            return "the best single class"
        if cell[0] == "untrained":
            seeds = len(self.right(cell))
            drawn = f"mean of {seeds} draws" if seeds >= 3 else "as drawn"
            return f"untrained encoder ({drawn}), {cell[2]} at layer {cell[1]}"
        if cell[0] != "none":
            return CONTROLS[cell[0]]
        if cell[2] == "vector" and len({other[1] for other in self.of("none")}) == 1:
            return f"the vector in {self.model}"
        layers = self.tied(cell)
        runs = np.split(layers, np.flatnonzero(np.diff(layers) > 1) + 1)
        parts = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
        return f"{NAMES.get(cell[2], cell[2])} (layer{'s' * (len(layers) > 1)} {', '.join(parts)})"

    def part(self, a: Cell, b: Cell, threshold: float = 0.0, among: Sequence[str] = ()) -> Part:
        """a minus b. among: the readouts among which dev chose a, where it had more than one."""
        sides = self.halves(a, among), self.halves(b)
        halves = None if any(side is None for side in sides) else np.subtract(*sides)
        effect = subtract(self.right(a), self.right(b), halves, self.groups)
        one_class = self.of_one_class
        return Part(self.name(b), effect, threshold, (a, b), a not in one_class, b not in one_class)

    def parts(self, cell: Cell, names: Sequence[str], threshold: float = 0.0, among: Sequence[str] = ()) -> list[Part]:
        """The cell minus every baseline that was measured, and minus the best single class of test."""
        baselines = [self.choose(None, name) for name in names if self.of(name)]
        return [self.part(cell, baseline, threshold, among) for baseline in [*baselines, BEST_CLASS]]

    @property
    def about(self) -> dict[str, Any]:
        """What `judge` has to know of the texts."""
        return {"texts": self.texts, "trained": self.trained, "interval_of": self.interval_of}

    def spread(self, cell: Cell) -> tuple[float, float] | None:
        """The scores of a readout over the layers that dev cannot tell apart."""
        if cell[0] != "none" or len(self.tied(cell)) < 2:
            return None
        scores = [self.score((cell[0], layer, cell[2])) for layer in self.tied(cell)]
        return min(scores), max(scores)

    def over(self, a: Cell, b: Cell) -> tuple[float, float] | None:
        if not (self.spread(a) or self.spread(b)):
            return None
        (low_a, high_a), (low_b, high_b) = (self.spread(cell) or (self.score(cell),) * 2 for cell in (a, b))
        return low_a - high_b, high_a - low_b

    def amount(self, part: Part, ends: tuple[float, float], form: Callable[[float], str] = plain) -> str:
        """ "4.0 points (0.1 to 8.0; 1.0 to 5.0 over these layers)"."""
        sign = -1 if form is plain and part.effect.value < 0 else 1
        over = self.over(*part.cells)
        texts = [span(tuple(sorted((sign * x, sign * y))), form) for x, y in ((*ends,), *([over] if over else []))]
        more = " over these layers" if over else ""
        return f"{form(sign * part.effect.value)} points ({'; '.join(texts)}{more})"

    def compared(self, part: Part, ends: tuple[float, float], names: tuple[str, str] | None = None) -> str:
        """Two cells in words. names: instead of those with their layers."""
        a, b = names or [self.name(cell) for cell in part.cells]
        if ends[0] > 0:
            return f"{a} is better than {b} by {self.amount(part, ends)}"
        if ends[1] < 0:
            return f"{a} is worse than {b} by {self.amount(part, ends)}"
        return f"{a} minus {b} is {self.amount(part, ends, signed)}"

    def scored(self, cell: Cell) -> str:
        spread = self.spread(cell)
        more = f" ({spread[0]:.3f} to {spread[1]:.3f} over these layers)" if spread else ""
        return f"gets {self.score(cell):.3f}{more} of the test texts right"

    def every(self, names: Sequence[str], noun: str = "baseline") -> str:
        missing = [CONTROLS[name] for name in names if not self.of(name)]
        return f"every {noun} measured (without {', '.join(missing)})" if missing else f"every {noun}"

    def describe_one_class(self, *cells: Cell) -> str:
        names = [NAMES.get(cell[2], cell[2]) for cell in cells if cell in self.of_one_class]
        verb = "predicts" if len(names) == 1 else "predict"
        return f"{' and '.join(names)} {verb} one class for all test texts" if names else ""

    def share_of_surface(self, names: Sequence[str]) -> tuple[float, str, float]:
        """What the best of these baselines gets of what the best single class leaves; its name and score."""
        cells = [self.choose(None, name) for name in names if self.of(name)]
        if not cells:
            return 0.0, "", 0.0
        best, majority = max(cells, key=self.score), self.score(BEST_CLASS)
        return (self.score(best) - majority) / (1 - majority), CONTROLS[best[0]], self.score(best)

    def warnings(self, *cells: Cell, surface: bool = False) -> tuple[str, ...]:
        share, name, score = self.share_of_surface(("length", "bag_of_words"))
        what = f"On {self.task}, {name} alone gets {score:.3f}: there is hardly anything left that a vector could add."
        one_class = f"predicts one class for all {self.texts:,} test texts."
        constant = [f"On {self.task}, {self.name(cell)} {one_class}" for cell in cells if cell in self.of_one_class]
        return *describe_few(self.texts, self.task), *constant, *([what] if surface and share >= 0.95 else [])


def derive_run(rows: pd.DataFrame, facts: Mapping[str, Any]) -> Task:
    table = Table(rows, facts["refits"])
    cell = table.choose("cls" if table.of("none", "cls") else None)
    among = () if cell[2] == "cls" else list(dict.fromkeys(other[2] for other in table.of("none")))
    name, score, one_class = table.name(cell), table.score(cell), table.describe_one_class(cell)

    def say(state: str, part: Part, ends: tuple[float, float]) -> str:
        comparison = {
            "holds": f"more than {table.every(tuple(CONTROLS))}, by {table.amount(part, ends)} over the closest, "
            f"{part.name}",
            "fails": f"less than {part.name}, by {table.amount(part, ends)}",
            "undecided": f"not certainly more than {part.name}: {one_class or table.amount(part, ends, signed)}",
        }[state]
        return f"on {table.task}, {name} {table.scored(cell)}, {comparison}"

    brief = f"{table.task} {score:.3f} {name.removeprefix('[CLS] ')}"
    warnings = table.warnings(cell, surface=True)
    parts = table.parts(cell, tuple(CONTROLS), among=among)
    return judge(parts, say, is_open=True, brief=brief, warnings=warnings, **table.about)


def derive_aggregate(rows: pd.DataFrame, facts: Mapping[str, Any]) -> Task:
    table = Table(rows, facts["refits"])
    cls, mean = table.choose("cls"), table.choose("mean")
    parts, of_mean = table.parts(cls, tuple(CONTROLS)), table.part(cls, mean, -MARGIN)
    one_class = table.describe_one_class(cls)

    def say(state: str, part: Part, ends: tuple[float, float]) -> str:
        compared = table.compared(part, ends)
        better = f"better than {table.every(tuple(CONTROLS))}, and than mean pooling or within 2 points of it"
        doubt = "which may be within the 2 points allowed" if part is of_mean else "which may be chance"
        rival = table.name(mean) if part is of_mean else part.name
        clause = {
            "holds": f"[CLS] is {better}; the closest comparison: {compared}",
            "fails": f"{compared}{', more than the 2 points allowed' if part is of_mean else ''}",
            "undecided": f"{one_class}: no comparison with {rival} can hold" if one_class else f"{compared}, {doubt}",
        }[state]
        return f"on {table.task}, {clause}"

    closest = min(part.effect.value for part in parts)
    brief = f"{table.task} {signed(of_mean.effect.value)} and {signed(closest)}"
    warnings = table.warnings(cls, mean, surface=True)
    return judge([*parts, of_mean], say, brief=brief, warnings=warnings, **table.about)


def derive_poolings(rows: pd.DataFrame, facts: Mapping[str, Any]) -> Task:
    table = Table(rows, facts["refits"])
    mean, cls = table.choose("mean"), table.choose("cls")
    part, one_class = table.part(mean, cls, -MARGIN), table.describe_one_class(mean, cls)

    def say(state: str, part: Part, ends: tuple[float, float]) -> str:
        doubt = one_class or "it may be worse by more than 2 points, or not"
        lead = "not by more than 2 points: " if state == "holds" and ends[0] <= 0 else ""
        return f"on {table.task}, {lead}{table.compared(part, ends)}{f': {doubt}' if state == 'undecided' else ''}"

    brief = f"{table.task} {signed(part.effect.value)} ({span(part.effect.ends())})"
    return judge([part], say, turned=True, brief=brief, warnings=table.warnings(cls, mean), **table.about)


def derive_positions(rows: pd.DataFrame, facts: Mapping[str, Any]) -> Task:
    table = Table(rows, facts["refits"])
    names = dict.fromkeys(cell[2] for cell in table.of("none"))
    others = [table.choose(name) for name in names if name in ("sep", "random") or name.startswith("token[")]
    best, cls = max(others, key=lambda cell: table.right(cell, "dev").mean()), table.choose("cls")
    part = table.part(best, cls, -MARGIN, among=[other[2] for other in others])
    doubt = "it is not certain that this other position, the best on dev, tells as much"
    meaning = {
        "holds": "this other position, the best on dev, tells as much as [CLS] (within 2 points)",
        "fails": "this other position, the best on dev, tells less than [CLS] (by more than 2 points)",
        "undecided": table.describe_one_class(best, cls) or doubt,
    }

    def say(state: str, part: Part, ends: tuple[float, float]) -> str:
        return f"on {table.task}, {table.compared(part, ends)}: {meaning[state]}"

    brief = f"{table.task} {table.name(best)} {signed(part.effect.value)}"
    return judge([part], say, is_open=True, brief=brief, warnings=table.warnings(cls, best), **table.about)


def derive_order(rows: pd.DataFrame, facts: Mapping[str, Any]) -> Task:
    table = Table(rows, facts["refits"])
    cell = table.choose("flatten_projected")
    parts = table.parts(cell, BLIND, MARGIN)

    def say(state: str, part: Part, ends: tuple[float, float]) -> str:
        difference = f"{table.amount(part, ends, signed)} over"
        what = {
            "holds": f"more than {table.every(BLIND, 'baseline without order')}: {difference} the closest, {part.name}",
            "fails": f"{difference} {part.name}, which sees no order: not 2 points more",
            "undecided": f"{difference} {part.name}, which sees no order",
        }[state]
        return f"on {table.task}, {table.name(cell)} {table.scored(cell)}, {what}"

    closest = max(parts, key=lambda part: part.p_yes)
    brief = f"{table.task} {signed(closest.effect.value)}"
    answer = judge(parts, say, turned=True, brief=brief, warnings=table.warnings(cell), **table.about)
    names = dict.fromkeys(other[2] for other in table.of("none") if not other[2].startswith("flatten"))
    others = sorted((table.choose(name) for name in names), key=lambda other: -table.right(other, "dev").mean())
    every = table.parts(others[0], BLIND, MARGIN, [other[2] for other in others]) if others else []
    p_kept = max((part.p_yes for part in every), default=1.0)
    if answer.p[0] < LEVEL <= p_kept:
        what = "no more than a baseline without order, but no other readout certainly keeps order there either"
        finding = f"Undecided: on {table.task}, {table.name(cell)} {table.scored(cell)}, {what}"
        answer = replace(answer, word="undecided", sentence=f"{finding}: there may be no order to destroy.")
    answer = replace(answer, p=(max(answer.p[0], p_kept), *answer.p[1:]))
    if 1 - table.score(BEST_CLASS) <= MARGIN:
        return answer.left_out(f"on {table.task}, one class leaves fewer than 2 points to be gained")
    share, name, score = table.share_of_surface(BLIND[1:])
    return answer.left_out(f"{name} solves {table.task} without order ({score:.3f})") if share >= 0.5 else answer


def derive_fine_tuning(rows: pd.DataFrame, facts: Mapping[str, Any]) -> Task:
    rows = rows[rows.probe.astype(str).str.startswith("fine-tuned")]
    dev = rows[rows.split == "dev"]
    dev = dev.assign(right=dev.label.astype(str) == dev.predicted.astype(str))
    rates = dev.groupby(["readout", "probe"], observed=True)[["right", "log2_probability"]].mean()
    rates = rates.sort_values(["right", "log2_probability"]).reset_index().drop_duplicates("readout", keep="last")
    chosen = dict(zip(rates.readout, rates.probe, strict=True))
    table = Table(rows[rows.readout.map(chosen).astype(str) == rows.probe.astype(str)])
    cells = {cell[2]: cell for cell in table.of("none")}
    learned = table.part(cells["cls"], BEST_CLASS)
    others = [name for name in cells if name != "cls"]
    names = [name for name in others if not is_pooled(name)] or others
    parts = [replace(table.part(cells[n], cells["cls"], -MARGIN), name=NAMES.get(n, n)) for n in names]
    kind = "pooling" if is_pooled(names[0]) else "position"
    all_of_them = f"the {len(names)} other {kind}s" if len(names) > 1 else f"the only other {kind}"
    as_well = "does as well as [CLS] or better, within the margin of 2 points"

    def say(state: str, part: Part, ends: tuple[float, float]) -> str:
        compared = table.compared(part, ends, (part.name, "[CLS]"))
        lead, several = f"on {table.task}, fine-tuned,", len(names) > 1
        if state == "fails":
            return f"{lead} {compared}, more than the margin of 2 points"
        least = f"{'the lowest' if state == 'holds' else 'least certain'} is {part.name}: " if several else ""
        if state == "holds":
            return f"{lead} {'each of ' * several}{all_of_them} {as_well}; {least}{compared}"
        count = f"{sum(part.p_yes >= LEVEL for part in parts)} of " if several else ""
        return f"{lead} for {count}{all_of_them} it is open whether it {as_well}; {least}{compared}"

    lowest = min(parts, key=lambda part: part.effect.value)
    brief = f"{table.task} {lowest.name} {signed(lowest.effect.value)} points"
    answer = judge(
        parts,
        say,
        brief=brief,
        warnings=table.warnings(*(cells[name] for name in ("cls", *names))),
        interval_of="trainings on these texts, over the test texts and the seeds of the training",
    )
    if learned.p_yes >= LEVEL:
        return answer.left_out(
            f"on {table.task}, [CLS] fine-tuned gets {table.score(cells['cls']):.3f} of the test texts right, not "
            f"clearly more than the best single class ({signed(learned.effect.value)} points, "
            f"{span(learned.effect.ends())})"
        )
    return replace(answer, seeds=count_seeds(parts)) if answer.word == "undecided" else answer


def is_pooled(readout: str) -> bool:
    return re.split(r"[@(\[]", readout)[0] in ("mean", "max", "attention", "flatten", "flatten_projected", "cat")


def count_seeds(parts: Sequence[Part]) -> tuple[int, int] | None:
    """How many seeds would decide, `MOST_SEEDS` + 1 where more would, and how many there were; None of a single one."""
    used = int(parts[0].effect.freedoms.get("seeds", -1)) + 1
    below = [part for part in parts if part.excess < 0]
    tail = LEVEL / len(parts) if below else LEVEL

    def decides(part: Part, count: int) -> bool:
        effect = replace(part.effect, freedoms={**part.effect.freedoms, "seeds": count - 1})
        return effect.half(tail, seeds=count / used) <= abs(effect.centre - part.threshold)

    counts = [
        next((count for count in range(used + 1, MOST_SEEDS + 1) if decides(part, count)), MOST_SEEDS + 1)
        for part in below or parts
        if used and part.p_yes >= LEVEL
    ]
    return ((min if below else max)(counts), used) if counts else None


# -------------------------------------------------------------------------------------------- studies over other tables


def resample(measure: Callable[[np.ndarray], np.ndarray], n: int) -> tuple[float, float]:
    """The percentiles of a measure of weights (draw, text), of the draws with the seeds (0, number of the draw)."""
    drawn = (np.random.default_rng([0, i]).integers(n, size=n) for i in range(2000))
    weights = np.stack([np.bincount(texts, minlength=n) for texts in drawn]).astype(float)
    low, high = np.quantile(measure(weights), [0.025, 0.975], method="nearest")
    return float(low), float(high)


def derive_reconstruct(rows: pd.DataFrame, facts: Mapping[str, Any]) -> Task:
    decoder = rows.decoder.iloc[-1]
    rows = rows[(rows.decoder == decoder) & (rows.split == "test") & (rows.readout == "cls")].sort_values("row")
    written = rows[rows.text.notna()]
    new = written[written.novelty >= 0.2]
    written = new if new.row.nunique() >= 10 else written
    by_source = {str(name): part for name, part in written.groupby("source")}
    texts = next(by_source[s] for s in ("corrected", "re-ranked", "vector") if s in by_source)
    blind_sources = [s for s in ("no input", "mean vector", "shuffled vectors") if s in by_source]
    best = max(blind_sources, key=lambda s: by_source[s].likeness.mean())
    likeness, blind = texts.likeness.to_numpy(), by_source[best].likeness.to_numpy()

    def recover(weights: np.ndarray) -> np.ndarray:
        right, baseline = (weights @ values / weights.sum(1) for values in (likeness, blind))
        return (right - baseline) / (1 - baseline)

    share = float(recover(np.ones((1, len(texts))))[0])
    low, high = resample(recover, len(texts))
    gated, nothing = bool(texts.gated.iloc[0]), low == high
    part = Part("", read_effect(share, low, high), 0.5, can_fail=False, can_hold=not nothing)
    which = "new test texts" if (texts.novelty >= 0.2).all() else "test texts, few of which are new"
    where = f"{len(texts):,} {which}"
    right = f"right {share:.2f} ({low:.2f} to {high:.2f}) of what the best blind one ({best}) gets wrong"
    scored = rows[(rows.source == "vector") & (rows.layer == texts.layer.iloc[0])]
    saved, tokens = (scored.blind - scored.bits).to_numpy(), scored.tokens.to_numpy(float)
    reached = (
        f"at no layer read did the {decoder} decoder gain anything from [CLS] on dev, so the blind one was used, whose "
        f"gain of 0 bits is this rule's and not measured; its texts, as re-ranking and corrections left them, put "
        f"{'nothing right' if nothing else right} in {where}"
    )
    if not gated:
        gain = resample(lambda weights: weights @ saved / (weights @ tokens), len(scored))
        reached = (
            f"from [CLS] of layer {texts.layer.iloc[0]} the {decoder} decoder puts {right} in {where} (claimed: 0.5), "
            f"{100 * texts.exact.mean():.1f}% of them word for word; [CLS] tells {saved.sum() / tokens.sum():.2f} bits "
            f"a token ({gain[0]:.2f} to {gain[1]:.2f}) of {scored.blind.sum() / tokens.sum():.2f}"
        )
    trained = f"not reached by these decoders with {texts.n_train.iloc[0]:,} training texts: "
    about = "these decoders as they were trained, over the test texts"
    if nothing:
        unknown = Part("", read_effect(*[math.nan] * 3), 0.5, can_hold=False, can_fail=False)
        return Task(f"Undecided: {trained}{reached}.", is_claim=True, interval_of=about, parts=(unknown,))
    return judge([part], lambda state, _, ends: f"{'' if state == 'holds' else trained}{reached}", interval_of=about)


def derive_formation(rows: pd.DataFrame, facts: Mapping[str, Any]) -> Task:
    task, rows = shorten(rows.task.iloc[0]), rows.sort_values(["control", "draw", "seed", "row"])
    layer = int(rows.layer.iloc[0])
    half = layer // 2
    spans = {"lower": (1, half), "upper": (layer - half + 1, layer), "all": (1, layer)}
    where = {
        name: f"layer {first}" if first == last else f"layers {first} to {last}"
        for name, (first, last) in spans.items()
    }

    def after(edges: str, name: str, control: str = "none") -> np.ndarray:
        """(seed or draw, text) whether retrained probes are right after this change."""
        first, last = spans.get(name, (0, 0))
        cut = rows[
            (rows.edges == edges) & (rows["first"] == first) & (rows["last"] == last) & (rows.control == control)
        ]
        return (cut.label == cut.predicted).to_numpy().reshape(len(cut.groupby(["draw", "seed"])), -1).astype(float)

    intact, everywhere = after("none", ""), after("rest->cls", "all")
    warnings, texts = describe_few(intact.shape[1], task), intact.shape[1]
    about = (
        "these probes as they were fitted, over the test texts; with untrained encoders, also over "
        f"{rows.draw[rows.control == 'untrained'].nunique()} draws of their weights"
    )
    if layer == 1:
        sentence = (
            f"On {task}, dev reads [CLS] at layer 1, which has no lower and no upper half below it: a probe gets "
            f"{intact.mean():.3f} of the test texts right, and {everywhere.mean():.3f} where [CLS] is cut off there "
            "and the probe is trained anew."
        )
        return Task(sentence, warnings=warnings, is_open=True)
    lost = Part("", subtract(intact, everywhere), MARGIN)
    if lost.p_yes >= LEVEL:
        sentence = (
            f"On {task}, it cannot be said in which layers [CLS] gathers what a probe at layer {layer} reads: it gets "
            f"{intact.mean():.3f} of the test texts right, and {everywhere.mean():.3f} where [CLS] is cut off from all "
            f"other tokens in {where['all']} and the probe is trained anew, which is not certainly 2 points less "
            f"({plain(lost.effect.value)} points, {span(lost.effect.ends(), plain)})."
        )
        return Task(sentence, warnings=warnings, is_open=True, interval_of=about)
    cut = {name: after("rest->cls", name) for name in ("lower", "upper")}
    open_only = {name: after("only", name) for name in ("lower", "upper")}
    costs = {name: Part("", subtract(intact, right), MARGIN) for name, right in cut.items()}
    losses = {name: Part("", subtract(intact, right), MARGIN) for name, right in open_only.items()}
    needed = {name: sort_out(part, "is necessary", "is not necessary") for name, part in costs.items()}
    enough = {name: sort_out(part, "does not suffice", "suffices") for name, part in losses.items()}
    needs = join_halves(
        needed, {"is necessary": "both halves are necessary", "is not necessary": "neither half is necessary"}
    )
    keeps = join_halves(enough, {"suffices": "either half suffices", "does not suffice": "neither half suffices"})
    prices = " and ".join(
        f"{plain(part.effect.value)} points ({span(part.effect.ends(), plain)}) in {where[name]}"
        for name, part in costs.items()
    )
    kept = []
    for name, right in open_only.items():
        share, low, high = (f"{100 * number:z.0f}" for number in fieller(right - everywhere, intact - everywhere))
        kept.append(f"{share} % ({low} to {high}) with {where[name]} alone")
    finding = (
        f"on {task}, a probe of [CLS] at layer {layer}, trained anew after every cut, gets {intact.mean():.3f} of the "
        f"test texts right, {cut['lower'].mean():.3f} where [CLS] is cut off from all other tokens in {where['lower']}"
        f", {cut['upper'].mean():.3f} in {where['upper']}, and {everywhere.mean():.3f} in {where['all']}. "
        f"{needs}, with a margin of 2 points: the cut costs {prices}. {keeps}: of what the cut everywhere takes away, "
        f"[CLS] keeps {' and '.join(kept)}. "
    )
    untrained = after("rest->cls", "lower", "untrained") - after("rest->cls", "upper", "untrained")
    trained = (cut["lower"] - cut["upper"]).repeat(len(untrained), 0)

    def say(state: str, part: Part, ends: tuple[float, float]) -> str:
        gathers = "[CLS] gathers it {} than in untrained encoders"
        if state == "holds":
            what = gathers.format("later")
        elif ends[1] < -MARGIN:
            what = gathers.format("earlier")
        elif state == "undecided":
            what = f"It is not certain whether {gathers.format('later')}"
        else:
            alike = "In this [CLS] is no different from untrained encoders"
            what = alike if ends[0] > -MARGIN else gathers.format("no later")
        own, others = (
            f"{plain(abs(values.mean()))} points {'less' if values.mean() < 0 else 'more'}"
            for values in (trained, untrained)
        )
        return (
            f"{finding}{what}: the cut in {where['upper']} costs {own} than the one in {where['lower']}, and {others} "
            f"in {len(untrained)} untrained encoders ({after('none', '', 'untrained').mean():.3f} right intact), a "
            f"difference of {signed(part.effect.value)} ({span(ends)}), with the same margin"
        )

    part = Part("", replace(subtract(trained, untrained), largest=2.0), MARGIN)
    brief = f"{task} {signed(part.effect.value)} ({span(part.effect.ends())})"
    return judge([part], say, is_open=True, texts=texts, brief=brief, warnings=warnings, interval_of=about)


def sort_out(part: Part, above: str, below: str) -> str:
    return above if part.p_yes < LEVEL else below if part.p_no < LEVEL else ""


def join_halves(words: Mapping[str, str], of_both: Mapping[str, str]) -> str:
    """What is said of the lower and of the upper half, "" where it is not certain; with a capital first letter."""
    wanted = next(iter(of_both))
    if len(set(words.values())) == 1:
        word = words["lower"]
        sentence = of_both[word] if word else f"it is not certain whether either half {wanted}"
    else:
        certain = [f"the {name} half {word}" for name, word in words.items() if word]
        uncertain = [f"of the {name} half it is not certain" for name, word in words.items() if not word]
        sentence = ", and ".join(certain + uncertain)  # "not certain" might be read as of both if it came first
    return sentence[0].upper() + sentence[1:]


def fieller(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float, float]:
    """The ratio of two means of one seed with its 95 % interval: the roots of Fieller's equation, with two more texts
    that differ by 1 and by -1."""
    x, y = numerator[0], denominator[0]
    n, t = len(x) + 2, stats.t.isf(LEVEL, len(x) + 1)
    inflated = 1 + t * t / n
    equation = [
        y.sum() ** 2 * inflated - t * t * (y @ y),
        -2 * (x.sum() * y.sum() * inflated - t * t * (x @ y)),
        x.sum() ** 2 * inflated - t * t * (x @ x + 2),
    ]
    return x.sum() / y.sum(), *sorted(np.roots(equation).real)


def derive_trajectory(rows: pd.DataFrame, facts: Mapping[str, Any]) -> Task:
    task, readout = shorten(rows.task.iloc[0]), "cls" if (rows.readout == "cls").any() else "mean"
    rows = rows[(rows.readout == readout) & (rows.layer == rows.layer.max())].sort_values("order")
    start, end, name = rows.iloc[0], rows.iloc[-1], "[CLS]" if readout == "cls" else "mean"
    part = Part("", read_effect(end.gain, end.gain_low, end.gain_high), 0.0)

    def say(state: str, part: Part, ends: tuple[float, float]) -> str:
        more, less = span(ends, plain), span((-ends[1], -ends[0]), plain)
        reading = "to read at the end of the training than at the start"
        what = {
            "holds": f"easier {reading}, by {plain(end.gain)} points ({more})",
            "fails": f"harder {reading}, by {plain(-end.gain)} points ({less})",
            "undecided": f"not certainly easier or harder {reading} ({signed(end.gain)} points, {span(ends)})",
        }[state]
        return (
            f"on {task}, the label is {what}, by a linear probe on {name} of layer {end.layer}: it gets "
            f"{start.value:.3f} of the test texts right at the start and {end.value:.3f} at the end; the CKA of {name} "
            f"with its start is {end.cka:.2f} (1: unchanged but for rotation and scale)"
        )

    brief = f"{task} {signed(end.gain)} points ({span((end.gain_low, end.gain_high))})"
    warnings = describe_few(int(end.texts), task)
    about = "these probes as they were fitted, over the test texts"
    return judge([part], say, is_open=True, texts=int(end.texts), brief=brief, warnings=warnings, interval_of=about)


def derive_geometry(rows: pd.DataFrame, facts: Mapping[str, Any]) -> Task:
    layer, texts = rows.layer.max(), int(rows[rows.measure == "texts"].value.iloc[0])
    cells = rows[(rows.layer == layer) & (rows.other_readout == "none")]
    readouts = list(dict.fromkeys(cells.readout))
    described = [name for name in ("cls", "mean") if name in readouts] or readouts[:2]
    place, called = f"layer {layer}", {"cls": "[CLS]"}
    where = f"On {shorten(rows.task.iloc[0])} ({texts:,} texts, {place})"
    if "vectors" in facts["model"]:  # of a file, which calls them itself
        file, called = facts["model"]["model"], {readouts[0]: ""} if len(readouts) == 1 else {}
        where = f"In {file if rows.layer[rows.layer >= 0].nunique() == 1 else f'{place} of {file}'} ({texts:,} texts)"
    clauses, briefs = [], []
    for readout in described:
        name, own = called.get(readout, readout), cells[cells.readout == readout]
        single = own[own.coordinate < 0].set_index("measure")
        (rank, *rank_ends), (raw, *raw_ends), (without, *without_ends) = (
            single.loc[measure, ["value", "low", "high"]].astype(float)
            for measure in ("effective_rank", "self_similarity", "without_massive")
        )
        lead = f"in {name} " if name else ""
        if math.isnan(rank):
            clauses.append(f"{lead}every text has one and the same vector")
            briefs.append(f"{name} one and the same vector".strip())
            continue
        massive = [str(i) for i in own[own.measure == "massive"].coordinate]
        listed = ", ".join(massive[:4]) + (f" and {len(massive) - 4} more" if len(massive) > 4 else "")
        end = ", with no massive coordinate"
        if massive:
            end = f", or {without:.3f} ({without_ends[0]:.3f} to {without_ends[1]:.3f}) without the massive coordinate"
            end += f"{'s' * (len(massive) > 1)} {listed}"
        clauses.append(
            f"{lead}the effective rank is {rank:.1f} ({rank_ends[0]:.1f} to {rank_ends[1]:.1f}) of "
            f"{single.value['width']:.0f} and the mean cosine of two texts {raw:.3f} ({raw_ends[0]:.3f} to "
            f"{raw_ends[1]:.3f}){end}"
        )
        briefs.append(f"{name} {rank:.1f} and {without:.3f}".strip())
    brief = f"{shorten(rows.task.iloc[0])} {', '.join(briefs)}"
    about = "other texts of this kind, for this encoder (jackknife over the texts)"
    return Task(f"{where}: {'; '.join(clauses)}.", brief=brief, is_open=True, interval_of=about)


# study -> the table that it judges, what it says of a task, and the baselines that may solve one by construction
STUDIES: dict[str, tuple[str, Callable[[pd.DataFrame, Mapping[str, Any]], Task], tuple[str, ...]]] = {
    "run": ("predictions", derive_run, tuple(CONTROLS)),
    "aggregate": ("predictions", derive_aggregate, tuple(CONTROLS)),
    "poolings": ("predictions", derive_poolings, ()),
    "positions": ("predictions", derive_positions, ()),
    "order": ("predictions", derive_order, BLIND),
    "reconstruct": ("reconstructions", derive_reconstruct, ()),
    "formation": ("retrained", derive_formation, ()),
    "trajectory": ("trajectory", derive_trajectory, ()),
    "geometry": ("measured", derive_geometry, ()),
    "fine_tuning": ("predictions", derive_fine_tuning, ()),
}


def derive_task(study: str, tables: Mapping[str, pd.DataFrame], facts: Mapping[str, Any], task: str) -> Task:
    """What a study prints about one task."""
    name, derive, baselines = STUDIES[study]
    rows, refits = (
        table[table.task == task] if table is not None and "task" in table else table
        for table in (tables[name], tables.get("refits"))
    )
    try:
        answer = derive(rows, {**facts, "refits": refits})
    except Missing as reason:
        return Task(f"Not answered on {shorten(task)}: {reason}.", "not answered")
    solvers = [baseline for baseline in facts.get("solved", {}).get(task, ()) if baseline in baselines]
    if not solvers:
        return answer
    read = " and ".join(solvers).replace("_", " ")
    return answer.left_out(f"by construction {shorten(task)} asks for what the baseline {read} reads")
