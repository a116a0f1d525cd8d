"""What kind of space is it?

    clsprobe geometry --model ./my-bert --task file:reviews.csv

1. No label is asked for: labels only colour the maps. The texts are those that every readout can read, copies once.
2. Every cell is measured (analysis.geometry): how alike the vectors of different texts point, beside two random tokens
   of that layer; how many directions they use; how long they are; whom they resemble.
3. The verdict is about one number: how much wider [CLS] of different texts is spread than the mean of their tokens, at
   the last layer that is read, from where sentence vectors are usually taken. Its interval is a paired bootstrap.
4. Maps show [CLS] and mean of that layer, by UMAP and by PCA. They are no evidence.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from clsprobe.analysis.projection import SMALLEST
from clsprobe.analysis.study import Answer, Exhibit, Finished, Verdict
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import parse
from clsprobe.probes.tasks.task import Task, readable
from clsprobe.run import PROBES, Names, Run, Specs, counted, half_precision, short

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from clsprobe.analysis.folder import RunFolder
    from clsprobe.probes.extraction.states import States

log = logging.getLogger("clsprobe")

PROJECTED = 2_000  # texts of a map
DRAWN = ("cls", "mean")
WIDE = ("flatten", "attention")  # one vector for every token: no cell of a text
TABLES = ("measured", "projection")


@dataclass(frozen=True, eq=False)
class Measured:
    """What a measurement leaves: its tables, facts for the page and run.json, sentences a reader should not miss."""

    measured: pd.DataFrame
    projection: pd.DataFrame
    facts: dict[str, dict[str, Any]]
    notes: list[str]


class Geometry(Run):
    """The geometry of every cell, and whether [CLS] is spread as widely as the mean."""

    question: ClassVar[str] = "What kind of space is it?"
    claim: ClassVar[str] = (
        "[CLS] of different texts is spread at least as widely as the mean of their tokens: the mean cosine of two "
        "texts is higher by no more than 0.05"
    )
    margin: ClassVar[float] = 0.05
    beside_untrained: ClassVar[bool] = False
    # nothing is probed
    probes: ClassVar[Names] = tuple(PROBES.values())  # type: ignore[misc]
    seeds: ClassVar[int] = 1  # type: ignore[misc]
    allow_overlap: ClassVar[bool] = True  # type: ignore[misc]

    task: Specs = Field(("grammar:tense:2000",), description="SPEC of a task, whose texts are read; repeatable")
    readouts: Names = Field(
        ("cls", "sep", "token[1]", "token[-1]", "random", "mean", "max"),
        description="what to read at every layer: cls, mean, and what to see beside them",
    )
    at: int | None = Field(
        None, ge=0, le=1000, description="the layer that is judged and drawn [default: the last one that is read]"
    )

    # ------------------------------------------------------------------------------------------------ before torch

    def model_post_init(self, context: Any) -> None:
        """Raise InputError where there is nothing to compare."""
        names = [readout.name for readout in parse(self.readouts)]
        if not self.vectors and not self.can_judge(names):
            raise InputError("--readouts", "this study compares cls with mean", "Name cls and mean")
        if wide := [name for name in names if name.partition("[")[0] in WIDE]:
            raise InputError("--readouts", f"'{wide[0]}' is no single vector of a text", "Leave it out")

    @classmethod
    def can_judge(cls, readouts: list[str]) -> bool:
        """Both sides of the claim are among the readouts."""
        return {"cls", "mean"} <= set(readouts)

    def check_labels(self, tasks: list[Task], ids: np.ndarray | None) -> None:
        """Labels are not used; what is asked for is enough texts, and the layer that is judged."""
        for task in tasks:
            if len(task.texts) < SMALLEST:
                raise InputError(
                    task.name, f"holds {counted(len(task.texts), 'text')}, too few", f"Give {SMALLEST} or more"
                )

    def prepare(self) -> list[str]:
        """Read and check, and what it would take. Raises InputError also where the layer judged is not read."""
        told = super().prepare()
        if self.at is not None and self.at not in self.ready.layers:
            there = ", ".join(map(str, self.ready.layers))
            raise InputError(f"--at {self.at}", "this layer is not read", f"Name one of {there}")
        return told

    # ----------------------------------------------------------------------------------------------------- measure

    def measure(self) -> pd.DataFrame:
        """The tables of analysis.geometry, one task below the other, with a column task."""
        return self.see().measured

    def see(self) -> Measured:
        """Encode, measure, project."""
        import numpy as np
        import pandas as pd

        from clsprobe.analysis.geometry import SAMPLE, comparable, geometry

        ready = self.ready
        (states,) = self._states(ready)
        parts, maps, rows, notes = [], [], {}, [*ready.notes, *half_precision(states)]
        for task in ready.tasks:
            at = states.rows(task.texts) if task.rows is None else task.rows
            long = np.isin(at, states.truncated) if self.long_rows == "drop" else np.zeros(len(at), bool)
            there = states.present[:, at].all(0)
            used = comparable(states, np.unique(at[~long]))
            if len(used) < SMALLEST:
                told = f"{counted(len(used), 'text')} of {len(at):,} are left, too few"
                raise InputError(task.name, told, "Give more texts, or name readouts that short ones have")
            left = {
                "too long": int(long.sum()),
                "too short for a readout": int((~there & ~long).sum()),
                "copies": int((there & ~long).sum()) - len(used),
                "beyond --max-texts": ready.cut[task.name],
            }
            rows[task.name] = {"used": len(used)} | {f"left out: {why}": n for why, n in left.items() if n}
            notes += [f"{short(task.name)}: {n:,} left out, {why}." for why, n in list(left.items())[:3] if n]
            if len(used) > SAMPLE:
                notes.append(
                    f"{short(task.name)}: dimension, CKA and neighbours are those of {SAMPLE:,} texts drawn at random; "
                    f"all else is over all {len(used):,}."
                )
            log.info("measuring the geometry of %s", task.name)
            table = geometry(states, used, seed=self.seed)
            log.info("drawing the maps of %s", task.name)
            place = dict(zip(at.tolist(), range(len(at)), strict=True))
            maps.append(self._maps(task, states, table, used, [place[row] for row in used.tolist()]))
            parts.append(table.assign(task=task.name))
        if ready.vectors:
            ready.vectors.check_same()
        projection = pd.concat(maps, ignore_index=True)
        return Measured(pd.concat(parts, ignore_index=True), projection, self.facts(states, rows), notes)

    def _maps(
        self, task: Task, states: States, table: pd.DataFrame, used: np.ndarray, place: list[int]
    ) -> pd.DataFrame:
        """Columns task, map, panel, x, y, label, text, row. used: rows of the States; place: of the task."""
        import numpy as np
        import pandas as pd

        from clsprobe.analysis.projection import pca_of, umap_of

        chosen = np.arange(len(used))
        if len(chosen) > PROJECTED:
            chosen = np.sort(np.random.default_rng(self.seed).choice(chosen, PROJECTED, replace=False))
        own = [place[i] for i in chosen]
        layer = self._layer(table)
        ranks = table[(table.measure == "effective_rank") & (table.layer == layer)].set_index("readout").value
        parts = []
        for readout in DRAWN:
            if np.isnan(ranks[readout]):
                continue  # one vector for every text: nothing to draw
            vectors = states.cell(layer, readout, used[chosen])
            for name in ("UMAP", "PCA"):
                flat, trust = umap_of(vectors, seed=self.seed) if name == "UMAP" else pca_of(vectors)
                share = flat.var(0).sum() / vectors.astype(np.float64).var(0).sum()
                told = f"{share:.0%} of the variance, " if name == "PCA" else ""
                parts.append(
                    pd.DataFrame(
                        {
                            "task": task.name,
                            "map": name,
                            "panel": f"{readout}, layer {layer} ({told}trustworthiness {trust:.2f})",
                            "x": flat[:, 0],
                            "y": flat[:, 1],
                            "label": task.y[own].astype(str) if task.kind == "class" else "texts",
                            "text": [readable(task.texts[i]) for i in own],
                            "row": own,
                        }
                    )
                )
        columns = ["task", "map", "panel", "x", "y", "label", "text", "row"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def _layer(self, table: pd.DataFrame) -> int:
        """The layer that is judged."""
        return int(table.layer.max()) if self.at is None else self.at

    # ------------------------------------------------------------------------------------------------------- judge

    def judge(self, table: pd.DataFrame) -> Verdict:
        """Yes where the whole interval of (cosine of means - cosine of [CLS]) lies above -margin, no where below."""
        parts = {}
        layer = self._layer(table)
        for task, rows in table.groupby("task", sort=False):
            here = rows[rows.layer == layer]
            cosine, coordinate = (
                here[here.measure == name].set_index("readout").value for name in ("self_similarity", "coordinate")
            )
            found = here[(here.measure == "difference") & (here.readout == "mean")].iloc[0]
            tokens = f"; two random tokens have {cosine['random']:.3f}" if "random" in cosine else ""
            because = (
                f"On {short(str(task))}, layer {layer}, [CLS] of two texts has a mean cosine of {cosine['cls']:.3f}, "
                f"of which one single coordinate brings {coordinate['cls']:.3f}; their mean has {cosine['mean']:.3f}, "
                f"of which one brings {coordinate['mean']:.3f}{tokens}."
            )
            parts[str(task)] = Verdict.decide(because, found.value, found.low, found.high, threshold=-self.margin)
        return Verdict.over(parts)

    # -------------------------------------------------------------------------------------------------------- show

    def show(self, table: pd.DataFrame) -> tuple[Exhibit, ...]:
        """For every task the judged difference at every layer, the measures over the layers, who resembles whom."""
        exhibits: list[Exhibit] = []
        for task, rows in table.groupby("task", sort=False):
            layer, section = self._layer(table), short(str(task))
            found = [*self._widths(rows), *_measures(rows, layer), *_pairs(rows, layer)]
            exhibits += [replace(exhibit, section=section) for exhibit in found]
        return tuple(exhibits)

    def _widths(self, rows: pd.DataFrame) -> list[Exhibit]:
        """The claim at every layer, and the cosines behind it."""
        found = rows[(rows.measure == "difference") & (rows.readout == "mean")].sort_values("layer", ascending=False)
        sides = found.assign(
            name="layer " + found.layer.astype(str),
            effect=found.value,
            outcome=[
                Verdict.decide("", effect, low, high, threshold=-self.margin).outcome
                for effect, low, high in zip(found.value, found.low, found.high, strict=True)
            ],
        )[["name", "effect", "low", "high", "outcome"]]
        exhibits = [
            Exhibit(
                f"The mean cosine of two texts, read by mean, less that read by [CLS]: to the right of 0 [CLS] is "
                f"spread more widely. 95 % intervals, paired over the texts. Shaded: the margin of {self.margin:g}. A "
                f"mean over many tokens is narrower than its tokens by construction: it keeps what they share.",
                sides.reset_index(drop=True),
                "differences",
                {"margin": self.margin, "metric": "mean cosine"},
            )
        ]
        raw = cells(rows, "self_similarity")
        adjusted = cells(rows, "adjusted").rename(columns={"value": "adjusted", "low": "from", "high": "to"})
        if len(adjusted):
            own = raw[raw.readout == "random"].set_index("layer").value.rename("baseline")
            beside = raw.join(own, on="layer").merge(adjusted, on=["layer", "readout"], how="left")
            beside = beside.drop(columns=["low", "high"]).rename(columns={"value": "cosine"})
            beside.loc[beside.readout == "random", ["adjusted", "from", "to"]] = 0.0
            exhibits.append(
                Exhibit(
                    "Adjusted self-similarity (Ethayarajh 2019): the mean cosine of two texts, less that of two random "
                    "tokens of the layer, one from each text (its anisotropy; the table has both). 0: no more alike "
                    "than any two tokens. [CLS] is one and the same word in all texts.",
                    beside.rename(columns={"adjusted": "value", "from": "low", "to": "high"}),
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

    def _scatters(self, projection: pd.DataFrame) -> list[Exhibit]:
        told = {
            "UMAP": "UMAP of the texts, [CLS] and mean side by side; colours are labels. Trustworthiness: how many "
            "near neighbours in the picture are near in truth. Distances between clusters are no evidence of anything.",
            "PCA": "The same texts on the two directions of the largest variance.",
        }
        return [
            Exhibit(
                told[str(name)],
                rows.drop(columns=["task", "map"]).reset_index(drop=True),
                "scatter",
                {},
                short(str(task)),
            )
            for (task, name), rows in projection.groupby(["task", "map"], sort=False)
        ]

    # ------------------------------------------------------------------------------------------------------ answer

    def run(self, folder: RunFolder) -> Finished:
        """Measure and save, or take up what an interrupted start of the same run has measured; judge, show."""
        if kept := folder.remembered("geometry"):
            log.info("going on: the measurement in %s is complete", folder.path)
            seen = Measured(**{name: folder.load(name) for name in TABLES}, **kept)
        else:
            seen = self.see()
            folder.begin()
            for name in TABLES:
                folder.save(name, getattr(seen, name))
            folder.remember(geometry={"facts": seen.facts, "notes": seen.notes})
        exhibits = [*self.show(seen.measured), *self._scatters(seen.projection)]
        sections = list(dict.fromkeys(exhibit.section for exhibit in exhibits))
        exhibits.sort(key=lambda exhibit: sections.index(exhibit.section))
        verdict = self.judge(seen.measured)
        answer = Answer(self.question, self.claim, verdict, tuple(exhibits), tuple(seen.notes), self.told(seen.facts))
        tasks = ", ".join(short(task) for task in seen.facts["rows"])
        return Finished({"geometry": answer}, seen.facts, title=f"{seen.facts['model']['model']} on {tasks}")


def cells(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Columns layer, readout, value, low, high of one measure."""
    return rows[rows.measure == measure][["layer", "readout", "value", "low", "high"]].reset_index(drop=True)


def _measures(rows: pd.DataFrame, layer: int) -> list[Exhibit]:
    """What each cell is like by itself."""
    from clsprobe.analysis.geometry import MEASURES

    here = rows[rows.measure.isin(MEASURES) & (rows.layer == layer)]
    order = list(here.readout.unique())
    wide = here.pivot(index="readout", columns="measure", values="value").loc[order]
    shown = wide[[name for name in MEASURES if name in wide]].rename(columns=lambda name: name.replace("_", " "))
    told = {
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
            shown.reset_index(),
        ),
        *(
            Exhibit(caption, found, "curves", {"metric": metrics[measure]})
            for measure, caption in told.items()
            if len(found := cells(rows, measure))
        ),
    ]


def _pairs(rows: pd.DataFrame, layer: int) -> list[Exhibit]:
    """Which cell resembles which."""
    import pandas as pd

    pairs = rows[rows.measure == "cka"]
    panels = []
    for readout in DRAWN:
        own = pairs[(pairs.readout == readout) & (pairs.other_readout == readout)]
        if len(own):
            panels.append(_square(own.layer.astype(str), own.other_layer.astype(str), own.value).assign(panel=readout))
    one = pairs[(pairs.layer == layer) & (pairs.other_layer == layer)]
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
            _square(one.readout, one.other_readout, one.value).assign(panel=f"layer {layer}")[
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
        beside = _beside_cls(rows[rows.measure == measure])
        arguments: dict[str, Any] = {"metric": metric}
        if measure == "neighbours":
            arguments["baselines"] = {"chance": float(rows[rows.measure == "chance"].value.iloc[0])}
        if len(beside):
            exhibits.append(Exhibit(caption, beside, "curves", arguments))
    return exhibits


def _beside_cls(pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs of cls with another readout of its layer: layer, readout, value, low, high."""
    same = pairs[(pairs.layer == pairs.other_layer) & ((pairs.readout == "cls") | (pairs.other_readout == "cls"))]
    other = same.other_readout.where(same.readout == "cls", same.readout)
    return same.assign(readout=other)[["layer", "readout", "value", "low", "high"]].reset_index(drop=True)


def _square(rows: pd.Series, columns: pd.Series, values: pd.Series) -> pd.DataFrame:
    """Both halves of a symmetric square, and ones on its diagonal where a row has any value: row, column, value."""
    import pandas as pd

    half = pd.DataFrame({"row": rows, "column": columns, "value": values})
    names = list(dict.fromkeys([*half.row, *half.column]))
    known = {*half.row[half.value.notna()], *half.column[half.value.notna()]}
    diagonal = pd.DataFrame({"row": names, "column": names, "value": [1.0 if n in known else None for n in names]})
    other = half.rename(columns={"row": "column", "column": "row"})
    whole = pd.concat([half, other, diagonal.astype({"value": float})], ignore_index=True)
    place = {name: i for i, name in enumerate(names)}
    key = whole.row.map(place) * len(names) + whole.column.map(place)
    return whole.iloc[key.argsort(kind="stable")][["row", "column", "value"]].reset_index(drop=True)


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["geometry"])
