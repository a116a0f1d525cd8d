"""The measurement of the formation study: what fails costs its own part only."""

from __future__ import annotations

import pandas as pd
import planted_transformer as planted
import pytest

from clsprobe.analysis.formation import measure, swaps
from clsprobe.formation import Formation
from clsprobe.probes.encoders.loading import load_encoder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A study of a planted model, whose cuts, erasures and attributions are left out."""
    folder = planted.save_model(tmp_path / "model")
    encoder = load_encoder(str(folder), device="cpu")
    planted.plant_copy(encoder, 2, noise=0.02)
    encoder.model.save_pretrained(folder)
    task = planted.make_task(0, count=160)
    pd.DataFrame({"text": task.texts, "label": task.y}).to_csv(tmp_path / "third.csv", index=False)
    monkeypatch.setattr(measure, "_intervene", lambda *arguments: {"knockout": pd.DataFrame()})
    monkeypatch.setattr(measure, "_explain", lambda *arguments: ({}, ""))
    monkeypatch.setattr(measure, "_erase", lambda *arguments: {})
    monkeypatch.setattr(measure, "_cut_untrained", lambda *arguments: {})
    return Formation(task=f"file:{tmp_path / 'third.csv'}", model=str(folder), device="cpu", allow_overlap=True)


@pytest.fixture
def with_pairs(monkeypatch):
    pairs = {"file:third:label": planted.make_pairs(0)}
    monkeypatch.setattr("clsprobe.formation.load_pairs", lambda spec, options: pairs)


@pytest.mark.usefixtures("with_pairs")
def test_swaps_that_fail_cost_their_own_part_only(settings, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no swap")

    monkeypatch.setattr(swaps, "compute_swapped_vectors", fail)
    measured = measure.measure_formation(settings, settings.inputs)
    assert measured.failures == ["the swaps in file:third:label failed: RuntimeError: no swap"]
    assert f"{measured.failures[0]}." in measured.notes
    assert "swaps" not in measured.tables
    assert not measured.tables["results"].empty


def test_a_source_without_minimal_pairs_is_said_to_have_none(settings):
    measured = measure.measure_formation(settings, settings.inputs)
    assert (
        "third: label: swaps are not shown, because its source makes no minimal pairs of this property."
        in measured.notes
    )
    assert all(measured.tables[name].empty for name in ("swaps", "swap_reliability", "twins"))


@pytest.mark.usefixtures("with_pairs")
def test_pairs_are_digested_as_a_part_of_what_is_read(settings):
    assert settings.contents()["minimal pairs of file:third:label"] == planted.make_pairs(0).digest
    assert planted.make_pairs(0).digest != planted.make_pairs(1).digest
