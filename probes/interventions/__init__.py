"""Hooks that change the forward pass; `probes.encoders.tap` only observes it."""
