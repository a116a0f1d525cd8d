"""Swaps between minimal pairs name the layer where [CLS] was planted to receive the word, and none that is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import planted_transformer as planted
import pytest

from clsprobe.analysis.formation import swap_effects, swaps
from clsprobe.analysis.formation.swap_effects import CLS, INTACT, OTHERS, SAME_LABEL, WHOLE
from clsprobe.analysis.sweep.grid import split_task
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.interventions.changes import alter_layer
from clsprobe.probes.interventions.passes import RecordedPass

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(str(planted.save_model(tmp_path_factory.mktemp("planted"))), device="cpu")


def measure(encoder, seed, *, pairs=None, layer=planted.LAYERS):
    """The layer that is planted under a seed, the log-odds after all swaps, and what `measure_reliability` needs."""
    planted_layer = 1 + seed % planted.LAYERS
    planted.plant_copy(encoder, planted_layer, noise=0.02, seed=seed)
    task = planted.make_task(seed, count=160)
    states = Extractor(encoder, ["cls"], layers=[layer])(task.texts)
    split, pairs = split_task(task, states, seed), planted.make_pairs(seed) if pairs is None else pairs
    chosen = swaps.choose_pairs(encoder, pairs, task.texts)
    vectors = swaps.compute_swapped_vectors(encoder, chosen, layer)
    table = swaps.measure_swaps(split, states, chosen, vectors, layer)
    return planted_layer, table, (split, states, pairs, chosen, vectors, layer)


def tabulate(table):
    """(layer, swap) effects over all texts."""
    return swap_effects.compute_effects(table).set_index(["layer", "swap"]).value.unstack("swap")


@pytest.mark.parametrize("seed", range(30))
def test_the_swap_of_cls_rises_in_the_planted_layer(encoder, seed):
    layer, table, _ = measure(encoder, seed)
    effects, rises = tabulate(table), swap_effects.compute_rises(table)
    assert effects[CLS].loc[: layer - 1].abs().max() < 0.1
    assert effects[CLS].loc[layer:].min() > 0.9
    assert rises.block[rises.largest].tolist() == [layer]
    assert rises.low[layer - 1] > 0.5
    assert f"in block {layer}" in swap_effects.describe_swaps(table)
    assert effects[SAME_LABEL].abs().max() < 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_what_holds_by_construction(encoder, seed):
    _, table, _ = measure(encoder, seed)
    effects = tabulate(table)
    first, last = effects.loc[0], effects.loc[planted.LAYERS]
    np.testing.assert_allclose((first[CLS], first[OTHERS], first[SAME_LABEL]), (0, 1, 0), atol=1e-5)
    np.testing.assert_allclose((last[CLS], last[OTHERS], last[SAME_LABEL]), (1, 0, 0), atol=1e-5)
    np.testing.assert_allclose(effects[CLS] + effects[OTHERS], 1, atol=1e-5)


def test_rows_swapped_within_one_label_would_name_nothing(encoder, monkeypatch):
    """The broken twin: every text gets its own [CLS]."""
    monkeypatch.setattr(swaps, "_swap_rows", lambda hidden, selected, sources: hidden)
    _, table, _ = measure(encoder, 1)
    assert tabulate(table)[CLS].abs().max() < 1e-5
    assert not (swap_effects.compute_rises(table).low > 0).any()


def test_states_of_the_next_layer_would_not_jump_in_the_planted_one(encoder, monkeypatch):
    """The broken twin: the state that is swapped in is that of one layer above."""

    class Shifted(RecordedPass):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.hidden = [*self.hidden[1:], self.hidden[-1]]

    monkeypatch.setattr("clsprobe.probes.interventions.passes.RecordedPass", Shifted)
    layer, table, _ = measure(encoder, 1)
    assert tabulate(table)[CLS][layer - 1] > 0.3


def test_a_swap_is_that_of_a_pass_of_its_own(encoder):
    """From outside: the hooks of `alter_layer` in a pass of two texts, without recorded states."""
    planted.plant_copy(encoder, 2, noise=0.2)
    chosen = swaps.choose_pairs(encoder, planted.make_pairs(0), [])
    vectors = swaps.compute_swapped_vectors(encoder, chosen, planted.LAYERS)
    for pair in (0, len(chosen.texts) - 1):
        for layer in (1, 2, 3):

            def exchange(hidden, batch):
                changed = hidden.clone()
                changed[:, 0] = hidden.flip(0)[:, 0]
                return changed

            with alter_layer(encoder, layer, exchange):
                outside = Extractor(encoder, ["cls"])(chosen.texts[pair].tolist()).cell(planted.LAYERS, "cls")
            np.testing.assert_allclose(vectors[CLS, layer][pair], outside, atol=1e-5)
            np.testing.assert_allclose(vectors[OTHERS, layer][pair], outside[::-1], atol=1e-5)
    intact = Extractor(encoder, ["cls"])(chosen.texts.ravel().tolist()).cell(planted.LAYERS, "cls")
    np.testing.assert_allclose(vectors[INTACT, planted.LAYERS].reshape(intact.shape), intact, atol=1e-5)
    np.testing.assert_allclose(vectors[WHOLE, planted.LAYERS], vectors[INTACT, planted.LAYERS][:, ::-1])


def test_what_an_independent_probe_sees(encoder):
    layer, _, measured = measure(encoder, 2)
    reliability = swaps.measure_reliability(*measured)
    assert tuple(reliability) == swap_effects.RELIABILITY
    means = swap_effects.compute_reliability(reliability).set_index(["measure", "property", "swap", "layer"]).value
    means = means.sort_index()
    complete = means["completeness", "third"]
    assert complete[CLS, layer - 1] == pytest.approx(complete[INTACT, planted.LAYERS], abs=0.05)
    assert complete[CLS, planted.LAYERS] == pytest.approx(complete[WHOLE, planted.LAYERS], abs=1e-6)
    assert complete[WHOLE, planted.LAYERS] > 0.8 > 0.2 > complete[INTACT, planted.LAYERS]
    assert complete[SAME_LABEL, planted.LAYERS] < 0.2
    assert means["accuracy above the majority", "third", INTACT, planted.LAYERS] > 0.3
    assert means["selectivity", "length", CLS, 0] == pytest.approx(1)


# --------------------------------------------------------------------------------------------------- choosing pairs


def test_chosen_pairs_line_up_and_their_partners_share_nothing_but_the_label(encoder):
    pairs = planted.make_pairs(3, count=60)
    odd = ("cat dog bird tree red", "cat dog bird tree red blue")  # not of equal length
    unknown = ("cat dog zebra", "cat dog yak")  # one text to the encoder
    pairs = replace(pairs, texts=[odd, unknown, *pairs.texts], lemmas=["odd", "unknown", *pairs.lemmas])
    chosen = swaps.choose_pairs(encoder, pairs, [], most=40)
    assert 20 <= len(chosen.texts) <= 40
    assert not {"odd", "unknown"} & set(chosen.lemmas)
    assert sorted(np.concatenate(chosen.batches)) == list(range(len(chosen.texts)))
    assert sorted(chosen.partners) == list(range(len(chosen.texts)))
    assert (chosen.lemmas != chosen.lemmas[chosen.partners]).all()
    for batch in chosen.batches:
        rows = encoder.tokenize(chosen.texts[batch].ravel().tolist())
        assert len(set(rows.lengths)) == 1
        assert set(chosen.partners[batch]) <= set(batch)
    differing = swaps.find_differing_tokens(encoder, chosen)
    assert all(indices.tolist() == [planted.TOKEN] for indices in differing)


def test_lemmas_that_the_probe_learnt_from_are_left_out(encoder):
    pairs = planted.make_pairs(4)
    (lemma, other), text = sorted(set(pairs.lemmas))[:2], "cat dog bird"
    pairs = replace(pairs, carriers={text: lemma})
    assert lemma not in swaps.choose_pairs(encoder, pairs, [text]).lemmas
    assert {lemma, other} <= set(swaps.choose_pairs(encoder, pairs, ["another text"]).lemmas)


def test_every_lemma_has_its_turn(encoder):
    pairs = planted.make_pairs(5, count=200)
    chosen = swaps.choose_pairs(encoder, pairs, [], most=32)
    _, counts = np.unique(chosen.lemmas, return_counts=True)
    assert len(counts) == len(set(pairs.lemmas)) == 16
    assert counts.max() <= 2


def test_without_two_lemmas_there_is_nothing_to_swap(encoder):
    pairs = planted.make_pairs(6, count=8)
    chosen = swaps.choose_pairs(encoder, replace(pairs, lemmas=["one"] * 8), [])
    assert len(chosen.texts) == len(chosen.batches) == 0
    assert len(swaps.choose_pairs(encoder, replace(pairs, lemmas=[""] * 8), []).texts) > 2  # a pair each
