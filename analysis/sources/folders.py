"""Which files of a path hold the rows of which side: one file, or a folder in one of the layouts that are in use.

1. ``train.csv``, ``dev.jsonl``, ``test.csv.gz`` in one folder, in several formats if need be.
2. The hub's: ``data/train-00000-of-00002.parquet``, the parts of a side in the order of their numbers.
3. A folder for every side: ``train/0000.parquet``.
4. What ``Dataset.save_to_disk`` and ``DatasetDict.save_to_disk`` write.
5. A folder whose README.md says in ``configs:`` which files there are, as a repository on the hub does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clsprobe.analysis.sources.opening import DataFile, Stdin
from clsprobe.analysis.sources.suffixes import SUFFIXES, split_suffix
from clsprobe.probes.errors import InputError, did_you_mean, format_names, quote
from clsprobe.probes.files import open_file, read_content, read_error, read_json, stays_inside
from clsprobe.probes.tasks.rows import ALIASES, SIDES

CONVERSIONS = {  # suffix -> how to make of such a file one that is read
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "Save it as CSV UTF-8 from there"),
    **dict.fromkeys((".pkl", ".pickle"), "Write it as .parquet: what is pickled can run code, and is never read"),
    ".zip": "Unpack it",
}
PART = re.compile(r"(.+?)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?")  # train-00000-of-00002-a09b74b3ef9c3b56
KNOWN = ".csv, .tsv, .jsonl, .json, .parquet"
LARGEST_README = 1 << 18  # bytes
DEEPEST_README = 30  # nested collections; features of a data set may be nested, too
SAVE_AGAIN = "Load it with datasets.load_from_disk and save it again"


@dataclass
class DataFiles:
    """The files that a path stands for. name: of the path, for messages. stem: for the names of tasks."""

    name: str
    stem: str
    files: list[DataFile]
    notes: list[str] = field(default_factory=list)

    @property
    def is_split(self) -> bool:
        """Whether every file is a side of the split."""
        return all(file.side for file in self.files)


def find_files(rest: str) -> DataFiles:
    """The files that ``file:REST`` names. Raises InputError where there are none, and for a side with parts missing."""
    if not rest:
        raise InputError("--task", "no path after 'file:'", "Name a file, as in file:reviews.csv")
    if rest in ("-", *(f"-{suffix}" for suffix in SUFFIXES)):  # ./-.csv is a file of that name
        stdin = Stdin(rest[1:] or ".csv")
        return DataFiles(stdin.name, stdin.stem, [DataFile(stdin, None, stdin.name)])
    try:
        path = Path(rest).expanduser()
        path.stat()
        is_folder = path.is_dir()
        if is_folder:
            os.listdir(path)
    except FileNotFoundError:
        raise _not_found_error(rest) from None
    except (OSError, ValueError, RuntimeError) as error:  # no permission, a name too long, a NUL in it, no home for ~
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(quote(rest, 200)[1:-1], f"cannot be read ({reason.lower()})", "Check the path") from None
    if is_folder:
        return _FolderOfData(path).find()
    stem, suffix = split_suffix(path.name)
    if suffix not in SUFFIXES:
        raise _unknown_format_error(path, suffix)
    return DataFiles(path.name, stem, [DataFile(path, None, path.name)])


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


def _unknown_format_error(path: Path, suffix: str) -> InputError:
    """The error for a file whose name does not say its format, with what its first bytes look like."""
    what = f"unknown kind of file '{suffix}'" if suffix else "a file without a suffix"
    mend = f"Known: {KNOWN}. Convert the file, or give it its right name"
    if suffix in CONVERSIONS:
        mend = CONVERSIONS[suffix]
    elif guess := _guess_suffix(path):
        mend = f"Its first line looks like {guess}: if it is, rename it to {path.stem}{guess}"
    return InputError(path.name, what, mend)


def _guess_suffix(path: Path) -> str | None:
    """The suffix of a text file, by its first line."""
    try:
        with open_file(path) as file:
            head = file.read(4096)
    except OSError:
        return None
    if head.translate(None, bytes(range(32, 256)) + b"\t\r\n"):
        return None
    line = head.split(b"\n")[0]
    looks = {
        ".jsonl": line.startswith(b'{"'),
        ".json": line.startswith(b"["),
        ".tsv": b"\t" in line,
        ".csv": b"," in line,
    }
    return next((suffix for suffix, fits in looks.items() if fits), None)


class _FolderOfData:
    """A folder, and the layouts that it may have."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder, list[str]()

    def find(self) -> DataFiles:
        """The files of the first layout that fits. Raises InputError where none does."""
        folder = self.folder
        if (folder / "dataset_dict.json").is_file():
            sides = self._saved_dictionary()
        elif (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
            sides = {None: self._saved_parts(folder)}
        else:
            sides = self._named_sides()
        ordered = sorted(sides.items(), key=lambda item: SIDES.index(item[0]) if item[0] else 0)
        files = [DataFile(path, side, self._title(path)) for side, paths in ordered for path in paths]
        return DataFiles(folder.name, os.path.basename(os.path.abspath(folder)), files, self.notes)

    def _title(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _error(self, what: str, mend: str) -> InputError:
        return InputError(str(self.folder), what, mend)

    # ------------------------------------------------------------------------------------------------ files with names

    def _named_sides(self) -> dict[str | None, list[Path]]:
        """Side -> files, in the order of their parts."""
        train_parts: list[Path] = []
        has_train = False
        for sides in self._layouts():
            has_train = has_train or "train" in sides
            if "train" in sides and len(sides) > 1:
                self._note_unread(sides)
                return dict(sides.items())
            if len(sides.get("train", ())) > 1:
                train_parts = train_parts or sides["train"]
        sides = self._declared()
        if len(sides) > 1:
            return dict(sides.items())
        if not (train_parts := sides.get("train", train_parts)):
            raise self._no_side_error(has_train)
        self.notes.append(f"{self.folder.name} holds train alone, which clsprobe splits itself")
        return {None: train_parts}

    def _layouts(self) -> Iterator[dict[str, list[Path]]]:
        """Side -> files, as the names of files say, and as those of folders do; here, and in the folder ``data``."""
        for folder in (self.folder, self.folder / "data"):
            if folder.is_dir():
                yield self._by_name(folder)
                yield self._by_folder(folder)

    def _by_name(self, folder: Path) -> dict[str, list[Path]]:
        """Side -> files, by names such as ``train.csv`` and ``train-00000-of-00002.parquet``."""
        sides: dict[str, list[Path]] = {}
        for path in _tables(folder):
            stem = split_suffix(path.name)[0]
            part = PART.fullmatch(stem)
            if side := ALIASES.get((part[1] if part else stem).lower()):
                sides.setdefault(side, []).append(path)
        return {side: self._order_parts(paths, side) for side, paths in sides.items()}

    def _by_folder(self, folder: Path) -> dict[str, list[Path]]:
        """Side -> files, by names of folders: ``train/0000.parquet``."""
        folders: dict[str, Path] = {}
        for entry in _entries(folder):
            if (side := ALIASES.get(entry.name.lower())) and entry.is_dir():
                if side in folders:
                    what = f"{entry.name} and {folders[side].name} are both {side} folders"
                    raise self._error(what, "Move one of them away")
                folders[side] = entry
        sides = {}
        for side, entry in folders.items():
            if files := _tables(entry):
                are_parts = any(PART.fullmatch(split_suffix(path.name)[0]) for path in files)
                by_number = sorted(files, key=lambda path: _natural(path.name))
                sides[side] = self._order_parts(files, side) if are_parts else by_number
        return sides

    def _order_parts(self, paths: list[Path], side: str) -> list[Path]:
        """The one file of a side, or its parts in the order of their numbers.

        Raises InputError for two files that are the same part, and for parts that are missing.
        """
        numbers, total = dict[int, Path](), 0
        for path in paths:
            part = PART.fullmatch(split_suffix(path.name)[0])
            number, last = (int(part[2]), int(part[3])) if part else (0, 1)
            if number in numbers or last != (total or last):
                first, second = sorted([self._title(numbers.get(number, paths[0])), self._title(path)])
                raise self._error(f"{first} and {second} are both {side} files", "Move one of them away")
            numbers[number], total = path, last
        if len(numbers) < total:
            missing = next(number for number in range(total) if number not in numbers)
            name = PART.sub(
                lambda match: f"{match[1]}-{missing:0{len(match[2])}}-of-{match[3]}", paths[0].name, count=1
            )
            others = f" and {total - len(numbers) - 1:,} more" if total - len(numbers) > 1 else ""
            what = f"{total - len(numbers):,} of the {total:,} parts of {side} are missing ({name}{others})"
            raise self._error(what, "Was the download cut? Fetch them")
        return [numbers[number] for number in sorted(numbers)]

    def _note_unread(self, sides: dict[str, list[Path]]) -> None:
        """A note on files beside those of the sides that are written as these are."""
        files = {path for paths in sides.values() for path in paths}
        suffixes = {split_suffix(path.name)[1] for path in files}
        folders = sorted({path.parent for path in files})
        others = [path for folder in folders for path in _tables(folder) if path not in files]
        if unread := [self._title(path) for path in others if split_suffix(path.name)[1] in suffixes]:
            self.notes.append(f"not read, as the names are no sides of a split: {format_names(unread)}")

    def _no_side_error(self, has_train: bool) -> InputError:
        folders = [path for path in _entries(self.folder) if path.is_dir() and not path.name.startswith(".")]
        names = format_names([path.name for path in _tables(self.folder)])
        if names:
            mend = f"It holds {names}. Name its files train, dev and test, or give one file"
            mend += f", as in file:{self.folder / names}" if len(_tables(self.folder)) == 1 else ""
        elif folders:
            listed = format_names([path.name for path in folders])
            mend = f"It holds the folder{'s' if len(folders) > 1 else ''} {listed}. Name one, as in file:{folders[0]}"
        else:
            mend = f"It holds no {KNOWN} file. Name its files train, dev and test, or give one file"
        return self._error(f"the folder has no {'test' if has_train else 'train'} file", mend)

    # -------------------------------------------------------------------------------------------------------- README.md

    def _declared(self) -> dict[str, list[Path]]:
        """Side -> files, as the README.md of a repository on the hub says in its ``configs:``; empty if it does not."""
        named = {
            name: entries
            for config in _read_configs(self.folder / "README.md")
            if isinstance(config, dict)
            and isinstance(name := config.get("config_name", "default"), str)
            and (entries := [*_data_files(config)])
        }
        if len(named) > 1 and "default" not in named:
            folders = sorted(
                {self.folder / path.parts[0] for entries in named.values() for _, path in entries if path.parts[1:]}
            )
            mend = "Give the files of one, as a folder of its own"
            if folders and folders[0].is_dir():
                mend = f"Name the folder of one, as in file:{folders[0]}"
            raise self._error(f"its README.md names {len(named)} data sets ({format_names(sorted(named))})", mend)
        sides: dict[str, list[Path]] = {}
        for side, pattern in named.get("default", next(iter(named.values()), [])):
            files = [path for path in sorted(self.folder.glob(pattern.as_posix())) if _is_table(path)]
            sides.setdefault(side, []).extend(files)
        return {side: paths for side, paths in sides.items() if paths}

    # ----------------------------------------------------------------------------------------------------- save_to_disk

    def _saved_dictionary(self) -> dict[str | None, list[Path]]:
        """Side -> files of a DatasetDict."""
        names = _get(self.folder / "dataset_dict.json", "splits")
        if not isinstance(names, list) or not names or not all(map(stays_inside, names)):
            raise InputError(str(self.folder / "dataset_dict.json"), "names no splits", SAVE_AGAIN)
        sides = {ALIASES.get(name.lower()): name for name in names}
        if len(names) == 1:
            self.notes.append(f"{self.folder.name} holds {names[0]} alone, which clsprobe splits itself")
            return {None: self._saved_parts(self.folder / names[0])}
        known = [name for name in names if name.lower() in ALIASES]
        if "train" not in sides or len(known) < 2 or len(known) > len(set(sides) - {None}):
            what = f"its splits are {format_names(names)}, not one train with a test, a dev or both"
            raise self._error(what, f"Give the folder of one, as in file:{self.folder / names[0]}")
        if others := [name for name in names if name not in known]:
            self.notes.append(f"not read: split {format_names(others)}")
        return {side: self._saved_parts(self.folder / name) for side, name in sides.items() if side}

    def _saved_parts(self, folder: Path) -> list[Path]:
        """The files of a Dataset, in their order."""
        state = folder / "state.json"
        parts = _get(state, "_data_files")
        if _get(state, "_indices_data_files"):
            raise InputError(str(state), "is of an old version of datasets, with rows in another order", SAVE_AGAIN)
        names = [part.get("filename") if isinstance(part, dict) else None for part in _as_list(parts)]
        paths = [
            folder / name for name in names if isinstance(name, str) and stays_inside(name) and name.endswith(".arrow")
        ]
        if not paths or len(paths) < len(names):
            raise InputError(str(state), "names no .arrow files in this folder", SAVE_AGAIN)
        if missing := [path.name for path in paths if not path.exists()]:
            what = f"{len(missing):,} of its {len(names):,} files are missing ({format_names(missing)})"
            raise InputError(str(folder), what, "Was the copy cut? Copy the whole folder")
        return paths


def _get(path: Path, key: str) -> Any:
    """The value of a key of a JSON object in a file; None if there is none."""
    content = read_json(path, SAVE_AGAIN)
    return content.get(key) if isinstance(content, dict) else None


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder))
    except OSError as error:
        raise read_error(str(folder), error, "Check the folder") from None


def _tables(folder: Path) -> list[Path]:
    """The files of a folder whose names say that they hold rows."""
    return [path for path in _entries(folder) if _is_table(path)]


def _is_table(path: Path) -> bool:
    """Whether a file's name says that it holds rows, and is none that the library `datasets` writes about them."""
    own = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
    return split_suffix(path.name)[1] in SUFFIXES and path.name not in own


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that orders names by the numbers in them: 2.csv before 10.csv."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read_configs(path: Path) -> list[Any]:
    """The ``configs:`` of the YAML that a README.md begins with; empty if there are none.

    Likewise for YAML that is invalid, nested too deep, or uses aliases: eight lines of them say a value 10**8 times.
    """
    import yaml

    try:
        text = read_content(path, largest=LARGEST_README).decode("utf-8", "replace") if path.is_file() else ""
        if not text.startswith("---"):
            return []
        text, depth = text.split("\n---", 1)[0].removeprefix("---"), 0
        for event in yaml.parse(text, yaml.BaseLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > DEEPEST_README:
                return []
        header = yaml.load(text, yaml.BaseLoader)
    except (OSError, yaml.YAMLError):
        return []
    return _as_list(header.get("configs")) if isinstance(header, dict) else []


def _data_files(config: dict[str, Any]) -> Iterator[tuple[str, Path]]:
    """The side and pattern of the files of one of ``configs:``, but for patterns that lead out of the folder."""
    for entry in _as_list(config.get("data_files")):
        split = entry.get("split") if isinstance(entry, dict) else None
        if isinstance(split, str) and (side := ALIASES.get(split.lower())):
            patterns = entry.get("path")
            for pattern in patterns if isinstance(patterns, list) else [patterns]:
                if isinstance(pattern, str) and stays_inside(pattern):
                    yield side, Path(pattern)
