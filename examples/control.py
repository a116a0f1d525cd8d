"""A control of your own: labels that depend on one thing you suspect, here on the first letter of a text.

A control is one more label set, which every probe is fitted on beside the real one. What can be read of it shows how
much of a score this thing alone would give, or what the probe can memorise.
"""

from hashlib import blake2b

import numpy as np

from clsprobe import Extractor, load, load_encoder, sweep
from clsprobe.probes.tasks.control import CONTROLS


def first_letter(texts, y, side, seed):
    """(text,) labels drawn for every first letter from those of train: like y, -1 (numbers: NaN) would be no label."""
    pool = np.sort(y[side == "train"])
    digests = [blake2b(text[:1].lower().encode(), digest_size=8, key=str(seed).encode()).digest() for text in texts]
    return pool[[int.from_bytes(digest) % len(pool) for digest in digests]]  # the same in every process, unlike hash()


CONTROLS["first_letter"] = first_letter  # from now on every sweep of this process has it

if __name__ == "__main__":
    (task,) = load("grammar:tense:150").tasks
    states = Extractor(load_encoder(), ["cls", "mean"], layers=[0, 6])(task.texts)
    results = sweep(task, states, "logistic", controls=["shuffled", "first_letter"])
    scores = results[(results.split == "test") & (results.metric == "accuracy") & (results.layer >= 0)]
    print(scores.pivot(index=["layer", "readout"], columns="control", values="value").round(3).to_string())
