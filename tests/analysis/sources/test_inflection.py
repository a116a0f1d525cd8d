"""Minimal pairs of a treebank: forms that stand in it, agreement that it shows, and nothing where it is uncertain."""

from __future__ import annotations

import pytest

from clsprobe.analysis.sources import SourceOptions, load, load_pairs
from clsprobe.analysis.sources.inflection import Inflector
from clsprobe.analysis.sources.treebank import read_treebank
from clsprobe.probes.errors import InputError

PAST, PRESENT = (
    "Mood=Ind|Number={}|Person=3|Tense=Past|VerbForm=Fin",
    "Mood=Ind|Number={}|Person=3|Tense=Pres|VerbForm=Fin",
)
FEATURES = {
    "s": "Number=Sing",
    "p": "Number=Plur",
    "the": "Definite=Def|PronType=Art",
    "a": "Definite=Ind|PronType=Art",
    "this": "Number=Sing|PronType=Dem",
    "these": "Number=Plur|PronType=Dem",
    "every": "PronType=Tot",
    "past-s": PAST.format("Sing"),
    "past-p": PAST.format("Plur"),
    "pres-s": PRESENT.format("Sing"),
    "pres-p": PRESENT.format("Plur"),
    "it": "Case=Nom|Number=Plur|Person=3|PronType=Prs",
    "-": "_",
}
# A word: form/lemma/UPOS/features/head/relation.
NOUNS = "dog/dog/s dogs/dog/p cat/cat/s cats/cat/p owl/owl/s owls/owl/p water/water/s waters/water/p"
SENTENCES = {
    "regular": "The/the/DET/the/2/det dog/dog/NOUN/s/3/nsubj barks/bark/VERB/pres-s/0/root",
    "plural": "The/the/DET/the/2/det cats/cat/NOUN/p/3/nsubj bark/bark/VERB/pres-p/0/root loudly/loudly/ADV/-/3/advmod",
    "past": "The/the/DET/the/2/det cat/cat/NOUN/s/3/nsubj barked/bark/VERB/past-s/0/root",
    "past plural": "The/the/DET/the/2/det dogs/dog/NOUN/p/3/nsubj barked/bark/VERB/past-p/0/root",
    "this": "This/this/DET/this/2/det dog/dog/NOUN/s/3/nsubj barked/bark/VERB/past-s/0/root twice/twice/ADV/-/3/advmod",
    "these": "These/this/DET/these/2/det cats/cat/NOUN/p/3/nsubj barked/bark/VERB/past-p/0/root"
    " twice/twice/ADV/-/3/advmod",
    "article": "A/a/DET/a/2/det dog/dog/NOUN/s/3/nsubj barked/bark/VERB/past-s/0/root",
    "object": "They/they/PRON/-/2/nsubj saw/see/VERB/past-p/0/root the/the/DET/the/4/det owls/owl/NOUN/p/2/obj",
    "an object": "They/they/PRON/-/2/nsubj saw/see/VERB/past-p/0/root an/a/DET/a/4/det owl/owl/NOUN/s/2/obj",
    "quantifier": "Every/every/DET/every/2/det dog/dog/NOUN/s/3/nsubj barked/bark/VERB/past-s/0/root",
    "numeral": "The/the/DET/the/3/det two/two/NUM/-/3/nummod dogs/dog/NOUN/p/4/nsubj barked/bark/VERB/past-p/0/root",
    "pronoun": "The/the/DET/the/2/det dogs/dog/NOUN/p/3/nsubj saw/see/VERB/past-p/0/root them/they/PRON/it/3/obj",
    "coordination": "The/the/DET/the/2/det dog/dog/NOUN/s/3/nsubj barks/bark/VERB/pres-s/0/root"
    " and/and/CCONJ/-/5/cc sees/see/VERB/pres-s/3/conj",
    "bare": "Dogs/dog/NOUN/p/2/nsubj bark/bark/VERB/pres-p/0/root",
    "bare mass": "Water/water/NOUN/s/2/nsubj barked/bark/VERB/past-s/0/root",
    "bare waters": "Waters/water/NOUN/p/2/nsubj bark/bark/VERB/pres-p/0/root often/often/ADV/-/2/advmod",
    "no other form": "The/the/DET/the/2/det dog/dog/NOUN/s/3/nsubj meows/meow/VERB/pres-s/0/root",
    "two forms": "The/the/DET/the/2/det dog/dog/NOUN/s/3/nsubj learnt/learn/VERB/past-s/0/root",
    "two forms again": "The/the/DET/the/2/det cat/cat/NOUN/s/3/nsubj learned/learn/VERB/past-s/0/root",
    "of learns": "The/the/DET/the/2/det owl/owl/NOUN/s/3/nsubj learns/learn/VERB/pres-s/0/root",
    "of see": "The/the/DET/the/2/det owl/owl/NOUN/s/3/nsubj saw/see/VERB/past-s/0/root",
    "of sees": "The/the/DET/the/2/det owl/owl/NOUN/s/3/nsubj sees/see/VERB/pres-s/0/root",
    "of see plural": "The/the/DET/the/2/det owls/owl/NOUN/p/3/nsubj see/see/VERB/pres-p/0/root",
}


def write_treebank(folder, sentences=SENTENCES):
    blocks = []
    for sentence in sentences.values():
        lines = []
        for i, word in enumerate(sentence.split(), 1):
            form, lemma, upos, features, head, relation = word.split("/")
            lines.append("\t".join([str(i), form, lemma, upos, "_", FEATURES[features], head, relation, "_", "_"]))
        blocks.append("\n".join([f"# text = {render(sentence)}", *lines]))
    (folder / "mini.conllu").write_text("\n\n".join(blocks) + "\n\n")
    return folder / "mini.conllu"


def render(sentence):
    return " ".join(word.split("/")[0] for word in sentence.split())


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Function: the twin of a sentence under a property."""
    bank, _ = read_treebank(write_treebank(tmp_path_factory.mktemp("treebank")))
    inflector, by_text = Inflector(bank), {s.text: s for s in bank.sentences}

    def make_twin(name, property_name):
        s = by_text[render(SENTENCES[name])]
        if property_name == "tense":
            return inflector.change_tense(s, s.root)
        if property_name == "object_number":
            return inflector.change_object_number(s, s.children(s.root, "obj")[0])
        return inflector.change_subject_number(s, s.children(s.root, "nsubj")[0])

    return make_twin


@pytest.mark.parametrize(
    ("name", "property_name", "twin"),
    [
        ("regular", "tense", "The dog barked"),
        ("past plural", "tense", "The dogs bark"),
        ("bare", "tense", "Dogs barked"),
        ("of see", "tense", "The owl sees"),
        ("of learns", "tense", None),  # learnt or learned
        ("two forms", "tense", "The dog learns"),
        ("no other form", "tense", None),
        ("coordination", "tense", None),  # "barked and sees"
        ("regular", "subject_number", "The dogs bark"),
        ("plural", "subject_number", "The cat barks loudly"),
        ("past", "subject_number", "The cats barked"),
        ("this", "subject_number", "These dogs barked twice"),
        ("these", "subject_number", "This cat barked twice"),
        ("article", "subject_number", None),  # "A dogs": no plural has this determiner
        ("quantifier", "subject_number", None),
        ("numeral", "subject_number", None),
        ("pronoun", "subject_number", None),  # "them" may be the dogs
        ("coordination", "subject_number", None),
        ("bare", "subject_number", None),  # "Dog barks": no singular of it stands bare
        ("bare mass", "subject_number", "Waters barked"),
        ("bare waters", "subject_number", "Water barks often"),
        ("no other form", "subject_number", None),  # the verb has no plural
        ("object", "object_number", "They saw the owl"),
        ("an object", "object_number", None),
    ],
)
def test_twins_of_a_treebank(twins, name, property_name, twin):
    assert twins(name, property_name) == twin


def test_pairs_know_their_lemmas_and_leave_out_what_stands_in_the_treebank(tmp_path):
    path = write_treebank(tmp_path)
    pairs = load_pairs(f"conllu:{path}:tense")["conllu:mini:tense"]
    assert pairs.labels == ("past", "present")
    assert ("The owl saw", "The owl sees") not in pairs.texts  # both stand in it
    assert ("The dog barked", "The dog barks") in pairs.texts
    assert pairs.lemmas[pairs.texts.index(("The dog barked", "The dog barks"))] == "bark"
    assert pairs.carriers["The owl learns"] == "learn"
    assert set(load_pairs(f"conllu:{path}:all")) == {
        f"conllu:mini:{name}" for name in ("tense", "subject_number", "object_number")
    }
    assert load_pairs(f"conllu:{path}:tree-depth") == {}
    with pytest.raises(InputError, match="tenses"):
        load_pairs(f"conllu:{path}:tenses")


def test_capitals_are_kept(tmp_path):
    loud = {"capitals": "THE/the/DET/the/2/det DOG/dog/NOUN/s/3/nsubj BARKS/bark/VERB/pres-s/0/root", **SENTENCES}
    pairs = load_pairs(f"conllu:{write_treebank(tmp_path, loud)}:tense")["conllu:mini:tense"]
    assert ("THE DOG BARKED", "THE DOG BARKS") in pairs.texts


def test_what_a_multiword_token_hides_is_left_alone(tmp_path):
    path = write_treebank(tmp_path)
    first, rest = path.read_text().split("\n\n", 1)
    head, verb = first.replace("dog barks", "dog barksn't").rsplit("\n", 1)
    columns = "\t_" * 8
    path.write_text(f"{head}\n3-4\tbarksn't{columns}\n{verb}\n4\tn't\tnot\tPART\t_\t_\t3\tadvmod\t_\t_\n\n{rest}")
    pairs = load_pairs(f"conllu:{path}:tense")["conllu:mini:tense"]
    assert not any("barksn't" in text for pair in pairs.texts for text in pair)


def test_pairs_of_a_real_treebank(data_folder):
    spec = f"conllu:{data_folder / 'ud_english_ewt'}"
    fewest = {"tense": (2000, 150), "subject_number": (300, 150), "object_number": (400, 200)}
    (task,) = load(f"{spec}:tense", SourceOptions()).tasks
    for name, pairs in load_pairs(f"{spec}:all").items():
        texts, lemmas = fewest[name.rpartition(":")[2]]
        assert len(pairs.texts) >= texts
        assert len(set(pairs.lemmas)) >= lemmas
        if name == task.name:
            assert set(task.texts) <= set(pairs.carriers)
        for first, second in pairs.texts:
            changed = [(a, b) for a, b in zip(first.split(), second.split(), strict=True) if a != b]
            assert 1 <= len(changed) <= 3
            assert all(a[:1].isupper() == b[:1].isupper() for a, b in changed)
