"""Splits a task into train, dev and test, so that no test text, nor a copy of one, is trained on.

1. Copies, near copies, texts that the encoder cannot tell apart (probes.tasks.duplicates) and rows in one group of the
   task are tied (`_Ties`) and always on the same side.
2. If more than a twentieth of all texts are near copies of each other they are a template. No side could hold them all,
   so they are reported and split like other texts.
3. Sides fixed by the source are kept: test stays complete, and train and dev rows tied to it are left out and counted.
   It is an error if half or more of test is also in train, or if dev is test.
4. Missing sides are carved (`_carve`): 70 / 10 / 20 without a split, a tenth of train without a dev side, stratified by
   label and seeded. The order is that of a keyed hash of the text, so a text's side does not depend on its row.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from clsprobe.probes.errors import InputError
from clsprobe.probes.tasks import duplicates
from clsprobe.probes.tasks.rows import SIDES
from clsprobe.probes.tasks.task import IN_MEMORY, Task

SHARES = {"test": 0.2, "dev": 0.1}  # of a task without a split; train takes the rest
BLOCK = 10  # neighbours in the stratified order that are distributed over the sides
TEMPLATE = 0.05  # share of all different texts (and more than ten) above which near copies are a template
MAX_GROUPED = 0.2  # share of train that may be left out since its groups are on other sides too
OF_GROUP = "rows of a group in {}"
MAX_CLASS_SHARE = 0.5  # classes per row, above which labels are taken for row names


@dataclass(frozen=True, eq=False)
class Split:
    """The side of every text.

    side: (text,) "train" | "dev" | "test", or "" for a text left out. group: (text,) rows that are tied to each other.
    reason: (text,) why a text is left out, "" where it is used. notes: sentences for the report.
    """

    side: np.ndarray
    group: np.ndarray
    reason: np.ndarray
    notes: list[str] = field(default_factory=list)

    @property
    def left_out(self) -> dict[str, int]:
        """Reason -> number of rows."""
        return count_reasons(self.reason)


def count_reasons(reason: np.ndarray) -> dict[str, int]:
    """Reason -> rows that are left out for it. reason: (text,), "" where a text is used."""
    reasons, counts = np.unique(reason[reason != ""], return_counts=True)
    return dict(zip(reasons.tolist(), counts.tolist(), strict=True))


def split(
    task: Task, *, seed: int = 0, allow_overlap: bool = False, tokens: Sequence[Hashable] | np.ndarray | None = None
) -> Split:
    """Split a task: sides of the source are kept, missing ones carved.

    seed: affects carved sides only. allow_overlap: keep texts that are on two sides of the source, and ignore near
    copies. tokens: (text,) keys of the encoder's input, such as digests of token ids after truncation; texts with equal
    keys are copies. Raises InputError if the labels or the texts leave nothing to measure.
    """
    if not len(task.texts):
        raise InputError(task.name, "no texts")
    _check_classes(task)
    ties, notes = _ties(task, seed, tokens, near=not (allow_overlap or task.textless))
    reason = np.full(len(task.texts), "", object)
    if task.split is None:
        side = np.full(len(task.texts), "train", dtype="<U5")
        _carve(task, side, ties, SHARES, SIDES)
    else:
        side = task.split.astype("<U5")
        for name in ("train", "test"):
            if not (side == name).any():
                raise InputError(task.name, f"no {name} texts", "A split has at least train and test")
        if not allow_overlap:
            reason, overlap_notes = _drop_overlap(task, side, ties)
            notes += overlap_notes
        if not (side == "dev").any():
            _carve(task, side, ties, {"dev": 0.1}, ("train",))
            if not (n_dev := int((side == "dev").sum())):
                raise InputError(task.name, "train has too few different texts to spare a dev side", "Give dev texts")
            notes.append(f"no dev of its own: {n_dev:,} train texts serve as dev")
    notes += _check_labels(task, side)
    return Split(side, ties.group, reason, notes)


def sample_task(task: Task, n: int, *, seed: int) -> Task:
    """A seeded sample of at most `n` texts (`sample_rows`)."""
    return task if len(task.texts) <= n else task.take(sample_rows(task, n, seed=seed))


def sample_rows(task: Task, n: int, *, seed: int) -> np.ndarray:
    """The rows of a seeded sample of at most `n` texts, in proportion per side and approximately per label, ascending.

    Labels that are not in the sample of train leave dev and test too; otherwise no small sample of many classes would
    be valid.
    """
    if len(task.texts) <= n:
        return np.arange(len(task.texts))
    strata = _label_codes(task) if task.kind == "class" else np.zeros(len(task.y), np.int64)
    side = task.split if task.split is not None else np.full(len(task.y), "train")
    order = np.lexsort((duplicates.hash_texts(task.texts, seed), strata))
    sampled: list[np.ndarray] = []
    for part in SIDES:
        rows = order[side[order] == part]
        share = round(n * len(rows) / len(order))
        if sampled:
            rows = rows[np.isin(strata[rows], strata[sampled[0]])]
        share = min(max(share, 1), n - sum(map(len, sampled)), len(rows))
        sampled.append(rows[((np.arange(share) + 0.5) * len(rows) / max(share, 1)).astype(int)])
    return np.sort(np.concatenate(sampled))


# ----------------------------------------------------------------------------------------------------- what is the same


@dataclass(frozen=True, eq=False)
class _Ties:
    """Which rows are tied, and why.

    texts: (row,) hashes; their order depends on the seed. same: reason -> (row,) values, equal for rows tied for it.
    group: (row,) the groups of rows tied for any reason, directly or by a chain.
    """

    texts: np.ndarray
    same: dict[str, np.ndarray]
    group: np.ndarray


def _ties(
    task: Task, seed: int, tokens: Sequence[Hashable] | np.ndarray | None, *, near: bool
) -> tuple[_Ties, list[str]]:
    """The ties of a task, and a note for every kind of copy among its rows."""
    texts = duplicates.hash_texts(task.texts, seed)
    same = {"copies of a {} text": texts}
    notes = _row_notes(task, _repeats(texts, np.arange(len(texts))), "repeat{s} an earlier text") + _contradictions(
        task, texts
    )
    group = duplicates.group_rows(texts, task.groups)
    if near:
        near_groups, template = _separate_templates(_cached_near_copies(task), texts)
        same["near copies of a {} text"] = near_groups
        notes += _row_notes(task, _repeats(near_groups, group), "nearly repeat{s} an earlier text")
        notes += _row_notes(
            task, np.flatnonzero(template), "differ{s} so little from so many others that they are no copies"
        )
        group = duplicates.group_rows(group, near_groups)
    if tokens is not None:
        same["copies, to the encoder, of a {} text"] = encoder_groups = duplicates.group_rows(tokens)
        notes += _row_notes(
            task, _repeats(encoder_groups, group), "repeat{s} an earlier text as far as the encoder can see"
        )
        group = duplicates.group_rows(group, encoder_groups)
    if task.groups is not None:
        same[OF_GROUP] = task.groups
    return _Ties(texts, same, group), notes


_NEAR_COPIES: WeakKeyDictionary[Task, np.ndarray] = WeakKeyDictionary()  # slow, and the same for all seeds


def _cached_near_copies(task: Task) -> np.ndarray:
    if task not in _NEAR_COPIES:
        _NEAR_COPIES[task] = duplicates.group_near_copies(task.texts)
    return _NEAR_COPIES[task]


def _separate_templates(near: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row,) groups of near copies, with templates split into single texts; (row,) whether the row is of a template."""
    distinct, first, code = np.unique(texts, return_index=True, return_inverse=True)
    sizes = np.bincount(near[first], minlength=near.max() + 1)
    template = sizes[near] > max(10, TEMPLATE * len(distinct))
    return np.where(template, near.max() + 1 + code, near), template


def _repeats(group: np.ndarray, known_groups: np.ndarray) -> np.ndarray:
    """The rows that repeat an earlier row of `group`, but not of `known_groups`."""
    rows = np.sort(np.unique(known_groups, return_index=True)[1])
    return np.delete(rows, np.unique(group[rows], return_index=True)[1])


def _row_notes(task: Task, rows: np.ndarray, what: str) -> list[str]:
    if not len(rows):
        return []
    many = len(rows) > 1
    listed = task.located.describe(rows)
    return [f"{len(rows):,} row{'s' if many else ''} {what.format(s='' if many else 's')} ({listed})"]


# --------------------------------------------------------------------------------------------- the source's own sides


def _drop_overlap(task: Task, side: np.ndarray, ties: _Ties) -> tuple[np.ndarray, list[str]]:
    """Leave out, in place, dev and train rows tied to test and train rows tied to dev.

    Returns (text,) the reasons, and notes.
    """
    _check_overlap(task, side, ties)
    reasons = np.full(len(side), "", object)
    notes: list[str] = []
    of_train, of_group = (side == "train").sum(), 0
    for stays, leaves in (("test", "dev"), ("test", "train"), ("dev", "train")):
        staying = side == stays
        leaving = (side == leaves) & np.isin(ties.group, ties.group[staying])
        side[leaving] = ""
        for reason, values in [*ties.same.items(), ("rows tied to a {} text by others", ties.group)]:
            rows = leaving & np.isin(values, values[staying])
            if rows.any():
                reasons[rows] = f"{leaves} {reason.format(stays)}"
                of_group += int(rows.sum()) if leaves == "train" and reason == OF_GROUP else 0
                notes += _row_notes(task, np.flatnonzero(rows), f"of {leaves} left out: {reason.format(stays)}")
            leaving &= ~rows
    if not (side == "train").any():
        raise InputError(task.name, "every train text is tied to a dev or test text", "Give other train texts")
    if of_group > MAX_GROUPED * of_train:
        what = f"{of_group:,} of {of_train:,} train rows share a group with a row of dev or test, and cannot be used"
        groups, sides = ("groups", "split") if task.name.startswith(IN_MEMORY) else ("--group-column", "--split-column")
        mend = f"Leave {sides} out, and whole groups are split, or leave {groups} out"
        raise InputError(task.name, what, mend)
    return reasons, notes


def _check_overlap(task: Task, side: np.ndarray, ties: _Ties) -> None:
    train, test = (np.flatnonzero(side == name) for name in ("train", "test"))
    copies = [np.isin(values[test], values[train]) for reason, values in ties.same.items() if "copies" in reason]
    shared = np.any(copies, axis=0)
    if 2 * shared.sum() >= len(test):
        what = f"train and test share {shared.sum():,} of {len(test):,} texts"
        if nearly := int((shared & ~copies[0]).sum()):
            what += f", {nearly:,} of them but for small differences"
        mend = f"Give other test texts, or pass {task.write_option('allow_overlap', True)}"
        raise InputError(task.name, what, mend)


# ---------------------------------------------------------------------------------------------------- sides we choose


def _carve(task: Task, side: np.ndarray, ties: _Ties, shares: dict[str, float], needed: Sequence[str]) -> None:
    """Move shares of train to other sides, in place: whole groups, stratified, each label on every `needed` side.

    Groups are ordered by label, then size; each block of ten neighbours is distributed over the sides in hash order.
    """
    rows = np.flatnonzero(side == "train")
    group, size = np.unique(ties.group[rows], return_inverse=True, return_counts=True)[1:]
    hashes = np.full(len(size), np.iinfo(np.uint64).max)
    np.minimum.at(hashes, group, ties.texts[rows])
    labels = _label_codes(task)[rows] if task.kind == "class" else np.zeros(len(rows), np.int64)
    pairs = np.unique(np.stack([group, labels], 1), axis=0)  # (group and label that meet, 2), sorted
    stratum = _label_strata(pairs, len(size))

    order = np.lexsort((hashes, size, stratum))
    block = np.arange(len(order)) // BLOCK
    order = order[np.lexsort((hashes[order], block))]
    position = (np.arange(len(order)) % BLOCK + 0.5) / np.bincount(block)[block]
    chosen = np.full(len(size), "train", dtype="<U5")
    start = 0.0
    for name, share in shares.items():
        chosen[order[(start <= position) & (position < start + share)]] = name
        start += share
    _fill_sides(chosen, pairs, hashes, size, needed)
    side[rows] = chosen[group]

    counts = {name: np.bincount(labels[side[rows] == name], minlength=labels.max() + 1) for name in needed}
    missing = [code for code in np.unique(labels) if any(not count[code] for count in counts.values())]
    if missing and task.kind == "number":
        raise InputError(
            task.name, f"{len(size)} different texts are too few for {', '.join(needed)}", "Give more texts"
        )
    if missing:
        classes = np.unique(task.y)
        items = [
            f"'{classes[c]}' ({', '.join(f'{name} {counts[name][c]}' for name in needed)}; "
            f"{task.located.describe(rows[labels == c], 5)})"
            for c in missing[:10]
        ]
        more = f" and {len(missing) - 10:,} more" if len(missing) > 10 else ""
        what = f"{'classes' if len(missing) > 1 else 'a class'} too small for every side: {', '.join(items)}{more}"
        fewest = int(np.bincount(labels)[missing].max()) + 1
        mend = (
            f"Pass {task.write_option('min_class', fewest)} to leave classes with fewer rows out, or give at least "
            "three texts of each that are no copies of each other"
        )
        if task.name.startswith(("file:", "hf:", IN_MEMORY)):
            mend += f" ({task.write_option('merge_labels', True)} where it is another spelling of a class)"
        raise InputError(task.name, what, mend)


def _label_strata(pairs: np.ndarray, groups: int) -> np.ndarray:
    """(group,) the label of a group or, if it has several, an integer for this combination of labels."""
    starts = np.searchsorted(pairs[:, 0], np.arange(groups + 1))
    strata = pairs[starts[:-1], 1].copy()
    mixed = np.flatnonzero(np.diff(starts) > 1)
    patterns = [tuple(pairs[starts[group] : starts[group + 1], 1].tolist()) for group in mixed]
    order = {pattern: n for n, pattern in enumerate(sorted(set(patterns)), int(strata.max()) + 1)}
    strata[mixed] = [order[pattern] for pattern in patterns]
    return strata


def _fill_sides(
    chosen: np.ndarray, pairs: np.ndarray, hashes: np.ndarray, size: np.ndarray, needed: Sequence[str]
) -> None:
    """Move a group of every label to every needed side without one, from the side that has most, if it has enough."""
    totals = {
        name: np.bincount(pairs[chosen[pairs[:, 0]] == name, 1], minlength=pairs[:, 1].max() + 1) for name in SIDES
    }
    present = np.unique(pairs[:, 1])
    small_labels = present[np.any([totals[name][present] == 0 for name in needed], axis=0)]
    for label in small_labels.tolist():
        members = pairs[pairs[:, 1] == label, 0]
        members = members[np.lexsort((hashes[members], size[members]))]
        for name in needed:
            counts = {other: int((chosen[members] == other).sum()) for other in SIDES}
            if counts[name]:
                continue
            richest = max(counts, key=lambda other: counts[other])
            if counts[richest] > (richest in needed):
                chosen[members[chosen[members] == richest][0]] = name


# --------------------------------------------------------------------------------------------------------------- labels


def _label_codes(task: Task) -> np.ndarray:
    return np.unique(task.y, return_inverse=True)[1]


def _check_classes(task: Task) -> None:
    """Raise InputError for labels that cannot be probed with any split."""
    if task.kind == "number":
        return
    classes = np.unique(task.y)
    if len(classes) == 1:
        raise InputError(task.name, f"one class ('{classes[0]}', {len(task.y):,} rows); a probe needs two")
    if len(classes) > max(10, MAX_CLASS_SHARE * len(task.y)):
        what = f"{len(classes):,} classes in {len(task.y):,} rows: these labels name rows, not classes"
        raise InputError(task.name, what, "Name another column, or give more rows of each class")


def _contradictions(task: Task, texts: np.ndarray) -> list[str]:
    """A note if copies of a text have different labels."""
    if task.kind == "number":
        return []
    code = np.unique(texts, return_inverse=True)[1]
    labels = np.bincount(np.unique(np.stack([code, _label_codes(task)], 1), axis=0)[:, 0])
    return _row_notes(task, np.flatnonzero(labels[code] > 1), "hold{s} a text that has another label elsewhere")


def check_numbers(name: str, y: np.ndarray, side: np.ndarray) -> None:
    """Raise InputError if numbers y (text,) are all the same within a side (text,).

    Nothing can be learned from such a train side, and on dev and test there is no variance to explain.
    """
    for part in SIDES:
        numbers = np.unique(y[side == part])
        if len(numbers) == 1:
            what = f"all numbers of {part} are the same ({numbers[0]:g}); a probe needs two"
            raise InputError(name, what, "Give more texts, or another column")


def _check_labels(task: Task, side: np.ndarray) -> list[str]:
    """Raise InputError if train lacks a class of dev or test. Returns notes on classes that dev or test lack."""
    if task.kind == "number":
        check_numbers(task.name, task.y, side)
        return []
    train = np.unique(task.y[side == "train"])
    if len(train) == 1:
        raise InputError(task.name, f"train has one class ('{train[0]}'); a probe needs two")
    notes = []
    for name in ("test", "dev"):
        unknown = np.flatnonzero((side == name) & ~np.isin(task.y, train))
        if len(unknown):
            label = task.y[unknown[0]]
            rows = task.located.describe(unknown[task.y[unknown] == label])
            what = f"label '{label}' stands in {name} ({rows}) but not in train"
            of_train = np.ones(len(task.y), bool) if task.split is None else task.split == "train"
            fewest = max(int((of_train & (task.y == other)).sum()) for other in np.unique(task.y[unknown])) + 1
            mend = f"Pass {task.write_option('min_class', fewest)} to leave such rows out, or give train rows with it"
            raise InputError(task.name, what, mend)
        missing = train[~np.isin(train, task.y[side == name])]
        if len(missing):
            listed = ", ".join(f"'{label}'" for label in missing[:10]) + (", ..." if len(missing) > 10 else "")
            notes.append(f"{len(missing):,} of {len(train):,} classes have no {name} text: {listed}")
    return notes
