"""Pairs of texts: the encoder reads them as its tokenizer and model define; to other code a pair is one string."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import models
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import call
from tokenizers import Tokenizer, processors
from transformers import AutoModel, AutoTokenizer

from clsprobe.analysis.sources import Loaded, SourceOptions, load
from clsprobe.probes.baseline import bag_of_words, length
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.extraction.states import States
from clsprobe.probes.tasks import duplicates
from clsprobe.probes.tasks.texts import PAIRED, pair, parts, readable

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = [  # the longest first, as `plan_batches` orders them
    ("a very very big red dog sleeps in the blue house", "the dog sleeps"),
    ("the cat sees the dog", "a big bird runs in the house"),
    ("the bird runs", "the bird sees the tree"),
    ("dogs", "cat"),
]
FIRSTS, SECONDS = (list(each) for each in zip(*PAIRS, strict=True))
TYPED = ("bert", "electra", "albert", "deberta-v2", "squeezebert")  # these models have token types
TEXTS = [pair(*each) for each in PAIRS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    saved: dict[str, Path] = {}

    def folder(shape: str) -> Path:
        if shape not in saved:
            saved[shape] = models.save(shape, tmp_path_factory.mktemp(shape))
        return saved[shape]

    return folder


@pytest.fixture(scope="module")
def bert(folders) -> Encoder:
    return load_encoder(str(folders("bert")))


def reference(folder: Path, *texts: list[str]) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """The inputs and all hidden states of transformers for texts or pairs."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(*texts, padding=True, return_tensors="pt")
    model_inputs = {name: value for name, value in inputs.items() if name in signature(model.forward).parameters}
    with torch.no_grad():
        return model_inputs, list(model(**model_inputs, output_hidden_states=True).hidden_states)


# --------------------------------------------------------------------------------------------------------- the encoder


@pytest.mark.parametrize("shape", [*models.KINDS, "albert", "deberta-v2", "modernbert", "squeezebert"])
def test_ids_types_and_vectors_are_those_of_transformers(folders, shape):
    encoder = load_encoder(str(folders(shape)))
    assert ("token_type_ids" in encoder.tokenizer.model_input_names) == (shape in TYPED)
    inputs, hidden = reference(folders(shape), FIRSTS, SECONDS)
    batch = encoder.batch(encoder.tokenize(TEXTS))
    assert torch.equal(batch.ids, inputs["input_ids"])
    assert torch.equal(batch.real, inputs["attention_mask"].bool())
    assert ("token_type_ids" in inputs) == (batch.types is not None)
    if batch.types is not None:
        assert torch.equal(batch.types, inputs["token_type_ids"])
    states = Extractor(encoder, ["cls"])(TEXTS)  # one batch
    for layer, vectors in enumerate(hidden[:-1]):
        assert np.array_equal(states.cell(layer, "cls"), vectors[:, 0].numpy())
    last = states.cell(states.last, "cls") if not encoder.norm else None
    assert last is None or np.array_equal(last, hidden[-1][:, 0].numpy())


def test_token_types_change_the_vectors(bert):
    """Leaving the types out would be detected."""
    batch = bert.batch(bert.tokenize(TEXTS))
    typed = bert.forward(batch)[0]
    untyped = bert.forward(bert.batch([type(row)(row.ids, row.special, row.seed) for row in bert.tokenize(TEXTS)]))[0]
    assert batch.types is not None
    assert not torch.equal(typed, untyped)


def test_a_pair_differs_from_its_joined_text_and_from_its_reverse(bert):
    a, b = PAIRS[1]
    extract = Extractor(bert, ["cls"], layers=[3])
    vectors = extract([pair(a, b), pair(b, a), f"{a} {b}", f"{a} [SEP] {b}", f"{a} {b} "]).cell(3, "cls")
    assert len(np.unique(vectors[:4], axis=0)) == 4
    keys = {extract._made_of([text])["texts"]["digest"] for text in (pair(a, b), pair(b, a), f"{a} {b}", a + b)}
    assert len(keys) == 4


def test_special_tokens_written_in_a_pair_are_text(bert):
    (row,) = bert.tokenize([pair("the [SEP] cat", "[CLS] dog [SEP]")])
    (plain,) = bert.tokenize([pair("the cat", "dog")])
    assert row.special.sum() == plain.special.sum() == 3
    assert (row.ids[row.special] == plain.ids[plain.special]).all()
    assert not set(row.ids[~row.special].tolist()) & {bert.cls_id, bert.sep_id}
    assert row.types.tolist() == sorted(row.types.tolist())


@pytest.mark.parametrize("max_length", [7, 9, 12])
def test_the_longer_text_is_cut_first(bert, max_length):
    expected = bert.tokenizer(FIRSTS, SECONDS, truncation="longest_first", max_length=max_length)
    rows = bert.tokenize(TEXTS, max_length)
    assert [row.ids.tolist() for row in rows] == expected["input_ids"]
    assert [row.types.tolist() for row in rows] == expected["token_type_ids"]
    full_lengths = [len(ids) for ids in bert.tokenizer(FIRSTS, SECONDS)["input_ids"]]
    assert rows.full_lengths.tolist() == full_lengths
    long = [i for i, n in enumerate(full_lengths) if n > max_length]
    assert long
    states = Extractor(bert, ["cls"], layers=[3], max_length=max_length, long_rows="truncate")(TEXTS)
    assert states.truncated.tolist() == long
    with pytest.raises(InputError, match=rf"^--long-rows error: {len(long)} texts exceed {max_length} tokens"):
        Extractor(bert, ["cls"], layers=[3], max_length=max_length)(TEXTS)


def test_positions(bert):
    names = ("cls", "sep", "token[1]", "token[-1]")
    states = Extractor(bert, names)(TEXTS)
    _, hidden = reference(bert.description.folder, FIRSTS, SECONDS)
    for i, ids in enumerate(bert.tokenizer(FIRSTS, SECONDS)["input_ids"]):
        for name, position in zip(names, (0, len(ids) - 1, 1, len(ids) - 2), strict=True):
            assert np.array_equal(states.cell(3, name)[i], hidden[3][i, position].numpy()), name
    assert bert.tokenizer("dogs", "cat")["input_ids"][-2:] == [bert.tokenizer.vocab["cat"], bert.sep_id]


def stack_vectors(states: States) -> np.ndarray:
    return np.stack([states.cell(layer, name) for layer, name in states.cells])


@pytest.mark.parametrize("shape", ["bert", "roberta"])
def test_pairs_and_single_texts_in_one_batch_are_independent(folders, shape):
    encoder = load_encoder(str(folders(shape)))
    extract = Extractor(encoder, ["cls", "mean"])
    mixed = stack_vectors(extract([text for texts in zip(TEXTS, FIRSTS, strict=True) for text in texts]))
    np.testing.assert_allclose(mixed[:, ::2], stack_vectors(extract(TEXTS)), rtol=0, atol=1e-5)  # other batches
    np.testing.assert_allclose(mixed[:, 1::2], stack_vectors(extract(FIRSTS)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", ["gpt2", "llama", "t5"])
def test_a_tokenizer_without_a_template_is_refused(folders, shape):
    encoder = load_encoder(str(folders(shape)))
    with pytest.raises(InputError, match=r"puts nothing between the two texts of a pair\. Name one column with --text"):
        Extractor(encoder, ["mean"])(TEXTS)


def test_more_token_types_than_the_table_has_are_refused(folders, tmp_path):
    folder = models.save("roberta", tmp_path / "r")
    config = json.loads((folder / "config.json").read_text())
    assert config["type_vocab_size"] == 2
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    template = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B:2 </s>:2", special_tokens=ids)
    tokenizer.post_processor = template
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    encoder = load_encoder(str(folder))
    with pytest.raises(InputError, match="its tokenizer tells 3 token types apart, its embedding table 2"):
        encoder.tokenize(TEXTS)
    assert len(encoder.tokenize(FIRSTS)) == 4  # single texts need no types


@pytest.mark.parametrize("shape", ["roberta", "bert"])
def test_one_token_type_is_read_without_types(folders, tmp_path, shape):
    """The reference is transformers on the ids of the tokenizer, with the types left out: with them it fails."""
    folder = tmp_path / shape
    config = models.config(shape)
    config.type_vocab_size = 1
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer = models.tokenizer(shape)
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in (tokenizer.cls_token, tokenizer.sep_token)]
    cls, sep = ids[0][0], ids[1][0]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        f"{cls} $A {sep}", f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=ids
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    model, inputs = (
        AutoModel.from_pretrained(folder).eval(),
        tokenizer(FIRSTS, SECONDS, padding=True, return_tensors="pt"),
    )
    with torch.no_grad():
        with pytest.raises(IndexError):
            model(**inputs)
        del inputs["token_type_ids"]
        expected = model(**inputs).last_hidden_state[:, 0].numpy()
    states = Extractor(load_encoder(str(folder)), ["cls"])([*TEXTS, FIRSTS[0]])
    assert np.allclose(states.cell(3, "cls")[: len(TEXTS)], expected, atol=1e-5)
    (note,) = states.source["notes"]
    assert note.startswith("The model has one token type, its tokenizer gives a pair 2")
    assert not Extractor(load_encoder(str(folder)), ["cls"])(FIRSTS).source["notes"]  # single texts have one


@pytest.mark.parametrize(
    ("text", "max_length", "message"),
    [
        (TEXTS[0], 4, "--max-length 4: 3 special tokens leave no room for the two texts of a pair. Pass 5 or more."),
        (pair(TEXTS[0], "cat"), None, "a pair: holds more than two texts"),
    ],
)
def test_invalid_pairs(bert, text, max_length, message):
    with pytest.raises(InputError) as caught:
        bert.tokenize([text], max_length)
    assert str(caught.value).startswith(message)


# ------------------------------------------------------------------------------------------------------- pairs as text


def test_a_pair_is_one_string_of_two_parts():
    text = pair("a <b>", "c ‖ d")
    assert parts(text) == ["a <b>", "c ‖ d"]
    assert parts("a b") == ["a b"]
    assert readable(text) == "a <b> ‖ c ‖ d"
    assert readable("a b") == "a b"
    text.encode("utf-8")


def test_copies_of_pairs():
    same = [pair("The  cat", "a dog "), pair("the cat ", "A dog")]
    others = [pair("the", "cat a dog"), pair("a dog", "the cat"), "the cat a dog", pair("the cat a", "dog")]
    hashes = duplicates.hash_texts(same + others, 0)
    assert hashes[0] == hashes[1]
    assert len(np.unique(hashes)) == 5
    long = "the small brown bird sat in the tall old tree all day"
    groups = duplicates.group_near_copies(
        [pair(long, "it sat"), pair(f"{long}.", "it sat"), pair("it sat", long[10:]), long[:20]]
    )
    assert groups[0] == groups[1]
    assert len(np.unique(groups)) == 3


def test_the_length_of_each_text_counts():
    """The total length is the same for every pair; only the separate lengths give the label."""
    draw = np.random.default_rng(0)
    y = np.arange(240) % 2
    first = np.where(y, 3, 6) + draw.integers(0, 2, 240)
    texts = [pair(" ".join(["ab"] * n), " ".join(["cd"] * (12 - n))) for n in first]
    rows = np.arange(240)
    baseline = length(texts, y, rows[:120], rows[120:180])
    assert (baseline.codes[0, 0, 180:] == y[180:]).mean() == 1
    joined_baseline = length([text.replace(PAIRED, " ") for text in texts], y, rows[:120], rows[120:180])
    assert (joined_baseline.codes[0, 0, 180:] == y[180:]).mean() < 0.7


def test_words_of_each_text_count():
    """Both words occur in every pair; the label is which of them is in the second text."""
    y = np.arange(240) % 2
    texts = [pair(f"x{i} {'no' if k else 'yes'}", f"{'yes' if k else 'no'} z{i}") for i, k in enumerate(y)]
    rows = np.arange(240)
    for variant, share in ((texts, 1.0), ([text.replace(PAIRED, " ") for text in texts], 0.5)):
        predictions = bag_of_words(variant, y, rows[:120], rows[120:180]).codes[0, 0, 180:]
        assert abs((predictions == y[180:]).mean() - share) < 0.15


# ------------------------------------------------------------------------------------------------------------- sources

HEADER = ("premise", "hypothesis", "label")
ROWS = [(f"the cat {i}", f"no dog {i % 7}", "abc"[i % 3]) for i in range(12)]


def write_pairs(path: Path, rows: list[tuple[str, ...]] = ROWS) -> Path:
    match path.suffix:
        case ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([HEADER, *rows])
        case ".tsv":
            path.write_text("\n".join("\t".join(row) for row in [HEADER, *rows]), encoding="utf-8")
        case ".jsonl":
            path.write_text("\n".join(json.dumps(dict(zip(HEADER, row, strict=True))) for row in rows))
        case ".parquet":
            pq.write_table(pa.table(dict(zip(HEADER, map(list, zip(*rows, strict=True)), strict=True))), path)
    return path


def load_pairs(path: Path, columns: str = "premise,hypothesis", **options: Any) -> Loaded:
    return load(f"file:{path}", SourceOptions(text_column=columns, **options))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_files_of_pairs(tmp_path, suffix):
    (task,) = load_pairs(write_pairs(tmp_path / f"d{suffix}")).tasks
    assert [tuple(parts(text)) for text in task.texts] == [row[:2] for row in ROWS]
    assert task.y.tolist() == [row[2] for row in ROWS]
    (swapped,) = load_pairs(tmp_path / f"d{suffix}", " hypothesis , premise").tasks
    assert [parts(text)[::-1] for text in swapped.texts] == [parts(text) for text in task.texts]


def test_pairs_of_one_premise_may_be_a_group(tmp_path):
    (task,) = load_pairs(write_pairs(tmp_path / "d.csv"), "premise,hypothesis", group_column="hypothesis").tasks
    assert len(set(task.groups.tolist())) == 7


@pytest.mark.parametrize(
    ("columns", "options", "rows", "message"),
    [
        ("premise,hypotesis", {}, ROWS, "d.csv: no column 'hypotesis'. Columns: premise, hypothesis, label. Did you m"),
        ("premise,premise", {}, ROWS, "--text-column: 'premise' is named twice."),
        ("premise,hypothesis,label", {}, ROWS, "--text-column: 'premise,hypothesis,label' is neither one column nor"),
        ("premise,", {}, ROWS, "--text-column: 'premise,' is neither one column nor two."),
        ("premise,label", {}, ROWS, "--label-column: 'label' is the text column already."),
        (
            "premise,hypothesis",
            {},
            [*ROWS, ("a", " ", "a")],
            "d.csv:14: column 'hypothesis' is empty. Fill it in, or p",
        ),
        ("premise", {}, [*ROWS, (f"a{PAIRED}", "b", "a")], "d.csv:14: text has U+FDD0, which is no character, at char"),
        (
            "premise,hypothesis",
            {},
            [*ROWS, ("a", f"{PAIRED}b", "a")],
            "d.csv:14: column 'hypothesis' has U+FDD0, which is no character, at character 1. Remove it or pass --repl",
        ),
    ],
)
def test_broken_pairs(tmp_path, columns, options, rows, message):
    with pytest.raises(InputError) as caught:
        load_pairs(write_pairs(tmp_path / "d.csv", rows), columns, **options)
    assert str(caught.value).startswith(message)


def test_empty_texts_are_dropped_and_invalid_characters_replaced(tmp_path):
    rows = [*ROWS, ("", "b", "a"), ("a", "", "b"), (f"a{PAIRED}", "b", "a")]
    loaded = load_pairs(write_pairs(tmp_path / "d.csv", rows), drop_empty=True, replace_invalid=True)
    assert loaded.left_out == {"empty text": 2}
    assert parts(loaded.tasks[0].texts[-1]) == ["a\ufffd", "b"]


def test_other_sources_reject_the_separator_of_pairs(tmp_path):
    (tmp_path / "s.txt").write_text(f"tr\ta\tthe cat\nte\tb\tthe{PAIRED} dog\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"^s\.txt:2: holds U\+FDD0, which is no character\. Remove it\."):
        load(f"senteval:{tmp_path / 's.txt'}", SourceOptions())


# ------------------------------------------------------------------------------------------------------------ the page


def test_a_run_over_pairs_shows_both_texts(folders, tmp_path):
    """The label is whether the noun of the first text occurs in the second; neither text gives it alone."""
    draw, nouns = np.random.default_rng(0), np.array(["cat", "dog", "bird", "tree", "house"])
    rows = []
    for i in range(100):
        first, second = draw.permutation(nouns)[:2]
        mark = " ".join(draw.choice(["very", "big", "red", "blue"], 3))
        rows.append(
            (f"<a> the {mark} {first}", f"a {first if i % 2 else second} </a> runs", "same" if i % 2 else "other")
        )
    command = ("--text-column", "premise,hypothesis", "--layers", "0,3", "--readouts", "cls,mean", "--allow-overlap")
    data, out = write_pairs(tmp_path / "d.csv", rows), tmp_path / "out"
    flags = ("--task", f"file:{data}", "--model", folders("bert"), "--out", out, "--quiet")
    assert call("run", *flags, *command) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "&lt;/a&gt; runs" in page
    assert " ‖ a " in page
    assert "<a> the" not in page
    assert PAIRED not in page
    assert "fdd0" not in page.lower()
    results = pd.read_parquet(out / "results.parquet")
    assert {"length", "bag_of_words", "layer0_mean", "untrained"} <= set(results.control)
