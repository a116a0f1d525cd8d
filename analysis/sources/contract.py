"""The contract of a source of tasks, for its author's tests: `check_source`.

1. The source loads valid data twice: every row is used or left out for a reason, and both times the same is read.
2. Texts, labels, splits and names are what the rest of the program takes for granted.
3. It is asked for what there is not: nothing, another name, a mistyped one, names that no file can have. It answers
   with an InputError, which the command prints in one line.

Every violation is an AssertionError that says what is wrong and how to fix it.
"""

from __future__ import annotations

import builtins
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import ModuleType
from typing import Any
from unittest.mock import patch

from clsprobe.analysis.sources import Loaded, SourceOptions
from clsprobe.probes.errors import InputError, printable
from clsprobe.probes.plugins import forbid_changes
from clsprobe.probes.randomness import forbid_global_randomness
from clsprobe.probes.tasks.task import Task
from clsprobe.probes.tasks.texts import PAIRED, parts

Load = Callable[[str, SourceOptions], Loaded]

HEAVY = ("torch", "transformers")


def check_source(load: Load, rest: str, options: SourceOptions | None = None) -> None:
    """Raise AssertionError if a source breaks the contract that every study relies on.

    load: the source's function (rest, options) -> Loaded. rest: what follows the colon of a SPEC of it, for valid data
    with a few rows. Of every row that is read it says whether it is used, or why it was left out; it reads the same
    twice, prints nothing, imports nothing heavy, leaves the process as it is, such as its working directory, and raises
    nothing but InputError where its input is at fault.
    """
    options = options or SourceOptions()
    loaded = _load_quietly(load, rest, options)
    again = _load_quietly(load, rest, options)
    assert loaded.digest == again.digest, (
        f"'{rest}' is read differently a second time: sort what a folder lists, and draw from "
        "numpy.random.default_rng(seed)"
    )
    _check_counts(loaded)
    _check_names([task.name for task in loaded.tasks], rest)
    for task in loaded.tasks:
        _check_task(task)
    _check_errors(load, rest, options)


def _load_quietly(load: Load, rest: str, options: SourceOptions) -> Loaded:
    """What a source loads, while nothing is printed, drawn or imported that may not be."""
    printed = io.StringIO()
    try:
        with _forbid_heavy_imports(load), forbid_global_randomness(), forbid_changes():  # noqa: SIM117
            with redirect_stdout(printed), redirect_stderr(printed):
                loaded = load(rest, options)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(
            f"'{rest}' is to be valid data, and {type(error).__name__} was raised ({error}): mend the "
            "source, or give `check_source` a rest that it can read"
        ) from error
    assert isinstance(loaded, Loaded) and loaded.tasks, (  # noqa: PT018
        f"the source gives {type(loaded).__name__} without a task: return clsprobe.analysis.sources.Loaded([task, "
        "...], rows, left_out, notes)"
    )
    assert not printed.getvalue(), (
        f"the source prints {printed.getvalue()[:60]!r}: what a reader should know are sentences in Loaded.notes"
    )
    return loaded


@contextmanager
def _forbid_heavy_imports(load: Load) -> Iterator[None]:
    """Raise AssertionError if the module of a source holds one of `HEAVY`, or if its package imports one meanwhile."""
    name = getattr(load, "__module__", None) or ""
    original = builtins.__import__

    def forbid(imported: str) -> None:
        library = imported.partition(".")[0]
        assert library not in HEAVY, (
            f"the source imports {library}, which takes seconds before any fault of the data is reported: do without "
            "it, or load what was prepared with it"
        )

    def import_checked(imported: str, globals: Any = None, *others: Any, **more: Any) -> Any:
        importer = (globals or {}).get("__name__") or ""
        if importer.partition(".")[0] == name.partition(".")[0]:
            forbid(imported)
        return original(imported, globals, *others, **more)

    for value in vars(sys.modules[name]).values() if name in sys.modules else ():
        if isinstance(value, ModuleType):
            forbid(value.__name__)
    with patch.object(builtins, "__import__", import_checked):
        yield


def _check_counts(loaded: Loaded) -> None:
    for reason, count in loaded.left_out.items():
        assert isinstance(count, int) and count >= 0 and reason.strip() == reason != "", (  # noqa: PT018
            f"left_out holds {reason!r}: {count!r}, not the number of rows for a reason: count rows in a dictionary "
            "such "
            'as {"empty text": 3}'
        )
    used, left_out = sum(len(task.texts) for task in loaded.tasks), sum(loaded.left_out.values())
    are_shared = all(len(task.texts) + left_out == loaded.rows for task in loaded.tasks)  # label sets of the same texts
    assert are_shared or loaded.rows == used + left_out, (
        f"{loaded.rows:,} rows were read, {used:,} are used and {left_out:,} left out: count every row that is skipped "
        "in Loaded.left_out, by reason; tasks with texts of their own each count the rows that were read for them"
    )
    for note in loaded.notes:
        assert isinstance(note, str) and note.strip(), (  # noqa: PT018
            f"a note is {note!r}: notes are sentences for the reader; leave out what says nothing"
        )


def _check_names(names: Sequence[str], rest: str) -> None:
    assert len(set(names)) == len(names), (
        f"two tasks have the name {max(names, key=names.count)!r}, under which their numbers would be mixed: put the "
        "label set at its end, as in SOURCE:STEM:LABEL"
    )
    for name in names:
        source, _, stem = name.partition(":")
        assert source and stem and printable(name) == name, (  # noqa: PT018
            f"{name!r} is no name of a task: write SOURCE:STEM:LABEL, or SOURCE:STEM where it has one label set"
        )
        assert not set(name) & {"/", "\\"}, (
            f"the name {name!r} holds a path, which would be published with the results: use the file's name without "
            "folder and ending"
        )


def _check_task(task: Task) -> None:
    """What `Task` itself does not check when it is made."""
    size = len(task.texts)
    assert size > 1, f"{task.name} has {size} texts: raise InputError where nothing can be measured"
    for row in range(len(task.texts)):
        text, where = task.texts[row], f"{task.name}, text {row}"
        assert all(part.strip() for part in parts(text)), (
            f"{where} is empty: leave such rows out, counted in Loaded.left_out, or raise InputError with their numbers"
        )
        assert text.count(PAIRED) <= 1, (
            f"{where} holds U+FDD0, which separates the texts of a pair: raise InputError where the data hold it, and "
            "join two texts by clsprobe.probes.tasks.texts.pair"
        )
        _check_encodable(text, where)
    if task.kind == "class":
        for row, label in enumerate(task.y.tolist()):
            assert label.strip(), (
                f"{task.name}, label {row} is empty: leave rows without a label out, counted in Loaded.left_out, or "
                "raise InputError with their numbers"
            )
            _check_encodable(label, f"{task.name}, label {row}")
    assert task.split is None or "train" in task.split, (
        f"the split of {task.name} has no train side: raise InputError where it is missing, or let split be None, so "
        "that the sides are carved"
    )


def _check_encodable(text: str, where: str) -> None:
    assert not any("\ud800" <= character <= "\udfff" for character in text), (
        f"{where} holds half of a character (a surrogate), which no file can hold: raise InputError with the row, or "
        "decode the data as what they are"
    )


def _check_errors(load: Load, rest: str, options: SourceOptions) -> None:
    """Ask for what there is not. An empty rest may mean something; all others are mistakes."""
    wrong = {
        "an empty rest": "",
        "a rest that does not exist": "no-such-thing/anywhere",
        "a mistyped rest": f"{rest[:-1]}qq",
        "a NUL in the rest": f"{rest[:2]}\0{rest[2:]}",
        "a rest that is no text": f"{rest}\udce9",
        "a rest as long as a book": "x" * 5000,
    }
    for what, mistake in wrong.items():
        try:
            load(mistake, options)
        except InputError as error:
            _check_error(error, what)
        except Exception as error:
            raise AssertionError(
                f"{what} ({mistake[:40]!r}) raises {type(error).__name__}: {str(error)[:100]}; raise "
                "InputError(where, what, mend), and for paths use clsprobe.analysis.sources.lines.find_path"
            ) from error
        else:
            assert not mistake, (
                f"{what} ({mistake[:40]!r}) is accepted, so that nobody sees the mistake: raise InputError for "
                "whatever the source does not know, by clsprobe.probes.errors.unknown where names can be listed"
            )


def _check_error(error: InputError, what: str) -> None:
    assert error.where and error.what and "\n" not in str(error), (  # noqa: PT018
        f"{what} gives the error {str(error)!r}: InputError(where, what, mend) says where the fault is and what it is, "
        "in one line"
    )
    assert error.mend, f"{what} gives the error {str(error)!r}, without a way out: add the mend as third argument"
