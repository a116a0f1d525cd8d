"""In which layers does [CLS] receive the sentence? Attention edges are cut, and probes are read after every cut.

1. A `Plan` says block by block what is done to attention; `make_plan` makes one of a `cuts.Window`.
2. `compute_cut_vectors` runs the texts under many plans. Plans form a prefix tree: those that agree up to a layer share
   the pass up to there, and the intact pass is recorded once.
3. `predict_retrained` trains a probe on the cut vectors of train, with its strength chosen on dev, and reads test: what
   can still be *read* after a change. These predictions decide (`cuts.Gathering`).
4. `predict_cut` applies a *fixed* probe, trained on intact vectors, to the same test texts: how far a change *shifts*
   the vectors for this probe.
5. `measure_agreement` compares the profile of these shifts over the layers with profiles of attention and attribution.

Attention knockout: Geva et al. (2023); there the last token of a decoder was cut off, here [CLS].
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations, groupby
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from sklearn.base import BaseEstimator
from tqdm import tqdm

from clsprobe.analysis import stats
from clsprobe.analysis.formation.cuts import (
    EVERYTHING,
    INTACT,
    KEY,
    ONLY,
    PREDICTIONS,
    REFITTED,
    RESTORED,
    RETRAINED,
    Window,
)
from clsprobe.analysis.sweep.grid import SplitTask, features
from clsprobe.analysis.sweep.halving import refit_cells
from clsprobe.analysis.sweep.refits import HALVES
from clsprobe.probes.base import STRENGTHS, predict_each
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.extraction.readouts import parse_readouts
from clsprobe.probes.extraction.states import States
from clsprobe.probes.interventions.changes import knockout, restore_attention
from clsprobe.probes.interventions.passes import RecordedPass
from clsprobe.probes.interventions.replaying import Chunk, replay

if TYPE_CHECKING:
    from torch import Tensor

K = TypeVar("K", bound=Hashable)

Cell = tuple[int, str]  # layer, readout
BYTES = 256 << 20  # of cut vectors in memory at once
Plan = tuple[str, ...]  # for every block from 1: "", kinds of edges that are cut in it, or `RESTORED`


def make_plan(window: Window, layer: int) -> Plan:
    """What is done in the blocks 1 to `layer`."""
    inside, outside = {ONLY: ("", EVERYTHING), RESTORED: (RESTORED, EVERYTHING)}.get(window.edges, (window.edges, ""))
    return tuple(inside if window.first <= block <= window.last else outside for block in range(1, layer + 1))


def compute_cut_vectors(
    encoder: Encoder,
    texts: Sequence[str],
    plans: Sequence[Plan],
    readouts: Sequence[str],
    *,
    max_length: int | None = None,
) -> dict[Plan, dict[str, np.ndarray]]:
    """For every plan and readout the vectors (text, dim) at the layer where the plans end; they are of one length.

    Raises InputError if the encoder's attention cannot be masked, or restored.
    """
    ordered, dim = sorted(set(plans)), encoder.description.dim
    last = len(ordered[0])
    vectors = {
        plan: {
            (last, name): np.empty((len(texts), parse_readouts([name])[0].width(dim)), np.float32) for name in readouts
        }
        for plan in ordered
    }
    blocks = {plan[: layer + 1] for plan in ordered for layer in range(last) if any(plan[: layer + 1])}

    def run_further(chunk: Chunk, plans: list[Plan], layer: int, hidden: list[Tensor]) -> None:
        """Run the batches of a chunk from `layer` on under plans that agree up to there. hidden: of every batch."""
        if layer == last:
            for number, recorded in enumerate(chunk.recorded):
                fill_cells(vectors[plans[0]], chunk.rows[number], recorded, layer, hidden[number])
            return
        for change, together in groupby(plans, lambda plan: plan[layer]):
            branch = list(together)
            if any(branch[0][: layer + 1]):
                with _change_block(encoder, change, layer + 1):
                    further = chunk.map(lambda number, recorded: recorded.run(layer, hidden[number], layer + 1))
                bar.update(sum(map(len, chunk.rows)))
            else:
                further = [recorded.hidden[layer + 1] for recorded in chunk.recorded]
            run_further(chunk, branch, layer + 1, further)

    with (
        replay(encoder, texts, last, max_length=max_length) as chunks,
        tqdm(total=len(blocks) * len(texts), desc="cutting", unit=" blocks", delay=1, disable=None, leave=False) as bar,
    ):
        for chunk in chunks:
            run_further(chunk, ordered, 0, [recorded.hidden[0] for recorded in chunk.recorded])
    return {plan: {name: array for (_, name), array in by_cell.items()} for plan, by_cell in vectors.items()}


@contextmanager
def _change_block(encoder: Encoder, change: str, layer: int) -> Iterator[None]:
    """Within the block, one step of a plan applies to the block that computes `layer`."""
    with ExitStack() as changes:
        if change:
            changes.enter_context(knockout(encoder, EVERYTHING if change == RESTORED else change, [layer]))
        if change == RESTORED:
            changes.enter_context(restore_attention(encoder, [layer]))
        yield


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
    layer: int,
    readouts: Sequence[str],
    cuts: Sequence[Window],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Predictions of the fixed probe of every readout for every test text after every cut (columns `PREDICTIONS`).

    `INTACT` names the intact passes.
    """
    test = split.rows_of("test")
    texts = [split.task.texts[i] for i in split.row_indices[test]]
    plans = {cut: make_plan(cut, layer) for cut in (INTACT, *cuts)}
    vectors = compute_cut_vectors(encoder, texts, [*plans.values()], readouts, max_length=states.source["max_length"])
    parts = []
    for name in readouts:
        changed = {cut: vectors[plan][name] for cut, plan in plans.items()}
        for cut, codes in predict_changed(probe, split, states, (layer, name), changed).items():
            key = {"task": split.task.name, **dict(zip(KEY, (*cut, layer, name), strict=True))}
            parts.append(_tabulate(split, codes, **key, seed=seed))
    return pd.concat(parts, ignore_index=True)[list(PREDICTIONS)]


def predict_retrained(
    encoder: Encoder,
    split: SplitTask,
    probe: BaseEstimator,
    layer: int,
    windows: Sequence[Window],
    *,
    refit: bool = False,
    max_length: int | None = None,
    draw: int = -1,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions for test of probes of [CLS] that were trained anew after every change (columns `RETRAINED`).

    With them the scores of probes that were fitted on halves of the training texts (columns `REFITTED`), without rows
    unless refit. windows: `INTACT` among them, if it is to be read. draw: the seed of the weights of an untrained
    encoder, -1 for the trained one. Changes that come to the same, such as a cut below and an open window above it,
    share a fit. Raises RuntimeError if a probe cannot be fitted.
    """
    train, dev, test = (split.rows_of(side) for side in ("train", "dev", "test"))
    y, plans = split.y[:, None], {window: make_plan(window, layer) for window in windows}
    ordered, codes, scores = sorted(set(plans.values())), dict[Plan, np.ndarray](), dict[Plan, np.ndarray]()
    size = max(1, BYTES // (4 * len(split.row_indices) * encoder.description.dim))
    for start in range(0, len(ordered), size):  # neighbours in this order share most of their passes
        together = ordered[start : start + size]
        vectors = compute_cut_vectors(encoder, split.texts, together, ["cls"], max_length=max_length)
        X = np.stack([vectors[plan]["cls"] for plan in together])
        predictions = predict_each(
            probe, X[:, train], y[train], X[:, test], dev=(X[:, dev], y[dev]), strengths=STRENGTHS
        )
        if predictions.failures:
            raise RuntimeError(f"no probe can be fitted after a cut: {next(iter(predictions.failures.values()))}")
        codes |= dict(zip(together, predictions.codes[:, 0], strict=True))
        if refit and (refits := refit_cells(split, X, probe, seed=seed)):
            scores |= dict(zip(together, refits, strict=True))
    key = {"task": split.task.name, "control": "none" if draw < 0 else "untrained", "draw": draw, "seed": seed}
    parts = [_tabulate(split, codes[plan], **window._asdict(), **key, layer=layer) for window, plan in plans.items()]
    test_rows = {"row": split.row_indices[test], "group": split.group[test]}
    halves = [
        pd.DataFrame(scores[plan].T.astype(np.float32), columns=[*HALVES]).assign(**window._asdict(), **test_rows)
        for window, plan in plans.items()
        if plan in scores
    ]
    table = pd.concat(halves, ignore_index=True) if halves else pd.DataFrame(columns=[*REFITTED])
    table = table.assign(**key, n_train=len(train))[list(REFITTED)]
    return pd.concat(parts, ignore_index=True)[list(RETRAINED)], table


def _tabulate(split: SplitTask, codes: np.ndarray, **key: object) -> pd.DataFrame:
    """Predictions for the test texts in the order of the task, with the columns of a key. codes: (test text,)."""
    test = split.rows_of("test")
    rows = {"row": split.row_indices[test], "label": split.classes[split.y[test]], "predicted": split.classes[codes]}
    return pd.DataFrame({**key, **rows})


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
