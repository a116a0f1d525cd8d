"""Sweeps whose truth is known: predictions are drawn with the accuracies that one names, without an encoder.

For the tests of a study: what it has to answer with yes, no and undecided is planted. The texts of a draw are
independent of each other; whether two cells get a text right is correlated, as in life.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.rows import ROWS
from clsprobe.analysis.sweep.refits import REFITS
from clsprobe.analysis.table import COLUMNS, NO_LAYER, NO_READOUT, PREDICTIONS

LAYERS = (2, 3)  # of every readout, equally good, so that it does not matter which one dev chooses
SHARED = 0.8  # share of the variance of a cell's errors that all cells have in common
BASELINES = {
    "length": (NO_LAYER, NO_READOUT),
    "bag_of_words": (NO_LAYER, NO_READOUT),
    "layer0_mean": (0, "mean"),
    "untrained": (LAYERS[0], "mean"),
}
TRAINED = 600  # training texts that the tables speak of


def plant_sweep(
    accuracies: Mapping[str, float],
    *,
    baselines: float = 0.5,
    texts: tuple[int, int] = (200, 800),
    task: str = "made:planted:label",
    seed: int = 0,
) -> Measured:
    """The tables of a sweep over two balanced classes, in which readouts and baselines have these accuracies.

    accuracies: readout -> expected accuracy on test and dev. baselines: that of every baseline but the majority class.
    texts: of dev and of test. There are no refits, so that intervals are of these predictions.
    """
    cells = {("majority", NO_LAYER, NO_READOUT): 0.5}
    cells |= {("none", layer, name): share for name, share in accuracies.items() for layer in LAYERS}
    cells |= {(name, *where): baselines for name, where in BASELINES.items()}
    random, n = np.random.default_rng(seed), sum(texts)
    label = random.permutation(np.arange(n) % 2)
    latent = np.sqrt(SHARED) * random.normal(size=n) + np.sqrt(1 - SHARED) * random.normal(size=(len(cells), n))
    thresholds = [NormalDist().inv_cdf(min(max(share, 1e-6), 1 - 1e-6)) for share in cells.values()]
    codes = np.where(latent < np.array(thresholds)[:, None], label, 1 - label)  # (cell, text)
    codes[0] = 0
    bits = np.log2(np.where(codes == label, 0.8, 0.2))
    controls, layers, readouts = (np.array(column) for column in zip(*cells, strict=True))
    probes, on_test = np.where(controls == "majority", "none", "logistic"), np.arange(n) >= texts[0]
    keys: dict[str, Any] = {
        "model": "made",
        "task": task,
        "control": controls,
        "layer": layers,
        "readout": readouts,
        "probe": probes,
    }
    rows = []
    for side, selected in (("dev", ~on_test), ("test", on_test)):
        for metric, estimate in stats.intervals(codes[:, selected], label[selected], bits[:, selected]).items():
            numbers = dict(zip(("value", "low", "high"), estimate, strict=True))
            counts = {"n_train": TRAINED, "n_test": int(selected.sum()), "converged": True}
            rows.append(pd.DataFrame({**keys, "seed": 0, "split": side, "metric": metric, **numbers, **counts}))
    predictions = pd.DataFrame(
        {
            **{name: _repeat(value, len(cells), n) for name, value in keys.items()},
            "seed": 0,
            "split": pd.Categorical.from_codes(np.tile(on_test.astype(int), len(cells)), ["dev", "test"]),
            "row": np.tile(np.arange(n), len(cells)),
            "label": pd.Categorical.from_codes(np.tile(label, len(cells)), ["a", "b"]),
            "predicted": pd.Categorical.from_codes(codes.ravel(), ["a", "b"]),
            "log2_probability": bits.ravel(),
        },
        columns=[*PREDICTIONS],
    )
    results = pd.concat(rows, ignore_index=True)[[*COLUMNS]]
    listed = {"task": task, "seed": 0, "source": "made", "number": range(n), "row": range(n), "reason": ""}
    tables = {
        "results": results,
        "predictions": predictions,
        "refits": pd.DataFrame(columns=[*REFITS]),
        "rows": pd.DataFrame(listed | {"side": np.where(on_test, "test", "dev")})[[*ROWS]],
    }
    facts: dict[str, dict[str, Any]] = {
        "rows": {task: {"rows": TRAINED + n}},
        "read": {},
        "model": {"model": "made"},
        "versions": {},
    }
    return Measured(tables, facts)


def _repeat(value: str | np.ndarray, cells: int, texts: int) -> np.ndarray | pd.Categorical:
    """(row,) the value of every cell, or one for all, repeated for its texts."""
    values = np.broadcast_to(value, cells)
    if values.dtype.kind == "i":
        return values.repeat(texts)
    names, codes = np.unique(values, return_inverse=True)
    return pd.Categorical.from_codes(codes.repeat(texts), names)


def plant_worlds(readouts: Sequence[str]) -> Iterator[tuple[str, Measured]]:
    """Name and sweep, of every kind that a comparison of these readouts and the baselines has to tell apart."""

    def plant(
        others: float, baselines: float, own: Mapping[str, float] | None = None, texts: tuple[int, int] = (100, 400)
    ) -> Measured:
        return plant_sweep({**dict.fromkeys(readouts, others), **(own or {})}, baselines=baselines, texts=texts)

    yield "all readouts are alike", plant(0.8, 0.5)
    yield "every baseline is better", plant(0.6, 0.8)
    yield "nothing can be read", plant(0.5, 0.5)
    yield "there are few texts", plant(0.7, 0.65, texts=(40, 24))
    for name in readouts:
        yield f"{name} is the best", plant(0.65, 0.5, {name: 0.85})
        yield f"{name} is worse than a baseline", plant(0.85, 0.62, {name: 0.5})
