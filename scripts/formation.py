"""How does [CLS] gather the sentence?

    clsprobe formation --task file:reviews.csv

1. The layer x readout sweep, which chooses on dev the layer where [CLS] is read. Its probe is fixed from then on.
2. Knockout decides: the attention of [CLS] to all other tokens is cut in every window of lower layers, other edges in
   every single layer, and the probe predicts the same test texts. The mean over tokens shows what the same cuts do to a
   readout that does not depend on [CLS].
3. Erasure shows where the property is *held*: LEACE removes it from [CLS], or from the words, at one layer, and the
   forward pass continues. Random directions of the same variance are the control.
4. Attention and attribution are exhibits, with their agreement with the knockout over the layers.

The answer compares the two halves of the layers below the probe: in which of them does cutting off [CLS] cost more?
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from clsprobe.analysis.contents import probe_contents
from clsprobe.analysis.corpus import Inputs, check_classes, read_inputs
from clsprobe.analysis.settings import Names, ProbeSettings, Specs, TaskSettings, VectorSettings
from clsprobe.analysis.sources import MinimalPairs, load_pairs
from clsprobe.analysis.study import Exhibit, Measured, Study, short
from clsprobe.analysis.sweep.plan import check_probes, check_tasks, describe_sweep
from clsprobe.analysis.verdict import (
    TAIL,
    MissingEvidence,
    Outcome,
    Part,
    Verdict,
    amount_in_words,
    points,
    warn_of_few_texts,
)
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import NAMED, last_layer_only, parse_readouts

if TYPE_CHECKING:
    from clsprobe.analysis.folder import RunFolder


LIMIT = (
    "A fixed probe also fails where a cut only moves the vectors from those that it was trained on: this says where "
    "the edges are used, not where nothing could be read any more"
)


class Formation(ProbeSettings, VectorSettings, TaskSettings, Study):
    """In which layers does [CLS] receive what its probe reads, and is what it holds used?"""

    question: ClassVar[str] = "How does [CLS] gather the sentence?"
    claim: ClassVar[str] = (
        "[CLS] receives late what its probe reads: cut off from all other tokens in the upper half of the layers below "
        "the probe, it loses more (by 2 points) than cut off in the lower half"
    )
    margin: ClassVar[float] = 0.02
    opening: ClassVar[str] = (
        "What it costs the fixed probe that [CLS] is cut off from all other tokens in the upper half of the layers "
        "below it, more than in the lower half"
    )
    statements: ClassVar[Mapping[Outcome, str]] = {
        "yes": "more in the upper half",
        "no": "no more in the upper half",
        "undecided": "not certain",
    }
    judged: ClassVar[str] = "knockout"
    tables: ClassVar[tuple[str, ...]] = (
        "results", "predictions", "knockout", "erasure", "leakage", "profiles", "agreement", "tokens",
        "swaps", "swap_reliability",
    )  # fmt: skip

    task: Specs = Field(("grammar:tense:1200", "grammar:subject_number:1200"), description="SPEC of a task; repeatable")
    readouts: Names = Field(("cls", "mean"), description="cls, which is judged; others are read beside it")

    def model_post_init(self, context: Any) -> None:
        """Raise InputError without cls, or for a readout that is no vector of a single layer."""
        names = [readout.name for readout in parse_readouts(self.readouts)]
        if "cls" not in names:
            raise InputError("--readouts", "this study is about cls", "Name cls, and others beside it")
        for name in names:
            if last_layer_only(name) or (name not in NAMED and not name.startswith("token[")):
                raise InputError("--readouts", f"'{name}' is no vector of a single layer", "Use cls, token[1] or mean")

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
        return {name: pairs for spec in self.task for name, pairs in load_pairs(spec).items()}

    def contents(self) -> dict[str, str]:
        """Digests of data, encoder and code."""
        pairs = {f"minimal pairs of {name}": pairs.digest for name, pairs in self.minimal_pairs.items()}
        return super().contents() | self.inputs.contents | pairs | probe_contents(self.probes)

    def prepare(self) -> list[str]:
        """Describe the sweep, and estimate the time of the interventions."""
        *sentences, _ = describe_sweep(self.inputs, probes=self.probes)
        description = self.inputs.description
        assert description is not None
        depth, tokens = self.inputs.layers[-1], sum(len(text) for text in self.inputs.corpus.texts) / 4 / 3
        passes = (depth + 1) * (depth + 2) / 6 + 6 * depth  # of a third of the texts: windows, single layers, erasures
        minutes = passes * 24 * description.layers * description.dim**2 * tokens / 6e10 / 60
        return [*sentences, f"about {max(minutes * self.seeds, 0.5):.1f} minutes on two cores"]

    def measure(self, folder: RunFolder | None = None) -> Measured:
        """The sweep, the knockouts, the erasures, attention and attribution (analysis.formation.measure)."""
        from clsprobe.analysis.formation.measure import measure_formation

        return measure_formation(self, self.inputs)

    def judge(self, measured: Measured, task: str) -> Verdict:
        """Cut off in the lower half minus cut off in the upper half, where a cut of all layers costs something."""
        import numpy as np

        from clsprobe.analysis import stats
        from clsprobe.analysis.formation.knockout import EVERYTHING, INTACT, Window, tabulate_correct

        task, rows = short(task), measured.rows(self.judged, task).query("readout == 'cls'")
        if rows.empty:
            raise MissingEvidence("[CLS] was not read after a cut")
        layer = int(rows.layer.iloc[0])
        half = max(1, layer // 2)  # a single layer has no halves
        spans = (1, layer), (1, half), (layer - half + 1, layer)
        cuts = INTACT, *(Window(EVERYTHING, *span) for span in spans)
        intact, cut_off, lower, upper = (tabulate_correct(rows, cut).to_numpy() for cut in cuts)
        scores = [f"{float(np.nanmean(side)):.3f}" for side in (intact, cut_off, lower, upper)]
        everywhere, below, above = (_format_layers(*span) for span in spans)
        few = warn_of_few_texts(intact.shape[1], task)
        if layer < 2:
            return Verdict.described(
                f"On {task}, dev reads [CLS] at layer 1, which has no lower and no upper half below it: the probe gets "
                f"{scores[0]} of the test texts right, and {scores[1]} where [CLS] is cut off there. {LIMIT}.",
                warnings=few,
            )
        lost = stats.compare(intact, cut_off)
        if lost.p_above(self.margin) >= TAIL:
            low, high = lost.interval()
            return Verdict.described(
                f"On {task}, it cannot be said in which layers [CLS] gathers what its probe at layer {layer} reads: "
                f"the probe gets {scores[0]} of the test texts right, and {scores[1]} where [CLS] is cut off from all "
                f"other tokens in {everywhere}, which is not certainly {100 * self.margin:.0f} points less "
                f"({points(lost.effect)} points, {points(low)} to {points(high)}).",
                warnings=few,
            )

        def say(outcome: Outcome, part: Part) -> str:
            if outcome == "yes":
                what = f"depends more on what [CLS] takes from the other tokens in {above} than in {below}"
            elif part.high < -self.margin:
                what = f"depends more on what [CLS] takes from the other tokens in {below} than in {above}"
            elif outcome == "no" and part.low > -self.margin:
                what = f"depends as much on what [CLS] takes from the other tokens in {below} as in {above}"
            elif outcome == "no":
                what = f"depends no more on what [CLS] takes from the other tokens in {above} than in {below}"
            else:
                what = (
                    "depends on what [CLS] takes from the other tokens, and it is not certain whether more in "
                    f"{above} or in {below}"
                )
            costlier = above if part.effect >= 0 else below
            return (
                f"on {task}, the probe of [CLS] at layer {layer} {what}: it gets "
                f"{scores[0]} of the test texts right, {scores[2]} where [CLS] is cut off in {below}, {scores[3]} in "
                f"{above}, {scores[1]} in {everywhere}; the cut in {costlier} costs {amount_in_words(part)} more, "
                f"with a margin of {100 * self.margin:.0f}. {LIMIT}"
            )

        part = Part.of("cut off in the upper half, not the lower", stats.compare(lower, upper), self.margin)
        brief = f"{task} {points(part.effect, True)} points ({points(part.low, True)} to {points(part.high, True)})"
        return Verdict.of([part], say, is_open=True, brief=brief, texts=intact.shape[1], warnings=few)

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """Cuts, erasures, attention and attribution."""
        from clsprobe.analysis.formation import exhibits

        return [
            *exhibits.knockout_exhibits(measured.rows("knockout", task), self.margin),
            *exhibits.erasure_exhibits(measured.rows("erasure", task), measured.rows("leakage", task), self.margin),
            *exhibits.explanation_exhibits(
                *(measured.rows(name, task) for name in ("profiles", "agreement", "tokens"))
            ),
            *exhibits.swap_exhibits(measured, task),
        ]

    def note(self, measured: Measured) -> list[str]:
        """The self-check, and what a cut can and cannot show."""
        from clsprobe.analysis.formation import exhibits
        from clsprobe.analysis.formation.knockout import EVERYTHING, compute_effects

        if "knockout" not in measured.tables:
            return []  # no cut could be made: the verdict says so
        knockout = measured.tables["knockout"]
        knockout = knockout[knockout.readout == "cls"]
        cut_off, predictions = (
            rows[(rows.edges == EVERYTHING) & (rows["first"] == 1) & (rows["last"] == rows.layer)]
            for rows in (compute_effects(knockout), knockout)
        )
        values = ", ".join(f"{short(row.task)} {row.value:.3f}" for row in cut_off.itertuples())
        one_class = predictions.groupby(["task", "seed"]).predicted.nunique().max() == 1
        what = (
            "says one class of all texts"
            if one_class
            else "still tells texts apart: it sees words before the first layer"
        )
        return [
            *exhibits.swap_notes(measured),
            f"Self-check: cut off in every layer, [CLS] {what} ({values}).",
            f"{LIMIT}.",
        ]


def _format_layers(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first} to {last}"


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["formation"])
