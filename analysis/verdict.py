"""From estimates to yes, no and undecided.

1. A `Part` is one inequality: an effect lies above a threshold. It has the one-sided p of either side.
2. `Verdict.of` joins the parts of a claim on one task: *yes* if every part passes at one-sided 2.5 % (the
   intersection-union test, Berger 1982), *no* if some part fails at the level that Holm (1979) allows over the parts,
   undecided otherwise.
3. `Verdict.over` joins tasks: yes or no if all of them say so; *mixed* with at least one yes and one no, both after
   Holm over the tasks; undecided otherwise, with the counts.
4. `Verdict.corrected` is what is left of a verdict among the others of a page.

A verdict answers the printed question; `sentence` says so in words, with numbers. A question that is no yes-or-no
question (`is_open`) has a sentence only: its outcome is about the statement that the sentence makes.

Imports the standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator

Outcome = Literal["yes", "no", "mixed", "undecided"]
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]  # JSON has no NaN

TAIL = 0.025  # of a 95 % interval, and the level of every one-sided test
FEWEST = 50  # test texts below which the page warns
MOST = 1_000_000  # test texts: more are not recommended
LISTED = 6  # tasks that a sentence lists
OPPOSITE: dict[Outcome, Outcome] = {"yes": "no", "no": "yes"}
NORMAL = NormalDist()


class MissingEvidence(ValueError):
    """The measurement lacks what a question needs. Its text is a clause: "no cell of cls has predictions on test"."""


class Estimate(Protocol):
    """An effect with its uncertainty."""

    @property
    def effect(self) -> float:
        """The estimated effect."""

    def interval(self, tail: float = TAIL) -> tuple[float, float]:
        """The interval that leaves out `tail` on either side."""

    @property
    def of_fits(self) -> Estimate:
        """The same for these probes as they were fitted, whatever other training texts would give."""

    def times_needed(self, distance: float, tail: float, *factors: str) -> float:
        """How many times as many "texts" (of test) or "training" texts, or of both, there have to be for half the
        interval that leaves out `tail` on either side to be `distance`; infinite where no number would do."""

    def p_above(self, threshold: float) -> float:
        """The one-sided p of "the effect is not above the threshold": below `TAIL` where the 95 % interval is above."""

    def p_below(self, threshold: float) -> float:
        """The one-sided p of "the effect is not below the threshold"."""


@dataclass(frozen=True)
class NormalEstimate:
    """An effect known by its 95 % interval, read as that of a normal distribution around the middle (Altman & Bland
    2011): p is below `TAIL` exactly where the interval excludes the threshold."""

    effect: float
    low: float
    high: float

    def interval(self, tail: float = TAIL) -> tuple[float, float]:
        """The interval that leaves out `tail` on either side."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        half *= NORMAL.inv_cdf(tail) / NORMAL.inv_cdf(TAIL)
        return middle - half, middle + half

    @property
    def of_fits(self) -> NormalEstimate:
        """The same estimate: it has no variance of training."""
        return self

    def times_needed(self, distance: float, tail: float, *factors: str) -> float:
        """How many times as many texts there have to be for half the interval to be `distance`."""
        low, high = self.interval(tail)
        return ((high - low) / 2 / distance) ** 2

    def p_above(self, threshold: float) -> float:
        """The one-sided p of "the effect is not above the threshold"."""
        middle, error = (self.low + self.high) / 2, (self.high - self.low) / 2 / -NORMAL.inv_cdf(TAIL)
        if not error > 0:
            return float(not middle > threshold)
        return NORMAL.cdf((threshold - middle) / error)

    def p_below(self, threshold: float) -> float:
        """The one-sided p of "the effect is not below the threshold"."""
        return NormalEstimate(-self.effect, -self.high, -self.low).p_above(-threshold)


@dataclass(frozen=True)
class Part:
    """One inequality of a claim: the effect is above the threshold.

    low, high: the 95 % interval. p_yes: the one-sided p of "it is not above", p_no of "it is not below": small where
    the inequality holds, or fails. low_of_fits, high_of_fits: the 95 % interval for the probes as they were fitted
    (`Estimate.of_fits`). estimate: what these were computed from; not saved.
    """

    name: str
    effect: Number
    low: Number
    high: Number
    threshold: float
    p_yes: float
    p_no: float
    low_of_fits: Number = math.nan
    high_of_fits: Number = math.nan
    estimate: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, name: str, estimate: Estimate, threshold: float = 0.0) -> Part:
        """The part of an estimate."""
        low, high = estimate.interval()
        p_yes, p_no = (1.0 if math.isnan(p) else p for p in (estimate.p_above(threshold), estimate.p_below(threshold)))
        of_fits = estimate.of_fits.interval()
        return cls(name, estimate.effect, low, high, threshold, p_yes, p_no, *of_fits, estimate)

    @classmethod
    def from_interval(cls, name: str, effect: float, low: float, high: float, threshold: float = 0.0) -> Part:
        """The part of an effect with its 95 % interval."""
        return cls.of(name, NormalEstimate(effect, low, high), threshold)

    def simultaneous(self, count: int) -> Part:
        """The same with the interval that holds for all of `count` parts at once (Bonferroni)."""
        if count < 2 or self.estimate is None:
            return self
        low, high = self.estimate.interval(TAIL / count)
        return replace(self, low=low, high=high)

    @property
    def outcome(self) -> Outcome:
        """Yes, no or undecided for this part alone."""
        return "yes" if self.p_yes < TAIL else "no" if self.p_no < TAIL else "undecided"

    def times_needed(self, *factors: str, count: int = 1) -> float:
        """How many times as many of these factors (`Estimate.times_needed`) make half the interval, which holds for
        `count` parts at once, as wide as the effect is away from the threshold."""
        distance = abs(self.effect - self.threshold)
        if self.estimate is None or not distance:
            return math.inf
        return float(self.estimate.times_needed(distance, TAIL / count, *factors))


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for their number by Holm's step-down (1979): below 0.05, one false one in 20 families."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, float(p[i]) * (len(p) - rank)))
        adjusted[i] = largest
    return adjusted


@dataclass(frozen=True)
class Verdict:
    """The answer to a question: outcome and sentence.

    sentence: the whole answer in words, as it is printed everywhere. effect, low, high: the effect that decides, with
    its 95 % interval, in units of the metric (0.02 = 2 points); NaN where there is none. p_yes, p_no, p_mixed: of the
    outcomes, one-sided. brief: one task of several in a list. estimand: what the effect is of; effects of one estimand
    can be averaged. interval_of: a clause on what the 95 % intervals are about. texts, training_texts: their numbers.
    needed: how many test texts would decide, where it is undecided, with these training texts; times_needed: how many
    times as many of both would. warnings: what a reader must know first. advice: what to run next. comparisons: the
    parts of the claim. parts: the verdicts of the tasks, where there are several. is_open: whether the question is no
    yes-or-no question. is_counted: whether a task counts where several are united.
    """

    outcome: Outcome
    sentence: str
    effect: Number = math.nan
    low: Number = math.nan
    high: Number = math.nan
    p_yes: float = 1.0
    p_no: float = 1.0
    p_mixed: float = 1.0
    brief: str = ""
    estimand: str = ""
    interval_of: str = ""
    texts: int = 0
    training_texts: int = 0
    needed: Number = math.nan
    times_needed: Number = math.nan
    warnings: tuple[str, ...] = ()
    advice: str = ""
    comparisons: tuple[Part, ...] = ()
    parts: Mapping[str, Verdict] = field(default_factory=dict)
    is_open: bool = False
    is_counted: bool = True

    @classmethod
    def of(
        cls,
        parts: Sequence[Part],
        say: Callable[[Outcome, Part], str],
        *,
        turned: bool = False,
        **fields: Any,
    ) -> Verdict:
        """The verdict on the claim that all parts hold; `turned`: on the opposite claim, that one of them fails.

        say: (outcome, the part that decides) -> a clause with its numbers, "on trec, ...", without an end; of a
        question that is not open the outcome precedes it. The part that decides is the closest one of a yes, the one
        that holds least clearly where it is undecided, and the one that fails most clearly of a no; the interval of the
        latter, which was selected on test, holds for all parts at once. fields: others of the verdict.
        """
        count = len(parts)
        p_yes, p_no = max(part.p_yes for part in parts), min(holm([part.p_no for part in parts]))
        outcome: Outcome = "yes" if p_yes < TAIL else "no" if p_no < TAIL else "undecided"
        deciding = min(parts, key=lambda part: part.effect - part.threshold)
        if outcome == "undecided":
            deciding = max(parts, key=lambda part: (part.p_yes, part.threshold - part.effect))
        elif outcome == "no":
            deciding = min(parts, key=lambda part: (part.p_no, part.effect - part.threshold)).simultaneous(count)
        if turned:
            outcome, p_yes, p_no = OPPOSITE.get(outcome, outcome), p_no, p_yes
        texts = fields.get("texts", 0)
        needed = times = math.nan
        if outcome == "undecided" and texts:
            needed = texts * _count_times(parts, "texts")
            times = _count_times(parts, "texts", "training")
            if math.isfinite(needed):
                needed = max(math.ceil(needed), texts + 1)
            if math.isfinite(times):  # the centre of an interval is nearer to 0 than the effect
                times = max(times, (texts + 1) / texts)
        lead = "" if fields.get("is_open") else f"{outcome.capitalize()}: "
        sentence = capitalise(f"{lead}{say(outcome, deciding)}.")
        return cls(
            outcome,
            sentence,
            deciding.effect,
            deciding.low,
            deciding.high,
            p_yes,
            p_no,
            comparisons=tuple(parts),
            needed=needed,
            times_needed=times,
            **fields,
        )

    @classmethod
    def described(
        cls, sentence: str, effect: float = math.nan, low: float = math.nan, high: float = math.nan, **fields: Any
    ) -> Verdict:
        """The answer to an open question that makes no statement to be tested."""
        return cls("undecided", sentence, effect, low, high, is_open=True, **fields)

    @classmethod
    def unjudged(cls, sentence: str) -> Verdict:
        """Undecided for want of evidence."""
        return cls("undecided", sentence)

    def left_out(self, reason: str) -> Verdict:
        """The verdict of a task that decides nothing. reason: a sentence without an end."""
        sentence = f"Left out: {reason}."
        if self.is_open:
            sentence = (
                f"{capitalise(reason)}, so that this decides nothing: {self.sentence[0].lower()}{self.sentence[1:]}"
            )
        decides_nothing: Any = {"outcome": "undecided", "p_yes": 1.0, "p_no": 1.0, "warnings": ()}
        decides_nothing |= {"needed": math.nan, "times_needed": math.nan}
        return replace(self, sentence=sentence, is_counted=False, **decides_nothing)

    @property
    def is_judged(self) -> bool:
        """Whether there is evidence."""
        return bool(self.comparisons) or not math.isnan(self.effect) or self.is_open or any(
            part.is_judged for part in self.parts.values()
        )  # fmt: skip

    @property
    def is_claim(self) -> bool:
        """Whether a claim was tested, so that it counts among the answers of a page. One that is left out was not."""
        return (self.is_counted and bool(self.comparisons)) or any(part.is_claim for part in self.parts.values())

    @property
    def label(self) -> str:
        """The outcome in a word: "described" for an open question, "left out" for a task that does not count."""
        if not self.is_counted:
            return "left out"
        return "described" if self.is_open and self.is_judged else self.outcome

    @property
    def is_decidable(self) -> bool:
        """Whether a number of test texts that can be had, or of training and test texts, would decide what is
        undecided."""
        return self.needed <= MOST or max(self.texts, self.training_texts) * self.times_needed <= MOST

    @property
    def p(self) -> float:
        """The two-sided p of the outcome that is least compatible with chance."""
        return min(1.0, 2 * min(self.p_yes, self.p_no, self.p_mixed))

    def corrected(self, p: float, answers: int) -> Verdict:
        """The verdict among those of several answers. p: adjusted for their number.

        Undecided where it does not stand; the sentence says so first.
        """
        if self.outcome == "undecided" or p < 2 * TAIL:
            return self
        what = f"not certain among the {answers} answers of this page (Holm, p = {p:.2g})"
        lead = f"{capitalise(what)}" if self.is_open else f"Undecided: {what}"
        return replace(self, outcome="undecided", sentence=f"{lead}. By itself: {self.sentence}")

    @classmethod
    def over(
        cls,
        parts: Mapping[str, Verdict],
        *,
        opening: str = "",
        statements: Mapping[Outcome, str] | None = None,
    ) -> Verdict:
        """One verdict over several tasks, by name.

        opening: what is listed for every task. statements: of an open question, outcome -> what it says. The effect is
        a random-effects mean (`pool`) where all effects are of one estimand, otherwise none.
        """
        verdicts = list(parts.values())
        if len(verdicts) == 1:
            return verdicts[0]
        counted = {name: part for name, part in parts.items() if part.is_counted}
        p_yes, p_no = ([part.p_yes for part in counted.values()], [part.p_no for part in counted.values()])
        p_mixed = max(min(holm(p_yes), default=1.0), min(holm(p_no), default=1.0)) if len(counted) > 1 else 1.0
        outcomes = {part.outcome for part in counted.values()}
        outcome: Outcome = "mixed" if p_mixed < TAIL else outcomes.pop() if len(outcomes) == 1 else "undecided"
        is_open = any(part.is_open for part in verdicts)
        conclusion = _list_statements(parts, statements or {}) if is_open else _count_outcomes(outcome, parts)
        sentence = " ".join(filter(None, [conclusion, _list_effects(parts, opening)]))
        judged = [part for part in counted.values() if not math.isnan(part.effect)]
        pooled = (math.nan,) * 3
        if len({part.estimand for part in judged}) == 1 and judged[0].estimand:
            pooled = pool([(part.effect, part.low, part.high) for part in judged])
        return cls(
            outcome,
            sentence,
            *pooled,
            max(p_yes, default=1.0),
            max(p_no, default=1.0),
            p_mixed,
            estimand=judged[0].estimand if judged and not math.isnan(pooled[0]) else "",
            interval_of=_list_intervals(parts),
            warnings=tuple(dict.fromkeys(warning for part in verdicts for warning in part.warnings)),
            parts=dict(parts),
            is_open=is_open,
        )


def _count_times(parts: Sequence[Part], *factors: str) -> float:
    """How many times as many of these factors (`Estimate.times_needed`) would decide an undecided claim; NaN where it
    would stay undecided whatever their number.

    Where an effect is below its threshold, one such part has to fail, among all of them; otherwise all have to hold. A
    p of 1 is that of a part which cannot, whatever its effect: its readout predicts one class.
    """
    below = [part for part in parts if part.effect < part.threshold]
    if below:
        counts = [part.times_needed(*factors, count=len(parts)) for part in below if part.p_no < 1]
    else:
        counts = [max(part.times_needed(*factors) for part in parts)] if all(part.p_yes < 1 for part in parts) else []
    return min(counts, default=math.nan)


def _count_outcomes(outcome: Outcome, parts: Mapping[str, Verdict]) -> str:
    """ "No, on all 3 tasks." or "Undecided: of 3 tasks yes on 2 (...), undecided on 1 (...)." """
    groups = _group(parts)
    if list(groups) == [outcome]:
        return f"{outcome.capitalize()}, on {'both' if len(parts) == 2 else f'all {len(parts)}'} tasks."
    counts = ", ".join(f"{word} on {len(names)} ({_enumerate(names)})" for word, names in groups.items())
    return f"{outcome.capitalize()}: of {len(parts)} tasks {counts}."


def _list_statements(parts: Mapping[str, Verdict], statements: Mapping[Outcome, str]) -> str:
    """ "STATEMENT on task 1, task 2; ... on task 3; left out: ...." """
    words: Any = {name: f"{statement} on" for name, statement in statements.items()}
    words |= {"left out": "left out:", "not answered": "not answered on"}
    clauses = [f"{words[word]} {_enumerate(names)}" for word, names in _group(parts).items() if word in words]
    return f"{capitalise('; '.join(clauses))}." if clauses else ""


def _list_intervals(parts: Mapping[str, Verdict]) -> str:
    """What the intervals of all tasks are about, or "... (task 1, task 2); ... (task 3)" where that differs."""
    groups: dict[str, list[str]] = {}
    for name, part in parts.items():
        if part.interval_of:
            groups.setdefault(part.interval_of, []).append(name)
    if len(groups) < 2:
        return "".join(groups)
    return "; ".join(f"{clause} ({_enumerate(names)})" for clause, names in groups.items())


def _list_effects(parts: Mapping[str, Verdict], opening: str) -> str:
    """ "OPENING: task 1 +4.0; task 2 ...." """
    briefs = [part.brief for part in parts.values() if part.brief and part.is_judged]
    if not briefs:
        return ""
    listed = f"{'; '.join(briefs[:LISTED])}{'; ...' if len(briefs) > LISTED else '.'}"
    return f"{opening}: {listed}" if opening else capitalise(listed)


def _group(parts: Mapping[str, Verdict]) -> dict[str, list[str]]:
    """Outcome, "left out" or "not answered" -> the names of these tasks."""
    groups: dict[str, list[str]] = {}
    for word in ("yes", "no", "undecided", "left out", "not answered"):
        names = [name for name, part in parts.items() if _word(part) == word]
        if names:
            groups[word] = names
    return groups


def _word(part: Verdict) -> str:
    return "left out" if not part.is_counted else part.outcome if part.is_judged else "not answered"


def _enumerate(names: Sequence[str]) -> str:
    shown = [short(name) for name in names[:LISTED]]
    return ", ".join(shown) + (" ..." if len(names) > LISTED else "")


def short(task: str) -> str:
    """A task's name as a heading: without its source, if it has one ("file:trec:coarse" -> "trec: coarse")."""
    return task.partition(":")[2].replace(":", ": ") or task


def pool(effects: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """The random-effects mean of (effect, low, high) and its 95 % interval; NaN for fewer than three effects.

    The variance between the effects is that of DerSimonian & Laird (1986), the interval that of Hartung & Knapp (2001),
    no narrower than the one without their correction (Roever et al. 2015). Two effects say too little of how much
    others would differ.
    """
    if len(effects) < 3:
        return (math.nan,) * 3
    from scipy import stats

    values = [effect for effect, _, _ in effects]
    variances = [max(((high - low) / 2 / -NORMAL.inv_cdf(TAIL)) ** 2, 1e-12) for _, low, high in effects]
    weights = [1 / variance for variance in variances]
    total = sum(weights)
    fixed = sum(w * v for w, v in zip(weights, values, strict=True)) / total
    spread = sum(w * (v - fixed) ** 2 for w, v in zip(weights, values, strict=True))
    scale = total - sum(w * w for w in weights) / total
    between = max(0.0, (spread - (len(values) - 1)) / scale)
    weights = [1 / (variance + between) for variance in variances]
    total = sum(weights)
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / total
    correction = sum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True)) / (len(values) - 1)
    half = float(stats.t.isf(TAIL, len(values) - 1)) * math.sqrt(max(correction, 1.0) / total)
    return mean, mean - half, mean + half


def capitalise(sentence: str) -> str:
    """The sentence with a capital first letter."""
    return sentence[:1].upper() + sentence[1:]


# ------------------------------------------------------------------------------------------------------------- words


def points(value: float, signed: bool = False) -> str:
    """A difference in points: 0.04 -> "4.0"; signed: "+4.0". Halves are rounded the same on every machine."""
    number = round(100 * value, 6)
    text = f"{number:+.1f}" if signed else f"{number:.1f}"
    return text.replace("-0.0", "0.0").replace("+0.0", "0.0") if float(text) == 0 else text


def difference_in_words(
    a: str, b: str, part: Part, over: tuple[float, float] | None = None, *, unit: str = "points"
) -> str:
    """A clause that compares two names by their difference: "a is better than b by 4.0 points (0.1 to 8.0)".

    Where the interval holds 0 it gives the difference instead. over, unit: see `amount_in_words`.
    """
    if part.low > 0:
        return f"{a} is better than {b} by {amount_in_words(part, over, unit=unit)}"
    if part.high < 0:
        return f"{a} is worse than {b} by {amount_in_words(part, over, unit=unit)}"
    return f"{a} minus {b} is {amount_in_words(part, over, unit=unit, signed=True)}"


def amount_in_words(
    part: Part, over: tuple[float, float] | None = None, *, unit: str = "points", signed: bool = False
) -> str:
    """ "4.0 points (0.1 to 8.0; -1.0 to 9.5 over these layers)", of a negative effect its opposite, or with signs.

    over: the smallest and the largest difference over the layers that the sentence names. unit: of the metric.
    """
    sign = -1 if part.effect < 0 and not signed else 1
    ends = [sorted((sign * low, sign * high)) for low, high in ((part.low, part.high), *([over] if over else []))]
    ranges = "; ".join(f"{points(low, signed)} to {points(high, signed)}" for low, high in ends)
    return f"{points(sign * part.effect, signed)} {unit} ({ranges}{' over these layers' if over else ''})"


def warn_of_few_texts(texts: int, task: str = "") -> tuple[str, ...]:
    """The warning that there are few test texts; none where there are `FEWEST` or more. task: that they are of."""
    if texts >= FEWEST:
        return ()
    counted = "1 test text" if texts == 1 else f"{texts} test texts"
    where = f" on {task}" if task else ""
    return (f"Only {counted}{where}: every figure may be far from what more texts would give.",)


def describe_need(verdict: Verdict) -> str:
    """How many texts would decide an undecided verdict, as a sentence; "" where that says nothing.

    Test texts alone, with the training texts that were used, and both together where these differ by a tenth or more.
    """
    if verdict.outcome != "undecided" or math.isnan(verdict.needed):
        return ""
    texts, times, trained = verdict.texts, verdict.times_needed, verdict.training_texts
    if texts * times > MOST:
        return f"More than {MOST:,} test texts, or more seeds, would be needed to decide at this effect."
    more = max(times, 1.1)  # a smaller number is rounded to those that were used
    factor = f"{more:.1f}" if more < 10 else f"{_round(more):,}"
    both = f"about {factor} times as many of both could ({_round(trained * more):,} training and "
    both += f"{_round(texts * more):,} test texts)"
    if verdict.needed > MOST:
        count = "No number of" if math.isinf(verdict.needed) else f"Fewer than {MOST:,}"
        verb = "would" if math.isinf(verdict.needed) else "would not"
        return f"{count} test texts {verb} decide at this effect with {trained:,} training texts; {both}."
    used = f"About {max(_round(verdict.needed), texts + 1):,} test texts could decide at this effect"
    if verdict.needed < 1.1 * math.ceil(texts * times):
        return f"{used} ({texts:,} were used)."
    return f"{used} with {trained:,} training texts ({texts:,} were used); {both}."


def _round(number: float) -> int:
    """The number to two digits."""
    return int(round(number, -max(len(str(int(number))) - 2, 0)))
