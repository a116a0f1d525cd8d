"""Fine-tuned from any other position, does it work as well?

    clsprobe fine-tuning --task file:trec --text-column text --label-column coarse

1. For every readout, learning rate and seed the whole encoder is trained with one linear head on that readout, over the
   same texts in the same order (`probes.training.fine_tune`). Dev chooses the rate of each readout.
2. Beside each stand the frozen encoder's probe on the same readout, and the commonest class.
3. The verdict is about the positions: every single token other than [CLS] against [CLS], over the same test texts and
   seeds, which are crossed, against a margin declared beforehand.
4. The readout [CLS] is trained once more and probed on the way: what its layers gain and lose, and how far they move.
   With --checkpoints this is all that is done, over the models that are named.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from clsprobe.analysis.folder import RunFolder
from clsprobe.analysis.study import Answer, Exhibit, Finished, Outcome, Verdict
from clsprobe.probes.encoders.describing import describe
from clsprobe.probes.errors import InputError
from clsprobe.probes.extraction.readouts import arrangement
from clsprobe.probes.files import make_folder, write_parquet
from clsprobe.probes.tasks.split import split, take
from clsprobe.run import Names, Ready, Run, Specs, check_classes, counted, short

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from tqdm import tqdm

    from clsprobe.analysis.trajectory import Trajectory
    from clsprobe.probes.encoders.describing import Description
    from clsprobe.probes.encoders.encoder import Encoder
    from clsprobe.probes.tasks.task import Task
    from clsprobe.probes.training.fine_tune import Recipe

log = logging.getLogger("clsprobe")

FULL = ("cls", "token[1]", "token[2]", "token[-1]", "sep", "random", "mean", "max", "cls@last")
QUICK = ("cls", "token[1]", "token[-1]", "mean")
TASK = ("grammar:tense",)
TUNED = "fine-tuned "  # what the name of such a probe begins with; its rate follows
POOLED = ("mean", "max", "attention", "flatten", "flatten_projected", "cat")
MOMENTS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)  # of the steps of a training
ALONG = ("cls", "token[1]", "token[-1]", "mean")  # what is probed at these moments
RATE = "rate (millionths)"
CANNOT = (
    "What this cannot show: fine-tuning moves every weight, so it tells what a position can be made to hold, not what "
    "it held; the frozen probe beside it tells that. Nor can it separate being first from what pre-training did to the "
    "token there: [CLS] has stood first in every text that the encoder has ever seen. A new token (new@first, "
    "new@middle, new@last) has no such past, and [CLS] moved to the end (cls@last) keeps its past and loses its place; "
    "but places were pre-trained too, and every token sees the whole text at every layer. One task and one encoder are "
    "no law: one that was trained through mean pooling, as the embedded one, starts nearer to some readouts."
)
CANNOT_MOVE = (
    "CKA compares the similarities of texts to each other: 1 where they are what they were at the start, whatever the "
    "turning and scaling. A probe that gains says that a label is easier to read off, not that it was unknown before."
)
PROBED = 1000  # training texts of these probes
SPEED = 900.0  # tokens a second that one core trains, of the embedded model; for --dry-run


@dataclass(frozen=True, eq=False)
class Part:
    """A task made ready: the texts that every readout has, their codes and sides, with train cut to size."""

    name: str
    texts: list[str]
    y: np.ndarray
    side: np.ndarray
    row: np.ndarray
    classes: np.ndarray
    left_out: dict[str, int]
    notes: list[str]

    def of(self, side: str) -> tuple[list[str], np.ndarray]:
        """The texts and codes of a side."""
        chosen = (self.side == side).nonzero()[0]
        return [self.texts[i] for i in chosen], self.y[chosen]


class FineTuning(Run):
    """The whole encoder, trained from one readout after another."""

    question: ClassVar[str] = "Fine-tuned from any other position, does it work as well?"
    claim: ClassVar[str] = (
        "Fine-tuned from any other single token, the encoder classifies as well as from [CLS] (worse by no more than 2 "
        "points)"
    )
    margin: ClassVar[float] = 0.02
    aliases: ClassVar[tuple[str, ...]] = ("finetune",)

    task: Specs = Field(TASK, description="SPEC of a task: grammar:tense, file:PATH ...; repeatable")
    readouts: Names = Field(
        FULL,
        description="what to train from; also attention, new@first, new@middle, new@last, token[1]@no_cls and others "
        "without [CLS]",
    )
    rates: Names = Field(("5e-5", "2e-4"), description="learning rates of the encoder; dev chooses for each readout")
    epochs: int = Field(3, ge=1, le=1000, description="times that every training text is seen")
    train_texts: int = Field(2000, ge=32, le=10**9, description="at most so many training texts, half as many of dev")
    lora: int = Field(0, ge=0, le=1024, description="train adapters of this rank instead of the encoder (needs peft)")
    seeds: int = Field(3, ge=1, le=1000, description="how many seeds; they move the order of the texts and the head")
    quick: bool = Field(
        False, description="500 training texts, 4 readouts, 2 seeds; so is a run of the built-in sentences"
    )
    checkpoints: Names = Field((), description="probe these models, in this order, instead of training one")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(  # type: ignore[assignment]
        "auto", description="precision of the products; auto: bfloat16 where the hardware has it"
    )

    # ------------------------------------------------------------------------------------------------ before torch

    def model_post_init(self, context: Any) -> None:
        """Raise InputError for rates that are none, and for what this study cannot use."""
        if self.vectors:
            raise InputError("--vectors", "are of an encoder that cannot be trained here", "Leave it out")
        if self.cache or self.fast:
            flag, why = ("--cache", "nothing is kept") if self.cache else ("--fast", "--dtype auto says the same")
            raise InputError(flag, f"is of no use here: {why}", "Leave it out")
        if not self.rates:
            raise InputError("--rates", "no learning rate is named", "Name one, such as 5e-5")
        for rate in self.rates:
            try:
                good = 0 <= float(rate) < 1
            except ValueError:
                good = False
            if not good:
                raise InputError("--rates", f"'{rate}' is no learning rate", "Give numbers below 1, such as 5e-5")
        if len({float(rate) for rate in self.rates}) < len(self.rates):
            raise InputError("--rates", "one rate is given twice", "Name each once")
        for name in self.readouts:
            arrangement(name)

    @property
    def _short(self) -> bool:
        """Whether this is the quick form: asked for, or nothing but the built-in sentences was given."""
        return self.quick or not {"task", "readouts", "seeds", "train_texts"} & self.model_fields_set

    @cached_property
    def plan(self) -> tuple[list[str], list[float], list[int], int]:
        """Readouts, rates, seeds and the number of training texts."""
        given = self.model_fields_set
        names = QUICK if self._short and "readouts" not in given else self.readouts
        readouts = list(dict.fromkeys("@".join(filter(None, arrangement(name))) for name in names))
        seeds = 2 if self._short and "seeds" not in given else self.seeds
        texts = 500 if self._short and "train_texts" not in given else self.train_texts
        return readouts, [float(rate) for rate in self.rates], list(range(self.seed, self.seed + seeds)), texts

    @cached_property
    def ready(self) -> Ready:
        """As `Run.ready`; names of arrangements and checkpoints are checked too."""
        plain = Run(**{name: getattr(self, name) for name in Run.model_fields if name not in ("readouts", "dtype")})
        ready = plain.ready
        check_classes(ready.tasks)
        if "cls" not in self.plan[0] and not self.checkpoints:
            raise InputError("--readouts", "this study compares other readouts with cls", "Name cls and another one")
        if len(self.plan[0]) < 2 and not self.checkpoints:
            raise InputError("--readouts", "there is nothing to compare with cls", "Name another readout")
        if self.checkpoints:
            self._described()
        return replace(ready, readouts=self.plan[0])

    def _described(self) -> list[Description]:
        from clsprobe.analysis.trajectory import same_kind

        if len(self.checkpoints) < 2:
            raise InputError("--checkpoints", "one model has no trajectory", "Name two or more, in order")
        found = [describe(name) for name in self.checkpoints]
        same_kind(found)
        return found

    def prepare(self) -> list[str]:
        """Read and check; what a run would take."""
        ready, (readouts, rates, seeds, texts) = self.ready, self.plan
        told = [f"{task.name}: {len(task.texts):,} texts, {len(set(task.y))} classes" for task in ready.tasks]
        if self.checkpoints:
            return [*told, f"{counted(len(self.checkpoints), 'checkpoint')}, probed at every layer"]
        assert ready.described is not None
        runs = len(readouts) * len(rates) * len(seeds) * len(ready.tasks)
        told.append(
            f"{counted(runs, 'training')}: {counted(len(readouts), 'readout')} x {counted(len(rates), 'rate')} x "
            f"{counted(len(seeds), 'seed')}, {self.epochs} epochs of {texts:,} texts at most"
        )
        size = ready.described.layers * ready.described.dim**2 / (6 * 384**2)
        tokens = sum(sum(len(text) for text in task.texts) / len(task.texts) / 4 + 2 for task in ready.tasks)
        seconds = runs / len(ready.tasks) * tokens * texts * (self.epochs + 1) * size / SPEED / 2
        return [*told, f"about {max(seconds / 60, 0.5):.0f} minutes on two cores"]

    # ----------------------------------------------------------------------------------------------------- measure

    def _parts(self, encoder: Encoder) -> list[Part]:
        return [self._part(task, encoder) for task in self.ready.tasks]

    def _part(self, task: Task, encoder: Encoder) -> Part:
        """Split, leave out what any readout lacks or no training text is labelled with, and cut train and dev."""
        import numpy as np

        from clsprobe.probes.training.arrangements import present

        texts, longest = self.plan[3], self._longest(encoder)
        read = encoder.tokenize(task.texts, longest)
        parted = split(task, seed=self.seed, allow_overlap=self.allow_overlap, tokens=read.digests())
        used, left_out = parted.side != "", dict(parted.left_out)
        long = read.full > longest
        if self.long_rows == "error" and (used & long).any():
            what = f"{int((used & long).sum()):,} texts exceed {longest} tokens"
            raise InputError("--long-rows error", what, "Pass --long-rows truncate or drop")
        if self.long_rows == "drop" and (lost := int((used & long).sum())):
            left_out["too long"] = lost
            used &= ~long
        wanted = self.plan[0] if not self.checkpoints else list(ALONG)
        for readout in wanted:
            there = present(encoder, readout, task.texts, longest)
            if lost := int((used & ~there).sum()):
                left_out[f"too short for {readout}"] = lost
                used &= there
        chosen = []
        for name, most in (("train", texts), ("dev", max(texts // 2, 100)), ("test", len(used))):
            at = np.flatnonzero(used & (parted.side == name))
            of_side = replace(
                task,
                texts=[task.texts[i] for i in at.tolist()],
                y=task.y[at],
                split=np.full(len(at), "train"),
                groups=None,
                rows=at,
            )
            kept = take(of_side, most, seed=self.seed).rows
            assert kept is not None
            chosen.append(kept)
            if len(at) > len(kept):
                left_out[f"beyond {most:,} of {name}"] = len(at) - len(kept)
        known = np.isin(task.y, task.y[chosen[0]])
        rows = np.sort(np.concatenate(chosen))
        if lost := int((~known[rows]).sum()):
            left_out["a label that the training texts lack"] = lost
        rows = rows[known[rows]]
        classes, y = np.unique(task.y[rows].astype(str), return_inverse=True)
        side = parted.side[rows]
        if len(classes) < 2 or not {"train", "dev", "test"} <= set(side):
            raise InputError(task.name, "too few texts are left on one of the sides", f"Left out: {left_out}")
        return Part(
            task.name, [task.texts[i] for i in rows.tolist()], y, side, rows, classes, left_out, list(parted.notes)
        )

    def _longest(self, encoder: Encoder) -> int:
        """Tokens of a text, the same for every readout: one fewer where a new token comes in."""
        limit = min(self.max_length or 10**9, encoder.description.max_length)
        return limit - any(name.startswith("new@") for name in self.plan[0])

    def _precision(self) -> str:
        from clsprobe.probes.encoders.devices import has_bfloat16

        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if has_bfloat16(self.device) else "float32"

    def _recipe(self, rate: float, seed: int) -> Recipe:
        from clsprobe.probes.training.fine_tune import Recipe

        return Recipe(rate=rate, epochs=self.epochs, seed=seed, lora=self.lora)

    def _trained(self, encoder: Encoder, parts: list[Part], folder: RunFolder) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Predictions and steps of every training; what an interrupted start has finished is read again."""
        import pandas as pd
        import torch
        from tqdm import tqdm

        from clsprobe.probes.training.fine_tune import schedule

        readouts, rates, seeds, _ = self.plan
        jobs = [(p, name, rate, seed) for p in parts for seed in seeds for rate in rates for name in readouts]
        longest, total = self._longest(encoder), 0
        for part in parts:
            for seed in seeds:
                epochs = schedule(encoder, part.of("train")[0], self._recipe(0, seed), longest)
                total += sum(map(len, epochs)) * len(rates) * len(readouts)
        folder.begin()  # only now: an error about texts or names leaves nothing behind
        log.info("training %s", counted(len(jobs), "encoder"))
        place = make_folder(folder.path / "trainings")
        threads = torch.get_num_threads()
        side_by_side = _side_by_side(encoder, threads, len(jobs))
        alone = partial(torch.set_num_threads, max(1, threads // side_by_side))
        found: dict[int, tuple[pd.DataFrame, pd.DataFrame]] = {}
        with tqdm(total=total, desc="training", unit=" steps", delay=1, disable=None, leave=False) as bar:
            pool = ThreadPoolExecutor(side_by_side, initializer=alone)
            try:
                begun = {pool.submit(self._train, encoder, *job, place, bar): i for i, job in enumerate(jobs)}
                for future in as_completed(begun):
                    found[begun[future]] = future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                pool.shutdown()
                torch.set_num_threads(threads)
        in_order = zip(*(found[i] for i in range(len(jobs))), strict=True)
        predictions, steps = (pd.concat(tables, ignore_index=True) for tables in in_order)
        return predictions, check_orders(steps)

    def _train(
        self, encoder: Encoder, part: Part, readout: str, rate: float, seed: int, folder: Path, bar: tqdm
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """One training, or what is left of it."""
        import numpy as np
        import pandas as pd

        from clsprobe.probes.training.fine_tune import fine_tune

        told = [part.name, readout, rate, seed, self._precision(), self.ready.contents, len(part.texts)]
        name = sha256(json.dumps([told, encoder.description.digest, self.settings()]).encode()).hexdigest()[:16]
        done, logged = (folder / f"{name}.{what}.parquet" for what in ("predictions", "steps"))
        if done.exists():
            steps = pd.read_parquet(logged)
            bar.update(len(steps))
            return pd.read_parquet(done), steps
        tuned = fine_tune(
            encoder,
            readout,
            *part.of("train"),
            self._recipe(rate, seed),
            dev=part.of("dev"),
            dtype=self._precision(),
            max_length=self._longest(encoder),
            checkpoint=folder / f"{name}.safetensors",
            bar=bar,
        )
        seen = np.flatnonzero(part.side != "train")
        bits = tuned.log_proba([part.texts[i] for i in seen]) / np.log(2)
        last = len(encoder.points) - 1
        predictions = _predictions(part, encoder.name, "none", last, readout, f"{TUNED}{rate:g}", seed, seen, bits)
        steps = pd.DataFrame(tuned.log, columns=["step", "loss", "dev"])
        steps = steps.assign(task=part.name, readout=readout, rate=rate, seed=seed, order=tuned.order)
        write_parquet(logged, steps)
        write_parquet(done, predictions)
        (folder / f"{name}.safetensors").unlink(missing_ok=True)
        return predictions, steps

    def _frozen(self, encoder: Encoder, part: Part) -> Iterator[tuple[pd.DataFrame, bool]]:
        """The probe on every readout of the encoder as it is, and the commonest class; whether each has converged."""
        import numpy as np

        from clsprobe.probes.base import STRENGTHS, predict_each
        from clsprobe.probes.baseline import majority
        from clsprobe.probes.extraction.extractor import Extractor
        from clsprobe.probes.pooling import learned
        from clsprobe.probes.registry import find_probe
        from clsprobe.probes.training.arrangements import arranged

        train, dev = (np.flatnonzero(part.side == name) for name in ("train", "dev"))
        seen = np.flatnonzero(part.side != "train")
        last = len(encoder.points) - 1
        common = majority(part.texts, part.y, train, dev)
        assert common.log2_proba is not None
        bits = common.log2_proba[0, 0][seen]
        yield _predictions(part, encoder.name, "majority", -1, "none", "none", self.seed, seen, bits), True
        for name in self.plan[0]:
            made, how = arranged(encoder, name)
            extract = Extractor(made, [how], layers=[last], max_length=self._longest(encoder), long_rows="truncate")
            states = extract(part.texts)
            X = states.cell(last, how.name)[None]
            probe = learned(how.name, encoder.description.dim) or find_probe(self.probes[0])
            out = predict_each(
                probe,
                X[:, train],
                part.y[train, None],
                X[:, seen],
                dev=(X[:, dev], part.y[dev, None]),
                strengths=STRENGTHS,
            )
            if out.failures:
                raise InputError(
                    f"--probes {self.probes[0]}", f"fails on {name}: {out.failures[0]}", "Name another probe"
                )
            if out.log2_proba is None:
                raise InputError("--probes", f"{self.probes[0]} gives no probabilities", "Name another probe")
            told = _predictions(part, encoder.name, "none", last, name, "frozen", self.seed, seen, out.log2_proba[0, 0])
            yield told, bool(out.converged.all())

    def _on_the_way(self, encoder: Encoder, part: Part, rate: float) -> pd.DataFrame:
        """The trajectory of a training from [CLS], with the rate that dev has chosen for it."""
        from clsprobe.probes.training.fine_tune import Tuned, fine_tune, schedule

        recipe, longest = self._recipe(rate, self.seed), self._longest(encoder)
        total = sum(map(len, schedule(encoder, part.of("train")[0], recipe, longest)))
        moments = {max(1, round(share * total)) if share else 0: f"{100 * share:g} %" for share in MOMENTS}
        follow = self._trajectory(part, encoder)

        def watch(step: int, tuned: Tuned) -> None:
            follow.look(moments[step], tuned.encoder)

        fine_tune(
            encoder, "cls", *part.of("train"), recipe, dev=part.of("dev"), dtype=self._precision(),
            max_length=longest, watched=moments, watch=watch,
        )  # fmt: skip
        return follow.table.assign(task=part.name)

    def _over_checkpoints(self, part: Part) -> pd.DataFrame:
        """The trajectory over the models that are named."""
        from clsprobe.probes.encoders.loading import load_encoder

        follow = None
        last = [Path(name).name for name in self.checkpoints]
        shown = last if len(set(last)) == len(last) else self.checkpoints
        for name, moment, described in zip(self.checkpoints, shown, self._described(), strict=True):
            log.info("probing %s", name)
            encoder = load_encoder(described, device=self.device)
            follow = follow or self._trajectory(part, encoder)
            follow.look(moment, encoder)
        assert follow is not None
        return follow.table.assign(task=part.name)

    def _trajectory(self, part: Part, encoder: Encoder) -> Trajectory:
        """Of at most `PROBED` training texts, drawn evenly: six grids take their time."""
        import numpy as np

        from clsprobe.analysis.trajectory import Trajectory

        train = np.flatnonzero(part.side == "train")
        kept = part.side != "train"
        kept[train[:: -(-len(train) // PROBED)]] = True
        at = np.flatnonzero(kept)
        return Trajectory(
            [part.texts[i] for i in at.tolist()], part.y[at], part.side[at], self._along(encoder),
            layers=self.layers, max_length=self._longest(encoder),
        )  # fmt: skip

    def _along(self, encoder: Encoder) -> list[str]:
        return [name for name in ALONG if name != "cls" or encoder.cls_id in encoder.tokenize([""])[0].ids]

    def run(self, folder: RunFolder) -> Finished:
        """Train, probe, judge; a run that was stopped goes on with the trainings it has not finished."""
        names = ["trajectory"] if self.checkpoints else ["trajectory", "predictions", "results", "steps"]
        if kept := folder.remembered("measured"):
            log.info("going on: the measurement in %s is complete", folder.path)
            tables = {name: folder.load(name) for name in names}
        else:
            tables, kept = self._measured(folder)
            for name in names:
                folder.save(name, tables[name])
            folder.remember(measured=kept)
        if (trainings := folder.path / "trainings").is_dir():
            shutil.rmtree(trainings)
        answers = {}
        if not self.checkpoints:
            table = tables["predictions"]
            shown = (*self.show(table), *learning(table, tables["steps"]))
            answers["fine_tuning"] = Answer(
                self.question, self.claim, self.judge(table), shown, (*self.note(table), *kept["notes"]),
                kept["settings"],
            )  # fmt: skip
        answers["trajectory"] = Answer(
            "How does [CLS] learn?",
            "At the end, a linear probe on [CLS] at the last layer tells more than at the start",
            judge_trajectory(tables["trajectory"]),
            show_trajectory(tables["trajectory"]),
            (CANNOT_MOVE, *(() if answers else kept["notes"])),
            {} if answers else kept["settings"],
        )
        return Finished(answers, kept["facts"], (), kept["title"])

    def _measured(self, folder: RunFolder) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
        """All tables, and what else is known, as run.json keeps it."""
        import pandas as pd

        from clsprobe.probes.encoders.loading import load_encoder

        described = describe(self.checkpoints[0]) if self.checkpoints else self.ready.described
        encoder = load_encoder(described, device=self.device)
        parts = self._parts(encoder)
        tables: dict[str, pd.DataFrame] = {}
        if self.checkpoints:
            along = [self._over_checkpoints(part) for part in parts]
        else:
            log.info("probing the frozen encoder")
            frozen, converged = zip(*(one for part in parts for one in self._frozen(encoder, part)), strict=True)
            trained, tables["steps"] = self._trained(encoder, parts, folder)
            told = tables["predictions"] = pd.concat([trained, *frozen], ignore_index=True)
            ended = {(t.task.iloc[0], t.readout.iloc[0]) for t, ok in zip(frozen, converged, strict=True) if ok}
            tables["results"] = results_of(told, parts, ended)
            log.info("probing a training from [CLS] on its way")
            rates = {part.name: chosen_rates(told[told.task == part.name])["cls"] for part in parts}
            along = [self._on_the_way(encoder, part, float(rates[part.name].removeprefix(TUNED))) for part in parts]
        tables["trajectory"] = pd.concat(along, ignore_index=True)
        folder.begin()
        return tables, self._kept(encoder, parts)

    def _kept(self, encoder: Encoder, parts: list[Part]) -> dict[str, Any]:
        """What the page and run.json say beside the numbers."""
        packages = ("torch", "transformers", "tokenizers", "numpy", "clsprobe")
        rows = {
            part.name: {side: int((part.side == side).sum()) for side in ("train", "dev", "test")}
            | {f"left out: {why}": n for why, n in part.left_out.items()}
            for part in parts
        }
        model = {
            "model": encoder.name,
            "digest": encoder.description.digest,
            "device": encoder.device.type,
            "precision of the products": self._precision(),
        }
        readouts, rates, seeds, texts = self.plan
        done = self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        done |= {"readouts": readouts, "rates": rates, "seeds": seeds, "train_texts": texts, "epochs": self.epochs}
        shown = {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in done.items()}
        versions = {package: importlib.metadata.version(package) for package in packages}
        counts = {f"{name}: {what}": n for name, each in rows.items() for what, n in each.items()}
        notes = [f"{short(part.name)}: {note}." for part in parts for note in part.notes] + self.ready.notes
        return {
            "facts": {"rows": rows, "read": self.ready.rows, "model": model, "versions": versions},
            "notes": notes,
            "settings": {"Settings": shown, "Rows": counts, "Model": model, "Versions": versions},
            "title": f"{encoder.name} on {', '.join(short(part.name) for part in parts)}",
        }

    # ------------------------------------------------------------------------------------------------------- judge

    def judge(self, table: pd.DataFrame) -> Verdict:
        """Yes where every other position is no worse than [CLS] by the margin, no where one is worse; Holm for the
        latter, since one of many is easily worse by chance."""
        parts = {}
        for task in table.task.unique():
            rows = table[table.task == task]
            compared = self.compared(rows)
            positions = compared[~compared.name.map(is_pooled)]
            if positions.empty:
                positions = compared
            worst = positions.loc[positions.effect.idxmin()]
            rivals = counted(len(positions), "other position")
            told = f"On {short(task)}, {worst['name']} gets {worst.accuracy:.3f} of the test texts right, [CLS] "
            told += f"{worst.of_cls:.3f}; it is the worst of {rivals}."
            outcomes = set(positions.outcome)
            outcome: Outcome = "no" if "no" in outcomes else "yes" if outcomes == {"yes"} else "undecided"
            parts[str(task)] = Verdict(outcome, told, worst.effect, worst.low, worst.high)
        return Verdict.over(parts)

    def compared(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Every readout less [CLS], each at the rate that dev chooses, over the same test texts and seeds.

        rows: predictions of one task. Columns name, effect, low, high, outcome ("yes": no worse by the margin), rate,
        accuracy, of_cls, p_equal (that they are equally good) and p_apart (that they are apart by the margin), both
        Holm's.
        """
        import numpy as np
        import pandas as pd

        from clsprobe.analysis import stats

        rates = chosen_rates(rows)
        right = {name: stats.correct(rows, control="none", readout=name, probe=rate) for name, rate in rates.items()}
        others = [name for name in rates if name != "cls"]
        pairs = [(right[name], right["cls"]) for name in others]
        effect, low, high = np.array([stats.paired_difference(*pair) for pair in pairs]).T
        p_equal, p_apart, p_worse = (
            stats.holm(np.array([p(*pair) for pair in pairs]))
            for p in (
                stats.difference_p,
                partial(stats.equivalence_p, margin=self.margin),
                partial(stats.inferiority_p, margin=self.margin),
            )
        )
        return pd.DataFrame(
            {
                "name": others,
                "effect": effect,
                "low": low,
                "high": high,
                "outcome": np.where(low > -self.margin, "yes", np.where(p_worse < 0.025, "no", "undecided")),
                "rate": [rates[name].removeprefix(TUNED) for name in others],
                "accuracy": [float(right[name].to_numpy().mean()) for name in others],
                "of_cls": float(right["cls"].to_numpy().mean()),
                "p_equal": p_equal,
                "p_apart": p_apart,
            }
        )

    # -------------------------------------------------------------------------------------------------------- show

    def show(self, table: pd.DataFrame) -> tuple[Exhibit, ...]:
        """For every task the differences from [CLS], fine-tuned beside frozen, and what the rate does."""
        exhibits = []
        for task in table.task.unique():
            rows, section = table[table.task == task], short(task)
            compared = self.compared(rows)
            exhibits += [
                Exhibit(
                    f"Fine-tuned from each readout, accuracy minus that from [CLS] ({compared.of_cls.iloc[0]:.3f}), "
                    f"over the same test texts and seeds, which are crossed, with 95 % intervals; the rate of each "
                    f'is chosen on dev. Shaded: the margin of {100 * self.margin:.0f} points. "yes": no worse than '
                    f"[CLS] by more than the margin.",
                    compared[["name", "effect", "low", "high", "outcome"]],
                    "differences",
                    {"margin": self.margin, "metric": "accuracy"},
                    section,
                ),
                Exhibit(
                    "Every readout, fine-tuned and frozen (a linear probe on the last layer of the encoder as it was): "
                    "test accuracy, mean over seeds; seeds, their standard deviation; p_equal, that it is as good as "
                    "[CLS]; p_apart, that it is apart by the margin or more; both corrected for their number (Holm).",
                    self.accuracies(rows, compared),
                    section=section,
                ),
                Exhibit(
                    "What the learning rate does: test accuracy at every rate, mean over seeds, with 95 % intervals "
                    "over the texts.",
                    sensitivity(rows),
                    "curves",
                    {"metric": "accuracy", "along": RATE},
                    section,
                ),
            ]
        return tuple(exhibits)

    def accuracies(self, rows: pd.DataFrame, compared: pd.DataFrame) -> pd.DataFrame:
        """Columns readout, rate, fine-tuned, low, high, seeds, frozen, gained, p_equal, p_apart; then the majority."""
        import numpy as np
        import pandas as pd

        from clsprobe.analysis import stats

        rates, found = chosen_rates(rows), []
        p = compared.set_index("name")
        for name, rate in rates.items():
            right = stats.correct(rows, control="none", readout=name, probe=rate).to_numpy()
            frozen = float(stats.correct(rows, control="none", readout=name, probe="frozen").to_numpy().mean())
            low, high = stats.wilson(right.mean(), right.shape[1])
            apart = right.mean(1).std(ddof=1) if len(right) > 1 else np.nan
            tests = [p.p_equal.get(name, np.nan), p.p_apart.get(name, np.nan)]
            found.append(
                (name, rate.removeprefix(TUNED), right.mean(), low, high, apart, frozen, right.mean() - frozen, *tests)
            )
        most = float(stats.correct(rows, control="majority").to_numpy().mean())
        columns = [
            "readout", "rate", "fine-tuned", "low", "high", "seeds", "frozen", "gained", "p_equal", "p_apart"
        ]  # fmt: skip
        table = pd.DataFrame(found, columns=columns).sort_values("fine-tuned", ascending=False, kind="stable")
        last = pd.DataFrame([{"readout": "commonest class", "frozen": most}], columns=columns).astype(table.dtypes)
        return pd.concat([table, last], ignore_index=True)

    def note(self, table: pd.DataFrame) -> list[str]:
        """What fine-tuning cannot show, and what this one has left open."""
        seeds = table[table.probe.str.startswith(TUNED)].seed.nunique()
        told = [CANNOT]
        if seeds < 3:
            few = "Only one seed" if seeds == 1 else "Only two seeds"
            told.append(f"{few}: the intervals know little of what another seed would give; take three or more.")
        return told


# ---------------------------------------------------------------------------------------------- tables out of tables


def is_pooled(readout: str) -> bool:
    """Whether a readout is made of many tokens."""
    return readout.partition("@")[0].partition("(")[0].partition("[")[0] in POOLED


def chosen_rates(rows: pd.DataFrame) -> dict[str, str]:
    """Readout -> the fine-tuned probe (a rate) with the best dev accuracy over all seeds, then the fewest dev bits.

    rows: predictions of one task.
    """
    from clsprobe.analysis import stats

    best = stats.best_layers(rows[rows.probe.str.startswith(TUNED)])
    order = list(dict.fromkeys(rows[rows.probe.str.startswith(TUNED)].readout))
    chosen = best.drop_duplicates("readout").set_index("readout").probe
    return {str(name): str(chosen[name]) for name in order}


def sensitivity(rows: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy of every readout at every rate: columns readout, `RATE`, value, low, high."""
    from clsprobe.analysis import stats

    tuned = rows[rows.probe.str.startswith(TUNED) & (rows.split == "test")]
    table = stats.accuracies(tuned, ["readout", "probe"])
    return table.assign(**{RATE: [1e6 * float(probe.removeprefix(TUNED)) for probe in table.probe]}).drop(
        columns=["probe", "count"]
    )


def learning(predictions: pd.DataFrame, steps: pd.DataFrame) -> tuple[Exhibit, ...]:
    """Dev accuracy over the steps, of every readout at its rate."""
    from clsprobe.analysis import stats

    exhibits = []
    for task in steps.task.unique():
        rows = predictions[predictions.task == task]
        rates = {name: float(rate.removeprefix(TUNED)) for name, rate in chosen_rates(rows).items()}
        size = rows[rows.split == "dev"].row.nunique()
        some = steps[(steps.task == task) & steps.dev.notna()]
        some = some[some.rate == some.readout.map(rates)]
        table = some.groupby(["readout", "step"], sort=False).dev.mean().rename("value").reset_index()
        table["low"], table["high"] = stats.wilson(table.value.to_numpy(), size)
        exhibits.append(
            Exhibit(
                "Learning curves: dev accuracy after every epoch, by the step, mean over seeds, at the rate that dev "
                "chooses.",
                table,
                "curves",
                {"metric": "dev accuracy", "along": "step"},
                short(task),
            )
        )
    return tuple(exhibits)


def judge_trajectory(table: pd.DataFrame) -> Verdict:
    """[CLS] at the last layer, at the last moment less at the first, over the same test texts."""
    parts = {}
    for task in table.task.unique():
        cells = table[(table.task == task) & (table.readout == "cls")]
        name = "[CLS]"
        if cells.empty:
            cells, name = table[(table.task == task) & (table.readout == "mean")], "mean"
        cells = cells[cells.layer == cells.layer.max()].sort_values("order")
        start, end = cells.iloc[0], cells.iloc[-1]
        because = (
            f"On {short(task)}, {name} at layer {end.layer} is read at {start.value:.3f} at the start and at "
            f"{end.value:.3f} at the end; its CKA with the start is {end.cka:.2f}."
        )
        parts[str(task)] = Verdict.decide(because, end.gain, end.gain_low, end.gain_high, threshold=0.0)
    return Verdict.over(parts)


def show_trajectory(table: pd.DataFrame) -> tuple[Exhibit, ...]:
    """For every task and readout the layers over the moments: accuracy; of [CLS] also CKA and attention."""
    exhibits = []
    for task in table.task.unique():
        for readout in table.readout.unique():
            cells = table[(table.task == task) & (table.readout == readout)].sort_values("order")
            grid = cells.drop(columns="readout").rename(columns={"moment": "readout"})
            shown = "[CLS]" if readout == "cls" else readout
            pictures = [
                ("test accuracy", f"What a linear probe reads off {shown}, layer by layer over the training", "")
            ]
            if readout in ("cls", "mean"):
                pictures.append(("CKA", f"How like its start {shown} still is (unbiased CKA, test texts)", "cka"))
            if readout == "cls" and cells.received.notna().any():
                told = "How much of the words' attention goes into [CLS], in the block below each layer"
                pictures.append(("attention", told, "received"))
            for metric, told, column in pictures:
                some = grid
                if column:
                    some = grid.assign(value=grid[column], low=float("nan"), high=float("nan"))
                    some = some[some.value.notna()]
                columns = ["layer", "readout", "value", "low", "high"]
                exhibits.append(Exhibit(f"{told}.", some[columns], "heatmap", {"metric": metric}, short(task)))
    return tuple(exhibits)


def results_of(predictions: pd.DataFrame, parts: Sequence[Part], ended: Collection[tuple[str, str]]) -> pd.DataFrame:
    """The results table of predictions. ended: task and readout of frozen probes that have converged."""
    import numpy as np
    import pandas as pd

    from clsprobe.analysis import stats
    from clsprobe.analysis.table import COLUMNS, KEY, check_results

    trained, rows = {part.name: int((part.side == "train").sum()) for part in parts}, []
    for key, cell in predictions.groupby(list(KEY[:-1]), observed=True, sort=False):
        codes = pd.factorize(np.concatenate([cell.label, cell.predicted]))[0].reshape(2, -1)
        told = stats.intervals(codes[1:], codes[0], cell.log2_probability.to_numpy()[None])
        task, readout, probe = key[1], key[4], key[5]
        converged = probe.startswith(TUNED) or (task, readout) in ended
        rows += [
            (*key, metric, *(float(one[0]) for one in numbers), trained[key[1]], len(cell), converged)
            for metric, numbers in told.items()
        ]
    return check_results(pd.DataFrame(rows, columns=list(COLUMNS)))


def check_orders(steps: pd.DataFrame) -> pd.DataFrame:
    """The table itself. Raises RuntimeError where two readouts saw their texts in different orders."""
    for (task, seed), orders in steps.groupby(["task", "seed"]).order:
        if orders.nunique() > 1:
            raise RuntimeError(f"with seed {seed} the trainings on {task} saw their texts in different orders")
    return steps


def _predictions(
    part: Part,
    model: str,
    control: str,
    layer: int,
    readout: str,
    probe: str,
    seed: int,
    seen: np.ndarray,
    bits: np.ndarray,
) -> pd.DataFrame:
    """Predictions of the texts `seen`, out of bits (text, class): log2 of the probabilities."""
    import numpy as np
    import pandas as pd

    from clsprobe.analysis.table import PREDICTIONS

    known = np.full((len(seen), len(part.classes)), -np.inf)
    known[:, : bits.shape[1]] = bits
    table = pd.DataFrame(
        {
            "model": model, "task": part.name, "control": control, "layer": layer, "readout": readout, "probe": probe,
            "seed": seed, "split": part.side[seen], "row": part.row[seen], "label": part.classes[part.y[seen]],
            "predicted": part.classes[known.argmax(1)],
            "log2_probability": known[np.arange(len(seen)), part.y[seen]],
        }
    )  # fmt: skip
    return table[list(PREDICTIONS)]


def _side_by_side(encoder: Encoder, threads: int, jobs: int) -> int:
    """Trainings that run at once: on a CPU one a thread, as far as memory goes; threads that share one wait for each
    other."""
    if encoder.device.type != "cpu" or encoder.adapter.before:
        return 1
    one = 24 * sum(parameter.numel() for parameter in encoder.model.parameters())  # weights, gradients, moments, work
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 << 30
    return int(max(1, min(threads, jobs, memory // 2 // one)))


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["fine-tuning"])
