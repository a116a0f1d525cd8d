"""The metrics against scikit-learn's, and their weights against repeated texts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score, log_loss, r2_score

from clsprobe.probes import metric


@pytest.fixture
def predictions():
    """codes (cell, text), labels (text,), probabilities (cell, text, class); class 3 has no label, class 2 is rare."""
    random = np.random.default_rng(0)
    labels = random.choice(3, size=80, p=[0.6, 0.35, 0.05])
    probabilities = random.dirichlet(np.ones(4), size=(5, 80))
    return probabilities.argmax(-1), labels, probabilities


def own(probabilities, labels):
    return np.log2(probabilities[:, np.arange(len(labels)), labels])


def test_accuracy_macro_f1_and_bits_are_those_of_scikit_learn(predictions):
    codes, labels, probabilities = predictions
    once = np.ones((1, len(labels)))
    present = np.unique(labels)
    for cell in range(len(codes)):
        assert metric.accuracy(codes, labels, once)[cell, 0] == pytest.approx(accuracy_score(labels, codes[cell]))
        f1 = f1_score(labels, codes[cell], labels=present, average="macro", zero_division=0)
        assert metric.macro_f1(codes, labels, once)[cell, 0] == pytest.approx(f1)
        bits = log_loss(labels, probabilities[cell], labels=range(4)) / np.log(2)
        assert metric.bits(own(probabilities, labels), once)[cell, 0] == pytest.approx(bits)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_are_repetitions(predictions, dtype):
    codes, labels, probabilities = predictions
    weights = np.random.default_rng(1).multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=7)
    weights[0, labels == 2] = 0  # a resampling without the rare class
    bits = own(probabilities, labels)
    values = {
        "accuracy": metric.accuracy(codes, labels, weights.astype(dtype)),
        "macro_f1": metric.macro_f1(codes, labels, weights.astype(dtype)),
        "bits": metric.bits(bits, weights.astype(dtype)),
    }
    for draw, counts in enumerate(weights):
        rows = np.repeat(np.arange(len(labels)), counts)
        once = np.ones((1, len(rows)))
        assert values["accuracy"][:, draw] == pytest.approx(metric.accuracy(codes[:, rows], labels[rows], once)[:, 0])
        assert values["macro_f1"][:, draw] == pytest.approx(metric.macro_f1(codes[:, rows], labels[rows], once)[:, 0])
        assert values["bits"][:, draw] == pytest.approx(metric.bits(bits[:, rows], once)[:, 0], rel=1e-5)


def test_bits_are_infinite_only_where_the_impossible_is_drawn():
    log2 = np.array([[-1.0, -np.inf], [-1.0, -2.0]])
    values = metric.bits(log2, np.array([[1.0, 1.0], [2.0, 0.0]]))
    assert values.tolist() == [[np.inf, 1.0], [1.5, 1.0]]


# -------------------------------------------------------------------------------------------------------------- numbers


@pytest.fixture
def numbers():
    """told (cell, text), labels (text,): lengths in words, so with many ties; the last cell tells one number only."""
    random = np.random.default_rng(0)
    labels = random.integers(3, 30, size=90).astype(float)
    predictions = labels + np.array([[0.5], [4.0], [50.0], [0.0]]) * random.normal(size=(4, 90))
    predictions[1] = predictions[1].round()  # ties here too
    predictions[3] = labels.mean()
    return predictions, labels


def test_r2_and_spearman_are_those_of_scikit_learn_and_scipy(numbers):
    predictions, labels = numbers
    once = np.ones((1, len(labels)))
    for cell in range(len(predictions)):
        assert metric.r2(predictions, labels, once)[cell, 0] == pytest.approx(
            r2_score(labels, predictions[cell]), abs=1e-12
        )
    for cell in range(3):
        assert metric.spearman(predictions, labels, once)[cell, 0] == pytest.approx(
            spearmanr(labels, predictions[cell]).statistic
        )
    assert metric.spearman(predictions, labels, once)[3, 0] == 0  # one number for all tells no order
    assert metric.spearman(np.exp(predictions / 9), labels**3, once)[:3] == pytest.approx(
        metric.spearman(predictions, labels, once)[:3]
    )
    assert metric.spearman(-labels[None], labels, once)[0, 0] == pytest.approx(-1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_are_repetitions_of_numbers_too(numbers, dtype):
    predictions, labels = numbers
    weights = np.random.default_rng(1).multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=7)
    r2, spearman = (measure(predictions, labels, weights.astype(dtype)) for measure in (metric.r2, metric.spearman))
    for draw, counts in enumerate(weights):
        rows = np.repeat(np.arange(len(labels)), counts)
        for cell in range(3):
            assert r2[cell, draw] == pytest.approx(r2_score(labels[rows], predictions[cell, rows]))
            assert spearman[cell, draw] == pytest.approx(spearmanr(labels[rows], predictions[cell, rows]).statistic)


def test_labels_without_variance():
    labels, once = np.full(5, 3.0), np.ones((1, 5))
    predictions = np.array([[3.0] * 5, [3.0, 3, 3, 3, 4]])
    assert metric.r2(predictions, labels, once).tolist() == [[1], [0]]
    assert metric.spearman(predictions, labels, once).tolist() == [[0], [0]]
    # far from zero, where squares cancel
    labels = 1e6 + np.arange(5.0)
    assert metric.r2(labels[None] + 0.5, labels, once)[0, 0] == pytest.approx(r2_score(labels, labels + 0.5))
