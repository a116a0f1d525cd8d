"""Vectors from a file, as `States`, without an encoder.

    FILE.npy            an array (row, dim), or (row, layer, dim) with layers counted from 0
    FILE.safetensors    one tensor (row, dim), or several: "layer.07/cls" is layer 7, readout cls, as in a cache;
                        any other name is a readout

1. `read_vectors` maps the file. Nothing in it is unpickled, and only its header is read yet. A file without layers gets
   layer 1: layer 0 would mean the embeddings, whose [CLS] every run checks.
2. `Vectors.check` reads the used rows once: each must be finite, and gets a digest by which the split finds duplicates.
3. `Vectors.states` returns them as float32, whatever the dtype in the file.

Vectors belong to rows, not to texts: the same word in two sentences has two vectors (`probes.tasks.task.Task.rows`).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import numpy as np

from clsprobe.probes.errors import InputError, did_you_mean, escape_surrogates, format_rows, printable, unknown
from clsprobe.probes.extraction.states import States, tensor_name
from clsprobe.probes.files import UnsuitableFile, check_file, check_unchanged, file_digest, open_file, read_error

SUFFIXES = (".npy", ".safetensors")
# Only integers to which vectors are quantised and that float32 holds exactly: int32 and int64 are ids or labels.
KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "I16": "<i2", "U16": "<u2"}
BFLOAT16 = "BF16"  # unknown to numpy: the upper half of a float32
UNNAMED, ONLY = "vector", 1  # the readout and the layer of vectors without a name
LONGEST_NAME = 100  # characters
RESERVED = re.compile(r"attention.*|last\d+\(.*|.*\+norm", re.DOTALL)  # readouts that need an encoder
CHUNK = 32 << 20  # bytes of vectors that are checked at once
EXAMPLE = "Save it with np.save('vectors.npy', array), or with safetensors"


@dataclass(frozen=True, eq=False)
class Vectors:
    """A memory-mapped file of vectors.

    cells: (layer, readout) -> values (row, dim). kind: the dtypes in the file. status: of the file when it was opened.
    """

    path: Path
    cells: Mapping[tuple[int, str], _Cell]
    kind: str
    status: os.stat_result = field(repr=False)

    @property
    def name(self) -> str:
        """The name in errors and on the page."""
        return escape_surrogates(self.path.name)

    @cached_property
    def layers(self) -> list[int]:
        """Every layer, in rising order."""
        return sorted({layer for layer, _ in self.cells})

    @cached_property
    def readouts(self) -> list[str]:
        """Every readout, in the order of the file."""
        return list(dict.fromkeys(readout for _, readout in self.cells))

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, dim) of every cell."""
        return next(iter(self.cells.values())).shape

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return file_digest(self.path)

    def choose_readouts(self, names: Sequence[str]) -> list[str]:
        """These readouts. Raises InputError for a name that is unknown or given twice."""
        for name in names:
            if name not in self.readouts:
                raise unknown("--readouts", "readout", name, self.readouts)
            if names.count(name) > 1:
                raise InputError("--readouts", f"'{name}' is given twice", "Name each readout once")
        return list(names)

    def choose_layers(self, layers: Sequence[int]) -> list[int]:
        """These layers. Raises InputError for a layer that the file lacks."""
        for layer in layers:
            if layer not in self.layers:
                listed = ", ".join(map(str, self.layers))
                raise InputError(f"--layers {layer}", f"{self.name} has layers {listed}", "Choose among them")
        return list(layers)

    def check(self, rows: np.ndarray, layers: Sequence[int], readouts: Sequence[str]) -> np.ndarray:
        """(row,) a digest of each row's vectors in these cells; 0 for rows that are not among `rows`.

        Raises InputError for rows that are not finite, and where all vectors are the same.
        """
        cells = [self.cells[layer, readout] for layer in layers for readout in readouts if self._has(layer, readout)]
        rows, is_bad = np.unique(rows), np.zeros(self.shape[0], bool)
        ids = np.zeros(self.shape[0], np.int64)
        size = max(1, CHUNK // (4 * self.shape[1] * len(cells)))
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            block = np.concatenate([cell[chunk] for cell in cells], axis=1)
            is_bad[chunk] = ~np.isfinite(block).all(1)
            digests = [blake2b(row, digest_size=8).digest() for row in block]
            ids[chunk] = np.frombuffer(b"".join(digests), np.int64)
        if is_bad.any():
            bad = np.flatnonzero(is_bad) + 1
            what = f"{len(bad):,} row{'s hold' if len(bad) > 1 else ' holds'} NaN or what is no finite float32"
            mend = "Mend the vectors, or leave these rows out of both files"
            raise InputError(self.name, f"{what} (row{'s' * (len(bad) > 1)} {format_rows(bad)})", mend)
        if len(rows) > 1 and (ids[rows] == ids[rows[0]]).all():
            raise InputError(self.name, "all vectors are the same", "Give those of another layer or readout")
        return ids

    def check_unchanged(self) -> None:
        """Raise InputError where the file has changed since it was opened, or since its digest was computed."""
        try:
            check_unchanged(self.path, self.status)
            if file_digest(self.path) == self.digest:
                return
        except OSError as error:
            raise read_error(self.name, error) from None
        raise InputError(self.name, "changed while being read", "Run again when nothing writes to it")

    def states(self, layers: Sequence[int], readouts: Sequence[str], ids: np.ndarray) -> States:
        """The vectors of these cells, a text for every row of the file. ids: (row,) the digests of `check`."""
        import pandas as pd

        count, dim = self.shape
        shard = {tensor_name(layer, readout): cell for (layer, readout), cell in self.cells.items()}
        present = np.ones((count, len(readouts)), np.uint8)
        packages = ("numpy", "safetensors")
        versions = {p: importlib.metadata.version(p) for p in packages} | {"python": platform.python_version()}
        source = {"model": self.name, "control": "none", "seed": None, "digest": self.digest, "dtype": self.kind}
        return States(
            (),
            tuple(layers),
            tuple(readouts),
            dim,
            [cast("Mapping[str, np.ndarray]", shard | {"present": present})],
            pd.DataFrame({"shard": 0, "at": np.arange(count), "tokens": 0, "ids": ids}),
            0,
            source | {"vectors": f"{count:,} x {dim:,}", "moved by half precision": {}, "versions": versions},
            max(self.layers),
        )

    def _has(self, layer: int, readout: str) -> bool:
        return (layer, readout) in self.cells


@dataclass(frozen=True, eq=False)
class _Cell:
    """The stored values of one cell, (row, dim); indexing converts them to float32."""

    stored: np.ndarray
    is_bfloat16: bool = False

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored.shape

    def __getitem__(self, rows: Any) -> np.ndarray:
        values = np.asarray(self.stored[rows])
        if self.is_bfloat16:
            return (values.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # `check` refuses values too large for float32
            return np.ascontiguousarray(values, np.float32)


def read_vectors(path: Path | str) -> Vectors:
    """Map a file of vectors. Raises InputError for any fault but the numbers, which `Vectors.check` reads."""
    path = Path(path).expanduser()
    try:
        status = check_file(path)
        if (suffix := path.suffix.lower()) not in SUFFIXES:
            what = f"unknown kind of file '{path.suffix}'" if path.suffix else "a file without a suffix"
            raise InputError(path.name, what, f"Known: {', '.join(SUFFIXES)}. {EXAMPLE}")
        if not status.st_size:
            raise InputError(path.name, "file is empty", EXAMPLE)
        cells, kind = (_map_npy if suffix == ".npy" else _map_safetensors)(path)
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        guess = did_you_mean(path.name, sorted(p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES))
        raise InputError(f"--vectors {path}", "no such file", f"Did you mean {guess}?" if guess else "") from None
    except UnsuitableFile as error:
        raise read_error(path.name, error) from None
    except (OSError, ValueError) as error:  # no permission, a NUL in the name
        raise read_error(f"--vectors {path}", error, "Check it") from None
    return Vectors(path, cells, kind, status)


def _map_npy(path: Path) -> tuple[dict[tuple[int, str], _Cell], str]:
    with open_file(path) as file:
        start = file.read(8)
    if not start.startswith(b"\x93NUMPY"):
        for magic, what in ((b"PK", "an archive, such as .npz"), (b"\x80", "a pickle, which can run code")):
            if start.startswith(magic):
                raise InputError(path.name, f"is {what}, whatever its name", "Save the array alone with np.save")
        raise InputError(path.name, "not a .npy file (it does not start with \\x93NUMPY)", EXAMPLE)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # the header is truncated, wrong, or describes more than the file holds
        message = str(error)
        if "objects" in message:
            raise InputError(path.name, "holds Python objects, which are never unpickled", EXAMPLE) from None
        is_truncated = "mmap length" in message or "EOF" in message
        what = "is cut: its header promises more" if is_truncated else f"has a damaged header ({_first_line(error)})"
        raise InputError(path.name, what, "Copy or save it again") from None
    if array.dtype.newbyteorder("<").str.lstrip("|") not in KINDS.values():
        raise _wrong_kind(path, "", str(array.dtype))
    if array.ndim not in (2, 3):
        raise _wrong_shape(path, "", array.shape, " or (row, layer, dim)")
    if not array.size:
        raise _wrong_shape(path, "", array.shape, " or (row, layer, dim)", "holds no vectors")
    if array.ndim == 2:
        return {(ONLY, UNNAMED): _Cell(array)}, str(array.dtype)
    return {(layer, UNNAMED): _Cell(array[:, layer]) for layer in range(array.shape[1])}, str(array.dtype)


def _map_safetensors(path: Path) -> tuple[dict[tuple[int, str], _Cell], str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):  # checks the header against the file
            pass
    except SafetensorError as error:
        what = f"is no whole .safetensors file ({_first_line(error)})"
        raise InputError(path.name, what, "Copy or save it again") from None
    with open_file(path) as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    header.pop("__metadata__", None)
    if not header:
        raise InputError(path.name, "holds no tensor", EXAMPLE)
    cells: dict[tuple[int, str], _Cell] = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        tensor, kind, shape = f"{_quote_tensor(name)} ", entry["dtype"], tuple(entry["shape"])
        if len(shape) != 2:
            raise _wrong_shape(path, tensor, shape)
        if kind not in KINDS and kind != BFLOAT16:
            raise _wrong_kind(path, tensor, kind)
        if not shape[0] * shape[1]:
            raise _wrong_shape(path, tensor, shape, problem="holds no vectors")
        stored = np.memmap(
            path, KINDS.get(kind, "<u2"), "r", offset=start + entry["data_offsets"][0], shape=shape, order="C"
        )
        cells[_parse_name(path, name)] = _Cell(stored, kind == BFLOAT16)
    _check_grid(path, cells, len(header))
    return cells, ", ".join(sorted({entry["dtype"] for entry in header.values()}))


def _quote_tensor(name: str) -> str:
    return f"tensor '{printable(name)[:LONGEST_NAME]}'"


def _parse_name(path: Path, name: str) -> tuple[int, str]:
    """The layer (-1 without one) and the readout of a tensor's name. Raises InputError for an unusable name."""
    match = re.fullmatch(r"layer\.(\d{1,4})/(.+)", name, re.DOTALL)
    layer, readout = (int(match[1]), match[2]) if match else (-1, name)
    tensor = _quote_tensor(name)
    if not readout.strip() or not readout.isprintable() or len(readout) > LONGEST_NAME:
        raise InputError(path.name, f"{tensor} has no name for a readout", f"At most {LONGEST_NAME} plain characters")
    if RESERVED.fullmatch(readout):
        raise InputError(path.name, f"{tensor} has a name that stands for more than one layer or token", "Rename it")
    return layer, readout


def _check_grid(path: Path, cells: dict[tuple[int, str], _Cell], tensors: int) -> None:
    """Raise InputError unless all cells of the grid exist, in one shape. Gives a file without layers layer `ONLY`."""
    layers, readouts = {layer for layer, _ in cells}, {readout for _, readout in cells}
    if len(cells) < tensors:
        raise InputError(path.name, "two tensors are one cell", "Write a layer in one way, as in layer.07/cls")
    if layers == {-1}:
        for _, readout in list(cells):
            cells[ONLY, readout] = cells.pop((-1, readout))
    elif -1 in layers:
        without = next(readout for layer, readout in cells if layer == -1)
        mend = f"Name it layer.{max(layers):02d}/{without}, or give it a file of its own"
        raise InputError(path.name, f"tensor '{without}' names no layer, others do", mend)
    elif missing := [(layer, name) for layer in sorted(layers) for name in readouts if (layer, name) not in cells]:
        what = f"no tensor '{tensor_name(*missing[0])}', though '{missing[0][1]}' stands at other layers"
        raise InputError(path.name, what, "Give every readout at every layer, or make two files")
    for axis, unit in enumerate(("rows", "dimensions")):
        if len(sizes := {cell.shape[axis] for cell in cells.values()}) > 1:
            listed = " and ".join(f"{size:,}" for size in sorted(sizes)[:3])
            raise InputError(path.name, f"its tensors have {listed} {unit}", "Give each kind a file of its own")


def _wrong_shape(
    path: Path, tensor: str, shape: tuple[int, ...], more: str = "", problem: str = "is no table of vectors"
) -> InputError:
    return InputError(path.name, f"{tensor}{problem}: its shape is {shape}", f"Its axes are (row, dim){more}")


def _wrong_kind(path: Path, tensor: str, kind: str) -> InputError:
    likely = "ids or labels?" if re.fullmatch(r"[uiUI](nt)?(32|64)", kind.removeprefix("u")) else "not numbers to read"
    return InputError(path.name, f"{tensor}holds {kind}, {likely}", "Save vectors as float32, float16 or bfloat16")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")[:150]
