"""What `measure` leaves is what `judge` and `show` take: in Python a study is three calls, without the command line."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pytest

from clsprobe.analysis.study import Verdict
from clsprobe.studies import further_studies, studies

SMALL_TRAINING = {"train_texts": 32, "max_length": 16}
SETTINGS = {  # command -> what keeps its measurement small
    "aggregate": {"readouts": "cls,mean"},
    "fine-tuning": SMALL_TRAINING | {"epochs": 1, "readouts": "cls,mean", "rates": "1e-4", "seeds": 1},
    "formation": {},
    "geometry": {"readouts": "cls,mean,random"},
    "order": {"layers": "1", "readouts": "cls,mean,flatten_projected"},
    "poolings": {"readouts": "cls,mean"},
    "positions": {"readouts": "cls,sep"},
    "reconstruct": {"readouts": "cls", "decoders": "bag", "written": 10, "corrections": 0, "beams": 1},
    "run": {"readouts": "cls,sep,mean"},
    "trajectory": SMALL_TRAINING | {"checkpoints": "MODEL,OTHER"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two small encoders of random weights, and texts of their words, labelled by one of these."""
    folder = tmp_path_factory.mktemp("studies")
    for name in ("MODEL", "OTHER"):
        models.save("bert", folder / name, layers=2)
    words, rng = [word for word in models.WORDS if word.isalpha()], np.random.default_rng(0)
    texts = list(dict.fromkeys(" ".join(rng.choice(words, rng.integers(3, 9))) for _ in range(240)))
    rows = [f"{text},{'yes' if words[0] in text.split() else 'no'}" for text in texts]
    (folder / "words.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize("command", SETTINGS)
def test_a_study_judges_and_shows_what_it_has_measured(command, folder, monkeypatch, one_thread):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("clsprobe.analysis.sweep.maps.compute_umap", lambda vectors, seed: (vectors[:, :2], 1.0))
    kind = studies()[command]
    given = {"task": "file:words.csv", "device": "cpu", **SETTINGS[command]}
    given |= {"model": "./MODEL"} if "model" in kind.model_fields else {}
    given |= {"allow_overlap": True} if "allow_overlap" in kind.model_fields else {}
    study = kind(**given)
    measured = study.measure()
    for task in measured.tasks:
        verdict = study.judge(measured.rows(study.judged, task))
        assert isinstance(verdict, Verdict)
        assert verdict.low <= verdict.effect <= verdict.high
        exhibits = study.show(measured, task)
        assert [exhibit.draw() for exhibit in exhibits if exhibit.plot]
    for other in further_studies(command):
        assert other.can_judge(measured)
        assert other.sharing(study).verdict(measured).outcome in ("yes", "no", "undecided")
    assert study.answer(measured).exhibits


def test_a_study_runs_in_memory(folder, monkeypatch, one_thread):
    monkeypatch.chdir(folder)
    study = studies()["poolings"](task="file:words.csv", model="./MODEL", device="cpu", allow_overlap=True)
    before = sorted(folder.rglob("*"))
    result = study.run()
    assert list(result.answers) == ["poolings"]
    assert result.title == "./MODEL on words: label"
    assert sorted(folder.rglob("*")) == before


def test_every_study_is_tried():
    assert set(SETTINGS) == set(studies())


def test_no_study_is_made_of_another():
    for kind in studies().values():
        assert not [base for base in kind.__mro__[1:] if base in studies().values()]
