"""`Result`: what a run of a study has found, to look at, to take further and to save."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from clsprobe.analysis.answer import Answer
from clsprobe.analysis.folder import RunFolder
from clsprobe.analysis.measured import Measured
from clsprobe.probes.errors import InputError, describe_error, printable

if TYPE_CHECKING:
    import pandas as pd

    from clsprobe.analysis.study import Study

log = logging.getLogger("clsprobe")


@dataclass(frozen=True, eq=False)
class Result:
    """The result of `Study.run`: the measurement, and the answers that follow from it, by name.

    contents: the digests of everything that was read (`Study.contents`), taken before the measurement. title: of the
    page; None for its question.
    """

    study: Study
    answers: Mapping[str, Answer]
    measured: Measured
    contents: Mapping[str, str]
    title: str | None = None

    @property
    def answer(self) -> Answer:
        """The answer to the question of the study itself, the first of `answers`."""
        return next(iter(self.answers.values()))

    @property
    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Name -> table, of everything that was measured."""
        return self.measured.tables

    @property
    def results(self) -> pd.DataFrame:
        """One row per number, columns `analysis.table.COLUMNS`. Raises InputError where the study has no such table."""
        return self._find_table("results")

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per text and cell, columns `analysis.table.PREDICTIONS`. Raises InputError as `results` does."""
        return self._find_table("predictions")

    def _find_table(self, name: str) -> pd.DataFrame:
        if name not in self.tables:
            what = f"{type(self.study).__name__} measures no {name}"
            raise InputError(name, what, f"Its .tables are {', '.join(self.tables)}")
        return self.tables[name]

    @cached_property
    def chosen(self) -> pd.DataFrame:
        """The cells that dev chose, one row per task and readout: the layer of every readout with its score on dev and
        on test, its 95 % interval, and in the column "best" whether dev prefers it to all other readouts.

        Empty for a study that chooses no cell.
        """
        return self.study.choose_cells(self.measured)

    @property
    def failures(self) -> list[tuple[str, Exception | None]]:
        """A sentence for everything that failed, the plug-ins first, with its error where it is known."""
        failures: list[tuple[str, Exception | None]] = [(sentence, None) for sentence in self.measured.failures]
        return failures + [failure for answer in self.answers.values() for failure in answer.failures.items()]

    # ---------------------------------------------------------------------------------------------------- to files

    def report(self, path: Path | str) -> Path:
        """Write the page with all answers, one HTML file, and return its path. The file is replaced if it exists.

        Raises InputError where it cannot be written.
        """
        from clsprobe.probes.files import write_text
        from clsprobe.reports.page import render_page

        path = Path(path).expanduser()
        if os.path.isdir(path):  # False for a name that no path can have
            raise InputError(str(path), "is a folder", "Name a file, such as report.html, or use .save for a folder")
        page = render_page(self._draw()[0].answers, title=self.title)
        try:
            write_text(path, page)
        except (OSError, ValueError) as error:  # no folder, no permission, a name too long, a NUL in it
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(str(path), f"cannot be written ({reason.lower()})", "Name another file") from None
        return path

    def save(self, path: Path | str, *, overwrite: bool = False) -> Path:
        """Write everything to the folder of a run (`analysis.folder`), as the command line does, and return its path.

        What only a measurement into a folder writes, such as the weights of decoders, is not among it. Raises
        InputError where the folder holds a finished run (unless `overwrite`), or something else.
        """
        folder = open_folder(self.study, path, overwrite=overwrite)
        folder.store(self.contents, self.answers, self.measured)
        self.write(folder)
        return folder.path

    def write(self, folder: RunFolder) -> Result:
        """Write the answers, figures and page into the folder of the measurement, and mark the run as finished.

        Returns the result with the failures of its figures.
        """
        from clsprobe.probes.files import write_text
        from clsprobe.reports.page import write_page

        log.info("writing the report")
        result, figures = self._draw()
        answers = result.answers
        tables = [f"answers/{key}.{n:02d}.parquet" for key, of in answers.items() for n in range(len(of.exhibits))]
        folder.reserve([*(f"answers/{key}.json" for key in answers), *tables, *figures, "report.html"])
        for key, answer in answers.items():
            answer.save(folder.path / f"answers/{key}.json")
        for name, figure in figures.items():
            write_text(folder.path / name, figure)
        write_page(folder.path / "report.html", answers, title=result.title)
        headlines = {key: answer.headline for key, answer in answers.items()}
        folder.finish(
            {
                **result.measured.facts,
                "failed": [sentence for sentence, _ in result.failures],
                "verdicts": {key: headline.label for key, headline in headlines.items()},
                "answers": {key: headline.sentence for key, headline in headlines.items()},
                "warnings": {key: list(headline.warnings) for key, headline in headlines.items()},
            }
        )
        return result

    def _draw(self) -> tuple[Result, dict[str, str]]:
        """The result and its figures as SVG by file name. A figure that cannot be drawn becomes a table, and a
        failure."""
        from clsprobe.analysis.plots.svg import render_svg

        answers, figures = {}, {}
        for key, answer in self.answers.items():
            exhibits, failures = [], {}
            for number, exhibit in enumerate(answer.exhibits):
                if exhibit.plot:
                    try:
                        figures[f"figures/{key}.{number:02d}.svg"] = render_svg(exhibit.draw(), prefix=key)
                    except Exception as error:  # the measurement must not be lost to any error
                        failures[f"A figure of {key} cannot be drawn: {describe_error(error)}."] = error
                        exhibit = replace(exhibit, plot=None, arguments={})
                exhibits.append(exhibit)
            answers[key] = replace(
                answer,
                exhibits=tuple(exhibits),
                notes=(*failures, *answer.notes),
                failures={**answer.failures, **failures},
            )
        return replace(self, answers=answers), figures

    # ------------------------------------------------------------------------------------------------------ to look at

    def __str__(self) -> str:
        """Every question with its answer in words, and what failed."""
        paragraphs = ([answer.question, *format_answer(answer)] for answer in self.answers.values())
        text = "\n\n".join("\n  ".join(map(printable, lines)) for lines in paragraphs)
        failures = [printable(sentence).rstrip(".") for sentence, _ in self.failures if printable(sentence) not in text]
        more = f" (and {len(failures) - 1:,} more)" if len(failures) > 1 else ""
        return text + (f"\n\nFailed: {failures[0]}{more}." if failures else "")

    def __repr__(self) -> str:
        labels = ", ".join(f"{key} {answer.headline.label}" for key, answer in self.answers.items())
        return f"<Result: {labels}; {', '.join(self.tables)}>"

    def _repr_html_(self) -> str:
        from clsprobe.analysis.plots.style import display_text

        note = "".join(f"<p>{escape(display_text(sentence))}</p>" for sentence, _ in self.failures)
        return note + "".join(answer.to_html(figures=1) for answer in self.answers.values())


def open_folder(study: Study, path: Path | str, *, overwrite: bool) -> RunFolder:
    """The folder of a run of this study, whose errors name arguments instead of flags. Raises InputError."""
    try:
        return RunFolder(path, study.command(), study.settings(), overwrite=overwrite)
    except InputError as error:
        mend = error.mend.replace("--overwrite", "overwrite=True").replace("--out", "folder")
        raise InputError(error.where.removeprefix("--out "), error.what, mend) from None


def format_answer(answer: Answer) -> list[str]:
    """The lines of an answer in a terminal: warnings, the sentence, advice."""
    headline = answer.headline
    lines = [*(f"Warning: {warning}" for warning in headline.warnings), headline.sentence, headline.advice]
    return [line for line in lines if line]
