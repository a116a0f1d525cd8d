"""The plan of the trainings, before torch is imported, and the rates beyond it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

EXTENSIONS = 3  # rates that are added at most on either side of the planned ones
MOST_SEEDS = 30  # more are not recommended
FACTOR = 4.0  # from one rate to the next, where one rate alone has no ratio


@dataclass(frozen=True)
class Plan:
    """Every readout is trained with every rate and seed, on at most so many training texts."""

    readouts: Sequence[str]
    rates: Sequence[float]
    seeds: Sequence[int]
    train_texts: int
    epochs: int
    lora: int

    def rates_beyond(self, trained: Collection[float], chosen: float) -> list[float]:
        """The rates to train next for a readout; none where the chosen rate has trained ones on either side.

        They continue the trained rates geometrically, at most `EXTENSIONS` times on a side, and stay below 1. A rate of
        0, which trains the head alone, has none below it.
        """
        rates = sorted(trained)
        ratios = [(above / below if below > 0 else FACTOR) for below, above in pairwise(rates)]
        lowest_ratio, highest_ratio = (ratios[0], ratios[-1]) if ratios else (FACTOR, FACTOR)
        beyond = []
        if chosen == rates[0] > 0 and sum(rate < min(self.rates) for rate in rates) < EXTENSIONS:
            beyond.append(chosen / lowest_ratio)
        if chosen == rates[-1] > 0 and sum(rate > max(self.rates) for rate in rates) < EXTENSIONS:
            beyond.append(chosen * highest_ratio)
        return [rate for rate in (float(f"{rate:g}") for rate in beyond) if rate < 1]
