"""What a docstring names in back-ticks exists: in its own module, elsewhere in the packages, or in a library."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from functools import cache

import pytest
from house import Module, imports, modules

IDENTIFIER = re.compile(r"(?<!`)`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\(\))?`(?!`)")  # ``x`` is code, not a name
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
EXCEPTIONS: dict[str, set[str]] = {}  # module -> names that it may use as words


def words(tree: ast.AST, docstrings: set[str]) -> Iterator[str]:
    """Every identifier of a syntax tree: of the code, and in its strings, where columns and settings have their names."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            if isinstance(word := getattr(node, field, None), str):
                yield from word.split(".")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
            yield from re.findall(r"[A-Za-z_]\w*", node.value)


def docstrings(tree: ast.Module) -> set[str]:
    found = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, DOCUMENTED)}
    return {text for text in found if text}


def members(body: list[ast.stmt]) -> set[str]:
    """The names that a module or a class binds, with those that its methods bind on self."""
    names = {node.name for node in body if isinstance(node, DOCUMENTED[1:])}
    for node in (each for statement in body for each in ast.walk(statement)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


@cache
def project() -> tuple[dict[str, set[str]], dict[str, set[str]], set[str]]:
    """Module and class name -> names in it; the libraries that anybody imports."""
    homes, classes, libraries = {}, {}, set()
    for module in modules():
        homes[module.name] = members(module.tree.body)
        libraries |= {name.split(".")[0] for name in imports(module)} - {"clsprobe"}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                inherited = [base.id for base in node.bases if isinstance(base, ast.Name)]
                classes.setdefault(node.name, set()).update(members(node.body), inherited)
    return homes, classes, libraries


def exists(path: str, own: set[str]) -> bool:
    """Whether a dotted name means something, beside the words of the module itself."""
    homes, classes, libraries = project()
    head, *rest = path.split(".")
    if not rest:
        names = {name for home in homes.values() for name in home if not name.startswith("_")}
        parts = {part for home in homes for part in home.split(".")}
        return head in own | names | parts | libraries | set(dir(builtins))
    for name, home in homes.items():
        for length in range(1, len(rest) + 1):
            if f".{name}".endswith(f".{'.'.join([head, *rest][:length])}"):
                first, *more = [head, *rest][length:]
                if first in home and (not more or first not in classes or more[0] in inherited(first)):
                    return True
    if any(f".{name}".endswith(f".{path}") for name in homes):
        return True
    if head in classes:
        return rest[0] in inherited(head)
    is_module = any(name.rpartition(".")[2] == head for name in homes)
    return head in libraries | set(dir(builtins)) or (not is_module and head in own and rest[0] in own)


def inherited(name: str) -> set[str]:
    """The members of a class and of those of its bases that are ours."""
    own = project()[1].get(name, set())
    return own.union(*(inherited(base) for base in own if base != name and base in project()[1]))


def missing(module: Module) -> list[str]:
    """What the docstrings of a module name, and nothing is called."""
    texts = docstrings(module.tree)
    own = set(words(module.tree, texts)) | EXCEPTIONS.get(module.name, set())
    return sorted({path for text in texts for path in IDENTIFIER.findall(text) if not exists(path, own)})


@pytest.mark.parametrize("module", modules(), ids=str)
def test_what_docstrings_name_exists(module):
    assert not missing(module)
