"""What several tests share: where the real texts are, if they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real texts, `$CLSPROBE_DATA` or ../shared/data; a test that needs it is skipped without it."""
    folder = Path(os.environ.get("CLSPROBE_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data").resolve()
    if not folder.is_dir():
        pytest.skip(f"no real texts in {folder}; set CLSPROBE_DATA")
    return folder
