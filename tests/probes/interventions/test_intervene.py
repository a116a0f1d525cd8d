"""Changes of the forward pass: edges that are cut, layers that are altered, passes that go on from the middle."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import models
import pytest
import torch

from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.encoders.tap import evaluating, tap
from clsprobe.probes.errors import InputError
from clsprobe.probes.interventions import changes, replaying
from clsprobe.probes.interventions.changes import (
    EDGES,
    alter_layer,
    check_changes,
    knockout,
    restore_attention,
    select_tokens,
)
from clsprobe.probes.interventions.passes import find_attention_outputs, find_cls, record_passes
from clsprobe.probes.interventions.replaying import replay

pytestmark = pytest.mark.usefixtures("one_thread")

MASKED = (
    "bert", "roberta", "distilbert", "mpnet", "electra", "xlm-roberta", "camembert", "albert", "albert-2", "bart",
    "deberta", "deberta-v2", "eurobert", "megatron-bert", "mobilebert", "modernbert", "nomic_bert", "rembert",
    "roberta-prelayernorm",
)  # fmt: skip
# one does not load here, and one takes many seconds to
REFUSED = tuple(shape for shape in models.SHAPES if shape not in (*MASKED, "flaubert-pre", "canine"))
TEXTS = [text for text in models.TEXTS if len(text.split()) < 20]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Shape -> encoder, each made and loaded once."""
    encoders = {}

    def load(shape):
        if shape not in encoders:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                encoders[shape] = load_encoder(str(models.save(shape, tmp_path_factory.mktemp(shape))), device="cpu")
        return encoders[shape]

    return load


def make_batch(encoder, texts=TEXTS):
    return encoder.batch(encoder.tokenize(texts, encoder.description.max_length))


def record_states(encoder, batch):
    """Every layer of a whole pass."""
    layers = []
    with tap(encoder, lambda layer, hidden: layers.append(hidden.clone())):
        encoder.forward(batch)
    return layers


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return {(name, kind): dict(getattr(m, kind)) for name, m in model.named_modules() for kind in kinds}


# ------------------------------------------------------------------------------------------------------ what is cut


def record_attention(encoder, batch):
    """(layer, batch, head, query, key) as the eager attention computes it."""
    weights, handles = [], []
    for block in encoder.blocks:
        handles.append(block.attention.self.register_forward_hook(lambda m, a, out: weights.append(out[1].clone())))
    try:
        encoder.forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(weights)


@pytest.fixture(scope="module")
def eager(tmp_path_factory):
    encoder = load_encoder(str(models.save("bert", tmp_path_factory.mktemp("eager"))), device="cpu")
    encoder.model.set_attn_implementation("eager")
    return encoder


@pytest.mark.parametrize("edges", [*EDGES, "token[2]->cls", "cls->token[-1]", "all->all"])
def test_cut_edges_carry_nothing_and_the_others_share_their_weight(eager, edges):
    batch, layer = make_batch(eager), 2
    source, target = (select_tokens(name)(batch) for name in edges.split("->"))
    itself = torch.eye(batch.ids.shape[1], dtype=torch.bool)
    cut = (target[:, :, None] & source[:, None, :] & ~itself)[:, None].expand(-1, 2, -1, -1)
    before = record_attention(eager, batch)
    with knockout(eager, edges, [layer]):
        after = record_attention(eager, batch)
    assert (after[layer - 1][cut] == 0).all()
    assert cut.any()
    torch.testing.assert_close(after.sum(-1), torch.ones_like(after.sum(-1)))
    kept = before[layer - 1].where(~cut, 0)
    torch.testing.assert_close(after[layer - 1], kept / kept.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5)
    assert torch.equal(after[0], before[0])  # the layer below
    assert not torch.equal(after[2], before[2])  # sees another input, and is whole
    assert (after[2][cut & (before[2] > 0)] > 0).all()


def test_a_mask_never_empties_a_row(eager):
    batch = make_batch(eager, ["", "cat"])  # of the first, only [CLS] and [SEP] are there
    with knockout(eager, "all->all", [1, 2, 3]):
        weights, seen = record_attention(eager, batch), record_states(eager, batch)
    assert weights.isfinite().all()
    assert all(hidden.isfinite().all() for hidden in seen)
    itself = torch.eye(batch.ids.shape[1], dtype=torch.bool) & batch.real[:, :, None]
    assert (weights[:, :, 0][itself.expand(3, -1, -1, -1)] == 1).all()


def test_cls_that_is_cut_off_everywhere_is_one_vector_for_every_text(loaded):
    encoder = loaded("bert")
    with knockout(encoder, "rest->cls", [1, 2, 3]):
        cut = record_states(encoder, make_batch(encoder))[-1][:, 0]
    torch.testing.assert_close(cut, cut[:1].expand_as(cut))
    whole = record_states(encoder, make_batch(encoder))[-1][:, 0]
    assert (whole - whole[:1]).abs().max() > 0.1


def test_literal_special_tokens_of_a_text_are_content(loaded):
    encoder = loaded("bert")
    batch = make_batch(encoder, ["the [CLS] cat [SEP] sees [PAD] the dog"])
    with knockout(encoder, "content->cls", [1]):
        hooked = record_states(encoder, batch)  # finds the tokens by their ids
    with evaluating(encoder.model), record_passes(encoder, 1) as record:
        recorded = record(batch)  # knows the batch
    with knockout(encoder, "content->cls", [1]):
        torch.testing.assert_close(recorded.run(0, recorded.hidden[0], 1), hooked[1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("content", "edges: unknown name 'content'"),
        ("contents->cls", "tokens: unknown name 'contents'. Did you mean 'content'?"),
        ("content->token[0]", "content tokens are counted from 1"),
    ],
)
def test_a_name_that_is_none_is_told(loaded, name, message):
    with pytest.raises(InputError) as caught, knockout(loaded("bert"), name, [1]):
        pass
    assert message in str(caught.value)


@pytest.mark.parametrize("layers", [[0], [4], [1, 1], []])
def test_a_layer_that_is_no_block_is_told(loaded, layers):
    with pytest.raises(InputError), knockout(loaded("bert"), "rest->cls", layers):
        pass


# ------------------------------------------------------------------------------------------- which encoders, and after


@pytest.mark.parametrize("shape", MASKED)
def test_edges_are_cut_in_every_architecture_with_a_mask_and_nothing_stays(loaded, shape):
    encoder, last = loaded(shape), len(loaded(shape).blocks)
    foreign = encoder.blocks[0].register_forward_pre_hook(lambda module, args: None)
    batch, installed = make_batch(encoder), hooks(encoder.model)
    before = record_states(encoder, batch)
    with suppress(ZeroDivisionError), knockout(encoder, "rest->cls", range(1, last + 1)):
        cut = record_states(encoder, batch)
        raise ZeroDivisionError
    with alter_layer(encoder, 0, lambda hidden, _: -hidden):
        flipped = record_states(encoder, batch)
    assert hooks(encoder.model) == installed
    assert all(torch.equal(a, b) for a, b in zip(before, record_states(encoder, batch), strict=True))
    assert not torch.allclose(flipped[-1], before[-1])
    if shape != "mobilebert":  # whose [CLS] knows the next token from the embeddings on
        first = cut[-1][select_tokens("cls")(batch)]
        torch.testing.assert_close(first, first[:1].expand_as(first), atol=1e-4, rtol=1e-4)
    foreign.remove()


@pytest.mark.parametrize("shape", REFUSED)
def test_an_attention_that_takes_no_mask_is_refused_in_one_line(loaded, shape):
    encoder = loaded(shape)
    with pytest.raises(InputError) as caught, knockout(encoder, "rest->cls", [1]):
        pass
    assert "\n" not in str(caught.value)
    lacks_cls = shape in ("gpt2", "llama", "opt", "t5")
    assert ("adds no [CLS]" if lacks_cls else "takes no mask that cuts single edges") in str(caught.value)


def test_an_encoder_that_ignores_the_mask_would_be_seen(loaded, monkeypatch):
    """The broken twins: a mask that is left as it was, and one that cuts another row."""
    monkeypatch.setattr(changes, "_mask_edges", lambda mask, allowed, dtype: mask)
    assert not changes._is_sound(loaded("bert"))
    monkeypatch.undo()
    mask_edges = changes._mask_edges
    monkeypatch.setattr(
        changes, "_mask_edges", lambda mask, allowed, dtype: mask_edges(mask, allowed.roll(1, 1), dtype)
    )
    assert not changes._is_sound(loaded("bert"))
    monkeypatch.undo()
    assert changes._is_sound(loaded("bert"))


# ------------------------------------------------------------------------------------------------- from the middle on


@pytest.mark.parametrize("shape", ["bert", "albert-2", "deberta-v2", "modernbert"])
def test_a_pass_that_goes_on_from_the_middle_is_the_whole_pass(loaded, shape):
    encoder, batch = loaded(shape), make_batch(loaded(shape))
    last = len(encoder.blocks)
    with evaluating(encoder.model), record_passes(encoder, last) as record:
        recorded = record(batch)
    intact = record_states(encoder, batch)
    assert all(torch.equal(a, b) for a, b in zip(recorded.hidden, intact, strict=True))
    for first in range(1, last + 1):
        with knockout(encoder, "content->cls", [first]):
            whole, rest = record_states(encoder, batch), recorded.run(first - 1, recorded.hidden[first - 1], last)
        assert torch.equal(whole[-1], rest)
        with alter_layer(encoder, first - 1, lambda hidden, batch: hidden.where(batch.content[..., None], 0)):
            whole, rest = record_states(encoder, batch), recorded.run(first - 1, recorded.hidden[first - 1], last)
        assert torch.equal(whole[-1], rest)


def test_changes_of_one_pass_add_up(loaded):
    encoder, batch = loaded("bert"), make_batch(loaded("bert"))
    with knockout(encoder, "content->cls", [1, 2, 3]), knockout(encoder, "sep->cls", [1, 2, 3]):
        both = record_states(encoder, batch)[-1]
    with knockout(encoder, "rest->cls", [1, 2, 3]):
        torch.testing.assert_close(both, record_states(encoder, batch)[-1])


@pytest.mark.parametrize("chunk", [1, 1 << 30])
def test_replay_gives_every_text_its_own_states(loaded, monkeypatch, chunk):
    encoder, texts = loaded("bert"), [*TEXTS, *TEXTS[:3]]
    monkeypatch.setattr(replaying, "CHUNK", chunk)
    monkeypatch.setattr(replaying, "BUDGET", {"cpu": 24})
    hidden, count = {}, 0
    with replay(encoder, texts, 2) as chunks:
        for part in chunks:
            count += 1
            for rows, recorded in zip(part.rows, part.recorded, strict=True):
                hidden |= {int(row): recorded.hidden[2][i, 0] for i, row in enumerate(rows)}
    assert sorted(hidden) == list(range(len(texts)))
    assert (count > 3) == (chunk == 1)
    for i, text in enumerate(texts):
        alone = record_states(encoder, make_batch(encoder, [text]))[2][0, 0]
        torch.testing.assert_close(hidden[i], alone, atol=1e-5, rtol=1e-4)


def test_batches_run_side_by_side_under_one_change(loaded):
    encoder, batches = loaded("bert"), [make_batch(loaded("bert"), [text]) for text in TEXTS]
    check_changes(encoder)
    with knockout(encoder, "content->cls", [2]):
        alone = [record_states(encoder, batch)[-1] for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda batch: encoder.forward(batch)[0], batches * 5))
    assert all(torch.equal(a, b) for a, b in zip(alone * 5, together, strict=True))


# ------------------------------------------------------------------------------------- the attention output of [CLS]


@pytest.mark.parametrize("shape", MASKED)
def test_cls_that_is_cut_off_but_has_its_attention_output_restored_is_that_of_the_intact_pass(loaded, shape):
    encoder = loaded(shape)
    before = hooks(encoder.model)
    batch, last = make_batch(encoder), len(encoder.blocks)
    every, cls = range(1, last + 1), find_cls(batch)
    with evaluating(encoder.model), record_passes(encoder, last) as record:
        intact = record(batch)
        with knockout(encoder, "rest->cls", every):
            cut = intact.run(0, intact.hidden[0], last)
            with restore_attention(encoder, every):
                restored = intact.run(0, intact.hidden[0], last)
            with restore_attention(encoder, [last]):
                late = intact.run(0, intact.hidden[0], last)
    scale = float(intact.hidden[-1].abs().max())
    torch.testing.assert_close(restored[batch.real], intact.hidden[-1][batch.real], atol=1e-4 * scale, rtol=0)
    assert (cut - intact.hidden[-1])[cls].abs().max() > 1e-3 * scale
    assert (late - cut)[cls].abs().max() > 1e-3 * scale
    torch.testing.assert_close(late[~cls & batch.real], cut[~cls & batch.real], atol=1e-4 * scale, rtol=0)
    assert hooks(encoder.model) == before


def test_what_is_restored_is_the_output_of_the_attention_and_not_the_state(loaded):
    encoder = loaded("bert")
    batch, written, states = make_batch(encoder), [], []
    cls = find_cls(batch)
    module = encoder.blocks[1].attention.output
    keep = [
        module.dense.register_forward_hook(lambda m, a, output: written.append(output[cls])),
        module.register_forward_hook(lambda m, a, output: states.append(output[cls])),
    ]
    with evaluating(encoder.model), record_passes(encoder, 3) as record:
        intact = record(batch)
        with knockout(encoder, "rest->cls", [1, 2, 3]), restore_attention(encoder, [2]):
            # this hook was registered first, so that it sees what is replaced
            intact.run(0, intact.hidden[0], 3)
    for handle in keep:
        handle.remove()
    torch.testing.assert_close(intact.attention[1], written[0])
    assert (written[1] - written[0]).abs().max() > 1e-3
    below = encoder.blocks[1].attention.output.LayerNorm  # what follows adds it to the state of the pass that is cut
    with torch.no_grad(), knockout(encoder, "rest->cls", [1]):
        state = intact.run(0, intact.hidden[0], 1)[cls]
        torch.testing.assert_close(states[1], below(written[0] + state))
    assert (states[1] - states[0]).abs().max() > 1e-3


def test_a_whole_pass_is_not_restored(loaded):
    encoder = loaded("bert")
    batch = make_batch(encoder)
    with evaluating(encoder.model), record_passes(encoder, 3) as record:
        intact = record(batch)
    with knockout(encoder, "rest->cls", [1, 2, 3]):
        cut = record_states(encoder, batch)
        with restore_attention(encoder, [1, 2, 3]):
            intact.run(0, intact.hidden[0], 3)
            for states, expected in zip(record_states(encoder, batch), cut, strict=True):
                torch.testing.assert_close(states, expected)


def test_an_attention_whose_output_is_not_found_is_refused_in_one_line(loaded, monkeypatch):
    encoder = loaded("bert")
    assert len(find_attention_outputs(encoder)) == 3
    monkeypatch.setattr(changes, "find_attention_outputs", lambda encoder: None)
    with pytest.raises(InputError, match="no module of a known name that ends their attention"):
        restore_attention(encoder, [1]).__enter__()
