"""`clsprobe check`: what it says of a model is so, and the exit code says whether the model can be read."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import models
import pytest
from commands import call

from clsprobe.check import ODD_TEXTS, judge_self_check
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory, one_thread):
    """Encoders of random weights: a BERT, one whose padding leaks, one without [CLS] and with a final norm, a broken
    one."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("bert", "convbert", "t5"):
        models.save(name, folder / name, layers=2)
    models.save("bert", folder / "broken", layers=2)
    from safetensors.torch import load_file, save_file

    path = folder / "broken" / "model.safetensors"
    weights = load_file(path)
    weights["encoder.layer.0.output.dense.bias"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def check(capsys, *arguments) -> tuple[int, dict[str, str], str]:
    """The exit code, the facts by name, and the last line."""
    code = call("check", *arguments, "--device", "cpu")
    output = capsys.readouterr()
    *lines, last = output.out.splitlines() or output.err.splitlines()
    matches = [re.fullmatch(r" *(\S.*?)  +(\S.*)", line) for line in lines]
    return code, {match[1]: match[2] for match in matches if match}, last


def test_the_embedded_model(capsys):
    code, facts, last = check(capsys)
    assert (code, last) == (0, "all-MiniLM-L6-v2: can be read; the self-check passes")
    assert facts["layers"] == "0..6 of 384 dimensions"
    assert facts["read at"] == "layer 0 into encoder.layer.0 ... layer 6 out of encoder.layer.5"
    assert facts["longest input"].startswith("512 tokens")
    assert facts["sentence-transformers"] == "Transformer, Pooling, Normalize"
    assert facts["empty"] == "[CLS] [SEP]"
    assert facts["written [SEP], [CLS]"].startswith("[CLS] to the end [ sep ]")  # read as text
    assert facts["readouts"].startswith("cls, sep, token[1]")
    assert "pooled" in facts["readouts"]
    assert re.fullmatch(
        r"about [\d.]+ s here and 86 MB of vectors \(7 layers x 8 readouts\), as much again .*",  # 7 * 8 * 384 * 4
        facts["1,000 texts of 20 tokens"],
    )
    assert facts.keys() >= {*ODD_TEXTS, "padding", "order", "repetition"}


def test_a_model_whose_padding_leaks_is_read_in_batches_of_one_length(folder, capsys):
    code, facts, last = check(capsys, folder / "convbert")
    assert code == 0
    assert last.endswith("can be read, in batches of one length: its convolutions reach into the padding")
    assert "beyond" in facts["padding"]


def test_a_model_without_cls_and_with_a_norm(folder, capsys):
    code, facts, _ = check(capsys, folder / "t5")
    assert code == 0
    assert facts["special tokens"] == "</s> around a text; no cls"
    assert facts["final norm"] == "encoder.final_layer_norm"
    readouts = facts["readouts"].split(", ")
    assert "mean+norm" in readouts
    assert not {"cls", "pooled"} & set(readouts)
    assert facts["sentence-transformers"] == "no (no modules.json)"


def test_how_the_files_are_read_is_said(folder, tmp_path, capsys):
    shutil.copytree(folder / "bert", tmp_path / "m")
    (tmp_path / "m" / "adapter_config.json").write_text("{}")
    code, facts, _ = check(capsys, tmp_path / "m")
    assert code == 0
    assert facts["to know"].startswith("adapter_config.json is left over")


def test_quiet_is_one_line(folder, capsys):
    assert check(capsys, folder / "bert", "--quiet") == (
        0, {}, f"{folder}/bert: can be read; the self-check passes"
    )  # fmt: skip


def test_what_cannot_be_read_is_one_line_and_exit_code_2(folder, tmp_path, capsys):
    assert check(capsys, folder / "broken")[::2] == (
        2,
        f"error: {folder}/broken: gives numbers that are not finite (self-check of padding). "
        "Report it with the model's config.json.",
    )
    assert check(capsys, tmp_path / "none")[0] == 2
    assert check(capsys, folder / "bert", "--dtype", "float8")[::2] == (
        2,
        "error: --dtype: unknown dtype 'float8'. Did you mean 'float32'? One of: float32, bfloat16, float16.",
    )


def test_vectors_that_differ_from_run_to_run_are_refused(folder):
    encoder = load_encoder(str(folder / "bert"), device="cpu")
    assert judge_self_check(encoder) == "can be read; the self-check passes"
    for key, name in (("order", "order"), ("twice", "repetition")):
        unstable = replace(encoder, checked={**encoder.checked, key: 0.5, "leaks": True})
        with pytest.raises(InputError, match=rf"does not give a text the same vectors twice \(self-check of {name}"):
            judge_self_check(unstable)
