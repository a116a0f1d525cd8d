"""The studies by the names of their classes, each imported when it is first used: ``clsprobe.studies.Poolings(...)``.

Those of other packages (`STUDIES`) are here too, under names that are theirs alone.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from clsprobe.analysis.registers import STUDIES, load_study
from clsprobe.probes.errors import did_you_mean

if TYPE_CHECKING:
    from clsprobe.analysis.study import Study


def _names() -> dict[str, str]:
    """Name of a class -> its full name. clsprobe's own come first; a name of two packages is nobody's."""
    own = {full_name.partition(":")[2]: full_name for full_name in STUDIES.built_in.values()}
    others = {entry.full_name for entry in STUDIES.entries() if entry.package}
    owners = Counter(full_name.rpartition(":")[2] for full_name in others)
    unique = {full_name.rpartition(":")[2]: full_name for full_name in others}
    return {name: full_name for name, full_name in unique.items() if owners[name] == 1} | own


def __getattr__(name: str) -> type[Study]:
    if name.startswith("__"):
        raise AttributeError(name)
    names = _names()
    if name not in names:
        guess = did_you_mean(name, names)
        hint = f"Did you mean '{guess}'?" if guess else f"There are {', '.join(sorted(names))}"
        raise AttributeError(f"there is no study '{name}'. {hint}")
    return load_study(names[name])


def __dir__() -> list[str]:
    return sorted(_names())
