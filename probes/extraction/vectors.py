"""Vectors that somebody has already, as `States`: no encoder is loaded and none is run.

    FILE.npy            an array (row, dim), or (row, layer, dim) with layers counted from 0
    FILE.safetensors    one tensor (row, dim), or several: "layer.07/cls" is layer 7, readout cls, as in our own;
                        any other name is a readout

1. `read_vectors` maps the file. Nothing in it is unpickled, and nothing but its header is read yet. A file that names
   no layers has one, layer 1: layer 0 would claim to be the embeddings, whose [CLS] every run checks.
2. `Vectors.check` reads the rows that are used, once: each must be finite, and gets a digest, by which the split knows
   equal ones.
3. `Vectors.states` gives them out as float32, row by row, whatever they are kept as.

Vectors belong to rows, not to texts: the same word in two sentences has two (`probes.tasks.task.Task.rows`).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import numpy as np

from clsprobe.probes.errors import InputError, did_you_mean, named_rows, printable, unknown
from clsprobe.probes.extraction.states import States, name_of
from clsprobe.probes.files import file_digest

SUFFIXES = (".npy", ".safetensors")
# Of integers only those that vectors are quantised to, and float32 holds exactly: int32 and int64 are ids or labels.
KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "I16": "<i2", "U16": "<u2"}
BFLOAT16 = "BF16"  # which numpy does not know: the upper half of a float32
UNNAMED, ONLY = "vector", 1  # the readout and the layer of vectors that have no name
LONGEST_NAME = 100  # characters
RESERVED = re.compile(r"attention.*|last\d+\(.*|.*\+norm", re.DOTALL)  # of what only an encoder can give
CHUNK = 32 << 20  # bytes of vectors that are checked at once
EXAMPLE = "Save it with np.save('vectors.npy', array), or with safetensors"


@dataclass(frozen=True, eq=False)
class Vectors:
    """A file of vectors, mapped. cells: (layer, readout) -> what is stored, (row, dim).

    kind: of its numbers, as a reader knows it. count: rows.
    """

    path: Path
    cells: Mapping[tuple[int, str], _Cell]
    kind: str
    status: os.stat_result = field(repr=False)

    @property
    def name(self) -> str:
        """As errors and the page call it."""
        return self.path.name

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

    def chosen_readouts(self, names: Sequence[str]) -> list[str]:
        """Those of these names. Raises InputError for one that the file lacks."""
        for name in names:
            if name not in self.readouts:
                raise unknown("--readouts", "readout", name, self.readouts)
            if names.count(name) > 1:
                raise InputError("--readouts", f"'{name}' is given twice", "Name each readout once")
        return list(names)

    def chosen_layers(self, layers: Sequence[int]) -> list[int]:
        """These layers. Raises InputError for one that the file lacks."""
        for layer in layers:
            if layer not in self.layers:
                listed = ", ".join(map(str, self.layers))
                raise InputError(f"--layers {layer}", f"{self.name} has layers {listed}", "Choose among them")
        return list(layers)

    def check(self, rows: np.ndarray, layers: Sequence[int], readouts: Sequence[str]) -> np.ndarray:
        """(row,) a digest of the vectors of each row in these cells; 0 for rows that are not among `rows`.

        Raises InputError naming rows that are not finite, and where all are the same.
        """
        cells = [self.cells[layer, readout] for layer in layers for readout in readouts if self._has(layer, readout)]
        rows, bad = np.unique(rows), np.zeros(self.shape[0], bool)
        ids = np.zeros(self.shape[0], np.int64)
        size = max(1, CHUNK // (4 * self.shape[1] * len(cells)))
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            block = np.concatenate([cell[some] for cell in cells], axis=1)
            bad[some] = ~np.isfinite(block).all(1)
            digests = [blake2b(row, digest_size=8).digest() for row in block]
            ids[some] = np.frombuffer(b"".join(digests), np.int64)
        if bad.any():
            wrong = np.flatnonzero(bad) + 1
            what = f"{len(wrong):,} row{'s hold' if len(wrong) > 1 else ' holds'} NaN or what is no finite float32"
            mend = "Mend the vectors, or leave these rows out of both files"
            raise InputError(self.name, f"{what} (row{'s' * (len(wrong) > 1)} {named_rows(wrong)})", mend)
        if len(rows) > 1 and (ids[rows] == ids[rows[0]]).all():
            raise InputError(self.name, "all vectors are the same", "Give those of another layer or readout")
        return ids

    def check_same(self) -> None:
        """Raise InputError where somebody has written to the file since it was opened."""
        now = os.stat(self.path)
        if (now.st_size, now.st_mtime_ns, now.st_ino) != (
            self.status.st_size,
            self.status.st_mtime_ns,
            self.status.st_ino,
        ):
            raise InputError(self.name, "changed while being read", "Run again when nothing writes to it")

    def states(self, layers: Sequence[int], readouts: Sequence[str], ids: np.ndarray) -> States:
        """The vectors of these cells, a text for every row of the file. ids: (row,) what `check` gave."""
        import pandas as pd

        count, dim = self.shape
        shard = {name_of(layer, readout): cell for (layer, readout), cell in self.cells.items()}
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
    """What is stored of one cell, (row, dim), as float32 where it is looked at."""

    stored: np.ndarray
    half: bool = False  # bfloat16

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored.shape

    def __getitem__(self, rows: Any) -> np.ndarray:
        found = np.asarray(self.stored[rows])
        if self.half:
            return (found.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # what is too large for float32 is found by `check`
            return np.ascontiguousarray(found, np.float32)


def read_vectors(path: Path | str) -> Vectors:
    """The vectors of a file. Raises InputError for whatever is wrong with it but the numbers themselves."""
    path = Path(path).expanduser()
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
            raise InputError(path.name, "not a regular file", f"Name one of {' or '.join(SUFFIXES)}")
        if (suffix := path.suffix.lower()) not in SUFFIXES:
            what = f"unknown kind of file '{path.suffix}'" if path.suffix else "a file without a suffix"
            raise InputError(path.name, what, f"Known: {', '.join(SUFFIXES)}. {EXAMPLE}")
        if not status.st_size:
            raise InputError(path.name, "file is empty", EXAMPLE)
        cells, kind = (_npy if suffix == ".npy" else _safetensors)(path)
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        guess = did_you_mean(path.name, sorted(p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES))
        raise InputError(f"--vectors {path}", "no such file", f"Did you mean {guess}?" if guess else "") from None
    except (OSError, ValueError) as error:  # no permission, a NUL in its name
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"--vectors {path}", f"cannot be read ({reason.lower()})", "Check it") from None
    return Vectors(path, cells, kind, status)


def _npy(path: Path) -> tuple[dict[tuple[int, str], _Cell], str]:
    with path.open("rb") as file:
        head = file.read(8)
    if not head.startswith(b"\x93NUMPY"):
        for begin, what in ((b"PK", "an archive, such as .npz"), (b"\x80", "a pickle, which can run code")):
            if head.startswith(begin):
                raise InputError(path.name, f"is {what}, whatever its name", "Save the array alone with np.save")
        raise InputError(path.name, "not a .npy file (it does not start with \\x93NUMPY)", EXAMPLE)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of a header that is cut, wrong, or larger than the file
        told = str(error)
        if "objects" in told:
            raise InputError(path.name, "holds Python objects, which are never unpickled", EXAMPLE) from None
        cut = "mmap length" in told or "EOF" in told
        what = "is cut: its header promises more" if cut else f"has a damaged header ({_first_line(error)})"
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


def _safetensors(path: Path) -> tuple[dict[tuple[int, str], _Cell], str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):  # it checks the header against the file
            pass
    except SafetensorError as error:
        what = f"is no whole .safetensors file ({_first_line(error)})"
        raise InputError(path.name, what, "Copy or save it again") from None
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    header.pop("__metadata__", None)
    if not header:
        raise InputError(path.name, "holds no tensor", EXAMPLE)
    cells: dict[tuple[int, str], _Cell] = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        told, kind, shape = f"tensor '{printable(name)[:LONGEST_NAME]}'", entry["dtype"], tuple(entry["shape"])
        if len(shape) != 2:
            raise _wrong_shape(path, f"{told} ", shape)
        if kind not in KINDS and kind != BFLOAT16:
            raise _wrong_kind(path, f"{told} ", kind)
        if not shape[0] * shape[1]:
            raise _wrong_shape(path, f"{told} ", shape, problem="holds no vectors")
        stored = np.memmap(
            path, KINDS.get(kind, "<u2"), "r", offset=start + entry["data_offsets"][0], shape=shape, order="C"
        )
        cells[_place(path, name)] = _Cell(stored, kind == BFLOAT16)
    _check_grid(path, cells, len(header))
    return cells, ", ".join(sorted({entry["dtype"] for entry in header.values()}))


def _place(path: Path, name: str) -> tuple[int, str]:
    """The layer (-1 where it names none) and the readout of a tensor."""
    found = re.fullmatch(r"layer\.(\d{1,4})/(.+)", name, re.DOTALL)
    layer, readout = (int(found[1]), found[2]) if found else (-1, name)
    shown = f"tensor '{printable(name)[:LONGEST_NAME]}'"
    if not readout.strip() or not readout.isprintable() or len(readout) > LONGEST_NAME:
        raise InputError(path.name, f"{shown} has no name for a readout", f"At most {LONGEST_NAME} plain characters")
    if RESERVED.fullmatch(readout):
        raise InputError(path.name, f"{shown} has a name that stands for more than one layer or token", "Rename it")
    return layer, readout


def _check_grid(path: Path, cells: dict[tuple[int, str], _Cell], tensors: int) -> None:
    """Raise InputError unless every readout stands at every layer, all of one shape; those without layers get one."""
    layers, readouts = {layer for layer, _ in cells}, {readout for _, readout in cells}
    if len(cells) < tensors:
        raise InputError(path.name, "two tensors are one cell", "Write a layer in one way, as in layer.07/cls")
    if layers == {-1}:
        for _, readout in list(cells):
            cells[ONLY, readout] = cells.pop((-1, readout))
    elif -1 in layers:
        named = next(readout for layer, readout in cells if layer == -1)
        mend = f"Name it layer.{max(layers):02d}/{named}, or give it a file of its own"
        raise InputError(path.name, f"tensor '{named}' names no layer, others do", mend)
    elif missing := [(layer, name) for layer in sorted(layers) for name in readouts if (layer, name) not in cells]:
        what = f"no tensor '{name_of(*missing[0])}', though '{missing[0][1]}' stands at other layers"
        raise InputError(path.name, what, "Give every readout at every layer, or make two files")
    for position, what in enumerate(("rows", "dimensions")):
        if len(sizes := {cell.shape[position] for cell in cells.values()}) > 1:
            told = " and ".join(f"{size:,}" for size in sorted(sizes)[:3])
            raise InputError(path.name, f"its tensors have {told} {what}", "Give each kind a file of its own")


def _wrong_shape(
    path: Path, tensor: str, shape: tuple[int, ...], more: str = "", problem: str = "is no table of vectors"
) -> InputError:
    return InputError(path.name, f"{tensor}{problem}: its shape is {shape}", f"Its axes are (row, dim){more}")


def _wrong_kind(path: Path, tensor: str, kind: str) -> InputError:
    likely = "ids or labels?" if re.fullmatch(r"[uiUI](nt)?(32|64)", kind.removeprefix("u")) else "not numbers to read"
    return InputError(path.name, f"{tensor}holds {kind}, {likely}", "Save vectors as float32, float16 or bfloat16")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")[:150]
