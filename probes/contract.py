"""The contract of a probe, for its author's tests: `check_probe` for an estimator, `check_evaluation` for a pipeline.

1. Two Gaussian cells, signals planted in the second only, and three label sets, one without signal, one with gaps. What
   can be told from them is known.
2. `check_probe` fits them as the sweep does and then again with one thing changed that may not matter: the order of the
   rows, the names of the classes or the unit of the numbers, other test rows, an earlier fit.
3. `check_evaluation` poisons the test rows of a whole pipeline, where a probe's own fit never sees them.

Every violation is an AssertionError that says what is wrong and how to mend it.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, clone, is_regressor
from sklearn.exceptions import ConvergenceWarning

from clsprobe.probes import metric
from clsprobe.probes.base import Predictions, predict_each

ROWS, DIM = 300, 6  # of each side
SIGNAL, NULL, GAPS = range(3)  # label sets
ONCE = np.ones((1, ROWS))  # weights of the test rows
CLOSE = 1e-4  # bits or scores: more than rounding in float32

Rename = Callable[[np.ndarray], np.ndarray]
Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Evaluation = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def check_probe(probe: BaseEstimator, *, seed: int = 0) -> None:
    """Raise AssertionError where a probe breaks the contract that the sweep relies on.

    It must find a planted signal, stay at chance on labels that have none, keep label sets apart, give the same answer
    twice and whatever was fitted before, depend on no other test rows, on no row's place and on no class's name or
    number's unit, leave its inputs and its own parameters alone, and leave the global random states untouched. A
    regressor is asked for numbers, every other probe for classes.
    """
    kind = NUMBERS if is_regressor(probe) else CLASSES
    drawn = np.random.default_rng(seed)
    X, truth = kind.plant(drawn)
    y = truth.copy()
    y[np.arange(2 * ROWS) % 3 > 0, GAPS] = kind.missing  # most texts have no label in this set
    given = [X[:, :ROWS].copy(), y[:ROWS].copy(), X[:, ROWS:].copy(), X[:, :ROWS:5].copy(), y[:ROWS:5].copy()]
    kept = [array.copy() for array in given]
    train, labels, test, *dev = given
    parameters = repr(probe)

    def run(unseen: np.ndarray, *, order: Any = slice(None), rename: Rename = lambda labels: labels) -> Predictions:
        told = predict_each(
            probe,
            train[:, order],
            rename(labels[order]),
            unseen,
            dev=(dev[0], rename(dev[1])),
            strengths=(1e-2, 1.0),
        )
        assert not told.failures, (
            f"the probe raised {told.failures}: arrays come read-only, y with -1, or NaN among numbers, where there is "
            "no label; predictions go as log probabilities (cell, label set, text, class) or as codes or finite "
            "numbers (cell, label set, text)"
        )
        return told

    with _random_states_watched():
        first = run(test)
    second = run(test.copy())
    assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(kept, given, strict=True)), (
        "the probe alters its inputs: write X = X - m, which makes a new array, instead of X -= m"
    )
    assert repr(probe) == parameters, _PARAMETERS
    assert _same(first, second), "two fits on the same data differ: seed what is random with a parameter of the probe"
    _check_rows(first, run, test, drawn)
    _check_scores(kind, first, truth[ROWS:])

    by_label = run(test, order=np.lexsort((drawn.random(ROWS), labels[:, SIGNAL])))
    found, read = (kind.read(told, SIGNAL, truth[ROWS:])[1] for told in (first, by_label))
    assert read > kind.enough, (
        f"a signal that is read at {found:.2f} is read at {read:.2f} once the training rows are sorted by label: the "
        "place of a row may mean nothing; shuffle, seeded, before rows are set aside or batched"
    )

    renamed = run(test, rename=kind.rename)
    for label_set in (SIGNAL, GAPS):
        agreed = kind.read(renamed, label_set, kind.rename(first.codes[1].T))[1]
        assert agreed > kind.steady, (
            f"predictions agree with the former ones at {agreed:.2f} ({kind.score.__name__}) once {kind.renaming}"
        )
    _check_alone(probe, train, labels[:, SIGNAL], test)


class _Kind(NamedTuple):
    """What is planted for one kind of label, and how well it has to be read."""

    plant: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]  # X (cell, text, dim), y (text, label set)
    missing: float  # stands for no label
    score: Metric
    possible: float  # of the planted signal, and the least that will do
    enough: float
    filled: float  # the least that will do of the set with gaps
    luck: Metric  # what tells labels without signal from chance: its expectation and its error times sqrt(ROWS)
    chance: float
    error: float
    rename: Rename
    steady: float  # the least agreement of predictions before and after
    renaming: str

    def read(self, told: Predictions, label_set: int, y: np.ndarray) -> np.ndarray:
        """(cell,) how well a label set of y (text, label set) is told."""
        return self.score(told.codes[:, label_set], y[:, label_set], ONCE)[:, 0]


def _classes(drawn: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    signal, null = np.arange(2 * ROWS) % 2, drawn.permutation(2 * ROWS) % 2
    four = drawn.permutation(2 * ROWS) % 4
    X = drawn.normal(size=(2, 2 * ROWS, DIM)).astype(np.float32)
    X[1, :, 2] += 3 * signal
    X[1, :, 4:] += 5 * np.stack([four % 2, four // 2], 1)  # corners of a square: 0..3 is linear there, other names not
    return X, np.stack([signal, null, four], 1)


def _numbers(drawn: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    signal, null, other = drawn.normal(size=(3, 2 * ROWS))
    X = drawn.normal(size=(2, 2 * ROWS, DIM)).astype(np.float32)
    X[1, :, 2] += 4 * signal
    X[1, :, 4] += 4 * other
    return X, np.stack([signal, null, other], 1)


def _renamed(codes: np.ndarray) -> np.ndarray:
    """Codes (text, label set) with the classes of every set in another order."""
    swapped = np.where(codes < 0, -1, 1 - codes)
    swapped[:, GAPS] = np.array([0, 1, 3, 2, -1])[codes[:, GAPS]]
    return swapped


CLASSES = _Kind(
    plant=_classes,
    missing=-1,
    score=metric.accuracy,
    possible=0.93,
    enough=0.85,
    filled=0.75,
    luck=metric.accuracy,
    chance=0.5,
    error=0.5,
    rename=_renamed,
    steady=0.9,
    renaming="classes are renamed: codes are names, not quantities; learn one score for every class",
)
NUMBERS = _Kind(
    plant=_numbers,
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
    first: Predictions, run: Callable[[np.ndarray], Predictions], test: np.ndarray, drawn: np.random.Generator
) -> None:
    """Poisons half of the test rows and mixes them with the others: these keep their predictions."""
    poison = test.copy()
    poison[:, ROWS // 2 :] = 1e6
    assert _same(first, run(poison), ROWS // 2), _OTHER_ROWS
    order = drawn.permutation(ROWS)
    back = run(test[:, order])
    near = np.isclose(back.codes, first.codes[..., order], rtol=1e-3, atol=CLOSE)
    assert near.mean() > 0.99, f"{_OTHER_ROWS} (they came in another order)"
    if first.log2_proba is not None and back.log2_proba is not None:
        there = first.log2_proba[:, :, order]
        near = np.isclose(back.log2_proba, there, rtol=1e-3, atol=CLOSE)
        assert near.all(), f"{_OTHER_ROWS} (they came in another order)"


_OTHER_ROWS = (
    "other test rows change a prediction: what is predicted of a text may depend on it and on train alone; take means, "
    "scales and neighbours from train, and nothing from a row's place"
)


def _check_scores(kind: _Kind, told: Predictions, y: np.ndarray) -> None:
    read = kind.read(told, SIGNAL, y)[1]
    assert read > kind.enough, (
        f"a planted signal ({kind.score.__name__} {kind.possible} possible) was read at {read:.2f}: the probe does not "
        "learn; look at its scale, its penalty and when it stops"
    )
    luck = np.stack([kind.luck(told.codes[:, s], y[:, s], ONCE)[:, 0] for s in (SIGNAL, NULL)], 1)  # (cell, label set)
    nothing = np.delete(luck.ravel(), 2)
    worst = nothing[np.abs(nothing - kind.chance).argmax()]
    assert abs(worst - kind.chance) < 5 * kind.error / math.sqrt(ROWS), (
        f"labels without signal were read at {worst:.2f} ({kind.luck.__name__}): something besides a text's own "
        "features tells its label, such as its place among the rows, another cell or another label set"
    )
    read = kind.read(told, GAPS, y)[1]
    assert read > kind.filled, (
        f"texts without a label ({kind.missing:g}) spoil a label set, read at {read:.2f}: leave them out of its fit"
    )
    foreign = kind is CLASSES and (
        told.codes[:, :2].max() > 1 or (told.log2_proba is not None and told.log2_proba[:, :2, :, 2:].max() > -9)
    )
    assert not foreign, (
        "a label set is given a class that only another one has: its log probability there is -inf, for the classes of "
        "a set are those of its training texts"
    )


def _check_alone(probe: BaseEstimator, X: np.ndarray, y: np.ndarray, test: np.ndarray) -> None:
    """scikit-learn's entrance, one cell and one label set: nothing stays of another fit or prediction."""

    def fit(estimator: Any, X: np.ndarray, y: np.ndarray) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a flag on the row, no violation
            return estimator.fit(X, y)

    estimator = clone(probe)
    parameters = repr(estimator.get_params(deep=False))
    told = fit(estimator, X[1], y).predict(test[1])
    assert repr(estimator.get_params(deep=False)) == parameters, _PARAMETERS
    estimator.predict(test[0])
    assert np.array_equal(estimator.predict(test[1]), told), (
        "predicting changes the fitted probe: nothing may be learned, counted or drawn there"
    )
    fresh = fit(clone(probe), X[0], 1 - y)
    again = fit(estimator, X[0], 1 - y)
    for ask in ("predict", "predict_proba"):
        if hasattr(fresh, ask):
            assert np.array_equal(getattr(again, ask)(test[0]), getattr(fresh, ask)(test[0])), (
                "what an earlier fit learned stays in the next: start every fit from scratch, without a warm start and "
                "with nothing kept in the class or the module"
            )


_PARAMETERS = "fitting alters the constructor's parameters: keep what is learned under names that end in _"


def _same(a: Predictions, b: Predictions, n: int = ROWS) -> bool:
    """Whether two predictions of the first n texts are the same, bit by bit."""
    codes = np.array_equal(a.codes[..., :n], b.codes[..., :n])
    if a.log2_proba is None or b.log2_proba is None:
        return codes
    return codes and np.array_equal(a.log2_proba[:, :, :n], b.log2_proba[:, :, :n])


@contextmanager
def _random_states_watched() -> Iterator[None]:
    """Raises AssertionError where a global random state is moved. They start anywhere: to seed one is to move it."""
    import torch

    def states() -> list[str]:
        numpys = np.random.get_state()  # noqa: NPY002  (the old global state is what is watched)
        return [
            repr(random.getstate()),
            repr([np.asarray(part).tolist() for part in numpys]),
            repr(torch.get_rng_state().tolist()),
        ]

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    start = int(np.random.default_rng().integers(1 << 32))
    random.seed(start)
    np.random.seed(start)  # noqa: NPY002
    torch.manual_seed(start)
    here = states()
    try:
        yield
        for name, one, now in zip(("random", "numpy.random", "torch"), here, states(), strict=True):
            assert one == now, (
                f"the global random state of {name} is moved: draw from a generator of its own, "
                "numpy.random.default_rng(seed) or torch.Generator().manual_seed(seed)"
            )
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


# ------------------------------------------------------------------------------------------------------ whole pipelines


def check_evaluation(evaluate: Evaluation, *, seed: int = 0) -> None:
    """Raise AssertionError where a pipeline lets test rows into what it fits, or a row's place into what it tells.

    evaluate: (X_train, y_train, X_test, y_test) -> what it tells of the train rows and of the test rows, each (text,)
    labels or, better, (text, class) scores, in which smaller leaks show. X: (text, dim), y: (text,) codes of two
    classes, sorted by label as in many a file.
    """
    drawn = np.random.default_rng(seed)
    train, test, dim = 80, 60, 24
    y = np.concatenate([np.sort(drawn.permutation(n) % 2) for n in (train, test)])
    X = drawn.normal(size=(train + test, dim))
    X[:, 0] += 1.5 * y  # a signal that noise all but hides: what is tuned or selected is decided by little
    sides = X[:train], y[:train], X[train:], y[train:]

    def told(X_test: np.ndarray, y_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        given = [array.copy() for array in (*sides[:2], X_test, y_test)]
        fitted, unseen = (np.asarray(part, dtype=float) for part in evaluate(*given))
        intact = all(map(np.array_equal, given, (*sides[:2], X_test, y_test)))
        assert intact, "the pipeline alters its inputs: copy before writing"
        assert len(fitted) == train and len(unseen) == len(X_test), (  # noqa: PT018
            f"it told of {len(fitted)} and {len(unseen)} rows, not of {train} train and {len(X_test)} test rows"
        )
        return fitted, unseen

    with _random_states_watched():
        fitted, unseen = told(*sides[2:])
    again = told(*sides[2:])
    assert np.array_equal(fitted, again[0]) and np.array_equal(unseen, again[1]), (  # noqa: PT018
        "two evaluations of the same data differ: seed what is random"
    )

    garbage = 1e3 * drawn.normal(size=sides[2].shape)
    half = np.arange(test) < test // 2
    drawn_labels = drawn.permutation(sides[3])
    for X_test, y_test, what in (
        (sides[2], 1 - sides[3], "labels of the test rows"),
        (sides[2], drawn_labels, "labels of the test rows"),
        (garbage, sides[3], "features of the test rows"),
        (garbage, drawn_labels, "test rows"),
    ):
        poisoned = told(X_test, y_test)
        assert np.array_equal(fitted, poisoned[0]), (
            f"the {what} change what is fitted: fit every step (scaling, projection, selection, tuning, stopping) on "
            "train and dev rows only"
        )
        if X_test is sides[2]:
            assert np.array_equal(unseen, poisoned[1]), (
                "the labels of the test rows change what is predicted of them: use them for nothing but the score"
            )
    mixed = np.where(half[:, None], sides[2], garbage)
    assert np.array_equal(unseen[half], told(mixed, sides[3])[1][half]), _OTHER_ROWS
    order = drawn.permutation(test)
    assert np.allclose(unseen[order], told(sides[2][order], sides[3][order])[1], atol=CLOSE), (
        f"{_OTHER_ROWS} (they came in another order)"
    )
