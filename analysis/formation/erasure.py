"""Is what a place holds *used*? A property is erased there, and the rest of the network runs on.

1. A place is a layer and some of its tokens (`probes.interventions.changes.tokens_of`: ``cls``, ``content``).
2. LEACE (Belrose et al. 2023, the package concept-erasure) moves the vectors of a place as little as can be so that no
   linear probe tells the property any more: in float64, on one-hot labels (integers would erase one direction), fitted
   on train. What is left is measured on test by a probe trained on erased vectors: the leakage.
3. Two controls take out random directions: of the *same variance* as LEACE moves, by which it is judged, and the *same
   number* of directions, which moves the vectors far less.
4. The erased hidden states go into the next block, and the fixed probe is asked at the end, as after a cut
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
from clsprobe.analysis.formation.knockout import Cell, fill, read
from clsprobe.analysis.sweep.grid import SplitTask
from clsprobe.probes.base import STRENGTHS, predict_each
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.extraction.states import States
from clsprobe.probes.interventions.changes import altered, tokens_of
from clsprobe.probes.interventions.passes import Recorded
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
    """What is taken out of a place: one of `KINDS`, or "none"."""

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
        """(..., dim) in the precision that it came in."""
        wide = x.to(self.out)
        return (wide - (wide - self.mean) @ self.out).to(x)

    def moves(self, covariance: Tensor) -> float:
        """The mean square of how far it moves vectors of this covariance (dim, dim)."""
        return float(torch.trace(self.out.T @ covariance @ self.out))


def erasers_of(fitter: LeaceFitter, *, seed: int = 0) -> dict[str, Eraser]:
    """LEACE and its two controls, by `KINDS`, out of what a float64 fitter has seen.

    The last random direction of the same variance is taken out in part, so that the variance is the same to rounding.
    """
    found = fitter.eraser
    leace = Eraser(fitter.mean_x, (found.proj_left @ found.proj_right).T)
    covariance = covariance_of(fitter)
    number = int(torch.linalg.matrix_rank(leace.out, rtol=TOLERANCE)) if leace.out.abs().max() else 0
    noise = np.random.default_rng([seed, fitter.x_dim]).normal(size=(fitter.x_dim, fitter.x_dim))
    basis = torch.from_numpy(np.linalg.qr(noise)[0]).to(leace.out)  # (dim, direction), orthonormal
    along = (basis * (covariance @ basis)).sum(0).clamp(min=0)
    reached = along.cumsum(0)
    wanted = min(leace.moves(covariance), float(reached[-1]))
    share = ((wanted - (reached - along)) / along.clamp(min=torch.finfo(along.dtype).tiny)).clamp(0, 1)
    some = basis[:, :number]
    return dict(
        zip(
            KINDS,
            (leace, Eraser(leace.mean, basis * share.sqrt() @ basis.T), Eraser(leace.mean, some @ some.T)),
            strict=True,
        )
    )


def covariance_of(fitter: LeaceFitter) -> Tensor:
    """(dim, dim) of the vectors that a fitter has seen."""
    assert fitter.sigma_xx_ is not None
    return (fitter.sigma_xx_ + fitter.sigma_xx_.T) / 2 / fitter.n


def new_fitter(dim: int, classes: int) -> LeaceFitter:
    """An empty one: float64, nothing of the label left, whatever that does to the trace."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, in a part that we do not use
        from concept_erasure import LeaceFitter

    return LeaceFitter(dim, classes, dtype=torch.float64, svd_tol=TOLERANCE, constrain_cov_trace=False)


@dataclass(frozen=True, eq=False)
class Fitted:
    """What train has taught of every place.

    erasers: place -> kind -> eraser. means: place -> (text, dim) the mean of its tokens in every text, which an eraser
    moves as it moves each of them. moved: place -> kind -> the share of their variance.
    """

    erasers: dict[Place, dict[str, Eraser]]
    means: dict[Place, np.ndarray]
    moved: dict[Place, dict[str, float]]


def fit(
    encoder: Encoder, asked: SplitTask, places: Sequence[Place], *, max_length: int | None = None, seed: int = 0
) -> Fitted:
    """Fit the erasers of every place on the train texts of a task, every token of the place by itself."""
    texts = [asked.task.texts[i] for i in asked.row_indices]
    dim, train = encoder.description.dim, asked.side == "train"
    fitters = {place: new_fitter(dim, len(asked.classes)) for place in places}
    means = {place: np.zeros((len(texts), dim)) for place in places}
    labels = torch.eye(len(asked.classes), dtype=torch.float64)[asked.y]
    deepest = max(1, max(place.layer for place in places))  # layer 0 is seen on the way into block 1
    with replay(encoder, texts, deepest, max_length=max_length) as chunks:
        for chunk in chunks:
            for rows, recorded in zip(chunk.rows, chunk.recorded, strict=True):
                for place, fitter in fitters.items():
                    within = tokens_of(place.tokens)(recorded.batch).cpu()
                    hidden = recorded.hidden[place.layer].cpu().double()
                    count = within.sum(1, keepdim=True).clamp(min=1)
                    means[place][rows] = (hidden.where(within[..., None], 0).sum(1) / count).numpy()
                    learn = within & torch.from_numpy(train[rows])[:, None]
                    if learn.any():
                        fitter.update(hidden[learn], labels[rows][:, None].expand(-1, within.shape[1], -1)[learn])
    erasers = {place: erasers_of(fitter, seed=seed) for place, fitter in fitters.items()}
    moved = {}
    for place, fitter in fitters.items():
        covariance = covariance_of(fitter)
        whole = max(float(torch.trace(covariance)), torch.finfo(torch.float64).tiny)
        moved[place] = {kind: eraser.moves(covariance) / whole for kind, eraser in erasers[place].items()}
    return Fitted(erasers, means, moved)


def leakage(asked: SplitTask, fitted: Fitted) -> pd.DataFrame:
    """What a linear probe, trained on erased vectors, still tells of the property on test.

    Columns kind ("none" before erasure), tokens, layer, moved (share of the variance), value, low, high (accuracy).
    """
    from clsprobe.probes.linear import LogisticProbe

    train, dev, test = (asked.rows_of(side) for side in ("train", "dev", "test"))
    found = []
    for place, means in fitted.means.items():
        both: dict[str, Eraser | None] = {"none": None, **fitted.erasers[place]}
        X = np.stack([means if eraser is None else eraser(torch.from_numpy(means)).numpy() for eraser in both.values()])
        y = asked.y[:, None]
        told = predict_each(
            LogisticProbe(), X[:, train], y[train], X[:, test], dev=(X[:, dev], y[dev]), strengths=STRENGTHS
        )
        for kind, codes in zip(both, told.codes[:, 0], strict=True):
            right = (codes == asked.y[test]).mean()
            low, high = stats.wilson(right, len(test))
            found.append((kind, *place, fitted.moved[place].get(kind, 0.0), right, float(low), float(high)))
    return pd.DataFrame(found, columns=["kind", "tokens", "layer", "moved", "value", "low", "high"])


def predictions_of(
    encoder: Encoder,
    asked: SplitTask,
    states: States,
    probe: BaseEstimator,
    cell: Cell,
    places: Sequence[Place],
    *,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the fixed probe of a cell says of every test text after every erasure (`PREDICTIONS`), and the `leakage`.

    places: below the layer of the cell. Raises InputError where the encoder cannot be altered.
    """
    limit = states.source["max_length"]
    fitted = fit(encoder, asked, places, max_length=limit, seed=seed)
    test = asked.rows_of("test")
    texts = [asked.task.texts[i] for i in asked.row_indices[test]]
    width = states.width(cell[1])
    untouched = Erasure("none", "", cell[0])
    found = {untouched: np.empty((len(texts), width), np.float32)}
    found |= {Erasure(kind, *place): np.empty_like(found[untouched]) for place in places for kind in KINDS}
    with (
        replay(encoder, texts, cell[0], max_length=limit) as chunks,
        tqdm(total=len(texts) * len(found), desc="erasing", unit=" passes", delay=1, disable=None, leave=False) as bar,
    ):
        for chunk in chunks:
            for erasure, vectors in found.items():
                with _erasing(encoder, fitted, erasure):
                    chunk.each(partial(_onward, {cell: vectors}, chunk.rows, erasure.layer))
                bar.update(sum(map(len, chunk.rows)))
    parts = []
    for erasure, codes in read(probe, asked, states, cell, found).items():
        own = dict(zip(KEY, (*erasure, *cell), strict=True))
        rows = {
            "row": asked.row_indices[test],
            "label": asked.classes[asked.y[test]],
            "predicted": asked.classes[codes],
        }
        parts.append(pd.DataFrame({"task": asked.task.name, **own, "seed": seed, **rows}))
    told = leakage(asked, fitted)
    told.insert(0, "task", asked.task.name)
    return pd.concat(parts, ignore_index=True)[list(PREDICTIONS)], told.assign(seed=seed)


def _erasing(encoder: Encoder, fitted: Fitted, erasure: Erasure) -> AbstractContextManager[None]:
    if erasure.kind == "none":
        return nullcontext()
    eraser = fitted.erasers[Place(*erasure[1:])][erasure.kind]
    within = tokens_of(erasure.tokens)

    def change(hidden: Tensor, batch: Batch) -> Tensor:
        chosen, changed = within(batch), hidden.clone()
        changed[chosen] = eraser(hidden[chosen])
        return changed

    return altered(encoder, erasure.layer, change)


def _onward(into: dict[Cell, np.ndarray], rows: list[np.ndarray], layer: int, number: int, recorded: Recorded) -> None:
    fill(into, rows[number], recorded, layer, recorded.hidden[layer])


def effects(predictions: pd.DataFrame) -> pd.DataFrame:
    """The accuracy at the end after LEACE, and its change from no erasure and from the random directions.

    Columns task, kind, tokens, layer, value; effect, low, high: less the accuracy without erasure; beyond, beyond low,
    beyond high: less that of the random directions of the same variance. 95 % intervals over the same test texts.
    """
    found = []
    for task, rows in predictions.groupby("task", sort=False):
        hits = {Erasure(*key): _right(some) for key, some in rows.groupby(list(Erasure._fields), sort=False)}
        (intact,) = (hit for erasure, hit in hits.items() if erasure.kind == "none")
        for erasure, hit in hits.items():
            if erasure.kind == "none":
                continue
            control = hits[erasure._replace(kind="same variance")]
            found.append(
                (
                    task,
                    *erasure,
                    float(np.nanmean(hit)),
                    *stats.paired_difference(hit, intact),
                    *stats.paired_difference(hit, control),
                )
            )
    columns = ["value", "effect", "low", "high", "beyond", "beyond low", "beyond high"]
    return pd.DataFrame(found, columns=["task", *Erasure._fields, *columns])


def _right(rows: pd.DataFrame) -> pd.DataFrame:
    return stats.right(rows).astype(float).set_axis(pd.MultiIndex.from_frame(rows[["seed", "row"]])).unstack("row")
