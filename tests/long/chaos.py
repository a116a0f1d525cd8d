"""Random histories over a run: whatever happens to it, the next run equals a fresh one, or is refused in one line.

    python tests/long/chaos.py FOLDER --histories 500 [--seed 1] [--twin NAME]

A history is some events (the run is killed or the disk fills up at one of its writes, data or weights change, files of
the cache or of the run are truncated, changed, replaced by a link or by a pipe, manifests name files outside, two runs
race), then the same command once more. Every run is a process forked from this one, which has imported everything once.
Outside of the run's own folders stands a tree that no run may touch. Prints a JSON object: the seed, the number of
histories, how the last runs ended, and the faults found.

`--twin` undoes one of the protections in every run; the campaign must find that.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import models

DEADLINE = 120.0  # seconds until a run counts as hanging
FLAGS = ["--layers", "0,2", "--readouts", "cls,mean,max", "--allow-overlap", "--label-column", "label", "--quiet"]
WORDS = [word for word in models.WORDS if word.isalpha()]


class World:
    """A folder with data, a model, a cache, a run, and a guarded tree; `version` counts what has changed."""

    def __init__(self, root: Path, originals: Path, draw: random.Random) -> None:
        self.root, self.originals, self.draw = root, originals, draw
        self.guard, self.cache, self.out = root / "guard", root / "cache", root / "out"
        self.model, self.data = root / "model", root / "data.csv"
        self.version = {"data": 0, "weights": 0, "seed": 0}
        self.nested = draw.random() < 0.5  # whether the weights lie in a folder below
        root.mkdir(parents=True)
        self.guard.mkdir()
        for name in ("rows.parquet", "manifest.json", "mine.txt"):
            (self.guard / name).write_bytes(f"the user's {name}".encode())
        self.restore()

    def restore(self) -> None:
        """Data and model as their versions say."""
        for path in (self.model, self.data):
            remove(path)
        shutil.copyfile(self.originals / f"data{self.version['data']}.csv", self.data)
        shutil.copytree(self.originals / f"model{self.version['weights']}", self.model)
        if self.nested:
            (self.model / "sub").mkdir()
            (self.model / "model.safetensors").rename(self.model / "sub" / "part.safetensors")
            shutil.copyfile(
                self.originals / f"index{self.version['weights']}.json", self.model / "model.safetensors.index.json"
            )

    def command(self, out: Path, cache: Path, *more: str) -> list[str]:
        seed = ["--seed", str(self.version["seed"])]
        return ["poolings", "--task", f"file:{self.data}", "--model", str(self.model), *FLAGS, *seed,
                "--cache", str(cache), "--out", str(out), *more]  # fmt: skip

    def files(self) -> list[Path]:
        """The files of the cache and of the run."""
        return sorted(
            p for folder in (self.cache, self.out) for p in folder.rglob("*") if p.is_file() and not p.is_symlink()
        )


def remove(path: Path) -> None:
    """Remove a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def digest(folder: Path) -> str:
    """Of the names and contents below a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        total.update(f"{path.relative_to(folder)} {path.is_symlink()} {hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


# ---------------------------------------------------------------------------------------------------------------- runs


@contextmanager
def stopped_at_write(number: int, fault: str) -> Iterator[None]:
    """At the numbered replacement of a file, the process is killed or the disk is full."""
    replace, count = os.replace, 0

    def counted(*arguments: Any, **more: Any) -> None:
        nonlocal count
        count += 1
        if count == number and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if count >= number and fault == "full":
            raise OSError(errno.ENOSPC, "No space left on device", str(arguments[1]))
        replace(*arguments, **more)

    os.replace = counted
    try:
        yield
    finally:
        os.replace = replace


def start(command: list[str], errors: Path, *, at: int = 0, fault: str = "", twin: str = "") -> int:
    """Fork a process that runs the command. Returns its process id."""
    if child := os.fork():
        return child
    code = 70
    try:
        descriptor = os.open(errors, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(descriptor, 2)
        os.dup2(descriptor, 1)
        sys.argv = ["clsprobe", *command]
        from clsprobe.cli import main

        if twin:
            TWINS[twin][0]()
        with stopped_at_write(at, fault):
            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def wait(child: int) -> int | None:
    """The exit code of a process, negative for a signal; None where it hangs, and is killed."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def read_tables(out: Path) -> dict[str, Any]:
    """What a finished run found: its tables and verdicts."""
    import pandas as pd

    tables = {
        name: pd.read_parquet(out / f"{name}.parquet").drop(columns="model").to_json()  # the model by its path
        for name in ("results", "predictions")
    }
    return tables | {"verdicts": json.loads((out / "run.json").read_text())["verdicts"]}


# -------------------------------------------------------------------------------------------------------------- events


def interrupt(world: World, fault: str, twin: str) -> None:
    wait(
        start(
            world.command(world.out, world.cache, *again(world)),
            world.root / "errors",
            at=world.draw.randint(1, 24),
            fault=fault,
            twin=twin,
        )
    )


def finish(world: World, twin: str) -> None:
    wait(start(world.command(world.out, world.cache, *again(world)), world.root / "errors", twin=twin))


def again(world: World) -> list[str]:
    return ["--overwrite"] * (world.draw.random() < 0.3)


def race(world: World, twin: str) -> None:
    other = world.root / "other"
    children = [
        start(world.command(out, world.cache), world.root / f"errors{number}", twin=twin)
        for number, out in enumerate((world.out, other))
    ]
    for child in children:
        wait(child)
    remove(other)


def change(world: World, what: str) -> None:
    world.version[what] = 1 - world.version[what]
    world.restore()


def damage(world: World, how: str) -> None:
    if files := world.files():
        path = world.draw.choice(files)
        content = bytearray(path.read_bytes())
        if how == "truncate":
            content = content[: world.draw.randrange(len(content) + 1)]
        elif content:
            content[world.draw.randrange(len(content))] ^= 1 << world.draw.randrange(8)
        path.write_bytes(content)


def replace_by(world: World, what: str) -> None:
    """Put a link to a guarded file or folder, or a pipe, in the place of a file or folder of ours."""
    places = world.files() + (
        [p for p in (world.model / "config.json", world.data) if p.exists()] if what == "pipe" else []
    )
    if what == "link to a folder":
        places = [
            p for folder in (world.cache, world.out) for p in folder.glob("*") if p.is_dir() and not p.is_symlink()
        ]
    if places:
        path = world.draw.choice(places)
        remove(path)
        if what == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(
                world.guard / ("" if what == "link to a folder" else world.draw.choice(["mine.txt", "manifest.json"]))
            )


def poison(world: World) -> None:
    """Manifests and run.json name files outside of their folder."""
    for path in world.files():
        if path.name not in ("manifest.json", "run.json"):
            continue
        try:
            content = json.loads(path.read_text())
        except ValueError:
            continue
        outside = world.draw.choice(
            [os.path.relpath(world.guard / "mine.txt", path.parent), str(world.guard / "mine.txt")]
        )
        if path.name == "manifest.json" and isinstance(content.get("shards"), dict) and content["shards"]:
            content["shards"][outside] = next(iter(content["shards"].values()))
            seal = {key: value for key, value in content.items() if key != "sha256"}
            content["sha256"] = hashlib.sha256(json.dumps(seal, sort_keys=True).encode()).hexdigest()
        else:
            content["files"] = [outside, *(content.get("files") or [])]
        path.write_text(json.dumps(content))


def leave_file(world: World) -> None:
    """A file of the user's own in a folder of the run."""
    folder = world.out / world.draw.choice(["answers", "figures", "tables"])
    if folder.is_dir() and not folder.is_symlink():
        (folder / "mine.txt").write_text("the user's own")


EVENTS: dict[str, Callable[[World, str], None]] = {
    "kill": lambda world, twin: interrupt(world, "kill", twin),
    "kill again": lambda world, twin: interrupt(world, "kill", twin),
    "disk full": lambda world, twin: interrupt(world, "full", twin),
    "finish": finish,
    "race": race,
    "edit data": lambda world, _: change(world, "data"),
    "swap weights": lambda world, _: change(world, "weights"),
    "change settings": lambda world, _: change(world, "seed"),
    "purge": lambda world, _: remove(world.cache),
    "truncate": lambda world, _: damage(world, "truncate"),
    "flip a bit": lambda world, _: damage(world, "flip"),
    "link": lambda world, _: replace_by(world, "link"),
    "link to a folder": lambda world, _: replace_by(world, "link to a folder"),
    "pipe": lambda world, _: replace_by(world, "pipe"),
    "poison": lambda world, _: poison(world),
    "the user's file": lambda world, _: leave_file(world),
}


# ------------------------------------------------------------------------------------------------------------ campaign


def prepare(originals: Path) -> None:
    """Two versions of the data and of the model."""
    import torch
    from safetensors.torch import load_file, save_file

    originals.mkdir(parents=True)
    draw = random.Random(0)
    for version in (0, 1):
        rows = ["text,label"]
        for i in range(60):
            text = " ".join(draw.choice(WORDS) for _ in range(draw.randint(3, 7)))
            rows.append(f"{text} {WORDS[i % 5]},{'yes' if draw.random() < 0.5 else 'no'}")
        (originals / f"data{version}.csv").write_text("\n".join(rows))
        folder = models.save("bert", originals / f"model{version}")
        weights = load_file(folder / "model.safetensors")
        if version:
            noise = torch.Generator().manual_seed(9)
            weights = {key: value + 0.3 * torch.randn(value.shape, generator=noise) for key, value in weights.items()}
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "sub/part.safetensors")}
        (originals / f"index{version}.json").write_text(json.dumps(index))


def fresh(world: World, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The tables of a run that nothing happens to."""
    world.restore()
    key = json.dumps([world.version, world.nested])
    if key not in known:
        folder = world.root / "fresh"
        errors = folder.with_suffix(".errors")
        code = wait(start(world.command(folder / "out", folder / "cache"), errors))
        assert code == 0, errors.read_text()
        known[key] = read_tables(folder / "out")
    return known[key]


def live_through(world: World, events: list[str], known: dict[str, dict[str, Any]], twin: str) -> tuple[str, str]:
    """How the last run of a history ended, and the fault found, "" for none."""
    before = digest(world.guard)
    for event in events:
        EVENTS[event](world, twin)
        if digest(world.guard) != before:
            return "", f"{event}: the guarded tree has changed"
    own = [path for path in world.out.rglob("mine.txt") if not path.is_symlink()] if world.out.is_dir() else []
    errors, code = world.root / "errors", 0
    for more in ((), ("--overwrite",)):
        code = wait(start(world.command(world.out, world.cache, *more), errors, twin=twin))
        message = errors.read_text(errors="replace").strip().splitlines()
        if digest(world.guard) != before:
            return "", "the last run changed the guarded tree"
        if code is None:
            return "", "the last run hangs"
        if code == 0 or not any("Pass --overwrite" in line for line in message):
            break
    if lost := [path.name for path in own if not path.exists()]:
        return "", f"{lost[0]} of the user is gone"
    if code == 0:
        tables = read_tables(world.out)
        return "equal", "" if tables == fresh(world, known) else "the result is not that of a fresh run"
    lines = [line for line in message if line.startswith("error: ")]
    if code != 2 or len(lines) != 1 or any("Traceback" in line for line in message):
        return "", f"exit {code}: {' | '.join(message[-3:])[:300]}"
    return "refused: " + lines[0].split(": ", 2)[-1][:60], ""


def campaign(folder: Path, histories: int, seed: int, twin: str = "", *, until_found: bool = False) -> dict[str, Any]:
    """Live through random histories. until_found: stop at the first fault."""
    ends, faults, known = Counter[str](), [], {}
    for number in range(histories):
        draw = random.Random(f"{seed} {number}")
        choices = TWINS[twin][1] if twin else tuple(EVENTS)
        events = [draw.choice(choices) for _ in range(draw.randint(2, 5))]
        if not {"kill", "kill again", "disk full", "finish", "race"} & set(events[:-1]):
            events.insert(0, draw.choice(["kill", "finish", "kill"]))
        world = World(folder / str(number), folder / "originals", draw)
        end, fault = live_through(world, events, known, twin)
        ends[end.split(":")[0] if end else "fault"] += 1
        if fault:
            faults.append({"history": number, "events": events, "fault": fault})
            if until_found:
                break
        else:
            shutil.rmtree(world.root)
    return {"seed": seed, "histories": sum(ends.values()), "ends": dict(ends), "faults": faults}


# ------------------------------------------------------------------------------------------------------- broken twins


def forget_contents() -> None:
    """A run is its settings alone: what was measured from other data or weights is resumed."""
    from clsprobe.analysis.sweep.study import SweepStudy

    SweepStudy.contents = lambda self: {}  # type: ignore[method-assign]


def digest_top_level_only() -> None:
    """Weights in a folder below are not in the digest of a model."""
    from clsprobe.probes.encoders import describing

    describing.list_files = lambda folder: {path.name: path for path in folder.iterdir() if path.is_file()}


def believe_manifests() -> None:
    """The names in a manifest are used as paths, whatever they are."""
    from clsprobe.probes.extraction import store

    store._is_well_formed = lambda manifest: True
    store._digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def remove_what_is_not_written() -> None:
    """At its end, a run removes every file in its folders that it has not written."""
    from clsprobe.analysis.folder import RunFolder

    finish = RunFolder.finish

    def finish_and_clean(self: RunFolder, facts: Any) -> None:
        for folder in ("answers", "figures", "tables"):
            for path in self.path.glob(f"{folder}/*"):
                if f"{folder}/{path.name}" not in self._written:
                    path.unlink()
        finish(self, facts)

    RunFolder.finish = finish_and_clean  # type: ignore[method-assign]


def open_anything() -> None:
    """A pipe in the place of a file is opened, and waited for."""
    from clsprobe.probes import files

    files._check_status = lambda *_: None
    files.os = _BlockingOs()


class _BlockingOs:
    """The module `os`, whose `open` waits for the other end of a pipe."""

    O_NONBLOCK = O_NOFOLLOW = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


TWINS: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {  # with the events that its histories are made of
    "contents": (forget_contents, ("kill", "edit data", "swap weights")),
    "digest": (digest_top_level_only, ("kill", "swap weights")),
    "manifest": (believe_manifests, ("kill", "finish", "poison")),
    "overwrite": (remove_what_is_not_written, ("kill", "the user's file", "finish")),
    "pipe": (open_anything, ("kill", "pipe")),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--histories", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--twin", default="", choices=["", *TWINS])
    parser.add_argument("--deadline", type=float, default=DEADLINE, help="seconds until a run counts as hanging")
    options = parser.parse_args()
    globals()["DEADLINE"] = options.deadline
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would not survive a fork
    import torch

    from clsprobe.cli import main as command

    torch.set_num_threads(1)
    prepare(options.folder / "originals")
    first = World(options.folder / "first", options.folder / "originals", random.Random(0))
    with suppress(SystemExit):  # in this process, so that the others find everything imported
        command(first.command(first.out, first.cache))
    until_found = bool(options.twin)
    result = campaign(options.folder, options.histories, options.seed, options.twin, until_found=until_found)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
