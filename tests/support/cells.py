"""States made by hand, with cells in which a label is planted."""

from __future__ import annotations

import numpy as np
from vectors import make_states

from clsprobe.probes.extraction.states import tensor_name
from clsprobe.probes.linear import LogisticProbe
from clsprobe.probes.tasks.task import Task

PROBES = {"logistic": LogisticProbe()}


SMALL = (60, 30, 60)  # train, dev, test


def sides(counts):
    return np.repeat(["train", "dev", "test"], counts)


def distinct_texts(n, seed, name):
    """Texts of one width, so different that the search for near copies is quick."""
    letters = np.random.default_rng([seed, 3, *name.encode()]).integers(97, 123, (n, 20), np.uint8)
    return [bytes(row).decode() for row in letters]


def task(counts=SMALL, *, classes=2, name="hand:made:label", seed=0, texts=None):
    """Balanced labels in random order; every text its own."""
    n = sum(counts)
    y = np.random.default_rng([seed, 1]).permutation(np.arange(n) % classes)
    texts = distinct_texts(n, seed, name) if texts is None else texts
    return Task(name, texts, np.array(list("abcdef"))[y], "class", sides(counts))


def states(tasks, *, layers=2, readouts=("cls", "mean"), dim=4, seed=0, control="none", weights=None, present=None):
    """Noise; layer-0 cls is one vector, as it is in an encoder."""
    texts = list(dict.fromkeys(text for a_task in tasks for text in a_task.texts))
    values = np.random.default_rng([seed, 2]).normal(size=(layers, len(readouts), len(texts), dim)).astype(np.float32)
    if "cls" in readouts:
        values[0, readouts.index("cls")] = values[0, readouts.index("cls"), :1]
    source = {"model": "synthetic", "control": control, "seed": weights}
    return make_states(texts, readouts, values, source, present=present)


def cell(made, layer, number):
    """A cell to write into."""
    return made.shards[0][tensor_name(layer, made.readouts[number])]


def plant(vectors, of, d):
    """Move the second class by d along the first coordinate."""
    vectors[:, 0] += d * (of.y == "b")
