"""Cuts of the attention of [CLS]: their names, the tables of what probes read after them, and the effects. No torch.

1. A `Window` is what is done to attention in the blocks from `first` to `last`: a kind of edges is cut there, or [CLS]
   is cut off from all other tokens everywhere else.
2. `knockout` tables (`PREDICTIONS`) hold what the *fixed* probe predicts, which was trained on intact vectors. What it
   loses (`compute_effects`) is the shift of the vectors.
3. `retrained` tables (`RETRAINED`) hold what probes predict that were trained anew after every change, in the encoder
   and in untrained ones; `refitted` tables (`REFITTED`) what those of the halves score that were fitted on half of the
   training texts. `Gathering` compares them: what a cut costs, the share that a window alone keeps, and how much later
   [CLS] gathers than in untrained encoders.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from clsprobe.analysis import stats
from clsprobe.analysis.sweep.refits import HALVES, HALVINGS
from clsprobe.analysis.verdict import MissingEvidence


class Window(NamedTuple):
    """What is done, and the first and last block where it is done.

    edges: a kind that is cut there, as `probes.interventions.changes.knockout` names them; `ONLY`: the edges
    `EVERYTHING` are cut in all other blocks below the probe; `RESTORED`: they are cut in all blocks, and there [CLS]
    receives what its attention wrote in the intact pass.
    """

    edges: str
    first: int
    last: int


INTACT = Window("none", 0, 0)
EVERYTHING = "rest->cls"  # the edges into [CLS] from all other tokens
ONLY, RESTORED = "only", "restored"
KEY = [*Window._fields, "layer", "readout"]  # a cut, and the cell that is read
PREDICTIONS = ("task", *KEY, "seed", "row", "label", "predicted")
# control, draw: "none" and -1, or "untrained" and the seed of the weights, as in a results table
RETRAINED = ("task", "control", "draw", *Window._fields, "layer", "seed", "row", "label", "predicted")
# the scores on test of probes that were fitted on halves of the training texts, as `sweep.refits.REFITS`
REFITTED = ("task", "control", "draw", *Window._fields, "seed", "n_train", "row", "group", *HALVES)
EVERY_RUN = 6  # layers of which all runs are cut: the blocks to run grow with the cube of their number
DRAWS = 5  # untrained encoders, at least: with 3, the t over draws alone is 4.3
Span = tuple[int, int]  # the first and the last block


def list_windows(edges: Iterable[str], last: int) -> list[Window]:
    """Runs of consecutive layers within 1 to `last`, for every kind of edges: all of them up to `EVERY_RUN` layers,
    beyond that single layers and the runs that begin with the first or end with the last one."""
    runs = [(a, b) for a in range(1, last + 1) for b in range(a, last + 1)]
    if last > EVERY_RUN:
        runs = [(a, b) for a, b in runs if a == b or a == 1 or b == last]
    return [Window(kind, *run) for kind in edges for run in runs]


def split_halves(layer: int) -> tuple[Span, Span]:
    """The lower and the upper half of the blocks 1 to `layer`; of an odd number the middle one belongs to neither."""
    half = layer // 2
    return (1, half), (layer - half + 1, layer)


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
    return stats.tabulate_correct(predictions[(predictions[list(Window._fields)] == list(cut)).all(axis=1)])


def compute_losses(predictions: pd.DataFrame, edges: str) -> np.ndarray:
    """(text, layer) loss when a single layer is cut, for one task and cell: 1 where the probe turns wrong, -1 where it
    turns right; means over seeds. Texts in the order of their rows, layers from 1."""
    intact = tabulate_correct(predictions, INTACT).mean()
    last = int(predictions.loc[predictions.edges == edges, "last"].max())
    cut = [tabulate_correct(predictions, Window(edges, layer, layer)).mean() for layer in range(1, last + 1)]
    return np.stack([(intact - accuracy).to_numpy() for accuracy in cut], 1)


class Gathering:
    """What probes of [CLS] that were trained anew after every change predict, for one task.

    rows: `RETRAINED`, of one task. refitted: `REFITTED`, of the same; intervals of changes without refits are of these
    probes as they were fitted. layer: where [CLS] is read. draws: the number of untrained encoders. training_texts:
    their number, 0 without refits. Raises MissingEvidence where there are no rows.
    """

    def __init__(self, rows: pd.DataFrame, refitted: pd.DataFrame) -> None:
        if rows.empty:
            raise MissingEvidence("no probe was trained after a cut")
        self.layer = int(rows.layer.iloc[0])
        self.draws = int(rows.draw[rows.control == "untrained"].nunique())
        correct = rows.assign(correct=stats.is_correct(rows).astype(float))
        groups = correct.groupby(["control", *Window._fields], observed=True, sort=False)
        self._correct = {
            (control, Window(*window)): group.set_index(["draw", "seed", "row"]).correct.unstack("row")
            for (control, *window), group in groups
        }
        self.training_texts, self._halves, self._groups = 0, dict[tuple[str, Window], np.ndarray](), None
        tested = np.unique(rows.row)
        refitted = refitted[refitted.row.isin(tested)]
        if refitted.row.nunique() == len(tested):
            self.training_texts = int(refitted.n_train.min())
            self._groups = refitted.drop_duplicates("row").set_index("row").group.sort_index().to_numpy()
            for (control, *window), group in refitted.groupby(["control", *Window._fields], observed=True, sort=False):
                means = group.groupby(["seed", "row"])[[*HALVES]].mean()  # over the draws that have a seed's split
                columns = pd.MultiIndex.from_product([HALVES, tested])
                values = means.unstack("row").reindex(columns=columns).to_numpy(float)
                halves = values.reshape(len(values), len(HALVES), -1).swapaxes(0, 1)  # (half, seed, text)
                self._halves[control, Window(*window)] = halves.reshape(HALVINGS, 2, *halves.shape[1:])

    @property
    def windows(self) -> list[Window]:
        """All changes of the trained encoder."""
        return [window for control, window in self._correct if control == "none"]

    @property
    def texts(self) -> int:
        """The number of test texts."""
        return self._select(INTACT).shape[1]

    @property
    def texts_per_seed(self) -> int:
        """The number of test texts of one seed: carved splits have others for every seed."""
        return int(self._select(INTACT).notna().sum(axis=1).mean())

    def _select(self, window: Window, control: str = "none") -> pd.DataFrame:
        """((draw, seed), row) 1 where the retrained probe is right, else 0. Raises MissingEvidence."""
        if (control, window) not in self._correct:
            encoder = "an untrained encoder" if control == "untrained" else "the encoder"
            raise MissingEvidence(f"{encoder} has no predictions for {window.edges}, blocks {window[1:]}")
        return self._correct[control, window]

    def accuracy(self, window: Window, control: str = "none") -> float:
        """The accuracy after a change, the mean over texts and seeds; control "untrained": over untrained encoders."""
        return float(np.nanmean(self._select(window, control)))

    def _subtract(self, a: Window, b: Window, control: str = "none") -> tuple[pd.DataFrame, np.ndarray | None]:
        """((draw, seed), row) after change a minus after change b, and (halving, half, seed, text) the same of the
        refits, of which None may be there."""
        refitted = {(control, a), (control, b)} <= self._halves.keys()
        halves = self._halves[control, a] - self._halves[control, b] if refitted else None
        return self._select(a, control) - self._select(b, control), halves

    def lose(self, window: Window) -> stats.Difference:
        """The accuracy that a change costs: intact minus changed."""
        _, halves = self._subtract(INTACT, window)
        intact, changed = (self._select(part).to_numpy() for part in (INTACT, window))
        return stats.compare(intact, changed, halves=halves, groups=self._groups)

    def share(self, window: Window) -> tuple[float, float, float] | None:
        """The share of what [CLS] takes from the other tokens that is left after a change, with its 95 % interval.

        (changed - cut everywhere) / (intact - cut everywhere); None where the 95 % interval of the denominator holds 0.
        """
        everywhere = Window(EVERYTHING, 1, self.layer)
        if not self.lose(everywhere).interval()[0] > 0:
            return None
        (left, left_halves), (whole, whole_halves) = (self._subtract(part, everywhere) for part in (window, INTACT))
        return divide((left.to_numpy(), left_halves), (whole.to_numpy(), whole_halves), groups=self._groups)

    def compare_halves(self) -> tuple[stats.Difference, float, float]:
        """How much later [CLS] gathers than in untrained encoders, and the values that this is the difference of.

        Of the trained encoder and, as a mean, of the untrained ones: what the cut in the upper half costs minus what
        the cut in the lower half costs. Test texts and draws are crossed (`stats.compare`): another encoder without
        training would have other weights. Other training texts count by the refits of both sides. Raises
        MissingEvidence with fewer than `DRAWS` untrained encoders.
        """
        if self.draws < DRAWS:
            raise MissingEvidence(f"{self.draws} untrained encoders were measured, and a mean takes {DRAWS}")
        lower, upper = (Window(EVERYTHING, *half) for half in split_halves(self.layer))
        untrained, untrained_halves = self._subtract(lower, upper, "untrained")
        trained, halves = self._subtract(lower, upper)
        trained = trained.droplevel("draw").loc[untrained.index.get_level_values("seed")]  # the split of every draw
        halves = None if halves is None or untrained_halves is None else halves - untrained_halves
        difference = stats.compare(trained.to_numpy(), untrained.to_numpy(), halves=halves, groups=self._groups)
        return replace(difference, largest=2.0), float(np.nanmean(trained)), float(np.nanmean(untrained))


def describe_cut_off(retrained: pd.DataFrame) -> str:
    """The self-check: whether probes still tell texts apart where [CLS] is cut off everywhere.

    retrained: `RETRAINED`, of all tasks.
    """
    rows = retrained[
        (retrained.edges == EVERYTHING) & (retrained["first"] == 1) & (retrained["last"] == retrained.layer)
    ]
    rows = rows[rows.control == "none"]
    accuracies = stats.is_correct(rows).groupby(rows.task, sort=False).mean()
    values = ", ".join(f"{task.partition(':')[2].replace(':', ': ')} {value:.3f}" for task, value in accuracies.items())
    if rows.groupby(["task", "seed"]).predicted.nunique().max() == 1:
        what = "says one class of all texts"
    else:
        what = "STILL TELLS TEXTS APART: it sees words before the first layer"
    return f"Self-check: cut off in every layer, a retrained probe of [CLS] {what} ({values})."


_Scores = tuple[np.ndarray, np.ndarray | None]


def divide(numerator: _Scores, denominator: _Scores, groups: np.ndarray | None = None) -> tuple[float, float, float]:
    """The ratio of two means over the same texts with its 95 % interval.

    numerator, denominator: (seed, text) within -1..1, and (halving, half, seed, text) of the refits, or None. groups:
    as in `stats.compare`. The interval holds every ratio r for which the mean of numerator - r denominator is not
    certainly different from 0 (Fieller 1954), by `stats.compare`. It is finite where the denominator's own interval
    excludes 0.
    """
    (a, a_halves), (b, b_halves) = numerator, denominator
    value = float(np.nanmean(a) / np.nanmean(b))

    def find_end(side: int) -> float:
        """The ratio, above (1) or below (-1) the value, at which the difference is just certain."""

        def distance(ratio: float) -> float:
            halves = None if a_halves is None or b_halves is None else a_halves - ratio * b_halves
            ends = stats.compare(a, ratio * b, halves=halves, groups=groups).interval()
            return ends[1] if side > 0 else ends[0]

        step = 0.25
        while side * distance(value + side * step) > 0:
            step *= 2
        return float(brentq(distance, value, value + side * step))

    return value, find_end(-1), find_end(1)
