"""Encoders that see their texts differently: a new token put in, [CLS] moved or taken out.

`arranged` gives such an encoder, by the name of a readout: a *new* token put in (``new@first``, ``new@middle``,
``new@last``), [CLS] moved behind everything else (``cls@last``), [CLS] taken out (``mean@no_cls``). Whatever reads an
encoder reads this one as well.
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
from clsprobe.probes.extraction.readouts import New, Normed, Readout, arrangement, parse, within


@dataclass(frozen=True, eq=False)
class Arranged(Encoder):
    """An encoder whose texts are rearranged after they are tokenized. arrange: a text's tokens -> which of them, in
    which order, -1 for the new one."""

    arrange: Callable[[Row], np.ndarray] = lambda row: np.arange(len(row.ids))
    new: int = -1  # the id of the new token

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> Rows:
        """As `Encoder.tokenize`; a new token comes on top of `max_length`, where the encoder has room for it."""
        if max_length is not None and self.new >= 0:
            max_length = min(max_length, self.description.max_length - 1)
        rows = super().tokenize(texts, max_length)
        parts = [self._taken(row) for row in rows]
        if not parts:
            return rows
        ids, special, types = (np.concatenate(part) for part in zip(*parts, strict=True))
        lengths = np.array([len(part[0]) for part in parts], rows.lengths.dtype)
        return replace(
            rows, ids=ids, special=special, types=types, lengths=lengths, full=rows.full + lengths - rows.lengths
        )

    def _taken(self, row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids, special and types of a text; the new token is of the text that it stands before."""
        order = self.arrange(row)
        new = order < 0
        near = np.where(new, np.append(order[1:], order[-1:]), order)
        types = np.zeros(len(row.ids), np.int8) if row.types is None else row.types
        ids = np.where(new, self.new, row.ids[near]).astype(row.ids.dtype)
        return ids, np.where(new, True, row.special[near]), types[near]


def arranged(encoder: Encoder, name: str) -> tuple[Encoder, Readout]:
    """The encoder that a readout's name asks for, and the readout.

    ``cls``, ``mean`` ...: the encoder itself. ``cls@last``: [CLS] stands behind the last token. ``mean@no_cls`` and the
    like: it stands nowhere. ``new@first``, ``new@middle``, ``new@last``: a new token before everything, in the middle
    of the content, behind its last token; it starts as the mean of all others (Hewitt 2021). Where a norm follows the
    last layer the readout is taken after it. Raises InputError for a name that is none, or that this encoder lacks.
    """
    plain, where = arrangement(name)
    readout: Readout
    made: Encoder = encoder
    parts = {part: getattr(encoder, part) for part in Encoder.__dataclass_fields__}
    if plain == "new":
        model, token = _with_new_token(encoder)
        parts |= {"model": model, "blocks": [model.get_submodule(point.module) for point in encoder.points[1:]]}
        made, readout = Arranged(**parts, arrange=_PLACES[where], new=token), New(where, token)
    else:
        (readout,) = parse([plain])
        if where:
            move = _behind if where == "last" else _without
            made = Arranged(**parts, arrange=lambda row: move(row, encoder.cls_id))
    added = encoder.tokenize([""])[0].ids
    named = [part.name for part in within(readout)]
    for special, own in (("cls", encoder.cls_id), ("sep", encoder.sep_id)):
        if own not in added and (special in named or (special, where) == ("cls", "no_cls")):
            told = f"the tokenizer of {encoder.name} adds no {special} token"
            raise InputError(f"--readouts {name}", told, "Choose another readout")
    if where == "no_cls" and "cls" in named:
        raise InputError(f"--readouts {name}", "reads what it takes out", "Choose another readout")
    if encoder.norm is None and isinstance(readout, Normed):
        raise InputError(f"--readouts {name}", f"no norm follows the last layer of {encoder.name}", "Leave it out")
    return made, readout if encoder.norm is None or isinstance(readout, Normed) else Normed(readout)


def _behind(row: Row, cls: int | None) -> np.ndarray:
    first = (row.ids == cls) & row.special
    return np.concatenate([np.flatnonzero(~first), np.flatnonzero(first)])


def _without(row: Row, cls: int | None) -> np.ndarray:
    return np.flatnonzero(~((row.ids == cls) & row.special))


def _with(row: Row, at: int) -> np.ndarray:
    return np.insert(np.arange(len(row.ids)), at, -1)


def _middle(row: Row) -> np.ndarray:
    content = np.flatnonzero(~row.special)
    return _with(row, int(content[len(content) // 2]) if len(content) else len(row.ids))


def _end(row: Row) -> np.ndarray:
    content = np.flatnonzero(~row.special)
    return _with(row, int(content[-1]) + 1 if len(content) else len(row.ids))


_PLACES: dict[str, Callable[[Row], np.ndarray]] = {"first": lambda row: _with(row, 0), "middle": _middle, "last": _end}


def _with_new_token(encoder: Encoder) -> tuple[nn.Module, int]:
    """A copy of the model with one more row in its table of words, and the number of that row."""
    model: Any = deepcopy(encoder.model)
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise InputError(encoder.name, "has no table of words to put a new token in", "Leave new@ out of --readouts")
    known = table.weight.detach()
    wider = torch.cat([known, known.mean(0, keepdim=True)])
    model.set_input_embeddings(nn.Embedding.from_pretrained(wider, padding_idx=table.padding_idx))
    return model, len(known)


def present(encoder: Encoder, name: str, texts: Sequence[str], max_length: int | None = None) -> np.ndarray:
    """(text,) whether each text has what a readout reads."""
    plain, _ = arrangement(name)
    if plain == "new":
        return np.ones(len(texts), bool)
    _, readout = arranged(encoder, plain)
    rows = encoder.tokenize(texts, max_length)
    parts = [readout.present(encoder.batch(rows[at : at + 1000])).cpu().numpy() for at in range(0, len(rows), 1000)]
    return np.concatenate([np.zeros(0, bool), *parts])
