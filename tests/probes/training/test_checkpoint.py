"""A checkpoint is the same file, byte for byte, whenever the same training writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from clsprobe.probes.training import checkpoint
from clsprobe.probes.training.checkpoint import Checkpoint

FACTS = {f"fact {i}": 'é\n"' * i for i in range(6)}
PARAMETERS = {"b": torch.arange(6, dtype=torch.float32).reshape(2, 3), "a": torch.ones(5, dtype=torch.bfloat16)}


def write(path: Path) -> bytes:
    Checkpoint(path, "key").write(3, PARAMETERS, None, FACTS, {"odd": torch.ones(3, dtype=torch.uint8)})
    return path.read_bytes()


def test_every_writing_gives_the_same_bytes(tmp_path: Path) -> None:
    """The library draws another order of the facts for every call, not only for every process."""
    contents = {write(tmp_path / "c.safetensors") for _ in range(20)}
    assert len(contents) == 1


def test_the_library_alone_would_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_order_header", lambda content: (content, b""))
    assert len({write(tmp_path / "c.safetensors") for _ in range(20)}) > 1


def test_it_holds_what_the_library_wrote(tmp_path: Path) -> None:
    write(tmp_path / "c.safetensors")
    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        assert file.metadata() == {"run": "key", "step": "3"} | FACTS
        names = sorted(file.keys())
        assert names == ["odd", "weights.a", "weights.b"]
        for name in ("a", "b"):
            assert torch.equal(file.get_tensor(f"weights.{name}"), PARAMETERS[name])
    start = int.from_bytes((tmp_path / "c.safetensors").read_bytes()[:8], "little")
    assert start % 8 == 0
    restored = {name: torch.zeros_like(tensor) for name, tensor in PARAMETERS.items()}
    optimiser = torch.optim.AdamW([*restored.values()])
    saved = Checkpoint(tmp_path / "c.safetensors", "key").read(restored, optimiser)
    assert saved is not None
    assert (saved.step, saved.facts) == (3, FACTS)
    np.testing.assert_array_equal(restored["b"], PARAMETERS["b"])


def test_the_order_of_tensors_is_the_library_s(tmp_path: Path) -> None:
    """It sorts them itself, so that only the facts need an order of ours."""
    other = dict(reversed(PARAMETERS.items()))
    assert save(PARAMETERS, {"one": "fact"}) == save(other, {"one": "fact"})
