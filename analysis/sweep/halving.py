"""How much other training texts would change a score: every procedure is refitted on halves of train and dev.

1. `draw_halves` divides train and dev into two complementary halves, `HALVINGS` times, by group and by class. Test is
   never divided.
2. A procedure is what a comparison is about: a readout or a baseline, standardised, its strength and its layer chosen
   on dev. `refit_halves` runs it on either half: all halves are label sets of one fit, so that they share its products.
   The layer is chosen among the `CANDIDATES` best on dev, without those that are certainly worse.
3. The table `REFITS` has the scores of every procedure on the same test texts, a column for every half. From these
   `analysis.stats.training_variance` estimates the variance that other training texts would give to a difference.

A readout whose pooling is learned is not refitted: that would take longer than everything else together. Its intervals
are those of the probes as they were fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, clone

from clsprobe.analysis import stats
from clsprobe.analysis.sweep.grid import SplitTask, count_at_once, features
from clsprobe.analysis.sweep.plan import CANDIDATES
from clsprobe.analysis.sweep.refits import ANY, HALVES, HALVINGS, REFITS
from clsprobe.analysis.sweep.scores import TaskScores
from clsprobe.analysis.table import NO_READOUT
from clsprobe.probes.base import STRENGTHS, predict_each
from clsprobe.probes.baseline import Baseline, bag_of_words, count_lengths, majority
from clsprobe.probes.extraction.states import States
from clsprobe.probes.linear import LogisticProbe, RidgeProbe
from clsprobe.probes.pooling import make_attention_probe
from clsprobe.probes.tasks.control import has_label

ROUGH = 1e-4  # tolerance of the fits: a hundredth of a text's score, where the halves differ by several texts
Reader = Callable[[np.ndarray], np.ndarray]  # rows of a split task -> their features (cell, row, dim)
CERTAIN = 3.0  # standard errors on dev, paired, below the best: a half would not choose such a cell


def draw_halves(split: SplitTask, *, seed: int = 0, halvings: int = HALVINGS) -> np.ndarray:
    """(halving, row) the half, 0 or 1, of every row of train and dev, -1 on test.

    Whole groups are divided, those of one label and of like size between the two halves; numbers have no strata.
    """
    random = np.random.default_rng([seed, len(split.y)])
    halves = np.full((halvings, len(split.y)), -1)
    labels = split.y if len(split.classes) else np.zeros(len(split.y), np.int64)
    for side in ("train", "dev"):
        rows = split.rows_of(side)
        _, group, size = np.unique(split.group[rows], return_inverse=True, return_counts=True)
        stratum = np.zeros(len(size), np.int64)
        np.maximum.at(stratum, group, labels[rows])
        for half in halves:
            order = np.lexsort((random.random(len(size)), size, stratum))
            half_of_group = np.empty(len(order), np.int64)
            for of_stratum in np.split(order, np.flatnonzero(np.diff(stratum[order])) + 1):
                coin = random.integers(2, size=(len(of_stratum) + 1) // 2)  # for every two neighbours
                half_of_group[of_stratum] = np.stack([coin, 1 - coin], 1).ravel()[: len(of_stratum)]
            half[rows] = half_of_group[group]
    return halves


def refit_halves(
    split: SplitTask,
    all_states: Sequence[States],
    probe: BaseEstimator,
    scores: TaskScores,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """The refits of every procedure of one task and seed (columns `REFITS`).

    all_states: as in `sweep`, those that this seed uses. probe: the judged one. scores: of the task as it was measured,
    for the candidates. A procedure that fails on a half, as one of a plug-in may, has no rows.
    """
    halves = draw_halves(split, seed=seed)
    if not _are_whole(split, halves):
        return pd.DataFrame(columns=[*REFITS])
    tables = []
    for states in all_states:
        control = states.source["control"]
        names = [name for name in states.readouts if not make_attention_probe(name, states.dim)]
        for name in names if control == "none" else [None]:
            cells = [cell for cell in list_candidates(scores, name, control) if cell[1] in names]
            procedure = _refit_cells(split, halves, states, cells, probe)
            tables.append(procedure.assign(control=control, readout=name or ANY))
    tables += _refit_baselines(split, halves, all_states[0])
    table = pd.concat(tables, ignore_index=True).assign(task=split.task.name, seed=seed)
    return table.assign(n_train=len(split.rows_of("train")))[[*REFITS]]


def list_candidates(scores: TaskScores, readout: str | None, control: str = "none") -> list[tuple[int, str]]:
    """The cells, (layer, readout), among which a half may choose: those of a readout, or of all, that are best on dev,
    and no more than `CERTAIN` standard errors below the best one, paired over its texts; the lowest layer first."""
    on_dev = {cell: scores.scores(cell._asdict(), "dev") for cell in scores.select_cells(control, readout)}
    on_dev = {cell: values for cell, values in on_dev.items() if not np.isnan(values).all()}
    ranked = sorted(on_dev, key=lambda cell: (-np.nanmean(on_dev[cell]), cell.layer))[:CANDIDATES]
    close = []
    for cell in ranked:
        difference = np.nanmean(on_dev[ranked[0]] - on_dev[cell], 0)
        error = np.nanstd(difference) / np.sqrt(max((~np.isnan(difference)).sum(), 1))
        if np.nanmean(difference) <= CERTAIN * error:
            close.append((cell.layer, cell.readout))
    return sorted(close)


def refit_cells(split: SplitTask, X: np.ndarray, probe: BaseEstimator, *, seed: int = 0) -> list[np.ndarray]:
    """(half, test text) the scores of every cell of X (cell, row, dim), fitted on every half; none where the task has
    no halves, or where the probe fails on one."""
    halves = draw_halves(split, seed=seed)
    fitted = _fit_halves(split, halves, lambda rows: X[:, rows], probe) if _are_whole(split, halves) else []
    return [cell.test for cell in fitted] if len(fitted) == len(X) else []


def _are_whole(split: SplitTask, halves: np.ndarray) -> bool:
    """Whether every half has texts of train and of dev: a side of one group cannot be divided."""
    return all((halves == half)[:, split.rows_of(side)].any(1).all() for half in (0, 1) for side in ("train", "dev"))


def _refit_cells(
    split: SplitTask, halves: np.ndarray, states: States, cells: Sequence[tuple[int, str]], probe: BaseEstimator
) -> pd.DataFrame:
    """The rows of one procedure, which may choose among these cells; none where the probe fails."""
    fitted, width = [], max((states.width(readout) for _, readout in cells), default=1)
    size = count_at_once(len(split.y), width)
    for start in range(0, len(cells), size):
        read = _reader(split, states, cells[start : start + size])
        fitted += _fit_halves(split, halves, read, probe)
    return _choose_cells(split, fitted)


def _refit_baselines(split: SplitTask, halves: np.ndarray, states: States) -> list[pd.DataFrame]:
    """The rows of the baselines that read no layer, and of the mean of layer 0."""
    linear = LogisticProbe() if len(split.classes) else RidgeProbe()
    fitted = {"majority": [_predict_halves(split, halves, majority)]}
    if not split.task.textless:
        lengths = count_lengths(split.texts)[None]
        fitted["length"] = _fit_halves(split, halves, lambda rows: lengths[:, rows], linear)
        fitted["bag_of_words"] = [_predict_halves(split, halves, bag_of_words)]
    if (0, "mean") in states.cells:
        fitted["layer0_mean"] = _fit_halves(split, halves, _reader(split, states, [(0, "mean")]), linear)
    readout = {"layer0_mean": "mean"}
    return [
        _choose_cells(split, parts).assign(control=name, readout=readout.get(name, NO_READOUT))
        for name, parts in fitted.items()
    ]


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A cell fitted on every half. test: (half, test text) scores. dev, dev_bits: (half,) mean score and bits."""

    test: np.ndarray
    dev: np.ndarray
    dev_bits: np.ndarray


def _reader(split: SplitTask, states: States, cells: Sequence[tuple[int, str]]) -> Reader:
    """What reads the features of these cells."""
    return lambda rows: features(states, cells, split.state_rows[rows])


def _fit_halves(split: SplitTask, halves: np.ndarray, read: Reader, probe: BaseEstimator) -> list[_Fitted]:
    """Every cell that `read` reads fitted on every half; without those on which the probe fails."""
    if isinstance(probe, LogisticProbe):
        probe = clone(probe).set_params(tol=ROUGH)
    train, dev, test = map(split.rows_of, ("train", "dev", "test"))
    nothing = np.nan if split.y.dtype.kind == "f" else -1
    y = np.stack([np.where(half == part, split.y, nothing) for half in halves for part in (0, 1)], 1)
    evaluated = np.concatenate([dev, test])
    X_evaluated = read(evaluated)
    dev_part = X_evaluated[:, : len(dev)], y[dev]
    predictions = predict_each(probe, read(train), y[train], X_evaluated, dev=dev_part, strengths=STRENGTHS)
    known = has_label(y[dev]).T  # (half, dev text)
    # without the classes that the half's train lacks: they are impossible in every cell, and would hide the others
    taught = known & np.stack([np.isin(split.y[dev], of_half) for of_half in y[train].T])
    fitted = []
    for cell, codes in enumerate(predictions.codes):
        if cell in predictions.failures:
            continue
        dev_bits = np.zeros(len(known))
        if predictions.log2_proba is not None:
            log2_proba = np.take_along_axis(
                predictions.log2_proba[cell, :, : len(dev)], np.broadcast_to(split.y[dev, None], (*known.shape, 1)), -1
            )[..., 0]
            dev_bits = -np.where(taught, log2_proba, 0).sum(1) / np.maximum(taught.sum(1), 1)
        on_dev = np.array(
            [_score(split, half[: len(dev)][own], dev[own]).mean() for half, own in zip(codes, known, strict=True)]
        )
        fitted.append(_Fitted(_score(split, codes[:, len(dev) :], test), on_dev, dev_bits))
    return fitted


def _predict_halves(split: SplitTask, halves: np.ndarray, baseline: Baseline) -> _Fitted:
    """A baseline fitted on every half, one after another."""
    texts, test = split.texts, split.rows_of("test")
    parts = []
    for half in halves:
        for part in (0, 1):
            train, dev = (rows[half[rows] == part] for rows in map(split.rows_of, ("train", "dev")))
            taught = np.unique(split.y[train])
            if len(split.classes):  # a rare one may be in the other half
                dev = dev[np.isin(split.y[dev], taught)]
            fit = majority if len(taught) < 2 or not len(dev) else baseline
            parts.append(_score(split, fit(texts, split.y, train, dev).codes[0, 0, test], test))
    scores = np.stack(parts)
    return _Fitted(scores, *np.zeros((2, len(scores))))


def _score(split: SplitTask, predicted: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(..., text) the score of every text of these rows: 1 where correct, else 0; of numbers `stats.skill`."""
    labels = split.y[rows]
    return (predicted == labels).astype(float) if len(split.classes) else stats.skill(predicted, labels)


def _choose_cells(split: SplitTask, fitted: Sequence[_Fitted]) -> pd.DataFrame:
    """The columns measure, row and those of the halves: every half reads the cell that is best on its own dev."""
    if not fitted:
        return pd.DataFrame(columns=["measure", "row", "group", *HALVES])
    dev, dev_bits = (np.stack([getattr(cell, name) for cell in fitted]) for name in ("dev", "dev_bits"))
    best = np.lexsort((dev_bits, -dev), 0)[0]  # of equal ones the lowest layer
    half = np.arange(dev.shape[1])
    test = np.stack([cell.test for cell in fitted])[best, half]  # (half, text)
    values = np.vstack([dev[best, half], dev_bits[best, half], test.T]).astype(np.float32)
    table = pd.DataFrame(values, columns=[*HALVES])
    table.insert(0, "measure", ["dev", "dev bits", *["test"] * test.shape[1]])
    rows = split.rows_of("test")
    table.insert(1, "row", [-1, -1, *split.row_indices[rows]])
    table.insert(2, "group", [-1, -1, *split.group[rows]])
    return table
