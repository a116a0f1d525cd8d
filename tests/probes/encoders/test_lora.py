"""An adapter of PEFT is read as the model with its matrices added, found, digested and described with its base.

The sum W + (lora_alpha / r) B A is made by hand. What calls PEFT runs with a small stand-in, and with PEFT itself where
that is installed.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import fake_peft
import models
import numpy as np
import pytest
import torch
from models import DIM, TEXTS
from safetensors.torch import load_file, save_file
from vectors import stack_cells

from clsprobe.probes.encoders import lora
from clsprobe.probes.encoders.describing import describe
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.encoders.lora import _resolve_pattern
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import Extractor

pytestmark = pytest.mark.usefixtures("one_thread")
RANK, ALPHA = 2, 6
TARGETS = [f"encoder.layer.{layer}.attention.self.{name}" for layer in range(2) for name in ("query", "value")]
IS_INSTALLED = importlib.util.find_spec("peft") is not None


@pytest.fixture(params=["a stand-in", "PEFT"])
def peft(request, monkeypatch) -> None:
    if request.param == "PEFT":
        pytest.importorskip("peft")
        return
    monkeypatch.setitem(sys.modules, "peft", fake_peft)
    monkeypatch.setattr(lora, "find_spec", lambda name: ModuleSpec(name, None))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A read-only BERT of two layers."""
    return models.save("bert", tmp_path_factory.mktemp("base"), layers=2)


def draw_matrices(prefix: str = "") -> dict[str, torch.Tensor]:
    """Name -> matrix of an adapter, as PEFT saves them."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"A": (RANK, DIM), "B": (DIM, RANK)}
    return {
        f"base_model.model.{prefix}{path}.lora_{side}.weight": torch.randn(shape, generator=generator)
        for path in TARGETS
        for side, shape in shapes.items()
    }


def save_adapter(folder: Path, base: object, matrices: dict[str, torch.Tensor], **config) -> Path:
    folder.mkdir()
    save_file(matrices, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["query", "value"]}
    config = settings | {"base_model_name_or_path": str(base), "task_type": None} | config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def merged(base, tmp_path_factory) -> Path:
    """The sum, by hand."""
    folder = models.save("bert", tmp_path_factory.mktemp("merged"), layers=2)
    weights, matrices = load_file(base / "model.safetensors"), draw_matrices()
    for path in TARGETS:
        a, b = (matrices[f"base_model.model.{path}.lora_{side}.weight"] for side in "AB")
        weights[f"{path}.weight"] += ALPHA / RANK * (b @ a)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def vectors_of(folder: Path | str) -> np.ndarray:
    return stack_cells(Extractor(load_encoder(str(folder)), ["cls", "mean"])(TEXTS))


@pytest.mark.parametrize("prefix", ["", "bert."], ids=["of the encoder", "of a classifier"])
def test_an_adapter_is_added_to_its_model(peft, base, merged, tmp_path, prefix):
    tensors = draw_matrices(prefix) | {"base_model.model.classifier.weight": torch.ones(2, DIM)}
    folder = save_adapter(tmp_path / "adapter", base, tensors)
    assert np.allclose(vectors_of(folder), vectors_of(merged), atol=1e-5, equal_nan=True)
    assert not np.allclose(vectors_of(folder), vectors_of(base), atol=1e-2, equal_nan=True)
    description = describe(str(folder))
    assert description.notes == (f"The folder holds a PEFT adapter, which is merged into the weights of {base}.",)
    assert (description.layers, description.dim) == (2, DIM)


def test_weights_that_were_trained_as_a_whole_are_taken(peft, base, tmp_path):
    bias = "encoder.layer.1.output.dense.bias"
    folder = save_adapter(tmp_path / "adapter", base, draw_matrices() | {f"base_model.model.{bias}": torch.ones(DIM)})
    assert torch.equal(load_encoder(str(folder)).model.state_dict()[bias], torch.ones(DIM))


def test_the_untrained_twin_has_no_adapter(peft, base, tmp_path):
    folder = save_adapter(tmp_path / "adapter", base, draw_matrices())
    twins = [load_encoder(str(name), untrained=1).model.state_dict() for name in (folder, base)]
    assert all(torch.equal(twins[0][name], twins[1][name]) for name in twins[1])


def test_adapter_and_base_are_in_the_digest(peft, base, tmp_path):
    copy = models.save("bert", tmp_path / "base", layers=2)
    folder = save_adapter(tmp_path / "adapter", copy, draw_matrices())
    digests = [describe(str(folder)).digest]
    for path in (folder / "adapter_config.json", copy / "config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"note": 1}))
        digests.append(describe(str(folder)).digest)
    assert len(set(digests)) == 3
    assert describe(str(copy)).digest not in digests


def test_a_tokenizer_of_its_own_is_the_one_that_reads(peft, base, tmp_path):
    folder = save_adapter(tmp_path / "adapter", base, draw_matrices())
    assert describe(str(folder)).tokenizer_folder == base
    tokenizer = models.tokenizer("bert")
    tokenizer.model_max_length = 12
    tokenizer.save_pretrained(folder)
    description = describe(str(folder))
    assert (description.tokenizer_folder, description.max_length) == (folder, 12)
    assert load_encoder(description).tokenizer.model_max_length == 12


def test_the_base_is_found_like_any_model(peft, base, tmp_path, monkeypatch):
    (tmp_path / "hub" / "models--org--name" / "refs").mkdir(parents=True)
    (tmp_path / "hub" / "models--org--name" / "refs" / "main").write_text("0" * 40)
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / ("0" * 40)
    models.save("bert", snapshot, layers=2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = save_adapter(tmp_path / "adapter", "org/name", draw_matrices())
    description = describe(str(folder))
    assert description.folder == snapshot
    assert description.notes[0].endswith("merged into the weights of org/name.")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            "./nowhere",
            "base_model_name_or_path: no such directory ./nowhere. Write the folder or hub name",
        ),
        ("../adapter", "base_model_name_or_path is ../adapter, which is an adapter too. Write the folder or hub name"),
        ("org/no-such-model", "base_model_name_or_path: model 'org/no-such-model' is not in the local cache"),
    ],
)
def test_a_base_that_is_not_there(peft, tmp_path, monkeypatch, named, message):
    folder = save_adapter(tmp_path / "adapter", named, draw_matrices())
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(InputError) as caught:
        describe(str(folder))
    assert str(caught.value).startswith(f"{folder}/adapter_config.json: {message}")


def test_an_adapter_of_another_model(peft, base, tmp_path):
    matrices = {name.replace("encoder", "decoder"): tensor for name, tensor in draw_matrices().items()}
    folder = save_adapter(tmp_path / "adapter", base, matrices)
    with pytest.raises(InputError, match=r"holds an adapter of another model than .*: it changes decoder.layer.0"):
        load_encoder(str(folder))


def test_half_of_a_pair_of_matrices_is_missing(peft, base, tmp_path):
    matrices = draw_matrices()
    del matrices[f"base_model.model.{TARGETS[0]}.lora_B.weight"]
    folder = save_adapter(tmp_path / "adapter", base, matrices)
    with pytest.raises(InputError, match=r"adapter_model.safetensors: does not fit its adapter_config.json \(.*lora_B"):
        load_encoder(str(folder))


def test_settings_that_cannot_be(peft, base, tmp_path):
    folder = save_adapter(tmp_path / "adapter", base, draw_matrices(), lora_alpha="much")
    with pytest.raises(InputError, match=r"adapter_config.json: cannot be merged \(.*\)\. Save the adapter again"):
        load_encoder(str(folder))


def test_a_weight_of_another_shape(peft, base, tmp_path):
    name = "embeddings.word_embeddings.weight"
    matrices = draw_matrices() | {f"base_model.model.{name}": torch.ones(99, DIM)}
    folder = save_adapter(tmp_path / "adapter", base, matrices)
    with pytest.raises(InputError, match=r"word_embeddings.weight has the shape \[99, 16\], in .* \[34, 16\]"):
        load_encoder(str(folder))


@pytest.mark.skipif(IS_INSTALLED, reason="PEFT is installed")
def test_without_peft_it_is_named(base, tmp_path):
    folder = save_adapter(tmp_path / "adapter", base, draw_matrices())
    with pytest.raises(InputError) as caught:
        describe(str(folder))
    assert str(caught.value) == (
        f"{folder}: is a PEFT adapter of {base}, and peft, which merges it, is not installed. "
        "Run pip install peft, or merge it elsewhere (model.merge_and_unload()) and pass the merged model."
    )


def test_patterns_are_those_of_the_modules_with_their_head():
    modules = {"bert.layer.1.query", "bert.layer.11.query", "bert.layer.1.value"}
    assert _resolve_pattern({"layer.1.query": 4, "value": 2}, modules, "bert.") == {
        r"^layer\.1\.query": 4,
        r"^layer\.1\.value": 2,
    }
    assert _resolve_pattern({"^bert.layer.11.query": 1}, modules, "bert.") == {r"^layer\.11\.query": 1}
