"""Controls: shuffled labels keep the balance of every side; the word types of the control task can only be
memorised."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import BernoulliNB

from clsprobe.probes.tasks.control import CONTROLS, coverage, shuffled, word_type

NOUNS = [a + b for a in ("bar", "dol", "fen", "gim", "kur", "lem", "nop", "ras", "tiv", "zul") for b in "aeiou"]
SHARE = [0.6, 0.3, 0.1]


def make_data(n=1500, seed=0):
    """texts, y, side: every text has two content words."""
    random = np.random.default_rng(seed)
    texts = [f"The {random.choice(NOUNS)} is the {random.choice(NOUNS)}?" for _ in range(n)]
    y = random.choice(3, size=n, p=SHARE)
    return texts, y, random.choice(["train", "dev", "test"], size=n, p=[0.7, 0.1, 0.2])


def test_shuffled_labels_keep_the_balance_of_every_side():
    texts, y, side = make_data()
    shuffled_labels = shuffled(texts, y, side, 0)
    assert (shuffled_labels != y).any()
    for name in np.unique(side):
        assert np.array_equal(np.bincount(shuffled_labels[side == name]), np.bincount(y[side == name]))
    assert np.array_equal(shuffled_labels, shuffled(texts, y, side, 0))
    assert not np.array_equal(shuffled_labels, shuffled(texts, y, side, 1))


def test_a_type_has_one_label_on_every_side():
    """The only content word of a text gives its label, in train and test; types draw labels independently."""
    random = np.random.default_rng(0)
    nouns = random.choice(len(NOUNS), size=1500)
    texts = [f"is it {NOUNS[noun]}, is it" for noun in nouns]
    y, side = random.choice(3, size=1500, p=SHARE), random.choice(["train", "test"], size=1500)
    labels = np.empty((200, len(NOUNS)), int)
    for seed, label_of_type in enumerate(labels):
        codes = word_type(texts, y, side, seed)
        assert (codes >= 0).all()
        label_of_type[nouns] = codes
        assert np.array_equal(label_of_type[nouns], codes)  # one label a type
    train_shares = np.bincount(y[side == "train"]) / (side == "train").sum()
    for k, p in enumerate(train_shares):
        count = (labels == k).sum(1)
        assert count.mean() == pytest.approx(50 * p, abs=0.8)
        assert count.var() == pytest.approx(50 * p * (1 - p), rel=0.4)  # binomial


def test_the_control_task_can_be_memorised_and_is_independent_of_the_task():
    texts, y, side = make_data(6000)
    codes = word_type(texts, y, side, 0)
    X = CountVectorizer().fit_transform(texts)
    train, test = (side == "train") & (codes >= 0), (side == "test") & (codes >= 0)
    accuracy = BernoulliNB().fit(X[train], codes[train]).score(X[test], codes[test])
    covered, majority = coverage(codes, side)
    assert covered > 0.99
    assert accuracy > majority + 0.05  # the anchor is one of the two content words
    agree = (codes == y)[codes >= 0].mean()
    share = np.bincount(codes[codes >= 0], minlength=3) / (codes >= 0).sum()
    assert agree == pytest.approx((share * np.bincount(y) / len(y)).sum(), abs=0.03)  # as independent labels would


def test_test_texts_change_nothing_in_train():
    texts, y, side = make_data()
    train = side == "train"
    codes = word_type(texts, y, side, 0)
    poisoned = [text if train[i] else "xyz " * 50 + str(i) for i, text in enumerate(texts)]
    changed_codes = word_type(poisoned, np.where(train, y, 2), side, 0)
    assert np.array_equal(codes[train], changed_codes[train])
    assert (changed_codes[~train] == -1).all()


def test_the_order_of_the_rows_changes_nothing():
    texts, y, side = make_data()
    order = np.random.default_rng(1).permutation(len(y))
    permuted = word_type([texts[i] for i in order], y[order], side[order], 0)
    assert np.array_equal(permuted, word_type(texts, y, side, 0)[order])


def test_the_seed_changes_anchors_and_labels():
    texts, y, side = make_data()
    assert (word_type(texts, y, side, 0) != word_type(texts, y, side, 1)).mean() > 0.3


def test_labels_are_the_same_in_another_process():
    """`hash` would differ: its key is random per process."""
    code = (
        "from clsprobe.probes.tasks.control import _stable_hash; print(_stable_hash(7, 'label', 'fern'), hash('fern'))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": key},
        ).stdout.split()
        for key in ("1", "2")
    ]
    assert outputs[0][0] == outputs[1][0]
    assert outputs[0][1] != outputs[1][1]


def test_word_types_that_train_lacks_have_no_label():
    texts = ["is it nopa", "is it nopa", "is it feni", "is it lemo", "it is", "?"]
    side = np.array(["train", "train", "train", "test", "test", "test"])
    codes = word_type(texts, np.array([0, 1, 1, 0, 1, 0]), side, 0)
    assert (codes[:3] >= 0).all()
    assert (codes[3:] == -1).all()
    assert coverage(codes, side) == (0.0, pytest.approx(np.nan, nan_ok=True))


def test_case_and_unicode_form_do_not_change_the_type_of_a_word():
    texts = ["is it FENI", "is it feni", "is it ｆｅｎｉ", "is it Feni?", "is it क्षेत्र", "is it क्षेत्र।"]
    codes = word_type(texts, np.array([0, 1, 2, 3, 0, 1]), np.array(["train"] * 6), 0)
    assert len(set(codes[:4].tolist())) == len(set(codes[4:].tolist())) == 1


def test_coverage_is_of_one_side_and_the_majority_of_train():
    codes = np.array([0, 0, 1, 1, 1, 0, -1, -1])
    side = np.array(["train"] * 3 + ["test"] * 5)
    assert coverage(codes, side) == (3 / 5, 1 / 3)
    assert coverage(codes, side, "train") == (1, 2 / 3)
    assert np.isnan(coverage(codes, side, "dev")).all()


def test_every_control_has_the_interface_of_the_sweep():
    texts, y, side = make_data(100)
    for control in CONTROLS.values():
        codes = control(texts, y, side, 0)
        assert codes.shape == y.shape
        assert codes.min() >= -1
        assert codes.max() <= y.max()


def test_trec_questions_are_covered_without_a_dominant_label(data_folder):
    """With a fixed position one label would dominate: 60 % of the first words are one type."""
    rows = [
        (side, *line.split("\t"))
        for side in ("train", "test")
        for line in (data_folder / "trec" / f"{side}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    ]
    y = np.unique([row[1] for row in rows], return_inverse=True)[1]
    side = np.array([row[0] for row in rows])
    for seed in range(3):
        covered, majority = coverage(word_type([row[3] for row in rows], y, side, seed), side)
        assert covered > 0.45
        assert majority < 0.35
