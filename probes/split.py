"""Who may learn from whom: the sides of a task, so that no test text, nor its double, is ever trained on.

1. Two texts are the same when they are equal after NFKC, casefolding and collapsing white space. Texts that are the
   same, and rows that share a group of the task, are tied (`_tied`) and never straddle two sides.
2. Where the source fixes the sides they are kept: test stays whole, and train and dev rows tied to it leave, counted.
3. What the source leaves open is carved (`_carve`): 70 / 10 / 20 without any split, a tenth of train without a dev,
   stratified by label and seeded. The order is that of a keyed hash of the text, so a text's side does not depend on
   where its row stands.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import numpy as np

from probes.errors import InputError, named_rows
from probes.task import Task

SIDES = ("train", "dev", "test")
SHARES = {"test": 0.2, "dev": 0.1}  # of a task without a split; train takes the rest
BLOCK = 10  # neighbours in the stratified order that share out the sides among them


@dataclass(frozen=True, eq=False)
class Split:
    """The side of every text, and what was found and left out on the way.

    side: (text,) "train" | "dev" | "test", or "" for a text left out.
    left_out: reason -> rows. notes: sentences for the report.
    """

    side: np.ndarray
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def split(task: Task, *, seed: int = 0, allow_overlap: bool = False) -> Split:
    """The sides of a task: its own where it has them, carved where it has not.

    seed: moves carved sides only. allow_overlap: keep texts that stand on two of the source's own sides.
    Raises InputError where the labels or the texts leave nothing to measure.
    """
    if not len(task.texts):
        raise InputError(task.name, "no texts")
    texts = _hashes(task.texts, seed)
    tied = _tied(texts, task.groups)
    left_out: dict[str, int] = {}
    notes = _repeats(texts)
    if task.kind == "class" and len(task.y) and (task.y == task.y[0]).all():
        raise InputError(task.name, f"one class ('{task.y[0]}', {len(task.y):,} rows); a probe needs two")
    if task.split is None:
        side = np.full(len(texts), "train", dtype="<U5")
        _carve(task, side, tied, texts, SHARES, SIDES)
    else:
        side = task.split.astype("<U5")
        for one in ("train", "test"):
            if not (side == one).any():
                raise InputError(task.name, f"no {one} texts", "A split has at least train and test")
        if not allow_overlap:
            left_out = _part(task, side, tied, texts)
        if not (side == "dev").any():
            _carve(task, side, tied, texts, {"dev": 0.1}, ("train",))
            if not (dev := int((side == "dev").sum())):
                raise InputError(task.name, "train has too few different texts to spare a dev side", "Give dev texts")
            notes.append(f"no dev of its own: {dev:,} train texts serve as dev")
    _check_labels(task, side)
    return Split(side, left_out, notes)


def take(task: Task, n: int, *, seed: int) -> Task:
    """At most `n` texts of a task, seeded: in proportion per side and, nearly, per label; their order is kept.

    Labels that train does not keep leave dev and test too, or else nothing small could be taken of many classes.
    """
    if len(task.texts) <= n:
        return task
    strata = _codes(task) if task.kind == "class" else np.zeros(len(task.y), np.int64)
    side = task.split if task.split is not None else np.full(len(task.y), "train")
    order = np.lexsort((_hashes(task.texts, seed), strata))
    kept: list[np.ndarray] = []
    for one in SIDES:
        rows = order[side[order] == one]
        share = round(n * len(rows) / len(order))
        if kept:
            rows = rows[np.isin(strata[rows], strata[kept[0]])]
        share = min(max(share, 1), n - sum(map(len, kept)), len(rows))
        kept.append(rows[((np.arange(share) + 0.5) * len(rows) / max(share, 1)).astype(int)])
    rows = np.sort(np.concatenate(kept))
    parts = {name: value[rows] for name in ("y", "split", "groups") if (value := getattr(task, name)) is not None}
    return replace(task, texts=[task.texts[row] for row in rows.tolist()], **parts)


# ----------------------------------------------------------------------------------------------------- what is the same


def _hashes(texts: Sequence[str], seed: int) -> np.ndarray:
    """(text,) uint64, equal for the same text and in an order that the seed decides."""
    key = str(seed).encode()
    hashes = bytearray()
    for text in texts:
        plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
        plain = " ".join(plain.casefold().split())
        hashes += blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
    return np.frombuffer(hashes, np.uint64)


def _tied(texts: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """(text,) the group of each row: rows of one text or one group of the task, and what that chains together."""
    text = np.unique(texts, return_inverse=True)[1]
    if groups is None:
        return text
    parent = list(range(text.max() + 1))

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = one = parent[parent[one]]
        return one

    first: dict[object, int] = {}
    for one, group in zip(text.tolist(), groups.tolist(), strict=True):
        parent[root(one)] = root(first.setdefault(group, one))
    return np.array([root(one) for one in range(len(parent))])[text]


def _repeats(texts: np.ndarray) -> list[str]:
    first = np.unique(texts, return_index=True)[1]
    again = np.delete(np.arange(len(texts)), first)
    if not len(again):
        return []
    rows = f"{len(again):,} rows repeat" if len(again) > 1 else "1 row repeats"
    return [f"{rows} an earlier text (rows {named_rows(again + 1)})"]


# --------------------------------------------------------------------------------------------- the source's own sides


def _part(task: Task, side: np.ndarray, tied: np.ndarray, texts: np.ndarray) -> dict[str, int]:
    """Take out of `side` what is tied to a side that comes before it: test, then dev, then train."""
    train, test = side == "train", side == "test"
    shared = int(np.isin(texts[test], texts[train]).sum())
    if 2 * shared >= test.sum():
        what = f"train and test share {shared:,} of {test.sum():,} texts"
        raise InputError(task.name, what, "Give other test texts, or pass --allow-overlap")
    left_out: dict[str, int] = {}
    for stays, leaves in (("test", "dev"), ("test", "train"), ("dev", "train")):
        here, there = side == stays, side == leaves
        gone = there & np.isin(tied, tied[here])
        copies = gone & np.isin(texts, texts[here])
        for reason, rows in ((f"copies of a {stays} text", copies), (f"rows of a group in {stays}", gone & ~copies)):
            if rows.any():
                left_out[f"{leaves} {reason}"] = int(rows.sum())
        side[gone] = ""
    if not (side == "train").any():
        raise InputError(task.name, "every train text is tied to a dev or test text", "Give other train texts")
    return left_out


# ---------------------------------------------------------------------------------------------------- sides we choose


def _carve(
    task: Task, side: np.ndarray, tied: np.ndarray, texts: np.ndarray, shares: dict[str, float], needed: Sequence[str]
) -> None:
    """Move shares of train to other sides, in place: whole groups, label by label, each label on every `needed` side.

    Groups stand in line by labels, then size; each block of ten neighbours deals out the sides in hash order.
    """
    rows = np.flatnonzero(side == "train")
    group, size = np.unique(tied[rows], return_inverse=True, return_counts=True)[1:]
    hashes = np.full(len(size), np.iinfo(np.uint64).max)
    np.minimum.at(hashes, group, texts[rows])
    label = _codes(task)[rows] if task.kind == "class" else np.zeros(len(rows), np.int64)
    pairs = np.unique(np.stack([group, label], 1), axis=0)  # (group and label that meet, 2), sorted
    stratum = _strata(pairs, len(size))

    line = np.lexsort((hashes, size, stratum))
    block = np.arange(len(line)) // BLOCK
    line = line[np.lexsort((hashes[line], block))]
    place = (np.arange(len(line)) % BLOCK + 0.5) / np.bincount(block)[block]
    chosen = np.full(len(size), "train", dtype="<U5")
    low = 0.0
    for one, share in shares.items():
        chosen[line[(low <= place) & (place < low + share)]] = one
        low += share
    _mend(chosen, pairs, hashes, size, needed)
    side[rows] = chosen[group]

    counts = {one: np.bincount(label[side[rows] == one], minlength=label.max() + 1) for one in needed}
    lacking = [code for code in np.unique(label) if any(not count[code] for count in counts.values())]
    if lacking and task.kind == "number":
        raise InputError(
            task.name, f"{len(size)} different texts are too few for {', '.join(needed)}", "Give more texts"
        )
    if lacking:
        names = np.unique(task.y)
        each = [f"'{names[c]}' ({', '.join(f'{one} {counts[one][c]}' for one in needed)})" for c in lacking[:10]]
        more = f" and {len(lacking) - 10:,} more" if len(lacking) > 10 else ""
        what = f"{'classes' if len(lacking) > 1 else 'a class'} too small for every side: {', '.join(each)}{more}"
        raise InputError(task.name, what, "Leave the class out, or give at least three different texts of it")


def _strata(pairs: np.ndarray, groups: int) -> np.ndarray:
    """(group,) the label of a group or, where labels meet in one, an integer for just these labels."""
    starts = np.searchsorted(pairs[:, 0], np.arange(groups + 1))
    strata = pairs[starts[:-1], 1].copy()
    mixed = np.flatnonzero(np.diff(starts) > 1)
    patterns = [tuple(pairs[starts[group] : starts[group + 1], 1].tolist()) for group in mixed]
    order = {pattern: n for n, pattern in enumerate(sorted(set(patterns)), int(strata.max()) + 1)}
    strata[mixed] = [order[pattern] for pattern in patterns]
    return strata


def _mend(chosen: np.ndarray, pairs: np.ndarray, hashes: np.ndarray, size: np.ndarray, needed: Sequence[str]) -> None:
    """Give every label a group on every needed side, from the side that has most of them, while it can spare one."""
    held = {one: np.bincount(pairs[chosen[pairs[:, 0]] == one, 1], minlength=pairs[:, 1].max() + 1) for one in SIDES}
    present = np.unique(pairs[:, 1])
    small = present[np.any([held[one][present] == 0 for one in needed], axis=0)]
    for label in small.tolist():
        mine = pairs[pairs[:, 1] == label, 0]
        mine = mine[np.lexsort((hashes[mine], size[mine]))]
        for one in needed:
            counts = {other: int((chosen[mine] == other).sum()) for other in SIDES}
            if counts[one]:
                continue
            richest = max(counts, key=lambda other: counts[other])
            if counts[richest] > (richest in needed):
                chosen[mine[chosen[mine] == richest][0]] = one


# --------------------------------------------------------------------------------------------------------------- labels


def _codes(task: Task) -> np.ndarray:
    return np.unique(task.y, return_inverse=True)[1]


def _check_labels(task: Task, side: np.ndarray) -> None:
    if task.kind == "number":
        return
    train = np.unique(task.y[side == "train"])
    if len(train) == 1:
        raise InputError(task.name, f"train has one class ('{train[0]}'); a probe needs two")
    for one in ("test", "dev"):
        strange = np.flatnonzero((side == one) & ~np.isin(task.y, train))
        if len(strange):
            label = task.y[strange[0]]
            rows = named_rows(strange[task.y[strange] == label] + 1)
            what = f"label '{label}' stands in {one} (rows {rows}) but not in train"
            raise InputError(task.name, what, "Leave these rows out, or give train rows with this label")
