"""The command, called in this process."""

from __future__ import annotations

import pytest

from clsprobe.cli import main


def call(*arguments: object) -> int:
    """Run the command in this process and return its exit code."""
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return int(exit.value.code or 0)
