"""A baseline of your own: what the last word of a text alone would give.

A baseline predicts without reading a layer, and is one more cell of the results, on the same test texts. That a vector
tells more than the words do is worth saying only if the words have had their chance.
"""

import numpy as np

from clsprobe import Extractor, load, load_encoder, sweep
from clsprobe.probes.baseline import BASELINES, predict_from_features


def last_word(texts, y, train, dev):
    """Predictions of every text by its last word. y: (text,) codes or numbers; train, dev: the rows to learn from."""
    words = [text.lower().strip(".!? ").rpartition(" ")[2] for text in texts]
    known = {word: column for column, word in enumerate(sorted({words[row] for row in train}))}  # of train alone
    X = np.zeros((len(texts), len(known)), np.float32)
    for row, word in enumerate(words):
        if word in known:
            X[row, known[word]] = 1
    return predict_from_features(X, y, train, dev)  # the probe of a cell, its strength chosen on dev


BASELINES["last_word"] = last_word  # from now on every sweep of this process has it

if __name__ == "__main__":
    (task,) = load("grammar:subject_number:150").tasks
    states = Extractor(load_encoder(), ["cls", "mean"], layers=[6])(task.texts)
    results = sweep(task, states, "logistic", controls=[])
    scores = results[(results.split == "test") & (results.metric == "accuracy")]
    print(scores[["control", "layer", "readout", "value", "low", "high"]].round(3).to_string(index=False))
