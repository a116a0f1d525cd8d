"""`pooled` is the vector of `SentenceTransformer.encode`, whatever the layout of the folder."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call
from tokenizers import normalizers as N
from tokenizers_as_saved import ROBERTA_ROLES, ROLES, bert_template, byte_level, roberta_template, wordpiece
from transformers import AutoConfig, AutoModel

from clsprobe import Extractor, load_encoder
from clsprobe.probes.encoders.describing import describe
from clsprobe.probes.encoders.finding import list_files
from clsprobe.probes.encoders.sentence_layout import OTHER_STATES, check_layout
from clsprobe.probes.errors import InputError

TEXTS = ["a warm film", "The plot DRAGS on in 2023, don't it?", "Café", "", "a the a film the plot " * 9]
DIM = 32
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def save_encoder(folder: Path, kind: str = "bert", cased: bool = False) -> None:
    roberta = kind == "roberta"
    tokenizer = byte_level(template=roberta_template()) if roberta else wordpiece(
        N.BertNormalizer(lowercase=not cased), template=bert_template()
    )  # fmt: skip
    sizes = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    more = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2} if roberta else {}
    if kind == "modernbert":
        more = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    config = AutoConfig.for_model(
        kind, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=70, initializer_range=0.3, **sizes, **more
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = ROBERTA_ROLES if roberta else ROLES | {"do_lower_case": not cased}
    kinds = {"roberta": "RobertaTokenizer", "modernbert": "PreTrainedTokenizerFast"}
    roles = {"tokenizer_class": kinds.get(kind, "BertTokenizer"), "model_max_length": 64} | roles
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))


def layout(
    folder: Path,
    *modules: tuple[str, dict[str, Any]],
    encoder: str = "",
    kind: str = "bert",
    cased: bool = False,
    sentence: tuple[str, dict[str, Any]] = ("sentence_bert_config.json", {"max_seq_length": 40}),
    root: dict[str, Any] | None = None,
) -> Path:
    """A sentence-transformers folder, written by hand as its versions write it."""
    (folder / encoder).mkdir(parents=True)
    save_encoder(folder / encoder, kind, cased)
    (folder / encoder / sentence[0]).write_text(json.dumps(sentence[1]))
    if root is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(root))
    listed = [{"idx": 0, "name": "0", "path": encoder, "type": "sentence_transformers.models.Transformer"}]
    for number, (name, config) in enumerate(modules, 1):
        path = f"{number}_{name}"
        listed.append(
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        )
        (folder / path).mkdir()
        if name != "Normalize":
            (folder / path / "config.json").write_text(json.dumps(config))
        if name in ("Dense", "LayerNorm"):
            save_weights(folder / path / "model.safetensors", name, config)
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


def save_weights(path: Path, name: str, config: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    drawn = torch.Generator().manual_seed(7)
    if name == "Dense":
        shapes = {"linear.weight": (config["out_features"], config["in_features"])}
        shapes |= {"linear.bias": (config["out_features"],)} if config["bias"] else {}
    else:
        shapes = {"norm.weight": (config["dimension"],), "norm.bias": (config["dimension"],)}
    save_file({key: torch.randn(shape, generator=drawn) for key, shape in shapes.items()}, path)


def pooling(*modes: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """A Pooling module as versions before 5 write it."""
    keys = {
        "cls": "cls_token",
        "max": "max_tokens",
        "mean": "mean_tokens",
        "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    }
    flags = {f"pooling_mode_{keys.get(mode, mode + '_tokens')}": mode in modes for mode in MODES[:5]}
    return "Pooling", {"word_embedding_dimension": DIM} | flags | {
        "pooling_mode_lasttoken": "lasttoken" in modes
    } | more


def dense(out: int, activation: str = "activation.Tanh", bias: bool = True) -> tuple[str, dict[str, Any]]:
    names = {"in_features": DIM, "out_features": out, "bias": bias}
    return "Dense", names | {"activation_function": f"torch.nn.modules.{activation}"}


NORMALIZE = ("Normalize", {})
PROMPTS = {"prompts": {"query": "the plot ", "passage": "a film "}, "default_prompt_name": None}
LAYOUTS: dict[str, dict[str, Any]] = {
    "mean": {"modules": [pooling("mean")]},
    "mean, in a folder of its own": {"modules": [pooling("mean")], "encoder": "0_Transformer"},
    "cls, normalized": {"modules": [pooling("cls"), NORMALIZE]},
    "max and mean": {"modules": [pooling("mean", "max")]},
    "weighted, last, root of length": {"modules": [pooling("weightedmean", "lasttoken", "mean_sqrt_len_tokens")]},
    "dense, normalized": {"modules": [pooling("mean"), dense(12), NORMALIZE]},
    "dense without bias or activation": {"modules": [pooling("cls"), dense(40, "linear.Identity", bias=False)]},
    "layer norm": {"modules": [pooling("mean"), ("LayerNorm", {"dimension": DIM}), ("Dropout", {"dropout": 0.1})]},
    "lower case over a cased tokenizer": {
        "modules": [pooling("mean")],
        "cased": True,
        "sentence": ("sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True}),
    },
    "RoBERTa, its own file name": {
        "modules": [pooling("mean")],
        "kind": "roberta",
        "sentence": ("sentence_roberta_config.json", {"max_seq_length": 30, "do_lower_case": False}),
    },
    "a final norm": {"modules": [pooling("cls")], "kind": "modernbert"},
    "a default prompt": {"modules": [pooling("mean")], "root": PROMPTS | {"default_prompt_name": "query"}},
    "a prompt that is not pooled": {
        "modules": [pooling("mean", include_prompt=False)],
        "root": PROMPTS | {"default_prompt_name": "passage"},
    },
    "first token after the prompt": {
        "modules": [pooling("cls", include_prompt=False)],
        "root": PROMPTS | {"default_prompt_name": "query"},
    },
}


def make(folder: Path, modules: list[tuple[str, dict[str, Any]]], **more: Any) -> Path:
    return layout(folder, *modules, **more)


def encode(folder: Path, texts: list[str], **more: Any) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SentenceTransformer(str(folder), device="cpu").encode(texts, show_progress_bar=False, **more)


def pooled(description: Any, texts: list[str]) -> np.ndarray:
    encoder = load_encoder(description, device="cpu")
    return Extractor(encoder, "pooled", layers=[2], long_rows="truncate")(texts).cell(2, "pooled")


@pytest.mark.parametrize("name", LAYOUTS)
def test_pooled_is_what_encode_returns(name, tmp_path):
    folder = make(tmp_path / "model", **LAYOUTS[name])
    vectors = pooled(describe(str(folder)), TEXTS)
    np.testing.assert_allclose(vectors, encode(folder, TEXTS), atol=1e-5)
    assert np.ptp(vectors[:3], 0).max() > 0.01


def test_a_folder_as_the_library_saves_it_today(tmp_path):
    from sentence_transformers import SentenceTransformer

    old = make(tmp_path / "old", [pooling("cls", "mean"), NORMALIZE], root=PROMPTS, encoder="0_BERT")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SentenceTransformer(str(old), device="cpu").save_pretrained(str(tmp_path / "new"))
    vectors = pooled(describe(str(tmp_path / "new")), TEXTS)
    np.testing.assert_allclose(vectors, encode(old, TEXTS), atol=1e-5)
    new = describe(str(tmp_path / "new"))
    assert new.sentence.prompts == {**describe(str(old)).sentence.prompts, "document": ""}  # the library adds this one
    empty = describe(str(tmp_path / "new"), prompt="document")
    assert (empty.prompt, empty.notes) == ("", ("The model's prompt document is empty: nothing is put before a text.",))


def test_there_are_twelve_layouts_and_a_wrong_one_would_be_seen(tmp_path):
    assert len(LAYOUTS) >= 12
    folder = make(tmp_path / "model", [pooling("mean")])
    reference = encode(folder, TEXTS[:2])
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling("max")[1]))
    assert np.abs(pooled(describe(str(folder)), TEXTS[:2]) - reference).max() > 0.1


def test_a_prompt_by_name_and_as_text(tmp_path):
    folder = make(tmp_path / "model", [pooling("mean")], root=PROMPTS)
    for prompt, argument in (("query", {"prompt_name": "query"}), ("a film: ", {"prompt": "a film: "}), ("", {})):
        np.testing.assert_allclose(
            pooled(describe(str(folder), prompt=prompt), TEXTS), encode(folder, TEXTS, **argument), atol=1e-5
        )
    assert "none is applied" in describe(str(folder)).notes[0]
    with pytest.raises(InputError, match="Did you mean 'query'"):
        describe(str(folder), prompt="qeury")
    for name in ("unlike", "s2p-query", "retrieval.query"):  # would run into the first word of every text
        with pytest.raises(InputError, match=r"no prompt of this name\. It has query, passage\. A text ends in"):
            describe(str(folder), prompt=name)
    assert describe(str(folder), prompt="unlike:").prompt == "unlike:"
    replace_in(folder / "config_sentence_transformers.json", '"default_prompt_name": null', '"default_prompt_name": []')
    with pytest.raises(InputError, match="which is not among prompts"):
        describe(str(folder))


def test_a_token_that_joins_the_prompt_and_the_text_is_content(tmp_path):
    """Byte-level tokenizers read "query: film" as "query", ":", " film", and "query: " as "query", ":", " "."""
    folder = make(tmp_path / "model", [pooling("mean")], kind="roberta")
    encoder = load_encoder(describe(str(folder), prompt="t: "), device="cpu")
    rows = encoder.tokenize(["a film", "film", "", "a", "a a a a a a a a a"], 10)
    content = [encoder.tokenizer.convert_ids_to_tokens(row.ids[~row.special].tolist()) for row in rows]
    assert content == [["Ġa", "Ġ", "fi", "lm"], ["fi", "lm"], [], ["Ġa"], ["Ġa"] * 6]
    notes = Extractor(encoder, "cls", layers=[0])(["a", "", "a film"]).source["notes"]
    assert [note for note in notes if "without tokens" in note] == [
        "Texts without tokens of their own (such as zero-width characters alone): 1 of 3; their vectors are those of "
        "an empty text."
    ]


def test_a_prompt_that_leaves_no_room_says_how_to_make_some(tmp_path):
    folder = make(tmp_path / "model", [pooling("mean")])
    for words, mend in ((25, "Pass 53 or more"), (40, f"Shorten the prompt: {folder} takes 64 tokens")):
        encoder = load_encoder(describe(str(folder), prompt="the film " * words), device="cpu")
        with pytest.raises(InputError, match=re.escape(f"special ones leave no room for text. {mend}")):
            Extractor(encoder, "cls")


def test_a_prompt_is_no_content(tmp_path):
    folder = make(tmp_path / "model", [pooling("mean")], root=PROMPTS)
    encoder = load_encoder(describe(str(folder), prompt="query"), device="cpu")
    (row,) = encoder.tokenize(["a warm film"])
    words = encoder.tokenizer.convert_ids_to_tokens(row.ids.tolist())
    assert words == ["[CLS]", "the", "plot", "a", "warm", "film", "[SEP]"]
    assert row.special.tolist() == [True, True, True, False, False, False, True]


def test_prompts_and_lower_case_are_noted_by_a_run(tmp_path):
    folder = make(tmp_path / "model", **LAYOUTS["lower case over a cased tokenizer"], root=PROMPTS)
    states = Extractor(load_encoder(str(folder), device="cpu"), "cls", layers=[0])(["A film"])
    assert [note.split(" ")[0] for note in states.source["notes"]] == ["The", "Texts"]
    assert describe(str(folder)).max_length == 20


def test_a_longest_text_of_the_library_is_a_default(tmp_path):
    folder = make(tmp_path / "model", [pooling("mean")])
    encoder = load_encoder(str(folder), device="cpu")
    assert Extractor(encoder, "cls").max_length == 40
    assert Extractor(encoder, "cls", max_length=60).max_length == 60
    assert Extractor(encoder, "cls", max_length=1000).max_length == 64


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda f: (f / "modules.json").unlink(), "is no sentence-transformers model"),
        (lambda f: (f / "1_Pooling/config.json").write_text('{"pooling_mode": "loudest"}'), "names no known pooling"),
        (lambda f: (f / "2_Dense/config.json").write_text('{"activation_function": "os.system"}'), "which is not run"),
        (lambda f: (f / "2_Dense/model.safetensors").rename(f / "2_Dense/pytorch_model.bin"), "pickle weights can run"),
        (lambda f: (f / "2_Dense/model.safetensors").write_bytes(b"x"), "cannot be loaded"),
        (lambda f: replace_in(f / "modules.json", "models.Dense", "models.LSTM"), "has a LSTM, which is not run"),
        (lambda f: replace_in(f / "modules.json", "transformers.models.Dense", "x.Dense"), "has a sentence_x.Dense"),
        (lambda f: replace_in(f / "modules.json", "sentence_transformers.models.Tr", "custom_st.Tr"), "a custom_st.Tr"),
        (lambda f: reorder(f / "modules.json"), "has not one Pooling, after the encoder"),
        (
            lambda f: (f / "sentence_bert_config.json").write_text('{"transformer_task": "fill-mask"}'),
            "transformer_task",
        ),
        (lambda f: replace_in(f / "modules.json", "2_Dense", "../2_Dense"), "which is not in the folder"),
    ],
)
def test_what_cannot_be_run_is_one_line(break_it, expected, tmp_path):
    folder = make(tmp_path / "model", [pooling("mean"), dense(12)])
    break_it(folder)
    with pytest.raises(InputError, match=expected):
        pooled(describe(str(folder)), TEXTS)


def test_a_model_of_which_encode_pools_other_states_is_refused(tmp_path):
    folder = make(tmp_path / "model", [pooling("mean")])
    for model_type in OTHER_STATES:
        description = describe(str(folder))
        description = replace(description, config=description.config | {"model_type": model_type})
        with pytest.raises(InputError, match="encode pools the states of"):
            check_layout(description)


def test_the_mend_for_pickle_weights_works(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    folder = make(tmp_path / "model", [pooling("mean"), dense(12)])
    reference, weights = encode(folder, TEXTS), folder / "2_Dense" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(InputError, match=r"model/2_Dense: has no .*In its folder, run python -c") as refusal:
        check_layout(describe(str(folder)))
    monkeypatch.chdir(weights.parent)
    exec(refusal.value.mend.split("'")[1], {})
    np.testing.assert_allclose(pooled(describe(str(folder)), TEXTS), reference, atol=1e-5)


def test_an_encoder_below_another_configuration_is_the_model(tmp_path):
    folder = make(tmp_path / "model", [pooling("mean")], encoder="0_BERT")
    (folder / "config.json").write_text('{"__version__": "0.2.0"}')
    description = describe(str(folder))
    assert description.folder.name == "0_BERT"
    assert "0_BERT/model.safetensors" in list_files(description.folder)


def reorder(path: Path) -> None:
    encoder, pooling, dense = json.loads(path.read_text())
    path.write_text(json.dumps([encoder, dense, pooling]))


def replace_in(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def test_a_run_reads_pooled_beside_the_others(tmp_path, capsys):
    folder = make(tmp_path / "model", [pooling("mean"), dense(12), NORMALIZE])
    lines = [f"a warm film {i},good\nthe plot drags {i},bad" for i in range(40)]
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(lines))
    command = [
        "poolings",
        "--task",
        f"file:{tmp_path}/t.csv",
        "--model",
        str(folder),
        "--layers",
        "0,2",
        "--allow-overlap",
    ]
    command += ["--readouts", "cls,mean,max,pooled", "--cache", str(tmp_path / "c")]
    assert call(*command, "--out", tmp_path / "out") == 0
    import pandas as pd

    results = pd.read_parquet(tmp_path / "out" / "results.parquet")
    assert set(results[results.readout == "pooled"].layer) == {2}
    differences = pd.read_parquet(tmp_path / "out" / "answers" / "poolings.00.parquet")
    assert differences.name.str.startswith("pooled (layer").sum() == 1
    (tmp_path / "model" / "modules.json").unlink()
    assert call(*command, "--out", tmp_path / "other") == 2
    assert "no modules.json" in capsys.readouterr().err


def test_a_causal_config_is_noted(tmp_path):
    folder = make(tmp_path / "model", [pooling("cls")])
    replace_in(folder / "config.json", '"is_decoder": false', '"is_decoder": true')
    config = json.loads((folder / "config.json").read_text()) | {"is_decoder": True}
    (folder / "config.json").write_text(json.dumps(config))
    assert any("is_decoder" in note for note in describe(str(folder)).notes)


def test_added_tokens_of_spaces_are_quoted_in_the_note(tmp_path):
    folder = make(tmp_path / "model", [pooling("mean")], kind="roberta")
    encoder = load_encoder(str(folder), device="cpu")
    encoder = replace(encoder, loaded_tokenizer=replace(encoder.loaded_tokenizer, markers=("  ", "<url>")))
    texts = ["a  film", "a <url>"]
    assert encoder.notes_on(texts, encoder.tokenize(texts).digests())[-1].endswith("as tokens: 2 of 2 ('  ', <url>).")
