"""What the linear probe finds in data whose truth is known: Gaussians with closed forms, and one cell in a grid."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from clsprobe.analysis import stats
from clsprobe.probes import metric
from clsprobe.probes.base import STRENGTHS, predict_each
from clsprobe.probes.linear import LogisticProbe

pytestmark = pytest.mark.usefixtures("one_thread")

DISTANCES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


def best_possible(d, share):
    """Accuracy, mean and standard deviation of the bits of the best probe of x | y ~ N(+-d/2 u, I), P(y = 1) = share.

    Along u the log odds of class 1 are d z + log(share / (1 - share)); METHODS 2 has the balanced case.
    """
    prior = np.log(share / (1 - share))

    def over(value):
        """E of value(log odds in favour of the own class) over both classes."""
        sides = [(share, 1.0), (1 - share, -1.0)]
        return sum(
            p * quad(lambda z, s=s: norm.pdf(z) * value(d * (d / 2 + z) + s * prior), -12, 12, limit=400, points=[0])[0]
            for p, s in sides
        )

    if d == 0:
        accuracy = max(share, 1 - share)
    else:
        accuracy = share * norm.cdf(d / 2 + prior / d) + (1 - share) * norm.cdf(d / 2 - prior / d)
    moments = [over(lambda odds, k=k: (np.logaddexp(0, -odds) / np.log(2)) ** k) for k in (1, 2)]
    return accuracy, moments[0], np.sqrt(max(moments[1] - moments[0] ** 2, 0))


def test_the_best_possible_of_balanced_classes_is_that_of_methods():
    for d in DISTANCES[1:]:
        accuracy, bits, _ = best_possible(d, 0.5)
        assert accuracy == pytest.approx(norm.cdf(d / 2))
        expected = quad(lambda z, d=d: norm.pdf(z) * np.log2(1 + np.exp(-d * (d / 2 + z))), -12, 12)[0]
        assert bits == pytest.approx(expected)


@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_accuracy_and_bits_are_the_closed_forms_of_gaussians(dim, share):
    """6 distances x 2 dimensions x 2 shares of classes: 24 settings, each within 3 SE; u in no special direction."""
    n, unseen = 12_000, 60_000
    random = np.random.default_rng([dim, int(10 * share)])
    u = random.normal(size=dim)
    y = (np.arange(n + unseen) % 10 < 10 * share).astype(int)
    X = random.normal(size=(len(DISTANCES), n + unseen, dim)).astype(np.float32)
    X += (np.array(DISTANCES)[:, None] * (y - 0.5))[..., None] * (u / np.linalg.norm(u))
    predictions = predict_each(LogisticProbe(), X[:, :n], y[:n, None], X[:, n:])
    own = np.take_along_axis(predictions.log2_proba[:, 0], y[None, n:, None], -1)[..., 0]
    once = np.ones((1, unseen))
    accuracy, bits = metric.accuracy(predictions.codes[:, 0], y[n:], once)[:, 0], metric.bits(own, once)[:, 0]
    for cell, d in enumerate(DISTANCES):
        right, mean, deviation = best_possible(d, share)
        assert abs(accuracy[cell] - right) < 3 * np.sqrt(right * (1 - right) / unseen), d
        fitting = (dim + 1) / (2 * n * np.log(2))  # what a fitted probe pays over the best one: half a nat a parameter
        assert abs(bits[cell] - mean - fitting) < 3 * max(deviation, 0.1) / np.sqrt(unseen), (
            d
        )  # at d = 0 nothing deviates


# ------------------------------------------------------------------------------------------------- one cell of a grid


def grid(seed, d):
    """METHODS 3: 13 x 8 cells, n = 600 + 400; one of them moved by d. Returns the cell, that dev chooses, max-T's p."""
    random, cells, train, dev, test = np.random.default_rng(seed), 104, 500, 100, 400
    y = np.arange(train + dev + test) % 2
    random.shuffle(y)
    X = random.normal(size=(cells, len(y), 4)).astype(np.float32)
    planted = int(random.integers(cells))
    X[planted, :, 0] += d * y
    sides = np.split(np.arange(len(y)), [train, train + dev])
    rows = np.concatenate(sides[1:])
    predictions = predict_each(
        LogisticProbe(), X[:, sides[0]], y[sides[0], None], X[:, rows],
        dev=(X[:, sides[1]], y[sides[1], None]), strengths=STRENGTHS,
    )  # fmt: skip
    codes, labels = predictions.codes[:, 0], y[rows]
    chosen = int((codes[:, :dev] == labels[:dev]).mean(1).argmax())
    p, threshold = stats.max_t(codes[:, dev:], labels[dev:], draws=199, seed=seed)
    right = (codes[:, dev:] == labels[dev:]).mean(1)
    assert ((right > threshold) == (p <= 0.05)).all()
    return planted, chosen, p


def search_planted(seeds):
    """How often the planted cell is the one that dev chooses, is significant, and how often another one is."""
    counts = np.zeros(3, int)
    for seed in seeds:
        planted, chosen, p = grid(seed, d=2)
        counts += chosen == planted, p[planted] <= 0.05, (np.delete(p, planted) <= 0.05).any()
    return counts.tolist()


def test_a_planted_cell_is_found_20_times_of_20():
    chosen, significant, false = search_planted(range(20))
    assert chosen == significant == 20
    assert false <= 3


@pytest.mark.long
def test_a_planted_cell_is_found_200_times_of_200():
    chosen, significant, false = search_planted(range(1000, 1200))
    assert chosen == significant == 200
    assert false / 200 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_nothing_is_found_where_nothing_is_planted():
    assert sum((grid(seed, d=0)[2] <= 0.05).any() for seed in range(3)) <= 1
