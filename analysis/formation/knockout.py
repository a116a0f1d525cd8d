"""In which layers does [CLS] receive the sentence? Edges of attention are cut, and a probe tells what is missing.

1. A `Window` is a kind of edges and the layers, from `first` to `last`, in which they are cut.
2. `vectors_of` runs the texts once as they are and then, for every window, on from its first layer: windows that begin
   together share the pass that is cut, and part only behind their own last layer.
3. `read` asks a *fixed* probe: trained once, on the intact vectors of train, chosen as ever on dev. It is asked about
   the same test texts after every cut.
4. `effects` is the change of its accuracy with the interval of a paired difference over these texts.
5. `agreement` holds the profile of these changes over the layers against those of other evidence (attention,
   attribution), which nothing was done to.

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
from clsprobe.probes.extraction.readouts import parse
from clsprobe.probes.extraction.states import States
from clsprobe.probes.interventions.changes import knockout
from clsprobe.probes.interventions.passes import Recorded
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
KEY = [*Window._fields, "layer", "readout"]  # what names a cut and who reads
PREDICTIONS = ("task", *KEY, "seed", "row", "label", "predicted")


def windows(edges: Iterable[str], last: int) -> list[Window]:
    """Every run of consecutive layers within 1 to `last`, for every kind of edges."""
    return [Window(kind, a, b) for kind in edges for a in range(1, last + 1) for b in range(a, last + 1)]


def vectors_of(
    encoder: Encoder,
    texts: Sequence[str],
    cuts: Sequence[Window],
    cells: Sequence[Cell],
    *,
    max_length: int | None = None,
) -> dict[Window, dict[Cell, np.ndarray]]:
    """For every window, and for `INTACT`, the vectors (text, dim) of those cells that lie at or above its last layer.

    A cell below sees a shorter window, which has a name of its own. Raises InputError where the encoder's attention
    takes no such masks.
    """
    until, dim = max(layer for layer, _ in cells), encoder.description.dim
    found = {
        cut: {
            cell: np.empty((len(texts), parse([cell[1]])[0].width(dim)), np.float32)
            for cell in cells
            if cell[0] >= cut.last
        }
        for cut in (INTACT, *cuts)
    }
    chained = sorted(cut for cut in found if cut.last and found[cut])
    total = len(texts) * (1 + len(chained))
    with (
        replay(encoder, texts, until, max_length=max_length) as chunks,
        tqdm(total=total, desc="cutting", unit=" passes", delay=1, disable=None, leave=False) as bar,
    ):
        for chunk in chunks:
            texts_here = sum(map(len, chunk.rows))
            for rows, recorded in zip(chunk.rows, chunk.recorded, strict=True):
                for cell, vectors in found[INTACT].items():
                    fill({cell: vectors}, rows, recorded, cell[0], recorded.hidden[cell[0]])
            bar.update(texts_here)
            for (edges, first), together in groupby(chained, lambda cut: (cut.edges, cut.first)):
                at, so_far = first - 1, [recorded.hidden[first - 1] for recorded in chunk.recorded]
                for cut in together:
                    with knockout(encoder, edges, range(first, cut.last + 1)):
                        so_far = chunk.each(partial(_cut, found[cut], chunk.rows, so_far, at, cut.last))
                    at = cut.last
                    bar.update(texts_here)
    return found


def _cut(
    into: dict[Cell, np.ndarray],
    rows: list[np.ndarray],
    so_far: list[Tensor],
    at: int,
    last: int,
    number: int,
    recorded: Recorded,
) -> Tensor:
    """Cut a batch a little further, to layer `last`, and read what comes of it; the hidden states of that layer."""
    hidden = recorded.onward(at, so_far[number], last)
    fill(into, rows[number], recorded, last, hidden)
    return hidden


def fill(into: dict[Cell, np.ndarray], rows: np.ndarray, recorded: Recorded, layer: int, hidden: Tensor) -> None:
    """Run a batch on from layer `layer` being `hidden`, and put what every cell of `into` then reads at `rows`."""
    for at, name in sorted(into):
        hidden = recorded.onward(layer, hidden, at)
        layer = at
        (readout,) = parse([name])
        into[at, name][rows] = readout.read(hidden, recorded.batch).float().cpu().numpy()


def read(
    probe: BaseEstimator, asked: SplitTask, states: States, cell: Cell, changed: Mapping[K, np.ndarray]
) -> dict[K, np.ndarray]:
    """What one probe, fitted on the intact vectors of a cell, predicts from changed ones.

    changed: name -> (test text, width), in the order of ``asked.rows_of("test")``. Returns name -> (test text,) codes.
    Raises RuntimeError where the probe cannot be fitted.
    """
    X, X_dev = (features(states, [cell], asked.state_rows[asked.rows_of(side)]) for side in ("train", "dev"))
    y, y_dev = (asked.y[asked.rows_of(side), None] for side in ("train", "dev"))
    unseen = np.concatenate([*changed.values()])[None]
    told = predict_each(probe, X, y, unseen, dev=(X_dev, y_dev), strengths=STRENGTHS)
    if told.failures:
        raise RuntimeError(f"the probe cannot be fitted on layer {cell[0]}, {cell[1]}: {told.failures[0]}")
    return dict(zip(changed, np.split(told.codes[0, 0], len(changed)), strict=True))


def predictions_of(
    encoder: Encoder,
    asked: SplitTask,
    states: States,
    probe: BaseEstimator,
    cells: Sequence[Cell],
    cuts: Sequence[Window],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """What the fixed probe of every cell says of every test text after every cut: the columns of `PREDICTIONS`.

    The intact passes are `INTACT`; a cell is asked about the windows that end at or below its layer.
    """
    test = asked.rows_of("test")
    texts = [asked.task.texts[i] for i in asked.row_indices[test]]
    found = vectors_of(encoder, texts, cuts, cells, max_length=states.source["max_length"])
    parts = []
    for cell in cells:
        changed = {cut: vectors[cell] for cut, vectors in found.items() if cell in vectors}
        for cut, codes in read(probe, asked, states, cell, changed).items():
            own = dict(zip(KEY, (*cut, *cell), strict=True))
            rows = {
                "row": asked.row_indices[test],
                "label": asked.classes[asked.y[test]],
                "predicted": asked.classes[codes],
            }
            parts.append(pd.DataFrame({"task": asked.task.name, **own, "seed": seed, **rows}))
    return pd.concat(parts, ignore_index=True)[list(PREDICTIONS)]


def effects(predictions: pd.DataFrame) -> pd.DataFrame:
    """Accuracy after every cut, and its change with a 95 % interval over the same test texts.

    Columns task, edges, first, last, layer, readout, value, effect, low, high; the intact passes stand first.
    """
    found = []
    for (task, layer, readout), rows in predictions.groupby(["task", "layer", "readout"], observed=True, sort=False):
        intact = right(rows, INTACT)
        for cut in rows[list(Window._fields)].drop_duplicates().itertuples(index=False, name=None):
            after = right(rows, Window(*cut))
            difference = stats.paired_difference(after, intact)
            found.append((task, *cut, layer, readout, float(np.nanmean(after)), *difference))
    return pd.DataFrame(found, columns=["task", *KEY, "value", "effect", "low", "high"])


def right(predictions: pd.DataFrame, cut: Window) -> pd.DataFrame:
    """(seed, row) True where the probe of one task and cell is right after a cut."""
    rows = predictions[(predictions[list(Window._fields)] == list(cut)).all(axis=1)]
    hit = stats.right(rows).astype(float)
    return hit.set_axis(pd.MultiIndex.from_frame(rows[["seed", "row"]])).unstack("row")


def losses(predictions: pd.DataFrame, edges: str) -> np.ndarray:
    """(text, layer) 1 where the probe of one task and cell was right and is wrong once a single layer is cut, -1 where
    it was wrong and is right; texts in the order of their rows, layers from 1. Means over seeds."""
    intact = right(predictions, INTACT).mean()
    last = int(predictions.loc[predictions.edges == edges, "last"].max())
    cut = [right(predictions, Window(edges, layer, layer)).mean() for layer in range(1, last + 1)]
    return np.stack([(intact - one).to_numpy() for one in cut], 1)


def agreement(profiles: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Spearman's rank correlation of the layer profiles of every two kinds of evidence.

    profiles: kind -> (text, layer), one and the same texts, NaN where a text was not asked; a profile is the mean over
    texts. Columns one, other, correlation, low, high: the 95 % percentile interval of a bootstrap over the texts, which
    are drawn for both at once. A profile that is the same in every layer is in no order: its correlation is 0.
    """
    names, count = list(profiles), len(next(iter(profiles.values())))

    def ranked(weights: np.ndarray) -> list[np.ndarray]:
        """(draw, layer) ranks of every profile, less their mean, of length 1."""
        found = []
        for values in profiles.values():
            known = ~np.isnan(values[:, 0])
            mean = weights[:, known] @ values[known] / np.maximum(weights[:, known].sum(1, keepdims=True), 1)
            ranks = rankdata(mean.round(9), axis=1) - (mean.shape[1] + 1) / 2
            length = np.sqrt((ranks**2).sum(1, keepdims=True))
            found.append(np.divide(ranks, length, out=np.zeros_like(ranks), where=length > 0))
        return found

    def correlations(weights: np.ndarray) -> np.ndarray:
        ranks = ranked(weights)
        return np.stack([(ranks[i] * ranks[j]).sum(1) for i, j in combinations(range(len(names)), 2)])

    value = correlations(np.ones((1, count)))[:, 0]
    low, high = stats.percentile(stats.bootstrap(correlations, count))
    table = pd.DataFrame(list(combinations(names, 2)), columns=["one", "other"])
    return table.assign(correlation=value, low=np.minimum(low, value), high=np.maximum(high, value))
