"""Many multinomial logistic regressions over the same texts, solved together.

For every cell (layer, readout), label set l and strength C the problem is scikit-learn's,

    min over W, b:  f = C sum_i w_i [log sum_k exp(z_ik) - z_i,y(i)] + 1/2 |W|^2,   z_i = x_i W + b,

convex, with the intercept b unpenalised. At the optimum the weights of the classes sum to nothing, so W = V'T, where
the rows of T, (class - 1, class), are orthonormal contrasts: |W| = |V|, and a text costs a product less. Two classes
have one vector in scikit-learn: the same problem under twice the penalty. A class without texts gets the intercept
-inf. All start at V = 0 and the classes' log frequencies, already the optimum where X is constant.

1. A label set walks along its strengths, the strongest penalty first: the optimum at one is where the next begins. It
   need not be exact: a strength that comes within `HEIR` x f of its optimum starts the next one and goes on, so
   several walk together, and one product with X serves the steps of all label sets and strengths under way. Given dev,
   a label set turns back where dev bits have risen from one strength to the next: what fits train closer still is not
   solved. Labels without a signal, whose weak penalties cost the most steps, end at the second strength.
2. A step is that of limited-memory BFGS (Liu & Nocedal 1989) in the compact form of Byrd, Nocedal & Schnabel (1994). A
   pair (step s, change of the gradient y) outlives a change of C: y is C times the change of the data's gradient plus
   the penalty's, which is known.
3. Its first matrix approximates the Hessian, C sum_i w_i A_i (x) x_i x_i' + penalty, A_i = T (diag(p_i) - p_i p_i') T'.
   Were A_i the same for all texts it would be A (x) X'X, diagonal in the eigenvectors of both (Boehning 1992 bounds it
   by such a product); those of X'X are found once a cell, and an L2 penalty does not see them. Where A_i differs much
   between texts the mean misleads, most of all in the directions in which the texts differ most. A problem that is not
   done after `PATIENCE` steps, and those that follow it, gets the true Hessian in the `LEADING` of these instead, all
   classes coupled, summed over a sample of the texts.
4. The logits are affine in the step: one product gives them for every step length. The line search is Newton's method
   on the derivative along the step (convex, so its root is bracketed), and costs no product with X.
5. A problem is done when both the decrement 1/2 g' H g, with the matrix H of 2, and the last step's gain, as the
   quadratic model has it, fall below `tol` x f.

Products run in the precision of X; f, and what is small and delicate, in float64 where the device has it. Cells are
independent: the caller chooses how many to pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

HEIR = 1e-3  # decrement, relative to f, at which the next strength begins
RISEN = 1e-3  # of the dev bits: what more of them ends a walk
MEMORY = 30  # pairs kept by L-BFGS
PATIENCE = 8  # steps without the coupled part of the first matrix
LEADING = 48  # directions in that part, at most
COUPLED = 512  # its order, at most: fewer directions where there are many classes
SAMPLE = 8192  # texts it is summed over, at most
SEARCHES = 12  # Newton steps of a line search, at most
LARGEST = 1 << 26  # numbers in the logits solved at once, at most
IMPOSSIBLE = -1e30  # the logit of a class without texts: finite, so that nothing times it is nothing


Solved = tuple[Tensor, Tensor, Tensor]  # coefficients, f, converged, each (label set, strength, ...)


@dataclass(frozen=True, eq=False)
class Solution:
    """coef: (cell, label set, strength, class, dim). intercept: (cell, label set, strength, class).

    loss: (cell, label set, strength) the value of f, infinite where the walk has ended before. converged: the same
    shape, True where it is the optimum.
    """

    coef: Tensor
    intercept: Tensor
    loss: Tensor
    converged: Tensor


def solve(
    X: Tensor,
    y: Tensor,
    strengths: Tensor,
    *,
    weight: Tensor | None = None,
    dev: tuple[Tensor, Tensor] | None = None,
    tol: float = 3e-8,
    max_iter: int = 500,
) -> Solution:
    """The optimum of every (cell, label set, strength), or of those that dev may prefer.

    X: (cell, text, dim), centred. y: (text, label set) integer codes, -1 where a text has no label in that set; a set
    need not have all the classes of the others. strengths: (strength,) values of C. weight: (text,) of each text, or
    (text, label set). dev: X, on the scale of X, and y of other texts. max_iter: steps at one strength.
    """
    labels, classes = y.T, int(y.max()) + 1
    weights = (labels >= 0).to(X.dtype)
    if weight is not None:
        weights = weights * weight.to(X.dtype).reshape(len(y), -1).T
    path, place = strengths.to(X.dtype).sort()
    at_once = max(1, LARGEST // (classes * X.shape[1] * len(path)))  # label sets whose logits fit into memory
    # one cell at a time keeps its features in the processor's cache
    found = _side_by_side(
        [
            partial(_one_cell, features, unseen, labels, weights, path, classes, at_once, tol=tol, max_iter=max_iter)
            for features, unseen in zip(X, _seen_by_cell(X, dev), strict=True)
        ]
    )
    W, loss, converged = (torch.stack(parts)[:, :, place.argsort()] for parts in zip(*found, strict=True))
    return Solution(W[..., 1:], W[..., 0], loss, converged)


def _seen_by_cell(X: Tensor, dev: tuple[Tensor, Tensor] | None) -> list[_Dev | None]:
    return [None] * len(X) if dev is None else [_Dev(features, dev[1].T) for features in dev[0]]


def _side_by_side(calls: Sequence[Callable[[], Solved]]) -> list[Solved]:
    """The results of the calls, one call a processor core, each on a single thread.

    The products of a cell are short: several threads on one of them wait for each other at every step, and wait long
    where another program holds a core. Cells side by side never wait.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(lambda call: call(), calls))
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False)
class _Dev:
    """X (text, dim), labels (label set, text) of texts that are not learned from."""

    X: Tensor
    labels: Tensor

    def bits(self, logits: Tensor, label_set: Tensor) -> Tensor:
        """(problem,) cross-entropy a text, in any unit. logits: (problem, class, text)."""
        labels = self.labels[label_set]
        own = logits.log_softmax(1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
        return -(own * (labels >= 0)).sum(1)


def _one_cell(
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
    if X.shape[1] > len(X):  # the optimum lies in the span of the texts (Kimeldorf & Wahba 1971): solve it there
        square, U = _eigh((X @ X.mT).to(_wide(X)))
        kept = square > 1e-12 * square[-1].clamp(min=1e-30)
        length, U = square[kept].sqrt(), U[:, kept]
        inside, back = (U * length).to(X.dtype), (U / length).to(X.dtype).mT @ X
        seen = dev and _Dev(dev.X @ back.mT, dev.labels)
        W, loss, converged = _one_cell(
            inside, seen, labels, weights, path, classes, at_once, tol=tol, max_iter=max_iter
        )
        return torch.cat([W[..., :1], W[..., 1:] @ back], -1), loss, converged
    share = weights.mean(0)
    share = share * (len(X) / share.sum().clamp(min=1e-30))
    eigenvalues, basis = _eigh(X.mT @ X if (share == 1).all() else X.mT @ (share[:, None] * X))
    spread = torch.cat([X.new_ones(1), eigenvalues.flip(0).clamp(min=0) / len(X)])
    cell = _Cell(X, basis.flip(1), spread)
    found = []
    for some in torch.arange(len(labels)).split(at_once):
        seen = dev and _Dev(dev.X, dev.labels[some])
        found.append(_walk(cell, seen, labels[some], weights[some], path, classes, tol=tol, max_iter=max_iter))
    W, loss, converged = (torch.cat(parts) for parts in zip(*found, strict=True))
    return W, loss, converged


@dataclass(frozen=True, eq=False)
class _Cell:
    """X (text, dim), the eigenvectors of X'X (dim, dim), largest first, and what X'X / n is along (intercept, these).

    A coordinate is the intercept or a place along an eigenvector; X itself is never rotated.
    """

    X: Tensor
    basis: Tensor
    spread: Tensor

    def logits(self, V: Tensor) -> Tensor:
        """(row, coordinate) -> (row, text)."""
        return torch.addmm(V[:, :1], V[:, 1:] @ self.basis.mT, self.X.mT)

    def gradient(self, residual: Tensor) -> Tensor:
        """(row, text) -> (row, coordinate), what `logits` is the transpose of."""
        return torch.cat([residual.sum(1, keepdim=True), residual @ self.X @ self.basis], 1)


@dataclass(eq=False)
class _Problems:
    """What is under way, problem first: a label set at a strength.

    own: (problem, 1, text) codes. weights: (problem, text). contrast: T, (problem, contrast, class). penalty:
    (problem, 1, coordinate). C: (problem, 1, 1). V, data (the gradient over C, less the penalty's), gradient, along
    (the gradient times the first matrix): (problem, contrast, coordinate). Z logits, P probabilities:
    (problem, class, text).
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
        """Those problems alone, in that order."""
        return replace(self, **{field.name: getattr(self, field.name)[which] for field in fields(self)})


def _walk(
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
    """As `_one_cell`, for label sets whose logits fit into memory together."""
    sets, texts = labels.shape
    wide = _wide(cell.X)
    own = labels.clamp(min=0)
    count = torch.zeros(sets, classes, dtype=wide, device=own.device).scatter_add_(1, own, weights.to(wide))
    present = count > 0
    start = (count / count.sum(1, keepdim=True)).log().to(weights.dtype).masked_fill(~present, IMPOSSIBLE)
    penalty = torch.where(present.sum(1) == 2, 2, 1).to(weights.dtype)[:, None, None] * torch.ones_like(cell.spread)
    penalty[..., 0] = 0
    W = cell.X.new_zeros(sets, len(path), classes, len(cell.spread))
    loss = torch.full(W.shape[:2], torch.inf, dtype=wide, device=W.device)
    told = loss.clone()  # dev bits
    unseen = None if dev is None else _Cell(dev.X, cell.basis, cell.spread)
    converged = torch.zeros(W.shape[:2], dtype=torch.bool, device=W.device)

    none = torch.zeros(sets, dtype=torch.long, device=W.device)
    V = W[:, 0, 1:]
    Z = start[..., None].expand(-1, -1, texts)
    at = _Problems(
        label_set=none + torch.arange(sets, device=W.device), strength=none, steps=none, has_heir=none > 0,
        gain=0 * weights[:, 0], own=own[:, None], weights=weights, contrast=_contrasts(present).to(W.dtype),
        penalty=penalty, C=path[none][:, None, None], V=V, Z=Z, P=Z.softmax(1), data=V, gradient=V, along=V,
    )  # fmt: skip
    _measure(cell, at)
    first = _FirstMatrix.of(cell, at)
    at.along = first(at.gradient)
    memory = _Memory(V.flatten(1))
    while True:
        # who is done, and who begins; a new problem may be done at once
        while True:
            direction = -memory(at.gradient.flatten(1), at.along.flatten(1)).view_as(at.V)
            slope = _dot(at.gradient, direction)
            limit = _value(at)
            good = (-0.5 * slope <= tol * limit) & (at.gain <= tol * limit)
            done = good | (at.steps >= max_iter)
            begins = (done | (-0.5 * slope <= HEIR * limit)) & ~at.has_heir & (at.strength < len(path) - 1)
            if dev is not None and unseen is not None and begins.any():
                near = at.take(begins)
                own_set, turns = near.label_set, torch.zeros_like(begins)
                logits = near.contrast.mT @ _by_rows(unseen.logits, near.contrast, near.V, len(dev.X))
                told[own_set, near.strength] = bits = dev.bits(start[own_set, :, None] + logits, own_set).to(wide)
                turns[begins] = bits > (1 + RISEN) * told[own_set, (near.strength - 1).clamp(min=0)]
                begins = begins & ~turns
                at.has_heir = at.has_heir | turns  # it is not asked again
            if not (done | begins).any():
                break
            if done.any():
                ready = at.take(done)
                place = ready.label_set, ready.strength
                W[place], loss[place], converged[place] = ready.contrast.mT @ ready.V, _exact_value(ready), good[done]
            at.has_heir = at.has_heir | begins
            kept, heirs = (~done).nonzero()[:, 0], begins.nonzero()[:, 0]
            if not len(kept) + len(heirs):
                W[..., 0] += start[:, None]
                W[..., 0].masked_fill_(~present[:, None], -torch.inf)
                W[..., 1:] = W[..., 1:] @ cell.basis.mT
                return W, loss, converged
            both = torch.cat([kept, heirs])
            at, first, memory = at.take(both), first.take(both), memory.take(both)
            if len(heirs):
                new = torch.arange(len(both), device=both.device) >= len(kept)
                at.strength, at.C = at.strength + new, path[at.strength + new][:, None, None]
                at.steps, at.gain, at.has_heir = at.steps * ~new, at.gain * ~new, at.has_heir & ~new
                at.gradient = at.C * at.data + at.penalty * at.V
                first.renew(cell, at, new, first.coupled)
                memory.renew(new, at.C[new] / path[at.strength[new] - 1][:, None, None], at.penalty[new], first)
                at.along = first(at.gradient)

        turn = at.contrast.mT @ _by_rows(cell.logits, at.contrast, direction, texts)  # of the logits, per unit length
        length, at.Z, at.P = _search(at, turn, direction, slope)
        step = length[:, None, None] * direction
        at.V, at.gain, at.steps = at.V + step, -0.5 * length * slope, at.steps + 1
        before = at.gradient, at.along
        _measure(cell, at)
        at.along = first(at.gradient)
        memory.add(*(change.flatten(1) for change in (step, at.gradient - before[0], at.along - before[1])))
        late = (at.steps == PATIENCE) & ~first.coupled
        if late.any():
            first.renew(cell, at, late, late)
            memory.renew(late, torch.ones_like(at.C[late]), at.penalty[late], first)
            at.along = first(at.gradient)


def _contrasts(present: Tensor) -> Tensor:
    """T of every label set, (label set, class) -> (label set, class - 1, class): orthonormal rows that sum to nothing
    over the classes present and are nothing elsewhere; rows of nothing fill up where classes are absent."""
    here = present.to(_wide(present))
    kept, vectors = _eigh(torch.diag_embed(here) - here[:, None] * here[:, :, None] / here.sum(1)[:, None, None])
    return (vectors * kept.round()[:, None])[..., 1:].mT  # a projection: its eigenvalues are 0 and 1


def _by_rows(product: Callable[[Tensor], Tensor], contrast: Tensor, given: Tensor, size: int) -> Tensor:
    """A product with X of (problem, contrast, ...), rows of nothing left out, -> (problem, contrast, size)."""
    rows = contrast.any(2).flatten().nonzero()[:, 0]
    flat = given.flatten(0, 1)
    if len(rows) == len(flat):
        return product(flat).view(*given.shape[:2], size)
    return given.new_zeros(len(flat), size).index_copy_(0, rows, product(flat[rows])).view(*given.shape[:2], size)


def _measure(cell: _Cell, at: _Problems) -> None:
    """The gradient at P and V."""
    residual = (at.P * at.weights[:, None]).scatter_add(1, at.own, -at.weights[:, None])
    at.data = _by_rows(cell.gradient, at.contrast, at.contrast @ residual, len(cell.spread))
    at.gradient = at.C * at.data + at.penalty * at.V


class _FirstMatrix:
    """Approximates the inverse of the Hessian (step 3), problem first.

    U, h: eigenvectors (problem, contrast, contrast) and values (problem, contrast, coordinate) of the Kronecker
    product. inverse: of the part in which the classes are coupled, used where `coupled`, (problem,).
    """

    def __init__(self, U: Tensor, h: Tensor, inverse: Tensor, coupled: Tensor) -> None:
        self.U, self.h, self.inverse, self.coupled = U, h, inverse, coupled

    @classmethod
    def of(cls, cell: _Cell, at: _Problems) -> Self:
        """At P and C, nothing coupled."""
        weighted = at.P * at.weights[:, None]
        A = torch.diag_embed(weighted.sum(2)) - weighted @ at.P.mT
        alpha, U = _eigh((at.C * (at.contrast @ A @ at.contrast.mT)).to(_wide(A)))
        alpha, U = alpha.clamp(min=0).to(A.dtype), U.to(A.dtype)
        h = at.penalty + cell.spread * alpha[..., None]
        h[..., 0].clamp_(min=1e-4 * alpha.amax(1, keepdim=True) + 1e-30)
        contrasts, coordinates = h.shape[1:]
        order = contrasts * (1 + min(LEADING, COUPLED // max(1, contrasts), coordinates - 1))
        return cls(U, h, h.new_zeros(len(h), order, order), torch.zeros_like(at.has_heir))

    def renew(self, cell: _Cell, at: _Problems, which: Tensor, coupled: Tensor) -> None:
        """At the P and C of the problems `which`, with the coupled part for those of `coupled`; both (problem,)."""
        part = at.take(which)
        new = _FirstMatrix.of(cell, part)
        for p in coupled[which].nonzero()[:, 0]:
            new._couple(cell, part, p)
        self.U[which], self.h[which], self.inverse[which], self.coupled[which] = new.U, new.h, new.inverse, new.coupled

    def _couple(self, cell: _Cell, at: _Problems, p: Tensor) -> None:
        """Add the coupled part of problem p."""
        T, contrasts = at.contrast[p], at.contrast.shape[1]
        size = self.inverse.shape[1] // contrasts  # coordinates
        a, b = torch.triu_indices(contrasts, contrasts, device=T.device)
        most = min(SAMPLE, LARGEST // (4 * len(a) * size))
        some = torch.randperm(len(cell.X), generator=torch.Generator().manual_seed(0))[:most].to(T.device)
        Q = torch.cat([T.new_ones(len(some), 1), cell.X[some] @ cell.basis[:, : size - 1]], 1)
        P = at.P[p][:, some]
        weight = at.C[p, 0] * at.weights[p, some] * ((T[a] * T[b]) @ P - (T[a] @ P) * (T[b] @ P))  # (pair, text)
        blocks = (weight[:, None] * Q.mT) @ Q * (len(cell.X) / len(some))
        hessian = blocks.new_empty(contrasts, contrasts, size, size)
        hessian[a, b] = hessian[b, a] = blocks
        hessian = hessian.transpose(1, 2).reshape(contrasts * size, -1)
        diagonal = hessian.diagonal()
        diagonal += at.penalty[p, 0, :size].repeat(contrasts) + 1e-6 * diagonal.max()  # the last against rounding
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            self.inverse[p], self.coupled[p] = torch.cholesky_inverse(factor), True

    def __call__(self, gradient: Tensor) -> Tensor:
        """(problem, contrast, coordinate) -> the same; with another axis after the problem's, of all along it."""
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
        """Those problems alone, in that order."""
        return type(self)(self.U[which], self.h[which], self.inverse[which], self.coupled[which])


class _Memory:
    """The last pairs of L-BFGS, (problem, pair, coordinate of all contrasts): step s, change y of the gradient, and of
    the gradient times the first matrix, Hy; their products s'y and y'Hy, (problem, pair, pair).

    Pairs stand in a ring. One without curvature (rounding near the optimum) is kept as nothing.
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
        wide = _wide(g)
        R = self.sy[:, oldest][:, :, oldest].triu().to(wide)
        D = R.diagonal(dim1=1, dim2=2).clone()
        R.diagonal(dim1=1, dim2=2).add_(D == 0)  # pairs that are nothing
        inner = self.yHy[:, oldest][:, :, oldest].to(wide) + torch.diag_embed(D)
        sg, yHg = ((a @ b[..., None])[:, oldest].to(wide) for a, b in ((self.s, g), (self.y, Hg)))
        u = torch.linalg.solve_triangular(R, sg, upper=True)
        v = torch.linalg.solve_triangular(R.mT, inner @ u - yHg, upper=False)
        place = oldest.argsort()
        u, v = (a[:, place].mT.to(g.dtype) for a in (u, v))
        return Hg + (v @ self.s - u @ self.Hy)[:, 0]

    def renew(self, which: Tensor, ratio: Tensor, penalty: Tensor, first: _FirstMatrix) -> None:
        """What the pairs of the problems `which` are where C is `ratio` times what it was, under a new first matrix."""
        contrasts = first.U.shape[1]
        s, y = (a[which].unflatten(2, (contrasts, -1)) for a in (self.s, self.y))
        known = penalty[:, None] * s
        y = ratio[:, None] * (y - known) + known
        Hy = first.take(which)(y)
        s, y, Hy = (a.flatten(2) for a in (s, y, Hy))
        self.y[which], self.Hy[which], self.sy[which], self.yHy[which] = y, Hy, s @ y.mT, y @ Hy.mT

    def take(self, which: Tensor) -> Self:
        """Those problems alone, in that order."""
        self.s, self.y, self.Hy, self.sy, self.yHy = (a[which] for a in (self.s, self.y, self.Hy, self.sy, self.yHy))
        return self


def _search(at: _Problems, turn: Tensor, direction: Tensor, slope: Tensor) -> Solved:
    """The step length of every problem, (problem,), and Z and P there: Newton on the derivative of f along the
    direction, bracketed. turn: (problem, class, text) of the logits. slope: (problem,) the derivative at 0."""
    C = at.C[:, 0, 0]
    flat, bend = _dot(at.penalty * at.V, direction), _dot(at.penalty * direction, direction)
    toward = (turn.gather(1, at.own)[:, 0] * at.weights).sum(1)
    low, high = torch.zeros_like(flat), torch.full_like(flat, torch.inf)
    length = torch.ones_like(flat)
    for left in reversed(range(SEARCHES)):
        Z = at.Z + length[:, None, None] * turn
        P = Z.softmax(1)
        tilted = P * turn
        mean = tilted.sum(1)
        first = C * ((at.weights * mean).sum(1) - toward) + flat + length * bend
        settled = first.abs() <= 0.3 * slope.abs()
        if settled.all() or not left:
            break
        second = C * (at.weights * ((tilted * turn).sum(1) - mean * mean)).sum(1) + bend
        low, high = torch.where(first < 0, length, low), torch.where(first > 0, length, high)
        newton = length - first / second.clamp(min=1e-30)
        middle = torch.where(high.isinf(), 2 * length, (low + high) / 2)
        proposed = torch.where((newton > low) & (newton < high) & (newton < 10 * length), newton, middle)
        length = torch.where(settled, length, proposed)
    return length, Z, P


def _value(at: _Problems) -> Tensor:
    """f of every problem, (problem,), as well as the probabilities tell it: a measure for tolerances."""
    nats = -at.P.gather(1, at.own)[:, 0].clamp(min=1e-30).log()
    return at.C[:, 0, 0] * (at.weights * nats).sum(1) + 0.5 * _dot(at.penalty * at.V, at.V)


def _exact_value(at: _Problems) -> Tensor:
    """f of every problem, (problem,)."""
    wide = _wide(at.Z)
    Z = at.Z.to(wide)
    nats = at.weights * (Z.logsumexp(1) - Z.gather(1, at.own)[:, 0])
    return at.C[:, 0, 0] * nats.sum(1) + 0.5 * (at.penalty * at.V * at.V).sum((1, 2), dtype=wide)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(problem, ...) x (problem, ...) -> (problem,)."""
    return (a * b).flatten(1).sum(1)


def _wide(like: Tensor) -> torch.dtype:
    """The most precise type of the device: Apple's GPUs have no float64."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def _eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ascending and eigenvectors, found on the CPU where the device cannot (Apple's)."""
    values, vectors = torch.linalg.eigh(A.cpu() if A.device.type == "mps" else A)
    return values.to(A.device), vectors.to(A.device)
