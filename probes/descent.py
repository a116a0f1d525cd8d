"""Trains many small networks on the same texts at once.

For every cell (layer, readout), label set l and strength C the problem is that of solver.py with a network in place of
the linear map: C sum_i w_i [log sum_k exp(z_ik) - z_i,y(i)] + 1/2 |matrices|^2, z_i = network(x_i) + bias.

1. All problems start from the same parameters, with the log frequencies of the classes as bias: a network whose last
   matrix starts at 0 starts as the prior. A class without texts has the bias -inf.
2. The optimiser is Adam (Kingma & Ba 2015) on mini-batches of the same texts for all problems: those of a cell share
   its features, and one batched product serves all cells. The running mean of the parameters is scored and kept (Polyak
   & Juditsky 1992), because the noise of the mini-batches hardly affects it.
3. After every round of `STEPS` steps the loss on held-out texts is computed, in nats. A problem keeps its best
   parameters, the initial ones included. A round without a gain halves its step size; `PATIENCE` of them in a row end
   it. Without held-out texts a tenth of train is set aside. Cells whose problems have all ended leave the batch.
4. The strength with the smallest held-out loss is kept, per cell and label set.

All randomness comes from the caller's generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BATCH = 128  # texts per step
STEPS = 40  # per round; also the window of the running mean
ROUNDS = 40  # at most
PATIENCE = 4  # rounds without a gain
GAIN = 3e-4  # least gain, as a share of the initial loss
MOMENTS = 0.9, 0.999  # Adam's decay rates
AT_ONCE = 1024  # texts per forward pass without gradients

Parameters = dict[str, Tensor]
Network = Callable[[Parameters, Tensor], Tensor]
"""Parameters (cell, problem, ...) and features (cell, text, ...) -> (cell, problem, text, class), without bias."""


@dataclass(frozen=True, eq=False)
class Trained:
    """The trained network of every cell and label set.

    parameters: (cell, label set, ...) by name, with "bias" (cell, label set, class). strength: (cell, label set).
    converged: (cell, label set), False without held-out labels or if training had not ended after `ROUNDS`.
    """

    parameters: Parameters
    strength: Tensor
    converged: Tensor


@torch.enable_grad()
def train(
    network: Network,
    start: Parameters,
    X: Tensor,
    y: Tensor,
    strengths: Tensor,
    generator: torch.Generator,
    *,
    rate: float,
    held_out: tuple[Tensor, Tensor] | None = None,
    weight: Tensor | None = None,
) -> Trained:
    """Train every problem and keep, per cell and label set, the strength with the smallest loss on held-out texts.

    start: the parameters of one problem by name; matrices are penalised, vectors are not. X: (cell, text, ...) what the
    network reads. y: (text, label set) integer codes, -1 = no label. strengths: (strength,) values of C. rate: the
    initial step size. held_out: X and y of the texts for early stopping. weight: (text,).
    """
    weights = (y >= 0) * (X.new_ones(len(y)) if weight is None else weight.to(X.dtype))[:, None]  # (text, label set)
    shares = ((y[..., None] == torch.arange(int(y.max()) + 1)) * weights[..., None]).sum(0, dtype=torch.float64)
    prior = (shares / shares.sum(1, keepdim=True)).log().to(X.dtype)  # (label set, class)
    if held_out is None:
        aside, rest = torch.randperm(len(y), generator=generator).tensor_split([-(-len(y) // 10)])
        held_out, X, y, weights = (X[:, aside], y[aside]), X[:, rest], y[rest], weights[rest]
    X_held, y_held = held_out
    scored = (y_held >= 0) & prior.T.gather(0, y_held.clamp(min=0)).isfinite()  # not classes without train texts

    sets = torch.arange(y.shape[1]).repeat_interleave(len(strengths))  # (problem,)
    totals = weights.sum(0)[sets]
    initial = {**start, "bias": torch.zeros_like(prior[0])}  # added to the prior, so that every parameter is finite
    sizes = [value.numel() for value in initial.values()]
    is_matrix = torch.cat([X.new_full((value.numel(),), value.ndim > 1) for value in initial.values()])
    penalty = (1 / (strengths.to(X.dtype).repeat(y.shape[1]) * totals))[:, None] * is_matrix  # (problem, parameter)

    def unpack(values: Tensor) -> Parameters:
        """(cell, problem, parameter) -> (cell, problem, ...) by name."""
        parts = zip(initial.items(), values.split(sizes, 2), strict=True)
        return {name: part.unflatten(2, value.shape) for (name, value), part in parts}

    def losses(values: Tensor, x: Tensor, codes: Tensor) -> Tensor:
        """(cell, problem, text) nats of the codes (text, label set)."""
        parameters = unpack(values)
        Z = network(parameters, x) + (parameters["bias"] + prior[sets])[:, :, None]
        own = codes.clamp(min=0).T[sets].expand(len(Z), -1, -1)[..., None]
        return Z.logsumexp(-1) - Z.gather(-1, own)[..., 0]

    @torch.no_grad()
    def score(values: Tensor, X: Tensor) -> Tensor:
        """(cell, problem) nats of the held-out texts, float64."""
        parts = zip(X.split(AT_ONCE, 1), y_held.split(AT_ONCE), scored.split(AT_ONCE), strict=True)
        nats = [losses(values, x, codes).where(known.T[sets], 0) for x, codes, known in parts]
        return torch.cat(nats, 2).sum(2, dtype=torch.float64)

    current = torch.cat([value.flatten() for value in initial.values()]).repeat(len(X), len(sets), 1)
    best, mean, first, second = (current.clone(), current.clone(), torch.zeros_like(current), torch.zeros_like(current))
    live, finished = torch.arange(len(X)), torch.zeros(current.shape[:2], dtype=torch.bool)
    fewest = score(current, X_held)
    least_gain, waited = GAIN * fewest, torch.zeros_like(fewest)
    size = torch.full_like(fewest, rate, dtype=X.dtype)
    batches, steps = _batches(len(y), generator), 0
    for _ in range(ROUNDS):
        for _ in range(STEPS):
            rows, steps = next(batches), steps + 1
            w = weights[rows].T[sets]  # (problem, text)
            current.requires_grad_()
            losses_by_text = losses(current, X[live[:, None], rows], y[rows]).where(w > 0, 0) * w
            (slope,) = torch.autograd.grad((losses_by_text.sum((0, 2)) * (len(y) / len(rows)) / totals).sum(), current)
            current = current.detach()
            slope += penalty * current
            first.lerp_(slope, 1 - MOMENTS[0])
            second.lerp_(slope.square_(), 1 - MOMENTS[1])
            rms = (second / (1 - MOMENTS[1] ** steps)).sqrt_().add_(1e-8)
            current -= (size / (1 - MOMENTS[0] ** steps))[..., None] * first / rms
            mean.lerp_(current, 1 / STEPS)
        held_nats = score(mean, X_held[live])
        gained = (held_nats < (fewest - least_gain)[live]) & ~finished[live]
        fewest[live] = torch.where(gained, held_nats, fewest[live])
        best[live] = torch.where(gained[..., None], mean, best[live])
        waited, size = (torch.where(gained, 0, waited + 1), torch.where(gained, size, size / 2))
        finished[live] |= waited >= PATIENCE
        if not (keep := ~finished[live].all(1)).any():
            break
        if not keep.all():
            live, waited, size, current, mean, first, second = (
                tensor[keep] for tensor in (live, waited, size, current, mean, first, second)
            )

    axes = len(X), y.shape[1], len(strengths)
    chosen = fewest.reshape(axes).argmin(2)
    cell, label_set = torch.meshgrid(*map(torch.arange, axes[:2]), indexing="ij")
    parameters = unpack(best.unflatten(1, axes[1:])[cell, label_set, chosen])
    parameters["bias"] = parameters["bias"] + prior
    return Trained(parameters, strengths[chosen], finished.reshape(axes)[cell, label_set, chosen] & scored.any(0))


@torch.no_grad()
def log_proba(network: Network, parameters: Parameters, X: Tensor) -> Tensor:
    """Log probabilities of trained networks for X (cell, text, ...): (cell, label set, text, class), nats."""
    bias = parameters["bias"][:, :, None]
    return torch.cat([(network(parameters, x) + bias).log_softmax(-1) for x in X.split(AT_ONCE, 1)], 2)


def _batches(texts: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row indices of mini-batches, without end: every epoch is a new permutation of the texts."""
    while True:
        yield from torch.randperm(texts, generator=generator).split(BATCH)
