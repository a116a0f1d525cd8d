"""Fine-tuning: the whole encoder is trained with a linear head on one readout.

1. `probes.training.arrangements.arrange_encoder` makes the encoder and the readout for a name such as ``cls@last``.
2. `epoch_batches` determines the order of the data: texts of similar length in a batch, a function of lengths and seed
   alone, so that two readouts see the same texts at the same steps.
3. `fine_tune` runs AdamW (Loshchilov & Hutter 2019) with linear warm-up and decay and gradient clipping. Gradients of a
   batch of long texts are accumulated over parts of it. There is no dropout: two runs differ only in their readout, and
   a step depends only on the weights and the data.
4. `probes.training.checkpoint` writes weights, moments and the step, from which a run that was killed resumes.
5. In bfloat16 the products are cast (autocast); weights and updates stay float32, because an update of a thousandth of
   a weight is lost in the 8 bits of bfloat16.
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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.tap import evaluating, tap
from clsprobe.probes.encoders.tokenizing import Batch
from clsprobe.probes.errors import InputError, printable
from clsprobe.probes.extraction.extractor import plan_batches
from clsprobe.probes.extraction.readouts import Attention, Normed, Readout
from clsprobe.probes.training.arrangements import ArrangedEncoder, arrange_encoder, texts_with_readout
from clsprobe.probes.training.checkpoint import Checkpoint

MEGABATCH = 32  # batches sorted by length together
BUDGET = {"cpu": 2_048, "cuda": 32_768, "mps": 8_192}  # padded tokens per forward and backward pass
CHECKPOINT_SECONDS = 120.0  # between two checkpoints
_GENERATOR_LOCK = Lock()  # torch's generator is global: only one thread at a time may seed it and draw


@dataclass(frozen=True)
class Recipe:
    """How an encoder is trained.

    rate: peak learning rate of the encoder. head_rate: that of the head, which is trained from scratch. batch: texts.
    warmup: share of the steps in which the rates rise. decay: weight decay of matrices. clip: largest norm of the
    gradient. seed: of the order of the texts and the initial head. lora: rank of adapters in all linear maps, trained
    instead of the encoder (Hu et al. 2022; needs peft); 0 trains everything.
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
    """One line of the log. step: from 1. loss: nats per text. dev: accuracy after the step, NaN if not computed."""

    step: int
    loss: float
    dev: float


def _dump_log(log: Sequence[Step]) -> str:
    return json.dumps([(step, loss, None if np.isnan(dev) else dev) for step, loss, dev in log])


def _read_log(text: str) -> list[Step]:
    return [Step(int(step), loss, np.nan if dev is None else dev) for step, loss, dev in json.loads(text)]


def _copy_encoder(encoder: Encoder) -> Encoder:
    model = deepcopy(encoder.model)
    return replace(encoder, model=model, blocks=[model.get_submodule(point.module) for point in encoder.points[1:]])


# ---------------------------------------------------------------------------------------------------------- batches


def epoch_batches(lengths: np.ndarray, size: int, seed: int, epoch: int, *, equal: bool = False) -> list[np.ndarray]:
    """Row indices of every batch of one epoch, texts of similar length together, the batches in random order.

    lengths: (text,) tokens. equal: only texts of the same length in a batch, so that nothing is padded. Training on
    another readout thus sees the same texts at the same steps.
    """
    random = np.random.default_rng([seed, epoch])
    permuted = random.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(permuted), size * MEGABATCH):
        megabatch = permuted[start : start + size * MEGABATCH]
        megabatch = megabatch[np.argsort(-lengths[megabatch], kind="stable")]
        for part in np.split(megabatch, np.flatnonzero(np.diff(lengths[megabatch])) + 1) if equal else [megabatch]:
            batches += [part[begin : begin + size] for begin in range(0, len(part), size)]
    return [batches[i] for i in random.permutation(len(batches))]


def schedule_batches(
    encoder: Encoder, texts: Sequence[str], recipe: Recipe, max_length: int | None = None
) -> list[list[np.ndarray]]:
    """The batches of every epoch, by the lengths of texts before they are rearranged: the same for every readout.

    Raises InputError for fewer texts than a batch.
    """
    if len(texts) < recipe.batch:
        problem = f"{len(texts)} training texts are fewer than a batch of {recipe.batch}"
        raise InputError("training", problem, "Give more texts")
    lengths, leaks = encoder.tokenize(texts, max_length).lengths, _padding_leaks(encoder)
    return [epoch_batches(lengths, recipe.batch, recipe.seed, epoch, equal=leaks) for epoch in range(recipe.epochs)]


# ------------------------------------------------------------------------------------------------------- the network


class _Network(nn.Module):
    """An encoder's model, the query of learned pooling if the readout is `Attention`, and a linear head."""

    def __init__(self, encoder: Encoder, readout: Readout, classes: int) -> None:
        super().__init__()
        self.model = encoder.model
        dim = encoder.description.dim
        inner = readout.of if isinstance(readout, Normed) else readout
        learned = isinstance(inner, Attention)
        self.query = nn.Parameter(torch.zeros(dim, device=encoder.device)) if learned else None
        width = dim if learned else readout.width(dim)
        self.head = nn.utils.skip_init(nn.Linear, width, classes, device=encoder.device)  # `_prepare` initialises it

    def pooled(self, hidden: Tensor, batch: Batch, readout: Readout) -> Tensor:
        """(batch, token, dim) -> (batch, width), float32."""
        if self.query is None:
            return readout.read(hidden, batch).float()
        wide = hidden.float()
        scores = (wide @ self.query / wide.shape[2] ** 0.5).masked_fill(~batch.real, -torch.inf)
        return (scores.softmax(1)[..., None] * wide.where(batch.real[..., None], 0)).sum(1)


@dataclass(frozen=True, eq=False)
class Tuned:
    """A trained encoder with its head.

    encoder: has its own copy of the model. order: digest of the texts seen at every step. log: every step so far.
    """

    encoder: Encoder
    readout: Readout
    network: _Network
    recipe: Recipe
    dtype: str
    max_length: int | None
    order: str = ""
    log: list[Step] = field(default_factory=list)

    def log_proba(self, texts: Sequence[str]) -> np.ndarray:
        """(text, class), nats.

        Raises InputError for a text without the tokens that the readout reads, and Diverged where the numbers are not
        finite.
        """
        rows = self.encoder.tokenize(texts, self.max_length)
        result = np.empty((len(rows), self.network.head.out_features))
        leaks = _padding_leaks(self.encoder)
        with evaluating(self.network.model), torch.no_grad():
            for rows_of_batch in plan_batches(rows.lengths, BUDGET[self.encoder.device.type], equal=leaks):
                batch = self.encoder.batch([rows[int(i)] for i in rows_of_batch])
                if not self.readout.present(batch).all():
                    raise InputError(self.readout.name, "some texts are shorter", "Leave this readout out")
                result[rows_of_batch] = self.logits(batch).double().log_softmax(1).cpu().numpy()
        if not np.isfinite(result).all():
            raise Diverged(self)
        return result

    def logits(self, batch: Batch) -> Tensor:
        """(batch, class), float32."""
        captured: list[Tensor] = []
        last = len(self.encoder.points) - 1
        with self._cast(), tap(self.encoder, lambda _, hidden: captured.append(hidden), [last]):
            self.encoder.forward(batch, gradients=torch.is_grad_enabled())
            (hidden,) = captured
            if isinstance(self.readout, Normed):
                assert self.encoder.norm is not None
                hidden = self.encoder.norm(hidden)
        inner = self.readout.of if isinstance(self.readout, Normed) else self.readout
        return self.network.head(self.network.pooled(hidden, batch, inner))

    def _cast(self) -> AbstractContextManager[Any]:
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.encoder.device.type, getattr(torch, self.dtype))


class Diverged(InputError):
    """A training whose loss or predictions are not finite. tuned: what it was after the last step of its log."""

    def __init__(self, tuned: Tuned) -> None:
        self.tuned = tuned
        what = f"training from {tuned.readout.name} has diverged after step {len(tuned.log)}"
        super().__init__(f"--rates {tuned.recipe.rate:g}", what, "Give a smaller one")


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
    callback_steps: Collection[int] = (),
    callback: Callable[[int, Tuned], None] | None = None,
    bar: tqdm | None = None,
) -> Tuned:
    """Train a copy of the encoder with a linear head on `readout` (see `arrange_encoder`), and return it.

    y: (text,) codes 0..K-1. dev: texts and codes, scored after every epoch. dtype: "bfloat16" casts the products. head:
    initial weights (class, width) and intercepts (class,). checkpoint: a file to resume from, written every
    `CHECKPOINT_SECONDS`. callback: called with the step and the `Tuned` after the steps in `callback_steps`; 0 is
    before the first. bar: a progress bar of steps, shared with other runs.

    Raises InputError for a readout that the encoder lacks, fewer texts than a batch, a checkpoint of another run, and a
    full disk; Diverged where the loss or the predictions of dev are not finite.
    """
    arranged, arranged_readout = arrange_encoder(encoder, readout)
    if arranged.model is encoder.model:
        arranged = _copy_encoder(arranged)
    classes = int(max(y.max(), dev[1].max())) + 1
    tuned = _prepare(arranged, arranged_readout, classes, recipe, dtype, max_length, head)
    rows = tuned.encoder.tokenize(texts, max_length)
    if not texts_with_readout(encoder, readout, texts, max_length).all():
        raise InputError(f"--readouts {readout}", "some training texts are shorter", "Leave this readout out")
    epochs = schedule_batches(encoder, texts, recipe, max_length)
    steps = [batch for epoch in epochs for batch in epoch]
    ends = set(np.cumsum([len(epoch) for epoch in epochs]).tolist())
    tuned = replace(tuned, order=_digest_arrays(steps))
    parameters = {name: parameter for name, parameter in tuned.network.named_parameters() if parameter.requires_grad}
    optimiser = _make_optimiser(parameters, recipe, encoder.device.type)
    identity = {
        "encoder": encoder.description.digest,
        "untrained": encoder.untrained,
        "readout": readout,
        "recipe": asdict(recipe),
        "dtype": dtype,
        "order": tuned.order,
        "data": _digest_data(texts, y),
        "dev": _digest_data(*dev),
        "max_length": max_length,
        "head": None if head is None else _digest_arrays(head),
        "shapes": {name: list(parameter.shape) for name, parameter in parameters.items()},
    }
    saver = None if checkpoint is None else Checkpoint(checkpoint, json.dumps(identity, sort_keys=True))
    steps_done = 0
    if saver and (saved := saver.read(parameters, optimiser)):
        steps_done = saved.step
        tuned.log[:] = _read_log(saved.facts["log"])
    if saver:
        saver.check_disk_space(parameters)
    if callback and 0 in callback_steps and not steps_done:
        callback(0, tuned)

    codes = torch.from_numpy(np.asarray(y, np.int64)).to(encoder.device)
    progress = (
        tqdm(total=len(steps), desc=printable(readout), unit=" steps", delay=1, disable=None, leave=False)
        if bar is None
        else bar
    )
    progress.update(steps_done)
    last_saved = time.monotonic()
    with evaluating(tuned.network.model):
        for step, rows_of_batch in enumerate(steps, 1):
            if step <= steps_done:
                continue
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * _rate_factor(step, len(steps), recipe.warmup)
            loss = 0.0
            for part in _split_batch(rows_of_batch, rows.lengths, BUDGET[encoder.device.type]):
                logits = tuned.logits(tuned.encoder.batch([rows[int(i)] for i in part]))
                nats = functional.cross_entropy(logits, codes[torch.from_numpy(part)], reduction="sum")
                nats = nats / len(rows_of_batch)
                nats.backward()
                loss += nats.item()
            if not np.isfinite(loss):
                raise Diverged(tuned)
            nn.utils.clip_grad_norm_(parameters.values(), recipe.clip)
            optimiser.step()
            optimiser.zero_grad()
            score = _accuracy(tuned, *dev) if step in ends else np.nan
            tuned.log.append(Step(step, loss, score))
            progress.update()
            if step in ends:
                progress.set_postfix_str(f"{readout}, dev {score:.3f}")
            if callback and step in callback_steps:
                callback(step, tuned)
            if saver and step < len(steps) and time.monotonic() - last_saved > CHECKPOINT_SECONDS:
                saver.write(step, parameters, optimiser, {"log": _dump_log(tuned.log)})
                last_saved = time.monotonic()
    if bar is None:
        progress.close()
    return tuned


def _prepare(
    encoder: Encoder,
    readout: Readout,
    classes: int,
    recipe: Recipe,
    dtype: str,
    max_length: int | None,
    head: tuple[np.ndarray, np.ndarray] | None,
) -> Tuned:
    """The network before the first step, with gradients enabled for everything that is trained."""
    model: Any = encoder.model
    if dtype != "float32" and encoder.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")  # the fused backward pass is slower in bfloat16 for short texts
    if recipe.lora:
        _add_adapters(model, recipe.lora, encoder.name)
    else:
        model.requires_grad_(True)
    if isinstance(encoder, ArrangedEncoder) and encoder.new >= 0:
        table = model.get_input_embeddings().weight.requires_grad_(True)
        if recipe.lora:  # the other embeddings stay fixed, as for the other readouts
            is_new = torch.zeros(len(table), 1, device=table.device, dtype=table.dtype)
            is_new[encoder.new] = 1
            table.register_hook(lambda gradient: gradient * is_new)
    network = _Network(encoder, readout, classes)
    generator = torch.Generator().manual_seed(recipe.seed)
    weights = torch.randn(network.head.weight.shape, generator=generator) * 0.02
    start = (weights, torch.zeros(classes)) if head is None else tuple(torch.from_numpy(part) for part in head)
    with torch.no_grad():
        for parameter, value in zip((network.head.weight, network.head.bias), start, strict=True):
            parameter.copy_(value)
    return Tuned(encoder, readout, network, recipe, dtype, max_length)


def _add_adapters(model: Any, rank: int, name: str) -> None:
    """Add low-rank adapters to all linear maps, in place; only they are trained."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError("--lora", "needs the package peft", "Run pip install 'clsprobe[lora]'") from None
    model.requires_grad_(False)
    inner = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    if not inner:
        raise InputError("--lora", f"{name} has no linear maps", "Leave it out")
    with _GENERATOR_LOCK, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(inner)), model)


def _make_optimiser(parameters: dict[str, nn.Parameter], recipe: Recipe, device: str) -> torch.optim.AdamW:
    """AdamW with weight decay for matrices but not adapters, and `head_rate` for the head and the query."""
    groups = []
    for of_head in (False, True):
        for are_matrices in (False, True):
            group = [
                p
                for name, p in parameters.items()
                if name.startswith("model.") != of_head and (p.ndim > 1) == are_matrices
            ]
            rate = recipe.head_rate if of_head else recipe.rate
            decay = recipe.decay if are_matrices and (of_head or not recipe.lora) else 0.0
            if group:
                groups.append({"params": group, "lr": rate, "peak": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, fused=device in ("cpu", "cuda"))


def _rate_factor(step: int, steps: int, warmup: float) -> float:
    """The learning rate at step 1 .. steps over its peak: rises linearly over the warm-up, then falls towards 0."""
    warmup_steps = max(1, round(warmup * steps))
    return step / warmup_steps if step <= warmup_steps else (steps - step + 1) / (steps - warmup_steps + 1)


def _split_batch(batch: np.ndarray, lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Split a batch into parts of at most `budget` padded tokens."""
    for part in plan_batches(lengths[batch], budget):
        yield batch[part]


def _accuracy(tuned: Tuned, texts: Sequence[str], y: np.ndarray) -> float:
    return float((tuned.log_proba(texts).argmax(1) == y).mean())


def _padding_leaks(encoder: Encoder) -> bool:
    return bool(encoder.adapter.leaks or encoder.checked.get("leaks"))


def _digest_arrays(arrays: Sequence[np.ndarray]) -> str:
    digest = sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()


def _digest_data(texts: Sequence[str], y: np.ndarray) -> str:
    digest = sha256(np.asarray(y, np.int64).tobytes())
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
