"""First light: how long the main commands take, what they find on TREC, and whether scikit-learn agrees.

    python benchmarks/first_light.py        (or: make bench)

1. `clsprobe demo`, wall clock.
2. `clsprobe run` on TREC, wall clock, and the accuracies of some cells beside figures measured independently.
3. Predictions of `LogisticProbe` against scikit-learn's LogisticRegression at the same strength, cell by cell.

TREC is looked for in $CLSPROBE_DATA, default ../shared/data; 2 and 3 are left out without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

DATA = Path(os.environ.get("CLSPROBE_DATA") or Path(__file__).parents[1] / ".." / "shared" / "data").resolve()
OUT = Path("out") / "bench"  # the runs stay there to be looked at
EXPECTED = {(6, "mean"): 0.90, (6, "cls"): 0.75, (6, "token[1]"): 0.93, (5, "cls"): 0.94, (4, "token[1]"): 0.95}
AGREED = ((0, "mean"), (1, "sep"), (3, "random"), (4, "token[1]"), (5, "cls"), (6, "cls"), (6, "mean"), (6, "max"))


def clsprobe(*arguments: str) -> float:
    """Seconds that a command takes in a process of its own."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "clsprobe", *arguments, "--overwrite", "--quiet"], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def trec(out: Path) -> None:
    """Time the run on TREC and print its cells."""
    task = ("--task", f"file:{DATA / 'trec'}", "--label-column", "coarse", "--text-column", "text")
    seconds = clsprobe("run", *task, "--out", str(out))
    print(f"clsprobe run on TREC          {seconds:7.1f} s   (at most 240)")
    table = pd.read_parquet(out / "results.parquet")
    test = table[(table.metric == "accuracy") & (table.split == "test")]
    cells = test[test.control == "none"].set_index(["layer", "readout"]).value
    for cell, expected in EXPECTED.items():
        print(f"  layer {cell[0]} {cell[1]:9} {cells[cell]:.3f}   (measured elsewhere: {expected:.2f}, +- 0.02)")
    print(
        f"  layer 0 cls       {cells[0, 'cls']:.3f}   (majority {test[test.control == 'majority'].value.iloc[0]:.3f})"
    )
    shuffled = test[test.control == "shuffled"].value
    print(
        f"  shuffled labels   {shuffled.mean():.3f}   (mean over cells, {shuffled.min():.3f} to {shuffled.max():.3f})"
    )
    print(f"  converged         {table.converged.mean():.4f}")


def agreement() -> None:
    """Print how many test predictions scikit-learn shares, at its default tolerance and at a tight one."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from clsprobe import Extractor, LogisticProbe, load_encoder
    from clsprobe.analysis.sources import SourceOptions, load

    task = load(f"file:{DATA / 'trec'}", SourceOptions(label_column=("coarse",))).tasks[0]
    states = Extractor(load_encoder(), sorted({readout for _, readout in AGREED}))(task.texts)
    train, test = task.split == "train", task.split == "test"
    print("shared test predictions with scikit-learn, by strength")
    for cell in AGREED:
        X = states.cell(*cell)
        told = []
        for strength in (1e-3, 1e-1, 1e1):
            theirs = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-6, max_iter=5000))
            theirs.fit(X[train].astype("float64"), task.y[train])
            ours = LogisticProbe(C=strength).fit(X[train], task.y[train])
            shared = (ours.predict(X[test]) == theirs.predict(X[test].astype("float64"))).mean()
            told.append(f"C={strength:g}: {shared:.3f}")
        print(f"  layer {cell[0]} {cell[1]:9} {'  '.join(told)}   (at least 0.995)")


if __name__ == "__main__":
    print(f"clsprobe demo                 {clsprobe('demo', '--out', str(OUT / 'demo')):7.1f} s   (at most 300)")
    if (DATA / "trec").is_dir():
        trec(OUT / "trec")
        agreement()
    else:
        print(f"no TREC in {DATA}: set CLSPROBE_DATA for the rest")
