"""``conllu:PATH:PROPERTY``: sentence properties out of any Universal Dependencies treebank, in any language.

1. `treebank` reads the files and checks every tree.
2. A property gives every sentence a row, or the reason why it has none. Ten of them are SentEval's (Conneau et al.
   2018, https://aclanthology.org/P18-1198), rebuilt from heads, relations, features and word order; three more are the
   root's part of speech, its mood and its voice.
3. `_chosen` decides which classes there are and which rows stay: as many of every class on every side.

The sides are those of the treebank's files where their names tell them, but not for what single words show. Word forms
that do not cross a split and the treebank's own sides exclude each other: tense, mood, voice and the two numbers are
split anew, with the form as the group of a row. So is word_content, where the word is the label and cannot be kept
apart, and where the small sides of a treebank would leave few of its many classes.

A sentence stands once in a task, corrupted or as it is, so that neither can be across a split from the other. Both
kinds are written by the same hand, and a sentence that cannot be corrupted is in neither.

Every draw is decided by the property and the text alone: files and sentences may come in any order, and no seed moves
it.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

from clsprobe.analysis.sources import Loaded, SourceOptions
from clsprobe.analysis.sources.lines import find
from clsprobe.analysis.sources.tables import Texts, shown
from clsprobe.analysis.sources.treebank import Sentence, Token, Treebank, likeness, read_treebank, same, written
from clsprobe.probes.errors import InputError, unknown
from clsprobe.probes.tasks.task import Task

FLOOR = 30  # sentences that a class needs
BINS = ((5, 8), (9, 12), (13, 16), (17, 20), (21, 25), (26, 28))  # words, SentEval's sentence lengths
COMMON = 300  # sentences with a word of word_content, at most: mid-frequency words
MOST_WORDS, MOST_SEQUENCES = 1000, 19  # SentEval's numbers of classes; a twentieth sequence is OTHER
TRIES = 100  # draws of a word for one place of odd_man_out


def load(rest: str, options: SourceOptions) -> Loaded:
    """The task of one property, or with ``all`` those of every property that the treebank supports.

    Every sentence is accounted for once per property. Raises InputError, with ``file:line``, for a file that is no
    sound CoNLL-U, and for a property that the treebank cannot support.
    """
    where, _, asked = rest.rpartition(":")
    if not where:
        raise InputError("--task", f"'conllu:{rest}' names no property", f"As in conllu:{rest or 'PATH'}:all")
    name = asked.replace("-", "_")
    if name not in (*PROPERTIES, "all"):
        raise unknown("--task", "property", asked, [*PROPERTIES, "all"])
    path = find(where, "conllu:en_ewt-ud-train.conllu:all")
    bank, notes = read_treebank(path)
    stem = Path(os.path.abspath(path)).name
    stem = stem if path.is_dir() else re.sub(r"(\.conllu)?(\.gz)?$", "", stem, flags=re.IGNORECASE)
    if name != "all":
        task, left_out = _task(name, stem, bank)
        return Loaded([task], bank.rows, left_out, notes + _carved([task], bank), words=bank.words)
    tasks: list[Task] = []
    lacking, left_out = list[str](), {}
    for each in PROPERTIES:
        try:
            task, gone = _task(each, stem, bank)
        except InputError as error:
            lacking.append(error.what)
            continue
        tasks.append(task)
        left_out |= {f"{each}: {reason}": rows for reason, rows in gone.items()}
    if not tasks:
        raise InputError(stem, f"no property can be built; {lacking[0]}", "Give a larger treebank")
    return Loaded(tasks, len(tasks) * bank.rows, left_out, notes + _carved(tasks, bank) + lacking, words=bank.words)


def _carved(tasks: Sequence[Task], bank: Treebank) -> list[str]:
    names = [task.label for task in tasks if PROPERTIES[task.label].carved]
    return [f"{', '.join(names)}: split anew, not by the treebank's own files"] if names and bank.split else []


# ----------------------------------------------------------------------------------------------------------- properties


class _LeftOut(Exception):
    """Why a sentence has no row in a task."""


class _Row(NamedTuple):
    """A sentence in a task.

    text: where it is not the sentence's own. form: the word that must not cross a split. stratum: what the classes are
    balanced within.
    """

    label: str
    text: str = ""
    form: str = ""
    stratum: int = 0


Rows = list[_Row | str]  # for every sentence its row, or why it has none


@dataclass(frozen=True)
class Property:
    """How the rows of a task come about.

    carved: not split by the treebank's files. ordered: labels are whole numbers, of which neighbours are kept.
    """

    rows: Callable[[Treebank], Rows]
    carved: bool = False
    ordered: bool = False


def _each(row: Callable[[Sentence], _Row]) -> Callable[[Treebank], Rows]:
    """A property that is seen in one sentence."""

    def rows(bank: Treebank) -> Rows:
        return [_tried(row, sentence) for sentence in bank.sentences]

    return rows


def _tried(row: Callable[..., _Row], *arguments: object) -> _Row | str:
    try:
        return row(*arguments)
    except _LeftOut as reason:
        return str(reason)


def _corrupted(label: str, corrupt: Callable[[Sentence, Treebank, Random], list[Token]]) -> Callable[[Treebank], Rows]:
    """A property of which half the sentences are changed by `corrupt`: half of those that it can change."""

    def row(sentence: Sentence, bank: Treebank) -> _Row:
        text = written(corrupt(sentence, bank, Random(f"{label} {sentence.text}")))
        if same(text) in bank.texts:
            raise _LeftOut("corrupted, it is a sentence all the same")
        return _Row(label, text)

    def rows(bank: Treebank) -> Rows:
        found = [_tried(row, sentence, bank) for sentence in bank.sentences]
        ready = [i for i, each in enumerate(found) if isinstance(each, _Row)]
        ready.sort(key=lambda i: (bank.sides[i], _order(label, bank.sentences[i].text)))
        for i in ready[::2]:
            found[i] = _Row("original", written(bank.sentences[i].tokens()))
        return found

    return rows


def _order(*parts: str) -> int:
    """A number that is as good as drawn, and always the same for the same words."""
    return int.from_bytes(blake2b("\n".join(parts).encode(), digest_size=8).digest(), "big")


def _length(s: Sentence) -> _Row:
    place = bisect_left(BINS, len(s.forms), key=lambda ends: ends[1])
    if place == len(BINS):
        raise _LeftOut(f"longer than {BINS[-1][1]} words")
    low, high = BINS[place]
    if len(s.forms) < low:
        raise _LeftOut(f"shorter than {low} words")
    return _Row(f"{low}-{high}")


def _tree_depth(s: Sentence) -> _Row:
    return _Row(str(s.depth), stratum=len(s.forms))


def _word_content(bank: Treebank) -> Rows:
    """Lemmas of content words that at most COMMON sentences hold, in sentences that hold just one of them, once."""
    contents = [
        [
            lemma
            for lemma, upos in zip(s.lemmas, s.upos, strict=True)
            if upos in ("NOUN", "VERB", "ADJ", "ADV") and lemma != "_"
        ]
        for s in bank.sentences
    ]
    times = Counter(lemma for lemmas in contents for lemma in set(lemmas))
    words = {lemma for lemma, n in times.items() if FLOOR <= n <= COMMON}
    while True:
        held = [[lemma for lemma in lemmas if lemma in words] for lemmas in contents]
        alone = Counter(lemmas[0] for lemmas in held if len(lemmas) == 1)
        line = sorted(words, key=lambda lemma: (alone[lemma], lemma))
        rare = sum(alone[lemma] < FLOOR for lemma in line)
        if not rare and len(words) <= MOST_WORDS:
            break
        # Not all at once: where one word leaves, sentences with it and another one become the other's.
        words -= set(line[: max(1, rare // 4, (len(words) - MOST_WORDS) // 2)])
    reasons = ("holds none of the words", "", "holds several of the words, or one twice")
    return [_Row(lemmas[0]) if len(lemmas) == 1 else reasons[min(len(lemmas), 2)] for lemmas in held]


def _top_constituents(bank: Treebank) -> Rows:
    """What hangs on the root, in order, without punctuation: "nsubj root obj"; rarer sequences are OTHER."""
    sequences = []
    for s in bank.sentences:
        root = s.root
        parts = ["root" if i == root else s.relation(i) for i in sorted([root, *s.children(root)])]
        sequences.append(" ".join(part for part in parts if part != "punct"))
    times = Counter(sequences)
    kept = set(sorted(times, key=lambda each: (-times[each], each))[:MOST_SEQUENCES])
    return [_Row(each if each in kept else "OTHER") for each in sequences]


def _root_pos(s: Sentence) -> _Row:
    if (upos := s.upos[s.root]) == "_":
        raise _LeftOut("the root has no part of speech")
    return _Row(upos)


def _of_verb(feature: str, names: Mapping[str, str] | None = None) -> Callable[[Sentence], _Row]:
    """A feature of the finite verb that is the root; `names` are the values there are and what they are called."""

    def row(s: Sentence) -> _Row:
        root = s.root
        if s.upos[root] not in ("VERB", "AUX"):
            raise _LeftOut("the root is no verb")
        if feature != "Voice" and s.features[root].get("VerbForm", "Fin") != "Fin":  # "has come" is no past tense
            raise _LeftOut("the root is not finite")
        return _Row(_value(s, root, feature, names), form=s.forms[root].casefold())

    return row


def _number_of(relation: str) -> Callable[[Sentence], _Row]:
    """Singular or plural of the noun that is the root's only subject or object.

    Nouns only, as in SentEval: pronouns are few forms, and names are hardly ever plural.
    """
    what = {"nsubj": "subject", "obj": "object"}[relation]

    def row(s: Sentence) -> _Row:
        found = s.children(s.root, relation)
        if len(found) != 1:
            raise _LeftOut(f"no {what}" if not found else f"several {what}s")
        if s.upos[found[0]] != "NOUN":
            raise _LeftOut(f"the {what} is no noun")
        if s.children(found[0], "conj"):
            raise _LeftOut(f"the {what} is coordinated")
        names = {"Sing": "singular", "Plur": "plural"}
        return _Row(_value(s, found[0], "Number", names), form=s.forms[found[0]].casefold())

    return row


def _value(s: Sentence, word: int, feature: str, names: Mapping[str, str] | None) -> str:
    value = s.features[word].get(feature)
    if value is None:
        raise _LeftOut(f"no feature {feature}")
    if names is None:
        return value
    if value not in names:
        raise _LeftOut(f"{feature} is neither {' nor '.join(names)}")
    return names[value]


def _shifted(s: Sentence, bank: Treebank, dice: Random) -> list[Token]:
    """Two neighbours change places: neither the first token nor punctuation, and not two of the same form."""
    tokens = s.tokens()
    spaced = any(token.space for token in tokens[:-1])  # else a script without spaces
    places = [
        i
        for i in range(1, len(tokens) - 1)
        if s.is_word(tokens[i]) and s.is_word(tokens[i + 1])
        if tokens[i].form.casefold() != tokens[i + 1].form.casefold()
        if not spaced or _stands_free(tokens, i)
    ]
    if not places:
        raise _LeftOut("no two words to swap")
    i = _drawn(places, dice)
    one, other = tokens[i : i + 2]
    return [*tokens[:i], other._replace(space=one.space), one._replace(space=other.space), *tokens[i + 2 :]]


def _stands_free(tokens: Sequence[Token], i: int) -> bool:
    """Whether the tokens at i and i + 1 are glued to nothing, but for a comma and the like: no part of "check-in"."""
    gaps = [token.space for token in tokens[:-1]] + [True, True]
    return gaps[i - 1] and gaps[i] and (gaps[i + 1] or gaps[i + 2])


def _odd(s: Sentence, bank: Treebank, dice: Random) -> list[Token]:
    """A noun or verb gives way to another one with the same features, as frequent, in bigrams as frequent.

    Frequencies are those of the treebank without this sentence's own word, by powers of two.
    """
    tokens, forms = s.tokens(), [*map(str.casefold, s.forms), ""]
    places = [
        i
        for i, token in enumerate(tokens)
        if i and token.first == token.last and s.upos[token.first] in ("NOUN", "VERB") and s.is_word(token)
    ]
    if not places:
        raise _LeftOut("no noun or verb after the first word")
    for i in sorted(places, key=lambda _: dice.random()):
        word = tokens[i].first
        before, form, after = forms[word - 1 : word + 2]
        seen = [(bank.bigrams[pair] - 1).bit_length() for pair in ((before, form), (form, after))]
        alike = bank.alike.get(likeness(s, word, bank.forms[form] - 1), [])
        for _ in range(min(TRIES, 2 * len(alike))):
            other, lemma = _drawn(alike, dice)
            odd = other.casefold()
            if (
                lemma != s.lemmas[word]
                and odd not in forms
                and (before, odd[:1]) in bank.contacts
                and [bank.bigrams[pair].bit_length() for pair in ((before, odd), (odd, after))] == seen
            ):
                return [*tokens[:i], tokens[i]._replace(form=other), *tokens[i + 1 :]]
    raise _LeftOut("no other word fits")


def _inverted(s: Sentence, bank: Treebank, dice: Random) -> list[Token]:
    """ "A, and B." becomes "B, and A.": the clauses of the root and its only conjunct, joined by a conjunction."""
    root, conjuncts = s.root, s.children(s.root, "conj")
    if len(conjuncts) != 1 or not _two_clauses(s, root, conjuncts[0]):
        raise _LeftOut("not two coordinated clauses")
    inside = _subtree(s, conjuncts[0])
    start, end = inside[0], inside[-1] + 1
    if start <= root or len(inside) != end - start or any(s.upos[i] != "PUNCT" for i in range(end, len(s.forms))):
        raise _LeftOut("the clauses do not stand one after the other")
    second = start  # where the second clause begins, after its conjunction
    while second < conjuncts[0] and s.heads[second] == conjuncts[0] + 1 and s.relation(second) in ("cc", "punct"):
        second += 1
    if "cc" not in map(s.relation, range(start, second)):
        raise _LeftOut("no conjunction between the clauses")
    if s.relation(0) == "cc" or s.upos[0] == "PUNCT":
        raise _LeftOut("opens with a conjunction or punctuation")
    if any(_PAIRED.fullmatch(form) for form in s.forms):
        raise _LeftOut("holds quotes or brackets")
    while start - 1 > root and s.upos[start - 1] == "PUNCT":
        start -= 1
    while end - 1 > conjuncts[0] and s.upos[end - 1] == "PUNCT":
        end -= 1
    tokens = s.tokens()
    cuts = {token.first: i for i, token in enumerate(tokens)} | {len(s.forms): len(tokens)}
    if not {start, second, end} <= cuts.keys():
        raise _LeftOut("a multi-word token spans the conjunction")
    i, j, k = cuts[start], cuts[second], cuts[end]
    a, joint, b, tail = tokens[:i], tokens[i:j], tokens[j:k], tokens[k:]
    a[-1], b[-1] = a[-1]._replace(space=b[-1].space), b[-1]._replace(space=a[-1].space)
    if a[0].form[:1].isupper():
        a[0] = a[0]._replace(form=_small(a[0].form, s.lemmas[0], s.upos[0]))
        b[0] = b[0]._replace(form=_capital(b[0].form, bank.turkic))
    return [*b, *joint, *a, *tail]


_PAIRED = re.compile(r"[\"'`“”„‟«»‹›‘’‚「」『』()\[\]{}<>（）【】《》]+|-[LR][RSC]B-")


def _two_clauses(s: Sentence, *heads: int) -> bool:
    """Whether both have a subject; or, as in imperatives and without pronouns, neither has, and both are finite."""
    subjects = [bool(s.children(head, "nsubj", "csubj", "expl")) for head in heads]
    finite = all(s.upos[head] == "VERB" and s.features[head].get("VerbForm", "Fin") == "Fin" for head in heads)
    return all(subjects) or (not any(subjects) and finite)


def _subtree(s: Sentence, top: int) -> list[int]:
    """A word and everything below it, in order."""
    inside, ready = {top}, [top]
    while ready:
        below = s.children(ready.pop())
        inside.update(below)
        ready += below
    return sorted(inside)


def _small(form: str, lemma: str, upos: str) -> str:
    """A word that stood first, within a sentence: names, German nouns, "I" and "NATO" keep their capital."""
    if upos == "PROPN" or not lemma[:1].islower() or any(map(str.isupper, form[1:])):
        return form
    first = lemma[0] if form[0] in "Iİ" and lemma[0] in "iı" else form[0].lower()
    return first[0] + form[1:]


def _capital(form: str, turkic: bool) -> str:
    first = "İ" if turkic and form[0] == "i" else form[0].upper()
    return (first if len(first) == 1 else form[0]) + form[1:]


def _drawn(items: Sequence[Any], dice: Random) -> Any:
    return items[int(dice.random() * len(items))]


PROPERTIES = {
    "sentence_length": Property(_each(_length)),
    "word_content": Property(_word_content, carved=True),
    "tree_depth": Property(_each(_tree_depth), ordered=True),
    "top_constituents": Property(_top_constituents),
    "bigram_shift": Property(_corrupted("shifted", _shifted)),
    "tense": Property(_each(_of_verb("Tense", {"Past": "past", "Pres": "present"})), carved=True),
    "subject_number": Property(_each(_number_of("nsubj")), carved=True),
    "object_number": Property(_each(_number_of("obj")), carved=True),
    "odd_man_out": Property(_corrupted("replaced", _odd)),
    "coordination_inversion": Property(_corrupted("inverted", _inverted)),
    "root_pos": Property(_each(_root_pos)),
    "mood": Property(_each(_of_verb("Mood")), carved=True),
    "voice": Property(_each(_of_verb("Voice")), carved=True),
}


# ------------------------------------------------------------------------------------------------------------ selection


def _task(name: str, stem: str, bank: Treebank) -> tuple[Task, dict[str, int]]:
    """The task of a property, and why how many sentences are not in it. Raises InputError where there is no task."""
    asked = PROPERTIES[name]
    found = asked.rows(bank)
    left_out = Counter(row for row in found if isinstance(row, str))
    rows = [(i, row) for i, row in enumerate(found) if isinstance(row, _Row)]
    every = [""] if asked.carved else sorted(set(bank.sides))
    sides = ["" if asked.carved else bank.sides[i] for i, _ in rows]
    keys = [_order(name, bank.sentences[i].text) for i, _ in rows]
    kept, rare = _chosen([row for _, row in rows], np.searchsorted(every, sides), len(every), keys, asked.ordered)
    if not kept.any():
        classes = Counter(row.label for _, row in rows).most_common(5)
        told = ", ".join(f"{shown(label)} {n:,}" for label, n in classes) or "none"
        where = " and some on every side" if bank.split and not asked.carved else ""
        why = "".join(f"; {n:,} sentences: {reason}" for reason, n in left_out.most_common(1))
        what = f"{name} needs two classes with {FLOOR} sentences{where}, found: {told}{why}"
        raise InputError(stem, what, "Take another property, or a larger treebank")
    left_out["class with too few sentences"] = rare
    left_out["left out to balance the classes"] = len(rows) - rare - int(kept.sum())
    left_out["repeats another sentence"] = bank.rows - len(bank.sentences)
    texts, chosen = Texts(), [(*row, side) for row, side, keep in zip(rows, sides, kept, strict=True) if keep]
    for i, row, _ in chosen:
        texts.append(row.text or bank.sentences[i].text)
    forms = [row.form for _, row, _ in chosen]
    task = Task(
        f"conllu:{stem}:{name}",
        texts.finish(),
        np.array([row.label for _, row, _ in chosen]),
        split=np.array([side for *_, side in chosen]) if bank.split and not asked.carved else None,
        groups=np.unique(forms, return_inverse=True)[1] if any(forms) else None,
    )
    return task, {reason: n for reason, n in left_out.items() if n}


def _chosen(
    rows: Sequence[_Row], side: np.ndarray, sides: int, keys: Sequence[int], ordered: bool
) -> tuple[np.ndarray, int]:
    """(row,) which rows stay, as many of each class on every side and in every stratum; and how many are of no class.

    Among the commonest K classes, or K neighbours of `ordered` ones, the K that gives the labels most bits: rows times
    log2 K. None is chosen where no two classes have FLOOR rows each, and some on every side. side: (row,) of `sides`.
    """
    if not rows:
        return np.zeros(0, bool), 0
    names, label = np.unique([row.label for row in rows], return_inverse=True)
    stratum = np.unique([row.stratum for row in rows], return_inverse=True)[1]
    counts = np.zeros((len(names), sides, stratum.max() + 1), np.int64)
    np.add.at(counts, (label, side, stratum), 1)
    if ordered:
        line, starts = np.argsort(names.astype(int)), range(len(names))
    else:
        share = counts.sum(2) / np.maximum(counts.sum((0, 2)), 1)
        line, starts = np.argsort(-share.min(1), kind="stable"), range(1)
    best, quota, chosen = 0.0, counts[0] * 0, line[:0]  # quota (side, stratum): the rows of every class there
    for first in starts:
        least = counts[line[first]]
        for last in range(first + 1, len(line)):
            least, k = np.minimum(least, counts[line[last]]), last - first + 1
            if least.sum() < FLOOR or not least.sum(1).all():
                break
            if (bits := least.sum() * k * np.log2(k)) > best:
                best, quota, chosen = bits, least, line[first : last + 1]
    cell = np.ravel_multi_index((label, side, stratum), counts.shape)
    queue = np.lexsort((np.array(keys, np.uint64), cell))
    starts_of = np.searchsorted(cell[queue], cell[queue])
    place = np.empty(len(rows), np.int64)
    place[queue] = np.arange(len(rows)) - starts_of
    among = np.isin(label, chosen)
    return among & (place < quota[side, stratum]), int((~among).sum())
