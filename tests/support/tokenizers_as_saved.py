"""Tokenizer folders as people save them: every tokenizer class of the supported architectures, with normalizers,
pre-tokenizers, templates, added tokens and options of many kinds. Vocabularies are written out, so that the files are
the same everywhere.

Run under another version of transformers, as a script, this file prints that version's token ids as JSON:

    python tests/support/tokenizers_as_saved.py FOLDER > tests/data/tokenizers_transformers_4_57.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, processors
from tokenizers import normalizers as N
from tokenizers import pre_tokenizers as P

TEXTS = (
    "a warm film",
    "The Plot DRAGS on, don't it?",
    "Café naïve über straße, ÉCOLE",
    "In 1999 and 2023: 12345 67.8%",
    " two  spaces, a\ttab and the end ",
    "中文 and 日本語",
    "ﬁne ½ Å Ⅳ",
    "smile 😀👍🏽",
    "x_y-z / [a] (b) & c@d.e",
    "",
)
WORDS = (
    "a", "warm", "film", "the", "plot", "drags", "on", "don", "t", "it", "cafe", "café", "naive", "naïve", "in", "and",
    "two", "spaces", "tab", "end", "fine", "The", "Plot", "DRAGS",
)  # fmt: skip
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789½Å"
CHARACTERS = sorted(set("".join(TEXTS).lower() + "".join(TEXTS) + ALPHABET) - set(" \t"))
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
ROLES = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), BERT, strict=True))
ROBERTA_ROLES = {
    "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>",
    "unk_token": "<unk>", "mask_token": "<mask>",
}  # fmt: skip

WORDPIECE = ("Bert", "DistilBert", "Electra", "ConvBert", "MobileBert", "Funnel", "MPNet", "SqueezeBert")
BYTE_LEVEL = ("Roberta", "GPT2", "Bart", "Longformer", "Deberta")
UNIGRAM = ("XLMRoberta", "Camembert", "Albert", "BigBird", "RemBert", "FNet", "XLNet", "DebertaV2", "T5")
NORMALIZERS: dict[str, Callable[[], Any]] = {
    "BERT's": N.BertNormalizer,
    "cased": lambda: N.BertNormalizer(lowercase=False),
    "accents kept": lambda: N.BertNormalizer(strip_accents=False),
    "NFKC, lower": lambda: N.Sequence([N.NFKC(), N.Lowercase()]),
    "none": lambda: None,
}


def bert_template(pair: bool = True) -> Any:
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1" if pair else None,
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )


def roberta_template(single: str = "<s> $A </s>", pair: str = "<s> $A </s> </s> $B </s>") -> Any:
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)])


def wordpiece(normalizer: Any = None, pre_tokenizer: Any = None, template: Any = None) -> Tokenizer:
    pieces = [*BERT, *WORDS, *CHARACTERS, *(f"##{c}" for c in CHARACTERS)]
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer or P.BertPreTokenizer()
    tokenizer.post_processor = template
    tokenizer.add_special_tokens(list(BERT))
    return tokenizer


def byte_level(normalizer: Any = None, pre_tokenizer: Any = None, template: Any = None) -> Tokenizer:
    merges = [
        ("Ġ", "a"),
        ("t", "h"),
        ("Ġ", "th"),
        ("Ġth", "e"),
        ("w", "a"),
        ("f", "i"),
        ("l", "m"),
        ("a", "n"),
        ("2", "0"),
    ]
    vocabulary = [*ROBERTA, *sorted(P.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, merges))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer or P.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = template
    tokenizer.add_special_tokens(list(ROBERTA))
    return tokenizer


def unigram(normalizer: Any = None, pre_tokenizer: Any = None, template: Any = None) -> Tokenizer:
    pieces = [*((token, 0.0) for token in ROBERTA), ("▁", -3.0)]
    pieces += [(f"▁{word}", -5.0 - i / 100) for i, word in enumerate(WORDS)]
    pieces += [(c, -8.0 - i / 1000) for i, c in enumerate(CHARACTERS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer or P.Metaspace()
    tokenizer.post_processor = template
    tokenizer.add_special_tokens(list(ROBERTA))
    return tokenizer


def cases() -> Iterator[tuple[str, Tokenizer, dict[str, Any]]]:
    """Name, tokenizer.json and tokenizer_config.json."""
    for kind in WORDPIECE:
        for name, normalizer in NORMALIZERS.items():
            config = ROLES | {"tokenizer_class": f"{kind}TokenizerFast"}
            yield f"{kind}, {name}", wordpiece(normalizer(), template=bert_template()), config
    for kind in BYTE_LEVEL:
        config = ROBERTA_ROLES | {"tokenizer_class": f"{kind}TokenizerFast"}
        yield f"{kind}, as it is", byte_level(template=roberta_template()), config
        yield f"{kind}, lower", byte_level(N.Sequence([N.NFKC(), N.Lowercase()]), template=roberta_template()), config
    for kind in UNIGRAM:
        config = ROBERTA_ROLES | {"tokenizer_class": f"{kind}TokenizerFast"}
        yield f"{kind}, as it is", unigram(template=roberta_template()), config
        yield f"{kind}, lower", unigram(N.Sequence([N.NFKC(), N.Lowercase()]), template=roberta_template()), config
    bert, generic = ROLES | {"tokenizer_class": "BertTokenizer"}, ROLES | {"tokenizer_class": "PreTrainedTokenizerFast"}
    digits = P.Sequence([P.BertPreTokenizer(), P.Digits(individual_digits=True)])
    yield "Bert, digits one by one", wordpiece(N.BertNormalizer(), digits, bert_template()), bert
    yield "Bert, split at spaces", wordpiece(N.BertNormalizer(), P.WhitespaceSplit(), bert_template()), bert
    yield "Bert, no template", wordpiece(N.BertNormalizer()), bert
    yield "Bert, no pair", wordpiece(N.BertNormalizer(), template=bert_template(pair=False)), bert
    ends = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
    yield "Bert, only [SEP]", wordpiece(N.BertNormalizer(), template=ends), bert
    yield "generic, digits", wordpiece(N.BertNormalizer(), digits, bert_template()), generic
    yield "generic, NFKC", wordpiece(N.NFKC(), template=bert_template()), generic
    yield (
        "config cased, file lower",
        wordpiece(N.BertNormalizer(), template=bert_template()),
        bert | {"do_lower_case": False},
    )
    cased = N.BertNormalizer(lowercase=False)
    yield "config lower, file cased", wordpiece(cased, template=bert_template()), bert | {"do_lower_case": True}
    yield "config accents", wordpiece(N.BertNormalizer(), template=bert_template()), bert | {"strip_accents": False}
    yield (
        "config no Chinese",
        wordpiece(N.BertNormalizer(), template=bert_template()),
        bert | {"tokenize_chinese_chars": False},
    )
    roberta = ROBERTA_ROLES | {"tokenizer_class": "RobertaTokenizer"}
    yield "config prefix space", byte_level(template=roberta_template()), roberta | {"add_prefix_space": True}
    llama = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    for bos, eos in ((True, True), (True, False), (False, False), (False, True)):
        config = llama | {"add_bos_token": bos, "add_eos_token": eos}
        template = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 0)])
        yield f"Llama, bos {bos}, eos {eos}", unigram(template=template), config
    yield "Llama, no options", unigram(template=roberta_template()), llama
    generic_eos = llama | {"tokenizer_class": "PreTrainedTokenizerFast", "add_eos_token": True}
    yield "generic, eos", byte_level(template=processors.ByteLevel(trim_offsets=False)), generic_eos
    yield "Bert, eos of none", wordpiece(N.BertNormalizer(), template=bert_template()), bert | {"add_eos_token": True}
    marked = wordpiece(N.BertNormalizer(), template=bert_template())
    marked.add_special_tokens(["[E1]", "[/E1]"])
    yield "Bert, markers", marked, bert | {"additional_special_tokens": ["[E1]", "[/E1]"]}
    users = byte_level(template=roberta_template())
    users.add_tokens([AddedToken("<user>", normalized=False), AddedToken("<url>", lstrip=True)])
    yield "Roberta, markers", users, roberta
    for field, value in (("truncation", (3,)), ("padding", ())):
        cut = wordpiece(N.BertNormalizer(), template=bert_template())
        getattr(cut, f"enable_{field}")(*value)
        yield f"Bert, saved with {field}", cut, bert


def save(folder: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> Path:
    """Write tokenizer.json and tokenizer_config.json, and a config.json for transformers."""
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


if __name__ == "__main__":
    import transformers

    ids = {}
    for number, (case, tokenizer, config) in enumerate(cases()):
        folder = save(Path(sys.argv[1]) / str(number), tokenizer, config)
        try:
            loaded = transformers.AutoTokenizer.from_pretrained(folder)
            ids[case] = [loaded(text, truncation=False, padding=False)["input_ids"] for text in TEXTS]
        except Exception as error:
            ids[case] = f"{type(error).__name__}"
    lines = ",\n".join(f"{json.dumps(case)}: {json.dumps(value)}" for case, value in ids.items())
    print("{\n" + lines + "\n}")
