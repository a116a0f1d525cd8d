"""Hooks that look at every layer while an encoder runs.

`tap` hooks the blocks for the length of a `with`; the hooks only look, and are gone afterwards, also after an error.
`evaluating` keeps a model from dropping out meanwhile.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from clsprobe.probes.encoders.adapters import Point
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.layers import check_layers

if TYPE_CHECKING:
    from torch import Tensor, nn


Read = Callable[[int, "Tensor"], None]


@contextmanager
def tap(encoder: Encoder, read: Read, layers: Sequence[int] | None = None) -> Iterator[None]:
    """Within the block, every forward pass calls ``read(layer, hidden)`` for each layer, hidden (batch, token, dim).

    Layer 0 is what enters the first block, layer k what leaves block k. `hidden` is the model's own tensor: keep a
    copy, and alter nothing. The hooks return None (a value would replace the output) and are removed whatever happens;
    hooks of others stay. A module that runs more often than it has layers, or shows another number of tokens than went
    in, is a RuntimeError that names it.
    """
    points, shape_of, config = encoder.points, encoder.adapter.tokens, encoder.description.config
    last = len(points) - 1
    chosen = set(range(last + 1) if layers is None else check_layers(layers, last))
    found: dict[Point, list[int]] = {}  # a module that runs many times has many layers
    for layer, point in enumerate(points):
        found.setdefault(point, []).append(layer)
    under_way = threading.local()  # of the pass: how often each module ran, and its shape (batch, token)

    def start(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        under_way.ran = Counter()
        under_way.shape = list((args[0] if args else kwargs["input_ids"]).shape)

    def show(point: Point, hidden: Tensor) -> None:
        ran, shape = under_way.ran, under_way.shape
        ran[point] += 1
        if ran[point] > len(found[point]):
            if point.side == "out":
                raise RuntimeError(f"{module_name(point)} ran more than {len(found[point])} times")
            return
        layer = found[point][ran[point] - 1]
        if layer in chosen:
            hidden = shape_of(hidden, shape[1], config)
            if list(hidden.shape[:2]) != shape:
                size = f"{tuple(hidden.shape)} for {shape[0]} x {shape[1]} tokens"
                raise RuntimeError(f"{module_name(point)} shows {size}")
            read(layer, hidden)

    def before(point: Point, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        show(point, args[0] if args else kwargs["hidden_states"])

    def after(point: Point, module: Any, args: tuple[Any, ...], output: Any) -> None:
        show(point, output if isinstance(output, torch.Tensor) else output[0])

    handles = []
    try:
        handles.append(encoder.model.register_forward_pre_hook(start, with_kwargs=True))
        for point in (point for point, held in found.items() if chosen.intersection(held)):
            module = encoder.model.get_submodule(point.module)
            if point.side == "in":
                handles.append(module.register_forward_pre_hook(partial(before, point), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(partial(after, point)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def module_name(point: Point) -> str:
    """What an error calls the place where a layer is read."""
    return point.module or "the model"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block no module drops out; afterwards each is in the mode it was in.

    A module that has come meanwhile, as BigBird's attention for long texts, is in the mode of what it is part of.
    """
    modes = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        yield
    finally:
        for name, module in model.named_modules():  # parents first
            module.training = modes.setdefault(name, modes[name.rpartition(".")[0]] if name else False)
