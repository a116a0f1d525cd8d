"""Question 2: why the first token? What can be read from the others?

Every single position is probed at every layer. How well the best of the others does, beside [CLS], is what can be said
of an encoder as it is; why [CLS] stands first is a question to `clsprobe fine-tuning`, which moves it.
"""

import clsprobe as cp

result = cp.studies.Positions(task="grammar:tense:120", layers="3,6", readouts="cls,sep,token[1],token[-1]").run()

print(result)
print(result.chosen[["readout", "layer", "test", "low", "high"]].round(3).to_string(index=False))
