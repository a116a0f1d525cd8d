"""Hidden states equal those of the model bit for bit, and reading them leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import models
import numpy as np
import pandas as pd
import pytest
import torch
from architectures import hooks, record_layers
from models import DIM, KINDS, TEXTS
from transformers import AutoConfig, AutoModel
from vectors import stack_cells

from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.encoders.tap import tap
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import Extractor, plan_batches
from clsprobe.probes.extraction.readouts import DEFAULT, Cat, Readout, parse_readouts
from clsprobe.probes.tasks.texts import PAIRED

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a small random encoder of one architecture."""
    saved: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in saved:
            saved[kind] = models.save(kind, tmp_path_factory.mktemp(kind))
        return saved[kind]

    return folder


@pytest.fixture(params=[*KINDS, None], ids=lambda kind: kind or "embedded")
def encoder(request, folders) -> Encoder:
    """Every architecture, and the embedded model. A fresh one for each test: hooks must not be inherited."""
    return load_encoder(str(folders(request.param)) if request.param else None)


@pytest.fixture
def bert(folders) -> Encoder:
    return load_encoder(str(folders("bert")))


def batches(encoder: Encoder, budget: int) -> Iterator[tuple[np.ndarray, Any]]:
    """The batches that an Extractor with this budget runs."""
    rows = encoder.tokenize(TEXTS)
    for chosen in plan_batches(np.array([len(row.ids) for row in rows]), budget):
        yield chosen, encoder.batch([rows[i] for i in chosen])


# ------------------------------------------------------------------------------------------------------ the two oracles


def test_states_equal_output_hidden_states(encoder):
    # A separate model: transformers' own hooks would remain.
    model = AutoModel.from_pretrained(encoder.description.folder, dtype=torch.float32).eval()
    states = Extractor(encoder, max_tokens_per_batch=40)(TEXTS)
    assert states.layers == tuple(range(encoder.description.layers + 1))
    for rows, batch in batches(encoder, 40):
        hidden = record_layers(encoder, batch)
        with torch.no_grad():
            output = model(input_ids=batch.ids, attention_mask=batch.real.long(), output_hidden_states=True)
        assert len(output.hidden_states) == len(hidden) == len(states.layers)
        assert torch.equal(hidden[states.layers[-1]], output.last_hidden_state)
        for layer, expected in enumerate(output.hidden_states):
            assert torch.equal(hidden[layer], expected), layer  # padding too
            for readout in parse_readouts(DEFAULT):
                vectors = readout.read(expected, batch)[readout.present(batch)].numpy()
                present = states.present[states.readouts.index(readout.name)][rows]
                assert np.array_equal(states.cell(layer, readout.name)[rows][present], vectors), (layer, readout)


def test_states_equal_those_of_shallower_models(encoder):
    """Layer k is the output of a model with k layers; this oracle uses no hooks."""
    folder = encoder.description.folder
    depth = "n_layers" if encoder.description.model_type == "distilbert" else "num_hidden_layers"
    (_, batch), *_ = batches(encoder, 10_000)
    hidden = record_layers(encoder, batch)
    weights = encoder.model.state_dict()
    for layer in hidden if encoder.description.layers == 3 else (1, 5):
        shallow = AutoModel.from_config(AutoConfig.from_pretrained(folder, **{depth: layer})).eval()
        report = shallow.load_state_dict({k: v for k, v in weights.items() if k in shallow.state_dict()}, strict=False)
        assert not report.missing_keys
        with torch.no_grad():
            output = shallow(input_ids=batch.ids, attention_mask=batch.real.long())
        assert torch.equal(hidden[layer], output.last_hidden_state), layer


def test_sentence_transformers_agrees_on_the_embedded_model():
    from sentence_transformers import SentenceTransformer

    encoder = load_encoder()
    peer = SentenceTransformer(str(encoder.description.folder), device="cpu")
    expected = peer.encode(list(TEXTS), normalize_embeddings=True, show_progress_bar=False)
    vectors = Extractor(encoder, ["mean"], layers=[6])(TEXTS).cell(6, "mean")
    np.testing.assert_allclose(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), expected, rtol=0, atol=1e-5)


def test_the_first_layer_of_cls_is_one_vector(encoder):
    """The negative control of every sweep: before the first block, [CLS] does not depend on the text."""
    first = Extractor(encoder, ["cls"], layers=[0])(TEXTS).cell(0, "cls")
    assert np.array_equal(first, first[[0] * len(TEXTS)])


# ---------------------------------------------------------------------------------------------------------------- hooks


def test_no_hook_remains(encoder):
    before = hooks(encoder.model)
    with tap(encoder, print):
        assert hooks(encoder.model) != before
    assert hooks(encoder.model) == before
    Extractor(encoder)(TEXTS)
    assert hooks(encoder.model) == before


def test_no_hook_remains_after_an_exception_in_the_forward_pass(bert):
    (_, batch), *_ = batches(bert, 10_000)
    broken = bert.blocks[1].register_forward_pre_hook(lambda module, args: 1 / 0)
    before = hooks(bert.model)
    layers: list[int] = []
    with pytest.raises(ZeroDivisionError), tap(bert, lambda layer, hidden: layers.append(layer)):
        bert.forward(batch)
    assert layers == [0, 1]
    assert hooks(bert.model) == before
    with pytest.raises(ZeroDivisionError):
        Extractor(bert)(TEXTS)
    assert hooks(bert.model) == before
    broken.remove()
    assert np.isfinite(Extractor(bert)(TEXTS).cell(3, "cls")).all()


def test_no_hook_remains_after_an_exception_in_the_reader(bert):
    class Broken(Readout):
        name = "broken"

        def read(self, hidden, batch):
            raise ZeroDivisionError

    before = hooks(bert.model)
    with pytest.raises(InputError, match="ZeroDivisionError"):
        Extractor(bert, ["cls", Broken()])(TEXTS)
    assert hooks(bert.model) == before


def test_no_hook_remains_after_an_exception_elsewhere(bert):
    before = hooks(bert.model)
    for layers in ([4], [-1], [1, 1], [1.5]):
        with pytest.raises(InputError, match="--layers"), tap(bert, print, layers):
            raise AssertionError("never reached")
    with pytest.raises(KeyboardInterrupt), tap(bert, print):
        raise KeyboardInterrupt
    assert hooks(bert.model) == before


def test_a_foreign_hook_survives_and_takes_effect(bert):
    (_, batch), *_ = batches(bert, 10_000)
    calls: list[str] = []
    foreign = bert.blocks[0].register_forward_hook(lambda module, args, output: calls.append("foreign"))
    plain = record_layers(bert, batch)
    doubled = bert.blocks[0].register_forward_hook(lambda module, args, output: output * 2)
    before = hooks(bert.model)
    hidden = record_layers(bert, batch)
    assert hooks(bert.model) == before
    assert foreign.id in bert.blocks[0]._forward_hooks
    assert doubled.id in bert.blocks[0]._forward_hooks
    assert torch.equal(hidden[1], plain[1] * 2)  # the tap reads the input of the next block
    assert calls == ["foreign", "foreign"]


def test_a_tap_does_not_change_the_output(encoder):
    (_, batch), *_ = batches(encoder, 10_000)
    plain = encoder.forward(batch).last_hidden_state
    with tap(encoder, lambda layer, hidden: hidden * 0):  # the return value of the reader is ignored
        watched = encoder.forward(batch).last_hidden_state
    assert torch.equal(plain, watched)
    assert torch.equal(plain, encoder.forward(batch).last_hidden_state)


def test_two_taps_at_once(bert):
    (_, batch), *_ = batches(bert, 10_000)
    outer: list[int] = []
    with tap(bert, lambda layer, hidden: outer.append(layer), [2]):
        assert sorted(record_layers(bert, batch, [3, 0])) == [0, 3]
    assert outer == [2]


def test_output_hidden_states_in_the_configuration_is_ignored(tmp_path):
    """transformers would install its own hooks permanently."""
    from transformers import BertConfig

    folder = models.save("bert", tmp_path)
    config = BertConfig.from_pretrained(folder)
    config.output_hidden_states = True
    config.save_pretrained(folder)
    encoder = load_encoder(str(folder))
    before = hooks(encoder.model)
    Extractor(encoder)(TEXTS)
    assert hooks(encoder.model) == before


def test_modes_are_restored_and_dropout_is_off(bert):
    expected = Extractor(bert)(TEXTS)
    bert.model.train()
    bert.blocks[1].eval()
    modes = [module.training for module in bert.model.modules()]
    assert np.array_equal(stack_cells(Extractor(bert)(TEXTS)), stack_cells(expected), equal_nan=True)
    assert [module.training for module in bert.model.modules()] == modes


# ------------------------------------------------------------------------------------------------------- order, batches


def test_rows_are_in_the_order_of_the_texts(bert):
    words = [word for word in models.WORDS if word.isalpha()]
    texts = [" ".join(words[i : i + 1 + i % 7]) for i in range(20)] + list(TEXTS)
    straight = Extractor(bert, max_tokens_per_batch=30)(texts)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(texts))
        mixed = Extractor(bert, max_tokens_per_batch=30)([texts[i] for i in order])
        assert np.array_equal(mixed.present, straight.present[:, order])
        np.testing.assert_allclose(stack_cells(mixed), stack_cells(straight)[:, :, order], rtol=0, atol=2e-5)


def test_padding_changes_nothing(encoder):
    alone = Extractor(encoder, max_tokens_per_batch=1)(TEXTS)
    padded = Extractor(encoder, max_tokens_per_batch=10_000)(TEXTS)
    assert len(plan_batches(np.array([len(row.ids) for row in encoder.tokenize(TEXTS)]), 10_000)) == 1
    np.testing.assert_allclose(stack_cells(padded), stack_cells(alone), rtol=0, atol=1e-5)


def test_the_same_plan_gives_the_same_bits(bert):
    first, rerun = (stack_cells(Extractor(bert)(TEXTS)) for _ in range(2))
    assert np.array_equal(first, rerun, equal_nan=True)


def test_plan_covers_every_row_once_within_the_budget():
    rng = np.random.default_rng(0)
    for _ in range(200):
        lengths = rng.integers(0, 60, size=rng.integers(0, 50))
        budget = int(rng.integers(1, 300))
        original = lengths.copy()
        plan = plan_batches(lengths, budget)
        assert sorted(np.concatenate([[], *plan])) == list(range(len(lengths)))
        assert all(len(rows) == 1 or len(rows) * lengths[rows].max() <= budget for rows in plan)
        # pure: nothing is altered, and the same lengths give the same plan
        assert np.array_equal(lengths, original)
        assert all(np.array_equal(a, b) for a, b in zip(plan, plan_batches(original, budget), strict=True))
        # longest first, and no batch could have taken the next row as well
        assert (np.diff([lengths[rows].max() for rows in plan]) <= 0).all()
        for rows, _ in pairwise(plan):
            assert (len(rows) + 1) * max(1, lengths[rows].max()) > budget


# ---------------------------------------------------------------------------------------------------------------- texts


def test_long_texts_are_cut_between_their_special_tokens(encoder):
    states = Extractor(encoder, max_length=8, long_rows="truncate")(TEXTS)
    lengths = [len(row.ids) for row in encoder.tokenize(TEXTS)]
    assert states.truncated.tolist() == [i for i, length in enumerate(lengths) if length > 8]
    tokenizer = encoder.tokenizer
    for row in encoder.tokenize(TEXTS, 8):
        assert len(row.ids) <= 8
        assert row.special.nonzero()[0].tolist() == [0, len(row.ids) - 1]
        assert row.ids[[0, -1]].tolist() == [tokenizer.cls_token_id, tokenizer.sep_token_id]
    # A cut text is the text of its first six tokens.
    cut = Extractor(encoder)(["a very very big red dog"])
    vectors = stack_cells(states)[:, :, TEXTS.index("a very very big red dog sleeps in the blue house on the tree")]
    compared = [i for i, name in enumerate(states.readouts) if name != "random"]
    np.testing.assert_allclose(vectors[:, compared], stack_cells(cut)[:, compared, 0], rtol=0, atol=1e-5)


def test_long_texts_are_an_error_with_their_rows(bert):
    with pytest.raises(InputError) as caught:
        Extractor(bert, max_length=8)(TEXTS)
    longest = max(len(row.ids) for row in bert.tokenize(TEXTS))
    assert str(caught.value).startswith(f"--long-rows error: 3 texts exceed 8 tokens (longest {longest}; rows 3, 6, 8)")
    assert Extractor(bert)(TEXTS).truncated.tolist() == []


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ("a single text", "texts: is one text, not a list of texts. Pass [text]."),
        (b"bytes", "texts: is one text, not a list of texts. Pass [text]."),
        (["a", float("nan")], "texts: row 1 holds float, not a text. Leave such rows out, or make texts of them."),
        (["a", None], "texts: row 1 holds NoneType, not a text. Leave such rows out, or make texts of them."),
    ],
)
def test_input_that_is_not_a_list_of_texts_is_an_error(bert, texts, expected, tmp_path):
    for extract in (Extractor(bert, "cls"), Extractor(bert, "cls", cache=tmp_path), bert.tokenize):
        with pytest.raises(InputError) as error:
            extract(texts)
        assert str(error.value) == expected
    assert not list(tmp_path.iterdir())


def test_notes_count_texts_without_tokens_and_with_written_special_tokens():
    encoder = load_encoder()
    texts = ["the cat", "\u200b", "\u00ad\u200d", "", "a [SEP] b", "a cat " + PAIRED + "a dog", "\u200b" + PAIRED]
    notes = Extractor(encoder, "cls", layers=[0])(texts).source["notes"]
    assert notes == [
        "Texts that hold special tokens in writing, which are read as text: 1 of 7 ([SEP]).",
        "Texts without tokens of their own (such as zero-width characters alone): 4 of 7; their vectors are those of "
        "an empty text.",
    ]
    assert Extractor(encoder, "cls", layers=[0])(["the cat"]).source["notes"] == []


def test_readouts_in_one_text_are_names(bert):
    assert Extractor(bert, "cls, cat(cls,mean)", layers=[0])(["the cat"]).readouts == ("cls", "cat(cls,mean)")


def test_max_length_is_at_most_the_limit_of_the_model(encoder):
    longest = encoder.description.longest
    extract = Extractor(encoder, ["cls"], max_length=10**6, long_rows="truncate")
    assert extract.max_length == longest
    assert np.isfinite(stack_cells(extract(["dog " * (longest + 5)]))).all()  # the last position exists
    limit = encoder.description.max_length
    with pytest.raises(InputError, match=f"1 texts exceed {limit} tokens"):
        Extractor(encoder, ["cls"])(["dog " * (limit - 1)])


@pytest.mark.parametrize("length", [-1, 0, 1, 2])
def test_a_limit_without_room_is_refused(bert, length):
    with pytest.raises(InputError, match=f"--max-length {length}: 2 special tokens leave no room"):
        Extractor(bert, max_length=length)


@pytest.mark.parametrize("literal", ["[SEP]", "</s>", "[CLS]", "<s>", "[PAD]", "<pad>"])
def test_special_tokens_written_in_a_text_are_text(encoder, literal):
    (row,) = encoder.tokenize([f"cat {literal} dog"])
    tokenizer = encoder.tokenizer
    assert row.special.nonzero()[0].tolist() == [0, len(row.ids) - 1]
    assert len(row.ids) > 5  # it was split into pieces
    inner = set(row.ids[1:-1].tolist())
    assert not inner & {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}


def test_texts_too_short_for_a_token_are_absent(encoder):
    states = Extractor(encoder)(TEXTS)
    words = np.array([len(row.ids) - 2 for row in encoder.tokenize(TEXTS)])
    for name, needed in (("token[1]", 1), ("token[2]", 2), ("token[-1]", 1), ("random", 1), ("cls", 0), ("mean", 0)):
        present = states.present[states.readouts.index(name)]
        assert np.array_equal(present, words >= needed)
        for layer in states.layers:
            cell = states.cell(layer, name)
            assert np.isnan(cell[~present]).all()
            assert np.isfinite(cell[present]).all()


def test_texts_of_unknown_words(folders):
    encoder = load_encoder(str(folders("roberta")))
    with pytest.raises(InputError, match="67% of the tokens are unknown to it"):
        Extractor(encoder)(["the ξένος λόγος"])
    with pytest.warns(UserWarning, match="10% of the tokens are unknown to it"):
        Extractor(encoder)(["the cat sees the dog in the big house xyz"])


def test_no_texts(bert):
    states = Extractor(bert)([])
    assert len(states) == 0
    assert states.cell(3, "cls").shape == (0, DIM)


def test_texts_may_be_any_sequence(bert):
    expected = stack_cells(Extractor(bert)(TEXTS))
    series = pd.Series(TEXTS, index=range(len(TEXTS), 0, -1))  # whose items are not in the order of their labels
    for texts in (list(TEXTS), np.array(TEXTS), np.array(TEXTS, dtype=object), series, (text for text in TEXTS)):
        states = Extractor(bert)(texts)
        assert np.array_equal(stack_cells(states), expected, equal_nan=True)
        assert list(states.texts) == list(TEXTS)
    assert np.array_equal(bert.tokenize(series).digests(), bert.tokenize(TEXTS).digests())


# ------------------------------------------------------------------------------------------- layers, readouts, refusals


@pytest.mark.parametrize("layers", [[2, 0], (0, 2), np.array([0, 2]), "0,2"])
def test_some_layers(bert, layers):
    all_states, states = Extractor(bert)(TEXTS), Extractor(bert, layers=layers)(TEXTS)
    assert states.layers == (0, 2)
    assert states.cells == [(layer, readout) for layer in (0, 2) for readout in DEFAULT]
    assert np.array_equal(states.cell(2, "max"), all_states.cell(2, "max"))
    assert np.array_equal(stack_cells(states), stack_cells(all_states)[[0, 2]], equal_nan=True)
    with pytest.raises(KeyError, match="no cell"):
        states.cell(1, "max")
    with pytest.raises(KeyError, match="no cell"):
        states.cell(2, "token[9]")


def test_one_layer_and_one_readout_may_be_given_alone(bert):
    states = Extractor(bert, parse_readouts(["mean"])[0], layers=2)(TEXTS)
    assert states.cells == [(2, "mean")]


def test_texts_that_were_not_encoded_are_counted(bert):
    states = Extractor(bert, "cls", layers=0)(TEXTS[:2])
    assert states.rows([TEXTS[1], TEXTS[0]]).tolist() == [1, 0]
    with pytest.raises(InputError) as error:
        states.rows([TEXTS[0], "a secret", TEXTS[1], "another one"])
    assert str(error.value) == (
        "states: 2 of 4 texts were not encoded (rows 1, 3). Encode all of them, as in "
        "states = Extractor(encoder)(task.texts)."
    )


@pytest.mark.parametrize("layers", [[4], [-1], [1, 1], [1.0], [], "13", "none"])
def test_invalid_layers_are_an_error(bert, layers):
    with pytest.raises(InputError, match="--layers"):
        Extractor(bert, layers=layers)


def test_a_custom_readout(bert):
    class First(Readout):
        name = "first"

        def read(self, hidden, batch):
            return hidden[:, 0]

    states = Extractor(bert, ["cls", First()])(TEXTS)
    assert np.array_equal(states.cell(2, "first"), states.cell(2, "cls"))
    with pytest.raises(InputError, match="'first' is given twice"):
        Extractor(bert, [First(), First()])


@pytest.mark.parametrize("name", ["cls", "sep"])
def test_a_tokenizer_that_adds_no_special_tokens(tmp_path, name):
    folder = models.save("bert", tmp_path)
    tokenizer = models.tokenizer("bert")
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    tokenizer.save_pretrained(folder)
    encoder = load_encoder(str(folder))
    with pytest.raises(InputError, match=f"adds no {name} token. Choose among token\\[1\\]"):
        Extractor(encoder, [name, "mean"])
    states = Extractor(encoder, ["mean", "max", "token[1]"])(["cat", "", "the dog"])
    assert states.present.tolist() == [[True, False, True]] * 3
    assert np.isnan(stack_cells(states)[:, :, 1]).all()
    assert np.isfinite(stack_cells(states)[:, :, [0, 2]]).all()


@contextmanager
def broken_block(encoder: Encoder, block: int, value: float) -> Iterator[None]:
    bias = next(p for name, p in encoder.blocks[block].named_parameters() if name.endswith("bias"))
    original = bias.clone()
    bias[0] = value
    yield
    bias.copy_(original)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(encoder, value):
    before = hooks(encoder.model)
    for readouts in (DEFAULT, ["mean"]):
        with broken_block(encoder, 1, value), pytest.raises(InputError) as caught:
            Extractor(encoder, readouts)(TEXTS)
        message = str(caught.value)
        assert message.startswith("layer 2: non-finite hidden states from row ")
        assert ".layer.1, read as" in message
        assert "use others" in message
    assert hooks(encoder.model) == before


def test_one_number_that_is_not_finite(bert):
    """In row 7 of the texts, which has another position in the batch."""
    longest_first = plan_batches(np.array([len(row.ids) for row in bert.tokenize(TEXTS)]), 10_000)[0].tolist()

    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[longest_first.index(7), 1, 3] = torch.inf
        return output

    bert.blocks[2].register_forward_hook(spoil)
    with pytest.raises(InputError) as caught:
        Extractor(bert, ["cls", "token1"])(TEXTS)
    assert str(caught.value).startswith(
        "layer 3: non-finite hidden states from row 7 (encoder.layer.2, read as token[1])"
    )


@contextmanager
def scaled_weights(encoder: Encoder, factor: float) -> Iterator[None]:
    for parameter in encoder.blocks[0].parameters():
        parameter.mul_(factor)
    yield


def test_an_overflow_names_the_precision(folders):
    encoder = load_encoder(str(folders("bert")), dtype="float16")
    with scaled_weights(encoder, 1e4), pytest.raises(InputError, match="float16 may overflow: use --dtype float32"):
        Extractor(encoder)(TEXTS)


@pytest.mark.filterwarnings("ignore:.*of their spread over the texts")  # random weights barely move the states
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_half_precision(encoder, dtype, tolerance):
    expected = Extractor(encoder)(TEXTS)
    name = encoder.name if encoder.name == "all-MiniLM-L6-v2" else str(encoder.description.folder)
    half = Extractor(load_encoder(name, dtype=dtype))(TEXTS)
    assert stack_cells(half).dtype == np.float32
    assert half.source["dtype"] == dtype
    assert np.array_equal(half.present, expected.present)
    np.testing.assert_allclose(
        stack_cells(half), stack_cells(expected), rtol=0, atol=tolerance * np.nanmax(np.abs(stack_cells(expected)))
    )


# --------------------------------------------------------------------------------------------------------------- States


def test_states(bert):
    states = Extractor(bert, ["cls", "mean"])(TEXTS)
    assert len(states) == len(TEXTS)
    assert stack_cells(states).shape == (4, 2, len(TEXTS), DIM)
    assert stack_cells(states).dtype == np.float32
    assert states.rows(["cat", TEXTS[0], "cat"]).tolist() == [1, 0, 1]
    assert states.rows([]).tolist() == []
    with pytest.raises(InputError, match="1 of 1 texts were not encoded"):
        states.rows(["never encoded"])
    twice = Extractor(bert, ["cls"])(["cat", "dog", "cat"])
    cat, dog, second_cat = twice.cell(1, "cls")  # rows of one batch, whose last bits may depend on their place in it
    np.testing.assert_allclose(second_cat, cat, atol=1e-6)
    np.testing.assert_allclose(twice.cell(1, "cls")[twice.rows(["cat"])][0], cat, atol=1e-6)
    assert np.abs(dog - cat).max() > 1e-3


def test_source_describes_the_encoder(bert, folders):
    source = Extractor(bert)(TEXTS).source
    assert (source["control"], source["seed"], source["dtype"], source["max_length"]) == ("none", None, "float32", 40)
    assert source["architecture"] == "BertModel"
    assert source["digest"] == bert.description.digest
    assert {"torch", "transformers", "tokenizers", "numpy", "python"} == source["versions"].keys()
    untrained = Extractor(load_encoder(str(folders("bert")), untrained=3))(TEXTS).source
    assert (untrained["control"], untrained["seed"]) == ("untrained", 3)


def test_readouts_of_any_width_and_depth_are_read_beside_the_others(tmp_path):
    """On disk and in memory: each cell equals the combination of its parts."""
    encoder = load_encoder()
    texts = [
        "The cat sees the dog that sleeps in the red house.",
        "Birds sing.",
        "It rains and rains on the long road.",
    ]
    names = ["cls", "mean", "flatten[6]", "flatten_projected[6]", "cat(cls,mean)", "last3(cls)"]
    for cache in (None, tmp_path):
        states = Extractor(encoder, names, layers=[0, 3, 4, 5, 6], max_tokens_per_batch=20, cache=cache)(texts)
        assert [states.width(name) for name in names] == [384, 384, 6 * 384, 384, 768, 3 * 384]
        assert [layer for layer, name in states.cells if name == "last3(cls)"] == [6]
        expected = np.hstack([states.cell(layer, "cls") for layer in (4, 5, 6)])
        assert np.array_equal(states.cell(6, "last3(cls)"), expected)
        for layer in states.layers:
            concatenated = np.hstack([states.cell(layer, "cls"), states.cell(layer, "mean")])
            assert np.array_equal(states.cell(layer, "cat(cls,mean)"), concatenated)
            flat = states.cell(layer, "flatten[6]").reshape(3, 6, 384)
            assert np.array_equal(flat[:, 0], states.cell(layer, "cls"))
            assert (flat[1] != 0).any(1).sum() == 5  # [CLS] birds sing . [SEP]
            assert np.allclose(flat[1, :5].mean(0), states.cell(layer, "mean")[1], atol=1e-6)


@pytest.mark.parametrize(
    ("readouts", "layers", "message"),
    [
        (["last4(cls)"], [3, 5, 6], "is read at layer 6 only, from layers 3 to 6. Add 4 to --layers"),
        (["last9(cls)"], "all", "reads more layers than there are"),
        (["cat(cls,mean)+norm"], "all", "no norm follows the last layer"),
    ],
)
def test_a_readout_of_several_layers_names_the_layers_it_needs(readouts, layers, message):
    with pytest.raises(InputError, match=message):
        Extractor(load_encoder(), readouts, layers=layers)


# ------------------------------------------------------------------------------------------- readouts of other packages


class Own(Readout):
    name = "own"

    def read(self, hidden, batch):
        return hidden[:, 0]


def make_own(**methods: Any) -> Readout:
    return type("Own", (Own,), methods)()


TRIED = "Mend the plug-in; clsprobe.check_readout tries it."
FAULTS = {
    "raises": ({"read": lambda *_: [][1]}, f"fails (IndexError: list index out of range). {TRIED}"),
    "one number": (
        {"read": lambda self, hidden, batch: hidden[:, 0, :1]},  # torch would repeat it
        f"fails (ValueError: read gives (1, 1), expected a tensor of shape (1, {DIM})). {TRIED}",
    ),
    "nothing": (
        {"read": lambda *_: None},
        f"fails (ValueError: read gives NoneType, expected a tensor of shape (1, {DIM})). {TRIED}",
    ),
    "not finite": (
        {"read": lambda self, hidden, batch: hidden[:, 0] * torch.nan},
        "gives numbers that are not finite for row 0 at layer 0. "
        "Let `present` be False for texts without the readout, or mend the weights.",
    ),
    "present of tokens": (
        {"present": lambda self, batch: batch.real},
        f"fails (ValueError: present gives (1, 7), expected a tensor of shape (1,)). {TRIED}",
    ),
    "width": ({"width": lambda self, dim: 0}, f"fails (ValueError: width gives 0, expected a number from 1). {TRIED}"),
    "bind": ({"bind": lambda self, encoder: encoder.nothing}, "fails (AttributeError: "),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_in_a_readout_of_ones_own_is_one_line(fault, bert):
    methods, line = FAULTS[fault]
    with pytest.raises(InputError) as caught:
        Extractor(bert, [make_own(**methods)])(["the cat sees the dog"])
    assert str(caught.value).startswith(f"--readouts own: {line}")


def test_what_goes_wrong_within_another_readout_is_one_line_too(bert):
    methods, line = FAULTS["raises"]
    readout = Cat([*parse_readouts(["cls"]), make_own(**methods)])
    with pytest.raises(InputError) as caught:
        Extractor(bert, [readout])(TEXTS)
    assert str(caught.value) == f"--readouts cat(cls,own): {line}"


def test_a_readout_of_ones_own_that_is_right_is_read(bert):
    states = Extractor(bert, ["cls", make_own()])(TEXTS)
    assert np.array_equal(states.cell(2, "own"), states.cell(2, "cls"))
