"""Question 3: how does [CLS] come to know what it knows?

Attention into [CLS] is cut in some layers, probes are trained anew, and what they still read says where [CLS] has
gathered the sentence; the same is done in untrained encoders. One readout at one layer keeps this to about a minute.
"""

import clsprobe as cp

result = cp.studies.Formation(task="grammar:tense:120", layers="0,2", readouts="cls").run()

print(result)
knockout = result.tables["knockout"]
right = (knockout.label.astype(str) == knockout.predicted.astype(str)).groupby([knockout["first"], knockout["last"]])
print("Share of test texts read correctly after a cut in these layers, without training the probe anew:")
print(right.mean().round(3).to_string())
