"""Measures of the formation study: a sweep that chooses the layer of [CLS], then knockout and erasure below it, and the
same cuts in untrained encoders."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.corpus import Inputs
from clsprobe.analysis.encoding import encode_inputs
from clsprobe.analysis.formation import attribution, erasure, knockout, swaps
from clsprobe.analysis.formation.attention import measure_mixing
from clsprobe.analysis.formation.cuts import (
    DRAWS,
    EVERYTHING,
    INTACT,
    ONLY,
    RESTORED,
    Window,
    compute_losses,
    list_windows,
    split_halves,
)
from clsprobe.analysis.formation.knockout import Cell
from clsprobe.analysis.formation.reliability import label_properties
from clsprobe.analysis.formation.swap_effects import RELIABILITY, SWAPS
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.sources import MinimalPairs
from clsprobe.analysis.sweep.choose import judged_rows
from clsprobe.analysis.sweep.grid import SplitTask, features, split_task
from clsprobe.analysis.sweep.measure import measure_sweep
from clsprobe.analysis.sweep.scores import TaskScores
from clsprobe.analysis.verdict import MissingEvidence, short
from clsprobe.probes.base import STRENGTHS
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.states import States
from clsprobe.probes.interventions.changes import check_changes
from clsprobe.probes.interventions.passes import find_attention_outputs
from clsprobe.probes.linear import LogisticProbe
from clsprobe.probes.registry import find_probe
from clsprobe.probes.tasks.task import Task

log = logging.getLogger("clsprobe")

OTHERS = ("content->cls", "sep->cls", "cls->content")
EXPLAINED = 60  # test texts whose attention and attributions are computed
STRIPS = 8  # of these texts, those shown word by word; their scores are compared over baselines
COMPARED = 20  # of these texts, those whose layer profile is compared over baselines
SWAPPED = {  # tables of minimal pairs, and their columns
    "swaps": SWAPS,
    "swap_reliability": RELIABILITY,
    "twins": ("pair", "change", "scores", "complete", "task", "lemma"),
}
TWINS = 24  # minimal pairs whose differing words are attributed


def measure_formation(settings: Any, inputs: Inputs) -> Measured:
    """The tables of a sweep; knockout, retrained, refitted, erasure, leakage, reliability (every seed); profiles,
    agreement, baselines, tokens, swaps, swap_reliability, twins (the first seed).

    settings: those of the study. Raises InputError for an encoder whose forward pass cannot be changed.
    """
    check_changes(load_encoder(inputs.description, device=settings.device))  # before anything slow
    (states,) = encode_inputs(settings, inputs)
    sweep = measure_sweep(settings, inputs, [states], refit=False)
    encoder = load_encoder(inputs.description, device=settings.device, dtype=states.source["dtype"])
    drop = states.truncated if settings.long_rows == "drop" else None
    parts: dict[str, list[pd.DataFrame]] = {}
    cut: dict[str, list[tuple[int, SplitTask]]] = {}  # task -> layer and split, of every seed
    notes, failures = [*sweep.notes], [*sweep.failures]
    if find_attention_outputs(encoder) is None:
        kind = encoder.description.model_type
        notes.append(
            f"What attention wrote for [CLS] could not be restored: the blocks of model_type '{kind}' have no module "
            "of a known name that ends their attention."
        )
    for task in inputs.tasks:
        try:
            rows = judged_rows(sweep.rows("predictions", task.name), settings.probes)
            cells = _cells(rows, inputs.readouts)
        except MissingEvidence:
            continue  # every cell is among the failures
        log.info("cutting and erasing in %s; read: %s", task.name, ", ".join(f"{r} at layer {n}" for n, r in cells))
        pairs = settings.minimal_pairs.get(task.name)
        with _go_on(f"the interventions in {task.name}", notes, failures):
            of_task, splits = dict[str, list[pd.DataFrame]](), list[tuple[int, SplitTask]]()
            other_labels = _find_other_labels(task, inputs.tasks, pairs)
            for seed in settings.every_seed:
                split = split_task(task, states, seed, drop=drop, allow_overlap=settings.allow_overlap)
                splits.append((cells[0][0], split))
                tables = _intervene(encoder, split, states, settings.probes[0], cells, seed)
                tables |= _erase(encoder, split, states, settings.probes[0], cells[0], other_labels, seed)
                if seed == settings.seed:
                    explained, note = _explain(encoder, split, states, cells[0], tables["knockout"], seed)
                    tables |= explained
                    notes += [f"{short(task.name)}: {note}"] if note else []
                for name, table in tables.items():
                    of_task.setdefault(name, []).append(table)
            cut[task.name] = splits
            _extend(parts, of_task)
        with _go_on(f"the swaps in {task.name}", notes, failures):
            split = split_task(task, states, settings.seed, drop=drop, allow_overlap=settings.allow_overlap)
            swapped, note = _swap(encoder, split, states, pairs, cells[0], settings.seed)
            notes += [f"{short(task.name)}: {note}"] if note else []
            _extend(parts, {name: [table] for name, table in swapped.items()})
    with _go_on("the cuts in untrained encoders", notes, failures):
        _extend(parts, _cut_untrained(settings, inputs, states, cut))
    measured = {
        name: pd.concat([block for block in blocks if len(block)] or blocks[:1], ignore_index=True)
        for name, blocks in parts.items()
        if blocks
    }
    return replace(sweep, tables={**sweep.tables, **measured}, notes=notes, failures=failures)


@contextmanager
def _go_on(what: str, notes: list[str], failures: list[str]) -> Iterator[None]:
    """Whatever fails in the block is a failure and a note: what else was measured must not be lost to any error."""
    try:
        yield
    except Exception as error:
        failures.append(f"{what} failed: {type(error).__name__}: {error}")
        notes.append(f"{failures[-1]}.")


def _extend(parts: dict[str, list[pd.DataFrame]], tables: Mapping[str, Sequence[pd.DataFrame]]) -> None:
    """Add blocks of tables, by name, to `parts`."""
    for name, blocks in tables.items():
        parts.setdefault(name, []).extend(blocks)


def _cells(rows: pd.DataFrame, readouts: Sequence[str]) -> list[Cell]:
    """[CLS] at the layer above 0 that dev chooses, then the other readouts of that layer. rows: one task."""
    layer = TaskScores(rows[(rows.control != "none") | (rows.layer > 0)]).choose("cls").layer
    return [(layer, name) for name in sorted(readouts, key=lambda name: name != "cls")]


def _intervene(
    encoder: Encoder, split: SplitTask, states: States, probe_name: str, cells: list[Cell], seed: int
) -> dict[str, pd.DataFrame]:
    """Tables knockout, retrained and refitted of one task and seed."""
    probe, (layer, _) = find_probe(probe_name), cells[0]
    blocks = [(block, block) for block in range(1, layer + 1)]
    spans = dict.fromkeys([*blocks, *split_halves(layer)] if layer > 1 else blocks)
    cuts = [Window(EVERYTHING, *span) for span in dict.fromkeys([*spans, (1, layer)])]
    cuts += [Window(edges, *block) for edges in OTHERS for block in blocks]
    readouts = [name for _, name in cells]
    predictions = knockout.predict_cut(encoder, split, states, probe, layer, readouts, cuts, seed=seed)
    windows = [INTACT, *list_windows([EVERYTHING, ONLY], layer)]
    if find_attention_outputs(encoder) is not None:
        windows += [Window(RESTORED, *span) for span in spans]
    retrained, refitted = knockout.predict_retrained(
        encoder, split, probe, layer, windows, refit=True, max_length=states.source["max_length"], seed=seed
    )
    return {"knockout": predictions, "retrained": retrained, "refitted": refitted}


def _erase(
    encoder: Encoder,
    split: SplitTask,
    states: States,
    probe_name: str,
    cell: Cell,
    other_labels: Mapping[str, Mapping[str, str]],
    seed: int,
) -> dict[str, pd.DataFrame]:
    """Tables erasure, leakage and reliability of one task and seed."""
    places = [erasure.Place("cls", layer) for layer in range(1, cell[0])]
    places += [erasure.Place("content", layer) for layer in range(cell[0])]
    properties = label_properties(split, other_labels)
    return erasure.measure_erasure(encoder, split, states, find_probe(probe_name), cell, places, properties, seed=seed)


def _find_other_labels(task: Task, tasks: Sequence[Task], pairs: MinimalPairs | None) -> dict[str, Mapping[str, str]]:
    """Other property -> text -> label: the other tasks of the run, and those that the source of a task knows."""
    labels: dict[str, Mapping[str, str]] = {
        other.name: dict(zip(other.texts, other.y.astype(str).tolist(), strict=True))
        for other in tasks
        if other is not task
    }
    return labels | dict(pairs.other_labels if pairs else {})


def _cut_untrained(
    settings: Any, inputs: Inputs, states: States, cut: Mapping[str, Sequence[tuple[int, SplitTask]]]
) -> dict[str, list[pd.DataFrame]]:
    """The rows of the tables retrained and refitted for untrained encoders.

    These are read intact, cut off in all blocks and in either half, and open in either half alone.

    cut: task -> the layer where [CLS] is read, and the split of every seed. There are as many draws as seeds, at least
    `DRAWS`; each has the split of one seed, in turn.
    """
    retrained, refitted = [], []
    for number in range(max(DRAWS, settings.seeds)):
        draw, turn = settings.seed + number, number % settings.seeds
        log.info("cutting in an untrained encoder (seed %s)", draw)
        encoder = load_encoder(inputs.description, device=settings.device, dtype=states.source["dtype"], untrained=draw)
        for splits in cut.values():
            layer, split = splits[turn]
            if layer < 2:
                continue  # no halves
            spans = [(1, layer), *split_halves(layer)]
            windows = [INTACT, *(Window(kind, *span) for kind in (EVERYTHING, ONLY) for span in spans)]
            predictions, scores = knockout.predict_retrained(
                encoder, split, find_probe(settings.probes[0]), layer, windows, refit=True,
                max_length=states.source["max_length"], draw=draw, seed=settings.seed + turn,
            )  # fmt: skip
            retrained.append(predictions)
            refitted.append(scores)
    return {"retrained": retrained, "refitted": refitted}


def _explain(
    encoder: Encoder, split: SplitTask, states: States, cell: Cell, cut: pd.DataFrame, seed: int
) -> tuple[dict[str, pd.DataFrame], str]:
    """Attention and attribution profiles over the layers, their agreement with the shift of the fixed probe, and
    a note if the encoder gives no attention weights."""
    layer, task, note = cell[0], split.task.name, ""
    test, limit = split.rows_of("test"), states.source["max_length"]
    sample = np.sort(np.random.default_rng(seed).permutation(len(test))[:EXPLAINED])
    texts = [split.task.texts[i] for i in split.row_indices[test[sample]]]
    cls_predictions = cut[(cut.layer == layer) & (cut.readout == "cls")]
    losses = compute_losses(cls_predictions, EVERYTHING)  # rows in the order of the task, as test
    profiles = {"shift": losses[:, :layer]}

    def spread_rows(values: np.ndarray) -> np.ndarray:
        """(test text, layer), NaN for texts outside the sample."""
        values_by_text = np.full((len(test), layer), np.nan)
        values_by_text[sample] = values
        return values_by_text

    def sum_content(table: pd.DataFrame) -> np.ndarray:
        """(text, layer) sums over content tokens."""
        summed = table[~table.special].groupby(["text", "layer"]).score.sum().unstack("layer")
        return summed.reindex(range(len(texts)), fill_value=0.0).to_numpy()[:, -layer:]

    try:
        for method in ("attention", "value_zeroing"):
            table = measure_mixing(encoder, texts, method, max_length=limit)
            profiles[method] = spread_rows(sum_content(table[table.layer <= layer]))
    except InputError as error:
        note = f"attention is not shown ({error.what})."
    probe = _fit_linear(split, states, cell)
    directions = np.stack([attribution.compute_direction(probe, code) for code in range(len(split.classes))])
    direction = directions[split.y[test[sample]]]  # towards the text's own label

    def attribute(count: int, layer: int, baseline: str, method: str) -> pd.DataFrame:
        target = attribution.Target(encoder, direction[:count], layer=layer, baseline=baseline, max_length=limit)
        return attribution.attribute(target, texts[:count], method)

    def profile_attribution(count: int, baseline: str) -> np.ndarray:
        """(text, layer) by how much more than one layer below the words move [CLS] along the probe's direction."""
        tables = [attribute(count, n, baseline, "feature_ablation") for n in range(1, layer + 1)]
        magnitudes = sum_content(pd.concat(tables).assign(score=lambda table: table.score.abs()))[:count]
        return np.diff(magnitudes, prepend=0.0)  # [CLS] of layer 0 depends on no word

    attributed = profile_attribution(len(texts), attribution.BASELINES[0])
    profiles["attribution"] = spread_rows(attributed)
    tokens = {name: attribute(STRIPS, layer, name, "integrated_gradients") for name in attribution.BASELINES}
    others = {name: profile_attribution(COMPARED, name) for name in attribution.BASELINES[1:]}
    means = [
        pd.DataFrame({"readout": kind, "layer": np.arange(1, layer + 1), **_profile(values)})
        for kind, values in profiles.items()
    ]
    explained = {
        "profiles": pd.concat(means, ignore_index=True),
        "agreement": knockout.measure_agreement(profiles),
        "baselines": _compare_baselines(tokens, {attribution.BASELINES[0]: attributed[:COMPARED], **others}),
        "tokens": tokens[attribution.BASELINES[0]],
    }
    labels = split.classes[split.y[test[sample]]].astype(str)
    explained["tokens"]["name"] = labels[explained["tokens"].text]
    for table in explained.values():
        table.insert(0, "task", task)
    return explained, note


def _fit_linear(split: SplitTask, states: States, cell: Cell) -> LogisticProbe:
    """The linear probe of a cell, whose direction attribution follows."""
    (X, y), (X_dev, y_dev) = (
        (features(states, [cell], split.state_rows[rows]), split.y[rows, None])
        for rows in (split.rows_of("train"), split.rows_of("dev"))
    )
    return LogisticProbe().fit_cells(X, y, dev=(X_dev, y_dev), strengths=STRENGTHS)


def _compare_baselines(tokens: Mapping[str, pd.DataFrame], profiles: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """How far attribution depends on its baseline: the agreement of every baseline with the first.

    tokens: baseline -> scores of the same texts. profiles: baseline -> (text, layer). Columns baseline; incomplete,
    texts (how many texts' scores miss the change of F, of how many); words, words low, words high: the mean rank
    correlation of the scores within a text; layers, layers low, layers high: that of the profiles.
    """
    first, *others = tokens
    layers = knockout.measure_agreement(profiles).set_index(["one", "other"])
    table = []
    for baseline, scores in tokens.items():
        by_text = scores.groupby("text").complete.first()
        row: dict[str, Any] = {"baseline": baseline, "incomplete": int((~by_text).sum()), "texts": len(by_text)}
        if baseline in others:
            correlation = attribution.measure_agreement(tokens[first], scores).correlation.dropna().to_numpy()
            low, high = np.clip(stats.mean_interval(correlation), -1, 1) if len(correlation) > 1 else (np.nan, np.nan)
            row |= {"words": correlation.mean() if len(correlation) else np.nan, "words low": low, "words high": high}
            row |= {f"layers{end}": layers.loc[(first, baseline), name] for end, name in _AGREEMENT.items()}
        table.append(row)
    return pd.DataFrame(table)


_AGREEMENT = {"": "correlation", " low": "low", " high": "high"}


def _swap(
    encoder: Encoder, split: SplitTask, states: States, pairs: MinimalPairs | None, cell: Cell, seed: int
) -> tuple[dict[str, pd.DataFrame], str]:
    """Tables swaps, swap_reliability and twins of one task, empty ones with a note if there is no pair to swap."""
    nothing = {name: pd.DataFrame(columns=[*columns]) for name, columns in SWAPPED.items()}
    if pairs is None:
        return nothing, "swaps are not shown, because its source makes no minimal pairs of this property."
    texts, limit = [text for side in ("train", "dev") for text in split.of(side)[0]], states.source["max_length"]
    chosen = swaps.choose_pairs(encoder, pairs, texts, max_length=limit)
    if not len(chosen.texts):
        return nothing, (
            "swaps are not shown, because there are no two minimal pairs of equal token count whose word with the "
            "label was in no training text."
        )
    layer, _ = cell
    probe, codes = _fit_linear(split, states, cell), [split.classes.tolist().index(label) for label in chosen.labels]
    direction = attribution.compute_direction(probe, codes[1], against=codes[0])
    attributed = np.sort(np.random.default_rng(seed).permutation(len(chosen.texts))[:TWINS])
    differing = swaps.find_differing_tokens(encoder, chosen)
    twins = attribution.compare_with_twins(
        attribution.Target(encoder, direction, layer=layer, max_length=limit),
        chosen.texts[attributed].tolist(),
        [differing[pair] for pair in attributed],
    )
    vectors = swaps.compute_swapped_vectors(encoder, chosen, layer)
    return {
        "swaps": swaps.measure_swaps(split, states, chosen, vectors, layer, seed=seed),
        "swap_reliability": swaps.measure_reliability(split, states, pairs, chosen, vectors, layer, seed=seed),
        "twins": twins.assign(task=split.task.name, pair=attributed, lemma=chosen.lemmas[attributed].astype(str)),
    }, ""


def _profile(values: np.ndarray) -> dict[str, np.ndarray]:
    """value, low, high (layer,): the mean over texts with its 95 % interval, as shares of the largest layer."""
    known = values[~np.isnan(values).any(1)]
    mean = known.mean(0)
    largest = np.abs(mean).max(initial=0) or 1.0
    half = stats.Z * known.std(0, ddof=1) / np.sqrt(len(known)) if len(known) > 1 else np.full(len(mean), np.nan)
    return {"value": mean / largest, "low": (mean - half) / largest, "high": (mean + half) / largest}
