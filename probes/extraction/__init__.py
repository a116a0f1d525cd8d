"""Vectors of texts: read out of every layer, kept in a cache, or taken from a file."""
