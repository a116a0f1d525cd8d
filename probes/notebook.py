"""How objects show themselves in a notebook: a small table of facts, everything escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from clsprobe.probes.errors import printable


def escape_text(text: object) -> str:
    """Text from data as HTML: nothing in it is markup, hidden, or changes the writing direction of what follows."""
    return f"<bdi>{escape(printable(str(text)), quote=False)}</bdi>"


def facts_to_html(title: str, facts: Mapping[str, object]) -> str:
    """A heading and a table with one row per fact. Both may hold text from data: it is escaped, and on one line."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape_text(name)}</th>'
        f'<td style="text-align:left">{escape_text(value)}</td></tr>'
        for name, value in facts.items()
    )
    return f"<div><strong>{escape_text(title)}</strong><table>{rows}</table></div>"
