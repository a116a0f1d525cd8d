"""Cells that dev chooses, and how they do on test. Everything here is a function of a table of predictions of one task.

The layer of a readout, the best cell of all, the best baseline: each is chosen by dev accuracy and read on test once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis import stats

BASELINES = ("majority", "length", "bag_of_words", "layer0_mean", "untrained")
SHOWN = {  # control -> how a reader calls it
    "majority": "majority class",
    "length": "length only",
    "bag_of_words": "bag of words",
    "layer0_mean": "mean of layer 0",
    "untrained": "untrained encoder",
    "shuffled": "shuffled labels",
}


@dataclass(frozen=True)
class Chosen:
    """A cell or baseline that dev chose. where: the columns that name it; test, low, high: its accuracy and "
    "interval."""

    where: Mapping[str, Any]
    told: str
    test: float
    low: float
    high: float
    dev: float

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


def chosen_cell(rows: pd.DataFrame, readout: str | None, control: str = "none") -> Chosen:
    """The layer that dev chooses for a readout, or the best cell of all where `readout` is None."""
    best = stats.best_layers(rows, control)
    top = (best[best.readout == readout] if readout else best).iloc[0]
    where = {"control": control, "layer": int(top.layer), "readout": str(top.readout), "probe": str(top.probe)}
    cell = f"{top.readout} at layer {top.layer}" if control in ("none", "untrained", "shuffled") else ""
    chosen = Chosen(where, ", ".join(filter(None, [SHOWN.get(control), cell])), 0.0, 0.0, 0.0, float(top.dev))
    on_test = stats.accuracies(chosen.rows(rows[rows.split == "test"]), ["readout"]).iloc[0]
    return replace(chosen, test=float(on_test.value), low=float(on_test.low), high=float(on_test.high))


def best_baseline(rows: pd.DataFrame) -> Chosen:
    """The baseline with the best dev accuracy, the untrained encoder at its own best cell among them."""
    found = [chosen_cell(rows, None, control) for control in BASELINES if (rows.control == control).any()]
    return max(found, key=lambda chosen: chosen.dev)


def baselines_of(rows: pd.DataFrame, *first: Chosen) -> pd.DataFrame:
    """Columns name, value, low, high: every baseline and control that was measured, after the cells in `first`."""
    controls = [control for control in SHOWN if (rows.control == control).any()]
    chosen = [(cell.told, cell) for cell in first]
    chosen += [(SHOWN[control], chosen_cell(rows, None, control)) for control in controls]
    return pd.DataFrame([{"name": n, "value": c.test, "low": c.low, "high": c.high} for n, c in chosen])
