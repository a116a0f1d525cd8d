"""The linear probes: standardisation, the strength chosen on dev, weights, what they predict."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from clsprobe.probes.base import STRENGTHS, predict_each
from clsprobe.probes.linear import LogisticProbe, RidgeProbe


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
    separate = [LogisticProbe(C=C).fit_cells(X[:, train], y[train]) for C in STRENGTHS]
    predictions = np.stack([bits(probe, X[:, dev], y[dev]) for probe in separate])
    chosen_index = np.searchsorted(STRENGTHS, chosen.strength_)
    assert np.take_along_axis(predictions, chosen_index[None], 0)[0] == pytest.approx(predictions.min(0), abs=1e-4)
    assert len(np.unique(chosen_index)) > 1  # the choice is per cell and label set
    for cell, label_set in np.ndindex(2, 2):
        same = separate[chosen_index[cell, label_set]]
        assert np.allclose(chosen.coef_[cell, label_set], same.coef_[cell, label_set], atol=2e-3)
        assert np.array_equal(chosen.mean_, same.mean_)


def test_dev_texts_without_a_label_do_not_choose():
    X, y = cells()
    train, dev = slice(0, 160), slice(160, 240)
    partial = y[dev].copy()
    partial[::2, 0] = -1
    chosen = LogisticProbe().fit_cells(X[:, train], y[train], dev=(X[:, dev], partial), strengths=STRENGTHS)
    known = LogisticProbe().fit_cells(
        X[:, train], y[train], dev=(X[:, dev][:, 1::2], y[dev][1::2]), strengths=STRENGTHS
    )
    assert np.array_equal(chosen.strength_[:, 0], known.strength_[:, 0])


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_dev_texts_of_a_class_without_training_texts_do_not_choose(absent):
    X, y = cells()
    train, dev = slice(0, 160), slice(160, 240)
    taught = np.where(y[train] == absent, -1, y[train])[:, :1]
    is_scored = y[dev, 0] != absent
    unlabelled = y[dev, :1].copy()
    unlabelled[:20] = -1
    is_scored[:20] = False
    chosen = LogisticProbe().fit_cells(X[:, train], taught, dev=(X[:, dev], unlabelled), strengths=STRENGTHS)
    known = LogisticProbe().fit_cells(
        X[:, train], taught, dev=(X[:, dev][:, is_scored], y[dev, :1][is_scored]), strengths=STRENGTHS
    )
    assert np.array_equal(chosen.strength_, known.strength_)
    assert (known.strength_ > min(STRENGTHS)).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_and_rounding_noise_has_scale_one(dtype):
    """The vector of layer-0 [CLS]: its float32 standard deviation is not exactly 0."""
    random = np.random.default_rng(0)
    vector = random.normal(size=384).astype(dtype)
    X = np.tile(vector, (1, 500, 1))
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
    moved = LogisticProbe().fit_cells(7 * X + 100, y).log_proba_cells(7 * X + 100)
    np.testing.assert_allclose(moved, probe.log_proba_cells(X), rtol=0, atol=1e-3)


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
    predictions = plain.predict_proba(X[0])
    assert predictions[:, [1, 0, 2]] == pytest.approx(np.exp(grid.log_proba_cells(X)[0, 0]), abs=1e-4)
    assert np.array_equal(plain.predict(X[0]), plain.classes_[predictions.argmax(1)])
    reference = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000)
    Z = StandardScaler().fit_transform(X[0])
    assert plain.predict_proba(X[0]) == pytest.approx(reference.fit(Z, names[y[:, 0]]).predict_proba(Z), abs=2e-4)


# --------------------------------------------------------------------------------------------------- weights of classes

WEIGHTS = [("balanced", "balanced"), ({"a": 3.0, "c": 0.2}, {1: 3.0, 2: 0.2})]  # by label, by code


@pytest.mark.parametrize(("by_label", "by_code"), WEIGHTS, ids=["balanced", "dict"])
@pytest.mark.parametrize("weighted", [False, True])
def test_class_weights_are_those_of_scikit_learn(by_label, by_code, weighted):
    X, y = cells(dtype=np.float64)
    codes = np.where((y[:, 0] == 2) & (np.arange(len(y)) % 4 > 0), 0, y[:, 0])  # classes of unequal sizes
    names = np.array(["b", "a", "c"])
    weight = np.random.default_rng(0).uniform(0.1, 3, size=len(y)) if weighted else None
    Z = StandardScaler().fit_transform(X[0], sample_weight=weight)
    reference = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000, class_weight=by_label)
    expected = reference.fit(Z, names[codes], sample_weight=weight).predict_proba(Z)
    ours = LogisticProbe(C=0.1, class_weight=by_label).fit(X[0], names[codes], sample_weight=weight)
    assert ours.predict_proba(X[0]) == pytest.approx(expected, abs=2e-4)
    plain = LogisticProbe(C=0.1).fit(X[0], names[codes], sample_weight=weight).predict_proba(X[0])
    assert not np.allclose(plain, expected, atol=0.02)  # the weights matter here
    coded = LogisticProbe(C=0.1, class_weight=by_code).fit_cells(X[:1], codes[:, None], sample_weight=weight)
    assert np.exp(coded.log_proba_cells(X[:1]))[0, 0][:, [1, 0, 2]] == pytest.approx(expected, abs=2e-4)


def test_every_label_set_is_balanced_by_its_own_classes():
    X, y = cells(dtype=np.float64)
    y[np.arange(len(y)) % 3 == 0, 0] = -1
    y[:, 1] = np.arange(len(y)) % 7 == 0
    together = LogisticProbe(class_weight="balanced").fit_cells(X, y)
    for label_set in (0, 1):
        known = y[:, label_set] >= 0
        ready = StandardScaler().fit(X[1]).transform(X[1])
        separate = LogisticRegression(class_weight="balanced", tol=1e-10, max_iter=10_000)
        separate.fit(ready[known], y[known, label_set])
        predictions = np.exp(together.log_proba_cells(X)[1, label_set])[:, : len(separate.classes_)]
        assert predictions == pytest.approx(separate.predict_proba(ready), abs=2e-4)


def test_a_weight_for_no_class_is_refused():
    X, y = cells()
    with pytest.raises(ValueError, match="7"):
        LogisticProbe(class_weight={0: 1.0, 7: 3.0}).fit(X[0], y[:, 0])
    with pytest.raises(ValueError, match="a mapping, not 'even'"):
        LogisticProbe(class_weight="even").fit_cells(X, y)
    LogisticProbe(class_weight={2: 3.0}).fit_cells(X, y)  # a class that only one of the label sets has


# -------------------------------------------------------------------------------------------------------------- numbers


def numbers(n=240, dim=8, dtype=np.float32, seed=0):
    """X (cell, text, dim), y (text, label set): cell 0 tells set 0; set 1 is noise; set 2 lacks every third label."""
    random = np.random.default_rng(seed)
    X = random.normal(3, 5, size=(2, n, dim)).astype(dtype)
    predictions = (X[0] - 3) @ random.normal(size=dim) + 8 * random.normal(size=n) + 40
    partial = np.where(np.arange(n) % 3 == 0, np.nan, 1000 - predictions)
    return X, np.stack([predictions, random.normal(size=n), partial], 1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ridge_is_that_of_scikit_learn_on_standardised_features(dtype, weighted):
    X, y = numbers(dtype=dtype)
    weight = np.random.default_rng(0).uniform(0.1, 3, size=len(y)) if weighted else None
    for C in (1e-3, 1.0, 100.0):
        ours = RidgeProbe(C=C).fit_cells(X, y, sample_weight=weight)
        predictions = ours.predict_cells(X)
        assert predictions.shape == (2, 3, 240)
        for cell, label_set in np.ndindex(2, 3):
            known = ~np.isnan(y[:, label_set])
            Z = StandardScaler().fit_transform(X[cell].astype(np.float64), sample_weight=weight)
            reference = Ridge(alpha=1 / C, solver="svd")
            reference.fit(Z[known], y[known, label_set], None if weight is None else weight[known])
            spread = np.nanstd(y[:, label_set])
            assert predictions[cell, label_set] == pytest.approx(reference.predict(Z), abs=1e-5 * spread)
            assert ours.coef_[cell, label_set] == pytest.approx(reference.coef_, abs=1e-5 * spread)


def test_the_strength_kept_has_the_smallest_dev_error_and_no_refit_follows():
    X, y = numbers(n=90, dim=30)
    train, dev = slice(0, 60), slice(60, 90)
    chosen = RidgeProbe().fit_cells(X[:, train], y[train], dev=(X[:, dev], y[dev]), strengths=STRENGTHS)
    separate = [RidgeProbe(C=C).fit_cells(X[:, train], y[train]) for C in STRENGTHS]
    errors = np.stack([np.nanmean((probe.predict_cells(X[:, dev]) - y[dev].T) ** 2, -1) for probe in separate])
    chosen_index = np.searchsorted(STRENGTHS, chosen.strength_)
    assert np.take_along_axis(errors, chosen_index[None], 0)[0] == pytest.approx(errors.min(0), rel=1e-6)
    assert len(np.unique(chosen_index)) > 1
    for cell, label_set in np.ndindex(2, 3):
        same = separate[chosen_index[cell, label_set]]
        assert chosen.coef_[cell, label_set] == pytest.approx(same.coef_[cell, label_set])


def test_ridge_reads_the_constant_cell_as_the_mean_of_train():
    X = np.tile(np.random.default_rng(0).normal(size=384).astype(np.float32), (1, 200, 1))
    X[0, ::7] = np.nextafter(X[0, ::7], np.float32(np.inf))  # layer-0 [CLS] after another batch shape
    y = np.random.default_rng(1).normal(size=(200, 1))
    predictions = RidgeProbe().fit_cells(X, y, dev=(X, y), strengths=STRENGTHS).predict_cells(X)
    assert predictions == pytest.approx(y.mean(), abs=1e-4)


def test_ridge_weights_are_repetitions():
    X, y = numbers(dtype=np.float64)
    weight = np.random.default_rng(0).integers(0, 3, size=len(y))
    weighted = RidgeProbe().fit_cells(X, y, sample_weight=weight)
    repeated = RidgeProbe().fit_cells(np.repeat(X, weight, 1), np.repeat(y, weight, 0))
    assert weighted.predict_cells(X) == pytest.approx(repeated.predict_cells(X))


def test_numbers_and_classes_are_not_taken_for_each_other():
    X, y = numbers()
    with pytest.raises(ValueError, match="LogisticProbe reads classes, and the labels are numbers"):
        predict_each(LogisticProbe(), X, y, X)
    with pytest.raises(ValueError, match="RidgeProbe reads numbers, and the labels are classes"):
        predict_each(RidgeProbe(), *cells(), X)
    with pytest.raises(ValueError, match="label set 1 has no label"):
        RidgeProbe().fit_cells(X, np.where([False, True, False], np.nan, y))


# ------------------------------------------------------------------------------------------------------------ real text


def questions(folder, side):
    rows = (folder / "trec" / f"{side}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    coarse, _, texts = zip(*(row.split("\t") for row in rows), strict=True)
    return list(texts), np.unique(coarse, return_inverse=True)[1]


def agreement(folder, cells, train_texts):
    """How often our predictions on TREC's test are those of scikit-learn's at the same strength, for every cell."""
    from clsprobe.probes.encoders.loading import load_encoder
    from clsprobe.probes.extraction.extractor import Extractor

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
