"""Extraction: how fast, compared with the hardware's limit and with the code that people usually write.

    python benchmarks/extraction.py [ROUNDS]        (or: make bench; default 5 rounds)

1. 4,000 SST-2 sentences, float32: `Extractor` with its cache on disk, against the plain loop (batch 32, unsorted,
   `output_hidden_states=True`, the same readouts), `SentenceTransformer.encode`, and a bare forward pass over our own
   batches. Every round runs all sides in turn; a ratio is the median over the rounds.
2. Floating-point operations per second for real tokens, against the machine's float32 matrix product.
3. Bytes on disk per value, a warm cache against a cold one, `--fast` against float32.
4. Peak resident memory with 5,000 and 50,000 short texts, on Linux.
5. Encoders of other sizes (random weights, which cost the same): tokens per second, bytes per text.
6. Probe accuracy on TREC and SST-2 with bfloat16 against float32, cell by cell.

SST-2 and TREC are read from $CLSPROBE_DATA, default ../shared/data.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from harness import DATA, measure_seconds

from clsprobe import Extractor, LogisticProbe, load_encoder
from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.analysis.sweep.grid import sweep
from clsprobe.probes.encoders.devices import has_bfloat16
from clsprobe.probes.encoders.encoder import Encoder
from clsprobe.probes.encoders.tap import evaluating
from clsprobe.probes.extraction.extractor import plan_batches
from clsprobe.probes.tasks.split import sample_task

ROUNDS = int(sys.argv[1]) if len(sys.argv) == 2 else 5
COUNT = 4_000


def extract_plainly(encoder: Encoder, texts: list[str]) -> list[np.ndarray]:
    """The usual loop: an array (layer, text, dim) for each of the eight readouts."""
    parts: list[list[np.ndarray]] = [[] for _ in range(8)]
    for start in range(0, len(texts), 32):
        coded = encoder.tokenizer(texts[start : start + 32], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            layers = encoder.model(**coded, output_hidden_states=True).hidden_states
        hidden, mask = torch.stack(layers), coded["attention_mask"]  # (layer, batch, token, dim)
        length = mask.sum(1)
        row = torch.arange(len(length))
        first, content = length * 0, (length - 2).clamp(min=1)
        random = 1 + torch.randint(1_000_000, length.shape) % content
        for i, index in enumerate((first, length - 1, first + 1, (first + 2) % length, length - 2, random)):
            parts[i].append(hidden[:, row, index].numpy())
        real = mask[None, :, :, None]
        parts[6].append(((hidden * real).sum(2) / real.sum(2)).numpy())
        parts[7].append(hidden.masked_fill(real == 0, -torch.inf).amax(2).numpy())
    return [np.concatenate(part, 1) for part in parts]


def measure_product_rate(encoder: Encoder) -> float:
    """Floating-point operations per second of a block's float32 matrix products, on all cores; median of ten."""
    dim, inner = encoder.description.dim, encoder.description.config["intermediate_size"]
    shapes = [(dim, dim)] * 4 + [(dim, inner), (inner, dim)]
    products = [(torch.randn(2_048, rows), torch.randn(columns, rows)) for rows, columns in shapes]

    def block() -> None:
        for a, b in products:
            torch.nn.functional.linear(a, b)

    operations = sum(2.0 * a.numel() * len(b) for a, b in products)
    return operations / median(measure_seconds(block) for _ in range(10))


def count_operations(encoder: Encoder, lengths: np.ndarray) -> float:
    """Floating-point operations that the real tokens need."""
    config = encoder.description.config
    dim = config["hidden_size"]
    per_token = 2 * (4 * dim**2 + 2 * dim * config["intermediate_size"])
    return float(config["num_hidden_layers"] * (per_token * lengths.sum() + 4 * dim * (lengths**2).sum()))


def measure_speed(texts: list[str]) -> None:
    """Print parts 1 to 3."""
    from sentence_transformers import SentenceTransformer

    encoder = load_encoder(device="cpu")
    plain = load_encoder(device="cpu")  # separate: output_hidden_states leaves hooks behind
    peer = SentenceTransformer(str(encoder.description.folder), device="cpu")
    half = load_encoder(device="cpu", dtype="bfloat16") if has_bfloat16("cpu") else None
    rows = encoder.tokenize(texts, encoder.description.max_length)
    lengths = rows.lengths.astype(np.int64)
    batches = [encoder.batch([rows[i] for i in indices]) for indices in plan_batches(lengths, 1_024)]

    def bare() -> None:
        for batch in batches:
            encoder.forward(batch)

    def record(name: str, call: Callable[[], object]) -> None:
        seconds.setdefault(name, []).append(measure_seconds(call))

    seconds: dict[str, list[float]] = {}
    rates, size = [], 0
    _ = Extractor(encoder)(texts[:200]), extract_plainly(plain, texts[:200]), peer.encode(texts[:200])  # warm up
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as cache:
            record("ours", partial(Extractor(encoder, cache=Path(cache)), texts))
            size = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
            record("warm", partial(Extractor(encoder, cache=Path(cache)), texts))
            with evaluating(encoder.model):
                record("bare", bare)
            rates.append(measure_product_rate(encoder))
            record("plain", partial(extract_plainly, plain, texts))
            record("peer", partial(peer.encode, texts, show_progress_bar=False))
            if half:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    record("fast", partial(Extractor(half, cache=Path(cache) / "half"), texts))

    def ratio(over: str, under: str) -> float:
        return median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))

    values = 7 * 8 * len(texts) * encoder.description.dim * 4
    operations = count_operations(encoder, lengths)
    rate = median(operations / s / r for s, r in zip(seconds["ours"], rates, strict=True))
    for name, rounds in seconds.items():
        print(f"  {name:6} {median(rounds):7.2f} s   {lengths.sum() / median(rounds):9,.0f} tokens/s")
    print(f"against the plain loop        {ratio('plain', 'ours'):6.2f} x   (at least 2.0)")
    if half:
        print(f"  --fast against it           {ratio('plain', 'fast'):6.2f} x   (at least 5)")
    print(f"against SentenceTransformer   {ratio('peer', 'ours'):6.2f} x   (at least 1.2; it keeps one vector of 56)")
    product = f"{median(rates) / 1e9:.0f} GFLOP/s"
    print(f"of the matrix product's rate  {rate:6.2f}     (at least 0.85; the product: {product})")
    print(f"of a bare forward pass        {ratio('bare', 'ours'):6.2f} x   (at least 0.93)")
    print(f"bytes on disk                 {size / values:6.3f}     of the raw array (at most 1.02)")
    print(f"a warm cache                  {ratio('warm', 'ours'):6.3f}     of the cold time (at most 0.05)")


def measure_memory() -> None:
    """Print part 4."""
    code = (
        "import sys, pathlib\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from harness import peak_memory\n"
        "from clsprobe import Extractor, load_encoder\n"
        "texts = [f'the {i} birds sing' for i in range(int(sys.argv[1]))]\n"
        "extract = Extractor(load_encoder(device='cpu'), ['cls', 'mean'], cache=pathlib.Path(sys.argv[2]))\n"
        "assert len(extract(texts)) == len(texts)\n"
        "print(peak_memory() - sum(map(sys.getsizeof, texts)))\n"
    )
    peaks = []
    for count in (5_000, 50_000):
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, "-c", code, str(count), cache]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1e6)
    values = f"{peaks[0]:,.0f} and {peaks[1]:,.0f} MB, the texts left out"
    print(f"memory, 5,000 and 50,000 texts {peaks[1] - peaks[0]:5.0f} MB  apart (at most 40; {values})")


def measure_sizes(texts: list[str]) -> None:
    """Print part 5."""
    from transformers import BertConfig, BertModel

    tokenizer = load_encoder(device="cpu").description.folder
    for name, layers, dim in (("base", 12, 768), ("large", 24, 1024)):
        with tempfile.TemporaryDirectory() as folder:
            config = BertConfig(num_hidden_layers=layers, hidden_size=dim, num_attention_heads=dim // 64,
                                intermediate_size=4 * dim)  # fmt: skip
            BertModel(config, add_pooling_layer=False).save_pretrained(folder)
            for file in tokenizer.glob("*token*"):
                shutil.copy(file, folder)
            shutil.copy(tokenizer / "vocab.txt", folder)
            rates = []
            for dtype in ("float32", *(["bfloat16"] if has_bfloat16("cpu") else [])):
                extract = Extractor(load_encoder(folder, device="cpu", dtype=dtype))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    extract(texts[:8])
                    # without the check of the first batch
                    extract._measure_deviation = lambda texts: {}  # type: ignore[method-assign]
                    seconds = measure_seconds(partial(extract, texts))
                count = extract.encoder.tokenize(texts).lengths.sum()
                rates.append(f"{dtype} {count / seconds:7,.0f} tokens/s, {len(texts) / seconds:5.1f} texts/s")
            size = (layers + 1) * 8 * dim * 4 / 1000
            print(f"BERT-{name:6} {layers} x {dim}   {'; '.join(rates)}; {size:,.0f} kB a text")


def compare_accuracy() -> None:
    """Print part 6."""
    for name, count in (("trec", 6_000), ("sst2", COUNT)):
        column = "coarse" if name == "trec" else "label"
        (task,) = load(f"file:{DATA / name}", SourceOptions(label_column=(column,))).tasks
        task = sample_task(task, min(count, len(task.texts)), seed=0)
        tables, warned = [], {}
        for dtype in ("float32", "bfloat16"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                states = Extractor(load_encoder(device="cpu", dtype=dtype))(list(dict.fromkeys(task.texts)))
            warned = states.source["moved by half precision"]
            table = sweep([task], states, {"logistic": LogisticProbe()}, controls=())
            mask = (table.metric == "accuracy") & (table.split == "test") & (table.control == "none")
            tables.append(table[mask].set_index(["layer", "readout"]))
        exact, half = tables
        change = half.value - exact.value
        error = np.sqrt(exact.value * (1 - exact.value) / exact.n_test)
        cells = change.index[change.abs() > 2 * error]
        missed = [cell for cell in cells if f"layer {cell[0]} {cell[1]}" not in warned]
        print(f"--fast on {name:5} {100 * change.mean():+.2f} points on average (at most 0.2), worst cell "
              f"{100 * change[change.abs().idxmax()]:+.1f}; beyond 2 standard errors and not warned of: "
              f"{len(missed)} of {len(change)}; warned of: {len(warned)}")  # fmt: skip


if __name__ == "__main__":
    if not (DATA / "sst2").is_dir():
        sys.exit(f"no SST-2 in {DATA}: set CLSPROBE_DATA")
    (sentences,) = load(f"file:{DATA / 'sst2'}", SourceOptions()).tasks
    measure_speed(list(dict.fromkeys(sample_task(sentences, COUNT, seed=0).texts)))
    measure_sizes([sentences.texts[i] for i in range(0, len(sentences.texts), len(sentences.texts) // 150)][:150])
    if sys.platform == "linux":
        measure_memory()
    if has_bfloat16("cpu"):
        compare_accuracy()
