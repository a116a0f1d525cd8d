"""Where each architecture keeps its layers: data first, a function where a family needs one.

1. `ADAPTERS` has an `Adapter` for every `model_type` that is known: the path of its blocks, its final norm, and
   whatever of it is unlike BERT.
2. `Adapter.points` says, for one configuration, where layer 0, 1, ... are read: what goes into a module, or what comes
   out of it. There are as many layers as points; a forward pass that shows any other number is an error.
3. `Adapter.tokens` turns what is seen there into (batch, token, dim).

`docs/models.md` is this table in words. No torch here: `describe` answers without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Config = dict[str, Any]  # config.json


class Point(NamedTuple):
    """A place in the forward pass: the first argument of a module ("in"), or what it returns ("out")."""

    module: str
    side: Literal["in", "out"]


def _stacked(adapter: Adapter, layers: int, config: Config) -> list[Point]:
    """Blocks one after another: layer 0 goes into the first of them, layer k comes out of the k-th."""
    paths = [adapter.path(i) for i in range(layers)]
    return [Point(paths[0], "in"), *(Point(path, "out") for path in paths)] if paths else []


def _albert(adapter: Adapter, layers: int, config: Config) -> list[Point]:
    """The same few modules again and again; every inner layer of a group counts as a layer."""
    groups, inner = config.get("num_hidden_groups", 1), config.get("inner_group_num", 1)
    paths = [adapter.path(int(i / (layers / groups)), j) for i in range(layers) for j in range(inner)]
    return [Point(paths[0], "in"), *(Point(path, "out") for path in paths)]


def _deberta_v2(adapter: Adapter, layers: int, config: Config) -> list[Point]:
    """The larger ones add a convolution to what the first block returns: layer 1 comes out of that."""
    first, second, *rest = _stacked(adapter, layers, config)
    return [first, Point("encoder.conv", "out") if config.get("conv_kernel_size") else second, *rest]


def _squeezebert(adapter: Adapter, layers: int, config: Config) -> list[Point]:
    """Its blocks run by `.forward`, which no hook sees; the parts of a block are called."""
    return [Point("encoder.layers.0.attention", "in"), *_stacked(adapter, layers, config)[1:]]


def _xlm(adapter: Adapter, layers: int, config: Config) -> list[Point]:
    """Its blocks are loose parts with the masking last: what goes into the next block, at last the model's output.

    With `pre_norm` (FlauBERT) the attention sees a normed copy; the sum itself goes into the norm before it.
    """
    part = "layer_norm1" if config.get("pre_norm") else "attentions"
    return [*(Point(f"{part}.{i}", "in") for i in range(layers)), Point("", "out")]


def _funnel(adapter: Adapter, layers: int, config: Config) -> list[Point]:
    """The first block of layers only: the others are pooled, and have no token positions."""
    sizes, repeats = config.get("block_sizes") or [4, 4, 4], config.get("block_repeats") or [1]
    paths = [adapter.path(i) for i in range(sizes[0]) for _ in range(repeats[0])]
    return [Point(paths[0], "in"), *(Point(path, "out") for path in paths)]


def _cut(hidden: Tensor, tokens: int, config: Config) -> Tensor:
    """(batch, token, dim) without what the model pads inside (Longformer, BigBird: a multiple of their window)."""
    return hidden[:, :tokens]


def _token_first(hidden: Tensor, tokens: int, config: Config) -> Tensor:
    """From (token, batch, dim)."""
    return hidden.transpose(0, 1)


def _token_last(hidden: Tensor, tokens: int, config: Config) -> Tensor:
    """From (batch, dim, token)."""
    return hidden.transpose(1, 2)


def _of_molecules(hidden: Tensor, tokens: int, config: Config) -> Tensor:
    """From (batch, molecule, dim): every character has its molecule's vector, as the model itself repeats them.

    Molecule 0 is [CLS]; the characters behind the last molecule have that one's.
    """
    rate, last = config.get("downsampling_rate", 4), hidden.shape[1] - 1
    return hidden[:, [0, *(min(1 + i // rate, last) for i in range(1, tokens))]]


def _big_bird(model: Any, tokens: int) -> None:
    """Sparse attention for long batches, full attention for short ones: by itself it stays full after a short one."""
    known = model.config
    short = tokens <= (5 + 2 * known.num_random_blocks) * known.block_size
    model.set_attention_type("original_full" if short else known.attention_type)


@dataclass(frozen=True)
class Adapter:
    """How one architecture is read.

    blocks: the path of a block in the model, ``*`` for its number. points, tokens: as the module says. norm: the path
    of the norm after the last block, which the readouts ``cls+norm`` apply. part: the encoder of an encoder-decoder.
    cls, sep: the tokenizer's names for the first and the closing special token. cls_segment: the segment of [CLS],
    where it has its own. reserved: positions of the table that no text can use, "pad" for all up to the padding id;
    None where positions are relative. shortest: fewer tokens are padded up to it, whatever they stand with.
    vocabulary: False for characters that are hashed.
    leaks: why padding reaches the real tokens, and texts are batched by equal length. before: called with the model and
    the number of tokens before every batch. note: what else a user should know.
    """

    blocks: str
    points_of: Callable[[Adapter, int, Config], list[Point]] = _stacked
    tokens: Callable[[Tensor, int, Config], Tensor] = _cut
    norm: str = ""
    part: str = ""
    cls: str = "cls_token_id"
    sep: str = "sep_token_id"
    cls_segment: int = 0
    reserved: int | Literal["pad"] | None = 0
    shortest: int = 1
    vocabulary: bool = True
    leaks: str = ""
    before: Callable[[Any, int], None] | None = None
    note: str = ""

    def path(self, *numbers: int) -> str:
        """Where one block is; `numbers` take the places of the stars."""
        return self.blocks.replace("*", "{}").format(*numbers)

    def points(self, layers: int, config: Config) -> list[Point]:
        """Where layer 0, 1, ... are read. layers: what config.json says of the depth."""
        return self.points_of(self, layers, config)


_BERT = Adapter("encoder.layer.*")
_ROBERTA = Adapter("encoder.layer.*", reserved="pad")
_DECODER_NOTE = "a token sees only those before it; no [CLS]"

ADAPTERS: dict[str, Adapter] = {  # by model_type
    "albert": Adapter(
        "encoder.albert_layer_groups.*.albert_layers.*",
        _albert,
        note="one module runs many times; with inner_group_num 2 it has twice num_hidden_layers layers",
    ),
    "bart": Adapter("encoder.layers.*", part="encoder", note="its encoder only"),
    "bert": _BERT,
    "big_bird": Adapter(
        "encoder.layer.*",
        leaks="the longest text of a batch decides whether attention is sparse",
        before=_big_bird,
        note="sparse attention pads inside; that is cut off",
    ),
    "camembert": _ROBERTA,
    "canine": Adapter(
        "encoder.layer.*",
        tokens=_of_molecules,
        shortest=4,
        vocabulary=False,
        leaks="its convolution reaches into the padding",
        note="the deep stack; layer 0 goes into it, behind the character layer; a character has its molecule's vector",
    ),
    "convbert": Adapter("encoder.layer.*", leaks="its convolutions reach into the padding"),
    "deberta": _BERT,
    "deberta-v2": Adapter(
        "encoder.layer.*", _deberta_v2, note="with conv_kernel_size, layer 1 comes out of `encoder.conv`"
    ),
    "distilbert": Adapter("transformer.layer.*"),
    "electra": Adapter("encoder.layer.*", note="layer 0 after the projection to the width of the blocks"),
    "eurobert": Adapter("layers.*", norm="norm"),
    "flaubert": Adapter("attentions.*", _xlm, cls="bos_token_id", note="with pre_norm, into `layer_norm1.*`"),
    "fnet": Adapter("encoder.layer.*", leaks="it takes no attention mask"),
    "funnel": Adapter(
        "encoder.blocks.0.*",
        _funnel,
        reserved=None,
        shortest=8,
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
    "squeezebert": Adapter("encoder.layers.*.output", _squeezebert, tokens=_token_last),
    "t5": Adapter(
        "encoder.block.*",
        norm="encoder.final_layer_norm",
        part="encoder",
        sep="eos_token_id",
        reserved=None,
        note="its encoder only; no [CLS], `</s>` is read as sep",
    ),
    "xlm": Adapter("attentions.*", _xlm, cls="bos_token_id"),
    "xlm-roberta": _ROBERTA,
    "xlnet": Adapter(
        "layer.*", tokens=_token_first, cls_segment=2, reserved=None, note="[CLS] is the last token of a text"
    ),
    "yoso": Adapter("encoder.layer.*", leaks="its attention is normalised over the padding too"),
}

BLOCKS = {kind: adapter.blocks for kind, adapter in ADAPTERS.items()}  # model_type -> where its blocks are
SUPPORTED = "clsprobe list models names the supported ones"
_GUESSED = Adapter("*", reserved=2, note="its only list of num_hidden_layers modules")  # as many as RoBERTa's


def adapter_of(model_type: str) -> Adapter:
    """The adapter of an architecture; for one that is not in the table a guess, which the self-check must confirm."""
    return ADAPTERS.get(model_type, _GUESSED)
