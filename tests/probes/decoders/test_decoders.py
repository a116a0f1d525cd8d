"""The decoders on channels whose bits are known, on noise, and against slower and broken versions of themselves."""

from __future__ import annotations

from itertools import pairwise, product

import models
import numpy as np
import pytest
import torch
from safetensors import safe_open

from clsprobe.analysis.reconstruction.scores import measure_gain
from clsprobe.probes.decoders import bag, base, sequence, slot
from clsprobe.probes.decoders.bag import BagDecoder
from clsprobe.probes.decoders.base import Pace
from clsprobe.probes.decoders.search import SearchResult, beam_search, choose_nearest, correct_texts
from clsprobe.probes.decoders.sequence import SequenceDecoder
from clsprobe.probes.decoders.slot import SlotDecoder
from clsprobe.probes.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

CHANNELS, DIM = 10, 24
QUICK = Pace(rate=4e-3, batch=64, rounds=12)


@pytest.fixture
def hasty(monkeypatch):
    """Fewer and shorter rounds, where it does not matter how much is learned."""
    monkeypatch.setattr(slot, "PACE", Pace(rate=2e-2, batch=256, rounds=5))
    monkeypatch.setattr(base, "FEWEST", 8)


def make_small(**more) -> SequenceDecoder:
    return SequenceDecoder(width=32, depth=1, pace=QUICK, **more)


def make_planted(kind, n, seed, *, repeat=(1,) * CHANNELS):
    """Vectors (1, text, dim) that tell ten fair bits nearly without noise, and texts made of these bits.

    bag: token i stands in the text where bit i is 1. slot: the token at place i is one of two. repeat: how many tokens
    each bit is told by.
    """
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2, (n, CHANNELS))
    mix = np.random.default_rng(99).standard_normal((CHANNELS, DIM))
    vectors = (2 * bits - 1) @ mix + 0.05 * random.standard_normal((n, DIM))
    if kind == "bag":
        ids = [3 + np.flatnonzero(row) for row in bits]
    else:
        repeated = np.repeat(bits, repeat, 1)
        ids = [3 + 2 * np.arange(repeated.shape[1]) + row for row in repeated]
    return vectors[None].astype(np.float32), ids


def make_noise(n, seed):
    return np.random.default_rng(seed).standard_normal((1, n, DIM)).astype(np.float32)


def measure_gains(decoder, vectors, ids):
    """Bits a text gained over the blind decoder."""
    return (decoder.blind_bits(ids) - decoder.bits(vectors, ids))[0]


@pytest.mark.parametrize(
    ("kind", "make", "repeat"),
    [
        ("bag", BagDecoder, (1,) * 10),
        ("slot", SlotDecoder, (1,) * 10),
        ("slot", make_small, (1,) * 10),
        ("slot", make_small, (2, 2, 1, 1, 1, 1, 2, 1, 1, 2)),  # bits that several tokens share: still ten
    ],
    ids=["bag", "slot", "sequence", "sequence, shared bits"],
)
def test_the_planted_bits_are_found(kind, make, repeat):
    decoder = make().fit(*make_planted(kind, 1000, 0, repeat=repeat), dev=make_planted(kind, 200, 1, repeat=repeat))
    vectors, ids = make_planted(kind, 600, 2, repeat=repeat)
    assert decoder.informative_.all()
    assert measure_gains(decoder, vectors, ids).mean() == pytest.approx(10, rel=0.05)
    assert decoder.blind_bits(ids).mean() == pytest.approx(10, rel=0.05)
    same = [set(a.tolist()) == set(b.tolist()) for a, b in zip(decoder.generate(vectors)[0], ids, strict=True)]
    assert np.mean(same) > 0.95


def test_a_decoder_that_takes_tokens_for_independent_counts_shared_bits_twice():
    """Why bits of different decoders are not comparable: one bit told by two tokens is two to a slot decoder."""
    repeat = (2,) * 2 + (1,) * 8
    decoder = SlotDecoder().fit(
        *make_planted("slot", 1000, 0, repeat=repeat), dev=make_planted("slot", 200, 1, repeat=repeat)
    )
    assert measure_gains(decoder, *make_planted("slot", 600, 2, repeat=repeat)).mean() == pytest.approx(12, rel=0.05)


def count_missed(make, runs, texts=(300, 120, 250), slots=3):
    """In how many runs on independent vectors the interval of the gain leaves out 0."""
    import pandas as pd

    missed = 0
    for seed in range(runs):
        parts = []
        for part, n in enumerate(texts):
            bits = np.random.default_rng([seed, part]).integers(0, 2, (n, slots))
            parts.append((make_noise(n, 10 * seed + part), [3 + 2 * np.arange(slots) + row for row in bits]))
        decoder = make().fit(*parts[0], dev=parts[1])
        blind, bits = decoder.blind_bits(parts[2][1]), decoder.bits(*parts[2])[0]
        _, low, high = measure_gain(pd.DataFrame({"blind": blind, "bits": bits, "tokens": slots}))
        missed += not low <= 0 <= high
    return missed


def test_noise_tells_nothing():
    assert count_missed(BagDecoder, 20) <= 1


@pytest.mark.parametrize(("make", "runs"), [(SlotDecoder, 3), (make_small, 2)], ids=["slot", "sequence"])
def test_noise_tells_the_slower_decoders_nothing(make, runs):
    assert count_missed(make, runs) == 0


@pytest.mark.long
@pytest.mark.parametrize("make", [SlotDecoder, make_small], ids=["slot", "sequence"])
def test_noise_tells_the_slower_decoders_nothing_twenty_times(make):
    assert count_missed(make, 20) <= 1


def test_a_decoder_that_believes_what_it_has_learned_from_noise_is_found_out(monkeypatch):
    """The broken twin: no dev, every round is kept and every cell reads on."""
    monkeypatch.setattr(base, "GAIN", -1e9)
    monkeypatch.setattr(base, "SURE", -np.inf)
    assert count_missed(BagDecoder, 4) >= 3


def test_a_constant_vector_tells_exactly_nothing(hasty):
    vectors, ids = make_planted("slot", 300, 0)
    constant = np.full_like(vectors, 0.3)
    for make in (BagDecoder, SlotDecoder, make_small):
        decoder = make().fit(constant, ids, dev=(constant[:, :100], make_planted("slot", 100, 1)[1]))
        assert (measure_gains(decoder, constant, ids) == 0).all()
        assert not decoder.informative_.any()


def test_cells_that_are_trained_together_do_not_disturb_each_other():
    vectors, ids = make_planted("slot", 600, 0)
    dev, dev_ids = make_planted("slot", 150, 1)
    both = SlotDecoder().fit(
        np.concatenate([make_noise(600, 5), vectors]), ids, dev=(np.concatenate([make_noise(150, 6), dev]), dev_ids)
    )
    assert both.informative_.tolist() == [False, True]
    gain = both.blind_bits(dev_ids) - both.bits(np.concatenate([make_noise(150, 7), dev]), dev_ids)
    assert gain.mean(1)[0] == 0
    assert gain.mean(1)[1] > 9


# ------------------------------------------------------------------------------------------------- the sequence decoder


@pytest.fixture(scope="module")
def writer():
    """A sequence decoder of texts of different lengths, barely trained, and such texts with their vectors."""
    random = np.random.default_rng(0)
    ids = [random.integers(0, 9, random.integers(1, 7)) for _ in range(120)]
    vectors = random.standard_normal((1, 120, DIM)).astype(np.float32)
    vectors[0, :, 0] = [len(text_ids) for text_ids in ids]
    decoder = SequenceDecoder(width=32, depth=2, pace=Pace(4e-3, 32, 3))
    return decoder.fit(vectors, ids, dev=(vectors[:, :60], ids[:60])), vectors, ids


def test_no_token_sees_what_comes_after_it(writer):
    decoder, vectors, ids = writer
    row = next(i for i, text_ids in enumerate(ids) if len(text_ids) == 6)
    other = ids[row].copy()
    other[4] = (other[4] + 1) % 9
    a, b = (decoder.bits_by_slot(vectors[:, row : row + 1], [text_ids])[0, 0] for text_ids in (ids[row], other))
    np.testing.assert_allclose(a[:4], b[:4], rtol=1e-5)
    assert abs(a[5] - b[5]) > 1e-6


def test_padding_and_company_change_nothing(writer):
    decoder, vectors, ids = writer
    together = decoder.bits_by_slot(vectors, ids)[0]
    alone = np.concatenate([decoder.bits_by_slot(vectors[:, i : i + 1], ids[i : i + 1])[0] for i in range(20)])
    np.testing.assert_allclose(together[:20], alone, atol=1e-4)
    assert (together[0, len(ids[0]) + 1 :] == 0).all()


def test_what_can_follow_is_a_distribution(writer):
    """Over all texts of up to two tokens, and all that begin with one of two."""
    decoder, vectors, _ = writer
    texts = [np.array(text_ids, np.int64) for n in range(3) for text_ids in product(range(9), repeat=n)]
    bits = decoder.bits_by_slot(np.repeat(vectors[:, :1], len(texts), 1), texts)[0]
    ended = [2.0 ** -text_bits.sum() for text_bits, text in zip(bits, texts, strict=True) if len(text) < 2]
    open_ = [2.0 ** -text_bits[:2].sum() for text_bits, text in zip(bits, texts, strict=True) if len(text) == 2]
    assert sum(ended) + sum(open_) == pytest.approx(1, abs=1e-4)


def test_the_blind_decoder_has_beams_too(writer):
    """Else what it writes is worse than what is written from vectors for another reason than the vectors."""
    decoder, *_ = writer
    greedy, best = (decoder.blind_bits([decoder.blind_text(beams=beams)])[0] for beams in (1, 200))
    assert best < greedy or decoder.blind_text(beams=200).tolist() == decoder.blind_text(beams=1).tolist()
    all_texts = [np.array(text) for n in range(3) for text in product(range(9), repeat=n)]
    assert best <= decoder.blind_bits(all_texts).min() + 1e-4


def test_the_chunked_loss_is_cross_entropy(monkeypatch):
    monkeypatch.setattr(sequence, "CHUNK", 1)
    generator = torch.Generator().manual_seed(0)
    x, table, bias = (
        torch.randn(*shape, generator=generator, requires_grad=True) for shape in ((200, 8), (30, 8), (30,))
    )
    targets = torch.randint(30, (200,), generator=generator)
    ours = sequence._Nats.apply(x, table, bias, targets, 10, torch.float32)
    theirs = torch.nn.functional.cross_entropy(x @ table.T + bias, targets, reduction="sum") / 10
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for a, b in zip(
        torch.autograd.grad(3 * ours, (x, table, bias)), torch.autograd.grad(3 * theirs, (x, table, bias)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_any_causal_model_can_be_the_decoder(tmp_path, frozen):
    folder = models.save("gpt2", tmp_path / "gpt2")
    vectors, ids = make_planted("slot", 150, 0)
    decoder = SequenceDecoder(str(folder), frozen=frozen, pace=Pace(2e-3, 64, 2))
    decoder.fit(vectors, ids, dev=(vectors[:, :60], ids[:60]))
    names = set(decoder.written_[0])
    assert {"prefix", "map"} <= names
    before = dict(sequence.load_causal(str(folder))[0].base_model.named_parameters())
    after = {
        name.removeprefix("body."): value for name, value in decoder.written_[0].items() if name.startswith("body.")
    }
    assert (not after) == frozen
    moved = [(value - before[name].detach()).abs().max().item() for name, value in after.items()]
    assert frozen or 0 < max(moved) < 0.01  # short steps: what was learned before is not overrun
    assert np.isfinite(decoder.bits(vectors, ids)).all()
    assert len(decoder.generate(vectors[:, :3])[0]) == 3


# ------------------------------------------------------------------------------------------------------ search


def test_beams_find_the_likeliest_texts():
    """Against all texts of up to three tokens."""
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).mul(2).log_softmax(1)  # the last code ends

    def predict_next(rows, codes):
        return table[codes[:, -1]] if codes.shape[1] else table[rows % 4]

    def score(row, text):
        codes = [row % 4, *text, 4] if len(text) < 3 else [row % 4, *text]
        return sum(float(table[a, b]) for a, b in pairwise(codes))

    all_texts = [text for n in range(4) for text in product(range(4), repeat=n)]
    results = beam_search(predict_next, 3, beams=85, slots=3, end=4, device=torch.device("cpu"))
    for row, codes in enumerate(results):
        best = sorted(all_texts, key=lambda text: -score(row, text))
        assert [tuple(beam.tolist()) for beam in codes[:8]] == best[:8]


def encode_texts(texts):
    """Order and words both count."""
    return np.array(
        [[sum((i + 1) * (ord(c) % m) for i, c in enumerate(text)) + 1 for m in (7, 11, 13, 17)] for text in texts],
        float,
    )


def test_the_nearest_candidate_wins_and_never_loses_to_the_first():
    texts = ["a b c", "d e f", "g h"]
    candidates = [["c b a", "a b c"], ["d e f", "f e d"], ["x", "y"]]
    result = choose_nearest(candidates, encode_texts(texts), encode_texts)
    assert result.texts[:2] == ["a b c", "d e f"]
    np.testing.assert_allclose(result.cosine[:2], 1)
    firsts = choose_nearest([texts_of_row[:1] for texts_of_row in candidates], encode_texts(texts), encode_texts)
    assert (result.cosine >= firsts.cosine - 1e-12).all()


def test_corrections_come_closer():
    target = encode_texts(["the red cat sleeps"])
    start = choose_nearest([["the blue cat sees"]], target, encode_texts)
    words = ["the", "red", "cat", "sleeps", "blue", "sees"]

    def mutate(row, text, random):
        words_of_text = text.split()
        return [
            " ".join([*words_of_text[:i], str(random.choice(words)), *words_of_text[i + 1 :]])
            for i in range(len(words_of_text))
            for _ in range(6)
        ]

    better = correct_texts(start, target, encode_texts, mutate, rounds=6)
    assert better.cosine[0] > start.cosine[0]
    assert correct_texts(start, target, encode_texts, lambda *_: [], rounds=2).texts == start.texts
    assert isinstance(better, SearchResult)


# ------------------------------------------------------------------------------------------------- going on, bad input


def make_tiny() -> SequenceDecoder:
    return SequenceDecoder(width=16, depth=1, pace=Pace(4e-3, 64, 4))


@pytest.mark.parametrize(
    ("make", "judge", "files"),
    [
        (BagDecoder, "_bits", ["kept.safetensors"]),
        (SlotDecoder, "_bits", ["kept.safetensors"]),
        (make_tiny, "_nats", [f"kept.{what}.safetensors" for what in ("cell-1-of-1", "no-input-again", "no-input")]),
    ],
    ids=["bag", "slot", "sequence"],
)
def test_an_interrupted_training_goes_on(tmp_path, tmp_path_factory, monkeypatch, hasty, make, judge, files):
    monkeypatch.setattr(base, "OFTEN", -1)
    monkeypatch.setattr(bag, "PACE", Pace(rate=5e-3, batch=128, rounds=5))
    train, dev = make_planted("slot", 200, 0), make_planted("slot", 60, 1)
    uninterrupted = tmp_path_factory.mktemp("uninterrupted")
    whole = make().fit(*train, dev=dev, checkpoint=uninterrupted / "kept.safetensors")
    kind, calls, judged = type(whole), [], getattr(type(whole), judge)

    def stopped(self, *rest):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return judged(self, *rest)

    monkeypatch.setattr(kind, judge, stopped)
    with pytest.raises(KeyboardInterrupt):
        make().fit(*train, dev=dev, checkpoint=tmp_path / "kept.safetensors")
    again = make().fit(*train, dev=dev, checkpoint=tmp_path / "kept.safetensors")
    for one, other in zip(list_learned(whole), list_learned(again), strict=True):
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=0)
    for name in files:
        assert (tmp_path / name).read_bytes() == (uninterrupted / name).read_bytes()
    before = len(calls)
    make().fit(*train, dev=dev, checkpoint=tmp_path / "kept.safetensors")
    assert len(calls) - before <= len(files) + 3  # what is finished is not trained again
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def list_learned(decoder):
    return decoder.written_ if isinstance(decoder, SequenceDecoder) else [decoder.parameters_]


def read_digests(folder):
    """What the trainings that are kept there were made of."""
    digests = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            digests.add(file.metadata()["run"])
    return digests


@pytest.mark.parametrize("make", [BagDecoder, SlotDecoder, make_tiny], ids=["bag", "slot", "sequence"])
def test_a_training_with_other_dev_vectors_is_not_gone_on_with(tmp_path, monkeypatch, hasty, make):
    monkeypatch.setattr(bag, "PACE", Pace(rate=5e-3, batch=128, rounds=1))
    train, (vectors, ids) = make_planted("slot", 120, 0), make_planted("slot", 60, 1)
    for number, dev in enumerate((vectors, vectors, vectors[:, ::-1].copy())):
        (tmp_path / str(number)).mkdir()
        make().fit(*train, dev=(dev, ids), checkpoint=tmp_path / str(number) / "kept.safetensors")
    first, again, other = (read_digests(tmp_path / str(number)) for number in range(3))
    assert first == again
    assert first.isdisjoint(other)


def test_a_training_of_another_model_of_that_name_is_not_gone_on_with(tmp_path):
    train, dev = make_planted("slot", 60, 0), make_planted("slot", 60, 1)
    for number, layers in enumerate((1, 1, 2)):
        models.save("gpt2", tmp_path / "gpt2", layers)
        (tmp_path / str(number)).mkdir()
        decoder = SequenceDecoder(str(tmp_path / "gpt2"), frozen=True, pace=Pace(2e-3, 64, 1))
        decoder.fit(*train, dev=dev, checkpoint=tmp_path / str(number) / "kept.safetensors")
    first, again, other = (read_digests(tmp_path / str(number)) for number in range(3))
    assert first == again
    assert first.isdisjoint(other)


@pytest.mark.parametrize("content", [b"", b"no tensors at all", None], ids=["empty", "torn", "of other texts"])
def test_a_file_that_does_not_fit_is_not_gone_on_with(tmp_path, content, hasty):
    train, dev, path = make_planted("slot", 200, 0), make_planted("slot", 60, 1), tmp_path / "slot.safetensors"
    whole = SlotDecoder().fit(*train, dev=dev)
    if content is None:
        SlotDecoder().fit(*make_planted("slot", 200, 8), dev=dev, checkpoint=path)
    else:
        path.write_bytes(content)
    again = SlotDecoder().fit(*train, dev=dev, checkpoint=path)
    torch.testing.assert_close(again.parameters_["map"], whole.parameters_["map"], rtol=0, atol=0)


def test_what_cannot_be_decoded_is_said_in_one_line(tmp_path, hasty):
    vectors, ids = make_planted("slot", 60, 0)
    dev = vectors[:, :20], ids[:20]
    fitted = BagDecoder(slots=12).fit(vectors, ids, dev=dev)
    empty = vectors.copy()
    empty[0, 3] = np.nan
    cases = {
        "vectors: vectors of shape 1x50x24 for 60 texts": lambda: BagDecoder().fit(vectors[:, :50], ids, dev=dev),
        "vectors: vectors of shape 60x24": lambda: BagDecoder().fit(vectors[0], ids, dev=dev),
        "--slots: 60 texts are longer than 5 tokens": lambda: SlotDecoder(slots=5).fit(vectors, ids, dev=dev),
        "--slots: 1 texts are longer than 12": lambda: fitted.bits(vectors[:, :1], [np.arange(13)]),
        "texts: a vocabulary of 1 token.": lambda: BagDecoder(slots=12).fit(vectors, [np.array([4])] * 60, dev=dev),
        "vectors: 1 cells of 8 dimensions, and it was fitted on 1 of 24": lambda: fitted.bits(vectors[..., :8], ids),
        "vectors: not finite in rows 3": lambda: BagDecoder().fit(empty, ids, dev=dev),
        "embeddings: 5 rows, and token ids up to 22": lambda: SlotDecoder().fit(
            vectors, ids, dev=dev, embeddings=np.zeros((5, 4))
        ),
        "--decoder: ": lambda: SequenceDecoder(str(tmp_path / "none")).fit(vectors, ids, dev=dev),
    }
    for words, wrong in cases.items():
        with pytest.raises(InputError) as caught:
            wrong()
        assert str(caught.value).startswith(words)
        assert "\n" not in str(caught.value)


def test_tokens_that_train_lacks_cost_nothing_and_are_never_written(hasty):
    vectors, ids = make_planted("slot", 300, 0)
    decoder = SlotDecoder().fit(vectors, ids, dev=(vectors[:, :80], ids[:80]))
    strange = [text_ids.copy() for text_ids in ids[:5]]
    for text_ids in strange:
        text_ids[2] = 777
    bits = decoder.bits_by_slot(vectors[:, :5], strange)[0]
    assert (bits[:, 2] == 0).all()
    np.testing.assert_allclose(bits[:, 3:], decoder.bits_by_slot(vectors[:, :5], ids[:5])[0][:, 3:])
    assert set(np.concatenate(decoder.generate(vectors)[0])) <= set(np.concatenate(ids))
