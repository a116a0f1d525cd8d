"""The sweep: tasks x cells x probes x seeds -> the results table.

It has three axes and no branches. A control is one more label set beside the real one, an untrained encoder is one more
`States`, a baseline is one more cell. Cells are taken a few at a time, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from tqdm import tqdm

from clsprobe.analysis import stats
from clsprobe.analysis.table import (
    COLUMNS,
    NO_LAYER,
    NO_READOUT,
    NUMBERS,
    PREDICTIONS,
    check_predictions,
    check_results,
)
from clsprobe.probes.base import STRENGTHS, Predictions, predict_each
from clsprobe.probes.baseline import BASELINES, Baseline, on_features
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.states import States
from clsprobe.probes.pooling import learned
from clsprobe.probes.registry import fitting
from clsprobe.probes.tasks.control import CONTROLS, labelled
from clsprobe.probes.tasks.split import check_numbers, split
from clsprobe.probes.tasks.task import Task

CHUNK = 64 << 20  # bytes of training features fitted at once
EVALUATED = ("dev", "test")


@dataclass(frozen=True, eq=False)
class SplitTask:
    """A task made ready for one seed. All arrays are over the rows used, in the order of the task.

    row_indices: into the task's texts. state_rows: into the States. side: "train" | "dev" | "test". y: codes into
    classes, or numbers, which have none. left_out: rows by reason.
    """

    task: Task
    row_indices: np.ndarray
    state_rows: np.ndarray
    side: np.ndarray
    y: np.ndarray
    classes: np.ndarray
    left_out: dict[str, int]
    notes: list[str]

    @property
    def texts(self) -> list[str]:
        """The texts of the rows used."""
        return [self.task.texts[i] for i in self.row_indices.tolist()]

    def of(self, side: str) -> tuple[list[str], np.ndarray]:
        """The texts and labels of a side."""
        rows = self.rows_of(side)
        return [self.task.texts[i] for i in self.row_indices[rows].tolist()], self.y[rows]

    def rows_of(self, *sides: str) -> np.ndarray:
        """Positions within the arrays of the rows on these sides."""
        return np.flatnonzero(np.isin(self.side, sides))


def split_task(
    task: Task, states: States, seed: int, *, drop: np.ndarray | None = None, allow_overlap: bool = False
) -> SplitTask:
    """Split a task and leave out, for every readout alike, the texts that any of the readouts cannot read.

    drop: rows of the States left out as too long. Raises InputError where nothing sound remains.
    """
    at = states.rows(task.texts) if task.rows is None else task.rows
    parted = split(task, seed=seed, allow_overlap=allow_overlap, tokens=states.where.ids.to_numpy()[at])
    used = parted.side != ""
    left_out = dict(parted.left_out)
    for readout, present in zip(states.readouts, states.present, strict=True):
        short = used & ~present[at]
        if short.sum() == used.sum():
            raise InputError(readout, f"{short.sum():,} of {used.sum():,} texts are shorter", "Leave this readout out")
        if short.any():
            left_out[f"too short for {readout}"] = int(short.sum())
            used &= ~short
    if drop is not None and (long := used & np.isin(at, drop)).any():
        left_out["too long"] = int(long.sum())
        used &= ~long
    row = np.flatnonzero(used)
    y: np.ndarray
    if task.kind == "number":
        classes, y = np.array([], str), np.asarray(task.y[row], np.float64)
    else:
        classes, y = np.unique(task.y[row].astype(str), return_inverse=True)
    asked = SplitTask(task, row, at[row], parted.side[row], y, classes, left_out, list(parted.notes))
    trained = np.isin(np.arange(len(classes)), y[asked.rows_of("train")])
    if task.kind == "class" and (not trained.all() or len(classes) < 2):
        lost = ", ".join(repr(str(c)) for c in classes[~trained]) or "all but one class"
        raise InputError(
            task.name, f"no text left to train on for {lost}", f"Left out: {left_out}; name other readouts"
        )
    if empty := [name for name in ("train", *EVALUATED) if not len(asked.rows_of(name))]:
        raise InputError(
            task.name, f"no {' and no '.join(empty)} text left", f"Left out: {left_out}; name other readouts"
        )
    if task.kind == "number":
        check_numbers(task.name, y, asked.side)
    return asked


def sweep(
    tasks: Sequence[Task],
    states: States | Sequence[States],
    probes: Mapping[str, BaseEstimator],
    *,
    seeds: Sequence[int] = (0,),
    controls: Sequence[str] = tuple(CONTROLS),
    drop: np.ndarray | None = None,
    allow_overlap: bool = False,
    keep: Callable[[pd.DataFrame], None] | None = None,
    failed: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """The results table of every task, cell, probe and seed, with its baselines and controls.

    A task of numbers is read by the probes that are regressors, one of classes by the others; InputError where none is.

    states: the trained encoder's, then those of untrained ones (each belongs to the seed of its weights). controls:
    names in `probes.tasks.control.CONTROLS`. keep: called with the predictions of every block
    (analysis.table.PREDICTIONS) as they come. failed: called with a sentence for every cell whose probe raised; without
    it the first one raises RuntimeError.
    """
    every = [states] if isinstance(states, States) else list(states)
    blocks: list[pd.DataFrame] = []
    of = [fitting(probes, task) for task in tasks]
    total = sum(_fits(s, len(read)) for read in of for s in every for seed in seeds if _of_seed(s, seed))
    with tqdm(total=total, desc="probing", unit=" cells", delay=1, disable=None, leave=False) as bar:
        for task, read in zip(tasks, of, strict=True):
            for seed in seeds:
                asked = split_task(task, every[0], seed, drop=drop, allow_overlap=allow_overlap)
                for block in _blocks(asked, every, read, controls, seed, bar.update):
                    for told in block.failures:
                        if failed is None:
                            raise RuntimeError(told)
                        failed(told)
                    blocks.append(_score(block))
                    if keep:
                        keep(_predictions(block))
    return check_results(pd.concat(blocks, ignore_index=True))


def _fits(states: States, probes: int) -> int:
    return sum(1 if learned(readout, states.dim) else probes for _, readout in states.cells)


def _of_seed(states: States, seed: int) -> bool:
    """Untrained weights belong to the seed that drew them, trained ones to all."""
    return states.source["control"] == "none" or states.source["seed"] == seed


@dataclass(frozen=True, eq=False)
class _Block:
    """Predictions of some cells.

    codes (numbers where the task has numbers), own_bits (log2 probability of the own label; without meaning where y has
    no label): (cell, label set, evaluated text).
    """

    asked: SplitTask
    model: str
    probe: str
    seed: int
    cells: list[tuple[int, str]]
    sets: list[str]  # the value of `control` for every label set
    y: np.ndarray  # (evaluated text, label set), see `labelled`
    n_train: list[int]  # texts with a label, of every label set
    evaluated: np.ndarray
    codes: np.ndarray
    own_bits: np.ndarray | None
    converged: np.ndarray
    failures: list[str]


def _blocks(
    asked: SplitTask,
    states: Sequence[States],
    probes: Mapping[str, BaseEstimator],
    controls: Sequence[str],
    seed: int,
    done: Callable[[int], object],
) -> Iterator[_Block]:
    train, dev = asked.rows_of("train"), asked.rows_of("dev")
    evaluated = asked.rows_of(*EVALUATED)
    trained = states[0]
    texts = [asked.task.texts[i] for i in asked.row_indices]
    for name, baseline in _baselines(trained, asked).items():
        told = baseline(texts, asked.y, train, dev)
        cell = (0, "mean") if name == "layer0_mean" else (NO_LAYER, NO_READOUT)
        seen = replace(told, codes=told.codes[..., evaluated], log2_proba=_at(told.log2_proba, evaluated))
        probe = "none" if name == "majority" else "logistic" if len(asked.classes) else "ridge"
        yield _block(asked, trained, probe, seed, [cell], [name], asked.y[:, None], evaluated, seen)
    drawn = {name: CONTROLS[name](texts, asked.y, asked.side, seed) for name in controls}
    real = {"none": asked.y} | {
        name: y for name, y in drawn.items() if len(np.unique(y[train][labelled(y[train])])) > 1
    }
    for one in filter(partial(_of_seed, seed=seed), states):
        labels = real if one.source["control"] == "none" else {one.source["control"]: asked.y}
        y, at = np.stack([*labels.values()], 1), asked.state_rows if one is trained else one.rows(texts)
        for cells, name, probe in _batches(one, probes, len(train)):
            X, X_dev, unseen = (features(one, cells, at[rows]) for rows in (train, dev, evaluated))
            told = predict_each(probe, X, y[train], unseen, dev=(X_dev, y[dev]), strengths=STRENGTHS)
            yield _block(asked, one, name, seed, cells, [*labels], y, evaluated, told)
            done(len(cells))


def _batches(
    states: States, probes: Mapping[str, BaseEstimator], texts: int
) -> Iterator[tuple[list[tuple[int, str]], str, BaseEstimator]]:
    """Cells that are fitted together, with the name of a probe and the probe.

    A readout whose pooling is learned has a probe of its own, which stands under the first one's name.
    """
    kinds: dict[tuple[int, str], list[tuple[int, str]]] = {}
    for layer, readout in states.cells:
        own = readout if learned(readout, states.dim) else ""
        kinds.setdefault((states.width(readout), own), []).append((layer, readout))
    for at, (name, probe) in enumerate(probes.items()):
        for (width, readout), cells in kinds.items():
            if readout and at:
                continue
            size = max(1, CHUNK // max(1, texts * width * 4))
            for start in range(0, len(cells), size):
                yield cells[start : start + size], name, (learned(readout, states.dim) if readout else probe)


def features(states: States, cells: Sequence[tuple[int, str]], at: np.ndarray) -> np.ndarray:
    """(cell, text, dim) of some texts, with no more in memory than these. The cells are of one width."""
    return np.stack([states.cell(*cell, at) for cell in cells])


def _baselines(states: States, asked: SplitTask) -> dict[str, Baseline]:
    found = {name: one for name, one in BASELINES.items() if name == "majority" or not asked.task.textless}
    if (0, "mean") in states.cells:
        vectors = states.cell(0, "mean")[asked.state_rows]
        found["layer0_mean"] = lambda texts, y, train, dev: on_features(vectors, y, train, dev)
    return found


def _at(bits: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if bits is None else bits[:, :, rows]


def _block(
    asked: SplitTask,
    states: States,
    probe: str,
    seed: int,
    cells: list[tuple[int, str]],
    sets: list[str],
    y: np.ndarray,
    evaluated: np.ndarray,
    told: Predictions,
) -> _Block:
    own = None
    if told.log2_proba is not None:
        known = y[evaluated].T.clip(min=0)[None, ..., None]
        own = np.take_along_axis(told.log2_proba, known, -1)[..., 0]
    failures = [
        f"probe '{probe}' failed on layer {cells[c][0]}, {cells[c][1]} ({asked.task.name}): {why}"
        for c, why in told.failures.items()
    ]
    return _Block(
        asked, states.source["model"], probe, seed, cells, sets, y[evaluated],
        labelled(y[asked.rows_of("train")]).sum(0).tolist(), evaluated, told.codes, own,
        told.converged, failures,
    )  # fmt: skip


def _score(block: _Block) -> pd.DataFrame:
    side = block.asked.side[block.evaluated]
    rows = []
    for s, control in enumerate(block.sets):
        for name in EVALUATED:
            here = (side == name) & labelled(block.y[:, s])
            if not (n := int(here.sum())):
                continue  # a control that labels no text here
            told_of_all, labels = block.codes[:, s, here], block.y[here, s]
            if len(block.asked.classes):
                own = None if block.own_bits is None else block.own_bits[:, s, here]
                measured = stats.intervals(told_of_all, labels, own)
            else:
                measured = stats.number_intervals(told_of_all, labels)
            for what, told in measured.items():
                for c, (layer, readout) in enumerate(block.cells):
                    if labelled(block.codes[c, s]).all():  # not a failed cell
                        value, low, high = (part[c] for part in told)
                        rows.append(
                            (block.model, block.asked.task.name, control, layer, readout, block.probe, block.seed, name,
                             what, value, low, high, block.n_train[s], n, bool(block.converged[c, s]))
                        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _predictions(block: _Block) -> pd.DataFrame:
    classes = block.asked.classes
    layer, readout = (np.array(part) for part in zip(*block.cells, strict=True))

    def spread(values: np.ndarray, axis: int) -> np.ndarray:
        shape = [1, 1, 1]
        shape[axis] = -1
        return np.broadcast_to(np.asarray(values).reshape(shape), block.codes.shape).ravel()

    def category(values: np.ndarray, axis: int) -> pd.Categorical:
        found, codes = np.unique(values, return_inverse=True)
        return pd.Categorical.from_codes(spread(codes, axis), found)

    one = np.zeros(block.codes.size, np.int8)
    labels, told = np.broadcast_to(block.y.T, block.codes.shape).ravel(), block.codes.ravel()
    numbers = {} if len(classes) else dict(zip(NUMBERS, (labels, told), strict=True))
    names = pd.Index(classes, dtype="str")  # of numbers none, but of the same type, so that tables unite
    if numbers:
        labels = told = np.full(told.shape, -1)  # no class
    table = pd.DataFrame(
        {
            "model": pd.Categorical.from_codes(one, [block.model]),
            "task": pd.Categorical.from_codes(one, [block.asked.task.name]),
            "control": category(np.array(block.sets), 1),
            "layer": spread(layer, 0).astype(np.int16),
            "readout": category(readout, 0),
            "probe": pd.Categorical.from_codes(one, [block.probe]),
            "seed": np.full(block.codes.size, block.seed),
            "split": category(block.asked.side[block.evaluated], 2),
            "row": spread(block.asked.row_indices[block.evaluated], 2),
            "label": pd.Categorical.from_codes(labels, names),
            "predicted": pd.Categorical.from_codes(told, names),
            "log2_probability": np.full(block.codes.size, np.nan) if block.own_bits is None else block.own_bits.ravel(),
            **numbers,
        },
        columns=[*PREDICTIONS, *numbers],
    )
    return check_predictions(table.dropna(subset=[*numbers] or ["label", "predicted"]))


def layer0_check(results: pd.DataFrame) -> list[str]:
    """The free negative control: layer-0 [CLS] is one vector for every text, so the linear probe must predict the
    majority, or the mean of train.

    One sentence over all tasks where it does, and one for every task where it does not (on test).
    """
    told = []
    test = results[(results.split == "test") & (results.seed == results.seed.min())]
    for metric, probe, what, rounding in (
        ("accuracy", "logistic", "a rate that equals the majority rate", 0),
        ("r2", "ridge", "an R2 that equals that of the mean of train", 1e-6),
    ):
        rows = test[test.metric == metric]
        rate = rows[rows.control == "majority"].set_index("task").value
        read = rows[(rows.control == "none") & (rows.layer == 0) & (rows.readout == "cls") & (rows.probe == probe)]
        read = read.set_index("task").value
        passed = [task for task, value in read.items() if abs(value - rate[task]) <= rounding]
        told += [
            f"Self-check: layer-0 [CLS], the same vector for every text, is read at {value:.3f} on {task}, which "
            f"DIFFERS FROM {what.partition('equals ')[2]} {rate[task]:.3f}: do not trust this run."
            for task, value in read.items()
            if task not in passed
        ]
        if passed:
            rates = ", ".join(f"{task} {rate[task]:.3f}" for task in passed)
            told.append(f"Self-check: layer-0 [CLS], the same vector for every text, is read at {what} ({rates}).")
    return told


def describe_rows(asked: SplitTask, cut: int = 0) -> dict[str, object]:
    """Where the rows of a task went: in = used + left out by reason; how many on each side; the classes.

    cut: rows that were left out before, beyond --max-texts.
    """
    sides = {name: len(asked.rows_of(name)) for name in ("train", *EVALUATED)}
    return {
        "rows": len(asked.task.texts) + cut,
        **sides,
        **({"left out: beyond --max-texts": cut} if cut else {}),
        **{f"left out: {reason}": n for reason, n in asked.left_out.items()},
        "classes" if len(asked.classes) else "different numbers": len(np.unique(asked.y)),
    }
