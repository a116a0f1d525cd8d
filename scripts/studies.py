"""All studies by the name of their command, and which of them share a measurement."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from clsprobe.analysis.study import Study

# command -> further studies that its measurement can answer; each skips what it cannot judge
FURTHER_STUDIES = {"run": ("aggregate", "positions", "poolings"), "fine-tuning": ("trajectory",)}


def studies() -> dict[str, type[Study]]:
    """Command -> study, for every module of this package that defines a study."""
    result: dict[str, type[Study]] = {}
    for module in iter_modules(import_module("clsprobe").__path__):
        if module.ispkg or module.name == "__main__":
            continue
        for kind in vars(import_module(f"clsprobe.{module.name}")).values():
            defined = isinstance(kind, type) and kind.__module__ == f"clsprobe.{module.name}"
            if defined and issubclass(kind, Study):
                result[module.name.replace("_", "-")] = kind
    return result


def further_studies(command: str) -> list[type[Study]]:
    """The other studies that the measurement of a command can answer."""
    by_command = studies()
    return [by_command[name] for name in FURTHER_STUDIES.get("run" if command == "demo" else command, ())]
