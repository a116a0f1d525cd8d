"""The online code and V-information: closed forms, brute force, and codes that must fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import StandardScaler

from clsprobe.probes import codelength, descent
from clsprobe.probes.codelength import OnlineCode, block_ends, v_information
from clsprobe.probes.linear import LogisticProbe
from clsprobe.probes.mlp import MLPProbe

pytestmark = pytest.mark.usefixtures("one_thread")
TREC = np.array([86, 1162, 1250, 1223, 835, 896]) / 5452  # how common the six classes of questions are


def noise(n, dim=8, cells=1, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(cells, n, dim)).astype(dtype)


def labels(n, share, seed=1):
    """(text, 1) codes, drawn in these proportions."""
    return np.random.default_rng(seed).choice(len(share), size=(n, 1), p=share)


def entropy(y):
    share = np.bincount(y.ravel()) / y.size
    return -(share * np.log2(share, where=share > 0, out=np.zeros_like(share))).sum()


def halves(X, y, n):
    return (X[:, :n], y[:n]), (X[:, n:], y[n:])


def signal(n=700, classes=3, dim=6, noise=1.0, seed=0, dtype=np.float32):
    random = np.random.default_rng(seed)
    X = random.normal(size=(1, n, dim))
    scores = 3 * X[0] @ random.normal(size=(dim, classes)) + noise * random.gumbel(size=(n, classes))
    return X.astype(dtype), scores.argmax(1)[:, None]


# ---------------------------------------------------------------------------------------------------------- the blocks


def test_blocks_end_where_voita_and_titov_say():
    assert block_ends(100_000, 2) == (100, 200, 400, 800, 1600, 3200, 6250, 12500, 25000, 50000, 100000)
    assert block_ends(5452, 6) == (12, 22, 44, 87, 174, 341, 682, 1363, 2726, 5452)
    assert block_ends(64, 3) == (6, 8, 16, 32, 64)  # 4 = 6.25 % is empty
    assert block_ends(10, 6) == (10,)


# ------------------------------------------------------------------------------------- labels that X says nothing about


@pytest.mark.parametrize("classes", [2, 6])
def test_uniform_labels_cost_the_uniform_code(classes):
    (train, y), dev = halves(noise(2200), labels(2200, np.full(classes, 1 / classes)), 2000)
    (code,) = OnlineCode(LogisticProbe())(train, y, dev=dev)
    assert code.uniform == pytest.approx(2000 * np.log2(classes))
    assert code.codelength == pytest.approx(code.uniform, rel=0.02)
    assert code.compression == pytest.approx(1, rel=0.02)
    assert code.converged.all()


def test_nats_taken_for_bits_would_be_seen(monkeypatch):
    def in_nats(*given, **more):
        result = codelength_predict(*given, **more)
        return replace(result, log2_proba=result.log2_proba * np.log(2))

    codelength_predict = codelength.predict_each
    monkeypatch.setattr(codelength, "predict_each", in_nats)
    (train, y), dev = halves(noise(1100), labels(1100, np.full(6, 1 / 6)), 1000)
    (code,) = OnlineCode(LogisticProbe())(train, y, dev=dev)
    assert code.codelength < 0.75 * code.uniform


def test_strengths_that_do_not_reach_the_prior_would_be_seen(monkeypatch):
    (train, y), dev = halves(noise(1100, dim=100), labels(1100, TREC), 1000)
    (code,) = OnlineCode(LogisticProbe())(train, y, dev=dev)
    monkeypatch.setattr(codelength, "STRENGTHS", (0.1, 1.0))
    (twin,) = OnlineCode(LogisticProbe())(train, y, dev=dev)
    assert twin.codelength > 1.3 * code.codelength


@pytest.mark.parametrize("probe", [LogisticProbe(), MLPProbe(8)], ids=lambda probe: type(probe).__name__)
def test_unequal_labels_cost_little_more_than_their_entropy(probe):
    (train, y), dev = halves(noise(2400), labels(2400, TREC), 2000)
    (code,) = OnlineCode(probe)(train, y, dev=dev)
    assert 1 < code.codelength[0] / (2000 * entropy(y)) < 1.01
    assert code.codelength < 0.95 * code.uniform


def test_almost_constant_labels_cost_almost_nothing():
    (train, y), dev = halves(noise(1100), labels(1100, [0.99, 0.01]), 1000)
    (code,) = OnlineCode(LogisticProbe())(train, y, dev=dev)
    assert code.codelength < 0.13 * code.uniform
    assert code.codelength > 1000 * entropy(y)


# ------------------------------------------------------------------------------------------------------------- a signal


def brute_force(X, y, dev, ends, evaluated):
    """The code of texts in the order given, with scikit-learn: bits of every block; accuracy and bits elsewhere."""
    K, result, curve = y.max() + 1, [ends[0] * np.log2(y.max() + 1)], []
    for fit, end in enumerate(ends):
        scaler = StandardScaler().fit(X[:end])
        seen = np.unique(y[:end])
        known = np.isin(dev[1], seen)
        best, fewest = None, np.inf
        for C in codelength.STRENGTHS:
            fitted = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(scaler.transform(X[:end]), y[:end])
            p = fitted.predict_proba(scaler.transform(dev[0][known]))
            nats = -np.log(p[np.arange(known.sum()), np.searchsorted(seen, dev[1][known])]).sum()
            if nats < fewest:
                best, fewest = fitted, nats
        texts, codes = np.concatenate([X[end:], evaluated[0]]), np.concatenate([y[end:], evaluated[1]])
        P = np.full((len(texts), K), 1 / (end + K))
        P[:, seen] = best.predict_proba(scaler.transform(texts)) * (1 - (K - len(seen)) / (end + K))
        bits = -np.log2(P[np.arange(len(texts)), codes])
        rest = len(y) - end
        curve.append(((P.argmax(1) == codes)[rest:].mean(), bits[rest:].mean()))
        if rest:
            result.append(bits[: ends[fit + 1] - end].sum())
    return result, np.array(curve)


@pytest.mark.parametrize("rare", [False, True])
def test_brute_force_with_scikit_learn_gives_the_same(rare):
    X, y = signal(204, dtype=np.float64)
    y[:, 0] = np.where(y[:, 0] == 2, 3, y[:, 0])  # a code that no text has
    code = OnlineCode(LogisticProbe(), seed=5)
    order = np.random.default_rng([5, 0xC0DE]).permutation(64)
    if rare:  # the first class is first met in the last block
        y[order[:40]] = y[order[:40]].clip(min=1)
        y[order[50:52]] = 0
        assert 0 in y[64:104]
    train, dev, test = ((X[:, rows], y[rows]) for rows in (slice(0, 64), slice(64, 104), slice(104, 204)))
    (result,) = code(*train, dev=dev, evaluated=test)
    assert result.ends.tolist() == [6, 8, 16, 32, 64]
    compact = [(x[0], np.searchsorted([0, 1, 3], codes[:, 0])) for x, codes in (train, dev, test)]
    lengths, curve = brute_force(*(part[order] for part in compact[0]), compact[1], result.ends.tolist(), compact[2])
    assert result.lengths[0] == pytest.approx(lengths, rel=2e-3, abs=2e-3)
    assert result.codelength[0] == pytest.approx(sum(lengths), rel=1e-3)
    assert result.uniform == pytest.approx(64 * np.log2(3))
    assert result.curve.n.tolist() == result.ends.tolist()
    assert result.curve.accuracy[0] == pytest.approx(curve[:, 0], abs=0.011)
    assert result.curve.bits[0] == pytest.approx(curve[:, 1], rel=2e-3)


def test_a_signal_shortens_the_code_and_more_of_it_more():
    lengths = []
    for strength in (0.3, 1, 3):
        (train, y), dev = halves(*signal(noise=1 / strength), 600)
        (code,) = OnlineCode(LogisticProbe())(train, y, dev=dev)
        lengths.append((code.codelength / code.uniform)[0])
    assert lengths[0] > lengths[1] > lengths[2]
    assert lengths[2] < 0.5


def test_the_curve_is_that_of_separate_fits():
    X, y = signal(600)
    train, dev, test = ((X[:, rows], y[rows]) for rows in (slice(0, 300), slice(300, 400), slice(400, 600)))
    (code,) = OnlineCode(LogisticProbe())(*train, dev=dev, evaluated=test)
    separate = LogisticProbe().fit_cells(*train, dev=dev, strengths=codelength.STRENGTHS)
    nats = separate.log_proba_cells(test[0])[0, 0]
    own = -nats[np.arange(200), test[1][:, 0]] / np.log(2)
    assert code.curve.n[-1] == 300
    assert code.curve.costs[0, -1] == pytest.approx(own, abs=1e-5)
    assert (code.curve.right[0, -1] == (nats.argmax(1) == test[1][:, 0])).mean() > 0.98
    assert code.curve.accuracy[0, -1] > code.curve.accuracy[0, 0]
    (without,) = OnlineCode(LogisticProbe())(*train, dev=dev)
    assert without.curve is None
    assert np.allclose(without.lengths, code.lengths, rtol=1e-4)


def test_the_block_coded_teaches_nothing():
    """Other labels and features in the last block leave the blocks before it as they are, bit for bit."""
    (train, y), dev = halves(*signal(500), 400)
    order = np.random.default_rng([0, 0xC0DE]).permutation(400)
    last = order[200:]
    X, garbage = train.copy(), y.copy()
    X[:, last] = 100
    garbage[last] = garbage[np.roll(last, 1)]
    sound, poisoned = (OnlineCode(LogisticProbe())(*each, dev=dev)[0].lengths[0] for each in ((train, y), (X, garbage)))
    assert np.array_equal(sound[:-1], poisoned[:-1])
    assert sound[-1] != poisoned[-1]


def test_the_seed_moves_the_order_only():
    (train, y), dev = halves(*signal(500), 400)
    first, again, other = (OnlineCode(LogisticProbe(), seed)(train, y, dev=dev)[0].codelength[0] for seed in (0, 0, 1))
    assert first == again
    assert 0 < abs(first - other) < 0.2 * first


# ------------------------------------------------------------------------------------- cells, label sets, what may fail


def test_cells_and_label_sets_are_what_they_are_alone():
    X = np.concatenate([signal(400)[0], noise(400, dim=6)])
    y = np.hstack([signal(400)[1], labels(400, [0.5, 0.5]), signal(400)[1] + 1])
    y[::3, 1] = -1  # other texts, so other blocks
    y[:, 2] = np.where(y[:, 2] == 3, -1, y[:, 2])
    parts = (X[:, :300], y[:300]), (X[:, 300:], y[300:])
    every = OnlineCode(LogisticProbe())(*parts[0], dev=parts[1], evaluated=parts[1])
    for s in range(3):
        (code,) = OnlineCode(LogisticProbe())(
            *(parts[0][0][:1], y[:300, s : s + 1]),
            dev=(parts[1][0][:1], y[300:, s : s + 1]),
            evaluated=(parts[1][0][:1], y[300:, s : s + 1]),
        )
        assert every[s].uniform == code.uniform
        assert every[s].codelength[:1] == pytest.approx(code.codelength, rel=1e-3)
        assert every[s].curve.bits[:1] == pytest.approx(code.curve.bits, rel=1e-3)
        assert every[s].curve.costs.shape[2] == (y[300:, s] >= 0).sum()
    assert every[1].uniform == (y[:300, 1] >= 0).sum()
    assert every[1].ends[-1] == (y[:300, 1] >= 0).sum()


@pytest.mark.parametrize("probe", [LogisticRegression(), GaussianNB()], ids=lambda probe: type(probe).__name__)
def test_ordinary_estimators_code_too(probe):
    """Also where the first block has one class only, on which none of them can be fitted."""
    X, y = signal(500, classes=2)
    order = np.random.default_rng([0, 0xC0DE]).permutation(400)
    y[order[:5]] = 1
    (train, y), dev = halves(X, y, 400)
    (code,) = OnlineCode(probe)(train, y, dev=dev, evaluated=dev)
    assert not code.failures
    assert 0 < code.codelength[0] < 0.8 * code.uniform
    assert np.isfinite(code.curve.bits).all()


class FailsInOneCell(LogisticProbe):
    def fit_cells(self, X, y, **more):
        if (X[..., 0] > 50).any():
            raise ValueError("too large for me")
        return super().fit_cells(X, y, **more)


def test_a_cell_that_fails_is_not_a_number():
    X, y = signal(400)
    X = np.concatenate([X, X + 100, X])
    (train, y), dev = halves(X, y, 300)
    (code,) = OnlineCode(FailsInOneCell())(train, y, dev=dev, evaluated=dev)
    assert code.failures == {1: "ValueError: too large for me"}
    for value in (code.codelength, code.compression, code.curve.accuracy[:, -1], code.curve.bits[:, 0]):
        assert np.isnan(value).tolist() == [False, True, False]
    assert code.converged.tolist() == [True, False, True]
    (information,) = v_information(FailsInOneCell(), train, y, dev=dev, evaluated=dev)
    assert np.isnan(information.bits).tolist() == [False, True, False]
    assert information.failures == code.failures
    (information,) = v_information(
        FailsInOneCell(), train[1:2], y, dev=(dev[0][1:2], dev[1]), evaluated=(dev[0][1:2], dev[1])
    )
    assert np.isnan(information.bits).all()


def test_what_cannot_be_coded_is_said():
    (train, y), dev = halves(*signal(100), 80)
    with pytest.raises(ValueError, match="label set 0 has 1 classes; a code needs two"):
        OnlineCode(LogisticProbe())(train, 0 * y, dev=dev)
    strange = dev[0], dev[1] + 5
    for measure in (OnlineCode(LogisticProbe()), lambda *a, **more: v_information(LogisticProbe(), *a, **more)):
        with pytest.raises(ValueError, match=r"label set 0: no train text has class \d"):
            measure(train, y, dev=dev, evaluated=strange)
    for measure in (OnlineCode(RidgeClassifier()), lambda *a, **more: v_information(RidgeClassifier(), *a, **more)):
        with pytest.raises(ValueError, match="RidgeClassifier gives no probabilities"):
            measure(train, y, dev=dev, evaluated=dev)


# -------------------------------------------------------------------------------------------------------- V-information


def gaussian(d, n, seed, dim=4):
    """x | y ~ N(+-d/2 u, I) and y (text, 1)."""
    random = np.random.default_rng(seed)
    y = random.integers(2, size=(n, 1))
    X = random.normal(size=(1, n, dim)).astype(np.float32)
    X[0, :, 1] += d * (y[:, 0] - 0.5)
    return X, y


def closed_form(d):
    """Bits that x tells of y: 1 - E log2(1 + exp(-d (d/2 + z))), z standard normal."""
    return 1 - quad(lambda z: norm.pdf(z) * np.logaddexp(0, -d * (d / 2 + z)) / np.log(2), -10, 10)[0]


@pytest.mark.parametrize("d", [1.0, 2.0])
def test_v_information_of_gaussians_is_the_closed_form(d):
    train, dev, test = (gaussian(d, n, seed) for seed, n in enumerate((8000, 2000, 60_000)))
    (result,) = v_information(LogisticProbe(), *train, dev=dev, evaluated=test)
    assert result.bits[0] == pytest.approx(closed_form(d), abs=0.01)
    assert (result.after < 1).mean() == pytest.approx(norm.cdf(d / 2), abs=0.01)
    assert result.terms.shape == (1, 60_000)
    assert result.terms.mean() == pytest.approx(result.bits[0])
    assert result.converged.all()


def test_nothing_is_worth_nothing_and_may_be_less():
    """The mean over many draws is not above 0, single ones fall on both sides or below."""
    values = []
    for seed in range(12):
        (train, y), dev = halves(noise(400, seed=seed), labels(400, [0.6, 0.4], seed), 200)
        test = noise(300, seed=100 + seed), labels(300, [0.6, 0.4], 100 + seed)
        values.append(v_information(LogisticProbe(), train, y, dev=dev, evaluated=test)[0].bits[0])
    assert min(values) < 0
    assert np.abs(values).max() < 0.05
    assert np.mean(values) < 0.005


def looks(n, seed):
    """B (text, dim), X (cell, text, dim), y: one of four. B and both cells have a look at its first bit, cell 1 at the
    second too; every look is a Gaussian of d = 4 of its own."""
    random = np.random.default_rng(seed)
    bit = random.integers(2, size=(n, 2))
    B, X = random.normal(size=(n, 3)).astype(np.float32), random.normal(size=(2, n, 3)).astype(np.float32)
    B[:, 0] += 4 * bit[:, 0]
    X[:, :, 0] += 4 * bit[:, 0]
    X[1, :, 1] += 4 * bit[:, 1]
    return B, X, 2 * bit[:, :1] + bit[:, 1:]


@pytest.mark.parametrize("probe", [LogisticProbe(), MLPProbe(8)], ids=lambda probe: type(probe).__name__)
def test_what_x_adds_is_not_what_b_says_already(probe, monkeypatch):
    monkeypatch.setattr(descent, "ROUNDS", 12)
    (B, X, y), (B_dev, X_dev, y_dev), (B_test, X_test, y_test) = (
        looks(n, seed) for seed, n in enumerate((1500, 500, 4000))
    )
    sides = {"dev": (X_dev, y_dev), "evaluated": (X_test, y_test)}
    (plain,) = v_information(probe, X, y, **sides)
    (added,) = v_information(probe, X, y, **sides, given=(B, B_dev, B_test))
    one, two = closed_form(4.0), closed_form(4.0 * 2**0.5)  # two independent looks are one with more distance
    assert plain.bits == pytest.approx([one, 2 * one], abs=0.05)
    assert added.bits == pytest.approx([two - one, two], abs=0.05)
    assert added.before.shape == (1, 4000)
    assert added.terms.shape == (2, 4000)


def test_label_sets_keep_their_own_texts():
    X, y = signal(600, classes=2)
    y = np.hstack([y, y, labels(600, [0.5, 0.5])])
    y[::2, 1] = -1
    train, dev, test = ((X[:, rows], y[rows]) for rows in (slice(0, 300), slice(300, 400), slice(400, 600)))
    first, half, coin = v_information(LogisticProbe(), *train, dev=dev, evaluated=test)
    assert first.terms.shape == coin.terms.shape == (1, 200)
    assert half.terms.shape == (1, 100)
    assert half.bits[0] > 0.4
    assert abs(coin.bits[0]) < 0.1
