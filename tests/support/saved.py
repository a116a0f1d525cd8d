"""A finished run on disk, read again as what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from clsprobe.analysis.measured import Measured
from clsprobe.analysis.table import read_table


def read_measured(folder: Path) -> Measured:
    """The tables and facts of a run."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    paths = [folder / "results.parquet", folder / "predictions.parquet", *(folder / "tables").glob("*.parquet")]
    tables = {path.stem: read_table(path) for path in paths if path.exists()}
    return Measured(tables, {name: value for name, value in run.items() if isinstance(value, dict)})
