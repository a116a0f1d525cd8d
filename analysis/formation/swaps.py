"""Which layers' [CLS] carries a property? Hidden states are swapped between the two texts of a minimal pair.

1. `choose_pairs` takes minimal pairs (`analysis.sources.MinimalPairs`) of equal token count, so that their positions
   line up, and whose word with the label was in no text that the probe was trained on.
2. `compute_swapped_vectors` runs both texts of a pair in one batch. At every layer the [CLS] of a text is replaced by
   that of its twin, and the rest of the network runs on up to the probe's layer. The same swap with a text of the
   *same* label is the null: it brings another sentence's [CLS], but not the other label.
3. `measure_swaps` reads all of them with a fixed linear probe, trained on intact vectors: its log-odds.
4. `analysis.formation.swap_effects` says what share of the twins' difference each swap brings.

Interchange interventions: Vig et al. (2020, arXiv 2004.12265), Geiger et al. (2021, arXiv 2106.02997).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm import tqdm

from clsprobe.analysis.formation.swap_effects import (
    CLS,
    INTACT,
    OTHERS,
    SAME_LABEL,
    SWAPS,
    WHOLE,
    name_clusters,
)
from clsprobe.analysis.sources import MinimalPairs
from clsprobe.analysis.sweep.grid import SplitTask, features
from clsprobe.probes.base import STRENGTHS
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.tap import evaluating
from clsprobe.probes.extraction.extractor import BUDGET
from clsprobe.probes.extraction.readouts import parse_readouts
from clsprobe.probes.extraction.states import States
from clsprobe.probes.interventions.changes import check_changes, select_tokens
from clsprobe.probes.interventions.passes import record_passes
from clsprobe.probes.linear import LogisticProbe

if TYPE_CHECKING:
    from torch import Tensor

MOST = 200  # pairs that are swapped


@dataclass(frozen=True, eq=False)
class ChosenPairs:
    """Pairs that can be swapped.

    texts: (pair, 2), in the order of `labels`. lemmas: (pair,), see `MinimalPairs`. partners: (pair,) the pair whose
    text of the same label, of another lemma, serves as the null. batches: pairs whose texts all have one token count.
    """

    labels: tuple[str, str]
    texts: np.ndarray
    lemmas: np.ndarray
    partners: np.ndarray
    batches: list[np.ndarray]


def choose_pairs(
    encoder: Encoder,
    pairs: MinimalPairs,
    trained: Iterable[str],
    *,
    max_length: int | None = None,
    most: int = MOST,
) -> ChosenPairs:
    """Up to `most` pairs of equal token count, spread over all lemmas that carry the label in no text of `trained`.

    max_length: longest text in tokens, by default the encoder's limit. Pairs that find no text of the same label, token
    count and another lemma are left out.
    """
    trained_lemmas = {pairs.carriers[text] for text in trained if text in pairs.carriers}
    rows = encoder.tokenize(list(chain.from_iterable(pairs.texts)))
    lengths = rows.full_lengths.reshape(-1, 2)
    usable = (lengths[:, 0] == lengths[:, 1]) & (lengths[:, 0] <= (max_length or encoder.description.max_length))
    usable &= [not lemma or lemma not in trained_lemmas for lemma in pairs.lemmas]
    table = pd.DataFrame({"length": lengths[:, 0], "lemma": name_clusters(pairs.lemmas)})[usable]
    table = table.iloc[np.argsort(table.groupby("lemma").cumcount(), kind="stable")[:most]]
    chosen, partners, batches = list[int](), list[int](), list[np.ndarray]()
    for length, group in table.sort_values("lemma", kind="stable").groupby("length"):
        size = max(2, BUDGET[encoder.device.type] // (2 * int(length)))
        for start in range(0, len(group), size):
            batch = _balance_lemmas(group.lemma.iloc[start : start + size])
            if batch.empty:
                continue
            indices = len(chosen) + np.arange(len(batch))
            chosen += batch.index.tolist()
            partners += np.roll(indices, -int(batch.value_counts().max())).tolist()
            batches.append(indices)
    texts = np.array(pairs.texts, object).reshape(-1, 2)[chosen]
    return ChosenPairs(pairs.labels, texts, np.array(pairs.lemmas, object)[chosen], np.array(partners, int), batches)


def _balance_lemmas(lemmas: pd.Series) -> pd.Series:
    """Sorted lemmas, the most frequent shortened to half of them: rotated by its count, none meets itself."""
    counts = lemmas.value_counts()
    surplus = 2 * int(counts.max()) - len(lemmas)
    return lemmas.drop(lemmas.index[lemmas == counts.idxmax()][:surplus]) if surplus > 0 else lemmas


def find_differing_tokens(encoder: Encoder, chosen: ChosenPairs) -> list[np.ndarray]:
    """For every pair, the indices of the tokens in which its two texts differ: what an attribution of the difference of
    their log-odds (swap `WHOLE` less `INTACT` in the table of `measure_swaps`) should name."""
    rows = encoder.tokenize(chosen.texts.ravel().tolist())
    return [np.flatnonzero(rows[i].ids != rows[i + 1].ids) for i in range(0, len(rows), 2)]


def compute_swapped_vectors(
    encoder: Encoder, chosen: ChosenPairs, layer: int
) -> dict[tuple[str, int], np.ndarray]:
    """[CLS] of `layer` after every swap: (swap, layer of the swap) -> (pair, 2, dim).

    `INTACT` and `WHOLE` are swaps at `layer`, the others at every layer from 0. Raises InputError where the encoder's
    passes cannot be continued.
    """
    check_changes(encoder)
    (readout,), select = parse_readouts(["cls"]), select_tokens("cls")
    shape = (*chosen.texts.shape, encoder.description.dim)
    keys = [(INTACT, layer), *((swap, below) for swap in (CLS, SAME_LABEL) for below in range(layer + 1))]
    vectors = {key: np.empty(shape, np.float32) for key in keys}
    with (
        evaluating(encoder.model),
        tqdm(total=len(keys) * len(chosen.texts), desc="swapping", unit=" pairs", delay=1, disable=None, leave=False) as bar,
    ):
        for pairs in chosen.batches:
            rows = encoder.tokenize([text for side in (0, 1) for text in chosen.texts[pairs, side]])
            with record_passes(encoder, layer) as record:
                recorded = record(encoder.batch(list(rows)))
            sources = _find_sources(pairs, chosen.partners[pairs])
            for swap, below in keys:
                hidden = recorded.hidden[below]
                if swap != INTACT:
                    hidden = _swap_rows(hidden, select(recorded.batch), sources[swap])
                read = readout.read(recorded.run(below, hidden, layer), recorded.batch)
                vectors[swap, below][pairs] = read.float().cpu().numpy().reshape(2, len(pairs), -1).swapaxes(0, 1)
                bar.update(len(pairs))
    vectors[WHOLE, layer] = vectors[INTACT, layer][:, ::-1]
    for below in range(layer + 1):  # the twin with the [CLS] of the text
        vectors[OTHERS, below] = vectors[CLS, below][:, ::-1]
    return vectors


def _find_sources(pairs: np.ndarray, partners: np.ndarray) -> dict[str, np.ndarray]:
    """Swap -> the row of a batch, first texts before second ones, from which each row takes its [CLS]."""
    count = len(pairs)
    rows = np.arange(2 * count)
    return {CLS: np.roll(rows, count), SAME_LABEL: np.concatenate([partners, partners + count]) - pairs[0]}


def _swap_rows(hidden: Tensor, selected: Tensor, sources: np.ndarray) -> Tensor:
    """Hidden states (row, token, dim) in which every row has the selected tokens (row, token) of its source."""
    import torch

    swapped = hidden[torch.from_numpy(sources).to(hidden.device)]
    return torch.where(selected[..., None], swapped, hidden)


def measure_swaps(
    encoder: Encoder, split: SplitTask, states: States, chosen: ChosenPairs, layer: int, *, seed: int = 0
) -> pd.DataFrame:
    """The log-odds (nats) of the twin's label against the text's own after every swap, columns `SWAPS`.

    They are those of a linear probe of [CLS] at `layer`, trained on the intact vectors of the task. "layer" is that of
    the swap, "read at" that of the probe.
    """
    vectors = compute_swapped_vectors(encoder, chosen, layer)
    X, X_dev = (features(states, [(layer, "cls")], split.state_rows[split.rows_of(side)]) for side in ("train", "dev"))
    y, y_dev = (split.y[split.rows_of(side), None] for side in ("train", "dev"))
    probe = LogisticProbe().fit_cells(X, y, dev=(X_dev, y_dev), strengths=STRENGTHS)
    first, second = (split.classes.tolist().index(label) for label in chosen.labels)
    count, tables = len(chosen.texts), []
    for (swap, below), values in vectors.items():
        nats = probe.log_proba_cells(values.reshape(1, 2 * count, -1))[0, 0]
        log_odds = (nats[:, second] - nats[:, first]).reshape(count, 2) * (1, -1)
        for side in (0, 1):
            key = {"task": split.task.name, "layer": below, "swap": swap, "read at": layer, "seed": seed}
            labels = {"label": chosen.labels[side], "twin_label": chosen.labels[1 - side]}
            rows = {"pair": np.arange(count), "lemma": chosen.lemmas.astype(str), **labels, "log_odds": log_odds[:, side]}
            tables.append(pd.DataFrame(key | rows))
    return pd.concat(tables, ignore_index=True)[list(SWAPS)]
