"""Everything that is written goes through probes/files.py, and probes/files.py writes whole files or nothing."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from house import Module, modules

from clsprobe.probes import files

# Calls that write to an argument, which must be a file that `replacing` opened, or a buffer in memory.
SAVERS = {"save", "savez", "savez_compressed", "savetxt", "tofile", "save_file", "savefig", "save_pretrained"} | {
    f"to_{format}" for format in ("csv", "parquet", "json", "html", "latex", "excel", "feather", "pickle", "markdown")
}
MODULES_THAT_SAVE = {"np", "numpy", "torch", "safetensors"}  # whose plain `save` is a saver; Answer.save is ours
DUMPERS = {"json", "yaml", "pickle", "marshal"}  # whose `dump` takes the file second
MOVERS = {("os", n) for n in ("rename", "replace", "makedirs", "mkdir", "link", "symlink")} | {
    ("shutil", n) for n in ("copy", "copy2", "copyfile", "copytree", "move")
}

MODE = re.compile(r"[rbt]*[wax+][wax+bt]*")  # of a file to be written


def writes(module: Module) -> list[str]:
    """The calls of a module that write to the disk directly, with their lines."""
    safe = {"files"}  # as in files.write_text(...)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.With):
            safe |= {
                _name(i.optional_vars) for i in node.items if i.optional_vars and _called(i.context_expr) == "replacing"
            }
        elif isinstance(node, ast.Assign) and _called(node.value) in ("BytesIO", "StringIO"):
            safe |= {_name(target) for target in node.targets}
    calls = [node for node in ast.walk(module.tree) if isinstance(node, ast.Call)]
    return [f"line {call.lineno}: {ast.unparse(call)}" for call in calls if _writes(call, safe)]


def _writes(call: ast.Call, safe: set[str]) -> bool:
    function = _called(call)
    owner = _name(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    named = [
        keyword.value for keyword in call.keywords if keyword.arg in ("path", "path_or_buf", "fname", "file", "buf")
    ]
    if function in ("open", "fdopen"):
        after_the_path = call.args[isinstance(call.func, ast.Name) :]  # of open(path, mode) and path.open(mode)
        modes = [*after_the_path, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        return any(isinstance(m, ast.Constant) and MODE.fullmatch(str(m.value)) for m in modes)
    if function in ("write_text", "write_bytes", "touch", "mkdir"):
        return isinstance(call.func, ast.Attribute) and owner not in safe
    if (owner, function) in MOVERS:
        return True
    if function == "dump" and owner in DUMPERS:
        return len(call.args) < 2 or _name(call.args[1]) not in safe
    if function in SAVERS and (function != "save" or owner in MODULES_THAT_SAVE):
        targets = [*call.args[:2], *named]  # np.save takes the file first, torch.save second
        return bool(targets) and not any(
            _name(target) in safe or (isinstance(target, ast.Constant) and target.value is None) for target in targets
        )
    return False


def _called(node: ast.expr) -> str:
    """ "replacing" for replacing(...) and for files.replacing(...)."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else _name(node.func)


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("module", [m for m in modules() if m.name != "clsprobe.probes.files"], ids=str)
def test_no_module_writes_directly(module):
    assert not writes(module), f"{module.path}: write through probes/files.py"


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("open(p, 'w')", True),
        ("open(p, mode='ab')", True),
        ("p.open('xb')", True),
        ("open(p)", False),
        ("p.open('rb')", False),
        ("open('w')", False),
        ("p.write_text(t)", True),
        ("write_text(p, t)", False),
        ("files.write_text(p, t)", False),
        ("np.save(p, a)", True),
        ("torch.save(a, p)", True),
        ("with files.replacing(p) as file:\n    torch.save(a, file)", False),
        ("answer.save(p)", False),
        ("t.to_csv(p)", True),
        ("t.to_csv()", False),
        ("t.to_csv(None, sep=';')", False),
        ("t.to_parquet(path=p)", True),
        ("with replacing(p) as file:\n    t.to_parquet(file)", False),
        ("buffer = io.StringIO()\nfigure.savefig(buffer)", False),
        ("figure.savefig(p)", True),
        ("json.dump(x, f)", True),
        ("json.dumps(x)", False),
        ("os.replace(a, b)", True),
        ("name.replace('a', 'b')", False),
        ("p.mkdir()", True),
    ],
)
def test_direct_writes_are_reported(source, caught):
    assert bool(writes(Module("planted", Path("planted.py"), ast.parse(source)))) == caught


def test_the_new_content_replaces_the_old(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old\n")
    files.write_text(path, "né\r\nw\n")
    assert path.read_bytes() == "né\r\nw\n".encode()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_whole_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(error), files.replacing(path) as file:  # noqa: PT012 - the failure comes after the writing
        file.write(b"half of the ne")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch, step):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_writer_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    code = f"""
import os
from clsprobe.probes.files import replacing
with replacing({str(path)!r}) as file:
    file.write(b"half of the ne")
    file.flush()
    os.kill(os.getpid(), {int(signal.SIGKILL)})"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_the_content_is_on_the_disk_before_the_name_changes(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor):
        steps.append("folder" if os.path.isdir(f"/dev/fd/{descriptor}") else f"file of {os.fstat(descriptor).st_size}")
        fsync(descriptor)

    def recorded_replace(source, target):
        steps.append("rename")
        assert Path(source).parent == Path(target).parent, "a rename is atomic only inside one folder"
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", recorded_fsync)
    monkeypatch.setattr(files.os, "replace", recorded_replace)
    files.write_text(tmp_path / "a.txt", "12345")
    assert steps[:2] == ["file of 5", "rename"]
    assert len(steps) == (2 if os.name == "nt" else 3)  # and then the folder


def test_a_table_comes_back(tmp_path):
    table = pd.DataFrame({"layer": [0, 1], "value": [0.25, 0.5], "readout": ["cls", "mean"]}, index=[7, 9])
    files.write_parquet(tmp_path / "t.parquet", table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table.reset_index(drop=True))


def test_folders_are_made_with_their_parents(tmp_path):
    assert files.make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()
    files.make_folder(tmp_path / "a" / "b")
