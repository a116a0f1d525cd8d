"""Universal Dependencies treebanks: CoNLL-U files, checked line by line, as trees in memory.

1. `read_treebank` says which files a path means and which side of a split (train, dev, test) each is.
2. `_blocks` -> `_words` -> `_sentence`: the lines of a sentence, its ten columns, its tree. The field parsers are those
   of the library `conllu`; its line parser is not used, because it takes any number of columns, splits at two spaces
   too, and names no lines.
3. `Treebank` holds every text once, and what its words have in common: frequencies, bigrams, words alike.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from conllu.exceptions import ParseException
from conllu.parser import parse_dict_value, parse_id_value, parse_int_value

from clsprobe.analysis.sources.lines import read_lines
from clsprobe.analysis.sources.tables import Findings, shown
from clsprobe.probes.errors import InputError

SIDES = ("train", "dev", "test")


# ---------------------------------------------------------------------------------------------------------------- files


def read_treebank(path: Path) -> tuple[Treebank, list[str]]:
    """The sentences of a file, or of the .conllu and .conllu.gz files of a folder, and notes for the report.

    A file of a folder is the side that its name says (en_ewt-ud-train.conllu). Raises InputError with ``file:line``.
    """
    notes: list[str] = []
    files = [(path, "")]
    if path.is_dir():
        names = sorted(name for name in os.listdir(path) if _CONLLU.search(name))
        if not names:
            raise InputError(str(path), "the folder holds no .conllu or .conllu.gz file", "Name a treebank's folder")
        sides = {name: found[1].lower() for name in names if (found := _SIDE.search(name))}
        present = set(sides.values())
        if "train" not in present or len(present) == 1:  # as they are published only for testing
            files = [(path / name, "") for name in names]
        else:
            if others := [name for name in names if name not in sides]:
                notes.append(f"not read, neither train nor dev nor test: {', '.join(others)}")
            if "test" not in present:
                notes.append("there are no test files: dev serves as test, and a tenth of train as dev")
                sides = {name: "test" if side == "dev" else side for name, side in sides.items()}
            files = [(path / name, side) for one in SIDES for name, side in sides.items() if side == one]
    return _treebank(tuple((file, side, file.stat().st_size, file.stat().st_mtime_ns) for file, side in files)), notes


_CONLLU = re.compile(r"\.conllu(\.gz)?$", re.IGNORECASE)
_SIDE = re.compile(r"(?:^|[-_.])(train|dev|test)(?=[-_.])", re.IGNORECASE)


class Token(NamedTuple):
    """What is written between spaces or glued to its neighbours: one word, or several ("don't" is do + n't).

    space: whether a space follows. first, last: its words, from 0.
    """

    form: str
    space: bool
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Sentence:
    """One tree. All sequences are (word,); multi-word tokens and empty nodes are no words.

    text: as the treebank writes it. heads: the number of the head, from 1, and 0 for the root. depth: arcs on the
    longest way down from the root. spaces: whether a space follows. fused: first word -> the multi-word token there.
    """

    text: str
    forms: tuple[str, ...]
    lemmas: tuple[str, ...]
    upos: tuple[str, ...]
    features: tuple[Mapping[str, str], ...]
    heads: tuple[int, ...]
    relations: tuple[str, ...]
    depth: int
    spaces: tuple[bool, ...]
    fused: Mapping[int, Token]

    @property
    def root(self) -> int:
        """The index of the root, from 0."""
        return self.heads.index(0)

    def children(self, word: int, *relations: str) -> list[int]:
        """The dependents of a word, those of these relations (without subtypes) if any are named."""
        number = word + 1
        found = [i for i, head in enumerate(self.heads) if head == number]
        return [i for i in found if self.relation(i) in relations] if relations else found

    def relation(self, word: int) -> str:
        """The universal part of a relation: nsubj of nsubj:pass."""
        return self.relations[word].partition(":")[0]

    def tokens(self) -> list[Token]:
        """The surface of the sentence."""
        tokens, word = [], 0
        while word < len(self.forms):
            token = self.fused.get(word) or Token(self.forms[word], self.spaces[word], word, word)
            tokens.append(token)
            word = token.last + 1
        return tokens

    def words(self) -> list[tuple[str, str]]:
        """The words as the text spells them, and their parts of speech."""
        found: list[tuple[str, str]] = []
        for token in self.tokens():
            some = slice(token.first, token.last + 1)
            if "".join(self.forms[some]) == token.form:
                found += zip(self.forms[some], self.upos[some], strict=True)
            else:
                found.append((token.form, "+".join(self.upos[some])))
        return found

    def is_word(self, token: Token) -> bool:
        """Whether a token is no punctuation."""
        return self.upos[token.first] != "PUNCT" and any(map(str.isalnum, token.form))


def written(tokens: Sequence[Token]) -> str:
    """The text of a sequence of tokens."""
    return "".join(token.form + " " * token.space for token in tokens).strip()


class _Wrong(Exception):
    """What is wrong with a line: its number, what, how to mend it, and what it is counted with."""


def _sentences(path: Path) -> Iterator[Sentence]:
    """The sentences of one file. Raises InputError naming up to ten lines with the same fault."""
    findings, found = Findings(path), False
    for block, text in _blocks(path):
        found = True
        try:
            yield _sentence(block, text)
        except _Wrong as wrong:
            findings.problem(*wrong.args)
    findings.check()
    if not found:
        raise InputError(path.name, "holds no sentence", "Give a CoNLL-U file with ten columns")


def _blocks(path: Path) -> Iterator[tuple[list[tuple[int, list[str]]], str]]:
    """The numbered lines of every sentence, in columns, and its text ("" where none is given)."""
    block: list[tuple[int, list[str]]] = []
    text = ""
    for number, line in read_lines(path):
        if line.startswith("#"):
            name, _, value = line[1:].partition("=")
            text = value.strip() if name.strip() == "text" else text
        elif line.strip():
            block.append((number, line.split("\t")))
        elif block:
            yield block, text
            block, text = [], ""
    if block:
        yield block, text


def _sentence(block: Sequence[tuple[int, list[str]]], text: str) -> Sentence:
    """A sentence out of the lines of its block; _Wrong where they make none."""
    rows, lines, fused = _words(block)
    heads, features = [], []
    for number, cells in zip(lines, rows, strict=True):
        head, feature = _head(cells[6]), _features(cells[5])
        if not 0 <= head <= len(rows):
            what = f"head {shown(cells[6])} is no word of this sentence (0 to {len(rows)})"
            raise _Wrong(number, what, "Mend column 7", "head")
        if feature is None:
            raise _Wrong(number, f"features {shown(cells[5])} are not Name=Value|...", "Mend column 6", "features")
        heads.append(head)
        features.append(feature)
    if heads.count(0) != 1:
        mend = "One word of a sentence has head 0"
        if 0 not in heads:
            raise _Wrong(lines[0], "no root (no head is 0)", mend, "root")
        second = heads.index(0, heads.index(0) + 1)
        raise _Wrong(lines[second], f"a second root (word {heads.index(0) + 1} has head 0 already)", mend, "root")
    depth = _depth(heads, lines)
    columns = list(zip(*rows, strict=True))
    forms, lemmas, upos, relations = (tuple(map(sys.intern, columns[i])) for i in (1, 2, 3, 7))
    spaces = tuple(map(_space, columns[9]))
    sentence = Sentence(text, forms, lemmas, upos, tuple(features), tuple(heads), relations, depth, spaces, fused)
    return sentence if text else replace(sentence, text=written(sentence.tokens()))


def _words(block: Sequence[tuple[int, list[str]]]) -> tuple[list[list[str]], list[int], Mapping[int, Token]]:
    """The rows of the words, the lines they stand on, and the multi-word tokens by their first word."""
    rows: list[list[str]] = []
    lines: list[int] = []
    fused: dict[int, Token] = {}
    until, line_of_until = 0, 0  # the last word of the last multi-word token
    for number, cells in block:
        if len(cells) != 10:
            columns = f"{len(cells)} column{'s' if len(cells) > 1 else ''}"
            mend = "Separate the columns by single tabs" if len(cells) == 1 else "Write _ for an empty column"
            raise _Wrong(number, f"{columns}, CoNLL-U has 10", mend, "columns")
        if not cells[1].strip():
            raise _Wrong(number, "column 2 (form) is empty", "Fill it in")
        if cells[0] == str(len(rows) + 1):
            rows.append(cells)
            lines.append(number)
            continue
        try:
            found = parse_id_value(cells[0])
        except (ParseException, ValueError):  # the latter at thousands of digits
            raise _Wrong(number, f"id {shown(cells[0])} is no number, range or empty node", "Mend column 1") from None
        match found:
            case (first, ".", _) if first == len(rows):
                continue
            case (first, "-", last) if first == len(rows) + 1 > until:
                fused[first - 1] = Token(cells[1], _space(cells[9]), first - 1, last - 1)
                until, line_of_until = last, number
            case _:
                mend = "Number the words of a sentence 1, 2, 3, ..., ranges before their words"
                raise _Wrong(number, f"id {shown(cells[0])} cannot follow word {len(rows)}", mend, "id")
    if not rows:
        raise _Wrong(block[0][0], "a sentence without words", "Remove it")
    if until > len(rows):
        raise _Wrong(line_of_until, f"a range up to word {until} in a sentence of {len(rows)}", "Mend column 1")
    return rows, lines, fused or _NONE


_NONE: Mapping[int, Token] = {}


def _space(misc: str) -> bool:
    return misc == "_" or "SpaceAfter=No" not in misc.split("|")


@lru_cache(maxsize=2**16)
def _head(cell: str) -> int:
    try:
        head = parse_int_value(cell)
    except (ParseException, ValueError):
        head = None
    return -1 if head is None else head


@lru_cache(maxsize=2**16)
def _features(cell: str) -> Mapping[str, str] | None:
    """Features by name, shared between words: read only. None where a part is no Name=Value."""
    parsed = parse_dict_value(cell) or {}
    return {name: value for name, value in parsed.items() if value} if all(parsed.values()) else None


def _depth(heads: Sequence[int], lines: Sequence[int]) -> int:
    """Arcs on the longest way down from the root; _Wrong where heads form a cycle."""
    known: dict[int, int | None] = {0: -1}
    for word in range(1, len(heads) + 1):
        way = []
        while word not in known:
            known[word] = None  # on the way
            way.append(word)
            word = heads[word - 1]
        if (depth := known[word]) is None:
            cycle = " -> ".join(map(str, [*way[way.index(word) :], word]))
            raise _Wrong(lines[word - 1], f"heads form a cycle ({shown(cycle)[1:-1]})", "Mend column 7", "cycle")
        for further, each in enumerate(reversed(way), 1):
            known[each] = depth + further
    return max(depth for depth in known.values() if depth is not None)


# ------------------------------------------------------------------------------------------------------------- treebank


@dataclass(frozen=True, eq=False)
class Treebank:
    """The sentences of all files, each text once.

    sides: (sentence,) train, dev or test, or "" where the files fix none. rows: sentences read, repeated ones too.
    """

    sentences: list[Sentence]
    sides: list[str]
    rows: int

    @property
    def split(self) -> bool:
        """Whether the files say who is train and who is test."""
        return bool(self.sides[0])

    @cached_property
    def turkic(self) -> bool:
        """Whether i and ı are two letters here, so that the capital of i is İ."""
        return any("ı" in sentence.text for sentence in self.sentences)

    @cached_property
    def words(self) -> dict[str, list[tuple[str, str]]]:
        """Text -> its words and their parts of speech; a token that its words do not spell has all of theirs."""
        return {sentence.text: sentence.words() for sentence in self.sentences}

    @cached_property
    def texts(self) -> set[str]:
        """All texts, as `same` makes them."""
        return {same(sentence.text) for sentence in self.sentences}

    @cached_property
    def bigrams(self) -> Counter[tuple[str, str]]:
        """How often two words follow each other, in small letters; "" is the end of a sentence."""
        return Counter(pair for s in self.sentences for pair in pairwise((*map(str.casefold, s.forms), "")))

    @cached_property
    def forms(self) -> Counter[str]:
        """How often a word occurs, in small letters."""
        return Counter(form.casefold() for s in self.sentences for form in s.forms)

    @cached_property
    def contacts(self) -> set[tuple[str, str]]:
        """Words and the first letters that follow them: an + a, but not an + b."""
        return {(one, other[:1]) for one, other in self.bigrams}

    @cached_property
    def alike(self) -> dict[tuple[object, ...], list[tuple[str, str]]]:
        """Nouns and verbs (form, lemma) by `likeness`, each once, in alphabetical order."""
        found: dict[tuple[object, ...], set[tuple[str, str]]] = defaultdict(set)
        for s in self.sentences:
            for word in range(1, len(s.forms)):
                if s.upos[word] in ("NOUN", "VERB"):
                    key = likeness(s, word, self.forms[s.forms[word].casefold()])
                    found[key].add((s.forms[word], s.lemmas[word]))
        return {key: sorted(words) for key, words in found.items()}


@lru_cache(maxsize=1)  # for the next property of the same files; their sizes and times tell whether they are
def _treebank(files: tuple[tuple[Path, str, int, int], ...]) -> Treebank:
    read = [(side, sentence) for path, side, *_ in files for sentence in _sentences(path)]
    sides = {same(sentence.text): side for one in ("", *SIDES) for side, sentence in read if side == one}
    kept, seen = [], set()
    for side, sentence in read:  # a text that stands on several sides stays in test, or else in dev
        if sides[key := same(sentence.text)] == side and key not in seen:
            seen.add(key)
            kept.append((side, sentence))
    return Treebank([sentence for _, sentence in kept], [side for side, _ in kept], len(read))


def same(text: str) -> str:
    """What two texts have in common when a split takes them for one (probes.tasks.split)."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def likeness(s: Sentence, word: int, times: int) -> tuple[object, ...]:
    """What words that can stand for each other have in common; `times` it occurs counts by powers of two."""
    features = tuple(sorted(s.features[word].items()))
    return s.upos[word], features, s.forms[word][:1].isupper(), times.bit_length()
