"""Convert an array to States, and States to an array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from clsprobe.probes.extraction.states import States, tensor_name


def make_states(
    texts: list[str],
    readouts: tuple[str, ...],
    values: np.ndarray,
    source: dict[str, Any],
    *,
    present: np.ndarray | None = None,
) -> States:
    """values: (layer, readout, text, dim), not copied, so that a test may still change them."""
    layers, count = range(len(values)), len(texts)
    cells = {tensor_name(layer, name): values[layer, i] for layer in layers for i, name in enumerate(readouts)}
    present = np.ones((len(readouts), count), bool) if present is None else present
    locations = pd.DataFrame({"shard": 0, "at": np.arange(count), "tokens": 5, "ids": np.arange(count)})
    shard = cells | {"present": present.T.astype(np.uint8)}
    return States(texts, tuple(layers), tuple(readouts), values.shape[-1], [shard], locations, 512, source)


def stack_cells(states: States) -> np.ndarray:
    """(layer, readout, text, dim) of States whose every layer has every readout."""
    return np.array([[states.cell(layer, name) for name in states.readouts] for layer in states.layers])
