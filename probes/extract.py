"""Hidden states of every layer, reduced to readouts while the encoder runs.

1. `tap` hooks the blocks for the length of a `with`; the hooks only look, and are gone afterwards, also after an error.
2. `self_check` measures, when an encoder is loaded, what padding, order and repetition change; `confirm` tries a guess
   of where an unknown architecture has its layers.
3. `plan` sorts the texts by length and fills batches to a token budget: a pure function of the lengths. Where padding
   leaks, a batch holds texts of one length only.
4. `Extractor` tokenizes, runs every batch once, reads all readouts inside the hooks and puts the vectors back in the
   order of the texts. Only the readouts are kept, never the activations.
5. `States` gives them out as cells: (text, dim) for a layer and a readout.
"""

from __future__ import annotations

import importlib.metadata
import platform
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from probes.adapters import SUPPORTED, Adapter, Point
from probes.encoder import Encoder, Row, check_layers, parse_layers
from probes.errors import InputError, named_rows
from probes.readout import DEFAULT, Normed, Readout, parse

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
    ran: Counter[Point] = Counter()
    shape = [0, 0]  # (batch, token) of the pass under way

    def start(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ran.clear()
        shape[:] = (args[0] if args else kwargs["input_ids"]).shape

    def show(point: Point, hidden: Tensor) -> None:
        ran[point] += 1
        if ran[point] > len(found[point]):
            if point.side == "out":
                raise RuntimeError(f"{_shown(point)} ran more than {len(found[point])} times")
            return
        layer = found[point][ran[point] - 1]
        if layer in chosen:
            hidden = shape_of(hidden, shape[1], config)
            if list(hidden.shape[:2]) != shape:
                raise RuntimeError(f"{_shown(point)} shows {tuple(hidden.shape)} for {shape[0]} x {shape[1]} tokens")
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


def _shown(point: Point) -> str:
    return point.module or "the model"


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block no module drops out; afterwards each is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


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
    rows = [row for text in _CHECKED for row in encoder.tokenize([text], limit)]

    def states(rows: list[Row]) -> list[Tensor]:
        seen: list[Tensor] = []
        with tap(encoder, lambda layer, hidden: seen.append(hidden.float().clone())):
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


def plan(lengths: np.ndarray, max_tokens: int, *, equal: bool = False) -> list[np.ndarray]:
    """Batches of row numbers: longest texts first, each batch filled until rows x longest reaches `max_tokens`.

    lengths: (text,) tokens. equal: a batch holds texts of one length only, so that nothing is padded. Ties keep the
    order of the texts, so equal lengths give equal plans. A text longer than the budget has a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = lengths[order[start]]
        size = max(1, max_tokens // max(1, int(longest)))
        if equal:
            size = min(size, int((lengths == longest).sum() - (lengths[order[:start]] == longest).sum()))
        batches.append(order[start : start + size])
        start += size
    return batches


@dataclass(frozen=True, eq=False)
class States:
    """Vectors of every text at every (layer, readout).

    texts: (text,) what was encoded. present: (readout, text) False where a text is too short for a readout; its vector
    is NaN there. truncated: rows cut to the longest input. source: model, control ("none" or "untrained"), seed of
    untrained weights, digests, versions, the self-check. last: the model's last layer; only it has ``+norm`` readouts.
    """

    texts: Sequence[str] = field(repr=False)
    layers: tuple[int, ...]
    readouts: tuple[str, ...]
    present: np.ndarray
    truncated: np.ndarray
    source: dict[str, Any]
    values: np.ndarray = field(repr=False)  # (layer, readout, text, dim) float32
    last: int = 0

    def cell(self, layer: int, readout: str) -> np.ndarray:
        """(text, dim) float32, in the order of the texts. Raises KeyError for a cell that was not read."""
        if (layer, readout) not in self.cells:
            raise KeyError(f"no cell ({layer}, {readout!r}); layers {self.layers}, readouts {self.readouts}")
        return self.values[self.layers.index(layer), self.readouts.index(readout)]

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """(text,) where each of `texts` stands among the encoded ones. Raises KeyError for one that was not encoded."""
        return np.array([self._index[text] for text in texts], np.int64)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self.texts)}

    @cached_property
    def cells(self) -> list[tuple[int, str]]:
        """Every (layer, readout), layers first."""
        every = ((layer, readout) for layer in self.layers for readout in self.readouts)
        return [(layer, name) for layer, name in every if layer == self.last or not name.endswith(Normed.suffix)]

    def __len__(self) -> int:
        return len(self.texts)


class Extractor:
    """Texts in, `States` out.

    readouts: names or Readouts; the default ones are those of `DEFAULT` that the model has. layers: "all", layer
    numbers (0 = embedding output), or what `parse_layers` reads. max_tokens_per_batch: padded tokens in a batch.
    max_length: longest input in tokens, special ones included, at most the model's own limit. long_rows: what happens
    to longer texts: "error", or "truncate" them, keeping the special tokens. Where padding leaks (`self_check`), texts
    are batched by equal length. Raises InputError for a layer or readout that the model lacks.
    """

    def __init__(
        self,
        encoder: Encoder,
        readouts: Sequence[str | Readout] = DEFAULT,
        *,
        layers: str | Sequence[int] = "all",
        max_tokens_per_batch: int = 4096,
        max_length: int | None = None,
        long_rows: Literal["truncate", "error"] = "error",
    ) -> None:
        self.encoder = encoder
        if isinstance(layers, str):
            layers = parse_layers(layers, encoder.description)
        self.last = len(encoder.points) - 1
        self.layers = check_layers(layers, self.last)
        self.max_tokens_per_batch = max_tokens_per_batch
        limit = encoder.description.max_length
        self.max_length = limit if max_length is None else min(max_length, limit)
        self.long_rows = long_rows
        added = encoder.tokenize([""])[0].ids
        if self.max_length <= len(added):
            special = f"{len(added)} special tokens leave no room for text"
            raise InputError(f"--max-length {self.max_length}", special, f"Pass {len(added) + 1} or more")
        lacking = {name for name, token in (("cls", encoder.cls_id), ("sep", encoder.sep_id)) if token not in added}
        self.readouts = parse(name for name in readouts if tuple(readouts) != DEFAULT or name not in lacking)
        self._check_readouts(lacking)
        self.leaks = bool(encoder.adapter.leaks or encoder.checked.get("leaks"))

    def _check_readouts(self, lacking: set[str]) -> None:
        encoder = self.encoder
        for name in (readout.name for readout in self.readouts):
            if (plain := name.removesuffix(Normed.suffix)) in lacking:
                others = ", ".join(other for other in DEFAULT if other not in lacking)
                what = f"the tokenizer of {encoder.name} adds no {plain} token"
                raise InputError("--readouts", what, f"Choose among {others}")
            if name != plain and encoder.norm is None:
                raise InputError(
                    "--readouts", f"'{name}': no norm follows the last layer of {encoder.name}", f"Use {plain}"
                )
            if name != plain and self.last not in self.layers:
                raise InputError(
                    "--readouts", f"'{name}' is read at layer {self.last} only", f"Add {self.last} to --layers"
                )

    def __call__(self, texts: Sequence[str]) -> States:
        """Encode every text once. Raises InputError for texts too long or vectors that are not finite."""
        rows, truncated = self._tokenize(texts)
        shape = len(self.layers), len(self.readouts), len(texts), self.encoder.description.dim
        values = np.empty(shape, np.float32)
        present = np.ones((len(self.readouts), len(texts)), bool)
        lengths = np.array([len(row.ids) for row in rows])
        batches = plan(lengths, self.max_tokens_per_batch, equal=self.leaks)
        label = "untrained" if self.encoder.untrained is not None else "encoding"
        bar = tqdm(total=len(texts), desc=label, unit=" texts", delay=1, disable=None, leave=False)
        with bar, _evaluating(self.encoder.model):
            for chosen in batches:
                self._encode([rows[i] for i in chosen], chosen, values, present)
                bar.update(len(chosen))
        return States(
            texts,
            tuple(self.layers),
            tuple(readout.name for readout in self.readouts),
            present,
            truncated,
            self._source(),
            values,
            self.last,
        )

    def _tokenize(self, texts: Sequence[str]) -> tuple[list[Row], np.ndarray]:
        rows = self.encoder.tokenize(texts)
        long = np.array([i for i, row in enumerate(rows) if len(row.ids) > self.max_length], np.int64)
        if len(long) and self.long_rows == "error":
            found = f"longest {max(len(rows[i].ids) for i in long):,}; rows {named_rows(long, 5)}"
            raise InputError(
                "--long-rows error",
                f"{len(long):,} texts exceed {self.max_length} tokens ({found})",
                "Pass --long-rows truncate or drop",
            )
        if len(long):
            for i, row in zip(long, self.encoder.tokenize([texts[i] for i in long], self.max_length), strict=True):
                rows[i] = row
        self._check_unknown(rows)
        return rows, long

    def _check_unknown(self, rows: list[Row]) -> None:
        unk = getattr(self.encoder.tokenizer, "unk_token_id", None)
        content = sum(int((~row.special).sum()) for row in rows)
        missed = sum(int(((row.ids == unk) & ~row.special).sum()) for row in rows) if unk is not None else 0
        if content and missed > content / 2:
            raise InputError(
                self.encoder.name,
                f"{missed / content:.0%} of the tokens are unknown to it",
                "Use a model of this language",
            )
        if content and missed > content / 20:
            warnings.warn(f"{self.encoder.name}: {missed / content:.0%} of the tokens are unknown to it", stacklevel=4)

    def _encode(self, rows: list[Row], chosen: np.ndarray, values: np.ndarray, present: np.ndarray) -> None:
        batch = self.encoder.batch(rows)
        read: list[int] = []
        normed = np.array([isinstance(readout, Normed) for readout in self.readouts])

        def keep(layer: int, hidden: Tensor) -> None:
            read.append(layer)
            after = self.encoder.norm(hidden) if self.encoder.norm and normed.any() and layer == self.last else hidden
            read_from = ((readout, after if isinstance(readout, Normed) else hidden) for readout in self.readouts)
            vectors = torch.stack([readout.read(each, batch).float() for readout, each in read_from]).cpu().numpy()
            here = has & (~normed[:, None] | (layer == self.last))
            vectors[~here] = np.nan
            bad = here & ~np.isfinite(vectors).all(2)
            if bad.any():
                r, row = min(np.argwhere(bad), key=lambda at: chosen[at[1]])
                self._refuse_non_finite(layer, chosen[row], self.readouts[r])
            values[self.layers.index(layer)][:, chosen] = vectors

        has = torch.stack([readout.present(batch) for readout in self.readouts]).cpu().numpy()  # (readout, text)
        present[:, chosen] = has
        with tap(self.encoder, keep, self.layers):
            self.encoder.forward(batch)
        if read != self.layers:
            raise RuntimeError(f"{type(self.encoder.model).__name__} ran layers {read}, expected {self.layers}")

    def _refuse_non_finite(self, layer: int, row: int, readout: Readout) -> None:
        encoder = self.encoder
        module = _shown(encoder.points[layer]) if layer else "the embeddings"
        overflow = f"{str(encoder.dtype).removeprefix('torch.')} may overflow: use --dtype float32"
        raise InputError(
            f"layer {layer}",
            f"non-finite hidden states from row {row:,} ({module}, read as {readout.name})",
            "The weights hold NaN, inf or huge numbers: use others" if encoder.dtype == torch.float32 else overflow,
        )

    def _source(self) -> dict[str, Any]:
        encoder = self.encoder
        packages = ("torch", "transformers", "tokenizers", "numpy")
        return {
            "model": encoder.name,
            "control": "none" if encoder.untrained is None else "untrained",
            "seed": encoder.untrained,
            "digest": encoder.description.digest,
            "revision": encoder.description.revision,
            "architecture": type(encoder.model).__name__,
            "device": str(encoder.device),
            "dtype": str(encoder.dtype).removeprefix("torch."),
            "attention": getattr(encoder.model.config, "_attn_implementation", None),
            "max_length": self.max_length,
            "max_tokens_per_batch": self.max_tokens_per_batch,
            "batched": "by equal length" if self.leaks else "by length, padded",
            "self_check": encoder.checked,
            "versions": {p: importlib.metadata.version(p) for p in packages} | {"python": platform.python_version()},
        }
