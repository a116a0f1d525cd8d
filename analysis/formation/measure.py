"""The sweep that chooses where [CLS] is read, then what cutting and erasing below that layer does to its probe."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.corpus import Inputs
from clsprobe.analysis.encoding import encode_inputs
from clsprobe.analysis.formation import attribution, erasure, knockout
from clsprobe.analysis.formation.attention import mixing
from clsprobe.analysis.formation.knockout import EVERYTHING, Cell
from clsprobe.analysis.study import Measured, short
from clsprobe.analysis.sweep.choose import choose_layer, judged_rows
from clsprobe.analysis.sweep.grid import SplitTask, features, split_task
from clsprobe.analysis.sweep.measure import measure_sweep
from clsprobe.probes.base import STRENGTHS
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.states import States
from clsprobe.probes.interventions.changes import check_changes
from clsprobe.probes.linear import LogisticProbe
from clsprobe.probes.registry import find_probe

log = logging.getLogger("clsprobe")

OTHERS = ("content->cls", "sep->cls", "cls->content")
EXPLAINED = 60  # test texts whose attention and attributions are computed
STRIPS = 8  # of them that are shown word by word


def measure_formation(settings: Any, inputs: Inputs) -> Measured:
    """The tables of a sweep; knockout, erasure, leakage (every seed); profiles, agreement, tokens (the first seed).

    settings: as of a sweep. Raises InputError for an encoder whose forward pass cannot be changed.
    """
    check_changes(load_encoder(inputs.description, device=settings.device))  # before anything that takes its time
    (states,) = encode_inputs(settings, inputs)
    swept = measure_sweep(settings, inputs, [states])
    encoder = load_encoder(inputs.description, device=settings.device, dtype=states.source["dtype"])
    drop = states.truncated if settings.long_rows == "drop" else None
    parts: dict[str, list[pd.DataFrame]] = {}
    notes = []
    for task in inputs.tasks:
        rows = judged_rows(swept.rows("predictions", task.name), settings.probes)
        cells = _cells(rows, inputs.readouts)
        log.info("cutting and erasing in %s; read: %s", task.name, ", ".join(f"{r} at layer {n}" for n, r in cells))
        for seed in settings.every_seed:
            asked = split_task(task, states, seed, drop=drop, allow_overlap=settings.allow_overlap)
            tables = _intervene(encoder, asked, states, settings.probes[0], cells, seed)
            if seed == settings.seed:
                explained, note = _explain(encoder, asked, states, cells[0], tables["knockout"], seed)
                tables |= explained
                notes += [f"{short(task.name)}: {note}"] if note else []
            for name, table in tables.items():
                parts.setdefault(name, []).append(table)
    tables = {name: pd.concat(each, ignore_index=True) for name, each in parts.items()}
    return replace(swept, tables={**swept.tables, **tables}, notes=[*swept.notes, *notes])


def _cells(rows: pd.DataFrame, readouts: Sequence[str]) -> list[Cell]:
    """[CLS] at the layer above 0 that dev chooses, then the other readouts of that layer. rows: of one task."""
    layer = choose_layer(rows[(rows.control != "none") | (rows.layer > 0)], "cls").layer
    return [(layer, name) for name in sorted(readouts, key=lambda name: name != "cls")]


def _intervene(
    encoder: Encoder, asked: SplitTask, states: States, probe_name: str, cells: list[Cell], seed: int
) -> dict[str, pd.DataFrame]:
    """Tables knockout, erasure and leakage of one task and seed."""
    probe, (layer, _) = find_probe(probe_name), cells[0]
    cuts = knockout.windows([EVERYTHING], layer)
    cuts += [knockout.Window(edges, at, at) for edges in OTHERS for at in range(1, layer + 1)]
    places = [erasure.Place("cls", at) for at in range(1, layer)]
    places += [erasure.Place("content", at) for at in range(layer)]
    cut = knockout.predictions_of(encoder, asked, states, probe, cells, cuts, seed=seed)
    erased, leakage = erasure.predictions_of(encoder, asked, states, probe, cells[0], places, seed=seed)
    return {"knockout": cut, "erasure": erased, "leakage": leakage}


def _explain(
    encoder: Encoder, asked: SplitTask, states: States, cell: Cell, cut: pd.DataFrame, seed: int
) -> tuple[dict[str, pd.DataFrame], str]:
    """Where [CLS] looks, which words move it, layer by layer; how that agrees with the knockout; and what to say
    where the encoder does not tell."""
    layer, task, note = cell[0], asked.task.name, ""
    test, limit = asked.rows_of("test"), states.source["max_length"]
    some = np.sort(np.random.default_rng(seed).permutation(len(test))[:EXPLAINED])
    texts = [asked.task.texts[i] for i in asked.row_indices[test[some]]]
    own = cut[(cut.layer == layer) & (cut.readout == "cls")]
    profiles = {"knockout": knockout.losses(own, EVERYTHING)[:, :layer]}  # rows in the order of the task, as test

    def spread(values: np.ndarray) -> np.ndarray:
        """(test text, layer) out of those of the texts looked at."""
        whole = np.full((len(test), layer), np.nan)
        whole[some] = values
        return whole

    def content(table: pd.DataFrame) -> np.ndarray:
        """(text, layer) sums over content tokens."""
        summed = table[~table.special].groupby(["text", "layer"]).score.sum().unstack("layer")
        return summed.reindex(range(len(texts)), fill_value=0.0).to_numpy()[:, -layer:]

    try:
        for method in ("attention", "value_zeroing"):
            table = mixing(encoder, texts, method, max_length=limit)
            profiles[method] = spread(content(table[table.layer <= layer]))
    except InputError as error:
        note = f"attention is not shown ({error.what})."
    X, X_dev = (features(states, [cell], asked.state_rows[asked.rows_of(side)]) for side in ("train", "dev"))
    y, y_dev = (asked.y[asked.rows_of(side), None] for side in ("train", "dev"))
    probe = LogisticProbe().fit_cells(X, y, dev=(X_dev, y_dev), strengths=STRENGTHS)
    each = np.stack([attribution.direction_of(probe, code) for code in range(len(asked.classes))])
    direction = each[asked.y[test[some]]]  # towards every text's own label

    def target(direction: np.ndarray, layer: int) -> attribution.Target:
        return attribution.Target(encoder, direction, layer=layer, max_length=limit)

    tables = [attribution.attribute(target(direction, at), texts, "feature_ablation") for at in range(1, layer + 1)]
    moved = content(pd.concat(tables).assign(score=lambda table: table.score.abs()))
    before = np.concatenate([np.zeros((len(texts), 1)), moved[:, :-1]], 1)
    profiles["attribution"] = spread(moved - before)  # layer 0 of [CLS] depends on no word
    means = [
        pd.DataFrame({"readout": kind, "layer": np.arange(1, layer + 1), **_profile(values)})
        for kind, values in profiles.items()
    ]
    found = {
        "profiles": pd.concat(means, ignore_index=True),
        "agreement": knockout.agreement(profiles),
        "tokens": attribution.attribute(target(direction[:STRIPS], layer), texts[:STRIPS], "integrated_gradients"),
    }
    labels = asked.classes[asked.y[test[some]]].astype(str)
    found["tokens"]["name"] = labels[found["tokens"].text]
    for table in found.values():
        table.insert(0, "task", task)
    return found, note


def _profile(values: np.ndarray) -> dict[str, np.ndarray]:
    """value, low, high (layer,): the mean over texts with its 95 % interval, as shares of the largest layer."""
    known = values[~np.isnan(values).any(1)]
    mean = known.mean(0)
    largest = np.abs(mean).max(initial=0) or 1.0
    half = stats.Z * known.std(0, ddof=1) / np.sqrt(len(known)) if len(known) > 1 else np.full(len(mean), np.nan)
    return {"value": mean / largest, "low": (mean - half) / largest, "high": (mean + half) / largest}
