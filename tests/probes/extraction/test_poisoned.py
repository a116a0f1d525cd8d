"""A cache in which somebody else has written: nothing outside it is read as ours, moved, written or touched.

Every poison has a harmless twin beside it: the sound cache, read without a forward pass; the cache behind a link.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pandas as pd
import pytest
import runs
from commands import call
from outside import tree, within_deadline
from runs import encode, only_folder
from vectors import stack_cells

from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction import extractor, store
from clsprobe.probes.extraction.store import MANIFEST, ROWS, list_cache, purge, verify
from clsprobe.probes.files import file_digest

pytestmark = [
    pytest.mark.usefixtures("one_thread", "_small"),
    pytest.mark.skipif(os.name == "nt", reason="POSIX links and pipes"),
]
SHARD = "shard-00002.safetensors"


@pytest.fixture
def _small(monkeypatch) -> None:
    for name, size in runs.SIZES.items():
        monkeypatch.setattr(extractor, name, size)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Encoder:
    return load_encoder(str(models.save("bert", tmp_path_factory.mktemp("bert"))))


@pytest.fixture(scope="module")
def sound(encoder, tmp_path_factory) -> Path:
    """A cache with one key in it; to be copied."""
    cache = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patched:
        for name, size in runs.SIZES.items():
            patched.setattr(extractor, name, size)
        encode(encoder, cache)
    return cache


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    """The folder of the key in a copy of the sound cache."""
    shutil.copytree(sound, tmp_path / "cache")
    return only_folder(tmp_path / "cache")


@pytest.fixture
def outside(sound, tmp_path) -> Iterator[Path]:
    """A folder beside the cache that holds files of every name; when the test ends it must be as it was."""
    folder = tmp_path / "outside"
    shutil.copytree(only_folder(sound), folder)
    (folder / "victim").write_text("theirs")
    for path in (*folder.iterdir(), folder):
        os.utime(path, (1e9, 1e9))
    before = tree(folder)
    yield folder
    assert tree(folder) == before


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a manifest, and seal it again: the digest guards it against damage, not against an author."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    change(manifest)
    path.write_text(json.dumps(manifest | {"sha256": store._seal(manifest)}))


@pytest.fixture(scope="module")
def vectors(encoder) -> np.ndarray:
    """Those of a run without a cache."""
    with pytest.MonkeyPatch.context() as patched:
        for name, size in runs.SIZES.items():
            patched.setattr(extractor, name, size)
        return stack_cells(encode(encoder, None))


def check_recovers(encoder: Encoder, cache: Path, vectors: np.ndarray) -> None:
    """A run gives the right vectors, and leaves a sound cache."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that something was damaged
        states = within_deadline(lambda: encode(encoder, cache), *cache.rglob("*"))
    assert np.array_equal(stack_cells(states), vectors, equal_nan=True)
    passes, forward = [], Encoder.forward
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Encoder, "forward", lambda self, batch: (passes.append(1), forward(self, batch))[1])
        encode(encoder, cache)
    assert not passes


def test_the_sound_twin_is_read_as_it_is(encoder, folder, vectors):
    before = {name: content for name, (_, _, content) in tree(folder).items()}
    check_recovers(encoder, folder.parent, vectors)
    assert verify(folder) == []
    assert {name: content for name, (_, _, content) in tree(folder).items()} == before


# --------------------------------------------------------------------------------------------- names in the manifest

NAMES = (
    "../../outside/victim",
    "{outside}/victim",
    "victim",
    "shard-1.safetensors",
    "shard-00000.safetensors/x",
    "",
)


def enter(name: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    """A manifest with one more entry."""
    entry = {"rows": 8, "bytes": 6, "sha256": "0" * 64} | values
    return lambda manifest: manifest["shards"].update({name: entry})


@pytest.mark.parametrize(
    ("way", "name"), [*(("a run", name) for name in NAMES), *(("cache verify", name) for name in NAMES[:2])]
)
def test_a_name_in_a_manifest_moves_no_file(encoder, folder, outside, vectors, capsys, way, name):
    (folder / "victim").write_text("not ours")
    rewrite(folder, enter(name.format(outside=outside)))
    if way == "cache verify":
        (folder / "victim").unlink()  # a folder with files of others is left alone
        assert call("cache", "verify", "--cache", folder.parent) == 2
        assert f"set aside: {MANIFEST}" in capsys.readouterr().out
    check_recovers(encoder, folder.parent, vectors)
    if way == "a run":
        assert (folder / "victim").read_text() == "not ours"


def test_an_honest_name_of_a_missing_file_is_forgotten(encoder, folder, outside, vectors):
    """The twin: a name that a manifest may have."""
    rewrite(folder, enter("shard-00099.safetensors"))
    assert verify(folder) == ["shard-00099.safetensors"]
    check_recovers(encoder, folder.parent, vectors)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(shards=[]),
        lambda manifest: manifest.update(shards={SHARD: 7}),
        lambda manifest: manifest.update(facts=None),
        lambda manifest: manifest["shards"][SHARD].update(bytes="1"),
        lambda manifest: manifest["shards"][SHARD].update(sha256=None),
        lambda manifest: manifest["shards"][SHARD].update(path="/"),
        lambda manifest: manifest["shards"][SHARD].pop("bytes"),
    ],
)
def test_a_manifest_of_another_form_is_damage(encoder, folder, vectors, capsys, change):
    rewrite(folder, change)
    assert call("cache", "ls", "--cache", folder.parent) == 0
    assert "without a manifest that can be read" in capsys.readouterr().out
    check_recovers(encoder, folder.parent, vectors)


@pytest.mark.parametrize(
    "made_of", [{}, {"texts": 7}, {"layers": 7}, {"readouts": "x"}, {"versions": [1]}, {"code": {}}]
)
def test_a_key_made_of_anything_is_listed(tmp_path, capsys, made_of):
    folder = tmp_path / store._key(made_of)
    folder.mkdir()
    manifest = {"name": "x\n\x1b[2J", "made_of": made_of, "facts": {}, "shards": {}}
    (folder / MANIFEST).write_text(json.dumps(manifest | {"sha256": store._seal(manifest)}))
    for what in ("ls", "verify", "purge"):
        assert call("cache", what, "--cache", tmp_path) == 0
        assert "\x1b" not in capsys.readouterr().out
    assert list_cache(tmp_path) == []


# -------------------------------------------------------------------------------------------------- the table of rows


def set_rows(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Another table of rows, with its size and digest in the manifest."""
    change(pd.read_parquet(folder / ROWS)).to_parquet(folder / ROWS, index=False)
    facts = {"bytes": (folder / ROWS).stat().st_size, "sha256": file_digest(folder / ROWS)}
    rewrite(folder, lambda manifest: manifest["shards"][ROWS].update(facts))


ROW_CHANGES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "names for shards": lambda table: table.assign(shard="../../outside/victim"),
    "numbers below 0": lambda table: table.assign(shard=-1),
    "a shard far beyond the last": lambda table: table.assign(shard=table.shard.where(table.index > 0, 2**31 - 1)),
    "rows beyond the last": lambda table: table.assign(at=table["at"] + 1_000),
    "rows below 0": lambda table: table.assign(at=table["at"] - 1),
    "a text less": lambda table: table.iloc[:-1],
    "no column of shards": lambda table: table.drop(columns="shard"),
    "another column": lambda table: table.assign(path="x"),
}


@pytest.mark.parametrize("change", ROW_CHANGES.values(), ids=ROW_CHANGES)
def test_rows_that_lead_nowhere_are_damage(encoder, folder, outside, vectors, change):
    set_rows(folder, change)
    assert verify(folder) == [ROWS]
    check_recovers(encoder, folder.parent, vectors)


def test_rows_that_are_written_again_are_sound(folder):
    set_rows(folder, lambda table: table)
    assert verify(folder) == []


# --------------------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in (MANIFEST, SHARD, "manifest.lock") for kind in ("link", "link to nothing", "pipe")),
        *((name, "link") for name in (ROWS, f"{SHARD}.lock", f"{SHARD}.corrupt")),
    ],
)
def test_what_is_no_file_of_ours_is_replaced(encoder, folder, outside, vectors, name, kind):
    """Even where it leads to the right content: what stands there is set aside as it is, a link as a link."""
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(outside / (name if kind == "link" and (outside / name).exists() else "none"))
    check_recovers(encoder, folder.parent, vectors)
    if name in (MANIFEST, ROWS, SHARD):
        assert path.is_file()
        assert not path.is_symlink()
        assert path.with_name(f"{name}.corrupt").is_symlink() == (kind != "pipe")


def test_a_shard_that_becomes_a_link_is_not_read(encoder, folder, outside):
    states = encode(encoder, folder.parent)
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to(outside / SHARD)
    with pytest.raises(InputError, match=f"{SHARD}: has been removed or damaged since"):
        states.cell(0, "mean")


def test_a_key_that_is_a_link_is_refused(encoder, folder, outside):
    """Nothing is written through it, and no command lists or removes what it leads to."""
    cache, key = folder.parent, folder.name
    shutil.rmtree(folder)
    for target in (outside, outside.parent / "empty"):
        target.mkdir(exist_ok=True)
        folder.symlink_to(target)
        before = tree(target)
        message = f"--cache {cache}: {key} in it is a link, which is not followed. Remove the link."
        with pytest.raises(InputError, match=re.escape(message)):
            encode(encoder, cache)
        assert list_cache(cache) == verify(folder) == []
        assert not purge(folder)
        for what in ("ls", "verify", "purge"):
            assert call("cache", what, "--cache", cache) == 0
        assert tree(target) == before
        folder.unlink()


def test_a_cache_behind_a_link_is_used(encoder, sound, vectors, tmp_path):
    """The twin: the way to a cache is the user's."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to("disk")
    check_recovers(encoder, tmp_path / "cache", vectors)
    assert only_folder(tmp_path / "disk").name == only_folder(sound).name
    assert call("cache", "verify", "--cache", tmp_path / "cache") == 0
    assert call("cache", "purge", "--cache", tmp_path / "cache") == 0
    assert list((tmp_path / "disk").iterdir()) == []
