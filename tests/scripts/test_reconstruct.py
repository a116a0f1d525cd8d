"""Reconstructed texts: their scores, the verdict on constructed tables, and the study from a file to its page."""

from __future__ import annotations

import json
import os
import sys
from itertools import product

import models
import numpy as np
import pandas as pd
import pytest
from house import ROOT
from safetensors.numpy import save_file
from saved import read_measured
from tables import judge
from transformers import AutoModel, AutoModelForCausalLM
from worlds import known_worlds

from clsprobe import Extractor, check_study, load_encoder
from clsprobe.analysis.answer import Answer
from clsprobe.analysis.folder import RunFolder
from clsprobe.analysis.reconstruction import scores as reconstruction
from clsprobe.analysis.reconstruction import writing
from clsprobe.analysis.reconstruction.exhibits import (
    reconstruction_notes,
    select_judged,
    text_exhibits,
    token_exhibits,
)
from clsprobe.analysis.reconstruction.measure import make_decoder
from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.analysis.sources.treebank import read_treebank
from clsprobe.cli import main
from clsprobe.probes.decoders import DECODERS, base
from clsprobe.probes.decoders.bag import BagDecoder
from clsprobe.probes.errors import InputError
from clsprobe.reconstruct import Reconstruct

pytestmark = pytest.mark.usefixtures("one_thread")


def parse_ids(*texts):
    return [np.array([int(c) for c in text], np.int64) for text in texts]


def test_repeated_tokens_are_counted_each_time():
    table = reconstruction.compare_texts(parse_ids("1123", "12", "7", "12"), parse_ids("1145", "12", "", "21"))
    np.testing.assert_allclose(table.precision, [0.5, 1, 0, 1])  # with sets the first would be 1/3
    np.testing.assert_allclose(table.recall, [0.5, 1, 0, 1])
    np.testing.assert_allclose(table.f1, [0.5, 1, 0, 1])
    np.testing.assert_allclose(table.likeness, [0.5, 1, 0, 0])  # only this score depends on order
    np.testing.assert_allclose(table.exact, [0, 1, 0, 0])


def test_bits_are_a_ratio_of_sums():
    rows = pd.DataFrame({"blind": [10.0, 40.0], "bits": [8.0, 20.0], "tokens": [2, 20]})
    value, low, high = reconstruction.measure_gain(rows)
    assert value == 1
    assert low <= value <= high
    assert (low, high) == (1, 1)  # each text gains 1 a token


def test_intervals_of_gain_and_recovery_cover_the_truth():
    random, covered = np.random.default_rng(0), [0, 0]
    for _ in range(100):
        tokens = random.integers(3, 15, 150)
        bits = random.normal(0, 2, 150) + 5 * tokens
        rows = pd.DataFrame({"blind": 6 * tokens, "bits": bits, "tokens": tokens})
        _, low, high = reconstruction.measure_gain(rows)
        covered[0] += low <= 1 <= high
        likeness, blind = random.uniform(0.4, 1, 150), random.uniform(0, 0.4, 150)
        _, low, high = reconstruction.measure_recovery(likeness, blind)
        covered[1] += low <= (0.7 - 0.2) / 0.8 <= high
    assert min(covered) >= 89


def test_recovery_is_0_for_the_blind_text_and_1_for_the_original():
    blind = np.array([0.2, 0.4, 0.3])
    assert reconstruction.measure_recovery(blind, blind)[0] == 0
    assert reconstruction.measure_recovery(np.ones(3), blind) == (1, 1, 1)


def test_novelty_is_0_for_a_text_of_train():
    train = ["the cat sees the dog", "a bird runs"]
    novelty = reconstruction.measure_novelty(["a bird runs", "a bird ran", "zzzz zzzz zzzz"], train)
    assert novelty[0] == 0
    assert novelty[1] == pytest.approx(2 / 11)
    assert novelty[2] > 0.8


def test_differences_are_marked_by_brackets():
    assert reconstruction.mark_differences("the red cat sleeps", "the cat sleeps well") == (
        "the [red] cat sleeps",
        "the cat sleeps [well]",
    )
    assert reconstruction.mark_differences("a b", "") == ("[a b]", "")


def test_every_character_has_the_part_of_speech_of_its_word():
    words = [("Do", "AUX"), ("n't", "PART"), ("go", "VERB"), ("!", "PUNCT")]
    assert reconstruction.tag_characters("Don't go!", words) == ["AUX"] * 2 + ["PART"] * 3 + [""] + ["VERB"] * 2 + [
        "PUNCT"
    ]


def test_tagged_words_of_a_source_cover_its_sentences(tmp_path):
    words = (("1", "zu", "ADP", "3", "case"), ("2", "dem", "DET", "3", "det"), ("3", "Haus", "NOUN", "0", "root"))
    rows = ["1-2\tzum" + "\t_" * 8]
    rows += [
        "\t".join((n, form, form, tag, "_", "_", head, relation, "_", "_")) for n, form, tag, head, relation in words
    ]
    path = tmp_path / "one.conllu"
    path.write_text("\n".join(["# text = zum Haus", *rows]) + "\n\n")
    (sentence,) = read_treebank(path)[0].words.items()
    assert sentence == ("zum Haus", [("zum", "ADP+DET"), ("Haus", "NOUN")])
    loaded = load("grammar:tense:60", SourceOptions())
    assert set(loaded.words) == set(loaded.tasks[0].texts)
    for text, words in loaded.words.items():
        tags = reconstruction.tag_characters(text, words)
        assert all(tag or character == " " for tag, character in zip(tags, text, strict=True))
        assert words[-1] == (".", "PUNCT")


def test_bins_include_their_lower_edge():
    bins = reconstruction.bin_values(np.array([1, 7, 8, 99]), (0, 8, 12, 1000), ("short", "middle", "long"))
    assert list(bins) == ["short", "short", "middle", "long"]


def test_bleu_is_computed_by_sacrebleu_with_its_signature():
    texts = ["the red cat sleeps in the house", "a dog runs on the tree"]
    assert reconstruction.score_corpus(texts, texts) == {"BLEU": pytest.approx(100), "chrF": pytest.approx(100)}
    assert reconstruction.score_corpus(texts, ["", "a bird"])["BLEU"] < 5
    assert all("version:" in signature for signature in reconstruction.describe_scorers())


def make_table(cls, *, mean=0.5, blind=0.2, novel=0.5, n=200, gated=()):
    """A table in the format of `measure`: the likeness is near the given values, and determines the other columns.

    gated: readouts of which the decoder gained nothing on dev; their texts are the blind ones.
    """
    random = np.random.default_rng(0)
    blocks = []
    for (readout, value), layer, split in product({"cls": cls, "mean": mean}.items(), (0, 3), ("dev", "test")):
        for source, level in {"no input": blind, "mean vector": blind / 2, "vector": value, "re-ranked": value}.items():
            if split == "dev" and source != "vector":
                continue
            written = split == "test" and layer == 3
            if not written and source != "vector":
                continue
            likeness = np.clip(level + random.normal(0, 0.05, n), 0, 1) if written else np.full(n, np.nan)
            if source == "no input":
                blind_likeness = likeness
            elif readout in gated:
                likeness, value = blind_likeness if written else likeness, 0.0
            has_bits = source in ("no input", "mean vector", "vector")
            blocks.append(
                pd.DataFrame(
                    {
                        "decoder": "sequence", "n_train": 914, "layer": layer, "readout": readout,
                        "gated": readout in gated or (readout == "cls" and layer == 0), "source": source,
                        "split": split, "row": np.arange(n), "length": 13, "tokens": 8, "blind": 40.0,
                        "bits": (40 - 8 * value * (source == "vector" and layer > 0)) if has_bits else np.nan,
                        "precision": likeness, "recall": likeness, "f1": likeness, "likeness": likeness,
                        "exact": (likeness > 0.98).astype(float), "original": "the cat" if written else None,
                        "text": "the dog" if written else None, "cosine": likeness,
                        "novelty": (np.arange(n) >= n / 2) * novel if written else np.nan,
                    }
                )
            )  # fmt: skip
    return pd.concat(blocks, ignore_index=True)


def test_recovered_texts_are_a_yes():
    verdict = judge(Reconstruct(), make_table(0.85))
    assert verdict.outcome == "yes"
    assert verdict.effect == pytest.approx((0.85 - 0.2) / 0.8, abs=0.03)
    assert verdict.low <= verdict.effect <= verdict.high
    share = f"{verdict.effect:.2f} ({verdict.low:.2f} to {verdict.high:.2f})"
    assert verdict.sentence.startswith(
        f"Yes: from [CLS] of layer 3 the sequence decoder puts right {share} of what the best blind one (no input) "
        f"gets wrong in 100 new test texts (claimed: 0.5), 0.0% of them word for word; [CLS] tells 0.85 bits a token"
    )


@pytest.mark.parametrize("cls", [0.3, 0.6, 0.2])
def test_decoders_that_do_not_recover_the_texts_refute_nothing(cls):
    """However certain it is that these decoders stay below the margin."""
    verdict = judge(Reconstruct(), make_table(cls))
    assert verdict.outcome == "undecided"
    assert verdict.p_no == 1
    assert verdict.effect == pytest.approx((cls - 0.2) / 0.8, abs=0.03)
    share = f"{verdict.effect:.2f} ({verdict.low:.2f} to {verdict.high:.2f})"
    assert verdict.sentence.startswith(
        "Undecided: not reached by these decoders with 914 training texts: from [CLS] of layer 3 the sequence decoder "
        f"puts right {share} of"
    )
    assert f"[CLS] tells {cls:.2f} bits a token ({cls:.2f} to {cls:.2f}) of 5.00." in verdict.sentence


def test_the_gate_is_said_where_it_replaced_the_decoder():
    verdict = judge(Reconstruct(), make_table(0.9, gated=("cls",)))
    assert verdict.outcome == "undecided"
    assert np.isnan([verdict.effect, verdict.low, verdict.high]).all()  # the blind decoder compared with itself
    assert verdict.sentence == (
        "Undecided: not reached by these decoders with 914 training texts: at no layer read did the sequence decoder "
        "gain anything from [CLS] on dev, so the blind one was used, whose gain of 0 bits is this rule's and not "
        "measured; its texts, as re-ranking and corrections left them, put nothing right in 100 new test texts."
    )
    assert judge(Reconstruct(), make_table(0.9, gated=("mean",))).outcome == "yes"  # of another readout


def test_what_the_search_makes_of_blind_texts_is_measured():
    table = make_table(0.9, gated=("cls",))
    searched = (table.readout == "cls") & (table.source == "re-ranked")
    table.loc[searched, "likeness"] += np.where(np.arange(searched.sum()) % 2, 0.1, 0)
    verdict = judge(Reconstruct(), table)
    assert verdict.outcome == "undecided"
    assert 0 < verdict.low < verdict.effect < verdict.high < 0.1
    assert f"left them, put right {verdict.effect:.2f} ({verdict.low:.2f} to {verdict.high:.2f}) of" in verdict.sentence


def test_no_number_of_a_gated_cell_passes_for_a_measurement():
    table = make_table(0.9, gated=("mean",))
    shares, bits, scores, *binned, cls_texts, mean_texts = text_exhibits(table, 0.5)
    sentence = (
        "Gated: from mean of layers 0, 3 the decoder gained nothing on dev, so the blind one stands in: its gain of 0"
    )
    assert sentence in bits.caption.replace("cls of layer 0; ", "")
    gains = bits.table.set_index(["readout", "layer"])
    assert gains.value["mean"].tolist() == [0, 0]
    assert gains[["low", "high"]].loc["mean"].isna().all(axis=None)
    assert gains.low["cls", 3] == pytest.approx(0.9)
    assert shares.table.name.tolist() == ["cls, layer 3", "mean, layer 3, gated"]
    for exhibit in (shares, *binned, mean_texts):
        assert "Gated: from mean of layer 3 the decoder gained nothing on dev" in exhibit.caption
    assert "Gated" not in cls_texts.caption
    by_source = scores.table.set_index(["readout", "written by"])
    assert by_source.gated["mean"].all()
    assert not by_source.gated["cls"].any()
    assert by_source.loc[("mean", "vector"), ["from", "to"]].isna().all()
    assert by_source.loc[("cls", "no input"), ["bits gained", "from", "to"]].isna().tolist() == [False, True, True]
    for exhibit in binned:
        rows = exhibit.table.set_index("readout")[["from", "to"]]
        assert rows.loc[["mean"]].isna().all(axis=None)
        assert rows.loc[["cls"]].notna().all(axis=None)


def test_notes_say_what_is_of_the_gate():
    first, second, *_ = reconstruction_notes(make_table(0.9, gated=("mean",)))
    assert first == (
        "Control: from [CLS] of layer 0, the same vector for every text, the sequence decoder gained nothing on dev, "
        "as it must be. The blind one stands in for it there: 0 bits by rule."
    )
    assert second.startswith("mean of layer 3 tells -0.90 bits a token more than cls of layer 3 (-0.90 to -0.90, ")
    assert second.endswith("For mean the blind decoder stands in, since its own gained nothing on dev.")
    both = reconstruction_notes(make_table(0.9, gated=("cls", "mean")))
    assert not [note for note in both if "bits a token more" in note]
    failed = make_table(0.9)
    failed.loc[(failed.layer == 0) & (failed.readout == "cls"), ["gated", "bits"]] = [False, 30.0]
    assert reconstruction_notes(failed)[0].startswith(
        "Control failed: from [CLS] of layer 0 the sequence decoder gains 1.250"
    )


def test_texts_that_train_nearly_has_are_not_judged():
    table = make_table(0.9)
    known = table.novelty < reconstruction.NOVEL
    table.loc[known & (table.source == "re-ranked"), "likeness"] = 0.0
    assert judge(Reconstruct(), table).outcome == "yes"
    assert select_judged(table).row.nunique() == 100
    assert select_judged(make_table(0.9, novel=0.0)).row.nunique() == 200  # all texts if none is new


def test_scores_by_length_are_shown_with_those_of_the_blind_decoder():
    (table,) = (e.table for e in text_exhibits(make_table(0.7), 0.5) if "length in tokens" in e.table)
    # The length of the text, not of its tokens known from train.
    assert table["length in tokens"].tolist() == ["12-15"] * 2
    np.testing.assert_allclose(table[["F1", "F1 blind"]], [[0.7, 0.2], [0.5, 0.2]], atol=0.02)


def test_every_exhibit_draws(tmp_path):
    table = make_table(0.7)
    exhibits = text_exhibits(table, 0.5)
    assert [e.plot for e in exhibits[:2]] == ["intervals", "curves"]
    for exhibit in exhibits:
        if exhibit.plot:
            exhibit.draw()
    slots = pd.DataFrame(
        {
            "layer": 3, "readout": "cls", "gated": False, "row": np.arange(100) // 4, "slot": np.arange(100) % 4,
            "token": "cat", "tag": ["NOUN", ""] * 50, "count": np.arange(100), "blind": 5.0, "bits": 3.0,
            "hit": np.arange(100) % 2 == 0, "found": True, "blind_hit": np.arange(100) % 4 == 0,
            "blind_found": np.arange(100) % 4 == 0,
        }
    )  # fmt: skip
    position, words, tags = token_exhibits(slots)
    assert position.table.blind.tolist() == [1, 0, 0, 0]
    assert position.table.value.between(0, 1).all()
    position.draw()
    assert words.table["bits gained"].eq(2).all()
    assert tags.table.values.tolist() == [["NOUN", "cls", 50, 2.0, 1.0, 0.5]]
    assert len(token_exhibits(slots.assign(tag=""))) == 2  # without parts of speech
    assert all("Gated: from cls of layer 3" in exhibit.caption for exhibit in token_exhibits(slots.assign(gated=True)))
    assert "Gated" not in position.caption


# -------------------------------------------------------------------------------------------------------- written texts


class CertainDecoder(base.Decoder):
    """Its candidates for a vector are the right text, then a wrong one."""

    def __init__(self, ids, wrong_ids):
        super().__init__()
        self.ids, self.wrong_ids, self.tokens_, self.informative_ = ids, wrong_ids, np.arange(20), np.ones(1, bool)

    def cell(self, number):
        return self

    def bits(self, vectors, token_ids):
        return np.full((len(vectors), len(token_ids)), 1.0)

    def bits_by_slot(self, vectors, token_ids):
        return np.ones((len(vectors), len(token_ids), 10))

    def blind_bits(self, token_ids):
        return np.full(len(token_ids), 2.0)

    def blind_bits_by_slot(self, token_ids):
        return np.full((len(token_ids), 10), 2.0)

    def blind_text(self, *, beams):
        return np.array([3])

    def candidates(self, vectors, *, beams):
        near = (vectors[0] @ np.stack([encode_ids(ids) for ids in self.ids]).T).argmax(1)
        return [[[self.ids[i], self.wrong_ids[i]] for i in near]]

    _train = _bits = _generate = None


KNOWN = ["[UNK]", "[", "]", "the", "cat", "dog", "bird", "sees", "runs", "red"]


def encode_ids(ids):
    """The vector of some tokens; brackets have large vectors, so a misread text is far away."""
    table = np.random.default_rng(0).normal(size=(20, 40)) * np.where(np.isin(np.arange(20), (1, 2)), 5, 1)[:, None]
    total = sum((1 + 0.1 * slot) * table[token] for slot, token in enumerate(ids))
    return total / np.linalg.norm(total)


def tokenize_words(texts):
    return [
        np.array(
            [KNOWN.index(w) if w in KNOWN[1:] else 0 for w in text.lower().replace("[unk]", "[ unk ]").split()],
            np.int64,
        )
        for text in texts
    ]


def token_names(ids):
    return [KNOWN[i] for i in ids]


def write_with_certainty(texts, tokenizer=None):
    """The tables of `CertainDecoder` for these texts."""
    own_tokenizer = writing.TextTokenizer(tokenize_words, lambda ids: " ".join(token_names(ids)), token_names, None)
    ids = tokenize_words(texts)
    wrong = [np.append(np.where(text_ids == 0, 9, text_ids)[:-1], 8) for text_ids in ids]

    def encode(given_texts, cell):
        return np.stack([encode_ids(text_ids) for text_ids in tokenize_words(given_texts)])

    sides = {side: np.arange(len(texts)) for side in ("train", "dev", "test")}
    vectors = np.stack([encode_ids(text_ids) for text_ids in ids])[None]
    data = writing.DecodingData(texts, ids, own_tokenizer, vectors, [(3, "cls")], sides, {}, encode)
    writer = writing.Writer(CertainDecoder(ids, wrong), tokenizer or own_tokenizer, ids)
    return writing.write_tables(data, {"sequence": writer}, written=100, beams=2, corrections=2, seed=0)


def test_an_exact_text_with_an_unknown_word_stays_exact():
    """It is written as [UNK], which encodes to three tokens; re-ranking must still prefer the right candidate."""
    texts = ["the cat sees the dog", "the zebra sees the dog", "the red gnu runs", "the bird sees the red cat"]
    table, _ = write_with_certainty(texts)
    wrote = table[table.text.notna()]
    for source in ("vector", "re-ranked", "corrected"):
        assert wrote[wrote.source == source].exact.eq(1).all(), source


def test_tables_say_what_is_gated_and_how_many_texts_were_learned_from():
    """Vectors without anything of the texts: the decoder gains nothing on dev, and what was a certain no is none."""
    random, texts = np.random.default_rng(0), [f"the {a} {b} {c}" for a, b, c in product(KNOWN[4:], repeat=3)]
    texts = [texts[i] for i in random.permutation(len(texts))[:140]]
    ids = tokenize_words(texts)
    vectors = random.normal(size=(2, 140, 8)).astype(np.float32)
    vectors[1] = [np.bincount(text_ids, minlength=10)[2:] for text_ids in ids]
    sides = dict(zip(("train", "dev", "test"), np.split(np.arange(140), [60, 100]), strict=True))
    (train, train_ids), dev = ((vectors[:, rows], [ids[i] for i in rows]) for rows in (sides["train"], sides["dev"]))
    decoder = BagDecoder().fit(train, train_ids, dev=dev)
    own_tokenizer = writing.TextTokenizer(tokenize_words, lambda ids: " ".join(token_names(ids)), token_names, None)

    def encode(texts, cell):
        return np.ones((len(texts), 8), np.float32)

    data = writing.DecodingData(texts, ids, own_tokenizer, vectors, [(3, "cls"), (3, "mean")], sides, {}, encode)
    table, slots = writing.write_tables(
        data, {"bag": writing.Writer(decoder, own_tokenizer, ids)}, written=40, beams=1, corrections=0, seed=0
    )
    assert table.n_train.eq(60).all()
    for rows in (table, slots):
        assert rows.groupby("readout").gated.agg(["min", "max"]).to_numpy().tolist() == [[True, True], [False, False]]
    gated = table[table.gated & (table.source == "vector")]
    np.testing.assert_allclose(gated.bits, gated.blind, atol=1e-9)
    verdict = judge(Reconstruct(), table.assign(novelty=0.5))
    assert verdict.outcome == "undecided"
    assert (
        "not reached by these decoders with 60 training texts: at no layer read did the bag decoder" in verdict.sentence
    )


def test_hits_of_the_blind_decoder_are_counted_separately():
    texts = ["the cat sees the dog", "the bird runs"]
    _, slots = write_with_certainty(texts)  # without input it writes "the"
    assert slots.hit.all()
    assert slots.blind_hit.tolist() == [True, *[False] * 4, True, *[False] * 2]
    assert slots.blind_found.tolist() == slots.blind_hit.tolist()  # the second "the" is not written


def test_text_of_another_tokenizer_is_normalised_like_the_original():
    """Otherwise equal texts would differ in capital letters and commas."""
    title_case = writing.TextTokenizer(
        tokenize_words, lambda ids: "  ".join(token_names(ids)).title(), token_names, None
    )
    table, _ = write_with_certainty(["the cat sees the dog", "the red bird runs"], title_case)
    wrote = table[(table.source == "vector") & table.text.notna()]
    assert wrote.text.tolist() == wrote.original.tolist() == ["the cat sees the dog", "the red bird runs"]


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """An encoder with random weights, and 240 texts in its vocabulary."""
    folder = tmp_path_factory.mktemp("toy")
    nouns, verbs = ("cat", "dog", "bird", "dogs", "house"), ("sees", "sleeps", "runs")
    rows = [
        f"{a} {colour} {noun} {verb} {preposition} the {object_noun}"
        for a, colour, noun, verb, preposition, object_noun in product(
            ("the", "a"), ("red", "blue"), nouns, verbs, ("in", "on"), nouns[:2]
        )
    ]
    path = folder / "toy.csv"
    path.write_text("text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(rows)))
    return models.save("bert", folder / "bert"), path


def make_arguments(toy, out, *flags):
    model, path = toy
    return [
        "reconstruct", "--model", str(model), "--task", f"file:{path}", "--layers", "0,3", "--written", "20", "--beams",
        "2", "--corrections", "1", "--out", str(out), "--quiet", *flags,
    ]  # fmt: skip


def run_command(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code


def test_the_study_runs_from_a_file_to_its_page(toy, tmp_path, monkeypatch):
    from clsprobe.probes.decoders import sequence

    monkeypatch.setattr(sequence.SequenceDecoder.__init__, "__kwdefaults__", {
        **sequence.SequenceDecoder.__init__.__kwdefaults__, "width": 32, "depth": 1, "pace": sequence.Pace(4e-3, 64, 4)
    })  # fmt: skip
    out = tmp_path / "run"
    assert run_command(make_arguments(toy, out)) == 0
    answer = Answer.load(out / "answers" / "reconstruct.json")
    assert answer.question == "Is it possible to get back the original sequence from [CLS]?"
    notes = " ".join(answer.notes)
    for decoder in ("bag", "slot", "sequence"):
        assert f"the same vector for every text, the {decoder} decoder gained nothing on dev, as it must be" in notes
    assert "Treat stored vectors as the texts themselves" in (out / "report.html").read_text()
    check_study(Reconstruct(), read_measured(out), worlds=known_worlds("reconstruct"))
    table = pd.read_parquet(out / "tables" / "reconstructions.parquet")
    wrote = table[(table.decoder == "sequence") & table.text.notna()].pivot(index="row", columns=["readout", "source"])
    for readout in ("cls", "mean"):
        cosine, exact = wrote.cosine[readout], wrote.exact[readout]
        assert (cosine["re-ranked"] >= cosine["vector"] - 1e-6).all()
        assert (cosine["corrected"] >= cosine["re-ranked"] - 1e-6).all()
        assert (exact["re-ranked"] >= exact["vector"]).all()
    assert sorted(path.name for path in (out / "weights").iterdir())[0] == "bag.safetensors"
    assert json.loads((out / "run.json").read_text())["finished"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--decoder", "nobody/nothing"], "'nobody/nothing'"),
        (["--decoders", "bag,sequnce"], "error: --decoders: unknown decoder 'sequnce'. Did you mean 'sequence'?"),
        (["--decoders", "bag", "--decoder", "gpt2"], "error: --decoder: names a sequence decoder"),
        (["--frozen"], "error: --frozen: our own decoder has learned nothing before."),
        (["--readouts", "mean"], "error: --readouts: the question is about cls."),
        (["--readouts", "cls,flatten"], "error: --readouts: 'flatten' is no single vector of a text."),
        (["--readouts", "cls,cat(cls,mean)"], "error: --readouts: cls has 16 numbers, cat(cls,mean) has 32 numbers."),
        (
            ["--slots", "5"],
            "error: --slots: 240 texts of more than 5 tokens (lines 2, 3, 4, 5, 6 and 235 more). "
            "Pass --long-rows drop, or --slots 7.",
        ),
        (
            ["--slots", "6", "--long-rows", "drop"],
            "error: --task: 0 different texts, 240 left out: longer than 6 tokens. A decoder needs 50 at least.",
        ),
    ],
)
def test_wrong_flags_are_a_one_line_error(toy, tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.setattr("clsprobe.probes.hub.hub_is_reachable", lambda: False)
    assert run_command(make_arguments(toy, tmp_path / "run", *flags)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "run").exists()


def save_causal(folder, kind="gpt2", *, with_head=True, **options):
    """A causal language model, and a tokenizer with an end-of-text token. with_head: save the head too."""
    config = models.config(kind)
    for name, value in options.items():
        setattr(config, name, value)
    (AutoModelForCausalLM if with_head else AutoModel).from_config(config).save_pretrained(folder)
    tokenizer = models.tokenizer(kind)
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token or "</s>"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: models.save("bert", folder), "has no token for the end of a text"),
        (
            lambda folder: save_causal(folder, "bert", is_decoder=False),
            "see those that follow. Use a causal language model.",
        ),
        (lambda folder: save_causal(folder, "bert", is_decoder=True, with_head=False), "lack cls.predictions"),
        (lambda folder: models.save("t5", folder), "cannot be loaded as a causal language model"),
        (lambda folder: save_causal(folder, n_positions=7), "has 7 places, and the longest text has 7 of its tokens"),
        (
            lambda folder: save_causal(folder, vocab_size=20),
            "tokens, its embedding table 20. Use its own tokenizer, or",
        ),
    ],
    ids=["no end", "sees ahead", "no head", "no causal model", "few places", "tokenizer of another"],
)
def test_a_model_that_is_no_decoder_is_an_error_before_training(toy, tmp_path, capsys, make, message):
    model = make(tmp_path / "other")
    capsys.readouterr()  # progress bars of saving
    assert run_command(make_arguments(toy, tmp_path / "run", "--decoder", str(model))) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    error = lines[0]
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def saved_vectors(toy):
    """The vectors of all texts, as another program may save them."""
    texts = pd.read_csv(toy[1]).text.tolist()
    states = Extractor(load_encoder(str(toy[0])), ["cls", "mean"], layers=[0, 3])(texts)
    return {f"layer.{layer:02d}/{name}": states.cell(layer, name) for layer, name in states.cells}


def test_a_decoder_of_ones_own_writes_the_texts(toy, tmp_path, monkeypatch):
    """That of examples/decoder.py, by a line in the mapping of decoders."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setitem(DECODERS, "ridge", "decoder:RidgeDecoder")
    out = tmp_path / "run"
    assert run_command(make_arguments(toy, out, "--decoders", "ridge")) == 0
    texts = pd.read_parquet(out / "tables" / "reconstructions.parquet")
    assert set(texts.decoder) == {"ridge"}
    assert "decoder ridge" in json.loads((out / "run.json").read_text())["contents"]
    vector = texts[(texts.source == "vector") & (texts.readout == "mean") & (texts.split == "test")]
    assert (vector.blind - vector.bits).mean() > 1
    sys.modules.pop("decoder")


def test_vectors_from_a_file_give_the_same_results(toy, saved_vectors, tmp_path):
    save_file(saved_vectors, tmp_path / "v.safetensors")
    bits = []
    for flags in ([], ["--vectors", str(tmp_path / "v.safetensors")]):
        out = tmp_path / f"run{len(flags)}"
        assert run_command(make_arguments(toy, out, "--decoders", "bag", *flags)) == 0
        bits.append(pd.read_parquet(out / "tables" / "reconstructions.parquet"))
    pd.testing.assert_frame_equal(*bits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:-1], "v.safetensors: holds 239 vectors, file:"),
        (lambda v: v[:, :8].copy(), "v.safetensors: its vectors have 8 dimensions, those of "),
        (
            lambda v: np.random.default_rng(0).normal(size=v.shape).astype("f4"),
            "v.safetensors: its cls of layer 0 is not",
        ),
        (lambda v: np.where(np.arange(len(v))[:, None] == 7, np.nan, v), "v.safetensors: 1 row holds NaN"),
    ],
    ids=["too few", "another size", "another encoder", "not a number"],
)
def test_vectors_of_another_encoder_or_other_texts_are_an_error(toy, saved_vectors, tmp_path, capsys, change, message):
    save_file({name: change(vectors) for name, vectors in saved_vectors.items()}, tmp_path / "v.safetensors")
    assert run_command(make_arguments(toy, tmp_path / "run", "--vectors", str(tmp_path / "v.safetensors"))) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "run").exists()


def test_vectors_in_another_order_are_an_error(toy, saved_vectors, tmp_path, capsys):
    """All [CLS] vectors of layer 3 are similar, so a shifted order must still be detected."""
    shuffled = {
        "layer.00/cls": saved_vectors["layer.00/cls"],
        "layer.03/cls": np.roll(saved_vectors["layer.03/cls"], 5, 0),
    }
    save_file(shuffled, tmp_path / "v.safetensors")
    assert run_command(make_arguments(toy, tmp_path / "run", "--vectors", str(tmp_path / "v.safetensors"))) == 2
    assert "error: v.safetensors: its cls of layer 3 is not that of" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_vectors_that_change_during_a_run_are_an_error(toy, saved_vectors, tmp_path):
    path = tmp_path / "v.safetensors"
    save_file(saved_vectors, path)
    study = Reconstruct(model=str(toy[0]), task=f"file:{toy[1]}", vectors=str(path), device="cpu")
    assert study.inputs.stored
    os.utime(path, ns=(0, 0))
    with pytest.raises(InputError, match="changed while being read"):
        study.measure()


def test_vectors_without_a_readout_name_are_an_error(toy, saved_vectors, tmp_path, capsys):
    np.save(tmp_path / "v.npy", saved_vectors["layer.03/mean"])
    arguments = make_arguments(toy, tmp_path / "run", "--vectors", str(tmp_path / "v.npy"), "--layers", "1")
    assert run_command(arguments) == 2
    assert "error: v.npy: unknown readout 'vector'" in capsys.readouterr().err


def test_texts_need_no_labels(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text\n" + "".join(f"number {i} and {i * i}\n" for i in range(60)))
    assert len(Reconstruct(task=f"file:{path}").inputs.texts) == 60


def test_overwriting_a_run_removes_its_weights(tmp_path):
    def learn(seed, **options):
        folder = RunFolder(tmp_path / "run", "reconstruct", {"seed": seed}, **options)
        folder.begin()
        folder.path_of(f"weights/of-{seed}.safetensors").write_bytes(b"")
        return folder

    def weight_files():
        return sorted(path.name for path in (tmp_path / "run" / "weights").iterdir())

    learn(0)
    learn(0)  # a resumed run keeps its weights
    assert weight_files() == ["of-0.safetensors"]
    learn(1, overwrite=True).finish({})
    assert weight_files() == ["of-1.safetensors"]


def test_an_encoder_without_an_embedding_table_can_be_decoded(tmp_path, monkeypatch):
    """CANINE hashes characters."""
    (tmp_path / "few.csv").write_text("text\n" + "".join(f"a{i}\n" for i in range(10, 75)))
    toy = models.save("canine", tmp_path / "canine"), tmp_path / "few.csv"
    assert run_command(make_arguments(toy, tmp_path / "run", "--decoders", "bag,slot")) == 0


@pytest.mark.parametrize("name", ["bag", "slot", "sequence"])
def test_decoders_do_not_use_a_device_without_float64(name):
    assert make_decoder(name, Reconstruct(), "mps", 5).device == "cpu"
    assert make_decoder(name, Reconstruct(), "cuda", 5).device == "cuda"


def test_a_vocabulary_of_one_token_is_an_error(toy, tmp_path, capsys):
    path = tmp_path / "the.csv"
    path.write_text("text\n" + "".join(f"{space.join(['the'] * i)}\n" for i in range(2, 32) for space in (" ", "  ")))
    assert run_command(make_arguments((toy[0], path), tmp_path / "run")) == 2
    assert "error: texts: a vocabulary of 1 token." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_too_few_texts_are_an_error(toy, tmp_path, capsys):
    few = tmp_path / "few.csv"
    few.write_text("text,label\n" + "".join(f"cat {'very ' * i}big,{i % 2}\n" for i in range(20)))
    assert run_command(make_arguments((toy[0], few), tmp_path / "run")) == 2
    assert "A decoder needs 50 at least" in capsys.readouterr().err
