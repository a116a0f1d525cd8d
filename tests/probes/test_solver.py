"""The solver against scikit-learn's optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from clsprobe.probes.solver import solve

STRENGTHS = [1e-3, 1e-2, 1e-1, 1.0, 1e1]
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}


def make_data(n=300, dim=12, classes=6, noise=1.0, seed=0):
    """X (text, dim) centred, y (text,) drawn from a multinomial logit."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(n, dim))
    scores = X @ random.normal(size=(dim, classes)) + noise * random.gumbel(size=(n, classes))
    return X - X.mean(0), scores.argmax(1)


def rare():
    X, y = make_data()
    return X, np.where((y == 5) & (np.cumsum(y == 5) > 2), 0, y)


def constant():
    X, y = make_data()
    return np.hstack([X, np.zeros((len(X), 3))]), y


def separable():
    X, y = make_data(noise=0.0, classes=3)
    return X, y


CASES = {
    "two classes": lambda: make_data(classes=2),
    "two unequal classes": lambda: make_data(classes=2, seed=3),
    "six classes": make_data,
    "rare class": rare,
    "constant columns": constant,
    "more dims than texts": lambda: make_data(n=60, dim=100, classes=3),
    "separable": separable,
    "labels without signal": lambda: (make_data()[0], np.random.default_rng(1).integers(4, size=300)),
}


def value(X, y, coef, intercept, C, weight=None):
    """scikit-learn's objective; coef (1, dim) for two classes."""
    scores = X @ coef.T + intercept
    scores = np.hstack([np.zeros_like(scores), scores]) if len(coef) == 1 else scores
    losses = -log_softmax(scores, axis=1)[np.arange(len(y)), y]
    return C * (losses if weight is None else weight * losses).sum() + (coef**2).sum() / 2


def optimum(X, y, C, weight=None):
    fitted = LogisticRegression(C=C, tol=1e-10, max_iter=100_000).fit(X, y, sample_weight=weight)
    return value(X, y, fitted.coef_, fitted.intercept_, C, weight)


def solved(X, y, strengths=STRENGTHS, dtype=torch.float64, **more):
    y = y if y.ndim == 2 else y[:, None]
    return solve(torch.tensor(X, dtype=dtype)[None], torch.tensor(y), torch.tensor(strengths), **more)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_optimum_is_that_of_scikit_learn(case, dtype):
    X, y = CASES[case]()
    solution = solved(X, y, dtype=dtype)
    assert solution.converged.all()
    for s, C in enumerate(STRENGTHS):
        best = optimum(X, y, C)
        coef, intercept = solution.coef[0, 0, s].double().numpy(), solution.intercept[0, 0, s].double().numpy()
        if len(coef) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        # what the weights are worth, not what the solver says of itself
        assert value(X, y, coef, intercept, C) == pytest.approx(best, rel=TOLERANCE[dtype])
        assert float(solution.loss[0, 0, s]) == pytest.approx(best, rel=TOLERANCE[dtype])


def test_label_sets_together_are_label_sets_apart():
    X, six = make_data()
    random = np.random.default_rng(2)
    two = (X[:, 0] + random.normal(size=len(X)) > 0).astype(int)
    partial = np.where(random.random(len(X)) < 0.3, -1, six % 3)
    together = solved(X, np.stack([six, two, partial], 1))
    for i, labels in enumerate((six, two, partial)):
        known = labels >= 0
        reference = solve(torch.tensor(X)[None], torch.tensor(labels[:, None]), torch.tensor(STRENGTHS))
        classes = labels.max() + 1
        assert torch.allclose(together.loss[0, i], reference.loss[0, 0], rtol=1e-7)
        assert torch.allclose(together.coef[0, i, :, :classes], reference.coef[0, 0], atol=2e-3)
        assert (together.intercept[0, i, :, classes:] == -torch.inf).all()
        assert (together.coef[0, i, :, classes:] == 0).all()
        # texts without a label count for nothing, though they lie in X
        assert float(reference.loss[0, 0, 3]) == pytest.approx(optimum(X[known], labels[known], 1.0), rel=1e-6)


def test_weights_are_repetitions():
    X, y = make_data(n=150)
    weight = np.random.default_rng(0).integers(0, 3, size=len(X))
    weighted = solved(X, y, weight=torch.tensor(weight))
    repeated = solved(np.repeat(X, weight, 0), np.repeat(y, weight))
    assert torch.allclose(weighted.loss, repeated.loss, rtol=1e-7)
    assert float(weighted.loss[0, 0, 3]) == pytest.approx(optimum(X, y, 1.0, weight), rel=1e-6)


def test_a_class_without_texts_is_impossible_and_disturbs_nothing():
    X, y = make_data(classes=3)
    gap = np.where(y == 1, 3, y)  # 0, 2, 3
    with_gap, without = solved(X, gap), solved(X, y)
    assert (with_gap.intercept[..., 1] == -torch.inf).all()
    assert torch.isfinite(with_gap.intercept[..., [0, 2, 3]]).all()
    assert torch.allclose(with_gap.loss, without.loss, rtol=1e-9)


def test_without_features_classes_have_their_frequencies_exactly_ties_included():
    y = np.repeat([0, 1, 2, 1, 0], [70, 30, 50, 70, 30])  # 100, 100, 50
    solution = solved(np.full((250, 4), 1e-9), y, dtype=torch.float32)
    assert solution.converged.all()
    assert (solution.coef == 0).all()
    assert (solution.intercept[..., 0] == solution.intercept[..., 1]).all()
    assert torch.allclose(solution.intercept.softmax(-1), torch.tensor([0.4, 0.4, 0.2]))


def test_axes():
    X, y = make_data(n=80, dim=5, classes=4)
    cells = torch.tensor(np.stack([X, -X, X[:, ::-1].copy()]))
    solution = solve(cells, torch.tensor(np.stack([y, y % 2], 1)), torch.tensor([0.1, 1.0, 2.0]))
    assert solution.coef.shape == (3, 2, 3, 4, 5)
    assert solution.intercept.shape == (3, 2, 3, 4)
    assert solution.loss.shape == solution.converged.shape == (3, 2, 3)
    assert torch.allclose(solution.coef[1], -solution.coef[0], atol=1e-4)
    assert torch.allclose(solution.coef[2], solution.coef[0].flip(-1), atol=1e-3)


def test_many_classes_are_solved_a_few_problems_at_a_time(monkeypatch):
    X, y = make_data()
    whole = solved(X, np.stack([y, y % 2], 1))
    monkeypatch.setattr("clsprobe.probes.solver.MAX_LOGITS", 3 * 6 * len(X))
    parts = solved(X, np.stack([y, y % 2], 1))
    assert torch.allclose(whole.loss, parts.loss, rtol=1e-7)
    assert whole.coef.shape == parts.coef.shape


def test_what_did_not_converge_is_flagged():
    X, y = make_data()
    solution = solved(X, y, max_iter=1)
    assert not solution.converged.any()
    assert torch.isfinite(solution.loss).all()


def test_more_features_than_texts_have_scikit_learns_optimum():
    """Solved within the span of the texts: flattened tokens are wider than there are texts."""
    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(60, 400)), rng.integers(0, 3, 60)
    X -= X.mean(0)
    strengths = torch.tensor([1e-3, 1e-2, 1e-1], dtype=torch.float64)
    solution = solve(torch.as_tensor(X)[None], torch.as_tensor(y)[:, None], strengths, tol=1e-12)
    assert solution.converged.all()
    for s, C in enumerate(strengths.tolist()):
        wanted = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(X, y)
        coef = wanted.coef_ - wanted.coef_.mean(0)
        assert np.allclose(solution.coef[0, 0, s], coef, atol=1e-6)


@pytest.mark.parametrize("dim", [12, 90])  # 90: more than there are texts, solved within their span
def test_a_walk_ends_where_dev_bits_rise_and_misses_nothing(dim):
    random = np.random.default_rng(dim)
    X = random.normal(size=(2, 80, dim)).astype(np.float32)
    X_dev = random.normal(size=(2, 400, dim)).astype(np.float32)
    noise, signal = (lambda x: random.integers(0, 3, x.shape[1])), (lambda x: (x[0, :, 0] > 0) + 2 * (x[0, :, 1] > 1))
    y, y_dev = (np.stack([noise(x), signal(x)], 1).astype(np.int64) for x in (X, X_dev))
    y_dev[:50, 0] = -1
    given = torch.from_numpy(X), torch.from_numpy(y), torch.tensor([10.0, 1e-3, 0.1, 1e-2, 1.0])  # in any order
    every = solve(*given)
    solution = solve(*given, dev=(torch.from_numpy(X_dev), torch.from_numpy(y_dev)))
    walked = ~solution.loss.isinf()
    assert solution.converged[walked].all()
    assert not solution.converged[~walked].any()
    assert torch.allclose(solution.loss[walked], every.loss[walked], rtol=1e-6)
    Z = torch.from_numpy(X_dev)[:, None, None] @ every.coef.mT + every.intercept[..., None, :]
    nats = Z.double().log_softmax(-1)[:, [0, 1], :, :].permute(0, 1, 3, 4, 2)  # (cell, set, text, class, strength)
    for s in (0, 1):
        known = y_dev[:, s] >= 0
        bits = -nats[:, s, np.flatnonzero(known), y_dev[known, s]].sum(1)  # (cell, strength)
        best = bits.argmin(1)
        assert walked[torch.arange(2), s, best].all()
    assert not walked[:, 0, 0].any(), "noise at its weakest penalty"
    assert walked[:, :, 1].all(), "the strongest penalty is always solved"
