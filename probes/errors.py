"""The error for faulty input, and the suggestion for a mistyped name.

`InputError` carries WHERE (``file:line`` or ``--flag``), WHAT and MEND. The command prints it as one line, ``error:
WHERE: WHAT. MEND.``, and exits with 2. Any other exception that escapes is a bug (exit 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class InputError(Exception):
    """A fault in the user's input that the user can fix.

    where: its location, ``reviews.csv:17``, ``run.yaml:4 key`` or ``--layers``. what: what is wrong, without a full
    stop. mend: what to do about it, a sentence without a full stop.
    """

    def __init__(self, where: str, what: str, mend: str = "") -> None:
        self.where, self.what, self.mend = where, what, mend
        super().__init__(where, what, mend)

    def __str__(self) -> str:
        sentence = f"{self.where}: {self.what.rstrip('.')}"
        if self.mend:
            mend = self.mend if self.mend.endswith(("?", "!")) else f"{self.mend.removesuffix('.')}."
            sentence += ("" if sentence.endswith("?") else ".") + f" {mend}"
        return printable(sentence)


def printable(text: str) -> str:
    """The text on one line: control characters and surrogates become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def describe_error(error: BaseException, limit: int = 300) -> str:
    """The kind of an exception and its message, if it has one, on one line: "ValueError: no rows"."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # the message is of its class, which may be anybody's
        message = ""
    message = message if len(message) <= limit else f"{message[:limit]}..."
    return printable(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def quote(text: str, limit: int = 60) -> str:
    """A name or a cell in quotes, for an error message; cut after `limit` characters."""
    return f"'{text}'" if len(text) <= limit else f"'{text[:limit]}...'"


def escape_surrogates(text: str) -> str:
    """The text with an escape such as \\udce9 for every unpaired surrogate, which no file of text or table can hold.

    Python decodes so the bytes of a file's name that are not UTF-8.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The known name most similar to a mistyped one, or None.

    Similarity is Damerau-Levenshtein (optimal string alignment), at least 0.6. Otherwise a name of two letters that is
    one edit away; otherwise a longer name whose beginning is one edit away (`lable`: label_column).
    """
    from rapidfuzz import process
    from rapidfuzz.distance import OSA

    name, lower_case = name.lower(), {k: k.lower() for k in known}
    short_names = {k: v for k, v in lower_case.items() if len(v) == 2}
    prefixes = {k: v[: len(name)] for k, v in lower_case.items() if len(name) >= 4}
    for candidates, cutoff in ((lower_case, 0.6), (short_names, 0.5), (prefixes, 1 - 1.01 / max(len(name), 4))):
        if best := process.extractOne(name, candidates, scorer=OSA.normalized_similarity, score_cutoff=cutoff):
            return best[2]
    return None


def unknown(where: str, kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for an unknown name: lists the known names and suggests the most similar one."""
    known = list(known)
    suggestion = did_you_mean(name, known)
    listed = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    hint = f"Did you mean '{suggestion}'? " if suggestion else ""
    return InputError(where, f"unknown {kind} '{name}'", f"{hint}One of: {listed}")


def format_rows(rows: Iterable[int], limit: int = 10) -> str:
    """Row numbers as text: the first `limit`, then the number of the others."""
    rows = list(rows)
    more = f" and {len(rows) - limit:,} more" if len(rows) > limit else ""
    return ", ".join(f"{row:,}" for row in rows[:limit]) + more


def format_names(names: Sequence[str], limit: int = 10) -> str:
    """Names as text: the first `limit`, then the number of the others."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
