"""Erasure: nothing linear is left, random directions of the same variance are harmless, and what is used is found."""

from __future__ import annotations

import numpy as np
import planted_transformer as planted
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from clsprobe.analysis.formation.erasure import (
    KINDS,
    Eraser,
    Place,
    compute_covariance,
    compute_effects,
    fit_erasers,
    make_erasers,
    measure_leakage,
    new_fitter,
    predict_erased,
)  # fmt: skip
from clsprobe.analysis.sweep.grid import split_task
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.linear import LogisticProbe

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


# ------------------------------------------------------------------------------------------------ inside a network


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(str(planted.save_model(tmp_path_factory.mktemp("planted"))), device="cpu")


PLACES = [Place(tokens, layer) for tokens in ("cls", "content", "token[3]", "token[2]") for layer in range(1, 4)]


@pytest.fixture(scope="module")
def measured(encoder):
    planted.plant_copy(encoder, 2, noise=0.02)
    task = planted.make_task(0, count=400)
    states = Extractor(encoder, ["cls"])(task.texts)
    split = split_task(task, states, 0)
    predictions, leakage = predict_erased(encoder, split, states, LogisticProbe(), (4, "cls"), PLACES)
    return split, compute_effects(predictions), leakage


def test_what_is_used_downstream_is_found_where_it_is(measured):
    """[CLS] copies token 3 at layer 2: until then the word at token 3 is used, from there on what [CLS] holds."""
    _, table, _ = measured
    leace = table[table.kind == "leace"].set_index(["tokens", "layer"])
    used = {("token[3]", 1), ("cls", 2), ("cls", 3)}
    for place, row in leace.iterrows():
        if place in used:
            assert row.value < 0.65
            assert row["beyond high"] < 0
        elif place[0] != "content":  # of all its tokens, the third alone has the label
            assert row.effect > -0.05
    assert (table[table.kind == "same number"].effect > -0.2).all()


def test_words_alone_can_be_erased_before_the_first_block(encoder):
    """A [CLS] that is read at layer 1 has no other place below it."""
    task = planted.make_task(0, count=60)
    states = Extractor(encoder, ["cls"])(task.texts)
    places = [Place("content", 0)]
    predictions, left = predict_erased(
        encoder, split_task(task, states, 0), states, LogisticProbe(), (1, "cls"), places
    )
    assert set(predictions.layer) == {0, 1}
    assert set(left.layer) == {0}


def test_the_leakage_is_that_of_erased_vectors(measured):
    split, _, leakage = measured
    test = split.rows_of("test")
    majority = np.bincount(split.y[test]).max() / len(test)
    accuracy = leakage[(leakage.tokens == "token[3]")].set_index(["kind", "layer"]).value
    for layer in (1, 2, 3):
        assert accuracy["none", layer] > 0.95
        assert accuracy["leace", layer] <= majority + 0.1
        assert accuracy["same number", layer] > 0.7


def test_every_token_of_a_place_teaches_its_eraser_and_only_train_does(encoder, measured):
    split, *_ = measured
    texts = [split.task.texts[i] for i in split.row_indices]
    place = Place("content", 1)
    fitted = fit_erasers(encoder, split, [place])
    rows = encoder.tokenize(texts)
    batch = encoder.batch(rows)
    from clsprobe.probes.encoders.tap import tap

    layers = []
    with tap(encoder, lambda layer, hidden: layers.append(hidden.double()), [1]):
        encoder.forward(batch)
    content = batch.content
    train = content & torch.from_numpy(split.side == "train")[:, None]
    z = torch.eye(2, dtype=torch.float64)[split.y][:, None].expand(-1, content.shape[1], -1)
    direct = make_erasers(new_fitter(planted.DIM, 2).update(layers[0][train], z[train]))
    torch.testing.assert_close(fitted.erasers[place]["leace"].out, direct["leace"].out, atol=1e-4, rtol=1e-3)
    means = (layers[0] * content[..., None]).sum(1) / content.sum(1, keepdim=True)
    np.testing.assert_allclose(fitted.means[place], means.numpy(), atol=1e-5)
    leakage = measure_leakage(split, fitted)
    assert set(leakage.kind) == {"none", *KINDS}
