"""Can an encoder be believed? What is measured when it is loaded.

1. `self_check` measures what padding, order and repetition change at any token.
2. `confirm` tries a guess of where an unknown architecture has its layers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from clsprobe.probes.encoders.adapters import SUPPORTED, Adapter
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.tap import evaluating, tap
from clsprobe.probes.encoders.tokenizing import Row
from clsprobe.probes.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_CHECKED = ("A cat sees the dog that sleeps in the red house.", "The birds sing.")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}  # of the largest number of a layer


def self_check(encoder: Encoder) -> dict[str, Any]:
    """What padding, order and repetition change at any token of two texts, at the layer where they change most.

    padded: each text alone against both in one batch; order: both against both the other way round; twice: the same
    again. Each is the largest difference over the largest number of the layer, None where that is not finite.
    leaks: whether padding reaches the real tokens, which an architecture may be known for (`Adapter.leaks`).
    Empty where the model has no room for a text.
    """
    limit = encoder.description.max_length
    if limit <= len(encoder.tokenize([""])[0].ids):
        return {}
    # the second is shorter whatever the limit, so that it is padded
    rows = [
        row for text, most in zip(_CHECKED, (limit, limit - 1), strict=True) for row in encoder.tokenize([text], most)
    ]

    def states(rows: list[Row]) -> list[Tensor]:
        seen: list[Tensor] = []
        with evaluating(encoder.model), tap(encoder, lambda layer, hidden: seen.append(hidden.float().clone())):
            encoder.forward(encoder.batch(rows))
        if len(seen) != len(encoder.points):
            raise RuntimeError(f"{type(encoder.model).__name__} ran {len(seen)} layers of {len(encoder.points)}")
        return seen

    def real(seen: list[Tensor], *order: int) -> list[Tensor]:
        """(token, dim) of every layer: the texts of a batch, which stand there in this order, without padding."""
        return [torch.cat([hidden[i, : len(rows[row].ids)] for i, row in enumerate(order)]) for hidden in seen]

    def apart(one: list[Tensor], other: list[Tensor]) -> float | None:
        """The same tokens twice, layer by layer."""
        change = torch.stack([(a - b).abs().max() / b.abs().max() for a, b in zip(one, other, strict=True)]).max()
        return change.item() if change.isfinite() else None

    first, second = (real(states([row]), i) for i, row in enumerate(rows))
    alone = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    both, swapped, again = states(rows), states(rows[::-1]), states(rows)
    found = {
        "padded": apart(real(both, 0, 1), alone),
        "order": apart(real([hidden.flip(0) for hidden in swapped], 0, 1), real(both, 0, 1)),
        "twice": apart(real(again, 0, 1), real(both, 0, 1)),
    }
    tolerance = TOLERANCE[encoder.dtype]
    leaks = bool(encoder.adapter.leaks) or not all(v is not None and v <= tolerance for v in found.values())
    return found | {"tolerance": tolerance, "leaks": leaks}


def confirm(encoder: Encoder) -> Adapter:
    """The adapter of an encoder whose layers were guessed, with its final norm if it has one.

    Raises InputError unless the self-check holds, every layer shows itself once, and the last one is what the model
    returns, as it is or after one of the model's norms.
    """
    seen: list[Tensor] = []
    try:
        checked = self_check(encoder)
        (row,) = encoder.tokenize(_CHECKED[:1], encoder.description.max_length)
        with tap(encoder, lambda layer, hidden: seen.append(hidden)):
            output = encoder.forward(encoder.batch([row]))[0]
        if not all(checked[name] is not None and checked[name] <= checked["tolerance"] for name in ("order", "twice")):
            raise ValueError("the same text does not give the same vectors")
        if torch.equal(seen[-1], output):
            return encoder.adapter
        for path, module in reversed(list(encoder.model.named_modules())):  # a final norm is the last
            inside = f"{path}.".startswith(encoder.adapter.blocks.removesuffix("*"))
            if "norm" in type(module).__name__.lower() and not inside and torch.equal(module(seen[-1]), output):
                return replace(encoder.adapter, norm=path)
        raise ValueError("its last block is not what it returns")
    except Exception as error:  # whatever a model says that was not made for this
        why = (str(error) or type(error).__name__).splitlines()[0][:120]
    raise InputError(
        encoder.name,
        f"model_type '{encoder.description.model_type}' is not known, and a guess at its layers fails ({why})",
        SUPPORTED,
    )
