"""How the layers change: the layer x readout grid of probes at several moments of a training, or over checkpoints.

1. `Trajectory.measure` adds one moment: every text is encoded with the current weights; every cell has a linear probe,
   its gain over the start on the same texts, and the unbiased CKA with the start over the test texts (1: unchanged but
   for rotation and scale).
2. The share of the attention of a text's words that goes into [CLS], layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.formation.attention import measure_inflow
from clsprobe.analysis.geometry.measures import cka
from clsprobe.probes.base import STRENGTHS, predict_each
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.linear import LogisticProbe

ATTENDED = 256  # texts over which attention is averaged


class Trajectory:
    """The cells of an encoder at one moment after another, over the same texts.

    y: (text,) codes. side: (text,) "train" | "dev" | "test"; probes are fitted on train, measured on test.
    """

    def __init__(
        self,
        texts: Sequence[str],
        y: np.ndarray,
        side: np.ndarray,
        readouts: Sequence[str],
        *,
        layers: str = "all",
        max_length: int | None = None,
    ) -> None:
        self.layers = layers
        self.texts, self.y, self.readouts, self.max_length = list(texts), y, list(readouts), max_length
        self.rows = {name: np.flatnonzero(side == name) for name in ("train", "dev", "test")}
        self._moments: list[pd.DataFrame] = []
        self._start: tuple[np.ndarray, np.ndarray] | None = None  # (cell, test text, dim), (cell, test text)

    def measure(self, moment: str, encoder: Encoder) -> None:
        """Add the cells of the encoder with its current weights."""
        limits: Any = {"max_length": self.max_length, "long_rows": "truncate"}
        states = Extractor(encoder, self.readouts, layers=self.layers, **limits)(self.texts)
        cells, (train, dev, test) = states.cells, self.rows.values()
        rows = states.rows(self.texts)
        values = np.stack([states.cell(*cell, rows) for cell in cells])
        predictions = predict_each(
            LogisticProbe(),
            values[:, train],
            self.y[train, None],
            values[:, test],
            dev=(values[:, dev], self.y[dev, None]),
            strengths=STRENGTHS,
        )
        correct = (predictions.codes[:, 0] == self.y[test]).astype(float)
        if self._start is None:
            self._start = values[:, test], correct
        values_before, correct_before = self._start
        low, high = stats.wilson(correct.mean(1), len(test))
        gain_interval = stats.difference_intervals(correct, correct_before, shares=True)
        table = pd.DataFrame(cells, columns=["layer", "readout"]).assign(
            moment=moment,
            order=len(self._moments),
            value=correct.mean(1),
            low=low,
            high=high,
            texts=len(test),
            gain=(correct - correct_before).mean(1),
            gain_low=gain_interval[0],
            gain_high=gain_interval[1],
            cka=[cka([a, b])[0, 1] for a, b in zip(values_before, values[:, test], strict=True)],
        )
        attended = [self.texts[i] for i in test[:ATTENDED]]
        attention: dict[int, float] = {}
        with suppress(InputError):  # no [CLS], or unsupported attention
            attention = measure_inflow(encoder, attended, max_length=self.max_length)
        table["received"] = np.where(table.readout == "cls", table.layer.map(attention), np.nan)
        self._moments.append(table)

    @property
    def table(self) -> pd.DataFrame:
        """Columns layer, readout, moment, order; value, low, high: test accuracy over `texts` texts; gain, gain_low,
        gain_high: minus that of the start, over the same texts; cka: with the start (NaN where a cell is one vector for
        all texts); received: the share of the words' attention that goes into [CLS], in the block below.
        """
        return pd.concat(self._moments, ignore_index=True)
