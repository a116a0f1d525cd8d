"""Hooks that *change* the forward pass; `clsprobe.tap` only looks.

1. A change is the hook of every block for the length of a `with`: `knockout` masks edges of attention, `altered` puts
   other hidden states into a block. The hooks are gone afterwards, also after an error, and the encoder is as it was.
2. An edge goes from a source (the key) to a target (the query) and is named so: ``content->cls``. Where the mask
   forbids one, its attention is exactly 0 and softmax shares its weight out among the others. A token always sees
   itself, so that no row of a mask is ever empty (it would be NaN).
3. `recording` keeps what went into every block of one batch. From there the network runs on from any layer: what lies
   below a change is never computed again. `replay` does so for many texts, batched by their sorted lengths.
4. Not every attention takes such a mask. Before the first change of an encoder it is tried: edges cut in a block must
   leave its [CLS] indifferent to all other tokens, and all other tokens as they were.

Attention knockout: Geva et al. (2023). Not to be used with an Extractor that has a cache: its keys know of no change.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from inspect import BoundArguments
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

import numpy as np
import torch

from clsprobe.probes.encoder import Encoder, Rows, check_layers
from clsprobe.probes.errors import InputError, unknown
from clsprobe.probes.extract import BUDGET, evaluating, plan, tap
from clsprobe.probes.readout import Batch, Position, parse

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["EDGES", "Recorded", "altered", "check_changes", "knockout", "recording", "replay", "tokens_of"]

T = TypeVar("T")

CHUNK = 256 << 20  # bytes of hidden states that are kept at once
EDGES = ("content->cls", "rest->cls", "sep->cls", "cls->content")
_SETS: dict[str, Callable[[Batch], Tensor]] = {  # name -> (batch, token)
    "cls": lambda batch: _cls(batch),
    "sep": lambda batch: batch.real & batch.special & (batch.ids == batch.sep_id),
    "content": lambda batch: batch.content,
    "rest": lambda batch: batch.real & ~_cls(batch),
    "all": lambda batch: batch.real,
}
_TRIED = ("A cat sees the dog that sleeps in the red house.", "The birds sing.")
_SAME = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}  # of the largest number of a layer

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

    with _changing(encoder, mask):
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

    with _changing(encoder, replace):
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


# ------------------------------------------------------------------------------------------------- passes under way


@dataclass(eq=False)
class _Pass:
    """A pass of one thread: its batch, and the layer that it begins at."""

    batch: Batch
    start: int


_now = threading.local()  # `of`: the pass that this thread is in


@contextmanager
def _changing(encoder: Encoder, change: Callable[[int, Batch, BoundArguments], None]) -> Iterator[None]:
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
    return _signature(type(module).forward).bind(*args, **kwargs)


@cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
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

    Changes must not be in force, and the encoder must be in eval mode (`probes.extract.evaluating`).
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


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some of the texts, recorded batch by batch: as many as fit into `CHUNK` bytes of hidden states.

    rows: for every batch the numbers of its texts.
    """

    rows: list[np.ndarray]
    recorded: list[Recorded]
    _pool: ThreadPoolExecutor

    def each(self, step: Callable[[int, Recorded], T]) -> list[T]:
        """``step(number, recorded)`` of every batch, side by side on a CPU."""
        return list(self._pool.map(step, range(len(self.recorded)), self.recorded))


@contextmanager
def replay(
    encoder: Encoder, texts: Sequence[str], until: int, *, max_length: int | None = None
) -> Iterator[Iterator[Chunk]]:
    """Within the block, the texts chunk by chunk, run up to layer `until`, from which changed passes go on.

    max_length: longer texts are cut to so many tokens; default the encoder's limit. Texts of like length share a batch,
    of equal length where padding leaks; on a CPU each batch has a thread. Raises InputError as `check_changes` does.
    """
    check_changes(encoder)
    rows = encoder.tokenize(texts, max_length or encoder.description.max_length)
    leaks = bool(encoder.adapter.leaks or encoder.checked.get("leaks"))
    batches: list[np.ndarray] = []
    for paired in (False, True):  # single texts have no token types
        alike = np.flatnonzero(rows.paired == paired)
        batches += [alike[part] for part in plan(rows.lengths[alike], BUDGET[encoder.device.type], equal=leaks)]

    def chunks() -> Iterator[Chunk]:
        waiting = list(batches)
        while waiting:
            some = [waiting.pop(0)]
            room = CHUNK - _size(rows, some[0], encoder, until)
            while waiting and (room := room - _size(rows, waiting[0], encoder, until)) >= 0:
                some.append(waiting.pop(0))
            with recording(encoder, until) as record:
                recorded = list(pool.map(lambda batch: record(encoder.batch([rows[i] for i in batch])), some))
            yield Chunk(some, recorded, pool)

    threads = torch.get_num_threads()
    aside = encoder.device.type == "cpu"
    alone = partial(torch.set_num_threads, 1 if aside else threads)
    try:
        with evaluating(encoder.model), ThreadPoolExecutor(threads if aside else 1, initializer=alone) as pool:
            yield chunks()
    finally:
        torch.set_num_threads(threads)


def _size(rows: Rows, batch: np.ndarray, encoder: Encoder, until: int) -> int:
    """Bytes of a recorded batch."""
    tokens = len(batch) * int(rows.lengths[batch].max())
    return tokens * encoder.description.dim * (until + 1) * encoder.dtype.itemsize


class _Enough(Exception):
    """All blocks asked for have been recorded."""


# --------------------------------------------------------------------------------------------------- can it be done?

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
        "attention_mask" not in _signature(type(b).forward).parameters for b in encoder.blocks
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
