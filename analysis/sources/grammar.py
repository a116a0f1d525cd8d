"""``grammar:PROPERTY``: sentences the project writes itself, from a small generative grammar of English.

1. The lexicon: nouns and verbs are dealt to train, test and dev, so that no word form or lemma of theirs crosses a
   split; adjectives, adverbs and function words are shared.
2. A `_Writer` writes one sentence from a lexicon: its tense, the number of its subject and how much it elaborates are
   given, everything else is drawn.
3. A property gives the labels, in equal parts and shuffled *before* any sentence is written, so that nothing but the
   property can tell them apart.

The four properties are among SentEval's ten (Conneau et al. 2018, https://aclanthology.org/P18-1198). Every draw comes
from ``random.Random(str).random()``, the one stream that Python promises never to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

import numpy as np

from analysis.sources import Loaded, SourceOptions
from probes.errors import unknown
from probes.task import Task

T = TypeVar("T")

# ---------------------------------------------------------------- words

# A form that the rules of spelling do not give follows a slash: plural of a noun, past of a verb.
PEOPLE = """farmer woman/women teacher sailor child/children doctor nurse king man/men soldier lawyer girl priest
    student thief/thieves artist judge queen merchant boy pilot poet waiter widow tailor writer actor captain
    clerk cousin dancer hunter knight lady mayor monk fisherman/fishermen officer prince stranger uncle
    villager"""
ANIMALS = """dog cat wolf/wolves horse goose/geese mouse/mice fox rabbit goat donkey eagle monkey lion squirrel pig cow
    owl camel tiger elephant crow parrot swan lizard"""
THINGS = """lamp box knife/knives chair table mirror basket bottle shelf/shelves letter clock coat key ladder blanket
    guitar kettle picture pillow plate rope spoon sword violin wheel window bicycle candle carpet statue"""
PLACES = """river barn library station school bridge church castle market tower forest museum hotel temple lake palace
    chapel cottage factory orchard hospital lighthouse fountain prison"""

# What anyone does; what anyone does to someone; what people do to things.
INTRANSITIVE = """sleep/slept wait rest fall/fell arrive run/ran hide/hid shiver swim/swam wander sit/sat escape
    stand/stood vanish rise/rose jump freeze/froze hesitate come/came tremble eat/ate limp drink/drank stumble return
    awake/awoke disappear go/went play linger"""
TRANSITIVE = """see/saw follow hear/heard watch meet/met chase find/found avoid lead/led ignore catch/caught fear
    know/knew trust bite/bit greet fight/fought frighten leave/left approach seek/sought protect choose/chose recognize
    lose/lost remember forget/forgot notice feed/fed help understand/understood love keep/kept obey push admire"""
HANDLING = """buy/bought carry sell/sold clean break/broke paint build/built repair make/made polish steal/stole open
    draw/drew lift bring/brought borrow throw/threw collect take/took examine send/sent wash tear/tore measure lend/lent
    deliver shake/shook inspect sweep/swept wrap/wrapped bend/bent drop/dropped hang/hung use hold/held describe"""

# An adjective of the first list stands before one of the second: "the proud old king".
FOR_BEINGS = "tall small clever brave lazy gentle proud nervous friendly strange lonely happy", "old young"
FOR_THINGS = "small large heavy expensive cheap beautiful strange fragile", "old new wooden red green blue white black"
FOR_PLACES = "small large famous quiet busy distant beautiful empty", "old new ancient white gray"

# None of them says anything about time or number.
OPENERS = "sometimes fortunately sadly surprisingly however indeed apparently"
FREQUENCY = "often always never rarely usually seldom"
MANNER = "quietly slowly carefully suddenly calmly eagerly bravely silently patiently happily"
NEUTRAL = "the the the the the the the the my your our their his her"
SINGULAR = NEUTRAL + " a a a every this"
PLURAL = NEUTRAL + " some two three many these"
NEAR = "near behind beside outside opposite around"
WITH = "with near behind beside"
SUBORDINATORS = "because although whereas"

# How nouns and verbs are dealt, so that every side gets some of the irregular verbs, which stand at even places.
CYCLE = ["train", "train", "test", "test", "dev", "train", "train", "test", "test", "train", "train", "dev"]
ROWS = {"train": 1500, "dev": 500, "test": 1000}


@dataclass(frozen=True)
class Noun:
    """A noun and its two forms."""

    singular: str
    plural: str


@dataclass(frozen=True)
class Verb:
    """A verb: "chase" (they), "chases" (she) and "chased" (both)."""

    base: str
    third: str
    past: str


@dataclass(frozen=True)
class Lexicon:
    """The nouns and verbs of one side of the split."""

    people: tuple[Noun, ...]
    animals: tuple[Noun, ...]
    things: tuple[Noun, ...]
    places: tuple[Noun, ...]
    intransitive: tuple[Verb, ...]
    transitive: tuple[Verb, ...]
    handling: tuple[Verb, ...]

    @classmethod
    def of(cls, side: str) -> Lexicon:
        """The words dealt to `side`: half of them to train, a third to test, a sixth to dev."""

        def dealt(words: str, inflect: Callable[[str], T]) -> tuple[T, ...]:
            return tuple(inflect(word) for i, word in enumerate(words.split()) if CYCLE[i % len(CYCLE)] == side)

        return cls(
            people=dealt(PEOPLE, _noun),
            animals=dealt(ANIMALS, _noun),
            things=dealt(THINGS, _noun),
            places=dealt(PLACES, _noun),
            intransitive=dealt(INTRANSITIVE, _verb),
            transitive=dealt(TRANSITIVE, _verb),
            handling=dealt(HANDLING, _verb),
        )

    @property
    def nouns(self) -> tuple[Noun, ...]:
        """All nouns."""
        return self.people + self.animals + self.things + self.places

    @property
    def verbs(self) -> tuple[Verb, ...]:
        """All verbs."""
        return self.intransitive + self.transitive + self.handling


def _noun(word: str) -> Noun:
    singular, _, plural = word.partition("/")
    return Noun(singular, plural or _with_s(singular))


def _verb(word: str) -> Verb:
    base, _, past = word.partition("/")
    return Verb(base, _with_s(base), past or _with_ed(base))


def _with_s(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh", "go")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def _with_ed(word: str) -> str:
    if word.endswith("e"):
        return word + "d"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ied"
    return word + "ed"


# ---------------------------------------------------------------- sentences


class _Dice(Random):
    """A seeded stream that gives the same draws in every process and every version of Python."""

    def one(self, items: Sequence[T]) -> T:
        return items[int(self.random() * len(items))]

    def word(self, words: str) -> str:
        return self.one(words.split())

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Fisher and Yates; `Random.shuffle` may change between versions."""
        items = list(items)
        for i in range(len(items) - 1, 0, -1):
            j = int(self.random() * (i + 1))
            items[i], items[j] = items[j], items[i]
        return items


@dataclass(frozen=True)
class _Form:
    """What a sentence has to be; its tense and number are those of the main clause."""

    past: bool
    plural: bool
    words: range = range(4, 21)


class _Writer:
    """Writes one sentence as a list of tokens: words in lower case, and commas. Nouns and verbs vary within it.

    richness: 0 for hardly a word more than needed, 1 for a long sentence.
    """

    def __init__(self, lexicon: Lexicon, dice: _Dice, form: _Form) -> None:
        self.lexicon, self.dice, self.form = lexicon, dice, form
        self.richness = dice.random()
        self.used: set[object] = set()

    def sentence(self) -> list[str]:
        """[opener ,] clause, or a main clause and a subordinate one, in either order."""
        dice, form = self.dice, self.form
        if self.often(0.35):
            # Its tense and number are drawn anew, so that only the main clause tells the label.
            aside = [dice.word(SUBORDINATORS), *self.clause(past=dice.chance(0.5), plural=dice.chance(0.5))]
            main = self.clause(form.past, form.plural)
            return [*aside, ",", *main] if dice.chance(0.5) else [*main, *aside]
        opener = [dice.word(OPENERS), ","] if self.often(0.3) else []
        return opener + self.clause(form.past, form.plural)

    def clause(self, past: bool, plural: bool) -> list[str]:
        person = self.dice.chance(0.7)
        tokens = self.subject(person, plural)
        tokens += self.predicate(person, past, plural)
        if self.often(0.3):
            tokens += ["and", *self.predicate(person, past, plural)]
        return tokens

    def subject(self, person: bool, plural: bool) -> list[str]:
        """A person or an animal, often with a noun of the other number between it and its verb."""
        lexicon, dice = self.lexicon, self.dice
        tokens = self.being(lexicon.people if person else lexicon.animals, plural, NEUTRAL)
        if self.often(0.5):
            if dice.chance(0.4):
                tokens += self.relative_clause(plural)
            elif dice.chance(0.5):
                tokens += [dice.word(WITH), *self.being(lexicon.people + lexicon.animals, not plural, NEUTRAL)]
            else:
                tokens += self.place(not plural, NEUTRAL)
        return tokens

    def relative_clause(self, plural: bool) -> list[str]:
        """ "that chased the dog" or "that the dog chased", in a tense of its own."""
        dice, lexicon = self.dice, self.lexicon
        past, other = dice.chance(0.5), dice.chance(0.5)
        being = self.being(lexicon.people + lexicon.animals, other)
        if dice.chance(0.6):
            return ["that", self.verb(lexicon.transitive, past, plural), *being]
        return ["that", *being, self.verb(lexicon.transitive, past, other)]

    def predicate(self, person: bool, past: bool, plural: bool) -> list[str]:
        dice, lexicon = self.dice, self.lexicon
        tokens = [dice.word(FREQUENCY)] if self.often(0.3) else []
        kind = dice.random()
        if kind < 0.35:
            tokens.append(self.verb(lexicon.intransitive, past, plural))
        elif kind < 0.65 and person:
            tokens += [self.verb(lexicon.handling, past, plural), *self.thing(dice.chance(0.5))]
        else:
            tokens.append(self.verb(lexicon.transitive, past, plural))
            tokens += self.being(lexicon.people + lexicon.animals, dice.chance(0.5))
        if self.often(0.3):
            tokens.append(dice.word(MANNER))
        if self.often(0.6):
            tokens += self.place(dice.chance(0.3))
        return tokens

    def being(self, nouns: tuple[Noun, ...], plural: bool, determiners: str | None = None) -> list[str]:
        return self.noun_phrase(nouns, plural, FOR_BEINGS, determiners)

    def thing(self, plural: bool) -> list[str]:
        return self.noun_phrase(self.lexicon.things, plural, FOR_THINGS)

    def place(self, plural: bool, determiners: str | None = None) -> list[str]:
        return [self.dice.word(NEAR), *self.noun_phrase(self.lexicon.places, plural, FOR_PLACES, determiners)]

    def noun_phrase(
        self, nouns: tuple[Noun, ...], plural: bool, adjectives: tuple[str, str], determiners: str | None = None
    ) -> list[str]:
        dice = self.dice
        described = [dice.word(words) for words, share in zip(adjectives, (0.4, 0.4), strict=True) if self.often(share)]
        noun = self.fresh(nouns)
        words = [*described, noun.plural if plural else noun.singular]
        determiner = dice.word(determiners or (PLURAL if plural else SINGULAR))
        if determiner == "a" and words[0][0] in "aeiou":
            determiner = "an"
        return [determiner, *words]

    def verb(self, verbs: tuple[Verb, ...], past: bool, plural: bool) -> str:
        verb = self.fresh(verbs)
        return verb.past if past else verb.base if plural else verb.third

    def fresh(self, words: tuple[T, ...]) -> T:
        """A word not yet used in the sentence, unless all are."""
        word = self.dice.one([word for word in words if word not in self.used] or words)
        self.used.add(word)
        return word

    def often(self, probability: float) -> bool:
        """Whether to elaborate here: up to twice the probability in a rich sentence, never in a poor one."""
        return self.dice.chance(2 * probability * self.richness)


def _text(tokens: Sequence[str]) -> str:
    """ "Sadly, the dog sleeps." from its tokens."""
    text = " ".join(tokens).replace(" ,", ",")
    return text[0].upper() + text[1:] + "."


def _words(tokens: Sequence[str]) -> int:
    return sum(token != "," for token in tokens)


# ---------------------------------------------------------------- properties


def _shift(tokens: Sequence[str], dice: _Dice) -> list[str]:
    """`tokens` with two neighbours swapped: neither the first word nor a comma, and no pair that also reads well so."""
    places = [i for i in range(1, len(tokens) - 1) if "," not in tokens[i : i + 2] and not _free(*tokens[i : i + 2])]
    i = dice.one(places)
    return [*tokens[:i], tokens[i + 1], tokens[i], *tokens[i + 2 :]]


def _free(one: str, other: str) -> bool:
    """Whether the order of two neighbours is free in English: "often sleeps", "young brave", "quietly and"."""
    return one == other or {_KIND.get(one, one), _KIND.get(other, other)} in (
        {"adjective"},
        {"verb"},  # "the dog that the cat follows fears ..."
        {"adverb", "verb"},
        {"adverb", "and"},
    )


_KIND = (
    {word: "adjective" for words in (*FOR_BEINGS, *FOR_THINGS, *FOR_PLACES) for word in words.split()}
    | {word: "adverb" for words in (FREQUENCY, MANNER) for word in words.split()}
    | {form: "verb" for side in ROWS for verb in Lexicon.of(side).verbs for form in (verb.base, verb.third, verb.past)}
)


def _bin(label: str) -> range:
    low, high = label.split("-")
    return range(int(low), int(high) + 1)


@dataclass(frozen=True)
class Property:
    """A set of labels, what a label asks of the sentence, and what it does to the sentence once written."""

    labels: tuple[str, ...]
    form: Callable[[_Form, str], _Form] = lambda form, label: form
    finish: Callable[[list[str], str, _Dice], list[str]] = lambda tokens, label, dice: tokens


PROPERTIES = {
    "tense": Property(("past", "present"), form=lambda form, label: replace(form, past=label == "past")),
    "subject_number": Property(
        ("plural", "singular"), form=lambda form, label: replace(form, plural=label == "plural")
    ),
    "sentence_length": Property(
        ("5-8", "9-12", "13-16", "17-20", "21-24"), form=lambda form, label: replace(form, words=_bin(label))
    ),
    "bigram_shift": Property(
        ("original", "shifted"),
        finish=lambda tokens, label, dice: _shift(tokens, dice) if label == "shifted" else tokens,
    ),
}


def load(rest: str, options: SourceOptions) -> Loaded:
    """The task of one property, or with ``all`` those of all four: 1,500 train, 500 dev and 1,000 test sentences each.

    Raises InputError for an unknown property.
    """
    name = rest.replace("-", "_")
    if name not in (*PROPERTIES, "all"):
        raise unknown("--task", "property", rest, [*PROPERTIES, "all"])
    tasks = [_task(each) for each in (PROPERTIES if name == "all" else [name])]
    return Loaded(tasks, rows=sum(len(task.texts) for task in tasks))


def _task(name: str) -> Task:
    texts, labels, split = [], [], []
    for side in ROWS:
        for label, text in _rows(name, side):
            texts.append(text)
            labels.append(label)
            split.append(side)
    return Task(f"grammar:{name}", texts, np.array(labels), split=np.array(split))


def _rows(name: str, side: str) -> Iterator[tuple[str, str]]:
    """(label, sentence) for every row of one side; no sentence is written twice, shifted or not."""
    asked, lexicon, dice = PROPERTIES[name], Lexicon.of(side), _Dice(f"{name} {side}")
    written: set[tuple[str, ...]] = set()
    for label in dice.shuffled([asked.labels[i % len(asked.labels)] for i in range(ROWS[side])]):
        form = asked.form(_Form(past=dice.chance(0.5), plural=dice.chance(0.5)), label)
        while True:
            tokens = _Writer(lexicon, dice, form).sentence()
            if _words(tokens) in form.words and tuple(tokens) not in written:
                break
        written.add(tuple(tokens))
        yield label, _text(asked.finish(tokens, label, dice))
