"""Encoders of every architecture, small and of random weights, and what is asked of each."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import models
import torch
from models import SHAPES, TEXTS
from transformers import CanineTokenizer

from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.tap import tap


def tapped(encoder: Encoder, batch: Any, layers: list[int] | None = None) -> dict[int, torch.Tensor]:
    """Everything that one forward pass shows: layer -> (batch, token, dim)."""
    seen: dict[int, torch.Tensor] = {}
    with tap(encoder, lambda layer, hidden: seen.update({layer: hidden.clone()}), layers):
        encoder.forward(batch)
    return seen


def hooks(model: torch.nn.Module) -> dict[tuple[str, str], dict[Any, Any]]:
    """Every dictionary of hooks of every module."""
    return {
        (name, kind): dict(value)
        for name, module in model.named_modules()
        for kind, value in vars(module).items()
        if "hook" in kind and isinstance(value, dict)
    }


BROKEN = "flaubert-pre"  # this transformers cannot run it; it has a test of its own


RUNNING = [shape for shape in SHAPES if shape != BROKEN]


def fitting(encoder: Encoder) -> list[str]:
    """The texts that are not too long for it: CANINE counts characters."""
    return [t for t, row in zip(TEXTS, encoder.tokenize(TEXTS), strict=True) if len(row.ids) <= models.POSITIONS - 2]


def held(model: torch.nn.Module) -> dict[tuple[str, str], dict[Any, Any]]:
    """The dictionaries that hold hooks. (BigBird replaces some modules, with none in them, when a text is short.)"""
    return {name: found for name, found in hooks(model).items() if found}


def few_characters() -> AbstractContextManager[Any]:
    """CANINE's tokenizer lists all of Unicode again and again while it is loaded; its own characters are enough."""
    special = {chr(code): code for code in (0, *range(0xE000, 0xE005))}
    return patch.object(CanineTokenizer, "get_vocab", return_value=special)
