"""Layer numbers from the text of ``--layers``."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from clsprobe.probes.encoders.describing import Description
from clsprobe.probes.errors import InputError


def parse_layers(text: str, description: Description) -> list[int]:
    """``all``, ``0,3,6`` or ``1-12`` as layer numbers in rising order. Raises InputError outside the model's layers."""
    return parse_layer_numbers(text, description.layers)


def parse_layer_numbers(text: str, last: int) -> list[int]:
    """`parse_layers` for layers 0 to `last`."""
    if text.strip() == "all":
        return list(range(last + 1))
    layers: list[int] = []
    for part in text.split(","):
        low, dash, high = (piece.strip() for piece in part.partition("-"))
        if not low.isdecimal() or (dash and not high.isdecimal()) or int(low) > int(high or low):
            raise InputError("--layers", f"'{part.strip()}' is no layer or range", f"Use all, 0,{last} or 1-{last}")
        check_layers([int(high or low)], last)  # before the range is expanded
        layers += range(int(low), int(high or low) + 1)
    return check_layers(layers, last)


def check_layers(layers: Iterable[int], last: int) -> list[int]:
    """Layer numbers in rising order. Raises InputError for an empty list, a layer outside 0..last, or a duplicate."""
    layers = list(layers)
    if not layers:
        raise InputError("--layers", "no layer is named", f"Use all, 0,{last} or 1-{last}")
    for layer in layers:
        if not isinstance(layer, int | np.integer) or not 0 <= layer <= last:
            raise InputError(
                f"--layers {layer}", f"this model has layers 0..{last} (0 = embeddings)", "Choose among them"
            )
        if layers.count(layer) > 1:
            raise InputError("--layers", f"layer {layer} is given twice", "Name each layer once")
    return sorted(int(layer) for layer in layers)
