"""Tasks in memory: what the same rows become through `file:`, bit for bit, and that whatever is wrong is named."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clsprobe.analysis.sources import Loaded, SourceOptions, load
from clsprobe.probes.errors import InputError
from clsprobe.probes.tasks.split import split
from clsprobe.probes.tasks.task import Task

TEXTS = [f"{thing} {deed}" for thing in ("the cat", "a dog", "the bird") for deed in ("runs", "sleeps", "sees a tree")]
LABELS = list("ab") * 4 + ["a"]
SIDES = ["train"] * 4 + ["validation"] * 2 + ["test"] * 3


def write(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    """Values as they are: no library in between that may change them."""
    rows = list(zip(*columns.values(), strict=True))
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerows([columns, *(["" if cell is None else cell for cell in row] for row in rows)])
        else:
            file.writelines(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
    return path


def assert_same(task: Task, loaded: Loaded) -> None:
    """The task holds the bits of the one that was loaded, and as many rows were left out of it for the same reasons."""
    (expected,) = loaded.tasks
    assert list(task.texts) == list(expected.texts)
    assert task.kind == expected.kind
    for array, other in ((task.y, expected.y), (task.split, expected.split), (task.groups, expected.groups)):
        if array is None or other is None:
            assert array is other
        else:
            assert (array.dtype, array.tolist()) == (other.dtype, other.tolist())
    counted = Loaded.of_task(task)
    assert (counted.rows, counted.left_out) == (loaded.rows, loaded.left_out)
    assert len(counted.notes) == len(loaded.notes)
    renamed = replace(counted, tasks=[replace(task, name=expected.name)], notes=loaded.notes)
    assert renamed.digest == loaded.digest


def error(make: Callable[[], Task]) -> str:
    with pytest.raises(InputError) as caught:
        make()
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------- the same as file:

ODD = [
    ("NA", "01"),
    ("null", "1"),
    ("None", "1.0"),
    ("nan", "01"),
    ("N/A", "1"),
    ('"Quoted" from the start', "1.0"),
    ("a, comma; a semicolon | a bar", "01"),
    ("emoji 👩‍👩‍👧 and \u202ertl\u202c עברית", "1"),
    (" spaces around ", "null"),
    ("=cmd()", "null "),
    ("two\nlines", "ends in NUL\0"),
    ("<script>", "ends in NUL\0"),
]
ODD_TEXTS, ODD_LABELS = [list(column) for column in zip(*ODD, strict=True)]
# columns, options of the command line, and how they are written in Python: for lists, and for tables
CASES: dict[str, tuple[dict[str, list[Any]], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "odd": ({"text": ODD_TEXTS, "label": ODD_LABELS}, {}, {}, {}),
    "merged": (
        {"text": ODD_TEXTS, "label": ODD_LABELS},
        *[{"merge_labels": True, "missing_labels": ("null", "x")}] * 3,
    ),
    "gaps": (
        {"text": ["a", None, "", "b", "c", "d"], "label": ["x", "x", "y", None, " ", "y"]},
        *[{"drop_empty": True, "drop_missing_labels": True}] * 3,
    ),
    "sides and groups": (
        {"text": TEXTS, "label": LABELS, "part": SIDES, "thing": [text[:5] for text in TEXTS]},
        {"split_column": "part", "group_column": "thing"},
        {"split": "part", "groups": "thing"},
        {"split": "part", "groups": "thing"},
    ),
    "no test": (
        {"text": TEXTS, "label": LABELS, "part": [side.replace("test", "VALID") for side in SIDES]},
        *[{"split_column": "part"}, {"split": "part"}, {"split": "part"}],
    ),
    "pairs": (
        {"premise": TEXTS, "hypothesis": TEXTS[::-1], "label": LABELS},
        {"text_column": "premise,hypothesis", "group_column": "premise"},
        {"groups": "premise"},
        {"text": "premise, hypothesis", "groups": "premise"},
    ),
    "numbers as they are written": (
        {"text": TEXTS, "label": ["0.25", "-3", "1e2", "7", " 8", "9.50", "0", "1e-300", ".5"]},
        *[{"target": "number"}] * 3,
    ),
    "decimal commas": (
        {"text": TEXTS[:3], "label": ["0,25", "-3", "1,5"]},
        *[{"target": "number"}] * 3,
    ),
}


def from_lists(columns: Mapping[str, Sequence[Any]], **arguments: Any) -> Task:
    texts = columns["text"] if "text" in columns else [*zip(columns["premise"], columns["hypothesis"], strict=True)]
    for name in ("split", "groups"):
        if name in arguments:
            arguments[name] = columns[arguments[name]]
    return Task.from_lists(texts, columns["label"], **arguments)


@pytest.mark.parametrize("case", CASES)
def test_every_way_in_gives_the_task_of_a_file(case: str, tmp_path: Path) -> None:
    columns, options, of_lists, of_tables = CASES[case]
    suffix = ".jsonl" if case == "odd" else ".csv" if case == "gaps" else ".parquet"
    loaded = load(f"file:{write(tmp_path / f'd{suffix}', columns)}", SourceOptions(**options))
    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    shuffled = frame.set_index(pd.Index(range(len(frame), 0, -1)))  # by position, never by index
    texts = pd.ArrowDtype(pa.string())
    assert_same(from_lists(columns, **of_lists), loaded)
    if case != "pairs":  # whose groups are one of its texts
        assert_same(from_lists({name: iter(values) for name, values in columns.items()}, **of_lists), loaded)
    arrays = {name: np.array(values, object) for name, values in columns.items()}
    assert_same(from_lists(arrays, **of_lists), loaded)
    assert_same(from_lists(shuffled, **of_lists), loaded)  # columns of a frame are lists too
    for table in (frame, shuffled, frame.astype("string"), frame.astype(texts), frame.astype("category")):
        assert_same(Task.from_frame(table, **of_tables), loaded)
    assert_same(Task.from_dataset(datasets.Dataset.from_dict(columns), **of_tables), loaded)


def test_a_split_of_both_is_one() -> None:
    rows = [(f"{text} {word}", label) for word in ("red", "blue", "green", "old", "new") for text, label in
            zip(TEXTS, LABELS, strict=True)]  # fmt: skip
    texts, labels = zip(*rows, strict=True)
    task = Task.from_lists(texts, labels)
    again = Task.from_frame(pd.DataFrame({"text": texts, "label": labels}))
    assert split(task, seed=3).side.tolist() == split(again, seed=3).side.tolist()
    assert task.name == "memory:data:label"
    assert Task.from_lists(texts, labels, name="mine").name == "memory:mine:label"
    assert Task.from_frame(pd.DataFrame({"t": texts, "b,c": labels}), "t", "b,c").name == "memory:data:b,c"


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\ufdd0\r"), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(WORDS, WORDS), min_size=2, max_size=8))
def test_any_strings_are_those_of_a_file(rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    texts, labels = [list(column) for column in zip(*rows, strict=True)]
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    flags = {"drop_empty": True, "drop_missing_labels": True, "target": "class"}
    try:
        expected = load(f"file:{write(path, {'text': texts, 'label': labels})}", SourceOptions(**flags))
    except InputError:
        error(lambda: Task.from_lists(texts, labels, **flags))
        return
    assert_same(Task.from_lists(texts, labels, **flags), expected)
    assert_same(Task.from_frame(pd.DataFrame({"text": texts, "label": labels}), **flags), expected)


# ------------------------------------------------------------------------------------------------------------- values


class Colour(Enum):
    RED = "red"
    BLUE = 2


class Name(str):
    def __str__(self) -> str:
        return "something else"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([True, False], ["true", "false"]),
        ([0, 1], ["0", "1"]),
        ([10**30, -1], ["1" + "0" * 30, "-1"]),
        ([1, 1.5], ["1", "1.5"]),
        ([0.5, 1e22], ["0.5", "1e+22"]),
        ([0.1, float("inf")], ["0.1", "inf"]),
        (np.array([0, 1], np.uint8), ["0", "1"]),
        (np.array([True, False]), ["true", "false"]),
        (np.array(["b", "a"]), ["b", "a"]),
        (np.array([b"b", b"a"]), ["b", "a"]),
        ([np.str_("b"), np.int64(3)], ["b", "3"]),
        (np.array([0.1, 0.5], np.float32), ["0.10000000149011612", "0.5"]),
        ((value for value in "ba"), ["b", "a"]),
        ({"b": 0, "a": 1}.keys(), ["b", "a"]),
        ({0: "b", 1: "a"}.values(), ["b", "a"]),
        (range(2), ["0", "1"]),
        (pd.Series([3, 1], index=[1, 0]), ["3", "1"]),
        (pd.Categorical(["b", "a"]), ["b", "a"]),
        (pd.Series([2, 1], dtype="category"), ["2", "1"]),
        (pd.Series([1, 0], dtype="Int64"), ["1", "0"]),
        (pd.Series([1, 0], dtype="int8[pyarrow]"), ["1", "0"]),
        (pd.Series([True, False], dtype="boolean"), ["true", "false"]),
        (torch.tensor([1, 0]), ["1", "0"]),
        ([torch.tensor(1), torch.tensor(0)], ["1", "0"]),
        (pa.array(["b", "a"]), ["b", "a"]),
        (datasets.Dataset.from_dict({"x": ["b", "a"]})["x"], ["b", "a"]),
        ([Colour.RED, Colour.BLUE], ["red", "2"]),
        ([Name("b"), "a"], ["b", "a"]),
        ([Decimal("1.50"), date(2020, 1, 2)], ["1.50", "2020-01-02"]),
        ([pd.Timestamp("2020-01-02"), "a"], ["2020-01-02 00:00:00", "a"]),
    ],
)  # fmt: skip
def test_values_become_labels_as_a_file_would_write_them(values: Any, expected: list[str]) -> None:
    task = Task.from_lists(["s", "t"], values, target="class")
    assert task.y.tolist() == expected
    assert not task.notes


@pytest.mark.parametrize("missing", [None, float("nan"), np.nan, pd.NA, pd.NaT, "", " ", np.float32("nan")])
def test_what_is_missing_is_counted(missing: Any) -> None:
    labels = ["a", missing, "b", "a"]
    assert error(lambda: Task.from_lists(list("stuv"), labels)) == (
        "data row 1: label is empty. Fill it in, or pass drop_missing_labels=True."
    )
    task = Task.from_lists(list("stuv"), labels, drop_missing_labels=True)
    assert (list(task.texts), task.y.tolist(), task.left_out) == (list("suv"), ["a", "b", "a"], {"missing label": 1})
    assert error(lambda: Task.from_lists(["s", missing], "ab"[:0] or ["a", "b"])) == (
        "data row 1: text is empty. Fill it in, or pass drop_empty=True."
    )


@pytest.mark.parametrize("labels", [[0.0, 1.0, None, 1.0], pd.Series([0, 1, None, 1]), np.array([0, 1, np.nan, 1])])
def test_whole_floats_are_classes_with_a_note(labels: Any, tmp_path: Path) -> None:
    """Numbers of classes become floats where one is missing: as in Parquet."""
    columns = {"text": list("stuv"), "label": [0.0, 1.0, None, 1.0]}
    loaded = load(f"file:{write(tmp_path / 'd.parquet', columns)}", SourceOptions(drop_missing_labels=True))
    task = Task.from_lists(list("stuv"), labels, drop_missing_labels=True)
    assert_same(task, loaded)
    assert task.y.tolist() == ["0", "1", "1"]
    assert task.notes == ("data: label holds whole numbers as floats; its classes are written without .0",)
    assert Task.from_lists(list("stuv"), [0.0, 1.0, 2.0, 0.5], target="class").y.tolist() == [
        "0.0",
        "1.0",
        "2.0",
        "0.5",
    ]


def test_numbers_keep_every_bit(tmp_path: Path) -> None:
    numbers = [0.1, 1e-300, 2 / 3, 5e-324, 1.7976931348623157e308, -0.0, 3, 2**53 + 1]
    task = Task.from_lists(map(str, range(8)), numbers, target="number")
    assert task.y.tobytes() == np.array(numbers, np.float64).tobytes()
    path = write(tmp_path / "d.parquet", {"text": list("01234567"), "label": list(map(float, numbers))})
    assert_same(task, load(f"file:{path}", SourceOptions(target="number")))


# ---------------------------------------------------------------------------------------------------- what is refused

LONG = "x" * 1001


@pytest.mark.parametrize(
    ("texts", "labels", "arguments", "message"),
    [
        ("a text", ["a"], {}, "texts: is one string, not a list. Pass a list with one value per text."),
        (TEXTS, "abababab", {}, "labels: is one string, not a list."),
        (None, ["a"], {}, "texts: is None, not a list."),
        (TEXTS, 7, {}, "labels: is int, not a list."),
        ({"a": 1}, ["a"], {}, "texts: is dict, not a list."),
        ({"a", "b"}, ["a", "b"], {}, "texts: is set, not a list."),
        (TEXTS, np.array(3), {}, "labels: is ndarray, not a list."),
        (TEXTS, ["a"], {}, "labels: has 1 values, texts has 9. Give one for every text, in their order."),
        (TEXTS, LABELS, {"split": ["train"]}, "split: has 1 values, texts has 9."),
        (TEXTS, LABELS, {"groups": [1, 2]}, "groups: has 2 values, texts has 9."),
        ([], [], {}, "data: has no rows."),
        (pd.DataFrame({"text": TEXTS}), LABELS, {}, "texts: is a table (DataFrame), not a list. Use Task.from_frame("),
        (TEXTS, pd.DataFrame({"x": LABELS}), {}, "labels: is a table (DataFrame), not a list."),
        (datasets.Dataset.from_dict({"x": TEXTS}), LABELS, {}, "texts: is a table (Dataset), not a list. Use Task.fro"),
        ([1, "b", 2.0], ["a", "b", "a"], {}, "data row 0: text holds a number, not a string (likewise row 2). Leave s"),
        ([["a", "b", "c"], ["d"]], ["a", "b"], {}, "data row 0: texts holds a list of 3, not a pair as in other rows"),
        ([("a", "b"), "c"], ["a", "b"], {}, "data row 1: texts holds str, not a pair as in other rows"),
        ([("a", "b"), ("c", 3)], ["a", "b"], {}, "data row 1: second text holds a number, not a string"),
        ([("a", ""), ("c", "d")], ["a", "b"], {}, "data row 0: second text is empty. Fill it in, or pass drop_empty=T"),
        ([b"\xff", "b"], ["a", "b"], {}, "data row 0: text holds bytes that are not UTF-8. Decode them first, as in"),
        (TEXTS, np.eye(9), {}, "data row 0: label holds a list, not one value (likewise rows 1, 2, 3, 4, 5, 6, 7, 8)."),
        (["a", "b"], [{"x": 1}, "b"], {}, "data row 0: label holds a dictionary, not one value. Make strings of them"),
        (["a", "b"], [object(), "b"], {}, "data row 0: label holds a value of type object, not a string or a number."),
        (["a", "b"], np.array(["2020", "2021"], "M8[ns]"), {}, "data row 0: label holds a value of type datetime64"),
        (["a", "b"], [LONG, "b"], {}, "data row 0: label holds 1,001 characters, more than a label has. Pass labels,"),
        (["a\ud800", "b"], ["a", "b"], {}, "data row 0: text has an unpaired surrogate (U+D800) at character 2. "
         "Remove it or pass replace_invalid=True."),
        (["a\ufdd0", "b"], ["a", "b"], {}, "data row 0: text has U+FDD0, which is no character, at character 2. "
         "Remove it or pass replace_invalid=True."),
        (TEXTS, ["a"] * 9, {}, "data: label has one class ('a', 9 rows); a probe needs two"),
        (TEXTS, [x / 7 for x in range(9)], {}, "data: label holds numbers with fractions (9 distinct). Pass target="
         "'number', or target='class' to make each a class."),
        (["a", "b"], [1, "one"], {"target": "number"}, "data row 1: label holds 'one', not a finite number. Mend "
         "it, or leave target='number' out to predict classes."),
        (["a", "b"], [1, "nan"], {"target": "number"}, "data row 1: label holds 'nan', not a finite number. Pass "
         "missing_labels=('nan',) to leave rows with it out."),
        (["a", "b"], [1, float("inf")], {"target": "number"}, "data row 1: label holds 'inf', not a finite number."),
        (["a", "b"], ["1,000", "2"], {"target": "number"}, "data row 0: label holds '1,000', which may be 1.000 or 10"),
        (TEXTS, LABELS, {"split": [*SIDES[:-1], "tset"]}, "data row 8: split holds 'tset', no side of a split. Did you "
         "mean test? Known: train, dev, test."),
        (TEXTS, LABELS, {"split": ["train"] * 9}, "data: no test rows in split. A split has at least train and test."),
        (TEXTS, ["c", *LABELS[1:]], {"split": SIDES[::-1]}, "data row 0: label 'c' is not in the train rows (row "
         "0). Pass min_class=1 to leave such rows out, or add such rows to train."),
        (TEXTS, [*LABELS[:-1], "A"], {"split": SIDES}, "data row 8: label 'A' is not in the train rows (row 8). "
         "Pass merge_labels=True to make it one class with 'a'."),
        (TEXTS, LABELS, {"groups": [1, None] * 4 + [1]}, "data row 1: group is empty (likewise rows 3, 5, 7). Fill it"),
        (TEXTS, LABELS, {"min_class": "x"}, "min_class: 'x' is no number of rows. Pass a whole number from 1"),
        (TEXTS, LABELS, {"min_class": True}, "min_class: True is no number of rows."),
        (TEXTS, LABELS, {"min_class": 0}, "min_class: 0 is no number of rows."),
        (TEXTS, LABELS, {"target": "classes"}, "target: unknown kind of labels 'classes'. Did you mean 'class'?"),
        (TEXTS, LABELS, {"drop_emtpy": True}, "Task: unknown argument 'drop_emtpy'. Did you mean 'drop_empty'?"),
        (TEXTS, LABELS, {"gruops": TEXTS}, "Task: unknown argument 'gruops'. Did you mean 'groups'?"),
        (TEXTS, LABELS, {"name": 3}, "name: 3 is no name."),
        (TEXTS, LABELS, {"name": ""}, "name: '' is no name."),
    ],
)  # fmt: skip
def test_lists_that_make_no_task(texts: Any, labels: Any, arguments: dict[str, Any], message: str) -> None:
    assert error(lambda: Task.from_lists(texts, labels, **arguments)).startswith(message)


FRAME = pd.DataFrame({"sentence": TEXTS, "class": LABELS, "part": SIDES, 0: TEXTS})


@pytest.mark.parametrize(
    ("frame", "arguments", "message"),
    [
        (FRAME, {}, "data: no column 'text' and no column 'label'. Columns: sentence, class, part, 0. Name it with "
         "text=... or label=..."),
        (FRAME, {"text": "sentense", "label": "class"}, "data: no column 'sentense'. Columns: sentence, class, "
         "part, 0. Did you mean 'sentence'?"),
        (FRAME, {"text": "sentence", "label": "sentence"}, "label: 'sentence' is the text column already."),
        (FRAME, {"text": "sentence", "label": "class", "split": "class"}, "split: 'class' is a label column already."),
        (FRAME, {"text": "sentence", "label": "class", "groups": "sentence"}, "groups: 'sentence' is the text column"),
        (FRAME, {"text": "sentence", "label": "class", "split": SIDES}, "split: is list, not the name of a column. "
         "Name a column; values in a list go to Task.from_lists."),
        (FRAME, {"text": FRAME.sentence, "label": "class"}, "text: is Series, not the name of a column."),
        (FRAME, {"text": "sentence", "label": ["class", "part"]}, "label: names 2 columns. A task has one label: "
         "make a task for each column."),
        (FRAME, {"text": ("sentence", "part", "class")}, "text: '('sentence', 'part', 'class')' is neither one column"),
        (FRAME, {"text": ("sentence", "sentence")}, "text: 'sentence' is named twice."),
        (FRAME, {"text": "class", "label": None}, "label: is NoneType, not the name of a column."),
        (pd.concat([FRAME, FRAME], axis=1), {"text": "sentence", "label": "class"}, "data: two columns are called"),
        (FRAME.assign(n=range(9)), {"text": "n", "label": "class"}, "data row 0: column 'n' holds a number, not a str"),
        (FRAME.head(0), {"text": "sentence", "label": "class"}, "data: has no rows."),
        (TEXTS, {}, "Task.from_frame: list is not a DataFrame. Pass a DataFrame, as pandas.DataFrame("),
        ({"text": TEXTS, "label": LABELS}, {}, "Task.from_frame: dict is not a DataFrame. Pass a DataFrame, as pandas"),
        (FRAME.sentence, {}, "Task.from_frame: Series is not a DataFrame."),
        (datasets.Dataset.from_dict({"text": TEXTS}), {}, "Task.from_frame: Dataset is not a DataFrame. Use Task.from"),
        (pa.table({"text": TEXTS}), {}, "Task.from_frame: Table is not a DataFrame. Pass table.to_pandas()."),
    ],
)  # fmt: skip
def test_frames_that_make_no_task(frame: Any, arguments: dict[str, Any], message: str) -> None:
    assert error(lambda: Task.from_frame(frame, **arguments)).startswith(message)


def test_columns_of_a_frame_are_found_by_their_names() -> None:
    assert list(Task.from_frame(FRAME, text=0, label="class").texts) == TEXTS
    odd = pd.DataFrame({"a,b": TEXTS, "a": TEXTS, "b": TEXTS, "label": LABELS})
    assert list(Task.from_frame(odd, text="a,b").texts) == TEXTS
    assert "\ufdd0" in Task.from_frame(odd[["a", "b", "label"]], text="a,b").texts[0]


# ------------------------------------------------------------------------------------------------------------ datasets

FEATURES = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})


def dataset(labels: list[int] | None = None, texts: list[str] = TEXTS) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": texts, "label": labels or [0, 1] * 4 + [0]}, features=FEATURES)


def test_class_labels_have_their_names(tmp_path: Path) -> None:
    data = dataset([0, 1, -1] * 3)
    assert error(lambda: Task.from_dataset(data)).startswith(
        "data row 2: column 'label' is empty (likewise rows 5, 8)."
    )
    task = Task.from_dataset(data, drop_missing_labels=True)
    assert task.y.tolist() == ["neg", "pos"] * 3
    data.to_parquet(str(tmp_path / "d.parquet"))
    assert_same(task, load(f"file:{tmp_path / 'd.parquet'}", SourceOptions(drop_missing_labels=True)))
    formatted = data.with_format("torch").filter(lambda row: row["label"] >= 0)
    assert Task.from_dataset(formatted).y.tolist() == ["neg", "pos"] * 3


def test_parts_of_a_dataset_are_its_split(tmp_path: Path) -> None:
    parts = {"test": dataset(texts=[f"{text} now" for text in TEXTS]), "train": dataset(), "validation": dataset()}
    for name, part in parts.items():
        write(tmp_path / f"{name}.jsonl", {"text": part["text"], "label": part["label"]})
    loaded = load(f"file:{tmp_path}")
    unnamed = {name: part.cast_column("label", datasets.Value("int64")) for name, part in parts.items()}
    assert_same(Task.from_dataset(datasets.DatasetDict(unnamed)), loaded)
    task = Task.from_dataset(datasets.DatasetDict(parts))
    assert task.split is not None
    assert task.split.tolist() == ["train"] * 9 + ["dev"] * 9 + ["test"] * 9
    assert Task.from_dataset({"train": dataset()}).split is None


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        ({"train": dataset(), "unsupervised": dataset()}, {}, "data: part 'unsupervised' is no side of a split (train, "
         "validation, test). Pass those that make it, as in {part: ds[part] for part in ('train', 'test')}."),
        ({"validation": dataset(), "test": dataset()}, {}, "data: 'validation', 'test' are not one train part with a"),
        ({"train": dataset(), "val": dataset(), "dev": dataset()}, {}, "data: 'train', 'val', 'dev' are not one train"),
        ({"train": dataset(), "test": dataset([-1] * 9)}, {}, "data['test'] row 0: column 'label' is empty (likewise"),
        ({"train": dataset(), "test": dataset()}, {"split": "text"}, "split: data is split by its parts already."),
        ({"train": dataset(), "test": dataset().remove_columns("label")}, {}, "data['test']: no column 'label'. Colum"),
        ({"text": TEXTS, "label": LABELS}, {}, "data['text']: list is not a Dataset of the library datasets. Use Task"),
        (FRAME, {}, "data: DataFrame is not a Dataset of the library datasets. Use Task.from_frame for a DataFrame"),
        (dataset(), {"text": "txt"}, "data: no column 'txt'. Columns: text, label. Did you mean 'text'?"),
        (dataset().to_iterable_dataset(), {}, "data: is a stream (IterableDataset), whose rows are not in memory. Read "
         "rows first, as in datasets.Dataset.from_list(list(ds.take(1000)), features=ds.features)."),
    ],
)  # fmt: skip
def test_datasets_that_make_no_task(data: Any, arguments: dict[str, Any], message: str) -> None:
    assert error(lambda: Task.from_dataset(data, **arguments)).startswith(message)


def test_what_is_recommended_for_a_stream_works() -> None:
    ds = dataset().to_iterable_dataset()
    task = Task.from_dataset(datasets.Dataset.from_list(list(ds.take(1000)), features=ds.features))
    assert (list(task.texts), task.y.tolist()) == (TEXTS, ["neg", "pos"] * 4 + ["neg"])


# ------------------------------------------------------------------------------------------------- notes and rows left


def test_rows_in_are_rows_used_and_rows_left_out_and_every_note_stays() -> None:
    texts = ["a", "b", None, "c", "d", "e\ud800", "f"]
    labels = ["pos", "pos ", "neg", None, "nan", "neg", "NA"]
    rules: dict[str, Any] = {"drop_empty": True, "drop_missing_labels": True, "replace_invalid": True}
    task = Task.from_lists(texts, labels, missing_labels="nan", **rules)
    assert task.left_out == {"empty text": 1, "missing label": 1, "label that stands for none": 1}
    assert Loaded.of_task(task).rows == len(texts)
    assert task.notes == (
        "1 cells held what no text can hold, replaced by U+FFFD",
        "label: classes that may stand for no label (rows in brackets): 'NA' (1); missing_labels=('NA',) leaves these "
        "rows out",
        "label: some classes differ only by spaces, case or the writing of a number (rows in brackets): 'pos' (1), "
        "'pos ' (1); merge_labels=True makes one class of each",
    )
    merged = Task.from_frame(
        pd.DataFrame({"text": texts, "label": labels}, dtype=object),
        merge_labels=True,
        missing_labels=("NA", "nan", "x"),
        **rules,
    )
    assert merged.y.tolist() == ["pos", "pos", "neg"]
    assert merged.notes[0] == "missing_labels: no row has the label 'x'"
    assert merged.notes[2].startswith("column 'label': spellings of one class are merged into the first")


def test_labels_that_stand_for_none_may_be_numbers() -> None:
    task = Task.from_lists(list("abcd"), [0, 1, -1, -1], missing_labels=-1)  # type: ignore[arg-type]
    assert (task.y.tolist(), task.left_out) == (["0", "1"], {"label that stands for none": 2})


def test_what_a_split_refuses_is_mended_by_arguments() -> None:
    texts = [f"{text} {word}" for text in TEXTS for word in ("red", "blue", "green")]
    task = Task.from_lists(texts, [*"ab" * 13, "c"])
    with pytest.raises(
        InputError, match=r"Pass min_class=2 to leave classes .* \(merge_labels=True where it is another spelling"
    ):
        split(task)
    mended = Task.from_lists(texts, [*"ab" * 13, "c"], min_class=2)
    assert set(mended.y) == {"a", "b"}
    assert mended.left_out == {"of a class of fewer than 2 rows": 1}
    split(mended)
    task = Task.from_lists([*TEXTS[:6], *TEXTS[:3]], LABELS, split=SIDES)
    with pytest.raises(InputError, match=r"share 3 of 3 texts\. Give other test texts, or pass allow_overlap=True"):
        split(task)
