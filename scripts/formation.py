"""How does [CLS] gather the sentence?

    clsprobe formation --task file:reviews.csv

1. The layer x readout sweep, which chooses on dev the layer where [CLS] is read.
2. Knockout decides: the attention of [CLS] to all other tokens is cut in a window of lower layers (is it necessary?),
   or everywhere but there (does it suffice?), and a probe is trained anew on vectors that were cut so.
3. Untrained encoders are the null: the same cuts at the same layer.
4. The *fixed* probe, trained on intact vectors, shows how far single cuts move them: a shift, and no verdict.
5. Erasure removes the property from [CLS], or from the words, at one layer, as far as a linear probe can read it
   (LEACE), and the forward pass continues. Probes that are trained again show what is left there and at the end;
   random directions of the same variance are the control.
6. Swaps of [CLS] between the sentences of minimal pairs, where the source of a task makes any, show what of their
   difference it carries in every layer.
7. Attention and attribution are exhibits, with their agreement with the shift over the layers.

The answer says which half of the layers below the probe is necessary, which suffices, and whether [CLS] gathers later
than in untrained encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from clsprobe.analysis.answer import Exhibit
from clsprobe.analysis.corpus import Inputs, check_classes, make_source_options, read_inputs
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.settings import Names, ProbeSettings, Specs, TaskSettings, VectorSettings
from clsprobe.analysis.sources import MinimalPairs, load_pairs
from clsprobe.analysis.study import Study
from clsprobe.analysis.sweep.plan import check_probes, check_tasks, describe_sweep
from clsprobe.analysis.verdict import (
    TAIL,
    Outcome,
    Part,
    Verdict,
    capitalise,
    points,
    short,
    warn_of_few_texts,
)
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import Cat, Cls, Flatten, parse_readouts

if TYPE_CHECKING:
    from clsprobe.analysis.folder import RunFolder


class Formation(ProbeSettings, VectorSettings, TaskSettings, Study):
    """In which layers does [CLS] receive what its probe reads, and is what it holds used?"""

    question: ClassVar[str] = "How does [CLS] gather the sentence?"
    claim: ClassVar[str] = (
        "[CLS] gathers later than in untrained encoders: cut off from all other tokens in the upper half of the layers "
        "below the probe, it costs retrained probes more than in the lower half, by 2 points more than in untrained "
        "encoders"
    )
    margin: ClassVar[float] = 0.02
    opening: ClassVar[str] = (
        "What the cut in the upper half of the layers costs retrained probes of [CLS] beyond the cut in the lower "
        "half, minus the same in untrained encoders, in points"
    )
    statements: ClassVar[Mapping[Outcome, str]] = {
        "yes": "later than in untrained encoders",
        "no": "no later than in untrained encoders",
        "undecided": "not certain",
    }
    judged: ClassVar[str] = "knockout"
    tables: ClassVar[tuple[str, ...]] = (
        "results", "predictions", "knockout", "retrained", "refitted", "erasure", "leakage", "reliability", "profiles",
        "agreement", "baselines", "tokens", "swaps", "swap_reliability", "twins",
    )  # fmt: skip

    task: Specs = Field(("grammar:tense:1200", "grammar:subject_number:1200"), description="SPEC of a task; repeatable")
    readouts: Names = Field(("cls", "mean"), description="cls, which is judged; others are read beside it")

    def model_post_init(self, context: Any) -> None:
        """Raise InputError without cls, or for a readout that is no vector of a single layer."""
        readouts = parse_readouts(self.readouts)
        if not any(isinstance(readout, Cls) for readout in readouts):
            raise InputError("--readouts", "this study is about cls", "Name cls, and others beside it")
        for readout in readouts:
            if readout.last_layer_only or isinstance(readout, Flatten | Cat):
                what = f"'{readout.name}' is no vector of a single layer"
                raise InputError("--readouts", what, "Use cls, token[1] or mean")

    @cached_property
    def inputs(self) -> Inputs:
        """Tasks, encoder and probes, checked. Raises InputError; imports no torch."""
        check_probes(self)
        inputs = read_inputs(self, seed=self.seed)
        check_classes(inputs.tasks)
        check_tasks(self, inputs)
        if not any(inputs.layers):
            what = "layer 0 is what enters the first block: nothing to cut"
            raise InputError("--layers", what, "Name higher ones")
        return inputs

    @cached_property
    def minimal_pairs(self) -> dict[str, MinimalPairs]:
        """Task -> its minimal pairs, for the tasks whose source makes any."""
        options, specs = make_source_options(self), [spec for spec in self.task if isinstance(spec, str)]
        return {name: pairs for spec in specs for name, pairs in load_pairs(spec, options).items()}

    def contents(self) -> dict[str, str]:
        """Digests of data, encoder and code."""
        pairs = {f"minimal pairs of {name}": pairs.digest for name, pairs in self.minimal_pairs.items()}
        return super().contents() | self.inputs.contents | pairs

    def prepare(self) -> list[str]:
        """Describe the sweep, and estimate the time of the interventions, had dev chosen the last layer."""
        from clsprobe.analysis.formation.cuts import EVERY_RUN

        *sentences, _ = describe_sweep(self.inputs, probes=self.probes)
        description = self.inputs.description
        assert description is not None
        depth, tokens = self.inputs.layers[-1], sum(len(text) for text in self.inputs.corpus.texts) / 4
        windows = depth * (depth + 1) * (depth + 2) / 3 if depth <= EVERY_RUN else 2 * depth**2
        windows += depth**2  # blocks run on all texts: cut, open, restored
        untrained = 5 * 3.5 * depth  # encoders, and passes of each
        on_test = 5 * depth**2 / 3  # erasures, and cuts for the fixed probe
        blocks = (windows + on_test) * self.seeds + untrained
        minutes = blocks * 24 * description.dim**2 * tokens / 6e10 / 60
        return [
            *sentences,
            f"at most about {max(minutes, 0.5):.1f} minutes on two cores, less for a lower layer of [CLS]",
        ]

    def measure(self, folder: RunFolder | None = None) -> Measured:
        """The sweep, knockouts, erasures, swaps, attention and attribution (analysis.formation.measure)."""
        from clsprobe.analysis.formation.measure import measure_formation

        return measure_formation(self, self.inputs)

    def judge(self, measured: Measured, task: str) -> Verdict:
        """What retrained probes read after [CLS] was cut off, and how that differs from untrained encoders."""
        from clsprobe.analysis.formation import wording
        from clsprobe.analysis.formation.cuts import DRAWS, EVERYTHING, INTACT, Gathering, Window

        gathering = Gathering(*(measured.rows(table, task) for table in ("retrained", "refitted")))
        name = short(task)
        layer, everywhere = gathering.layer, Window(EVERYTHING, 1, gathering.layer)
        intact, cut_off = (f"{gathering.accuracy(window):.3f}" for window in (INTACT, everywhere))
        few, about = warn_of_few_texts(gathering.texts, name), wording.describe_interval(gathering)
        if layer < 2:
            return Verdict.described(
                f"On {name}, dev reads [CLS] at layer 1, which has no lower and no upper half below it: a probe gets "
                f"{intact} of the test texts right, and {cut_off} where [CLS] is cut off there and the probe is "
                "trained anew.",
                warnings=few,
            )
        lost = gathering.lose(everywhere)
        if lost.p_above(self.margin) >= TAIL:
            low, high = lost.interval()
            return Verdict.described(
                f"On {name}, it cannot be said in which layers [CLS] gathers what a probe at layer {layer} reads: it "
                f"gets {intact} of the test texts right, and {cut_off} where [CLS] is cut off from all other tokens in "
                f"{wording.format_span(1, layer)} and the probe is trained anew, which is not certainly "
                f"{100 * self.margin:.0f} points less ({points(lost.effect)} points, {points(low)} to {points(high)}).",
                interval_of=about,
                warnings=few,
            )
        finding = f"on {name}, {wording.describe_reading(gathering)}. {wording.describe_halves(gathering, self.margin)}"
        if gathering.draws < DRAWS:
            missing = "Untrained encoders were not measured: whether this is later than without training is not known"
            return Verdict.described(f"{capitalise(finding)}. {missing}.", interval_of=about, warnings=few)
        difference, *values = gathering.compare_halves()

        def say(outcome: Outcome, part: Part) -> str:
            return f"{finding}. {wording.compare_with_untrained(gathering, outcome, part, values)}"

        part = Part.of("later than in untrained encoders", difference, self.margin)
        brief = f"{name} {points(part.effect, True)} ({points(part.low, True)} to {points(part.high, True)})"
        return Verdict.of(
            [part],
            say,
            is_open=True,
            brief=brief,
            interval_of=about,
            texts=gathering.texts,
            training_texts=gathering.training_texts,
            warnings=few,
        )

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """Cuts read by retrained probes, shifts of the fixed probe, erasures, attention, attribution and swaps."""
        from clsprobe.analysis.formation import exhibits
        from clsprobe.analysis.formation.cuts import Gathering

        evidence: list[tuple[Sequence[str], Callable[..., list[Exhibit]]]] = [
            (["retrained", "refitted"], lambda *rows: exhibits.gathering_exhibits(Gathering(*rows), self.margin)),
            (["knockout"], lambda rows: exhibits.shift_exhibits(rows, self.margin)),
            (["erasure", "leakage", "reliability"], exhibits.erasure_exhibits),
            (["profiles", "agreement", "baselines", "tokens"], exhibits.explanation_exhibits),
            (["swaps", "swap_reliability"], exhibits.swap_exhibits),
            (["twins"], exhibits.twin_exhibits),
        ]
        of_task: list[Exhibit] = []
        for names, make in evidence:
            if measured.tables.keys() >= {*names}:  # runs of older versions lack some
                rows = [measured.rows(name, task) for name in names]
                of_task += [] if rows[0].empty else make(*rows)
        return of_task

    def note(self, measured: Measured) -> list[str]:
        """The self-check, what the fixed probe shows, and what swaps carry."""
        from clsprobe.analysis.formation.cuts import describe_cut_off
        from clsprobe.analysis.formation.swap_effects import describe_swaps
        from clsprobe.analysis.formation.wording import describe_writing

        notes = []
        if self.seeds > 1:
            notes.append(
                "Cuts and what is read at the end of erasures are of all seeds; leakage, reliability, attention, "
                "attribution and swaps are of the first one."
            )
        if "retrained" in measured.tables:
            notes.append(describe_cut_off(measured.tables["retrained"]))
        if "knockout" in measured.tables:
            for task in measured.tables["knockout"].task.unique():
                notes.append(f"{short(task)}: {describe_writing(measured.rows('knockout', task), self.margin)}")
        if "swaps" in measured.tables:
            for task in measured.tables["swaps"].task.unique():
                notes.append(f"{short(task)}: {describe_swaps(measured.rows('swaps', task))}.")
        return notes


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["formation"])
