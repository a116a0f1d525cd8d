"""Task sources, one module each. The word before the first colon of a SPEC selects the source.

A source is a function ``load(rest, options) -> Loaded``; `rest` is what follows the colon. Those of other packages are
named as they are registered (`SOURCES`), or in full: ``package.module:load:REST``. Imports no torch.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from typing import Any, Literal

import numpy as np

from clsprobe.analysis.sources.suffixes import SUFFIXES, split_suffix
from clsprobe.probes.errors import InputError
from clsprobe.probes.plugins import PluginError, contain, undo_changes
from clsprobe.probes.registry import FULL_NAME, Register, describe_kind, search_current_folder
from clsprobe.probes.tasks.options import RowOptions, write_flag
from clsprobe.probes.tasks.places import Places
from clsprobe.probes.tasks.task import Task

SOURCES = Register(
    "source",
    "clsprobe.sources",
    "--task",
    {name: f"clsprobe.analysis.sources.{name}:load" for name in ("grammar", "file", "conllu", "senteval", "hf")},
)


@dataclass(frozen=True)
class SourceOptions(RowOptions):
    """The command-line flags that a source may need, under the same names.

    Without a label column file: and hf: make one task whose numbers are all 0. text_column: one column, or two of them
    for pairs, "premise,hypothesis". no_header: the first row is data too, and columns are named 1, 2, ...
    """

    text_column: str | None = None
    encoding: str = "utf-8"
    sep: str | None = None
    quoting: Literal["auto", "none", "csv"] = "auto"
    no_header: bool = False
    detokenise: bool = False
    skip_bad_sentences: bool = False
    split: str | None = None

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The text column, or the two columns of text pairs; empty for vectors without texts.

        Raises InputError for more than two columns and for a column named twice.
        """
        if self.vectors and not self.text_column:
            return ()
        names = tuple((self.text_column or "text").split(","))
        if len(names) > 1:  # a space belongs to the name of a single column only, which may have it in the header
            names = tuple(map(str.strip, names))
        if len(names) > 2 or not all(map(str.strip, names)):
            what = f"'{self.text_column}' is neither one column nor two"
            raise InputError("--text-column", what, "Name one, or two for pairs, as in premise,hypothesis")
        if len(set(names)) < len(names):
            raise InputError("--text-column", f"'{names[0]}' is named twice", "Name another second column")
        return names

    def flag(self, name: str, value: Any = None) -> str:
        """An option as the command line has it."""
        return write_flag(name, value)


@dataclass(frozen=True)
class Loaded:
    """The tasks of one SPEC and its row counts: `rows` read = rows of every task + `left_out` (reason -> rows) + what
    the task itself leaves out. Tasks with texts of their own count the rows that were read for each of them.

    words: sentence -> its words and their parts of speech (Universal Dependencies), in the order of the text, where the
    source knows them. excluded: task -> reason -> places of the rows that were left out of it, where the source knows
    them.
    """

    tasks: list[Task]
    rows: int
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    words: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    excluded: Mapping[str, Mapping[str, Places]] = field(default_factory=dict)

    @classmethod
    def of_task(cls, task: Task) -> Loaded:
        """A task that was made in memory, with the rows that were left out of it and the notes on them."""
        rows = len(task.texts) + sum(task.left_out.values())
        return cls([task], rows, dict(task.left_out), list(task.notes), excluded={task.name: task.excluded})

    def without_rare(self, least: int | None) -> Loaded:
        """The same, every task `Task.without_rare`; None for all classes."""
        return replace(self, tasks=[task.without_rare(least) for task in self.tasks]) if least else self

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that was read: of these values, not of a file, which may change after it was read."""
        total, texts_before = sha256(), None
        total.update(f"{self.rows} {self.left_out} {self.notes}\n".encode("utf-8", "surrogatepass"))
        for task in self.tasks:
            total.update(f"{task.name} {task.kind} {task.textless} {task.solved_by}\n".encode("utf-8", "surrogatepass"))
            for name in ("y", "split", "groups", "rows", "texts"):
                values = getattr(task, name)
                if values is not texts_before:  # tasks of one file share their texts
                    total.update(f"{name}\n".encode())
                    _update_digest(total, values)
            texts_before = task.texts
        for sentence, tagged_words in self.words.items():
            _update_digest(total, [sentence, *chain.from_iterable(tagged_words)])
        return total.hexdigest()

    @property
    def classes(self) -> dict[str, dict[str, dict[str, int]]]:
        """Task -> class -> side -> rows, as `clsprobe list tasks` prints; side "all" if the source fixes no split."""
        counts: dict[str, dict[str, dict[str, int]]] = {}
        for task in self.tasks:
            sides = ["all"] * len(task.y) if task.split is None else task.split.tolist()
            rows = counts[task.name] = dict[str, dict[str, int]]()
            for (label, side), n in sorted(Counter(zip(task.y.tolist(), sides, strict=True)).items()):
                rows.setdefault(str(label), {})[side] = n
        return counts


@dataclass(frozen=True, eq=False)
class MinimalPairs:
    """Sentences of one label, each with its twin of the other: the same sentence, but for what the label demands.

    labels: those of the two sentences of every pair, in their order in `texts`. lemmas: of the word that carries the
    label, such as the main verb of a tense; "" where no single word does. carriers: text -> this lemma, also for the
    texts of the task, so that pairs can be left out whose lemma was trained on. other_labels: other property -> text ->
    label, for the texts of the pairs and of the task, where the source knows them.
    """

    labels: tuple[str, str]
    texts: list[tuple[str, str]]
    lemmas: list[str]
    carriers: Mapping[str, str] = field(default_factory=dict)
    other_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all pairs and of what is known of them."""
        total = sha256()
        for values in ([*self.labels], [*chain.from_iterable(self.texts)], self.lemmas):
            _update_digest(total, values)
        for labels in (self.carriers, *self.other_labels.values()):
            _update_digest(total, [*chain.from_iterable(labels.items())])
        return total.hexdigest()


def load_pairs(spec: str, options: SourceOptions | None = None) -> dict[str, MinimalPairs]:
    """Task name -> minimal pairs, for those tasks of a SPEC that have any: of grammar: and conllu:.

    options, errors: as of `load`.
    """
    source, rest = split_spec(spec)
    if source not in ("grammar", "conllu"):
        return {}
    pairs: dict[str, MinimalPairs] = import_module(f"clsprobe.analysis.sources.{source}").load_pairs(
        rest, options or SourceOptions()
    )
    return pairs


def split_spec(spec: str) -> tuple[str, str]:
    """The name of the source of a SPEC, and what is left for it: ("grammar", "tense"), ("package.module:load", REST).

    A full name has a dot before its first colon, or a module there that can be imported. Imports neither.
    """
    first, _, rest = spec.partition(":")
    function, _, further = rest.partition(":")
    if first in SOURCES.built_in or not FULL_NAME.fullmatch(f"{first}:{function}") or first in SOURCES.names():
        return first, rest
    search_current_folder()
    is_full = "." in first or find_spec(first) is not None
    return (f"{first}:{function}", further) if is_full else (first, rest)


def complete_spec(spec: str) -> str:
    """A SPEC as it is; of a path that names no source, ``file:PATH``.

    A path is what exists, what starts with ``./``, ``../``, ``/`` or ``~``, and a name with the suffix of a data file.
    """
    if not isinstance(spec, str) or not spec or (source := split_spec(spec)[0]) in SOURCES.built_in:
        return spec
    try:
        is_path = spec.startswith(("./", "../", "/", "~")) or os.path.exists(spec)
    except ValueError:  # a NUL in it
        is_path = False
    if is_path or (split_suffix(spec)[1] in SUFFIXES and ":" not in spec):
        return spec if source in SOURCES.names() else f"file:{spec}"
    return spec


def load(spec: str, options: SourceOptions | None = None) -> Loaded:
    """Load the tasks of a SPEC such as ``grammar:tense``, ``file:reviews.csv`` or ``package.module:load:REST``.

    A path alone is read as ``file:PATH``. options: by default the flags' defaults. Raises InputError for an unknown
    source, for invalid input data, and for whatever a source of another package raises or returns instead of a
    `Loaded`.
    """
    if not isinstance(spec, str):
        mend = "Pass a SPEC such as 'grammar:tense' or 'file:reviews.csv'"  # type: ignore[unreachable]
        raise InputError("--task", f"is {describe_kind(spec)}, not a SPEC", mend)
    options = options or SourceOptions()
    source, rest = split_spec(complete_spec(spec))
    path = source.partition(":")[0]
    if source not in SOURCES.built_in and "." in path and os.path.isfile(path):
        mend = f"Write file:{path}, with --label-column for a column of labels"
        raise InputError(f"--task {spec}", f"{path} is a file, and no source is named", mend)
    function = SOURCES.load(source)
    if options.vectors and source != "file":
        what = f"{source}: makes its rows itself, so that vectors of yours cannot belong to them"
        raise InputError("--vectors", what, "Give the labels as file:PATH")
    if not SOURCES.is_plugin(source):
        loaded: Loaded = function(rest, options)
        return loaded.without_rare(options.min_class)
    where = f"--task {source}"
    if not callable(function):
        raise InputError(where, f"is {describe_kind(function)}, not a source", "Name a function load(rest, options)")
    try:
        with contain(), undo_changes():
            result = function(rest, options)
            if isinstance(result, Loaded):
                result = replace(result, tasks=[*result.tasks], left_out=dict(result.left_out), notes=[*result.notes])
    except PluginError as error:
        raise InputError(where, f"failed on '{rest}' ({error})", "Mend the plug-in") from error.__cause__
    if not isinstance(result, Loaded):
        raise InputError(where, f"returned {describe_kind(result)}, not a Loaded", "Return a clsprobe.Loaded")
    if wrong := [task for task in result.tasks if not isinstance(task, Task)]:
        raise InputError(where, f"returned {describe_kind(wrong[0])} among its tasks", "Make each a clsprobe.Task")
    if not result.tasks:
        raise InputError(where, f"made no task of '{rest}'", "Raise InputError where there is none")
    return result.without_rare(options.min_class)


def _update_digest(total: Any, values: np.ndarray | Sequence[str] | None) -> None:
    """Add numbers or strings, with their number and lengths, so that no two sequences are one stream of bytes."""
    if values is None:
        total.update(b"none\n")
    elif isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        total.update(f"{values.dtype} {values.shape}\n".encode() + values.tobytes())
    else:
        total.update(f"{len(values)} strings\n".encode())
        for start in range(0, len(values), 4096):
            encoded = [str(value).encode("utf-8", "surrogatepass") for value in values[start : start + 4096]]
            total.update(np.array([*map(len, encoded)], "<i8").tobytes() + b"".join(encoded))
