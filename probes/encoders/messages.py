"""Messages of the libraries that load a model: reports are silenced, errors become one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from clsprobe.probes.errors import InputError


@contextmanager
def as_input_error(name: str, what: str, mend: str = "Is it whole? Download or save it again") -> Iterator[None]:
    """Turn any error about a model into an InputError (tokenizers raises bare Exceptions).

    mend: where the error itself does not say what to do.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise InputError(name, f"{what} ({first_line(error)})", _mend(error) or mend) from error


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust, such as tokenizers, has given up: its error is no Exception."""
    return type(error).__name__ == "PanicException"


def _mend(error: BaseException) -> str:
    """What to do about an error that says that something other than the model is at fault; otherwise empty."""
    if isinstance(error, PermissionError):
        return "Give yourself the right to read its files (chmod u+r)"
    if isinstance(error, MemoryError) or any(word in str(error) for word in ("out of memory", "allocate memory")):
        return "It needs more memory than is free: take a smaller model, or a larger machine"
    if isinstance(error, ImportError):
        return "Install the library that is missing"
    if is_panic(error):
        return "Use the tokenizer that was saved with the weights"
    return ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the second where it ends in a colon; at most 200 characters."""
    first, *rest = (str(error).strip() or type(error).__name__).splitlines()
    line = f"{first} {rest[0].strip()}" if first.rstrip().endswith(":") and rest else first
    return line.rstrip(".: ")[:200]


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
