"""How [CLS] learns: the layer x readout grid of probes at several moments of a training, or over several checkpoints.

1. `probed`: one moment. Every text once through the encoder as it is then, and a linear probe on every cell.
2. `moved`: how far every cell has gone from where it started, as unbiased CKA over the test texts (1: not at all, but
   for turning and scaling).
3. `received`: how much of the attention of a text's words goes into [CLS], layer by layer.
4. `same_kind` refuses checkpoints of different architectures before any of them is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis import stats
from probes.base import STRENGTHS, predict_each
from probes.encoder import Description, Encoder
from probes.errors import InputError
from probes.extract import Extractor, States, evaluating
from probes.linear import LogisticProbe

ATTENDED = 256  # texts over which attention is averaged


def probed(
    encoder: Encoder,
    texts: Sequence[str],
    y: np.ndarray,
    side: np.ndarray,
    readouts: Sequence[str],
    *,
    layers: Sequence[int],
    max_length: int | None = None,
) -> tuple[States, pd.DataFrame]:
    """The cells of an encoder as it is now, and the test accuracy of a logistic probe on each of them.

    y: (text,) codes. side: (text,) "train" | "dev" | "test". The table has the columns layer, readout, value, low, high
    (Wilson's 95 %).
    """
    extract = Extractor(encoder, list(readouts), layers=layers, max_length=max_length, long_rows="truncate")
    states = extract(texts)
    at, rows = states.rows(texts), {name: np.flatnonzero(side == name) for name in ("train", "dev", "test")}
    values = np.stack([states.cell(*cell)[at] for cell in states.cells])
    train, dev, test = (rows[name] for name in ("train", "dev", "test"))
    told = predict_each(
        LogisticProbe(),
        values[:, train],
        y[train, None],
        values[:, test],
        dev=(values[:, dev], y[dev, None]),
        strengths=STRENGTHS,
    )
    right = (told.codes[:, 0] == y[test]).mean(1)
    low, high = stats.wilson(right, len(test))
    table = pd.DataFrame(states.cells, columns=["layer", "readout"])
    return states, table.assign(value=right, low=low, high=high)


def moved(start: States, now: States, texts: Sequence[str]) -> pd.DataFrame:
    """Columns layer, readout, value: the CKA of every cell with what it was at the start, over `texts`.

    NaN where a cell is one vector for all texts, as [CLS] at layer 0.
    """
    from analysis.geometry import cka

    found = []
    for cell in now.cells:
        before, after = (states.cell(*cell)[states.rows(texts)] for states in (start, now))
        found.append((*cell, float(cka([before, after])[0, 1])))
    return pd.DataFrame(found, columns=["layer", "readout", "value"])


def received(encoder: Encoder, texts: Sequence[str], max_length: int | None = None) -> pd.DataFrame:
    """Columns layer, value: the share of the attention of content tokens that goes into [CLS], mean over heads, tokens
    and texts; empty where the model has no [CLS] or gives no attention weights. Layer k is block k.
    """
    import torch

    model = deepcopy(encoder.model)  # asking for attention leaves hooks behind
    try:
        model.set_attn_implementation("eager")
    except (AttributeError, ValueError):
        return pd.DataFrame({"layer": [], "value": []})
    own, total, tokens = replace(encoder, model=model), np.zeros(0), 0
    rows = own.tokenize([texts[i] for i in range(min(ATTENDED, len(texts)))], max_length)
    for start in range(0, len(rows), 32):
        batch = own.batch(rows[start : start + 32])
        first = batch.real & batch.special & (batch.ids == batch.cls_id)
        with evaluating(model), torch.no_grad():
            told = model(input_ids=batch.ids, attention_mask=batch.real.long(), output_attentions=True)
        weights = getattr(told, "attentions", None)
        if not weights or not bool(first.any(1).all()):
            return pd.DataFrame({"layer": [], "value": []})
        into = torch.stack([(each.float().mean(1) * first[:, None]).sum(2)[batch.content].sum() for each in weights])
        total = total + into.double().cpu().numpy() if len(total) else into.double().cpu().numpy()
        tokens += int(batch.content.sum())
    return pd.DataFrame({"layer": np.arange(1, len(total) + 1), "value": total / max(tokens, 1)})


def same_kind(described: Sequence[Description]) -> None:
    """Raise InputError where models are not checkpoints of one: another architecture, depth, width, or vocabulary."""
    first = described[0]
    for other in described[1:]:
        for what, of in (
            ("architecture", lambda one: one.model_type),
            ("number of layers", lambda one: one.layers),
            ("width", lambda one: one.dim),
            ("vocabulary", lambda one: one.config.get("vocab_size")),
        ):
            if of(first) != of(other):
                told = f"{other.name} has another {what} than {first.name} ({of(other)}, {of(first)})"
                raise InputError("--checkpoints", told, "Name checkpoints of one model")
