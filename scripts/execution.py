"""Running a study: its answers, figures and page are written to a folder."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from clsprobe.probes.errors import InputError, printable

if TYPE_CHECKING:
    from clsprobe.analysis.folder import RunFolder
    from clsprobe.analysis.study import Finished, Study

log = logging.getLogger("clsprobe")


def execute(name: str, study: Study, out: str, *, overwrite: bool, dry: bool) -> None:
    """Run a study and write its results to the folder `out`. dry: print what the run would take, and stop."""
    from clsprobe.analysis.folder import RunFolder
    from clsprobe.studies import further_studies

    folder = RunFolder(out, name, study.settings(), overwrite=overwrite)
    for sentence in study.prepare():
        if dry:
            typer.echo(printable(sentence))
        else:
            log.info(printable(sentence))
    if dry:
        return
    result = study.run(folder, others=further_studies(name))
    log.info("writing the report")
    result = _write_answers(folder, result)
    failures = result.failures
    headlines = {key: answer.headline for key, answer in result.answers.items()}
    folder.finish(
        {
            **result.measured.facts,
            "failed": [sentence for sentence, _ in failures],
            "verdicts": {key: headline.label for key, headline in headlines.items()},
            "answers": {key: headline.sentence for key, headline in headlines.items()},
            "warnings": {key: list(headline.warnings) for key, headline in headlines.items()},
        }
    )
    for answer in result.answers.values():
        for note in answer.notes:
            log.info("note: %s", printable(note))
    for key, headline in headlines.items():
        lines = [*(f"Warning: {warning}" for warning in headline.warnings), headline.sentence, headline.advice]
        question = printable(result.answers[key].question)
        log.info("\n%s\n  %s", question, "\n  ".join(filter(None, map(printable, lines))))
    typer.echo(printable(str(folder.path / "report.html")))
    if failures:
        (what, error), *others = failures
        of_plugins = what.startswith("probe ")
        where, rest = ("--probes", "other cells are") if of_plugins else (str(folder.path), "rest is")
        more = f" (and {len(others)} more{' cells' if of_plugins else ''})" if others else ""
        raise InputError(where, what.rstrip(".") + more, f"The {rest} in the report") from error


def _write_answers(folder: RunFolder, result: Finished) -> Finished:
    """Write the answers, figures and page of a run. A figure that cannot be drawn becomes a table, and a failure."""
    from clsprobe.analysis.plots.svg import render_svg
    from clsprobe.probes.files import write_text
    from clsprobe.reports.page import write_page

    answers, figures = {}, {}
    for key, answer in result.answers.items():
        exhibits, failures = [], {}
        for number, exhibit in enumerate(answer.exhibits):
            if exhibit.plot:
                try:
                    figures[f"figures/{key}.{number:02d}.svg"] = render_svg(exhibit.draw(), prefix=key)
                except Exception as error:  # the measurement must not be lost to any error
                    failures[f"A figure of {key} cannot be drawn: {type(error).__name__}: {error}."] = error
                    exhibit = replace(exhibit, plot=None, arguments={})
            exhibits.append(exhibit)
        answers[key] = replace(
            answer,
            exhibits=tuple(exhibits),
            notes=(*failures, *answer.notes),
            failures={**answer.failures, **failures},
        )
    tables = [f"answers/{key}.{n:02d}.parquet" for key, answer in answers.items() for n in range(len(answer.exhibits))]
    folder.reserve([*(f"answers/{key}.json" for key in answers), *tables, *figures, "report.html"])
    for key, answer in answers.items():
        answer.save(folder.path / f"answers/{key}.json")
    for name, figure in figures.items():
        write_text(folder.path / name, figure)
    write_page(folder.path / "report.html", answers, title=result.title)
    return replace(result, answers=answers)
