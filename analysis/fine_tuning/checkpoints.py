"""The descriptions of the checkpoints of one model, before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence

from clsprobe.probes.encoders.describing import Description, describe
from clsprobe.probes.errors import InputError


def describe_checkpoints(names: Sequence[str]) -> dict[str, Description]:
    """Name -> description of the model.

    Raises InputError for fewer than two, and where they are not of one architecture, depth, width and vocabulary.
    """
    if len(names) < 2:
        raise InputError("--checkpoints", "one model has no trajectory", "Name two or more, in order")
    described = {name: describe(name) for name in names}
    first, *others = described.values()
    for other in others:
        for quantity, value_of in (
            ("architecture", lambda model: model.model_type),
            ("number of layers", lambda model: model.layers),
            ("width", lambda model: model.dim),
            ("vocabulary", lambda model: model.config.get("vocab_size")),
        ):
            if value_of(first) != value_of(other):
                values = f"({value_of(other)}, {value_of(first)})"
                what = f"{other.name} has another {quantity} than {first.name} {values}"
                raise InputError("--checkpoints", what, "Name checkpoints of one model")
    return described
