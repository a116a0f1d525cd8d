"""Whatever happens to a run, nothing torn is left, and the next one goes on to the same bytes.

Disks that fail, processes that are killed, power that fails, two processes at once, too little memory, Ctrl-C. Every
campaign has a broken twin: the same on a version without the care, which it must catch.
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

pytestmark = pytest.mark.usefixtures("one_thread", "_small")
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return models.save("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def encoder(model) -> Encoder:
    return load_encoder(str(model))


@pytest.fixture
def _small(monkeypatch) -> None:
    for name, size in runs.SIZES.items():
        monkeypatch.setattr(extractor, name, size)


@pytest.fixture(scope="module")
def undisturbed(model, encoder, tmp_path_factory) -> dict[str, bytes]:
    """Every file of a run that nothing happens to."""
    cache = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patched:
        for name, size in runs.SIZES.items():
            patched.setattr(extractor, name, size)
        encode(encoder, cache)
    files = read_files(cache)
    assert len(files) == runs.SHARDS + 2
    return files


def check_whole(cache: Path, wanted: dict[str, bytes]) -> None:
    """Under every final name stands what belongs there, or nothing; the manifest is sound and its files are there."""
    for name, content in read_files(cache).items():
        assert name in wanted, f"{name} is left over"
        if not name.endswith("manifest.json"):
            assert content == wanted[name], f"{name} is torn"
    for folder in cache.glob("*"):
        if (folder / "manifest.json").exists():
            manifest = read_manifest(folder)
            assert manifest is not None, "the manifest is torn"
            assert all((folder / name).exists() for name in manifest["shards"])


# ------------------------------------------------------------------------------------------------------ disks that fail

FAULTS: tuple[BaseException, ...] = (
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
    KeyboardInterrupt(),
)


def disturbed(encoder: Encoder, cache: Path, fail: tuple[str, int, BaseException]) -> None:
    """A run in which one call fails: the right error, nothing torn, nothing left over, no lock held."""
    kind, _, fault = fail
    told: BaseException | None = None
    with Disk(cache.parent, fail) as disk:
        try:
            encode(encoder, cache)
        except (OSError, InputError, KeyboardInterrupt) as error:
            told = error
    assert disk.failed, f"no such call: {kind}"
    unlocking = kind.startswith("unlink")  # a lock that cannot be removed does no harm: it beats no more
    if isinstance(fault, KeyboardInterrupt):
        assert isinstance(told, KeyboardInterrupt)
    elif unlocking:
        assert told is None
    elif fault.args[0] == errno.ENOSPC:
        assert isinstance(told, InputError)
        assert "disk full writing the cache" in told.what
        assert "Make room (clsprobe cache purge), and run the same command to go on." in str(told)
        assert "\n" not in str(told)
    else:
        assert isinstance(told, OSError | InputError)
        assert "Input/output error" in str(told)
    locks = [path.name for path in cache.rglob("*.lock")]
    assert len(locks) <= unlocking, f"{locks} are held"


def campaign(
    encoder: Encoder, root: Path, wanted: dict[str, bytes], fails: list[tuple[str, int, BaseException]]
) -> int:
    """Each of these failures, then a run that goes on; how many there were."""
    for number, fail in enumerate(fails):
        cache = root / str(number) / "disk" / "cache"
        cache.parent.mkdir(parents=True)
        disturbed(encoder, cache, fail)
        check_whole(cache, wanted)
        with Disk(cache.parent):
            encode(encoder, cache)
        assert read_files(cache) == wanted, fail
    return len(fails)


@pytest.fixture
def calls(encoder, tmp_path_factory) -> Counter[str]:
    """How many calls of every kind a run makes."""
    root = tmp_path_factory.mktemp("calls") / "disk"
    root.mkdir()
    with Disk(root) as disk:
        encode(encoder, root / "cache")
    return Counter(call.kind for call in disk.calls)


@pytest.fixture
def _impatient(monkeypatch) -> None:
    """A lock is stale at once, where its owner lives but does not beat."""
    monkeypatch.setattr(files, "STALE", 0.05)


@pytest.mark.usefixtures("_impatient")
def test_a_call_that_fails_leaves_nothing_torn(encoder, undisturbed, calls, tmp_path):
    """Every kind of call fails once with every error: the first, one in the middle, the last."""
    assert {"write .shard-N.safetensors.tmp", "fsync .rows.parquet.tmp", "replace manifest.json"} < set(calls)
    at = {FAULTS[0]: lambda n: 0, FAULTS[1]: lambda n: n // 2, FAULTS[2]: lambda n: n - 1}
    fails = [(kind, at[fault](n), fault) for kind, n in calls.items() for fault in FAULTS]
    assert campaign(encoder, tmp_path, undisturbed, fails) >= 60


@pytest.mark.long
@pytest.mark.usefixtures("_impatient")
def test_every_call_that_fails_leaves_nothing_torn(encoder, undisturbed, calls, tmp_path):
    fails = [(kind, i, fault) for kind, n in calls.items() for i in range(n) for fault in FAULTS]
    print(f"{campaign(encoder, tmp_path, undisturbed, fails)} failures")


def test_a_careless_writer_would_be_caught(encoder, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "replacing", runs.careless)
    with pytest.raises(AssertionError, match="is torn"):
        campaign(encoder, tmp_path, undisturbed, [("write shard-N.safetensors", 2, FAULTS[0])])


def test_a_lock_that_stays_would_be_caught(encoder, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(store.Store, "close", lambda self: None)
    with pytest.raises(AssertionError, match="are held"):
        campaign(encoder, tmp_path, undisturbed, [("write .shard-N.safetensors.tmp", 2, FAULTS[0])])


# ------------------------------------------------------------------------------------------------- the power that fails


@pytest.fixture(scope="module")
def record(model, encoder, tmp_path_factory) -> Record:
    root = tmp_path_factory.mktemp("record")
    with pytest.MonkeyPatch.context() as patched:
        for name, size in runs.SIZES.items():
            patched.setattr(extractor, name, size)
        with Disk(root) as disk:
            encode(encoder, root / "cache")
    return Record(disk.calls, root)


def torn(record: Record, cuts: int, seed: int = 0) -> Counter[str]:
    """What is wrong after so many power failures, and how often."""
    rng = np.random.default_rng(seed)
    found: Counter[str] = Counter()
    digests = [sha256(inode.content).hexdigest() for inode in record.inodes]
    named: dict[int, list[tuple[Path, str]]] = {}  # of every manifest, the files that it names
    for path in (path for path in record.versions if path.name == "manifest.json"):
        for inode in record.versions[path]:
            shards = json.loads(bytes(record.inodes[inode].content))["shards"]
            named[inode] = [(path.with_name(name), entry["sha256"]) for name, entry in shards.items()]
    for _ in range(cuts):
        at, names = record.cut(rng)
        moment = record.moments[at]
        for path, inode in names.items():
            if path not in record.versions:
                continue  # no final name
            whole = moment.length[inode] == moment.flushed[inode]
            if not whole and record.content(at, inode, rng) != bytes(record.inodes[inode].content):
                found["torn"] += 1
            elif inode in named:
                there = (path in names and digests[names[path]] == digest for path, digest in named[inode])
                found["named, not there"] += not all(there)
    return +found


def test_a_power_failure_tears_nothing(record):
    assert not torn(record, 20_000)


def test_a_run_goes_on_after_a_power_failure(record, encoder, undisturbed, tmp_path, monkeypatch):
    resumed_after_cuts(record, encoder, undisturbed, tmp_path, monkeypatch, 25)


@pytest.mark.long
def test_many_runs_go_on_after_a_power_failure(record, encoder, undisturbed, tmp_path, monkeypatch):
    assert not torn(record, 200_000, seed=1)
    resumed_after_cuts(record, encoder, undisturbed, tmp_path, monkeypatch, 500)


def resumed_after_cuts(record, encoder, wanted, root, monkeypatch, cuts) -> None:
    monkeypatch.setattr(files, "_process_ended", lambda here, process: True)  # the machine was started again
    monkeypatch.setattr(files, "STALE", 0.05)
    rng = np.random.default_rng(2)
    left = 0
    for number in range(cuts):
        at, names = record.cut(rng)
        disk = root / str(number)
        disk.mkdir()
        for path, inode in sorted(names.items()):
            target = disk / path.relative_to(record.root)
            if path in record.folders:
                target.mkdir(mode=0o700)
            else:
                target.write_bytes(record.content(at, inode, rng))
                left += 1
        with Disk(disk):
            encode(encoder, disk / "cache")
        assert read_files(disk / "cache") == wanted
    assert left > cuts  # there was something to go on from


@pytest.mark.parametrize(
    ("without", "found"), [("files", "torn"), ("folders", "named, not there")], ids=["files", "folders"]
)
def test_a_missing_flush_would_be_caught(encoder, tmp_path, without, found):
    with Disk(tmp_path) as disk:
        encode(encoder, tmp_path / "cache")
    folders = {call.path for call in disk.calls if call.what == "mkdir"}
    calls = [c for c in disk.calls if c.what != "fsync" or (c.path in folders) != (without == "folders")]
    assert len(calls) < len(disk.calls)
    assert torn(Record(calls, tmp_path), 2_000)[found] > 20


# ------------------------------------------------------------------------------------------------- kill -9, and others


@pytest.fixture(scope="module")
def forker(model) -> Iterator[Forker]:
    forker = Forker(model)
    yield forker
    forker.close()


def kills(
    forker: Forker, root: Path, wanted: dict[str, bytes], count: int, *, careless: bool = False
) -> Iterator[bool]:
    """Runs killed at random moments, each going on where the last one was killed; which of them differed in the end."""
    rng = np.random.default_rng(0)
    begun = time.monotonic()
    assert forker.wait(forker.encode(root / "first", careless=careless)) == 0
    takes = time.monotonic() - begun
    number = 0
    while count > 0:
        cache = root / str(number)
        killed = []
        while count > 0 and len(killed) < 4:
            process = forker.encode(cache, careless=careless)
            time.sleep(rng.uniform(0, takes))
            os.kill(process, signal.SIGKILL)
            killed.append(forker.wait(process) == -signal.SIGKILL)
            count -= killed[-1]
            if not killed[-1]:
                break  # it was done
        assert forker.wait(forker.encode(cache, careless=careless)) == 0
        yield read_files(cache) != wanted
        number += 1


@posix
def test_a_run_that_is_killed_goes_on_to_the_same_bytes(forker, undisturbed, tmp_path):
    assert not any(kills(forker, tmp_path, undisturbed, 5))


@posix
@pytest.mark.long
def test_two_hundred_kills(forker, undisturbed, tmp_path):
    assert not any(kills(forker, tmp_path, undisturbed, 200))


@posix
def test_what_a_kill_tears_would_be_seen(forker, undisturbed, tmp_path):
    assert any(kills(forker, tmp_path, undisturbed, 100, careless=True))  # it ends with the first


@posix
def test_two_processes_share_the_work(forker, undisturbed, tmp_path):
    made = [tmp_path / name for name in ("one", "other")]
    processes = [forker.encode(tmp_path / "cache", made=path, pause=0.1) for path in made]
    assert [forker.wait(process) for process in processes] == [0, 0]
    assert read_files(tmp_path / "cache") == undisturbed
    shards = [json.loads(path.read_text()) for path in made]
    assert all(shards)
    assert sorted([*shards[0], *shards[1]]) == [*range(runs.SHARDS)]


def finished(cache: Path) -> dict[Path, int]:
    """The shards that are entered, and when each was written."""
    manifests = {folder: read_manifest(folder) or {"shards": {}} for folder in cache.glob("*")}
    entered = [folder / name for folder, manifest in manifests.items() for name in manifest["shards"]]
    return {path: path.stat().st_mtime_ns for path in entered}


def until(done: Callable[[], Any], seconds: float = 120) -> None:
    """Wait for something, but not for ever."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


@posix
def test_the_lock_of_a_killed_process_holds_nobody_up(forker, encoder, undisturbed, tmp_path, monkeypatch):
    """It is broken because its process is gone, not because it has not moved for a while."""
    monkeypatch.setattr(files, "STALE", np.inf)
    cache = tmp_path / "cache"
    process = forker.encode(cache, pause=1)
    until(lambda: len(finished(cache)) >= 2 and any(path.read_text() for path in cache.rglob("*.lock")))
    os.kill(process, signal.SIGKILL)
    assert forker.wait(process) == -signal.SIGKILL
    before = finished(cache)
    assert list(cache.rglob("*.lock"))
    other = threading.Thread(target=encode, args=(encoder, cache), daemon=True)
    other.start()
    other.join(120)
    assert not other.is_alive()
    assert before.items() <= finished(cache).items()
    assert read_files(cache) == undisturbed


def locked(cache: Path, encoder: Encoder) -> Path:
    """Where the lock of the third shard belongs, in a cache that holds the first two."""
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
def test_a_lock_that_does_not_beat_is_broken(encoder, undisturbed, tmp_path, monkeypatch, owner):
    """Another host's, where nobody can say who runs, and those that a power failure tore."""
    monkeypatch.setattr(files, "STALE", 0.3)
    locked(tmp_path, encoder).write_text(owner)
    begun = time.monotonic()
    encode(encoder, tmp_path)
    assert time.monotonic() - begun > files.STALE
    assert read_files(tmp_path) == undisturbed


class Clock:
    """In place of the module `time`: it goes on when it is told to, and counts how often it is looked at."""

    time = staticmethod(time.time)

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.now


def test_a_lock_that_beats_is_respected(encoder, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BEAT", 0.01)
    monkeypatch.setattr(files, "time", clock := Clock())
    lock = files.Lock(locked(tmp_path, encoder))
    assert lock.take()
    other = threading.Thread(target=encode, args=(encoder, tmp_path), daemon=True)
    other.start()
    for _ in range(3):  # each time nearly stale, had it not moved
        moved, looks = lock.path.stat().st_mtime_ns, clock.looks
        until(lambda moved=moved: lock.path.stat().st_mtime_ns != moved)
        until(lambda looks=looks: clock.looks >= looks + 6)  # the other one has seen that
        clock.now += 0.9 * files.STALE
    assert other.is_alive()
    shards = {path.name for path in finished(tmp_path)} - {"rows.parquet"}
    assert shards == {f"shard-{i:05d}.safetensors" for i in range(runs.SHARDS) if i != 2}
    lock.release()
    other.join(120)
    assert read_files(tmp_path) == undisturbed


# --------------------------------------------------------------------------------------------------------------- Ctrl-C

TOLD = "stopped; the same command goes on: clsprobe "


@posix
def test_ctrl_c_while_it_encodes_and_while_it_probes(tmp_path):
    """The command as a shell runs it: one line that says how to go on, and the rerun goes on."""
    flags = ["run", "--task", "grammar:tense", "--max-texts", "300", "--cache", "cache", "--out", "out"]
    code = (
        "import time\nfrom clsprobe.probes.extraction import extractor, store\nfrom clsprobe.cli import main\n"
        "extractor.SHARD, add = 30 * 56 * 384 * 4, store.Store.add\n"
        "store.Store.add = lambda *given: (time.sleep({}), add(*given))[1]\nmain()"
    )
    errors = tmp_path / "errors"

    def stopped(ready: Callable[[], bool], pause: float) -> list[str]:
        """What a run has said when it is stopped as soon as it is ready. pause: seconds before each shard."""
        command = [sys.executable, "-c", code.format(pause), *flags]
        with errors.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, cwd=tmp_path)
            until(lambda: ready() or process.poll() is not None)
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 130
        return errors.read_text().splitlines()

    *_, encoding, last = stopped(lambda: len(finished(tmp_path / "cache")) >= 3, 0.3)
    assert encoding == "encoding 300 texts with the encoder"
    assert last == TOLD + " ".join(flags)
    before = finished(tmp_path / "cache")
    assert "rows.parquet" not in {path.name for path in before}
    *_, probing, last = stopped(lambda: "probing" in errors.read_text(), 0)
    assert probing == "probing 112 cells for 1 task"
    assert last == TOLD + " ".join(flags)
    assert before.items() <= finished(tmp_path / "cache").items()


@posix
def test_a_run_that_does_not_heed_ctrl_c_is_ended(tmp_path):
    """By a timer, within the two seconds that are promised; here what it interrupts goes on for ever."""
    assert cli.PATIENCE < 2
    code = (
        "import time\nfrom clsprobe import cli\n"
        "def deaf(**_):\n"
        "    print('here', flush=True)\n"
        "    while True:\n"
        "        try: time.sleep(60)\n"
        "        except BaseException: pass\n"
        "cli.app, cli.register_studies = deaf, dict\ncli.main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, "run"], stdout=-1, stderr=-1, text=True, cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120) == ("", TOLD + "run\n")
    assert process.returncode == 130


@posix
@pytest.mark.long
def test_ctrl_c_at_any_moment(model, tmp_path):
    table = tmp_path / "d.csv"
    table.write_text("text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(runs.TEXTS)))
    forker = Forker(model, "clsprobe.cli", "clsprobe.analysis.sweep.grid")
    flags = ["run", "--task", f"file:{table}", "--model", model, "--cache", tmp_path / "cache"]
    takes = np.inf
    for number in range(2):  # the first one compiles, or the machine is busy
        begun = time.monotonic()
        whole = [*flags[:-1], tmp_path / f"whole{number}", "--out", tmp_path / f"first{number}"]
        assert forker.wait(forker.command(*whole, errors=tmp_path / "errors")) == 0
        takes = min(takes, time.monotonic() - begun)
    rng = np.random.default_rng(0)
    codes: Counter[int] = Counter()
    slowest = 0.0
    for number in range(100):
        again = [*flags[:-1], tmp_path / f"cache{number // 5}", "--out", tmp_path / f"out{number}"]
        process = forker.command(*again, errors=tmp_path / "errors")
        time.sleep(0.1 + rng.uniform(0, takes))
        begun = time.monotonic()
        os.kill(process, signal.SIGINT)
        codes[code := forker.wait(process)] += 1
        said = (tmp_path / "errors").read_text()
        assert "Traceback" not in said
        assert "Exception" not in said
        if code == 130:
            slowest = max(slowest, time.monotonic() - begun)
            assert said.splitlines()[-1] == TOLD + " ".join(map(str, again))
            assert said.count(TOLD) == 1
    forker.close()
    print(codes, f"slowest {slowest:.2f} s")
    assert set(codes) <= {0, 130}
    assert codes[130] > 50
    assert slowest < 2.5
