"""Cells that dev chooses, and what they are worth beside baselines and controls.

1. The layer of a readout, the best cell of all, the best baseline: each is chosen by dev accuracy and read on test once
   (`choose_layer`, `best_baseline`; functions of a table of predictions of one task).
2. `difference`: that one reading against a baseline, with its interval. Nothing was chosen on test, so nothing needs
   correcting.
3. `gain` and `selectivity`: every cell less the best baseline, and less its own control task; joins over the results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.table import NUMBERS
from clsprobe.probes.tasks.task import readable

BASELINES = ("majority", "length", "bag_of_words", "layer0_mean", "untrained")
SHOWN = {  # control -> how a reader calls it
    "majority": "majority class",
    "length": "length only",
    "bag_of_words": "bag of words",
    "layer0_mean": "mean of layer 0",
    "untrained": "untrained encoder",
    "shuffled": "shuffled labels",
    "word_type": "control task (word types)",
}
DISAGREEMENTS = ("right", "text", "label", "the other says", "row")
NUMBERS_SHOWN = {"majority": "mean of train", "shuffled": "shuffled numbers"}  # the same where labels are numbers


@dataclass(frozen=True)
class ChosenCell:
    """A cell or baseline that dev chose. where: the columns that name it. test, low, high: its accuracy there, or R2 as
    `metric` says."""

    where: Mapping[str, Any]
    name: str
    test: float
    low: float
    high: float
    dev: float
    metric: str = "accuracy"

    @property
    def statement(self) -> str:
        """What a sentence says that it does."""
        share = "of the test texts right" if self.metric == "accuracy" else "of the variance of the test texts' numbers"
        return f"{self.name} {'gets' if self.metric == 'accuracy' else 'explains'} {self.test:.3f} {share}"

    @property
    def layer(self) -> int:
        """Its layer, -1 for a baseline without one."""
        return int(self.where["layer"])

    @property
    def readout(self) -> str:
        """Its readout, "none" for a baseline without one."""
        return str(self.where["readout"])

    def rows(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Its own among the predictions."""
        match = pd.Series(True, index=predictions.index)
        for column, value in self.where.items():
            match &= predictions[column] == value
        return predictions[match]


def choose_layer(rows: pd.DataFrame, readout: str | None, control: str = "none") -> ChosenCell:
    """The layer that dev chooses for a readout, or the best cell of all where `readout` is None."""
    best = stats.best_layers(rows, control)
    top = (best[best.readout == readout] if readout else best).iloc[0]
    where = {"control": control, "layer": int(top.layer), "readout": str(top.readout), "probe": str(top.probe)}
    cell = f"{top.readout} at layer {top.layer}" if control in ("none", "untrained", "shuffled") else ""
    told = ", ".join(filter(None, [_shown(rows).get(control), cell]))
    chosen = ChosenCell(where, told, 0.0, 0.0, 0.0, float(top.dev), "R2" if stats.of_numbers(rows) else "accuracy")
    on_test = stats.accuracies(chosen.rows(rows[rows.split == "test"]), ["readout"]).iloc[0]
    return replace(chosen, test=float(on_test.value), low=float(on_test.low), high=float(on_test.high))


def judged_probe(rows: pd.DataFrame, names: Sequence[str]) -> str:
    """The first of the named probes that has read this task. rows: predictions of one task."""
    read = set(rows[rows.control == "none"].probe)
    return next(name for name in names if name in read)


def judged_rows(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The rows of the probe that is judged, with the baselines; an untrained encoder is read by that probe too.

    rows: predictions of one task.
    """
    baselines = rows.control.isin(BASELINES) & (rows.control != "untrained")
    return rows[(rows.probe == judged_probe(rows, names)) | baselines]


def subject_cell(rows: pd.DataFrame) -> ChosenCell:
    """[CLS] at the layer that dev chooses, or the best cell of all where [CLS] was not read."""
    return choose_layer(rows, "cls" if (rows[rows.control == "none"].readout == "cls").any() else None)


def accuracy_by_cell(rows: pd.DataFrame, readouts: Sequence[str] | None = None) -> pd.DataFrame:
    """Test accuracy of the cells (`stats.accuracies`), of these readouts or of all. rows: predictions of one task."""
    chosen = rows[(rows.split == "test") & (rows.control == "none")]
    return stats.accuracies(chosen if readouts is None else chosen[chosen.readout.isin(readouts)], ["layer", "readout"])


def _shown(rows: pd.DataFrame) -> dict[str, str]:
    """SHOWN, as it is called where the labels of these predictions are numbers."""
    return SHOWN | NUMBERS_SHOWN if stats.of_numbers(rows) else SHOWN


def difference(rows: pd.DataFrame, a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, float, float]:
    """What cell a tells more than cell b over the same test texts, with its 95 % interval: accuracy, or R2.

    rows: predictions of one task. a, b: the columns that name a cell, as in `ChosenCell.where`.
    """
    sides = stats.correct(rows, **a), stats.correct(rows, **b)
    return stats.paired_difference(*sides, shares=not stats.of_numbers(rows))


def best_baseline(rows: pd.DataFrame) -> ChosenCell:
    """The baseline with the best dev accuracy, the untrained encoder at its own best cell among them."""
    found = [choose_layer(rows, None, control) for control in BASELINES if (rows.control == control).any()]
    return max(found, key=lambda chosen: chosen.dev)


def baselines_of(rows: pd.DataFrame, *first: ChosenCell) -> pd.DataFrame:
    """Columns name, value, low, high: every baseline and control that was measured, after the cells in `first`."""
    controls = [control for control in SHOWN if (rows.control == control).any()]
    chosen = [(cell.name, cell) for cell in first]
    chosen += [(_shown(rows)[control], choose_layer(rows, None, control)) for control in controls]
    return pd.DataFrame([{"name": n, "value": c.test, "low": c.low, "high": c.high} for n, c in chosen])


def summary(rows: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Every readout at the layer that dev chooses, best on dev first: what it tells, and what is left of it.

    rows: predictions of one task. results: the results table. Columns readout, layer, accuracy, low, high (95 %), bits
    (held-out, a text), gain over the best baseline with its interval and name, selectivity over the control task with
    its interval (NaN where none was measured), p (of no signal, max-T over all cells). Means over seeds, of the ends of
    intervals too. Of numbers: r2 in the place of accuracy, spearman with its interval in that of bits, and no p.
    """
    numbers = stats.of_numbers(rows)
    metric = "r2" if numbers else "accuracy"
    best = stats.best_layers(rows).set_index(["readout", "layer", "probe"])
    own = results[(results.task == rows.task.iloc[0]) & results.probe.isin(rows.probe.unique())]
    test = own[(own.split == "test") & (own.control == "none")]
    corrected = (
        None if numbers else stats.above_chance(rows).groupby(["readout", "layer", "probe"], observed=True).p.max()
    )
    against = {"gain": gain(own, rows), "selectivity": selectivity(own, rows)}
    found = []
    for cell in best.index:
        readout, layer, _ = cell

        def here(table: pd.DataFrame, what: str, cell: tuple[str, int, str] = cell) -> pd.DataFrame:
            match = table[["readout", "layer", "probe"]].eq(pd.Series(cell, ["readout", "layer", "probe"])).all(axis=1)
            return table[match & (table.metric == what)]

        score = here(test, metric)[["value", "low", "high"]].mean()
        row = {"readout": readout, "layer": layer, metric: score.value, "low": score.low, "high": score.high}
        if numbers:
            order = here(test, "spearman")[["value", "low", "high"]].mean()
            row |= {"spearman": order.value, "spearman low": order.low, "spearman high": order.high}
        else:
            row["bits"] = here(test, "bits").value.mean()
        for name, table in against.items():
            one = here(table, metric)
            row |= {name: one.value.mean()}
            row |= {f"{name} {end}": one[end].mean() for end in ("low", "high")}
            if name == "gain":
                row["over"] = one.against.iloc[0] if len(one) else ""
        found.append(row if corrected is None else row | {"p": corrected.get(cell, np.nan)})
    return pd.DataFrame(found)


def bands(numbers: np.ndarray, most: int = 10) -> np.ndarray:
    """(text,) the name of the band, "3 to 7", that each of the numbers (text,) lies in: quantiles, at most `most`."""
    edges = np.unique(np.quantile(numbers, np.arange(1, most) / most, method="nearest"))
    at = np.searchsorted(edges, numbers, side="right")
    ends = {band: (numbers[at == band].min(), numbers[at == band].max()) for band in np.unique(at)}
    names = {band: f"{low:g}" if low == high else f"{low:g} to {high:g}" for band, (low, high) in ends.items()}
    return np.array([names[band] for band in at])


def by_number(rows: pd.DataFrame) -> pd.DataFrame:
    """What a cell takes the numbers for, band by band of the true ones, the lowest first.

    rows: predictions of one cell. Columns numbers ("3 to 7"), texts, true and predicted (means), off (root of the mean
    squared error).
    """
    true, told = (rows[column].to_numpy() for column in NUMBERS)
    parts = pd.DataFrame({"numbers": bands(true), "true": true, "predicted": told, "off": (told - true) ** 2})
    table = parts.groupby("numbers").agg(
        texts=("true", "size"), true=("true", "mean"), predicted=("predicted", "mean"), off=("off", "mean")
    )
    return table.assign(off=np.sqrt(table.off)).sort_values("true").reset_index()


def disagreements(
    rows: pd.DataFrame, a: ChosenCell, b: ChosenCell, texts: Sequence[str], *, most: int = 10
) -> pd.DataFrame:
    """Test texts that one of two cells gets right and the other wrong, those it is surest of first.

    rows: predictions of one task. Columns right (which cell), text, label, other (what the other takes it for), row. At
    most `most` on either side.
    """
    test = rows[(rows.split == "test") & (rows.seed == rows.seed.min())]
    sides = [cell.rows(test).set_index("row") for cell in (a, b)]
    hits = [stats.right(side) for side in sides]
    parts = []
    for cell, own, other, hit, miss in ((a, *sides, *hits), (b, *sides[::-1], *hits[::-1])):
        only = own[hit & ~miss.reindex(hit.index)].copy()
        only["gap"] = only.log2_probability - other.log2_probability.reindex(only.index)
        only = only.sort_values("gap", ascending=False, kind="stable").head(most)
        parts.append(
            pd.DataFrame(
                {
                    "right": cell.name,
                    "text": [readable(texts[i]) for i in only.index],
                    "label": only.label.astype(str).to_numpy(),
                    "the other says": other.predicted.reindex(only.index).astype(str).to_numpy(),
                    "row": only.index.to_numpy(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


# ----------------------------------------------------------------------------------------- every cell against something

SIGN = {"accuracy": 1, "bits": -1, "r2": 1}  # what makes more of it better
CELL = ["control", "layer", "readout", "probe"]  # what names a cell or baseline of one task and seed
OTHER = {column: f"other_{column}" for column in CELL}  # the same of the one that it is held against


def gain(results: pd.DataFrame, predictions: pd.DataFrame | None = None) -> pd.DataFrame:
    """What every cell tells beyond the best baseline of its task, seed and metric, which dev chooses.

    Columns model, task, layer, readout, probe, seed, metric ("accuracy", "r2", or "bits" saved), value, low, high
    (paired over the test texts; NaN without predictions), against. More is better in all of them. An untrained encoder
    is a baseline of the probe that read it.
    """
    rows = results[results.metric.isin(SIGN)]
    dev = rows[(rows.split == "dev") & rows.control.isin(BASELINES)]
    dev = dev.assign(score=dev.value * dev.metric.map(SIGN).astype(float))
    dev = dev.sort_values("score", ascending=False, kind="stable")
    cells = rows[(rows.split == "test") & (rows.control == "none")]
    shared = ["model", "task", "seed", "metric"]
    chosen = []
    for probe in cells.probe.unique():
        best = dev[(dev.control != "untrained") | (dev.probe == probe)].drop_duplicates(shared)
        chosen.append(best[[*shared, *CELL]].rename(columns=OTHER).assign(probe=probe))
    return _less(results, cells.merge(pd.concat(chosen), on=[*shared, "probe"]), predictions)


def selectivity(
    results: pd.DataFrame, predictions: pd.DataFrame | None = None, *, control: str = "word_type"
) -> pd.DataFrame:
    """Task less control task, by the same probe in the same cell (Hewitt & Liang 2019). Columns as `gain`.

    Where the control labels fewer texts, the texts that both have are paired.
    """
    cells = results[results.metric.isin(SIGN) & (results.split == "test") & (results.control == "none")]
    same = {OTHER[column]: cells[column] for column in CELL if column != "control"}
    return _less(results, cells.assign(**same, other_control=control), predictions)


def _less(results: pd.DataFrame, cells: pd.DataFrame, predictions: pd.DataFrame | None) -> pd.DataFrame:
    """The scores of test cells less those of the cells that their columns other_... name, where these were measured."""
    shared = ["model", "task", "seed", "metric"]
    theirs = results.loc[results.split == "test", [*shared, *CELL, "value"]]
    pairs = cells.drop(columns=["low", "high"]).merge(
        theirs.rename(columns=OTHER | {"value": "other_value"}), on=[*shared, *OTHER.values()]
    )
    pairs["value"] = (pairs.value - pairs.other_value) * pairs.metric.map(SIGN).astype(float)
    pairs[["low", "high"]] = np.nan
    if predictions is not None:
        _add_intervals(pairs, predictions[predictions.split == "test"])
    control, layer, readout = (pairs[OTHER[column]].astype(str) for column in ("control", "layer", "readout"))
    pairs["against"] = control.where(pairs.other_layer < 0, control + ", " + readout + " at layer " + layer)
    return pairs[[*stats.CELL, "metric", "value", "low", "high", "against"]]


def _add_intervals(pairs: pd.DataFrame, test: pd.DataFrame) -> None:
    """Fill low and high of the pairs whose texts are all among the predictions."""
    for (model, task, seed), mine in pairs.groupby(["model", "task", "seed"], observed=True):
        told = test[(test.model == model) & (test.task == task) & (test.seed == seed)]
        for what, some in mine.groupby("metric", observed=True):
            score = told.log2_probability if what == "bits" else stats.scores(told)
            texts = told[[*CELL, "row"]].assign(score=score).set_index([*CELL, "row"]).score.unstack("row")
            own, other = (
                texts.reindex(pd.MultiIndex.from_frame(some[names])).to_numpy() for names in (CELL, [*OTHER.values()])
            )
            known = ~(np.isnan(own).all(1) | np.isnan(other).all(1))
            if not known.any():
                continue
            low, high = stats.difference_intervals(own[known], other[known], shares=what == "accuracy")
            rows = some.index[known]
            value = pairs.value[rows].to_numpy(float)
            pairs.loc[rows, "low"] = np.minimum(low, value).astype(float)
            pairs.loc[rows, "high"] = np.maximum(high, value).astype(float)
