"""The command line: ``clsprobe <study> ...`` and what can be done with finished runs.

1. Every file of this package that defines a study is a sub-command; the study's fields are its flags, read from the
   class itself, so that a flag, a key of ``--config`` and an argument in Python are one thing with one check.
2. Flags win over ``--config``, which wins over defaults.
3. What the user can mend is one line, ``error: WHERE: WHAT. MEND.``, and exit code 2. 130 is Ctrl-C, 1 our own bug.

Imports no torch: help, lists and every error about data or flags answer at once.
"""

from __future__ import annotations

import inspect
import logging
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import typer
from pydantic import ValidationError

from clsprobe.config import read_config
from clsprobe.probes.errors import InputError, did_you_mean, printable, unknown

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from clsprobe.analysis.folder import RunFolder
    from clsprobe.analysis.study import Answer, Study

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
ON_EVERY_RUN: dict[str, tuple[Any, str]] = {  # flags of the run, not of the study
    "out": (str, "folder of the run [default: out/COMMAND]"),
    "overwrite": (bool, "replace a finished run"),
    "config": (str, "a YAML file with values for these flags"),
    "dry_run": (bool, "say how many rows, how long, how much disk, and stop"),
    "quiet": (bool, "say nothing but errors"),
    "debug": (bool, "show tracebacks"),
}


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


# ------------------------------------------------------------------------------------------------------ studies


def studies() -> dict[str, type[Study]]:
    """Sub-command -> study: every module of this package that defines a class with a question of its own."""
    from clsprobe.analysis.study import Study

    found: dict[str, Any] = {}
    package = import_module("clsprobe")
    for module in iter_modules(package.__path__, "clsprobe."):
        if module.name.rpartition(".")[2] in ("__main__", "cli", "config"):
            continue
        for kind in vars(import_module(module.name)).values():
            own = isinstance(kind, type) and issubclass(kind, Study) and kind.__module__ == module.name
            if own and "question" in vars(kind):
                found[module.name.rpartition(".")[2].replace("_", "-")] = kind
    return found


def register_studies() -> None:
    """Give every study its sub-command, once."""
    there = {command.name for command in app.registered_commands}
    for name, kind in studies().items():
        if name in there:
            continue
        told = f"{kind.question}\n\nThe claim it judges: {kind.claim}."
        for each in (name, *kind.aliases):
            app.command(each, help=told, hidden=each != name)(_command(name, kind))


def _command(name: str, kind: type[Study]) -> Callable[..., None]:
    """A function with a flag for every field of the study. All values arrive as text: the study converts and checks."""
    flags = {field: (_kind(info), _told(info)) for field, info in kind.model_fields.items()} | ON_EVERY_RUN

    def command(**values: Any) -> None:
        given = {field: value for field, value in values.items() if value not in (None, [], False)}
        common = {field: given.pop(field, None) for field in ON_EVERY_RUN}
        if empty := [field for field in ("out", "config") if common[field] == ""]:
            raise InputError(_flag(empty[0]), "is empty", "Name one, or leave the flag out")
        study = make_study(kind, given, common["config"])
        out = common["out"] or f"out/{name}"
        try:
            execute(name, study, out, overwrite=bool(common["overwrite"]), dry=common["dry_run"])
        except InputError as error:
            raise _placed(error, kind, given, common["config"]) from error.__cause__

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                field,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if value is bool else None,
                annotation=_annotated(field, value, told),
            )
            for field, (value, told) in flags.items()
        ]
    )
    command.__annotations__ = {field: _annotated(field, value, told) for field, (value, told) in flags.items()}
    return command


def _annotated(field: str, kind: Any, told: str) -> Any:
    option = typer.Option(_flag(field), help=told, show_default=False)
    return Annotated[bool, option] if kind is bool else Annotated[kind | None, option]


def _kind(info: FieldInfo) -> Any:
    return bool if info.annotation is bool else list[str] if get_origin(info.annotation) is tuple else str


def _told(info: FieldInfo) -> str:
    default = ",".join(info.default) if isinstance(info.default, tuple) else info.default
    return f"{info.description}" + ("" if default in (None, False) else f" [default: {default}]")


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def make_study(kind: type[Study], given: Mapping[str, Any], config: str | None = None) -> Study:
    """A study out of flags over a configuration file over defaults. Raises InputError naming the flag or the line."""
    values, places = read_config(Path(config), list(kind.model_fields)) if config else ({}, {})
    places |= {field: _flag(field) for field in given}
    try:
        return kind(**{**values, **given})
    except ValidationError as error:
        problem = error.errors()[0]
        field = str(problem["loc"][0])
        raise _invalid(places.get(field, _flag(field)), kind.model_fields[field], problem) from None


def _placed(error: InputError, kind: type[Study], given: Mapping[str, Any], config: str | None) -> InputError:
    """The error, its flag replaced by the line of the configuration file where that is where the value stands."""
    flag, space, value = error.where.partition(" ")
    field = flag.removeprefix("--").replace("-", "_")
    if config is None or not flag.startswith("--") or field in given:
        return error
    _, places = read_config(Path(config), list(kind.model_fields))
    return InputError(f"{places.get(field, flag)}{space}{value}", error.what, error.mend)


def _invalid(where: str, info: FieldInfo, problem: Mapping[str, Any]) -> InputError:
    given = str(problem["input"])
    if problem["type"] == "literal_error":
        allowed = problem["ctx"]["expected"].replace(" or ", ", ").split(", ")
        return unknown(where, "value", given, [name.strip("'") for name in allowed])
    if info.annotation is bool:
        return InputError(where, f"'{given}' does not fit", "Say true or false")
    low = next((limit.ge for limit in info.metadata if hasattr(limit, "ge")), None)
    high = next((limit.le for limit in info.metadata if hasattr(limit, "le")), None)
    if low is not None:
        return InputError(where, f"'{given}' does not fit", f"Give a whole number from {low} to {high}")
    return InputError(where, f"'{given}': {problem['msg'].lower()}", "See --help")


def execute(name: str, study: Study, out: str, *, overwrite: bool, dry: bool) -> None:
    """Run a study into a folder and write its page, or say what that would take."""
    from clsprobe.analysis.folder import RunFolder

    folder = RunFolder(out, name, study.settings(), overwrite=overwrite)
    for told in study.prepare():
        if dry:
            typer.echo(told)
        else:
            log.info(told)
    if dry:
        return
    finished = study.run(folder)
    log.info("writing the report")
    _write(folder, finished.answers, finished.title)
    verdicts = {key: answer.verdict.outcome for key, answer in finished.answers.items()}
    folder.finish({**finished.facts, "failed": list(finished.failures), "verdicts": verdicts})
    for answer in finished.answers.values():
        for note in answer.notes:
            log.info("note: %s", note)
        log.info(
            "\n%s\n  %s (%s). %s", answer.question, answer.verdict.outcome, _effect(answer), answer.verdict.because
        )
    typer.echo(folder.path / "report.html")
    if failures := list(finished.failures):
        more = f" (and {len(failures) - 1} more cells)" if len(failures) > 1 else ""
        raise InputError("--probes", failures[0] + more, "The other cells are in the report")


def _effect(answer: Answer) -> str:
    verdict = answer.verdict
    return f"{verdict.effect:+.3f}, 95 % interval {verdict.low:+.3f} to {verdict.high:+.3f}"


def _write(folder: RunFolder, answers: Mapping[str, Answer], title: str | None) -> None:
    """Answers, figures and page of a run."""
    from clsprobe.analysis.plots import svg
    from clsprobe.probes.files import write_text
    from clsprobe.reports.page import write_page

    for key, answer in answers.items():
        answer.save(folder.place(f"answers/{key}.json"))
        for number, exhibit in enumerate(answer.exhibits):
            folder.place(f"answers/{key}.{number:02d}.parquet")  # Answer.save wrote it
            if exhibit.plot:
                write_text(folder.place(f"figures/{key}.{number:02d}.svg"), svg(exhibit.draw(), prefix=key))
    write_page(folder.place("report.html"), answers, title=title)


# ------------------------------------------------------------------------------------------------ finished runs


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="folder of the run")] = "out/demo",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a finished run")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="say nothing but errors")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """Everything, on the embedded model and the built-in sentences."""
    from clsprobe.run import Run

    execute("demo", Run(), out, overwrite=overwrite, dry=False)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs", metavar="DIR...")],
    out: Annotated[Path, typer.Option(help="the page")] = Path("report.html"),
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """A page again, or several runs on one page, without a model."""
    from clsprobe.analysis.study import Answer
    from clsprobe.reports.page import write_page

    answers = {}
    for run in runs:
        _finished(run)
        if not (paths := sorted((run / "answers").glob("*.json"))):
            raise InputError(str(run), "holds no answers", "Run its command again with --overwrite")
        for path in paths:
            answers[path.stem if len(runs) == 1 else f"{run.name}: {path.stem}"] = Answer.load(path)
    if not out.parent.is_dir():
        raise InputError(f"--out {out}", "its folder does not exist", "Name another file")
    try:
        write_page(out, answers)
    except OSError:
        raise
    except Exception as error:  # of a table that is not what its plot was made for
        where, what = ", ".join(map(str, runs)), f"cannot be shown ({type(error).__name__}: {error})"
        raise InputError(where, what, "Run its command again with --overwrite") from error
    typer.echo(out)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="folder of a run", metavar="DIR")],
    format: Annotated[str, typer.Option(help="csv or latex")] = "csv",
    out: Annotated[Path | None, typer.Option(help="a file; default: standard output")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """The results table of a run, for a spreadsheet or a paper."""
    from clsprobe.analysis.table import read_results, to_csv, to_latex
    from clsprobe.probes.files import write_text

    makers = {"csv": to_csv, "latex": to_latex}
    if format not in makers:
        raise unknown("--format", "format", format, makers)
    _finished(run)
    text = makers[format](read_results(run / "results.parquet"))
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)


def _finished(run: Path) -> None:
    from clsprobe.analysis.folder import read_run

    content = read_run(run)
    if content is None:
        raise InputError(str(run), "is not a folder of a run", "Name the --out of a clsprobe command")
    if not content.get("finished"):
        raise InputError(str(run), "its run is not finished", "Run the same command again; it goes on")


@app.command()
def cache(
    what: Annotated[str, typer.Argument(help="ls, verify or purge")],
    keys: Annotated[list[str] | None, typer.Argument(help="which; default: all", metavar="[KEY]...")] = None,
    cache: Annotated[
        str | None, typer.Option(help="the folder; default: $CLSPROBE_HOME, else ~/.cache/clsprobe")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """The vectors that are kept on disk: list them, read them against their digests, or remove them."""
    from clsprobe.probes.extraction.store import cache_folder, listing, purge, verify

    if what not in ("ls", "verify", "purge"):
        raise unknown("cache", "action", what, ("ls", "verify", "purge"))
    folder = cache_folder(cache)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--cache {folder}", "is not a folder", "Name the folder of a cache")
    if cache is not None and not folder.exists():
        raise InputError(f"--cache {folder}", "does not exist", "Name the folder of a cache")
    there = {one.folder.name: one for one in listing(folder)}
    for key in keys or ():
        if not there:
            raise InputError(f"cache {what}", f"unknown key '{key}'", f"There is none in {folder}")
        if key not in there:
            raise unknown(f"cache {what}", "key", key, there)
    chosen = [one for key, one in there.items() if not keys or key in keys]
    damaged, kept = 0, list[str]()
    for one in chosen:
        told = one.told()
        if what == "verify":
            bad = verify(one.folder)
            damaged += len(bad)
            told += f"  set aside: {', '.join(bad)}" if bad else "  sound" if one.manifest else ""
        elif what == "purge" and not purge(one.folder):
            told += "  in use: kept"
            kept.append(one.folder.name)
        typer.echo(told)
    done = [one for one in chosen if one.folder.name not in kept]
    told = f"{len(done):,} {'entry' if len(done) == 1 else 'entries'}, {sum(one.bytes for one in done) / 1e9:.2f} GB"
    typer.echo(f"{folder}: {told}{' removed' if what == 'purge' else ''}")
    if damaged:
        files = "1 file is" if damaged == 1 else f"{damaged:,} files are"
        raise InputError(str(folder), f"{files} damaged or missing", "Run again what needs them; they are made anew")
    if kept:
        raise InputError(f"cache purge {' '.join(kept)}", "in use", "Wait for the runs that use it to end")


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="models, tasks, readouts, probes or studies")],
    task: Annotated[str | None, typer.Option(help="tasks: a SPEC, for its rows by class and those left out")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """What there is to choose from."""
    kinds = {
        "models": _list_models, "tasks": _list_tasks, "readouts": _list_readouts, "probes": _list_probes,
        "studies": lambda: {name: kind.question for name, kind in studies().items()},
    }  # fmt: skip
    if what not in kinds:
        raise unknown("list", "kind", what, kinds)
    if task is not None:
        if what != "tasks":
            raise InputError("--task", f"says nothing about {what}", "Use clsprobe list tasks")
        for line in _describe_spec(task):
            typer.echo(line)
        return
    lines = kinds[what]()
    width = max(map(len, lines))
    for name, told in lines.items():
        typer.echo(f"{name:<{width}}  {told}")


def _list_models() -> dict[str, str]:
    from clsprobe.probes.encoders.adapters import BLOCKS
    from clsprobe.probes.encoders.describing import describe

    embedded = describe()
    return {
        embedded.name: f"embedded, the default: layers 0..{embedded.layers}, {embedded.dim} dimensions",
        "ORG/NAME or a folder": f"any encoder of these architectures: {', '.join(sorted(BLOCKS))}",
    }


def _list_tasks() -> dict[str, str]:
    from clsprobe.analysis.sources.grammar import DEMO, PROPERTIES, SIZE

    return {
        **{f"grammar:{name}": "built-in sentences, words disjoint between train and test" for name in PROPERTIES},
        "grammar:demo": f"{', '.join(DEMO)}; the default",
        "grammar:all": "all of them",
        "grammar:NAME:SIZE": f"as many sentences as you say instead of {SIZE:,}",
        "file:PATH": "a .csv, .tsv, .jsonl or .parquet file, or a folder with train, dev and test files",
        "file:-": "CSV from standard input; file:-.tsv, file:-.jsonl and file:-.parquet as they say",
        "conllu:PATH:PROPERTY": "a Universal Dependencies treebank; conllu:PATH:all for all it supports",
        "senteval:PATH": "a SentEval probing file",
        "hf:ORG/NAME[:CONFIG][@REVISION]": "a Hugging Face dataset; --split takes its slice syntax",
    }


def _describe_spec(spec: str) -> list[str]:
    """Rows by class and side of every task of a SPEC, then the rows left out by reason, then what else was noticed."""
    from clsprobe.analysis.sources import SourceOptions, load

    loaded = load(spec, SourceOptions())
    lines = []
    for name, classes in loaded.classes.items():
        rows = sum(sum(sides.values()) for sides in classes.values())
        lines.append(f"{name}: {rows:,} rows, {len(classes)} classes")
        for label, sides in classes.items():
            told = ", ".join(f"{n:,}" if side == "all" else f"{side} {n:,}" for side, n in sides.items())
            lines.append(f"  {printable(label)}: {told}")
    lines += [f"left out, {why}: {n:,}" for why, n in loaded.left_out.items() if n]
    return [*lines, *loaded.notes]


def _list_readouts() -> dict[str, str]:
    return {
        "cls": "the [CLS] token",
        "sep": "the last separator",
        "token[K]": "the K-th content token; token[-1] is the last; token1 and token-1 work too",
        "random": "one content token, drawn by the text",
        "mean": "mean over all real tokens",
        "max": "maximum of every coordinate over all real tokens",
        "cls+norm": "cls, or any other, after the norm that follows the last layer, where the model has one",
    }


def _list_probes() -> dict[str, str]:
    from clsprobe.probes.registry import registered

    return registered() | {"package.module:Class": "any CellProbe, scikit-learn classifier or regressor"}
