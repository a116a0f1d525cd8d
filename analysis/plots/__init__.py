"""Plots: functions from a table to a matplotlib Figure; `draw` calls one by its name.

1. grids: `heatmap`, layer x readout; `squares`, matrices of agreement; `confusion`, class by class.
2. curves: `curves`, a line per readout.   3. forest: `intervals`; `differences`, effects against a declared margin.
4. points: `scatter`, panel beside panel.   5. strips: `token_strips`, texts coloured by their tokens' scores.
6. svg: a figure as inline SVG.   7. style: the palette, the house style, formatting of text and numbers.

A plot of a new kind is one function under `register_plot` (style), and its name in `PLOTS`; another package registers
it as an entry point, or defines it in a module that is imported already. Nothing else is drawn: an answer that somebody
sends you names its plots, and a name must not import a module. Plots see tables only: no torch, no scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clsprobe.probes.registry import Register

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_MODULES = {
    "curves": ("curves",),
    "forest": ("differences", "intervals"),
    "grids": ("confusion", "heatmap", "squares"),
    "points": ("scatter",),
    "strips": ("token_strips",),
}
PLOTS = Register(
    "plot",
    "clsprobe.plots",
    "plot",
    {plot: f"{__name__}.{module}:{plot}" for module, plots in _MODULES.items() for plot in plots},
)


def can_draw(name: str) -> bool:
    """Whether there is a plot of this name: a registered one, or a defined one by its full name. Imports none."""
    from clsprobe.analysis.plots.style import DEFINED

    return name in DEFINED or any(name in (entry.name, entry.full_name) for entry in PLOTS.entries())


def draw(name: str, table: pd.DataFrame, arguments: Mapping[str, Any]) -> Figure:
    """Draw a table with the plot of this name.

    Raises ValueError for an unknown plot or a missing column, and InputError for what is registered and is no plot. A
    plot of another package gets a copy of the table; what it raises that is no Exception becomes a PluginError.
    """
    from clsprobe.analysis.plots.style import DEFINED
    from clsprobe.probes.errors import InputError
    from clsprobe.probes.plugins import PluginError, contain, undo_changes

    if not can_draw(name):
        raise ValueError(f"there is no plot '{name}'")
    plot = DEFINED.get(name if ":" in name else PLOTS.full_name(name)) or PLOTS.load(name)
    if plot not in DEFINED.values():
        raise InputError(f"plot {name}", "is no plot", "Define it under clsprobe.analysis.plots.style.register_plot")
    if plot.__module__.startswith("clsprobe."):
        return plot(table, **arguments)
    try:
        with contain(), undo_changes():
            return plot(table.copy(), **arguments)
    except PluginError as error:
        raise error.__cause__ if isinstance(error.__cause__, Exception) else error from None
