"""Integrated gradients: what do they cost beyond the passes they consist of, and beside captum?

    python benchmarks/attribution.py        (or: make bench)

1. `attribute` on `TEXTS` sentences at 32 steps, against its own forward and input-gradient passes written out as a bare
   loop: the same batches, the embeddings at hand, no hooks, no table. Median of `TIMES`, taken in turns. Steps are not
   doubled here (a gap of any size is let pass), so that both sides do the same passes.
2. The same of captum's LayerIntegratedGradients, with as many rows a batch, on `FEW` of the sentences: sentences of one
   length together, and one sentence at a time; and how far its scores are from ours.
3. Where there is a CUDA device, 2 is there as well, on all sentences.

The sentences are the built-in ones; the encoder is the embedded one, [CLS] of layer 5 along a probe of tense. All cores
are used.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from clsprobe import Extractor, LogisticProbe, load_encoder
from clsprobe.analysis.formation import attribution
from clsprobe.analysis.formation.attribution import STEPS, Target, attribute, direction_of
from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.extraction.extractor import BUDGET, plan
from clsprobe.probes.tasks.split import take

TEXTS, FEW, TIMES, LAYER = 500, 40, 3, 5


def seconds(run: Callable[[], object]) -> float:
    """Wall clock of one call."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Bare:
    """The layers up to `LAYER` on embeddings that are at hand, and nothing else."""

    def __init__(self, encoder: Encoder, direction: np.ndarray, texts: list[str]) -> None:
        self.model, self.direction = encoder.model, torch.from_numpy(direction).float().to(encoder.device)
        rows = encoder.tokenize(texts)
        words = encoder.model.get_input_embeddings()
        budget = BUDGET[encoder.device.type]

        def batches(of: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
            made = [encoder.batch([rows[i] for i in of[part]]) for part in plan(rows.lengths[of], budget)]
            return [(words(one.ids).detach(), one.real) for one in made]

        self.once, self.steps = batches(np.arange(len(rows))), batches(np.arange(len(rows)).repeat(STEPS))

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


def captums(bare: Bare, encoder: Encoder, texts: list[str], *, together: bool) -> dict[int, np.ndarray]:
    """Scores of captum, of sentences of one length together or of one at a time."""
    from captum.attr import LayerIntegratedGradients

    rows, words = encoder.tokenize(texts), encoder.model.get_input_embeddings()
    budget, found = BUDGET[encoder.device.type], {}

    def forward(ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return bare.forward(words(ids), real)

    method = LayerIntegratedGradients(forward, words)
    for part in plan(rows.lengths, budget if together else 1, equal=True):
        batch = encoder.batch([rows[i] for i in part])
        blank = batch.ids.where(batch.special, encoder.tokenizer.mask_token_id)
        size = max(len(part), budget // batch.ids.shape[1])
        told = method.attribute(
            batch.ids, blank, additional_forward_args=(batch.real,), n_steps=STEPS, internal_batch_size=size
        )
        found |= dict(zip(part.tolist(), told.sum(-1).cpu().numpy(), strict=True))
    return found


def compare(device: str, texts: list[str], few: list[str], direction: np.ndarray) -> None:
    """Print the figures of one device."""
    encoder = load_encoder(device=device)
    target, bare = Target(encoder, direction, layer=LAYER), Bare(encoder, direction, texts)
    attribute(target, texts[:20])  # what is slow only once
    ours, passes = [], []
    for _ in range(TIMES):
        ours.append(seconds(lambda: attribute(target, texts)))
        passes.append(seconds(bare.run))
    ratio = statistics.median(ours) / statistics.median(passes)
    print(f"{device}: {len(texts)} sentences at {STEPS} steps", flush=True)
    print(f"  attribute              {statistics.median(ours):7.2f} s")
    print(f"  its passes alone       {statistics.median(passes):7.2f} s   ratio {ratio:.3f}   (at most 1.15)")
    table = attribute(target, few)
    own = seconds(lambda: attribute(target, few))
    for together, name in ((True, "captum, batched"), (False, "captum, one by one")):
        theirs = captums(bare, encoder, few, together=together)
        taken = seconds(lambda together=together: captums(bare, encoder, few, together=together))
        off = max(
            np.abs(theirs[text] - scores).max() / np.abs(scores).max()
            for text, scores in ((text, one["score"].to_numpy()) for text, one in table.groupby("text"))
        )
        print(
            f"  {name:22} {taken:7.2f} s on {len(few)}, ours {own:.2f} s: {taken / own:.2f} x, scores within {off:.1e}"
        )


if __name__ == "__main__":
    task = take(load("grammar:tense", SourceOptions()).tasks[0], TEXTS, seed=0)
    sentences = list(task.texts)
    cell = Extractor(load_encoder(device="cpu"), ["cls"], layers=[LAYER])(sentences).cell(LAYER, "cls")
    along = direction_of(LogisticProbe().fit(cell, task.y))
    attribution.TOLERANCE = np.inf
    compare("cpu", sentences, sentences[:FEW], along)
    if torch.cuda.is_available():
        compare("cuda", sentences, sentences, along)
