"""Adapters of PEFT: a folder that holds changes to the weights of another model (LoRA).

1. `find_lora` recognises such a folder and finds the model that was adapted, like any `--model`.
2. `merge_lora` adds the changes to the weights of that model, as PEFT does: W + (lora_alpha / r) B A (Hu et al., 2022,
   LoRA: Low-Rank Adaptation of Large Language Models, eq. 3). Afterwards it is a model like any other.

PEFT is not required; without it an adapter is refused. It is given the settings in `SETTINGS` alone: by others of
adapter_config.json it would import modules, or match regular expressions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsprobe.probes.encoders.finding import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INDEX,
    SINGLE,
    check_files,
    find_encoder_folder,
    find_folder,
    read_json,
)
from clsprobe.probes.encoders.weights import IF_REFUSED, conversion_command
from clsprobe.probes.errors import InputError

if TYPE_CHECKING:
    from torch import nn

SETTINGS = (  # of adapter_config.json, which say how the matrices become weights
    "r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out", "bias", "lora_bias"
)  # fmt: skip
PATTERNS = ("rank_pattern", "alpha_pattern")  # module name, or its end -> what replaces r and lora_alpha
BEYOND = (  # settings that change more than matrices
    "alora_invocation_tokens", "layer_replication", "megatron_config", "target_parameters", "trainable_token_indices"
)  # fmt: skip
ZERO_AT_FIRST = (True, False, None, "gaussian", "eva", "orthogonal")  # init_lora_weights that leave the model as it was
PLAIN_NAME = re.compile(r"[\w.^$\\-]+")  # of a pattern that is no slow regular expression


@dataclass(frozen=True)
class Lora:
    """An adapter. folder: its own. base: the folder of the model that was adapted. base_name: as the adapter calls it.
    config: adapter_config.json."""

    folder: Path
    base: Path
    base_name: str
    config: dict[str, Any]

    @property
    def note(self) -> str:
        """What a reader should know."""
        return f"The folder holds a PEFT adapter, which is merged into the weights of {self.base_name}."


def find_lora(name: str, folder: Path) -> tuple[Lora | None, list[str]]:
    """The adapter that a model's folder holds, None for whole weights, and notes. name: what errors call the model.

    Raises InputError for an adapter that cannot be merged.
    """
    files = {path.name for path in folder.iterdir()}
    if ADAPTER_CONFIG not in files:
        return None, []
    whole = {SINGLE, INDEX} & files
    adapters = sorted(file for file in files if file.startswith("adapter_model."))
    if not adapters and "config.json" in files:
        return None, [f"{ADAPTER_CONFIG} is left over: no adapter lies beside it, and the weights are read without it."]
    if whole and adapters:
        what = f"holds whole weights ({min(whole)}) and an adapter ({adapters[0]})"
        raise InputError(name, what, "Move one of the two out of the folder")
    if ADAPTER_WEIGHTS not in files:
        what = f"is a PEFT adapter without {ADAPTER_WEIGHTS}"
        if "adapter_model.bin" not in files:
            raise InputError(name, what, "Download it again")
        command = conversion_command("adapter_model.bin", ADAPTER_WEIGHTS)
        raise InputError(name, f"{what}; pickle weights can run code", f"{command}, and pass it again. {IF_REFUSED}")
    config = read_json(folder / ADAPTER_CONFIG, name)
    _refuse_unusual(f"{name}/{ADAPTER_CONFIG}", config)
    base_name = config.get("base_model_name_or_path")
    if not isinstance(base_name, str) or not base_name:
        what = "has no base_model_name_or_path, the model that was adapted"
        raise InputError(f"{name}/{ADAPTER_CONFIG}", what, "Write its folder or hub name there")
    if find_spec("peft") is None:
        what = f"is a PEFT adapter of {base_name}, and peft, which merges it, is not installed"
        mend = "Run pip install peft, or merge it elsewhere (model.merge_and_unload()) and pass the merged model"
        raise InputError(name, what, mend)
    lora = Lora(folder, _find_base(name, base_name, config.get("revision")), base_name, config)
    check_files(name, folder)
    return lora, [lora.note]


def _refuse_unusual(where: str, config: dict[str, Any]) -> None:
    """Raise InputError for an adapter that is more than matrices to add to weights."""
    merge = "Merge it where it was trained (model.merge_and_unload()), and pass the merged model"
    if (kind := config.get("peft_type")) != "LORA":
        raise InputError(where, f"peft_type is {kind!r}, of which only 'LORA' is read", merge)
    if (start := config.get("init_lora_weights", True)) not in ZERO_AT_FIRST:
        raise InputError(where, f"init_lora_weights is {start!r}, which changes the adapted model too", merge)
    if unusual := [key for key in BEYOND if config.get(key)]:
        raise InputError(where, f"sets {unusual[0]}, which is not read", merge)
    for key in PATTERNS:
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict) or not all(PLAIN_NAME.fullmatch(pattern) for pattern in patterns):
            raise InputError(where, f"{key} is no object of module names and numbers", merge)


def _find_base(name: str, base_name: str, revision: object) -> Path:
    """The folder of the model that was adapted."""
    at = f"@{revision}" if isinstance(revision, str) and revision else ""
    mend = "Write the folder or hub name of the adapted model there"
    try:
        base = find_encoder_folder(find_folder(base_name + at if not Path(base_name).is_dir() else base_name))
    except InputError as error:
        where = "" if error.where == "--model" else f"{error.where} "
        what = f"base_model_name_or_path: {where}{error.what}"
        raise InputError(f"{name}/{ADAPTER_CONFIG}", what, mend) from None
    if (base / ADAPTER_WEIGHTS).exists():
        what = f"base_model_name_or_path is {base_name}, which is an adapter too"
        raise InputError(f"{name}/{ADAPTER_CONFIG}", what, mend)
    return base


def merge_lora(name: str, lora: Lora, model: nn.Module) -> nn.Module:
    """The model with the adapter added to its weights. Raises InputError where the adapter is another model's."""
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    tensors = load_file(lora.folder / ADAPTER_WEIGHTS)
    tensors = {key.removeprefix("base_model.model."): tensor for key, tensor in tensors.items()}
    matrices = {key: tensor for key, tensor in tensors.items() if ".lora_" in key}
    modules = {key.partition(".lora_")[0] for key in matrices}
    prefix = _head_prefix(modules, model)
    if not modules or prefix is None:
        example = min(modules, default="nothing")
        what = f"holds an adapter of another model than {lora.base_name}: it changes {example}"
        raise InputError(name, what, f"Mend base_model_name_or_path in its {ADAPTER_CONFIG}")
    matrices = {f"base_model.model.{key.removeprefix(prefix)}": tensor for key, tensor in matrices.items()}
    state = model.state_dict()
    for key, tensor in tensors.items():  # weights that were trained as a whole; those of a head are not the encoder's
        key = key.removeprefix(prefix).replace(".base_layer.", ".")
        if key not in state:
            continue
        if state[key].shape != tensor.shape:
            what = f"{key} has the shape {list(tensor.shape)}, in {lora.base_name} {list(state[key].shape)}"
            raise InputError(f"{name}/{ADAPTER_WEIGHTS}", what, "Merge it where it was trained, and pass the result")
        with torch.no_grad():
            state[key].copy_(tensor)
    settings = {key: lora.config[key] for key in SETTINGS if lora.config.get(key) is not None}
    settings |= {key: _resolve_pattern(lora.config.get(key) or {}, modules, prefix) for key in PATTERNS}
    targets = sorted(module.removeprefix(prefix) for module in modules)
    adapted = get_peft_model(model, LoraConfig(target_modules=targets, inference_mode=True, **settings))
    report = set_peft_model_state_dict(adapted, matrices)
    if lacking := sorted(key for key in (*report.unexpected_keys, *report.missing_keys) if ".lora_" in key):
        what = f"does not fit its {ADAPTER_CONFIG} ({lacking[0]})"
        raise InputError(f"{name}/{ADAPTER_WEIGHTS}", what, "Save the adapter again")
    merged: nn.Module = adapted.merge_and_unload()
    return merged


def _head_prefix(modules: set[str], model: nn.Module) -> str | None:
    """What stands before the names of an encoder's modules in a model with a head, "bert." or nothing; None where they
    are not its modules."""
    known = {path for path, _ in model.named_modules()}
    first = min(modules, default="")
    prefixes = ("", *(first[: match.end()] for match in re.finditer(r"\.", first)))
    return next((p for p in prefixes if all(m.startswith(p) and m.removeprefix(p) in known for m in modules)), None)


def _resolve_pattern(pattern: dict[str, Any], modules: set[str], prefix: str) -> dict[str, Any]:
    """The pattern as PEFT applies it to modules with `prefix`, for their names without it."""
    resolved = {}
    for module in sorted(modules):
        key = next((key for key in pattern if re.match(rf"(.*\.)?({key})$", module)), None)
        if key is not None:
            resolved[f"^{re.escape(module.removeprefix(prefix))}"] = pattern[key]
    return resolved
