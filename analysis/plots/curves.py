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
    fit_text,
    format_number,
    make_axes,
    padded_range,
    register_plot,
    shown,
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

    table: layer (int), readout (str), value, low, high. baselines: name -> value, dashed lines across. along: another
    column of numbers instead of the layers. scale: linear or log, that of these numbers.
    """
    import seaborn as sns
    from matplotlib.ticker import MaxNLocator

    table = table.assign(layer=np.log2(table[along]) if scale == "log" else table[along])
    readouts = list(table["readout"].unique())
    baselines = {name: value for name, value in (baselines or {}).items() if np.isfinite(value)}
    lines = {name: table[table["readout"] == name].sort_values("layer") for name in readouts}
    ends = {name: line.dropna(subset=["value"]) for name, line in lines.items()}
    readouts = [name for name in readouts if len(ends[name])]
    names = [fit_text(name, 2.2, 8.5) for name in readouts]
    names += [f"{fit_text(name, 1.9, 8.5)}  {format_number(value)}" for name, value in baselines.items()]
    gap, size = 0.165, 8.5
    height = max(3.7, gap * len(names) + 0.1)
    wide = 5.9
    right = 0.5 + max([text_width(name, size) for name in names], default=0.0)
    figure, axes = make_axes(wide, height, left=0.55, right=right, top=0.32, bottom=0.5)
    low, high = padded_range(table[["value", "low", "high"]], list(baselines.values()), pad=0.03)
    first, last = float(table["layer"].min()), float(table["layer"].max())
    beside = 0.02 * (last - first) or 0.5
    axes.set(xlim=(first - beside, last + beside), ylim=(low, high))
    axes.grid(axis="y")
    for value in baselines.values():
        axes.axhline(value, color=SOFT, linewidth=1.0, dashes=(4, 3), zorder=1)
    strokes = [(), (5.0, 2.0), (1.5, 1.5)]  # the stroke changes where the colours repeat
    looks = {name: (PALETTE[i % 8], strokes[i // 8 % 3], MARKERS[i % 6]) for i, name in enumerate(readouts)}
    band, dot = 0.8 / max(8, len(readouts)), 4.5 if last - first < 13 else 3.2
    for name in readouts:
        line, (colour, dashes, marker) = lines[name], looks[name]
        axes.fill_between(line["layer"], line["low"], line["high"], color=colour, alpha=band, linewidth=0, zorder=2)
        if first == last:  # a band without width
            axes.vlines(line["layer"], line["low"], line["high"], color=colour, linewidth=1.2, zorder=2)
        (drawn,) = axes.plot(line["layer"], line["value"], color=colour, linewidth=1.7, marker=marker, zorder=3)
        drawn.set(markersize=dot, markeredgecolor="white", markeredgewidth=0.5)
        if dashes:
            drawn.set_dashes(dashes)
    wanted = [float(ends[name]["value"].iloc[-1]) for name in readouts] + list(baselines.values())
    placed = _apart([(value - low) / (high - low) * height for value in wanted], gap, height)
    per_inch = (axes.get_xlim()[1] - axes.get_xlim()[0]) / wide
    edge = axes.get_xlim()[1]
    for i, (text, value, inches) in enumerate(zip(names, wanted, placed, strict=True)):
        at = low + inches / height * (high - low)
        is_line = i < len(readouts)
        colour, dashes, _ = looks[readouts[i]] if is_line else (SOFT, (4.0, 3.0), "")
        (leader,) = axes.plot(
            [last if is_line else edge, edge + 0.09 * per_inch, edge + 0.24 * per_inch, edge + 0.34 * per_inch],
            [value, value, at, at],
            color=colour,
            linewidth=1.3 if is_line else 0.9,
            clip_on=False,
            zorder=2,
        )
        if dashes:
            leader.set_dashes(dashes)
        axes.text(edge + 0.4 * per_inch, at, text, va="center_baseline", size=size, color=INK if is_line else SOFT)
    if scale == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=14, integer=True, min_n_ticks=1))
    else:
        ticks = np.unique(table[along])[::-1]  # thinned from the end, so that the largest is named
        spaced = [n for i, n in enumerate(ticks) if i == 0 or ticks[i - 1] * 1.5 > n or ticks[i - 1] > 1.3 * n]
        axes.set_xticks(np.log2(spaced), [f"{n:,}" for n in spaced])
    axes.set_xlabel(shown(along, 40))
    axes.set_title(shown(metric, 40), loc="left", size=9, color=SOFT, x=-0.45 / wide, pad=6)
    sns.despine(figure, axes, left=True)
    axes.tick_params(axis="y", length=0)
    ends_at = f"{table[along].min():.0f} to {table[along].max():.0f}"
    figure.set_label(
        f"Line chart of {shown(metric, 40)} over {shown(along, 40)} {ends_at} for {len(readouts)} readouts"
        + (f", with {len(baselines)} baselines" if baselines else "")
    )
    return figure


def _apart(places: Sequence[float], gap: float, room: float) -> np.ndarray:
    """The places nearest to those wanted (least squares), at least `gap` apart and inside [0, room]."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(order))
    moved = isotonic_regression(np.asarray(places, float)[order] - steps).x
    found = np.empty(len(order))
    found[order] = np.clip(moved, 0.0, max(room - gap * (len(order) - 1), 0.0)) + steps
    return found
