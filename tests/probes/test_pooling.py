"""The probe that learns where to look: it finds what a mean dilutes, and padding is nothing to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clsprobe.probes import descent, pooling
from clsprobe.probes.base import STRENGTHS
from clsprobe.probes.linear import LogisticProbe
from clsprobe.probes.pooling import AttentionProbe

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH, DIM = 12, 6


def planted(n=900, seed=0):
    """Tokens (text, token, dim), real (text, token), y (text, label set), where (text, label set).

    Each label stands on one token of the text, which bears the mark of its label set; all the rest is noise.
    """
    random = np.random.default_rng(seed)
    tokens = random.normal(2, 1, size=(n, WIDTH, DIM)).astype(np.float32)
    lengths = random.integers(6, WIDTH + 1, size=n)
    y = random.integers(2, size=(n, 2))
    where = np.stack([random.permutation(length)[:2] for length in lengths])
    for s in range(2):
        tokens[np.arange(n), where[:, s], s] += 6  # the mark
        tokens[np.arange(n), where[:, s], 2 + s] += 4 * y[:, s] - 2
    real = np.arange(WIDTH) < lengths[:, None]
    return tokens * real[..., None], real, y, where


def flat(tokens):
    return tokens.reshape(1, len(tokens), -1)


def test_a_token_that_the_mean_dilutes_is_found():
    tokens, real, y, where = planted()
    train, dev, test = slice(0, 500), slice(500, 600), slice(600, 900)
    attention = AttentionProbe(DIM)
    attention.fit_cells(flat(tokens[train]), y[train], dev=(flat(tokens[dev]), y[dev]), strengths=STRENGTHS)
    right = (attention.predict_cells(flat(tokens[test])) == y[test].T).mean(-1)
    assert right.min() > 0.93

    mean = (tokens.sum(1) / real.sum(1, keepdims=True))[None]
    linear = LogisticProbe().fit_cells(mean[:, train], y[train], dev=(mean[:, dev], y[dev]), strengths=STRENGTHS)
    assert (linear.predict_cells(mean[:, test]) == y[test].T).mean(-1).max() < 0.85

    weights = attention.attention_cells(flat(tokens[test]))
    assert weights.shape == (1, 2, 300, WIDTH)
    assert weights.sum(-1) == pytest.approx(1)
    assert (weights[:, :, ~real[test]] == 0).all()
    attended = weights[0].argmax(-1) == where[test].T  # each label set looks at its own token
    assert attended.mean() > 0.95


def fitted():
    tokens, _, y, _ = planted(300)
    probe = AttentionProbe(DIM).fit_cells(flat(tokens[:200]), y[:200], dev=(flat(tokens[200:]), y[200:]))
    return probe, tokens[200:]


def differences(probe, tokens):
    """How far probabilities move with twice the padding, and with the tokens in another order."""
    padded = np.concatenate([tokens, np.zeros_like(tokens)], 1)
    turned = padded[:, ::-1]
    probabilities = [np.exp(probe.log_proba_cells(flat(texts))) for texts in (tokens, padded, turned)]
    return [np.abs(probabilities[0] - other).max() for other in probabilities[1:]]


def test_padding_and_order_are_nothing_to_it(monkeypatch):
    monkeypatch.setattr(descent, "ROUNDS", 5)
    probe, tokens = fitted()
    assert max(differences(probe, tokens)) < 1e-5

    def unmasked(parameters, x):
        return masked(parameters, torch.cat([x[..., :-1], torch.ones_like(x[..., -1:])], -1))

    masked = pooling._attention
    monkeypatch.setattr(pooling, "_attention", unmasked)
    assert differences(*fitted())[0] > 0.01  # the twin that lets padding in


def test_it_starts_as_mean_pooling(monkeypatch):
    monkeypatch.setattr(descent, "ROUNDS", 0)
    tokens, real, y, _ = planted(100)
    weights = AttentionProbe(DIM).fit_cells(flat(tokens), y).attention_cells(flat(tokens))
    assert weights[0, 1] == pytest.approx(real / real.sum(1, keepdims=True))


def test_tokens_are_standardised_over_the_real_ones():
    tokens, real, y, _ = planted(100)
    probe = AttentionProbe(DIM).fit_cells(flat(tokens), y)
    assert probe.mean_[0] == pytest.approx(tokens[real].mean(0), rel=1e-5)
    assert probe.scale_[0] == pytest.approx(tokens[real].std(0), rel=1e-5)


def test_a_text_without_tokens_gets_what_is_left(monkeypatch):
    monkeypatch.setattr(descent, "ROUNDS", 2)
    tokens, _, y, _ = planted(100)
    tokens[::10] = 0
    probe = AttentionProbe(DIM).fit_cells(flat(tokens), y)
    assert np.isfinite(probe.log_proba_cells(flat(tokens))).all()
    assert (probe.attention_cells(flat(tokens))[0, :, ::10] == 0).all()
    nothing = np.zeros_like(tokens)
    AttentionProbe(DIM).fit_cells(flat(nothing), y).log_proba_cells(flat(nothing))


def test_rows_are_whole_tokens():
    tokens, _, y, _ = planted(50)
    with pytest.raises(ValueError, match=r"AttentionProbe\(dim=5\): 72 features are not whole tokens of 5 numbers"):
        AttentionProbe(5).fit_cells(flat(tokens), y)
