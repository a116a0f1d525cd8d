"""Worlds whose answers are known: tables of what was measured are drawn, and a study judges them, without an encoder.

A world names the outcomes that would be wrong, and the one that is right where the truth is far from the threshold
(four standard errors or more). The texts of a draw are independent; whether two cells get a text right is correlated,
as in life. `count_outcomes` counts the verdicts over many draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import norm
from tables import measured

from clsprobe.aggregate import Aggregate
from clsprobe.analysis import stats
from clsprobe.analysis.fine_tuning.tables import TUNED
from clsprobe.analysis.formation.knockout import EVERYTHING, INTACT, Window
from clsprobe.analysis.study import Measured, Study
from clsprobe.analysis.table import PREDICTIONS
from clsprobe.fine_tuning import FineTuning
from clsprobe.formation import Formation
from clsprobe.order import Order
from clsprobe.poolings import Poolings
from clsprobe.positions import Positions
from clsprobe.reconstruct import Reconstruct
from clsprobe.run import Run
from clsprobe.trajectory import Trajectory

DEV, TEST = 200, 800  # texts
COMMON = 0.8  # share of the variance of a cell's errors that all cells have in common
TASK = "file:made:label"
Cell = tuple[str, int, str]  # control, layer, readout
BASELINES = {
    ("length", -1, "none"): 0.55,
    ("bag_of_words", -1, "none"): 0.65,
    ("layer0_mean", 0, "mean"): 0.65,
    ("untrained", 2, "mean"): 0.6,
}


def draw_predictions(
    accuracies: Mapping[Cell, float | tuple[float, float]],
    random: np.random.Generator,
    *,
    shares: tuple[float, float] = (0.5, 0.5),
    constant: tuple[str, ...] = (),
    task: str = TASK,
    probes: Mapping[str, str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Predictions of two classes. accuracies: cell -> its accuracy on all texts, or on dev and on test. shares: of the
    first class on dev and on test; the majority predicts it. constant: readouts that predict it too. probes: readout ->
    the name of its probe."""
    n = DEV + TEST
    on_test = np.arange(n) >= DEV
    is_first = random.random(n) < np.where(on_test, shares[1], shares[0])
    difficulty = random.normal(size=n)
    parts = []
    for (control, layer, readout), accuracy in accuracies.items():
        on_dev, at_test = accuracy if isinstance(accuracy, tuple) else (accuracy, accuracy)
        latent = np.sqrt(COMMON) * difficulty + np.sqrt(1 - COMMON) * random.normal(size=n)
        correct = latent < norm.ppf(np.where(on_test, at_test, on_dev))
        if control == "majority" or readout in constant:
            correct = is_first
        parts.append((control, layer, readout, (probes or {}).get(readout, "logistic"), is_first == correct))
    frames = {
        "model": "made",
        "task": task,
        "control": np.repeat([part[0] for part in parts], n),
        "layer": np.repeat([part[1] for part in parts], n),
        "readout": np.repeat([part[2] for part in parts], n),
        "probe": np.repeat([part[3] for part in parts], n),
        "seed": seed,
        "split": np.tile(np.where(on_test, "test", "dev"), len(parts)),
        "row": np.tile(np.arange(n), len(parts)),
        "label": pd.Categorical.from_codes(np.tile((~is_first).astype(int), len(parts)), ["a", "b"]),
        "predicted": pd.Categorical.from_codes(np.concatenate([(~part[4]).astype(int) for part in parts]), ["a", "b"]),
        "log2_probability": -0.5,
    }
    return pd.DataFrame(frames)[list(PREDICTIONS)]


@dataclass(frozen=True)
class World:
    """study: judges. draw: (random) -> what it measures. wrong: outcomes that contradict the truth. right: the outcome
    that must be found, where the truth is far from the threshold."""

    study: Study
    draw: Callable[[np.random.Generator], Measured]
    wrong: frozenset[str]
    right: str | None = None


def _sweep(cells: Mapping[Cell, float | tuple[float, float]], **more) -> Callable[[np.random.Generator], Measured]:
    solved = more.pop("solved", {})

    def draw(random: np.random.Generator) -> Measured:
        result = measured(predictions=draw_predictions({("majority", -1, "none"): 0.5} | cells, random, **more))
        return replace(result, facts={**result.facts, "solved": solved})

    return draw


def _read(**accuracies) -> dict[Cell, float | tuple[float, float]]:
    """Readouts of the same accuracy at two layers, so that it does not matter which one dev chooses."""
    return {("none", layer, name): value for name, value in accuracies.items() for layer in (2, 3)}


def _tasks(*worlds: Mapping[Cell, float]) -> Callable[[np.random.Generator], Measured]:
    def draw(random: np.random.Generator) -> Measured:
        tables = [draw_predictions(cells, random, task=f"file:{i}:label") for i, cells in enumerate(worlds)]
        return measured(predictions=pd.concat(tables, ignore_index=True))

    return draw


def _readouts(**accuracies) -> dict[Cell, float | tuple[float, float]]:
    return _read(**accuracies) | BASELINES


def _tuned(constant: tuple[str, ...] = (), **accuracies: float) -> Callable[[np.random.Generator], Measured]:
    """Fine-tuned from these readouts, at one rate and under one seed."""
    cells = {("none", 6, name): value for name, value in accuracies.items()}
    return _sweep(cells, constant=constant, probes=dict.fromkeys(accuracies, f"{TUNED}0.0001"))


YES, NO, NEITHER = frozenset({"no", "mixed"}), frozenset({"yes", "mixed"}), frozenset({"yes", "no", "mixed"})
SOLVED = {TASK: ["length"]}
LENGTH = {("length", -1, "none"): 0.99}
FLAT = {("none", layer, "flatten_projected"): 0.8 for layer in (2, 3)}

WORLDS: dict[str, World] = {
    # [CLS] against every baseline, and against the mean
    "aggregate: more than all, as good as mean": World(Aggregate(), _sweep(_readouts(cls=0.8, mean=0.76)), YES, "yes"),
    "aggregate: a bag of words is better": World(
        Aggregate(), _sweep(_readouts(cls=0.7, mean=0.7) | {("bag_of_words", -1, "none"): 0.78}), NO, "no"
    ),
    "aggregate: mean is better": World(Aggregate(), _sweep(_readouts(cls=0.75, mean=0.85)), NO, "no"),
    "aggregate: as good as a bag of words": World(
        Aggregate(), _sweep(_readouts(cls=0.75, mean=0.75) | {("bag_of_words", -1, "none"): 0.75}), NEITHER
    ),
    "aggregate: worse than mean by the margin": World(Aggregate(), _sweep(_readouts(cls=0.80, mean=0.82)), NEITHER),
    "aggregate: nothing to be read": World(Aggregate(), _sweep(dict.fromkeys(_readouts(cls=0, mean=0), 0.5)), NEITHER),
    "aggregate: the classes of test are others": World(
        Aggregate(),
        _sweep(
            _readouts(cls=(0.8, 0.8), mean=(0.8, 0.8)) | {("bag_of_words", -1, "none"): (0.75, 0.6)}, shares=(0.5, 0.9)
        ),
        NO,
        "no",
    ),
    "aggregate: [CLS] predicts one class": World(
        Aggregate(),
        _sweep(
            _readouts(cls=0.5, mean=0.5) | dict.fromkeys(BASELINES, (0.6, 0.4)), constant=("cls",), shares=(0.65, 0.7)
        ),
        NO,
    ),
    "aggregate: the label is the length": World(
        Aggregate(), _sweep(_readouts(cls=0.9, mean=0.9) | LENGTH, solved=SOLVED), NEITHER, "undecided"
    ),
    "run: more than all": World(Run(), _sweep(_readouts(cls=0.75, mean=0.7)), YES, "yes"),
    "run: a baseline is as good": World(
        Run(), _sweep(_readouts(cls=0.7, mean=0.7) | {("untrained", 2, "mean"): 0.7}), NEITHER
    ),
    "run: an untrained encoder is better": World(
        Run(), _sweep(_readouts(cls=0.7, mean=0.7) | {("untrained", 2, "mean"): 0.78}), NO, "no"
    ),
    "run: the label is the length": World(
        Run(), _sweep(_readouts(cls=0.9, mean=0.9) | LENGTH, solved=SOLVED), NEITHER, "undecided"
    ),
    # mean against [CLS]: yes where it is inferior
    "poolings: mean is better": World(Poolings(), _sweep(_read(cls=0.75, mean=0.85)), NO, "no"),
    "poolings: mean is as good": World(Poolings(), _sweep(_read(cls=0.95, mean=0.95)), NO),
    "poolings: mean is worse": World(Poolings(), _sweep(_read(cls=0.85, mean=0.75)), YES, "yes"),
    "poolings: worse by the margin": World(Poolings(), _sweep(_read(cls=0.82, mean=0.80)), NEITHER),
    "poolings: both predict one class": World(
        Poolings(), _sweep(_read(cls=0.5, mean=0.5), constant=("cls", "mean")), NEITHER
    ),
    "poolings: better on one task, worse on another": World(
        Poolings(),
        _tasks(_read(cls=0.75, mean=0.85), _read(cls=0.85, mean=0.75), _read(cls=0.8, mean=0.8)),
        frozenset({"yes", "no"}),
        "mixed",
    ),
    "poolings: at the margin on three tasks": World(Poolings(), _tasks(*[_read(cls=0.82, mean=0.80)] * 3), NEITHER),
    "poolings: worse on all of three tasks": World(Poolings(), _tasks(*[_read(cls=0.87, mean=0.75)] * 3), YES, "yes"),
    # another position, chosen on dev, against [CLS]
    "positions: another is better": World(
        Positions(), _sweep(_read(cls=0.75, sep=0.85, **{"token[1]": 0.7})), YES, "yes"
    ),
    "positions: all are worse": World(Positions(), _sweep(_read(cls=0.85, sep=0.75, **{"token[1]": 0.75})), NO, "no"),
    "positions: five at the margin": World(
        Positions(),
        _sweep(_read(cls=0.82, sep=0.8, random=0.8, **{"token[1]": 0.8, "token[2]": 0.8, "token[-1]": 0.8})),
        NEITHER,
    ),
    # flattened tokens against baselines without order: yes where they destroy it
    "order: kept": World(Order(), _sweep({("none", 3, "cls"): 0.8} | FLAT | dict.fromkeys(BASELINES, 0.5)), NO, "no"),
    "order: destroyed": World(
        Order(),
        _sweep({("none", 3, "cls"): 0.8} | FLAT | dict.fromkeys(FLAT, 0.44) | dict.fromkeys(BASELINES, 0.5)),
        YES,
        "yes",
    ),
    "order: kept by the margin": World(
        Order(),
        _sweep({("none", 3, "cls"): 0.8} | dict.fromkeys(FLAT, 0.62) | dict.fromkeys(BASELINES, 0.6)),
        NEITHER,
    ),
    "order: a bag of words solves it": World(
        Order(),
        _sweep({("none", 3, "cls"): 0.9} | dict.fromkeys(FLAT, 0.95) | {("bag_of_words", -1, "none"): 0.9}),
        NEITHER,
        "undecided",
    ),
}

# every other position, fine-tuned, against [CLS]: yes where all are worse by no more than the margin
WORLDS |= {
    f"fine-tuning: {name}": World(FineTuning(), _tuned(**cells), *outcomes)
    for name, cells, *outcomes in (
        ("all are better", {"cls": 0.85, "sep": 0.93, "token1": 0.93}, YES, "yes"),
        ("one is worse", {"cls": 0.9, "sep": 0.8, "token1": 0.93}, NO, "no"),
        ("all are at the margin", {"cls": 0.82, "sep": 0.8, "token1": 0.8, "token2": 0.8, "random": 0.8}, NEITHER),
        ("one is at the margin", {"cls": 0.82, "sep": 0.8, "token1": 0.95, "token2": 0.95}, NEITHER),
        ("nothing was learned", {"cls": 0.5, "sep": 0.5, "token1": 0.5}, NEITHER, "undecided"),
        ("[CLS] predicts one class", {"cls": 0.5, "sep": 0.5, "constant": ("cls",)}, NEITHER, "undecided"),
        ("another predicts one class", {"cls": 0.8, "sep": 0.5, "constant": ("sep",)}, NO, "no"),
    )
}


# ------------------------------------------------------------------------------- tables other than of predictions


def _reconstruct(share: float, *, gated: bool = False) -> Callable[[np.random.Generator], Measured]:
    """Texts of which the decoder puts this share of the blind one's errors right, or which the blind one wrote."""

    def draw(random: np.random.Generator) -> Measured:
        n = 200
        blind = 0.2 + 0.05 * random.normal(size=n)
        written = blind if gated else 0.2 + 0.8 * share + 0.15 * random.normal(size=n)
        bits = 40.0 if gated else 40 - 8 * share + random.normal(size=n)
        columns = {"decoder": "sequence", "n_train": 914, "layer": 3, "readout": "cls", "gated": gated, "split": "test"}
        columns |= {"row": np.arange(n), "text": "a", "novelty": 0.5, "exact": 0.0, "tokens": 8, "blind": 40.0}
        sides = {"no input": (blind, 40.0), "vector": (written, bits)}
        frames = [
            pd.DataFrame({**columns, "source": source, "likeness": likeness, "bits": side_bits})
            for source, (likeness, side_bits) in sides.items()
        ]
        return measured(reconstructions=pd.concat(frames, ignore_index=True))

    return draw


def _draw_correct(random: np.random.Generator, *accuracies: float, n: int = 400) -> list[np.ndarray]:
    """(text,) whether a probe is right, for every accuracy, on the same texts."""
    difficulty = random.normal(size=n)
    return [
        np.sqrt(COMMON) * difficulty + np.sqrt(1 - COMMON) * random.normal(size=n) < norm.ppf(accuracy)
        for accuracy in accuracies
    ]


def _cut(intact: float, everywhere: float, lower: float, upper: float) -> Callable[[np.random.Generator], Measured]:
    """Accuracies of the fixed probe of [CLS] at layer 4 after the cuts that are compared."""
    cuts = INTACT, Window(EVERYTHING, 1, 4), Window(EVERYTHING, 1, 2), Window(EVERYTHING, 3, 4)

    def draw(random: np.random.Generator) -> Measured:
        parts = []
        for cut, correct in zip(cuts, _draw_correct(random, intact, everywhere, lower, upper), strict=True):
            key = {**cut._asdict(), "layer": 4, "readout": "cls", "seed": 0, "row": np.arange(len(correct))}
            parts.append(pd.DataFrame({"task": TASK, **key, "label": "a", "predicted": np.where(correct, "a", "b")}))
        return measured(knockout=pd.concat(parts, ignore_index=True))

    return draw


def _train(start: float, end: float) -> Callable[[np.random.Generator], Measured]:
    """The last layer of [CLS] at two moments of a training."""

    def draw(random: np.random.Generator) -> Measured:
        correct = np.array(_draw_correct(random, start, end), float)
        low, high = stats.difference_intervals(correct, correct[:1].repeat(2, 0), shares=True)
        columns = {"task": TASK, "layer": 6, "readout": "cls", "order": [0, 1], "texts": 400, "cka": 0.5}
        gains = {"gain": correct.mean(1) - correct[0].mean(), "gain_low": low, "gain_high": high}
        return measured(trajectory=pd.DataFrame({**columns, "value": correct.mean(1), **gains}))

    return draw


WORLDS |= {
    "reconstruct: most comes back": World(Reconstruct(), _reconstruct(0.6), YES, "yes"),
    "reconstruct: half comes back": World(Reconstruct(), _reconstruct(0.5), NEITHER),
    "reconstruct: these decoders stay below": World(Reconstruct(), _reconstruct(0.3), NEITHER, "undecided"),
    "reconstruct: nothing is written in the vectors": World(Reconstruct(), _reconstruct(0.0), NEITHER, "undecided"),
    "reconstruct: the training failed": World(Reconstruct(), _reconstruct(0.0, gated=True), NEITHER, "undecided"),
    # the outcomes of open questions are about the statement that the sentence makes
    "formation: used late": World(Formation(), _cut(0.85, 0.5, 0.84, 0.6), YES, "yes"),
    "formation: used early": World(Formation(), _cut(0.85, 0.5, 0.6, 0.84), NO, "no"),
    "formation: late by the margin": World(Formation(), _cut(0.85, 0.5, 0.72, 0.7), NEITHER),
    "formation: nothing to lose": World(Formation(), _cut(0.5, 0.5, 0.5, 0.5), NEITHER, "undecided"),
    "trajectory: learned": World(Trajectory(), _train(0.6, 0.8), YES, "yes"),
    "trajectory: lost": World(Trajectory(), _train(0.8, 0.6), NO, "no"),
    "trajectory: unchanged": World(Trajectory(), _train(0.7, 0.7), NEITHER),
}


def count_outcomes(name: str, draws: int) -> Counter[str]:
    """Outcome -> how often the study found it in so many draws of a world."""
    world = WORLDS[name]
    return Counter(
        world.study.verdict(world.draw(np.random.default_rng([number, *name.encode()]))).outcome
        for number in range(draws)
    )


if __name__ == "__main__":
    print("| world | yes | no | mixed | undecided |\n|---|---|---|---|---|")
    for world_name in WORLDS:
        counted = count_outcomes(world_name, 200)
        print(f"| {world_name} | " + " | ".join(str(counted[o]) for o in ("yes", "no", "mixed", "undecided")) + " |")
