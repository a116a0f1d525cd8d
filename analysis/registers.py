"""The register of studies, by the names of their commands: those of clsprobe/, and those of other packages.

A study is imported when its command is called. Imports no study, and none of what studies are made of.
"""

from __future__ import annotations

import ast
from inspect import isabstract
from typing import TYPE_CHECKING

from clsprobe.probes.errors import InputError
from clsprobe.probes.registry import Register, describe_kind, read_definition

if TYPE_CHECKING:
    from clsprobe.analysis.study import Study

COMMANDS = ("demo", "report", "export", "cache", "check", "list")  # those that are no studies
STUDIES = Register(
    "study",
    "clsprobe.studies",
    "clsprobe",
    {
        "aggregate": "clsprobe.aggregate:Aggregate",
        "fine-tuning": "clsprobe.fine_tuning:FineTuning",
        "formation": "clsprobe.formation:Formation",
        "geometry": "clsprobe.geometry:Geometry",
        "order": "clsprobe.order:Order",
        "poolings": "clsprobe.poolings:Poolings",
        "positions": "clsprobe.positions:Positions",
        "reconstruct": "clsprobe.reconstruct:Reconstruct",
        "run": "clsprobe.run:Run",
        "trajectory": "clsprobe.trajectory:Trajectory",
    },
    reserved=COMMANDS,
    hyphenated=True,
)


def load_study(name: str) -> type[Study]:
    """The study of a command, or of ``package.module:Name``. Raises InputError where there is none."""
    study, where = STUDIES.load(name), f"{STUDIES.flag} {name}"
    bases = [f"{base.__module__}:{base.__qualname__}" for base in getattr(study, "__mro__", ())]
    if "clsprobe.analysis.study:Study" not in bases:
        raise InputError(where, f"is {describe_kind(study)}, not a study", "Derive it from clsprobe.Study")
    if isabstract(study):
        methods = ", ".join(sorted(study.__abstractmethods__))
        raise InputError(where, f"is unfinished: it has no {methods}", "Define what is missing")
    for field in ("question", "claim"):
        if not hasattr(study, field):
            raise InputError(where, f"is unfinished: it has no {field}", f'Write {field}: ClassVar[str] = "..."')
    return study


def further_studies(study: type[Study]) -> list[type[Study]]:
    """The other studies that a measurement of this one can answer (`Study.further`). Raises InputError."""
    return [load_study(name) for name in study.further]


def read_question(name: str) -> str:
    """The question of a study of clsprobe's own, read from its file: nothing is imported."""
    body = read_definition(STUDIES.built_in[name]).body
    fields = {ast.unparse(node.target): node.value for node in body if isinstance(node, ast.AnnAssign)}
    return str(ast.literal_eval(fields["question"] or ast.Constant("")))
