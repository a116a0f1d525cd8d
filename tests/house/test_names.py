"""Public names use the project's vocabulary, and everything public has a docstring.

The vocabulary: task, text, label, split; layer, readout, cell, states; probe, strength, bits;
table, study, verdict, exhibit, answer.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from house import modules

# forbidden part of a name -> the word to use
FORBIDDEN = {
    "util": "the name of what it does",
    "utils": "the name of what it does",
    "helper": "the name of what it does",
    "helpers": "the name of what it does",
    "misc": "the name of what it does",
    "common": "the name of what it does",
    "manager": "the name of what it owns",
    "handler": "the name of what it does",
    "factory": "a function with the name of what it makes",
    "embedding_matrix": "cell",
    "feature_matrix": "cell",
    "pooling_strategy": "readout",
    "pooling_mode": "readout",
    "aggregation": "readout",
    "aggregator": "readout",
    "activations": "states",
    "representations": "states",
    "layer_idx": "layer",
    "layer_index": "layer",
    "dataframe": "table",
    "df": "table",
    "hyperparameter": "strength, or its own name",
    "experiment": "study",
    "artifact": "exhibit",
    # participles that say what happened to a thing, and not what it is
    "told": "sentence, predictions, description: what it holds",
    "asked": "task, split, question: what it holds",
    "found": "matches, result: what it holds",
    "kept": "saved, cached, selected: what it holds",
    "shown": "text, exhibits: what it holds",
}


def words(name: str) -> str:
    """ "PoolingStrategy" and "pooling_strategy" -> "_pooling_strategy_"."""
    return f"_{re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', name).lower()}_"


def forbidden(name: str) -> list[str]:
    return [f"{name}: say {better}" for word, better in FORBIDDEN.items() if f"_{word}_" in words(name)]


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """The public functions and classes of a body, and the public methods of its classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}{node.name}.")


def parameters(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    if isinstance(node, ast.ClassDef):
        return [
            part.target.id
            for part in node.body
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
        ]
    return [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]


def test_forbidden_names_are_reported():
    assert forbidden("PoolingStrategy") == ["PoolingStrategy: say readout"]
    assert forbidden("io_utils")
    assert forbidden("df")
    assert not forbidden("pooling")
    assert not forbidden("commonest")


@pytest.mark.parametrize("module", modules(), ids=str)
def test_names_use_the_vocabulary(module):
    names = module.name.split(".")
    for path, node in public(module.tree.body):
        names += [path.rsplit(".", 1)[-1], *parameters(node)]
    assert not [fault for name in names for fault in forbidden(name)]


@pytest.mark.parametrize("module", [m for m in modules() if m.tree.body], ids=str)
def test_public_names_have_docstrings(module):
    """Methods that override those of a base class may be documented there."""
    missing = [] if ast.get_docstring(module.tree) else ["the module"]
    inheriting = {name for name, node in public(module.tree.body) if isinstance(node, ast.ClassDef) and node.bases}
    missing += [
        name
        for name, node in public(module.tree.body)
        if ast.get_docstring(node) is None and name.rpartition(".")[0] not in inheriting
    ]
    assert not missing, f"{module.path.name}: no docstring"
