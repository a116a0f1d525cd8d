"""Tables computed from predictions: learning rates that dev chooses, readouts against [CLS], results, accuracies.

rows: predictions of one task. The probe of a fine-tuned encoder is called "fine-tuned RATE", that of the original
encoder "frozen".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import numpy as np
import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.table import COLUMNS, KEY, check_results
from clsprobe.analysis.verdict import MissingEvidence, holm

TUNED = "fine-tuned "  # prefix of the name of such a probe; its rate follows
POOLED = ("mean", "max", "attention", "flatten", "flatten_projected", "cat")
RATE = "rate (millionths)"
ACCURACIES = (
    "readout", "rate", "edge", "fine-tuned", "low", "high", "seeds", "frozen", "gained", "p_equal", "p_apart",
)  # fmt: skip


def is_pooled(readout: str) -> bool:
    """Whether a readout pools many tokens."""
    return readout.partition("@")[0].partition("(")[0].partition("[")[0] in POOLED


def choose_rates(rows: pd.DataFrame) -> dict[str, str]:
    """Readout -> the fine-tuned probe (a rate) with the best dev accuracy over all seeds, then the fewest dev bits."""
    tuned = rows[rows.probe.str.startswith(TUNED)]
    best = stats.best_layers(tuned).drop_duplicates("readout").set_index("readout").probe
    return {str(readout): str(best[readout]) for readout in dict.fromkeys(tuned.readout) if readout in best}


def diverged_rates(steps: pd.DataFrame) -> list[tuple[str, str, float]]:
    """Task, readout, rate of the trainings that diverged with any seed: the loss of their last step is not finite."""
    diverged = steps[~np.isfinite(steps.loss)]
    return list(diverged[["task", "readout", "rate"]].drop_duplicates().itertuples(index=False, name=None))


def find_edges(rows: pd.DataFrame, steps: pd.DataFrame) -> dict[str, str]:
    """Readout -> "smallest", "largest" or "only" where its chosen rate is that of its trained rates, else "".

    A rate of 0, below which there is none, is no edge below, and one that diverged bounds the others. steps: of this
    task.
    """
    edges = {}
    for readout, probe in choose_rates(rows).items():
        rates, chosen = set(steps.rate[steps.readout == readout]), float(probe.removeprefix(TUNED))
        ends = [f"{end:g}" == f"{chosen:g}" for end in (min(rates), max(rates))] if rates else [False, False]
        ends[0] &= chosen > 0
        edges[readout] = {(True, True): "only", (True, False): "smallest", (False, True): "largest"}.get(
            tuple(ends), ""
        )
    return edges


def describe_rates(rows: pd.DataFrame, steps: pd.DataFrame, where: str = "") -> list[str]:
    """Sentences on readouts whose chosen rate is an edge, and on trainings that diverged.

    steps: of this task. where: "On TASK", or empty.
    """
    start = f"{where}, dev" if where else "Dev"
    chosen, edges, sentences = choose_rates(rows), find_edges(rows, steps), []
    for edge, remedy in (("largest", "a larger"), ("smallest", "a smaller"), ("only", "another")):
        readouts = [f"{name} ({chosen[name].removeprefix(TUNED)})" for name, end in edges.items() if end == edge]
        if readouts:
            sentences.append(
                f"{start} chooses the {edge} rate that was trained for {', '.join(readouts)}: {remedy} one may suit "
                f"{'it' if len(readouts) == 1 else 'each of them'} better than what is shown."
            )
    if diverged := [f"{readout} at {rate:g}" for _, readout, rate in diverged_rates(steps)]:
        sentences.append(
            f"{where + ', t' if where else 'T'}rainings diverged, and are left out: {', '.join(diverged)}."
        )
    return sentences


def compare_with_cls(rows: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Every readout minus [CLS], each at the rate that dev chooses, over the same test texts and seeds.

    Columns name, effect, low, high, outcome ("yes": no worse by the margin), rate, accuracy, of_cls, p_equal (of
    equal accuracies) and p_apart (of a difference of the margin or more), both adjusted by `holm`. Raises
    MissingEvidence where cls or every other readout is missing.
    """
    rates = choose_rates(rows)
    others = [name for name in rates if name != "cls"]
    if "cls" not in rates or not others:
        raise MissingEvidence(f"there are no predictions of {'another readout' if 'cls' in rates else 'cls'} on dev")
    correct = {name: stats.correctness(rows, control="none", readout=name, probe=rate) for name, rate in rates.items()}
    pairs = [(correct[name], correct["cls"]) for name in others]
    effect, low, high = np.array([stats.paired_difference(*pair) for pair in pairs]).T
    p_equal, p_apart, p_worse = (
        np.array(holm([p(*pair) for pair in pairs]))
        for p in (
            stats.difference_p,
            partial(stats.equivalence_p, margin=margin),
            lambda a, b: stats.compare(a, b).p_below(-margin),
        )
    )
    return pd.DataFrame(
        {
            "name": others,
            "effect": effect,
            "low": low,
            "high": high,
            "outcome": np.where(low > -margin, "yes", np.where(p_worse < 0.025, "no", "undecided")),
            "rate": [rates[name].removeprefix(TUNED) for name in others],
            "accuracy": [float(correct[name].to_numpy().mean()) for name in others],
            "of_cls": float(correct["cls"].to_numpy().mean()),
            "p_equal": p_equal,
            "p_apart": p_apart,
        }
    )


def accuracies(rows: pd.DataFrame, steps: pd.DataFrame, compared: pd.DataFrame) -> pd.DataFrame:
    """Every readout fine-tuned and frozen, then the majority: columns `ACCURACIES`. compared: `compare_with_cls`."""
    p, edges, table = compared.set_index("name"), find_edges(rows, steps), []
    for name, rate in choose_rates(rows).items():
        correct = stats.correctness(rows, control="none", readout=name, probe=rate).to_numpy()
        frozen = float(stats.correctness(rows, control="none", readout=name, probe="frozen").to_numpy().mean())
        low, high = stats.wilson(correct.mean(), correct.shape[1])
        spread = correct.mean(1).std(ddof=1) if len(correct) > 1 else np.nan
        tests = [p.p_equal.get(name, np.nan), p.p_apart.get(name, np.nan)]
        gained = correct.mean() - frozen
        rate = rate.removeprefix(TUNED)
        table.append((name, rate, edges[name], correct.mean(), low, high, spread, frozen, gained, *tests))
    sorted_table = pd.DataFrame(table, columns=[*ACCURACIES]).sort_values("fine-tuned", ascending=False, kind="stable")
    majority = {
        "readout": "commonest class",
        "edge": "",
        "frozen": float(stats.correctness(rows, control="majority").to_numpy().mean()),
    }
    last = pd.DataFrame([majority], columns=[*ACCURACIES]).astype(sorted_table.dtypes)
    return pd.concat([sorted_table, last], ignore_index=True)


def sensitivity(rows: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy of every readout at every rate: columns readout, `RATE`, value, low, high."""
    table = stats.accuracies(rows[rows.probe.str.startswith(TUNED) & (rows.split == "test")], ["readout", "probe"])
    rates = [1e6 * float(probe.removeprefix(TUNED)) for probe in table.probe]
    return table.assign(**{RATE: rates}).drop(columns=["probe", "count"])


def learning_curves(rows: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Dev accuracy over the steps, of every readout at its rate: columns readout, step, value, low, high.

    steps: of the same task.
    """
    probes = steps.rate.map(lambda rate: f"{TUNED}{rate:g}")
    chosen = steps[steps.dev.notna() & (probes == steps.readout.map(choose_rates(rows)))]
    table = chosen.groupby(["readout", "step"], sort=False).dev.mean().rename("value").reset_index()
    table["low"], table["high"] = stats.wilson(table.value.to_numpy(), rows[rows.split == "dev"].row.nunique())
    return table


def results_of(
    predictions: pd.DataFrame, n_train: dict[str, int], converged: Collection[tuple[str, str]]
) -> pd.DataFrame:
    """The results table of predictions. n_train: by task. converged: task, readout of converged frozen probes."""
    rows = []
    for key, cell in predictions.groupby(list(KEY[:-1]), observed=True, sort=False):
        codes = pd.factorize(np.concatenate([cell.label, cell.predicted]))[0].reshape(2, -1)
        measured = stats.intervals(codes[1:], codes[0], cell.log2_probability.to_numpy()[None])
        task, readout, probe = key[1], key[4], key[5]
        has_converged = probe.startswith(TUNED) or (task, readout) in converged
        rows += [
            (*key, metric, *(float(part[0]) for part in estimate), n_train[task], len(cell), has_converged)
            for metric, estimate in measured.items()
        ]
    return check_results(pd.DataFrame(rows, columns=list(COLUMNS)))


def check_orders(steps: pd.DataFrame) -> pd.DataFrame:
    """The table itself. Raises RuntimeError where two readouts saw their texts in different orders."""
    for (task, seed), orders in steps.groupby(["task", "seed"]).order:
        if orders.nunique() > 1:
            raise RuntimeError(f"with seed {seed} the trainings on {task} saw their texts in different orders")
    return steps


def worst_position(compared: pd.DataFrame) -> tuple[pd.Series, Sequence[str], int]:
    """The position that is worst against [CLS], all outcomes, and their number; of all readouts without positions."""
    positions = compared[~compared.name.map(is_pooled)]
    if positions.empty:
        positions = compared
    return positions.loc[positions.effect.idxmin()], list(positions.outcome), len(positions)
