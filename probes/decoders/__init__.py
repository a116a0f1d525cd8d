"""Decoders: can the tokens of a text be got back from one vector?"""
