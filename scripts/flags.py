"""A study's fields as flags: a flag, a key of ``--config`` and an argument in Python are checked by the same code.

Flags override ``--config``, which overrides defaults. All values are text, which the study converts and checks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_origin

import typer
from pydantic import BaseModel, ValidationError

from clsprobe.analysis.registers import STUDIES
from clsprobe.analysis.settings import describe_invalid
from clsprobe.completion import COMPLETIONS
from clsprobe.config import read_config
from clsprobe.execution import execute
from clsprobe.probes.errors import InputError
from clsprobe.probes.plugins import PluginError, contain

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from clsprobe.analysis.study import Study

AnySettings = TypeVar("AnySettings", bound=BaseModel)
RUN_FLAGS: dict[str, tuple[Any, str]] = {  # flags of the run, not of the study
    "out": (str, "folder of the run [default: out/COMMAND]"),
    "overwrite": (bool, "replace a finished run"),
    "config": (str, "a YAML file with values for these flags"),
    "dry_run": (bool, "say how many rows, how long, how much disk, and stop"),
    "quiet": (bool, "say nothing but errors"),
    "debug": (bool, "show tracebacks"),
}


def make_command(name: str, kind: type[Study]) -> Callable[..., None]:
    """Make the function of a sub-command, with a keyword argument for every field of the study and every run flag.

    Raises InputError where a field of the study has the name of a run flag.
    """
    if taken := sorted(RUN_FLAGS.keys() & kind.model_fields.keys()):
        what = f"has a setting '{taken[0]}', and {flag_name(taken[0])} is a flag of every run"
        raise InputError(f"clsprobe {name}", what, "Rename it")
    flags = field_flags(kind, kind.model_fields) | RUN_FLAGS

    def command(**arguments: Any) -> None:
        values = {field: value for field, value in arguments.items() if value not in (None, [], False)}
        run = {field: values.pop(field, None) for field in RUN_FLAGS}
        if empty := [field for field in ("out", "config") if run[field] == ""]:
            raise InputError(flag_name(empty[0]), "is empty", "Name one, or leave the flag out")
        out = run["out"] or f"out/{name.rpartition(':')[2]}"
        try:
            with contain() if STUDIES.is_plugin(name) else nullcontext():
                study = make_study(kind, values, run["config"])
                execute(name, study, out, overwrite=bool(run["overwrite"]), dry=run["dry_run"])
        except InputError as error:
            raise _locate(error, kind, values, run["config"]) from error.__cause__
        except PluginError as error:
            raise InputError(f"clsprobe {name}", f"failed ({error})", "--debug shows where") from error.__cause__

    set_flags(command, flags)
    return command


def field_flags(kind: type[BaseModel], names: Iterable[str]) -> dict[str, tuple[Any, str]]:
    """Field -> the type and the help text of its flag, for some fields of settings."""
    return {name: (_flag_type(info := kind.model_fields[name]), _flag_help(info)) for name in names}


def set_flags(
    command: Callable[..., None], flags: Mapping[str, tuple[Any, str]], *arguments: inspect.Parameter
) -> None:
    """Give a function that takes any keyword arguments the signature that typer makes flags of, behind `arguments`."""
    annotations = {field: _annotate(field, *flag) for field, flag in flags.items()}
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *arguments,
            *(
                inspect.Parameter(
                    field,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=False if type_ is bool else None,
                    annotation=annotations[field],
                )
                for field, (type_, _) in flags.items()
            ),
        ]
    )
    command.__annotations__ = {argument.name: argument.annotation for argument in arguments} | annotations


def _annotate(field: str, type_: Any, description: str) -> Any:
    complete = COMPLETIONS.get(field)
    option = typer.Option(flag_name(field), help=description, show_default=False, autocompletion=complete)
    return Annotated[bool, option] if type_ is bool else Annotated[type_ | None, option]


def _flag_type(info: FieldInfo) -> Any:
    return bool if info.annotation is bool else list[str] if get_origin(info.annotation) is tuple else str


def _flag_help(info: FieldInfo) -> str:
    default = ",".join(map(str, info.default)) if isinstance(info.default, tuple) else info.default
    has_default = not info.is_required() and default not in (None, False, "")
    return (info.description or "") + (f" [default: {default}]" if has_default else "")


def flag_name(field: str) -> str:
    """The flag of a field: ``--max-texts`` of max_texts."""
    return "--" + field.replace("_", "-")


def make_study(kind: type[AnySettings], flag_values: Mapping[str, Any], config: str | None = None) -> AnySettings:
    """Make a study, or other settings, of flags over a configuration file over defaults. Raises InputError that names the flag or line."""
    values = read_config(Path(config), list(kind.model_fields))[0] if config else {}
    try:
        return kind(**{**values, **flag_values})
    except ValidationError as error:  # of a validator that another package adds to its study
        raise describe_invalid(kind, error) from None
    except InputError as error:
        raise _locate(error, kind, flag_values, config) from error.__cause__


def _locate(error: InputError, kind: type[BaseModel], flag_values: Mapping[str, Any], config: str | None) -> InputError:
    """The error, naming the line of the configuration file instead of the flag where the value comes from there."""
    flag, space, value = error.where.partition(" ")
    field = flag.removeprefix("--").replace("-", "_")
    if config is None or field not in kind.model_fields or field in flag_values:
        return error
    _, places = read_config(Path(config), list(kind.model_fields))
    return InputError(f"{places.get(field, flag)}{space}{value}", error.what, error.mend)
