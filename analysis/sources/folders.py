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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clsprobe.analysis.sources.opening import SUFFIXES, DataFile, Stdin, split_suffix
from clsprobe.probes.errors import InputError, did_you_mean, format_names, quote
from clsprobe.probes.files import open_file, read_content, read_error, read_json, stays_inside
from clsprobe.probes.tasks.rows import ALIASES, SIDES

PART = re.compile(r"(.+?)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?")  # train-00000-of-00002-a09b74b3ef9c3b56
KNOWN = ".csv, .tsv, .jsonl, .json, .parquet"
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
    mend = {
        ".xlsx": "Save it as CSV UTF-8 in Excel",
        ".xls": "Save it as CSV UTF-8 in Excel",
        ".ods": "Save it as CSV there",
        ".zip": "Unpack it",
        ".pkl": "Write it as .parquet: what is pickled can run code, and is never read",
        ".pickle": "Write it as .parquet: what is pickled can run code, and is never read",
    }.get(suffix, mend)
    try:
        with open_file(path) as file:
            head = file.read(4096)
    except OSError:
        head = b""
    first_line = head.split(b"\n")[0]
    looks = {".parquet": head.startswith(b"PAR1"), ".jsonl": first_line.startswith(b'{"'), ".json": head[:1] == b"["}
    looks |= {".tsv": b"\t" in first_line, ".csv": b"," in first_line or b";" in first_line}
    is_text = not head.translate(None, bytes(range(32, 256)) + b"\t\r\n")
    guess = next((suffix for suffix, fits in looks.items() if fits and (is_text or suffix == ".parquet")), None)
    if guess and mend.startswith("Known"):
        mend = f"Its first line looks like {guess}: if it is, rename it to {path.stem or path.name}{guess}"
    return InputError(path.name, what, mend)


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
        folders = [folder for folder in (self.folder, self.folder / "data") if folder.is_dir()]
        attempts = [self._by_name(_entries(folder)) for folder in folders]
        attempts += [self._by_folder(_entries(folder)) for folder in folders]
        for sides in attempts:
            if "train" in sides and len(sides) > 1:
                self._note_unread(sides)
                return {side: self._order(paths, side) for side, paths in sides.items()}
        for sides in attempts:
            if list(sides) == ["train"] and len(sides["train"]) > 1:
                return self._only_train(self._order(sides["train"], "train"))
        if sides := self._declared():
            if list(sides) == ["train"]:
                return self._only_train(self._order(sides["train"], "train"))
            return {side: self._order(paths, side) for side, paths in sides.items()}
        raise self._no_side_error("train" in attempts[0])

    def _only_train(self, paths: list[Path]) -> dict[str | None, list[Path]]:
        self.notes.append(f"{self.folder.name} holds train alone, which clsprobe splits itself")
        return {None: paths}

    def _by_name(self, entries: Sequence[Path]) -> dict[str, list[Path]]:
        """Side -> files, by the names of files."""
        sides: dict[str, list[Path]] = {}
        for path in entries:
            stem, suffix = split_suffix(path.name)
            part = PART.fullmatch(stem)
            side = ALIASES.get((part[1] if part else stem).lower())
            if side and suffix in SUFFIXES:
                sides.setdefault(side, []).append(path)
        return sides

    def _by_folder(self, entries: Sequence[Path]) -> dict[str, list[Path]]:
        """Side -> files, by the names of the folders that hold them."""
        sides: dict[str, list[Path]] = {}
        for folder in entries:
            if (side := ALIASES.get(folder.name.lower())) and folder.is_dir():
                if side in sides:
                    raise self._error(f"{folder.name} and {sides[side][0].parent.name} are both {side} folders",
                                      "Move one of them away")  # fmt: skip
                if files := _tables(_entries(folder)):
                    sides[side] = files
        return sides

    def _order(self, paths: list[Path], side: str) -> list[Path]:
        """The parts of a side in the order of their numbers. Raises InputError if there are too many or too few."""
        parts = [PART.fullmatch(split_suffix(path.name)[0]) for path in paths]
        is_by_folder = any(path.parent.name.lower() in ALIASES for path in paths)
        if not any(parts) and (is_by_folder or len(paths) == 1):
            return sorted(paths, key=lambda path: _natural(path.name))
        numbers = dict[int, Path]()
        total = max((int(part[3]) for part in parts if part), default=1)
        for path, part in zip(paths, parts, strict=True):
            number = int(part[2]) if part else 0
            if number in numbers or (part and int(part[3]) != total) or not part and len(paths) > 1:
                other = numbers.get(number) or next(other for other in paths if other != path)
                first, second = sorted([self._title(other), self._title(path)])
                raise self._error(f"{first} and {second} are both {side} files", "Move one of them away")
            numbers[number] = path
        if missing := [number for number in range(min(total, 10**5)) if number not in numbers]:
            name = paths[0].name
            first = PART.sub(lambda match: f"{match[1]}-{missing[0]:0{len(match[2])}}-of-{match[3]}", name, count=1)
            others = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            what = f"{len(missing):,} of the {total:,} parts of {side} are missing ({first}{others})"
            raise self._error(what, "Was the download cut? Fetch them")
        return [numbers[number] for number in sorted(numbers)]

    def _note_unread(self, sides: dict[str, list[Path]]) -> None:
        """A note on files beside those of the sides that are written as these are."""
        read = {path for paths in sides.values() for path in paths}
        suffixes = {split_suffix(path.name)[1] for path in read}
        folders = {path.parent for path in read if path.parent.name.lower() not in ALIASES}
        others = [path for folder in sorted(folders) for path in _tables(_entries(folder)) if path not in read]
        if unread := [self._title(path) for path in others if split_suffix(path.name)[1] in suffixes]:
            self.notes.append(f"not read, as the names are no sides of a split: {format_names(unread)}")

    def _no_side_error(self, has_train: bool) -> InputError:
        folder = self.folder
        tables = _tables(_entries(folder))
        if folders := [path.name for path in _entries(folder) if path.is_dir() and not path.name.startswith(".")]:
            named = f"It holds the folder{'s' if len(folders) > 1 else ''} {format_names(folders)}"
            named += f". Name one, as in file:{folder / folders[0]}"
        else:
            named = f"It holds no {', '.join(KNOWN.split(', '))} file. Name its files train, dev and test, or give one file"
        if tables:
            named = f"It holds {format_names([path.name for path in tables])}. Name its files train, dev and test, or give "
            named += f"one file, as in file:{tables[0]}" if len(tables) == 1 else "one file"
        return self._error(f"the folder has no {'test' if has_train else 'train'} file", named)

    # -------------------------------------------------------------------------------------------------------- README.md

    def _declared(self) -> dict[str, list[Path]]:
        """Side -> files, as the README.md of a repository on the hub says in its ``configs:``; empty if it does not."""
        import yaml

        path = self.folder / "README.md"
        if not path.is_file():
            return {}
        try:
            text = read_content(path).decode("utf-8", "replace")
            header = yaml.load(text.split("\n---", 1)[0].removeprefix("---"), yaml.BaseLoader)  # noqa: S506 - strings only
        except (OSError, yaml.YAMLError, RecursionError):
            return {}
        configs = header.get("configs") if text.startswith("---") and isinstance(header, dict) else None
        named = {
            str(config.get("config_name", "default")): config["data_files"]
            for config in (configs if isinstance(configs, list) else [])
            if isinstance(config, dict) and isinstance(config.get("data_files"), list)
        }
        if len(named) > 1 and "default" not in named:
            folders = sorted({files.parts[0] for data in named.values() for files in _patterns(data) if files.parts[1:]})
            mend = f"Name the folder of one, as in file:{self.folder / folders[0]}" if folders else "Give the files of one"
            raise self._error(f"its README.md names {len(named)} data sets ({format_names(sorted(named))})", mend)
        sides: dict[str, list[Path]] = {}
        for data in [named.get("default", *named.values())] if named else []:
            for entry in data:
                side = ALIASES.get(str(entry.get("split", "")).lower()) if isinstance(entry, dict) else None
                if side:
                    sides.setdefault(side, []).extend(_glob(self.folder, _patterns([entry])))
        return {side: paths for side, paths in sides.items() if paths}

    # ------------------------------------------------------------------------------------------------------ save_to_disk

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
        names = [part.get("filename") if isinstance(part, dict) else None for part in parts or ()]
        if not names or not all(stays_inside(name) and name.endswith(".arrow") for name in names):
            raise InputError(str(state), "names no .arrow files in this folder", SAVE_AGAIN)
        if missing := [name for name in names if not (folder / name).exists()]:
            what = f"{len(missing):,} of its {len(names):,} files are missing ({format_names(missing)})"
            raise InputError(str(folder), what, "Was the copy cut? Copy the whole folder")
        return [folder / name for name in names]


def _get(path: Path, key: str) -> Any:
    """The value of a key of a JSON object in a file; None if there is none."""
    content = read_json(path, SAVE_AGAIN)
    return content.get(key) if isinstance(content, dict) else None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder))
    except OSError as error:
        raise read_error(str(folder), error, "Check the folder") from None


def _tables(entries: Sequence[Path]) -> list[Path]:
    """The files whose names say that they hold rows, but for those of the library `datasets`."""
    own = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
    return [path for path in entries if split_suffix(path.name)[1] in SUFFIXES and path.name not in own]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that orders names by the numbers in them: 2.csv before 10.csv."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _patterns(data_files: Any) -> list[Path]:
    """The patterns of files in a list of {split, path}, but for those that lead out of the folder."""
    paths = [entry.get("path") for entry in data_files if isinstance(entry, dict)]
    flat = [pattern for path in paths for pattern in (path if isinstance(path, list) else [path])]
    return [Path(pattern) for pattern in flat if stays_inside(pattern)]


def _glob(folder: Path, patterns: Sequence[Path]) -> list[Path]:
    return [path for pattern in patterns for path in _tables(sorted(folder.glob(pattern.as_posix())))]
