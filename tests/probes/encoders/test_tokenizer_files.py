"""What the files of a tokenizer say is what tokenizes, or a note says which of two readings was taken.

The references are `Tokenizer.from_file` and transformers 4.57, whose ids are kept in tests/data.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from house import ROOT
from tokenizers import AddedToken, Tokenizer, processors
from tokenizers import normalizers as N
from tokenizers_as_saved import BERT, ROLES, TEXTS, bert_template, cases, save, wordpiece
from transformers import CanineTokenizer

from clsprobe.probes.encoders.tokenizer_files import find_tokens, load_preview, load_tokenizer
from clsprobe.probes.errors import InputError

OLD = json.loads((ROOT / "tests" / "data" / "tokenizers_transformers_4_57.json").read_text())
MARKED = "[CLS] film </s> [E1] <user> [SEP]"  # special tokens and markers in writing
CASES = {name: (tokenizer, config) for name, tokenizer, config in cases()}
OVERRULED = {  # the explicit options of tokenizer_config.json change what tokenizer.json says
    "config cased, file lower", "config lower, file cased", "config accents", "config no Chinese",
    "config prefix space", "Llama, bos True, eos True", "Llama, bos False, eos False", "Llama, bos False, eos True",
    "generic, eos",
}  # fmt: skip


def ids(loaded, texts=TEXTS) -> list[list[int]]:
    options = {"split_special_tokens": loaded.splits_special_tokens, "padding": False, "truncation": False}
    return [loaded.tokenizer(text, **options)["input_ids"] for text in texts]


def folder_of(tmp_path: Path, tokenizer: Tokenizer, **config) -> Path:
    return save(tmp_path / "model", tokenizer, ROLES | {"tokenizer_class": "BertTokenizer"} | config)


def tokens_of(loaded, text: str) -> list[str]:
    return loaded.tokenizer.convert_ids_to_tokens(ids(loaded, [text])[0])


def test_there_are_enough_folders():
    assert len(CASES) >= 60
    assert OLD.keys() == CASES.keys()
    assert CASES.keys() >= OVERRULED


@pytest.mark.parametrize("name", CASES)
def test_the_file_is_what_tokenizes_or_a_note_says_what_does(name, tmp_path):
    tokenizer, config = CASES[name]
    folder = save(tmp_path / "model", tokenizer, config)
    loaded = load_tokenizer(folder)
    preview, _ = load_preview(folder)  # without transformers
    assert [preview.encode(text).ids for text in [*TEXTS, MARKED]] == ids(loaded, [*TEXTS, MARKED])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    as_saved = [tokenizer.encode(text).ids for text in TEXTS]
    assert (ids(loaded) != as_saved) == (name in OVERRULED)
    if ids(loaded) != as_saved or ids(loaded) != OLD[name]:
        assert loaded.notes or OLD[name] == "ImportError"  # transformers 4 needed the sentencepiece model


@pytest.mark.parametrize("name", sorted(OVERRULED - {"generic, eos"}))
def test_explicit_options_are_read_as_transformers_4_read_them(name, tmp_path):
    tokenizer, config = CASES[name]
    loaded = load_tokenizer(save(tmp_path / "model", tokenizer, config))
    assert ids(loaded) == OLD[name]
    assert any("tokenizer_config.json" in note for note in loaded.notes)


def test_a_plain_folder_has_no_note(tmp_path):
    loaded = load_tokenizer(folder_of(tmp_path, wordpiece(N.BertNormalizer(), template=bert_template())))
    assert loaded.notes == loaded.markers == ()


def test_pairs_keep_the_template_with_an_end_that_is_added(tmp_path):
    tokenizer, config = CASES["Llama, bos True, eos True"]
    loaded = load_tokenizer(save(tmp_path / "model", tokenizer, config))
    first, second = (loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a film", "the plot"))
    assert loaded.tokenizer("a film", "the plot")["input_ids"] == [0, *first, 2, 0, *second, 2]


# ------------------------------------------------------------------------------------------ markers and special tokens


def test_markers_stay_tokens_and_special_tokens_in_a_text_stay_text(tmp_path):
    tokenizer = wordpiece(N.BertNormalizer(), template=bert_template())
    tokenizer.add_special_tokens(["[E1]", "[/E1]"])
    tokenizer.add_tokens([AddedToken("<user>", normalized=False)])
    loaded = load_tokenizer(folder_of(tmp_path, tokenizer))
    assert loaded.markers == ("[E1]", "[/E1]", "<user>")
    assert tokens_of(loaded, "[E1] film [/E1] <user> the") == [
        "[CLS]",
        "[E1]",
        "film",
        "[/E1]",
        "<user>",
        "the",
        "[SEP]",
    ]
    for special in BERT:
        assert set(tokens_of(loaded, f"a {special} film")[1:-1]).isdisjoint(BERT[2:])
        assert len(tokens_of(loaded, f"a {special} film")) > 5


@pytest.mark.parametrize("token", ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]"])
def test_a_special_token_that_no_file_names_stays_text(token, tmp_path):
    """tokenizer_config.json names no roles, and the added token is not marked as special."""
    tokenizer = wordpiece(N.BertNormalizer(), template=bert_template())
    content = json.loads(tokenizer.to_str())
    for added in content["added_tokens"]:
        added["special"] = False
    folder = tmp_path / "model"
    save(folder, Tokenizer.from_str(json.dumps(content)), {"tokenizer_class": "PreTrainedTokenizerFast"})
    assert tokens_of(load_tokenizer(folder), f"a {token} film").count(token) == (token in ("[CLS]", "[SEP]"))


def test_markers_that_only_tokenizer_config_adds(tmp_path):
    tokenizer = wordpiece(N.BertNormalizer(), template=bert_template())
    size = tokenizer.get_vocab_size()
    marker = {
        "content": "[E1]",
        "special": True,
        "normalized": False,
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
    }
    folder = folder_of(tmp_path, tokenizer, added_tokens_decoder={str(size): marker})
    loaded = load_tokenizer(folder)
    assert tokens_of(loaded, "a [E1] film") == ["[CLS]", "a", "[E1]", "film", "[SEP]"]
    assert loaded.tokenizer.convert_tokens_to_ids("[E1]") == size


def test_a_tokenizer_in_python_keeps_its_markers_too(tmp_path):
    tokenizer = CanineTokenizer(model_max_length=40)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>"]})
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "canine"}')
    loaded = load_tokenizer(tmp_path)
    assert "<user>" in loaded.markers
    marked, plain = ids(loaded, ["a <user> b", "a [CLS] b"])
    assert len(marked) == 7  # with the special tokens around it
    assert len(plain) == len("a [CLS] b") + 2


def test_lower_case_goes_before_the_normalizer(tmp_path):
    cased = N.BertNormalizer(lowercase=False, strip_accents=False)
    folder = folder_of(tmp_path, wordpiece(cased, template=bert_template()), do_lower_case=False)
    assert tokens_of(load_tokenizer(folder), "The FILM") != tokens_of(
        load_tokenizer(folder, lower_case=True), "The FILM"
    )
    assert tokens_of(load_tokenizer(folder, lower_case=True), "The FILM") == ["[CLS]", "the", "film", "[SEP]"]


# ------------------------------------------------------------------------------------------------ incomplete files


def folder_from(tmp_path: Path, content: dict, **config) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"} | config))
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    return tmp_path / "model"


def test_parts_that_tokenizer_json_leaves_out_are_none(tmp_path):
    content = json.loads(wordpiece().to_str())
    for part in ("normalizer", "post_processor", "truncation", "padding", "decoder"):
        del content[part]
    assert tokens_of(load_tokenizer(folder_from(tmp_path, content)), "a film") == ["a", "film"]


def test_a_role_that_no_file_knows_adds_no_id(tmp_path):
    """BertTokenizer has a [MASK] by default; its id would lie beyond the embedding table."""
    content = json.loads(wordpiece(N.BertNormalizer(), template=bert_template()).to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "[MASK]"]
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = vocabulary.pop("[MASK]")
    loaded = load_tokenizer(folder_from(tmp_path, content))
    assert max(loaded.tokenizer.get_vocab().values()) == max(vocabulary.values())
    assert loaded.special == ("[CLS]", "[PAD]", "[SEP]", "[UNK]")  # those that the model has


# ----------------------------------------------------------------------------------------------- roles without a name

NAMELESS = {"tokenizer_class": "PreTrainedTokenizerFast"}


def roles(folder: Path, **options) -> tuple[str | None, str | None, tuple[str, ...]]:
    loaded = load_tokenizer(folder, **options)
    return loaded.tokenizer.cls_token, loaded.tokenizer.sep_token, loaded.notes


def test_the_tokens_that_a_template_adds_are_cls_and_sep(tmp_path):
    folder = save(tmp_path / "model", wordpiece(N.BertNormalizer(), template=bert_template()), NAMELESS)
    assert roles(folder) == (None, None, ())
    cls, sep, (note,) = roles(folder, name_cls=True)
    assert (cls, sep) == ("[CLS]", "[SEP]")
    assert note.startswith("[CLS] is read as cls and [SEP] is read as sep: the tokenizer's template puts")
    assert load_preview(folder, name_cls=True)[1] == {"cls": "[CLS]", "sep": "[SEP]"}


@pytest.mark.parametrize(
    ("single", "expected"),
    [("$A [SEP]", (None, None)), ("[CLS] $A", ("[CLS]", None)), ("[MASK] $A [SEP]", ("[MASK]", "[SEP]"))],
)
def test_a_role_is_read_from_its_side_of_the_text(tmp_path, single, expected):
    ids = [(token, i) for i, token in enumerate(BERT)]
    template = processors.TemplateProcessing(single=single, special_tokens=ids)
    folder = save(tmp_path / "model", wordpiece(N.BertNormalizer(), template=template), NAMELESS)
    assert roles(folder, name_cls=True)[:2] == expected


def test_a_role_that_is_named_stays(tmp_path):
    named = NAMELESS | {"cls_token": "[CLS]", "sep_token": "[MASK]"}
    folder = save(tmp_path / "model", wordpiece(N.BertNormalizer(), template=bert_template()), named)
    assert roles(folder, name_cls=True) == ("[CLS]", "[MASK]", ())


# ------------------------------------------------------------------------------------------------------ tokens in texts


def test_the_first_of_the_longest_tokens_in_every_text():
    texts = ["a [E1]x <s> [E1]", "<S> [e1]", "", "nul\0 <s>", "x" * 5000 + "[E1]"]
    assert list(find_tokens(["[E1]", "[E1]x", "<s>"], texts)) == ["[E1]x", None, None, "<s>", "[E1]"]
    assert not any(find_tokens([], texts))


def test_as_many_tokens_as_words(tmp_path):
    """A regular expression of them would try each of them at every place."""
    tokens = [f"[unused{i}]" for i in range(40_000)]
    assert list(find_tokens(tokens, ["[unused" * 3000, f"a {tokens[-1]}"])) == [None, tokens[-1]]


def test_more_added_tokens_than_a_tokenizer_has(tmp_path):
    decoder = {str(i): {"content": f"t{i}"} for i in range(50_001)}
    folder = folder_of(tmp_path, wordpiece(), added_tokens_decoder=decoder)
    with pytest.raises(
        InputError, match=r"tokenizer_config.json: has 50,001 added tokens, and at most 50,000 are read"
    ):
        load_tokenizer(folder)
