"""Many small networks over the same texts, trained side by side.

For every cell (layer, readout), label set l and strength C the problem is that of solver.py with a network in the place
of the linear map: C sum_i w_i [log sum_k exp(z_ik) - z_i,y(i)] + 1/2 |matrices|^2, z_i = network(x_i) + bias.

1. All problems start from the same parameters, with the classes' log frequencies as bias: a network whose last matrix
   starts at 0 starts as the prior. A class without texts has the bias -inf.
2. Adam (Kingma & Ba 2015) on mini-batches, the same texts for all problems: those of a cell share its features, and one
   batched product serves all cells. What is judged and kept is the running mean of the parameters (Polyak & Juditsky
   1992), which the noise of the mini-batches hardly moves.
3. After every round of `STEPS` steps the nats on held texts are taken. A problem keeps the parameters that had the
   fewest, the start included; a round without a gain halves its step, `PATIENCE` of them in a row end it. Where no held
   texts are given a tenth of train is set aside. Cells whose problems have all ended leave the batch.
4. Per cell and label set the strength with the fewest held nats is kept.

What is random comes from a generator of the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BATCH = 128  # texts a step
STEPS = 40  # a round, and the memory of the running mean
ROUNDS = 40  # at most
PATIENCE = 4  # rounds
GAIN = 3e-4  # of the nats at the start: the least that counts as one
MOMENTS = 0.9, 0.999  # how slowly Adam's two forget
AT_ONCE = 1024  # texts read together where nothing is learned from them

Parameters = dict[str, Tensor]
Network = Callable[[Parameters, Tensor], Tensor]
"""Parameters (cell, problem, ...) and features (cell, text, ...) -> (cell, problem, text, class), without bias."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What is kept of every cell and label set.

    parameters: (cell, label set, ...) by name, with "bias" (cell, label set, class). strength: (cell, label set).
    converged: (cell, label set), False where nothing was held or the last round still gained.
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
    held: tuple[Tensor, Tensor] | None = None,
    weight: Tensor | None = None,
) -> Trained:
    """Train every problem and keep, per cell and label set, the strength with the fewest nats on the held texts.

    start: the parameters of one problem by name; matrices are penalised, vectors are not. X: (cell, text, ...) what the
    network reads. y: (text, label set) integer codes, -1 where a text has no label in that set. strengths: (strength,)
    values of C. rate: the length of the first steps. held: X and y of the texts to stop on. weight: (text,) of each
    text.
    """
    weights = (y >= 0) * (X.new_ones(len(y)) if weight is None else weight.to(X.dtype))[:, None]  # (text, label set)
    share = ((y[..., None] == torch.arange(int(y.max()) + 1)) * weights[..., None]).sum(0, dtype=torch.float64)
    prior = (share / share.sum(1, keepdim=True)).log().to(X.dtype)  # (label set, class)
    if held is None:
        aside, rest = torch.randperm(len(y), generator=generator).tensor_split([-(-len(y) // 10)])
        held, X, y, weights = (X[:, aside], y[aside]), X[:, rest], y[rest], weights[rest]
    X_held, y_held = held
    seen = (y_held >= 0) & prior.T.gather(0, y_held.clamp(min=0)).isfinite()  # what train lacks can choose nothing

    sets = torch.arange(y.shape[1]).repeat_interleave(len(strengths))  # (problem,)
    total = weights.sum(0)[sets]
    one = {**start, "bias": torch.zeros_like(prior[0])}  # beside the prior, so that every parameter is finite
    sizes = [value.numel() for value in one.values()]
    matrix = torch.cat([X.new_full((value.numel(),), value.ndim > 1) for value in one.values()])
    penalty = (1 / (strengths.to(X.dtype).repeat(y.shape[1]) * total))[:, None] * matrix  # (problem, parameter)

    def named(values: Tensor) -> Parameters:
        """(cell, problem, parameter) -> (cell, problem, ...) by name."""
        parts = zip(one.items(), values.split(sizes, 2), strict=True)
        return {name: part.unflatten(2, value.shape) for (name, value), part in parts}

    def losses(values: Tensor, x: Tensor, codes: Tensor) -> Tensor:
        """(cell, problem, text) nats of the codes (text, label set)."""
        parameters = named(values)
        Z = network(parameters, x) + (parameters["bias"] + prior[sets])[:, :, None]
        own = codes.clamp(min=0).T[sets].expand(len(Z), -1, -1)[..., None]
        return Z.logsumexp(-1) - Z.gather(-1, own)[..., 0]

    @torch.no_grad()
    def judge(values: Tensor, X: Tensor) -> Tensor:
        """(cell, problem) nats of the held texts, float64."""
        parts = zip(X.split(AT_ONCE, 1), y_held.split(AT_ONCE), seen.split(AT_ONCE), strict=True)
        told = [losses(values, x, codes).where(known.T[sets], 0) for x, codes, known in parts]
        return torch.cat(told, 2).sum(2, dtype=torch.float64)

    here = torch.cat([value.flatten() for value in one.values()]).repeat(len(X), len(sets), 1)
    kept, mean, first, second = here.clone(), here.clone(), torch.zeros_like(here), torch.zeros_like(here)
    live, ended = torch.arange(len(X)), torch.zeros(here.shape[:2], dtype=torch.bool)
    best = judge(here, X_held)
    least, waited = GAIN * best, torch.zeros_like(best)
    length = torch.full_like(best, rate, dtype=X.dtype)
    batches, steps = _batches(len(y), generator), 0
    for _ in range(ROUNDS):
        for _ in range(STEPS):
            rows, steps = next(batches), steps + 1
            weigh = weights[rows].T[sets]  # (problem, text)
            here.requires_grad_()
            of_texts = losses(here, X[live[:, None], rows], y[rows]).where(weigh > 0, 0) * weigh
            (slope,) = torch.autograd.grad((of_texts.sum((0, 2)) * (len(y) / len(rows)) / total).sum(), here)
            here = here.detach()
            slope += penalty * here
            first.lerp_(slope, 1 - MOMENTS[0])
            second.lerp_(slope.square_(), 1 - MOMENTS[1])
            size = (second / (1 - MOMENTS[1] ** steps)).sqrt_().add_(1e-8)
            here -= (length / (1 - MOMENTS[0] ** steps))[..., None] * first / size
            mean.lerp_(here, 1 / STEPS)
        nats = judge(mean, X_held[live])
        gained = (nats < (best - least)[live]) & ~ended[live]
        best[live] = torch.where(gained, nats, best[live])
        kept[live] = torch.where(gained[..., None], mean, kept[live])
        waited, length = torch.where(gained, 0, waited + 1), torch.where(gained, length, length / 2)
        ended[live] |= waited >= PATIENCE
        if not (stay := ~ended[live].all(1)).any():
            break
        if not stay.all():
            live, waited, length, here, mean, first, second = (
                each[stay] for each in (live, waited, length, here, mean, first, second)
            )

    axes = len(X), y.shape[1], len(strengths)
    chosen = best.reshape(axes).argmin(2)
    cell, label_set = torch.meshgrid(*map(torch.arange, axes[:2]), indexing="ij")
    parameters = named(kept.unflatten(1, axes[1:])[cell, label_set, chosen])
    parameters["bias"] = parameters["bias"] + prior
    return Trained(parameters, strengths[chosen], ended.reshape(axes)[cell, label_set, chosen] & seen.any(0))


@torch.no_grad()
def log_proba(network: Network, parameters: Parameters, X: Tensor) -> Tensor:
    """What trained parameters say of X (cell, text, ...): (cell, label set, text, class), nats."""
    bias = parameters["bias"][:, :, None]
    return torch.cat([(network(parameters, x) + bias).log_softmax(-1) for x in X.split(AT_ONCE, 1)], 2)


def _batches(texts: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of mini-batches for ever: the texts in one random order after another."""
    while True:
        yield from torch.randperm(texts, generator=generator).split(BATCH)
