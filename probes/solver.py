"""Many multinomial logistic regressions over the same texts, solved together.

For every cell (layer, readout), label set l and strength C the problem is scikit-learn's,

    min over W, b:  f = C sum_i w_i [log sum_k exp(z_ik) - z_i,y(i)] + 1/2 |W|^2,   z_i = x_i W + b,

convex, with the intercept b unpenalised. Two classes have one weight vector w there: the pair (-w/2, w/2) under twice
the penalty is the same problem. A class without texts gets the intercept -inf. All start at W = 0 and the classes' log
frequencies, already the optimum where X is constant. The inputs of a cell are shared by its problems, so is their work:

1. The Hessian is C sum_i w_i A_i (x) x_i x_i' plus the penalty, A_i = diag(p_i) - p_i p_i'. Were A_i the same for all
   texts it would be a Kronecker product A (x) X'X, diagonal in the eigenvectors of both (Boehning 1992 bounds it by
   one): one eigendecomposition X'X = V diag(lambda) V' a cell, to which an L2 penalty is blind, and one A = U
   diag(alpha) U' of the mean A_i, (class, class), renewed in every step. 1 / (penalty + alpha_k lambda_j / n) is the
first matrix of 2. limited-memory BFGS (Nocedal 1980; Liu & Nocedal 1989), a two-loop recursion over all problems at
   once. Weak penalties let A_i differ so much between texts that the mean misleads: problems that are not done by then
   get the exact diagonal blocks X' diag(w_i u_k' A_i u_k) X in the basis U instead, factored at a few `RENEWALS`.
3. The logits are affine in the step: one product X V d gives them for every step length. The line search is Newton's
   method on the derivative along d (convex, so its root is bracketed), and costs no product with X.
4. A problem is done when both the decrement estimated with that matrix, 1/2 g' H g, and the last step's gain fall below
   `tol` x f. Problems that are done leave the batch.

Products run in the precision of X, f in float64. Cells are independent: the caller chooses how many to pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 8  # pairs kept by L-BFGS
RENEWALS = (20, 60, 120, 240)  # steps at which the blocks of the Hessian are factored
SAMPLED = 0.25  # share of the texts, those with most weight, that they are summed over
LARGEST = 1 << 26  # numbers in those factors, at most
SEARCHES = 12  # Newton steps of a line search, at most


@dataclass(frozen=True, eq=False)
class Solution:
    """coef: (cell, label set, strength, class, dim). intercept: (cell, label set, strength, class).

    loss: (cell, label set, strength) the value of f. converged: the same shape, True where it is the optimum.
    """

    coef: Tensor
    intercept: Tensor
    loss: Tensor
    converged: Tensor


def solve(
    X: Tensor, y: Tensor, strengths: Tensor, *, weight: Tensor | None = None, tol: float = 3e-8, max_iter: int = 500
) -> Solution:
    """The optimum of every (cell, label set, strength).

    X: (cell, text, dim), centred. y: (text, label set) integer codes, -1 where a text has no label in that set; a set
    need not have all the classes of the others. strengths: (strength,) values of C. weight: (text,) of each text.
    """
    shape = len(X), y.shape[1], len(strengths)
    labels = y.T.repeat_interleave(len(strengths), 0)  # (problem, text); a problem is a label set at a strength
    weights = (labels >= 0) * (X.new_ones(X.shape[1]) if weight is None else weight.to(X.dtype))
    C = strengths.to(X.dtype).repeat(y.shape[1])[:, None]
    classes = int(y.max()) + 1
    at_once = max(1, LARGEST // (classes * X.shape[1]))  # problems whose logits fit into memory
    # one cell at a time keeps its features in the processor's cache
    found = [
        _one_cell(features, labels[some], weights[some], C[some], classes, tol=tol, max_iter=max_iter)
        for features in X
        for some in torch.arange(len(labels), device=y.device).split(at_once)
    ]
    W, loss, converged = (torch.cat(parts) for parts in zip(*found, strict=True))
    W = W.reshape(*shape, classes, -1)
    return Solution(W[..., :-1], W[..., -1], loss.reshape(shape), converged.reshape(shape))


def _one_cell(
    X: Tensor, labels: Tensor, weights: Tensor, C: Tensor, classes: int, *, tol: float, max_iter: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients (problem, class, dim + 1), the intercept last; f and converged, (problem,).

    X: (text, dim). labels, weights: (problem, text). C: (problem, 1).
    """
    target = (labels[:, None] == torch.arange(classes, device=X.device)[:, None]).to(X.dtype)  # (problem, class, text)
    share = (target * weights[:, None]).sum(2, dtype=torch.float64)  # exact for whole weights, so that equal is equal
    share = share / share.sum(1, keepdim=True)
    absent = share == 0  # (problem, class)
    own = (~absent) / (~absent).sum(1, keepdim=True).to(X.dtype)
    cost = C * weights
    eigenvalues, V = torch.linalg.eigh(X.mT @ X)
    R = torch.cat([X @ V, X.new_ones(len(X), 1)], 1)  # (text, coordinate)
    spread = torch.cat([eigenvalues.clamp(min=0), eigenvalues.new_full((1,), len(X))]) / len(X)  # (coordinate,)
    penalty = torch.where((~absent).sum(1) == 2, 2, 1).to(R.dtype)[:, None, None] * torch.ones_like(spread)
    penalty[..., -1] = 0  # the intercept's; (problem, 1, coordinate)
    problems = len(labels)

    final = R.new_zeros(problems, classes, R.shape[1])
    value = R.new_zeros(problems, dtype=torch.float64)
    converged = torch.zeros(problems, dtype=torch.bool, device=R.device)
    live = torch.arange(problems, device=R.device)
    W = final.clone()
    W[..., -1] = share.log().masked_fill(absent, 0)
    Z = W[..., -1:].masked_fill(absent[..., None], -torch.inf).expand(target.shape)  # logits (problem, class, text)
    kept: list[Pair] = []
    gradient = step = W
    factors: Tensor | None = None
    basis, f = W, value
    for iteration in range(max_iter + 1):
        P = Z.softmax(1)
        before = gradient
        gradient = ((cost[:, None] * (P - target)).flatten(0, 1) @ R).unflatten(0, Z.shape[:2]) + penalty * W
        gradient[..., -1] -= own * gradient[..., -1].sum(1, keepdim=True)  # rounding: a common intercept has no effect
        alpha, U = _classes(P, cost)
        h = penalty + spread * alpha[..., None]
        h[..., -1].clamp_(min=1e-4 * alpha.amax(1, keepdim=True))
        last, f = f, _objective(Z, target, cost, W, penalty)
        decrement = 0.5 * ((U.mT @ gradient) ** 2 / h).sum((1, 2), dtype=torch.float64)
        finished = (decrement <= tol * f) & ((last - f <= tol * f) | (iteration == 0))
        if iteration == max_iter or finished.any():
            leave = finished | (iteration == max_iter)
            final[live[leave]], value[live[leave]], converged[live[leave]] = W[leave], f[leave], finished[leave]
            stay = ~leave
            if not stay.any():
                break
            live, target, cost, penalty, own, W, Z, P, gradient, before, step, h, f, U = (
                a[stay] for a in (live, target, cost, penalty, own, W, Z, P, gradient, before, step, h, f, U)
            )
            if factors is not None:
                factors, basis = factors[stay], basis[stay]
            kept = [(s[stay], t[stay], r[stay]) for s, t, r in kept]
        if iteration:
            change = gradient - before
            product = _dot(step, change)
            # a pair without curvature (rounding near the optimum) would break the recursion: it is given no weight
            sound = product > 1e-12 * _dot(change, change) / h.amax((1, 2))
            kept = [*kept[1 - MEMORY :], (step, change, torch.where(sound, 1 / product, 0))]
        if iteration in RENEWALS and live.numel() * classes * R.shape[1] ** 2 <= LARGEST:
            basis, kept = U, []
            factors = _factors(R, P, cost, U, penalty, spread)
        direction = _two_loop(gradient, kept, h, U if factors is None else basis, factors)
        slope = (direction.flatten(0, 1) @ R.mT).unflatten(0, Z.shape[:2])  # of the logits along the direction
        length = _search(Z, slope, target, cost, W, direction, penalty)[:, None, None]
        step = length * direction
        W, Z = W + step, Z + length * slope
    intercept = final[..., -1].masked_fill(absent, -torch.inf)
    return torch.cat([final[..., :-1] @ V.mT, intercept[..., None]], 2), value, converged


Pair = tuple[Tensor, Tensor, Tensor]  # step s, change of the gradient t, 1 / s.t


def _factors(R: Tensor, P: Tensor, cost: Tensor, U: Tensor, penalty: Tensor, spread: Tensor) -> Tensor:
    """Cholesky factors of the Hessian's diagonal blocks in the basis U, (problem, class, coordinate, coordinate)."""
    weight = cost[:, None] * ((U * U).mT @ P - (U.mT @ P) ** 2).clamp(min=0)
    most, rows = weight.topk(max(1, int(SAMPLED * len(R))), sorted=False)
    blocks = torch.stack(
        [(R[r] * w[:, None]).mT @ R[r] for w, r in zip(most.flatten(0, 1), rows.flatten(0, 1), strict=True)]
    )
    blocks = blocks.unflatten(0, weight.shape[:2])
    diagonal = blocks.diagonal(dim1=-2, dim2=-1)
    diagonal.add_((weight.sum(2) - most.sum(2)).clamp(min=0)[..., None] * spread)
    rounding = torch.finfo(R.dtype).eps * diagonal.sum(-1, keepdim=True)  # keeps them positive definite
    diagonal.add_(penalty + rounding + 1e-6)
    return torch.linalg.cholesky(blocks)


def _classes(P: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of C sum_i w_i A_i, (problem, class) and (problem, class, class)."""
    weighted = P * cost[:, None]
    alpha, U = torch.linalg.eigh((torch.diag_embed(weighted.sum(2)) - weighted @ P.mT).double())
    return alpha.clamp(min=0).to(P.dtype), U.to(P.dtype)


def _two_loop(gradient: Tensor, kept: list[Pair], h: Tensor, U: Tensor, factors: Tensor | None) -> Tensor:
    """The L-BFGS direction -H g from the pairs kept and the first matrix (Nocedal & Wright 2006, algorithm 7.4)."""
    q, along = gradient, []
    for s, t, inverse in reversed(kept):
        a = inverse * _dot(s, q)
        along.append(a)
        q = q - a[:, None, None] * t
    q = U.mT @ q
    q = U @ (q / h if factors is None else torch.cholesky_solve(q[..., None], factors)[..., 0])
    for (s, t, inverse), a in zip(kept, reversed(along), strict=True):
        q = q + (a - inverse * _dot(t, q))[:, None, None] * s
    return -q


def _search(
    Z: Tensor, slope: Tensor, target: Tensor, cost: Tensor, W: Tensor, direction: Tensor, penalty: Tensor
) -> Tensor:
    """The step length of every problem, (problem,): Newton on the derivative of f along the direction, bracketed."""
    flat, bend = _dot(W, penalty * direction), _dot(direction, penalty * direction)
    toward = ((target * slope).sum(1) * cost).sum(1)

    def derivative(length: Tensor) -> tuple[Tensor, Tensor]:
        P = (Z + length[:, None, None] * slope).softmax(1)
        tilted = P * slope
        mean = tilted.sum(1)
        first = (cost * mean).sum(1) - toward + flat + length * bend
        return first, (cost * ((tilted * slope).sum(1) - mean * mean)).sum(1) + bend

    low, high = torch.zeros_like(flat), torch.full_like(flat, torch.inf)
    length = torch.ones_like(flat)
    enough = 0.1 * (_dot(W * penalty, direction) + ((Z.softmax(1) - target) * slope * cost[:, None]).sum((1, 2))).abs()
    for _ in range(SEARCHES):
        first, second = derivative(length)
        if (settled := first.abs() <= enough).all():
            break
        low, high = torch.where(first < 0, length, low), torch.where(first > 0, length, high)
        newton = length - first / second.clamp(min=1e-30)
        middle = torch.where(high.isinf(), 2 * length, (low + high) / 2)
        proposed = torch.where((newton > low) & (newton < high) & (newton < 10 * length), newton, middle)
        length = torch.where(settled, length, proposed)
    return length


def _objective(Z: Tensor, target: Tensor, cost: Tensor, W: Tensor, penalty: Tensor) -> Tensor:
    """f of every problem, (problem,) float64."""
    own = Z.masked_fill(target == 0, 0).sum(1)
    losses = cost * (Z.logsumexp(1) - own)
    return losses.sum(1, dtype=torch.float64) + 0.5 * (penalty * W * W).sum((1, 2), dtype=torch.float64)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(problem, ...) x (problem, ...) -> (problem,)."""
    return (a.flatten(1) * b.flatten(1)).sum(1)
