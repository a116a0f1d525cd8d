"""The contract of a readout, for its author's tests: `check_readout`.

1. The texts: rows of token ids with hidden states of their own, drawn at random. Empty, of one token, short, longer
   than any other, pairs, with [CLS] at either end or without any special token. With an encoder: its own tokens and
   hidden states.
2. Every text is read by itself, as it is. Then all of them together, padded; with other numbers, NaN among them, on
   the padding; in another order; after another batch. No vector may change.
3. What was read is compared with what the readout says of itself: `width`, `present`, and `weights` of a `Weighted`.

Every violation is an AssertionError that says what is wrong and how to fix it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from clsprobe.probes.encoders.tokenizing import Batch, text_seed
from clsprobe.probes.extraction.readouts import PLUGIN_NAME, READOUTS, Readout, Weighted
from clsprobe.probes.plugins import forbid_changes
from clsprobe.probes.randomness import forbid_global_randomness
from clsprobe.probes.tasks.texts import pair

if TYPE_CHECKING:
    from torch import Tensor

    from clsprobe.probes.encoders.encoder import Encoder

T = TypeVar("T")

DIM = 6
CLOSE = 5e-6  # of the size of a vector: rounding in float32
LENGTHS = (0, 1, 1, 2, 3, 5, 8, 40)  # content tokens
CLS_ID, SEP_ID, WORDS = 1, 2, range(10, 100)
FILLS = (math.nan, math.inf, -math.inf, 1e9)  # hidden states on padding
TEXTS = (
    "Cats",
    "no",
    "",
    "Did they not see it?",
    "In 1969, two of them walked (slowly) on the moon.",
    "The cat that the dogs of our neighbours chase every single morning sleeps on the roof of the house, " * 2,
    pair("A man sleeps.", "Nobody is awake, is he?"),
    pair("cats", "dogs"),
)


def check_readout(readout: Readout, encoder: Encoder | None = None, *, seed: int = 0) -> None:
    """Raise AssertionError if a readout breaks the contract that the extractor relies on.

    It reads the real tokens of a text and nothing else: neither padding nor the other texts of a batch, nor their
    order, move a vector by more than 5e-6 of its size. It says truly which texts have a vector (`present`) and how wide
    it is; the weights of a `Weighted` are a distribution over the real tokens, and `read` is their mean. It modifies
    neither the hidden states nor the batch nor a global random state nor the process, such as its working directory.

    encoder: for a readout that needs `bind`; the hidden states are then the encoder's. Otherwise they are drawn under
    `seed`.
    """
    import torch

    assert isinstance(readout, Readout), (
        f"{readout!r} is no readout: derive its class from clsprobe.Readout, or from clsprobe.Weighted where weights "
        "over the tokens say it all, and pass an instance"
    )
    _check_name(readout)
    with torch.no_grad():
        if encoder is None:
            texts = _draw_texts(torch.Generator().manual_seed(seed))
            present = _check_texts(readout, texts)
            _check_half(readout, texts, present)
        else:
            bound = _attempt(lambda: readout.bind(encoder), "bind")
            _check_texts(bound, _run_encoder(bound, encoder))


def _check_name(readout: Readout) -> None:
    if type(readout).__module__ == Readout.__module__:
        return
    name = getattr(readout, "name", None)
    assert isinstance(name, str) and re.fullmatch(PLUGIN_NAME, name), (  # noqa: PT018
        f"the name of a readout is a value of a column and of --readouts, and {name!r} cannot be one: set `name` to a "
        "word of letters, digits and _"
    )
    base = name.partition("[")[0]
    assert base not in (*READOUTS.built_in, *READOUTS.reserved), (
        f"'{name}' is the name of a readout of clsprobe, and equal names are taken for equal readouts: choose a name "
        "of your own"
    )


# ----------------------------------------------------------------------------------------------------------- the texts


@dataclass(frozen=True, eq=False)
class _Text:
    """One tokenized text. ids, special, types: (token,). hidden: (token, dim). cls_id, sep_id: the tokenizer's."""

    ids: Tensor
    special: Tensor
    types: Tensor
    hidden: Tensor
    seed: int
    cls_id: int | None
    sep_id: int | None


def _draw_texts(generator: Any) -> list[_Text]:
    """Texts of all `LENGTHS`, as the tokenizers of BERT, GPT-2, T5 and XLNet make them, and pairs."""
    import torch

    def draw(before: list[int], after: list[int], *lengths: int) -> _Text:
        ids, types = [*before], [0] * len(before)
        for part, length in enumerate(lengths):
            words = torch.randint(WORDS.start, WORDS.stop, (length,), generator=generator)
            ids += [*words.tolist(), *after]
            types += [part] * (length + len(after))
        special = torch.tensor([token < WORDS.start for token in ids], dtype=torch.bool)
        hidden = torch.randn(len(ids), DIM, generator=generator)
        return _Text(torch.tensor(ids), special, torch.tensor(types), hidden, text_seed(str(ids)), CLS_ID, SEP_ID)

    texts = [draw([CLS_ID], [SEP_ID], length) for length in LENGTHS]
    texts += [draw([], [], length) for length in LENGTHS[1:]]
    texts += [draw([], after, length) for after in ([SEP_ID], [SEP_ID, CLS_ID]) for length in LENGTHS[::2]]
    return [*texts, draw([CLS_ID], [SEP_ID], 4, 7), draw([CLS_ID], [SEP_ID], 1, 1), draw([CLS_ID], [SEP_ID], 0, 2)]


def _run_encoder(readout: Readout, encoder: Encoder) -> list[_Text]:
    """`TEXTS` with the hidden states of the last layer, each from a batch of its own."""
    import torch

    from clsprobe.probes.encoders.tap import tap

    rows, last, result = encoder.tokenize(TEXTS), len(encoder.points) - 1, []
    for row in rows:
        states: list[Tensor] = []
        batch = encoder.batch([row])
        with tap(encoder, lambda layer, hidden, states=states: states.append(hidden), [last]):  # type: ignore[misc]
            encoder.forward(batch)
        hidden = encoder.norm(states[0]) if readout.after_norm and encoder.norm else states[0]
        length = len(row.ids)
        types = torch.zeros(length, dtype=torch.long) if row.types is None else torch.from_numpy(row.types).long()
        ids, special, hidden = batch.ids[0, :length], batch.special[0, :length], hidden[0, :length].clone()
        result.append(_Text(ids, special, types.to(ids.device), hidden, row.seed, encoder.cls_id, encoder.sep_id))
    return result


def _make_batch(texts: Sequence[_Text], *, pads: int = 0, fill: float = 0.0) -> tuple[Tensor, Batch]:
    """Hidden states (batch, token, dim) and the batch of texts, padded on the right to the longest and by `pads` more.

    A pad may look like any token: its ids are those of [CLS], and some tokenizers call it special.
    """
    import torch

    size, device = max(len(text.ids) for text in texts) + pads, texts[0].hidden.device
    hidden = torch.full((len(texts), size, texts[0].hidden.shape[1]), fill, device=device)
    ids = torch.full((len(texts), size), texts[0].cls_id or 0, device=device)
    real, special = torch.zeros(len(texts), size, dtype=torch.bool, device=device), torch.full_like(ids, bool(pads)) > 0
    types = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        length = len(text.ids)
        ids[row, :length], real[row, :length], hidden[row, :length] = text.ids.to(device), True, text.hidden
        special[row, :length], types[row, :length] = text.special.to(device), text.types.to(device)
    seeds = torch.tensor([text.seed for text in texts], device=device)
    return hidden, Batch(
        ids, real, special, seeds, texts[0].cls_id, texts[0].sep_id, types if bool(types.any()) else None
    )


# ---------------------------------------------------------------------------------------------------------- the checks


def _check_texts(readout: Readout, texts: list[_Text]) -> Tensor:
    """Check the readout on these texts. Returns (text,) which of them have it."""
    import torch

    vectors = [_read(readout, *_make_batch([text])) for text in texts]
    width = vectors[0].shape[1]
    alone = torch.cat(vectors)
    present = torch.cat([_ask_present(readout, _make_batch([text])[1]) for text in texts])
    assert present.any(), (
        f"none of {len(texts)} ordinary texts has this readout: `present(batch)` is True for texts that have the "
        "position; look at the masks that `weights` or `position` use"
    )
    read = alone[present]
    assert torch.isfinite(read).all(), (
        "the vector of a text that is `present` holds NaN or inf: let `present(batch)` be False where the text has no "
        "such position, and avoid 0 / 0 and the maximum of nothing"
    )
    assert alone[~present].isnan().any(1).all(), (
        "a text is not `present`, and yet has a vector of numbers: return NaN for it, or let `present(batch)` be True"
    )
    others = [replace(text, hidden=text.hidden.roll(1, -1) + 1) for text in texts]
    changed = torch.cat([_read(readout, *_make_batch([text])) for text in others])
    assert (changed[present] != read).any(1).all(), (
        "other hidden states give the same vector: read `hidden`, of which (batch, token, dim) are the axes"
    )

    together, batch = _make_batch(texts, pads=3)
    with forbid_global_randomness(), forbid_changes():
        padded = _read(readout, together, batch)
    again = _read(readout, *_make_batch(texts, pads=3))
    assert _same(padded, again), (
        "reading the same batch twice gives two results: draw from batch.seeds, which belong to the texts, and keep "
        "nothing between two calls"
    )
    assert padded.shape[1] == width, (
        f"the vector has {padded.shape[1]} numbers in a longer batch and {width} in another: the width may depend on "
        "the dimension of a token only"
    )
    padded_present = _ask_present(readout, batch)
    assert torch.equal(padded_present, present), (
        "padding or the other texts of the batch change whether a text is `present`: use batch.real, batch.content and "
        "batch.lengths of its own row"
    )
    for fill in FILLS:
        poisoned = _read(readout, *_make_batch(texts, pads=3, fill=fill))
        assert _moved(padded, poisoned, present) < CLOSE, (
            f"a hidden state of {fill:g} on padding changes the vector: exclude padding by "
            "`hidden.where(batch.real[..., None], 0)`; a product with the mask leaves NaN, as NaN times 0 is NaN"
        )
    assert (moved := _moved(alone, padded, present)) < CLOSE, (
        f"padding or the other texts of a batch move a vector by {moved:.1e} of its size: count batch.lengths instead "
        "of hidden.shape[1], and take nothing from other rows"
    )
    backwards = list(range(len(texts)))[::-1]
    reordered = _read(readout, *_make_batch([texts[i] for i in backwards]))
    assert _moved(alone, reordered[backwards], present) < CLOSE, (
        "the order of the batch changes a vector: take nothing from the number of a row, and draw from batch.seeds"
    )
    if isinstance(readout, Weighted):
        _check_weights(readout, together, batch, padded, present)
    return present


def _check_weights(readout: Weighted, hidden: Tensor, batch: Batch, vectors: Tensor, present: Tensor) -> None:
    import torch

    weights = _attempt(lambda: readout.weights(batch), "weights")
    assert isinstance(weights, torch.Tensor) and weights.shape == batch.ids.shape, (  # noqa: PT018
        f"`weights` gives {_describe(weights)}, not (batch, token) numbers of shape {tuple(batch.ids.shape)}: return "
        "one weight for every token"
    )
    weights = weights.float()
    assert not weights[~present].nan_to_num(1.0).any(), (
        "a text that is not `present` has weights: they are all 0, not NaN; divide by `count.clamp(min=1)`"
    )
    assert not weights[~batch.real].nan_to_num(1.0).any(), (
        "`weights` gives padding a weight: multiply by batch.real, or fill with -inf before a softmax"
    )
    total = weights[present].sum(1)
    assert (weights >= 0).all() and ((total - 1).abs() < 1e-5).all(), (  # noqa: PT018
        f"weights are no distribution over the tokens (they sum to {total.min():.3f} ... {total.max():.3f}): let them "
        "be 0 or more, and divide by their sum"
    )
    mean = Weighted.read(readout, hidden, batch)
    assert _moved(vectors, mean, present) < CLOSE, (
        "`read` is not the mean with these `weights`: leave `read` to the base class, or derive from Readout instead"
    )


def _check_half(readout: Readout, texts: list[_Text], present: Tensor) -> None:
    import torch

    half = [replace(text, hidden=text.hidden.bfloat16()) for text in texts]
    hidden, batch = _make_batch(half)
    vectors = _read(readout, hidden.bfloat16(), batch)
    assert torch.isfinite(vectors[present]).all(), (
        "hidden states in bfloat16 (--fast) are not read: begin with `hidden.float()`"
    )


def _read(readout: Readout, hidden: Tensor, batch: Batch) -> Tensor:
    """(batch, width) vectors in float32, of hidden states and a batch that are still the same afterwards."""
    import torch

    names = ("ids", "real", "special", "seeds", "types")
    before = hidden.clone(), {name: value.clone() for name in names if (value := getattr(batch, name)) is not None}
    vectors = _attempt(lambda: readout.read(hidden, batch), "read")
    intact = _same(hidden, before[0]) and all(torch.equal(getattr(batch, name), old) for name, old in before[1].items())
    assert intact, (
        "`read` alters the hidden states or the batch, which the next readout reads too: write `hidden = hidden * m`, "
        "which makes a new tensor, instead of `hidden *= m`"
    )
    width = _attempt(lambda: readout.width(hidden.shape[2]), "width")
    expected = len(hidden), width // readout.depth
    assert isinstance(vectors, torch.Tensor) and vectors.shape == expected, (  # noqa: PT018
        f"`read` gives {_describe(vectors)}, not (batch, width) numbers of shape {expected}: return one vector for "
        f"every text, and let `width(dim)` say its size ({width} for tokens of {hidden.shape[2]})"
    )
    assert vectors.is_floating_point(), (
        f"`read` gives {vectors.dtype}, not floating-point numbers: begin with `hidden.float()`"
    )
    return vectors.float()


def _ask_present(readout: Readout, batch: Batch) -> Tensor:
    """(batch,) what `present` says."""
    import torch

    present = _attempt(lambda: readout.present(batch), "present")
    is_mask = isinstance(present, torch.Tensor) and present.dtype == torch.bool
    assert is_mask and present.shape == batch.seeds.shape, (  # noqa: PT018
        f"`present` gives {_describe(present)}, not (batch,) booleans: return True for every text that has the position"
    )
    return present


def _attempt(call: Callable[[], T], method: str) -> T:
    try:
        return call()
    except Exception as error:  # the author's code may raise anything
        raise AssertionError(
            f"`{method}` raised {type(error).__name__}: {error}; texts may be empty or of one token, batches of one "
            "text, padded or not; a readout that needs `bind` is checked with check_readout(readout, encoder)"
        ) from error


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{value.dtype} of shape {tuple(shape)}"


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same, bit for bit but for the kind of a NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _moved(before: Tensor, after: Tensor, present: Tensor) -> float:
    """The largest change of a vector of the texts that are present, as a share of its size; NaN becomes infinite."""
    difference = (before - after)[present].norm(dim=1)
    share = difference / before[present].norm(dim=1).clamp(min=1e-30)
    return float(share.nan_to_num(math.inf, posinf=math.inf).max())
