"""Controls: shuffled labels keep the balance of every side; whoever knows the listed words of the control task makes no
mistake in it, and the words of a text alone tell nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from clsprobe.probes.baseline import bag_of_words
from clsprobe.probes.tasks.control import CONTROLS, MIN_TEXTS, choose_types, shuffled, word_type, word_type_texts

NOUNS = [a + b for a in ("bar", "dol", "fen", "gim", "kur", "lem", "nop", "ras", "tiv", "zul") for b in "aeiou"]
SHARE = [0.6, 0.3, 0.1]


def make_data(n=1500, seed=0):
    """texts, y, side: every text has two content words."""
    random = np.random.default_rng(seed)
    texts = [f"The {random.choice(NOUNS)} is the {random.choice(NOUNS)}?" for _ in range(n)]
    y = random.choice(3, size=n, p=SHARE)
    return texts, y, random.choice(["train", "dev", "test"], size=n, p=[0.7, 0.1, 0.2])


def read_words(text):
    """Another way to split English."""
    return set(re.findall(r"[a-zà-ÿ]+", text.lower()))


def guess_by_list(texts, codes, side):
    """(text,) what an oracle that knows the list says: the label of train texts with the same only listed word.

    A text in which it does not recognise exactly one word has -1.
    """
    listed = set(choose_types([text for text, name in zip(texts, side, strict=True) if name == "train"]))
    only = [held.pop() if len(held := listed & read_words(text)) == 1 else None for text in texts]
    label_of = {only[i]: codes[i] for i in np.flatnonzero(side == "train")}
    return np.array([label_of[word] if word else -1 for word in only])


def draw_anchor(texts, y, side, seed):
    """The control task as it must not be: the label is that of a word drawn from the text, which nobody can tell."""
    random = np.random.default_rng(seed)
    label_of = dict(zip(NOUNS, random.choice(y, len(NOUNS)), strict=True))
    return np.array([label_of[random.choice(sorted(read_words(text) & set(NOUNS)))] for text in texts])


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
    nouns = np.arange(1000) % len(NOUNS)
    texts = [f"is it {NOUNS[noun]}, is it" for noun in nouns]
    y, side = random.choice(3, size=1000, p=SHARE), np.repeat(["train", "test"], 500)
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


def test_who_knows_the_list_makes_no_mistake():
    texts, y, side = make_data(3000)
    codes = word_type(texts, y, side, 0)
    labelled = codes >= 0
    assert 0.4 < labelled[side == "test"].mean() < 0.7  # half of the nouns listed: half of the pairs hold exactly one
    assert (guess_by_list(texts, codes, side) == codes)[labelled].all()
    agree = (codes == y)[labelled].mean()  # with the task as independent labels would
    share = np.bincount(codes[labelled], minlength=3) / labelled.sum()
    assert agree == pytest.approx((share * np.bincount(y) / len(y)).sum(), abs=0.03)


def test_a_bag_of_words_solves_it_and_not_the_label_of_a_drawn_word():
    texts, y, side = make_data(3000)
    scores = []
    for make in (word_type, draw_anchor):
        codes = make(texts, y, side, 0)
        train, dev, test = (np.flatnonzero((side == name) & (codes >= 0)) for name in ("train", "dev", "test"))
        predicted = bag_of_words(texts, codes, train, dev).codes[0, 0]
        scores.append((predicted == codes)[test].mean())
    assert scores[0] > 0.99
    assert scores[1] < 0.85


def test_types_are_chosen_greedily():
    """Against a recount of every gain before every choice."""
    random = np.random.default_rng(0)
    words = [f"w{chr(97 + i)}" for i in range(26)]
    p = 1 / np.arange(3, 29)
    texts = [" ".join(random.choice(words, 6, p=p / p.sum())) for _ in range(400)]
    words_of = [set(text.split()) for text in texts]
    counts = Counter(word for text in texts for word in text.split())
    by_count = sorted(words, key=lambda word: (-counts[word], word))
    common = {word for i, word in enumerate(by_count) if 2 * sum(counts[w] for w in by_count[:i]) < counts.total()}
    content = sorted(set(words) - common)
    content = [word for word in content if sum(word in held for held in words_of) >= MIN_TEXTS]
    chosen = []
    while True:
        n_listed = [len(held & set(chosen)) for held in words_of]
        gains = {
            word: sum((n == 0) - (n == 1) for n, held in zip(n_listed, words_of, strict=True) if word in held)
            for word in content
            if word not in chosen
        }
        if not gains or max(gains.values()) <= 0:
            break
        chosen.append(max(gains, key=gains.get))
    assert len(chosen) > 2
    assert choose_types(texts) == chosen


def test_rare_and_common_words_are_not_listed():
    texts = ["the house is red"] * (MIN_TEXTS - 1) + ["the garden is green"] * MIN_TEXTS
    assert choose_types(texts) == ["garden"]  # the, is: half of the words; red, house: rare; green: with garden
    assert choose_types([]) == choose_types(["the"]) == []


def test_the_task_on_the_texts_of_the_control_task_has_its_own_labels():
    texts, y, side = make_data()
    labelled = word_type(texts, y, side, 0) >= 0
    real = word_type_texts(texts, y, side, 0)
    assert (real[labelled] == y[labelled]).all()
    assert (real[~labelled] == -1).all()
    y[labelled & (side == "train")] = 0  # no text to learn class 1 and 2 from
    real = word_type_texts(texts, y, side, 0)
    assert (real[labelled & (y == 0)] == 0).all()
    assert (real[~labelled | (y > 0)] == -1).all()


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


def test_the_seed_changes_the_labels_and_not_the_texts():
    texts, y, side = make_data()
    first, second = (word_type(texts, y, side, seed) for seed in (0, 1))
    assert (first != second).mean() > 0.1
    assert ((first >= 0) == (second >= 0)).all()


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


def test_texts_without_exactly_one_listed_word_have_no_label():
    train = ["is it nopa"] * 10 + ["is it feni"] * 10
    test = ["is it nopa", "nopa nopa", "is it nopa or feni", "is it lemo", "it is", "?", ""]
    side = np.array(["train"] * 20 + ["test"] * 7)
    codes = word_type(train + test, np.arange(27) % 2, side, 0)
    assert (codes[:20] >= 0).all()
    assert (codes[20:] >= 0).tolist() == [True, True, False, False, False, False, False]


def test_case_and_unicode_form_do_not_change_the_type_of_a_word():
    texts = 3 * ["is it FENI", "is it feni", "is it ｆｅｎｉ", "is it Feni?"] + 5 * ["is it क्षेत्र", "is it क्षेत्र।"]
    codes = word_type(texts, np.arange(22), np.array(["train"] * 22), 0)
    assert len(set(codes[:12].tolist())) == len(set(codes[12:].tolist())) == 1
    assert (codes >= 0).all()


def test_every_control_has_the_interface_of_the_sweep():
    texts, y, side = make_data(100)
    for control in CONTROLS.values():
        codes = control(texts, y, side, 0)
        assert codes.shape == y.shape
        assert codes.min() >= -1
        assert codes.max() <= y.max()


@pytest.mark.parametrize(("name", "least"), [("trec", 0.35), ("sst2", 0.33)])
def test_a_third_of_real_texts_is_labelled_and_the_list_decides(data_folder, name, least):
    rows = [
        (side, *line.split("\t"))
        for side in ("train", "test")
        for line in (data_folder / name / f"{side}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    ]
    y = np.unique([row[1] for row in rows], return_inverse=True)[1]
    side, texts = np.array([row[0] for row in rows]), [row[-1] for row in rows]
    codes = word_type(texts, y, side, 0)
    test = (side == "test") & (codes >= 0)
    assert test.sum() >= least * (side == "test").sum()
    assert (guess_by_list(texts, codes, side) == codes)[test].mean() > 0.99  # the oracle splits words in another way
    assert np.bincount(codes[test]).max() < 0.6 * test.sum()
