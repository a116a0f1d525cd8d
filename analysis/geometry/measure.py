"""Encode the texts, measure every cell, compute maps of the described readouts."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd

from clsprobe.analysis.corpus import Inputs
from clsprobe.analysis.encoding import collect_facts, encode_inputs, encoding_notes
from clsprobe.analysis.geometry.measures import SAMPLE, choose_described, comparable, geometry
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.rows import list_rows
from clsprobe.analysis.study import counted
from clsprobe.analysis.sweep.maps import SMALLEST, compute_pca, compute_umap
from clsprobe.analysis.table import concat_categories
from clsprobe.analysis.verdict import short
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.states import States
from clsprobe.probes.tasks.task import Task
from clsprobe.probes.tasks.texts import readable

log = logging.getLogger("clsprobe")

MAPPED = 2_000  # texts of a map
MAP = ["task", "map", "panel", "x", "y", "label", "text", "row"]


def measure_geometry(settings: Any, inputs: Inputs, *, layer: int | None) -> Measured:
    """Tables measured and projection of all tasks.

    settings: `VectorSettings` with a seed. layer: the one that is described and drawn, None for the last. Raises
    InputError where too few texts are left.
    """
    (states,) = encode_inputs(settings, inputs)
    parts, listed, maps, counts, notes = [], [], [], {}, [*inputs.corpus.notes, *encoding_notes(states)]
    failures: list[str] = []
    layer = max(states.layers) if layer is None else layer
    for task in inputs.tasks:
        state_rows = states.rows(task.texts) if task.rows is None else task.rows
        long = np.isin(state_rows, states.truncated if settings.long_rows == "drop" else [])
        present = states.present[:, state_rows].all(0)
        used = comparable(states, np.unique(state_rows[~long]))
        row_by_state = dict(zip(state_rows.tolist(), range(len(state_rows)), strict=True))
        if len(used) < SMALLEST:
            what = f"{counted(len(used), 'text')} of {len(state_rows):,} are left, too few"
            raise InputError(task.name, what, "Give more texts, or name readouts that short ones have")
        left_out = {
            "too long": int(long.sum()),
            "too short for a readout": int((~present & ~long).sum()),
            "copies": int((present & ~long).sum()) - len(used),
        }
        notes += [f"{short(task.name)}: {n:,} left out, {reason}." for reason, n in left_out.items() if n]
        left_out |= {reason: len(places) for reason, places in inputs.corpus.excluded[task.name].items()}
        reason = np.full(len(state_rows), "copy of another text", object)
        reason[long], reason[~present & ~long] = "too long", "too short for a readout"
        reason[[row_by_state[i] for i in used.tolist()]] = ""
        listed.append(list_rows(inputs.corpus, task, np.full(len(state_rows), "all"), reason, seed=settings.seed))
        counts[task.name] = {"used": len(used)} | {f"left out: {reason}": n for reason, n in left_out.items() if n}
        if len(used) > SAMPLE:
            notes.append(
                f"{short(task.name)}: dimension, CKA and neighbours are those of {SAMPLE:,} texts drawn at random; "
                f"all else is over all {len(used):,}."
            )
        log.info("measuring the geometry of %s", task.name)
        table = geometry(states, used, layer=layer, seed=settings.seed)
        log.info("drawing the maps of %s", task.name)
        task_rows = np.array([row_by_state[i] for i in used.tolist()])
        parts.append(table.assign(task=task.name))
        try:
            maps.append(_draw_maps(task, states, table, layer, used, task_rows, settings.seed))
        except Exception as error:  # the measures must not be lost to any error
            failures.append(f"the maps of {task.name} failed: {type(error).__name__}: {error}")
            notes.append(f"{failures[-1]}.")
    if inputs.vectors:
        inputs.vectors.check_unchanged()
    projection = pd.concat(maps or [pd.DataFrame(columns=MAP)], ignore_index=True)
    tables = {
        "measured": pd.concat(parts, ignore_index=True),
        "projection": projection,
        "rows": concat_categories(listed),
    }
    return Measured(tables, collect_facts(settings, inputs, states, counts), notes, failures)


def _draw_maps(
    task: Task, states: States, table: pd.DataFrame, layer: int, used: np.ndarray, task_rows: np.ndarray, seed: int
) -> pd.DataFrame:
    """Columns `MAP`. used: (text,) rows of the States; task_rows: (text,) the same texts in the task."""
    drawn = np.arange(len(used))
    if len(drawn) > MAPPED:
        drawn = np.sort(np.random.default_rng(seed).choice(drawn, MAPPED, replace=False))
    rows = task_rows[drawn]
    ranks = table[(table.measure == "effective_rank") & (table.layer == layer)].set_index("readout").value
    parts = [pd.DataFrame(columns=MAP)]
    for readout in choose_described(states.readouts):
        if np.isnan(ranks[readout]):
            continue  # one vector for every text: no map
        vectors = states.cell(layer, readout, used[drawn])
        for name in ("UMAP", "PCA"):
            positions, trustworthiness = compute_umap(vectors, seed=seed) if name == "UMAP" else compute_pca(vectors)
            share = positions.var(0).sum() / vectors.astype(np.float64).var(0).sum()
            variance = f"{share:.0%} of the variance, " if name == "PCA" else ""
            columns = {
                "task": task.name,
                "map": name,
                "panel": f"{readout}, layer {layer} ({variance}trustworthiness {trustworthiness:.2f})",
                "x": positions[:, 0],
                "y": positions[:, 1],
                "label": task.y[rows].astype(str) if task.kind == "class" else "texts",
                "text": [readable(task.texts[i]) for i in rows],
                "row": rows,
            }
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts[1:] or parts, ignore_index=True)
