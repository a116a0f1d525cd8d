"""The linear probe against a loop of scikit-learn's LogisticRegression: how much faster, and is it the same optimum?

    python benchmarks/linear.py        (or: make bench)

1. Speed, as a ratio with both sides in this run: all cells of the embedded model (7 layers x 8 readouts), five
   strengths, on TREC and SST-2 (labels and one shuffled control) and on four label sets of a treebank (Universal
   Dependencies, English Web Treebank) that share their texts. Ours solves the whole grid. Of scikit-learn's problems
   a seeded sample is timed, `TIMED` of them, as many at every strength, and scaled up. Both use all cores. Beside it,
   what a run takes, which leaves out the strengths that dev cannot choose.
2. The value of the objective at our optimum beside scikit-learn's at tol=1e-10, on `COMPARED` problems of these grids.
3. Test accuracy beside scikit-learn's in every cell of TREC.
4. Where there is a CUDA device: how much faster the grid of TREC is there.
5. Peak resident memory of a sweep over 50,000 texts of 768 numbers, 13 layers x 8 readouts, the vectors on disk (16 GB
   of them, for some minutes).

Texts are looked for in $CLSPROBE_DATA, default ../shared/data; what is not there is left out.
"""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from clsprobe import Extractor, load_encoder
from clsprobe.probes.base import STRENGTHS
from clsprobe.probes.linear import _moments, _standardised
from clsprobe.probes.solver import Solution, solve
from clsprobe.probes.tasks.control import shuffled

DATA = Path(os.environ.get("CLSPROBE_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data").resolve()
TIMED, COMPARED = 40, 50
TEXTS, LAYERS, READOUTS, DIM = 50_000, 13, 8, 768
SENTENCES = 5000  # of the treebank


@dataclass(frozen=True, eq=False)
class Grid:
    """X: (cell, text, dim) standardised, y: (text, label set) codes, -1 = no label; X_test, y_test likewise."""

    name: str
    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray

    def problem(self, cell: int, label_set: int) -> tuple[np.ndarray, np.ndarray]:
        """X and codes of the texts that have a label in that set."""
        known = self.y[:, label_set] >= 0
        return self.X[cell][known], self.y[known, label_set]


def read_vectors(train: list[str], test: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Standardised vectors (cell, text, dim) of all layers and readouts."""
    readouts = ["cls", "sep", "token[1]", "token[2]", "token[-1]", "random", "mean", "max"]
    states = Extractor(load_encoder(), readouts)(train + test)
    every = np.stack([states.cell(*cell) for cell in states.cells])
    rows = np.arange(len(train))
    moments = _moments(every[:, rows])
    return _standardised(every[:, rows], *moments), _standardised(every[:, len(train) :], *moments)


def read_table(name: str, label: str) -> Grid:
    """TREC or SST-2, the labels and a shuffled control."""
    sides = []
    for side in ("train", "test"):
        header, *lines = (DATA / name / f"{side}.tsv").read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines]
        columns = dict(zip(header.split("\t"), zip(*rows, strict=True), strict=True))
        sides.append((list(columns["text"]), columns[label]))
    (train, labels), (test, test_labels) = sides
    classes, y = np.unique(labels, return_inverse=True)
    control = shuffled(train, y, np.full(len(y), "train"), 0)
    X, X_test = read_vectors(train, test)
    return Grid(name.upper(), X, np.stack([y, control], 1), X_test, np.searchsorted(classes, test_labels)[:, None])


def read_treebank() -> Grid:
    """Length, tense of the root, number of the root's subject and depth of the tree, where a sentence has them."""
    with gzip.open(DATA / "ud_english_ewt" / "train.conllu.gz", "rt", encoding="utf-8") as lines:
        blocks = lines.read().strip().split("\n\n")
    drawn = np.random.default_rng(0).permutation(len(blocks))
    texts, rows = [], []
    for block in (blocks[i] for i in drawn):
        words = [line.split("\t") for line in block.splitlines() if line[0] != "#" and line.split("\t")[0].isdigit()]
        if len(words) < 3 or len(texts) == SENTENCES:
            continue
        head = {word[0]: word[6] for word in words}
        features = {word[0]: dict(pair.split("=") for pair in word[5].split("|") if "=" in pair) for word in words}
        root = next(word[0] for word in words if word[7] == "root")
        subject = next((word[0] for word in words if word[6] == root and word[7].startswith("nsubj")), "")
        depth = max(sum(1 for _ in _ancestors(word, head)) for word in head)
        tense, number = features[root].get("Tense"), features.get(subject, {}).get("Number")
        rows.append(
            (
                int(np.searchsorted((8, 12, 16, 22, 30), len(words))),
                ("Past", "Pres").index(tense) if tense in ("Past", "Pres") else -1,
                ("Plur", "Sing").index(number) if number in ("Plur", "Sing") else -1,
                int(np.searchsorted((3, 4, 5, 6, 7), depth)),
            )
        )
        texts.append(" ".join(word[1] for word in words))
    X, X_test = read_vectors(texts, texts[:1])
    y = np.array(rows)
    return Grid("EWT, 4 label sets", X, y, X_test, y[:1])


def _ancestors(word: str, head: dict[str, str]) -> Iterator[str]:
    while (word := head[word]) != "0":
        yield word


def ours(grid: Grid, device: str = "cpu") -> tuple[Solution, float]:
    """Every problem of a grid, and the seconds it took."""
    X, y = torch.from_numpy(grid.X).to(device), torch.from_numpy(grid.y).to(device)
    strengths = torch.tensor(STRENGTHS, dtype=torch.float64)
    start = time.perf_counter()
    found = solve(X, y, strengths.to(X))
    converged = found.converged.cpu()  # waits for the device
    seconds = time.perf_counter() - start
    assert converged.all()
    return found, seconds


def drawn_problems(grid: Grid, n: int) -> Iterator[tuple[int, int, int]]:
    """(cell, label set, strength): n of them, as many at every strength, no cell twice while there are others."""
    random = np.random.default_rng(0)
    cells, sets = len(grid.X), grid.y.shape[1]
    order = np.concatenate([random.permutation(cells) for _ in range(n // cells + 1)])
    for i in range(n):
        yield int(order[i]), i // len(STRENGTHS) % sets, i % len(STRENGTHS)


def speed(grid: Grid, goal: int) -> tuple[float, str]:
    """Our seconds and what the comparison says."""
    found, mine = ours(grid)
    theirs = []
    for cell, label_set, strength in drawn_problems(grid, TIMED):
        X, y = grid.problem(cell, label_set)
        start = time.perf_counter()
        LogisticRegression(C=STRENGTHS[strength], max_iter=20_000).fit(X, y)
        theirs.append(time.perf_counter() - start)
    problems, held = found.converged.numel(), np.arange(len(grid.y)) % 10 == 0
    X, y = torch.from_numpy(grid.X), torch.from_numpy(grid.y)
    dev, strengths = (X[:, held], y[held]), torch.tensor(STRENGTHS, dtype=X.dtype)
    X, y = X[:, ~held], y[~held]
    start = time.perf_counter()
    solve(X, y, strengths, dev=dev)
    choosing = time.perf_counter() - start
    return mine, (
        f"{grid.name:18} {problems:5} problems  ours {mine:6.1f} s  scikit-learn {np.mean(theirs) * problems:7.0f} s  "
        f"ratio {np.mean(theirs) * problems / mine:5.1f}   (at least {goal}; {TIMED} problems timed and scaled)\n"
        f"  as a run does it: nine texts of ten, no strengths beyond those that dev may choose   {choosing:6.1f} s  "
        f"ratio {0.9 * np.mean(theirs) * problems / choosing:5.1f}"
    )


def objective(X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: np.ndarray, C: float) -> float:
    """scikit-learn's, in float64; coef (1, dim) for two classes."""
    Z = X @ coef.T + intercept
    Z = np.hstack([np.zeros_like(Z), Z]) if len(coef) == 1 else Z
    return float(-C * log_softmax(Z, axis=1)[np.arange(len(y)), y].sum() + (coef**2).sum() / 2)


def same_optimum(grid: Grid, n: int) -> list[float]:
    """How much larger our objective is than scikit-learn's, relative to it."""
    found, _ = ours(grid)
    worse = []
    for cell, label_set, strength in drawn_problems(grid, n):
        X, y = grid.problem(cell, label_set)
        X, C = X.astype(np.float64), STRENGTHS[strength]
        solver = "newton-cholesky" if len(np.unique(y)) == 2 else "lbfgs"  # each where it is the faster by far
        fitted = LogisticRegression(C=C, tol=1e-10, max_iter=100_000, solver=solver).fit(X, y)
        best = objective(X, y, fitted.coef_, fitted.intercept_, C)
        coef, intercept = (a[cell, label_set, strength].double().numpy() for a in (found.coef, found.intercept))
        if len(coef) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        worse.append(objective(X, y, coef, intercept, C) / best - 1)
    return worse


def same_accuracy(grid: Grid, strength: int = 2) -> np.ndarray:
    """Our test accuracy less scikit-learn's in every cell, in points."""
    found, _ = ours(grid)
    points = []
    for cell in range(len(grid.X)):
        X, y = grid.problem(cell, 0)
        fitted = LogisticRegression(C=STRENGTHS[strength], tol=1e-8, max_iter=20_000).fit(X.astype(np.float64), y)
        Z = grid.X_test[cell] @ found.coef[cell, 0, strength].numpy().T + found.intercept[cell, 0, strength].numpy()
        right, theirs = Z.argmax(1) == grid.y_test[:, 0], fitted.predict(grid.X_test[cell]) == grid.y_test[:, 0]
        points.append(100 * (right.mean() - theirs.mean()))
    return np.array(points)


def swept(cache: Path) -> None:
    """Write vectors to `cache`, sweep over them, and print this process's peak resident bytes."""
    import pandas as pd

    from clsprobe import LogisticProbe, States, Task
    from clsprobe.analysis.sweep.grid import sweep
    from clsprobe.probes.extraction.states import name_of
    from clsprobe.probes.extraction.store import Store

    random, names = np.random.default_rng(0), tuple(f"readout {i}" for i in range(READOUTS))
    y, rows = random.integers(0, 2, TEXTS), 500  # a shard
    store = Store(cache, {"made": "for the benchmark"}, name="random", size=TEXTS * LAYERS * READOUTS * DIM * 4)
    shards = range(TEXTS // rows)
    for shard in shards:
        tensors = {}
        for layer in range(LAYERS):
            for name in names:
                vectors = random.standard_normal((rows, DIM), np.float32)
                vectors[:, 0] += y[shard * rows : (shard + 1) * rows]
                tensors[name_of(layer, name)] = vectors
        assert store.begin(shard)
        store.add(shard, tensors | {"present": np.ones((rows, READOUTS), np.uint8)}, 0)
    at = np.arange(TEXTS)
    where = pd.DataFrame({"shard": at // rows, "at": at % rows, "tokens": 8, "ids": at})
    texts = [f"{i:05d}" for i in at]
    states = States(
        texts, tuple(range(LAYERS)), names, DIM, [store.shard(n) for n in shards], where, 512,
        {"model": "random", "control": "none", "seed": None},
    )  # fmt: skip
    split = np.array(["train", "train", "train", "dev", "test"])[at % 5]
    task = Task("hand:made:label", texts, np.array(["a", "b"])[y], "class", split)
    start = time.perf_counter()
    table = sweep([task], states, {"logistic": LogisticProbe()}, controls=("shuffled",), allow_overlap=True)
    assert (table[(table.control == "none") & (table.metric == "accuracy")].value > 0.6).all()
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())  # getrusage's is the parent's too
    assert peak
    print(int(peak[1]) * 1024, time.perf_counter() - start)


def memory() -> None:
    """Print part 5, on Linux."""
    if sys.platform != "linux":
        return
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run([sys.executable, __file__, cache], capture_output=True, text=True, check=True)
    peak, seconds = map(float, done.stdout.split())
    told = f"{TEXTS:,} texts x {LAYERS} x {READOUTS} cells of {DIM}, {seconds:.0f} s"
    print(f"memory             {peak / 1e9:.2f} GB at its peak (at most 2; {told})")


if __name__ == "__main__" and sys.argv[1:]:
    swept(Path(sys.argv[1]))
elif __name__ == "__main__":
    memory()
    print(f"{torch.get_num_threads()} cores")
    worse: list[float] = []
    for name, label, goal in (("trec", "coarse", 30), ("sst2", "label", 15)):
        if not (DATA / name).is_dir():
            print(f"no {name} in {DATA}: set CLSPROBE_DATA")
            continue
        grid = read_table(name, label)
        seconds, told = speed(grid, goal)
        print(told, flush=True)
        worse += same_optimum(grid, COMPARED // 2)
        if name == "trec":
            points = abs(same_accuracy(grid))
            print(f"test accuracy      {len(points)} cells  largest difference {points.max():.2f} points (at most 0.2)")
            if torch.cuda.is_available():
                ours(grid, "cuda")  # once for its start
                print(f"{torch.cuda.get_device_name()}: {seconds / ours(grid, 'cuda')[1]:.1f} times as fast as the CPU")
    if worse:
        print(f"objective          {len(worse)} problems  at most {max(worse):.1e} above scikit-learn's (at most 1e-6)")
    if (DATA / "ud_english_ewt").is_dir():
        print(speed(read_treebank(), 40)[1], flush=True)
