"""Every file that is read is opened by probes/files.py, or checked by it before a library opens it by its path."""

from __future__ import annotations

import ast

import pytest
from house import Module, modules

PATH_READERS = {"safe_open", "memmap"}  # of libraries, which open a path themselves; and np.load
CHECKS = {"open_file", "check_file"}


def reads(module: Module) -> list[str]:
    """The calls of a module that read a file unchecked, with their lines.

    A library may be given a path in a function that also checks it.
    """
    functions = [node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef)]
    checked = {id(part) for function in functions if _checks(function) for part in ast.walk(function)}
    calls = [node for node in ast.walk(module.tree) if isinstance(node, ast.Call)]
    unchecked = [call for call in calls if _opens(call) or (_hands_over(call) and id(call) not in checked)]
    return [f"line {call.lineno}: {ast.unparse(call)}" for call in unchecked]


def _opens(call: ast.Call) -> bool:
    owner, function = _name(call)
    if function in ("open", "fdopen"):
        return owner != "Image"  # of a buffer
    return function in ("read_text", "read_bytes") or (owner in ("pd", "pandas") and function.startswith("read_"))


def _hands_over(call: ast.Call) -> bool:
    owner, function = _name(call)
    return function in PATH_READERS or (owner in ("np", "numpy", "torch") and function == "load")


def _checks(function: ast.FunctionDef) -> bool:
    return any(isinstance(node, ast.Call) and _name(node)[1] in CHECKS for node in ast.walk(function))


def _name(call: ast.Call) -> tuple[str, str]:
    """("pd", "read_csv") for pd.read_csv(...), ("", "open") for open(...)."""
    if isinstance(call.func, ast.Attribute):
        return call.func.value.id if isinstance(call.func.value, ast.Name) else "", call.func.attr
    return "", call.func.id if isinstance(call.func, ast.Name) else ""


@pytest.mark.parametrize("module", [m for m in modules() if m.name != "clsprobe.probes.files"], ids=str)
def test_no_module_opens_files_itself(module):
    assert not reads(module), f"{module.path}: read through probes/files.py"


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("open(p)", True),
        ("p.open('rb')", True),
        ("os.open(p, os.O_RDONLY)", True),
        ("open_file(p)", False),
        ("self._open()", False),
        ("Image.open(buffer)", False),
        ("Path(p).read_text()", True),
        ("(a / b).read_bytes()", True),
        ("read_content(p)", False),
        ("pd.read_parquet(p)", True),
        ("read_parquet(p)", False),
        ("np.load(p)", True),
        ("Answer.load(p)", False),
        ("json.loads(text)", False),
        ("def f():\n    safe_open(p)", True),
        ("def f():\n    check_file(p)\n    safe_open(p)", False),
        ("def f():\n    check_file(p)\ndef g():\n    np.memmap(p)", True),
    ],
)
def test_unchecked_reads_are_reported(source, caught):
    assert bool(reads(Module("planted", None, ast.parse(source)))) == caught
