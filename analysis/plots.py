"""Tables into figures: every function takes a table and returns a matplotlib Figure; `svg` makes one inline.

1. `heatmap`, `curves`: layer x readout.   2. `confusion`, `intervals`: one chosen cell, class by class; baselines.
3. `differences`: effects against a declared margin.   4. `scatter`: points in the plane, panel beside panel; `squares`:
   how much every two of many things agree.
5. `svg`: a figure as inline SVG: responsive, same bytes every time, ids of its own, text as text.
6. `shown`, `signed`, `point_styles`: how data text and effects are spelled and how a label looks, also on the page.

Figures are made in matplotlib's default style under a context: no pyplot figure, nothing left in rcParams, nothing
taken from the user's. Labels are shown as typed (``$`` starts no mathematics, ``_x`` stays in the legend). Margins are
computed from the text they hold. Sees tables only: no torch, no scikit-learn.
"""

from __future__ import annotations

import base64
import io
import re
import unicodedata
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

P = ParamSpec("P")
Key = TypeVar("Key")

INK, SOFT, FAINT = "#1f2328", "#59636e", "#d0d7de"  # text, secondary text, rules
# Eight colours searched for the largest smallest distance (Oklab) under normal sight, deuteranopia, protanopia and
# tritanopia (Machado et al. 2009) at a contrast of 2.5 or more on white: 0.088, against 0.032 for seaborn's colorblind.
PALETTE = ("#1a5cad", "#c0540a", "#07906f", "#c491bb", "#de8f14", "#5b9df5", "#2c3a4c", "#764008")
MARKERS = ("o", "s", "^", "D", "v", "P")
OUTCOMES = {"yes": ("#07805f", "o"), "no": ("#b84a08", "s"), "undecided": ("#6e7781", "D")}
CHOSEN = "#d1480a"  # the outline of the chosen cell: far from every colour of the heat map

_FOLD = 40  # classes drawn apart in `confusion`
_STYLE = {
    "text.parse_math": False,  # a label "$5" is not mathematics
    "svg.fonttype": "none",
    "svg.hashsalt": "clsprobe",
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 9.0,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "grid.color": "#eaeef2",
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "hatch.linewidth": 0.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
# Fonts asked in turn for a glyph; only those installed count, DejaVu Sans comes with matplotlib.
_FONTS = (
    "DejaVu Sans",
    "Noto Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
    "Noto Sans Devanagari",
    "Arial Unicode MS",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Segoe UI",
)
# In SVG the reader's own machine draws the text, in the font of its interface; it is narrower than DejaVu Sans, in
# which the margins are measured, so that nothing is cut.
_SVG_FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'Noto Sans',sans-serif"


def shown(text: object, limit: int | None = None) -> str:
    """`text` as typed, control and direction characters as escapes; over `limit` characters the middle is left out."""
    whole = str(text)
    if limit is not None and len(whole) > limit:
        head = (limit - 1) - (limit - 1) // 2
        whole = f"{whole[:head]}…{whole[len(whole) - (limit - 1) // 2 :]}"
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape", "surrogatepass").decode() for c in whole)


def _is_harmless(character: str) -> bool:
    """Printable, a space of any width, or one of the two joiners that Persian, Hindi and emoji are written with."""
    return character.isprintable() or character in "\u200c\u200d" or unicodedata.category(character) == "Zs"


@dataclass(frozen=True)
class Look:
    """How a label is drawn everywhere it appears."""

    colour: str
    marker: str


def styles(labels: Sequence[Key]) -> dict[Key, Look]:
    """A colour for every label, in the order given; from the ninth on the marker changes, so that no two look alike.

    Past 48 labels the rest share one grey look.
    """
    looks = [Look(colour, marker) for marker in MARKERS for colour in PALETTE]
    return {label: looks[i] if i < len(looks) else Look("#9aa3ad", "o") for i, label in enumerate(labels)}


# ---------------------------------------------------------------------------------------------------------- drawing


@contextmanager
def _house_style() -> Iterator[None]:
    import matplotlib.style
    from matplotlib import font_manager

    with warnings.catch_warnings():
        # A glyph that no font here has is drawn as a box at worst; in SVG the reader's own fonts draw it anyway.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        installed = set(font_manager.get_font_names())
        family = {"font.family": [name for name in _FONTS if name in installed]}
        with matplotlib.style.context(["default", _STYLE | family], after_reset=True):
            yield


def _drawn(*columns: str) -> Callable[[Callable[Concatenate[pd.DataFrame, P], Figure]], Callable[..., Figure]]:
    """A plot function of a table with these columns: checked first, drawn in the house style, blank where no row is."""

    def decorate(
        plot: Callable[Concatenate[pd.DataFrame, P], Figure],
    ) -> Callable[Concatenate[pd.DataFrame, P], Figure]:
        @wraps(plot)
        def drawing(table: pd.DataFrame, *args: P.args, **kwargs: P.kwargs) -> Figure:
            wanted = (str(kwargs.get("along", name)) if name == "layer" else name for name in columns)
            if missing := [name for name in wanted if name not in table.columns]:
                there = ", ".join(map(str, table.columns))
                raise ValueError(f"{plot.__name__}: the table lacks {', '.join(missing)}; it has {there}")
            with _house_style():
                return plot(table, *args, **kwargs) if len(table) else _nothing()

        return drawing

    return decorate


def _nothing() -> Figure:
    figure, axes = _sheet(3.0, 0.5)
    axes.axis("off")
    axes.text(0.0, 0.5, "no rows to draw", color=SOFT, va="center", transform=axes.transAxes)
    figure.set_label("An empty figure: the table has no rows.")
    return figure


def _sheet(
    width: float, height: float, *, left: float = 0.1, right: float = 0.1, top: float = 0.1, bottom: float = 0.1
) -> tuple[Figure, Axes]:
    """A figure whose axes measure width x height inches, with margins around them in inches."""
    from matplotlib.figure import Figure

    whole, tall = left + width + right, bottom + height + top
    figure = Figure(figsize=(whole, tall))
    return figure, figure.add_axes((left / whole, bottom / tall, width / whole, height / tall))


@lru_cache(maxsize=4096)
def _advance(character: str) -> float:
    """The width of a character in DejaVu Sans, in em."""
    from matplotlib import font_manager

    if unicodedata.combining(character):
        return 0.0
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    if not font.get_char_index(ord(character)):  # another font draws it: CJK and emoji are one em wide
        return 1.05
    font.set_size(72, 72)
    return font.load_char(ord(character)).horiAdvance / 64 / 72


def _wide(text: str, size: float = 9.0) -> float:
    """The width of a line of text in inches."""
    return sum(map(_advance, text)) * size / 72


def _fit(text: object, inches: float, size: float = 9.0) -> str:
    """`text` as shown, the middle left out until it fits in so many inches."""
    line = shown(text, 200)
    limit = len(line)
    while _wide(line, size) > inches and limit > 3:
        limit -= 1
        line = shown(text, limit)
    return line


def _apart(places: Sequence[float], gap: float, room: float) -> np.ndarray:
    """The places nearest to those wanted (least squares), at least `gap` apart and inside [0, room]."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(order))
    moved = isotonic_regression(np.asarray(places, float)[order] - steps).x
    found = np.empty(len(order))
    found[order] = np.clip(moved, 0.0, max(room - gap * (len(order) - 1), 0.0)) + steps
    return found


def _short(number: float) -> str:
    """0.716 -> .72: two decimals, the form of the small print."""
    return f"{number:.2f}".replace("0.", ".", 1).replace("-", "−") if abs(number) < 0.995 else f"{number:.2f}"


def signed(number: float) -> str:
    """+0.021: an effect with its sign, three decimals, a true minus; a dash where there is none."""
    if not np.isfinite(number):
        return "–"
    return f"{number:+.3f}".replace("-", "−")


def _plain(number: float, decimals: int = 2) -> str:
    return f"{number:.{decimals}f}".replace("-", "−")


def _limits(*numbers: Any, pad: float = 0.04) -> tuple[float, float]:
    """The range of all finite numbers, padded; never empty."""
    values = np.concatenate([np.asarray(n, float).ravel() for n in numbers])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = (high - low) * pad if high > low else 0.05
    return low - margin, high + margin


def _sequential(*, zero: bool) -> Colormap:
    """seaborn's mako, light to dark, without its dark end: uniform, and print keeps its order in grey.

    zero: the lowest colour is a neutral grey, for a scale on which the lowest value means nothing at all.
    """
    import seaborn as sns
    from matplotlib.colors import ListedColormap, to_rgba

    colours = sns.color_palette("mako_r", as_cmap=True)(np.linspace(0.0, 0.7, 256))
    if zero:
        colours[0] = to_rgba("#f3f5f7")
    return ListedColormap(colours, name="clsprobe")


def _over(colour: tuple[float, ...]) -> str:
    """The ink that reads better on this colour (WCAG relative luminance)."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3])
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.064 else INK


def _name_columns(axes: Axes, names: Sequence[str], cell: float) -> None:
    """Names under the columns of a grid: level where they fit, slanted where they do not."""
    level = max(map(_wide, names)) < cell - 0.06
    axes.set_xticks(np.arange(len(names)) + 0.5)
    axes.set_xticklabels(
        names,
        rotation=0 if level else 40,
        ha="center" if level else "right",
        va="top" if level else "center",
        rotation_mode="anchor",
    )
    axes.tick_params(length=0, pad=5)


def _slant(names: Sequence[str], cell: float) -> tuple[float, float]:
    """Inches that `_name_columns` needs below the grid, and to the left of its first column."""
    longest = max(map(_wide, names))
    if longest < cell - 0.06:
        return 0.28, 0.0
    return 0.25 + longest * 0.643, max(_wide(name) * 0.766 - (i + 0.5) * cell for i, name in enumerate(names)) + 0.1


def _grid(
    figure: Figure, axes: Axes, values: np.ndarray, low: float, high: float, *, label: str, shares: bool = False
) -> Callable[[float], str]:
    """A heat map of (row, column) values, first row at the bottom, blanks hatched, a slim colour bar to its right.

    Returns the ink to write with on a value.
    """
    import seaborn as sns
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    colours, norm = _sequential(zero=shares), Normalize(low, high)
    box = axes.get_position()
    inch = 1 / figure.get_figwidth()
    tall = min(box.height, 2.6 / figure.get_figheight())
    bar = figure.add_axes((box.x1 + 0.14 * inch, box.y1 - tall, 0.1 * inch, tall))
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
    return lambda value: _over(colours(norm(value)))


# -------------------------------------------------------------------------------------------------- layer x readout


@_drawn("layer", "readout", "value", "low", "high")
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
    roomy = values.size <= 150
    wide, tall = (0.80, 0.43) if roomy else (0.56, 0.29)
    names = [_fit(name, 1.9) for name in readouts]
    below, before = _slant(names, wide)
    left = max(0.35 + max(_wide(str(layer)) for layer in layers), before)
    figure, axes = _sheet(
        wide * len(readouts), tall * len(layers), left=left, right=0.95, top=0.3 if best else 0.1, bottom=below
    )
    low, high = _limits(values, pad=0.0)
    ink = _grid(figure, axes, values, low, high, label=shown(metric, 40))
    for row, column in np.argwhere(np.isfinite(values)):
        value, x, y = values[row, column], column + 0.5, row + 0.5
        colour = ink(value)
        if not roomy:
            axes.text(x, y, _plain(value), ha="center", va="center_baseline", size=8, color=colour)
            continue
        known = np.isfinite([lows[row, column], highs[row, column]]).all()
        shift = 0.06 if known else 0.0
        axes.text(x, y + shift, _plain(value), ha="center", va="center_baseline", size=10, color=colour)
        if known:
            interval = f"{_short(lows[row, column])}–{_short(highs[row, column])}"
            axes.text(x, y - 0.3, interval, ha="center", va="center_baseline", size=6.6, color=colour)
    if best is not None:
        corner = (readouts.index(best[1]), layers.index(best[0]))
        for width, colour in ((4.4, "white"), (2.2, CHOSEN)):  # a white halo keeps the outline apart on dark cells
            axes.add_patch(
                Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=width, clip_on=False, zorder=4)
            )
        axes.annotate(
            f"outlined: layer {best[0]}, {shown(best[1], 40)}",
            (0, 1),
            xytext=(0, 7),
            xycoords="axes fraction",
            textcoords="offset points",
            color=CHOSEN,
            size=8.5,
        )
    axes.set_yticks(np.arange(len(layers)) + 0.5, [str(layer) for layer in layers])
    axes.set_ylabel("layer", labelpad=6)
    _name_columns(axes, names, wide)
    figure.set_label(
        f"Heat map of {shown(metric, 40)} over {len(layers)} layers and {len(readouts)} readouts, "
        f"from {_plain(low)} to {_plain(high)}"
        + (f"; layer {best[0]}, {shown(best[1], 40)} is outlined" if best is not None else "")
    )
    return figure


@_drawn("layer", "readout", "value", "low", "high")
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
    names = [_fit(name, 2.2, 8.5) for name in readouts]
    names += [f"{_fit(name, 1.9, 8.5)}  {_plain(value)}" for name, value in baselines.items()]
    gap, size = 0.165, 8.5
    height = max(3.7, gap * len(names) + 0.1)
    wide = 5.9
    right = 0.5 + max([_wide(name, size) for name in names], default=0.0)
    figure, axes = _sheet(wide, height, left=0.55, right=right, top=0.32, bottom=0.5)
    low, high = _limits(table[["value", "low", "high"]], list(baselines.values()), pad=0.03)
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


# ------------------------------------------------------------------------------------------------- one chosen cell


@_drawn("label", "predicted", "count")
def confusion(table: pd.DataFrame) -> Figure:
    """True labels (rows) against predicted ones: the count in the cell, coloured by its share of the row.

    table: label, predicted, count; classes in order of first appearance. Past 40 classes the rarer ones are one.
    """
    counts = table.groupby("label", sort=False)["count"].sum()
    classes = list(dict.fromkeys([*table["label"], *table["predicted"]]))
    names = {label: _fit(label, 1.7) for label in classes}
    if len(classes) > _FOLD:
        common = set(counts.nlargest(_FOLD - 1).index)
        rest = object()  # equal to no label
        names = {label: name for label, name in names.items() if label in common}
        names[rest] = f"{len(classes) - len(names)} other classes"
        classes = list(names)
    place = {label: i for i, label in enumerate(classes)}
    square = np.zeros((len(classes), len(classes)))
    rows, columns = (
        table[side].map(lambda label: place.get(label, len(classes) - 1)) for side in ("label", "predicted")
    )
    np.add.at(square, (rows.to_numpy(int), columns.to_numpy(int)), table["count"].to_numpy(float))
    totals = square.sum(axis=1, keepdims=True)
    shares = np.divide(square, totals, out=np.full_like(square, np.nan), where=totals > 0)

    few, many = len(classes) <= 10, len(classes) > 18
    wide, tall = (0.66, 0.46) if few else (0.28, 0.24) if many else (0.46, 0.36)
    texts = list(names.values())
    below, before = _slant(texts, wide)
    left = max(0.4 + max(map(_wide, texts)), before)
    figure, axes = _sheet(wide * len(classes), tall * len(classes), left=left, right=0.95, top=0.1, bottom=below + 0.22)
    ink = _grid(figure, axes, shares[::-1], 0.0, 1.0, label="share of the row", shares=True)
    size = 9.5 if few else 6.6 if many else 8.0
    for row, column in np.argwhere(square > 0):
        x, y, share = column + 0.5, len(classes) - row - 0.5, shares[row, column]
        count = f"{square[row, column]:,.0f}" if square[row, column] < 10_000 else f"{square[row, column]:.2g}"
        axes.text(x, y + 0.07 * few, count, ha="center", va="center_baseline", size=size, color=ink(share))
        if few:
            axes.text(x, y - 0.3, f"{share:.0%}", ha="center", va="center_baseline", size=6.6, color=ink(share))
    axes.set_yticks(np.arange(len(classes)) + 0.5, texts[::-1])
    axes.set_ylabel("true label", labelpad=6)
    _name_columns(axes, texts, wide)
    axes.set_xlabel("predicted label", labelpad=4)
    right = float(np.trace(square) / square.sum()) if square.sum() else float("nan")
    figure.set_label(f"Confusion matrix of {len(classes)} classes; {right:.0%} of the texts lie on the diagonal")
    return figure


@_drawn("name", "value", "low", "high")
def intervals(table: pd.DataFrame, *, metric: str, reference: Mapping[str, float] | None = None) -> Figure:
    """A dot and its interval per name, in the order of the table, the numbers beside it.

    table: name, value, low, high, and maybe count (rows behind the number). reference: name -> value, dashed lines.
    """
    rows, dropped = table.head(_ROWS), max(len(table) - _ROWS, 0)
    reference = {name: value for name, value in (reference or {}).items() if np.isfinite(value)}
    low, high = _limits(rows[["value", "low", "high"]], list(reference.values()))
    texts = [f"{_fit(name, 1.9, 8)} {_plain(value)}" for name, value in reference.items()]
    marks = _levels(texts, [(value - low) / (high - low) * _WIDE for value in reference.values()])
    figure, axes, places = _forest(
        [_fit(name, 2.6) for name in rows["name"]],
        [_plain(value) for value in rows["value"]],
        [f"{_short(low)} – {_short(high)}" for low, high in zip(rows["low"], rows["high"], strict=True)],
        [f"n = {count:,.0f}" for count in rows["count"]] if "count" in rows else [],
        (low, high),
        above=0.12 + 0.17 * (max((level for _, level in marks), default=-1) + 1),
        dropped=dropped,
    )
    per_inch = (high - low) / _WIDE
    bottom, top = axes.get_ylim()
    for text, value, (start, level) in zip(texts, reference.values(), marks, strict=True):
        y = top + (0.07 + 0.17 * level) / _STEP
        axes.plot([value] * 2, [bottom, y], color=SOFT, linewidth=1.0, dashes=(4, 3), clip_on=False, zorder=1)
        # The white ground hides the line of a label that stands higher.
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        axes.text(low + start * per_inch, y + 0.02 / _STEP, text, size=8, color=SOFT, va="bottom", bbox=ground)
    axes.hlines(places, rows["low"], rows["high"], color=PALETTE[0], linewidth=2.4, alpha=0.5, zorder=2)
    axes.plot(rows["value"], places, "o", color=PALETTE[0], markersize=6, markeredgecolor="white", zorder=3)
    axes.set_xlabel(f"{shown(metric, 40)} with 95 % interval")
    figure.set_label("; ".join([f"{shown(metric, 40)} with its interval for {len(table)} rows", *texts]))
    return figure


@_drawn("name", "effect", "low", "high", "outcome")
def differences(table: pd.DataFrame, *, margin: float, metric: str) -> Figure:
    """Effects and their intervals around zero; the band of +-margin is shaded, colour and marker say the outcome.

    table: name, effect, low, high, outcome ("yes", "no" or "undecided").
    """
    rows, dropped = table.head(_ROWS), max(len(table) - _ROWS, 0)
    low, high = _limits(rows[["effect", "low", "high"]], [-1.15 * margin, 1.15 * margin])
    seen = [outcome for outcome in OUTCOMES if (table["outcome"] == outcome).any()]
    key = _flow(seen, _WIDE)
    figure, axes, places = _forest(
        [_fit(name, 2.6) for name in rows["name"]],
        [signed(effect) for effect in rows["effect"]],
        [f"{signed(low)} to {signed(high)}" for low, high in zip(rows["low"], rows["high"], strict=True)],
        [],
        (low, high),
        above=0.42,
        dropped=dropped,
    )
    axes.axvspan(-margin, margin, color="#eef1f4", linewidth=0, zorder=0)
    axes.axvline(0.0, color=SOFT, linewidth=0.9, zorder=1)
    for outcome in seen:
        colour, marker = OUTCOMES[outcome]
        of = (rows["outcome"] == outcome).to_numpy()
        axes.hlines(places[of], rows["low"][of], rows["high"][of], color=colour, linewidth=2.4, alpha=0.55, zorder=2)
        face = "white" if outcome == "undecided" else colour
        axes.plot(rows["effect"][of], places[of], marker, color=colour, markersize=6.5, markerfacecolor=face, zorder=3)
    looks = [(OUTCOMES[outcome][0], OUTCOMES[outcome][1], outcome == "undecided") for outcome in seen]
    _draw_key(figure, axes, seen, looks, key, above=0.27)
    axes.set_xlabel(f"difference in {shown(metric, 40)} with 95 % interval; shaded: within ±{margin:g}")
    told = ", ".join(f"{outcome} {(table['outcome'] == outcome).sum()}" for outcome in seen)
    figure.set_label(f"Differences in {shown(metric, 40)} around zero with a margin of {margin:g}: {told}")
    return figure


_WIDE, _STEP = 4.7, 0.27  # inches: the axes of `intervals` and `differences`, and one of their rows
_ROWS = 60


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
    widths = [max(_wide(text, size) for text in texts) + 0.16 for texts, size, _ in columns]
    figure, axes = _sheet(
        _WIDE,
        _STEP * len(names) + 0.1,
        left=0.2 + max(map(_wide, names)),
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
            at = high + (high - low) / _WIDE * end
            axes.text(at, place, text, ha="right", va="center_baseline", size=size, color=colour)
    axes.set_yticks(places, names)
    if dropped:
        below = -0.6 / (_STEP * len(names) + 0.1)
        axes.text(0, below, f"{dropped:,} more rows in the table", size=8, color=SOFT, transform=axes.transAxes)
    sns.despine(figure, axes, left=True)
    axes.tick_params(axis="y", length=0)
    return figure, axes, places


def _levels(texts: Sequence[str], places: Sequence[float], size: float = 8.0) -> list[tuple[float, int]]:
    """Where each text starts (inches) and on which line, centred on its place, none over another."""
    found: dict[int, tuple[float, int]] = {}
    free: list[float] = []  # the end of every line so far
    for i in np.argsort(places, kind="stable"):
        start = max(places[i] - _wide(texts[i], size) / 2, -0.15)
        level = next((n for n, end in enumerate(free) if end + 0.12 < start), len(free))
        free[level:] = [start + _wide(texts[i], size), *free[level + 1 :]]
        found[int(i)] = (start, level)
    return [found[i] for i in range(len(texts))]


def _flow(texts: Sequence[str], room: float, size: float = 8.5) -> list[tuple[float, int]]:
    """Where each entry of a legend starts (inches) and on which line, as words flow in a paragraph."""
    found, at, line = [], 0.0, 0
    for text in texts:
        need = 0.2 + _wide(text, size) + 0.2
        if at and at + need > room + 0.2:
            at, line = 0.0, line + 1
        found.append((at, line))
        at += need
    return found


def _draw_key(
    figure: Figure,
    axes: Axes,
    texts: Sequence[str],
    looks: Sequence[tuple[str, str, bool]],
    places: Sequence[tuple[float, int]],
    *,
    above: float,
) -> None:
    """A legend of (colour, marker, hollow) looks, its first line `above` inches over the top left corner of the axes.

    Our own, because matplotlib's leaves out the labels that begin with an underscore.
    """
    box, (width, height) = axes.get_position(), figure.get_size_inches()
    sheet = figure.transFigure
    for text, (colour, marker, hollow), (at, line) in zip(texts, looks, places, strict=True):
        x, y = box.x0 + at / width, box.y1 + (above - 0.18 * line) / height
        face = "white" if hollow else colour
        (dot,) = axes.plot([x + 0.06 / width], [y], marker, color=colour, transform=sheet, clip_on=False)
        dot.set(markerfacecolor=face, markersize=6)
        axes.text(x + 0.17 / width, y, text, size=8.5, va="center_baseline", transform=sheet)


# ----------------------------------------------------------------------------------------------------------- points


@_drawn("panel", "x", "y", "label", "text")
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
    names = [_fit(label, 2.4, 8.5) for label in named] + ([f"{rest:,} other labels"] if rest > 0 else [])
    keyed = [looks[label] for label in named] + ([looks[list(looks)[-1]]] if rest > 0 else [])

    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    side = {1: 5.0, 2: 4.25, 3: 3.0}[across]
    gap, head = 0.2, 0.3
    wide = across * side + (across - 1) * gap
    places = _flow(names, wide)
    key = 0.18 * (places[-1][1] + 1) + 0.14
    figure, frame = _sheet(wide, down * (side * 0.9 + head), top=key, left=0.1, right=0.1, bottom=0.1)
    _draw_key(figure, frame, names, [(look.colour, look.marker, False) for look in keyed], places, above=key - 0.12)
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
        spans = [_limits(points["x"]), _limits(points["y"])]
        # One unit per inch for both directions, so that distances are drawn as they are.
        unit = max((spans[0][1] - spans[0][0]) / side, (spans[1][1] - spans[1][0]) / (side * 0.9))
        centres = [(low + high) / 2 for low, high in spans]
        axes.set_xlim(centres[0] - unit * side / 2, centres[0] + unit * side / 2)
        axes.set_ylim(centres[1] - unit * side * 0.45, centres[1] + unit * side * 0.45)
        axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
        for spine in axes.spines.values():
            spine.set(color=FAINT, linewidth=0.8)
        axes.set_title(_fit(panel, side, 10), loc="left", size=10, pad=5)
    figure.set_label(
        f"Scatter plot of {len(table):,} points in {len(panels)} panels, coloured by {len(counted)} labels: "
        + ", ".join(names[:12])
    )
    return figure


@_drawn("panel", "row", "column", "value")
def squares(table: pd.DataFrame, *, metric: str, label: str) -> Figure:
    """Every thing against every other, one panel beside the other: how much two of them agree, on a scale from 0 to 1.

    table: panel, row, column, value; rows upwards and columns in order of first appearance. label: what they are. A
    pair without a value is hatched; one below 0 has the colour of 0.
    """
    panels = dict(iter(table.groupby("panel", sort=False, observed=True)))
    names = {name: list(dict.fromkeys([*rows["row"], *rows["column"]])) for name, rows in panels.items()}
    most = max(map(len, names.values()))
    size, font = (0.48, 8.5) if most <= 9 else (0.36, 7.0) if most <= 14 else (0.2, 0.0)
    fitted = {name: [_fit(each, 1.6) for each in names[name]] for name in panels}
    below, before = (max(each) for each in zip(*(_slant(texts, size) for texts in fitted.values()), strict=True))
    left = max(0.4 + max(_wide(text) for texts in fitted.values() for text in texts), before)
    side, gap = size * most, 0.9
    across = max(1, min(len(panels), int(11 // (left + side + gap))))
    down = -(-len(panels) // across)
    wide, tall = left + side + gap, 0.35 + side + below + 0.2
    figure, frame = _sheet(across * wide - 0.2, down * tall - 0.2)
    frame.axis("off")
    width, height = figure.get_size_inches()
    for i, (name, rows) in enumerate(panels.items()):
        count = len(names[name])
        square = rows.pivot(index="row", columns="column", values="value").reindex(names[name], columns=names[name])
        values = square.to_numpy(float)
        x, y = (i % across) * wide + left, height - (i // across) * tall - 0.35 - size * count
        axes = figure.add_axes((x / width, y / height, size * count / width, size * count / height))
        ink = _grid(figure, axes, values, 0.0, 1.0, label=shown(metric, 40))
        for row, column in np.argwhere(np.isfinite(values)) if font else ():
            value = values[row, column]
            at = column + 0.5, row + 0.5
            axes.text(*at, _short(value), ha="center", va="center_baseline", size=font, color=ink(value))
        every = max(1, round(0.2 / size)) if font else 2
        axes.set_yticks(np.arange(0, count, every) + 0.5, fitted[name][::every])
        _name_columns(axes, fitted[name], size)
        axes.set_ylabel(shown(label, 40), labelpad=6)
        axes.set_title(_fit(name, size * count + gap, 10), loc="left", size=10, pad=5)
    told = ", ".join(_fit(name, 2.4) for name in list(panels)[:12])
    figure.set_label(f"Heat map of {shown(metric, 40)} between every two of {most}, in {len(panels)} panels: {told}")
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


# -------------------------------------------------------------------------------------------------------------- SVG


def svg(figure: Figure, *, prefix: str) -> str:
    """The figure as inline SVG, byte-identical on every call: text as text, ids that begin with `prefix`, no request.

    The element stretches to its container and not beyond the figure's own width, which CSS reads as ``--natural``.
    """
    if not re.fullmatch(r"[A-Za-z][\w-]*", prefix):
        raise ValueError(f"svg: prefix {prefix!r} is no id; letters, digits, - and _ only, a letter first")
    buffer = io.BytesIO()
    with _house_style():
        figure.savefig(buffer, format="svg", dpi=180, metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())  # the parser drops the prolog, the DOCTYPE and comments
    used = {name for element in root.iter() for value in element.attrib.values() for name in _references(value)}
    for parent in list(root.iter()):
        for child in list(parent):
            # A <style> inside inline SVG would rule the whole page; <metadata> holds only the program's name.
            if child.tag.endswith(("}style", "}metadata")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text, element.tail = element.text if element.tag == "text" else None, None
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.clear()
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        for name, value in attributes.items():
            if name == "id":
                value = f"{prefix}-{value}"
            elif name == "href":
                value = f"#{prefix}-{value[1:]}" if value.startswith("#") else _lighter(value)
            elif name == "style" and element.tag == "text":
                value = re.sub(r"font-family: [^;]*;? ?", "", value)
            elif name == "transform" and element.tag == "text" and value.startswith("rotate(-0 "):
                continue  # turned by nothing
            element.set(name, re.sub(r"url\(#", f"url(#{prefix}-", value))
    width = figure.get_figwidth() * 72
    del root.attrib["width"], root.attrib["height"]
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("xml:space", "preserve")  # two spaces in a label stay two
    root.set("role", "img")
    root.set("aria-label", str(figure.get_label() or "figure"))
    root.set(
        "style",
        f"--natural:{width:.0f}pt;display:block;width:100%;max-width:var(--natural);height:auto;overflow:visible;"
        f"font-family:{_SVG_FONTS};stroke-linejoin:round;stroke-linecap:butt",
    )
    return ET.tostring(root, encoding="unicode")


def _references(value: str) -> list[str]:
    """The ids an attribute points to."""
    return re.findall(r"url\(#([^)]+)\)", value) + ([value[1:]] if value.startswith("#") else [])


def _lighter(image: str) -> str:
    """The same picture as a data URI with a palette of 128 colours: a quarter of the bytes for points on a blank.

    A colour bar has few colours already and would show steps.
    """
    from PIL import Image

    kind = "data:image/png;base64,"
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(image.removeprefix(kind)))) as picture:
        if picture.getcolors(256):
            return image
        picture.quantize(128, method=Image.Quantize.FASTOCTREE).save(buffer, "PNG", optimize=True)
    return kind + base64.b64encode(buffer.getvalue()).decode()


# ----------------------------------------------------------------------------------------------------- tokens, heads


_LOWERS, _RAISES = PALETTE[1], PALETTE[0]  # orange and blue: far apart for every sight, and the bars say it in grey
_STRIPS, _TOKENS = 12, 80  # texts in a figure, tokens of a text


@_drawn("text", "token_index", "token", "score")
def token_strips(table: pd.DataFrame, *, metric: str) -> Figure:
    """Texts as strips of tokens, coloured by their scores: what raises is blue with a bar above, what lowers is orange
    with a bar below, so that it can be read in grey as well.

    table: text, token_index, token, score; maybe special (greyed letters), name (the heading of a text), and complete
    (where False, the heading says that the scores do not sum to the change). One scale for all texts. The first 12
    texts are drawn, and 80 tokens of each.
    """
    from matplotlib.patches import Rectangle

    texts = list(table["text"].unique())[:_STRIPS]
    rows = table[table["text"].isin(texts)]
    largest = float(np.nanmax(np.abs(rows["score"].to_numpy(float)), initial=0.0)) or 1.0
    wide, box, reach, step, head = 6.6, 0.2, 0.11, 0.48, 0.22
    boxes: list[tuple[float, float, float, str, float, bool]] = []  # x, y, width, token, score, special
    headings: list[tuple[float, str]] = []
    y = 0.0  # downwards from the top
    for text in texts:
        own = rows[rows["text"] == text].sort_values("token_index", kind="stable")
        name = own["name"].iloc[0] if "name" in own else f"text {text}"
        partly = "complete" in own and not own["complete"].all()
        more = f"; {len(own) - _TOKENS:,} more tokens in the table" if len(own) > _TOKENS else ""
        heading = f"{_fit(name, 3.4)}{more}" + ("; the scores do not sum to the change" if partly else "")
        headings.append((y + 0.1, heading))
        x, y = 0.0, y + head + reach
        special = own["special"] if "special" in own else np.zeros(len(own), bool)
        for token, score, plain in list(zip(own["token"], own["score"], special, strict=True))[:_TOKENS]:
            label = _fit(token, 1.9)
            width = max(_wide(label) + 0.12, 0.16)
            if x + width > wide and x:
                x, y = 0.0, y + step
            boxes.append((x, y, width, label, float(score), bool(plain)))
            x += width + 0.03
        y += box + reach + 0.1
    key = 0.34
    figure, axes = _sheet(wide, y, top=key, bottom=0.05)
    axes.set(xlim=(0, wide), ylim=(y, 0))
    axes.axis("off")
    for place, heading in headings:
        axes.text(0, place, heading, size=8, color=SOFT, va="center_baseline")
    for x, top, width, label, score, plain in boxes:
        known = np.isfinite(score)
        colour = _diverging(score / largest if known else 0.0)
        ground = Rectangle((x, top), width, box, facecolor=colour, edgecolor="#c3ccd5", linewidth=0)
        if not known:
            ground.set_hatch("////")
        axes.add_patch(ground)
        axes.add_patch(Rectangle((x, top), width, box, fill=False, edgecolor=FAINT, linewidth=0.5))
        ink = _over(colour)
        ink = SOFT if plain and ink == INK else ink
        axes.text(x + width / 2, top + box / 2, label, ha="center", va="center_baseline", size=9, color=ink)
        tall = abs(score) / largest * reach if known else 0.0
        if tall > 0.004:
            at = top - tall if score > 0 else top + box
            bar = _RAISES if score > 0 else _LOWERS
            axes.add_patch(Rectangle((x, at), width, tall, facecolor=bar, linewidth=0))
    for i, share in enumerate(np.linspace(-1, 1, 9)):
        axes.add_patch(
            Rectangle((0.5 + 0.16 * i, -0.26), 0.16, 0.12, facecolor=_diverging(share), linewidth=0, clip_on=False)
        )
    labels = ((0.46, signed(-largest), "right"), (2.0, f"{signed(largest)}   {shown(metric, 60)}", "left"))
    for at, label, side in labels:
        axes.text(at, -0.2, label, size=8, color=SOFT, ha=side, va="center_baseline")
    figure.set_label(
        f"{len(texts)} texts as strips of tokens, coloured by {shown(metric, 60)} "
        f"from {signed(-largest)} (orange, bar below) to {signed(largest)} (blue, bar above)"
    )
    return figure


def _diverging(share: float) -> tuple[float, ...]:
    """-1 orange, 0 white, 1 blue."""
    from matplotlib.colors import to_rgb

    end = np.array(to_rgb(_RAISES if share > 0 else _LOWERS))
    return tuple(1 - min(abs(share), 1.0) * (1 - end))


@_drawn("layer", "head", "value")
def head_map(table: pd.DataFrame, *, metric: str) -> Figure:
    """Layer (upwards, the lowest at the bottom) x attention head, the value in the cell.

    table: layer, head (int), value; one row per head. A head without a value is hatched.
    """
    layers, heads = sorted(table["layer"].unique()), sorted(table["head"].unique())
    values = table.pivot(index="layer", columns="head", values="value").loc[layers, heads].to_numpy(float)
    names = [str(head) for head in heads]
    wide, tall = (0.42, 0.3) if values.size <= 200 else (0.3, 0.24)
    figure, axes = _sheet(
        wide * len(heads), tall * len(layers), left=0.35 + max(_wide(str(layer)) for layer in layers), right=0.95,
        bottom=0.46,
    )  # fmt: skip
    low, high = _limits(values, pad=0.0)
    ink = _grid(figure, axes, values, low, high, label=shown(metric, 40))
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        size = 8 if wide > 0.4 else 6.2
        axes.text(
            column + 0.5, row + 0.5, _short(value), ha="center", va="center_baseline", size=size, color=ink(value)
        )
    axes.set_yticks(np.arange(len(layers)) + 0.5, [str(layer) for layer in layers])
    axes.set_ylabel("layer", labelpad=6)
    _name_columns(axes, names, wide)
    axes.set_xlabel("head", labelpad=4)
    figure.set_label(
        f"Heat map of {shown(metric, 40)} over {len(layers)} layers and {len(heads)} heads, "
        f"from {_plain(low)} to {_plain(high)}"
    )
    return figure
