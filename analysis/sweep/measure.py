"""A whole sweep: the grid of probes, then the maps, bits and learning curves of the chosen cells."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.corpus import Inputs
from clsprobe.analysis.encoding import collect_facts, encoding_notes
from clsprobe.analysis.settings import SweepSettings
from clsprobe.analysis.study import Measured, counted, short
from clsprobe.analysis.sweep.choose import (
    CONTROL_NAMES,
    DISAGREEMENTS,
    bands,
    choose_layer,
    disagreements,
    judged_probe,
    judged_rows,
    subject_cell,
)
from clsprobe.analysis.sweep.grid import SplitTask, check_layer0, describe_rows, split_task, sweep
from clsprobe.analysis.sweep.information import BAG, INFORMATION, LEARNING, information
from clsprobe.analysis.sweep.maps import SMALLEST, compute_umap
from clsprobe.analysis.table import concat_predictions
from clsprobe.probes.extraction.states import States
from clsprobe.probes.registry import find_probe
from clsprobe.probes.tasks.control import coverage, word_type
from clsprobe.probes.tasks.task import readable

log = logging.getLogger("clsprobe")

MAPPED = 1000  # texts of a UMAP
MAP = ["task", "panel", "x", "y", "label", "text", "row"]


def measure_sweep(settings: Any, inputs: Inputs, states: Sequence[States], *, details: bool = False) -> Measured:
    """Tables results and predictions; with details also projection, disagreements, learning and information, of the
    chosen cells.

    settings: `SweepSettings`, with or without a file of vectors. states: of the encoder, then of untrained ones.
    """
    trained = states[0]
    drop = trained.truncated if settings.long_rows == "drop" else None
    blocks: list[pd.DataFrame] = []
    failures: list[str] = []
    cells = sum(len(s.cells) for s in states)
    log.info("probing %s for %s", counted(cells, "cell"), counted(len(inputs.tasks), "task"))
    results = sweep(
        inputs.tasks,
        states,
        {name: find_probe(name) for name in settings.probes},
        seeds=settings.every_seed,
        drop=drop,
        allow_overlap=settings.allow_overlap,
        on_predictions=blocks.append,
        on_failure=failures.append,
    )
    predictions = concat_predictions(blocks)
    if inputs.vectors:
        inputs.vectors.check_unchanged()
    splits = [
        split_task(t, trained, settings.seed, drop=drop, allow_overlap=settings.allow_overlap) for t in inputs.tasks
    ]
    beyond = inputs.corpus.beyond
    rows = {split.task.name: describe_rows(split, beyond[split.task.name]) for split in splits}
    notes = check_layer0(results)
    notes += [f"{short(split.task.name)}: {note}." for split in splits for note in split.notes] + inputs.corpus.notes
    for split in splits:
        notes += [f"{short(split.task.name)}: {n:,} left out, {reason}." for reason, n in split.left_out.items()]
    notes += encoding_notes(trained)
    on_test = results[results.metric.isin(["accuracy", "r2"]) & (results.split == "test")]
    unsolved = on_test[~on_test.converged.astype(bool)]
    if len(unsolved):
        notes.append(f"{len(unsolved)} fits did not converge; they are flagged in the table.")
    tables = {"results": results, "predictions": predictions}
    if details:
        tables["projection"] = _draw_maps(settings, splits, trained, predictions)
        tables["disagreements"] = _disagreements(settings, splits, predictions)
        tables["learning"], tables["information"], remarks = _information(settings, splits, trained, predictions)
        notes += remarks
    return Measured(tables, collect_facts(settings, inputs, trained, rows), [*notes, *failures], failures)


def _information(
    settings: SweepSettings, splits: Sequence[SplitTask], states: States, predictions: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Learning curves and bits of the chosen cells of every task (`information`), and notes on them."""
    notes: list[str] = []
    parts: list[tuple[pd.DataFrame, pd.DataFrame]] = []
    for split in splits:
        task, name = split.task, short(split.task.name)
        log.info("measuring the bits of %s", task.name)
        texts = [task.texts[i] for i in split.row_indices]
        if not task.textless:
            share, guess = coverage(word_type(texts, split.y, split.side, settings.seed), split.side)
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
            cells.append(replace(choose_layer(rows, None, "layer0_mean"), name=CONTROL_NAMES["layer0_mean"]))
        probe_name = judged_probe(rows, settings.probes)
        if hasattr(probe := find_probe(probe_name), "predict_proba"):
            parts.append(information(split, states, cells, probe, seed=settings.seed))
        else:
            notes.append(f"{probe_name} gives no probabilities: nothing is told in bits.")
    if not parts:
        return pd.DataFrame(columns=LEARNING), pd.DataFrame(columns=INFORMATION), list(dict.fromkeys(notes))
    learning, bits = (pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True))
    return learning, bits, list(dict.fromkeys(notes))


def _disagreements(settings: SweepSettings, splits: Sequence[SplitTask], predictions: pd.DataFrame) -> pd.DataFrame:
    """`choose.disagreements` of [CLS] and mean, for every task with classes and both readouts."""
    parts = [pd.DataFrame(columns=["task", *DISAGREEMENTS])]
    for task in (split.task for split in splits):
        rows = judged_rows(predictions[predictions.task == task.name], settings.probes)
        if task.kind == "class" and {"cls", "mean"} <= set(rows[rows.control == "none"].readout):
            table = disagreements(rows, choose_layer(rows, "cls"), choose_layer(rows, "mean"), task.texts)
            parts.append(table.assign(task=task.name))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def _draw_maps(
    settings: SweepSettings, splits: Sequence[SplitTask], states: States, predictions: pd.DataFrame
) -> pd.DataFrame:
    """UMAPs of the test texts, [CLS] and mean at the layers that dev chooses: columns `MAP`."""
    parts = [pd.DataFrame(columns=MAP)]
    for split in splits:
        log.info("drawing the maps of %s", split.task.name)
        test = split.rows_of("test")
        if len(test) > MAPPED:
            test = np.sort(np.random.default_rng(settings.seed).choice(test, MAPPED, replace=False))
        rows = judged_rows(predictions[predictions.task == split.task.name], settings.probes)
        layers = stats.best_layers(rows).set_index("readout").layer
        labels = split.classes[split.y[test]] if split.task.kind == "class" else bands(split.y[test], 5)
        for readout in ("cls", "mean"):
            if readout not in layers or len(test) < SMALLEST:
                continue
            layer = int(layers[readout])
            if (layer, readout) == (0, "cls"):
                continue  # one vector for every text: no map
            vectors = states.cell(layer, readout)[split.state_rows[test]]
            positions, trustworthiness = compute_umap(vectors, seed=settings.seed)
            columns = {
                "task": split.task.name,
                "panel": f"{readout}, layer {layer} (trustworthiness {trustworthiness:.2f})",
                "x": positions[:, 0].round(3),
                "y": positions[:, 1].round(3),
                "label": labels,
                "text": [readable(split.task.texts[i]) for i in split.row_indices[test]],
                "row": split.row_indices[test],
            }
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts[1:] or parts, ignore_index=True)
