"""The texts, cells and vectors of a reconstruction, read and checked before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from clsprobe.analysis.corpus import BEYOND, check_count, load_specs
from clsprobe.analysis.sources import Loaded
from clsprobe.analysis.study import counted
from clsprobe.probes.encoders.describing import Description, describe
from clsprobe.probes.encoders.layers import parse_layer_numbers, parse_layers
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import OF_TOKENS, parse_readouts
from clsprobe.probes.tasks.places import UNPLACED, Places, Table
from clsprobe.probes.tasks.texts import PAIRED

if TYPE_CHECKING:
    from clsprobe.probes.extraction.states import States
    from clsprobe.probes.extraction.vectors import Vectors

FEWEST = 50  # texts that a decoder can learn from


@dataclass(frozen=True, eq=False)
class StoredVectors:
    """The vectors of `--vectors`: as States, the row of every text in them, and their file."""

    states: States
    rows: np.ndarray
    file: Vectors


@dataclass(frozen=True)
class ReconstructionInputs:
    """The inputs that can be read and checked without torch.

    texts: the distinct texts of all tasks. rows: SPEC -> counts. words: text -> (word, part of speech), if the source
    has them. contents: SPEC or file of vectors -> digest of what was read. places: (text,) where each is read first.
    unread: reason -> rows that were left out before.
    """

    texts: list[str]
    rows: dict[str, dict[str, int]]
    description: Description
    layers: list[int]
    readouts: list[str]
    words: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)
    stored: StoredVectors | None = None
    places: Places = UNPLACED
    unread: Mapping[str, Places] = field(default_factory=dict)


def read_reconstruction(settings: Any) -> ReconstructionInputs:
    """Read the distinct texts of all SPECs, the encoder's cells and the vectors of `--vectors`. Raises InputError.

    settings: those of `Reconstruct`.
    """
    readouts = [readout.name for readout in parse_readouts(settings.readouts)]
    if wrong := [name for name in readouts if name.partition("[")[0] in OF_TOKENS]:
        raise InputError("--readouts", f"'{wrong[0]}' is no single vector of a text", "Choose among cls, mean ...")
    description = describe(settings.model, prompt=settings.prompt)
    depth = description.layers
    layers = parse_layers(settings.layers or (f"0,{depth // 2},{depth}" if depth > 2 else "all"), description)
    vectors = None
    if settings.vectors:
        vectors, layers, readouts = _read_vectors(settings, description)
    if "cls" not in readouts:
        where = vectors.name if vectors else "--readouts"
        raise InputError(where, "the question is about cls", "Name cls among the readouts, as in layer.06/cls")
    texts: dict[str, None] = {}
    row_of: dict[str, int] = {}  # text -> its row in the file of vectors
    rows: dict[str, dict[str, int]] = {}
    words: dict[str, Sequence[tuple[str, str]]] = {}
    contents: dict[str, str] = {}
    place_of: dict[str, tuple[Table, int]] = {}
    excluded: list[Mapping[str, Mapping[str, Places]]] = []
    for spec, loaded in load_specs(settings, text_column=settings.text_column or "text", label_column=()):
        # All sentences of a treebank: its tasks leave out some, and add corrupted ones.
        sentences = list(loaded.words) or [text for task in loaded.tasks for text in task.texts]
        rows[spec] = {"different texts": len(set(sentences))}
        contents[spec] = loaded.digest
        if vectors:
            check_count(vectors, spec, loaded.rows)
            (task,) = loaded.tasks
            row_of = dict(zip(task.texts, [] if task.rows is None else task.rows.tolist(), strict=True))
        words |= loaded.words
        texts |= dict.fromkeys(text for text in sentences if text.strip())
        place_of = _find_places(spec, loaded) | place_of
        excluded.append(loaded.excluded)
    if any(PAIRED in text for text in texts):
        raise InputError("--text-column", "names pairs, and one text is written at a time", "Name one column")
    kept_texts, beyond = list(texts), []
    if settings.max_texts is not None and len(kept_texts) > settings.max_texts:
        kept_texts = Random(settings.seed).sample(kept_texts, settings.max_texts)
        rest = dict.fromkeys(texts)
        for text in kept_texts:
            del rest[text]
        beyond = [place_of[text] for text in rest]
    check_enough(kept_texts, {})
    stored = None
    if vectors:
        row_indices = np.array([row_of[text] for text in kept_texts])
        states = vectors.states(layers, readouts, vectors.check(row_indices, layers, readouts))
        stored = StoredVectors(states, row_indices, vectors)
        contents[str(settings.vectors)] = vectors.digest
    unread = _find_unread(excluded, set(place_of.values()))
    if beyond:
        unread[BEYOND] = Places.gather(beyond)
    places = Places.gather([place_of[text] for text in kept_texts])
    return ReconstructionInputs(
        kept_texts, rows, description, layers, readouts, words, contents, stored, places, unread
    )


def _find_unread(
    excluded: Sequence[Mapping[str, Mapping[str, Places]]], read: Set[tuple[Table, int]]
) -> dict[str, Places]:
    """Reason -> rows that were left out of every task: their sentences may be read although a property leaves them out.

    excluded: task -> reason -> places, of every source. read: the places of all texts.
    """
    unread: dict[tuple[Table, int], str] = {}
    for by_task in excluded:
        for by_reason in by_task.values():
            for reason, places in by_reason.items():
                unread |= {place: reason for place in places.pairs() if place not in read}
    reasons = dict.fromkeys(unread.values())
    return {reason: Places.gather([place for place, why in unread.items() if why == reason]) for reason in reasons}


def _find_places(spec: str, loaded: Loaded) -> dict[str, tuple[Table, int]]:
    """Text -> where a source has it first; for the sentences of a treebank that are in no task, their numbers."""
    sentences = Table(spec, "row")
    places = {text: (sentences, number) for number, text in enumerate(loaded.words, 1)}
    for task in reversed(loaded.tasks):
        for row in range(len(task.texts) - 1, -1, -1):
            places[task.texts[row]] = task.located.pair(row)
    return places


def _read_vectors(settings: Any, description: Description) -> tuple[Vectors, list[int], list[str]]:
    """The file of vectors, and the requested layers and readouts."""
    from clsprobe.probes.extraction.vectors import read_vectors

    if len(settings.task) > 1:
        raise InputError("--vectors", "belong to the rows of one file", "Give one --task")
    vectors = read_vectors(str(settings.vectors))
    default = settings.readouts == type(settings).model_fields["readouts"].default
    names = vectors.readouts if default else vectors.choose_readouts(settings.readouts)
    mend = "Name the encoder that made them with --model, and tensors as in layer.06/cls"
    if vectors.shape[1] != description.dim:
        what = f"its vectors have {vectors.shape[1]:,} dimensions, those of {description.name} {description.dim:,}"
        raise InputError(vectors.name, what, mend)
    try:
        parse_readouts(names)
    except InputError as error:
        raise InputError(vectors.name, error.what, mend) from None
    if vectors.layers[-1] > description.layers:
        what = f"it has a layer {vectors.layers[-1]}, and {description.name} no more than {description.layers}"
        raise InputError(vectors.name, what, mend)
    numbers = parse_layer_numbers(settings.layers, vectors.layers[-1]) if settings.layers else vectors.layers
    return vectors, vectors.choose_layers(numbers), names


def check_enough(texts: Sequence[str], left_out: Mapping[str, int]) -> None:
    """Raise InputError for fewer than `FEWEST` texts. left_out: reason -> texts left out."""
    if len(texts) < FEWEST:
        what = counted(len(texts), "different text")
        what += "".join(f", {n:,} left out: {reason}" for reason, n in left_out.items() if n)
        raise InputError("--task", what, f"A decoder needs {FEWEST} at least")
