"""The one error a user can mend, and the suggestion that goes with a mistyped name.

`InputError` carries WHERE (``file:line`` or ``--flag``), WHAT and MEND; the command line prints it as the single line
``error: WHERE: WHAT. MEND.`` and exits with 2. Everything else that escapes is our own bug (exit 1).
"""

from __future__ import annotations

from collections.abc import Iterable


class InputError(Exception):
    """Something the user gave that the user can mend.

    where: the physical place, ``reviews.csv:17``, ``run.yaml:4 key`` or ``--layers``.
    what: what is wrong there, without a full stop. mend: what to do about it, a sentence without a full stop.
    """

    def __init__(self, where: str, what: str, mend: str = "") -> None:
        self.where, self.what, self.mend = where, what, mend
        super().__init__(where, what, mend)

    def __str__(self) -> str:
        sentence = f"{self.where}: {self.what.rstrip('.')}"
        if self.mend:
            mend = self.mend if self.mend.endswith(("?", "!")) else f"{self.mend.rstrip('.')}."
            sentence += ("" if sentence.endswith("?") else ".") + f" {mend}"
        return printable(sentence)


def printable(text: str) -> str:
    """One line, whatever a file name or a cell holds: control characters and surrogates become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The known name nearest to a mistyped one, or None.

    Nearest by Damerau-Levenshtein similarity (optimal string alignment) from 0.6 on; else a name of two letters
    that is one edit away; else a longer one that begins like it but for one edit (`lable`: label_column).
    """
    from rapidfuzz import process
    from rapidfuzz.distance import OSA

    name, lowered = name.lower(), {k: k.lower() for k in known}
    short = {k: v for k, v in lowered.items() if len(v) == 2}
    begins = {k: v[: len(name)] for k, v in lowered.items() if len(name) >= 4}
    for near, cutoff in ((lowered, 0.6), (short, 0.5), (begins, 1 - 1.01 / max(len(name), 4))):
        if best := process.extractOne(name, near, scorer=OSA.normalized_similarity, score_cutoff=cutoff):
            return best[2]
    return None


def unknown(where: str, kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among the known ones: what there is, and the likeliest one meant."""
    known = list(known)
    guess = did_you_mean(name, known)
    listed = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    hint = f"Did you mean '{guess}'? " if guess else ""
    return InputError(where, f"unknown {kind} '{name}'", f"{hint}One of: {listed}")


def named_rows(rows: Iterable[int], limit: int = 10) -> str:
    """`rows` as a person reads them: the first ten, then how many more."""
    rows = list(rows)
    more = f" and {len(rows) - limit:,} more" if len(rows) > limit else ""
    return ", ".join(f"{row:,}" for row in rows[:limit]) + more
