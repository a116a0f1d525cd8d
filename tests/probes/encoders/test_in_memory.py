"""An encoder that is loaded already is read as its folder would be, and stays as it was."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from clsprobe import Extractor, load_encoder
from clsprobe.probes.encoders.describing import describe
from clsprobe.probes.encoders.in_memory import as_model, copy_encoder
from clsprobe.probes.errors import InputError
from clsprobe.probes.files import remove_temporary_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return models.save("bert", tmp_path_factory.mktemp("models") / "tuned")


@pytest.fixture
def objects(folder):
    return AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def vectors(encoder) -> np.ndarray:
    states = Extractor(encoder, ["cls", "mean"], long_rows="truncate")(list(models.TEXTS))
    return np.stack([states.cell(*cell) for cell in states.cells])


@pytest.mark.parametrize(
    "shape", ["bert", "roberta", "distilbert", "albert", "deberta-v2", "modernbert", "xlm", "mpnet"]
)
def test_it_gives_the_vectors_of_its_folder(shape, tmp_path):
    folder = models.save(shape, tmp_path / "model")
    pair = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert np.array_equal(vectors(load_encoder(pair)), vectors(load_encoder(str(folder))))


def test_the_encoder_of_an_encoder_decoder_is_read(tmp_path):
    from_folder = vectors_of_encoder_decoder(str(models.save("t5", tmp_path / "model")))
    pair = AutoModel.from_pretrained(tmp_path / "model"), AutoTokenizer.from_pretrained(tmp_path / "model")
    assert np.array_equal(vectors_of_encoder_decoder(pair), from_folder)


def vectors_of_encoder_decoder(model) -> np.ndarray:
    return Extractor(load_encoder(model), ["mean"])(["the cat"]).cell(3, "mean")


@pytest.mark.parametrize("head", [AutoModelForSequenceClassification, AutoModelForMaskedLM])
def test_a_head_is_left_out(head, folder):
    model, tokenizer = head.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert np.array_equal(vectors(load_encoder((model, tokenizer))), vectors(load_encoder(str(folder))))


def test_the_weights_are_those_at_the_time_of_the_call(objects):
    model, tokenizer = objects
    before = as_model((model, tokenizer))
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.mul_(1.5)
    after = as_model((model, tokenizer))
    assert before.digest != after.digest
    assert not np.array_equal(vectors(load_encoder(before)), vectors(load_encoder(after)))


def test_nothing_of_the_objects_changes(objects):
    model, tokenizer = objects
    model.train()
    parameter = next(model.parameters())
    before = (
        copy.deepcopy(model.config.to_dict()),
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        tokenizer.backend_tokenizer.to_str(),
    )
    vectors(load_encoder((model, tokenizer)))
    assert model.training
    assert parameter.requires_grad
    assert not model._forward_hooks
    assert model.config.to_dict() == before[0]
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in model.state_dict().items())
    assert tokenizer.backend_tokenizer.to_str() == before[2]


@pytest.mark.parametrize("convert", [torch.nn.Module.half, torch.nn.Module.double])
def test_its_configuration_stays_in_another_precision(convert, objects):
    model, tokenizer = convert(objects[0]), objects[1]
    before = copy.deepcopy(model.config.to_dict())
    as_model((model, tokenizer))
    assert model.config.to_dict() == before


@pytest.mark.parametrize("kind", ["hook", "pre_hook", "forward"])
def test_what_changes_its_numbers_and_is_no_weight_is_noted(kind, objects):
    model, _ = objects
    without = vectors(load_encoder(objects))
    layer = model.encoder.layer[1]
    if kind == "hook":
        layer.register_forward_hook(lambda module, inputs, output: output * 0)
    elif kind == "pre_hook":
        layer.register_forward_pre_hook(lambda module, inputs: None)
    else:
        layer.forward = lambda *inputs, **options: inputs[0]
    encoder = load_encoder(objects)
    assert any("in encoder.layer.1: it was read without them" in note for note in encoder.description.notes)
    assert np.array_equal(vectors(encoder), without)


def test_the_hooks_of_transformers_are_not_noted(objects):
    model, tokenizer = objects
    model(**tokenizer("the cat", return_tensors="pt"), output_hidden_states=True)  # which leaves hooks behind
    assert any(module._forward_hooks for module in model.modules())
    assert as_model(objects).notes == ()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_its_duplicate_is_the_same_copy(duplicate, objects):
    pair = as_model(objects)
    same = duplicate(pair)
    del pair
    gc.collect()
    assert np.isfinite(vectors(load_encoder(same))).all()


def test_a_pickled_copy_without_its_folder_says_what_to_pass(objects):
    pair = as_model(objects)
    name, content = pair.name, pickle.dumps(pair)
    del pair
    gc.collect()
    with pytest.raises(InputError, match=r"no longer.*Pass \(model, tokenizer\) again"):
        describe(pickle.loads(content))
    assert name in str(pickle.loads(content).name)


def test_a_name_with_a_tokenizer_says_how_to_load_the_model(objects, folder):
    with pytest.raises(InputError, match=r"str stands beside a tokenizer.*AutoModel\.from_pretrained"):
        as_model((str(folder), objects[1]))


def test_equal_encoders_have_equal_digests_wherever_they_come_from(objects, folder, tmp_path):
    model, tokenizer = objects
    first = as_model((model, tokenizer)).digest
    tokenizer("the cat", padding="max_length", truncation=True, max_length=7)  # which the tokenizer remembers
    model.save_pretrained(tmp_path / "elsewhere")
    tokenizer.save_pretrained(tmp_path / "elsewhere")
    elsewhere = [kind.from_pretrained(tmp_path / "elsewhere") for kind in (AutoModel, AutoTokenizer)]
    with_head = AutoModelForSequenceClassification.from_pretrained(folder)
    for same in ((model, tokenizer), (tokenizer, model), elsewhere):
        assert as_model(same).digest == first
    assert np.array_equal(vectors(load_encoder((with_head, tokenizer))), vectors(load_encoder((model, tokenizer))))


def test_another_tokenizer_is_another_digest(objects):
    model, tokenizer = objects
    first = as_model((model, tokenizer)).digest
    tokenizer.add_tokens(["<e1>"])
    model.resize_token_embeddings(len(tokenizer))
    assert as_model((model, tokenizer)).digest != first


def test_its_folder_is_private_and_goes_with_it(objects):
    encoder = load_encoder(objects)
    folder = encoder.description.folder
    assert folder.stat().st_mode & 0o777 == 0o700
    description = describe(encoder.description.copy)
    del encoder
    gc.collect()
    assert folder.exists()  # the description needs it
    del description
    gc.collect()
    assert not folder.exists()


def test_only_folders_that_were_made_for_it_are_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(AssertionError):
        remove_temporary_folder(tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()


def test_an_untrained_twin_has_other_weights(objects):
    pair = as_model(objects)
    twins = [load_encoder(pair, untrained=seed) for seed in (0, 0, 1)]
    weights = [twin.model.embeddings.word_embeddings.weight for twin in twins]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_name_says_where_it_came_from(objects, folder):
    assert as_model(objects).name == "tuned (in memory)"
    fresh = AutoModel.from_config(models.config("bert"))
    assert as_model((fresh, objects[1])).name == "BertModel (in memory)"
    objects[0].config._name_or_path = "org/name"
    objects[0].name_or_path = "org/name"
    assert as_model(objects).name == "org/name (in memory)"


def test_an_encoder_of_clsprobe_stands_for_what_it_was_loaded_from(folder, objects):
    assert as_model(load_encoder(str(folder))) == str(folder)
    pair = as_model(objects)
    assert as_model(load_encoder(pair)) is pair


def test_a_sentence_transformer_is_read_with_its_layout(folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder))
    model.max_seq_length = 20
    model.prompts, model.default_prompt_name = {"query": "the cat "}, "query"
    encoder = load_encoder(model)
    assert encoder.description.max_length == 20
    assert encoder.description.prompt == "the cat "
    texts = ["a dog runs", "the bird sees the red dog"]
    states = Extractor(encoder, ["pooled"], layers=[3])(texts)
    np.testing.assert_allclose(states.cell(3, "pooled"), model.encode(texts), atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- errors


def quantised(model, tokenizer):
    model.config.quantization_config = {"bits": 4}
    return model, tokenizer


def adapted(model, tokenizer):
    model._hf_peft_config_loaded = True
    return model, tokenizer


def elsewhere(model, tokenizer):
    return model.to("meta"), tokenizer


def untrained(model, tokenizer):
    return load_encoder((model, tokenizer), untrained=0)


def trained(model, tokenizer):
    encoder = load_encoder((model, tokenizer))
    encoder.model.requires_grad_(True)
    return encoder


def of_another_model(model, tokenizer):
    tokenizer.add_tokens([f"<{i}>" for i in range(2000)])
    return model, tokenizer


WRONG = {
    "alone": (lambda model, tokenizer: model, "comes without its tokenizer", "Pass (model, tokenizer)"),
    "three": (lambda model, tokenizer: (model, tokenizer, 1), "is tuple, which is not read", "Pass (model,"),
    "number": (lambda model, tokenizer: 3, "int, which is not read as an encoder", "Pass (model, tokenizer)"),
    "module": (lambda model, tokenizer: torch.nn.Linear(2, 2), "Linear, which is not read", "Pass (model, tokenizer)"),
    "class": (lambda model, tokenizer: type(model), "type, which is not read as an encoder", "Pass (model, tokenizer)"),
    "no tokenizer": (lambda model, tokenizer: (model, "bert"), "str is no tokenizer", "AutoTokenizer.from_pretrained"),
    "quantised": (quantised, "has quantised weights", "Pass the unquantised model"),
    "adapted": (adapted, "has adapters of PEFT", "model.merge_and_unload()"),
    "elsewhere": (elsewhere, "has no weights in memory for embeddings", "Load it whole"),
    "untrained": (untrained, "is an untrained Encoder", "Pass the name"),
    "trained": (trained, "has been trained since it was loaded", "(model, tokenizer)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_read_is_one_clear_error(case, objects):
    make, what, mend = WRONG[case]
    with pytest.raises(InputError) as error:
        as_model(make(*objects))
    assert error.value.where == "model"
    assert what in error.value.what
    assert mend in error.value.mend


def test_a_tokenizer_of_another_model_is_refused_as_from_a_folder(objects):
    with pytest.raises(InputError, match="its tokenizer knows 2,0"):
        load_encoder(of_another_model(*objects))


def test_a_tokenizer_that_changes_when_it_is_saved_is_refused(objects):
    class Shouting(PreTrainedTokenizerFast):
        def __call__(self, text, *args, **options):
            return super().__call__(text.replace("film", "dog"), *args, **options)

    model, tokenizer = objects
    other = Shouting(tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map)
    with pytest.raises(InputError, match=r"saved and loaded, gives [0-9]+ of 11 sample texts other tokens"):
        load_encoder((model, other))


def test_what_saving_raises_is_one_line(objects, monkeypatch):
    model, tokenizer = objects
    monkeypatch.setattr(tokenizer, "save_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError, match=r"cannot be copied \(division by zero\)\. Save it, and pass its folder\."):
        copy_encoder(model, tokenizer)


def test_the_copy_has_no_pickle_and_no_state_of_the_last_call(objects):
    model, tokenizer = objects
    tokenizer("the cat", padding="max_length", truncation=True, max_length=7)
    pair = as_model((model, tokenizer))
    assert {path.suffix for path in pair.folder.iterdir()} <= {".json", ".safetensors", ".txt", ".jinja"}
    saved = json.loads((pair.folder / "tokenizer.json").read_text())
    assert saved["padding"] is saved["truncation"] is None
    assert os.listdir(pair.folder)


def with_another_epsilon(model):
    model.encoder.layer[1].output.LayerNorm.eps = 0.1


def with_another_activation(model):
    model.encoder.layer[2].intermediate.intermediate_act_fn = torch.nn.Tanh()


@pytest.mark.parametrize("change", [with_another_epsilon, with_another_activation])
def test_a_module_that_is_not_as_the_configuration_says_is_refused(change, objects):
    model, tokenizer = objects
    change(model)
    with pytest.raises(InputError, match=r"gives other numbers than its configuration and weights do \(by [0-9]+%"):
        load_encoder((model, tokenizer))
    assert load_encoder((model, tokenizer), untrained=0).untrained == 0  # whose numbers are others anyway


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_another_precision_is_none(dtype, objects):
    model, tokenizer = objects
    assert load_encoder((model.to(dtype), tokenizer)).dtype == torch.float32
    assert load_encoder((model, tokenizer), dtype="bfloat16").dtype == torch.bfloat16


def test_encoders_and_states_show_themselves(objects):
    model, tokenizer = objects
    model.name_or_path = "org/<b>name"
    encoder = load_encoder((model, tokenizer))
    states = Extractor(encoder, ["cls", "mean"], layers=[0, 3])(["the cat", "a dog"])
    assert repr(encoder) == "<Encoder org/<b>name (in memory): bert, 3 layers, 16 dimensions, float32 on cpu>"
    assert repr(states) == "<States of org/<b>name (in memory): 2 texts, layers 0,3, readouts cls, mean>"
    for page in (encoder._repr_html_(), states._repr_html_()):
        assert "&lt;b&gt;name" in page
        assert "<b>name" not in page
    assert "reaches other tokens" not in encoder._repr_html_()
    assert "reaches other tokens" in replace(encoder, checked=encoder.checked | {"leaks": True})._repr_html_()
    assert "not checked" in replace(encoder, checked={})._repr_html_()
    assert "states.cell(3, 'mean')" in states._repr_html_()
