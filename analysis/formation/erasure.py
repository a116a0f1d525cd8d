"""What is left of a property where it is erased, and at the end of a network that runs on without it?

1. A place is a layer and some of its tokens (`probes.interventions.changes.select_tokens`: ``cls``, ``content``).
2. LEACE (Belrose et al. 2023, the package concept-erasure) changes the vectors of a place as little as possible so that
   no linear probe predicts the property: in float64, on one-hot labels (integers would erase one direction). What is
   left in another than a linear form stays.
3. Two controls remove random directions: with the *same variance* as LEACE removes, which is the reference, and the
   *same number* of directions, which changes the vectors far less.
4. Erasers are fitted on one half of train, and probes on the other (`reliability.halve_train`): on the eraser's own
   texts nothing linear is left by construction, on others its errors are. The *leakage* is the test accuracy of a
   linear and of an MLP probe trained on erased vectors.
5. The hidden states without what LEACE, or the first control, removes enter the next block. At the end both probes are
   trained again, on the vectors of a network in which the property was erased, and read what is left there. The *fixed*
   probe, trained on intact vectors, is read as well: its loss is the shift of the vectors, whatever they hold.
6. `analysis.formation.reliability` says how complete and how selective every erasure was, in both places.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
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
from clsprobe.analysis.formation.erasure_effects import KEY, KINDS, RUN, Erasure
from clsprobe.analysis.formation.knockout import Cell, fill_cells, predict_changed
from clsprobe.analysis.formation.reliability import fit_independent_probe, halve_train, measure_reliability
from clsprobe.analysis.sweep.grid import SplitTask
from clsprobe.probes.base import STRENGTHS, predict_each
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.extraction.readouts import parse_readouts
from clsprobe.probes.extraction.states import States
from clsprobe.probes.interventions.changes import alter_layer, select_tokens
from clsprobe.probes.interventions.passes import RecordedPass
from clsprobe.probes.interventions.replaying import replay
from clsprobe.probes.linear import LogisticProbe

if TYPE_CHECKING:
    from concept_erasure import LeaceFitter
    from torch import Tensor

    from clsprobe.probes.encoders.tokenizing import Batch

TOLERANCE = 1e-9  # a correlation with the label below this is rounding


class Place(NamedTuple):
    """Tokens of a layer."""

    tokens: str
    layer: int


MOST = 2000  # texts of a side on which probes are trained again: all erasures of all of them are run
AT_ONCE = 12  # erasures whose probes are trained together


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
    """The erasers of every place.

    erasers: place -> kind -> eraser. moved: place -> kind -> the removed share of variance.
    """

    erasers: dict[Place, dict[str, Eraser]]
    moved: dict[Place, dict[str, float]]


def fit_erasers(
    encoder: Encoder,
    texts: Sequence[str],
    labels: np.ndarray,
    places: Sequence[Place],
    *,
    max_length: int | None = None,
    seed: int = 0,
) -> FittedErasers:
    """Fit the erasers of every place on single tokens of the texts. labels: (text, class) one-hot."""
    z = torch.from_numpy(labels).double()
    fitters = {place: new_fitter(encoder.description.dim, z.shape[1]) for place in places}
    last_layer = max(1, max(place.layer for place in places))  # layer 0 is recorded as the input of block 1
    with replay(encoder, texts, last_layer, max_length=max_length) as chunks:
        for chunk in chunks:
            for rows, recorded in zip(chunk.rows, chunk.recorded, strict=True):
                for place, fitter in fitters.items():
                    selected = select_tokens(place.tokens)(recorded.batch).cpu()
                    if selected.any():
                        hidden = recorded.hidden[place.layer].cpu().double()
                        fitter.update(hidden[selected], z[rows][:, None].expand(-1, selected.shape[1], -1)[selected])
    erasers = {place: make_erasers(fitter, seed=seed) for place, fitter in fitters.items()}
    moved = {}
    for place, fitter in fitters.items():
        covariance = compute_covariance(fitter)
        total = max(float(torch.trace(covariance)), torch.finfo(torch.float64).tiny)
        moved[place] = {kind: eraser.mean_square_change(covariance) / total for kind, eraser in erasers[place].items()}
    return FittedErasers(erasers, moved)


@dataclass(frozen=True, eq=False)
class ErasedVectors:
    """The vectors of texts, intact and erased.

    place: erasure -> (text, dim) the mean over the tokens of its place; erasers are affine, so they act on the mean as
    on the tokens. end: erasure -> (text, width) of the cell that is read. "none" of `place` names the place, that of
    `end` the layer that is read, without tokens.
    """

    place: dict[Erasure, np.ndarray]
    end: dict[Erasure, np.ndarray]


def erase_texts(
    encoder: Encoder, texts: Sequence[str], fitted: FittedErasers, cell: Cell, *, max_length: int | None = None
) -> ErasedVectors:
    """Run the texts with every eraser of `RUN`, up to the layer of a cell, and erase the means with all.

    Raises InputError if the encoder cannot be altered.
    """
    dim = encoder.description.dim
    means = {place: np.zeros((len(texts), dim)) for place in fitted.erasers}
    intact = Erasure("none", "", cell[0])
    width = parse_readouts([cell[1]])[0].width(dim)
    end = {intact: np.empty((len(texts), width), np.float32)}
    end |= {Erasure(kind, *place): np.empty_like(end[intact]) for place in fitted.erasers for kind in RUN}
    with (
        replay(encoder, texts, cell[0], max_length=max_length) as chunks,
        tqdm(total=len(texts) * len(end), desc="erasing", unit=" passes", delay=1, disable=None, leave=False) as bar,
    ):
        for chunk in chunks:
            for rows, recorded in zip(chunk.rows, chunk.recorded, strict=True):
                for place, mean in means.items():
                    selected = select_tokens(place.tokens)(recorded.batch)[..., None]
                    hidden = recorded.hidden[place.layer].double().where(selected, 0)
                    mean[rows] = (hidden.sum(1) / selected.sum(1).clamp(min=1)).cpu().numpy()
            for erasure, vectors in end.items():
                with _erase(encoder, fitted, erasure):
                    chunk.map(partial(_fill, {cell: vectors}, chunk.rows, erasure.layer))
                bar.update(sum(map(len, chunk.rows)))
    at_place = {}
    for place, mean in means.items():
        double = torch.from_numpy(mean)
        at_place[Erasure("none", *place)] = mean.astype(np.float32)
        for kind, eraser in fitted.erasers[place].items():
            at_place[Erasure(kind, *place)] = eraser(double).numpy().astype(np.float32)
    return ErasedVectors(at_place, end)


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


# -------------------------------------------------------------------------------------------------------------- probes


class Sides(NamedTuple):
    """Slices of the texts that are run: the half of train on which no eraser was fitted, dev, and test."""

    train: slice
    dev: slice
    test: slice


def measure_erasure(
    encoder: Encoder,
    split: SplitTask,
    states: States,
    probe: BaseEstimator,
    cell: Cell,
    places: Sequence[Place],
    properties: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """What is left of a property that is erased in every place: the tables erasure, leakage and reliability.

    erasure (columns `PREDICTIONS`): what the probes of the cell (`PROBES`) predict at the end. leakage: kind ("none"
    before erasure), tokens, layer, moved (share of the variance), probe ("linear", "MLP"), value, low, high (accuracy
    where it was erased). reliability: kind, tokens, layer, read at ("its place", "the end"), and the columns of
    `reliability.measure_reliability`.

    places: below the layer of the cell. properties: name -> (text,) codes of other properties of the texts of the
    split, -1 without a label. Raises InputError if the encoder cannot be altered.
    """
    random, limit = np.random.default_rng(seed), states.source["max_length"]
    fitted_rows, probe_rows = halve_train(split, seed)
    chosen = [np.sort(random.permutation(rows)[:MOST]) for rows in (probe_rows, split.rows_of("dev"))]
    rows = np.concatenate([*chosen, split.rows_of("test")])
    ends = np.cumsum([len(part) for part in chosen])
    sides = Sides(slice(ends[0]), slice(*ends), slice(ends[1], None))
    texts, one_hot = split.texts, np.eye(len(split.classes))[split.y[fitted_rows]]
    fitted = fit_erasers(encoder, [texts[i] for i in fitted_rows], one_hot, places, max_length=limit, seed=seed)
    vectors = erase_texts(encoder, [texts[i] for i in rows], fitted, cell, max_length=limit)
    labels = {split.task.name: split.y[rows], **{name: codes[rows] for name, codes in properties.items()}}
    y = labels[split.task.name]

    leakage = []
    for name, codes_by_erasure in predict_retrained(vectors.place, y, sides, seed).items():
        for erasure, codes in codes_by_erasure.items():
            accuracy = (codes == y[sides.test]).mean()
            low, high = stats.wilson(accuracy, len(codes))
            moved = fitted.moved[Place(*erasure[1:])].get(erasure.kind, 0.0)
            leakage.append((*erasure, moved, name, accuracy, float(low), float(high)))
    at_end = {
        "fixed": predict_changed(probe, split, states, cell, {e: v[sides.test] for e, v in vectors.end.items()}),
        **predict_retrained(vectors.end, y, sides, seed),
    }
    test = split.row_indices[rows[sides.test]]
    tables = {
        "erasure": pd.concat(
            [
                pd.DataFrame(
                    {"task": split.task.name, **dict(zip(KEY, (*erasure, *cell, name), strict=True)), "seed": seed}
                    | {"row": test, "label": split.classes[y[sides.test]], "predicted": split.classes[codes]}
                )
                for name, codes_by_erasure in at_end.items()
                for erasure, codes in codes_by_erasure.items()
            ],
            ignore_index=True,
        ),
        "leakage": pd.DataFrame(leakage, columns=[*Erasure._fields, "moved", "probe", "value", "low", "high"]),
        "reliability": _measure_reliability(vectors, labels, sides, seed),
    }
    return {name: table.assign(task=split.task.name, seed=seed) for name, table in tables.items()}


def predict_retrained(
    vectors: Mapping[Erasure, np.ndarray], y: np.ndarray, sides: Sides, seed: int
) -> dict[str, dict[Erasure, np.ndarray]]:
    """Predictions (test text,) of a linear and an MLP probe that are trained on the vectors (text, dim) themselves."""
    codes: dict[str, dict[Erasure, np.ndarray]] = {"linear": {}, "MLP": {}}
    for first in range(0, len(vectors), AT_ONCE):
        erasures = [*vectors][first : first + AT_ONCE]
        X = np.stack([vectors[erasure] for erasure in erasures])
        train, dev, test = ((X[:, side], y[side]) for side in sides)
        linear = predict_each(
            LogisticProbe(), train[0], train[1][:, None], test[0], dev=(dev[0], dev[1][:, None]), strengths=STRENGTHS
        )
        mlp = fit_independent_probe(train[0], {"y": train[1]}, dev[0], {"y": dev[1]}, seed=seed)
        codes["linear"] |= zip(erasures, linear.codes[:, 0], strict=True)
        codes["MLP"] |= zip(erasures, mlp.probabilities(test[0])["y"].argmax(-1), strict=True)
    return codes


def _measure_reliability(
    vectors: ErasedVectors, labels: Mapping[str, np.ndarray], sides: Sides, seed: int
) -> pd.DataFrame:
    """Every erasure, in its place and at the end, under probes of intact vectors. labels: the erased property first."""
    table = []
    train, dev, test = ({name: codes[side] for name, codes in labels.items()} for side in sides)
    for read_at, vectors_by_erasure in (("its place", vectors.place), ("the end", vectors.end)):
        by_kind: dict[str, dict[Erasure, np.ndarray]] = {}
        for erasure, x in vectors_by_erasure.items():
            by_kind.setdefault(erasure.kind, {})[erasure] = x
        X = np.stack([*by_kind["none"].values()])  # of every place, or of the end alone
        probe = fit_independent_probe(X[:, sides.train], train, X[:, sides.dev], dev, seed=seed)
        before = probe.probabilities(X[:, sides.test])
        prior = probe.priors[next(iter(labels))]
        for changed in by_kind.values():
            after = probe.probabilities(np.stack([x[sides.test] for x in changed.values()]))
            for number, erasure in enumerate(changed):
                intact = {name: values[number % len(X)] for name, values in before.items()}
                erased = {name: values[number] for name, values in after.items()}
                row = measure_reliability(intact, erased, prior, test)
                table.append(dict(zip(Erasure._fields, erasure, strict=True)) | {"read at": read_at} | row)
    return pd.DataFrame(table)
