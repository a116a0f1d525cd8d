"""A whole sweep: the grid of probes, then what is measured of its chosen cells only (maps, bits, learning curves)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.corpus import Inputs
from clsprobe.analysis.encoding import facts_of, half_precision
from clsprobe.analysis.settings import SweepSettings
from clsprobe.analysis.study import Measured, counted, short
from clsprobe.analysis.sweep.choose import (
    DISAGREEMENTS,
    SHOWN,
    bands,
    choose_layer,
    disagreements,
    judged_probe,
    judged_rows,
    subject_cell,
)
from clsprobe.analysis.sweep.grid import SplitTask, describe_rows, layer0_check, split_task, sweep
from clsprobe.analysis.sweep.information import BAG, INFORMATION, LEARNING, information
from clsprobe.analysis.sweep.maps import SMALLEST, umap_of
from clsprobe.analysis.table import joined
from clsprobe.probes.extraction.states import States
from clsprobe.probes.registry import find_probe
from clsprobe.probes.tasks.control import coverage, word_type
from clsprobe.probes.tasks.task import readable

log = logging.getLogger("clsprobe")

MAPPED = 1000  # texts of a UMAP
MAP = ["task", "panel", "x", "y", "label", "text", "row"]


def measure_sweep(settings: Any, inputs: Inputs, states: Sequence[States], *, details: bool = False) -> Measured:
    """Tables results and predictions; with details also projection, disagreements, learning and information, which are
    about the chosen cells.

    settings: `SweepSettings`, with or without a file of vectors. states: of the encoder, then of untrained ones.
    """
    trained = states[0]
    drop = trained.truncated if settings.long_rows == "drop" else None
    blocks: list[pd.DataFrame] = []
    failures: list[str] = []
    cells = sum(len(each.cells) for each in states)
    log.info("probing %s for %s", counted(cells, "cell"), counted(len(inputs.tasks), "task"))
    results = sweep(
        inputs.tasks,
        states,
        {name: find_probe(name) for name in settings.probes},
        seeds=settings.every_seed,
        drop=drop,
        allow_overlap=settings.allow_overlap,
        keep=blocks.append,
        failed=failures.append,
    )
    predictions = joined(blocks)
    if inputs.vectors:
        inputs.vectors.check_same()
    asked = [
        split_task(t, trained, settings.seed, drop=drop, allow_overlap=settings.allow_overlap) for t in inputs.tasks
    ]
    beyond = inputs.corpus.beyond
    rows = {task.task.name: describe_rows(task, beyond[task.task.name]) for task in asked}
    notes = [*layer0_check(results), *(f"{short(task.task.name)}: {note}." for task in asked for note in task.notes)]
    notes += inputs.corpus.notes
    for task in asked:
        notes += [f"{short(task.task.name)}: {n:,} left out, {reason}." for reason, n in task.left_out.items()]
    notes += half_precision(trained)
    unsolved = results[results.metric.isin(["accuracy", "r2"]) & (results.split == "test") & ~results.converged]
    if len(unsolved):
        notes.append(f"{len(unsolved)} fits did not converge; they are flagged in the table.")
    tables = {"results": results, "predictions": predictions}
    if details:
        tables["projection"] = _maps(settings, asked, trained, predictions)
        tables["disagreements"] = _disagreements(settings, asked, predictions)
        tables["learning"], tables["information"], told = _information(settings, asked, trained, predictions)
        notes += told
    return Measured(tables, facts_of(settings, inputs, trained, rows), [*notes, *failures], failures)


def _information(
    settings: SweepSettings, asked: Sequence[SplitTask], states: States, predictions: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Learning curves and bits of the chosen cells of every task (`information`), and what to say of them."""
    notes: list[str] = []
    parts: list[tuple[pd.DataFrame, pd.DataFrame]] = []
    for one in asked:
        task, name = one.task, short(one.task.name)
        log.info("measuring the bits of %s", task.name)
        texts = [task.texts[i] for i in one.row_indices]
        if not task.textless:
            share, guess = coverage(word_type(texts, one.y, one.side, settings.seed), one.side)
            number = task.kind == "number"
            label = "a number" if number else "a label"
            right = "" if number else f"; its commonest one is right on {guess:.3f} of these"
            notes.append(f"{name}: the control task has {label} for {share:.0%} of the test texts{right}.")
        if task.kind == "number":
            notes.append(f"{name}: numbers have no bits and no learning curve here.")
            continue
        rows = judged_rows(predictions[predictions.task == task.name], settings.probes)
        readouts = [name for name in ("cls", "mean") if name in set(rows[rows.control == "none"].readout)]
        cells = [choose_layer(rows, readout) for readout in readouts] or [subject_cell(rows)]
        if BAG in states.cells:
            cells.append(replace(choose_layer(rows, None, "layer0_mean"), name=SHOWN["layer0_mean"]))
        probe_name = judged_probe(rows, settings.probes)
        if hasattr(probe := find_probe(probe_name), "predict_proba"):
            parts.append(information(one, states, cells, probe, seed=settings.seed))
        else:
            notes.append(f"{probe_name} gives no probabilities: nothing is told in bits.")
    if not parts:
        return pd.DataFrame(columns=LEARNING), pd.DataFrame(columns=INFORMATION), list(dict.fromkeys(notes))
    learning, bits = (pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True))
    return learning, bits, list(dict.fromkeys(notes))


def _disagreements(settings: SweepSettings, asked: Sequence[SplitTask], predictions: pd.DataFrame) -> pd.DataFrame:
    """`choose.disagreements` of [CLS] and mean, of every task that has classes and both."""
    parts = [pd.DataFrame(columns=["task", *DISAGREEMENTS])]
    for task in (one.task for one in asked):
        rows = judged_rows(predictions[predictions.task == task.name], settings.probes)
        if task.kind == "class" and {"cls", "mean"} <= set(rows[rows.control == "none"].readout):
            table = disagreements(rows, choose_layer(rows, "cls"), choose_layer(rows, "mean"), task.texts)
            parts.append(table.assign(task=task.name))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def _maps(
    settings: SweepSettings, asked: Sequence[SplitTask], states: States, predictions: pd.DataFrame
) -> pd.DataFrame:
    """UMAPs of the test texts, [CLS] and mean at the layers that dev chooses: columns `MAP`."""
    parts = [pd.DataFrame(columns=MAP)]
    for one in asked:
        log.info("drawing the maps of %s", one.task.name)
        test = one.rows_of("test")
        if len(test) > MAPPED:
            test = np.sort(np.random.default_rng(settings.seed).choice(test, MAPPED, replace=False))
        rows = judged_rows(predictions[predictions.task == one.task.name], settings.probes)
        layers = stats.best_layers(rows).set_index("readout").layer
        labels = one.classes[one.y[test]] if one.task.kind == "class" else bands(one.y[test], 5)
        for readout in ("cls", "mean"):
            if readout not in layers or len(test) < SMALLEST:
                continue
            layer = int(layers[readout])
            if (layer, readout) == (0, "cls"):
                continue  # one vector for every text: nothing to draw
            flat, trust = umap_of(states.cell(layer, readout)[one.state_rows[test]], seed=settings.seed)
            columns = {
                "task": one.task.name,
                "panel": f"{readout}, layer {layer} (trustworthiness {trust:.2f})",
                "x": flat[:, 0].round(3),
                "y": flat[:, 1].round(3),
                "label": labels,
                "text": [readable(one.task.texts[i]) for i in one.row_indices[test]],
                "row": one.row_indices[test],
            }
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts[1:] or parts, ignore_index=True)
