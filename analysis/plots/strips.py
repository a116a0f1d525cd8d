"""Texts as strips of tokens, coloured by their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from clsprobe.analysis.plots.style import (
    FAINT,
    INK,
    PALETTE,
    SOFT,
    display_text,
    fit_text,
    format_signed,
    make_axes,
    register_plot,
    text_colour,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NEGATIVE, _POSITIVE = (
    PALETTE[1],
    PALETTE[0],
)  # orange and blue, for colour-blind readers
_STRIPS, _TOKENS = 12, 80  # texts in a figure, tokens of a text


@register_plot("text", "token_index", "token", "score")
def token_strips(table: pd.DataFrame, *, metric: str) -> Figure:
    """Texts as strips of tokens, coloured by their scores: positive ones blue with a bar above, negative ones orange
    with a bar below, so that they can be told apart in grey as well.

    table: text, token_index, token, score; optionally special (greyed letters), name (the heading of a text), and
    complete (where False, the heading says that the scores do not sum to the change). One scale for all texts. The
    first 12 texts are drawn, and 80 tokens of each.
    """
    from matplotlib.patches import Rectangle

    texts = list(table["text"].unique())[:_STRIPS]
    rows = table[table["text"].isin(texts)]
    largest = float(np.nanmax(np.abs(rows["score"].to_numpy(float)), initial=0.0)) or 1.0
    line_width, box_height, bar_height, line_step, heading_height = 6.6, 0.2, 0.11, 0.48, 0.22  # inches
    boxes: list[tuple[float, float, float, str, float, bool]] = []  # x, y, width, token, score, special
    headings: list[tuple[float, str]] = []
    y = 0.0  # downwards from the top
    for text in texts:
        tokens = rows[rows["text"] == text].sort_values("token_index", kind="stable")
        name = tokens["name"].iloc[0] if "name" in tokens else f"text {text}"
        incomplete = "complete" in tokens and not tokens["complete"].all()
        more = f"; {len(tokens) - _TOKENS:,} more tokens in the table" if len(tokens) > _TOKENS else ""
        heading = f"{fit_text(name, 3.4)}{more}" + ("; the scores do not sum to the change" if incomplete else "")
        headings.append((y + 0.1, heading))
        x, y = 0.0, y + heading_height + bar_height
        special = tokens["special"] if "special" in tokens else np.zeros(len(tokens), bool)
        for token, score, is_special in list(zip(tokens["token"], tokens["score"], special, strict=True))[:_TOKENS]:
            label = fit_text(token, 1.9)
            width = max(text_width(label) + 0.12, 0.16)
            if x + width > line_width and x:
                x, y = 0.0, y + line_step
            boxes.append((x, y, width, label, float(score), bool(is_special)))
            x += width + 0.03
        y += box_height + bar_height + 0.1
    figure, axes = make_axes(line_width, y, top=0.34, bottom=0.05)
    axes.set(xlim=(0, line_width), ylim=(y, 0))
    axes.axis("off")
    for y, heading in headings:
        axes.text(0, y, heading, size=8, color=SOFT, va="center_baseline")
    for x, top, width, label, score, is_special in boxes:
        has_score = np.isfinite(score)
        colour = _diverging(score / largest if has_score else 0.0)
        box = Rectangle((x, top), width, box_height, facecolor=colour, edgecolor="#c3ccd5", linewidth=0)
        if not has_score:
            box.set_hatch("////")
        axes.add_patch(box)
        axes.add_patch(Rectangle((x, top), width, box_height, fill=False, edgecolor=FAINT, linewidth=0.5))
        ink = text_colour(colour)
        ink = SOFT if is_special and ink == INK else ink
        axes.text(x + width / 2, top + box_height / 2, label, ha="center", va="center_baseline", size=9, color=ink)
        height = abs(score) / largest * bar_height if has_score else 0.0
        if height > 0.004:
            y, bar_colour = (top - height, _POSITIVE) if score > 0 else (top + box_height, _NEGATIVE)
            axes.add_patch(Rectangle((x, y), width, height, facecolor=bar_colour, linewidth=0))
    for i, share in enumerate(np.linspace(-1, 1, 9)):
        axes.add_patch(
            Rectangle((0.5 + 0.16 * i, -0.26), 0.16, 0.12, facecolor=_diverging(share), linewidth=0, clip_on=False)
        )
    upper = f"{format_signed(largest)}   {display_text(metric, 60)}"
    for x, label, side in ((0.46, format_signed(-largest), "right"), (2.0, upper, "left")):
        axes.text(x, -0.2, label, size=8, color=SOFT, ha=side, va="center_baseline")
    figure.set_label(
        f"{len(texts)} texts as strips of tokens, coloured by {display_text(metric, 60)} "
        f"from {format_signed(-largest)} (orange, bar below) to {format_signed(largest)} (blue, bar above)"
    )
    return figure


def _diverging(share: float) -> tuple[float, ...]:
    """The RGB colour of a share: -1 orange, 0 white, 1 blue."""
    from matplotlib.colors import to_rgb

    end = np.array(to_rgb(_POSITIVE if share > 0 else _NEGATIVE))
    return tuple(1 - min(abs(share), 1.0) * (1 - end))
