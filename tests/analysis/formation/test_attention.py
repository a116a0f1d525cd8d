"""Attention: the model's own weights, rollout in closed form, value zeroing against the naive loop, plain refusals."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from models import TEXTS, save
from transformers import AutoModel

from clsprobe import load_encoder
from clsprobe.analysis.formation import attention as module
from clsprobe.analysis.formation.attention import METHODS, measure_attention, measure_mixing, summarise_heads
from clsprobe.analysis.formation.attribution import measure_agreement
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.tap import tap
from clsprobe.probes.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

WORDY = [text for text in TEXTS if len(text.split()) > 4]
LONG = "the cat sees the dog , " * 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(kind: str) -> str:
        if kind not in made:
            made[kind] = str(save(kind, tmp_path_factory.mktemp(kind)))
        return made[kind]

    return folder


@pytest.fixture(scope="module")
def loaded(folders):
    """Encoders that no test alters; CANINE's tokenizer takes seconds."""
    return cache(lambda kind: load_encoder(folders(kind)))


@pytest.fixture(scope="module")
def bert(loaded) -> Encoder:
    return loaded("bert")


def own_weights(folder: str, encoder: Encoder, text: str) -> np.ndarray:
    """(layer, head, token, token) of a text alone, from a second copy of the model."""
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    batch = encoder.batch([encoder.tokenize([text])[0]])
    with torch.no_grad():
        attentions = model(batch.ids, attention_mask=batch.real.long(), output_attentions=True).attentions
    return np.stack([layer[0].double().numpy() for layer in attentions])


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "deberta-v2"])
def test_weights_are_the_models_own(kind, folders):
    encoder = load_encoder(folders(kind))
    table = measure_attention(encoder, TEXTS)
    for text in (0, 2, 3):
        own, expected = table[table["text"] == text], own_weights(folders(kind), encoder, TEXTS[text])
        own_index = own.loc[own["own"], "token_index"].unique()
        assert own_index.tolist() == [0]
        layers, count, size, _ = expected.shape
        assert len(own) == layers * count * size
        for column, values in (("out_of", expected[:, :, 0]), ("into", expected[:, :, :, 0])):
            actual = own.sort_values(["layer", "head", "token_index"])[column].to_numpy().reshape(layers, count, size)
            np.testing.assert_allclose(actual, values, atol=1e-5)
    assert np.abs(table.groupby(["text", "layer", "head"])["out_of"].sum() - 1).max() < 1e-12


def test_heads_are_sums_and_means(bert):
    table = measure_attention(bert, TEXTS)
    means = summarise_heads(table).set_index(["layer", "head", "direction", "of"])["value"]
    content = table[(table["layer"] == 2) & (table["head"] == 1) & ~table["special"]]
    assert means[2, 1, "out of", "content"] == pytest.approx(content.groupby("text")["out_of"].sum().mean())
    assert means[2, 1, "into", "content"] == pytest.approx(content.groupby("text")["into"].mean().mean())
    wordy = summarise_heads(measure_attention(bert, WORDY))  # each has all three kinds of tokens
    assert np.abs(wordy[wordy["direction"] == "out of"].groupby(["layer", "head"])["value"].sum() - 1).max() < 1e-9


def roll_out(weights: np.ndarray, residual: float = 0.5) -> np.ndarray:
    """(layer, token, token) rollout, entry by entry (Abnar & Zuidema 2020)."""
    size = weights.shape[-1]
    total, rollout = np.eye(size), []
    for layer in weights.mean(1):
        mixed = (1 - residual) * layer + residual * np.eye(size)
        mixed = np.array([row / row.sum() for row in mixed])
        total = np.array(
            [[sum(mixed[i, k] * total[k, j] for k in range(size)) for j in range(size)] for i in range(size)]
        )
        rollout.append(total)
    return np.array(rollout)


def scores(table: pd.DataFrame, text: int) -> np.ndarray:
    """(layer, token)"""
    return table[table["text"] == text].pivot(index="layer", columns="token_index", values="score").to_numpy()


@pytest.mark.parametrize("readout", ["cls", "token[-1]"])
def test_rollout_is_written_out(readout, bert, folders):
    table = measure_mixing(bert, WORDY, "rollout", readout)
    for text in (0, 2):
        expected = roll_out(own_weights(folders("bert"), bert, WORDY[text]))
        place = 0 if readout == "cls" else -2
        np.testing.assert_allclose(scores(table, text), expected[:, place], atol=1e-5)
        without = roll_out(own_weights(folders("bert"), bert, WORDY[text]), residual=0.0)
        assert np.abs(without[:, place] - expected[:, place]).max() > 0.05, "without the residual stream it is another"


def test_rollout_of_attention_to_all_alike_has_a_closed_form(folders):
    """With queries of zero every weight is 1/n: after l layers (1 - 2^-l)/n everywhere, and 2^-l more on itself."""
    encoder = load_encoder(folders("bert"))
    for block in encoder.blocks:
        block.attention.self.query.weight.zero_()
        block.attention.self.query.bias.zero_()
    table = measure_mixing(encoder, TEXTS, "rollout")
    for text, own in table.groupby("text"):
        n = own["token_index"].max() + 1
        residual = 0.5 ** np.arange(1, 4)[:, None]
        expected = (1 - residual) / n + residual * (np.arange(n) == 0)
        np.testing.assert_allclose(scores(table, text), expected, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_scores_sum_to_1_in_every_layer(method, bert, loaded):
    for encoder in (bert, loaded("modernbert")):
        table = measure_mixing(encoder, TEXTS, method)
        assert sorted(table["layer"].unique()) == [1, 2, 3]
        assert np.abs(table.groupby(["text", "layer"])["score"].sum() - 1).max() < 1e-12
        assert (table["score"] >= 0).all()
        alone = measure_mixing(encoder, TEXTS[3:4], method)["score"].to_numpy()
        np.testing.assert_allclose(table.loc[table["text"] == 3, "score"], alone, atol=1e-4)


def zeroed_one_by_one(
    encoder: Encoder, text: str, projections: list, part=slice(None), turn: bool = False
) -> np.ndarray:
    """(layer, token, lost token): one run for every layer and token, shares of each row."""
    batch = encoder.batch([encoder.tokenize([text])[0]])
    size = batch.ids.shape[1]

    def states() -> list[np.ndarray]:
        layers: list[np.ndarray] = []
        with tap(encoder, lambda layer, hidden: layers.append(hidden[0].double().numpy()), range(1, 4)):
            encoder.forward(batch)
        return layers

    plain, turns = states(), np.zeros((3, size, size))
    for layer, projection in enumerate(projections):
        for lost in range(size):

            def zero(where, args, output, lost=lost):
                output = output.clone()
                (output.transpose(0, 1) if turn else output)[0, lost, part] = 0
                return output

            handle = projection.register_forward_hook(zero)
            a, b = plain[layer], states()[layer]
            handle.remove()
            turns[layer, :, lost] = 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    turns = turns.clip(min=0)
    return turns / turns.sum(-1, keepdims=True)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "longformer"])
def test_value_zeroing_is_the_naive_loop(kind, loaded):
    encoder = loaded(kind)
    part, turn = slice(None), kind == "longformer"
    if kind == "modernbert":
        projections, part = [block.attn.Wqkv for block in encoder.blocks], slice(32, None)
    else:
        projections = [block.attention.self.value for block in encoder.blocks]
    table, rollout = (
        measure_mixing(encoder, WORDY, "value_zeroing"),
        measure_mixing(encoder, WORDY, "value_zeroing_rollout"),
    )
    for text in (0, 2):
        expected = zeroed_one_by_one(encoder, WORDY[text], projections, part, turn)
        np.testing.assert_allclose(scores(table, text), expected[:, 0], atol=1e-4)
        total = np.eye(expected.shape[-1])
        for layer, step in enumerate(expected):
            total = step @ total
            np.testing.assert_allclose(scores(rollout, text)[layer], total[0], atol=1e-3)


def test_texts_are_cut_where_they_are_told_to_be(bert):
    cut = " ".join(LONG.split()[:6])  # and [CLS] and [SEP]
    for method in METHODS:
        actual = measure_mixing(bert, [LONG], method, max_length=8)["score"]
        np.testing.assert_allclose(actual, measure_mixing(bert, [cut], method)["score"], atol=1e-6)
    pd.testing.assert_frame_equal(measure_attention(bert, [LONG], max_length=8), measure_attention(bert, [cut]))


def test_a_long_text_is_zeroed_some_tokens_at_a_time(bert, monkeypatch):
    whole = measure_mixing(bert, [LONG, *WORDY], "value_zeroing")
    monkeypatch.setattr(module, "BUDGET", {"cpu": 100})
    pd.testing.assert_frame_equal(whole, measure_mixing(bert, [LONG, *WORDY], "value_zeroing"), atol=1e-6)


def test_far_tokens_are_out_of_sight_of_local_layers(loaded):
    encoder = loaded("modernbert")  # windows of 8 in layer 2, all tokens in layers 1 and 3
    table = measure_attention(encoder, [LONG])
    far = table[table["token_index"] > 4]
    seen = far.groupby("layer")["out_of"].sum()
    assert seen[2] == 0
    assert (seen[[1, 3]] > 0.1).all()
    zeroed = measure_mixing(encoder, [LONG], "value_zeroing")
    assert zeroed.loc[(zeroed["layer"] == 2) & (zeroed["token_index"] > 4), "score"].max() < 1e-6
    longformer = measure_mixing(loaded("longformer"), [LONG], "value_zeroing")
    assert longformer.loc[(longformer["layer"] == 1) & (longformer["token_index"] > 2), "score"].max() < 1e-6


@pytest.mark.parametrize(
    ("kind", "method", "why"),
    [
        ("fnet", "rollout", "fnet gives no attention weights"),
        ("fnet", "value_zeroing", "fnet keeps its value vectors where they cannot be zeroed"),
        ("longformer", "attention", "longformer has attention weights of another form"),
        ("yoso", "rollout", "yoso has attention weights of another form"),
        ("squeezebert", "rollout", "squeezebert has attention weights that do not sum to 1"),
        ("canine", "rollout", "canine has attention weights of another form"),
        ("canine", "value_zeroing", "canine has other positions inside than tokens"),
        ("xlnet", "value_zeroing", "xlnet keeps its value vectors where they cannot be zeroed"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(kind, method, why, loaded):
    encoder = loaded(kind)
    with pytest.raises(InputError, match=why) as error:
        measure_mixing(encoder, WORDY, method)
    assert "\n" not in str(error.value)
    if method == "rollout":
        with pytest.raises(InputError, match=why):
            measure_attention(encoder, WORDY)


def test_a_model_that_gives_none_is_seen_though_it_says_eager(bert, monkeypatch):
    """The fused kernels give an empty tuple."""
    monkeypatch.setattr(type(bert.model), "set_attn_implementation", lambda self, name: None)
    with pytest.raises(InputError, match="bert gives no attention weights"):
        measure_attention(bert, WORDY)


def test_the_model_is_as_before_also_after_an_error(folders, monkeypatch):
    for kind in ("bert", "opt"):  # opt's weights are those of a part of it
        encoder = load_encoder(folders(kind))
        readout = "cls" if kind == "bert" else "token[-1]"

        def state(model=encoder.model):
            return [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]

        encoder.model.train()
        before, batch = state(), encoder.batch([encoder.tokenize(["the cat"])[0]])
        output = encoder.forward(batch)[0] if kind == "bert" else None
        del output
        for method in METHODS:
            first = measure_mixing(encoder, WORDY, method, readout)
            pd.testing.assert_frame_equal(first, measure_mixing(encoder, WORDY, method, readout))
        with monkeypatch.context() as patched:
            patched.setattr(module, "_to_numpy", lambda tensor: 1 / 0)
            for method in ("rollout", "value_zeroing"):
                with pytest.raises(ZeroDivisionError):
                    measure_mixing(encoder, WORDY, method, readout)
        assert state() == before
        assert encoder.model.config._attn_implementation == "sdpa"
        encoder.model.eval()


def test_texts_without_the_position_have_no_scores(bert):
    for method in METHODS:
        table = measure_mixing(bert, ["", *WORDY], method, "token[2]")
        assert table.loc[table["text"] == 0, "score"].isna().all()
        assert table.loc[table["text"] > 0, "score"].notna().all()
        assert measure_mixing(bert, [], method).empty
    table = measure_attention(bert, ["", *WORDY], "token[2]")
    assert table.loc[table["text"] == 0, ["out_of", "into"]].isna().all(axis=None)
    assert summarise_heads(table)["value"].notna().any()
    assert measure_attention(bert, []).empty


def test_what_the_user_can_mend_is_one_line(bert):
    with pytest.raises(InputError, match="Did you mean 'rollout'"):
        measure_mixing(bert, WORDY, "rolout")
    with pytest.raises(InputError, match="'mean' is no position"):
        measure_mixing(bert, WORDY, readout="mean")


def test_tables_can_be_compared_with_each_other(bert):
    one, other = (measure_mixing(bert, WORDY, method) for method in ("rollout", "value_zeroing"))
    last = [table[table["layer"] == 3] for table in (one, other)]
    agreement = measure_agreement(*last)
    assert agreement["text"].tolist() == list(range(len(WORDY)))
    assert agreement["correlation"].between(-1, 1).all()
