"""``hf:ORG/NAME[:CONFIG][@REVISION]``: a dataset of the Hugging Face hub, from the local cache if it is there.

1. `_DatasetName` parses the SPEC. `_find_cached` looks for the dataset in the local cache of `datasets`; otherwise
   `_download` fetches it, if the hub answers one quick request. Datasets that need code of their own are never loaded.
2. `_choose_splits` selects the splits and their sides: train, validation and test by name, or the slices of --split.
3. `_Rows` holds the columns as Arrow maps them from the cached files: texts stay on disk, labels become strings,
   ClassLabels their names. `_make_tasks` checks the columns and makes the tasks.

`datasets` is imported only to load a dataset, not to report an unknown name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from clsprobe.analysis.sources import Loaded, SourceOptions
from clsprobe.probes import hub
from clsprobe.probes.errors import InputError, did_you_mean, format_rows, quote, unknown
from clsprobe.probes.files import check_file
from clsprobe.probes.tasks.labels import (
    LONGEST_LABEL,
    MANY_NUMBERS,
    Numbers,
    have_fractions,
    is_number,
    merge_spellings,
    note_labels,
    note_unused,
)
from clsprobe.probes.tasks.places import Places, Table
from clsprobe.probes.tasks.task import Task
from clsprobe.probes.tasks.texts import PAIRED, ArrowTexts

if TYPE_CHECKING:
    import pyarrow as pa

SIDES = {"train": "train", "validation": "dev", "valid": "dev", "val": "dev", "dev": "dev", "test": "test"}
EXAMPLE = "As in hf:stanfordnlp/sst2 or hf:nyu-mll/glue:cola@main"


def load(rest: str, options: SourceOptions) -> Loaded:
    """Load the tasks of one dataset, one per label column. Raises InputError for invalid names, options and data."""
    dataset = _DatasetName.parse(rest)
    if options.split_column is not None:
        raise InputError("--split-column", "hub data is split by name", "Leave the flag out, or pass --split")
    builder = _find_cached(dataset) or _download(dataset)
    parts, notes = _choose_splits(options.split, list(builder.info.splits or ()))
    notes.append(f"{dataset.title} is revision {builder.hash}, config {builder.config.name}")
    group_columns = [options.group_column] if options.group_column else []
    rows = _Rows.read(dataset, builder, parts, options.text_columns, [*options.label_column, *group_columns])
    return _make_tasks(dataset, rows, options, notes)


def _make_tasks(dataset: _DatasetName, rows: _Rows, options: SourceOptions, notes: list[str]) -> Loaded:
    texts = {name: rows.texts(name) for name in options.text_columns}
    columns = {name: rows.labels(name, notes, options.target) for name in options.label_column}
    part_of_row = np.repeat(np.arange(len(rows.parts)), [n for *_, n in rows.parts])
    side_of_row = np.array([side or "" for _, side, _ in rows.parts])[part_of_row]
    keep, left_out = np.ones(len(part_of_row), bool), dict[str, np.ndarray]()  # reason -> mask of the rows
    for index, (name, side, _) in enumerate(rows.parts):
        if side and any(_is_missing(column)[part_of_row == index].all() for column in columns.values()):
            left_out[f"{name} has no labels"] = part_of_row == index  # a benchmark with hidden labels
            keep &= part_of_row != index
            notes.append(f"{name} is published without labels and left out")
    checks = [
        (
            _is_missing(column),
            f"column {quote(name)}" if len(texts) > 1 else "text",
            "empty text",
            "--drop-empty",
            options.drop_empty,
        )
        for name, column in texts.items()
    ]
    checks += [
        (
            _is_missing(column),
            f"column {quote(name)}",
            "missing label",
            "--drop-missing-labels",
            options.drop_missing_labels,
        )
        for name, column in columns.items()
    ]
    checks += [
        (_stands_for_none(column, options), name, "label that stands for none", "", True)
        for name, column in columns.items()
    ]
    labels = {label for column in columns.values() for label in column.unique().drop_null().to_pylist()}
    notes += note_unused(options, {label.strip() for label in labels}, labels)
    for empty, title, reason, flag, drop in checks:
        empty &= keep
        if not drop:
            rows.check_rows(empty, f"{title} is empty", f"Mend the data, or pass {flag}")
        elif empty.any():
            left_out[reason] = left_out.get(reason, False) | empty
            keep &= ~empty
    split = _check_sides(rows.title, side_of_row[keep], notes)
    groups = None
    if options.group_column:
        column = rows.labels(options.group_column, notes)
        rows.check_rows(_is_missing(column) & keep, f"column {quote(options.group_column)} is empty", "Mend the data")
        groups = _encode(column.filter(keep))[0]
    all_texts = _join_pairs(list(texts.values()))
    task_texts = ArrowTexts(all_texts if keep.all() else all_texts.filter(keep))
    stem = ":".join(filter(None, (dataset.name.rpartition("/")[2], dataset.config)))
    tables = [Table(f"{rows.title}/{name}", "row") for name, *_ in rows.parts]
    numbers = np.concatenate([np.arange(1, n + 1) for *_, n in rows.parts])
    places = Places(tables, part_of_row.astype(np.int32), numbers)
    excluded = {reason: places.take(mask) for reason, mask in left_out.items()}
    places = places.take(keep)
    tasks = []
    for name, column in columns.items():
        y = _convert_labels(rows, name, column, keep, options, notes)
        kind: Literal["class", "number"] = "number" if options.target == "number" else "class"
        tasks.append(Task(f"hf:{stem}:{name}", task_texts, y, kind, split, groups, places=places))
    if not tasks:
        zeros = np.zeros(len(task_texts))
        tasks.append(Task(f"hf:{stem}:texts", task_texts, zeros, "number", split, groups, places=places))
    counts = {reason: len(rows_of_reason) for reason, rows_of_reason in excluded.items()}
    return Loaded(tasks, len(side_of_row), counts, notes, excluded={task.name: excluded for task in tasks})


@dataclass(frozen=True)
class _DatasetName:
    """A dataset as named by a SPEC."""

    name: str
    config: str | None
    revision: str | None

    @classmethod
    def parse(cls, rest: str) -> _DatasetName:
        match = re.fullmatch(r"([\w.-]{1,96}(?:/[\w.-]{1,96})?)(?::([^@]+))?(?:@(.+))?", rest)  # 96: the hub's limit
        path = rest.partition("@")[0].partition(":")[0] if match else rest
        if rest and (path.startswith((".", "/", "~")) or os.path.exists(path)):
            raise InputError("--task", f"{path} is a path, not a name on the hub", f"For your own files: file:{path}")
        if not match:
            raise InputError("--task", f"'{rest[:100]}' is no name of a data set", EXAMPLE)
        return cls(*match.groups())

    @property
    def title(self) -> str:
        """The name in error messages."""
        return self.name + (f":{self.config}" if self.config else "")


# ----------------------------------------------------------------------------------------------------------------- find


def _cache_path() -> Path:
    from huggingface_hub import constants

    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets").expanduser()


def _find_cached(dataset: _DatasetName) -> Any:
    """A builder for the newest cached version, or the requested commit; None if it is not cached."""
    commit = _resolve_commit(dataset)
    folders = [
        folder
        for folder in _cached_folders(dataset.name)
        if dataset.config in (None, folder.parts[-3]) and (commit is None or folder.name.startswith(commit))
    ]
    if not folders:
        return None
    if len(configs := sorted({folder.parts[-3] for folder in folders})) > 1:
        raise _config_error(dataset, configs)
    from datasets.packaged_modules.cache.cache import Cache

    newest = max(folders, key=lambda folder: folder.stat().st_mtime)
    config, version, digest = newest.parts[-3:]
    try:
        for path in newest.iterdir():
            if not path.is_dir():
                check_file(path)  # `datasets` would wait for a FIFO
        return Cache(str(_cache_path()), dataset.name.rpartition("/")[2], config, version, digest, repo_id=dataset.name)
    except Exception as error:  # truncated files, or files of another version
        what = f"damaged in the cache ({_first_line(error)})"
        raise InputError(f"hf:{dataset.title}", what, f"Remove {newest} and run again") from None


def _cached_folders(name: str) -> list[Path]:
    """The folders CONFIG/VERSION/COMMIT of a dataset in the cache."""
    organisation, _, name = name.rpartition("/")
    folder = _cache_path() / "___".join(filter(None, (organisation, _to_snake_case(name))))
    return [info.parent for info in sorted(folder.glob("*/*/*/dataset_info.json"))]


def _to_snake_case(name: str) -> str:
    """A name as spelled in the cache of `datasets`: SetFit -> set_fit."""
    return re.sub(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _resolve_commit(dataset: _DatasetName) -> str | None:
    """The commit of a revision: itself, or the last known commit of a branch or tag."""
    if dataset.revision is None or re.fullmatch(r"[0-9a-f]{7,40}", dataset.revision):
        return dataset.revision
    return hub.cached_commit("datasets", dataset.name, dataset.revision) or dataset.revision


def _download(dataset: _DatasetName) -> Any:
    """A builder for the dataset, after downloading it from the hub. Raises InputError."""
    if not hub.hub_is_reachable():
        what = f"is not in the local cache{f' at {dataset.revision}' if dataset.revision else ''}"
        raise InputError(f"hf:{dataset.title}", f"{what}, and the hub does not answer", _suggest_cached(dataset))
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    try:
        builder = datasets.load_dataset_builder(
            dataset.name, dataset.config, cache_dir=str(_cache_path()), revision=dataset.revision
        )
        if isinstance(builder, Cache):  # the fallback if the hub fails half-way; may be another revision
            raise ConnectionError("the hub stopped answering")
        builder.download_and_prepare()
    except Exception as error:  # network, disk or data errors; their types vary between versions
        raise _hub_error(dataset, f"{type(error).__name__}: {error}") from error
    return builder


def _suggest_cached(dataset: _DatasetName) -> str:
    """The remedy for a dataset that is not cached: the cached variants, or the nearest name."""
    if cached := _cached_folders(dataset.name):
        variants = [f"hf:{dataset.name}:{folder.parts[-3]}@{folder.name[:7]}" for folder in cached]
        return f"Cached: {', '.join(variants[:10])}"
    folders = [folder for folder in sorted(_cache_path().glob("*")) if any(folder.glob("*/*/*/dataset_info.json"))]
    guess = hub.nearest_name(dataset.name, [folder.name.replace("___", "/") for folder in folders])
    return f"Did you mean '{guess}' (cached)?" if guess else "Load it once while online"


def _hub_error(dataset: _DatasetName, message: str) -> InputError:
    """The InputError for an error message of `datasets`."""
    where = f"hf:{dataset.title}"
    if "gated" in message:
        return InputError(where, "is gated", "Ask for access on the hub, then run hf auth login")
    if message.startswith("DatasetNotFoundError: Revision"):
        return InputError(where, f"has no revision '{dataset.revision}'", "Pass a branch, tag or commit")
    if message.startswith("DatasetNotFoundError"):
        mend = "Check its spelling; a private one needs hf auth login"
        return InputError(where, f"the hub has no data set '{dataset.name}'", mend)
    if "scripts are no longer supported" in message:
        return InputError(where, "needs code of its own, which is not run", "Take a copy of it in Parquet")
    if "BuilderConfig" in message or "Config name is missing" in message:
        return _config_error(dataset, re.findall(r"'([^']*)'", message[message.find("[") : message.find("]")]))
    reason = message.strip().splitlines()[0][:200].rstrip(".: ")
    return InputError(where, f"could not be loaded ({reason})", "Try again")


def _config_error(dataset: _DatasetName, configs: Sequence[str]) -> InputError:
    """The error for an unknown config, or for several configs without a choice."""
    if dataset.config:
        return unknown(f"hf:{dataset.name}", "config", dataset.config, configs)
    listed = ", ".join(configs[:20]) + (f" and {len(configs) - 20} more" if len(configs) > 20 else "")
    mend = f"Name one of {listed}, as in hf:{dataset.name}:{configs[0]}" if configs else EXAMPLE
    return InputError(f"hf:{dataset.name}", "has several configs", mend)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".!")


# ----------------------------------------------------------------------------------------------------------------- read


def _choose_splits(requested: str | None, names: Sequence[str]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """The (split or slice, side) pairs to read, and notes; side None for a single part."""
    if requested is None:
        parts: list[tuple[str, str | None]] = [(name, SIDES[name]) for name in names if name in SIDES]
        sides = [side for _, side in parts]
        if len(names) == 1:
            return [(names[0], None)], []
        if "train" not in sides or len(set(sides)) < 2 or len(set(sides)) < len(sides):
            what = f"splits {', '.join(names)}: not train with validation or test"
            raise InputError("--split", what, f"Name what to read, such as --split {names[0]}")
        return parts, [f"not read: split {name}" for name in names if name not in SIDES]
    slices = [part.strip() for part in requested.split(",")]
    for part in slices:
        for term in part.split("+"):
            if (name := term.partition("[")[0].strip()) not in names:
                raise unknown("--split", "split", name, names)
    if len(slices) == 1:
        return [(slices[0], None)], []
    sides = [SIDES.get(part.partition("[")[0], "") for part in slices]
    if "train" not in sides or "" in sides or len(set(sides)) < len(sides) or any("+" in part for part in slices):
        what = f"'{requested}' is not one slice each of train, validation and test"
        raise InputError("--split", what, "As in train[:1000],test; one slice alone is split by clsprobe")
    return list(zip(slices, sides, strict=True)), []


@dataclass(frozen=True, eq=False)
class _Rows:
    """The selected columns of all parts, concatenated. parts: (name, side, number of rows) of each."""

    title: str
    parts: list[tuple[str, str | None, int]]
    table: pa.Table
    features: Any

    @classmethod
    def read(
        cls,
        dataset: _DatasetName,
        builder: Any,
        parts: Iterable[tuple[str, str | None]],
        texts: Sequence[str],
        others: Sequence[str],
    ) -> _Rows:
        """Map the columns from the cached files, without copying. texts: the text columns. Raises InputError."""
        import pyarrow as pa

        title, columns = f"hf:{dataset.title}", [*texts, *others]
        tables, read_parts, features = [], [], {}
        for name, side in parts:
            try:
                data = builder.as_dataset(split=name)
            except Exception as error:  # an invalid slice, or changed files
                raise InputError(
                    f"--split {name}", _first_line(error), "As in train[:1000] or train[10%:20%]"
                ) from None
            features = data.features
            if missing := [column for column in columns if column not in features]:
                guess = did_you_mean(missing[0], features)
                flag = "--text-column" if missing[0] in texts else "--label-column"
                mend = f"Did you mean '{guess}'?" if guess else f"Name it with {flag}"
                raise InputError(title, f"no column {quote(missing[0])}", f"Columns: {', '.join(features)}. {mend}")
            tables.append(data.select_columns(list(dict.fromkeys(columns))).with_format("arrow")[:])
            read_parts.append((name, side, len(data)))
        return cls(title, read_parts, pa.concat_tables(tables), features)

    def check_rows(self, mask: np.ndarray, what: str, mend: str) -> None:
        """Raise InputError if `mask` (row,) is true for any row; rows are numbered within their part, from 1."""
        if not mask.any():
            return
        start = 0
        for name, _, length in self.parts:
            if len(rows := np.flatnonzero(mask[start : start + length]) + 1):
                more = f" (likewise row{'s' * (len(rows) > 2)} {format_rows(rows[1:], 9)})" if len(rows) > 1 else ""
                raise InputError(f"{self.title}/{name}:{rows[0]}", what + more, mend)
            start += length

    def column(self, name: str, expected: str, *type_tests: str) -> pa.ChunkedArray:
        """A column, checked to be UTF-8 and to pass one of these type tests of pyarrow.types. Raises InputError."""
        from pyarrow import types

        column = self.table[name]
        if not any(getattr(types, type_test)(column.type) for type_test in type_tests):
            what = f"column {quote(name)} holds {quote(str(column.type))}, not {expected}"
            raise InputError(self.title, what, "Name another column with --text-column or --label-column")
        try:
            column.validate(full=True)
        except Exception:  # Arrow's error does not name the row
            raise InputError(self.title, f"column {quote(name)} is not UTF-8", "Load it anew") from None
        return column

    def texts(self, name: str) -> pa.ChunkedArray:
        """A column of texts. Raises InputError."""
        import pyarrow.compute as pc

        column = self.column(name, "text", *_TEXT)
        invalid = pc.fill_null(pc.match_substring(column, PAIRED), False).to_numpy()
        self.check_rows(invalid, f"column {quote(name)} holds U+FDD0, which is no character", "Mend the data")
        return column

    def labels(self, name: str, notes: list[str], target: str | None = None) -> pa.ChunkedArray:
        """A column of labels or groups as strings, null for missing ones."""
        import pyarrow as pa
        import pyarrow.compute as pc
        from datasets import ClassLabel
        from pyarrow import types

        column, feature = self.column(name, "one value", *_TEXT, *_VALUE), self.features[name]
        if isinstance(feature, ClassLabel):
            codes = column.cast(pa.int64())
            unknown_codes = pc.or_(pc.less(codes, -1), pc.greater_equal(codes, len(feature.names)))
            what = f"column {quote(name)} holds a number beyond its classes, 0 to {len(feature.names) - 1}"
            self.check_rows(pc.fill_null(unknown_codes, False).to_numpy(), what, "Mend the data")
            labelled = pc.greater_equal(codes, 0)  # -1 is a hidden label
            return pc.take(pa.array(feature.names, pa.string()), pc.if_else(labelled, codes, None))
        if types.is_floating(column.type):
            column = pc.if_else(pc.is_finite(column), column, None)
            if target != "number" and pc.all(pc.equal(column, pc.floor(column))).as_py():
                notes.append(f"column {quote(name)} holds whole numbers as floats; its classes are written without .0")
                column = column.cast(pa.int64())
        return column.cast(pa.string())


_TEXT = ("is_string", "is_large_string")
_VALUE = ("is_integer", "is_floating", "is_boolean")


# ---------------------------------------------------------------------------------------------------------------- check


def _is_missing(column: pa.ChunkedArray) -> np.ndarray:
    """(row,) whether a string is null, empty or white space."""
    import pyarrow.compute as pc

    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True).to_numpy()


def _stands_for_none(column: pa.ChunkedArray, options: SourceOptions) -> np.ndarray:
    """(row,) whether a label is among --missing-labels."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.is_in(pc.utf8_trim_whitespace(column), pa.array(options.missing_labels, column.type)).to_numpy()


def _join_pairs(texts: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    """(row,) the texts, or pairs of texts; null if one is missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(texts) == 1:
        return texts[0]
    return pc.binary_join_element_wise(
        *(column.cast(pa.large_string()) for column in texts), pa.scalar(PAIRED, pa.large_string())
    )


def _encode(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """(row,) integer codes of the distinct values of a column, and these values."""
    coded = column.combine_chunks().dictionary_encode()
    return coded.indices.to_numpy(), coded.dictionary.to_pylist()


def _check_sides(title: str, side: np.ndarray, notes: list[str]) -> np.ndarray | None:
    """(row,) the sides, with dev as test if there is no test; None without a split."""
    present = set(np.unique(side).tolist())
    if not present - {""}:
        if not len(side):
            raise InputError(title, "no rows are left", "Mend the data, or name other columns")
        return None
    if "train" not in present or len(present) == 1:
        raise InputError(title, "no labelled rows but those of one split", "Name one slice with --split, such as train")
    if "test" not in present:
        notes.append("there are no test rows: dev serves as test, and a tenth of train as dev")
        return np.where(side == "dev", "test", side)
    return side


def _convert_labels(
    rows: _Rows, name: str, column: pa.ChunkedArray, keep: np.ndarray, options: SourceOptions, notes: list[str]
) -> np.ndarray:
    """(row,) the labels of the rows to keep: strings, or numbers with --target number. Adds notes."""
    codes, values = _encode(column.filter(keep))
    if options.target == "number":
        mask = np.zeros(len(keep), bool)
        mask[np.flatnonzero(keep)] = np.array([not is_number(value) for value in values])[codes]
        rows.check_rows(
            mask, f"column {quote(name)} holds no finite number", "Leave --target number out to predict classes"
        )
        numbers = Numbers()
        for value in values:
            numbers.append(value)
        if ambiguity := numbers.ambiguity():
            _, what, mend = ambiguity
            raise InputError(rows.title, f"column {quote(name)} {what}", mend)
        if note := numbers.note(options.title(name)):
            notes.append(note)
        return numbers.array()[codes]
    if (longest := max(map(len, values))) > LONGEST_LABEL:
        what = f"column {quote(name)} holds {longest:,} characters, more than a label has"
        raise InputError(rows.title, what, "Name the column of the labels with --label-column")
    if options.target is None and len(values) > MANY_NUMBERS and have_fractions(values):
        what = f"column {quote(name)} holds numbers with fractions ({len(values):,} distinct)"
        raise InputError(rows.title, what, "Pass --target number, or --target class to make each a class")
    counts = dict(zip(values, np.bincount(codes).tolist(), strict=True))
    notes += note_labels(name, counts, options)
    merged = merge_spellings(counts) if options.merge_labels else {}
    return np.array([merged.get(value, value) for value in values])[codes]
