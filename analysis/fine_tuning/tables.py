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
    "readout", "rate", "fine-tuned", "low", "high", "seeds", "frozen", "gained", "p_equal", "p_apart",
)  # fmt: skip


def is_pooled(readout: str) -> bool:
    """Whether a readout pools many tokens."""
    return readout.partition("@")[0].partition("(")[0].partition("[")[0] in POOLED


def choose_rates(rows: pd.DataFrame) -> dict[str, str]:
    """Readout -> the fine-tuned probe (a rate) with the best dev accuracy over all seeds, then the fewest dev bits."""
    tuned = rows[rows.probe.str.startswith(TUNED)]
    best = stats.best_layers(tuned).drop_duplicates("readout").set_index("readout").probe
    return {str(readout): str(best[readout]) for readout in dict.fromkeys(tuned.readout) if readout in best}


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
            lambda a, b: stats.compare(a.to_numpy(float), b.to_numpy(float)).p_below(-margin),
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


def accuracies(rows: pd.DataFrame, compared: pd.DataFrame) -> pd.DataFrame:
    """Every readout fine-tuned and frozen, then the majority: columns `ACCURACIES`. compared: `compare_with_cls`."""
    p, table = compared.set_index("name"), []
    for name, rate in choose_rates(rows).items():
        correct = stats.correctness(rows, control="none", readout=name, probe=rate).to_numpy()
        frozen = float(stats.correctness(rows, control="none", readout=name, probe="frozen").to_numpy().mean())
        low, high = stats.wilson(correct.mean(), correct.shape[1])
        spread = correct.mean(1).std(ddof=1) if len(correct) > 1 else np.nan
        tests = [p.p_equal.get(name, np.nan), p.p_apart.get(name, np.nan)]
        gained = correct.mean() - frozen
        table.append((name, rate.removeprefix(TUNED), correct.mean(), low, high, spread, frozen, gained, *tests))
    sorted_table = pd.DataFrame(table, columns=[*ACCURACIES]).sort_values("fine-tuned", ascending=False, kind="stable")
    majority = {
        "readout": "commonest class",
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
    rates = {name: float(rate.removeprefix(TUNED)) for name, rate in choose_rates(rows).items()}
    chosen = steps[steps.dev.notna() & (steps.rate == steps.readout.map(rates))]
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
