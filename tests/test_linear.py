"""The logistic probe: standardisation, the strength chosen on dev, what it predicts."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from probes.base import STRENGTHS
from probes.linear import LogisticProbe


def cells(n=240, dim=8, classes=3, dtype=np.float32, seed=0):
    """X (cell, text, dim), y (text, label set): labels so noisy that dev has a choice to make."""
    random = np.random.default_rng(seed)
    X = random.normal(3, 5, size=(2, n, dim)).astype(dtype)
    scores = (X[0] - 3) / 5 @ random.normal(size=(dim, classes)) + 2 * random.gumbel(size=(n, classes))
    return X, np.stack([scores.argmax(1), random.integers(2, size=n)], 1)


def bits(probe, X, y):
    """(cell, label set) mean bits of the labels."""
    nats = probe.log_proba_cells(X)
    return -np.stack([nats[:, s, np.arange(len(y)), y[:, s]].mean(-1) for s in range(y.shape[1])], 1) / np.log(2)


def test_the_strength_kept_has_the_fewest_dev_bits_and_no_refit_follows():
    X, y = cells()
    train, dev = slice(0, 160), slice(160, 240)
    chosen = LogisticProbe().fit_cells(X[:, train], y[train], dev=(X[:, dev], y[dev]), strengths=STRENGTHS)
    alone = [LogisticProbe(C=C).fit_cells(X[:, train], y[train]) for C in STRENGTHS]
    best = np.stack([bits(probe, X[:, dev], y[dev]) for probe in alone]).argmin(0)
    assert np.array_equal(chosen.strength_, np.array(STRENGTHS)[best])
    assert len(np.unique(best)) > 1  # the choice is per cell and label set
    for cell, label_set in np.ndindex(2, 2):
        same = alone[best[cell, label_set]]
        assert np.allclose(chosen.coef_[cell, label_set], same.coef_[cell, label_set], atol=2e-3)
        assert np.array_equal(chosen.mean_, same.mean_)


def test_dev_texts_without_a_label_do_not_choose():
    X, y = cells()
    train, dev = slice(0, 160), slice(160, 240)
    some = y[dev].copy()
    some[::2, 0] = -1
    chosen = LogisticProbe().fit_cells(X[:, train], y[train], dev=(X[:, dev], some), strengths=STRENGTHS)
    known = LogisticProbe().fit_cells(
        X[:, train], y[train], dev=(X[:, dev][:, 1::2], y[dev][1::2]), strengths=STRENGTHS
    )
    assert np.array_equal(chosen.strength_[:, 0], known.strength_[:, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_and_rounding_noise_has_scale_one(dtype):
    """The vector of layer-0 [CLS]: its float32 standard deviation is not exactly 0."""
    random = np.random.default_rng(0)
    one = random.normal(size=384).astype(dtype)
    X = np.tile(one, (1, 500, 1))
    X[0, ::7] = np.nextafter(X[0, ::7], dtype(np.inf), dtype=dtype)  # what another batch shape does
    y = np.repeat([0, 1, 2], [230, 230, 40])[:, None]  # two classes share the first place
    probe = LogisticProbe().fit_cells(X, y, dev=(X, y), strengths=STRENGTHS)
    assert (probe.scale_ == 1).all()
    assert (probe.predict_cells(X) == 0).all()  # the lowest code among equals, as the majority baseline says
    assert np.exp(probe.log_proba_cells(X))[0, 0, 0] == pytest.approx([0.46, 0.46, 0.08], abs=1e-5)


def test_standardised_as_scikit_learn_does():
    X, y = cells()
    probe = LogisticProbe().fit_cells(X, y)
    for cell in range(2):
        scaler = StandardScaler().fit(X[cell].astype(np.float64))
        assert probe.mean_[cell] == pytest.approx(scaler.mean_, rel=1e-5)
        assert probe.scale_[cell] == pytest.approx(scaler.scale_, rel=1e-5)
    assert np.array_equal(probe.predict_cells(X), LogisticProbe().fit_cells(7 * X + 100, y).predict_cells(7 * X + 100))


def test_sample_weights_are_repetitions():
    X, y = cells(dtype=np.float64)
    weight = np.random.default_rng(0).integers(0, 3, size=len(y))
    weighted = LogisticProbe().fit_cells(X, y, sample_weight=weight)
    repeated = LogisticProbe().fit_cells(np.repeat(X, weight, 1), np.repeat(y, weight, 0))
    assert weighted.mean_ == pytest.approx(repeated.mean_)
    assert weighted.scale_ == pytest.approx(repeated.scale_)
    assert np.allclose(weighted.log_proba_cells(X), repeated.log_proba_cells(X), atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_sum_to_one_and_absent_classes_are_impossible(dtype):
    X, y = cells(dtype=dtype)
    probe = LogisticProbe().fit_cells(X, y)
    nats = probe.log_proba_cells(X)
    assert nats.dtype == probe.coef_.dtype == probe.mean_.dtype == dtype
    assert nats.shape == (2, 2, 240, 3)
    assert np.exp(nats).sum(-1) == pytest.approx(1, abs=1e-5)
    assert (nats[:, 1, :, 2] == -np.inf).all()
    assert np.isfinite(nats[:, 0]).all()
    gap = LogisticProbe().fit_cells(X, np.where(y == 1, 2, y))  # a code that no text has lies between two that have
    assert (gap.log_proba_cells(X)[:, 1, :, 1] == -np.inf).all()


def test_read_only_inputs():
    X, y = cells()
    X.setflags(write=False)
    y.setflags(write=False)
    LogisticProbe().fit_cells(X, y, dev=(X, y), strengths=STRENGTHS).log_proba_cells(X)


def test_scikit_learns_entrance_is_the_same_arithmetic():
    X, y = cells(dtype=np.float64)
    names = np.array(["b", "a", "c"])
    plain = LogisticProbe(C=0.1).fit(X[0], names[y[:, 0]])
    grid = LogisticProbe(C=0.1).fit_cells(X, y)
    assert plain.classes_.tolist() == ["a", "b", "c"]
    assert np.array_equal(plain.predict(X[0]), names[grid.predict_cells(X)[0, 0]])
    reference = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000)
    Z = StandardScaler().fit_transform(X[0])
    assert plain.predict_proba(X[0]) == pytest.approx(reference.fit(Z, names[y[:, 0]]).predict_proba(Z), abs=2e-4)


# ------------------------------------------------------------------------------------------------------------ real text


def questions(folder, side):
    rows = (folder / "trec" / f"{side}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    coarse, _, texts = zip(*(row.split("\t") for row in rows), strict=True)
    return list(texts), np.unique(coarse, return_inverse=True)[1]


def agreement(folder, cells, train_texts):
    """How often our predictions on TREC's test are those of scikit-learn's at the same strength, for every cell."""
    from probes.encoder import load_encoder
    from probes.extract import Extractor

    (texts, y), (test_texts, _) = questions(folder, "train"), questions(folder, "test")
    texts, y = texts[:train_texts], y[:train_texts]
    readouts = list(dict.fromkeys(readout for _, readout in cells))
    states = Extractor(load_encoder(), readouts, layers=sorted({layer for layer, _ in cells}))(texts + test_texts)
    for cell in cells:
        X = states.cell(*cell)
        train, test = X[: len(texts)], X[len(texts) :]
        scaler = StandardScaler().fit(train.astype(np.float64))
        for C in (0.01, 1.0):
            ours = LogisticProbe(C=C).fit(train, y)
            assert ours.converged_.all()
            theirs = LogisticRegression(C=C, tol=1e-6, max_iter=5000).fit(scaler.transform(train), y)
            yield cell, C, (ours.predict(test) == theirs.predict(scaler.transform(test))).mean()


def test_predictions_agree_with_scikit_learn_on_questions(data_folder):
    for cell, C, share in agreement(data_folder, [(5, "cls"), (6, "mean")], 600):
        assert share >= 0.995, (cell, C)


@pytest.mark.long
def test_predictions_agree_with_scikit_learn_on_all_questions(data_folder):
    cells = [(0, "mean"), (4, "token[1]"), (5, "cls"), (6, "mean")]
    for cell, C, share in agreement(data_folder, cells, None):
        assert share >= 0.995, (cell, C)
