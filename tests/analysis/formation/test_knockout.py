"""Knockout finds the layer and the token that were planted, and nothing where nothing is cut; retrained probes find the
layer that is necessary and that suffices, and no difference between encoders without training."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import models
import numpy as np
import pandas as pd
import planted_transformer as planted
import pytest
from transformers import AutoModel, BertConfig

from clsprobe.analysis import stats
from clsprobe.analysis.formation import knockout as cutting
from clsprobe.analysis.formation.cuts import (
    EVERYTHING,
    INTACT,
    ONLY,
    REFITTED,
    RESTORED,
    Gathering,
    Window,
    compute_effects,
    list_windows,
    split_halves,
    tabulate_correct,
)
from clsprobe.analysis.formation.knockout import (
    compute_cut_vectors,
    make_plan,
    predict_changed,
    predict_cut,
    predict_retrained,
)
from clsprobe.analysis.sweep.grid import split_task
from clsprobe.analysis.verdict import Part
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.interventions import changes
from clsprobe.probes.linear import LogisticProbe
from clsprobe.probes.tasks.task import Task

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENS = [f"token[{k}]" for k in range(1, 6)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    encoder = load_encoder(str(planted.save_model(tmp_path_factory.mktemp("planted"))), device="cpu")
    changes.check_changes(encoder)  # before any test breaks a change
    return encoder


def measured(encoder, seed, *, edges=tuple(f"{token}->cls" for token in TOKENS), whole=False):
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
        compute_effects(predict_cut(encoder, split, states, LogisticProbe(), planted.LAYERS, ["cls"], cuts)),
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


def test_plans_that_share_a_pass_are_those_of_passes_of_their_own(encoder):
    planted.plant_copy(encoder, 3, noise=0.2)
    texts, readouts = planted.make_task(0).texts[:20], ["cls", "mean"]
    windows = [INTACT, *list_windows([EVERYTHING, "cls->content", ONLY], 4)]
    together = compute_cut_vectors(encoder, texts, [make_plan(window, 4) for window in windows], readouts)
    for window, cut_layers in (
        (INTACT, []),
        (Window(EVERYTHING, 1, 3), [1, 2, 3]),
        (Window(EVERYTHING, 2, 4), [2, 3, 4]),
        (Window(ONLY, 2, 3), [1, 4]),
        (Window(ONLY, 1, 3), [4]),
    ):
        with changes.knockout(encoder, EVERYTHING, cut_layers) if cut_layers else nullcontext():
            alone = Extractor(encoder, readouts)(texts)
        vectors = together[make_plan(window, 4)]
        for name in readouts:
            np.testing.assert_allclose(vectors[name], alone.cell(4, name), atol=1e-5)
    cut, intact = (together[make_plan(window, 4)]["cls"] for window in (Window(EVERYTHING, 2, 4), INTACT))
    assert np.abs(cut - intact).max() > 1e-3


def test_what_is_restored_in_all_blocks_is_the_intact_vector(encoder):
    planted.plant_copy(encoder, 3, noise=0.2)
    texts = planted.make_task(0).texts[:20]
    plans = [make_plan(Window(RESTORED, *span), 4) for span in ((1, 4), (3, 3), (2, 2))]
    plans.append(make_plan(INTACT, 4))
    vectors = compute_cut_vectors(encoder, texts, plans, ["cls"])
    whole, copied, elsewhere, intact = (vectors[plan]["cls"] for plan in plans)
    np.testing.assert_allclose(whole, intact, atol=1e-5)
    assert np.ptp(copied, axis=0).max() > 0.1  # what differs between texts was written in block 3
    assert np.ptp(elsewhere, axis=0).max() < 1e-5


def test_effects_are_paired_over_texts_and_seeds(encoder):
    *_, table = measured(encoder, 2)
    intact = table[table.edges == "none"].iloc[0]
    assert intact.effect == 0
    assert intact.low < 0 < intact.high
    np.testing.assert_allclose(table.effect, table.value - intact.value)
    assert ((table.low <= table.effect) & (table.effect <= table.high)).all()


# -------------------------------------------------------------------------------------------------- retrained probes


def gather(encoder, seed, *, kinds=(EVERYTHING, ONLY)):
    """The layer that is planted under a seed, and what retrained probes read after changes of single blocks."""
    layer = 1 + seed % planted.LAYERS
    planted.plant_copy(encoder, layer, noise=0.02, seed=seed)
    task = planted.make_task(seed, count=160)
    split = split_task(task, Extractor(encoder, ["cls"], layers=[planted.LAYERS])(task.texts), seed)
    windows = [INTACT, Window(EVERYTHING, 1, planted.LAYERS)]
    windows += [Window(kind, block, block) for kind in kinds for block in range(1, planted.LAYERS + 1)]
    return layer, Gathering(*predict_retrained(encoder, split, LogisticProbe(), planted.LAYERS, windows))


def find_necessary(gathering):
    """The blocks without which retrained probes certainly lose something."""
    windows = [Window(EVERYTHING, block, block) for block in range(1, planted.LAYERS + 1)]
    return [window.first for window in windows if gathering.lose(window).interval()[0] > 0.02]


def find_sufficient(gathering, kind=ONLY):
    """The blocks that alone keep certainly more than half of what [CLS] takes from the others."""
    windows = [Window(kind, block, block) for block in range(1, planted.LAYERS + 1)]
    return [window.first for window in windows if (gathering.share(window) or (0, 0, 0))[1] > 0.5]


@pytest.mark.parametrize("seed", range(30))
def test_the_planted_layer_alone_is_necessary_and_alone_suffices(encoder, seed):
    layer, gathering = gather(encoder, seed)
    assert find_necessary(gathering) == [layer]
    assert find_sufficient(gathering) == [layer]


@pytest.mark.parametrize("seed", range(4))
def test_what_attention_wrote_in_the_planted_layer_suffices(encoder, seed):
    layer, gathering = gather(encoder, seed, kinds=[RESTORED])
    assert find_sufficient(gathering, RESTORED) == [layer]


def test_edges_the_wrong_way_round_would_be_neither_necessary_nor_sufficient(encoder, monkeypatch):
    """The broken twin: query and key exchanged, so that [CLS] is never cut off."""
    find_blocked = changes._find_blocked
    monkeypatch.setattr(changes, "_find_blocked", lambda name: lambda batch: find_blocked(name)(batch).mT)
    _, gathering = gather(encoder, 1)
    assert find_necessary(gathering) == find_sufficient(gathering) == []


def test_layers_counted_from_0_would_be_necessary_elsewhere(encoder, monkeypatch):
    """The broken twin: every cut a layer too high."""
    check_blocks = changes._check_blocks
    monkeypatch.setattr(changes, "_check_blocks", lambda *a, **k: {layer + 1 for layer in check_blocks(*a, **k)})
    layer, gathering = gather(encoder, 1)
    assert layer not in find_necessary(gathering)


def test_a_window_that_is_cut_instead_of_open_would_suffice_nowhere(encoder, monkeypatch):
    """The broken twin: inside and outside exchanged."""
    exchanged = {ONLY: EVERYTHING, EVERYTHING: ONLY}
    monkeypatch.setattr(
        cutting,
        "make_plan",
        lambda window, layer: make_plan(window._replace(edges=exchanged.get(window.edges, "none")), layer),
    )
    layer, gathering = gather(encoder, 1)
    assert layer not in find_sufficient(gathering)
    assert find_necessary(gathering) != [layer]


def test_changes_that_come_to_the_same_share_a_fit(encoder):
    planted.plant_copy(encoder, 2, noise=0.02)
    task = planted.make_task(0, count=160)
    split = split_task(task, Extractor(encoder, ["cls"], layers=[4])(task.texts), 0)
    same = [(Window(EVERYTHING, 1, 2), Window(ONLY, 3, 4)), (INTACT, Window(ONLY, 1, 4))]
    rows, _ = predict_retrained(encoder, split, LogisticProbe(), 4, [window for pair in same for window in pair])
    by_window = dict(iter(rows.groupby(list(Window._fields)).predicted))
    for a, b in same:
        assert make_plan(a, 4) == make_plan(b, 4)
        assert by_window[a].tolist() == by_window[b].tolist()


def test_vectors_that_do_not_fit_into_memory_are_computed_a_few_plans_at_a_time(encoder, monkeypatch):
    whole = gather(encoder, 1)[1]
    monkeypatch.setattr(cutting, "BYTES", 160 * 4 * planted.DIM * 3)
    parts = gather(encoder, 1)[1]
    assert [whole.accuracy(window) for window in whole.windows] == [parts.accuracy(w) for w in parts.windows]


# ------------------------------------------------------------------------------------------ encoders without training


def make_sides(sides, seed=0):
    """Sentences of four to eight words of two classes, with a split; the label is the class of most of them."""
    random, labels = np.random.default_rng(seed), dict[str, str]()
    while len(labels) < sum(sides.values()):
        words = random.choice([*planted.LOW, *planted.HIGH], size=random.integers(4, 9))
        low = np.isin(words, planted.LOW).mean()
        if low != 0.5:
            labels[" ".join(words)] = "low" if low > 0.5 else "high"
    split = np.repeat([*sides], [*sides.values()])
    return Task("made:random:most", list(labels), np.array([*labels.values()]), split=split)


def cut_untrained(folder, draws, *, dim, sides, layers=4):
    """What is read of encoders of random weights after cuts: by retrained probes, and by fixed ones of some of them."""
    tokenizer = models.tokenizer("bert")
    sizes = {"hidden_size": dim, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 2 * dim}
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    task, split, retrained, fixed = make_sides(sides), None, [], []
    cuts = [Window(EVERYTHING, *span) for span in ((1, layers), *split_halves(layers))]
    for draw in range(draws):
        encoder = load_encoder(str(folder), device="cpu", untrained=draw)
        states = Extractor(encoder, ["cls"], layers=[layers])(task.texts)
        split = split or split_task(task, states, 0)
        probe = LogisticProbe()
        retrained.append(predict_retrained(encoder, split, probe, layers, [INTACT, *cuts], draw=draw)[0])
        if draw < 7:
            fixed.append(predict_cut(encoder, split, states, probe, layers, ["cls"], cuts).assign(draw=draw))
    return pd.concat(retrained), pd.concat(fixed)


def compare_with_others(table):
    """For every encoder in the role of the trained one: the part that it gathers later than all others."""
    for draw in table.draw.unique():
        rows = table.assign(control=np.where(table.draw == draw, "none", "untrained"))
        rows["draw"] = rows.draw.where(rows.draw != draw, -1)
        yield Part.of("", Gathering(rows, pd.DataFrame(columns=[*REFITTED])).compare_halves()[0], 0.02)


def count_claims(parts):
    return Counter(
        "no different" if part.low > -0.02 and part.high < 0.02
        else "late" if part.low > 0.02
        else "early" if part.high < -0.02
        else "undecided"
        for part in parts
    )  # fmt: skip


@pytest.mark.parametrize("draws", [7, pytest.param(20, marks=pytest.mark.long)])
def test_encoders_without_training_are_no_different_from_untrained_ones_unless_the_probe_is_fixed(tmp_path, draws):
    """An encoder of random weights used to gather late: a fixed probe loses what a retrained one still reads."""
    retrained, fixed = cut_untrained(tmp_path, draws, dim=32, sides={"train": 300, "dev": 50, "test": 250})
    claims = count_claims(compare_with_others(retrained))
    assert claims["no different"] >= draws - 1
    assert not claims["late"] + claims["early"]
    halves = [Window(EVERYTHING, *half) for half in split_halves(4)]
    lost = [[tabulate_correct(rows, half).to_numpy() for half in halves] for _, rows in fixed.groupby("draw")]
    shifts = [stats.compare(*pair).interval() for pair in lost]
    assert sum(low > 0.02 or high < -0.02 for low, high in shifts) >= 3  # of 7


def test_a_deep_encoder_has_single_layers_and_the_runs_from_either_end():
    assert len(list_windows(["rest->cls"], 6)) == 21
    runs = [window[1:] for window in list_windows(["rest->cls"], 8)]
    assert len(runs) == len(set(runs)) == 8 + 7 + 6
    assert {(3, 3), (1, 5), (4, 8), (1, 8), *split_halves(8)} <= {*runs}
    assert (2, 5) not in runs
