"""How often nominal 95 % intervals cover the truth, in simulated data whose truth is known.

The tests hold the intervals to 93-97 %; run as a program this prints the tables of docs/statistics.md:

    python tests/support/simulations.py
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
from scipy.integrate import quad
from scipy.stats import binom, norm, rankdata

from clsprobe.analysis import stats
from clsprobe.analysis.sweep.grid import SplitTask
from clsprobe.analysis.sweep.halving import ROUGH, draw_halves
from clsprobe.probes import metric
from clsprobe.probes.base import STRENGTHS
from clsprobe.probes.linear import LogisticProbe, RidgeProbe
from clsprobe.probes.tasks.control import has_label

SIMULATIONS = 2000
SIZES = (200, 500, 2000)  # test texts
LEVELS = (0.5, 0.65, 0.8, 0.9, 0.95)  # accuracies


def covered(interval, truth):
    """The share of intervals that hold the truth."""
    low, high = interval
    return float(np.mean((low <= truth + 1e-12) & (truth - 1e-12 <= high)))


def accuracy(n, p):
    """Exactly, by the binomial distribution."""
    right = np.arange(n + 1)
    low, high = stats.wilson(right / n, n)
    return float(binom.pmf(right, n, p)[(low <= p) & (p <= high)].sum())


def losses(n, p, *, sharpness=1.0, simulations=SIMULATIONS, seed=0):
    """(simulation, text) bits of the best probe of x | y ~ N(+-d/2 u, I) that is right with probability p, and their
    mean by quadrature. sharpness 2: a probe that is twice as sure as it should be. At p = 0.5 one that is sure of
    nothing it should be sure of: its log odds are noise of standard deviation 1."""
    d = 2 * norm.ppf(p)

    def loss(z):
        return np.logaddexp(0, -sharpness * (d * d / 2 + (d or 1) * z)) / np.log(2)

    truth = quad(lambda z: norm.pdf(z) * loss(z), -12, 12, limit=500)[0]
    return loss(np.random.default_rng([seed, n]).normal(size=(simulations, n))), truth


def bits(n, p, *, sharpness=1.0, simulations=SIMULATIONS, seed=0):
    drawn, truth = losses(n, p, sharpness=sharpness, simulations=simulations, seed=seed)
    return covered(stats.mean_interval(drawn), truth)


def bits_by_percentile(n, p, *, simulations=SIMULATIONS):
    drawn, truth = losses(n, p, simulations=simulations)
    predicted = -drawn.astype(np.float32)
    return covered(stats.percentile(stats.bootstrap(lambda counts: metric.bits(predicted, counts), n)), truth)


TREC = (0.222, 0.277, 0.188, 0.13, 0.162, 0.021)  # shares of six question types; the last is rare
# name -> shares of the classes, recall of each; an error falls on the other classes in proportion to their shares
CONFUSIONS = {
    "three equal classes, recall 0.8": ((1, 1, 1), (0.8,) * 3),
    "two classes, one of 5 %": ((0.95, 0.05), (0.98, 0.5)),
    "three classes, one of 5 %": ((0.6, 0.35, 0.05), (0.85, 0.8, 0.6)),
    "six classes, one of 2 %, recall 0.5": (TREC, (0.5, 0.5, 0.5, 0.5, 0.5, 0.2)),
    "six classes, one of 2 %, recall 0.85": (TREC, (0.85, 0.85, 0.8, 0.85, 0.85, 0.6)),
    "six classes, one of 2 %, recall 0.95": (TREC, (0.95, 0.95, 0.93, 0.95, 0.95, 0.8)),
    "six classes, one of 2 %, recall 0.99": (TREC, (0.99,) * 6),
    "ten classes, 34 % to 3 %": (tuple(1 / np.arange(1, 11)), tuple(np.linspace(0.9, 0.4, 10))),
    "twenty classes, 28 % to 1 %": (tuple(1 / np.arange(1, 21)), tuple(np.linspace(0.8, 0.4, 20))),
    "near the majority, one of 30 %": ((0.7, 0.3), (0.95, 0.1)),
}


@cache
def confusion(name):
    """(label, predicted) probabilities."""
    shares, recall = (np.array(part, float) for part in CONFUSIONS[name])
    shares = shares / shares.sum()
    table = np.outer(shares * (1 - recall) / (1 - shares), shares)
    np.fill_diagonal(table, shares * recall)
    return table


def true_f1(table):
    return float(np.mean(2 * np.diag(table) / (table.sum(0) + table.sum(1))))


def macro_f1(name, n, *, simulations=SIMULATIONS, seed=0, interval=None):
    """interval: (codes, labels) -> low, high instead of the one that is used."""
    table, random = confusion(name), np.random.default_rng([seed, n])
    pairs = random.choice(table.size, p=table.ravel(), size=(simulations, n))
    intervals = []
    for one in pairs:
        labels, codes = np.divmod(one, len(table))
        if interval:
            intervals.append(interval(codes[None], labels))
        else:
            intervals.append(stats.intervals(codes[None], labels)["macro_f1"][1:])
    return covered(np.array(intervals)[..., 0].T, true_f1(table))


def f1_by_percentile(codes, labels):
    return stats.percentile(stats.bootstrap(lambda counts: metric.macro_f1(codes, labels, counts), len(labels)))


def paired(n, wins, lost, *, simulations=SIMULATIONS, seed=0):
    """Two probes over the same texts: one alone is right on `wins` of them, the other alone on `lost`."""
    drawn = np.random.default_rng([seed, n]).choice(
        [1.0, -1.0, 0.0], p=[wins, lost, 1 - wins - lost], size=(simulations, n)
    )
    return covered(stats.difference_intervals(drawn, np.zeros_like(drawn), shares=True), wins - lost)


# name -> accuracy and shares of the classes of a task, and of its control task
TASKS = {
    "0.9 and 0.5, four classes of 40 % to 10 %": ((0.9, (4, 3, 2, 1)), (0.5, (4, 3, 2, 1))),
    "0.97 and 0.9, two classes, 60 % and 55 %": ((0.97, (6, 4)), (0.9, (55, 45))),
    "0.99 and 0.98, two classes, 60 %": ((0.99, (6, 4)), (0.98, (6, 4))),
    "0.85 and 0.85, two classes, 80 %": ((0.85, (8, 2)), (0.85, (8, 2))),
    "0.9 and 0.55, two classes, 50 %": ((0.9, (1, 1)), (0.55, (1, 1))),
    "0.9 and 0.3, six equal classes": ((0.9, (1,) * 6), (0.3, (1,) * 6)),
}


def selectivity(name, n, *, simulations=SIMULATIONS, seed=0):
    """The normalised accuracy of a task less that of its control task, over texts with a label of each."""
    random, intervals, truth = np.random.default_rng([seed, n]), [], 0.0
    sides = []
    for sign, (accuracy, shares) in zip((1, -1), TASKS[name], strict=True):
        shares = np.array(shares) / np.sum(shares)
        truth += sign * (accuracy - shares.max()) / (1 - shares.max())
        sides.append(
            (random.random((simulations, n)) < accuracy, random.choice(len(shares), (simulations, n), p=shares))
        )
    for a, labels_a, b, labels_b in zip(*sides[0], *sides[1], strict=True):
        intervals.append(stats.normalised_differences(a[None].astype(float), b[None].astype(float), labels_a, labels_b))
    return covered(np.array(intervals)[:, 1:, 0].T, truth)


def crossed(seeds, n, *, moved=0.2, simulations=400, seed=0):
    """Two probes, `seeds` fits of each: texts, seeds and what is left all move whether a probe is right.

    moved: how much a seed does, in standard deviations of what is left.
    """
    random, intervals = np.random.default_rng([seed, seeds, n]), []
    means = np.array([0.9, 0.6])[:, None, None]
    truth = float(np.subtract(*norm.cdf(means.ravel() / np.sqrt(1 + 0.5 + 1 + moved**2))))
    for _ in range(simulations):
        latent = random.normal(size=n) + np.sqrt(0.5) * random.normal(size=(2, 1, n))
        latent = latent + moved * random.normal(size=(2, seeds, 1)) + random.normal(size=(2, seeds, n)) + means
        a, b = (pd.DataFrame(side.astype(float)) for side in latent > 0)
        intervals.append(stats.paired_difference(a, b)[1:])
    return covered(np.array(intervals).T, truth)


# ------------------------------------------------------------------------------ the difference between two procedures

DISTANCES = {"cls": (0.6, 0.9, 1.0), "mean": (0.9, 1.0, 0.8)}  # between two classes, of every layer of two readouts
DIM, ALONG = 16, 4  # dimensions of a vector, and those along which the classes differ
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)  # quadrature of a standard normal variable


def _draw_vectors(random, n, numbers, group_size):
    """y (text,), X (cell, text, DIM) and groups (text,): the cells share half of their variance, and texts of a group
    share half of that."""
    y = random.normal(size=n) if numbers else random.integers(2, size=n)
    group = np.arange(n) // group_size
    shared = random.normal(size=(n, DIM))
    if group_size > 1:
        shared = np.sqrt(0.5) * (shared + random.normal(size=(group.max() + 1, DIM))[group])
    moved = y / 2 if numbers else y - 0.5
    X = np.sqrt(0.5) * (shared + random.normal(size=(sum(map(len, DISTANCES.values())), n, DIM)))
    X[..., :ALONG] += moved[:, None] * np.concatenate([*DISTANCES.values()])[:, None, None]
    return y, X.astype(np.float32), group


def _true_scores(metric, distance, w, b):
    """What a linear probe x -> x w + b is right on, minus its bits, or its R2, over all texts there could be."""
    along, norm_of_w = w[:ALONG].sum() * distance / 2, np.sqrt((w**2).sum())
    if metric == "r2":
        return 1 - ((1 - along) ** 2 + norm_of_w**2 + b**2)
    if metric == "accuracy":
        return (norm.cdf((along + b) / norm_of_w) + norm.cdf((along - b) / norm_of_w)) / 2
    losses = [np.logaddexp(0, -(along + sign * b + norm_of_w * NODES)) for sign in (1, -1)]
    return -(np.mean(losses, 0) @ WEIGHTS) / WEIGHTS.sum() / np.log(2)


def _run_procedures(random, n_train, sizes, metrics, share_of_dev, group_size):
    """For every metric: the estimated differences of two procedures at every test size, and the true difference of the
    probes that were fitted. Strength and layer are chosen on dev, of the whole and of every half of it."""
    numbers = "r2" in metrics
    counts = (n_train, int(n_train * share_of_dev), max(sizes))
    drawn = [_draw_vectors(random, count, numbers, group_size) for count in counts]
    y, X = np.concatenate([part[0] for part in drawn]), np.concatenate([part[1] for part in drawn], 1)
    group, side = np.arange(len(y)) // group_size, np.repeat(["train", "dev", "test"], counts)
    classes = np.array([]) if numbers else np.array(["a", "b"])
    rows = np.arange(len(y))
    split = SplitTask(None, rows, rows, side, group, y, classes, {}, [])
    train, dev, test = map(split.rows_of, ("train", "dev", "test"))
    halves = draw_halves(split, seed=int(random.integers(2**32)))
    label_sets = [y, *(np.where(half == part, y, np.nan if numbers else -1) for half in halves for part in (0, 1))]
    labels, sets = np.stack(label_sets, 1), np.arange(len(label_sets))
    probe = RidgeProbe() if numbers else LogisticProbe(tol=ROUGH)
    probe.fit_cells(X[:, train], labels[train], dev=(X[:, dev], labels[dev]), strengths=STRENGTHS)
    known = has_label(labels[dev]).T
    if numbers:
        predicted = probe.predict_cells(X)
        on_dev = {"r2": -np.where(known, (predicted[..., dev] - y[dev]) ** 2, 0).sum(-1)}
        on_test = {"r2": [stats.skill(predicted[..., test[:size]], y[test[:size]]) for size in sizes]}
    else:
        log2_proba = probe.log_proba_cells(X) / np.log(2)
        own = np.where(y == 1, log2_proba[..., 1], log2_proba[..., 0])
        right = (log2_proba.argmax(-1) == y).astype(float)
        bits_on_dev = np.where(known, own[..., dev], 0).sum(-1)
        on_dev = {"accuracy": np.where(known, right[..., dev], 0).sum(-1) + 1e-6 * bits_on_dev, "bits": bits_on_dev}
        on_test = {
            name: [scores[..., test[:size]] for size in sizes] for name, scores in (("accuracy", right), ("bits", own))
        }
    results = {}
    for name in metrics:
        readouts = np.split(np.arange(len(X)), len(DISTANCES))
        chosen = [cells[on_dev[name][cells].argmax(0)] for cells in readouts]  # (label set,) of every readout
        estimates = []
        for size, scores in zip(sizes, on_test[name], strict=True):
            cls, mean = (scores[cell, sets] for cell in chosen)
            estimates.append(
                stats.compare(
                    mean[:1], cls[:1], shares=name == "accuracy",
                    halves=(mean - cls)[1:].reshape(len(halves), 2, 1, size), groups=group[test[:size]],
                )
            )  # fmt: skip
        truths = []
        for cell in (chosen[1][0], chosen[0][0]):
            coef, intercept = probe.coef_[cell, 0], probe.intercept_[cell, 0]
            if not numbers:
                coef, intercept = coef[1] - coef[0], intercept[1] - intercept[0]
            w = coef / probe.scale_[cell]
            distance = np.concatenate([*DISTANCES.values()])[cell]
            truths.append(_true_scores(name, distance, w, intercept - w @ probe.mean_[cell]))
        results[name] = estimates, truths[0] - truths[1]
    return results


def procedures(n_train, sizes=(100, 500, 2000), *, metrics, share_of_dev=1 / 3, group_size=1, simulations=400, seed=0):
    """Two readouts of three layers each, whose strength and layer dev chooses. For every metric, a row per test size:
    how often the interval holds the *expected* difference of two procedures trained on so many texts; how often that of
    the probes as they were fitted does; how often the latter holds the difference of these probes."""
    random = np.random.default_rng([seed, n_train, group_size])
    runs = [_run_procedures(random, n_train, sizes, metrics, share_of_dev, group_size) for _ in range(simulations)]
    coverage = {}
    for name in metrics:
        true = np.array([run[name][1] for run in runs])
        rows = []
        for i in range(len(sizes)):
            estimates = [run[name][0][i] for run in runs]
            ends = np.array([estimate.interval() for estimate in estimates]).T
            ends_of_fits = np.array([estimate.of_fits.interval() for estimate in estimates]).T
            rows.append((covered(ends, true.mean()), covered(ends_of_fits, true.mean()), covered(ends_of_fits, true)))
        coverage[name] = rows
    return coverage


def _table(title, columns, rows):
    print(f"\n{title}\n")
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for name, *values in rows:
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


def _numbers(kind, random, shape, R2):
    """True and predicted numbers (simulation, text); what is predicted is half blind where R2 is a half."""
    if kind == "Gaussian":
        true, spread = random.normal(size=shape), 1.0
    elif kind == "lengths":  # of sentences in words
        true, spread = np.round(random.gamma(4, 3, shape)), 6.0
    elif kind == "depths":  # of trees: seven numbers, so nearly all texts are tied
        true, spread = random.binomial(6, 0.3, shape).astype(float), np.sqrt(1.26)
    else:  # "log-normal": the error grows with the number
        true = np.exp(random.normal(size=shape))
        spread = 1 + true / 2
    predicted = R2 * true + np.sqrt(R2 * (1 - R2)) * spread * random.normal(size=shape)
    return true, predicted + (1 - R2) * {"Gaussian": 0, "lengths": 12, "depths": 1.8}.get(kind, np.exp(0.5))


NUMBERS = ("Gaussian", "lengths", "depths", "log-normal")


@cache
def _truth(kind, R2):
    """R2, Spearman's correlation and the standard deviation of the numbers of a million texts."""
    true, predicted = _numbers(kind, np.random.default_rng(1), (1, 1_000_000), R2)
    ranks = [rankdata(numbers[0]) for numbers in (true, predicted)]
    return stats.skill(predicted, true).mean(), np.corrcoef(*ranks)[0, 1], true.std()


def r2(kind, n, R2, *, simulations=SIMULATIONS):
    true, predicted = _numbers(kind, np.random.default_rng([n, 2]), (simulations, n), R2)
    return covered(stats.mean_interval(stats.skill(predicted, true)), _truth(kind, R2)[0])


def r2_by_percentile(kind, n, R2, *, simulations=400):
    true, predicted = _numbers(kind, np.random.default_rng([n, 2]), (simulations, n), R2)
    ends = [
        stats.percentile(stats.bootstrap(lambda counts, a=a, b=b: metric.r2(a[None], b, counts), n))
        for a, b in zip(predicted, true, strict=True)
    ]
    return covered(np.array(ends)[:, :, 0].T, _truth(kind, R2)[0])


def spearman(kind, n, R2, *, simulations=SIMULATIONS):
    true, predicted = _numbers(kind, np.random.default_rng([n, 2]), (simulations, n), R2)
    intervals = [stats.number_intervals(a[None], b)["spearman"] for a, b in zip(predicted, true, strict=True)]
    return covered(np.array(intervals)[:, 1:, 0].T, _truth(kind, R2)[1])


def r2_difference(kind, n, R2, other, *, simulations=SIMULATIONS):
    """Paired: two probes that err apart, over the same texts."""
    random, spread = np.random.default_rng([n, 3]), _truth(kind, R2)[2]  # not the sample's own: it is what varies
    held = []
    for _ in range(simulations):
        true, predicted = _numbers(kind, random, (1, n), R2)
        worse = predicted + np.sqrt(R2 - other) * spread * random.normal(size=(1, n))
        a, b = (pd.DataFrame(stats.skill(part, true)) for part in (predicted, worse))
        _, low, high = stats.paired_difference(a, b, shares=False)
        held.append(low <= R2 - other <= high)
    return float(np.mean(held))


def _print_procedures():
    """The tables of procedures. Simulations with many training texts take long: there are fewer of them."""
    for title, simulations, options in (
        ("a dev of a third of train", {150: 400, 600: 400, 2500: 200}, {}),
        ("a dev of a seventh of train", {150: 200}, {"share_of_dev": 1 / 7}),
        ("groups of four texts", {150: 200, 600: 200}, {"group_size": 4}),
    ):
        rows = []
        for metrics in (("accuracy", "bits"), ("r2",)):
            for n_train, count in simulations.items():
                table = procedures(n_train, metrics=metrics, simulations=count, **options)
                for name in metrics:
                    rows.append((f"{name}, {n_train:,}", *(value for row in table[name] for value in row[:2])))
        sizes = [f"{what}, n = {size:,}" for size in (100, 500, 2000) for what in ("expected", "as if fitted")]
        _table(f"The expected difference of two procedures, {title}", ["metric, training texts", *sizes], rows)


if __name__ == "__main__":
    sizes = [f"n = {n:,}" for n in SIZES]
    _table("Accuracy (Wilson)", ["accuracy", *sizes], [(p, *(accuracy(n, p) for n in SIZES)) for p in LEVELS])
    _table("Bits (Hall)", ["accuracy", *sizes], [(p, *(bits(n, p) for n in SIZES)) for p in LEVELS])
    _table(
        "Bits of an over-confident probe (Hall)",
        ["accuracy", *sizes],
        [(p, *(bits(n, p, sharpness=2) for n in SIZES)) for p in LEVELS],
    )
    _table("Macro-F1", ["data", *sizes], [(name, *(macro_f1(name, n) for n in SIZES)) for name in CONFUSIONS])
    _table(
        "Paired difference of accuracies, one seed",
        ["texts that only one gets right, that only the other does", *sizes],
        [
            (f"{a:.0%}, {b:.0%}", *(paired(n, a, b) for n in SIZES))
            for a, b in ((0.01, 0.01), (0.05, 0.05), (0.1, 0.03), (0.2, 0.1))
        ],
    )
    _table(
        "Selectivity",
        ["accuracy of task and control task, classes", "n = 100", *sizes],
        [(name, *(selectivity(name, n) for n in (100, *SIZES))) for name in TASKS],
    )
    _table(
        "Paired difference of accuracies, seeds and texts crossed",
        ["seeds", *sizes[:2]],
        [(s, *(crossed(s, n) for n in SIZES[:2])) for s in (2, 3, 5, 10)],
    )
    levels = [(kind, R2) for kind in NUMBERS for R2 in (0.02, 0.5, 0.9)]
    for title, measure in (("R2", r2), ("Spearman's correlation", spearman)):
        rows = [(f"{kind}, R2 {R2}", *(measure(kind, n, R2) for n in SIZES)) for kind, R2 in levels]
        _table(title, ["numbers", *sizes], rows)
    _table(
        "Paired difference of R2, one seed",
        ["R2 of the two", *sizes],
        [(f"{a}, {b}", *(r2_difference("Gaussian", n, a, b) for n in SIZES)) for a, b in ((0.5, 0.48), (0.9, 0.6))],
    )
    _table(
        "What the percentile bootstrap covers, for comparison",
        ["data", *sizes[:2]],
        [
            ("bits, accuracy 0.95", *(bits_by_percentile(n, 0.95) for n in SIZES[:2])),
            *((f"R2 0.5, {kind}", *(r2_by_percentile(kind, n, 0.5) for n in SIZES[:2])) for kind in NUMBERS),
            *(
                (
                    f"macro-F1, {name}",
                    *(macro_f1(name, n, simulations=400, interval=f1_by_percentile) for n in SIZES[:2]),
                )
                for name in list(CONFUSIONS)[4:8:1]
            ),
        ],
    )
    _print_procedures()
