"""A study's fields as flags: a flag, a key of ``--config`` and an argument in Python are one thing with one check.

Flags win over ``--config``, which wins over defaults. All values arrive as text: the study converts and checks them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_origin

import typer
from pydantic import ValidationError

from clsprobe.config import read_config
from clsprobe.execution import execute
from clsprobe.probes.errors import InputError, unknown

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from clsprobe.analysis.study import Study

ON_EVERY_RUN: dict[str, tuple[Any, str]] = {  # flags of the run, not of the study
    "out": (str, "folder of the run [default: out/COMMAND]"),
    "overwrite": (bool, "replace a finished run"),
    "config": (str, "a YAML file with values for these flags"),
    "dry_run": (bool, "say how many rows, how long, how much disk, and stop"),
    "quiet": (bool, "say nothing but errors"),
    "debug": (bool, "show tracebacks"),
}


def command_of(name: str, kind: type[Study]) -> Callable[..., None]:
    """A function with a flag for every field of the study. All values arrive as text: the study converts and checks."""
    flags = {field: (_kind(info), _help_of(info)) for field, info in kind.model_fields.items()} | ON_EVERY_RUN

    def command(**values: Any) -> None:
        given = {field: value for field, value in values.items() if value not in (None, [], False)}
        common = {field: given.pop(field, None) for field in ON_EVERY_RUN}
        if empty := [field for field in ("out", "config") if common[field] == ""]:
            raise InputError(_flag(empty[0]), "is empty", "Name one, or leave the flag out")
        study = make_study(kind, given, common["config"])
        out = common["out"] or f"out/{name}"
        try:
            execute(name, study, out, overwrite=bool(common["overwrite"]), dry=common["dry_run"])
        except InputError as error:
            raise _placed(error, kind, given, common["config"]) from error.__cause__

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                field,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if value is bool else None,
                annotation=_annotated(field, value, told),
            )
            for field, (value, told) in flags.items()
        ]
    )
    command.__annotations__ = {field: _annotated(field, value, told) for field, (value, told) in flags.items()}
    return command


def _annotated(field: str, kind: Any, told: str) -> Any:
    option = typer.Option(_flag(field), help=told, show_default=False)
    return Annotated[bool, option] if kind is bool else Annotated[kind | None, option]


def _kind(info: FieldInfo) -> Any:
    return bool if info.annotation is bool else list[str] if get_origin(info.annotation) is tuple else str


def _help_of(info: FieldInfo) -> str:
    default = ",".join(info.default) if isinstance(info.default, tuple) else info.default
    return f"{info.description}" + ("" if default in (None, False) else f" [default: {default}]")


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def make_study(kind: type[Study], given: Mapping[str, Any], config: str | None = None) -> Study:
    """A study out of flags over a configuration file over defaults. Raises InputError naming the flag or the line."""
    values, places = read_config(Path(config), list(kind.model_fields)) if config else ({}, {})
    places |= {field: _flag(field) for field in given}
    try:
        return kind(**{**values, **given})
    except ValidationError as error:
        problem = error.errors()[0]
        field = str(problem["loc"][0])
        raise _invalid(places.get(field, _flag(field)), kind.model_fields[field], problem) from None


def _placed(error: InputError, kind: type[Study], given: Mapping[str, Any], config: str | None) -> InputError:
    """The error, its flag replaced by the line of the configuration file where that is where the value stands."""
    flag, space, value = error.where.partition(" ")
    field = flag.removeprefix("--").replace("-", "_")
    if config is None or not flag.startswith("--") or field in given:
        return error
    _, places = read_config(Path(config), list(kind.model_fields))
    return InputError(f"{places.get(field, flag)}{space}{value}", error.what, error.mend)


def _invalid(where: str, info: FieldInfo, problem: Mapping[str, Any]) -> InputError:
    given = str(problem["input"])
    if problem["type"] == "literal_error":
        allowed = problem["ctx"]["expected"].replace(" or ", ", ").split(", ")
        return unknown(where, "value", given, [name.strip("'") for name in allowed])
    if info.annotation is bool:
        return InputError(where, f"'{given}' does not fit", "Say true or false")
    low = next((limit.ge for limit in info.metadata if hasattr(limit, "ge")), None)
    high = next((limit.le for limit in info.metadata if hasattr(limit, "le")), None)
    if low is not None:
        return InputError(where, f"'{given}' does not fit", f"Give a whole number from {low} to {high}")
    return InputError(where, f"'{given}': {problem['msg'].lower()}", "See --help")
