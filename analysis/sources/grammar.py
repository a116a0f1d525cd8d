"""``grammar:PROPERTY[:SIZE]``: sentences the project writes itself, from a small generative grammar of English.

1. The lexicon (analysis/sources/lexicon.py) deals nouns and verbs to train, test and dev: none crosses a split.
2. A `_Writer` writes one sentence as a tree of `Phrase` and `Word`. Its public methods are the start symbols; tense,
   number and how much the sentence elaborates are drawn.
3. A `Property` reads its label off the tree. `_rows` keeps what the quota of a class still needs, so that classes are
   equally large, and alike in what the property says must not tell them apart.
4. Where the label is about order or oddness, every sentence comes with its twin: the same words in another order, or
   one word exchanged. Both stand in the task, as one group, with different labels.

The first ten properties are SentEval's (Conneau et al. 2018, https://aclanthology.org/P18-1198). Every draw comes from
``random.Random(str).random()``, the one stream that Python promises never to change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from random import Random
from typing import TypeAlias, TypeVar

import numpy as np

from clsprobe.analysis.sources import Loaded, SourceOptions, lexicon
from clsprobe.analysis.sources.lexicon import ADJECTIVES, NOUNS, OBJECTS, STRICT, VERBS, Lemma, Lexicon
from clsprobe.probes.errors import InputError, unknown
from clsprobe.probes.tasks.task import Task

T = TypeVar("T")
BEINGS = ("people", "animals")
TAGS = {
    "adjective": "ADJ", "preposition": "ADP", "adverb": "ADV", "CC": "CCONJ", "determiner": "DET", "pronoun": "PRON",
    ",": "PUNCT", "subordinator": "SCONJ", "that": "SCONJ",
}  # fmt: skip

SIZE, LARGEST = 3000, 1_000_000  # sentences of a task; half of them train, a sixth dev, a third test
FULL = 9  # nouns and verbs, after which a sentence is only brought to its end
LONGEST = 28  # words of a sentence
PATIENCE = 50_000  # sentences in a row that nobody needs, before we say that there are no more


@cache
def _split(words: str) -> list[str]:
    return words.split()


class _Dice(Random):
    """A seeded stream that gives the same draws in every process and every version of Python."""

    def one(self, items: Sequence[T]) -> T:
        return items[int(self.random() * len(items))]

    def word(self, words: str) -> str:
        return self.one(_split(words))

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
    """S, SBAR, NP, VP, PP or ADVP, and what it consists of."""

    label: str
    parts: tuple[Node, ...]

    @cached_property
    def words(self) -> tuple[Word, ...]:
        """All words below, from left to right."""
        return tuple(word for part in self.parts for word in (part.words if isinstance(part, Phrase) else (part,)))

    def phrases(self) -> Iterator[Phrase]:
        """The phrase itself and all phrases below."""
        yield self
        for part in self.parts:
            if isinstance(part, Phrase):
                yield from part.phrases()

    def part(self, label: str) -> Phrase | None:
        """The first part with this label."""
        return next((part for part in self.parts if isinstance(part, Phrase) and part.label == label), None)

    def exchanged(self, new: Mapping[Node, Node]) -> Phrase:
        """The same tree with some of its nodes replaced."""
        parts = (new.get(part) or (part.exchanged(new) if isinstance(part, Phrase) else part) for part in self.parts)
        return Phrase(self.label, tuple(parts))

    @property
    def depth(self) -> int:
        """The number of nodes on the longest way from this phrase to a word, both included."""
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


def _inflected(lemma: Lemma, form: str) -> Word:
    return Word(lemma.forms[form], lemma.kind, form, lemma)


COMMA, SEMICOLON = Word(",", ","), Word(";", ",")


def _s(*parts: Node) -> Phrase:
    return Phrase("S", parts)


class _Writer:
    """Writes one sentence from a lexicon. The methods before `clause` are start symbols and return a whole S.

    richness: 0 for hardly a word more than needed, 1 for a long sentence. bent: 0 for flat, 1 for clauses in clauses.
    Nouns and verbs vary within the sentence.
    """

    def __init__(self, words: Lexicon, dice: _Dice) -> None:
        self.lexicon, self.dice = words, dice
        self.richness, self.bent = dice.random(), dice.random()
        self.opening = 1  # how much stands before the subject
        self.nesting = 0  # clauses around the one that is written
        self.used: set[Lemma] = set()

    def sentence(self) -> Phrase:
        """Anything: a clause with what may stand before it, two clauses, or somebody's words."""
        dice, kind = self.dice, self.dice.random()
        if kind < 0.1:
            return self.coordination()
        if kind < 0.15:
            return _s(self.clause(), SEMICOLON, self.clause())
        if kind < 0.2:
            said, past, plural = self.nested(self.clause), dice.chance(0.5), dice.chance(0.5)
            return _s(said, COMMA, self.subject(True, plural), Phrase("VP", (self.verb("saying", past, plural),)))
        before: list[Node] = []
        if dice.chance(0.15 * self.opening):
            before.append(Word(dice.word(lexicon.COORDINATORS), "CC"))
        if self.often(0.25 * self.opening):
            before += [self.adverb(lexicon.OPENERS), COMMA]
        if self.often(0.25 * self.opening):
            before += [self.place() if dice.chance(0.5) else self.aside(), COMMA]
        return _s(*before, *self.clause().parts)

    def coordination(self) -> Phrase:
        """Two clauses, the second of which takes up someone from the first: "The boy slept, and then he ran"."""
        dice, self.nesting = self.dice, 1
        first = self.clause()
        subject, verbal = first.part("NP"), first.part("VP")
        assert subject is not None
        assert verbal is not None
        met = verbal.part("NP")
        about = met.head if met and met.head.kind in BEINGS and dice.chance(0.5) else subject.head
        past = verbal.head.form == "past" if dice.chance(0.8) else dice.chance(0.5)
        second = self.clause(past, subject=about) if dice.chance(0.5) else self.clause(past, met=about)
        if dice.chance(0.3):
            second = _s(self.adverb(lexicon.DISCOURSE), *second.parts)
        return _s(first, COMMA, Word(dice.word(lexicon.COORDINATORS), "CC"), second)

    def temporal(self) -> Phrase:
        """Two events: "The boy slept, shortly before the dog ran", or the later clause first."""
        dice, self.nesting = self.dice, 2
        past = dice.chance(0.7)
        when = Word(dice.word("before after"), "subordinator")
        aside = Phrase("SBAR", (self.adverb(lexicon.APART), when, self.clause(past)))
        main = self.clause(past).parts
        return _s(aside, COMMA, *main) if dice.chance(0.5) else _s(*main, COMMA, aside)

    def encounter(self) -> Phrase:
        """One person and one animal, whose order the agreement of the verb leaves free: "The boy chased the dog"."""
        dice, past, plural = self.dice, self.dice.chance(0.5), self.dice.chance(0.5)
        one, other = dice.shuffled(BEINGS)
        subject = self.noun_phrase(one, plural)
        company = self.noun_phrase(other, dice.chance(0.5) if past else plural)
        kind = dice.random()
        if kind < 0.5:
            inner: list[Node] = [self.verb("transitive", past, plural), company]
        elif kind < 0.75:
            near = Phrase("PP", (Word(dice.word(lexicon.NEAR), "preposition"), company))
            inner = [self.verb("intransitive", past, plural), near]
        else:
            subject = Phrase("NP", (subject, Word("and", "CC"), company))
            inner = [self.verb("intransitive", past, True)]
        before: list[Node] = []
        if self.often(0.4):
            before = [self.adverb(lexicon.OPENERS) if dice.chance(0.5) else self.place(), COMMA]
        if self.often(0.2):
            subject = Phrase("NP", (subject, self.place(not plural)))
        often = [self.adverb(lexicon.FREQUENCY)] if self.often(0.3) else []
        return _s(*before, subject, *often, Phrase("VP", (*inner, *self.adjuncts())))

    def mention(self) -> Phrase:
        """A sentence, in which one noun or verb gives way to a target of the same kind and form."""
        target = self.dice.one(TARGETS)
        while True:
            tree = _Writer(self.lexicon, self.dice).sentence()
            if slots := [word for word in tree.words if word.kind == target.kind]:
                old = self.dice.one(slots)
                return tree.exchanged({old: _inflected(target, old.form)})

    def fronted(self) -> Phrase:
        """A sentence, more often one that does not begin with its subject."""
        self.opening = 2
        return self.sentence()

    def layered(self) -> Phrase:
        """A sentence that is drawn more often from the ends: short and deep, or long and flat."""
        self.bent = float(self.dice.chance(0.7))
        self.richness = 0.3 * self.richness if self.bent else self.richness
        return self.sentence()

    # ---------------------------------------------------------------------------------------------------------- clauses

    def clause(self, past: bool | None = None, *, subject: Word | None = None, met: Word | None = None) -> Phrase:
        """S: NP [ADVP] VP. A tense that is not given is drawn, and so is the number.

        subject, met: nouns already named, which a pronoun takes up as subject or as object.
        """
        dice = self.dice
        past = dice.chance(0.5) if past is None else past
        plural = subject.form == "plural" if subject else dice.chance(0.5)
        person = subject.kind == "people" if subject else dice.chance(0.7)
        who = self.pronoun(subject, "he she it they") if subject else self.subject(person, plural)
        often = [self.adverb(lexicon.FREQUENCY)] if self.often(0.25) else []
        verbal = self.predicate(person, past, plural, met)
        if self.often(0.25):
            verbal = Phrase("VP", (verbal, Word("and", "CC"), self.predicate(person, past, plural)))
        return _s(who, *often, verbal)

    def nested(self, write: Callable[[], Phrase]) -> Phrase:
        """What `write` writes, one clause further in."""
        self.nesting += 1
        phrase = write()
        self.nesting -= 1
        return phrase

    def aside(self) -> Phrase:
        """A subordinate clause; its tense and number are its own, so that only the main clause tells the label."""
        return Phrase("SBAR", (Word(self.dice.word(lexicon.SUBORDINATORS), "subordinator"), self.nested(self.clause)))

    def predicate(self, person: bool, past: bool, plural: bool, met: Word | None = None) -> Phrase:
        dice, kind = self.dice, self.dice.random()
        if met:
            inner: list[Node] = [self.verb("transitive", past, plural), self.pronoun(met, "him her it them")]
        elif kind < 0.25:
            inner = [self.verb("intransitive", past, plural)]
        elif kind < 0.25 + 0.3 * self.bent and person and self.nesting < 3:
            that = Phrase("SBAR", (Word("that", "that"), self.nested(self.clause)))
            return Phrase("VP", (self.verb("saying", past, plural), that))
        elif kind < 0.75 and person:
            verbs = dice.one(tuple(OBJECTS))
            inner = [self.verb(verbs, past, plural), self.noun_phrase(OBJECTS[verbs], dice.chance(0.5))]
        else:
            whom = self.being(dice.chance(0.5))
            inner = [self.verb("transitive", past, plural), whom]
            if whom.part("SBAR"):  # what followed would seem to belong to it
                return Phrase("VP", tuple(inner))
        inner += self.adjuncts()
        if not self.nesting and self.often(0.15):
            inner.append(self.aside())
        return Phrase("VP", tuple(inner))

    def adjuncts(self) -> list[Phrase]:
        found = [self.adverb(lexicon.MANNER)] if self.often(0.25) else []
        return [*found, self.place()] if self.often(0.45) else found

    # ---------------------------------------------------------------------------------------------------------- phrases

    def subject(self, person: bool, plural: bool) -> Phrase:
        """A person or an animal, often with a noun of the other number between it and its verb."""
        inner = self.noun_phrase("people" if person else "animals", plural)
        if not self.often(0.35):
            return inner
        if self.dice.chance(0.4):
            return Phrase("NP", (inner, self.relative(plural)))
        if self.dice.chance(0.5):
            company = self.noun_phrase(self.dice.one(BEINGS), not plural)
            return Phrase("NP", (inner, Phrase("PP", (Word(self.dice.word(lexicon.WITH), "preposition"), company))))
        return Phrase("NP", (inner, self.place(not plural)))

    def being(self, plural: bool) -> Phrase:
        """An object: a person or an animal, sometimes with a clause of its own."""
        inner = self.noun_phrase(self.dice.one(BEINGS), plural)
        if self.nesting < 3 and self.dice.chance(0.4 * self.bent):
            return Phrase("NP", (inner, self.nested(lambda: self.relative(plural))))
        return inner

    def relative(self, plural: bool) -> Phrase:
        """ "that chased the dog" or "that the dog chased", in a tense of its own."""
        dice, past, other = self.dice, self.dice.chance(0.5), self.dice.chance(0.5)
        if dice.chance(0.6):
            inner = _s(Phrase("VP", (self.verb("transitive", past, plural), self.being(other))))
        else:
            who = self.noun_phrase(dice.one(BEINGS), other)
            inner = _s(who, Phrase("VP", (self.verb("transitive", past, other),)))
        return Phrase("SBAR", (Word("that", "that"), inner))

    def place(self, plural: bool | None = None) -> Phrase:
        """ "near the river"; a number that is not given is drawn, and the determiner may tell it."""
        dice, determiners = self.dice, lexicon.NEUTRAL
        if plural is None:
            plural = dice.chance(0.3)
            determiners = lexicon.PLURAL if plural else lexicon.SINGULAR
        return Phrase(
            "PP", (Word(dice.word(lexicon.NEAR), "preposition"), self.noun_phrase("places", plural, determiners))
        )

    def noun_phrase(self, kind: str, plural: bool, determiners: str = lexicon.NEUTRAL) -> Phrase:
        """Subjects and objects have neutral determiners: the noun alone tells their number."""
        dice = self.dice
        words = [dice.word(each) for each, p in zip(ADJECTIVES[kind], (0.35, 0.2), strict=True) if self.often(p)]
        noun = _inflected(self.fresh(kind), "plural" if plural else "singular")
        described = [Word(word, "adjective") for word in words]
        return Phrase("NP", (Word(dice.word(determiners), "determiner"), *described, noun))

    def pronoun(self, noun: Word, forms: str) -> Phrase:
        """forms: those for a man, a woman, a thing, and several."""
        he, she, it, they = forms.split()
        assert noun.lemma
        if noun.form == "plural":
            text = they
        elif noun.kind != "people":
            text = it
        elif noun.lemma.name in lexicon.HE.split():
            text = he
        else:
            text = she if noun.lemma.name in lexicon.SHE.split() else self.dice.one([he, she])
        return Phrase("NP", (Word(text, "pronoun", noun.form),))

    def adverb(self, words: str) -> Phrase:
        return Phrase("ADVP", (Word(self.dice.word(words), "adverb"),))

    def verb(self, kind: str, past: bool, plural: bool) -> Word:
        return _inflected(self.fresh(kind), "past" if past else "base" if plural else "third")

    def fresh(self, kind: str) -> Lemma:
        """A lemma not yet used in the sentence, unless all are."""
        words = self.lexicon[kind]
        lemma = self.dice.one([word for word in words if word not in self.used] or words)
        self.used.add(lemma)
        return lemma

    def often(self, probability: float) -> bool:
        """Whether to elaborate here: up to twice the probability in a rich sentence, never in a poor or full one."""
        return len(self.used) < FULL and self.dice.chance(2 * probability * self.richness)


def _articles(tree: Phrase) -> Phrase:
    """The tree with "an" for every "a" before a vowel."""
    words = tree.words
    new: dict[Node, Node] = {
        word: Word("an", word.kind)
        for word, following in pairwise(words)
        if word.text == "a" and following.text[0] in "aeiou"
    }
    return tree.exchanged(new) if new else tree


def _text(tree: Phrase) -> str:
    """ "Sadly, the dog sleeps." """
    text = " ".join(word.text for word in tree.words).replace(" ,", ",").replace(" ;", ";")
    return text[0].upper() + text[1:] + "."


def _spelled(tree: Phrase) -> list[tuple[str, str]]:
    """The words of `_text` and their parts of speech."""
    words = [(word.text, _tag(word.kind)) for word in tree.words]
    return [(words[0][0][0].upper() + words[0][0][1:], words[0][1]), *words[1:], (".", "PUNCT")]


def _tag(kind: str) -> str:
    return "NOUN" if kind in NOUNS else "VERB" if kind in VERBS else TAGS[kind]


# --------------------------------------------------------------------------------------------------------------- labels


def _length(tree: Phrase) -> int:
    return sum(word.kind != "," for word in tree.words)


def _length_bin(tree: Phrase) -> str | None:
    words = _length(tree)
    return next((f"{low}-{high}" for low, high in LENGTHS if low <= words <= high), None)


LENGTHS = (5, 8), (9, 12), (13, 16), (17, 20), (21, 25), (26, 28)


def _target(tree: Phrase) -> str:
    return next(word.lemma.name for word in tree.words if word.lemma in TARGETS)


TARGETS = [lemma for lemmas in lexicon.targets().values() for lemma in lemmas]


def _top(tree: Phrase) -> str:
    """What the sentence consists of: ADVP_NP_VP for "Sadly, the dog sleeps"."""
    parts = (part.label if isinstance(part, Phrase) else part.kind for part in tree.parts)
    sequence = "_".join(part for part in parts if part != ",")
    return sequence if sequence in TOPS else "OTHER"


def _tense(tree: Phrase) -> str | None:
    verbal = tree.part("VP")
    return None if verbal is None else "past" if verbal.head.form == "past" else "present"


def _subject_number(tree: Phrase) -> str | None:
    subject = tree.part("NP")
    return None if subject is None else subject.head.form


def _object_number(tree: Phrase) -> str | None:
    verbal = tree.part("VP")
    met = None if verbal is None else verbal.part("NP")
    return None if met is None else met.head.form


def _who_first(tree: Phrase) -> str:
    return next(f"{word.kind} first" for word in tree.words if word.kind in BEINGS)


def _connective(tree: Phrase) -> str:
    aside = tree.part("SBAR")
    assert aside
    return next(part.text for part in aside.parts if isinstance(part, Word))


def _chronology(tree: Phrase) -> str:
    main_first = tree.parts[0] is not tree.part("SBAR")
    return "in order" if main_first == (_connective(tree) == "before") else "reversed"


# ---------------------------------------------------------------------------------------------------------------- twins


def _shifted(tree: Phrase, words: Lexicon, dice: _Dice) -> Phrase | None:
    """Two neighbours swapped: neither the first word nor a comma, and no pair that also reads well so."""
    line = tree.words
    places = [i for i in range(1, len(line) - 1) if not _free(*line[i : i + 2])]
    i = dice.one(places)
    return _s(*line[:i], line[i + 1], line[i], *line[i + 2 :])


def _free(one: Word, other: Word) -> bool:
    """Whether two neighbours are not to be swapped: "often sleeps", "brave young" read well both ways."""
    kinds = {"verb" if word.kind in VERBS else word.kind for word in (one, other)}
    return one.text == other.text or "," in kinds or kinds in FREE


FREE = (
    {"adjective"},
    {"verb"},  # "the dog that the cat follows fears ..."
    {"adverb", "verb"},
    {"adverb", "pronoun"},
    {"adverb", "CC"},
    {"adverb", "subordinator"},
    {"that", "verb"},  # "the king said that ...", "the king that said ..."
)


def _odd(tree: Phrase, words: Lexicon, dice: _Dice) -> Phrase | None:
    """A verb that asks for one kind of thing, or its object, becomes one of another kind: "the king wore the pie"."""
    pairs = []
    for phrase in tree.phrases():
        met = phrase.part("NP")
        if phrase.label == "VP" and met and phrase.head.kind in STRICT:
            pairs.append((phrase.head, met.head))
    if not pairs:
        return None
    verb, noun = dice.one(pairs)
    kind = dice.one([each for each in STRICT if each != verb.kind])
    old, kind = (verb, kind) if dice.chance(0.5) else (noun, STRICT[kind])
    used = {word.lemma for word in tree.words}
    fresh = [lemma for lemma in words[kind] if lemma not in used]
    return tree.exchanged({old: _inflected(dice.one(fresh), old.form)}) if fresh else None


def _inverted(tree: Phrase, words: Lexicon, dice: _Dice) -> Phrase:
    first, comma, conjunction, second = tree.parts
    return _s(second, comma, conjunction, first)


def _who_swapped(tree: Phrase, words: Lexicon, dice: _Dice) -> Phrase:
    one, other = (np for np in tree.phrases() if isinstance(np.parts[-1], Word) and np.parts[-1].kind in BEINGS)
    return tree.exchanged({one: other, other: one})


def _aside_moved(tree: Phrase, words: Lexicon, dice: _Dice) -> Phrase:
    aside = tree.part("SBAR")
    rest = [part for part in tree.parts if part not in (aside, COMMA)]
    assert aside
    return _s(*rest, COMMA, aside) if tree.parts[0] is aside else _s(aside, COMMA, *rest)


# ----------------------------------------------------------------------------------------------------------- properties


@dataclass(frozen=True)
class Property:
    """A set of labels, and how they come about.

    label: reads it off a sentence; None: the sentence does not ask the question. write: the start symbol. twin: makes
    the sentence of the other label. stratum: something that must not tell the label; each of `strata` is equally
    frequent in every class.
    """

    labels: tuple[str, ...]
    label: Callable[[Phrase], str | None] = lambda tree: "original"
    write: Callable[[_Writer], Phrase] = _Writer.sentence
    twin: Callable[[Phrase, Lexicon, _Dice], Phrase | None] | None = None
    stratum: Callable[[Phrase], object] = lambda tree: None
    strata: tuple[object, ...] = (None,)


FRONTED = ("", "ADVP_", "PP_", "SBAR_", "CC_", "CC_ADVP_", "CC_PP_", "CC_SBAR_")
TOPS = (*(f"{before}NP{often}_VP" for before in FRONTED for often in ("", "_ADVP")), "S_CC_S", "S_S", "S_NP_VP")

PROPERTIES = {
    "sentence_length": Property(tuple(f"{low}-{high}" for low, high in LENGTHS), _length_bin),
    "word_content": Property(tuple(lemma.name for lemma in TARGETS), _target, _Writer.mention),
    "tree_depth": Property(
        ("5", "6", "7", "8", "9", "10"),
        lambda tree: str(tree.depth),
        _Writer.layered,
        stratum=_length,
        strata=(13, 14, 15, 16, 17),
    ),
    "top_constituents": Property((*TOPS, "OTHER"), _top, _Writer.fronted),
    "bigram_shift": Property(("original", "shifted"), twin=_shifted),
    "tense": Property(("past", "present"), _tense),
    "subject_number": Property(("plural", "singular"), _subject_number),
    "object_number": Property(("plural", "singular"), _object_number),
    "odd_man_out": Property(("original", "odd"), twin=_odd),
    "coordination_inversion": Property(("original", "inverted"), write=_Writer.coordination, twin=_inverted),
    "word_order": Property(("animals first", "people first"), _who_first, _Writer.encounter, _who_swapped),
    "clause_order": Property(
        ("in order", "reversed"), _chronology, _Writer.temporal, _aside_moved, _connective, ("before", "after")
    ),
}
# What is shown unasked: one of each kind, in minutes rather than a quarter of an hour.
DEMO = ("sentence_length", "bigram_shift", "tense", "subject_number", "word_order")


def load(rest: str, options: SourceOptions) -> Loaded:
    """The task of one property, of ``all``, or of those in `DEMO` (``demo``), with SIZE sentences each or as many as
    follow a colon.

    Raises InputError for an unknown property and for an impossible size.
    """
    named, colon, number = rest.partition(":")
    name = named.replace("-", "_")
    several = {"all": tuple(PROPERTIES), "demo": DEMO}
    if name not in PROPERTIES and name not in several:
        raise unknown("--task", "property", named, [*PROPERTIES, *several])
    if colon and not (number.isascii() and number.isdecimal()):
        raise InputError("--task", f"'{number}' is no number of sentences", f"Write it as in grammar:{name}:{SIZE}")
    made = [_made(each, int(number) if colon else SIZE, 0) for each in several.get(name, (name,))]
    tasks = [task for task, _ in made]
    words = {_text(tree): _spelled(tree) for _, trees in made for tree in trees}
    return Loaded(tasks, rows=sum(len(task.texts) for task in tasks), words=words)


def task(name: str, *, size: int = SIZE, seed: int = 0) -> Task:
    """The task of a property: `size` distinct sentences (one fewer where that is odd), others for every seed.

    Raises InputError where `size` leaves no room for all classes on all sides, or is more than there are sentences.
    """
    return _made(name, size, seed)[0]


def _made(name: str, size: int, seed: int) -> tuple[Task, Sequence[Phrase]]:
    """A task and the trees of its texts."""
    classes = len(PROPERTIES[name].labels)
    if not 12 * classes <= size <= LARGEST:
        what = f"{size:,} sentences are too {'many' if size > LARGEST else f'few for the {classes} classes of {name}'}"
        raise InputError("--task", what, f"Ask for {12 * classes:,} to {LARGEST:,}")
    train, dev = size // 4 * 2, size // 12 * 2
    sizes = {"train": train, "dev": dev, "test": size // 2 * 2 - train - dev}
    rows = [(side, *row) for side in sizes for row in _rows(name, side, sizes[side], seed)]
    split, groups, labels, trees = zip(*rows, strict=True)
    tied = np.unique([f"{side} {group}" for side, group in zip(split, groups, strict=True)], return_inverse=True)[1]
    paired = PROPERTIES[name].twin is not None
    texts = [_text(tree) for tree in trees]
    y, sides = np.array(labels), np.array(split)
    return Task(f"grammar:{name}", texts, y, split=sides, groups=tied if paired else None), trees


def _rows(name: str, side: str, size: int, seed: int) -> list[tuple[int, str, Phrase]]:
    """(group, label, sentence) for every row of one side; no sentence is written twice, twin or not."""
    asked, words, dice = PROPERTIES[name], lexicon.lexicon(side), _Dice(f"{name} {side} {seed}")
    labels = [None] if asked.twin else asked.labels  # of twins there is one of each label anyway
    cells = [(label, stratum) for stratum in asked.strata for label in labels]
    needed = Counter(cells[i % len(cells)] for i in range(size // 2 if asked.twin else size))
    rows: list[tuple[int, str, Phrase]] = []
    written: set[str] = set()
    idle = 0
    while len(rows) < size:
        idle += 1
        if idle > PATIENCE:
            what = f"there are hardly more than {len(rows):,} different sentences for the {side} side of {name}"
            raise InputError("--task", what, "Ask for fewer")
        tree = asked.write(_Writer(words, dice))
        label = asked.label(tree)
        cell = (None if asked.twin else label, asked.stratum(tree))
        if label is None or not needed[cell] or _length(tree) > LONGEST:
            continue
        group = {label: _articles(tree)}
        if asked.twin:
            (other,) = set(asked.labels) - {label}
            twin = asked.twin(group[label], words, dice)
            if twin is None:
                continue
            group[other] = twin
        texts = {_text(each) for each in group.values()}
        if len(texts) < len(group) or texts & written:
            continue
        rows += [(len(written), *row) for row in group.items()]
        written |= texts
        needed[cell] -= 1
        idle = 0
    return dice.shuffled(rows)
