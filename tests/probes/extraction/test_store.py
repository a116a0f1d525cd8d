"""The cache of hidden states: damage is detected, keys never mix, `clsprobe cache` lists and removes only our files.

Faults, kills and power failures are tested in test_faults.py. Every check also runs against a broken implementation,
which it must catch.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any

import models
import numpy as np
import pytest
import runs
import torch
from commands import call
from house import ROOT
from runs import TEXTS, encode, only_folder, read_files
from vectors import stack_cells

from clsprobe.probes import files
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction import extractor, store
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.extraction.readouts import Readout
from clsprobe.probes.extraction.store import MANIFEST, ROWS, list_cache, make_cache_folder, purge, verify

pytestmark = pytest.mark.usefixtures("one_thread", "_small_sizes")
not_root = pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may do everything")
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX modes and links")


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
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power failure in these tests


@pytest.fixture(scope="module")
def contents(encoder, tmp_path_factory) -> dict[str, bytes]:
    """The files of a cache with one key, by relative path."""
    cache = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patched:
        for name, size in runs.SIZES.items():
            patched.setattr(extractor, name, size)
        encode(encoder, cache)
    return read_files(cache)


@pytest.fixture
def filled_cache(contents, tmp_path) -> Path:
    """A cache with one key in it."""
    for name, content in contents.items():
        (tmp_path / "cache" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "cache" / name).write_bytes(content)
    return tmp_path / "cache"


@dataclass
class Work:
    """What an extraction did: the number of forward passes, the shards written, the warnings."""

    passes: int = 0
    shards: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    states: Any = None


def record_work(action: Callable[[], Any]) -> Work:
    """The work that `action` does."""
    work, forward, add = Work(), Encoder.forward, store.Store.add

    def count_pass(self: Encoder, batch: Any) -> Any:
        work.passes += 1
        return forward(self, batch)

    def record_shard(self: store.Store, number: int, *arguments: Any) -> None:
        work.shards.append(number)
        add(self, number, *arguments)

    with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patched.setattr(Encoder, "forward", count_pass)
        patched.setattr(store.Store, "add", record_shard)
        work.states = action()
    work.warnings = [str(warning.message) for warning in caught]
    return work


# ------------------------------------------------------------------------------------------------------------- damage

SHARD = "shard-00002.safetensors"
Damage = Callable[[bytes], bytes | None]


def flip_bit(index: int, bit: int = 0) -> Damage:
    """Flip one bit of the byte at `index`; a negative index counts from the end."""

    def damage(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[index] ^= 1 << bit
        return bytes(changed)

    return damage


def edit_manifest(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Apply `change` to the manifest."""

    def damage(content: bytes) -> bytes:
        manifest = json.loads(content)
        change(manifest)
        return json.dumps(manifest).encode()

    return damage


def change_texts(manifest: dict[str, Any]) -> None:
    """Make it the valid manifest of another folder."""
    del manifest["sha256"]
    manifest["made_of"]["texts"]["count"] += 1
    manifest["sha256"] = store._seal(manifest)


def remove_file(content: bytes) -> None:
    """The file is missing."""


EVERY_FILE: dict[str, Damage] = {
    "first bit": flip_bit(0),
    "last bit": flip_bit(-1, 7),
    "cut": lambda content: content[: len(content) // 2],
    "a byte short": lambda content: content[:-1],
    "a byte long": lambda content: content + b"\0",
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "zeros at the end": lambda content: content[:-64] + bytes(64),
}
SHARDS: dict[str, Damage] = EVERY_FILE | {
    "a bit of the header": flip_bit(40, 3),
    "a bit of the data": flip_bit(1500, 1),
    "two rows change places": lambda content: content[:-128] + content[-64:] + content[-128:-64],
    "missing": remove_file,
}
MANIFESTS: dict[str, Damage] = EVERY_FILE | {
    "{}": lambda content: b"{}",
    "a list": lambda content: b"[]",
    "null": lambda content: b"null",
    "no UTF-8": lambda content: content.replace(b"none", b"n\xffne"),
    "nested without end": lambda content: b"[" * 100_000,
    "another fact": edit_manifest(lambda m: m["facts"].update(unknown=[1, 273])),
    "another digest": edit_manifest(lambda m: m["shards"][SHARD].update(sha256="0" * 64)),
    "a shard less": edit_manifest(lambda m: m["shards"].pop(SHARD)),
    "a digest that is none": edit_manifest(lambda m: m.update(sha256=7)),
    "of another key": edit_manifest(change_texts),
}
DAMAGES = [
    *((SHARD, name, damage) for name, damage in SHARDS.items()),
    *((ROWS, name, damage) for name, damage in (EVERY_FILE | {"missing": remove_file}).items()),
    *((MANIFEST, name, damage) for name, damage in MANIFESTS.items()),
]


def check_repaired(encoder: Encoder, cache: Path, name: str, damage: Damage) -> None:
    """A damaged file is detected, set aside, reported once, and recreated byte for byte; no other file is."""
    path, expected = only_folder(cache) / name, read_files(cache)
    damaged = damage(path.read_bytes())
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    work = record_work(lambda: encode(encoder, cache))
    assert len(work.warnings) == 1, work.warnings
    assert f": damaged or missing, and made again: {name}; what was there is kept as *.corrupt" in work.warnings[0]
    aside = path.with_name(f"{name}.corrupt")
    assert aside.exists() == (damaged is not None)
    if damaged is not None:
        assert aside.read_bytes() == damaged
        aside.unlink()
    number = re.fullmatch(r"shard-(\d+)\.safetensors", name)
    assert work.shards == ([int(number[1])] if number else [] if name == ROWS else [*range(runs.SHARDS)])
    assert bool(work.passes) == bool(work.shards)
    assert read_files(cache) == expected
    rerun = record_work(lambda: encode(encoder, cache))
    assert (rerun.passes, rerun.shards, rerun.warnings) == (0, [], [])
    assert np.array_equal(stack_cells(rerun.states), stack_cells(work.states), equal_nan=True)


@pytest.mark.parametrize(("name", "damage"), [(n, d) for n, _, d in DAMAGES], ids=[f"{n}, {w}" for n, w, _ in DAMAGES])
def test_a_damaged_file_is_detected_and_recreated(encoder, filled_cache, name, damage):
    check_repaired(encoder, filled_cache, name, damage)


def check_random_bits(encoder: Encoder, cache: Path, count: int, seed: int) -> None:
    """Flip random bits; every byte of the cache is equally likely."""
    rng = np.random.default_rng(seed)
    sizes = {path.rpartition("/")[2]: len(content) for path, content in read_files(cache).items()}
    for _ in range(count):
        position = int(rng.integers(sum(sizes.values())))
        for name, size in sizes.items():
            if position < size:
                check_repaired(encoder, cache, name, flip_bit(position, int(rng.integers(8))))
                break
            position -= size


def test_any_flipped_bit_is_detected(encoder, filled_cache):
    check_random_bits(encoder, filled_cache, 8, seed=0)


@pytest.mark.long
def test_a_thousand_flipped_bits_are_detected(encoder, filled_cache):
    check_random_bits(encoder, filled_cache, 1_000, seed=1)


def test_several_damaged_files_give_one_warning(encoder, filled_cache):
    expected = read_files(filled_cache)
    for number in range(5):
        (only_folder(filled_cache) / f"shard-{number:05d}.safetensors").write_bytes(b"")
    work = record_work(lambda: encode(encoder, filled_cache))
    assert len(work.warnings) == 1
    assert "shard-00002.safetensors and 2 more files; what was there" in work.warnings[0]
    assert work.shards == [0, 1, 2, 3, 4]
    assert expected.items() <= read_files(filled_cache).items()


def test_a_folder_without_a_manifest_is_treated_as_empty(encoder, filled_cache):
    expected = read_files(filled_cache)
    (only_folder(filled_cache) / MANIFEST).unlink()
    work = record_work(lambda: encode(encoder, filled_cache))
    assert (work.shards, work.warnings) == ([*range(runs.SHARDS)], [])
    assert read_files(filled_cache) == expected


def trust_disk(folder: Path) -> list[str]:
    """A broken `verify`: it trusts the disk."""
    return []


def forget_manifest(folder: Path) -> list[str]:
    """A broken `verify`: one damaged file discards the whole folder."""
    bad = verify(folder)
    (folder / MANIFEST).unlink(missing_ok=bool(bad))
    return bad


def skip_seal(folder: Path) -> Any:
    """A broken `read_manifest`: it accepts any content."""
    path = folder / MANIFEST
    return json.loads(path.read_text()) | {"sha256": None} if path.exists() else None


@pytest.mark.parametrize(
    ("function", "twin", "name", "damage"),
    [
        ("verify", trust_disk, SHARD, flip_bit(1500, 1)),
        ("verify", trust_disk, ROWS, flip_bit(100)),
        ("verify", forget_manifest, SHARD, flip_bit(1500, 1)),
        ("read_manifest", skip_seal, MANIFEST, MANIFESTS["another fact"]),
        ("read_manifest", skip_seal, MANIFEST, MANIFESTS["a shard less"]),
        ("_set_aside", lambda path: path.unlink(missing_ok=True), SHARD, flip_bit(40, 3)),
    ],
    ids=["unread shard", "unread rows", "forgetful", "a fact", "a shard less", "thrown away"],
)
def test_a_careless_cache_would_be_caught(encoder, filled_cache, monkeypatch, function, twin, name, damage):
    monkeypatch.setattr(store, function, twin)
    with pytest.raises((AssertionError, ValueError, OSError)):  # what it reads instead may be no Parquet at all
        check_repaired(encoder, filled_cache, name, damage)


def test_a_manifest_that_is_not_compared_with_its_folder_would_be_caught(encoder, filled_cache, monkeypatch):
    name = only_folder(filled_cache).name
    monkeypatch.setattr(store, "_key", lambda made_of: name)
    with pytest.raises(AssertionError):
        check_repaired(encoder, filled_cache, MANIFEST, MANIFESTS["of another key"])


def test_a_shard_that_is_removed_while_in_use_is_an_error(encoder, filled_cache):
    """`clsprobe cache purge` can do this to a run that has all its shards; the message says how to continue."""
    states = encode(encoder, filled_cache)
    for content in (b"", b"\xff" * 16):
        (only_folder(filled_cache) / SHARD).write_bytes(content)
        with pytest.raises(
            InputError, match=f"{SHARD}: has been removed or damaged since .*Run the same command again"
        ):
            states.cell(0, "mean")
    assert purge(only_folder(filled_cache))
    with pytest.raises(InputError, match="has been removed or damaged since"):
        states.cell(0, "mean")
    assert np.isfinite(encode(encoder, filled_cache).cell(0, "mean")).all()


def test_a_manifest_repaired_by_another_process_is_not_set_aside(encoder, filled_cache, monkeypatch):
    """Another process may write a valid manifest between reading the torn one and setting it aside."""
    path = only_folder(filled_cache) / MANIFEST
    sound = path.read_bytes()
    path.write_bytes(b"torn")
    take = files.Lock.take

    def repair_first(self: files.Lock) -> bool:
        path.write_bytes(sound)
        return take(self)

    monkeypatch.setattr(files.Lock, "take", repair_first)
    assert verify(path.parent) == []
    assert path.read_bytes() == sound
    assert not list(path.parent.glob("*.corrupt"))


# --------------------------------------------------------------------------------------------------------------- keys


def load_copy(model: Path, target: Path, file: str, damage: Callable[[bytes], bytes]) -> Encoder:
    """The same model except for one file."""
    shutil.copytree(model, target)
    (target / file).write_bytes(damage((target / file).read_bytes()))
    return load_encoder(str(target))


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


@contextmanager
def change_version(package: str) -> Iterator[None]:
    real = importlib.metadata.version
    with patched(importlib.metadata, "version", lambda name: real(name) + ("+1" if name == package else "")):
        yield


@dataclass
class Variation:
    """How a run differs from the first one. within: makes a context that is active during the run."""

    encoder: Encoder
    texts: list[str] = field(default_factory=lambda: list(TEXTS))
    within: Callable[[], Any] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def extractor(self, cache: Path | None = None) -> Extractor:
        first = {"readouts": runs.READOUTS, "layers": runs.LAYERS, "max_tokens_per_batch": 200}
        return Extractor(self.encoder, cache=cache, **(first | self.arguments))

    def run(self, action: Callable[[Variation], Any]) -> Any:
        if self.within is None:
            return action(self)
        with self.within():
            return action(self)


FIRST, PACKAGES = "the first run", ("torch", "transformers", "tokenizers", "numpy")
DIFFERS: dict[str, set[str]] = {  # what varies -> the parts of the key that differ
    "a weight": {"digest"},
    "the tokenizer": {"digest"},
    "the configuration": {"digest"},
    "untrained weights": {"control", "seed"},
    "other untrained weights": {"control", "seed"},
    "bfloat16": {"dtype"},
    "a word": {"texts"},
    "the order of the texts": {"texts"},
    "a text twice": {"texts"},
    "where texts are parted": {"texts"},
    "a layer less": {"layers"},
    "other layers": {"layers"},
    "a readout more": {"readouts"},
    "the order of the readouts": {"readouts"},
    "the budget of a batch": {"plan"},
    "equal lengths": {"plan"},
    "the size of a window": {"plan"},
    "the limit of a text": {"max_length"},
    **{package: {"versions"} for package in PACKAGES},
    "our own code": {"code"},
    "the format of the files": {"format"},
}


@pytest.fixture(scope="module")
def variations(model, encoder, tmp_path_factory) -> dict[str, Variation]:
    root = tmp_path_factory.mktemp("variations")
    moved = [f"{TEXTS[0]} {(rest := TEXTS[1].split())[0]}", " ".join(rest[1:]), *TEXTS[2:]]
    leaking = load_encoder(str(model))
    leaking.checked["leaks"] = True
    untrained = [load_encoder(str(model), untrained=seed) for seed in (0, 1)]
    eps = b"1e-12", b"1e-9"
    lowercase = b'"normalizer": {\n    "type": "Lowercase"\n  }', b'"normalizer": null'
    return {
        FIRST: Variation(encoder),
        "a weight": Variation(load_copy(model, root / "weight", "model.safetensors", flip_bit(-4))),
        "the tokenizer": Variation(load_copy(model, root / "words", "tokenizer.json", lambda c: c.replace(*lowercase))),
        "the configuration": Variation(load_copy(model, root / "eps", "config.json", lambda c: c.replace(*eps))),
        "untrained weights": Variation(untrained[0]),
        "other untrained weights": Variation(untrained[1]),
        "bfloat16": Variation(load_encoder(str(model), dtype="bfloat16")),
        "a word": Variation(encoder, ["dog", *TEXTS[1:]]),
        "the order of the texts": Variation(encoder, TEXTS[::-1]),
        "a text twice": Variation(encoder, [*TEXTS, TEXTS[-1]]),
        "where texts are parted": Variation(encoder, moved),
        "a layer less": Variation(encoder, arguments={"layers": [0]}),
        "other layers": Variation(encoder, arguments={"layers": [0, 3]}),
        "a readout more": Variation(encoder, arguments={"readouts": ("cls", "mean", "max")}),
        "the order of the readouts": Variation(encoder, arguments={"readouts": ("mean", "cls")}),
        "the budget of a batch": Variation(encoder, arguments={"max_tokens_per_batch": 201}),
        "equal lengths": Variation(leaking),
        "the size of a window": Variation(encoder, within=lambda: patched(extractor, "WINDOW", 25)),
        "the limit of a text": Variation(encoder, arguments={"max_length": 39}),
        **{name: Variation(encoder, within=partial(change_version, name)) for name in PACKAGES},
        "our own code": Variation(encoder, within=lambda: patched(extractor, "_digest_own_code", lambda: "f" * 64)),
        "the format of the files": Variation(encoder, within=lambda: patched(store, "FORMAT", -1)),
    }  # fmt: skip


def test_every_variation_is_tried(variations):
    assert set(DIFFERS) == set(variations) - {FIRST}


def describe(variation: Variation) -> dict[str, Any]:
    return variation.extractor()._made_of(variation.texts) | {"format": store.FORMAT}


def test_a_key_covers_everything_the_vectors_depend_on(variations):
    first = describe(variations[FIRST])
    for name, variation in variations.items():
        made_of = variation.run(describe)
        assert {part for part in made_of if made_of[part] != first[part]} == DIFFERS.get(name, set()), name


@pytest.mark.filterwarnings("ignore:.*of their spread over the texts")  # random weights in half precision
def test_each_key_has_its_own_folder(variations, tmp_path):
    """A second run uses the same folder, without a forward pass; the summaries of all keys differ."""
    vectors: dict[str, np.ndarray] = {}
    for number, (name, variation) in enumerate(variations.items()):
        vectors[name] = stack_cells(variation.run(lambda variation: variation.extractor(tmp_path)(variation.texts)))
        assert len(list_cache(tmp_path)) == number + 1, name
    for name, variation in variations.items():
        work = record_work(
            lambda variation=variation: variation.run(lambda variation: variation.extractor(tmp_path)(variation.texts))
        )
        assert (work.passes, work.shards) == (0, []), name
        assert np.array_equal(stack_cells(work.states), vectors[name], equal_nan=True), name
    assert len(list_cache(tmp_path)) == len(variations)
    summaries = Counter(re.sub(r"^\w+  [\d.]+ MB", "", entry.summary()) for entry in list_cache(tmp_path))
    assert [line for line, times in summaries.items() if times > 1] == []


def test_absent_vectors_follow_the_order_of_readouts(encoder, tmp_path):
    """Absent vectors are stored by the index of the readout."""
    for readouts in (("cls", "token[2]"), ("token[2]", "cls")):
        states = Extractor(encoder, readouts, cache=tmp_path)(["cat", "the dog"])
        assert states.present[readouts.index("cls")].tolist() == [True, True]
        assert states.present[readouts.index("token[2]")].tolist() == [False, True]
        assert np.isnan(states.cell(1, "token[2]")[0]).all()


def test_a_copy_of_a_model_has_the_same_key(variations, model, tmp_path):
    elsewhere = Variation(load_copy(model, tmp_path / "elsewhere", "config.json", lambda content: content))
    cache = tmp_path / "cache"
    for variation, passes in ((variations[FIRST], True), (elsewhere, False)):
        work = record_work(lambda variation=variation: variation.extractor(cache)(tuple(variation.texts)))
        assert bool(work.passes) == passes
    assert len(list_cache(cache)) == 1


@pytest.mark.parametrize(
    "dropped", ["digest", "seed", "dtype", "texts", "layers", "readouts", "plan", "max_length", "versions"]
)
def test_an_incomplete_key_would_be_caught(variations, monkeypatch, dropped):
    made_of = Extractor._made_of

    def careless(self: Extractor, texts: Any) -> dict[str, Any]:
        return made_of(self, texts) | {dropped: None}

    monkeypatch.setattr(Extractor, "_made_of", careless)
    with pytest.raises(AssertionError):
        test_a_key_covers_everything_the_vectors_depend_on(variations)


CUSTOM_READOUT = """
from clsprobe.probes.extraction.readouts import Readout
class Scaled(Readout):
    name = "scaled"
    def __init__(self, factor, more=None):
        self.factor, self.more = factor, more
    def read(self, hidden, batch):
        return hidden[:, 0] * self.factor
"""


def import_code(path: Path, code: str) -> ModuleType:
    path.write_text(code)
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[path.stem] = module  # as an import would: joblib looks up the module of a class
    spec.loader.exec_module(module)
    return module


def test_a_custom_readout_is_identified_by_its_code_and_arguments(encoder, tmp_path):
    cache, path = tmp_path / "cache", tmp_path / "their_readouts.py"

    def passes(*readouts: Readout) -> int:
        return record_work(lambda: Extractor(encoder, ["cls", *readouts], layers=[1], cache=cache)(TEXTS)).passes

    scaled = import_code(path, CUSTOM_READOUT).Scaled
    assert passes(scaled(2)) > 0
    assert passes(scaled(2)) == 0  # another object of the same kind
    assert passes(import_code(path, CUSTOM_READOUT).Scaled(2)) == 0  # as in another process
    assert passes(scaled(3)) > 0
    assert passes(scaled(2, more={"a": np.arange(3)})) > 0
    assert passes(scaled(2, more={"a": np.arange(3)})) == 0
    assert passes(scaled(2, more={"a": np.arange(4)})) > 0
    assert passes(import_code(path, CUSTOM_READOUT.replace("hidden[:, 0] *", "hidden[:, 0] +")).Scaled(2)) > 0
    codes = {re.search(r"scaled ([0-9a-f]{8})", entry.summary())[1] for entry in list_cache(cache)}  # type: ignore[index]
    assert len(codes) == len(list_cache(cache)) == 5


def test_a_readout_whose_source_was_edited_is_the_one_that_runs(encoder, tmp_path):
    """A class that was imported before its file was edited, and one that a script defines twice."""
    cache, path = tmp_path / "cache", tmp_path / "their_edited_readouts.py"
    module = import_code(path, CUSTOM_READOUT)
    old = module.Scaled(2)
    edited = CUSTOM_READOUT.replace("hidden[:, 0] *", "hidden[:, 0] +")
    path.write_text(edited, encoding="utf-8")

    def read(readout: Readout) -> np.ndarray:
        return Extractor(encoder, [readout], layers=[1], cache=cache)(TEXTS).cell(1, readout.name)

    of_the_old = read(old)
    exec(edited, vars(module))
    assert not np.array_equal(read(module.Scaled(2)), of_the_old)


@pytest.mark.parametrize("kind", ["nowhere", "unpicklable"])
def test_a_readout_that_cannot_be_identified_is_never_reused(encoder, tmp_path, kind):
    """It was defined interactively, without a source file; or it holds an object without a digest."""
    if kind == "nowhere":
        namespace: dict[str, Any] = {"__name__": "typed_in"}
        exec(CUSTOM_READOUT, namespace)
        readout = namespace["Scaled"](2)
    else:
        readout = import_code(tmp_path / "their_other_readouts.py", CUSTOM_READOUT).Scaled(2, more=iter(lambda: 0, 1))
    extractor = Extractor(encoder, ["cls", readout], layers=[1], cache=tmp_path / "cache")
    assert all(record_work(lambda: extractor(TEXTS)).passes for _ in range(2))


def test_a_key_without_the_code_of_readouts_would_be_caught(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(extractor, "_digest_code", lambda readout: "")
    with pytest.raises(AssertionError):
        test_a_custom_readout_is_identified_by_its_code_and_arguments(encoder, tmp_path)


# -------------------------------------------------------------------------------------------------------- the command


@dataclass
class CommandResult:
    """The exit code, the lines and the error of a command."""

    code: int
    lines: list[str]
    error: str


@pytest.fixture
def command(capsys, monkeypatch) -> Callable[..., CommandResult]:
    """`clsprobe cache ...`: an error is one line, and nothing else is on stderr."""

    def command(*arguments: object) -> CommandResult:
        capsys.readouterr()
        code = call("cache", *arguments)
        captured = capsys.readouterr()
        assert re.fullmatch(r"error: [^\n]+\.\n" if code else "", captured.err)
        assert code in (0, 2)
        return CommandResult(code, captured.out.splitlines(), captured.err.strip())

    return command


@pytest.fixture
def keys(encoder, tmp_path) -> list[str]:
    """Three keys in a cache, most recently used first."""
    for hours, layer in enumerate((0, 1, 2), 2):
        Extractor(encoder, runs.READOUTS, layers=[layer], cache=tmp_path / "cache")(TEXTS)
        (entry,) = (entry for entry in list_cache(tmp_path / "cache") if entry.manifest["made_of"]["layers"] == [layer])
        set_last_used(entry.folder, hours)
    return [entry.folder.name for entry in list_cache(tmp_path / "cache")]


def set_last_used(folder: Path, hours: float) -> None:
    timestamp = time.time() - hours * 3600
    os.utime(folder / MANIFEST, (timestamp, timestamp))


def test_ls_lists_every_key(command, keys, encoder, tmp_path):
    set_last_used(tmp_path / "cache" / keys[2], 75)
    result = command("ls", "--cache", tmp_path / "cache")
    assert (result.code, len(result.lines)) == (0, 4)
    first = re.escape(f"whole  {encoder.name} {encoder.description.digest[:8]}  48 texts ")
    assert re.match(
        rf"{keys[0]}  0\.0 MB  today  {first}\w{{8}}  layers 0  readouts cls, mean  float32 on cpu, ", result.lines[0]
    )
    assert f"torch {metadata.version('torch')} " in result.lines[0]
    assert result.lines[2].startswith(f"{keys[2]}  0.0 MB  3 days  whole")
    assert result.lines[3] == f"{tmp_path / 'cache'}: 3 entries, 0.00 GB"
    assert command("ls", keys[1], "--cache", tmp_path / "cache").lines[1].endswith(": 1 entry, 0.00 GB")


def test_verify_lists_damaged_files(command, keys, tmp_path):
    cache = tmp_path / "cache"
    result = command("verify", "--cache", cache)
    assert result.code == 0
    assert all(line.endswith("  sound") for line in result.lines[:3])
    (cache / keys[1] / "shard-00001.safetensors").write_bytes(b"torn")
    (cache / keys[2] / MANIFEST).write_text("torn")
    assert command("verify", keys[0], "--cache", cache).code == 0
    result = command("verify", "--cache", cache)
    assert result.code == 2
    assert (
        result.error
        == f"error: {cache}: 2 files are damaged or missing. Run again what needs them; they are made anew."
    )
    aside = {line[:32]: line.partition("set aside: ")[2] for line in result.lines[:3] if not line.endswith("sound")}
    assert aside == {keys[1]: "shard-00001.safetensors", keys[2]: MANIFEST}
    result = command("verify", "--cache", cache)
    assert result.code == 0
    assert [line for line in result.lines if keys[1] in line and "unfinished" in line and line.endswith("sound")]
    assert [line for line in result.lines if keys[2] in line and line.endswith("that can be read: of no use")]


def test_purge_removes_the_named_keys_or_all(command, keys, tmp_path):
    cache = tmp_path / "cache"
    result = command("purge", keys[1], "--cache", cache)
    assert (result.code, result.lines[-1]) == (0, f"{cache}: 1 entry, 0.00 GB removed")
    assert sorted(path.name for path in cache.iterdir()) == sorted([keys[0], keys[2]])
    assert command("purge", "--cache", cache).lines[-1] == f"{cache}: 2 entries, 0.00 GB removed"
    assert list(cache.iterdir()) == []
    assert command("ls", "--cache", cache).lines == [f"{cache}: 0 entries, 0.00 GB"]


@pytest.mark.parametrize("action", ["ls", "verify", "purge"])
def test_a_mistyped_key_gets_a_suggestion(command, keys, tmp_path, action):
    cache, typed = tmp_path / "cache", ("0" if keys[1][0] != "0" else "1") + keys[1][1:]
    before = read_files(cache)
    result = command(action, keys[0], typed, "--cache", cache)
    assert (result.code, result.lines) == (2, [])
    assert result.error.startswith(f"error: cache {action}: unknown key '{typed}'. Did you mean '{keys[1]}'? One of: ")
    assert read_files(cache) == before


@pytest.mark.parametrize("key", ["../mine", "/", ".", "..", "*", "shard-00000.safetensors", "\x1b[31m", "é"])
def test_purge_removes_nothing_but_keys(command, keys, tmp_path, key):
    (tmp_path / "mine").mkdir()
    before = read_files(tmp_path)
    result = command("purge", key, "--cache", tmp_path / "cache")
    assert result.code == 2
    assert "unknown key '" in result.error
    assert "\x1b" not in result.error
    assert read_files(tmp_path) == before
    assert (tmp_path / "mine").is_dir()


def test_an_empty_or_missing_cache(command, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("CLSPROBE_HOME", str(tmp_path / "never made"))
    for action in ("ls", "verify", "purge"):
        for arguments, folder in ((("--cache", tmp_path / "empty"), "empty"), ((), "never made")):
            result = command(action, *arguments)
            assert result.code == 0
            assert result.lines == [
                f"{tmp_path / folder}: 0 entries, 0.00 GB" + (" removed" if action == "purge" else "")
            ]
        result = command(action, "ab", "--cache", tmp_path / "empty")
        assert result.error == f"error: cache {action}: unknown key 'ab'. There is none in {tmp_path / 'empty'}."
        assert command(action, "--cache", tmp_path / "file").error.endswith(
            ": is not a folder. Name the folder of a cache."
        )
        assert command(action, "--cache", tmp_path / "typo").error.endswith(
            ": does not exist. Name the folder of a cache."
        )
        assert command(action, "--cache", "~nobody-of-this-name/x").error == (
            "error: --cache ~nobody-of-this-name/x: there is no such home folder. Name another folder."
        )
    assert (
        command("purg").error == "error: cache: unknown action 'purg'. Did you mean 'purge'? One of: ls, verify, purge."
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def write_foreign_files(cache: Path, root: Path) -> list[Path]:
    """Write foreign files into a cache and into folders that look like keys."""
    names = [f"{number:032x}" for number in range(8)]
    files = [
        cache / "notes.txt",
        cache / ".hidden",
        cache / "mine" / MANIFEST,
        cache / names[0] / "thesis.tex",
        cache / names[1] / "poetry.lock",
        cache / names[2] / f"{SHARD}.old",
        cache / names[3] / SHARD / "thesis.tex",  # folders that are named like our files
        cache / names[4] / ".a.tmp" / "thesis.tex",
        cache / names[5].upper().replace("0", "A") / SHARD,
        root / "elsewhere" / SHARD,
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("foreign")
    (cache / names[6]).symlink_to(root / "elsewhere")
    (cache / names[7]).mkdir()
    (cache / names[7] / SHARD).symlink_to(root / "elsewhere" / SHARD)
    return [*files, cache / names[6], cache / names[7] / SHARD]


def check_foreign_files_stay(command: Callable[..., CommandResult], keys: list[str], root: Path) -> None:
    """No action of the command removes or alters foreign files."""
    paths = write_foreign_files(root / "cache", root)
    for arguments in (("ls",), ("verify",), ("purge",), ("purge", f"{0:032x}")):
        command(*arguments, "--cache", root / "cache")
        assert [path.read_text() for path in paths if path.is_file()] == ["foreign"] * (len(paths) - 1)
        assert paths[-2].is_symlink()
    assert not any((root / "cache" / key).exists() for key in keys)


@posix
def test_files_of_others_are_never_removed(command, keys, tmp_path):
    check_foreign_files_stay(command, keys, tmp_path)


@posix
def test_a_purge_of_foreign_files_would_be_caught(command, keys, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "OURS", re.compile(".*", re.DOTALL))
    with pytest.raises((AssertionError, OSError)):
        check_foreign_files_stay(command, keys, tmp_path)


def check_in_use(command: Callable[..., CommandResult], keys: list[str], cache: Path) -> None:
    """A key stays while a process computes one of its shards; the others are removed."""
    lock = files.Lock(cache / keys[1] / f"{SHARD}.lock")
    assert lock.take()
    try:
        before = read_files(cache / keys[1])
        result = command("purge", "--cache", cache)
        assert result.code == 2
        assert result.error == f"error: cache purge {keys[1]}: in use. Wait for the runs that use it to end."
        assert result.lines[1].endswith("  in use: kept")
        assert result.lines[-1] == f"{cache}: 2 entries, 0.00 GB removed"
        assert read_files(cache / keys[1]) == before
    finally:
        lock.release()
    assert [path.name for path in cache.iterdir()] == [keys[1]]
    assert command("purge", keys[1], "--cache", cache).code == 0
    assert list(cache.iterdir()) == []


def test_a_key_in_use_is_not_purged(command, keys, tmp_path):
    check_in_use(command, keys, tmp_path / "cache")


def test_a_purge_that_ignores_locks_would_be_caught(command, keys, tmp_path, monkeypatch):
    monkeypatch.setattr(files.Lock, "_stale", lambda self: True)
    with pytest.raises(AssertionError):
        check_in_use(command, keys, tmp_path / "cache")


@not_root
def test_a_key_that_cannot_be_removed_is_an_error(command, keys, tmp_path):
    (tmp_path / "cache" / keys[0]).chmod(0o500)
    assert "Permission denied" in command("purge", keys[0], "--cache", tmp_path / "cache").error


# --------------------------------------------------------------------------------------------------- the cache folder


@pytest.fixture
def temporary_folder(tmp_path, monkeypatch) -> Path:
    """The folder that is used when the default cache folder is unusable."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLSPROBE_HOME", str(tmp_path / "file" / "cache"))
    return tmp_path / "temporary" / f"clsprobe-{os.getuid() if os.name != 'nt' else 0}"


def test_an_unusable_default_folder_is_replaced(temporary_folder, tmp_path):
    message = re.escape(
        f"{tmp_path}/file/cache cannot keep vectors (Not a directory); they are kept in {temporary_folder}. Name"
    )
    for _ in range(2):  # created, then reused
        with pytest.warns(UserWarning, match=message):
            assert make_cache_folder() == temporary_folder
        if os.name != "nt":
            assert stat.S_IMODE(temporary_folder.stat().st_mode) == 0o700
    assert list(temporary_folder.iterdir()) == []


def fail_check(path: Path) -> None:
    raise OSError(errno.ENOTSUP, "Two processes can create one file there", str(path))


def test_an_unreliable_disk_is_replaced(temporary_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CLSPROBE_HOME", str(tmp_path / "network"))
    check_folder = files.check_folder
    monkeypatch.setattr(store, "check_folder", lambda f: check_folder(f) if f == temporary_folder else fail_check(f))
    with pytest.warns(UserWarning, match=r"network cannot keep vectors \(Two processes can create one file there\)"):
        assert make_cache_folder() == temporary_folder


@not_root
def test_an_unwritable_default_folder_is_replaced(temporary_folder, tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir(mode=0o500)
    monkeypatch.setenv("CLSPROBE_HOME", str(tmp_path / "closed"))
    with pytest.warns(UserWarning, match=r"cannot keep vectors \(Permission denied\)"):
        assert make_cache_folder() == temporary_folder


def test_an_unusable_folder_named_by_the_user_is_an_error(temporary_folder, tmp_path, monkeypatch):
    """The user has chosen it, so there is no fallback."""
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be used") as caught:
            make_cache_folder(folder)
        assert str(caught.value).startswith(f"--cache {folder}: cannot be used (")
        assert str(caught.value).endswith("Name another folder.")
    monkeypatch.setattr(store, "check_folder", fail_check)
    with pytest.raises(InputError, match=r"cannot be used \(Two processes can create one file"):
        make_cache_folder(tmp_path / "network")
    assert not temporary_folder.exists()


def test_a_run_with_an_unusable_cache_folder_is_an_error(temporary_folder, tmp_path, capsys):
    flags = "run", "--task", "grammar:tense:60", "--layers", "0", "--quiet", "--out", tmp_path / "out"
    assert call(*flags, "--cache", tmp_path / "file") == 2
    message = f"error: --cache {tmp_path / 'file'}: cannot be used (File exists). Name another folder.\n"
    assert capsys.readouterr() == ("", message)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_left_to_the_store(temporary_folder, tmp_path, monkeypatch):
    """The store knows how much space it needs."""

    def fail_full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "check_folder", fail_full)
    assert make_cache_folder(tmp_path / "full") == tmp_path / "full"


def make_link(temporary_folder: Path) -> None:
    (temporary_folder.parent / "theirs").mkdir(mode=0o700)
    temporary_folder.symlink_to(temporary_folder.parent / "theirs")


def make_reachable_folder(temporary_folder: Path) -> None:
    temporary_folder.mkdir()
    (temporary_folder / "something").write_text("")  # an empty folder would be closed to others
    temporary_folder.chmod(0o750)


def make_folder_of_another_user(temporary_folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    temporary_folder.mkdir(mode=0o700)
    (temporary_folder / "something").write_text("")
    os.chown(temporary_folder, 12345, 12345)


def check_refused(temporary_folder: Path, create: Callable[[Path], None]) -> None:
    """A folder prepared by others is refused before anything is written into it."""
    create(temporary_folder)
    before = {path: path.lstat().st_mtime_ns for path in temporary_folder.parent.rglob("*")}
    with pytest.raises(InputError) as caught:
        make_cache_folder()
    assert "cannot keep vectors (Not a directory), nor can " in str(caught.value)
    assert str(caught.value).endswith("(others can reach it). Name another folder.")
    assert {path: path.lstat().st_mtime_ns for path in temporary_folder.parent.rglob("*")} == before


@posix
@pytest.mark.parametrize("create", [make_link, make_reachable_folder, make_folder_of_another_user])
def test_a_temporary_folder_that_others_can_reach_is_refused(temporary_folder, create):
    check_refused(temporary_folder, create)


@posix
def test_a_folder_that_is_used_before_it_is_checked_would_be_caught(temporary_folder, monkeypatch):
    make_folder = store.make_folder
    monkeypatch.setattr(
        store, "make_folder", lambda path, private: files.check_folder(make_folder(path, private=private))
    )
    with pytest.raises(AssertionError):
        check_refused(temporary_folder, make_reachable_folder)


# ------------------------------------------------------------------------------------------------------- the size cap


def check_cap(encoder: Encoder, cache: Path, keys: list[str], *, remaining: list[int], room: float) -> None:
    """Add a key where the cap is the new key and the fraction `room` of three existing ones; which remain of these."""
    sizes = sum(entry.bytes for entry in list_cache(cache))
    extract = Extractor(encoder, runs.READOUTS, layers=[3], cache=cache)
    with patched(store, "LARGEST_CACHE", room * sizes + extract._row_bytes * len(TEXTS)):
        extract(TEXTS)
    names = [entry.folder.name for entry in list_cache(cache) if entry.manifest["made_of"]["layers"] != [3]]
    assert names == [keys[i] for i in remaining]
    assert len(list_cache(cache)) == len(remaining) + 1


@pytest.mark.parametrize(
    ("room", "remaining"), [(1.001, [0, 1, 2]), (0.999, [0, 1]), (0.66, [0]), (0.34, [0]), (0.33, []), (0, [])]
)
def test_the_least_recently_used_key_is_removed_first(encoder, keys, tmp_path, room, remaining):
    check_cap(encoder, tmp_path / "cache", keys, remaining=remaining, room=room)


def test_keys_in_use_are_never_removed(encoder, keys, tmp_path):
    """In use: used within the last hour, being computed, or being read."""
    cache = tmp_path / "cache"
    set_last_used(cache / keys[1], 0.9)
    lock = files.Lock(cache / keys[2] / f"{SHARD}.lock")
    assert lock.take()
    check_cap(encoder, cache, keys, remaining=[1, 2], room=0)
    lock.release()
    states = Extractor(encoder, runs.READOUTS, layers=[1], cache=cache)(TEXTS)  # opens keys[1]
    set_last_used(cache / keys[1], 5)
    states.cell(1, "mean")  # read
    purge(next(entry.folder for entry in list_cache(cache) if entry.manifest["made_of"]["layers"] == [3]))
    check_cap(encoder, cache, keys, remaining=[1], room=0)


def test_resuming_a_key_counts_as_use(encoder, keys, tmp_path):
    cache = tmp_path / "cache"
    (cache / keys[2] / ROWS).unlink()
    verify(cache / keys[2])
    set_last_used(cache / keys[2], 9)
    store.Store(cache, list_cache(cache)[-1].manifest["made_of"], name="", size=1e6)
    assert time.time() - list_cache(cache)[0].used < 60
    assert list_cache(cache)[0].folder.name == keys[2]


@pytest.mark.parametrize(
    ("twin", "room", "remaining"),
    [("the last used first", 0.999, [0, 1]), ("whatever is in use", 0, [0]), ("nothing", 0.999, [0, 1])],
)
def test_a_cap_that_removes_the_wrong_key_would_be_caught(encoder, keys, tmp_path, monkeypatch, twin, room, remaining):
    if twin == "the last used first":
        monkeypatch.setattr(store, "list_cache", lambda cache: list_cache(cache)[::-1])
    elif twin == "whatever is in use":
        monkeypatch.setattr(store, "IN_USE", -1.0)
    else:
        monkeypatch.setattr(store, "purge", lambda folder: False)
    set_last_used(tmp_path / "cache" / keys[0], 0)
    with pytest.raises(AssertionError):
        check_cap(encoder, tmp_path / "cache", keys, remaining=remaining, room=room)


# ------------------------------------------------------------------------------------------------------ out of memory

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:1] err == 0. DefaultCPUAllocator: {} memory: you tried to allocate 9 bytes."
MEMORY_ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(ALLOCATOR.format("can't allocate")),
    RuntimeError(ALLOCATOR.format("not enough")),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
)


@contextmanager
def limit_memory(encoder: Encoder, *, error: BaseException, rows: int = 10**6, tokens: int = 10**6) -> Iterator[None]:
    """Within the block, larger batches raise `error` in the middle of the model."""

    def check_size(module: Any, args: Any) -> None:
        if args[0].shape[0] > rows or args[0].shape[1] > tokens:
            raise error

    hook = encoder.blocks[1].register_forward_pre_hook(check_size)
    try:
        yield
    finally:
        hook.remove()


def count_halvings(size: int, rows: int) -> int:
    """How often a batch is halved where `rows` rows fit."""
    return 0 if size <= rows else 1 + count_halvings(size // 2, rows) + count_halvings(size - size // 2, rows)


def batch_sizes(encoder: Encoder) -> list[int]:
    """The batch sizes of a run with unlimited memory."""
    sizes, forward = [], Encoder.forward
    with patched(Encoder, "forward", lambda self, batch: (sizes.append(len(batch.ids)), forward(self, batch))[1]):
        encode(encoder, None)
    return sizes


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=["CUDA", "CPU", "Windows", "cuBLAS", "Python"])
def test_a_batch_that_does_not_fit_is_halved(encoder, tmp_path, error):
    expected, sizes = encode(encoder, None), batch_sizes(encoder)
    assert expected.source["batches halved"] == 0
    assert max(sizes) > 4
    for rows in (5, 1) if error is MEMORY_ERRORS[0] else (5,):
        with limit_memory(encoder, rows=rows, error=error):
            states = encode(encoder, tmp_path / str(rows))
        assert states.source["batches halved"] == sum(count_halvings(size, rows) for size in sizes) > 0
        assert np.array_equal(states.present, expected.present)
        np.testing.assert_allclose(stack_cells(states), stack_cells(expected), rtol=0, atol=1e-5)
        rerun = record_work(lambda rows=rows: encode(encoder, tmp_path / str(rows)))
        assert rerun.passes == 0
        assert rerun.states.source["batches halved"] == states.source["batches halved"]  # it is in the manifest


@pytest.mark.parametrize("row", [3, 40])  # in the first window, and in the second
def test_a_text_that_does_not_fit_is_named(encoder, tmp_path, row):
    texts = [text if i != row else " ".join(["cat"] * 30) for i, text in enumerate(TEXTS)]
    extractor = Extractor(encoder, runs.READOUTS, layers=runs.LAYERS, max_tokens_per_batch=200, cache=tmp_path)
    with limit_memory(encoder, tokens=20, error=MEMORY_ERRORS[1]), pytest.raises(InputError) as caught:
        extractor(texts)
    message = f"row {row}: 32 tokens do not fit in memory. Pass --max-length, or --long-rows drop with it."
    assert str(caught.value) == message
    assert not list(tmp_path.rglob("*.lock"))
    assert np.isfinite(extractor(texts).cell(2, "mean")).all()


def test_other_errors_are_not_treated_as_out_of_memory(encoder):
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)")

    def encode_and_fail() -> None:
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            encode(encoder, None)

    with limit_memory(encoder, rows=0, error=error):
        work = record_work(encode_and_fail)
    assert work.passes <= 3  # the batches already started


def test_a_page_lists_halved_batches(model, tmp_path, capsys, monkeypatch):
    """run.json too: the same texts in other batches differ in the last bits."""
    nouns, words = ("cat", "dog", "bird", "tree", "house"), ("sees", "sleeps", "runs", "in", "on", "very")
    rows = [
        f"the {size} {a} {b} the {c},{size}" for size in ("big", "red") for a in nouns for b in words for c in nouns
    ]
    (tmp_path / "d.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    forward = Encoder.forward

    def limited_forward(self: Encoder, batch: Any) -> Any:
        if len(batch.ids) > 8:
            raise MEMORY_ERRORS[1]
        return forward(self, batch)

    monkeypatch.setattr(Encoder, "forward", limited_forward)
    flags = "--layers", "1", "--readouts", "max", "--quiet", "--cache", tmp_path / "cache", "--allow-overlap"
    assert call("run", "--task", f"file:{tmp_path / 'd.csv'}", "--model", model, *flags, "--out", tmp_path / "out") == 0
    halved = json.loads((tmp_path / "out" / "run.json").read_text())["model"]["batches halved"]
    assert halved == next(count for count in map(count_halved, list_cache(tmp_path / "cache")) if count)
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"<dt><bdi>batches halved</bdi></dt><dd><bdi>{halved}</bdi></dd>" in page


def count_halved(key: store.CacheEntry) -> int:
    """The number of halved batches in a manifest; 0 for an untrained encoder."""
    if key.manifest["made_of"]["control"] == "untrained":
        return 0
    return sum(entry.get("halved", 0) for entry in key.manifest["shards"].values())


# ------------------------------------------------------------------------------------------------------------- memory


def measure_peaks(model: Path, **cases: tuple[int, str]) -> dict[str, int]:
    """Peak resident bytes of extractions, each in a process of its own (tests/support/memory.py)."""
    program = [sys.executable, str(ROOT / "tests" / "support" / "memory.py"), str(model), json.dumps(cases)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    result = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@posix
def test_memory_does_not_grow_with_the_texts(model):
    """4,000 texts against 600: their vectors, 7 MB more, are on disk. A broken version that keeps shards is detected.

    The other 6 MB are shards and windows in progress, of which 600 texts have fewer, and tables of rows.
    """
    peak_bytes = measure_peaks(model, few=(600, "small"), many=(4_000, "small"), keeping=(4_000, "small keeping"))
    assert peak_bytes["many"] - peak_bytes["few"] < 9e6
    assert peak_bytes["keeping"] - peak_bytes["few"] > 10e6


@pytest.mark.skipif(sys.platform != "linux", reason="how much memory there is cannot be limited")
@pytest.mark.long
def test_a_real_allocation_failure_halves_batches(model):
    """The error is torch's own."""
    assert measure_peaks(model, short=(20_000, "short"))["short"] > 0


@posix
@pytest.mark.long
def test_memory_does_not_grow_with_a_million_texts(model):
    peak_bytes = measure_peaks(model, few=(100_000, ""), many=(1_000_000, ""))
    print({name: f"{peak / 1e6:.0f} MB" for name, peak in peak_bytes.items()})
    assert peak_bytes["many"] - peak_bytes["few"] < 100e6  # 24 bytes a text locate its vectors, and are copied twice
