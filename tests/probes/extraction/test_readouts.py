"""Every readout against a loop that a person can check, over masks of every kind."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from clsprobe.probes.encoders.tokenizing import Batch, text_seed
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import (
    DEFAULT,
    Max,
    Mean,
    Position,
    Token,
    Weighted,
    parse_readouts,
    split_names,
)

CLS, SEP, PAD = 101, 102, 0
NAMES = (*DEFAULT, "token[3]", "token[-2]", "token[9]")
PADDINGS = ("right", "left", "interior")


def batch_of(padding: str, seed: int, texts: int = 24, width: int = 14) -> Batch:
    """Texts of 0 to 10 content tokens, some with the ids of [CLS], [SEP] and padding, between a [CLS] and a [SEP]."""
    rng = np.random.default_rng(seed)
    ids, real = np.full((texts, width), PAD), np.zeros((texts, width), bool)
    special = np.zeros((texts, width), bool)
    for text in range(texts):
        content = rng.choice([7, 8, 9, CLS, SEP, PAD], size=min(text % 11, width - 2))
        tokens = [CLS, *content, SEP]
        if padding == "right":
            positions = np.arange(len(tokens))
        elif padding == "left":
            positions = np.arange(width - len(tokens), width)
        else:
            positions = np.sort(rng.choice(width, len(tokens), replace=False))
        ids[text, positions], real[text, positions], special[text, positions[[0, -1]]] = tokens, True, True
    special |= ~real if seed % 2 else False  # some tokenizers call padding special
    seeds = [text_seed(str(text)) for text in range(texts)]
    return Batch(*(torch.tensor(each) for each in (ids, real, special, np.array(seeds))), CLS, SEP)


def by_hand(name: str, hidden: np.ndarray, batch: Batch) -> np.ndarray:
    """(text, dim), one text after the other; NaN where it lacks the position."""
    rows = []
    for text, states in enumerate(hidden):
        real = [i for i in range(len(states)) if batch.real[text, i]]
        content = [i for i in real if not batch.special[text, i]]
        if name == "mean":
            rows.append(states[real].astype(np.float64).mean(0))
            continue
        if name == "max":
            rows.append(states[real].max(0))
            continue
        if name == "cls":
            positions = real[:1]
        elif name == "sep":
            positions = real[-1:]
        elif name == "random":
            positions = [content[int(batch.seeds[text]) % len(content)]] if content else []
        else:
            k = int(name[len("token[") : -1])
            positions = content[k - 1 : k] if k > 0 else content[k:][:1] if len(content) >= -k else []
        rows.append(states[positions[0]] if positions else np.full(states.shape[1], np.nan))
    return np.array(rows)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", NAMES)
def test_readouts_agree_with_a_loop(name, padding, poison):
    for seed in range(4):
        batch = batch_of(padding, seed)
        hidden = np.random.default_rng(seed).normal(size=(*batch.ids.shape, 5)).astype(np.float32) - 3
        hidden[~batch.real.numpy()] = poison  # padding may hold anything
        (readout,) = parse_readouts([name])
        vectors, expected = readout.read(torch.tensor(hidden), batch).numpy(), by_hand(name, hidden, batch)
        present = ~np.isnan(expected).any(1)
        assert np.array_equal(readout.present(batch).numpy(), present)
        np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-6)
        if isinstance(readout, Position):
            assert np.array_equal(vectors, expected, equal_nan=True)  # the token itself, bit for bit


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "max"])
def test_weights_are_a_distribution_over_real_tokens(name, padding):
    batch = batch_of(padding, 1)
    (readout,) = parse_readouts([name])
    assert isinstance(readout, Weighted)
    weights, present = readout.weights(batch), readout.present(batch)
    assert weights.shape == batch.ids.shape
    torch.testing.assert_close(weights.sum(1), present.float())
    assert (weights >= 0).all()
    assert not weights[~batch.real].any()
    # The base class reads by the weights alone; a readout that is quicker reads the same.
    hidden = torch.randn(*batch.ids.shape, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Weighted.read(readout, hidden, batch)[present], readout.read(hidden, batch)[present])


def test_a_weighted_readout_of_ones_own_is_one_method():
    class Content(Weighted):
        name = "content"

        def weights(self, batch):
            return batch.content / batch.content.sum(1, keepdim=True).clamp(min=1)

    batch = batch_of("interior", 0)
    hidden = torch.full((*batch.ids.shape, 2), torch.nan)
    hidden[batch.content] = 4.0
    read = Content().read(hidden, batch)[batch.content.any(1)]
    torch.testing.assert_close(read, torch.full_like(read, 4.0))


def test_pooling_in_half_precision_sums_in_float32():
    batch = batch_of("right", 0)
    hidden = torch.randn(*batch.ids.shape, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(Mean().read(hidden, batch), Mean().read(hidden.float(), batch), rtol=0, atol=0)


def test_sentence_transformers_pools_alike():
    from sentence_transformers.sentence_transformer.modules import Pooling

    batch = batch_of("right", 0)
    hidden = torch.randn(*batch.ids.shape, 6, generator=torch.Generator().manual_seed(0))
    for name in ("mean", "max", "cls"):
        pooled = Pooling(6, pooling_mode=name)(
            {"token_embeddings": hidden.clone(), "attention_mask": batch.real.long()}
        )
        (readout,) = parse_readouts([name])
        torch.testing.assert_close(readout.read(hidden, batch), pooled["sentence_embedding"], rtol=0, atol=1e-6)


def test_a_text_without_the_position_is_absent():
    batch = batch_of("right", 0)
    third = Token(3)
    absent = batch.content.sum(1) < 3
    assert 0 < absent.sum() < len(absent)
    assert torch.equal(third.present(batch), ~absent)
    assert third.read(torch.zeros(*batch.ids.shape, 2), batch).isnan().all(1).equal(absent)


def test_special_tokens_are_those_the_tokenizer_added():
    """[CLS] at the end, padding with the id of [SEP], and both ids among the words of the text."""
    ids = torch.tensor([[CLS, SEP, 7, SEP, CLS, SEP, SEP]])
    real, special = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1]]).bool()[:, None]
    batch = Batch(ids, real, special, torch.tensor([0]), CLS, SEP)
    positions = {
        readout.name: readout.position(batch).item() for readout in parse_readouts(["cls", "sep", "token1", "token-1"])
    }
    assert positions == {"cls": 4, "sep": 3, "token[1]": 0, "token[-1]": 2}


def test_a_text_of_no_tokens_has_no_maximum():
    nothing = torch.zeros(1, 1, dtype=torch.long)
    batch = Batch(nothing, nothing.bool(), nothing.bool(), nothing[0], CLS, SEP)
    assert not any(readout.present(batch).any() for readout in parse_readouts(NAMES))


def test_the_random_token_depends_on_the_text_alone():
    (random,) = parse_readouts(["random"])
    alone, padded = batch_of("right", 3), batch_of("left", 3)
    nth = [batch.content.cumsum(1)[torch.arange(24), random.position(batch)] for batch in (alone, padded)]
    has = alone.content.any(1)
    assert torch.equal(nth[0][has], nth[1][has])
    # ... and every token has its turn: 5 of them, 2,000 texts.
    ids = torch.ones(2000, 5, dtype=torch.long)
    seeds = torch.tensor([text_seed(f"text {i}") for i in range(2000)])
    drawn = random.position(Batch(ids, ids.bool(), ~ids.bool(), seeds, CLS, SEP)).bincount(minlength=5)
    assert drawn.min() > 320
    assert drawn.max() < 480


def test_text_seeds_are_the_same_in_every_process():
    assert text_seed("a cat") == 1872784879893673832
    code = "from clsprobe.probes.encoders.tokenizing import text_seed; print(text_seed('a cat'), text_seed('\\ud800'))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [str(text_seed("a cat")), str(text_seed("\ud800"))]
    assert 0 <= text_seed("a cat") < 2**62


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("token1", "token[1]"),
        ("token[1]", "token[1]"),
        ("token-1", "token[-1]"),
        ("token[-12]", "token[-12]"),
        ("token[01]", "token[1]"),
        *((name, name) for name in DEFAULT),
    ],
)
def test_names(given, name):
    (readout,) = parse_readouts([given])
    assert readout.name == name
    assert name in repr(readout)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["token[0]"], ("token[0]", "counted from 1")),
        (["token-0"], ("token-0", "counted from 1")),
        (["maen"], ("unknown readout 'maen'", "Did you mean 'mean'?", "cls, sep, random")),
        (["CLS"], ("Did you mean 'cls'?",)),
        (["token"], ("unknown readout 'token'",)),
        (["token[1"], ("unknown readout 'token[1'",)),
        (["token1]"], ("unknown readout",)),
        (["token[1.5]"], ("unknown readout",)),
        (["token[١]"], ("unknown readout",)),
        ([""], ("unknown readout ''",)),
        (["mean", "cls", "mean"], ("'mean' is given twice",)),
        (["token1", "token[1]"], ("'token[1]' is given twice",)),
        (["max", Max()], ("'max' is given twice",)),
        ([], ("no readout is named",)),
    ],
)
def test_wrong_names(names, words):
    with pytest.raises(InputError) as caught:
        parse_readouts(names)
    message = str(caught.value)
    assert message.startswith("--readouts: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_names_are_read_without_torch():
    code = (
        "import sys; from clsprobe.probes.extraction.readouts import parse_readouts, DEFAULT; parse_readouts(DEFAULT); "
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# -------------------------------------------------------------------------------------------- several tokens, or layers


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("tokens", [4, 14, 32])
def test_flatten_is_the_real_tokens_in_their_order_then_zeros(padding, tokens):
    batch = batch_of(padding, 3)
    hidden = torch.randn(*batch.ids.shape, 5)
    hidden[~batch.real] = torch.nan  # a pad may hold anything
    (readout,) = parse_readouts([f"flatten[{tokens}]"])
    expected = np.zeros((len(hidden), tokens, 5), np.float32)
    for text in range(len(hidden)):
        own = hidden[text, batch.real[text]].numpy()[:tokens]
        expected[text, : len(own)] = own
    vectors = readout.read(hidden, batch)
    assert readout.width(5) == tokens * 5
    assert np.array_equal(vectors.numpy(), expected.reshape(len(hidden), -1))
    (attention,) = parse_readouts([f"attention[{tokens}]"])
    assert torch.equal(attention.read(hidden, batch), vectors)


def test_a_projection_is_linear_keeps_lengths_and_is_the_same_every_time():
    batch = batch_of("right", 1)
    hidden = torch.randn(*batch.ids.shape, 64, generator=torch.Generator().manual_seed(0))
    flat, projected = parse_readouts(["flatten", "flatten_projected"])
    assert projected.width(64) == 64
    vectors, projections = flat.read(hidden, batch), projected.read(hidden, batch)
    assert torch.allclose(projected.read(2 * hidden, batch), 2 * projections, rtol=1e-5, atol=1e-5)
    ratio = projections.norm(dim=1) / vectors.norm(dim=1)
    assert abs(float(ratio.mean()) - 1) < 0.1
    swapped = hidden.clone()
    swapped[:, [1, 2]] = hidden[:, [2, 1]]
    long = batch.lengths > 4
    assert not torch.allclose(projected.read(swapped, batch)[long], projections[long], atol=0.1)  # it sees order
    mean = Mean()
    assert torch.allclose(
        mean.read(swapped, batch)[long], mean.read(hidden, batch)[long], atol=1e-5
    )  # which this does not


def test_cat_puts_readouts_beside_each_other():
    batch, names = batch_of("left", 2), ["cls", "token[3]", "mean"]
    hidden = torch.randn(*batch.ids.shape, 5)
    (cat,) = parse_readouts([f"cat({','.join(names)})"])
    parts = parse_readouts(names)
    assert cat.width(5) == 15
    assert torch.equal(cat.present(batch), parts[1].present(batch))  # only where all are there
    wanted = torch.cat([part.read(hidden, batch).float() for part in parts], 1)
    assert torch.equal(cat.read(hidden, batch).nan_to_num(7), wanted.nan_to_num(7))


def test_names_with_brackets_are_not_torn_apart():
    assert split_names("cls, cat(cls,mean),last4(cls),,flatten[8]") == [
        "cls",
        "cat(cls,mean)",
        "last4(cls)",
        "flatten[8]",
    ]
    assert [readout.name for readout in parse_readouts(split_names("cat(token1,max)+norm"))] == [
        "cat(token[1],max)+norm"
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cat(cls,men)", "Did you mean 'mean'"),
        ("cat(cls,cls)", "given twice"),
        ("cat()", "no readout is named"),
        ("cat(cls+norm,mean)", "cannot stand inside"),
        ("last2(last2(cls))", "cannot stand inside"),
        ("last4(cls,mean)", "unknown readout"),
        ("last4(cls)+norm", "unknown readout"),
        ("flatten[0]", "unknown readout"),
        ("flaten", "Did you mean 'flatten'"),
    ],
)
def test_wrong_compositions_are_refused(name, told):
    with pytest.raises(InputError, match=re.escape(told)):
        parse_readouts([name])
