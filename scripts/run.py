"""What do the vectors of an encoder know, and where? The layer x readout sweep.

    clsprobe run --task file:reviews.csv --label-column stars --out out/reviews

Every text is encoded once and probed at every layer and readout. The verdict compares [CLS] at the layer chosen on dev
with the best baseline, on the same test texts. The same measurement answers further questions
(`clsprobe.studies.FURTHER_STUDIES`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from clsprobe.analysis.study import Exhibit, Measured, MissingEvidence, Verdict, short
from clsprobe.analysis.sweep.study import SweepStudy

if TYPE_CHECKING:
    import pandas as pd


class Run(SweepStudy):
    """The layer x readout x probe sweep and its report."""

    question: ClassVar[str] = "What does the [CLS] vector know, and at which layer?"
    claim: ClassVar[str] = "[CLS], read at its best layer, tells more about the label than the best baseline does"
    margin: ClassVar[float] = 0.0
    details: ClassVar[bool] = True
    tables: ClassVar[tuple[str, ...]] = (
        *SweepStudy.tables, "projection", "disagreements", "learning", "information", "boilerplate"
    )

    def judge(self, rows: pd.DataFrame) -> Verdict:
        """[CLS] (or the best readout, if [CLS] was not read) minus the best baseline, both chosen on dev."""
        from clsprobe.analysis.sweep.choose import best_baseline, difference, subject_cell

        rows = self.judged_rows(rows)
        subject, baseline = subject_cell(rows), best_baseline(rows)
        because = (
            f"On {short(rows.task.iloc[0])}, {subject.statement}, the best baseline ({baseline.name}) "
            f"{baseline.test:.3f}."
        )
        return Verdict.decide(because, *difference(rows, subject.where, baseline.where), threshold=self.margin)

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """Grid, curves, baselines and confusions; gains, bits, disagreements; maps."""
        from clsprobe.analysis.sweep import exhibits

        rows = self.judged_rows(measured.rows("predictions", task))
        return [
            *exhibits.grid_exhibits(rows),
            exhibits.summary_exhibit(rows, measured.tables["results"]),
            *exhibits.probe_exhibits(measured.rows("predictions", task), self.probes),
            *exhibits.information_exhibits(measured.rows("learning", task), measured.rows("information", task)),
            *exhibits.disagreement_exhibits(measured.rows("disagreements", task)),
            *exhibits.map_exhibits(measured.rows("projection", task)),
        ]

    def note(self, measured: Measured) -> list[str]:
        """The tasks for which the last layer is not the one chosen on dev, and those with boilerplate."""
        from clsprobe.analysis.sweep.boilerplate import describe_boilerplate
        from clsprobe.analysis.sweep.choose import accuracy_by_cell, subject_cell

        gaps, notes = [], []
        for task in measured.tasks:
            try:
                rows = self.judged_rows(measured.rows("predictions", task))
                subject = subject_cell(rows)
            except MissingEvidence:
                continue  # its verdict says so
            notes += describe_boilerplate(measured.rows("boilerplate", task), rows, subject)
            accuracies = accuracy_by_cell(rows, [subject.readout]).set_index("layer").value
            if (last := int(accuracies.index.max())) != subject.layer:
                gaps.append(
                    f"{short(task)}: {subject.readout} {accuracies[last]:.3f} at the last layer ({last}), "
                    f"{subject.test:.3f} at the one that dev chooses ({subject.layer})"
                )
        if gaps:
            notes.insert(0, f"The last layer is not the measure of a readout. {'; '.join(gaps)}.")
        return notes


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["run"])
