"""Base of the studies over the layer x readout sweep: settings, checked inputs and measurement.

A study adds its question, `judge` and `show`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from clsprobe.analysis.corpus import Inputs, read_inputs
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.settings import SweepSettings
from clsprobe.analysis.study import Study
from clsprobe.analysis.sweep.plan import check_probes, check_tasks, describe_sweep
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import parse_readouts

if TYPE_CHECKING:
    import pandas as pd

    from clsprobe.analysis.folder import RunFolder
    from clsprobe.analysis.sweep.scores import TaskScores


class SweepStudy(SweepSettings, Study):
    """A study that judges the predictions of a sweep."""

    tables: ClassVar[tuple[str, ...]] = ("results", "predictions", "refits", "rows")
    untrained: ClassVar[bool] = True  # whether untrained encoders are among the baselines
    details: ClassVar[bool] = False  # whether maps and bits are measured too, see `measure_sweep`

    @classmethod
    def comparable(cls, readouts: Sequence[str]) -> bool:
        """Whether these readouts include those that the question compares."""
        return len(readouts) > 0

    @classmethod
    def can_judge(cls, measured: Measured) -> bool:
        """Whether the readouts that the question compares were read, be it that a probe failed on one of them."""
        if not super().can_judge(measured):
            return False
        readouts = measured.facts["model"].get("readouts")
        return cls.comparable(readouts or read_readouts(measured.tables["predictions"]))

    def model_post_init(self, context: Any) -> None:
        """Raise InputError where there is nothing to compare; a file of vectors is checked when it is read."""
        if not self.vectors and not self.comparable([readout.name for readout in parse_readouts(self.readouts)]):
            example = ",".join(type(self).model_fields["readouts"].default)
            what = "this study compares other readouts with cls"
            raise InputError("--readouts", what, f"Name cls and another one, as in {example}")

    @cached_property
    def inputs(self) -> Inputs:
        """Tasks, encoder and probes, checked. Raises InputError; imports no torch."""
        check_probes(self)
        inputs = read_inputs(self, seed=self.seed, comparable=self.comparable)
        check_tasks(self, inputs)
        return inputs

    def contents(self) -> dict[str, str]:
        """Digests of data, encoder or vectors, and code."""
        return super().contents() | self.inputs.contents

    def prepare(self) -> list[str]:
        """Read and check the inputs; sentences on the cost of a run."""
        return describe_sweep(self.inputs, probes=self.probes, encoders=1 + self.seeds * self.untrained)

    def measure(self, folder: RunFolder | None = None) -> Measured:
        """Encode every text once, sweep the probes over all cells."""
        from clsprobe.analysis.encoding import encode_inputs
        from clsprobe.analysis.sweep.measure import measure_sweep

        states = encode_inputs(self, self.inputs, untrained=self.every_seed if self.untrained else ())
        return measure_sweep(self, self.inputs, states, details=self.details)

    def choose_cells(self, measured: Measured) -> pd.DataFrame:
        """One row per task and readout: the layer that dev chooses, with its scores. Raises what `choose` raises."""
        import pandas as pd

        tables = []
        for task in measured.tasks:
            scores = self.read_scores(measured, task)
            best = scores.choose(None).where
            chosen = [scores.choose(readout) for readout in read_readouts(scores.rows)]
            columns = {
                "task": task,
                "readout": [cell.readout for cell in chosen],
                "layer": [cell.layer for cell in chosen],
                "probe": [cell.where["probe"] for cell in chosen],
                "metric": [cell.metric.lower() for cell in chosen],
                "dev": [cell.dev for cell in chosen],
                **{name: [getattr(cell, name) for cell in chosen] for name in ("test", "low", "high")},
                "best": [cell.where == best for cell in chosen],
            }
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables, ignore_index=True)

    def judged_rows(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The judged ones among the predictions of one task: of the first named probe that reads it, see `choose`."""
        from clsprobe.analysis.sweep.choose import judged_rows

        return judged_rows(rows, self.probes)

    def read_scores(self, measured: Measured, task: str) -> TaskScores:
        """The scores of the judged ones among the predictions of one task."""
        from clsprobe.analysis.sweep.scores import TaskScores

        refits = measured.rows("refits", task) if "refits" in measured.tables else None
        return TaskScores(self.judged_rows(measured.rows("predictions", task)), refits)


def read_readouts(predictions: pd.DataFrame) -> list[str]:
    """The readouts that were probed, in order of appearance."""
    return [str(name) for name in predictions[predictions.control == "none"].readout.unique()]
