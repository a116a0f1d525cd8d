"""An interrupted run leaves no torn files, and the next run resumes to the same bytes.

Interruptions: failing disks, kills, power failures, two processes at once, Ctrl-C. Every check also runs against a
broken implementation, which it must catch.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import runs
from disk import Disk, Record
from runs import Forker, encode, only_folder, read_files

from clsprobe import cli
from clsprobe.probes import files
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction import extractor, store
from clsprobe.probes.extraction.store import read_manifest

pytestmark = pytest.mark.usefixtures("one_thread", "_small_sizes")
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return models.save("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def encoder(model) -> Encoder:
    return load_encoder(str(model))


@pytest.fixture
def _small_sizes(monkeypatch) -> None:
    for name, size in runs.SIZES.items():
        monkeypatch.setattr(extractor, name, size)


@pytest.fixture(scope="module")
def expected_files(model, encoder, tmp_path_factory) -> dict[str, bytes]:
    """Every file of an uninterrupted run."""
    cache = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patched:
        for name, size in runs.SIZES.items():
            patched.setattr(extractor, name, size)
        encode(encoder, cache)
    files = read_files(cache)
    assert len(files) == runs.SHARDS + 2
    return files


def check_intact(cache: Path, expected: dict[str, bytes]) -> None:
    """Every final file is complete or missing; the manifest is valid and its files exist."""
    for name, content in read_files(cache).items():
        assert name in expected, f"{name} is left over"
        if not name.endswith("manifest.json"):
            assert content == expected[name], f"{name} is torn"
    for folder in cache.glob("*"):
        if (folder / "manifest.json").exists():
            manifest = read_manifest(folder)
            assert manifest is not None, "the manifest is torn"
            assert all((folder / name).exists() for name in manifest["shards"])


# -------------------------------------------------------------------------------------------------------- failing disks

FAULTS: tuple[BaseException, ...] = (
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
    KeyboardInterrupt(),
)


def run_with_fault(encoder: Encoder, cache: Path, fail: tuple[str, int, BaseException]) -> None:
    """A run in which one call fails: it raises the right error and holds no lock."""
    kind, _, fault = fail
    raised: BaseException | None = None
    with Disk(cache.parent, fail) as disk:
        try:
            encode(encoder, cache)
        except (OSError, InputError, KeyboardInterrupt) as error:
            raised = error
    assert disk.failed, f"no such call: {kind}"
    unlocking = kind.startswith("unlink")  # harmless: the heartbeat of the lock has ended
    if isinstance(fault, KeyboardInterrupt):
        assert isinstance(raised, KeyboardInterrupt)
    elif unlocking:
        assert raised is None
    elif fault.args[0] == errno.ENOSPC:
        assert isinstance(raised, InputError)
        assert "disk full writing the cache" in raised.what
        assert "Make room (clsprobe cache purge), and run the same command to go on." in str(raised)
        assert "\n" not in str(raised)
    else:
        assert isinstance(raised, OSError | InputError)
        assert "Input/output error" in str(raised)
    locks = [path.name for path in cache.rglob("*.lock")]
    assert len(locks) <= unlocking, f"{locks} are held"


def check_faults(
    encoder: Encoder, root: Path, expected: dict[str, bytes], fails: list[tuple[str, int, BaseException]]
) -> int:
    """Every failure followed by a run that resumes. Returns the number of failures."""
    for number, fail in enumerate(fails):
        cache = root / str(number) / "disk" / "cache"
        cache.parent.mkdir(parents=True)
        run_with_fault(encoder, cache, fail)
        check_intact(cache, expected)
        with Disk(cache.parent):
            encode(encoder, cache)
        assert read_files(cache) == expected, fail
    return len(fails)


@pytest.fixture
def calls(encoder, tmp_path_factory) -> Counter[str]:
    """The number of calls of every kind in a run."""
    root = tmp_path_factory.mktemp("calls") / "disk"
    root.mkdir()
    with Disk(root) as disk:
        encode(encoder, root / "cache")
    return Counter(call.kind for call in disk.calls)


@pytest.fixture
def _impatient(monkeypatch) -> None:
    """A lock without a heartbeat is stale at once."""
    monkeypatch.setattr(files, "STALE", 0.05)


@pytest.mark.usefixtures("_impatient")
def test_a_call_that_fails_leaves_nothing_torn(encoder, expected_files, calls, tmp_path):
    """Every kind of call fails once with every error: the first call, one in the middle, the last."""
    assert {"write .shard-N.safetensors.tmp", "fsync .rows.parquet.tmp", "replace manifest.json"} < set(calls)
    choose = {FAULTS[0]: lambda n: 0, FAULTS[1]: lambda n: n // 2, FAULTS[2]: lambda n: n - 1}
    fails = [(kind, choose[fault](n), fault) for kind, n in calls.items() for fault in FAULTS]
    assert check_faults(encoder, tmp_path, expected_files, fails) >= 60


@pytest.mark.long
@pytest.mark.usefixtures("_impatient")
def test_every_call_that_fails_leaves_nothing_torn(encoder, expected_files, calls, tmp_path):
    fails = [(kind, i, fault) for kind, n in calls.items() for i in range(n) for fault in FAULTS]
    print(f"{check_faults(encoder, tmp_path, expected_files, fails)} failures")


def test_a_careless_writer_would_be_caught(encoder, expected_files, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "replacing", runs.careless)
    with pytest.raises(AssertionError, match="is torn"):
        check_faults(encoder, tmp_path, expected_files, [("write shard-N.safetensors", 2, FAULTS[0])])


def test_a_lock_left_behind_would_be_caught(encoder, expected_files, tmp_path, monkeypatch):
    monkeypatch.setattr(store.Store, "close", lambda self: None)
    with pytest.raises(AssertionError, match="are held"):
        check_faults(encoder, tmp_path, expected_files, [("write .shard-N.safetensors.tmp", 2, FAULTS[0])])


# -------------------------------------------------------------------------------------------------------- power failure


@pytest.fixture(scope="module")
def disk_record(model, encoder, tmp_path_factory) -> Record:
    root = tmp_path_factory.mktemp("record")
    with pytest.MonkeyPatch.context() as patched:
        for name, size in runs.SIZES.items():
            patched.setattr(extractor, name, size)
        with Disk(root) as disk:
            encode(encoder, root / "cache")
    return Record(disk.calls, root)


def count_faults(disk_record: Record, cuts: int, seed: int = 0) -> Counter[str]:
    """The faults after `cuts` power failures, and their counts."""
    rng = np.random.default_rng(seed)
    faults: Counter[str] = Counter()
    digests = [sha256(inode.content).hexdigest() for inode in disk_record.inodes]
    files_of_manifest: dict[int, list[tuple[Path, str]]] = {}  # inode of a manifest -> its files
    for path in (path for path in disk_record.versions if path.name == "manifest.json"):
        for inode in disk_record.versions[path]:
            shards = json.loads(bytes(disk_record.inodes[inode].content))["shards"]
            files_of_manifest[inode] = [(path.with_name(name), entry["sha256"]) for name, entry in shards.items()]
    for _ in range(cuts):
        index, names = disk_record.cut(rng)
        moment = disk_record.moments[index]
        for path, inode in names.items():
            if path not in disk_record.versions:
                continue  # not a final name
            whole = moment.length[inode] == moment.flushed[inode]
            if not whole and disk_record.content(index, inode, rng) != bytes(disk_record.inodes[inode].content):
                faults["torn"] += 1
            elif inode in files_of_manifest:
                intact = (path in names and digests[names[path]] == digest for path, digest in files_of_manifest[inode])
                faults["named, not there"] += not all(intact)
    return +faults


def test_a_power_failure_tears_nothing(disk_record):
    assert not count_faults(disk_record, 20_000)


def test_a_run_resumes_after_a_power_failure(disk_record, encoder, expected_files, tmp_path, monkeypatch):
    check_resuming_after_cuts(disk_record, encoder, expected_files, tmp_path, monkeypatch, 25)


@pytest.mark.long
def test_many_runs_resume_after_a_power_failure(disk_record, encoder, expected_files, tmp_path, monkeypatch):
    assert not count_faults(disk_record, 200_000, seed=1)
    check_resuming_after_cuts(disk_record, encoder, expected_files, tmp_path, monkeypatch, 500)


def check_resuming_after_cuts(disk_record, encoder, expected, root, monkeypatch, cuts) -> None:
    monkeypatch.setattr(files, "_process_ended", lambda host, process: True)  # after a reboot
    monkeypatch.setattr(files, "STALE", 0.05)
    rng = np.random.default_rng(2)
    files_written = 0
    for number in range(cuts):
        index, names = disk_record.cut(rng)
        disk = root / str(number)
        disk.mkdir()
        for path, inode in sorted(names.items()):
            target = disk / path.relative_to(disk_record.root)
            if path in disk_record.folders:
                target.mkdir(mode=0o700)
            else:
                target.write_bytes(disk_record.content(index, inode, rng))
                files_written += 1
        with Disk(disk):
            encode(encoder, disk / "cache")
        assert read_files(disk / "cache") == expected
    assert files_written > cuts  # there were files to resume from


@pytest.mark.parametrize(
    ("skipped", "fault"), [("files", "torn"), ("folders", "named, not there")], ids=["files", "folders"]
)
def test_a_missing_flush_would_be_caught(encoder, tmp_path, skipped, fault):
    with Disk(tmp_path) as disk:
        encode(encoder, tmp_path / "cache")
    folders = {call.path for call in disk.calls if call.what == "mkdir"}
    calls = [c for c in disk.calls if c.what != "fsync" or (c.path in folders) != (skipped == "folders")]
    assert len(calls) < len(disk.calls)
    assert count_faults(Record(calls, tmp_path), 2_000)[fault] > 20


# ------------------------------------------------------------------------------------------------------ kills and locks


@pytest.fixture(scope="module")
def forker(model) -> Iterator[Forker]:
    forker = Forker(model)
    yield forker
    forker.close()


def kill_runs(
    forker: Forker, root: Path, expected: dict[str, bytes], count: int, *, careless: bool = False
) -> Iterator[bool]:
    """Kill runs at random moments, each resuming the last; yields for every cache whether its final files differ."""
    rng = np.random.default_rng(0)
    start = time.monotonic()
    assert forker.wait(forker.encode(root / "first", careless=careless)) == 0
    duration = time.monotonic() - start
    number = 0
    while count > 0:
        cache = root / str(number)
        killed = []
        while count > 0 and len(killed) < 4:
            process = forker.encode(cache, careless=careless)
            time.sleep(rng.uniform(0, duration))
            os.kill(process, signal.SIGKILL)
            killed.append(forker.wait(process) == -signal.SIGKILL)
            count -= killed[-1]
            if not killed[-1]:
                break  # it had finished
        assert forker.wait(forker.encode(cache, careless=careless)) == 0
        yield read_files(cache) != expected
        number += 1


@posix
def test_a_killed_run_resumes_to_the_same_bytes(forker, expected_files, tmp_path):
    assert not any(kill_runs(forker, tmp_path, expected_files, 5))


@posix
@pytest.mark.long
def test_two_hundred_kills(forker, expected_files, tmp_path):
    assert not any(kill_runs(forker, tmp_path, expected_files, 200))


@posix
def test_files_torn_by_a_kill_would_be_caught(forker, expected_files, tmp_path):
    assert any(kill_runs(forker, tmp_path, expected_files, 100, careless=True))  # `any` stops at the first


@posix
def test_two_processes_share_the_work(forker, expected_files, tmp_path):
    logs = [tmp_path / name for name in ("one", "other")]
    processes = [forker.encode(tmp_path / "cache", log=path, pause=0.1) for path in logs]
    assert [forker.wait(process) for process in processes] == [0, 0]
    assert read_files(tmp_path / "cache") == expected_files
    shards = [json.loads(path.read_text()) for path in logs]
    assert all(shards)
    assert sorted([*shards[0], *shards[1]]) == [*range(runs.SHARDS)]


def finished_shards(cache: Path) -> dict[Path, int]:
    """The shards in the manifests, and when each was written."""
    manifests = {folder: read_manifest(folder) or {"shards": {}} for folder in cache.glob("*")}
    entered = [folder / name for folder, manifest in manifests.items() for name in manifest["shards"]]
    return {path: path.stat().st_mtime_ns for path in entered}


def wait_until(condition: Callable[[], Any], seconds: float = 120) -> None:
    """Wait for a condition, at most so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@posix
def test_the_lock_of_a_killed_process_blocks_nobody(forker, encoder, expected_files, tmp_path, monkeypatch):
    """The lock is broken because its process has ended, not because it is old."""
    monkeypatch.setattr(files, "STALE", np.inf)
    cache = tmp_path / "cache"
    process = forker.encode(cache, pause=1)
    wait_until(lambda: len(finished_shards(cache)) >= 2 and any(path.read_text() for path in cache.rglob("*.lock")))
    os.kill(process, signal.SIGKILL)
    assert forker.wait(process) == -signal.SIGKILL
    before = finished_shards(cache)
    assert list(cache.rglob("*.lock"))
    thread = threading.Thread(target=encode, args=(encoder, cache), daemon=True)
    thread.start()
    thread.join(120)
    assert not thread.is_alive()
    assert before.items() <= finished_shards(cache).items()
    assert read_files(cache) == expected_files


def prepare_lock(cache: Path, encoder: Encoder) -> Path:
    """The path for the lock of the third shard, in a cache that holds the first two."""
    encode(encoder, cache)
    folder = only_folder(cache)
    for number in range(2, runs.SHARDS):
        (folder / f"shard-{number:05d}.safetensors").unlink()
    store.verify(folder)
    return folder / "shard-00002.safetensors.lock"


@pytest.mark.parametrize(
    "owner",
    ['{"host": "elsewhere", "here": "ffffffff", "process": 1}', "", "{}", "null", "7", '{"here": 1, "process": "x"}'],
)
def test_a_lock_that_does_not_beat_is_broken(encoder, expected_files, tmp_path, monkeypatch, owner):
    """A lock of another host, whose processes are unknown, or one torn by a power failure."""
    monkeypatch.setattr(files, "STALE", 0.3)
    prepare_lock(tmp_path, encoder).write_text(owner)
    start = time.monotonic()
    encode(encoder, tmp_path)
    assert time.monotonic() - start > files.STALE
    assert read_files(tmp_path) == expected_files


class Clock:
    """Replaces the module `time`: a clock set by the test, which counts how often it is read."""

    time = staticmethod(time.time)

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.now


def test_a_lock_that_beats_is_respected(encoder, expected_files, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BEAT", 0.01)
    monkeypatch.setattr(files, "time", clock := Clock())
    lock = files.Lock(prepare_lock(tmp_path, encoder))
    assert lock.take()
    thread = threading.Thread(target=encode, args=(encoder, tmp_path), daemon=True)
    thread.start()
    for _ in range(3):  # each time it would nearly be stale without a heartbeat
        moved, looks = lock.path.stat().st_mtime_ns, clock.looks
        wait_until(lambda moved=moved: lock.path.stat().st_mtime_ns != moved)
        wait_until(lambda looks=looks: clock.looks >= looks + 6)  # the other thread has seen it
        clock.now += 0.9 * files.STALE
    assert thread.is_alive()
    shards = {path.name for path in finished_shards(tmp_path)} - {"rows.parquet"}
    assert shards == {f"shard-{i:05d}.safetensors" for i in range(runs.SHARDS) if i != 2}
    lock.release()
    thread.join(120)
    assert read_files(tmp_path) == expected_files


# --------------------------------------------------------------------------------------------------------------- Ctrl-C

STOPPED = "stopped; the same command goes on: clsprobe "


@posix
def test_ctrl_c_while_it_encodes_and_while_it_probes(tmp_path):
    """The command in a subprocess: one line says how to resume, and the rerun resumes."""
    flags = ["run", "--task", "grammar:tense", "--max-texts", "300", "--cache", "cache", "--out", "out"]
    code = (
        "import time\nfrom clsprobe.probes.extraction import extractor, store\nfrom clsprobe.cli import main\n"
        "extractor.SHARD, add = 30 * 56 * 384 * 4, store.Store.add\n"
        "store.Store.add = lambda *given: (time.sleep({}), add(*given))[1]\nmain()"
    )
    errors = tmp_path / "errors"

    def stopped(ready: Callable[[], bool], pause: float) -> list[str]:
        """The stderr lines of a run that is stopped once `ready` is true. pause: seconds before each shard."""
        command = [sys.executable, "-c", code.format(pause), *flags]
        with errors.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, cwd=tmp_path)
            wait_until(lambda: ready() or process.poll() is not None)
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 130
        return errors.read_text().splitlines()

    *_, encoding, last = stopped(lambda: len(finished_shards(tmp_path / "cache")) >= 3, 0.3)
    assert encoding == "encoding 300 texts with the encoder"
    assert last == STOPPED + " ".join(flags)
    before = finished_shards(tmp_path / "cache")
    assert "rows.parquet" not in {path.name for path in before}
    *_, probing, last = stopped(lambda: "probing" in errors.read_text(), 0)
    assert probing == "probing 112 cells for 1 task"
    assert last == STOPPED + " ".join(flags)
    assert before.items() <= finished_shards(tmp_path / "cache").items()


@posix
def test_a_run_that_ignores_ctrl_c_is_ended(tmp_path):
    """A timer ends it within the documented two seconds; the interrupted code here never returns."""
    assert cli.PATIENCE < 2
    code = (
        "import time\nfrom clsprobe import cli\n"
        "def deaf(**_):\n"
        "    print('here', flush=True)\n"
        "    while True:\n"
        "        try: time.sleep(60)\n"
        "        except BaseException: pass\n"
        "cli.app = deaf\ncli.main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, "run"], stdout=-1, stderr=-1, text=True, cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120) == ("", STOPPED + "run\n")
    assert process.returncode == 130


@posix
@pytest.mark.long
def test_ctrl_c_at_any_moment(model, tmp_path):
    table = tmp_path / "d.csv"
    table.write_text("text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(runs.TEXTS)))
    forker = Forker(model, "clsprobe.cli", "clsprobe.analysis.sweep.grid")
    flags = ["run", "--task", f"file:{table}", "--model", model, "--cache", tmp_path / "cache"]
    duration = np.inf
    for number in range(2):  # the first one may compile, or the machine may be busy
        start = time.monotonic()
        first_run = [*flags[:-1], tmp_path / f"whole{number}", "--out", tmp_path / f"first{number}"]
        assert forker.wait(forker.command(*first_run, errors=tmp_path / "errors")) == 0
        duration = min(duration, time.monotonic() - start)
    rng = np.random.default_rng(0)
    codes: Counter[int] = Counter()
    slowest = 0.0
    for number in range(100):
        arguments = [*flags[:-1], tmp_path / f"cache{number // 5}", "--out", tmp_path / f"out{number}"]
        process = forker.command(*arguments, errors=tmp_path / "errors")
        time.sleep(0.1 + rng.uniform(0, duration))
        start = time.monotonic()
        os.kill(process, signal.SIGINT)
        codes[code := forker.wait(process)] += 1
        errors = (tmp_path / "errors").read_text()
        assert "Traceback" not in errors
        assert "Exception" not in errors
        if code == 130:
            slowest = max(slowest, time.monotonic() - start)
            assert errors.splitlines()[-1] == STOPPED + " ".join(map(str, arguments))
            assert errors.count(STOPPED) == 1
    forker.close()
    print(codes, f"slowest {slowest:.2f} s")
    assert set(codes) <= {0, 130}
    assert codes[130] > 50
    assert slowest < 2.5
