"""Small random encoders of every architecture, and helpers to inspect them."""

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


def record_layers(encoder: Encoder, batch: Any, layers: list[int] | None = None) -> dict[int, torch.Tensor]:
    """The hidden states of one forward pass: layer -> (batch, token, dim)."""
    states: dict[int, torch.Tensor] = {}
    with tap(encoder, lambda layer, hidden: states.update({layer: hidden.clone()}), layers):
        encoder.forward(batch)
    return states


def hooks(model: torch.nn.Module) -> dict[tuple[str, str], dict[Any, Any]]:
    """Every dictionary of hooks of every module."""
    return {
        (name, kind): dict(value)
        for name, module in model.named_modules()
        for kind, value in vars(module).items()
        if "hook" in kind and isinstance(value, dict)
    }


BROKEN = "flaubert-pre"  # does not run in this version of transformers; it has its own test


RUNNING = [shape for shape in SHAPES if shape != BROKEN]


def fitting_texts(encoder: Encoder) -> list[str]:
    """The texts that are short enough for the encoder: CANINE counts characters."""
    rows = encoder.tokenize(TEXTS)
    return [text for text, row in zip(TEXTS, rows, strict=True) if len(row.ids) <= models.POSITIONS - 2]


def installed_hooks(model: torch.nn.Module) -> dict[tuple[str, str], dict[Any, Any]]:
    """The dictionaries of hooks that are not empty (for short texts BigBird adds modules, without hooks)."""
    return {name: installed for name, installed in hooks(model).items() if installed}


def few_characters() -> AbstractContextManager[Any]:
    """Speed up loading CANINE, whose tokenizer lists all of Unicode repeatedly; its special characters are enough."""
    special = {chr(code): code for code in (0, *range(0xE000, 0xE005))}
    return patch.object(CanineTokenizer, "get_vocab", return_value=special)
