"""A task that is written down directly: lists become arrays, what does not fit is named, and it shows itself."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clsprobe.probes.errors import InputError
from clsprobe.probes.tasks.task import Task
from clsprobe.probes.tasks.texts import Texts

TEXTS = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (["x", "y", "x", "y"], ["x", "y", "x", "y"]),
        ([1, 0, 1, 10], ["1", "0", "1", "10"]),
        (np.array([1, 0, 1, 0]), ["1", "0", "1", "0"]),
        ([True, False, True, False], ["true", "false", "true", "false"]),
        (np.array([0.0, 1.0, 0.0, 1.0]), ["0", "1", "0", "1"]),
        (pd.Series([0, 1, 2, 3], index=[3, 2, 1, 0]), ["0", "1", "2", "3"]),
        (("x", "y", "x", "y\0"), ["x", "y", "x", "y\0"]),
    ],
)
def test_labels_become_an_array_of_strings(y: Any, expected: list[str]) -> None:
    task = Task("my:task", TEXTS, y)
    assert isinstance(task.y, np.ndarray)
    assert task.y.tolist() == expected


@pytest.mark.parametrize(
    "y", [[1, 2, 3, 4], (1.0, 2, 3, 4), np.arange(1, 5, dtype=np.float32), pd.Series([1, 2, 3, 4])]
)
def test_numbers_become_float64(y: Any) -> None:
    task = Task("my:task", TEXTS, y, "number")
    assert task.y.dtype == np.float64
    assert task.y.tolist() == [1, 2, 3, 4]


def test_arrays_stay_the_arrays_they_are() -> None:
    y, split, groups = np.array(list("xyxy")), np.array(["train", "train", "dev", "test"]), np.arange(4)
    task = Task("my:task", TEXTS, y, "class", split, groups)
    assert task.texts is TEXTS
    assert task.y is y
    assert task.split is split
    assert task.groups is groups
    again = replace(task, name="my:other")
    assert (again.y is y, again.left_out, again.notes) == (True, {}, ())


def test_other_lists_become_arrays_too() -> None:
    task = Task(
        "my:task", pd.Series(TEXTS), list("xyxy"), split=["train", "dev", "test", "test"], groups=["g", 1, "g", None],
        rows=[3, 1, 2, 0], solved_by="length", notes="a note", left_out={"empty text": 2},
    )  # fmt: skip
    assert list(task.texts) == TEXTS
    assert task.split is not None
    assert task.split.tolist() == ["train", "dev", "test", "test"]
    assert task.groups is not None
    assert task.groups.tolist() == [0, 1, 0, 2]
    assert task.rows is not None
    assert task.rows.tolist() == [3, 1, 2, 0]
    assert (task.solved_by, task.notes, task.left_out) == (("length",), ("a note",), {"empty text": 2})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"texts": "a text"}, "texts: is one text, not a list of texts. Pass [text]."),
        (
            {"texts": pd.DataFrame({"a": TEXTS})},
            "texts: is DataFrame, not a list. Pass a list with one value per text.",
        ),
        ({"texts": 3}, "texts: is int, not a list. Pass a list with one value per text."),
        (
            {"texts": ["a", 1, "c", "d"]},
            "texts: row 1 holds int, not a text. Leave such rows out, or make texts of them.",
        ),
        ({"y": ["x", "y"]}, "my:task: y has 2 rows, texts has 4. Give one value for every text, in their order."),
        ({"y": "xyxy"}, "my:task: y: is one string, not a list."),
        (
            {"y": ["x", None, "y", None]},
            "my:task row 1: y is missing (likewise row 3). Leave the text out, as Task.from_",
        ),
        ({"y": [["x"], "y", "x", "y"]}, "my:task row 0: y holds a list, not one value. Give one value for each row"),
        ({"y": np.eye(4)}, "my:task row 0: y holds a list, not one value (likewise rows 1, 2, 3)."),
        ({"kind": "classes"}, "my:task: unknown kind 'classes'. Did you mean 'class'? One of: class, number."),
        ({"kind": "number"}, "my:task row 0: y holds no number. Give numbers, or kind='class'."),
        ({"kind": "number", "y": [1, 2, pd.NA, 4]}, "my:task row 2: y holds no number."),
        ({"kind": "number", "y": [1, None, 2, float("inf")]}, "my:task: y holds no finite number in rows 1, 3. Leave"),
        ({"kind": "number", "y": np.eye(4)}, "my:task: y has the shape (4, 4). Give one number for every text."),
        (
            {"split": ["train", "validation", "test", "test"]},
            "my:task: split holds 'validation'. Write 'train', 'dev' or",
        ),
        ({"split": ["train", "test"]}, "my:task: split has 2 rows, texts has 4."),
        ({"groups": [1]}, "my:task: groups has 1 rows, texts has 4."),
        ({"rows": list("abcd")}, "my:task: rows holds what is no row index. Give whole numbers from 0."),
        ({"rows": [-1, 0, 1, 2]}, "my:task: rows holds what is no row index. Give whole numbers from 0."),
        ({"name": 7}, "name: 7 is no name of a task. Name it as in my:task:label."),
    ],
)
def test_fields_that_do_not_fit_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        Task(**({"name": "my:task", "texts": TEXTS, "y": list("xyxy")} | fields))
    assert str(error.value).startswith(message)


def test_texts_in_arrow_are_not_read() -> None:
    """A task of a million texts is made without a look at each of them."""
    packed = Texts()
    for i in range(50_000):
        packed.append(f"text {i}")
    texts = packed.finish()
    y = np.array(["x", "y"])[np.arange(50_000) % 2]
    texts.array = _Unreadable(texts.array)
    task = Task("my:task", texts, y, "class", np.repeat("train", 50_000), np.arange(50_000), np.arange(50_000))
    assert task.texts is texts
    assert repr(task) == "<Task my:task: 50,000 texts, 2 classes ('x', 'y'), 50,000 train>"


class _Unreadable:
    def __init__(self, array: Any) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)


# ----------------------------------------------------------------------------------------------------------------- show


def test_a_task_says_what_it_is_in_a_line() -> None:
    task = Task("my:task:label", TEXTS, list("xyzx"), split=["train", "train", "dev", "test"])
    assert repr(task) == "<Task my:task:label: 4 texts, 3 classes ('x', 'y', 'z'), 2 train, 1 dev, 1 test>"
    assert (
        repr(Task("n", TEXTS, [0.5, 2, 1, 7], "number"))
        == "<Task n: 4 texts, numbers from 0.5 to 7, no split of its own>"
    )
    many = Task("many", [str(i) for i in range(40)], [f"class {i}" for i in range(40)])
    assert "40 classes ('class 0', 'class 1', 'class 10', 'class 11', 'class 12', ...)" in repr(many)
    odd = Task("a\nb\u202e", TEXTS, ["x\n", "y\u202e", "z" * 300, "x\n"])
    assert repr(odd).isprintable()
    assert len(repr(odd)) < 200
    assert repr(Task("empty", [], [])) == "<Task empty: 0 texts, no labels, no split of its own>"


def test_a_notebook_shows_counts_and_no_text() -> None:
    labels = ["<script>alert(1)</script>", "b\u202e", "<script>alert(1)</script>", "b\u202e"]
    task = Task(
        "my:<i>:label", ["secret one", "secret two", "secret three", "secret four"], labels,
        split=["train", "train", "dev", "test"], left_out={"empty text": 2}, notes=("a <b>note</b>",),
    )  # fmt: skip
    page = task._repr_html_()
    assert "secret" not in page
    assert not re.search(r"<(script|i|b>note)|\u202e", page)
    assert "2 rows left out: empty text" in page
    assert "a &lt;b&gt;note&lt;/b&gt;" in page
    cells = [re.findall(r"<td><bdi>(.*?)</bdi></td>", row) for row in page.split("<tr>")]
    assert cells[2:] == [["'&lt;script&gt;alert(1)&lt;/script&gt;'", "1", "1", "0"], ["'b\\u202e'", "1", "0", "1"]]
    many = Task("many", [str(i) for i in range(60)], [f"class {min(i, 39):02}" for i in range(60)])._repr_html_()
    assert many.index("class 39") < many.index("class 00")  # the largest first
    assert "<td><bdi>30 more</bdi></td><td><bdi>30</bdi></td>" in many
    numbers = Task("n", TEXTS, [0.5, 2, 1, 7], "number")._repr_html_()
    assert "<td><bdi>numbers from 0.5 to 7</bdi></td><td><bdi>4</bdi></td>" in numbers
