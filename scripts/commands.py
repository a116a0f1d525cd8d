"""The sub-commands: clsprobe's own, and one for every study, which is imported when its command is called.

Help and completion name the studies of other packages without importing them.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command as make_typer_command

from clsprobe.analysis.registers import STUDIES, load_study, read_question
from clsprobe.flags import make_command
from clsprobe.probes.errors import InputError
from clsprobe.probes.registry import Entry
from clsprobe.terminal import escape_lines


class Commands(TyperGroup):
    """The commands that are no studies, and those of `STUDIES`."""

    def get_help(self, ctx: Any) -> str:
        """The help page in escapes, which names what other packages registered."""
        return escape_lines(super().get_help(ctx))

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands, of which the studies come last."""
        own = super().list_commands(ctx)
        return own + [name for name in _studies() if name not in own]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name; of a study that is not called, no more than its name and description."""
        command = super().get_command(ctx, cmd_name)
        if command is None and (entry := _studies().get(cmd_name)):
            command = TyperCommand(cmd_name, help=_describe(entry), rich_markup_mode=None)
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is called, its name and the arguments that are left. Raises InputError for a study that
        cannot be imported."""
        name = args[0]
        if name not in self.commands and (study := _find_study(name, completing=ctx.resilient_parsing)):
            self.commands[name] = make_study_command(study)
        return super().resolve_command(ctx, args)


class _StudyCommand(TyperCommand):
    def get_help(self, ctx: Any) -> str:
        return escape_lines(super().get_help(ctx))


def _studies() -> dict[str, Entry]:
    """Command -> study, for all that have a command of their own."""
    return {entry.name: entry for entry in STUDIES.entries() if not entry.reason}


def _describe(entry: Entry) -> str:
    return f"of the package {entry.package}" if entry.package else read_question(entry.name)


def _find_study(name: str, *, completing: bool) -> Any:
    """The study of a command, of an alias or of a full name; None where there is none.

    completing: a key was pressed, and nothing is called: no error, and no import of what no package registers.
    """
    if ":" in name:
        return None if completing else load_study(name)
    try:
        if entry := _studies().get(name):
            return load_study(entry.name)
    except InputError:
        if not completing:
            raise
        return None
    own = map(load_study, STUDIES.built_in)
    return next((study for study in own if name in study.aliases), None)


def make_study_command(study: Any) -> Any:
    """The command of a study, with its fields as flags."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    description = study.question + (f"\n\nThe claim it judges: {study.claim}." if study.claim else "")
    app.command(study.command(), cls=_StudyCommand, help=description)(make_command(study.command(), study))
    return make_typer_command(app)
