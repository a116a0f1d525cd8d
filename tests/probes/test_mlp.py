"""The probe with one hidden layer, and the training behind it (descent.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clsprobe.probes import descent
from clsprobe.probes.base import STRENGTHS
from clsprobe.probes.linear import LogisticProbe
from clsprobe.probes.mlp import MLPProbe
from clsprobe.probes.pooling import AttentionProbe

pytestmark = pytest.mark.usefixtures("one_thread", "few_rounds")


@pytest.fixture
def few_rounds(monkeypatch):
    """Enough for what is planted here; where dev is train the probes would go on for long."""
    monkeypatch.setattr(descent, "ROUNDS", 12)


def xor(n=400, cells=2, dim=4, seed=0):
    """X (cell, text, dim), y (text, label set): the signs of two coordinates of the last cell, and a coin."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(cells, n, dim)).astype(np.float32)
    return X, np.stack([(X[-1, :, 0] > 0) ^ (X[-1, :, 1] > 0), random.integers(2, size=n)], 1).astype(int)


def bits(probe, X, y):
    """(cell, label set) mean bits of the labels."""
    nats = probe.log_proba_cells(X)
    return -np.stack([nats[:, s, np.arange(len(y)), y[:, s]].mean(-1) for s in range(y.shape[1])], 1) / np.log(2)


def test_it_solves_what_no_plane_separates():
    X, y = xor(1000)
    train, dev, test = slice(0, 500), slice(500, 600), slice(600, 1000)
    for probe, reads in ((MLPProbe(16), True), (LogisticProbe(), False)):
        probe.fit_cells(X[:, train], y[train], dev=(X[:, dev], y[dev]), strengths=STRENGTHS)
        right = (probe.predict_cells(X[:, test]) == y[test].T).mean(-1)
        assert (right[1, 0] > 0.93) == reads
        right[1, 0] = 0.5
        assert np.abs(right - 0.5).max() < 0.11  # the other cell, the coin, and all for the linear probe


def test_the_optimum_of_a_convex_problem_is_found(monkeypatch):
    """A single token leaves AttentionProbe a multinomial logistic regression: the solver is the oracle."""
    monkeypatch.setattr(descent, "ROUNDS", 40)
    random = np.random.default_rng(0)
    X = random.normal(2, 3, size=(1, 2000, 10)).astype(np.float32)
    scores = X[0] @ random.normal(size=(10, 3)) / 3 + random.gumbel(size=(2000, 3))
    y = scores.argmax(1)[:, None]
    dev = X[:, 1600:], y[1600:]
    theirs = LogisticProbe(0.1).fit_cells(X[:, :1600], y[:1600]).log_proba_cells(X)
    ours = AttentionProbe(C=0.1).fit_cells(X[:, :1600], y[:1600], dev=dev).log_proba_cells(X)
    assert np.abs(np.exp(ours) - np.exp(theirs)).max() < 0.05
    assert np.abs(np.exp(ours) - np.exp(theirs)).mean() < 0.01


def test_training_stops_on_dev_and_not_on_train():
    X, y = xor(260, dim=40, seed=1)
    train, test = slice(0, 60), slice(160, 260)
    coin = y[:, 1:]
    stopped = MLPProbe(16).fit_cells(X[:, train], coin[train], dev=(X[:, 60:160], coin[60:160]))
    assert bits(stopped, X[:, test], coin[test]).max() < 1.1
    assert stopped.converged_.all()
    twin = MLPProbe(16).fit_cells(X[:, train], coin[train], dev=(X[:, train], coin[train]))
    assert bits(twin, X[:, test], coin[test]).min() > 1.5


def test_it_starts_as_the_class_frequencies(monkeypatch):
    monkeypatch.setattr(descent, "ROUNDS", 0)
    X, _ = xor(100)
    y = np.repeat([0, 1, 2, -1], [50, 25, 5, 20])[:, None]
    probe = MLPProbe().fit_cells(X, y)
    assert np.exp(probe.log_proba_cells(X)) == pytest.approx(np.tile([50 / 80, 25 / 80, 5 / 80], (2, 1, 100, 1)))
    assert not probe.converged_.any()


def test_a_penalty_without_bounds_leaves_the_class_frequencies():
    X, y = xor(400)
    probe = MLPProbe(16, C=1e-9).fit_cells(X, y, dev=(X, y))
    share = np.bincount(y[:, 0]) / len(y)
    assert np.abs(np.exp(probe.log_proba_cells(X))[:, 0] - share).max() < 0.02


def test_the_strength_kept_has_the_fewest_dev_bits():
    X, y = xor(300, dim=8)
    train, dev = slice(0, 200), slice(200, 300)
    grid = [1e-3, 1e-1, 10]
    chosen = MLPProbe(8).fit_cells(X[:, train], y[train], dev=(X[:, dev], y[dev]), strengths=grid)
    separate = [MLPProbe(8, C=C).fit_cells(X[:, train], y[train], dev=(X[:, dev], y[dev])) for C in grid]
    fewest = np.stack([bits(probe, X[:, dev], y[dev]) for probe in separate])
    assert np.allclose(bits(chosen, X[:, dev], y[dev]), fewest.min(0), atol=0.02)
    assert chosen.strength_[1, 0] == grid[fewest[:, 1, 0].argmin()]


@pytest.mark.parametrize("probe", [MLPProbe(8), AttentionProbe(2)], ids=lambda probe: type(probe).__name__)
def test_a_cell_and_a_label_set_are_what_they_are_alone(probe, monkeypatch):
    monkeypatch.setattr(descent, "ROUNDS", 2)
    X, y = xor(200, cells=2)
    y[::3, 1] = -1
    together = probe.fit_cells(X, y, dev=(X, y), strengths=[0.1, 1]).log_proba_cells(X)
    for cell, label_set in np.ndindex(2, 2):
        single, labels = X[cell : cell + 1], y[:, label_set : label_set + 1]
        separate = probe.fit_cells(single, labels, dev=(single, labels), strengths=[0.1, 1]).log_proba_cells(single)
        assert np.allclose(together[cell, label_set], separate[0, 0], atol=1e-3)


def test_the_seed_and_nothing_else_moves_it(monkeypatch):
    monkeypatch.setattr(descent, "ROUNDS", 3)
    X, y = xor(200)
    first = MLPProbe().fit_cells(X, y, dev=(X, y)).log_proba_cells(X)
    torch.manual_seed(17)
    np.random.seed(17)  # noqa: NPY002
    assert np.array_equal(first, MLPProbe().fit_cells(X, y, dev=(X, y)).log_proba_cells(X))
    assert not np.array_equal(first, MLPProbe(random_state=1).fit_cells(X, y, dev=(X, y)).log_proba_cells(X))


@pytest.mark.parametrize("probe", [MLPProbe(8), AttentionProbe()], ids=lambda probe: type(probe).__name__)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_classes_that_a_set_lacks_are_impossible_and_spoil_nothing(probe, dtype):
    X, y = xor(300)
    X = X.astype(dtype)
    X[..., 3] += 3 * y[:, 1]
    y = np.stack([y[:, 0], np.where(np.arange(300) % 3, y[:, 1] + 1, -1)], 1)  # set 1: classes 1 and 2, many unlabelled
    X.setflags(write=False)
    y.setflags(write=False)
    dev = y[200:].copy()
    dev[:30, 0] = 2  # set 0 cannot know it, and choosing goes on without these
    nats = probe.fit_cells(X[:, :200], y[:200], dev=(X[:, 200:], dev), strengths=[0.1, 1]).log_proba_cells(X)
    assert nats.dtype == dtype
    assert nats.shape == (2, 2, 300, 3)
    assert np.exp(nats).sum(-1) == pytest.approx(1, abs=1e-5)
    assert (nats[:, 0, :, 2] == -np.inf).all()
    assert (nats[:, 1, :, 0] == -np.inf).all()
    known = y[:, 1] > 0
    assert (nats[:, 1].argmax(-1) == y[:, 1])[:, known].mean() > 0.85


def test_a_set_without_dev_labels_is_told():
    X, y = xor(100, cells=1)
    X[..., 0] += 20 * y[:, 1] - 10  # learned at once
    dev = np.stack([np.full(100, -1), y[:, 1]], 1)
    assert AttentionProbe(C=1e-3).fit_cells(X, y, dev=(X, dev)).converged_.tolist() == [[False, True]]


def test_weights_decide_what_is_learned():
    X, y = xor(600)
    y[::2, 0] ^= 1  # half the labels are turned round ...
    weight = np.where(np.arange(600) % 2, 1.0, 0.01)  # ... and hardly count
    X_dev, y_dev = xor(200, seed=3)
    probe = MLPProbe(16).fit_cells(X, y, dev=(X_dev, y_dev), sample_weight=weight)
    assert (probe.predict_cells(X_dev)[1, 0] == y_dev[:, 0]).mean() > 0.85
