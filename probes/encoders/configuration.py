"""What a model's config.json says, checked: whether the model can be read, its sizes, and what a reader should know.

Nothing of it is trusted: a size is a number within limits, and code that it names is not run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clsprobe.probes.encoders.adapters import ADAPTERS, SUPPORTED, find_adapter
from clsprobe.probes.encoders.finding import find_inner, read_json
from clsprobe.probes.errors import InputError

_DEPTH = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers")
_WIDTH = ("hidden_size", "dim", "d_model", "n_embd", "emb_dim")
CAUSAL = {"gpt2", "llama", "opt"}  # architectures in which a token sees only those before it
LARGEST, DEEPEST = 10**7, 1000  # a dimension or a position; a number of layers: no real config.json has more
KERNELS = (None, "eager", "sdpa")  # of attention, which torch itself has


@dataclass(frozen=True)
class Sizes:
    """depth: blocks. dim: of a hidden state. longest: tokens of the longest input, special ones included."""

    depth: int
    dim: int
    longest: int


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """config.json of a model that can be read. name: what errors call it. Raises InputError for another."""
    config: dict[str, Any] = read_json(folder / "config.json", name)
    model_type = config.get("model_type")
    if not model_type:
        inner = find_inner(folder)
        what, mend = "has no model_type", "Pass the folder of a transformers encoder"
        if inner:
            what, mend = f"{what}, but {inner} in it has", f"Pass {folder / inner}"
        raise InputError(f"{name}/config.json", what, mend)
    if config.get("auto_map"):
        classes = config["auto_map"].values() if isinstance(config["auto_map"], dict) else [config["auto_map"]]
        code = ", ".join(sorted(set(map(str, classes))))
        raise InputError(name, f"needs its own code ({code}); not run", "Choose an architecture that transformers has")
    can_be_guessed = {"vocab_size", "num_hidden_layers", "hidden_size"} <= config.keys()
    if not isinstance(model_type, str) or (model_type not in ADAPTERS and not can_be_guessed):
        raise InputError(name, f"model_type '{model_type}' is not supported", SUPPORTED)
    if config.get("position_embedding_type", "absolute") != "absolute":
        positions = config["position_embedding_type"]
        raise InputError(name, f"has {positions} positions, which transformers no longer runs", "Use another model")
    if config.get("quantization_config"):
        raise InputError(name, "has quantised weights", "Use the unquantised model")
    return config


def read_sizes(name: str, config: dict[str, Any], limit: object) -> Sizes:
    """The sizes in a config.json. limit: the tokenizer's model_max_length. Raises InputError for impossible ones."""

    def read_number(default: int | None, *keys: str, low: int = 1, high: int = LARGEST) -> int:
        key = next((key for key in keys if key in config), keys[0])
        value = config.get(key, default)
        if type(value) is not int or not low <= value <= high:
            what = f"{key} is {json.dumps(value)[:60]}, not a number from {low} to {high:,}"
            raise InputError(f"{name}/config.json", what, "Mend it there")
        return value

    adapter = find_adapter(config["model_type"])
    depth_keys = ("encoder_layers", *_DEPTH) if adapter.part else _DEPTH  # num_hidden_layers may be the decoder's
    if limit is not None and type(limit) not in (int, float):
        what = f"model_max_length is {json.dumps(limit)[:60]}, not a number"
        raise InputError(f"{name}/tokenizer_config.json", what, "Mend it there")
    limit = limit if isinstance(limit, int | float) and limit > 0 else 10**9
    if adapter.reserved is None:  # no position table: the tokenizer's limit, 512 without one
        positions = 512 if limit > 10**6 else int(limit)
    else:
        reserved = read_number(1, "pad_token_id", low=0) + 1 if adapter.reserved == "pad" else adapter.reserved
        positions = read_number(512, "max_position_embeddings", "n_positions") - reserved
    longest = int(min(positions, limit))
    if longest < 3:
        what = f"leaves room for {max(0, longest)} tokens, special ones included"
        if limit < positions:
            raise InputError(f"{name}/tokenizer_config.json", what, "Mend model_max_length there")
        raise InputError(f"{name}/config.json", what, "Mend max_position_embeddings there")
    for key in ("num_hidden_groups", "inner_group_num"):
        read_number(1, key, high=DEEPEST)
    for key in ("block_sizes", "block_repeats"):
        sizes = config.get(key) or [1]
        if not isinstance(sizes, list) or any(type(size) is not int or not 1 <= size <= DEEPEST for size in sizes):
            raise InputError(f"{name}/config.json", f"{key} is no list of numbers from 1 to {DEEPEST}", "Mend it there")
    if adapter.vocabulary:
        read_number(1, "vocab_size")  # of a configuration that leaves it out transformers knows the default
    depth = read_number(1 if "block_sizes" in config else None, *depth_keys, high=DEEPEST)
    return Sizes(depth, read_number(None, *_WIDTH), longest)


def config_notes(config: dict[str, Any]) -> list[str]:
    """Sentences on what of a config.json a reader should know."""
    notes = []
    if config.get("is_decoder") is True and config["model_type"] not in CAUSAL:
        notes.append(
            "config.json says is_decoder: every token sees only those before it, so [CLS] at the start sees no other "
            "token. For an encoder, set it to false there."
        )
    if (kernel := foreign_kernel(config)) is not None:
        notes.append(
            f"config.json asks for the attention kernel {kernel!r}; the attention of torch itself is run instead, "
            "which computes the same up to rounding."
        )
    return notes


def foreign_kernel(config: dict[str, Any]) -> Any:
    """The attention kernel that config.json asks for, such as "flash_attention_2" or one of the hub; None where it is
    torch's own, which needs no other library and gives the same vectors on every machine."""
    kernels = (config.get(key) for key in ("attn_implementation", "_attn_implementation"))
    return next((kernel for kernel in kernels if kernel not in KERNELS), None)
