"""A whole sweep: the grid of probes, then the maps, bits and learning curves of the chosen cells, and boilerplate."""

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
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.rows import list_rows
from clsprobe.analysis.settings import SweepSettings
from clsprobe.analysis.study import counted
from clsprobe.analysis.sweep.boilerplate import BOILERPLATE, list_boilerplate
from clsprobe.analysis.sweep.choose import (
    DISAGREEMENTS,
    bands,
    disagreements,
    judged_probe,
    judged_rows,
    why_no_selectivity,
)
from clsprobe.analysis.sweep.grid import SplitTask, check_layer0, describe_rows, split_task, sweep, uses_seed
from clsprobe.analysis.sweep.halving import refit_halves
from clsprobe.analysis.sweep.information import BAG, INFORMATION, LEARNING, information
from clsprobe.analysis.sweep.maps import SMALLEST, compute_umap
from clsprobe.analysis.sweep.refits import REFITS
from clsprobe.analysis.sweep.scores import CONTROL_NAMES, TaskScores
from clsprobe.analysis.table import concat_categories
from clsprobe.analysis.verdict import MissingEvidence, short
from clsprobe.probes.extraction.states import States
from clsprobe.probes.linear import LogisticProbe, RidgeProbe
from clsprobe.probes.plugins import undo_changes
from clsprobe.probes.registry import find_probe
from clsprobe.probes.tasks.task import Task
from clsprobe.probes.tasks.texts import readable

log = logging.getLogger("clsprobe")

MAPPED = 1000  # texts of a UMAP
MAP = ["task", "panel", "x", "y", "label", "text", "row"]
DETAILS: dict[str, Sequence[str]] = {  # tables of the chosen cells and of the texts, and their columns
    "projection": MAP,
    "disagreements": [*DISAGREEMENTS, "task"],
    "learning": LEARNING,
    "information": INFORMATION,
    "boilerplate": BOILERPLATE,
}


def measure_sweep(
    settings: Any, inputs: Inputs, states: Sequence[States], *, refit: bool = True, details: bool = False
) -> Measured:
    """Tables results and predictions; refits too where comparisons of procedures follow; with details also `DETAILS`.

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
        timeout=settings.probe_timeout,
    )
    predictions = concat_categories(blocks)
    if inputs.vectors:
        inputs.vectors.check_unchanged()
    splits = [
        split_task(t, trained, settings.seed, drop=drop, allow_overlap=settings.allow_overlap) for t in inputs.tasks
    ]
    excluded = inputs.corpus.excluded
    rows = {split.task.name: describe_rows(split, excluded[split.task.name]) for split in splits}
    notes = check_layer0(results)
    notes += [f"{short(split.task.name)}: {note}." for split in splits for note in split.notes] + inputs.corpus.notes
    for split in splits:
        notes += [f"{short(split.task.name)}: {n:,} left out, {reason}." for reason, n in split.left_out.items()]
    notes += encoding_notes(trained)
    on_test = results[results.metric.isin(["accuracy", "r2"]) & (results.split == "test")]
    unsolved = on_test[~on_test.converged.astype(bool)]
    if len(unsolved):
        notes.append(f"{len(unsolved)} fits did not converge; they are flagged in the table.")
    tables = {"results": results, "predictions": predictions, "rows": _list_rows(settings, inputs, trained, drop)}
    if refit:
        tables["refits"], remarks = _refit(settings, inputs, states, predictions, drop, failures)
        notes += remarks
    measured = Measured(tables, collect_facts(settings, inputs, trained, rows), [*notes, *failures], failures)
    return _add_details(settings, splits, trained, measured) if details else measured


def _list_rows(settings: Any, inputs: Inputs, states: States, drop: np.ndarray | None) -> pd.DataFrame:
    """Where the rows of every task have gone under every seed (`analysis.rows`)."""
    parts = []
    for task in inputs.tasks:
        for seed in settings.every_seed:
            split = split_task(task, states, seed, drop=drop, allow_overlap=settings.allow_overlap)
            side = np.full(len(task.texts), "", "<U5")
            side[split.row_indices] = split.side
            parts.append(list_rows(inputs.corpus, task, side, split.reason, seed=seed))
    return concat_categories(parts)


def _refit(
    settings: Any,
    inputs: Inputs,
    states: Sequence[States],
    predictions: pd.DataFrame,
    drop: np.ndarray | None,
    failures: list[str],
) -> tuple[pd.DataFrame, list[str]]:
    """The refits of every task and seed (`halving.refit_halves`), of the judged probe where it is linear, and notes.

    A task that fails has no refits, and `failures` says so.
    """
    tables, notes = [pd.DataFrame(columns=[*REFITS])], []
    for task in inputs.tasks:
        try:
            rows = judged_rows(predictions[predictions.task == task.name], settings.probes)
        except MissingEvidence:
            continue  # every cell is among the failures
        name = judged_probe(rows, settings.probes)
        probe, scores = find_probe(name), TaskScores(rows)
        if not isinstance(probe, (LogisticProbe, RidgeProbe)):
            notes.append(
                f"{short(task.name)}: {name} is not refitted on halves of the training texts, which would take longer "
                "than the sweep: the intervals are about these probes as they were fitted."
            )
            continue
        log.info("refitting on halves of the training texts of %s", task.name)
        of_task = []
        try:
            for seed in settings.every_seed:
                task_split = split_task(task, states[0], seed, drop=drop, allow_overlap=settings.allow_overlap)
                of_seed = [part for part in states if uses_seed(part, seed)]
                with undo_changes():
                    of_task.append(refit_halves(task_split, of_seed, probe, scores, seed=seed))
        except Exception as error:  # the sweep must not be lost to any error
            failures.append(f"the refits of {task.name} failed: {type(error).__name__}: {error}")
        else:
            tables += of_task
    return pd.concat([table for table in tables[1:] if len(table)] or tables[:1], ignore_index=True), notes


def _add_details(settings: SweepSettings, splits: Sequence[SplitTask], states: States, measured: Measured) -> Measured:
    """The measurement with `DETAILS`. A detail that fails for a task lacks its rows, and the failures say so."""
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in DETAILS}
    notes, failures = [*measured.notes], [*measured.failures]
    for split in splits:
        try:
            rows = judged_rows(measured.rows("predictions", split.task.name), settings.probes)
        except MissingEvidence:
            continue  # every cell is among the failures
        if not split.task.textless:
            notes.append(_describe_control_task(split.task, measured.rows("results", split.task.name), rows))
        for what, measure in (
            ("disagreements", _disagreements),
            ("bits", _measure_bits),
            ("boilerplate", _find_boilerplate),
            # at last: the libraries that draw them stay in memory
            *([] if getattr(settings, "no_maps", False) else [("maps", _draw_maps)]),
        ):
            log.info("measuring the %s of %s", what, split.task.name)
            try:
                tables, remarks = measure(settings, split, states, rows)
            except Exception as error:  # the sweep must not be lost to any error
                failures.append(f"the {what} of {split.task.name} failed: {type(error).__name__}: {error}")
                remarks = failures[-1:]
            else:
                for name, table in tables.items():
                    parts[name].append(table)
            notes += remarks
    empty = {name: pd.DataFrame(columns=columns) for name, columns in DETAILS.items()}
    details = {name: pd.concat(parts[name] or [empty[name]], ignore_index=True) for name in DETAILS}
    return replace(measured, tables={**measured.tables, **details}, notes=[*dict.fromkeys(notes)], failures=failures)


def _describe_control_task(task: Task, results: pd.DataFrame, rows: pd.DataFrame) -> str:
    """A note on the texts of the control task, or on why there is no selectivity. Under several seeds of the first.

    results, rows: of this task, rows its judged predictions.
    """
    seed = results.seed.min()
    name = short(task.name) + (f" (seed {seed})" if results.seed.nunique() > 1 else "")
    if reason := why_no_selectivity(results[results.seed == seed]):
        return f"{name}: no selectivity, since {reason}."
    test = rows[(rows.split == "test") & (rows.seed == seed)].drop_duplicates(["control", "row"])
    every, real, drawn = (test[test.control == name] for name in ("none", "word_type_texts", "word_type"))
    note = (
        f"{name}: selectivity is measured on {len(real):,} of the {len(every):,} test texts, which hold exactly one "
        f"word of the control task's list"
    )
    if task.kind == "number":
        return f"{note}."
    drawn = drawn[drawn.row.isin(real.row)]
    shares = [part.label.astype(str).value_counts(normalize=True).max() for part in (real, drawn)]
    return f"{note}; the commonest label has {shares[0]:.3f} of these, in the control task {shares[1]:.3f}."


Details = tuple[dict[str, pd.DataFrame], list[str]]  # tables and notes


def _measure_bits(settings: SweepSettings, split: SplitTask, states: States, rows: pd.DataFrame) -> Details:
    """Learning curves and bits of the chosen cells (`information`). rows: the judged predictions of the task."""
    if split.task.kind == "number":
        return {}, [f"{short(split.task.name)}: numbers have no bits and no learning curve here."]
    readouts = [name for name in ("cls", "mean") if name in set(rows[rows.control == "none"].readout)]
    scores = TaskScores(rows)
    cells = [scores.choose(readout) for readout in readouts] or [scores.subject]
    if BAG in states.cells:
        cells.append(replace(scores.choose(None, "layer0_mean"), name=CONTROL_NAMES["layer0_mean"]))
    probe_name = judged_probe(rows, settings.probes)
    if not hasattr(probe := find_probe(probe_name), "predict_proba"):
        return {}, [f"{probe_name} gives no probabilities: nothing is told in bits."]
    with undo_changes():
        learning, bits = information(split, states, cells, probe, seed=settings.seed, timeout=settings.probe_timeout)
    return {"learning": learning, "information": bits}, []


def _disagreements(settings: SweepSettings, split: SplitTask, states: States, rows: pd.DataFrame) -> Details:
    """`choose.disagreements` of [CLS] and mean, for classes, if both were read. rows: the task's judged predictions."""
    if split.task.kind == "number" or not {"cls", "mean"} <= set(rows[rows.control == "none"].readout):
        return {}, []
    scores = TaskScores(rows)
    table = disagreements(rows, scores.choose("cls"), scores.choose("mean"), split.task.texts)
    return {"disagreements": table.assign(task=split.task.name)}, []


def _find_boilerplate(settings: SweepSettings, split: SplitTask, states: States, rows: pd.DataFrame) -> Details:
    """`list_boilerplate` of a task with texts and classes."""
    if split.task.textless or split.task.kind == "number":
        return {}, []
    return {"boilerplate": list_boilerplate(split)}, []


def _draw_maps(settings: SweepSettings, split: SplitTask, states: States, rows: pd.DataFrame) -> Details:
    """UMAPs of the test texts, [CLS] and mean at the layers that dev chooses. rows: judged predictions of the task."""
    test, parts = split.rows_of("test"), list[pd.DataFrame]()
    if len(test) > MAPPED:
        test = np.sort(np.random.default_rng(settings.seed).choice(test, MAPPED, replace=False))
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
    return ({"projection": pd.concat(parts, ignore_index=True)} if parts else {}), []
