"""A run on disk.

    DIR/run.json             settings and their digest, `finished`, versions, digests, counts of rows, failed plug-ins
    DIR/results.parquet      the results table            DIR/predictions.parquet   the predictions behind it
    DIR/tables/*.parquet     tables of another key        DIR/answers/*.json        verdicts and exhibits
    DIR/figures/*.svg        the exhibits drawn           DIR/report.html           one page

`RunFolder` refuses a finished run and anything that is not a run before it creates anything; an unfinished run with the
same settings is resumed. Imports no torch, and pandas only to read.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsprobe.analysis.study import RERUN, Measured
from clsprobe.probes.errors import InputError
from clsprobe.probes.files import make_folder, read_json, write_parquet, write_text

if TYPE_CHECKING:
    import pandas as pd

    from clsprobe.analysis.study import Study

log = logging.getLogger("clsprobe")

MAIN = ("results", "predictions")
WORK = "trainings"  # subfolder of intermediate results, for resuming an interrupted measurement


class RunFolder:
    """The folder of one run; nothing is created before `begin`.

    Raises InputError where `path` holds a finished run (unless `overwrite`), an unfinished one of other settings, or
    something that is not a run.
    """

    def __init__(self, path: Path | str, command: str, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = Path(path).expanduser()
        self.command, self.settings = command, dict(settings)
        self.digest = sha256(json.dumps([command, self.settings], sort_keys=True).encode()).hexdigest()
        self._written_paths: set[Path] = set()
        self._previous: dict[str, Any] = {}  # the run.json of an interrupted start of this run
        self._replaces_other = False  # whether to overwrite a run with other settings
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
        same = previous.get("digest") == self.digest
        if overwrite:
            self._replaces_other = not same
            return
        if previous.get("finished"):
            raise InputError(option, "holds a finished run", "Pass --overwrite, or another --out")
        if not same:
            raise InputError(
                option, "holds an unfinished run with other settings", "Pass --overwrite, or another --out"
            )
        self._previous = previous

    def begin(self) -> None:
        """Create the folder and mark the run as unfinished; the weights of a run with other settings are removed."""
        make_folder(self.path)
        for stale in self.path.glob("weights/*") if self._replaces_other else ():
            stale.unlink()
        self._write_run_json(finished=False)

    def measure(self, study: Study) -> Measured:
        """The measurement that an interrupted start of this run saved, otherwise a new one, which is saved."""
        if "tables" in (saved := self._previous.get("measured", {})):
            log.info("going on: the measurement in %s is complete", self.path)
            tables = {name: self._load_table(name) for name in saved["tables"]}
            measured = Measured(tables, **{name: saved[name] for name in ("facts", "notes", "failures")})
        else:
            measured = study.measure(self)
            self.begin()  # only now, unless the study has: an error such as a text too long leaves no files behind
            for name, table in measured.tables.items():
                write_parquet(self.path_of(self._table_path(name).relative_to(self.path).as_posix()), table)
            saved = {"facts": measured.facts, "notes": list(measured.notes), "failures": list(measured.failures)}
            # written last: it marks the tables as complete
            self._write_run_json(finished=False, measured=saved | {"tables": list(measured.tables)})
        shutil.rmtree(self.path / WORK, ignore_errors=True)
        return measured

    def make_work_folder(self) -> Path:
        """Create the folder of intermediate results, with which an interrupted run resumes; `measure` removes it."""
        return make_folder(self.path / WORK)

    def _load_table(self, name: str) -> pd.DataFrame:
        from clsprobe.analysis.table import read_table

        self._written_paths.add(self._table_path(name))
        return read_table(self._table_path(name))

    def path_of(self, name: str) -> Path:
        """The path of a file of this run; its folder is created."""
        path = self.path / name
        if path.parent != self.path:
            make_folder(path.parent)
        self._written_paths.add(path)
        return path

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Mark the run as finished, save its facts, and remove files that an overwritten run left."""
        for stale in [*self.path.glob("answers/*"), *self.path.glob("figures/*"), *self.path.glob("tables/*")]:
            if stale not in self._written_paths:
                stale.unlink()
        self._write_run_json(finished=True, **facts)

    def _table_path(self, name: str) -> Path:
        return self.path / f"{name}.parquet" if name in MAIN else self.path / "tables" / f"{name}.parquet"

    def _write_run_json(self, **more: Any) -> None:
        content = {"command": self.command, "settings": self.settings, "digest": self.digest} | more
        write_text(self.path / "run.json", json.dumps(content, indent=1, ensure_ascii=False))


def read_run(path: Path | str) -> dict[str, Any] | None:
    """The content of run.json in a folder, None where there is none. Raises InputError where no command wrote it."""
    path = Path(path) / "run.json"
    if not os.path.lexists(path):
        return None
    content = read_json(path, RERUN)
    if not isinstance(content, dict) or not isinstance(content.get("digest"), str):
        raise InputError(str(path), "is not what a clsprobe command writes", "Name another folder, or run again")
    return content


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
