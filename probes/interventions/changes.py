"""Hooks that *change* the forward pass; `clsprobe.tap` only observes it.

1. A change hooks every block inside a `with` statement: `knockout` masks attention edges, `alter_layer` replaces the
   hidden states of a layer, `restore_attention` gives [CLS] what the attention of the intact pass wrote for it. The
   hooks are removed afterwards, also after an error.
2. An edge is named ``SOURCE->TARGET``, from the key to the query, as in ``content->cls``. Softmax
   distributes the weight of a masked edge over the other edges. A token always sees itself: an empty row of the mask
   would give NaN.
3. Not every attention accepts such a mask. `check_changes` tests an encoder before its first change: with the edges to
   [CLS] cut in a block, [CLS] must not depend on the other tokens, and the other tokens must not change.

Attention knockout: Geva et al. (2023). Restoring in a changed pass what the intact one computed: Meng et al. (2022). Do
not use an Extractor with a cache here: its keys do not include changes.
`probes.interventions.passes` has the hooks, `probes.interventions.replaying` runs many texts from recorded passes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from inspect import BoundArguments
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch

from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.layers import check_layers
from clsprobe.probes.encoders.tap import evaluating, tap
from clsprobe.probes.encoders.tokenizing import Batch
from clsprobe.probes.errors import InputError, unknown
from clsprobe.probes.extraction.readouts import Position, parse_readouts
from clsprobe.probes.interventions.passes import (
    RecordedPass,
    change_arguments,
    change_attention,
    find_attention_outputs,
    find_cls,
    get_signature,
    record_passes,
)

if TYPE_CHECKING:
    from torch import Tensor


EDGES = ("content->cls", "rest->cls", "sep->cls", "cls->content")
_TOKEN_SETS: dict[str, Callable[[Batch], Tensor]] = {  # name -> (batch, token)
    "cls": find_cls,
    "sep": lambda batch: batch.real & batch.special & (batch.ids == batch.sep_id),
    "content": lambda batch: batch.content,
    "rest": lambda batch: batch.real & ~find_cls(batch),
    "all": lambda batch: batch.real,
}
Change = Callable[["Tensor", Batch], "Tensor"]


def select_tokens(name: str) -> Callable[[Batch], Tensor]:
    """A function that selects the tokens of a name: batch -> (batch, token) bool.

    ``cls``, ``sep`` (every separator), ``content`` (no special token), ``rest`` (all but [CLS]), ``all``, or a position
    such as ``token[3]``. Raises InputError for any other name.
    """
    if name in _TOKEN_SETS:
        return _TOKEN_SETS[name]
    if re.fullmatch(r"token(\[-?[0-9]+\]|-?[0-9]+)", name):
        (readout,) = parse_readouts([name])
        assert isinstance(readout, Position)
        return lambda batch: readout.weights(batch) > 0
    raise unknown("tokens", "name", name, [*_TOKEN_SETS, "token[3]"])


def _find_blocked(name: str) -> Callable[[Batch], Tensor]:
    """A function that finds the edges ``SOURCE->TARGET``: batch -> (batch, query, key) bool."""
    source, arrow, target = name.partition("->")
    if not arrow:
        raise unknown("edges", "name", name, EDGES)
    sources, targets = select_tokens(source.strip()), select_tokens(target.strip())

    def blocked(batch: Batch) -> Tensor:
        itself = torch.eye(batch.ids.shape[1], dtype=torch.bool, device=batch.ids.device)
        return targets(batch)[:, :, None] & sources(batch)[:, None, :] & ~itself

    return blocked


@contextmanager
def knockout(encoder: Encoder, edges: str, layers: Collection[int]) -> Iterator[None]:
    """Within the block, mask the attention `edges` in the blocks `layers` (block k computes layer k, from 1).

    edges: ``content->cls``, ``cls->content``, ``sep->cls``, ``rest->cls`` (all but [CLS] itself), or any other
    SOURCE->TARGET of `select_tokens`. Applies in all threads to passes of the encoder's `forward` and of a
    `RecordedPass`. Raises InputError for unknown names and layers, and if the encoder's attention cannot be masked
    (`check_changes`).
    """
    check_changes(encoder)
    with _knockout(encoder, edges, layers):
        yield


@contextmanager
def _knockout(encoder: Encoder, edges: str, layers: Collection[int]) -> Iterator[None]:
    blocked, masked_layers = _find_blocked(edges), _check_blocks(encoder, layers, first=1)

    def mask_edges(layer: int, batch: Batch, bound: BoundArguments) -> None:
        if layer in masked_layers:
            hidden = next(iter(bound.arguments.values()))
            allowed = batch.real[:, None, :] & ~blocked(batch)
            mask = bound.arguments.get("attention_mask")
            bound.arguments["attention_mask"] = _mask_edges(mask, allowed, hidden.dtype)

    with change_arguments(encoder, mask_edges):
        yield


@contextmanager
def alter_layer(encoder: Encoder, layer: int, change: Change) -> Iterator[None]:
    """Within the block, all blocks above `layer` receive ``change(hidden, batch)``; hidden (batch, token, dim).

    The last layer has no block above it and cannot be altered. `change` must return a new tensor. Raises InputError
    like `knockout`.
    """
    check_changes(encoder)
    (block,) = _check_blocks(encoder, [layer + 1], first=1)

    def replace(number: int, batch: Batch, bound: BoundArguments) -> None:
        if number == block:
            name, hidden = next(iter(bound.arguments.items()))
            bound.arguments[name] = change(hidden, batch)

    with change_arguments(encoder, replace):
        yield


@contextmanager
def restore_attention(encoder: Encoder, layers: Collection[int]) -> Iterator[None]:
    """Within the block, [CLS] receives in the blocks `layers` what the attention of the intact pass wrote for it.

    Only the output of the attention is replaced, before it is added to the residual stream; the state of [CLS] is that
    of the changed pass. Applies to passes that continue from a `RecordedPass`. Raises InputError for unknown layers,
    and for an encoder whose attention has no output of its own (`find_attention_outputs`).
    """
    restored = _check_blocks(encoder, layers, first=1)
    if find_attention_outputs(encoder) is None:
        kind = encoder.description.model_type
        what = f"the blocks of model_type '{kind}' have no module of a known name that ends their attention"
        raise InputError(encoder.name, what, "Use another architecture, such as bert, roberta or modernbert")

    def restore(layer: int, recorded: RecordedPass, output: Tensor) -> Tensor:
        if layer not in restored:
            return output
        output = output.clone()
        output[find_cls(recorded.batch)] = recorded.attention[layer - 1]
        return output

    with change_attention(encoder, restore):
        yield


def _check_blocks(encoder: Encoder, layers: Collection[int], first: int) -> set[int]:
    last = len(encoder.blocks)
    if any(layer < first for layer in layers):
        raise InputError("--layers", f"there is no block {min(layers)}", f"Blocks are numbered {first} to {last}")
    return set(check_layers(layers, last))


def _mask_edges(mask: Tensor | None, allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """The attention mask of a block without the edges that are not allowed. allowed: (batch, query, key) bool."""
    allowed = allowed[:, None]
    if mask is None:
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )
    if mask.dim() != 4:
        raise ValueError(f"a mask of {mask.dim()} axes")
    if mask.dtype == torch.bool:
        return mask & allowed
    if mask.is_floating_point():  # added to the attention scores
        return torch.where(allowed, mask, torch.finfo(mask.dtype).min)
    return mask * allowed


# ------------------------------------------------------------------------------------------------------------ checks

_TRIAL_TEXTS = ("A cat sees the dog that sleeps in the red house.", "The birds sing.")
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}  # of the largest value of a layer
_CHECKED: WeakSet[Encoder] = WeakSet()


def check_changes(encoder: Encoder) -> None:
    """Raise InputError unless every block accepts masked edges and passes can continue from every layer.

    Runs once per encoder and cuts all edges to [CLS] in one block at a time: [CLS] must then be independent of the
    other tokens, and these must be the same as in the intact pass.
    """
    if encoder in _CHECKED:
        return
    try:
        sound = _is_sound(encoder)
    except InputError:
        raise
    except Exception:  # a model may raise anything for a mask it does not support
        sound = False
    if not sound:
        kind = encoder.description.model_type
        what = f"the attention of model_type '{kind}' takes no mask that cuts single edges"
        raise InputError(encoder.name, what, "Use another architecture, such as bert, roberta or modernbert")
    _CHECKED.add(encoder)


def _is_sound(encoder: Encoder) -> bool:
    if encoder.adapter.before or any(
        "attention_mask" not in get_signature(type(b).forward).parameters for b in encoder.blocks
    ):
        return False  # its pass depends on the batch length, or takes no mask
    limit, last = encoder.description.max_length, len(encoder.blocks)
    if encoder.cls_id not in encoder.tokenize([""])[0].ids:
        raise InputError(encoder.name, "its tokenizer adds no [CLS]", "Use an encoder that has one")
    rows = [row for text in _TRIAL_TEXTS for row in encoder.tokenize([text], limit)]
    batch, layers = encoder.batch(rows), list[torch.Tensor]()
    with evaluating(encoder.model):
        with tap(encoder, lambda layer, hidden: layers.append(hidden.clone())):
            encoder.forward(batch)
        with record_passes(encoder, last) as record:
            intact = record(batch)
        scale = [float(hidden[batch.real].float().abs().max()) * _TOLERANCES[encoder.dtype] for hidden in layers]

        def differ(a: Tensor, b: Tensor, where: Tensor, layer: int) -> bool:
            return not float((a - b)[where].float().abs().max()) <= scale[layer]

        if any(differ(a, b, batch.real, i) for i, (a, b) in enumerate(zip(layers, intact.hidden, strict=True))):
            return False
        cls, rest = _TOKEN_SETS["cls"](batch), _TOKEN_SETS["rest"](batch)
        for layer in range(1, last + 1):
            below = layers[layer - 1]
            changed_input = torch.where(rest[..., None], below.roll(1, 1) + below.flip(2), below)
            with _knockout(encoder, "rest->cls", [layer]):
                cut, changed = (intact.run(layer - 1, hidden, layer) for hidden in (below, changed_input))
            if differ(cut, changed, cls, layer) or differ(cut, layers[layer], rest, layer):
                return False
    return True
