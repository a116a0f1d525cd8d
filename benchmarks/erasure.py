"""What LEACE leaves of a property, for linear and for other probes: the figures of docs/formation.md.

    python benchmarks/erasure.py        (or: make bench)

[CLS] of layer 3 of the embedded encoder, for the built-in task `tense` and, where `CLSPROBE_DATA` has it, for the
question classes of TREC.

1. Erasers and probes on different halves of train, as in `clsprobe formation`: leakage, completeness and selectivity.
   Then the network runs on to layer 5, and probes are trained again there.
2. Erasers and probes on the same texts: a linear probe, an MLP, and a support vector machine with a Gaussian kernel.
"""

from __future__ import annotations

import numpy as np
import torch
from harness import DATA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from clsprobe.analysis.formation.erasure import Place, make_erasers, measure_erasure, new_fitter
from clsprobe.analysis.formation.erasure_effects import compute_effects
from clsprobe.analysis.formation.reliability import label_properties
from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.analysis.sweep.grid import SplitTask, split_task
from clsprobe.probes.base import STRENGTHS, predict_each
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.extraction.extractor import Extractor
from clsprobe.probes.extraction.states import States
from clsprobe.probes.linear import LogisticProbe
from clsprobe.probes.mlp import MLPProbe

ERASED, READ = 3, 5  # layers
TREC = DATA / "trec"


def main() -> None:
    """Print the tables of every task."""
    tasks = [*load("grammar:tense:1200", SourceOptions()).tasks]
    if TREC.is_dir():
        tasks += load(f"file:{TREC}", SourceOptions(label_column=("coarse",))).tasks
    encoder = load_encoder(device="cpu")
    for task in tasks:
        states = Extractor(encoder, ["cls"])(task.texts)
        split = split_task(task, states, 0)
        print(f"\n{task.name}: {len(split.rows_of('train')):,} training texts, [CLS] of layer {ERASED}")
        measured = measure_erasure(
            encoder, split, states, LogisticProbe(), (READ, "cls"), [Place("cls", ERASED)], label_properties(split, {})
        )
        print("\nerasers and probes on different halves of train")
        for name in ("leakage", "reliability"):
            print(measured[name].drop(columns=["task", "seed"]).round(3).to_string(index=False))
        print(f"\nat layer {READ}, after the network has run on")
        print(compute_effects(measured["erasure"]).drop(columns="task").round(3).to_string(index=False))
        print("\nerasers and probes on the same texts")
        for name, accuracies in read_same_texts(split, states).items():
            print(f"  {name:9}", ", ".join(f"{probe} {value:.3f}" for probe, value in accuracies.items()))


def read_same_texts(split: SplitTask, states: States) -> dict[str, dict[str, float]]:
    """Intact or LEACE -> probe -> test accuracy, all trained on all of train."""
    X, classes = states.cell(ERASED, "cls", split.state_rows).astype(np.float64), len(split.classes)
    train, dev, test = map(split.rows_of, ("train", "dev", "test"))
    fitter = new_fitter(X.shape[1], classes)
    fitter.update(torch.from_numpy(X[train]), torch.eye(classes, dtype=torch.float64)[split.y[train]])
    erased = make_erasers(fitter)["leace"](torch.from_numpy(X)).numpy()
    accuracies = {}
    for name, vectors in (("intact", X), ("LEACE", erased)):
        cell = vectors[None].astype(np.float32)
        y, dev_of_cell = split.y[:, None], (cell[:, dev], split.y[dev, None])
        read = {}
        for probe_name, probe in (("linear", LogisticProbe()), ("MLP", MLPProbe())):
            codes = predict_each(probe, cell[:, train], y[train], cell[:, test], dev=dev_of_cell, strengths=STRENGTHS)
            read[probe_name] = float((codes.codes[0, 0] == split.y[test]).mean())
        machine = make_pipeline(StandardScaler(), SVC(C=10)).fit(vectors[train], split.y[train])
        accuracies[name] = {**read, "SVM": float(machine.score(vectors[test], split.y[test]))}
    return accuracies


if __name__ == "__main__":
    main()
