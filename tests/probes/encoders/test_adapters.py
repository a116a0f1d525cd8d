"""Every architecture is read where its layers are, bit for bit, and reading it leaves no trace."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from architectures import BROKEN, RUNNING, fitting_texts, installed_hooks, record_layers
from house import ROOT
from models import DIM, TEXTS, model_type
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from vectors import stack_cells

from clsprobe.probes.encoders.adapters import ADAPTERS, SUPPORTED
from clsprobe.probes.encoders.describing import describe
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.encoders.tap import tap
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import Extractor, plan_batches
from clsprobe.probes.extraction.readouts import DEFAULT, parse_readouts

pytestmark = pytest.mark.usefixtures("one_thread")

NORMED = [shape for shape in RUNNING if ADAPTERS[model_type(shape)].norm]
NEVER_EMPTY = {"deberta-v2", "deberta-v2-conv", "longformer", "modernbert"}  # they cannot be made without a block
LEAKING = {"big_bird", "canine", "convbert", "fnet", "funnel", "mobilebert", "nystromformer", "yoso"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a small random encoder of one shape; look, but do not touch."""
    saved: dict[str, Path] = {}

    def folder(shape: str) -> Path:
        if shape not in saved:
            saved[shape] = models.save(shape, tmp_path_factory.mktemp(shape))
        return saved[shape]

    return folder


@pytest.fixture(scope="module")
def load(folders) -> Callable[[str], Encoder]:
    """The encoder of one shape, loaded once: a test that hooks it must clean up."""
    loaded: dict[str, Encoder] = {}

    def encoder(shape: str) -> Encoder:
        if shape not in loaded:
            loaded[shape] = load_encoder(str(folders(shape)))
        return loaded[shape]

    return encoder


def batches(encoder: Encoder, budget: int = 60) -> Iterator[tuple[np.ndarray, Any]]:
    """The batches that an Extractor with this budget runs."""
    rows = encoder.tokenize(fitting_texts(encoder))
    lengths = np.array([len(row.ids) for row in rows])
    for chosen in plan_batches(lengths, budget, equal=encoder.checked["leaks"]):
        yield chosen, encoder.batch([rows[i] for i in chosen])


# ----------------------------------------------------------------------------------------------------- the depth oracle


def shallower(shape: str, weights: dict[str, torch.Tensor], layers: int) -> torch.nn.Module:
    """A model of so many layers with the same weights, and nothing behind the last one.

    The very same: torch multiplies by another order where a weight asks for gradients, or lies otherwise in memory.
    """
    made = models.config(shape, layers)
    if shape == "funnel":
        made.block_sizes, made.block_repeats, made.architectures = [layers], [1], ["FunnelBaseModel"]
    model = AutoModel.from_config(made).eval().requires_grad_(False)
    shared = {key: value for key, value in weights.items() if key in model.state_dict()}
    report = model.load_state_dict(shared, strict=False, assign=True)
    assert not [key for key in report.missing_keys if key.startswith(ADAPTERS[model_type(shape)].part)]
    adapter = ADAPTERS[model_type(shape)]
    if adapter.norm:
        parent, _, name = adapter.norm.rpartition(".")
        setattr(model.get_submodule(parent), name, torch.nn.Identity())
    return model.get_submodule(adapter.part)


def last_of(shape: str, model: torch.nn.Module, layers: int, encoder: Encoder, batch: Any) -> torch.Tensor:
    """What a model of so many layers gives out."""
    inputs: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.real.long()}
    if shape == "xlnet":  # [CLS] has a segment of its own
        inputs["token_type_ids"] = 2 * (batch.ids == encoder.cls_id).long() * batch.special
    if shape != "canine":
        return model(**inputs).last_hidden_state
    # Character layers come before and after: two states of those before, then those of the deep stack.
    molecules = model(**inputs, output_hidden_states=True).hidden_states[2 + layers]
    characters = [molecules[:, 0]]  # [CLS]
    for i in range(1, batch.ids.shape[1]):
        characters.append(molecules[:, min(1 + i // 4, molecules.shape[1] - 1)])
    return torch.stack(characters, 1)


def assert_depth_oracle(shape: str, encoder: Encoder, folder: Path) -> None:
    part = f"{encoder.adapter.part}." if encoder.adapter.part else ""
    weights = {f"{part}{key}": value for key, value in encoder.model.state_dict().items()}
    inner = 2 if shape == "albert-2" else 1
    assert encoder.description.layers == 3 * inner
    runs = [(batch, record_layers(encoder, batch)) for _, batch in batches(encoder)]
    if shape in NEVER_EMPTY:
        first = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        for batch, layers in runs:
            with torch.no_grad():
                output = first(input_ids=batch.ids, attention_mask=batch.real.long(), output_hidden_states=True)
            assert torch.equal(layers[0], output.hidden_states[0][:, : batch.ids.shape[1]])
    for layer in range(inner if shape in NEVER_EMPTY else 0, 3 * inner + 1, inner):
        model = shallower(shape, weights, layer // inner)
        for batch, layers in runs:
            assert list(layers) == list(range(3 * inner + 1))
            with torch.no_grad():
                expected = last_of(shape, model, layer // inner, encoder, batch)
            assert expected.shape == (*batch.ids.shape, DIM)
            assert torch.equal(layers[layer], expected), layer


@pytest.mark.parametrize("shape", RUNNING)
def test_layers_are_those_of_shallower_models(shape, load, folders):
    """0 differing bits, padding included."""
    assert_depth_oracle(shape, load(shape), folders(shape))


def test_inner_layers_of_a_group(load, folders):
    """With two in a group, a model of k layers shows every other one; transformers' own hooks show the rest."""
    encoder = load("albert-2")
    asked = AutoModel.from_pretrained(folders("albert-2"), dtype=torch.float32).eval()
    for _, batch in batches(encoder):
        with torch.no_grad():
            every = asked(input_ids=batch.ids, attention_mask=batch.real.long(), output_hidden_states=True)
        seen = record_layers(encoder, batch)
        assert len(every.hidden_states) == len(seen) == 7
        assert all(torch.equal(seen[layer], wanted) for layer, wanted in enumerate(every.hidden_states))


def test_groups_of_albert(tmp_path):
    made = models.config("albert", 4)
    made.num_hidden_groups = 2
    models.save("albert", tmp_path)
    AutoModel.from_config(made).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    groups = [point.module.split(".")[2] for point in encoder.points]
    assert groups == ["0", "0", "0", "1", "1"]
    (_, batch), *_ = batches(encoder, 10_000)
    assert list(record_layers(encoder, batch)) == [0, 1, 2, 3, 4]


def test_flaubert_with_the_norm_before(folders, monkeypatch):
    """transformers 5.23 indexes a cache that takes none. Where that is mended, the sums are read, not their norms."""
    from transformers.models.flaubert import modeling_flaubert

    folder = folders(BROKEN)
    try:
        encoder = load_encoder(str(folder))
    except InputError as error:
        assert "cannot be run ('EncoderDecoderCache' object is not subscriptable)" in str(error)  # noqa: PT017
        monkeypatch.setattr(modeling_flaubert.EncoderDecoderCache, "__getitem__", lambda *args: None, raising=False)
        encoder = load_encoder(str(folder))
    assert_depth_oracle(BROKEN, encoder, folder)


# ---------------------------------------------------------------------------------------------------------------- hooks


@pytest.mark.parametrize("shape", RUNNING)
def test_no_hook_stays_and_a_foreign_one_survives(shape, load):
    encoder = load(shape)
    (_, batch), *_ = batches(encoder)
    calls: list[str] = []
    module = encoder.model.get_submodule(encoder.points[-1].module)
    foreign = module.register_forward_hook(lambda *args: calls.append("foreign"))
    before = installed_hooks(encoder.model)

    def broken(layer: int, hidden: torch.Tensor) -> None:
        raise ZeroDivisionError

    try:
        record_layers(encoder, batch)
        assert installed_hooks(encoder.model) == before
        assert calls
        with pytest.raises(ZeroDivisionError), tap(encoder, broken):
            encoder.forward(batch)
        assert installed_hooks(encoder.model) == before
        with pytest.raises((IndexError, RuntimeError, TypeError)), tap(encoder, lambda layer, hidden: None):
            encoder.model(input_ids=batch.ids.float() + 0.5)
        assert installed_hooks(encoder.model) == before
        Extractor(encoder)(fitting_texts(encoder))
        assert installed_hooks(encoder.model) == before
        assert foreign.id in module._forward_hooks
    finally:
        foreign.remove()


def test_a_block_that_runs_too_often_is_named(load):
    encoder = load("bert")
    (_, batch), *_ = batches(encoder)
    again = encoder.blocks[1]
    extra = encoder.blocks[2].register_forward_pre_hook(lambda module, args: again(*args) and None)
    try:
        with pytest.raises(RuntimeError, match=r"encoder\.layer\.1 ran more than 1 times"):
            record_layers(encoder, batch)
    finally:
        extra.remove()


def test_every_pass_counts_anew(load):
    """A module that runs many times is counted from the start of each pass, also after one that broke off."""
    encoder = load("albert-2")
    (_, batch), *_ = batches(encoder)
    seen: list[int] = []

    def read(layer: int, hidden: torch.Tensor) -> None:
        seen.append(layer)
        if seen == [0, 1, 2, 3]:
            raise ZeroDivisionError

    with tap(encoder, read):
        with pytest.raises(ZeroDivisionError):
            encoder.forward(batch)
        encoder.forward(batch)
        encoder.forward(batch)
    assert seen == [0, 1, 2, 3, *range(7), *range(7)]


# ------------------------------------------------------------------------------------------------------ the self-check


@pytest.mark.parametrize("shape", RUNNING)
def test_batches_side_by_side_are_those_one_by_one(shape, load):
    """Threads share the model: nothing that one pass leaves in it may reach another."""
    encoder = load(shape)
    texts = fitting_texts(encoder) * 3
    alone = stack_cells(Extractor(encoder, ["mean", "max"], max_tokens_per_batch=1)(texts))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        together = stack_cells(Extractor(encoder, ["mean", "max"], max_tokens_per_batch=1)(texts))
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    if encoder.adapter.before:  # its batches run one after another, each on all threads, which may sum in another order
        np.testing.assert_allclose(together, alone, atol=1e-5)
    else:
        np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("shape", RUNNING)
def test_what_a_text_stands_with_changes_nothing(shape, load):
    """Where padding leaks, because texts of equal length stand together; and the source says so."""
    encoder = load(shape)
    texts = fitting_texts(encoder)
    alone, together = (Extractor(encoder, max_tokens_per_batch=budget)(texts) for budget in (1, 10_000))
    expected = stack_cells(alone)  # (layer, readout, text, dim)
    largest = np.nanmax(
        np.abs(expected), axis=(1, 2, 3), keepdims=True
    )  # some hundreds in MobileBERT: so is its rounding
    scale = np.maximum(largest / 4, 1)
    np.testing.assert_allclose(stack_cells(together) / scale, expected / scale, rtol=0, atol=2e-5)
    source = json.loads(json.dumps(together.source, allow_nan=False))
    leaks = model_type(shape) in LEAKING
    assert source["batched"] == ("by equal length" if leaks else "by length, padded")
    checked = source["self_check"]
    assert checked["leaks"] == leaks
    assert (checked["twice"], checked["order"] <= 1e-6) == (0, True)
    if not leaks:
        assert checked["padded"] < 2e-6


@pytest.mark.parametrize("shape", sorted(LEAKING - {"big_bird", "mobilebert", "funnel", "canine"}))
def test_a_leak_is_measured(shape, load, monkeypatch):
    """Also where nobody knew of it: the figure alone leads to batches of equal length."""
    assert load(shape).checked["padded"] > 1e-2


def test_an_unforeseen_leak_is_seen(folders, monkeypatch):
    """A model that does not heed its mask."""
    from transformers import BertModel

    kept = BertModel.forward
    monkeypatch.setattr(BertModel, "forward", lambda self, attention_mask=None, **inputs: kept(self, **inputs))
    encoder = load_encoder(str(folders("bert")))
    assert encoder.checked["padded"] > 1e-2
    states = Extractor(encoder)(TEXTS)
    assert states.source["batched"] == "by equal length"
    np.testing.assert_allclose(
        stack_cells(states), stack_cells(Extractor(encoder, max_tokens_per_batch=1)(TEXTS)), atol=2e-5
    )


def test_big_bird_is_sparse_again_after_a_short_text(load):
    encoder = load("big_bird")
    long = [text for text in TEXTS if len(encoder.tokenize([text])[0].ids) > 14]
    assert long
    first = stack_cells(Extractor(encoder, ["mean"])(long))
    Extractor(encoder, ["mean"])(["cat"])
    assert np.array_equal(stack_cells(Extractor(encoder, ["mean"])(long)), first)
    encoder.model.config.attention_type = "original_full"
    assert not np.array_equal(stack_cells(Extractor(encoder, ["mean"])(long)), first)
    encoder.model.config.attention_type = "block_sparse"


def test_plans_of_equal_lengths():
    rng = np.random.default_rng(0)
    for _ in range(100):
        lengths = rng.integers(1, 9, size=rng.integers(0, 50))
        budget = int(rng.integers(1, 40))
        found = plan_batches(lengths, budget, equal=True)
        assert sorted(np.concatenate([[], *found])) == list(range(len(lengths)))
        assert all(len(set(lengths[rows])) == 1 for rows in found)
        assert all(len(rows) == 1 or lengths[rows].sum() <= budget for rows in found)


# ---------------------------------------------------------------------------------------------- readouts, final norms


@pytest.mark.parametrize("shape", NORMED)
def test_the_final_norm_is_a_suffix(shape, load):
    encoder = load(shape)
    names = ["token[1]", "token[1]+norm", "mean+norm", "max+norm"]
    states = Extractor(encoder, names, max_tokens_per_batch=60)(TEXTS)
    assert [cell for cell in states.cells if "+norm" in cell[1]] == [(3, name) for name in names[1:]]
    with pytest.raises(KeyError, match="no cell"):
        states.cell(2, "mean+norm")
    for chosen, batch in batches(encoder):
        with torch.no_grad():
            final = encoder.forward(batch).last_hidden_state
        for readout in parse_readouts(["token[1]", "mean", "max"]):
            there = readout.present(batch).numpy()
            wanted = readout.read(final, batch).numpy()[there]
            assert np.array_equal(states.cell(3, f"{readout.name}+norm")[chosen][there], wanted)


def test_final_norms_that_are_not_there(load):
    with pytest.raises(InputError, match=r"'cls\+norm': no norm follows the last layer of .*\. Use cls"):
        Extractor(load("bert"), ["cls+norm"])
    with pytest.raises(InputError, match=r"'cls\+norm' is read at layer 3 only\. Add 3 to --layers"):
        Extractor(load("modernbert"), ["cls", "cls+norm"], layers=[0, 2])
    for name in ("cls+norm+norm", "+norm", "cls+nrom"):
        with pytest.raises(InputError, match="unknown readout"):
            parse_readouts([name])


@pytest.mark.parametrize("shape", ["gpt2", "llama", "opt", "t5"])
def test_a_model_without_cls(shape, load):
    encoder = load(shape)
    has = [name for name in DEFAULT if name != "cls" and (name != "sep" or shape == "t5")]
    assert list(Extractor(encoder)(TEXTS).readouts) == has
    for name in ("cls", "cls+norm"):
        with pytest.raises(InputError) as caught:
            Extractor(encoder, ["mean", name])
        assert str(caught.value) == (
            f"--readouts: the tokenizer of {encoder.name} adds no cls token. Choose among {', '.join(has)}."
        )


@pytest.mark.parametrize(("shape", "at"), [("bert", 0), ("xlm", 0), ("flaubert", 0), ("xlnet", -1), ("canine", 0)])
def test_where_cls_stands(shape, at, load):
    encoder = load(shape)
    batch = encoder.batch(encoder.tokenize(["cat dog"]))
    (readout,) = parse_readouts(["cls"])
    assert readout.position(batch).tolist() == [at % batch.ids.shape[1]]


# ------------------------------------------------------------------------------------------------- weights, the unknown


def test_a_decoder_is_not_needed(folders, tmp_path):
    weights = load_file(folders("t5") / "model.safetensors")
    for file in folders("t5").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    kept = {key: value for key, value in weights.items() if not key.startswith("decoder.")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = stack_cells(Extractor(load_encoder(str(tmp_path)), ["mean"])(TEXTS))
    assert np.array_equal(found, stack_cells(Extractor(load_encoder(str(folders("t5"))), ["mean"])(TEXTS)))
    lost = {key: value for key, value in kept.items() if ".block.1." not in key}
    save_file(lost, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"its weights lack encoder\.block\.1"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize("shape", ["bert", "deberta", "fnet", "modernbert", "llama", "rembert"])
def test_an_unknown_architecture_that_passes(shape, load, folders, monkeypatch):
    known = load(shape)
    monkeypatch.delitem(ADAPTERS, shape)
    encoder = load_encoder(str(folders(shape)))
    assert (encoder.adapter.blocks, encoder.adapter.norm) == (known.adapter.blocks, known.adapter.norm)
    assert encoder.checked["leaks"] == known.checked["leaks"]
    wanted, found = (stack_cells(Extractor(each)(TEXTS)) for each in (known, encoder))
    assert np.array_equal(found, wanted, equal_nan=True)


@pytest.mark.parametrize("shape", ["squeezebert", "canine", "albert", "mobilebert", "deberta-v2-conv", "longformer"])
def test_an_unknown_architecture_that_does_not(shape, folders, monkeypatch):
    """mobilebert has other lists of the same length; longformer shows more tokens than it was given, but is cut."""
    kept = ADAPTERS[model_type(shape)]
    monkeypatch.delitem(ADAPTERS, model_type(shape))
    if shape in ("longformer", "deberta-v2-conv"):  # only the layers between are not what they seem
        encoder = load_encoder(str(folders(shape)))
        assert encoder.adapter.blocks == kept.blocks
        return
    with pytest.raises(InputError, match=f"model_type '{model_type(shape)}' is not") as caught:
        load_encoder(str(folders(shape)))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(SUPPORTED + ".")


@pytest.mark.parametrize("shape", ["xlm", "t5", "gpt2", "funnel", "xlnet"])
def test_an_unknown_configuration(shape, folders, monkeypatch):
    """Its depth and width have names of their own: there is nothing to guess from."""
    monkeypatch.delitem(ADAPTERS, shape)
    with pytest.raises(InputError, match=f"model_type '{shape}' is not supported"):
        describe(str(folders(shape)))


# --------------------------------------------------------------------------------------------------------- the document


def documented() -> list[str]:
    """The rows of the table in docs/models.md."""
    rows = []
    for kind, adapter in sorted(ADAPTERS.items()):
        first, second, *_ = adapter.points(3, {})
        cells = (
            f"`{kind}`",
            f"into `{first.module}`",
            f"{'into' if second.side == 'in' else 'out of'} `{adapter.blocks}`",
            f"`{adapter.norm}`" if adapter.norm else "",
            f"by equal length: {adapter.leaks}" if adapter.leaks else "padded",
            adapter.note,
        )
        rows.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    return rows


def test_the_document_is_the_table():
    """Where it is not, put the rows that this test shows into docs/models.md."""
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("| `")] == documented()
