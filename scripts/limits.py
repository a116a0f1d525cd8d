"""What is said where memory runs out, or is limited to less than any run needs."""

from __future__ import annotations

import ctypes
import errno
import sys
from collections.abc import Iterator
from contextlib import suppress

from clsprobe.probes.errors import InputError

if sys.platform != "win32":
    import resource  # now: it cannot be loaded where memory is short

LARGE = 4 << 20
LEAST = 2 << 30  # bytes of address space, which the libraries of a run take before it reads anything


def check_memory_limit() -> None:
    """Raise InputError where the process may take less memory (``ulimit -v``) than the libraries of a run.

    Below that, libraries in C do not always fail: OpenBLAS may try forever to get the memory of a thread.
    """
    limit = _read_limit()
    if limit is not None and limit < LEAST:
        what = f"this process may take {limit >> 20:,} MB (ulimit -v), and needs {LEAST >> 20:,} MB or more"
        raise InputError("memory", what, "Raise the limit: ulimit -v unlimited")


def return_freed_memory() -> None:
    """Let the C library give freed arrays back to the system, from `LARGE` bytes on.

    glibc keeps what is freed below a threshold that grows to 32 MB by itself: a run would hold several times what it
    uses.
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).mallopt(-3, LARGE)  # M_MMAP_THRESHOLD


def describe_shortage(error: BaseException) -> InputError | None:
    """The error for a lack of memory where one is behind an error, otherwise None."""
    if not any(_is_shortage(cause) for cause in _list_causes(error)):
        return None
    where = error.where if isinstance(error, InputError) else "memory"
    if (limit := _read_limit()) is not None:
        what = f"the {limit >> 20:,} MB that this process may take (ulimit -v) are too few"
        return InputError(where, what, "Raise the limit: ulimit -v unlimited")
    return InputError(where, "there is not enough memory", "End other programs, or read fewer texts: --max-texts")


def _read_limit() -> int | None:
    """The largest address space that the process may have, in bytes; None where there is no limit."""
    if sys.platform == "win32":
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory could not be had; the libraries say it in several ways."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    message = str(error).lower()
    if isinstance(error, RuntimeError) and "can't start new thread" in message:
        return _read_limit() is not None  # otherwise there may be too many threads
    return isinstance(error, RuntimeError | ImportError) and any(
        part in message for part in ("allocate memory", "not enough memory", "failed to map segment")
    )
