"""The trainings of an experiment, their frozen counterparts, and what the layers learn on the way.

1. `prepare_task` splits a task and leaves out what any readout lacks, so that all of them learn from the same texts.
2. `measure_fine_tuning` trains every readout, rate and seed, side by side on a CPU; beside them stand the probe on the
   frozen encoder and the commonest class. A training from [CLS] is probed on its way.
3. `measure_checkpoints` probes models that are named instead.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from clsprobe.analysis.corpus import Corpus
from clsprobe.analysis.fine_tuning.plan import Plan
from clsprobe.analysis.fine_tuning.tables import TUNED, check_orders, choose_rates, results_of
from clsprobe.analysis.fine_tuning.trajectory import Trajectory
from clsprobe.analysis.study import Measured, counted, short
from clsprobe.analysis.sweep.grid import SplitTask
from clsprobe.analysis.table import PREDICTIONS
from clsprobe.probes.base import STRENGTHS, predict_each
from clsprobe.probes.baseline import majority
from clsprobe.probes.encoders.describing import Description
from clsprobe.probes.encoders.devices import has_bfloat16
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.files import write_parquet
from clsprobe.probes.pooling import learned
from clsprobe.probes.registry import find_probe
from clsprobe.probes.tasks.split import split, take
from clsprobe.probes.tasks.task import Task
from clsprobe.probes.training.arrangements import arranged, present
from clsprobe.probes.training.fine_tune import Recipe, Tuned, fine_tune, schedule

if TYPE_CHECKING:
    from clsprobe.analysis.folder import RunFolder

log = logging.getLogger("clsprobe")

MOMENTS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)  # of the steps of a training
FOLLOWED = ("cls", "token[1]", "token[-1]", "mean")  # the readouts that are probed at these moments
PROBED = 1000  # training texts of these probes


@dataclass(frozen=True, eq=False)
class Experiment:
    """What all trainings have in common. longest: tokens of a text. precision: of the products."""

    plan: Plan
    encoder: Encoder
    tasks: list[SplitTask]
    longest: int
    precision: str

    def recipe(self, rate: float, seed: int) -> Recipe:
        """How one encoder is trained."""
        return Recipe(rate=rate, epochs=self.plan.epochs, seed=seed, lora=self.plan.lora)


def measure_fine_tuning(
    settings: Any, plan: Plan, corpus: Corpus, described: Description, folder: RunFolder | None
) -> Measured:
    """Tables predictions, results, steps and trajectory.

    settings: `FineTuning`'s. folder: where finished trainings are kept, so that an interrupted run goes on with them.
    """
    encoder = load_encoder(described, device=settings.device)
    longest = _longest(settings, encoder, plan.readouts)
    tasks = [prepare_task(settings, task, encoder, plan.readouts, plan.train_texts, longest) for task in corpus.tasks]
    experiment = Experiment(plan, encoder, tasks, longest, _precision(settings))
    log.info("probing the frozen encoder")
    frozen, converged = [], set()
    for task in tasks:
        for table, ended in _probe_frozen(settings, experiment, task):
            frozen.append(table)
            if ended:
                converged.add((table.task.iloc[0], table.readout.iloc[0]))
    key = [corpus.contents, described.digest, settings.settings()]
    tuned, steps = _train_all(experiment, key, folder)
    predictions = pd.concat([tuned, *frozen], ignore_index=True)
    n_train = {task.task.name: len(task.rows_of("train")) for task in tasks}
    log.info("probing a training from [CLS] on its way")
    trajectories = []
    for task in tasks:
        rate = choose_rates(predictions[predictions.task == task.task.name])["cls"].removeprefix(TUNED)
        trajectories.append(_follow_training(settings, experiment, task, float(rate)))
    tables = {
        "predictions": predictions,
        "results": results_of(predictions, n_train, converged),
        "steps": steps,
        "trajectory": pd.concat(trajectories, ignore_index=True),
    }
    return _measured(tables, corpus, tasks, encoder, experiment.precision)


def measure_checkpoints(
    settings: Any, corpus: Corpus, checkpoints: Mapping[str, Description], train_texts: int
) -> Measured:
    """Table trajectory: the models that are named, one after another.

    settings: `ReadingSettings` and a seed.
    """
    first = load_encoder(next(iter(checkpoints.values())), device=settings.device)
    longest = _longest(settings, first, ())
    tasks = [prepare_task(settings, task, first, FOLLOWED, train_texts, longest) for task in corpus.tasks]
    last = [Path(name).name for name in checkpoints]
    moments = last if len(set(last)) == len(last) else list(checkpoints)
    trajectories = []
    for task in tasks:
        follow = None
        for (name, described), moment in zip(checkpoints.items(), moments, strict=True):
            log.info("probing %s", name)
            encoder = load_encoder(described, device=settings.device)
            follow = follow or _trajectory(settings, task, encoder, longest)
            follow.look(moment, encoder)
        assert follow is not None
        trajectories.append(follow.table.assign(task=task.task.name))
    tables = {"trajectory": pd.concat(trajectories, ignore_index=True)}
    return _measured(tables, corpus, tasks, first, "float32")


def _measured(
    tables: dict[str, pd.DataFrame], corpus: Corpus, tasks: Sequence[SplitTask], encoder: Encoder, precision: str
) -> Measured:
    rows = {
        task.task.name: {side: len(task.rows_of(side)) for side in ("train", "dev", "test")}
        | {f"left out: {reason}": n for reason, n in task.left_out.items()}
        for task in tasks
    }
    model = {
        "model": encoder.name,
        "digest": encoder.description.digest,
        "device": encoder.device.type,
        "precision of the products": precision,
    }
    packages = ("torch", "transformers", "tokenizers", "numpy", "clsprobe")
    versions = {package: importlib.metadata.version(package) for package in packages}
    notes = [f"{short(task.task.name)}: {note}." for task in tasks for note in task.notes] + corpus.notes
    return Measured(tables, {"rows": rows, "read": corpus.rows, "model": model, "versions": versions}, notes)


def _longest(settings: Any, encoder: Encoder, readouts: Sequence[str]) -> int:
    """Tokens of a text, the same for every readout: one fewer where a new token comes in."""
    limit = min(settings.max_length or 10**9, encoder.description.max_length)
    return limit - any(name.startswith("new@") for name in readouts)


def _precision(settings: Any) -> str:
    if settings.dtype != "auto":
        return str(settings.dtype)
    return "bfloat16" if has_bfloat16(settings.device) else "float32"


# ------------------------------------------------------------------------------------------------------------- texts


def prepare_task(
    settings: Any, task: Task, encoder: Encoder, readouts: Sequence[str], train_texts: int, longest: int
) -> SplitTask:
    """Split, leave out what any readout lacks or no training text is labelled with, and cut train and dev.

    settings: `TaskSettings`, `ReadingSettings` and a seed. Raises InputError where too few texts are left.
    """
    read = encoder.tokenize(task.texts, longest)
    parted = split(task, seed=settings.seed, allow_overlap=settings.allow_overlap, tokens=read.digests())
    used, left_out = parted.side != "", dict(parted.left_out)
    long = read.full > longest
    if settings.long_rows == "error" and (used & long).any():
        what = f"{int((used & long).sum()):,} texts exceed {longest} tokens"
        raise InputError("--long-rows error", what, "Pass --long-rows truncate or drop")
    if settings.long_rows == "drop" and (lost := int((used & long).sum())):
        left_out["too long"] = lost
        used &= ~long
    for readout in readouts:
        readable = present(encoder, readout, task.texts, longest)
        if lost := int((used & ~readable).sum()):
            left_out[f"too short for {readout}"] = lost
            used &= readable
    chosen = []
    for side, most in (("train", train_texts), ("dev", max(train_texts // 2, 100)), ("test", len(used))):
        rows = np.flatnonzero(used & (parted.side == side))
        of_side = replace(
            task,
            texts=[task.texts[i] for i in rows.tolist()],
            y=task.y[rows],
            split=np.full(len(rows), "train"),
            groups=None,
            rows=rows,
        )
        kept = take(of_side, most, seed=settings.seed).rows
        assert kept is not None
        chosen.append(kept)
        if len(rows) > len(kept):
            left_out[f"beyond {most:,} of {side}"] = len(rows) - len(kept)
    known = np.isin(task.y, task.y[chosen[0]])
    rows = np.sort(np.concatenate(chosen))
    if lost := int((~known[rows]).sum()):
        left_out["a label that the training texts lack"] = lost
    rows = rows[known[rows]]
    classes, y = np.unique(task.y[rows].astype(str), return_inverse=True)
    side_of_row = parted.side[rows]
    if len(classes) < 2 or not {"train", "dev", "test"} <= set(side_of_row):
        raise InputError(task.name, "too few texts are left on one of the sides", f"Left out: {left_out}")
    return SplitTask(task, rows, np.arange(len(rows)), side_of_row, y, classes, left_out, list(parted.notes))


# ---------------------------------------------------------------------------------------------------------- trainings


def _train_all(
    experiment: Experiment, key: Sequence[Any], folder: RunFolder | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions and steps of every training; what an interrupted start has finished is read again."""
    plan, encoder = experiment.plan, experiment.encoder
    jobs = [
        (task, readout, rate, seed)
        for task in experiment.tasks
        for seed in plan.seeds
        for rate in plan.rates
        for readout in plan.readouts
    ]
    total = 0
    for task in experiment.tasks:
        for seed in plan.seeds:
            epochs = schedule(encoder, task.of("train")[0], experiment.recipe(0, seed), experiment.longest)
            total += sum(map(len, epochs)) * len(plan.rates) * len(plan.readouts)
    if folder is not None:
        folder.begin()  # only now: an error about texts or names leaves nothing behind
    kept_in = folder.unfinished() if folder else None
    log.info("training %s", counted(len(jobs), "encoder"))
    threads = torch.get_num_threads()
    side_by_side = _side_by_side(encoder, threads, len(jobs))
    one_share = partial(torch.set_num_threads, max(1, threads // side_by_side))
    trained: dict[int, tuple[pd.DataFrame, pd.DataFrame]] = {}
    with tqdm(total=total, desc="training", unit=" steps", delay=1, disable=None, leave=False) as bar:
        pool = ThreadPoolExecutor(side_by_side, initializer=one_share)
        try:
            begun = {pool.submit(_train, experiment, *job, key, kept_in, bar): i for i, job in enumerate(jobs)}
            for future in as_completed(begun):
                trained[begun[future]] = future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            pool.shutdown()
            torch.set_num_threads(threads)
    in_order = zip(*(trained[i] for i in range(len(jobs))), strict=True)
    predictions, steps = (pd.concat(tables, ignore_index=True) for tables in in_order)
    return predictions, check_orders(steps)


def _train(
    experiment: Experiment, task: SplitTask, readout: str, rate: float, seed: int, key: Sequence[Any],
    folder: Path | None, bar: tqdm,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Predictions and steps of one training, or of what is left of it. folder: where both are kept when it is done."""
    name = task.task.name
    of_training = [name, readout, rate, seed, experiment.precision, len(task.row_indices), *key]
    digest = sha256(json.dumps(of_training).encode()).hexdigest()[:16]
    if folder and (done := folder / f"{digest}.predictions.parquet").exists():
        steps = pd.read_parquet(folder / f"{digest}.steps.parquet")
        bar.update(len(steps))
        return pd.read_parquet(done), steps
    checkpoint = folder / f"{digest}.safetensors" if folder else None
    tuned = fine_tune(
        experiment.encoder,
        readout,
        *task.of("train"),
        experiment.recipe(rate, seed),
        dev=task.of("dev"),
        dtype=experiment.precision,
        max_length=experiment.longest,
        checkpoint=checkpoint,
        bar=bar,
    )
    evaluated = task.rows_of("dev", "test")
    texts = task.texts
    bits = tuned.log_proba([texts[i] for i in evaluated]) / np.log(2)
    cell = {"layer": len(experiment.encoder.points) - 1, "readout": readout, "probe": f"{TUNED}{rate:g}", "seed": seed}
    predictions = _predictions(task, experiment.encoder.name, evaluated, bits, control="none", **cell)
    steps = pd.DataFrame(tuned.log, columns=["step", "loss", "dev"])
    steps = steps.assign(task=name, readout=readout, rate=rate, seed=seed, order=tuned.order)
    if folder and checkpoint:
        write_parquet(folder / f"{digest}.steps.parquet", steps)
        write_parquet(folder / f"{digest}.predictions.parquet", predictions)
        checkpoint.unlink(missing_ok=True)
    return predictions, steps


def _probe_frozen(settings: Any, experiment: Experiment, task: SplitTask) -> Iterator[tuple[pd.DataFrame, bool]]:
    """The probe on every readout of the encoder as it is, and the commonest class; whether each has converged."""
    encoder, texts, seed = experiment.encoder, task.texts, experiment.plan.seeds[0]
    train, dev, evaluated = task.rows_of("train"), task.rows_of("dev"), task.rows_of("dev", "test")
    last = len(encoder.points) - 1
    commonest = majority(texts, task.y, train, dev).log2_proba
    assert commonest is not None
    cell = {"layer": -1, "readout": "none", "probe": "none", "seed": seed}
    yield _predictions(task, encoder.name, evaluated, commonest[0, 0][evaluated], control="majority", **cell), True
    probe_name = settings.probes[0]
    for name in experiment.plan.readouts:
        arranged_encoder, readout = arranged(encoder, name)
        limits: Any = {"max_length": experiment.longest, "long_rows": "truncate"}
        X = Extractor(arranged_encoder, [readout], layers=[last], **limits)(texts).cell(last, readout.name)[None]
        predicted = predict_each(
            learned(readout.name, encoder.description.dim) or find_probe(probe_name),
            X[:, train],
            task.y[train, None],
            X[:, evaluated],
            dev=(X[:, dev], task.y[dev, None]),
            strengths=STRENGTHS,
        )
        if predicted.failures:
            what = f"fails on {name}: {predicted.failures[0]}"
            raise InputError(f"--probes {probe_name}", what, "Name another probe")
        if predicted.log2_proba is None:
            raise InputError("--probes", f"{probe_name} gives no probabilities", "Name another probe")
        cell = {"layer": last, "readout": name, "probe": "frozen", "seed": seed}
        bits = predicted.log2_proba[0, 0]
        yield _predictions(task, encoder.name, evaluated, bits, control="none", **cell), bool(predicted.converged.all())


def _predictions(task: SplitTask, model: str, evaluated: np.ndarray, bits: np.ndarray, **cell: Any) -> pd.DataFrame:
    """A table of predictions of the texts `evaluated`. bits: (text, class) log2 of the probabilities of the first
    classes. cell: control, layer, readout, probe, seed."""
    log2_probabilities = np.full((len(evaluated), len(task.classes)), -np.inf)
    log2_probabilities[:, : bits.shape[1]] = bits
    columns = {
        "model": model,
        "task": task.task.name,
        **cell,
        "split": task.side[evaluated],
        "row": task.row_indices[evaluated],
        "label": task.classes[task.y[evaluated]],
        "predicted": task.classes[log2_probabilities.argmax(1)],
        "log2_probability": log2_probabilities[np.arange(len(evaluated)), task.y[evaluated]],
    }
    return pd.DataFrame(columns)[list(PREDICTIONS)]


def _side_by_side(encoder: Encoder, threads: int, jobs: int) -> int:
    """Trainings that run at once: on a CPU one a thread, as far as memory goes; threads that share one wait for each
    other."""
    if encoder.device.type != "cpu" or encoder.adapter.before:
        return 1
    needed = 24 * sum(p.numel() for p in encoder.model.parameters())  # bytes: weights, gradients, moments, work
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 << 30
    return int(max(1, min(threads, jobs, memory // 2 // needed)))


# --------------------------------------------------------------------------------------------------------- on the way


def _follow_training(settings: Any, experiment: Experiment, task: SplitTask, rate: float) -> pd.DataFrame:
    """The trajectory of a training from [CLS], with the rate that dev has chosen for it."""
    encoder, recipe = experiment.encoder, experiment.recipe(rate, experiment.plan.seeds[0])
    total = sum(map(len, schedule(encoder, task.of("train")[0], recipe, experiment.longest)))
    moments = {max(1, round(share * total)) if share else 0: f"{100 * share:g} %" for share in MOMENTS}
    follow = _trajectory(settings, task, encoder, experiment.longest)

    def watch(step: int, tuned: Tuned) -> None:
        follow.look(moments[step], tuned.encoder)

    fine_tune(
        encoder,
        "cls",
        *task.of("train"),
        recipe,
        dev=task.of("dev"),
        dtype=experiment.precision,
        max_length=experiment.longest,
        watched=moments,
        watch=watch,
    )
    return follow.table.assign(task=task.task.name)


def _trajectory(settings: Any, task: SplitTask, encoder: Encoder, longest: int) -> Trajectory:
    """Of at most `PROBED` training texts, drawn evenly: six grids take their time."""
    train = task.rows_of("train")
    kept = task.side != "train"
    kept[train[:: -(-len(train) // PROBED)]] = True
    rows, texts = np.flatnonzero(kept), task.texts
    readouts = [name for name in FOLLOWED if name != "cls" or encoder.cls_id in encoder.tokenize([""])[0].ids]
    return Trajectory(
        [texts[i] for i in rows.tolist()],
        task.y[rows],
        task.side[rows],
        readouts,
        layers=settings.layers,
        max_length=longest,
    )
