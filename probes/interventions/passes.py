"""Forward passes under way: hooks before every block, and passes that run on from a recorded one.

1. `changing_arguments` alters what goes into a block before it runs; its hooks are gone afterwards.
2. `recording` keeps what went into every block of one batch. From there the network runs on from any layer: what lies
   below a change is never computed again.
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
    """A pass of one thread: its batch, and the layer that it begins at."""

    batch: Batch
    start: int


_now = threading.local()  # `of`: the pass that this thread is in


@contextmanager
def changing_arguments(encoder: Encoder, change: Callable[[int, Batch, BoundArguments], None]) -> Iterator[None]:
    """Within the block, ``change(layer, batch, arguments)`` may alter the arguments of every block before it runs."""
    mine = threading.local()
    special = torch.tensor(sorted(_special(encoder)), device=encoder.device)

    def start(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        real = kwargs.get("attention_mask")
        real = torch.ones_like(ids, dtype=torch.bool) if real is None else real.bool()
        added = torch.isin(ids, special)  # a text that spells one of them out is text: it is split
        _now.of = _Pass(Batch(ids, real, added & real, ids.new_zeros(len(ids)), encoder.cls_id, encoder.sep_id), 0)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        if getattr(mine, "of", None) is not _now.of:
            mine.of, mine.layer = _now.of, _now.of.start
        mine.layer += 1
        given = _bound(module, args, kwargs)
        change(mine.layer, mine.of.batch, given)
        return given.args, given.kwargs

    with _hooked(encoder, start, before):
        yield


@contextmanager
def _hooked(encoder: Encoder, start: Callable[..., Any] | None, before: Callable[..., Any]) -> Iterator[None]:
    """Pre-hooks: `start` of the model, `before` of every block."""
    handles = []
    try:
        if start is not None:
            handles.append(encoder.model.register_forward_pre_hook(start, with_kwargs=True))
        for block in dict.fromkeys(encoder.blocks):  # one module may be many blocks
            handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _special(encoder: Encoder) -> set[int]:
    """The ids that only a tokenizer puts there."""
    known = {*encoder.tokenizer.all_special_ids, encoder.cls_id, encoder.sep_id}
    return {i for i in known if i is not None} - {getattr(encoder.tokenizer, "unk_token_id", None)}


def _bound(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BoundArguments:
    return signature_of(type(module).forward).bind(*args, **kwargs)


@cache
def signature_of(forward: Callable[..., Any]) -> inspect.Signature:
    """Without self."""
    whole = inspect.signature(forward)
    return whole.replace(parameters=list(whole.parameters.values())[1:])


class Recorded:
    """What went into every block in the intact pass of one batch, up to layer `until`; `recording` makes it.

    hidden: (batch, token, dim) of layers 0 to `until`.
    """

    def __init__(self, encoder: Encoder, batch: Batch, given: list[BoundArguments]) -> None:
        self.encoder, self.batch, self._given = encoder, batch, given
        self.hidden: list[Tensor] = [next(iter(each.arguments.values())) for each in given]
        self.hidden.append(self.onward(len(given) - 1, self.hidden[-1], len(given)))

    def onward(self, layer: int, hidden: Tensor, until: int) -> Tensor:
        """(batch, token, dim) of layer `until`, where layer `layer` is `hidden`; changes that are in force act."""
        _now.of = _Pass(self.batch, layer)
        with torch.no_grad():
            for block, given in zip(self.encoder.blocks[layer:until], self._given[layer:until], strict=True):
                name = next(iter(given.arguments))
                now = BoundArguments(given.signature, {**given.arguments, name: hidden})
                output = block(*now.args, **now.kwargs)
                hidden = output if isinstance(output, torch.Tensor) else output[0]
        return hidden


@contextmanager
def recording(encoder: Encoder, until: int) -> Iterator[Callable[[Batch], Recorded]]:
    """Within the block, a function that runs a batch up to layer `until` and keeps what it saw; threads may share it.

    Changes must not be in force, and the encoder must be in eval mode (`probes.encoders.tap.evaluating`).
    """
    mine = threading.local()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = getattr(mine, "given", None)
        if given is not None:
            given.append(_bound(module, args, kwargs))
            if len(given) == until:
                raise _Enough

    def record(batch: Batch) -> Recorded:
        mine.given = given = list[BoundArguments]()
        with suppress(_Enough):
            encoder.forward(batch)
        mine.given = None
        if len(given) != until:
            raise RuntimeError(f"{type(encoder.model).__name__} ran {len(given)} blocks, expected {until}")
        return Recorded(encoder, batch, given)

    with _hooked(encoder, None, before):
        yield record


class _Enough(Exception):
    """All blocks asked for have been recorded."""
