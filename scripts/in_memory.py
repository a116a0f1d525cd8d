"""What does the [CLS] vector know of texts and labels in memory? The whole sweep, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clsprobe.analysis.result import Result


def probe(
    texts: Any,
    labels: Any,
    *,
    split: Sequence[str] | None = None,
    groups: Sequence[Any] | None = None,
    name: str = "data",
    model: Any = None,
    maps: bool = False,
    **settings: Any,
) -> Result:
    """Probe every layer and readout of an encoder for labels of texts, as ``clsprobe run`` does for a file.

    texts, labels, split, groups, name: as in `Task.from_lists`. model: a folder, a hub name, a SentenceTransformer, or
    (model, tokenizer) of transformers; by default the embedded MiniLM. maps: draw UMAPs too, which takes some twenty
    seconds. settings: those of the command, such as ``layers=[0, 6]``, ``readouts=["cls", "mean"]``,
    ``probes="logistic"``, ``seeds=3``, and the rules for rows of `Task.from_lists`, such as ``target="number"``.

    Returns the `Result`: printed, the answers in words; `Result.results` and `Result.predictions` are its tables,
    `Result.chosen` the layers that dev chose. Raises InputError for anything the user can fix.
    """
    from clsprobe.probes.errors import InputError
    from clsprobe.probes.tasks.memory import RowRules
    from clsprobe.probes.tasks.task import Task
    from clsprobe.run import Run

    if "no_maps" in settings:
        raise InputError("no_maps", "is a flag of the command", "Pass maps=True to draw the maps, or leave it out")
    if "task" in settings:
        mend = "Leave it out, or call cp.studies.Run(task=...).run()"
        raise InputError("task", "is made of texts and labels here", mend)
    rules = {rule: settings.pop(rule) for rule in RowRules.__annotations__ if rule in settings}
    task = Task.from_lists(texts, labels, split=split, groups=groups, name=name, **rules)
    if least := rules.get("min_class"):
        settings["min_class"] = least  # also among those that max_texts leaves
    return Run(task=task, model=model, no_maps=not maps, **settings).run()
