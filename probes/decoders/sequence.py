"""The sequence of tokens: a language model that reads the vector as its first token.

1. Without a name the model is a small causal transformer (pre-norm; Radford et al. 2019) with embeddings tied to its
   outputs and initialised from the encoder's. With a name it is any causal model of transformers, tuned or frozen. The
   vocabulary is restricted to the tokens of train.
2. The prefix is a learned vector plus a linear map of h; the small transformer has another map of h for every position,
   so that it includes the slot decoder. The maps start at 0: at first the model ignores h.
3. The blind decoder, h = 0, is trained first. Training continues from it for the decoder of every cell and, on the same
   batches, for the blind decoder itself, so that they differ in the information of h only.
4. The output layer and its softmax are computed in chunks that fit the cache, together with their gradients (`_Nats`).
   Training runs in bfloat16 if the hardware supports it; bits are measured in float32.

By the chain rule the bits of the tokens sum to those of the text: the reduction by a vector estimates information.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from clsprobe.probes.decoders.base import END, UNSEEN, Decoder, Pace, compute_digest, train_parameters
from clsprobe.probes.encoders.describing import describe_decoder
from clsprobe.probes.encoders.finding import check_files, find_decoder_folder
from clsprobe.probes.encoders.tokenizer_files import LoadedTokenizer, load_tokenizer
from clsprobe.probes.errors import InputError

PACE = Pace(rate=2e-3, batch=128, rounds=24)
TUNED_RATE = 5e-5  # the initial learning rate of pretrained parameters
ADDED_PARAMETERS = ("prefix", "map", "bias")  # parameters added to a pretrained model
DROPOUT = 0.1
CHUNK = 1 << 20  # logits in memory at once
MIN_INPUT = 1e-3  # standard deviations: below it the vectors of a cell are constant
AHEAD = 1e-3  # of the largest hidden state: more than rounding in a causal model
MAX_TEXTS = 512  # at once, outside of training
BLIND = ("no input", "no input again")  # the trainings without vectors


class SequenceDecoder(Decoder):
    """A causal language model of the training texts, given a vector.

    name: a causal model of transformers, a folder or a hub name; None: a small transformer of `width` and `depth`.
    frozen: train only the prefix of a named model.

    Fitted: written_ (cell + 1,) the trained tensors of every decoder, the blind one's last.
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

    def checkpoints(self, path: Path, cells: int) -> list[Path]:
        """A file for every training: those without input, and one for every cell."""
        return [_part_of(path, what) for what in (*BLIND, *(_name_cell(cell, cells) for cell in range(cells)))]

    def _train(
        self, X: Tensor, codes: Tensor, X_dev: Tensor, codes_dev: Tensor, table: np.ndarray | None, path: Path | None
    ) -> None:
        device = X.device.type
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device == "cuda" else []):
            torch.manual_seed(self.random_state)
            self.writer_ = self._make_writer(table, codes).to(X.device)
            settings = self.name, self.frozen, self.width, self.depth, self.pace, self.random_state
            model_digest = describe_decoder(self.name).digest if path and self.name else None
            digest = compute_digest(settings, model_digest, X, codes, X_dev, codes_dev, table) if path else ""
            parameters = dict(self.writer_.named_parameters())
            parameters = {name: value for name, value in parameters.items() if value.requires_grad}
            start = {name: value.detach().clone() for name, value in parameters.items()}
            tuned = [name for name in parameters if self.name and name not in ADDED_PARAMETERS]
            rate_shares = dict.fromkeys(tuned, TUNED_RATE / self.pace.rate)
            self.written_: list[dict[str, Tensor]] = []

            def learn(x: Tensor, x_dev: Tensor, begin: dict[str, Tensor], what: str) -> dict[str, Tensor]:
                self._load(begin)
                cell_path = path and _part_of(path, what)
                train_parameters(
                    parameters,
                    lambda rows, step: self._compute_gradients(x[rows], codes[rows], step),
                    lambda: torch.tensor([self._nats(x_dev, codes_dev).sum()]),
                    len(codes),
                    self.pace,
                    seed=self.random_state,
                    description=f"sequence decoder, {what}",
                    path=cell_path,
                    digest=digest,
                    rate_shares=rate_shares,
                )
                return {name: value.detach().clone() for name, value in parameters.items()}

            first = learn(X[-1], X_dev[-1], start, BLIND[0])
            blind = learn(X[-1], X_dev[-1], first, BLIND[1])
            for cell in range(len(X) - 1):
                has_input = float(X[cell].abs().max()) > MIN_INPUT  # constant vectors are 0 after standardisation
                what = _name_cell(cell, len(X) - 1)
                self.written_.append(learn(X[cell], X_dev[cell], first, what) if has_input else blind)
            self.written_.append(blind)

    def _make_writer(self, table: np.ndarray | None, codes: Tensor) -> _SmallTransformer | _PretrainedModel:
        counts = torch.bincount(codes[codes >= 0], minlength=len(self.tokens_)).double().cpu()
        odds = torch.cat([counts, torch.tensor([float(len(codes))])]).add(0.5).log().float()
        if self.name is not None:
            return _PretrainedModel(self.name, self.tokens_, self.dim_, frozen=self.frozen)
        return _SmallTransformer(self.dim_, self.width, self.depth, self.slots_ + 1, odds - odds.logsumexp(0), table)

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
    def _compute_gradients(self, x: Tensor, codes: Tensor, step: int) -> None:
        torch.manual_seed(self.random_state * 1_000_003 + step)  # the same dropout for every cell
        writer = self.writer_.train()
        writer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16_):
            hidden, targets = self._hidden(x, codes)
            known = targets >= 0
            dtype = torch.bfloat16 if self.bfloat16_ else torch.float32
            nats = _Nats.apply(hidden[known], writer.outputs(), writer.bias, targets[known], len(codes), dtype)
        nats.backward()

    def _hidden(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden states (token, width) that predict every token and end, and their targets (token,)."""
        targets = self._targets(codes)
        present = (targets >= 0) | (targets == UNSEEN)
        length = int(present.sum(1).max())
        targets, present = targets[:, :length], present[:, :length]
        hidden = self.writer_(x, targets[:, :-1].clamp(min=-1), present)
        return hidden, targets[present]

    @torch.no_grad()
    def _nats(self, x: Tensor, codes: Tensor) -> Tensor:
        """(text, slot + 1) nats of every token and end, float64; 0 where there is none."""
        writer = self.writer_.eval()
        nats_by_slot = torch.zeros(codes.shape, dtype=torch.float64, device=x.device)
        order = (codes >= UNSEEN).sum(1).argsort()  # texts of one length together
        outputs = writer.outputs().float().T
        for rows in order.split(MAX_TEXTS):
            hidden, targets = self._hidden(x[rows], codes[rows])
            nats = torch.zeros(len(targets), dtype=torch.float64, device=x.device)
            for part in torch.arange(len(targets), device=x.device).split(max(1, CHUNK // outputs.shape[1])):
                Z = (hidden[part].float() @ outputs + writer.bias).log_softmax(1)
                target_nats = Z.gather(1, targets[part].clamp(min=0)[:, None])[:, 0]
                nats[part] = -target_nats.double().where(targets[part] >= 0, 0)
            batch_nats = torch.zeros(codes[rows].shape, dtype=torch.float64, device=x.device)
            batch_nats[codes[rows] >= UNSEEN] = nats
            nats_by_slot[rows] = batch_nats
        return nats_by_slot

    # --------------------------------------------------------------------------------------------------------- reading

    def _bits(self, X: Tensor, cells: np.ndarray, codes: Tensor) -> np.ndarray:
        bits = np.empty((len(X), *codes.shape))
        for i, cell in enumerate(cells):
            self._load(self.written_[cell])
            bits[i] = self._nats(X[i], codes).cpu().numpy() / np.log(2)
        return bits

    def _generate(self, X: Tensor, cells: np.ndarray) -> list[list[np.ndarray]]:
        return [[texts[0] for texts in self._candidates(x, int(cell), 1)] for x, cell in zip(X, cells, strict=True)]

    @torch.no_grad()
    def _candidates(self, x: Tensor, number: int, beams: int) -> list[list[np.ndarray]]:
        from clsprobe.probes.decoders.search import beam_search

        self._load(self.written_[number])
        self.writer_.eval()
        outputs, size = self.writer_.outputs().float().T, len(self.tokens_) + 1
        blind = not x.any()  # the blind decoder writes one text

        def predict_next(rows: Tensor, codes: Tensor) -> Tensor:
            """(row, token + 1) log probabilities of the token after `codes` (row, slot)."""
            present = torch.ones(len(codes), codes.shape[1] + 1, dtype=torch.bool, device=x.device)
            hidden = self.writer_(x[rows], codes, present).unflatten(0, present.shape)[:, -1]
            return (hidden.float() @ outputs + self.writer_.bias).log_softmax(1)

        beams_by_text = beam_search(
            predict_next, 1 if blind else len(x), beams=beams, slots=self.slots_, end=size - 1, device=x.device
        )
        return beams_by_text * len(x) if blind else beams_by_text


class _Nats(torch.autograd.Function):
    """Cross-entropy of x @ table' + bias, summed over tokens and divided by `texts`. The forward pass computes the
    gradients too, in chunks of CHUNK logits."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, table: Tensor, bias: Tensor, targets: Tensor, texts: int, dtype: torch.dtype
    ) -> Tensor:
        x_cast, table_cast = x.detach().to(dtype), table.detach().to(dtype)
        g_x, g_table = torch.empty_like(x_cast), torch.zeros_like(table, dtype=torch.float32)
        g_bias, total = torch.zeros_like(bias), x.new_zeros((), dtype=torch.float64)
        for part in torch.arange(len(x), device=x.device).split(max(64, CHUNK // len(table))):
            part_rows = slice(int(part[0]), int(part[-1]) + 1)
            Z = (x_cast[part_rows] @ table_cast.T).float().add_(bias)
            target_logits = Z.gather(1, targets[part_rows, None])
            normalisers = Z.logsumexp(1, keepdim=True)
            total += (normalisers - target_logits).sum(dtype=torch.float64)
            P = Z.sub_(normalisers).exp_()
            P.scatter_add_(1, targets[part_rows, None], torch.full_like(target_logits, -1))
            P /= texts
            g_bias += P.sum(0)
            P = P.to(dtype)
            g_x[part_rows] = P @ table_cast
            if ctx.needs_input_grad[1]:
                g_table += P.T @ x_cast[part_rows]
        ctx.save_for_backward(g_x, g_table, g_bias)
        ctx.dtypes = x.dtype, table.dtype, bias.dtype
        return total / texts

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        needs = ctx.needs_input_grad
        gradients = [
            (grad * slopes[0]).to(dtype) if needed else None
            for grad, dtype, needed in zip(ctx.saved_tensors, ctx.dtypes, needs[:3], strict=True)
        ]
        return *gradients, None, None, None


class _SmallTransformer(nn.Module):
    """A small causal transformer over packed texts: only attention works on padded ones."""

    def __init__(self, dim: int, width: int, depth: int, slots: int, odds: Tensor, table: np.ndarray | None) -> None:
        super().__init__()
        self.prefix = nn.Parameter(torch.randn(width) * 0.02)
        self.map = nn.Parameter(torch.zeros(dim, slots, width))
        self.table = nn.Parameter(_initialise_table(table, len(odds), width))
        self.bias = nn.Parameter(odds.clone())
        self.places = nn.Parameter(torch.randn(slots, width) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, depth) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def outputs(self) -> Tensor:
        """(token + 1, width)."""
        return self.table

    def forward(self, x: Tensor, codes: Tensor, present: Tensor) -> Tensor:
        """(token, width) at the positions of `present` (text, slot + 1); codes (text, slot), -1 where unknown."""
        known = functional.embedding(codes.clamp(min=0), self.table) * (codes >= 0)[..., None]
        first = self.prefix.expand(len(x), 1, -1)
        inputs = torch.cat([first, known * math.sqrt(self.table.shape[1])], 1) + self.places[: present.shape[1]]
        inputs = inputs + (x @ self.map[:, : present.shape[1]].flatten(1)).view(inputs.shape)
        z = functional.dropout(inputs[present], DROPOUT, self.training)
        mask = None if bool(present.all()) else present
        for block in self.blocks:
            z = block(z, mask, present.shape)
        return self.norm(z)


class _Block(nn.Module):
    """Attention and a feed-forward layer, pre-norm with residual connections."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.heads = max(1, width // 64)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.asks, self.says = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widens, self.narrows = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for last in (self.says, self.narrows):
            nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * depth))
            nn.init.zeros_(last.bias)

    def forward(self, z: Tensor, present: Tensor | None, shape: torch.Size) -> Tensor:
        """z (token, width) at the positions of `present` (text, slot), None if all are."""
        projected = self.asks(self.before(z))
        if present is None:
            padded = projected.unflatten(0, shape)
        else:
            padded = projected.new_zeros(*shape, projected.shape[1])
            padded[present] = projected
        q, k, v = padded.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        packed = attended.flatten(0, 1) if present is None else attended[present]
        z = z + functional.dropout(self.says(packed), DROPOUT, self.training)
        inner = functional.gelu(self.widens(self.between(z)), approximate="tanh")
        return z + functional.dropout(self.narrows(inner), DROPOUT, self.training)


def _initialise_table(table: np.ndarray | None, size: int, width: int) -> Tensor:
    """(token + 1, width): the principal components of the encoder's embeddings, the rest random."""
    embeddings = torch.randn(size, width) / math.sqrt(width)
    if table is not None:
        centred = table.astype(np.float64) - table.mean(0)
        spread, directions = np.linalg.eigh(centred.T @ centred)
        components = centred @ directions[:, spread.argsort()[::-1][:width]]
        components = components / max(components.std(), 1e-12) / math.sqrt(width)
        embeddings[:-1, : components.shape[1]] = torch.from_numpy(components).float()
    return embeddings * 0.5


class _PretrainedModel(nn.Module):
    """A causal model of transformers, its vocabulary restricted to given tokens and its end token."""

    def __init__(self, name: str, tokens: np.ndarray, dim: int, *, frozen: bool) -> None:
        super().__init__()
        model, loaded = load_causal(name)
        vocabulary = torch.from_numpy(np.append(tokens, loaded.tokenizer.eos_token_id))
        self.body = model.base_model
        self.body.requires_grad_(not frozen)
        inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        tied = inputs.data_ptr() == outputs.data_ptr()
        self.table = nn.Parameter(inputs.detach()[vocabulary].clone(), requires_grad=not frozen)
        self.head = None if tied else nn.Parameter(outputs.detach()[vocabulary].clone(), requires_grad=not frozen)
        self.bias = nn.Parameter(torch.zeros(len(vocabulary)))
        self.body.get_input_embeddings().weight.requires_grad_(False)  # the whole vocabulary: not used
        width = self.table.shape[1]
        self.prefix = nn.Parameter(self.table.detach().mean(0).clone())
        self.map = nn.Parameter(torch.zeros(dim, width))

    def outputs(self) -> Tensor:
        """(token + 1, width)."""
        return self.table if self.head is None else self.head

    def forward(self, x: Tensor, codes: Tensor, present: Tensor) -> Tensor:
        """Like `_SmallTransformer.forward`."""
        known = functional.embedding(codes.clamp(min=0), self.table) * (codes >= 0)[..., None]
        inputs = torch.cat([(self.prefix + x @ self.map)[:, None], known], 1)
        output = self.body(inputs_embeds=inputs, attention_mask=present.long(), use_cache=False)
        return output.last_hidden_state[present]


def load_causal(name: str) -> tuple[Any, LoadedTokenizer]:
    """A causal model of transformers and its tokenizer, from a folder, the cache or the hub.

    Raises InputError also if weights are missing, the tokenizer is another model's, or a token sees later ones.
    """
    from transformers import AutoModelForCausalLM

    from clsprobe.probes.encoders.loading import load_config
    from clsprobe.probes.encoders.messages import as_input_error, quiet_transformers
    from clsprobe.probes.encoders.preview import refuse_foreign_tokenizer

    folder = find_decoder_folder(name)
    check_files(name, folder)
    with quiet_transformers(), as_input_error(name, "cannot be loaded as a causal language model"):
        loaded = load_tokenizer(folder)
        result: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=load_config(folder),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model, report = result
    if loaded.tokenizer.eos_token_id is None:
        raise InputError("--decoder", f"the tokenizer of {name} has no token for the end of a text", "Use another")
    if missing := sorted(report["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        what = f"the weights of {name} lack {', '.join(missing[:3])}{more}"
        raise InputError("--decoder", what, "Use a whole causal model, with its own config.json")
    with as_input_error(name, "cannot be run on embeddings"):
        rows = model.get_input_embeddings().weight.shape[0]
        vocabulary = loaded.tokenizer.get_vocab()
        if (size := max(vocabulary.values()) + 1) > rows:  # any of them may be generated
            what = f"its tokenizer knows {size:,} tokens, its embedding table {rows:,}"
            raise InputError(name, what, "Use its own tokenizer, or model.resize_token_embeddings")
        refuse_foreign_tokenizer(describe_decoder(name, vocab_size=rows), vocabulary)
        if _sees_ahead(model):
            raise InputError("--decoder", f"the tokens of {name} see those that follow", "Use a causal language model")
    return model, loaded


def _name_cell(cell: int, cells: int) -> str:
    return f"cell {cell + 1} of {cells}"


def _part_of(path: Path, training: str) -> Path:
    """The checkpoint of one training."""
    return path.with_name(f"{path.stem}.{training.replace(' ', '-')}{path.suffix}")


@torch.no_grad()
def _sees_ahead(model: Any) -> bool:
    """Whether hidden states depend on later tokens, called as `_PretrainedModel` does."""
    table = model.get_input_embeddings().weight
    embeddings = torch.randn(4, table.shape[1], generator=torch.Generator().manual_seed(0)) * table.std()
    inputs = torch.stack([embeddings, torch.cat([embeddings[:-1], -embeddings[-1:]])])
    mask = torch.ones(2, 4, dtype=torch.int64)
    hidden = model.base_model.eval()(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state
    hidden @ model.get_output_embeddings().weight.T  # an error here is one of the model
    a, b = hidden[:, :-1]
    return bool((a - b).abs().max() > AHEAD * a.abs().max())
