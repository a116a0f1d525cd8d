"""`conllu:`: known answers on small treebanks in several languages, the invariants of its tasks, and broken files."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from house import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clsprobe.analysis.sources import Loaded, SourceOptions, load, treebank
from clsprobe.analysis.sources import conllu as source
from clsprobe.analysis.sources.conllu import FLOOR, PROPERTIES
from clsprobe.analysis.sources.treebank import Sentence, Treebank, read_treebank
from clsprobe.probes.errors import InputError
from clsprobe.probes.tasks.split import split
from clsprobe.probes.tasks.task import Task


def conllu(*sentences: str) -> str:
    """Ten columns out of the seven that matter here: id form lemma upos features head relation, and misc if any."""
    blocks = []
    for sentence in sentences:
        lines = []
        for line in sentence.strip().splitlines():
            line = line.strip()
            if not line.startswith("#"):
                i, form, lemma, upos, features, head, relation, *misc = line.split()
                line = "\t".join([i, form, lemma, upos, "_", features, head, relation, "_", *(misc or ["_"])])
            lines.append(line)
        blocks.append("\n".join(lines) + "\n\n")
    return "".join(blocks)


ENGLISH = """
# sent_id = en-1
# text = I don't sleep, but an owl has watched them.
1 I I PRON Number=Sing 4 nsubj
2-3 don't _ _ _ _ _
2 do do AUX Tense=Pres|VerbForm=Fin 4 aux
3 n't not PART _ 4 advmod
4 sleep sleep VERB VerbForm=Inf 0 root SpaceAfter=No
5 , , PUNCT _ 10 punct
6 but but CCONJ _ 10 cc
7 an a DET _ 8 det
8 owl owl NOUN Number=Sing 10 nsubj
9 has have AUX Tense=Pres|VerbForm=Fin 10 aux
9.1 it it PRON _ _ _
10 watched watch VERB Tense=Past|VerbForm=Part 4 conj
11 them they PRON Number=Plur 10 obj SpaceAfter=No
12 . . PUNCT _ 4 punct
"""
GERMAN = """
# text = Die alten Hunde sahen gestern einen Fuchs.
1 Die der DET Number=Plur 3 det
2 alten alt ADJ Number=Plur 3 amod
3 Hunde Hund NOUN Number=Plur 4 nsubj
4 sahen sehen VERB Mood=Ind|Tense=Past|VerbForm=Fin 0 root
5 gestern gestern ADV _ 4 advmod
6 einen ein DET Number=Sing 7 det
7 Fuchs Fuchs NOUN Number=Sing 4 obj SpaceAfter=No
8 . . PUNCT _ 4 punct
"""
GERMAN_TWO = """
1 Hunde Hund NOUN Number=Plur 2 nsubj
2 bellen bellen VERB Mood=Ind|Tense=Pres|VerbForm=Fin 0 root SpaceAfter=No
3 , , PUNCT _ 7 punct
4 aber aber CCONJ _ 7 cc
5 die der DET Number=Plur 6 det
6 Katzen Katze NOUN Number=Plur 7 nsubj
7 schlafen schlafen VERB Mood=Ind|Tense=Pres|VerbForm=Fin 2 conj SpaceAfter=No
8 . . PUNCT _ 2 punct
"""
TURKISH = """
# text = Irmak akıyor ve ince dal kırılıyor.
1 Irmak ırmak NOUN Number=Sing 2 nsubj
2 akıyor ak VERB Mood=Ind|Tense=Pres|Voice=Act 0 root
3 ve ve CCONJ _ 6 cc
4 ince ince ADJ _ 5 amod
5 dal dal NOUN Number=Sing 6 nsubj
6 kırılıyor kır VERB Tense=Pres|Voice=Pass 2 conj SpaceAfter=No
7 . . PUNCT _ 2 punct
"""
CHINESE = """
# text = 他来了,但是我的朋友走了。
1 他 他 PRON _ 2 nsubj SpaceAfter=No
2 来 来 VERB _ 0 root SpaceAfter=No
3 了 了 AUX Aspect=Perf 2 aux SpaceAfter=No
4 , , PUNCT _ 9 punct SpaceAfter=No
5 但是 但是 CCONJ _ 9 cc SpaceAfter=No
6 我 我 PRON _ 8 nmod SpaceAfter=No
7 的 的 PART _ 6 case SpaceAfter=No
8 朋友 朋友 NOUN _ 9 nsubj SpaceAfter=No
9 走 走 VERB _ 2 conj SpaceAfter=No
10 了 了 AUX Aspect=Perf 9 aux SpaceAfter=No
11 。 。 PUNCT _ 2 punct SpaceAfter=No
"""
HEBREW = """
# text = הילד ישן אבל הילדה קוראת ספר.
1-2 הילד _ _ _ _ _
1 ה ה DET _ 2 det
2 ילד ילד NOUN Number=Sing 3 nsubj
3 ישן ישן VERB Tense=Past|VerbForm=Fin 0 root
4 אבל אבל CCONJ _ 7 cc
5-6 הילדה _ _ _ _ _
5 ה ה DET _ 6 det
6 ילדה ילדה NOUN Number=Sing 7 nsubj
7 קוראת קרא VERB VerbForm=Part 3 conj
8 ספר ספר NOUN Number=Sing 7 obj SpaceAfter=No
9 . . PUNCT _ 3 punct
"""
HEBREW_FUSED = """
# text = הילד ישן והילדה קוראת.
1-2 הילד _ _ _ _ _
1 ה ה DET _ 2 det
2 ילד ילד NOUN Number=Sing 3 nsubj
3 ישן ישן VERB Tense=Past|VerbForm=Fin 0 root
4-6 והילדה _ _ _ _ _
4 ו ו CCONJ _ 7 cc
5 ה ה DET _ 6 det
6 ילדה ילדה NOUN Number=Sing 7 nsubj
7 קוראת קרא VERB VerbForm=Part 3 conj SpaceAfter=No
8 . . PUNCT _ 3 punct
"""
ALL = [ENGLISH, GERMAN, GERMAN_TWO, TURKISH, CHINESE, HEBREW, HEBREW_FUSED]


@pytest.fixture
def bank(tmp_path: Path) -> Treebank:
    path = tmp_path / "small.conllu"
    path.write_text(conllu(*ALL), encoding="utf-8")
    return read_treebank(path)[0]


def sentence_of(bank: Treebank, text: str) -> Sentence:
    return bank.sentences[ALL.index(text)]


def test_texts_and_surfaces(bank: Treebank) -> None:
    texts = [sentence.text for sentence in bank.sentences]
    assert texts[0] == "I don't sleep, but an owl has watched them."
    assert texts[2] == "Hunde bellen, aber die Katzen schlafen."  # rebuilt
    assert [source.render(sentence.tokens()) for sentence in bank.sentences] == texts
    english = bank.sentences[0]
    assert len(english.forms) == 12  # neither the contraction nor the empty node
    assert [token.form for token in english.tokens()][:3] == ["I", "don't", "sleep"]


KNOWN = {  # a sentence -> property -> its label, or the reason why there is none
    ENGLISH: {
        "sentence_length": "9-12",
        "tree_depth": "3",
        "top_constituents": "nsubj aux advmod root conj",
        "tense": "the root is not finite",
        "subject_number": "the subject is no noun",
        "object_number": "no object",
        "root_pos": "VERB",
        "mood": "the root is not finite",
        "voice": "no feature Voice",
    },
    GERMAN: {
        "sentence_length": "5-8",
        "tree_depth": "2",
        "top_constituents": "nsubj root advmod obj",
        "tense": "past",
        "subject_number": "plural",
        "object_number": "singular",
        "mood": "Ind",
    },
    TURKISH: {
        "sentence_length": "5-8",
        "tree_depth": "3",
        "top_constituents": "nsubj root conj",
        "tense": "present",
        "subject_number": "singular",
        "object_number": "no object",
        "voice": "Act",
    },
    CHINESE: {"tree_depth": "4", "sentence_length": "9-12", "tense": "no feature Tense", "root_pos": "VERB"},
    HEBREW: {"tree_depth": "3", "tense": "past", "subject_number": "singular", "top_constituents": "nsubj root conj"},
}


@pytest.mark.parametrize(("text", "name"), [(text, name) for text, known in KNOWN.items() for name in known])
def test_known_labels(bank: Treebank, text: str, name: str) -> None:
    row = PROPERTIES[name].make_rows(bank)[ALL.index(text)]
    assert (row if isinstance(row, str) else row.label) == KNOWN[text][name]


def test_the_form_that_must_not_cross_a_split(bank: Treebank) -> None:
    index = ALL.index(GERMAN)
    forms = {"tense": "sahen", "subject_number": "hunde", "object_number": "fuchs", "mood": "sahen"}
    assert {name: PROPERTIES[name].make_rows(bank)[index].form for name in forms} == forms  # type: ignore[union-attr]


def test_word_content_of_a_small_treebank(bank: Treebank) -> None:
    assert set(PROPERTIES["word_content"].make_rows(bank)) == {"holds none of the words"}


# --------------------------------------------------------------------------------------------------------- corruptions


@pytest.mark.parametrize(
    ("text", "inverted"),
    [
        (ENGLISH, "An owl has watched them, but I don't sleep."),
        (GERMAN_TWO, "Die Katzen schlafen, aber Hunde bellen."),
        (TURKISH, "İnce dal kırılıyor ve ırmak akıyor."),
        (CHINESE, "我的朋友走了,但是他来了。"),
        (HEBREW, "הילדה קוראת ספר אבל הילד ישן."),
    ],
    ids=["English", "German", "Turkish", "Chinese", "Hebrew"],
)
def test_clauses_change_places(bank: Treebank, text: str, inverted: str) -> None:
    assert source.render(source._invert_clauses(sentence_of(bank, text), bank, Random(0))) == inverted


@pytest.mark.parametrize(
    ("text", "reason"),
    [(GERMAN, "not two coordinated clauses"), (HEBREW_FUSED, "a multi-word token spans the conjunction")],
)
def test_what_cannot_be_inverted(bank: Treebank, text: str, reason: str) -> None:
    with pytest.raises(source._LeftOut, match=reason):
        source._invert_clauses(sentence_of(bank, text), bank, Random(0))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("8 . . PUNCT _ 2 punct", "8 laut laut ADV _ 2 advmod"), "the clauses do not stand one after the other"),
        (("4 aber aber CCONJ _ 7 cc", "4 dann dann ADV _ 7 advmod"), "no conjunction between the clauses"),
        (("1 Hunde Hund NOUN Number=Plur 2 nsubj", "1 Und und CCONJ _ 2 cc"), "not two coordinated clauses"),
        (("5 die der DET Number=Plur 6 det", '5 " " PUNCT _ 6 punct'), "holds quotes or brackets"),
        (("7 nsubj", "7 obj"), "not two coordinated clauses"),
    ],
)
def test_what_cannot_be_inverted_either(tmp_path: Path, change: tuple[str, str], reason: str) -> None:
    assert change[0] in GERMAN_TWO
    path = tmp_path / "d.conllu"
    path.write_text(conllu(GERMAN_TWO.replace(*change)))
    bank = read_treebank(path)[0]
    with pytest.raises(source._LeftOut, match=reason):
        source._invert_clauses(bank.sentences[0], bank, Random(0))


@pytest.mark.parametrize("text", [ENGLISH, GERMAN, TURKISH, CHINESE, HEBREW])
def test_neighbours_change_places(bank: Treebank, text: str) -> None:
    s = sentence_of(bank, text)
    before, seen = [token.form for token in s.tokens()], set()
    for seed in range(40):
        after = [token.form for token in source._shift_bigram(s, bank, Random(seed))]
        moved = [i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
        assert len(moved) == 2
        assert moved[1] == moved[0] + 1
        assert moved[0] > 0
        assert (before[moved[0]], before[moved[1]]) == (after[moved[1]], after[moved[0]])
        assert all(any(map(str.isalnum, before[i])) for i in moved)
        seen.add(moved[0])
    assert len(seen) > 1
    written = source.render(source._shift_bigram(s, bank, Random(0)))
    assert sorted(written) == sorted(s.text)  # spaces stay where they were
    assert [i for i, c in enumerate(written) if c in ",.。"] == [i for i, c in enumerate(s.text) if c in ",.。"]


def test_what_cannot_be_shifted(tmp_path: Path) -> None:
    glued = """
    1 Check check VERB _ 0 root
    2 the the DET _ 3 det
    3 check check NOUN _ 5 compound SpaceAfter=No
    4 - - PUNCT _ 5 punct SpaceAfter=No
    5 in in NOUN _ 1 obj SpaceAfter=No
    6 ! ! PUNCT _ 1 punct
    """
    same = """
    1 Nein nein INTJ _ 0 root SpaceAfter=No
    2 , , PUNCT _ 1 punct
    3 nein nein INTJ _ 1 conj
    4 Nein nein INTJ _ 1 conj
    """
    path = tmp_path / "d.conllu"
    path.write_text(conllu(glued, same))
    assert PROPERTIES["bigram_shift"].make_rows(read_treebank(path)[0]) == ["no two words to swap"] * 2


# ------------------------------------------------------------------------------------------------------ whole treebanks

NOUNS = (
    "Hund/Hunde Fuchs/Füchse Bär/Bären Vogel/Vögel Fisch/Fische Wolf/Wölfe Hase/Hasen Esel/Esel Rabe/Raben Igel/Igel"
)
NOUNS += " Stein/Steine Baum/Bäume Tisch/Tische Stuhl/Stühle Brief/Briefe Hut/Hüte Schuh/Schuhe Ball/Bälle"
VERBS = "sieht/sehen/sah/sahen findet/finden/fand/fanden trägt/tragen/trug/trugen holt/holen/holte/holten"
VERBS += " sucht/suchen/suchte/suchten zieht/ziehen/zog/zogen hebt/heben/hob/hoben wirft/werfen/warf/warfen"
ADVERBS = "heute oft dort immer leise langsam draußen schnell"


def generate_german(seed: int, n_sentences: int) -> list[str]:
    """German sentences: subject, verb, object, and now and then an adverb, a phrase, or a second clause."""
    rng, sentences = Random(seed), []

    def phrase(start: int, head: int, relation: str) -> tuple[list[str], str]:
        noun, plural = rng.choice(NOUNS.split()).split("/"), rng.random() < 0.5
        number = "Number=Plur" if plural else "Number=Sing"
        article = rng.choice(["die", "alle", "keine"] if plural else ["kein", "mein"])
        return [
            f"{start} {article} {article} DET {number} {start + 1} det",
            f"{start + 1} {noun[plural]} {noun[0]} NOUN {number} {head} {relation}",
        ], "pl" if plural else "sg"

    while len(sentences) < n_sentences:
        subject, number = phrase(1, 3, "nsubj")
        past = rng.random() < 0.5
        forms = rng.choice(VERBS.split()).split("/")
        features = f"Mood=Ind|Tense={'Past' if past else 'Pres'}|VerbForm=Fin"
        form = forms[2 * past + (number == "pl")]
        lines = [*subject, f"3 {form} {forms[1]} VERB {features} 0 root", *phrase(4, 3, "obj")[0]]
        noun = 5
        for _ in range(rng.randrange(3)):
            start = len(lines) + 1
            lines += [f"{start} bei bei ADP _ {start + 2} case", *phrase(start + 1, rng.choice([3, noun]), "nmod")[0]]
            noun = start + 2
        if rng.random() < 0.4:
            adverb = rng.choice(ADVERBS.split())
            lines.append(f"{len(lines) + 1} {adverb} {adverb} ADV _ 3 advmod")
        if rng.random() < 0.4:
            start = len(lines)
            lines.append(f"{start + 1} und und CCONJ _ {start + 4} cc")
            other, number = phrase(start + 2, start + 4, "nsubj")
            forms = rng.choice(VERBS.split()).split("/")
            lines += [
                *other,
                f"{start + 4} {forms[number == 'pl']} {forms[1]} VERB Mood=Ind|Tense=Pres|VerbForm=Fin 3 conj",
            ]
        lines[0] = re.sub(r"^1 (\w)", lambda match: f"1 {match[1].upper()}", lines[0])
        lines[-1] += " SpaceAfter=No"
        lines.append(f"{len(lines) + 1} . . PUNCT _ 3 punct")
        if (sentence := "\n".join(lines)) not in sentences:
            sentences.append(sentence)
    return sentences


@pytest.fixture(scope="module")
def german(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A treebank with its own sides."""
    folder = tmp_path_factory.mktemp("de") / "de_dice"
    folder.mkdir()
    sentences = generate_german(0, 1500)
    for name, part in (("train", sentences[:1000]), ("dev", sentences[1000:1200]), ("test", sentences[1200:])):
        (folder / f"de_dice-ud-{name}.conllu").write_text(conllu(*part), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def loaded(german: Path) -> Loaded:
    return read(german)


def read(path: Path | str, name: str = "all") -> Loaded:
    return load(f"conllu:{path}:{name}", SourceOptions())


def rows_of(task: Task) -> list[tuple[str, ...]]:
    columns = [task.texts, task.y.tolist(), task.split.tolist() if task.split is not None else [""] * len(task.y)]
    return list(zip(*columns, strict=True))


def task_of(loaded: Loaded, name: str) -> Task:
    return next(task for task in loaded.tasks if task.label == name)


def test_all_properties_of_a_treebank(loaded: Loaded) -> None:
    names = [task.name for task in loaded.tasks]
    assert names == [f"conllu:de_dice:{name}" for name in PROPERTIES if name not in ("mood", "voice", "root_pos")]
    assert loaded.notes == [
        "word_content, tense, subject_number, object_number: split anew, not by the treebank's own files",
        "root_pos needs two classes with 30 sentences and some on every side, found: 'VERB' 1,500",
        "mood needs two classes with 30 sentences, found: 'Ind' 1,500",
        "voice needs two classes with 30 sentences, found: none; 1,500 sentences: no feature Voice",
    ]


def test_every_sentence_is_accounted_for(german: Path, loaded: Loaded) -> None:
    for task in loaded.tasks:
        left_out = {
            why.partition(": ")[2]: n for why, n in loaded.left_out.items() if why.startswith(f"{task.label}: ")
        }
        assert len(task.texts) + sum(left_out.values()) == 1500
        alone = read(german, task.label.replace("_", "-"))
        assert alone.left_out == left_out
        assert alone.rows == 1500
        assert rows_of(alone.tasks[0]) == rows_of(task)


@pytest.mark.parametrize("name", [n for n in PROPERTIES if n not in ("mood", "voice", "root_pos")])
def test_classes_are_equally_large_on_every_side(loaded: Loaded, name: str) -> None:
    task = task_of(loaded, name)
    classes = loaded.classes[task.name]
    assert len(classes) > 1
    assert len({tuple(sides.items()) for sides in classes.values()}) == 1
    assert all(sum(sides.values()) >= FLOOR for sides in classes.values())
    assert (set(classes[task.y[0]]) == {"all"}) == PROPERTIES[name].resplit
    assert len(set(task.texts)) == len(task.texts)


def test_depth_tells_nothing_about_length(loaded: Loaded) -> None:
    task = task_of(loaded, "tree_depth")
    assert task.split is not None
    cells = Counter((side, len(text.split()), label) for text, label, side in rows_of(task))
    labels = set(task.y)
    for side, length, _ in list(cells):
        assert len({cells[side, length, label] for label in labels}) == 1
    assert len({length for _, length, _ in cells}) > 3


def test_a_sampling_blind_to_length_would_be_seen(german: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blind = source._per_sentence(lambda s: source._tree_depth(s)._replace(stratum=0))
    monkeypatch.setitem(PROPERTIES, "tree_depth", source.Property(blind, ordered=True))
    with pytest.raises(AssertionError):
        test_depth_tells_nothing_about_length(read(german, "tree_depth"))


def test_words_of_word_content(loaded: Loaded) -> None:
    task = task_of(loaded, "word_content")
    lemma_of = {form: noun.split("/")[0] for noun in NOUNS.split() for form in noun.split("/")}
    lemma_of |= {form: verb.split("/")[1] for verb in VERBS.split() for form in verb.split("/")}
    labels = set(task.y)
    for text, label, _ in rows_of(task):
        words = [lemma_of.get(word, word) for word in text.removesuffix(".").split()]
        assert [word for word in words if word in labels] == [label]


def test_the_baselines_that_solve_a_task_are_declared(loaded: Loaded) -> None:
    assert {task.label: task.solved_by for task in loaded.tasks if task.solved_by} == {
        "sentence_length": ("length",),
        "word_content": ("bag_of_words",),
    }


@pytest.mark.parametrize("name", ["tense", "subject_number", "object_number"])
def test_forms_do_not_cross_a_split(loaded: Loaded, name: str) -> None:
    task = task_of(loaded, name)
    for seed in range(3):
        side = split(task, seed=seed).side
        words = [text.removesuffix(".").split() for text in task.texts]
        i = {"tense": 2, "subject_number": 1, "object_number": 4}[name]
        forms = {name: {w[i] for w, s in zip(words, side, strict=True) if s == name} for name in treebank.SIDES}
        assert all(forms.values())
        assert not forms["train"] & forms["test"] | forms["train"] & forms["dev"] | forms["dev"] & forms["test"]


def test_a_word_that_crosses_would_be_seen(loaded: Loaded) -> None:
    task = task_of(loaded, "tense")
    without = Loaded([Task(task.name, task.texts, task.y)], len(task.y))
    with pytest.raises(AssertionError):
        test_forms_do_not_cross_a_split(without, "tense")


def test_corrupted_rows(german: Path, loaded: Loaded) -> None:
    originals = {source.normalize(s.text): s for s in read_treebank(german)[0].sentences}
    for name in ("bigram_shift", "odd_man_out", "coordination_inversion"):
        task = task_of(loaded, name)
        original = task.y == "original"
        assert original.sum() * 2 == len(original)
        assert [source.normalize(text) in originals for text in task.texts] == original.tolist()
    words = {" ".join(sorted(text[:-1].casefold().split())): text for text in originals}
    for name in ("bigram_shift", "coordination_inversion"):  # the same words in another order
        task = task_of(loaded, name)
        assert all(" ".join(sorted(text[:-1].casefold().split())) in words for text in task.texts)


def test_the_odd_word_is_like_the_one_it_replaces(german: Path) -> None:
    bank = read_treebank(german)[0]
    changed = Counter[str]()
    for s, row in zip(bank.sentences, PROPERTIES["odd_man_out"].make_rows(bank), strict=True):
        if isinstance(row, str) or row.label == "original":
            continue
        after = [*row.text.removesuffix(".").split(), "."]
        (k,) = [i for i, (one, other) in enumerate(zip(s.forms, after, strict=True)) if one != other]
        assert s.upos[k] in ("NOUN", "VERB")
        twins = [
            other
            for other in bank.sentences
            for i in range(len(other.forms))
            if other.forms[i] == after[k] and (other.upos[i], other.features[i]) == (s.upos[k], s.features[k])
        ]
        assert twins
        counts = bank.form_counts[s.forms[k].casefold()] - 1, bank.form_counts[after[k].casefold()]
        assert counts[0].bit_length() == counts[1].bit_length()
        for change in (slice(k - 1, k + 1), slice(k, k + 2)):
            one, other = (tuple(map(str.casefold, words[change])) for words in (s.forms, after))
            assert (bank.bigram_counts[one] - 1).bit_length() == bank.bigram_counts[other].bit_length()  # type: ignore[index]
        changed[s.upos[k]] += 1
    assert min(changed["NOUN"], changed["VERB"]) > 20


def test_a_vowel_is_not_met_by_the_wrong_article(tmp_path: Path) -> None:
    """ "an owl" never becomes "an dog", in whatever language articles know what follows."""
    nouns = {
        "an": ["owl", "eel", "ant", "ape", "elk", "emu", "imp", "orc", "asp", "auk"],
        "a": ["dog", "cat", "hen", "pig", "cow", "rat", "fox", "bat", "ram", "jay"],
    }
    sentences = [
        f"1 N{noun}{i} N{noun}{i} PROPN _ 2 nsubj\n2 sees see AUX _ 0 root\n3 {article} a DET _ 4 det\n"
        f"4 {noun} {noun} NOUN _ 2 obj"
        for article, group in nouns.items()
        for noun in group
        for i in range(3)
    ]
    path = tmp_path / "d.conllu"
    path.write_text(conllu(*sentences))
    bank = read_treebank(path)[0]
    odd = [row.text.split() for row in PROPERTIES["odd_man_out"].make_rows(bank) if not isinstance(row, str)]
    assert len(odd) == 60
    assert all(words[3] in nouns[words[2]] for words in odd)


def test_order_and_process_do_not_matter(german: Path, loaded: Loaded, tmp_path: Path) -> None:
    """Files in reverse, another hash seed: the same rows."""
    expected = {task.label: sorted(rows_of(task)) for task in loaded.tasks}
    other = tmp_path / "de_dice"
    other.mkdir()
    for path in german.iterdir():
        blocks = path.read_text(encoding="utf-8").strip().split("\n\n")[::-1]
        half = len(blocks) // 2
        (other / path.name).write_text("\n\n".join(blocks[half:]) + "\n\n", encoding="utf-8")
        (other / path.name.replace("dice-ud-", "dice-ud-b-")).write_text("\n\n".join(blocks[:half]), encoding="utf-8")
    assert {task.label: sorted(rows_of(task)) for task in read(other).tasks} == expected
    code = (
        "from clsprobe.analysis.sources import load, SourceOptions\n"
        f"for t in load({f'conllu:{german}:all'!r}, SourceOptions()).tasks:\n"
        "    print(hash(tuple(map(len, t.texts))), t.label, sum(map(len, t.texts)), *t.y[:50], *list(t.texts)[:3])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]


def test_repeated_texts_stay_where_they_are_tested(tmp_path: Path) -> None:
    a, b, c, *more = generate_german(1, 103)
    (tmp_path / "train.conllu").write_text(conllu(a, a, b, *more))
    (tmp_path / "dev.conllu").write_text(conllu(b, c))
    (tmp_path / "x-test.conllu.gz").write_bytes(gzip.compress(conllu(a, c).encode()))
    (tmp_path / "extra.conllu").write_text("not read")
    bank, notes = read_treebank(tmp_path)
    assert Counter(bank.sides) == {"train": 100, "dev": 1, "test": 2}
    assert bank.rows == 107
    assert notes == ["not read, neither train nor dev nor test: extra.conllu"]
    (tmp_path / "x-test.conllu.gz").unlink()
    bank, notes = read_treebank(tmp_path)
    assert Counter(bank.sides) == {"train": 101, "test": 2}
    assert "dev serves as test" in notes[1]
    (tmp_path / "extra.conllu").unlink()
    (tmp_path / "dev.conllu").unlink()
    assert read_treebank(tmp_path)[0].sides == [""] * 102


def test_one_file_has_no_sides(german: Path) -> None:
    loaded = read(german / "de_dice-ud-train.conllu")
    assert all(task.split is None for task in loaded.tasks)
    assert loaded.tasks[0].name == "conllu:de_dice-ud-train:sentence_length"
    assert not any("split anew" in note for note in loaded.notes)


def test_what_a_treebank_cannot_support(german: Path, tmp_path: Path) -> None:
    assert error(german, "voice") == (
        "de_dice: voice needs two classes with 30 sentences, found: none; 1,500 sentences: no feature Voice. "
        "Take another property, or a larger treebank."
    )
    path = tmp_path / "d.conllu"
    path.write_text(conllu(*ALL))
    assert error(path, "all").startswith("d: no property can be built; sentence_length needs two classes")
    assert error(path, "tens").startswith("--task: unknown property 'tens'. Did you mean 'tense'?")
    assert error(path, "").startswith("--task: unknown property ''")
    with pytest.raises(InputError, match=r"'conllu:d\.conllu' names no property\. As in conllu:d\.conllu:all"):
        load("conllu:d.conllu", SourceOptions())


def error(path: Path | str, name: str = "all") -> str:
    with pytest.raises(InputError) as caught:
        read(path, name)
    return str(caught.value)


# -------------------------------------------------------------------------------------------------------- broken files

GOOD = conllu(GERMAN).encode()
LINES = GOOD.split(b"\n")


def changed(old: str, new: str) -> bytes:
    text = GOOD.decode()
    assert text.count(old) == 1, old
    return text.replace(old, new).encode()


def inserted(before: str, number: str) -> bytes:
    """A line with this number, before another one."""
    line = "\t".join([number, "zum", *"________"])
    return changed(f"\n{before}\t", f"\n{line}\n{before}\t")


BROKEN = {
    "empty": (b"", "d.conllu: file is empty"),
    "blank lines": (b"\n\n", "d.conllu: holds no sentence."),
    "comments only": (b"# text = a\n\n", "d.conllu: holds no sentence."),
    "no words": (GOOD + b"1-2\tzum\t_\t_\t_\t_\t_\t_\t_\t_\n", "d.conllu:11: a sentence without words. Remove it."),
    "empty node only": (GOOD + b"0.1\tzum\t_\t_\t_\t_\t_\t_\t_\t_\n", "d.conllu:11: a sentence without words."),
    "nine columns": (changed("8\t.\t.\tPUNCT\t_\t_", "8\t.\t.\tPUNCT\t_"), "d.conllu:9: 9 columns, CoNLL-U has 10."),
    "eleven columns": (changed("5\tgestern", "5\tgestern\t"), "d.conllu:6: 11 columns, CoNLL-U has 10."),
    "spaces": (GOOD.replace(b"\t", b"  "), "d.conllu:2: 1 column, CoNLL-U has 10. Separate the columns by"),
    "no form": (changed("5\tgestern\t", "5\t\t"), "d.conllu:6: column 2 (form) is empty."),
    "no root": (changed("0\troot", "7\troot"), "d.conllu:2: no root (no head is 0)."),
    "two roots": (changed("4\tobj", "0\tobj"), "d.conllu:8: a second root (word 4 has head 0 already)."),
    "cycle": (
        changed("3\tdet", "2\tdet").replace(b"3\tamod", b"1\tamod"),
        "d.conllu:2: heads form a cycle (1 -> 2 -> 1).",
    ),
    "own head": (changed("4\tadvmod", "5\tadvmod"), "d.conllu:6: heads form a cycle (5 -> 5)."),
    "head no number": (changed("4\tadvmod", "x\tadvmod"), "d.conllu:6: head 'x' is no word of this sentence"),
    "head missing": (changed("4\tadvmod", "_\tadvmod"), "d.conllu:6: no head (_), though other words of the"),
    "head too far": (changed("4\tadvmod", "9\tadvmod"), "d.conllu:6: head '9' is no word of this sentence"),
    "head negative": (changed("4\tadvmod", "-1\tadvmod"), "d.conllu:6: head '-1' is no word of this sentence"),
    "head of digits": (changed("4\tadvmod", "9" * 5000 + "\tadvmod"), "d.conllu:6: head '999"),
    "features": (changed("Mood=Ind|", "Mood|"), "d.conllu:5: features 'Mood|Tense=Past|VerbForm=Fin' are"),
    "wrong range": (inserted("1", "3-2"), "d.conllu:2: id '3-2' is no number, range"),
    "late range": (inserted("4", "1-2"), "d.conllu:5: id '1-2' cannot follow word 3."),
    "long range": (inserted("8", "8-9"), "d.conllu:9: a range up to word 9 in a sentence of 8"),
    "overlapping ranges": (
        inserted("1", "1-2").replace(b"\n2\t", b"\n2-3\tb\t_\t_\t_\t_\t_\t_\t_\t_\n2\t"),
        "d.conllu:4: id '2-3' cannot follow word 1.",
    ),
    "double id": (changed("5\tgestern", "4\tgestern"), "d.conllu:6: id '4' cannot follow word 4."),
    "skipped id": (changed("5\tgestern", "6\tgestern"), "d.conllu:6: id '6' cannot follow word 4."),
    "strange id": (changed("5\tgestern", "five\tgestern"), "d.conllu:6: id 'five' is no number, range or empty node."),
    "id of digits": (changed("5\tgestern", "9" * 5000 + "\tgestern"), "d.conllu:6: id '999"),
    "empty node astray": (inserted("2", "7.1"), "d.conllu:3: id '7.1' cannot follow word 1."),
    "latin-1": (GOOD.replace(b"Fuchs\tFuchs", b"Fu\xdfs\tFuchs"), "d.conllu:8: not UTF-8 (byte 0xDF)."),
    "UTF-16": (GOOD.decode().encode("utf-16"), "d.conllu: starts with a UTF-16 byte-order mark. Convert it to UTF-8."),
    "gz cut": (gzip.compress(GOOD * 9)[:-30], "d.conllu: the gzip file ends before its content does. Was the"),
    "gz damaged": (gzip.compress(GOOD)[:40] + b"xxxxxxxx" + gzip.compress(GOOD)[48:], ": damaged gzip file ("),
    "gz of nothing": (gzip.compress(b""), "d.conllu: file is empty"),
    "zip": (b"PK\x03\x04....", "d.conllu: is a zip archive, whatever its name. Unpack it with unzip."),
    "web page": (b"<!DOCTYPE html>\n", "d.conllu: is a web page, whatever its name."),
    "cut in a line": (GOOD[:-60], "columns, CoNLL-U has 10"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    (tmp_path / "d.conllu").write_bytes(content)
    line = error(tmp_path / "d.conllu")
    assert "\n" not in line
    assert message in line
    assert line.startswith("d.conllu")


def test_up_to_ten_lines_at_once(tmp_path: Path) -> None:
    broken = changed("5\tgestern", "5\tgestern\t")
    (tmp_path / "d.conllu").write_bytes(broken * 12)
    assert (
        "d.conllu:6: 11 columns, CoNLL-U has 10 (likewise lines 16, 26, 36, 46, 56, 66, 76, 86, 96 and 2 more)."
        in error(tmp_path / "d.conllu")
    )


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
@pytest.mark.parametrize("packed", [False, True], ids=["text", "gz"])
def test_line_ends_and_marks_make_no_difference(tmp_path: Path, end: bytes, mark: bytes, packed: bool) -> None:
    content = mark + conllu(*ALL).encode().replace(b"\n", end).rstrip(b"\r\n")
    path = tmp_path / ("d.conllu.gz" if packed else "d.conllu")
    path.write_bytes(gzip.compress(content) if packed else content)
    (tmp_path / "plain.conllu").write_text(conllu(*ALL))
    assert read_treebank(path)[0].sentences == read_treebank(tmp_path / "plain.conllu")[0].sentences


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "train.conllu").write_bytes(GOOD)
    assert error(tmp_path / "trian.conllu").endswith("trian.conllu: no such file or folder. Did you mean train.conllu?")
    assert error(tmp_path / "no" / "d.conllu").endswith(f"no such folder {tmp_path / 'no'}. Check the path.")
    (tmp_path / "empty").mkdir()
    assert "the folder holds no .conllu or .conllu.gz file" in error(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe.conllu")
    assert error(tmp_path / "pipe.conllu").startswith("pipe.conllu: not a regular file")
    assert "cannot be read" in error("a\0b")
    assert "cannot be read (file name too long)" in error("x" * 5000)


PIECES = [
    *LINES[:5],
    b"1",
    b"2-3",
    b"1.1",
    b"\t",
    b"\n",
    b"\n\n",
    b"_",
    b"0",
    b"\xff",
    b"# text = x",
    b"SpaceAfter=No",
    b"a",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)), st.booleans())
def test_any_bytes(tmp_path: Path, content: bytes, good: bool) -> None:
    (tmp_path / "d.conllu").write_bytes(GOOD * good + content)
    with suppress(InputError):
        bank, _ = read_treebank(tmp_path / "d.conllu")
        for prop in PROPERTIES.values():
            assert len(prop.make_rows(bank)) == len(bank.sentences)


def test_errors_load_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "d.conllu").write_bytes(LINES[1])
    code = (
        "import sys; from clsprobe.analysis.sources import load, SourceOptions\n"
        f"try: load('conllu:{tmp_path / 'd.conllu'}:tense', SourceOptions())\n"
        "except Exception as e: print(type(e).__name__, {'torch', 'pandas', 'sklearn', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "InputError set()\n", done.stderr


# --------------------------------------------------------------------------------------------------------- real texts


@pytest.fixture(scope="module")
def english(data_folder: Path) -> Iterator[Loaded]:
    yield read(data_folder / "ud_english_ewt")
    treebank._load_files.cache_clear()  # 100 MB


def test_a_real_treebank(english: Loaded) -> None:
    assert [task.label for task in english.tasks] == [name for name in PROPERTIES if name != "voice"]
    assert (
        english.rows
        == 12 * (12544 + 2001 + 2077)
        == sum(len(t.texts) for t in english.tasks) + sum(english.left_out.values())
    )
    classes = {task.label: len(set(task.y)) for task in english.tasks}
    assert classes["sentence_length"] == 5
    assert 90 < classes["word_content"] < 130
    assert classes["top_constituents"] == 20
    assert set(task_of(english, "tree_depth").y) == {"3", "4", "5"}


def test_what_a_real_treebank_gives(english: Loaded) -> None:
    for task in english.tasks:
        sides = split(task)
        assert all("near copies" in reason for reason in sides.left_out)  # nothing else repeated
        assert all("nearly repeat" in note or "near copies" in note for note in sides.notes)
        assert sum(sides.left_out.values()) < 10
        assert min((sides.side == side).sum() for side in ("dev", "test")) >= 100
        if task.groups is not None:
            for group in np.unique(task.groups[sides.side == "test"]):
                assert set(sides.side[task.groups == group]) == {"test"}


def test_words_alone_do_not_tell_corrupted_sentences(english: Loaded) -> None:
    """Which words, how many, how frequent: the same for both classes, to within what chance allows."""
    for name in ("bigram_shift", "odd_man_out", "coordination_inversion"):
        task = task_of(english, name)
        odd = task.y != "original"
        words = [re.findall(r"\w+", text.casefold()) for text in task.texts]
        counts = Counter(word for sentence in words for word in sentence)
        for values in (
            np.array([len(sentence) for sentence in words]),
            np.array([np.mean(np.log([counts[word] for word in sentence])) for sentence in words]),
        ):
            gap = abs(values[odd].mean() - values[~odd].mean()) / values.std()
            assert gap < 4 * np.sqrt(4 / len(odd)), (name, gap)


def test_neighbours_in_real_sentences(english: Loaded) -> None:
    task = task_of(english, "bigram_shift")
    known = {pair for text, y, _ in rows_of(task) if y == "original" for pair in pairwise(text.casefold().split())}
    strange = [
        np.mean([pair not in known for pair in pairwise(text.casefold().split())])
        for text, y, _ in rows_of(task)
        if y == "shifted" and len(text.split()) > 3
    ]
    usual = Counter(
        pair for text, y, _ in rows_of(task) if y == "original" for pair in pairwise(text.casefold().split())
    )
    alone = sum(n == 1 for n in usual.values()) / usual.total()
    assert np.mean(strange) > alone  # swapped words are new neighbours more often than words that met just once
