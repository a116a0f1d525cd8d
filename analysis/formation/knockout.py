"""In which layers does [CLS] receive the sentence? Attention edges are cut, and a fixed probe shows the loss.

1. A `Window` is a kind of edges and the layers, from `first` to `last`, in which they are cut.
2. `compute_cut_vectors` runs the intact texts once and then, for every window, continues from its first layer: windows
   with the same first layer share the cut pass up to their own last layer.
3. `predict_changed` applies a *fixed* probe to the same test texts after every cut. It is trained once, on the intact
   vectors of train; dev chooses its strength.
4. `compute_effects` gives the change of its accuracy, with the interval of a paired difference over these texts.
5. `measure_agreement` compares the profile of these changes over the layers with profiles of attention and attribution.

Attention knockout: Geva et al. (2023); there the last token of a decoder was cut off, here [CLS].
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations, groupby
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.base import BaseEstimator
from tqdm import tqdm

from clsprobe.analysis import stats
from clsprobe.analysis.sweep.grid import SplitTask, features
from clsprobe.probes.base import STRENGTHS, predict_each
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.extraction.readouts import parse_readouts
from clsprobe.probes.extraction.states import States
from clsprobe.probes.interventions.changes import knockout
from clsprobe.probes.interventions.passes import RecordedPass
from clsprobe.probes.interventions.replaying import replay

if TYPE_CHECKING:
    from torch import Tensor

K = TypeVar("K", bound=Hashable)

Cell = tuple[int, str]  # layer, readout


class Window(NamedTuple):
    """Edges, as `probes.interventions.changes.knockout` names them, and the first and last block where they are cut."""

    edges: str
    first: int
    last: int


INTACT = Window("none", 0, 0)
EVERYTHING = "rest->cls"  # the edges into [CLS] from all other tokens
KEY = [*Window._fields, "layer", "readout"]  # a cut, and the cell that is read
PREDICTIONS = ("task", *KEY, "seed", "row", "label", "predicted")


def list_windows(edges: Iterable[str], last: int) -> list[Window]:
    """Every run of consecutive layers within 1 to `last`, for every kind of edges."""
    return [Window(kind, a, b) for kind in edges for a in range(1, last + 1) for b in range(a, last + 1)]


def compute_cut_vectors(
    encoder: Encoder,
    texts: Sequence[str],
    cuts: Sequence[Window],
    cells: Sequence[Cell],
    *,
    max_length: int | None = None,
) -> dict[Window, dict[Cell, np.ndarray]]:
    """For every window, and for `INTACT`, the vectors (text, dim) of the cells at or above its last layer.

    For a cell below, the window is a shorter one. Raises InputError if the encoder's attention cannot be masked.
    """
    until, dim = max(layer for layer, _ in cells), encoder.description.dim
    vectors_by_cut = {
        cut: {
            cell: np.empty((len(texts), parse_readouts([cell[1]])[0].width(dim)), np.float32)
            for cell in cells
            if cell[0] >= cut.last
        }
        for cut in (INTACT, *cuts)
    }
    ordered = sorted(cut for cut in vectors_by_cut if cut.last and vectors_by_cut[cut])
    total = len(texts) * (1 + len(ordered))
    with (
        replay(encoder, texts, until, max_length=max_length) as chunks,
        tqdm(total=total, desc="cutting", unit=" passes", delay=1, disable=None, leave=False) as bar,
    ):
        for chunk in chunks:
            count = sum(map(len, chunk.rows))
            for rows, recorded in zip(chunk.rows, chunk.recorded, strict=True):
                for cell, vectors in vectors_by_cut[INTACT].items():
                    fill_cells({cell: vectors}, rows, recorded, cell[0], recorded.hidden[cell[0]])
            bar.update(count)
            for (edges, first), together in groupby(ordered, lambda cut: (cut.edges, cut.first)):
                layer, hidden = first - 1, [recorded.hidden[first - 1] for recorded in chunk.recorded]
                for cut in together:
                    with knockout(encoder, edges, range(first, cut.last + 1)):
                        cut_on = partial(_cut_further, vectors_by_cut[cut], chunk.rows, hidden, layer, cut.last)
                        hidden = chunk.map(cut_on)
                    layer = cut.last
                    bar.update(count)
    return vectors_by_cut


def _cut_further(
    vectors: dict[Cell, np.ndarray],
    rows: list[np.ndarray],
    hidden_by_batch: list[Tensor],
    layer: int,
    last: int,
    number: int,
    recorded: RecordedPass,
) -> Tensor:
    """Run a batch on to layer `last` under the active cut, fill its cells, and return the hidden states there."""
    hidden = recorded.run(layer, hidden_by_batch[number], last)
    fill_cells(vectors, rows[number], recorded, last, hidden)
    return hidden


def fill_cells(
    vectors: dict[Cell, np.ndarray], text_indices: np.ndarray, recorded: RecordedPass, layer: int, hidden: Tensor
) -> None:
    """Continue a batch from `hidden` at `layer`, and write the readout of every cell of `vectors` at `text_indices`."""
    for target, name in sorted(vectors):
        hidden = recorded.run(layer, hidden, target)
        layer = target
        (readout,) = parse_readouts([name])
        vectors[target, name][text_indices] = readout.read(hidden, recorded.batch).float().cpu().numpy()


def predict_changed(
    probe: BaseEstimator, split: SplitTask, states: States, cell: Cell, changed: Mapping[K, np.ndarray]
) -> dict[K, np.ndarray]:
    """Predictions of a probe, fitted on the intact vectors of a cell, for changed vectors.

    changed: name -> (test text, width), in the order of ``split.rows_of("test")``. Returns name -> (test text,) codes.
    Raises RuntimeError if the probe cannot be fitted.
    """
    X, X_dev = (features(states, [cell], split.state_rows[split.rows_of(side)]) for side in ("train", "dev"))
    y, y_dev = (split.y[split.rows_of(side), None] for side in ("train", "dev"))
    X_test = np.concatenate([*changed.values()])[None]
    predictions = predict_each(probe, X, y, X_test, dev=(X_dev, y_dev), strengths=STRENGTHS)
    if predictions.failures:
        raise RuntimeError(f"the probe cannot be fitted on layer {cell[0]}, {cell[1]}: {predictions.failures[0]}")
    return dict(zip(changed, np.split(predictions.codes[0, 0], len(changed)), strict=True))


def predict_cut(
    encoder: Encoder,
    split: SplitTask,
    states: States,
    probe: BaseEstimator,
    cells: Sequence[Cell],
    cuts: Sequence[Window],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Predictions of every cell's fixed probe for every test text after every cut (columns `PREDICTIONS`).

    `INTACT` names the intact passes. A cell has the windows that end at or below its layer.
    """
    test = split.rows_of("test")
    texts = [split.task.texts[i] for i in split.row_indices[test]]
    vectors_by_cut = compute_cut_vectors(encoder, texts, cuts, cells, max_length=states.source["max_length"])
    parts = []
    for cell in cells:
        changed = {cut: vectors[cell] for cut, vectors in vectors_by_cut.items() if cell in vectors}
        for cut, codes in predict_changed(probe, split, states, cell, changed).items():
            key = dict(zip(KEY, (*cut, *cell), strict=True))
            rows = {
                "row": split.row_indices[test],
                "label": split.classes[split.y[test]],
                "predicted": split.classes[codes],
            }
            parts.append(pd.DataFrame({"task": split.task.name, **key, "seed": seed, **rows}))
    return pd.concat(parts, ignore_index=True)[list(PREDICTIONS)]


def compute_effects(predictions: pd.DataFrame) -> pd.DataFrame:
    """Accuracy after every cut, and its change with a 95 % interval over the same test texts.

    Columns task, edges, first, last, layer, readout, value, effect, low, high; the intact passes come first.
    """
    table = []
    for (task, layer, readout), rows in predictions.groupby(["task", "layer", "readout"], observed=True, sort=False):
        intact = tabulate_correct(rows, INTACT)
        for cut in rows[list(Window._fields)].drop_duplicates().itertuples(index=False, name=None):
            correct = tabulate_correct(rows, Window(*cut))
            difference = stats.paired_difference(correct, intact)
            table.append((task, *cut, layer, readout, float(np.nanmean(correct)), *difference))
    return pd.DataFrame(table, columns=["task", *KEY, "value", "effect", "low", "high"])


def tabulate_correct(predictions: pd.DataFrame, cut: Window) -> pd.DataFrame:
    """(seed, row) 1 where the probe of one task and cell is right after a cut, else 0."""
    rows = predictions[(predictions[list(Window._fields)] == list(cut)).all(axis=1)]
    correct = stats.is_correct(rows).astype(float)
    return correct.set_axis(pd.MultiIndex.from_frame(rows[["seed", "row"]])).unstack("row")


def compute_losses(predictions: pd.DataFrame, edges: str) -> np.ndarray:
    """(text, layer) loss when a single layer is cut, for one task and cell: 1 where the probe turns wrong, -1 where it
    turns right; means over seeds. Texts in the order of their rows, layers from 1."""
    intact = tabulate_correct(predictions, INTACT).mean()
    last = int(predictions.loc[predictions.edges == edges, "last"].max())
    cut = [tabulate_correct(predictions, Window(edges, layer, layer)).mean() for layer in range(1, last + 1)]
    return np.stack([(intact - accuracy).to_numpy() for accuracy in cut], 1)


def measure_agreement(profiles: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Spearman's rank correlation of the layer profiles of every two kinds of evidence.

    profiles: kind -> (text, layer), the same texts for all, NaN where a text was not measured; a profile is the mean
    over texts. Columns one, other, correlation, low, high: the 95 % percentile interval of a paired bootstrap over
    texts. The correlation of a profile that is constant over the layers is 0.
    """
    names, count = list(profiles), len(next(iter(profiles.values())))

    def rank_profiles(weights: np.ndarray) -> list[np.ndarray]:
        """(draw, layer) ranks of every profile, centred and normalised to length 1."""
        profile_ranks = []
        for values in profiles.values():
            known = ~np.isnan(values[:, 0])
            mean = weights[:, known] @ values[known] / np.maximum(weights[:, known].sum(1, keepdims=True), 1)
            ranks = rankdata(mean.round(9), axis=1) - (mean.shape[1] + 1) / 2
            length = np.sqrt((ranks**2).sum(1, keepdims=True))
            profile_ranks.append(np.divide(ranks, length, out=np.zeros_like(ranks), where=length > 0))
        return profile_ranks

    def correlations(weights: np.ndarray) -> np.ndarray:
        ranks = rank_profiles(weights)
        return np.stack([(ranks[i] * ranks[j]).sum(1) for i, j in combinations(range(len(names)), 2)])

    value = correlations(np.ones((1, count)))[:, 0]
    low, high = stats.percentile(stats.bootstrap(correlations, count))
    table = pd.DataFrame(list(combinations(names, 2)), columns=["one", "other"])
    return table.assign(correlation=value, low=np.minimum(low, value), high=np.maximum(high, value))
