"""What an `Extractor` would refuse, before torch is imported: for `--dry-run`, and before minutes of loading."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clsprobe.probes.encoders.adapters import ADAPTERS
from clsprobe.probes.encoders.describing import Description
from clsprobe.probes.encoders.preview import TokenizerPreview, check_room
from clsprobe.probes.extraction.readouts import DEFAULT, check_readouts, parse_readouts


def check_before_loading(
    description: Description,
    texts: Sequence[str],
    readouts: Sequence[str] = DEFAULT,
    layers: Sequence[int] = (),
    *,
    max_length: int | None = None,
) -> np.ndarray:
    """(text,) tokens of every text that may be longer than the encoder takes, special ones included, 0 for the others.

    What is too long is left to the caller, who knows where the texts stand and whether they may be cut: the limit is
    ``description.limit(max_length)``. All lengths are 0 for a model whose tokenizer is not a tokenizer.json.
    Raises InputError where the Extractor or the loading of the encoder would: for a foreign tokenizer, a text with a
    token that the embedding table lacks, a readout that the model lacks, and where no text has room.
    """
    preview = TokenizerPreview.of(description)
    if preview is None:
        return np.zeros(len(texts), np.int64)
    limit = description.limit(max_length)
    check_room(description, limit, len(preview.encode(description.prompt)))
    missing, adapter = preview.missing, description.adapter
    names = [name for name in readouts if tuple(readouts) != DEFAULT or name not in missing]
    check_readouts(
        parse_readouts(names),
        layers or range(description.layers + 1),
        last=description.layers,
        missing=missing,
        # the norm of an architecture that is not known is found when it is loaded
        has_norm=bool(adapter.norm) or description.model_type not in ADAPTERS,
        model=description.name,
    )
    return preview.lengths(texts, limit)
