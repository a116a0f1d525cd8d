"""What a user may give `file:`, and the one line that answers it: bytes, options, the message expected."""

from __future__ import annotations

import gzip
import io
import os
import re
import subprocess
import sys
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.sources import Loaded, SourceOptions, load
from probes.errors import InputError


@dataclass(frozen=True)
class Case:
    name: str  # of the file
    content: bytes
    message: str  # the whole line, as a regular expression where it starts with ^
    options: dict[str, Any] = field(default_factory=dict)


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


def parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


GOOD = b"text,label\n" + b"".join(b"text %d,%s\n" % (i, b"pos" if i % 2 else b"neg") for i in range(20))
WHOLE = parquet(text=["a", "b"] * 50, label=["x", "y"] * 50)
SURROGATE = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"\xed\xa0\x80")]
)
LATIN = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xe9")])
SCORES = b"text,label\n" + b"".join(b"text %d,%.2f\n" % (i, i / 7) for i in range(40))

CASES = [
    # files
    Case("d.csv", b"", "d.csv: file is empty"),
    Case("d.csv", b"\n\n", "d.csv: file is empty"),
    Case("d.csv", b"\xef\xbb\xbf", "d.csv: file is empty"),
    Case("d.jsonl", b"\n \n", "d.jsonl: file is empty"),
    Case("d.parquet", b"", "d.parquet: file is empty"),
    Case("d.csv", b"text,label\n", "d.csv: has a header but no rows"),
    Case("d.tsv", b"text\tlabel\n\n\n", "d.tsv: has a header but no rows"),
    Case(
        "d.parquet", parquet(text=pa.array([], "str"), label=pa.array([], "str")), "d.parquet: has columns but no rows"
    ),
    Case("d.txt", GOOD, "^d.txt: unknown kind of file '.txt'. Known: .csv, .tsv, .jsonl, .parquet"),
    Case("d", GOOD, "^d: a file without a suffix. Known: .csv"),
    Case("d.csv", gzip.compress(GOOD), "d.csv: is a gzip file, whatever its name. Unpack it with gunzip."),
    Case("d.jsonl", gzip.compress(GOOD), "^d.jsonl: is a gzip file"),
    Case("d.csv", zipped("a.csv"), "^d.csv: is a zip archive"),
    Case(
        "d.csv", zipped("[Content_Types].xml", "xl/workbook.xml"), "^d.csv: is an Excel or Office file.* Save it as CSV"
    ),
    Case("d.tsv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" * 9, "^d.tsv: is an old Excel or Office file"),
    Case("d.csv", WHOLE, "^d.csv: is a Parquet file.* Rename it to .parquet"),
    Case("d.csv", b"%PDF-1.7 ...", "^d.csv: is a PDF file"),
    Case("d.csv", b"<!DOCTYPE html>\n<html>", "^d.csv: is a web page"),
    Case("d.csv", b"version https://git-lfs.github.com/spec/v1\noid", "^d.csv: is a Git LFS pointer"),
    Case("d.parquet", GOOD, "^d.parquet: not a Parquet file.*It looks like text: rename it"),
    Case("d.parquet", WHOLE[:-5], "d.parquet: not a complete Parquet file (footer missing); was the download cut?"),
    Case("d.parquet", b"PAR1", "d.parquet: not a complete Parquet file (footer missing); was the download cut?"),
    Case("d.parquet", b"PAR1" + b"\xff" * 40 + b"PAR1", "^d.parquet: damaged Parquet file"),
    # encodings
    Case(
        "d.csv",
        b"text,label\ncaf\xe9,pos\n",
        "d.csv:2: not UTF-8 (byte 0xE9). Looks like cp1252: pass --encoding cp1252 or convert the file.",
    ),
    Case("d.csv", b"text,label\r\nok,pos\r\nb\x81d,pos\r\n", "^d.csv:3: not UTF-8 .byte 0x81.. Looks like latin-1"),
    Case("d.tsv", b"text\tlabel\rok\tpos\rcaf\xe9\tpos\r", "^d.tsv:3: not UTF-8 .byte 0xE9."),
    Case("d.jsonl", b'{"text": "a", "label": "b"}\n' * 9000 + b"\xe9", "^d.jsonl:9001: not UTF-8"),
    Case(
        "d.csv",
        "text,label\né,a\n".encode() + b"\xe9x,b\n",
        "^d.csv:3: not UTF-8 .byte 0xE9.. The text before it is UTF-8",
    ),
    Case("d.csv", "text,label\na,é".encode()[:-1], "^d.csv:2: not UTF-8"),
    Case(
        "d.csv", GOOD.decode().encode("utf-16"), "^d.csv: starts with a UTF-16 byte-order mark.* Pass --encoding utf-16"
    ),
    Case("d.jsonl", GOOD.decode().encode("utf-32"), "^d.jsonl: starts with a UTF-32 byte-order mark"),
    Case("d.csv", GOOD.decode().encode("utf-16-le"), "^d.csv: looks like UTF-16 without.* Pass --encoding utf-16-le"),
    Case("d.csv", GOOD.decode().encode("utf-16-be"), "^d.csv: looks like UTF-16 without.* Pass --encoding utf-16-be"),
    Case("d.csv", GOOD, "^d.csv: not UTF-16: no byte-order mark", {"encoding": "utf-16"}),
    Case("d.csv", GOOD, "--encoding: unknown encoding 'utf-9'. Did you mean 'utf-8'?", {"encoding": "utf-9"}),
    Case("d.csv", GOOD, "^--encoding: unknown encoding 'hex'", {"encoding": "hex"}),
    Case("d.csv", GOOD, "^--encoding: unknown encoding", {"encoding": "a\0b"}),
    Case("d.csv", GOOD, "^--encoding: unknown encoding 'undefined'", {"encoding": "undefined"}),
    # columns
    Case(
        "d.csv",
        GOOD,
        "d.csv: no column 'lable'. Columns: text, label. Did you mean 'label'?",
        {"label_column": ("lable",)},
    ),
    Case("d.tsv", b"Text\tlabel\na\tb\n", "d.tsv: no column 'text'. Columns: Text, label. Did you mean 'Text'?"),
    Case(
        "d.jsonl",
        b'{"txt": "a", "label": "b"}\n',
        "^d.jsonl: no column 'text'. Columns: txt, label. Did you mean 'txt'",
    ),
    Case(
        "d.parquet",
        WHOLE,
        "^d.parquet: no column 'klass'. Columns: text, label. Name it with",
        {"label_column": ("klass",)},
    ),
    Case("d.csv", GOOD, "^d.csv: no column 'a' and no column 'b'. Columns: text", {"label_column": ("a", "b")}),
    Case("d.csv", b"text;label\na;b\n", "d.csv: one column 'text;label'. Separated by ';'? Pass --sep ';'."),
    Case("d.csv", b"text\tlabel\na\tb\n", "d.csv: one column 'text\\tlabel'. Separated by '\\t'? Pass --sep '\\t'."),
    Case("d.tsv", b"text,label\na,b\n", "^d.tsv: one column 'text,label'. Separated by ','. Rename it to .csv"),
    Case("d.csv", GOOD, "^--sep: ';;' cannot separate columns", {"sep": ";;"}),
    Case("d.csv", GOOD, "^--sep: '\"' cannot separate columns", {"sep": '"'}),
    Case("d.tsv", b"text\tlabel\n", "^--sep: d.tsv is separated by tabs", {"sep": ";"}),
    Case("d.csv", b"text,label,label\na,b,c\n", "d.csv: two columns are called 'label'. Rename one of them."),
    Case("d.jsonl", b'{"text":"a","label":"b","text":"c"}\n', "d.jsonl:1: not valid JSON (one object has a key twice)"),
    Case("d.csv", GOOD, "^--label-column: 'text' is the text column already", {"label_column": ("text",)}),
    Case("d.csv", GOOD, "^--label-column: 'label' is named twice", {"label_column": ("label", "label")}),
    Case("d.csv", GOOD, "^--split-column: 'label' is a label column already", {"split_column": "label"}),
    # rows
    Case("d.csv", b"text,label\na, b,pos\nfine,pos\n", "^d.csv:2: 3 fields, header has 2. Put quotes around"),
    Case(
        "d.csv",
        b'text,label\n"two\nlines",pos\nfine,pos\nbad\nalso,bad,pos\n',
        "d.csv:5: 1 field, header has 2 (likewise line 6)",
    ),
    Case("d.tsv", b"text\tlabel\na\tb\tc\n", "d.tsv:2: 3 fields, header has 2. A text must not hold a tab."),
    Case(
        "d.csv",
        b'text,label\nfine,pos\n"open,pos\nfine,neg\n',
        "^d.csv:3: a quote opens in this record and never closes",
    ),
    Case("d.csv", b'text,label\n"a"b,pos\n', "^d.csv:2: broken quoting .*Inside quotes, write"),
    Case(
        "d.csv",
        b"text,label\n,pos\na,neg\n  ,pos\n",
        "d.csv:2: text is empty (likewise line 4). Fill it in, or pass --drop-empty.",
    ),
    Case(
        "d.tsv",
        b"text\tlabel\n" + b"\tx\n" * 14,
        "^d.tsv:2: text is empty .likewise lines 3, 4, 5, 6, 7, 8, 9, 10, 11 and 4 more.. Fill",
    ),
    Case("d.jsonl", b'{"text": "", "label": "a"}\n', "^d.jsonl:1: text is empty"),
    Case("d.jsonl", b'{"text": null, "label": "a"}\n', "^d.jsonl:1: text is empty"),
    Case(
        "d.parquet",
        parquet(text=["a", None, " "], label=["x", "y", "y"]),
        "^d.parquet:2: text is empty .likewise row 3..",
    ),
    Case("d.csv", b"text,label\n,a\n", "^d.csv: no rows are left .1 empty text.", {"drop_empty": True}),
    Case(
        "d.jsonl",
        b'{"text": "a", "label": "b"}\n{"text": "a", "label": }\n',
        "d.jsonl:2: not valid JSON (expected a value at column 24)",
    ),
    Case(
        "d.jsonl", b"text,label\na,b\n", "^d.jsonl:1: not valid JSON .expected a value at column 1. .likewise line 2."
    ),
    Case("d.jsonl", b"[" * 100_000, "^d.jsonl:1: an array, not one object per line"),
    Case("d.jsonl", b'{"a":' * 100_000, "^d.jsonl:1: not valid JSON .nested too deep."),
    Case("d.jsonl", b'[{"text": "a", "label": "b"}]\n', "^d.jsonl:1: an array, not one object per line. Try jq"),
    Case("d.jsonl", b'"text"\n', "^d.jsonl:1: not a JSON object"),
    Case("d.jsonl", b'{"text": ["a"], "label": "b"}\n', "^d.jsonl:1: column 'text' holds a list, not a string"),
    Case("d.jsonl", b'{"text": 5, "label": "b"}\n', "^d.jsonl:1: column 'text' holds a number, not a string"),
    Case("d.jsonl", b'{"text": "a", "label": {"b": 1}}\n', "^d.jsonl:1: column 'label' holds an object, not one value"),
    Case(
        "d.jsonl",
        b'{"text": "a\\ud800", "label": "b"}\n',
        "d.jsonl:1: text has an unpaired surrogate (U+D800) at character 2. Remove it or pass --replace-invalid.",
    ),
    Case(
        "d.jsonl",
        b'{"text": "a", "label": "\\udc00"}\n',
        "^d.jsonl:1: column 'label' has an unpaired surrogate .U.DC00.",
    ),
    Case("d.parquet", parquet(text=SURROGATE, label=["x"]), "^d.parquet:1: text has an unpaired surrogate .U.D800."),
    Case("d.parquet", parquet(text=LATIN, label=["x"]), "^d.parquet:1: column 'text' is not UTF-8 .byte 0xE9."),
    Case("d.parquet", parquet(text=[1, 2], label=["x", "y"]), "^d.parquet: column 'text' holds 'int64', not text"),
    Case("d.parquet", parquet(text=["a"], label=[["x"]]), "^d.parquet: column 'label' holds 'list<.*not one value"),
    # labels and sides
    Case(
        "reviews.csv",
        b"text,label\na,b\nb,\n",
        "reviews.csv:3: column 'label' is empty. Fill it in, or pass --drop-missing-labels.",
    ),
    Case(
        "d.jsonl", b'{"text": "a", "label": "b"}\n{"text": "b", "label": NaN}\n', "^d.jsonl:2: column 'label' is empty"
    ),
    Case("d.parquet", parquet(text=["a", "b"], label=[0.0, None]), "^d.parquet:2: column 'label' is empty"),
    Case(
        "d.csv",
        b"text,label\n" + b"a,pos\n" * 812,
        "d.csv: column 'label' has one class ('pos', 812 rows); a probe needs two",
    ),
    Case("d.csv", SCORES, "^d.csv: column 'label' holds numbers with fractions .40 distinct.. Pass --target number"),
    Case(
        "d.csv",
        b"text,label\na,1.5\nb,x\n",
        "^d.csv:3: column 'label' holds 'x', not a finite number",
        {"target": "number"},
    ),
    Case(
        "d.csv",
        b"text,label\na,1_0\nb,nan\n",
        "^d.csv:2: column 'label' holds '1_0'.*likewise line 3",
        {"target": "number"},
    ),
    Case("d.csv", b"text,label\na," + b"x" * 2000 + b"\n", "^d.csv:2: column 'label' holds 2,000 characters"),
    Case(
        "d.csv",
        b"text,label,s\na,b,train\nc,d,tset\n",
        "^d.csv:3: column 's' holds 'tset', no side.*Did you mean test",
        {"split_column": "s"},
    ),
    Case("d.csv", b"text,label,s\na,b,train\nc,d,train\n", "^d.csv: no test rows in column 's'", {"split_column": "s"}),
    Case("d.csv", b"text,label,s\na,b,dev\nc,d,test\n", "^d.csv: no train rows in column 's'", {"split_column": "s"}),
    Case("d.csv", b"text,label,g\na,b,\nc,d,1\n", "^d.csv:2: column 'g' is empty", {"group_column": "g"}),
    Case(
        "d.csv",
        b"text,label,s\na,b,train\nc,d,train\ne,new,test\n",
        "^d.csv:4: label 'new' of column 'label' is not in the train rows .lines 4.",
        {"split_column": "s"},
    ),
    Case(
        "d.csv",
        b"text,label,b\na,,x\nb,y,\nc,,z\n",
        "^d.csv:2: column 'label' is empty .likewise line 4.. Fill",
        {"label_column": ("label", "b")},
    ),
    Case(
        "d.csv",
        b'text,label,s\na,x,train\n"b\nb",y,train\n\nc,z,test\nd,x,test\n"e\n",z,test\nf,z,dev\n',
        "^d.csv:6: label 'z' of column 'label' is not in the train rows .lines 6, 8, 10.",
        {"split_column": "s"},
    ),
    Case("d\n\x1b[31m.csv", b"", "^d\\\\n\\\\x1b\\[31m.csv: file is empty"),
]


def error(path: Path | str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(f"file:{path}", SourceOptions(**options))
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    return message


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.message[:60])
def test_message(case: Case, tmp_path: Path) -> None:
    (tmp_path / case.name).write_bytes(case.content)
    message = error(tmp_path / case.name, **case.options)
    if case.message.startswith("^"):
        assert re.search(case.message, message)
    else:
        assert message == case.message
    assert sorted(p.name for p in tmp_path.iterdir()) == [case.name]  # nothing else was written


# ------------------------------------------------------------------------------------------------------------- no files


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(GOOD)
    assert error(tmp_path / "dta.csv").endswith("dta.csv: no such file or folder. Did you mean data.csv?")
    assert error(tmp_path / "no" / "data.csv").endswith(f"data.csv: no such folder {tmp_path / 'no'}")
    (tmp_path / "link.csv").symlink_to("gone.csv")
    assert error(tmp_path / "link.csv").endswith("is a link to gone.csv, which does not exist. Mend the link.")
    assert error("").startswith("--task: no path after 'file:'")
    assert "cannot be read" in error("a\0b.csv")
    assert "cannot be read (file name too long)" in error("x" * 5000 + ".csv")
    assert "cannot be read" in error("~nobody-of-this-name/x.csv")
    assert error(tmp_path / "data.csv" / "x.csv").endswith("cannot be read (not a directory)")


def test_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    assert error(tmp_path / "pipe.csv") == "pipe.csv: not a regular file. Save the rows to a file first."
    os.mkfifo(tmp_path / "train.csv")
    (tmp_path / "test.csv").write_bytes(GOOD)
    assert error(tmp_path).startswith("train.csv: not a regular file")
    (tmp_path / "folder.csv").mkdir()
    assert "the folder has no train file. It holds no .csv" in error(tmp_path / "folder.csv")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:  # root may read everything
        raise PermissionError(13, "Permission denied")

    (tmp_path / "d.csv").write_bytes(GOOD)
    monkeypatch.setattr(Path, "open", refuse)
    assert error(tmp_path / "d.csv") == "d.csv: cannot be read (permission denied)"


@pytest.mark.parametrize("content", [GOOD, b"text,label\nbroken\n"], ids=["good", "half-written"])
def test_file_changes_while_being_read(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    from analysis.sources import tables

    def slow(source: tables.Source) -> Any:
        yield from csv(source)
        with path.open("ab") as file:
            file.write(b"one more,pos\n")

    path = tmp_path / "d.csv"
    path.write_bytes(content)
    csv = tables.READERS[".csv"]
    monkeypatch.setitem(tables.READERS, ".csv", slow)
    assert error(path).startswith("d.csv: changed while being read")


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(GOOD)
    assert error(tmp_path).endswith(
        "has no test file. It holds train.csv. Name its files train, dev and test, or give one file."
    )
    (tmp_path / "test.csv").write_bytes(GOOD + b"x,new\ny,new\n")
    assert error(tmp_path) == (
        "test.csv:22: label 'new' of column 'label' is not in train.csv (lines 22, 23). "
        "Remove these rows, or add such rows to train."
    )
    assert error(tmp_path, split_column="s").startswith("--split-column: ")
    (tmp_path / "Train.tsv").write_bytes(GOOD)
    assert "are both train files" in error(tmp_path)
    (tmp_path / "Train.tsv").unlink()
    (tmp_path / "test.csv").write_bytes(b"text,lable\na,b\n")
    assert error(tmp_path) == "test.csv: no column 'label'. Columns: text, lable. Did you mean 'lable'?"
    (tmp_path / "train.csv").write_bytes(b"text,label\na,x\nb,x\n")
    (tmp_path / "test.csv").write_bytes(GOOD)
    assert error(tmp_path).startswith("train.csv: column 'label' has one class ('x', 2 rows)")


# -------------------------------------------------------------------------------------------------------- whatever else


def survives(path: Path, content: bytes, **options: Any) -> None:
    path.write_bytes(content)
    loaded = Loaded([], 0)
    with suppress(InputError):
        loaded = load(f"file:{path}", SourceOptions(**options))
    for task in loaded.tasks:
        assert len(list(task.texts)) == len(task.y)
        assert all(text.strip() for text in task.texts)


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PIECES = [
    b"text",
    b"label",
    b",",
    b"\t",
    b"\n",
    b"\r",
    b'"',
    b"\0",
    b"\xff",
    b"\xe9",
    b"\xef\xbb\xbf",
    b"1.5",
    b"a",
    b" ",
]
JSON_PIECES = [*PIECES, b'{"text":', b'"label":', b"}", b"[", b"null", b"NaN", b"1e999", b'"\\ud800"', b"true", b"{"]


@FUZZ
@given(st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)), st.booleans())
@pytest.mark.parametrize(("name", "start"), [("d.csv", b"text,label\n"), ("d.tsv", b"text\tlabel\n")])
def test_any_bytes_as_lines(tmp_path: Path, name: str, start: bytes, content: bytes, header: bool) -> None:
    survives(tmp_path / name, start * header + content)


@FUZZ
@given(
    st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(JSON_PIECES), max_size=40).map(b"".join)), st.booleans()
)
def test_any_bytes_as_jsonl(tmp_path: Path, content: bytes, replace: bool) -> None:
    survives(tmp_path / "d.jsonl", content, replace_invalid=replace, drop_empty=replace)


@FUZZ
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4), st.integers(0, 3))
def test_any_bytes_as_parquet(tmp_path: Path, flips: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(WHOLE)
    for place, byte in flips:
        content[place] = byte
    survives(tmp_path / "d.parquet", bytes(content[: len(content) - 7 * cut]))


@FUZZ
@given(
    st.sampled_from(["utf-7", "utf-16", "gb18030", "shift_jis", "iso2022_jp", "cp037", "hz"]), st.binary(max_size=200)
)
def test_any_bytes_in_any_encoding(tmp_path: Path, encoding: str, content: bytes) -> None:
    survives(tmp_path / "d.csv", "text,label\n".encode(encoding) + content, encoding=encoding)


def test_errors_are_quick_and_light(tmp_path: Path) -> None:
    """An error about a small file loads no torch, no pandas, no scikit-learn, and not even pyarrow."""
    (tmp_path / "d.csv").write_bytes(b"text,label\na\n")
    code = (
        "import sys; from analysis.sources import load, SourceOptions\n"
        f"try: load('file:{tmp_path / 'd.csv'}', SourceOptions())\n"
        "except Exception as e: print(type(e).__name__, {'torch', 'pandas', 'sklearn', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout == "InputError set()\n", done.stderr
