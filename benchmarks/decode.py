"""How fast does the sequence decoder learn, against what this machine can multiply, and what do the decoders get back?

    python benchmarks/decode.py            throughput: seconds
    python benchmarks/decode.py --real     and three decoders on real text: 20 minutes on two cores (not in make bench)

1. Throughput. The products of a step, forward and twice backward, counted in closed form, over the time of the step
   without the optimiser, beside the best rate that plain products of these very shapes reach in the same run: once all
   in float32, once all in bfloat16. Vocabulary and lengths as those of the real texts below.
2. Real text, $CLSPROBE_DATA or ../shared/data: train of EWT, SST-2 and TREC, texts of up to 20 tokens, dealt out anew;
   bag, slot and sequence decoder on cls and mean of the last layer of the embedded model.
"""

from __future__ import annotations

import gzip
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from probes.decode.sequence import SequenceDecoder

DATA = Path(os.environ.get("CLSPROBE_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data").resolve()
TOKENS, DIM, SLOTS = 13_000, 384, 20
LAST = 6


def best(work: Callable[[], object], times: int = 7) -> float:
    """Seconds of the fastest of some runs."""
    found = []
    for _ in range(times + 1):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return min(found[1:])


def throughput(half: bool) -> tuple[float, float]:
    """Operations per second of a training step, and of its products alone."""
    random = np.random.default_rng(0)
    decoder = SequenceDecoder()
    decoder.slots_, decoder.dim_, decoder.half_, decoder.tokens_ = SLOTS, DIM, half, np.arange(TOKENS)
    texts = decoder.pace.batch
    codes = decoder.codes([random.integers(0, TOKENS, n) for n in random.integers(4, SLOTS + 1, texts)])
    decoder.writer_ = decoder._writer(None, codes)
    x, n, w = torch.randn(texts, DIM), int((codes >= -1).sum()), decoder.width
    shapes = [(texts, DIM, (SLOTS + 1) * w)]
    for _ in range(decoder.depth):
        shapes += [(n, w, 3 * w), (n, w, w), (n, w, 4 * w), (n, 4 * w, w)]
    shapes.append((n, w, TOKENS + 1))
    work = sum(6 * a * b * c for a, b, c in shapes)
    kind = torch.bfloat16 if half else torch.float32
    limit = 0.0
    for a, b, c in shapes:
        A, B, C = (torch.randn(*shape).to(kind) for shape in ((a, b), (b, c), (a, c)))
        limit += best(lambda A=A, B=B: A @ B) + best(lambda B=B, C=C: C @ B.T) + best(lambda A=A, C=C: A.T @ C)  # type: ignore[misc]
    return work / best(lambda: decoder._slope(x, codes, 0)), work / limit


def read_texts() -> list[str]:
    """Train texts of the three sets, each once."""
    with gzip.open(DATA / "ud_english_ewt" / "train.conllu.gz", "rt", encoding="utf-8") as file:
        found = [line[9:].strip() for line in file if line.startswith("# text = ")]
    for name in ("sst2", "trec"):
        rows = [line.split("\t") for line in (DATA / name / "train.tsv").read_text(encoding="utf-8").splitlines()]
        found += [row[rows[0].index("text")] for row in rows[1:]]
    return list(dict.fromkeys(found))


def real() -> None:
    """Gains and scores of the three decoders on cls and mean of the last layer."""
    from analysis.reconstruction import compared, gained
    from probes import Extractor, load_encoder
    from probes.decode.bag import BagDecoder
    from probes.decode.slot import SlotDecoder
    from probes.split import split
    from probes.store import usable_folder
    from probes.task import Task

    encoder = load_encoder()
    texts = read_texts()
    ids = [row.ids[~row.special].astype(np.int64) for row in encoder.tokenize(texts)]
    keep = [i for i, one in enumerate(ids) if 0 < len(one) <= SLOTS]
    texts, ids = [texts[i] for i in keep], [ids[i] for i in keep]
    sides = split(Task("texts:all:none", texts, np.zeros(len(texts)), kind="number"), tokens=[i.tobytes() for i in ids])
    states = Extractor(encoder, ["cls", "mean"], layers=[LAST], cache=usable_folder())(texts)
    vectors = np.stack([states.cell(LAST, readout) for readout in ("cls", "mean")])
    rows = {side: np.flatnonzero(sides.side == side) for side in ("train", "dev", "test")}
    cut = {side: (vectors[:, at], [ids[i] for i in at]) for side, at in rows.items()}
    embeddings = encoder.model.get_input_embeddings().weight.detach().numpy()
    print({side: len(at) for side, at in rows.items()})
    test, own = cut["test"]
    for decoder in (BagDecoder(slots=SLOTS), SlotDecoder(slots=SLOTS), SequenceDecoder(slots=SLOTS)):
        begun = time.perf_counter()
        decoder.fit(*cut["train"], dev=cut["dev"], embeddings=embeddings)
        print(f"{type(decoder).__name__}: {time.perf_counter() - begun:.0f} s, {len(decoder.tokens_):,} tokens")
        known = [int(np.isin(one, decoder.tokens_).sum()) for one in own]
        blind, bits = decoder.blind_bits(own), decoder.bits(test, own)
        told = decoder.generate(test)
        nothing = compared(own, [decoder.blind_text()] * len(own))
        for cell, readout in enumerate(("cls", "mean")):
            value, low, high = gained(pd.DataFrame({"blind": blind, "bits": bits[cell], "tokens": known}))
            scores = compared(own, told[cell])
            print(
                f"  {readout}: {value:.3f} bits a token gained ({low:.3f} to {high:.3f}) of "
                f"{blind.sum() / sum(known):.3f}; F1 {scores.f1.mean():.3f} (blind {nothing.f1.mean():.3f}), "
                f"exact {scores.exact.mean():.3f}"
            )
        paired = pd.DataFrame({"blind": bits[0], "bits": bits[1], "tokens": known})
        print("  mean less cls: {:.3f} ({:.3f} to {:.3f})".format(*gained(paired)))


if __name__ == "__main__":
    for half in (False, True):
        rate, limit = throughput(half)
        kind = "bfloat16" if half else "float32"
        print(f"{kind}: {rate / 1e9:.0f} of {limit / 1e9:.0f} Gflop/s, {rate / limit:.0%} of its products' limit")
    if "--real" in sys.argv:
        real()
