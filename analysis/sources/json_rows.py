"""Rows of JSON files: one object per line (.jsonl, .ndjson, and .json files that are so), or one array of objects.

`_read_lines` reads the first, `_read_array` the second: object by object, so that no file is held in memory as a whole.
The content decides, not the suffix. Strings stay strings and numbers what is written: pandas makes dates of texts and
merges 1 and 1.0.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from clsprobe.analysis.sources.opening import LONGEST, TOO_LONG, Source, bound_lines, open_text
from clsprobe.probes.errors import InputError, quote
from clsprobe.probes.tasks.rows import Findings, Row, check_columns

SPACES = " \t\r\n"
BLOCK = 1 << 16  # characters
WRAPPED = re.compile(r'\s*\{\s*"data"\s*:\s*\[\s*\{')  # {"data": [{...}, ...]}, as some data sets are published
CUT = "the file ends in the middle of a record"
WAS_CUT = "Was the download or the copy cut?"
MANY_KEYS = 1000  # rows without one of the columns, after which it is missing


class _Number(str):
    """A JSON number as written in the file: 1, 1.0 and 1e0 are three labels."""


_TWICE = object()  # the value of a key that an object has twice


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        cells |= {key: _TWICE for key, times in Counter(key for key, _ in pairs).items() if times > 1}
    return cells


_DECODER = json.JSONDecoder(
    parse_int=_Number,
    parse_float=_Number,
    parse_constant=lambda name: None if name == "NaN" else _Number(name),
    object_pairs_hook=_unique_keys,
)


def read_json_rows(source: Source) -> Iterator[Row]:
    """The rows of a JSON file. Raises InputError."""
    with open_text(source, newline=None) as stream:
        head = stream.read(BLOCK)
        while head and not head.strip(SPACES):
            head = stream.read(BLOCK)
    is_array = head.lstrip(SPACES).startswith("[") or _is_wrapped(head, source)
    with open_text(source, newline=None) as stream:
        objects = _read_array(stream, source) if is_array else _read_lines(stream, source)
        yield from _select_cells(objects, source)


def _is_wrapped(head: str, source: Source) -> bool:
    """Whether a file is {"data": [{...}, ...]}, and not a row per line of which "data" is the first column."""
    if not WRAPPED.match(head):
        return False
    try:
        first_line = _DECODER.decode(head.strip(SPACES).partition("\n")[0])
    except (ValueError, RecursionError):
        return True
    return not any(column in first_line for column in source.columns)


def _read_lines(stream: io.TextIOWrapper, source: Source) -> Iterator[tuple[int, Any]]:
    """The number and the value of every line that is not blank. Broken ones go to the findings."""
    for number, whole_line in enumerate(bound_lines(stream, source.name), 1):
        if not (line := whole_line.strip(SPACES)):
            continue
        try:
            yield number, _DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            is_cut = not whole_line.endswith("\n") and line.startswith("{") and not line.endswith("}")
            if is_cut and not isinstance(error, RecursionError):
                source.findings.add(number, CUT, WAS_CUT)
            else:
                source.findings.add(number, f"not valid JSON ({_describe_error(error)})", kind="json")


def _read_array(stream: io.TextIOWrapper, source: Source) -> Iterator[tuple[int, Any]]:
    """The line and the value of every item of an array, or of the array in {"data": [...]}.

    Raises InputError where the array is broken: nothing tells where its next item begins.
    """
    text, position, line, size = "", 0, 1, BLOCK

    def fail(what: str, mend: str = "") -> InputError:
        return InputError(f"{source.name}:{line}", what, mend)

    def skip() -> str:
        """Go to the next character that is no white space, and say which it is; "" at the end."""
        nonlocal text, position, line
        while True:
            start = position
            while position < len(text) and text[position] in SPACES:
                position += 1
            line += text.count("\n", start, position)
            if position < len(text):
                return text[position]
            text, position = stream.read(BLOCK), 0
            if not text:
                return ""

    is_wrapped = skip() == "{"
    while is_wrapped and skip() != "[":  # the key that `WRAPPED` has found
        position += 1
    position += 1
    is_first = True
    while (character := skip()) != "]":
        if not character:
            raise fail(CUT, WAS_CUT)
        if not is_first:
            if character != ",":
                raise fail(f"not valid JSON (expected a comma or ] instead of {quote(character)})")
            position += 1
            if not skip():
                raise fail(CUT, WAS_CUT)
        is_first = False
        while True:  # an object may reach beyond what was read so far
            try:
                value, end = _DECODER.raw_decode(text, position)
                break
            except RecursionError as error:
                raise fail(f"not valid JSON ({_describe_error(error)})") from None
            except ValueError as error:
                if len(text) - position > LONGEST:
                    raise fail(f"an item of more than {LONGEST:,} characters", TOO_LONG) from None
                more = stream.read(size)
                if not more:
                    if getattr(error, "pos", 0) >= len(text.rstrip(SPACES)) or "Unterminated" in str(error):
                        raise fail(CUT, WAS_CUT) from None
                    raise fail(f"not valid JSON ({_describe_error(error)})") from None
                text, position, size = text[position:] + more, 0, 2 * size
        yield line, value
        line += text.count("\n", position, end)
        position, size = end, BLOCK
    position += 1
    rest = skip()
    if is_wrapped and rest == "}":
        position += 1
        rest = skip()
    if rest:
        what = "more follows after the array" + (' of "data"' if is_wrapped else "")
        raise fail(what, "Keep the array of objects alone, as jq -c .data[] does" if is_wrapped else "Remove it")


def _select_cells(objects: Iterator[tuple[int, Any]], source: Source) -> Iterator[Row]:
    """The selected cells of JSON objects."""
    findings, texts, width = source.findings, len(source.options.text_columns), len(source.columns)
    columns: list[str] = []
    unseen, keys = set[str](), dict[str, None]()  # columns not found so far; all keys found so far
    pending: list[Row] = []  # the rows until every column was found
    rows = 0
    for number, value in objects:
        rows += 1
        if not isinstance(value, dict):
            findings.add(number, "not a JSON object", 'Each row is an object such as {"text": "...", "label": "..."}')
            continue
        if not columns:
            columns = source.match(list(value))
            unseen = set(columns[:width])
        cells = [_json_cell(value.get(c), c, n < texts, number, findings) for n, c in enumerate(columns[:width])]
        if width < len(columns):
            side = value.get(columns[width])
            cells.append(side if isinstance(side, str) else None)
        row = number, cells
        if not unseen:
            yield row
            continue
        pending.append(row)
        keys.update(dict.fromkeys(value))
        unseen -= value.keys()
        if not unseen:
            yield from pending
        elif len(pending) == MANY_KEYS:
            break
    if unseen or not rows:
        findings.raise_problems()  # broken lines explain a missing column better
    if not rows:
        raise InputError(source.name, "file is empty")
    if unseen:
        check_columns(list(keys), columns[:width], source.name, source.options)


def _describe_error(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    reason = (
        error.msg.replace("Expecting value", "expected a value").replace("Expecting", "expected").removesuffix(" at")
    )
    return f"{reason[0].lower()}{reason[1:]} at column {error.colno}"


def _json_cell(value: Any, column: str, is_text: bool, line: int, findings: Findings) -> str | None:
    """A JSON value as a cell: strings unchanged, numbers and booleans as their JSON text, null as None."""
    if type(value) is str or value is None:
        return value
    if value is _TWICE:
        findings.add(line, f"key {quote(column)} stands twice in one object", "Remove one of them")
        return None
    if not isinstance(value, list | dict):
        cell = str(value) if isinstance(value, _Number) else json.dumps(value)
        if not is_text:
            return cell
    what = {_Number: "a number", bool: "true or false", list: "a list", dict: "an object"}[type(value)]
    findings.add(line, f"column {quote(column)} holds {what}, not {'a string' if is_text else 'one value'}")
    return None
