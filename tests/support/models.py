"""Save small random encoders of every supported architecture.

`save` writes config.json, model.safetensors and a real fast tokenizer over `WORDS`; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, CanineTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

KINDS = ("bert", "roberta", "distilbert", "mpnet", "electra", "xlm-roberta", "camembert")
_PLAIN = "the a cat dog dogs bird sees sleep sleeps sleeping runs red blue very big in on house tree sep cls s"
WORDS = [*_PLAIN.split(), "##s", *",[]</>"]
DIM, POSITIONS = 16, 40
LIMIT = {kind: POSITIONS if kind in ("bert", "distilbert", "electra") else POSITIONS - 2 for kind in KINDS}

# Distinct texts of many lengths, the shortest empty.
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


# The names of sizes in the configurations of other families, and the additional settings that each needs.
_PLAIN_SHAPE = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
_SHAPES = {
    "distilbert": ("n_layers", "n_heads", "dim", "hidden_dim"),
    "bart": ("encoder_layers", "encoder_attention_heads", "d_model", "encoder_ffn_dim"),
    "funnel": ("", "n_head", "d_model", "d_inner"),
    "xlnet": ("n_layer", "n_head", "d_model", "d_inner"),
    "xlm": ("n_layers", "n_heads", "emb_dim", ""),
    "flaubert": ("n_layers", "n_heads", "emb_dim", ""),
    "t5": ("num_layers", "num_heads", "d_model", "d_ff"),
    "gpt2": ("n_layer", "n_head", "n_embd", "n_inner"),
    "opt": ("num_hidden_layers", "num_attention_heads", "hidden_size", "ffn_dim"),
}
_DISENTANGLED = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 20}
_MORE = {
    "albert": {"embedding_size": 8, "inner_group_num": 1},
    "albert-2": {"embedding_size": 8, "inner_group_num": 2},
    "bart": {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32},
    "big_bird": {"attention_type": "block_sparse", "block_size": 2, "num_random_blocks": 1},
    "canine": {"local_transformer_stride": 4, "num_hash_functions": 2, "num_hash_buckets": 50},
    "convbert": {"embedding_size": DIM, "head_ratio": 1, "conv_kernel_size": 3},
    "deberta": _DISENTANGLED,
    "deberta-v2": _DISENTANGLED,
    "deberta-v2-conv": _DISENTANGLED | {"conv_kernel_size": 3},
    "electra": {"embedding_size": 8},
    "eurobert": {"num_key_value_heads": 2},
    "flaubert-pre": {"pre_norm": True},
    "funnel": {
        "block_sizes": [3, 1],
        "block_repeats": [1, 1],
        "architectures": ["FunnelModel"],
        "d_head": 8,
        "num_decoder_layers": 1,
    },
    "llama": {"num_key_value_heads": 2},
    "longformer": {"attention_window": 4},
    "mobilebert": {"embedding_size": DIM, "intra_bottleneck_size": DIM},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "nystromformer": {"num_landmarks": 4, "segment_means_seq_len": 4},
    "opt": {"word_embed_proj_dim": DIM},
    "rembert": {"input_embedding_size": 8},
    "squeezebert": {"embedding_size": DIM},
    "t5": {"d_kv": 8, "num_decoder_layers": 1},
}

# Every architecture of probes.encoders.adapters; a few of them twice, in two shapes ("albert-2" is an ALBERT).
SHAPES = (
    *KINDS, "albert", "albert-2", "bart", "big_bird", "canine", "convbert", "deberta", "deberta-v2", "deberta-v2-conv",
    "eurobert", "flaubert", "flaubert-pre", "fnet", "funnel", "gpt2", "llama", "longformer", "megatron-bert",
    "mobilebert", "modernbert", "nomic_bert", "nystromformer", "opt", "rembert", "roberta-prelayernorm", "squeezebert",
    "t5", "xlm", "xlnet", "yoso",
)  # fmt: skip
# The templates of these tokenizers; the others have [CLS] $A [SEP] or <s> $A </s>.
_AROUND = {"gpt2": "$A", "llama": "<s> $A", "opt": "</s> $A", "t5": "$A </s>", "xlnet": "$A </s> <s>"}
PAIR = "[CLS] $A [SEP] $B:1 [SEP]:1"  # </s> </s> between two texts of the RoBERTa family, and one type of tokens
_NO_CLS = ("gpt2", "llama", "opt", "t5")
_ROBERTAS = (
    "roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "longformer", "bart", "xlm", "flaubert", *_AROUND
)  # fmt: skip


def model_type(shape: str) -> str:
    """The architecture of a shape."""
    for end in ("-2", "-conv", "-pre"):
        shape = shape.removesuffix(end) if shape != "deberta-v2" else shape
    return shape


def tokenizer(shape: str) -> PreTrainedTokenizerBase:
    """WordPiece with [CLS] and [SEP] for the BERT family, WordLevel with <s> and </s> for the RoBERTa family."""
    kind = model_type(shape)
    if kind == "canine":
        return CanineTokenizer(model_max_length=POSITIONS)
    word_level = kind in _ROBERTAS
    if word_level or kind == "mpnet":
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        cls, pad, sep, unk, mask = special
    else:
        pad, unk, cls, sep, mask = special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    inner = (models.WordLevel if word_level else models.WordPiece)(vocabulary, unk_token=unk)
    fast = Tokenizer(inner)
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.TemplateProcessing(
        single=_AROUND.get(kind, f"{cls} $A {sep}"),
        pair=None if kind in _AROUND else f"{cls} $A {sep} {sep} $B {sep}" if cls == "<s>" else PAIR,
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    roles = {"pad_token": pad, "unk_token": unk, "mask_token": mask, "cls_token": cls, "sep_token": sep}
    if kind in ("xlm", "flaubert"):  # both roles are </s>, but a text begins with <s>
        roles |= {"cls_token": sep, "bos_token": cls}
    elif kind in _NO_CLS:
        roles = {"unk_token": unk, "bos_token": cls, "eos_token": sep}
        roles |= {"pad_token": pad} if kind in ("t5", "opt") else {}
    type_inputs = ["token_type_ids"] if cls == "[CLS]" and kind not in ("distilbert", "modernbert") else []
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, **roles, model_input_names=["input_ids", *type_inputs, "attention_mask"]
    )


def config(shape: str, layers: int = 3) -> Any:
    """A configuration of three layers of 16 dimensions; ELECTRA's embeddings have 8."""
    kind, vocabulary = model_type(shape), tokenizer(shape)
    size_names = _SHAPES.get(kind, _PLAIN_SHAPE)
    sizes = {name: size for name, size in zip(size_names, (layers, 2, DIM, 32), strict=True) if name}
    ids = {f"{name}_token_id": getattr(vocabulary, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")}
    if kind in ("xlm", "flaubert"):
        ids["pad_index"] = vocabulary.pad_token_id
    if kind != "xlnet":  # it has no position table
        sizes["max_position_embeddings"] = POSITIONS
    if kind != "canine":
        sizes["vocab_size"] = len(vocabulary)
    result = AutoConfig.for_model(
        kind,
        **sizes,
        **ids,
        **{**_MORE.get(kind, {}), **_MORE.get(shape, {})},
    )
    result.initializer_range = 0.3  # even where the class lacks the setting
    return result


def save(kind: str, folder: Path, layers: int = 3) -> Path:
    """Save the model and its tokenizer, with weights drawn under seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        AutoModel.from_config(config(kind, layers)).save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return folder
