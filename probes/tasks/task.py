"""What is asked of a representation: texts, one label each, and who may learn from whom.

A `Task` is plain data. Sources (analysis/sources) make tasks, `probes.tasks.split` their sides, the sweep measures.

A pair of texts (premise and hypothesis) is one string too: `pair` puts `PAIRED` between them. So everything that holds
texts holds pairs: packed arrays, dictionaries, digests, caches. Only who looks inside a text takes it apart (`parts`):
the encoder, the baselines, what tells copies, the page. `PAIRED` is one of the code points that Unicode keeps for the
inside of programs and no text may hold; sources refuse it. A kind of string of its own would not come back from an
Arrow array, and would be equal to the same words in one text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

PAIRED = "\ufdd0"


def pair(first: str, second: str) -> str:
    """Two texts as one string, which an encoder reads through its tokenizer's own template for pairs."""
    return first + PAIRED + second


def parts(text: str) -> list[str]:
    """The texts in a string: itself, or the two of a pair."""
    return text.split(PAIRED)


def readable(text: str) -> str:
    """A text as a person reads it: a double bar between the two of a pair."""
    return " ‖ ".join(parts(text))


@dataclass(frozen=True, eq=False)
class Task:
    """One question put to every cell of an encoder.

    name: ``SOURCE:STEM:LABEL`` ("file:trec:coarse"), never a path.
    texts: (text,) in the order of the source; a pair of texts is one (`pair`).
    y: (text,) strings for kind "class", float64 for kind "number".
    split: (text,) "train" | "dev" | "test" where the source fixes it, else None.
    groups: (text,) rows that share a value stay on one side of a split, else None.
    rows: (text,) which row of its source each is, rows that were left out counted too, where vectors belong to rows.
    textless: there are labels only; what stands for a text is the name of its row ("row 17").
    """

    name: str
    texts: Sequence[str]
    y: np.ndarray
    kind: Literal["class", "number"] = "class"
    split: np.ndarray | None = None
    groups: np.ndarray | None = None
    rows: np.ndarray | None = None
    textless: bool = False

    def __post_init__(self) -> None:
        for field, value in {"y": self.y, "split": self.split, "groups": self.groups, "rows": self.rows}.items():
            if value is not None and len(value) != len(self.texts):
                raise ValueError(f"Task {self.name!r}: {field} has {len(value)} rows, texts has {len(self.texts)}")
        if self.split is not None and (strange := set(self.split) - {"train", "dev", "test"}):
            raise ValueError(
                f"Task {self.name!r}: split holds {sorted(strange)}; only 'train', 'dev' and 'test' are known"
            )

    @property
    def label(self) -> str:
        """The last part of the name: which label set this is."""
        return self.name.rsplit(":", 1)[-1]
