"""Checks of a sweep and estimates of its cost, before torch is imported."""

from __future__ import annotations

from typing import Any

from clsprobe.analysis.corpus import Inputs
from clsprobe.analysis.settings import DEFAULT_PROBES, ProbeSettings
from clsprobe.analysis.study import counted
from clsprobe.probes.errors import InputError
from clsprobe.probes.registry import PROBES, choose_probes, find_probe
from clsprobe.probes.tasks.split import split
from clsprobe.probes.tasks.task import Task

BASELINES = ("majority", "length", "bag_of_words", "layer0_mean", "untrained")  # of a claim to tell more than any
FLOPS, VALUES = 1.2e11, 4e6  # per second on two cores: of the encoder; features through a probe
CANDIDATES = 4  # layers, or cells of untrained encoders, among which a half of the training texts chooses
HALVES = 2.5  # what all halves of a cell take, in fits of the whole


def check_probes(settings: ProbeSettings) -> None:
    """Raise InputError where no probe is named, or an unknown one."""
    if not settings.probes:
        raise InputError("--probes", "no probe is named", "Name one, such as logistic")
    for name in settings.probes:
        PROBES.full_name(name)


def check_tasks(settings: Any, inputs: Inputs) -> None:
    """Raise InputError where a task cannot be split under every seed, or no probe reads its labels.

    settings: `ProbeSettings` and `TaskSettings`.
    """
    for task in inputs.tasks:
        tokens = None if inputs.vector_ids is None else inputs.vector_ids[task.rows]
        for seed in settings.every_seed:
            split(task, seed=seed, allow_overlap=settings.allow_overlap, tokens=tokens)
        probes_of(task, settings.probes)
        pooled = [name for name in inputs.readouts if name.startswith("attention")]
        if task.kind == "number" and pooled:
            what = f"learns its pooling from classes, and {task.name} has numbers"
            raise InputError(pooled[0], what, "Leave this readout out, or the task")


def probes_of(task: Task, names: tuple[str, ...]) -> list[str]:
    """The named probes that read a task; InputError where none does. The defaults are not loaded for this."""
    if names == tuple(DEFAULT_PROBES.values()):
        return [DEFAULT_PROBES[task.kind]]
    return [*choose_probes({name: find_probe(name) for name in names}, task)]


def describe_sweep(inputs: Inputs, *, probes: tuple[str, ...] = (), encoders: int = 1) -> list[str]:
    """Sentences: the rows of a sweep, rough figures for time (two cores) and disk. encoders: trained and untrained."""
    sentences = [f"{task.name}: {len(task.texts):,} texts, {_labels(task)}" for task in inputs.tasks]
    size = f"{counted(len(inputs.layers), 'layer')} x {counted(len(inputs.readouts), 'readout')}"
    cells = len(inputs.layers) * len(inputs.readouts)
    fits = sum(len(task.texts) * len(probes_of(task, probes) if probes else ()) for task in inputs.tasks) * cells
    if inputs.description is None:
        assert inputs.vectors is not None
        rows, dim = inputs.vectors.shape
        sentences.append(f"{counted(rows, 'vector')} of {dim:,} dimensions from {inputs.vectors.name}, {size}")
        return [*sentences, f"about {max(fits * dim / VALUES / 60, 0.5):.1f} minutes on two cores"]
    texts, dim = inputs.corpus.texts, inputs.description.dim
    tokens = sum(len(text) for text in texts) / 4 + 2 * len(texts)
    flops = 24 * inputs.description.layers * dim**2 * tokens * encoders
    refits = fits / max(cells, 1) * min(len(inputs.layers), CANDIDATES) * (len(inputs.readouts) + encoders - 1)
    minutes = (flops / FLOPS + (fits * encoders + HALVES * refits) * dim / VALUES) / 60
    disk = cells * len(texts) * dim * 4 * encoders / 1e9
    sentences.append(f"{counted(len(texts), 'distinct text')}, {inputs.description.name}, {size}")
    return [*sentences, f"about {max(minutes, 0.5):.1f} minutes on two cores, {disk:.2f} GB of vectors on disk"]


def _labels(task: Task) -> str:
    if task.kind == "class":
        return f"{len(set(task.y))} classes"
    return f"numbers from {task.y.min():g} to {task.y.max():g}"
