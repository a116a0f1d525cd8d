"""Encoders with rearranged input: another token in [CLS]'s place, [CLS] or that token elsewhere, or no [CLS] at all.

`arrange_encoder` makes such an encoder from the name of a readout, ``TOKEN@PLACE``. It can be used like any other
`Encoder`.

1. [CLS] is taken out. In ``mean@no_cls`` etc. that is all.
2. One token is put in: [CLS] again (``cls@last``), one that the encoder has never seen (``new@first``), or a copy of a
   word (``token[1]@first``); before all others, behind them, or (``new@middle``) amid them.
3. **Every other token keeps its position**: the second, third ..., whatever stands before or behind them, since the
   first is that of [CLS]. So two arrangements differ in the identity of one token, or in its position, or in both, and
   in nothing else. Where position ids decide, `ArrangedEncoder.batch` gives them; where distances do, they are as they
   were, since the others stay in a row. `_check_positions` tests this for the encoder at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.selfcheck import TOLERANCE
from clsprobe.probes.encoders.tap import evaluating
from clsprobe.probes.encoders.tokenizing import Batch, Row, Rows
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import (
    Normed,
    Placed,
    Readout,
    Token,
    parse_arrangement,
    parse_readouts,
    walk_readouts,
)

CHECKED = 512  # tokens of the text on which positions are checked
CHECKED_TEXT = "The birds sing. A cat sees the dog that sleeps in the red house. " * 40


@dataclass(frozen=True, eq=False, kw_only=True)
class ArrangedEncoder(Encoder):
    """An encoder whose texts are rearranged after tokenization.

    place: "first", "middle", "last" or "no_cls". choose: the tokens of a text -> the id of the token that is put there.
    new: the id of the token that the encoder has never seen, -1 where there is none. longest: `longest_text`.
    """

    place: str
    choose: Callable[[Row], int]
    new: int
    longest: int

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> Rows:
        """As `Encoder.tokenize`, and rearranged. max_length: before that; at most `longest`."""
        rows = super().tokenize(texts, max_length if max_length is None else min(max_length, self.longest))
        parts = [self._rearrange(row) for row in rows]
        if not parts:
            return rows
        ids, special, types = (np.concatenate(part) for part in zip(*parts, strict=True))
        lengths = np.array([len(part[0]) for part in parts], rows.lengths.dtype)
        full_lengths = rows.full_lengths + lengths - rows.lengths
        return replace(rows, ids=ids, special=special, types=types, lengths=lengths, full_lengths=full_lengths)

    def _rearrange(self, row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids, special and types of a text; the token that is put in counts as special and has the first type."""
        others = ~((row.ids == self.cls_id) & row.special)
        types = np.zeros(len(row.ids), np.int8) if row.types is None else row.types
        parts = row.ids[others], row.special[others], types[others]
        if self.place == "no_cls":
            return parts
        slot = _slot(self.place, int(others.sum()))
        values = self.choose(row), True, 0
        ids, special, types = (np.insert(part, slot, value) for part, value in zip(parts, values, strict=True))
        return ids, special, types

    def batch(self, rows: Sequence[Row]) -> Batch:
        """As `Encoder.batch`, with position ids where the model takes them."""
        batch = super().batch(rows)
        if self.place == "first" or "position_ids" not in signature(self.model.forward).parameters:
            return batch
        slots = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand(batch.ids.shape)
        positions = slots + 1  # [CLS] had the first
        if self.place == "middle":  # where the token after it stands
            positions = positions - (slots > (batch.lengths[:, None] - 1) // 2).long()
        return replace(batch, positions=self.description.first_position + positions)


def longest_text(encoder: Encoder, name: str) -> int:
    """The longest text in tokens for the name of a readout, with a position to spare where a token may go behind it."""
    _, place = parse_arrangement(name)
    adds_token = place not in ("", "no_cls") and not _has_cls(encoder)
    return encoder.description.longest - bool(place) - adds_token


def _has_cls(encoder: Encoder) -> bool:
    return encoder.cls_id in encoder.tokenize([""])[0].ids


def _slot(place: str, others: int) -> int:
    """Before how many of the other tokens the token stands that is put in."""
    return {"first": 0, "middle": others // 2, "last": others}[place]


def arrange_encoder(encoder: Encoder, name: str) -> tuple[Encoder, Readout]:
    """The encoder for the name of a readout, and the readout.

    ``cls``, ``mean`` ...: the encoder itself. ``cls@last``: [CLS] has the position behind the last token.
    ``mean@no_cls`` etc.: [CLS] is taken out. ``new@first``, ``new@middle``, ``new@last``: a new token instead of [CLS],
    with the first position, that of the token in the middle, or the one behind the last; its embedding starts as the
    mean of all others (Hewitt 2021). ``token[1]@first``, ``token[1]@last``: a copy of that token instead of [CLS]. All
    other tokens keep their positions. If a norm follows the last layer the readout is taken after it.

    Raises InputError for an unknown name, a readout that the encoder lacks, and an encoder in which the other tokens
    cannot keep their positions.
    """
    base_name, place = parse_arrangement(name)
    where = f"--readouts {name}"
    readout = None if base_name == "new" else parse_readouts([base_name])[0]
    has_cls, readout_names = _has_cls(encoder), [part.name for part in walk_readouts(readout)] if readout else []
    for special, is_added in (("cls", has_cls), ("sep", encoder.sep_id in encoder.tokenize([""])[0].ids)):
        if not is_added and (special in readout_names or (special, place) == ("cls", "no_cls")):
            raise InputError(
                where, f"the tokenizer of {encoder.name} adds no {special} token", "Choose another readout"
            )
    if place == "no_cls" and "cls" in readout_names:
        raise InputError(where, "reads what it takes out", "Choose another readout")
    if encoder.norm is None and isinstance(readout, Normed):
        raise InputError(where, f"no norm follows the last layer of {encoder.name}", "Leave it out")
    if place not in ("", "no_cls") and has_cls and encoder.tokenize([""])[0].ids[0] != encoder.cls_id:
        raise InputError(where, f"[CLS] does not stand first in the texts of {encoder.name}", "Leave it out")
    arranged = encoder
    if place:
        model, new = (encoder.model, -1) if readout else _add_token(encoder)
        arranged = ArrangedEncoder(
            **{part: getattr(encoder, part) for part in Encoder.__dataclass_fields__}
            | {"model": model, "blocks": [model.get_submodule(point.module) for point in encoder.points[1:]]},
            place=place,
            choose=_chooser(readout, encoder.cls_id if readout else new),
            new=new,
            longest=longest_text(encoder, name),
        )
        _check_positions(arranged, where)
    if readout is None or place not in ("", "no_cls"):
        readout = Placed(name, place, abs(readout.k) if isinstance(readout, Token) else 0)
    return arranged, readout if encoder.norm is None or isinstance(readout, Normed) else Normed(readout)


def _chooser(readout: Readout | None, token: int | None) -> Callable[[Row], int]:
    """The id of the token that is put into a text: `token`, or of `Token` the one that it reads.

    A text without that one gets a copy of its last token, which `Placed` does not read.
    """
    if not isinstance(readout, Token):
        return lambda row: -1 if token is None else token
    k = readout.k

    def copy_token(row: Row) -> int:
        content = row.ids[~row.special]
        return int(content[k - 1 if k > 0 else k] if len(content) >= abs(k) else row.ids[-1])

    return copy_token


def _check_positions(encoder: ArrangedEncoder, where: str) -> None:
    """Raise InputError unless the other tokens, which cannot see the one that is put in, are encoded as where it is
    first. Models that count positions by slots, mix neighbours, or run other attention for long texts fail."""
    first = replace(encoder, place="first")

    def encode_others(arranged: ArrangedEncoder) -> Tensor:
        """(token, dim) of the last layer."""
        (row,) = arranged.tokenize([CHECKED_TEXT], CHECKED)
        batch = arranged.batch([row])
        others = torch.ones_like(batch.real)
        if arranged.place != "no_cls":
            others[0, _slot(arranged.place, len(row.ids) - 1)] = False
        with evaluating(arranged.model):
            return arranged.forward(replace(batch, real=batch.real & others))[0][others]

    if encoder.place != "first":
        expected, hidden = encode_others(first), encode_others(encoder)
        change = (hidden - expected).abs().max() / expected.abs().max()
        if encoder.adapter.leaks or not change <= TOLERANCE[encoder.dtype]:
            what = f"the other tokens cannot keep their positions in {encoder.name}"
            raise InputError(where, what, "Leave this readout out")


def _add_token(encoder: Encoder) -> tuple[nn.Module, int]:
    """A copy of the model with one more token embedding, and the id of this token."""
    model: Any = deepcopy(encoder.model)
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise InputError(encoder.name, "has no table of words to put a new token in", "Leave new@ out of --readouts")
    embeddings = table.weight.detach()
    widened = torch.cat([embeddings, embeddings.mean(0, keepdim=True)])
    model.set_input_embeddings(nn.Embedding.from_pretrained(widened, padding_idx=table.padding_idx))
    return model, len(embeddings)


def texts_with_readout(encoder: Encoder, name: str, texts: Sequence[str], max_length: int | None = None) -> np.ndarray:
    """(text,) whether each text has the tokens that a readout reads."""
    base_name, _ = parse_arrangement(name)
    if base_name == "new":
        return np.ones(len(texts), bool)
    _, readout = arrange_encoder(encoder, base_name)
    rows = encoder.tokenize(texts, max_length)
    parts = [readout.present(encoder.batch(rows[i : i + 1000])).cpu().numpy() for i in range(0, len(rows), 1000)]
    return np.concatenate([np.zeros(0, bool), *parts])
