"""Running a study: its answers, figures and page are written to a folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from clsprobe.probes.errors import InputError

if TYPE_CHECKING:
    from clsprobe.analysis.folder import RunFolder
    from clsprobe.analysis.study import Answer, Study, Verdict

log = logging.getLogger("clsprobe")


def execute(name: str, study: Study, out: str, *, overwrite: bool, dry: bool) -> None:
    """Run a study and write its results to the folder `out`. dry: print what the run would take, and stop."""
    from clsprobe.analysis.folder import RunFolder
    from clsprobe.studies import further_studies

    folder = RunFolder(out, name, study.settings(), overwrite=overwrite)
    for sentence in study.prepare():
        if dry:
            typer.echo(sentence)
        else:
            log.info(sentence)
    if dry:
        return
    result = study.run(folder, others=further_studies(name))
    failures = result.measured.failures
    log.info("writing the report")
    _write_answers(folder, result.answers, result.title)
    verdicts = {key: answer.verdict.outcome for key, answer in result.answers.items()}
    folder.finish({**result.measured.facts, "failed": list(failures), "verdicts": verdicts})
    for answer in result.answers.values():
        for note in answer.notes:
            log.info("note: %s", note)
        verdict = answer.verdict
        log.info("\n%s\n  %s (%s). %s", answer.question, verdict.outcome, _format_effect(verdict), verdict.because)
    typer.echo(folder.path / "report.html")
    if failures:
        more = f" (and {len(failures) - 1} more cells)" if len(failures) > 1 else ""
        raise InputError("--probes", failures[0] + more, "The other cells are in the report")


def _format_effect(verdict: Verdict) -> str:
    return f"{verdict.effect:+.3f}, 95 % interval {verdict.low:+.3f} to {verdict.high:+.3f}"


def _write_answers(folder: RunFolder, answers: Mapping[str, Answer], title: str | None) -> None:
    """Write the answers, figures and page of a run."""
    from clsprobe.analysis.plots.svg import render_svg
    from clsprobe.probes.files import write_text
    from clsprobe.reports.page import write_page

    numbered = [(key, n, exhibit) for key, answer in answers.items() for n, exhibit in enumerate(answer.exhibits)]
    figures = {f"figures/{key}.{n:02d}.svg": exhibit for key, n, exhibit in numbered if exhibit.plot}
    tables = [f"answers/{key}.{n:02d}.parquet" for key, n, _ in numbered]
    folder.reserve([*(f"answers/{key}.json" for key in answers), *tables, *figures, "report.html"])
    for key, answer in answers.items():
        answer.save(folder.path / f"answers/{key}.json")
    for name, exhibit in figures.items():
        write_text(folder.path / name, render_svg(exhibit.draw(), prefix=name[8:-7]))
    write_page(folder.path / "report.html", answers, title=title)
