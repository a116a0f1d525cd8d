"""What is refused before torch is imported is refused by the Extractor, in the same words."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import models
import pytest

from clsprobe.probes.encoders.describing import describe
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.extraction.precheck import check_before_loading
from clsprobe.probes.extraction.readouts import DEFAULT

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["the cat", "dogs " * 60, "a very very big red dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Encoders with and without [CLS], and with a final norm."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("bert", "gpt2"):
        models.save(kind, folder / kind, layers=2)
    shutil.copytree(folder / "bert", folder / "old")
    (folder / "old" / "tokenizer.json").rename(folder / "old" / "vocab.txt")
    return folder


@pytest.mark.parametrize(
    ("kind", "readouts", "layers", "options", "message"),
    [
        ("gpt2", ["cls"], [0, 2], {}, "adds no cls token. Choose among token[1]"),
        ("gpt2", ["mean", "cls+norm"], [2], {}, "adds no cls token"),
        ("bert", ["cls+norm"], [2], {}, "no norm follows the last layer"),
        ("gpt2", ["mean+norm"], [0, 1], {}, "'mean+norm' is read at layer 2 only. Add 2 to --layers"),
        ("bert", ["cls"], [0], {"max_length": 2}, "--max-length 2: 2 special tokens leave no room for text. Pass 3"),
        ("bert", ["cls"], [0], {"prompt": "dogs " * 50}, "Shorten the prompt"),
    ],
)
def test_both_refuse_it_in_the_same_words(folder, kind, readouts, layers, options, message):
    description = describe(str(folder / kind), prompt=options.pop("prompt", None))
    messages = []
    for check in (
        lambda: check_before_loading(description, ["cat"], readouts, layers, **options),
        lambda: Extractor(load_encoder(description), readouts, layers=layers, **options),
    ):
        with pytest.raises(InputError) as caught:
            check()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert message in messages[0]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_what_both_take(folder, kind):
    """The default readouts are those that a model has; the texts that are too long are counted."""
    description = describe(str(folder / kind))
    lengths = check_before_loading(description, TEXTS)
    assert lengths.tolist() == [0, 62 if kind == "bert" else 60, 0]
    assert (
        check_before_loading(description, TEXTS, ["mean+norm"] if kind == "gpt2" else ["cls"], [2]) == lengths
    ).all()
    extract = Extractor(load_encoder(description))
    assert {readout.name for readout in extract.readouts} == set(DEFAULT) - (
        {"cls", "sep"} if kind == "gpt2" else set()
    )
    with pytest.raises(InputError, match=rf"1 texts? exceeds? 40 tokens .longest {lengths.max()}"):
        extract(TEXTS)


def test_without_a_file_that_says_so_nothing_is_refused(folder):
    assert check_before_loading(describe(str(folder / "old")), TEXTS, ["cls"]).tolist() == [0, 0, 0]


def test_it_needs_no_torch(folder: Path, monkeypatch: Any):
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    assert check_before_loading(describe(str(folder / "bert")), TEXTS).tolist() == [0, 62, 0]
