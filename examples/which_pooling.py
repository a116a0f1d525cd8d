"""Question 5: is mean pooling inferior to [CLS]? And does flattening destroy the order of the words?

A model's vector for a text is read off one token or pooled over all of them. Which one to use is a question to the data
at hand: each readout is compared with [CLS] on the same test texts, at the layer that dev chooses.
"""

# %% [markdown]
# ## Poolings against [CLS]
#
# Two classes of built-in sentences, whose test words are all new, an encoder with six layers, and three readouts. In
# your own notebook `task` is a `clsprobe.Task`, made of lists, of a DataFrame or of a Dataset.

# %%
import clsprobe as cp

inferior = cp.studies.Poolings(task="grammar:tense:150", layers="0,3,6", readouts="cls,mean,max").run()
print(inferior)

# %% [markdown]
# With so few texts the honest answer is often *undecided*: it says how many texts would decide. What it rests on is a
# table, one row per readout, with the layer that dev chose.

# %%
print(inferior.chosen[["readout", "layer", "dev", "test", "low", "high"]].round(3))

# %% [markdown]
# ## Order
#
# A mean of token vectors forgets their order, a concatenation (*flatten*) keeps it by construction. Whether a probe can
# read it is asked of a task that only order solves: the words of a sentence in order, or not.

# %%
destroyed = cp.studies.Order(task="grammar:word_order:150", layers="0,6", readouts="cls,mean,flatten_projected").run()
print(destroyed)

# %% [markdown]
# The evidence of an answer is its exhibits, each a table, a caption and a figure.

# %%
evidence = destroyed.answer.exhibits[0]
print(evidence.table[["name", "effect", "low", "high"]].round(3))
