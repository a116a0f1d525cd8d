"""What the command writes to a terminal: names and texts of data are shown there, and never obeyed.

A file, column, label, model or plug-in may be named with the control codes that colour, move and retitle a terminal, or
with characters that turn the direction of what follows. `echo` and `Formatter` write every such character as an escape,
and end a line only where the code does. Nothing else of the command prints; what a plug-in itself prints is its own.
"""

from __future__ import annotations

import logging
from typing import Any

import typer

from clsprobe.probes.errors import printable


def echo(line: object = "", *, error: bool = False) -> None:
    """Print one line. error: to stderr."""
    typer.echo(printable(str(line)), err=error)


def escape_lines(text: str) -> str:
    """A text of several lines, such as a help page, of which each is escaped."""
    return "\n".join(map(printable, text.split("\n")))


class Formatter(logging.Formatter):
    """The message alone. Its arguments are escaped; so is a message without any or of other code, which may be data."""

    def format(self, record: logging.LogRecord) -> str:
        """The message in escapes. Only a message of clsprobe's own with arguments, which is code, ends a line."""
        message, arguments = record.msg, record.args
        if isinstance(arguments, dict):
            arguments = {name: _escape(value) for name, value in arguments.items()}
        elif arguments:
            arguments = tuple(map(_escape, arguments))
        if not arguments or record.name.partition(".")[0] != "clsprobe":
            message = printable(str(message))
        return super().format(logging.makeLogRecord(record.__dict__ | {"msg": message, "args": arguments}))

    def formatException(self, ei: Any) -> str:
        """A traceback in escapes."""
        return escape_lines(super().formatException(ei))


def _escape(value: object) -> object:
    """A number as it is, for formats such as %d; anything else as text in escapes."""
    return value if isinstance(value, int | float) else printable(str(value))
