"""Hooks before every block, and passes that continue from a recorded one.

1. `change_arguments` alters the arguments of a block before it runs and removes its hooks afterwards.
2. `record_passes` keeps the arguments of every block for one batch. The network can then continue from any layer, so
   that nothing below a change is computed again.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from inspect import BoundArguments
from typing import TYPE_CHECKING, Any

import torch

from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.tokenizing import Batch

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(eq=False)
class _Pass:
    """A forward pass of one thread: its batch and the layer where it starts."""

    batch: Batch
    start: int


_thread = threading.local()  # `running`: the pass of this thread


@contextmanager
def change_arguments(encoder: Encoder, change: Callable[[int, Batch, BoundArguments], None]) -> Iterator[None]:
    """Within the block, ``change(layer, batch, arguments)`` may alter the arguments of every block before it runs."""
    state = threading.local()
    special = torch.tensor(sorted(_added_ids(encoder)), device=encoder.device)

    def start(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        real = kwargs.get("attention_mask")
        real = torch.ones_like(ids, dtype=torch.bool) if real is None else real.bool()
        added = torch.isin(ids, special)  # the tokenizer splits a special token that a text spells out
        batch = Batch(ids, real, added & real, ids.new_zeros(len(ids)), encoder.cls_id, encoder.sep_id)
        _thread.running = _Pass(batch, 0)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        if getattr(state, "running", None) is not _thread.running:
            state.running, state.layer = _thread.running, _thread.running.start
        state.layer += 1
        arguments = _bind_arguments(module, args, kwargs)
        change(state.layer, state.running.batch, arguments)
        return arguments.args, arguments.kwargs

    with _hook_blocks(encoder, start, before):
        yield


@contextmanager
def _hook_blocks(encoder: Encoder, start: Callable[..., Any] | None, before: Callable[..., Any]) -> Iterator[None]:
    """Pre-hooks: `start` of the model, `before` of every block."""
    handles = []
    try:
        if start is not None:
            handles.append(encoder.model.register_forward_pre_hook(start, with_kwargs=True))
        for block in dict.fromkeys(encoder.blocks):  # several blocks may share one module
            handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _added_ids(encoder: Encoder) -> set[int]:
    """The ids that only the tokenizer adds."""
    ids = {*encoder.tokenizer.all_special_ids, encoder.cls_id, encoder.sep_id}
    return {i for i in ids if i is not None} - {getattr(encoder.tokenizer, "unk_token_id", None)}


def _bind_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BoundArguments:
    return get_signature(type(module).forward).bind(*args, **kwargs)


@cache
def get_signature(forward: Callable[..., Any]) -> inspect.Signature:
    """The signature of an unbound `forward`, without self."""
    signature = inspect.signature(forward)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


class RecordedPass:
    """The intact pass of one batch: the arguments of every block up to a layer (see `record_passes`).

    hidden: (batch, token, dim) of layers 0 to that layer.
    """

    def __init__(self, encoder: Encoder, batch: Batch, recorded: list[BoundArguments]) -> None:
        self.encoder, self.batch, self._recorded = encoder, batch, recorded
        self.hidden: list[Tensor] = [next(iter(arguments.arguments.values())) for arguments in recorded]
        self.hidden.append(self.run(len(recorded) - 1, self.hidden[-1], len(recorded)))

    def run(self, layer: int, hidden: Tensor, until: int) -> Tensor:
        """(batch, token, dim) of layer `until`, computed from `hidden` at `layer` under all active changes."""
        _thread.running = _Pass(self.batch, layer)
        with torch.no_grad():
            for block, arguments in zip(self.encoder.blocks[layer:until], self._recorded[layer:until], strict=True):
                name = next(iter(arguments.arguments))
                changed = BoundArguments(arguments.signature, {**arguments.arguments, name: hidden})
                output = block(*changed.args, **changed.kwargs)
                hidden = output if isinstance(output, torch.Tensor) else output[0]
        return hidden


@contextmanager
def record_passes(encoder: Encoder, until: int) -> Iterator[Callable[[Batch], RecordedPass]]:
    """Within the block, a function that runs a batch up to layer `until` and records it; threads may share it.

    No change may be active, and the encoder must be in eval mode (`probes.encoders.tap.evaluating`).
    """
    state = threading.local()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorded = getattr(state, "recorded", None)
        if recorded is not None:
            recorded.append(_bind_arguments(module, args, kwargs))
            if len(recorded) == until:
                raise _Enough

    def record(batch: Batch) -> RecordedPass:
        state.recorded = recorded = list[BoundArguments]()
        with suppress(_Enough):
            encoder.forward(batch)
        state.recorded = None
        if len(recorded) != until:
            raise RuntimeError(f"{type(encoder.model).__name__} ran {len(recorded)} blocks, expected {until}")
        return RecordedPass(encoder, batch, recorded)

    with _hook_blocks(encoder, None, before):
        yield record


class _Enough(Exception):
    """All requested blocks have been recorded."""
