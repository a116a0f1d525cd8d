"""How reliable an intervention is: completeness and selectivity, as an independent probe sees them.

1. An intervention is meant to change one property of vectors: to erase it, or to set it to another value. It is judged
   by the distributions that an *independent probe* gives before and after it: an MLP, so that what is left in another
   than a linear form counts, trained on intact vectors of texts on which the intervention was not fitted
   (`halve_train`). Early stopping by the loss on dev keeps its probabilities calibrated.
2. Completeness of a text: 1 - the total variation between the distribution of the property after the intervention and
   the intended one, which is the class prior of train for an erasure and the other value with probability 1 for a swap.
3. Selectivity of a text: 1 - the total variation between the distributions of *another* property before and after, as a
   share of the largest that the distribution before allows.
4. Reliability is the harmonic mean of the two means over texts: it is high only where both are.

A probe that reads nothing gives every text the prior: completeness and selectivity are then 1 whatever is done. So a
property that the probe does not read on intact vectors has neither, and both are to be compared with those of intact
vectors and of random changes.

The definitions: Canby, Davies, Rastogi & Hockenmaier (2024), "How Reliable are Causal Probing Interventions?",
https://arxiv.org/abs/2408.15510.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clsprobe.analysis import stats
from clsprobe.analysis.sweep.grid import SplitTask
from clsprobe.analysis.sweep.halving import draw_halves
from clsprobe.probes.mlp import MLPProbe

STRENGTHS = (1e-2, 1.0)  # of the MLP: with few texts the small one reads more, with many the large one


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Half the sum of absolute differences of distributions, (..., class) and (..., class) -> (...), from 0 to 1."""
    return np.abs(np.subtract(p, q, dtype=np.float64)).sum(-1) / 2


def completeness(after: np.ndarray, intended: np.ndarray) -> np.ndarray:
    """(..., text) how nearly the distributions after an intervention are the intended ones: 1 - their total variation.

    after: (..., text, class) probabilities of the property. intended: (class,), or (text, class) with a distribution
    for every text.
    """
    return 1 - total_variation(after, intended)


def selectivity(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(..., text) how little another property changed: 1 - the total variation, as a share of its largest value.

    before, after: (..., text, class) probabilities of at least two classes. The largest total variation from p is
    reached where its least probable class becomes certain: 1 - min p.
    """
    return 1 - total_variation(before, after) / (1 - before.min(-1).astype(np.float64))


def mean_share(values: np.ndarray) -> tuple[float, float, float]:
    """The mean over texts of shares (text,) from 0 to 1, and the ends of its 95 % interval."""
    low, high = stats.mean_interval(values)
    return float(values.mean()), max(float(low), 0.0), min(float(high), 1.0)


@dataclass(frozen=True, eq=False)
class IndependentProbe:
    """An MLP probe of several properties in several cells (`fit_independent_probe`).

    priors: property -> (class,) shares of its training texts, the intended distribution of an erasure.
    """

    mlp: MLPProbe
    priors: dict[str, np.ndarray]

    def probabilities(self, X: np.ndarray) -> dict[str, np.ndarray]:
        """property -> (cell, text, class) of vectors (cell, text, dim); a probe of one cell reads any number."""
        log_proba = self.mlp.log_proba_cells(np.asarray(X, np.float32))
        return {
            name: np.exp(log_proba[:, label_set, :, : len(prior)])
            for label_set, (name, prior) in enumerate(self.priors.items())
        }


def fit_independent_probe(
    X: np.ndarray, y: Mapping[str, np.ndarray], X_dev: np.ndarray, y_dev: Mapping[str, np.ndarray], *, seed: int = 0
) -> IndependentProbe:
    """Train the MLP on intact vectors; the loss on dev chooses its strength and decides when to stop.

    X: (cell, text, dim), of texts on which the intervention was not fitted. y: property -> (text,) class codes, -1
    without a label. X_dev, y_dev: the same of dev texts. seed: that of the initial weights and the mini-batches.
    """
    codes, dev_codes = (np.stack([labels[name] for name in y], 1) for labels in (y, y_dev))
    dev = np.asarray(X_dev, np.float32), np.where(dev_codes > codes.max(0), -1, dev_codes)  # classes without a text
    mlp = MLPProbe(random_state=seed).fit_cells(np.asarray(X, np.float32), codes, dev=dev, strengths=STRENGTHS)
    counts = {name: np.bincount(labels[labels >= 0]) for name, labels in y.items()}
    return IndependentProbe(mlp, {name: count / count.sum() for name, count in counts.items()})


def halve_train(split: SplitTask, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of train, as rows of the arrays of a split: one to fit interventions on, the other for probes.

    By group and by class, as `sweep.halving.draw_halves` divides them.
    """
    train, half = split.rows_of("train"), draw_halves(split, seed=seed, halvings=1)[0]
    return train[half[train] == 0], train[half[train] == 1]


def make_length_reader(train: Sequence[str]) -> Callable[[str], int]:
    """A function that reads the third of these texts, by their number of words, to which a text belongs: 0, 1 or 2."""
    ends = np.quantile([len(text.split()) for text in train], [1 / 3, 2 / 3])
    return lambda text: int(np.searchsorted(ends, len(text.split())))


def label_properties(split: SplitTask, other_labels: Mapping[str, Mapping[str, str]]) -> dict[str, np.ndarray]:
    """name -> (text,) codes of other properties of the texts of a split than the task's, -1 without a label.

    "length": the third of train, by words, to which a text belongs. other_labels: property -> text -> label, of which
    those are taken that label at least half of the texts of every side. A property with one class is left out.
    """
    texts, train = split.texts, split.rows_of("train")
    read_length = make_length_reader([texts[i] for i in train])
    properties = {"length": np.array([read_length(text) for text in texts])}
    for name, label_by_text in other_labels.items():
        labels = np.array([label_by_text.get(text, "") for text in texts])
        if all((labels[split.rows_of(side)] != "").mean() >= 0.5 for side in ("train", "dev", "test")):
            properties[name] = np.where(labels == "", -1, np.unique(labels[labels != ""]).searchsorted(labels))
    return {name: codes for name, codes in properties.items() if len(np.unique(codes[train][codes[train] >= 0])) > 1}


def measure_reliability(
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    intended: np.ndarray,
    labels: Mapping[str, np.ndarray],
) -> dict[str, float | str]:
    """Means over texts of completeness, and of selectivity averaged over the other properties, and their reliability.

    before, after: property -> (text, class) probabilities of the independent probe; the property of the intervention
    comes first. intended: its distribution, see `completeness`. labels: property -> (text,) codes, -1 without a label:
    only those properties count that the probe reads on intact vectors, certainly better than their largest class.

    Keys: completeness, completeness low, completeness high, NaN where the property itself is not read; the same for
    selectivity, NaN where no other property is; reliability; accuracy (of the property on intact vectors); others (the
    names of the other properties).
    """
    target, *names = before
    others = [name for name in names if _is_read(before[name], labels[name])]
    complete = selective = np.nan, np.nan, np.nan
    if _is_read(before[target], labels[target]):
        complete = mean_share(completeness(after[target], intended))
    if others:
        selective = mean_share(np.mean([selectivity(before[name], after[name]) for name in others], 0))
    columns, ends = {"completeness": complete, "selectivity": selective}, ("", " low", " high")
    return {
        **{f"{name}{end}": x for name, values in columns.items() for end, x in zip(ends, values, strict=True)},
        "reliability": 2 * complete[0] * selective[0] / (complete[0] + selective[0]),
        "accuracy": float((before[target].argmax(-1) == labels[target]).mean()),
        "others": ", ".join(others),
    }


def _is_read(probabilities: np.ndarray, codes: np.ndarray) -> bool:
    labelled = codes >= 0
    codes = codes[labelled]
    low, _ = stats.wilson((probabilities[labelled].argmax(-1) == codes).mean(), len(codes))
    return bool(low > np.bincount(codes).max() / len(codes))
