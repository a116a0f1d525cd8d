"""The vocabulary of the built-in sentences: lemmas, inflection, and assignment to the sides of a split.

1. A list holds the lemmas of one kind. An irregular form follows a slash: the plural of a noun, the past of a verb.
2. `deal_lexicon` divides every list among train, test and dev, so that no noun or verb form crosses a split.
   Adjectives, adverbs and function words do not reveal tense or number, and are shared.
3. `build_targets` gives the target words of the property word_content, which are separate and occur on every side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

NOUNS = {
    "people": """farmer woman/women teacher sailor child/children doctor nurse king man/men soldier lawyer girl priest
        student thief/thieves artist judge queen merchant boy pilot poet waiter widow tailor writer actor captain
        clerk cousin dancer hunter knight lady mayor monk fisherman/fishermen officer prince stranger uncle
        villager""",
    "animals": """dog cat wolf/wolves horse goose/geese mouse/mice fox rabbit goat donkey eagle monkey lion squirrel pig
        cow owl camel tiger elephant crow parrot swan lizard""",
    "things": """lamp box knife/knives chair table mirror basket bottle shelf/shelves clock key ladder blanket guitar
        kettle picture pillow plate rope spoon sword violin wheel window bicycle candle carpet statue""",
    "places": """river barn library station school bridge church castle market tower forest museum hotel temple lake
        palace chapel cottage factory orchard hospital lighthouse fountain prison""",
    "food": """pie potato/potatoes cake sausage pancake carrot loaf/loaves onion tomato/tomatoes mushroom pumpkin
        dumpling omelet turnip pizza pudding muffin pastry""",
    "writings": """letter poem story novel speech essay report diary book chapter article ballad legend lecture
        sermon pamphlet fable memoir""",
    "clothes": """coat shirt jacket dress cloak skirt robe blouse sweater gown vest tunic cardigan waistcoat apron
        jersey cape kimono""",
    "vehicles": """truck bus/buses wagon car van tractor taxi lorry carriage jeep ambulance limousine hearse minibus
        sledge tank cart scooter""",
}
VERBS = {
    # Intransitive and transitive verbs of people and animals; verbs of saying, of people only.
    "intransitive": """sleep/slept wait rest fall/fell arrive run/ran hide/hid shiver swim/swam wander sit/sat escape
        stand/stood vanish rise/rose jump freeze/froze hesitate come/came tremble speak/spoke limp drink/drank stumble
        return awake/awoke disappear go/went play linger""",
    "transitive": """see/saw follow hear/heard watch meet/met chase find/found avoid lead/led ignore catch/caught fear
        know/knew trust bite/bit greet fight/fought frighten leave/left approach seek/sought protect choose/chose
        recognize lose/lost remember forget/forgot notice feed/fed help understand/understood love keep/kept obey push
        admire""",
    "saying": """say/said believe think/thought claim swear/swore insist suspect announce admit hope explain declare
        whisper boast dream complain""",
    # Verbs of people, each with one kind of object.
    "handling": """buy/bought carry sell/sold clean break/broke paint build/built repair make/made polish steal/stole
        open draw/drew lift bring/brought borrow throw/threw collect take/took examine send/sent wash tear/tore measure
        lend/lent deliver shake/shook inspect sweep/swept wrap/wrapped bend/bent drop/dropped hang/hung use hold/held
        describe""",
    "eating": "eat/ate cook chew bake swallow taste devour slice nibble season munch gobble",
    "telling": """write/wrote translate publish rewrite/rewrote recite edit quote revise memorize dictate summarize
        cite""",
    "wearing": "wear/wore iron sew button weave/wove knit/knitted stitch hem unbutton embroider darn launder",
    "driving": "drive/drove park ride/rode steer overtake/overtook tow board refuel crash maneuver hijack accelerate",
}
# Kind of verb -> kind of its object. Only `handling` also sounds right with other objects.
OBJECTS = {"handling": "things", "eating": "food", "telling": "writings", "wearing": "clothes", "driving": "vehicles"}
STRICT = {verbs: nouns for verbs, nouns in OBJECTS.items() if verbs != "handling"}

TARGETS = {
    "people": "baker beggar butcher gardener plumber sheriff",
    "animals": "badger beaver hamster hedgehog penguin raven",
    "things": "barrel hammer lantern pencil ribbon trumpet",
    "places": "garden harbor stadium theater valley village",
    "intransitive": "sneeze whistle yawn",
    "transitive": "hug kick/kicked rescue",
}

MASCULINE = "king man boy monk prince uncle fisherman waiter knight priest"
FEMININE = "queen woman girl lady widow nurse"

# Adjectives of the first list precede those of the second: "the proud old king".
FOR_BEINGS = "tall small clever brave lazy gentle proud nervous friendly strange lonely happy", "old young"
ADJECTIVES = {
    "people": FOR_BEINGS,
    "animals": FOR_BEINGS,
    "things": ("small large heavy expensive cheap beautiful strange", "old new wooden red green blue white black"),
    "places": ("small large famous quiet busy distant beautiful empty", "old new white gray"),
    "food": ("small large fresh cheap expensive delicious strange", "warm cold"),
    "writings": ("long short famous boring secret beautiful strange", "old new"),
    "clothes": ("large small cheap expensive elegant beautiful", "old new red green blue white black"),
    "vehicles": ("small large heavy cheap expensive slow empty", "old new red green blue white black"),
}

OPENERS = "sometimes fortunately sadly surprisingly luckily indeed apparently"
FREQUENCY = "often always never rarely usually seldom"
MANNER = "quietly slowly carefully suddenly calmly eagerly bravely silently patiently happily"
NEUTRAL = "the the the the the the the the the the the the my your our their his her"  # for singular and plural
SINGULAR = NEUTRAL + " a a a every this"
PLURAL = NEUTRAL + " some two three many these"
NEAR = "near near behind behind beside outside opposite around"
WITH = "with near behind beside"
SUBORDINATORS = "because although whereas while"
COORDINATORS = "and but so yet"
DISCOURSE = "then later afterwards therefore soon"
TIME_MODIFIERS = "shortly long just right"  # before or after

# Sides of consecutive lemmas; every side gets irregular verbs, which are at even positions.
CYCLE = ["train", "train", "test", "test", "dev", "train", "train", "test", "test", "train", "train", "dev"]


@dataclass(frozen=True, eq=False)
class Lemma:
    """A noun or verb. forms: "singular" and "plural"; or "base" (they chase), "third" (she chases) and "past"."""

    name: str
    kind: str
    forms: Mapping[str, str]


Lexicon = Mapping[str, tuple[Lemma, ...]]


@cache
def deal_lexicon(side: str) -> Lexicon:
    """The nouns and verbs of a side, by kind: half of them in train, a third in test, a sixth in dev."""
    return {
        kind: tuple(_parse_lemma(word, kind) for i, word in enumerate(words.split()) if CYCLE[i % len(CYCLE)] == side)
        for kind, words in (NOUNS | VERBS).items()
    }


@cache
def build_targets() -> Lexicon:
    """The target words of word_content, by kind; the lexicon of no side contains them."""
    return {kind: tuple(_parse_lemma(word, kind) for word in words.split()) for kind, words in TARGETS.items()}


def _parse_lemma(word: str, kind: str) -> Lemma:
    name, _, irregular = word.partition("/")
    if kind in NOUNS:
        return Lemma(name, kind, {"singular": name, "plural": irregular or _add_s(name)})
    return Lemma(name, kind, {"base": name, "third": _add_s(name), "past": irregular or _add_ed(name)})


def _add_s(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh", "go")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def _add_ed(word: str) -> str:
    if word.endswith("e"):
        return word + "d"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ied"
    return word + "ed"
