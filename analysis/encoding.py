"""Vectors of the corpus: every text is encoded once, or the given vectors are used."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from clsprobe.analysis.corpus import Inputs
from clsprobe.analysis.settings import VectorSettings
from clsprobe.analysis.study import counted
from clsprobe.probes.encoders.devices import has_bfloat16
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.extraction.extractor import Extractor, LongTexts
from clsprobe.probes.extraction.states import States
from clsprobe.probes.extraction.store import make_cache_folder

log = logging.getLogger("clsprobe")


def encode_inputs(settings: VectorSettings, inputs: Inputs, *, untrained: Iterable[int] = ()) -> list[States]:
    """The States of the encoder, then those of the same encoder with random weights drawn with each of these seeds.

    From given vectors there is one States only.
    """
    if inputs.vectors is not None:
        assert inputs.vector_ids is not None
        return [inputs.vectors.states(inputs.layers, inputs.readouts, inputs.vector_ids)]
    texts, dtype = inputs.corpus.texts, settings.dtype
    if settings.fast and has_bfloat16(settings.device):
        dtype = "bfloat16"
    elif settings.fast:
        log.info("--fast: no bfloat16 in this hardware; float32 it is")
    states = []
    for seed in (None, *untrained):
        encoder = "the encoder" if seed is None else f"an untrained one (seed {seed})"
        log.info("encoding %s with %s", counted(len(texts), "text"), encoder)
        extract = Extractor(
            load_encoder(inputs.description, device=settings.device, dtype=dtype, untrained=seed),
            inputs.readouts,
            layers=inputs.layers,
            max_length=settings.max_length,
            long_rows="error" if settings.long_rows == "error" else "truncate",
            cache=make_cache_folder(settings.cache),  # created only after a model has loaded
        )
        try:
            states.append(extract(texts))
        except LongTexts as error:
            raise inputs.corpus.describe_long(error.lengths, error.limit) from None
    return states


def collect_facts(
    settings: VectorSettings, inputs: Inputs, states: States, rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """The facts about a measurement for run.json and the end of the page. rows: task -> counts of its rows.

    "solved" names the baselines that solve a task by construction, for the tasks that have any (`Task.solved_by`).
    """
    truncated = 0 if settings.long_rows == "drop" else len(states.truncated)
    model = {
        name: value for name, value in states.source.items() if name not in ("versions", "control", "seed", "notes")
    }
    return {
        "rows": rows,
        "read": inputs.corpus.rows,
        "model": model | {"readouts": list(states.readouts), "truncated texts": truncated},
        "solved": {task.name: list(task.solved_by) for task in inputs.tasks if task.solved_by},
        "versions": states.source["versions"] | {"clsprobe": importlib.metadata.version("clsprobe")},
    }


def encoding_notes(states: States) -> list[str]:
    """How the texts were read (`Encoder.notes_on`), and a warning of the cells that half precision changes too much."""
    moved = states.source["moved by half precision"]
    cells = ", ".join(f"{cell} {share:.0%}" for cell, share in sorted(moved.items(), key=lambda item: -item[1]))
    warning = "Half precision moves these cells by more than 5 % of their spread; do not read them"
    return [*states.source.get("notes", ()), *([f"{warning}: {cells}."] if moved else [])]
