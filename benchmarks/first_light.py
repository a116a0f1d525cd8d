"""How long the main commands take, their accuracies on TREC, and their agreement with scikit-learn.

    python benchmarks/first_light.py        (or: make bench)

1. `clsprobe demo`, wall clock.
2. `clsprobe run` on TREC, wall clock, and the accuracies of some cells next to independently measured ones.
3. Predictions of `LogisticProbe` against scikit-learn's LogisticRegression at the same strength, cell by cell.

TREC is read from $CLSPROBE_DATA, default ../shared/data; without it, 2 and 3 are skipped.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from harness import DATA, OUT, run_clsprobe

EXPECTED = {(6, "mean"): 0.90, (6, "cls"): 0.75, (6, "token[1]"): 0.93, (5, "cls"): 0.94, (4, "token[1]"): 0.95}
COMPARED = ((0, "mean"), (1, "sep"), (3, "random"), (4, "token[1]"), (5, "cls"), (6, "cls"), (6, "mean"), (6, "max"))


def run_trec(out: Path) -> None:
    """Time the run on TREC and print its cells."""
    task = ("--task", f"file:{DATA / 'trec'}", "--label-column", "coarse", "--text-column", "text")
    seconds = run_clsprobe("run", *task, "--out", str(out), "--overwrite")
    print(f"clsprobe run on TREC          {seconds:7.1f} s   (at most 240)")
    table = pd.read_parquet(out / "results.parquet")
    test = table[(table.metric == "accuracy") & (table.split == "test")]
    cells = test[test.control == "none"].set_index(["layer", "readout"]).value
    for cell, expected in EXPECTED.items():
        print(f"  layer {cell[0]} {cell[1]:9} {cells[cell]:.3f}   (measured elsewhere: {expected:.2f}, +- 0.02)")
    majority, shuffled = (test[test.control == control].value for control in ("majority", "shuffled"))
    print(f"  layer 0 cls       {cells[0, 'cls']:.3f}   (majority {majority.iloc[0]:.3f})")
    span = f"{shuffled.min():.3f} to {shuffled.max():.3f}"
    print(f"  shuffled labels   {shuffled.mean():.3f}   (mean over cells, {span})")
    print(f"  converged         {table.converged.mean():.4f}")


def measure_agreement() -> None:
    """Print the share of test predictions that are the same as scikit-learn's."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from clsprobe import Extractor, LogisticProbe, load_encoder
    from clsprobe.analysis.sources import SourceOptions, load

    task = load(f"file:{DATA / 'trec'}", SourceOptions(label_column=("coarse",))).tasks[0]
    states = Extractor(load_encoder(), sorted({readout for _, readout in COMPARED}))(task.texts)
    train, test = task.split == "train", task.split == "test"
    print("shared test predictions with scikit-learn, by strength")
    for cell in COMPARED:
        X = states.cell(*cell)
        shares = []
        for strength in (1e-3, 1e-1, 1e1):
            theirs = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-6, max_iter=5000))
            theirs.fit(X[train].astype("float64"), task.y[train])
            ours = LogisticProbe(C=strength).fit(X[train], task.y[train])
            shared = (ours.predict(X[test]) == theirs.predict(X[test].astype("float64"))).mean()
            shares.append(f"C={strength:g}: {shared:.3f}")
        print(f"  layer {cell[0]} {cell[1]:9} {'  '.join(shares)}   (at least 0.995)")


if __name__ == "__main__":
    seconds = run_clsprobe("demo", "--out", str(OUT / "demo"), "--overwrite")
    print(f"clsprobe demo                 {seconds:7.1f} s   (at most 300)")
    if (DATA / "trec").is_dir():
        run_trec(OUT / "trec")
        measure_agreement()
    else:
        print(f"no TREC in {DATA}: set CLSPROBE_DATA for the rest")
