"""The judged cells of a task, their tables, and differences of every cell.

1. `judged_rows`: the predictions of the probe that is judged.
2. `summary`, `list_baselines`, `by_number`, `disagreements`: tables of chosen cells.
3. `gain` and `selectivity`: every cell minus the best baseline, and minus its control task; joins over the results.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.sweep.plan import BASELINES
from clsprobe.analysis.sweep.scores import CONTROL_NAMES, ChosenCell, TaskScores
from clsprobe.analysis.table import NUMBERS
from clsprobe.analysis.verdict import MissingEvidence
from clsprobe.probes.tasks.task import readable

DISAGREEMENTS = ("right", "text", "label", "the other says", "row")


def judged_probe(rows: pd.DataFrame, names: Sequence[str]) -> str:
    """The first of the named probes that was fitted on this task. rows: predictions of one task.

    Raises MissingEvidence where all of them failed.
    """
    probes = set(rows[rows.control == "none"].probe)
    for name in names:
        if name in probes:
            return name
    raise MissingEvidence("no probe could be fitted in any cell")


def judged_rows(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The rows of the judged probe, also on untrained encoders, and those of the other baselines.

    Cells in which the probe failed under one of several seeds are left out: they cannot be compared with others over
    the same texts. rows: predictions of one task. Raises MissingEvidence where the probe failed in every cell.
    """
    baselines = rows.control.isin(BASELINES) & (rows.control != "untrained")
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


def list_baselines(scores: TaskScores, *first: ChosenCell) -> pd.DataFrame:
    """Columns name, value, low, high: every baseline and control that was measured, after the cells in `first`."""
    cells = [*first, *(scores.choose(None, control) for control in scores.measured_controls(CONTROL_NAMES))]
    lines = [(cell.name, cell.test, cell.low, cell.high) for cell in cells]
    return pd.DataFrame(lines, columns=["name", "value", "low", "high"])


def summary(rows: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Every readout at the layer that dev chooses, best on dev first, with its scores, gain and selectivity.

    rows: predictions of one task. results: the results table. Columns readout, layer, accuracy, low, high (95 %), bits
    (held-out, per text), gain over the best baseline with its interval and name, selectivity over the control task with
    its interval (NaN where none was measured), p (of no signal, max-T over all cells). Values and ends of intervals are
    means over seeds. Numbers have r2 instead of accuracy, spearman with its interval instead of bits, and no p.
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


def selectivity(
    results: pd.DataFrame, predictions: pd.DataFrame | None = None, *, control: str = "word_type"
) -> pd.DataFrame:
    """Task minus control task, by the same probe in the same cell (Hewitt & Liang 2019). Columns as in `gain`.

    Where the control labels fewer texts, the texts that both label are paired.
    """
    cells = results[results.metric.isin(SIGN) & (results.split == "test") & (results.control == "none")]
    same = {OTHER[column]: cells[column] for column in CELL if column != "control"}
    return _subtract(results, cells.assign(**same, other_control=control), predictions)


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
