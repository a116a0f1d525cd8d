"""The words of a sweep's sentences: names of cells, their scores, missing baselines, warnings."""

from __future__ import annotations

from collections.abc import Sequence

from clsprobe.analysis.sweep.plan import BASELINES
from clsprobe.analysis.sweep.scores import UNNAMED, ChosenCell, TaskScores
from clsprobe.analysis.verdict import Part, warn_of_few_texts

READOUT_NAMES = {"cls": "[CLS]", "mean": "mean pooling", "max": "max pooling", "attention": "attention pooling"}


def name_cell(scores: TaskScores, cell: ChosenCell) -> str:
    """A readout in a sentence: "[CLS] (layers 1, 4 to 6)", with the layers that dev cannot tell apart; the file where
    its vectors have no name."""
    name = READOUT_NAMES.get(cell.readout, cell.readout)
    if cell.readout == UNNAMED:
        name = f"the vector in {scores.rows.model.iloc[0]}"
        if scores.has_single_layer:
            return name
    return f"{name} ({format_layers(scores.tied_layers(cell))})"


def format_layers(layers: Sequence[int]) -> str:
    """ "layer 5", or "layers 1, 4 to 6"."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][-1] + 1:
            spans[-1].append(layer)
        else:
            spans.append([layer])
    parts = [f"{span[0]} to {span[-1]}" if len(span) > 2 else ", ".join(map(str, span)) for span in spans]
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(parts)}"


def describe_score(scores: TaskScores, cell: ChosenCell) -> str:
    """ "gets 0.940 of the test texts right", or what it explains of numbers; with the range over the layers that dev
    cannot tell apart."""
    span = scores.scores_over_layers(cell)
    score = f"{cell.test:.3f}{'' if span is None else f' ({span[0]:.3f} to {span[1]:.3f} over these layers)'}"
    if cell.metric == "accuracy":
        return f"gets {score} of the test texts right"
    return f"explains {score} of the variance of the test texts' numbers"


def range_over_layers(scores: TaskScores, a: ChosenCell, b: ChosenCell) -> tuple[float, float] | None:
    """The smallest and the largest difference of two test scores over the layers that dev cannot tell apart."""
    spans = scores.scores_over_layers(a), scores.scores_over_layers(b)
    if spans == (None, None):
        return None
    (low_a, high_a), (low_b, high_b) = (span or (cell.test,) * 2 for span, cell in zip(spans, (a, b), strict=True))
    return low_a - high_b, high_a - low_b


def range_over_baseline(scores: TaskScores, cell: ChosenCell, part: Part) -> tuple[float, float] | None:
    """The smallest and the largest difference from the baseline of a part over these layers."""
    span = scores.scores_over_layers(cell)
    return span and (span[0] - (cell.test - part.effect), span[1] - (cell.test - part.effect))


def describe_constant(scores: TaskScores, *cells: ChosenCell) -> str:
    """Which of these readouts predict one and the same class, as a clause; "" where none does."""
    names = [READOUT_NAMES.get(cell.readout, cell.readout) for cell in cells if scores.is_constant(cell)]
    if not names:
        return ""
    what = "number" if scores.is_of_numbers else "class"
    return f"{' and '.join(names)} predict{'s' * (len(names) == 1)} one {what} for all test texts"


def describe_baselines(scores: TaskScores, names: Sequence[str] = BASELINES, noun: str = "baseline") -> str:
    """ "every baseline", or which of them were not measured on dev and test, under every seed."""
    measured = scores.measured_baselines(names)
    missing = [scores.control_names[name] for name in names if name not in measured]
    return f"every {noun} measured (without {', '.join(missing)})" if missing else f"every {noun}"


OF_FITS = "these probes as they were fitted, over the test texts"


def describe_interval(scores: TaskScores, *cells: ChosenCell) -> str:
    """What the intervals of comparisons of these cells, and with baselines, are about, as a clause. cells: the first
    one is compared with all others."""
    missing = [cell for cell in cells if scores.halves(cell) is None]
    if not missing or cells[0] not in missing:
        what = "strength" if scores.has_single_layer else "strength and layer"
        expected = (
            f"the expected difference between two such probes, each trained on {scores.refits.training_texts:,} texts "
            f"with its {what} chosen on dev"
        )
        if len(missing) < max(len(cells) - 1, 1):
            names = " and ".join(READOUT_NAMES.get(cell.readout, cell.readout) for cell in missing)
            return f"{expected}; for {names}, of {OF_FITS}" if missing else expected
    return OF_FITS


def list_warnings(scores: TaskScores, *cells: ChosenCell, surface: bool = False) -> tuple[str, ...]:
    """What a reader must know first: few test texts, cells that predict one class; surface: a task that a surface
    baseline solves."""
    warnings = [*warn_of_few_texts(scores.texts, scores.task)]
    for cell in cells:
        if scores.is_constant(cell):
            what = f"predicts one {'number' if scores.is_of_numbers else 'class'} for all {scores.texts:,} test texts"
            warnings.append(f"On {scores.task}, {name_cell(scores, cell)} {what}.")
    if surface and (solved := scores.surface_ceiling()):
        what = f"{solved[0]} alone gets {solved[1]:.3f}"
        warnings.append(f"On {scores.task}, {what}: there is hardly anything left that a vector could add.")
    return tuple(warnings)
