"""The results table and the table of predictions: columns, checks and export."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pandas.api.types import union_categoricals

from clsprobe.probes.errors import InputError
from clsprobe.probes.files import file_digest, read_error, read_parquet

KEY = ("model", "task", "control", "layer", "readout", "probe", "seed", "split", "metric")
COLUMNS = (*KEY, "value", "low", "high", "n_train", "n_test", "converged")
PREDICTIONS = (*KEY[:-1], "row", "label", "predicted", "log2_probability")
NUMBERS = ("number", "predicted_number")  # further columns where a task of the run has numbers instead of classes

NO_LAYER, NO_READOUT = -1, "none"  # of a baseline without a cell

_RERUN = "Run its command again with --overwrite"


def check_results(table: pd.DataFrame) -> pd.DataFrame:
    """The table itself: one row per number, the first nine columns unique. Raises ValueError otherwise."""
    if tuple(table.columns) != COLUMNS:
        raise ValueError(f"a results table has the columns {COLUMNS}, not {tuple(table.columns)}")
    if (duplicated := table.duplicated(list(KEY))).any():
        raise ValueError(f"two rows have the key {dict(table.loc[duplicated.idxmax(), list(KEY)])}")
    if table.value.isna().any():
        raise ValueError(f"a number is missing: {dict(table.loc[table.value.isna().idxmax()])}")
    if (outside := (table.low > table.value + 1e-9) | (table.high < table.value - 1e-9)).any():
        raise ValueError(f"an interval does not hold its value: {dict(table.loc[outside.idxmax()])}")
    return table


def check_predictions(table: pd.DataFrame) -> pd.DataFrame:
    """The table itself, one row per text and cell. Raises ValueError where its columns differ."""
    if tuple(table.columns) not in (PREDICTIONS, (*PREDICTIONS, *NUMBERS)):
        raise ValueError(f"a table of predictions has the columns {PREDICTIONS}, not {tuple(table.columns)}")
    return table


def read_table(path: Path, digest: str | None = None) -> pd.DataFrame:
    """A table of a run. digest: the SHA-256 of its file, where it is known.

    Raises InputError for a file that is damaged, missing or another one.
    """
    try:
        table = read_parquet(path)
        changed = digest is not None and file_digest(path) != digest
    except OSError as error:
        raise read_error(str(path), error, _RERUN) from None
    except Exception as error:  # Arrow raises many types for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise InputError(str(path), f"cannot be read ({reason})", _RERUN) from None
    if changed:
        raise InputError(str(path), "is not the table that its run wrote", _RERUN)
    return table


def read_results(path: Path, digest: str | None = None) -> pd.DataFrame:
    """The results table of a run. digest: as of `read_table`. Raises InputError for any other table."""
    table = read_table(path, digest)
    try:
        return check_results(table)
    except (ValueError, TypeError) as error:  # TypeError: columns that hold no numbers
        raise InputError(str(path), str(error), _RERUN) from None


def concat_predictions(blocks: list[pd.DataFrame]) -> pd.DataFrame:
    """Predictions concatenated; their categories are united, or pandas would expand every row to a string."""
    columns = blocks[0].select_dtypes("category").columns
    united = {c: union_categoricals([block[c] for block in blocks]).categories for c in columns}
    return pd.concat(
        [block.assign(**{c: block[c].cat.set_categories(united[c]) for c in columns}) for block in blocks],
        ignore_index=True,
    )


def to_csv(table: pd.DataFrame) -> str:
    """The table as CSV. Text that a spreadsheet would read as a formula gets a leading apostrophe."""
    text = table.select_dtypes(exclude="number").columns.difference(["converged"])
    safe = table.assign(**{c: table[c].astype(str).str.replace(r"^(?=[=+\-@\t\r])", "'", regex=True) for c in text})
    return safe.to_csv(index=False, lineterminator="\n")


def to_latex(table: pd.DataFrame) -> str:
    """Test accuracy in per cent, or R2, a booktabs table of layers by readouts for every task and probe."""
    scores = table[table.metric.isin(["accuracy", "r2"]) & (table.split == "test") & (table.control == "none")]
    parts = []
    for (task, probe, metric), rows in scores.groupby(["task", "probe", "metric"], sort=False):
        caption, scale, decimals = ("accuracy in %", 100, 1) if metric == "accuracy" else ("R2", 1, 3)
        grid = (rows.pivot_table(index="layer", columns="readout", values="value", sort=False) * scale).reset_index()
        align, number = "r" * grid.shape[1], f"%.{decimals}f"
        parts += [
            "% " + " ".join(f"{task}, {probe} probe: test {caption}".split()),  # a comment is one line
            grid.to_latex(index=False, escape=True, column_format=align, float_format=number, na_rep="--"),
        ]
    return "\n".join(parts)
