"""Plots: functions from a table to a matplotlib Figure; `draw` calls one by its name.

1. grids: `heatmap`, layer x readout; `squares`, matrices of agreement; `confusion`, class by class.
2. curves: `curves`, a line per readout.   3. forest: `intervals`; `differences`, effects against a declared margin.
4. points: `scatter`, panel beside panel.   5. strips: `token_strips`, texts coloured by their tokens' scores.
6. svg: a figure as inline SVG.   7. style: the palette, the house style, formatting of text and numbers.

A plot of a new kind is one function under `register_plot` (style), in a file that is imported here. Plots see tables
only: no torch, no scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

# Imported for what they register.
from clsprobe.analysis.plots import curves, forest, grids, points, strips  # noqa: F401
from clsprobe.analysis.plots.style import PLOTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(name: str, table: pd.DataFrame, arguments: Mapping[str, Any]) -> Figure:
    """Draw a table with the plot of this name. Raises ValueError for an unknown plot or a missing column."""
    if name not in PLOTS:
        raise ValueError(f"there is no plot '{name}'")
    return PLOTS[name](table, **arguments)
