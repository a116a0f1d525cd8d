"""A plot of your own: how far every readout is from the first layer to the last, as arrows.

A plot is a function from a table to a figure, registered with the columns that it needs. Exhibits call it by its name,
so that an answer that was saved draws itself again: "package.module:arrows", or "arrows" if your package registers it.
"""

import pandas as pd

from clsprobe import Exhibit
from clsprobe.analysis.plots.style import INK, PALETTE, format_signed, make_axes, register_plot, text_width


@register_plot("readout", "first", "last")
def arrows(table: pd.DataFrame, *, metric: str):
    """An arrow for every row, from `first` to `last`, with the difference beside it."""
    left = 0.2 + max(text_width(name) for name in table.readout)
    figure, axes = make_axes(4.0, 0.3 * len(table), left=left, right=0.7, bottom=0.5)
    for place, row in enumerate(table.itertuples()):
        colour = PALETTE[0] if row.last >= row.first else PALETTE[1]
        axes.annotate("", (row.last, place), (row.first, place), arrowprops={"arrowstyle": "->", "color": colour})
        axes.text(1.02, place, format_signed(row.last - row.first), color=INK, va="center", clip_on=False)
    axes.set(xlim=(0, 1), ylim=(len(table) - 0.5, -0.5), xlabel=metric, yticks=range(len(table)))
    axes.set_yticklabels(table.readout)
    figure.set_label(f"{metric} of {len(table)} readouts, from the first layer to the last, as arrows")  # read aloud
    return figure


if __name__ == "__main__":
    table = pd.DataFrame({"readout": ["cls", "mean", "max"], "first": [0.5, 0.81, 0.74], "last": [0.89, 0.86, 0.7]})
    name = f"{__name__}:arrows"
    exhibit = Exhibit("Accuracy at layer 0 and at layer 6.", table, name, {"metric": "accuracy"})
    exhibit.draw().savefig("arrows.svg")
    print("arrows.svg:", exhibit.draw().get_label())
