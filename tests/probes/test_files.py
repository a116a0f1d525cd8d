"""Files are read if they are regular, not too large, and steady; names and links in them lead nowhere else."""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path

import pytest
from outside import tree, within_deadline

from clsprobe.probes import files
from clsprobe.probes.errors import InputError
from clsprobe.probes.files import Lock, UnsuitableFile, open_file, read_content, stays_inside

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX kinds of files, and links")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(path.parent, os.O_RDONLY)  # the address of a socket is at most 107 bytes long
        server.bind(f"/proc/self/fd/{folder}/{path.name}" if os.path.isdir("/proc/self/fd") else str(path))
        os.close(folder)


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


@posix
@pytest.mark.parametrize("make", [make_pipe, make_socket, link_to_device, link_to_pipe])
def test_what_is_no_regular_file_is_not_read(tmp_path, make):
    path = tmp_path / "file"
    make(path)
    with pytest.raises(UnsuitableFile, match="not a regular file"):
        within_deadline(lambda: read_content(path), path)
    with pytest.raises(UnsuitableFile, match="not a regular file"):
        files.check_file(path)


@posix
def test_a_pipe_that_takes_the_place_of_a_checked_file_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "file")
    monkeypatch.setattr(files, "check_file", lambda path, **options: None)
    with pytest.raises(UnsuitableFile, match="not a regular file"):
        within_deadline(lambda: read_content(tmp_path / "file"), tmp_path / "file")


def test_a_folder_is_called_one(tmp_path):
    with pytest.raises(IsADirectoryError):
        read_content(tmp_path)


def test_what_is_parsed_whole_has_a_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"12345678")
    assert read_content(tmp_path / "file", largest=8) == b"12345678"
    with pytest.raises(UnsuitableFile, match=r"is larger than .* MB"):
        read_content(tmp_path / "file", largest=7)
    with (tmp_path / "sparse.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"sparse\.json: is larger than 64 MB, too large to be .* Mend it\.$"):
        files.read_json(tmp_path / "sparse.json", "Mend it")


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(0, 0))


def replace(path: Path) -> None:
    shutil.copy2(path, path.with_name("new"))
    os.replace(path.with_name("new"), path)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [append, rewrite, replace, remove])
@pytest.mark.parametrize("fails", [False, True], ids=["read", "a reader that fails"])
def test_a_file_that_changes_while_it_is_read(tmp_path, change, fails):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with pytest.raises(UnsuitableFile, match="changed while being read"), open_file(path) as file:  # noqa: PT012
        file.read(1)
        change(path)
        if fails:
            raise ValueError("half a row")


def test_another_process_may_replace_a_file_of_ours_while_it_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    with open_file(tmp_path / "file", own=True) as file:
        replace(tmp_path / "file")
        assert file.read() == b"content"


@posix
def test_a_link_is_followed_unless_the_folder_is_ours(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_content(tmp_path / "link") == read_content(tmp_path / "file", own=True) == b"content"
    with pytest.raises(UnsuitableFile, match="a link, which is not followed"):
        read_content(tmp_path / "link", own=True)


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("sub/model.safetensors", True),
        ("./sub/.hidden", True),
        ("model..v2.safetensors", True),
        ("…/模型.safetensors", True),
        ("../model.safetensors", False),
        ("sub/../../model.safetensors", False),
        ("sub/../model.safetensors", False),
        ("..", False),
        ("/etc/passwd", False),
        ("//server/share/x", False),
        ("C:model.safetensors", False),
        ("C:\\model.safetensors", False),
        ("sub\\..\\..\\x", False),
        ("\\x", False),
        ("a\0b", False),
        ("", False),
        (".", False),
        (7, False),
        (None, False),
        (["x"], False),
    ],
)
def test_names_in_files(name, inside):
    assert stays_inside(name) == inside


# --------------------------------------------------------------------------------------------------- locks and links


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder with a file, where nothing may change; both are old."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("theirs")
    for path in (folder / "file", folder):
        os.utime(path, (1e9, 1e9))
    return folder


@posix
@pytest.mark.parametrize("kind", ["file", "folder", "nothing", "pipe"])
def test_what_lies_in_the_place_of_a_lock_is_no_lock(tmp_path, outside, kind):
    """It holds nobody up, nothing is read through it, and nothing happens to what it leads to."""
    path = tmp_path / "x.lock"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(outside / {"file": "file", "folder": "", "nothing": "none"}[kind])
    before, lock = tree(outside), Lock(path)
    assert within_deadline(lock.take, path)
    assert path.is_file()
    assert not path.is_symlink()
    lock.release()
    assert not os.path.lexists(path)
    assert tree(outside) == before


@posix
def test_a_lock_that_becomes_a_link_beats_for_itself(tmp_path, outside, monkeypatch):
    monkeypatch.setattr(files, "BEAT", 0.01)
    before, lock = tree(outside), Lock(tmp_path / "x.lock")
    assert lock.take()
    (tmp_path / "link").symlink_to(outside / "file")
    os.replace(tmp_path / "link", tmp_path / "x.lock")
    time.sleep(0.1)
    lock.release()
    assert tree(outside) == before
    assert not os.path.lexists(tmp_path / "x.lock")


@posix
def test_touching_a_link_touches_the_link(tmp_path, outside):
    (tmp_path / "link").symlink_to(outside / "file")
    os.utime(tmp_path / "link", (1e9, 1e9), follow_symlinks=False)
    before = tree(outside)
    files.touch(tmp_path / "link")
    assert (tmp_path / "link").lstat().st_mtime > 1e9
    assert tree(outside) == before


@posix
def test_only_regular_temporary_files_are_removed(tmp_path, outside):
    """A link that is named like one may be anybody's; the twin, an abandoned file, goes."""
    (tmp_path / ".a.00000000-1-00000000.tmp").symlink_to(outside / "file")
    os.mkfifo(tmp_path / ".b.00000000-1-00000000.tmp")
    (tmp_path / ".c.00000000-1-00000000.tmp").write_text("half")
    for path in tmp_path.glob(".*.tmp"):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)
    before = tree(outside)
    files.remove_temporary_files(tmp_path)
    assert sorted(path.name[:2] for path in tmp_path.glob(".*.tmp")) == [".a", ".b"]
    assert tree(outside) == before
