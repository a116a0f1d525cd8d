"""Runs and caches as an enemy, a bad disk or a careless copy leaves them, made from hostile_runs.yaml.

`damage` changes a copy of a whole folder as a case says; what a case may say of a file is in `_CHANGES`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

CASES: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("hostile_runs.yaml").read_text("utf-8"))


def damage(case: dict[str, Any], desk: Path) -> None:
    """Change the files of a case: name, or pattern of names, -> changes."""
    for name, changes in case["files"].items():
        paths = sorted(desk.glob(name)) if any(c in name for c in "*?") else [desk / name]
        assert paths, name
        for path in paths:
            for change, value in changes.items():
                _CHANGES[change](path, value)


def _text(path: Path, value: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value.encode("utf-8", "surrogateescape"))


def _swap(path: Path, pair: list[str]) -> None:
    """Another piece of text in place of one that stands there."""
    text, (old, new) = path.read_text("utf-8"), pair
    assert old in text, old
    path.write_text(text.replace(old, new, 1), "utf-8")


def _json(path: Path, values: dict[str, Any]) -> None:
    """Other values in a JSON file, by keys separated by dots; null removes one."""
    content = json.loads(path.read_text("utf-8"))
    for key, value in values.items():
        place, *keys = content, *key.split(".")
        for step in keys[:-1]:
            place = place[int(step)] if isinstance(place, list) else place[step]
        last = int(keys[-1]) if isinstance(place, list) else keys[-1]
        if value is None:
            del place[last]
        else:
            place[last] = value
    path.write_text(json.dumps(content), "utf-8")


def _times(path: Path, of: dict[str, int]) -> None:
    """A list of a JSON file so many times; or a mapping with so many keys."""
    content = json.loads(path.read_text("utf-8"))
    for key, times in of.items():
        place, *keys = content, *key.split(".")
        for step in keys[:-1]:
            place = place[step]
        value = place[keys[-1]]
        place[keys[-1]] = value * times if isinstance(value, list) else {f"{i}": i for i in range(times)}
    path.write_text(json.dumps(content), "utf-8")


def _table(path: Path, columns: dict[str, Any]) -> None:
    """Other values in a column of a Parquet file; null removes the column."""
    import pandas as pd

    table = pd.read_parquet(path)
    for column, value in columns.items():
        table = table.drop(columns=column) if value is None else table.assign(**{column: value})
    table.to_parquet(path, index=False)


def _rows(path: Path, count: int) -> None:
    """The first rows of a Parquet file."""
    import pandas as pd

    pd.read_parquet(path).head(count).to_parquet(path, index=False)


def _bomb(path: Path, of: dict[str, int]) -> None:
    """One long text in so many rows of one column, which Parquet stores once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    indices = pa.array([0] * of["rows"], pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, ["x" * of["length"]])
    pq.write_table(pa.table({"text": column}), path, compression="zstd")


def _remove(path: Path, _: bool) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _replace_by(make: Callable[[Path, Any], None]) -> Callable[[Path, Any], None]:
    def change(path: Path, value: Any) -> None:
        if os.path.lexists(path):
            _remove(path, True)
        make(path, value)

    return change


_CHANGES: dict[str, Callable[[Path, Any], None]] = {
    "text": _replace_by(_text),
    "swap": _swap,
    "json": _json,
    "times": _times,
    "table": _table,
    "rows": _rows,
    "bomb": _bomb,
    "remove": _remove,
    "cut": lambda path, size: path.write_bytes(path.read_bytes()[:size]),
    "zeros": lambda path, _: path.write_bytes(bytes(path.stat().st_size)),
    "nested": lambda path, depth: path.write_text("[" * depth + "]" * depth),
    "deep": lambda path, depth: path.write_text('{"digest":' * depth + "1" + "}" * depth),
    "size": lambda path, size: os.truncate(path, size),
    "copy": lambda path, name: (path.parent.mkdir(exist_ok=True), shutil.copy(path.parents[1] / name, path)),
    "link": _replace_by(lambda path, target: path.symlink_to(target)),
    "rename": lambda path, name: path.rename(path.with_name(name)),
    "pipe": _replace_by(lambda path, _: os.mkfifo(path)),
    "folder": _replace_by(lambda path, _: path.mkdir(parents=True)),
    "old": lambda path, seconds: os.utime(path, (seconds, seconds)),
}
