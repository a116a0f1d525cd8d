"""Encoders loaded safely: safetensors only, no code of the model's own, no missing weights, right padding, eval mode.

Without a name it is the embedded MiniLM, every file checked by its SHA-256. `Encoder.checked` holds what the self-check
measured.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clsprobe.probes.encoders.adapters import ADAPTERS, SUPPORTED
from clsprobe.probes.encoders.describing import Description, describe
from clsprobe.probes.encoders.devices import DTYPES, check_device, choose_device
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.finding import EMBEDDED, EMBEDDED_FILES, PACKAGE, embedded_folder
from clsprobe.probes.encoders.messages import as_input_error, quiet_transformers
from clsprobe.probes.errors import InputError, unknown
from clsprobe.probes.files import file_digest

if TYPE_CHECKING:
    from torch import nn


def load_encoder(
    name: str | Description | None = None,
    *,
    device: str = "auto",
    dtype: str = "float32",
    untrained: int | None = None,
) -> Encoder:
    """Load an encoder for reading: the embedded MiniLM without a name, else a folder or a hub name.

    untrained: give it random weights under this seed instead of the trained ones (a baseline). Raises InputError.
    """
    described = name if isinstance(name, Description) else describe(name)
    check_device(device)
    if dtype not in DTYPES:
        raise unknown("--dtype", "dtype", dtype, DTYPES)
    folder, shown = described.folder, described.name
    if shown == EMBEDDED and folder == embedded_folder():
        for file, digest in EMBEDDED_FILES.items():
            if not (folder / file).exists() or file_digest(folder / file) != digest:
                raise InputError(EMBEDDED, f"{file} is not the published one", f"Reinstall the package {PACKAGE}")
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    from clsprobe.probes.encoders.selfcheck import confirm, self_check

    kind, chosen = getattr(torch, dtype), choose_device(device)
    with quiet_transformers():
        with as_input_error(shown, "its tokenizer cannot be loaded"):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            if backend := getattr(tokenizer, "backend_tokenizer", None):
                backend.no_padding()  # a saved tokenizer may pad and cut on its own
                backend.no_truncation()
            refuse_foreign_tokenizer(described, tokenizer)
        with as_input_error(shown, "cannot be loaded"), torch.random.fork_rng(devices=[]):
            if untrained is None:
                model, report = AutoModel.from_pretrained(
                    folder,
                    dtype=kind,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # reported below, in one line
                )
                _refuse_foreign_weights(described, report)
            else:
                torch.default_generator.manual_seed(untrained)  # torch.manual_seed would move the GPUs' states too
                model = AutoModel.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), dtype=kind)
    adapter = described.adapter
    known = described.model_type in ADAPTERS
    if not known:
        adapter = replace(adapter, blocks=f"{_guess_blocks(described, model)}.*")
    model = (model.get_submodule(adapter.part) if adapter.part else model).to(chosen).eval().requires_grad_(False)
    encoder = Encoder(described, model, tokenizer, (), chosen, kind, untrained, adapter)
    encoder = replace(encoder, blocks=[model.get_submodule(module) for module, _ in encoder.points[1:]])
    if not known:
        encoder = replace(encoder, adapter=confirm(encoder))
    with as_input_error(shown, "cannot be run"):
        return replace(encoder, checked=self_check(encoder))


def _guess_blocks(described: Description, model: nn.Module) -> str:
    """The only list of as many modules as config.json names layers. Raises InputError where that is not one."""
    named = [name for name, module in model.named_modules() if type(module).__name__ == "ModuleList"]
    lists = [name for name in named if len(list(model.get_submodule(name).children())) == described.depth]
    if len(lists) != 1:
        found = f"it has {len(lists)} lists of {described.depth} modules"
        what = f"model_type '{described.model_type}' is not known, and {found}"
        raise InputError(described.name, what, SUPPORTED)
    return lists[0]


def refuse_foreign_tokenizer(described: Description, tokenizer: Any) -> None:
    """A tokenizer of another model gives ids the embedding table lacks, or leaves much of the table unused."""
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    table = described.config.get("vocab_size", size)
    if size > table or table - size > max(1024, table // 50):
        raise InputError(
            described.name,
            f"its tokenizer knows {size:,} tokens, its embedding table {table:,}",
            "Use its own tokenizer",
        )


def _refuse_foreign_weights(described: Description, report: dict[str, Any]) -> None:
    """Weights that a file lacks would be random; those of blocks that config.json does not know would be left out."""
    adapter = described.adapter
    numbered = re.escape(adapter.blocks.partition(".*")[0])
    blocks = re.compile(rf"(^|\.){numbered}\.[0-9]+\.")
    read = (f"{adapter.part}.", "shared.") if adapter.part else ("",)  # a decoder is not read
    lacking = (key for key in report["missing_keys"] if key.startswith(read) and not key.startswith("pooler."))
    faults = (
        ("its weights lack", lacking),
        ("its weights have another shape than config.json says:", (key for key, *_ in report["mismatched_keys"])),
        ("config.json does not know of", (key for key in report["unexpected_keys"] if blocks.search(key))),
    )
    for what, keys in faults:
        if names := sorted(keys):
            listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise InputError(described.name, f"{what} {listed}", "Use a whole model, with its own config.json")
