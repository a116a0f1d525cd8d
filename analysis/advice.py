"""What to run next where a question is undecided: the command that takes enough texts."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from clsprobe.probes.extraction.readouts import DEFAULT

MOST_SENTENCES = 100_000  # of a built-in task; more take hours to write and read


def advise(settings: BaseModel, command: str, factors: Mapping[str, float]) -> str:
    """A sentence with the command that reads enough texts, as far as the source has them.

    settings: of the run. factors: undecided task -> how many times its texts are needed.
    """
    from clsprobe.analysis.sources.grammar import SIZE

    limit = getattr(settings, "max_texts", None)
    if has_objects(settings):
        return f"{'Raise max_texts, or add texts' if limit else 'Add texts'}, and run the study again."
    if all(name.startswith("grammar:") for name in factors):
        sizes = {parts[1].replace("-", "_"): int(parts[2]) for parts in _split_specs(settings) if len(parts) == 3}
        whole = next((sizes[collection] for collection in ("all", "demo") if collection in sizes), SIZE)
        tasks = []
        for task, factor in factors.items():
            name = task.partition(":")[2]
            size = sizes.get(name, whole)
            tasks.append((name, _round_up(min(size, limit or size) * factor)))
        if max(size for _, size in tasks) > MOST_SENTENCES:
            return "The built-in sentences are too few for that: take texts of your own."
        specs = [f"grammar:{name}:{size}" for name, size in tasks]
        return f"Try: {_format_command(settings, command, task=specs, max_texts=None)}"
    if limit:
        command = _format_command(settings, command, max_texts=_round_up(limit * max(factors.values())))
        return f"If the source has so many, try: {command}"
    return "Add texts to the source, and run the same command with --overwrite."


def has_objects(settings: BaseModel) -> bool:
    """Whether a task or an encoder in memory is among the settings, which no command can name."""
    values = [getattr(settings, "model", None), *getattr(settings, "task", ())]
    return any(value is not None and not isinstance(value, str) for value in values)


def _split_specs(settings: BaseModel) -> list[list[str]]:
    return [spec.split(":") for spec in getattr(settings, "task", ())]


def _round_up(number: float) -> int:
    """The next number of two digits and zeros."""
    unit = 10 ** max(len(str(math.ceil(number))) - 2, 0)
    return math.ceil(number / unit) * unit


def _format_command(settings: BaseModel, command: str, **changed: Any) -> str:
    """The command line of these settings, with some of them changed, into a folder of its own. Defaults are left out,
    of the readouts also those of another study whose measurement was read."""
    words = ["clsprobe", command]
    for name, info in type(settings).model_fields.items():
        value = changed.get(name, getattr(settings, name))
        if name not in changed and (value == info.default or info.exclude or (name, value) == ("readouts", DEFAULT)):
            continue
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif name == "task":
            words += [word for spec in value for word in (flag, spec)]
        elif value is not None:
            words += [flag, ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)]
    return shlex.join([*words, "--out", f"out/{command}-more"])
