"""Checkpoints: a training that was killed goes on from its file, and ends with the same bits on a CPU.

The file is safetensors: "weights.NAME" of every parameter, "first.NAME" and "second.NAME", the moments that Adam keeps
of it, and whatever else the training needs; the step and other facts stand in its header.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from clsprobe.probes.errors import InputError
from clsprobe.probes.files import make_folder, replacing

ROOM = 1.1  # of its size: what a checkpoint wants to find free, beside the one that it replaces


class Saved(NamedTuple):
    """What a checkpoint holds beside the weights and their moments. step: the last one that was taken."""

    step: int
    facts: dict[str, str]
    tensors: dict[str, Tensor]


class Checkpoint:
    """A training on disk: one safetensors file with weights, moments and facts, replaced as a whole.

    key: what tells this training from others; a file of another one is refused.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def read(self, parameters: Mapping[str, Tensor], optimiser: torch.optim.AdamW) -> Saved | None:
        """Set parameters and moments to what was written, and return the rest; None where there is no file.

        Raises InputError, and sets nothing, where the file is damaged or of another training.
        """
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return None
        again = "Remove it to start again, or name another folder"
        try:
            with safe_open(self.path, "pt") as file:
                facts = file.metadata() or {}
                if facts.pop("run", None) != self.key:
                    raise InputError(str(self.path), "is a checkpoint of another run", again)
                step = int(facts.pop("step"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
                weights = {name: tensors.pop(f"weights.{name}") for name in parameters}
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise InputError(str(self.path), f"is damaged ({str(error)[:80]})", again) from None
        for name, parameter in parameters.items():
            parameter.data.copy_(weights[name])
            if f"first.{name}" in tensors:
                first, second = (tensors.pop(f"{part}.{name}").to(parameter) for part in ("first", "second"))
                taken = torch.tensor(float(step), device=parameter.device)
                optimiser.state[parameter] = {"exp_avg": first, "exp_avg_sq": second, "step": taken}
        return Saved(step, facts, tensors)

    def look_for_room(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise InputError where the disk has no room for the file and the one that it replaces."""
        size = 3 * sum(one.numel() * one.element_size() for one in parameters.values())
        make_folder(self.path.parent)
        free = shutil.disk_usage(self.path.parent).free
        if free < ROOM * size:
            raise self._full(size, free)

    def write(
        self,
        step: int,
        parameters: Mapping[str, Tensor],
        optimiser: torch.optim.AdamW | None,
        facts: Mapping[str, str],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Replace the file. optimiser: None where nothing is trained any more. facts, tensors: what else is kept.

        Raises InputError where the disk is full; the last one is still there then.
        """
        from safetensors.torch import save

        kept = {f"weights.{name}": one for name, one in parameters.items()} | dict(tensors or {})
        for name, one in parameters.items():
            if optimiser is not None and (state := optimiser.state.get(one)):
                kept |= {f"first.{name}": state["exp_avg"], f"second.{name}": state["exp_avg_sq"]}
        content = save(
            {name: one.detach().cpu().contiguous() for name, one in kept.items()},
            {"run": self.key, "step": str(step), **facts},
        )
        try:
            with replacing(self.path) as file:
                file.write(content)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise self._full(len(content), shutil.disk_usage(self.path.parent).free) from error

    def _full(self, size: int, free: int) -> InputError:
        told = f"no room for checkpoints: {size / 1e6:,.0f} MB each, {free / 1e6:,.0f} MB are free"
        return InputError(str(self.path.parent), told, "Free some, or name a folder on another disk")
