"""Checks of an encoder when it is loaded.

1. `self_check` measures how far padding, order and repetition change the hidden states.
2. `confirm_adapter` tests a guess of where an unknown architecture has its layers.
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

_TEXTS = ("A cat sees the dog that sleeps in the red house.", "The birds sing.")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}  # of the largest number of a layer


def self_check(encoder: Encoder) -> dict[str, Any]:
    """The largest changes by padding, order and repetition, over the tokens of two texts and all layers.

    padded: each text alone against both in one batch; order: the batch against its reverse; twice: the batch against
    a second run. Each is the largest difference over the largest absolute value of the layer, None where that is not
    finite. leaks: whether padding reaches the real tokens, measured or known (`Adapter.leaks`). tolerance: of the
    dtype. Empty where the model has no room for a text.
    """
    limit = encoder.description.max_length
    if limit <= len(encoder.tokenize([""])[0].ids):
        return {}
    # the second text is shorter whatever the limit, so that it is padded
    limits = (limit, limit - 1)
    rows = [row for text, limit in zip(_TEXTS, limits, strict=True) for row in encoder.tokenize([text], limit)]

    def run(rows: list[Row]) -> list[Tensor]:
        """Hidden states (batch, token, dim) of every layer."""
        states: list[Tensor] = []
        with evaluating(encoder.model), tap(encoder, lambda layer, hidden: states.append(hidden.float().clone())):
            encoder.forward(encoder.batch(rows))
        if len(states) != len(encoder.points):
            raise RuntimeError(f"{type(encoder.model).__name__} ran {len(states)} layers of {len(encoder.points)}")
        return states

    def drop_padding(states: list[Tensor], *order: int) -> list[Tensor]:
        """(token, dim) of every layer, for a batch that holds `rows` in this order."""
        return [torch.cat([hidden[i, : len(rows[row].ids)] for i, row in enumerate(order)]) for hidden in states]

    def largest_change(states: list[Tensor], reference: list[Tensor]) -> float | None:
        """The largest relative difference over layers."""
        changes = [(a - b).abs().max() / b.abs().max() for a, b in zip(states, reference, strict=True)]
        change = torch.stack(changes).max()
        return change.item() if change.isfinite() else None

    first, second = (drop_padding(run([row]), i) for i, row in enumerate(rows))
    alone = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    together = drop_padding(run(rows), 0, 1)
    swapped = [hidden.flip(0) for hidden in run(rows[::-1])]
    changes = {
        "padded": largest_change(together, alone),
        "order": largest_change(drop_padding(swapped, 0, 1), together),
        "twice": largest_change(drop_padding(run(rows), 0, 1), together),
    }
    tolerance = TOLERANCE[encoder.dtype]
    leaks = bool(encoder.adapter.leaks) or not all(v is not None and v <= tolerance for v in changes.values())
    return changes | {"tolerance": tolerance, "leaks": leaks}


def confirm_adapter(encoder: Encoder) -> Adapter:
    """The adapter of an encoder whose layers were guessed, with its final norm if it has one.

    Raises InputError unless the self-check passes, every layer runs once, and the last layer is the model's output,
    directly or after one of the model's norms.
    """
    states: list[Tensor] = []
    try:
        checked = self_check(encoder)
        (row,) = encoder.tokenize(_TEXTS[:1], encoder.description.max_length)
        with tap(encoder, lambda layer, hidden: states.append(hidden)):
            output = encoder.forward(encoder.batch([row]))[0]
        if not all(checked[name] is not None and checked[name] <= checked["tolerance"] for name in ("order", "twice")):
            raise ValueError("the same text does not give the same vectors")
        if torch.equal(states[-1], output):
            return encoder.adapter
        for path, module in reversed(list(encoder.model.named_modules())):  # a final norm comes last
            in_block = f"{path}.".startswith(encoder.adapter.blocks.removesuffix("*"))
            if "norm" in type(module).__name__.lower() and not in_block and torch.equal(module(states[-1]), output):
                return replace(encoder.adapter, norm=path)
        raise ValueError("its last block is not what it returns")
    except Exception as error:  # an unknown model may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
    raise InputError(
        encoder.name,
        f"model_type '{encoder.description.model_type}' is not known, and a guess at its layers fails ({reason})",
        SUPPORTED,
    )
