"""The linear probe compared with scikit-learn's LogisticRegression: how much faster is it, and is the optimum the same?

    python benchmarks/linear.py        (or: make bench)

1. Speed, as a ratio within this run: all cells of the embedded model (7 layers x 8 readouts), five strengths, on TREC
   and SST-2 (labels and one shuffled control) and on four label sets of a treebank (Universal Dependencies, English
   Web Treebank) that share their texts. Ours solves the whole grid. For scikit-learn, a seeded sample of `TIMED`
   problems, as many at every strength, is timed and scaled up. Both use all cores. Also the time within a run, which
   skips the strengths that dev cannot choose.
2. The objective at our optimum and at scikit-learn's with tol=1e-10, on `COMPARED` problems of these grids.
3. Test accuracy compared with scikit-learn's in every cell of TREC.
4. On a CUDA device: how much faster the grid of TREC is there.
5. Peak resident memory of a sweep over 50,000 texts of 768 numbers, 13 layers x 8 readouts, the vectors on disk (16 GB,
   for some minutes), on Linux.

Texts are read from $CLSPROBE_DATA, default ../shared/data; what is missing there is skipped.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from harness import DATA, Stopwatch, measure_seconds, peak_memory, run_again
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from clsprobe import Extractor, load_encoder
from clsprobe.probes.base import STRENGTHS
from clsprobe.probes.linear import _moments, _standardised
from clsprobe.probes.solver import Solution, solve
from clsprobe.probes.tasks.control import shuffled

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
        """X and codes of the texts that have a label in this set."""
        labelled = self.y[:, label_set] >= 0
        return self.X[cell][labelled], self.y[labelled, label_set]


def read_vectors(train: list[str], test: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Standardised vectors (cell, text, dim) of all layers and readouts."""
    readouts = ["cls", "sep", "token[1]", "token[2]", "token[-1]", "random", "mean", "max"]
    states = Extractor(load_encoder(), readouts)(train + test)
    vectors = np.stack([states.cell(*cell) for cell in states.cells])
    rows = np.arange(len(train))
    moments = _moments(vectors[:, rows])
    return _standardised(vectors[:, rows], *moments), _standardised(vectors[:, len(train) :], *moments)


def read_table(name: str, label: str) -> Grid:
    """TREC or SST-2, the labels and a shuffled control."""
    splits = []
    for split in ("train", "test"):
        header, *lines = (DATA / name / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t") for line in lines]
        columns = dict(zip(header.split("\t"), zip(*rows, strict=True), strict=True))
        splits.append((list(columns["text"]), columns[label]))
    (train, labels), (test, test_labels) = splits
    classes, y = np.unique(labels, return_inverse=True)
    control = shuffled(train, y, np.full(len(y), "train"), 0)
    X, X_test = read_vectors(train, test)
    return Grid(name.upper(), X, np.stack([y, control], 1), X_test, np.searchsorted(classes, test_labels)[:, None])


def read_treebank() -> Grid:
    """Length, tense of the root, number of the root's subject and depth of the tree, where a sentence has them."""
    with gzip.open(DATA / "ud_english_ewt" / "train.conllu.gz", "rt", encoding="utf-8") as lines:
        blocks = lines.read().strip().split("\n\n")
    order = np.random.default_rng(0).permutation(len(blocks))
    texts, rows = [], []
    for block in (blocks[i] for i in order):
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


def solve_grid(grid: Grid, device: str = "cpu") -> tuple[Solution, float]:
    """The solution of every problem of a grid, and the seconds it took."""
    X, y = torch.from_numpy(grid.X).to(device), torch.from_numpy(grid.y).to(device)
    strengths = torch.tensor(STRENGTHS, dtype=torch.float64)
    with Stopwatch() as watch:
        solution = solve(X, y, strengths.to(X))
    assert solution.converged.all()
    return solution, watch.seconds


def sample_problems(grid: Grid, n: int) -> Iterator[tuple[int, int, int]]:
    """n times (cell, label set, strength), as many at every strength; no cell again before all have been drawn."""
    random = np.random.default_rng(0)
    cells, sets = len(grid.X), grid.y.shape[1]
    order = np.concatenate([random.permutation(cells) for _ in range(n // cells + 1)])
    for i in range(n):
        yield int(order[i]), i // len(STRENGTHS) % sets, i % len(STRENGTHS)


def compare_speed(grid: Grid, goal: int) -> tuple[float, str]:
    """Our seconds, and lines that describe the comparison."""
    solution, ours = solve_grid(grid)
    sample = []
    for cell, label_set, strength in sample_problems(grid, TIMED):
        X, y = grid.problem(cell, label_set)
        with Stopwatch() as watch:
            LogisticRegression(C=STRENGTHS[strength], max_iter=20_000).fit(X, y)
        sample.append(watch.seconds)
    problems, held_out = solution.converged.numel(), np.arange(len(grid.y)) % 10 == 0
    theirs = np.mean(sample) * problems
    X, y = torch.from_numpy(grid.X), torch.from_numpy(grid.y)
    dev, strengths = (X[:, held_out], y[held_out]), torch.tensor(STRENGTHS, dtype=X.dtype)
    X, y = X[:, ~held_out], y[~held_out]
    choosing = measure_seconds(lambda: solve(X, y, strengths, dev=dev))
    return ours, (
        f"{grid.name:18} {problems:5} problems  ours {ours:6.1f} s  scikit-learn {theirs:7.0f} s  "
        f"ratio {theirs / ours:5.1f}   (at least {goal}; {TIMED} problems timed and scaled)\n"
        f"  as a run does it: nine texts of ten, no strengths beyond those that dev may choose   {choosing:6.1f} s  "
        f"ratio {0.9 * theirs / choosing:5.1f}"
    )


def compute_objective(X: np.ndarray, y: np.ndarray, coef: np.ndarray, intercept: np.ndarray, C: float) -> float:
    """scikit-learn's objective, in float64; coef is (1, dim) for two classes."""
    Z = X @ coef.T + intercept
    Z = np.hstack([np.zeros_like(Z), Z]) if len(coef) == 1 else Z
    return float(-C * log_softmax(Z, axis=1)[np.arange(len(y)), y].sum() + (coef**2).sum() / 2)


def compare_objectives(grid: Grid, n: int) -> list[float]:
    """Our objective relative to scikit-learn's, minus 1, for n problems."""
    solution, _ = solve_grid(grid)
    excess = []
    for cell, label_set, strength in sample_problems(grid, n):
        X, y = grid.problem(cell, label_set)
        X, C = X.astype(np.float64), STRENGTHS[strength]
        solver = "newton-cholesky" if len(np.unique(y)) == 2 else "lbfgs"  # the much faster one
        fitted = LogisticRegression(C=C, tol=1e-10, max_iter=100_000, solver=solver).fit(X, y)
        theirs = compute_objective(X, y, fitted.coef_, fitted.intercept_, C)
        coef, intercept = (a[cell, label_set, strength].double().numpy() for a in (solution.coef, solution.intercept))
        if len(coef) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        excess.append(compute_objective(X, y, coef, intercept, C) / theirs - 1)
    return excess


def compare_accuracies(grid: Grid, strength: int = 2) -> np.ndarray:
    """(cell,) our test accuracy minus scikit-learn's, in points."""
    solution, _ = solve_grid(grid)
    points = []
    for cell in range(len(grid.X)):
        X, y = grid.problem(cell, 0)
        fitted = LogisticRegression(C=STRENGTHS[strength], tol=1e-8, max_iter=20_000).fit(X.astype(np.float64), y)
        coef, intercept = (a[cell, 0, strength].numpy() for a in (solution.coef, solution.intercept))
        ours = (grid.X_test[cell] @ coef.T + intercept).argmax(1)
        theirs = fitted.predict(grid.X_test[cell])
        correct = [(predicted == grid.y_test[:, 0]).mean() for predicted in (ours, theirs)]
        points.append(100 * (correct[0] - correct[1]))
    return np.array(points)


def sweep_stored(cache: Path) -> None:
    """Write vectors to `cache`, sweep over them, and print the peak memory of this process and the seconds."""
    import pandas as pd

    from clsprobe import LogisticProbe, States, Task
    from clsprobe.analysis.sweep.grid import sweep
    from clsprobe.probes.extraction.states import tensor_name
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
                tensors[tensor_name(layer, name)] = vectors
        assert store.begin(shard)
        store.add(shard, tensors | {"present": np.ones((rows, READOUTS), np.uint8)}, 0)
    index = np.arange(TEXTS)
    where = pd.DataFrame({"shard": index // rows, "at": index % rows, "tokens": 8, "ids": index})
    texts = [f"{i:05d}" for i in index]
    states = States(
        texts, tuple(range(LAYERS)), names, DIM, [store.shard(n) for n in shards], where, 512,
        {"model": "random", "control": "none", "seed": None},
    )  # fmt: skip
    split = np.array(["train", "train", "train", "dev", "test"])[index % 5]
    task = Task("hand:made:label", texts, np.array(["a", "b"])[y], "class", split)
    with Stopwatch() as watch:
        table = sweep([task], states, {"logistic": LogisticProbe()}, controls=("shuffled",), allow_overlap=True)
    assert (table[(table.control == "none") & (table.metric == "accuracy")].value > 0.6).all()
    print(peak_memory(), watch.seconds)


def measure_memory() -> None:
    """Print part 5."""
    with tempfile.TemporaryDirectory() as cache:
        peak, seconds = run_again(cache)
    size = f"{TEXTS:,} texts x {LAYERS} x {READOUTS} cells of {DIM}, {seconds:.0f} s"
    print(f"memory             {peak / 1e9:.2f} GB at its peak (at most 2; {size})")


if __name__ == "__main__" and sys.argv[1:]:
    sweep_stored(Path(sys.argv[1]))
elif __name__ == "__main__":
    if sys.platform == "linux":
        measure_memory()
    print(f"{torch.get_num_threads()} cores")
    excess: list[float] = []
    for name, label, goal in (("trec", "coarse", 30), ("sst2", "label", 15)):
        if not (DATA / name).is_dir():
            print(f"no {name} in {DATA}: set CLSPROBE_DATA")
            continue
        grid = read_table(name, label)
        seconds, comparison = compare_speed(grid, goal)
        print(comparison, flush=True)
        excess += compare_objectives(grid, COMPARED // 2)
        if name == "trec":
            points = abs(compare_accuracies(grid))
            print(f"test accuracy      {len(points)} cells  largest difference {points.max():.2f} points (at most 0.2)")
            if torch.cuda.is_available():
                solve_grid(grid, "cuda")  # warm up
                ratio = seconds / solve_grid(grid, "cuda")[1]
                print(f"{torch.cuda.get_device_name()}: {ratio:.1f} times as fast as the CPU")
    if excess:
        largest = f"at most {max(excess):.1e} above scikit-learn's"
        print(f"objective          {len(excess)} problems  {largest} (at most 1e-6)")
    if (DATA / "ud_english_ewt").is_dir():
        print(compare_speed(read_treebank(), 40)[1], flush=True)
