"""The table `rows` of a run: where every row that was read has gone, a side or the reason why it is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from clsprobe.probes.tasks.places import Places

if TYPE_CHECKING:
    import pandas as pd

    from clsprobe.analysis.corpus import Corpus
    from clsprobe.probes.tasks.task import Task

ROWS = ("task", "seed", "source", "number", "row", "side", "reason")


def list_rows(corpus: Corpus, task: Task, side: np.ndarray, reason: np.ndarray, *, seed: int) -> pd.DataFrame:
    """The rows of one task, split with one seed: columns `ROWS`.

    source: the file, or what else the row was read from. number: its line, or row, there. row: its index in the task,
    as in the table of predictions; -1 where it was left out before the task was made. side: "train", "dev", "test", or
    "all" where a study divides nothing; "" for a row that was left out. reason: why it was.

    side, reason: (text of the task,).
    """
    unread = {**corpus.unread.get(task.name, {}), **corpus.excluded.get(task.name, {})}
    return _list_rows(task.name, task.located, side, reason, unread, seed)


def list_texts(
    places: Places, side: np.ndarray, reason: np.ndarray, unread: Mapping[str, Places], *, seed: int
) -> pd.DataFrame:
    """The same for a study that reads texts without labels, those of all sources together, each once.

    places, side, reason: (text,). unread: reason -> rows that were left out before.
    """
    return _list_rows("texts", places, side, reason, unread, seed)


def _list_rows(
    task: str, places: Places, side: np.ndarray, reason: np.ndarray, unread: Mapping[str, Places], seed: int
) -> pd.DataFrame:
    import pandas as pd

    parts = [(places, np.arange(len(places)), side, reason)]
    parts += [
        (rows, np.full(len(rows), -1), np.full(len(rows), ""), np.full(len(rows), why)) for why, rows in unread.items()
    ]
    tables = []
    for rows, index, sides, reasons in parts:
        names = [table.name for table in rows.tables]
        columns = {
            "task": pd.Categorical.from_codes(np.zeros(len(rows), np.int8), [task]),
            "seed": np.full(len(rows), seed, np.int64),
            "source": pd.Categorical(pd.Series(names, dtype=str).take(rows.table)),
            "number": rows.number.astype(np.int64),
            "row": index.astype(np.int64),
            "side": pd.Categorical(np.where(reasons == "", sides, "")),
            "reason": pd.Categorical(reasons.astype(str)),
        }
        tables.append(pd.DataFrame(columns, columns=list(ROWS)))
    return pd.concat(tables, ignore_index=True)
