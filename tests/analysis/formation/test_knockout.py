"""Knockout finds the layer and the token that were planted, and nothing where nothing is cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import planted_transformer as planted
import pytest

from clsprobe.analysis.formation.knockout import (
    INTACT,
    Window,
    compute_cut_vectors,
    compute_effects,
    list_windows,
    predict_changed,
    predict_cut,
)
from clsprobe.analysis.sweep.grid import split_task
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.interventions import changes
from clsprobe.probes.linear import LogisticProbe

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENS = [f"token[{k}]" for k in range(1, 6)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(str(planted.save_model(tmp_path_factory.mktemp("planted"))), device="cpu")


def measured(encoder, seed, *, edges=tuple(f"{token}->cls" for token in TOKENS), cells=((4, "cls"),), whole=False):
    """The layer that is planted under a seed, the task's sides, the vectors, and the effects of cutting edges in single
    layers, or in every window."""
    layer = 1 + seed % planted.LAYERS
    planted.plant_copy(encoder, layer, noise=0.02, seed=seed)
    task = planted.make_task(seed, count=160)
    cuts = [cut for cut in list_windows(edges, 4) if whole or cut.first == cut.last]
    states = Extractor(encoder, ["cls"])(task.texts)
    split = split_task(task, states, seed)
    return (
        layer,
        split,
        states,
        compute_effects(predict_cut(encoder, split, states, LogisticProbe(), cells, cuts)),
    )


def find_strongest(table):
    """The single layer and the edges whose cut costs most; None where that is within its own interval."""
    single = table[(table["first"] == table["last"]) & (table["first"] > 0)]
    worst = single.loc[single.effect.idxmin()]
    return (int(worst["first"]), str(worst.edges)) if worst.high < 0 else None


@pytest.mark.parametrize("seed", range(30))
def test_knockout_names_the_planted_layer_and_token(encoder, seed):
    layer, *_, table = measured(encoder, seed)
    assert find_strongest(table) == (layer, "token[3]->cls")
    assert table[table.edges == "none"].value.item() > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_every_window_with_the_planted_layer_costs_and_no_other_does(encoder, seed):
    layer, *_, table = measured(encoder, seed, whole=True)
    cut = (table.edges == "token[3]->cls") & (table["first"] <= layer) & (table["last"] >= layer)
    assert (table[cut].effect < -0.2).all()
    assert (table[~cut].effect > -0.1).all()


@pytest.mark.parametrize("seed", range(0, 30, 5))
def test_the_probe_names_the_planted_layer_and_token(encoder, seed):
    """Which layer: [CLS] tells the class of token 3 from there on. Which token: of no other does it tell."""
    layer, split, states, _ = measured(encoder, seed, edges=())
    test = split.rows_of("test")
    accuracies = {}
    for n in range(1, planted.LAYERS + 1):
        vectors = {0: states.cell(n, "cls")[split.state_rows[test]]}
        codes = predict_changed(LogisticProbe(), split, states, (n, "cls"), vectors)[0]
        accuracies[n] = (codes == split.y[test]).mean()
    assert min(n for n, accuracy in accuracies.items() if accuracy > 0.9) == layer
    for word in (1, 2, 4, 5):
        labels = [split.task.texts[i].split()[word - 1] in planted.LOW for i in split.row_indices]
        other = replace(split, y=np.array(labels).astype(int))
        codes = predict_changed(
            LogisticProbe(), other, states, (planted.LAYERS, "cls"), {0: states.cell(4, "cls")[split.state_rows[test]]}
        )
        assert (codes[0] == other.y[test]).mean() < 0.75


def test_attention_alone_would_name_no_layer(encoder):
    """Everywhere [CLS] looks at token 3: the planted layer is no finding of the weights."""
    planted.plant_copy(encoder, 2)
    encoder.model.set_attn_implementation("eager")
    attention = []
    modules = [block.attention.self for block in encoder.blocks]
    handles = [module.register_forward_hook(lambda m, a, out: attention.append(out[1])) for module in modules]
    encoder.forward(encoder.batch(encoder.tokenize(planted.make_task(0).texts[:5])))
    for handle in handles:
        handle.remove()
    encoder.model.set_attn_implementation("sdpa")
    assert all((weights[:, 0, 0, planted.TOKEN] > 0.9).all() for weights in attention)


def test_edges_the_wrong_way_round_would_name_nothing(encoder, monkeypatch):
    """The broken twin: query and key exchanged."""
    find_blocked = changes._find_blocked
    monkeypatch.setattr(changes, "_find_blocked", lambda name: lambda batch: find_blocked(name)(batch).mT)
    assert find_strongest(measured(encoder, 1)[-1]) is None


def test_layers_counted_from_0_would_name_another(encoder, monkeypatch):
    """The broken twin: every cut a layer too high."""
    check_blocks = changes._check_blocks
    monkeypatch.setattr(changes, "_check_blocks", lambda *a, **k: {layer + 1 for layer in check_blocks(*a, **k)})
    layer, *_, table = measured(encoder, 1)
    assert find_strongest(table) != (layer, "token[3]->cls")


def test_what_is_cut_behind_a_cell_does_not_reach_it(encoder):
    layer, *_, table = measured(encoder, 1, cells=((planted.LAYERS, "cls"), (2, "cls")))
    low = table[table.layer == 2]
    assert set(low["last"]) == {0, 1, 2}
    assert find_strongest(low) == (layer, "token[3]->cls")


def test_windows_that_share_a_pass_are_those_of_passes_of_their_own(encoder):
    planted.plant_copy(encoder, 3, noise=0.2)
    texts, cells = planted.make_task(0).texts[:20], [(4, "cls"), (4, "mean"), (3, "cls")]
    together = compute_cut_vectors(encoder, texts, list_windows(["rest->cls", "cls->content"], 4), cells)
    assert len(together) == 21
    for cut in (Window("rest->cls", 1, 3), Window("rest->cls", 2, 4), Window("cls->content", 2, 2)):
        with changes.knockout(encoder, cut.edges, range(cut.first, cut.last + 1)):
            alone = Extractor(encoder, ["cls", "mean"])(texts)
        for cell, vectors in together[cut].items():
            np.testing.assert_allclose(vectors, alone.cell(*cell), atol=1e-5)
    intact = Extractor(encoder, ["cls", "mean"])(texts)
    for cell, vectors in together[INTACT].items():
        np.testing.assert_allclose(vectors, intact.cell(*cell), atol=1e-5)
        cut = together[Window("rest->cls", 1, 3)][cell]
        assert np.abs(vectors - cut).max() > 1e-3


def test_effects_are_paired_over_texts_and_seeds(encoder):
    *_, table = measured(encoder, 2)
    intact = table[table.edges == "none"].iloc[0]
    assert intact.effect == 0
    assert intact.low < 0 < intact.high
    np.testing.assert_allclose(table.effect, table.value - intact.value)
    assert ((table.low <= table.effect) & (table.effect <= table.high)).all()
