"""What is known about a model before torch is imported.

`describe` finds its folder and reads its configuration: its layers, the longest text, and everything that would stop it
from loading (pickle weights, remote code, no tokenizer).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from clsprobe.probes.encoders.adapters import Adapter, Point, find_adapter
from clsprobe.probes.encoders.configuration import config_notes, read_config, read_sizes
from clsprobe.probes.encoders.finding import (
    EMBEDDED,
    SINGLE,
    TOKENIZERS,
    check_files,
    check_listable,
    digest_folder,
    find_decoder_folder,
    find_embedded_folder,
    find_encoder_folder,
    find_folder,
    find_inner,
    not_published,
    read_json,
)
from clsprobe.probes.encoders.in_memory import EncoderCopy
from clsprobe.probes.encoders.lora import Lora, find_lora
from clsprobe.probes.encoders.sentence_layout import SentenceLayout, choose_prompt, read_layout
from clsprobe.probes.encoders.weights import Weights, find_weights
from clsprobe.probes.errors import InputError


@dataclass(frozen=True, eq=False)
class Description:
    """What is known about a model before torch is imported.

    depth: the number of blocks in config.json; `layers`, above the embedding output (layer 0), may be more or fewer
    where a block is not one layer. max_length: the longest input in tokens, special ones included, by default (that of
    sentence-transformers may be below `longest`, the longest that the model can take). revision: the hub's commit, None
    for a local folder. sentence: what a sentence-transformers folder adds, None for another. prompt: the
    text before every text. notes: sentences on how its files are read. copy: of an encoder that was loaded
    already, whose folder this is. weights: its safetensors, None in a partial description. lora: the adapter that is
    merged into them.
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
    weights: Weights | None = None
    lora: Lora | None = None

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
        if self.copy:
            return self.copy.digest
        folders = [self.folder, *([self.lora.folder] if self.lora else [])]
        digests = [digest_folder(folder) for folder in folders]
        return digests[0] if len(digests) == 1 else sha256(" ".join(digests).encode()).hexdigest()

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is: an adapter may bring its own."""
        return _tokenizer_folder(self.folder, self.lora)

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
    check_listable(name, folder)
    layout = read_layout(folder, name)
    if (inner := find_encoder_folder(folder)) != folder:
        check_listable(f"{name}/{inner.relative_to(folder).as_posix()}", inner)
    lora, notes = find_lora(name, inner)
    folder = lora.base if lora else inner
    if not (folder / "config.json").exists() and (model_in_it := find_inner(folder)):
        raise InputError(name, f"has no config.json, but {model_in_it} in it has", f"Pass {folder / model_in_it}")
    config = read_config(name, folder)
    tokenizer_folder = _tokenizer_folder(folder, lora)
    limit = read_json(tokenizer_folder / "tokenizer_config.json", name, default={}).get("model_max_length")
    sizes = read_sizes(name, config, limit)
    prompt_text, prompt_notes = choose_prompt(layout, prompt)
    check_files(name, folder)
    try:
        weights = find_weights(name, folder, config)
    except InputError:
        if name == EMBEDDED and folder == find_embedded_folder():
            raise not_published(SINGLE) from None
        raise
    if not _has_tokenizer(tokenizer_folder) and find_adapter(config["model_type"]).vocabulary:
        raise InputError(name, "no tokenizer files", "Put the model's tokenizer.json beside its config.json")
    description = Description(
        name,
        folder,
        config,
        depth=sizes.depth,
        dim=sizes.dim,
        max_length=max(3, min(sizes.longest, (layout and layout.max_length) or sizes.longest)),
        longest=sizes.longest,
        revision=revision,
        sentence=layout,
        prompt=prompt_text,
        notes=(*notes, *weights.notes, *prompt_notes, *(copy.notes if copy else ()), *config_notes(config)),
        copy=copy,
        weights=weights,
        lora=lora,
    )
    weights.refuse_other_sizes(name, sizes.dim, len({module for module, _ in description.points}))
    return description


def _tokenizer_folder(folder: Path, lora: Lora | None) -> Path:
    return lora.folder if lora and _has_tokenizer(lora.folder) else folder


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / file).exists() for file in TOKENIZERS)
