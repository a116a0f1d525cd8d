"""What is known about a model before torch is imported.

`describe` finds its folder and reads its configuration: its layers, the longest text, and everything that would stop it
from loading (pickle weights, remote code, no tokenizer).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from clsprobe.probes.encoders.adapters import ADAPTERS, SUPPORTED, Adapter, Point, find_adapter
from clsprobe.probes.encoders.finding import (
    EMBEDDED,
    TOKENIZERS,
    WEIGHTS,
    check_files,
    digest_folder,
    find_decoder_folder,
    find_embedded_folder,
    find_encoder_folder,
    find_folder,
    read_json,
)
from clsprobe.probes.encoders.in_memory import EncoderCopy
from clsprobe.probes.encoders.sentence_layout import SentenceLayout, choose_prompt, read_layout
from clsprobe.probes.errors import InputError

_DEPTH = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers")
_WIDTH = ("hidden_size", "dim", "d_model", "n_embd", "emb_dim")
CAUSAL = {"gpt2", "llama", "opt"}  # architectures in which a token sees only those before it
LARGEST, DEEPEST = 10**7, 1000  # a dimension or a position; a number of layers: no real config.json has more


@dataclass(frozen=True, eq=False)
class Description:
    """What is known about a model before torch is imported.

    depth: the number of blocks in config.json; `layers`, above the embedding output (layer 0), may be more or fewer
    where a block is not one layer. max_length: the longest input in tokens, special ones included, by default (that of
    sentence-transformers may be below `longest`, the longest that the model can take). revision: the hub's commit, None
    for a local folder. sentence: what a sentence-transformers folder adds, None for another. prompt: the
    text before every text. notes: sentences on how its files are read. copy: of an encoder that was loaded
    already, whose folder this is.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    depth: int
    dim: int
    max_length: int
    longest: int
    revision: str | None = None
    sentence: SentenceLayout | None = None
    prompt: str = ""
    notes: tuple[str, ...] = ()
    copy: EncoderCopy | None = None

    def __repr__(self) -> str:
        return f"<Description of {self.summary}>"

    @property
    def summary(self) -> str:
        """Name, architecture and size on one line."""
        return f"{self.name}: {self.model_type}, {self.layers} layers, {self.dim} dimensions"

    @property
    def facts(self) -> dict[str, str]:
        """What a reader wants to know of the model, by name."""
        facts = {
            "architecture": self.model_type,
            "layers": f"0..{self.layers}, 0 is the embedding output",
            "dimensions": f"{self.dim:,}",
            "longest input": f"{self.max_length:,} tokens"
            + (f" (max_length up to {self.longest:,})" if self.longest > self.max_length else ""),
            "prompt": repr(self.prompt) if self.prompt else "none",
        }
        return facts | {f"note {number}": note for number, note in enumerate(self.notes, 1)}

    @property
    def model_type(self) -> str:
        """The architecture, as config.json names it."""
        return self.config["model_type"]

    @property
    def adapter(self) -> Adapter:
        """How this architecture is read; a guess where it is unknown."""
        return find_adapter(self.model_type)

    @property
    def first_position(self) -> int:
        """The position id of the first token, 0 where positions are relative."""
        reserved = self.adapter.reserved
        return self.config.get("pad_token_id", 1) + 1 if reserved == "pad" else reserved or 0

    def limit(self, max_length: int | None) -> int:
        """The longest input in tokens where a user asks for `max_length`, None for the default."""
        return self.max_length if max_length is None else min(max_length, self.longest)

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
        """SHA-256 over the files that loading may read (`finding.digest_folder`)."""
        return self.copy.digest if self.copy else digest_folder(self.folder)

    def check_unchanged(self) -> None:
        """Raise InputError where the files are not those of `digest` any more: what was loaded may be a mixture."""
        if replace(self).digest != self.digest:
            raise InputError(self.name, "changed while being read", "Run again when nothing writes to it")


def describe_decoder(name: str, **config: int) -> Description:
    """A partial description of a causal model, for its name and the digest of its files. Raises InputError."""
    return Description(name, find_decoder_folder(name), config, 0, 0, 0, 0)


def describe(model: str | EncoderCopy | None = None, *, prompt: str | None = None) -> Description:
    """Find a model and read its configuration; torch is not imported.

    model: a folder (a path that exists or starts with ``./ ../ / ~``), a hub name with an optional ``@REVISION``, the
    copy of an encoder in memory, or None for the embedded model. prompt: the text before every text, or the name that
    the model has for it; None for the model's default, "" for none. Raises InputError for a model that cannot be read.
    """
    copy = model if isinstance(model, EncoderCopy) else None
    if copy:
        name, folder = copy.name, copy.folder
        if not folder.is_dir():  # it was pickled, in another process or for another day
            what = f"the copy of {name} is no longer there"
            raise InputError("model", what, "Pass (model, tokenizer) again")
    elif model is None or (model == EMBEDDED and not os.path.exists(model)):
        name, folder = EMBEDDED, find_embedded_folder()
    else:
        name, folder = str(model), find_folder(str(model))
    revision = folder.name if folder.parent.name == "snapshots" else None
    layout = read_layout(folder, name)
    folder = find_encoder_folder(folder)
    config = read_json(folder / "config.json", name)
    _refuse_unsupported(name, folder, config)

    def read_number(default: int | None, *keys: str, low: int = 1, high: int = LARGEST) -> int:
        key = next((key for key in keys if key in config), keys[0])
        value = config.get(key, default)
        if type(value) is not int or not low <= value <= high:
            what = f"{key} is {json.dumps(value)[:60]}, not a number from {low} to {high:,}"
            raise InputError(f"{name}/config.json", what, "Mend it there")
        return value

    adapter = find_adapter(config["model_type"])
    depth_keys = ("encoder_layers", *_DEPTH) if adapter.part else _DEPTH  # num_hidden_layers may be the decoder's
    limit = read_json(folder / "tokenizer_config.json", name, default={}).get("model_max_length")
    limit = limit if isinstance(limit, int | float) and limit > 0 else 10**9
    if adapter.reserved is None:  # no position table: the tokenizer's limit, 512 without one
        positions = 512 if limit > 10**6 else int(limit)
    else:
        reserved = read_number(1, "pad_token_id", low=0) + 1 if adapter.reserved == "pad" else adapter.reserved
        positions = read_number(512, "max_position_embeddings", "n_positions") - reserved
    longest = int(min(positions, limit))
    if longest < 3:
        what = f"leaves room for {max(0, longest)} tokens, special ones included"
        raise InputError(f"{name}/config.json", what, "Mend max_position_embeddings there")
    prompt_text, notes = choose_prompt(layout, prompt)
    notes += copy.notes if copy else ()
    if config.get("is_decoder") is True and config["model_type"] not in CAUSAL:
        notes.append(
            "config.json says is_decoder: every token sees only those before it, so [CLS] at the start sees no other "
            "token. For an encoder, set it to false there."
        )
    for key in ("num_hidden_groups", "inner_group_num"):
        read_number(1, key, high=DEEPEST)
    for key in ("block_sizes", "block_repeats"):
        sizes = config.get(key) or [1]
        if not isinstance(sizes, list) or any(type(size) is not int or not 1 <= size <= DEEPEST for size in sizes):
            raise InputError(f"{name}/config.json", f"{key} is no list of numbers from 1 to {DEEPEST}", "Mend it there")
    check_files(name, folder)
    return Description(
        name,
        folder,
        config,
        depth=read_number(1 if "block_sizes" in config else None, *depth_keys, high=DEEPEST),
        dim=read_number(None, *_WIDTH),
        max_length=max(3, min(longest, (layout and layout.max_length) or longest)),
        longest=longest,
        revision=revision,
        sentence=layout,
        prompt=prompt_text,
        notes=tuple(notes),
        copy=copy,
    )


def _refuse_unsupported(name: str, folder: Path, config: dict[str, Any]) -> None:
    files = {path.name for path in folder.iterdir()}
    model_type = config.get("model_type")
    if not model_type:
        raise InputError(f"{name}/config.json", "has no model_type", "Pass the folder of a transformers encoder")
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
    if "adapter_config.json" in files:
        raise InputError(name, "is a PEFT adapter, not an encoder", "Merge it into its model, and pass that folder")
    shards = read_json(folder / "model.safetensors.index.json", name, default={}).get("weight_map")
    referenced = {str(file) for file in shards.values()} if isinstance(shards, dict) else set()
    referenced.add(str(config.get("transformers_weights") or "model.safetensors"))
    if not files & WEIGHTS or any(not file.endswith(".safetensors") for file in referenced):
        if any(file.endswith((".bin", ".pt", ".pth", ".ckpt")) for file in files | referenced):
            code = f"AutoModel.from_pretrained('{name}').save_pretrained('FOLDER')"
            raise InputError(
                name,
                "has only pickle weights, which can run code",
                f'Run python -c "from transformers import AutoModel; {code}" where you trust them, and pass FOLDER',
            )
        formats = {file.rpartition(".")[2].upper() for file in files if file.endswith((".gguf", ".onnx", ".h5"))}
        others = f", only {' and '.join(sorted(formats))}" if formats else ""
        raise InputError(name, f"has no model.safetensors{others}", "Pass a whole model with safetensors weights")
    if not files & TOKENIZERS and find_adapter(model_type).vocabulary:
        raise InputError(name, "no tokenizer files", "Put the model's tokenizer.json beside its config.json")
