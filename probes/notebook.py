"""How objects show themselves in a notebook: a small table of facts, everything escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from clsprobe.probes.errors import printable


def facts_to_html(title: str, facts: Mapping[str, object]) -> str:
    """A heading and a table with one row per fact. Both may hold text from data: it is escaped, and on one line."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(printable(name))}</th>'
        f'<td style="text-align:left">{escape(printable(str(value)))}</td></tr>'
        for name, value in facts.items()
    )
    return f"<div><strong>{escape(printable(title))}</strong><table>{rows}</table></div>"
