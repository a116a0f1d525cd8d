"""What `measure` leaves is what `judge` takes: in Python a study is two calls, without the command line."""

from __future__ import annotations

import pytest

from clsprobe.aggregate import Aggregate
from clsprobe.analysis.study import Verdict
from clsprobe.fine_tuning import FineTuning
from clsprobe.formation import Formation
from clsprobe.geometry import Geometry
from clsprobe.order import Order
from clsprobe.poolings import Poolings
from clsprobe.positions import Positions
from clsprobe.probes.encoders.describing import describe
from clsprobe.reconstruct import Reconstruct
from clsprobe.run import Run
from clsprobe.studies import studies
from clsprobe.trajectory import Trajectory

EMBEDDED = describe().name
EMBEDDED_FOLDER = str(describe().folder)
SWEEP = {"task": "grammar:tense:120", "layers": "1,2"}
STUDIES = {
    "aggregate": lambda: Aggregate(**SWEEP),
    "formation": lambda: Formation(**SWEEP),
    "geometry": lambda: Geometry(**SWEEP),
    "order": lambda: Order(task="grammar:bigram_shift:600", layers="1", readouts="cls,mean,flatten_projected"),
    "poolings": lambda: Poolings(**SWEEP),
    "positions": lambda: Positions(**SWEEP, readouts="cls,sep"),
    "run": lambda: Run(**SWEEP, readouts="cls,mean"),
    "fine_tuning": lambda: FineTuning(
        task="grammar:tense:120", train_texts=32, epochs=1, readouts="cls,mean", rates="1e-4", seeds=1
    ),
    "trajectory": lambda: Trajectory(
        task="grammar:tense:120", train_texts=32, layers="1", checkpoints=(EMBEDDED, EMBEDDED_FOLDER)
    ),
    "reconstruct": lambda: Reconstruct(
        task="grammar:tense:120", layers="1", readouts="cls", decoders="bag", written=10, corrections=0, beams=1
    ),
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_judges_and_shows_what_it_has_measured(name):
    study = STUDIES[name]()
    measured = study.measure()
    for task in measured.tasks:
        verdict = study.judge(measured.rows(study.judged, task))
        assert isinstance(verdict, Verdict)
        assert verdict.low <= verdict.effect <= verdict.high
        assert study.show(measured, task)
    assert study.verdict(measured).outcome in ("yes", "no", "undecided")


def test_every_study_is_tried():
    assert {name.replace("_", "-") for name in STUDIES} == set(studies())
