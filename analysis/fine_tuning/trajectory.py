"""How [CLS] learns: the layer x readout grid of probes at several moments of a training, or over several checkpoints.

1. `Trajectory.look` reads one moment: every text once through the encoder as it is then, a linear probe on every cell,
   what each has gained since the start over the same texts, and how far it has moved, as unbiased CKA over the test
   texts (1: not at all, but for turning and scaling).
2. Beside it, how much of the attention of a text's words goes into [CLS], layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.formation.attention import received
from clsprobe.analysis.geometry.measures import cka
from clsprobe.probes.base import STRENGTHS, predict_each
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.linear import LogisticProbe

ATTENDED = 256  # texts over which attention is averaged


class Trajectory:
    """The cells of an encoder at one moment after another, over the same texts.

    y: (text,) codes. side: (text,) "train" | "dev" | "test"; probes learn from train, everything else is read on test.
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
        self._found: list[pd.DataFrame] = []
        self._start: tuple[np.ndarray, np.ndarray] | None = None  # (cell, test text, dim), (cell, test text)

    def look(self, moment: str, encoder: Encoder) -> None:
        """Read the encoder as it is now."""
        limits: Any = {"max_length": self.max_length, "long_rows": "truncate"}
        states = Extractor(encoder, self.readouts, layers=self.layers, **limits)(self.texts)
        cells, (train, dev, test) = states.cells, self.rows.values()
        at = states.rows(self.texts)
        values = np.stack([states.cell(*cell, at) for cell in cells])
        told = predict_each(
            LogisticProbe(),
            values[:, train],
            self.y[train, None],
            values[:, test],
            dev=(values[:, dev], self.y[dev, None]),
            strengths=STRENGTHS,
        )
        right = (told.codes[:, 0] == self.y[test]).astype(float)
        if self._start is None:
            self._start = values[:, test], right
        before, had = self._start
        low, high = stats.wilson(right.mean(1), len(test))
        gained = stats.difference_intervals(right, had, shares=True)
        table = pd.DataFrame(cells, columns=["layer", "readout"]).assign(
            moment=moment,
            order=len(self._found),
            value=right.mean(1),
            low=low,
            high=high,
            gain=(right - had).mean(1),
            gain_low=gained[0],
            gain_high=gained[1],
            cka=[cka([a, b])[0, 1] for a, b in zip(before, values[:, test], strict=True)],
        )
        looked = [self.texts[i] for i in test[:ATTENDED]]
        into: dict[int, float] = {}
        with suppress(InputError):  # no [CLS], or an attention of another form
            into = received(encoder, looked, max_length=self.max_length)
        table["received"] = np.where(table.readout == "cls", table.layer.map(into), np.nan)
        self._found.append(table)

    @property
    def table(self) -> pd.DataFrame:
        """Columns layer, readout, moment, order; value, low, high: test accuracy; gain, gain_low, gain_high: less that
        of the start, over the same texts; cka: with the start (NaN where a cell is one vector for all texts); received:
        what [CLS] gets of the words' attention, in the block below.
        """
        return pd.concat(self._found, ignore_index=True)
