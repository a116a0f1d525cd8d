"""The encoder trained from one readout after another, and what its layers learn on the way."""
