"""Hidden states of every layer, reduced to readouts while the encoder runs.

1. `tap` hooks the blocks for the length of a `with`; the hooks only look, and are gone afterwards, also after an error.
2. `plan` sorts the texts by length and fills batches to a token budget: a pure function of the lengths.
3. `Extractor` tokenizes, runs every batch once, reads all readouts inside the hooks and puts the vectors back in the
   order of the texts. Only the readouts are kept, never the activations.
4. `States` gives them out as cells: (text, dim) for a layer and a readout.
"""

from __future__ import annotations

import importlib.metadata
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from probes.encoder import BLOCKS, Encoder, Row, check_layers, parse_layers
from probes.errors import InputError, named_rows
from probes.readout import DEFAULT, Readout, parse

if TYPE_CHECKING:
    from torch import Tensor, nn

Read = Callable[[int, "Tensor"], None]


@contextmanager
def tap(encoder: Encoder, read: Read, layers: Sequence[int] | None = None) -> Iterator[None]:
    """Within the block, every forward pass calls ``read(layer, hidden)`` for each layer, hidden (batch, token, dim).

    Layer 0 is what enters the first block, layer k what leaves block k. `hidden` is the model's own tensor: keep a
    copy, and alter nothing. The hooks return None (a value would replace the output) and are removed whatever happens;
    hooks of others stay.
    """
    last = len(encoder.blocks)
    chosen = range(last + 1) if layers is None else check_layers(layers, last)

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read(0, args[0] if args else kwargs["hidden_states"])

    def after(layer: int, module: Any, args: tuple[Any, ...], output: Any) -> None:
        read(layer, output[0] if isinstance(output, tuple) else output)

    handles = []
    try:
        for layer in chosen:
            if layer == 0:
                handles.append(encoder.blocks[0].register_forward_pre_hook(before, with_kwargs=True))
            else:
                handles.append(encoder.blocks[layer - 1].register_forward_hook(partial(after, layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def plan(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Batches of row numbers: longest texts first, each batch filled until rows x longest reaches `max_tokens`.

    lengths: (text,) tokens. Ties keep the order of the texts, so equal lengths give equal plans. A text longer than the
    budget has a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, max_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


@dataclass(frozen=True, eq=False)
class States:
    """Vectors of every text at every (layer, readout).

    texts: (text,) what was encoded. present: (readout, text) False where a text is too short for a readout; its vector
    is NaN there. truncated: rows cut to the longest input. source: model, control ("none" or "untrained"), seed of
    untrained weights, digests, versions.
    """

    texts: Sequence[str] = field(repr=False)
    layers: tuple[int, ...]
    readouts: tuple[str, ...]
    present: np.ndarray
    truncated: np.ndarray
    source: dict[str, Any]
    values: np.ndarray = field(repr=False)  # (layer, readout, text, dim) float32

    def cell(self, layer: int, readout: str) -> np.ndarray:
        """(text, dim) float32, in the order of the texts. Raises KeyError for a cell that was not read."""
        if layer not in self.layers or readout not in self.readouts:
            raise KeyError(f"no cell ({layer}, {readout!r}); layers {self.layers}, readouts {self.readouts}")
        return self.values[self.layers.index(layer), self.readouts.index(readout)]

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """(text,) where each of `texts` stands among the encoded ones. Raises KeyError for one that was not encoded."""
        return np.array([self._index[text] for text in texts], np.int64)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self.texts)}

    @property
    def cells(self) -> list[tuple[int, str]]:
        """Every (layer, readout), layers first."""
        return [(layer, readout) for layer in self.layers for readout in self.readouts]

    def __len__(self) -> int:
        return len(self.texts)


class Extractor:
    """Texts in, `States` out.

    readouts: names or Readouts. layers: "all", layer numbers (0 = embedding output), or what `parse_layers` reads.
    max_tokens_per_batch: padded tokens in a batch. max_length: longest input in tokens, special ones included, at most
    the model's own limit. long_rows: what happens to longer texts: "error", or "truncate" them, keeping the special
    tokens. Raises InputError for a layer or readout that the model lacks.
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
        self.readouts = parse(readouts)
        if isinstance(layers, str):
            layers = parse_layers(layers, encoder.description)
        self.layers = check_layers(layers, len(encoder.blocks))
        self.max_tokens_per_batch = max_tokens_per_batch
        limit = encoder.description.max_length
        self.max_length = limit if max_length is None else min(max_length, limit)
        self.long_rows = long_rows
        added = encoder.tokenize([""])[0].ids
        if self.max_length <= len(added):
            special = f"{len(added)} special tokens leave no room for text"
            raise InputError(f"--max-length {self.max_length}", special, f"Pass {len(added) + 1} or more")
        tokenizer = encoder.tokenizer
        for name, token in (("cls", tokenizer.cls_token_id), ("sep", tokenizer.sep_token_id)):
            if name in [readout.name for readout in self.readouts] and token not in added:
                others = ", ".join(other for other in DEFAULT if other not in ("cls", "sep"))
                what = f"the tokenizer of {encoder.name} adds no {name} token"
                raise InputError("--readouts", what, f"Choose among {others}")

    def __call__(self, texts: Sequence[str]) -> States:
        """Encode every text once. Raises InputError for texts too long or vectors that are not finite."""
        rows, truncated = self._tokenize(texts)
        shape = len(self.layers), len(self.readouts), len(texts), self.encoder.description.dim
        values = np.empty(shape, np.float32)
        present = np.ones((len(self.readouts), len(texts)), bool)
        batches = plan(np.array([len(row.ids) for row in rows]), self.max_tokens_per_batch)
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

        def keep(layer: int, hidden: Tensor) -> None:
            read.append(layer)
            vectors = torch.stack([readout.read(hidden, batch).float() for readout in self.readouts]).cpu().numpy()
            vectors[~has] = np.nan
            bad = has & ~np.isfinite(vectors).all(2)
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
        module = f"{BLOCKS[encoder.description.model_type]}.{layer - 1}" if layer else "the embeddings"
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
            "versions": {p: importlib.metadata.version(p) for p in packages} | {"python": platform.python_version()},
        }
