"""Hooks that read every layer while an encoder runs.

`tap` hooks the blocks within a `with`; the hooks change nothing and are removed afterwards, also after an error.
`evaluating` switches dropout off meanwhile.
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

    Layer 0 is the input of the first block, layer k the output of block k. `hidden` is the model's own tensor: keep a
    copy and do not change it. The hooks return None (a value would replace the output) and are always removed; other
    hooks stay. Raises RuntimeError for a module that runs more often than it has layers, or whose output has another
    number of tokens than the batch.
    """
    points, to_tokens, config = encoder.points, encoder.adapter.to_tokens, encoder.description.config
    last = len(points) - 1
    chosen = set(range(last + 1) if layers is None else check_layers(layers, last))
    layers_of: dict[Point, list[int]] = {}  # a module that runs many times has many layers
    for layer, point in enumerate(points):
        layers_of.setdefault(point, []).append(layer)
    current = threading.local()  # the forward pass of a thread: runs of each module, shape (batch, token)

    def start_pass(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current.runs = Counter()
        current.shape = list((args[0] if args else kwargs["input_ids"]).shape)

    def read_point(point: Point, hidden: Tensor) -> None:
        runs, shape = current.runs, current.shape
        runs[point] += 1
        if runs[point] > len(layers_of[point]):
            if point.side == "out":
                raise RuntimeError(f"{module_name(point)} ran more than {len(layers_of[point])} times")
            return
        layer = layers_of[point][runs[point] - 1]
        if layer in chosen:
            hidden = to_tokens(hidden, shape[1], config)
            if list(hidden.shape[:2]) != shape:
                size = f"{tuple(hidden.shape)} for {shape[0]} x {shape[1]} tokens"
                raise RuntimeError(f"{module_name(point)} shows {size}")
            read(layer, hidden)

    def read_input(point: Point, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read_point(point, args[0] if args else kwargs["hidden_states"])

    def read_output(point: Point, module: Any, args: tuple[Any, ...], output: Any) -> None:
        read_point(point, output if isinstance(output, torch.Tensor) else output[0])

    handles = []
    try:
        handles.append(encoder.model.register_forward_pre_hook(start_pass, with_kwargs=True))
        for point in (point for point, layers in layers_of.items() if chosen.intersection(layers)):
            module = encoder.model.get_submodule(point.module)
            if point.side == "in":
                handles.append(module.register_forward_pre_hook(partial(read_input, point), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(partial(read_output, point)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def module_name(point: Point) -> str:
    """The module of a point, for error messages."""
    return point.module or "the model"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in evaluation mode; afterwards every module is in its former mode.

    A module added meanwhile, such as BigBird's attention for long texts, takes the mode of its parent.
    """
    modes = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        yield
    finally:
        for name, module in model.named_modules():  # parents first
            module.training = modes.setdefault(name, modes[name.rpartition(".")[0]] if name else False)
