"""The text word for word: a language model that reads the vector as its first token.

1. Without a name the model is a small causal transformer of our own (pre-norm; Radford et al. 2019), its embeddings
   tied to its outputs and started from the encoder's own. With one it is any causal model of transformers, tuned or
   frozen; its vocabulary is restricted to the tokens of train, as ours is.
2. The prefix is a learned vector plus a linear map of h; ours adds a map of its own to every further place, so that it
   can begin as a slot decoder. The maps start at 0: a model that ignores h is a model of the language alone.
3. The blind decoder, h = 0, is trained first and shared: the decoder of every cell goes on from it, and the blind one
   itself goes on with the same batches, so that a cell and the blind decoder differ by what h tells and nothing else.
4. The last product and its softmax are done in chunks that stay in the cache, their gradients at once (`_Nats`).
   Training runs in bfloat16 where the hardware multiplies in it; bits are measured in float32.

The chain rule makes the sum of the bits that of the whole text: what a vector takes off them estimates information.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clsprobe.probes.decoders.base import END, UNSEEN, Decoder, Pace, digest_of, train
from clsprobe.probes.encoders.describing import Description
from clsprobe.probes.encoders.finding import find_causal
from clsprobe.probes.errors import InputError

PACE = Pace(rate=2e-3, batch=128, rounds=24)
TUNED = 5e-5  # the length of the first steps of a model that was trained before
ADDED = ("prefix", "map", "bias")  # what such a model gets from us
DROPOUT = 0.1
CHUNK = 1 << 20  # logits that are held at once
SAME = 1e-3  # standard deviations
AHEAD = 1e-3  # of the largest hidden state: a causal model moves by rounding
AT_ONCE = 512  # texts, where nothing is learned


class SequenceDecoder(Decoder):
    """A causal language model of the training texts, given a vector.

    name: a causal model of transformers, a folder or a hub name; None: our own of `width` and `depth`. frozen: of a
    named model only the prefix is learned.

    Fitted: written_ (cell + 1,) the learned tensors of every decoder, the last the blind one's.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        frozen: bool = False,
        width: int = 128,
        depth: int = 2,
        pace: Pace = PACE,
        slots: int | None = None,
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__(slots=slots, random_state=random_state, device=device)
        self.name = name
        self.frozen = frozen
        self.width = width
        self.depth = depth
        self.pace = pace

    def _train(
        self, X: Tensor, codes: Tensor, X_dev: Tensor, codes_dev: Tensor, table: np.ndarray | None, keep: Path | None
    ) -> None:
        kind = X.device.type
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if kind == "cuda" else []):
            torch.manual_seed(self.random_state)
            self.writer_ = self._writer(table, codes).to(X.device)
            settings = self.name, self.frozen, self.width, self.depth, self.pace, self.random_state
            model = _folder_of(self.name).digest if keep and self.name else None
            made_of = digest_of(settings, model, X, codes, X_dev, codes_dev, table) if keep else ""
            learned = dict(self.writer_.named_parameters())
            learned = {name: value for name, value in learned.items() if value.requires_grad}
            start = {name: value.detach().clone() for name, value in learned.items()}
            before = {name: TUNED / self.pace.rate for name in learned if self.name and name not in ADDED}
            self.written_: list[dict[str, Tensor]] = []

            def learn(x: Tensor, x_dev: Tensor, begin: dict[str, Tensor], what: str) -> dict[str, Tensor]:
                self._load(begin)
                path = keep and keep.with_name(f"{keep.stem}.{what.replace(' ', '-')}{keep.suffix}")
                train(
                    learned,
                    lambda rows, step: self._slope(x[rows], codes[rows], step),
                    lambda: torch.tensor([self._nats(x_dev, codes_dev).sum()]),
                    len(codes),
                    self.pace,
                    seed=self.random_state,
                    told=f"sequence decoder, {what}",
                    keep=path,
                    made_of=made_of,
                    slower=before,
                )
                return {name: value.detach().clone() for name, value in learned.items()}

            first = learn(X[-1], X_dev[-1], start, "no input")
            again = learn(X[-1], X_dev[-1], first, "no input again")
            for cell in range(len(X) - 1):
                told = float(X[cell].abs().max()) > SAME  # vectors that are all the same are no input
                what = f"cell {cell + 1} of {len(X) - 1}"
                self.written_.append(learn(X[cell], X_dev[cell], first, what) if told else again)
            self.written_.append(again)

    def _writer(self, table: np.ndarray | None, codes: Tensor) -> _Own | _Named:
        counts = torch.bincount(codes[codes >= 0], minlength=len(self.tokens_)).double().cpu()
        odds = torch.cat([counts, torch.tensor([float(len(codes))])]).add(0.5).log().float()
        if self.name is not None:
            return _Named(self.name, self.tokens_, self.dim_, frozen=self.frozen)
        return _Own(self.dim_, self.width, self.depth, self.slots_ + 1, odds - odds.logsumexp(0), table)

    @torch.no_grad()
    def _load(self, tensors: dict[str, Tensor]) -> None:
        parameters = dict(self.writer_.named_parameters())
        for name, value in tensors.items():
            parameters[name].copy_(value)

    # ------------------------------------------------------------------------------------------------------- one batch

    def _targets(self, codes: Tensor) -> Tensor:
        """(text, slot + 1) with the end as the last token."""
        return torch.where(codes == END, len(self.tokens_), codes)

    @torch.enable_grad()
    def _slope(self, x: Tensor, codes: Tensor, step: int) -> None:
        torch.manual_seed(self.random_state * 1_000_003 + step)  # what drops out, the same for every cell
        writer = self.writer_.train()
        writer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half_):
            hidden, targets = self._hidden(x, codes)
            known = targets >= 0
            kind = torch.bfloat16 if self.half_ else torch.float32
            nats = _Nats.apply(hidden[known], writer.outputs(), writer.bias, targets[known], len(codes), kind)
        nats.backward()

    def _hidden(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """(token, width) what stands before every token and end of the texts, and their targets (token,)."""
        targets = self._targets(codes)
        there = (targets >= 0) | (targets == UNSEEN)
        length = int(there.sum(1).max())
        targets, there = targets[:, :length], there[:, :length]
        hidden = self.writer_(x, targets[:, :-1].clamp(min=-1), there)
        return hidden, targets[there]

    @torch.no_grad()
    def _nats(self, x: Tensor, codes: Tensor) -> Tensor:
        """(text, slot + 1) nats of every token and end, float64; 0 where there is none."""
        writer = self.writer_.eval()
        found = torch.zeros(codes.shape, dtype=torch.float64, device=x.device)
        order = (codes >= UNSEEN).sum(1).argsort()  # texts of one length together
        outputs = writer.outputs().float().T
        for rows in order.split(AT_ONCE):
            hidden, targets = self._hidden(x[rows], codes[rows])
            nats = torch.zeros(len(targets), dtype=torch.float64, device=x.device)
            for part in torch.arange(len(targets), device=x.device).split(max(1, CHUNK // outputs.shape[1])):
                Z = (hidden[part].float() @ outputs + writer.bias).log_softmax(1)
                own = Z.gather(1, targets[part].clamp(min=0)[:, None])[:, 0]
                nats[part] = -own.double().where(targets[part] >= 0, 0)
            some = torch.zeros(codes[rows].shape, dtype=torch.float64, device=x.device)
            some[codes[rows] >= UNSEEN] = nats
            found[rows] = some
        return found

    # --------------------------------------------------------------------------------------------------------- reading

    def _bits(self, X: Tensor, cells: np.ndarray, codes: Tensor) -> np.ndarray:
        found = np.empty((len(X), *codes.shape))
        for i, cell in enumerate(cells):
            self._load(self.written_[cell])
            found[i] = self._nats(X[i], codes).cpu().numpy() / np.log(2)
        return found

    def _generate(self, X: Tensor, cells: np.ndarray) -> list[list[np.ndarray]]:
        return [[texts[0] for texts in self._candidates(x, int(cell), 1)] for x, cell in zip(X, cells, strict=True)]

    @torch.no_grad()
    def _candidates(self, x: Tensor, number: int, beams: int) -> list[list[np.ndarray]]:
        from clsprobe.probes.decoders.search import beam_search

        self._load(self.written_[number])
        self.writer_.eval()
        outputs, size = self.writer_.outputs().float().T, len(self.tokens_) + 1
        same = not x.any()  # the blind decoder says one thing only

        def follow(rows: Tensor, told: Tensor) -> Tensor:
            """(row, token + 1) log probabilities of what follows `told` (row, slot)."""
            there = torch.ones(len(told), told.shape[1] + 1, dtype=torch.bool, device=x.device)
            hidden = self.writer_(x[rows], told, there).unflatten(0, there.shape)[:, -1]
            return (hidden.float() @ outputs + self.writer_.bias).log_softmax(1)

        found = beam_search(
            follow, 1 if same else len(x), beams=beams, slots=self.slots_, end=size - 1, device=x.device
        )
        return found * len(x) if same else found


class _Nats(torch.autograd.Function):
    """Cross-entropy of x @ table' + bias, summed over tokens and divided by `texts`; the gradients come with it, chunk
    by chunk, so that no more than CHUNK logits are ever held."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, table: Tensor, bias: Tensor, targets: Tensor, texts: int, kind: torch.dtype
    ) -> Tensor:
        half, wide = x.detach().to(kind), table.detach().to(kind)
        g_x, g_table = torch.empty_like(half), torch.zeros_like(table, dtype=torch.float32)
        g_bias, total = torch.zeros_like(bias), x.new_zeros((), dtype=torch.float64)
        for part in torch.arange(len(x), device=x.device).split(max(64, CHUNK // len(table))):
            here = slice(int(part[0]), int(part[-1]) + 1)
            Z = (half[here] @ wide.T).float().add_(bias)
            own = Z.gather(1, targets[here, None])
            top = Z.logsumexp(1, keepdim=True)
            total += (top - own).sum(dtype=torch.float64)
            P = Z.sub_(top).exp_()
            P.scatter_add_(1, targets[here, None], torch.full_like(own, -1))
            P /= texts
            g_bias += P.sum(0)
            P = P.to(kind)
            g_x[here] = P @ wide
            if ctx.needs_input_grad[1]:
                g_table += P.T @ half[here]
        ctx.save_for_backward(g_x, g_table, g_bias)
        ctx.kinds = x.dtype, table.dtype, bias.dtype
        return total / texts

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        needed = ctx.needs_input_grad
        found = [
            (grad * slopes[0]).to(kind) if need else None
            for grad, kind, need in zip(ctx.saved_tensors, ctx.kinds, needed[:3], strict=True)
        ]
        return *found, None, None, None


class _Own(nn.Module):
    """A small causal transformer over packed texts: only attention sees padding."""

    def __init__(self, dim: int, width: int, depth: int, slots: int, odds: Tensor, table: np.ndarray | None) -> None:
        super().__init__()
        self.prefix = nn.Parameter(torch.randn(width) * 0.02)
        self.map = nn.Parameter(torch.zeros(dim, slots, width))
        self.table = nn.Parameter(_started(table, len(odds), width))
        self.bias = nn.Parameter(odds.clone())
        self.places = nn.Parameter(torch.randn(slots, width) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, depth) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def outputs(self) -> Tensor:
        """(token + 1, width)."""
        return self.table

    def forward(self, x: Tensor, told: Tensor, there: Tensor) -> Tensor:
        """(token, width) of the places of `there` (text, slot + 1); told (text, slot) codes, -1 where unknown."""
        known = functional.embedding(told.clamp(min=0), self.table) * (told >= 0)[..., None]
        first = self.prefix.expand(len(x), 1, -1)
        whole = torch.cat([first, known * math.sqrt(self.table.shape[1])], 1) + self.places[: there.shape[1]]
        whole = whole + (x @ self.map[:, : there.shape[1]].flatten(1)).view(whole.shape)
        z = functional.dropout(whole[there], DROPOUT, self.training)
        packed = None if bool(there.all()) else there
        for block in self.blocks:
            z = block(z, packed, there.shape)
        return self.norm(z)


class _Block(nn.Module):
    """Attention and a feed-forward layer, each normed before and added."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.heads = max(1, width // 64)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.asks, self.says = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widens, self.narrows = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for last in (self.says, self.narrows):
            nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * depth))
            nn.init.zeros_(last.bias)

    def forward(self, z: Tensor, there: Tensor | None, shape: torch.Size) -> Tensor:
        """z (token, width) of the places of `there` (text, slot); None: of all."""
        asked = self.asks(self.before(z))
        if there is None:
            wide = asked.unflatten(0, shape)
        else:
            wide = asked.new_zeros(*shape, asked.shape[1])
            wide[there] = asked
        q, k, v = wide.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        told = seen.flatten(0, 1) if there is None else seen[there]
        z = z + functional.dropout(self.says(told), DROPOUT, self.training)
        inner = functional.gelu(self.widens(self.between(z)), approximate="tanh")
        return z + functional.dropout(self.narrows(inner), DROPOUT, self.training)


def _started(table: np.ndarray | None, size: int, width: int) -> Tensor:
    """(token + 1, width): the encoder's embeddings, turned to their principal components, the rest drawn at random."""
    drawn = torch.randn(size, width) / math.sqrt(width)
    if table is not None:
        centred = table.astype(np.float64) - table.mean(0)
        spread, directions = np.linalg.eigh(centred.T @ centred)
        chosen = centred @ directions[:, spread.argsort()[::-1][:width]]
        drawn[:-1, : chosen.shape[1]] = torch.from_numpy(chosen / max(chosen.std(), 1e-12) / math.sqrt(width)).float()
    return drawn * 0.5


class _Named(nn.Module):
    """A causal model of transformers, its vocabulary restricted to some tokens and its end."""

    def __init__(self, name: str, tokens: np.ndarray, dim: int, *, frozen: bool) -> None:
        super().__init__()
        model, tokenizer = load_causal(name)
        kept = torch.from_numpy(np.append(tokens, tokenizer.eos_token_id))
        self.body = model.base_model
        self.body.requires_grad_(not frozen)
        inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        tied = inputs.data_ptr() == outputs.data_ptr()
        self.table = nn.Parameter(inputs.detach()[kept].clone(), requires_grad=not frozen)
        self.head = None if tied else nn.Parameter(outputs.detach()[kept].clone(), requires_grad=not frozen)
        self.bias = nn.Parameter(torch.zeros(len(kept)))
        self.body.get_input_embeddings().weight.requires_grad_(False)  # the whole vocabulary: not used
        width = self.table.shape[1]
        self.prefix = nn.Parameter(self.table.detach().mean(0).clone())
        self.map = nn.Parameter(torch.zeros(dim, width))

    def outputs(self) -> Tensor:
        """(token + 1, width)."""
        return self.table if self.head is None else self.head

    def forward(self, x: Tensor, told: Tensor, there: Tensor) -> Tensor:
        """As that of our own."""
        known = functional.embedding(told.clamp(min=0), self.table) * (told >= 0)[..., None]
        whole = torch.cat([(self.prefix + x @ self.map)[:, None], known], 1)
        return self.body(inputs_embeds=whole, attention_mask=there.long(), use_cache=False).last_hidden_state[there]


def load_causal(name: str) -> tuple[Any, Any]:
    """A causal model of transformers and its tokenizer, from a folder, the cache or the hub.

    Raises InputError also where weights are missing, the tokenizer is another model's, or a token sees later ones.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from clsprobe.probes.encoders.loading import refuse_foreign_tokenizer
    from clsprobe.probes.encoders.messages import as_input_error, quiet_transformers

    folder = find_causal(name)
    with quiet_transformers(), as_input_error(name, "cannot be loaded as a causal language model"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        model, report = loaded
    if tokenizer.eos_token_id is None:
        raise InputError("--decoder", f"the tokenizer of {name} has no token for the end of a text", "Use another")
    if lacking := sorted(report["missing_keys"]):
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        what = f"the weights of {name} lack {', '.join(lacking[:3])}{more}"
        raise InputError("--decoder", what, "Use a whole causal model, with its own config.json")
    with as_input_error(name, "cannot be run on embeddings"):
        rows = model.get_input_embeddings().weight.shape[0]
        refuse_foreign_tokenizer(_folder_of(name, vocab_size=rows), tokenizer)
        if _sees_ahead(model):
            raise InputError("--decoder", f"the tokens of {name} see those that follow", "Use a causal language model")
    return model, tokenizer


def _folder_of(name: str, **config: int) -> Description:
    """As much of a causal model's description as can be asked of its folder: its name, and the digest of its files."""
    return Description(name, find_causal(name), config, 0, 0, 0)


@torch.no_grad()
def _sees_ahead(model: Any) -> bool:
    """Whether what stands at a place moves when a later token is another: seen as `_Named` uses the model."""
    table = model.get_input_embeddings().weight
    drawn = torch.randn(4, table.shape[1], generator=torch.Generator().manual_seed(0)) * table.std()
    both = torch.stack([drawn, torch.cat([drawn[:-1], -drawn[-1:]])])
    there = torch.ones(2, 4, dtype=torch.int64)
    hidden = model.base_model.eval()(inputs_embeds=both, attention_mask=there, use_cache=False).last_hidden_state
    hidden @ model.get_output_embeddings().weight.T  # an error here is one of the model
    a, b = hidden[:, :-1]
    return bool((a - b).abs().max() > AHEAD * a.abs().max())
