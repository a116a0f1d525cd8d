"""What a shell completes as the value of a flag: names of the registers, and the built-in tasks.

Imports the registers only when something is completed.
"""

from __future__ import annotations

from collections.abc import Callable


def _complete_readouts(incomplete: str) -> list[str]:
    from clsprobe.probes.extraction.readouts import DEFAULT, READOUTS

    return _complete_list(incomplete, [*dict.fromkeys([*DEFAULT, *READOUTS.names()])])


def _complete_probes(incomplete: str) -> list[str]:
    from clsprobe.probes.registry import PROBES

    return _complete_list(incomplete, PROBES.names())


def _complete_tasks(incomplete: str) -> list[str]:
    from clsprobe.analysis.sources import SOURCES
    from clsprobe.analysis.sources.grammar import PROPERTIES

    sources = [f"{name}:" for name in SOURCES.names() if name != "grammar"]
    return [*(f"grammar:{name}" for name in ("demo", "all", *PROPERTIES)), *sources]


def _complete_list(incomplete: str, names: list[str]) -> list[str]:
    """The names behind those that stand before the last comma already."""
    before, comma, _ = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names if name not in before.split(",")]


COMPLETIONS: dict[str, Callable[[str], list[str]]] = {  # field -> the values that begin as `incomplete`, and others
    "readouts": _complete_readouts,
    "probes": _complete_probes,
    "task": _complete_tasks,
}
