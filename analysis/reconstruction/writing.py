"""Fitted decoders into a table: the bits of every cell, and texts written at one layer of each readout.

1. Bits of dev and test texts, for every decoder and cell, beside the blind decoder's.
2. The layer of a readout is the one with the fewest dev bits of the last decoder, which is the one that is judged.
3. There `written` test texts, seeded, are written from their vectors: by every decoder, with beams where it has them,
   and by those that see nothing (no input, the mean vector, another text's) or remember (the nearest train text).
4. The judged decoder's beams are encoded again and re-ranked, then corrected (probes/decoders/search.py). Where the
   likeliest one is spelled so that other tokens are read, as of [UNK], it stays: encoding says nothing about it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from clsprobe.analysis.reconstruction.scores import by_character, compared
from clsprobe.probes.decoders.base import Decoder
from clsprobe.probes.decoders.search import Found, corrected, nearest

TokenIds = Sequence[np.ndarray]
VARIANTS = 10  # of a text in a round of correction


@dataclass(frozen=True, eq=False)
class Tongue:
    """A tokenizer: token ids of texts, and back. ends: the place in the text of every token's last character,
    where the tokenizer knows it."""

    read: Callable[[Sequence[str]], list[np.ndarray]]
    spell: Callable[[np.ndarray], str]
    names: Callable[[np.ndarray], list[str]]
    ends: Callable[[str], list[int]] | None


@dataclass(frozen=True, eq=False)
class Writer:
    """A fitted decoder, the tongue it writes in, and every text in it."""

    decoder: Decoder
    tongue: Tongue
    ids: TokenIds


@dataclass(frozen=True, eq=False)
class Texts:
    """What is decoded. ids: (text,) their tokens, as the encoder reads them. vectors: (cell, text, dim). cells: (layer,
    readout) of each. rows: side -> (row,) its texts. words: text -> its words and their parts of speech, where known.
    encode: texts -> (text, dim) at a cell."""

    texts: Sequence[str]
    ids: TokenIds
    tongue: Tongue
    vectors: np.ndarray
    cells: Sequence[tuple[int, str]]
    rows: Mapping[str, np.ndarray]
    words: Mapping[str, Sequence[tuple[str, str]]]
    encode: Callable[[Sequence[str], tuple[int, str]], np.ndarray]


def tables(
    of: Texts, writers: Mapping[str, Writer], *, written: int, beams: int, corrections: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of texts and that of tokens (`clsprobe.reconstruct.Reconstruct.measure`)."""
    blocks = []
    for name, writer in writers.items():
        for side in ("dev", "test"):
            at = of.rows[side]
            bits = _bits(writer, of.vectors[:, at], at)
            for (layer, readout), own in zip(of.cells, bits, strict=True):
                blocks.append(_block(of, name, layer, readout, "vector", side, at, writer, own))
    table = pd.concat(blocks, ignore_index=True)
    judged = list(writers)[-1]
    dev = table[(table.decoder == judged) & (table.split == "dev")]
    nats = dev.groupby(["layer", "readout"], sort=False).bits.sum()
    test = of.rows["test"]
    chosen = np.sort(np.random.default_rng(seed).choice(test, min(written, len(test)), replace=False))
    parts, tokens = [], []
    for readout in dict.fromkeys(readout for _, readout in of.cells):
        layer = int(nats[nats.index.get_level_values(1) == readout].idxmin()[0])
        cell = of.cells.index((layer, readout))
        for name, writer in writers.items():
            told = _written(of, writer, cell, chosen, beams if name == judged else 1, seed)
            if name == judged:
                told |= _searched(of, writer, told, cell, chosen, corrections, seed)
                tokens.append(_tokens(of, writer, cell, chosen, list(told.values())[-1], told["no input"]))
            parts.append(_scored(of, name, writer, cell, chosen, told))
    wrote = pd.concat(parts, ignore_index=True)
    key = ["decoder", "layer", "readout", "source", "split", "row"]
    plain = table[~pd.MultiIndex.from_frame(table[key]).isin(pd.MultiIndex.from_frame(wrote[key]))]
    whole = pd.concat([plain, wrote], ignore_index=True)
    order = whole.decoder.map(list(writers).index)
    return whole.iloc[np.argsort(order, kind="stable")].reset_index(drop=True), pd.concat(tokens, ignore_index=True)


@dataclass(frozen=True, eq=False)
class _Told:
    """Texts of one source. bits: (text,), None where nobody was asked."""

    ids: TokenIds
    texts: list[str]
    bits: np.ndarray | None = None
    others: Sequence[Sequence[str]] = ()  # all candidates, and their tokens
    beams: Sequence[TokenIds] = ()


def _bits(writer: Writer, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return writer.decoder.bits(vectors, [writer.ids[i] for i in rows])


def _block(
    of: Texts, name: str, layer: int, readout: str, source: str, side: str, rows: np.ndarray, writer: Writer,
    bits: np.ndarray,
) -> pd.DataFrame:  # fmt: skip
    """length: in the encoder's tokens. tokens: those in the decoder's own that have bits."""
    ids = [writer.ids[i] for i in rows]
    known = [int(np.isin(one, writer.decoder.tokens_).sum()) for one in ids]
    return pd.DataFrame(
        {
            "decoder": name, "layer": layer, "readout": readout, "source": source, "split": side, "row": rows,
            "length": [len(of.ids[i]) for i in rows], "tokens": known,
            "blind": writer.decoder.blind_bits(ids), "bits": bits,
        }
    )  # fmt: skip


def _written(of: Texts, writer: Writer, cell: int, rows: np.ndarray, beams: int, seed: int) -> dict[str, _Told]:
    """source -> what is written for the rows."""
    decoder, own = writer.decoder.cell(cell), [writer.ids[i] for i in rows]
    train, test = of.vectors[cell, of.rows["train"]], of.vectors[cell, rows]
    candidates = decoder.candidates(test[None], beams=beams)[0]
    first = [told[0] for told in candidates]
    others = [[writer.tongue.spell(one) for one in told] for told in candidates]
    blind, average = decoder.blind_text(beams=beams), train.mean(0, keepdims=True)
    mean = decoder.candidates(average[None], beams=beams)[0][0][0]
    swapped = _derangement(len(rows), seed)
    unit = train / np.maximum(np.linalg.norm(train, axis=1, keepdims=True), 1e-30)
    near = of.rows["train"][(test @ unit.T).argmax(1)]

    def told(ids: TokenIds, bits: np.ndarray | None = None) -> _Told:
        return _Told(ids, [writer.tongue.spell(one) for one in ids], bits)

    def bits(vectors: np.ndarray) -> np.ndarray:
        return decoder.bits(vectors[None], own)[0]

    return {
        "no input": told([blind] * len(rows), decoder.blind_bits(own)),
        "mean vector": told([mean] * len(rows), bits(np.repeat(average, len(rows), 0))),
        "shuffled vectors": told([first[i] for i in swapped], bits(test[swapped])),
        "nearest neighbour": told([writer.ids[i] for i in near]),
        "vector": _Told(first, [every[0] for every in others], bits(test), others, candidates),
    }


def _derangement(n: int, seed: int) -> np.ndarray:
    """(n,) another place for every one."""
    order = np.random.default_rng(seed).permutation(n)
    found = np.empty(n, np.int64)
    found[order] = np.roll(order, 1)
    return found


def _searched(
    of: Texts, writer: Writer, told: Mapping[str, _Told], cell: int, rows: np.ndarray, corrections: int, seed: int
) -> dict[str, _Told]:
    """The beams re-ranked by encoding them again, then corrected; first ones that are misread stay as they are."""
    target, beams = of.vectors[cell, rows], told["vector"]
    same = np.ones(len(rows), bool)
    if writer.tongue is of.tongue:  # else texts are compared as they are read
        same[:] = [np.array_equal(*pair) for pair in zip(writer.tongue.read(beams.texts), beams.ids, strict=True)]

    def encode(texts: Sequence[str]) -> np.ndarray:
        return of.encode(texts, of.cells[cell])

    def as_told(found: Found) -> _Told:
        """A candidate keeps its tokens: not every text is read as it was spelled."""
        ids = writer.tongue.read(found.texts)
        for row, (text, every) in enumerate(zip(found.texts, beams.others, strict=True)):
            if text in every:
                ids[row] = beams.beams[row][every.index(text)]
        return _Told(ids, found.texts)

    def mutate(row: int, text: str, random: np.random.Generator) -> list[str]:
        return _variants(text, pools[row], random) if same[row] else []

    first = nearest(
        [every if own else every[:1] for every, own in zip(beams.others, same, strict=True)], target, encode
    )
    stages = {"re-ranked": as_told(first)}
    if corrections:
        pools = [
            " ".join([*others, near]).split()
            for others, near in zip(beams.others, told["nearest neighbour"].texts, strict=True)
        ]
        stages["corrected"] = as_told(corrected(first, target, encode, mutate, rounds=corrections, seed=seed))
    return stages


def _variants(text: str, pool: Sequence[str], random: np.random.Generator) -> list[str]:
    """A text with one word changed, put in, left out, or two neighbours exchanged."""
    words, found = text.split(), []
    for _ in range(VARIANTS):
        new = list(words)
        kind, at = random.integers(4), int(random.integers(len(words) + 1))
        word = pool[int(random.integers(len(pool)))] if pool else ""
        if kind == 0:
            new.insert(at, word)
        elif kind == 1 and at < len(new):
            new[at] = word
        elif kind == 2 and at + 1 < len(new):
            new[at], new[at + 1] = new[at + 1], new[at]
        elif kind == 3 and at < len(new) > 1:
            del new[at]
        if new != words and new:
            found.append(" ".join(new))
    return found


def _scored(
    of: Texts, name: str, writer: Writer, cell: int, rows: np.ndarray, told: Mapping[str, _Told]
) -> pd.DataFrame:
    layer, readout = of.cells[cell]
    target = of.vectors[cell, rows].astype(np.float64)
    originals = [of.ids[i] for i in rows]
    blocks = []
    for source, one in told.items():
        bits = np.full(len(rows), np.nan) if one.bits is None else one.bits
        block = _block(of, name, layer, readout, source, "test", rows, writer, bits)
        ids = one.ids if writer.tongue is of.tongue else of.tongue.read(one.texts)
        every = list(dict.fromkeys(one.texts))
        place = {text: i for i, text in enumerate(every)}
        vectors = of.encode(every, of.cells[cell]).astype(np.float64)[[place[text] for text in one.texts]]
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(target, axis=1)
        blocks.append(
            pd.concat([block, compared(originals, ids)], axis=1).assign(
                original=[of.tongue.spell(one) for one in originals],
                text=one.texts if writer.tongue is of.tongue else [of.tongue.spell(each) for each in ids],
                cosine=np.nan_to_num((vectors * target).sum(1) / np.maximum(norms, 1e-300)),  # NaN: no vector
            )
        )
    return pd.concat(blocks, ignore_index=True)


def _tokens(of: Texts, writer: Writer, cell: int, rows: np.ndarray, told: _Told, blind_told: _Told) -> pd.DataFrame:
    """A row per token of the originals, in the decoder's own tongue. hit, found: whether it was written there, or
    anywhere; blind_hit, blind_found: without input."""
    layer, readout = of.cells[cell]
    own = [writer.ids[i] for i in rows]
    counts = Counter(int(one) for i in of.rows["train"] for one in writer.ids[i])
    bits = writer.decoder.cell(cell).bits_by_slot(of.vectors[cell, rows][None], own)[0]
    blind = writer.decoder.blind_bits_by_slot(own)
    ordered = bits.shape[1] > 1
    written = [one.ids if writer.tongue is of.tongue else writer.tongue.read(one.texts) for one in (told, blind_told)]
    found = []
    for i, (row, original, *texts) in enumerate(zip(rows.tolist(), own, *written, strict=True)):
        left, whole = [Counter(text.tolist()) for text in texts], of.texts[row]
        tags = [""] * len(original)
        if whole in of.words and writer.tongue.ends:
            each, ends = by_character(whole, of.words[whole]), writer.tongue.ends(whole)
            tags = [each[end] for end in ends] if len(ends) == len(tags) else tags
        for slot, (token, name, tag) in enumerate(
            zip(original.tolist(), writer.tongue.names(original), tags, strict=True)
        ):
            hits = []
            for text, rest in zip(texts, left, strict=True):
                hits += [slot < len(text) and int(text[slot]) == token, rest[token] > 0]
                rest[token] -= hits[-1]
            costs = (blind[i, slot], bits[i, slot]) if ordered else (np.nan, np.nan)
            found.append((layer, readout, row, slot, name, tag, counts[token], *costs, *hits))
    columns = ["layer", "readout", "row", "slot", "token", "tag", "count", "blind", "bits"]
    columns += ["hit", "found", "blind_hit", "blind_found"]
    return pd.DataFrame(found, columns=columns)
