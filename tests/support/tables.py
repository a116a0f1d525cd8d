"""Predictions made by hand: cells whose texts are right or wrong exactly as a test says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from clsprobe.analysis.measured import Measured
from clsprobe.analysis.study import Study
from clsprobe.analysis.table import PREDICTIONS
from clsprobe.analysis.verdict import Verdict

Cell = tuple[str, int, str]  # control, layer, readout


def predictions(
    right: Mapping[Cell, tuple[Sequence[bool], Sequence[bool]]], *, task: str = "file:made:label", seed: int = 0
) -> pd.DataFrame:
    """right: cell -> which dev texts and which test texts it gets right. Labels alternate between "a" and "b"."""
    parts = []
    for (control, layer, readout), sides in right.items():
        for split, correct in zip(("dev", "test"), sides, strict=True):
            correct = np.asarray(correct, bool)
            label = np.where(np.arange(len(correct)) % 2, "a", "b")
            wrong = np.where(label == "a", "b", "a")
            parts.append(
                pd.DataFrame(
                    {
                        "model": "made",
                        "task": task,
                        "control": control,
                        "layer": layer,
                        "readout": readout,
                        "probe": "none" if control == "majority" else "logistic",
                        "seed": seed,
                        "split": split,
                        "row": np.arange(len(correct)) + (0 if split == "dev" else 1000),
                        "label": label,
                        "predicted": np.where(correct, label, wrong),
                        "log2_probability": np.where(correct, -0.1, -3.0),
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)[list(PREDICTIONS)]


def first(share: float, n: int = 400) -> np.ndarray:
    """(text,) True for the first `share` of n texts: cells made so are nested, which makes paired intervals narrow."""
    return np.arange(n) < round(share * n)


def measured(**tables: pd.DataFrame) -> Measured:
    """These tables as what a study has measured: the tasks are those of the first one."""
    first_table = next(iter(tables.values()))
    tasks = dict.fromkeys(first_table.task.unique()) if "task" in first_table else {"texts": None}
    facts = {"rows": {task: {} for task in tasks}, "read": {}, "model": {"model": "made"}, "versions": {}}
    return Measured(tables, facts)


def judge(study: Study, rows: pd.DataFrame, **tables: pd.DataFrame) -> Verdict:
    """The verdict of a study on the task of these rows of its table `judged`. tables: others that it reads."""
    everything = measured(**{study.judged: rows, **tables})
    return study.judge(everything, everything.tasks[0])
