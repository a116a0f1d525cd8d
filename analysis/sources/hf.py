"""``hf:ORG/NAME[:CONFIG][@REVISION]``: a data set of the Hugging Face hub, out of the local cache where it is there.

1. `_Wanted` is the name taken apart. `_cached` looks for what `datasets` has prepared on this machine before; only
   then, and if one quick request is answered, the hub is asked (`_from_hub`). Data that needs code of its own is never
   loaded.
2. `_sides` says which splits are read and what they are: train, validation and test as they are called, or the slices
   that --split names.
3. `_Rows` holds the columns as Arrow maps them from the cache's files: texts stay there, labels become strings,
   ClassLabels their names. `_loaded` checks them column by column and makes the tasks.

`datasets` is imported when there is something to load: an unknown name is answered before that.
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
from clsprobe.analysis.sources.tables import ArrowTexts, shown
from clsprobe.probes import hub
from clsprobe.probes.errors import InputError, did_you_mean, named_rows, unknown
from clsprobe.probes.tasks.task import PAIRED, Task

if TYPE_CHECKING:
    import pyarrow as pa

SIDES = {"train": "train", "validation": "dev", "valid": "dev", "val": "dev", "dev": "dev", "test": "test"}
LONGEST_LABEL = 1000  # characters; more is a text
MANY_NUMBERS = 10  # distinct labels with fractions that are still taken for classes, such as half stars
EXAMPLE = "As in hf:stanfordnlp/sst2 or hf:nyu-mll/glue:cola@main"


def load(rest: str, options: SourceOptions) -> Loaded:
    """The tasks of one data set, one for each label column. Raises InputError for whatever the user can mend."""
    wanted = _Wanted.parse(rest)
    if options.split_column is not None:
        raise InputError("--split-column", "hub data is split by name", "Leave the flag out, or pass --split")
    builder = _cached(wanted) or _from_hub(wanted)
    parts, notes = _sides(options.split, list(builder.info.splits or ()))
    notes.append(f"{wanted.title} is revision {builder.hash}, config {builder.config.name}")
    grouped = [options.group_column] if options.group_column else []
    rows = _Rows.read(wanted, builder, parts, options.text_columns, [*options.label_column, *grouped])
    return _loaded(wanted, rows, options, notes)


def _loaded(wanted: _Wanted, rows: _Rows, options: SourceOptions, notes: list[str]) -> Loaded:
    texts = {name: rows.texts(name) for name in options.text_columns}
    columns = {name: rows.labels(name, notes, options.target) for name in options.label_column}
    part = np.repeat(np.arange(len(rows.parts)), [n for *_, n in rows.parts])
    side = np.array([one or "" for _, one, _ in rows.parts])[part]
    keep, left_out = np.ones(len(part), bool), dict[str, int]()
    for number, (name, one, n) in enumerate(rows.parts):
        if one and any(_missing(column)[part == number].all() for column in columns.values()):
            keep &= part != number  # of a benchmark that keeps its answers to itself
            left_out[f"{name} has no labels"] = n
            notes.append(f"{name} is published without labels and left out")
    checks = [
        (
            column,
            f"column {shown(name)}" if len(texts) > 1 else "text",
            "empty text",
            "--drop-empty",
            options.drop_empty,
        )
        for name, column in texts.items()
    ]
    checks += [
        (column, f"column {shown(name)}", "missing label", "--drop-missing-labels", options.drop_missing_labels)
        for name, column in columns.items()
    ]
    for column, what, reason, flag, drop in checks:
        empty = _missing(column) & keep
        if not drop:
            rows.check(empty, f"{what} is empty", f"Mend the data, or pass {flag}")
        elif empty.any():
            left_out[reason] = left_out.get(reason, 0) + int(empty.sum())
            keep &= ~empty
    split = _kept_sides(rows.title, side[keep], notes)
    groups = None
    if options.group_column:
        column = rows.labels(options.group_column, notes)
        rows.check(_missing(column) & keep, f"column {shown(options.group_column)} is empty", "Mend the data")
        groups = _codes(column.filter(keep))[0]
    every = _joined(list(texts.values()))
    kept = ArrowTexts(every if keep.all() else every.filter(keep))
    stem = ":".join(filter(None, (wanted.name.rpartition("/")[2], wanted.config)))
    tasks = []
    for name, column in columns.items():
        y = _target(rows, name, column, keep, options)
        kind: Literal["class", "number"] = "number" if options.target == "number" else "class"
        tasks.append(Task(f"hf:{stem}:{name}", kept, y, kind, split, groups))
    if not tasks:
        tasks.append(Task(f"hf:{stem}:texts", kept, np.zeros(len(kept)), "number", split, groups))
    return Loaded(tasks, len(side), left_out, notes)


@dataclass(frozen=True)
class _Wanted:
    """What a SPEC names."""

    name: str
    config: str | None
    revision: str | None

    @classmethod
    def parse(cls, rest: str) -> _Wanted:
        found = re.fullmatch(r"([\w.-]+(?:/[\w.-]+)?)(?::([^@]+))?(?:@(.+))?", rest)
        path = rest.partition("@")[0].partition(":")[0] if found else rest
        if rest and (path.startswith((".", "/", "~")) or os.path.exists(path)):
            raise InputError("--task", f"{path} is a path, not a name on the hub", f"For your own files: file:{path}")
        if not found:
            raise InputError("--task", f"'{rest}' is no name of a data set", EXAMPLE)
        return cls(*found.groups())

    @property
    def title(self) -> str:
        """As errors call it."""
        return self.name + (f":{self.config}" if self.config else "")


# ----------------------------------------------------------------------------------------------------------------- find


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets").expanduser()


def _cached(wanted: _Wanted) -> Any:
    """A builder over what was prepared before: the newest, or the commit asked for; None where there is none."""
    commit = _commit(wanted)
    prepared = [
        place
        for place in _prepared(wanted.name)
        if wanted.config in (None, place.parts[-3]) and (commit is None or place.name.startswith(commit))
    ]
    if not prepared:
        return None
    if len(configs := sorted({place.parts[-3] for place in prepared})) > 1:
        raise _unnamed(wanted, configs)
    from datasets.packaged_modules.cache.cache import Cache

    newest = max(prepared, key=lambda place: place.stat().st_mtime)
    config, version, digest = newest.parts[-3:]
    try:
        return Cache(str(_cache()), wanted.name.rpartition("/")[2], config, version, digest, repo_id=wanted.name)
    except Exception as error:  # of files that are cut or were written by another version
        what = f"damaged in the cache ({_first_line(error)})"
        raise InputError(f"hf:{wanted.title}", what, f"Remove {newest} and run again") from None


def _prepared(name: str) -> list[Path]:
    """The folders CONFIG/VERSION/COMMIT of a data set in the cache."""
    organisation, _, name = name.rpartition("/")
    folder = _cache() / "___".join(filter(None, (organisation, _snake(name))))
    return [info.parent for info in sorted(folder.glob("*/*/*/dataset_info.json"))]


def _snake(name: str) -> str:
    """How `datasets` writes a name in its cache: SetFit -> set_fit."""
    return re.sub(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _commit(wanted: _Wanted) -> str | None:
    """The commit that a revision means: itself, or what its branch or tag was when the hub was asked last."""
    if wanted.revision is None or re.fullmatch(r"[0-9a-f]{7,40}", wanted.revision):
        return wanted.revision
    return hub.cached_commit("datasets", wanted.name, wanted.revision) or wanted.revision


def _from_hub(wanted: _Wanted) -> Any:
    """A builder over what the hub has, downloaded and prepared."""
    if not hub.hub_answers():
        what = f"is not in the local cache{f' at {wanted.revision}' if wanted.revision else ''}"
        raise InputError(f"hf:{wanted.title}", f"{what}, and the hub does not answer", _instead(wanted))
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    try:
        builder = datasets.load_dataset_builder(
            wanted.name, wanted.config, cache_dir=str(_cache()), revision=wanted.revision
        )
        if isinstance(builder, Cache):  # which it falls back on, in any revision, where the hub fails half-way
            raise ConnectionError("the hub stopped answering")
        builder.download_and_prepare()
    except Exception as error:  # of the network, the disk or the data; named differently from version to version
        raise _refused(wanted, f"{type(error).__name__}: {error}") from error
    return builder


def _instead(wanted: _Wanted) -> str:
    """What the cache has in place of what is not there."""
    if here := _prepared(wanted.name):
        variants = [f"hf:{wanted.name}:{place.parts[-3]}@{place.name[:7]}" for place in here]
        return f"Cached: {', '.join(variants[:10])}"
    folders = [folder for folder in sorted(_cache().glob("*")) if any(folder.glob("*/*/*/dataset_info.json"))]
    guess = hub.nearest_name(wanted.name, [folder.name.replace("___", "/") for folder in folders])
    return f"Did you mean '{guess}' (cached)?" if guess else "Load it once while online"


def _refused(wanted: _Wanted, told: str) -> InputError:
    """What `datasets` says, in our words."""
    where = f"hf:{wanted.title}"
    if "gated" in told:
        return InputError(where, "is gated", "Ask for access on the hub, then run hf auth login")
    if told.startswith("DatasetNotFoundError: Revision"):
        return InputError(where, f"has no revision '{wanted.revision}'", "Pass a branch, tag or commit")
    if told.startswith("DatasetNotFoundError"):
        mend = "Check its spelling; a private one needs hf auth login"
        return InputError(where, f"the hub has no data set '{wanted.name}'", mend)
    if "scripts are no longer supported" in told:
        return InputError(where, "needs code of its own, which is not run", "Take a copy of it in Parquet")
    if "BuilderConfig" in told or "Config name is missing" in told:
        return _unnamed(wanted, re.findall(r"'([^']*)'", told[told.find("[") : told.find("]")]))
    reason = told.strip().splitlines()[0][:200].rstrip(".: ")
    return InputError(where, f"could not be loaded ({reason})", "Try again")


def _unnamed(wanted: _Wanted, configs: Sequence[str]) -> InputError:
    """The error for a config that is not there, or is not named among several."""
    if wanted.config:
        return unknown(f"hf:{wanted.name}", "config", wanted.config, configs)
    listed = ", ".join(configs[:20]) + (f" and {len(configs) - 20} more" if len(configs) > 20 else "")
    mend = f"Name one of {listed}, as in hf:{wanted.name}:{configs[0]}" if configs else EXAMPLE
    return InputError(f"hf:{wanted.name}", "has several configs", mend)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".!")


# ----------------------------------------------------------------------------------------------------------------- read


def _sides(asked: str | None, known: Sequence[str]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """(split or slice, side) of everything that is read, and notes; side None where there is but one part."""
    if asked is None:
        parts: list[tuple[str, str | None]] = [(name, SIDES[name]) for name in known if name in SIDES]
        sides = [side for _, side in parts]
        if len(known) == 1:
            return [(known[0], None)], []
        if "train" not in sides or len(set(sides)) < 2 or len(set(sides)) < len(sides):
            what = f"splits {', '.join(known)}: not train with validation or test"
            raise InputError("--split", what, f"Name what to read, such as --split {known[0]}")
        return parts, [f"not read: split {name}" for name in known if name not in SIDES]
    slices = [part.strip() for part in asked.split(",")]
    for part in slices:
        for one in part.split("+"):
            if (name := one.partition("[")[0].strip()) not in known:
                raise unknown("--split", "split", name, known)
    if len(slices) == 1:
        return [(slices[0], None)], []
    sides = [SIDES.get(part.partition("[")[0], "") for part in slices]
    if "train" not in sides or "" in sides or len(set(sides)) < len(sides) or any("+" in part for part in slices):
        what = f"'{asked}' is not one slice each of train, validation and test"
        raise InputError("--split", what, "As in train[:1000],test; one slice alone is split by clsprobe")
    return list(zip(slices, sides, strict=True)), []


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of all parts, one after the other: (name, side, rows) of each, and the columns that were asked for."""

    title: str
    parts: list[tuple[str, str | None, int]]
    table: pa.Table
    features: Any

    @classmethod
    def read(
        cls,
        wanted: _Wanted,
        builder: Any,
        parts: Iterable[tuple[str, str | None]],
        texts: Sequence[str],
        others: Sequence[str],
    ) -> _Rows:
        """The columns out of the cache's files, which are mapped and not copied. texts: those with the texts."""
        import pyarrow as pa

        title, columns = f"hf:{wanted.title}", [*texts, *others]
        tables, found, features = [], [], {}
        for name, side in parts:
            try:
                data = builder.as_dataset(split=name)
            except Exception as error:  # of the slice, or of files that somebody changed
                raise InputError(
                    f"--split {name}", _first_line(error), "As in train[:1000] or train[10%:20%]"
                ) from None
            features = data.features
            if missing := [column for column in columns if column not in features]:
                guess = did_you_mean(missing[0], features)
                flag = "--text-column" if missing[0] in texts else "--label-column"
                mend = f"Did you mean '{guess}'?" if guess else f"Name it with {flag}"
                raise InputError(title, f"no column {shown(missing[0])}", f"Columns: {', '.join(features)}. {mend}")
            tables.append(data.select_columns(list(dict.fromkeys(columns))).with_format("arrow")[:])
            found.append((name, side, len(data)))
        return cls(title, found, pa.concat_tables(tables), features)

    def check(self, wrong: np.ndarray, what: str, mend: str) -> None:
        """Raise an error about the rows where `wrong` (row,) is true, if any: by their number in their part, from 1."""
        if not wrong.any():
            return
        start = 0
        for name, _, length in self.parts:
            if len(here := np.flatnonzero(wrong[start : start + length]) + 1):
                more = f" (likewise row{'s' * (len(here) > 2)} {named_rows(here[1:], 9)})" if len(here) > 1 else ""
                raise InputError(f"{self.title}/{name}:{here[0]}", what + more, mend)
            start += length

    def column(self, name: str, told: str, *tests: str) -> pa.ChunkedArray:
        """A column, checked to be of a type that one of `tests` in pyarrow.types knows, and to be UTF-8."""
        from pyarrow import types

        column = self.table[name]
        if not any(getattr(types, test)(column.type) for test in tests):
            what = f"column {shown(name)} holds {shown(str(column.type))}, not {told}"
            raise InputError(self.title, what, "Name another column with --text-column or --label-column")
        try:
            column.validate(full=True)
        except Exception:  # Arrow's own, which names no row
            raise InputError(self.title, f"column {shown(name)} is not UTF-8", "Load it anew") from None
        return column

    def texts(self, name: str) -> pa.ChunkedArray:
        """A column of texts."""
        import pyarrow.compute as pc

        column = self.column(name, "text", *_TEXT)
        invalid = pc.fill_null(pc.match_substring(column, PAIRED), False).to_numpy()
        self.check(invalid, f"column {shown(name)} holds U+FDD0, which is no character", "Mend the data")
        return column

    def labels(self, name: str, notes: list[str], target: str | None = None) -> pa.ChunkedArray:
        """A column of labels or groups as strings, null where there is none."""
        import pyarrow as pa
        import pyarrow.compute as pc
        from datasets import ClassLabel
        from pyarrow import types

        column, feature = self.column(name, "one value", *_TEXT, *_VALUE), self.features[name]
        if isinstance(feature, ClassLabel):
            codes = column.cast(pa.int64())
            known = pc.and_(pc.greater_equal(codes, 0), pc.less(codes, len(feature.names)))  # -1 is a hidden label
            return pc.take(pa.array(feature.names, pa.string()), pc.if_else(known, codes, None))
        if types.is_floating(column.type):
            column = pc.if_else(pc.is_finite(column), column, None)
            if target != "number" and pc.all(pc.equal(column, pc.floor(column))).as_py():
                notes.append(f"column {shown(name)} holds whole numbers as floats; its classes are written without .0")
                column = column.cast(pa.int64())
        return column.cast(pa.string())


_TEXT = ("is_string", "is_large_string")
_VALUE = ("is_integer", "is_floating", "is_boolean")


# ---------------------------------------------------------------------------------------------------------------- check


def _missing(column: pa.ChunkedArray) -> np.ndarray:
    """(row,) where a column of strings holds nothing, or nothing but white space."""
    import pyarrow.compute as pc

    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True).to_numpy()


def _joined(texts: Sequence[pa.ChunkedArray]) -> pa.ChunkedArray:
    """(row,) the texts, or pairs of them; null where one is missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(texts) == 1:
        return texts[0]
    return pc.binary_join_element_wise(
        *(column.cast(pa.large_string()) for column in texts), pa.scalar(PAIRED, pa.large_string())
    )


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """(row,) integers for the distinct values of a column, and these values."""
    coded = column.combine_chunks().dictionary_encode()
    return coded.indices.to_numpy(), coded.dictionary.to_pylist()


def _kept_sides(title: str, side: np.ndarray, notes: list[str]) -> np.ndarray | None:
    """(row,) the sides, dev serving as test where there is none; None where nothing is fixed."""
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


def _target(rows: _Rows, name: str, column: pa.ChunkedArray, keep: np.ndarray, options: SourceOptions) -> np.ndarray:
    """(row,) the labels of the rows that are kept: strings, or numbers with --target number."""
    codes, values = _codes(column.filter(keep))
    if options.target == "number":
        numbers = np.array([_number(value) for value in values])
        wrong = np.zeros(len(keep), bool)
        wrong[np.flatnonzero(keep)] = ~np.isfinite(numbers)[codes]
        rows.check(
            wrong, f"column {shown(name)} holds no finite number", "Leave --target number out to predict classes"
        )
        return numbers[codes]
    if (longest := max(map(len, values))) > LONGEST_LABEL:
        what = f"column {shown(name)} holds {longest:,} characters, more than a label has"
        raise InputError(rows.title, what, "Name the column of the labels with --label-column")
    fractions = len(values) > MANY_NUMBERS and any("." in value for value in values)
    if options.target is None and fractions and np.isfinite([_number(value) for value in values]).all():
        what = f"column {shown(name)} holds numbers with fractions ({len(values):,} distinct)"
        raise InputError(rows.title, what, "Pass --target number, or --target class to make each a class")
    return np.array(values)[codes]


def _number(text: str) -> float:
    try:
        return float("nan" if "_" in text else text)
    except ValueError:
        return float("nan")
