"""Attention from and to [CLS]: attention weights, rollout, value zeroing.

1. `measure_attention`: the weights per layer and head, from [CLS] to every token (out of it) and from every token to
   [CLS] (into it). `summarise_heads` averages them.
2. `measure_mixing`: one score per token and layer, the share of the token in [CLS]; the scores of a text sum to 1.
       attention              the weights, as a mean over heads
       rollout                weights and residual stream in equal parts, multiplied up to the layer (Abnar & Zuidema
                              2020)
       value_zeroing          the cosine distance by which a layer's output changes if the token's value vectors are 0
                              (Mohebbi et al. 2023)
       value_zeroing_rollout  the same, multiplied up to the layer; it includes the residual stream already
   The tables have the columns of `attribution.attribute`, so that `attribution.measure_agreement` compares them.

Attention weights are correlations: they do not show what a layer uses, only an intervention does. Some models have no
usable weights and raise InputError: FNet and YOSO have none, Longformer's have another shape, Funnel's and CANINE's
belong to pooled positions, SqueezeBERT's do not sum to 1. In the local layers of ModernBERT, [CLS] does not see distant
tokens: their weights are 0. Value zeroing works for Longformer.
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
from clsprobe.probes.extraction.extractor import BUDGET, Extractor, plan_batches
from clsprobe.probes.extraction.readouts import Position

if TYPE_CHECKING:
    from torch import Tensor, nn

METHODS = ("attention", "rollout", "value_zeroing", "value_zeroing_rollout")
_VALUE_NAMES = {"value", "value_proj", "v_proj", "v_lin", "v"}  # names of the projection to value vectors
_HOOKED = "_output_capturing_hooks_installed"  # set by transformers once its hooks are installed
_FUSED = "Wqkv"  # queries, keys and values in one projection, in this order
_Weights = tuple[np.ndarray, np.ndarray, np.ndarray]


def measure_attention(
    encoder: Encoder, texts: Sequence[str], readout: str = "cls", *, max_length: int | None = None
) -> pd.DataFrame:
    """The attention weights between one position and every token, per layer and head.

    Columns: readout; text, layer (1 is the first block), head, token_index, token, special; own (whether the token is
    the position itself); out_of, what the position reads from the token (sums to 1 over the tokens); into, what the
    token reads from the position. readout: the name of a position. Texts are truncated to `max_length` tokens, by
    default the encoder's limit. Raises InputError for an encoder without attention weights, and for a readout that is
    not a position.
    """
    position, rows = _find_position(encoder, readout), _tokenize(encoder, texts, max_length)
    parts: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}
    for batch, weights, positions in _attention_weights(encoder, rows, position):
        for i, text in enumerate(batch):
            n, index = rows.lengths[text], positions[i]
            m = weights[:, i, :, :n, :n]  # (layer, head, token, token)
            missing = np.full((*m.shape[:2], n), np.nan)
            parts[int(text)] = (m[:, :, index], m[:, :, :, index], index) if index >= 0 else (missing, missing, -1)
    columns = pd.DataFrame(token_columns(encoder, rows))
    layers, count = next(iter(parts.values()))[0].shape[:2] if parts else (0, 0)
    ends = np.cumsum(rows.lengths)
    tables = []
    for text, end in enumerate(ends):
        out_of, into, index = parts[text]
        tokens = columns.iloc[end - rows.lengths[text] : end]
        table = pd.concat([tokens] * (layers * count), ignore_index=True)
        table.insert(1, "layer", np.repeat(np.arange(1, layers + 1), count * len(tokens)))
        table.insert(2, "head", np.tile(np.repeat(np.arange(count), len(tokens)), layers))
        own = table["token_index"] == index
        tables.append(table.assign(own=own, out_of=out_of.ravel(), into=into.ravel(), readout=position.name))
    empty = columns.assign(layer=0, head=0, own=False, out_of=0.0, into=0.0, readout=position.name).head(0)
    return pd.concat(tables, ignore_index=True) if tables else empty


def summarise_heads(table: pd.DataFrame) -> pd.DataFrame:
    """The mean attention of every head, by kind of token. table: of `measure_attention`.

    Columns: layer, head; direction; of (own, special for the other special tokens, content); value. For direction
    "out of", the share of the position's attention that goes to such tokens (the three sum to 1); for "into", the mean
    weight that such a token gives to the position. Means over texts.
    """
    kind = np.where(table["own"], "own", np.where(table["special"], "special", "content"))
    keys = ["text", "layer", "head", "of"]
    per_text = (
        table.assign(of=kind)
        .groupby(keys, observed=True)[["out_of", "into"]]
        .agg({"out_of": partial(pd.Series.sum, min_count=1), "into": "mean"})
    )
    mean = per_text.groupby(keys[1:]).mean().rename(columns={"out_of": "out of"})
    long = mean.rename_axis(columns="direction").stack().rename("value").reset_index()
    return long[["layer", "head", "direction", "of", "value"]]


def measure_mixing(
    encoder: Encoder,
    texts: Sequence[str],
    method: str = "rollout",
    readout: str = "cls",
    *,
    max_length: int | None = None,
) -> pd.DataFrame:
    """The share of every token in one position, layer by layer; the scores of a text sum to 1 in each layer.

    Columns: method, layer (1 is the first block), readout; text, token_index, token, special; score. NaN where a text
    lacks the position. Value zeroing runs a text once per token. Texts are truncated to `max_length` tokens, by default
    the encoder's limit. Raises InputError for an unknown method, a readout that is not a position, and an encoder that
    does not support the method.
    """
    if method not in METHODS:
        raise unknown("--method", "method", method, METHODS)
    position, rows = _find_position(encoder, readout), _tokenize(encoder, texts, max_length)
    mixed: dict[int, np.ndarray] = {}  # text -> (layer, token)
    weigh = _attention_weights if method in METHODS[:2] else _zero_values
    for batch, weights, positions in weigh(encoder, rows, position):
        mixing = weights.mean(2)  # (layer, text, token, token), over heads
        if method == "rollout":
            mixing = (mixing + np.eye(mixing.shape[-1])) / 2
        if method.endswith("rollout"):
            for layer in range(1, len(mixing)):
                mixing[layer] = mixing[layer] @ mixing[layer - 1]
        for i, text in enumerate(batch):
            n, index = rows.lengths[text], positions[i]
            mixed[int(text)] = mixing[:, i, index, :n] if index >= 0 else np.full((len(mixing), n), np.nan)
    columns = pd.DataFrame({"method": method, "layer": 0, "readout": position.name} | token_columns(encoder, rows))
    scores = np.concatenate([mixed[text] for text in range(len(rows))], 1) if mixed else np.zeros((0, 0))
    tables = [columns.assign(layer=layer, score=score) for layer, score in enumerate(scores, 1)]
    return pd.concat(tables, ignore_index=True) if tables else columns.assign(score=0.0).head(0)


def measure_inflow(encoder: Encoder, texts: Sequence[str], *, max_length: int | None = None) -> dict[int, float]:
    """Layer (1 is the first block) -> the share of content tokens' attention that goes into [CLS].

    Mean over heads, tokens and texts. Raises InputError like `measure_attention`.
    """
    position, rows = _find_position(encoder, "cls"), _tokenize(encoder, texts, max_length)
    total, tokens = np.zeros(len(encoder.points) - 1), 0
    for batch, weights, positions in _attention_weights(encoder, rows, position):
        for i, text in enumerate(batch):
            content = np.flatnonzero(~rows[int(text)].special)
            total += weights[:, i].mean(1)[:, content, positions[i]].sum(1)
            tokens += len(content)
    return dict(enumerate((total / max(tokens, 1)).tolist(), 1))


def _find_position(encoder: Encoder, readout: str) -> Position:
    (position,) = Extractor(encoder, [readout], layers="all").readouts
    if not isinstance(position, Position):
        raise InputError("--readouts", f"'{position.name}' is no position of its own", "Use cls, sep or token[1]")
    return position


def _tokenize(encoder: Encoder, texts: Sequence[str], max_length: int | None) -> Rows:
    return encoder.tokenize(texts, max_length or encoder.description.max_length)


def _batches(encoder: Encoder, rows: Rows, costs: np.ndarray, *, equal: bool) -> Iterator[np.ndarray]:
    for kind in (False, True):  # single texts and pairs apart
        same_kind = np.flatnonzero(rows.paired == kind)
        for part in plan_batches(costs[same_kind], BUDGET[encoder.device.type], equal=equal):
            yield same_kind[part]


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


# ----------------------------------------------------------------------------------------------------------- weights


def _attention_weights(encoder: Encoder, rows: Rows, position: Position) -> Iterator[_Weights]:
    """Batches of text indices (text,), attention weights (layer, text, head, token, token) whose rows sum to 1, and the
    token index of the position (text,), negative where a text lacks it."""
    equal = bool(encoder.adapter.leaks or encoder.checked.get("leaks"))
    tolerance = 1e-3 if encoder.dtype == torch.float32 else 0.05
    with evaluating(encoder.model), _eager_attention(encoder):
        for indices in _batches(encoder, rows, rows.lengths, equal=equal):
            batch = encoder.batch([rows[i] for i in indices])
            attentions = getattr(encoder.forward(batch, attentions=True), "attentions", None) or ()
            size, layers = batch.ids.shape[1], len(encoder.points) - 1
            if len(attentions) == 0 or any(layer is None for layer in attentions):
                raise _make_error(encoder, "gives no attention weights")
            if len(attentions) != layers or any(a.ndim != 4 or a.shape[2:] != (size, size) for a in attentions):
                raise _make_error(encoder, "has attention weights of another form than (token, token) for every layer")
            weights = np.stack([_to_numpy(layer) for layer in attentions])
            real = batch.real.cpu().numpy()
            weights *= real[:, None, None]  # no attention from padding
            sums = weights.sum(-1, keepdims=True)
            if not (np.abs(sums[..., 0] - 1).max((0, 2))[real] <= tolerance).all():
                raise _make_error(encoder, "has attention weights that do not sum to 1")
            yield indices, weights / np.where(sums > 0, sums, 1), batch.position_of(position).cpu().numpy()


def _make_error(encoder: Encoder, what: str) -> InputError:
    kind = encoder.description.model_type
    return InputError(encoder.name, f"{kind} {what}", "Use another model, or attribution")


@contextmanager
def _eager_attention(encoder: Encoder) -> Iterator[None]:
    """Within the block, the model uses eager attention, since fused kernels compute no weights.

    Restores the implementation afterwards, and removes the hooks that transformers leaves behind.
    """
    model: Any = encoder.model
    before = model.config._attn_implementation
    hooks_before = {module: (dict(module._forward_hooks), vars(module).get(_HOOKED)) for module in model.modules()}
    try:
        if before != "eager":
            model.set_attn_implementation("eager")
        yield
    finally:
        if before != "eager":
            model.set_attn_implementation(before)
        for module, (hooks, flag) in hooks_before.items():
            for key in [key for key in module._forward_hooks if key not in hooks]:
                del module._forward_hooks[key]
            if flag is None:
                vars(module).pop(_HOOKED, None)


# ------------------------------------------------------------------------------------------------------ value zeroing


def _zero_values(encoder: Encoder, rows: Rows, position: Position) -> Iterator[_Weights]:
    """Like `_attention_weights`, with one head: the share of every token in the change of another token's output."""
    values = _value_projections(encoder)
    with evaluating(encoder.model):
        for indices in _batches(encoder, rows, rows.lengths * (rows.lengths + 1), equal=True):
            size = int(rows.lengths[indices[0]])
            limit = max(1, BUDGET[encoder.device.type] // size - 1)  # tokens of a long text zeroed at once
            parts = [np.arange(size)[start : start + limit] for start in range(0, size, limit)]
            batch = [rows[i] for i in indices]
            turns = np.concatenate([_measure_turns(encoder, values, batch, part) for part in parts], -1)
            sums = turns.sum(-1, keepdims=True)
            shares = np.divide(turns, sums, out=np.broadcast_to(np.eye(size), turns.shape).copy(), where=sums > 0)
            yield indices, shares[:, :, None], encoder.batch(batch).position_of(position).cpu().numpy()


def _measure_turns(
    encoder: Encoder, values: dict[nn.Module, slice], texts: list[Row], tokens: np.ndarray
) -> np.ndarray:
    """(layer, text, token, zeroed token) cosine distance of a layer's output with and without a token's value vectors.

    texts: of one length. Each is copied once per zeroed token and once more. In every layer a copy loses the value
    vectors of its token; the output is compared with the last, intact copy, which is then the input of the next layer
    for all copies.
    """
    size, copies = len(texts[0].ids), len(tokens) + 1
    batch = encoder.batch([text for text in texts for _ in range(copies)])
    zeroed = torch.zeros(copies, size, dtype=torch.bool, device=encoder.device)
    zeroed[torch.arange(copies - 1), torch.from_numpy(tokens)] = True
    turns: list[np.ndarray] = []
    token_first = encoder.description.model_type == "longformer"  # its projections see (token, batch, dim)

    def split_copies(hidden: Tensor) -> Tensor:
        """(text, copy, token, dim)."""
        if hidden.ndim != 3 or len(hidden) != len(batch.ids) or hidden.shape[1] < size:
            raise _make_error(encoder, "has other positions inside than tokens")
        return hidden.unflatten(0, (-1, copies))

    def zero(part: slice, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        values = split_copies(output.transpose(0, 1) if token_first else output).clone()
        values[:, :, :size, part] *= ~zeroed[..., None]
        return values.flatten(0, 1).transpose(0, 1) if token_first else values.flatten(0, 1)

    def compare(module: nn.Module, args: Any, output: Any) -> Any:
        states = split_copies(output if isinstance(output, torch.Tensor) else output[0])
        cosine = torch.cosine_similarity(states[:, :-1, :size].double(), states[:, -1:, :size].double(), dim=-1)
        turns.append(_to_numpy(1 - cosine).swapaxes(1, 2))
        output_states = states[:, -1:].expand_as(states).flatten(0, 1)
        return output_states if isinstance(output, torch.Tensor) else (output_states, *output[1:])

    with ExitStack() as hooks:
        for module, part in values.items():
            hooks.callback(module.register_forward_hook(partial(zero, part)).remove)
        for path in {point.module for point in encoder.points[1:]}:
            block = encoder.model.get_submodule(path)
            hooks.callback(block.register_forward_hook(compare).remove)
        encoder.forward(batch)
    return np.stack(turns).clip(min=0)


def _value_projections(encoder: Encoder) -> dict[nn.Module, slice]:
    """The module that computes the value vectors of every block, and their slice of its output."""
    projections: dict[nn.Module, slice] = {}
    for point in encoder.points[1:]:
        block = encoder.model.get_submodule(point.module)
        modules = {path.rpartition(".")[2]: module for path, module in block.named_modules()}
        names = [name for name in modules if name in _VALUE_NAMES]
        if point.side != "out" or len(names) + (_FUSED in modules) != 1:
            raise _make_error(encoder, "keeps its value vectors where they cannot be zeroed")
        if names:
            projections[modules[names[0]]] = slice(None)
        else:
            width = modules[_FUSED].weight.shape[0]
            assert isinstance(width, int)
            projections[modules[_FUSED]] = slice(width * 2 // 3, None)
    return projections
