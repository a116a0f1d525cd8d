"""How does [CLS] gather the sentence?

    clsprobe formation --task file:reviews.csv

1. The layer x readout sweep, in which dev chooses the layer where [CLS] is read. Its probe is fixed from then on.
2. Knockout decides: the attention of [CLS] to all other tokens is cut in every window of layers below, other edges in
   every single layer, and the probe is asked about the same test texts. The mean over tokens, read likewise, shows what
   the same cuts do to a readout that need not look through [CLS].
3. Erasure asks who *holds* the property: LEACE takes it out of [CLS], or out of the words, at one layer, and the
   network runs on. Random directions of the same variance are the control.
4. Attention and attribution are exhibits. How far their layers agree with those of the knockout is stated.

The verdict is about the two halves of the layers below the probe: being cut off in which of them costs more.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from clsprobe.analysis.folder import RunFolder
from clsprobe.analysis.study import Answer, Exhibit, Finished, Verdict
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import NAMED, of_last, parse
from clsprobe.probes.registry import find_probe
from clsprobe.run import Measured, Names, Ready, Run, Specs, check_classes, short

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from clsprobe.analysis.knockout import Cell
    from clsprobe.analysis.sweep import Asked
    from clsprobe.probes.encoders.encoder import Encoder
    from clsprobe.probes.extraction.states import States
    from clsprobe.probes.tasks.task import Task

log = logging.getLogger("clsprobe")

TABLES = ("results", "predictions", "knockout", "erasure", "leakage", "profiles", "agreement", "tokens")
EVERYTHING, OTHERS = "rest->cls", ("content->cls", "sep->cls", "cls->content")
SHOWN = {  # edges -> how a reader calls them
    "rest->cls": "[CLS] from all others",
    "content->cls": "[CLS] from the words",
    "sep->cls": "[CLS] from [SEP]",
    "cls->content": "the words from [CLS]",
}
LOOKED_AT = 60  # test texts whose attention and attributions are computed
STRIPS = 8  # of them that are shown word by word


class Formation(Run):
    """In which layers [CLS] receives what its probe reads, and whether what it holds is used."""

    question: ClassVar[str] = "How does [CLS] gather the sentence?"
    claim: ClassVar[str] = (
        "[CLS] receives late what its probe reads: cut off from all other tokens in the upper half of the layers below "
        "the probe, it loses more (by 2 points) than cut off in the lower half"
    )
    margin: ClassVar[float] = 0.02
    beside_untrained: ClassVar[bool] = False

    task: Specs = Field(("grammar:tense:1200", "grammar:subject_number:1200"), description="SPEC of a task; repeatable")
    readouts: Names = Field(("cls", "mean"), description="cls, which is judged; others are read beside it")

    def model_post_init(self, context: Any) -> None:
        """Raise InputError where there is no encoder to change, no [CLS], or a readout that no single layer has."""
        if self.vectors:
            what = "holds what an encoder has made; this study changes how it is made"
            raise InputError("--vectors", what, "Name the encoder with --model")
        names = [readout.name for readout in parse(self.readouts)]
        if "cls" not in names:
            raise InputError("--readouts", "this study is about cls", "Name cls, and others beside it")
        for name in names:
            if of_last(name) or (name not in NAMED and not name.startswith("token[")):
                raise InputError("--readouts", f"'{name}' is no vector of a single layer", "Use cls, token[1] or mean")

    # ----------------------------------------------------------------------------------------------------- measure

    def check_labels(self, tasks: list[Task], ids: np.ndarray | None) -> None:
        """As of a sweep; and the labels are classes."""
        check_classes(tasks)
        super().check_labels(tasks, ids)

    @cached_property
    def _encoded(self) -> list[States]:
        return self._encode(self.ready)

    def _states(self, ready: Ready) -> list[States]:
        return self._encoded

    def project(self, asked: list[Asked], states: States, predictions: pd.DataFrame) -> pd.DataFrame:
        """Nothing is projected where no maps are shown."""
        return super().project([], states, predictions)

    def inform(
        self, asked: list[Asked], states: States, predictions: pd.DataFrame
    ) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
        """Nothing is told in bits."""
        return super().inform([], states, predictions)

    def measure(self) -> pd.DataFrame:
        """What the fixed probes say after every cut (`analysis.knockout.PREDICTIONS`)."""
        return self._gather()[1]["knockout"]

    def _gather(self) -> tuple[Measured, dict[str, pd.DataFrame]]:
        """The sweep, and the tables of `TABLES`."""
        import pandas as pd

        from clsprobe.analysis.sweep import ask
        from clsprobe.probes.encoders.loading import load_encoder
        from clsprobe.probes.interventions.changes import check_changes

        ready = self.ready
        if not any(ready.layers):
            raise InputError("--layers", "layer 0 is what enters the first block: nothing to cut", "Name higher ones")
        check_changes(load_encoder(ready.described, device=self.device))  # before anything that takes its time
        measured = self.measured()
        (states,) = self._encoded
        encoder = load_encoder(ready.described, device=self.device, dtype=states.source["dtype"])
        drop = states.truncated if self.long_rows == "drop" else None
        found: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES[2:]}
        notes = []
        for task in ready.tasks:
            cells = self._cells(measured.predictions[measured.predictions.task == task.name])
            told = ", ".join(f"{readout} at layer {layer}" for layer, readout in cells)
            for seed in self._seeds:
                log.info("cutting and erasing in %s; read: %s", task.name, told)
                asked = ask(task, states, seed, drop=drop, allow_overlap=self.allow_overlap)
                parts = self._intervened(encoder, asked, states, cells, seed)
                if seed == self.seed:
                    more, note = self._looked_at(encoder, asked, states, cells[0], parts["knockout"])
                    parts |= more
                    notes += [f"{short(task.name)}: {note}"] if note else []
                for name, table in parts.items():
                    found[name].append(table)
        tables = {name: pd.concat(parts, ignore_index=True) for name, parts in found.items() if parts}
        tables |= {"results": measured.results, "predictions": measured.predictions}
        return replace(measured, notes=[*measured.notes, *notes]), tables

    def _cells(self, predictions: pd.DataFrame) -> list[Cell]:
        """[CLS] at the layer above 0 that dev chooses, then the other readouts of that layer."""
        from clsprobe.analysis.choose import chosen_cell

        rows = self.judged(predictions)
        layer = chosen_cell(rows[(rows.control != "none") | (rows.layer > 0)], "cls").layer
        names = [readout.name for readout in parse(self.readouts)]
        return [(layer, name) for name in sorted(names, key=lambda name: name != "cls")]

    def _intervened(
        self, encoder: Encoder, asked: Asked, states: States, cells: list[Cell], seed: int
    ) -> dict[str, pd.DataFrame]:
        from clsprobe.analysis import erasure, knockout

        probe, (layer, _) = find_probe(self.probes[0]), cells[0]
        cuts = knockout.windows([EVERYTHING], layer)
        cuts += [knockout.Window(edges, at, at) for edges in OTHERS for at in range(1, layer + 1)]
        places = [erasure.Place("cls", at) for at in range(1, layer)]
        places += [erasure.Place("content", at) for at in range(layer)]
        found = {"knockout": knockout.predictions_of(encoder, asked, states, probe, cells, cuts, seed=seed)}
        told = erasure.predictions_of(encoder, asked, states, probe, cells[0], places, seed=seed)
        return found | dict(zip(("erasure", "leakage"), told, strict=True))

    def _looked_at(
        self, encoder: Encoder, asked: Asked, states: States, cell: Cell, cut: pd.DataFrame
    ) -> tuple[dict[str, pd.DataFrame], str]:
        """Where [CLS] looks, which words move it, layer by layer; how that agrees with the knockout; and what to say
        where the encoder does not tell."""
        import numpy as np
        import pandas as pd

        from clsprobe.analysis import attribution, knockout
        from clsprobe.analysis.attention import mixing
        from clsprobe.analysis.sweep import features
        from clsprobe.probes.base import STRENGTHS
        from clsprobe.probes.linear import LogisticProbe

        layer, task, note = cell[0], asked.task.name, ""
        test, limit = asked.rows_of("test"), states.source["max_length"]
        some = np.sort(np.random.default_rng(self.seed).permutation(len(test))[:LOOKED_AT])
        texts = [asked.task.texts[i] for i in asked.row[test[some]]]
        own = cut[(cut.layer == layer) & (cut.readout == "cls")]
        profiles = {"knockout": knockout.losses(own, EVERYTHING)[:, :layer]}  # rows in the order of the task, as test

        def spread(values: np.ndarray) -> np.ndarray:
            """(test text, layer) out of those of the texts looked at."""
            whole = np.full((len(test), layer), np.nan)
            whole[some] = values
            return whole

        def content(table: pd.DataFrame) -> np.ndarray:
            """(text, layer) sums over content tokens."""
            summed = table[~table.special].groupby(["text", "layer"]).score.sum().unstack("layer")
            return summed.reindex(range(len(texts)), fill_value=0.0).to_numpy()[:, -layer:]

        try:
            for method in ("attention", "value_zeroing"):
                table = mixing(encoder, texts, method, max_length=limit)
                profiles[method] = spread(content(table[table.layer <= layer]))
        except InputError as error:
            note = f"attention is not shown ({error.what})."
        X, X_dev = (features(states, [cell], asked.at[asked.rows_of(side)]) for side in ("train", "dev"))
        y, y_dev = (asked.y[asked.rows_of(side), None] for side in ("train", "dev"))
        probe = LogisticProbe().fit_cells(X, y, dev=(X_dev, y_dev), strengths=STRENGTHS)
        each = np.stack([attribution.direction_of(probe, code) for code in range(len(asked.classes))])
        direction = each[asked.y[test[some]]]  # towards every text's own label

        def target(direction: np.ndarray, layer: int) -> attribution.Target:
            return attribution.Target(encoder, direction, layer=layer, max_length=limit)

        tables = [attribution.attribute(target(direction, at), texts, "feature_ablation") for at in range(1, layer + 1)]
        moved = content(pd.concat(tables).assign(score=lambda table: table.score.abs()))
        before = np.concatenate([np.zeros((len(texts), 1)), moved[:, :-1]], 1)
        profiles["attribution"] = spread(moved - before)  # layer 0 of [CLS] depends on no word
        means = [
            pd.DataFrame({"readout": kind, "layer": np.arange(1, layer + 1), **_profile(values)})
            for kind, values in profiles.items()
        ]
        found = {
            "profiles": pd.concat(means, ignore_index=True),
            "agreement": knockout.agreement(profiles),
            "tokens": attribution.attribute(target(direction[:STRIPS], layer), texts[:STRIPS], "integrated_gradients"),
        }
        labels = asked.classes[asked.y[test[some]]].astype(str)
        found["tokens"]["name"] = labels[found["tokens"].text]
        for table in found.values():
            table.insert(0, "task", task)
        return found, note

    # ------------------------------------------------------------------------------------------------------- judge

    def judge(self, table: pd.DataFrame) -> Verdict:
        """Cut off in the upper half against cut off in the lower half; undecided where nothing can be lost at all."""
        parts = {str(task): self._halves(table[table.task == task], str(task)) for task in table.task.unique()}
        return Verdict.over(parts)

    def _halves(self, rows: pd.DataFrame, task: str) -> Verdict:
        import numpy as np

        from clsprobe.analysis import stats
        from clsprobe.analysis.knockout import INTACT, Window, right

        rows = rows[rows.readout == "cls"]
        layer = int(rows.layer.iloc[0])
        half = max(1, layer // 2)  # a single layer has no halves
        cuts = (
            INTACT,
            Window(EVERYTHING, 1, layer),
            Window(EVERYTHING, 1, half),
            Window(EVERYTHING, layer - half + 1, layer),
        )
        intact, off, lower, upper = (right(rows, cut) for cut in cuts)
        effect, low, high = stats.paired_difference(lower, upper)
        values = [float(np.nanmean(side)) for side in (intact, off, lower, upper)]
        because = (
            f"On {short(task)}, the probe of [CLS] at layer {layer} gets {values[0]:.3f} of the test texts right; "
            f"{values[2]:.3f} when [CLS] is cut off in layers {_span(1, half)}, {values[3]:.3f} in layers "
            f"{_span(layer - half + 1, layer)}, {values[1]:.3f} in all of them."
        )
        if layer < 2:
            told = f"On {short(task)}, dev reads [CLS] at layer 1: one layer has no lower and no upper half."
            return Verdict("undecided", told, effect, low, high)
        if stats.paired_difference(intact, off)[1] <= self.margin:
            told = f"{because} There is nothing to lose that [CLS] would have received."
            return Verdict("undecided", told, effect, low, high)
        return Verdict.decide(because, effect, low, high, threshold=self.margin)

    # -------------------------------------------------------------------------------------------------------- show

    def show(self, table: pd.DataFrame) -> tuple[Exhibit, ...]:
        """For every task the windows in which [CLS] is cut off, and every kind of edges layer by layer."""
        from clsprobe.analysis.knockout import INTACT, effects

        exhibits = []
        for (task, layer, readout), rows in effects(table).groupby(["task", "layer", "readout"], sort=False):
            intact = rows[rows.edges == INTACT.edges].iloc[0]
            windows = rows[rows.edges == EVERYTHING]
            if readout == "cls":
                grid = self._grid(table[(table.task == task) & (table.readout == readout)], windows)
                exhibits.append(
                    Exhibit(
                        f"[CLS] cut off from all other tokens in a window of layers, from the layer of the row to that "
                        f"of the column: accuracy of its fixed probe at layer {layer}, with 95 % intervals. Intact: "
                        f"{intact.value:.3f}. Cut off in all of them: "
                        f"{windows[(windows['first'] == 1) & (windows['last'] == layer)].value.iloc[0]:.3f}.",
                        grid,
                        "heatmap",
                        {"metric": "accuracy"},
                        short(str(task)),
                    )
                )
            single = rows[(rows["first"] == rows["last"]) & (rows.edges != INTACT.edges)]
            single = single[(single.edges == EVERYTHING) | (readout == "cls")]
            exhibits.append(
                Exhibit(
                    f"What cutting edges in one layer costs the fixed probe of {readout} at layer {layer} "
                    f"({intact.value:.3f} intact), over the same test texts, with 95 % intervals. "
                    f'Shaded: the margin of {100 * self.margin:.0f} points. "yes": it loses more than that.',
                    self._differences(
                        [(f"{SHOWN[r.edges]}, layer {r.first}", r.effect, r.low, r.high) for r in single.itertuples()]
                    ),
                    "differences",
                    {"margin": self.margin, "metric": "accuracy"},
                    short(str(task)),
                )
            )
        return tuple(exhibits)

    def _grid(self, rows: pd.DataFrame, windows: pd.DataFrame) -> pd.DataFrame:
        """Columns layer (the first of a window), readout (its last), value, low, high: accuracies."""
        from clsprobe.analysis import stats

        tested = len(rows[["seed", "row"]].drop_duplicates()) // rows.seed.nunique()
        low, high = stats.wilson(windows.value.to_numpy(), tested)
        grid = windows.assign(layer=windows["first"], readout="to " + windows["last"].astype(str), low=low, high=high)
        return grid.sort_values(["last", "first"])[["layer", "readout", "value", "low", "high"]]

    def _differences(self, found: list[tuple[str, float, float, float]]) -> pd.DataFrame:
        """Columns name, effect, low, high, outcome: whether more is lost than the margin."""
        import pandas as pd

        outcomes = [Verdict.decide("", -e, -high, -low, threshold=self.margin).outcome for _, e, low, high in found]
        return pd.DataFrame(found, columns=["name", "effect", "low", "high"]).assign(outcome=outcomes)

    def _of_erasure(self, tables: Mapping[str, pd.DataFrame]) -> list[Exhibit]:
        from clsprobe.analysis.erasure import effects

        exhibits = []
        for task, rows in effects(tables["erasure"]).groupby("task", sort=False):
            told = [
                (f"{'[CLS]' if r.tokens == 'cls' else 'words'}, layer {r.layer}: {r.kind}", r.effect, r.low, r.high)
                for r in rows.itertuples()
            ]
            left = tables["leakage"][tables["leakage"].task == task]
            beside = rows.rename(columns={"value": "at the end", "effect": "change"})
            left = left[left.seed == left.seed.min()].drop(columns=["task", "seed"])
            wanted = [*left.columns[:3], "at the end", "change", "beyond", "beyond low", "beyond high"]
            exhibits += [
                Exhibit(
                    "The property erased in one place by LEACE, and the network run on: what the fixed probe of [CLS] "
                    "loses at the end, with 95 % intervals. Beside it random directions: of the same variance, which "
                    "is the control, and of the same number.",
                    self._differences(told),
                    "differences",
                    {"margin": self.margin, "metric": "accuracy"},
                    short(str(task)),
                ),
                Exhibit(
                    "What is left where it was erased: test accuracy of a linear probe that was trained on erased "
                    "vectors; moved, the share of their variance that was taken out. Then the accuracy at the end, its "
                    "change, and what of that goes beyond random directions of the same variance.",
                    left.merge(beside[wanted], on=wanted[:3], how="left"),
                    section=short(str(task)),
                ),
            ]
        return exhibits

    def _of_looks(self, tables: Mapping[str, pd.DataFrame]) -> list[Exhibit]:
        exhibits = []
        for task, rows in tables["profiles"].groupby("task", sort=False):
            agreed = tables["agreement"][tables["agreement"].task == task].drop(columns="task")
            told = "; ".join(
                f"{r.other} {r.correlation:+.2f} ({r.low:+.2f} to {r.high:+.2f})"
                for r in agreed[agreed.one == "knockout"].itertuples()
            )
            tokens = tables["tokens"][tables["tokens"].task == task]
            exhibits += [
                Exhibit(
                    "Three kinds of evidence for where [CLS] receives, each as a share of its largest layer. Knockout: "
                    "what being cut off in that layer alone costs. Attention: the weight that [CLS] gives to content "
                    "tokens; value zeroing: how far it turns without their values. Attribution: by how much more than "
                    "one layer below the words move [CLS] along the probe's direction. Attention and attribution are "
                    "correlations; the verdict is that of the knockout. Rank correlation with it over the layers, with "
                    "the 95 % interval of a bootstrap over "
                    f"texts: {told}.",
                    rows.drop(columns="task"),
                    "curves",
                    {"metric": "share of the largest layer"},
                    short(str(task)),
                ),
                Exhibit("How far they agree: rank correlations over the layers.", agreed, section=short(str(task))),
                Exhibit(
                    "What every word does to the number that the probe reads of [CLS], towards the text's own label, "
                    "in some test texts (integrated gradients; the baseline is a text without words).",
                    tokens.drop(columns="task"),
                    "token_strips",
                    {"metric": "attribution"},
                    short(str(task)),
                ),
            ]
        return exhibits

    def note(self, table: pd.DataFrame) -> list[str]:
        """What a cut can and cannot show, and the free controls."""
        from clsprobe.analysis.knockout import effects

        told, own = effects(table), table[table.readout == "cls"]
        off, said = (
            some[(some.edges == EVERYTHING) & (some["first"] == 1) & (some["last"] == some.layer)]
            for some in (told[told.readout == "cls"], own)
        )
        values = ", ".join(f"{short(r.task)} {r.value:.3f}" for r in off.itertuples())
        one = said.groupby(["task", "seed"]).predicted.nunique().max() == 1
        told = "says one class of all texts" if one else "still tells texts apart: it sees words before the first layer"
        return [
            f"Self-check: cut off in every layer, [CLS] {told} ({values}).",
            "A fixed probe may also fail because a cut makes vectors that it was not trained on: a loss says that the "
            "edge was used, not that nothing of it could be read any more.",
        ]

    # ------------------------------------------------------------------------------------------------------ answer

    def run(self, folder: RunFolder) -> Finished:
        """Measure and save, or take up what an interrupted start of the same run has measured already; then judge."""
        if kept := folder.remembered("measured"):
            log.info("going on: the measurement in %s is complete", folder.path)
            tables = {name: folder.load(name) for name in TABLES}
        else:
            measured, tables = self._gather()
            folder.begin()
            for name in TABLES:
                folder.save(name, tables[name])
            kept = {"facts": measured.facts, "notes": measured.notes, "failures": measured.failures}
            folder.remember(measured=kept)
        cut = tables["knockout"]
        exhibits = [*self.show(cut), *self._of_erasure(tables), *self._of_looks(tables)]
        sections = list(dict.fromkeys(exhibit.section for exhibit in exhibits))
        answer = Answer(
            self.question,
            self.claim,
            self.judge(cut),
            tuple(sorted(exhibits, key=lambda exhibit: sections.index(exhibit.section))),
            (*self.note(cut), *kept["notes"]),
            self.told(kept["facts"]),
        )
        return Finished({"formation": answer}, kept["facts"], kept["failures"])

    def prepare(self) -> list[str]:
        """As of a sweep, and the passes of the interventions."""
        *told, _ = super().prepare()
        ready = self.ready
        assert ready.described is not None
        depth, tokens = ready.layers[-1], sum(len(text) for text in ready.texts) / 4 / 3
        passes = (depth + 1) * (depth + 2) / 6 + 6 * depth  # of a third of the texts: windows, single layers, erasures
        minutes = passes * 24 * ready.described.layers * ready.described.dim**2 * tokens / 6e10 / 60
        return [*told, f"about {max(minutes * self.seeds, 0.5):.1f} minutes on two cores"]


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"


def _profile(values: np.ndarray) -> dict[str, np.ndarray]:
    """value, low, high (layer,): the mean over texts with its 95 % interval, as shares of the largest layer."""
    import numpy as np

    from clsprobe.analysis import stats

    known = values[~np.isnan(values).any(1)]
    mean = known.mean(0)
    largest = np.abs(mean).max(initial=0) or 1.0
    half = stats.Z * known.std(0, ddof=1) / np.sqrt(len(known)) if len(known) > 1 else np.full(len(mean), np.nan)
    return {"value": mean / largest, "low": (mean - half) / largest, "high": (mean + half) / largest}


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["formation"])
