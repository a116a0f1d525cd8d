"""What is known of texts before torch is imported is what the loaded encoder says of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import models
import numpy as np
import pytest
from models import TEXTS

from clsprobe.probes.encoders.describing import describe
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.encoders.preview import TokenizerPreview
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.tasks.texts import pair

pytestmark = pytest.mark.usefixtures("one_thread")
MANY = [*TEXTS, "a [CLS] cat </s> [SEP]", pair("the cat", "sees the dog"), "dogs " * 60]


def preview_of(folder: Path, **options) -> TokenizerPreview:
    preview = TokenizerPreview.of(describe(str(folder), **options))
    assert preview is not None
    return preview


def add_tokens(folder: Path, *tokens: str, vocabulary: bool = False) -> None:
    """Give the tokenizer more tokens than the embedding table has."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    first = 1 + max(content["model"]["vocab"].values())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    if vocabulary:
        content["model"]["vocab"] |= {token: first + i for i, token in enumerate(tokens)}
    else:
        content["added_tokens"] += [{"id": first + i, "content": token} | flags for i, token in enumerate(tokens)]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "t5", "xlnet", "xlm", "modernbert"])
def test_lengths_and_missing_tokens_are_those_of_the_encoder(kind, tmp_path):
    folder = models.save(kind, tmp_path / kind, layers=1)
    texts = MANY if kind in ("bert", "roberta") else [text for text in MANY if text != MANY[-2]]
    encoder, preview = load_encoder(str(folder)), preview_of(folder)
    rows = encoder.tokenize(texts)
    assert preview.lengths(texts, 0).tolist() == rows.full_lengths.tolist()
    limited = preview.lengths(texts, 40)
    assert np.array_equal(limited > 40, rows.full_lengths > 40)
    assert limited[1] == 0  # "cat" has no more tokens than bytes
    ids = encoder.tokenize([""])[0].ids
    assert preview.missing == {name for name in ("cls", "sep") if getattr(encoder, f"{name}_id") not in ids}


def test_a_prompt_counts(tmp_path):
    folder = models.save("bert", tmp_path / "bert", layers=1)
    short = "cat " * 35
    assert preview_of(folder).lengths([short], 40)[0] == 37
    prompted = preview_of(folder, prompt="the big red dog: ")  # five tokens
    assert prompted.lengths([short], 40)[0] == 37 + 5


@pytest.mark.parametrize("vocabulary", [True, False], ids=["of the vocabulary", "added"])
def test_a_token_that_the_table_lacks_is_refused_where_a_text_has_it(tmp_path, vocabulary):
    folder = models.save("bert", tmp_path / "bert", layers=1)
    table = len(models.tokenizer("bert"))
    reference = Extractor(load_encoder(str(folder)), ["mean"])(TEXTS).cell(1, "mean")
    add_tokens(folder, "unicorn", vocabulary=vocabulary)
    encoder, preview = load_encoder(str(folder)), preview_of(folder)
    assert np.array_equal(Extractor(encoder, ["mean"])(TEXTS).cell(1, "mean"), reference)
    texts = [*TEXTS, "the unicorn sees\na cat"]
    for read in (encoder.tokenize, lambda texts: preview.lengths(texts, 40), Extractor(encoder, ["mean"])):
        with pytest.raises(InputError) as caught:
            read(texts)
        message = str(caught.value)
        assert message.startswith(
            f"{folder}: the text 'the unicorn sees\\na cat' has the token 'unicorn', number {table} "
        )
        assert "Leave such texts out" in message


def test_padding_that_the_table_lacks_is_masked(tmp_path):
    """A token for padding, added without resizing the model, as is done for GPT-2."""
    folder = models.save("gpt2", tmp_path / "gpt2", layers=1)
    reference = Extractor(load_encoder(str(folder)), ["mean"])(TEXTS[:2]).cell(1, "mean")
    add_tokens(folder, "<padding>")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<padding>"}))
    encoder = load_encoder(str(folder))
    assert encoder.tokenizer.pad_token_id == len(models.tokenizer("gpt2"))
    assert np.array_equal(Extractor(encoder, ["mean"])(TEXTS[:2]).cell(1, "mean"), reference)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("one", "two"), "its tokenizer knows 36 tokens, its embedding table 34. Use its own tokenizer."),
        (("[CLS]",), "its tokenizer adds [CLS] to every text, number 34 of an embedding table of 34."),
    ],
    ids=["two words of the vocabulary", "[CLS]"],
)
def test_a_foreign_tokenizer_is_refused_alike(tmp_path, tokens, message):
    folder = models.save("bert", tmp_path / "bert", layers=1)
    if tokens == ("[CLS]",):
        text = (folder / "tokenizer.json").read_text()
        content = json.loads(text.replace('"[CLS]": 2', '"[OLD]": 2'))
        content["model"]["vocab"] = {("[OLD]" if t == "[CLS]" else t): i for t, i in content["model"]["vocab"].items()}
        content["added_tokens"] = [t | ({"id": 34} if t["content"] == "[CLS]" else {}) for t in content["added_tokens"]]
        for processor in (content["post_processor"],):
            processor["special_tokens"]["[CLS]"]["ids"] = [34]
        (folder / "tokenizer.json").write_text(json.dumps(content))
    else:
        add_tokens(folder, *tokens, vocabulary=True)
    for load in (load_encoder, preview_of):
        with pytest.raises(InputError) as caught:
            load(str(folder))
        assert str(caught.value).startswith(f"{folder}: {message}")


def test_it_needs_no_torch(tmp_path, monkeypatch):
    folder = models.save("bert", tmp_path / "bert", layers=1)
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    preview = preview_of(folder)
    assert preview.lengths(["the cat", "cat"], 0).tolist() == [4, 3]
    assert preview.missing == set()
