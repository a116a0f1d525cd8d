"""Tasks x cells x probes: the sweep, the choice of a cell, what it tells in bits, and its map."""
