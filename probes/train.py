"""Fine-tuning: the whole encoder learns with one linear head on one readout.

1. `arranged` gives an encoder that sees its texts differently: a *new* token put in (``new@first``, ``new@middle``,
   ``new@last``), [CLS] moved behind everything else (``cls@last``), [CLS] taken out (``mean@no_cls``). Whatever reads
   an encoder reads this one as well.
2. `batches` is the order of the data: texts of like length in a batch, a function of lengths and seed alone, so that
   two readouts see the same texts at the same steps.
3. `fine_tune` runs AdamW (Loshchilov & Hutter 2019) with linear warm-up and decay and clipped gradients over them. A
   batch of long texts is taken in parts whose gradients are added up. Nothing drops out: two runs then differ in their
   readout alone, and a step depends on nothing but the weights and the data.
4. `Checkpoint` writes weights, moments and the step as safetensors, replaced as a whole: a run that was killed goes on
   from there, and ends with the same bits on a CPU.
5. In bfloat16 the products are cast (autocast), the weights and their updates stay float32: an update of a thousandth
   of a weight is lost in bfloat16, which keeps 8 bits of it.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from clsprobe.probes.encoder import Encoder, Row, Rows
from clsprobe.probes.errors import InputError
from clsprobe.probes.extract import evaluating, plan, tap
from clsprobe.probes.readout import (
    Attention,
    Batch,
    New,
    Normed,
    Readout,
    arrangement,
    parse,
    within,
)
from clsprobe.probes.write import make_folder, replacing

if TYPE_CHECKING:
    from clsprobe.probes.linear import LogisticProbe

MEGABATCH = 32  # batches that are sorted by length together
BUDGET = {"cpu": 2_048, "cuda": 32_768, "mps": 8_192}  # padded tokens that go forward and back together
SAVED = 120.0  # seconds between two checkpoints
_DRAWING = Lock()  # torch's generator is everybody's: whoever seeds it draws alone
ROOM = 1.1  # of its size: what a checkpoint wants to find free, beside the one that it replaces


@dataclass(frozen=True)
class Recipe:
    """How an encoder is trained.

    rate: the largest step of the encoder's weights. head_rate: that of the head, which starts from nothing. batch:
    texts. warmup: the share of the steps in which the rates rise. decay: the weight decay of matrices. clip: the
    largest norm of a gradient. seed: moves the order of the texts and the head's start. lora: the rank of adapters in
    all linear maps that are trained in place of the encoder (Hu et al. 2022; needs peft), 0 to train everything.
    """

    rate: float = 1e-4
    epochs: int = 3
    seed: int = 0
    head_rate: float = 5e-3
    batch: int = 32
    warmup: float = 0.1
    decay: float = 0.01
    clip: float = 1.0
    lora: int = 0


class Step(NamedTuple):
    """One line of the log. step: counted from 1. loss: nats a text. dev: accuracy after it, NaN where not taken."""

    step: int
    loss: float
    dev: float


# ---------------------------------------------------------------------------------------------------- arrangements


@dataclass(frozen=True, eq=False)
class Arranged(Encoder):
    """An encoder whose texts are rearranged after they are tokenized. arrange: a text's tokens -> which of them, in
    which order, -1 for the new one."""

    arrange: Callable[[Row], np.ndarray] = lambda row: np.arange(len(row.ids))
    new: int = -1  # the id of the new token

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> Rows:
        """As `Encoder.tokenize`; a new token comes on top of `max_length`, where the encoder has room for it."""
        if max_length is not None and self.new >= 0:
            max_length = min(max_length, self.description.max_length - 1)
        rows = super().tokenize(texts, max_length)
        parts = [self._taken(row) for row in rows]
        if not parts:
            return rows
        ids, special, types = (np.concatenate(part) for part in zip(*parts, strict=True))
        lengths = np.array([len(part[0]) for part in parts], rows.lengths.dtype)
        return replace(
            rows, ids=ids, special=special, types=types, lengths=lengths, full=rows.full + lengths - rows.lengths
        )

    def _taken(self, row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids, special and types of a text; the new token is of the text that it stands before."""
        order = self.arrange(row)
        new = order < 0
        near = np.where(new, np.append(order[1:], order[-1:]), order)
        types = np.zeros(len(row.ids), np.int8) if row.types is None else row.types
        ids = np.where(new, self.new, row.ids[near]).astype(row.ids.dtype)
        return ids, np.where(new, True, row.special[near]), types[near]


def arranged(encoder: Encoder, name: str) -> tuple[Encoder, Readout]:
    """The encoder that a readout's name asks for, and the readout.

    ``cls``, ``mean`` ...: the encoder itself. ``cls@last``: [CLS] stands behind the last token. ``mean@no_cls`` and the
    like: it stands nowhere. ``new@first``, ``new@middle``, ``new@last``: a new token before everything, in the middle
    of the content, behind its last token; it starts as the mean of all others (Hewitt 2021). Where a norm follows the
    last layer the readout is taken after it. Raises InputError for a name that is none, or that this encoder lacks.
    """
    plain, where = arrangement(name)
    readout: Readout
    made: Encoder = encoder
    parts = {part: getattr(encoder, part) for part in Encoder.__dataclass_fields__}
    if plain == "new":
        model, token = _with_new_token(encoder)
        parts |= {"model": model, "blocks": [model.get_submodule(point.module) for point in encoder.points[1:]]}
        made, readout = Arranged(**parts, arrange=_PLACES[where], new=token), New(where, token)
    else:
        (readout,) = parse([plain])
        if where:
            move = _behind if where == "last" else _without
            made = Arranged(**parts, arrange=lambda row: move(row, encoder.cls_id))
    added = encoder.tokenize([""])[0].ids
    named = [part.name for part in within(readout)]
    for special, own in (("cls", encoder.cls_id), ("sep", encoder.sep_id)):
        if own not in added and (special in named or (special, where) == ("cls", "no_cls")):
            told = f"the tokenizer of {encoder.name} adds no {special} token"
            raise InputError(f"--readouts {name}", told, "Choose another readout")
    if where == "no_cls" and "cls" in named:
        raise InputError(f"--readouts {name}", "reads what it takes out", "Choose another readout")
    if encoder.norm is None and isinstance(readout, Normed):
        raise InputError(f"--readouts {name}", f"no norm follows the last layer of {encoder.name}", "Leave it out")
    return made, readout if encoder.norm is None or isinstance(readout, Normed) else Normed(readout)


def _behind(row: Row, cls: int | None) -> np.ndarray:
    first = (row.ids == cls) & row.special
    return np.concatenate([np.flatnonzero(~first), np.flatnonzero(first)])


def _without(row: Row, cls: int | None) -> np.ndarray:
    return np.flatnonzero(~((row.ids == cls) & row.special))


def _with(row: Row, at: int) -> np.ndarray:
    return np.insert(np.arange(len(row.ids)), at, -1)


def _middle(row: Row) -> np.ndarray:
    content = np.flatnonzero(~row.special)
    return _with(row, int(content[len(content) // 2]) if len(content) else len(row.ids))


def _end(row: Row) -> np.ndarray:
    content = np.flatnonzero(~row.special)
    return _with(row, int(content[-1]) + 1 if len(content) else len(row.ids))


_PLACES: dict[str, Callable[[Row], np.ndarray]] = {"first": lambda row: _with(row, 0), "middle": _middle, "last": _end}


def _with_new_token(encoder: Encoder) -> tuple[nn.Module, int]:
    """A copy of the model with one more row in its table of words, and the number of that row."""
    model: Any = deepcopy(encoder.model)
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise InputError(encoder.name, "has no table of words to put a new token in", "Leave new@ out of --readouts")
    known = table.weight.detach()
    wider = torch.cat([known, known.mean(0, keepdim=True)])
    model.set_input_embeddings(nn.Embedding.from_pretrained(wider, padding_idx=table.padding_idx))
    return model, len(known)


def _copied(encoder: Encoder) -> Encoder:
    model = deepcopy(encoder.model)
    return replace(encoder, model=model, blocks=[model.get_submodule(point.module) for point in encoder.points[1:]])


def present(encoder: Encoder, name: str, texts: Sequence[str], max_length: int | None = None) -> np.ndarray:
    """(text,) whether each text has what a readout reads."""
    plain, _ = arrangement(name)
    if plain == "new":
        return np.ones(len(texts), bool)
    _, readout = arranged(encoder, plain)
    rows = encoder.tokenize(texts, max_length)
    parts = [readout.present(encoder.batch(rows[at : at + 1000])).cpu().numpy() for at in range(0, len(rows), 1000)]
    return np.concatenate([np.zeros(0, bool), *parts])


# ---------------------------------------------------------------------------------------------------------- batches


def batches(lengths: np.ndarray, size: int, seed: int, epoch: int, *, equal: bool = False) -> list[np.ndarray]:
    """Row numbers of every batch of one epoch, texts of like length together, the batches in random order.

    lengths: (text,) tokens. equal: texts of one length only, so that nothing is padded. A pure function: whoever trains
    from another readout sees the same texts at the same steps.
    """
    random = np.random.default_rng([seed, epoch])
    drawn = random.permutation(len(lengths))
    found: list[np.ndarray] = []
    for start in range(0, len(drawn), size * MEGABATCH):
        some = drawn[start : start + size * MEGABATCH]
        some = some[np.argsort(-lengths[some], kind="stable")]
        for part in np.split(some, np.flatnonzero(np.diff(lengths[some])) + 1) if equal else [some]:
            found += [part[at : at + size] for at in range(0, len(part), size)]
    return [found[i] for i in random.permutation(len(found))]


def schedule(
    encoder: Encoder, texts: Sequence[str], recipe: Recipe, max_length: int | None = None
) -> list[list[np.ndarray]]:
    """The batches of every epoch, of texts as they are before anything is rearranged: the same for every readout.

    Raises InputError for fewer texts than a batch.
    """
    if len(texts) < recipe.batch:
        told = f"{len(texts)} training texts are fewer than a batch of {recipe.batch}"
        raise InputError("training", told, "Give more texts")
    lengths, equal = encoder.tokenize(texts, max_length).lengths, _leaks(encoder)
    return [batches(lengths, recipe.batch, recipe.seed, epoch, equal=equal) for epoch in range(recipe.epochs)]


# ------------------------------------------------------------------------------------------------------- the network


class _Network(nn.Module):
    """An encoder's model, a pooling that is learned where the readout is one, and a linear head."""

    def __init__(self, encoder: Encoder, readout: Readout, classes: int) -> None:
        super().__init__()
        self.model = encoder.model
        dim = encoder.description.dim
        inner = readout.of if isinstance(readout, Normed) else readout
        learned = isinstance(inner, Attention)
        self.query = nn.Parameter(torch.zeros(dim, device=encoder.device)) if learned else None
        width = dim if learned else readout.width(dim)
        self.head = nn.utils.skip_init(nn.Linear, width, classes, device=encoder.device)  # `_prepared` draws it

    def pooled(self, hidden: Tensor, batch: Batch, readout: Readout) -> Tensor:
        """(batch, token, dim) -> (batch, width), float32."""
        if self.query is None:
            return readout.read(hidden, batch).float()
        wide = hidden.float()
        scores = (wide @ self.query / wide.shape[2] ** 0.5).masked_fill(~batch.real, -torch.inf)
        return (scores.softmax(1)[..., None] * wide.where(batch.real[..., None], 0)).sum(1)


@dataclass(frozen=True, eq=False)
class Tuned:
    """An encoder as it was trained, with its head.

    encoder: its own copy of the model. order: a digest of which text was seen at which step. log: every step so far.
    """

    encoder: Encoder
    readout: Readout
    network: _Network
    dtype: str
    max_length: int | None
    order: str = ""
    log: list[Step] = field(default_factory=list)

    def log_proba(self, texts: Sequence[str]) -> np.ndarray:
        """(text, class), nats. Raises InputError for a text that lacks what is read."""
        rows = self.encoder.tokenize(texts, self.max_length)
        found = np.empty((len(rows), self.network.head.out_features))
        leaks = _leaks(self.encoder)
        with evaluating(self.network.model), torch.no_grad():
            for chosen in plan(rows.lengths, BUDGET[self.encoder.device.type], equal=leaks):
                logits = self.logits(self.encoder.batch([rows[int(i)] for i in chosen]))
                found[chosen] = logits.double().log_softmax(1).cpu().numpy()
        if np.isnan(found).any():
            raise InputError(self.readout.name, "some texts are shorter", "Leave this readout out")
        return found

    def logits(self, batch: Batch) -> Tensor:
        """(batch, class), float32."""
        kept: list[Tensor] = []
        last = len(self.encoder.points) - 1
        with self._cast(), tap(self.encoder, lambda _, hidden: kept.append(hidden), [last]):
            self.encoder.forward(batch, gradients=torch.is_grad_enabled())
            (hidden,) = kept
            if isinstance(self.readout, Normed):
                assert self.encoder.norm is not None
                hidden = self.encoder.norm(hidden)
        inner = self.readout.of if isinstance(self.readout, Normed) else self.readout
        return self.network.head(self.network.pooled(hidden, batch, inner))

    def _cast(self) -> AbstractContextManager[Any]:
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.encoder.device.type, getattr(torch, self.dtype))


def optimum(probe: LogisticProbe) -> tuple[np.ndarray, np.ndarray]:
    """Weights (class, dim) and intercepts (class,) of a probe of one cell, on features as they are.

    As the `head` of `fine_tune`, training starts where the frozen encoder's probe has ended (Kumar et al. 2022).
    """
    weights = probe.coef_[0, 0] / probe.scale_[0]
    return weights, probe.intercept_[0, 0] - weights @ probe.mean_[0]


# ---------------------------------------------------------------------------------------------------------- training


@torch.enable_grad()
def fine_tune(
    encoder: Encoder,
    readout: str,
    texts: Sequence[str],
    y: np.ndarray,
    recipe: Recipe,
    *,
    dev: tuple[Sequence[str], np.ndarray],
    dtype: str = "float32",
    max_length: int | None = None,
    head: tuple[np.ndarray, np.ndarray] | None = None,
    checkpoint: Path | None = None,
    watched: Collection[int] = (),
    watch: Callable[[int, Tuned], None] | None = None,
    bar: tqdm | None = None,
) -> Tuned:
    """Train a copy of the encoder with a linear head on `readout` (see `arranged`), and return it.

    y: (text,) codes, of all classes together 0..K-1. dev: texts and codes, scored after every epoch and never learned
    from. dtype: "bfloat16" casts the products. head: weights (class, width) and intercepts (class,) to start from.
    checkpoint: a file to go on from, and to write every `SAVED` seconds. watch: called with the step and what has been
    trained so far at the steps of `watched`, 0 among them before the first. bar: of steps, shared with other runs.

    Raises InputError for a readout that the encoder lacks, fewer texts than a batch, a checkpoint of another run or
    without room on the disk, and a loss that is no number.
    """
    made, how = arranged(encoder, readout)
    if made.model is encoder.model:
        made = _copied(made)
    classes = int(max(y.max(), dev[1].max())) + 1
    tuned = _prepared(made, how, classes, recipe, dtype, max_length, head)
    rows = tuned.encoder.tokenize(texts, max_length)
    if not present(encoder, readout, texts, max_length).all():
        raise InputError(f"--readouts {readout}", "some training texts are shorter", "Leave this readout out")
    epochs = schedule(encoder, texts, recipe, max_length)
    steps = [batch for epoch in epochs for batch in epoch]
    ends = set(np.cumsum([len(epoch) for epoch in epochs]).tolist())
    tuned = replace(tuned, order=_digest_of(steps))
    parameters = {name: one for name, one in tuned.network.named_parameters() if one.requires_grad}
    optimiser = _optimiser(parameters, recipe, encoder.device.type)
    key = {
        "encoder": encoder.description.digest,
        "untrained": encoder.untrained,
        "readout": readout,
        "recipe": asdict(recipe),
        "dtype": dtype,
        "order": tuned.order,
        "data": _digest_of_data(texts, y),
        "dev": _digest_of_data(*dev),
        "max_length": max_length,
        "head": None if head is None else _digest_of(head),
        "shapes": {name: list(one.shape) for name, one in parameters.items()},
    }
    kept = None if checkpoint is None else Checkpoint(checkpoint, key)
    done = kept.read(parameters, optimiser, tuned.log) if kept else 0
    if kept:
        kept.look_for_room(parameters)
    if watch and 0 in watched and not done:
        watch(0, tuned)

    codes = torch.from_numpy(np.asarray(y, np.int64)).to(encoder.device)
    own = (
        tqdm(total=len(steps), desc=readout, unit=" steps", delay=1, disable=None, leave=False) if bar is None else bar
    )
    own.update(done)
    saved = time.monotonic()
    with evaluating(tuned.network.model):
        for step, chosen in enumerate(steps, 1):
            if step <= done:
                continue
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * _share(step, len(steps), recipe.warmup)
            loss = 0.0
            for part in _parts(chosen, rows.lengths, BUDGET[encoder.device.type]):
                logits = tuned.logits(tuned.encoder.batch([rows[int(i)] for i in part]))
                nats = functional.cross_entropy(logits, codes[torch.from_numpy(part)], reduction="sum") / len(chosen)
                nats.backward()
                loss += nats.item()
            if not np.isfinite(loss):
                what = f"training from {readout} has diverged at step {step}"
                raise InputError(f"--rates {recipe.rate:g}", what, "Give a smaller one")
            nn.utils.clip_grad_norm_(parameters.values(), recipe.clip)
            optimiser.step()
            optimiser.zero_grad()
            score = _accuracy(tuned, *dev) if step in ends else np.nan
            tuned.log.append(Step(step, loss, score))
            own.update()
            if step in ends:
                own.set_postfix_str(f"{readout}, dev {score:.3f}")
            if watch and step in watched:
                watch(step, tuned)
            if kept and step < len(steps) and time.monotonic() - saved > SAVED:
                kept.write(step, parameters, optimiser, tuned.log)
                saved = time.monotonic()
    if bar is None:
        own.close()
    return tuned


def _prepared(
    encoder: Encoder,
    readout: Readout,
    classes: int,
    recipe: Recipe,
    dtype: str,
    max_length: int | None,
    head: tuple[np.ndarray, np.ndarray] | None,
) -> Tuned:
    """The network before its first step; whatever of the encoder is trained wants gradients."""
    model: Any = encoder.model
    if dtype != "float32" and encoder.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")  # its fused form is slower backwards in bfloat16, where texts are short
    if recipe.lora:
        _adapt(model, recipe.lora, encoder.name)
    else:
        model.requires_grad_(True)
    if isinstance(encoder, Arranged) and encoder.new >= 0:
        table = model.get_input_embeddings().weight.requires_grad_(True)
        if recipe.lora:  # the rest of the table stays what it was, as for the other readouts
            own = torch.zeros(len(table), 1, device=table.device, dtype=table.dtype)
            own[encoder.new] = 1
            table.register_hook(lambda gradient: gradient * own)
    network = _Network(encoder, readout, classes)
    generator = torch.Generator().manual_seed(recipe.seed)
    weights = torch.randn(network.head.weight.shape, generator=generator) * 0.02
    start = (weights, torch.zeros(classes)) if head is None else tuple(torch.from_numpy(part) for part in head)
    with torch.no_grad():
        for parameter, value in zip((network.head.weight, network.head.bias), start, strict=True):
            parameter.copy_(value)
    return Tuned(encoder, readout, network, dtype, max_length)


def _adapt(model: Any, rank: int, name: str) -> None:
    """Low-rank adapters in all linear maps, in place; they alone are trained."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError("--lora", "needs the package peft", "Run pip install 'clsprobe[lora]'") from None
    model.requires_grad_(False)
    inner = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    if not inner:
        raise InputError("--lora", f"{name} has no linear maps", "Leave it out")
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(inner)), model)


def _optimiser(parameters: dict[str, nn.Parameter], recipe: Recipe, device: str) -> torch.optim.AdamW:
    """Matrices decay, vectors and adapters do not; the head and a query of its own have a rate of their own."""
    groups = []
    for own in (False, True):
        for matrix in (False, True):
            chosen = [
                p for name, p in parameters.items() if name.startswith("model.") != own and (p.ndim > 1) == matrix
            ]
            rate = recipe.head_rate if own else recipe.rate
            decay = recipe.decay if matrix and (own or not recipe.lora) else 0.0
            if chosen:
                groups.append({"params": chosen, "lr": rate, "peak": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, fused=device in ("cpu", "cuda"))


def _share(step: int, steps: int, warmup: float) -> float:
    """What of the largest rate step 1 .. steps has: rising over the warm-up, then falling to nothing."""
    rising = max(1, round(warmup * steps))
    return step / rising if step <= rising else (steps - step + 1) / (steps - rising + 1)


def _parts(chosen: np.ndarray, lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """A batch in parts of at most `budget` padded tokens."""
    for part in plan(lengths[chosen], budget):
        yield chosen[part]


def _accuracy(tuned: Tuned, texts: Sequence[str], y: np.ndarray) -> float:
    return float((tuned.log_proba(texts).argmax(1) == y).mean())


def _leaks(encoder: Encoder) -> bool:
    return bool(encoder.adapter.leaks or encoder.checked.get("leaks"))


def _digest_of(arrays: Sequence[np.ndarray]) -> str:
    total = sha256()
    for one in arrays:
        total.update(f"{one.dtype} {one.shape} ".encode() + one.tobytes())
    return total.hexdigest()


def _digest_of_data(texts: Sequence[str], y: np.ndarray) -> str:
    total = sha256(np.asarray(y, np.int64).tobytes())
    for text in texts:
        coded = text.encode("utf-8", "surrogatepass")
        total.update(len(coded).to_bytes(8, "little") + coded)
    return total.hexdigest()


class Checkpoint:
    """A run on disk: one safetensors file with weights, moments and the log, replaced as a whole.

    key: what tells this run from others; a file of another one is refused.
    """

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        self.path, self.key = path, json.dumps(key, sort_keys=True)

    def read(self, parameters: dict[str, nn.Parameter], optimiser: torch.optim.AdamW, log: list[Step]) -> int:
        """Set everything to what was written, and return the step; 0 where there is no file."""
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return 0
        again = "Remove it to start again, or name another folder"
        try:
            with safe_open(self.path, "pt") as file:
                told = file.metadata() or {}
                if told.get("run") != self.key:
                    raise InputError(str(self.path), "is a checkpoint of another run", again)
                step, lines = int(told["step"]), json.loads(told["log"])
                for name, parameter in parameters.items():
                    parameter.data.copy_(file.get_tensor(f"weights.{name}"))
                    if f"first.{name}" in file.keys():  # noqa: SIM118 - a file of tensors is no mapping
                        moments = (file.get_tensor(f"{part}.{name}").to(parameter) for part in ("first", "second"))
                        state = dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True))
                        state["step"] = torch.tensor(float(step), device=parameter.device)
                        optimiser.state[parameter] = state
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise InputError(str(self.path), f"is damaged ({str(error)[:80]})", again) from None
        log[:] = [Step(int(at), loss, np.nan if dev is None else dev) for at, loss, dev in lines]
        return step

    def look_for_room(self, parameters: dict[str, nn.Parameter]) -> None:
        """Raise InputError where the disk has no room for the file and the one that it replaces."""
        size = 3 * sum(one.numel() * one.element_size() for one in parameters.values())
        make_folder(self.path.parent)
        free = shutil.disk_usage(self.path.parent).free
        if free < ROOM * size:
            raise self._full(size, free)

    def write(
        self, step: int, parameters: dict[str, nn.Parameter], optimiser: torch.optim.AdamW, log: Sequence[Step]
    ) -> None:
        """Replace the file. Raises InputError where the disk is full; the last one is still there then."""
        from safetensors.torch import save

        tensors = {f"weights.{name}": one.detach().cpu().contiguous() for name, one in parameters.items()}
        for name, one in parameters.items():
            if state := optimiser.state.get(one):
                tensors |= {f"first.{name}": state["exp_avg"].cpu(), f"second.{name}": state["exp_avg_sq"].cpu()}
        lines = [(at, loss, None if np.isnan(dev) else dev) for at, loss, dev in log]
        told = {"run": self.key, "step": str(step), "log": json.dumps(lines)}
        content = save(tensors, told)
        try:
            with replacing(self.path) as file:
                file.write(content)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise self._full(len(content), shutil.disk_usage(self.path.parent).free) from error

    def _full(self, size: int, free: int) -> InputError:
        told = f"no room for checkpoints: {size / 1e6:,.0f} MB each, {free / 1e6:,.0f} MB are free"
        return InputError(str(self.path.parent), told, "Free some, or name a folder on another disk")
