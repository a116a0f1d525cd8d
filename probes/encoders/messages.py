"""Messages of the libraries that load a model: reports are silenced, errors become one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from clsprobe.probes.errors import InputError


@contextmanager
def as_input_error(name: str, what: str) -> Iterator[None]:
    """Turn any error about a broken file into an InputError (tokenizers raises bare Exceptions)."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(name, f"{what} ({first_line(error)})", "Is it whole? Download or save it again") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")[:200]


_quiet_lock, _quiet_depth = Lock(), 0
_outer_settings = (0, False)  # verbosity, and whether bars are shown


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence loading reports and progress bars; the user's verbosity is restored afterwards.

    Threads may overlap: the first to enter saves what the last to leave restores.
    """
    from transformers.utils import logging

    global _quiet_depth, _outer_settings
    with _quiet_lock:
        if not _quiet_depth:
            _outer_settings = logging.get_verbosity(), logging.is_progress_bar_enabled()
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if not _quiet_depth:
                logging.set_verbosity(_outer_settings[0])
                if _outer_settings[1]:
                    logging.enable_progress_bar()
