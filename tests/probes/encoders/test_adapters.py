"""The layers of every architecture are read bit for bit, and reading leaves nothing behind."""

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
NEVER_EMPTY = {"deberta-v2", "deberta-v2-conv", "longformer", "modernbert"}  # they need at least one block
LEAKING = {"big_bird", "canine", "convbert", "fnet", "funnel", "mobilebert", "nystromformer", "yoso"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a small random encoder of one shape; read-only."""
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


def load_shallower(shape: str, weights: dict[str, torch.Tensor], layers: int) -> torch.nn.Module:
    """A model with `layers` layers, the same weights, and nothing after the last layer.

    It shares the weights: torch may multiply in another order for a copy, or where weights require gradients.
    """
    config = models.config(shape, layers)
    if shape == "funnel":
        config.block_sizes, config.block_repeats, config.architectures = [layers], [1], ["FunnelBaseModel"]
    model = AutoModel.from_config(config).eval().requires_grad_(False)
    shared = {key: value for key, value in weights.items() if key in model.state_dict()}
    report = model.load_state_dict(shared, strict=False, assign=True)
    assert not [key for key in report.missing_keys if key.startswith(ADAPTERS[model_type(shape)].part)]
    adapter = ADAPTERS[model_type(shape)]
    if adapter.norm:
        parent, _, name = adapter.norm.rpartition(".")
        setattr(model.get_submodule(parent), name, torch.nn.Identity())
    return model.get_submodule(adapter.part)


def last_states(shape: str, model: torch.nn.Module, layers: int, encoder: Encoder, batch: Any) -> torch.Tensor:
    """The last hidden states of a model with `layers` layers."""
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


def check_shallower_models(shape: str, encoder: Encoder, folder: Path) -> None:
    part = f"{encoder.adapter.part}." if encoder.adapter.part else ""
    weights = {f"{part}{key}": value for key, value in encoder.model.state_dict().items()}
    inner = 2 if shape == "albert-2" else 1
    assert encoder.description.layers == 3 * inner
    runs = [(batch, record_layers(encoder, batch)) for _, batch in batches(encoder)]
    if shape in NEVER_EMPTY:
        unmodified = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        for batch, layers in runs:
            with torch.no_grad():
                output = unmodified(input_ids=batch.ids, attention_mask=batch.real.long(), output_hidden_states=True)
            assert torch.equal(layers[0], output.hidden_states[0][:, : batch.ids.shape[1]])
    for layer in range(inner if shape in NEVER_EMPTY else 0, 3 * inner + 1, inner):
        model = load_shallower(shape, weights, layer // inner)
        for batch, layers in runs:
            assert list(layers) == list(range(3 * inner + 1))
            with torch.no_grad():
                expected = last_states(shape, model, layer // inner, encoder, batch)
            assert expected.shape == (*batch.ids.shape, DIM)
            assert torch.equal(layers[layer], expected), layer


@pytest.mark.parametrize("shape", RUNNING)
def test_layers_are_those_of_shallower_models(shape, load, folders):
    """0 differing bits, padding included."""
    check_shallower_models(shape, load(shape), folders(shape))


def test_inner_layers_of_a_group(load, folders):
    """With two layers in a group, the models of k layers give every other layer; transformers' own hooks give all."""
    encoder = load("albert-2")
    model = AutoModel.from_pretrained(folders("albert-2"), dtype=torch.float32).eval()
    for _, batch in batches(encoder):
        with torch.no_grad():
            output = model(input_ids=batch.ids, attention_mask=batch.real.long(), output_hidden_states=True)
        hidden = record_layers(encoder, batch)
        assert len(output.hidden_states) == len(hidden) == 7
        assert all(torch.equal(hidden[layer], expected) for layer, expected in enumerate(output.hidden_states))


def test_groups_of_albert(tmp_path):
    config = models.config("albert", 4)
    config.num_hidden_groups = 2
    models.save("albert", tmp_path)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    groups = [point.module.split(".")[2] for point in encoder.points]
    assert groups == ["0", "0", "0", "1", "1"]
    (_, batch), *_ = batches(encoder, 10_000)
    assert list(record_layers(encoder, batch)) == [0, 1, 2, 3, 4]


def test_flaubert_with_the_norm_before(folders, monkeypatch):
    """transformers 5.23 fails to index a cache. With that patched, the sums are read, not their norms."""
    from transformers.models.flaubert import modeling_flaubert

    folder = folders(BROKEN)
    try:
        encoder = load_encoder(str(folder))
    except InputError as error:
        assert "cannot be run ('EncoderDecoderCache' object is not subscriptable)" in str(error)  # noqa: PT017
        monkeypatch.setattr(modeling_flaubert.EncoderDecoderCache, "__getitem__", lambda *args: None, raising=False)
        encoder = load_encoder(str(folder))
    check_shallower_models(BROKEN, encoder, folder)


# ---------------------------------------------------------------------------------------------------------------- hooks


@pytest.mark.parametrize("shape", RUNNING)
def test_no_hook_remains_and_a_foreign_one_survives(shape, load):
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
    block = encoder.blocks[1]
    extra = encoder.blocks[2].register_forward_pre_hook(lambda module, args: block(*args) and None)
    try:
        with pytest.raises(RuntimeError, match=r"encoder\.layer\.1 ran more than 1 times"):
            record_layers(encoder, batch)
    finally:
        extra.remove()


def test_runs_are_counted_per_pass(load):
    """The runs of a module are counted from the start of each pass, also after a pass that failed."""
    encoder = load("albert-2")
    (_, batch), *_ = batches(encoder)
    layers: list[int] = []

    def read(layer: int, hidden: torch.Tensor) -> None:
        layers.append(layer)
        if layers == [0, 1, 2, 3]:
            raise ZeroDivisionError

    with tap(encoder, read):
        with pytest.raises(ZeroDivisionError):
            encoder.forward(batch)
        encoder.forward(batch)
        encoder.forward(batch)
    assert layers == [0, 1, 2, 3, *range(7), *range(7)]


# ------------------------------------------------------------------------------------------------------- the self-check


@pytest.mark.parametrize("shape", RUNNING)
def test_concurrent_batches_equal_sequential_ones(shape, load):
    """Threads share the model: no state of one pass may affect another."""
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
def test_other_texts_in_a_batch_change_nothing(shape, load):
    """Where padding leaks, texts are batched by equal length, and the source says so."""
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
    """Padding changes the vectors of these architectures."""
    assert load(shape).checked["padded"] > 1e-2


def test_an_unknown_leak_is_detected(folders, monkeypatch):
    """A model that ignores its mask; the measured leak alone leads to batches of equal length."""
    from transformers import BertModel

    forward = BertModel.forward
    monkeypatch.setattr(BertModel, "forward", lambda self, attention_mask=None, **inputs: forward(self, **inputs))
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
        plan = plan_batches(lengths, budget, equal=True)
        assert sorted(np.concatenate([[], *plan])) == list(range(len(lengths)))
        assert all(len(set(lengths[rows])) == 1 for rows in plan)
        assert all(len(rows) == 1 or lengths[rows].sum() <= budget for rows in plan)


# ------------------------------------------------------------------------------------------------ readouts, final norms


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
            present = readout.present(batch).numpy()
            expected = readout.read(final, batch).numpy()[present]
            assert np.array_equal(states.cell(3, f"{readout.name}+norm")[chosen][present], expected)


def test_missing_final_norms(load):
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
    available = [name for name in DEFAULT if name != "cls" and (name != "sep" or shape == "t5")]
    assert list(Extractor(encoder)(TEXTS).readouts) == available
    for name in ("cls", "cls+norm"):
        with pytest.raises(InputError) as caught:
            Extractor(encoder, ["mean", name])
        assert str(caught.value) == (
            f"--readouts: the tokenizer of {encoder.name} adds no cls token. Choose among {', '.join(available)}."
        )


@pytest.mark.parametrize(
    ("shape", "position"), [("bert", 0), ("xlm", 0), ("flaubert", 0), ("xlnet", -1), ("canine", 0)]
)
def test_the_position_of_cls(shape, position, load):
    encoder = load(shape)
    batch = encoder.batch(encoder.tokenize(["cat dog"]))
    (readout,) = parse_readouts(["cls"])
    assert readout.position(batch).tolist() == [position % batch.ids.shape[1]]


# ------------------------------------------------------------------------------------------------- weights, the unknown


def test_a_decoder_is_not_needed(folders, tmp_path):
    weights = load_file(folders("t5") / "model.safetensors")
    for file in folders("t5").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    encoder_weights = {key: value for key, value in weights.items() if not key.startswith("decoder.")}
    save_file(encoder_weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    vectors = stack_cells(Extractor(load_encoder(str(tmp_path)), ["mean"])(TEXTS))
    assert np.array_equal(vectors, stack_cells(Extractor(load_encoder(str(folders("t5"))), ["mean"])(TEXTS)))
    incomplete = {key: value for key, value in encoder_weights.items() if ".block.1." not in key}
    save_file(incomplete, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"its weights lack encoder\.block\.1"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize("shape", ["bert", "deberta", "fnet", "modernbert", "llama", "rembert"])
def test_an_unknown_architecture_that_passes_the_checks(shape, load, folders, monkeypatch):
    known = load(shape)
    monkeypatch.delitem(ADAPTERS, shape)
    encoder = load_encoder(str(folders(shape)))
    assert (encoder.adapter.blocks, encoder.adapter.norm) == (known.adapter.blocks, known.adapter.norm)
    assert encoder.checked["leaks"] == known.checked["leaks"]
    expected, vectors = (stack_cells(Extractor(model)(TEXTS)) for model in (known, encoder))
    assert np.array_equal(vectors, expected, equal_nan=True)


@pytest.mark.parametrize("shape", ["squeezebert", "canine", "albert", "mobilebert", "deberta-v2-conv", "longformer"])
def test_an_unknown_architecture_that_fails_the_checks(shape, folders, monkeypatch):
    """mobilebert has other lists of the same length; longformer pads its input, but its states are cut."""
    adapter = ADAPTERS[model_type(shape)]
    monkeypatch.delitem(ADAPTERS, model_type(shape))
    if shape in ("longformer", "deberta-v2-conv"):  # only their intermediate layers are ambiguous
        encoder = load_encoder(str(folders(shape)))
        assert encoder.adapter.blocks == adapter.blocks
        return
    with pytest.raises(InputError, match=f"model_type '{model_type(shape)}' is not") as caught:
        load_encoder(str(folders(shape)))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(SUPPORTED + ".")


@pytest.mark.parametrize("shape", ["xlm", "t5", "gpt2", "funnel", "xlnet"])
def test_an_unknown_configuration(shape, folders, monkeypatch):
    """Its depth and width have unusual names, so they cannot be guessed."""
    monkeypatch.delitem(ADAPTERS, shape)
    with pytest.raises(InputError, match=f"model_type '{shape}' is not supported"):
        describe(str(folders(shape)))


# --------------------------------------------------------------------------------------------------------- the document


def document_rows() -> list[str]:
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


def test_the_documentation_lists_every_adapter():
    """If it fails, copy the rows that it prints into docs/models.md."""
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("| `")] == document_rows()
