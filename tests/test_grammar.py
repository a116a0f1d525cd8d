"""The built-in sentences: the same everywhere, balanced, distinct, and nothing but the property tells the label."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from analysis.sources import SourceOptions, grammar, load
from probes.errors import InputError
from probes.task import Task

SIDES = ("train", "dev", "test")
# Whoever changes the sentences on purpose writes the new digest here, and says so in the changelog.
DIGEST = "0ac8df864bb585aea28b5dd6391de6852d979470f2e758fad51c19f81f0a9068"


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return {task.label: task for task in load("grammar:all", SourceOptions()).tasks}


def digest(loaded) -> str:
    rows = ["\t".join(row) for task in loaded.tasks for row in zip(task.split, task.y, task.texts, strict=True)]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def words(text: str) -> list[str]:
    return text.lower().replace(",", "").rstrip(".").split()


def test_the_sentences_are_the_published_ones():
    assert digest(load("grammar:all", SourceOptions())) == DIGEST


def test_the_same_sentences_in_every_process():
    code = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_grammar import SourceOptions, digest, load
print(digest(load("grammar:all", SourceOptions())))"""
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert digests == {DIGEST + "\n"}


def test_one_property_is_the_same_alone_as_among_all(tasks):
    (alone,) = load("grammar:subject-number", SourceOptions()).tasks
    assert alone.name == "grammar:subject_number"
    assert list(alone.texts) == list(tasks["subject_number"].texts)


def test_rows_are_counted():
    loaded = load("grammar:all", SourceOptions())
    assert [task.name for task in loaded.tasks] == [f"grammar:{name}" for name in grammar.PROPERTIES]
    assert loaded.rows == sum(len(task.texts) for task in loaded.tasks) == 12_000


@pytest.mark.parametrize("name", grammar.PROPERTIES)
def test_sentences_are_distinct_and_classes_balanced(tasks, name):
    task = tasks[name]
    assert len(set(task.texts)) == len(task.texts) == 3000
    assert Counter(task.split) == {"train": 1500, "dev": 500, "test": 1000}
    for side in SIDES:
        counts = Counter(task.y[task.split == side])
        assert set(counts) == set(grammar.PROPERTIES[name].labels)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_no_noun_or_verb_form_crosses_a_split(tasks):
    forms = {}
    for side in SIDES:
        lexicon = grammar.Lexicon.of(side)
        listed = [form for noun in lexicon.nouns for form in (noun.singular, noun.plural)]
        listed += [form for verb in lexicon.verbs for form in {verb.base, verb.third, verb.past}]
        assert len(listed) == len(set(listed)), f"{side} lists a form twice"
        forms[side] = set(listed)
        assert all(verb.base != verb.past for verb in lexicon.verbs), "tense must be visible"
        regular = Counter(verb.past.endswith("ed") for verb in lexicon.verbs)
        assert min(regular[True], regular[False]) >= 5, "both kinds of verb on every side"
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not forms[one] & forms[other]
    # In the texts themselves: what two sides share is none of these words.
    everything = set().union(*forms.values())
    for task in tasks.values():
        for side in SIDES:
            used = {word for text in np.array(task.texts)[task.split == side] for word in words(text)}
            assert used & everything <= forms[side]


def test_sentences_look_like_sentences(tasks):
    for task in tasks.values():
        for text in task.texts:
            assert text[0].isupper()
            assert text.endswith(".")
            assert "  " not in text
            assert " ." not in text
            assert " ," not in text
            assert all(len(word) > 0 for word in words(text))


def test_articles_fit_the_next_word(tasks):
    for name, task in tasks.items():
        if name == "bigram_shift":
            continue
        for text in task.texts:
            for article, following in zip(words(text), words(text)[1:], strict=False):
                if article in ("a", "an"):
                    assert (article == "an") == (following[0] in "aeiou"), text


def test_the_length_label_is_the_bin_of_the_word_count(tasks):
    task = tasks["sentence_length"]
    for label, text in zip(task.y, task.texts, strict=True):
        low, high = map(int, label.split("-"))
        assert low <= len(words(text)) <= high


def test_the_main_verb_and_subject_carry_the_label(tasks):
    """Where a sentence has one finite verb, or one noun before it, they can be looked up."""
    seen = Counter()
    for side in SIDES:
        lexicon = grammar.Lexicon.of(side)
        past, present = {v.past for v in lexicon.verbs}, {f for v in lexicon.verbs for f in (v.base, v.third)}
        plural, singular = {n.plural for n in lexicon.nouns}, {n.singular for n in lexicon.nouns}
        task = tasks["tense"]
        for label, text in zip(task.y[task.split == side], np.array(task.texts)[task.split == side], strict=True):
            verbs = [word for word in words(text) if word in past | present]
            if len(verbs) == 1:
                assert verbs[0] in (past if label == "past" else present)
                seen["tense"] += 1
        task = tasks["subject_number"]
        for label, text in zip(task.y[task.split == side], np.array(task.texts)[task.split == side], strict=True):
            if not set(words(text)) & set(grammar.SUBORDINATORS.split()):
                first = next(word for word in words(text) if word in plural | singular)
                assert first in (plural if label == "plural" else singular)
                seen["number"] += 1
    assert min(seen["tense"], seen["number"]) > 1000


def test_a_shift_swaps_two_neighbours_once():
    dice, lexicon = grammar._Dice("a test"), grammar.Lexicon.of("train")
    for number in range(500):
        form = grammar._Form(past=number % 2 == 0, plural=number % 3 == 0)
        tokens = grammar._Writer(lexicon, dice, form).sentence()
        shifted = grammar._shift(tokens, dice)
        first, *others = [i for i, (one, other) in enumerate(zip(tokens, shifted, strict=True)) if one != other]
        assert others == [first + 1]
        assert shifted[first : first + 2] == [tokens[first + 1], tokens[first]]
        assert first > 0
        assert "," not in tokens[first : first + 2]


def test_a_swap_that_reads_well_is_not_taken():
    assert grammar._free("often", "sleeps")
    assert grammar._free("old", "proud")
    assert grammar._free("quietly", "and")
    assert not grammar._free("the", "king")


def test_a_sentence_is_original_or_shifted_never_both(tasks):
    task = tasks["bigram_shift"]
    bags = {
        label: {tuple(sorted(words(text))) for text, y in zip(task.texts, task.y, strict=True) if y == label}
        for label in ("original", "shifted")
    }
    # Two sentences of the same words are rare accidents: "the cat sees the dog", "the dog sees the cat".
    assert len(bags["original"] & bags["shifted"]) <= 0.02 * len(bags["original"])


@pytest.mark.parametrize("name", ["bigram_shift", "tense", "subject_number"])
def test_a_bag_of_words_is_at_chance(tasks, name):
    """Within three standard errors of the majority on the 1,000 test sentences: no word gives a label away."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    task, texts = tasks[name], np.array(tasks[name].texts, dtype=object)
    train, test = task.split == "train", task.split == "test"
    bag = TfidfVectorizer().fit(texts[train])
    probe = LogisticRegression(max_iter=1000).fit(bag.transform(texts[train]), task.y[train])
    assert abs(probe.score(bag.transform(texts[test]), task.y[test]) - 0.5) < 0.048


@pytest.mark.parametrize("name", ["tens", "", "grammar", "TENSE"])
def test_an_unknown_property_is_refused_with_those_there_are(name):
    with pytest.raises(InputError, match=r"--task: unknown property .* One of: tense, .*, all") as error:
        load(f"grammar:{name}", SourceOptions())
    if name == "tens":
        assert "Did you mean 'tense'?" in str(error.value)
