"""Checkpoints: a training run that was killed resumes from its file, on a CPU with bitwise the same result.

The file is safetensors: "weights.NAME" for every parameter, "first.NAME" and "second.NAME" for its moments in Adam, and
other tensors of the training; its header holds the step and other facts.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from clsprobe.probes.errors import InputError
from clsprobe.probes.files import check_file, make_folder, replacing

SPACE_FACTOR = 1.1  # free disk space needed beside the checkpoint that is replaced, over its size


class SavedTraining(NamedTuple):
    """The content of a checkpoint beside the weights and their moments. step: the last completed one."""

    step: int
    facts: dict[str, str]
    tensors: dict[str, Tensor]


class Checkpoint:
    """A training run on disk: one safetensors file with weights, moments and facts, replaced as a whole.

    key: identifies the run; a file with another key is refused.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def read(self, parameters: Mapping[str, Tensor], optimiser: torch.optim.AdamW) -> SavedTraining | None:
        """Restore parameters and moments, and return the rest; None if there is no file.

        Raises InputError, and restores nothing, if the file is damaged or of another run.
        """
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return None
        advice = "Remove it to start again, or name another folder"
        try:
            check_file(self.path)
            with safe_open(self.path, "pt") as file:
                facts = file.metadata() or {}
                if facts.pop("run", None) != self.key:
                    raise InputError(str(self.path), "is a checkpoint of another run", advice)
                step = int(facts.pop("step"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
                weights = {name: tensors.pop(f"weights.{name}") for name in parameters}
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise InputError(str(self.path), f"is damaged ({str(error)[:80]})", advice) from None
        for name, parameter in parameters.items():
            parameter.data.copy_(weights[name])
            if f"first.{name}" in tensors:
                first, second = (tensors.pop(f"{part}.{name}").to(parameter) for part in ("first", "second"))
                steps_taken = torch.tensor(float(step), device=parameter.device)
                optimiser.state[parameter] = {"exp_avg": first, "exp_avg_sq": second, "step": steps_taken}
        return SavedTraining(step, facts, tensors)

    def check_disk_space(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise InputError if the disk has no space for the file beside the one that it replaces."""
        size = 3 * sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
        make_folder(self.path.parent)
        free = shutil.disk_usage(self.path.parent).free
        if free < SPACE_FACTOR * size:
            raise self._full(size, free)

    def write(
        self,
        step: int,
        parameters: Mapping[str, Tensor],
        optimiser: torch.optim.AdamW | None,
        facts: Mapping[str, str],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Replace the file. optimiser: None after training. facts, tensors: returned by `read`.

        Raises InputError if the disk is full; the previous file is then kept.
        """
        from safetensors.torch import save

        contents = {f"weights.{name}": tensor for name, tensor in parameters.items()} | dict(tensors or {})
        for name, tensor in parameters.items():
            if optimiser is not None and (state := optimiser.state.get(tensor)):
                contents |= {f"first.{name}": state["exp_avg"], f"second.{name}": state["exp_avg_sq"]}
        content = save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in contents.items()},
            {"run": self.key, "step": str(step), **facts},
        )
        header, data = _order_header(content)
        try:
            with replacing(self.path) as file:
                file.write(header)
                file.write(data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise self._full(len(content), shutil.disk_usage(self.path.parent).free) from error

    def _full(self, size: int, free: int) -> InputError:
        problem = f"no room for checkpoints: {size / 1e6:,.0f} MB each, {free / 1e6:,.0f} MB are free"
        return InputError(str(self.path.parent), problem, "Free some, or name a folder on another disk")


def _order_header(content: bytes) -> tuple[bytes, memoryview]:
    """The header of a safetensors file with its facts in alphabetical order, and the rest of the file.

    The library writes them in an order that differs from one call to the next, and with it the digest of the file.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors begin at a multiple of eight bytes
    return len(encoded).to_bytes(8, "little") + encoded, memoryview(content)[start:]
