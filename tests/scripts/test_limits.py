"""Too little memory is one line: refused before a library hangs on it, and named whatever else an error says."""

from __future__ import annotations

import errno
import re
import subprocess
import sys

import pytest
from commands import call

from clsprobe import limits
from clsprobe.probes.errors import InputError

resource = pytest.importorskip("resource")

LIMITED = "the 3,000 MB that this process may take (ulimit -v) are too few. Raise the limit: ulimit -v unlimited."
SHORT = "there is not enough memory. End other programs, or read fewer texts: --max-texts."


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (
            ["run", "--task", "grammar:tense:60"],
            2,
            "error: memory: this process may take 300 MB (ulimit -v), and needs 2,048 MB or more. "
            "Raise the limit: ulimit -v unlimited.\n",
        ),
        (["list", "probes"], 0, ""),
    ],
)
def test_a_command_ends_under_a_limit_that_libraries_do_not_stand(arguments, code, line, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))

    command = [sys.executable, "-m", "clsprobe", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, preexec_fn=limit, timeout=60)
    assert (done.returncode, done.stderr) == (code, line)
    assert [*tmp_path.iterdir()] == []


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    """The error as it is where it was raised while a cause was handled."""
    try:
        try:
            raise cause or KeyError
        except Exception:
            raise error from None
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (MemoryError(), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
        (raised(InputError("a model", "its tokenizer cannot be loaded", "Is it whole?"), MemoryError()), "a model"),
        (InputError("d.csv", "is empty"), None),
        (RuntimeError("can't start new thread"), None),
        (ImportError("No module named 'umap'"), None),
    ],
)
@pytest.mark.parametrize(("limit", "rest"), [(3000 << 20, LIMITED), (resource.RLIM_INFINITY, SHORT)])
def test_a_shortage_is_told_from_other_errors(error, where, limit, rest, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    described = limits.describe_shortage(error)
    if "thread" in str(error) and rest == LIMITED:
        where = "memory"  # the stack of a thread is part of the limit; without one there may be too many threads
    assert str(described) == (f"{where}: {rest}" if where else "None")


def test_the_command_says_so_in_one_line(monkeypatch, capsys):
    def fail():
        raise MemoryError

    monkeypatch.setattr("clsprobe.listing._list_probes", fail)
    assert call("list", "probes") == 2
    assert re.fullmatch(r"error: memory: .+ (Raise the limit|End other programs).*\n", capsys.readouterr().err)
    with pytest.raises(MemoryError):
        call("list", "probes", "--debug")
