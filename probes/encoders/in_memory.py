"""Encoders that are already loaded: a model of transformers with its tokenizer, or a SentenceTransformer.

1. `as_model` recognises them among what a user passes for a model; names stay names.
2. `copy_encoder` writes them, as they are at that moment, to a private temporary folder. From there on they are a
   model's folder like any other: the same checks, the same digest, and an untrained twin. Training on afterwards does
   not change the copy. The folder is removed with the last reference to it, at the latest with the process.
3. `read_sample` runs both on a few tokens: an encoder whose modules are not what its configuration says is refused
   when the copy is loaded (`loading`).
4. What differs between two equal models, such as where they were loaded from, or how their tokenizer was last called,
   is left out of the copy: equal models have equal digests.
"""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clsprobe.probes.encoders.adapters import find_adapter
from clsprobe.probes.encoders.finding import LARGEST_VOCABULARY, digest_folder, read_json
from clsprobe.probes.encoders.messages import first_line, quiet_transformers
from clsprobe.probes.errors import InputError
from clsprobe.probes.files import make_temporary_folder, remove_temporary_folder, write_pretrained, write_text

WHERE = "model"
PASS = "Pass (model, tokenizer) of transformers, a SentenceTransformer, a folder or a hub name"
CONFIGS = ("config.json", "tokenizer.json", "tokenizer_config.json", "config_sentence_transformers.json")
OF_ORIGIN = {"__version__", "_name_or_path", "is_local", "local_files_only", "name_or_path", "transformers_version"}
OF_CALLS = {  # keys that the last call of a tokenizer sets
    "max_length", "pad_to_multiple_of", "pad_token_type_id", "padding_side", "stride", "truncation_strategy"
}  # fmt: skip

SAVING_SETS = ("architectures", "dtype")  # of a configuration
SAMPLE = 16  # token ids
OWN_HOOKS = ("accelerate", "torch", "transformers")  # whose hooks leave the numbers of a model as they are


@dataclass(frozen=True, eq=False)
class EncoderCopy:
    """The copy of an encoder in memory.

    tokenizer: the user's own, None for a SentenceTransformer. notes: sentences on what of the encoder is not in it.
    sample: `read_sample` of the original.
    """

    name: str
    folder: Path
    tokenizer: Any = None
    notes: tuple[str, ...] = ()
    sample: np.ndarray | None = None

    def __post_init__(self) -> None:
        weakref.finalize(self, remove_temporary_folder, self.folder)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of weights, configuration and tokenizer (`finding.digest_folder`)."""
        return digest_folder(self.folder)

    def __copy__(self) -> EncoderCopy:
        return self  # the folder belongs to this object alone, which removes it

    def __deepcopy__(self, memo: Any) -> EncoderCopy:
        return self

    def __str__(self) -> str:
        """What stands in the settings of a run."""
        return f"{self.name} sha256:{self.digest}"

    def __repr__(self) -> str:
        return f"<EncoderCopy of {self.name}>"


def as_model(value: Any) -> str | EncoderCopy | None:
    """A name, a folder or None as it is; an encoder in memory as its copy.

    value: also a pair of model and tokenizer, a SentenceTransformer, or an `Encoder`, which stands for the files that
    it was loaded from. Raises InputError for anything else.
    """
    if value is None or isinstance(value, str | EncoderCopy):
        return value
    if _is_a(value, "clsprobe", "Encoder"):
        return _origin_of(value)
    if isinstance(value, Path):
        return f"./{value}" if str(value) == value.name else str(value)
    if isinstance(value, tuple | list) and len(value) == 2:
        return copy_encoder(*value)
    return copy_encoder(value)


def _origin_of(encoder: Any) -> str | EncoderCopy:
    """The name or the copy that an `Encoder` was loaded from. Raises InputError where that is not all of it."""
    description, what = encoder.description, ""
    if encoder.untrained is not None:
        what = "is an untrained Encoder, which studies make themselves"
    elif any(parameter.requires_grad for parameter in encoder.model.parameters()):
        what = "is an Encoder that has been trained since it was loaded"
    elif description.prompt:
        what = f"is an Encoder with the prompt {description.prompt!r}"
    if what:
        raise InputError(WHERE, what, f"Pass the name {description.name!r}, with prompt=..., or (model, tokenizer)")
    origin: str | EncoderCopy = description.copy or description.name
    return origin


def copy_encoder(model: Any, tokenizer: Any = None) -> EncoderCopy:
    """Copy an encoder in memory to a temporary folder; neither object is changed.

    Raises InputError for objects that cannot be read as an encoder.
    """
    model = _unwrap(model)
    if _is_a(tokenizer, "transformers", "PreTrainedModel"):  # the two in the other order
        model, tokenizer = _unwrap(tokenizer), model
    if _is_a(model, "sentence_transformers", "SentenceTransformer"):
        if tokenizer is not None:
            raise InputError(WHERE, "a SentenceTransformer has its tokenizer already", "Pass it alone")
        transformer = getattr(model[0], "auto_model", None)
        if transformer is None:
            raise InputError(WHERE, f"its first module, {type(model[0]).__name__}, is no model of transformers", PASS)
        _refuse_unusual(transformer)
        if getattr(model, "truncate_dim", None) is not None:
            raise InputError(WHERE, "cuts its vectors (truncate_dim)", "Set its truncate_dim to None")
        return _write(transformer, lambda folder: write_pretrained(folder, model, create_model_card=False), None)
    if isinstance(model, str | Path) and tokenizer is not None:
        what = f"{type(model).__name__} stands beside a tokenizer, where a model belongs"
        raise InputError(WHERE, what, "Pass (model, tokenizer), the model from AutoModel.from_pretrained")
    if not _is_a(model, "transformers", "PreTrainedModel"):
        kind = f"{type(model).__module__}.{type(model).__qualname__}".removeprefix("builtins.")
        raise InputError(WHERE, f"is {kind}, which is not read as an encoder", PASS)
    if tokenizer is None:
        raise InputError(WHERE, f"{type(model).__name__} comes without its tokenizer", "Pass (model, tokenizer)")
    if not _is_a(tokenizer, "transformers", "PreTrainedTokenizerBase"):
        what = f"{type(tokenizer).__name__} is no tokenizer of transformers"
        raise InputError(WHERE, what, "Pass (model, tokenizer), the tokenizer from AutoTokenizer.from_pretrained")
    _refuse_unusual(model)
    encoder = model.base_model  # without the head of a classifier or a masked language model
    return _write(encoder, lambda folder: write_pretrained(folder, encoder, tokenizer), tokenizer)


def _write(encoder: Any, save: Callable[[Path], None], tokenizer: Any) -> EncoderCopy:
    """The copy that `save` makes. encoder: the model of transformers in it."""
    config = {key: getattr(encoder.config, key) for key in SAVING_SETS if hasattr(encoder.config, key)}
    folder = make_temporary_folder()
    copy = EncoderCopy(_name_of(encoder), folder, tokenizer, _note_hooks(encoder), read_sample(_without_hooks(encoder)))
    try:
        with quiet_transformers():
            save(folder)
        for file in CONFIGS:
            if (path := folder / file).exists():
                content = read_json(path, largest=LARGEST_VOCABULARY)
                left_out = OF_ORIGIN | OF_CALLS if file == "tokenizer_config.json" else OF_ORIGIN
                content = {key: value for key, value in content.items() if key not in left_out}
                if content.get("truncation_side") == "right":
                    del content["truncation_side"]  # the default, which is saved after a call only
                if file == "tokenizer.json":
                    content |= {"padding": None, "truncation": None}  # also of the last call
                write_text(path, json.dumps(content, indent=1))
    except Exception as error:  # the objects are the user's and may raise anything
        raise InputError(WHERE, f"cannot be copied ({first_line(error)})", "Save it, and pass its folder") from error
    finally:
        for key, value in config.items():
            setattr(encoder.config, key, value)
    return copy


def _name_of(encoder: Any) -> str:
    """What tables call it: the last parts of the name it was loaded by, or its class."""
    name = str(getattr(encoder, "name_or_path", "") or "")
    name = "/".join(name.rstrip("/").split("/")[-1 if name.startswith((".", "/", "~")) else -2 :])
    return f"{name or type(encoder).__name__} (in memory)"


def _unwrap(model: Any) -> Any:
    """The model in the wrappers of torch: compiled, or run in parallel."""
    for wrapper, attribute in (("OptimizedModule", "_orig_mod"), ("DataParallel", "module"),
                               ("DistributedDataParallel", "module")):  # fmt: skip
        if type(model).__name__ == wrapper:
            model = getattr(model, attribute)
    return model


def _refuse_unusual(model: Any) -> None:
    """Raise InputError for a model whose saved weights would not be those that it runs."""
    if hasattr(model, "merge_and_unload") or getattr(model, "_hf_peft_config_loaded", False):
        raise InputError(WHERE, "has adapters of PEFT", "Merge them first: model.merge_and_unload()")
    if getattr(model.config, "quantization_config", None) is not None:
        raise InputError(WHERE, "has quantised weights", "Pass the unquantised model")
    if names := [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]:
        raise InputError(WHERE, f"has no weights in memory for {names[0]}", "Load it whole, without device_map")


def _note_hooks(encoder: Any) -> tuple[str, ...]:
    """A sentence on what was put into a loaded model and may change its numbers, but is none of its weights."""
    hooked = [
        name or "the model"
        for name, module in encoder.named_modules()
        if "forward" in vars(module)
        or any(
            (getattr(hook, "__module__", None) or "").partition(".")[0] not in OWN_HOOKS
            for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        )
    ]
    if not hooked:
        return ()
    listed = ", ".join(hooked[:3]) + (f" and {len(hooked) - 3} more" if len(hooked) > 3 else "")
    return (f"The model in memory has hooks, or a forward of its own, in {listed}: it was read without them.",)


def _without_hooks(encoder: Any) -> Any:
    """A twin in evaluation mode without what `_note_hooks` notes, which may count or keep what it sees; None where the
    encoder cannot be copied."""
    try:
        twin = deepcopy(encoder).eval()
    except Exception:  # the objects are the user's
        return None
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        vars(module).pop("forward", None)
    return twin


def read_sample(model: Any) -> np.ndarray | None:
    """(token, dim) float32, the output of a model of transformers for a few token ids; None where it takes others, or
    where there is no model."""
    import torch

    if model is None:
        return None
    adapter = find_adapter(model.config.model_type)
    vocabulary = getattr(model.config, "vocab_size", SAMPLE)
    try:
        part = model.get_submodule(adapter.part)
        ids = torch.arange(SAMPLE, device=next(part.parameters()).device)[None] % vocabulary
        with torch.no_grad(), quiet_transformers():
            output = part(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0]
    except Exception:  # the class is the user's
        return None
    sample: np.ndarray = output.float().cpu().numpy()
    return sample


def _is_a(value: Any, package: str, name: str) -> bool:
    """Whether a value is of this class of a package, which is not imported for that: where there is none of its
    modules, there is none of its objects."""
    return package in sys.modules and any(
        kind.__name__ == name and kind.__module__.partition(".")[0] == package for kind in type(value).__mro__
    )
