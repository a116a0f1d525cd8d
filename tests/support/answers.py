"""A realistic answer for the tests of the page: 6 classes, 7 layers x 8 readouts, 2 x 500 points, made up."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clsprobe.analysis.answer import Answer, Exhibit
from clsprobe.analysis.verdict import Part, Verdict
from clsprobe.analysis.verdict import points as points_of

READOUTS = ("cls", "sep", "token[1]", "token[2]", "token[-1]", "random", "mean", "max")
CLASSES = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")


def cells(layers: int = 7, readouts: tuple[str, ...] = READOUTS, seed: int = 0) -> pd.DataFrame:
    """layer, readout, value, low, high: rising over the layers, [CLS] at the majority rate in layer 0."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, readout in enumerate(readouts):
        for layer in range(layers):
            value = 0.94 - 0.5 * np.exp(-(layer + 0.4 * (i % 4) + 0.3) / 1.5) + rng.normal(0, 0.008)
            if readout == "cls" and layer == 0:
                value = 0.22
            half = 1.96 * np.sqrt(value * (1 - value) / 500)
            rows.append((layer, readout, value, value - half, min(value + half, 1.0)))
    return pd.DataFrame(rows, columns=["layer", "readout", "value", "low", "high"])


def confusions(classes: tuple[str, ...] = CLASSES, seed: int = 0) -> pd.DataFrame:
    """label, predicted, count: mostly on the diagonal."""
    rng = np.random.default_rng(seed)
    rows = [
        (a, b, int(rng.integers(40, 130)) if a == b else int(rng.poisson(2.5) * (rng.random() < 0.6)))
        for a in classes
        for b in classes
    ]
    return pd.DataFrame(rows, columns=["label", "predicted", "count"])


def recalls(classes: tuple[str, ...] = CLASSES, seed: int = 0) -> pd.DataFrame:
    """name, value, low, high, count."""
    rng = np.random.default_rng(seed)
    value = rng.uniform(0.7, 0.97, len(classes))
    half = rng.uniform(0.02, 0.12, len(classes))
    return pd.DataFrame(
        {
            "name": classes,
            "value": value,
            "low": value - half,
            "high": np.minimum(value + half, 1),
            "count": rng.integers(9, 140, len(classes)),
        }
    )


def effects() -> pd.DataFrame:
    """name, effect, low, high, outcome."""
    return pd.DataFrame(
        [
            ("token[1]", 0.011, -0.012, 0.034, "undecided"),
            ("token[2]", -0.034, -0.059, -0.009, "undecided"),
            ("token[-1]", -0.081, -0.109, -0.052, "no"),
            ("sep", -0.004, -0.017, 0.009, "yes"),
            ("mean", 0.006, -0.014, 0.026, "yes"),
        ],
        columns=["name", "effect", "low", "high", "outcome"],
    )


def pairs(names: tuple[str, ...] = READOUTS, seed: int = 0) -> pd.DataFrame:
    """panel, row, column, value: two symmetric squares with ones on the diagonal, one of them without a value."""
    rng = np.random.default_rng(seed)
    rows = []
    for panel in ("cls", "mean"):
        square = rng.uniform(-0.05, 1, (len(names), len(names)))
        square = np.where(np.eye(len(names), dtype=bool), 1, (square + square.T) / 2)
        square[0, 0] = np.nan
        rows += [(panel, a, b, square[i, j]) for i, a in enumerate(names) for j, b in enumerate(names)]
    return pd.DataFrame(rows, columns=["panel", "row", "column", "value"])


def points(n: int = 500, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> pd.DataFrame:
    """panel, x, y, label, text, row: n texts in two panels."""
    rng = np.random.default_rng(seed)
    code = rng.integers(0, len(classes), n)
    angle = 2 * np.pi * code / len(classes)
    spread = rng.normal(0, 1, (2, n, 2))
    frames = []
    for panel, distance, noise in (("cls, layer 5", 4.5, spread[0]), ("mean, layer 5", 3.0, spread[1])):
        frames.append(
            pd.DataFrame(
                {
                    "panel": panel,
                    "x": distance * np.cos(angle) + noise[:, 0],
                    "y": distance * np.sin(angle) + noise[:, 1],
                    "label": [classes[c] for c in code],
                    "text": [f"What is question number {i} about, and who would ask it?" for i in range(n)],
                    "row": np.arange(n),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def answer(n: int = 500) -> Answer:
    """The whole: a verdict over two tasks, notes, every kind of exhibit in two sections, settings."""
    baselines = {"majority": 0.22, "length": 0.31, "bag of words": 0.78, "untrained encoder": 0.62}
    sides = {"file:trec:coarse": (0.006, -0.014, 0.019), "grammar:tense": (-0.017, -0.041, 0.007)}
    parts = {
        name: Verdict.of(
            [Part.from_interval("cls at layer 5", *interval, -0.02)],
            lambda _, part, name=name: f"on {name}, mean pooling minus [CLS] is {points_of(part.effect, True)} points",
            turned=True,
            texts=500,
        )
        for name, interval in sides.items()
    }
    task = "file:trec:coarse"
    return Answer(
        question="Is mean pooling inferior to [CLS]?",
        claim="At the layer chosen on dev, mean pooling is worse than [CLS] by more than 2 points of accuracy",
        verdict=Verdict.over(parts),
        exhibits=(
            Exhibit(
                "Each readout against [CLS], at the layer chosen on dev, over the same 500 test texts.",
                effects(),
                "differences",
                {"margin": 0.02, "metric": "accuracy"},
            ),
            Exhibit(
                "Test accuracy of every cell. The chosen cell is the best on dev.",
                cells(),
                "heatmap",
                {"metric": "accuracy", "best": [5, "cls"]},
                task,
            ),
            Exhibit(
                "The same cells as curves; dashed lines are the baselines.",
                cells(),
                "curves",
                {"metric": "accuracy", "baselines": baselines},
                task,
            ),
            Exhibit("What is taken for what in layer 5, cls.", confusions(), "confusion", {}, task),
            Exhibit(
                "Recall of every class in layer 5, cls.",
                recalls(),
                "intervals",
                {"metric": "recall", "reference": {"chance": 0.167, "majority": 0.22}},
                task,
            ),
            Exhibit(
                "UMAP of the test texts. Distances between clusters are no evidence; trustworthiness 0.94 and 0.91.",
                points(n),
                "scatter",
                {},
                task,
            ),
            Exhibit("The baselines.", recalls(tuple(baselines)), None, {}, "grammar:tense"),
        ),
        notes=(
            "Layer 0 of [CLS] is the same vector for every text and scores 0.220, the majority rate, as it must.",
            "31 of 5,952 texts are shorter than token[2] and leave the comparison for every readout.",
        ),
        settings={
            "Settings": {"probes": ["logistic"], "seeds": 1, "max_texts": None, "strengths": [0.001, 0.01, 0.1, 1, 10]},
            "Rows": {"train": 5452, "test": 500, "left out": {"duplicate of a test text": 16}},
            "Model": {"name": "sentence-transformers/all-MiniLM-L6-v2", "layers": 6, "dtype": "float32"},
            "Versions": {"clsprobe": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
        },
    )


def scored(tokens: tuple[str, ...] = CLASSES, seed: int = 0) -> pd.DataFrame:
    """text, token_index, token, special, score, complete: the same tokens in two texts, the second with a gap."""
    rng = np.random.default_rng(seed)
    size = len(tokens)
    return pd.DataFrame(
        {
            "text": np.repeat([4, 7], size),
            "token_index": np.tile(np.arange(size), 2),
            "token": [*tokens, *tokens],
            "special": np.tile(np.arange(size) == 0, 2),
            "score": rng.normal(size=2 * size),
            "complete": np.repeat([True, False], size),
        }
    )
