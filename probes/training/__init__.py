"""Training: a whole encoder learns with a readout and a head."""
