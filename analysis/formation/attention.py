"""Where [CLS] looks, and who looks at it: attention weights, rollout, value zeroing.

1. `attention`: the weights themselves, per layer and head: what [CLS] reads from every token (out of it), and what
   every token reads from [CLS] (into it). `heads` sums them up.
2. `mixing`: one score a token and layer, how much of it is in [CLS]; every text's scores sum to 1.
       attention              the weights, as a mean over heads
       rollout                these and the residual stream in equal parts, multiplied up to the layer (Abnar & Zuidema
                              2020)
       value_zeroing          how far a layer's output turns when the token's value vectors are zero (Mohebbi et al.
                              2023)
       value_zeroing_rollout  the same, multiplied up to the layer; the residual stream is in it already
   The tables have the columns of `attribution.attribute`, so that `attribution.agreement` compares them.

Weights say where a layer looks, not what it uses: they are correlations, and only an intervention decides. Some models
give none: FNet and YOSO have no weights, Longformer's have a form of their own, Funnel's and CANINE's are of pooled
positions, SqueezeBERT's are no shares. These are refused in one line. In the local layers of ModernBERT [CLS] does
not see far tokens: their weights are 0. Longformer can be asked by value zeroing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from clsprobe.analysis.formation.attribution import token_columns
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.tap import evaluating
from clsprobe.probes.encoders.tokenizing import Row, Rows
from clsprobe.probes.errors import InputError, unknown
from clsprobe.probes.extraction.extractor import BUDGET, Extractor, plan
from clsprobe.probes.extraction.readouts import Position

if TYPE_CHECKING:
    from torch import Tensor, nn

METHODS = ("attention", "rollout", "value_zeroing", "value_zeroing_rollout")
_VALUES = {"value", "value_proj", "v_proj", "v_lin", "v"}  # what architectures call the projection to value vectors
_HOOKED = "_output_capturing_hooks_installed"  # how transformers remembers that its hooks are there
_FUSED = "Wqkv"  # queries, keys and values of one product, in this order


def attention(
    encoder: Encoder, texts: Sequence[str], readout: str = "cls", *, max_length: int | None = None
) -> pd.DataFrame:
    """The attention weights between one position and every token, per layer and head.

    Columns: readout; text, layer (1 is the first block), head, token_index, token, special; own (whether the token is
    the position itself); out_of, what the position reads from the token (sums to 1 over the tokens); into, what the
    token reads from the position. readout: the name of a position. Texts are cut to `max_length` tokens, by default the
    encoder's limit. Raises InputError for an encoder that gives no attention weights, and for a readout that is no
    position.
    """
    at, rows = _position(encoder, readout), _rows(encoder, texts, max_length)
    parts: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}
    for chosen, weights, places in _weights(encoder, rows, at):
        for i, text in enumerate(chosen):
            n, place = rows.lengths[text], places[i]
            one = weights[:, i, :, :n, :n]  # (layer, head, token, token)
            blank = np.full((*one.shape[:2], n), np.nan)
            parts[int(text)] = (one[:, :, place], one[:, :, :, place], place) if place >= 0 else (blank, blank, -1)
    columns = pd.DataFrame(token_columns(encoder, rows))
    layers, count = next(iter(parts.values()))[0].shape[:2] if parts else (0, 0)
    ends = np.cumsum(rows.lengths)
    tables = []
    for text, end in enumerate(ends):
        out_of, into, place = parts[text]
        tokens = columns.iloc[end - rows.lengths[text] : end]
        many = pd.concat([tokens] * (layers * count), ignore_index=True)
        many.insert(1, "layer", np.repeat(np.arange(1, layers + 1), count * len(tokens)))
        many.insert(2, "head", np.tile(np.repeat(np.arange(count), len(tokens)), layers))
        tables.append(
            many.assign(own=many["token_index"] == place, out_of=out_of.ravel(), into=into.ravel(), readout=at.name)
        )
    empty = columns.assign(layer=0, head=0, own=False, out_of=0.0, into=0.0, readout=at.name).head(0)
    return pd.concat(tables, ignore_index=True) if tables else empty


def heads(table: pd.DataFrame) -> pd.DataFrame:
    """What every head does on average: `attention` summed over tokens of a kind, and averaged over texts.

    Columns: layer, head; direction; of (own, special for the other special tokens, content); value. Of direction
    "out of", the share of the position's attention that goes to such tokens, the three sum to 1; of "into", the mean
    weight that one such token gives to the position.
    """
    kind = np.where(table["own"], "own", np.where(table["special"], "special", "content"))
    where = ["text", "layer", "head", "of"]
    per_text = (
        table.assign(of=kind)
        .groupby(where, observed=True)[["out_of", "into"]]
        .agg({"out_of": partial(pd.Series.sum, min_count=1), "into": "mean"})
    )
    mean = per_text.groupby(where[1:]).mean().rename(columns={"out_of": "out of"})
    long = mean.rename_axis(columns="direction").stack().rename("value").reset_index()
    return long[["layer", "head", "direction", "of", "value"]]


def mixing(
    encoder: Encoder,
    texts: Sequence[str],
    method: str = "rollout",
    readout: str = "cls",
    *,
    max_length: int | None = None,
) -> pd.DataFrame:
    """How much of every token is in one position, layer by layer; the scores of a text sum to 1 in each.

    Columns: method, layer (1 is the first block), readout; text, token_index, token, special; score. NaN where a text
    lacks the position. Value zeroing runs a text as often as it has tokens. Texts are cut to `max_length` tokens, by
    default the encoder's limit. Raises InputError for an unknown method, a readout that is no position, and an encoder
    that cannot be asked in this way.
    """
    if method not in METHODS:
        raise unknown("--method", "method", method, METHODS)
    at, rows = _position(encoder, readout), _rows(encoder, texts, max_length)
    found: dict[int, np.ndarray] = {}  # text -> (layer, token)
    matrices = _weights(encoder, rows, at) if method in METHODS[:2] else _zeroed(encoder, rows, at)
    for chosen, weights, places in matrices:
        mixed = weights.mean(2)  # (layer, text, token, token), over heads
        if method == "rollout":
            mixed = (mixed + np.eye(mixed.shape[-1])) / 2
        if method.endswith("rollout"):
            for layer in range(1, len(mixed)):
                mixed[layer] = mixed[layer] @ mixed[layer - 1]
        for i, text in enumerate(chosen):
            n = rows.lengths[text]
            found[int(text)] = mixed[:, i, places[i], :n] if places[i] >= 0 else np.full((len(mixed), n), np.nan)
    columns = pd.DataFrame({"method": method, "layer": 0, "readout": at.name} | token_columns(encoder, rows))
    scores = np.concatenate([found[text] for text in range(len(rows))], 1) if found else np.zeros((0, 0))
    tables = [columns.assign(layer=layer, score=score) for layer, score in enumerate(scores, 1)]
    return pd.concat(tables, ignore_index=True) if tables else columns.assign(score=0.0).head(0)


def received(encoder: Encoder, texts: Sequence[str], *, max_length: int | None = None) -> dict[int, float]:
    """Layer (1 is the first block) -> the share of content tokens' attention that goes into [CLS].

    Mean over heads, tokens and texts. Raises InputError as `attention`.
    """
    at, rows = _position(encoder, "cls"), _rows(encoder, texts, max_length)
    total, tokens = np.zeros(len(encoder.points) - 1), 0
    for chosen, weights, places in _weights(encoder, rows, at):
        for i, text in enumerate(chosen):
            content = np.flatnonzero(~rows[int(text)].special)
            total += weights[:, i].mean(1)[:, content, places[i]].sum(1)
            tokens += len(content)
    return dict(enumerate((total / max(tokens, 1)).tolist(), 1))


def _position(encoder: Encoder, readout: str) -> Position:
    (at,) = Extractor(encoder, [readout], layers="all").readouts
    if not isinstance(at, Position):
        raise InputError("--readouts", f"'{at.name}' is no position of its own", "Use cls, sep or token[1]")
    return at


def _rows(encoder: Encoder, texts: Sequence[str], max_length: int | None) -> Rows:
    return encoder.tokenize(texts, max_length or encoder.description.max_length)


def _batches(encoder: Encoder, rows: Rows, costs: np.ndarray, *, equal: bool) -> Iterator[np.ndarray]:
    for kind in (False, True):  # single texts and pairs apart
        alike = np.flatnonzero(rows.paired == kind)
        for part in plan(costs[alike], BUDGET[encoder.device.type], equal=equal):
            yield alike[part]


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


# ----------------------------------------------------------------------------------------------------------- weights


def _weights(encoder: Encoder, rows: Rows, at: Position) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batch by batch: which texts, their weights (layer, text, head, token, token) with rows that sum to 1, and where
    the position stands in each (text,)."""
    equal = bool(encoder.adapter.leaks or encoder.checked.get("leaks"))
    near = 1e-3 if encoder.dtype == torch.float32 else 0.05
    with evaluating(encoder.model), _giving_weights(encoder):
        for chosen in _batches(encoder, rows, rows.lengths, equal=equal):
            batch = encoder.batch([rows[i] for i in chosen])
            given = getattr(encoder.forward(batch, attentions=True), "attentions", None) or ()
            size, layers = batch.ids.shape[1], len(encoder.points) - 1
            if len(given) == 0 or any(one is None for one in given):
                raise _refused(encoder, "gives no attention weights")
            if len(given) != layers or any(one.ndim != 4 or one.shape[2:] != (size, size) for one in given):
                raise _refused(encoder, "has attention weights of another form than (token, token) for every layer")
            weights = np.stack([_numbers(one) for one in given])
            real = batch.real.cpu().numpy()
            weights *= real[:, None, None]  # nothing comes from padding
            sums = weights.sum(-1, keepdims=True)
            if not (np.abs(sums[..., 0] - 1).max((0, 2))[real] <= near).all():
                raise _refused(encoder, "has attention weights that do not sum to 1")
            yield chosen, weights / np.where(sums > 0, sums, 1), batch.position_of(at).cpu().numpy()


def _refused(encoder: Encoder, what: str) -> InputError:
    kind = encoder.description.model_type
    return InputError(encoder.name, f"{kind} {what}", "Use another model, or attribution")


@contextmanager
def _giving_weights(encoder: Encoder) -> Iterator[None]:
    """Within the block the model computes attention weights where it can; afterwards all is as it was.

    The fused kernels do not compute them. transformers would leave its own hooks behind.
    """
    model: Any = encoder.model
    before = model.config._attn_implementation
    held = {module: (dict(module._forward_hooks), vars(module).get(_HOOKED)) for module in model.modules()}
    try:
        if before != "eager":
            model.set_attn_implementation("eager")
        yield
    finally:
        if before != "eager":
            model.set_attn_implementation(before)
        for module, (hooks, hooked) in held.items():
            for key in [key for key in module._forward_hooks if key not in hooks]:
                del module._forward_hooks[key]
            if hooked is None:
                vars(module).pop(_HOOKED, None)


# ------------------------------------------------------------------------------------------------------ value zeroing


def _zeroed(encoder: Encoder, rows: Rows, at: Position) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """As `_weights`, with one head: how far every token's output turns, in shares of all that turn it."""
    values = _value_projections(encoder)
    with evaluating(encoder.model):
        for chosen in _batches(encoder, rows, rows.lengths * (rows.lengths + 1), equal=True):
            size = int(rows.lengths[chosen[0]])
            most = max(1, BUDGET[encoder.device.type] // size - 1)  # tokens at a time, where a text is long
            parts = [np.arange(size)[start : start + most] for start in range(0, size, most)]
            told = [rows[i] for i in chosen]
            turned = np.concatenate([_turned(encoder, values, told, lost) for lost in parts], -1)
            sums = turned.sum(-1, keepdims=True)
            shares = np.divide(turned, sums, out=np.broadcast_to(np.eye(size), turned.shape).copy(), where=sums > 0)
            yield chosen, shares[:, :, None], encoder.batch(told).position_of(at).cpu().numpy()


def _turned(encoder: Encoder, values: dict[nn.Module, slice], texts: list[Row], lost: np.ndarray) -> np.ndarray:
    """(layer, text, token, lost token) cosine distance of a layer's output with and without the lost one's values.

    texts: of one length. Every one is there in as many copies as tokens are lost and one more. At every layer a copy
    loses the value vectors of its token; what leaves the layer is compared with the last copy, which loses none, and
    all go on as that one.
    """
    size, many = len(texts[0].ids), len(lost) + 1
    batch = encoder.batch([text for text in texts for _ in range(many)])
    here = torch.zeros(many, size, dtype=torch.bool, device=encoder.device)
    here[torch.arange(many - 1), torch.from_numpy(lost)] = True
    turned: list[np.ndarray] = []
    token_first = encoder.description.model_type == "longformer"  # its projections see (token, batch, dim)

    def copies(hidden: Tensor) -> Tensor:
        """(text, copy, token, dim)."""
        if hidden.ndim != 3 or len(hidden) != len(batch.ids) or hidden.shape[1] < size:
            raise _refused(encoder, "has other positions inside than tokens")
        return hidden.unflatten(0, (-1, many))

    def zero(part: slice, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        kept = copies(output.transpose(0, 1) if token_first else output).clone()
        kept[:, :, :size, part] *= ~here[..., None]
        return kept.flatten(0, 1).transpose(0, 1) if token_first else kept.flatten(0, 1)

    def compare(module: nn.Module, args: Any, output: Any) -> Any:
        each = copies(output if isinstance(output, torch.Tensor) else output[0])
        near = torch.cosine_similarity(each[:, :-1, :size].double(), each[:, -1:, :size].double(), dim=-1)
        turned.append(_numbers(1 - near).swapaxes(1, 2))
        same = each[:, -1:].expand_as(each).flatten(0, 1)
        return same if isinstance(output, torch.Tensor) else (same, *output[1:])

    with ExitStack() as hooks:
        for module, part in values.items():
            hooks.callback(module.register_forward_hook(partial(zero, part)).remove)
        for path in {point.module for point in encoder.points[1:]}:
            block = encoder.model.get_submodule(path)
            hooks.callback(block.register_forward_hook(compare).remove)
        encoder.forward(batch)
    return np.stack(turned).clip(min=0)


def _value_projections(encoder: Encoder) -> dict[nn.Module, slice]:
    """The module of every block that makes value vectors, and where they are in what it returns."""
    found: dict[nn.Module, slice] = {}
    for point in encoder.points[1:]:
        block = encoder.model.get_submodule(point.module)
        named = {path.rpartition(".")[2]: module for path, module in block.named_modules()}
        own = [name for name in named if name in _VALUES]
        if point.side != "out" or len(own) + (_FUSED in named) != 1:
            raise _refused(encoder, "keeps its value vectors where they cannot be zeroed")
        if own:
            found[named[own[0]]] = slice(None)
        else:
            width = named[_FUSED].weight.shape[0]
            assert isinstance(width, int)
            found[named[_FUSED]] = slice(width * 2 // 3, None)
    return found
