"""The shape of the vectors of a cell."""
