"""`Encoder`: a loaded model with its tokenizer.

`Encoder.tokenize` returns rows of ids, `Encoder.batch` a padded `Batch`, `Encoder.forward` runs it.

Layer 0 is the input of the first block (the embedding output), layer k the output of block k.
`probes.encoders.adapters` says where these are in each architecture.
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
from clsprobe.probes.encoders.messages import as_input_error, quiet_transformers
from clsprobe.probes.encoders.preview import beyond_table
from clsprobe.probes.encoders.tokenizer_files import LoadedTokenizer, find_tokens
from clsprobe.probes.encoders.tokenizing import Batch, Row, Rows, text_seed
from clsprobe.probes.errors import InputError
from clsprobe.probes.notebook import facts_to_html
from clsprobe.probes.tasks.memory import as_texts
from clsprobe.probes.tasks.texts import PAIRED, parts

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, eq=False)
class Encoder:
    """A loaded encoder.

    adapter: where its layers are. blocks: the modules at which layers 1, 2, ... are read, mostly their outputs.
    untrained: the seed of its random weights, None for the trained ones. checked: the results of `self_check`.
    tokenizer_lock: truncation is a state of the tokenizer, which threads would set for each other.
    """

    description: Description
    model: nn.Module
    loaded_tokenizer: LoadedTokenizer
    blocks: Sequence[nn.Module]
    device: torch.device
    dtype: torch.dtype
    untrained: int | None = None
    adapter: Adapter = ADAPTERS["bert"]
    checked: dict[str, Any] = field(default_factory=dict)
    tokenizer_lock: Lock = field(default_factory=Lock, repr=False)

    def __repr__(self) -> str:
        weights = "" if self.untrained is None else f", untrained (seed {self.untrained})"
        return f"<Encoder {self.description.summary}, {self._precision}{weights}>"

    def _repr_html_(self) -> str:
        tokens = {"[CLS]": self.cls_id, "[SEP]": self.sep_id}
        weights = "trained" if self.untrained is None else f"random, seed {self.untrained}"
        padding = "not checked: there is no room for a text"
        if self.checked:
            padding = "reaches other tokens: read by equal length" if self.checked["leaks"] else "changes nothing"
        facts = self.description.facts | {
            "special tokens": ", ".join(f"{name} {'none' if id is None else id}" for name, id in tokens.items()),
            "weights": weights,
            "runs in": self._precision,
            "padding": padding,
        }
        return facts_to_html(f"Encoder {self.name}", facts)

    @property
    def _precision(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} on {self.device}"

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        return self.loaded_tokenizer.tokenizer

    @property
    def points(self) -> list[Point]:
        """Where layer 0, 1, ... are read; paths are relative to `model`."""
        points = self.adapter.points(self.description.depth, self.description.config)
        return [Point(module.removeprefix(f"{self.adapter.part}."), side) for module, side in points]

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
        """The name the user gave."""
        return self.description.name

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> Rows:
        """Ids of every text, special tokens added. A text's own special tokens stay text, its markers stay tokens
        (`probes.encoders.tokenizer_files`).

        A pair (`probes.tasks.texts.pair`) follows the tokenizer's own template, [CLS] a [SEP] b [SEP].
        The description's prompt is put before every text, and its tokens count as special.
        max_length: tokens to which longer texts are truncated, keeping the special ones, and of a pair the longer text
        first; None keeps the full length. Raises InputError for a pair where the tokenizer has no such template.
        """
        texts = as_texts(texts)
        size, end, prompt = 1000, len(texts), self.description.prompt
        chunks = [[prompt + texts[i] for i in range(start, min(start + size, end))] for start in range(0, end, size)]
        rows = Rows.concatenate([*map(self._tokenize_mixed, chunks), Rows.empty()])
        self._refuse_beyond_table(texts, rows)
        if max_length is not None and (long := np.flatnonzero(rows.full_lengths > max_length)).size:
            rows = rows.with_truncated(long, self._tokenize_mixed([prompt + texts[int(i)] for i in long], max_length))
        return rows.with_special(self._prompt_tokens) if prompt else rows

    @cached_property
    def _prompt_tokens(self) -> np.ndarray:
        """(token,) ids of the prompt alone, without special tokens."""
        rows = self._tokenize_run([self.description.prompt], None)
        return rows.ids[~rows.special]

    @cached_property
    def prompt_length(self) -> int:
        """The number of tokens before the text itself: of the prompt, and special ones before that."""
        special = self._tokenize_run([self.description.prompt], None).special
        return int(np.flatnonzero(~special).max(initial=-1)) + 1 if self.description.prompt else 0

    def notes_on(self, texts: Sequence[str], digests: np.ndarray) -> list[str]:
        """Sentences on how the model's files are read, and on texts that hold special tokens, markers, or nothing.

        digests: (text,) of `Rows.digests`.
        """
        notes = [*self.description.notes, *self.loaded_tokenizer.notes]
        for tokens, reading in (
            (self.loaded_tokenizer.markers, "added tokens of the model, which are read as tokens"),
            (self.loaded_tokenizer.special, "special tokens in writing, which are read as text"),
        ):
            matches = list(filter(None, find_tokens(tokens, texts)))
            if matches:
                read = list(dict.fromkeys(matches))[:5]
                examples = ", ".join(token if token.strip() == token else repr(token) for token in read)
                notes.append(f"Texts that hold {reading}: {len(matches):,} of {len(texts):,} ({examples}).")
        paired = np.fromiter((PAIRED in text for text in texts), bool, len(texts))
        of_empty = np.full(len(texts), self.tokenize([""]).digests())
        if paired.any() and self._has_one_type:
            notes.append(
                f"The model has one token type, its tokenizer gives a pair {self._tokenizer_types}: all tokens are "
                "read with the one, and the two texts are told apart by the special tokens between them alone."
            )
        if paired.any():
            of_empty[paired] = self.tokenize([PAIRED]).digests()
        if empty := int((np.asarray(digests) == of_empty).sum()):
            what = "Texts without tokens of their own (such as zero-width characters alone)"
            notes.append(f"{what}: {empty:,} of {len(texts):,}; their vectors are those of an empty text.")
        return notes

    def _tokenize_mixed(self, texts: list[str], max_length: int | None = None) -> Rows:
        """Rows of texts and pairs of texts, in their order."""
        runs = [list(run) for _, run in groupby(texts, key=lambda text: PAIRED in text)]
        return Rows.concatenate([*(self._tokenize_run(run, max_length) for run in runs), Rows.empty()])

    def _tokenize_run(self, texts: list[str], max_length: int | None) -> Rows:
        """Rows of texts that are all single or all pairs."""
        paired = PAIRED in texts[0]
        with self.tokenizer_lock, as_input_error(self.name, "its tokenizer cannot read a text"):
            encoding = self.tokenizer(
                *(self._split_pairs(texts, max_length) if paired else [texts]),
                split_special_tokens=self.loaded_tokenizer.splits_special_tokens,
                return_special_tokens_mask=True,
                padding=False,
                truncation=max_length is not None,
                max_length=max_length,
                verbose=False,
            )
        lengths = np.fromiter(map(len, encoding["input_ids"]), np.int32, len(texts))

        def pack(name: str, dtype: type) -> np.ndarray:
            return np.fromiter(chain.from_iterable(encoding[name]), dtype, lengths.sum())

        return Rows(
            pack("input_ids", np.int32),
            pack("special_tokens_mask", bool),
            pack("token_type_ids", np.int8) if paired and self._takes_types else np.zeros(lengths.sum(), np.int8),
            np.full(len(texts), paired),
            np.fromiter(map(text_seed, texts), np.int64, len(texts)),
            lengths,
            lengths,
        )

    def _split_pairs(self, texts: list[str], max_length: int | None) -> list[list[str]]:
        """The first and the second texts of pairs. Raises InputError where the tokenizer has no template for pairs."""
        pairs = [parts(text) for text in texts]
        if any(len(pair) != 2 for pair in pairs):
            raise InputError("a pair", "holds more than two texts (U+FDD0 stands between them)", "Give two")
        added = self.tokenizer.num_special_tokens_to_add(pair=True)
        if added <= self.tokenizer.num_special_tokens_to_add(pair=False):
            what = "its tokenizer puts nothing between the two texts of a pair"
            raise InputError(self.name, what, "Name one column with --text-column, or another model")
        if max_length is not None and max_length < added + 2:
            what = f"{added} special tokens leave no room for the two texts of a pair"
            raise InputError(f"--max-length {max_length}", what, f"Pass {added + 2} or more")
        return [list(side) for side in zip(*pairs, strict=True)]

    @cached_property
    def _takes_types(self) -> bool:
        """Whether the model takes token types. Raises InputError where its table lacks one of the tokenizer's."""
        if (
            "token_type_ids" not in self.tokenizer.model_input_names
            or "token_type_ids" not in signature(self.model.forward).parameters
        ):
            return False
        if self._has_one_type:
            return False
        table_size = getattr(self.model.config, "type_vocab_size", 0)
        if table_size and self._tokenizer_types > table_size:
            what = f"its tokenizer tells {self._tokenizer_types} token types apart, its embedding table {table_size}"
            raise InputError(self.name, what, "Use its own tokenizer")
        return True

    @property
    def _pad_id(self) -> int:
        """The id on padding, which is masked: the tokenizer's, or 0 where that lies beyond the embedding table."""
        number = self.tokenizer.pad_token_id or 0
        return number if number < self.description.config.get("vocab_size", number + 1) else 0

    @cached_property
    def _tokenizer_types(self) -> int:
        """How many token types the tokenizer tells apart in a pair, 1 where it names none."""
        return int(max(self.tokenizer("a", "b").get("token_type_ids", [0]))) + 1

    @property
    def _has_one_type(self) -> bool:
        """Whether the model was trained without the types that the tokenizer tells apart."""
        return getattr(self.model.config, "type_vocab_size", 0) == 1 and self._tokenizer_types > 1

    def _refuse_beyond_table(self, texts: Sequence[str], rows: Rows) -> None:
        """Raise InputError for a text with a token that the embedding table lacks."""
        table_size = self.description.config.get("vocab_size")
        if table_size is None or rows.ids.max(initial=0) < table_size:
            return
        i = int(np.searchsorted(np.cumsum(rows.lengths), np.flatnonzero(rows.ids >= table_size)[0], side="right"))
        number = int(rows[i].ids.max())
        raise beyond_table(self.description, texts[i], self.tokenizer.convert_ids_to_tokens(number), number)

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Rows padded on the right to the longest of them, as tensors on the encoder's device."""
        import torch

        shape = len(rows), max([self.adapter.min_tokens, *(len(row.ids) for row in rows)])
        ids = np.full(shape, self._pad_id, np.int64)
        real, special = np.zeros(shape, bool), np.zeros(shape, bool)
        types = np.zeros(shape, np.int64) if any(row.types is not None for row in rows) and self._takes_types else None
        for i, row in enumerate(rows):
            length = len(row.ids)
            ids[i, :length], real[i, :length], special[i, :length] = row.ids, True, row.special
            if types is not None and row.types is not None:
                types[i, :length] = row.types
        seeds = np.array([row.seed for row in rows], np.int64)

        def to_tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(self.device)

        return Batch(
            to_tensor(ids),
            to_tensor(real),
            to_tensor(special),
            to_tensor(seeds),
            self.cls_id,
            self.sep_id,
            None if types is None else to_tensor(types),
        )

    def forward(self, batch: Batch, *, gradients: bool = False, attentions: bool = False) -> Any:
        """The model's output for a batch. gradients: record them. attentions: return the attention weights too, which
        leaves hooks of transformers on the model (analysis.formation.attention removes them)."""
        import torch

        inputs = {}
        if batch.types is not None:
            inputs["token_type_ids"] = batch.types
        elif self.adapter.cls_segment:
            inputs["token_type_ids"] = (batch.special & (batch.ids == batch.cls_id)) * self.adapter.cls_segment
        if batch.positions is not None:
            inputs["position_ids"] = batch.positions
        with torch.set_grad_enabled(gradients), quiet_transformers():
            if self.adapter.before:
                self.adapter.before(self.model, batch.ids.shape[1])
            return self.model(
                input_ids=batch.ids,
                attention_mask=batch.real.long(),
                output_hidden_states=False,  # even if config.json sets it: hooks of transformers would stay
                output_attentions=attentions,
                **inputs,
            )
