"""`check_probe` and `check_evaluation` pass our own probes, and catch broken probes and planted leaks."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, is_regressor
from sklearn.decomposition import PCA
from sklearn.dummy import DummyRegressor
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import Lasso, LogisticRegression, Ridge, RidgeClassifier, SGDClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils.estimator_checks import check_estimator

from clsprobe import check_evaluation, check_probe
from clsprobe.probes import descent
from clsprobe.probes.base import CellProbe, predict_each
from clsprobe.probes.linear import LogisticProbe, RidgeProbe
from clsprobe.probes.mlp import MLPProbe
from clsprobe.probes.pooling import AttentionProbe
from clsprobe.probes.registry import PROBES, find_probe

FEW = range(3)
MANY = pytest.param(range(3, 20), marks=pytest.mark.long, id="seeds 3-19")


@pytest.fixture
def few_training_rounds(monkeypatch):
    """Trained probes satisfy the contract long before they converge."""
    monkeypatch.setattr(descent, "ROUNDS", 12)


@pytest.mark.parametrize("seeds", [pytest.param([0], id="seed 0"), pytest.param(range(1, 20), marks=pytest.mark.long)])
@pytest.mark.parametrize("name", PROBES.built_in)
def test_every_registered_probe_satisfies_the_contract(name, seeds, few_training_rounds):
    for seed in seeds:
        check_probe(find_probe(name), seed=seed)
        check_evaluation(partial(evaluate, find_probe(name)), seed=seed)


def evaluate(probe, X_train, y_train, X_test, y_test):
    """Like the sweep for one cell: a tenth of train serves as dev, and every row is predicted."""
    y_train = y_train.astype(float) if is_regressor(probe) else y_train
    dev_rows, rows = slice(None, None, 10), np.arange(len(y_train)) % 10 > 0
    predictions = predict_each(
        probe,
        X_train[None, rows],
        y_train[rows, None],
        np.vstack([X_train, X_test])[None],
        dev=(X_train[None, dev_rows], y_train[dev_rows, None]),
        strengths=(1e-2, 1.0),
    )
    scores = predictions.codes[0, 0] if predictions.log2_proba is None else predictions.log2_proba[0, 0]
    return scores[: len(y_train)], scores[len(y_train) :]


ORDINARY = (
    LogisticRegression(),
    RidgeClassifier(),
    KNeighborsClassifier(25),
    Ridge(),
    Lasso(0.1, random_state=0),  # without signal its predictions are constant
    KNeighborsRegressor(25),
)


def test_missing_convergence_is_no_violation():
    check_probe(LogisticRegression(max_iter=6))


@pytest.mark.parametrize("probe", ORDINARY, ids=str)
@pytest.mark.parametrize("seeds", [FEW, MANY])
def test_estimators_of_scikit_learn_satisfy_the_contract(probe, seeds):
    for seed in seeds:
        check_probe(probe, seed=seed)
        check_evaluation(partial(evaluate, probe), seed=seed)


EXPECTED_FAILURES = {  # a check of scikit-learn -> the reason
    "check_sample_weight_equivalence_on_dense_data": "mini-batches are drawn by row: two are not one of weight 2",
}


def is_trained(probe):
    return isinstance(probe, MLPProbe | AttentionProbe)


class TwoTokens(AttentionProbe):
    """A text is its vector twice with padding between: attention ignores positions, so each token has the signal."""

    def __init__(self, dim=6, C=1.0, random_state=0):
        super().__init__(dim, C, random_state)

    def fit_cells(self, X, y, *, dev=None, **options):
        return super().fit_cells(self.make_tokens(X), y, dev=dev and (self.make_tokens(dev[0]), dev[1]), **options)

    def log_proba_cells(self, X):
        return super().log_proba_cells(self.make_tokens(X))

    @staticmethod
    def make_tokens(X):
        return np.concatenate([X, np.zeros_like(X), X], 2)


def test_attention_over_tokens_satisfies_the_contract():
    check_probe(TwoTokens())


@pytest.mark.parametrize("probe", [LogisticProbe(), RidgeProbe(), MLPProbe(16), AttentionProbe()], ids=str)
def test_probes_are_scikit_learn_estimators(probe, monkeypatch):
    """For AttentionProbe a row is one token here: with a token size it rejects rows of other sizes."""
    monkeypatch.setattr(descent, "ROUNDS", 2)  # some fifty fits
    check_estimator(probe, on_skip=None, expected_failed_checks=EXPECTED_FAILURES if is_trained(probe) else {})


@pytest.mark.long
@pytest.mark.parametrize("probe", [MLPProbe(), AttentionProbe()], ids=str)
def test_fully_trained_probes_satisfy_both_contracts(probe):
    check_probe(probe)
    check_estimator(probe, on_skip=None, expected_failed_checks=EXPECTED_FAILURES)


# --------------------------------------------------------------------------------------------------------- broken twins


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
    def fit_cells(self, X, y, **options):
        np.random.rand(3)  # noqa: NPY002
        return super().fit_cells(X, y, **options)


class SeedsTheGlobalRandom(LogisticProbe):
    def fit_cells(self, X, y, **options):
        import torch

        torch.manual_seed(0)
        torch.rand(1)
        return super().fit_cells(X, y, **options)


class ChangesTheProcess(LogisticProbe):
    def fit_cells(self, X, y, **options):
        os.environ["CLSPROBE_TRIED"] = "yes"
        return super().fit_cells(X, y, **options)


class AltersInputs(LogisticProbe):
    def fit_cells(self, X, y, **options):
        X -= X.mean(1, keepdims=True)
        return super().fit_cells(X, y, **options)


class AltersParameters(LogisticProbe):
    """Those of a shared prototype, like a mutable default."""

    def __init__(self, C=1.0, shared=[]):  # noqa: B006
        super().__init__(C)
        self.shared = shared

    def __sklearn_clone__(self):
        return self

    def fit_cells(self, X, y, **options):
        self.C = self.C / 2
        return super().fit_cells(X, y, **options)


class Majority(ClassifierMixin, CellProbe):
    def fit_cells(self, X, y, **options):
        self.majority_ = np.array([np.bincount(codes[codes >= 0]).argmax() for codes in y.T])
        return self

    def predict_cells(self, X):
        return np.broadcast_to(self.majority_[None, :, None], (len(X), len(self.majority_), X.shape[1]))


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
    def fit_cells(self, X, y, **options):
        return super().fit_cells(X, y % (y.max() + 1), **options)  # -1 becomes the last class


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


class RegressesOnCodes(ClassifierMixin, BaseEstimator):
    """Treats class names as quantities."""

    def fit(self, X, y):
        self.classes_, self.line_ = np.unique(y), Ridge().fit(X, y)
        return self

    def predict(self, X):
        return self.classes_[np.abs(self.line_.predict(X)[:, None] - self.classes_).argmin(1)]


class PrefersTheFirstClass(LogisticProbe):
    def log_proba_cells(self, X):
        nats = super().log_proba_cells(X) + 1.6 * (np.arange(4) == 0)
        return nats - np.logaddexp.reduce(nats, axis=-1, keepdims=True)


class ReadsItsPlace(ClassifierMixin, BaseEstimator):
    """Learns that every second row is of class 1."""

    def fit(self, X, y):
        self.classes_, self.inner_ = np.unique(y), LogisticRegression(C=100).fit(self._with_row_number(X), y)
        return self

    def _with_row_number(self, X):
        return np.column_stack([X, 5 * (np.arange(len(X)) % 2)])

    def predict(self, X):
        return self.inner_.predict(self._with_row_number(X))


class ReadsThePlaceOfTestRows(LogisticProbe):
    """Later rows get more of class 1."""

    def log_proba_cells(self, X):
        nats = super().log_proba_cells(X)
        nats[..., 1] += 0.05 * np.linspace(-1, 1, X.shape[1])
        return nats - np.logaddexp.reduce(nats, axis=-1, keepdims=True)


class HoldsOutTheLastRows(ClassifierMixin, BaseEstimator):
    """Sets half of train aside in row order: if rows are sorted by label, class 1 is never seen."""

    def fit(self, X, y):
        self.classes_, n = np.unique(y), len(y) // 2
        self.inner_ = LogisticRegression().fit(X[:n], y[:n]) if len(np.unique(y[:n])) > 1 else None
        return self

    def predict(self, X):
        return self.inner_.predict(X) if self.inner_ else np.full(len(X), self.classes_[0])


class StartsWhereItStopped(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        if not hasattr(self, "inner_"):
            self.inner_ = SGDClassifier(loss="log_loss", alpha=0.1, average=True, random_state=0)
        for _ in range(5):
            self.inner_.partial_fit(X, y, self.classes_)
        return self

    def predict(self, X):
        return self.inner_.predict(X)


class RegressionAsClasses(ClassifierMixin, BaseEstimator):
    """Predicts numbers instead of classes."""

    def fit(self, X, y):
        self.classes_, self.inner_ = np.unique(y), Ridge().fit(X, y)
        return self

    def predict(self, X):
        return self.inner_.predict(X)


class SharesWhatItLearned(LogisticProbe):
    """Averages every fit with the last one of any instance."""

    last = None

    def fit(self, X, y):
        super().fit(X, y)
        if self.last is not None:
            self.coef_ = (self.coef_ + self.last) / 2
        type(self).last = self.coef_
        return self


class LearnsWhilePredicting(ClassifierMixin, BaseEstimator):
    """Keeps a running mean of all rows ever predicted."""

    def fit(self, X, y):
        self.classes_, self.inner_ = np.unique(y), LogisticRegression().fit(X - X.mean(0), y)
        self.mean_, self.count_ = X.mean(0), len(X)
        return self

    def predict(self, X):
        predictions = self.inner_.predict(X - self.mean_)
        self.count_ += len(X)
        self.mean_ = self.mean_ + (X.mean(0) - self.mean_) * len(X) / self.count_
        return predictions


class AltersItsOwnParameters(ClassifierMixin, BaseEstimator):
    def __init__(self, C=1.0):
        self.C = C

    def fit(self, X, y):
        self.C = self.C / 2
        self.classes_, self.inner_ = np.unique(y), LogisticRegression(C=self.C).fit(X, y)
        return self

    def predict(self, X):
        return self.inner_.predict(X)


class RidgeStandardisesOnTest(RidgeProbe):
    def predict_cells(self, X):
        return super().predict_cells((X - X.mean(1, keepdims=True)) / X.std(1, keepdims=True))


class RidgeTakesNoLabelForZero(RidgeProbe):
    def fit_cells(self, X, y, **options):
        return super().fit_cells(X, np.nan_to_num(y), **{**options, "dev": None})


class RidgeMixesLabelSets(RidgeProbe):
    def fit_cells(self, X, y, **options):
        return super().fit_cells(X, np.repeat(y[:, :1], y.shape[1], 1), **{**options, "dev": None})


class RidgeForgetsTheIntercept(RidgeProbe):
    def predict_cells(self, X):
        return super().predict_cells(X) - self.intercept_[..., None]


class RidgeNotANumber(RidgeProbe):
    def predict_cells(self, X):
        return np.where(np.arange(X.shape[1]) == 3, np.nan, super().predict_cells(X))


class RidgeWrongShape(RidgeProbe):
    def predict_cells(self, X):
        return super().predict_cells(X)[:, 0]


class LooksLabelsUp(RegressorMixin, CellProbe):
    """Returns the training labels by row number."""

    def fit_cells(self, X, y, **options):
        self.y_ = np.nan_to_num(y)
        return self

    def predict_cells(self, X):
        return np.broadcast_to(self.y_.T[None, :, : X.shape[1]], (len(X), self.y_.shape[1], X.shape[1]))


class RidgeReadsThePlaceOfTestRows(RidgeProbe):
    def predict_cells(self, X):
        return super().predict_cells(X) + 0.05 * np.linspace(-1, 1, X.shape[1])


class RidgeReadsOneCellForAll(RidgeProbe):
    def fit_cells(self, X, y, **options):
        return super().fit_cells(np.broadcast_to(X[-1:], X.shape), y)

    def predict_cells(self, X):
        return super().predict_cells(np.broadcast_to(X[-1:], X.shape))


class RidgeSharesWhatItLearned(RidgeProbe):
    last = None

    def fit(self, X, y):
        super().fit(X, y)
        if self.last is not None:
            self.coef_ = (self.coef_ + self.last) / 2
        type(self).last = self.coef_
        return self


class HoldsOutTheLastNumbers(RegressorMixin, BaseEstimator):
    """If rows are sorted, numbers above the median are never seen."""

    def fit(self, X, y):
        self.inner_ = KNeighborsRegressor().fit(X[: len(y) // 2], y[: len(y) // 2])
        return self

    def predict(self, X):
        return self.inner_.predict(X)


class ExpectsStandardNumbers(RegressorMixin, BaseEstimator):
    """Assumes that no number is farther than four from zero."""

    def fit(self, X, y):
        self.inner_ = Ridge().fit(X, np.clip(y, -4, 4))
        return self

    def predict(self, X):
        return self.inner_.predict(X)


TWINS = {
    StandardisesOnTest: "other test rows",
    PeeksAtTheMedian: "other test rows",
    ReadsThePlaceOfTestRows: "other test rows change a prediction.*in another order",
    Unseeded: "differ: seed",
    GlobalRandom: "global random state",
    SeedsTheGlobalRandom: "global random state",
    ChangesTheProcess: "the environment of the process",
    AltersInputs: "the probe raised .*read-only",
    AltersParameters: "constructor's parameters",
    AltersItsOwnParameters: "constructor's parameters",
    Majority: "planted signal",
    NotANumber: "the probe raised .*nan",
    Unnormalised: "the probe raised .*sum to",
    MixesLabelSets: "only another one has",
    TakesNoLabelForAClass: "spoil a label set|signal was read",
    WrongShape: "the probe raised .*shape",
    OrdinaryNotANumber: "the probe raised .*nan",
    RegressionAsClasses: "the probe raised .*not a class",
    RegressesOnCodes: "classes are renamed|spoil a label set",
    PrefersTheFirstClass: "classes are renamed|planted signal",
    ReadsItsPlace: "other test rows|without signal were read",
    HoldsOutTheLastRows: "sorted by label",
    StartsWhereItStopped: "earlier fit learned stays in the next",
    SharesWhatItLearned: "earlier fit learned stays in the next",
    LearnsWhilePredicting: "predicting changes the fitted probe",
    RidgeStandardisesOnTest: "other test rows",
    RidgeReadsThePlaceOfTestRows: "other test rows change a prediction.*in another order",
    RidgeReadsOneCellForAll: "labels without signal were read",
    RidgeTakesNoLabelForZero: "spoil a label set",
    RidgeMixesLabelSets: "spoil a label set",
    RidgeForgetsTheIntercept: "another unit",
    ExpectsStandardNumbers: "another unit",
    RidgeNotANumber: "the probe raised .*finite number",
    RidgeWrongShape: "the probe raised .*shape",
    RidgeSharesWhatItLearned: "earlier fit learned stays in the next",
    HoldsOutTheLastNumbers: "sorted by label",
    LooksLabelsUp: "other test rows",
    DummyRegressor: "planted signal",
    DecisionTreeRegressor: "global random state",
}


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__)
@pytest.mark.parametrize("seeds", [FEW, MANY])
def test_a_broken_twin_is_caught(twin, seeds):
    for seed in seeds:
        with pytest.raises(AssertionError, match=TWINS[twin]) as caught:
            check_probe(twin(), seed=seed)
        fault, _, mend = str(caught.value).rpartition(": ")  # the fault, and how to mend it
        assert len(fault) > 20
        assert len(mend) > 20


# --------------------------------------------------------------------------------------------- leaks of whole pipelines


def logistic(C=1.0):
    return LogisticRegression(C=C, max_iter=1000)


def scores(fitted, X_train, X_test):
    return fitted.predict_proba(X_train), fitted.predict_proba(X_test)


def standardises_on_all_rows(X_train, y_train, X_test, y_test):
    scaler = StandardScaler().fit(np.vstack([X_train, X_test]))
    X_train, X_test = scaler.transform(X_train), scaler.transform(X_test)
    return scores(logistic().fit(X_train, y_train), X_train, X_test)


def projects_on_components_of_all_rows(X_train, y_train, X_test, y_test):
    pca = PCA(5).fit(np.vstack([X_train, X_test]))
    X_train, X_test = pca.transform(X_train), pca.transform(X_test)
    return scores(logistic().fit(X_train, y_train), X_train, X_test)


def selects_features_with_test_labels(X_train, y_train, X_test, y_test):
    chosen = SelectKBest(k=5).fit(np.vstack([X_train, X_test]), np.r_[y_train, y_test])
    X_train, X_test = chosen.transform(X_train), chosen.transform(X_test)
    return scores(logistic().fit(X_train, y_train), X_train, X_test)


def tunes_on_test(X_train, y_train, X_test, y_test):
    fits = [logistic(C).fit(X_train, y_train) for C in (1e-4, 1e-2, 1, 100)]
    return scores(max(fits, key=lambda fit: fit.score(X_test, y_test)), X_train, X_test)


def stops_on_test(X_train, y_train, X_test, y_test):
    net, best, best_scores = SGDClassifier(loss="log_loss", random_state=0), -1.0, None
    for _ in range(20):
        net.partial_fit(X_train, y_train, np.array([0, 1]))
        if (accuracy := net.score(X_test, y_test)) > best:
            best, best_scores = accuracy, scores(net, X_train, X_test)
    return best_scores


def keeps_the_test_rows_as_neighbours(X_train, y_train, X_test, y_test):
    neighbours = KNeighborsClassifier(1).fit(np.vstack([X_train, X_test]), np.r_[y_train, y_test])
    return scores(neighbours, X_train, X_test)


def reads_the_place_of_a_row(X_train, y_train, X_test, y_test):
    """In files sorted by label the row number gives the label."""
    X_train, X_test = (np.column_stack([X, np.linspace(-3, 3, len(X))]) for X in (X_train, X_test))
    return scores(logistic().fit(X_train, y_train), X_train, X_test)


def standardises_test_by_itself(X_train, y_train, X_test, y_test):
    X_train, X_test = (StandardScaler().fit_transform(X) for X in (X_train, X_test))
    return scores(logistic().fit(X_train, y_train), X_train, X_test)


def centres_classes_with_test_labels(X_train, y_train, X_test, y_test):
    X, y = np.vstack([X_train, X_test]), np.r_[y_train, y_test]
    centres = np.stack([X[y == k].mean(0) for k in (0, 1)])
    return tuple(-((X[:, None] - centres) ** 2).sum(-1) for X in (X_train, X_test))


def labels_test_rows_by_itself_and_fits_again(X_train, y_train, X_test, y_test):
    guessed = logistic().fit(X_train, y_train).predict(X_test)
    refitted = logistic().fit(np.vstack([X_train, X_test]), np.r_[y_train, guessed])
    return scores(refitted, X_train, X_test)


def takes_the_prior_of_the_test_labels(X_train, y_train, X_test, y_test):
    fit = logistic().fit(X_train, y_train)
    prior = np.bincount(np.r_[y_test[: len(y_test) // 3], 0, 1], minlength=2) / (len(y_test) // 3 + 2)
    return fit.predict_proba(X_train), fit.predict_proba(X_test) * prior


def drops_outliers_of_all_rows(X_train, y_train, X_test, y_test):
    norms = np.linalg.norm(np.vstack([X_train, X_test]), axis=1)
    typical = norms[: len(X_train)] < np.quantile(norms, 0.9)
    return scores(logistic().fit(X_train[typical], y_train[typical]), X_train, X_test)


def alters_its_inputs(X_train, y_train, X_test, y_test):
    X_train -= X_train.mean(0)
    return scores(logistic().fit(X_train, y_train), X_train, X_test)


def seeds_the_global_state(X_train, y_train, X_test, y_test):
    np.random.seed(0)  # noqa: NPY002
    order = np.random.permutation(len(y_train))  # noqa: NPY002
    return scores(logistic().fit(X_train[order], y_train[order]), X_train, X_test)


def draws_without_a_seed(X_train, y_train, X_test, y_test):
    row_indices = np.random.default_rng().integers(len(y_train), size=60)
    return scores(logistic().fit(X_train[row_indices], y_train[row_indices]), X_train, X_test)


FITTED = "change what is fitted: fit every step"
LEAKS = {
    standardises_on_all_rows: FITTED,
    projects_on_components_of_all_rows: FITTED,
    selects_features_with_test_labels: FITTED,
    tunes_on_test: FITTED,
    stops_on_test: FITTED,
    keeps_the_test_rows_as_neighbours: "use them for nothing but the score",
    reads_the_place_of_a_row: "in another order",
    standardises_test_by_itself: "other test rows",
    centres_classes_with_test_labels: FITTED,
    labels_test_rows_by_itself_and_fits_again: FITTED,
    takes_the_prior_of_the_test_labels: "use them for nothing but the score",
    drops_outliers_of_all_rows: FITTED,
    alters_its_inputs: "alters its inputs: copy",
    seeds_the_global_state: "global random state",
    draws_without_a_seed: "differ: seed",
}


@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: leak.__name__)
@pytest.mark.parametrize("seeds", [FEW, MANY])
def test_a_leak_is_caught(leak, seeds):
    for seed in seeds:
        with pytest.raises(AssertionError, match=LEAKS[leak]):
            check_evaluation(leak, seed=seed)


def fit_pipeline(X_train, y_train, X_test, y_test, *, steps):
    return scores(make_pipeline(*steps).fit(X_train, y_train), X_train, X_test)


def tunes_on_train(X_train, y_train, X_test, y_test):
    dev = np.arange(len(y_train)) % 5 == 0
    fits = [logistic(C).fit(X_train[~dev], y_train[~dev]) for C in (1e-4, 1e-2, 1, 100)]
    return scores(max(fits, key=lambda fit: fit.score(X_train[dev], y_train[dev])), X_train, X_test)


SOUND = (
    partial(fit_pipeline, steps=(StandardScaler(), PCA(5), logistic())),
    partial(fit_pipeline, steps=(SelectKBest(k=5), KNeighborsClassifier(3))),
    partial(fit_pipeline, steps=(MLPClassifier((8,), solver="lbfgs", max_iter=50, random_state=0),)),
    tunes_on_train,
)


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
@pytest.mark.parametrize("number", range(len(SOUND)))
@pytest.mark.parametrize("seeds", [FEW, MANY])
def test_a_correct_pipeline_passes(number, seeds):
    for seed in seeds:
        check_evaluation(SOUND[number], seed=seed)


def test_an_evaluation_returns_scores_of_every_row():
    with pytest.raises(AssertionError, match="told of 80 and 59 rows, not of 80 train and 60 test rows"):
        check_evaluation(lambda X_train, y_train, X_test, y_test: (y_train, y_test[1:]))


def test_labels_are_enough_to_catch_a_leak():
    """An evaluation that returns labels, not scores."""

    def nearest(X_train, y_train, X_test, y_test):
        neighbours = KNeighborsClassifier(1).fit(np.vstack([X_train, X_test]), np.r_[y_train, y_test])
        return neighbours.predict(X_train), neighbours.predict(X_test)

    with pytest.raises(AssertionError, match="nothing but the score"):
        check_evaluation(nearest)


# --------------------------------------------------------------------------------------------------------- predict_each


def cells(n=60, seed=0):
    random = np.random.default_rng(seed)
    y = np.arange(n) % 3
    X = random.normal(size=(3, n, 4)).astype(np.float32)
    X[..., 0] += y
    return X, y[:, None]


class FailsInOneCell(LogisticProbe):
    def fit_cells(self, X, y, **options):
        if (X[..., 0] > 50).any():
            raise ValueError("too large for me")
        return super().fit_cells(X, y, **options)


def test_a_probe_that_fails_in_one_cell_leaves_the_others():
    X, y = cells()
    sound = predict_each(LogisticProbe(), X, y, X)
    X[1] += 100
    predictions = predict_each(FailsInOneCell(), X, y, X)
    assert predictions.failures == {1: "ValueError: too large for me"}
    assert (predictions.codes[1] == -1).all()
    assert np.isnan(predictions.log2_proba[1]).all()
    assert not predictions.converged[1].any()
    for cell in (0, 2):
        # solved separately, not together with the others
        np.testing.assert_allclose(predictions.log2_proba[cell], sound.log2_proba[cell], rtol=0, atol=1e-3)
        assert (predictions.codes[cell] == sound.codes[cell]).mean() > 0.98


def test_numbers_of_a_failed_cell_are_nan():
    class Fails(RidgeProbe):
        def fit_cells(self, X, y, **options):
            if (X[..., 0] > 50).any():
                raise ValueError("too large for me")
            return super().fit_cells(X, y, **options)

    X, y = cells()
    y = np.hstack([y + 0.5, np.where(y == 1, np.nan, y)])
    X[1] += 100
    predictions = predict_each(Fails(), X, y, X)
    assert predictions.failures == {1: "ValueError: too large for me"}
    assert predictions.codes.shape == (3, 2, 60)
    assert np.isnan(predictions.codes[1]).all()
    assert np.isfinite(predictions.codes[[0, 2]]).all()
    assert predictions.log2_proba is None


def test_regressors_of_scikit_learn_see_only_labelled_texts():
    X, y = cells()
    y = np.where(np.arange(len(y))[:, None] % 4 == 0, np.nan, y + 0.5)
    predictions = predict_each(Ridge(), X, y, X)
    known = ~np.isnan(y[:, 0])
    assert predictions.codes[2, 0] == pytest.approx(Ridge().fit(X[2][known], y[known, 0]).predict(X[2]))


def test_arrays_of_the_caller_remain_writeable():
    X, y = cells()
    predict_each(LogisticProbe(), X, y, X, dev=(X, y))
    assert X.flags.writeable
    assert y.flags.writeable


def test_convergence_of_scikit_learn_estimators_is_reported():
    X, y = cells()
    assert predict_each(LogisticRegression(), X, y, X).converged.all()
    assert not predict_each(LogisticRegression(max_iter=1), X, y, X).converged.any()


def test_estimators_of_scikit_learn_see_only_labelled_texts_and_give_bits_of_all_classes():
    X, y = cells()
    two_classes = np.where(y == 0, -1, y)
    predictions = predict_each(LogisticRegression(), X, np.hstack([y, two_classes]), X)
    assert predictions.log2_proba.shape == (3, 2, 60, 3)
    assert (predictions.log2_proba[:, 1, :, 0] == -np.inf).all()
    assert np.exp2(predictions.log2_proba).sum(-1) == pytest.approx(1)
    assert set(np.unique(predictions.codes[:, 1])) == {1, 2}
