"""The plan of the trainings, before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Every readout is trained with every rate and seed, on at most so many training texts."""

    readouts: Sequence[str]
    rates: Sequence[float]
    seeds: Sequence[int]
    train_texts: int
    epochs: int
    lora: int
