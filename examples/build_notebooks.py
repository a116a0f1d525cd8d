"""Make the notebooks of example files: python examples/build_notebooks.py [--execute FOLDER]

1. The docstring of a file and its cells `# %% [markdown]` become text, its cells `# %%` code.
2. A cell that ends in `print(RESULT)` ends in RESULT, which a notebook shows as a table or with figures.
3. The notebooks have no outputs. With --execute they are run, and copies with outputs are written to the folder.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HERE = Path(__file__).parent
NAMES = ("which_pooling", "what_does_cls_know")
PRINTED = re.compile(r"^print\((?P<shown>[^\n]+)\)\Z", re.MULTILINE)
MARKER = re.compile(r"^# %%(?P<kind> \[markdown\])?\n", re.MULTILINE)


def build_notebook(source: str) -> nbformat.NotebookNode:
    """The notebook of an example file."""
    title, _, rest = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")
    _, *parts = MARKER.split(source)
    cells = [new_markdown_cell(f"# {title}\n\n{rest}".strip())]
    for kind, text in zip(parts[::2], parts[1::2], strict=True):
        if kind:
            cells.append(new_markdown_cell(re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE)))
        else:
            cells.append(new_code_cell(PRINTED.sub(r"\g<shown>", text.strip())))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # random otherwise
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def main(arguments: list[str]) -> None:
    """Write the notebooks; with --execute FOLDER run them as well."""
    for name in NAMES:
        notebook = build_notebook((HERE / f"{name}.py").read_text(encoding="utf-8"))
        nbformat.validate(notebook)
        (HERE / f"{name}.ipynb").write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        if arguments[:1] == ["--execute"]:
            from nbclient import NotebookClient

            folder = Path(arguments[1])
            folder.mkdir(parents=True, exist_ok=True)
            NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
            (folder / f"{name}.ipynb").write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
            print(folder / f"{name}.ipynb")


if __name__ == "__main__":
    main(sys.argv[1:])
