"""The metrics against scikit-learn's, and their weights against repeated texts."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss

from probes import metric


@pytest.fixture
def told():
    """codes (cell, text), labels (text,), probabilities (cell, text, class); class 3 has no label, class 2 is rare."""
    random = np.random.default_rng(0)
    labels = random.choice(3, size=80, p=[0.6, 0.35, 0.05])
    probabilities = random.dirichlet(np.ones(4), size=(5, 80))
    return probabilities.argmax(-1), labels, probabilities


def own(probabilities, labels):
    return np.log2(probabilities[:, np.arange(len(labels)), labels])


def test_accuracy_macro_f1_and_bits_are_those_of_scikit_learn(told):
    codes, labels, probabilities = told
    once = np.ones((1, len(labels)))
    present = np.unique(labels)
    for cell in range(len(codes)):
        assert metric.accuracy(codes, labels, once)[cell, 0] == pytest.approx(accuracy_score(labels, codes[cell]))
        f1 = f1_score(labels, codes[cell], labels=present, average="macro", zero_division=0)
        assert metric.macro_f1(codes, labels, once)[cell, 0] == pytest.approx(f1)
        bits = log_loss(labels, probabilities[cell], labels=range(4)) / np.log(2)
        assert metric.bits(own(probabilities, labels), once)[cell, 0] == pytest.approx(bits)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_are_repetitions(told, dtype):
    codes, labels, probabilities = told
    weights = np.random.default_rng(1).multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=7)
    weights[0, labels == 2] = 0  # a resampling without the rare class
    bits = own(probabilities, labels)
    found = {
        "accuracy": metric.accuracy(codes, labels, weights.astype(dtype)),
        "macro_f1": metric.macro_f1(codes, labels, weights.astype(dtype)),
        "bits": metric.bits(bits, weights.astype(dtype)),
    }
    for draw, counts in enumerate(weights):
        rows = np.repeat(np.arange(len(labels)), counts)
        once = np.ones((1, len(rows)))
        assert found["accuracy"][:, draw] == pytest.approx(metric.accuracy(codes[:, rows], labels[rows], once)[:, 0])
        assert found["macro_f1"][:, draw] == pytest.approx(metric.macro_f1(codes[:, rows], labels[rows], once)[:, 0])
        assert found["bits"][:, draw] == pytest.approx(metric.bits(bits[:, rows], once)[:, 0], rel=1e-5)


def test_bits_are_infinite_only_where_the_impossible_is_drawn():
    log2 = np.array([[-1.0, -np.inf], [-1.0, -2.0]])
    found = metric.bits(log2, np.array([[1.0, 1.0], [2.0, 0.0]]))
    assert found.tolist() == [[np.inf, 1.0], [1.5, 1.0]]
