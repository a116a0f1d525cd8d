"""What do the vectors of an encoder know, and where? The layer x readout sweep.

    clsprobe run --task file:reviews.csv --label-column stars --out out/reviews

Every text is encoded once and probed at every layer and readout. The answer is what [CLS] tells at the layer that dev
chooses, and whether that is more than each of the baselines tells, on the same test texts. The same measurement answers
further questions (`Run.further`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from clsprobe.analysis.answer import Exhibit
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.sweep.plan import BASELINES
from clsprobe.analysis.sweep.study import SweepStudy, read_readouts
from clsprobe.analysis.verdict import MissingEvidence, Outcome, Part, Verdict, amount_in_words, short


class Run(SweepStudy):
    """The layer x readout x probe sweep and its report."""

    question: ClassVar[str] = "What does the [CLS] vector know, and at which layer?"
    claim: ClassVar[str] = "[CLS], read at the layer that dev chooses, tells more about the label than every baseline"
    margin: ClassVar[float] = 0.0
    opening: ClassVar[str] = "Score on test, at the layer that dev chooses"
    statements: ClassVar[Mapping[Outcome, str]] = {
        "yes": "more than every baseline",
        "no": "less than a baseline",
        "undecided": "not certainly more than every baseline",
    }
    rivals: ClassVar[tuple[str, ...]] = BASELINES
    further: ClassVar[tuple[str, ...]] = ("aggregate", "positions", "poolings")
    details: ClassVar[bool] = True
    tables: ClassVar[tuple[str, ...]] = (
        *SweepStudy.tables,
        "projection",
        "disagreements",
        "learning",
        "information",
        "boilerplate",
    )

    no_maps: bool = Field(False, description="leave the maps (UMAP) out, which take some twenty seconds")

    def ask(self, measured: Measured) -> str:
        """The question; it names the file of the vectors where [CLS] was not read."""
        readouts = read_readouts(measured.tables["predictions"]) if "predictions" in measured.tables else ["cls"]
        if "cls" in readouts or not readouts:
            return self.question
        if self.vectors:
            return f"What do the vectors of {measured.facts['model']['model']} know?"
        return f"What do {', '.join(readouts)} know, and at which layer?"

    def judge(self, measured: Measured, task: str) -> Verdict:
        """[CLS] (or the best readout, if [CLS] was not read) minus every baseline, all chosen on dev."""
        from clsprobe.analysis.sweep import wording

        scores = self.read_scores(measured, task)
        subject, task = scores.subject, scores.task
        name, score = wording.name_cell(scores, subject), wording.describe_score(scores, subject)
        one_class = wording.describe_constant(scores, subject)

        def say(outcome: Outcome, part: Part) -> str:
            over, unit = wording.range_over_baseline(scores, subject, part), scores.unit
            if outcome == "yes":
                by = amount_in_words(part, over, unit=unit)
                comparison = f"more than {wording.describe_baselines(scores)}, by {by} over the closest, {part.name}"
            elif outcome == "no":
                comparison = f"less than {part.name}, by {amount_in_words(part, over, unit=unit)}"
            else:
                difference = amount_in_words(part, over, unit=unit, signed=True)
                comparison = f"not certainly more than {part.name}: {one_class or difference}"
            return f"on {task}, {name} {score}, {comparison}"

        return Verdict.of(
            scores.compare_with_baselines(subject),
            say,
            is_open=True,
            brief=f"{task} {subject.test:.3f} {name.removeprefix('[CLS] ')}",
            interval_of=wording.describe_interval(scores, subject),
            texts=scores.texts,
            training_texts=scores.refits.training_texts,
            warnings=wording.list_warnings(scores, subject, surface=True),
        )

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """Grid, curves, baselines and confusions; gains, bits, disagreements; maps."""
        from clsprobe.analysis.sweep import exhibits

        scores = self.read_scores(measured, task)
        return [
            *exhibits.grid_exhibits(scores),
            exhibits.summary_exhibit(scores.rows, measured.tables["results"]),
            *exhibits.probe_exhibits(measured.rows("predictions", task), self.probes),
            *exhibits.information_exhibits(measured.rows("learning", task), measured.rows("information", task)),
            *exhibits.disagreement_exhibits(measured.rows("disagreements", task)),
            *exhibits.map_exhibits(measured.rows("projection", task)),
        ]

    def note(self, measured: Measured) -> list[str]:
        """The tasks for which the last layer is not the one chosen on dev, and those with boilerplate."""
        from clsprobe.analysis.sweep.boilerplate import describe_boilerplate
        from clsprobe.analysis.sweep.choose import accuracy_by_cell

        gaps, notes = [], []
        for task in measured.tasks:
            try:
                scores = self.read_scores(measured, task)
                subject = scores.subject
            except MissingEvidence:
                continue  # its verdict says so
            if "boilerplate" in measured.tables:
                notes += describe_boilerplate(measured.rows("boilerplate", task), scores.rows, subject)
            accuracies = accuracy_by_cell(scores.rows, [subject.readout]).set_index("layer").value
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
