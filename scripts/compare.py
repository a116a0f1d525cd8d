"""Readouts against [CLS], over the same test texts: what positions.py and poolings.py have in common.

The layer of every readout is chosen on dev, and so is the rival that the verdict is about; test is used once.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from clsprobe.analysis.study import Answer, Exhibit, Verdict
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import parse
from clsprobe.run import Measured, Run, short

if TYPE_CHECKING:
    import pandas as pd

    from clsprobe.analysis.sweep import Asked
    from clsprobe.probes.extraction.states import States


class AgainstCls(Run):
    """A study that asks whether a rival of [CLS] is no worse, by its margin."""

    @classmethod
    @abstractmethod
    def rivals(cls, readouts: list[str]) -> list[str]:
        """Those among the readouts that the claim is about."""

    @classmethod
    @abstractmethod
    def shown(cls, readouts: list[str]) -> list[str]:
        """Those among the readouts that stand in the exhibits beside [CLS]."""

    @classmethod
    def can_judge(cls, readouts: list[str]) -> bool:
        """[CLS] and a rival are among the readouts."""
        return "cls" in readouts and len(cls.rivals(readouts)) > 0

    def model_post_init(self, context: Any) -> None:
        """Raise InputError where there is nothing to compare."""
        if not self.vectors and not self.can_judge([readout.name for readout in parse(self.readouts)]):
            raise InputError("--readouts", "this study compares other readouts with cls", "Name cls and another one")

    def judge(self, table: pd.DataFrame) -> Verdict:
        """Yes where the whole interval of (best rival - [CLS]) lies above -margin, no where it lies below."""
        parts = {}
        for task in table.task.unique():
            rows = table[table.task == task]
            best = self.compared(rows, self.rivals(_read(rows))).iloc[0]
            because = f"On {short(task)}, {best.because}"
            parts[task] = Verdict.decide(because, best.effect, best.low, best.high, threshold=-self.margin)
        return Verdict.over(parts)

    def compared(self, rows: pd.DataFrame, readouts: list[str]) -> pd.DataFrame:
        """Each readout minus [CLS] over the same test texts, both at the layer that dev chooses.

        rows: predictions of one task. Columns name, effect, low, high, outcome, dev, because; best on dev first.
        """
        import pandas as pd

        from clsprobe.analysis.choose import chosen_cell, difference

        rows = self.judged(rows)
        cls, found = chosen_cell(rows, "cls"), []
        for readout in readouts:
            other = chosen_cell(rows, readout)
            effect, low, high = difference(rows, other.where, cls.where)
            because = f"{other.does}, {cls.told} {cls.test:.3f}."
            outcome = Verdict.decide(because, effect, low, high, threshold=-self.margin).outcome
            found.append((other.told, effect, low, high, outcome, other.dev, because))
        columns = ["name", "effect", "low", "high", "outcome", "dev", "because"]
        table = pd.DataFrame(found, columns=columns)
        return table.sort_values("dev", ascending=False, kind="stable", ignore_index=True)

    def show(self, table: pd.DataFrame) -> tuple[Exhibit, ...]:
        """For every task the paired differences from [CLS], and the readouts over the layers."""
        from clsprobe.analysis import stats
        from clsprobe.analysis.choose import baselines_of, chosen_cell

        exhibits = []
        for task in table.task.unique():
            rows = table[table.task == task]
            readouts = self.shown(_read(rows))
            judged = self.judged(rows)
            lines = baselines_of(judged)
            cls = chosen_cell(judged, "cls")
            test = judged[
                (judged.split == "test") & (judged.control == "none") & judged.readout.isin(["cls", *readouts])
            ]
            exhibits += [
                Exhibit(
                    f"{cls.metric.capitalize()} of each readout minus that of {cls.told} ({cls.test:.3f}), over the "
                    f"same test texts, with 95 % intervals; every layer chosen on dev. "
                    f"Shaded: the margin of {100 * self.margin:.0f} points. "
                    f'"yes": no worse than [CLS] by more than the margin.',
                    self.compared(rows, readouts).drop(columns="because"),
                    "differences",
                    {"margin": self.margin, "metric": cls.metric},
                    short(task),
                ),
                Exhibit(
                    f"Test {cls.metric} over the layers, with 95 % bands and the baselines as dashed lines.",
                    stats.accuracies(test, ["layer", "readout"]),
                    "curves",
                    {"metric": cls.metric, "baselines": dict(zip(lines.name, lines.value, strict=True))},
                    short(task),
                ),
            ]
        return tuple(exhibits)

    def summaries(self, measured: Measured) -> tuple[Exhibit, ...]:
        """None: they stay with `clsprobe run`."""
        return ()

    def maps(self, projection: pd.DataFrame) -> tuple[Exhibit, ...]:
        """No maps: they stay with `clsprobe run`."""
        return ()

    def inform(
        self, asked: list[Asked], states: States, predictions: pd.DataFrame
    ) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
        """Nothing is told in bits where no summaries are shown."""
        return super().inform([], states, predictions)

    def project(self, asked: list[Asked], states: States, predictions: pd.DataFrame) -> pd.DataFrame:
        """Nothing is projected where no maps are shown."""
        return super().project([], states, predictions)

    def answers(self, measured: Measured) -> dict[str, Answer]:
        """This answer alone."""
        return {type(self).__name__.lower(): self.answer(measured)}


def _read(rows: pd.DataFrame) -> list[str]:
    return [str(name) for name in rows[rows.control == "none"].readout.unique()]
