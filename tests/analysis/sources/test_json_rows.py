"""JSON files: an array, read piece by piece, is what the standard library reads of the whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clsprobe.analysis.sources import SourceOptions, json_rows, load
from clsprobe.probes.errors import InputError

SPACE = st.text(" \t\n\r", max_size=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
)
ROWS = st.lists(
    st.tuples(st.text(st.characters(codec="utf-8"), max_size=20), VALUES, SPACE, SPACE), min_size=2, max_size=9
)


@given(ROWS, st.integers(1, 70), st.booleans())
@settings(max_examples=25)
def test_an_array_is_read_as_a_whole(tmp_path_factory, rows, block, wrapped):
    path = tmp_path_factory.mktemp("d") / "d.json"
    objects = [
        {"more": value, "text": f"t{text}".replace("\ufdd0", ""), "label": "ab"[n % 2]}
        for n, (text, value, *_) in enumerate(rows)
    ]
    items = [
        f"{a}{json.dumps(item, ensure_ascii=n % 2 == 0)}{b}"
        for n, (item, (*_, a, b)) in enumerate(zip(objects, rows, strict=True))
    ]
    text = f"[{','.join(items)}]\n"
    text = f'{{"data": {text}}}' if wrapped else text
    path.write_text(text, "utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "BLOCK", max(block, 20 if wrapped else 1))  # the head is one block
        task = load(f"file:{path}").tasks[0]
    parsed = json.loads(text)
    assert list(task.texts) == [item["text"] for item in (parsed["data"] if wrapped else parsed)]


def test_the_line_of_an_item_is_that_of_its_brace(tmp_path):
    items = [{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(500)]
    items[333]["text"] = 5
    text = json.dumps(items, indent=1).replace("\n", "\r\n")
    (tmp_path / "d.json").write_text(text, newline="")
    line = [number for number, line in enumerate(text.splitlines(), 1) if line == " {"][333]
    with pytest.raises(InputError, match=rf"^d\.json:{line}: column 'text' holds a number"):
        load(f"file:{tmp_path / 'd.json'}")


def test_labels_are_their_json_text_in_an_array_too(tmp_path):
    path = tmp_path / "d.json"
    labels = ["1", "1.0", "1e3", "true", '"1"', "123456789012345678901234567890"]
    path.write_text("[" + ",".join(f'{{"text": "t", "label": {label}}}' for label in labels) + "]")
    expected = ["1", "1.0", "1e3", "true", "1", "123456789012345678901234567890"]
    assert load(f"file:{path}").tasks[0].y.tolist() == expected


def test_a_key_that_stands_twice_matters_where_it_is_read(tmp_path):
    path = Path(tmp_path / "d.jsonl")
    path.write_text('{"text": "a", "label": "x", "id": 1, "id": 2}\n{"text": "b", "label": "y", "y": "z", "y": "z"}\n')
    assert load(f"file:{path}").rows == 2
    with pytest.raises(InputError, match=r"d\.jsonl:2: key 'y' stands twice in one object"):
        load(f"file:{path}", SourceOptions(label_column=("y",), drop_missing_labels=True))
