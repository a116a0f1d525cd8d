"""What is known of a model before torch is imported.

`describe` finds its folder and reads its configuration: which layers there are, how long a text may be, and everything
that would stop it from loading (pickle weights, remote code, no tokenizer).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from clsprobe.probes.encoders.adapters import ADAPTERS, SUPPORTED, Adapter, Point, adapter_of
from clsprobe.probes.encoders.finding import (
    EMBEDDED,
    READ_SUFFIXES,
    TOKENIZERS,
    WEIGHTS,
    embedded_folder,
    encoder_folder,
    find_folder,
    read_json,
)
from clsprobe.probes.errors import InputError
from clsprobe.probes.files import file_digest

_DEPTH = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers")
_WIDTH = ("hidden_size", "dim", "d_model", "n_embd", "emb_dim")
LARGEST, DEEPEST = 10**7, 1000  # a dimension or a position, a number of layers: more stands in no real config.json


@dataclass(frozen=True, eq=False)
class Description:
    """What is known of a model before torch is imported.

    depth: the number of blocks that config.json names; `layers`, above the embedding output (layer 0), may be more or
    fewer where a block is no plain layer. max_length: the longest input in tokens, special ones included.
    revision: the hub's commit, None for a folder of the user's own.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    depth: int
    dim: int
    max_length: int
    revision: str | None = None

    @property
    def model_type(self) -> str:
        """The architecture, as config.json names it."""
        return self.config["model_type"]

    @property
    def adapter(self) -> Adapter:
        """How this architecture is read; a guess where it is not known."""
        return adapter_of(self.model_type)

    @cached_property
    def points(self) -> list[Point]:
        """Where layer 0, 1, ... are read."""
        return self.adapter.points(self.depth, self.config)

    @property
    def layers(self) -> int:
        """Layers above the embedding output."""
        return len(self.points) - 1

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names and contents of weights, configuration and tokenizer files."""
        total = sha256()
        for path in sorted(self.folder.iterdir()):
            if path.suffix in READ_SUFFIXES and path.is_file():
                total.update(f"{path.name} {file_digest(path)}\n".encode())
        return total.hexdigest()


def describe(name: str | None = None) -> Description:
    """Find a model and read its configuration; torch is not imported.

    name: a folder (what exists or starts with ``./ ../ / ~``), a hub name with an optional ``@REVISION``, or None for
    the embedded model. Raises InputError with what is wrong and how to mend it.
    """
    if name is None or (name == EMBEDDED and not os.path.exists(name)):
        shown, folder = EMBEDDED, embedded_folder()
    else:
        shown, folder = name, find_folder(name)
    revision = folder.name if folder.parent.name == "snapshots" else None
    folder = encoder_folder(folder)
    config = read_json(folder / "config.json", shown)
    _refuse_unsupported(shown, folder, config)

    def number(default: int | None, *keys: str, low: int = 1, high: int = LARGEST) -> int:
        key = next((key for key in keys if key in config), keys[0])
        value = config.get(key, default)
        if type(value) is not int or not low <= value <= high:
            what = f"{key} is {json.dumps(value)[:60]}, not a number from {low} to {high:,}"
            raise InputError(f"{shown}/config.json", what, "Mend it there")
        return value

    adapter = adapter_of(config["model_type"])
    first = ("encoder_layers",) if adapter.part else ()  # num_hidden_layers may be the decoder's
    limit = read_json(folder / "tokenizer_config.json", shown, default={}).get("model_max_length")
    limit = limit if isinstance(limit, int | float) and limit > 0 else 10**9
    if adapter.reserved is None:  # no table that ends: as long as the tokenizer says, 512 where it says nothing
        positions = 512 if limit > 10**6 else int(limit)
    else:
        taken = number(1, "pad_token_id", low=0) + 1 if adapter.reserved == "pad" else adapter.reserved
        positions = number(512, "max_position_embeddings", "n_positions") - taken
    if min(positions, limit) < 3:
        what = f"leaves room for {max(0, int(min(positions, limit)))} tokens, special ones included"
        raise InputError(f"{shown}/config.json", what, "Mend max_position_embeddings there")
    for key in ("num_hidden_groups", "inner_group_num"):
        number(1, key, high=DEEPEST)
    for key in ("block_sizes", "block_repeats"):
        sizes = config.get(key) or [1]
        if not isinstance(sizes, list) or any(type(n) is not int or not 1 <= n <= DEEPEST for n in sizes):
            raise InputError(
                f"{shown}/config.json", f"{key} is no list of numbers from 1 to {DEEPEST}", "Mend it there"
            )
    return Description(
        shown,
        folder,
        config,
        depth=number(1 if "block_sizes" in config else None, *first, *_DEPTH, high=DEEPEST),
        dim=number(None, *_WIDTH),
        max_length=int(min(positions, limit)),
        revision=revision,
    )


def _refuse_unsupported(name: str, folder: Path, config: dict[str, Any]) -> None:
    files = {path.name for path in folder.iterdir()}
    kind = config.get("model_type")
    if not kind:
        raise InputError(f"{name}/config.json", "has no model_type", "Pass the folder of a transformers encoder")
    if config.get("auto_map"):
        codes = config["auto_map"].values() if isinstance(config["auto_map"], dict) else [config["auto_map"]]
        code = ", ".join(sorted({str(each) for each in codes}))
        raise InputError(name, f"needs its own code ({code}); not run", "Choose an architecture that transformers has")
    reads_text = {"vocab_size", "num_hidden_layers", "hidden_size"} <= config.keys()  # else there is nothing to try
    if not isinstance(kind, str) or (kind not in ADAPTERS and not reads_text):
        raise InputError(name, f"model_type '{kind}' is not supported", SUPPORTED)
    if config.get("position_embedding_type", "absolute") != "absolute":
        positions = config["position_embedding_type"]
        raise InputError(name, f"has {positions} positions, which transformers no longer runs", "Use another model")
    if config.get("quantization_config"):
        raise InputError(name, "has quantised weights", "Use the unquantised model")
    if "adapter_config.json" in files:
        raise InputError(name, "is a PEFT adapter, not an encoder", "Merge it into its model, and pass that folder")
    shards = read_json(folder / "model.safetensors.index.json", name, default={}).get("weight_map")
    pointed = {str(file) for file in shards.values()} if isinstance(shards, dict) else set()
    pointed.add(str(config.get("transformers_weights") or "model.safetensors"))
    if not files & WEIGHTS or any(not file.endswith(".safetensors") for file in pointed):
        if any(file.endswith((".bin", ".pt", ".pth", ".ckpt")) for file in files | pointed):
            code = f"AutoModel.from_pretrained('{name}').save_pretrained('FOLDER')"
            raise InputError(
                name,
                "has only pickle weights, which can run code",
                f'Run python -c "from transformers import AutoModel; {code}" where you trust them, and pass FOLDER',
            )
        others = {file.rpartition(".")[2].upper() for file in files if file.endswith((".gguf", ".onnx", ".h5"))}
        found = f", only {' and '.join(sorted(others))}" if others else ""
        raise InputError(name, f"has no model.safetensors{found}", "Pass a whole model with safetensors weights")
    if not files & TOKENIZERS and adapter_of(kind).vocabulary:
        raise InputError(name, "no tokenizer files", "Put the model's tokenizer.json beside its config.json")
