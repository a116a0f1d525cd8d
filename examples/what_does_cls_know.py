"""What does the [CLS] vector know? Texts and labels in memory, one call, and the answers in words.

Every text is encoded once. At every layer a linear probe learns to read the label off the vector; the layer is chosen
on dev and measured on test, beside baselines that read no vector at all.
"""

# %% [markdown]
# ## The texts
#
# Anything that holds texts and labels: lists, columns of a DataFrame, a Dataset. Here they are built-in sentences in
# the present and in the past. Their split is kept: no verb of test is among those of train, so that nothing can be
# memorised.

# %%
import clsprobe as cp

(task,) = cp.load("grammar:tense:300").tasks
texts, labels, split = list(task.texts), task.y.tolist(), task.split.tolist()
print(texts[:2], labels[:2])

# %%
result = cp.probe(texts, labels, split=split, layers=[0, 3, 6], readouts=["cls", "mean"])
print(result)

# %% [markdown]
# ## What it rests on
#
# The layer of every readout as dev chose it, with its 95 % interval on test, and all scores as one tidy table.

# %%
print(result.chosen[["readout", "layer", "dev", "test", "low", "high"]].round(3))

# %%
scores = result.results.query("split == 'test' and metric == 'accuracy' and control == 'none'")
print(scores.pivot(index="layer", columns="readout", values="value").round(3))

# %% [markdown]
# `result.report("page.html")` writes a page with all exhibits, `result.save("out/tense")` everything that was
# measured, as `clsprobe run` does.
