"""A run on disk.

    DIR/run.json             settings and their digest, `finished`, versions, digests, counts of rows, failed plug-ins
    DIR/results.parquet      the results table            DIR/predictions.parquet   the predictions behind it
    DIR/tables/*.parquet     tables of another key        DIR/answers/*.json        verdicts and exhibits
    DIR/figures/*.svg        the exhibits drawn           DIR/report.html           one page

`RunFolder` refuses a finished run and anything that is not a run, before a thing is created; an unfinished run with the
same settings is gone on with. Imports no torch, and pandas only to read.
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

from clsprobe.analysis.study import AGAIN, Measured
from clsprobe.probes.errors import InputError
from clsprobe.probes.files import make_folder, read_json, write_parquet, write_text

if TYPE_CHECKING:
    import pandas as pd

    from clsprobe.analysis.study import Study

log = logging.getLogger("clsprobe")

MAIN = ("results", "predictions")
UNFINISHED = "trainings"  # the folder of work that a measurement is made of


class RunFolder:
    """The folder of one run; nothing is created before `begin`.

    Raises InputError where `path` holds a finished run (unless `overwrite`), an unfinished one of other settings, or
    something that is not a run.
    """

    def __init__(self, path: Path | str, command: str, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = Path(path).expanduser()
        self.command, self.settings = command, dict(settings)
        self.digest = sha256(json.dumps([command, self.settings], sort_keys=True).encode()).hexdigest()
        self._written: set[Path] = set()
        self._before: dict[str, Any] = {}  # the run.json of an interrupted start of this run
        self._others = False  # whether what lies there is of a run with other settings, to be overwritten
        shown = str(path)
        if "\0" in shown:
            raise InputError(f"--out {shown}", "holds a character that no name can", "Name another folder")
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {shown}", "is a file", "Name a folder")
        parent = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not parent.is_dir():
            raise InputError(f"--out {shown}", f"{parent} is a file", "Name another folder")
        if not _writable(parent):
            raise InputError(f"--out {shown}", f"no permission to write in {parent}", "Name another folder")
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        before = read_run(self.path)
        if before is None:
            raise InputError(f"--out {shown}", "exists and holds no run", "Name another folder")
        same = before.get("digest") == self.digest
        if overwrite:
            self._others = not same
            return
        if before.get("finished"):
            raise InputError(f"--out {shown}", "holds a finished run", "Pass --overwrite, or another --out")
        if not same:
            raise InputError(
                f"--out {shown}", "holds an unfinished run with other settings", "Pass --overwrite, or another --out"
            )
        self._before = before

    def begin(self) -> None:
        """Create the folder and mark the run as unfinished; what another run has learned goes, ours is gone on with."""
        make_folder(self.path)
        for stale in self.path.glob("weights/*") if self._others else ():
            stale.unlink()
        self._describe(finished=False)

    def measure(self, study: Study) -> Measured:
        """What an interrupted start of this very run has measured already; else what the study measures now, saved."""
        if "tables" in (saved := self._before.get("measured", {})):
            log.info("going on: the measurement in %s is complete", self.path)
            tables = {name: self._load(name) for name in saved["tables"]}
            measured = Measured(tables, **{name: saved[name] for name in ("facts", "notes", "failures")})
        else:
            measured = study.measure(self)
            self.begin()  # only now, unless the study has done so: an error about a text too long leaves nothing behind
            for name, table in measured.tables.items():
                write_parquet(self.place(self._table(name).relative_to(self.path).as_posix()), table)
            saved = {"facts": measured.facts, "notes": list(measured.notes), "failures": list(measured.failures)}
            # last: it says that the tables are complete
            self._describe(finished=False, measured=saved | {"tables": list(measured.tables)})
        shutil.rmtree(self.path / UNFINISHED, ignore_errors=True)
        return measured

    def unfinished(self) -> Path:
        """The folder, made, for work that an interrupted run goes on with; gone once the measurement is saved."""
        return make_folder(self.path / UNFINISHED)

    def _load(self, name: str) -> pd.DataFrame:
        from clsprobe.analysis.table import read_table

        self._written.add(self._table(name))
        return read_table(self._table(name))

    def place(self, name: str) -> Path:
        """The path of a file of this run, its folder made."""
        path = self.path / name
        if path.parent != self.path:
            make_folder(path.parent)
        self._written.add(path)
        return path

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Mark the run as finished, with what is known of it, and remove what an overwritten run left behind."""
        for stale in [*self.path.glob("answers/*"), *self.path.glob("figures/*"), *self.path.glob("tables/*")]:
            if stale not in self._written:
                stale.unlink()
        self._describe(finished=True, **facts)

    def _table(self, name: str) -> Path:
        return self.path / f"{name}.parquet" if name in MAIN else self.path / "tables" / f"{name}.parquet"

    def _describe(self, **more: Any) -> None:
        content = {"command": self.command, "settings": self.settings, "digest": self.digest} | more
        write_text(self.path / "run.json", json.dumps(content, indent=1, ensure_ascii=False))


def read_run(path: Path | str) -> dict[str, Any] | None:
    """The run.json of a folder, None where there is none. Raises InputError for one that no command wrote."""
    path = Path(path) / "run.json"
    if not os.path.lexists(path):
        return None
    content = read_json(path, AGAIN)
    if not isinstance(content, dict) or not isinstance(content.get("digest"), str):
        raise InputError(str(path), "is not what a clsprobe command writes", "Name another folder, or run again")
    return content


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
