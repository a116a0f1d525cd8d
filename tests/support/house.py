"""What the house tests share: the source files of the packages, as syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
# folder -> the name it is imported by
PACKAGES = {
    "probes": "clsprobe.probes",
    "analysis": "clsprobe.analysis",
    "reports": "clsprobe.reports",
    "scripts": "clsprobe",
}


@dataclass(frozen=True)
class Module:
    """One source file: the name it is imported by, and its syntax tree."""

    name: str
    path: Path
    tree: ast.Module

    def __str__(self) -> str:
        return self.name


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the packages, whatever there is on disk today."""
    found = []
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path))))
    return tuple(found)


def imports(module: Module, *, at_import_time: bool = False) -> Iterator[str]:
    """The dotted names a module imports, those for the type checker left out.

    ``from a import b`` gives "a" and "a.b", since b may be a module.
    at_import_time: those inside functions are left out too.
    """
    todo: list[ast.AST] = [module.tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            todo += node.orelse
            continue
        if at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:  # from .b import c
                is_package = module.path.name == "__init__.py"
                base = module.name.split(".")[: len(module.name.split(".")) - node.level + is_package]
                source = ".".join([*base, *([source] if source else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)
        todo += ast.iter_child_nodes(node)


def graph() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports, deferred imports counted.

    The lazy public face is no node: it names what lies on every floor.
    """
    names = {module.name: module for module in modules() if module.tree.body}
    del names["clsprobe"]
    return {name: {each for each in imports(module) if each in names} - {name} for name, module in names.items()}


def cycles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other (the strongly connected components of more than one)."""
    reached = {start: _reached(start, arrows) for start in arrows}
    groups = {frozenset(b for b in arrows if b in reached[a] and a in reached[b]) for a in arrows}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _reached(start: str, arrows: dict[str, set[str]]) -> set[str]:
    seen, todo = set[str](), [start]
    while todo:
        for name in arrows.get(todo.pop(), ()):
            if name not in seen:
                seen.add(name)
                todo.append(name)
    return seen
