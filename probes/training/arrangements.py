"""Encoders with rearranged input: a new token inserted, or [CLS] moved or removed.

`arrange_encoder` makes such an encoder from the name of a readout: a *new* token is inserted (``new@first``,
``new@middle``, ``new@last``), [CLS] is moved to the end (``cls@last``) or removed (``mean@no_cls``). It can be used
like any other `Encoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.tokenizing import Row, Rows
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import New, Normed, Readout, parse_arrangement, parse_readouts, walk_readouts


@dataclass(frozen=True, eq=False)
class ArrangedEncoder(Encoder):
    """An encoder whose texts are rearranged after tokenization. arrange: the tokens of a text -> (token,) their new
    order as indices, -1 for the new token."""

    arrange: Callable[[Row], np.ndarray] = lambda row: np.arange(len(row.ids))
    new: int = -1  # the id of the new token

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> Rows:
        """As `Encoder.tokenize`; a new token may exceed `max_length`, up to the encoder's own limit."""
        if max_length is not None and self.new >= 0:
            max_length = min(max_length, self.description.longest - 1)
        rows = super().tokenize(texts, max_length)
        parts = [self._rearrange(row) for row in rows]
        if not parts:
            return rows
        ids, special, types = (np.concatenate(part) for part in zip(*parts, strict=True))
        lengths = np.array([len(part[0]) for part in parts], rows.lengths.dtype)
        full_lengths = rows.full_lengths + lengths - rows.lengths
        return replace(rows, ids=ids, special=special, types=types, lengths=lengths, full_lengths=full_lengths)

    def _rearrange(self, row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids, special and types of a text; the new token has the type of the token after it."""
        order = self.arrange(row)
        is_new = order < 0
        source = np.where(is_new, np.append(order[1:], order[-1:]), order)
        types = np.zeros(len(row.ids), np.int8) if row.types is None else row.types
        ids = np.where(is_new, self.new, row.ids[source]).astype(row.ids.dtype)
        return ids, np.where(is_new, True, row.special[source]), types[source]


def arrange_encoder(encoder: Encoder, name: str) -> tuple[Encoder, Readout]:
    """The encoder for the name of a readout, and the readout.

    ``cls``, ``mean`` ...: the encoder itself. ``cls@last``: [CLS] is moved behind the last token. ``mean@no_cls`` etc.:
    [CLS] is removed. ``new@first``, ``new@middle``, ``new@last``: a new token at the start, in the middle of the
    content or behind its last token; its embedding starts as the mean of all others (Hewitt 2021). If a norm follows
    the last layer the readout is taken after it. Raises InputError for an unknown name, or a readout that the encoder
    lacks.
    """
    base_name, place = parse_arrangement(name)
    readout: Readout
    arranged_encoder: Encoder = encoder
    parts = {part: getattr(encoder, part) for part in Encoder.__dataclass_fields__}
    if base_name == "new":
        model, token = _add_token(encoder)
        parts |= {"model": model, "blocks": [model.get_submodule(point.module) for point in encoder.points[1:]]}
        arranged_encoder, readout = ArrangedEncoder(**parts, arrange=_ARRANGE[place], new=token), New(place, token)
    else:
        (readout,) = parse_readouts([base_name])
        if place:
            move = _move_cls_last if place == "last" else _drop_cls
            arranged_encoder = ArrangedEncoder(**parts, arrange=lambda row: move(row, encoder.cls_id))
    added_ids = encoder.tokenize([""])[0].ids
    readout_names = [part.name for part in walk_readouts(readout)]
    for special, token_id in (("cls", encoder.cls_id), ("sep", encoder.sep_id)):
        if token_id not in added_ids and (special in readout_names or (special, place) == ("cls", "no_cls")):
            problem = f"the tokenizer of {encoder.name} adds no {special} token"
            raise InputError(f"--readouts {name}", problem, "Choose another readout")
    if place == "no_cls" and "cls" in readout_names:
        raise InputError(f"--readouts {name}", "reads what it takes out", "Choose another readout")
    if encoder.norm is None and isinstance(readout, Normed):
        raise InputError(f"--readouts {name}", f"no norm follows the last layer of {encoder.name}", "Leave it out")
    return arranged_encoder, readout if encoder.norm is None or isinstance(readout, Normed) else Normed(readout)


def _move_cls_last(row: Row, cls: int | None) -> np.ndarray:
    is_cls = (row.ids == cls) & row.special
    return np.concatenate([np.flatnonzero(~is_cls), np.flatnonzero(is_cls)])


def _drop_cls(row: Row, cls: int | None) -> np.ndarray:
    return np.flatnonzero(~((row.ids == cls) & row.special))


def _insert_token(row: Row, position: int) -> np.ndarray:
    return np.insert(np.arange(len(row.ids)), position, -1)


def _insert_middle(row: Row) -> np.ndarray:
    content = np.flatnonzero(~row.special)
    return _insert_token(row, int(content[len(content) // 2]) if len(content) else len(row.ids))


def _insert_last(row: Row) -> np.ndarray:
    content = np.flatnonzero(~row.special)
    return _insert_token(row, int(content[-1]) + 1 if len(content) else len(row.ids))


_ARRANGE = {"first": lambda row: _insert_token(row, 0), "middle": _insert_middle, "last": _insert_last}


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
