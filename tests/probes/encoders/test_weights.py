"""Weights as people have them: variants, wrappers, kernels of another machine, and what the folder holds instead."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from models import TEXTS
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from vectors import stack_cells

from clsprobe.probes.encoders.describing import describe
from clsprobe.probes.encoders.finding import list_files
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import Extractor

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A read-only BERT."""
    return models.save("bert", tmp_path_factory.mktemp("bert"), layers=2)


@pytest.fixture
def folder(bert, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(bert, tmp_path / "model"))


@pytest.fixture(scope="module")
def vectors(bert) -> np.ndarray:
    return vectors_of(bert)


def vectors_of(folder: Path) -> np.ndarray:
    return stack_cells(Extractor(load_encoder(str(folder)), ["cls", "mean"])(TEXTS))


def notes_of(folder: Path) -> str:
    return " ".join(describe(str(folder)).notes)


def rewrite(folder: Path, change) -> None:
    """Replace the weights by what `change` makes of name -> tensor."""
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# ------------------------------------------------------------------------------------------------------------- variants


@pytest.mark.parametrize("shards", [1, 3])
def test_a_variant_is_read_where_it_is_all_there_is(folder, shards):
    model = AutoModel.from_pretrained(folder).half()
    whole = folder / "model.safetensors"
    size = whole.stat().st_size
    whole.unlink()
    model.save_pretrained(folder, variant="fp16", max_shard_size=f"{size // 2 // shards // 1000 + 1}KB")
    file = "model.fp16.safetensors" if shards == 1 else "model.safetensors.index.fp16.json"
    assert (folder / file).exists()
    assert f"The weights are those of {file}, the only ones in the folder (the variant fp16)." in notes_of(folder)
    with torch.no_grad():
        rounded = AutoModel.from_pretrained(folder, variant="fp16", dtype=torch.float32)
    encoder = load_encoder(str(folder))
    for name, tensor in rounded.state_dict().items():
        assert torch.equal(encoder.model.state_dict()[name], tensor)
    described = describe(str(folder))
    assert {path.name for path in described.weights.files} <= list_files(folder).keys()  # they are in the digest


def test_a_variant_beside_whole_weights_is_left_alone(folder, vectors):
    save_file({"a": torch.zeros(1)}, folder / "model.fp16.safetensors")
    assert np.array_equal(vectors_of(folder), vectors, equal_nan=True)
    assert describe(str(folder)).notes == ()


# ------------------------------------------------------------------------------------------------------------- wrappers


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module.bert."])
def test_what_a_wrapper_puts_before_every_name_is_left_out(folder, vectors, prefix):
    rewrite(folder, lambda weights: {prefix + name: tensor for name, tensor in weights.items()})
    assert np.array_equal(vectors_of(folder), vectors, equal_nan=True)
    assert f"begins with '{prefix.removesuffix('bert.')}'" in notes_of(folder)


def test_a_prefix_that_not_every_name_has_is_no_wrapper(folder):
    rewrite(folder, lambda w: {("" if "embed" in name else "module.") + name: tensor for name, tensor in w.items()})
    with pytest.raises(InputError, match=r"its weights lack encoder\.layer\.0.* and \d+ more"):
        load_encoder(str(folder))


# -------------------------------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize(
    ("key", "kernel"),
    [
        ("attn_implementation", "flash_attention_2"),
        ("_attn_implementation", "kernels-community/flash-attn"),
        ("attn_implementation", {"": "flash_attention_3"}),
    ],
)
def test_a_kernel_of_another_machine_is_replaced_by_that_of_torch(folder, vectors, key, kernel):
    config = json.loads((folder / "config.json").read_text()) | {key: kernel}
    (folder / "config.json").write_text(json.dumps(config))
    encoder = load_encoder(str(folder))
    assert encoder.model.config._attn_implementation == "sdpa"
    assert np.array_equal(stack_cells(Extractor(encoder, ["cls", "mean"])(TEXTS)), vectors, equal_nan=True)
    assert f"the attention kernel {kernel!r}; the attention of torch itself is run instead" in notes_of(folder)
    assert load_encoder(str(folder), untrained=0).model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kernel", ["eager", "sdpa", None])
def test_a_kernel_of_torch_is_the_one_that_runs(folder, kernel):
    config = json.loads((folder / "config.json").read_text()) | {"attn_implementation": kernel}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_encoder(str(folder)).model.config._attn_implementation == (kernel or "sdpa")
    assert describe(str(folder)).notes == ()


# -------------------------------------------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_without_the_right_to_read_it(folder, file, monkeypatch):
    open_file = os.open

    def refuse(path, *args, **options):  # root may read everything
        if str(path).endswith(file):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_file(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError) as caught:
        describe(str(folder))
    assert str(caught.value) == (
        f"{folder}/{file}: cannot be read (permission denied). Give yourself the right to read it (chmod u+r)."
    )


def test_a_folder_without_the_right_to_list_it(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"model: cannot be read \(permission denied\)\. Give yourself the right"):
        describe(str(folder))


def test_too_little_memory(folder, monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("transformers.BertModel.from_pretrained", refuse)
    with pytest.raises(InputError, match=r"allocate memory\)\. It needs more memory than is free"):
        load_encoder(str(folder))


def test_a_library_that_is_missing(folder, monkeypatch):
    def refuse(*args, **options):
        raise ImportError("requires the SentencePiece library but it was not found")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    with pytest.raises(InputError, match=r"SentencePiece library.*\)\. Install the library that is missing"):
        load_encoder(str(folder))
