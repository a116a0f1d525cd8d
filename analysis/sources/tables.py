"""Rows of data files. Any file yields either all its rows or one InputError.

`read_rows` opens a file (opening.py) and streams ``(line, cells)`` of the selected columns through the reader of its
format (`READERS`). Numbers of classes become the names that a Parquet or Arrow file or a dataset_info.json carries for
them. Everything beyond numpy and the standard library is imported on first use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from clsprobe.analysis.sources import SourceOptions
from clsprobe.analysis.sources.json_rows import read_json_rows
from clsprobe.analysis.sources.opening import BINARY, DataFile, Source, open_source
from clsprobe.analysis.sources.separated import read_csv, read_tsv
from clsprobe.probes.errors import quote
from clsprobe.probes.files import read_content
from clsprobe.probes.tasks.rows import Findings, Row, name_classes

Reader = Callable[[Source], Iterator[Row]]  # the first line of every record and its selected cells


def read_rows(
    data_file: DataFile, columns: Sequence[str], options: SourceOptions, findings: Findings
) -> Iterator[Row]:
    """Yield every row of a file: the physical line on which it starts (in Parquet: its number, from 1) and its cells.

    columns: the columns to read, text columns first. Problems of single rows go to `findings`. Raises InputError.
    """
    with open_source(data_file, columns, options, findings) as source:
        class_names = _find_class_names(data_file, source)
        rows = source.note_sides(READERS[data_file.suffix](source))
        yield from name_classes(rows, class_names, columns, findings) if class_names else rows


def _read_parquet(source: Source) -> Iterator[Row]:
    from clsprobe.analysis.sources.arrow import read_parquet_rows

    return read_parquet_rows(source)


def _read_arrow(source: Source) -> Iterator[Row]:
    from clsprobe.analysis.sources.arrow import read_arrow_rows

    return read_arrow_rows(source)


READERS: dict[str, Reader] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), read_json_rows),
    **dict.fromkeys((".parquet", ".parq", ".pq"), _read_parquet),
    ".arrow": _read_arrow,
}


# -------------------------------------------------------------------------------------------------------- class names


def _find_class_names(data_file: DataFile, source: Source) -> dict[str, list[str]]:
    """Label column -> the names of its classes by number, as the library `datasets` writes them.

    They stand in the schema of a Parquet or Arrow file, else in a dataset_info.json beside the file, which a note
    mentions.
    """
    names, path = dict[str, list[str]](), data_file.path
    if data_file.suffix in BINARY:
        from clsprobe.analysis.sources.arrow import read_metadata

        with suppress(Exception):  # a damaged file, of which the reader says more
            metadata = read_metadata(source, data_file.suffix)
            names = _class_names(json.loads(metadata.get(b"huggingface", b"{}")).get("info"), source)
    if isinstance(path, Path) and not names and (neighbour := path.with_name("dataset_info.json")).is_file():
        with suppress(OSError, ValueError, RecursionError):  # other programs may call a file so
            names = _class_names(json.loads(read_content(neighbour)), source)
        if names:
            columns = " and ".join(map(quote, names))
            note = f"{source.name}: the class names of column {columns} are those of dataset_info.json beside it"
            source.findings.notes.append(note)
    return names


def _class_names(info: Any, source: Source) -> dict[str, list[str]]:
    """The class names of the columns to read, but for texts. info: a dataset_info.json, or what is in its place."""
    features = info.get("features") if isinstance(info, dict) else None
    names = {}
    for column in set(source.columns).difference(source.options.text_columns):
        feature = features.get(column) if isinstance(features, dict) else None
        classes = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
        if isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes):
            names[column] = classes
    return names
