"""The words of the formation study's answer. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from clsprobe.analysis.formation.cuts import (
    DRAWS,
    EVERYTHING,
    INTACT,
    ONLY,
    Gathering,
    Window,
    compute_effects,
    split_halves,
)
from clsprobe.analysis.verdict import Outcome, Part, capitalise, points

_BOTH: Mapping[str, Mapping[Outcome, str]] = {
    "necessary": {
        "yes": "both halves are necessary",
        "no": "neither half is necessary",
        "undecided": "it is not certain whether either half is necessary",
    },
    "sufficient": {
        "yes": "either half suffices",
        "no": "neither half suffices",
        "undecided": "it is not certain whether either half suffices",
    },
}
_SINGLE: Mapping[str, Mapping[Outcome, str]] = {
    "necessary": {
        "yes": "the {} half is necessary",
        "no": "the {} half is not necessary",
        "undecided": "of the {} half it is not certain",
    },
    "sufficient": {
        "yes": "the {} half suffices",
        "no": "the {} half does not suffice",
        "undecided": "of the {} half it is not certain",
    },
}
_OPPOSITE: Mapping[Outcome, Outcome] = {"yes": "no", "no": "yes", "undecided": "undecided"}


def format_span(first: int, last: int) -> str:
    """ "layer 2", "layers 1 to 3"."""
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def describe_reading(gathering: Gathering) -> str:
    """What retrained probes read of an intact [CLS], and of one that is cut off in either half and everywhere."""
    layer = gathering.layer
    spans = [*split_halves(layer), (1, layer)]
    (lower, below), (upper, above), (cut_off, everywhere) = (
        (f"{gathering.accuracy(Window(EVERYTHING, *span)):.3f}", format_span(*span)) for span in spans
    )
    return (
        f"a probe of [CLS] at layer {layer}, trained anew after every cut, gets {gathering.accuracy(INTACT):.3f} of "
        f"the test texts right, {lower} where [CLS] is cut off from all other tokens in {below}, {upper} in {above}, "
        f"and {cut_off} in {everywhere}"
    )


def describe_halves(gathering: Gathering, margin: float) -> str:
    """Which half is necessary, and which suffices: two sentences, the last one without an end.

    A half is necessary where the cut in it certainly costs more than the margin, and not where it certainly costs less;
    it suffices where [CLS] that sees the other tokens there alone certainly loses less than the margin, and not where
    it certainly loses more. A cut everywhere must certainly cost something.
    """
    halves = split_halves(gathering.layer)
    costs = [Part.of("", gathering.lose(Window(EVERYTHING, *half)), margin) for half in halves]
    losses = [Part.of("", gathering.lose(Window(ONLY, *half)), margin) for half in halves]
    necessity = _say("necessary", [part.outcome for part in costs])
    sufficiency = _say("sufficient", [_OPPOSITE[part.outcome] for part in losses])
    prices = " and ".join(
        f"{points(part.effect)} points ({points(part.low)} to {points(part.high)}) in {format_span(*half)}"
        for part, half in zip(costs, halves, strict=True)
    )
    shares = []
    for half in halves:
        share = gathering.share(Window(ONLY, *half))
        assert share is not None
        value, low, high = (f"{100 * number:z.0f}" for number in share)
        shares.append(f"{value} % ({low} to {high}) with {format_span(*half)} alone")
    return (
        f"{capitalise(necessity)}, with a margin of {100 * margin:.0f} points: the cut costs {prices}. "
        f"{capitalise(sufficiency)}: of what the cut everywhere takes away, [CLS] keeps {' and '.join(shares)}"
    )


def _say(kind: str, outcomes: Sequence[Outcome]) -> str:
    """outcomes: of the lower and of the upper half. What is certain comes first: "not certain" might otherwise be read
    as said of both."""
    lower, upper = outcomes
    if lower == upper:
        return _BOTH[kind][lower]
    clauses = [_SINGLE[kind][outcome].format(half) for outcome, half in ((lower, "lower"), (upper, "upper"))]
    return ", and ".join(reversed(clauses) if lower == "undecided" else clauses)


def compare_with_untrained(gathering: Gathering, outcome: Outcome, part: Part, values: Sequence[float]) -> str:
    """How much later [CLS] gathers than in untrained encoders: a sentence without an end.

    part: the difference, of these two values, against the margin.
    """
    lower, upper = split_halves(gathering.layer)
    if outcome == "yes":
        what = "[CLS] gathers it later than in untrained encoders"
    elif part.high < -part.threshold:
        what = "[CLS] gathers it earlier than in untrained encoders"
    elif outcome == "no" and part.low > -part.threshold:
        what = "in this [CLS] is no different from untrained encoders"
    elif outcome == "no":
        what = "[CLS] gathers it no later than in untrained encoders"
    else:
        what = "it is not certain whether [CLS] gathers it later than in untrained encoders"
    trained, untrained = (f"{points(abs(value))} points {'less' if value < 0 else 'more'}" for value in values)
    return (
        f"{capitalise(what)}: the cut in {format_span(*upper)} costs {trained} than the one in "
        f"{format_span(*lower)}, and {untrained} in {gathering.draws} untrained encoders "
        f"({gathering.accuracy(INTACT, 'untrained'):.3f} right intact), a difference of "
        f"{points(part.effect, True)} ({points(part.low, True)} to {points(part.high, True)}), with the same margin"
    )


def describe_interval(gathering: Gathering) -> str:
    """What the intervals are about, as a clause."""
    about = "these probes as they were fitted, over the test texts"
    if gathering.training_texts:
        about = (
            f"the expected difference between such probes, each trained on {gathering.training_texts:,} texts with its "
            "strength chosen on dev"
        )
    if gathering.draws < DRAWS or gathering.layer < 2:
        return about
    return f"{about}; with untrained encoders, also over {gathering.draws} draws of their weights"


def describe_writing(knockout: pd.DataFrame, margin: float) -> str:
    """A sentence on the blocks in which the vector that the fixed probe of [CLS] reads is written: those whose cut
    alone shifts it by more than the margin, certainly. knockout: rows of one task, `cuts.PREDICTIONS`."""
    rows = compute_effects(knockout[knockout.readout == "cls"])
    single = rows[(rows.edges == EVERYTHING) & (rows["first"] == rows["last"])]
    blocks = sorted(int(row["first"]) for _, row in single.iterrows() if row.high < -margin)
    points = f"{100 * margin:.0f} points"
    if not blocks:
        return f"No cut in a single block certainly shifts the vector by more than {points} for the final probe."
    names = " and ".join(filter(None, [", ".join(map(str, blocks[:-1])), str(blocks[-1])]))
    return (
        f"The vector that the final probe reads is written in block{'s' * (len(blocks) > 1)} {names} (cut there alone, "
        f"it shifts by more than {points})."
    )
