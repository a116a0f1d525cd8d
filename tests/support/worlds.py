"""Worlds whose answers are known: tables of what was measured are drawn, and a study judges them, without an encoder.

A world names the outcomes that would be wrong, and the one that is right where the truth is far from the threshold
(four standard errors or more). The texts of a draw are independent, or in groups; whether two cells get a text right is
correlated, as in life. In some worlds other training texts would have given other probes: then a draw has the scores of
probes that were fitted on halves of them too, and the truth is about the mean of all such probes. `count_outcomes`
counts the verdicts over many draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from unittest.mock import patch

import numpy as np
import pandas as pd
from scipy.special import ndtri
from tables import measured

from clsprobe.aggregate import Aggregate
from clsprobe.analysis import stats
from clsprobe.analysis.answer import Answer
from clsprobe.analysis.fine_tuning.tables import TUNED
from clsprobe.analysis.formation.cuts import DRAWS, EVERYTHING, INTACT, ONLY, REFITTED, RETRAINED, Window
from clsprobe.analysis.formation.cuts import PREDICTIONS as FIXED
from clsprobe.analysis.geometry.measures import COLUMNS
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.study import Study
from clsprobe.analysis.sweep.refits import ANY, HALVES, HALVINGS, REFITS
from clsprobe.analysis.table import PREDICTIONS, concat_categories
from clsprobe.analysis.verdict import Verdict
from clsprobe.fine_tuning import FineTuning
from clsprobe.formation import Formation
from clsprobe.geometry import Geometry
from clsprobe.order import Order
from clsprobe.poolings import Poolings
from clsprobe.positions import Positions
from clsprobe.reconstruct import Reconstruct
from clsprobe.run import Run
from clsprobe.trajectory import Trajectory

DEV, TEST = 200, 800  # texts
TRAINED = 40  # parts of the training texts, each of which moves a probe by itself
COMMON = 0.8  # share of the variance of a cell's errors that all cells have in common
TASK = "file:made:label"
Cell = tuple[str, int, str]  # control, layer, readout
BASELINES = {
    ("length", -1, "none"): 0.55,
    ("bag_of_words", -1, "none"): 0.65,
    ("layer0_mean", 0, "mean"): 0.65,
    ("untrained", 2, "mean"): 0.6,
}


def draw_tables(
    accuracies: Mapping[Cell, float | tuple[float, float]],
    random: np.random.Generator,
    *,
    shares: tuple[float, float] = (0.5, 0.5),
    constant: tuple[str, ...] = (),
    task: str = TASK,
    probes: Mapping[str, str] | None = None,
    texts: tuple[int, int] = (DEV, TEST),
    seeds: int = 1,
    training: float | None = None,
    group: int = 1,
) -> dict[str, pd.DataFrame]:
    """Predictions of two classes, and refits. accuracies: cell -> its accuracy on all texts, or on dev and on test.
    shares: of the first class on dev and on test; the majority predicts it. constant: readouts that predict it too.
    probes: readout -> the name of its probe. texts: of dev and of test, the same ones under every seed. training: how
    much other training texts would move a probe, as a standard deviation of its probit; the accuracies are means over
    them. None: no refits. group: so many texts are copies of one another."""
    n = sum(texts)
    on_test = np.arange(n) >= texts[0]
    is_first = np.repeat(random.random(n // group), group) < np.where(on_test, shares[1], shares[0])
    difficulty = np.repeat(random.normal(size=n // group), group)
    cells, hits, refitted, moved = [*accuracies] * seeds, [], [], {}
    if training is not None:
        moved = {cell: training * random.normal(size=TRAINED) for cell in accuracies}
        divided, of_dev = _divide(TRAINED, random), _divide(texts[0] // group, random).repeat(group, 1)
    for control, layer, readout in cells:
        accuracy = accuracies[control, layer, readout]
        on_dev, at_test = accuracy if isinstance(accuracy, tuple) else (accuracy, accuracy)
        own = np.repeat(random.normal(size=n // group), group)
        latent = np.sqrt(COMMON) * difficulty + np.sqrt(1 - COMMON) * own
        is_constant = control == "majority" or readout in constant
        threshold = np.where(on_test, ndtri(at_test), ndtri(on_dev)) * np.sqrt(1 + (training or 0.0) ** 2)
        shift = moved.get((control, layer, readout), np.zeros(1)) / np.sqrt(TRAINED)
        hits.append(is_first if is_constant else latent < threshold + shift.sum())
        if training is not None:  # a half knows half of the shift, twice, and has errors of its own
            of_half = np.repeat(random.normal(size=(len(HALVES), n // group)), group, 1)
            latent = np.sqrt(COMMON) * difficulty + np.sqrt((1 - COMMON) / 2) * (own + of_half)
            is_right = latent < threshold + 2 * (divided @ shift)[:, None]
            refitted.append(np.tile(is_first, (len(HALVES), 1)) if is_constant else is_right)
    controls, layers, readouts = zip(*cells, strict=True)
    count = len(cells)
    frames = {
        "model": _categories(["made"] * count, n),
        "task": _categories([task] * count, n),
        "control": _categories(controls, n),
        "layer": np.repeat(layers, n),
        "readout": _categories(readouts, n),
        "probe": _categories([(probes or {}).get(readout, "logistic") for readout in readouts], n),
        "seed": np.repeat(np.arange(seeds), len(accuracies) * n),
        "split": pd.Categorical.from_codes(np.tile(on_test.astype(int), count), ["dev", "test"]),
        "row": np.tile(np.arange(n), count),
        "label": pd.Categorical.from_codes(np.tile((~is_first).astype(int), count), ["a", "b"]),
        "predicted": pd.Categorical.from_codes(
            (np.tile(is_first, count) != np.concatenate(hits)).astype(int), ["a", "b"]
        ),
        "log2_probability": -0.5,
    }
    tables = {"predictions": pd.DataFrame(frames)[list(PREDICTIONS)]}
    if training is not None:
        keys = [*zip(frames["seed"][::n], controls, readouts, strict=True)]
        refits = _choose_of_halves(keys, np.array(refitted), of_dev, random)
        rows = np.where(refits.row < 0, -1, refits.row + texts[0])
        of_groups = {"row": rows, "group": np.where(rows < 0, -1, rows // group)}
        tables["refits"] = refits.assign(task=task, n_train=600, **of_groups)[[*REFITS]]
    return tables


def _divide(n: int, random: np.random.Generator) -> np.ndarray:
    """(half, text) True for the texts of a half; 2i and 2i + 1 are complementary."""
    first = [random.permutation(n) < n // 2 for _ in range(HALVINGS)]
    return np.array([half for one in first for half in (one, ~one)])


def _choose_of_halves(
    keys: Sequence[tuple[int, str, str]], hits: np.ndarray, of_dev: np.ndarray, random: np.random.Generator
) -> pd.DataFrame:
    """The columns of the refits but task, group and n_train, with rows that count from 0. keys: of every cell its seed,
    control and readout. hits: (cell, half, text of dev and test) whether it is right. of_dev: (half, text of dev)
    whether it is of this half. Every half reads the layer that is best on its own dev texts."""
    procedures: dict[tuple[int, str, str], list[int]] = {}
    for index, (seed, control, readout) in enumerate(keys):
        procedures.setdefault((seed, control, ANY if control == "untrained" else readout), []).append(index)
    parts, on_dev, half = [], of_dev.shape[1], np.arange(len(HALVES))
    for (seed, control, readout), cells in procedures.items():
        dev = (hits[cells][:, :, :on_dev] * of_dev).sum(2) / of_dev.sum(1)
        best = dev.argmax(0)
        test = hits[cells][best, half, on_dev:]
        values = np.vstack([dev[best, half], 0.5 + 0.1 * random.random(len(HALVES)), test.T]).astype(np.float32)
        key = {"seed": seed, "control": control, "readout": readout}
        names = {"measure": ["dev", "dev bits", *["test"] * test.shape[1]], "row": [-1, -1, *range(test.shape[1])]}
        parts.append(pd.DataFrame({**key, **names}).join(pd.DataFrame(values, columns=[*HALVES])))
    return pd.concat(parts, ignore_index=True)


def _categories(values: Sequence[str], repeats: int) -> pd.Categorical:
    """Every value so many times, as categories: as a sweep writes them."""
    names, codes = np.unique(values, return_inverse=True)
    return pd.Categorical.from_codes(np.repeat(codes, repeats), names)


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
        result = measured(**draw_tables({("majority", -1, "none"): 0.5} | cells, random, **more))
        return replace(result, facts={**result.facts, "solved": solved})

    return draw


def _read(**accuracies) -> dict[Cell, float | tuple[float, float]]:
    """Readouts of the same accuracy at two layers, so that it does not matter which one dev chooses."""
    return {("none", layer, name): value for name, value in accuracies.items() for layer in (2, 3)}


def _tasks(*draws: Callable[[np.random.Generator], Measured]) -> Callable[[np.random.Generator], Measured]:
    """One table of each kind over several tasks, each of which is drawn so."""

    def draw(random: np.random.Generator) -> Measured:
        parts = {f"file:{i}:label": draw_one(random) for i, draw_one in enumerate(draws)}
        tables: dict[str, list[pd.DataFrame]] = {}
        for task, part in parts.items():
            for name, table in part.tables.items():
                column = pd.Categorical.from_codes(np.zeros(len(table), int), [task])
                tables.setdefault(name, []).append(table.assign(task=column))
        together = measured(**{name: concat_categories(blocks) for name, blocks in tables.items()})
        solved = {task: part.facts["solved"][TASK] for task, part in parts.items() if part.facts.get("solved")}
        return replace(together, facts={**together.facts, "solved": solved})

    return draw


def _readouts(**accuracies) -> dict[Cell, float | tuple[float, float]]:
    return _read(**accuracies) | BASELINES


def _tuned(
    constant: tuple[str, ...] = (), seeds: int = 1, **accuracies: float
) -> Callable[[np.random.Generator], Measured]:
    """Fine-tuned from these readouts, at one rate."""
    cells = {("none", 6, name): value for name, value in accuracies.items()}
    return _sweep(cells, constant=constant, seeds=seeds, probes=dict.fromkeys(accuracies, f"{TUNED}0.0001"))


YES, NO, NEITHER = frozenset({"no", "mixed"}), frozenset({"yes", "mixed"}), frozenset({"yes", "no", "mixed"})
SOLVED = {TASK: ["length"]}
LENGTH = {("length", -1, "none"): 0.99}
FLAT = {("none", layer, "flatten_projected"): 0.8 for layer in (2, 3)}
CLS = {("none", 3, "cls"): 0.8}

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
        _tasks(*(_sweep(_read(cls=cls, mean=mean)) for cls, mean in ((0.75, 0.85), (0.85, 0.75), (0.8, 0.8)))),
        frozenset({"yes", "no"}),
        "mixed",
    ),
    "poolings: at the margin on three tasks": World(
        Poolings(), _tasks(*[_sweep(_read(cls=0.82, mean=0.80))] * 3), NEITHER
    ),
    "poolings: worse on all of three tasks": World(
        Poolings(), _tasks(*[_sweep(_read(cls=0.87, mean=0.75))] * 3), YES, "yes"
    ),
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
    "order: kept": World(Order(), _sweep(CLS | FLAT | dict.fromkeys(BASELINES, 0.5)), NO, "no"),
    "order: destroyed": World(
        Order(),
        _sweep(CLS | FLAT | dict.fromkeys(FLAT, 0.44) | dict.fromkeys(BASELINES, 0.5)),
        YES,
        "yes",
    ),
    "order: nothing was there to destroy": World(
        Order(),
        _sweep({("none", 3, "cls"): 0.5} | dict.fromkeys(FLAT, 0.44) | dict.fromkeys(BASELINES, 0.5)),
        NEITHER,
        "undecided",
    ),
    "order: kept by the margin": World(
        Order(),
        _sweep(CLS | dict.fromkeys(FLAT, 0.62) | dict.fromkeys(BASELINES, 0.6)),
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

# the mean over other training texts is the truth, and these probes are one draw of them
FEW = (96, 400)
POSITIONS = ("sep", "random", "token[1]", "token[2]", "token[-1]")
WORLDS |= {
    "poolings: other training texts, worse by the margin": World(
        Poolings(), _sweep(_read(cls=0.82, mean=0.80), training=0.2, texts=FEW), NEITHER
    ),
    "poolings: other training texts, worse by far": World(
        Poolings(), _sweep(_read(cls=0.87, mean=0.73), training=0.05, texts=FEW), YES, "yes"
    ),
    "poolings: other training texts, eight copies of every text": World(
        Poolings(), _sweep(_read(cls=0.82, mean=0.80), training=0.1, texts=FEW, group=8), NEITHER
    ),
    # the best of five on dev is worse by 2 points, though each of them is by 4: it is chosen for its training texts too
    "positions: other training texts, five at the margin": World(
        Positions(), _sweep(_read(cls=0.84, **dict.fromkeys(POSITIONS, 0.8)), training=0.1, texts=FEW), NEITHER
    ),
}


# ------------------------------------------------------------------------------- tables other than of predictions


def _reconstruct(
    share: float, *, gated: bool = False, novelty: float = 0.5
) -> Callable[[np.random.Generator], Measured]:
    """Texts of which the decoder puts this share of the blind one's errors right. gated: the blind one wrote them, and
    corrections put right what is right."""

    def draw(random: np.random.Generator) -> Measured:
        n = 200
        blind = 0.2 + 0.05 * random.normal(size=n)
        written = 0.2 + 0.8 * share + 0.15 * random.normal(size=n)
        bits = 40.0 if gated else 40 - 8 * share + random.normal(size=n)
        columns = {"decoder": "sequence", "n_train": 914, "layer": 3, "readout": "cls", "gated": gated, "split": "test"}
        columns |= {"row": np.arange(n), "text": "a", "novelty": novelty, "exact": 0.0, "tokens": 8, "blind": 40.0}
        sides = {"no input": (blind, 40.0), "vector": (blind if gated else written, bits)}
        sides |= {"corrected": (written, np.nan)} if gated and share else {}
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
        np.sqrt(COMMON) * difficulty + np.sqrt(1 - COMMON) * random.normal(size=n) < ndtri(accuracy)
        for accuracy in accuracies
    ]


def _cut(
    intact: float,
    everywhere: float,
    *halves: float,
    untrained: tuple[float, float] = (0.7, 0.7),
    texts: int = 400,
) -> Callable[[np.random.Generator], Measured]:
    """Accuracies of retrained probes of [CLS], intact and cut off everywhere, at layer 1; at layer 4 with those of the
    cuts in the lower and the upper half, in the encoder and in untrained ones."""
    layer = 4 if halves else 1
    whole, lower, upper = (Window(EVERYTHING, *span) for span in ((1, layer), (1, 2), (3, 4)))
    same = {lower: Window(ONLY, 3, 4), upper: Window(ONLY, 1, 2)}  # the other half is open

    def draw(random: np.random.Generator) -> Measured:
        accuracies = {("none", -1, INTACT): intact, ("none", -1, whole): everywhere}
        if halves:
            accuracies |= dict(zip((("none", -1, lower), ("none", -1, upper)), halves, strict=True))
            for number in range(DRAWS):
                accuracies["untrained", number, INTACT] = max(untrained)
                accuracies |= {("untrained", number, lower): untrained[0], ("untrained", number, upper): untrained[1]}
        hits = dict(zip(accuracies, _draw_correct(random, *accuracies.values(), n=texts), strict=True))
        hits |= {(*key, same[cut]): right for (*key, cut), right in hits.items() if cut in same}
        parts = []
        for (control, number, cut), correct in hits.items():
            key = {"control": control, "draw": number, **cut._asdict(), "layer": layer, "readout": "cls", "seed": 0}
            answers = {"row": np.arange(texts), "label": "a", "predicted": np.where(correct, "a", "b")}
            parts.append(pd.DataFrame({"task": TASK, **key, **answers}))
        table = pd.concat(parts, ignore_index=True)
        return measured(
            retrained=table[list(RETRAINED)],
            refitted=pd.DataFrame(columns=[*REFITTED]),
            knockout=table.loc[table.control == "none", list(FIXED)],
        )

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
    "formation: later than untrained encoders": World(Formation(), _cut(0.85, 0.5, 0.84, 0.6), YES, "yes"),
    "formation: earlier than untrained encoders": World(Formation(), _cut(0.85, 0.5, 0.6, 0.84), NO, "no"),
    "formation: later by the margin": World(Formation(), _cut(0.85, 0.5, 0.72, 0.7), NEITHER),
    "formation: late, as untrained encoders are": World(
        Formation(), _cut(0.85, 0.5, 0.84, 0.6, untrained=(0.84, 0.6)), NO
    ),
    "formation: nothing to lose": World(Formation(), _cut(0.5, 0.5, 0.5, 0.5), NEITHER, "undecided"),
    "trajectory: learned": World(Trajectory(), _train(0.6, 0.8), YES, "yes"),
    "trajectory: lost": World(Trajectory(), _train(0.8, 0.6), NO, "no"),
    "trajectory: unchanged": World(Trajectory(), _train(0.7, 0.7), NEITHER),
}


def _space(
    cells: Mapping[tuple[int, str], tuple[int, ...] | None], *, texts: int = 500
) -> Callable[[np.random.Generator], Measured]:
    """The table of a geometry. cells: layer, readout -> its massive coordinates; None where it is one vector."""

    def draw(random: np.random.Generator) -> Measured:
        rows: list[tuple] = [("texts", -1, "none", -1, "none", -1, texts, np.nan, np.nan)]
        for (layer, readout), massive in cells.items():
            key, unknown = (layer, readout, -1, "none"), (np.nan,) * 2
            rank, raw, without = 40 + 20 * random.random(), 0.9 * random.random(), 0.2 * random.random()
            values = {
                "width": (64, *unknown),
                "self_similarity": (1.0, 1.0, 1.0) if massive is None else (raw, raw - 0.01, raw + 0.01),
                "without_massive": (without, without - 0.01, without + 0.02)
                if massive
                else (raw, raw - 0.01, raw + 0.01),
                "effective_rank": (np.nan, *unknown) if massive is None else (rank, rank - 2, rank + 2),
            }
            rows += [(measure, *key, -1, *value) for measure, value in values.items()]
            rows += [("massive", *key, i, 400.0, *unknown) for i in massive or ()]
            rows.append(("adjusted", layer, readout, layer, "random", -1, raw, *unknown))
        return measured(measured=pd.DataFrame(rows, columns=[*COLUMNS]).assign(task=TASK))

    return draw


def _from_file(draw: Callable[[np.random.Generator], Measured]) -> Callable[[np.random.Generator], Measured]:
    """The same of the vectors in v.npy."""

    def draw_from_file(random: np.random.Generator) -> Measured:
        drawn = draw(random)
        tables = {
            name: table.assign(model="v.npy") if "model" in table else table for name, table in drawn.tables.items()
        }
        return replace(
            drawn, tables=tables, facts={**drawn.facts, "model": {"model": "v.npy", "vectors": "1,000 x 64"}}
        )

    return draw_from_file


# what is read besides: sentences that no world above has, and several tasks
READ: dict[str, World] = {
    name: World(study, draw, frozenset())
    for name, study, draw in (
        (
            "run: four tasks",
            Run(),
            _tasks(
                _sweep(_readouts(cls=0.75)),
                _sweep(_readouts(cls=0.7) | {("untrained", 2, "mean"): 0.8}),
                _sweep(_readouts(cls=0.66)),
                _sweep(_readouts(cls=0.9) | LENGTH, solved=SOLVED),
            ),
        ),
        ("run: three untrained encoders", Run(), _sweep(_readouts(cls=0.72), seeds=3)),
        (
            "run: the vectors of a file",
            Run(vectors="v.npy"),
            _from_file(_sweep({("none", 1, "vector"): 0.8} | BASELINES)),
        ),
        ("run: the label is nearly the length", Run(), _sweep(_readouts(cls=0.9) | LENGTH)),
        (
            "aggregate: mean was read on one task",
            Aggregate(),
            _tasks(_sweep(_readouts(cls=0.8, mean=0.76)), _sweep(_readouts(cls=0.8))),
        ),
        (
            "aggregate: yes, no and left out on three tasks",
            Aggregate(),
            _tasks(
                _sweep(_readouts(cls=0.8, mean=0.76)),
                _sweep(_readouts(cls=0.75, mean=0.85)),
                _sweep(_readouts(cls=0.9, mean=0.9) | LENGTH, solved=SOLVED),
            ),
        ),
        (
            "aggregate: [CLS] predicts the other class",
            Aggregate(),
            _sweep(
                _readouts(cls=0.5, mean=0.5) | dict.fromkeys(BASELINES, (0.6, 0.3)),
                constant=("cls",),
                shares=(0.6, 0.8),
            ),
        ),
        ("poolings: forty texts", Poolings(), _sweep(_read(cls=0.8, mean=0.8), texts=(60, 40))),
        (
            "poolings: mean predicts one class",
            Poolings(),
            _sweep(_read(cls=(0.6, 0.5), mean=0.5), constant=("mean",), shares=(0.5, 0.8)),
        ),
        ("poolings: seven tasks", Poolings(), _tasks(*[_sweep(_read(cls=0.75, mean=0.85))] * 7)),
        (
            "positions: three tasks",
            Positions(),
            _tasks(*(_sweep(_read(cls=0.8, sep=sep, random=0.6)) for sep in (0.9, 0.7, 0.78))),
        ),
        (
            "positions: another predicts one class",
            Positions(),
            _sweep(_read(cls=(0.5, 0.6), sep=0.5), constant=("sep",), shares=(0.6, 0.9)),
        ),
        (
            "order: kept, destroyed and solved on three tasks",
            Order(),
            _tasks(
                _sweep(CLS | FLAT | dict.fromkeys(BASELINES, 0.5)),
                _sweep(CLS | dict.fromkeys(FLAT, 0.45) | dict.fromkeys(BASELINES, 0.5)),
                _sweep(CLS | FLAT | {("bag_of_words", -1, "none"): 0.9}),
            ),
        ),
        (
            "order: nothing to destroy, one class for nearly all, on two tasks",
            Order(),
            _tasks(
                _sweep(dict.fromkeys([*CLS, *FLAT], 0.45) | dict.fromkeys(BASELINES, 0.6)),
                _sweep(CLS | FLAT | dict.fromkeys(BASELINES, 0.8), shares=(0.99, 0.995)),
            ),
        ),
        (
            "run: other training texts, three seeds",
            Run(),
            _sweep(_readouts(cls=0.78, mean=0.7), training=0.05, texts=FEW, seeds=3),
        ),
        ("run: other training texts, without [CLS]", Run(), _sweep(_readouts(mean=0.75, max=0.75), training=0.1)),
        (
            "run: other training texts, the vectors of a file",
            Run(vectors="v.npy"),
            _from_file(_sweep({("none", 1, "vector"): 0.8} | BASELINES, training=0.03)),
        ),
        ("aggregate: other training texts", Aggregate(), _sweep(_readouts(cls=0.85, mean=0.8), training=0.03)),
        ("poolings: other training texts decide", Poolings(), _sweep(_read(cls=0.85, mean=0.8), training=0.1)),
        (
            "poolings: other training texts, hardly any difference",
            Poolings(),
            _sweep(_read(cls=0.82, mean=0.8), training=0.4, texts=(60, 40)),
        ),
        (
            "positions: other training texts on two of three tasks",
            Positions(),
            _tasks(
                _sweep(_read(cls=0.75, sep=0.85, random=0.85), training=0.03, texts=FEW, group=2),
                _sweep(_read(cls=0.85, sep=0.75, random=0.75), training=0.1, texts=FEW),
                _sweep(_read(cls=0.8, sep=0.8)),
            ),
        ),
        (
            "order: other training texts, kept and destroyed on two tasks",
            Order(),
            _tasks(
                _sweep(CLS | FLAT | dict.fromkeys(BASELINES, 0.5), training=0.05),
                _sweep(
                    _read(cls=0.7, mean=0.7, max=0.7, flatten_projected=0.5) | dict.fromkeys(BASELINES, 0.6),
                    training=0.05,
                ),
            ),
        ),
        ("fine-tuning: five seeds", FineTuning(), _tuned(cls=0.82, sep=0.815, token1=0.85, seeds=5)),
        ("fine-tuning: two seeds", FineTuning(), _tuned(cls=0.82, sep=0.8, seeds=2)),
        (
            "fine-tuning: mean alone, on two tasks",
            FineTuning(),
            _tasks(_tuned(cls=0.8, mean=0.85), _tuned(cls=0.5, mean=0.5)),
        ),
        ("reconstruct: few texts are new", Reconstruct(), _reconstruct(0.6, novelty=0.1)),
        ("reconstruct: corrections alone", Reconstruct(), _reconstruct(0.1, gated=True)),
        (
            "formation: later, earlier and nothing to lose on three tasks",
            Formation(),
            _tasks(_cut(0.85, 0.5, 0.84, 0.6), _cut(0.85, 0.5, 0.6, 0.84), _cut(0.5, 0.5, 0.5, 0.5)),
        ),
        ("formation: no different", Formation(), _cut(0.95, 0.5, 0.9, 0.9, untrained=(0.95, 0.95), texts=9000)),
        (
            "formation: no later than untrained encoders",
            Formation(),
            _cut(0.95, 0.5, 0.94, 0.94, untrained=(0.98, 0.94), texts=1000),
        ),
        ("formation: either half suffices", Formation(), _cut(0.95, 0.5, 0.95, 0.95, texts=9000)),
        ("formation: read at layer 1", Formation(), _cut(0.85, 0.5, texts=40)),
        (
            "trajectory: a gain, a loss and neither on three tasks",
            Trajectory(),
            _tasks(_train(0.6, 0.8), _train(0.8, 0.6), _train(0.7, 0.7)),
        ),
        (
            "geometry: massive coordinates on one of two tasks",
            Geometry(),
            _tasks(
                _space({(1, "cls"): (3,), (1, "mean"): ()}), _space({(0, "cls"): None, (0, "mean"): (), (0, "sep"): ()})
            ),
        ),
        (
            "geometry: many massive coordinates",
            Geometry(),
            _space({(1, "sep"): (5, 3, 9, 60, 11, 2), (1, "max"): (3, 4)}),
        ),
        ("geometry: a file of vectors", Geometry(vectors="v.npy"), _from_file(_space({(1, "vector"): (3,)}))),
        (
            "geometry: a file of layers",
            Geometry(vectors="v.npy"),
            _from_file(_space({(5, "cls"): (), (6, "cls"): (3,), (6, "mean"): None})),
        ),
    )
}


def answer_in_words(study: Study, measured: Measured) -> Answer:
    """The answer of a study without exhibits and notes, which take most of the time."""
    nothing = {"show": lambda self, measured, task: [], "note": lambda self, measured: []}
    with patch.multiple(type(study), **nothing):
        return study.answer(measured)


@cache
def judge(name: str) -> tuple[Measured, Verdict]:
    """A draw of a world, and what its study says of it."""
    world = (WORLDS | READ)[name]
    measured = world.draw(np.random.default_rng(7))
    return measured, answer_in_words(world.study, measured).verdict


def known_worlds(study: str) -> dict[str, Measured]:
    """Outcome -> a draw of a world in which it is the right answer to this study, for `check_study`."""
    result: dict[str, Measured] = {}
    for name, world in WORLDS.items():
        drawn, verdict = judge(name) if name.startswith(f"{study}: ") else (None, None)
        is_right = world.right is not None or (verdict is not None and verdict.outcome == "undecided")
        if drawn is not None and verdict.is_counted and is_right:
            result.setdefault(world.right or "undecided", drawn)
    return result


def count_outcomes(name: str, draws: int) -> Counter[str]:
    """Outcome -> how often the study found it in so many draws of a world."""
    return Counter(WORLDS[name].study.verdict(draw(name, number)).outcome for number in range(draws))


def draw(name: str, number: int) -> Measured:
    """A draw of a world, of which each number is another one."""
    return WORLDS[name].draw(np.random.default_rng([number, *name.encode()]))


if __name__ == "__main__":
    print("| world | yes | no | mixed | undecided |\n|---|---|---|---|---|")
    for world_name in WORLDS:
        counted = count_outcomes(world_name, 200)
        print(f"| {world_name} | " + " | ".join(str(counted[o]) for o in ("yes", "no", "mixed", "undecided")) + " |")
