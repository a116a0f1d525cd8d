"""Imports run one way, and nothing heavy is loaded before it is needed.

errors, files, hub, metric, notebook, plugins, randomness, registry -> tasks -> encoders -> extraction -> base -> the
probes -> training, interventions -> decoders -> answers and what draws them -> reports -> analysis -> scripts
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib

import pytest
from house import PACKAGES, ROOT, Module, cycles, graph, imports, modules

# A module may import from its own floor and those below. A module of probes/ that is not listed is a probe.
FLOORS = (
    tuple(
        f"clsprobe.probes.{name}"
        for name in ("errors", "files", "hub", "metric", "notebook", "plugins", "randomness", "registry")
    ),
    ("clsprobe.probes.tasks",),
    ("clsprobe.probes.encoders",),
    ("clsprobe.probes.extraction",),
    ("clsprobe.probes.base",),
    ("clsprobe.probes",),
    ("clsprobe.probes.training", "clsprobe.probes.interventions"),
    ("clsprobe.probes.decoders",),
    ("clsprobe.analysis.answer", "clsprobe.analysis.plots", "clsprobe.analysis.table", "clsprobe.analysis.verdict"),
    ("clsprobe.reports",),
    ("clsprobe.analysis",),
    ("clsprobe",),
)
TABLES_ONLY = (
    "clsprobe.analysis.answer",
    "clsprobe.analysis.study",
    "clsprobe.analysis.stats",
    "clsprobe.analysis.plots",
)
HEAVY = {"torch", "transformers", "sklearn", "umap", "captum", "seaborn"}
NAMES = {module.name for module in modules()}


def floor(name: str) -> int | None:
    """The floor of the longest known prefix of a dotted name; None for what is not ours."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        for height, names in enumerate(FLOORS):
            if ".".join(parts[:length]) in names:
                return height
    return None


def upward_imports(module: Module) -> list[str]:
    own = floor(module.name)
    assert own is not None
    return [
        name
        for name in imports(module)
        # `from clsprobe.probes import tasks` names the package first; the module it means is listed after it.
        if name not in PACKAGES.values() and (other := floor(name)) is not None and other > own
    ]


@pytest.mark.parametrize("module", modules(), ids=str)
def test_imports_run_one_way(module):
    assert not upward_imports(module), f"{module.name} imports from above"


def test_an_import_from_above_is_reported():
    source = (
        "import clsprobe.probes.tasks.task\n"
        "def f():\n    from clsprobe.analysis import study\n    from .linear import LogisticProbe\n"
    )
    planted = Module("clsprobe.probes.base", ROOT / "probes" / "base.py", ast.parse(source))
    assert set(upward_imports(planted)) == {
        "clsprobe.analysis.study",
        "clsprobe.probes.linear",
        "clsprobe.probes.linear.LogisticProbe",
    }


def test_no_module_imports_itself_by_way_of_others():
    assert not cycles(graph())


def test_a_cycle_is_reported():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert not cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


@pytest.mark.parametrize("name", sorted(name for name in NAMES if name.startswith(TABLES_ONLY)))
def test_conclusions_see_tables_only(name):
    (module,) = (m for m in modules() if m.name == name)
    imported = set(imports(module))
    assert not {name.split(".")[0] for name in imported} & {"torch", "transformers", "sklearn"}
    assert not [name for name in imported if name.startswith("clsprobe.probes.") and floor(name) != 0]


@pytest.mark.parametrize("module", modules(), ids=str)
def test_drawing_and_explaining_libraries_are_imported_where_they_are_used(module):
    at_once = {name.split(".")[0] for name in imports(module, at_import_time=True)}
    assert not at_once & {"umap", "captum", "seaborn"}


LIGHT = {
    "clsprobe": HEAVY | {"pandas", "numpy"},
    "clsprobe.probes": HEAVY | {"pandas", "numpy"},
    "clsprobe.probes.errors": HEAVY | {"pandas", "numpy"},
    "clsprobe.probes.files": HEAVY | {"pandas", "numpy"},
    "clsprobe.probes.hub": HEAVY | {"pandas", "numpy", "huggingface_hub"},
    "clsprobe.probes.tasks.task": HEAVY | {"pandas", "pyarrow", "datasets"},
    "clsprobe.probes.tasks.split": {"torch", "transformers"},
    "clsprobe.probes.encoders.loading": HEAVY | {"pandas", "tokenizers", "huggingface_hub"},
    "clsprobe.probes.extraction.readouts": HEAVY | {"pandas"},
    "clsprobe.probes.extraction.vectors": HEAVY | {"pandas"},
    "clsprobe.analysis.answer": HEAVY | {"pandas"},
    "clsprobe.analysis.study": HEAVY,
    "clsprobe.analysis.stats": {"torch", "transformers", "sklearn"},
    "clsprobe.analysis.plots": {"torch", "transformers", "sklearn", "umap", "captum"},
    "clsprobe.analysis.sources": HEAVY | {"pandas"},
    "clsprobe.analysis.sources.grammar": HEAVY | {"pandas"},
    "clsprobe.analysis.sources.file": HEAVY,
    "clsprobe.reports.page": {"torch", "transformers", "sklearn", "umap", "captum"},
    "clsprobe.cli": HEAVY,
}


@pytest.mark.parametrize("name", [name for name in LIGHT if name in NAMES])
def test_nothing_heavy_is_loaded_on_import(name):
    code = f"import sys, {name}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not LIGHT[name] & set(loaded)


def test_every_package_is_installed():
    """pyproject lists the packages one by one; a new folder is easily forgotten."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(m.name for m in modules() if m.path.name == "__init__.py")
