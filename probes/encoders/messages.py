"""What the libraries that load a model say: kept quiet, and errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from clsprobe.probes.errors import InputError


@contextmanager
def as_input_error(name: str, what: str) -> Iterator[None]:
    """Whatever a library says of a broken file (tokenizers raises bare Exceptions), in one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(name, f"{what} ({first_line(error)})", "Is it whole? Download or save it again") from error


def first_line(error: Exception) -> str:
    """What an error says, cut to one line of our own."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")[:200]


_quiet_lock, _quiet_depth = Lock(), 0
_loud = (0, False)  # verbosity, and whether bars are shown, outside


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Loading reports and bars go to stderr, where only our own line belongs; the user's verbosity is restored.

    Threads may be inside together: the first one in sets what the last one out restores.
    """
    from transformers.utils import logging

    global _quiet_depth, _loud
    with _quiet_lock:
        if not _quiet_depth:
            _loud = logging.get_verbosity(), logging.is_progress_bar_enabled()
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if not _quiet_depth:
                logging.set_verbosity(_loud[0])
                if _loud[1]:
                    logging.enable_progress_bar()
