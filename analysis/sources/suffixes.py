"""What the suffix of a file says of its format."""

from __future__ import annotations

from pathlib import PurePath

JSON, PARQUET = (".jsonl", ".ndjson", ".json"), (".parquet", ".parq", ".pq")
BINARY = (*PARQUET, ".arrow")  # with a compression of their own
SUFFIXES = (".csv", ".tsv", *JSON, *BINARY)
PACKED = (".gz", ".bz2", ".xz", ".zst")


def split_suffix(name: str) -> tuple[str, str]:
    """The stem of a file's name and the suffix that says its format: ("reviews", ".csv") of Reviews.CSV.gz."""
    path = PurePath(name)
    inner = PurePath(path.stem)
    if path.suffix.lower() in PACKED and inner.suffix.lower() in SUFFIXES and inner.suffix.lower() not in BINARY:
        path = inner
    return path.stem, path.suffix.lower()
