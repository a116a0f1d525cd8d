"""The table of refits: the scores of every procedure that was fitted on halves of the training texts.

`analysis.sweep.halving` measures them; how a comparison uses them: `analysis.stats.training_variance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

HALVINGS = 10
HALVES = tuple(f"half {i}" for i in range(2 * HALVINGS))  # 2i and 2i + 1 are complementary
ANY = "any"  # the readout of a procedure that chooses among those of untrained encoders
# measure: "dev" and "dev bits" (row -1: means on the half's own dev), or "test" (the score of a text)
# group: equal for texts that are not independent
REFITS = ("task", "seed", "control", "readout", "n_train", "measure", "row", "group", *HALVES)


@dataclass(frozen=True, eq=False)
class _Procedure:
    """test: (half, seed, text) scores. dev, dev_bits: (half, seed) means. NaN where it was not fitted."""

    test: np.ndarray
    dev: np.ndarray
    dev_bits: np.ndarray


class Refits:
    """The refits of one task. table: columns `REFITS`, or None. seeds, texts: (seed,), (text,) ascending, the axes of
    what `of` returns.

    training_texts: their number, 0 without refits. groups: (text,) equal for texts that are not independent.
    """

    def __init__(self, table: pd.DataFrame | None, seeds: np.ndarray, texts: np.ndarray) -> None:
        self._procedures: dict[tuple[str, str], _Procedure] = {}
        # a text without refits is a group of its own, with a number that none of the table has
        self.training_texts, self.groups = 0, -1 - np.arange(len(texts))
        if table is None or table.empty:
            return
        self.training_texts = int(table.n_train.min())
        tested = table[table.measure == "test"].drop_duplicates("row")
        self.groups[np.searchsorted(texts, tested.row.to_numpy(int))] = tested.group.to_numpy(int)
        for (control, readout), rows in table.groupby(["control", "readout"], observed=True, sort=False):
            seed = np.searchsorted(seeds, rows.seed.to_numpy(seeds.dtype))
            values, measure = rows[[*HALVES]].to_numpy(float), rows.measure.to_numpy(str)
            means = np.full((2, len(HALVES), len(seeds)), np.nan)
            for array, name in zip(means, ("dev", "dev bits"), strict=True):
                array[:, seed[measure == name]] = values[measure == name].T
            test, on_test = np.full((len(HALVES), len(seeds), len(texts)), np.nan), measure == "test"
            test[:, seed[on_test], np.searchsorted(texts, rows.row.to_numpy(int)[on_test])] = values[on_test].T
            self._procedures[str(control), str(readout)] = _Procedure(test, *means)

    def of(self, control: str, readouts: Sequence[str]) -> np.ndarray | None:
        """(halving, half, seed, text) the test scores of the procedure that chooses among these readouts on dev; None
        where one of them was not fitted."""
        procedures = [self._procedures.get((control, readout)) for readout in readouts]
        fitted = [procedure for procedure in procedures if procedure is not None]
        if not fitted or len(fitted) < len(procedures):
            return None
        dev, dev_bits, test = (
            np.stack([getattr(part, name) for part in fitted]) for name in ("dev", "dev_bits", "test")
        )
        best = np.lexsort((dev_bits, -dev), 0)[0]  # (half, seed)
        chosen = test[best, *np.indices(best.shape)]
        return chosen.reshape(HALVINGS, 2, *chosen.shape[1:])
