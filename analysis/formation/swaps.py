"""Which layers' [CLS] carries a property? Hidden states are swapped between the two texts of a minimal pair.

1. `choose_pairs` takes minimal pairs (`analysis.sources.MinimalPairs`) of equal token count, so that their positions
   line up, and whose word with the label was in no text that the probe was trained on.
2. `compute_swapped_vectors` runs both texts of a pair in one batch. At every layer the [CLS] of a text is replaced by
   that of its twin, and the rest of the network runs on up to the probe's layer. The same swap with a text of the
   *same* label is the null: it brings another sentence's [CLS], but not the other label.
3. `measure_swaps` reads all of them with a fixed linear probe, trained on intact vectors of the task: its log-odds.
4. `measure_reliability` lets an independent MLP say whether a swap brings the twin's label (completeness) and leaves
   other properties of the sentence alone (selectivity).
5. `swap_effects` says what share of the twins' difference each swap brings.

Interchange interventions: Vig et al. (2020, arXiv 2004.12265), Geiger et al. (2021, arXiv 2106.02997).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm import tqdm

from clsprobe.analysis.formation.reliability import (
    completeness,
    fit_independent_probe,
    make_length_reader,
    selectivity,
)
from clsprobe.analysis.formation.swap_effects import (
    ABOVE_MAJORITY,
    CLS,
    COMPLETENESS,
    INTACT,
    OTHERS,
    RELIABILITY,
    SAME_LABEL,
    SELECTIVITY,
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
Swap = tuple[str, int]  # its kind, and the layer where it is made


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
    usable &= np.diff(rows.digests().reshape(-1, 2))[:, 0] != 0  # two unknown words may be one token
    table = pd.DataFrame({"length": lengths[:, 0], "lemma": name_clusters(pairs.lemmas, range(len(pairs.lemmas)))})
    table = table[usable]
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
    their log-odds (`measure_swaps`) should name."""
    rows = encoder.tokenize(chosen.texts.ravel().tolist())
    return [np.flatnonzero(rows[i].ids != rows[i + 1].ids) for i in range(0, len(rows), 2)]


def compute_swapped_vectors(encoder: Encoder, chosen: ChosenPairs, layer: int) -> dict[Swap, np.ndarray]:
    """[CLS] of `layer` after every swap: (swap, layer of the swap) -> (pair, 2, dim).

    `INTACT` and `WHOLE` are swaps at `layer`, the others at every layer from 0. Raises InputError where the encoder's
    passes cannot be continued.
    """
    check_changes(encoder)
    (readout,), select = parse_readouts(["cls"]), select_tokens("cls")
    shape = (*chosen.texts.shape, encoder.description.dim)
    keys = [(INTACT, layer), *((swap, below) for swap in (CLS, SAME_LABEL) for below in range(layer + 1))]
    vectors = {key: np.empty(shape, np.float32) for key in keys}
    total = len(keys) * len(chosen.texts)
    with (
        evaluating(encoder.model),
        tqdm(total=total, desc="swapping", unit=" pairs", delay=1, disable=None, leave=False) as bar,
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
    split: SplitTask,
    states: States,
    chosen: ChosenPairs,
    vectors: Mapping[Swap, np.ndarray],
    layer: int,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """The log-odds (nats) of the twin's label against the text's own after every swap, columns `SWAPS`.

    They are those of a linear probe of [CLS] at `layer`, trained on the intact vectors of the task. vectors: of
    `compute_swapped_vectors`. The change from `INTACT` to `WHOLE` is what an attribution to `find_differing_tokens`
    should explain.
    """
    (X, y), (X_dev, y_dev) = (_read_side(split, states, layer, side) for side in ("train", "dev"))
    probe = LogisticProbe().fit_cells(X, y[:, None], dev=(X_dev, y_dev[:, None]), strengths=STRENGTHS)
    first, second = _find_codes(split, chosen)
    keys, tables = _list_texts(split, chosen, layer, seed), []
    for (swap, swap_layer), values in vectors.items():
        nats = probe.log_proba_cells(values.reshape(1, len(keys), -1))[0, 0]
        log_odds = ((nats[:, second] - nats[:, first]).reshape(-1, 2) * (1, -1)).ravel()
        tables.append(keys.assign(layer=swap_layer, swap=swap, log_odds=log_odds))
    return pd.concat(tables, ignore_index=True)[list(SWAPS)]


def measure_reliability(
    split: SplitTask,
    states: States,
    pairs: MinimalPairs,
    chosen: ChosenPairs,
    vectors: Mapping[Swap, np.ndarray],
    layer: int,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Completeness and selectivity (`reliability`) of every swap of [CLS], text by text, columns `RELIABILITY`.

    By an MLP of [CLS] at `layer`, trained on the intact vectors of the task, on its labels, on the other labels that
    `pairs` knows, and on the length of the sentences. vectors: of `compute_swapped_vectors`. For `INTACT` also the
    accuracy of each property, less that of its most frequent class among these texts.
    """
    (X, y), (X_dev, y_dev) = (_read_side(split, states, layer, side) for side in ("train", "dev"))
    train, dev, texts = split.of("train")[0], split.of("dev")[0], chosen.texts.ravel().tolist()
    own, others = split.task.label, _read_other_labels(pairs, train)
    classes = {name: sorted({label for text in train if (label := read(text))}) for name, read in others.items()}
    others = {name: read for name, read in others.items() if len(classes[name]) > 1}

    def encode(name: str, texts: Sequence[str]) -> np.ndarray:
        """(text,) class codes, -1 for a text without a label."""
        code = {label: i for i, label in enumerate(classes[name])}
        return np.array([code.get(others[name](text) or "", -1) for text in texts])

    y_train, y_stop = (
        {own: labels} | {name: encode(name, of) for name in others} for labels, of in ((y, train), (y_dev, dev))
    )
    probe = fit_independent_probe(X, y_train, X_dev, y_stop, seed=seed)
    first, second = _find_codes(split, chosen)
    codes = {own: np.tile([first, second], len(chosen.texts))} | {name: encode(name, texts) for name in others}
    twins = np.eye(len(split.classes))[np.tile([second, first], len(chosen.texts))]
    keys, tables = _list_texts(split, chosen, layer, seed), []

    def add(swap: Swap, measure: str, name: str, values: np.ndarray) -> None:
        place = {"layer": swap[1], "swap": swap[0], "measure": measure, "property": name}
        tables.append(keys.assign(**place, value=values)[codes[name] >= 0])

    intact = probe.probabilities(vectors[INTACT, layer].reshape(1, len(keys), -1))
    for name, (p,) in intact.items():
        most_frequent = np.bincount(codes[name][codes[name] >= 0]).argmax()
        gain = (p.argmax(1) == codes[name]).astype(float) - (codes[name] == most_frequent)
        add((INTACT, layer), ABOVE_MAJORITY, name, gain)
    for swap, values in vectors.items():
        if swap[0] == OTHERS:
            continue
        after = probe.probabilities(values.reshape(1, len(keys), -1))
        add(swap, COMPLETENESS, own, completeness(after[own][0], twins))
        for name in others:
            add(swap, SELECTIVITY, name, selectivity(intact[name][0], after[name][0]))
    return pd.concat(tables, ignore_index=True)[list(RELIABILITY)]


def _list_texts(split: SplitTask, chosen: ChosenPairs, layer: int, seed: int) -> pd.DataFrame:
    """The columns of every text, the two texts of a pair after each other."""
    count = len(chosen.texts)
    return pd.DataFrame(
        {
            "task": split.task.name,
            "read at": layer,
            "seed": seed,
            "pair": np.repeat(np.arange(count), 2),
            "lemma": chosen.lemmas.astype(str).repeat(2),
            "label": chosen.labels * count,
            "twin_label": chosen.labels[::-1] * count,
        }
    )


def _find_codes(split: SplitTask, chosen: ChosenPairs) -> tuple[int, int]:
    """The codes of the two labels of the pairs."""
    classes = split.classes.tolist()
    return classes.index(chosen.labels[0]), classes.index(chosen.labels[1])


def _read_side(split: SplitTask, states: States, layer: int, side: str) -> tuple[np.ndarray, np.ndarray]:
    rows = split.rows_of(side)
    return features(states, [(layer, "cls")], split.state_rows[rows]), split.y[rows]


def _read_other_labels(pairs: MinimalPairs, train: Sequence[str]) -> dict[str, Callable[[str], str | None]]:
    """Other property -> its label of a text, None where it does not apply: the third of `train`, by words, to which the
    text belongs ("length"), and what the source of the pairs knows."""
    read_length = make_length_reader(train)
    readers: dict[str, Callable[[str], str | None]] = {"length": lambda text: str(read_length(text))}
    return readers | {name: labels.get for name, labels in pairs.other_labels.items()}
