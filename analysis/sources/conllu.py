"""``conllu:PATH:PROPERTY``: sentence properties from any Universal Dependencies treebank, in any language.

1. `treebank` reads the files and checks every tree.
2. A property gives every sentence a row, or the reason why it has none, such as a column that the property reads and
   the sentence lacks. Ten of them are SentEval's (Conneau et al. 2018, https://aclanthology.org/P18-1198), rebuilt from
   heads, relations, features and word order; the others are the root's part of speech, mood and voice.
3. `_balance_rows` selects the classes and an equal number of rows of each class on every side.

The sides come from the treebank's file names, except for properties that a single word reveals (tense, mood, voice,
the two numbers): they are split anew, with the word form as the group of a row, since the treebank's sides share word
forms. word_content is split anew as well: its label is the word itself, and the small sides of a treebank would leave
few of its many classes.

A sentence occurs once in a task, either original or corrupted, so that the two never end up on different sides. Both
are written by the same function, and sentences that cannot be corrupted are left out.

Random draws depend on the property and the text only, not on the order of files and sentences, nor on a seed.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

from clsprobe.analysis.sources import Loaded, MinimalPairs, SourceOptions
from clsprobe.analysis.sources.inflection import Inflector
from clsprobe.analysis.sources.lines import find_path
from clsprobe.analysis.sources.treebank import Sentence, Token, Treebank, normalize, read_treebank, render, word_key
from clsprobe.probes.errors import InputError, quote, unknown
from clsprobe.probes.tasks.places import Places, Table
from clsprobe.probes.tasks.task import Task
from clsprobe.probes.tasks.texts import Texts

FLOOR = 30  # minimum number of sentences of a class
BINS = ((5, 8), (9, 12), (13, 16), (17, 20), (21, 25), (26, 28))  # words; the sentence lengths of SentEval
COMMON = 300  # maximum number of sentences with a word of word_content: mid-frequency words
MOST_WORDS, MOST_SEQUENCES = 1000, 19  # SentEval's numbers of classes; a twentieth sequence is OTHER
TRIES = 100  # draws of a word for one place of odd_man_out


def load(rest: str, options: SourceOptions) -> Loaded:
    """Load the task of one property, or with ``all`` of every property that the treebank supports.

    Every sentence counts once per property, as a row or as left out. Raises InputError, with ``file:line``, for invalid
    CoNLL-U, and for a property that the treebank does not support.
    """
    name, stem, bank, notes = _read_spec(rest, options)
    if name != "all":
        if missing := PROPERTIES[name].find_missing(bank):
            others = [key for key, prop in PROPERTIES.items() if not prop.find_missing(bank)]
            mend = f"Take a property that does not need it ({', '.join(others)}), or a treebank that has it"
            table, line = bank.sentences[0].place
            raise InputError(table.locate(line), _describe_missing([name], missing, bank), mend)
        task, excluded = _make_task(name, stem, bank)
        left_out, notes = _count(excluded), notes + _split_notes([task], bank)
        return Loaded([task], bank.rows, left_out, notes, words=bank.words, excluded={task.name: excluded})
    tasks: list[Task] = []
    unsupported, left_out, excluded_by_task = list[str](), {}, {}
    lacking = defaultdict[str, list[str]](list)  # column -> the properties that need it and have no sentence
    for key, prop in PROPERTIES.items():
        if missing := prop.find_missing(bank):
            lacking[missing].append(key)
            continue
        try:
            task, excluded = _make_task(key, stem, bank)
        except InputError as error:
            unsupported.append(error.what)
            continue
        tasks.append(task)
        excluded_by_task[task.name] = excluded
        left_out |= {f"{key}: {reason}": rows for reason, rows in _count(excluded).items()}
    unsupported += [_describe_missing(keys, column, bank) for column, keys in lacking.items()]
    if not tasks:
        raise InputError(stem, f"no property can be built; {unsupported[0]}", "Give a larger treebank")
    notes += _split_notes(tasks, bank) + unsupported
    rows = len(tasks) * bank.rows
    return Loaded(tasks, rows, left_out, notes, words=bank.words, excluded=excluded_by_task)


def _count(excluded: Mapping[str, Places]) -> dict[str, int]:
    return {reason: len(places) for reason, places in excluded.items()}


def load_pairs(rest: str, options: SourceOptions) -> dict[str, MinimalPairs]:
    """Task name -> minimal pairs, for the properties of a SPEC that another form of one word changes (`inflection`).

    Raises InputError like `load`.
    """
    requested, stem, bank, _ = _read_spec(rest, options)
    names = [name for name, prop in PROPERTIES.items() if prop.inflect and requested in (name, "all")]
    inflector = Inflector(bank)
    return {f"conllu:{stem}:{name}": _make_pairs(PROPERTIES[name], inflector) for name in names}


def _make_pairs(prop: Property, inflector: Inflector) -> MinimalPairs:
    assert prop.inflect is not None
    bank = inflector.bank
    labels = ("past", "present") if prop is PROPERTIES["tense"] else ("plural", "singular")
    texts, lemmas, carriers = list[tuple[str, str]](), list[str](), dict[str, str]()
    for s, row in zip(bank.sentences, prop.make_rows(bank), strict=True):
        if isinstance(row, str):
            continue
        carriers[s.text] = s.lemmas[row.carrier]
        twin = prop.inflect(inflector, s, row.carrier)
        if twin is not None and normalize(twin) not in bank.normalized_texts:
            text = render(s.tokens())
            texts.append((text, twin) if row.label == labels[0] else (twin, text))
            lemmas.append(s.lemmas[row.carrier])
    return MinimalPairs(labels, texts, lemmas, carriers)


def _read_spec(rest: str, options: SourceOptions) -> tuple[str, str, Treebank, list[str]]:
    """The property of a SPEC or "all", the name of the treebank, the treebank, and notes."""
    path_name, _, requested = rest.rpartition(":")
    if not path_name:
        raise InputError("--task", f"'conllu:{rest}' names no property", f"As in conllu:{rest or 'PATH'}:all")
    name = requested.replace("-", "_")
    if name not in (*PROPERTIES, "all"):
        raise unknown("--task", "property", requested, [*PROPERTIES, "all"])
    path = find_path(path_name, "conllu:en_ewt-ud-train.conllu:all")
    bank, notes = read_treebank(path, skip_bad_sentences=options.skip_bad_sentences)
    stem = Path(os.path.abspath(path)).name
    stem = stem if path.is_dir() else re.sub(r"(\.conllu)?(\.gz)?$", "", stem, flags=re.IGNORECASE)
    return name, stem, bank, notes


def _split_notes(tasks: Sequence[Task], bank: Treebank) -> list[str]:
    names = [task.label for task in tasks if PROPERTIES[task.label].resplit]
    return [f"{', '.join(names)}: split anew, not by the treebank's own files"] if names and bank.has_split else []


def _describe_missing(names: Sequence[str], column: str, bank: Treebank) -> str:
    """Why no sentence of a treebank serves these properties, which need a column."""
    what, place = COLUMNS[column]
    verb = "needs" if len(names) == 1 else "need"
    where = f"all {n:,} sentences" if (n := len(bank.sentences)) > 1 else "the only sentence"
    return f"{', '.join(names)} {verb} {what}, and {place} is _ in {where}"


# ----------------------------------------------------------------------------------------------------------- properties

COLUMNS = {  # what a sentence may lack, and where it stands
    "heads": ("heads", "column 7 (HEAD)"),
    "relations": ("relations", "column 8 (DEPREL)"),
    "upos": ("parts of speech", "column 4 (UPOS)"),
    "lemmas": ("lemmas", "column 3 (LEMMA)"),
}


class _LeftOut(Exception):
    """Why a sentence has no row in a task."""


class _Row(NamedTuple):
    """A sentence in a task.

    text: replaces the text of the sentence. form: a word that must not cross a split. stratum: classes are balanced
    within each. carrier: the index of the word that carries the label.
    """

    label: str
    text: str = ""
    form: str = ""
    stratum: int = 0
    carrier: int = -1


Corruption = Callable[[Sentence, Treebank, Random], list[Token]]
Rows = list[_Row | str]  # (sentence,) a row, or the reason why there is none


@dataclass(frozen=True)
class Property:
    """How the rows of a task are made.

    build_rows: of sentences with what the property needs. needs: the columns (`COLUMNS`) without which a sentence has
    no row; features, which many words lack, are no such column. resplit: split anew, not by the treebank's files.
    ordered: labels are whole numbers; the classes are consecutive. solved_by: see `Task`. inflect: the text of the
    sentence with the other label, where the forms of the treebank give one; called with the index of the word that
    carries the label.
    """

    build_rows: Callable[[Treebank], Rows]
    needs: tuple[str, ...] = ()
    resplit: bool = False
    ordered: bool = False
    solved_by: tuple[str, ...] = ()
    inflect: Callable[[Inflector, Sentence, int], str | None] | None = None

    def make_rows(self, bank: Treebank) -> Rows:
        """A row for every sentence, or the reason why there is none."""
        reasons = [self._why_unusable(sentence) for sentence in bank.sentences]
        if not any(reasons):
            return self.build_rows(bank)
        usable = [i for i, reason in enumerate(reasons) if not reason]
        sentences, sides = [bank.sentences[i] for i in usable], [bank.sides[i] for i in usable]
        rows = iter(self.build_rows(replace(bank, sentences=sentences, sides=sides)))
        return [reason or next(rows) for reason in reasons]

    def find_missing(self, bank: Treebank) -> str:
        """A column that the property needs and no sentence has, or ""."""
        return next((column for column in self.needs if all(s.lacks(column) for s in bank.sentences)), "")

    def _why_unusable(self, sentence: Sentence) -> str:
        return next((f"{COLUMNS[column][1]} is _" for column in self.needs if sentence.lacks(column)), "")


def _per_sentence(make_row: Callable[[Sentence], _Row]) -> Callable[[Treebank], Rows]:
    """The `build_rows` of a property that depends on single sentences."""

    def build_rows(bank: Treebank) -> Rows:
        return [_row_or_reason(make_row, sentence) for sentence in bank.sentences]

    return build_rows


def _row_or_reason(make_row: Callable[..., _Row], *arguments: object) -> _Row | str:
    try:
        return make_row(*arguments)
    except _LeftOut as excluded:
        return str(excluded)


def _corrupt_half(label: str, corrupt: Corruption) -> Callable[[Treebank], Rows]:
    """The `build_rows` of a property: `corrupt` changes half of the sentences that it can change."""

    def make_row(sentence: Sentence, bank: Treebank) -> _Row:
        text = render(corrupt(sentence, bank, Random(f"{label} {sentence.text}")))
        if normalize(text) in bank.normalized_texts:
            raise _LeftOut("corrupted, it is a sentence all the same")
        return _Row(label, text)

    def build_rows(bank: Treebank) -> Rows:
        rows = [_row_or_reason(make_row, sentence, bank) for sentence in bank.sentences]
        corruptible = [i for i, row in enumerate(rows) if isinstance(row, _Row)]
        corruptible.sort(key=lambda i: (bank.sides[i], _draw_key(label, bank.sentences[i].text)))
        for i in corruptible[::2]:
            rows[i] = _Row("original", render(bank.sentences[i].tokens()))
        return rows

    return build_rows


def _draw_key(*parts: str) -> int:
    """A pseudo-random number determined by `parts`."""
    return int.from_bytes(blake2b("\n".join(parts).encode(), digest_size=8).digest(), "big")


def _sentence_length(s: Sentence) -> _Row:
    index = bisect_left(BINS, len(s.forms), key=lambda bounds: bounds[1])
    if index == len(BINS):
        raise _LeftOut(f"longer than {BINS[-1][1]} words")
    low, high = BINS[index]
    if len(s.forms) < low:
        raise _LeftOut(f"shorter than {low} words")
    return _Row(f"{low}-{high}")


def _tree_depth(s: Sentence) -> _Row:
    return _Row(str(s.depth), stratum=len(s.forms))


def _word_content(bank: Treebank) -> Rows:
    """Lemmas of content words in at most COMMON sentences; a row has exactly one of them, once."""
    lemmas_of = [
        [
            lemma
            for lemma, upos in zip(s.lemmas, s.upos, strict=True)
            if upos in ("NOUN", "VERB", "ADJ", "ADV") and lemma != "_"
        ]
        for s in bank.sentences
    ]
    counts = Counter(lemma for lemmas in lemmas_of for lemma in set(lemmas))
    words = {lemma for lemma, n in counts.items() if FLOOR <= n <= COMMON}
    while True:
        matches = [[lemma for lemma in lemmas if lemma in words] for lemmas in lemmas_of]
        single = Counter(lemmas[0] for lemmas in matches if len(lemmas) == 1)
        by_count = sorted(words, key=lambda lemma: (single[lemma], lemma))
        n_rare = sum(single[lemma] < FLOOR for lemma in by_count)
        if not n_rare and len(words) <= MOST_WORDS:
            break
        # Not all at once: without one word, sentences with it and another one become rows of the other.
        words -= set(by_count[: max(1, n_rare // 4, (len(words) - MOST_WORDS) // 2)])
    reasons = ("holds none of the words", "", "holds several of the words, or one twice")
    return [_Row(lemmas[0]) if len(lemmas) == 1 else reasons[min(len(lemmas), 2)] for lemmas in matches]


def _top_constituents(bank: Treebank) -> Rows:
    """The relations of the root's dependents, in order, without punctuation: "nsubj root obj"; or OTHER if rare."""
    sequences = []
    for s in bank.sentences:
        root = s.root
        parts = ["root" if i == root else s.relation(i) for i in sorted([root, *s.children(root)])]
        sequences.append(" ".join(part for part in parts if part != "punct"))
    counts = Counter(sequences)
    frequent = set(sorted(counts, key=lambda sequence: (-counts[sequence], sequence))[:MOST_SEQUENCES])
    return [_Row(sequence if sequence in frequent else "OTHER") for sequence in sequences]


def _root_pos(s: Sentence) -> _Row:
    if (upos := s.upos[s.root]) == "_":
        raise _LeftOut("the root has no part of speech")
    return _Row(upos)


def _verb_feature(feature: str, names: Mapping[str, str] | None = None) -> Callable[[Sentence], _Row]:
    """A feature of the root if it is a finite verb. names: allowed value -> label; None for any value."""

    def row(s: Sentence) -> _Row:
        root = s.root
        if s.upos[root] not in ("VERB", "AUX"):
            raise _LeftOut("the root is no verb")
        if feature != "Voice" and s.features[root].get("VerbForm", "Fin") != "Fin":  # "has come" is no past tense
            raise _LeftOut("the root is not finite")
        return _Row(_feature_value(s, root, feature, names), form=s.forms[root].casefold(), carrier=root)

    return row


def _noun_number(relation: str) -> Callable[[Sentence], _Row]:
    """The number of the noun that is the root's only subject or object.

    Nouns only, as in SentEval: pronouns have few forms, and names are rarely plural.
    """
    role = {"nsubj": "subject", "obj": "object"}[relation]

    def row(s: Sentence) -> _Row:
        nouns = s.children(s.root, relation)
        if len(nouns) != 1:
            raise _LeftOut(f"no {role}" if not nouns else f"several {role}s")
        if s.upos[nouns[0]] != "NOUN":
            raise _LeftOut(f"the {role} is no noun")
        if s.children(nouns[0], "conj"):
            raise _LeftOut(f"the {role} is coordinated")
        names = {"Sing": "singular", "Plur": "plural"}
        return _Row(_feature_value(s, nouns[0], "Number", names), form=s.forms[nouns[0]].casefold(), carrier=nouns[0])

    return row


def _feature_value(s: Sentence, word: int, feature: str, names: Mapping[str, str] | None) -> str:
    value = s.features[word].get(feature)
    if value is None:
        raise _LeftOut(f"no feature {feature}")
    if names is None:
        return value
    if value not in names:
        raise _LeftOut(f"{feature} is neither {' nor '.join(names)}")
    return names[value]


def _shift_bigram(s: Sentence, bank: Treebank, rng: Random) -> list[Token]:
    """Swap two neighbours: neither the first token nor punctuation, and not two of the same form."""
    tokens = s.tokens()
    spaced = any(token.space for token in tokens[:-1])  # False for scripts without spaces
    positions = [
        i
        for i in range(1, len(tokens) - 1)
        if s.is_word(tokens[i]) and s.is_word(tokens[i + 1])
        if tokens[i].form.casefold() != tokens[i + 1].form.casefold()
        if not spaced or _is_free_standing(tokens, i)
    ]
    if not positions:
        raise _LeftOut("no two words to swap")
    i = _pick(positions, rng)
    first, second = tokens[i : i + 2]
    return [*tokens[:i], second._replace(space=first.space), first._replace(space=second.space), *tokens[i + 2 :]]


def _is_free_standing(tokens: Sequence[Token], i: int) -> bool:
    """Whether spaces surround the tokens i and i + 1, except before a comma or the like: not in "check-in"."""
    gaps = [token.space for token in tokens[:-1]] + [True, True]
    return gaps[i - 1] and gaps[i] and (gaps[i + 1] or gaps[i + 2])


def _replace_word(s: Sentence, bank: Treebank, rng: Random) -> list[Token]:
    """Replace a noun or verb by another one with the same features, word frequency and bigram frequencies.

    Frequencies are counted in the treebank without the replaced word, and compared by powers of two.
    """
    tokens, forms = s.tokens(), [*map(str.casefold, s.forms), ""]
    positions = [
        i
        for i, token in enumerate(tokens)
        if i and token.first == token.last and s.upos[token.first] in ("NOUN", "VERB") and s.is_word(token)
    ]
    if not positions:
        raise _LeftOut("no noun or verb after the first word")
    for i in sorted(positions, key=lambda _: rng.random()):
        word = tokens[i].first
        before, form, after = forms[word - 1 : word + 2]
        levels = [(bank.bigram_counts[pair] - 1).bit_length() for pair in ((before, form), (form, after))]
        candidates = bank.similar_words.get(word_key(s, word, bank.form_counts[form] - 1), [])
        for _ in range(min(TRIES, 2 * len(candidates))):
            new_form, lemma = _pick(candidates, rng)
            folded = new_form.casefold()
            if (
                lemma != s.lemmas[word]
                and folded not in forms
                and (before, folded[:1]) in bank.next_initials
                and [bank.bigram_counts[pair].bit_length() for pair in ((before, folded), (folded, after))] == levels
            ):
                return [*tokens[:i], tokens[i]._replace(form=new_form), *tokens[i + 1 :]]
    raise _LeftOut("no other word fits")


def _invert_clauses(s: Sentence, bank: Treebank, rng: Random) -> list[Token]:
    """Turn "A, and B." into "B, and A.": the clauses of the root and its only conjunct, joined by a conjunction."""
    root, conjuncts = s.root, s.children(s.root, "conj")
    if len(conjuncts) != 1 or not _are_clauses(s, root, conjuncts[0]):
        raise _LeftOut("not two coordinated clauses")
    clause = _subtree(s, conjuncts[0])
    start, end = clause[0], clause[-1] + 1
    if start <= root or len(clause) != end - start or any(s.upos[i] != "PUNCT" for i in range(end, len(s.forms))):
        raise _LeftOut("the clauses do not stand one after the other")
    middle = start  # start of the second clause, after its conjunction
    while middle < conjuncts[0] and s.heads[middle] == conjuncts[0] + 1 and s.relation(middle) in ("cc", "punct"):
        middle += 1
    if "cc" not in map(s.relation, range(start, middle)):
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
    token_index = {token.first: i for i, token in enumerate(tokens)} | {len(s.forms): len(tokens)}
    if not {start, middle, end} <= token_index.keys():
        raise _LeftOut("a multi-word token spans the conjunction")
    i, j, k = token_index[start], token_index[middle], token_index[end]
    first, conjunction, second, tail = tokens[:i], tokens[i:j], tokens[j:k], tokens[k:]
    first[-1], second[-1] = first[-1]._replace(space=second[-1].space), second[-1]._replace(space=first[-1].space)
    if first[0].form[:1].isupper():
        first[0] = first[0]._replace(form=_lower_initial(first[0].form, s.lemmas[0], s.upos[0]))
        second[0] = second[0]._replace(form=_upper_initial(second[0].form, bank.has_dotless_i))
    return [*second, *conjunction, *first, *tail]


_PAIRED = re.compile(r"[\"'`“”„‟«»‹›‘’‚「」『』()\[\]{}<>（）【】《》]+|-[LR][RSC]B-")


def _are_clauses(s: Sentence, *heads: int) -> bool:
    """Whether all have a subject; or none has, as imperatives and in pro-drop languages, and all are finite."""
    subjects = [bool(s.children(head, "nsubj", "csubj", "expl")) for head in heads]
    finite = all(s.upos[head] == "VERB" and s.features[head].get("VerbForm", "Fin") == "Fin" for head in heads)
    return all(subjects) or (not any(subjects) and finite)


def _subtree(s: Sentence, top: int) -> list[int]:
    """The indices of a word and all its descendants, in order."""
    subtree, pending = {top}, [top]
    while pending:
        children = s.children(pending.pop())
        subtree.update(children)
        pending += children
    return sorted(subtree)


def _lower_initial(form: str, lemma: str, upos: str) -> str:
    """The first word of a sentence as written inside one: names, German nouns, "I" and "NATO" keep their capital."""
    if upos == "PROPN" or not lemma[:1].islower() or any(map(str.isupper, form[1:])):
        return form
    initial = lemma[0] if form[0] in "Iİ" and lemma[0] in "iı" else form[0].lower()
    return initial[0] + form[1:]


def _upper_initial(form: str, dotless_i: bool) -> str:
    initial = "İ" if dotless_i and form[0] == "i" else form[0].upper()
    return (initial if len(initial) == 1 else form[0]) + form[1:]


def _pick(items: Sequence[Any], rng: Random) -> Any:
    return items[int(rng.random() * len(items))]


PROPERTIES = {
    "sentence_length": Property(_per_sentence(_sentence_length), solved_by=("length",)),
    "word_content": Property(_word_content, needs=("upos", "lemmas"), resplit=True, solved_by=("bag_of_words",)),
    "tree_depth": Property(_per_sentence(_tree_depth), needs=("heads",), ordered=True),
    "top_constituents": Property(_top_constituents, needs=("heads", "relations")),
    "bigram_shift": Property(_corrupt_half("shifted", _shift_bigram)),
    "tense": Property(
        _per_sentence(_verb_feature("Tense", {"Past": "past", "Pres": "present"})),
        needs=("heads", "upos"),
        resplit=True,
        inflect=Inflector.change_tense,
    ),
    "subject_number": Property(
        _per_sentence(_noun_number("nsubj")),
        needs=("heads", "relations", "upos"),
        resplit=True,
        inflect=Inflector.change_subject_number,
    ),
    "object_number": Property(
        _per_sentence(_noun_number("obj")),
        needs=("heads", "relations", "upos"),
        resplit=True,
        inflect=Inflector.change_object_number,
    ),
    "odd_man_out": Property(_corrupt_half("replaced", _replace_word), needs=("upos", "lemmas")),
    "coordination_inversion": Property(
        _corrupt_half("inverted", _invert_clauses), needs=("heads", "relations", "upos")
    ),
    "root_pos": Property(_per_sentence(_root_pos), needs=("heads", "upos")),
    "mood": Property(_per_sentence(_verb_feature("Mood")), needs=("heads", "upos"), resplit=True),
    "voice": Property(_per_sentence(_verb_feature("Voice")), needs=("heads", "upos"), resplit=True),
}


# ------------------------------------------------------------------------------------------------------------ selection


def _make_task(name: str, stem: str, bank: Treebank) -> tuple[Task, dict[str, Places]]:
    """The task of a property, and reason -> places of sentences left out. Raises InputError if there is no task."""
    prop = PROPERTIES[name]
    outcomes = prop.make_rows(bank)
    left_out = defaultdict[str, list[tuple[Table, int]]](list)
    for sentence, outcome in zip(bank.sentences, outcomes, strict=True):
        if isinstance(outcome, str):
            left_out[outcome].append(sentence.place)
    rows = [(i, row) for i, row in enumerate(outcomes) if isinstance(row, _Row)]
    names = [""] if prop.resplit else sorted(set(bank.sides))
    sides = ["" if prop.resplit else bank.sides[i] for i, _ in rows]
    keys = [_draw_key(name, bank.sentences[i].text) for i, _ in rows]
    side_codes = np.searchsorted(names, sides)
    mask, in_class = _balance_rows([row for _, row in rows], side_codes, len(names), keys, prop.ordered)
    if not mask.any():
        classes = Counter(row.label for _, row in rows).most_common(5)
        class_list = ", ".join(f"{quote(label)} {n:,}" for label, n in classes) or "none"
        condition = " and some on every side" if bank.has_split and not prop.resplit else ""
        most = sorted(left_out.items(), key=lambda item: -len(item[1]))[:1]
        reason_note = "".join(f"; {len(places):,} sentences: {reason}" for reason, places in most)
        what = f"{name} needs two classes with {FLOOR} sentences{condition}, found: {class_list}{reason_note}"
        raise InputError(stem, what, "Take another property, or a larger treebank")
    for (i, _), is_chosen, is_common in zip(rows, mask, in_class, strict=True):
        if not is_chosen:
            reason = "to balance the classes" if is_common else "class with too few sentences"
            left_out[reason].append(bank.sentences[i].place)
    left_out["repeats another sentence"] += bank.repeated
    left_out |= {f"invalid sentence ({kind})": [*places] for kind, places in bank.skipped.items()}
    texts, chosen = Texts(), [(*row, side) for row, side, keep in zip(rows, sides, mask, strict=True) if keep]
    for i, row, _ in chosen:
        texts.append(row.text or bank.sentences[i].text)
    forms = [row.form for _, row, _ in chosen]
    task = Task(
        f"conllu:{stem}:{name}",
        texts.finish(),
        np.array([row.label for _, row, _ in chosen]),
        split=np.array([side for *_, side in chosen]) if bank.has_split and not prop.resplit else None,
        groups=np.unique(forms, return_inverse=True)[1] if any(forms) else None,
        solved_by=prop.solved_by,
        places=Places.gather(bank.sentences[i].place for i, *_ in chosen),
    )
    return task, {reason: Places.gather(places) for reason, places in left_out.items() if places}


def _balance_rows(
    rows: Sequence[_Row], side: np.ndarray, n_sides: int, keys: Sequence[int], ordered: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Select equally many rows of each class in every side and stratum: a mask (row,), and whether rows are of a chosen
    class (row,).

    The classes are the K most frequent ones, or K consecutive `ordered` ones, for the K that maximises the bits in the
    labels, rows times log2 K. Without two classes of FLOOR rows and rows on every side, the mask is all False.
    side: (row,) codes below `n_sides`. keys: (row,) the rows with the smallest ones are selected.
    """
    if not rows:
        return np.zeros(0, bool), np.zeros(0, bool)
    class_names, label = np.unique([row.label for row in rows], return_inverse=True)
    stratum = np.unique([row.stratum for row in rows], return_inverse=True)[1]
    counts = np.zeros((len(class_names), n_sides, stratum.max() + 1), np.int64)
    np.add.at(counts, (label, side, stratum), 1)
    if ordered:
        order, starts = np.argsort(class_names.astype(int)), range(len(class_names))
    else:
        share = counts.sum(2) / np.maximum(counts.sum((0, 2)), 1)
        order, starts = np.argsort(-share.min(1), kind="stable"), range(1)
    best_bits, quota, chosen = 0.0, counts[0] * 0, order[:0]  # quota: (side, stratum) rows of each class
    for first in starts:
        smallest = counts[order[first]]
        for last in range(first + 1, len(order)):
            smallest, k = np.minimum(smallest, counts[order[last]]), last - first + 1
            if smallest.sum() < FLOOR or not smallest.sum(1).all():
                break
            if (bits := smallest.sum() * k * np.log2(k)) > best_bits:
                best_bits, quota, chosen = bits, smallest, order[first : last + 1]
    cell = np.ravel_multi_index((label, side, stratum), counts.shape)
    by_cell = np.lexsort((np.array(keys, np.uint64), cell))
    cell_starts = np.searchsorted(cell[by_cell], cell[by_cell])
    rank = np.empty(len(rows), np.int64)
    rank[by_cell] = np.arange(len(rows)) - cell_starts
    in_chosen_class = np.isin(label, chosen)
    return in_chosen_class & (rank < quota[side, stratum]), in_chosen_class
