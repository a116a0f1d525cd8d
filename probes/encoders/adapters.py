"""Where each architecture keeps its layers: data first, a function where a family needs one.

1. `ADAPTERS` has an `Adapter` for every known `model_type`: the path of its blocks, its final norm, and whatever
   differs from BERT.
2. `Adapter.points` says, for one configuration, where layer 0, 1, ... are read: the input or the output of a module.
   There are as many layers as points; a forward pass that runs another number is an error.
3. `Adapter.to_tokens` turns the tensor read there into (batch, token, dim).

`docs/models.md` is this table in words. This module does without torch, so that `describe` does too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Config = dict[str, Any]  # config.json


class Point(NamedTuple):
    """A place in the forward pass: the first argument of a module ("in") or its output ("out")."""

    module: str
    side: Literal["in", "out"]


def _find_stacked_points(adapter: Adapter, layers: int, config: Config) -> list[Point]:
    """Blocks one after another: layer 0 is the input of the first, layer k the output of the k-th."""
    paths = [adapter.path(i) for i in range(layers)]
    return [Point(paths[0], "in"), *(Point(path, "out") for path in paths)] if paths else []


def _find_albert_points(adapter: Adapter, layers: int, config: Config) -> list[Point]:
    """A few modules run repeatedly; every inner layer of a group counts as a layer."""
    groups, inner = config.get("num_hidden_groups", 1), config.get("inner_group_num", 1)
    paths = [adapter.path(int(i / (layers / groups)), j) for i in range(layers) for j in range(inner)]
    return [Point(paths[0], "in"), *(Point(path, "out") for path in paths)]


def _find_deberta_v2_points(adapter: Adapter, layers: int, config: Config) -> list[Point]:
    """The larger models add a convolution to the output of the first block: layer 1 is the output of that."""
    first, second, *rest = _find_stacked_points(adapter, layers, config)
    return [first, Point("encoder.conv", "out") if config.get("conv_kernel_size") else second, *rest]


def _find_squeezebert_points(adapter: Adapter, layers: int, config: Config) -> list[Point]:
    """The model runs `forward` of its blocks, which no hook sees, but calls the parts of a block."""
    return [Point("encoder.layers.0.attention", "in"), *_find_stacked_points(adapter, layers, config)[1:]]


def _find_xlm_points(adapter: Adapter, layers: int, config: Config) -> list[Point]:
    """A block is loose parts and masks at its end: a layer is the input of the next block, the last the model's output.

    With `pre_norm` (FlauBERT) the attention reads a normed copy; the hidden states are the input of that norm.
    """
    part = "layer_norm1" if config.get("pre_norm") else "attentions"
    return [*(Point(f"{part}.{i}", "in") for i in range(layers)), Point("", "out")]


def _find_funnel_points(adapter: Adapter, layers: int, config: Config) -> list[Point]:
    """The first block of layers only: the others are pooled and have no token positions."""
    sizes, repeats = config.get("block_sizes") or [4, 4, 4], config.get("block_repeats") or [1]
    paths = [adapter.path(i) for i in range(sizes[0]) for _ in range(repeats[0])]
    return [Point(paths[0], "in"), *(Point(path, "out") for path in paths)]


def _trim(hidden: Tensor, tokens: int, config: Config) -> Tensor:
    """(batch, token, dim) without internal padding (Longformer and BigBird pad to a multiple of their window)."""
    return hidden[:, :tokens]


def _from_token_first(hidden: Tensor, tokens: int, config: Config) -> Tensor:
    """From (token, batch, dim)."""
    return hidden.transpose(0, 1)


def _from_token_last(hidden: Tensor, tokens: int, config: Config) -> Tensor:
    """From (batch, dim, token)."""
    return hidden.transpose(1, 2)


def _repeat_molecules(hidden: Tensor, tokens: int, config: Config) -> Tensor:
    """From (batch, molecule, dim): every character gets its molecule's vector, as the model itself repeats them.

    Molecule 0 is [CLS]; characters after the last molecule get the vector of the last.
    """
    rate, last = config.get("downsampling_rate", 4), hidden.shape[1] - 1
    return hidden[:, [0, *(min(1 + i // rate, last) for i in range(1, tokens))]]


def _set_big_bird_attention(model: Any, tokens: int) -> None:
    """Sparse attention for long batches, full attention for short ones: the model never switches back by itself."""
    config = model.config
    is_short = tokens <= (5 + 2 * config.num_random_blocks) * config.block_size
    model.set_attention_type("original_full" if is_short else config.attention_type)


@dataclass(frozen=True)
class Adapter:
    """How one architecture is read.

    blocks: the path of a block in the model, ``*`` for its number. find_points, to_tokens: see the module. norm: the
    path of the norm after the last block, which the readouts ``cls+norm`` apply. part: the encoder of an
    encoder-decoder. cls, sep: the tokenizer's attributes for the first and the closing special token. cls_segment: the
    token type of [CLS], where it has its own. reserved: rows of the position table that no text can use, "pad" for all
    up to the padding id; None where positions are relative. min_tokens: shorter batches are padded to this length.
    vocabulary: False where characters are hashed. leaks: why padding reaches the real tokens; if set, texts are batched
    by equal length. before: called with the model and the number of tokens before every batch. note: further facts for
    the user.
    """

    blocks: str
    find_points: Callable[[Adapter, int, Config], list[Point]] = _find_stacked_points
    to_tokens: Callable[[Tensor, int, Config], Tensor] = _trim
    norm: str = ""
    part: str = ""
    cls: str = "cls_token_id"
    sep: str = "sep_token_id"
    cls_segment: int = 0
    reserved: int | Literal["pad"] | None = 0
    min_tokens: int = 1
    vocabulary: bool = True
    leaks: str = ""
    before: Callable[[Any, int], None] | None = None
    note: str = ""

    def path(self, *numbers: int) -> str:
        """The path of one block; `numbers` replace the stars."""
        return self.blocks.replace("*", "{}").format(*numbers)

    def points(self, layers: int, config: Config) -> list[Point]:
        """Where layer 0, 1, ... are read. layers: the depth in config.json."""
        return self.find_points(self, layers, config)


_BERT = Adapter("encoder.layer.*")
_ROBERTA = Adapter("encoder.layer.*", reserved="pad")
_DECODER_NOTE = "a token sees only those before it; no [CLS]"

ADAPTERS: dict[str, Adapter] = {  # by model_type
    "albert": Adapter(
        "encoder.albert_layer_groups.*.albert_layers.*",
        _find_albert_points,
        note="one module runs many times; with inner_group_num 2 it has twice num_hidden_layers layers",
    ),
    "bart": Adapter("encoder.layers.*", part="encoder", note="its encoder only"),
    "bert": _BERT,
    "big_bird": Adapter(
        "encoder.layer.*",
        leaks="the longest text of a batch decides whether attention is sparse",
        before=_set_big_bird_attention,
        note="sparse attention pads inside; that is cut off",
    ),
    "camembert": _ROBERTA,
    "canine": Adapter(
        "encoder.layer.*",
        to_tokens=_repeat_molecules,
        min_tokens=4,
        vocabulary=False,
        leaks="its convolution reaches into the padding",
        note="the deep stack; layer 0 goes into it, behind the character layer; a character has its molecule's vector",
    ),
    "convbert": Adapter("encoder.layer.*", leaks="its convolutions reach into the padding"),
    "deberta": _BERT,
    "deberta-v2": Adapter(
        "encoder.layer.*", _find_deberta_v2_points, note="with conv_kernel_size, layer 1 comes out of `encoder.conv`"
    ),
    "distilbert": Adapter("transformer.layer.*"),
    "electra": Adapter("encoder.layer.*", note="layer 0 after the projection to the width of the blocks"),
    "eurobert": Adapter("layers.*", norm="norm"),
    "flaubert": Adapter(
        "attentions.*", _find_xlm_points, cls="bos_token_id", note="with pre_norm, into `layer_norm1.*`"
    ),
    "fnet": Adapter("encoder.layer.*", leaks="it takes no attention mask"),
    "funnel": Adapter(
        "encoder.blocks.0.*",
        _find_funnel_points,
        reserved=None,
        min_tokens=8,
        leaks="relative attention and pooling reach into the padding",
        note="the first block of layers only; the later ones are pooled and have no token positions",
    ),
    "gpt2": Adapter("h.*", norm="ln_f", note=_DECODER_NOTE),
    "llama": Adapter("layers.*", norm="norm", note=_DECODER_NOTE),
    "longformer": Adapter(
        "encoder.layer.*", reserved="pad", note="local attention for every token; it pads inside, and that is cut off"
    ),
    "megatron-bert": Adapter("encoder.layer.*", norm="encoder.ln"),
    "mobilebert": Adapter("encoder.layer.*", leaks="its embeddings look at the neighbours of each token"),
    "modernbert": Adapter("layers.*", norm="final_norm"),
    # its first position is 2, whatever the configuration says of padding
    "mpnet": Adapter("encoder.layer.*", reserved=2),
    "nomic_bert": Adapter("layers.*"),
    "nystromformer": Adapter("encoder.layer.*", leaks="its convolution reaches into the padding"),
    "opt": Adapter("decoder.layers.*", norm="decoder.final_layer_norm", note=_DECODER_NOTE),
    "rembert": _BERT,
    "roberta": _ROBERTA,
    "roberta-prelayernorm": Adapter("encoder.layer.*", norm="LayerNorm", reserved="pad"),
    "squeezebert": Adapter("encoder.layers.*.output", _find_squeezebert_points, to_tokens=_from_token_last),
    "t5": Adapter(
        "encoder.block.*",
        norm="encoder.final_layer_norm",
        part="encoder",
        sep="eos_token_id",
        reserved=None,
        note="its encoder only; no [CLS], `</s>` is read as sep",
    ),
    "xlm": Adapter("attentions.*", _find_xlm_points, cls="bos_token_id"),
    "xlm-roberta": _ROBERTA,
    "xlnet": Adapter(
        "layer.*", to_tokens=_from_token_first, cls_segment=2, reserved=None, note="[CLS] is the last token of a text"
    ),
    "yoso": Adapter("encoder.layer.*", leaks="its attention is normalised over the padding too"),
}

BLOCKS = {model_type: adapter.blocks for model_type, adapter in ADAPTERS.items()}
SUPPORTED = "clsprobe list models names the supported ones"
_GUESS = Adapter("*", reserved=2, note="its only list of num_hidden_layers modules")  # reserved as in RoBERTa


def find_adapter(model_type: str) -> Adapter:
    """The adapter of an architecture; for an unknown one a guess, which the self-check must confirm."""
    return ADAPTERS.get(model_type, _GUESS)
