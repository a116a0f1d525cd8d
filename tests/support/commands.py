"""The command as a test calls it."""

from __future__ import annotations

import pytest

from clsprobe.cli import main


def call(*arguments: object) -> int:
    """The exit code of the command, run in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)
