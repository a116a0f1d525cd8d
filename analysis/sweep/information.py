"""The information in chosen cells: the online code, V-information and learning curves.

`information` fits the probe on growing parts of train (`probes.codelength`), so it is for the few cells that dev chose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator

from clsprobe.analysis import stats
from clsprobe.analysis.sweep.choose import ChosenCell
from clsprobe.analysis.sweep.grid import SplitTask, features
from clsprobe.probes.codelength import OnlineCode, v_information
from clsprobe.probes.extraction.states import States

BAG = (0, "mean")  # the embeddings of a text's words, without their context
LEARNING = ("task", "name", "n", "value", "low", "high", "bits")
INFORMATION = (
    "task", "name", "layer", "readout", "codelength", "compression", "v_information", "v_information low",
    "v_information high", "adds", "adds low", "adds high", "converged",
)  # fmt: skip


def information(
    split: SplitTask,
    states: States,
    cells: Sequence[ChosenCell],
    probe: BaseEstimator,
    *,
    seed: int = 0,
    timeout: float | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tables for one task: the cells' learning curves (columns `LEARNING`) and their information (`INFORMATION`).

    value: test accuracy after n texts, with its 95 % interval; bits: held-out, per text. codelength: bits of the labels
    of train, sent block by block (Voita & Titov 2020); compression: how many times fewer than without a probe.
    v_information: bits per test label (Xu et al. 2020), and `adds`, those beyond the mean of layer 0 (Hewitt et al.
    2021), with 95 % intervals over the texts; NaN where the probe failed. timeout: seconds that a fit may take.

    Raises ValueError where the probe gives no probabilities.
    """
    y = split.y[:, None]
    train, dev, test = (split.rows_of(side) for side in ("train", "dev", "test"))
    curves, rows = [], []
    for cell in cells:
        key = [(cell.layer, cell.readout)]
        X, X_dev, X_test = (features(states, key, split.state_rows[side]) for side in (train, dev, test))
        held_out, unseen = (X_dev, y[dev]), (X_test, y[test])
        (code,) = OnlineCode(probe, seed, timeout)(X, y[train], dev=held_out, evaluated=unseen)
        assert code.curve is not None
        share = code.curve.accuracy[0]
        low, high = stats.wilson(share, len(test))
        columns = {"n": code.curve.n, "value": share, "low": low, "high": high, "bits": code.curve.bits[0]}
        curves.append(pd.DataFrame({"task": split.task.name, "name": cell.name} | columns))
        row = {"task": split.task.name, "name": cell.name, "layer": cell.layer, "readout": cell.readout}
        row |= {"codelength": code.codelength[0], "compression": code.compression[0]}
        bag = None
        if BAG in states.cells and key != [BAG]:
            parts = (features(states, [BAG], split.state_rows[side])[0] for side in (train, dev, test))
            bag = next(parts), next(parts), next(parts)
        for name, given in (("v_information", None), ("adds", bag)):
            row |= dict.fromkeys((name, f"{name} low", f"{name} high"), np.nan)
            if name == "v_information" or bag is not None:
                (measured,) = v_information(
                    probe, X, y[train], dev=held_out, evaluated=unseen, given=given, timeout=timeout
                )
                ends = stats.mean_interval(measured.terms)
                row |= {name: measured.bits[0], f"{name} low": ends[0][0], f"{name} high": ends[1][0]}
        rows.append(row | {"converged": bool(code.converged[0])})
    return pd.concat(curves, ignore_index=True)[[*LEARNING]], pd.DataFrame(rows, columns=[*INFORMATION])
