"""The command line: ``clsprobe <study> ...``, and the commands for finished runs, the cache and lists.

1. Every study is a sub-command (`commands`); its fields are its flags (`flags`).
2. An error that the user can fix is one line, ``error: WHERE: WHAT. MEND.``, with exit code 2. 130 is Ctrl-C, 1 a bug.

Imports no torch, so that help, lists and errors about data or flags come at once.
"""

from __future__ import annotations

import atexit
import logging
import os
import platform
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from multiprocessing import active_children
from typing import Annotated, Any

import typer

from clsprobe.analysis.registers import load_study
from clsprobe.cache import cache
from clsprobe.check import check
from clsprobe.commands import Commands
from clsprobe.execution import execute
from clsprobe.finished import export, report
from clsprobe.limits import describe_shortage, return_freed_memory
from clsprobe.listing import list_choices
from clsprobe.probes import plugins
from clsprobe.probes.errors import InputError, did_you_mean
from clsprobe.probes.files import mend_disk
from clsprobe.terminal import Formatter, echo

log = logging.getLogger("clsprobe")
PATIENCE = 1.5  # seconds after Ctrl-C until a run that has not ended is killed
app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="What does the [CLS] vector know? Probes every layer and position of an encoder, and reports.",
)
UsageError: Any = typer.BadParameter.__mro__[1]  # the base of typer's errors, which it does not export


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code. arguments: default those of the process, which then handles Ctrl-C."""
    words = [_hyphenate(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    if words and ":" not in words[0]:
        words[0] = words[0].replace("_", "-")  # `fine_tuning` is `fine-tuning`
    words = words or ["--help"]
    interrupt = _Interrupt(f"stopped; the same command goes on: clsprobe {shlex.join(words)}")
    debug, quiet = "--debug" in words, "--quiet" in words
    code = 1
    try:
        if arguments is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
            signal.signal(signal.SIGINT, interrupt.handle)
        if arguments is None:
            plugins.ends_process = True
            return_freed_memory()
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(Formatter())
        logging.basicConfig(handlers=[handler])
        log.setLevel(logging.WARNING if quiet else logging.INFO)
        if quiet:
            os.environ["TQDM_DISABLE"] = "1"
        warnings.showwarning = lambda message, *_: log.warning("warning: %s", message)  # without the source line
        code = app(args=words, prog_name="clsprobe", standalone_mode=False) or 0  # typer itself returns 130 for Ctrl-C
    except InputError as error:
        code = _report_error(describe_shortage(error) or error, debug)
    except UsageError as error:
        code = _report_error(_convert_usage_error(error, words), debug)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except typer.Exit as exit:
        code = exit.exit_code
    except Exception as error:
        if not interrupt.pressed:  # else some library has turned Ctrl-C into this exception
            if debug or not (described := describe_shortage(error) or _describe_os_error(error)):
                raise
            code = _report_error(described, debug)
    if interrupt.pressed:
        interrupt.exit()
    if code == 130:
        interrupt.print_message()
    if arguments is None:
        _leave_threads(code)
    sys.exit(code)


class _Interrupt:
    """Ctrl-C: prints one line that says how to resume, and ends the process within two seconds, whatever it is doing.

    Files are written whole or not at all (probes.files), so the process may end anywhere.
    """

    def __init__(self, message: str) -> None:
        self.message, self.pressed, self._once = message, False, threading.Lock()

    def handle(self, *_: Any) -> None:
        """The signal handler: raise KeyboardInterrupt, and exit after `PATIENCE` if that does not end the run."""
        self.pressed = True
        sys.unraisablehook = lambda _: None  # no message where the exception cannot be raised
        sys.excepthook = lambda *_: self.exit()  # no traceback where nothing catches it
        timer = threading.Timer(PATIENCE, self.exit)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    def print_message(self) -> None:
        """Print the message, once."""
        if self._once.acquire(blocking=False):
            echo(self.message, error=True)

    def exit(self) -> None:
        """Print the message and exit without cleaning up, which takes a while once torch is loaded."""
        self.print_message()
        os._exit(130)


def _leave_threads(code: int) -> None:
    """End the process if a plug-in has left threads or processes, which the interpreter would wait for without end.

    First they are told to end, as the workers of joblib are through a hook of `threading`, then processes are killed.
    """
    own = threading.main_thread()
    if not active_children() and not any(thread is not own and not thread.daemon for thread in threading.enumerate()):
        return
    _try_for(2, threading._shutdown)  # type: ignore[attr-defined]
    for process in active_children():
        process.kill()
    _try_for(10, atexit._run_exitfuncs)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader is gone, or it is closed
            stream.flush()
    os._exit(code)


def _try_for(seconds: float, function: Callable[[], object]) -> None:
    """Call a function, and go on without its end after so many seconds."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)


def _hyphenate(argument: str) -> str:
    """`--text_column=x` becomes `--text-column=x`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _report_error(error: InputError, debug: bool) -> int:
    if debug:
        raise error
    echo(f"error: {error}", error=True)
    return 2


def _describe_os_error(error: Exception) -> InputError | None:
    """The error of the operating system, such as a full disk; None for any other."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    return InputError(str(error.filename or "disk"), str(error.strerror).lower(), mend_disk(error))


def _convert_usage_error(error: Any, words: Sequence[str]) -> InputError:
    """An error of typer's as an InputError; for a mistyped command or flag it suggests the nearest one."""
    message = str(error.message or error.format_message()).partition(" Did you mean")[0].rstrip(".")
    context: Any = getattr(error, "ctx", None)
    known: list[str] = []
    if context is not None:
        known = [option for parameter in context.command.params for option in parameter.opts]
        known += context.command.list_commands(context) if isinstance(context.command, Commands) else []
    names = [word.partition("=")[0] for word in words]
    mistyped = next((name for name in names if name in message.replace("'", " ").split()), None)
    guess = did_you_mean(mistyped, known) if mistyped else None
    return InputError(mistyped or "command", message, f"Did you mean '{guess}'?" if guess else "See --help")


def _print_versions(wanted: bool) -> None:
    if not wanted:
        return
    versions = {name: version(name) for name in ("clsprobe", "torch", "transformers", "scikit-learn")}
    own = f"clsprobe {versions.pop('clsprobe')}"
    others = ", ".join(f"{name} {number}" for name, number in versions.items())
    echo(f"{own} (Python {platform.python_version()}, {others})")
    raise typer.Exit


@app.callback()
def _set_flags(
    version: Annotated[
        bool, typer.Option("--version", help="print the versions and exit", callback=_print_versions, is_eager=True)
    ] = False,
) -> None:
    """The flags of the command itself."""


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="folder of the run")] = "out/demo",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a finished run")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say how many rows, how long, how much disk, and stop")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="say nothing but errors")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """Everything, on the embedded model and the built-in sentences."""
    execute("demo", load_study("run")(), out, overwrite=overwrite, dry=dry_run)


app.command()(report)
app.command()(export)
app.command()(cache)
app.command()(check)
app.command("list")(list_choices)
