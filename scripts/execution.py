"""A study carried out: into a folder, with its answers, figures and page."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from clsprobe.probes.errors import InputError

if TYPE_CHECKING:
    from clsprobe.analysis.folder import RunFolder
    from clsprobe.analysis.study import Answer, Study

log = logging.getLogger("clsprobe")


def execute(name: str, study: Study, out: str, *, overwrite: bool, dry: bool) -> None:
    """Run a study into a folder and write its page, or say what that would take."""
    from clsprobe.analysis.folder import RunFolder
    from clsprobe.studies import answered_too

    folder = RunFolder(out, name, study.settings(), overwrite=overwrite)
    for sentence in study.prepare():
        if dry:
            typer.echo(sentence)
        else:
            log.info(sentence)
    if dry:
        return
    finished = study.run(folder, others=answered_too(name))
    failures = finished.measured.failures
    log.info("writing the report")
    _write(folder, finished.answers, finished.title)
    verdicts = {key: answer.verdict.outcome for key, answer in finished.answers.items()}
    folder.finish({**finished.measured.facts, "failed": list(failures), "verdicts": verdicts})
    for answer in finished.answers.values():
        for note in answer.notes:
            log.info("note: %s", note)
        log.info(
            "\n%s\n  %s (%s). %s", answer.question, answer.verdict.outcome, _effect(answer), answer.verdict.because
        )
    typer.echo(folder.path / "report.html")
    if failures:
        more = f" (and {len(failures) - 1} more cells)" if len(failures) > 1 else ""
        raise InputError("--probes", failures[0] + more, "The other cells are in the report")


def _effect(answer: Answer) -> str:
    verdict = answer.verdict
    return f"{verdict.effect:+.3f}, 95 % interval {verdict.low:+.3f} to {verdict.high:+.3f}"


def _write(folder: RunFolder, answers: Mapping[str, Answer], title: str | None) -> None:
    """Answers, figures and page of a run."""
    from clsprobe.analysis.plots.svg import svg
    from clsprobe.probes.files import write_text
    from clsprobe.reports.page import write_page

    for key, answer in answers.items():
        answer.save(folder.place(f"answers/{key}.json"))
        for number, exhibit in enumerate(answer.exhibits):
            folder.place(f"answers/{key}.{number:02d}.parquet")  # Answer.save wrote it
            if exhibit.plot:
                write_text(folder.place(f"figures/{key}.{number:02d}.svg"), svg(exhibit.draw(), prefix=key))
    write_page(folder.place("report.html"), answers, title=title)
