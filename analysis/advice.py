"""What to run next where a question is undecided: the command that takes enough texts."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

MOST_SENTENCES = 100_000  # of a built-in task; more take hours to write and read


def advise(settings: BaseModel, command: str, factors: Mapping[str, float]) -> str:
    """A sentence with the command that reads enough texts, as far as the source has them.

    settings: of the run. factors: undecided task -> how many times its texts are needed.
    """
    from clsprobe.analysis.sources.grammar import SIZE

    factor = max(factors.values())
    specs = list(getattr(settings, "task", ()))
    names = [name.partition(":")[2] for name in factors if name.startswith("grammar:")]
    if len(names) == len(factors):
        sizes = {part[1]: int(part[2]) for part in (spec.split(":") for spec in specs) if len(part) == 3}
        collection = next((int(spec.split(":")[2]) for spec in specs if spec.count(":") == 2), SIZE)
        written = sizes.get(names[0].replace("_", "-"), sizes.get(names[0], collection))
        size = _round_up(written * factor)
        if size > MOST_SENTENCES:
            return "The built-in sentences are too few for that: take texts of your own."
        tasks = [f"grammar:{name}:{size}" for name in names]
        return f"Try: {_format_command(settings, command, task=tasks)}"
    if limit := getattr(settings, "max_texts", None):
        command = _format_command(settings, command, max_texts=_round_up(limit * factor))
        return f"If the source has so many, try: {command}"
    return "Add texts to the source, and run the same command with --overwrite."


def _round_up(number: float) -> int:
    """The next number of two digits and zeros."""
    unit = 10 ** max(len(str(math.ceil(number))) - 2, 0)
    return math.ceil(number / unit) * unit


def _format_command(settings: BaseModel, command: str, **changed: Any) -> str:
    """The command line of these settings, with some of them changed. Defaults are left out."""
    words = ["clsprobe", command]
    for name, info in type(settings).model_fields.items():
        value = changed.get(name, getattr(settings, name))
        if name not in changed and (value == info.default or info.exclude):
            continue
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif name == "task":
            words += [word for spec in value for word in (flag, spec)]
        elif value is not None:
            words += [flag, ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)]
    return shlex.join(words)
