"""The tables of fitted decoders: the bits of every cell, and the texts written at one layer of each readout.

1. Bits of dev and test texts, for every decoder and cell, and for the blind decoder.
2. The layer of a readout is the one with the fewest dev bits of the last decoder, which is the judged one.
3. At that layer, a seeded sample of test texts is written from their vectors by every decoder (with beam search, if it
   has it), and by baselines: no input, the mean vector, another text's vector, the nearest train text.
4. Both tables say of every row whether it is `gated`: the cell gained the decoder nothing on dev, so that the blind one
   read and wrote in its place. Its gain of 0 is that rule's and no measurement.
5. The beams of the judged decoder are encoded and re-ranked, then corrected (probes/decoders/search.py). A likeliest
   text whose decoded form has other tokens, as with [UNK], stays as it is: its encoding says nothing about it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from clsprobe.analysis.reconstruction.scores import compare_texts, tag_characters
from clsprobe.probes.decoders.base import Decoder
from clsprobe.probes.decoders.search import SearchResult, choose_nearest, correct_texts

TokenIds = Sequence[np.ndarray]
VARIANTS = 10  # of a text per round of correction


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer between texts and token ids. last_characters: text -> the index of every token's last character, if
    the tokenizer knows it."""

    tokenize: Callable[[Sequence[str]], list[np.ndarray]]
    decode: Callable[[np.ndarray], str]
    token_names: Callable[[np.ndarray], list[str]]
    last_characters: Callable[[str], list[int]] | None


@dataclass(frozen=True, eq=False)
class Writer:
    """A fitted decoder, its tokenizer, and the token ids of all texts."""

    decoder: Decoder
    tokenizer: TextTokenizer
    ids: TokenIds


@dataclass(frozen=True, eq=False)
class DecodingData:
    """The texts and their vectors. ids: (text,) token ids of the encoder's tokenizer. vectors: (cell, text, dim).
    cells: (layer, readout) of each. rows: side -> (row,) text indices. words: text -> (word, part of speech), if known.
    encode: texts, cell -> (text, dim)."""

    texts: Sequence[str]
    ids: TokenIds
    tokenizer: TextTokenizer
    vectors: np.ndarray
    cells: Sequence[tuple[int, str]]
    rows: Mapping[str, np.ndarray]
    words: Mapping[str, Sequence[tuple[str, str]]]
    encode: Callable[[Sequence[str], tuple[int, str]], np.ndarray]


def write_tables(
    data: DecodingData, writers: Mapping[str, Writer], *, written: int, beams: int, corrections: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of texts and of tokens (columns: `clsprobe.reconstruct.Reconstruct.measure`)."""
    blocks = []
    for name, writer in writers.items():
        for side in ("dev", "test"):
            rows = data.rows[side]
            bits = _measure_bits(writer, data.vectors[:, rows], rows)
            for cell, cell_bits in enumerate(bits):
                blocks.append(_build_rows(data, name, cell, "vector", side, rows, writer, cell_bits))
    table = pd.concat(blocks, ignore_index=True)
    judged = list(writers)[-1]
    dev = table[(table.decoder == judged) & (table.split == "dev")]
    nats = dev.groupby(["layer", "readout"], sort=False).bits.sum()
    test = data.rows["test"]
    chosen = np.sort(np.random.default_rng(seed).choice(test, min(written, len(test)), replace=False))
    scored, tokens = [], []
    for readout in dict.fromkeys(readout for _, readout in data.cells):
        layer = int(nats[nats.index.get_level_values(1) == readout].idxmin()[0])
        cell = data.cells.index((layer, readout))
        for name, writer in writers.items():
            sources = _write_texts(data, writer, cell, chosen, beams if name == judged else 1, seed)
            if name == judged:
                sources |= _search_texts(data, writer, sources, cell, chosen, corrections, seed)
                tokens.append(
                    _tabulate_tokens(data, writer, cell, chosen, list(sources.values())[-1], sources["no input"])
                )
            scored.append(_score_texts(data, name, writer, cell, chosen, sources))
    written_rows = pd.concat(scored, ignore_index=True)
    key = ["decoder", "layer", "readout", "source", "split", "row"]
    unwritten = table[~pd.MultiIndex.from_frame(table[key]).isin(pd.MultiIndex.from_frame(written_rows[key]))]
    table = pd.concat([unwritten, written_rows], ignore_index=True)
    order = table.decoder.map(list(writers).index)
    return table.iloc[np.argsort(order, kind="stable")].reset_index(drop=True), pd.concat(tokens, ignore_index=True)


@dataclass(frozen=True, eq=False)
class WrittenTexts:
    """The texts of one source. bits: (text,), or None for sources without probabilities."""

    ids: TokenIds
    texts: list[str]
    bits: np.ndarray | None = None
    candidates: Sequence[Sequence[str]] = ()  # per text, best first
    candidate_ids: Sequence[TokenIds] = ()


def _measure_bits(writer: Writer, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return writer.decoder.bits(vectors, [writer.ids[i] for i in rows])


def _build_rows(
    data: DecodingData, name: str, cell: int, source: str, side: str, rows: np.ndarray, writer: Writer, bits: np.ndarray
) -> pd.DataFrame:
    """The rows of one cell and source. length: in the encoder's tokens. tokens: the decoder's that have bits."""
    layer, readout = data.cells[cell]
    ids = [writer.ids[i] for i in rows]
    known_counts = [int(np.isin(token_ids, writer.decoder.tokens_).sum()) for token_ids in ids]
    return pd.DataFrame(
        {
            "decoder": name, "n_train": len(data.rows["train"]), "layer": layer, "readout": readout,
            "gated": not writer.decoder.informative_[cell], "source": source, "split": side, "row": rows,
            "length": [len(data.ids[i]) for i in rows], "tokens": known_counts,
            "blind": writer.decoder.blind_bits(ids), "bits": bits,
        }
    )  # fmt: skip


def _write_texts(
    data: DecodingData, writer: Writer, cell: int, rows: np.ndarray, beams: int, seed: int
) -> dict[str, WrittenTexts]:
    """source -> the texts written for the rows."""
    decoder, token_ids = writer.decoder.cell(cell), [writer.ids[i] for i in rows]
    train, test = data.vectors[cell, data.rows["train"]], data.vectors[cell, rows]
    candidates = decoder.candidates(test[None], beams=beams)[0]
    first = [beam[0] for beam in candidates]
    candidate_texts = [[writer.tokenizer.decode(ids) for ids in beam] for beam in candidates]
    blind, average = decoder.blind_text(beams=beams), train.mean(0, keepdims=True)
    mean_text = decoder.candidates(average[None], beams=beams)[0][0][0]
    swapped = _draw_derangement(len(rows), seed)
    unit_train = train / np.maximum(np.linalg.norm(train, axis=1, keepdims=True), 1e-30)
    neighbours = data.rows["train"][(test @ unit_train.T).argmax(1)]

    def decode(ids: TokenIds, bits: np.ndarray | None = None) -> WrittenTexts:
        return WrittenTexts(ids, [writer.tokenizer.decode(text_ids) for text_ids in ids], bits)

    def measure_bits(vectors: np.ndarray) -> np.ndarray:
        return decoder.bits(vectors[None], token_ids)[0]

    return {
        "no input": decode([blind] * len(rows), decoder.blind_bits(token_ids)),
        "mean vector": decode([mean_text] * len(rows), measure_bits(np.repeat(average, len(rows), 0))),
        "shuffled vectors": decode([first[i] for i in swapped], measure_bits(test[swapped])),
        "nearest neighbour": decode([writer.ids[i] for i in neighbours]),
        "vector": WrittenTexts(
            first, [texts[0] for texts in candidate_texts], measure_bits(test), candidate_texts, candidates
        ),
    }


def _draw_derangement(n: int, seed: int) -> np.ndarray:
    """(n,) a random permutation without fixed points."""
    order = np.random.default_rng(seed).permutation(n)
    result = np.empty(n, np.int64)
    result[order] = np.roll(order, 1)
    return result


def _search_texts(
    data: DecodingData,
    writer: Writer,
    written: Mapping[str, WrittenTexts],
    cell: int,
    rows: np.ndarray,
    corrections: int,
    seed: int,
) -> dict[str, WrittenTexts]:
    """The beams, re-ranked by encoding them, then corrected; a first text whose tokens change stays as it is."""
    target, beams = data.vectors[cell, rows], written["vector"]
    stable = np.ones(len(rows), bool)  # texts whose tokens survive decoding and tokenizing
    if writer.tokenizer is data.tokenizer:  # texts of another tokenizer are compared after tokenizing anyway
        retokenized = writer.tokenizer.tokenize(beams.texts)
        stable[:] = [np.array_equal(*pair) for pair in zip(retokenized, beams.ids, strict=True)]

    def encode(texts: Sequence[str]) -> np.ndarray:
        return data.encode(texts, data.cells[cell])

    def as_written(result: SearchResult) -> WrittenTexts:
        """Keep the token ids of candidates: not every decoded text tokenizes to the same ids."""
        ids = writer.tokenizer.tokenize(result.texts)
        for row, (text, candidates) in enumerate(zip(result.texts, beams.candidates, strict=True)):
            if text in candidates:
                ids[row] = beams.candidate_ids[row][candidates.index(text)]
        return WrittenTexts(ids, result.texts)

    def mutate(row: int, text: str, random: np.random.Generator) -> list[str]:
        return _draw_variants(text, pools[row], random) if stable[row] else []

    pairs = zip(beams.candidates, stable, strict=True)
    ranked = choose_nearest([texts if ok else texts[:1] for texts, ok in pairs], target, encode)
    stages = {"re-ranked": as_written(ranked)}
    if corrections:
        pools = [
            " ".join([*candidates, neighbour]).split()
            for candidates, neighbour in zip(beams.candidates, written["nearest neighbour"].texts, strict=True)
        ]
        stages["corrected"] = as_written(correct_texts(ranked, target, encode, mutate, rounds=corrections, seed=seed))
    return stages


def _draw_variants(text: str, pool: Sequence[str], random: np.random.Generator) -> list[str]:
    """Variants of a text: one word replaced, inserted or deleted, or two neighbours exchanged."""
    words, variants = text.split(), []
    for _ in range(VARIANTS):
        variant = list(words)
        kind, position = random.integers(4), int(random.integers(len(words) + 1))
        word = pool[int(random.integers(len(pool)))] if pool else ""
        if kind == 0:
            variant.insert(position, word)
        elif kind == 1 and position < len(variant):
            variant[position] = word
        elif kind == 2 and position + 1 < len(variant):
            variant[position], variant[position + 1] = variant[position + 1], variant[position]
        elif kind == 3 and position < len(variant) > 1:
            del variant[position]
        if variant != words and variant:
            variants.append(" ".join(variant))
    return variants


def _score_texts(
    data: DecodingData, name: str, writer: Writer, cell: int, rows: np.ndarray, sources: Mapping[str, WrittenTexts]
) -> pd.DataFrame:
    target = data.vectors[cell, rows].astype(np.float64)
    originals = [data.ids[i] for i in rows]
    blocks = []
    for source, written in sources.items():
        bits = np.full(len(rows), np.nan) if written.bits is None else written.bits
        block = _build_rows(data, name, cell, source, "test", rows, writer, bits)
        ids, texts = written.ids, written.texts
        if writer.tokenizer is not data.tokenizer:  # compare and show texts as the encoder's tokenizer reads them
            ids = data.tokenizer.tokenize(texts)
            texts = [data.tokenizer.decode(text_ids) for text_ids in ids]
        distinct = list(dict.fromkeys(written.texts))
        index_of = {text: i for i, text in enumerate(distinct)}
        vectors = data.encode(distinct, data.cells[cell]).astype(np.float64)[[index_of[text] for text in written.texts]]
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(target, axis=1)
        blocks.append(
            pd.concat([block, compare_texts(originals, ids)], axis=1).assign(
                original=[data.tokenizer.decode(text_ids) for text_ids in originals],
                text=texts,
                cosine=np.nan_to_num((vectors * target).sum(1) / np.maximum(norms, 1e-300)),  # NaN: no vector
            )
        )
    return pd.concat(blocks, ignore_index=True)


def _tabulate_tokens(
    data: DecodingData, writer: Writer, cell: int, rows: np.ndarray, written: WrittenTexts, blind_written: WrittenTexts
) -> pd.DataFrame:
    """A row per token of the originals, in the decoder's tokens. hit, found: whether it was written in this slot, or
    anywhere; blind_hit, blind_found: without input."""
    layer, readout = data.cells[cell]
    gated = not writer.decoder.informative_[cell]
    originals = [writer.ids[i] for i in rows]
    counts = Counter(int(token) for i in data.rows["train"] for token in writer.ids[i])
    bits = writer.decoder.cell(cell).bits_by_slot(data.vectors[cell, rows][None], originals)[0]
    blind = writer.decoder.blind_bits_by_slot(originals)
    ordered = bits.shape[1] > 1
    both = written, blind_written
    same = writer.tokenizer is data.tokenizer
    written_ids = [texts.ids if same else writer.tokenizer.tokenize(texts.texts) for texts in both]
    table = []
    for i, (row, original, *texts) in enumerate(zip(rows.tolist(), originals, *written_ids, strict=True)):
        remaining, sentence = [Counter(text.tolist()) for text in texts], data.texts[row]
        tags = [""] * len(original)
        if sentence in data.words and writer.tokenizer.last_characters:
            character_tags = tag_characters(sentence, data.words[sentence])
            ends = writer.tokenizer.last_characters(sentence)
            tags = [character_tags[end] for end in ends] if len(ends) == len(tags) else tags
        for slot, (token, name, tag) in enumerate(
            zip(original.tolist(), writer.tokenizer.token_names(original), tags, strict=True)
        ):
            hits = []
            for text, unmatched in zip(texts, remaining, strict=True):
                hits += [slot < len(text) and int(text[slot]) == token, unmatched[token] > 0]
                unmatched[token] -= hits[-1]
            slot_bits = (blind[i, slot], bits[i, slot]) if ordered else (np.nan, np.nan)
            table.append((layer, readout, gated, row, slot, name, tag, counts[token], *slot_bits, *hits))
    columns = ["layer", "readout", "gated", "row", "slot", "token", "tag", "count", "blind", "bits"]
    columns += ["hit", "found", "blind_hit", "blind_found"]
    return pd.DataFrame(table, columns=columns)
