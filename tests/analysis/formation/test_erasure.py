"""Erasure: nothing linear is left, what is not linear stays and is seen, random directions of the same variance are
harmless, and what passes through a place is found."""

from __future__ import annotations

import numpy as np
import planted_transformer as planted
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from clsprobe.analysis.formation.erasure import (
    Eraser,
    Place,
    Sides,
    compute_covariance,
    erase_texts,
    fit_erasers,
    make_erasers,
    measure_erasure,
    new_fitter,
    predict_retrained,
)
from clsprobe.analysis.formation.erasure_effects import KINDS, RUN, Erasure, compute_effects
from clsprobe.analysis.formation.exhibits import erasure_exhibits
from clsprobe.analysis.formation.reliability import halve_train, label_properties
from clsprobe.analysis.sweep.grid import split_task
from clsprobe.probes import descent
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.encoders.tap import tap
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.linear import LogisticProbe
from clsprobe.probes.tasks.task import Task

pytestmark = pytest.mark.usefixtures("one_thread")


def make_vectors(seed, *, count=600, dim=24, classes=3):
    """Vectors whose means differ by class, along oblique directions of very different variance."""
    random = np.random.default_rng(seed)
    y = random.choice(classes, size=count, p=[0.5, 0.3, 0.2][:classes])
    mix = random.normal(size=(dim, dim)) * np.geomspace(3, 0.1, dim)
    return (random.normal(size=(count, dim)) + 4 * np.eye(dim)[y]) @ mix + 5, y


def make_fitter(x, y, z=None):
    one_hot = torch.eye(y.max() + 1, dtype=torch.float64)[y] if z is None else z
    return new_fitter(x.shape[1], one_hot.shape[1]).update(torch.from_numpy(x), one_hot)


def score_probe(x, y):
    """The accuracy on the very texts that a linear probe was fitted on."""
    x = (x - x.mean(0)) / x.std(0)
    return LogisticRegression(max_iter=5000, tol=1e-8).fit(x, y).score(x, y)


@pytest.mark.parametrize("seed", range(5))
def test_a_linear_probe_on_the_fit_set_falls_to_the_majority_rate(seed):
    x, y = make_vectors(seed)
    erasers = make_erasers(make_fitter(x, y))
    after = {kind: score_probe(eraser(torch.from_numpy(x)).numpy(), y) for kind, eraser in erasers.items()}
    majority = np.bincount(y).max() / len(y)
    assert score_probe(x, y) > 0.9
    assert after["leace"] == majority
    assert after["same number"] > 0.9


def test_integer_labels_would_leave_something():
    """The broken twin: one direction is erased of the two that three classes have."""
    x, y = make_vectors(0)
    twin = make_erasers(make_fitter(x, y, torch.from_numpy(y).double()[:, None]))["leace"]
    assert score_probe(twin(torch.from_numpy(x)).numpy(), y) > np.bincount(y).max() / len(y) + 0.1


def test_leace_moves_no_more_than_it_must():
    """Of all affine maps that erase, it is the one that moves least (Belrose et al. 2023): less than projecting the
    differences of the class means out."""
    x, y = make_vectors(3)
    fitter = make_fitter(x, y)
    means = np.stack([x[y == k].mean(0) for k in range(3)])
    basis = torch.from_numpy(np.linalg.svd(means - means.mean(0), full_matrices=False)[2][:2]).T
    plain = Eraser(fitter.mean_x, basis @ basis.T)
    covariance = compute_covariance(fitter)
    assert make_erasers(fitter)["leace"].mean_square_change(covariance) < plain.mean_square_change(covariance)


@pytest.mark.parametrize("seed", range(3))
def test_the_controls_take_out_the_same_variance_and_the_same_number(seed):
    x, y = make_vectors(seed)
    fitter = make_fitter(x, y)
    erasers, moved = make_erasers(fitter, seed=seed), {}
    for kind in KINDS:
        removed = x - erasers[kind](torch.from_numpy(x)).numpy()
        moved[kind] = (removed**2).sum(1).mean()
        np.testing.assert_allclose(erasers[kind].mean_square_change(compute_covariance(fitter)), moved[kind], rtol=1e-9)
        np.testing.assert_allclose(removed.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(moved["same variance"], moved["leace"], rtol=1e-9)
    ranks = {kind: np.linalg.matrix_rank(eraser.out.numpy()) for kind, eraser in erasers.items()}
    assert ranks["leace"] == ranks["same number"] == 2
    other = make_erasers(fitter, seed=seed + 100)["same variance"]
    assert not torch.allclose(other.out, erasers["same variance"].out)


def test_what_is_one_vector_for_every_text_is_left_alone():
    x, y = np.ones((50, 8)), np.arange(50) % 2
    for eraser in make_erasers(make_fitter(x, y)).values():
        np.testing.assert_array_equal(eraser(torch.from_numpy(x)).numpy(), x)


# ------------------------------------------------------------------------------------------------------ what is left

ERASER, SIDES = slice(400), Sides(slice(400, 700), slice(700, 800), slice(800, 1000))
SEEDS, CODED = 20, 8


def make_codes(y, *, linear=False):
    """(seed, text, dim) vectors: y is the product of the signs along two directions at right angles (XOR), or the sign
    along one of them."""
    cells = []
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        directions = np.linalg.qr(random.normal(size=(CODED, CODED)))[0][:2]
        sign = random.choice([-1, 1], size=len(y))
        signs = np.stack([2 * y - 1 if linear else sign * (2 * y - 1), sign], 1)
        cells.append(random.normal(size=(len(y), CODED)) + 3 * signs @ directions)
    return np.stack(cells)


def read_erased(cells, y):
    """probe -> (seed,) test accuracy after LEACE."""
    erased = {}
    for seed, x in enumerate(cells):
        leace = make_erasers(make_fitter(x[ERASER], y[ERASER]))["leace"]
        erased[Erasure("leace", "cls", seed)] = leace(torch.from_numpy(x)).numpy()
    codes = predict_retrained(erased, y, SIDES, seed=0)
    return {
        probe: np.array([(predicted == y[SIDES.test]).mean() for predicted in by_erasure.values()])
        for probe, by_erasure in codes.items()
    }


def test_what_is_not_linear_is_seen_after_leace_in_20_seeds_of_20():
    y = np.random.default_rng(0).integers(2, size=1000)
    accuracy = read_erased(make_codes(y), y)
    assert (accuracy["MLP"] > 0.75).all()
    assert (accuracy["linear"] < 0.65).all()


def test_what_is_linear_is_gone_for_the_mlp_as_well():
    """The opposite: neither probe finds a code that LEACE has erased, nor labels that are not in the vectors."""
    y, other = np.random.default_rng(0).integers(2, size=(2, 1000))
    for cells, labels in ((make_codes(y, linear=True), y), (make_codes(y), other)):
        for accuracy in read_erased(cells[:6], labels).values():
            assert (accuracy < 0.65).all()


# ------------------------------------------------------------------------------------------------ inside a network


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(str(planted.save_model(tmp_path_factory.mktemp("planted"))), device="cpu")


PLACES = [Place("cls", 2), Place("token[3]", 1), Place("token[2]", 1)]


@pytest.fixture(scope="module")
def short_training():
    """The words of the planted encoder are learned in a few rounds; the others would only make certain more certain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(descent, "ROUNDS", 10)
        yield


@pytest.fixture(scope="module")
def measured(encoder, short_training):
    planted.plant_copy(encoder, 2, noise=0.02)
    task = planted.make_task(0, count=400)
    states = Extractor(encoder, ["cls"])(task.texts)
    split = split_task(task, states, 0)
    second = {text: text.split()[1] for text in task.texts}  # the word at token 2, which [CLS] never sees
    properties = label_properties(split, {"second": second})
    return split, measure_erasure(encoder, split, states, LogisticProbe(), (4, "cls"), PLACES, properties)


USED = {("token[3]", 1), ("cls", 2)}  # the places on the way from the word to the end


def test_what_the_fixed_probe_loses_is_lost_on_the_way(measured):
    """[CLS] copies token 3 at layer 2: until then the way leads through token 3, from there on through [CLS]."""
    table = compute_effects(measured[1]["erasure"])
    leace = table[(table.kind == "leace") & (table.probe == "fixed")].set_index(["tokens", "layer"])
    assert len(leace) == len(PLACES)
    for place, row in leace.iterrows():
        if place in USED:
            assert row.value < 0.75
            assert row["beyond high"] < 0
        else:
            assert row.effect > -0.05


def test_a_fixed_probe_fails_where_nothing_is_lost(measured):
    """The two classes are four words each, one direction a word: LEACE takes the difference of their means, and what
    is left still tells them apart. The MLP reads all of it, in its place and at the end: nothing was gathered again."""
    _, tables = measured
    left = tables["leakage"].set_index(["tokens", "layer", "kind", "probe"]).value
    at_end = compute_effects(tables["erasure"]).set_index(["tokens", "layer", "kind", "probe"]).value
    for place in USED:
        assert left[(*place, "none", "linear")] > 0.95
        assert left[(*place, "leace", "linear")] < 0.7
        assert left[(*place, "leace", "MLP")] > 0.95
        assert at_end[(*place, "leace", "fixed")] < 0.75
        assert at_end[(*place, "leace", "MLP")] > 0.95
        assert left[(*place, "same variance", "linear")] > 0.9


def test_reliability_is_measured_in_its_place_and_at_the_end(measured):
    _, tables = measured
    table = tables["reliability"]
    assert set(table["read at"]) == {"its place", "the end"}
    assert set(table[table["read at"] == "its place"].kind) == {"none", *KINDS}
    assert set(table[table["read at"] == "the end"].kind) == {"none", *RUN}
    rows = table[table["read at"] == "its place"].set_index(["tokens", "layer", "kind"])
    for place in (("token[3]", 1), ("cls", 2)):
        assert rows.completeness[(*place, "none")] == pytest.approx(0.5, abs=0.06)  # certain of every text
        assert rows.completeness[(*place, "leace")] > rows.completeness[(*place, "same variance")] + 0.05
        assert rows.selectivity[(*place, "none")] == 1 or not rows.others[(*place, "none")]
    assert np.isnan(rows.completeness["token[2]", 1, "none"])  # it holds nothing of the property
    assert rows.others["token[2]", 1, "leace"] == "second"
    assert rows.selectivity["token[2]", 1, "leace"] > 0.9


def test_a_class_of_one_training_text_is_measured(encoder, short_training):
    task = planted.make_task(0, count=80)
    labels = task.y.copy()
    texts = [*task.texts]
    side = np.where(np.arange(80) < 40, "train", np.where(np.arange(80) < 60, "dev", "test"))
    labels[[0, 40, 60]] = "rare"
    rare = Task("made:rare:label", texts, labels, split=side)
    states = Extractor(encoder, ["cls"])(texts)
    split = split_task(rare, states, 0)
    in_eraser_half = next(seed for seed in range(20) if 0 in split.row_indices[halve_train(split, seed)[0]])
    tables = measure_erasure(
        encoder, split, states, LogisticProbe(), (2, "cls"), [Place("token[3]", 1)], {}, seed=in_eraser_half
    )
    assert set(tables["leakage"].probe) == {"linear", "MLP"}
    assert tables["reliability"].selectivity.isna().all()


def test_the_exhibits_draw_no_verdict_from_a_shift(measured):
    _, tables = measured
    exhibits = erasure_exhibits(*(tables[name] for name in ("erasure", "leakage", "reliability")))
    assert not any("outcome" in exhibit.table for exhibit in exhibits)
    for exhibit in exhibits:
        if exhibit.plot:
            exhibit.draw()
    at_end = next(exhibit for exhibit in exhibits if "run on" in exhibit.caption)
    assert "it does not follow that it was gathered again" in at_end.caption
    assert "no sign of what they hold" in at_end.caption
    assert set(at_end.table.probe) == {"fixed", "linear", "MLP"}


def test_words_alone_can_be_erased_before_the_first_block(encoder):
    """A [CLS] that is read at layer 1 has no other place below it."""
    task = planted.make_task(0, count=60)
    states = Extractor(encoder, ["cls"])(task.texts)
    places = [Place("content", 0)]
    tables = measure_erasure(encoder, split_task(task, states, 0), states, LogisticProbe(), (1, "cls"), places, {})
    assert set(tables["erasure"].layer) == {0, 1}
    assert set(tables["leakage"].layer) == {0}


def test_every_token_of_a_place_teaches_its_eraser(encoder, measured):
    split, _ = measured
    texts, place = split.texts[:100], Place("content", 1)
    z = torch.eye(2, dtype=torch.float64)[split.y[:100]]
    fitted = fit_erasers(encoder, texts, z.numpy(), [place])
    batch, layers = encoder.batch(encoder.tokenize(texts)), []
    with tap(encoder, lambda layer, hidden: layers.append(hidden.double()), [1]):
        encoder.forward(batch)
    content = batch.content
    labels = z[:, None].expand(-1, content.shape[1], -1)
    direct = make_erasers(new_fitter(planted.DIM, 2).update(layers[0][content], labels[content]))
    torch.testing.assert_close(fitted.erasers[place]["leace"].out, direct["leace"].out, atol=1e-4, rtol=1e-3)
    vectors = erase_texts(encoder, texts, fitted, (2, "cls"))
    means = (layers[0] * content[..., None]).sum(1) / content.sum(1, keepdim=True)
    np.testing.assert_allclose(vectors.place[Erasure("none", *place)], means.numpy(), atol=1e-5)
    erased = (direct["leace"](layers[0]) * content[..., None]).sum(1) / content.sum(1, keepdim=True)
    np.testing.assert_allclose(vectors.place[Erasure("leace", *place)], erased.numpy(), atol=1e-3)
