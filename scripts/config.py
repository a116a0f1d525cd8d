"""``--config FILE.yaml``: the same names as the flags, read strictly.

YAML guesses types (``no`` is False, ``012`` is 10, ``1:30`` is 90), accepts duplicate keys and expands aliases without
limit. Here every scalar is text, which the study converts; duplicate and unknown keys, aliases, tags and tabs are
errors that name their line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from clsprobe.probes.errors import InputError, did_you_mean
from clsprobe.probes.files import UnsuitableFile, read_content, read_error

MAX_BYTES = 1 << 20
MAX_DEPTH = 10  # of nested collections; two levels are useful


def read_config(path: Path, known: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read values by field name, and their places, ``FILE:LINE key``, by field name.

    known: the field names that are allowed; in keys, `-` and `_` are the same. Raises InputError.
    """
    name = path.name
    text = _read_text(path)
    try:
        depth = 0
        for event in yaml.parse(text, yaml.BaseLoader):
            where = f"{name}:{event.start_mark.line + 1}" if event.start_mark else name
            if isinstance(event, yaml.AliasEvent):
                raise InputError(where, "uses a YAML alias", "Write the value out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:  # parsing time grows with the square of the depth
                raise InputError(where, "is nested too deep", "Write lines such as 'layers: 0,3,6'")
        root = yaml.compose(text, yaml.BaseLoader)
    except yaml.reader.ReaderError as error:
        where = f"{name}:{text.count(chr(10), 0, error.position) + 1}"
        raise InputError(where, f"not valid YAML (a control character, U+{error.character:04X})", "Remove it") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise InputError(where, f"not valid YAML ({getattr(error, 'problem', error)})", "Mend this line") from None
    if root is None:
        return {}, {}
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{name}:1", "is no list of 'name: value' lines", "Write lines such as 'layers: 0,3,6'")
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for key, value in root.value:
        line = f"{name}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(line, "a key is no plain name", "Write lines such as 'layers: 0,3,6'")
        field = str(key.value).replace("-", "_")
        if field not in known:
            guess = did_you_mean(field, known)
            raise InputError(line, f"unknown key '{key.value}'", f"Did you mean '{guess}'?" if guess else "See --help")
        if field in values:
            raise InputError(line, f"key '{key.value}' is given twice", "Keep one")
        places[field] = f"{line} {key.value}"
        values[field] = _convert(value, places[field])
    return values, places


def _read_text(path: Path) -> str:
    """The content of a regular file of UTF-8, at most `MAX_BYTES` long."""
    try:
        content = read_content(path, largest=MAX_BYTES)
    except UnsuitableFile as error:
        raise read_error(path.name, error, "A configuration is a few lines; is this the right file?") from None
    except (OSError, ValueError) as error:  # no permission, a name that is too long or has a NUL
        raise read_error(f"--config {path}", error, "Check it") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise InputError(f"{path.name}:{line}", f"not UTF-8 (byte 0x{byte:02X})", "Convert the file to UTF-8") from None


_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}  # BaseLoader's own


def _convert(node: yaml.Node, where: str) -> str | list[str]:
    if node.tag not in _TAGS:
        raise InputError(where, f"has the tag {node.tag}", "Write plain text")
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [str(_convert(item, where)) for item in node.value]
    raise InputError(where, "is neither a value nor a list of values", "Write one value, or a list of them")
