"""What a run says beside its verdict: boilerplate, several probes, the texts of the control task."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file
from worlds import known_worlds

from clsprobe.analysis import stats
from clsprobe.analysis.contract import check_study
from clsprobe.run import Run

pytestmark = pytest.mark.usefixtures("one_thread")

SIDES = np.repeat(["train", "dev", "test"], (200, 60, 140))
WORDS = [a + b for a in ("bar", "dol", "fen", "gim", "kur") for b in "aeiou"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run on two readouts. cls tells the label of the texts with a signature, all of which are bills."""
    folder = tmp_path_factory.mktemp("run")
    random = np.random.default_rng(0)
    n = len(SIDES)
    label, signed = np.arange(n) % 2, (np.arange(n) % 8 == 0).astype(int)
    signature = ["", " thank you for your kind order"]
    lines = [f"the {random.choice(WORDS)} and the {random.choice(WORDS)} {i}{signature[signed[i]]}" for i in range(n)]
    rows = [f"{text},{('bill', 'help')[y]},{side}\n" for text, y, side in zip(lines, label, SIDES, strict=True)]
    (folder / "d.csv").write_text("text,label,split\n" + "".join(rows))
    cells = {name: random.normal(size=(n, 4)).astype(np.float32) for name in ("cls", "mean")}
    cells["cls"][:, 0] += 9 * signed
    cells["mean"][:, 0] += 3 * label
    save_file({f"layer.01/{name}": cell for name, cell in cells.items()}, folder / "v.safetensors")
    study = Run(
        task=f"file:{folder}/d.csv",
        text_column="text",
        split_column="split",
        vectors=f"{folder}/v.safetensors",
        allow_overlap=True,
        probes="logistic,sklearn.naive_bayes:GaussianNB",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "clsprobe.analysis.sweep.measure.compute_umap", lambda vectors, seed: (vectors[:, :2], 1.0)
        )  # slow, and of no interest here
        measured = study.measure()
    return study, measured, study.answer(measured)


def cell_of(measured, probe="logistic", readout="cls"):
    rows = measured.tables["predictions"]
    rows = rows[(rows.split == "test") & (rows.control == "none") & (rows.probe == probe) & (rows.readout == readout)]
    return rows, stats.is_correct(rows)


def test_it_keeps_the_contract_of_a_study(measured):
    study, of_run, _ = measured
    check_study(study, of_run, worlds=known_worlds("run"))


def test_boilerplate_is_noted_with_the_accuracy_of_the_other_texts(measured):
    _, measured, answer = measured
    rows, correct = cell_of(measured)
    signed = rows.row % 8 == 0
    held = measured.tables["boilerplate"]
    assert sorted(held.row) == sorted(rows.row[signed])
    (note,) = [note for note in answer.notes if "hold a phrase" in note]
    assert f"d: label: {signed.sum()} of the 140 test texts" in note
    assert "'thank you for your kind' (" in note
    assert "25 of the 25 training texts with it are 'bill'" in note
    assert f"gets {correct.mean():.3f} of all test texts right, {correct[signed].mean():.3f} of these" in note
    assert f"{correct[~signed].mean():.3f} without them" in note
    assert correct[~signed].mean() < correct.mean() < correct[signed].mean()


def test_several_probes_stand_side_by_side(measured):
    study, measured, answer = measured
    (exhibit,) = [e for e in answer.exhibits if {"probe", "difference"} <= set(e.table)]
    table = exhibit.table.set_index(["probe", "readout"])
    assert set(table.index) == {(probe, readout) for probe in study.probes for readout in ("cls", "mean")}
    for (probe, readout), row in table.iterrows():
        rows, correct = cell_of(measured, probe, readout)
        assert row.accuracy == pytest.approx(correct.mean())
        assert row.bits == pytest.approx(-rows.log2_probability.mean())
    other = table.loc[study.probes[1]]
    judged = table.loc[study.probes[0]]
    assert (other.accuracy - judged.accuracy).tolist() == pytest.approx(other.difference.tolist())
    assert "are of logistic, the first probe" in exhibit.caption


def test_the_texts_of_the_control_task_are_noted(measured):
    _, measured, answer = measured
    rows = measured.tables["predictions"]
    n = rows[(rows.split == "test") & (rows.control == "word_type_texts")].row.nunique()
    (note,) = [note for note in answer.notes if "control task's list" in note]
    assert 0 < n < 100
    assert note.startswith(f"d: label: no selectivity, since {n} test texts with exactly one word")
