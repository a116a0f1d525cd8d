"""From settings to tasks that are read and checked, before torch is imported.

1. `load_specs` reads every SPEC; `read_corpus` makes tasks of them, `--max-texts` applied.
2. `read_inputs` adds the description of an encoder with its layers and readouts, or a file of vectors.

All of these raise InputError for anything the user can fix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from clsprobe.analysis.contents import model_contents
from clsprobe.analysis.settings import (
    EncoderSettings,
    LabelSettings,
    TextSettings,
    VectorSettings,
)
from clsprobe.analysis.sources import SOURCES, Loaded, SourceOptions, load, split_spec
from clsprobe.analysis.study import counted
from clsprobe.analysis.verdict import short
from clsprobe.probes.encoders.describing import Description, describe
from clsprobe.probes.encoders.devices import check_device
from clsprobe.probes.encoders.layers import parse_layer_numbers, parse_layers
from clsprobe.probes.encoders.sentence_layout import check_layout
from clsprobe.probes.errors import InputError, quote
from clsprobe.probes.extraction.precheck import check_before_loading
from clsprobe.probes.extraction.readouts import DEFAULT, Pooled, parse_readouts
from clsprobe.probes.tasks.options import write_flag
from clsprobe.probes.tasks.places import Places
from clsprobe.probes.tasks.split import sample_rows
from clsprobe.probes.tasks.task import IN_MEMORY, Task

if TYPE_CHECKING:
    from clsprobe.probes.extraction.vectors import Vectors


BEYOND = "beyond --max-texts"
OF_ONE = {"skip_bad_sentences": "conllu", "split": "hf", "detokenise": "senteval"}  # option -> the source that has it


@dataclass(frozen=True)
class Corpus:
    """The tasks of a run, with the counts of rows that the page and run.json report.

    rows: SPEC -> rows read and left out. contents: SPEC or file of vectors -> digest of what was read. unread: task ->
    reason -> rows that were left out when their source was read. excluded: likewise, when a task was made of the rest:
    of rare classes, and beyond --max-texts.
    """

    tasks: list[Task]
    rows: dict[str, dict[str, int]]
    notes: list[str]
    contents: dict[str, str]
    unread: dict[str, Mapping[str, Places]] = field(default_factory=dict)
    excluded: dict[str, dict[str, Places]] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """Every distinct text of all tasks, once."""
        return list(dict.fromkeys(text for task in self.tasks for text in task.texts))

    def describe_long(self, lengths: np.ndarray, limit: int) -> InputError:
        """`refuse_long` for the first task that has such a text. lengths: (text,) of `texts`."""
        length_of = dict(zip(self.texts, lengths.tolist(), strict=True))
        for task in self.tasks:
            of_task = np.array([length_of[text] for text in task.texts])
            if (of_task > limit).any():
                return refuse_long(task, of_task, limit)
        raise ValueError("no text is too long")


@dataclass(frozen=True)
class Inputs:
    """What a study reads: a corpus, and an encoder or vectors.

    description: None where vectors were given. vector_ids: (row of the vectors,) equal for equal vectors.
    """

    corpus: Corpus
    description: Description | None
    layers: list[int]
    readouts: list[str]
    vectors: Vectors | None = None
    vector_ids: np.ndarray | None = None

    @property
    def tasks(self) -> list[Task]:
        """The tasks of the corpus."""
        return self.corpus.tasks

    @property
    def contents(self) -> dict[str, str]:
        """Name -> digest of what is read: the corpus, and the encoder or the vectors."""
        return self.corpus.contents | model_contents([self.description] if self.description else [])


def make_source_options(settings: TextSettings) -> SourceOptions:
    """How sources are read, of the settings of a study."""
    fields = SourceOptions.__dataclass_fields__
    return SourceOptions(**{name: getattr(settings, name) for name in fields if hasattr(settings, name)})


def load_specs(settings: TextSettings, **options: Any) -> Iterator[tuple[str, Loaded]]:
    """Every SPEC with what was loaded from its source, and every task in memory under its name.

    options: fields of SourceOptions that override the settings. Raises InputError for an option that no SPEC can use.
    """
    source_options = replace(make_source_options(settings), **options)
    _refuse_unused([task for task in settings.task if isinstance(task, str)], source_options)
    if all(isinstance(task, Task) for task in settings.task):
        _refuse_reading(settings)
    for task in settings.task:
        if isinstance(task, Task):
            yield task.name, Loaded.of_task(task)
        else:
            yield task, load(task, source_options)


def _refuse_unused(specs: Sequence[str], options: SourceOptions) -> None:
    """Raise InputError for an option of one source where no SPEC is of it; a plug-in may use any option."""
    sources = {split_spec(spec)[0] for spec in specs}
    if not specs or not sources <= SOURCES.built_in.keys():
        return
    for name, source in OF_ONE.items():
        if getattr(options, name) and source not in sources:
            what = f"is for {source}: tasks, and {quote(specs[0], 200)[1:-1]} is none"
            raise InputError(write_flag(name), what, "Leave the flag out")


def _refuse_reading(settings: TextSettings) -> None:
    """Raise InputError for a setting that says how a file or data set is read, where all tasks are in memory."""
    for name in SourceOptions.__dataclass_fields__:
        info = type(settings).model_fields.get(name)
        if info is not None and name not in ("vectors", "min_class") and getattr(settings, name) != info.default:
            what = "says how a source is read, and the task is in memory"
            mend = "Leave it out; Task.from_lists, from_frame and from_dataset have such arguments"
            raise InputError(name, what, mend)


def read_corpus(
    settings: LabelSettings,
    *,
    seed: int,
    vectors: Vectors | None = None,
    encoder: Description | None = None,
    readouts: Sequence[str] = DEFAULT,
    layers: Sequence[int] = (),
) -> Corpus:
    """The tasks of all SPECs. vectors: one for every row that is read; InputError otherwise.

    encoder: raises InputError, before any weights are read, for texts that are too long for it and for what else it
    would refuse (`check_before_loading`), in these readouts and layers. settings: then `ReadingSettings` too.
    """
    if not settings.label_column:
        raise InputError("--label-column", "no column named", "Name one")
    corpus = Corpus([], {}, [], {})
    in_memory = {task.name for task in settings.task if isinstance(task, Task)}
    for spec, loaded in load_specs(settings):
        if vectors and spec in settings.task:  # a task in memory says itself which rows are its own
            check_count(vectors, spec, loaded.rows)
        left_out = {f"left out: {reason}": n for reason, n in loaded.left_out.items() if n}
        corpus.rows[spec] = {"rows": loaded.rows} | left_out
        corpus.notes.extend(loaded.notes)
        corpus.contents[spec] = loaded.digest
        for task in loaded.tasks:
            selected, excluded = task, dict(task.excluded)
            if task.name in in_memory:  # what it lacks was left out when it was made
                selected, excluded = _drop_rare(task, settings.min_class)
            corpus.notes.extend(f"{short(task.name)}: {len(n):,} left out, {why}." for why, n in excluded.items())
            if settings.max_texts and len(selected.texts) > settings.max_texts:
                rows = sample_rows(selected, settings.max_texts, seed=seed)
                excluded[BEYOND] = selected.located.take(np.setdiff1d(np.arange(len(selected.texts)), rows))
                selected, rare = _drop_rare(selected.take(rows), settings.min_class)
                excluded |= {f"{reason} of the sample": places for reason, places in rare.items()}
            corpus.tasks.append(selected)
            corpus.unread[task.name], corpus.excluded[task.name] = loaded.excluded.get(task.name, {}), excluded
    if not corpus.tasks:
        raise InputError("--task", "no task is named", "Name one, such as grammar:tense or file:reviews.csv")
    names = [task.name for task in corpus.tasks]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        mend = "Pass name=... to one of them" if repeated.startswith(IN_MEMORY) else "Rename a file, or run them apart"
        raise InputError("--task", f"two tasks are called '{repeated}'", mend)
    if encoder is not None:
        reading: Any = settings
        lengths = check_before_loading(encoder, corpus.texts, readouts, layers, max_length=reading.max_length)
        limit = encoder.limit(reading.max_length)
        if reading.long_rows == "error" and (lengths > limit).any():
            raise corpus.describe_long(lengths, limit)
    return corpus


def read_encoder(settings: EncoderSettings) -> tuple[Description, list[int]]:
    """The description of the encoder, and its layers."""
    check_device(settings.device)
    description = describe(settings.model, prompt=settings.prompt)
    return description, parse_layers(settings.layers, description)


def _drop_rare(task: Task, least: int | None) -> tuple[Task, dict[str, Places]]:
    """The task without rare classes (`Task.without_rare`), and what is left out now, by reason."""
    rest = replace(task, left_out={}, excluded={})
    rest = rest.without_rare(least) if least else rest
    return rest, dict(rest.excluded)


def refuse_long(task: Task, lengths: np.ndarray, limit: int) -> InputError:
    """The error for texts of a task that have more tokens than a model takes, `limit`. lengths: (text,)."""
    longest = int(lengths.argmax())
    others = np.setdiff1d(np.flatnonzero(lengths > limit), [longest])
    places, drop = task.located, repr("drop") if task.name.startswith(IN_MEMORY) else "drop"
    more = f" (likewise {places.describe(others, 5)})" if len(others) else ""
    what = f"the text has {lengths[longest]:,} tokens, and {limit:,} is the limit{more}"
    return InputError(places.locate(longest), what, f"Pass {task.write_option('long_rows', 'truncate')} or {drop}")


def read_inputs(settings: Any, *, seed: int, comparable: Callable[[Sequence[str]], bool] = bool) -> Inputs:
    """Corpus and encoder, or corpus and vectors where `--vectors` names a file.

    settings: `VectorSettings` and `LabelSettings`, optionally `FileOfVectors`. comparable: whether the readouts of such
    a file include what the study compares.
    """
    check_device(settings.device)
    if settings.fast and settings.dtype != "float32":
        raise InputError("--fast", f"is bfloat16, and --dtype says {settings.dtype}", "Give one of them")
    if not getattr(settings, "vectors", None):
        readouts = [readout.name for readout in parse_readouts(settings.readouts)]
        description, layers = read_encoder(settings)
        if Pooled.name in readouts:
            check_layout(description)
        corpus = read_corpus(settings, seed=seed, encoder=description, readouts=readouts, layers=layers)
        return Inputs(corpus, description, layers, readouts)
    vectors = _read_vectors(settings)
    layers, readouts = _choose_layers(settings, vectors, comparable)
    corpus = read_corpus(settings, seed=seed, vectors=vectors)
    if rowless := [task.name for task in corpus.tasks if task.rows is None]:
        mend = "Make it with Task(..., rows=...), the row of the vectors for every text"
        raise InputError(rowless[0], "does not say which rows the vectors belong to", mend)
    rows = np.concatenate([task.rows for task in corpus.tasks if task.rows is not None])
    if (last := int(rows.max(initial=0))) >= vectors.shape[0]:
        what = f"holds {counted(vectors.shape[0], 'vector')}, and a task names row {last:,}"
        raise InputError(vectors.name, what, "Count its rows from 0")
    ids = vectors.check(rows, layers, readouts)
    corpus.contents[str(settings.vectors)] = vectors.digest
    textless = corpus.tasks[0].textless
    missing_baselines = ["untrained encoder", *(["length", "bag of words"] if textless else [])]
    corpus.notes.append(
        f"No encoder was run: the vectors are those of {vectors.name}. Baselines that are left out for want of "
        f"an encoder{' and of texts (--text-column)' if textless else ''}: {', '.join(missing_baselines)}."
    )
    return Inputs(corpus, None, layers, readouts, vectors, ids)


def _read_vectors(settings: VectorSettings) -> Vectors:
    """The file of vectors. Raises InputError where a flag of the encoder is given too."""
    from clsprobe.probes.extraction.vectors import read_vectors

    for name in ("model", "prompt", "max_length", "long_rows", "device", "dtype", "fast"):
        if getattr(settings, name) != type(settings).model_fields[name].default:
            flag = "--" + name.replace("_", "-")
            raise InputError(flag, "is for an encoder, and --vectors needs none", "Leave one of them out")
    return read_vectors(str(getattr(settings, "vectors", None)))


def _choose_layers(
    settings: VectorSettings, vectors: Vectors, comparable: Callable[[Sequence[str]], bool]
) -> tuple[list[int], list[str]]:
    """The named layers and readouts of a file of vectors, by default all."""
    default = type(settings).model_fields["readouts"].default
    readouts = vectors.readouts if settings.readouts == default else vectors.choose_readouts(settings.readouts)
    if not comparable(readouts):
        what = f"holds {', '.join(readouts)}; this study compares other readouts with cls"
        raise InputError(vectors.name, what, "Name tensors as in layer.07/cls and layer.07/mean")
    if settings.layers.strip() == "all":
        return vectors.layers, readouts
    return vectors.choose_layers(parse_layer_numbers(settings.layers, vectors.layers[-1])), readouts


def check_count(vectors: Vectors, spec: str, rows: int) -> None:
    """Raise InputError unless there is one vector for each row."""
    count = vectors.shape[0]
    if count == rows:
        return
    fix = "Give one vector for every row, in their order, also for rows that are left out"
    if rows == len(vectors.layers) > 1:
        fix = "Are its axes (layer, row, dim)? Save it as (row, layer, dim)"
    raise InputError(vectors.name, f"holds {counted(count, 'vector')}, {spec} {counted(rows, 'row')}", fix)


def check_classes(tasks: list[Task]) -> None:
    """Raise InputError where the labels of a task are numbers."""
    for task in tasks:
        if task.kind == "number":
            raise InputError(task.name, "holds numbers, and this study reads classes", "Leave --target number out")
