"""Attribution: captum and closed forms agree, planted tokens are named, gaps are marked, broken twins are caught."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import captum.attr
import captum.metrics
import numpy as np
import pandas as pd
import pytest
import torch
from models import TEXTS, save, tokenizer
from scipy.stats import spearmanr

from clsprobe import load_encoder
from clsprobe.analysis.formation import attribution
from clsprobe.analysis.formation.agreement import summarise_twins
from clsprobe.analysis.formation.attribution import (
    BASELINES,
    METHODS,
    MOST,
    Target,
    attribute,
    compare_randomised,
    compare_with_twins,
    compute_direction,
    measure_agreement,
    measure_infidelity,
)
from clsprobe.probes.encoders.adapters import Adapter
from clsprobe.probes.encoders.describing import Description
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.tap import tap
from clsprobe.probes.encoders.tokenizer_files import LoadedTokenizer
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.linear import LogisticProbe, RidgeProbe

pytestmark = pytest.mark.usefixtures("one_thread")

DIM = 16
WORDY = [text for text in TEXTS if len(text.split()) > 4]


@pytest.fixture(scope="module", params=["bert", "roberta", "modernbert", "xlnet"])
def encoder(request, tmp_path_factory) -> Encoder:
    return load_encoder(str(save(request.param, tmp_path_factory.mktemp(request.param))))


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Encoder:
    return load_encoder(str(save("bert", tmp_path_factory.mktemp("bert"))))


def drawn(seed: int = 0, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape or (DIM,)).astype(np.float32)


# ------------------------------------------------------------------------------------- encoders with a known answer


class Planted(torch.nn.Module):
    """Its first token takes `shares` (token,) of the others in layer `at`, from 2 on; every other layer does nothing.

    bend: what is done to the sum, nothing for a model that is linear in its embeddings.
    """

    def __init__(self, seed: int, shares: list[float], at: int, bend=lambda hidden: hidden, layers: int = 4) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(60, DIM)
        self.words.weight.data = torch.from_numpy(drawn(seed, 60, DIM))
        self.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(layers))
        self.shares, self.at, self.bend = torch.tensor(shares), at, bend

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask, output_hidden_states, output_attentions):
        hidden = self.words(input_ids)
        for number, layer in enumerate(self.layers, 1):
            if number == self.at:
                n, real = min(len(self.shares), hidden.shape[1]), hidden * attention_mask[..., None]
                taken = self.bend(torch.einsum("t,btd->bd", self.shares[:n], real[:, :n]))
                hidden = torch.cat([(hidden[:, 0] + taken)[:, None], hidden[:, 1:]], 1)
            hidden = layer(hidden)
        return SimpleNamespace(last_hidden_state=hidden)


def planted(seed: int, shares: list[float], at: int = 2, **more) -> Encoder:
    model = Planted(seed, shares, at, **more).eval().requires_grad_(False)
    described = Description("planted", Path(), {"model_type": "bert"}, len(model.layers), DIM, 40, 40)
    adapter = Adapter("layers.*")
    words = LoadedTokenizer(tokenizer("bert"))
    return Encoder(described, model, words, list(model.layers), torch.device("cpu"), torch.float32, adapter=adapter)


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_model_has_its_closed_form(method):
    shares, direction = [0.0, 0.5, -1.0, 2.0, 0.25, 1.5, 0.125], drawn(7)
    encoder = planted(3, shares)
    table = attribute(Target(encoder, direction, layer=3), WORDY, method)
    words, mask = encoder.model.words.weight.double().numpy(), encoder.tokenizer.mask_token_id
    ids = np.array(encoder.tokenizer.convert_tokens_to_ids(list(table["token"])))
    padded = np.array([*shares, *[0.0] * 40])
    expected = padded[table["token_index"]] * ((words[ids] - words[mask]) @ direction.astype(np.float64))
    expected[table["special"]] = 0
    assert np.abs(table["score"] - expected).max() <= 1e-6 * np.abs(expected).max()
    assert table["complete"].all()


@pytest.mark.parametrize("baseline", BASELINES)
def test_every_baseline_has_its_closed_form(baseline):
    shares, direction = [0.0, 0.5, -1.0, 2.0, 0.25, 1.5, 0.125], drawn(7)
    encoder = planted(3, shares)
    table = attribute(Target(encoder, direction, layer=3, baseline=baseline), WORDY)
    words = encoder.model.words.weight.double().numpy()
    replaced_by = {
        "mask": words[encoder.tokenizer.mask_token_id],
        "padding": words[encoder.tokenizer.pad_token_id],
        "zero": np.zeros(DIM),
        "mean": words.mean(0),
    }[baseline]
    ids = np.array(encoder.tokenizer.convert_tokens_to_ids(list(table["token"])))
    padded = np.array([*shares, *[0.0] * 40])
    expected = padded[table["token_index"]] * ((words[ids] - replaced_by) @ direction.astype(np.float64))
    expected[table["special"]] = 0
    assert np.abs(table["score"] - expected).max() <= 1e-5 * np.abs(expected).max()
    assert table["complete"].all()


@pytest.mark.parametrize("method", METHODS)
def test_the_token_and_the_layer_of_a_copy_are_named_in_30_seeds_of_30(method):
    """[CLS] copies token 3 at layer j; below layer j no token moves it."""
    for seed in range(30):
        j = 2 + seed % 3
        encoder = planted(seed, [0, 0, 0, 1.0], j, bend=torch.tanh)
        target = [Target(encoder, drawn(seed + 100), layer=layer) for layer in (j - 1, j)]
        below, table = (attribute(one, ["the cat sees the dog", "a big bird runs in"], method) for one in target)
        assert (below["score"].abs() <= 1e-6 * table["score"].abs().max()).all()
        strongest = table.loc[table["score"].abs().groupby(table["text"]).idxmax()]
        assert (strongest["token_index"] == 3).all(), seed
        others = table.loc[table["token_index"] != 3, "score"]
        assert (others.abs() <= 1e-6 * table["score"].abs().max()).all()


# -------------------------------------------------------------------------------------------------- outside oracles


class _Stop(Exception):
    pass


def number(encoder: Encoder, direction: np.ndarray, layer: int):
    """ids, mask -> (text,) [CLS] of a layer along a direction, written without that module."""

    def forward(ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        seen = {}
        with tap(encoder, lambda at, hidden: seen.setdefault(at, hidden), [layer]):
            encoder.model(input_ids=ids, attention_mask=real)
        at = (ids == encoder.cls_id).long().argmax(1)
        return seen[layer][torch.arange(len(ids)), at] @ torch.from_numpy(direction)

    return forward


def alone(encoder: Encoder, text: str, token: str = "mask") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, mask and the ids of the baseline of one text."""
    batch = encoder.batch([encoder.tokenize([text])[0]])
    blank = batch.ids.where(batch.special, getattr(encoder.tokenizer, f"{token}_token_id"))
    return batch.ids, batch.real.long(), blank


def test_integrated_gradients_are_captums(encoder):
    if encoder.description.model_type == "xlnet":
        pytest.skip("captum hooks (token, batch, dim) as (batch, token, dim)")
    for layer in (1, 3):
        direction = drawn(layer)
        forward = number(encoder, direction, layer)
        theirs = captum.attr.LayerIntegratedGradients(forward, encoder.model.get_input_embeddings())
        table = attribute(Target(encoder, direction, layer=layer), WORDY)
        for text, own in table.groupby("text"):
            ids, real, blank = alone(encoder, WORDY[text])
            steps = int(own["steps"].iloc[0])
            actual = theirs.attribute(ids, blank, additional_forward_args=(real,), n_steps=steps).sum(-1)[0].numpy()
            assert np.abs(actual - own["score"]).max() <= 1e-4 * np.abs(actual).max()


def test_another_baseline_is_captums_too(bert):
    direction = drawn(1)
    theirs = captum.attr.LayerIntegratedGradients(number(bert, direction, 3), bert.model.get_input_embeddings())
    table = attribute(Target(bert, direction, layer=3, baseline="padding"), WORDY[:2])
    for text, own in table.groupby("text"):
        ids, real, blank = alone(bert, WORDY[text], "pad")
        steps = int(own["steps"].iloc[0])
        actual = theirs.attribute(ids, blank, additional_forward_args=(real,), n_steps=steps).sum(-1)[0].numpy()
        assert np.abs(actual - own["score"]).max() <= 1e-4 * np.abs(actual).max()
        assert (own.loc[own["special"], "score"] == 0).all()


def test_input_x_gradient_is_captums_gradient(bert):
    direction = drawn(1)
    words = bert.model.get_input_embeddings()
    theirs = captum.attr.LayerGradientXActivation(number(bert, direction, 2), words, multiply_by_inputs=False)
    table = attribute(Target(bert, direction, layer=2), WORDY, "input_x_gradient")
    for text, own in table.groupby("text"):
        ids, real, blank = alone(bert, WORDY[text])
        gradient = theirs.attribute(ids, additional_forward_args=(real,))
        actual = (gradient * (words(ids) - words(blank))).sum(-1)[0].detach().numpy()
        np.testing.assert_allclose(own["score"], actual, atol=1e-5 * np.abs(actual).max())


def test_ablation_is_the_text_with_the_mask_token_in_it(encoder):
    direction = drawn(2)
    table = attribute(Target(encoder, direction, layer=3), WORDY[:2], "feature_ablation")
    forward = number(encoder, direction, 3) if encoder.description.model_type != "xlnet" else None
    for text, own in table.groupby("text"):
        ids, real, blank = alone(encoder, WORDY[text])
        if forward is None:
            continue
        with torch.no_grad():
            whole = forward(ids, real).item()
            for at, score in zip(own["token_index"], own["score"], strict=True):
                changed = ids.clone()
                changed[0, at] = blank[0, at]
                assert score == pytest.approx(whole - forward(changed, real).item(), abs=2e-5)


def test_value_and_baseline_are_those_of_the_texts(encoder):
    direction = drawn(3)
    table = attribute(Target(encoder, direction, layer=2), WORDY, "input_x_gradient")
    states = Extractor(encoder, ["cls"], layers=[2])
    firsts = table.groupby("text")[["value", "baseline"]].first()
    np.testing.assert_allclose(firsts["value"], states(WORDY).cell(2, "cls") @ direction, atol=1e-4)
    lengths = table[~table["special"]].groupby("text").size()
    rows = [encoder.tokenize([WORDY[text]])[0] for text in lengths.index]
    blank = [replace(row, ids=np.where(row.special, row.ids, encoder.tokenizer.mask_token_id)) for row in rows]
    found = []
    for row in blank:
        with tap(encoder, lambda layer, hidden: found.append(hidden), [2]):
            encoder.forward(encoder.batch([row]))
    at = [(row.ids == encoder.cls_id).argmax() for row in blank]
    expected = [hidden[0, i].numpy() @ direction for hidden, i in zip(found, at, strict=True)]
    np.testing.assert_allclose(firsts["baseline"], expected, atol=1e-4)


# ----------------------------------------------------------------------------------------------------- completeness


def unmarked(table: pd.DataFrame) -> pd.DataFrame:
    """Texts whose scores miss the change by more than 1 % and are not marked, counted from the table alone."""
    texts = table.groupby("text").agg(
        score=("score", "sum"), value=("value", "first"), baseline=("baseline", "first"), complete=("complete", "all")
    )
    change = texts["value"] - texts["baseline"]
    scale = np.maximum(change.abs(), texts["value"].std(ddof=0))
    return texts[((texts["score"] - change).abs() > 0.0101 * scale + 1e-5) & texts["complete"]]


def steep(hidden: torch.Tensor) -> torch.Tensor:
    return torch.tanh(30 * hidden)


@pytest.mark.parametrize("method", METHODS)
def test_no_gap_above_one_per_cent_is_unmarked(encoder, method):
    curved = planted(1, [0.0, *[0.3] * 20], bend=steep)
    for one in (encoder, curved):
        assert unmarked(attribute(Target(one, drawn(4), layer=3), WORDY, method)).empty


def test_steps_are_doubled_until_the_gap_is_closed_and_the_rest_is_marked():
    table = attribute(Target(planted(1, [0.0, *[0.3] * 20], bend=steep), drawn(4), layer=3), WORDY, steps=4)
    assert table.groupby("text")["steps"].first().nunique() > 1
    assert table["complete"].all()
    cliff = planted(1, [0.0, *[0.3] * 20], bend=lambda hidden: torch.tanh(1e5 * hidden))  # no step meets the slope
    table = attribute(Target(cliff, drawn(4), layer=3), WORDY[:3])
    assert not table["complete"].all()
    assert (table.loc[~table["complete"], "steps"] == MOST).all()
    assert (table.loc[~table["complete"], "gap"] > 0.01).all()


def test_half_of_the_gradient_lost_is_marked(bert, monkeypatch):
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: tuple(0.5 * one for one in grad(*a, **k)))
    table = attribute(Target(bert, drawn(), layer=3), WORDY[:2])
    assert not table["complete"].any()
    assert unmarked(table).empty


def test_dropout_is_off_and_its_mode_comes_back(bert, monkeypatch):
    target = Target(bert, drawn(), layer=3)
    expected = attribute(target, WORDY)["score"]
    bert.model.train()
    try:
        pd.testing.assert_series_equal(attribute(target, WORDY)["score"], expected)
        assert bert.model.training

        @contextmanager
        def careless(model):
            yield

        monkeypatch.setattr(attribution, "evaluating", careless)
        apart = (
            attribute(target, WORDY, "input_x_gradient")["score"]
            - attribute(target, WORDY, "input_x_gradient")["score"]
        )
        assert apart.abs().max() > 0.01 * expected.abs().max(), "in train mode two calls differ"
    finally:
        bert.model.eval()


# ---------------------------------------------------------------------------------------------------------- batches


def test_a_text_has_the_same_scores_alone_and_among_others(encoder):
    target = Target(encoder, drawn(5), layer=3, readout="mean")
    together = attribute(target, TEXTS, "input_x_gradient")
    for text in (0, 3, 8):
        own = together.loc[together["text"] == text, "score"].to_numpy()
        np.testing.assert_allclose(
            own, attribute(target, [TEXTS[text]], "input_x_gradient")["score"], atol=1e-4 * max(np.abs(own).max(), 1)
        )


@pytest.mark.parametrize("readout", ["sep", "token[2]", "mean", "max", "cat(cls,mean)", "last2(cls)", "cls+norm"])
def test_every_readout_can_be_explained(readout, tmp_path_factory):
    encoder = load_encoder(str(save("modernbert", tmp_path_factory.mktemp("readout"))))
    width = 2 * DIM if readout.startswith(("cat", "last")) else DIM
    table = attribute(Target(encoder, drawn(6, width), layer=3, readout=readout), TEXTS)
    layers = [2, 3] if readout.startswith("last") else [3]
    cell = Extractor(encoder, [readout], layers=layers)(TEXTS).cell(3, readout)
    expected = cell @ drawn(6, width)
    np.testing.assert_allclose(table.groupby("text")["value"].first(), expected, atol=1e-4, equal_nan=True)
    absent = np.isnan(expected)
    assert absent.any() == (readout == "token[2]")
    assert (table["score"].isna() == absent[table["text"]]).all()
    assert not table.loc[table["score"].isna(), "complete"].any()
    assert unmarked(table.dropna()).empty


def test_every_text_can_have_a_direction_of_its_own(bert):
    each = drawn(8, len(TEXTS), DIM)
    table = attribute(Target(bert, each, layer=2), TEXTS)
    for text in (0, 3):
        own = attribute(Target(bert, each[text], layer=2), [TEXTS[text]])["score"].to_numpy()
        np.testing.assert_allclose(table.loc[table["text"] == text, "score"], own, atol=1e-4)
    with pytest.raises(InputError, match="is given for 10 texts, not 1"):
        attribute(Target(bert, each, layer=2), TEXTS[:1])


def test_hooks_are_gone_also_after_an_error(bert):
    def hooks():
        return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in bert.model.modules()]

    before, batch = hooks(), bert.batch([bert.tokenize(["the cat"])[0]])
    output = bert.forward(batch)[0]
    target = Target(bert, drawn(), layer=2)
    attribute(target, WORDY)
    with suppress(ZeroDivisionError):
        next(target.run(target.rows(WORDY), np.zeros(1, int), lambda items, width: 1 / 0))
    assert hooks() == before
    assert torch.equal(bert.forward(batch)[0], output)
    assert not output.requires_grad


def test_no_text_gives_an_empty_table(bert):
    for method in METHODS:
        assert attribute(Target(bert, drawn(), layer=2), [], method).empty


def test_what_the_user_can_mend_is_one_line(bert, monkeypatch):
    with pytest.raises(InputError, match="Did you mean 'integrated_gradients'"):
        attribute(Target(bert, drawn(), layer=2), ["the cat"], "integrated_gradient")
    with pytest.raises(InputError, match="the direction: has 5 numbers, cls at layer 2 has 16"):
        Target(bert, np.zeros(5), layer=2)
    with pytest.raises(InputError, match="Did you mean 'padding'"):
        Target(bert, drawn(), layer=2, baseline="pading")
    with pytest.raises(InputError, match="this model has layers 0"):
        Target(bert, drawn(), layer=9)
    with pytest.raises(InputError, match="no norm follows the last layer"):
        Target(bert, drawn(), layer=3, readout="cls+norm")

    def none(model):
        raise NotImplementedError  # as CANINE, which hashes its characters

    monkeypatch.setattr(Planted, "get_input_embeddings", none)
    with pytest.raises(InputError, match="has no table of token embeddings"):
        Target(planted(0, [1.0]), drawn(), layer=2)


# ------------------------------------------------------------------------------------------------------- directions


@pytest.mark.parametrize("classes", [2, 4])
def test_a_direction_is_the_change_of_log_odds(classes):
    X, y = drawn(0, 200, 5), np.arange(200) % classes
    X[:, 0] += 3 * y
    labels = np.array(["a", "b", "c", "d"])[y]
    probe = LogisticProbe().fit(X * [1, 10, 0.1, 1, 1], labels)
    direction = compute_direction(probe, "b")
    actual = probe.predict_log_proba(X)
    odds = actual[:, 1] - np.delete(actual, 1, 1).mean(1)
    np.testing.assert_allclose(odds - odds[0], (X - X[0]) @ direction, atol=1e-4 * np.ptp(odds))
    np.testing.assert_allclose(compute_direction(probe), compute_direction(probe, labels[classes - 1]))
    with pytest.raises(ValueError, match="'z' is no class of this probe"):
        compute_direction(probe, "z")


def test_a_direction_can_be_against_one_other_class():
    X, y = drawn(0, 200, 5), np.arange(200) % 4
    X[:, 0] += 3 * y
    probe = LogisticProbe().fit(X, np.array(["a", "b", "c", "d"])[y])
    direction, actual = compute_direction(probe, "b", against="d"), probe.predict_log_proba(X)
    odds = actual[:, 1] - actual[:, 3]
    np.testing.assert_allclose(odds - odds[0], (X - X[0]) @ direction, atol=1e-4 * np.ptp(odds))
    with pytest.raises(ValueError, match="'z' is no class of this probe"):
        compute_direction(probe, "b", against="z")


def test_a_direction_of_numbers_is_the_change_of_what_is_told():
    X = drawn(0, 100, 5)
    probe = RidgeProbe().fit(X, X[:, 1] * 3 + 1)
    actual = probe.predict(X)
    np.testing.assert_allclose(actual - actual[0], (X - X[0]) @ compute_direction(probe), atol=1e-4)


# ------------------------------------------------------------------------------------------- can it be believed?


def test_infidelity_is_captums(bert):
    direction, draws = drawn(1), 6
    target = Target(bert, direction, layer=3)
    table = attribute(target, WORDY)
    ours = measure_infidelity(target, WORDY, table, draws=draws, seed=3)
    gone = np.random.default_rng(3).random((draws, len(table))) < 0.5
    words = bert.model.get_input_embeddings()
    for text, own in table.groupby("text"):
        ids, real, blank = alone(bert, WORDY[text])
        own_gone = torch.from_numpy(gone[:, own.index] & ~own["special"].to_numpy())
        x, base = words(ids), words(blank)

        def forward(embedded, real=real):
            states = bert.model(inputs_embeds=embedded, attention_mask=real.expand(len(embedded), -1))
            return states.last_hidden_state[:, 0] @ torch.from_numpy(direction)

        def perturb(embedded, own_gone=own_gone, x=x, base=base):
            apart = (x - base) * own_gone[..., None]
            return own_gone[..., None].float().expand_as(apart), embedded - apart

        scores = torch.from_numpy(own["score"].to_numpy(np.float32))[None, :, None].expand(-1, -1, DIM) / DIM
        theirs = captum.metrics.infidelity(forward, perturb, x, scores, n_perturb_samples=draws)
        assert ours["infidelity"][text] == pytest.approx(theirs.item(), rel=1e-3, abs=1e-6)


def test_infidelity_is_none_for_a_linear_model_and_all_for_no_scores():
    target = Target(planted(3, [0.0, 0.5, -1.0, 2.0, 0.25]), drawn(7), layer=3)
    table = attribute(target, WORDY)
    actual = measure_infidelity(target, WORDY, table)
    assert (actual["infidelity"] <= 1e-9 * actual["change"]).all()
    nothing = measure_infidelity(target, WORDY, table.assign(score=0.0))
    pd.testing.assert_series_equal(nothing["infidelity"], nothing["change"], check_names=False)
    with pytest.raises(ValueError, match="tokens, the texts have"):
        measure_infidelity(target, WORDY[:1], table)


def test_agreement_is_spearmans(bert):
    one, other = (attribute(Target(bert, drawn(seed), layer=3), TEXTS, "input_x_gradient") for seed in (0, 1))
    other["score"] = other["score"].round(1)  # with ties
    agreement = measure_agreement(one, other)
    for text, correlation, magnitude in agreement.itertuples(index=False):
        a, b = (t[(t["text"] == text) & ~t["special"]]["score"] for t in (one, other))
        if len(a) < 3 or b.nunique() < 2 or a.nunique() < 2:
            assert np.isnan(correlation)
        else:
            assert correlation == pytest.approx(spearmanr(a, b).statistic)
            assert np.isnan(magnitude) or magnitude == pytest.approx(spearmanr(a.abs(), b.abs()).statistic)
    own = measure_agreement(one, one).dropna()
    assert (own["correlation"] > 1 - 1e-12).all()
    assert (measure_agreement(one, one.assign(score=-one["score"])).dropna()["correlation"] < 1e-12 - 1).all()


def test_random_weights_would_have_been_given_other_scores():
    encoder = load_encoder()
    texts = [f"{who} {did} the {what} near the old river" for who in ("she", "the farmer") for did in ("sold", "sees")
             for what in ("red boat", "small dog", "letters", "last of the apples")]  # fmt: skip
    target = Target(encoder, drawn(0, 384), layer=5)
    table = attribute(target, texts, "input_x_gradient")
    actual = compare_randomised(target, texts, table)["correlation"]
    assert len(actual) == len(texts)
    assert abs(actual.mean()) < 0.35
    again = measure_agreement(table, attribute(target, texts, "input_x_gradient"))["correlation"]
    assert (again > 0.99).all()


# ------------------------------------------------------------------------------------------------- pairs that differ

NOUNS = ("cat", "dog", "bird", "tree", "house", "fish")
PAIRS = [(f"the {a} sees a big dog", f"the {b} sees a big dog") for a, b in combinations(NOUNS, 2)]
NOUN = [np.array([2])] * len(PAIRS)  # [CLS] the NOUN


def test_scores_of_the_word_that_differs_are_the_change_where_f_is_linear():
    target = Target(planted(3, [0.0, 0.5, -1.0, 2.0, 0.25, 1.5, 0.125]), drawn(7), layer=3)
    table = compare_with_twins(target, PAIRS, NOUN)
    np.testing.assert_allclose(table["scores"], table["change"], atol=1e-5 * table["change"].abs().max())
    values = [attribute(target, list(pair), "input_x_gradient").groupby("text")["value"].first() for pair in PAIRS[:3]]
    np.testing.assert_allclose(table["change"][:3], [value[1] - value[0] for value in values], rtol=1e-4)
    assert table["complete"].all()
    summary = summarise_twins(table, [one for one, _ in PAIRS]).set_index("measure")
    np.testing.assert_allclose(summary.loc[["correlation", "slope", "share"], "value"], 1, atol=1e-3)


def test_scores_of_another_word_are_not_the_change():
    """The broken twin: the words beside the one that differs get the same scores in both texts."""
    target = Target(planted(3, [0.0, 0.5, -1.0, 2.0, 0.25, 1.5, 0.125]), drawn(7), layer=3)
    table = compare_with_twins(target, PAIRS, [np.array([3])] * len(PAIRS))
    assert table["scores"].abs().max() < 1e-5 * table["change"].abs().max()


def test_scores_that_miss_the_change_are_noticed(bert):
    target = Target(bert, drawn(), layer=3)
    table = compare_with_twins(target, PAIRS, NOUN)
    everything = compare_with_twins(target, PAIRS, [np.arange(1, 7)] * len(PAIRS))
    np.testing.assert_allclose(everything["scores"], everything["change"], atol=0.03 * table["change"].abs().max())
    halved = summarise_twins(table.assign(scores=table["change"] / 2), [one for one, _ in PAIRS])
    np.testing.assert_allclose(halved["value"], [1, 2, 0.5])
    turned = summarise_twins(table.assign(scores=-table["change"]), [str(i) for i in range(len(PAIRS))])
    np.testing.assert_allclose(turned["value"], -1)
