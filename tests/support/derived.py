"""Every answer in words, derived from saved tables alone: nothing of clsprobe is imported.

`derive_task` takes the name of a study, its tables and facts, and writes the sentence that it should print. Intervals
and tests are written anew from their definitions: Bonett & Price for paired shares, Student's t otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

NAMES = {"cls": "[CLS]", "mean": "mean pooling", "max": "max pooling", "attention": "attention pooling"}
CONTROLS = {
    "majority": "majority class",
    "length": "text length",
    "bag_of_words": "bag of words",
    "layer0_mean": "mean of layer 0",
    "untrained": "untrained encoder (as drawn)",
}
BLIND = ("majority", "length", "bag_of_words", "layer0_mean")
MARGIN = 0.02
Cell = tuple[str, int, str]


def signed(number: float) -> str:
    text = f"{100 * number:+.1f}"
    return "0.0" if float(text) == 0 else text


def plain(number: float) -> str:
    text = f"{100 * number:.1f}"
    return "0.0" if float(text) == 0 else text


def compare(a: np.ndarray, b: np.ndarray, tail: float = 0.025) -> tuple[float, float, float, Callable[[float], float]]:
    """Mean, interval, and threshold -> p that a - b is not above it; of shares, one seed."""
    d, n = a.astype(float) - b, len(a) + 2
    centre = d.sum() / n
    error = math.sqrt((((d - centre) ** 2).sum() + 2 * (1 + centre**2)) / n) / math.sqrt(n)
    half = stats.t.isf(tail, n - 1) * error
    return (
        d.mean(),
        centre - half,
        centre + half,
        lambda threshold: float(stats.t.sf((centre - threshold) / error, n - 1)),
    )


class Table:
    """The predictions of one task, one probe, one seed."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows.assign(right=rows.label.astype(str) == rows.predicted.astype(str))
        self.task = rows.task.iloc[0].partition(":")[2].replace(":", ": ")

    def cells(self, control: str) -> list[tuple[int, str]]:
        rows = self.rows[self.rows.control == control]
        return sorted({(int(layer), str(readout)) for layer, readout in zip(rows.layer, rows.readout, strict=True)})

    def right(self, cell: Cell, side: str = "test") -> np.ndarray:
        control, layer, readout = cell
        rows = self.rows
        if control == "best class":
            label = rows[rows.split == "test"].drop_duplicates("row").sort_values("row").label.astype(str)
            return (label == label.value_counts().sort_index().idxmax()).to_numpy()
        rows = rows[
            (rows.control == control) & (rows.layer == layer) & (rows.readout == readout) & (rows.split == side)
        ]
        return rows.sort_values("row").right.to_numpy()

    def choose(self, readout: str | None, control: str = "none") -> Cell:
        def quality(cell: tuple[int, str]) -> tuple[float, float, int]:
            rows = self.rows[(self.rows.control == control) & (self.rows.split == "dev")]
            rows = rows[(rows.layer == cell[0]) & (rows.readout == cell[1])]
            return rows.right.mean(), rows.log2_probability.mean(), -cell[0]

        layer, name = max((cell for cell in self.cells(control) if readout in (None, cell[1])), key=quality)
        return control, layer, name

    def tied(self, cell: Cell) -> list[int]:
        layers = [cell[1]]
        for layer, readout in self.cells(cell[0]):
            if readout == cell[2] and layer != cell[1]:
                other = self.right((cell[0], layer, readout), "dev")
                _, low, high, _ = compare(other, self.right(cell, "dev"))
                layers += [layer] if low <= 0 <= high else []
        return sorted(layers)

    def name(self, cell: Cell) -> str:
        layers, parts, i = self.tied(cell), [], 0
        while i < len(layers):
            j = i
            while j + 1 < len(layers) and layers[j + 1] == layers[j] + 1:
                j += 1
            parts.append(f"{layers[i]} to {layers[j]}" if j - i > 1 else ", ".join(map(str, layers[i : j + 1])))
            i = j + 1
        return f"{NAMES.get(cell[2], cell[2])} (layer{'s' if len(layers) > 1 else ''} {', '.join(parts)})"

    def is_constant(self, cell: Cell) -> bool:
        rows = self.rows[(self.rows.control == cell[0]) & (self.rows.layer == cell[1]) & (self.rows.readout == cell[2])]
        return rows[rows.split == "test"].predicted.nunique() == 1

    def range(self, a: Cell, b: Cell) -> tuple[float, float] | None:
        layers = self.tied(a), self.tied(b)
        if max(map(len, layers)) == 1:
            return None
        scores = [
            [self.right((cell[0], layer, cell[2])).mean() for layer in tied]
            for cell, tied in zip((a, b), layers, strict=True)
        ]
        return min(scores[0]) - max(scores[1]), max(scores[0]) - min(scores[1])

    def part(self, a: Cell, b: Cell, threshold: float) -> dict[str, Any]:
        effect, low, high, p = compare(self.right(a), self.right(b))
        p_yes = 1.0 if a[0] == "none" and self.is_constant(a) else p(threshold)
        p_no = 1.0 if b[0] == "none" and self.is_constant(b) else 1 - p(threshold)
        name = CONTROLS.get(b[0], "the best single class")
        if b[0] == "untrained":
            name += f", {b[2]} at layer {b[1]}"
        numbers = {"effect": effect, "low": low, "high": high, "threshold": threshold, "p_yes": p_yes, "p_no": p_no}
        return {"name": name, "cells": (a, b), **numbers}

    def baselines(self, cell: Cell, names: tuple[str, ...], threshold: float) -> list[dict[str, Any]]:
        measured = [name for name in names if self.cells(name)]
        cells = [self.choose(None, name) for name in measured]
        return [self.part(cell, baseline, threshold) for baseline in [*cells, ("best class", -1, "none")]]

    def conclude(self, parts: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
        """The outcome for "all hold", and the part that decides."""
        if max(part["p_yes"] for part in parts) < 0.025:
            return "yes", min(parts, key=lambda part: part["effect"] - part["threshold"])
        if min(part["p_no"] for part in parts) * len(parts) < 0.025:
            worst = min(parts, key=lambda part: (part["p_no"], part["effect"] - part["threshold"]))
            _, low, high, _ = compare(*(self.right(cell) for cell in worst["cells"]), 0.025 / len(parts))
            return "no", worst | {"low": low, "high": high}
        return "undecided", max(parts, key=lambda part: part["p_yes"])

    def compared(self, part: dict[str, Any], other: str | None = None) -> str:
        a, b = part["cells"]
        over = self.range(a, b) if other is None else None
        name, other = self.name(a), other or self.name(b)
        ends = [(part["low"], part["high"]), *([over] if over else [])]
        more = " over these layers" if over else ""
        if part["low"] > 0:
            values = "; ".join(f"{plain(low)} to {plain(high)}" for low, high in ends)
            return f"{name} is better than {other} by {plain(part['effect'])} points ({values}{more})"
        if part["high"] < 0:
            values = "; ".join(f"{plain(-high)} to {plain(-low)}" for low, high in ends)
            return f"{name} is worse than {other} by {plain(-part['effect'])} points ({values}{more})"
        values = "; ".join(f"{signed(low)} to {signed(high)}" for low, high in ends)
        return f"{name} minus {other} is {signed(part['effect'])} points ({values}{more})"


def derive_run(table: Table, facts: Mapping[str, Any]) -> str:
    cell = table.choose("cls")
    outcome, part = table.conclude(table.baselines(cell, tuple(CONTROLS), 0.0))
    ends = f"({signed(part['low'])} to {signed(part['high'])})"
    interval = f"{plain(abs(part['effect']))} points {ends}"
    comparison = {
        "yes": f"more than every baseline, by {interval} over the closest, {part['name']}",
        "no": f"less than {part['name']}, by {interval}",
        "undecided": f"not certainly more than {part['name']}: {signed(part['effect'])} points {ends}",
    }[outcome]
    score = f"gets {table.right(cell).mean():.3f} of the test texts right"
    return f"On {table.task}, {table.name(cell)} {score}, {comparison}."


def derive_aggregate(table: Table, facts: Mapping[str, Any]) -> str:
    cls, mean = table.choose("cls"), table.choose("mean")
    against_mean = table.part(cls, mean, -MARGIN)
    outcome, part = table.conclude([*table.baselines(cls, tuple(CONTROLS), 0.0), against_mean])
    is_of_mean = part["cells"][1] == mean
    compared = table.compared(part, None if is_of_mean else part["name"])
    end = {
        "yes": "; it is better than every baseline, and no worse than mean pooling by 2 points",
        "no": ", more than the 2 points allowed" if is_of_mean else "",
        "undecided": ", which may be within the 2 points allowed" if is_of_mean else ", which may be chance",
    }[outcome]
    return f"{outcome.capitalize()}: on {table.task}, {compared}{end}."


def derive_poolings(table: Table, facts: Mapping[str, Any]) -> str:
    part = table.part(table.choose("mean"), table.choose("cls"), -MARGIN)
    outcome, part = table.conclude([part])
    compared = f"on {table.task}, {table.compared(part)}"
    if outcome == "no":
        return f"Yes: {compared}."
    if outcome == "yes":
        return f"No: {compared}{'' if part['low'] > 0 else ', no worse by more than 2 points'}."
    return f"Undecided: {compared}: it may be worse by more than 2 points, or not."


def derive_positions(table: Table, facts: Mapping[str, Any]) -> str:
    names = dict.fromkeys(table.rows[table.rows.control == "none"].readout)
    others = [table.choose(name) for name in names if name in ("sep", "random") or name.startswith("token[")]
    best = max(others, key=lambda cell: table.right(cell, "dev").mean())
    outcome, part = table.conclude([table.part(best, table.choose("cls"), -MARGIN)])
    meaning = {
        "yes": "this other position, the best on dev, tells as much as [CLS] (within 2 points)",
        "no": "this other position, the best on dev, tells less than [CLS] (by more than 2 points)",
        "undecided": "it is not certain that this other position, the best on dev, tells as much",
    }[outcome]
    return f"On {table.task}, {table.compared(part)}: {meaning}."


def derive_order(table: Table, facts: Mapping[str, Any]) -> str:
    cell = table.choose("flatten_projected")
    majority = table.right(("best class", -1, "none")).mean()
    blind = [table.choose(None, name) for name in BLIND[1:] if table.cells(name)]
    best = max(blind, key=lambda baseline: table.right(baseline).mean())
    score = table.right(best).mean()
    if (score - majority) / (1 - majority) >= 0.5:
        return f"Left out: {CONTROLS[best[0]]} solves {table.task} without order ({score:.3f})."
    outcome, part = table.conclude(table.baselines(cell, BLIND, MARGIN))
    difference = f"{signed(part['effect'])} points ({signed(part['low'])} to {signed(part['high'])})"
    word, what = {
        "yes": (
            "No",
            f"at least {difference} over the baselines without order, the closest of which is {part['name']}",
        ),
        "no": ("Yes", f"{difference} over {part['name']}, which sees no order: not 2 points more"),
        "undecided": ("Undecided", f"{difference} over {part['name']}, which sees no order"),
    }[outcome]
    right = f"gets {table.right(cell).mean():.3f} of the test texts right"
    return f"{word}: on {table.task}, {table.name(cell)} {right}, {what}."


def derive_fine_tuning(table: Table, facts: Mapping[str, Any]) -> str:
    cls, names = table.choose("cls"), dict.fromkeys(table.rows[table.rows.control == "none"].readout)
    learned = table.part(cls, ("best class", -1, "none"), 0.0)
    if learned["p_yes"] >= 0.025:
        more = f"{signed(learned['effect'])} points, {signed(learned['low'])} to {signed(learned['high'])}"
        return (
            f"Left out: on {table.task}, [CLS] fine-tuned gets {table.right(cls).mean():.3f} of the test texts right, "
            f"which is not clearly more than the best single class does ({more})."
        )
    parts = [table.part(table.choose(name), cls, -MARGIN) for name in names if name != "cls"]
    outcome, part = table.conclude(parts)
    name, effect, low, high = part["cells"][0][2], part["effect"], part["low"], part["high"]
    compared = f"{name} minus [CLS] is {signed(effect)} points ({signed(low)} to {signed(high)})"
    if low > 0:
        compared = f"{name} is better than [CLS] by {plain(effect)} points ({plain(low)} to {plain(high)})"
    elif high < 0:
        compared = f"{name} is worse than [CLS] by {plain(-effect)} points ({plain(-high)} to {plain(-low)})"
    if outcome == "no":
        return f"No: on {table.task}, fine-tuned, {compared}, more than the margin of 2 points."
    as_well = "does as well as [CLS] or better, within the margin of 2 points"
    others = f"the {len(parts)} other positions" if len(parts) > 1 else "the only other position"
    if len(parts) > 1:
        compared = f"{'the lowest' if outcome == 'yes' else 'least certain'} is {name}: {compared}"
    if outcome == "yes":
        each = "each of " if len(parts) > 1 else ""
        return f"Yes: on {table.task}, fine-tuned, {each}{others} {as_well}; {compared}."
    count = f"{sum(part['p_yes'] >= 0.025 for part in parts)} of " if len(parts) > 1 else ""
    return f"Undecided: on {table.task}, fine-tuned, for {count}{others} it is open whether it {as_well}; {compared}."


SWEEPS = {
    "fine_tuning": derive_fine_tuning,
    "run": derive_run,
    "aggregate": derive_aggregate,
    "poolings": derive_poolings,
    "positions": derive_positions,
    "order": derive_order,
}


def derive_task(study: str, tables: Mapping[str, pd.DataFrame], facts: Mapping[str, Any], task: str) -> str:
    """The sentence that a study should print about one task."""
    rows = tables["predictions"]
    rows = rows[(rows.task == task) & (rows.control != "shuffled") & ~rows.control.str.startswith("word_type")]
    sentence = SWEEPS[study](Table(rows), facts)
    solvers = facts.get("solved", {}).get(task, [])
    if not solvers or study in ("poolings", "positions"):
        return sentence
    name = task.partition(":")[2].replace(":", ": ")
    baseline = " and ".join(solvers).replace("_", " ")
    reason = f"by construction {name} asks for what the baseline {baseline} reads"
    return f"{sentence} This decides nothing: {reason}." if study == "run" else f"Left out: {reason}."


def derive_poolings_of_tasks(tables: Mapping[str, pd.DataFrame]) -> str:
    """The sentence of `clsprobe poolings` about several tasks."""
    parts, briefs = {}, []
    for task, rows in tables["predictions"].groupby("task", sort=False):
        table = Table(rows)
        part = table.part(table.choose("mean"), table.choose("cls"), -MARGIN)
        parts[str(task)] = part
        ends = f"({signed(part['low'])} to {signed(part['high'])})"
        briefs.append(f"{table.task} {signed(part['effect'])} {ends}")
    words = {
        task: "no" if part["p_yes"] < 0.025 else "yes" if part["p_no"] < 0.025 else "undecided"
        for task, part in parts.items()
    }
    outcomes, effects = set(words.values()), f"Mean pooling minus [CLS], in points: {'; '.join(briefs)}."
    found = [min(part[name] for part in parts.values()) * len(parts) < 0.025 for name in ("p_yes", "p_no")]
    outcome = "mixed" if all(found) else outcomes.pop() if len(outcomes) == 1 else "undecided"
    if list(words.values()) == [outcome] * len(words):
        return f"{outcome.capitalize()}, on all {len(words)} tasks. {effects}"
    counts = []
    for word in ("yes", "no", "undecided"):
        names = [task.partition(":")[2].replace(":", ": ") for task, own in words.items() if own == word]
        counts += [f"{word} on {len(names)} ({', '.join(names)})"] if names else []
    return f"{outcome.capitalize()}: of {len(words)} tasks {', '.join(counts)}. {effects}"
