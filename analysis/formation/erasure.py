"""Is the information at a place *used*? A property is erased there, and the rest of the network runs on.

1. A place is a layer and some of its tokens (`probes.interventions.changes.select_tokens`: ``cls``, ``content``).
2. LEACE (Belrose et al. 2023, the package concept-erasure) changes the vectors of a place as little as possible so that
   no linear probe predicts the property: in float64, on one-hot labels (integers would erase one direction), fitted on
   train. The leakage is the test accuracy of a probe trained on erased vectors.
3. Two controls remove random directions: with the *same variance* as LEACE removes, which is the reference, and the
   *same number* of directions, which changes the vectors far less.
4. The erased hidden states enter the next block, and the fixed probe reads the last layer, as after a knockout
   (`analysis.formation.knockout`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from tqdm import tqdm

from clsprobe.analysis import stats
from clsprobe.analysis.formation.knockout import Cell, fill_cells, predict_changed
from clsprobe.analysis.sweep.grid import SplitTask
from clsprobe.probes.base import STRENGTHS, predict_each
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.extraction.states import States
from clsprobe.probes.interventions.changes import alter_layer, select_tokens
from clsprobe.probes.interventions.passes import RecordedPass
from clsprobe.probes.interventions.replaying import replay

if TYPE_CHECKING:
    from concept_erasure import LeaceFitter
    from torch import Tensor

    from clsprobe.probes.encoders.tokenizing import Batch

KINDS = ("leace", "same variance", "same number")
TOLERANCE = 1e-9  # a correlation with the label below this is rounding


class Place(NamedTuple):
    """Tokens of a layer."""

    tokens: str
    layer: int


class Erasure(NamedTuple):
    """What is removed from a place: one of `KINDS`, or "none"."""

    kind: str
    tokens: str
    layer: int


KEY = [*Erasure._fields, "read at", "readout"]
PREDICTIONS = ("task", *KEY, "seed", "row", "label", "predicted")


@dataclass(frozen=True, eq=False)
class Eraser:
    """x -> x - (x - mean) @ out, in float64. mean: (dim,). out: (dim, dim)."""

    mean: Tensor
    out: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(..., dim) in the precision of x."""
        double = x.to(self.out)
        return (double - (double - self.mean) @ self.out).to(x)

    def mean_square_change(self, covariance: Tensor) -> float:
        """The mean squared change of vectors with this covariance (dim, dim)."""
        return float(torch.trace(self.out.T @ covariance @ self.out))


def make_erasers(fitter: LeaceFitter, *, seed: int = 0) -> dict[str, Eraser]:
    """LEACE and its two controls, by `KINDS`, from a float64 fitter.

    The last random direction of the same variance is removed in part, so that the variances agree up to rounding.
    """
    eraser = fitter.eraser
    leace = Eraser(fitter.mean_x, (eraser.proj_left @ eraser.proj_right).T)
    covariance = compute_covariance(fitter)
    number = int(torch.linalg.matrix_rank(leace.out, rtol=TOLERANCE)) if leace.out.abs().max() else 0
    noise = np.random.default_rng([seed, fitter.x_dim]).normal(size=(fitter.x_dim, fitter.x_dim))
    basis = torch.from_numpy(np.linalg.qr(noise)[0]).to(leace.out)  # (dim, direction), orthonormal
    variances = (basis * (covariance @ basis)).sum(0).clamp(min=0)
    cumulative = variances.cumsum(0)
    target = min(leace.mean_square_change(covariance), float(cumulative[-1]))
    share = ((target - (cumulative - variances)) / variances.clamp(min=torch.finfo(variances.dtype).tiny)).clamp(0, 1)
    first = basis[:, :number]
    return dict(
        zip(
            KINDS,
            (leace, Eraser(leace.mean, basis * share.sqrt() @ basis.T), Eraser(leace.mean, first @ first.T)),
            strict=True,
        )
    )


def compute_covariance(fitter: LeaceFitter) -> Tensor:
    """The covariance (dim, dim) of the vectors passed to a fitter."""
    assert fitter.sigma_xx_ is not None
    return (fitter.sigma_xx_ + fitter.sigma_xx_.T) / 2 / fitter.n


def new_fitter(dim: int, classes: int) -> LeaceFitter:
    """An empty float64 fitter that erases all linear information, even if the trace grows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit, in a part that is not used here
        from concept_erasure import LeaceFitter

    return LeaceFitter(dim, classes, dtype=torch.float64, svd_tol=TOLERANCE, constrain_cov_trace=False)


@dataclass(frozen=True, eq=False)
class FittedErasers:
    """The erasers of every place, fitted on train.

    erasers: place -> kind -> eraser. means: place -> (text, dim) mean over its tokens in every text; erasers
    are affine, so they act on the mean as on the tokens. moved: place -> kind -> the removed share of variance.
    """

    erasers: dict[Place, dict[str, Eraser]]
    means: dict[Place, np.ndarray]
    moved: dict[Place, dict[str, float]]


def fit_erasers(
    encoder: Encoder, split: SplitTask, places: Sequence[Place], *, max_length: int | None = None, seed: int = 0
) -> FittedErasers:
    """Fit the erasers of every place on the train texts of a task, on single tokens."""
    texts = [split.task.texts[i] for i in split.row_indices]
    dim, train = encoder.description.dim, split.side == "train"
    fitters = {place: new_fitter(dim, len(split.classes)) for place in places}
    means = {place: np.zeros((len(texts), dim)) for place in places}
    labels = torch.eye(len(split.classes), dtype=torch.float64)[split.y]
    last_layer = max(1, max(place.layer for place in places))  # layer 0 is recorded as the input of block 1
    with replay(encoder, texts, last_layer, max_length=max_length) as chunks:
        for chunk in chunks:
            for rows, recorded in zip(chunk.rows, chunk.recorded, strict=True):
                for place, fitter in fitters.items():
                    selected = select_tokens(place.tokens)(recorded.batch).cpu()
                    hidden = recorded.hidden[place.layer].cpu().double()
                    count = selected.sum(1, keepdim=True).clamp(min=1)
                    means[place][rows] = (hidden.where(selected[..., None], 0).sum(1) / count).numpy()
                    used = selected & torch.from_numpy(train[rows])[:, None]
                    if used.any():
                        fitter.update(hidden[used], labels[rows][:, None].expand(-1, selected.shape[1], -1)[used])
    erasers = {place: make_erasers(fitter, seed=seed) for place, fitter in fitters.items()}
    moved = {}
    for place, fitter in fitters.items():
        covariance = compute_covariance(fitter)
        total = max(float(torch.trace(covariance)), torch.finfo(torch.float64).tiny)
        moved[place] = {kind: eraser.mean_square_change(covariance) / total for kind, eraser in erasers[place].items()}
    return FittedErasers(erasers, means, moved)


def measure_leakage(split: SplitTask, fitted: FittedErasers) -> pd.DataFrame:
    """The test accuracy of a linear probe trained on erased vectors.

    Columns kind ("none" before erasure), tokens, layer, moved (share of the variance), value, low, high (accuracy).
    """
    from clsprobe.probes.linear import LogisticProbe

    train, dev, test = (split.rows_of(side) for side in ("train", "dev", "test"))
    table = []
    for place, means in fitted.means.items():
        erasers: dict[str, Eraser | None] = {"none": None, **fitted.erasers[place]}
        vectors = torch.from_numpy(means)
        X = np.stack([means if eraser is None else eraser(vectors).numpy() for eraser in erasers.values()])
        y = split.y[:, None]
        predictions = predict_each(
            LogisticProbe(), X[:, train], y[train], X[:, test], dev=(X[:, dev], y[dev]), strengths=STRENGTHS
        )
        for kind, codes in zip(erasers, predictions.codes[:, 0], strict=True):
            accuracy = (codes == split.y[test]).mean()
            low, high = stats.wilson(accuracy, len(test))
            table.append((kind, *place, fitted.moved[place].get(kind, 0.0), accuracy, float(low), float(high)))
    return pd.DataFrame(table, columns=["kind", "tokens", "layer", "moved", "value", "low", "high"])


def predict_erased(
    encoder: Encoder,
    split: SplitTask,
    states: States,
    probe: BaseEstimator,
    cell: Cell,
    places: Sequence[Place],
    *,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions of a cell's fixed probe after every erasure (columns `PREDICTIONS`), and `measure_leakage`.

    places: below the layer of the cell. Raises InputError if the encoder cannot be altered.
    """
    limit = states.source["max_length"]
    fitted = fit_erasers(encoder, split, places, max_length=limit, seed=seed)
    test = split.rows_of("test")
    texts = [split.task.texts[i] for i in split.row_indices[test]]
    width = states.width(cell[1])
    intact = Erasure("none", "", cell[0])
    erased = {intact: np.empty((len(texts), width), np.float32)}
    erased |= {Erasure(kind, *place): np.empty_like(erased[intact]) for place in places for kind in KINDS}
    with (
        replay(encoder, texts, cell[0], max_length=limit) as chunks,
        tqdm(total=len(texts) * len(erased), desc="erasing", unit=" passes", delay=1, disable=None, leave=False) as bar,
    ):
        for chunk in chunks:
            for erasure, vectors in erased.items():
                with _erase(encoder, fitted, erasure):
                    chunk.map(partial(_fill, {cell: vectors}, chunk.rows, erasure.layer))
                bar.update(sum(map(len, chunk.rows)))
    parts = []
    for erasure, codes in predict_changed(probe, split, states, cell, erased).items():
        key = dict(zip(KEY, (*erasure, *cell), strict=True))
        rows = {
            "row": split.row_indices[test],
            "label": split.classes[split.y[test]],
            "predicted": split.classes[codes],
        }
        parts.append(pd.DataFrame({"task": split.task.name, **key, "seed": seed, **rows}))
    leakage = measure_leakage(split, fitted)
    leakage.insert(0, "task", split.task.name)
    return pd.concat(parts, ignore_index=True)[list(PREDICTIONS)], leakage.assign(seed=seed)


def _erase(encoder: Encoder, fitted: FittedErasers, erasure: Erasure) -> AbstractContextManager[None]:
    if erasure.kind == "none":
        return nullcontext()
    eraser = fitted.erasers[Place(*erasure[1:])][erasure.kind]
    select = select_tokens(erasure.tokens)

    def change(hidden: Tensor, batch: Batch) -> Tensor:
        selected, changed = select(batch), hidden.clone()
        changed[selected] = eraser(hidden[selected])
        return changed

    return alter_layer(encoder, erasure.layer, change)


def _fill(
    vectors: dict[Cell, np.ndarray], rows: list[np.ndarray], layer: int, number: int, recorded: RecordedPass
) -> None:
    fill_cells(vectors, rows[number], recorded, layer, recorded.hidden[layer])


def compute_effects(predictions: pd.DataFrame) -> pd.DataFrame:
    """The probe's accuracy after every erasure, and its change from no erasure and from random directions.

    Columns task, kind, tokens, layer, value; effect, low, high: minus the accuracy without erasure; beyond, beyond low,
    beyond high: minus that of random directions of the same variance. 95 % intervals, paired over test texts.
    """
    table = []
    for task, rows in predictions.groupby("task", sort=False):
        hits = {Erasure(*key): _tabulate_hits(part) for key, part in rows.groupby(list(Erasure._fields), sort=False)}
        (intact,) = (correct for erasure, correct in hits.items() if erasure.kind == "none")
        for erasure, correct in hits.items():
            if erasure.kind == "none":
                continue
            control = hits[erasure._replace(kind="same variance")]
            table.append(
                (
                    task,
                    *erasure,
                    float(np.nanmean(correct)),
                    *stats.paired_difference(correct, intact),
                    *stats.paired_difference(correct, control),
                )
            )
    columns = ["value", "effect", "low", "high", "beyond", "beyond low", "beyond high"]
    return pd.DataFrame(table, columns=["task", *Erasure._fields, *columns])


def _tabulate_hits(rows: pd.DataFrame) -> pd.DataFrame:
    return stats.is_correct(rows).astype(float).set_axis(pd.MultiIndex.from_frame(rows[["seed", "row"]])).unstack("row")
