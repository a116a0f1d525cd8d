"""Question 1: is [CLS] really an aggregate of the whole sequence?

[CLS] is compared with what the words say one by one, with the length, with an untrained encoder, and with the mean over
all tokens, on the same test texts. On so few sentences the honest answer is mostly "undecided", and says how many texts
would decide.
"""

import clsprobe as cp

result = cp.studies.Aggregate(task="grammar:subject_number:120", layers="3,6").run()

print(result)
print(result.chosen[["readout", "layer", "test", "low", "high"]].round(3).to_string(index=False))
