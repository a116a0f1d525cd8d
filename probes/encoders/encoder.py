"""`Encoder`: a loaded model with its tokenizer.

`Encoder.tokenize` -> rows of ids; `Encoder.batch` -> a padded `Batch`; `Encoder.forward` runs it.

Layer 0 is what enters the first block (the embedding output), layer k what leaves block k. `probes.encoders.adapters`
says where that is in each architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from itertools import chain, groupby
from operator import attrgetter
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from clsprobe.probes.encoders.adapters import ADAPTERS, Adapter, Point
from clsprobe.probes.encoders.describing import Description
from clsprobe.probes.encoders.messages import quiet_transformers
from clsprobe.probes.encoders.tokenizing import Batch, Row, Rows, text_seed
from clsprobe.probes.errors import InputError
from clsprobe.probes.tasks.task import PAIRED, parts

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, eq=False)
class Encoder:
    """A loaded encoder.

    adapter: where its layers are. blocks: the modules where layers 1, 2, ... are read (mostly they come out of them).
    untrained: the seed of its random weights, None for the trained ones. checked: what `self_check` measured.
    one_at_a_time: cutting texts is a switch of the tokenizer itself, which threads would set for each other.
    """

    description: Description
    model: nn.Module
    tokenizer: Any
    blocks: Sequence[nn.Module]
    device: torch.device
    dtype: torch.dtype
    untrained: int | None = None
    adapter: Adapter = ADAPTERS["bert"]
    checked: dict[str, Any] = field(default_factory=dict)
    one_at_a_time: Lock = field(default_factory=Lock, repr=False)

    @property
    def points(self) -> list[Point]:
        """Where layer 0, 1, ... are read, paths from `model`."""
        found = self.adapter.points(self.description.depth, self.description.config)
        return [Point(module.removeprefix(f"{self.adapter.part}."), side) for module, side in found]

    @property
    def norm(self) -> nn.Module | None:
        """The norm that follows the last layer; None where there is none."""
        path = self.adapter.norm.removeprefix(f"{self.adapter.part}.")
        return attrgetter(path)(self.model) if path else None

    @property
    def cls_id(self) -> int | None:
        """The id of [CLS], None where the tokenizer has none."""
        return getattr(self.tokenizer, self.adapter.cls)

    @property
    def sep_id(self) -> int | None:
        """The id of the closing special token, None where the tokenizer has none."""
        return getattr(self.tokenizer, self.adapter.sep)

    @property
    def name(self) -> str:
        """As the user gave it."""
        return self.description.name

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> Rows:
        """Ids of every text, special tokens added; literal special tokens in a text stay text.

        A pair (`probes.tasks.task.pair`) is put together by the tokenizer's own template, [CLS] a [SEP] b [SEP].
        max_length: cut longer texts to so many tokens, keeping the special ones, and of a pair the longer text first;
        None keeps their full length. Raises InputError for a pair where the tokenizer has no such template.
        """
        parts = [
            self._coded([texts[i] for i in range(at, min(at + 1000, len(texts)))]) for at in range(0, len(texts), 1000)
        ]
        rows = Rows.joined([*parts, Rows.empty()])
        if max_length is not None and (long := np.flatnonzero(rows.full > max_length)).size:
            rows = rows.with_cut(long, self._coded([texts[int(i)] for i in long], max_length))
        return rows

    def _coded(self, texts: list[str], max_length: int | None = None) -> Rows:
        """Texts and pairs of texts as they come."""
        runs = [list(run) for _, run in groupby(texts, key=lambda text: PAIRED in text)]
        return Rows.joined([*(self._coded_alike(run, max_length) for run in runs), Rows.empty()])

    def _coded_alike(self, texts: list[str], max_length: int | None) -> Rows:
        """Either texts or pairs."""
        paired = PAIRED in texts[0]
        with self.one_at_a_time:
            coded = self.tokenizer(
                *(self._pairs(texts, max_length) if paired else [texts]),
                split_special_tokens=True,
                return_special_tokens_mask=True,
                padding=False,
                truncation=max_length is not None,
                max_length=max_length,
                verbose=False,
            )
        lengths = np.fromiter(map(len, coded["input_ids"]), np.int32, len(texts))

        def packed(name: str, kind: type) -> np.ndarray:
            return np.fromiter(chain.from_iterable(coded[name]), kind, lengths.sum())

        return Rows(
            packed("input_ids", np.int32),
            packed("special_tokens_mask", bool),
            packed("token_type_ids", np.int8) if paired and self._typed else np.zeros(lengths.sum(), np.int8),
            np.full(len(texts), paired),
            np.fromiter(map(text_seed, texts), np.int64, len(texts)),
            lengths,
            lengths,
        )

    def _pairs(self, texts: list[str], max_length: int | None) -> list[list[str]]:
        """The first and the second texts of pairs, where the tokenizer can put them together."""
        split = [parts(text) for text in texts]
        if any(len(each) != 2 for each in split):
            raise InputError("a pair", "holds more than two texts (U+FDD0 stands between them)", "Give two")
        added = self.tokenizer.num_special_tokens_to_add(pair=True)
        if added <= self.tokenizer.num_special_tokens_to_add(pair=False):
            what = "its tokenizer puts nothing between the two texts of a pair"
            raise InputError(self.name, what, "Name one column with --text-column, or another model")
        if max_length is not None and max_length < added + 2:
            what = f"{added} special tokens leave no room for the two texts of a pair"
            raise InputError(f"--max-length {max_length}", what, f"Pass {added + 2} or more")
        return [list(each) for each in zip(*split, strict=True)]

    @cached_property
    def _typed(self) -> bool:
        """Whether the model is told which text of a pair a token belongs to."""
        if (
            "token_type_ids" not in self.tokenizer.model_input_names
            or "token_type_ids" not in signature(self.model.forward).parameters
        ):
            return False
        known = getattr(self.model.config, "type_vocab_size", 0)
        given = max(self.tokenizer("a", "b")["token_type_ids"]) + 1
        if known and given > known:
            what = f"its tokenizer tells {given} token types apart, its embedding table {known}"
            raise InputError(self.name, what, "Use its own tokenizer")
        return True

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Rows padded on the right to the longest of them, on the encoder's device."""
        import torch

        shape = len(rows), max([self.adapter.shortest, *(len(row.ids) for row in rows)])
        ids = np.full(shape, self.tokenizer.pad_token_id or 0, np.int64)
        real, special = np.zeros(shape, bool), np.zeros(shape, bool)
        types = np.zeros(shape, np.int64) if any(row.types is not None for row in rows) and self._typed else None
        for i, row in enumerate(rows):
            n = len(row.ids)
            ids[i, :n], real[i, :n], special[i, :n] = row.ids, True, row.special
            if types is not None and row.types is not None:
                types[i, :n] = row.types
        seeds = np.array([row.seed for row in rows], np.int64)

        def moved(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(self.device)

        return Batch(
            moved(ids),
            moved(real),
            moved(special),
            moved(seeds),
            self.cls_id,
            self.sep_id,
            None if types is None else moved(types),
        )

    def forward(self, batch: Batch, *, gradients: bool = False, attentions: bool = False) -> Any:
        """Run the encoder over a batch. gradients: keep what differentiating needs. attentions: ask for the attention
        weights too, which leaves hooks of transformers on the model (analysis.attention removes them)."""
        import torch

        segments = {}
        if batch.types is not None:
            segments["token_type_ids"] = batch.types
        elif self.adapter.cls_segment:
            segments["token_type_ids"] = (batch.special & (batch.ids == batch.cls_id)) * self.adapter.cls_segment
        with torch.set_grad_enabled(gradients), quiet_transformers():
            if self.adapter.before:
                self.adapter.before(self.model, batch.ids.shape[1])
            return self.model(
                input_ids=batch.ids,
                attention_mask=batch.real.long(),
                output_hidden_states=False,  # whatever config.json asks for: transformers' own hooks would stay
                output_attentions=attentions,
                **segments,
            )
