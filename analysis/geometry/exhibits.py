"""The exhibits of the geometry, one task at a time. Every function is pure: rows of tables in, exhibits out.

rows: of one task in the table of `measures.geometry`.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from clsprobe.analysis.geometry.measures import MEASURES
from clsprobe.analysis.study import Exhibit
from clsprobe.analysis.verdict import Part

DRAWN = ("cls", "mean")
MAPS = {
    "UMAP": "UMAP of the texts, [CLS] and mean side by side; colours are labels. Trustworthiness: how many near "
    "neighbours in the picture are near in truth. Distances between clusters are no evidence of anything.",
    "PCA": "The same texts on the two directions of the largest variance.",
}


def difference_exhibits(rows: pd.DataFrame, margin: float) -> list[Exhibit]:
    """The claim at every layer, and the mean cosines it rests on."""
    differences = rows[(rows.measure == "difference") & (rows.readout == "mean")].sort_values("layer", ascending=False)
    sides = differences.assign(
        name="layer " + differences.layer.astype(str),
        effect=differences.value,
        outcome=[
            Part.from_interval("", effect, low, high, -margin).outcome
            for effect, low, high in zip(differences.value, differences.low, differences.high, strict=True)
        ],
    )[["name", "effect", "low", "high", "outcome"]]
    exhibits = [
        Exhibit(
            f"The mean cosine of two texts, read by mean, less that read by [CLS]: to the right of 0 [CLS] is "
            f"spread more widely. 95 % intervals, paired over the texts. Shaded: the margin of {margin:g}. A "
            f"mean over many tokens is narrower than its tokens by construction: it keeps what they share.",
            sides.reset_index(drop=True),
            "differences",
            {"margin": margin, "metric": "mean cosine"},
        )
    ]
    raw = cells_of(rows, "self_similarity")
    adjusted = cells_of(rows, "adjusted").rename(columns={"value": "adjusted", "low": "from", "high": "to"})
    if len(adjusted):
        random = raw[raw.readout == "random"].set_index("layer").value.rename("baseline")
        cosines = raw.join(random, on="layer").merge(adjusted, on=["layer", "readout"], how="left")
        cosines = cosines.drop(columns=["low", "high"]).rename(columns={"value": "cosine"})
        cosines.loc[cosines.readout == "random", ["adjusted", "from", "to"]] = 0.0
        exhibits.append(
            Exhibit(
                "Adjusted self-similarity (Ethayarajh 2019): the mean cosine of two texts, less that of two random "
                "tokens of the layer, one from each text (its anisotropy; the table has both). 0: no more alike "
                "than any two tokens. [CLS] is one and the same word in all texts.",
                cosines.rename(columns={"adjusted": "value", "from": "low", "to": "high"}),
                "curves",
                {"metric": "mean cosine above that of random tokens"},
            )
        )
    exhibits.append(
        Exhibit(
            "The same without the baseline taken off; random is the baseline itself.",
            raw,
            "curves",
            {"metric": "mean cosine of two texts"},
        )
    )
    return exhibits


def map_exhibits(projection: pd.DataFrame) -> list[Exhibit]:
    """The maps of one task."""
    return [
        Exhibit(MAPS[str(name)], rows.drop(columns=["task", "map"]).reset_index(drop=True), "scatter")
        for name, rows in projection.groupby("map", sort=False)
    ]


def cells_of(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Columns layer, readout, value, low, high of one measure."""
    return rows[rows.measure == measure][["layer", "readout", "value", "low", "high"]].reset_index(drop=True)


def measure_exhibits(rows: pd.DataFrame, layer: int) -> list[Exhibit]:
    """The measures of single cells."""
    of_layer = rows[rows.measure.isin(MEASURES) & (rows.layer == layer)]
    order = list(of_layer.readout.unique())
    wide = of_layer.pivot(index="readout", columns="measure", values="value").loc[order]
    table = wide[[name for name in MEASURES if name in wide]].rename(columns=lambda name: name.replace("_", " "))
    captions = {
        "effective_rank": "How many directions the texts use: exp of the entropy of the singular values' shares, the "
        "mean taken off (Roy & Vetterli 2007). At most as many as there are texts or dimensions.",
        "dimension": "Intrinsic dimension, from the two nearest neighbours of every text (TwoNN, Facco et al. 2017), "
        "copies taken out, with 95 % intervals. Where it is above ten or so it is a lower bound.",
        "norm": "How long the vectors are, with 95 % intervals of the mean.",
    }
    metrics = {"effective_rank": "effective rank", "dimension": "intrinsic dimension", "norm": "mean norm"}
    return [
        Exhibit(
            f"Every readout at layer {layer}. Adjusted: self-similarity less that of random tokens. Coordinate: how "
            f"much of the self-similarity one single coordinate brings (Timkey & van Schijndel 2021).",
            table.reset_index(),
        ),
        *(
            Exhibit(caption, measured, "curves", {"metric": metrics[measure]})
            for measure, caption in captions.items()
            if len(measured := cells_of(rows, measure))
        ),
    ]


def pair_exhibits(rows: pd.DataFrame, layer: int) -> list[Exhibit]:
    """The measures of pairs of cells."""
    pairs = rows[rows.measure == "cka"]
    panels = []
    for readout in DRAWN:
        own = pairs[(pairs.readout == readout) & (pairs.other_readout == readout)]
        if len(own):
            panels.append(_square(own.layer.astype(str), own.other_layer.astype(str), own.value).assign(panel=readout))
    same_layer = pairs[(pairs.layer == layer) & (pairs.other_layer == layer)]
    exhibits: list[Exhibit] = []
    unbiased = "Linear CKA, the unbiased estimate over minibatches (Song et al. 2012; Nguyen et al. 2021)"
    if panels:
        exhibits.append(
            Exhibit(
                f"{unbiased}, between every two layers of a readout. 1: the same up to a rotation and a scale; 0: "
                f"nothing in common. Hatched: one vector for all texts.",
                pd.concat(panels, ignore_index=True)[["panel", "row", "column", "value"]],
                "squares",
                {"metric": "CKA", "label": "layer"},
            )
        )
    exhibits.append(
        Exhibit(
            f"The same between every two readouts of layer {layer}.",
            _square(same_layer.readout, same_layer.other_readout, same_layer.value).assign(panel=f"layer {layer}")[
                ["panel", "row", "column", "value"]
            ],
            "squares",
            {"metric": "CKA", "label": "readout"},
        )
    )
    for measure, caption, metric in (
        ("cka", "The same between [CLS] and each other readout of its layer.", "CKA with [CLS]"),
        (
            "neighbours",
            "How many of the ten nearest neighbours of a text, read by [CLS], are so read by another readout of the "
            "layer too. Dashed: what two unrelated spaces have in common.",
            "shared neighbours",
        ),
    ):
        with_cls = _pairs_with_cls(rows[rows.measure == measure])
        arguments: dict[str, Any] = {"metric": metric}
        if measure == "neighbours":
            arguments["baselines"] = {"chance": float(rows[rows.measure == "chance"].value.iloc[0])}
        if len(with_cls):
            exhibits.append(Exhibit(caption, with_cls, "curves", arguments))
    return exhibits


def _pairs_with_cls(pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs of cls with another readout of its layer: columns layer, readout (the other), value, low, high."""
    same = pairs[(pairs.layer == pairs.other_layer) & ((pairs.readout == "cls") | (pairs.other_readout == "cls"))]
    other = same.other_readout.where(same.readout == "cls", same.readout)
    return same.assign(readout=other)[["layer", "readout", "value", "low", "high"]].reset_index(drop=True)


def _square(rows: pd.Series, columns: pd.Series, values: pd.Series) -> pd.DataFrame:
    """Columns row, column, value of a symmetric matrix, with ones on the diagonal where a row has any value."""
    half = pd.DataFrame({"row": rows, "column": columns, "value": values})
    names = list(dict.fromkeys([*half.row, *half.column]))
    measured = {*half.row[half.value.notna()], *half.column[half.value.notna()]}
    diagonal = pd.DataFrame({"row": names, "column": names, "value": [1.0 if n in measured else None for n in names]})
    other = half.rename(columns={"row": "column", "column": "row"})
    square = pd.concat([half, other, diagonal.astype({"value": float})], ignore_index=True)
    index = {name: i for i, name in enumerate(names)}
    key = square.row.map(index) * len(names) + square.column.map(index)
    return square.iloc[key.argsort(kind="stable")][["row", "column", "value"]].reset_index(drop=True)
