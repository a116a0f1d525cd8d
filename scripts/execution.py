"""Running a study on the command line: its results go to a folder, its answers to the terminal."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from clsprobe.limits import check_memory_limit
from clsprobe.probes.errors import InputError
from clsprobe.terminal import echo

if TYPE_CHECKING:
    from clsprobe.analysis.study import Study

log = logging.getLogger("clsprobe")


def execute(name: str, study: Study, out: str, *, overwrite: bool, dry: bool) -> None:
    """Run a study and write its results to the folder `out`. dry: print what the run would take, and stop."""
    check_memory_limit()
    from clsprobe.analysis.folder import RunFolder
    from clsprobe.analysis.result import format_answer

    folder = RunFolder(out, name, study.settings(), overwrite=overwrite)
    for sentence in study.prepare():
        if dry:
            echo(sentence)
        else:
            log.info("%s", sentence)
    if dry:
        return
    result = study.run(folder)
    for answer in result.answers.values():
        for note in answer.notes:
            log.info("note: %s", note)
    for answer in result.answers.values():
        log.info("\n%s", answer.question)
        for line in format_answer(answer):
            log.info("  %s", line)
    echo(folder.path / "report.html")
    if result.failures:
        (what, error), *others = result.failures
        of_plugins = what.startswith("probe ")
        where, rest = ("--probes", "other cells are") if of_plugins else (str(folder.path), "rest is")
        more = f" (and {len(others)} more{' cells' if of_plugins else ''})" if others else ""
        raise InputError(where, what.rstrip(".") + more, f"The {rest} in the report") from error
