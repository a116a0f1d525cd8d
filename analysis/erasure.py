"""Is what a place holds *used*? A property is erased there, and the rest of the network runs on.

1. A place is a layer and some of its tokens (`probes.intervene.tokens_of`: ``cls``, ``content``).
2. LEACE (Belrose et al. 2023, the package concept-erasure) moves the vectors of a place as little as can be so that no
   linear probe tells the property any more: in float64, on one-hot labels (integers would erase one direction), fitted
   on train. What is left is measured on test by a probe trained on erased vectors: the leakage.
3. Two controls take out random directions: of the *same variance* as LEACE moves, by which it is judged, and the *same
   number* of directions, which moves the vectors far less.
4. The erased hidden states go into the next block, and the fixed probe is asked at the end, as after a cut
   (`analysis.knockout`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from tqdm import tqdm

from analysis import stats
from analysis.knockout import Cell, fill, read
from analysis.sweep import Asked
from probes.base import STRENGTHS, predict_each
from probes.encoder import Encoder
from probes.extract import States
from probes.intervene import Recorded, altered, replay, tokens_of

if TYPE_CHECKING:
    from torch import Tensor

    from probes.readout import Batch

KINDS = ("leace", "same variance", "same number")
TOLERANCE = 1e-9  # a correlation with the label below this is rounding


class Place(NamedTuple):
    """Tokens of a layer."""

    tokens: str
    layer: int


class Erasure(NamedTuple):
    """What is taken out of a place: one of `KINDS`, or "none"."""

    kind: str
    tokens: str
    layer: int


KEY = [*Erasure._fields, "read at", "readout"]
PREDICTIONS = ("task", *KEY, "seed", "row", "label", "predicted")


@dataclass(frozen=True, eq=False)
class Eraser:
    """x -> x - (x - mean) @ out, in float64. mean: (dim,). out: (dim, dim)."""

    mean: Tensor
    out: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(..., dim) in the precision that it came in."""
        wide = x.to(self.out)
        return (wide - (wide - self.mean) @ self.out).to(x)


@dataclass(frozen=True, eq=False)
class Moments:
    """Running mean and sums of squares of the vectors of a place, and of these with one-hot labels, in float64."""

    fitter: LeaceFitter
