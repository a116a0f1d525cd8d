"""The words of the built-in sentences: what they are, how they are inflected, who may see them.

1. A list gives the lemmas of one kind. A form that the rules of spelling do not give follows a slash: the plural of a
   noun, the past of a verb.
2. `lexicon` deals every list to train, test and dev, so that no form of a noun or a verb crosses a split. Adjectives,
   adverbs and function words say nothing about time or number, and are shared.
3. `targets` are words of their own, on every side: those that the property word_content asks about.
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
    # What anyone does; what anyone does to someone; what people do with words.
    "intransitive": """sleep/slept wait rest fall/fell arrive run/ran hide/hid shiver swim/swam wander sit/sat escape
        stand/stood vanish rise/rose jump freeze/froze hesitate come/came tremble speak/spoke limp drink/drank stumble
        return awake/awoke disappear go/went play linger""",
    "transitive": """see/saw follow hear/heard watch meet/met chase find/found avoid lead/led ignore catch/caught fear
        know/knew trust bite/bit greet fight/fought frighten leave/left approach seek/sought protect choose/chose
        recognize lose/lost remember forget/forgot notice feed/fed help understand/understood love keep/kept obey push
        admire""",
    "saying": """say/said believe think/thought claim swear/swore insist suspect announce admit hope explain declare
        whisper boast dream complain""",
    # What people do to things of one kind.
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
# What the verbs that ask for one kind of thing ask for. Only `handling` leaves a wrong thing sounding right.
OBJECTS = {
    "handling": "things",
    "eating": "food",
    "telling": "writings",
    "wearing": "clothes",
    "driving": "vehicles",
}
STRICT = {verbs: nouns for verbs, nouns in OBJECTS.items() if verbs != "handling"}

TARGETS = {
    "people": "baker beggar butcher gardener plumber sheriff",
    "animals": "badger beaver hamster hedgehog penguin raven",
    "things": "barrel hammer lantern pencil ribbon trumpet",
    "places": "garden harbor stadium theater valley village",
    "intransitive": "sneeze whistle yawn",
    "transitive": "hug kick/kicked rescue",
}

HE = "king man boy monk prince uncle fisherman waiter knight priest"
SHE = "queen woman girl lady widow nurse"

# An adjective of the first list stands before one of the second: "the proud old king".
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
NEUTRAL = "the the the the the the the the the the the the my your our their his her"  # of one and of many alike
SINGULAR = NEUTRAL + " a a a every this"
PLURAL = NEUTRAL + " some two three many these"
NEAR = "near near behind behind beside outside opposite around"
WITH = "with near behind beside"
SUBORDINATORS = "because although whereas while"
COORDINATORS = "and but so yet"
DISCOURSE = "then later afterwards therefore soon"
APART = "shortly long just right"  # before or after

# How nouns and verbs are dealt, so that every side gets some of the irregular verbs, which stand at even places.
CYCLE = ["train", "train", "test", "test", "dev", "train", "train", "test", "test", "train", "train", "dev"]


@dataclass(frozen=True, eq=False)
class Lemma:
    """A noun ("singular", "plural") or a verb ("base": they chase, "third": she chases, "past") and its forms."""

    name: str
    kind: str
    forms: Mapping[str, str]


Lexicon = Mapping[str, tuple[Lemma, ...]]


@cache
def lexicon(side: str) -> Lexicon:
    """The nouns and verbs dealt to a side, by kind: half of them to train, a third to test, a sixth to dev."""
    return {
        kind: tuple(_lemma(word, kind) for i, word in enumerate(words.split()) if CYCLE[i % len(CYCLE)] == side)
        for kind, words in (NOUNS | VERBS).items()
    }


@cache
def targets() -> Lexicon:
    """The words that word_content asks about, by kind; they stand in no lexicon of a side."""
    return {kind: tuple(_lemma(word, kind) for word in words.split()) for kind, words in TARGETS.items()}


def _lemma(word: str, kind: str) -> Lemma:
    name, _, irregular = word.partition("/")
    if kind in NOUNS:
        return Lemma(name, kind, {"singular": name, "plural": irregular or _with_s(name)})
    return Lemma(name, kind, {"base": name, "third": _with_s(name), "past": irregular or _with_ed(name)})


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
