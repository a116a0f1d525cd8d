"""Groups of settings that studies are composed of. Each field is a flag, a key of `--config` and an argument in Python.

    class Poolings(SweepSettings, Study): ...          # fields of its own come below

A study has the groups whose flags it can use, and gives a field another default or range by declaring it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, PlainSerializer, ValidationError

from clsprobe.analysis.sources import Loaded, complete_spec
from clsprobe.probes.encoders.in_memory import EncoderCopy, as_model
from clsprobe.probes.errors import InputError, quote, unknown
from clsprobe.probes.extraction.readouts import DEFAULT, READOUTS, split_names
from clsprobe.probes.registry import PROBES, describe_kind
from clsprobe.probes.tasks.task import Task

DEFAULT_PROBES = {"class": "logistic", "number": "ridge"}  # kind of a task -> its default probe


def _read_names(value: Any) -> Any:
    """Names from a comma-separated string, or from a flag that is given several times."""
    parts = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    return tuple(name for part in parts for name in split_names(_name_part(part)))


def _name_part(part: Any) -> str:
    """A name as it is; for a class or an object, one by which its register finds it."""
    if isinstance(part, str):
        return part
    if hasattr(part, "get_params") or hasattr(part, "fit"):
        return PROBES.remember(part)
    return READOUTS.remember(part) if hasattr(part, "read") else str(part)


def _read_layers(value: Any) -> Any:
    """Layers as a flag has them: 6 and [0, 3, 6] stand for "6" and "0,3,6"."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return value
    return ",".join(map(str, value if isinstance(value, Iterable) else [value]))


def _read_path(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _read_device(value: Any) -> Any:
    """A torch.device by its name."""
    return str(value) if type(value).__name__ == "device" else value


def _as_tuple(value: Any) -> Any:
    tasks = tuple(value) if isinstance(value, list | tuple) else (value,)
    if wrong := [task for task in tasks if not isinstance(task, str | Task)]:
        kind = {"DataFrame": "frame", "Dataset": "dataset", "DatasetDict": "dataset"}.get(
            type(wrong[0]).__name__, "lists"
        )
        mend = f"Pass a SPEC such as 'grammar:tense' or 'file:reviews.csv', or a Task, as from Task.from_{kind}"
        raise InputError("--task", f"holds {describe_kind(wrong[0])}, which is no task", mend)
    return tuple(complete_spec(task) if isinstance(task, str) else task for task in tasks)


def _task_in_settings(value: Any) -> str:
    """A SPEC as it is; a task in memory as its name and the digest of its texts, labels, split and groups."""
    return value if isinstance(value, str) else f"{value.name} sha256:{Loaded.of_task(value).digest}"


def _model_in_settings(value: Any) -> str | None:
    """A name as it is; an encoder in memory as its name and the digest of its weights, configuration and tokenizer."""
    return None if value is None else str(value)


Names = Annotated[tuple[str, ...], BeforeValidator(_read_names)]
TaskOrSpec = Annotated[str | InstanceOf[Task], PlainSerializer(_task_in_settings, return_type=str)]
Specs = Annotated[tuple[TaskOrSpec, ...], BeforeValidator(_as_tuple)]
Model = Annotated[
    str | InstanceOf[EncoderCopy] | None,
    BeforeValidator(as_model),
    PlainSerializer(_model_in_settings, return_type=str | None),
]
Layers = Annotated[str, BeforeValidator(_read_layers)]
PathName = Annotated[str, BeforeValidator(_read_path)]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], BeforeValidator(_read_device)]


class Settings(BaseModel):
    """Base of all groups: immutable, and unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TextSettings(Settings):
    """Where texts come from and how they are read."""

    task: Specs = Field(("grammar:demo",), description="SPEC of a task: grammar:tense, file:PATH ...; repeatable")
    text_column: str | None = Field(
        None, description="file, hf: the column with the texts, or two of them for pairs: A,B [default: text]"
    )
    encoding: str = Field("utf-8", description="file: the encoding of the text")
    sep: str | None = Field(None, description="file: what separates the fields of a .csv")
    quoting: Literal["auto", "none", "csv"] = Field(
        "auto",
        description="file: whether cells of a .csv or .tsv are quoted: csv, or none: every quote belongs to the text; "
        "auto: a .csv is, the content of a .tsv decides",
    )
    no_header: bool = Field(
        False, description="file: a .csv or .tsv has no header: its columns are called 1, 2 and so on"
    )
    drop_empty: bool = Field(False, description="file, hf, senteval: leave rows without a text out")
    replace_invalid: bool = Field(False, description="file: replace characters that no text can hold")
    detokenise: bool = Field(False, description="senteval: write tokenised English as usual (don't for do n't)")
    skip_bad_sentences: bool = Field(False, description="conllu: leave invalid sentences out, and count them")
    split: str | None = Field(None, description="hf: what to read, train[:1000] or train[:1000],test")
    max_texts: int | None = Field(None, ge=10, le=10**9, description="at most so many texts of a task, seeded")


class LabelSettings(TextSettings):
    """The labels of the texts."""

    label_column: Names = Field(("label",), description="file, hf: the labels; several columns make several tasks")
    target: Literal["class", "number"] | None = Field(None, description="file, hf: read labels as classes or numbers")
    drop_missing_labels: bool = Field(False, description="file, hf: leave rows without a label out")
    missing_labels: Names = Field(
        (), description="file, hf: labels that stand for none, such as nan,NA,None: leave rows with one out"
    )
    merge_labels: bool = Field(
        False,
        description="file, hf: labels that differ only by case, by spaces or in how a number is written (1, 1.0) are "
        "one class, under the most frequent spelling",
    )


class TaskSettings(LabelSettings):
    """How texts are split into train, dev and test."""

    split_column: str | None = Field(None, description="file: a column with train, dev, test")
    group_column: str | None = Field(None, description="file, hf: rows with one value stay on one side")
    allow_overlap: bool = Field(False, description="keep texts that stand, or nearly stand, in train and test")


class ModelSettings(Settings):
    """Which encoder."""

    model: Model = Field(None, description="a folder or a hub name, NAME@REVISION; default: the embedded MiniLM")
    prompt: str | None = Field(
        None,
        description="text before every text, or its name in the model; default: the model's own default, '' for none",
    )


class ReadingSettings(Settings):
    """How an encoder is run over texts."""

    layers: Layers = Field("all", description="all, 0,3,6 or 1-12; 0 is the embedding output")
    max_length: int | None = Field(
        None, ge=3, le=10**6, description="longest input in tokens; default: the model's own"
    )
    long_rows: Literal["error", "truncate", "drop"] = Field("error", description="what to do with longer texts")
    device: Device = Field("auto", description="where the encoder runs")


class EncoderSettings(ReadingSettings, ModelSettings):
    """The encoder and its readouts."""

    readouts: Names = Field(DEFAULT, description="what to read at every layer")


class VectorSettings(EncoderSettings):
    """An encoder whose vectors are kept on disk."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="precision of the encoder")
    fast: bool = Field(False, description="the encoder in bfloat16, where the hardware has it")
    cache: PathName | None = Field(  # the place of the vectors changes no result: not among the settings of a run
        None, exclude=True, description="where vectors are kept [default: $CLSPROBE_HOME, else ~/.cache/clsprobe]"
    )


class FileOfVectors(Settings):
    """Vectors that are read from a file instead."""

    vectors: PathName | None = Field(
        None,
        description="no encoder: a .npy or .safetensors file with a vector for every row of file:PATH; --text-column "
        "is then for the baselines only",
    )


class ProbeSettings(Settings):
    """The probes, and how often they are fitted."""

    probes: Names = Field(
        tuple(DEFAULT_PROBES.values()),
        description="registered names or package.module:Class; the first that reads a task's labels is judged",
    )
    seeds: int = Field(
        1, ge=1, le=1000, description="how many seeds; they move carved splits, controls, untrained weights"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="the first seed")
    probe_timeout: int | None = Field(
        None,
        ge=1,
        le=10**6,
        description="seconds that any probe, clsprobe's own too, may take for one cell, fits and predictions; a cell "
        "that takes longer is listed as failed [default: no limit]",
    )

    @property
    def every_seed(self) -> range:
        """The seeds, the first one first."""
        return range(self.seed, self.seed + self.seeds)


class SweepSettings(ProbeSettings, VectorSettings, FileOfVectors, TaskSettings):
    """Everything that the layer x readout x probe sweep needs."""


def describe_invalid(kind: type[BaseModel], error: ValidationError) -> InputError:
    """The first problem of values that do not fit the fields of `kind`, as an error that names the flag."""
    problem: Mapping[str, Any] = error.errors()[0]
    if not problem["loc"]:  # of a validator of the whole study
        return InputError(kind.__name__, problem["msg"], "See its settings with --help")
    field = str(problem["loc"][0])
    where, value = "--" + field.replace("_", "-"), quote(str(problem["input"]))
    if problem["type"] == "extra_forbidden":
        return unknown(kind.__name__, "setting", field, kind.model_fields)
    if problem["type"] == "missing":
        return InputError(where, "is missing", "Give it; see --help")
    if problem["type"] == "literal_error":
        allowed = problem["ctx"]["expected"].replace(" or ", ", ").split(", ")
        return unknown(where, "value", str(problem["input"]), [name.strip("'") for name in allowed])
    info = kind.model_fields[field]
    if info.annotation is bool:
        return InputError(where, f"{value} does not fit", "Say true or false")
    low = next((limit.ge for limit in info.metadata if hasattr(limit, "ge")), None)
    high = next((limit.le for limit in info.metadata if hasattr(limit, "le")), None)
    if low is not None:
        return InputError(where, f"{value} does not fit", f"Give a whole number from {low} to {high}")
    return InputError(where, f"{value}: {problem['msg'].lower()}", "See --help")
