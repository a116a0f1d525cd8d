"""Running the code of other people: what it raises is one exception, and what it changes in the process is put back.

1. `contain`: whatever plug-in code raises within the block, `sys.exit()`, GeneratorExit and a KeyboardInterrupt of its
   own too, is a `PluginError`. With a limit, code that takes longer is interrupted.
2. `undo_changes`: the working directory, environment, streams, signal handlers, random states and settings of libraries
   (`_STATES`) are after the block what they were before it, so that nothing else depends on what a plug-in did to them.

Three things are out of reach: `os._exit` and a crash end the process; a thread that a plug-in leaves behind goes on
after the block; and whatever else it changes within other libraries, such as a function of numpy, stays changed.

Imports no heavy library; the settings of one are watched where it is loaded.
"""

from __future__ import annotations

import builtins
import faulthandler
import io
import locale
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import BuiltinFunctionType, FrameType, FunctionType
from typing import Any, TextIO, cast

import numpy as np

from clsprobe.probes.errors import InputError, describe_error

log = logging.getLogger("clsprobe")

PATIENCE = 5.0  # seconds after an interruption until code that goes on is said to be stuck
AGAIN = 0.5  # seconds until code that catches the interruption is interrupted again


class PluginError(Exception):
    """What plug-in code raised, as one line; its cause is the exception itself, none where the code took too long."""


class _TooLong(BaseException):
    """Raised within plug-in code that has used up its time, whose own `except Exception` does not catch it."""


ends_process = False  # whether code that nothing interrupts ends the process, as it does in the command


def _report_stuck(sentence: str) -> None:
    """Say that code goes on, and end the process where that is wanted."""
    if not ends_process:
        log.warning("%s", sentence)
        return
    mend = "Leave it out, or let it return now and then"
    os.write(2, f"error: {InputError('--probe-timeout', sentence, mend)}\n".encode())
    os._exit(2)


@contextmanager
def contain(name: str = "the plug-in", *, seconds: float | None = None) -> Iterator[None]:
    """Whatever is raised within the block is a PluginError, an InputError and the user's own Ctrl-C apart.

    name: of what runs. seconds: the time that the block may take, None for no limit. In the main
    thread it is interrupted, also while it sleeps or waits for a lock, but code in C only when it returns to Python. In
    any other thread, and on Windows, it fails once it has returned.
    """
    start, process = time.monotonic(), os.getpid()

    def is_late() -> bool:
        return seconds is not None and time.monotonic() - start >= seconds

    try:
        with _note_ctrl_c() as pressed, _limit_time(name, seconds):
            try:
                yield
            except BaseException as error:
                if pressed:  # also where the plug-in has made another exception of it
                    raise KeyboardInterrupt from error
                if isinstance(error, InputError) or is_late():
                    raise
                raise PluginError(describe_error(error)) from error
    except BaseException as error:
        if is_late() and not isinstance(error, KeyboardInterrupt):
            raise PluginError(_describe_limit(seconds)) from None
        raise
    finally:
        if os.getpid() != process:  # a fork would go on with the run, and write what this process writes
            os._exit(0)
    if is_late():  # it has caught the interruption
        raise PluginError(_describe_limit(seconds))


def _describe_limit(seconds: float | None) -> str:
    return f"took longer than {seconds:g} s"


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _note_ctrl_c() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C is pressed; only in the main thread is it ever filled."""
    pressed: list[int] = []
    handler = signal.getsignal(signal.SIGINT) if _in_main_thread() else None
    if not callable(handler):
        yield pressed
        return

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def _limit_time(name: str, seconds: float | None) -> Iterator[None]:
    """Raise _TooLong in the block after so many seconds, and again where the block catches it."""
    if seconds is None or not _in_main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not _cleans_up(frame):  # else the block is over, or is interrupted again in a moment
            raise _TooLong

    sentence = f"{name} {_describe_limit(seconds)}, and cannot be interrupted"
    stuck = threading.Timer(seconds + PATIENCE, lambda: _report_stuck(sentence))
    stuck.daemon = True
    with ExitStack() as undo:  # each of its steps is taken, whatever is raised in another
        start = time.monotonic()
        undo.callback(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, interrupt))
        if ends_process:  # also where code in C keeps Python's lock, so that no other thread can run
            undo.callback(faulthandler.cancel_dump_traceback_later)
            faulthandler.dump_traceback_later(seconds + 2 * PATIENCE, exit=True, file=2)
        undo.callback(stuck.cancel)
        stuck.start()
        undo.callback(signal.setitimer, signal.ITIMER_REAL, 0)
        remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)  # of whoever else has set an alarm
        yield
    if remaining:
        signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - start), 1e-3), interval)


def _cleans_up(frame: FrameType | None) -> bool:
    """Whether this module, or the end of a `with`, runs in a frame: there an exception would skip what puts back."""
    if frame is not None and frame.f_globals.get("__name__") == "contextlib":
        return True
    while frame is not None:
        if frame.f_globals is globals():
            return True
        frame = frame.f_back
    return False


# ------------------------------------------------------------------------------------------- the state of the process


@contextmanager
def undo_changes() -> Iterator[None]:
    """Put back what the block changes in the process (`_STATES`). What it prints goes to stderr.

    Global random states start from one seed in every block, so that what draws from them does not depend on what ran
    before.
    """
    before = [(write, read()) for read, write in _STATES.values()]
    try:
        _seed_random_states()
        _redirect_output()
        with warnings.catch_warnings():
            yield
    finally:
        for write, state in reversed(before):
            with suppress(Exception):  # such as a working directory that is gone
                write(state)


def _read_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _write_directory(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _read_umask() -> int:
    os.umask(mask := os.umask(0o077))  # there is no other way to read it
    return mask


def _write_environment(variables: dict[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update({name: value for name, value in variables.items() if os.environ.get(name) != value})


def _read_signals() -> dict[int, Any]:
    """The handlers of all signals, and whether an alarm is set (under 0); outside the main thread nobody sets any."""
    if not _in_main_thread() or not hasattr(signal, "setitimer"):
        return {}
    alarm = signal.getitimer(signal.ITIMER_REAL)[0] > 0
    return {0: alarm} | {number: signal.getsignal(number) for number in signal.valid_signals()}


def _write_signals(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        if not number:
            if not handler:
                signal.setitimer(signal.ITIMER_REAL, 0)
        elif handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _read_descriptors() -> list[tuple[int, int]]:
    """Copies of the descriptors of stdin, stdout and stderr."""
    copies = []
    for number in range(3):
        with suppress(OSError):  # it is closed
            copies.append((number, os.dup(number)))
    return copies


def _write_descriptors(copies: list[tuple[int, int]]) -> None:
    for stream in (sys.__stdout__, sys.__stderr__):
        with suppress(AttributeError, OSError, ValueError):  # there is none, its reader is gone, or it is closed
            stream.flush()  # type: ignore[union-attr]
    for number, copy in copies:
        os.dup2(copy, number)
        os.close(copy)


def _read_streams() -> list[tuple[str, Any]]:
    return [(name, getattr(sys, name)) for name in ("stdin", "stdout", "stderr")]


def _write_streams(streams: list[tuple[str, Any]]) -> None:
    """The streams as they were, opened again where one was closed, also for the log."""
    for name, stream in streams:
        if stream is not None and stream.closed:
            number, mode = {"stdin": (0, "r"), "stdout": (1, "w"), "stderr": (2, "w")}[name]
            reopened = io.TextIOWrapper(io.FileIO(number, mode, closefd=False), stream.encoding, line_buffering=True)
            for handler in logging.root.handlers:
                if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                    handler.stream = reopened
            stream = reopened
        setattr(sys, name, stream)


class _Printed:
    """A stream that prints to another one, which it does not close."""

    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        """Nothing: the stream is not the plug-in's."""


def _redirect_output() -> None:
    """Both streams, and descriptor 1 of code in C and other processes, lead to stderr: stdout is for the results.

    `_write_streams` and `_write_descriptors` put them back.
    """
    with suppress(AttributeError, OSError, ValueError):  # one of them is closed
        os.fstat(1)  # else it would stay open afterwards
        sys.__stdout__.flush()  # type: ignore[union-attr]
        os.dup2(2, 1)
    if sys.stderr is not None:
        sys.stdout = sys.stderr = cast("TextIO", _Printed(sys.stderr))


def _read_interpreter() -> tuple[Any, ...]:
    return (
        sys.getrecursionlimit(),
        sys.getswitchinterval(),
        sys.gettrace(),
        sys.getprofile(),
        [(name, getattr(sys, name)) for name in ("excepthook", "displayhook", "unraisablehook")],
    )


def _write_interpreter(state: tuple[Any, ...]) -> None:
    sys.setrecursionlimit(state[0])
    sys.setswitchinterval(state[1])
    if sys.gettrace() is not state[2]:
        sys.settrace(state[2])
    if sys.getprofile() is not state[3]:
        sys.setprofile(state[3])
    for name, hook in state[4]:
        setattr(sys, name, hook)


def _list_search_paths() -> tuple[list[Any], ...]:
    return sys.path, sys.meta_path, sys.path_hooks


def _read_imports() -> tuple[dict[str, Any], list[list[Any]]]:
    return dict(sys.modules), [[*part] for part in _list_search_paths()]


def _write_imports(state: tuple[dict[str, Any], list[list[Any]]]) -> None:
    """Every module under its name, and what was added to the search behind what was there: a plug-in may need it."""
    modules, searched = state
    for name, module in modules.items():
        if sys.modules.get(name) is not module:
            sys.modules[name] = module
    for part, before in zip(_list_search_paths(), searched, strict=True):
        part[:] = [*before, *(entry for entry in part if entry not in before)]


def _read_definitions() -> list[tuple[Any, dict[str, Any]]]:
    """The functions and classes of clsprobe and of builtins, each by the namespace that it stands in."""
    own = [module for name, module in [*sys.modules.items()] if name.startswith("clsprobe.")]
    spaces: dict[int, Any] = {id(module): module for module in (builtins, *own)}
    for module in own:
        for value in [*vars(module).values()]:
            if isinstance(value, type) and value.__module__.startswith("clsprobe."):
                spaces[id(value)] = value
    kinds = (FunctionType, BuiltinFunctionType, type, property, classmethod, staticmethod)
    return [
        (space, {name: value for name, value in [*vars(space).items()] if isinstance(value, kinds)})
        for space in spaces.values()
    ]


def _write_definitions(state: list[tuple[Any, dict[str, Any]]]) -> None:
    for space, definitions in state:
        for name, value in definitions.items():
            if vars(space).get(name) is not value:
                setattr(space, name, value)


def _read_log() -> tuple[int, list[tuple[logging.Logger, dict[str, Any]]]]:
    names = ("level", "handlers", "filters", "disabled", "propagate")
    loggers = [
        (logger, {name: [*value] if isinstance(value := getattr(logger, name), list) else value for name in names})
        for logger in (logging.root, log)
    ]
    return logging.root.manager.disable, loggers


def _write_log(state: tuple[int, list[tuple[logging.Logger, dict[str, Any]]]]) -> None:
    for logger, settings in state[1]:
        for name, value in settings.items():
            setattr(logger, name, value)
    logging.disable(state[0])  # which also forgets what was decided under other levels


def _read_random_states() -> tuple[Any, ...]:
    torch = sys.modules.get("torch")
    return random.getstate(), np.random.get_state(), torch and torch.get_rng_state()  # noqa: NPY002


def _write_random_states(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    if (torch := sys.modules.get("torch")) and state[2] is not None:
        torch.set_rng_state(state[2])


def _seed_random_states() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(0)


def _read_torch() -> tuple[Any, ...] | None:
    """The settings of torch that decide what is computed; None where it is not loaded."""
    if (torch := sys.modules.get("torch")) is None:
        return None
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
    )


def _write_torch(state: tuple[Any, ...] | None) -> None:
    if (torch := sys.modules.get("torch")) is None:
        return
    dtype, grad, deterministic, precision, threads = state or (torch.float32, True, False, "highest", None)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)
    if torch.get_float32_matmul_precision() != precision:
        torch.set_float32_matmul_precision(precision)
    if threads is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


_STATES: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {  # put back from the last to the first
    "log": (_read_log, _write_log),
    "standard streams": (_read_streams, _write_streams),
    "descriptors": (_read_descriptors, _write_descriptors),
    "working directory": (_read_directory, _write_directory),
    "umask": (_read_umask, os.umask),
    "environment": (lambda: dict(os.environ), _write_environment),
    "signal handlers": (_read_signals, _write_signals),
    "interpreter": (_read_interpreter, _write_interpreter),
    "imports": (_read_imports, _write_imports),
    "definitions": (_read_definitions, _write_definitions),
    "locale": (lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
    "error handling": (np.geterr, lambda settings: np.seterr(**settings)),
    "torch settings": (_read_torch, _write_torch),
    "random states": (_read_random_states, _write_random_states),
}
_WATCHED = (  # what is a fault of a plug-in where its author tests it; the others also change by themselves
    "working directory", "umask", "environment", "signal handlers", "locale", "error handling",
    "torch settings",
)  # fmt: skip


@contextmanager
def forbid_changes() -> Iterator[None]:
    """Raise AssertionError where the block changes the process, and put back what it has changed."""
    before = {name: _STATES[name][0]() for name in _WATCHED}
    try:
        yield
    finally:
        changed = [name for name in _WATCHED if _STATES[name][0]() != before[name]]
        for name in changed:
            _STATES[name][1](before[name])
    assert not changed, (
        f"the {changed[0]} of the process is changed, which other code relies on and a run undoes: change it in a "
        "`with` that puts it back"
    )
