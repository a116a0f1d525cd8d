"""Digests of what a run reads beside its data: the code of clsprobe and of plug-ins, the libraries, models.

A measurement that was interrupted is resumed only where all of these are what they were, see `Study.contents`. Imports
neither torch nor scikit-learn, except for a plug-in that does.
"""

from __future__ import annotations

import platform
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from clsprobe.probes.encoders.describing import Description
from clsprobe.probes.files import file_digest
from clsprobe.probes.registry import find_probe, registered_probes

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
    return {"clsprobe": _digest_files(files)} | versions


def model_contents(descriptions: Iterable[Description]) -> dict[str, str]:
    """The digests of these models' files."""
    return {f"model {description.name}": description.digest for description in descriptions}


def probe_contents(names: Iterable[str]) -> dict[str, str]:
    """The digests of the source code of those of the named probes that are no part of clsprobe."""
    modules = {name: registered_probes().get(name, name).partition(":")[0] for name in names}
    return {
        f"probe {name}": _digest_files(_source_files(name, module))
        for name, module in modules.items()
        if module.partition(".")[0] != "clsprobe"
    }


def _source_files(probe: str, module: str) -> dict[str, Path]:
    """Name -> source file of a probe's module, and of the modules of its own that it imports.

    Its own: of the same package if that is installed, otherwise all modules outside the installed packages, which are
    those that a user may edit.
    """
    from modulefinder import ModuleFinder

    find_probe(probe)  # imports its module, which may lie in the current folder
    file = Path(str(sys.modules[module].__file__)).resolve()
    root = file.parents[module.count(".") + (file.stem == "__init__")]
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    if root in installed:
        package = root / module.partition(".")[0]
        return {
            path.relative_to(root).as_posix(): path for path in (package.rglob("*.py") if package.is_dir() else [file])
        }
    folders = dict.fromkeys([root, *(Path(entry or ".").resolve() for entry in sys.path)])
    search_path = [str(folder) for folder in folders if not any(folder.is_relative_to(place) for place in installed)]
    finder = ModuleFinder(search_path, excludes=["clsprobe"])
    with suppress(Exception):  # a module that cannot be read is none that was imported
        finder.import_hook(module)
    parts: dict[str, Any] = finder.modules
    return {module: file} | {name: Path(part.__file__) for name, part in parts.items() if part.__file__}


def _digest_files(files: dict[str, Path]) -> str:
    total = sha256()
    for name, path in sorted(files.items()):
        total.update(f"{name} {file_digest(path)}\n".encode())
    return total.hexdigest()
