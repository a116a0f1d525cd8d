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

    for key, answer in answers.items():
        answer.save(folder.path_of(f"answers/{key}.json"))
        for number, exhibit in enumerate(answer.exhibits):
            folder.path_of(f"answers/{key}.{number:02d}.parquet")  # written by Answer.save
            if exhibit.plot:
                write_text(folder.path_of(f"figures/{key}.{number:02d}.svg"), render_svg(exhibit.draw(), prefix=key))
    write_page(folder.path_of("report.html"), answers, title=title)
