"""A BERT with weights set by hand: [CLS] copies token 3 at layer j and nowhere else.

1. An embedding is one-hot for the word and for the position. A second half holds the negative of every number, so that
   the mean of a vector is 0 and LayerNorm only scales.
2. In *every* layer [CLS] attends to token 3 and the other tokens attend everywhere: attention weights are the same in
   all layers. Only at layer j do the values carry a word, into its own part of the vector; elsewhere they are 0.
3. The feed-forward parts add nothing. Noise is added to all weights but those of the values.

A probe can read the word at token 3 from [CLS] from layer j on, and only the edge from token 3 to [CLS] at layer j
matters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
from transformers import AutoModel, BertConfig

from clsprobe.analysis.sources import MinimalPairs
from clsprobe.probes.tasks.task import Task

LAYERS, TOKEN = 4, 3
LOW, HIGH = ("cat", "dog", "bird", "tree"), ("red", "blue", "very", "big")  # the two classes of words
_WORDS = LOW + HIGH
_POSITIONS = 10
_COPY_START = len(_WORDS) + _POSITIONS  # start of the part that [CLS] copies into
_HALF = _COPY_START + len(_WORDS)
DIM = 2 * _HALF
_SHARP = 12.0  # scale of the query of [CLS]: token 3 gets nearly all of its attention


def save_model(folder: Path) -> Path:
    """Save a model of the right shape with a tokenizer; `plant_copy` sets its weights."""
    tokenizer = models.tokenizer("bert")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=_POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def plant_copy(encoder: Any, layer: int, *, noise: float = 0.0, seed: int = 0) -> None:
    """Set the weights of an encoder saved by `save_model`: [CLS] copies token 3 at `layer`."""
    model, vocabulary = encoder.model, encoder.tokenizer.get_vocab()
    for name, weight in model.named_parameters():
        weight.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
    words = model.embeddings.word_embeddings.weight
    for word_index, word in enumerate(_WORDS):
        _set_feature(words[vocabulary[word]], word_index)
    for position in range(_POSITIONS):
        _set_feature(model.embeddings.position_embeddings.weight[position], len(_WORDS) + position)
    for block_layer, block in enumerate(model.encoder.layer, 1):
        attention = block.attention.self
        attention.query.weight[0, len(_WORDS)] = _SHARP  # the query of position 0 ...
        attention.key.weight[0, len(_WORDS) + TOKEN] = 1.0  # ... matches the key of position 3
        block.attention.output.dense.weight.copy_(torch.eye(DIM))
        if block_layer == layer:
            for word_index in range(len(_WORDS)):
                attention.value.weight[_COPY_START + word_index, word_index] = 1.0
                attention.value.weight[_HALF + _COPY_START + word_index, word_index] = -1.0
    if noise:
        random = torch.Generator().manual_seed(seed)
        for name, weight in model.named_parameters():
            if "value" not in name:  # else every layer would carry some of every word, which a probe finds
                weight.add_(torch.randn(weight.shape, generator=random) * noise)


def _set_feature(vector: torch.Tensor, index: int) -> None:
    vector[index], vector[_HALF + index] = 1.0, -1.0


def make_task(seed: int, *, count: int = 240) -> Task:
    """Sentences of five to seven words; the label is the class of the third."""
    random, labels = np.random.default_rng(seed), dict[str, str]()
    while len(labels) < count:
        words = [_WORDS[i] for i in random.integers(len(_WORDS), size=random.integers(5, 8))]
        labels[" ".join(words)] = "low" if words[TOKEN - 1] in LOW else "high"
    return Task(f"made:planted{seed}:third", list(labels), np.array([*labels.values()]))


def make_pairs(seed: int, *, count: int = 48) -> MinimalPairs:
    """Sentences like those of `make_task`, and their twins with a third word of the other class; both are the lemma."""
    random = np.random.default_rng(seed)
    texts, lemmas = [], []
    for _ in range(count):
        words = [*random.choice(_WORDS, size=random.integers(5, 8))]
        pair = str(random.choice(HIGH)), str(random.choice(LOW))
        high_text, low_text = (" ".join([*words[: TOKEN - 1], word, *words[TOKEN:]]) for word in pair)
        texts.append((high_text, low_text))
        lemmas.append(" ".join(pair))
    return MinimalPairs(("high", "low"), texts, lemmas)
