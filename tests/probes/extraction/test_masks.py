"""Readouts of 2,000 texts in batches of every kind, compared with a loop without masks and with another library.

1. `draw_text` draws a text as a list of tokens, each with its vector and whether a tokenizer added it. `read_by_loop`
   reads such a list number by number, without a batch.
2. `make_batch` makes a batch of texts: padded on the right, on the left or in between. Pads hold any number, or NaN.
3. A readout must read from the batch what the loop reads from the list, within 1e-6.
4. `TWINS` are readouts with common mistakes. The same comparison detects each wherever its mistake matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import models
import numpy as np
import pytest
import torch
from architectures import few_characters, fitting_texts

from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.encoders.tap import tap
from clsprobe.probes.encoders.tokenizing import Batch, text_seed
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.extraction.readouts import DEFAULT, Readout, Weighted, parse_readouts

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = (*DEFAULT, "token[3]", "token[-2]", "cls+norm")
TEXTS, CLOSE = 2000, 1e-6
PADDINGS = ("none", "right", "left", "interior")
POISONS = (0.0, 1e9, math.nan, math.inf, -math.inf)
DIMS = (1, 3, 16)
CLS, SEP, WORD = 101, 102, 7
# The tokens that tokenizers add: BERT, GPT-2, T5, XLNet, OPT; and one whose first and last token are the same.
AROUND = {
    "cls sep": ((CLS,), (SEP,)),
    "nothing": ((), ()),
    "sep": ((), (SEP,)),
    "sep cls": ((), (SEP, CLS)),
    "cls": ((CLS,), ()),
    "same": ((CLS,), (CLS,)),
}


@dataclass(frozen=True)
class Token:
    """One token of a text. added: by the tokenizer."""

    id: int
    added: bool
    vector: list[float]


@dataclass(frozen=True)
class Case:
    """Some texts, as lists and as a batch. hidden: (batch, token, dim)."""

    texts: list[list[Token]]
    batch: Batch
    hidden: torch.Tensor
    padding: str
    around: str
    poison: float


def draw_text(rng: np.random.Generator, around: str, dim: int, dtype: torch.dtype) -> list[Token]:
    """One text of 0 to 12 pieces, some of which have the ids of special tokens. Half of the texts are negative."""
    before, behind = AROUND[around]
    content = rng.integers(0 if before or behind else 1, 13)
    ids = [*before, *rng.choice([WORD, WORD, CLS, SEP, 0], content).tolist(), *behind]
    numbers = rng.uniform(-1, 1, (len(ids), dim))
    values = torch.tensor(-abs(numbers) if rng.random() < 0.5 else numbers).to(dtype).tolist()
    added = [i < len(before) or i >= len(before) + content for i in range(len(ids))]
    return [Token(*fields) for fields in zip(ids, added, values, strict=True)]


def make_batch(rng: np.random.Generator, texts: list[list[Token]], padding: str, **special_ids: Any) -> Batch:
    """The same texts as a batch; pads have the id of [SEP], 0 or a word, and are special to some tokenizers."""
    longest = max(len(text) for text in texts)
    width = longest if padding == "none" else longest + int(rng.integers(0, 4))
    ids = np.full((len(texts), width), rng.choice([0, SEP, WORD]))
    real = np.zeros(ids.shape, bool)
    special = np.full(ids.shape, rng.random() < 0.5)
    for row, text in enumerate(texts):
        n = len(text)
        if padding == "left":
            positions = np.arange(width - n, width)
        elif padding == "interior":
            positions = np.sort(rng.choice(width, n, replace=False))
        else:
            positions = np.arange(n)
        ids[row, positions], real[row, positions], special[row, positions] = (
            [t.id for t in text],
            True,
            [t.added for t in text],
        )
    seeds = [text_seed(str(rng.integers(1 << 62))) for _ in texts]
    return Batch(*(torch.tensor(values) for values in (ids, real, special, seeds)), **special_ids)


def fill_hidden(texts: list[list[Token]], batch: Batch, poison: float, dtype: torch.dtype) -> torch.Tensor:
    """(batch, token, dim): the vectors of the texts where the mask is on, and poison elsewhere."""
    hidden = torch.full((*batch.ids.shape, len(texts[0][0].vector)), poison, dtype=dtype)
    hidden[batch.real] = torch.tensor([token.vector for text in texts for token in text], dtype=dtype)
    return hidden


@cache
def draw_cases(dtype: torch.dtype) -> list[Case]:
    """The texts in batches of 1 to 20, with every combination of padding, special tokens and poison."""
    rng = np.random.default_rng(0)
    cases: list[Case] = []
    while (remaining := TEXTS - sum(len(case.texts) for case in cases)) > 0:
        i = len(cases)
        padding, around = PADDINGS[i % 4], list(AROUND)[i // 4 % 6]
        poison, dim = POISONS[i // 2 % 5], DIMS[i % 3]
        texts = [draw_text(rng, around, dim, dtype) for _ in range(min(remaining, rng.integers(1, 21)))]
        if padding == "none":
            texts = [text for text in texts if len(text) == len(texts[0])]
        special_ids = (
            {"cls_id": None, "sep_id": None} if around == "nothing" and i % 2 else {"cls_id": CLS, "sep_id": SEP}
        )
        special_ids |= {"sep_id": CLS} if around == "same" else {}
        batch = make_batch(rng, texts, padding, **special_ids)
        cases.append(Case(texts, batch, fill_hidden(texts, batch, poison, dtype), padding, around, poison))
    return cases


def norm(hidden: torch.Tensor) -> torch.Tensor:
    """The norm after the last layer in these tests."""
    return torch.nn.functional.rms_norm(hidden.float(), hidden.shape[-1:], eps=1e-5)


def read_by_loop(name: str, text: list[Token], seed: int, batch: Batch) -> list[float] | None:
    """The vector that the definition of a readout gives for one text; None where it is absent."""
    if name.endswith("+norm"):
        vector = read_by_loop(name.removesuffix("+norm"), text, seed, batch)
        scale = vector and math.sqrt(math.fsum(x * x for x in vector) / len(vector) + 1e-5)
        return vector and [x / scale for x in vector]
    words = [token.vector for token in text if not token.added]
    if name == "mean":
        return [math.fsum(column) / len(text) for column in zip(*(token.vector for token in text), strict=True)]
    if name == "max":
        return [max(column) for column in zip(*(token.vector for token in text), strict=True)]
    if name == "random":
        return words[seed % len(words)] if words else None
    if name in ("cls", "sep"):
        token_id, index = (batch.cls_id, 0) if name == "cls" else (batch.sep_id, -1)
        matches = [token.vector for token in text if token.added and token.id == token_id]
        return matches[index] if matches else None
    k = int(name[len("token[") : -1])
    if abs(k) > len(words):
        return None
    return words[k - 1] if k > 0 else words[k]


@cache
def expected_vectors(name: str, dtype: torch.dtype) -> list[list[list[float] | None]]:
    """What the loop reads from every text, batch by batch."""
    return [
        [read_by_loop(name, *each, case.batch) for each in zip(case.texts, case.batch.seeds.tolist(), strict=True)]
        for case in draw_cases(dtype)
    ]


def measure_errors(readout: Readout, dtype: torch.dtype) -> list[tuple[Case, float]]:
    """For every text, its batch and the largest difference between the readout and the loop.

    0 where the vector is absent for both; infinite where it is absent for one, or a number is not finite.
    """
    rows = []
    for case, expected in zip(draw_cases(dtype), expected_vectors(readout.name, dtype), strict=True):
        hidden = norm(case.hidden) if readout.name.endswith("+norm") else case.hidden
        vectors, present = readout.read(hidden, case.batch).tolist(), readout.present(case.batch).tolist()
        for vector, is_present, numbers in zip(vectors, present, expected, strict=True):
            if numbers is None or not is_present:
                error = 0.0 if numbers is None and not is_present else math.inf
            else:
                differences = [abs(a - b) for a, b in zip(vector, numbers, strict=True)]
                error = max(x if math.isfinite(x) else math.inf for x in differences)
            rows.append((case, error))
    return rows


# ------------------------------------------------------------------------------------------------------------- the loop


def test_the_cases_cover_everything():
    cases = draw_cases(torch.float32)
    assert sum(len(case.texts) for case in cases) == sum(len(case.batch.ids) for case in cases) == TEXTS
    assert {(case.padding, case.around, str(case.poison)) for case in cases} == {
        (padding, around, str(poison)) for padding in PADDINGS for around in AROUND for poison in POISONS
    }
    assert {case.hidden.shape[2] for case in cases} == set(DIMS)
    assert {len(case.texts) for case in cases} == set(range(1, 21))
    lengths = [len(text) for case in cases for text in case.texts]
    assert (min(lengths), max(lengths)) == (1, 14)
    assert sum(all(token.added for token in text) for case in cases for text in case.texts) > 50  # without words
    holes = set()
    for case in cases:
        between = case.batch.real.cumsum(1) * case.batch.real.flip(1).cumsum(1).flip(1) > 0
        holes |= {case.padding} if (between & ~case.batch.real).any() else set()
    assert holes == {"interior"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_readout_reads_what_the_loop_reads(name, dtype):
    (readout,) = parse_readouts([name])
    worst = max(error for _, error in measure_errors(readout, dtype))
    # Most readouts copy numbers without arithmetic.
    assert worst <= (CLOSE if name in ("mean", "cls+norm") else 0)


@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(parse_readouts([name])[0], Weighted)])
def test_weights_are_a_distribution_over_the_text(name):
    """With these weights the base class reads the same vector."""
    (readout,) = parse_readouts([name])
    for case in draw_cases(torch.float32):
        weights, present = readout.weights(case.batch), readout.present(case.batch)
        assert weights.shape == case.batch.ids.shape
        assert (weights >= 0).all()
        assert not weights[~case.batch.real].any()
        torch.testing.assert_close(weights.sum(1), present.float(), rtol=0, atol=CLOSE)
        vectors, weighted = readout.read(case.hidden, case.batch), Weighted.read(readout, case.hidden, case.batch)
        torch.testing.assert_close(weighted[present], vectors[present], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("least", [0, 1], ids=["0 / 0", "0 / 1"])
def test_a_custom_readout_is_absent_where_it_has_no_weight(least, tmp_path):
    """It defines only `weights`, and the vector of an empty text is absent, not zeros."""

    class Content(Weighted):
        name = "content"

        def weights(self, batch: Batch) -> torch.Tensor:
            return batch.content / batch.content.sum(1, keepdim=True).clamp(min=least)

    absent = 0
    for case in draw_cases(torch.float32):
        words = [[token.vector for token in text if not token.added] for text in case.texts]
        present = Content().present(case.batch)
        assert present.tolist() == [bool(word_vectors) for word_vectors in words]
        vectors = Content().read(case.hidden, case.batch)[present].tolist()
        for vector, word_vectors in zip(vectors, (word_vectors for word_vectors in words if word_vectors), strict=True):
            mean = [math.fsum(column) / len(word_vectors) for column in zip(*word_vectors, strict=True)]
            np.testing.assert_allclose(vector, mean, rtol=0, atol=CLOSE)
        absent += int((~present).sum())
    assert absent > TEXTS / 20
    states = Extractor(load_encoder(str(models.save("bert", tmp_path))), [Content()], layers=[1])(["cat", ""])
    assert states.present.tolist() == [[True, False]]
    assert np.isnan(states.cell(1, "content")).all(1).tolist() == [False, True]


@pytest.mark.parametrize("name", NAMES)
def test_other_texts_and_padding_change_nothing(name):
    """A text reads the same in its own batch, in the batch in reverse order, and with more pads."""
    (readout,) = parse_readouts([name])
    for case in draw_cases(torch.float32)[::8]:
        batch, hidden = case.batch, case.hidden
        vectors = readout.read(hidden, batch)
        pads = torch.zeros(len(batch.ids), 3, dtype=torch.bool)
        wider = replace(
            batch,
            ids=torch.cat([pads * 1, batch.ids, pads + SEP], 1),
            real=torch.cat([pads, batch.real, pads], 1),
            special=torch.cat([pads, batch.special, ~pads], 1),
        )
        poison = torch.full((*pads.shape, hidden.shape[2]), math.nan)
        present = readout.present(batch)
        padded = readout.read(torch.cat([poison, hidden, poison], 1), wider)
        torch.testing.assert_close(padded[present], vectors[present], rtol=0, atol=CLOSE)
        for rows in (*torch.arange(len(vectors))[:, None], torch.arange(len(vectors)).flip(0)):
            subset = replace(
                batch, ids=batch.ids[rows], real=batch.real[rows], special=batch.special[rows], seeds=batch.seeds[rows]
            )
            assert torch.equal(readout.present(subset), present[rows])
            reread = readout.read(hidden[rows], subset)
            torch.testing.assert_close(reread, vectors[rows], rtol=0, atol=CLOSE, equal_nan=True)


# ------------------------------------------------------------------------------------------------------ another library


# The readouts of its modes: its cls is the first real token, whatever it is, and its lasttoken the last one.
PEER = {
    "mean": dict.fromkeys(AROUND, "mean"),
    "max": dict.fromkeys(AROUND, "max"),
    "cls": {"cls sep": "cls", "cls": "cls", "same": "cls", "nothing": "token[1]"},
    "lasttoken": {"cls sep": "sep", "sep": "sep", "same": "sep", "sep cls": "cls", "nothing": "token[-1]"},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", PEER)
def test_sentence_transformers_reads_the_same(mode, dtype):
    """Its mean multiplies by the mask, so NaN pads would make the mean NaN: there the pads are zeros."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    texts = 0
    for case in draw_cases(dtype):
        if case.around not in PEER[mode]:
            continue
        (readout,) = parse_readouts([PEER[mode][case.around]])
        tokens = case.hidden.where(case.batch.real[..., None], 0) if mode == "mean" else case.hidden.clone()
        features = {"token_embeddings": tokens, "attention_mask": case.batch.real.long()}
        pooled = Pooling(case.hidden.shape[2], pooling_mode=mode)(features)["sentence_embedding"]
        vectors = readout.read(case.hidden, case.batch)
        assert readout.present(case.batch).all()
        rounded = 2**-8 if mode == "mean" and dtype == torch.bfloat16 else CLOSE  # its mean is in bfloat16 again
        torch.testing.assert_close(vectors.float(), pooled.float(), rtol=0, atol=rounded)
        texts += len(case.texts)
    assert texts > TEXTS / 2


# --------------------------------------------------------------------------------------------------------- whole models


SHAPES = ("bert", "xlnet", "t5", "gpt2", "opt", "canine", "modernbert", "megatron-bert", "longformer", "funnel")


def read_tokens(encoder: Encoder, text: str, layers: list[int]) -> tuple[dict[int, list[Token]], Batch]:
    """The tokens of one text at every layer, for the loop, from the tokenizer and a tap; and its batch."""
    (row,) = encoder.tokenize([text])
    batch, tokens = encoder.batch([row]), {}

    def read(layer: int, hidden: torch.Tensor) -> None:  # CANINE and Funnel pad a short text: its tokens come first
        each = zip(row.ids.tolist(), row.special.tolist(), hidden[0].tolist(), strict=False)
        tokens[layer] = [Token(*token) for token in each]

    with tap(encoder, read, layers):
        encoder.forward(batch)
    return tokens, batch


@pytest.mark.parametrize("shape", SHAPES)
def test_an_extractor_reads_what_the_loop_reads(shape, tmp_path):
    """Texts alone and in one batch, including the empty text, with the special tokens of the model."""
    with few_characters():
        encoder = load_encoder(str(models.save(shape, tmp_path)))
    texts = ["", *fitting_texts(encoder)[::2]]
    added, last = encoder.tokenize([""])[0].ids, encoder.description.layers
    lacking = {name for name, token in (("cls", encoder.cls_id), ("sep", encoder.sep_id)) if token not in added}
    names = [*NAMES, "mean+norm"] if encoder.norm else [name for name in NAMES if "+norm" not in name]
    names = [name for name in names if name.removesuffix("+norm") not in lacking]
    extract = Extractor(encoder, names, layers=[1, last])
    together = extract(texts)
    for i, text in enumerate(texts):
        alone = extract([text])
        tokens, batch = read_tokens(encoder, text, [1, last])
        for layer, name in together.cells:
            text_tokens = tokens[layer]
            if name.endswith("+norm"):
                text_tokens = [
                    replace(token, vector=encoder.norm(torch.tensor(token.vector)).tolist()) for token in text_tokens
                ]
            expected = (
                read_by_loop(name.removesuffix("+norm"), text_tokens, text_seed(text), batch) if text_tokens else None
            )
            for states, row, close in ((alone, 0, CLOSE), (together, i, 2e-5)):
                assert states.present[names.index(name), row] == (expected is not None)
                vector = states.cell(layer, name)[row]
                if expected is None:
                    assert np.isnan(vector).all()
                else:
                    np.testing.assert_allclose(vector, expected, rtol=0, atol=close * max(1, np.abs(expected).max()))


# ------------------------------------------------------------------------------------------------------------ the twins


@dataclass(frozen=True)
class Twin(Readout):
    """A wrong readout. name: the readout that it imitates. function: (hidden, batch) -> (batch, dim)."""

    name: str
    function: Callable[[torch.Tensor, Batch], torch.Tensor]

    def read(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self.function(hidden.float(), batch)

    def present(self, batch: Batch) -> torch.Tensor:
        return parse_readouts([self.name])[0].present(batch)


def _mask(batch: Batch) -> torch.Tensor:
    return batch.real[..., None].float()


def _read_at(position: Callable[[Batch], torch.Tensor]) -> Callable[[torch.Tensor, Batch], torch.Tensor]:
    def read(hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        index = position(batch).clamp(0, hidden.shape[1] - 1)
        return hidden[torch.arange(len(index)), index]

    return read


def _first_column(batch: Batch) -> torch.Tensor:
    return torch.zeros(len(batch.ids), dtype=torch.long)


PADDED = {"right", "left", "interior"}
TWINS: dict[str, tuple[Twin, set[str]]] = {  # and the kinds of padding with which each is detected
    "multiplies by the mask": (
        Twin("mean", lambda hidden, batch: (hidden * _mask(batch)).sum(1) / batch.lengths[:, None]),
        PADDED,
    ),
    "takes the mean over the padding": (Twin("mean", lambda hidden, batch: hidden.mean(1)), PADDED),
    "counts the padding": (
        Twin("mean", lambda hidden, batch: hidden.where(_mask(batch) > 0, 0).mean(1)),
        PADDED,
    ),
    "leaves special tokens out of the mean": (
        Twin(
            "mean",
            lambda hidden, batch: (
                hidden.where(batch.content[..., None], 0).sum(1) / batch.content.sum(1).clamp(min=1)[:, None]
            ),
        ),
        {"none", *PADDED},
    ),
    "takes the maximum with zeros": (
        Twin("max", lambda hidden, batch: hidden.where(_mask(batch) > 0, 0).amax(1)),
        PADDED,
    ),
    "multiplies by the mask, then takes the maximum": (
        Twin("max", lambda hidden, batch: (hidden * _mask(batch)).amax(1)),
        PADDED,
    ),
    "takes the maximum over the padding": (Twin("max", lambda hidden, batch: hidden.amax(1)), PADDED),
    "takes the first column": (Twin("cls", _read_at(_first_column)), {"none", *PADDED}),
    "takes the first real token": (Twin("cls", _read_at(lambda b: b.real.float().argmax(1))), {"none", *PADDED}),
    "takes the first [CLS] id": (Twin("cls", _read_at(lambda b: (b.ids == CLS).float().argmax(1))), {"none", *PADDED}),
    "takes the last column": (
        Twin("sep", _read_at(lambda b: _first_column(b) + b.ids.shape[1] - 1)),
        {"none", *PADDED},
    ),
    "takes the length for a position": (Twin("sep", _read_at(lambda b: b.lengths - 1)), {"none", *PADDED}),
    "takes the first separator": (
        Twin("sep", _read_at(lambda b: (b.real & b.special & (b.ids == b.sep_id)).float().argmax(1))),
        {"none", *PADDED},
    ),
    "takes the second column": (Twin("token[1]", _read_at(lambda b: _first_column(b) + 1)), {"none", *PADDED}),
    "takes the third column": (Twin("token[2]", _read_at(lambda b: _first_column(b) + 2)), {"none", *PADDED}),
    "takes the last but one": (Twin("token[-1]", _read_at(lambda b: b.lengths - 2)), {"none", *PADDED}),
    "counts from the first piece on": (
        Twin("token[3]", _read_at(lambda b: b.content.float().argmax(1) + 2)),
        {"interior"},
    ),
    "counts back from the last piece": (
        Twin("token[-2]", _read_at(lambda b: (b.content.cumsum(1) * b.content).argmax(1) - 1)),
        {"interior"},
    ),
    "draws among all tokens": (Twin("random", _read_at(lambda b: b.seeds % b.lengths)), {"none", *PADDED}),
    "draws the position in the batch": (
        Twin("random", _read_at(lambda b: b.content.float().argmax(1) + b.seeds % b.content.sum(1).clamp(min=1))),
        {"interior"},
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_wrong_readout_is_detected(name):
    """With exactly the kinds of padding for which it is wrong."""
    twin, paddings = TWINS[name]
    assert {case.padding for case, error in measure_errors(twin, torch.float32) if error > CLOSE} == paddings


def test_pads_of_zeros_would_hide_mistakes():
    """A product with the mask is right where the pads are finite, so the pads must hold NaN and infinity too."""
    twin, _ = TWINS["multiplies by the mask"]
    assert {str(case.poison) for case, error in measure_errors(twin, torch.float32) if error > CLOSE} == {
        "nan",
        "inf",
        "-inf",
    }
