"""As much of PEFT as `probes.encoders.lora` calls, for tests without it: LoRA of linear modules."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch

Report = namedtuple("Report", ["missing_keys", "unexpected_keys"])


class LoraConfig:
    def __init__(self, *, target_modules: list[str], r: int, lora_alpha: float, **others: Any):
        self.target_modules, self.r, self.lora_alpha, self.others = target_modules, r, lora_alpha, others


class Adapted:
    def __init__(self, model: torch.nn.Module, config: LoraConfig):
        self.model, self.config, self.matrices = model, config, {}

    def merge_and_unload(self) -> torch.nn.Module:
        for path in self.config.target_modules:
            a, b = (self.matrices[f"base_model.model.{path}.lora_{side}.weight"] for side in "AB")
            with torch.no_grad():
                self.model.get_submodule(path).weight += self.config.lora_alpha / self.config.r * (b @ a)
        return self.model


def get_peft_model(model: torch.nn.Module, config: LoraConfig) -> Adapted:
    return Adapted(model, config)


def set_peft_model_state_dict(adapted: Adapted, matrices: dict[str, torch.Tensor]) -> Report:
    expected = {
        f"base_model.model.{path}.lora_{side}.weight" for path in adapted.config.target_modules for side in "AB"
    }
    adapted.matrices = matrices
    return Report(sorted(expected - matrices.keys()), sorted(matrices.keys() - expected))
