"""Decoders: can the tokens of a text be got back from one vector?

`DECODERS` has them by the names of `clsprobe reconstruct --decoders`, in the order of their training; the last one
writes the texts. One of your own is a line more, `DECODERS["ridge"] = "mypackage.decoders:RidgeDecoder"`.
"""

DECODERS = {  # name -> package.module:Class, which is imported when it is used
    "bag": "clsprobe.probes.decoders.bag:BagDecoder",
    "slot": "clsprobe.probes.decoders.slot:SlotDecoder",
    "sequence": "clsprobe.probes.decoders.sequence:SequenceDecoder",
}
