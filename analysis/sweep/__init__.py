"""The layer x readout x probe grid, and what is concluded from it."""
