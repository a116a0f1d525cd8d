"""A run on disk.

    DIR/run.json             settings, the digests of what was read, `finished`, versions, counts of rows, failures, the
                             names of all files below, and the digests of the tables
    DIR/results.parquet      the results table            DIR/predictions.parquet   the predictions behind it
    DIR/tables/*.parquet     tables of another key        DIR/answers/*.json        verdicts and exhibits
    DIR/figures/*.svg        the exhibits drawn           DIR/report.html           one page
    DIR/weights/*            what decoders have learned   DIR/trainings/*           intermediate results

1. `RunFolder` refuses a finished run and anything that is not a run before it creates anything.
2. An unfinished run with the same settings is resumed as far as what it read is still the same (`Study.contents`);
   otherwise it is measured anew.
3. run.json lists every file before it is written. Only listed files are replaced or removed, and only where their names
   are of the form above: neither run.json nor a symbolic link can direct a removal elsewhere. A file or folder of
   somebody else where one of ours will be is an error before anything is measured.

Imports no torch, and pandas only to read.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError, field_validator

from clsprobe.analysis.answer import RERUN
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.registers import STUDIES
from clsprobe.probes.errors import InputError
from clsprobe.probes.files import (
    file_digest,
    make_folder,
    read_json,
    remove_temporary_files,
    write_parquet,
    write_text,
)
from clsprobe.probes.plugins import undo_changes

if TYPE_CHECKING:
    import pandas as pd

    from clsprobe.analysis.study import Study

log = logging.getLogger("clsprobe")

MAIN = ("results", "predictions")
WORK = "trainings"  # subfolder of intermediate results, for resuming an interrupted measurement
SUBFOLDERS = ("answers", "figures", "tables", "weights", WORK)
LISTED = re.compile(  # the names that a run may list
    r"(results|predictions)\.parquet|report\.html|answers/[\w-]+(\.json|\.\d{2,}\.parquet)|figures/[\w-]+\.\d{2,}\.svg"
    r"|tables/\w[\w.-]*\.parquet|weights/[\w-]+(\.[\w-]+)?\.safetensors"
)
WORK_FILE = re.compile(r"[0-9a-f]{16}\.[a-z.]+")  # an intermediate result: a digest and a suffix
RERUN_ELSEWHERE = "Run its command again with another --out"
ELSEWHERE = "Move it away, or name another --out"

# What clsprobe 0.1 wrote, which listed no files: command -> its answers and tables
_SWEPT = ("results", "predictions")
_RUN = (
    ("run", "aggregate", "positions", "poolings"),
    (*_SWEPT, "projection", "disagreements", "learning", "information"),
)
_UNLISTED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "run": _RUN,
    "demo": _RUN,
    "fine-tuning": (("fine_tuning", "trajectory"), (*_SWEPT, "steps", "trajectory")),
    "formation": (("formation",), (*_SWEPT, "knockout", "erasure", "leakage", "profiles", "agreement", "tokens")),
    "geometry": (("geometry",), ("measured", "projection")),
    "reconstruct": (("reconstruct",), ("reconstructions", "slots")),
    "trajectory": (("trajectory",), ("trajectory",)),
}


class _SavedMeasurement(BaseModel):
    """A complete measurement, as run.json describes it."""

    tables: list[str]
    facts: dict[str, dict[str, Any]]
    notes: list[str]
    failures: list[str]

    @field_validator("tables")
    @classmethod
    def _check_names(cls, names: list[str]) -> list[str]:
        if not all(LISTED.fullmatch(_table_name(name)) for name in names):
            raise ValueError("a name that no table of a run has")
        return names


class RunFolder:
    """The folder of one run; nothing is created before `begin`.

    Raises InputError where `path` holds a finished run (unless `overwrite`), an unfinished one of other settings, or
    something that is not a run.
    """

    def __init__(self, path: Path | str, command: str, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = Path(path).expanduser()
        self.command, self.settings = command, json.loads(json.dumps(dict(settings)))
        self.contents: dict[str, str] = {}  # what is read -> its digest; known when the measurement starts
        self._state: dict[str, Any] = {"finished": False}
        self._listed: set[str] = set()  # the files of this run and of the one that it goes on with or replaces
        self._written: set[str] = set()  # those of this run
        self._digests: dict[str, str] = {}  # table -> SHA-256 of its file
        self._previous: dict[str, Any] = {}  # the run.json of the run that this one goes on with or replaces
        self._resumes = False  # whether that one is an interrupted start of this run
        self._discards_work = False  # whether what that one has learned is removed by `begin`
        option = f"--out {path}"
        if "\0" in option:
            raise InputError(option, "holds a character that no name can", "Name another folder")
        if self.path.exists() and not self.path.is_dir():
            raise InputError(option, "is a file", "Name a folder")
        parent = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not parent.is_dir():
            raise InputError(option, f"{parent} is a file", "Name another folder")
        if not _writable(parent):
            raise InputError(option, f"no permission to write in {parent}", "Name another folder")
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        previous = read_run(self.path)
        if previous is None:
            raise InputError(option, "exists and holds no run", "Name another folder")
        same = (previous.get("command"), previous.get("settings")) == (self.command, self.settings)
        if previous.get("finished") and not overwrite:
            raise InputError(option, "holds a finished run", "Pass --overwrite, or another --out")
        if not same and not overwrite:
            raise InputError(
                option, "holds an unfinished run with other settings", "Pass --overwrite, or another --out"
            )
        files = previous.get("files")
        names = files if isinstance(files, list) else self._unlisted_files(str(previous.get("command")))
        self._listed = {name for name in names if isinstance(name, str) and LISTED.fullmatch(name)}
        self._previous, self._resumes, self._discards_work = previous, not overwrite, not same

    @property
    def digest(self) -> str:
        """SHA-256 of the command, its settings and everything that it reads: runs with one digest are one run."""
        made_of = [self.command, self.settings, self.contents]
        return sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    def begin(self) -> None:
        """Create the folder and mark the run as unfinished; removes what one of other settings or contents learned."""
        make_folder(self.path)
        for folder in self._folders():
            remove_temporary_files(folder)
        if self._discards_work:
            self._discards_work = False
            self._remove({name for name in self._listed if name.startswith("weights/")})
            self._clear_work_folder()
        self._write_run_json(finished=False)

    def measure(self, study: Study, others: Sequence[type[Study]] = ()) -> Measured:
        """The measurement that an interrupted start of this run saved, otherwise a new one, which is saved.

        others: further studies that will be answered from it. Raises InputError where a file or folder that is not of
        this run stands where one of its files will be.
        """
        self._prepare(study.contents(), [kind.name() for kind in (type(study), *others)], study.tables)
        measured = self._resume()
        if measured is None:
            with undo_changes() if STUDIES.is_plugin(self.command) else nullcontext():
                measured = study.measure(self)
            self.begin()  # only now, unless the study has: an error such as a text too long leaves no files behind
            self._save(measured)
        self._clear_work_folder()
        return measured

    def store(self, contents: Mapping[str, str], answers: Iterable[str], measured: Measured) -> None:
        """Save a measurement that was made in memory. answers: the names of those that will be written.

        Raises InputError as `measure` does.
        """
        self._prepare(contents, [*answers], [*measured.tables])
        self._discards_work = bool(self._previous)
        self.begin()
        self._save(measured)

    def _prepare(self, contents: Mapping[str, str], answers: Sequence[str], tables: Sequence[str]) -> None:
        """Note what is read, and check that every file of the run can be written."""
        self.contents = dict(contents)
        if self._previous and self._previous.get("contents") != self.contents:
            self._discards_work = True
        self._check_obstacles(answers, tables)

    def make_work_folder(self) -> Path:
        """Create the folder of intermediate results, with which an interrupted run resumes; `measure` removes it.

        Their names are 16 hexadecimal digits and a suffix; other files stay.
        """
        return make_folder(self.path / WORK)

    def reserve(self, names: Iterable[str]) -> None:
        """List files of this run in run.json, before they are written, and create their folders.

        names: relative to the folder. Raises InputError where a file or folder of somebody else has such a name.
        """
        names = [*names]
        if wrong := [name for name in names if not LISTED.fullmatch(name)]:
            raise ValueError(f"a run has no file {wrong[0]!r}")
        for name in names:
            self._check_place(name)
        new = {*names} - self._listed
        self._written.update(names)
        self._listed.update(names)
        for parent in {(self.path / name).parent for name in names}:
            make_folder(parent)
        if new:
            self._write_run_json(**self._state)

    def path_of(self, name: str) -> Path:
        """The path of a file of this run, which is reserved."""
        self.reserve([name])
        return self.path / name

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Mark the run as finished, save its facts, and remove files that an overwritten run left."""
        self._remove(self._listed - self._written)
        self._write_run_json(finished=True, **facts)

    # ------------------------------------------------------------------------------------------------------- resuming

    def _resume(self) -> Measured | None:
        """The measurement that an interrupted start of this run completed from the same contents, or None.

        Says in one line what has changed, if anything has.
        """
        if not self._resumes:
            return None
        before = self._previous.get("contents")
        if not isinstance(before, dict):
            log.info("measuring anew: it was begun by a version of clsprobe that did not record what it read")
        elif changed := [name for name in self.contents | before if self.contents.get(name) != before.get(name)]:
            log.info("measuring anew: changed since this run was begun: %s", ", ".join(changed))
        elif "measured" in self._previous:
            try:
                saved = _SavedMeasurement.model_validate(self._previous["measured"])
            except ValidationError:
                raise InputError(str(self.path / "run.json"), "is not what a clsprobe command writes", RERUN) from None
            digests = find_digests(self._previous)
            tables = {name: self._load_table(name, digests) for name in saved.tables}
            log.info("going on: the measurement in %s is complete", self.path)
            self._state = {"finished": False, "measured": saved.model_dump(mode="json")}
            self._written.update(name for name in self._listed if name.startswith("weights/"))
            return Measured(tables, saved.facts, saved.notes, saved.failures)
        return None

    def _load_table(self, name: str, digests: Mapping[str, str]) -> pd.DataFrame:
        """A table of the measurement. Raises InputError where it is not the one that was written."""
        from clsprobe.analysis.table import read_table

        file = _table_name(name)
        self._written.add(file)
        table = read_table(self.path / file, digests.get(file))
        self._digests |= {key: digest for key, digest in digests.items() if key == file}
        return table

    def _save(self, measured: Measured) -> None:
        """Write the tables; run.json, written last, marks them as complete."""
        self.reserve(map(_table_name, measured.tables))
        for name, table in measured.tables.items():
            write_parquet(self.path / _table_name(name), table)
        saved = {"facts": measured.facts, "notes": list(measured.notes), "failures": list(measured.failures)}
        self._digests = {name: file_digest(self.path / name) for name in map(_table_name, measured.tables)}
        self._write_run_json(finished=False, measured=saved | {"tables": list(measured.tables)})

    # ------------------------------------------------------------------------------------------- files of this run only

    def _check_obstacles(self, answers: Sequence[str], tables: Sequence[str]) -> None:
        """Raise InputError where something that is not of this run stands where its files will be.

        answers, tables: the names of those that will be written.
        """
        if not self.path.is_dir():
            return
        written = _make_pattern(answers, tables)
        if (path := self.path / "run.json").is_symlink():
            raise InputError(str(path), "is a link", ELSEWHERE)
        for folder in SUBFOLDERS:
            self._check_folder(folder)
        for name in self._names_on_disk():
            if written.fullmatch(name):
                self._check_place(name)

    def _check_folder(self, name: str) -> None:
        """Raise InputError where a subfolder cannot be made, or is a link to another folder."""
        path = self.path / name
        if os.path.lexists(path) and not _is_plain(path, stat.S_ISDIR):
            what = "is a link" if path.is_symlink() else "is a file"
            raise InputError(str(path), f"{what} where this run has a folder", ELSEWHERE)

    def _check_place(self, name: str) -> None:
        """Raise InputError where a file of this name cannot be written, or is not of this run."""
        path = self.path / name
        if path.parent != self.path:
            self._check_folder(path.parent.name)
        if os.path.lexists(path) and not (name in self._listed and _is_plain(path, stat.S_ISREG)):
            raise InputError(str(path), "is not of this run, and in the place of one of its files", ELSEWHERE)

    def _names_on_disk(self) -> list[str]:
        """The names in the folder and its subfolders, relative to it."""
        return [path.relative_to(self.path).as_posix() for folder in self._folders() for path in folder.iterdir()]

    def _folders(self) -> list[Path]:
        """The folder and its subfolders, but none that is a link."""
        return [self.path, *(path for name in SUBFOLDERS if _is_plain(path := self.path / name, stat.S_ISDIR))]

    def _unlisted_files(self, command: str) -> list[str]:
        """The names on disk that clsprobe 0.1, whose run.json lists no files, gave its files under this command."""
        answers, tables = _UNLISTED.get(command, ((command,), _SWEPT))
        decoders = r"weights/(bag|slot|sequence)(\.[\w-]+)?\.safetensors"
        pattern = _make_pattern(answers, tables, *([decoders] if command == "reconstruct" else []))
        return [name for name in self._names_on_disk() if pattern.fullmatch(name)]

    def _remove(self, names: Collection[str]) -> None:
        """Remove these files of the run, and take them off its list; what is no regular file any more stays."""
        for name in names:
            path = self.path / name
            if _is_plain(path.parent, stat.S_ISDIR) or path.parent == self.path:
                _remove_file(path)
        self._listed -= set(names)

    def _clear_work_folder(self) -> None:
        """Remove the intermediate results, and their folder unless somebody else's files are in it."""
        folder = self.path / WORK
        if not _is_plain(folder, stat.S_ISDIR):
            return
        remove_temporary_files(folder)
        for path in [*folder.iterdir()]:
            if WORK_FILE.fullmatch(path.name):
                _remove_file(path)
        with suppress(OSError):  # not empty
            folder.rmdir()

    def _write_run_json(self, **state: Any) -> None:
        self._state = state
        made_of = {"command": self.command, "settings": self.settings, "contents": self.contents}
        described = {"digest": self.digest, "files": sorted(self._listed), "digests": self._digests}
        content = made_of | described | state
        write_text(self.path / "run.json", json.dumps(content, indent=1, ensure_ascii=False))


def read_run(path: Path | str) -> dict[str, Any] | None:
    """The content of run.json in a folder, None where there is none. Raises InputError where no command wrote it."""
    path = Path(path) / "run.json"
    if not os.path.lexists(path):
        return None
    content = read_json(path, RERUN_ELSEWHERE)  # which files are of the run is not known, and none may be removed
    if not isinstance(content, dict) or not isinstance(content.get("digest"), str):
        raise InputError(str(path), "is not what a clsprobe command writes", RERUN_ELSEWHERE)
    return content


def find_digests(content: Mapping[str, Any]) -> dict[str, str]:
    """Name -> SHA-256 of the tables of a run, of its run.json; none of a version that did not write them."""
    digests = content.get("digests")
    return digests if isinstance(digests, dict) else {}


def _table_name(name: str) -> str:
    return f"{name}.parquet" if name in MAIN else f"tables/{name}.parquet"


def _make_pattern(answers: Sequence[str], tables: Sequence[str], *others: str) -> re.Pattern[str]:
    """The names of the page, of these answers with their figures, and of these tables. others: further patterns."""
    keys = "|".join(map(re.escape, answers))
    files = rf"report\.html|answers/({keys})(\.json|\.\d{{2,}}\.parquet)|figures/({keys})\.\d{{2,}}\.svg"
    return re.compile("|".join([files, *(re.escape(_table_name(name)) for name in tables), *others]))


def _is_plain(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether a path is of this kind (`stat.S_ISREG`, `stat.S_ISDIR`) itself, and not through a link."""
    try:
        return is_kind(path.lstat().st_mode)
    except OSError:
        return False


def _remove_file(path: Path) -> None:
    if _is_plain(path, stat.S_ISREG):
        path.unlink()


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
