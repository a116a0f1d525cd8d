"""Points in the plane, panel beside panel, and the look of their labels, which the page shares."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clsprobe.analysis.plots.style import (
    FAINT,
    MARKERS,
    PALETTE,
    Look,
    draw_legend,
    fit_text,
    make_axes,
    padded_range,
    place_legend,
    register_plot,
    styles,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@register_plot("panel", "x", "y", "label", "text")
def scatter(table: pd.DataFrame) -> Figure:
    """Points in the plane, one panel beside the other, coloured by label; from the ninth label on the marker changes.

    table: panel, x, y, label, text, and maybe row (which text a point is). Past 48 labels the rarer ones share a look.
    """
    import seaborn as sns

    panels = list(table["panel"].unique())
    looks = point_styles(table["label"])
    counted = table["label"].value_counts()
    rest = len(looks) - len(PALETTE) * len(MARKERS)
    named = list(looks)[: len(PALETTE) * len(MARKERS)]
    names = [fit_text(label, 2.4, 8.5) for label in named] + ([f"{rest:,} other labels"] if rest > 0 else [])
    keyed = [looks[label] for label in named] + ([looks[list(looks)[-1]]] if rest > 0 else [])

    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    side = {1: 5.0, 2: 4.25, 3: 3.0}[across]
    gap, head = 0.2, 0.3
    wide = across * side + (across - 1) * gap
    places = place_legend(names, wide)
    key = 0.18 * (places[-1][1] + 1) + 0.14
    figure, frame = make_axes(wide, down * (side * 0.9 + head), top=key, left=0.1, right=0.1, bottom=0.1)
    draw_legend(figure, frame, names, [(look.colour, look.marker, False) for look in keyed], places, above=key - 0.12)
    frame.axis("off")
    code = {label: i for i, label in enumerate(looks)}
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
                palette={i: look.colour for i, look in enumerate(looks.values())},
                markers={i: look.marker for i, look in enumerate(looks.values())},
                s=size,
                alpha=0.75,
                linewidth=0,
                legend=False,
                rasterized=True,
                ax=axes,
            )
        spans = [padded_range(points["x"]), padded_range(points["y"])]
        # One unit per inch for both directions, so that distances are drawn as they are.
        unit = max((spans[0][1] - spans[0][0]) / side, (spans[1][1] - spans[1][0]) / (side * 0.9))
        centres = [(low + high) / 2 for low, high in spans]
        axes.set_xlim(centres[0] - unit * side / 2, centres[0] + unit * side / 2)
        axes.set_ylim(centres[1] - unit * side * 0.45, centres[1] + unit * side * 0.45)
        axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
        for spine in axes.spines.values():
            spine.set(color=FAINT, linewidth=0.8)
        axes.set_title(fit_text(panel, side, 10), loc="left", size=10, pad=5)
    figure.set_label(
        f"Scatter plot of {len(table):,} points in {len(panels)} panels, coloured by {len(counted)} labels: "
        + ", ".join(names[:12])
    )
    return figure


def point_styles(labels: pd.Series) -> dict[Any, Look]:
    """The look of every label of a scatter: sorted where all fit, the commonest first where there are too many."""
    counted = labels.value_counts()
    few = len(counted) <= len(PALETTE) * len(MARKERS)
    return styles(sorted(counted.index, key=_natural) if few else list(counted.index))


def _natural(label: object) -> list[tuple[int, float, str]]:
    """The order a person expects: class 2 before class 10."""
    parts = re.split(r"([0-9]+)", str(label))
    return [(0, float(part), "") if part.isdecimal() else (1, 0.0, part) for part in parts]
