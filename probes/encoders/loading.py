"""Load encoders safely: safetensors only, no remote code, no missing weights, right padding, evaluation mode.

Without a name the embedded MiniLM is loaded, and the SHA-256 of each of its files is checked. `Encoder.checked` holds
the results of the self-check.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clsprobe.probes.encoders.adapters import ADAPTERS, SUPPORTED
from clsprobe.probes.encoders.configuration import CAUSAL, foreign_kernel
from clsprobe.probes.encoders.describing import Description, describe
from clsprobe.probes.encoders.devices import DTYPES, check_device, choose_device
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.finding import (
    ADAPTER_CONFIG,
    EMBEDDED,
    EMBEDDED_FILES,
    find_embedded_folder,
    not_published,
    read_json,
)
from clsprobe.probes.encoders.in_memory import as_model, read_sample
from clsprobe.probes.encoders.lora import merge_lora
from clsprobe.probes.encoders.messages import as_input_error, quiet_transformers
from clsprobe.probes.encoders.preview import refuse_foreign_tokenizer
from clsprobe.probes.encoders.tokenizer_files import SAMPLES, load_tokenizer
from clsprobe.probes.errors import InputError, unknown
from clsprobe.probes.files import file_digest

if TYPE_CHECKING:
    import torch
    from torch import nn

LARGEST_MISMATCH = 10**8  # numbers more than the weights hold that are made, to report exactly what is missing


def load_encoder(
    model: Any = None,
    *,
    device: str = "auto",
    dtype: str = "float32",
    untrained: int | None = None,
) -> Encoder:
    """Load an encoder from a folder or by its hub name; without a name the embedded MiniLM.

    model: also a `Description`, or an encoder that is loaded already: a SentenceTransformer, or a model of transformers
    with its tokenizer, (model, tokenizer). It is copied (`in_memory.copy_encoder`), and stays as it is.
    untrained: the seed of random weights that replace the trained ones (a baseline). Raises InputError for a model that
    cannot be loaded.
    """
    description = model if isinstance(model, Description) else describe(as_model(model))
    check_device(device := str(device))  # a torch.device too
    if dtype not in DTYPES:
        raise unknown("--dtype", "dtype", dtype, DTYPES)
    folder, name = description.folder, description.name
    is_embedded = name == EMBEDDED and folder == find_embedded_folder()
    if is_embedded:
        for file, digest in EMBEDDED_FILES.items():
            if not (folder / file).exists() or file_digest(folder / file) != digest:
                raise not_published(file)
    else:
        description.digest  # noqa: B018 - of the files before they are read
    import torch

    from clsprobe.probes.encoders.selfcheck import confirm_adapter, self_check

    torch_dtype, torch_device = getattr(torch, dtype), choose_device(device)
    mend = "Use the config.json that was saved with the weights"
    with quiet_transformers():
        with as_input_error(name, "cannot be loaded", mend):
            config = load_config(folder)
        with as_input_error(name, "its tokenizer cannot be loaded"):
            loaded = load_tokenizer(
                description.tokenizer_folder,
                lower_case=bool(description.sentence and description.sentence.lower_case),
                name_cls=description.model_type not in CAUSAL,
            )
            refuse_foreign_tokenizer(
                description,
                loaded.tokenizer.get_vocab(),
                set(loaded.tokenizer.get_added_vocab()),
                loaded.tokenizer("")["input_ids"],
            )
            _refuse_other_tokens(description, loaded.tokenizer)
        with as_input_error(name, "cannot be loaded", mend), torch.random.fork_rng(devices=[]):
            model = _load_model(description, config, torch_dtype, untrained)
    if not is_embedded:  # the files of the embedded model have been compared with the published ones
        description.check_unchanged()
    adapter = description.adapter
    is_known = description.model_type in ADAPTERS
    if not is_known:
        adapter = replace(adapter, blocks=f"{_guess_blocks(description, model)}.*")
    model = model.get_submodule(adapter.part) if adapter.part else model
    model = model.to(torch_device).eval().requires_grad_(False)
    encoder = Encoder(description, model, loaded, (), torch_device, torch_dtype, untrained, adapter)
    encoder = replace(encoder, blocks=[model.get_submodule(module) for module, _ in encoder.points[1:]])
    if not is_known:
        encoder = replace(encoder, adapter=confirm_adapter(encoder))
    with as_input_error(name, "cannot be run", mend):
        return replace(encoder, checked=self_check(encoder))


def load_config(folder: Path) -> Any:
    """The configuration of transformers in a model's folder, with the attention of torch itself."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if foreign_kernel(read_json(folder / "config.json")) is not None:
        config._attn_implementation = None  # transformers then chooses among those of torch
    return config


def _load_model(description: Description, config: Any, dtype: torch.dtype, untrained: int | None) -> nn.Module:
    """The model with its weights, or with random ones drawn with the seed `untrained`. config: of transformers."""
    import torch
    from transformers import AutoModel

    assert description.weights is not None
    with torch.device("meta"):  # shapes without numbers
        shapes = AutoModel.from_config(config, dtype=dtype)
    described, present = sum(parameter.numel() for parameter in shapes.parameters()), description.weights.count
    if described > 4 * present + LARGEST_MISMATCH:
        what = f"describes a model of {described:,} numbers, its weights hold {present:,}"
        mend = "Use the config.json that was saved with the weights"
        raise InputError(f"{description.name}/config.json", what, mend)
    if untrained is not None:
        torch.default_generator.manual_seed(untrained)  # torch.manual_seed would change the GPUs' states too
        model: nn.Module = AutoModel.from_config(config, dtype=dtype)
        return model
    loaded: Any = type(shapes).from_pretrained(
        None,
        config=config,
        state_dict=description.weights.slices(),
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below, in one line
    )
    model, report = loaded
    _refuse_foreign_weights(description, report)
    if description.lora is not None:
        with as_input_error(f"{description.name}/{ADAPTER_CONFIG}", "cannot be merged", "Save the adapter again"):
            model = merge_lora(description.name, description.lora, model)
    _refuse_other_modules(description, model.eval())
    return model


def _guess_blocks(description: Description, model: nn.Module) -> str:
    """The path of the only list of `Description.depth` modules. Raises InputError unless there is exactly one."""
    lists = {name: module for name, module in model.named_modules() if type(module).__name__ == "ModuleList"}
    lists = {name: module for name, module in lists.items() if len(list(module.children())) == description.depth}
    if len(lists) != 1:
        count = f"it has {len(lists)} lists of {description.depth} modules"
        what = f"model_type '{description.model_type}' is not known, and {count}"
        raise InputError(description.name, what, SUPPORTED)
    return next(iter(lists))


def _refuse_other_modules(description: Description, model: nn.Module) -> None:
    """Raise InputError where the copy of an encoder in memory gives a few tokens other vectors than the original."""
    import torch

    from clsprobe.probes.encoders.selfcheck import TOLERANCE

    if description.copy is None or (original := description.copy.sample) is None:
        return
    sample = read_sample(model)
    if sample is None or not np.isfinite(original).all():
        return
    dtypes = next(model.parameters()).dtype, getattr(torch, str(description.config.get("dtype")), torch.float32)
    change = np.abs(sample - original).max() / max(np.abs(original).max(), 1e-12)
    if not change <= max(TOLERANCE.get(dtype, 0) for dtype in dtypes):
        what = f"gives other numbers than its configuration and weights do (by {change:.0%} of the largest)"
        mend = "A module was changed after it was loaded; encode with it, and pass the vectors as vectors=FILE"
        raise InputError(description.name, what, mend)


def _refuse_other_tokens(description: Description, tokenizer: Any) -> None:
    """Raise InputError where the copy of a tokenizer in memory gives texts other tokens than the original."""
    if description.copy is None or (original := description.copy.tokenizer) is None:
        return
    original = copy.deepcopy(original)  # a call sets the padding and truncation of a tokenizer
    options = {"padding": False, "truncation": False, "verbose": False}
    changed = sum(original(text, **options)["input_ids"] != tokenizer(text, **options)["input_ids"] for text in SAMPLES)
    if changed:
        what = f"its tokenizer, saved and loaded, gives {changed} of {len(SAMPLES)} sample texts other tokens"
        raise InputError(description.name, what, "Save model and tokenizer, load them again, and pass these")


def _refuse_foreign_weights(description: Description, report: dict[str, Any]) -> None:
    """Raise InputError for missing weights, which would be random, and for blocks that would be left out."""
    adapter = description.adapter
    path = re.escape(adapter.blocks.partition(".*")[0])
    in_block = re.compile(rf"(^|\.){path}\.[0-9]+\.")
    prefixes = (f"{adapter.part}.", "shared.") if adapter.part else ("",)  # a decoder is not read
    missing = (key for key in report["missing_keys"] if key.startswith(prefixes) and not key.startswith("pooler."))
    faults = (
        ("its weights lack", missing),
        ("its weights have another shape than config.json says:", (key for key, *_ in report["mismatched_keys"])),
        ("config.json does not know of", (key for key in report["unexpected_keys"] if in_block.search(key))),
    )
    for what, keys in faults:
        if names := sorted(keys):
            listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise InputError(description.name, f"{what} {listed}", "Use a whole model, with its own config.json")
