"""``--config FILE.yaml``: the same names as the flags, read strictly.

YAML guesses types (``no`` is False, ``012`` is 10, ``1:30`` is 90), accepts a key twice and expands aliases without
bound. Here every scalar is text, which the study itself converts; duplicate and unknown keys, aliases, tags and tabs
are refused with their line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from probes.errors import InputError, did_you_mean

LARGEST = 1 << 20  # bytes


def read_config(path: Path, known: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values by name, and ``FILE:LINE key`` by name. `-` and `_` both work in keys. Raises InputError."""
    name = path.name
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(name, "is larger than 1 MB", "A configuration is a few lines; is this the right file?")
        text = path.read_text(encoding="utf-8-sig")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.BaseLoader)):
            raise InputError(name, "uses a YAML alias", "Write the value out")
        root = yaml.compose(text, yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--config {path}", f"cannot be read ({getattr(error, 'strerror', error)})", "Check it"
        ) from None
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
        field = str(key.value).replace("-", "_")
        if field not in known:
            guess = did_you_mean(field, known)
            raise InputError(line, f"unknown key '{key.value}'", f"Did you mean '{guess}'?" if guess else "See --help")
        if field in values:
            raise InputError(line, f"key '{key.value}' is given twice", "Keep one")
        values[field] = _plain(value, f"{line} {key.value}")
        places[field] = f"{line} {key.value}"
    return values, places


def _plain(node: yaml.Node, where: str) -> str | list[str]:
    if node.tag.startswith("!") or "python" in node.tag:
        raise InputError(where, f"has the tag {node.tag}", "Write plain text")
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [str(_plain(item, where)) for item in node.value]
    raise InputError(where, "is neither a value nor a list of values", "Write one value, or a list of them")
