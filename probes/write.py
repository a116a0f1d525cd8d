"""The one place that writes anything to disk.

Every file appears whole or not at all: written under a temporary name beside its target, flushed to the disk, renamed
over the target, and the folder flushed so that the rename itself survives a power cut. Imports no torch.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def replacing(path: Path | str) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well and leaves no trace when it does not."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path | str, text: str) -> None:
    """Replace `path` by `text` in UTF-8, with the line ends as they are."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def write_parquet(path: Path | str, table: pd.DataFrame) -> None:
    """Replace `path` by `table` as Parquet (zstd), without the index."""
    with replacing(path) as file:
        table.to_parquet(file, index=False, compression="zstd")


def make_folder(path: Path | str) -> Path:
    """Create `path` and its parents, and flush the parent that received it."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    _flush_folder(path.parent)
    return path


def _flush_folder(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder; its renames are journaled
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
