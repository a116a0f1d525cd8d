"""Hooks that *change* the forward pass; `clsprobe.tap` only looks.

1. A change is the hook of every block for the length of a `with`: `knockout` masks edges of attention, `altered` puts
   other hidden states into a block. The hooks are gone afterwards, also after an error, and the encoder is as it was.
2. An edge goes from a source (the key) to a target (the query) and is named so: ``content->cls``. Where the mask
   forbids one, its attention is exactly 0 and softmax shares its weight out among the others. A token always sees
   itself, so that no row of a mask is ever empty (it would be NaN).
3. Not every attention takes such a mask. Before the first change of an encoder it is tried: edges cut in a block must
   leave its [CLS] indifferent to all other tokens, and all other tokens as they were.

Attention knockout: Geva et al. (2023). Not to be used with an Extractor that has a cache: its keys know of no change.
`probes.interventions.passes` holds the hooks, `probes.interventions.replaying` runs many texts from what was recorded.
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
from clsprobe.probes.extraction.readouts import Position, parse
from clsprobe.probes.interventions.passes import changing_arguments, recording, signature_of

if TYPE_CHECKING:
    from torch import Tensor


EDGES = ("content->cls", "rest->cls", "sep->cls", "cls->content")
_SETS: dict[str, Callable[[Batch], Tensor]] = {  # name -> (batch, token)
    "cls": lambda batch: _cls(batch),
    "sep": lambda batch: batch.real & batch.special & (batch.ids == batch.sep_id),
    "content": lambda batch: batch.content,
    "rest": lambda batch: batch.real & ~_cls(batch),
    "all": lambda batch: batch.real,
}
Change = Callable[["Tensor", Batch], "Tensor"]


def _cls(batch: Batch) -> Tensor:
    first = batch.real & batch.special & (batch.ids == batch.cls_id)
    return first & (first.cumsum(1) == 1)


def tokens_of(name: str) -> Callable[[Batch], Tensor]:
    """Which tokens a name means: batch -> (batch, token) True.

    ``cls``, ``sep`` (every separator), ``content`` (no special token), ``rest`` (all but [CLS]), ``all``, or a position
    such as ``token[3]``. Raises InputError for any other name.
    """
    if name in _SETS:
        return _SETS[name]
    if re.fullmatch(r"token(\[-?[0-9]+\]|-?[0-9]+)", name):
        (readout,) = parse([name])
        assert isinstance(readout, Position)
        return lambda batch: readout.weights(batch) > 0
    raise unknown("tokens", "name", name, [*_SETS, "token[3]"])


def _blocked(name: str) -> Callable[[Batch], Tensor]:
    """The edges of a name, ``SOURCE->TARGET``: batch -> (batch, query token, key token) True where none may flow."""
    source, arrow, target = name.partition("->")
    if not arrow:
        raise unknown("edges", "name", name, EDGES)
    sources, targets = tokens_of(source.strip()), tokens_of(target.strip())

    def blocked(batch: Batch) -> Tensor:
        itself = torch.eye(batch.ids.shape[1], dtype=torch.bool, device=batch.ids.device)
        return targets(batch)[:, :, None] & sources(batch)[:, None, :] & ~itself

    return blocked


@contextmanager
def knockout(encoder: Encoder, edges: str, layers: Collection[int]) -> Iterator[None]:
    """Within the block no attention flows along `edges` in the blocks `layers` (block k makes layer k; from 1).

    edges: ``content->cls``, ``cls->content``, ``sep->cls``, ``rest->cls`` (all but [CLS] itself), or any other
    SOURCE->TARGET of `tokens_of`. Acts on every pass of the encoder, in every thread, that goes through its own
    `forward` or a `Recorded`. Raises InputError for names and layers that there are not, and where the encoder's
    attention cannot be masked (`check_changes`).
    """
    check_changes(encoder)
    with _knockout(encoder, edges, layers):
        yield


@contextmanager
def _knockout(encoder: Encoder, edges: str, layers: Collection[int]) -> Iterator[None]:
    blocked, chosen = _blocked(edges), _numbers(encoder, layers, first=1)

    def mask(layer: int, batch: Batch, given: BoundArguments) -> None:
        if layer in chosen:
            hidden = next(iter(given.arguments.values()))
            allowed = batch.real[:, None, :] & ~blocked(batch)
            given.arguments["attention_mask"] = _masked(given.arguments.get("attention_mask"), allowed, hidden.dtype)

    with changing_arguments(encoder, mask):
        yield


@contextmanager
def altered(encoder: Encoder, layer: int, change: Change) -> Iterator[None]:
    """Within the block, layer `layer` is ``change(hidden, batch)`` to all blocks above; hidden (batch, token, dim).

    The last layer has no block above and cannot be altered. `change` returns a new tensor. Raises InputError as
    `knockout` does.
    """
    check_changes(encoder)
    (chosen,) = _numbers(encoder, [layer + 1], first=1)

    def replace(into: int, batch: Batch, given: BoundArguments) -> None:
        if into == chosen:
            name, hidden = next(iter(given.arguments.items()))
            given.arguments[name] = change(hidden, batch)

    with changing_arguments(encoder, replace):
        yield


def _numbers(encoder: Encoder, layers: Collection[int], first: int) -> set[int]:
    last = len(encoder.blocks)
    if any(layer < first for layer in layers):
        raise InputError("--layers", f"there is no block {min(layers)}", f"Blocks are numbered {first} to {last}")
    return set(check_layers(layers, last))


def _masked(given: Tensor | None, allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask that a block was given, less what is not allowed. allowed: (batch, query, key)."""
    allowed = allowed[:, None]
    if given is None:
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )
    if given.dim() != 4:
        raise ValueError(f"a mask of {given.dim()} axes")
    if given.dtype == torch.bool:
        return given & allowed
    if given.is_floating_point():  # it is added to the scores
        return torch.where(allowed, given, torch.finfo(given.dtype).min)
    return given * allowed


# --------------------------------------------------------------------------------------------------- can it be done?

_TRIED = ("A cat sees the dog that sleeps in the red house.", "The birds sing.")
_SAME = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}  # of the largest number of a layer
_SOUND: WeakSet[Encoder] = WeakSet()


def check_changes(encoder: Encoder) -> None:
    """Raise InputError unless edges can be cut in every block, and the network runs on from every layer. Tried once.

    Every edge to [CLS] is cut in one block after another: [CLS] must then be the same whatever the other tokens are,
    and these must be what they are in the intact pass.
    """
    if encoder in _SOUND:
        return
    try:
        sound = _is_sound(encoder)
    except InputError:
        raise
    except Exception:  # whatever a model says to a mask that it was not made for
        sound = False
    if not sound:
        kind = encoder.description.model_type
        what = f"the attention of model_type '{kind}' takes no mask that cuts single edges"
        raise InputError(encoder.name, what, "Use another architecture, such as bert, roberta or modernbert")
    _SOUND.add(encoder)


def _is_sound(encoder: Encoder) -> bool:
    if encoder.adapter.before or any(
        "attention_mask" not in signature_of(type(b).forward).parameters for b in encoder.blocks
    ):
        return False  # a pass that depends on the length of its batch; no mask at all
    limit, last = encoder.description.max_length, len(encoder.blocks)
    if encoder.cls_id not in encoder.tokenize([""])[0].ids:
        raise InputError(encoder.name, "its tokenizer adds no [CLS]", "Use an encoder that has one")
    rows = [row for text in _TRIED for row in encoder.tokenize([text], limit)]
    batch, seen = encoder.batch(rows), list[torch.Tensor]()
    with evaluating(encoder.model):
        with tap(encoder, lambda layer, hidden: seen.append(hidden.clone())):
            encoder.forward(batch)
        with recording(encoder, last) as record:
            intact = record(batch)
        scale = [float(hidden[batch.real].float().abs().max()) * _SAME[encoder.dtype] for hidden in seen]

        def apart(a: Tensor, b: Tensor, where: Tensor, layer: int) -> bool:
            return not float((a - b)[where].float().abs().max()) <= scale[layer]

        if any(apart(a, b, batch.real, i) for i, (a, b) in enumerate(zip(seen, intact.hidden, strict=True))):
            return False
        cls, rest = _SETS["cls"](batch), _SETS["rest"](batch)
        for layer in range(1, last + 1):
            below = seen[layer - 1]
            other = torch.where(rest[..., None], below.roll(1, 1) + below.flip(2), below)
            with _knockout(encoder, "rest->cls", [layer]):
                cut, moved = (intact.onward(layer - 1, hidden, layer) for hidden in (below, other))
            if apart(cut, moved, cls, layer) or apart(cut, seen[layer], rest, layer):
                return False
    return True
