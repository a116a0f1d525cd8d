"""Digests of what a run reads beside its data: the code of clsprobe and of plug-ins, the libraries, models.

A measurement that was interrupted is resumed only where all of these are what they were, see `Study.contents`. Imports
neither torch nor scikit-learn, except for a plug-in that does.
"""

from __future__ import annotations

import platform
import secrets
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from clsprobe.analysis.sources import SOURCES, split_spec
from clsprobe.probes.decoders import DECODERS
from clsprobe.probes.encoders.describing import Description
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import list_plugins, parse_readouts
from clsprobe.probes.files import digest_files
from clsprobe.probes.registry import PROBES, digest_source

LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "scipy",
    "scikit-learn",
    "umap-learn",
)  # compute the numbers


@cache
def own_contents() -> dict[str, str]:
    """The digest of clsprobe's own code, and the versions of Python and the libraries that compute the numbers."""
    files: dict[str, Path] = {}
    for package, pattern in (("clsprobe", "*.py"), ("clsprobe.probes", "**/*.py"), ("clsprobe.analysis", "**/*.py")):
        folder = Path(sys.modules[package].__path__[0])
        files |= {f"{package} {path.relative_to(folder).as_posix()}": path for path in folder.glob(pattern)}
    versions = {"Python": platform.python_version()}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    return {"clsprobe": digest_files(files)} | versions


def model_contents(descriptions: Iterable[Description]) -> dict[str, str]:
    """The digests of these models' files."""
    return {f"model {description.name}": description.digest for description in descriptions}


def plugin_contents(study: Any) -> dict[str, str]:
    """The digests of the source of what a study uses of other packages: probes, readouts, sources, and itself.

    study: settings, of which `probes`, `readouts` and `task` are read where there are any.
    """
    plugins = {f"study {_full_name(type(study))}": _full_name(type(study))}
    plugins = {name: full_name for name, full_name in plugins.items() if not full_name.startswith("clsprobe.")}
    for name in filter(PROBES.is_plugin, getattr(study, "probes", ())):
        PROBES.load(name)
        plugins[f"probe {name}"] = PROBES.full_name(name)
    for name, full_name in list_plugins(getattr(study, "readouts", ())).items():
        parse_readouts([name])
        plugins[f"readout {name}"] = full_name
    for spec in getattr(study, "task", ()):
        if isinstance(spec, str) and SOURCES.is_plugin(name := split_spec(spec)[0]):
            SOURCES.load(name)
            plugins[f"source {name}"] = SOURCES.full_name(name)
    return {name: _digest_plugin(full_name.partition(":")[0]) for name, full_name in plugins.items()}


def decoder_contents(names: Iterable[str]) -> dict[str, str]:
    """The digests of the source of those among these decoders that are not clsprobe's own."""
    modules = {f"decoder {name}": DECODERS[name].partition(":")[0] for name in names}
    others = {name: module for name, module in modules.items() if not module.startswith("clsprobe.")}
    return {name: _digest_plugin(import_module(module).__name__) for name, module in others.items()}


def _full_name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _digest_plugin(module: str) -> str:
    try:
        return digest_source(module)
    except InputError:  # without a file nothing says whether it changes: a run is never resumed
        return secrets.token_hex()
