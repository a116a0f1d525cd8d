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
    fit_text,
    make_axes,
    register_plot,
    shown,
    signed,
    text_colour,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOWERS, _RAISES = PALETTE[1], PALETTE[0]  # orange and blue: far apart for every sight, and the bars say it in grey
_STRIPS, _TOKENS = 12, 80  # texts in a figure, tokens of a text


@register_plot("text", "token_index", "token", "score")
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
        heading = f"{fit_text(name, 3.4)}{more}" + ("; the scores do not sum to the change" if partly else "")
        headings.append((y + 0.1, heading))
        x, y = 0.0, y + head + reach
        special = own["special"] if "special" in own else np.zeros(len(own), bool)
        for token, score, plain in list(zip(own["token"], own["score"], special, strict=True))[:_TOKENS]:
            label = fit_text(token, 1.9)
            width = max(text_width(label) + 0.12, 0.16)
            if x + width > wide and x:
                x, y = 0.0, y + step
            boxes.append((x, y, width, label, float(score), bool(plain)))
            x += width + 0.03
        y += box + reach + 0.1
    key = 0.34
    figure, axes = make_axes(wide, y, top=key, bottom=0.05)
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
        ink = text_colour(colour)
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
