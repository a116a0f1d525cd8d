"""The sweep: tasks x cells x probes x seeds -> the results table.

A control is one more label set beside the real one, an untrained encoder is one more `States`, a baseline is one more
cell. Cells are fitted a few at a time, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
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
from clsprobe.probes.baseline import BASELINES, Baseline, predict_from_features
from clsprobe.probes.errors import InputError, unknown
from clsprobe.probes.extraction.states import States
from clsprobe.probes.plugins import undo_changes
from clsprobe.probes.pooling import make_attention_probe
from clsprobe.probes.registry import PROBES, choose_probes, describe_kind, find_probe
from clsprobe.probes.tasks.control import CONTROLS, has_label
from clsprobe.probes.tasks.places import Places
from clsprobe.probes.tasks.split import check_numbers, count_reasons, split
from clsprobe.probes.tasks.task import Task

CHUNK = 16 << 20  # bytes of features fitted at once, if no core is left without a cell
LARGEST_CHUNK = 128 << 20  # bytes that are fitted at once so that every core has a cell
EVALUATED = ("dev", "test")


@dataclass(frozen=True, eq=False)
class SplitTask:
    """A task split with one seed. All arrays are over the rows used, in the order of the task.

    row_indices: into the task's texts. state_rows: into the States. side: "train" | "dev" | "test". group: equal for
    rows that are tied to each other. y: indices into classes, or numbers, without classes. reason: (text of the task,)
    why it is left out, "" where it is used.
    """

    task: Task
    row_indices: np.ndarray
    state_rows: np.ndarray
    side: np.ndarray
    group: np.ndarray
    y: np.ndarray
    classes: np.ndarray
    reason: np.ndarray
    notes: list[str]

    @property
    def left_out(self) -> dict[str, int]:
        """Reason -> number of rows."""
        return count_reasons(self.reason)

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
    """Split a task; texts that any readout cannot read are left out for all readouts.

    drop: rows of the States left out as too long. Raises InputError where a side, or train for a class, is left empty.
    """
    state_rows = states.rows(task.texts) if task.rows is None else task.rows
    sides = split(task, seed=seed, allow_overlap=allow_overlap, tokens=states.locations.ids.to_numpy()[state_rows])
    used = sides.side != ""
    reason = sides.reason.copy()
    for readout, present in zip(states.readouts, states.present, strict=True):
        short = used & ~present[state_rows]
        if short.sum() == used.sum():
            raise InputError(readout, f"{short.sum():,} of {used.sum():,} texts are shorter", "Leave this readout out")
        reason[short] = f"too short for {readout}"
        used &= ~short
    if drop is not None:
        long = used & np.isin(state_rows, drop)
        reason[long] = "too long"
        used &= ~long
    rows = np.flatnonzero(used)
    y: np.ndarray
    if task.kind == "number":
        classes, y = np.array([], str), np.asarray(task.y[rows], np.float64)
    else:
        classes, y = np.unique(task.y[rows].astype(str), return_inverse=True)
    side, group = sides.side[rows], sides.group[rows]
    task_split = SplitTask(task, rows, state_rows[rows], side, group, y, classes, reason, list(sides.notes))
    trained = np.isin(np.arange(len(classes)), y[task_split.rows_of("train")])
    if task.kind == "class" and (not trained.all() or len(classes) < 2):
        missing = ", ".join(repr(str(c)) for c in classes[~trained]) or "all but one class"
        raise InputError(task.name, f"no text left to train on for {missing}", _describe_reasons(reason))
    if empty := [name for name in ("train", *EVALUATED) if not len(task_split.rows_of(name))]:
        raise InputError(task.name, f"no {' and no '.join(empty)} text left", _describe_reasons(reason))
    if task.kind == "number":
        check_numbers(task.name, y, task_split.side)
    return task_split


def _describe_reasons(reason: np.ndarray) -> str:
    listed = "; ".join(f"{n:,} {why}" for why, n in count_reasons(reason).items())
    if any(why.startswith("too short for") for why in reason):
        mend = "Name other readouts"
    else:
        mend = "Pass --long-rows truncate" if "too long" in reason else "Give other texts"
    return f"Left out: {listed}. {mend}" if listed else mend


def sweep(
    tasks: Task | Sequence[Task],
    states: States | Sequence[States],
    probes: Mapping[str, BaseEstimator] | str | BaseEstimator | Sequence[str | BaseEstimator],
    *,
    seeds: Sequence[int] = (0,),
    controls: Sequence[str] | None = None,
    drop: np.ndarray | None = None,
    allow_overlap: bool = False,
    on_predictions: Callable[[pd.DataFrame], None] | None = None,
    on_failure: Callable[[str], None] | None = None,
    timeout: float | None = None,
) -> pd.DataFrame:
    """The results table of every task, cell, probe and seed, with its baselines and controls.

    Numbers are read by the probes that are regressors, classes by the others; InputError where there is none.

    probes: by the names that the table has, or registered names and estimators, which go by their registered names.
    states: the trained encoder's, then those of untrained ones (each belongs to the seed of its weights). controls:
    names in `probes.tasks.control.CONTROLS`, by default all of them. on_predictions: called with every block of
    predictions (columns `analysis.table.PREDICTIONS`). on_failure: called with a sentence for every cell whose probe
    failed; without it the first failure raises RuntimeError. timeout: seconds that a probe may take for one cell, see
    `predict_each`; None for no limit.
    """
    tasks = _check_list("tasks", tasks, Task, "Load them, as in clsprobe.load('grammar:tense').tasks")
    all_states = _check_list("states", states, States, "Make them, as in Extractor(encoder)(task.texts)")
    if isinstance(seeds, int):
        raise InputError(
            "seeds", f"is one number ({seeds})", f"Pass [{seeds}] for this seed, range({seeds}) for so many"
        )
    names = [task.name for task in tasks]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise InputError("tasks", f"two are called '{repeated}'", "Give one another name, or sweep them apart")
    controls = [controls] if isinstance(controls, str) else list(CONTROLS if controls is None else controls)
    if others := [control for control in controls if control not in CONTROLS]:
        raise unknown("controls", "control", str(others[0]), CONTROLS)
    named_probes = _name_probes(probes)
    blocks: list[pd.DataFrame] = []
    probes_by_task = [choose_probes(named_probes, task) for task in tasks]
    total = sum(
        _count_fits(s, len(p)) for p in probes_by_task for s in all_states for seed in seeds if uses_seed(s, seed)
    )
    with tqdm(total=total, desc="probing", unit=" cells", delay=1, disable=None, leave=False) as bar:
        for task, task_probes in zip(tasks, probes_by_task, strict=True):
            for seed in seeds:
                task_split = split_task(task, all_states[0], seed, drop=drop, allow_overlap=allow_overlap)
                for block in _blocks(task_split, all_states, task_probes, controls, seed, timeout, bar.update):
                    for failure in block.failures:
                        if on_failure is None:
                            raise RuntimeError(failure)
                        on_failure(failure)
                    blocks.append(_score_block(block))
                    if on_predictions:
                        on_predictions(_prediction_table(block))
    return check_results(pd.concat(blocks, ignore_index=True))


def _check_list(name: str, values: Any, kind: Any, mend: str) -> list[Any]:
    """Several objects of a kind, or a single one, as a list. Raises InputError for anything else."""
    values = [values] if isinstance(values, kind) or not hasattr(values, "__iter__") else list(values)
    if not values:
        raise InputError(name, "is empty", mend)
    if others := [value for value in values if not isinstance(value, kind)]:
        raise InputError(name, f"holds {describe_kind(others[0])}", mend)
    return values


def _name_probes(probes: Any) -> dict[str, BaseEstimator]:
    """Estimators by name. Raises InputError for what is neither an estimator nor a registered name."""
    if not isinstance(probes, Mapping):
        probes = [probes] if isinstance(probes, str | BaseEstimator) else list(probes)
        probes = {probe if isinstance(probe, str) else PROBES.name_of(type(probe)): probe for probe in probes}
    probes = {name: find_probe(probe) if isinstance(probe, str) else probe for name, probe in probes.items()}
    for name, probe in probes.items():
        if not isinstance(probe, BaseEstimator):
            what = f"'{name}' is {describe_kind(probe)}, not an estimator"
            raise InputError("probes", what, "Pass an instance, as in {'logistic': LogisticProbe()}")
    return probes


def _count_fits(states: States, probes: int) -> int:
    return sum(1 if make_attention_probe(readout, states.dim) else probes for _, readout in states.cells)


def uses_seed(states: States, seed: int) -> bool:
    """Whether the states are of a trained encoder, or of an untrained one whose weights this seed drew."""
    return states.source["control"] == "none" or states.source["seed"] == seed


@dataclass(frozen=True, eq=False)
class _Block:
    """Predictions of some cells.

    codes (numbers where the task has numbers), label_log2_proba (of the true label; undefined where y has no label):
    (cell, label set, evaluated text).
    """

    split: SplitTask
    model: str
    probe: str
    seed: int
    cells: list[tuple[int, str]]
    label_sets: list[str]  # values of the column `control`
    y: np.ndarray  # (evaluated text, label set), see `has_label`
    n_train: list[int]  # labelled texts of every label set
    evaluated: np.ndarray
    codes: np.ndarray
    label_log2_proba: np.ndarray | None
    converged: np.ndarray
    failures: list[str]


def _blocks(
    split: SplitTask,
    all_states: Sequence[States],
    probes: Mapping[str, BaseEstimator],
    controls: Sequence[str],
    seed: int,
    timeout: float | None,
    on_cells: Callable[[int], object],
) -> Iterator[_Block]:
    train, dev = split.rows_of("train"), split.rows_of("dev")
    evaluated = split.rows_of(*EVALUATED)
    trained = all_states[0]
    texts = [split.task.texts[i] for i in split.row_indices]
    for name, baseline in _baselines(trained, split).items():
        predictions = _select_texts(baseline(texts, split.y, train, dev), evaluated)
        cell = (0, "mean") if name == "layer0_mean" else (NO_LAYER, NO_READOUT)
        probe = "none" if name == "majority" else "logistic" if len(split.classes) else "ridge"
        yield _make_block(split, trained, probe, seed, [cell], [name], split.y[:, None], evaluated, predictions)
    control_labels = {name: CONTROLS[name](texts, split.y, split.side, seed) for name in controls}
    label_sets = {"none": split.y} | {
        name: y for name, y in control_labels.items() if len(np.unique(y[train][has_label(y[train])])) > 1
    }
    if (control_task := label_sets.get("word_type")) is not None and has_label(control_task[dev]).any():
        taught, tuned = (rows[has_label(control_task[rows])] for rows in (train, dev))
        predictions = _select_texts(BASELINES["bag_of_words"](texts, control_task, taught, tuned), evaluated)
        probe, name, y = "logistic" if len(split.classes) else "ridge", "word_type_bag_of_words", control_task[:, None]
        yield _make_block(split, trained, probe, seed, [(NO_LAYER, NO_READOUT)], [name], y, evaluated, predictions)
    for states in filter(partial(uses_seed, seed=seed), all_states):
        control = states.source["control"]
        labels = label_sets if control == "none" else {control: split.y}
        y = np.stack([*labels.values()], 1)
        state_rows = split.state_rows if states is trained else states.rows(texts)
        for cells, name, probe in _batches(states, probes, len(train)):
            X, X_dev, X_evaluated = (features(states, cells, state_rows[rows]) for rows in (train, dev, evaluated))
            with undo_changes():  # a probe of another package must not change what follows
                predictions = predict_each(
                    probe, X, y[train], X_evaluated, dev=(X_dev, y[dev]), strengths=STRENGTHS, timeout=timeout
                )
            yield _make_block(split, states, name, seed, cells, [*labels], y, evaluated, predictions)
            on_cells(len(cells))


def _batches(
    states: States, probes: Mapping[str, BaseEstimator], texts: int
) -> Iterator[tuple[list[tuple[int, str]], str, BaseEstimator]]:
    """Cells that are fitted together, with the name of a probe and the probe.

    A readout whose pooling is learned has its own probe, which is listed under the name of the first one.
    """
    kinds: dict[tuple[int, str], list[tuple[int, str]]] = {}
    for layer, readout in states.cells:
        learned = readout if make_attention_probe(readout, states.dim) else ""
        kinds.setdefault((states.width(readout), learned), []).append((layer, readout))
    for i, (name, probe) in enumerate(probes.items()):
        for (width, readout), cells in kinds.items():
            if readout and i:
                continue
            size = count_at_once(texts, width)
            for start in range(0, len(cells), size):
                chosen_probe = make_attention_probe(readout, states.dim) if readout else probe
                yield cells[start : start + size], name, chosen_probe


def count_at_once(texts: int, width: int) -> int:
    """How many cells are fitted at once: as many as there are cores, or small ones together, within a limit of memory.

    The limit does not grow with the texts. texts, width: of the features of a cell.
    """
    size = max(1, texts * width * 4)
    return max(1, CHUNK // size, min(torch.get_num_threads(), LARGEST_CHUNK // size))


def features(states: States, cells: Sequence[tuple[int, str]], rows: np.ndarray) -> np.ndarray:
    """(cell, text, dim) float32 of these rows of the States. The cells have one width."""
    X = np.empty((len(cells), len(rows), states.width(cells[0][1])), np.float32)
    for features_of_cell, cell in zip(X, cells, strict=True):
        features_of_cell[:] = states.cell(*cell, rows)
    return X


def _baselines(states: States, split: SplitTask) -> dict[str, Baseline]:
    baselines = {name: b for name, b in BASELINES.items() if name == "majority" or not split.task.textless}
    if (0, "mean") in states.cells:
        vectors = states.cell(0, "mean")[split.state_rows]
        baselines["layer0_mean"] = lambda texts, y, train, dev: predict_from_features(vectors, y, train, dev)
    return baselines


def _select_texts(predictions: Predictions, rows: np.ndarray) -> Predictions:
    bits = predictions.log2_proba
    return replace(
        predictions, codes=predictions.codes[..., rows], log2_proba=None if bits is None else bits[:, :, rows]
    )


def _make_block(
    split: SplitTask,
    states: States,
    probe: str,
    seed: int,
    cells: list[tuple[int, str]],
    label_sets: list[str],
    y: np.ndarray,
    evaluated: np.ndarray,
    predictions: Predictions,
) -> _Block:
    label_log2_proba = None
    if predictions.log2_proba is not None:
        label_indices = y[evaluated].T.clip(min=0)[None, ..., None]
        label_log2_proba = np.take_along_axis(predictions.log2_proba, label_indices, -1)[..., 0]
    failures = [
        f"probe '{probe}' failed on layer {cells[c][0]}, {cells[c][1]} ({split.task.name}): {reason}"
        for c, reason in predictions.failures.items()
    ]
    return _Block(
        split, states.source["model"], probe, seed, cells, label_sets, y[evaluated],
        has_label(y[split.rows_of("train")]).sum(0).tolist(), evaluated, predictions.codes, label_log2_proba,
        predictions.converged, failures,
    )  # fmt: skip


def _score_block(block: _Block) -> pd.DataFrame:
    sides = block.split.side[block.evaluated]
    rows = []
    for s, control in enumerate(block.label_sets):
        for side in EVALUATED:
            selected = (sides == side) & has_label(block.y[:, s])
            if not (n := int(selected.sum())):
                continue  # a control without labels on this side
            codes, labels = block.codes[:, s, selected], block.y[selected, s]
            if len(block.split.classes):
                log2_proba = None if block.label_log2_proba is None else block.label_log2_proba[:, s, selected]
                measured = stats.intervals(codes, labels, log2_proba)
            else:
                measured = stats.number_intervals(codes, labels)
            for metric, estimate in measured.items():
                for c, (layer, readout) in enumerate(block.cells):
                    if has_label(block.codes[c, s]).all():  # not a failed cell
                        value, low, high = (part[c] for part in estimate)
                        rows.append(
                            (block.model, block.split.task.name, control, layer, readout, block.probe, block.seed, side,
                             metric, value, low, high, block.n_train[s], n, bool(block.converged[c, s]))
                        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _prediction_table(block: _Block) -> pd.DataFrame:
    classes = block.split.classes
    layer, readout = (np.array(part) for part in zip(*block.cells, strict=True))

    def broadcast(values: np.ndarray, axis: int) -> np.ndarray:
        shape = [1, 1, 1]
        shape[axis] = -1
        return np.broadcast_to(np.asarray(values).reshape(shape), block.codes.shape).ravel()

    def category(values: np.ndarray, axis: int) -> pd.Categorical:
        categories, codes = np.unique(values, return_inverse=True)
        return pd.Categorical.from_codes(broadcast(codes, axis), categories)

    zeros = np.zeros(block.codes.size, np.int8)
    labels, predicted = np.broadcast_to(block.y.T, block.codes.shape).ravel(), block.codes.ravel()
    numbers = {} if len(classes) else dict(zip(NUMBERS, (labels, predicted), strict=True))
    names = pd.Index(classes, dtype="str")  # none for numbers, but of the same type, so that tables can be concatenated
    if numbers:
        labels = predicted = np.full(predicted.shape, -1)  # no class
    log2_proba = np.full(block.codes.size, np.nan) if block.label_log2_proba is None else block.label_log2_proba.ravel()
    table = pd.DataFrame(
        {
            "model": pd.Categorical.from_codes(zeros, [block.model]),
            "task": pd.Categorical.from_codes(zeros, [block.split.task.name]),
            "control": category(np.array(block.label_sets), 1),
            "layer": broadcast(layer, 0).astype(np.int16),
            "readout": category(readout, 0),
            "probe": pd.Categorical.from_codes(zeros, [block.probe]),
            "seed": np.full(block.codes.size, block.seed),
            "split": category(block.split.side[block.evaluated], 2),
            "row": broadcast(block.split.row_indices[block.evaluated], 2),
            "label": pd.Categorical.from_codes(labels, names),
            "predicted": pd.Categorical.from_codes(predicted, names),
            "log2_probability": log2_proba,
            **numbers,
        },
        columns=[*PREDICTIONS, *numbers],
    )
    return check_predictions(table.dropna(subset=[*numbers] or ["label", "predicted"]))


def check_layer0(results: pd.DataFrame) -> list[str]:
    """Self-check: layer-0 [CLS] is one vector for every text, so the linear probe must predict the majority, or
    the mean of train.

    One sentence for all tasks that pass (on test), and one for each task that does not.
    """
    sentences = []
    test = results[(results.split == "test") & (results.seed == results.seed.min())]
    for metric, probe, expected, rounding in (
        ("accuracy", "logistic", "a rate that equals the majority rate", 0),
        ("r2", "ridge", "an R2 that equals that of the mean of train", 1e-6),
    ):
        rows = test[test.metric == metric]
        rate = rows[rows.control == "majority"].set_index("task").value
        scores = rows[(rows.control == "none") & (rows.layer == 0) & (rows.readout == "cls") & (rows.probe == probe)]
        scores = scores.set_index("task").value
        passed = [task for task, value in scores.items() if abs(value - rate[task]) <= rounding]
        sentences += [
            f"Self-check: layer-0 [CLS], the same vector for every text, is read at {value:.3f} on {task}, which "
            f"DIFFERS FROM {expected.partition('equals ')[2]} {rate[task]:.3f}: do not trust this run."
            for task, value in scores.items()
            if task not in passed
        ]
        if passed:
            rates = ", ".join(f"{task} {rate[task]:.3f}" for task in passed)
            sentence = f"Self-check: layer-0 [CLS], the same vector for every text, is read at {expected} ({rates})."
            sentences.append(sentence)
    return sentences


def describe_rows(split: SplitTask, excluded: Mapping[str, Places] = MappingProxyType({})) -> dict[str, object]:
    """Counts of the rows of a task: all = used, by side, + left out, by reason; the number of classes.

    excluded: reason -> rows that were left out before the split.
    """
    sides = {name: len(split.rows_of(name)) for name in ("train", *EVALUATED)}
    return {
        "rows": len(split.task.texts) + sum(map(len, excluded.values())),
        **sides,
        **{f"left out: {reason}": len(places) for reason, places in excluded.items()},
        **{f"left out: {reason}": n for reason, n in split.left_out.items()},
        "classes" if len(split.classes) else "different numbers": len(np.unique(split.y)),
    }
