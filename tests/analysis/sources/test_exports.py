"""`file:`: tables as people export them hold the texts and labels that were exported, or say in one line why not.

Every case writes the same rows with a library or as another program writes them, and says how `file:` reads them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clsprobe.analysis.sources import Loaded, SourceOptions, load
from clsprobe.probes.errors import InputError

TEXTS = [
    "plain words", 'He called it "film" again', '"Quoted," she said', '"All of it, quoted"', "a, comma; a bar |", "5\"",
    "'single' quotes", "two\nlines, \"one\" quote", "NA", "null", "nan", "1,5", "  spaces  ",
    "naïve 猫 👩‍👩‍👧", '""', "back\\slash",
]  # fmt: skip
LINES = [text for text in TEXTS if "\n" not in text]  # texts on one line
LABELS = ["good", "bad"]


def labels_of(texts: list[str]) -> list[str]:
    return [LABELS[n % 2] for n in range(len(texts))]


def frame(texts: list[str] = TEXTS, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"text": texts, "label": labels_of(texts)} | columns)


def read(path: Path | str, **options: Any) -> Loaded:
    return load(f"file:{path}", SourceOptions(**options))


def write_by_hand(
    path: Path, texts: list[str], *, separator: str = "\t", end: str = "\n", quote: Callable = str
) -> None:
    rows = [("text", "label"), *zip(texts, labels_of(texts), strict=True)]
    path.write_bytes("".join(separator.join(map(quote, row)) + end for row in rows).encode())


def as_excel(cell: str) -> str:
    """A cell as Excel saves it in "Text (Tab delimited)": quoted for a comma, too."""
    return '"' + cell.replace('"', '""') + '"' if any(c in cell for c in '\t\n",') else cell


def as_r(cell: str) -> str:
    """A cell as R's write.table writes it: all strings are quoted, and quotes inside take a backslash."""
    return '"' + cell.replace('"', '\\"') + '"'


def with_csv(path: Path, texts: list[str] = TEXTS, **options: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows([("text", "label"), *zip(texts, labels_of(texts), strict=True)])


def dataset(names: list[str] | None = None) -> Any:
    import datasets

    data = datasets.Dataset.from_dict({"text": TEXTS, "label": labels_of(TEXTS)})
    return data.cast_column("label", datasets.ClassLabel(names=names)) if names else data


def with_pyarrow(path: Path, labels: Any, **options: Any) -> None:
    pq.write_table(pa.table({"text": TEXTS, "label": labels}), path, **options)


CODES = ["0", "1"] * (len(TEXTS) // 2)
# name of a case -> file, how it is written, texts, labels (None: as written), options
CASES: dict[str, tuple[str, Callable[[Path], Any], list[str], list[str] | None, dict[str, Any]]] = {
    "csv module": ("d.csv", with_csv, TEXTS, None, {}),
    "csv module, all quoted": ("d.csv", lambda p: with_csv(p, quoting=csv.QUOTE_ALL), TEXTS, None, {}),
    "csv module, tabs": ("d.tsv", lambda p: with_csv(p, delimiter="\t"), TEXTS, None, {}),
    "csv module, tabs, LF": ("d.tsv", lambda p: with_csv(p, dialect="unix", delimiter="\t"), TEXTS, None, {}),
    "csv module, tabs, strings quoted": (
        "d.tsv", lambda p: with_csv(p, delimiter="\t", quoting=csv.QUOTE_NONNUMERIC), TEXTS, None, {},
    ),
    "csv module, tabs, one line each": ("d.tsv", lambda p: with_csv(p, LINES, delimiter="\t"), LINES, None, {}),
    "csv module, tabs, plain texts": (
        "d.tsv", lambda p: with_csv(p, ["a b", "c d"], delimiter="\t", quoting=csv.QUOTE_ALL), ["a b", "c d"], None, {},
    ),
    "csv module, tabs in a .csv": (
        "d.csv", lambda p: with_csv(p, delimiter="\t"), TEXTS, None, {"sep": "tab"},
    ),
    "excel-tab dialect": ("d.tsv", lambda p: with_csv(p, dialect="excel-tab"), TEXTS, None, {}),
    "pandas": ("d.csv", lambda p: frame().to_csv(p, index=False), TEXTS, None, {}),
    "pandas, index": ("d.csv", lambda p: frame().to_csv(p), TEXTS, None, {}),
    "pandas, BOM": ("d.csv", lambda p: frame().to_csv(p, index=False, encoding="utf-8-sig"), TEXTS, None, {}),
    "pandas, semicolons": ("d.csv", lambda p: frame().to_csv(p, index=False, sep=";"), TEXTS, None, {"sep": ";"}),
    "pandas, bars": ("d.csv", lambda p: frame().to_csv(p, index=False, sep="|"), TEXTS, None, {"sep": "|"}),
    "pandas, tabs": ("d.tsv", lambda p: frame().to_csv(p, index=False, sep="\t"), TEXTS, None, {}),
    "pandas, tabs, index": ("d.tsv", lambda p: frame().to_csv(p, sep="\t"), TEXTS, None, {}),
    "pandas, tabs, CRLF": (
        "d.tsv", lambda p: frame().to_csv(p, index=False, sep="\t", lineterminator="\r\n"), TEXTS, None, {},
    ),
    "pandas, tabs, UTF-16": (
        "d.tsv", lambda p: frame().to_csv(p, index=False, sep="\t", encoding="utf-16"), TEXTS, None,
        {"encoding": "utf-16"},
    ),
    "pandas, tabs, all quoted": (
        "d.tsv", lambda p: frame().to_csv(p, index=False, sep="\t", quoting=csv.QUOTE_ALL), TEXTS, None, {},
    ),
    "pandas, booleans": (
        "d.csv", lambda p: frame(label=[True, False] * (len(TEXTS) // 2)).to_csv(p, index=False), TEXTS,
        ["True", "False"] * (len(TEXTS) // 2), {},
    ),
    "pandas, cp1252": (
        "d.csv", lambda p: frame(["é", '“a” "b"', "ß"]).to_csv(p, index=False, encoding="cp1252"),
        ["é", '“a” "b"', "ß"], None, {"encoding": "cp1252"},
    ),
    "pandas, JSON lines": ("d.jsonl", lambda p: frame().to_json(p, orient="records", lines=True), TEXTS, None, {}),
    "pandas, Parquet": ("d.parquet", lambda p: frame().to_parquet(p), TEXTS, None, {}),
    "pandas, Parquet, categories": (
        "d.parquet", lambda p: frame().astype({"label": "category"}).to_parquet(p, index=True), TEXTS, None, {},
    ),
    "pandas, Parquet, nullable integers": (
        "d.parquet", lambda p: frame(label=pd.array([0, 1] * (len(TEXTS) // 2), "Int64")).to_parquet(p), TEXTS, CODES,
        {},
    ),
    "pandas, Parquet, floats": (
        "d.parquet", lambda p: frame(label=[0.0, 1.0] * (len(TEXTS) // 2)).to_parquet(p), TEXTS, CODES, {},
    ),
    "pandas, Parquet, index of texts": (
        "d.parquet", lambda p: frame().set_index("text").to_parquet(p), TEXTS, None, {},
    ),
    "pyarrow, tabs": (
        "d.tsv",
        lambda p: pa.csv.write_csv(pa.table(frame()), p, pa.csv.WriteOptions(delimiter="\t")), TEXTS, None, {},
    ),
    "pyarrow": ("d.csv", lambda p: pa.csv.write_csv(pa.table(frame()), p), TEXTS, None, {}),
    "pyarrow, Parquet, bytes": (
        "d.parquet", lambda p: with_pyarrow(p, pa.array([label.encode() for label in labels_of(TEXTS)])), TEXTS, None,
        {},
    ),
    "pyarrow, Parquet, dictionary of integers": (
        "d.parquet", lambda p: with_pyarrow(p, pa.array(map(int, CODES), pa.int16()).dictionary_encode()), TEXTS,
        CODES, {},
    ),
    "pyarrow, Parquet, large strings, zstd": (
        "d.parquet", lambda p: with_pyarrow(p, pa.array(labels_of(TEXTS), pa.large_string()), compression="zstd"),
        TEXTS, None, {},
    ),
    "datasets, CSV": ("d.csv", lambda p: dataset().to_csv(p), TEXTS, None, {}),
    "datasets, JSON lines": ("d.jsonl", lambda p: dataset().to_json(p), TEXTS, None, {}),
    "datasets, Parquet": ("d.parquet", lambda p: dataset().to_parquet(p), TEXTS, None, {}),
    "datasets, Parquet, ClassLabel": ("d.parquet", lambda p: dataset(LABELS).to_parquet(p), TEXTS, None, {}),
    "by hand, CoLA": ("d.tsv", lambda p: write_by_hand(p, LINES), LINES, None, {}),
    "by hand, CoLA, CRLF": ("d.tsv", lambda p: write_by_hand(p, LINES, end="\r\n"), LINES, None, {}),
    "by hand, some texts in quotes": (
        "d.tsv", lambda p: write_by_hand(p, ['"Come in"', "Go, please", '"Stay, please"', "No"]),
        ['"Come in"', "Go, please", '"Stay, please"', "No"], None, {},
    ),
    "by hand, quotes over two rows": (
        "d.tsv", lambda p: write_by_hand(p, ['"I came.', "I saw.", 'I won."', "He left."]),
        ['"I came.', "I saw.", 'I won."', "He left."], None, {},
    ),
    "Excel, tabs": ("d.tsv", lambda p: write_by_hand(p, TEXTS, end="\r\n", quote=as_excel), TEXTS, None, {}),
    "Excel, tabs, commas only": (
        "d.tsv", lambda p: write_by_hand(p, ["a, b", "c", "d, e", "f"], end="\r\n", quote=as_excel),
        ["a, b", "c", "d, e", "f"], None, {},
    ),
    "R, without quotes inside": (
        "d.tsv", lambda p: write_by_hand(p, ["a, b", "c", "d"], quote=as_r), ["a, b", "c", "d"], None, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_was_exported_is_read(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    name, write, texts, labels, options = CASES[case]
    write(tmp_path / name)
    loaded = read(tmp_path / name, **options)
    assert list(loaded.tasks[0].texts) == texts
    assert loaded.tasks[0].y.tolist() == (labels or labels_of(texts))
    assert loaded.rows == len(texts)


@given(st.lists(st.text("ab\",' é\t\n", min_size=1).filter(lambda text: text.strip()), min_size=2))
def test_any_texts_that_the_csv_module_writes(texts: list[str]) -> None:
    # A text with tabs and line breaks may be cut into lines that all look like rows.
    texts = [text.replace("\t", "") or "a" if "\n" in text else text for text in texts]
    file = io.StringIO(newline="")
    csv.writer(file, delimiter="\t").writerows([("text", "label"), *zip(texts, labels_of(texts), strict=True)])
    with NamedTemporaryFile("wb", suffix=".tsv") as copy:
        copy.write(file.getvalue().encode())
        copy.flush()
        texts_read = list(read(copy.name).tasks[0].texts)
    assert texts_read == texts


@pytest.mark.parametrize(
    ("content", "message"),
    [  # what cannot be known
        ("".join(f"{as_r(t)}\t{as_r('x')}\n" for t in ["text", 'a "b" c']).replace('"x"', '"label"', 1),
         "d.tsv:2: broken quoting"),
        ('text\tlabel\n"a \\"b\\" c"\tx\n"d \\"e\\""\ty\n', "d.tsv:2: broken quoting"),
        ('text\tlabel\n"a ""b"""\tx\n"c ""d"""\ty\n"e" f\tx\n', "d.tsv:4: broken quoting"),
        ('text\tlabel\n"a ""b"""\tx\n"c\n""d"""\ty\n"e\tx\n', "d.tsv:5: a quote opens in this record and never closes"),
        ('text\tlabel\n"a\nb"\tx\n"c\nd"\ty\textra\ne\tx\n', "d.tsv:4: 3 fields, header has 2"),
    ],
)  # fmt: skip
def test_quoting_that_is_faulty_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "d.tsv").write_text(content)
    with pytest.raises(InputError) as caught:
        read(tmp_path / "d.tsv")
    assert str(caught.value).startswith(message)


def test_a_note_says_which_quoting_was_taken(tmp_path: Path) -> None:
    path = tmp_path / "d.tsv"
    with_csv(path, ['a "b" c', "d"], delimiter="\t")
    assert read(path).notes == [
        "d.tsv: the quotes around 1 cell are quoting and not read as text; --quoting none reads them as text"
    ]
    assert read(path, quoting="csv").notes == []
    assert list(read(path, quoting="none").tasks[0].texts) == ['"a ""b"" c"', "d"]
    write_by_hand(path, ['"a"', "b, c", 'd "e" f', '"g h"'])
    assert read(path).notes == [
        "d.tsv: the quotes around 2 cells are read as text; --quoting csv reads them as quoting"
    ]
    assert list(read(path, quoting="csv").tasks[0].texts) == ["a", "b, c", 'd "e" f', "g h"]
    write_by_hand(path, ['"a" b', "c"])
    assert read(path).notes == []


def test_lines_in_errors_are_physical_in_both_readings(tmp_path: Path) -> None:
    path = tmp_path / "d.tsv"
    for content, line in (('text\tlabel\n"a\n""b"""\tx\n\n\ty\n', 5), ('text\tlabel\n"a" b\tx\n\n\ty\n', 4)):
        path.write_text(content)
        with pytest.raises(InputError, match=rf"^d.tsv:{line}: text is empty"):
            read(path)


def test_one_column_may_be_quoted(tmp_path: Path) -> None:
    path = tmp_path / "d.tsv"
    path.write_text('text\n"two\nlines"\nplain\n')
    assert list(read(path, label_column=()).tasks[0].texts) == ["two\nlines", "plain"]


def test_every_file_of_a_folder_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_csv(tmp_path / "train.tsv", delimiter="\t")
    write_by_hand(tmp_path / "test.tsv", LINES[:4])
    assert list(read(tmp_path).tasks[0].texts) == [*TEXTS, *LINES[:4]]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "train.tsv").read_bytes())))
    assert list(read("-.tsv").tasks[0].texts) == TEXTS


# --------------------------------------------------------------------------------------------------------- class names


def class_info(names: Any) -> dict[str, Any]:
    return {
        "features": {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": names, "_type": "ClassLabel"}}
    }


def save_named(path: Path, labels: pa.Array, names: Any = ("bad", "good")) -> None:
    table = pa.table({"text": [f"t{n}" for n in range(len(labels))], "label": labels})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": class_info(names)})}), path)


def test_class_names_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    save_named(path, pa.array([0, 1, -1, None, 1]))
    with pytest.raises(InputError, match=r"^d.parquet:3: column 'label' is empty \(likewise row 4\)"):
        read(path)
    loaded = read(path, drop_missing_labels=True)
    assert loaded.tasks[0].y.tolist() == ["bad", "good", "good"]
    assert loaded.left_out == {"missing label": 2}
    save_named(path, pa.array([0.0, 1.0, float("nan")]))
    assert read(path, drop_missing_labels=True).tasks[0].y.tolist() == ["bad", "good"]
    save_named(path, pa.array([0, 1, 2, 1, -2]))
    with pytest.raises(InputError, match=r"^d.parquet:3: column 'label' holds '2', and its classes are 0 to 1 \(likew"):
        read(path)


@pytest.mark.parametrize("names", [None, [], [1, 2], "ab", {"a": 1}])
def test_class_names_that_are_none_are_ignored(tmp_path: Path, names: Any) -> None:
    save_named(tmp_path / "d.parquet", pa.array([0, 1]), names)
    assert read(tmp_path / "d.parquet").tasks[0].y.tolist() == ["0", "1"]
    for content in ("[" * 10_000, '{"features": [1]}', "{", "7"):
        (tmp_path / "dataset_info.json").write_text(content)
        assert read(tmp_path / "d.parquet").tasks[0].y.tolist() == ["0", "1"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_class_names_beside_a_file(tmp_path: Path, suffix: str) -> None:
    path, table = tmp_path / f"d{suffix}", pd.DataFrame({"text": ["a", "b", "c"], "label": [1, 0, -1]})
    if suffix == ".parquet":
        table.to_parquet(path)
    elif suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    (tmp_path / "dataset_info.json").write_text(json.dumps(class_info(["bad", "good"])))
    loaded = read(path, drop_missing_labels=True)
    assert loaded.tasks[0].y.tolist() == ["good", "bad"]
    assert loaded.notes == [f"d{suffix}: the class names of column 'label' are those of dataset_info.json beside it"]


# -------------------------------------------------------------------------------------------------------------- labels


def write_labels(path: Path, labels: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((f"t{n}", label) for n, label in enumerate(labels))])
    return path


MIXED = ["Pos", "pos ", "pos", "pos", "1", "1.0", "1", "True", "true", "TRUE", "true", "nan", "NA", "nan", "N/A"]


def test_labels_that_may_be_meant_otherwise_are_noted(tmp_path: Path) -> None:
    loaded = read(write_labels(tmp_path / "d.csv", MIXED))
    assert loaded.tasks[0].y.tolist() == MIXED
    assert loaded.notes == [
        "column 'label': classes that may stand for no label (rows in brackets): 'N/A' (1), 'NA' (1), 'nan' (2); "
        "--missing-labels N/A,NA,nan leaves these rows out",
        "column 'label': some classes differ only by spaces, case or the writing of a number (rows in brackets): "
        "'pos' (2), 'Pos' (1), 'pos ' (1); '1' (2), '1.0' (1); 'true' (2), 'TRUE' (1), 'True' (1); "
        "--merge-labels makes one class of each",
    ]


def test_flags_decide_what_is_meant(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "d.csv", MIXED)
    loaded = read(path, merge_labels=True, missing_labels=("N/A", "NA", "nan"))
    assert loaded.tasks[0].y.tolist() == ["pos"] * 4 + ["1"] * 3 + ["true"] * 4
    assert loaded.left_out == {"label that stands for none": 4}
    assert loaded.notes == [
        "column 'label': spellings of one class are merged into the first (rows in brackets): "
        "'pos' (2) = 'Pos' (1) = 'pos ' (1); '1' (2) = '1.0' (1); 'true' (2) = 'TRUE' (1) = 'True' (1)"
    ]


@pytest.mark.parametrize(
    "labels",
    [
        ["12345678901234567890", "12345678901234567891"],  # equal as floats
        ["1", "-1"], ["a b", "ab"], ["1e-99999999999999999999", "0"], ["inf", "1e999"], ["yes", "1"],
    ],
)  # fmt: skip
def test_other_labels_are_never_merged(tmp_path: Path, labels: list[str]) -> None:
    loaded = read(write_labels(tmp_path / "d.csv", labels), merge_labels=True, target="class")
    assert loaded.tasks[0].y.tolist() == labels
    assert loaded.notes == []


def test_an_unused_missing_label_is_noted(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "d.csv", ["a", "none", "b"])
    assert read(path, missing_labels=("None", "none")).notes == ["--missing-labels: no row has the label 'None'"]
    assert "did you mean 'none'?" in read(path, missing_labels=("nones",)).notes[0]


def test_decimal_commas(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "d.csv", ["3,5", "-1", "1,500", "2e1"])
    loaded = read(path, target="number")
    assert loaded.tasks[0].y.tolist() == [3.5, -1.0, 1.5, 20.0]
    assert loaded.notes == ["column 'label' is written with decimal commas: 3,5 is read as 3.5"]
    with pytest.raises(InputError, match=r"holds numbers with fractions \(12 distinct\)\. Pass --target number"):
        read(write_labels(path, [f"{n},5" for n in range(12)]))
    with pytest.raises(InputError, match=r"^d.csv:2: column 'label' holds '1.234,5', not a finite number"):
        read(write_labels(path, ["1.234,5", "1"]), target="number")
