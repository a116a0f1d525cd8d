"""Devices and dtypes in which an encoder runs."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

from clsprobe.probes.errors import InputError, unknown

if TYPE_CHECKING:
    import torch


DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("float32", "bfloat16", "float16")


def check_device(name: str) -> None:
    """Raise InputError where this machine lacks the device. Asks the driver, since importing torch takes seconds."""
    if name not in DEVICES:
        raise unknown("--device", "device", name, DEVICES)
    if name == "cuda" and not _has_cuda_driver():
        raise InputError("--device cuda", "no CUDA device here", "Use --device cpu")
    if name == "mps" and (platform.system(), platform.machine()) != ("Darwin", "arm64"):
        raise InputError("--device mps", "no Apple GPU here", "Use --device cpu")


def choose_device(name: str) -> torch.device:
    """The device of this name; auto chooses the fastest. Raises InputError where torch has no CUDA."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda", "this build of torch has no CUDA", "Use --device cpu, or install a CUDA build"
        )
    return torch.device(name)


def has_bfloat16(device: str) -> bool:
    """Whether the device that `choose_device` returns multiplies bfloat16 in hardware."""
    import torch

    kind = choose_device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "mps" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _has_cuda_driver() -> bool:
    import ctypes

    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return os.path.exists("/dev/kfd")  # an AMD card, which torch calls cuda as well
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
