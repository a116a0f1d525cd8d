"""Cells that dev chooses, compared with baselines and controls.

1. The layer of a readout, the best cell of all, the cell of a baseline: each is chosen by dev accuracy and read on test
   once (`choose_layer`; functions of a table of predictions of one task). `tied_layers`: those that dev cannot tell
   from the chosen one.
2. `make_part`: one test score minus another, as a part of a verdict; `compare_with_baselines`: a cell minus every
   baseline, the best single class of test among them. A readout that predicts one class never gets a yes.
3. `name_cell`, `score_in_words`, `effect_over_layers`, `list_warnings`: what the sentences are made of.
4. `gain` and `selectivity`: every cell minus the best baseline, and minus its control task; joins over the results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from clsprobe.analysis import stats
from clsprobe.analysis.study import short
from clsprobe.analysis.sweep.plan import BASELINES
from clsprobe.analysis.table import NUMBERS
from clsprobe.analysis.verdict import FEWEST, MissingEvidence, Part, points
from clsprobe.probes.tasks.task import readable

BEST_CLASS = "best_class"  # the commonest label of test, or the mean of its numbers
SURFACE = ("length", "bag_of_words")  # baselines that read the text without an encoder
CEILING = 0.95  # of (score - majority) / (1 - majority): a task that a surface baseline solves
DRAWS = 3  # untrained encoders for a mean; fewer are single draws
CONTROL_NAMES = {  # control -> its name on the page
    "majority": "majority class",
    "length": "length only",
    "bag_of_words": "bag of words",
    "layer0_mean": "mean of layer 0",
    "untrained": "untrained encoder",
    "shuffled": "shuffled labels",
    "word_type": "control task (word types)",
}
DISAGREEMENTS = ("right", "text", "label", "the other says", "row")
READOUT_NAMES = {"cls": "[CLS]", "mean": "mean pooling", "max": "max pooling", "attention": "attention pooling"}
UNNAMED = "vector"  # the readout of vectors without a name
NUMBER_CONTROL_NAMES = {"majority": "mean of train", "shuffled": "shuffled numbers"}  # where labels are numbers


@dataclass(frozen=True)
class ChosenCell:
    """A cell or baseline that dev chose. where: the columns that identify it. test, low, high: its `metric` on test,
    accuracy or R2."""

    where: Mapping[str, Any]
    name: str
    test: float
    low: float
    high: float
    dev: float
    metric: str = "accuracy"

    @property
    def is_readout(self) -> bool:
        """Whether it is a readout of the encoder, not a baseline."""
        return self.where["control"] == "none"

    @property
    def layer(self) -> int:
        """Its layer, -1 for a baseline without one."""
        return int(self.where["layer"])

    @property
    def readout(self) -> str:
        """Its readout, "none" for a baseline without one."""
        return str(self.where["readout"])

    def rows(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """The predictions of this cell."""
        match = pd.Series(True, index=predictions.index)
        for column, value in self.where.items():
            match &= predictions[column] == value
        return predictions[match]


def choose_layer(rows: pd.DataFrame, readout: str | None, control: str = "none") -> ChosenCell:
    """The layer that dev chooses for a readout, or the best cell of all where `readout` is None.

    Raises MissingEvidence where there are no predictions on dev or on test.
    """
    of_readout = rows[(rows.control == control) & (rows.readout == readout if readout else True)]
    if missing := [side for side in ("dev", "test") if not (of_readout.split == side).any()]:
        name = readout or _control_names(rows).get(control, "any readout")
        raise MissingEvidence(f"there are no predictions of {name} on {' and '.join(missing)}")
    best = stats.best_layers(rows, control)
    top = (best[best.readout == readout] if readout else best).iloc[0]
    where = {"control": control, "layer": int(top.layer), "readout": str(top.readout), "probe": str(top.probe)}
    cell = f"{top.readout} at layer {top.layer}" if control in ("none", "untrained", "shuffled") else ""
    name = ", ".join(filter(None, [_name_control(rows, control), cell]))
    chosen = ChosenCell(where, name, 0.0, 0.0, 0.0, float(top.dev), "R2" if stats.of_numbers(rows) else "accuracy")
    on_test = stats.accuracies(chosen.rows(rows[rows.split == "test"]), ["readout"]).iloc[0]
    return replace(chosen, test=float(on_test.value), low=float(on_test.low), high=float(on_test.high))


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


def has_cell(rows: pd.DataFrame, **where: object) -> bool:
    """Whether there are test predictions of these columns' values. rows: predictions of one task."""
    chosen = rows.split == "test"
    for column, value in where.items():
        chosen &= rows[column] == value
    return bool(chosen.any())


def subject_cell(rows: pd.DataFrame) -> ChosenCell:
    """[CLS] at the layer that dev chooses, or the best cell of all where [CLS] was not read."""
    return choose_layer(rows, "cls" if (rows[rows.control == "none"].readout == "cls").any() else None)


def accuracy_by_cell(rows: pd.DataFrame, readouts: Sequence[str] | None = None) -> pd.DataFrame:
    """Test accuracy of every cell (`stats.accuracies`), of these readouts or of all. rows: predictions of one task."""
    chosen = rows[(rows.split == "test") & (rows.control == "none")]
    return stats.accuracies(chosen if readouts is None else chosen[chosen.readout.isin(readouts)], ["layer", "readout"])


def _name_control(rows: pd.DataFrame, control: str) -> str | None:
    """The name of a control in a sentence: whether untrained encoders are a mean or single draws is said."""
    if control != "untrained":
        return _control_names(rows).get(control)
    draws = rows[rows.control == control].seed.nunique()
    return f"untrained encoder (mean of {draws} draws)" if draws >= DRAWS else "untrained encoder (as drawn)"


def _control_names(rows: pd.DataFrame) -> dict[str, str]:
    """CONTROL_NAMES for the kind of labels of these predictions."""
    return CONTROL_NAMES | NUMBER_CONTROL_NAMES if stats.of_numbers(rows) else CONTROL_NAMES


def difference(rows: pd.DataFrame, a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, float, float]:
    """Cell a minus cell b in accuracy, or R2, over the same test texts, with its 95 % interval.

    rows: predictions of one task. a, b: the columns that identify a cell, as in `ChosenCell.where`.
    """
    estimate = _estimate(rows, a, b)
    return estimate.effect, *estimate.interval()


def _estimate(rows: pd.DataFrame, a: Mapping[str, Any], b: Mapping[str, Any]) -> stats.Difference:
    sides = _test_scores(rows, a), _test_scores(rows, b)
    return stats.compare(*sides, shares=not stats.of_numbers(rows))


def _test_scores(rows: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    """`stats.correctness` of a cell, or of `BEST_CLASS`."""
    if where["control"] != BEST_CLASS:
        return stats.correctness(rows, **where)
    measured = rows[rows.control.isin(["none", *BASELINES]) & (rows.split == "test")]
    labels = measured.drop_duplicates(["seed", "row"]).set_index(["seed", "row"]).label.astype(str)
    if stats.of_numbers(rows):
        return (labels == "").astype(float).unstack("row") * 0.0  # the mean of test explains nothing
    hits = (labels == labels.value_counts().sort_index().idxmax()).astype(float)
    return hits.unstack("row")


def is_constant(rows: pd.DataFrame, cell: ChosenCell) -> bool:
    """Whether a cell predicts one and the same class, or number, for all test texts, under every seed."""
    test = cell.rows(rows[rows.split == "test"])
    predicted = test[NUMBERS[1]] if stats.of_numbers(test) else test.predicted.astype(str)
    return bool(predicted.groupby(test.seed).nunique().max() == 1)


def make_part(rows: pd.DataFrame, a: ChosenCell, b: ChosenCell, *, threshold: float = 0.0) -> Part:
    """Cell a minus cell b, above the threshold. A readout that predicts one class is not held better than another cell,
    nor as good."""
    part = Part.of(b.name, _estimate(rows, a.where, b.where), threshold)
    if a.is_readout and is_constant(rows, a):
        part = replace(part, p_yes=1.0)
    if b.is_readout and is_constant(rows, b):
        part = replace(part, p_no=1.0)
    return part


def compare_with_baselines(
    rows: pd.DataFrame, cell: ChosenCell, names: Sequence[str] = BASELINES, *, threshold: float = 0.0
) -> list[Part]:
    """A cell minus each of these baselines, which dev chooses, and minus the best single class on test.

    Raises MissingEvidence where no baseline was measured on dev and test, under every seed.
    """
    seeds = rows.groupby("control", observed=True).seed.nunique()
    controls = [name for name in measured_controls(rows, names) if seeds[name] == seeds.max()]
    if not controls:
        raise MissingEvidence("there are no predictions of any baseline on dev and test")
    best_class = ChosenCell({"control": BEST_CLASS}, _best_class_name(rows), np.nan, np.nan, np.nan, np.nan)
    baselines = [choose_layer(rows, None, control) for control in controls]
    return [make_part(rows, cell, baseline, threshold=threshold) for baseline in (*baselines, best_class)]


def _best_class_name(rows: pd.DataFrame) -> str:
    return "the mean of the test numbers" if stats.of_numbers(rows) else "the best single class"


def surface_ceiling(
    rows: pd.DataFrame, names: Sequence[str] = SURFACE, ceiling: float = CEILING
) -> tuple[str, float] | None:
    """The name and test score of the best of these baselines, where it gets this share of what the commonest class
    leaves, else None. rows: predictions of one task."""
    measured = [choose_layer(rows, None, control) for control in measured_controls(rows, names)]
    if not measured:
        return None
    best = max(measured, key=lambda cell: cell.test)
    majority = float(np.nanmean(_test_scores(rows, {"control": BEST_CLASS})))
    share = (best.test - majority) / (1 - majority) if majority < 1 else 0.0
    return (best.name, best.test) if share >= ceiling else None


# ------------------------------------------------------------------------------------------ words about cells


def tied_layers(rows: pd.DataFrame, cell: ChosenCell) -> list[int]:
    """The layers of this readout that dev cannot tell from the chosen one: those whose paired 95 % dev interval against
    it holds 0. rows: predictions of one task."""
    shares = not stats.of_numbers(rows)
    best = stats.correctness(rows, split="dev", **cell.where)
    layers = [cell.layer]
    for layer in rows[(rows.control == cell.where["control"]) & (rows.readout == cell.readout)].layer.unique():
        if layer == cell.layer:
            continue
        try:
            other = stats.correctness(rows, split="dev", **{**cell.where, "layer": layer})
            low, high = stats.compare(other, best, shares=shares).interval()
        except (MissingEvidence, ValueError):
            continue  # the probe failed there
        if low <= 0 <= high:
            layers.append(int(layer))
    return sorted(layers)


def format_layers(layers: Sequence[int]) -> str:
    """ "layer 5", or "layers 1, 4 to 6"."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][-1] + 1:
            spans[-1].append(layer)
        else:
            spans.append([layer])
    parts = [str(span[0]) if len(span) == 1 else f"{span[0]} to {span[-1]}" for span in spans]
    parts = [part.replace(" to ", ", ") if len(span) == 2 else part for part, span in zip(parts, spans, strict=True)]
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(parts)}"


def name_cell(rows: pd.DataFrame, cell: ChosenCell) -> str:
    """The cell in a sentence: "[CLS] (layers 1, 4 to 6)", with the layers that dev cannot tell apart; the name of the
    file where its vectors have no name."""
    name = READOUT_NAMES.get(cell.readout, cell.readout)
    if cell.readout == UNNAMED:
        name = f"the vector in {rows.model.iloc[0]}"
        if (layers := rows[rows.control == "none"].layer).nunique() == 1 and int(layers.iloc[0]) == cell.layer:
            return name
    return f"{name} ({format_layers(tied_layers(rows, cell))})"


def effect_over_layers(rows: pd.DataFrame, a: ChosenCell, b: ChosenCell) -> str:
    """ "; -1.0 to 5.5 over these layers": the smallest and largest difference of their test scores over the layers that
    dev cannot tell apart; "" where it can."""
    scores = [
        [float(np.nanmean(_test_scores(rows, {**cell.where, "layer": layer}))) for layer in tied_layers(rows, cell)]
        if cell.is_readout
        else [float(np.nanmean(_test_scores(rows, cell.where)))]
        for cell in (a, b)
    ]
    if max(map(len, scores)) == 1:
        return ""
    lowest, highest = min(scores[0]) - max(scores[1]), max(scores[0]) - min(scores[1])
    return f"; {points(lowest, True)} to {points(highest, True)} over these layers"


def score_in_words(cell: ChosenCell) -> str:
    """ "gets 0.940 of the test texts right", or what it explains of numbers."""
    if cell.metric == "accuracy":
        return f"gets {cell.test:.3f} of the test texts right"
    return f"explains {cell.test:.3f} of the variance of the test texts' numbers"


def count_texts(rows: pd.DataFrame) -> int:
    """The number of test texts."""
    return int(rows[rows.split == "test"].row.nunique())


def list_warnings(rows: pd.DataFrame, *cells: ChosenCell, surface: bool = False) -> tuple[str, ...]:
    """What a reader must know first: few test texts, cells that predict one class; surface: a task that a surface
    baseline solves."""
    task, texts = short(rows.task.iloc[0]), count_texts(rows)
    warnings = []
    if texts < FEWEST:
        warnings.append(f"Only {texts} test texts on {task}: one text more or less right is {100 / texts:.1f} points.")
    for cell in cells:
        if is_constant(rows, cell):
            what = "number" if stats.of_numbers(rows) else "class"
            name = name_cell(rows, cell)
            warnings.append(f"On {task}, {name} predicts one {what} for all {texts:,} test texts.")
    if surface and (solved := surface_ceiling(rows)):
        name, score = solved
        warnings.append(
            f"On {task}, {name} alone gets {score:.3f}: there is hardly anything left that a vector could add."
        )
    return tuple(warnings)


def measured_controls(rows: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """Those of the controls and baselines with predictions on dev and on test.

    The control task may have labels on one of them only, where the other has no word of train.
    """
    sides = {name: set(part.split) for name, part in rows.groupby("control", observed=True)}
    return [name for name in names if {"dev", "test"} <= sides.get(name, set())]


def list_baselines(rows: pd.DataFrame, *first: ChosenCell) -> pd.DataFrame:
    """Columns name, value, low, high: every baseline and control that was measured, after the cells in `first`."""
    controls = measured_controls(rows, CONTROL_NAMES)
    cells = [(cell.name, cell) for cell in first]
    cells += [(_control_names(rows)[control], choose_layer(rows, None, control)) for control in controls]
    lines = [(name, cell.test, cell.low, cell.high) for name, cell in cells]
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
