"""The style of every figure: palette, rcParams, text that fits its place, and what makes a function a plot.

`register_plot` makes a function of a table a plot: its columns are checked, and it is drawn in the house style. Figures
are made within a style context: no pyplot figure, and the user's rcParams are neither used nor changed. Labels are
drawn as typed (``$`` starts no mathematics, ``_x`` stays in the legend). Margins are computed from the text they hold.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
Key = TypeVar("Key")

DEFINED: dict[str, Callable[..., Figure]] = {}  # full name -> plot, of all imported modules; `register_plot` fills it

INK, SOFT, FAINT = "#1f2328", "#59636e", "#d0d7de"  # text, secondary text, rules
# Eight colours that maximise the smallest distance between two (Oklab) under normal sight, deuteranopia, protanopia and
# tritanopia (Machado et al. 2009) at a contrast of 2.5 or more on white: 0.088, against 0.032 for seaborn's colorblind.
PALETTE = ("#1a5cad", "#c0540a", "#07906f", "#c491bb", "#de8f14", "#5b9df5", "#2c3a4c", "#764008")
MARKERS = ("o", "s", "^", "D", "v", "P")

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
# Fonts in which a glyph is looked up, in this order, where installed; DejaVu Sans comes with matplotlib.
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


def display_text(text: object, limit: int | None = None) -> str:
    """`text` as typed, with control and direction characters as escapes; past `limit` the middle is left out."""
    string = str(text)
    if limit is not None and len(string) > limit:
        tail = (limit - 1) // 2
        string = f"{string[: limit - 1 - tail]}…{string[len(string) - tail :]}"
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape", "surrogatepass").decode() for c in string)


def _is_harmless(character: str) -> bool:
    """Printable, a space of any width, or one of the two joiners that Persian, Hindi and emoji are written with."""
    return character.isprintable() or character in "\u200c\u200d" or unicodedata.category(character) == "Zs"


@dataclass(frozen=True)
class LabelStyle:
    """Colour and marker of a label, the same wherever it is drawn."""

    colour: str
    marker: str


def assign_styles(labels: Sequence[Key]) -> dict[Key, LabelStyle]:
    """A colour for every label, in the order given; from the ninth on the marker changes, so that no two are alike.

    From the 49th on, all labels share one grey style.
    """
    styles = [LabelStyle(colour, marker) for marker in MARKERS for colour in PALETTE]
    return {label: styles[i] if i < len(styles) else LabelStyle("#9aa3ad", "o") for i, label in enumerate(labels)}


@contextmanager
def house_style() -> Iterator[None]:
    """Within the block, matplotlib draws in its default style and ours, whatever the user has set."""
    import matplotlib.style
    from matplotlib import font_manager

    with warnings.catch_warnings():
        # A glyph that no installed font has becomes a box; in SVG the reader's own fonts draw it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        installed = set(font_manager.get_font_names())
        family = {"font.family": [name for name in _FONTS if name in installed]}
        with matplotlib.style.context(["default", _STYLE | family], after_reset=True):
            yield


def register_plot(*columns: str) -> Callable[[Callable[Concatenate[pd.DataFrame, P], Figure]], Callable[..., Figure]]:
    """Register a function of a table with these columns as a plot, under its full name ``package.module:function``.

    The registered function checks the columns (ValueError), draws in the house style, and a blank figure of no rows.
    """

    def decorate(
        plot: Callable[Concatenate[pd.DataFrame, P], Figure],
    ) -> Callable[Concatenate[pd.DataFrame, P], Figure]:
        @wraps(plot)
        def checked_plot(table: pd.DataFrame, *args: P.args, **kwargs: P.kwargs) -> Figure:
            required = (str(kwargs.get("along", name)) if name == "layer" else name for name in columns)
            if missing := [name for name in required if name not in table.columns]:
                present = ", ".join(map(str, table.columns))
                raise ValueError(f"{plot.__name__}: the table lacks {', '.join(missing)}; it has {present}")
            with house_style():
                return plot(table, *args, **kwargs) if len(table) else _empty_figure()

        DEFINED[f"{plot.__module__}:{plot.__qualname__}"] = checked_plot
        return checked_plot

    return decorate


def _empty_figure() -> Figure:
    figure, axes = make_axes(3.0, 0.5)
    axes.axis("off")
    axes.text(0.0, 0.5, "no rows to draw", color=SOFT, va="center", transform=axes.transAxes)
    figure.set_label("An empty figure: the table has no rows.")
    return figure


def make_axes(
    width: float, height: float, *, left: float = 0.1, right: float = 0.1, top: float = 0.1, bottom: float = 0.1
) -> tuple[Figure, Axes]:
    """A figure whose axes measure width x height inches, with margins around them in inches."""
    from matplotlib.figure import Figure

    total_width, total_height = left + width + right, bottom + height + top
    figure = Figure(figsize=(total_width, total_height))
    box = (left / total_width, bottom / total_height, width / total_width, height / total_height)
    return figure, figure.add_axes(box)


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


def text_width(text: str, size: float = 9.0) -> float:
    """The width of a line of text in inches."""
    return sum(map(_advance, text)) * size / 72


def fit_text(text: object, inches: float, size: float = 9.0) -> str:
    """`text` as displayed, its middle left out as far as needed to fit in so many inches."""
    line = display_text(text, 200)
    limit = len(line)
    while text_width(line, size) > inches and limit > 3:
        limit -= 1
        line = display_text(text, limit)
    return line


def format_short(number: float) -> str:
    """0.716 -> .72: two decimals without the leading zero, for small print."""
    return f"{number:.2f}".replace("0.", ".", 1).replace("-", "−") if abs(number) < 0.995 else f"{number:.2f}"


def format_signed(number: float) -> str:
    """+0.021: an effect with its sign, three decimals and a true minus; a dash where it is not finite."""
    if not np.isfinite(number):
        return "–"
    return f"{number:+.3f}".replace("-", "−")


def format_number(number: float, decimals: int = 2) -> str:
    """0.716 -> 0.72, with a true minus."""
    return f"{number:.{decimals}f}".replace("-", "−")


def padded_range(*numbers: Any, pad: float = 0.04) -> tuple[float, float]:
    """(low, high) of all finite numbers, padded on both sides by a share of the range; never empty."""
    values = np.concatenate([np.asarray(n, float).ravel() for n in numbers])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = (high - low) * pad if high > low else 0.05
    return low - margin, high + margin


def text_colour(colour: tuple[float, ...]) -> str:
    """White or dark, whichever has more contrast to this colour (WCAG relative luminance)."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3])
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.064 else INK


def place_legend(texts: Sequence[str], room: float, size: float = 8.5) -> list[tuple[float, int]]:
    """(start in inches, line) of each entry of a legend, which flow like words in a paragraph."""
    places, start, line = [], 0.0, 0
    for text in texts:
        width = 0.2 + text_width(text, size) + 0.2
        if start and start + width > room + 0.2:
            start, line = 0.0, line + 1
        places.append((start, line))
        start += width
    return places


def draw_legend(
    figure: Figure,
    axes: Axes,
    texts: Sequence[str],
    styles: Sequence[tuple[str, str, bool]],
    places: Sequence[tuple[float, int]],
    *,
    above: float,
) -> None:
    """A legend of (colour, marker, hollow) styles, its first line `above` inches over the top left corner of the axes.

    matplotlib's own legend leaves out labels that begin with an underscore.
    """
    box, (width, height) = axes.get_position(), figure.get_size_inches()
    for text, (colour, marker, hollow), (start, line) in zip(texts, styles, places, strict=True):
        x, y = box.x0 + start / width, box.y1 + (above - 0.18 * line) / height
        face = "white" if hollow else colour
        (dot,) = axes.plot([x + 0.06 / width], [y], marker, color=colour, transform=figure.transFigure, clip_on=False)
        dot.set(markerfacecolor=face, markersize=6)
        axes.text(x + 0.17 / width, y, text, size=8.5, va="center_baseline", transform=figure.transFigure)
