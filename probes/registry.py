"""Probes by name: entry points ``clsprobe.probes`` of installed packages, and ``package.module:Class``.

Imports no scikit-learn, so that a mistyped name is reported at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from clsprobe.probes.errors import InputError, unknown
from clsprobe.probes.tasks.task import Task

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator


def registered_probes() -> dict[str, str]:
    """Name -> ``package.module:Class`` of every probe that an installed package registers."""
    return {entry.name: entry.value for entry in entry_points(group="clsprobe.probes")}


def check_probe_name(name: str) -> None:
    """Raise InputError if `name` is neither registered nor of the form ``package.module:Class``."""
    if name not in (known := registered_probes()) and ":" not in name:
        raise unknown("--probes", "probe", name, known)


def find_probe(name: str) -> BaseEstimator:
    """The probe of a registered name or of ``package.module:Class``, with its default arguments. Raises InputError."""
    from sklearn.base import BaseEstimator

    check_probe_name(name)
    module, _, kind = registered_probes().get(name, name).partition(":")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)  # finds a probe in the user's own folder, as ``python -m`` would
    where = f"--probes {name}"
    try:
        probe = getattr(importlib.import_module(module), kind)()
    except ModuleNotFoundError as error:
        raise InputError(where, str(error), "Install the package, or run where the module is") from error
    except AttributeError as error:
        raise InputError(where, str(error), "Name a class of that module") from error
    except Exception as error:  # a plug-in's own code may raise anything
        raise InputError(where, f"cannot be made ({type(error).__name__}: {error})", "Mend the plug-in") from error
    if not isinstance(probe, BaseEstimator):
        raise InputError(where, "is no scikit-learn estimator", "Derive it from CellProbe or BaseEstimator")
    return probe


def choose_probes(probes: Mapping[str, BaseEstimator], task: Task) -> dict[str, BaseEstimator]:
    """The probes that can read the labels of a task: regressors for numbers, the others for classes.

    Raises InputError if there is none.
    """
    from sklearn.base import is_regressor

    numbers = task.kind == "number"
    if chosen := {name: probe for name, probe in probes.items() if is_regressor(probe) == numbers}:
        return chosen
    labels, mend = ("numbers", "ridge") if numbers else ("classes", "logistic")
    what = f"{task.name} has {labels}, which {' and '.join(probes)} cannot read"
    raise InputError("--probes", what, f"Add a probe that does, such as {mend}")
