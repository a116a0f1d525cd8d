"""Universal Dependencies treebanks: CoNLL-U files, checked line by line, as trees in memory.

1. `read_treebank` finds the files of a path and the side of the split (train, dev, test) that each of them is.
2. `_read_blocks` -> `_parse_words` -> `_parse_sentence`: the lines of a sentence, its ten columns, its tree. The field
   parsers are those of the library `conllu`. Its line parser is not used: it accepts any number of columns, splits at
   two spaces too, and reports no line numbers. A sentence may lack a column: it holds ``_`` for every word.
3. `Treebank` holds every text once, with the frequencies of words and bigrams, and groups of similar words. It counts
   the invalid sentences that were skipped; by default they are errors.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from conllu.exceptions import ParseException
from conllu.parser import parse_dict_value, parse_id_value, parse_int_value

from clsprobe.analysis.sources.lines import read_lines
from clsprobe.probes.errors import InputError, quote
from clsprobe.probes.tasks.places import Table
from clsprobe.probes.tasks.rows import Findings

SIDES = ("train", "dev", "test")
FEW_BAD = 0.05  # share of invalid sentences in a file up to which leaving them out is recommended
MISNUMBERED = "words that are not numbered 1, 2, 3, ..."


# ---------------------------------------------------------------------------------------------------------------- files


def read_treebank(path: Path, *, skip_bad_sentences: bool = False) -> tuple[Treebank, list[str]]:
    """Read a CoNLL-U file, or the .conllu and .conllu.gz files of a folder: the treebank, and notes for the report.

    In a folder, file names give the sides (en_ewt-ud-train.conllu). skip_bad_sentences: leave invalid sentences out;
    the treebank counts them, and the notes name their lines. Raises InputError with ``file:line`` for an invalid
    sentence otherwise, and where no sentence is left.
    """
    notes: list[str] = []
    files = [(path, "")]
    if path.is_dir():
        names = sorted(name for name in os.listdir(path) if _CONLLU.search(name))
        if not names:
            raise InputError(str(path), "the folder holds no .conllu or .conllu.gz file", "Name a treebank's folder")
        sides = {name: match[1].lower() for name in names if (match := _SIDE.search(name))}
        present = set(sides.values())
        if "train" not in present or len(present) == 1:  # such as a treebank published for testing only
            files = [(path / name, "") for name in names]
        else:
            if others := [name for name in names if name not in sides]:
                notes.append(f"not read, neither train nor dev nor test: {', '.join(others)}")
            if "test" not in present:
                notes.append("there are no test files: dev serves as test, and a tenth of train as dev")
                sides = {name: "test" if side == "dev" else side for name, side in sides.items()}
            files = [(path / name, side) for part in SIDES for name, side in sides.items() if side == part]
    versions = tuple((file, side, file.stat().st_size, file.stat().st_mtime_ns) for file, side in files)
    bank, skip_notes = _load_files(versions, skip_bad_sentences)
    return bank, notes + skip_notes


_CONLLU = re.compile(r"\.conllu(\.gz)?$", re.IGNORECASE)
_SIDE = re.compile(r"(?:^|[-_.])(train|dev|test)(?=[-_.])", re.IGNORECASE)


class Token(NamedTuple):
    """A surface token: one word, or the several words of a multi-word token ("don't" is do + n't).

    space: whether a space follows. first, last: the indices of its words, from 0.
    """

    form: str
    space: bool
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence. All sequences are (word,); multi-word tokens and empty nodes do not count as words.

    place: its file, and its first line there. text: as given in the treebank. heads: the number of the head from 1, or
    0 for the root; empty for a sentence that is not parsed. depth: arcs on the longest path from the root. spaces:
    whether a space follows. multiword: index of its first word -> multi-word token.
    """

    place: tuple[Table, int] = field(compare=False)
    text: str
    forms: tuple[str, ...]
    lemmas: tuple[str, ...]
    upos: tuple[str, ...]
    features: tuple[Mapping[str, str], ...]
    heads: tuple[int, ...]
    relations: tuple[str, ...]
    depth: int
    spaces: tuple[bool, ...]
    multiword: Mapping[int, Token]

    def lacks(self, column: str) -> bool:
        """Whether a column ("heads", "relations", "upos", "lemmas") holds ``_`` for every word."""
        return all(cell == "_" for cell in getattr(self, column))

    @property
    def root(self) -> int:
        """The index of the root, from 0."""
        return self.heads.index(0)

    def children(self, word: int, *relations: str) -> list[int]:
        """The dependents of a word; if relations (without subtypes) are given, only these."""
        number = word + 1
        children = [i for i, head in enumerate(self.heads) if head == number]
        return [i for i in children if self.relation(i) in relations] if relations else children

    def relation(self, word: int) -> str:
        """The relation of a word without its subtype: nsubj for nsubj:pass."""
        return self.relations[word].partition(":")[0]

    def tokens(self) -> list[Token]:
        """The surface tokens of the sentence."""
        tokens, word = [], 0
        while word < len(self.forms):
            token = self.multiword.get(word) or Token(self.forms[word], self.spaces[word], word, word)
            tokens.append(token)
            word = token.last + 1
        return tokens

    def words(self) -> list[tuple[str, str]]:
        """The words as spelled in the text, and their parts of speech; "" where the treebank gives none."""
        words: list[tuple[str, str]] = []
        for token in self.tokens():
            span = slice(token.first, token.last + 1)
            tags = ["" if tag == "_" else tag for tag in self.upos[span]]
            if "".join(self.forms[span]) == token.form:
                words += zip(self.forms[span], tags, strict=True)
            else:
                words.append((token.form, "+".join(filter(None, tags))))
        return words

    def is_word(self, token: Token) -> bool:
        """Whether a token is not punctuation."""
        return self.upos[token.first] != "PUNCT" and any(map(str.isalnum, token.form))


def render(tokens: Sequence[Token]) -> str:
    """The text of a sequence of tokens."""
    return "".join(token.form + " " * token.space for token in tokens).strip()


class _BadLine(Exception):
    """An invalid line. Arguments: those of `Findings.add`; the kind says what is wrong with the sentence."""


@dataclass(frozen=True)
class _File:
    """What one file holds. findings: the sentences that are skipped."""

    sentences: list[Sentence]
    findings: Findings


def _read_file(path: Path, skip_bad_sentences: bool) -> _File:
    """The sentences of one file. Raises InputError with up to ten lines that have the same problem, unless skipped."""
    findings, sentences = Findings(path.name), list[Sentence]()
    for block, text in _read_blocks(path):
        try:
            sentences.append(_parse_sentence(block, text, findings))
        except _BadLine as error:
            findings.add(*error.args)
    problems = findings.problems
    bad = sum(len(lines) for _, lines in problems.values())
    if problems and (not skip_bad_sentences or not sentences):
        first, _ = next(iter(problems.values()))
        few = bad <= FEW_BAD * (bad + len(sentences))
        ways = f"{first.mend}, or leave the sentence out with --skip-bad-sentences" if few else first.mend
        raise InputError(first.where, first.what, ways)
    if not sentences:
        raise InputError(path.name, "holds no sentence", "Give a CoNLL-U file with ten columns")
    return _File(sentences, findings)


def _read_blocks(path: Path) -> Iterator[tuple[list[tuple[int, list[str]]], str]]:
    """Yield the numbered lines of every sentence, in columns, and its text ("" if none is given)."""
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


def _parse_sentence(block: Sequence[tuple[int, list[str]]], text: str, file: Table) -> Sentence:
    """The sentence in the lines of a block. Raises `_BadLine`."""
    rows, lines, multiword = _parse_words(block)
    features = []
    for number, cells in zip(lines, rows, strict=True):
        feature = _parse_features(cells[5])
        if feature is None:
            what, kind = f"features {quote(cells[5])} are not Name=Value|...", "features that cannot be read"
            raise _BadLine(number, what, "Mend column 6", kind)
        features.append(feature)
    columns = list(zip(*rows, strict=True))
    is_parsed = any(cell != "_" for cell in columns[6])
    heads = _parse_heads(columns[6], lines) if is_parsed else ()
    depth = _tree_depth(heads, lines) if is_parsed else 0
    forms, lemmas, upos, relations = (tuple(map(sys.intern, columns[i])) for i in (1, 2, 3, 7))
    spaces = tuple(map(_space_follows, columns[9]))
    place = file, block[0][0]
    sentence = Sentence(place, text, forms, lemmas, upos, tuple(features), heads, relations, depth, spaces, multiword)
    return sentence if text else replace(sentence, text=render(sentence.tokens()))


def _parse_heads(cells: Sequence[str], lines: Sequence[int]) -> tuple[int, ...]:
    """The heads of a sentence with one root. lines: (word,) their numbers. Raises `_BadLine`."""
    heads = tuple(map(_parse_head, cells))
    for number, cell, head in zip(lines, cells, heads, strict=True):
        if not 0 <= head <= len(heads):
            what = f"head {quote(cell)} is no word of this sentence (0 to {len(heads)})"
            what = "no head (_), though other words of the sentence have one" if cell == "_" else what
            raise _BadLine(number, what, "Mend column 7", "a head that is no word of it")
    if heads.count(0) != 1:
        mend, kind = "One word of a sentence has head 0", "not one root"
        if 0 not in heads:
            raise _BadLine(lines[0], "no root (no head is 0)", mend, kind)
        second = heads.index(0, heads.index(0) + 1)
        raise _BadLine(lines[second], f"a second root (word {heads.index(0) + 1} has head 0 already)", mend, kind)
    return heads


def _parse_words(block: Sequence[tuple[int, list[str]]]) -> tuple[list[list[str]], list[int], Mapping[int, Token]]:
    """The rows of the words, their line numbers, and the multi-word tokens by the index of their first word."""
    rows: list[list[str]] = []
    lines: list[int] = []
    multiword: dict[int, Token] = {}
    range_end, range_line = 0, 0  # the last word of the last multi-word token
    for number, cells in block:
        if len(cells) != 10:
            columns = f"{len(cells)} column{'s' if len(cells) > 1 else ''}"
            mend = "Separate the columns by single tabs" if len(cells) == 1 else "Write _ for an empty column"
            raise _BadLine(number, f"{columns}, CoNLL-U has 10", mend, "a line without ten columns")
        if not cells[1].strip():
            raise _BadLine(number, "column 2 (form) is empty", "Fill it in", "a word without a form")
        if cells[0] == str(len(rows) + 1):
            rows.append(cells)
            lines.append(number)
            continue
        try:
            word_id = parse_id_value(cells[0])
        except (ParseException, ValueError):  # ValueError for thousands of digits
            what = f"id {quote(cells[0])} is no number, range or empty node"
            raise _BadLine(number, what, "Mend column 1", MISNUMBERED) from None
        match word_id:
            case (first, ".", _) if first == len(rows):
                continue
            case (first, "-", last) if first == len(rows) + 1 > range_end:
                multiword[first - 1] = Token(cells[1], _space_follows(cells[9]), first - 1, last - 1)
                range_end, range_line = last, number
            case _:
                mend = "Number the words of a sentence 1, 2, 3, ..., ranges before their words"
                raise _BadLine(number, f"id {quote(cells[0])} cannot follow word {len(rows)}", mend, MISNUMBERED)
    if not rows:
        raise _BadLine(block[0][0], "a sentence without words", "Remove it", "no words")
    if range_end > len(rows):
        what = f"a range up to word {range_end} in a sentence of {len(rows)}"
        raise _BadLine(range_line, what, "Mend column 1", MISNUMBERED)
    return rows, lines, multiword or _NONE


_NONE: Mapping[int, Token] = {}


def _space_follows(misc: str) -> bool:
    return misc == "_" or "SpaceAfter=No" not in misc.split("|")


@lru_cache(maxsize=2**16)
def _parse_head(cell: str) -> int:
    try:
        head = parse_int_value(cell)
    except (ParseException, ValueError):
        head = None
    return -1 if head is None else head


@lru_cache(maxsize=2**16)
def _parse_features(cell: str) -> Mapping[str, str] | None:
    """Features by name, or None if a part is not Name=Value. Words share the result: do not modify it."""
    parsed = parse_dict_value(cell) or {}
    return {name: value for name, value in parsed.items() if value} if all(parsed.values()) else None


def _tree_depth(heads: Sequence[int], lines: Sequence[int]) -> int:
    """Arcs on the longest path from the root. Raises `_BadLine` for a cycle."""
    depths: dict[int, int | None] = {0: -1}
    for word in range(1, len(heads) + 1):
        path = []
        while word not in depths:
            depths[word] = None  # on the current path
            path.append(word)
            word = heads[word - 1]
        if (depth := depths[word]) is None:
            cycle = " -> ".join(map(str, [*path[path.index(word) :], word]))
            what = f"heads form a cycle ({quote(cycle)[1:-1]})"
            raise _BadLine(lines[word - 1], what, "Mend column 7", "heads that form a cycle")
        for distance, ancestor in enumerate(reversed(path), 1):
            depths[ancestor] = depth + distance
    return max(depth for depth in depths.values() if depth is not None)


# ------------------------------------------------------------------------------------------------------------- treebank


@dataclass(frozen=True, eq=False)
class Treebank:
    """The sentences of all files, each text once.

    sides: (sentence,) train, dev or test, or "" without a split. rows: sentences read, including repeated and skipped
    ones. normalized_texts: all texts after `normalize`. repeated: the places of sentences whose text stands elsewhere.
    skipped: problem -> the lines of invalid sentences that were left out.
    """

    sentences: list[Sentence]
    sides: list[str]
    rows: int
    normalized_texts: Set[str]
    repeated: Sequence[tuple[Table, int]]
    skipped: Mapping[str, Sequence[tuple[Table, int]]]

    @property
    def has_split(self) -> bool:
        """Whether the files fix a split."""
        return bool(self.sides[0])

    @cached_property
    def has_dotless_i(self) -> bool:
        """Whether ı occurs, as in Turkish, where the capital of i is İ."""
        return any("ı" in sentence.text for sentence in self.sentences)

    @cached_property
    def words(self) -> dict[str, list[tuple[str, str]]]:
        """Text -> its words and their parts of speech; a token not spelled by its words has all of theirs."""
        return {sentence.text: sentence.words() for sentence in self.sentences}

    @cached_property
    def bigram_counts(self) -> Counter[tuple[str, str]]:
        """How often two case-folded words follow each other; "" is the end of a sentence."""
        return Counter(pair for s in self.sentences for pair in pairwise((*map(str.casefold, s.forms), "")))

    @cached_property
    def form_counts(self) -> Counter[str]:
        """How often a case-folded word occurs."""
        return Counter(form.casefold() for s in self.sentences for form in s.forms)

    @cached_property
    def next_initials(self) -> set[tuple[str, str]]:
        """Pairs of a word and the first letter of a word that follows it: (an, a), but not (an, b)."""
        return {(word, next_word[:1]) for word, next_word in self.bigram_counts}

    @cached_property
    def similar_words(self) -> dict[tuple[object, ...], list[tuple[str, str]]]:
        """The distinct nouns and verbs (form, lemma) by `word_key`, in alphabetical order."""
        words_by_key: dict[tuple[object, ...], set[tuple[str, str]]] = defaultdict(set)
        for s in self.sentences:
            for word in range(1, len(s.forms)):
                if s.upos[word] in ("NOUN", "VERB"):
                    key = word_key(s, word, self.form_counts[s.forms[word].casefold()])
                    words_by_key[key].add((s.forms[word], s.lemmas[word]))
        return {key: sorted(words) for key, words in words_by_key.items()}


@lru_cache(maxsize=1)  # for the next property of the same files; sizes and times detect changes
def _load_files(files: tuple[tuple[Path, str, int, int], ...], skip_bad_sentences: bool) -> tuple[Treebank, list[str]]:
    """The treebank of these files (path, side, size, time), and notes on the sentences that are skipped."""
    contents = [(side, _read_file(path, skip_bad_sentences)) for path, side, *_ in files]
    notes, skipped = list[str](), defaultdict[str, list[tuple[Table, int]]](list)
    for _, file in contents:
        for kind, (error, lines) in file.findings.problems.items():
            notes.append(f"invalid sentences left out: {error.where}: {error.what}")
            skipped[kind] += [(file.findings, line) for line in lines]
    sentences = [(side, sentence) for side, file in contents for sentence in file.sentences]
    sides = {normalize(sentence.text): side for part in ("", *SIDES) for side, sentence in sentences if side == part}
    unique, repeated, seen = [], [], set()
    for side, sentence in sentences:  # a text on several sides stays in test, or else in dev
        if sides[key := normalize(sentence.text)] == side and key not in seen:
            seen.add(key)
            unique.append((side, sentence))
        else:
            repeated.append(sentence.place)
    rows = len(sentences) + sum(map(len, skipped.values()))
    unique_sides, unique_sentences = zip(*unique, strict=True)
    return Treebank([*unique_sentences], [*unique_sides], rows, sides.keys(), repeated, skipped), notes


def normalize(text: str) -> str:
    """The text in the form in which a split compares texts (probes.tasks.split)."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def word_key(s: Sentence, word: int, count: int) -> tuple[object, ...]:
    """What words must share to replace each other: part of speech, features, capital, log2 of their `count`."""
    features = tuple(sorted(s.features[word].items()))
    return s.upos[word], features, s.forms[word][:1].isupper(), count.bit_length()
