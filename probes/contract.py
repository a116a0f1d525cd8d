"""The contract of a probe, for its author's tests: `check_probe` for an estimator, `check_evaluation` for a pipeline.

1. The data: two Gaussian cells, with signals planted in the second only, and three label sets, one without signal and
   one with missing labels. The accuracy that is possible is known.
2. `check_probe` fits them as the sweep does, then again with one change that must not matter: the order of the rows,
   the names of the classes or the unit of the numbers, other test rows, an earlier fit.
3. `check_evaluation` replaces the test rows of a whole pipeline and checks that nothing that is fitted changes.

Every violation is an AssertionError that says what is wrong and how to fix it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, clone, is_regressor
from sklearn.exceptions import ConvergenceWarning

from clsprobe.probes import metric
from clsprobe.probes.base import Predictions, predict_each
from clsprobe.probes.plugins import forbid_changes
from clsprobe.probes.randomness import forbid_global_randomness

ROWS, DIM = 300, 6  # of each side
SIGNAL, NULL, GAPS = range(3)  # label sets
ONCE = np.ones((1, ROWS))  # weights of the test rows
CLOSE = 1e-4  # bits or scores: more than rounding in float32

Rename = Callable[[np.ndarray], np.ndarray]
Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Evaluation = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def check_probe(probe: BaseEstimator, *, seed: int = 0) -> None:
    """Raise AssertionError if a probe breaks the contract that the sweep relies on.

    It must find a planted signal, stay at chance on labels without signal and keep label sets apart. Its predictions
    must be reproducible and independent of earlier fits, other test rows, the order of rows, the names of classes and
    the unit of numbers. It must not modify its inputs, its parameters, a global random state or the process, such as
    its working directory. A regressor is tested on numbers, every other probe on classes.
    """
    import torch  # noqa: F401  (its random state is watched where it is loaded)

    kind = NUMBERS if is_regressor(probe) else CLASSES
    rng = np.random.default_rng(seed)
    X, truth = kind.plant(rng)
    y = truth.copy()
    y[np.arange(2 * ROWS) % 3 > 0, GAPS] = kind.missing  # most texts have no label in this set
    inputs = [X[:, :ROWS].copy(), y[:ROWS].copy(), X[:, ROWS:].copy(), X[:, :ROWS:5].copy(), y[:ROWS:5].copy()]
    copies = [array.copy() for array in inputs]
    train, labels, test, *dev = inputs
    parameters = repr(probe)

    def run(unseen: np.ndarray, *, order: Any = slice(None), rename: Rename = lambda labels: labels) -> Predictions:
        result = predict_each(
            probe, train[:, order], rename(labels[order]), unseen, dev=(dev[0], rename(dev[1])), strengths=(1e-2, 1.0)
        )
        assert not result.failures, (
            f"the probe raised {result.failures}: arrays come read-only, y with -1, or NaN among numbers, where there "
            "is no label; predictions go as log probabilities (cell, label set, text, class) or as codes or finite "
            "numbers (cell, label set, text)"
        )
        return result

    with forbid_global_randomness(), forbid_changes():
        first = run(test)
    second = run(test.copy())
    assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(copies, inputs, strict=True)), (
        "the probe alters its inputs: write X = X - m, which makes a new array, instead of X -= m"
    )
    assert repr(probe) == parameters, _PARAMETERS
    assert _same(first, second), "two fits on the same data differ: seed what is random with a parameter of the probe"
    _check_rows(first, run, test, rng)
    _check_scores(kind, first, truth[ROWS:])

    by_label = run(test, order=np.lexsort((rng.random(ROWS), labels[:, SIGNAL])))
    before, after = (kind.read(result, SIGNAL, truth[ROWS:])[1] for result in (first, by_label))
    assert after > kind.enough, (
        f"a signal that is read at {before:.2f} is read at {after:.2f} once the training rows are sorted by label: the "
        "place of a row may mean nothing; shuffle, seeded, before rows are set aside or batched"
    )

    renamed = run(test, rename=kind.rename)
    for label_set in (SIGNAL, GAPS):
        agreement = kind.read(renamed, label_set, kind.rename(first.codes[1].T))[1]
        assert agreement > kind.steady, (
            f"predictions agree with the former ones at {agreement:.2f} ({kind.score.__name__}) once {kind.renaming}"
        )
    _check_refit(probe, train, labels[:, SIGNAL], test)


class _Kind(NamedTuple):
    """The data planted for one kind of label, and the scores required on it."""

    plant: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]  # X (cell, text, dim), y (text, label set)
    missing: float  # stands for no label
    score: Metric
    possible: float  # best score on the planted signal
    enough: float  # least score on it
    filled: float  # least score on the label set with missing labels
    luck: Metric  # the metric compared with chance on labels without signal
    chance: float  # its expectation
    error: float  # its standard error times sqrt(ROWS)
    rename: Rename
    steady: float  # least agreement of the predictions before and after
    renaming: str

    def read(self, predictions: Predictions, label_set: int, y: np.ndarray) -> np.ndarray:
        """(cell,) the score on one label set of y (text, label set)."""
        return self.score(predictions.codes[:, label_set], y[:, label_set], ONCE)[:, 0]


def _plant_classes(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    signal, null = np.arange(2 * ROWS) % 2, rng.permutation(2 * ROWS) % 2
    four = rng.permutation(2 * ROWS) % 4
    X = rng.normal(size=(2, 2 * ROWS, DIM)).astype(np.float32)
    X[1, :, 2] += 3 * signal
    X[1, :, 4:] += 5 * np.stack([four % 2, four // 2], 1)  # corners of a square: 0..3 is linear there, other names not
    return X, np.stack([signal, null, four], 1)


def _plant_numbers(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    signal, null, other = rng.normal(size=(3, 2 * ROWS))
    X = rng.normal(size=(2, 2 * ROWS, DIM)).astype(np.float32)
    X[1, :, 2] += 4 * signal
    X[1, :, 4] += 4 * other
    return X, np.stack([signal, null, other], 1)


def _rename_classes(codes: np.ndarray) -> np.ndarray:
    """Codes (text, label set) with the classes of every set in another order."""
    swapped = np.where(codes < 0, -1, 1 - codes)
    swapped[:, GAPS] = np.array([0, 1, 3, 2, -1])[codes[:, GAPS]]
    return swapped


CLASSES = _Kind(
    plant=_plant_classes,
    missing=-1,
    score=metric.accuracy,
    possible=0.93,
    enough=0.85,
    filled=0.75,
    luck=metric.accuracy,
    chance=0.5,
    error=0.5,
    rename=_rename_classes,
    steady=0.9,
    renaming="classes are renamed: codes are names, not quantities; learn one score for every class",
)
NUMBERS = _Kind(
    plant=_plant_numbers,
    missing=math.nan,
    score=metric.r2,
    possible=0.94,
    enough=0.7,
    filled=0.65,
    luck=metric.spearman,
    chance=0.0,
    error=1.0,
    rename=lambda numbers: 50 - 20 * numbers,
    steady=0.5,
    renaming="numbers come in another unit: centre and scale them by those of train, and undo it when predicting",
)


def _check_rows(
    first: Predictions, run: Callable[[np.ndarray], Predictions], test: np.ndarray, rng: np.random.Generator
) -> None:
    """Replace half of the test rows, then permute all: the predictions for the others must not change."""
    poison = test.copy()
    poison[:, ROWS // 2 :] = 1e6
    assert _same(first, run(poison), ROWS // 2), _OTHER_ROWS
    order = rng.permutation(ROWS)
    permuted = run(test[:, order])
    close = np.isclose(permuted.codes, first.codes[..., order], rtol=1e-3, atol=CLOSE)
    assert close.mean() > 0.99, f"{_OTHER_ROWS} (they came in another order)"
    if first.log2_proba is not None and permuted.log2_proba is not None:
        expected = first.log2_proba[:, :, order]
        close = np.isclose(permuted.log2_proba, expected, rtol=1e-3, atol=CLOSE)
        assert close.all(), f"{_OTHER_ROWS} (they came in another order)"


_OTHER_ROWS = (
    "other test rows change a prediction: what is predicted of a text may depend on it and on train alone; take means, "
    "scales and neighbours from train, and nothing from a row's place"
)


def _check_scores(kind: _Kind, predicted: Predictions, y: np.ndarray) -> None:
    score = kind.read(predicted, SIGNAL, y)[1]
    assert score > kind.enough, (
        f"a planted signal ({kind.score.__name__} {kind.possible} possible) was read at {score:.2f}: the probe does "
        "not learn; look at its scale, its penalty and when it stops"
    )
    luck = np.stack([kind.luck(predicted.codes[:, s], y[:, s], ONCE)[:, 0] for s in (SIGNAL, NULL)], 1)
    without_signal = np.delete(luck.ravel(), 2)  # all of (cell, label set) but the planted signal
    worst = without_signal[np.abs(without_signal - kind.chance).argmax()]
    assert abs(worst - kind.chance) < 5 * kind.error / math.sqrt(ROWS), (
        f"labels without signal were read at {worst:.2f} ({kind.luck.__name__}): something besides a text's own "
        "features tells its label, such as its place among the rows, another cell or another label set"
    )
    score = kind.read(predicted, GAPS, y)[1]
    assert score > kind.filled, (
        f"texts without a label ({kind.missing:g}) spoil a label set, read at {score:.2f}: leave them out of its fit"
    )
    foreign_class = kind is CLASSES and (
        predicted.codes[:, :2].max() > 1
        or (predicted.log2_proba is not None and predicted.log2_proba[:, :2, :, 2:].max() > -9)
    )
    assert not foreign_class, (
        "a label set is given a class that only another one has: its log probability there is -inf, for the classes of "
        "a set are those of its training texts"
    )


def _check_refit(probe: BaseEstimator, X: np.ndarray, y: np.ndarray, test: np.ndarray) -> None:
    """scikit-learn's API, for one cell and one label set: no earlier fit or prediction may have an effect."""

    def fit(estimator: Any, X: np.ndarray, y: np.ndarray) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a flag on the row, no violation
            return estimator.fit(X, y)

    estimator = clone(probe)
    parameters = repr(estimator.get_params(deep=False))
    expected = fit(estimator, X[1], y).predict(test[1])
    assert repr(estimator.get_params(deep=False)) == parameters, _PARAMETERS
    estimator.predict(test[0])
    assert np.array_equal(estimator.predict(test[1]), expected), (
        "predicting changes the fitted probe: nothing may be learned, counted or drawn there"
    )
    fresh = fit(clone(probe), X[0], 1 - y)
    refitted = fit(estimator, X[0], 1 - y)
    for method in ("predict", "predict_proba"):
        if hasattr(fresh, method):
            assert np.array_equal(getattr(refitted, method)(test[0]), getattr(fresh, method)(test[0])), (
                "what an earlier fit learned stays in the next: start every fit from scratch, without a warm start and "
                "with nothing kept in the class or the module"
            )


_PARAMETERS = "fitting alters the constructor's parameters: keep what is learned under names that end in _"


def _same(first: Predictions, second: Predictions, n: int = ROWS) -> bool:
    """Whether two predictions of the first n texts are the same, bit by bit."""
    codes = np.array_equal(first.codes[..., :n], second.codes[..., :n])
    if first.log2_proba is None or second.log2_proba is None:
        return codes
    return codes and np.array_equal(first.log2_proba[:, :, :n], second.log2_proba[:, :, :n])


# ------------------------------------------------------------------------------------------------------ whole pipelines


def check_evaluation(evaluate: Evaluation, *, seed: int = 0) -> None:
    """Raise AssertionError if test rows influence what a pipeline fits, or the order of rows what it predicts.

    evaluate: (X_train, y_train, X_test, y_test) -> predictions for the train rows and for the test rows, each (text,)
    labels or, better, (text, class) scores, which show smaller leaks. X: (text, dim), y: (text,) codes of two classes,
    sorted by label as in many files.
    """
    rng = np.random.default_rng(seed)
    train, test, dim = 80, 60, 24
    y = np.concatenate([np.sort(rng.permutation(n) % 2) for n in (train, test)])
    X = rng.normal(size=(train + test, dim))
    X[:, 0] += 1.5 * y  # a weak signal, so that little decides what is tuned or selected
    sides = X[:train], y[:train], X[train:], y[train:]

    def evaluate_on(X_test: np.ndarray, y_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs = [array.copy() for array in (*sides[:2], X_test, y_test)]
        fitted, unseen = (np.asarray(part, dtype=float) for part in evaluate(*inputs))
        intact = all(map(np.array_equal, inputs, (*sides[:2], X_test, y_test)))
        assert intact, "the pipeline alters its inputs: copy before writing"
        assert len(fitted) == train and len(unseen) == len(X_test), (  # noqa: PT018
            f"it told of {len(fitted)} and {len(unseen)} rows, not of {train} train and {len(X_test)} test rows"
        )
        return fitted, unseen

    with forbid_global_randomness():
        fitted, unseen = evaluate_on(*sides[2:])
    repeated = evaluate_on(*sides[2:])
    assert np.array_equal(fitted, repeated[0]) and np.array_equal(unseen, repeated[1]), (  # noqa: PT018
        "two evaluations of the same data differ: seed what is random"
    )

    noise = 1e3 * rng.normal(size=sides[2].shape)
    half = np.arange(test) < test // 2
    permuted_labels = rng.permutation(sides[3])
    for X_test, y_test, changed in (
        (sides[2], 1 - sides[3], "labels of the test rows"),
        (sides[2], permuted_labels, "labels of the test rows"),
        (noise, sides[3], "features of the test rows"),
        (noise, permuted_labels, "test rows"),
    ):
        poisoned = evaluate_on(X_test, y_test)
        assert np.array_equal(fitted, poisoned[0]), (
            f"the {changed} change what is fitted: fit every step (scaling, projection, selection, tuning, stopping) "
            "on train and dev rows only"
        )
        if X_test is sides[2]:
            assert np.array_equal(unseen, poisoned[1]), (
                "the labels of the test rows change what is predicted of them: use them for nothing but the score"
            )
    half_noise = np.where(half[:, None], sides[2], noise)
    assert np.array_equal(unseen[half], evaluate_on(half_noise, sides[3])[1][half]), _OTHER_ROWS
    order = rng.permutation(test)
    assert np.allclose(unseen[order], evaluate_on(sides[2][order], sides[3][order])[1], atol=CLOSE), (
        f"{_OTHER_ROWS} (they came in another order)"
    )
