"""Packages of other people: modules and the metadata of an installation, in a folder on the path."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def install(
    site: Path, package: str, modules: Mapping[str, str], names: Mapping[str, Mapping[str, str]], version: str = "1.0"
) -> None:
    """Write what an installer would.

    modules: "stranger/probes.py" -> source. names: group of entry points -> name -> ``package.module:Name``.
    """
    for name, source in modules.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(source)
    metadata = site / f"{package}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    groups = [f"[{group}]\n" + "".join(f"{n} = {value}\n" for n, value in of.items()) for group, of in names.items()]
    (metadata / "entry_points.txt").write_text("\n".join(groups))


@contextmanager
def on_path(*folders: Path) -> Iterator[None]:
    """Within the block, modules and metadata in these folders are found; afterwards their modules are forgotten."""
    before = [*sys.path]
    sys.path.extend(map(str, folders))
    try:
        yield
    finally:
        sys.path[:] = before
        for name, module in [*sys.modules.items()]:
            file = getattr(module, "__file__", None)
            if file and any(Path(file).is_relative_to(folder) for folder in folders):
                del sys.modules[name]
