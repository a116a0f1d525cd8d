"""What a few chosen cells tell in bits: the online code, V-information, and what more texts would teach.

One call for one task: `information` fits the probe on growing parts of train (probes.codelength), so it is kept to the
cells that dev has chosen.
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
    asked: SplitTask, states: States, cells: Sequence[ChosenCell], probe: BaseEstimator, *, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tables: the cells' learning curves (columns `LEARNING`), and what they tell in bits (`INFORMATION`).

    value: test accuracy after n texts, with its 95 % interval; bits: held-out, a text. codelength: bits that the labels
    of train take, block by block (Voita & Titov 2020); compression: how many times fewer than without a probe.
    v_information: bits that the cell takes off a test label (Xu et al. 2020), and `adds`, off what the mean of layer 0
    leaves (Hewitt et al. 2021), with their 95 % intervals over the texts; the probe's failures are NaN.

    Raises ValueError where the probe gives no probabilities.
    """
    y = asked.y[:, None]
    train, dev, test = (asked.rows_of(side) for side in ("train", "dev", "test"))
    curves, found = [], []
    for cell in cells:
        at = [(cell.layer, cell.readout)]
        X, X_dev, X_test = (features(states, at, asked.state_rows[rows]) for rows in (train, dev, test))
        held, unseen = (X_dev, y[dev]), (X_test, y[test])
        (code,) = OnlineCode(probe, seed)(X, y[train], dev=held, evaluated=unseen)
        assert code.curve is not None
        share = code.curve.accuracy[0]
        low, high = stats.wilson(share, len(test))
        columns = {"n": code.curve.n, "value": share, "low": low, "high": high, "bits": code.curve.bits[0]}
        curves.append(pd.DataFrame({"task": asked.task.name, "name": cell.name} | columns))
        row = {"task": asked.task.name, "name": cell.name, "layer": cell.layer, "readout": cell.readout}
        row |= {"codelength": code.codelength[0], "compression": code.compression[0]}
        bag = None
        if BAG in states.cells and at != [BAG]:
            parts = (features(states, [BAG], asked.state_rows[rows])[0] for rows in (train, dev, test))
            bag = next(parts), next(parts), next(parts)
        for name, given in (("v_information", None), ("adds", bag)):
            row |= dict.fromkeys((name, f"{name} low", f"{name} high"), np.nan)
            if name == "v_information" or bag is not None:
                (told,) = v_information(probe, X, y[train], dev=held, evaluated=unseen, given=given)
                ends = stats.skewed(told.terms)
                row |= {name: told.bits[0], f"{name} low": ends[0][0], f"{name} high": ends[1][0]}
        found.append(row | {"converged": bool(code.converged[0])})
    return pd.concat(curves, ignore_index=True)[[*LEARNING]], pd.DataFrame(found, columns=[*INFORMATION])
