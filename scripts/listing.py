"""`clsprobe list`: the models, tasks, readouts, probes and studies to choose from."""

from __future__ import annotations

from typing import Annotated

import typer

from clsprobe.probes.errors import InputError, printable, unknown


def list_choices(
    what: Annotated[str, typer.Argument(help="models, tasks, readouts, probes or studies")],
    task: Annotated[str | None, typer.Option(help="tasks: a SPEC, for its rows by class and those left out")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """What there is to choose from."""
    from clsprobe.studies import studies

    listings = {
        "models": _list_models, "tasks": _list_tasks, "readouts": _list_readouts, "probes": _list_probes,
        "studies": lambda: {name: kind.question for name, kind in studies().items()},
    }  # fmt: skip
    if what not in listings:
        raise unknown("list", "kind", what, listings)
    if task is not None:
        if what != "tasks":
            raise InputError("--task", f"says nothing about {what}", "Use clsprobe list tasks")
        for line in _describe_spec(task):
            typer.echo(line)
        return
    descriptions = listings[what]()
    width = max(map(len, descriptions))
    for name, description in descriptions.items():
        typer.echo(f"{name:<{width}}  {description}")


def _list_models() -> dict[str, str]:
    from clsprobe.probes.encoders.adapters import BLOCKS
    from clsprobe.probes.encoders.describing import describe

    embedded = describe()
    return {
        embedded.name: f"embedded, the default: layers 0..{embedded.layers}, {embedded.dim} dimensions",
        "ORG/NAME or a folder": f"any encoder of these architectures: {', '.join(sorted(BLOCKS))}",
    }


def _list_tasks() -> dict[str, str]:
    from clsprobe.analysis.sources.grammar import DEMO, PROPERTIES, SIZE

    return {
        **{f"grammar:{name}": "built-in sentences, words disjoint between train and test" for name in PROPERTIES},
        "grammar:demo": f"{', '.join(DEMO)}; the default",
        "grammar:all": "all of them",
        "grammar:NAME:SIZE": f"as many sentences as you say instead of {SIZE:,}",
        "file:PATH": "a .csv, .tsv, .jsonl or .parquet file, or a folder with train, dev and test files",
        "file:-": "CSV from standard input; file:-.tsv, file:-.jsonl and file:-.parquet as they say",
        "conllu:PATH:PROPERTY": "a Universal Dependencies treebank; conllu:PATH:all for all it supports",
        "senteval:PATH": "a SentEval probing file",
        "hf:ORG/NAME[:CONFIG][@REVISION]": "a Hugging Face dataset; --split takes its slice syntax",
    }


def _describe_spec(spec: str) -> list[str]:
    """Lines with the rows by class and split of every task of a SPEC, the rows left out by reason, and the notes."""
    from clsprobe.analysis.sources import SourceOptions, load

    loaded = load(spec, SourceOptions())
    lines = []
    for name, classes in loaded.classes.items():
        rows = sum(sum(splits.values()) for splits in classes.values())
        lines.append(f"{name}: {rows:,} rows, {len(classes)} classes")
        for label, splits in classes.items():
            counts = ", ".join(f"{n:,}" if split == "all" else f"{split} {n:,}" for split, n in splits.items())
            lines.append(f"  {printable(label)}: {counts}")
    lines += [f"left out, {reason}: {n:,}" for reason, n in loaded.left_out.items() if n]
    return [*lines, *loaded.notes]


def _list_readouts() -> dict[str, str]:
    return {
        "cls": "the [CLS] token",
        "sep": "the last separator",
        "token[K]": "the K-th content token; token[-1] is the last; token1 and token-1 work too",
        "random": "one content token, drawn by the text",
        "mean": "mean over all real tokens",
        "max": "maximum of every coordinate over all real tokens",
        "cls+norm": "cls, or any other, after the norm that follows the last layer, where the model has one",
    }


def _list_probes() -> dict[str, str]:
    from clsprobe.probes.registry import PROBES

    return dict(PROBES.built_in) | {"package.module:Class": "any CellProbe, scikit-learn classifier or regressor"}
