"""The judged cells of a task, their tables, and differences of every cell.

1. `judged_rows`: the predictions of the probe that is judged.
2. `summary`, `list_baselines`, `by_number`, `disagreements`: tables of chosen cells.
3. `gain` and `selectivity`: every cell minus the best baseline, and minus its control task; joins over the results.
4. `compare_probes`: several probes, each readout at the layer that dev chooses for the probe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.study import counted
from clsprobe.analysis.sweep.plan import BASELINES
from clsprobe.analysis.sweep.scores import CONTROL_NAMES, ChosenCell, TaskScores
from clsprobe.analysis.table import NUMBERS
from clsprobe.analysis.verdict import MissingEvidence
from clsprobe.probes.tasks.texts import readable

COMPARED_ON_ALL = (*BASELINES, "shuffled")  # the controls with a label for every text
DISAGREEMENTS = ("right", "text", "label", "the other says", "row")


def judged_probe(rows: pd.DataFrame, names: Sequence[str]) -> str:
    """The first of the named probes that was fitted on this task. rows: predictions of one task.

    Raises MissingEvidence where all of them failed.
    """
    probes = set(rows.probe[rows.control == "none"].unique())
    for name in names:
        if name in probes:
            return name
    raise MissingEvidence("no probe could be fitted in any cell")


def judged_rows(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The rows of the judged probe, also on untrained encoders, and those of the other baselines.

    Cells in which the probe failed under one of several seeds are left out: they cannot be compared with others over
    the same texts. rows: predictions of one task. Raises MissingEvidence where the probe failed in every cell.
    """
    fixed = {*BASELINES, "word_type_bag_of_words"} - {"untrained"}
    baselines = rows.control.isin(fixed)
    judged = rows[(rows.probe == judged_probe(rows, names)) | baselines]
    if judged.seed.nunique() == 1:
        return judged
    if judged[judged.control == "none"].seed.nunique() < judged.seed.nunique():
        raise MissingEvidence(f"{judged_probe(rows, names)} failed in every cell under one of the seeds")
    of_cell, of_control = (judged.groupby(by, observed=True).seed.transform("nunique") for by in (CELL, "control"))
    return judged[of_cell == of_control]


def accuracy_by_cell(rows: pd.DataFrame, readouts: Sequence[str] | None = None) -> pd.DataFrame:
    """Test accuracy of every cell (`stats.accuracies`), of these readouts or of all. rows: predictions of one task."""
    chosen = rows[(rows.split == "test") & (rows.control == "none")]
    return stats.accuracies(chosen if readouts is None else chosen[chosen.readout.isin(readouts)], ["layer", "readout"])


def list_baselines(
    scores: TaskScores, *first: ChosenCell, controls: Iterable[str] = tuple(CONTROL_NAMES)
) -> pd.DataFrame:
    """Columns name, value, low, high: those baselines and controls that were measured, after the cells in `first`."""
    cells = [*first, *(scores.choose(None, control) for control in scores.measured_controls(controls))]
    lines = [(cell.name, cell.test, cell.low, cell.high) for cell in cells]
    return pd.DataFrame(lines, columns=["name", "value", "low", "high"])


def summary(rows: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Every readout at the layer that dev chooses, best on dev first, with its scores, gain and selectivity.

    rows: predictions of one task. results: the results table. Columns readout, layer, accuracy, low, high (95 %), bits
    (held-out, per text), gain over the best baseline with its interval and name, selectivity over the control task with
    its interval (NaN where there is none, see `why_no_selectivity`), p (of no signal, max-T over all cells). Values and
    ends of intervals are means over seeds. Numbers have r2 instead of accuracy, spearman with its interval instead of
    bits, and no p.
    """
    numbers = stats.of_numbers(rows)
    metric = "r2" if numbers else "accuracy"
    best = stats.best_layers(rows).set_index(["readout", "layer", "probe"])
    of_task = results[(results.task == rows.task.iloc[0]) & results.probe.isin(rows.probe.unique())]
    test = of_task[(of_task.split == "test") & (of_task.control == "none")]
    corrected = (
        None if numbers else stats.above_chance(rows).groupby(["readout", "layer", "probe"], observed=True).p.max()
    )
    differences = {"gain": gain(of_task, rows), "selectivity": selectivity(of_task, rows)}
    summaries = []
    for cell in best.index:
        readout, layer, _ = cell

        def select(table: pd.DataFrame, metric: str, cell: tuple[str, int, str] = cell) -> pd.DataFrame:
            match = table[["readout", "layer", "probe"]].eq(pd.Series(cell, ["readout", "layer", "probe"])).all(axis=1)
            return table[match & (table.metric == metric)]

        score = select(test, metric)[["value", "low", "high"]].mean()
        row = {"readout": readout, "layer": layer, metric: score.value, "low": score.low, "high": score.high}
        if numbers:
            rho = select(test, "spearman")[["value", "low", "high"]].mean()
            row |= {"spearman": rho.value, "spearman low": rho.low, "spearman high": rho.high}
        else:
            row["bits"] = select(test, "bits").value.mean()
        for name, table in differences.items():
            per_seed = select(table, metric)
            row |= {name: per_seed.value.mean()}
            row |= {f"{name} {end}": per_seed[end].mean() for end in ("low", "high")}
            if name == "gain":
                row["over"] = per_seed.against.iloc[0] if len(per_seed) else ""
        summaries.append(row if corrected is None else row | {"p": corrected.get(cell, np.nan)})
    return pd.DataFrame(summaries)


def compare_probes(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Every named probe that reads this task, readout by readout at the layer that dev chooses for it.

    rows: all predictions of one task, not only the judged ones. Columns probe, readout, layer, accuracy (r2 for
    numbers) with low and high (95 %), bits (held-out, per text; classes only), difference from the judged probe on the
    same readout at the layer of that one, paired over the test texts, with its low and high (NaN for the judged probe
    itself and where it has no such readout).
    """
    measured: dict[str, TaskScores] = {}
    for probe in names:
        try:
            measured[probe] = TaskScores(judged_rows(rows, [probe]))
        except MissingEvidence:
            continue  # it reads other labels, or failed: the failures say so
    judged, table = judged_probe(rows, names), []
    reference: dict[str, ChosenCell] = {}
    for probe, scores in measured.items():
        for readout in stats.best_layers(scores.rows).readout.astype(str):
            cell = scores.choose(readout)
            row = {"probe": probe, "readout": readout, "layer": cell.layer, cell.metric.lower(): cell.test}
            row |= {"low": cell.low, "high": cell.high}
            if not scores.is_of_numbers:
                row["bits"] = -cell.rows(scores.rows[scores.rows.split == "test"]).log2_probability.mean()
            effect, ends = np.nan, (np.nan, np.nan)
            if probe == judged:
                reference[readout] = cell
            elif readout in reference:
                sides = scores.scores(cell.where), measured[judged].scores(reference[readout].where)
                difference = stats.compare(*sides, shares=not scores.is_of_numbers)
                effect, ends = difference.effect, difference.interval()
            table.append(row | {"difference": effect, "difference low": ends[0], "difference high": ends[1]})
    return pd.DataFrame(table)


def bands(numbers: np.ndarray, max_bands: int = 10) -> np.ndarray:
    """(text,) the band, such as "3 to 7", of each of the numbers (text,): between quantiles, at most `max_bands`."""
    edges = np.unique(np.quantile(numbers, np.arange(1, max_bands) / max_bands, method="nearest"))
    indices = np.searchsorted(edges, numbers, side="right")
    ends = {band: (numbers[indices == band].min(), numbers[indices == band].max()) for band in np.unique(indices)}
    names = {band: f"{low:g}" if low == high else f"{low:g} to {high:g}" for band, (low, high) in ends.items()}
    return np.array([names[band] for band in indices])


def by_number(rows: pd.DataFrame) -> pd.DataFrame:
    """The predictions of a cell, by bands of the true numbers, the lowest first.

    rows: predictions of one cell. Columns numbers ("3 to 7"), texts, true and predicted (means), off (root of the mean
    squared error).
    """
    true, predicted = (rows[column].to_numpy() for column in NUMBERS)
    parts = pd.DataFrame({"numbers": bands(true), "true": true, "predicted": predicted, "off": (predicted - true) ** 2})
    table = parts.groupby("numbers").agg(
        texts=("true", "size"), true=("true", "mean"), predicted=("predicted", "mean"), off=("off", "mean")
    )
    return table.assign(off=np.sqrt(table.off)).sort_values("true").reset_index()


def disagreements(
    rows: pd.DataFrame, a: ChosenCell, b: ChosenCell, texts: Sequence[str], *, limit: int = 10
) -> pd.DataFrame:
    """Test texts that one of two cells gets right and the other wrong, the largest gap in log probability first.

    rows: predictions of one task. Columns `DISAGREEMENTS`. At most `limit` texts for either cell.
    """
    test = rows[(rows.split == "test") & (rows.seed == rows.seed.min())]
    sides = [cell.rows(test).set_index("row") for cell in (a, b)]
    hits = [stats.is_correct(side) for side in sides]
    parts = []
    for cell, own, other, hit, miss in ((a, *sides, *hits), (b, *sides[::-1], *hits[::-1])):
        only = own[hit & ~miss.reindex(hit.index)].copy()
        only["gap"] = only.log2_probability - other.log2_probability.reindex(only.index)
        only = only.sort_values("gap", ascending=False, kind="stable").head(limit)
        parts.append(
            pd.DataFrame(
                {
                    "right": cell.name,
                    "text": [readable(texts[i]) for i in only.index],
                    "label": only.label.astype(str).to_numpy(),
                    "the other says": other.predicted.reindex(only.index).astype(str).to_numpy(),
                    "row": only.index.to_numpy(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


# ------------------------------------------------------------------------------------- differences of every cell

MIN_CONTROL_TEXTS = 100  # test texts of a selectivity
SIGN = {"accuracy": 1, "bits": -1, "r2": 1}  # -1 where lower is better
CELL = ["control", "layer", "readout", "probe"]  # identify a cell or baseline of one task and seed
OTHER = {column: f"other_{column}" for column in CELL}  # the same columns of the cell it is compared with


def gain(results: pd.DataFrame, predictions: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every cell minus the best baseline of its task, seed and metric, which dev chooses.

    Columns model, task, layer, readout, probe, seed, metric ("accuracy", "r2", or "bits" saved), value, low, high
    (paired over the test texts; NaN without predictions), against. Higher is better. An untrained encoder is a baseline
    only of the probe that read it.
    """
    rows = results[results.metric.isin(SIGN)]
    dev = rows[(rows.split == "dev") & rows.control.isin(BASELINES)]
    dev = dev.assign(score=dev.value * dev.metric.map(SIGN).astype(float))
    dev = dev.sort_values("score", ascending=False, kind="stable")
    cells = rows[(rows.split == "test") & (rows.control == "none")]
    shared = ["model", "task", "seed", "metric"]
    chosen = []
    for probe in cells.probe.unique():
        best = dev[(dev.control != "untrained") | (dev.probe == probe)].drop_duplicates(shared)
        chosen.append(best[[*shared, *CELL]].rename(columns=OTHER).assign(probe=probe))
    return _subtract(results, cells.merge(pd.concat(chosen), on=[*shared, "probe"]), predictions)


def selectivity(results: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Task minus control task, by the same probe in the same cell, trained and tested on the same texts.

    Hewitt & Liang (2019), for sentences: those texts that hold exactly one word type of the control task's list. Either
    accuracy is normalised as (accuracy - majority) / (1 - majority), majority the share of the commonest label among
    these test texts (`stats.normalised_differences`); R2 needs no normalisation. Columns as in `gain`, metric
    "accuracy" or "r2". No rows where `why_no_selectivity` says so.
    """
    columns = ["model", "task", "seed"]
    labelled = predictions[(predictions.split == "test") & predictions.control.isin(["word_type_texts", "word_type"])]
    reasons = {key: why_no_selectivity(rows) for key, rows in results.groupby(columns, observed=True)}
    parts = [pd.DataFrame(columns=[*stats.CELL, "metric", "value", "low", "high", "against"])]
    for key, rows in labelled.groupby(columns, observed=True):
        if reasons[key] is None:
            names = dict(zip(columns, key, strict=True))
            parts.append(_subtract_control_task(rows).assign(**names)[[*parts[0].columns]])
    return pd.concat(parts[1:] or parts, ignore_index=True)


def _subtract_control_task(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns of `selectivity` without model, task and seed, from the test rows of one of each."""
    cell, numbers = CELL[1:], stats.of_numbers(rows)
    scored = rows[[*CELL, "row"]].assign(score=stats.scores(rows))
    by_text = {
        name: part.pivot(index=cell, columns="row", values="score")
        for name, part in scored.groupby("control", observed=True)
    }
    task, control = by_text["word_type_texts"], by_text["word_type"]
    cells, texts = task.index.intersection(control.index), task.columns.intersection(control.columns)
    a, b = (side.loc[cells, texts].to_numpy(float) for side in (task, control))
    if numbers:
        value, (low, high) = (a - b).mean(1), stats.difference_intervals(a, b, shares=False)
        low, high = np.minimum(low, value), np.maximum(high, value)
    else:
        label = rows.drop_duplicates(["control", "row"]).set_index(["control", "row"]).label.astype(str)
        labels = (label[name].loc[texts].to_numpy() for name in ("word_type_texts", "word_type"))
        value, low, high = stats.normalised_differences(a, b, *labels)
    table = cells.to_frame(index=False).assign(metric="r2" if numbers else "accuracy", value=value, low=low, high=high)
    against = "word_type, " + table.readout.astype(str) + " at layer " + table.layer.astype(str)
    return table.assign(against=against).dropna(subset="value")


def why_no_selectivity(results: pd.DataFrame) -> str | None:
    """A clause on why the control task gives no selectivity, or None where it does.

    results: those of one task and seed. The control task needs two labels on train, labels on dev and test, and on test
    `MIN_CONTROL_TEXTS` of them, with at least half the share of the texts that it labels on train: a split that keeps
    words apart leaves few of its words on test, and their few labels would decide.
    """
    labelled = {side: set(part.control) for side, part in results.groupby("split", observed=True)}
    control_tasks = {"word_type", "word_type_texts"}
    if not control_tasks <= set(results.control):
        return "the training texts share too few words for a control task"
    if sides := [side for side in ("dev", "test") if not control_tasks <= labelled.get(side, set())]:
        return f"no text on {' or '.join(sides)} holds exactly one word of the control task's list"
    test = results[results.split == "test"]
    n_train, n_test = test[test.control == "word_type_texts"][["n_train", "n_test"]].max()
    on_train, on_test = n_train / test.n_train.max(), n_test / test.n_test.max()
    if on_test < on_train / 2:
        return (
            f"the words of train and test differ: {on_test:.0%} of the test texts hold exactly one word of the control "
            f"task's list, and {on_train:.0%} of the training texts"
        )
    if n_test < MIN_CONTROL_TEXTS:
        return (
            f"{counted(n_test, 'test text')} with exactly one word of the control task's list "
            f"{'is' if n_test == 1 else 'are'} too few ({MIN_CONTROL_TEXTS} are needed)"
        )
    return None


def _subtract(results: pd.DataFrame, cells: pd.DataFrame, predictions: pd.DataFrame | None) -> pd.DataFrame:
    """The scores of test cells minus those of the cells in their columns other_..., where these were measured."""
    shared = ["model", "task", "seed", "metric"]
    others = results.loc[results.split == "test", [*shared, *CELL, "value"]]
    pairs = cells.drop(columns=["low", "high"]).merge(
        others.rename(columns=OTHER | {"value": "other_value"}), on=[*shared, *OTHER.values()]
    )
    pairs["value"] = (pairs.value - pairs.other_value) * pairs.metric.map(SIGN).astype(float)
    pairs[["low", "high"]] = np.nan
    if predictions is not None:
        _add_intervals(pairs, predictions[predictions.split == "test"])
    control, layer, readout = (pairs[OTHER[column]].astype(str) for column in ("control", "layer", "readout"))
    pairs["against"] = control.where(pairs.other_layer < 0, control + ", " + readout + " at layer " + layer)
    return pairs[[*stats.CELL, "metric", "value", "low", "high", "against"]]


def _add_intervals(pairs: pd.DataFrame, test: pd.DataFrame) -> None:
    """Fill low and high of the pairs of cells that have predictions, in place."""
    for (model, task, seed), of_seed in pairs.groupby(["model", "task", "seed"], observed=True):
        predictions = test[(test.model == model) & (test.task == task) & (test.seed == seed)]
        for metric, group in of_seed.groupby("metric", observed=True):
            score = predictions.log2_probability if metric == "bits" else stats.scores(predictions)
            by_text = predictions[[*CELL, "row"]].assign(score=score).set_index([*CELL, "row"]).score.unstack("row")
            own, other = (
                by_text.reindex(pd.MultiIndex.from_frame(group[names])).to_numpy()
                for names in (CELL, [*OTHER.values()])
            )
            known = ~(np.isnan(own).all(1) | np.isnan(other).all(1))
            if not known.any():
                continue
            low, high = stats.difference_intervals(own[known], other[known], shares=metric == "accuracy")
            rows = group.index[known]
            value = pairs.value[rows].to_numpy(float)
            pairs.loc[rows, "low"] = np.minimum(low, value).astype(float)
            pairs.loc[rows, "high"] = np.maximum(high, value).astype(float)
