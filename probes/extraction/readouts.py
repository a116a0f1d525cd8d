"""Readouts: how every layer's hidden states become one vector per text.

A position and a pooling are one idea: `Weighted` readouts are distributions over the real tokens of a text (a position
is a distribution with all its weight on one token); `Max` is the one readout here that is not.

1. Positions always come from the masks of a `probes.encoders.tokenizing.Batch`, never from a fixed index.
2. `Readout.read(hidden, batch)` maps (batch, token, dim) to (batch, dim); a text that lacks the position gives NaN, and
   `Readout.present(batch)` says so beforehand.
3. `Flatten` keeps the tokens apart, one after another; `Projected` the same in as many numbers as one token has.
4. `Cat` and `Last` put readouts beside each other, of one layer and of several; `Normed` is another readout after the
   norm that follows the last layer.
5. `parse` turns the names of the command line (``cls``, ``token[1]`` or ``token1``, ``mean``) into readouts.

Torch is imported by the methods, not by the module, so that names are checked without it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

from clsprobe.probes.errors import InputError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from clsprobe.probes.encoders.tokenizing import Batch

FLATTENED = 32  # tokens
DEFAULT = ("cls", "sep", "token[1]", "token[2]", "token[-1]", "random", "mean", "max")


class Readout(ABC):
    """One vector per text out of the hidden states of one layer. Equal names are equal readouts."""

    name: str
    depth = 1  # layers that are read, up to the cell's own; one after another they make the vector
    of_last = False  # only the last layer has it

    @abstractmethod
    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(batch, token, dim) -> (batch, width)."""

    def width(self, dim: int) -> int:
        """Numbers in the vector, where a token has `dim`."""
        return dim

    def present(self, batch: Batch) -> Tensor:
        """(batch,) whether each text has what this readout reads."""
        return batch.real.any(1)

    def __repr__(self) -> str:
        return f"<readout {self.name}>"


class Weighted(Readout):
    """A distribution over the real tokens of a text."""

    @abstractmethod
    def weights(self, batch: Batch) -> Tensor:
        """(batch, token), rows sum to 1, 0 on padding. A row without weight is a text that lacks what is read."""

    def present(self, batch: Batch) -> Tensor:
        return (self.weights(batch) > 0).any(1)  # nor is NaN a weight: 0 / 0, where there is nothing to divide among

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        """The weighted mean, in float32. `where`, not a product with the mask: a NaN on a pad would poison that."""
        weights = self.weights(batch)[..., None]
        return (hidden.float() * weights).where(weights != 0, 0).sum(1)


class Position(Weighted):
    """All weight on one token. Subclasses say where it stands."""

    @abstractmethod
    def position(self, batch: Batch) -> Tensor:
        """(batch,) index of the token, -1 where the text has none."""

    def present(self, batch: Batch) -> Tensor:
        return batch.position_of(self) >= 0

    def weights(self, batch: Batch) -> Tensor:
        import torch

        at = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        return (at == batch.position_of(self)[:, None]).float()

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        """The token itself, bit for bit."""
        import torch

        at = batch.position_of(self)
        rows = torch.arange(len(at), device=at.device)
        return hidden[rows, at.clamp(min=0)].where((at >= 0)[:, None], torch.nan)


class Cls(Position):
    """Where the tokenizer's [CLS] id stands among the special tokens."""

    name = "cls"

    def position(self, batch: Batch) -> Tensor:
        return batch.nth(batch.real & batch.special & (batch.ids == batch.cls_id), batch.lengths * 0 + 1)


class Sep(Position):
    """The last separator of the text, of a pair the one after both: [SEP] of BERT, </s> of RoBERTa."""

    name = "sep"

    def position(self, batch: Batch) -> Tensor:
        separators = batch.real & batch.special & (batch.ids == batch.sep_id)
        return batch.nth(separators, separators.sum(1).clamp(min=1))


class Token(Position):
    """The k-th content token, counted from 1; from the end where k is negative (-1 is the last).

    Of a pair the first is the first of its first text, the last the last of its second.
    """

    def __init__(self, k: int) -> None:
        self.k, self.name = k, f"token[{k}]"

    def position(self, batch: Batch) -> Tensor:
        count = batch.content.sum(1)
        n = count * 0 + self.k if self.k > 0 else count + 1 + self.k
        return batch.nth(batch.content, n.clamp(min=0)).where(n > 0, -1)


class RandomToken(Position):
    """One content token, drawn by a stable hash of the text: the same token in every layer, run and batch."""

    name = "random"

    def position(self, batch: Batch) -> Tensor:
        count = batch.content.sum(1)
        return batch.nth(batch.content, 1 + batch.seeds % count.clamp(min=1)).where(count > 0, -1)


class New(Position):
    """A token that `probes.training.arrangements` puts in, which the encoder has never seen."""

    def __init__(self, where: str, token: int) -> None:
        self.name, self.token = f"new@{where}", token

    def position(self, batch: Batch) -> Tensor:
        return batch.nth(batch.real & (batch.ids == self.token), batch.lengths * 0 + 1)


class Mean(Weighted):
    """The mean over all real tokens, special ones included, as sentence-transformers pools."""

    name = "mean"

    def weights(self, batch: Batch) -> Tensor:
        return batch.real / batch.lengths.clamp(min=1)[:, None]

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        real = hidden.float().where(batch.real[..., None], 0) if batch.padded else hidden.float()
        return real.sum(1) / batch.lengths.clamp(min=1)[:, None]


class Max(Readout):
    """The largest value of every coordinate over all real tokens; padding counts as -inf, not as 0."""

    name = "max"

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        import torch

        return (hidden.where(batch.real[..., None], -torch.inf) if batch.padded else hidden).amax(1)


class Flatten(Readout):
    """The tokens one after another, special ones included, filled up with zeros: order is kept, at `tokens` x dim
    numbers. Of a longer text the first `tokens` are read."""

    name = "flatten"

    def __init__(self, tokens: int = FLATTENED) -> None:
        self.tokens = tokens
        self.name = type(self).name + ("" if tokens == FLATTENED else f"[{tokens}]")

    def width(self, dim: int) -> int:
        return self.tokens * dim

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        import torch

        size = min(self.tokens, hidden.shape[1])
        at = (~batch.real).long().sort(dim=1, stable=True).indices[:, :size, None]  # real tokens first, in their order
        found = hidden.new_zeros(len(hidden), self.tokens, hidden.shape[2], dtype=torch.float32)
        real = batch.real.gather(1, at[..., 0])[..., None]
        found[:, :size] = hidden.gather(1, at.expand(-1, -1, hidden.shape[2])).float().where(real, 0)
        return found.flatten(1)


class Attention(Flatten):
    """The same numbers, for a probe that learns where to look (probes.pooling)."""

    name = "attention"


class Projected(Flatten):
    """`Flatten` through one fixed random projection to `dim` numbers: what order is worth at equal capacity."""

    name = "flatten_projected"

    def width(self, dim: int) -> int:
        return dim

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        return super().read(hidden, batch) @ _projection(self.tokens, hidden.shape[2]).to(hidden.device)


@cache
def _projection(tokens: int, dim: int) -> Tensor:
    """(tokens * dim, dim) Gaussian numbers that keep lengths on average (Johnson & Lindenstrauss 1984)."""
    import torch

    drawn = torch.randn(tokens * dim, dim, generator=torch.Generator().manual_seed(0))
    return drawn / dim**0.5


class Cat(Readout):
    """Several readouts of one layer beside each other: ``cat(cls,mean)``."""

    def __init__(self, of: Sequence[Readout]) -> None:
        self.of, self.name = tuple(of), f"cat({','.join(one.name for one in of)})"

    def width(self, dim: int) -> int:
        return sum(one.width(dim) for one in self.of)

    def present(self, batch: Batch) -> Tensor:
        import torch

        return torch.stack([one.present(batch) for one in self.of]).all(0)

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        import torch

        return torch.cat([one.read(hidden, batch).float() for one in self.of], 1)


class Last(Readout):
    """Another readout of the last layers, one after another: ``last4(cls)`` (Devlin et al. 2019)."""

    of_last = True

    def __init__(self, depth: int, of: Readout) -> None:
        self.depth, self.of, self.name = depth, of, f"last{depth}({of.name})"

    def width(self, dim: int) -> int:
        return self.depth * self.of.width(dim)

    def present(self, batch: Batch) -> Tensor:
        return self.of.present(batch)

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(batch, width of what it is `of`), of one layer."""
        return self.of.read(hidden, batch)


class Normed(Readout):
    """Another readout, after the model's final norm: ``cls+norm``. Only the last layer has it.

    `read` is given the normed hidden states; where the norm is, only the encoder knows.
    """

    suffix = "+norm"
    of_last = True

    def __init__(self, of: Readout) -> None:
        self.of, self.name = of, f"{of.name}{self.suffix}"

    def width(self, dim: int) -> int:
        return self.of.width(dim)

    def present(self, batch: Batch) -> Tensor:
        return self.of.present(batch)

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        return self.of.read(hidden, batch)


NAMED: dict[str, type[Readout]] = {kind.name: kind for kind in (Cls, Sep, RandomToken, Mean, Max)}
OF_TOKENS: dict[str, type[Flatten]] = {kind.name: kind for kind in (Flatten, Projected, Attention)}


def parse(names: Iterable[str | Readout]) -> list[Readout]:
    """Readouts from their names; ``token1`` and ``token-1`` are accepted for ``token[1]`` and ``token[-1]``.

    ``cls+norm`` is cls after the model's final norm. A Readout among the names stays as it is.
    Raises InputError for an unknown name, ``token[0]``, a name given twice, and an empty list.
    """
    readouts: list[Readout] = []
    for name in names:
        readout = name if isinstance(name, Readout) else _named(name)
        if any(readout.name == other.name for other in readouts):
            raise InputError("--readouts", f"'{readout.name}' is given twice", "Name each readout once")
        readouts.append(readout)
    if not readouts:
        raise InputError("--readouts", "no readout is named", f"Name some of {', '.join(DEFAULT)}")
    return readouts


def _named(name: str) -> Readout:
    if made := re.fullmatch(r"(cat|last([1-9][0-9]?))\((.*)\)", name):
        parts = parse(separated(made[3]))
        if any(part.of_last for part in parts):
            raise InputError("--readouts", f"'{name}': what only the last layer has cannot stand inside", "Take it out")
        if made[1] == "cat":
            return Cat(parts)
        if len(parts) == 1:
            return Last(int(made[2]), parts[0])
    plain = name.removesuffix(Normed.suffix)
    if plain != name and not of_last(plain):
        return Normed(_named(plain))
    token = re.fullmatch(r"token(\[)?(-?[0-9]{1,6})(?(1)\])", name)
    if token and (k := int(token[2])):
        return Token(k)
    kept = re.fullmatch(r"([a-z_]+)(?:\[([1-9][0-9]{0,3})\])?", name)
    if kept and kept[1] in OF_TOKENS:
        return OF_TOKENS[kept[1]](int(kept[2] or FLATTENED))
    if token:
        raise InputError("--readouts", f"'{name}': content tokens are counted from 1", "Use token[1], or cls")
    if name not in NAMED:
        raise unknown("--readouts", "readout", name, (*DEFAULT, *OF_TOKENS, "cat(cls,mean)", "last4(cls)"))
    return NAMED[name]()


def arrangement(name: str) -> tuple[str, str]:
    """``cls@last`` as ("cls", "last"), ``mean`` as ("mean", ""): what is read, and how the tokens are arranged for it.

    Fine-tuning only (`probes.training.arrangements.arranged`). Raises InputError for what is neither a readout nor one
    of these.
    """
    plain, at, where = name.partition("@")
    places = {"new": ("first", "middle", "last"), "cls": ("last",)}.get(plain, ("no_cls",))
    if (at and where not in places) or (plain == "new" and not at):
        known = ("new@first", "new@middle", "new@last", "cls@last", "token[1]@no_cls", "mean@no_cls")
        raise unknown("--readouts", "readout", name, known)
    if plain == "new":
        return plain, where
    (readout,) = parse([plain])
    if any(part.depth > 1 for part in within(readout)):
        raise InputError(f"--readouts {name}", "reads several layers", "Fine-tune from a readout of one layer")
    return readout.name, where


def within(readout: Readout) -> Iterator[Readout]:
    """The readout, and those that it is made of."""
    yield readout
    of = getattr(readout, "of", ())
    for part in of if isinstance(of, tuple) else (of,):
        yield from within(part)


def of_last(name: str) -> bool:
    """Whether only the last layer has the readout of this name."""
    return name.endswith(Normed.suffix) or re.match(r"last[0-9]+\(", name) is not None


def separated(names: str) -> list[str]:
    """The names of a list with commas, those within brackets left alone: ``cls,cat(cls,mean)`` are two."""
    return [name.strip() for name in re.split(r",(?![^()]*\))", names) if name.strip()]
