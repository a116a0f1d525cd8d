"""Solves many multinomial logistic regressions on the same texts at once.

For every cell (layer, readout), label set l and strength C the problem is scikit-learn's,

    min over W, b:  f = C sum_i w_i [log sum_k exp(z_ik) - z_i,y(i)] + 1/2 |W|^2,   z_i = x_i W + b,

convex, with the intercept b unpenalised. At the optimum the weights of the classes sum to 0, so W = V'T, where the rows
of T, (class - 1, class), are orthonormal contrasts: |W| = |V|, with one vector fewer. For two classes scikit-learn has
one vector: the same problem with twice the penalty. A class without texts gets the intercept -inf. All problems start
at V = 0 and the log frequencies of the classes, which is the optimum if X is constant.

1. A label set follows its regularisation path from the strongest penalty: the optimum at one strength is the start at
   the next. It need not be exact: a strength within `START_NEXT` x f of its optimum starts the next one and continues,
   so that several are solved together, and one product with X serves all label sets and strengths. With dev, the path
   of a label set ends when dev bits rise from one strength to the next; weaker penalties are not solved. Labels without
   signal, whose weak penalties take the most steps, thus end at the second strength.
2. A step is that of limited-memory BFGS (Liu & Nocedal 1989) in the compact form of Byrd, Nocedal & Schnabel (1994). A
   pair (step s, change of the gradient y) remains valid when C changes: y is C times the change of the data's gradient
   plus that of the penalty, which is known.
3. Its initial matrix approximates the Hessian, C sum_i w_i A_i (x) x_i x_i' + penalty,
   A_i = T (diag(p_i) - p_i p_i') T'. If all texts had the same A_i it would be A (x) X'X, diagonal in the eigenvectors
   of both (Boehning 1992 bounds it by such a product); those of X'X are computed once per cell, and do not affect an L2
   penalty. If A_i differs much between texts their mean is a poor approximation, above all along the leading
   eigenvectors. A problem not done after `PATIENCE` steps, and the strengths that continue it, get the true Hessian in
   `MAX_COUPLED` of these directions, with all classes coupled, summed over a sample of the texts.
4. The logits are affine in the step: one product gives them for every step length. The line search is Newton's method
   on the derivative along the step (f is convex, so the root is bracketed) and needs no product with X.
5. A problem is done when both the decrement 1/2 g' H g, with the matrix H of 2, and the gain of the last step in the
   quadratic model fall below `tol` x f.

Products are computed in the precision of X; f and numerically delicate parts in float64 where the device supports it.
Cells are independent: the caller chooses how many to pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

TOLERANCE = 3e-8  # decrement and last gain, relative to f, at an optimum
START_NEXT = 1e-3  # decrement, relative to f, at which the next strength begins
WORSENED = 1e-3  # relative rise of the dev bits that ends a path
MEMORY = 30  # pairs kept by L-BFGS
PATIENCE = 8  # steps without the coupled part of the initial matrix
MAX_COUPLED = 48  # directions in that part
MAX_ORDER = 512  # order of that part: fewer directions if there are many classes
MAX_TEXTS = 8192  # texts that it is summed over
MAX_SEARCHES = 12  # Newton steps of a line search
MAX_LOGITS = 1 << 20  # logits in memory at once: of every cell that is being solved, several times over
MAX_PRODUCTS = 1 << 24  # numbers from which that part is summed
IMPOSSIBLE = -1e30  # the logit of a class without texts: finite, so that 0 times it is 0


Solved = tuple[Tensor, Tensor, Tensor]  # coefficients, f, converged, each (label set, strength, ...)


@dataclass(frozen=True, eq=False)
class Solution:
    """coef: (cell, label set, strength, class, dim). intercept: (cell, label set, strength, class).

    loss: (cell, label set, strength) the value of f, infinite if the path ended before this strength. converged: the
    same shape, True for an optimum.
    """

    coef: Tensor
    intercept: Tensor
    loss: Tensor
    converged: Tensor


def solve(
    X: Sequence[Tensor] | Tensor,
    y: Tensor,
    strengths: Tensor,
    *,
    weight: Tensor | None = None,
    dev: tuple[Sequence[Tensor] | Tensor, Tensor] | None = None,
    tol: float = TOLERANCE,
    max_iter: int = 500,
) -> Solution:
    """Solve every (cell, label set, strength) or, with dev, those that may have the fewest dev bits.

    X: (cell, text, dim), centred; a sequence is read cell by cell. y: (text, label set) integer codes, -1 = no label;
    label sets may have different classes. strengths: (strength,) values of C. weight: (text,) or (text, label set).
    dev: X and y of other texts, X scaled as train. max_iter: steps per strength.
    """
    labels, classes = y.T, int(y.max()) + 1
    path, order = strengths.sort()

    def solve_cell(cell: int) -> Solved:
        features = X[cell]
        weights = (labels >= 0).to(features.dtype)
        if weight is not None:
            weights = weights * weight.to(features.dtype).reshape(len(y), -1).T
        of_dev = None if dev is None else _Dev(dev[0][cell], dev[1].T)
        at_once = max(1, MAX_LOGITS // (classes * len(y) * len(path)))  # label sets whose logits fit into memory
        strengths_of_cell = path.to(features.dtype)
        return _solve_cell(
            features, of_dev, labels, weights, strengths_of_cell, classes, at_once, tol=tol, max_iter=max_iter
        )

    # one cell at a time, so that its features stay in the processor's cache
    solved = _map_parallel(solve_cell, range(len(X)))
    W, loss, converged = (torch.stack(parts)[:, :, order.argsort()] for parts in zip(*solved, strict=True))
    return Solution(W[..., 1:], W[..., 0], loss, converged)


def _map_parallel(solve_cell: Callable[[int], Solved], cells: Iterable[int]) -> list[Solved]:
    """What `solve_cell` returns for every cell, run in parallel, one per core and each on a single thread.

    The products of a cell are short: several threads on one of them would wait for each other at every step, and for
    long if another program occupies a core. Cells in parallel do not wait for each other.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(solve_cell, cells))
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False)
class _Dev:
    """X (text, dim) and labels (label set, text) of dev."""

    X: Tensor
    labels: Tensor

    def bits(self, logits: Tensor, label_set: Tensor) -> Tensor:
        """(problem,) cross-entropy summed over the texts, nats. logits: (problem, class, text)."""
        labels = self.labels[label_set]
        log_proba = logits.log_softmax(1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
        return -(log_proba * (labels >= 0)).sum(1)


def _solve_cell(
    X: Tensor,
    dev: _Dev | None,
    labels: Tensor,
    weights: Tensor,
    path: Tensor,
    classes: int,
    at_once: int,
    *,
    tol: float,
    max_iter: int,
) -> Solved:
    """Coefficients (label set, strength, class, dim + 1), the intercept first; f and converged.

    X: (text, dim). labels, weights: (label set, text). path: (strength,) ascending.
    """
    if X.shape[1] > len(X):  # the optimum is in the span of the texts (Kimeldorf & Wahba 1971)
        squares, U = _eigh((X @ X.mT).to(_widest_dtype(X)))
        nonzero = squares > 1e-12 * squares[-1].clamp(min=1e-30)
        scale, U = squares[nonzero].sqrt(), U[:, nonzero]
        coordinates, directions = (U * scale).to(X.dtype), (U / scale).to(X.dtype).mT @ X
        inner_dev = dev and _Dev(dev.X @ directions.mT, dev.labels)
        W, loss, converged = _solve_cell(
            coordinates, inner_dev, labels, weights, path, classes, at_once, tol=tol, max_iter=max_iter
        )
        return torch.cat([W[..., :1], W[..., 1:] @ directions], -1), loss, converged
    share = weights.mean(0)
    share = share * (len(X) / share.sum().clamp(min=1e-30))
    eigenvalues, basis = _eigh(X.mT @ X if (share == 1).all() else X.mT @ (share[:, None] * X))
    spread = torch.cat([X.new_ones(1), eigenvalues.flip(0).clamp(min=0) / len(X)])
    cell = _Cell(X, basis.flip(1), spread)
    solved = []
    for sets in torch.arange(len(labels)).split(at_once):
        inner_dev = dev and _Dev(dev.X, dev.labels[sets])
        solved.append(
            _solve_sets(cell, inner_dev, labels[sets], weights[sets], path, classes, tol=tol, max_iter=max_iter)
        )
    W, loss, converged = (torch.cat(parts) for parts in zip(*solved, strict=True))
    return W, loss, converged


@dataclass(frozen=True, eq=False)
class _Cell:
    """X (text, dim), the eigenvectors of X'X (dim, dim), largest first, and X'X / n along (intercept, eigenvectors).

    A coordinate belongs to the intercept or to an eigenvector; X itself is never rotated.
    """

    X: Tensor
    basis: Tensor
    spread: Tensor

    def logits(self, V: Tensor) -> Tensor:
        """(row, coordinate) -> (row, text)."""
        return torch.addmm(V[:, :1], V[:, 1:] @ self.basis.mT, self.X.mT)

    def gradient(self, residual: Tensor) -> Tensor:
        """(row, text) -> (row, coordinate), the transpose of `logits`."""
        return torch.cat([residual.sum(1, keepdim=True), residual @ self.X @ self.basis], 1)


@dataclass(eq=False)
class _Problems:
    """The problems being solved, each a label set at a strength; the first axis is the problem.

    own: (problem, 1, text) codes. weights: (problem, text). contrast: T, (problem, contrast, class). penalty:
    (problem, 1, coordinate). C: (problem, 1, 1). V, data (the gradient of the data term over C), gradient, along (the
    gradient times the initial matrix): (problem, contrast, coordinate). Z logits, P probabilities: (problem, class,
    text).
    """

    label_set: Tensor
    strength: Tensor
    steps: Tensor
    has_heir: Tensor
    gain: Tensor
    own: Tensor
    weights: Tensor
    contrast: Tensor
    penalty: Tensor
    C: Tensor
    V: Tensor
    Z: Tensor
    P: Tensor
    data: Tensor
    gradient: Tensor
    along: Tensor

    def take(self, which: Tensor) -> Self:
        """The problems `which`, in that order."""
        return replace(self, **{field.name: getattr(self, field.name)[which] for field in fields(self)})


def _solve_sets(
    cell: _Cell,
    dev: _Dev | None,
    labels: Tensor,
    weights: Tensor,
    path: Tensor,
    classes: int,
    *,
    tol: float,
    max_iter: int,
) -> Solved:
    """As `_solve_cell`, for label sets whose logits fit into memory together."""
    sets, texts = labels.shape
    wide = _widest_dtype(cell.X)
    codes = labels.clamp(min=0)
    count = torch.zeros(sets, classes, dtype=wide, device=codes.device).scatter_add_(1, codes, weights.to(wide))
    present = count > 0
    start = (count / count.sum(1, keepdim=True)).log().to(weights.dtype).masked_fill(~present, IMPOSSIBLE)
    penalty = torch.where(present.sum(1) == 2, 2, 1).to(weights.dtype)[:, None, None] * torch.ones_like(cell.spread)
    penalty[..., 0] = 0
    W = cell.X.new_zeros(sets, len(path), classes, len(cell.spread))
    loss = torch.full(W.shape[:2], torch.inf, dtype=wide, device=W.device)
    dev_bits = loss.clone()
    dev_cell = None if dev is None else _Cell(dev.X, cell.basis, cell.spread)
    converged = torch.zeros(W.shape[:2], dtype=torch.bool, device=W.device)

    zero = torch.zeros(sets, dtype=torch.long, device=W.device)
    V = W[:, 0, 1:]
    Z = start[..., None].expand(-1, -1, texts)
    live = _Problems(
        label_set=zero + torch.arange(sets, device=W.device), strength=zero, steps=zero, has_heir=zero > 0,
        gain=0 * weights[:, 0], own=codes[:, None], weights=weights, contrast=_contrasts(present).to(W.dtype),
        penalty=penalty, C=path[zero][:, None, None], V=V, Z=Z, P=Z.softmax(1), data=V, gradient=V, along=V,
    )  # fmt: skip
    _update_gradient(cell, live)
    first = _InitialMatrix.of(cell, live)
    live.along = first(live.gradient)
    memory = _Memory(V.flatten(1))
    while True:
        # which problems are done, and which strengths begin; a new problem may be done at once
        while True:
            direction = -memory(live.gradient.flatten(1), live.along.flatten(1)).view_as(live.V)
            slope = _dot(live.gradient, direction)
            value = _value(live)
            good = (-0.5 * slope <= tol * value) & (live.gain <= tol * value)
            done = good | (live.steps >= max_iter)
            begins = (done | (-0.5 * slope <= START_NEXT * value)) & ~live.has_heir & (live.strength < len(path) - 1)
            if dev is not None and dev_cell is not None and begins.any():
                subset = live.take(begins)
                chosen, risen = subset.label_set, torch.zeros_like(begins)
                logits = subset.contrast.mT @ _apply_rows(dev_cell.logits, subset.contrast, subset.V, len(dev.X))
                dev_bits[chosen, subset.strength] = bits = dev.bits(start[chosen, :, None] + logits, chosen).to(wide)
                risen[begins] = bits > (1 + WORSENED) * dev_bits[chosen, (subset.strength - 1).clamp(min=0)]
                begins = begins & ~risen
                live.has_heir = live.has_heir | risen  # dev bits are not computed again
            if not (done | begins).any():
                break
            if done.any():
                ended = live.take(done)
                index = ended.label_set, ended.strength
                W[index], loss[index], converged[index] = ended.contrast.mT @ ended.V, _exact_value(ended), good[done]
            live.has_heir = live.has_heir | begins
            rest, heirs = (~done).nonzero()[:, 0], begins.nonzero()[:, 0]
            if not len(rest) + len(heirs):
                W[..., 0] += start[:, None]
                W[..., 0].masked_fill_(~present[:, None], -torch.inf)
                W[..., 1:] = W[..., 1:] @ cell.basis.mT
                return W, loss, converged
            rows = torch.cat([rest, heirs])
            live, first, memory = live.take(rows), first.take(rows), memory.take(rows)
            if len(heirs):
                new = torch.arange(len(rows), device=rows.device) >= len(rest)
                live.strength, live.C = live.strength + new, path[live.strength + new][:, None, None]
                live.steps, live.gain, live.has_heir = live.steps * ~new, live.gain * ~new, live.has_heir & ~new
                live.gradient = live.C * live.data + live.penalty * live.V
                first.renew(cell, live, new, first.coupled)
                ratio = live.C[new] / path[live.strength[new] - 1][:, None, None]
                memory.renew(new, ratio, live.penalty[new], first)
                live.along = first(live.gradient)

        # the change of the logits per unit length
        turn = live.contrast.mT @ _apply_rows(cell.logits, live.contrast, direction, texts)
        length, live.Z, live.P = _search(live, turn, direction, slope)
        step = length[:, None, None] * direction
        live.V, live.gain, live.steps = live.V + step, -0.5 * length * slope, live.steps + 1
        before = live.gradient, live.along
        _update_gradient(cell, live)
        live.along = first(live.gradient)
        memory.add(*(change.flatten(1) for change in (step, live.gradient - before[0], live.along - before[1])))
        stalled = (live.steps == PATIENCE) & ~first.coupled
        if stalled.any():
            first.renew(cell, live, stalled, stalled)
            memory.renew(stalled, torch.ones_like(live.C[stalled]), live.penalty[stalled], first)
            live.along = first(live.gradient)


def _contrasts(present: Tensor) -> Tensor:
    """T of every label set, (label set, class) -> (label set, class - 1, class): orthonormal rows that sum to 0 over
    the classes present and are 0 elsewhere; absent classes leave rows of zeros."""
    mask = present.to(_widest_dtype(present))
    eigenvalues, vectors = _eigh(torch.diag_embed(mask) - mask[:, None] * mask[:, :, None] / mask.sum(1)[:, None, None])
    return (vectors * eigenvalues.round()[:, None])[..., 1:].mT  # a projection: its eigenvalues are 0 and 1


def _apply_rows(product: Callable[[Tensor], Tensor], contrast: Tensor, V: Tensor, size: int) -> Tensor:
    """A product with X of (problem, contrast, ...), without the rows of zeros, -> (problem, contrast, size)."""
    rows = contrast.any(2).flatten().nonzero()[:, 0]
    flat = V.flatten(0, 1)
    if len(rows) == len(flat):
        return product(flat).view(*V.shape[:2], size)
    return V.new_zeros(len(flat), size).index_copy_(0, rows, product(flat[rows])).view(*V.shape[:2], size)


def _update_gradient(cell: _Cell, live: _Problems) -> None:
    """Set the gradient from P and V."""
    residual = (live.P * live.weights[:, None]).scatter_add(1, live.own, -live.weights[:, None])
    live.data = _apply_rows(cell.gradient, live.contrast, live.contrast @ residual, len(cell.spread))
    live.gradient = live.C * live.data + live.penalty * live.V


class _InitialMatrix:
    """Approximates the inverse of the Hessian (step 3), problem first.

    U, h: eigenvectors (problem, contrast, contrast) and eigenvalues (problem, contrast, coordinate) of the Kronecker
    product. inverse: of the part in which the classes are coupled, used if `coupled`, (problem,).
    """

    def __init__(self, U: Tensor, h: Tensor, inverse: Tensor, coupled: Tensor) -> None:
        self.U, self.h, self.inverse, self.coupled = U, h, inverse, coupled

    @classmethod
    def of(cls, cell: _Cell, live: _Problems) -> Self:
        """At P and C, without the coupled part."""
        weighted = live.P * live.weights[:, None]
        A = torch.diag_embed(weighted.sum(2)) - weighted @ live.P.mT
        alpha, U = _eigh((live.C * (live.contrast @ A @ live.contrast.mT)).to(_widest_dtype(A)))
        alpha, U = alpha.clamp(min=0).to(A.dtype), U.to(A.dtype)
        h = live.penalty + cell.spread * alpha[..., None]
        h[..., 0].clamp_(min=1e-4 * alpha.amax(1, keepdim=True) + 1e-30)
        contrasts, coordinates = h.shape[1:]
        order = contrasts * (1 + min(MAX_COUPLED, MAX_ORDER // max(1, contrasts), coordinates - 1))
        return cls(U, h, h.new_zeros(len(h), order, order), torch.zeros_like(live.has_heir))

    def renew(self, cell: _Cell, live: _Problems, which: Tensor, coupled: Tensor) -> None:
        """Recompute for the problems `which`, with the coupled part for those in `coupled`; both (problem,)."""
        subset = live.take(which)
        new = _InitialMatrix.of(cell, subset)
        for p in coupled[which].nonzero()[:, 0]:
            new._couple(cell, subset, p)
        self.U[which], self.h[which], self.inverse[which], self.coupled[which] = new.U, new.h, new.inverse, new.coupled

    def _couple(self, cell: _Cell, live: _Problems, p: Tensor) -> None:
        """Add the coupled part of problem p."""
        T, contrasts = live.contrast[p], live.contrast.shape[1]
        size = self.inverse.shape[1] // contrasts  # coordinates
        a, b = torch.triu_indices(contrasts, contrasts, device=T.device)
        n = min(MAX_TEXTS, MAX_PRODUCTS // (len(a) * size))
        sample = torch.randperm(len(cell.X), generator=torch.Generator().manual_seed(0))[:n].to(T.device)
        Q = torch.cat([T.new_ones(len(sample), 1), cell.X[sample] @ cell.basis[:, : size - 1]], 1)
        P = live.P[p][:, sample]
        weight = live.C[p, 0] * live.weights[p, sample] * ((T[a] * T[b]) @ P - (T[a] @ P) * (T[b] @ P))  # (pair, text)
        blocks = (weight[:, None] * Q.mT) @ Q * (len(cell.X) / len(sample))
        hessian = blocks.new_empty(contrasts, contrasts, size, size)
        hessian[a, b] = hessian[b, a] = blocks
        hessian = hessian.transpose(1, 2).reshape(contrasts * size, -1)
        diagonal = hessian.diagonal()
        diagonal += live.penalty[p, 0, :size].repeat(contrasts) + 1e-6 * diagonal.max()  # the latter against rounding
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            self.inverse[p], self.coupled[p] = torch.cholesky_inverse(factor), True

    def __call__(self, gradient: Tensor) -> Tensor:
        """(problem, contrast, coordinate) -> the same shape; also with one more axis after the first."""
        U, h, inverse, coupled = self.U, self.h, self.inverse, self.coupled[:, None, None]
        if gradient.ndim == 4:
            U, h, coupled = U[:, None], h[:, None], coupled[:, None]
        product = U @ (U.mT @ gradient / h)
        if self.coupled.any():
            contrasts = gradient.shape[-2]
            leading = gradient[..., : inverse.shape[1] // contrasts]
            solved = (leading.reshape(len(gradient), -1, inverse.shape[1]) @ inverse).view(leading.shape)
            product[..., : leading.shape[-1]] = torch.where(coupled, solved, product[..., : leading.shape[-1]])
        return product

    def take(self, which: Tensor) -> Self:
        """The problems `which`, in that order."""
        return type(self)(self.U[which], self.h[which], self.inverse[which], self.coupled[which])


class _Memory:
    """The last pairs of L-BFGS, (problem, pair, coordinate of all contrasts): step s, change y of the gradient, and of
    the gradient times the initial matrix, Hy; their products s'y and y'Hy, (problem, pair, pair).

    Pairs are in a ring buffer. One without curvature (rounding near the optimum) is stored as zeros.
    """

    def __init__(self, like: Tensor) -> None:
        problems, size = like.shape
        self.s, self.y, self.Hy = like.new_zeros(3, problems, MEMORY, size)
        self.sy, self.yHy = like.new_zeros(2, problems, MEMORY, MEMORY)
        self.added = 0

    def add(self, s: Tensor, y: Tensor, Hy: Tensor) -> None:
        """A pair of every problem, (problem, coordinate)."""
        sound = (_dot(s, y) > 1e-7 * s.norm(dim=1) * y.norm(dim=1))[:, None]
        slot = self.added % MEMORY
        self.added += 1
        self.s[:, slot], self.y[:, slot], self.Hy[:, slot] = s * sound, y * sound, Hy * sound
        self.sy[:, :, slot] = (self.s @ self.y[:, slot, :, None])[..., 0]
        self.yHy[:, slot] = self.yHy[:, :, slot] = (self.y @ self.Hy[:, slot, :, None])[..., 0]

    def __call__(self, g: Tensor, Hg: Tensor) -> Tensor:
        """The gradient (problem, coordinate) times the matrix of L-BFGS (Byrd, Nocedal & Schnabel 1994, theorem 2.2).

        With R the upper triangle of s'y, oldest pair first, and D its diagonal: Hg + s'v - (Hy)'u, where u = R^-1 s'g
        and v = R^-T [(D + y'Hy) u - y'Hg].
        """
        oldest = (torch.arange(MEMORY, device=g.device) + self.added) % MEMORY
        wide = _widest_dtype(g)
        R = self.sy[:, oldest][:, :, oldest].triu().to(wide)
        D = R.diagonal(dim1=1, dim2=2).clone()
        R.diagonal(dim1=1, dim2=2).add_(D == 0)  # pairs of zeros
        inner = self.yHy[:, oldest][:, :, oldest].to(wide) + torch.diag_embed(D)
        sg, yHg = ((a @ b[..., None])[:, oldest].to(wide) for a, b in ((self.s, g), (self.y, Hg)))
        u = torch.linalg.solve_triangular(R, sg, upper=True)
        v = torch.linalg.solve_triangular(R.mT, inner @ u - yHg, upper=False)
        slots = oldest.argsort()
        u, v = (a[:, slots].mT.to(g.dtype) for a in (u, v))
        return Hg + (v @ self.s - u @ self.Hy)[:, 0]

    def renew(self, which: Tensor, ratio: Tensor, penalty: Tensor, first: _InitialMatrix) -> None:
        """Update the pairs of the problems `which` after C was multiplied by `ratio` and the initial matrix changed."""
        contrasts = first.U.shape[1]
        s, y = (a[which].unflatten(2, (contrasts, -1)) for a in (self.s, self.y))
        penalty_part = penalty[:, None] * s
        y = ratio[:, None] * (y - penalty_part) + penalty_part
        Hy = first.take(which)(y)
        s, y, Hy = (a.flatten(2) for a in (s, y, Hy))
        self.y[which], self.Hy[which], self.sy[which], self.yHy[which] = y, Hy, s @ y.mT, y @ Hy.mT

    def take(self, which: Tensor) -> Self:
        """The problems `which`, in that order."""
        self.s, self.y, self.Hy, self.sy, self.yHy = (a[which] for a in (self.s, self.y, self.Hy, self.sy, self.yHy))
        return self


def _search(live: _Problems, turn: Tensor, direction: Tensor, slope: Tensor) -> Solved:
    """The step length of every problem, (problem,), and Z and P there: Newton on the derivative of f along the
    direction, bracketed. turn: (problem, class, text) of the logits. slope: (problem,) the derivative at 0."""
    C = live.C[:, 0, 0]
    tilt, bend = (_dot(live.penalty * live.V, direction), _dot(live.penalty * direction, direction))
    pull = (turn.gather(1, live.own)[:, 0] * live.weights).sum(1)
    low, high = torch.zeros_like(tilt), torch.full_like(tilt, torch.inf)
    length = torch.ones_like(tilt)
    for remaining in reversed(range(MAX_SEARCHES)):
        Z = live.Z + length[:, None, None] * turn
        P = Z.softmax(1)
        weighted = P * turn
        mean = weighted.sum(1)
        derivative = C * ((live.weights * mean).sum(1) - pull) + tilt + length * bend
        settled = derivative.abs() <= 0.3 * slope.abs()
        if settled.all() or not remaining:
            break
        curvature = C * (live.weights * ((weighted * turn).sum(1) - mean * mean)).sum(1) + bend
        low, high = torch.where(derivative < 0, length, low), torch.where(derivative > 0, length, high)
        newton = length - derivative / curvature.clamp(min=1e-30)
        middle = torch.where(high.isinf(), 2 * length, (low + high) / 2)
        proposal = torch.where((newton > low) & (newton < high) & (newton < 10 * length), newton, middle)
        length = torch.where(settled, length, proposal)
    return length, Z, P


def _value(live: _Problems) -> Tensor:
    """f of every problem, (problem,), to the precision of the probabilities: good enough for tolerances."""
    nats = -live.P.gather(1, live.own)[:, 0].clamp(min=1e-30).log()
    return live.C[:, 0, 0] * (live.weights * nats).sum(1) + 0.5 * _dot(live.penalty * live.V, live.V)


def _exact_value(live: _Problems) -> Tensor:
    """f of every problem, (problem,)."""
    wide = _widest_dtype(live.Z)
    Z = live.Z.to(wide)
    nats = live.weights * (Z.logsumexp(1) - Z.gather(1, live.own)[:, 0])
    return live.C[:, 0, 0] * nats.sum(1) + 0.5 * (live.penalty * live.V * live.V).sum((1, 2), dtype=wide)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(problem, ...) x (problem, ...) -> (problem,)."""
    return (a * b).flatten(1).sum(1)


def _widest_dtype(like: Tensor) -> torch.dtype:
    """The most precise float type of the device: Apple's GPUs have no float64."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def _eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors; computed on the CPU if the device cannot (Apple's)."""
    values, vectors = torch.linalg.eigh(A.cpu() if A.device.type == "mps" else A)
    return values.to(A.device), vectors.to(A.device)
