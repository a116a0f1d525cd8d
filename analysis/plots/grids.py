"""Grids of coloured cells: layer x readout, every two of many things, true against predicted labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from clsprobe.analysis.plots.style import (
    display_text,
    fit_text,
    format_number,
    format_short,
    make_axes,
    padded_range,
    register_plot,
    text_colour,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

OUTLINE = "#d1480a"  # of the best cell: far from every colour of the heat map
_CLASSES = 40  # drawn apart in `confusion`


@register_plot("layer", "readout", "value", "low", "high")
def heatmap(table: pd.DataFrame, *, metric: str, best: Sequence[Any] | None = None) -> Figure:
    """Layer (upwards, the lowest at the bottom) x readout (in order of first appearance), the interval in the cell.

    table: layer (int), readout (str), value, low, high; one row per cell. A cell without a value is hatched.
    best: (layer, readout) of the cell to outline.
    """
    from matplotlib.patches import Rectangle

    layers, readouts = sorted(table["layer"].unique()), list(table["readout"].unique())
    values, lows, highs = (
        table.pivot(index="layer", columns="readout", values=column).loc[layers, readouts].to_numpy(float)
        for column in ("value", "low", "high")
    )
    if best is not None and not (best[0] in layers and best[1] in readouts):
        best = None
    with_intervals = values.size <= 150
    cell_width, cell_height = (0.80, 0.43) if with_intervals else (0.56, 0.29)
    names = [fit_text(name, 1.9) for name in readouts]
    bottom, overhang = _name_margins(names, cell_width)
    left = max(0.35 + max(text_width(str(layer)) for layer in layers), overhang)
    width, height = cell_width * len(readouts), cell_height * len(layers)
    figure, axes = make_axes(width, height, left=left, right=0.95, top=0.3 if best else 0.1, bottom=bottom)
    low, high = padded_range(values, pad=0.0)
    ink = _grid(figure, axes, values, low, high, label=display_text(metric, 40))
    for row, column in np.argwhere(np.isfinite(values)):
        value, x, y = values[row, column], column + 0.5, row + 0.5
        colour = ink(value)
        if not with_intervals:
            axes.text(x, y, format_number(value), ha="center", va="center_baseline", size=8, color=colour)
            continue
        has_interval = np.isfinite([lows[row, column], highs[row, column]]).all()
        shift = 0.06 if has_interval else 0.0
        axes.text(x, y + shift, format_number(value), ha="center", va="center_baseline", size=10, color=colour)
        if has_interval:
            interval = f"{format_short(lows[row, column])}–{format_short(highs[row, column])}"
            axes.text(x, y - 0.3, interval, ha="center", va="center_baseline", size=6.6, color=colour)
    if best is not None:
        corner = (readouts.index(best[1]), layers.index(best[0]))
        for linewidth, colour in ((4.4, "white"), (2.2, OUTLINE)):  # a white halo keeps the outline apart on dark cells
            axes.add_patch(
                Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=linewidth, clip_on=False, zorder=4)
            )
        axes.annotate(
            f"outlined: layer {best[0]}, {display_text(best[1], 40)}",
            (0, 1),
            xytext=(0, 7),
            xycoords="axes fraction",
            textcoords="offset points",
            color=OUTLINE,
            size=8.5,
        )
    axes.set_yticks(np.arange(len(layers)) + 0.5, [str(layer) for layer in layers])
    axes.set_ylabel("layer", labelpad=6)
    _name_columns(axes, names, cell_width)
    figure.set_label(
        f"Heat map of {display_text(metric, 40)} over {len(layers)} layers and {len(readouts)} readouts, "
        f"from {format_number(low)} to {format_number(high)}"
        + (f"; layer {best[0]}, {display_text(best[1], 40)} is outlined" if best is not None else "")
    )
    return figure


@register_plot("panel", "row", "column", "value")
def squares(table: pd.DataFrame, *, metric: str, label: str) -> Figure:
    """Square matrices of agreement, one panel beside the other, on a scale from 0 to 1.

    table: panel, row, column, value; rows upwards and columns in order of first appearance. label: what a row is. A
    pair without a value is hatched; a value below 0 has the colour of 0.
    """
    panels = dict(iter(table.groupby("panel", sort=False, observed=True)))
    names = {name: list(dict.fromkeys([*rows["row"], *rows["column"]])) for name, rows in panels.items()}
    largest = max(map(len, names.values()))
    size, font = (0.48, 8.5) if largest <= 9 else (0.36, 7.0) if largest <= 14 else (0.2, 0.0)
    fitted = {panel: [fit_text(name, 1.6) for name in names[panel]] for panel in panels}
    margins = [_name_margins(texts, size) for texts in fitted.values()]
    bottom, overhang = (max(inches) for inches in zip(*margins, strict=True))
    left = max(0.4 + max(text_width(text) for texts in fitted.values() for text in texts), overhang)
    side, gap = size * largest, 0.9
    across = max(1, min(len(panels), int(11 // (left + side + gap))))
    down = -(-len(panels) // across)
    panel_width, panel_height = left + side + gap, 0.35 + side + bottom + 0.2
    figure, frame = make_axes(across * panel_width - 0.2, down * panel_height - 0.2)
    frame.axis("off")
    width, height = figure.get_size_inches()
    for i, (name, rows) in enumerate(panels.items()):
        count = len(names[name])
        square = rows.pivot(index="row", columns="column", values="value").reindex(names[name], columns=names[name])
        values = square.to_numpy(float)
        x, y = (i % across) * panel_width + left, height - (i // across) * panel_height - 0.35 - size * count
        axes = figure.add_axes((x / width, y / height, size * count / width, size * count / height))
        ink = _grid(figure, axes, values, 0.0, 1.0, label=display_text(metric, 40))
        for row, column in np.argwhere(np.isfinite(values)) if font else ():
            value = values[row, column]
            centre = column + 0.5, row + 0.5
            axes.text(*centre, format_short(value), ha="center", va="center_baseline", size=font, color=ink(value))
        step = max(1, round(0.2 / size)) if font else 2
        axes.set_yticks(np.arange(0, count, step) + 0.5, fitted[name][::step])
        _name_columns(axes, fitted[name], size)
        axes.set_ylabel(display_text(label, 40), labelpad=6)
        axes.set_title(fit_text(name, size * count + gap, 10), loc="left", size=10, pad=5)
    titles = ", ".join(fit_text(name, 2.4) for name in list(panels)[:12])
    what = f"{display_text(metric, 40)} between every two of {largest}"
    figure.set_label(f"Heat map of {what}, in {len(panels)} panels: {titles}")
    return figure


@register_plot("label", "predicted", "count")
def confusion(table: pd.DataFrame) -> Figure:
    """True labels (rows) against predicted ones: the count in the cell, coloured by its share of the row.

    table: label, predicted, count; classes in order of first appearance. Past 40 classes the rarer ones share one row.
    """
    counts = table.groupby("label", sort=False)["count"].sum()
    classes = list(dict.fromkeys([*table["label"], *table["predicted"]]))
    names = {label: fit_text(label, 1.7) for label in classes}
    if len(classes) > _CLASSES:
        common = set(counts.nlargest(_CLASSES - 1).index)
        rest = object()  # a key that equals no label
        names = {label: name for label, name in names.items() if label in common}
        names[rest] = f"{len(classes) - len(names)} other classes"
        classes = list(names)
    index = {label: i for i, label in enumerate(classes)}
    matrix = np.zeros((len(classes), len(classes)))
    rows, columns = (
        table[side].map(lambda label: index.get(label, len(classes) - 1)) for side in ("label", "predicted")
    )
    np.add.at(matrix, (rows.to_numpy(int), columns.to_numpy(int)), table["count"].to_numpy(float))
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full_like(matrix, np.nan), where=totals > 0)

    few, many = len(classes) <= 10, len(classes) > 18
    cell_width, cell_height = (0.66, 0.46) if few else (0.28, 0.24) if many else (0.46, 0.36)
    texts = list(names.values())
    bottom, overhang = _name_margins(texts, cell_width)
    left = max(0.4 + max(map(text_width, texts)), overhang)
    width, height = cell_width * len(classes), cell_height * len(classes)
    figure, axes = make_axes(width, height, left=left, right=0.95, top=0.1, bottom=bottom + 0.22)
    ink = _grid(figure, axes, shares[::-1], 0.0, 1.0, label="share of the row", shares=True)
    size = 9.5 if few else 6.6 if many else 8.0
    for row, column in np.argwhere(matrix > 0):
        x, y, share = column + 0.5, len(classes) - row - 0.5, shares[row, column]
        count = f"{matrix[row, column]:,.0f}" if matrix[row, column] < 10_000 else f"{matrix[row, column]:.2g}"
        axes.text(x, y + 0.07 * few, count, ha="center", va="center_baseline", size=size, color=ink(share))
        if few:
            axes.text(x, y - 0.3, f"{share:.0%}", ha="center", va="center_baseline", size=6.6, color=ink(share))
    axes.set_yticks(np.arange(len(classes)) + 0.5, texts[::-1])
    axes.set_ylabel("true label", labelpad=6)
    _name_columns(axes, texts, cell_width)
    axes.set_xlabel("predicted label", labelpad=4)
    accuracy = float(np.trace(matrix) / matrix.sum()) if matrix.sum() else float("nan")
    figure.set_label(f"Confusion matrix of {len(classes)} classes; {accuracy:.0%} of the texts lie on the diagonal")
    return figure


def _sequential(*, zero: bool) -> Colormap:
    """seaborn's mako, light to dark, without its dark end: perceptually uniform, also in grey.

    zero: make the lowest colour a neutral grey, for a scale whose lowest value means "none".
    """
    import seaborn as sns
    from matplotlib.colors import ListedColormap, to_rgba

    colours = sns.color_palette("mako_r", as_cmap=True)(np.linspace(0.0, 0.7, 256))
    if zero:
        colours[0] = to_rgba("#f3f5f7")
    return ListedColormap(colours, name="clsprobe")


def _grid(
    figure: Figure, axes: Axes, values: np.ndarray, low: float, high: float, *, label: str, shares: bool = False
) -> Callable[[float], str]:
    """Draw a heat map of (row, column) values, first row at the bottom, blanks hatched, with a slim colour bar.

    Returns a function from a value to the colour of text on its cell.
    """
    import seaborn as sns
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    colours, norm = _sequential(zero=shares), Normalize(low, high)
    box = axes.get_position()
    inch = 1 / figure.get_figwidth()
    height = min(box.height, 2.6 / figure.get_figheight())
    bar = figure.add_axes((box.x1 + 0.14 * inch, box.y1 - height, 0.1 * inch, height))
    sns.heatmap(
        values,
        mask=~np.isfinite(values),
        cmap=colours,
        vmin=low,
        vmax=high,
        linewidths=1.0,
        linecolor="white",
        xticklabels=False,
        yticklabels=False,
        cbar_ax=bar,
        cbar_kws={"label": label} | ({"ticks": [0, 0.25, 0.5, 0.75, 1]} if shares else {}),
        ax=axes,
    )
    axes.invert_yaxis()  # seaborn counts rows downwards
    bar.tick_params(labelsize=7.5, length=2, pad=2)
    bar.yaxis.label.set(size=8.5, rotation_mode="anchor", rotation=90)
    bar.yaxis.label.set_verticalalignment("top")
    for row, column in np.argwhere(~np.isfinite(values)):
        blank = Rectangle((column, row), 1, 1, facecolor="#f6f8fa", edgecolor="#c3ccd5", hatch="////", linewidth=0)
        axes.add_patch(blank)
    return lambda value: text_colour(colours(norm(value)))


def _name_columns(axes: Axes, names: Sequence[str], cell_width: float) -> None:
    """Write names under the columns of a grid: level where they fit, slanted where they do not."""
    level = max(map(text_width, names)) < cell_width - 0.06
    axes.set_xticks(np.arange(len(names)) + 0.5)
    axes.set_xticklabels(
        names,
        rotation=0 if level else 40,
        ha="center" if level else "right",
        va="top" if level else "center",
        rotation_mode="anchor",
    )
    axes.tick_params(length=0, pad=5)


def _name_margins(names: Sequence[str], cell_width: float) -> tuple[float, float]:
    """Inches that `_name_columns` needs below the grid, and to the left of its first column."""
    longest = max(map(text_width, names))
    if longest < cell_width - 0.06:
        return 0.28, 0.0
    overhang = max(text_width(name) * 0.766 - (i + 0.5) * cell_width for i, name in enumerate(names))
    return 0.25 + longest * 0.643, overhang + 0.1
