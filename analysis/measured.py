"""`Measured`: what a study has measured, as tables and facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clsprobe.analysis.verdict import MissingEvidence

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Measured:
    """The measurement of a study.

    tables: name -> table. Those with a column `task` hold the rows of every task. facts: for run.json and the end of
    the page: "rows" (task -> counts of its rows), "read" (SPEC -> rows read), "model", "versions",
    "solved" (task -> baselines that solve it by construction).
    notes: sentences a reader should see. failures: a sentence for every plug-in that failed.
    """

    tables: Mapping[str, pd.DataFrame]
    facts: Mapping[str, Mapping[str, Any]]
    notes: Sequence[str] = ()
    failures: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"<Measured: {', '.join(f'{name} {len(table):,} rows' for name, table in self.tables.items())}>"

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks, in the order of the settings."""
        return list(self.facts["rows"])

    def rows(self, table: str, task: str) -> pd.DataFrame:
        """The rows of one task in a table. Raises MissingEvidence where it was not measured."""
        if table not in self.tables:
            raise MissingEvidence(f"the table {table} was not measured")
        every_task = self.tables[table]
        return every_task[every_task.task == task] if "task" in every_task else every_task
