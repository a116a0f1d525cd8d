"""``grammar:PROPERTY[:SIZE]``: sentences generated from a small grammar of English.

1. The lexicon (analysis/sources/lexicon.py) assigns nouns and verbs to train, test or dev: none crosses a split.
2. A `_Writer` generates one sentence as a tree of `Phrase` and `Word`. Its public methods are the start symbols; tense,
   number and the amount of elaboration are drawn.
3. A `Property` reads its label from the tree. `_generate_rows` fills a quota for every class, so that classes are
   equally large, and equally distributed over the strata of the property.
4. If the label is about word order or an odd word, every sentence comes with its twin: the same words in another order,
   or with one word replaced. Both are in the task, as one group, with different labels.

The first ten properties are SentEval's (Conneau et al. 2018, https://aclanthology.org/P18-1198). Every draw comes from
``random.Random(str).random()``, the only stream that Python guarantees not to change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain, pairwise
from random import Random
from typing import TypeAlias, TypeVar

import numpy as np

from clsprobe.analysis.sources import Loaded, MinimalPairs, SourceOptions, lexicon
from clsprobe.analysis.sources.lexicon import ADJECTIVES, NOUNS, OBJECTS, STRICT, VERBS, Lemma, Lexicon
from clsprobe.probes.errors import InputError, unknown
from clsprobe.probes.tasks.task import Task

T = TypeVar("T")
BEINGS = ("people", "animals")
UPOS = {
    "adjective": "ADJ", "preposition": "ADP", "adverb": "ADV", "CC": "CCONJ", "determiner": "DET", "pronoun": "PRON",
    ",": "PUNCT", "subordinator": "SCONJ", "that": "SCONJ",
}  # fmt: skip

SIZE, LARGEST = 3000, 1_000_000  # sentences of a task; half of them train, a sixth dev, a third test
FULL = 9  # nouns and verbs after which a sentence is only completed
LONGEST = 28  # words of a sentence
PAIRS = 400  # minimal pairs of a property
MAX_REJECTED = 50_000  # consecutive sentences without a new row, after which generation stops


@cache
def _split_words(words: str) -> list[str]:
    return words.split()


class _Rng(Random):
    """A seeded generator with the same draws in every process and every version of Python."""

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.random() * len(items))]

    def pick_word(self, words: str) -> str:
        return self.pick(_split_words(words))

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Fisher and Yates; `random.shuffle` may change between versions."""
        items = list(items)
        for i in range(len(items) - 1, 0, -1):
            j = int(self.random() * (i + 1))
            items[i], items[j] = items[j], items[i]
        return items


# ------------------------------------------------------------------------------------------------------------ sentences


@dataclass(frozen=True, eq=False)
class Word:
    """A word, or a comma. kind: that of its lemma, or "determiner", "adverb", ...; form: "singular", "past", ..."""

    text: str
    kind: str
    form: str = ""
    lemma: Lemma | None = None


@dataclass(frozen=True, eq=False)
class Phrase:
    """S, SBAR, NP, VP, PP or ADVP, and its parts."""

    label: str
    parts: tuple[Node, ...]

    @cached_property
    def words(self) -> tuple[Word, ...]:
        """All words of the phrase, from left to right."""
        return tuple(word for part in self.parts for word in (part.words if isinstance(part, Phrase) else (part,)))

    def phrases(self) -> Iterator[Phrase]:
        """Yield the phrase itself and all phrases in it."""
        yield self
        for part in self.parts:
            if isinstance(part, Phrase):
                yield from part.phrases()

    def part(self, label: str) -> Phrase | None:
        """The first part with this label."""
        return next((part for part in self.parts if isinstance(part, Phrase) and part.label == label), None)

    def replace(self, new: Mapping[Node, Node]) -> Phrase:
        """A copy of the tree with some nodes replaced. new: old node -> new node."""
        parts = (new.get(part) or (part.replace(new) if isinstance(part, Phrase) else part) for part in self.parts)
        return Phrase(self.label, tuple(parts))

    @property
    def depth(self) -> int:
        """The number of nodes on the longest path from this phrase to a word, both included."""
        return 1 + max(part.depth if isinstance(part, Phrase) else 1 for part in self.parts)

    @property
    def head(self) -> Word:
        """The word that carries the number of an NP, or the tense of a VP (of the first of several)."""
        inner = self.part(self.label)
        if inner:
            return inner.head
        words = [part for part in self.parts if isinstance(part, Word)]
        return words[-1] if self.label == "NP" else next(word for word in words if word.kind in VERBS)


Node: TypeAlias = Phrase | Word


def _inflect(lemma: Lemma, form: str) -> Word:
    return Word(lemma.forms[form], lemma.kind, form, lemma)


COMMA, SEMICOLON = Word(",", ","), Word(";", ",")


def _s(*parts: Node) -> Phrase:
    return Phrase("S", parts)


class _Writer:
    """Generates one sentence from a lexicon. The methods before `clause` are start symbols and return a whole S.

    richness: from 0 for a minimal sentence to 1 for a long one. depth_bias: from 0 for a flat sentence to 1 for nested
    clauses. No noun or verb is repeated within the sentence.
    """

    def __init__(self, words: Lexicon, rng: _Rng) -> None:
        self.lexicon, self.rng = words, rng
        self.richness, self.depth_bias = rng.random(), rng.random()
        self.opening = 1  # scales the probability of words before the subject
        self.nesting = 0  # number of clauses around the current one
        self.used: set[Lemma] = set()

    def sentence(self) -> Phrase:
        """Any sentence: a clause with optional words before it, two clauses, or direct speech."""
        rng, kind = self.rng, self.rng.random()
        if kind < 0.1:
            return self.coordination()
        if kind < 0.15:
            return _s(self.clause(), SEMICOLON, self.clause())
        if kind < 0.2:
            quotation, past, plural = self.nested(self.clause), rng.chance(0.5), rng.chance(0.5)
            return _s(quotation, COMMA, self.subject(True, plural), Phrase("VP", (self.verb("saying", past, plural),)))
        before: list[Node] = []
        if rng.chance(0.15 * self.opening):
            before.append(Word(rng.pick_word(lexicon.COORDINATORS), "CC"))
        if self.elaborates(0.25 * self.opening):
            before += [self.adverb(lexicon.OPENERS), COMMA]
        if self.elaborates(0.25 * self.opening):
            before += [self.place_phrase() if rng.chance(0.5) else self.subordinate_clause(), COMMA]
        return _s(*before, *self.clause().parts)

    def coordination(self) -> Phrase:
        """Two clauses, the second with a pronoun for a noun of the first: "The boy slept, and then he ran"."""
        rng, self.nesting = self.rng, 1
        first = self.clause()
        subject, predicate = first.part("NP"), first.part("VP")
        assert subject is not None
        assert predicate is not None
        obj = predicate.part("NP")
        antecedent = obj.head if obj and obj.head.kind in BEINGS and rng.chance(0.5) else subject.head
        past = predicate.head.form == "past" if rng.chance(0.8) else rng.chance(0.5)
        second = self.clause(past, subject=antecedent) if rng.chance(0.5) else self.clause(past, obj=antecedent)
        if rng.chance(0.3):
            second = _s(self.adverb(lexicon.DISCOURSE), *second.parts)
        return _s(first, COMMA, Word(rng.pick_word(lexicon.COORDINATORS), "CC"), second)

    def temporal(self) -> Phrase:
        """Two events: "The boy slept, shortly before the dog ran", with either clause first."""
        rng, self.nesting = self.rng, 2
        past = rng.chance(0.7)
        connective = Word(rng.pick_word("before after"), "subordinator")
        subordinate = Phrase("SBAR", (self.adverb(lexicon.TIME_MODIFIERS), connective, self.clause(past)))
        main = self.clause(past).parts
        return _s(subordinate, COMMA, *main) if rng.chance(0.5) else _s(*main, COMMA, subordinate)

    def encounter(self) -> Phrase:
        """One person and one animal; the agreement of the verb does not fix their order: "The boy chased the dog"."""
        rng, past, plural = self.rng, self.rng.chance(0.5), self.rng.chance(0.5)
        first_kind, second_kind = rng.shuffled(BEINGS)
        subject = self.noun_phrase(first_kind, plural)
        companion = self.noun_phrase(second_kind, rng.chance(0.5) if past else plural)
        kind = rng.random()
        if kind < 0.5:
            inner: list[Node] = [self.verb("transitive", past, plural), companion]
        elif kind < 0.75:
            near = Phrase("PP", (Word(rng.pick_word(lexicon.NEAR), "preposition"), companion))
            inner = [self.verb("intransitive", past, plural), near]
        else:
            subject = Phrase("NP", (subject, Word("and", "CC"), companion))
            inner = [self.verb("intransitive", past, True)]
        before: list[Node] = []
        if self.elaborates(0.4):
            before = [self.adverb(lexicon.OPENERS) if rng.chance(0.5) else self.place_phrase(), COMMA]
        if self.elaborates(0.2):
            subject = Phrase("NP", (subject, self.place_phrase(not plural)))
        frequency = [self.adverb(lexicon.FREQUENCY)] if self.elaborates(0.3) else []
        return _s(*before, subject, *frequency, Phrase("VP", (*inner, *self.adjuncts())))

    def mention(self) -> Phrase:
        """A sentence in which a target replaces one noun or verb of the same kind, in the same form."""
        target = self.rng.pick(TARGETS)
        while True:
            tree = _Writer(self.lexicon, self.rng).sentence()
            if slots := [word for word in tree.words if word.kind == target.kind]:
                old = self.rng.pick(slots)
                return tree.replace({old: _inflect(target, old.form)})

    def fronted(self) -> Phrase:
        """A sentence that begins with its subject less often."""
        self.opening = 2
        return self.sentence()

    def layered(self) -> Phrase:
        """A sentence that is more often short and deep, or long and flat."""
        self.depth_bias = float(self.rng.chance(0.7))
        self.richness = 0.3 * self.richness if self.depth_bias else self.richness
        return self.sentence()

    # ---------------------------------------------------------------------------------------------------------- clauses

    def clause(self, past: bool | None = None, *, subject: Word | None = None, obj: Word | None = None) -> Phrase:
        """S: NP [ADVP] VP. The number is drawn, and so is the tense if `past` is None.

        subject, obj: nouns already mentioned, for which the clause has a pronoun as its subject or object.
        """
        rng = self.rng
        past = rng.chance(0.5) if past is None else past
        plural = subject.form == "plural" if subject else rng.chance(0.5)
        person = subject.kind == "people" if subject else rng.chance(0.7)
        subject_phrase = self.pronoun(subject, "he she it they") if subject else self.subject(person, plural)
        frequency = [self.adverb(lexicon.FREQUENCY)] if self.elaborates(0.25) else []
        predicate = self.predicate(person, past, plural, obj)
        if self.elaborates(0.25):
            predicate = Phrase("VP", (predicate, Word("and", "CC"), self.predicate(person, past, plural)))
        return _s(subject_phrase, *frequency, predicate)

    def nested(self, write: Callable[[], Phrase]) -> Phrase:
        """The phrase that `write` returns, nested one clause deeper."""
        self.nesting += 1
        phrase = write()
        self.nesting -= 1
        return phrase

    def subordinate_clause(self) -> Phrase:
        """A subordinate clause with its own tense and number, so that only the main clause determines the label."""
        subordinator = Word(self.rng.pick_word(lexicon.SUBORDINATORS), "subordinator")
        return Phrase("SBAR", (subordinator, self.nested(self.clause)))

    def predicate(self, person: bool, past: bool, plural: bool, obj: Word | None = None) -> Phrase:
        rng, kind = self.rng, self.rng.random()
        if obj:
            inner: list[Node] = [self.verb("transitive", past, plural), self.pronoun(obj, "him her it them")]
        elif kind < 0.25:
            inner = [self.verb("intransitive", past, plural)]
        elif kind < 0.25 + 0.3 * self.depth_bias and person and self.nesting < 3:
            that = Phrase("SBAR", (Word("that", "that"), self.nested(self.clause)))
            return Phrase("VP", (self.verb("saying", past, plural), that))
        elif kind < 0.75 and person:
            verbs = rng.pick(tuple(OBJECTS))
            inner = [self.verb(verbs, past, plural), self.noun_phrase(OBJECTS[verbs], rng.chance(0.5))]
        else:
            object_phrase = self.object_phrase(rng.chance(0.5))
            inner = [self.verb("transitive", past, plural), object_phrase]
            if object_phrase.part("SBAR"):  # further words would seem to belong to it
                return Phrase("VP", tuple(inner))
        inner += self.adjuncts()
        if not self.nesting and self.elaborates(0.15):
            inner.append(self.subordinate_clause())
        return Phrase("VP", tuple(inner))

    def adjuncts(self) -> list[Phrase]:
        manner = [self.adverb(lexicon.MANNER)] if self.elaborates(0.25) else []
        return [*manner, self.place_phrase()] if self.elaborates(0.45) else manner

    # ---------------------------------------------------------------------------------------------------------- phrases

    def subject(self, person: bool, plural: bool) -> Phrase:
        """A person or an animal, often followed by a noun of the other number before the verb."""
        inner = self.noun_phrase("people" if person else "animals", plural)
        if not self.elaborates(0.35):
            return inner
        if self.rng.chance(0.4):
            return Phrase("NP", (inner, self.relative(plural)))
        if self.rng.chance(0.5):
            companion = self.noun_phrase(self.rng.pick(BEINGS), not plural)
            preposition = Word(self.rng.pick_word(lexicon.WITH), "preposition")
            return Phrase("NP", (inner, Phrase("PP", (preposition, companion))))
        return Phrase("NP", (inner, self.place_phrase(not plural)))

    def object_phrase(self, plural: bool) -> Phrase:
        """An object: a person or an animal, sometimes with a clause of its own."""
        inner = self.noun_phrase(self.rng.pick(BEINGS), plural)
        if self.nesting < 3 and self.rng.chance(0.4 * self.depth_bias):
            return Phrase("NP", (inner, self.nested(lambda: self.relative(plural))))
        return inner

    def relative(self, plural: bool) -> Phrase:
        """ "that chased the dog" or "that the dog chased", in a tense of its own."""
        rng, past, other_plural = self.rng, self.rng.chance(0.5), self.rng.chance(0.5)
        if rng.chance(0.6):
            inner = _s(Phrase("VP", (self.verb("transitive", past, plural), self.object_phrase(other_plural))))
        else:
            subject = self.noun_phrase(rng.pick(BEINGS), other_plural)
            inner = _s(subject, Phrase("VP", (self.verb("transitive", past, other_plural),)))
        return Phrase("SBAR", (Word("that", "that"), inner))

    def place_phrase(self, plural: bool | None = None) -> Phrase:
        """ "near the river"; if `plural` is None, the number is drawn, and the determiner may reveal it."""
        rng, determiners = self.rng, lexicon.NEUTRAL
        if plural is None:
            plural = rng.chance(0.3)
            determiners = lexicon.PLURAL if plural else lexicon.SINGULAR
        preposition = Word(rng.pick_word(lexicon.NEAR), "preposition")
        return Phrase("PP", (preposition, self.noun_phrase("places", plural, determiners)))

    def noun_phrase(self, kind: str, plural: bool, determiners: str = lexicon.NEUTRAL) -> Phrase:
        """By default with a neutral determiner, so that only the noun reveals the number."""
        rng = self.rng
        lists = zip(ADJECTIVES[kind], (0.35, 0.2), strict=True)
        adjectives = [Word(rng.pick_word(words), "adjective") for words, p in lists if self.elaborates(p)]
        noun = _inflect(self.draw_lemma(kind), "plural" if plural else "singular")
        return Phrase("NP", (Word(rng.pick_word(determiners), "determiner"), *adjectives, noun))

    def pronoun(self, noun: Word, forms: str) -> Phrase:
        """A pronoun for `noun`. forms: masculine, feminine, neuter and plural."""
        he, she, it, they = forms.split()
        assert noun.lemma
        if noun.form == "plural":
            text = they
        elif noun.kind != "people":
            text = it
        elif noun.lemma.name in lexicon.MASCULINE.split():
            text = he
        else:
            text = she if noun.lemma.name in lexicon.FEMININE.split() else self.rng.pick([he, she])
        return Phrase("NP", (Word(text, "pronoun", noun.form),))

    def adverb(self, words: str) -> Phrase:
        return Phrase("ADVP", (Word(self.rng.pick_word(words), "adverb"),))

    def verb(self, kind: str, past: bool, plural: bool) -> Word:
        return _inflect(self.draw_lemma(kind), "past" if past else "base" if plural else "third")

    def draw_lemma(self, kind: str) -> Lemma:
        """Draw a lemma that the sentence does not use yet, unless it uses all."""
        words = self.lexicon[kind]
        lemma = self.rng.pick([word for word in words if word not in self.used] or words)
        self.used.add(lemma)
        return lemma

    def elaborates(self, probability: float) -> bool:
        """Draw whether to elaborate: up to twice the probability in a rich sentence, never in a poor or full one."""
        return len(self.used) < FULL and self.rng.chance(2 * probability * self.richness)


def _fix_articles(tree: Phrase) -> Phrase:
    """The tree with "an" for every "a" before a vowel."""
    words = tree.words
    replacements: dict[Node, Node] = {
        word: Word("an", word.kind)
        for word, following in pairwise(words)
        if word.text == "a" and following.text[0] in "aeiou"
    }
    return tree.replace(replacements) if replacements else tree


def _render(tree: Phrase) -> str:
    """ "Sadly, the dog sleeps." """
    text = " ".join(word.text for word in tree.words).replace(" ,", ",").replace(" ;", ";")
    return text[0].upper() + text[1:] + "."


def _tagged_words(tree: Phrase) -> list[tuple[str, str]]:
    """The words of `_render` and their parts of speech."""
    words = [(word.text, _upos(word.kind)) for word in tree.words]
    return [(words[0][0][0].upper() + words[0][0][1:], words[0][1]), *words[1:], (".", "PUNCT")]


def _upos(kind: str) -> str:
    return "NOUN" if kind in NOUNS else "VERB" if kind in VERBS else UPOS[kind]


# --------------------------------------------------------------------------------------------------------------- labels


def _count_words(tree: Phrase) -> int:
    return sum(word.kind != "," for word in tree.words)


def _length_bin(tree: Phrase) -> str | None:
    words = _count_words(tree)
    return next((f"{low}-{high}" for low, high in LENGTHS if low <= words <= high), None)


LENGTHS = (5, 8), (9, 12), (13, 16), (17, 20), (21, 25), (26, 28)


def _target_word(tree: Phrase) -> str:
    return next(word.lemma.name for word in tree.words if word.lemma in TARGETS)


TARGETS = [lemma for lemmas in lexicon.build_targets().values() for lemma in lemmas]


def _top_constituents(tree: Phrase) -> str:
    """The labels of its parts: ADVP_NP_VP for "Sadly, the dog sleeps"."""
    parts = (part.label if isinstance(part, Phrase) else part.kind for part in tree.parts)
    sequence = "_".join(part for part in parts if part != ",")
    return sequence if sequence in TOPS else "OTHER"


def _main_verb(tree: Phrase) -> Word | None:
    predicate = tree.part("VP")
    return predicate.head if predicate else None


def _subject_noun(tree: Phrase) -> Word | None:
    subject = tree.part("NP")
    return subject.head if subject else None


def _object_noun(tree: Phrase) -> Word | None:
    predicate = tree.part("VP")
    obj = predicate.part("NP") if predicate else None
    return obj.head if obj else None


def _tense(tree: Phrase) -> str | None:
    verb = _main_verb(tree)
    return None if verb is None else "past" if verb.form == "past" else "present"


def _subject_number(tree: Phrase) -> str | None:
    noun = _subject_noun(tree)
    return noun.form if noun else None


def _object_number(tree: Phrase) -> str | None:
    noun = _object_noun(tree)
    return noun.form if noun else None


def _first_being(tree: Phrase) -> str:
    return next(f"{word.kind} first" for word in tree.words if word.kind in BEINGS)


def _connective(tree: Phrase) -> str:
    subordinate = tree.part("SBAR")
    assert subordinate
    return next(part.text for part in subordinate.parts if isinstance(part, Word))


def _event_order(tree: Phrase) -> str:
    main_first = tree.parts[0] is not tree.part("SBAR")
    return "in order" if main_first == (_connective(tree) == "before") else "reversed"


# ---------------------------------------------------------------------------------------------------------------- twins


def _shift_bigram(tree: Phrase, words: Lexicon, rng: _Rng) -> Phrase | None:
    """Swap two neighbours: neither the first word nor a comma, and no pair that reads well both ways."""
    sequence = tree.words
    positions = [i for i in range(1, len(sequence) - 1) if not _reads_well_swapped(*sequence[i : i + 2])]
    i = rng.pick(positions)
    return _s(*sequence[:i], sequence[i + 1], sequence[i], *sequence[i + 2 :])


def _reads_well_swapped(first: Word, second: Word) -> bool:
    """Whether two neighbours read well both ways, as "often sleeps" and "brave young", or cannot be swapped."""
    kinds = {"verb" if word.kind in VERBS else word.kind for word in (first, second)}
    return first.text == second.text or "," in kinds or kinds in INTERCHANGEABLE


INTERCHANGEABLE = (
    {"adjective"},
    {"verb"},  # "the dog that the cat follows fears ..."
    {"adverb", "verb"},
    {"adverb", "pronoun"},
    {"adverb", "CC"},
    {"adverb", "subordinator"},
    {"that", "verb"},  # "the king said that ...", "the king that said ..."
)


def _replace_word(tree: Phrase, words: Lexicon, rng: _Rng) -> Phrase | None:
    """Replace a verb with one kind of object, or its object, by one of another kind: "the king wore the pie"."""
    pairs = []
    for phrase in tree.phrases():
        obj = phrase.part("NP")
        if phrase.label == "VP" and obj and phrase.head.kind in STRICT:
            pairs.append((phrase.head, obj.head))
    if not pairs:
        return None
    verb, noun = rng.pick(pairs)
    kind = rng.pick([name for name in STRICT if name != verb.kind])
    old, kind = (verb, kind) if rng.chance(0.5) else (noun, STRICT[kind])
    used = {word.lemma for word in tree.words}
    unused = [lemma for lemma in words[kind] if lemma not in used]
    return tree.replace({old: _inflect(rng.pick(unused), old.form)}) if unused else None


def _invert_clauses(tree: Phrase, words: Lexicon, rng: _Rng) -> Phrase:
    first, comma, conjunction, second = tree.parts
    return _s(second, comma, conjunction, first)


def _swap_beings(tree: Phrase, words: Lexicon, rng: _Rng) -> Phrase:
    first, second = (np for np in tree.phrases() if isinstance(np.parts[-1], Word) and np.parts[-1].kind in BEINGS)
    return tree.replace({first: second, second: first})


def _move_clause(tree: Phrase, words: Lexicon, rng: _Rng) -> Phrase:
    subordinate = tree.part("SBAR")
    main = [part for part in tree.parts if part not in (subordinate, COMMA)]
    assert subordinate
    return _s(*main, COMMA, subordinate) if tree.parts[0] is subordinate else _s(subordinate, COMMA, *main)


def _change_tense(tree: Phrase) -> Phrase | None:
    """The main verb in the other tense; None for "sleeps and dreams", whose verbs share their tense."""
    subject, predicate = tree.part("NP"), tree.part("VP")
    assert subject is not None
    assert predicate is not None
    if predicate.part("VP"):
        return None
    verb = predicate.head
    present = "base" if subject.head.form == "plural" else "third"
    return _reinflect(tree, {verb: present if verb.form == "past" else "past"})


def _change_subject_number(tree: Phrase) -> Phrase:
    """The subject in the other number, and with it the verbs that agree with it."""
    subject, predicate = tree.part("NP"), tree.part("VP")
    assert subject is not None
    assert predicate is not None
    verbs = [part for part in predicate.parts if isinstance(part, Phrase) and part.label == "VP"] or [predicate]
    return _change_number(tree, subject, [phrase.head for phrase in verbs])


def _change_object_number(tree: Phrase) -> Phrase:
    """The object in the other number; no verb agrees with it but that of a clause of its own."""
    predicate = tree.part("VP")
    obj = predicate.part("NP") if predicate else None
    assert obj is not None
    return _change_number(tree, obj, [])


def _change_number(tree: Phrase, noun_phrase: Phrase, verbs: list[Word]) -> Phrase:
    """The head of a noun phrase in the other number. verbs: those that agree with it; with them agrees that of a
    relative clause whose subject it is ("the dog that chases the cat"). Its determiner fits both numbers."""
    relative = noun_phrase.part("SBAR")
    clause = relative.part("S") if relative else None
    predicate = clause.part("VP") if clause and not clause.part("NP") else None
    forms = {"singular": "plural", "plural": "singular", "third": "base", "base": "third", "past": "past"}
    agreeing = [noun_phrase.head, *verbs, *([predicate.head] if predicate else [])]
    return _reinflect(tree, {word: forms[word.form] for word in agreeing})


def _reinflect(tree: Phrase, forms: Mapping[Word, str]) -> Phrase:
    """The tree with some words in other forms of their lemmas. forms: word -> its form in the new tree."""
    return tree.replace({word: _inflect(word.lemma, form) for word, form in forms.items() if word.lemma})


# ----------------------------------------------------------------------------------------------------------- properties


@dataclass(frozen=True)
class Property:
    """A set of labels, and how their sentences are generated.

    label: the label of a sentence, or None if the property does not apply to it. write: the start symbol. twin: makes
    the sentence of the other label, which is then in the task as well. stratum: a value that must not reveal the label;
    each of `strata` is equally frequent in every class. solved_by: see `Task`; the words of word_content stand on all
    sides, unlike other nouns. inflect: makes the sentence of the other label from other forms of the same words; None
    if more than the label would change. carrier: the word whose form decides the label.
    """

    labels: tuple[str, ...]
    label: Callable[[Phrase], str | None] = lambda tree: "original"
    write: Callable[[_Writer], Phrase] = _Writer.sentence
    twin: Callable[[Phrase, Lexicon, _Rng], Phrase | None] | None = None
    stratum: Callable[[Phrase], object] = lambda tree: None
    strata: tuple[object, ...] = (None,)
    solved_by: tuple[str, ...] = ()
    inflect: Callable[[Phrase], Phrase | None] | None = None
    carrier: Callable[[Phrase], Word | None] = lambda tree: None


FRONTED = ("", "ADVP_", "PP_", "SBAR_", "CC_", "CC_ADVP_", "CC_PP_", "CC_SBAR_")
TOPS = (*(f"{before}NP{often}_VP" for before in FRONTED for often in ("", "_ADVP")), "S_CC_S", "S_S", "S_NP_VP")

PROPERTIES = {
    "sentence_length": Property(tuple(f"{low}-{high}" for low, high in LENGTHS), _length_bin, solved_by=("length",)),
    "word_content": Property(
        tuple(lemma.name for lemma in TARGETS), _target_word, _Writer.mention, solved_by=("bag_of_words",)
    ),
    "tree_depth": Property(
        ("5", "6", "7", "8", "9", "10"),
        lambda tree: str(tree.depth),
        _Writer.layered,
        stratum=_count_words,
        strata=(13, 14, 15, 16, 17),
    ),
    "top_constituents": Property((*TOPS, "OTHER"), _top_constituents, _Writer.fronted),
    "bigram_shift": Property(("original", "shifted"), twin=_shift_bigram),
    "tense": Property(("past", "present"), _tense, inflect=_change_tense, carrier=_main_verb),
    "subject_number": Property(
        ("plural", "singular"), _subject_number, inflect=_change_subject_number, carrier=_subject_noun
    ),
    "object_number": Property(
        ("plural", "singular"), _object_number, inflect=_change_object_number, carrier=_object_noun
    ),
    "odd_man_out": Property(("original", "odd"), twin=_replace_word),
    "coordination_inversion": Property(("original", "inverted"), write=_Writer.coordination, twin=_invert_clauses),
    "word_order": Property(("animals first", "people first"), _first_being, _Writer.encounter, _swap_beings),
    "clause_order": Property(
        ("in order", "reversed"), _event_order, _Writer.temporal, _move_clause, _connective, ("before", "after")
    ),
}
INFLECTED = tuple(name for name, prop in PROPERTIES.items() if prop.inflect)
# The default tasks: one of each kind, which take minutes instead of a quarter of an hour. Among those of a kind, the
# ones whose 3,000 sentences suffice to tell mean pooling from [CLS]: sentence_length would need three times as many.
DEMO = ("word_content", "bigram_shift", "tense", "subject_number", "word_order")


def load(rest: str, options: SourceOptions) -> Loaded:
    """Load the task of one property, or those of ``all`` or of ``demo`` (`DEMO`), with SIZE sentences each by default.

    Raises InputError for an unknown property and for an invalid size.
    """
    names, size = _parse_spec(rest)
    results = [_generate_task(name, size, 0) for name in names]
    tasks = [task for task, _ in results]
    words = {_render(tree): _tagged_words(tree) for _, trees in results for tree in trees}
    return Loaded(tasks, rows=sum(len(task.texts) for task in tasks), words=words)


def load_pairs(rest: str, options: SourceOptions) -> dict[str, MinimalPairs]:
    """Task name -> PAIRS minimal pairs, for the properties of a SPEC that a sentence can change.

    Their sentences are new ones, with the nouns and verbs of test. Raises InputError like `load`.
    """
    names, size = _parse_spec(rest)
    return {
        f"grammar:{name}": _generate_pairs(name, size)
        for name in names
        if PROPERTIES[name].inflect or PROPERTIES[name].twin
    }


def _parse_spec(rest: str) -> tuple[tuple[str, ...], int]:
    """The properties of a SPEC, and the number of sentences of each."""
    requested, colon, number = rest.partition(":")
    name = requested.replace("-", "_")
    collections = {"all": tuple(PROPERTIES), "demo": DEMO}
    if name not in PROPERTIES and name not in collections:
        raise unknown("--task", "property", requested, [*PROPERTIES, *collections])
    if colon and not (number.isascii() and number.isdecimal()):
        raise InputError("--task", f"'{number}' is no number of sentences", f"Write it as in grammar:{name}:{SIZE}")
    return collections.get(name, (name,)), int(number) if colon else SIZE


def make_task(name: str, *, size: int = SIZE, seed: int = 0) -> Task:
    """The task of a property: `size` distinct sentences (one fewer if it is odd), different ones for every seed.

    Raises InputError if `size` is too small for all classes on all sides, or exceeds the sentences there are.
    """
    return _generate_task(name, size, seed)[0]


def _generate_task(name: str, size: int, seed: int) -> tuple[Task, Sequence[Phrase]]:
    """A task and the trees of its texts."""
    classes = len(PROPERTIES[name].labels)
    if not 12 * classes <= size <= LARGEST:
        what = f"{size:,} sentences are too {'many' if size > LARGEST else f'few for the {classes} classes of {name}'}"
        raise InputError("--task", what, f"Ask for {12 * classes:,} to {LARGEST:,}")
    train, dev = size // 4 * 2, size // 12 * 2
    sizes = {"train": train, "dev": dev, "test": size // 2 * 2 - train - dev}
    rows = [(side, *row) for side in sizes for row in _generate_rows(name, side, sizes[side], seed)]
    split, groups, labels, trees = zip(*rows, strict=True)
    codes = np.unique([f"{side} {group}" for side, group in zip(split, groups, strict=True)], return_inverse=True)[1]
    has_twins = PROPERTIES[name].twin is not None
    texts = [_render(tree) for tree in trees]
    task = Task(
        f"grammar:{name}",
        texts,
        np.array(labels),
        split=np.array(split),
        groups=codes if has_twins else None,
        solved_by=PROPERTIES[name].solved_by,
    )
    return task, trees


def _generate_rows(name: str, side: str, size: int, seed: int) -> list[tuple[int, str, Phrase]]:
    """(group, label, sentence) for every row of one side; all sentences are distinct, including twins."""
    prop, words, rng = PROPERTIES[name], lexicon.deal_lexicon(side), _Rng(f"{name} {side} {seed}")
    labels = [None] if prop.twin else prop.labels  # twins have one sentence of each label anyway
    cells = [(label, stratum) for stratum in prop.strata for label in labels]
    quota = Counter(cells[i % len(cells)] for i in range(size // 2 if prop.twin else size))
    rows: list[tuple[int, str, Phrase]] = []
    written: set[str] = set()
    n_rejected = 0
    while len(rows) < size:
        n_rejected += 1
        if n_rejected > MAX_REJECTED:
            what = f"there are hardly more than {len(rows):,} different sentences for the {side} side of {name}"
            raise InputError("--task", what, "Ask for fewer")
        tree = prop.write(_Writer(words, rng))
        label = prop.label(tree)
        cell = (None if prop.twin else label, prop.stratum(tree))
        if label is None or not quota[cell] or _count_words(tree) > LONGEST:
            continue
        group = {label: _fix_articles(tree)}
        if prop.twin:
            (other_label,) = set(prop.labels) - {label}
            twin = prop.twin(group[label], words, rng)
            if twin is None:
                continue
            group[other_label] = twin
        texts = {_render(member) for member in group.values()}
        if len(texts) < len(group) or texts & written:
            continue
        rows += [(len(written), *row) for row in group.items()]
        written |= texts
        quota[cell] -= 1
        n_rejected = 0
    return rng.shuffled(rows)


def _generate_pairs(name: str, size: int) -> MinimalPairs:
    """Minimal pairs from the lexicon of test, and what is known of them and of the task of this size."""
    prop, words, rng = PROPERTIES[name], lexicon.deal_lexicon("test"), _Rng(f"{name} pairs")
    pairs: list[tuple[Phrase, Phrase]] = []
    written: set[str] = set()
    for _ in range(MAX_REJECTED):
        tree = _fix_articles(prop.write(_Writer(words, rng)))
        label = prop.label(tree)
        if label is None or _count_words(tree) > LONGEST:
            continue
        twin = prop.inflect(tree) if prop.inflect else prop.twin(tree, words, rng) if prop.twin else None
        if twin is None or {_render(tree), _render(twin)} & written:
            continue
        pairs.append((tree, twin) if label == prop.labels[0] else (twin, tree))
        written |= {_render(tree), _render(twin)}
        if len(pairs) == PAIRS:
            break
    carriers = [prop.carrier(tree) for tree, _ in pairs]
    trees = {_render(tree): tree for tree in (*_generate_task(name, size, 0)[1], *chain.from_iterable(pairs))}
    others = {other: PROPERTIES[other].label for other in INFLECTED if other != name}
    return MinimalPairs(
        (prop.labels[0], prop.labels[1]),
        [(_render(tree), _render(twin)) for tree, twin in pairs],
        [word.lemma.name if word and word.lemma else "" for word in carriers],
        carriers={text: word.lemma.name for text, tree in trees.items() if (word := prop.carrier(tree)) and word.lemma},
        other_labels={
            other: {text: value for text, tree in trees.items() if (value := read_label(tree))}
            for other, read_label in others.items()
        },
    )
