"""The trainings of a study, their frozen counterparts, and probes of the layers during training.

1. `prepare_task` splits a task and leaves out texts that any readout lacks, so that all are trained on the same texts.
2. `measure_fine_tuning` trains every readout, rate and seed, in parallel on a CPU; then, as long as dev chooses the
   smallest or largest rate of a readout, that readout with the next rate beyond it (`Plan.rates_beyond`). It adds the
   probe on the frozen encoder and the commonest class. One training from [CLS] is probed at several moments.
3. `measure_checkpoints` probes named models instead.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from clsprobe.analysis.corpus import Corpus, refuse_long
from clsprobe.analysis.fine_tuning.plan import Plan
from clsprobe.analysis.fine_tuning.tables import (
    TUNED,
    check_orders,
    choose_rates,
    diverged_rates,
    results_of,
)
from clsprobe.analysis.fine_tuning.trajectory import Trajectory
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.rows import list_rows
from clsprobe.analysis.study import counted
from clsprobe.analysis.sweep.grid import SplitTask
from clsprobe.analysis.table import PREDICTIONS, concat_categories, read_table
from clsprobe.analysis.verdict import short
from clsprobe.probes.base import STRENGTHS, predict_each
from clsprobe.probes.baseline import majority
from clsprobe.probes.encoders.describing import Description
from clsprobe.probes.encoders.devices import has_bfloat16
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.files import write_parquet
from clsprobe.probes.plugins import undo_changes
from clsprobe.probes.pooling import make_attention_probe
from clsprobe.probes.registry import find_probe
from clsprobe.probes.tasks.split import count_reasons, sample_rows, split
from clsprobe.probes.tasks.task import Task
from clsprobe.probes.training.arrangements import arrange_encoder, longest_text, texts_with_readout
from clsprobe.probes.training.fine_tune import Diverged, Recipe, Step, Tuned, fine_tune, schedule_batches

if TYPE_CHECKING:
    from clsprobe.analysis.folder import RunFolder

log = logging.getLogger("clsprobe")

MOMENTS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)  # of the steps of a training
TRAJECTORY_READOUTS = ("cls", "token[1]", "token[-1]", "mean")  # the readouts that are probed at these moments
PROBED = 1000  # training texts of these probes


@dataclass(frozen=True, eq=False)
class Setup:
    """The common settings of all trainings. max_length: tokens of a text. precision: of the products."""

    plan: Plan
    encoder: Encoder
    tasks: list[SplitTask]
    max_length: int
    precision: str

    def recipe(self, rate: float, seed: int) -> Recipe:
        """The recipe of one training."""
        return Recipe(rate=rate, epochs=self.plan.epochs, seed=seed, lora=self.plan.lora)


def measure_fine_tuning(
    settings: Any, plan: Plan, corpus: Corpus, described: Description, folder: RunFolder | None
) -> Measured:
    """Tables predictions, results, steps and trajectory.

    settings: `FineTuning`'s. folder: where finished trainings are saved, so that an interrupted run resumes with them.
    """
    encoder = load_encoder(described, device=settings.device)
    plan, refusals = _choose_readouts(encoder, plan, is_default="readouts" not in settings.model_fields_set)
    max_length = _max_length(settings, encoder, plan.readouts)
    tasks = [prepare_task(settings, t, encoder, plan.readouts, plan.train_texts, max_length) for t in corpus.tasks]
    setup = Setup(plan, encoder, tasks, max_length, _precision(settings))
    log.info("probing the frozen encoder")
    frozen, converged = [], set()
    for task in tasks:
        for table, has_converged in _probe_frozen(settings, setup, task):
            frozen.append(table)
            if has_converged:
                converged.add((table.task.iloc[0], table.readout.iloc[0]))
    tuned, steps = _train_all(setup, folder)
    predictions = pd.concat([tuned, *frozen], ignore_index=True)
    n_train = {task.task.name: len(task.rows_of("train")) for task in tasks}
    log.info("probing a training from [CLS] on its way")
    tables = {
        "predictions": predictions,
        "results": results_of(predictions, n_train, converged),
        "steps": steps,
    }
    trajectories, failures = [], []
    for task in tasks:
        rate = choose_rates(predictions[predictions.task == task.task.name])["cls"].removeprefix(TUNED)
        try:
            trajectories.append(_follow_training(settings, setup, task, float(rate)))
        except Exception as error:  # the trainings must not be lost to any error
            failures.append(f"the trajectory of {task.task.name} failed: {type(error).__name__}: {error}")
    if trajectories:
        tables["trajectory"] = pd.concat(trajectories, ignore_index=True)
    measured = _collect_measured(tables, corpus, tasks, encoder, setup.precision, settings.seed)
    notes = [*refusals, *measured.notes, *(f"{what}." for what in failures)]
    return replace(measured, notes=notes, failures=failures)


def _choose_readouts(encoder: Encoder, plan: Plan, *, is_default: bool) -> tuple[Plan, list[str]]:
    """The plan with the readouts that the encoder has, and notes on default ones whose tokens it cannot move.

    Raises InputError for others: before anything is trained.
    """
    readouts, notes = [], []
    for name in plan.readouts:
        try:
            arrange_encoder(encoder, name)
        except InputError as error:
            if not (is_default and "@" in name):
                raise
            notes.append(f"{name} is left out: {error.what}.")
        else:
            readouts.append(name)
    return replace(plan, readouts=readouts), notes


def measure_checkpoints(
    settings: Any, corpus: Corpus, checkpoints: Mapping[str, Description], train_texts: int
) -> Measured:
    """Table trajectory: the named models, in this order.

    settings: `ReadingSettings` and a seed.
    """
    first = load_encoder(next(iter(checkpoints.values())), device=settings.device)
    max_length = _max_length(settings, first, ())
    tasks = [prepare_task(settings, task, first, TRAJECTORY_READOUTS, train_texts, max_length) for task in corpus.tasks]
    folders = [Path(name).name for name in checkpoints]
    moments = folders if len(set(folders)) == len(folders) else list(checkpoints)
    trajectories = []
    for task in tasks:
        trajectory = None
        for (name, described), moment in zip(checkpoints.items(), moments, strict=True):
            log.info("probing %s", name)
            encoder = load_encoder(described, device=settings.device)
            trajectory = trajectory or _make_trajectory(settings, task, encoder, max_length)
            trajectory.measure(moment, encoder)
        assert trajectory is not None
        trajectories.append(trajectory.table.assign(task=task.task.name))
    tables = {"trajectory": pd.concat(trajectories, ignore_index=True)}
    return _collect_measured(tables, corpus, tasks, first, "float32", settings.seed)


def _collect_measured(
    tables: Mapping[str, pd.DataFrame],
    corpus: Corpus,
    tasks: Sequence[SplitTask],
    encoder: Encoder,
    precision: str,
    seed: int,
) -> Measured:
    rows = {
        task.task.name: {side: len(task.rows_of(side)) for side in ("train", "dev", "test")}
        | {f"left out: {reason}": len(places) for reason, places in corpus.excluded[task.task.name].items()}
        | {f"left out: {reason}": n for reason, n in task.left_out.items()}
        for task in tasks
    }
    listed = []
    for task in tasks:
        side = np.full(len(task.task.texts), "", "<U5")
        side[task.row_indices] = task.side
        listed.append(list_rows(corpus, task.task, side, task.reason, seed=seed))
    tables = {**tables, "rows": concat_categories(listed)}
    model = {
        "model": encoder.name,
        "digest": encoder.description.digest,
        "device": encoder.device.type,
        "precision of the products": precision,
    }
    packages = ("torch", "transformers", "tokenizers", "numpy", "clsprobe")
    versions = {package: importlib.metadata.version(package) for package in packages}
    notes = [f"{short(task.task.name)}: {note}." for task in tasks for note in task.notes] + corpus.notes
    texts = list(dict.fromkeys(text for task in tasks for text in task.task.texts))
    notes += encoder.notes_on(texts, encoder.tokenize(texts).digests())
    return Measured(tables, {"rows": rows, "read": corpus.rows, "model": model, "versions": versions}, notes)


def _max_length(settings: Any, encoder: Encoder, readouts: Sequence[str]) -> int:
    """Tokens of a text, the same for every readout: as many as all of them have positions for."""
    return min([encoder.description.limit(settings.max_length), *(longest_text(encoder, name) for name in readouts)])


def _precision(settings: Any) -> str:
    if settings.dtype != "auto":
        return str(settings.dtype)
    return "bfloat16" if has_bfloat16(settings.device) else "float32"


# ------------------------------------------------------------------------------------------------------------- texts


def prepare_task(
    settings: Any, task: Task, encoder: Encoder, readouts: Sequence[str], train_texts: int, max_length: int
) -> SplitTask:
    """Split; leave out texts that a readout lacks or whose label is not in train; limit train and dev.

    settings: `TaskSettings`, `ReadingSettings` and a seed. Raises InputError where too few texts are left.
    """
    tokenized = encoder.tokenize(task.texts, max_length)
    sides = split(task, seed=settings.seed, allow_overlap=settings.allow_overlap, tokens=tokenized.digests())
    used, reason = sides.side != "", sides.reason.copy()
    too_long = tokenized.full_lengths > max_length
    if settings.long_rows == "error" and (used & too_long).any():
        raise refuse_long(task, np.where(used, tokenized.full_lengths, 0), max_length)
    if settings.long_rows == "drop":
        reason[used & too_long] = "too long"
        used &= ~too_long
    for readout in readouts:
        readable = texts_with_readout(encoder, readout, task.texts, max_length)
        reason[used & ~readable] = f"too short for {readout}"
        used &= readable
    rows_by_side = []
    for side, limit in (("train", train_texts), ("dev", max(train_texts // 2, 100)), ("test", len(used))):
        rows = np.flatnonzero(used & (sides.side == side))
        of_side = replace(task.take(rows), split=np.full(len(rows), "train"), groups=None)
        drawn = rows[sample_rows(of_side, limit, seed=settings.seed)]
        rows_by_side.append(drawn)
        reason[np.setdiff1d(rows, drawn)] = f"beyond {limit:,} of {side}"
    known = np.isin(task.y, task.y[rows_by_side[0]])
    rows = np.sort(np.concatenate(rows_by_side))
    reason[rows[~known[rows]]] = "a label that the training texts lack"
    rows = rows[known[rows]]
    classes, y = np.unique(task.y[rows].astype(str), return_inverse=True)
    side_of_row = sides.side[rows]
    if len(classes) < 2 or not {"train", "dev", "test"} <= set(side_of_row):
        listed = "; ".join(f"{n:,} {why}" for why, n in count_reasons(reason).items()) or "none"
        raise InputError(task.name, "too few texts are left on one of the sides", f"Left out: {listed}")
    group, notes = sides.group[rows], list(sides.notes)
    return SplitTask(task, rows, np.arange(len(rows)), side_of_row, group, y, classes, reason, notes)


# ---------------------------------------------------------------------------------------------------------- trainings


class _Job(NamedTuple):
    """One training. task: the index of its task."""

    task: int
    readout: str
    rate: float
    seed: int


def _train_all(setup: Setup, folder: RunFolder | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions and steps of every training; those that an interrupted start finished are loaded.

    Raises InputError for a readout whose trainings have diverged at every rate.
    """
    plan, encoder = setup.plan, setup.encoder
    lengths = {
        (task, seed): sum(
            map(len, schedule_batches(encoder, split_task.of("train")[0], setup.recipe(0, seed), setup.max_length))
        )
        for task, split_task in enumerate(setup.tasks)
        for seed in plan.seeds
    }
    if folder is not None:
        folder.begin()  # only now: an error about texts or names leaves no files behind
    work = (folder.make_work_folder(), folder.digest) if folder else None
    jobs = [
        _Job(task, readout, rate, seed)
        for task in range(len(setup.tasks))
        for seed in plan.seeds
        for rate in plan.rates
        for readout in plan.readouts
    ]
    trained: dict[_Job, tuple[pd.DataFrame, pd.DataFrame]] = {}
    with tqdm(total=0, desc="training", unit=" steps", delay=1, disable=None, leave=False) as bar:
        while jobs:
            log.info("training %s", counted(len(jobs), "encoder"))
            bar.total = (bar.total or 0) + sum(lengths[job.task, job.seed] for job in jobs)
            trained |= _train_jobs(setup, jobs, work, bar)
            jobs = _continue_rates(setup, trained)
    predictions, steps = _collect_trained(trained.values())
    return predictions, check_orders(steps)


def _train_jobs(
    setup: Setup, jobs: Sequence[_Job], work: tuple[Path, str] | None, bar: tqdm
) -> dict[_Job, tuple[pd.DataFrame, pd.DataFrame]]:
    """Predictions and steps of some trainings, in their order, as many at a time as `_count_parallel` says."""
    threads = torch.get_num_threads()
    n_parallel = _count_parallel(setup.encoder, threads, len(jobs))
    set_threads = partial(torch.set_num_threads, max(1, threads // n_parallel))
    trained: dict[_Job, tuple[pd.DataFrame, pd.DataFrame]] = {}
    pool = ThreadPoolExecutor(n_parallel, initializer=set_threads)
    try:
        futures = {pool.submit(_train, setup, job, work, bar): job for job in jobs}
        for future in as_completed(futures):
            trained[futures[future]] = future.result()
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        pool.shutdown()
        torch.set_num_threads(threads)
    return {job: trained[job] for job in jobs}


def _continue_rates(setup: Setup, trained: Mapping[_Job, tuple[pd.DataFrame, pd.DataFrame]]) -> list[_Job]:
    """The trainings that are missing for a chosen rate to lie between two others. trained: all so far."""
    jobs = []
    for task in range(len(setup.tasks)):
        predictions, _ = _collect_trained([tables for job, tables in trained.items() if job.task == task])
        chosen = choose_rates(predictions)
        for readout in setup.plan.readouts:
            rates = {job.rate for job in trained if (job.task, job.readout) == (task, readout)}
            rate = float(chosen[readout].removeprefix(TUNED)) if readout in chosen else min(rates)
            beyond = [r for r in setup.plan.rates_beyond(rates, rate) if readout in chosen or r < rate]
            if readout not in chosen and not beyond:
                what = f"every training from {readout} has diverged"
                raise InputError(f"--rates {rate:g}", what, "Give smaller ones")
            jobs += [_Job(task, readout, r, seed) for r in beyond for seed in setup.plan.seeds]
    return jobs


def _collect_trained(tables: Iterable[tuple[pd.DataFrame, pd.DataFrame]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions and steps of many trainings, without the predictions at a rate at which any seed has diverged."""
    each_predictions, each_steps = zip(*tables, strict=True)
    steps = pd.concat(each_steps, ignore_index=True)
    predictions = pd.concat([table for table in each_predictions if len(table)] or each_predictions, ignore_index=True)
    diverged = [(task, readout, f"{TUNED}{rate:g}") for task, readout, rate in diverged_rates(steps)]
    trainings = pd.MultiIndex.from_frame(predictions[["task", "readout", "probe"]])
    return predictions[~trainings.isin(diverged)].reset_index(drop=True), steps


def _train(setup: Setup, job: _Job, work: tuple[Path, str] | None, bar: tqdm) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions and steps of one training, resumed where it was interrupted.

    One that diverges has no predictions, and the loss of its last step is NaN. work: the folder where both are saved,
    and the digest of the run, which covers everything that it reads.
    """
    task, saved = setup.tasks[job.task], None
    if work is not None:
        folder, run_digest = work
        identity = [run_digest, task.task.name, job.readout, job.rate, job.seed, setup.precision]
        saved = folder / sha256(json.dumps(identity).encode()).hexdigest()[:16]
        if (predictions_path := saved.with_suffix(".predictions.parquet")).exists():
            steps = read_table(saved.with_suffix(".steps.parquet"))
            bar.update(len(steps))
            return read_table(predictions_path), steps
    checkpoint = saved and saved.with_suffix(".safetensors")
    evaluated, texts = task.rows_of("dev", "test"), task.texts
    try:
        tuned = fine_tune(
            setup.encoder,
            job.readout,
            *task.of("train"),
            setup.recipe(job.rate, job.seed),
            dev=task.of("dev"),
            dtype=setup.precision,
            max_length=setup.max_length,
            checkpoint=checkpoint,
            bar=bar,
        )
        log2_proba = tuned.log_proba([texts[i] for i in evaluated]) / np.log(2)
        learned = tuned.log
    except Diverged as error:
        log.info("%s", error)
        tuned, evaluated = error.tuned, evaluated[:0]
        log2_proba = np.zeros((0, 1))
        learned = [*tuned.log, Step(len(tuned.log) + 1, np.nan, np.nan)]
    cell = {"readout": job.readout, "probe": f"{TUNED}{job.rate:g}", "seed": job.seed}
    layer = len(setup.encoder.points) - 1
    predictions = _tabulate(task, setup.encoder.name, evaluated, log2_proba, control="none", layer=layer, **cell)
    steps = pd.DataFrame(learned, columns=list(Step._fields))
    steps = steps.assign(task=task.task.name, readout=job.readout, rate=job.rate, seed=job.seed, order=tuned.order)
    if saved and checkpoint:
        write_parquet(saved.with_suffix(".steps.parquet"), steps)
        write_parquet(saved.with_suffix(".predictions.parquet"), predictions)
        checkpoint.unlink(missing_ok=True)
    return predictions, steps


def _probe_frozen(settings: Any, setup: Setup, task: SplitTask) -> Iterator[tuple[pd.DataFrame, bool]]:
    """Predictions on the frozen encoder, of the probe on every readout and the commonest class, with convergence."""
    encoder, texts, seed = setup.encoder, task.texts, setup.plan.seeds[0]
    train, dev, evaluated = task.rows_of("train"), task.rows_of("dev"), task.rows_of("dev", "test")
    last = len(encoder.points) - 1
    commonest = majority(texts, task.y, train, dev).log2_proba
    assert commonest is not None
    cell = {"layer": -1, "readout": "none", "probe": "none", "seed": seed}
    yield _tabulate(task, encoder.name, evaluated, commonest[0, 0][evaluated], control="majority", **cell), True
    probe_name = settings.probes[0]
    for name in setup.plan.readouts:
        arranged_encoder, readout = arrange_encoder(encoder, name)
        limits: Any = {"max_length": setup.max_length, "long_rows": "truncate"}
        X = Extractor(arranged_encoder, [readout], layers=[last], **limits)(texts).cell(last, readout.name)[None]
        probe = make_attention_probe(readout.name, encoder.description.dim) or find_probe(probe_name)
        with undo_changes():
            frozen = predict_each(
                probe,
                X[:, train],
                task.y[train, None],
                X[:, evaluated],
                dev=(X[:, dev], task.y[dev, None]),
                strengths=STRENGTHS,
                timeout=settings.probe_timeout,
            )
        if frozen.failures:
            what = f"fails on {name}: {frozen.failures[0]}"
            raise InputError(f"--probes {probe_name}", what, "Name another probe")
        if frozen.log2_proba is None:
            raise InputError("--probes", f"{probe_name} gives no probabilities", "Name another probe")
        cell = {"layer": last, "readout": name, "probe": "frozen", "seed": seed}
        table = _tabulate(task, encoder.name, evaluated, frozen.log2_proba[0, 0], control="none", **cell)
        yield table, bool(frozen.converged.all())


def _tabulate(task: SplitTask, model: str, evaluated: np.ndarray, log2_proba: np.ndarray, **cell: Any) -> pd.DataFrame:
    """A table of predictions of the texts `evaluated`. log2_proba: (text, class) of the first classes. cell: control,
    layer, readout, probe, seed."""
    log2_probabilities = np.full((len(evaluated), len(task.classes)), -np.inf)
    log2_probabilities[:, : log2_proba.shape[1]] = log2_proba
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


def _count_parallel(encoder: Encoder, threads: int, jobs: int) -> int:
    """Number of parallel trainings: on a CPU one per thread, as far as memory allows."""
    if encoder.device.type != "cpu" or encoder.adapter.before:
        return 1
    needed = 24 * sum(p.numel() for p in encoder.model.parameters())  # bytes: weights, gradients, moments, work
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 << 30
    return int(max(1, min(threads, jobs, memory // 2 // needed)))


# ---------------------------------------------------------------------------------------------------- trajectories


def _follow_training(settings: Any, setup: Setup, task: SplitTask, rate: float) -> pd.DataFrame:
    """The trajectory of a training from [CLS], with the rate that dev chooses for it."""
    encoder, recipe = setup.encoder, setup.recipe(rate, setup.plan.seeds[0])
    total = sum(map(len, schedule_batches(encoder, task.of("train")[0], recipe, setup.max_length)))
    moments = {max(1, round(share * total)) if share else 0: f"{100 * share:g} %" for share in MOMENTS}
    trajectory = _make_trajectory(settings, task, encoder, setup.max_length)

    def callback(step: int, tuned: Tuned) -> None:
        trajectory.measure(moments[step], tuned.encoder)

    fine_tune(
        encoder,
        "cls",
        *task.of("train"),
        recipe,
        dev=task.of("dev"),
        dtype=setup.precision,
        max_length=setup.max_length,
        callback_steps=moments,
        callback=callback,
    )
    return trajectory.table.assign(task=task.task.name)


def _make_trajectory(settings: Any, task: SplitTask, encoder: Encoder, max_length: int) -> Trajectory:
    """A Trajectory with at most `PROBED` training texts, evenly spaced: six grids take long."""
    train = task.rows_of("train")
    used = task.side != "train"
    used[train[:: -(-len(train) // PROBED)]] = True
    rows, texts = np.flatnonzero(used), task.texts
    has_cls = encoder.cls_id in encoder.tokenize([""])[0].ids
    readouts = [name for name in TRAJECTORY_READOUTS if name != "cls" or has_cls]
    return Trajectory(
        [texts[i] for i in rows.tolist()],
        task.y[rows],
        task.side[rows],
        readouts,
        layers=settings.layers,
        max_length=max_length,
    )
