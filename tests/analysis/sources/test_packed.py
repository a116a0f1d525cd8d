"""Compressed files: streams that are read again from the start, and small files that hold far too much."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clsprobe.analysis.sources import SourceOptions, load, packed
from clsprobe.probes.errors import InputError

CONTENT = b"".join(b"%d,%d\n" % (n, n * n) for n in range(15_000))


def zstandard(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACK = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "Zstandard": zstandard, "nothing": bytes}


@pytest.mark.parametrize("kind", PACK)
def test_a_stream_is_a_file_that_can_be_read_again(kind):
    file = io.BytesIO(PACK[kind](CONTENT))
    content = packed.unpack(file, "d")
    assert content.read() == CONTENT
    for position in np.random.default_rng(0).integers(0, len(CONTENT), 20).tolist():
        assert content.seek(position) == position == content.tell()
        assert content.read(99) == CONTENT[position : position + 99]
    assert not file.closed


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "Zstandard"])
def test_files_one_after_the_other_are_one(kind):
    pack = PACK[kind]
    assert packed.unpack(io.BytesIO(pack(b"one\n") + pack(b"two\n")), "d").read() == b"one\ntwo\n"


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "Zstandard"])
def test_every_cut_is_an_error(kind):
    data = PACK[kind](CONTENT[:2000])
    for length in range(12, len(data), 97):
        with pytest.raises(InputError, match=rf"^d: the {kind} file ends before its content does"):
            packed.unpack(io.BytesIO(data[:length]), "d").read()


def test_what_a_text_begins_with_is_no_compression():
    assert packed.unpack(io.BytesIO(b"BZh,label\n"), "d").read() == b"BZh,label\n"


def test_a_small_file_may_hold_some_content_and_a_large_one_more(monkeypatch):
    monkeypatch.setattr(packed, "FREE_CONTENT", 1 << 18)
    texts = b"text,label\n" + b"the very same text,x\nand once more the same,y\n" * 4_000
    with pytest.raises(
        InputError, match=r"^d: is [\d,]+ bytes and holds more than 0 MB.*unpack it with gunzip and give"
    ):
        packed.unpack(io.BytesIO(gzip.compress(texts + bytes(1 << 18))), "d").read()
    noise = np.random.default_rng(0).integers(0, 4, 1 << 19, np.uint8).tobytes()  # packs to a quarter
    assert packed.unpack(io.BytesIO(gzip.compress(noise)), "d").read() == noise


MEASURE = """
import resource, sys
import pyarrow.compute, pyarrow.parquet
from clsprobe.analysis.sources import load
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        load("file:" + path)
    except Exception as error:
        print(type(error).__name__, error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_bombs_are_one_line_in_bounded_memory(tmp_path):
    """Six gigabytes of text in a kilobyte of Parquet, by a dictionary; 0.2 in 10 kB, by zstd; 0.5 on one line."""
    text, labels = "x" * 1_000_000, pa.array(["a", "b"] * 3000)
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 6000, pa.int32()), pa.array([text]))
    pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "dictionary.parquet", compression="zstd")
    texts = pa.array([text] * 200)
    table = pa.table({"text": texts, "label": labels[:200]})
    pq.write_table(table, tmp_path / "zstd.parquet", compression="zstd", use_dictionary=False)
    with pa.CompressedOutputStream(str(tmp_path / "line.csv.zst"), "zstd") as stream:
        for _ in range(32):
            stream.write(b"x" * (1 << 24))
    names = ("dictionary.parquet", "zstd.parquet", "line.csv.zst")
    assert all((tmp_path / name).stat().st_size < 100_000 for name in names)
    command = [sys.executable, "-c", MEASURE, *(str(tmp_path / name) for name in names)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert output[0].startswith("InputError dictionary.parquet: is ")
    assert "holds more than 64 MB, which no real texts do. If it is right, read it with pandas and write" in output[0]
    assert output[1].startswith("InputError zstd.parquet: is ")
    assert output[2].startswith("InputError line.csv.zst:1: a line of more than 16,777,216 characters")
    assert int(output[3]) < 250  # megabytes


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_rows_without_a_text_count_too(suffix, value, tmp_path):
    """Millions of rows in a few kilobytes, with no text to count."""
    rows, path = 1_500_000, tmp_path / f"d{suffix}"
    table = pa.table({name: pa.repeat(pa.scalar(value, pa.string()), rows) for name in ("text", "label")})
    if suffix == ".parquet":
        pq.write_table(table, path, compression="zstd")
    else:
        with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
            stream.write_table(table)
    with pytest.raises(InputError, match=rf"^d\{suffix}: is [\d,]+ bytes and holds more than 64 MB"):
        load(f"file:{path}", SourceOptions(drop_empty=True, drop_missing_labels=True))


def test_many_short_rows_are_no_bomb(tmp_path, monkeypatch):
    """Rows of a label and one of a thousand short texts, in a file that is larger than what is free."""
    monkeypatch.setattr(packed, "FREE_CONTENT", 1 << 18)
    rows, rng = 50_000, np.random.default_rng(0)
    texts = pa.array([f"the text number {n}" for n in rng.integers(0, 1000, rows)])
    table = pa.table({"text": texts, "label": rng.choice(["neg", "pos"], rows)})
    pq.write_table(table, tmp_path / "d.parquet", compression="zstd")
    assert load(f"file:{tmp_path / 'd.parquet'}").rows == rows


def test_a_text_that_repeats_is_no_bomb(tmp_path):
    rows = 20_000
    texts = pa.DictionaryArray.from_arrays(pa.array(np.arange(rows) % 7, pa.int32()), pa.array(list("abcdefg")))
    table = pa.table({"text": texts, "label": pa.array(["x", "y"] * (rows // 2))})
    pq.write_table(table, tmp_path / "d.parquet", compression="zstd")
    task = load(f"file:{tmp_path / 'd.parquet'}").tasks[0]
    assert list(task.texts) == table["text"].to_pylist()


def test_a_text_too_long_is_named_by_its_row(tmp_path):
    table = pa.table({"text": ["a", "b", "é" * (1 << 25), "c"], "label": ["x", "y", "x", "y"]})
    pq.write_table(table, tmp_path / "d.parquet", compression="none", use_dictionary=False)
    with pytest.raises(InputError, match=r"^d\.parquet:3: a row of more than 16,777,216 characters\. No encoder reads"):
        load(f"file:{tmp_path / 'd.parquet'}")
