"""Which tokens move a vector along a direction: attribution with three methods, one table.

1. A `Target` is the number F that is explained: a readout of a layer, times a direction. `compute_direction` takes the
   direction from a linear probe.
2. `attribute` measures the contribution of every token's embedding to F, against a baseline of the same length in which
   one embedding stands for all content tokens (`BASELINES`) and special tokens stay.
       integrated_gradients  the mean gradient on the line from the baseline (Sundararajan, Taly & Yan 2017), by
                             Gauss-Legendre quadrature as in captum
       input_x_gradient      the gradient at the text only: first order, one pass (Shrikumar et al. 2016)
       feature_ablation      the loss of F when a mask token replaces one token (Zeiler & Fergus 2014): no gradients
   All three agree where F is linear.
3. Scores should sum to F(text) - F(baseline). Every row has the gap as a share of that difference, or of F's standard
   deviation over the texts if that is larger. Above 1 % integrated gradients double their steps, up to 512; `complete`
   is False for texts that stay above it.
4. `measure_infidelity` (Yeh et al. 2019) tests whether the scores predict the effect of removing several tokens,
   `compare_randomised` (Adebayo et al. 2018) whether an encoder with random weights has the same scores.
   `measure_agreement` is the rank correlation of two tables of scores, text by text. `compare_with_twins` sets the
   scores of the words that a minimal pair changes against the change of F.

A hook on the embedding table replaces word embeddings; position and segment embeddings stay. Texts and steps share
batches, and layers above the target's are not run.
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
from clsprobe.probes.extraction.extractor import Extractor, plan_batches
from clsprobe.probes.extraction.readouts import Normed, Readout
from clsprobe.probes.linear import LogisticProbe, RidgeProbe

if TYPE_CHECKING:
    from torch import Tensor

METHODS = ("integrated_gradients", "input_x_gradient", "feature_ablation")
BASELINES = ("mask", "padding", "zero", "mean")  # the embedding of a token, no embedding, the mean of all of them
STEPS, MOST = 32, 512
TOLERANCE = 0.01  # of the change of F, above which scores are incomplete
ROUNDING = 1e-6  # of the size of F's terms: the float32 error of a sum that should be 0

Keep = Callable[[np.ndarray, int], np.ndarray]  # items, width -> (item, token) 1 the text's own token, 0 the baseline's


class Target:
    """A number F for every text: the readout of a layer, times a direction.

    direction: (width,), or (text, width) with one for every text, such as that of its label. baseline: what stands for
    the content tokens in the baseline, one of `BASELINES`. Texts are truncated to `max_length` tokens, by default the
    encoder's limit. Raises InputError for a layer, a readout or a baseline that there is not, for a direction of
    another width, and for an encoder without a table of token embeddings.
    """

    def __init__(
        self,
        encoder: Encoder,
        direction: np.ndarray,
        *,
        layer: int,
        readout: str | Readout = "cls",
        baseline: str = BASELINES[0],
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
        self.baseline = baseline
        self._baseline = _embed_baseline(encoder, self._table, baseline)
        self._running = threading.local()  # the batch of a thread, and the sums read from it

    def rows(self, texts: Sequence[str]) -> Rows:
        """The tokens of the texts, truncated to the limit. Raises InputError for directions of other texts."""
        if self.direction.ndim > 1 and len(self.direction) != len(texts):
            raise InputError("the direction", f"is given for {len(self.direction)} texts, not {len(texts)}", "Pass one")
        return self.encoder.tokenize(texts, self.max_length)

    def run(self, rows: Rows, text_indices: np.ndarray, keep: Keep, *, gradients: bool = False) -> Iterator[Passed]:
        """Forward passes over items, versions of texts, batch by batch in no fixed order.

        text_indices: (item,) the text of each item. keep: the weight of its own tokens against the baseline's.
        gradients: also compute the first-order effect on F of the difference of every token from the baseline.
        """
        lengths, paired = rows.lengths[text_indices], rows.paired[text_indices]
        with (
            tqdm(total=len(lengths), desc="attribution", unit=" passes", delay=1, disable=None, leave=False) as bar,
            evaluating(self.encoder.model),
            self._replace_embeddings(),
            tap(self.encoder, self._read, self._layers),
        ):
            for kind in (False, True):  # single texts first: some models tell token types of 0 from none
                same_kind = np.flatnonzero(paired == kind)
                for part in plan_batches(lengths[same_kind], self._tokens_per_batch, equal=self._equal):
                    yield self._pass(rows, text_indices, same_kind[part], keep, gradients)
                    bar.update(len(part))

    def _pass(self, rows: Rows, text_indices: np.ndarray, items: np.ndarray, keep: Keep, gradients: bool) -> Passed:
        encoder, state = self.encoder, self._running
        texts, batch_rows = np.unique(text_indices[items], return_inverse=True)
        batch = _repeat_rows(encoder.batch([rows[i] for i in texts]), torch.from_numpy(batch_rows).to(encoder.device))
        shared = self.direction.ndim == 1
        direction = torch.from_numpy(self.direction if shared else self.direction[text_indices[items]])
        state.batch, state.gradients, state.value, state.size = batch, gradients, 0.0, 0.0
        state.direction = direction.to(encoder.device).unflatten(-1, (self.readout.depth, -1))
        state.keep = torch.from_numpy(keep(items, batch.ids.shape[1])).to(encoder.device, torch.float32)
        with suppress(_TargetRead):
            encoder.forward(batch, gradients=gradients)
        present = self.readout.present(batch)
        effect = None
        if gradients:
            (gradient,) = torch.autograd.grad(state.value.where(present, 0).sum(), state.words)
            effect = (gradient.float() * state.difference).sum(-1).double().cpu().numpy()
            del state.words, state.difference
        value = state.value.detach().double().where(present, torch.nan)
        return Passed(items, value.cpu().numpy(), state.size.sqrt().cpu().numpy(), effect)

    def _read(self, layer: int, hidden: Tensor) -> None:
        """Add the terms of F from this layer, and stop after the last layer that is read."""
        encoder, state = self.encoder, self._running
        if isinstance(self.readout, Normed) and encoder.norm is not None:
            hidden = encoder.norm(hidden)
        terms = self.readout.read(hidden, state.batch).float() * state.direction[..., layer - self.layer - 1, :]
        state.value = state.value + terms.sum(-1)
        state.size = state.size + terms.detach().square().sum(-1)
        if layer == self.layer:
            raise _TargetRead

    @contextmanager
    def _replace_embeddings(self) -> Iterator[None]:
        """Within the block, the table returns a mixture of every token's embedding and the baseline's."""

        def replace_words(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
            state, given_ids, transposed = self._running, args[0], False
            ids = state.batch.ids
            if given_ids.shape != ids.shape and given_ids.T.shape == ids.shape and torch.equal(given_ids.T, ids):
                transposed = True  # XLNet looks (token, batch) up
            elif not torch.equal(given_ids[:, : ids.shape[1]], ids):
                raise RuntimeError(f"{type(self.encoder.model).__name__} looks up other ids than it was given")
            embeddings = output.transpose(0, 1) if transposed else output
            padding = embeddings[:, ids.shape[1] :]  # added by the model itself
            embeddings = embeddings[:, : ids.shape[1]]
            state.difference = (embeddings - self._baseline).where(state.batch.content[..., None], 0)
            words = embeddings - (1 - state.keep[..., None]).to(embeddings.dtype) * state.difference
            state.words = words.detach().requires_grad_() if state.gradients else words
            words = torch.cat([state.words, padding], 1) if padding.shape[1] else state.words
            return words.transpose(0, 1) if transposed else words

        handle = self._table.register_forward_hook(replace_words)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True, eq=False)
class Passed:
    """The results of a batch of items: value (item,) of F, NaN where a text lacks the readout; size (item,) the root of
    the sum of the squared terms of F; effect (item, token) at first order, with gradients."""

    items: np.ndarray
    value: np.ndarray
    size: np.ndarray
    effect: np.ndarray | None


class _TargetRead(Exception):
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


@torch.no_grad()
def _embed_baseline(encoder: Encoder, table: Any, baseline: str) -> Tensor:
    """(dim,) the embedding of a baseline. Without a mask token, padding is taken, else the unknown token, else zero."""
    if baseline not in BASELINES:
        raise unknown("baseline", "name", baseline, BASELINES)
    if baseline == "mean":
        ids = torch.arange(len(table.weight), device=encoder.device)
        total = torch.stack([table(part[None])[0].double().sum(0) for part in ids.split(8192)]).sum(0)
        return (total / len(ids)).to(table.weight.dtype)
    tokens = {"mask": ("mask", "pad", "unk"), "padding": ("pad", "unk"), "zero": ()}[baseline]
    for token_id in (getattr(encoder.tokenizer, f"{name}_token_id", None) for name in tokens):
        if token_id is not None:
            embedding: Tensor = table(torch.tensor([[token_id]], device=encoder.device))[0, 0]
            return embedding
    return torch.zeros_like(table.weight[0])


def _repeat_rows(batch: Batch, row_indices: Tensor) -> Batch:
    """The given rows of a batch, with repetitions."""
    names = ("ids", "real", "special", "seeds", "types")
    return replace(batch, **{name: part[row_indices] for name in names if (part := getattr(batch, name)) is not None})


def compute_direction(
    probe: LogisticProbe | RidgeProbe, label: Any = None, *, against: Any = None, cell: int = 0, label_set: int = 0
) -> np.ndarray:
    """(dim,) the gradient of a fitted linear probe at a cell, in the units of the vectors before standardisation.

    For a classifier: of the log odds of `label` (by default the last class) against `against`, by default the mean of
    the other classes. For a regressor: of its prediction. label, against: of its `classes_`, or codes if it was fitted
    on codes. cell, label_set: indices into those it was fitted on. Raises ValueError for a label that is unknown or has
    no training texts.
    """
    coef = np.asarray(probe.coef_[cell, label_set], np.float64) / probe.scale_[cell]
    if isinstance(probe, RidgeProbe):
        return coef
    labels = getattr(probe, "classes_", np.arange(len(coef))).tolist()
    seen = np.isfinite(coef).all(-1)
    trained = [name for name, is_seen in zip(labels, seen, strict=True) if is_seen]
    label = labels[-1] if label is None else label
    for name in (label, against):
        if name is not None and name not in trained:
            raise ValueError(f"{name!r} is no class of this probe: {trained}")
    others = [name for name in trained if name != label] if against is None else [against]
    return coef[labels.index(label)] - coef[[labels.index(name) for name in others]].mean(0)


# ------------------------------------------------------------------------------------------------------------ scores


def attribute(target: Target, texts: Sequence[str], method: str = METHODS[0], *, steps: int = STEPS) -> pd.DataFrame:
    """The contribution of every token of every text to F, against the baseline.

    Columns: method, layer, readout; text (its row in `texts`), token_index (0 is the first token, mostly [CLS]),
    token (as the tokenizer writes it), special; score (in units of F; 0 on special tokens, which the baseline shares);
    value, baseline (F of the text, and of the baseline); gap, steps (0 where there are none); complete: whether the gap
    is at most 1 %. A text that lacks the readout has NaN scores. steps: initial steps of integrated gradients.
    Raises InputError for an unknown method.
    """
    if method not in METHODS:
        raise unknown("--method", "method", method, METHODS)
    rows = target.rows(texts)
    ends = np.cumsum(rows.lengths)
    values, size = _evaluate(target, rows)
    baselines, _ = _evaluate(target, rows, share=0.0)
    scores, steps_taken = np.zeros(int(rows.lengths.sum())), np.zeros(len(rows), np.int64)
    scale = np.maximum(np.abs(values - baselines), np.nanstd(values) if np.isfinite(values).any() else 0.0)

    def gaps() -> np.ndarray:
        summed = np.add.reduceat(scores, ends - rows.lengths) if len(rows) else scores
        gap = np.abs(summed - (values - baselines))
        gap[gap <= ROUNDING * size] = 0
        return np.divide(gap, scale, out=np.where(gap > 0, np.inf, 0.0), where=scale != 0)

    if method == "feature_ablation":
        _ablate(target, rows, values, scores)
    elif method == "input_x_gradient":
        _integrate(target, rows, np.arange(len(rows)), np.ones(1), np.ones(1), scores)
    else:
        remaining = np.arange(len(rows))
        while len(remaining):
            nodes, weights = np.polynomial.legendre.leggauss(steps)
            _integrate(target, rows, remaining, (1 + nodes) / 2, weights / 2, scores)
            steps_taken[remaining], steps = steps, 2 * steps
            remaining = np.flatnonzero(gaps() > TOLERANCE) if steps <= MOST else remaining[:0]
    gap = gaps()
    scores[np.repeat(np.isnan(values), rows.lengths)] = np.nan
    return _make_table(target, rows, scores, method).assign(
        value=np.repeat(values, rows.lengths),
        baseline=np.repeat(baselines, rows.lengths),
        gap=np.repeat(gap, rows.lengths),
        steps=np.repeat(steps_taken, rows.lengths),
        complete=np.repeat(gap <= TOLERANCE, rows.lengths),
    )


def _evaluate(target: Target, rows: Rows, *, share: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(text,) F of every text with this share of its word embeddings, and the size of its terms."""
    value, size = np.empty((2, len(rows)))
    for passed in target.run(rows, np.arange(len(rows)), lambda items, width: np.full((len(items), width), share)):
        value[passed.items], size[passed.items] = passed.value, passed.size
    return value, size


def _integrate(
    target: Target, rows: Rows, texts: np.ndarray, nodes: np.ndarray, weights: np.ndarray, scores: np.ndarray
) -> None:
    """Fill `scores` (token of all texts) for `texts`: first-order effects at `nodes` (step,), from 0 at the baseline
    to 1 at the text, summed with `weights` (step,)."""
    steps, starts = len(nodes), (np.cumsum(rows.lengths) - rows.lengths)[texts]
    for start, length in zip(starts, rows.lengths[texts], strict=True):
        scores[start : start + length] = 0

    def keep(items: np.ndarray, width: int) -> np.ndarray:
        return np.repeat(nodes[items % steps, None], width, 1)

    for passed in target.run(rows, texts.repeat(steps), keep, gradients=True):
        assert passed.effect is not None
        for item, effect in zip(passed.items, passed.effect, strict=True):
            text, step = divmod(int(item), steps)
            length = rows.lengths[texts[text]]
            scores[starts[text] : starts[text] + length] += weights[step] * effect[:length]


def _ablate(target: Target, rows: Rows, values: np.ndarray, scores: np.ndarray) -> None:
    """Fill `scores` (token of all texts): the loss of F without each content token."""
    tokens = np.flatnonzero(~rows.special)
    text_indices = np.repeat(np.arange(len(rows)), rows.lengths)[tokens]
    token_indices = tokens - (np.cumsum(rows.lengths) - rows.lengths)[text_indices]

    def keep(items: np.ndarray, width: int) -> np.ndarray:
        return np.arange(width) != token_indices[items, None]

    for passed in target.run(rows, text_indices, keep):
        scores[tokens[passed.items]] = values[text_indices[passed.items]] - passed.value


def _make_table(target: Target, rows: Rows, scores: np.ndarray, method: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"method": method, "layer": target.layer, "readout": target.readout.name}
        | token_columns(target.encoder, rows)
        | {"score": scores}
    )


def token_columns(encoder: Encoder, rows: Rows) -> dict[str, np.ndarray | list[str]]:
    """The columns text, token_index, token and special of a table with one row per token."""
    starts = np.cumsum(rows.lengths) - rows.lengths
    return {
        "text": np.repeat(np.arange(len(rows)), rows.lengths),
        "token_index": np.arange(len(rows.ids)) - np.repeat(starts, rows.lengths),
        "token": encoder.tokenizer.convert_ids_to_tokens(rows.ids.tolist()),
        "special": rows.special,
    }


# ------------------------------------------------------------------------------------------------------------ checks


def measure_infidelity(
    target: Target, texts: Sequence[str], table: pd.DataFrame, *, draws: int = 20, seed: int = 0
) -> pd.DataFrame:
    """The error of the scores as a prediction of F when each content token is removed with probability 1/2.

    table: of `attribute`, for these texts. Columns: text; infidelity, the mean squared difference between the sum of
    the removed scores and the loss of F over `draws` random sets (Yeh et al. 2019); change, the mean squared loss of F.
    The ratio of their sums is 0 for a perfect prediction and 1 for scores of 0.
    """
    rows = target.rows(texts)
    if len(table) != len(rows.ids):
        raise ValueError(f"the table has {len(table):,} tokens, the texts have {len(rows.ids):,}")
    random = np.random.default_rng(seed)
    removed = (random.random((draws, len(rows.ids))) < 0.5) & ~rows.special
    starts = np.cumsum(rows.lengths) - rows.lengths
    values, _ = _evaluate(target, rows)
    scores = table["score"].to_numpy(np.float64)
    sums = np.zeros((2, len(rows)))

    def keep(items: np.ndarray, width: int) -> np.ndarray:
        keep_shares = np.ones((len(items), width))
        for i, (text, draw) in enumerate(zip(items // draws, items % draws, strict=True)):
            part = slice(starts[text], starts[text] + rows.lengths[text])
            keep_shares[i, : rows.lengths[text]] = ~removed[draw, part]
        return keep_shares

    for passed in target.run(rows, np.repeat(np.arange(len(rows)), draws), keep):
        for item, value in zip(passed.items, passed.value, strict=True):
            text, draw = divmod(int(item), draws)
            part = slice(starts[text], starts[text] + rows.lengths[text])
            lost = values[text] - value
            predicted = scores[part][removed[draw, part]].sum()
            sums[:, text] += (predicted - lost) ** 2 / draws, lost**2 / draws
    return pd.DataFrame({"text": np.arange(len(rows)), "infidelity": sums[0], "change": sums[1]})


def compare_randomised(target: Target, texts: Sequence[str], table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """`measure_agreement` of scores with those of the same architecture with random weights (Adebayo et al. 2018).

    table: of `attribute`, for these texts. A correlation far from 0 means that the scores reflect the words or the
    architecture, not what was learned.
    """
    encoder = target.encoder
    untrained = load_encoder(
        encoder.description, device=encoder.device.type, dtype=str(encoder.dtype).removeprefix("torch."), untrained=seed
    )
    layer, readout, limit = target.layer, target.readout, target.max_length
    random_target = Target(
        untrained, target.direction, layer=layer, readout=readout, baseline=target.baseline, max_length=limit
    )
    method = table["method"].iloc[0] if len(table) else METHODS[0]
    return measure_agreement(table, attribute(random_target, texts, method))


def measure_agreement(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of two tables of scores (text, token_index, special, score) over content tokens.

    Columns: text; correlation, of the scores; magnitude, of their absolute values. NaN where a text has fewer than
    three content tokens, or equal scores for all.
    """
    keys = ["text", "token_index"]
    merged = one.loc[~one["special"], [*keys, "score"]].merge(
        other.loc[~other["special"], [*keys, "score"]], on=keys, suffixes=("_one", "_other"), validate="1:1"
    )
    columns = {"text": np.array(sorted(merged["text"].unique()), np.int64)}
    for name, transform in (("correlation", lambda scores: scores), ("magnitude", abs)):
        ranks = merged[["score_one", "score_other"]].pipe(transform).groupby(merged["text"]).rank()
        columns[name] = _correlate(ranks, merged["text"].to_numpy(), columns["text"])
    return pd.DataFrame(columns)


def compare_with_twins(
    target: Target, pairs: Sequence[tuple[str, str]], differing: Sequence[np.ndarray], method: str = METHODS[0]
) -> pd.DataFrame:
    """What the scores give to the words that differ between the texts of a minimal pair, and by how much F changes.

    pairs: of equal token count, and so with one baseline. differing: for every pair, the indices of the tokens that
    differ. The target has one direction for all texts. Columns pair; change, F of the second text less F of the first;
    scores, those of the differing tokens of the second text less those of the first; complete, of both texts. Complete
    scores of *all* tokens add up to the change; how much of it those of the differing tokens make up is the finding.
    """
    table = attribute(target, [text for pair in pairs for text in pair], method)
    changed = pd.MultiIndex.from_tuples(
        [(2 * i + side, token) for i, tokens in enumerate(differing) for side in (0, 1) for token in tokens]
    )
    is_changed = pd.MultiIndex.from_frame(table[["text", "token_index"]]).isin(changed)
    by_text = table.assign(score=table.score.where(is_changed, 0.0)).groupby("text")
    texts = by_text.agg(score=("score", "sum"), value=("value", "first"), complete=("complete", "all"))
    first, second = texts.iloc[::2].reset_index(drop=True), texts.iloc[1::2].reset_index(drop=True)
    return pd.DataFrame(
        {
            "pair": np.arange(len(pairs)),
            "change": second["value"] - first["value"],
            "scores": second["score"] - first["score"],
            "complete": first["complete"] & second["complete"],
        }
    )


def _correlate(ranks: pd.DataFrame, text_of: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(text,) Pearson's correlation of two columns within every text."""
    mean = ranks.groupby(text_of).transform("mean")
    centred = ranks - mean
    sums = (
        pd.DataFrame(
            {
                "product": centred.iloc[:, 0] * centred.iloc[:, 1],
                "one": centred.iloc[:, 0] ** 2,
                "other": centred.iloc[:, 1] ** 2,
                "count": 1.0,
            }
        )
        .groupby(text_of)
        .sum(min_count=1)
        .loc[texts]
    )
    spread = np.sqrt(sums["one"] * sums["other"]).to_numpy()
    defined = (spread > 0) & (sums["count"] >= 3).to_numpy()
    return np.divide(sums["product"].to_numpy(), spread, out=np.full(len(texts), np.nan), where=defined)
