"""`file:-`: rows from standard input are rows like any others, and a run knows them by their content."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import call
from hypothesis import given
from hypothesis import strategies as st

from clsprobe.analysis.sources import Loaded, SourceOptions, load
from clsprobe.probes.errors import InputError
from clsprobe.probes.files import spool_stream

TEXTS = [f"the house number {i} is {'big' if i % 2 else 'small'}" for i in range(60)]
LABELS = [str(i % 2) for i in range(60)]
CSV = ("text,label\n" + "\n".join(map(",".join, zip(TEXTS, LABELS, strict=True)))).encode()


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS, "label": LABELS}), file)
    return file.getvalue()


CONTENTS = {
    "": CSV,
    ".csv": b"\xef\xbb\xbf" + CSV.replace(b"\n", b"\r\n"),
    ".tsv": CSV.replace(b",", b"\t"),
    ".jsonl": "\n".join(json.dumps({"text": a, "label": b}) for a, b in zip(TEXTS, LABELS, strict=True)).encode(),
    ".json": json.dumps([{"text": a, "label": b} for a, b in zip(TEXTS, LABELS, strict=True)]).encode(),
    ".parquet": parquet(),
}
CONTENTS[".ndjson"] = gzip.compress(CONTENTS[".jsonl"])


@pytest.fixture
def given_stdin(monkeypatch):
    """A function that makes bytes the standard input, which ends as a pipe does: for good."""

    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def read(suffix: str = "", **options: Any) -> Loaded:
    return load(f"file:-{suffix}", SourceOptions(**options))


@pytest.mark.parametrize("suffix", CONTENTS)
def test_rows_of_every_kind(given_stdin, tmp_path, suffix):
    path = tmp_path / f"d{suffix or '.csv'}"
    path.write_bytes(CONTENTS[suffix])
    given_stdin(CONTENTS[suffix])
    (piped,), (filed,) = read(suffix).tasks, load(f"file:{path}", SourceOptions()).tasks
    assert piped.name == "file:stdin:label"
    assert list(piped.texts) == list(filed.texts) == TEXTS
    assert piped.y.tolist() == filed.y.tolist()


def test_the_digest_is_that_of_the_content(given_stdin):
    digests = []
    for content in (CSV, CSV.replace(b"\n", b"\r\n"), CSV + b"\nthe end,1\n"):
        given_stdin(content)
        digests.append(read().digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("suffix", "content", "words"),
    [
        (
            "",
            b"",
            "<stdin>: is empty, or was read by a task before this one. Pipe rows into the command, as in cat rev",
        ),
        ("", b"text,label\n", "<stdin>: has a header but no rows"),
        ("", CSV + b"\na,b,c\n", "<stdin>:62: 3 fields, header has 2. Put quotes around"),
        ("", CSV + b"\n,1\n", "<stdin>:62: text is empty. Fill it in, or pass --drop-empty."),
        ("", CSV + b"\n\xe9,1\n", "<stdin>:62: not UTF-8 (byte 0xE9). Looks like cp1252: pass --encoding cp1252"),
        ("", b"txt,label\na,b\n", "<stdin>: no column 'text'. Columns: txt, label. Did you mean 'txt'?"),
        ("", CONTENTS[".jsonl"], "<stdin>: looks like .jsonl, and is read as .csv. Say so: --task file:-.jsonl."),
        (".tsv", CONTENTS[".parquet"], "<stdin>: looks like .parquet, and is read as .tsv. Say so: --task file:-.parq"),
        (
            "",
            gzip.compress(CSV)[:-9],
            "<stdin>: the gzip file ends before its content does. Was the download or the co",
        ),
        (".jsonl", CONTENTS[".jsonl"] + b"\n{", "<stdin>:61: the file ends in the middle of a record. Was the downlo"),
        (".json", CONTENTS[".json"][:-1], "<stdin>:1: the file ends in the middle of a record. Was the download or th"),
        (".parquet", CONTENTS[".parquet"][:99], "<stdin>: not a complete Parquet file (footer missing)"),
    ],
)
def test_broken_input(given_stdin, suffix, content, words):
    given_stdin(content)
    with pytest.raises(InputError) as caught:
        read(suffix)
    assert str(caught.value).startswith(words)


def test_a_suffix_that_is_none(given_stdin):
    given_stdin(CSV)
    with pytest.raises(InputError, match=r"no such file or folder"):
        read(".xml")


@pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")
@pytest.mark.parametrize("way", ["a terminal", "closed"])
def test_nobody_waits_for_a_terminal(way):
    import pty

    command = [sys.executable, "-m", "clsprobe", "run", "--task", "file:-", "--dry-run"]
    mine, theirs = pty.openpty()
    if way == "closed":
        command = ["bash", "-c", 'exec "$0" "$@" <&-', *command]
    try:
        done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=120, check=False)
    finally:
        os.close(mine)
        os.close(theirs)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: <stdin>: is {way}")
    assert done.stderr.count("\n") == 1


def test_a_pipe(tmp_path):
    """What the process is told is that of its pipe, also where that comes slowly and in small parts."""
    command = [sys.executable, "-m", "clsprobe", "run", "--task", "file:-", "--dry-run"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdin is not None
    for start in range(0, len(CSV), 700):
        process.stdin.write(CSV[start : start + 700])
        process.stdin.flush()
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.startswith(b"file:stdin:label: 60 texts, 2 classes")
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_resumed_for_the_same_rows_only(given_stdin):
    from clsprobe.run import Run

    digests = {}
    for name, content in (("same", CSV), ("again", CSV), ("other", CSV.replace(b"big", b"tall"))):
        given_stdin(content)
        digests[name] = Run(task="file:-").contents()["file:-"]
    assert digests["same"] == digests["again"] != digests["other"]


def test_a_configuration_may_name_it(given_stdin, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("task: file:-\nlayers: 0,6\n")
    given_stdin(CSV)
    assert call("run", "--config", tmp_path / "run.yaml", "--dry-run") == 0
    assert "file:stdin:label: 60 texts" in capsys.readouterr().out


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_what_is_spooled_comes_back(chunks):
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(7, size or 7))

    whole = b"".join(chunks)
    with spool_stream(Slow(whole)) as file:
        assert file.read() == whole
        file.seek(0)
        assert file.read() == whole


def test_a_stream_that_breaks_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spool_stream(Broken())
    assert list(Path(tmp_path).iterdir()) == []
