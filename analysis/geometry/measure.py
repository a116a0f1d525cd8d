"""Encode the texts, measure every cell, draw maps of [CLS] and mean."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd

from clsprobe.analysis.corpus import Inputs
from clsprobe.analysis.encoding import encode_inputs, facts_of, half_precision
from clsprobe.analysis.geometry.measures import SAMPLE, comparable, geometry
from clsprobe.analysis.study import Measured, counted, short
from clsprobe.analysis.sweep.maps import SMALLEST, pca_of, umap_of
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.states import States
from clsprobe.probes.tasks.task import Task, readable

log = logging.getLogger("clsprobe")

MAPPED = 2_000  # texts of a map
DRAWN = ("cls", "mean")
MAP = ["task", "map", "panel", "x", "y", "label", "text", "row"]


def measure_geometry(settings: Any, inputs: Inputs, *, at: int | None) -> Measured:
    """Tables measured and projection, all tasks under one another.

    settings: `VectorSettings` with a seed. at: the layer of the maps, None for the last one. Raises InputError where
    too few texts are left.
    """
    (states,) = encode_inputs(settings, inputs)
    parts, maps, counts, notes = [], [], {}, [*inputs.corpus.notes, *half_precision(states)]
    for task in inputs.tasks:
        of_states = states.rows(task.texts) if task.rows is None else task.rows
        long = np.isin(of_states, states.truncated) if settings.long_rows == "drop" else np.zeros(len(of_states), bool)
        present = states.present[:, of_states].all(0)
        used = comparable(states, np.unique(of_states[~long]))
        if len(used) < SMALLEST:
            what = f"{counted(len(used), 'text')} of {len(of_states):,} are left, too few"
            raise InputError(task.name, what, "Give more texts, or name readouts that short ones have")
        left_out = {
            "too long": int(long.sum()),
            "too short for a readout": int((~present & ~long).sum()),
            "copies": int((present & ~long).sum()) - len(used),
        }
        notes += [f"{short(task.name)}: {n:,} left out, {reason}." for reason, n in left_out.items() if n]
        left_out["beyond --max-texts"] = inputs.corpus.beyond[task.name]
        counts[task.name] = {"used": len(used)} | {f"left out: {reason}": n for reason, n in left_out.items() if n}
        if len(used) > SAMPLE:
            notes.append(
                f"{short(task.name)}: dimension, CKA and neighbours are those of {SAMPLE:,} texts drawn at random; "
                f"all else is over all {len(used):,}."
            )
        log.info("measuring the geometry of %s", task.name)
        table = geometry(states, used, seed=settings.seed)
        log.info("drawing the maps of %s", task.name)
        row_of = dict(zip(of_states.tolist(), range(len(of_states)), strict=True))
        layer = int(table.layer.max()) if at is None else at
        maps.append(
            _maps(task, states, table, layer, used, np.array([row_of[i] for i in used.tolist()]), settings.seed)
        )
        parts.append(table.assign(task=task.name))
    if inputs.vectors:
        inputs.vectors.check_same()
    tables = {"measured": pd.concat(parts, ignore_index=True), "projection": pd.concat(maps, ignore_index=True)}
    return Measured(tables, facts_of(settings, inputs, states, counts), notes)


def _maps(
    task: Task, states: States, table: pd.DataFrame, layer: int, used: np.ndarray, row: np.ndarray, seed: int
) -> pd.DataFrame:
    """Columns `MAP`. used: (text,) rows of the States; row: (text,) the same texts among those of the task."""
    chosen = np.arange(len(used))
    if len(chosen) > MAPPED:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, MAPPED, replace=False))
    rows = row[chosen]
    ranks = table[(table.measure == "effective_rank") & (table.layer == layer)].set_index("readout").value
    parts = [pd.DataFrame(columns=MAP)]
    for readout in DRAWN:
        if np.isnan(ranks[readout]):
            continue  # one vector for every text: nothing to draw
        vectors = states.cell(layer, readout, used[chosen])
        for name in ("UMAP", "PCA"):
            flat, trust = umap_of(vectors, seed=seed) if name == "UMAP" else pca_of(vectors)
            share = flat.var(0).sum() / vectors.astype(np.float64).var(0).sum()
            variance = f"{share:.0%} of the variance, " if name == "PCA" else ""
            columns = {
                "task": task.name,
                "map": name,
                "panel": f"{readout}, layer {layer} ({variance}trustworthiness {trust:.2f})",
                "x": flat[:, 0],
                "y": flat[:, 1],
                "label": task.y[rows].astype(str) if task.kind == "class" else "texts",
                "text": [readable(task.texts[i]) for i in rows],
                "row": rows,
            }
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts[1:] or parts, ignore_index=True)
