"""The exhibits of the geometry, one task at a time. Every function is pure: rows of tables in, exhibits out.

rows: of one task in the table of `measures.geometry`. names: readout -> how a reader calls it. place: what is
described, "layer 6" or a file of vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from clsprobe.analysis.answer import Exhibit
from clsprobe.analysis.geometry.measures import MASSIVE, MEASURES, choose_described

NAMED = 4  # massive coordinates in a sentence
COLUMNS = ["layer", "readout", "value", "low", "high"]
MAPS = {
    "UMAP": "UMAP of the texts, every readout by itself; colours are labels. Trustworthiness: how many near neighbours "
    "in the picture are near in truth. Distances between clusters are no evidence of anything.",
    "PCA": "The same texts on the two directions of the largest variance.",
}


def cosine_exhibits(rows: pd.DataFrame, names: Mapping[str, str]) -> list[Exhibit]:
    """Mean cosines with and without massive coordinates, these coordinates, cosines above those of random tokens."""
    raw, without = select_measure(rows, "self_similarity"), select_measure(rows, "without_massive")
    described = choose_described(list(raw.readout.unique()))
    lines = [
        table[table.readout == readout].assign(readout=f"{names.get(readout, readout)}{what}")
        for readout in described
        for table, what in ((raw, ""), (without, ", without massive"))
    ]
    exhibits = [
        Exhibit(
            f"The mean cosine of two texts, and the same without the massive coordinates: those whose mean square is "
            f"more than {MASSIVE} times that of the median coordinate (Sun et al. 2024). Where the two lines lie "
            f"apart, the cosine tells of these few coordinates (Timkey & van Schijndel 2021). 95 % intervals over the "
            f"texts.",
            pd.concat(lines, ignore_index=True),
            "curves",
            {"metric": "mean cosine of two texts"},
        )
    ]
    coordinates = tabulate_massive(rows)
    if len(coordinates):
        exhibits.append(
            Exhibit(
                "The massive coordinates, counted from 0: their mean square, in times of the median coordinate's, "
                "and what they add to the mean cosine of two texts.",
                coordinates,
            )
        )
    exhibits.append(
        Exhibit(
            "The mean cosine of two texts in every readout, with all coordinates. A mean over many tokens is narrower "
            "than its tokens by construction: it keeps what they share.",
            raw,
            "curves",
            {"metric": "mean cosine of two texts"},
        )
    )
    adjusted = select_measure(rows, "adjusted").rename(columns={"value": "adjusted", "low": "from", "high": "to"})
    if len(adjusted):
        random = raw[raw.readout == "random"].set_index("layer").value.rename("baseline")
        cosines = raw.join(random, on="layer").merge(adjusted, on=["layer", "readout"], how="left")
        cosines = cosines.drop(columns=["low", "high"]).rename(columns={"value": "cosine"})
        cosines.loc[cosines.readout == "random", ["adjusted", "from", "to"]] = 0.0
        exhibits.append(
            Exhibit(
                "Adjusted self-similarity (Ethayarajh 2019): the mean cosine of two texts, less that of two random "
                "tokens of the layer, one from each text (its anisotropy; the table has both), with all "
                "coordinates. 0: no more alike than any two tokens.",
                cosines.rename(columns={"adjusted": "value", "from": "low", "to": "high"}),
                "curves",
                {"metric": "mean cosine above that of random tokens"},
            )
        )
    return exhibits


def describe_cell(cells: pd.DataFrame, readout: str, name: str) -> str:
    """Effective rank and mean cosine of a readout as a clause. cells: of one layer. name: of the readout, or ""."""
    own = _measures_of(cells, readout)
    rank, raw, without = (own.loc[measure] for measure in ("effective_rank", "self_similarity", "without_massive"))
    within = f"in {name} " if name else ""
    if pd.isna(rank.value):
        return f"{within}every text has one and the same vector"
    clause = (
        f"{within}the effective rank is {rank.value:.1f} ({rank.low:.1f} to {rank.high:.1f}) of "
        f"{own.value['width']:.0f} and the mean cosine of two texts {_format_cosine(raw)}"
    )
    massive = [str(i) for i in cells[(cells.measure == "massive") & (cells.readout == readout)].coordinate]
    if not massive:
        return f"{clause}, with no massive coordinate"
    listed = ", ".join(massive[:NAMED]) + (f" and {len(massive) - NAMED} more" if len(massive) > NAMED else "")
    return f"{clause}, or {_format_cosine(without)} without the massive coordinate{'s' * (len(massive) > 1)} {listed}"


def summarise_cell(cells: pd.DataFrame, readout: str, name: str) -> str:
    """Effective rank and mean cosine without massive coordinates, as one of several in a list."""
    own = _measures_of(cells, readout).value
    if pd.isna(own["effective_rank"]):
        return f"{name} one and the same vector".strip()
    return f"{name} {own['effective_rank']:.1f} and {own['without_massive']:.3f}".strip()


def _measures_of(cells: pd.DataFrame, readout: str) -> pd.DataFrame:
    """measure -> value, low, high of a single cell."""
    own = cells[(cells.readout == readout) & (cells.other_readout == "none") & (cells.coordinate < 0)]
    return own.set_index("measure")[["value", "low", "high"]]


def _format_cosine(row: pd.Series) -> str:
    return f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})"


def tabulate_massive(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns layer, readout, coordinate, times the median, of the cosine; the largest of every cell first."""
    massive = rows[rows.measure.isin(["massive", "contribution"])]
    key = ["layer", "readout", "coordinate"]
    table = massive.drop_duplicates(key).loc[massive.measure == "massive", key]
    for measure, column in (("massive", "times the median"), ("contribution", "of the cosine")):
        values = massive[massive.measure == measure].set_index(key).value.rename(column)
        table = table.join(values, on=key)
    return table.reset_index(drop=True)


def map_exhibits(projection: pd.DataFrame) -> list[Exhibit]:
    """The maps of one task."""
    return [
        Exhibit(MAPS[str(name)], rows.drop(columns=["task", "map"]).reset_index(drop=True), "scatter")
        for name, rows in projection.groupby("map", sort=False)
    ]


def select_measure(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Columns layer, readout, value, low, high of one measure."""
    return rows[rows.measure == measure][COLUMNS].reset_index(drop=True)


def measure_exhibits(rows: pd.DataFrame, layer: int, place: str) -> list[Exhibit]:
    """The measures of single cells."""
    of_layer = rows[rows.measure.isin(MEASURES) & (rows.layer == layer)]
    order = list(of_layer.readout.unique())
    wide = of_layer.pivot(index="readout", columns="measure", values="value").loc[order]
    table = wide[[name for name in MEASURES if name in wide]].rename(columns=lambda name: name.replace("_", " "))
    captions = {
        "effective_rank": "How many directions the texts use: exp of the entropy of the singular values' shares, the "
        "mean taken off (Roy & Vetterli 2007). At most as many as there are texts or dimensions, and more with more "
        f"texts: compare cells, not runs of different sizes. Of {place} with 95 % intervals (jackknife over ten groups "
        f"of texts).",
        "dimension": "Intrinsic dimension, from the two nearest neighbours of every text (TwoNN, Facco et al. 2017), "
        "copies taken out, with 95 % intervals. Where it is above ten or so it is a lower bound.",
        "norm": "How long the vectors are, with 95 % intervals of the mean.",
    }
    metrics = {"effective_rank": "effective rank", "dimension": "intrinsic dimension", "norm": "mean norm"}
    return [
        Exhibit(
            f"Every readout of {place}. Self-similarity: the mean cosine of two texts; without massive: without the "
            f"massive coordinates of the readout; adjusted: less that of two random tokens.",
            table.reset_index(),
        ),
        *(
            Exhibit(caption, measured, "curves", {"metric": metrics[measure]})
            for measure, caption in captions.items()
            if len(measured := select_measure(rows, measure))
        ),
    ]


def pair_exhibits(rows: pd.DataFrame, layer: int, names: Mapping[str, str], place: str) -> list[Exhibit]:
    """The measures of pairs of cells."""
    pairs = rows[rows.measure == "cka"]
    panels = []
    for readout in choose_described(list(pairs.readout.unique())):
        own = pairs[(pairs.readout == readout) & (pairs.other_readout == readout)]
        if len(own):
            panels.append(_square(own.layer.astype(str), own.other_layer.astype(str), own.value).assign(panel=readout))
    same_layer = pairs[(pairs.layer == layer) & (pairs.other_layer == layer)]
    exhibits: list[Exhibit] = []
    cka = "Linear CKA, the unbiased estimate over minibatches (Song et al. 2012; Nguyen et al. 2021), between every two"
    scale = "1: the same up to a rotation and a scale; 0: nothing in common. Hatched: one vector for all texts."
    if panels:
        exhibits.append(
            Exhibit(
                f"{cka} layers of a readout. {scale}",
                pd.concat(panels, ignore_index=True)[["panel", "row", "column", "value"]],
                "squares",
                {"metric": "CKA", "label": "layer"},
            )
        )
    if len(same_layer):
        square = _square(same_layer.readout, same_layer.other_readout, same_layer.value).assign(panel=place)
        exhibits.append(
            Exhibit(
                f"{cka} readouts of {place}. {scale}",
                square[["panel", "row", "column", "value"]],
                "squares",
                {"metric": "CKA", "label": "readout"},
            )
        )
    cls = names.get("cls", "cls")
    for measure, caption, metric in (
        ("cka", f"CKA between {cls} and each other readout of its layer.", f"CKA with {cls}"),
        (
            "neighbours",
            f"How many of the ten nearest neighbours of a text, read by {cls}, are so read by another readout of the "
            f"layer too. Dashed: what two unrelated spaces have in common.",
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
    return same.assign(readout=other)[COLUMNS].reset_index(drop=True)


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
