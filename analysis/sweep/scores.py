"""The scores of one task, and what a verdict is made of: cells that dev chooses, and their comparisons on test.

1. `TaskScores` reads the predictions of a task once. `choose`: the layer of a readout, the best cell of all or the cell
   of a baseline, each chosen by dev accuracy and read on test once; `tied_layers`: those that dev cannot tell from it.
2. `compare`: one test score minus another, as a part of a verdict; `compare_with_baselines`: a cell minus every
   baseline, the best single class of test among them. A readout that predicts one class never gets a yes.
3. A comparison is about the procedures that chose its cells where `refits` has both, otherwise about these fits.
4. `scores_over_layers`: what the layers that dev cannot tell apart do to a score. Words: `wording`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.sweep.plan import BASELINES
from clsprobe.analysis.sweep.refits import ANY, HALVINGS, Refits
from clsprobe.analysis.table import NUMBERS
from clsprobe.analysis.verdict import MissingEvidence, Part, short

SIDES = ("dev", "test")
BEST_CLASS = "best_class"  # the commonest label of test, or the mean of its numbers
SURFACE = ("length", "bag_of_words")  # baselines that read the text without an encoder
CEILING = 0.95  # of (score - majority) / (1 - majority): a task that a surface baseline solves
DRAWS = 3  # untrained encoders for a mean; fewer are single draws
UNNAMED = "vector"  # the readout of vectors without a name
CONTROL_NAMES = {  # control -> its name on the page
    "majority": "majority class",
    "length": "text length",
    "bag_of_words": "bag of words",
    "layer0_mean": "mean of layer 0",
    "untrained": "untrained encoder",
    "shuffled": "shuffled labels",
    "word_type_texts": "the task on the texts of the control task",
    "word_type": "control task (word types)",
    "word_type_bag_of_words": "bag of words on the control task",
}
NUMBER_CONTROL_NAMES = {"majority": "mean of train", "shuffled": "shuffled numbers"}  # where labels are numbers


class Cell(NamedTuple):
    """The columns that identify a cell or baseline of one task."""

    control: str
    layer: int
    readout: str
    probe: str


@dataclass(frozen=True)
class ChosenCell:
    """A cell or baseline that dev chose. where: the columns that identify it. test, low, high: its `metric` on test,
    accuracy or R2. chosen_from: the readouts among which dev chose it, at any layer; none for a cell that was named,
    whose comparisons are of these fitted probes."""

    where: Mapping[str, Any]
    name: str
    test: float
    low: float
    high: float
    dev: float
    metric: str = "accuracy"
    chosen_from: tuple[str, ...] = ()

    @property
    def is_readout(self) -> bool:
        """Whether it is a readout of the encoder, not a baseline."""
        return self.where["control"] == "none"

    @property
    def layer(self) -> int:
        """Its layer, -1 for a baseline without one."""
        return int(self.where["layer"])

    @property
    def readout(self) -> str:
        """Its readout, "none" for a baseline without one."""
        return str(self.where["readout"])

    def rows(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """The predictions of this cell."""
        match = pd.Series(True, index=predictions.index)
        for column, value in self.where.items():
            match &= predictions[column] == value
        return predictions[match]


class TaskScores:
    """The scores of every cell on dev and test. rows: predictions of one task, of one probe in every cell. refits:
    columns `REFITS`, of the same task; without them comparisons are of these probes as fitted."""

    def __init__(self, rows: pd.DataFrame, refits: pd.DataFrame | None = None) -> None:
        self.rows = rows
        self._refit_table = refits
        self.is_of_numbers = stats.of_numbers(rows)
        self.metric, self.unit = ("R2", "points of R2") if self.is_of_numbers else ("accuracy", "points")
        self._best: dict[str, pd.DataFrame] = {}

    @property
    def task(self) -> str:
        """The name of the task in a sentence."""
        return short(str(self.rows.task.iloc[0]))

    @cached_property
    def _indexed(self) -> tuple[dict[Cell, int], np.ndarray]:
        """Cell -> its index in `_arrays`; and that index for every row of the table."""
        indices, first = stats.index_groups(self.rows, Cell._fields)
        keys = self.rows[[*Cell._fields]].iloc[first].itertuples(index=False, name=None)
        return {Cell(*key): i for i, key in enumerate(keys)}, indices

    @property
    def _predicted(self) -> pd.Series:
        """(row of the table,) what is predicted: classes, or numbers without their rounding errors."""
        if not self.is_of_numbers:
            return self.rows.predicted
        true, predicted = (self.rows[column] for column in NUMBERS)
        return (predicted / (true.std() or 1.0)).round(6)

    @property
    def _cells(self) -> dict[Cell, int]:
        """Cell -> its index in `_arrays`."""
        return self._indexed[0]

    @cached_property
    def _arrays(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Side -> scores (cell, seed, text) and codes of what is predicted, NaN and -1 where a seed lacks the text."""
        cells, cell = self._indexed
        seeds, seed = np.unique(self.rows.seed.to_numpy(), return_inverse=True)
        values = stats.scores(self.rows).to_numpy(float)
        codes = pd.factorize(self._predicted)[0]
        arrays = {}
        for side in SIDES:
            chosen = (self.rows.split == side).to_numpy()
            texts, text = np.unique(self.rows.row.to_numpy()[chosen], return_inverse=True)
            shape = len(cells), len(seeds), len(texts)
            where = cell[chosen], seed[chosen], text
            scores, classes = np.full(shape, np.nan), np.full(shape, -1)
            scores[where], classes[where] = values[chosen], codes[chosen]
            arrays[side] = scores, classes
        return arrays

    @cached_property
    def _is_measured(self) -> dict[str, np.ndarray]:
        """Side -> (cell, seed) whether there are predictions."""
        return {side: (~np.isnan(values)).any(2) for side, (values, _) in self._arrays.items()}

    def _index(self, where: Mapping[str, Any]) -> int:
        index = self._cells.get(Cell(**where))
        if index is None:
            cell = ", ".join(f"{column} {value}" for column, value in where.items())
            raise MissingEvidence(f"no cell of the predictions has {cell}")
        return index

    def has(self, where: Mapping[str, Any]) -> bool:
        """Whether there is such a cell, with predictions on test."""
        try:
            return not np.isnan(self.scores(where)).all()
        except MissingEvidence:
            return False

    def scores(self, where: Mapping[str, Any], side: str = "test") -> np.ndarray:
        """(seed, text) the scores of a cell, `stats.scores`, or of `BEST_CLASS`; NaN where the seed lacks the text.

        Raises MissingEvidence where there is no such cell.
        """
        if where["control"] == BEST_CLASS:
            return self._best_class
        return self._arrays[side][0][self._index(where)]

    @cached_property
    def _best_class(self) -> np.ndarray:
        real = [index for cell, index in self._cells.items() if cell.control in ("none", *BASELINES)]
        missing = np.isnan(self._arrays["test"][0][real]).all(0)  # (seed, text) without a label of the task itself
        if self.is_of_numbers:
            return np.where(missing, np.nan, 0.0)  # the mean of test explains nothing
        on_test = (self.rows.split == "test").to_numpy()
        texts, row = np.unique(self.rows.row.to_numpy()[on_test]), self.rows.row.to_numpy()
        on_test = on_test & self.rows.control.isin(["none", *BASELINES]).to_numpy()
        labels = np.full(len(texts), "", object)
        labels[np.searchsorted(texts, row[on_test])] = self.rows.label[on_test].astype(str).to_numpy()
        names, counts = np.unique(labels[~missing.all(0)].astype(str), return_counts=True)
        return np.where(missing, np.nan, labels == names[counts.argmax()])

    @property
    def texts(self) -> int:
        """The number of test texts."""
        return int(self._arrays["test"][0].shape[2])

    # ------------------------------------------------------------------------------------------------ choosing

    def _best_layers(self, control: str) -> pd.DataFrame:
        """`stats.best_layers` of a control."""
        if control not in self._best:
            self._best[control] = stats.best_layers(self.rows, control)
        return self._best[control]

    def choose(self, readout: str | None, control: str = "none") -> ChosenCell:
        """The layer that dev chooses for a readout, or the best cell of all where `readout` is None.

        Raises MissingEvidence where there are no predictions on dev or on test.
        """
        cells = self.select_cells(control, readout)
        missing = [side for side in SIDES if not self._is_measured[side][[*cells.values()]].any()]
        if missing:
            name = readout or self.control_names.get(control, "any readout")
            raise MissingEvidence(f"there are no predictions of {name} on {' and '.join(missing)}")
        if len(cells) == 1:
            ((top, index),) = cells.items()
            dev = float(np.nanmean(self._arrays["dev"][0][index]))
        else:
            best = self._best_layers(control)
            chosen = (best[best.readout == readout] if readout else best).iloc[0]
            top = Cell(control, int(chosen.layer), str(chosen.readout), str(chosen.probe))
            dev = float(chosen.dev)
        cell = f"{top.readout} at layer {top.layer}" if control in ("none", "untrained", "shuffled") else ""
        if top.readout == UNNAMED and self.has_single_layer:
            cell = "" if self._name_control(control) else "the vector"
        name = ", ".join(filter(None, [self._name_control(control), cell]))
        chosen_from = (ANY,) if control == "untrained" else tuple(dict.fromkeys(cell.readout for cell in cells))
        return ChosenCell(
            top._asdict(), name, *self._estimate_score(top._asdict()), dev, self.metric, chosen_from=chosen_from
        )

    def select_cells(self, control: str, readout: str | None = None) -> dict[Cell, int]:
        """Those of a control, and of a readout or of all."""
        return {
            cell: index
            for cell, index in self._cells.items()
            if cell.control == control and readout in (None, cell.readout)
        }

    def _estimate_score(self, where: Mapping[str, Any]) -> tuple[float, float, float]:
        """The test score of a cell with its interval, as `stats.accuracies`."""
        seeds = [values[~np.isnan(values)] for values in self.scores(where)]
        seeds = [values for values in seeds if len(values)]
        value = float(np.mean([values.mean() for values in seeds]))
        if self.is_of_numbers:
            low, high = np.mean([stats.mean_interval(values) for values in seeds], axis=0)
        else:
            low, high = stats.wilson(np.array(value), int(np.mean([len(values) for values in seeds])))
        return value, float(low), float(high)

    @property
    def subject(self) -> ChosenCell:
        """[CLS] at the layer that dev chooses, or the best cell of all where [CLS] was not read."""
        return self.choose("cls" if self.select_cells("none", "cls") else None)

    def measured_controls(self, names: Iterable[str]) -> list[str]:
        """Those of the controls and baselines with predictions on dev and on test.

        The control task may have labels on one of them only.
        """
        sides = [
            {cell.control for cell, index in self._cells.items() if self._is_measured[side][index].any()}
            for side in SIDES
        ]
        return [name for name in names if all(name in side for side in sides)]

    def _count_seeds(self, control: str) -> int:
        """The number of seeds under which there are predictions of a control."""
        cells = [*self.select_cells(control).values()]
        return int(np.any([is_measured[cells].any(0) for is_measured in self._is_measured.values()], axis=0).sum())

    def tied_layers(self, cell: ChosenCell) -> list[int]:
        """The layers of this readout that dev cannot tell from the chosen one: those whose paired 95 % dev interval
        against it holds 0. One vector for all texts, as [CLS] of layer 0, is none of them."""
        best, layers = self.scores(cell.where, "dev"), [cell.layer]
        for same, index in self.select_cells(cell.where["control"], cell.readout).items():
            other = self._arrays["dev"][0][index]
            if same.layer == cell.layer or (np.isnan(other) != np.isnan(best)).any():  # the probe failed there
                continue
            if self._is_constant(index):
                continue
            low, high = stats.compare(other, best, shares=not self.is_of_numbers).interval()
            if low <= 0 <= high:
                layers.append(same.layer)
        return sorted(layers)

    # ----------------------------------------------------------------------------------------------- comparing

    def difference(self, a: ChosenCell, b: ChosenCell) -> stats.Difference:
        """Cell a minus cell b in accuracy, or R2, over the same test texts: of the two procedures where both were
        refitted on halves, otherwise of the fitted probes."""
        halves = [self.halves(cell) for cell in (a, b)]
        difference = None if halves[0] is None or halves[1] is None else halves[0] - halves[1]
        scores = self.scores(a.where), self.scores(b.where)
        return stats.compare(*scores, shares=not self.is_of_numbers, halves=difference, groups=self.refits.groups)

    def halves(self, cell: ChosenCell) -> np.ndarray | None:
        """(halving, half, seed, text) the test scores of the procedure that chose this cell, fitted on halves of the
        training texts; None where it was not fitted on all of them."""
        test = self.scores(cell.where)
        if cell.where["control"] == BEST_CLASS:
            return np.broadcast_to(test, (HALVINGS, 2, *test.shape))  # it learns nothing
        halves = self.refits.of(cell.where["control"], cell.chosen_from)
        return halves if halves is not None and (np.isnan(halves) == np.isnan(test)).all() else None

    @cached_property
    def refits(self) -> Refits:
        """The procedures, fitted on halves of the training texts."""
        test = (self.rows.split == "test").to_numpy()
        return Refits(self._refit_table, np.unique(self.rows.seed), np.unique(self.rows.row.to_numpy()[test]))

    def is_constant(self, cell: ChosenCell) -> bool:
        """Whether a cell predicts one and the same class, or number, for all test texts, under every seed."""
        return self._is_constant(self._index(cell.where))

    def _is_constant(self, index: int) -> bool:
        predicted = self._arrays["test"][1][index]
        return all(len(np.unique(codes[codes >= 0])) <= 1 for codes in predicted)

    def compare(self, a: ChosenCell, b: ChosenCell, *, threshold: float = 0.0) -> Part:
        """Cell a minus cell b, above the threshold. A readout that predicts one class is not held better than another
        cell, nor as good."""
        part = Part.of(b.name, self.difference(a, b), threshold)
        if a.is_readout and self.is_constant(a):
            part = replace(part, p_yes=1.0)
        if b.is_readout and self.is_constant(b):
            part = replace(part, p_no=1.0)
        return part

    def compare_with_baselines(
        self, cell: ChosenCell, names: Sequence[str] = BASELINES, *, threshold: float = 0.0
    ) -> list[Part]:
        """A cell minus each of these baselines, which dev chooses, and minus the best single class on test.

        Raises MissingEvidence where no baseline was measured on dev and test, under every seed.
        """
        return [self.compare(cell, baseline, threshold=threshold) for baseline in self._baselines(names)]

    def measured_baselines(self, names: Sequence[str]) -> list[str]:
        """Those of the baselines with predictions on dev and on test, under every seed."""
        most = max(self._count_seeds(cell.control) for cell in self._cells)
        return [name for name in self.measured_controls(names) if self._count_seeds(name) == most]

    def _baselines(self, names: Sequence[str]) -> list[ChosenCell]:
        controls = self.measured_baselines(names)
        if not controls:
            raise MissingEvidence("there are no predictions of any baseline on dev and test")
        name = "the mean of the test numbers" if self.is_of_numbers else "the best single class"
        best_class = ChosenCell({"control": BEST_CLASS}, name, np.nan, np.nan, np.nan, np.nan, self.metric)
        return [*(self.choose(None, control) for control in controls), best_class]

    @property
    def best_class_share(self) -> float:
        """The share of the commonest label among the test texts; 0 for numbers."""
        return float(np.nanmean(self._best_class))

    def surface_ceiling(self, names: Sequence[str] = SURFACE, ceiling: float = CEILING) -> tuple[str, float] | None:
        """The name and test score of the best of these baselines, where it gets this share of what the best single
        class leaves, else None."""
        measured = [self.choose(None, control) for control in self.measured_controls(names)]
        if not measured:
            return None
        best, majority = max(measured, key=lambda cell: cell.test), self.best_class_share
        share = (best.test - majority) / (1 - majority) if majority < 1 else 0.0
        return (best.name, best.test) if share >= ceiling else None

    # ------------------------------------------------------------------------------------------- names and ranges

    @property
    def control_names(self) -> dict[str, str]:
        """CONTROL_NAMES for the kind of labels."""
        return CONTROL_NAMES | NUMBER_CONTROL_NAMES if self.is_of_numbers else CONTROL_NAMES

    def _name_control(self, control: str) -> str | None:
        """The name of a control in a sentence: whether untrained encoders are a mean or single draws is said."""
        if control != "untrained":
            return self.control_names.get(control)
        draws = self._count_seeds(control)
        return f"untrained encoder (mean of {draws} draws)" if draws >= DRAWS else "untrained encoder (as drawn)"

    @property
    def has_single_layer(self) -> bool:
        """Whether readouts were read at one layer only."""
        return len({cell.layer for cell in self.select_cells("none")}) == 1

    def scores_over_layers(self, cell: ChosenCell) -> tuple[float, float] | None:
        """The smallest and the largest test score over the layers that dev cannot tell apart; None where it can, and of
        baselines."""
        layers = self.tied_layers(cell) if cell.is_readout else []
        if len(layers) < 2:
            return None
        scores = [float(np.nanmean(self.scores({**cell.where, "layer": layer}))) for layer in layers]
        return min(scores), max(scores)
