"""Is it possible to get back the original sequence from [CLS]?

    clsprobe reconstruct --task file:reviews.csv --layers 0,3,6 --readouts cls,mean

1. Texts are dealt out anew to train, dev and test, whatever sides their source has: labels are not asked for, and a
   split that keeps words apart, as that of the built-in sentences, could be decoded by no one.
2. Three decoders read every (layer, readout): which tokens (bag), which token where (slot), and the text word for word
   (sequence). Beside each stands the same decoder that reads nothing.
3. The layer of a readout is the one with the fewest dev bits of the sequence decoder. There texts are written, by
   beams, then by encoding the candidates again, then by rounds of correction.
4. The verdict: what share of what the blind decoders miss [CLS] puts right, on test texts that are new.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from clsprobe.analysis.folder import RunFolder
from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.analysis.study import Answer, Exhibit, Finished, Study, Verdict
from clsprobe.probes.encoders.describing import Description, describe
from clsprobe.probes.encoders.devices import check_device
from clsprobe.probes.encoders.finding import find_causal
from clsprobe.probes.encoders.layers import layer_numbers, parse_layers
from clsprobe.probes.errors import InputError, unknown
from clsprobe.probes.extraction.readouts import OF_TOKENS, parse
from clsprobe.probes.tasks.task import PAIRED
from clsprobe.run import Names, Specs, check_count, counted

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from clsprobe.analysis.writing import Tongue
    from clsprobe.probes.decoders.base import Decoder
    from clsprobe.probes.encoders.encoder import Encoder
    from clsprobe.probes.extraction.states import States
    from clsprobe.probes.extraction.vectors import Vectors

log = logging.getLogger("clsprobe")

DECODERS = ("bag", "slot", "sequence")
PRIVACY = (
    "Treat stored vectors as the texts themselves: what is read back here was read from vectors alone, and whoever has "
    "the encoder and texts of the same kind can do the same."
)
LENGTHS = (0, 8, 12, 16, 20, 10**9), ("1-7", "8-11", "12-15", "16-19", "20 and more")
COUNTS = (0, 1, 5, 20, 100, 10**9), ("not in train", "1-4", "5-19", "20-99", "100 and more")
FEWEST = 50  # texts that a decoder can learn from
FEWEST_TOKENS = 20  # that a share is told of
CHECKED, ALIKE = 16, 0.98  # texts and the least cosine of vectors that were given with those of the encoder
MANTISSA = {"F64": 18, "F32": 18, "F16": 11, "BF16": 8}  # bits; float32 of another batch or machine differs in the last
DISTANCES = (0, 0.2, 0.4, 0.6, 2), ("below 0.2 (no news)", "0.2-0.4", "0.4-0.6", "0.6 and more")


@dataclass(frozen=True)
class Ready:
    """What could be read and checked without torch. texts: distinct ones of all tasks."""

    texts: list[str]
    rows: dict[str, dict[str, Any]]
    described: Description
    layers: list[int]
    readouts: list[str]
    words: Mapping[str, Sequence[tuple[str, str]]]  # text -> words and parts of speech, where a source knows them
    contents: dict[str, str]  # what was read where the settings do not tell it -> its digest
    stored: tuple[States, np.ndarray, Vectors] | None  # the vectors that were given, the row of every text, their file


@dataclass(frozen=True, eq=False)
class Measured:
    """What a measurement leaves.

    texts: a row per decoder, layer, readout, source and text: `source` says who wrote it (the decoder's best "vector",
    "re-ranked", "corrected", the blind ones "no input", "mean vector", "shuffled vectors", and "nearest neighbour"),
    with bits where a decoder was asked for them and scores where a text was written. slots: a row per token of the
    chosen cells.
    """

    texts: pd.DataFrame
    slots: pd.DataFrame
    facts: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)


class Reconstruct(Study):
    """Whether the text can be got back from [CLS]."""

    question: ClassVar[str] = "Is it possible to get back the original sequence from [CLS]?"
    claim: ClassVar[str] = (
        "From [CLS] alone a decoder puts right at least half of what it gets wrong without it, in texts that are new"
    )
    margin: ClassVar[float] = 0.5

    task: Specs = Field(("grammar:tense",), description="SPEC of texts: grammar:tense, file:PATH ...; repeatable")
    vectors: str | None = Field(
        None,
        description="a .safetensors file with a vector for every row of file:PATH, made by --model, in tensors named "
        "layer.06/cls",
    )
    text_column: str | None = Field(None, description="file, hf: the column with the texts [default: text]")
    encoding: str = Field("utf-8", description="file: the encoding of the text")
    sep: str | None = Field(None, description="file: what separates the fields of a .csv")
    drop_empty: bool = Field(False, description="file, hf, senteval: leave rows without a text out")
    replace_invalid: bool = Field(False, description="file: replace characters that no text can hold")
    detokenise: bool = Field(False, description="senteval: write tokenised English as usual (don't for do n't)")
    split: str | None = Field(None, description="hf: what to read, train[:1000] or train[:1000],test")
    max_texts: int | None = Field(None, ge=50, le=10**7, description="at most so many texts, seeded")
    model: str | None = Field(None, description="a folder or a hub name, NAME@REVISION; default: the embedded MiniLM")
    layers: str | None = Field(
        None, description="all, 0,3,6 or 1-12; 0 is the embedding output [default: the first, middle and last]"
    )
    readouts: Names = Field(("cls", "mean"), description="what to read at every layer; cls is judged")
    decoders: Names = Field(DECODERS, description="bag, slot, sequence; the last named one of these writes the texts")
    decoder: str | None = Field(
        None, description="the sequence decoder: a causal model, folder or hub name, instead of our own"
    )
    frozen: bool = Field(False, description="--decoder: learn the prefix only, not the model")
    slots: int | None = Field(
        None, ge=1, le=512, description="tokens of the longest text [default: as needed, up to 64]"
    )
    long_rows: Literal["error", "drop"] = Field("error", description="what to do with longer texts")
    beams: int = Field(5, ge=1, le=64, description="candidates of a text")
    corrections: int = Field(3, ge=0, le=100, description="rounds of changing a word and encoding again")
    written: int = Field(200, ge=10, le=10**6, description="test texts that are written, seeded")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="moves the sides, the decoders, the written texts")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where encoder and decoders run")
    cache: str | None = Field(
        None, exclude=True, description="where vectors are kept [default: $CLSPROBE_HOME, else ~/.cache/clsprobe]"
    )

    # ------------------------------------------------------------------------------------------------ before torch

    @cached_property
    def ready(self) -> Ready:
        """Texts read and names checked. Raises InputError; imports no torch."""
        import numpy as np

        check_device(self.device)
        for name in self.decoders:
            if name not in DECODERS:
                raise unknown("--decoders", "decoder", name, DECODERS)
        if not self.decoders or len(set(self.decoders)) < len(self.decoders):
            raise InputError("--decoders", "name each decoder once", f"Choose among {', '.join(DECODERS)}")
        if self.decoder is not None and "sequence" not in self.decoders:
            raise InputError("--decoder", "names a sequence decoder, and --decoders has none", "Add sequence to it")
        if self.frozen and self.decoder is None:
            raise InputError("--frozen", "our own decoder has learned nothing before", "Name a model with --decoder")
        if self.decoder is not None:
            find_causal(self.decoder)
        readouts = [readout.name for readout in parse(self.readouts)]
        if several := [name for name in readouts if name.partition("[")[0] in OF_TOKENS]:
            raise InputError(
                "--readouts", f"'{several[0]}' is no single vector of a text", "Choose among cls, mean ..."
            )
        described = describe(self.model)
        some = f"0,{described.layers // 2},{described.layers}" if described.layers > 2 else "all"
        layers = parse_layers(self.layers or some, described)
        vectors = None
        if self.vectors:
            vectors, layers, readouts = self._given(described)
        if "cls" not in readouts:
            where = vectors.name if vectors else "--readouts"
            raise InputError(where, "the question is about cls", "Name cls among the readouts, as in layer.06/cls")
        given = {n: getattr(self, n) for n in SourceOptions.__dataclass_fields__ if hasattr(self, n)}
        options = SourceOptions(**given | {"text_column": self.text_column or "text"}, label_column=())
        number: dict[str, int] = {}  # text -> its row in the file of vectors
        texts: dict[str, None] = {}
        rows, contents = dict[str, dict[str, Any]](), dict[str, str]()
        words: dict[str, Sequence[tuple[str, str]]] = {}
        for spec in self.task:
            loaded = load(spec, options)
            # Of a treebank every sentence, whatever the property: its tasks leave out some, and hold corrupted ones.
            found = list(loaded.words) or [text for task in loaded.tasks for text in task.texts]
            rows[spec] = {"different texts": len(set(found))}
            contents |= {spec: loaded.digest} if loaded.digest else {}
            if vectors:
                check_count(vectors, spec, loaded.rows)
                (task,) = loaded.tasks
                number = dict(zip(task.texts, [] if task.rows is None else task.rows.tolist(), strict=True))
            words |= loaded.words
            texts |= dict.fromkeys(text for text in found if text.strip())
        if any(PAIRED in text for text in texts):
            raise InputError("--text-column", "names pairs, and one text is written at a time", "Name one column")
        chosen = list(texts)
        if self.max_texts is not None and len(chosen) > self.max_texts:
            from random import Random

            chosen = Random(self.seed).sample(chosen, self.max_texts)
        _enough(chosen, {})
        stored = None
        if vectors:
            at = np.array([number[text] for text in chosen])
            stored = vectors.states(layers, readouts, vectors.check(at, layers, readouts)), at, vectors
            contents |= {str(self.vectors): vectors.digest}
        return Ready(chosen, rows, described, layers, readouts, words, contents, stored)

    def _given(self, described: Description) -> tuple[Vectors, list[int], list[str]]:
        """The file of vectors, and those of its layers and readouts that are asked for."""
        from clsprobe.probes.extraction.vectors import read_vectors

        if len(self.task) > 1:
            raise InputError("--vectors", "belong to the rows of one file", "Give one --task")
        vectors = read_vectors(str(self.vectors))
        whole = self.readouts == type(self).model_fields["readouts"].default
        names = vectors.readouts if whole else vectors.chosen_readouts(self.readouts)
        mend = "Name the encoder that made them with --model, and tensors as in layer.06/cls"
        if vectors.shape[1] != described.dim:
            told = f"its vectors have {vectors.shape[1]:,} dimensions, those of {described.name} {described.dim:,}"
            raise InputError(vectors.name, told, mend)
        try:
            parse(names)
        except InputError as error:
            raise InputError(vectors.name, error.what, mend) from None
        if vectors.layers[-1] > described.layers:
            told = f"it has a layer {vectors.layers[-1]}, and {described.name} no more than {described.layers}"
            raise InputError(vectors.name, told, mend)
        numbers = layer_numbers(self.layers, vectors.layers[-1]) if self.layers else vectors.layers
        return vectors, vectors.chosen_layers(numbers), names

    def settings(self) -> dict[str, Any]:
        """The fields, and the digest of standard input, which they do not tell."""
        contents = self.ready.contents
        return super().settings() | ({"contents": contents} if contents else {})

    def prepare(self) -> list[str]:
        """Read and check; what a run would take."""
        ready = self.ready
        cells = len(ready.layers) * len(ready.readouts)
        told = f"{counted(len(ready.texts), 'different text')}, {ready.described.name}, {counted(cells, 'cell')}"
        return [told, f"decoders: {', '.join(self.decoders)}; texts are written for {self.written:,} of test"]

    # ----------------------------------------------------------------------------------------------------- measure

    def measure(self) -> pd.DataFrame:
        """The table of texts, see `Measured`."""
        return self.measured().texts

    def measured(self, folder: RunFolder | None = None) -> Measured:
        """Encode, train, write. folder: where what the decoders have learned is kept, begun once the texts are read."""
        return _measure(self, folder)

    def run(self, folder: RunFolder) -> Finished:
        """Measure and save, or take up what an interrupted start has measured already; then judge."""
        if kept := folder.remembered("measured"):
            log.info("going on: the measurement in %s is complete", folder.path)
            measured = Measured(folder.load("reconstructions"), folder.load("slots"), **kept)
        else:
            measured = self.measured(folder)
            folder.save("reconstructions", measured.texts)
            folder.save("slots", measured.slots)
            folder.remember(measured={"facts": measured.facts, "notes": measured.notes})
        answer = Answer(
            self.question,
            self.claim,
            self.judge(measured.texts),
            (*self.show(measured.texts), *self.details(measured.slots)),
            (PRIVACY, *measured.notes),
            {"Settings": {k: v for k, v in self.model_dump(mode="json").items() if v not in (None, False)}}
            | measured.facts,
        )
        return Finished({"reconstruct": answer}, measured.facts)

    # ------------------------------------------------------------------------------------------------------- judge

    def judge(self, table: pd.DataFrame) -> Verdict:
        """The share of what the best blind decoder misses that is put right from [CLS]: yes above the margin."""
        from clsprobe.analysis.reconstruction import gained, recovered

        rows = judged(table)
        cls = rows[rows.readout == "cls"]
        told, floor, floor_name = _last(cls), *_floor(cls)
        effect, low, high = recovered(told.likeness.to_numpy(float), floor.likeness.to_numpy(float))
        layer, decoder = int(told.layer.iloc[0]), told.decoder.iloc[0]
        bits = table[(table.decoder == decoder) & (table.source == "vector") & (table.split == "test")]
        bits = bits[(bits.readout == "cls") & (bits.layer == layer)]
        gain, lower, upper = gained(bits)
        because = (
            f"From [CLS] of layer {layer} the {decoder} decoder writes {told.exact.mean():.1%} of {len(told):,} new "
            f"test texts word for word and gets {told.f1.mean():.2f} of the tokens (F1; {floor.f1.mean():.2f} blind: "
            f"{floor_name}). [CLS] tells {gain:.2f} bits a token ({lower:.2f} to {upper:.2f}) of "
            f"{bits.blind.sum() / bits.tokens.sum():.2f}."
        )
        return Verdict.decide(because, effect, low, high, threshold=self.margin)

    # -------------------------------------------------------------------------------------------------------- show

    def show(self, table: pd.DataFrame) -> tuple[Exhibit, ...]:
        """Recovered shares, bits over the layers, all scores, by length and novelty, and examples."""
        return _exhibits(self, table)

    def details(self, slots: pd.DataFrame) -> tuple[Exhibit, ...]:
        """By position in the text, and by how often train has a token."""
        return _details(slots)


# --------------------------------------------------------------------------------------------------------- the tables


def judged(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that texts were written for by the decoder that is judged, of test texts that are new (of all where
    fewer than ten are)."""
    from clsprobe.analysis.reconstruction import NOVEL

    rows = table[(table.split == "test") & table.text.notna() & (table.decoder == table.decoder.iloc[-1])]
    new = rows[rows.novelty >= NOVEL]
    return new if new.row.nunique() >= 10 else rows


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    """The texts of the last stage of writing that there is."""
    stage = next(s for s in ("corrected", "re-ranked", "vector") if (rows.source == s).any())
    return rows[rows.source == stage].sort_values("row")


def _floor(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The blind decoder that is likest to the originals, and its name: chosen on test, which is against the claim."""
    from clsprobe.analysis.reconstruction import BLIND

    blind = rows[rows.source.isin(BLIND)]
    best = str(blind.groupby("source", sort=False).likeness.mean().idxmax())
    return blind[blind.source == best].sort_values("row"), best


def _exhibits(study: Reconstruct, table: pd.DataFrame) -> tuple[Exhibit, ...]:
    import pandas as pd

    from clsprobe.analysis.reconstruction import corpus, gained, gains, marked, mean_of, recovered, signatures

    writer = table.decoder.iloc[-1]
    test = table[(table.split == "test") & (table.source == "vector") & table.bits.notna()]
    grid = gains(test, ["decoder", "layer", "readout"])
    exhibits = []
    for decoder in reversed(list(grid.decoder.unique())):
        what = {
            "sequence": "the only ones that estimate information",
            "slot": "tokens taken for independent of each other",
            "bag": "which tokens there are, order ignored",
        }[decoder]
        exhibits.append(
            Exhibit(
                f"Bits per token that the vector takes off the blind {decoder} decoder's, over the layers, with 95 % "
                f"bands; {what}. Bits of different decoders cannot be compared.",
                grid[grid.decoder == decoder].drop(columns=["decoder", "texts"]).reset_index(drop=True),
                "curves",
                {"metric": "bits per token gained", "baselines": {"blind": 0.0}},
            )
        )
    rows = judged(table)
    shares = []
    for readout, one in rows.groupby("readout", sort=False):
        told, (floor, _) = _last(one), _floor(one)
        value, low, high = recovered(told.likeness.to_numpy(float), floor.likeness.to_numpy(float))
        shares.append((f"{readout}, layer {told.layer.iloc[0]}", value, low, high, len(told)))
    exhibits.insert(
        0,
        Exhibit(
            "Share of what the best blind decoder gets wrong that is put right from the vector (0: nothing, 1: every "
            "text word for word), with 95 % intervals; each readout at the layer that dev chooses. Texts are compared "
            "by the edit distance of their tokens.",
            pd.DataFrame(shares, columns=["name", "value", "low", "high", "count"]),
            "intervals",
            {"metric": "share put right", "reference": {"margin": study.margin}},
        ),
    )
    scores = []
    written = table[(table.split == "test") & table.text.notna()]
    for (decoder, readout, source), one in written.groupby(["decoder", "readout", "source"], sort=False, observed=True):
        gain = gained(one) if one.bits.notna().all() else (float("nan"),) * 3
        f1 = mean_of(one.f1.to_numpy())
        scores.append(
            {
                "decoder": decoder, "readout": readout, "layer": int(one.layer.iloc[0]), "written by": source,
                "bits gained": gain[0], "from": gain[1], "to": gain[2],
                "precision": one.precision.mean(), "recall": one.recall.mean(), "F1": f1[0], "F1 from": f1[1],
                "F1 to": f1[2], "exact": one.exact.mean(), "likeness": one.likeness.mean(),
                **corpus(list(one.original), list(one.text)), "cosine": one.cosine.mean(),
            }
        )  # fmt: skip
    exhibits.append(
        Exhibit(
            f"All scores on the {written.row.nunique():,} test texts that were written. Bits are teacher-forced: every "
            f"token given the true ones before it, 'from' and 'to' their 95 % interval per token; all else is of texts "
            f"that were written freely. F1 counts repeated tokens; cosine is that of the vector of what was written. "
            f"{'; '.join(signatures())}.",
            pd.DataFrame(scores),
        )
    )
    exhibits += [_by(rows, "length", *LENGTHS, "length in tokens"), _by(
        table[(table.split == "test") & table.text.notna() & (table.decoder == writer)], "novelty", *DISTANCES,
        "edit distance to the nearest train text",
    )]  # fmt: skip
    for readout, one in rows.groupby("readout", sort=False):
        told = _last(one).sort_values("likeness", ascending=False, kind="stable")
        middle = len(told) // 2
        parts = {"best": told.head(5), "median": told.iloc[max(0, middle - 2) : middle + 3], "worst": told.tail(5)}
        found = []
        for which, some in parts.items():
            for text in some.itertuples():
                found.append((which, text.likeness, *marked(text.original, text.text)))
        exhibits.append(
            Exhibit(
                f"What was written from {readout} of layer {told.layer.iloc[0]}, beside the originals as the encoder's "
                f"tokenizer spells them: the best, the middle and the worst. In brackets, what the other side lacks.",
                pd.DataFrame(found, columns=["which", "likeness", "original", "written"]),
            )
        )
    return tuple(exhibits)


def _by(rows: pd.DataFrame, column: str, edges: Sequence[float], names: Sequence[str], told: str) -> Exhibit:
    """Bits of every readout in bins of a column, and what was written, beside the best blind decoder's."""
    import pandas as pd

    from clsprobe.analysis.reconstruction import binned, gained

    found = []
    for readout, one in rows.groupby("readout", sort=False):
        parts = _last(one), _floor(one)[0], one[one.source == "vector"]
        for name in names:
            some, floor, bits = (part[binned(part[column].to_numpy(), edges, names) == name] for part in parts)
            if len(some):
                scores = (part[score].mean() for score in ("f1", "likeness", "exact") for part in (some, floor))
                found.append((name, readout, len(some), *gained(bits), *scores))
    columns = [told, "readout", "texts", "bits gained", "from", "to"]
    columns += ["F1", "F1 blind", "likeness", "likeness blind", "exact", "exact blind"]
    what = f"By {told}: bits per token gained, and what was written, beside what the best blind decoder writes."
    return Exhibit(what, pd.DataFrame(found, columns=columns))


def _details(slots: pd.DataFrame) -> tuple[Exhibit, ...]:
    import pandas as pd

    from clsprobe.analysis.reconstruction import binned
    from clsprobe.analysis.stats import wilson

    places = []
    for (readout, slot), one in slots.groupby(["readout", "slot"], sort=False):
        if len(one) >= FEWEST_TOKENS:
            share = one.hit.mean()
            low, high = map(float, wilson(share, len(one)))
            gain = (one.blind - one.bits).mean()
            places.append((int(slot) + 1, readout, share, low, high, one.blind_hit.mean(), len(one), gain))
    columns = ["position", "readout", "value", "low", "high", "blind", "texts", "bits gained"]
    slots = slots.assign(times=binned(slots["count"].to_numpy(), *COUNTS))
    exhibits = [
        Exhibit(
            "By position in the text: how often the token written there is the original's, with 95 % bands; blind: "
            "without input.",
            pd.DataFrame(places, columns=columns).sort_values(["readout", "position"], kind="stable"),
            "curves",
            {"metric": "share of right tokens", "along": "position"},
        ),
        Exhibit(
            "By how often train has a token: bits gained (0 for tokens that train lacks: they have no bits), and how "
            "often it stands anywhere in what was written (blind: without input).",
            _tokens_by(slots, "times", "times in train"),
        ),
    ]
    tagged = slots[slots.tag != ""]
    if len(tagged):
        exhibits.append(
            Exhibit(
                "By part of speech, of the texts whose source knows it: bits gained, and how often a token stands "
                "anywhere in what was written (blind: without input).",
                _tokens_by(tagged, "tag", "part of speech"),
            )
        )
    return tuple(exhibits)


def _tokens_by(slots: pd.DataFrame, column: str, told: str) -> pd.DataFrame:
    """Bits gained and the share that was written, of the tokens of every readout and value of a column."""
    groups = slots.assign(gained=slots.blind - slots.bits).groupby([column, "readout"], observed=True)
    table = groups.agg(
        tokens=("gained", "size"), gained=("gained", "mean"), written=("found", "mean"), blind=("blind_found", "mean")
    )
    table = table.reset_index()
    table = table[table.tokens >= FEWEST_TOKENS]
    return table.rename(columns={column: told, "gained": "bits gained"}).astype({told: str})


# ---------------------------------------------------------------------------------------------------------- measuring


def _measure(study: Reconstruct, folder: RunFolder | None) -> Measured:
    import numpy as np

    from clsprobe.analysis.reconstruction import novelty
    from clsprobe.analysis.writing import Texts, Writer, tables
    from clsprobe.probes.decoders.base import vocabulary
    from clsprobe.probes.encoders.loading import load_encoder
    from clsprobe.probes.extraction.extractor import Extractor
    from clsprobe.probes.extraction.store import usable_folder
    from clsprobe.probes.tasks.split import split
    from clsprobe.probes.tasks.task import Task

    ready = study.ready
    encoder = load_encoder(ready.described, device=study.device)
    texts, ids, left_out = _tokens(study, encoder, ready.texts)
    _enough(texts, left_out)
    if ready.stored:
        states, row_of = ready.stored[0], dict(zip(ready.texts, ready.stored[1].tolist(), strict=True))
        at = np.array([row_of[text] for text in texts])
        _check_given(states, at, texts, encoder)
    else:
        log.info("encoding %s", counted(len(texts), "text"))
        states = Extractor(encoder, ready.readouts, layers=ready.layers, cache=usable_folder(study.cache))(texts)
        at = np.arange(len(texts))
    there = np.flatnonzero(states.present[:, at].all(0))
    if len(there) < len(texts):
        left_out["too short for a readout"] = len(texts) - len(there)
        texts, ids = [texts[i] for i in there], [ids[i] for i in there]
    _enough(texts, left_out)
    sizes = {name: states.width(name) for name in states.readouts}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} has {size:,} numbers" for name, size in sizes.items())
        raise InputError("--readouts", told, "Name readouts of one size")
    vectors = np.stack([states.cell(*cell, at[there]) for cell in states.cells])
    if ready.stored:
        ready.stored[2].check_same()
    task = Task("texts:all:none", texts, np.arange(len(texts), dtype=np.float64), kind="number")  # no labels: numbers
    sides = split(task, seed=study.seed, tokens=[one.tobytes() for one in ids])
    rows = {side: np.flatnonzero(sides.side == side) for side in ("train", "dev", "test")}

    tokens = vocabulary([ids[i] for i in rows["train"]])
    tongue = _own(encoder)
    spoken = dict.fromkeys(study.decoders, (tongue, ids))
    if study.decoder is not None:
        spoken["sequence"] = _foreign(study.decoder, texts)
    if folder is not None:
        folder.begin()  # only now: an error about the texts or the decoder leaves nothing behind
    model: Any = encoder.model
    try:
        embeddings = model.get_input_embeddings().weight.detach().float().cpu().numpy()
    except NotImplementedError:  # CANINE hashes characters: there is no table
        embeddings = None
    writers: dict[str, Writer] = {}
    for name in (name for name in DECODERS if name in study.decoders):
        log.info("training the %s decoder for %s", name, counted(len(states.cells), "cell"))
        spelling, own = spoken[name]
        cut = {side: (vectors[:, at], [own[i] for i in at]) for side, at in rows.items()}
        made = _decoder(name, study, encoder.device.type, max(map(len, own)))
        made.fit(
            *cut["train"],
            dev=cut["dev"],
            embeddings=embeddings if spelling is tongue else None,
            keep=folder.place(f"weights/{name}.safetensors") if folder else None,
        )
        writers[name] = Writer(made, spelling, own)

    def encode(some: Sequence[str], cell: tuple[int, str]) -> np.ndarray:
        layer, readout = cell
        return Extractor(encoder, [readout], layers=[layer], long_rows="truncate")(some).cell(layer, readout)

    log.info("writing texts")
    of = Texts(texts, ids, tongue, vectors, states.cells, rows, ready.words, encode)
    table, slots = tables(
        of, writers, written=study.written, beams=study.beams, corrections=study.corrections, seed=study.seed
    )
    wrote = np.unique(table.row[table.text.notna()])
    new = novelty([texts[i] for i in wrote], [texts[i] for i in rows["train"]])
    table["novelty"] = table.row.map(dict(zip(wrote.tolist(), new, strict=True)))
    unseen = 1 - np.isin(np.concatenate([ids[i] for i in rows["test"]]), tokens).mean()
    facts: dict[str, dict[str, Any]] = {
        "Texts": {side: len(at) for side, at in rows.items()}
        | {f"left out: {why}": n for why, n in {**left_out, **sides.left_out}.items() if n}
        | {f"{spec}: {name}": n for spec, told in ready.rows.items() for name, n in told.items()}
        | {"different tokens in train": len(tokens)},
        "Model": {k: v for k, v in states.source.items() if isinstance(v, str | int)},
        "Versions": states.source["versions"]
        | {p: importlib.metadata.version(p) for p in ("clsprobe", "sacrebleu", "rapidfuzz")},
    }
    notes = [
        f"{unseen:.1%} of the test tokens stand nowhere in train: no decoder can write them, and they have no bits.",
        *_told_of(table),
        *(f"{note}." for note in sides.notes),
    ]
    if encoder.tokenizer.decode(encoder.tokenize(["A"])[0].ids[1:-1]) == "a":
        notes.insert(1, "The encoder's tokenizer drops case; the originals are shown as it spells them.")
    return Measured(table, slots, facts, notes)


def _enough(texts: Sequence[str], left_out: Mapping[str, int]) -> None:
    """Raise InputError where too few texts are there, or have been left: left_out, why and how many were not."""
    if len(texts) < FEWEST:
        told = counted(len(texts), "different text")
        told += "".join(f", {n:,} left out: {why}" for why, n in left_out.items() if n)
        raise InputError("--task", told, f"A decoder needs {FEWEST} at least")


def _check_given(states: States, at: np.ndarray, texts: Sequence[str], encoder: Encoder) -> None:
    """Raise InputError unless the vectors that were given, rows `at` of `states`, are those that the encoder makes.

    Vectors of one cell may all lie in one direction, whatever their texts are: their differences from the mean are
    compared too, unless these are no more than what rounding leaves.
    """
    import numpy as np

    from clsprobe.probes.extraction.extractor import Extractor

    def alike(a: np.ndarray, b: np.ndarray) -> float:
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return float(np.median((a * b).sum(1) / np.maximum(norms, 1e-30)))

    own = Extractor(encoder, states.readouts, layers=states.layers)(texts[:CHECKED])
    for layer, readout in states.cells:
        there = own.present[states.readouts.index(readout)]
        if not there.any():
            continue
        a, b = (
            one.astype(np.float64)[there]
            for one in (states.cell(layer, readout, at[:CHECKED]), own.cell(layer, readout))
        )
        close, mend = alike(a, b), "Name the encoder that made them with --model"
        rounded = _kept(b, states.source["dtype"])
        if close >= ALIKE and alike(rounded - rounded.mean(0), b - b.mean(0)) > (1 + ALIKE) / 2:
            close, mend = alike(a - a.mean(0), b - b.mean(0)), "Give every row of the file its own vector, and --model"
        if close < ALIKE:
            what = f"its {readout} of layer {layer} is not that of {encoder.name} (cosine {close:.2f})"
            raise InputError(states.source["model"], what, mend)


def _kept(vectors: np.ndarray, kind: str) -> np.ndarray:
    """Vectors as precise as a file of this kind of numbers can be relied on to keep them."""
    import numpy as np

    if bits := MANTISSA.get(kind):
        part, power = np.frexp(vectors)
        return np.ldexp(np.round(part * 2**bits), power - bits)
    return np.round(vectors * (127 / max(np.abs(vectors).max(), 1e-30)))


def _tokens(
    study: Reconstruct, encoder: Encoder, texts: list[str]
) -> tuple[list[str], list[np.ndarray], dict[str, int]]:
    """The texts that fit, their content tokens, and how many were left out and why."""
    import numpy as np

    from clsprobe.analysis.sources.tables import shown

    ids = [row.ids[~row.special].astype(np.int64) for row in encoder.tokenize(texts)]
    most = min(study.slots or 64, encoder.description.max_length - len(encoder.tokenize([""])[0].ids))
    long = [i for i, one in enumerate(ids) if len(one) > most]
    if long and study.long_rows == "error":
        some = ", ".join(shown(texts[i], 50) for i in long[:2])
        what = f"{counted(len(long), 'text')} of more than {most} tokens: {some}{' ...' if len(long) > 2 else ''}"
        raise InputError("--slots", what, "Pass --long-rows drop, or more --slots")
    keep = [i for i, one in enumerate(ids) if 0 < len(one) <= most]
    left_out = {f"longer than {most} tokens": len(long), "without a token": len(ids) - len(long) - len(keep)}
    return [texts[i] for i in keep], [ids[i] for i in keep], left_out


def _tongue(tokenizer: Any, read: Callable[[Sequence[str]], list[np.ndarray]]) -> Tongue:
    """A tokenizer of transformers; read: texts -> token ids, special ones left out."""
    from clsprobe.analysis.writing import Tongue

    def ends(text: str) -> list[int]:
        coded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        return [max(end - 1, 0) for _, end in coded["offset_mapping"]]

    return Tongue(
        read,
        lambda ids: str(tokenizer.decode(ids.tolist())),
        lambda ids: list(tokenizer.convert_ids_to_tokens(ids.tolist())),
        ends if tokenizer.is_fast else None,
    )


def _own(encoder: Encoder) -> Tongue:
    """The encoder's tokenizer."""
    return _tongue(
        encoder.tokenizer, lambda texts: [row.ids[~row.special].astype("int64") for row in encoder.tokenize(texts)]
    )


def _foreign(name: str, texts: Sequence[str]) -> tuple[Tongue, list[np.ndarray]]:
    """The tokenizer of another model, and the texts as it reads them. Raises InputError where the model is no decoder,
    or has no places for so many tokens."""
    import numpy as np

    from clsprobe.probes.decoders.sequence import load_causal

    model, tokenizer = load_causal(name)
    places = getattr(model.config, "max_position_embeddings", None)

    def read(texts: Sequence[str]) -> list[np.ndarray]:
        coded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
        return [np.array(ids, np.int64) for ids in coded["input_ids"]]

    ids = read(texts)
    most = max(map(len, ids))
    if places is not None and most >= places:  # the prefix takes one
        what = f"{name} has {places:,} places, and the longest text has {most:,} of its tokens and takes one more"
        raise InputError("--decoder", what, "Pass fewer --slots and --long-rows drop")
    return _tongue(tokenizer, read), ids


def _decoder(name: str, study: Reconstruct, device: str, slots: int) -> Decoder:
    from clsprobe.probes.decoders.bag import BagDecoder
    from clsprobe.probes.decoders.sequence import SequenceDecoder
    from clsprobe.probes.decoders.slot import SlotDecoder

    device = "cpu" if device == "mps" else device  # decoders count in float64, which Apple GPUs lack
    settings: dict[str, Any] = {"slots": slots, "random_state": study.seed, "device": device}
    if name == "sequence":
        return SequenceDecoder(study.decoder, frozen=study.frozen, **settings)
    return (BagDecoder if name == "bag" else SlotDecoder)(**settings)


def _told_of(table: pd.DataFrame) -> list[str]:
    """Layer-0 [CLS], the free negative control; the other readouts beside [CLS]; the gain of encoding again."""
    from clsprobe.analysis.reconstruction import gained

    notes = []
    zero = table[(table.layer == 0) & (table.readout == "cls") & (table.split == "test") & (table.source == "vector")]
    for decoder, rows in zero.groupby("decoder", sort=False):
        value, low, high = gained(rows)
        verdict = "nothing, as it must be" if low <= 0 <= high else "it should tell nothing"
        notes.append(f"[CLS] of layer 0 tells the {decoder} decoder {value:.3f} bits a token: {verdict}.")
    rows = table[(table.decoder == table.decoder.iloc[-1]) & table.text.notna()]
    bits = table[(table.decoder == table.decoder.iloc[-1]) & (table.split == "test") & (table.source == "vector")]
    chosen = rows.groupby("readout", sort=False).layer.first()
    at = {readout: bits[(bits.readout == readout) & (bits.layer == layer)] for readout, layer in chosen.items()}
    for readout, one in at.items():
        if readout != "cls":
            beside = at["cls"].set_index("row").bits.loc[one.row].to_numpy()
            value, low, high = gained(one.assign(blind=beside))
            notes.append(
                f"{readout} of layer {chosen[readout]} tells {value:.2f} bits a token more than cls of layer "
                f"{chosen['cls']} ({low:.2f} to {high:.2f}, over the same texts)."
            )
    for readout, one in rows.groupby("readout", sort=False):
        stages = [(s, one[one.source == s]) for s in ("vector", "re-ranked", "corrected") if (one.source == s).any()]
        if len(stages) > 1:
            told = ", ".join(f"{s} {r.exact.mean():.1%} / {r.f1.mean():.3f} / {r.cosine.mean():.3f}" for s, r in stages)
            notes.append(f"{readout}: exact matches / F1 / cosine by stage of writing: {told}.")
    return notes
