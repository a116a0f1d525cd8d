"""What erasures show, from their table of predictions alone. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from clsprobe.analysis import stats

KINDS = ("leace", "same variance", "same number")
RUN = KINDS[:2]  # those after which the network runs on


class Erasure(NamedTuple):
    """What is removed from a place: one of `KINDS`, or "none"."""

    kind: str
    tokens: str
    layer: int


PROBES = ("fixed", "linear", "MLP")  # trained on intact vectors; trained again on those of the erasure
KEY = [*Erasure._fields, "read at", "readout", "probe"]
PREDICTIONS = ("task", *KEY, "seed", "row", "label", "predicted")


def compute_effects(predictions: pd.DataFrame) -> pd.DataFrame:
    """The accuracy of every probe after every erasure, and its change from no erasure and from random directions.

    Columns task, probe, kind, tokens, layer, value; effect, low, high: minus the accuracy of the same probe without
    erasure; beyond, beyond low, beyond high: minus that of random directions of the same variance. 95 % intervals,
    paired over test texts.
    """
    table = []
    for (task, probe), rows in predictions.groupby(["task", "probe"], sort=False):
        by_erasure = rows.groupby(list(Erasure._fields), sort=False)
        hits = {Erasure(*key): stats.tabulate_correct(part) for key, part in by_erasure}
        (intact,) = (correct for erasure, correct in hits.items() if erasure.kind == "none")
        for erasure, correct in hits.items():
            if erasure.kind == "none":
                continue
            control = hits[erasure._replace(kind="same variance")]
            table.append(
                (
                    task,
                    probe,
                    *erasure,
                    float(np.nanmean(correct)),
                    *stats.paired_difference(correct, intact),
                    *stats.paired_difference(correct, control),
                )
            )
    columns = ["value", "effect", "low", "high", "beyond", "beyond low", "beyond high"]
    return pd.DataFrame(table, columns=["task", "probe", *Erasure._fields, *columns])
