"""Which tokens move a vector along a direction: attribution with three methods, one table.

1. A `Target` is the number that is explained: a readout of a layer, times a direction; `direction_of` takes it from a
   linear probe. All else is asked about that number, F.
2. `attribute` asks what every token's own embedding does to F, against a baseline in which content tokens are the mask
   token and special tokens stay: a text without words, of the same length.
       integrated_gradients  the mean gradient on the way from the baseline (Sundararajan, Taly & Yan 2017), by
                             Gauss-Legendre quadrature as in captum
       input_x_gradient      the gradient at the text alone: the first-order guess, one pass (Shrikumar et al. 2016)
       feature_ablation      what F loses when one token becomes the mask token (Zeiler & Fergus 2014): no gradients
   Each gives the difference times what F does with it, so the three are equal where F is linear.
3. Scores should sum to F(text) - F(baseline). The gap, in parts of that or of F's standard deviation over the texts
   if that is larger, stands in every row; above 1 % integrated gradients take twice as many steps, up to 512, and
   what is still above it is marked.
4. `infidelity` (Yeh et al. 2019) asks whether the scores foretell what removing several tokens does; `randomised`
   (Adebayo et al. 2018) whether an encoder with random weights would have been given the same ones; `agreement` is the
   rank correlation of two tables of scores, text by text.

The word embeddings are replaced by a hook on the table that gives them, position and segment stay: what is asked is
which words matter. Many texts and steps share a batch, and the layers above the target's are not run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.encoders.tap import evaluating, tap
from clsprobe.probes.encoders.tokenizing import Batch, Rows
from clsprobe.probes.errors import InputError, unknown
from clsprobe.probes.extraction.extractor import Extractor, plan
from clsprobe.probes.extraction.readouts import Normed, Readout
from clsprobe.probes.linear import LogisticProbe, RidgeProbe

if TYPE_CHECKING:
    from torch import Tensor

METHODS = ("integrated_gradients", "input_x_gradient", "feature_ablation")
STEPS, MOST = 32, 512
TOLERANCE = 0.01  # of the change of F: a larger gap is marked
ROUNDING = 1e-6  # of the size of F's terms: what float32 leaves of a sum that should be 0

Keep = Callable[[np.ndarray, int], np.ndarray]  # items, width -> (item, token) 1 the text's own token, 0 the baseline's


class Target:
    """A number F for every text: the readout of a layer, times a direction.

    direction: (width,), or (text, width) where every text has its own, as the direction of the class it was told.
    Texts are cut to `max_length` tokens, by default the encoder's limit. Raises InputError for a layer or a readout
    that the encoder lacks, for a direction of another width, and for an encoder whose tokens have no embeddings of
    their own.
    """

    def __init__(
        self,
        encoder: Encoder,
        direction: np.ndarray,
        *,
        layer: int,
        readout: str | Readout = "cls",
        max_length: int | None = None,
    ) -> None:
        self.encoder, self.layer = encoder, layer
        self.max_length = max_length or encoder.description.max_length
        self.direction = np.asarray(direction, np.float32)
        depth = Extractor(encoder, [readout], layers="all").readouts[0].depth
        reading = Extractor(encoder, [readout], layers=range(max(layer - depth + 1, 0), layer + 1))  # checks both
        (self.readout,), self._layers, self._equal = reading.readouts, reading.layers, reading.leaks
        self._tokens_per_batch = reading.max_tokens_per_batch
        width = self.readout.width(encoder.description.dim)
        if self.direction.shape[-1] != width:
            what = f"has {self.direction.shape[-1]} numbers, {self.readout.name} at layer {layer} has {width}"
            raise InputError("the direction", what, "Take it from a probe of that cell")
        self._table = _embedding_table(encoder)
        self._blank = _blank(encoder, self._table)
        self._running = threading.local()  # the batch of a thread, and what has been read of it

    def rows(self, texts: Sequence[str]) -> Rows:
        """The tokens of the texts, cut to the limit. Raises InputError where directions are not theirs."""
        if self.direction.ndim > 1 and len(self.direction) != len(texts):
            raise InputError("the direction", f"is given for {len(self.direction)} texts, not {len(texts)}", "Pass one")
        return self.encoder.tokenize(texts, self.max_length)

    def run(self, rows: Rows, of: np.ndarray, keep: Keep, *, gradients: bool = False) -> Iterator[Passed]:
        """Forward passes over items, batch by batch, in an order of their own.

        of: (item,) which text each item is a version of. keep: which tokens of it are the text's own, and by how much.
        gradients: what F would gain by what separates every token from the baseline, at first order.
        """
        lengths, paired = rows.lengths[of], rows.paired[of]
        with (
            tqdm(total=len(of), desc="attribution", unit=" passes", delay=1, disable=None, leave=False) as bar,
            evaluating(self.encoder.model),
            self._replacing(),
            tap(self.encoder, self._read, self._layers),
        ):
            for kind in (False, True):  # single texts first: some models tell token types of 0 from none
                alike = np.flatnonzero(paired == kind)
                for part in plan(lengths[alike], self._tokens_per_batch, equal=self._equal):
                    yield self._pass(rows, of, alike[part], keep, gradients)
                    bar.update(len(part))

    def _pass(self, rows: Rows, of: np.ndarray, items: np.ndarray, keep: Keep, gradients: bool) -> Passed:
        encoder, now = self.encoder, self._running
        texts, which = np.unique(of[items], return_inverse=True)
        batch = _repeated(encoder.batch([rows[i] for i in texts]), torch.from_numpy(which).to(encoder.device))
        along = torch.from_numpy(self.direction if self.direction.ndim == 1 else self.direction[of[items]])
        now.batch, now.gradients, now.value, now.size = batch, gradients, 0.0, 0.0
        now.along = along.to(encoder.device).unflatten(-1, (self.readout.depth, -1))
        now.keep = torch.from_numpy(keep(items, batch.ids.shape[1])).to(encoder.device, torch.float32)
        with suppress(_Enough):
            encoder.forward(batch, gradients=gradients)
        present = self.readout.present(batch)
        moved = None
        if gradients:
            (gradient,) = torch.autograd.grad(now.value.where(present, 0).sum(), now.words)
            moved = (gradient.float() * now.apart).sum(-1).double().cpu().numpy()
            del now.words, now.apart
        value = now.value.detach().double().where(present, torch.nan)
        return Passed(items, value.cpu().numpy(), now.size.sqrt().cpu().numpy(), moved)

    def _read(self, layer: int, hidden: Tensor) -> None:
        """Add what this layer gives to F, and stop behind the last that is read."""
        encoder, now = self.encoder, self._running
        if isinstance(self.readout, Normed) and encoder.norm is not None:
            hidden = encoder.norm(hidden)
        terms = self.readout.read(hidden, now.batch).float() * now.along[..., layer - self.layer - 1, :]
        now.value = now.value + terms.sum(-1)
        now.size = now.size + terms.detach().square().sum(-1)
        if layer == self.layer:
            raise _Enough

    @contextmanager
    def _replacing(self) -> Iterator[None]:
        """Within the block the table gives what is kept of every token, and the baseline for the rest."""

        def replaced(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
            now, found, turned = self._running, args[0], False
            ids = now.batch.ids
            if found.shape != ids.shape and found.T.shape == ids.shape and torch.equal(found.T, ids):
                turned = True  # XLNet looks (token, batch) up
            elif not torch.equal(found[:, : ids.shape[1]], ids):
                raise RuntimeError(f"{type(self.encoder.model).__name__} looks up other ids than it was given")
            own = output.transpose(0, 1) if turned else output
            more = own[:, ids.shape[1] :]  # what the model itself pads
            own = own[:, : ids.shape[1]]
            now.apart = (own - self._blank).where(now.batch.content[..., None], 0)
            words = own - (1 - now.keep[..., None]).to(own.dtype) * now.apart
            now.words = words.detach().requires_grad_() if now.gradients else words
            words = torch.cat([now.words, more], 1) if more.shape[1] else now.words
            return words.transpose(0, 1) if turned else words

        handle = self._table.register_forward_hook(replaced)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True, eq=False)
class Passed:
    """What a batch of items gave: value (item,) F, NaN where a text lacks the readout; size (item,) the root of the
    squared terms that F is the sum of; moved (item, token), with gradients."""

    items: np.ndarray
    value: np.ndarray
    size: np.ndarray
    moved: np.ndarray | None


class _Enough(Exception):
    """The layer of the target has been read."""


def _embedding_table(encoder: Encoder) -> Any:
    try:
        table = encoder.model.get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        table = None
    if not isinstance(getattr(table, "weight", None), torch.Tensor):
        kind = encoder.description.model_type
        what = f"{kind} has no table of token embeddings, so nothing can be attributed to them"
        raise InputError(encoder.name, what, "Use another model")
    return table


def _blank(encoder: Encoder, table: Any) -> Tensor:
    """(dim,) what the table gives for the token without a word: the mask token, else padding, else unknown."""
    known = (getattr(encoder.tokenizer, f"{name}_token_id", None) for name in ("mask", "pad", "unk"))
    for number in known:
        if number is not None:
            with torch.no_grad():
                return table(torch.tensor([[number]], device=encoder.device))[0, 0]
    return torch.zeros_like(table.weight[0])


def _repeated(batch: Batch, which: Tensor) -> Batch:
    """The rows `which` of a batch, some of them many times."""
    names = ("ids", "real", "special", "seeds", "types")
    return replace(batch, **{name: part[which] for name in names if (part := getattr(batch, name)) is not None})


def direction_of(
    probe: LogisticProbe | RidgeProbe, label: Any = None, *, cell: int = 0, label_set: int = 0
) -> np.ndarray:
    """(dim,) along which a fitted linear probe reads a cell, in the units of the vectors themselves.

    Of a classifier: the way in which the log odds of `label` against the mean of the other classes grow; without a
    label, of the last class. Of a regressor: the way in which what it tells grows. label: one of its `classes_`, a code
    where it was fitted on codes. cell, label_set: which of those it was fitted on. Raises ValueError for a label that
    the probe does not know, or has not seen.
    """
    coef = np.asarray(probe.coef_[cell, label_set], np.float64) / probe.scale_[cell]
    if isinstance(probe, RidgeProbe):
        return coef
    known = getattr(probe, "classes_", np.arange(len(coef))).tolist()
    seen = np.isfinite(coef).all(-1)
    own = len(known) - 1 if label is None else known.index(label) if label in known else -1
    if own < 0 or not seen[own]:
        raise ValueError(f"{label!r} is no class of this probe: {[k for k, s in zip(known, seen, strict=True) if s]}")
    seen[own] = False
    return coef[own] - coef[seen].mean(0)


# ------------------------------------------------------------------------------------------------------------ scores


def attribute(target: Target, texts: Sequence[str], method: str = METHODS[0], *, steps: int = STEPS) -> pd.DataFrame:
    """What every token of every text contributes to F, against a text without words.

    Columns: method, layer, readout; text (its row in `texts`), token_index (0 is the first token, mostly [CLS]),
    token (as the tokenizer writes it), special; score (in units of F; 0 on special tokens, which the baseline shares);
    value, baseline (F of the text, and of the baseline); gap, steps (0 where there are none); complete: whether the gap
    is at most 1 %. A text that lacks the readout has NaN scores. steps: of integrated gradients, before any doubling.
    Raises InputError for an unknown method.
    """
    if method not in METHODS:
        raise unknown("--method", "method", method, METHODS)
    rows = target.rows(texts)
    ends = np.cumsum(rows.lengths)
    whole, size = _values(target, rows)
    nothing, _ = _values(target, rows, kept=0.0)
    scores, taken = np.zeros(int(rows.lengths.sum())), np.zeros(len(rows), np.int64)
    scale = np.maximum(np.abs(whole - nothing), np.nanstd(whole) if np.isfinite(whole).any() else 0.0)

    def gaps() -> np.ndarray:
        summed = np.add.reduceat(scores, ends - rows.lengths) if len(rows) else scores
        off = np.abs(summed - (whole - nothing))
        off[off <= ROUNDING * size] = 0
        return np.divide(off, scale, out=np.where(off > 0, np.inf, 0.0), where=scale != 0)

    if method == "feature_ablation":
        _ablate(target, rows, whole, scores)
    elif method == "input_x_gradient":
        _integrate(target, rows, np.arange(len(rows)), np.ones(1), np.ones(1), scores)
    else:
        todo = np.arange(len(rows))
        while len(todo):
            nodes, weights = np.polynomial.legendre.leggauss(steps)
            _integrate(target, rows, todo, (1 + nodes) / 2, weights / 2, scores)
            taken[todo], steps = steps, 2 * steps
            todo = np.flatnonzero(gaps() > TOLERANCE) if steps <= MOST else todo[:0]
    gap = gaps()
    scores[np.repeat(np.isnan(whole), rows.lengths)] = np.nan
    return _table(target, rows, scores, method).assign(
        value=np.repeat(whole, rows.lengths),
        baseline=np.repeat(nothing, rows.lengths),
        gap=np.repeat(gap, rows.lengths),
        steps=np.repeat(taken, rows.lengths),
        complete=np.repeat(gap <= TOLERANCE, rows.lengths),
    )


def _values(target: Target, rows: Rows, *, kept: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(text,) F of every text with so much of its words, and the size of its terms."""
    value, size = np.empty((2, len(rows)))
    for passed in target.run(rows, np.arange(len(rows)), lambda items, width: np.full((len(items), width), kept)):
        value[passed.items], size[passed.items] = passed.value, passed.size
    return value, size


def _integrate(
    target: Target, rows: Rows, texts: np.ndarray, nodes: np.ndarray, weights: np.ndarray, scores: np.ndarray
) -> None:
    """Fill `scores` (token of all texts) for `texts`: what the gradient tells at `nodes` (step,) of the way from the
    baseline, 1 being the text, summed with `weights` (step,)."""
    steps, starts = len(nodes), (np.cumsum(rows.lengths) - rows.lengths)[texts]
    for start, length in zip(starts, rows.lengths[texts], strict=True):
        scores[start : start + length] = 0

    def keep(items: np.ndarray, width: int) -> np.ndarray:
        return np.repeat(nodes[items % steps, None], width, 1)

    for passed in target.run(rows, texts.repeat(steps), keep, gradients=True):
        assert passed.moved is not None
        for item, moved in zip(passed.items, passed.moved, strict=True):
            text, step = divmod(int(item), steps)
            length = rows.lengths[texts[text]]
            scores[starts[text] : starts[text] + length] += weights[step] * moved[:length]


def _ablate(target: Target, rows: Rows, whole: np.ndarray, scores: np.ndarray) -> None:
    """Fill `scores` (token of all texts): what F loses with every content token, one at a time."""
    tokens = np.flatnonzero(~rows.special)
    of = np.repeat(np.arange(len(rows)), rows.lengths)[tokens]
    at = tokens - (np.cumsum(rows.lengths) - rows.lengths)[of]

    def keep(items: np.ndarray, width: int) -> np.ndarray:
        return np.arange(width) != at[items, None]

    for passed in target.run(rows, of, keep):
        scores[tokens[passed.items]] = whole[of[passed.items]] - passed.value


def _table(target: Target, rows: Rows, scores: np.ndarray, method: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"method": method, "layer": target.layer, "readout": target.readout.name}
        | token_columns(target.encoder, rows)
        | {"score": scores}
    )


def token_columns(encoder: Encoder, rows: Rows) -> dict[str, np.ndarray | list[str]]:
    """The columns text, token_index, token and special of a table with one row a token."""
    starts = np.cumsum(rows.lengths) - rows.lengths
    return {
        "text": np.repeat(np.arange(len(rows)), rows.lengths),
        "token_index": np.arange(len(rows.ids)) - np.repeat(starts, rows.lengths),
        "token": encoder.tokenizer.convert_ids_to_tokens(rows.ids.tolist()),
        "special": rows.special,
    }


# ------------------------------------------------------------------------------------------------ can it be believed?


def infidelity(
    target: Target, texts: Sequence[str], table: pd.DataFrame, *, draws: int = 20, seed: int = 0
) -> pd.DataFrame:
    """How far the scores are from foretelling what happens to F when each content token goes with probability 1/2.

    table: of `attribute`, for these texts. Columns: text; infidelity, the mean squared difference between the sum of
    the removed scores and what F lost, over `draws` drawn sets (Yeh et al. 2019); change, the mean square of what F
    lost. Their sums' ratio is 0 for scores that foretell everything, and 1 for scores of 0.
    """
    rows = target.rows(texts)
    if len(table) != len(rows.ids):
        raise ValueError(f"the table has {len(table):,} tokens, the texts have {len(rows.ids):,}")
    random = np.random.default_rng(seed)
    gone = (random.random((draws, len(rows.ids))) < 0.5) & ~rows.special
    starts = np.cumsum(rows.lengths) - rows.lengths
    whole, _ = _values(target, rows)
    scores = table["score"].to_numpy(np.float64)
    found = np.zeros((2, len(rows)))

    def keep(items: np.ndarray, width: int) -> np.ndarray:
        kept = np.ones((len(items), width))
        for i, (text, draw) in enumerate(zip(items // draws, items % draws, strict=True)):
            part = slice(starts[text], starts[text] + rows.lengths[text])
            kept[i, : rows.lengths[text]] = ~gone[draw, part]
        return kept

    for passed in target.run(rows, np.repeat(np.arange(len(rows)), draws), keep):
        for item, value in zip(passed.items, passed.value, strict=True):
            text, draw = divmod(int(item), draws)
            part = slice(starts[text], starts[text] + rows.lengths[text])
            lost = whole[text] - value
            told = scores[part][gone[draw, part]].sum()
            found[:, text] += (told - lost) ** 2 / draws, lost**2 / draws
    return pd.DataFrame({"text": np.arange(len(rows)), "infidelity": found[0], "change": found[1]})


def randomised(target: Target, texts: Sequence[str], table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """`agreement` of scores with those of the same architecture with random weights (Adebayo et al. 2018).

    table: of `attribute`, for these texts. Scores that an untrained encoder would have had as well, a correlation far
    from 0, tell of the words or of the architecture and not of what was learned.
    """
    encoder = target.encoder
    other = load_encoder(
        encoder.description, device=encoder.device.type, dtype=str(encoder.dtype).removeprefix("torch."), untrained=seed
    )
    same = Target(other, target.direction, layer=target.layer, readout=target.readout, max_length=target.max_length)
    method = table["method"].iloc[0] if len(table) else METHODS[0]
    return agreement(table, attribute(same, texts, method))


def agreement(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of two tables of scores (text, token_index, special, score) over content tokens.

    Columns: text; correlation, of the scores; magnitude, of their absolute values. NaN where a text has fewer than
    three content tokens, or equal scores for all.
    """
    where = ["text", "token_index"]
    both = one.loc[~one["special"], [*where, "score"]].merge(
        other.loc[~other["special"], [*where, "score"]], on=where, suffixes=("_one", "_other"), validate="1:1"
    )
    found = {"text": np.array(sorted(both["text"].unique()), np.int64)}
    for name, taken in (("correlation", lambda scores: scores), ("magnitude", abs)):
        ranks = both[["score_one", "score_other"]].pipe(taken).groupby(both["text"]).rank()
        found[name] = _correlated(ranks, both["text"].to_numpy(), found["text"])
    return pd.DataFrame(found)


def _correlated(ranks: pd.DataFrame, of: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(text,) Pearson's correlation of two columns within every text."""
    mean = ranks.groupby(of).transform("mean")
    apart = ranks - mean
    sums = (
        pd.DataFrame(
            {
                "product": apart.iloc[:, 0] * apart.iloc[:, 1],
                "one": apart.iloc[:, 0] ** 2,
                "other": apart.iloc[:, 1] ** 2,
                "count": 1.0,
            }
        )
        .groupby(of)
        .sum(min_count=1)
        .loc[texts]
    )
    spread = np.sqrt(sums["one"] * sums["other"]).to_numpy()
    enough = (spread > 0) & (sums["count"] >= 3).to_numpy()
    return np.divide(sums["product"].to_numpy(), spread, out=np.full(len(texts), np.nan), where=enough)
