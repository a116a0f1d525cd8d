"""Texts and labels in memory, an encoder that is loaded already: one call, and the answers in words.

The texts may be a list, a column of a DataFrame or of a Dataset; `model` a folder, a name, a SentenceTransformer, or a
model of transformers with its tokenizer. Without one it is the encoder that is installed with clsprobe.
"""

import clsprobe as cp

FILMS = "a warm and moving film", "a clever, quick comedy", "wonderful from the first minute", "a joy to look at"
BORES = "the plot drags for hours", "a dull and noisy mess", "wooden from the first minute", "a pain to sit through"
texts = [f"{text}, says reviewer {i}" for i in range(15) for text in FILMS + BORES]
labels = ["good" if text.startswith(FILMS) else "bad" for text in texts]

result = cp.probe(texts, labels, layers=[6], readouts=["cls", "mean"], allow_overlap=True)

print(result)
print(result.chosen[["readout", "layer", "dev", "test", "low", "high"]].round(3))
result.report("reviews.html")
print(f"A page with all of it: reviews.html, {len(result.answers)} answers")
