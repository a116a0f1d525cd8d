"""Tables computed from predictions: learning rates that dev chooses, readouts against [CLS], results, accuracies.

rows: predictions of one task. The probe of a fine-tuned encoder is called "fine-tuned RATE", that of the original
encoder "frozen".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.fine_tuning.plan import MOST_SEEDS
from clsprobe.analysis.sweep.exhibits import DIFFERENCES, MORE, NO_WORSE
from clsprobe.analysis.sweep.scores import BEST_CLASS, ChosenCell, TaskScores
from clsprobe.analysis.sweep.wording import READOUT_NAMES
from clsprobe.analysis.table import COLUMNS, KEY, check_results
from clsprobe.analysis.verdict import TAIL, MissingEvidence, Part, holm

TUNED = "fine-tuned "  # prefix of the name of such a probe; its rate follows
POOLED = ("mean", "max", "attention", "flatten", "flatten_projected", "cat")
RATE = "rate (millionths)"
PLACED = {  # a token -> its readouts with the first position and with the one behind the last
    "[CLS]": ("cls", "cls@last"),
    "new token": ("new@first", "new@last"),
    "first word": ("token[1]@first", "token[1]@last"),
}
ACCURACIES = (
    "readout", "rate", "edge", "fine-tuned", "low", "high", "seeds", "frozen", "gained", "p_no_worse", "p_worse",
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
        is_smallest = 0 < chosen == min(rates, default=np.nan)
        is_largest = chosen == max(rates, default=np.nan)
        edges[readout] = ("only" if is_largest else "smallest") if is_smallest else "largest" if is_largest else ""
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


def score_tuned(rows: pd.DataFrame) -> TaskScores:
    """The scores of the fine-tuned encoders."""
    return TaskScores(rows[rows.probe.str.startswith(TUNED)])


def choose_cells(scores: TaskScores) -> dict[str, ChosenCell]:
    """Readout -> its fine-tuned cell, at the rate that dev chooses.

    Raises MissingEvidence where cls or every other readout is missing.
    """
    names = list(dict.fromkeys(scores.rows.readout[scores.rows.split == "dev"]))
    if "cls" not in names or len(names) < 2:
        raise MissingEvidence(f"there are no predictions of {'another readout' if 'cls' in names else 'cls'} on dev")
    return {name: scores.choose(name) for name in names}


def make_parts(scores: TaskScores, cells: Mapping[str, ChosenCell], margin: float) -> dict[str, Part]:
    """Readout -> the part "its accuracy minus that of [CLS] is above -margin", over the same test texts and seeds."""
    return {
        name: replace(scores.compare(cell, cells["cls"], threshold=-margin), name=READOUT_NAMES.get(name, name))
        for name, cell in cells.items()
        if name != "cls"
    }


def compare_with_best_class(scores: TaskScores, cell: ChosenCell) -> Part:
    """The part "this cell is more often right than the best single class of test"."""
    best_class = ChosenCell({"control": BEST_CLASS}, "the best single class", np.nan, np.nan, np.nan, np.nan)
    return scores.compare(cell, best_class)


def needed_seeds(parts: Sequence[Part]) -> int:
    """How many seeds would decide, at these effects, an undecided claim that all parts hold.

    More than `MOST_SEEDS` where these texts are too few. parts: of two seeds or more.
    """
    failing = [part for part in parts if part.effect < part.threshold]
    tail = TAIL / len(parts) if failing else TAIL  # one of many that fails is corrected for their number
    counts = [_count_seeds(part, tail) for part in failing or parts if part.p_yes >= TAIL]
    return (min if failing else max)(counts, default=MOST_SEEDS + 1)


def _count_seeds(part: Part, tail: float) -> int:
    """The number of seeds at which half the interval is as wide as its centre is away from the threshold.

    tail: what the interval leaves out on either side.
    """
    estimate = part.estimate
    for count in range(estimate.seeds + 1, MOST_SEEDS + 1):
        more = replace(estimate, freedom={**estimate.freedom, "seeds": count - 1})
        if more.half_width(tail, seeds=count / estimate.seeds) <= abs(estimate.centre - part.threshold):
            return count
    return MOST_SEEDS + 1


def positions(names: Iterable[str]) -> list[str]:
    """The single tokens among readouts, or all of them where there is none."""
    names = list(names)
    return [name for name in names if not is_pooled(name)] or names


def compare_with_cls(rows: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Every readout minus [CLS], each at the rate that dev chooses, over the same test texts and seeds.

    Single tokens and poolings are two families. Columns name, effect, low, high (95 % intervals that hold for all of a
    family at once, Bonferroni), outcome (a word of `NO_WORSE`), rate, accuracy, of_cls, p_no_worse, p_worse (one-sided,
    of the opposite of these words, by the margin; adjusted for the family by `holm`). Raises MissingEvidence where cls
    or every other readout is missing.
    """
    scores, compared = score_tuned(rows), []
    cells = choose_cells(scores)
    parts = make_parts(scores, cells, margin)
    singles = positions(parts)
    for family in (singles, [name for name in parts if name not in singles]):
        p_yes, p_no = holm([parts[name].p_yes for name in family]), holm([parts[name].p_no for name in family])
        for name, p_no_worse, p_worse in zip(family, p_yes, p_no, strict=True):
            outcome = "yes" if p_no_worse < TAIL else "no" if p_worse < TAIL else "undecided"
            part = parts[name].simultaneous(len(family))
            row = {
                "name": name,
                "effect": part.effect,
                "low": part.low,
                "high": part.high,
                "outcome": NO_WORSE[outcome],
            }
            row |= {"rate": str(cells[name].where["probe"]).removeprefix(TUNED), "accuracy": cells[name].test}
            compared.append(row | {"of_cls": cells["cls"].test, "p_no_worse": p_no_worse, "p_worse": p_worse})
    return pd.DataFrame(compared)


def cross_tokens_and_positions(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tokens by positions: the accuracies, and their differences along and across; empty where there is no difference.

    Columns token, first, last; and name, effect, low, high (95 % intervals that hold for all differences at once,
    Bonferroni), outcome (a word of `MORE`).
    """
    scores = score_tuned(rows)
    cells = {name: scores.choose(name) for name in choose_rates(rows) if any(name in of for of in PLACED.values())}
    tokens = {token: names for token, names in PLACED.items() if set(names) & cells.keys()}
    pairs = [(f"{token}: last minus first", last, first) for token, (first, last) in tokens.items()]
    pairs += [
        (f"{place}: {token} minus [CLS]", names[i], PLACED["[CLS]"][i])
        for token, names in tokens.items()
        if token != "[CLS]"
        for i, place in enumerate(("first", "last"))
    ]
    pairs = [pair for pair in pairs if {*pair[1:]} <= cells.keys()]
    estimates = [(name, scores.difference(cells[a], cells[b])) for name, a, b in pairs]
    parts = [Part.of(name, estimate).simultaneous(len(pairs)) for name, estimate in estimates]
    words = [MORE["yes" if part.low > 0 else "no" if part.high < 0 else "undecided"] for part in parts]
    differences = [(part.name, part.effect, part.low, part.high, word) for part, word in zip(parts, words, strict=True)]
    accuracies_of_tokens = [
        (token, *(cells[name].test if name in cells else np.nan for name in names)) for token, names in tokens.items()
    ]
    table = pd.DataFrame(accuracies_of_tokens if parts else [], columns=["token", "first", "last"])
    return table, pd.DataFrame(differences, columns=DIFFERENCES)


def accuracies(rows: pd.DataFrame, steps: pd.DataFrame, compared: pd.DataFrame) -> pd.DataFrame:
    """Every readout fine-tuned and frozen, then the majority: columns `ACCURACIES`. compared: `compare_with_cls`."""
    p, edges, table = compared.set_index("name"), find_edges(rows, steps), []
    for name, rate in choose_rates(rows).items():
        correct = stats.correctness(rows, control="none", readout=name, probe=rate).to_numpy()
        frozen = float(stats.correctness(rows, control="none", readout=name, probe="frozen").to_numpy().mean())
        low, high = stats.wilson(correct.mean(), correct.shape[1])
        spread = correct.mean(1).std(ddof=1) if len(correct) > 1 else np.nan
        tests = [p.p_no_worse.get(name, np.nan), p.p_worse.get(name, np.nan)]
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
