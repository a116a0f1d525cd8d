"""Lines over the layers, or along another column of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from clsprobe.analysis.plots.style import (
    INK,
    MARKERS,
    PALETTE,
    SOFT,
    display_text,
    fit_text,
    format_number,
    make_axes,
    padded_range,
    register_plot,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@register_plot("layer", "readout", "value", "low", "high")
def curves(
    table: pd.DataFrame,
    *,
    metric: str,
    baselines: Mapping[str, float] | None = None,
    along: str = "layer",
    scale: Literal["linear", "log"] = "linear",
) -> Figure:
    """A line per readout over the layers with its interval as a band, named at its end.

    table: layer (int), readout (str), value, low, high. baselines: name -> value, dashed lines across. along: a
    numeric column to use instead of the layers. scale: of the x axis, linear or log.
    """
    import seaborn as sns
    from matplotlib.ticker import MaxNLocator

    table = table.assign(layer=np.log2(table[along]) if scale == "log" else table[along])
    readouts = list(table["readout"].unique())
    baselines = {name: value for name, value in (baselines or {}).items() if np.isfinite(value)}
    rows = {name: table[table["readout"] == name].sort_values("layer") for name in readouts}
    last_values = {name: line.dropna(subset=["value"])["value"] for name, line in rows.items()}
    readouts = [name for name in readouts if len(last_values[name])]
    names = [fit_text(name, 2.2, 8.5) for name in readouts]
    names += [f"{fit_text(name, 1.9, 8.5)}  {format_number(value)}" for name, value in baselines.items()]
    gap, size = 0.165, 8.5  # inches between two names, points
    height = max(3.7, gap * len(names) + 0.1)
    width = 5.9
    right = 0.5 + max([text_width(name, size) for name in names], default=0.0)
    figure, axes = make_axes(width, height, left=0.55, right=right, top=0.32, bottom=0.5)
    low, high = padded_range(table[["value", "low", "high"]], list(baselines.values()), pad=0.03)
    first, last = float(table["layer"].min()), float(table["layer"].max())
    padding = 0.02 * (last - first) or 0.5
    axes.set(xlim=(first - padding, last + padding), ylim=(low, high))
    axes.grid(axis="y")
    for value in baselines.values():
        axes.axhline(value, color=SOFT, linewidth=1.0, dashes=(4, 3), zorder=1)
    dash_patterns = [(), (5.0, 2.0), (1.5, 1.5)]  # change where the colours repeat
    styles = {name: (PALETTE[i % 8], dash_patterns[i // 8 % 3], MARKERS[i % 6]) for i, name in enumerate(readouts)}
    opacity, marker_size = 0.8 / max(8, len(readouts)), 4.5 if last - first < 13 else 3.2
    for name in readouts:
        line, (colour, dashes, marker) = rows[name], styles[name]
        axes.fill_between(line["layer"], line["low"], line["high"], color=colour, alpha=opacity, linewidth=0, zorder=2)
        if first == last:  # a band without width
            axes.vlines(line["layer"], line["low"], line["high"], color=colour, linewidth=1.2, zorder=2)
        (drawn,) = axes.plot(line["layer"], line["value"], color=colour, linewidth=1.7, marker=marker, zorder=3)
        drawn.set(markersize=marker_size, markeredgecolor="white", markeredgewidth=0.5)
        if dashes:
            drawn.set_dashes(dashes)
    ends = [float(last_values[name].iloc[-1]) for name in readouts] + list(baselines.values())
    heights = _spread([(value - low) / (high - low) * height for value in ends], gap, height)
    left, edge = axes.get_xlim()
    per_inch = (edge - left) / width
    for i, (text, value, inches) in enumerate(zip(names, ends, heights, strict=True)):
        y = low + inches / height * (high - low)
        is_line = i < len(readouts)
        colour, dashes, _ = styles[readouts[i]] if is_line else (SOFT, (4.0, 3.0), "")
        (leader,) = axes.plot(
            [last if is_line else edge, edge + 0.09 * per_inch, edge + 0.24 * per_inch, edge + 0.34 * per_inch],
            [value, value, y, y],
            color=colour,
            linewidth=1.3 if is_line else 0.9,
            clip_on=False,
            zorder=2,
        )
        if dashes:
            leader.set_dashes(dashes)
        axes.text(edge + 0.4 * per_inch, y, text, va="center_baseline", size=size, color=INK if is_line else SOFT)
    if scale == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=14, integer=True, min_n_ticks=1))
    else:
        ticks = np.unique(table[along])[::-1]  # thinned from the end, so that the largest has a tick
        spaced = [n for i, n in enumerate(ticks) if i == 0 or ticks[i - 1] * 1.5 > n or ticks[i - 1] > 1.3 * n]
        axes.set_xticks(np.log2(spaced), [f"{n:,}" for n in spaced])
    axes.set_xlabel(display_text(along, 40))
    axes.set_title(display_text(metric, 40), loc="left", size=9, color=SOFT, x=-0.45 / width, pad=6)
    sns.despine(figure, axes, left=True)
    axes.tick_params(axis="y", length=0)
    span = f"{table[along].min():.0f} to {table[along].max():.0f}"
    figure.set_label(
        f"Line chart of {display_text(metric, 40)} over {display_text(along, 40)} {span} for {len(readouts)} readouts"
        + (f", with {len(baselines)} baselines" if baselines else "")
    )
    return figure


def _spread(places: Sequence[float], gap: float, room: float) -> np.ndarray:
    """Move places as little as possible (least squares), so that they are `gap` or more apart and inside [0, room]."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(order))
    moved = isotonic_regression(np.asarray(places, float)[order] - steps).x
    result = np.empty(len(order))
    result[order] = np.clip(moved, 0.0, max(room - gap * (len(order) - 1), 0.0)) + steps
    return result
