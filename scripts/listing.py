"""`clsprobe list`: the models, tasks, readouts, probes, studies, sources and plots to choose from."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clsprobe.analysis.settings import TaskSettings
from clsprobe.analysis.sources import Loaded, SourceOptions
from clsprobe.flags import field_flags, flag_name, make_study, set_flags
from clsprobe.probes.errors import InputError, unknown
from clsprobe.terminal import echo

if TYPE_CHECKING:
    from clsprobe.probes.registry import Entry, Register


KINDS = ("models", "tasks", "readouts", "probes", "studies", "sources", "plots")
Lines = list[tuple[str, str]]  # names and descriptions


READING = [name for name in TaskSettings.model_fields if name in SourceOptions.__dataclass_fields__]  # flags of --task


def list_choices(what: str, *, debug: bool = False, **reading: Any) -> None:
    """What there is to choose from."""
    if what not in KINDS:
        raise unknown("list", "kind", what, KINDS)
    values = {name: value for name, value in reading.items() if value not in (None, [], False)}
    if values and what != "tasks":
        raise InputError(flag_name(next(iter(values))), f"says nothing about {what}", "Use clsprobe list tasks")
    if values and "task" not in values:
        what = "says how a task is read, and no task is named"
        raise InputError(flag_name(next(iter(values))), what, "Name it with --task")
    if values:
        for line in _describe_tasks(make_study(TaskSettings, values)):
            echo(line)
        return
    listings = (
        _list_models, _list_tasks, _list_readouts, _list_probes, _list_studies, _list_sources, _list_plots
    )  # fmt: skip
    lines = dict(zip(KINDS, listings, strict=True))[what]()
    width = max(len(name) for name, _ in lines)
    for name, description in lines:
        echo(f"{name:<{width}}  {description}")


def _list_models() -> Lines:
    from clsprobe.probes.encoders.adapters import BLOCKS
    from clsprobe.probes.encoders.describing import describe

    embedded = describe()
    return [
        (embedded.name, f"embedded, the default: layers 0..{embedded.layers}, {embedded.dim} dimensions"),
        ("ORG/NAME or a folder", f"any encoder of these architectures: {', '.join(sorted(BLOCKS))}"),
    ]


def _list_tasks() -> Lines:
    from clsprobe.analysis.sources import SOURCES
    from clsprobe.analysis.sources.grammar import DEMO, PROPERTIES, SIZE

    of_others = [(f"{name}:REST", text) for name, text in _list_register(SOURCES) if name not in SOURCES.built_in]
    return [
        *((f"grammar:{name}", "built-in sentences, words disjoint between train and test") for name in PROPERTIES),
        ("grammar:demo", f"{', '.join(DEMO)}; the default"),
        ("grammar:all", "all of them"),
        ("grammar:NAME:SIZE", f"as many sentences as you say instead of {SIZE:,}"),
        ("file:PATH", "a .csv, .tsv, .jsonl, .json or .parquet file, or a folder of them or of save_to_disk"),
        ("file:-", "CSV from standard input; file:-.tsv, file:-.jsonl and file:-.parquet as they say"),
        ("conllu:PATH:PROPERTY", "a Universal Dependencies treebank; conllu:PATH:all for all it supports"),
        ("senteval:PATH", "a SentEval probing file"),
        ("hf:ORG/NAME[:CONFIG][@REVISION]", "a Hugging Face dataset; --split takes its slice syntax"),
        *of_others,
    ]


def _describe_tasks(settings: TaskSettings) -> list[str]:
    """Lines with the rows by class and split of every task, the rows left out by reason, and the notes."""
    from clsprobe.analysis.corpus import load_specs

    lines = []
    for _, loaded in load_specs(settings):
        for task, (name, classes) in zip(loaded.tasks, loaded.classes.items(), strict=True):
            rows = sum(sum(splits.values()) for splits in classes.values())
            lines.append(f"{name}: {rows:,} rows, {len(classes)} classes")
            for label, splits in classes.items():
                counts = ", ".join(f"{n:,}" if split == "all" else f"{split} {n:,}" for split, n in splits.items())
                lines.append(f"  {label}: {counts}")
            lines += [f"  left out, {reason}: {n:,}" for reason, n in task.left_out.items()]
        lines += _describe_left_out(loaded)
        lines += loaded.notes
    return lines


def _describe_left_out(loaded: Loaded) -> list[str]:
    """Lines with the rows left out by reason; one line for what every task leaves out (``LABEL: REASON``)."""
    labels = [task.label for task in loaded.tasks]
    lines = dict[str, None]()
    for name, n in loaded.left_out.items():
        label, _, reason = name.partition(": ")
        counts = {loaded.left_out.get(f"{other}: {reason}") for other in labels}
        where = f" of each of the {len(labels)} tasks" if len(labels) > 1 and label in labels and counts == {n} else ""
        if n:
            lines[f"left out{where}, {reason if where else name}: {n:,}"] = None
    return [*lines]


def _list_readouts() -> Lines:
    from clsprobe.probes.extraction.readouts import FORMS, READOUTS

    return [*_list_register(READOUTS), *FORMS.items(), ("package.module:Class", "any clsprobe.Readout")]


def _list_probes() -> Lines:
    from clsprobe.probes.registry import PROBES

    return [*_list_register(PROBES), ("package.module:Class", "any CellProbe, scikit-learn classifier or regressor")]


def _list_sources() -> Lines:
    from clsprobe.analysis.sources import SOURCES

    lines = [
        (entry.name, _describe_origin(entry) if entry.package else SOURCES.describe_module(entry.name))
        for entry in SOURCES.entries()
    ]
    return [*lines, ("package.module:function", "any function load(rest, options) that returns a clsprobe.Loaded")]


def _list_studies() -> Lines:
    from clsprobe.analysis.registers import STUDIES, load_study, read_question

    def ask(entry: Entry) -> str:
        if not entry.package:
            return read_question(entry.name)
        try:
            question = load_study(entry.name).question
        except InputError as error:
            return f"cannot be used: {error.what}"
        return f"{question} ({_describe_origin(entry)})"

    return [*((entry.name, ask(entry)) for entry in STUDIES.entries()), ("package.module:Class", "any clsprobe.Study")]


def _list_plots() -> Lines:
    from clsprobe.analysis.plots import PLOTS

    return _list_register(PLOTS)


def _list_register(register: Register) -> Lines:
    """clsprobe's own names with the first sentence of their docstrings, and those of other packages."""
    return [
        (entry.name, _describe_origin(entry) if entry.package else register.describe(entry.name))
        for entry in register.entries()
    ]


def _describe_origin(entry: Entry) -> str:
    """Where an object of another package comes from: "stranger 1.0, stranger.probes:Mine"."""
    full_name = "" if entry.name == entry.full_name else f", {entry.full_name}"
    return f"{entry.package}{full_name}" + (f"; {entry.reason}" if entry.reason else "")


set_flags(
    list_choices,
    {"task": (list[str], "tasks: a SPEC, for its rows by class and those left out; repeatable")}
    | field_flags(TaskSettings, READING)
    | {"debug": (bool, "show tracebacks")},
    inspect.Parameter(
        "what",
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        annotation=Annotated[
            str,
            typer.Argument(help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}", autocompletion=lambda: list(KINDS)),
        ],
    ),
)
