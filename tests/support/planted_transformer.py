"""A BERT whose weights are set by hand: at layer j, and nowhere else, [CLS] copies what token 3 is.

1. An embedding says which word a token is and where it stands, each as one number out of many. Every number has its
   negative beside it, so that the mean of a vector is 0 and LayerNorm only scales.
2. In *every* layer [CLS] looks at token 3 and the others look everywhere: attention weights do not tell the layers
   apart. Only at layer j do values carry a word, into a part of the vector of its own; elsewhere they carry nothing.
3. The feed-forward parts add nothing. Noise, if wanted, stands on all weights but those of the values.

So a probe of the word at token 3 reads [CLS] from layer j on, and only the edge from token 3 to [CLS] at layer j
counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
from transformers import AutoModel, BertConfig

from clsprobe.probes.tasks.task import Task

LAYERS, TOKEN = 4, 3
LOW, HIGH = ("cat", "dog", "bird", "tree"), ("red", "blue", "very", "big")  # the two classes of words
_WORDS = LOW + HIGH
_PLACES = 10
_COPIED = len(_WORDS) + _PLACES  # where the part begins that [CLS] copies into
_HALF = _COPIED + len(_WORDS)
DIM = 2 * _HALF
_SHARP = 12.0  # of the query of [CLS]: token 3 gets nearly all of its attention


def save(folder: Path) -> Path:
    """A model of the right shape, with a tokenizer, whose weights `plant` then sets."""
    spoken = models.tokenizer("bert")
    config = BertConfig(
        vocab_size=len(spoken),
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=_PLACES,
        pad_token_id=spoken.pad_token_id,
    )
    AutoModel.from_config(config).save_pretrained(folder)
    spoken.save_pretrained(folder)
    return folder


@torch.no_grad()
def plant(encoder: Any, layer: int, *, noise: float = 0.0, seed: int = 0) -> None:
    """Set the weights of an encoder that was saved by `save`: [CLS] copies at `layer`."""
    model, vocabulary = encoder.model, encoder.tokenizer.get_vocab()
    for name, weight in model.named_parameters():
        weight.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
    words = model.embeddings.word_embeddings.weight
    for at, word in enumerate(_WORDS):
        _put(words[vocabulary[word]], at)
    for place in range(_PLACES):
        _put(model.embeddings.position_embeddings.weight[place], len(_WORDS) + place)
    for number, block in enumerate(model.encoder.layer, 1):
        inner = block.attention.self
        inner.query.weight[0, len(_WORDS)] = _SHARP  # who stands at place 0 asks ...
        inner.key.weight[0, len(_WORDS) + TOKEN] = 1.0  # ... for who stands at place 3
        block.attention.output.dense.weight.copy_(torch.eye(DIM))
        if number == layer:
            for at in range(len(_WORDS)):
                inner.value.weight[_COPIED + at, at] = 1.0
                inner.value.weight[_HALF + _COPIED + at, at] = -1.0
    if noise:
        random = torch.Generator().manual_seed(seed)
        for name, weight in model.named_parameters():
            if "value" not in name:  # or every layer would carry a little of every word, which a probe finds
                weight.add_(torch.randn(weight.shape, generator=random) * noise)


def _put(vector: torch.Tensor, at: int) -> None:
    vector[at], vector[_HALF + at] = 1.0, -1.0


def task(seed: int, *, count: int = 240) -> Task:
    """Sentences of five to seven of the words; the label is the class of the third one."""
    random, found = np.random.default_rng(seed), dict[str, str]()
    while len(found) < count:
        words = [_WORDS[i] for i in random.integers(len(_WORDS), size=random.integers(5, 8))]
        found[" ".join(words)] = "low" if words[TOKEN - 1] in LOW else "high"
    return Task(f"made:planted{seed}:third", list(found), np.array([*found.values()]))
