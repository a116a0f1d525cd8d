"""Tokens from one vector: can the text be got back?

`bag` says which tokens stand in a text, `slot` which stands where, `sequence` writes them one after another; `base` is
what they share. `search` makes texts of a decoder's candidates, by encoding them again.
"""
