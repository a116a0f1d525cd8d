"""Back-ticked names in docstrings exist: in the same module, elsewhere in the packages, or in a library."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from collections.abc import Iterator
from functools import cache

import pytest
from house import ROOT, Module, imports, modules

NAME = re.compile(r"(?<!`)`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\(\))?`(?!`)")  # ``x`` is code that is shown, not a name
WORD = re.compile(r"[A-Za-z_]\w*")
FILES = (".py", ".pyi", ".json", ".yaml", ".toml", ".parquet", ".html", ".md")
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
EXCEPTIONS = {
    "clsprobe.probes.errors": {"lable"},  # a deliberate typo
    "clsprobe.probes.encoders.tokenizer_files": {"add_bos_token", "add_eos_token", "split_special_tokens"},
    "clsprobe.probes.linear": {"alpha"},  # an argument of scikit-learn's
}


def stored(node: ast.AST, kind: type[ast.Name] | type[ast.Attribute]) -> set[str]:
    """The names, or the attributes, that are assigned to in a syntax tree."""
    targets = [child for child in ast.walk(node) if isinstance(child, kind) and isinstance(child.ctx, ast.Store)]
    return {target.id if isinstance(target, ast.Name) else target.attr for target in targets}


def members(body: list[ast.stmt]) -> set[str]:
    """What a module or class binds: definitions, variables, and what the methods of a class set on self."""
    names = {node.name for node in body if isinstance(node, DEFINITIONS)}
    for node in body:
        functions = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        names |= stored(node, ast.Attribute) if functions else set()
        names |= set() if isinstance(node, DEFINITIONS) else stored(node, ast.Name)
    return names


@cache
def project() -> tuple[dict[str, set[str]], dict[str, set[str]], set[str]]:
    """Module -> its names, class -> its names and those of its bases, and all public names and libraries."""
    homes: dict[str, set[str]] = {}
    classes: dict[str, set[str]] = {}
    free = {*dir(builtins), *keyword.kwlist}
    for module in modules():
        homes[module.name] = members(module.tree.body)
        free |= {part for name in (module.name, *imports(module)) for part in name.split(".")[:1]}
        free |= set(module.name.split("."))
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, set()).update(members(node.body))
    for module in 2 * modules():  # twice: a base class may come after a class derived from it
        for node in ast.walk(module.tree):
            for base in node.bases if isinstance(node, ast.ClassDef) else ():
                classes[node.name] |= classes.get(ast.unparse(base), set())
    homes["clsprobe"] |= set(WORD.findall((ROOT / "scripts" / "__init__.pyi").read_text(encoding="utf-8")))
    free |= {name for home in (*homes.values(), *classes.values()) for name in home if not name.startswith("_")}
    return homes, classes, free


def words(module: Module) -> Iterator[str]:
    """The identifiers of a module without local variables, and the words of its strings: columns and settings."""
    prose = set(docstrings(module))
    yield from members(module.tree.body)
    for node in ast.walk(module.tree):
        for field in ("attr", "arg", "name", "asname", "module"):
            yield from str(getattr(node, field, None) or "").split(".")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in prose:
            yield from WORD.findall(node.value)
    for text in prose:
        yield from (word for code in re.findall(r"``(.+?)``", text) for word in WORD.findall(code))


def docstrings(module: Module) -> list[str]:
    """Those of the module, its classes and its functions."""
    nodes = [node for node in ast.walk(module.tree) if isinstance(node, (ast.Module, *DEFINITIONS))]
    return [text for node in nodes if (text := ast.get_docstring(node, clean=False))]


def exists(path: str, own: set[str]) -> bool:
    """Whether a dotted name exists in a module with these words, or elsewhere."""
    homes, classes, free = project()
    head, *rest = path.split(".")
    if not rest:
        return head in own | free
    before, _, last = path.rpartition(".")
    ours = {f".{name}": home for name, home in homes.items()}
    if any(name.endswith(f".{path}") for name in ours):  # a module
        return True
    homes_named = [home for name, home in ours.items() if name.endswith(f".{before}")]
    owner = before.rpartition(".")[2]
    if homes_named or owner in classes:
        return last in classes.get(owner, set()).union(*homes_named)
    of_ours = any(name.endswith(f".{head}") for name in ours)  # a package or module, which has no such name
    return head in own or (head in free and not of_ours)


def missing(module: Module) -> list[str]:
    """The back-ticked names in the docstrings of a module that do not exist."""
    own = {*words(module), *EXCEPTIONS.get(module.name, ())}
    paths = {path for text in docstrings(module) for path in NAME.findall(text) if not path.endswith(FILES)}
    return sorted(path for path in paths if not exists(path, own))


@pytest.mark.parametrize("module", modules(), ids=str)
def test_names_in_docstrings_exist(module):
    assert not missing(module)


def test_a_missing_name_is_reported():
    source = '''"""`split_up`, `Task.rows_of`, `analysis.gone.windows`; `Task.texts`, `f`, ``x``."""
def f(a):
    """`a`, `b` and `c`, `None`."""
    b = "c"
'''
    planted = Module("clsprobe.planted", ROOT / "scripts" / "planted.py", ast.parse(source))
    assert missing(planted) == ["Task.rows_of", "analysis.gone.windows", "b", "split_up"]
