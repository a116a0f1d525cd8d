"""What do the vectors of an encoder know, and where? The layer x readout sweep.

    clsprobe run --task file:reviews.csv --label-column stars --out out/reviews

1. `ready` reads the tasks and checks every name, before torch is imported.
2. `measure` encodes every text once, sweeps the probes over all cells, and projects the chosen cells.
3. `judge` compares the subject, [CLS] at its best layer, with the best baseline, over the same test texts.
4. `show` draws the grid, the curves, the baselines, the confusions.

`Run` is the base of the other studies that read the same measurement (positions.py, poolings.py): they override the
question and what follows from it.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from clsprobe.analysis.folder import RunFolder
from clsprobe.analysis.sources import SourceOptions, load
from clsprobe.analysis.study import Answer, Exhibit, Finished, Study, Verdict
from clsprobe.probes.encoders.describing import Description, describe
from clsprobe.probes.encoders.devices import check_device
from clsprobe.probes.encoders.layers import layer_numbers, parse_layers
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import DEFAULT, parse, separated
from clsprobe.probes.registry import check_name, find_probe, fitting
from clsprobe.probes.tasks.split import split, take
from clsprobe.probes.tasks.task import Task, readable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from clsprobe.analysis.choose import Chosen
    from clsprobe.analysis.sweep import Asked
    from clsprobe.probes.extraction.states import States
    from clsprobe.probes.extraction.vectors import Vectors

log = logging.getLogger("clsprobe")

TABLES = ("results", "predictions", "projection", "learning", "information")
PROBES = {"class": "logistic", "number": "ridge"}  # kind of a task -> what reads it unless another is named
PROJECTED = 1000  # texts of a UMAP
FLOPS, VALUES = 1.2e11, 4e6  # a second, measured on two cores: of the encoder, of features through a probe


def _separated(value: Any) -> Any:
    """Lists are comma-separated, or the flag is repeated."""
    parts = [value] if isinstance(value, str) else list(value)
    return tuple(name for part in parts for name in separated(str(part)))


def _repeated(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value)


Names = Annotated[tuple[str, ...], BeforeValidator(_separated)]
Specs = Annotated[tuple[str, ...], BeforeValidator(_repeated)]


@dataclass(frozen=True)
class Ready:
    """Everything that could be read and checked without torch."""

    tasks: list[Task]
    rows: dict[str, dict[str, Any]]  # spec -> rows read and left out
    notes: list[str]
    contents: dict[str, str]  # what was read where the settings do not tell it -> its digest
    described: Description | None  # None where vectors were given
    layers: list[int]
    readouts: list[str]
    cut: dict[str, int]  # task -> rows beyond --max-texts
    vectors: Vectors | None = None
    ids: np.ndarray | None = None  # (row of the vectors,) equal for equal ones

    @property
    def texts(self) -> list[str]:
        """Every distinct text of all tasks, once."""
        return list(dict.fromkeys(text for task in self.tasks for text in task.texts))


@dataclass(frozen=True, eq=False)
class Measured:
    """What a sweep leaves: tables, facts (section -> name -> value) for the page and run.json, and failed cells."""

    predictions: pd.DataFrame
    results: pd.DataFrame
    projection: pd.DataFrame
    learning: pd.DataFrame
    information: pd.DataFrame
    facts: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class Run(Study):
    """The layer x readout x probe sweep and its report."""

    question: ClassVar[str] = "What does the [CLS] vector know, and at which layer?"
    claim: ClassVar[str] = "[CLS], read at its best layer, tells more about the label than the best baseline does"
    margin: ClassVar[float] = 0.0
    beside_untrained: ClassVar[bool] = True  # whether an untrained encoder is among the baselines

    task: Specs = Field(("grammar:demo",), description="SPEC of a task: grammar:tense, file:PATH ...; repeatable")
    vectors: str | None = Field(
        None, description="no encoder: a .npy or .safetensors file with a vector for every row of file:PATH"
    )
    text_column: str | None = Field(
        None,
        description="file, hf: the column with the texts, or two of them for pairs: A,B [default: text; with --vectors "
        "none]",
    )
    label_column: Names = Field(("label",), description="file, hf: the labels; several columns make several tasks")
    split_column: str | None = Field(None, description="file: a column with train, dev, test")
    group_column: str | None = Field(None, description="file, hf: rows with one value stay on one side")
    encoding: str = Field("utf-8", description="file: the encoding of the text")
    sep: str | None = Field(None, description="file: what separates the fields of a .csv")
    target: Literal["class", "number"] | None = Field(None, description="file, hf: read labels as classes or numbers")
    drop_empty: bool = Field(False, description="file, hf, senteval: leave rows without a text out")
    drop_missing_labels: bool = Field(False, description="file, hf: leave rows without a label out")
    replace_invalid: bool = Field(False, description="file: replace characters that no text can hold")
    detokenise: bool = Field(False, description="senteval: write tokenised English as usual (don't for do n't)")
    split: str | None = Field(None, description="hf: what to read, train[:1000] or train[:1000],test")
    allow_overlap: bool = Field(False, description="keep texts that stand, or nearly stand, in train and test")
    max_texts: int | None = Field(None, ge=10, le=10**9, description="at most so many texts of a task, seeded")
    model: str | None = Field(None, description="a folder or a hub name, NAME@REVISION; default: the embedded MiniLM")
    layers: str = Field("all", description="all, 0,3,6 or 1-12; 0 is the embedding output")
    readouts: Names = Field(DEFAULT, description="what to read at every layer")
    probes: Names = Field(
        tuple(PROBES.values()),
        description="registered names or package.module:Class; the first that reads a task's labels is judged",
    )
    seeds: int = Field(
        1, ge=1, le=1000, description="how many seeds; they move carved splits, controls, untrained weights"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="the first seed")
    max_length: int | None = Field(
        None, ge=3, le=10**6, description="longest input in tokens; default: the model's own"
    )
    long_rows: Literal["error", "truncate", "drop"] = Field("error", description="what to do with longer texts")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where the encoder runs")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="precision of the encoder")
    fast: bool = Field(False, description="the encoder in bfloat16, where the hardware has it")
    cache: str | None = Field(  # where the vectors lie changes no result: not among the settings of a run
        None, exclude=True, description="where vectors are kept [default: $CLSPROBE_HOME, else ~/.cache/clsprobe]"
    )

    # ------------------------------------------------------------------------------------------------ before torch

    @cached_property
    def ready(self) -> Ready:
        """Tasks read and names checked. Raises InputError; imports no torch."""
        check_device(self.device)
        if self.fast and self.dtype != "float32":
            raise InputError("--fast", f"is bfloat16, and --dtype says {self.dtype}", "Give one of them")
        vectors = self._vectors() if self.vectors else None
        if not self.probes:
            raise InputError("--probes", "no probe is named", "Name one, such as logistic")
        for name in self.probes:
            check_name(name)
        if vectors:
            described, layers, readouts = None, *self._chosen(vectors)
        else:
            readouts = [readout.name for readout in parse(self.readouts)]
            described = describe(self.model)
            layers = parse_layers(self.layers, described)
        if not self.label_column:
            raise InputError("--label-column", "no column named", "Name one")
        given = {name: getattr(self, name) for name in SourceOptions.__dataclass_fields__}
        options = SourceOptions(**given)
        tasks: list[Task] = []
        rows: dict[str, dict[str, Any]] = {}
        notes: list[str] = []
        cut: dict[str, int] = {}
        contents: dict[str, str] = {}
        for spec in self.task:
            loaded = load(spec, options)
            if vectors:
                check_count(vectors, spec, loaded.rows)
            rows[spec] = {"rows": loaded.rows} | {f"left out: {why}": n for why, n in loaded.left_out.items() if n}
            notes += loaded.notes
            contents |= {spec: loaded.digest} if loaded.digest else {}
            for task in loaded.tasks:
                tasks.append(take(task, self.max_texts, seed=self.seed) if self.max_texts else task)
                cut[task.name] = len(task.texts) - len(tasks[-1].texts)
        if not tasks:
            raise InputError("--task", "no task is named", "Name one, such as grammar:tense or file:reviews.csv")
        names = [task.name for task in tasks]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError("--task", f"two tasks are called '{twice}'", "Rename a file, or run them apart")
        ids = None if vectors is None else vectors.check(_rows(tasks), layers, readouts)
        self.check_labels(tasks, ids)
        if vectors:
            contents |= {str(self.vectors): vectors.digest}
            lacking = ["untrained encoder", *(["length", "bag of words"] if tasks[0].textless else [])]
            notes.append(
                f"No encoder was run: the vectors are those of {vectors.name}. Baselines that are left out for want of "
                f"an encoder{' and of texts (--text-column)' if tasks[0].textless else ''}: {', '.join(lacking)}."
            )
        return Ready(tasks, rows, notes, contents, described, layers, readouts, cut, vectors, ids)

    def check_labels(self, tasks: list[Task], ids: np.ndarray | None) -> None:
        """Raise InputError where a task cannot be split and probed. ids: (row of the vectors,)"""
        for task in tasks:
            for seed in self._seeds:
                tokens = None if ids is None else ids[task.rows]
                split(task, seed=seed, allow_overlap=self.allow_overlap, tokens=tokens)
            self._named(task)
            if task.kind == "number" and (pooled := [name for name in self.readouts if name.startswith("attention")]):
                what = f"learns its pooling from classes, and {task.name} has numbers"
                raise InputError(pooled[0], what, "Leave this readout out, or the task")

    def _vectors(self) -> Vectors:
        """The file of vectors. Raises InputError where a flag of the encoder is given too."""
        from clsprobe.probes.extraction.vectors import read_vectors

        for name in ("model", "max_length", "long_rows", "device", "dtype", "fast"):
            if getattr(self, name) != type(self).model_fields[name].default:
                flag = "--" + name.replace("_", "-")
                raise InputError(flag, "is for an encoder, and --vectors needs none", "Leave one of them out")
        return read_vectors(str(self.vectors))

    def _chosen(self, vectors: Vectors) -> tuple[list[int], list[str]]:
        """Layers and readouts among those of a file; where none are named, all."""
        own = type(self).model_fields["readouts"].default
        readouts = vectors.readouts if self.readouts == own else vectors.chosen_readouts(self.readouts)
        if not self.can_judge(readouts):
            what = f"holds {', '.join(readouts)}; this study compares other readouts with cls"
            raise InputError(vectors.name, what, "Name tensors as in layer.07/cls and layer.07/mean")
        if self.layers.strip() == "all":
            return vectors.layers, readouts
        return vectors.chosen_layers(layer_numbers(self.layers, vectors.layers[-1])), readouts

    @classmethod
    def can_judge(cls, readouts: list[str]) -> bool:
        """Whether there is what the study is about among the readouts."""
        return len(readouts) > 0

    def settings(self) -> dict[str, Any]:
        """The fields, and digests of what they do not tell: standard input, a file of vectors."""
        told = self.vectors or any(spec.startswith("file:-") for spec in self.task)
        contents = self.ready.contents if told else {}
        return super().settings() | ({"contents": contents} if contents else {})

    def _named(self, task: Task) -> list[str]:
        """The named probes that read a task; InputError where none does. The default ones need not be made to know."""
        if self.probes == tuple(PROBES.values()):
            return [PROBES[task.kind]]
        return [*fitting({name: find_probe(name) for name in self.probes}, task)]

    @property
    def _seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    # ----------------------------------------------------------------------------------------------------- measure

    def measure(self) -> pd.DataFrame:
        """The predictions of every cell, baseline and control (analysis.table.PREDICTIONS)."""
        return self.measured().predictions

    def measured(self) -> Measured:
        """Encode, sweep, project."""
        ready = self.ready
        from clsprobe.analysis.sweep import ask, describe_rows, layer0_check, sweep
        from clsprobe.analysis.table import joined

        trained, *untrained = self._states(ready)
        drop = trained.truncated if self.long_rows == "drop" else None
        blocks: list[pd.DataFrame] = []
        failures: list[str] = []
        cells = len(trained.cells) * (1 + len(untrained))
        log.info("probing %s for %s", counted(cells, "cell"), counted(len(ready.tasks), "task"))
        results = sweep(
            ready.tasks,
            [trained, *untrained],
            {name: find_probe(name) for name in self.probes},
            seeds=self._seeds,
            drop=drop,
            allow_overlap=self.allow_overlap,
            keep=blocks.append,
            failed=failures.append,
        )
        predictions = joined(blocks)
        if ready.vectors:
            ready.vectors.check_same()
        asked = [ask(t, trained, self.seed, drop=drop, allow_overlap=self.allow_overlap) for t in ready.tasks]
        projection = self.project(asked, trained, predictions)
        facts = self.facts(trained, {task.task.name: describe_rows(task, ready.cut[task.task.name]) for task in asked})
        notes = [f"{short(task.task.name)}: {note}." for task in asked for note in task.notes] + ready.notes
        for task in asked:
            notes += [f"{short(task.task.name)}: {n:,} left out, {reason}." for reason, n in task.left_out.items()]
        notes += half_precision(trained)
        unsolved = results[results.metric.isin(["accuracy", "r2"]) & (results.split == "test") & ~results.converged]
        if len(unsolved):
            notes.append(f"{len(unsolved)} fits did not converge; they are flagged in the table.")
        learning, bits, covered = self.inform(asked, trained, predictions)
        found = [*layer0_check(results), *notes, *covered, *failures]
        return Measured(predictions, results, projection, learning, bits, facts, found, failures)

    def facts(self, states: States, rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """What run.json and the end of the page say of a measurement. rows: task -> which of them were used."""
        dropped = self.long_rows == "drop"
        return {
            "rows": rows,
            "read": self.ready.rows,
            "model": {k: v for k, v in states.source.items() if k not in ("versions", "control", "seed")}
            | {"truncated texts": 0 if dropped else len(states.truncated)},
            "versions": states.source["versions"] | {"clsprobe": importlib.metadata.version("clsprobe")},
        }

    def inform(
        self, asked: list[Asked], states: States, predictions: pd.DataFrame
    ) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
        """Learning curves and bits of the chosen cells of every task (analysis.information), and what to say of it."""
        import pandas as pd

        from clsprobe.analysis.choose import SHOWN, chosen_cell
        from clsprobe.analysis.information import BAG, INFORMATION, LEARNING, information
        from clsprobe.probes.tasks.control import coverage, word_type

        notes: list[str] = []
        parts: list[tuple[pd.DataFrame, ...]] = [(pd.DataFrame(columns=LEARNING), pd.DataFrame(columns=INFORMATION))]
        for one in asked:
            log.info("measuring the bits of %s", one.task.name)
            texts = [one.task.texts[i] for i in one.row]
            if not one.task.textless:
                share, guess = coverage(word_type(texts, one.y, one.side, self.seed), one.side)
                number = one.task.kind == "number"
                given = "a number" if number else "a label"
                right = "" if number else f"; its commonest one is right on {guess:.3f} of these"
                notes.append(
                    f"{short(one.task.name)}: the control task has {given} for {share:.0%} of the test texts{right}."
                )
            if one.task.kind == "number":
                notes.append(f"{short(one.task.name)}: numbers have no bits and no learning curve here.")
                continue
            rows = self.judged(predictions[predictions.task == one.task.name])
            names = [name for name in ("cls", "mean") if name in set(rows[rows.control == "none"].readout)]
            cells = [chosen_cell(rows, name) for name in names] or [self._subject(rows)]
            if BAG in states.cells:
                cells.append(replace(chosen_cell(rows, None, "layer0_mean"), told=SHOWN["layer0_mean"]))
            name = self._judge_of(rows)
            if hasattr(probe := find_probe(name), "predict_proba"):
                parts.append(information(one, states, cells, probe, seed=self.seed))
            else:
                notes.append(f"{name} gives no probabilities: nothing is told in bits.")
        learning, told = (pd.concat(tables[1:] or tables, ignore_index=True) for tables in zip(*parts, strict=True))
        return learning, told, list(dict.fromkeys(notes))

    def _states(self, ready: Ready) -> list[States]:
        """The vectors of the trained encoder, or those that were given, then those of untrained ones."""
        if ready.vectors is None:
            return self._encode(ready)
        assert ready.ids is not None
        return [ready.vectors.states(ready.layers, ready.readouts, ready.ids)]

    def _encode(self, ready: Ready) -> list[States]:
        from clsprobe.probes.encoders.devices import has_bfloat16
        from clsprobe.probes.encoders.loading import load_encoder
        from clsprobe.probes.extraction.extractor import Extractor
        from clsprobe.probes.extraction.store import usable_folder

        texts, dtype = ready.texts, self.dtype
        if self.fast and has_bfloat16(self.device):
            dtype = "bfloat16"
        elif self.fast:
            log.info("--fast: no bfloat16 in this hardware; float32 it is")
        states = []
        for weights in (None, *(self._seeds if self.beside_untrained else ())):
            what = "the encoder" if weights is None else f"an untrained one (seed {weights})"
            log.info("encoding %s with %s", counted(len(texts), "text"), what)
            encoder = load_encoder(ready.described, device=self.device, dtype=dtype, untrained=weights)
            extract = Extractor(
                encoder,
                ready.readouts,
                layers=ready.layers,
                max_length=self.max_length,
                long_rows="error" if self.long_rows == "error" else "truncate",
                cache=usable_folder(self.cache),  # not made before a model is known to load
            )
            states.append(extract(texts))
        return states

    def project(self, asked: list[Asked], states: States, predictions: pd.DataFrame) -> pd.DataFrame:
        """Columns task, panel, x, y, label, text, row: the test texts at the layers chosen on dev."""
        import numpy as np
        import pandas as pd

        from clsprobe.analysis.choose import bands
        from clsprobe.analysis.projection import SMALLEST, umap_of
        from clsprobe.analysis.stats import best_layers

        parts = []
        for one in asked:
            log.info("drawing the maps of %s", one.task.name)
            test = one.rows_of("test")
            if len(test) > PROJECTED:
                test = np.sort(np.random.default_rng(self.seed).choice(test, PROJECTED, replace=False))
            rows = self.judged(predictions[predictions.task == one.task.name])
            layers = best_layers(rows).set_index("readout").layer
            labels = one.classes[one.y[test]] if one.task.kind == "class" else bands(one.y[test], 5)
            for readout in ("cls", "mean"):
                if readout not in layers or len(test) < SMALLEST:
                    continue
                layer = int(layers[readout])
                vectors = states.cell(layer, readout)[one.at[test]]
                if (layer, readout) == (0, "cls"):
                    continue  # one vector for every text: nothing to draw
                flat, trust = umap_of(vectors, seed=self.seed)
                parts.append(
                    pd.DataFrame(
                        {
                            "task": one.task.name,
                            "panel": f"{readout}, layer {layer} (trustworthiness {trust:.2f})",
                            "x": flat[:, 0].round(3),
                            "y": flat[:, 1].round(3),
                            "label": labels,
                            "text": [readable(one.task.texts[i]) for i in one.row[test]],
                            "row": one.row[test],
                        }
                    )
                )
        columns = ["task", "panel", "x", "y", "label", "text", "row"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    # ------------------------------------------------------------------------------------------------------- judge

    def judged(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """The rows of the probe that is judged, with the baselines; an untrained encoder is read by that probe too.

        predictions: those of one task.
        """
        from clsprobe.analysis.choose import BASELINES

        read = predictions.control.isin(BASELINES) & (predictions.control != "untrained")
        return predictions[(predictions.probe == self._judge_of(predictions)) | read]

    def _judge_of(self, predictions: pd.DataFrame) -> str:
        """The first of the named probes that has read this task."""
        read = set(predictions[predictions.control == "none"].probe)
        return next(name for name in self.probes if name in read)

    def judge(self, table: pd.DataFrame) -> Verdict:
        """[CLS] (or the best readout, where [CLS] was not read) against the best baseline, both chosen on dev."""
        from clsprobe.analysis.choose import best_baseline, difference

        parts = {}
        for task in table.task.unique():
            rows = self.judged(table[table.task == task])
            subject, baseline = self._subject(rows), best_baseline(rows)
            because = f"On {short(task)}, {subject.does}, the best baseline ({baseline.told}) {baseline.test:.3f}."
            told = difference(rows, subject.where, baseline.where)
            parts[task] = Verdict.decide(because, *told, threshold=self.margin)
        return Verdict.over(parts)

    def _subject(self, rows: pd.DataFrame) -> Chosen:
        from clsprobe.analysis.choose import chosen_cell

        read = list(rows[rows.control == "none"].readout.unique())
        return chosen_cell(rows, "cls" if "cls" in read else None)

    def note(self, table: pd.DataFrame) -> list[str]:
        """Sentences a reader should not miss: where the last layer would mislead."""
        from clsprobe.analysis import stats

        falls = []
        for task in table.task.unique():
            rows = self.judged(table[table.task == task])
            subject = self._subject(rows)
            cells = rows[(rows.control == "none") & (rows.split == "test") & (rows.readout == subject.readout)]
            last = int(cells.layer.max())
            if last != subject.layer:
                end = stats.accuracies(cells[cells.layer == last], ["layer"]).value.iloc[0]
                falls.append(
                    f"{short(task)}: {subject.readout} {end:.3f} at the last layer ({last}), {subject.test:.3f} at the "
                    f"one "
                    f"that dev chooses ({subject.layer})"
                )
        return [f"The last layer is not the measure of a readout. {'; '.join(falls)}."] if falls else []

    # -------------------------------------------------------------------------------------------------------- show

    def show(self, table: pd.DataFrame) -> tuple[Exhibit, ...]:
        """For every task the grid, the curves, the baselines, and the confusions of the chosen cell.

        Numbers have R2 in the place of accuracy, and the chosen cell's predictions band by band.
        """
        from clsprobe.analysis import stats
        from clsprobe.analysis.choose import baselines_of, by_number, chosen_cell

        exhibits = []
        for task in table.task.unique():
            rows = self.judged(table[table.task == task])
            subject, section = self._subject(rows), short(task)
            test = rows[rows.split == "test"]
            grid = stats.accuracies(test[test.control == "none"], ["layer", "readout"])
            best = chosen_cell(rows, None)
            lines = baselines_of(rows)
            exhibits += [
                Exhibit(
                    f"Test {best.metric} of a linear probe at every layer and readout, with 95 % intervals; outlined, "
                    f"the cell that dev chooses ({best.told}). Layer 0 is what enters the first block.",
                    grid,
                    "heatmap",
                    {"metric": best.metric, "best": [best.layer, best.readout]},
                    section,
                ),
                Exhibit(
                    "The same over the layers, with baselines as dashed lines.",
                    grid,
                    "curves",
                    {"metric": best.metric, "baselines": dict(zip(lines.name, lines.value, strict=True))},
                    section,
                ),
                Exhibit(
                    f"{subject.told} beside its baselines and controls; each chosen on dev, measured on test.",
                    baselines_of(rows, subject),
                    "intervals",
                    {"metric": best.metric},
                    section,
                ),
            ]
            cell = subject.rows(test)
            if stats.of_numbers(cell):
                exhibits.append(
                    Exhibit(
                        f"What {subject.told} takes the numbers of the test texts for, band by band: their mean, the "
                        f"mean of what is predicted, and how far off it is (root of the mean squared error).",
                        by_number(cell),
                        section=section,
                    )
                )
                continue
            counts = cell.groupby(["label", "predicted"], observed=True).size().rename("count").reset_index()
            exhibits += [
                Exhibit(
                    f"What {subject.told} takes for what: test texts by their label (rows) and the predicted one "
                    f"(columns).",
                    counts.astype({"label": str, "predicted": str}),
                    "confusion",
                    {},
                    section,
                ),
                Exhibit(
                    f"Recall of every class, {subject.told}.",
                    stats.accuracies(cell.astype({"label": str}), ["label"]).rename(columns={"label": "name"}),
                    "intervals",
                    {"metric": "recall"},
                    section,
                ),
            ]
        return tuple(exhibits)

    def summaries(self, measured: Measured) -> tuple[Exhibit, ...]:
        """What needs the results table and the texts: gains, selectivity, corrections; where readouts disagree."""
        from clsprobe.analysis.choose import chosen_cell, disagreements, summary
        from clsprobe.analysis.stats import of_numbers

        exhibits = []
        texts = {task.name: task.texts for task in self.ready.tasks}
        for task in measured.predictions.task.unique():
            rows = self.judged(measured.predictions[measured.predictions.task == task])
            if of_numbers(rows):
                exhibits.append(
                    Exhibit(
                        "Every readout at the layer that dev chooses, measured once on test: R2, the share of the "
                        "numbers' variance that is explained, and Spearman's correlation, with 95 % intervals; gain in "
                        "R2 over the best baseline; selectivity, R2 less that on the control task, whose numbers "
                        "belong to words at random (Hewitt & Liang 2019).",
                        summary(rows, measured.results),
                        section=short(task),
                    )
                )
                continue
            exhibits.append(
                Exhibit(
                    "Every readout at the layer that dev chooses, measured once on test: accuracy with its 95 % "
                    "interval; bits a text (fewer is better); gain over the best baseline; selectivity, the accuracy "
                    "less that on the control task, whose labels belong to words at random (Hewitt & Liang 2019); p "
                    "that nothing is told at all, corrected for all cells of the grid (max-T).",
                    summary(rows, measured.results),
                    section=short(task),
                )
            )
            curves = measured.learning[measured.learning.task == task].drop(columns="task")
            if len(curves):
                exhibits += [
                    Exhibit(
                        "What more texts would teach: test accuracy by the number of training texts, with 95 % "
                        "intervals. The layers are those that dev chooses with all of them.",
                        curves.rename(columns={"name": "readout", "n": "training texts"}),
                        "curves",
                        {"metric": "accuracy", "along": "training texts", "scale": "log"},
                        short(task),
                    ),
                    Exhibit(
                        "In bits. Codelength: what the labels of train take when they are sent block by block, each "
                        "with a probe trained on those before (Voita & Titov 2020); compression: how many times fewer "
                        "than without a probe. V-information: the bits that a cell takes off the label of a test text "
                        "(Xu et al. 2020); what it adds: off what the mean of layer 0, words without their context, "
                        "leaves (Hewitt et al. 2021). 95 % intervals over the test texts; it may be negative.",
                        measured.information[measured.information.task == task].drop(
                            columns=["task", "layer", "readout", "converged"]
                        ),
                        section=short(task),
                    ),
                ]
            if {"cls", "mean"} <= set(rows[rows.control == "none"].readout):
                pair = chosen_cell(rows, "cls"), chosen_cell(rows, "mean")
                exhibits.append(
                    Exhibit(
                        "Test texts that one of [CLS] and mean gets right and the other wrong, the clearest first.",
                        disagreements(rows, *pair, texts[str(task)]),
                        section=short(task),
                    )
                )
        return tuple(exhibits)

    def maps(self, projection: pd.DataFrame) -> tuple[Exhibit, ...]:
        """The UMAPs of every task."""
        return tuple(
            Exhibit(
                "UMAP of test texts, [CLS] and mean side by side, each at the layer that dev chooses; colours are "
                "labels. "
                "Neighbours mean something here; distances between clusters do not.",
                rows.drop(columns="task").reset_index(drop=True),
                "scatter",
                {},
                short(task),
            )
            for task, rows in projection.groupby("task", sort=False)
        )

    # ------------------------------------------------------------------------------------------------------ answer

    def exhibits(self, measured: Measured) -> tuple[Exhibit, ...]:
        """What `show` draws of the predictions, the summaries, and the maps, task by task."""
        found = [*self.show(measured.predictions), *self.summaries(measured), *self.maps(measured.projection)]
        sections = list(dict.fromkeys(exhibit.section for exhibit in found))
        return tuple(sorted(found, key=lambda exhibit: sections.index(exhibit.section)))

    def answer(self, measured: Measured) -> Answer:
        """The answer to this study's question, out of a measurement."""
        return Answer(
            self.question,
            self.claim,
            self.judge(measured.predictions),
            self.exhibits(measured),
            (*self.note(measured.predictions), *measured.notes),
            self.told(measured.facts),
        )

    def told(self, facts: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Settings and facts under the headings of the page."""
        return {"Settings": _plain(self.model_dump(mode="json")), **_headed(facts)}

    def answers(self, measured: Measured) -> dict[str, Answer]:
        """This answer, and those of the other questions that the same measurement answers."""
        from clsprobe.aggregate import Aggregate
        from clsprobe.poolings import Poolings
        from clsprobe.positions import Positions

        read = measured.predictions.readout.unique().tolist()  # fewer than asked for where the model has no [CLS]
        others = [kind(**self.model_dump()) for kind in (Aggregate, Positions, Poolings) if kind.can_judge(read)]
        once = replace(measured, notes=[])  # what holds for the whole measurement is said in the first answer
        return {"run": self.answer(measured)} | {type(s).__name__.lower(): s.answer(once) for s in others}

    def run(self, folder: RunFolder) -> Finished:
        """Measure and save, or take up what an interrupted start of the same run has measured already; then judge."""
        if kept := folder.remembered("measured"):
            log.info("going on: the measurement in %s is complete", folder.path)
            measured = Measured(**{name: folder.load(name) for name in TABLES}, **kept)
        else:
            measured = self.measured()
            folder.begin()  # only now: an error about a text too long leaves nothing behind
            for name in TABLES:
                folder.save(name, getattr(measured, name))
            kept = {name: getattr(measured, name) for name in ("facts", "notes", "failures")}
            folder.remember(measured=kept)  # last: it says that the tables are complete
        tasks = ", ".join(short(task) for task in measured.facts["rows"])
        title = f"{measured.facts['model']['model']} on {tasks}"
        return Finished(self.answers(measured), measured.facts, measured.failures, title)

    def prepare(self) -> list[str]:
        """Read and check; what a run would take: rows, and rough figures for time (two cores) and memory."""
        ready = self.ready
        told = [f"{task.name}: {len(task.texts):,} texts, {_labels(task)}" for task in ready.tasks]
        size = f"{counted(len(ready.layers), 'layer')} x {counted(len(ready.readouts), 'readout')}"
        texts, cells = ready.texts, len(ready.layers) * len(ready.readouts)
        if ready.described is None:
            assert ready.vectors is not None
            rows, dim = ready.vectors.shape
            values = sum(len(task.texts) * len(self._named(task)) for task in ready.tasks) * dim * cells
            told.append(f"{counted(rows, 'vector')} of {dim:,} dimensions from {ready.vectors.name}, {size}")
            return [*told, f"about {max(values / VALUES / 60, 0.5):.1f} minutes on two cores"]
        tokens = sum(len(text) for text in texts) / 4 + 2 * len(texts)
        encoders = 1 + self.seeds * self.beside_untrained
        flops = 24 * ready.described.layers * ready.described.dim**2 * tokens * encoders
        rows = sum(len(task.texts) * len(self._named(task)) for task in ready.tasks)
        minutes = (flops / FLOPS + rows * ready.described.dim * cells * encoders / VALUES) / 60
        disk = cells * len(texts) * ready.described.dim * 4 * encoders / 1e9
        told.append(f"{counted(len(texts), 'distinct text')}, {ready.described.name}, {size}")
        return [*told, f"about {max(minutes, 0.5):.1f} minutes on two cores, {disk:.2f} GB of vectors on disk"]


def _rows(tasks: list[Task]) -> np.ndarray:
    """The rows of all tasks whose rows have vectors."""
    import numpy as np

    return np.concatenate([task.rows for task in tasks if task.rows is not None])


def check_count(vectors: Vectors, spec: str, rows: int) -> None:
    """Raise InputError unless there is one vector a row."""
    count = vectors.shape[0]
    if count == rows:
        return
    mend = "Give one vector for every row, in their order, also for rows that are left out"
    if rows == len(vectors.layers) > 1:
        mend = "Are its axes (layer, row, dim)? Save it as (row, layer, dim)"
    raise InputError(vectors.name, f"holds {counted(count, 'vector')}, {spec} {counted(rows, 'row')}", mend)


def check_classes(tasks: list[Task]) -> None:
    """Raise InputError where the labels of a task are numbers."""
    for task in tasks:
        if task.kind == "number":
            raise InputError(task.name, "holds numbers, and this study reads classes", "Leave --target number out")


def half_precision(states: States) -> list[str]:
    """A sentence on the cells that half precision moves too far, where there are such."""
    moved = states.source["moved by half precision"]
    told = ", ".join(f"{cell} {share:.0%}" for cell, share in sorted(moved.items(), key=lambda item: -item[1]))
    return (
        [f"Half precision moves these cells by more than 5 % of their spread; do not read them: {told}."]
        if moved
        else []
    )


def counted(n: int, what: str) -> str:
    """ "1 task", "2,000 texts"."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def short(task: str) -> str:
    """A task's name as a heading: without its source ("file:trec:coarse" -> "trec: coarse")."""
    return task.partition(":")[2].replace(":", ": ")


def _labels(task: Task) -> str:
    if task.kind == "class":
        return f"{len(set(task.y))} classes"
    return f"numbers from {task.y.min():g} to {task.y.max():g}"


def _headed(facts: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        "Rows": {
            f"{task}: {name}": value
            for part in ("read", "rows")
            for task, rows in facts[part].items()
            for name, value in rows.items()
        },
        "Model": _plain(facts["model"]),
        "Versions": facts["versions"],
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As the page shows settings: lists and figures in one line, and no line for what was not asked for."""
    return {name: _line(value) for name, value in values.items() if value not in (None, False)}


def _line(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {v:.2g}" if isinstance(v, float) else f"{name} {v}" for name, v in value.items())
    return value


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["run"])
