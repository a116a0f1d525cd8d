"""Fine-tuned from any other position, does it work as well?

    clsprobe fine-tuning --task file:trec --text-column text --label-column coarse

1. For every readout, learning rate and seed the whole encoder is trained with one linear head on that readout, on the
   same texts in the same order. The rate of each readout is chosen on dev; where that is the smallest or largest one,
   the readout is trained with more rates, until it is not.
2. Each is compared with a probe of the frozen encoder on the same readout, and with the commonest class.
3. The verdict is about the positions: every single token other than [CLS] against [CLS], on the same test texts and
   seeds, which are crossed, against a margin declared beforehand.
4. [CLS] is trained once more and probed during training, which answers `clsprobe trajectory`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from clsprobe.analysis.answer import Exhibit
from clsprobe.analysis.contents import model_contents
from clsprobe.analysis.corpus import Inputs, check_classes, read_corpus, read_encoder
from clsprobe.analysis.fine_tuning.checkpoints import describe_checkpoints
from clsprobe.analysis.fine_tuning.plan import EXTENSIONS, MOST_SEEDS, Plan
from clsprobe.analysis.measured import Measured
from clsprobe.analysis.settings import EncoderSettings, Names, ProbeSettings, Specs, TaskSettings
from clsprobe.analysis.study import Study, counted
from clsprobe.analysis.sweep.plan import check_probes, check_tasks
from clsprobe.analysis.verdict import TAIL, Outcome, Part, Verdict, difference_in_words, points, short
from clsprobe.probes.encoders.describing import Description
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import parse_arrangement

if TYPE_CHECKING:
    from clsprobe.analysis.folder import RunFolder

READOUTS = (
    "cls", "token[1]", "token[-1]", "sep", "random", "mean", "max", "cls@last", "new@first", "new@last",
)  # fmt: skip
QUICK_READOUTS = ("cls", "token[1]", "token[-1]", "mean")
RATES_HELP = (
    "learning rates of the encoder; dev chooses for each readout, and where it chooses the smallest or largest, up to "
    f"{EXTENSIONS} beyond it are trained as well"
)
TOKENS_PER_SECOND = 900.0  # of one core training the embedded model; for --dry-run


class FineTuning(ProbeSettings, EncoderSettings, TaskSettings, Study):
    """Does the encoder fine-tuned from another position work as well as from [CLS]?"""

    question: ClassVar[str] = "Fine-tuned from any other position, does it work as well?"
    claim: ClassVar[str] = (
        "Fine-tuned from any other single token, the encoder classifies as well as from [CLS] (worse by no more than 2 "
        "points)"
    )
    margin: ClassVar[float] = 0.02
    opening: ClassVar[str] = "The lowest of the others minus [CLS]"
    aliases: ClassVar[tuple[str, ...]] = ("finetune",)
    further: ClassVar[tuple[str, ...]] = ("trajectory",)
    tables: ClassVar[tuple[str, ...]] = ("predictions", "results", "steps", "trajectory", "rows")

    task: Specs = Field(("grammar:tense",), description="SPEC of a task: grammar:tense, file:PATH ...; repeatable")
    readouts: Names = Field(
        READOUTS,
        description="what to train from; also attention, new@middle, token[1]@first, token[1]@last, token[1]@no_cls "
        "and others without [CLS]",
    )
    rates: Names = Field(("5e-5", "2e-4"), description=RATES_HELP)
    epochs: int = Field(3, ge=1, le=1000, description="times that every training text is seen")
    train_texts: int = Field(2000, ge=32, le=10**9, description="at most so many training texts, half as many of dev")
    lora: int = Field(0, ge=0, le=1024, description="train adapters of this rank instead of the encoder (needs peft)")
    seeds: int = Field(3, ge=1, le=1000, description="how many seeds; they move the order of the texts and the head")
    quick: bool = Field(False, description="500 training texts, 4 readouts, 2 seeds; so are the built-in sentences run")
    checkpoints: Names = Field((), description="probe these models, in this order, instead of training one")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="precision of the products; auto: bfloat16 where the hardware has it"
    )

    def model_post_init(self, context: Any) -> None:
        """Raise InputError for invalid rates, and for readouts that cannot be trained from."""
        if not self.rates:
            raise InputError("--rates", "no learning rate is named", "Name one, such as 5e-5")
        for rate in self.rates:
            try:
                is_rate = 0 <= float(rate) < 1
            except ValueError:
                is_rate = False
            if not is_rate:
                raise InputError("--rates", f"'{rate}' is no learning rate", "Give numbers below 1, such as 5e-5")
        if len({f"{float(rate):g}" for rate in self.rates}) < len(self.rates):
            raise InputError("--rates", "one rate is given twice", "Name each once")
        for name in self.readouts:
            parse_arrangement(name)

    @cached_property
    def plan(self) -> Plan:
        """What is trained. Quick if --quick is set, or no task, readouts, seeds or number of texts."""
        explicit = self.model_fields_set
        quick = self.quick or not {"task", "readouts", "seeds", "train_texts"} & explicit
        names = QUICK_READOUTS if quick and "readouts" not in explicit else self.readouts
        readouts = list(dict.fromkeys("@".join(filter(None, parse_arrangement(name))) for name in names))
        n_seeds = 2 if quick and "seeds" not in explicit else self.seeds
        texts = 500 if quick and "train_texts" not in explicit else self.train_texts
        rates, seeds = [float(f"{float(rate):g}") for rate in self.rates], list(range(self.seed, self.seed + n_seeds))
        return Plan(readouts, rates, seeds, texts, self.epochs, self.lora)

    @cached_property
    def inputs(self) -> Inputs:
        """Tasks and encoder, checked. Raises InputError; imports no torch."""
        check_probes(self)
        description, layers = read_encoder(self)
        corpus = read_corpus(self, seed=self.seed, encoder=description)
        inputs = Inputs(corpus, description, layers, list(self.plan.readouts))
        check_tasks(self, inputs)
        check_classes(inputs.tasks)
        if not self.models and "cls" not in inputs.readouts:
            raise InputError("--readouts", "this study compares other readouts with cls", "Name cls and another one")
        if not self.models and len(inputs.readouts) < 2:
            raise InputError("--readouts", "there is nothing to compare with cls", "Name another readout")
        return inputs

    @cached_property
    def models(self) -> dict[str, Description]:
        """The descriptions of the checkpoints, by name; empty where none is named. Raises InputError."""
        return describe_checkpoints(self.checkpoints) if self.checkpoints else {}

    def contents(self) -> dict[str, str]:
        """Digests of data, encoder or checkpoints, and code."""
        models = model_contents(self.models.values())
        return super().contents() | self.inputs.contents | models

    def displayed_settings(self) -> dict[str, Any]:
        """The settings that differ from the default, and the plan, which the quick form reduces."""
        chosen = self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        plan = self.plan
        planned = {"rates": plan.rates, "seeds": plan.seeds, "train_texts": plan.train_texts, "epochs": plan.epochs}
        return chosen | {"readouts": plan.readouts} | planned

    def prepare(self) -> list[str]:
        """Read and check the inputs; describe the run and estimate its time."""
        tasks, plan = self.inputs.tasks, self.plan
        sentences = [f"{task.name}: {len(task.texts):,} texts, {len(set(task.y))} classes" for task in tasks]
        if self.checkpoints:
            return [*sentences, f"{counted(len(self.checkpoints), 'checkpoint')}, probed at every layer"]
        assert self.inputs.description is not None
        trainings = len(plan.readouts) * len(plan.rates) * len(plan.seeds)
        sentences.append(
            f"at least {counted(trainings * len(tasks), 'training')}: {counted(len(plan.readouts), 'readout')} x "
            f"{counted(len(plan.rates), 'rate')} x {counted(len(plan.seeds), 'seed')}, {self.epochs} epochs of "
            f"{plan.train_texts:,} texts at most; where dev chooses the smallest or largest rate of a readout, up to "
            f"{EXTENSIONS} more beyond it follow"
        )
        size = self.inputs.description.layers * self.inputs.description.dim**2 / (6 * 384**2)
        tokens = sum(sum(len(text) for text in task.texts) / len(task.texts) / 4 + 2 for task in tasks)
        seconds = trainings * tokens * plan.train_texts * (self.epochs + 1) * size / TOKENS_PER_SECOND / 2
        return [*sentences, f"at least about {max(seconds / 60, 1):.0f} minutes on two cores"]

    def measure(self, folder: RunFolder | None = None) -> Measured:
        """Train and probe; with --checkpoints, only probe them."""
        from clsprobe.analysis.fine_tuning import measure

        corpus, description = self.inputs.corpus, self.inputs.description
        if self.checkpoints:
            return measure.measure_checkpoints(self, corpus, self.models, self.plan.train_texts)
        assert description is not None
        return measure.measure_fine_tuning(self, self.plan, corpus, description, folder)

    def judge(self, measured: Measured, task: str) -> Verdict:
        """Every other single token minus [CLS], within the margin. Left out where [CLS] is not clearly better than the
        best single class: then nothing was learned that another position could lack."""
        from clsprobe.analysis.fine_tuning import tables
        from clsprobe.analysis.sweep import wording

        scores = tables.score_tuned(measured.rows(self.judged, task))
        cells = tables.choose_cells(scores)
        parts = tables.make_parts(scores, cells, self.margin)
        names = tables.positions(parts)
        judged, task = [parts[name] for name in names], scores.task
        noun = "pooling" if tables.is_pooled(names[0]) else "position"
        others = f"the {len(names)} other {noun}s" if len(names) > 1 else f"the only other {noun}"
        margin = f"{100 * self.margin:.0f} points"
        as_well = f"does as well as [CLS] or better, within the margin of {margin}"
        lowest = min(judged, key=lambda part: part.effect)

        def say(outcome: Outcome, part: Part) -> str:
            compared = difference_in_words(part.name, "[CLS]", part)
            if outcome == "no":
                return f"on {task}, fine-tuned, {compared}, more than the margin of {margin}"
            if len(names) > 1:
                compared = f"{'the lowest' if outcome == 'yes' else 'least certain'} is {part.name}: {compared}"
            if outcome == "yes":
                return f"on {task}, fine-tuned, {'each of ' if len(names) > 1 else ''}{others} {as_well}; {compared}"
            count = f"{sum(part.p_yes >= TAIL for part in judged)} of " if len(names) > 1 else ""
            return f"on {task}, fine-tuned, for {count}{others} it is open whether it {as_well}; {compared}"

        verdict = Verdict.of(
            judged,
            say,
            brief=f"{task} {lowest.name} {points(lowest.effect, True)} points",
            interval_of="trainings on these texts, over the test texts and the seeds of the training",
            warnings=wording.list_warnings(scores, *(cells[name] for name in ("cls", *names))),
        )
        learned = tables.compare_with_best_class(scores, cells["cls"])
        if learned.p_yes < TAIL:
            return verdict
        score = f"gets {cells['cls'].test:.3f} of the test texts right, not clearly more than {learned.name}"
        more = f"({points(learned.effect, True)} points, {points(learned.low, True)} to {points(learned.high, True)})"
        return verdict.left_out(f"on {task}, [CLS] fine-tuned {score} {more}")

    def _advise(self, parts: Mapping[str, Verdict]) -> str:
        """How many seeds would decide what is undecided: where trainings differ, more texts do not help."""
        from clsprobe.analysis.fine_tuning.tables import needed_seeds

        undecided = [part for part in parts.values() if part.is_counted and part.outcome == "undecided"]
        claims = [part.comparisons for part in undecided if part.comparisons]
        used = max((claim[0].estimate.seeds for claim in claims), default=0)
        if used < 2:  # a note says what one seed is worth
            return ""
        if (count := max(map(needed_seeds, claims))) > MOST_SEEDS:
            return f"More than {MOST_SEEDS} seeds would be needed to decide on these test texts: add texts."
        return f"About {count} seeds would decide at this effect ({used} were used): run it again with --seeds {count}."

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """The differences from [CLS], fine-tuned against frozen, the effect of the rate, learning curves."""
        from clsprobe.analysis.fine_tuning.exhibits import fine_tuning_exhibits

        return fine_tuning_exhibits(measured.rows("predictions", task), measured.rows("steps", task), self.margin)

    def note(self, measured: Measured) -> list[str]:
        """What fine-tuning cannot show, rates that are not bracketed or diverged, and a note on few seeds."""
        from clsprobe.analysis.fine_tuning.exhibits import CANNOT
        from clsprobe.analysis.fine_tuning.tables import describe_rates

        notes = [CANNOT]
        for task in measured.tasks:
            where = f"On {short(task)}" if len(measured.tasks) > 1 else ""
            notes += describe_rates(measured.rows("predictions", task), measured.rows("steps", task), where)
        seeds = measured.tables["steps"].seed.nunique()
        if seeds < 3:
            few = f"Only {counted(seeds, 'seed')}"
            notes.append(f"{few}: the intervals know little of what another seed would give; take three or more.")
        return notes


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["fine-tuning"])
