"""Find the weights of an encoder, and what is in them, before torch is imported.

1. `find_weights` finds the files: what config.json names, model.safetensors, an index with its shards, or a variant
   such as model.fp16.safetensors. Where there are none it says what the folder holds instead, and what to do.
2. The header of every file is read, which fails for one that is not whole; it holds the name and shape of every tensor.
3. Names that all begin with what a wrapper of torch puts before them are read without that.
4. `Weights.slices` gives the tensors to transformers, which reads them from the disk as it needs them. It gets no
   folder, in which it would look for other files as well.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from math import prod
from pathlib import Path
from typing import Any

from clsprobe.probes.encoders.finding import INDEX, SINGLE, find_inner, read_json, unreadable
from clsprobe.probes.encoders.messages import first_line
from clsprobe.probes.errors import InputError
from clsprobe.probes.files import check_file

WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and its relatives, torch.compile
VARIANT = re.compile(r"model\.(\w+)\.safetensors|model\.safetensors\.index\.(\w+)\.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
OF_TRAINERS = re.compile(r"(optimizer|scheduler|scaler|rng_state.*|training_args)\.\w+")  # pickles that are no weights
OTHER_FORMATS = {".gguf": "GGUF", ".onnx": "ONNX", ".h5": "TensorFlow", ".msgpack": "Flax", ".ot": "Rust"}
# torch.load with weights_only reads tensors and runs nothing; it refuses a file that needs more than that
IF_REFUSED = "If torch refuses it, ask its author for safetensors"


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of an encoder on the disk.

    files: safetensors. prefix: what stands before every name in them, and is left out of `shapes`. shapes: name ->
    shape of every tensor. notes: sentences on which files were taken, and how they were read.
    """

    files: tuple[Path, ...]
    prefix: str
    shapes: dict[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Weights of {self.count:,} numbers in {len(self.files)} files>"

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return sum(map(prod, self.shapes.values()))

    def slices(self) -> dict[str, Any]:
        """Name -> slice of a file, which becomes a tensor of torch when it is read."""
        from safetensors import safe_open

        for file in self.files:
            check_file(file)
        opened = [safe_open(file, framework="pt") for file in self.files]
        return {name.removeprefix(self.prefix): file.get_slice(name) for file in opened for name in file.keys()}  # noqa: SIM118

    def refuse_other_sizes(self, name: str, dim: int, blocks: int) -> None:
        """Raise InputError where no tensor has the number of dimensions that config.json says, or it says more blocks
        than there are tensors: making such a model would take hours or all memory. name: what errors call it."""
        mend = "Use the config.json that was saved with the weights"
        if not any(dim in shape for shape in self.shapes.values()):
            largest = max(self.shapes, key=lambda key: prod(self.shapes[key]))
            shape = " x ".join(f"{size:,}" for size in self.shapes[largest])
            what = f"says {dim:,} dimensions, which no tensor of the weights has ({largest} is {shape})"
            raise InputError(f"{name}/config.json", what, mend)
        if blocks > len(self.shapes):
            what = f"says {blocks:,} blocks, more than the weights have tensors ({len(self.shapes):,})"
            raise InputError(f"{name}/config.json", what, mend)


def find_weights(name: str, folder: Path, config: dict[str, Any]) -> Weights:
    """The weights in an encoder's folder. name: what errors call the model. config: its config.json.

    The files must have been checked (`finding.check_files`). Raises InputError where there are no safetensors, or one
    is not whole.
    """
    main, notes = _choose_file(name, folder, config)
    files = _shards(name, folder, main) if main.endswith(".json") else [folder / main]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= _read_header(f"{name}/{file.relative_to(folder).as_posix()}", file)
    if not shapes:
        raise InputError(f"{name}/{main}", "holds no tensors", "Save the model again with save_pretrained")
    prefix = ""
    while wrapper := next((w for w in WRAPPERS if all(key.startswith(prefix + w) for key in shapes)), None):
        prefix += wrapper
    if prefix:
        notes.append(
            f"Every name in the weights begins with '{prefix}', which a wrapper of torch (DataParallel, compile) puts "
            "there; they are read without it."
        )
    return Weights(tuple(files), prefix, {key.removeprefix(prefix): s for key, s in shapes.items()}, tuple(notes))


def _choose_file(name: str, folder: Path, config: dict[str, Any]) -> tuple[str, list[str]]:
    """The file of weights, or the index of several, with notes on the choice."""
    files = {path.name for path in folder.iterdir()}
    if (explicit := config.get("transformers_weights")) is not None:
        if not (folder / str(explicit)).exists():
            what = f"transformers_weights names {explicit!r}, which is not there"
            raise InputError(f"{name}/config.json", what, "Download it, or remove transformers_weights")
        return str(explicit), []
    for file in (SINGLE, INDEX):
        if file in files:
            return file, []
    variants = {file: match[1] or match[2] for file in sorted(files) if (match := VARIANT.fullmatch(file))}
    if len(variants) > 1:
        what = f"has no {SINGLE}, and several variants ({', '.join(variants)})"
        raise InputError(name, what, f"Rename the one to read to {SINGLE}")
    for file, variant in variants.items():
        return file, [f"The weights are those of {file}, the only ones in the folder (the variant {variant})."]
    raise _no_weights(name, folder, files)


def _no_weights(name: str, folder: Path, files: set[str]) -> InputError:
    """The error for a folder without safetensors: what it has instead."""
    pickles = sorted(file for file in files if file.endswith(PICKLES) and not OF_TRAINERS.fullmatch(file))
    if pickles:
        return _pickles_only(name, pickles)
    if inner := find_inner(folder):
        mend = f"Pass {folder / inner}"
        return InputError(name, f"has no {SINGLE}, but {inner} in it has", mend)
    others = sorted(file for file in files if file.endswith(".safetensors") and not file.startswith("adapter_model"))
    if len(others) == 1:
        return InputError(name, f"has no {SINGLE}, only {others[0]}", f"Rename it to {SINGLE} if it is the whole model")
    formats = sorted({kind for file in files if (kind := OTHER_FORMATS.get(Path(file).suffix))})
    instead = f", only {' and '.join(formats)} files" if formats else ""
    return InputError(name, f"has no {SINGLE}{instead}", "Pass a whole model with safetensors weights")


def _pickles_only(name: str, pickles: list[str]) -> InputError:
    shards = "pytorch_model*.bin"
    command = conversion_command(shards if any(fnmatch(file, shards) for file in pickles) else pickles[0], SINGLE)
    return InputError(
        name, "has only pickle weights, which can run code", f"{command}, and pass it again. {IF_REFUSED}"
    )


def conversion_command(pickles: str, target: str) -> str:
    """What to do to write the tensors of pickles to a file of safetensors, which runs nothing that is in them.

    pickles: a file of the model's folder, or a pattern of several.
    """
    code = (
        "import glob, torch, safetensors.torch as s; "
        f"s.save_file({{k: v.contiguous().clone() for f in glob.glob({json.dumps(pickles)}) for k, v in "
        f'torch.load(f, "cpu", weights_only=True).items()}}, "{target}", {{"format": "pt"}})'
    )
    return f"In its folder, run python -c {shlex.quote(code)}"


def _shards(name: str, folder: Path, index: str) -> list[Path]:
    """The files that an index names."""
    weight_map = read_json(folder / index, name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{name}/{index}", "has no weight_map", "Download it again")
    shards = sorted(set(weight_map.values()))
    missing = [file for file in shards if not (folder / file).exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{name}/{index}", f"names {missing[0]}{more}, which is not there", "Download the whole model")
    return [folder / file for file in shards]


def _read_header(where: str, file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in a file of safetensors."""
    from safetensors import SafetensorError, safe_open

    def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
        with safe_open(file, framework="np") as opened:
            for key in opened.keys():  # noqa: SIM118 - it is no mapping
                yield key, tuple(opened.get_slice(key).get_shape())

    try:
        check_file(file)
        return dict(shapes())
    except OSError as error:
        raise unreadable(where, error) from None
    except SafetensorError as error:
        reason = first_line(error).removeprefix("Error while deserializing header: ")
        what = f"is not a whole safetensors file ({reason})"
        raise InputError(where, what, "Was the download cut? Download or save it again") from None
