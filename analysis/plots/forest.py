"""A dot and its interval per row: numbers beside references, effects against a declared margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from clsprobe.analysis.plots.style import (
    INK,
    PALETTE,
    SOFT,
    display_text,
    draw_legend,
    fit_text,
    format_number,
    format_short,
    format_signed,
    make_axes,
    padded_range,
    place_legend,
    register_plot,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUTCOMES = {"yes": ("#07805f", "o"), "no": ("#b84a08", "s"), "undecided": ("#6e7781", "D")}
_WIDTH, _STEP = 4.7, 0.27  # inches: the axes of `intervals` and `differences`, and one of their rows
_ROWS = 60  # drawn at most


@register_plot("name", "value", "low", "high")
def intervals(table: pd.DataFrame, *, metric: str, reference: Mapping[str, float] | None = None) -> Figure:
    """A dot and its interval per name, in the order of the table, the numbers beside it.

    table: name, value, low, high, optionally count (rows behind the number). reference: name -> value, dashed lines.
    """
    rows, dropped = table.head(_ROWS), max(len(table) - _ROWS, 0)
    reference = {name: value for name, value in (reference or {}).items() if np.isfinite(value)}
    low, high = padded_range(rows[["value", "low", "high"]], list(reference.values()))
    texts = [f"{fit_text(name, 1.9, 8)} {format_number(value)}" for name, value in reference.items()]
    starts = _place_labels(texts, [(value - low) / (high - low) * _WIDTH for value in reference.values()])
    figure, axes, places = _forest(
        [fit_text(name, 2.6) for name in rows["name"]],
        [format_number(value) for value in rows["value"]],
        [f"{format_short(low)} – {format_short(high)}" for low, high in zip(rows["low"], rows["high"], strict=True)],
        [f"n = {count:,.0f}" for count in rows["count"]] if "count" in rows else [],
        (low, high),
        above=0.12 + 0.17 * (max((level for _, level in starts), default=-1) + 1),
        dropped=dropped,
    )
    per_inch = (high - low) / _WIDTH
    bottom, top = axes.get_ylim()
    for text, value, (start, level) in zip(texts, reference.values(), starts, strict=True):
        y = top + (0.07 + 0.17 * level) / _STEP
        axes.plot([value] * 2, [bottom, y], color=SOFT, linewidth=1.0, dashes=(4, 3), clip_on=False, zorder=1)
        # The white box hides the line of a label on a higher level.
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        axes.text(low + start * per_inch, y + 0.02 / _STEP, text, size=8, color=SOFT, va="bottom", bbox=box)
    axes.hlines(places, rows["low"], rows["high"], color=PALETTE[0], linewidth=2.4, alpha=0.5, zorder=2)
    axes.plot(rows["value"], places, "o", color=PALETTE[0], markersize=6, markeredgecolor="white", zorder=3)
    axes.set_xlabel(f"{display_text(metric, 40)} with 95 % interval")
    figure.set_label("; ".join([f"{display_text(metric, 40)} with its interval for {len(table)} rows", *texts]))
    return figure


@register_plot("name", "effect", "low", "high", "outcome")
def differences(table: pd.DataFrame, *, margin: float, metric: str, words: Mapping[str, str] | None = None) -> Figure:
    """Effects and their intervals around zero; the band of +-margin is shaded, colour and marker say the outcome.

    table: name, effect, low, high, outcome: "yes", "no" or "undecided", or one of `words`, word -> one of these.
    """
    styles_by_word = {word: OUTCOMES[outcome] for word, outcome in (words or {name: name for name in OUTCOMES}).items()}
    rows, dropped = table.head(_ROWS), max(len(table) - _ROWS, 0)
    low, high = padded_range(rows[["effect", "low", "high"]], [-1.15 * margin, 1.15 * margin])
    outcomes = [word for word in styles_by_word if (table["outcome"] == word).any()]
    figure, axes, places = _forest(
        [fit_text(name, 2.6) for name in rows["name"]],
        [format_signed(effect) for effect in rows["effect"]],
        [f"{format_signed(low)} to {format_signed(high)}" for low, high in zip(rows["low"], rows["high"], strict=True)],
        [],
        (low, high),
        above=0.42,
        dropped=dropped,
    )
    axes.axvspan(-margin, margin, color="#eef1f4", linewidth=0, zorder=0)
    axes.axvline(0.0, color=SOFT, linewidth=0.9, zorder=1)
    for outcome in outcomes:
        colour, marker = styles_by_word[outcome]
        mask = (rows["outcome"] == outcome).to_numpy()
        y = places[mask]
        axes.hlines(y, rows["low"][mask], rows["high"][mask], color=colour, linewidth=2.4, alpha=0.55, zorder=2)
        face = "white" if outcome == "undecided" else colour
        axes.plot(rows["effect"][mask], y, marker, color=colour, markersize=6.5, markerfacecolor=face, zorder=3)
    styles = [(*styles_by_word[outcome], outcome == "undecided") for outcome in outcomes]
    draw_legend(figure, axes, outcomes, styles, place_legend(outcomes, _WIDTH), above=0.27)
    axes.set_xlabel(f"difference in {display_text(metric, 40)} with 95 % interval; shaded: within ±{margin:g}")
    counts = ", ".join(f"{outcome} {(table['outcome'] == outcome).sum()}" for outcome in outcomes)
    figure.set_label(f"Differences in {display_text(metric, 40)} around zero with a margin of {margin:g}: {counts}")
    return figure


def _forest(
    names: Sequence[str],
    numbers: Sequence[str],
    ranges: Sequence[str],
    remarks: Sequence[str],
    limits: tuple[float, float],
    *,
    above: float,
    dropped: int,
) -> tuple[Figure, Axes, np.ndarray]:
    """Empty axes for one dot per row: names to the left, numbers, their ranges and remarks to the right."""
    import seaborn as sns

    columns = [column for column in ((numbers, 9.0, INK), (ranges, 8.0, SOFT), (remarks, 8.0, SOFT)) if column[0]]
    widths = [max(text_width(text, size) for text in texts) + 0.16 for texts, size, _ in columns]
    figure, axes = make_axes(
        _WIDTH,
        _STEP * len(names) + 0.1,
        left=0.2 + max(map(text_width, names)),
        right=0.1 + sum(widths),
        top=above,
        bottom=0.5 + (0.2 if dropped else 0.0),
    )
    low, high = limits
    places = np.arange(len(names), 0, -1, dtype=float)
    axes.set(xlim=limits, ylim=(0.5 - 0.05 / _STEP, len(names) + 0.5 + 0.05 / _STEP))
    axes.grid(axis="x")
    for (texts, size, colour), end in zip(columns, np.cumsum(widths), strict=True):
        for place, text in zip(places, texts, strict=True):
            x = high + (high - low) / _WIDTH * end
            axes.text(x, place, text, ha="right", va="center_baseline", size=size, color=colour)
    axes.set_yticks(places, names)
    if dropped:
        below = -0.6 / (_STEP * len(names) + 0.1)
        axes.text(0, below, f"{dropped:,} more rows in the table", size=8, color=SOFT, transform=axes.transAxes)
    sns.despine(figure, axes, left=True)
    axes.tick_params(axis="y", length=0)
    return figure, axes, places


def _place_labels(texts: Sequence[str], places: Sequence[float], size: float = 8.0) -> list[tuple[float, int]]:
    """(start in inches, level) of each text, centred on its place as far as possible, no two overlapping."""
    starts: dict[int, tuple[float, int]] = {}
    ends: list[float] = []  # of every level so far
    for i in np.argsort(places, kind="stable"):
        start = max(places[i] - text_width(texts[i], size) / 2, -0.15)
        level = next((n for n, end in enumerate(ends) if end + 0.12 < start), len(ends))
        ends[level:] = [start + text_width(texts[i], size), *ends[level + 1 :]]
        starts[int(i)] = (start, level)
    return [starts[i] for i in range(len(texts))]
