"""Model folders that are broken, foreign or hostile: each ends with its line, and none runs, waits or fills memory."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import models
import pytest
from commands import call
from deadline import deadline
from hostile_models import CASES, make

from clsprobe.probes.encoders.describing import describe
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.encoders.preview import TokenizerPreview
from clsprobe.probes.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = [pytest.param(case, id=f"{part}: {name}") for part, cases in CASES.items() for name, case in cases.items()]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A whole BERT of two layers; look, but do not touch."""
    return models.save("bert", tmp_path_factory.mktemp("model") / "bert", layers=2)


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A folder to stand in, without a hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "m")])  # what is imported by its name would be found
    return tmp_path


def check(folder: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The exit code of `clsprobe check`, what it says, and its error."""
    with deadline():
        code = call("check", folder, "--device", "cpu", "--quiet")
    output = capfd.readouterr()
    return code, output.out, output.err


@pytest.mark.parametrize("case", ALL)
def test_a_hostile_model_ends_with_its_line(case: dict[str, Any], desk, model, capfd):
    folder = make(case, desk, model)
    code, said, error = check(folder, capfd)
    if "note" in case:
        assert (code, error) == (0, "")
        assert "can be read" in said
        assert re.search(case["note"], " ".join(describe(folder).notes))
        return
    assert (code, said) == (2, "")
    if case.get("noisy"):
        error = error.splitlines(keepends=True)[-1]
    line = error.removeprefix("error: ").removesuffix("\n")
    assert error == f"error: {line}\n"
    assert line.isprintable()
    if case["says"].startswith("^"):
        assert re.search(case["says"], line), line
    else:
        assert line == case["says"]
    if "then" in case:
        folder = make({"empty": True} | case["then"], desk, model)
        assert check(folder, capfd)[0] == 0


def test_a_text_that_a_tokenizer_cannot_read(model, tmp_path, capfd):
    """A regular expression that is slow on few texts: tokenizers gives up with an error that is no Exception."""
    slow = {"type": "Split", "pattern": {"Regex": "((x+)+)+y"}, "behavior": "Isolated", "invert": False}
    folder = make({"files": {"m/tokenizer.json": {"config": {"pre_tokenizer": slow}}}}, tmp_path, model)
    encoder, preview = load_encoder(str(tmp_path / folder)), TokenizerPreview.of(describe(str(tmp_path / folder)))
    for read in (encoder.tokenize, lambda texts: preview.lengths(texts, 0)):
        assert len(read(["a cat"])) == 1
        with deadline(), pytest.raises(InputError, match=r"m: its tokenizer cannot read a text \(Onig: Regex search"):
            read(["a cat", "x" * 60])
    capfd.readouterr()  # the library says so too
