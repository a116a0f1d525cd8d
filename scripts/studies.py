"""The questions that can be asked, by the name of their command, and which of them one measurement answers."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from clsprobe.analysis.study import Study

# command -> further studies that its measurement answers; each leaves out what it cannot judge
ANSWERED_TOO = {"run": ("aggregate", "positions", "poolings"), "fine-tuning": ("trajectory",)}


def studies() -> dict[str, type[Study]]:
    """Command -> study: every module of this package that defines a study."""
    found: dict[str, type[Study]] = {}
    for module in iter_modules(import_module("clsprobe").__path__):
        if module.ispkg or module.name == "__main__":
            continue
        for kind in vars(import_module(f"clsprobe.{module.name}")).values():
            own = isinstance(kind, type) and kind.__module__ == f"clsprobe.{module.name}"
            if own and issubclass(kind, Study):
                found[module.name.replace("_", "-")] = kind
    return found


def answered_too(command: str) -> list[type[Study]]:
    """The further studies that the measurement of a command answers."""
    every = studies()
    return [every[name] for name in ANSWERED_TOO.get("run" if command == "demo" else command, ())]
