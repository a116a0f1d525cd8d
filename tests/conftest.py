"""What several tests share: where the real texts are, if they are."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# The references of the tests are computed on the CPU: where there is a GPU, "auto" would put the encoder on it. Set
# before torch is imported, and inherited by the processes that tests start.
os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real texts, `$CLSPROBE_DATA` or ../shared/data; a test that needs it is skipped without it."""
    folder = Path(os.environ.get("CLSPROBE_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data").resolve()
    if not folder.is_dir():
        pytest.skip(f"no real texts in {folder}; set CLSPROBE_DATA")
    return folder


@pytest.fixture(scope="session", autouse=True)
def a_cache_of_its_own(tmp_path_factory) -> None:
    """No test reads or writes the user's cache; the processes that tests start inherit the variable."""
    os.environ["CLSPROBE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """Whoever runs the tests in the background has a shell that ignores Ctrl-C, and every process they start would."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread, and lose much where another process has the core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
