"""`check_probe` passes every probe that ships and catches those that would spoil a sweep."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.utils.estimator_checks import check_estimator

from probes import descent
from probes.base import CellProbe, check_probe, predict_each
from probes.linear import LogisticProbe
from probes.mlp import MLPProbe
from probes.pooling import AttentionProbe
from probes.registry import find_probe, registered


@pytest.fixture
def few_rounds(monkeypatch):
    """Trained probes keep the contract long before they are at their best."""
    monkeypatch.setattr(descent, "ROUNDS", 6)


@pytest.mark.parametrize("name", registered())
def test_every_registered_probe_keeps_the_contract(name, few_rounds):
    check_probe(find_probe(name))


@pytest.mark.parametrize("probe", [LogisticRegression(), RidgeClassifier()], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_ordinary_estimators_keep_the_contract(probe, seed):
    check_probe(probe, seed=seed)


def test_attention_over_tokens_keeps_the_contract(few_rounds):
    check_probe(AttentionProbe(dim=2))


@pytest.mark.parametrize("probe", [LogisticProbe(), MLPProbe(16), AttentionProbe()], ids=str)
def test_probes_are_scikit_learn_estimators(probe, monkeypatch):
    """AttentionProbe where a row is one token: told the size of a token it refuses rows that are none."""
    monkeypatch.setattr(descent, "ROUNDS", 2)  # some fifty fits
    check_estimator(probe, on_skip=None)


@pytest.mark.long
@pytest.mark.parametrize("probe", [MLPProbe(), AttentionProbe()], ids=str)
def test_probes_trained_to_the_end_keep_both_contracts(probe):
    check_probe(probe)
    check_estimator(probe, on_skip=None)


# ------------------------------------------------------------------------------------------------------- broken twins


class StandardisesOnTest(LogisticProbe):
    def log_proba_cells(self, X):
        return super().log_proba_cells((X - X.mean(1, keepdims=True)) / X.std(1, keepdims=True))


class PeeksAtTheMedian(LogisticProbe):
    """Depends on other test rows in its probabilities only."""

    def log_proba_cells(self, X):
        nats = super().log_proba_cells(X) * np.clip(np.abs(X).mean(), 0.5, 1.5)
        return nats - np.logaddexp.reduce(nats, axis=-1, keepdims=True)


class Unseeded(LogisticProbe):
    def log_proba_cells(self, X):
        noisy = X + 0.1 * np.random.default_rng().normal(size=X.shape)
        return super().log_proba_cells(noisy.astype(X.dtype))


class GlobalRandom(LogisticProbe):
    def fit_cells(self, X, y, **more):
        np.random.rand(3)  # noqa: NPY002
        return super().fit_cells(X, y, **more)


class SeedsTheGlobalRandom(LogisticProbe):
    def fit_cells(self, X, y, **more):
        import torch

        torch.manual_seed(0)
        torch.rand(1)
        return super().fit_cells(X, y, **more)


class AltersInputs(LogisticProbe):
    def fit_cells(self, X, y, **more):
        X -= X.mean(1, keepdims=True)
        return super().fit_cells(X, y, **more)


class AltersParameters(LogisticProbe):
    """Of a prototype that is shared, as a mutable default would be."""

    def __init__(self, C=1.0, seen=[]):  # noqa: B006
        super().__init__(C)
        self.seen = seen

    def __sklearn_clone__(self):
        return self

    def fit_cells(self, X, y, **more):
        self.C = self.C / 2
        return super().fit_cells(X, y, **more)


class Majority(ClassifierMixin, CellProbe):
    def fit_cells(self, X, y, **more):
        self.most_ = np.array([np.bincount(codes[codes >= 0]).argmax() for codes in y.T])
        return self

    def predict_cells(self, X):
        return np.broadcast_to(self.most_[None, :, None], (len(X), len(self.most_), X.shape[1]))


class NotANumber(LogisticProbe):
    def log_proba_cells(self, X):
        nats = super().log_proba_cells(X)
        nats[:, :, 0] = np.nan
        return nats


class Unnormalised(LogisticProbe):
    def log_proba_cells(self, X):
        return super().log_proba_cells(X) / 2


class MixesLabelSets(LogisticProbe):
    def log_proba_cells(self, X):
        nats = np.logaddexp(super().log_proba_cells(X), -3)
        return nats - np.logaddexp.reduce(nats, axis=-1, keepdims=True)


class TakesNoLabelForAClass(LogisticProbe):
    def fit_cells(self, X, y, **more):
        return super().fit_cells(X, y % (y.max() + 1), **more)  # -1 becomes the last class


class WrongShape(LogisticProbe):
    def log_proba_cells(self, X):
        return super().log_proba_cells(X)[:, 0]


class OrdinaryNotANumber(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[0])

    def predict_proba(self, X):
        return np.full((len(X), len(self.classes_)), np.nan)


TWINS = {
    StandardisesOnTest: "other test rows",
    PeeksAtTheMedian: "other test rows",
    Unseeded: "differ: seed",
    GlobalRandom: "global random state",
    SeedsTheGlobalRandom: "global random state",
    AltersInputs: "the probe raised: .*read-only",
    AltersParameters: "constructor's parameters",
    Majority: "planted signal",
    NotANumber: "the probe raised: .*nan",
    Unnormalised: "the probe raised: .*sum to",
    MixesLabelSets: "only another one has",
    TakesNoLabelForAClass: "spoil a label set|signal was read",
    WrongShape: "the probe raised: .*shape",
    OrdinaryNotANumber: "the probe raised: .*nan",
    Ridge: "the probe raised: .*not a class",
}


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__)
def test_a_broken_twin_is_caught(twin):
    with pytest.raises(AssertionError, match=TWINS[twin]):
        check_probe(twin())


# --------------------------------------------------------------------------------------------------------- predict_each


def cells(n=60, seed=0):
    random = np.random.default_rng(seed)
    y = np.arange(n) % 3
    X = random.normal(size=(3, n, 4)).astype(np.float32)
    X[..., 0] += y
    return X, y[:, None]


class FailsInOneCell(LogisticProbe):
    def fit_cells(self, X, y, **more):
        if (X[..., 0] > 50).any():
            raise ValueError("too large for me")
        return super().fit_cells(X, y, **more)


def test_a_probe_that_raises_spoils_its_own_cell_only():
    X, y = cells()
    sound = predict_each(LogisticProbe(), X, y, X)
    X[1] += 100
    told = predict_each(FailsInOneCell(), X, y, X)
    assert told.failures == {1: "ValueError: too large for me"}
    assert (told.codes[1] == -1).all()
    assert np.isnan(told.log2_proba[1]).all()
    assert not told.converged[1].any()
    for cell in (0, 2):
        assert np.array_equal(told.codes[cell], sound.codes[cell])
        assert np.array_equal(told.log2_proba[cell], sound.log2_proba[cell])


def test_arrays_of_the_caller_stay_writeable():
    X, y = cells()
    predict_each(LogisticProbe(), X, y, X, dev=(X, y))
    assert X.flags.writeable
    assert y.flags.writeable


def test_not_converged_is_told_of_ordinary_estimators_too():
    X, y = cells()
    assert predict_each(LogisticRegression(), X, y, X).converged.all()
    assert not predict_each(LogisticRegression(max_iter=1), X, y, X).converged.any()


def test_ordinary_estimators_see_only_labelled_texts_and_give_bits_of_all_classes():
    X, y = cells()
    two = np.where(y == 0, -1, y)
    told = predict_each(LogisticRegression(), X, np.hstack([y, two]), X)
    assert told.log2_proba.shape == (3, 2, 60, 3)
    assert (told.log2_proba[:, 1, :, 0] == -np.inf).all()
    assert np.exp2(told.log2_proba).sum(-1) == pytest.approx(1)
    assert set(np.unique(told.codes[:, 1])) == {1, 2}
