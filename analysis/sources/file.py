"""``file:PATH``: tasks from a .csv, .tsv, .jsonl or .parquet file, or from a folder with train, dev and test files.

``file:-`` reads CSV from standard input; ``file:-.tsv``, ``file:-.jsonl`` and ``file:-.parquet`` read these formats.

1. `_find_files` finds the files and the side of the split that each of them is.
2. `tables.read_rows` reads them; a `RowCollector` checks the rows, file by file, and then all of them together.
3. Each label column becomes a task.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clsprobe.analysis.sources import Loaded, SourceOptions
from clsprobe.analysis.sources.tables import READERS, Stdin, read_rows
from clsprobe.probes.errors import InputError, did_you_mean, quote
from clsprobe.probes.tasks.rows import ALIASES, SIDES, Findings, RowCollector
from clsprobe.probes.tasks.task import Task


def load(rest: str, options: SourceOptions) -> Loaded:
    """Load the tasks of a file or folder, one per label column. Raises InputError."""
    collector = RowCollector(options)
    path, files = _find_files(rest)
    is_folder = isinstance(path, Path) and path.is_dir()
    if is_folder and options.split_column:
        raise InputError("--split-column", f"{rest} is a folder, split by its files already", "Leave the flag out")
    if options.quoting != "auto" and not any(file.suffix.lower() in (".csv", ".tsv") for _, file in files):
        what = f"is for .csv and .tsv files, and {files[0][1].name} is neither"
        raise InputError("--quoting", what, "Leave the flag out")
    for side, file in files:
        findings = Findings(file.name, "row" if file.suffix.lower() == ".parquet" else "line")
        collector.add(read_rows(file, collector.columns, options, findings), findings, side)
    rows = collector.finish(path.name)
    stem = os.path.basename(os.path.abspath(str(path))) if is_folder else path.stem
    labels = rows.labels or {"texts": (np.zeros(len(rows.texts)), "number")}
    textless = not options.text_columns
    tasks = [
        Task(
            f"file:{stem}:{column}",
            rows.texts,
            y,
            kind,
            rows.split,
            rows.groups,
            rows.row_numbers,
            textless,
            places=rows.places,
        )
        for column, (y, kind) in labels.items()
    ]
    return Loaded(tasks, rows.rows, rows.left_out, rows.notes, excluded=rows.excluded)


# ----------------------------------------------------------------------------------------------------------------- find


def _find_files(rest: str) -> tuple[Path | Stdin, Sequence[tuple[str | None, Path | Stdin]]]:
    """The path of a SPEC and its (side, file) pairs; side None if the file is not one side of a split."""
    if not rest:
        raise InputError("--task", "no path after 'file:'", "Name a file, as in file:reviews.csv")
    if rest in ("-", *(f"-{suffix}" for suffix in READERS)):  # ./-.csv is a file of that name
        stdin = Stdin(rest[1:] or ".csv")
        return stdin, [(None, stdin)]
    try:
        path = Path(rest).expanduser()
        path.stat()
        names = sorted(entry.name for entry in os.scandir(path)) if path.is_dir() else []
    except FileNotFoundError:
        raise _not_found_error(rest) from None
    except (OSError, ValueError, RuntimeError) as error:  # no permission, a name too long, a NUL in it, no home for ~
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(quote(rest, 200)[1:-1], f"cannot be read ({reason.lower()})", "Check the path") from None
    if path.is_dir():
        return path, _split_files(path, names)
    if path.suffix.lower() not in READERS:
        what = f"unknown kind of file '{path.suffix}'" if path.suffix else "a file without a suffix"
        raise InputError(path.name, what, f"Known: {', '.join(READERS)}. Convert the file, or give it its right name")
    return path, [(None, path)]


def _not_found_error(rest: str) -> InputError:
    path = Path(rest).expanduser()
    if path.is_symlink():
        return InputError(rest, f"is a link to {os.readlink(path)}, which does not exist", "Mend the link")
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    what = "no such file or folder" if missing == path else f"no such folder {missing}"
    try:
        guess = did_you_mean(missing.name, (entry.name for entry in os.scandir(missing.parent)))
    except OSError:
        guess = None
    return InputError(rest, what, f"Did you mean {guess}?" if guess else "Check the path")


def _split_files(folder: Path, names: Sequence[str]) -> list[tuple[str | None, Path]]:
    """The train, dev and test files of a folder, in this order."""
    files: dict[str, Path] = {}
    for name in names:
        path = folder / name
        side = ALIASES.get(path.stem.lower())
        if side is None or path.suffix.lower() not in READERS:
            continue
        if side in files:
            what = f"{files[side].name} and {name} are both {side} files"
            raise InputError(str(folder), what, "Move one of them away")
        files[side] = path
    if "train" in files and len(files) > 1:
        return [(side, files[side]) for side in SIDES if side in files]
    tables = [name for name in names if Path(name).suffix.lower() in READERS]
    contents = f"It holds {', '.join(tables[:10])}" if tables else f"It holds no {', '.join(READERS)} file"
    missing = "train file" if "train" not in files else "test file"
    mend = f"{contents}. Name its files train, dev and test, or give one file"
    raise InputError(str(folder), f"the folder has no {missing}", mend)
