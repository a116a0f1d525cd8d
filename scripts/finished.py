"""`clsprobe report` and `clsprobe export`: the page and the results of finished runs. No model is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from clsprobe.limits import check_memory_limit
from clsprobe.probes.errors import InputError, unknown
from clsprobe.terminal import echo, escape_lines


def report(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs", metavar="DIR...")],
    out: Annotated[Path, typer.Option(help="the page")] = Path("report.html"),
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """A page again, or several runs on one page, without a model."""
    check_memory_limit()
    from clsprobe.analysis.answer import Answer
    from clsprobe.reports.page import write_page

    answers = {}
    for run in runs:
        files = _read_finished(run).get("files")  # clsprobe 0.1 did not list them
        paths = sorted((run / "answers").glob("*.json"))
        if isinstance(files, list):
            paths = [path for path in paths if path.relative_to(run).as_posix() in files]
        if not paths:
            raise InputError(str(run), "holds no answers", "Run its command again with --overwrite")
        for path in paths:
            answers[path.stem if len(runs) == 1 else f"{run.name}: {path.stem}"] = Answer.load(path)
    if not out.parent.is_dir():
        raise InputError(f"--out {out}", "its folder does not exist", "Name another file")
    try:
        write_page(out, answers)
    except OSError:
        raise
    except Exception as error:  # a table that does not fit its plot
        where, what = ", ".join(map(str, runs)), f"cannot be shown ({type(error).__name__}: {error})"
        raise InputError(where, what, "Run its command again with --overwrite") from error
    echo(out)


def export(
    run: Annotated[Path, typer.Argument(help="folder of a run", metavar="DIR")],
    format: Annotated[str, typer.Option(help="csv or latex")] = "csv",
    out: Annotated[Path | None, typer.Option(help="a file; default: standard output")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """The results table of a run, for a spreadsheet or a paper."""
    from clsprobe.analysis.folder import find_digests
    from clsprobe.analysis.table import read_results, to_csv, to_latex
    from clsprobe.probes.files import write_text

    formatters = {"csv": to_csv, "latex": to_latex}
    if format not in formatters:
        raise unknown("--format", "format", format, formatters)
    digest = find_digests(_read_finished(run)).get("results.parquet")
    text = formatters[format](read_results(run / "results.parquet", digest))
    if out is None:
        typer.echo(escape_lines(text) if sys.stdout.isatty() else text, nl=False)
    else:
        write_text(out, text)


def _read_finished(run: Path) -> dict[str, Any]:
    """The run.json of a finished run. Raises InputError for anything else."""
    from clsprobe.analysis.folder import read_run

    content = read_run(run)
    if content is None:
        raise InputError(str(run), "is not a folder of a run", "Name the --out of a clsprobe command")
    if not content.get("finished"):
        raise InputError(str(run), "its run is not finished", "Run the same command again; it goes on")
    return content
