"""Small random encoders of every supported architecture, saved as a user would have them on disk.

`save` writes config.json, model.safetensors and a real fast tokenizer over `WORDS`; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

KINDS = ("bert", "roberta", "distilbert", "mpnet", "electra", "xlm-roberta", "camembert")
_PLAIN = "the a cat dog dogs bird sees sleep sleeps sleeping runs red blue very big in on house tree sep cls s"
WORDS = [*_PLAIN.split(), "##s", *",[]</>"]
DIM, POSITIONS = 16, 40
LIMIT = {kind: POSITIONS if kind in ("bert", "distilbert", "electra") else POSITIONS - 2 for kind in KINDS}

# Texts of many lengths, the shortest without a word; each says something else.
TEXTS = (
    "the cat sees the dog",
    "cat",
    "",
    "a very very big red dog sleeps in the blue house on the tree",
    "dogs sleeping",
    "the bird runs",
    "in the house the big cat sees a bird",
    "red blue",
    "a dog runs on the house , the cat sleeps in the tree , the bird sees the red dog in the blue house",
    "the dog sees the cat",
)


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """WordPiece with [CLS] and [SEP] for the BERT family, WordLevel with <s> and </s> for the RoBERTa family."""
    if kind in ("bert", "distilbert", "electra"):
        pad, unk, cls, sep, mask = special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    else:
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        cls, pad, sep, unk, mask = special
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    word_level = kind in ("roberta", "xlm-roberta", "camembert")
    inner = (models.WordLevel if word_level else models.WordPiece)(vocabulary, unk_token=unk)
    fast = Tokenizer(inner)
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token=pad, unk_token=unk, cls_token=cls, sep_token=sep, mask_token=mask
    )


def config(kind: str, layers: int = 3) -> Any:
    """A configuration of three layers of 16 dimensions; ELECTRA's embeddings have 8."""
    spoken = tokenizer(kind)
    depth = {"n_layers": layers, "n_heads": 2, "dim": DIM, "hidden_dim": 32}
    if kind != "distilbert":
        depth = {
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "hidden_size": DIM,
            "intermediate_size": 32,
            **({"embedding_size": 8} if kind == "electra" else {}),
        }
    return AutoConfig.for_model(
        kind,
        **depth,
        vocab_size=len(spoken),
        max_position_embeddings=POSITIONS,
        pad_token_id=spoken.pad_token_id,
        initializer_range=0.3,
    )


def save(kind: str, folder: Path, layers: int = 3) -> Path:
    """The whole model in `folder`, its weights drawn under seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        AutoModel.from_config(config(kind, layers)).save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return folder
