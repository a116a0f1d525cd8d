"""Who may learn from whom: the sides of a task, so that no test text, nor its double, is ever trained on.

1. Texts that are the same, nearly the same or the same to the encoder (probes.tasks.duplicates), and rows that share a
   group of the task, are tied (`_Ties`) and never straddle two sides.
2. Near copies are copies while they are few of a kind. More than a twentieth of all texts that are like each other are
   a template: no side could hold them, so they are named and dealt out.
3. Where the source fixes the sides they are kept: test stays whole, and train and dev rows tied to it leave, counted.
   Where half or more of test stands in train, and where dev is test, nothing sound could be kept: an error.
4. What the source leaves open is carved (`_carve`): 70 / 10 / 20 without any split, a tenth of train without a dev,
   stratified by label and seeded. The order is that of a keyed hash of the text, so a text's side does not depend on
   where its row stands.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import numpy as np

from clsprobe.probes.errors import InputError, named_rows
from clsprobe.probes.tasks import duplicates
from clsprobe.probes.tasks.task import Task

SIDES = ("train", "dev", "test")
SHARES = {"test": 0.2, "dev": 0.1}  # of a task without a split; train takes the rest
BLOCK = 10  # neighbours in the stratified order that share out the sides among them
TEMPLATE = 0.05  # of all different texts: more than so many (and than ten) that are alike are no copies
IDS = 0.5  # classes per row, from which on labels are taken for the names of their rows


@dataclass(frozen=True, eq=False)
class Split:
    """The side of every text, and what was found and left out on the way.

    side: (text,) "train" | "dev" | "test", or "" for a text left out.
    left_out: reason -> rows. notes: sentences for the report.
    """

    side: np.ndarray
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def split(
    task: Task, *, seed: int = 0, allow_overlap: bool = False, tokens: Sequence[Hashable] | np.ndarray | None = None
) -> Split:
    """The sides of a task: its own where it has them, carved where it has not.

    seed: moves carved sides only. allow_overlap: keep texts that stand on two of the source's own sides, and let near
    copies stand where they like. tokens: (text,) what the encoder sees of each text, such as a digest of its token ids
    after truncation; texts that it cannot tell apart are copies.
    Raises InputError where the labels or the texts leave nothing to measure.
    """
    if not len(task.texts):
        raise InputError(task.name, "no texts")
    _check_classes(task)
    ties, notes = _ties(task, seed, tokens, near=not (allow_overlap or task.textless))
    left_out: dict[str, int] = {}
    if task.split is None:
        side = np.full(len(task.texts), "train", dtype="<U5")
        _carve(task, side, ties, SHARES, SIDES)
    else:
        side = task.split.astype("<U5")
        for one in ("train", "test"):
            if not (side == one).any():
                raise InputError(task.name, f"no {one} texts", "A split has at least train and test")
        if not allow_overlap:
            left_out, left = _part(task, side, ties)
            notes += left
        if not (side == "dev").any():
            _carve(task, side, ties, {"dev": 0.1}, ("train",))
            if not (dev := int((side == "dev").sum())):
                raise InputError(task.name, "train has too few different texts to spare a dev side", "Give dev texts")
            notes.append(f"no dev of its own: {dev:,} train texts serve as dev")
    notes += _check_labels(task, side)
    return Split(side, left_out, notes)


def take(task: Task, n: int, *, seed: int) -> Task:
    """At most `n` texts of a task, seeded: in proportion per side and, nearly, per label; their order is kept.

    Labels that train does not keep leave dev and test too, or else nothing small could be taken of many classes.
    """
    if len(task.texts) <= n:
        return task
    strata = _codes(task) if task.kind == "class" else np.zeros(len(task.y), np.int64)
    side = task.split if task.split is not None else np.full(len(task.y), "train")
    order = np.lexsort((duplicates.hashes(task.texts, seed), strata))
    kept: list[np.ndarray] = []
    for one in SIDES:
        rows = order[side[order] == one]
        share = round(n * len(rows) / len(order))
        if kept:
            rows = rows[np.isin(strata[rows], strata[kept[0]])]
        share = min(max(share, 1), n - sum(map(len, kept)), len(rows))
        kept.append(rows[((np.arange(share) + 0.5) * len(rows) / max(share, 1)).astype(int)])
    rows = np.sort(np.concatenate(kept))
    parts = {
        name: value[rows] for name in ("y", "split", "groups", "rows") if (value := getattr(task, name)) is not None
    }
    return replace(task, texts=[task.texts[row] for row in rows.tolist()], **parts)


# ----------------------------------------------------------------------------------------------------- what is the same


@dataclass(frozen=True, eq=False)
class _Ties:
    """Which rows are one, and why.

    texts: (row,) hashes, in an order that the seed decides. same: reason -> (row,) values, equal where it holds.
    group: (row,) what all of these tie together, and what they chain.
    """

    texts: np.ndarray
    same: dict[str, np.ndarray]
    group: np.ndarray


def _ties(
    task: Task, seed: int, tokens: Sequence[Hashable] | np.ndarray | None, *, near: bool
) -> tuple[_Ties, list[str]]:
    """The ties of a task, and a sentence for every kind of copies among its rows."""
    texts = duplicates.hashes(task.texts, seed)
    same = {"copies of a {} text": texts}
    notes = _told(_again(texts, np.arange(len(texts))), "repeat{s} an earlier text") + _contradictions(task, texts)
    group = duplicates.tied(texts, task.groups)
    if near:
        alike, template = _few_of_a_kind(_near(task), texts)
        same["near copies of a {} text"] = alike
        notes += _told(_again(alike, group), "nearly repeat{s} an earlier text")
        notes += _told(np.flatnonzero(template), "differ{s} so little from so many others that they are no copies")
        group = duplicates.tied(group, alike)
    if tokens is not None:
        same["copies, to the encoder, of a {} text"] = read = duplicates.tied(tokens)
        notes += _told(_again(read, group), "repeat{s} an earlier text as far as the encoder can see")
        group = duplicates.tied(group, read)
    if task.groups is not None:
        same["rows of a group in {}"] = task.groups
    return _Ties(texts, same, group), notes


_NEAR: WeakKeyDictionary[Task, np.ndarray] = WeakKeyDictionary()  # it takes its time, and no seed changes it


def _near(task: Task) -> np.ndarray:
    if task not in _NEAR:
        _NEAR[task] = duplicates.near(task.texts)
    return _NEAR[task]


def _few_of_a_kind(near: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row,) groups of near copies, those of templates broken up into single texts; (row,) whether of a template."""
    distinct, first, code = np.unique(texts, return_index=True, return_inverse=True)
    kinds = np.bincount(near[first], minlength=near.max() + 1)
    template = kinds[near] > max(10, TEMPLATE * len(distinct))
    return np.where(template, near.max() + 1 + code, near), template


def _again(group: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The rows that repeat an earlier one of their group, and are not known to."""
    rows = np.sort(np.unique(known, return_index=True)[1])
    return np.delete(rows, np.unique(group[rows], return_index=True)[1])


def _told(rows: np.ndarray, what: str) -> list[str]:
    if not len(rows):
        return []
    many = len(rows) > 1
    return [
        f"{len(rows):,} row{'s' if many else ''} {what.format(s='' if many else 's')} (rows {named_rows(rows + 1)})"
    ]


# --------------------------------------------------------------------------------------------- the source's own sides


def _part(task: Task, side: np.ndarray, ties: _Ties) -> tuple[dict[str, int], list[str]]:
    """Take out of `side` what is tied to a side that comes before it: test, then dev, then train. Counts, sentences."""
    _check_overlap(task, side, ties)
    left_out: dict[str, int] = {}
    notes: list[str] = []
    for stays, leaves in (("test", "dev"), ("test", "train"), ("dev", "train")):
        here = side == stays
        gone = (side == leaves) & np.isin(ties.group, ties.group[here])
        side[gone] = ""
        for reason, values in [*ties.same.items(), ("rows tied to a {} text by others", ties.group)]:
            rows = gone & np.isin(values, values[here])
            if rows.any():
                left_out[f"{leaves} {reason.format(stays)}"] = int(rows.sum())
                notes += _told(np.flatnonzero(rows), f"of {leaves} left out: {reason.format(stays)}")
            gone &= ~rows
    if not (side == "train").any():
        raise InputError(task.name, "every train text is tied to a dev or test text", "Give other train texts")
    return left_out, notes


def _check_overlap(task: Task, side: np.ndarray, ties: _Ties) -> None:
    train, test = (np.flatnonzero(side == one) for one in ("train", "test"))
    copies = [np.isin(values[test], values[train]) for reason, values in ties.same.items() if "copies" in reason]
    shared = np.any(copies, axis=0)
    if 2 * shared.sum() >= len(test):
        what = f"train and test share {shared.sum():,} of {len(test):,} texts"
        if nearly := int((shared & ~copies[0]).sum()):
            what += f", {nearly:,} of them but for small differences"
        raise InputError(task.name, what, "Give other test texts, or pass --allow-overlap")


# ---------------------------------------------------------------------------------------------------- sides we choose


def _carve(task: Task, side: np.ndarray, ties: _Ties, shares: dict[str, float], needed: Sequence[str]) -> None:
    """Move shares of train to other sides, in place: whole groups, label by label, each label on every `needed` side.

    Groups stand in line by labels, then size; each block of ten neighbours deals out the sides in hash order.
    """
    rows = np.flatnonzero(side == "train")
    group, size = np.unique(ties.group[rows], return_inverse=True, return_counts=True)[1:]
    hashes = np.full(len(size), np.iinfo(np.uint64).max)
    np.minimum.at(hashes, group, ties.texts[rows])
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
        each = [
            f"'{names[c]}' ({', '.join(f'{one} {counts[one][c]}' for one in needed)}; "
            f"rows {named_rows(rows[label == c] + 1, 5)})"
            for c in lacking[:10]
        ]
        more = f" and {len(lacking) - 10:,} more" if len(lacking) > 10 else ""
        what = f"{'classes' if len(lacking) > 1 else 'a class'} too small for every side: {', '.join(each)}{more}"
        mend = "Leave the class out, or give at least three texts of it that are no copies of each other"
        raise InputError(task.name, what, mend)


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


def _check_classes(task: Task) -> None:
    """What labels must be whatever the sides."""
    if task.kind == "number":
        return
    classes = np.unique(task.y)
    if len(classes) == 1:
        raise InputError(task.name, f"one class ('{classes[0]}', {len(task.y):,} rows); a probe needs two")
    if len(classes) > max(10, IDS * len(task.y)):
        what = f"{len(classes):,} classes in {len(task.y):,} rows: these labels name rows, not classes"
        raise InputError(task.name, what, "Name another column, or give more rows of each class")


def _contradictions(task: Task, texts: np.ndarray) -> list[str]:
    """Whether a text stands in the task with several labels."""
    if task.kind == "number":
        return []
    code = np.unique(texts, return_inverse=True)[1]
    labels = np.bincount(np.unique(np.stack([code, _codes(task)], 1), axis=0)[:, 0])
    return _told(np.flatnonzero(labels[code] > 1), "hold{s} a text that has another label elsewhere")


def check_numbers(name: str, y: np.ndarray, side: np.ndarray) -> None:
    """Raise InputError where the numbers y (text,) of a side (text,) are all the same, or are none.

    Nothing could be learned from such a train side, and dev and test would have no variance to explain.
    """
    if len(lost := np.flatnonzero(~np.isfinite(y))):
        raise InputError(name, f"rows {named_rows(lost + 1)} hold no finite number", "Mend them or leave them out")
    for one in SIDES:
        numbers = np.unique(y[side == one])
        if len(numbers) == 1:
            what = f"all numbers of {one} are the same ({numbers[0]:g}); a probe needs two"
            raise InputError(name, what, "Give more texts, or another column")


def _check_labels(task: Task, side: np.ndarray) -> list[str]:
    """Raise InputError where train lacks a class; a sentence for dev and for test where they lack one."""
    if task.kind == "number":
        check_numbers(task.name, task.y, side)
        return []
    train = np.unique(task.y[side == "train"])
    if len(train) == 1:
        raise InputError(task.name, f"train has one class ('{train[0]}'); a probe needs two")
    notes = []
    for one in ("test", "dev"):
        strange = np.flatnonzero((side == one) & ~np.isin(task.y, train))
        if len(strange):
            label = task.y[strange[0]]
            rows = named_rows(strange[task.y[strange] == label] + 1)
            what = f"label '{label}' stands in {one} (rows {rows}) but not in train"
            raise InputError(task.name, what, "Leave these rows out, or give train rows with this label")
        absent = train[~np.isin(train, task.y[side == one])]
        if len(absent):
            named = ", ".join(f"'{label}'" for label in absent[:10]) + (", ..." if len(absent) > 10 else "")
            notes.append(f"{len(absent):,} of {len(train):,} classes have no {one} text: {named}")
    return notes
