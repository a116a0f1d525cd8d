"""Fine-tuning: the whole encoder learns with one linear head on one readout.

1. `probes.training.arrangements.arranged` gives the encoder and the readout that a name such as ``cls@last`` asks for.
2. `batches` is the order of the data: texts of like length in a batch, a function of lengths and seed alone, so that
   two readouts see the same texts at the same steps.
3. `fine_tune` runs AdamW (Loshchilov & Hutter 2019) with linear warm-up and decay and clipped gradients over them. A
   batch of long texts is taken in parts whose gradients are added up. Nothing drops out: two runs then differ in their
   readout alone, and a step depends on nothing but the weights and the data.
4. `probes.training.checkpoint` writes weights, moments and the step: a run that was killed goes on from there.
5. In bfloat16 the products are cast (autocast), the weights and their updates stay float32: an update of a thousandth
   of a weight is lost in bfloat16, which keeps 8 bits of it.
"""

from __future__ import annotations

import json
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

from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.tap import evaluating, tap
from clsprobe.probes.encoders.tokenizing import Batch
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.extractor import plan
from clsprobe.probes.extraction.readouts import Attention, Normed, Readout
from clsprobe.probes.training.arrangements import Arranged, arranged, present
from clsprobe.probes.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    pass

MEGABATCH = 32  # batches that are sorted by length together
BUDGET = {"cpu": 2_048, "cuda": 32_768, "mps": 8_192}  # padded tokens that go forward and back together
SAVED = 120.0  # seconds between two checkpoints
_DRAWING = Lock()  # torch's generator is everybody's: whoever seeds it draws alone


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


def _log_text(log: Sequence[Step]) -> str:
    return json.dumps([(at, loss, None if np.isnan(dev) else dev) for at, loss, dev in log])


def _read_log(text: str) -> list[Step]:
    return [Step(int(at), loss, np.nan if dev is None else dev) for at, loss, dev in json.loads(text)]


def _copied(encoder: Encoder) -> Encoder:
    model = deepcopy(encoder.model)
    return replace(encoder, model=model, blocks=[model.get_submodule(point.module) for point in encoder.points[1:]])


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
    kept = None if checkpoint is None else Checkpoint(checkpoint, json.dumps(key, sort_keys=True))
    done = 0
    if kept and (reached := kept.read(parameters, optimiser)):
        done = reached.step
        tuned.log[:] = _read_log(reached.facts["log"])
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
                kept.write(step, parameters, optimiser, {"log": _log_text(tuned.log)})
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
