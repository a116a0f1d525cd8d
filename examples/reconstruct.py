"""Question 4: can the original sequence be recovered from [CLS]?

A decoder learns to write which words a sentence has, from the vector alone, and is compared with a blind one, which
gets no vector. What the vectors gain over the blind decoder is what they hold; treat stored vectors as the texts
themselves.
"""

import clsprobe as cp

result = cp.studies.Reconstruct(
    task="grammar:tense:150", layers="6", readouts="cls,mean", decoders="bag", beams=1, corrections=0, written=10
).run()

print(result)
texts = result.tables["reconstructions"]
read = texts[(texts.source == "vector") & (texts.split == "test")]
print("Bits of a text that the vector of layer 6 tells:")
print((read.blind - read.bits).groupby(read.readout).mean().round(1).to_string())
