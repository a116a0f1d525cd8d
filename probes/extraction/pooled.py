"""The vector that SentenceTransformer.encode returns, as a readout: the model's own pooling, dense layers and
normalization (Reimers & Gurevych 2019), of the last layer's states.

Weights of dense layers are read from safetensors only. No class is imported by a name from a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from clsprobe.probes.encoders.messages import as_input_error
from clsprobe.probes.encoders.sentence_layout import SentenceModule, check_layout
from clsprobe.probes.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from clsprobe.probes.encoders.encoder import Encoder
    from clsprobe.probes.encoders.tokenizing import Batch

    Step = Callable[[Tensor], Tensor]

MODES = {  # in the order in which older configurations concatenate them
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "Mish", "ELU", "LeakyReLU", "Softplus")


class SentencePooling:
    """The modules after the encoder of a sentence-transformers model: (batch, token, dim) -> (batch, width).

    Raises InputError for what `check_layout` refuses, and for settings or weights of a module that are not known.
    """

    def __init__(self, encoder: Encoder) -> None:
        (pooling, *modules), name = check_layout(encoder.description).modules, encoder.name
        self._modes = _modes(pooling, name)
        # tokens of the prompt and those before it, which are not pooled
        self._skipped = encoder.prompt_length if pooling.config.get("include_prompt") is False else 0
        self._steps: list[Step] = []
        self._width = encoder.description.dim * len(self._modes)
        for module in modules:
            if module.kind == "Normalize":
                self._steps.append(functional.normalize)
            elif module.kind in ("Dense", "LayerNorm"):
                layer, self._width = (_dense if module.kind == "Dense" else _layer_norm)(module, name, self._width)
                self._steps.append(layer.to(encoder.device))

    @property
    def width(self) -> int:
        """The dimension of the vector."""
        return self._width

    def __call__(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(batch, token, dim), after the encoder's final norm -> (batch, width)."""
        hidden, mask = hidden.float(), batch.real.clone()
        mask[:, : self._skipped] = False
        vectors = torch.cat([_pool(mode, hidden, mask) for mode in self._modes], 1)
        for step in self._steps:
            vectors = step(vectors)
        return vectors


def _modes(module: SentenceModule, name: str) -> list[str]:
    """The names of the poolings that are concatenated."""
    modes = module.config.get("pooling_mode")
    if modes is None:
        modes = [mode for mode, key in MODES.items() if module.config.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not set(map(str, modes)) <= MODES.keys():
        raise InputError(f"{name}/{module.folder.name}/config.json", "names no known pooling", "Use mean")
    return modes


def _pool(mode: str, hidden: Tensor, mask: Tensor) -> Tensor:
    """(batch, token, dim), (batch, token) True on pooled tokens -> (batch, dim)."""
    weights = mask.float()
    if mode == "max":
        return hidden.masked_fill(~mask[..., None], -torch.inf).amax(1)
    if mode in ("cls", "lasttoken"):  # the first and the last token, whatever they are
        last = mask.shape[1] - 1 - weights.flip(1).argmax(1)
        index = weights.argmax(1) if mode == "cls" else last
        return hidden[torch.arange(len(hidden), device=hidden.device), index]
    if mode == "weightedmean":  # by position, SGPT (Muennighoff 2022)
        weights = weights * torch.arange(1, mask.shape[1] + 1, device=hidden.device)
    total = weights.sum(1, keepdim=True).clamp(min=1e-9)
    vectors = (hidden * weights[..., None]).where(weights[..., None] != 0, 0).sum(1)
    return vectors / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total)


def _dense(module: SentenceModule, name: str, width: int) -> tuple[Any, int]:
    """A dense layer with its activation, and its width."""
    config, where = module.config, f"{name}/{module.folder.name}"
    package, _, activation = str(config.get("activation_function", "torch.nn.Tanh")).rpartition(".")
    if not package.startswith("torch.nn") or activation not in ACTIVATIONS:
        raise InputError(f"{where}/config.json", f"names the activation {activation}, which is not run", "Use mean")
    if config.get("use_residual") or config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise InputError(f"{where}/config.json", "is a dense layer of a kind that 'pooled' does not know", "Use mean")
    weights = _weights(
        module, where, {"linear.weight", "linear.bias"} if config.get("bias", True) else {"linear.weight"}
    )
    matrix = weights["linear.weight"]
    if matrix.ndim != 2 or matrix.shape[1] != width:
        raise InputError(f"{where}/model.safetensors", f"does not take vectors of {width} numbers", "Save it again")
    layer = torch.nn.utils.skip_init(torch.nn.Linear, width, matrix.shape[0], bias="linear.bias" in weights)
    with as_input_error(where, "cannot be loaded"):
        layer.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
    return torch.nn.Sequential(layer, getattr(torch.nn, activation)()).requires_grad_(False), matrix.shape[0]


def _layer_norm(module: SentenceModule, name: str, width: int) -> tuple[Any, int]:
    """A layer norm, and its width."""
    where = f"{name}/{module.folder.name}"
    layer = torch.nn.LayerNorm(width)
    with as_input_error(where, "cannot be loaded"):
        weights = _weights(module, where, {"norm.weight", "norm.bias"})
        layer.load_state_dict({key.removeprefix("norm."): value for key, value in weights.items()})
    return layer.requires_grad_(False), width


def _weights(module: SentenceModule, where: str, names: set[str]) -> dict[str, Tensor]:
    """The weights of a module. Raises InputError unless they have these names."""
    from safetensors.torch import load_file

    with as_input_error(where, "cannot be loaded"):
        weights = {key: value.float() for key, value in load_file(module.folder / "model.safetensors").items()}
    if weights.keys() != names:
        raise InputError(where, f"holds {', '.join(sorted(weights))}, not {', '.join(sorted(names))}", "Save it again")
    return weights
