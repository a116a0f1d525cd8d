"""The only module that opens files: it reads regular files, and writes whole ones.

1. `open_file` and the functions built on it read a file that is regular, no larger than what its reader can hold, and
   not changed meanwhile. `check_file` is for the libraries that open a path themselves.
2. `stays_inside` judges a name that stands in a file: whether it leads out of the folder that it belongs to.
3. `replacing` and the functions built on it write a file completely or not at all: under a temporary name beside the
   target, flushed to disk, then renamed over the target. The folder is flushed too, so that the rename survives a power
   cut. `remove_temporary_files` removes the temporary files of writers that were killed.
4. `spool_stream` copies a stream to an anonymous file that can be read more than once. `file_digest` is a SHA-256.
5. `Lock` marks a file that a process is working on, so that two processes share the work instead of doing it twice.
6. `check_folder` tests whether a file system supports what 3 and 5 rely on; some network file systems do not.

Our own folders (`own`) hold regular files only: a link in one is neither followed nor touched through, whatever it
leads to. The path to such a folder may be a link.

Imports no torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from io import BufferedReader
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, BinaryIO

from clsprobe.probes.errors import InputError, escape_surrogates

if TYPE_CHECKING:
    import pandas as pd

BEAT, STALE = 2.0, 30.0  # seconds between two heartbeats of a lock, and without one until it is stale
ABANDONED = 3600.0  # seconds without a change until a file is abandoned, more than clocks of machines differ
TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}\.tmp", re.DOTALL)  # machine, process
TEMPORARY_FOLDER = "clsprobe-"  # the beginning of its name
LARGEST_TEXT = 64 << 20  # bytes of a file that is parsed as a whole, such as JSON; none of ours comes near it
LARGEST_LOCK = 4096  # bytes
MOST_UNPACKED = 1000  # times its file that a table is in memory; ours are less than a hundred times as large


# -------------------------------------------------------------------------------------------------------------- reading


class UnsuitableFile(OSError):
    """A file that is not read, because it is not regular, too large, or changed meanwhile. mend: a remedy, or empty."""

    def __init__(self, path: Path | str, what: str, mend: str = "") -> None:
        super().__init__(errno.EINVAL, what, str(path))
        self.mend = mend


def read_error(where: str, error: Exception, mend: str = "") -> InputError:
    """The InputError for an OSError or ValueError of opening or reading a file. mend: unless the error has its own."""
    if isinstance(error, UnsuitableFile):
        return InputError(where, str(error.strerror), error.mend or mend)
    reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower().rstrip(".")
    return InputError(where, f"cannot be read ({reason})", mend)


def check_file(path: Path | str, *, largest: int | None = None, own: bool = False) -> os.stat_result:
    """The status of a regular file, before a library opens it by its path: opening a FIFO would block for ever.

    largest, own: as in `open_file`. Raises OSError, and UnsuitableFile for an unsuitable file.
    """
    status = os.lstat(path) if own else os.stat(path)
    _check_status(path, status, largest)
    return status


def _check_status(path: Path | str, status: os.stat_result, largest: int | None) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if stat.S_ISLNK(status.st_mode):
        raise UnsuitableFile(path, "a link, which is not followed here", "Remove it")
    if not stat.S_ISREG(status.st_mode):
        raise UnsuitableFile(path, "not a regular file", "Save its content to a file first")
    if largest is not None and status.st_size > largest:
        raise UnsuitableFile(path, f"is larger than {largest / (1 << 20):.3g} MB, too large to be what it should be")


@contextmanager
def open_file(path: Path | str, *, largest: int | None = None, own: bool = False) -> Iterator[BufferedReader]:
    """A regular file, open for reading, that does not change before the block ends.

    largest: bytes that its reader can hold, None if it reads in parts. own: a file in a folder of ours: no link, and
    replaced as a whole while others read the old one. Raises OSError, and UnsuitableFile for an unsuitable file.
    """

    def open_at_once(path: str, flags: int) -> int:
        flags |= getattr(os, "O_NONBLOCK", 0) | (getattr(os, "O_NOFOLLOW", 0) if own else 0)
        return os.open(path, flags)

    check_file(path, largest=largest, own=own)  # before it is opened, which may do something to a device
    with open(path, "rb", opener=open_at_once) as file:
        status = os.fstat(file.fileno())
        _check_status(path, status, largest)  # another file may have taken its place
        try:
            yield file
        except Exception:
            if not own:
                check_unchanged(path, status)  # which explains the error better
            raise
        if not own:
            check_unchanged(path, status)


def check_unchanged(path: Path | str, status: os.stat_result) -> None:
    """Raise UnsuitableFile where a file is no longer the one of this status."""
    with suppress(FileNotFoundError):
        now = os.stat(path)
        if (now.st_size, now.st_mtime_ns, now.st_ino) == (status.st_size, status.st_mtime_ns, status.st_ino):
            return
    raise UnsuitableFile(path, "changed while being read", "Run again when nothing writes to it")


def read_content(path: Path | str, *, largest: int = LARGEST_TEXT, own: bool = False) -> bytes:
    """The content of a file. largest, own, errors: as in `open_file`."""
    with open_file(path, largest=largest, own=own) as file:
        return file.read(largest + 1)


def read_json(path: Path, mend: str, *, largest: int = LARGEST_TEXT) -> Any:
    """The content of a JSON file. largest: as in `open_file`.

    Raises InputError with this `mend` if it cannot be read or parsed.
    """
    try:
        return json.loads(read_content(path, largest=largest).decode("utf-8"))
    except RecursionError:
        raise InputError(str(path), "cannot be read (nested too deep)", mend) from None
    except (OSError, ValueError) as error:
        raise read_error(str(path), error, mend) from None


def read_parquet(path: Path | str, *, own: bool = False) -> pd.DataFrame:
    """A table that `write_parquet` wrote. own, errors: as in `open_file`, and those of Arrow for a damaged file.

    Raises UnsuitableFile for a table that is larger in memory than `MOST_UNPACKED` times its file.
    """
    import pandas as pd

    with open_file(path, own=own) as file:
        size = os.fstat(file.fileno()).st_size
        if any(unpacked > max(LARGEST_TEXT, MOST_UNPACKED * size) for unpacked in _unpacked_sizes(file)):
            what = f"is {size:,} bytes and holds more than {MOST_UNPACKED:,} times as many"
            raise UnsuitableFile(path, f"{what}, which no table of a run does")
        file.seek(0)
        return pd.read_parquet(file)


def _unpacked_sizes(file: BinaryIO) -> Iterator[int]:
    """The bytes of a Parquet table in memory as far as they are known, ever more exactly and with ever more effort.

    A text that stands in every row is in the file once, and in memory as often as there are rows.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(file)
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    chunks = [group.column(n) for group in groups for n in range(group.num_columns)]
    yield sum(max(chunk.total_uncompressed_size, 8 * chunk.num_values) for chunk in chunks)
    texts = {chunk.path_in_schema for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"}
    most = sum(chunk.total_uncompressed_size * chunk.num_values for chunk in chunks if chunk.path_in_schema in texts)
    if most <= LARGEST_TEXT:
        return
    size = 0
    for batch in pq.ParquetFile(file, read_dictionary=[*texts]).iter_batches(columns=[*texts]):
        for column in batch.columns:
            if hasattr(column, "dictionary"):
                lengths = pc.binary_length(column.dictionary)
                size += pc.sum(lengths.take(column.indices)).as_py() or 0
        yield size


def file_digest(path: Path | str, *, own: bool = False) -> str:
    """The SHA-256 of a file. own, errors: as in `open_file`."""
    with open_file(path, own=own) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(files: Mapping[str, Path]) -> str:
    """One SHA-256 over the names and contents of files, whatever their order."""
    total = hashlib.sha256()
    for name, path in sorted(files.items()):
        total.update(f"{name} {file_digest(path)}\n".encode())
    return total.hexdigest()


def stays_inside(name: object) -> bool:
    """Whether a name that stands in a file leads to a file below the folder it belongs to, on any system.

    It is judged as a name, not by what it leads to: the files of a snapshot of the hub are links out of its folder.
    """
    if not isinstance(name, str) or "\0" in name:
        return False
    path = PureWindowsPath(name)  # which knows both separators, and drives
    return bool(path.parts) and not path.anchor and ".." not in path.parts


# -------------------------------------------------------------------------------------------------------------- writing


@contextmanager
def replacing(path: Path | str) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends, or is removed if the block raises."""
    path = Path(path)
    temporary = _temporary_path(path)
    try:
        with _naming(path, temporary):
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _flush_folder(path.parent)
    except BaseException:
        with suppress(OSError):  # report the first error
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Within the block, an error of the disk names this path: that of a write names none, others the temporary one."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise


def mend_disk(error: OSError) -> str:
    """What whoever runs a command can do about an error of the disk."""
    remedies = {
        errno.ENOSPC: "Make room",
        errno.EDQUOT: "Make room, or raise the quota",
        errno.EFBIG: "Raise the limit on the size of files (ulimit -f)",
        errno.EROFS: "Name a folder that can be written",
        errno.EACCES: "Change its permissions, or name another",
        errno.EPERM: "Change its permissions, or name another",
        errno.EISDIR: "Move the folder away, or name another file",
    }
    return remedies.get(error.errno or 0, "Mend it") + ", and run again"


def spool_stream(stream: BinaryIO) -> BinaryIO:
    """The content of a stream as an anonymous file, positioned at its start."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        while block := stream.read(1 << 20):
            with _naming(Path(tempfile.gettempdir())):
                file.write(block)
                file.flush()
        file.seek(0)
    except BaseException:
        with suppress(OSError):  # report the first error
            file.close()
        raise
    return file


def write_text(path: Path | str, text: str) -> None:
    """Replace `path` by `text` in UTF-8, with line ends unchanged.

    An unpaired surrogate, which stands for a byte in the name of a file that is not UTF-8, becomes an escape such as
    \\udce9, which JSON reads back.
    """
    with replacing(path) as file:
        file.write(escape_surrogates(text).encode())


def write_parquet(path: Path | str, table: pd.DataFrame) -> None:
    """Replace `path` by `table` as Parquet (zstd), without the index."""
    dictionary_columns = list(
        table.select_dtypes(exclude="number")
    )  # dictionaries of numbers take memory and rarely save any
    # not written to the open file: pandas would open it again by its name
    content = table.to_parquet(None, index=False, compression="zstd", use_dictionary=dictionary_columns)
    with replacing(path) as file:
        file.write(content)


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of a folder whose writers have ended, killed or by a power cut."""
    for path in folder.glob(".*.tmp"):
        match = TEMPORARY.fullmatch(path.name)
        with suppress(FileNotFoundError):  # its writer has just finished
            status = path.lstat()
            is_abandoned = match and (
                _process_ended(match[1], int(match[2])) or time.time() - status.st_mtime > ABANDONED
            )
            if is_abandoned and stat.S_ISREG(status.st_mode):
                path.unlink()


def make_folder(path: Path | str, *, private: bool = False) -> Path:
    """Create `path` and its parents, and flush every folder in which one was created.

    private: closed to other users; the mode of an existing folder that is not empty is left unchanged.
    """
    path = Path(path)
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
    if private and not created and os.name != "nt" and not any(path.iterdir()):
        path.chmod(0o700)
    for folder in created:
        _flush_folder(folder.parent)
    return path


def make_temporary_folder() -> Path:
    """A new folder among the temporary files of the system ($TMPDIR), closed to other users."""
    return Path(tempfile.mkdtemp(prefix=TEMPORARY_FOLDER))


def remove_temporary_folder(path: Path) -> None:
    """Remove a folder that `make_temporary_folder` made, with what is in it."""
    assert path.name.startswith(TEMPORARY_FOLDER)
    shutil.rmtree(path, ignore_errors=True)


def write_pretrained(folder: Path, *parts: Any, **options: Any) -> None:
    """Save models and tokenizers of transformers and sentence-transformers, as safetensors, in a temporary folder.

    options: of their `save_pretrained`.
    """
    for part in parts:
        part.save_pretrained(str(folder), **options)


def check_folder(path: Path) -> None:
    """Raise OSError if files cannot be written, created exclusively or replaced atomically."""
    probe = _temporary_path(path / "try")
    try:
        with replacing(probe) as file:
            file.write(b"old")
        with suppress(FileExistsError):
            probe.open("xb").close()
            raise OSError(errno.ENOTSUP, "Two processes can create one file there", str(path))
        with replacing(probe) as file:
            file.write(b"new")
        if read_content(probe, own=True) != b"new":
            raise OSError(errno.ENOTSUP, "Files cannot be replaced there", str(path))
        touch(probe)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def set_aside(path: Path, suffix: str) -> None:
    """Rename a file that must not be read again, and keep it for inspection."""
    os.replace(path, path.with_name(path.name + suffix))
    _flush_folder(path.parent)


def touch(path: Path) -> None:
    """Set the modification time of a file to now, to mark it as recently used; of a link its own, not its target's."""
    os.utime(path, follow_symlinks=os.utime not in os.supports_follow_symlinks)


class Lock:
    """A lock file that names the process that holds it and is touched every `BEAT` seconds.

    `take` never waits. It breaks a lock whose process has ended (on this host), or whose modification time has not
    changed for `STALE` seconds while this object waited. Two processes that break it at the same moment may both hold
    it, so the guarded work must be correct when done twice: the lock saves work, it is no mutual exclusion.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[float, float] = (-1.0, 0.0)  # the lock's modification time, and our clock when first seen
        self._stop: threading.Event | None = None

    def take(self) -> bool:
        """Try to take the lock, and return whether this object holds it."""
        owner = json.dumps({"host": platform.node(), "here": _machine_id(), "process": os.getpid()})
        for _ in range(2):  # a second time after breaking a stale lock
            try:
                file = self.path.open("x", encoding="utf-8")
            except FileExistsError:
                if not self._stale():
                    return False
                self.path.unlink(missing_ok=True)
                continue
            self._stop = threading.Event()
            try:
                with _naming(self.path), file:
                    file.write(owner)
                threading.Thread(target=self._beat, args=(self._stop,), daemon=True).start()
                return True
            except BaseException:  # others would wait for a lock that nobody holds
                self.release()
                raise
        return False

    def release(self) -> None:
        """Release the lock; does nothing if this object does not hold it."""
        if self._stop:
            self._stop.set()
            with suppress(OSError):  # without heartbeats it becomes stale
                self.path.unlink(missing_ok=True)
            self._stop = None

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT):
            with suppress(OSError):
                touch(self.path)

    def _stale(self) -> bool:
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            return True
        if not stat.S_ISREG(status.st_mode):  # a link or a pipe: no process has taken it
            return True
        changed = status.st_mtime
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):  # incomplete: only its age counts
            owner = json.loads(read_content(self.path, largest=LARGEST_LOCK, own=True))
            if _process_ended(owner["here"], owner["process"]):
                return True
        if changed != self._seen[0]:
            self._seen = changed, time.monotonic()
        return time.monotonic() - self._seen[1] > STALE or abs(time.time() - changed) > ABANDONED


@cache
def _machine_id() -> str:
    """Digest of the scope in which a process number is unique: this machine since its start, and its container."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8"))
        parts.append(os.readlink("/proc/self/ns/pid"))  # a container numbers its processes itself
    return sha256("".join(parts).encode()).hexdigest()[:8]


def _process_ended(machine: str, process: int) -> bool:
    """Whether a process of this machine has ended; False if that cannot be known."""
    if os.name == "nt" or machine != _machine_id():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError, TypeError):  # another user's; not a number
        return False
    return False


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_machine_id()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _flush_folder(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder; its renames are journaled
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be written to but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems do not flush folders
            raise
    finally:
        os.close(descriptor)
