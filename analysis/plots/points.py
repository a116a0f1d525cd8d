"""Points in the plane, panel beside panel, and the styles of their labels, which the page shares."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clsprobe.analysis.plots.style import (
    FAINT,
    MARKERS,
    PALETTE,
    LabelStyle,
    assign_styles,
    draw_legend,
    fit_text,
    make_axes,
    padded_range,
    place_legend,
    register_plot,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@register_plot("panel", "x", "y", "label", "text")
def scatter(table: pd.DataFrame) -> Figure:
    """Points in the plane, one panel beside the other, coloured by label; from the ninth label on the marker changes.

    table: panel, x, y, label, text, and optionally row (which text a point is). Past 48 labels the rarer ones share a
    style.
    """
    import seaborn as sns

    panels = list(table["panel"].unique())
    styles = assign_point_styles(table["label"])
    rest = len(styles) - len(PALETTE) * len(MARKERS)
    named = list(styles)[: len(PALETTE) * len(MARKERS)]
    names = [fit_text(label, 2.4, 8.5) for label in named] + ([f"{rest:,} other labels"] if rest > 0 else [])
    entries = [styles[label] for label in named] + ([styles[list(styles)[-1]]] if rest > 0 else [])
    legend_styles = [(style.colour, style.marker, False) for style in entries]

    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    side = {1: 5.0, 2: 4.25, 3: 3.0}[across]
    gap, head = 0.2, 0.3
    total_width = across * side + (across - 1) * gap
    places = place_legend(names, total_width)
    legend_height = 0.18 * (places[-1][1] + 1) + 0.14
    figure, frame = make_axes(total_width, down * (side * 0.9 + head), top=legend_height)
    draw_legend(figure, frame, names, legend_styles, places, above=legend_height - 0.12)
    frame.axis("off")
    code = {label: i for i, label in enumerate(styles)}
    size = float(np.clip(16000 / table["panel"].value_counts().max(), 7, 30))
    width, height = figure.get_size_inches()
    for i, panel in enumerate(panels):
        column, row = i % across, i // across
        left, bottom = 0.1 + column * (side + gap), 0.1 + (down - 1 - row) * (side * 0.9 + head)
        axes = figure.add_axes((left / width, bottom / height, side / width, side * 0.9 / height))
        points = table[(table["panel"] == panel) & np.isfinite(table["x"]) & np.isfinite(table["y"])]
        codes = points["label"].map(code).to_numpy(int)
        if len(points):
            sns.scatterplot(
                x=points["x"].to_numpy(float),
                y=points["y"].to_numpy(float),
                hue=codes,
                style=codes,
                palette={i: style.colour for i, style in enumerate(styles.values())},
                markers={i: style.marker for i, style in enumerate(styles.values())},
                s=size,
                alpha=0.75,
                linewidth=0,
                legend=False,
                rasterized=True,
                ax=axes,
            )
        ranges = [padded_range(points["x"]), padded_range(points["y"])]
        # The same scale in both directions, so that distances are not distorted.
        per_inch = max((ranges[0][1] - ranges[0][0]) / side, (ranges[1][1] - ranges[1][0]) / (side * 0.9))
        x, y = ((low + high) / 2 for low, high in ranges)
        axes.set_xlim(x - per_inch * side / 2, x + per_inch * side / 2)
        axes.set_ylim(y - per_inch * side * 0.45, y + per_inch * side * 0.45)
        axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
        for spine in axes.spines.values():
            spine.set(color=FAINT, linewidth=0.8)
        axes.set_title(fit_text(panel, side, 10), loc="left", size=10, pad=5)
    figure.set_label(
        f"Scatter plot of {len(table):,} points in {len(panels)} panels, coloured by {len(styles)} labels: "
        + ", ".join(names[:12])
    )
    return figure


def assign_point_styles(labels: pd.Series) -> dict[Any, LabelStyle]:
    """A style for every label of a scatter: sorted where all fit, the commonest first where there are too many."""
    counts = labels.value_counts()
    few = len(counts) <= len(PALETTE) * len(MARKERS)
    return assign_styles(sorted(counts.index, key=_natural_key) if few else list(counts.index))


def _natural_key(label: object) -> list[tuple[int, float, str]]:
    """Sort key of natural order: class 2 before class 10."""
    parts = re.split(r"([0-9]+)", str(label))
    return [(0, float(part), "") if part.isdecimal() else (1, 0.0, part) for part in parts]
