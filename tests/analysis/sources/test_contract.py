"""`check_source` over every shipped source, and over broken twins, each of which it has to catch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from clsprobe import InputError, SourceOptions, Task, check_source
from clsprobe.analysis.sources import Loaded, conllu, file, grammar, hf, senteval
from clsprobe.analysis.sources.lines import find_path
from clsprobe.probes.tasks.texts import pair

NOUNS = ["dog", "cat", "owl", "fox", "cow", "hen", "ape", "bee", "ant", "elk"]
VERBS = ["bark", "sleep", "walk", "jump", "look", "work"]


def write_treebank(path: Path) -> None:
    """Sentences of four words, in the present and in the past."""
    blocks = []
    for i in range(120):
        noun, verb = NOUNS[i % 10], VERBS[i % 6]
        form, tense = (f"{verb}s", "Pres") if i % 4 < 2 else (f"{verb}ed", "Past")
        rows = [
            ("The", "the", "DET", "_", 2, "det"),
            (noun, noun, "NOUN", "Number=Sing", 3, "nsubj"),
            (form, verb, "VERB", f"Tense={tense}|VerbForm=Fin", 0, "root"),
            (f"here{i}", f"here{i}", "ADV", "_", 3, "advmod"),
            (".", ".", "PUNCT", "_", 3, "punct"),
        ]
        lines = [
            f"{n}\t{word}\t{lemma}\t{pos}\t_\t{features}\t{head}\t{relation}\t_\t_"
            for n, (word, lemma, pos, features, head, relation) in enumerate(rows, 1)
        ]
        blocks.append("\n".join(lines))
    path.write_text("\n\n".join(blocks) + "\n\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A file of every kind that sources read."""
    folder = tmp_path_factory.mktemp("sources")
    lines = [f"{i} is a number,{i % 3},{i % 2},{i}" for i in range(30)]
    (folder / "rows.csv").write_text("\n".join(["text,label,other,amount", *lines, ",1,1,3", "no label,,1,3"]) + "\n")
    (folder / "pairs.csv").write_text("a,b,label\n" + "".join(f"one {i},two {i},{i % 2}\n" for i in range(30)))
    sides = "".join(f"{('tr', 'va', 'te')[i % 3]}\t{'AB'[i % 2]}\tsentence {i} .\n" for i in range(30))
    (folder / "probing.txt").write_text(sides)
    write_treebank(folder / "bank.conllu")
    return folder


DROP = {"drop_empty": True, "drop_missing_labels": True}
SHIPPED = {
    "grammar": (grammar.load, "tense:60", {}),
    "grammar of several": (grammar.load, "demo:360", {}),
    "file": (file.load, "rows.csv", DROP),
    "file of two label sets": (file.load, "rows.csv", {"label_column": ("label", "other"), **DROP}),
    "file of numbers": (file.load, "rows.csv", {"label_column": ("amount",), "target": "number", **DROP}),
    "file of pairs": (file.load, "pairs.csv", {"text_column": "a,b"}),
    "file without labels": (file.load, "rows.csv", {"label_column": (), **DROP}),
    "senteval": (senteval.load, "probing.txt", {}),
    "senteval, detokenised": (senteval.load, "probing.txt", {"detokenise": True}),
    "conllu": (conllu.load, "bank.conllu:tense", {}),
    "conllu of all": (conllu.load, "bank.conllu:all", {}),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_source_passes(name, folder):
    load, rest, options = SHIPPED[name]
    rest = rest if load is grammar.load else f"{folder}/{rest}"
    check_source(load, rest, SourceOptions(**options))


def test_a_dataset_of_the_hub_passes(monkeypatch):
    """From a folder as `datasets` leaves it is tested in test_hf.py; here the errors of what is not there."""
    monkeypatch.setattr("clsprobe.probes.hub.hub_is_reachable", lambda: False)

    def load(rest: str, options: SourceOptions) -> Loaded:
        return source("films", options) if rest == "org/films" else hf.load(rest, options)

    check_source(load, "org/films")


# -------------------------------------------------------------------------------------------------------- a sound one

Load = Callable[[str, SourceOptions], Loaded]
TEXTS = [f"sentence number {i}" for i in range(12)]
LABELS = np.array(["good", "bad"] * 6)


def source(rest: str, options: SourceOptions) -> Loaded:
    """Sound: the films that are built in, of which two have no text."""
    if rest != "films":
        raise InputError("--task", f"unknown collection '{rest[:40]}'", "Name films")
    return Loaded([Task("mine:films:opinion", TEXTS, LABELS)], 14, {"empty text": 2})


def changed(loaded_rows: int = 14, left_out: dict | None = None, notes: tuple = (), **fields: object) -> Load:
    """The sound source with other counts or notes, or another field of its task."""

    def load(rest: str, options: SourceOptions) -> Loaded:
        task = replace(source(rest, options).tasks[0], **fields)
        return Loaded([task], loaded_rows, {"empty text": 2} if left_out is None else left_out, [*notes])

    return load


def test_a_sound_source_passes():
    check_source(source, "films")
    check_source(changed(texts=[pair(text, "yes") for text in TEXTS]), "films")
    check_source(changed(y=np.arange(12.0), kind="number"), "films")


def test_a_source_of_files_may_lean_on_find_path(tmp_path):
    (tmp_path / "films.txt").write_text("\n".join(TEXTS))

    def load(rest: str, options: SourceOptions) -> Loaded:
        path = find_path(rest, "mine:films.txt")
        if path.is_dir():
            raise InputError(rest, "is a folder", "Name a file")
        return Loaded([Task(f"mine:{path.stem}", path.read_text().splitlines(), LABELS)], 12)

    check_source(load, f"{tmp_path}/films.txt")


# -------------------------------------------------------------------------------------------------------- broken twins


def drops_silently(rest, options):
    loaded = source(rest, options)
    task = loaded.tasks[0]
    return replace(loaded, tasks=[replace(task, texts=task.texts[:9], y=task.y[:9])])


def unseeded(rest, options):
    rows = np.random.default_rng().permutation(12)
    return changed(texts=[TEXTS[i] for i in rows], y=LABELS[rows])(rest, options)


def draws_globally(rest, options):
    rows = np.random.permutation(12)  # noqa: NPY002
    return changed(texts=[TEXTS[i] for i in rows])(rest, options)


def moves(rest, options):
    os.chdir("/")
    return source(rest, options)


def prints(rest, options):
    print("reading the films")
    return source(rest, options)


def warns_on_stderr(rest, options):
    print("reading the films", file=sys.stderr)
    return source(rest, options)


def imports_torch(rest, options):
    import torch

    return changed(y=np.array([str(x) for x in torch.arange(12).tolist()]))(rest, options)


def accepts_anything(rest, options):
    return source("films", options)


def raises_key_errors(rest, options):
    return {"films": source}[rest](rest, options)


def opens_whatever_it_gets(rest, options):
    if rest != "films":
        Path(rest).read_text()
    return source("films", options)


def raises_several_lines(rest, options):
    if rest != "films":
        raise InputError("", f"unknown collection '{rest[:40]}'", "Name films")
    return source(rest, options)


def offers_no_way_out(rest, options):
    if rest != "films":
        raise InputError("--task", "unknown collection")
    return source(rest, options)


def twice_the_same_name(rest, options):
    loaded = source(rest, options)
    return replace(loaded, tasks=[*loaded.tasks, *loaded.tasks])


def no_tasks(rest, options):
    return replace(source(rest, options), tasks=[])


def no_loaded(rest, options):
    return source(rest, options).tasks


def with_text(text: object) -> Load:
    return changed(texts=[*TEXTS[:-1], text])


TWINS = {
    "drops rows silently": (drops_silently, "14 rows were read, 9 are used and 2 left out: count every row"),
    "counts no rows": (changed(loaded_rows=0), "0 rows were read, 12 are used"),
    "reasons without counts": (changed(left_out={"empty text": "two"}), "not the number of rows for a reason"),
    "a reason without words": (changed(left_out={"": 2}), "not the number of rows for a reason"),
    "an empty note": (changed(notes=("",)), "a note is ''"),
    "unseeded": (unseeded, "read differently a second time: sort .*default_rng"),
    "draws globally": (draws_globally, "global random state of numpy.random is moved"),
    "moves": (moves, "the working directory of the process is changed"),
    "prints": (prints, "prints 'reading the films.*Loaded.notes"),
    "warns on stderr": (warns_on_stderr, "prints 'reading the films"),
    "imports torch": (imports_torch, "imports torch, which takes seconds"),
    "accepts anything": (accepts_anything, "does not exist .* is accepted, so that nobody sees the mistake"),
    "raises KeyError": (raises_key_errors, "an empty rest .*raises KeyError.*raise InputError"),
    "opens whatever it gets": (opens_whatever_it_gets, "raises .*Error: .*find_path"),
    "an error without a place": (raises_several_lines, r"gives the error .*InputError\(where, what, mend\)"),
    "no way out": (offers_no_way_out, "without a way out: add the mend"),
    "two tasks of one name": (twice_the_same_name, "two tasks have the name 'mine:films:opinion'"),
    "no tasks": (no_tasks, "without a task: return"),
    "a list of tasks": (no_loaded, "gives list without a task: return"),
    "a path as name": (changed(name="mine:/home/me/films:opinion"), "holds a path, which would be published"),
    "no source in its name": (changed(name="films"), "no name of a task: write SOURCE:STEM:LABEL"),
    "bytes for a text": (with_text(b"sentence"), "valid data, and InputError .*row 11 holds bytes"),
    "a missing text": (with_text(None), "valid data, and InputError .*row 11 holds NoneType"),
    "an empty text": (with_text(" "), "text 11 is empty: leave such rows out, counted"),
    "an empty side of a pair": (with_text(pair("a", "")), "text 11 is empty"),
    "half a character": (with_text("caf\udce9"), r"half of a character \(a surrogate\)"),
    "three texts in a pair": (with_text(pair("a", pair("b", "c"))), "holds U.FDD0, which separates the texts"),
    "an empty label": (changed(y=np.array(["", "bad"] * 6)), "label 0 is empty: leave rows without a label out"),
    "not a number": (
        changed(y=np.array([np.nan, 1.0] * 6), kind="number"),
        "valid data, and InputError .*no finite number",
    ),
    "one text": (changed(texts=TEXTS[:1], y=LABELS[:1], loaded_rows=3), "has 1 texts: raise InputError"),
    "an unknown side": (
        changed(split=np.array(["train", "devel"] * 6)),
        "valid data, and InputError .*split holds 'devel'",
    ),
    "no train side": (changed(split=np.array(["test", "dev"] * 6)), "has no train side: raise InputError"),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_broken_twin_is_caught(name):
    load, words = TWINS[name]
    with pytest.raises(AssertionError, match=words) as caught:
        check_source(load, "films")
    fault, _, mend = str(caught.value).replace("\n", " ").partition(": ")
    assert len(fault) > 10
    assert len(mend) > 15


def test_a_module_that_imports_torch_is_caught(monkeypatch):
    """At its first line, before `load` is called."""
    import torch

    module = ModuleType("stranger")
    module.torch, module.source = torch, source
    exec("def load(rest, options):\n    return source(rest, options)\n", vars(module))
    monkeypatch.setitem(sys.modules, "stranger", module)
    assert module.load.__module__ == "stranger"
    with pytest.raises(AssertionError, match="imports torch"):
        check_source(module.load, "films")
    del module.torch
    check_source(module.load, "films")


def test_data_that_cannot_be_read_is_no_pass():
    with pytest.raises(AssertionError, match="'film' is to be valid data, and InputError was raised"):
        check_source(source, "film")
