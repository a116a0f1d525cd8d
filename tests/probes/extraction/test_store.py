"""The cache of hidden states: what is damaged is found, keys never mix, the command tells and removes what is ours.

What a fault, a kill or a power failure does to it stands in test_faults.py. Every check here that looks for something
has a broken twin, a cache without that care, which it must catch.
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

pytestmark = pytest.mark.usefixtures("one_thread", "_small")
not_root = pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may do everything")
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX modes and links")


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
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the power stays on here


@pytest.fixture(scope="module")
def contents(encoder, tmp_path_factory) -> dict[str, bytes]:
    """Those of a cache with one key in it."""
    cache = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patched:
        for name, size in runs.SIZES.items():
            patched.setattr(extractor, name, size)
        encode(encoder, cache)
    return read_files(cache)


@pytest.fixture
def whole(contents, tmp_path) -> Path:
    """A cache with one key in it."""
    for name, content in contents.items():
        (tmp_path / "cache" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "cache" / name).write_bytes(content)
    return tmp_path / "cache"


@dataclass
class Work:
    """What an extraction has done: forward passes, shards written, and what it warned of."""

    passes: int = 0
    shards: list[int] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    states: Any = None


def worked(do: Callable[[], Any]) -> Work:
    """Whatever `do` has done."""
    work, forward, add = Work(), Encoder.forward, store.Store.add

    def passed(self: Encoder, batch: Any) -> Any:
        work.passes += 1
        return forward(self, batch)

    def added(self: store.Store, number: int, *rest: Any) -> None:
        work.shards.append(number)
        add(self, number, *rest)

    with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patched.setattr(Encoder, "forward", passed)
        patched.setattr(store.Store, "add", added)
        work.states = do()
    work.told = [str(one.message) for one in caught]
    return work


# ---------------------------------------------------------------------------------------------------- what is damaged

SHARD = "shard-00002.safetensors"
Damage = Callable[[bytes], bytes | None]


def flipped(at: int, bit: int = 0) -> Damage:
    """One bit is another, `at` a byte from the front, or the back."""

    def damage(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[at] ^= 1 << bit
        return bytes(changed)

    return damage


def edited(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """A manifest in which somebody has changed something."""

    def damage(content: bytes) -> bytes:
        manifest = json.loads(content)
        change(manifest)
        return json.dumps(manifest).encode()

    return damage


def of_another_key(manifest: dict[str, Any]) -> None:
    """The sound manifest of another folder."""
    del manifest["sha256"]
    manifest["made_of"]["texts"]["count"] += 1
    manifest["sha256"] = store._seal(manifest)


def gone(content: bytes) -> None:
    """A file that is not there."""


EVERY_FILE: dict[str, Damage] = {
    "first bit": flipped(0),
    "last bit": flipped(-1, 7),
    "cut": lambda content: content[: len(content) // 2],
    "a byte short": lambda content: content[:-1],
    "a byte long": lambda content: content + b"\0",
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "zeros at the end": lambda content: content[:-64] + bytes(64),
}
SHARDS: dict[str, Damage] = EVERY_FILE | {
    "a bit of the header": flipped(40, 3),
    "a bit of the data": flipped(1500, 1),
    "two rows change places": lambda content: content[:-128] + content[-64:] + content[-128:-64],
    "gone": gone,
}
MANIFESTS: dict[str, Damage] = EVERY_FILE | {
    "{}": lambda content: b"{}",
    "a list": lambda content: b"[]",
    "null": lambda content: b"null",
    "no UTF-8": lambda content: content.replace(b"none", b"n\xffne"),
    "nested without end": lambda content: b"[" * 100_000,
    "another fact": edited(lambda m: m["facts"].update(unknown=[1, 273])),
    "another digest": edited(lambda m: m["shards"][SHARD].update(sha256="0" * 64)),
    "a shard less": edited(lambda m: m["shards"].pop(SHARD)),
    "a digest that is none": edited(lambda m: m.update(sha256=7)),
    "of another key": edited(of_another_key),
}
DAMAGES = [
    *((SHARD, name, damage) for name, damage in SHARDS.items()),
    *((ROWS, name, damage) for name, damage in (EVERY_FILE | {"gone": gone}).items()),
    *((MANIFEST, name, damage) for name, damage in MANIFESTS.items()),
]


def check_mended(encoder: Encoder, cache: Path, name: str, damage: Damage) -> None:
    """A damaged file is found, set aside, told of once, and made again to the same bytes; nothing else is."""
    path, wanted = only_folder(cache) / name, read_files(cache)
    damaged = damage(path.read_bytes())
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    work = worked(lambda: encode(encoder, cache))
    assert len(work.told) == 1, work.told
    assert f": damaged or missing, and made again: {name}; what was there is kept as *.corrupt" in work.told[0]
    aside = path.with_name(f"{name}.corrupt")
    assert aside.exists() == (damaged is not None)
    if damaged is not None:
        assert aside.read_bytes() == damaged
        aside.unlink()
    number = re.fullmatch(r"shard-(\d+)\.safetensors", name)
    assert work.shards == ([int(number[1])] if number else [] if name == ROWS else [*range(runs.SHARDS)])
    assert bool(work.passes) == bool(work.shards)
    assert read_files(cache) == wanted
    again = worked(lambda: encode(encoder, cache))
    assert (again.passes, again.shards, again.told) == (0, [], [])
    assert np.array_equal(stack_cells(again.states), stack_cells(work.states), equal_nan=True)


@pytest.mark.parametrize(("name", "damage"), [(n, d) for n, _, d in DAMAGES], ids=[f"{n}, {w}" for n, w, _ in DAMAGES])
def test_a_damaged_file_is_found_and_made_again(encoder, whole, name, damage):
    check_mended(encoder, whole, name, damage)


def any_bit(encoder: Encoder, cache: Path, count: int, seed: int) -> None:
    """Flips of any bit, every byte of the cache as likely as every other."""
    rng = np.random.default_rng(seed)
    sizes = {path.rpartition("/")[2]: len(content) for path, content in read_files(cache).items()}
    for _ in range(count):
        at = int(rng.integers(sum(sizes.values())))
        for name, size in sizes.items():
            if at < size:
                check_mended(encoder, cache, name, flipped(at, int(rng.integers(8))))
                break
            at -= size


def test_any_flipped_bit_is_found(encoder, whole):
    any_bit(encoder, whole, 8, seed=0)


@pytest.mark.long
def test_a_thousand_flipped_bits_are_found(encoder, whole):
    any_bit(encoder, whole, 1_000, seed=1)


def test_several_damaged_files_are_told_of_at_once(encoder, whole):
    wanted = read_files(whole)
    for number in range(5):
        (only_folder(whole) / f"shard-{number:05d}.safetensors").write_bytes(b"")
    work = worked(lambda: encode(encoder, whole))
    assert len(work.told) == 1
    assert "shard-00002.safetensors and 2 more files; what was there" in work.told[0]
    assert work.shards == [0, 1, 2, 3, 4]
    assert wanted.items() <= read_files(whole).items()


def test_a_manifest_that_is_missing_is_a_folder_that_was_never_begun(encoder, whole):
    wanted = read_files(whole)
    (only_folder(whole) / MANIFEST).unlink()
    work = worked(lambda: encode(encoder, whole))
    assert (work.shards, work.told) == ([*range(runs.SHARDS)], [])
    assert read_files(whole) == wanted


def unread(folder: Path) -> list[str]:
    """The broken twin of `verify`: it trusts the disk."""
    return []


def forgetful(folder: Path) -> list[str]:
    """Another one: where a file is damaged it forgets them all."""
    bad = verify(folder)
    (folder / MANIFEST).unlink(missing_ok=bool(bad))
    return bad


def unsealed(folder: Path) -> Any:
    """The broken twin of `read_manifest`: it takes what stands there."""
    path = folder / MANIFEST
    return json.loads(path.read_text()) | {"sha256": None} if path.exists() else None


@pytest.mark.parametrize(
    ("part", "twin", "name", "damage"),
    [
        ("verify", unread, SHARD, flipped(1500, 1)),
        ("verify", unread, ROWS, flipped(100)),
        ("verify", forgetful, SHARD, flipped(1500, 1)),
        ("read_manifest", unsealed, MANIFEST, MANIFESTS["another fact"]),
        ("read_manifest", unsealed, MANIFEST, MANIFESTS["a shard less"]),
        ("_set_aside", lambda path: path.unlink(missing_ok=True), SHARD, flipped(40, 3)),
    ],
    ids=["unread shard", "unread rows", "forgetful", "a fact", "a shard less", "thrown away"],
)
def test_a_cache_without_the_care_would_be_caught(encoder, whole, monkeypatch, part, twin, name, damage):
    monkeypatch.setattr(store, part, twin)
    with pytest.raises((AssertionError, ValueError, OSError)):  # what it reads instead may be no Parquet at all
        check_mended(encoder, whole, name, damage)


def test_a_manifest_that_is_not_held_against_its_folder_would_be_caught(encoder, whole, monkeypatch):
    name = only_folder(whole).name
    monkeypatch.setattr(store, "_key", lambda made_of: name)
    with pytest.raises(AssertionError):
        check_mended(encoder, whole, MANIFEST, MANIFESTS["of another key"])


def test_a_shard_that_goes_while_it_is_read(encoder, whole):
    """As `clsprobe cache purge` may do to a run that has all its shards: it says how to go on."""
    states = encode(encoder, whole)
    for content in (b"", b"\xff" * 16):
        (only_folder(whole) / SHARD).write_bytes(content)
        with pytest.raises(
            InputError, match=f"{SHARD}: has been removed or damaged since .*Run the same command again"
        ):
            states.cell(0, "mean")
    assert purge(only_folder(whole))
    with pytest.raises(InputError, match="has been removed or damaged since"):
        states.cell(0, "mean")
    assert np.isfinite(encode(encoder, whole).cell(0, "mean")).all()


def test_a_torn_manifest_that_another_process_mends_stays(encoder, whole, monkeypatch):
    """Between looking and setting aside, the other one may have written a sound one."""
    path = only_folder(whole) / MANIFEST
    sound = path.read_bytes()
    path.write_bytes(b"torn")
    take = files.Lock.take

    def mended(self: files.Lock) -> bool:
        path.write_bytes(sound)
        return take(self)

    monkeypatch.setattr(files.Lock, "take", mended)
    assert verify(path.parent) == []
    assert path.read_bytes() == sound
    assert not list(path.parent.glob("*.corrupt"))


# --------------------------------------------------------------------------------------------------------------- keys


def copied(model: Path, target: Path, file: str, damage: Callable[[bytes], bytes]) -> Encoder:
    """The same model but for one of its files."""
    shutil.copytree(model, target)
    (target / file).write_bytes(damage((target / file).read_bytes()))
    return load_encoder(str(target))


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


@contextmanager
def version(package: str) -> Iterator[None]:
    real = importlib.metadata.version
    with patched(importlib.metadata, "version", lambda name: real(name) + ("+1" if name == package else "")):
        yield


@dataclass
class Variation:
    """What is different from the first run. within: a context that is in force while it runs."""

    encoder: Encoder
    texts: list[str] = field(default_factory=lambda: list(TEXTS))
    within: Callable[[], Any] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def extractor(self, cache: Path | None = None) -> Extractor:
        first = {"readouts": runs.READOUTS, "layers": runs.LAYERS, "max_tokens_per_batch": 200}
        return Extractor(self.encoder, cache=cache, **(first | self.arguments))

    def do(self, what: Callable[[Variation], Any]) -> Any:
        if self.within is None:
            return what(self)
        with self.within():
            return what(self)


FIRST, PACKAGES = "the first run", ("torch", "transformers", "tokenizers", "numpy")
DIFFERS: dict[str, set[str]] = {  # what varies -> what the key says of it
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
    spoken = b'"normalizer": {\n    "type": "Lowercase"\n  }', b'"normalizer": null'
    return {
        FIRST: Variation(encoder),
        "a weight": Variation(copied(model, root / "weight", "model.safetensors", flipped(-4))),
        "the tokenizer": Variation(copied(model, root / "words", "tokenizer.json", lambda c: c.replace(*spoken))),
        "the configuration": Variation(copied(model, root / "eps", "config.json", lambda c: c.replace(*eps))),
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
        **{name: Variation(encoder, within=partial(version, name)) for name in PACKAGES},
        "our own code": Variation(encoder, within=lambda: patched(extractor, "_digest_own_code", lambda: "f" * 64)),
        "the format of the files": Variation(encoder, within=lambda: patched(store, "FORMAT", -1)),
    }  # fmt: skip


def test_every_variation_is_tried(variations):
    assert set(DIFFERS) == set(variations) - {FIRST}


def described(one: Variation) -> dict[str, Any]:
    return one.extractor()._made_of(one.texts) | {"format": store.FORMAT}


def test_a_key_holds_whatever_the_vectors_depend_on(variations):
    first = described(variations[FIRST])
    for name, one in variations.items():
        of = one.do(described)
        assert {part for part in of if of[part] != first[part]} == DIFFERS.get(name, set()), name


@pytest.mark.filterwarnings("ignore:.*of their spread over the texts")  # random weights in half precision
def test_another_key_is_another_folder(variations, tmp_path):
    """And the same one the second time, without a forward pass; the list shows why they differ."""
    made: dict[str, np.ndarray] = {}
    for number, (name, one) in enumerate(variations.items()):
        made[name] = stack_cells(one.do(lambda one: one.extractor(tmp_path)(one.texts)))
        assert len(list_cache(tmp_path)) == number + 1, name
    for name, one in variations.items():
        work = worked(lambda one=one: one.do(lambda one: one.extractor(tmp_path)(one.texts)))
        assert (work.passes, work.shards) == (0, []), name
        assert np.array_equal(stack_cells(work.states), made[name], equal_nan=True), name
    assert len(list_cache(tmp_path)) == len(variations)
    told = Counter(re.sub(r"^\w+  [\d.]+ MB", "", one.summary()) for one in list_cache(tmp_path))
    assert [line for line, times in told.items() if times > 1] == []


def test_another_order_of_readouts_reads_what_is_there(encoder, tmp_path):
    """What a text lacks is kept by the number of a readout."""
    for readouts in (("cls", "token[2]"), ("token[2]", "cls")):
        states = Extractor(encoder, readouts, cache=tmp_path)(["cat", "the dog"])
        assert states.present[readouts.index("cls")].tolist() == [True, True]
        assert states.present[readouts.index("token[2]")].tolist() == [False, True]
        assert np.isnan(states.cell(1, "token[2]")[0]).all()


def test_where_a_model_lies_makes_no_other_key(variations, model, tmp_path):
    elsewhere = Variation(copied(model, tmp_path / "elsewhere", "config.json", lambda content: content))
    cache = tmp_path / "cache"
    for one, passes in ((variations[FIRST], True), (elsewhere, False)):
        work = worked(lambda one=one: one.extractor(cache)(tuple(one.texts)))
        assert bool(work.passes) == passes
    assert len(list_cache(cache)) == 1


@pytest.mark.parametrize(
    "dropped", ["digest", "seed", "dtype", "texts", "layers", "readouts", "plan", "max_length", "versions"]
)
def test_a_key_that_leaves_something_out_would_be_caught(variations, monkeypatch, dropped):
    made_of = Extractor._made_of

    def careless(self: Extractor, texts: Any) -> dict[str, Any]:
        return made_of(self, texts) | {dropped: None}

    monkeypatch.setattr(Extractor, "_made_of", careless)
    with pytest.raises(AssertionError):
        test_a_key_holds_whatever_the_vectors_depend_on(variations)


OWN = """
from clsprobe.probes.extraction.readouts import Readout
class Scaled(Readout):
    name = "scaled"
    def __init__(self, factor, more=None):
        self.factor, self.more = factor, more
    def read(self, hidden, batch):
        return hidden[:, 0] * self.factor
"""


def module_of(path: Path, code: str) -> ModuleType:
    path.write_text(code)
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[path.stem] = module  # as an import would: joblib asks where a class comes from
    spec.loader.exec_module(module)
    return module


def test_a_readout_of_others_is_known_by_its_code_and_its_arguments(encoder, tmp_path):
    cache, path = tmp_path / "cache", tmp_path / "their_readouts.py"

    def passes(*readouts: Readout) -> int:
        return worked(lambda: Extractor(encoder, ["cls", *readouts], layers=[1], cache=cache)(TEXTS)).passes

    scaled = module_of(path, OWN).Scaled
    assert passes(scaled(2)) > 0
    assert passes(scaled(2)) == 0  # another object of the same kind
    assert passes(module_of(path, OWN).Scaled(2)) == 0  # as in another process
    assert passes(scaled(3)) > 0
    assert passes(scaled(2, more={"a": np.arange(3)})) > 0
    assert passes(scaled(2, more={"a": np.arange(3)})) == 0
    assert passes(scaled(2, more={"a": np.arange(4)})) > 0
    assert passes(module_of(path, OWN.replace("hidden[:, 0] *", "hidden[:, 0] +")).Scaled(2)) > 0
    codes = {re.search(r"scaled ([0-9a-f]{8})", one.summary())[1] for one in list_cache(cache)}  # type: ignore[index]
    assert len(codes) == len(list_cache(cache)) == 5


@pytest.mark.parametrize("untold", ["nowhere", "unpicklable"])
def test_a_readout_that_cannot_be_known_again_is_never_reused(encoder, tmp_path, untold):
    """Typed in, its code is in no file; or it holds what has no digest."""
    if untold == "nowhere":
        space: dict[str, Any] = {"__name__": "typed_in"}
        exec(OWN, space)
        readout = space["Scaled"](2)
    else:
        readout = module_of(tmp_path / "their_other_readouts.py", OWN).Scaled(2, more=iter(lambda: 0, 1))
    extractor = Extractor(encoder, ["cls", readout], layers=[1], cache=tmp_path / "cache")
    assert all(worked(lambda: extractor(TEXTS)).passes for _ in range(2))


def test_a_key_that_forgets_the_code_of_readouts_would_be_caught(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(extractor, "_digest_code", lambda readout: "")
    with pytest.raises(AssertionError):
        test_a_readout_of_others_is_known_by_its_code_and_its_arguments(encoder, tmp_path)


# -------------------------------------------------------------------------------------------------------- the command


@dataclass
class Said:
    """What a command has said, and its exit code."""

    code: int
    lines: list[str]
    error: str


@pytest.fixture
def command(capsys, monkeypatch) -> Callable[..., Said]:
    """`clsprobe cache ...`: what the user can mend is one line, and nothing else is on stderr."""
    monkeypatch.setattr("clsprobe.cli.register_studies", lambda: None)  # they take longer than all the rest

    def command(*arguments: object) -> Said:
        capsys.readouterr()
        code = call("cache", *arguments)
        captured = capsys.readouterr()
        assert re.fullmatch(r"error: [^\n]+\.\n" if code else "", captured.err)
        assert code in (0, 2)
        return Said(code, captured.out.splitlines(), captured.err.strip())

    return command


@pytest.fixture
def keys(encoder, tmp_path) -> list[str]:
    """Three keys in a cache, the last used first."""
    for hours, layer in enumerate((0, 1, 2), 2):
        Extractor(encoder, runs.READOUTS, layers=[layer], cache=tmp_path / "cache")(TEXTS)
        (one,) = (one for one in list_cache(tmp_path / "cache") if one.manifest["made_of"]["layers"] == [layer])
        used_before(one.folder, hours)
    return [one.folder.name for one in list_cache(tmp_path / "cache")]


def used_before(folder: Path, hours: float) -> None:
    then = time.time() - hours * 3600
    os.utime(folder / MANIFEST, (then, then))


def test_the_list_tells_what_there_is(command, keys, encoder, tmp_path):
    used_before(tmp_path / "cache" / keys[2], 75)
    said = command("ls", "--cache", tmp_path / "cache")
    assert (said.code, len(said.lines)) == (0, 4)
    first = re.escape(f"whole  {encoder.name} {encoder.description.digest[:8]}  48 texts ")
    assert re.match(
        rf"{keys[0]}  0\.0 MB  today  {first}\w{{8}}  layers 0  readouts cls, mean  float32 on cpu, ", said.lines[0]
    )
    assert f"torch {metadata.version('torch')} " in said.lines[0]
    assert said.lines[2].startswith(f"{keys[2]}  0.0 MB  3 days  whole")
    assert said.lines[3] == f"{tmp_path / 'cache'}: 3 entries, 0.00 GB"
    assert command("ls", keys[1], "--cache", tmp_path / "cache").lines[1].endswith(": 1 entry, 0.00 GB")


def test_verify_tells_what_is_damaged(command, keys, tmp_path):
    cache = tmp_path / "cache"
    said = command("verify", "--cache", cache)
    assert said.code == 0
    assert all(line.endswith("  sound") for line in said.lines[:3])
    (cache / keys[1] / "shard-00001.safetensors").write_bytes(b"torn")
    (cache / keys[2] / MANIFEST).write_text("torn")
    assert command("verify", keys[0], "--cache", cache).code == 0
    said = command("verify", "--cache", cache)
    assert said.code == 2
    assert (
        said.error == f"error: {cache}: 2 files are damaged or missing. Run again what needs them; they are made anew."
    )
    aside = {line[:32]: line.partition("set aside: ")[2] for line in said.lines[:3] if not line.endswith("sound")}
    assert aside == {keys[1]: "shard-00001.safetensors", keys[2]: MANIFEST}
    said = command("verify", "--cache", cache)
    assert said.code == 0
    assert [line for line in said.lines if keys[1] in line and "unfinished" in line and line.endswith("sound")]
    assert [line for line in said.lines if keys[2] in line and line.endswith("that can be read: of no use")]


def test_purge_removes_the_keys_that_are_named_or_all(command, keys, tmp_path):
    cache = tmp_path / "cache"
    said = command("purge", keys[1], "--cache", cache)
    assert (said.code, said.lines[-1]) == (0, f"{cache}: 1 entry, 0.00 GB removed")
    assert sorted(path.name for path in cache.iterdir()) == sorted([keys[0], keys[2]])
    assert command("purge", "--cache", cache).lines[-1] == f"{cache}: 2 entries, 0.00 GB removed"
    assert list(cache.iterdir()) == []
    assert command("ls", "--cache", cache).lines == [f"{cache}: 0 entries, 0.00 GB"]


@pytest.mark.parametrize("what", ["ls", "verify", "purge"])
def test_a_mistyped_key_is_met_with_the_nearest_one(command, keys, tmp_path, what):
    cache, typed = tmp_path / "cache", ("0" if keys[1][0] != "0" else "1") + keys[1][1:]
    before = read_files(cache)
    said = command(what, keys[0], typed, "--cache", cache)
    assert (said.code, said.lines) == (2, [])
    assert said.error.startswith(f"error: cache {what}: unknown key '{typed}'. Did you mean '{keys[1]}'? One of: ")
    assert read_files(cache) == before


@pytest.mark.parametrize("key", ["../mine", "/", ".", "..", "*", "shard-00000.safetensors", "\x1b[31m", "é"])
def test_what_is_no_key_is_never_removed(command, keys, tmp_path, key):
    (tmp_path / "mine").mkdir()
    before = read_files(tmp_path)
    said = command("purge", key, "--cache", tmp_path / "cache")
    assert said.code == 2
    assert "unknown key '" in said.error
    assert "\x1b" not in said.error
    assert read_files(tmp_path) == before
    assert (tmp_path / "mine").is_dir()


def test_a_cache_that_is_empty_or_is_not_there(command, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("CLSPROBE_HOME", str(tmp_path / "never made"))
    for what in ("ls", "verify", "purge"):
        for arguments, folder in ((("--cache", tmp_path / "empty"), "empty"), ((), "never made")):
            said = command(what, *arguments)
            assert said.code == 0
            assert said.lines == [f"{tmp_path / folder}: 0 entries, 0.00 GB" + (" removed" if what == "purge" else "")]
        said = command(what, "ab", "--cache", tmp_path / "empty")
        assert said.error == f"error: cache {what}: unknown key 'ab'. There is none in {tmp_path / 'empty'}."
        assert command(what, "--cache", tmp_path / "file").error.endswith(
            ": is not a folder. Name the folder of a cache."
        )
        assert command(what, "--cache", tmp_path / "typo").error.endswith(
            ": does not exist. Name the folder of a cache."
        )
        assert command(what, "--cache", "~nobody-of-this-name/x").error == (
            "error: --cache ~nobody-of-this-name/x: there is no such home folder. Name another folder."
        )
    assert (
        command("purg").error == "error: cache: unknown action 'purg'. Did you mean 'purge'? One of: ls, verify, purge."
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def foreign(cache: Path, root: Path) -> list[Path]:
    """Files of others, in a cache and in folders that look like keys."""
    names = [f"{number:032x}" for number in range(8)]
    files = [
        cache / "notes.txt",
        cache / ".hidden",
        cache / "mine" / MANIFEST,
        cache / names[0] / "thesis.tex",
        cache / names[1] / "poetry.lock",
        cache / names[2] / f"{SHARD}.old",
        cache / names[3] / SHARD / "thesis.tex",  # folders with names of ours
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


def check_foreign(command: Callable[..., Said], keys: list[str], root: Path) -> None:
    """Neither the command nor a full cache removes or alters what is not ours."""
    there = foreign(root / "cache", root)
    for arguments in (("ls",), ("verify",), ("purge",), ("purge", f"{0:032x}")):
        command(*arguments, "--cache", root / "cache")
        assert [path.read_text() for path in there if path.is_file()] == ["foreign"] * (len(there) - 1)
        assert there[-2].is_symlink()
    assert not any((root / "cache" / key).exists() for key in keys)


@posix
def test_files_of_others_are_never_removed(command, keys, tmp_path):
    check_foreign(command, keys, tmp_path)


@posix
def test_a_purge_that_takes_all_would_be_caught(command, keys, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "OURS", re.compile(".*", re.DOTALL))
    with pytest.raises((AssertionError, OSError)):
        check_foreign(command, keys, tmp_path)


def check_in_use(command: Callable[..., Said], keys: list[str], cache: Path) -> None:
    """While a process makes a shard, its key stays; the others go."""
    lock = files.Lock(cache / keys[1] / f"{SHARD}.lock")
    assert lock.take()
    try:
        before = read_files(cache / keys[1])
        said = command("purge", "--cache", cache)
        assert said.code == 2
        assert said.error == f"error: cache purge {keys[1]}: in use. Wait for the runs that use it to end."
        assert said.lines[1].endswith("  in use: kept")
        assert said.lines[-1] == f"{cache}: 2 entries, 0.00 GB removed"
        assert read_files(cache / keys[1]) == before
    finally:
        lock.release()
    assert [path.name for path in cache.iterdir()] == [keys[1]]
    assert command("purge", keys[1], "--cache", cache).code == 0
    assert list(cache.iterdir()) == []


def test_a_key_in_use_is_not_purged(command, keys, tmp_path):
    check_in_use(command, keys, tmp_path / "cache")


def test_a_purge_that_looks_for_no_lock_would_be_caught(command, keys, tmp_path, monkeypatch):
    monkeypatch.setattr(files.Lock, "_stale", lambda self: True)
    with pytest.raises(AssertionError):
        check_in_use(command, keys, tmp_path / "cache")


@not_root
def test_a_key_that_cannot_be_removed_is_told_of(command, keys, tmp_path):
    (tmp_path / "cache" / keys[0]).chmod(0o500)
    assert "Permission denied" in command("purge", keys[0], "--cache", tmp_path / "cache").error


# ---------------------------------------------------------------------------------------------- where a cache can be


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where a cache is put when its own place cannot be used."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLSPROBE_HOME", str(tmp_path / "file" / "cache"))
    return tmp_path / "temporary" / f"clsprobe-{os.getuid() if os.name != 'nt' else 0}"


def test_a_default_folder_that_cannot_be_used_is_replaced(temporary, tmp_path):
    told = re.escape(f"{tmp_path}/file/cache cannot keep vectors (Not a directory); they are kept in {temporary}. Name")
    for _ in range(2):  # made, and found again
        with pytest.warns(UserWarning, match=told):
            assert make_cache_folder() == temporary
        if os.name != "nt":
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
    assert list(temporary.iterdir()) == []


def promise_broken(path: Path) -> None:
    raise OSError(errno.ENOTSUP, "Two processes can create one file there", str(path))


def test_a_disk_that_keeps_no_promise_is_replaced(temporary, tmp_path, monkeypatch):
    monkeypatch.setenv("CLSPROBE_HOME", str(tmp_path / "network"))
    tried = files.check_folder
    monkeypatch.setattr(store, "check_folder", lambda f: tried(f) if f == temporary else promise_broken(f))
    with pytest.warns(UserWarning, match=r"network cannot keep vectors \(Two processes can create one file there\)"):
        assert make_cache_folder() == temporary


@not_root
def test_a_default_folder_that_is_closed_is_replaced(temporary, tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir(mode=0o500)
    monkeypatch.setenv("CLSPROBE_HOME", str(tmp_path / "closed"))
    with pytest.warns(UserWarning, match=r"cannot keep vectors \(Permission denied\)"):
        assert make_cache_folder() == temporary


def test_a_folder_that_is_named_and_cannot_be_used_is_an_error(temporary, tmp_path, monkeypatch):
    """The user has asked for it: nothing goes elsewhere unseen."""
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be used") as caught:
            make_cache_folder(folder)
        assert str(caught.value).startswith(f"--cache {folder}: cannot be used (")
        assert str(caught.value).endswith("Name another folder.")
    monkeypatch.setattr(store, "check_folder", promise_broken)
    with pytest.raises(InputError, match=r"cannot be used \(Two processes can create one file"):
        make_cache_folder(tmp_path / "network")
    assert not temporary.exists()


def test_a_run_with_a_folder_that_cannot_be_used(temporary, tmp_path, capsys):
    flags = "run", "--task", "grammar:tense:60", "--layers", "0", "--quiet", "--out", tmp_path / "out"
    assert call(*flags, "--cache", tmp_path / "file") == 2
    message = f"error: --cache {tmp_path / 'file'}: cannot be used (File exists). Name another folder.\n"
    assert capsys.readouterr() == ("", message)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_left_to_the_store(temporary, tmp_path, monkeypatch):
    """It knows how much it needs."""

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "check_folder", full)
    assert make_cache_folder(tmp_path / "full") == tmp_path / "full"


def linked(temporary: Path) -> None:
    (temporary.parent / "theirs").mkdir(mode=0o700)
    temporary.symlink_to(temporary.parent / "theirs")


def reachable(temporary: Path) -> None:
    temporary.mkdir()
    (temporary / "something").write_text("")  # of a folder that holds nothing, others are shut out
    temporary.chmod(0o750)


def of_another(temporary: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    temporary.mkdir(mode=0o700)
    (temporary / "something").write_text("")
    os.chown(temporary, 12345, 12345)


def check_refused(temporary: Path, lay: Callable[[Path], None]) -> None:
    """What others have laid there is refused, before anything is written into it."""
    lay(temporary)
    before = {path: path.lstat().st_mtime_ns for path in temporary.parent.rglob("*")}
    with pytest.raises(InputError) as caught:
        make_cache_folder()
    assert "cannot keep vectors (Not a directory), nor can " in str(caught.value)
    assert str(caught.value).endswith("(others can reach it). Name another folder.")
    assert {path: path.lstat().st_mtime_ns for path in temporary.parent.rglob("*")} == before


@posix
@pytest.mark.parametrize("lay", [linked, reachable, of_another])
def test_a_temporary_folder_that_others_can_reach_is_refused(temporary, lay):
    check_refused(temporary, lay)


@posix
def test_a_folder_that_is_tried_before_it_is_looked_at_would_be_caught(temporary, monkeypatch):
    made = store.make_folder
    monkeypatch.setattr(store, "make_folder", lambda path, private: files.check_folder(made(path, private=private)))
    with pytest.raises(AssertionError):
        check_refused(temporary, reachable)


# ------------------------------------------------------------------------------------------------------ the size cap


def check_cap(encoder: Encoder, cache: Path, keys: list[str], *, leave: list[int], room: float) -> None:
    """One key more, where the cache may hold `room` of the three that are there and the new one: who is left."""
    sizes = sum(one.bytes for one in list_cache(cache))
    more = Extractor(encoder, runs.READOUTS, layers=[3], cache=cache)
    with patched(store, "LARGEST_CACHE", room * sizes + more._row_bytes * len(TEXTS)):
        more(TEXTS)
    there = [one.folder.name for one in list_cache(cache) if one.manifest["made_of"]["layers"] != [3]]
    assert there == [keys[i] for i in leave]
    assert len(list_cache(cache)) == len(leave) + 1


@pytest.mark.parametrize(
    ("room", "leave"), [(1.001, [0, 1, 2]), (0.999, [0, 1]), (0.66, [0]), (0.34, [0]), (0.33, []), (0, [])]
)
def test_what_was_not_used_for_longest_leaves_first(encoder, keys, tmp_path, room, leave):
    check_cap(encoder, tmp_path / "cache", keys, leave=leave, room=room)


def test_what_is_in_use_never_leaves(encoder, keys, tmp_path):
    """Used within the last hour; under way, however long that takes; read at this moment."""
    cache = tmp_path / "cache"
    used_before(cache / keys[1], 0.9)
    lock = files.Lock(cache / keys[2] / f"{SHARD}.lock")
    assert lock.take()
    check_cap(encoder, cache, keys, leave=[1, 2], room=0)
    lock.release()
    states = Extractor(encoder, runs.READOUTS, layers=[1], cache=cache)(TEXTS)  # opened: it is keys[1]
    used_before(cache / keys[1], 5)
    states.cell(1, "mean")  # read
    purge(next(one.folder for one in list_cache(cache) if one.manifest["made_of"]["layers"] == [3]))
    check_cap(encoder, cache, keys, leave=[1], room=0)


def test_a_key_that_is_gone_on_with_counts_as_used(encoder, keys, tmp_path):
    cache = tmp_path / "cache"
    (cache / keys[2] / ROWS).unlink()
    verify(cache / keys[2])
    used_before(cache / keys[2], 9)
    store.Store(cache, list_cache(cache)[-1].manifest["made_of"], name="", size=1e6)
    assert time.time() - list_cache(cache)[0].used < 60
    assert list_cache(cache)[0].folder.name == keys[2]


@pytest.mark.parametrize(
    ("twin", "room", "leave"),
    [("the last used first", 0.999, [0, 1]), ("whatever is in use", 0, [0]), ("nothing", 0.999, [0, 1])],
)
def test_a_cap_that_takes_the_wrong_key_would_be_caught(encoder, keys, tmp_path, monkeypatch, twin, room, leave):
    if twin == "the last used first":
        monkeypatch.setattr(store, "list_cache", lambda cache: list_cache(cache)[::-1])
    elif twin == "whatever is in use":
        monkeypatch.setattr(store, "IN_USE", -1.0)
    else:
        monkeypatch.setattr(store, "purge", lambda folder: False)
    used_before(tmp_path / "cache" / keys[0], 0)
    with pytest.raises(AssertionError):
        check_cap(encoder, tmp_path / "cache", keys, leave=leave, room=room)


# ------------------------------------------------------------------------------------------------------ out of memory

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:1] err == 0. DefaultCPUAllocator: {} memory: you tried to allocate 9 bytes."
FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(ALLOCATOR.format("can't allocate")),
    RuntimeError(ALLOCATOR.format("not enough")),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
)


@contextmanager
def memory_for(encoder: Encoder, *, error: BaseException, rows: int = 10**6, tokens: int = 10**6) -> Iterator[None]:
    """Within the block, larger batches fail in the middle of the model."""

    def look(module: Any, args: Any) -> None:
        if args[0].shape[0] > rows or args[0].shape[1] > tokens:
            raise error

    hook = encoder.blocks[1].register_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


def halvings(size: int, rows: int) -> int:
    """How often a batch is halved where so many rows have room."""
    return 0 if size <= rows else 1 + halvings(size // 2, rows) + halvings(size - size // 2, rows)


def sizes_of(encoder: Encoder) -> list[int]:
    """Of the batches of a run that has all the memory it wants."""
    sizes, forward = [], Encoder.forward
    with patched(Encoder, "forward", lambda self, batch: (sizes.append(len(batch.ids)), forward(self, batch))[1]):
        encode(encoder, None)
    return sizes


@pytest.mark.parametrize("error", FULL, ids=["CUDA", "CPU", "Windows", "cuBLAS", "Python"])
def test_a_batch_that_does_not_fit_is_halved(encoder, tmp_path, error):
    wanted, sizes = encode(encoder, None), sizes_of(encoder)
    assert wanted.source["batches halved"] == 0
    assert max(sizes) > 4
    for rows in (5, 1) if error is FULL[0] else (5,):
        with memory_for(encoder, rows=rows, error=error):
            states = encode(encoder, tmp_path / str(rows))
        assert states.source["batches halved"] == sum(halvings(size, rows) for size in sizes) > 0
        assert np.array_equal(states.present, wanted.present)
        np.testing.assert_allclose(stack_cells(states), stack_cells(wanted), rtol=0, atol=1e-5)
        again = worked(lambda rows=rows: encode(encoder, tmp_path / str(rows)))
        assert again.passes == 0
        assert again.states.source["batches halved"] == states.source["batches halved"]  # the manifest keeps it


@pytest.mark.parametrize("row", [3, 40])  # of the first window, and of the second
def test_a_text_that_does_not_fit_is_named(encoder, tmp_path, row):
    texts = [text if i != row else " ".join(["cat"] * 30) for i, text in enumerate(TEXTS)]
    extractor = Extractor(encoder, runs.READOUTS, layers=runs.LAYERS, max_tokens_per_batch=200, cache=tmp_path)
    with memory_for(encoder, tokens=20, error=FULL[1]), pytest.raises(InputError) as caught:
        extractor(texts)
    message = f"row {row}: 32 tokens do not fit in memory. Pass --max-length, or --long-rows drop with it."
    assert str(caught.value) == message
    assert not list(tmp_path.rglob("*.lock"))
    assert np.isfinite(extractor(texts).cell(2, "mean")).all()


def test_another_error_is_not_taken_for_want_of_memory(encoder):
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)")

    def refused() -> None:
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            encode(encoder, None)

    with memory_for(encoder, rows=0, error=error):
        work = worked(refused)
    assert work.passes <= 3  # of the batches that were under way


def test_a_page_tells_of_halved_batches(model, tmp_path, capsys, monkeypatch):
    """So does run.json: the same texts in other batches are a deviation in the last bits."""
    first, then = ("cat", "dog", "bird", "tree", "house"), ("sees", "sleeps", "runs", "in", "on", "very")
    rows = [f"the {size} {a} {b} the {c},{size}" for size in ("big", "red") for a in first for b in then for c in first]
    (tmp_path / "d.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    forward = Encoder.forward

    def passed(self: Encoder, batch: Any) -> Any:
        if len(batch.ids) > 8:
            raise FULL[1]
        return forward(self, batch)

    monkeypatch.setattr(Encoder, "forward", passed)
    flags = "--layers", "1", "--readouts", "max", "--quiet", "--cache", tmp_path / "cache", "--allow-overlap"
    assert call("run", "--task", f"file:{tmp_path / 'd.csv'}", "--model", model, *flags, "--out", tmp_path / "out") == 0
    halved = json.loads((tmp_path / "out" / "run.json").read_text())["model"]["batches halved"]
    assert halved == next(one for one in map(count_halved, list_cache(tmp_path / "cache")) if one)
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"<dt><bdi>batches halved</bdi></dt><dd><bdi>{halved}</bdi></dd>" in page


def count_halved(key: store.CacheEntry) -> int:
    """The halved batches in a manifest; 0 for an untrained encoder."""
    if key.manifest["made_of"]["control"] == "untrained":
        return 0
    return sum(entry.get("halved", 0) for entry in key.manifest["shards"].values())


# ------------------------------------------------------------------------------------------------------------ memory


def peaks(model: Path, **cases: tuple[int, str]) -> dict[str, int]:
    """Peak resident bytes of extractions, each in a process of its own (tests/support/memory.py)."""
    program = [sys.executable, str(ROOT / "tests" / "support" / "memory.py"), str(model), json.dumps(cases)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@posix
def test_memory_does_not_grow_with_the_texts(model):
    """Many more texts: their vectors, 7 MB more, are on the disk. The twin keeps its shards, and is seen.

    What is there besides, 6 MB, are shards and windows under way, of which 600 texts have fewer, and tables of rows.
    """
    found = peaks(model, few=(600, "small"), many=(4_000, "small"), keeping=(4_000, "small keeping"))
    assert found["many"] - found["few"] < 9e6
    assert found["keeping"] - found["few"] > 10e6


@pytest.mark.skipif(sys.platform != "linux", reason="how much memory there is cannot be limited")
@pytest.mark.long
def test_memory_that_is_really_short(model):
    """What torch itself says when it cannot allocate."""
    assert peaks(model, short=(20_000, "short"))["short"] > 0


@posix
@pytest.mark.long
def test_memory_does_not_grow_with_a_million_texts(model):
    found = peaks(model, few=(100_000, ""), many=(1_000_000, ""))
    print({name: f"{peak / 1e6:.0f} MB" for name, peak in found.items()})
    assert found["many"] - found["few"] < 100e6  # 24 bytes a text say where its vectors are, and are copied twice
