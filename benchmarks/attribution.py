"""Integrated gradients: what do they cost beyond their own passes, and compared with captum?

    python benchmarks/attribution.py        (or: make bench)

1. `attribute` on `TEXTS` sentences at 32 steps, against its own forward and input-gradient passes written out as a bare
   loop: the same batches, precomputed embeddings, no hooks, no table. Medians of `TIMES`, in turns. Steps are not
   doubled here (any gap is accepted), so that both sides do the same passes.
2. The same with captum's LayerIntegratedGradients, with as many rows a batch, on `FEW` of the sentences: sentences of
   one length together, and one sentence at a time; and how far its scores are from ours.
3. On a CUDA device, 2 is repeated there on all sentences.

The sentences are the built-in ones; the encoder is the embedded one, [CLS] of layer 5 along a probe of tense. All cores
are used.
"""

from __future__ import annotations

from statistics import median

import numpy as np
import torch
from harness import measure_seconds

from clsprobe import Extractor, LogisticProbe, load_encoder
from clsprobe.analysis.formation import attribution
from clsprobe.analysis.formation.attribution import STEPS, Target, attribute, compute_direction
from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.extraction.extractor import BUDGET, plan_batches
from clsprobe.probes.tasks.split import sample_task

TEXTS, FEW, TIMES, LAYER = 500, 40, 3, 5


class BareLoop:
    """The layers up to `LAYER` on precomputed embeddings, and nothing else."""

    def __init__(self, encoder: Encoder, direction: np.ndarray, texts: list[str]) -> None:
        self.model, self.direction = encoder.model, torch.from_numpy(direction).float().to(encoder.device)
        rows = encoder.tokenize(texts)
        words = encoder.model.get_input_embeddings()
        budget = BUDGET[encoder.device.type]

        def embed(indices: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
            batches = [
                encoder.batch([rows[i] for i in indices[part]]) for part in plan_batches(rows.lengths[indices], budget)
            ]
            return [(words(batch.ids).detach(), batch.real) for batch in batches]

        self.once, self.steps = embed(np.arange(len(rows))), embed(np.arange(len(rows)).repeat(STEPS))

    def forward(self, embedded: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """(row,) [CLS] of the layer along the direction."""
        hidden = self.model.embeddings(inputs_embeds=embedded)
        mask = real[:, None, None].expand(-1, 1, real.shape[1], -1)
        for block in self.model.encoder.layer[:LAYER]:
            hidden = block(hidden, mask)
            hidden = hidden if isinstance(hidden, torch.Tensor) else hidden[0]
        return hidden[:, 0] @ self.direction

    def run(self) -> None:
        """Two forward passes a text, for it and its baseline, and as many input gradients as there are steps."""
        with torch.no_grad():
            for embedded, real in [*self.once, *self.once]:
                self.forward(embedded, real)
        for embedded, real in self.steps:
            embedded = embedded.clone().requires_grad_()
            torch.autograd.grad(self.forward(embedded, real).sum(), embedded)


def attribute_with_captum(
    bare: BareLoop, encoder: Encoder, texts: list[str], *, batched: bool
) -> dict[int, np.ndarray]:
    """Scores of captum by text; batched: sentences of one length together, not one at a time."""
    from captum.attr import LayerIntegratedGradients

    rows, words = encoder.tokenize(texts), encoder.model.get_input_embeddings()
    budget, scores = BUDGET[encoder.device.type], {}

    def forward(ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return bare.forward(words(ids), real)

    method = LayerIntegratedGradients(forward, words)
    for part in plan_batches(rows.lengths, budget if batched else 1, equal=True):
        batch = encoder.batch([rows[i] for i in part])
        baseline = batch.ids.where(batch.special, encoder.tokenizer.mask_token_id)
        size = max(len(part), budget // batch.ids.shape[1])
        attributions = method.attribute(
            batch.ids, baseline, additional_forward_args=(batch.real,), n_steps=STEPS, internal_batch_size=size
        )
        scores |= dict(zip(part.tolist(), attributions.sum(-1).cpu().numpy(), strict=True))
    return scores


def compare(device: str, texts: list[str], few: list[str], direction: np.ndarray) -> None:
    """Print the figures of one device."""
    encoder = load_encoder(device=device)
    target, bare = Target(encoder, direction, layer=LAYER), BareLoop(encoder, direction, texts)
    attribute(target, texts[:20])  # warm up
    ours, passes = [], []
    for _ in range(TIMES):
        ours.append(measure_seconds(lambda: attribute(target, texts)))
        passes.append(measure_seconds(bare.run))
    print(f"{device}: {len(texts)} sentences at {STEPS} steps", flush=True)
    print(f"  attribute              {median(ours):7.2f} s")
    ratio = median(ours) / median(passes)
    print(f"  its passes alone       {median(passes):7.2f} s   ratio {ratio:.3f}   (at most 1.15)")
    table = attribute(target, few)
    own = measure_seconds(lambda: attribute(target, few))
    for batched, name in ((True, "captum, batched"), (False, "captum, one by one")):
        theirs = attribute_with_captum(bare, encoder, few, batched=batched)
        other = measure_seconds(lambda batched=batched: attribute_with_captum(bare, encoder, few, batched=batched))
        by_text = ((text, rows["score"].to_numpy()) for text, rows in table.groupby("text"))
        error = max(np.abs(theirs[text] - scores).max() / np.abs(scores).max() for text, scores in by_text)
        speed = f"{other:7.2f} s on {len(few)}, ours {own:.2f} s: {other / own:.2f} x"
        print(f"  {name:22} {speed}, scores within {error:.1e}")


if __name__ == "__main__":
    task = sample_task(load("grammar:tense", SourceOptions()).tasks[0], TEXTS, seed=0)
    sentences = list(task.texts)
    cell = Extractor(load_encoder(device="cpu"), ["cls"], layers=[LAYER])(sentences).cell(LAYER, "cls")
    direction = compute_direction(LogisticProbe().fit(cell, task.y))
    attribution.TOLERANCE = np.inf
    compare("cpu", sentences, sentences[:FEW], direction)
    if torch.cuda.is_available():
        compare("cuda", sentences, sentences, direction)
