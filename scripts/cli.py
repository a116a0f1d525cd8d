"""The command line: ``clsprobe <study> ...`` and what can be done with finished runs.

1. Every file of this package that defines a study is a sub-command; the study's fields are its flags (`flags`).
2. What the user can mend is one line, ``error: WHERE: WHAT. MEND.``, and exit code 2. 130 is Ctrl-C, 1 our own bug.

Imports no torch: help, lists and every error about data or flags answer at once.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from clsprobe.cache import cache
from clsprobe.execution import execute
from clsprobe.finished import export, report
from clsprobe.flags import command_of
from clsprobe.listing import list_choices
from clsprobe.probes.errors import InputError, did_you_mean

log = logging.getLogger("clsprobe")
PATIENCE = 1.5  # seconds that a run has to end by itself after Ctrl-C
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="What does the [CLS] vector know? Probes every layer and position of an encoder, and reports.",
)
UsageError: Any = typer.BadParameter.__mro__[1]  # the base of typer's own errors, which it exports nowhere


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code. Without `arguments` it is the process's own, and Ctrl-C ends that."""
    given = [_dashed(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    if given:
        given[0] = given[0].replace("_", "-")  # `fine_tuning` is `fine-tuning`
    stop = _Stop(f"stopped; the same command goes on: clsprobe {shlex.join(given)}")
    debug, quiet = "--debug" in given, "--quiet" in given
    code = 1
    try:
        if arguments is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
            signal.signal(signal.SIGINT, stop.press)
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        log.setLevel(logging.WARNING if quiet else logging.INFO)
        if quiet:
            os.environ["TQDM_DISABLE"] = "1"
        warnings.showwarning = lambda message, *_: log.warning("warning: %s", message)  # one line, without its source
        register_studies()
        code = app(args=given, prog_name="clsprobe", standalone_mode=False) or 0  # typer makes 130 of Ctrl-C by itself
    except InputError as error:
        code = _complain(error, debug)
    except UsageError as error:
        code = _complain(_mended(error, given), debug)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except typer.Exit as ended:
        code = ended.exit_code
    except OSError as error:
        if error.errno is None or debug:
            raise
        code = _complain(InputError(str(error.filename or "disk"), str(error.strerror), "Mend it and run again"), debug)
    except Exception:
        if not stop.pressed:  # else it is what some library makes of Ctrl-C
            raise
    if stop.pressed:
        stop.end()
    if code == 130:
        stop.tell()
    sys.exit(code)


class _Stop:
    """Ctrl-C: one line that says how to go on, and the end of the process within two seconds, whatever it is doing.

    Nothing that is written is ever half there (probes.files), so it may end anywhere.
    """

    def __init__(self, told: str) -> None:
        self.told, self.pressed, self._once = told, False, threading.Lock()

    def press(self, *_: Any) -> None:
        """What the signal calls: the run is interrupted, and ended where it does not end by itself."""
        self.pressed = True
        sys.unraisablehook = lambda _: None  # where Python cannot be interrupted it would say so
        sys.excepthook = lambda *_: self.end()  # where nobody expects it any more
        timer = threading.Timer(PATIENCE, self.end)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    def tell(self) -> None:
        """Say it, once."""
        if self._once.acquire(blocking=False):
            typer.echo(self.told, err=True)

    def end(self) -> None:
        """Say it, and end at once: an interpreter that has loaded torch takes a while to leave."""
        self.tell()
        os._exit(130)


def _dashed(argument: str) -> str:
    """`--text_column=x` is `--text-column=x`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _complain(error: InputError, debug: bool) -> int:
    if debug:
        raise error
    typer.echo(f"error: {error}", err=True)
    return 2


def _mended(error: Exception, given: Sequence[str]) -> InputError:
    """Typer's own complaint in our words; a mistyped command or flag is met with the nearest one."""
    told: Any = error
    message = str(told.message or told.format_message()).partition(" Did you mean")[0].rstrip(".")
    context: Any = getattr(error, "ctx", None)
    known: list[str] = []
    if context is not None:
        known = [option for parameter in context.command.params for option in parameter.opts]
        known += list(getattr(context.command, "commands", {}))
    wrong = next((a.partition("=")[0] for a in given if a.partition("=")[0] in message.replace("'", " ").split()), None)
    guess = did_you_mean(wrong, known) if wrong else None
    return InputError(wrong or "command", message, f"Did you mean '{guess}'?" if guess else "See --help")


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
    from clsprobe.studies import studies

    execute("demo", studies()["run"](), out, overwrite=overwrite, dry=dry_run)


app.command()(report)
app.command()(export)
app.command()(cache)
app.command("list")(list_choices)


def register_studies() -> None:
    """Give every study its sub-command, once."""
    from clsprobe.studies import studies

    registered = {command.name for command in app.registered_commands}
    for name, kind in studies().items():
        if name in registered:
            continue
        text = f"{kind.question}\n\nThe claim it judges: {kind.claim}."
        for each in (name, *kind.aliases):
            app.command(each, help=text, hidden=each != name)(command_of(name, kind))
