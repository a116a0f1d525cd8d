"""One slip of the finger, and the name that was meant stands first in what is suggested.

Two hundred names of every kind that a user types, each with a seeded edit: a letter inserted, deleted, replaced, or two
neighbours swapped. Asked is the whole command's line, not the function behind it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import Random

import pytest

from clsprobe import cli
from clsprobe.analysis.registers import COMMANDS, STUDIES
from clsprobe.analysis.sources import SOURCES, SourceOptions, load
from clsprobe.analysis.sources.conllu import PROPERTIES
from clsprobe.analysis.sources.grammar import PROPERTIES as BUILT_IN
from clsprobe.flags import make_study
from clsprobe.listing import KINDS as LISTED
from clsprobe.probes.errors import InputError, did_you_mean
from clsprobe.probes.extraction.readouts import NAMED, parse_readouts
from clsprobe.probes.registry import PROBES
from clsprobe.run import Run

LETTERS = "abcdefghijklmnopqrstuvwxyz"
COLUMNS = ["text", "label", "sentence", "stars", "category", "split", "group", "review_id", "Author", "question type"]
SHARE = 0.95  # of the typos of all kinds together
TYPOS = 200


def make_typo(name: str, rng: Random) -> str:
    """The name after one edit; never the name itself."""
    while True:
        position, letter = rng.randrange(len(name)), rng.choice(LETTERS)
        edit = rng.choice(["insert", "delete", "substitute", "transpose"])
        typo = {
            "insert": name[:position] + letter + name[position:],
            "delete": name[:position] + name[position + 1 :],
            "substitute": name[:position] + letter + name[position + 1 :],
            "transpose": name[:position] + name[position + 1 : position + 2] + name[position] + name[position + 2 :],
        }[edit]
        if typo and typo != name:
            return typo


def error_line(ask: Callable[[], object]) -> str:
    """The line that answers; nothing where a typo happens to be a name that there is."""
    try:
        ask()
    except InputError as error:
        return str(error)
    return ""


def run_command(*words: str) -> Callable[[], object]:
    def ask() -> None:
        try:
            cli.app(args=list(words), prog_name="clsprobe", standalone_mode=False)
        except cli.UsageError as error:
            raise cli._convert_usage_error(error, words) from None

    return ask


def load_column(typo: str, folder: Path) -> Callable[[], object]:
    (folder / "d.csv").write_text(",".join(COLUMNS) + "\n" + ",".join("x" * len(COLUMNS)) + "\n")
    text = "text" if typo != "text" else "sentence"
    return lambda: load(f"file:{folder}/d.csv", SourceOptions(text_column=text, label_column=(typo,)))


def read_key(typo: str, folder: Path) -> Callable[[], object]:
    (folder / "run.yaml").write_text(f"{typo}: 1\n")
    return lambda: make_study(Run, {}, str(folder / "run.yaml"))


FLAGS = [field.replace("_", "-") for field in Run.model_fields if len(field) > 3]
KINDS: dict[str, tuple[list[str], Callable[[str, Path], Callable[[], object]]]] = {
    "column": (COLUMNS, load_column),
    "readout": (list(NAMED), lambda typo, _: lambda: parse_readouts([typo])),
    "probe": (list(PROBES.built_in), lambda typo, _: lambda: PROBES.full_name(typo)),
    "source": (list(SOURCES.built_in), lambda typo, _: lambda: load(f"{typo}:x", SourceOptions())),
    "property": (list(PROPERTIES), lambda typo, _: lambda: load(f"conllu:x:{typo}", SourceOptions())),
    "built-in": (list(BUILT_IN), lambda typo, _: lambda: load(f"grammar:{typo}", SourceOptions())),
    "flag": (FLAGS, lambda typo, _: run_command("run", f"--{typo}", "1")),
    "key": (FLAGS, read_key),
    "value": (["truncate", "error", "drop"], lambda typo, _: lambda: make_study(Run, {"long_rows": typo})),
    "list": (list(LISTED), lambda typo, _: run_command("list", typo)),
    "command": ([*STUDIES.built_in, *COMMANDS], lambda typo, _: run_command(typo)),
}


def shares(folder: Path) -> dict[str, tuple[int, int]]:
    """Kind -> (right, tried): of TYPOS typos, how many were answered with what was meant."""
    rng, counts = Random(0), dict[str, tuple[int, int]]()
    for kind, (names, ask) in KINDS.items():
        right = 0
        for n in range(tried := -(-TYPOS // len(KINDS))):
            name = names[n % len(names)]
            typo = make_typo(name, rng)
            while typo in names or typo.replace("-", "_") in names:
                typo = make_typo(name, rng)
            line = error_line(ask(typo, folder))
            guess = re.search(r"Did you mean '([^']*)'", line)
            right += guess is not None and guess[1].lstrip("-").replace("_", "-") == name.replace("_", "-")
        counts[kind] = right, tried
    return counts


def test_the_name_that_was_meant_stands_first(tmp_path) -> None:
    counts = shares(tmp_path)
    print({kind: f"{right / tried:.0%}" for kind, (right, tried) in counts.items()})
    assert sum(tried for _, tried in counts.values()) >= TYPOS
    assert sum(right for right, _ in counts.values()) >= SHARE * sum(tried for _, tried in counts.values())
    for kind, (right, tried) in counts.items():
        assert right >= 0.8 * tried, kind


def test_a_guesser_that_knows_no_swaps_would_be_seen(tmp_path, monkeypatch) -> None:
    """The broken twin: it guesses the first name of equal length."""

    def careless(name: str, known: object) -> str | None:
        return next((candidate for candidate in known if len(candidate) == len(name)), None)  # type: ignore[attr-defined]

    for module in ("clsprobe.probes.errors", "clsprobe.analysis.sources.opening", "clsprobe.cli", "clsprobe.config"):
        monkeypatch.setattr(import_module(module), "did_you_mean", careless)
    counts = shares(tmp_path)
    assert sum(right for right, _ in counts.values()) < SHARE * sum(tried for _, tried in counts.values())


@pytest.mark.parametrize(
    ("typo", "known", "meant"),
    [
        ("lable", ["text", "label_column"], "label_column"),
        ("maen", ["max", "mean"], "mean"),
        ("xyzzy", ["mean", "max"], None),
        ("", ["mean", "max"], None),
        ("token[1", ["cls", "token[1]"], "token[1]"),
    ],
)
def test_guesses(typo, known, meant) -> None:
    assert did_you_mean(typo, known) == meant
