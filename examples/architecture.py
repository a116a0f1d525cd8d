"""An encoder architecture of your own: where it keeps its layers, tried on a tiny model with random weights.

An architecture that is not known is guessed, and the guess has to pass a self-check. An `Adapter` says it outright, and
what differs from BERT. `docs/models.md` has all of them; `clsprobe check MODEL` tries one.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, PreTrainedTokenizerFast, RoFormerConfig

from clsprobe import Extractor, load_encoder
from clsprobe.probes.encoders.adapters import ADAPTERS, Adapter

# The path of a block in the model, * for its number. RoFormer turns its vectors instead of adding positions.
ADAPTERS["roformer"] = Adapter("encoder.layer.*", note="rotary positions")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", "cat", "dog", "sees", "sleeps", "runs", "in", "house"]


def save_tiny_model(folder: Path) -> None:
    """Three layers of 16 dimensions with random weights, and a tokenizer."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = RoFormerConfig(vocab_size=len(WORDS), embedding_size=16, max_position_embeddings=64, **sizes)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        save_tiny_model(Path(folder))
        encoder = load_encoder(folder)
        print("The self-check:", encoder.checked)
        states = Extractor(encoder, ["cls", "mean"])(["the cat sleeps", "a dog runs in the house"])
        print("Layers", list(states.layers), "of", states.cell(3, "cls").shape[1], "dimensions")
