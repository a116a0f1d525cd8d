"""What users give, made from bad_inputs.yaml: bytes out of a few words, folders of files, models with faults.

1. `content` turns what a row says of a file into bytes.
2. `command` is what a row gives on the command line.
3. `lay_out` writes the files of a row into a folder, over a copy of a whole model where it asks for one.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import yaml

ROWS: dict[str, list[dict[str, Any]]] = yaml.safe_load(Path(__file__).with_name("bad_inputs.yaml").read_text("utf-8"))
ROWS.pop("shared")  # the anchors


def content(spec: Any) -> bytes:
    """A string is its UTF-8; a list, its parts one after the other; a mapping, one of

    bytes: a string of which every character is one byte
    parquet, arrow: column -> values, or {raw: ...} for the bytes of one string; types: column -> Arrow type; names:
    column -> names of its classes
    zip: names of files in an archive
    of: any of these, with times (repeated), encoding, pack (gzip, bz2, xz, zst), cut (so many bytes off its end), put (byte -> what it is)
    """
    if isinstance(spec, str):
        return spec.encode()
    if isinstance(spec, list):
        return b"".join(map(content, spec))
    if "bytes" in spec:
        return spec["bytes"].encode("latin-1")
    if "parquet" in spec or "arrow" in spec:
        return _table(spec)
    if "zip" in spec:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name in spec["zip"]:
                archive.writestr(name, "x")
        return file.getvalue()
    data = content(spec["of"]) * spec.get("times", 1)
    if "encoding" in spec:
        data = data.decode().encode(spec["encoding"])
    if spec.get("gzip"):
        data = gzip.compress(data, mtime=0)
    if "pack" in spec:
        data = _pack(data, spec["pack"])
    for position, byte in spec.get("put", {}).items():
        data = data[:position] + bytes([byte]) + data[position + 1 :]
    return data[: len(data) - spec.get("cut", 0)]


def _pack(data: bytes, kind: str) -> bytes:
    import pyarrow as pa

    if kind == "zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()
    compress = {"gzip": lambda data: gzip.compress(data, mtime=0), "bz2": bz2.compress, "xz": lzma.compress}
    return compress[kind](data)


def _table(spec: dict[str, Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(name: str, values: Any) -> pa.Array:
        if isinstance(values, dict):
            raw = values["raw"].encode("latin-1")
            ends = pa.py_buffer(b"\0\0\0\0" + len(raw).to_bytes(4, "little"))
            return pa.Array.from_buffers(pa.string(), 1, [None, ends, pa.py_buffer(raw)])
        return pa.array(values, spec.get("types", {}).get(name))

    columns = spec.get("parquet") or spec["arrow"]
    table = pa.table({name: column(name, values) for name, values in columns.items()})
    if "names" in spec:
        features = {name: {"names": names, "_type": "ClassLabel"} for name, names in spec["names"].items()}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file = io.BytesIO()
    if "parquet" in spec:
        pq.write_table(table, file)
        return file.getvalue()
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def command(row: dict[str, Any]) -> list[str]:
    """The words of the row's command: `args`; or a run on `task`, by default the first of its files, and `flags`."""
    if "args" in row:
        return list(row["args"])
    task = row.get("task", "grammar:tense" if row.get("model") else f"file:{next(iter(row.get('files', 'x')))}")
    return ["run", "--task", task, *(["--model", "./m"] if row.get("model") else []), *row.get("flags", ())]


def lay_out(row: dict[str, Any], folder: Path, model: Path) -> None:
    """Write the files of a row. model: a whole one, copied to `m` where the row says so.

    files: name -> content, or one of {folder: true}, {pipe: true}, {link: target}, {json: values to set; null unsets}.
    without: names of files that are removed again.
    """
    if row.get("model"):
        shutil.copytree(model, folder / "m")
    for name, spec in row.get("files", {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(spec, dict) and "folder" in spec:
            path.unlink(missing_ok=True)
            path.mkdir()
        elif isinstance(spec, dict) and "pipe" in spec:
            os.mkfifo(path)
        elif isinstance(spec, dict) and "link" in spec:
            path.symlink_to(spec["link"])
        elif isinstance(spec, dict) and "json" in spec:
            values = json.loads(path.read_text("utf-8")) | spec["json"]
            path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}), "utf-8")
        else:
            path.write_bytes(content(spec))
    for name in row.get("without", ()):
        (folder / name).unlink()
