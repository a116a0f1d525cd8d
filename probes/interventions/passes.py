"""Hooks before every block, and passes that continue from a recorded one.

1. `change_arguments` alters the arguments of a block before it runs and removes its hooks afterwards.
2. `record_passes` keeps the arguments of every block for one batch. The network can then continue from any layer, so
   that nothing below a change is computed again.
3. It also keeps what the attention of every block wrote for [CLS], where `find_attention_outputs` finds the module that
   writes it; `change_attention` alters that output in passes that continue.
"""

from __future__ import annotations

import inspect
import re
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


_ATTENTION_OUTPUT = re.compile(r"(attention|attn|self_attn)(\.\w+)?\.(dense|o|out_lin|out_proj|o_proj|Wo)")


@dataclass(eq=False)
class _Pass:
    """A forward pass of one thread: its batch and the layer where it starts; one that continues from a recorded pass
    also has that pass and the block that is running."""

    batch: Batch
    start: int
    recorded: RecordedPass | None = None
    block: int = 0


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


def find_cls(batch: Batch) -> Tensor:
    """(batch, token) True on the first [CLS] of every text."""
    first = batch.real & batch.special & (batch.ids == batch.cls_id)
    return first & (first.cumsum(1) == 1)


def find_attention_outputs(encoder: Encoder) -> list[nn.Linear] | None:
    """The projection that ends the attention of every block, found by its name; None where one has none, or several.

    Its output is what attention adds to the residual stream: heads are joined, and nothing is added yet.
    """
    outputs = []
    for block in encoder.blocks:
        named = [module for path, module in block.named_modules() if _ATTENTION_OUTPUT.fullmatch(path)]
        if len(named) != 1 or not isinstance(named[0], torch.nn.Linear):
            return None
        outputs.append(named[0])
    return outputs


@contextmanager
def _hook_attention(encoder: Encoder, after: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Within the block, ``after(output)`` of every attention output (batch, token, dim) may return another one."""
    handles = []
    try:
        for module in dict.fromkeys(find_attention_outputs(encoder) or []):  # several blocks may share one
            handles.append(module.register_forward_hook(lambda module, args, output: after(output)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def change_attention(encoder: Encoder, change: Callable[[int, RecordedPass, Tensor], Tensor]) -> Iterator[None]:
    """Within the block, ``change(layer, recorded, output)`` replaces the attention output of every block, in passes
    that continue from a recorded one."""

    def after(output: Tensor) -> Tensor | None:
        running: _Pass | None = getattr(_thread, "running", None)
        if running is None or running.recorded is None:
            return None
        return change(running.block, running.recorded, output)

    with _hook_attention(encoder, after):
        yield


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

    hidden: (batch, token, dim) of layers 0 to that layer. attention: (text with [CLS], dim) what the attention of every
    block wrote for [CLS]; empty where `find_attention_outputs` finds no module.
    """

    def __init__(self, encoder: Encoder, batch: Batch, recorded: list[BoundArguments], attention: list[Tensor]) -> None:
        self.encoder, self.batch, self._recorded, self.attention = encoder, batch, recorded, attention
        self.hidden: list[Tensor] = [next(iter(arguments.arguments.values())) for arguments in recorded]
        self.hidden.append(self.run(len(recorded) - 1, self.hidden[-1], len(recorded)))

    def run(self, layer: int, hidden: Tensor, until: int) -> Tensor:
        """(batch, token, dim) of layer `until`, computed from `hidden` at `layer` under all active changes."""
        _thread.running = running = _Pass(self.batch, layer, self, layer)
        try:
            with torch.no_grad():
                for block, arguments in zip(self.encoder.blocks[layer:until], self._recorded[layer:until], strict=True):
                    running.block += 1
                    name = next(iter(arguments.arguments))
                    changed = BoundArguments(arguments.signature, {**arguments.arguments, name: hidden})
                    output = block(*changed.args, **changed.kwargs)
                    hidden = output if isinstance(output, torch.Tensor) else output[0]
        finally:
            _thread.running = None  # a whole pass that follows does not continue from this one
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

    def keep(output: Tensor) -> None:
        if getattr(state, "attention", None) is not None:
            state.attention.append(output[state.cls])

    def record(batch: Batch) -> RecordedPass:
        state.recorded = recorded = list[BoundArguments]()
        state.attention = attention = list[torch.Tensor]()
        state.cls = find_cls(batch)
        try:
            with suppress(_Enough):
                encoder.forward(batch)
            state.recorded = None
            if len(recorded) != until:
                raise RuntimeError(f"{type(encoder.model).__name__} ran {len(recorded)} blocks, expected {until}")
            return RecordedPass(encoder, batch, recorded, attention)  # runs the last block
        finally:
            state.recorded = state.attention = None

    with _hook_blocks(encoder, None, before), _hook_attention(encoder, keep):
        yield record


class _Enough(Exception):
    """All requested blocks have been recorded."""
