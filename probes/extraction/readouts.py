"""Readouts: how every layer's hidden states become one vector per text.

A position and a pooling are one idea: `Weighted` readouts are distributions over the real tokens of a text, and a
position puts all weight on one token.

1. Positions come from the masks of a `probes.encoders.tokenizing.Batch`, never from a fixed index.
2. `Readout.read(hidden, batch)` maps (batch, token, dim) to (batch, dim); a text without the position gives NaN, and
   `Readout.present(batch)` is False there.
3. `Flatten` concatenates the tokens; `Projected` projects that to the dimension of one token.
4. `Cat` concatenates readouts of one layer, `Last` one readout of several layers; `Normed` applies the norm after the
   last layer first. `Pooled` is the vector of a sentence-transformers model.
5. `parse_readouts` turns the names of the command line (``cls``, ``token[1]`` or ``token1``, ``mean``) into readouts,
   those of other packages too (`READOUTS`).

Torch is imported in the methods, so that names are checked without it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

from clsprobe.probes.errors import InputError, unknown
from clsprobe.probes.registry import Register

if TYPE_CHECKING:
    from torch import Tensor

    from clsprobe.probes.encoders.encoder import Encoder
    from clsprobe.probes.encoders.tokenizing import Batch
    from clsprobe.probes.extraction.pooled import SentencePooling

FLATTENED = 32  # tokens
DEFAULT = ("cls", "sep", "token[1]", "token[2]", "token[-1]", "random", "mean", "max")


class Readout(ABC):
    """One vector per text from the hidden states of a layer. Equal names are equal readouts."""

    name: str
    depth = 1  # layers whose vectors are concatenated, the last of them the cell's own
    last_layer_only = False
    after_norm = False  # whether `read` gets the states after the model's final norm

    def bind(self, encoder: Encoder) -> Readout:
        """The readout for this encoder. Raises InputError where the encoder lacks what it needs."""
        return self

    @abstractmethod
    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(batch, token, dim) -> (batch, width)."""

    def width(self, dim: int) -> int:
        """The dimension of the vector, for tokens of dimension `dim`."""
        return dim

    def present(self, batch: Batch) -> Tensor:
        """(batch,) True for texts that have the position."""
        return batch.real.any(1)

    def __repr__(self) -> str:
        return f"<readout {self.name}>"


class Weighted(Readout):
    """A distribution over the real tokens of a text."""

    @abstractmethod
    def weights(self, batch: Batch) -> Tensor:
        """(batch, token), rows sum to 1, 0 on padding; all 0 for a text without the position."""

    def present(self, batch: Batch) -> Tensor:
        return (self.weights(batch) > 0).any(1)  # False for NaN, which is 0 / 0 where no token has weight

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        """The weighted mean, in float32; NaN for a text without the position. `where` excludes a NaN on padding; a
        product with the mask would not."""
        import torch

        weights = self.weights(batch)[..., None]
        weighted = weights != 0
        return (hidden.float() * weights).where(weighted, 0).sum(1).where(weighted.any(1), torch.nan)


class Position(Weighted):
    """All weight on one token, whose position subclasses give."""

    @abstractmethod
    def position(self, batch: Batch) -> Tensor:
        """(batch,) index of the token, -1 where the text has none."""

    def present(self, batch: Batch) -> Tensor:
        return batch.position_of(self) >= 0

    def weights(self, batch: Batch) -> Tensor:
        import torch

        indices = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        return (indices == batch.position_of(self)[:, None]).float()

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        """The token itself, bit for bit."""
        import torch

        positions = batch.position_of(self)
        rows = torch.arange(len(positions), device=positions.device)
        return hidden[rows, positions.clamp(min=0)].where((positions >= 0)[:, None], torch.nan)


class Cls(Position):
    """The special token with the tokenizer's [CLS] id."""

    name = "cls"

    def position(self, batch: Batch) -> Tensor:
        return batch.nth(batch.real & batch.special & (batch.ids == batch.cls_id), batch.lengths * 0 + 1)


class Sep(Position):
    """The last separator, in a pair the one after both texts: [SEP] in BERT, </s> in RoBERTa."""

    name = "sep"

    def position(self, batch: Batch) -> Tensor:
        separators = batch.real & batch.special & (batch.ids == batch.sep_id)
        return batch.nth(separators, separators.sum(1).clamp(min=1))


class Token(Position):
    """The k-th content token, counted from 1, or from the end where k is negative (-1 is the last).

    A pair counts as one text: its last token is the last of the second text.
    """

    def __init__(self, k: int) -> None:
        self.k, self.name = k, f"token[{k}]"

    def position(self, batch: Batch) -> Tensor:
        count = batch.content.sum(1)
        n = count * 0 + self.k if self.k > 0 else count + 1 + self.k
        return batch.nth(batch.content, n.clamp(min=0)).where(n > 0, -1)


class RandomToken(Position):
    """A content token drawn by a stable hash of the text: the same one in every layer, run and batch."""

    name = "random"

    def position(self, batch: Batch) -> Tensor:
        count = batch.content.sum(1)
        return batch.nth(batch.content, 1 + batch.seeds % count.clamp(min=1)).where(count > 0, -1)


class Placed(Position):
    """The token that `probes.training.arrangements` puts before all others, amid or behind them.

    content: the content tokens that a text needs, of which it is a copy.
    """

    def __init__(self, name: str, place: str, content: int = 0) -> None:
        self.name, self.place, self.content = name, place, content

    def position(self, batch: Batch) -> Tensor:
        last = batch.lengths - 1
        position = {"first": last * 0, "middle": last // 2, "last": last}[self.place]
        return position.where(batch.content.sum(1) >= self.content, -1)


class Mean(Weighted):
    """The mean over all real tokens, special ones included, as sentence-transformers pools."""

    name = "mean"

    def weights(self, batch: Batch) -> Tensor:
        return batch.real / batch.lengths.clamp(min=1)[:, None]

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        real = hidden.float().where(batch.real[..., None], 0) if batch.padded else hidden.float()
        return real.sum(1) / batch.lengths.clamp(min=1)[:, None]


class Max(Readout):
    """The maximum of every dimension over all real tokens; padding counts as -inf, not as 0."""

    name = "max"

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        import torch

        return (hidden.where(batch.real[..., None], -torch.inf) if batch.padded else hidden).amax(1)


class Flatten(Readout):
    """The first tokens of a text in a row, special ones included, padded with zeros: 32, or N as in flatten[N]."""

    name = "flatten"

    def __init__(self, tokens: int = FLATTENED) -> None:
        self.tokens = tokens
        self.name = type(self).name + ("" if tokens == FLATTENED else f"[{tokens}]")

    def width(self, dim: int) -> int:
        return self.tokens * dim

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        import torch

        size = min(self.tokens, hidden.shape[1])
        order = (~batch.real).long().sort(dim=1, stable=True).indices[:, :size, None]  # real tokens first, in order
        vectors = hidden.new_zeros(len(hidden), self.tokens, hidden.shape[2], dtype=torch.float32)
        real = batch.real.gather(1, order[..., 0])[..., None]
        vectors[:, :size] = hidden.gather(1, order.expand(-1, -1, hidden.shape[2])).float().where(real, 0)
        return vectors.flatten(1)


class Attention(Flatten):
    """The numbers of `flatten`, for a probe that learns attention over tokens (probes.pooling)."""

    name = "attention"


class Projected(Flatten):
    """`Flatten` through a fixed random projection to `dim` numbers: token order at equal capacity."""

    name = "flatten_projected"

    def width(self, dim: int) -> int:
        return dim

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        return super().read(hidden, batch) @ _projection(self.tokens, hidden.shape[2]).to(hidden.device)


@cache
def _projection(tokens: int, dim: int) -> Tensor:
    """(tokens * dim, dim) Gaussian numbers that preserve norms on average (Johnson & Lindenstrauss 1984)."""
    import torch

    return torch.randn(tokens * dim, dim, generator=torch.Generator().manual_seed(0)) / dim**0.5


class Cat(Readout):
    """Several readouts of one layer, concatenated: ``cat(cls,mean)``."""

    def __init__(self, of: Sequence[Readout]) -> None:
        self.of, self.name = tuple(of), f"cat({','.join(readout.name for readout in of)})"

    def width(self, dim: int) -> int:
        return sum(readout.width(dim) for readout in self.of)

    def present(self, batch: Batch) -> Tensor:
        import torch

        return torch.stack([readout.present(batch) for readout in self.of]).all(0)

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        import torch

        return torch.cat([readout.read(hidden, batch).float() for readout in self.of], 1)


class Last(Readout):
    """A readout of the last `depth` layers, concatenated: ``last4(cls)`` (Devlin et al. 2019)."""

    last_layer_only = True

    def __init__(self, depth: int, of: Readout) -> None:
        self.depth, self.of, self.name = depth, of, f"last{depth}({of.name})"

    def width(self, dim: int) -> int:
        return self.depth * self.of.width(dim)

    def present(self, batch: Batch) -> Tensor:
        return self.of.present(batch)

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(batch, width of the inner readout), of one layer."""
        return self.of.read(hidden, batch)


class Normed(Readout):
    """A readout after the model's final norm: ``cls+norm``. Only the last layer has it.

    The caller passes hidden states that are already normed, since only the encoder has the norm.
    """

    suffix = "+norm"
    last_layer_only = True
    after_norm = True

    def __init__(self, of: Readout) -> None:
        self.of, self.name = of, f"{of.name}{self.suffix}"

    def width(self, dim: int) -> int:
        return self.of.width(dim)

    def present(self, batch: Batch) -> Tensor:
        return self.of.present(batch)

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        return self.of.read(hidden, batch)


class Pooled(Readout):
    """The vector that SentenceTransformer.encode returns: the model's pooling, dense layers and normalization.

    Only `bind` makes it ready, since the encoder's folder says what they are.
    """

    name = "pooled"
    last_layer_only = True
    after_norm = True

    def __init__(self, pooling: SentencePooling | None = None) -> None:
        self._pooling = pooling

    def bind(self, encoder: Encoder) -> Readout:
        from clsprobe.probes.extraction.pooled import SentencePooling

        return Pooled(SentencePooling(encoder))

    def width(self, dim: int) -> int:
        assert self._pooling is not None
        return self._pooling.width

    def read(self, hidden: Tensor, batch: Batch) -> Tensor:
        assert self._pooling is not None
        return self._pooling(hidden, batch)


NAMED: dict[str, type[Readout]] = {readout.name: readout for readout in (Cls, Sep, RandomToken, Mean, Max, Pooled)}
ARRANGED = (
    "cls@last", "new@first", "new@middle", "new@last", "token[1]@first", "token[1]@last", "token[1]@no_cls",
    "mean@no_cls",
)  # fmt: skip
OF_TOKENS: dict[str, type[Flatten]] = {readout.name: readout for readout in (Flatten, Projected, Attention)}
FORMS = {  # names that are made of others, and what they stand for
    "token[K]": "The K-th content token; token[-1] is the last; token1 and token-1 work too",
    "cat(A,B)": "Several readouts of one layer, concatenated",
    "lastN(A)": "A readout of the last N layers, concatenated, as in last4(cls)",
    "A+norm": "A readout after the norm that follows the last layer, where the model has one",
}
READOUTS = Register(
    "readout",
    "clsprobe.readouts",
    "--readouts",
    {name: f"{kind.__module__}:{kind.__name__}" for name, kind in (NAMED | OF_TOKENS).items()},
    reserved=("token", "new", "none"),
)


def parse_readouts(names: Iterable[str | Readout]) -> list[Readout]:
    """Readouts from their names; ``token1`` and ``token-1`` are accepted for ``token[1]`` and ``token[-1]``.

    A Readout among the names stays as it is. Raises InputError for an unknown name, ``token[0]``, a name given twice,
    an empty list, and whatever goes wrong in a readout of another package.
    """
    readouts: list[Readout] = []
    for name in names:
        readout = name if isinstance(name, Readout) else _parse_readout(name)
        if any(readout.name == other.name for other in readouts):
            raise InputError("--readouts", f"'{readout.name}' is given twice", "Name each readout once")
        readouts.append(readout)
    if not readouts:
        raise InputError("--readouts", "no readout is named", f"Name some of {', '.join(DEFAULT)}")
    return readouts


def _parse_readout(name: str) -> Readout:
    if composite := re.fullmatch(r"(cat|last([1-9][0-9]?))\((.*)\)", name):
        parts = parse_readouts(split_names(composite[3]))
        if any(part.last_layer_only for part in parts):
            raise InputError("--readouts", f"'{name}': what only the last layer has cannot stand inside", "Take it out")
        if composite[1] == "cat":
            return Cat(parts)
        if len(parts) == 1:
            return Last(int(composite[2]), parts[0])
    plain = name.removesuffix(Normed.suffix)
    if plain != name and not last_layer_only(plain):
        return Normed(_parse_readout(plain))
    token = re.fullmatch(r"token(\[)?(-?[0-9]{1,6})(?(1)\])", name)
    if token and (k := int(token[2])):
        return Token(k)
    flat = re.fullmatch(r"([a-z_]+)(?:\[([1-9][0-9]{0,3})\])?", name)
    if flat and flat[1] in OF_TOKENS:
        return OF_TOKENS[flat[1]](int(flat[2] or FLATTENED))
    if token:
        raise InputError("--readouts", f"'{name}': content tokens are counted from 1", "Use token[1], or cls")
    if name in NAMED:
        return NAMED[name]()
    if name in _PLUGINS:
        return _PLUGINS[name][1]
    if ":" in name or READOUTS.is_plugin(name):
        return _load_plugin(name)
    raise READOUTS.unknown(name, ("token[1]", "token[2]", "token[-1]", "cat(cls,mean)", "last4(cls)", "cls+norm"))


# What tables call a readout of another package -> its full name, and the readout: the tables, and what is read by their
# names later, know no other name. Two of one name in a process are refused, so that a name means one readout.
_PLUGINS: dict[str, tuple[str, Readout]] = {}
PLUGIN_NAME = r"[^\W\d][\w.-]*(\[[\w.=-]*\])?"


def _load_plugin(name: str) -> Readout:
    """A readout of another package. Raises InputError where it cannot be made, or where tables could not name it."""
    full_name = READOUTS.full_name(name)
    readout = READOUTS.make(name, Readout, "readout", "Derive it from clsprobe.Readout")
    where, rename = f"--readouts {name}", "Give its class another `name`"
    own = getattr(readout, "name", None)
    if not isinstance(own, str) or not re.fullmatch(PLUGIN_NAME, own):
        what = "has no name" if own is None else f"its name is {own!r}, which cannot stand in a list of names"
        raise InputError(where, what, "Give its class a `name` of letters, digits and _, for the tables")
    base = own.partition("[")[0]
    if base in READOUTS.built_in or base in READOUTS.reserved or base.startswith(Attention.name):
        raise InputError(where, f"its name is '{own}', which is a readout of clsprobe", rename)
    others = [_PLUGINS[own][0]] if own in _PLUGINS else [*READOUTS.owners(own)]
    if others and full_name not in others:
        raise InputError(where, f"its name is '{own}', which is that of {others[0]}", rename)
    if readout.last_layer_only or readout.after_norm or readout.depth != 1:
        mend = f"Read one layer, and name it in last4({own}) or {own}{Normed.suffix}"
        raise InputError(where, "reads more than the tokens of one layer", mend)
    _PLUGINS[own] = full_name, readout
    return readout


def list_plugins(names: Iterable[str]) -> dict[str, str]:
    """Name -> full name of the readouts of other packages among these names, and within them."""
    parts = [part for name in names for part in re.split(r"[(),]|@\w*|\+norm", name)]
    full_names = {part: _PLUGINS[part][0] for part in parts if part in _PLUGINS}
    others = [part for part in parts if part not in full_names and READOUTS.is_plugin(part)]
    return full_names | {part: READOUTS.full_name(part) for part in others}


def parse_arrangement(name: str) -> tuple[str, str]:
    """The readout and the arrangement of tokens: ``cls@last`` as ("cls", "last"), ``mean`` as ("mean", "").

    Only fine-tuning arranges tokens (`probes.training.arrangements`). Raises InputError for an unknown readout or
    arrangement.
    """
    plain, sign, place = name.partition("@")
    readout = None if plain == "new" else parse_readouts([plain])[0]
    if readout is None:
        places: tuple[str, ...] = ("first", "middle", "last")
    elif isinstance(readout, Cls):
        places = ("last",)
    elif isinstance(readout, Token):
        places = ("first", "last", "no_cls")
    else:
        places = ("no_cls",)
    if (sign or readout is None) and place not in places:
        raise unknown("--readouts", "readout", name, ARRANGED)
    if readout is None:
        return plain, place
    if isinstance(readout, Pooled):
        raise InputError(f"--readouts {name}", "has layers of its own", "Fine-tune from the pooling itself, as in mean")
    if any(part.depth > 1 for part in walk_readouts(readout)):
        raise InputError(f"--readouts {name}", "reads several layers", "Fine-tune from a readout of one layer")
    return readout.name, place


def walk_readouts(readout: Readout) -> Iterator[Readout]:
    """The readout itself, then those it contains."""
    yield readout
    of = getattr(readout, "of", ())
    for part in of if isinstance(of, tuple) else (of,):
        yield from walk_readouts(part)


def check_readouts(
    readouts: Sequence[Readout],
    layers: Sequence[int],
    *,
    last: int,
    missing: Collection[str],
    has_norm: bool,
    model: str,
) -> None:
    """Raise InputError for a readout that cannot be read at these layers of a model.

    last: its last layer. missing: those of "cls" and "sep" that its tokenizer does not add. has_norm: whether a norm
    follows the last layer. model: its name.
    """
    for readout in readouts:
        if names := [part.name for part in walk_readouts(readout) if part.name in missing]:
            others = ", ".join(other for other in DEFAULT if other not in missing)
            what = f"the tokenizer of {model} adds no {names[0]} token"
            raise InputError("--readouts", what, f"Choose among {others}")
        if isinstance(readout, Normed) and not has_norm:
            what = f"'{readout.name}': no norm follows the last layer of {model}"
            raise InputError("--readouts", what, f"Use {readout.of.name}")
    for readout in filter(lambda readout: readout.last_layer_only, readouts):
        needed = range(last - readout.depth + 1, last + 1)
        if needed[0] < 0:
            raise InputError("--readouts", f"'{readout.name}' reads more layers than there are", "Name fewer")
        if unread := ", ".join(str(layer) for layer in needed if layer not in layers):
            what = f"'{readout.name}' is read at layer {last} only"
            what += f", from layers {needed[0]} to {last}" if readout.depth > 1 else ""
            raise InputError("--readouts", what, f"Add {unread} to --layers")


def last_layer_only(name: str) -> bool:
    """Whether only the last layer has the readout of this name."""
    return name == Pooled.name or name.endswith(Normed.suffix) or re.match(r"last[0-9]+\(", name) is not None


def is_position(name: str) -> bool:
    """Whether the readout of this name is one token. A file of vectors may have other names, which are none."""
    return name in (Cls.name, Sep.name, RandomToken.name) or re.match(r"token\[|new@", name) is not None


def split_names(names: str) -> list[str]:
    """Split names at commas outside brackets: ``cls,cat(cls,mean)`` are two."""
    return [name.strip() for name in re.split(r",(?![^()]*\))", names) if name.strip()]
