"""Encode the texts, train the decoders, write the test texts: the tables reconstructions and slots.

Texts are split anew into train, dev and test, whatever split their source has. Every decoder is trained on every cell
and without input; the last one writes the texts of the cells that dev chooses.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import numpy as np

from clsprobe.analysis.measured import Measured
from clsprobe.analysis.reconstruction.inputs import ReconstructionInputs, check_enough
from clsprobe.analysis.reconstruction.scores import measure_novelty
from clsprobe.analysis.reconstruction.writing import DecodingData, TextTokenizer, Writer, write_tables
from clsprobe.analysis.rows import list_texts
from clsprobe.analysis.study import counted
from clsprobe.probes.decoders import DECODERS
from clsprobe.probes.decoders.base import Decoder, vocabulary
from clsprobe.probes.decoders.sequence import SequenceDecoder, load_causal
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.extraction.states import States
from clsprobe.probes.extraction.store import make_cache_folder
from clsprobe.probes.tasks.split import split
from clsprobe.probes.tasks.task import Task

if TYPE_CHECKING:
    from clsprobe.analysis.folder import RunFolder

log = logging.getLogger("clsprobe")

COMPARED, ALIKE = 16, 0.98  # texts, and the least cosine of stored vectors with the encoder's
LARGEST_SLOTS = 512  # that --slots takes
MANTISSA = {
    "F64": 18,
    "F32": 18,
    "F16": 11,
    "BF16": 8,
}  # bits; the last bits of float32 differ between batches and machines


def measure_reconstruction(settings: Any, inputs: ReconstructionInputs, folder: RunFolder | None) -> Measured:
    """Tables reconstructions and slots (`writing.write_tables`).

    settings: those of `Reconstruct`. folder: for the decoders' weights; begun once all inputs are checked.
    """
    encoder = load_encoder(inputs.description, device=settings.device)
    texts, ids, reason_of = _select_fitting(settings, encoder, inputs)
    check_enough(texts, Counter(reason_of.values()))
    states, rows = _read_states(settings, inputs, encoder, texts)
    present = np.flatnonzero(states.present[:, rows].all(0))
    if len(present) < len(texts):
        reason_of |= dict.fromkeys(set(texts) - {texts[i] for i in present}, "too short for a readout")
        texts, ids, rows = [texts[i] for i in present], [ids[i] for i in present], rows[present]
    check_enough(texts, Counter(reason_of.values()))
    sizes = {name: states.width(name) for name in states.readouts}
    if len(set(sizes.values())) > 1:
        what = ", ".join(f"{name} has {size:,} numbers" for name, size in sizes.items())
        raise InputError("--readouts", what, "Name readouts of one size")
    vectors = np.stack([states.cell(*cell, rows) for cell in states.cells])
    if inputs.stored:
        inputs.stored.file.check_unchanged()
    row_of = {text: row for row, text in enumerate(inputs.texts)}
    places = inputs.places.take(np.array([row_of[text] for text in texts]))
    numbers = np.arange(len(texts), dtype=np.float64)  # there are no labels
    task = Task("texts:all:none", texts, numbers, kind="number", places=places)
    dealt = split(task, seed=settings.seed, tokens=[token_ids.tobytes() for token_ids in ids])
    sides = {side: np.flatnonzero(dealt.side == side) for side in ("train", "dev", "test")}

    tokens = vocabulary([ids[i] for i in sides["train"]])
    tokenizer = _own_tokenizer(encoder)
    tokenized = dict.fromkeys(settings.decoders, (tokenizer, ids))
    decoder_notes: list[str] = []
    if settings.decoder is not None:
        foreign, decoder_ids, decoder_notes = _foreign_tokenizer(settings.decoder, texts)
        tokenized["sequence"] = foreign, decoder_ids
    if folder is not None:
        folder.begin()  # only now, so that an error in the inputs leaves no folder
    embeddings = _embedding_table(encoder)
    writers: dict[str, Writer] = {}
    for name in (name for name in DECODERS if name in settings.decoders):
        log.info("training the %s decoder for %s", name, counted(len(states.cells), "cell"))
        decoder_tokenizer, decoder_ids = tokenized[name]
        decoder = make_decoder(name, settings, encoder.device.type, max(map(len, decoder_ids)))
        examples = {side: (vectors[:, rows], [decoder_ids[i] for i in rows]) for side, rows in sides.items()}
        checkpoint = Path("weights", f"{name}.safetensors")
        if folder is not None:
            folder.reserve(path.as_posix() for path in decoder.checkpoints(checkpoint, len(vectors)))
        decoder.fit(
            *examples["train"],
            dev=examples["dev"],
            embeddings=embeddings if decoder_tokenizer is tokenizer else None,
            checkpoint=folder.path / checkpoint if folder else None,
        )
        if name == "sequence" and settings.decoder is not None:
            settings.decoder_model.check_unchanged()
        writers[name] = Writer(decoder, decoder_tokenizer, decoder_ids)

    def encode(candidates: Sequence[str], cell: tuple[int, str]) -> np.ndarray:
        layer, readout = cell
        return Extractor(encoder, [readout], layers=[layer], long_rows="truncate")(candidates).cell(layer, readout)

    log.info("writing texts")
    data = DecodingData(texts, ids, tokenizer, vectors, states.cells, sides, inputs.words, encode)
    limits = {"written": settings.written, "beams": settings.beams, "corrections": settings.corrections}
    table, slots = write_tables(data, writers, **limits, seed=settings.seed)
    written = np.unique(table.row[table.text.notna()])
    distances = measure_novelty([texts[i] for i in written], [texts[i] for i in sides["train"]])
    table["novelty"] = table.row.map(dict(zip(written.tolist(), distances, strict=True)))
    unseen = 1 - np.isin(np.concatenate([ids[i] for i in sides["test"]]), tokens).mean()
    counts = {side: len(rows) for side, rows in sides.items()}
    reason_of |= dict(zip(texts, dealt.reason.tolist(), strict=True))
    reasons = Counter(reason for reason in reason_of.values() if reason)
    counts |= {f"left out: {reason}": n for reason, n in reasons.items()}
    side_of = dict(zip(texts, dealt.side.tolist(), strict=True))
    listed = list_texts(
        inputs.places,
        np.array([side_of.get(text, "") for text in inputs.texts]),
        np.array([reason_of[text] for text in inputs.texts]),
        inputs.unread,
        seed=settings.seed,
    )
    packages = ("clsprobe", "sacrebleu", "rapidfuzz")
    facts = {
        "rows": {"texts": counts | {"different tokens in train": len(tokens)}},
        "read": inputs.rows,
        "model": {name: value for name, value in states.source.items() if isinstance(value, str | int)},
        "versions": states.source["versions"] | {name: importlib.metadata.version(name) for name in packages},
    }
    notes = [
        f"{unseen:.1%} of the test tokens stand nowhere in train: no decoder can write them, and they have no bits.",
        *(f"{note}." for note in dealt.notes),
        *states.source.get("notes", ()),
        *decoder_notes,
    ]
    (capital,) = encoder.tokenize(["A"])
    if encoder.tokenizer.decode(capital.ids[~capital.special]) == "a":
        notes.insert(1, "The encoder's tokenizer drops case; the originals are shown as it spells them.")
    return Measured({"reconstructions": table, "slots": slots, "rows": listed}, facts, notes)


def _select_fitting(
    settings: Any, encoder: Encoder, inputs: ReconstructionInputs
) -> tuple[list[str], list[np.ndarray], dict[str, str]]:
    """The texts that fit, their content tokens, and text -> reason for those that are left out."""
    texts = inputs.texts
    ids = [row.ids[~row.special].astype(np.int64) for row in encoder.tokenize(texts)]
    room = encoder.description.max_length - len(encoder.tokenize([""])[0].ids)
    limit = min(settings.slots or 64, room)
    too_long = [i for i, token_ids in enumerate(ids) if len(token_ids) > limit]
    if too_long and settings.long_rows == "error":
        longest = max(map(len, ids))
        listed = inputs.places.describe(np.array(too_long), 5)
        what = f"{counted(len(too_long), 'text')} of more than {limit} tokens ({listed})"
        more = f", or --slots {longest}" if longest <= min(room, LARGEST_SLOTS) else ""
        raise InputError("--slots", what, f"Pass --long-rows drop{more}")
    fitting = [i for i, token_ids in enumerate(ids) if 0 < len(token_ids) <= limit]
    reason_of = {texts[i]: f"longer than {limit} tokens" for i in too_long}
    reason_of |= {text: "without a token" for text, token_ids in zip(texts, ids, strict=True) if not len(token_ids)}
    return [texts[i] for i in fitting], [ids[i] for i in fitting], reason_of


def _read_states(
    settings: Any, inputs: ReconstructionInputs, encoder: Encoder, texts: list[str]
) -> tuple[States, np.ndarray]:
    """The vectors of the texts, and the row of each in them."""
    if stored := inputs.stored:
        row_of = dict(zip(inputs.texts, stored.rows.tolist(), strict=True))
        rows = np.array([row_of[text] for text in texts])
        _check_stored(stored.states, rows, texts, encoder)
        return stored.states, rows
    log.info("encoding %s", counted(len(texts), "text"))
    extract = Extractor(encoder, inputs.readouts, layers=inputs.layers, cache=make_cache_folder(settings.cache))
    return extract(texts), np.arange(len(texts))


def _check_stored(states: States, rows: np.ndarray, texts: Sequence[str], encoder: Encoder) -> None:
    """Raise InputError unless the stored vectors, `rows` of `states`, are those of the encoder.

    All vectors of a cell may have nearly the same direction: their differences from the mean are compared too, unless
    these are within rounding error.
    """

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return float(np.median((a * b).sum(1) / np.maximum(norms, 1e-30)))

    encoded = Extractor(encoder, states.readouts, layers=states.layers)(texts[:COMPARED])
    for layer, readout in states.cells:
        present = encoded.present[states.readouts.index(readout)]
        if not present.any():
            continue
        a, b = (
            vectors.astype(np.float64)[present]
            for vectors in (states.cell(layer, readout, rows[:COMPARED]), encoded.cell(layer, readout))
        )
        close, mend = cosine(a, b), "Name the encoder that made them with --model"
        rounded = _round_vectors(b, states.source["dtype"])
        if close >= ALIKE and cosine(rounded - rounded.mean(0), b - b.mean(0)) > (1 + ALIKE) / 2:
            close, mend = cosine(a - a.mean(0), b - b.mean(0)), "Give every row of the file its own vector, and --model"
        if close < ALIKE:
            what = f"its {readout} of layer {layer} is not that of {encoder.name} (cosine {close:.2f})"
            raise InputError(states.source["model"], what, mend)


def _round_vectors(vectors: np.ndarray, kind: str) -> np.ndarray:
    """Vectors rounded to the precision of this number format."""
    if bits := MANTISSA.get(kind):
        part, power = np.frexp(vectors)
        return np.ldexp(np.round(part * 2**bits), power - bits)
    return np.round(vectors * (127 / max(np.abs(vectors).max(), 1e-30)))


# ----------------------------------------------------------------------------------------------- decoders, tokenizers


def _embedding_table(encoder: Encoder) -> np.ndarray | None:
    """(token id, dim) the encoder's embedding table; None if it has none (CANINE hashes characters)."""
    model: Any = encoder.model
    try:
        return model.get_input_embeddings().weight.detach().float().cpu().numpy()
    except NotImplementedError:
        return None


def make_decoder(name: str, settings: Any, device: str, slots: int) -> Decoder:
    """An unfitted decoder. device: of the encoder. slots: tokens of the longest text."""
    device = "cpu" if device == "mps" else device  # decoders use float64, which Apple GPUs lack
    common: dict[str, Any] = {"slots": slots, "random_state": settings.seed, "device": device}
    if name == "sequence":
        return SequenceDecoder(settings.decoder, frozen=settings.frozen, **common)
    decoder: Decoder = resolve_name(DECODERS[name])(**common)
    return decoder


def _make_tokenizer(tokenizer: Any, tokenize: Callable[[Sequence[str]], list[np.ndarray]]) -> TextTokenizer:
    """Wrap a tokenizer of transformers. tokenize: texts -> token ids without special tokens."""

    def find_last_characters(text: str) -> list[int]:
        encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        return [max(end - 1, 0) for _, end in encoded["offset_mapping"]]

    return TextTokenizer(
        tokenize,
        lambda ids: str(tokenizer.decode(ids.tolist())),
        lambda ids: list(tokenizer.convert_ids_to_tokens(ids.tolist())),
        find_last_characters if tokenizer.is_fast else None,
    )


def _own_tokenizer(encoder: Encoder) -> TextTokenizer:
    """The encoder's tokenizer."""
    return _make_tokenizer(
        encoder.tokenizer, lambda texts: [row.ids[~row.special].astype("int64") for row in encoder.tokenize(texts)]
    )


def _foreign_tokenizer(name: str, texts: Sequence[str]) -> tuple[TextTokenizer, list[np.ndarray], list[str]]:
    """The tokenizer of another model, its token ids of the texts, and notes on its files.

    Raises InputError if the model is not a decoder or has too few positions.
    """
    model, loaded = load_causal(name)
    tokenizer = loaded.tokenizer
    places = getattr(model.config, "max_position_embeddings", None)

    def tokenize(texts: Sequence[str]) -> list[np.ndarray]:
        encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
        return [np.array(ids, np.int64) for ids in encoded["input_ids"]]

    ids = tokenize(texts)
    longest = max(map(len, ids))
    if places is not None and longest >= places:  # the prefix takes one
        what = f"{name} has {places:,} places, and the longest text has {longest:,} of its tokens and takes one more"
        raise InputError("--decoder", what, "Pass fewer --slots and --long-rows drop")
    return _make_tokenizer(tokenizer, tokenize), ids, [f"{name}: {note}" for note in loaded.notes]
